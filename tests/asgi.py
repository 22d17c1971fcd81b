"""A client of ASGI applications without sockets: the application runs on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from wfl.context import Context
from wfl.server import Identities, create_app

PATIENCE = 30.0  # seconds that an answer may take on a busy machine


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def json(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """The status, and the kind of the error in the body."""
        return self.status, self.json()["error"]["type"]

    @property
    def message(self) -> str:
        """The words of the error in the body."""
        return str(self.json()["error"]["message"])


class Open:
    """An answer that still comes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.over = False
        self.cut = False
        self.future: Future[None] | None = None

    def until(self, condition: Callable[[bytes], object]) -> bytes:
        """All that has come, as soon as that is as it should be."""
        while not condition(self.body):
            assert self.step(), f"the stream is over: {self.body!r}"
        return self.body

    def step(self) -> bool:
        """Wait for the next piece; False where there is none."""
        try:
            message = self._pieces.get(timeout=PATIENCE)
        except Empty:
            raise AssertionError(f"nothing came after {self.body!r}") from None
        if message is None:
            self.over = True
            return False
        if message["type"] == "http.response.start":
            self.status = message["status"]
            for name, value in message["headers"]:
                text, known = value.decode("latin-1"), self.headers.get(name.decode())
                self.headers[name.decode()] = text if known is None else f"{known}, {text}"
        else:
            self.body += message.get("body", b"")
        return True

    def leave(self) -> None:
        """Break off."""
        self._loop.call_soon_threadsafe(self._sent.put_nowait, {"type": "http.disconnect"})

    def say(self, piece: bytes, *, more: bool = True) -> None:
        """Send some of the body."""
        message = {"type": "http.request", "body": piece, "more_body": more}
        self._loop.call_soon_threadsafe(self._sent.put_nowait, message)

    async def receive(self) -> dict[str, Any]:
        """What the application hears."""
        return await self._sent.get()

    async def send(self, message: dict[str, Any]) -> None:
        """What the application says."""
        self._pieces.put(message)

    def end(self, _: object = None) -> None:
        """The application has returned."""
        self._pieces.put(None)

    def abort(self) -> None:
        """The application cuts the connection."""
        self.cut = True


class Client:
    """Speaks with one application; `close` ends its lifespan."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._headers: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._life = app.router.lifespan_context(app)
        try:
            self.run(self._life.__aenter__())
        except BaseException:
            self._stop()
            raise

    def with_headers(self, **headers: str) -> Client:
        """The same with these headers in each request."""
        other = Client.__new__(Client)
        other.__dict__.update(self.__dict__, _headers={**self._headers, **headers})
        return other

    def run(self, coroutine: Any) -> Any:
        """Have the loop do it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def call(self, f: Callable[[], object]) -> None:
        """Call it on the loop."""

        async def call() -> None:
            f()

        self.run(call())

    def close(self) -> None:
        """As a server ends."""
        self.run(self._life.__aexit__(None, None, None))
        self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def begin(
        self, method: str, target: str, headers: Mapping[str, str], state: Mapping[str, Any] | None = None
    ) -> Open:
        """Send a request's head."""
        parts = urlsplit(target)
        stream = Open(self._loop)
        given = {"host": "server", **self._headers, **headers}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(parts.path),
            "raw_path": quote(parts.path, safe="/%").encode(),
            "query_string": parts.query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items() if value],
            "client": ("192.0.2.1", 40000),
            "server": ("server", 80),
            "state": {"abort": stream.abort, **(state or {})},
        }
        future = asyncio.run_coroutine_threadsafe(self._app(scope, stream.receive, stream.send), self._loop)
        future.add_done_callback(stream.end)
        stream.future = future
        return stream

    def request(
        self,
        method: str,
        target: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Ask, and wait for the whole answer; a body that is not bytes is sent as JSON."""
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        given = {"content-length": str(len(raw)), **({"content-type": "application/json"} if body is not None else {})}
        stream = self.begin(method, target, {**given, **(headers or {})}, state)
        stream.say(raw, more=False)
        while stream.step():
            pass
        if stream.future is not None:
            stream.future.result(0)
        return Answer(stream.status, stream.headers, stream.body)

    def get(self, target: str, **more: Any) -> Answer:
        """GET."""
        return self.request("GET", target, **more)

    def post(self, target: str, body: object = None, **more: Any) -> Answer:
        """POST."""
        return self.request("POST", target, {} if body is None else body, **more)

    @contextmanager
    def stream(self, target: str, **headers: str) -> Iterator[Open]:
        """GET what comes piece by piece; leaving is breaking off."""
        stream = self.begin("GET", target, {name.replace("_", "-"): text for name, text in headers.items()})
        stream.say(b"", more=False)
        try:
            yield stream
        finally:
            stream.leave()
            while not stream.over:
                stream.step()


API = "/api/v1"
SESSION = f"{API}/sessions/s"


class Served:
    """A job server in a directory, with clients of several identities; it can be started again, or die."""

    def __init__(self, directory: Path, make: Callable[[], Context], **settings: Any) -> None:
        self.directory, self._make, self.settings = directory, make, settings
        self.identities = Identities(directory / "identities.json")
        self.tokens = {
            "alice": self.identities.create_token("alice"),
            "bob": self.identities.create_token("bob"),
            "root": self.identities.create_token("root", admin=True),
        }
        self.start()

    def start(self) -> None:
        """Begin, with what is in the directory."""
        self.app = create_app(
            self._make(), directory=self.directory / "data", **{"identities": self.identities, **self.settings}
        )
        self.open = Client(self.app)
        self.server = self.app.state.server
        self.alice, self.bob, self.root = (self.client(name) for name in ("alice", "bob", "root"))

    def client(self, name: str) -> Client:
        """One that has the token of this identity."""
        return self.open.with_headers(authorization=f"Bearer {self.tokens[name]}")

    def stop(self) -> None:
        """End as when it is told to."""
        self.open.close()

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()


def submit(client: Client, *templates: dict[str, Any], keys: bool = True, session: str = "s") -> list[dict[str, Any]]:
    """Start jobs; what was answered for each."""
    jobs = [{"template": one, **({"key": f"key {number}"} if keys else {})} for number, one in enumerate(templates)]
    answer = client.post(f"{API}/sessions/{session}/jobs", {"jobs": jobs})
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json()["jobs"]
    return found


def started(client: Client, command: str = "x", *args: str, **fields: Any) -> str:
    """Start one job; its id."""
    (one,) = submit(client, {"remoteCommand": command, "args": args, **fields}, keys=False)
    assert "id" in one, one
    return str(one["id"])


def state(client: Client, id: str) -> str:
    """The state of a job."""
    return str(client.get(f"{API}/jobs/{id}").json()["info"]["state"])


def until(condition: Callable[[], object]) -> None:
    """Wait until something is true that threads bring about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


def ended(client: Client, id: str) -> str:
    """Wait until a job has ended; its state."""
    until(lambda: state(client, id) in ("done", "failed"))
    return state(client, id)

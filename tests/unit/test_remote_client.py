"""Client: requests are repeated until answered, and go to no other host; what answers mean."""

import email.utils
import http.server
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="httpx is not in this environment")

import httpx

from tests.unit.test_remote_fake import PATIENCE, half, refused, reset, status, swallowed, unheard
from wfl.contexts.remote import client as module
from wfl.contexts.remote import connection
from wfl.contexts.remote.client import Client, Question, pauses
from wfl.contexts.remote.connection import NotThereError, PastEndError, UnansweredError, refusal
from wfl.contexts.remote.settings import Credentials, Place
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    ImplementationSpecificError,
    InvalidArgumentError,
    InvalidStateError,
    OutOfResourceError,
    TryLaterError,
    UnsupportedAttributeError,
    UnsupportedOperationError,
    WflError,
)

SECRET = "hunter2-hunter2"  # noqa: S105 - a test's
HERE, URL = "https://server.example", "https://server.example/base"
Handler = Callable[[Any], Any]


class Waits(threading.Event):
    """Stands for the end of a session: nothing is waited for, and how long it would have been is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Not at all."""
        self.seconds.append(timeout or 0.0)
        return self.is_set()


class World:
    """All hosts that there are; a list of what goes wrong next."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.faults: list[Any] = []
        self.clients = 0
        self.answer: Handler = lambda request: httpx.Response(200, json={"asked": request.url.path})

    def __call__(self, request: Any) -> Any:
        """Answer, or let it go wrong."""
        self.requests.append(request)
        if self.faults:
            return self.faults.pop(0)(lambda: self.answer(request))
        return self.answer(request)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Every client talks to it."""
    found = World()

    def connected(_: Any, credentials: Credentials, *, fresh: bool = False) -> Any:
        found.clients += 1
        headers = {**credentials.headers(), "X-Fresh": str(fresh)}
        return httpx.Client(transport=httpx.MockTransport(found), headers=headers)

    monkeypatch.setattr(connection, "connected", connected)
    return found


@contextmanager
def talking(patience: float = 60.0, **credentials: Any) -> Iterator[tuple[Client, Waits]]:
    """A client that does not really wait."""
    waits = Waits()
    place = Place(base_url=URL, patience=patience)
    found = Client(place, Credentials(**(credentials or {"token": SECRET})), stopped=waits)
    try:
        yield found, waits
    finally:
        found.close()


ASK = Question(path="/x")


# --- repeating --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [swallowed, unheard, reset, half, refused, *map(status, (408, 425, 429, 502, 503, 504))],
)
def test_repeated_until_answered(world: World, fault: Any) -> None:
    """What is not answered is asked again, with pauses that grow and that chance varies."""
    world.faults = [fault] * 5
    with talking() as (client, waits):
        assert json.loads(client.ask(ASK).data) == {"asked": "/base/x"}
    assert len(world.requests) == 6
    for number, seconds in enumerate(waits.seconds):
        assert 0.05 * 2**number <= seconds <= 0.1 * 2**number


def test_pauses_have_a_longest() -> None:
    """However often it fails, it is tried again within a known time."""
    found = pauses((0.1, 5.0))
    many = [next(found) for _ in range(2000)]
    assert max(many) <= 5.0
    assert min(many[10:]) >= 2.5


def test_retry_after_is_honoured(world: World) -> None:
    """A server that says when to come again is not asked before, be it seconds or a date."""
    date = email.utils.formatdate(time.time() + 20, usegmt=True)
    world.faults = [status(503, Retry_After="7"), status(429, Retry_After=date), status(503, Retry_After="soon")]
    with talking() as (client, waits):
        client.ask(ASK)
    assert waits.seconds[0] == 7.0
    assert 15 < waits.seconds[1] <= 20
    assert waits.seconds[2] < 1


def test_retry_after_beyond_patience(world: World) -> None:
    """Who would have us wait for longer than we have patience is asked once more at its end."""
    world.faults = [status(503, Retry_After="20")]
    with talking(patience=10.0) as (client, waits):
        assert client.ask(ASK).response.status_code == 200
    (seconds,) = waits.seconds
    assert 5 < seconds <= 10


@pytest.mark.parametrize("text", ["3600", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_retry_after_has_a_longest(world: World, text: str) -> None:
    """However long a server would have us wait, it is asked again within a known time."""
    world.faults = [status(503, Retry_After=text)]
    with talking(patience=1e6) as (client, waits):
        client.ask(ASK)
    assert waits.seconds == [connection.LONGEST]


@pytest.mark.parametrize(
    "text", ["Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "-5", "Sat, 01 Jan 2000 00:00:00 GMT"]
)
def test_retry_after_that_means_nothing(world: World, text: str) -> None:
    """Then the pause is the usual one."""
    world.faults = [status(503, Retry_After=text)]
    with talking() as (client, waits):
        client.ask(ASK)
    (seconds,) = waits.seconds
    assert seconds < 1


@pytest.mark.parametrize(
    ("faults", "kind", "certain"),
    [
        ([refused], UnansweredError, True),
        ([swallowed], UnansweredError, False),
        ([unheard, refused], UnansweredError, False),
        ([status(503)], UnansweredError, False),
        ([status(429)], TryLaterError, True),
        ([status(429), swallowed, status(429)], UnansweredError, False),
    ],
)
def test_patience_runs_out(world: World, faults: list[Any], kind: type[WflError], certain: bool) -> None:  # noqa: FBT001
    """At the end it is told whether something may have been done."""
    world.faults = [*faults, *faults[-1:] * 10_000]
    question = Question(path="/x")
    with talking(patience=0.3) as (client, _), pytest.raises(kind) as caught:
        client.ask(question)
    assert getattr(caught.value, "certain", True) is certain


def test_nothing_is_waited_for_once_closed(world: World) -> None:
    """A closed session ends what is being repeated."""
    world.faults = [swallowed] * 10
    with talking() as (client, waits):
        waits.set()
        with pytest.raises(UnansweredError):
            client.ask(ASK)
        with pytest.raises(UnansweredError, match="closed"):
            client.rest(1)
    assert len(world.requests) == 1


@pytest.mark.parametrize("code", [401, 403, 404])
def test_gate_does_not_settle_what_went_before(world: World, code: int) -> None:
    """Who keeps a repetition from the server cannot say what became of the first try."""
    with talking() as (client, _):
        world.faults = [unheard, status(code)]
        with pytest.raises(UnansweredError):
            client.ask(ASK)
        world.faults = [status(code)]
        with pytest.raises((DeniedByDrmsError, NotThereError)):
            client.ask(ASK)


def test_doubt_is_told(world: World) -> None:
    """An answer to a repetition says so; after one that never arrived there is no doubt."""
    with talking() as (client, _):
        world.faults = [unheard]
        assert client.ask(ASK).doubtful
        world.faults = [refused]
        assert not client.ask(ASK).doubtful


def test_server_errors_are_tried_a_few_times(world: World) -> None:
    """What fails within the server is not repeated for all of our patience."""
    world.faults = [status(500)] * 10
    with talking() as (client, _), pytest.raises(UnansweredError, match="HTTP 500"):
        client.ask(ASK)
    assert len(world.requests) == 3


def test_once_is_once(world: World) -> None:
    """What must not be made twice has a connection of its own, and is repeated only where it never arrived."""
    once = Question(method="POST", path="/x", content=b"{}", once=True)
    with talking() as (client, _):
        for fault in (swallowed, reset, half, status(502)):
            world.requests.clear()
            world.faults = [fault]
            with pytest.raises(UnansweredError) as caught:
                client.ask(once)
            assert not caught.value.certain
            assert [request.headers["X-Fresh"] for request in world.requests] == ["True"]
        world.requests.clear()
        world.faults = [refused, status(429), refused]
        client.ask(once)
        assert len(world.requests) == 4


def test_other_answers_are_no_answers(world: World) -> None:
    """A page of somebody else's with status 200 says nothing of what was asked."""
    world.answer = lambda _: httpx.Response(200, text="<html>please log in</html>")
    with talking() as (client, _), pytest.raises(DrmCommunicationError, match="please log in"):
        client.json(ASK, dict[str, Any])


# --- redirects --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["https://other.example/x", "http://server.example/x", "https://server.example:444/x", "//evil/x"]
)
def test_redirect_to_another_host_is_not_followed(world: World, target: str) -> None:
    """No other host, port or protocol is told who asks: none is asked at all."""
    world.answer = lambda _: httpx.Response(307, headers={"Location": f"{target}?token={SECRET}"})
    with talking() as (client, _), pytest.raises(DrmCommunicationError, match="base_url") as caught:
        client.ask(ASK)
    assert SECRET not in str(caught.value)
    assert {request.url.host for request in world.requests} == {"server.example"}
    assert len(world.requests) == 1


@pytest.mark.parametrize(
    ("method", "code", "followed"),
    [("GET", 301, True), ("GET", 302, True), ("HEAD", 308, True), ("POST", 307, True), ("POST", 308, True),
     ("POST", 301, False), ("POST", 303, False), ("PUT", 302, False)],
)  # fmt: skip
def test_redirect_within_the_server(world: World, method: str, code: int, followed: bool) -> None:  # noqa: FBT001
    """It is followed where the request stays the same; a POST never becomes a GET."""

    def answer(request: Any) -> Any:
        if request.url.path == "/base/x":
            return httpx.Response(code, headers={"Location": "/base/y"})
        return httpx.Response(200, json={"method": request.method, "body": request.content.decode()})

    world.answer = answer
    question = Question(method=method, path="/x", content=b"{}" if method in ("POST", "PUT") else None)
    with talking() as (client, _):
        if not followed:
            with pytest.raises(UnansweredError):
                client.ask(question)
            return
        reply = client.ask(question)
    assert json.loads(reply.data)["method"] == method
    assert world.requests[-1].headers["Authorization"] == f"Bearer {SECRET}"


def test_redirects_in_a_circle(world: World) -> None:
    """They come to an end."""
    world.answer = lambda _: httpx.Response(302, headers={"Location": "/base/x"})
    with talking() as (client, _), pytest.raises(UnansweredError, match="more than 5 redirects"):
        client.ask(ASK)


# --- what answers mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [
        (400, {"type": "InvalidArgumentError"}, InvalidArgumentError),
        (401, {"type": "DeniedByDrmsError"}, DeniedByDrmsError),
        (403, {"type": "DeniedByDrmsError"}, DeniedByDrmsError),
        (404, {"type": "InvalidArgumentError"}, NotThereError),
        (409, {"type": "InvalidStateError"}, InvalidStateError),
        (413, {}, OutOfResourceError),
        (416, {"type": "InvalidArgumentError"}, PastEndError),
        (422, {"type": "UnsupportedAttributeError"}, UnsupportedAttributeError),
        (405, {}, UnsupportedOperationError),
        (418, {}, ImplementationSpecificError),
        (422, {"type": "NoErrorOfOurs"}, InvalidArgumentError),
        (422, {"type": "JobFailedError"}, InvalidArgumentError),
        (422, {"type": "DrmCommunicationError"}, UnansweredError),
        (500, {"type": "InternalError"}, UnansweredError),
        (503, {"type": "DrmCommunicationError"}, UnansweredError),
    ],
)
def test_kinds_of_errors(code: int, said: dict[str, str], kind: type[WflError]) -> None:
    """The server's class of error is taken, or what the status means; its words are kept, with the fields."""
    error = {"message": "words of the server", "fields": {"queueName": "there is no such queue"}, **said}
    answer = httpx.Response(code, json={"error": error})
    found = refusal(URL, answer)
    assert isinstance(found, kind)
    assert f"{URL}: words of the server (queueName: there is no such queue)" in str(found)


def test_words_of_others() -> None:
    """Plain text is shown, in one line and not at length; pages are not."""
    text = httpx.Response(400, text="can't  read\nbody")
    assert str(refusal(URL, text)) == f"{URL}: HTTP 400 can't read body"
    page = httpx.Response(404, html="<html>x</html>")
    assert str(refusal(URL, page)) == f"{URL}: HTTP 404 Not Found"
    assert len(str(refusal(URL, httpx.Response(400, text="x" * 10_000)))) < 600
    assert str(refusal(URL, httpx.Response(405, json="switched off"))) == f"{URL}: switched off"


def test_secrets_in_answers_are_scrubbed(world: World) -> None:
    """A server that quotes our credentials does not bring them into our errors."""
    world.answer = lambda request: httpx.Response(403, json={"error": {"message": str(dict(request.headers))}})
    for credentials in ({"token": SECRET}, {"auth": ["me", SECRET]}):
        with talking(**credentials) as (client, _), pytest.raises(DeniedByDrmsError) as caught:
            client.ask(ASK)
        sent = world.requests[-1].headers["Authorization"].split()[1]
        assert "authorization" in str(caught.value)
        assert sent not in str(caught.value)


def test_closed_client_says_so(world: World) -> None:
    """A request that comes too late was certainly not made."""
    del world
    with talking() as (client, _):
        client.close()
        with pytest.raises(UnansweredError) as caught:
            client.ask(ASK)
    assert caught.value.certain


# --- real connections -------------------------------------------------------------------------------------


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers whatever it is asked, or stalls."""

    def do_GET(self) -> None:
        """JSON; below /stall a body that never ends."""
        self.send_response(200)
        self.send_header("Content-Length", "1000" if "stall" in self.path else "2")
        self.end_headers()
        self.wfile.write(b"{}")
        self.wfile.flush()
        if "stall" in self.path:
            threading.Event().wait(PATIENCE)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def listening(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server of this process."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        server.daemon_threads, server.block_on_close = True, False
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def real(url: str, **place: Any) -> Iterator[Client]:
    """A client that makes real connections."""
    found = Client(Place(base_url=url, patience=0.01, **place), Credentials())
    try:
        yield found
    finally:
        found.close()


def test_proxies_do_not_see_what_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment gets nothing that is for this machine in the clear; all else goes through it."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with listening() as port:
        with real(f"http://127.0.0.1:{port}") as client:
            assert client.ask(ASK).data == b"{}"
        with real("http://server.example") as client, pytest.raises(UnansweredError, match="refused"):
            client.ask(ASK)


def test_nobody_there() -> None:
    """What cannot be reached is told in a line, and it is certain that nothing was done."""
    with listening() as port:
        pass
    with (
        real(f"http://127.0.0.1:{port}") as client,
        pytest.raises(UnansweredError, match="Connection refused") as caught,
    ):
        client.ask(ASK)
    assert caught.value.certain


def test_stream_is_cut_by_another_thread() -> None:
    """Hanging up wakes who reads from a stream that says nothing."""
    with listening() as port, real(f"http://127.0.0.1:{port}") as client:
        reading, over = threading.Event(), threading.Event()

        def read() -> None:
            with pytest.raises(UnansweredError):
                follow()
            over.set()

        def follow() -> None:
            with client.stream(Question(path="/stall")) as response:
                for _ in response.iter_bytes():
                    reading.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert reading.wait(PATIENCE)
        client.hang_up()
        assert over.wait(PATIENCE)
        thread.join()


def test_servers_are_verified(tmp_path: Path) -> None:
    """A certificate that nobody vouches for is refused, unless it is given, or all are taken."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    request += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(request, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no openssl command")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with listening(context) as port:
        url = f"https://127.0.0.1:{port}"
        with real(url) as client, pytest.raises(UnansweredError, match="TLS: certificate verify failed"):
            client.ask(ASK)
        for verify in (str(certificate), False):
            with real(url, verify=verify, cert=(str(certificate), str(key))) as client:
                assert client.ask(ASK).data == b"{}"
    locked = tmp_path / "locked.pem"
    lock = ["openssl", "rsa", "-aes256", "-passout", "pass:word", "-in", str(key), "-out", str(locked)]
    subprocess.run(lock, check=True, capture_output=True, timeout=60)
    for files in ((str(key),), (str(certificate), str(locked))):  # no certificate, and a key that wants a password
        with pytest.raises(InvalidArgumentError, match=r"cert or verify cannot be used .*\.pem"):
            Client(Place(base_url=url, cert=files), Credentials())


def test_default_pauses() -> None:
    """The first repetition comes soon, and the longest pause is five seconds."""
    assert module.REPEAT == (0.1, 5.0)

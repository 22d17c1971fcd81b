"""A job server for tests, which can be killed and started again; and a gateway before it that spoils answers."""

from __future__ import annotations

import http.client
import http.server
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from tests.faults.machine import PATIENCE, wait_until
from tests.faults.servers import free_port
from wfl.contexts.remote import RemoteContext

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

GATEWAY = "gateway"
"""The name of its threads."""
_PASSED_ON = ("Content-Type", "X-Wfl-End", "X-Wfl-Offset", "Upload-Offset", "ETag", "Accept-Ranges", "Content-Range")


class JobServer:
    """`python -m wfl.server` on processes, in a directory that outlives it. Nobody has to say who he is."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._directory, self._options = directory, options
        directory.mkdir(exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Begin, with what earlier ones have left."""
        place = ("--listen", f"127.0.0.1:{self.port}", "--directory", str(self._directory / "server"))
        with open(self._directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wfl.server", "serve", "--no-authentication", *place, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until("the server is ready", self._is_ready)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self._directory / "log").read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=PATIENCE) as answer:  # noqa: S310 - our own
                return bool(answer.status == http.HTTPStatus.OK)
        except OSError:
            return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it so, at once."""
        self._process.send_signal(number)
        self._process.wait(PATIENCE)

    def context(self, port: int | None = None, **settings: Any) -> RemoteContext:
        """One that asks here, or at a port that leads here, and soon asks again."""
        name = RemoteContext.unique_session_name()
        given = {"session_name": name, "timeout": 2.0, "patience": PATIENCE, **settings}
        return RemoteContext(f"http://127.0.0.1:{port or self.port}", **given)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.kill(signal.SIGTERM)


class Gateway:
    """Stands before a server, as load balancers do; `plan(method, path)` says what becomes of a request.

    "502", "503", "504": that is answered, and the server hears nothing; "502 after" and so on: the server has done it;
    "half": the server has done it, and its answer breaks off in the middle; None: it passes.
    """

    def __init__(self, port: int, plan: Callable[[str, str], str | None]) -> None:
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        def serve(request: http.server.BaseHTTPRequestHandler) -> None:
            gateway._pass(request)

        for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
            setattr(Handler, f"do_{method}", serve)
        self._to, self._plan = port, plan
        self.spoiled: list[str] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name=GATEWAY)
        self._thread.start()

    def _pass(self, request: http.server.BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        fate = self._plan(request.command, request.path)
        if fate is not None:
            self.spoiled.append(f"{fate} {request.command} {request.path}")
        with suppress(OSError, http.client.HTTPException):
            if fate is not None and fate.isdigit():
                self._refuse(request, int(fate))
                return
            self._forward(request, body, fate)

    def _forward(self, request: http.server.BaseHTTPRequestHandler, body: bytes, fate: str | None) -> None:
        server = http.client.HTTPConnection("127.0.0.1", self._to, timeout=PATIENCE)
        try:
            headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
            server.request(request.command, request.path, body, headers)
            answer = server.getresponse()
            if fate is not None and fate.endswith(" after"):
                answer.read()
                self._refuse(request, int(fate.split()[0]))
                return
            request.send_response(answer.status)
            for name in _PASSED_ON:
                if (value := answer.getheader(name)) is not None:
                    request.send_header(name, value)
            if answer.getheader("Content-Length") is not None:
                request.send_header("Content-Length", answer.getheader("Content-Length") or "0")
            request.send_header("Connection", "close")
            request.end_headers()
            if fate == "half":
                whole = answer.read()
                request.wfile.write(whole[: len(whole) // 2])
                return
            while piece := answer.read1(1 << 16):
                request.wfile.write(piece)
                request.wfile.flush()
        finally:
            server.close()

    @staticmethod
    def _refuse(request: http.server.BaseHTTPRequestHandler, status: int) -> None:
        words = b"<html>nobody is there</html>"
        request.send_response(status)
        for name, value in (("Content-Type", "text/html"), ("Content-Length", str(len(words))), ("Retry-After", "0")):
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(words)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

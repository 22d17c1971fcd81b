"""A job server in a process of its own, as people start it, and requests to it over sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.asgi import API, SESSION, until
from wfl.server import Identities
from wfl.server.__main__ import IDENTITIES

PATIENCE = 30
"""Seconds that an answer may take on a busy machine."""


def token_for(directory: Path, name: str) -> str:
    """A new token of an identity."""
    return Identities(directory / IDENTITIES).create_token(name)


class Running:
    """A server of `context` in a directory of its own; requests are alice's. Its log is a file beside the directory."""

    def __init__(self, directory: Path, *arguments: object, context: str = "process", log_level: str = "info") -> None:
        self.directory, self.log_file = directory, directory.with_name(f"{directory.name}.log")
        self._arguments = ("--context", context, *arguments)
        self._log_level = log_level
        self.token = token_for(directory, "alice")
        self.start()

    def start(self) -> None:
        """Begin; it is there when its port answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = ("--directory", self.directory, "--listen", f"127.0.0.1:{self.port}", *self._arguments)
        line = [sys.executable, "-m", "wfl.server", "--log-level", self._log_level, "serve", *words]
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen([*map(str, line)], stderr=log)

        def answers() -> bool:
            assert self.process.poll() is None, self.log
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port)).close()
                return True
            return False

        until(answers)

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        tls: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Ask; the status and what is in the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        if tls is not None:
            connection = http.client.HTTPSConnection("localhost", self.port, timeout=PATIENCE, context=tls)
        with contextlib.closing(connection):
            given = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **(headers or {})}
            raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
            connection.request(method, path, raw, given)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text.startswith(b"{") else text

    def raw(self, sent: bytes) -> bytes:
        """All that comes back for these bytes, to the end of the connection, which the head should ask for."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(sent)
            return received(connection)

    def start_job(self, command: str, *args: str, key: str = "k", **fields: object) -> str:
        """Start one; its id."""
        body = {"jobs": [{"key": key, "template": {"remoteCommand": command, "args": args, **fields}}]}
        status, answer = self.request("POST", f"{SESSION}/jobs", body)
        assert status == 200, answer
        return str(answer["jobs"][0]["id"])

    def state(self, id: str) -> str:
        """The state of a job."""
        return str(self.request("GET", f"{API}/jobs/{id}")[1]["info"]["state"])

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self.log_file.read_text(errors="replace")

    def statuses(self, identity: str | None = None) -> list[int]:
        """Of all requests in its log, or those of one identity ("-": nobody)."""
        words = [line.split(" wfl.server: ")[1].split(" ") for line in self.log.splitlines() if " bytes " in line]
        return [int(line[4]) for line in words if identity in (None, line[1])]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end()


def received(connection: socket.socket) -> bytes:
    """All that comes, to the end of the connection."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)

"""A socket between a program and a daemon, which keeps back what a test says: requests, answers or both."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_REQUEST = re.compile(rb"((?:GET|HEAD|POST|PUT|DELETE) \S+) HTTP/1\.1\r\n")
CREATE = "POST .*/containers/create"
START = "POST .*/start"
EVENTS = "GET .*/events"
INSPECT = "GET .*/containers/[^/]+/json"
LOGS = "GET .*/logs"
ANY = "."


class _Line:
    """One connection through the proxy."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self.request = ""
        self.mute = False
        """Whether answers are thrown away."""

    def close(self) -> None:
        for sock in (self.near, self.far):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Listens at a path for what is meant for the daemon at another.

    Requests are matched by patterns for "METHOD /path?query": the beginning of one is always that of a piece of data,
    as a client waits for each answer before it sends the next.
    """

    def __init__(self, path: Path, url: str) -> None:
        self.url, self._daemon = f"unix://{path}", url.removeprefix("unix://")
        self.requests: list[str] = []
        self._withheld: str | None = None
        self._delayed: tuple[str, threading.Event] | None = None
        self._lines: list[_Line] = []
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def withhold(self, pattern: str | None) -> None:
        """From now on such requests are passed on, and their answers are not; None: all is well again."""
        self._withheld = pattern

    def delay(self, pattern: str) -> threading.Event:
        """From now on such requests are passed on only when the event is set."""
        self._delayed = (pattern, threading.Event())
        return self._delayed[1]

    def silence(self, pattern: str) -> None:
        """Connections whose latest request was such a one bring nothing more, and stay open."""
        for line in self._of(pattern):
            line.mute = True

    def drop(self, pattern: str) -> None:
        """Connections whose latest request was such a one end."""
        for line in self._of(pattern):
            line.close()

    def count(self, pattern: str) -> int:
        """How many such requests were made."""
        return len([one for one in self.requests if re.match(pattern, one)])

    def _of(self, pattern: str) -> list[_Line]:
        with self._lock:
            return [line for line in self._lines if re.match(pattern, line.request)]

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(self._daemon)
            except OSError:
                near.close()
                far.close()
                continue
            line = _Line(near, far)
            pumps = [threading.Thread(target=pump, args=(line,), daemon=True) for pump in (self._out, self._back)]
            with self._lock:
                self._lines.append(line)
                self._threads += pumps
            for pump in pumps:
                pump.start()

    def _out(self, line: _Line) -> None:
        """What the program sends."""
        with suppress(OSError):
            while data := line.near.recv(1 << 16):
                if found := _REQUEST.match(data):
                    line.request = found[1].decode()
                    self.requests.append(line.request)
                    if self._withheld is not None and re.match(self._withheld, line.request):
                        line.mute = True
                    if self._delayed is not None and re.match(self._delayed[0], line.request):
                        self._delayed[1].wait()
                line.far.sendall(data)
            line.far.shutdown(socket.SHUT_WR)

    def _back(self, line: _Line) -> None:
        """What the daemon answers."""
        with suppress(OSError):
            while data := line.far.recv(1 << 16):
                if not line.mute:
                    line.near.sendall(data)
            if not line.mute:
                line.near.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End all connections."""
        if self._delayed is not None:
            self._delayed[1].set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for line in self._lines:
            line.close()
        for thread in self._threads:
            thread.join()
        for line in self._lines:
            line.near.close()
            line.far.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

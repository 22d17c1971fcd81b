"""One command in a container, over a websocket: its input, its output, its end."""

from __future__ import annotations

import select
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from websocket import ABNF

from wfl.contexts.kubernetes.answers import in_our_words, status_of, words_of
from wfl.errors import DrmCommunicationError, InvalidStateError

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
"""Only with the first can standard input be closed."""
SILENCE = 75.0
"""Seconds without a word after which the connection is dead."""
STALL = 300.0
"""The same while there is input that is not taken: until it is, some servers answer nothing."""
PING = 15.0
"""Seconds without a word after which the other end is asked whether it is there."""
_FRAME = 1 << 17
_ERRORS = 1 << 16
"""Bytes of standard error that are kept: the last ones."""
_STDIN, _STDOUT, _STDERR, _STATUS, _CLOSE = 0, 1, 2, 3, 255


class Command:
    """One command, over its connection, by one thread: what comes is read also while there is more to send."""

    def __init__(self, connection: Any, url: str, timeout: float | None) -> None:
        self._connection, self._url, self._timeout = connection, url, timeout
        self._begun = self._heard = self._asked = time.monotonic()
        self._control: deque[bytes] = deque()
        self._unsent = memoryview(b"")
        self._channel = 0
        self._errors, self._status = bytearray(), bytearray()
        self._open = True

    def run(self, input: Iterable[bytes] | None, output: Callable[[bytes], object] | None) -> tuple[int, str]:  # noqa: A002
        """Its exit status, and the end of its standard error."""
        frames: Iterator[bytes] = iter(()) if input is None else _frames(input)
        ready, number = select.poll(), self._connection.sock.fileno()
        while self._open:
            if not self._unsent:
                self._unsent = memoryview(self._next(frames))
            ready.register(number, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            events = self._waiting() or dict(ready.poll(1000 * self._patience())).get(number, 0)
            if events & ~select.POLLOUT:
                self._receive(output)
            elif events and not self._send():
                frames = iter(())
        return self._ended()

    def _next(self, frames: Iterator[bytes]) -> bytes:
        """What to send."""
        if self._control:
            return self._control.popleft()
        frame = next(frames, b"")
        if frame:
            self._heard = time.monotonic()  # something goes on: the one before was taken
        return frame

    def _waiting(self) -> int:
        """TLS may have what the system no longer has."""
        sock = self._connection.sock
        return select.POLLIN if isinstance(sock, ssl.SSLSocket) and sock.pending() else 0

    def _patience(self) -> float:
        """Seconds until something has to be done although nothing comes."""
        now = time.monotonic()
        left = PING if self._timeout is None else self._begun + self._timeout - now
        if left <= 0:
            raise DrmCommunicationError(f"{self._url}: the command took longer than {self._timeout:g} s")
        limit = STALL if self._unsent else SILENCE
        if now - self._heard > limit:
            raise DrmCommunicationError(f"{self._url}: nothing was heard of the command for {limit:g} s")
        if now - max(self._heard, self._asked) >= PING:
            self._control.append(ABNF.create_frame(b"", ABNF.OPCODE_PING).format())
            self._asked = now
        return min(left, PING)

    def _send(self) -> bool:
        """As much as goes at once. False: the other side takes no more; it may have said why."""
        sock = self._connection.sock
        limit = sock.gettimeout()
        sock.settimeout(0)
        try:
            self._unsent = self._unsent[sock.send(self._unsent) :]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._unsent = memoryview(b"")
            return False
        finally:
            sock.settimeout(limit)
        return True

    def _receive(self, output: Callable[[bytes], object] | None) -> None:
        try:
            with in_our_words(self._url):
                frame = self._connection.recv_frame()
        except DrmCommunicationError:
            if not self._status:
                raise
            self._open = False
            return
        self._heard, data = time.monotonic(), frame.data
        if frame.opcode == ABNF.OPCODE_CLOSE:
            self._open = False
        elif frame.opcode == ABNF.OPCODE_PING:
            self._control.append(ABNF.create_frame(data, ABNF.OPCODE_PONG).format())
        elif frame.opcode != ABNF.OPCODE_PONG and data:
            if frame.opcode != ABNF.OPCODE_CONT:  # the first byte of a message is its channel
                self._channel, data = data[0], data[1:]
            self._take(data, output)

    def _take(self, data: bytes, output: Callable[[bytes], object] | None) -> None:
        if self._channel == _STDOUT and output is not None and data:
            output(data)
        elif self._channel == _STDERR:
            self._errors += data
            del self._errors[:-_ERRORS]
        elif self._channel == _STATUS:
            self._status += data

    def _ended(self) -> tuple[int, str]:
        if not self._status:
            raise DrmCommunicationError(f"{self._url}: the command's connection broke off")
        said, errors = status_of(bytes(self._status)), self._errors.decode(errors="replace")
        if said.get("status") == "Success":
            return 0, errors
        for cause in (said.get("details") or {}).get("causes") or ():
            if cause.get("reason") == "ExitCode":
                return int(cause["message"]), errors
        words = words_of(said)
        if "executable file not found" in words or "no such file or directory" in words:
            return 127, words
        if "permission denied" in words:
            return 126, words
        if "dialing backend" in words or "dial tcp" in words:  # the node's agent is down
            raise DrmCommunicationError(f"{self._url}: {words}")
        raise InvalidStateError(words)


def _frames(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Standard input as frames, and its end."""
    for chunk in chunks:
        for begin in range(0, len(chunk), _FRAME):
            piece = bytes((_STDIN,)) + chunk[begin : begin + _FRAME]
            yield ABNF.create_frame(piece, ABNF.OPCODE_BINARY).format()
    yield ABNF.create_frame(bytes((_CLOSE, _STDIN)), ABNF.OPCODE_BINARY).format()

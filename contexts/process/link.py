"""The program's end of one keeper's socket: starting it, sending orders, asking and being answered."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from wfl.contexts import helper
from wfl.contexts.process import keeper
from wfl.errors import DrmCommunicationError, SessionManagementError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

PATIENCE = 10.0
"""Seconds that a living keeper may take to answer; it answers in microseconds unless the machine is swamped."""

_left: list[int] = []
"""Keepers that were left to themselves: children of this program, to be waited for when they have ended."""

_decode = msgspec.json.Decoder().decode


class Link:
    """A connection to one keeper: our own, or one that an earlier or another program started."""

    def __init__(self, sock: socket.socket, directory: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        self.sock, self.directory, self.process = sock, directory, process
        self.closed = threading.Event()
        self.goodbye = False
        self._env_number = 0
        self.missed: list[tuple[list[Any], list[Any], list[Any]]] | None = None
        self._inbox = bytearray()
        self._sending = threading.Lock()
        self._requests = itertools.count(1)
        self._replies: dict[int, _Reply] = {}

    @classmethod
    def start(cls, directory: Path, *, detach: bool, keep: bool) -> Link:
        """Start a keeper of our own, in an interpreter of its own, and do not wait for it.

        With `keep` its socket for programs that come back is there before it is: they wait for a keeper that is just
        coming up, and are refused by one that is gone.
        """
        _bury()
        ours, theirs = helper.pair()
        passed = [theirs]
        try:
            directory.mkdir(mode=0o700, parents=True)
            if keep:
                passed.append(_listen(directory))
            listening = str(passed[1].fileno()) if keep else ""
            arguments = [str(theirs.fileno()), str(os.getpid()), str(directory), str(int(detach)), listening]
            process = helper.start(
                keeper.__file__,
                arguments,
                passed=[sock.fileno() for sock in passed],
                log=str(directory / "log"),
            )
        except BaseException as error:
            ours.close()
            if not isinstance(error, OSError):
                raise
            msg = f"cannot start the keeper, the helper process that starts and ends tasks: {error}"
            raise SessionManagementError(msg) from error
        finally:
            for sock in passed:
                sock.close()
        seconds, rest = divmod(PATIENCE, 1)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(rest * 1e6)))
        return cls(ours, directory, process)

    @classmethod
    def attach(cls, directory: Path) -> Link | None:
        """Connect to a keeper that lives on; None if it does not. Raises DrmCommunicationError if nobody can say."""
        try:
            sock = helper.raised(socket.socket(socket.AF_UNIX))
            try:
                with _short(directory) as place:
                    sock.connect(f"{place}/socket")
            except BaseException:
                sock.close()
                raise
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise DrmCommunicationError(f"cannot ask the keeper in {directory}: {error.strerror}") from error
        return cls(sock, directory)

    @property
    def own(self) -> bool:
        """Whether this program started the keeper."""
        return self.process is not None

    def send(self, message: Sequence[Any], fds: Sequence[int] = ()) -> None:
        """Send a message; the keeper always reads, so this waits for it at most a moment."""
        with self._sending:
            self._send(message, fds)

    def spawn(
        self, order: Mapping[str, Any], rows: Sequence[Any], env: tuple[int, Mapping[str, str]], fds: Sequence[int]
    ) -> None:
        """Send an order, and before it the environment that it builds on, if this keeper does not have that yet."""
        number, variables = env
        with self._sending:
            if number != self._env_number:
                self._send(["env", variables])
                self._env_number = number
            self._send(["spawn", order, rows], fds)

    def _send(self, message: Sequence[Any], fds: Sequence[int] = ()) -> None:
        """The line break before it ends what Ctrl-C may have interrupted; half a message is ignored.

        Descriptors go ahead with a message of their own, which is too short to be cut: they arrive with it or not.
        """
        data = b"\n" + _encode(message) + b"\n"
        try:
            if fds:
                socket.send_fds(self.sock, [b'\n["fds"]\n'], fds)
            self.sock.sendall(data)
        except OSError as error:
            raise DrmCommunicationError(self.obituary()) from error

    def ask(self, what: str, *arguments: object) -> Any:
        """Send a request and wait for its answer."""
        number = next(self._requests)
        reply = self._replies[number] = _Reply()
        try:
            self.send([what, number, *arguments])
            if not reply.arrived.wait(PATIENCE) or (self.closed.is_set() and not reply.answered):
                raise DrmCommunicationError(self.obituary())
        finally:
            self._replies.pop(number, None)
        return reply.value

    def receive(self, tell: Callable[[list[Any], list[Any], list[Any]], None]) -> bool:
        """Take in what has arrived (called by the watcher alone); False at the end of the connection."""
        try:
            data = self.sock.recv(1 << 16)  # more costs its allocation every time
        except OSError:
            data = b""
        if not data:
            self.closed.set()
            for reply in list(self._replies.values()):
                reply.arrived.set()
            return False
        self._inbox += data
        if b"\n" in data:
            *lines, rest = self._inbox.split(b"\n")
            self._inbox = rest
            for line in lines:
                message = _decoded(line)
                if message[0] == "tell":
                    tell(*message[1:])
                elif message[0] == "reply" and (waiting := self._replies.get(message[1])):
                    waiting.answer(message[2])
        return True

    def bye(self, *, end: bool) -> None:
        """Leave: the keeper ends everything first, or stays until all has ended by itself."""
        self.goodbye = not (self.own and end)  # the keeper lives on: its silence says nothing of its tasks
        if self.own:
            with contextlib.suppress(DrmCommunicationError):
                self.send(["bye", end])
            if not end and self.process is not None and self.process.poll() is None:
                self.process.returncode = 0  # lives on by intention: no warning about a child not waited for
                _left.append(self.process.pid)
        if not (self.own and end):
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connection; the watcher sees its end."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def obituary(self) -> str:
        """What to say when the keeper is gone: its last words, if it had any."""
        words = "the keeper (the helper process that starts and ends tasks) is gone or does not answer"
        try:
            lines = (self.directory / "log").read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f"{words}: {lines[-1]}" if lines else words


class _Reply:
    """One answer on its way."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.answered = False
        self.value: Any = None

    def answer(self, value: object) -> None:
        self.value, self.answered = value, True
        self.arrived.set()


def _encode(message: Sequence[Any]) -> bytes:
    try:
        return msgspec.json.encode(message)
    except UnicodeError:  # names that are not UTF-8: Python's json writes their surrogates as they are
        import json

        return json.dumps(message).encode()


def _decoded(line: bytearray) -> list[Any]:
    try:
        message: list[Any] = _decode(line)
    except msgspec.DecodeError:
        import json

        message = json.loads(line)
    return message


def _bury() -> None:
    """Wait for those of the keepers left to themselves that have ended, so that no zombie stays."""
    for pid in list(_left):
        try:
            over = os.waitpid(pid, os.WNOHANG)[0] != 0
        except ChildProcessError:  # this is a fork of the program that had it, or children are waited for by nobody
            over = True
        if over:
            _left.remove(pid)


def _listen(directory: Path) -> socket.socket:
    """The socket on which a keeper awaits programs that come back."""
    listener = helper.raised(socket.socket(socket.AF_UNIX))
    with _short(directory) as place:
        listener.bind(f"{place}/socket")
    listener.listen()
    return listener


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[str]:
    """A short name of a directory, through a descriptor: the path of a socket may have no more than 107 bytes."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}" if sys.platform == "linux" else str(directory)
    finally:
        os.close(fd)

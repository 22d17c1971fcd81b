"""The line to one host: a connection with an attendant at its other end, made again whenever it was lost.

Requests are answered in order; what the attendant tells of jobs goes to whoever made the line. One thread reads.
"""

from __future__ import annotations

import itertools
import logging
import re
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import paramiko

from wfl.contexts import network
from wfl.contexts.ssh import attendant
from wfl.contexts.ssh.connection import COPIES, LOST, Attempts, Connection
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, SessionManagementError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wfl.contexts.ssh.login import Login

log = logging.getLogger("wfl")

PIECE = 1 << 16
NOTHING = "nothing"
"""What w_enter says where the session has no directory."""
_ANSWER = re.compile(r"([+-]) (\d+) ?(.*)", re.ASCII)
_ATTACHED = re.compile(r"[xrfg]\t(\d+)\t", re.ASCII)
"""Lines that belong to an answer, by its number."""


class NothingError(SessionManagementError):
    """The session has no directory on this host."""


class Speaks(msgspec.Struct, frozen=True, kw_only=True):
    """How hosts are spoken to."""

    session: str
    directory: str
    shell: str
    timeout: float
    passphrase: str | None = None

    def __repr__(self) -> str:
        """Without the passphrase."""
        return f"Speaks({self.session!r}, {self.directory!r}, {self.shell!r}, {self.timeout:g} s)"


class Line:
    """One host. `tell(line, text)` is called with each line on a job; `back(line)` after each connection but the first,
    `away(line)` when it was lost; all in the line's own thread.
    """

    def __init__(
        self,
        login: Login,
        speaks: Speaks,
        *,
        tell: Callable[[Line, str], None],
        back: Callable[[Line], None],
        away: Callable[[Line], None],
        beat: Callable[[Line], str | None],
        pause: float,
    ) -> None:
        """`beat` gives the request by which the host hears that this program lives, every `pause` seconds."""
        self.login, self._speaks = login, speaks
        self._tell, self._back, self._away, self._beat, self._pause = tell, back, away, beat, pause
        self._patience = max(pause, speaks.timeout)  # answers come in order: one may wait for another that takes long
        self.name = login.name
        self.hello: attendant.Hello | None = None
        self.attempts = Attempts()
        self.owned: set[str] = set()
        self.followed: set[str] = set()
        """Programs whose jobs this connection's attendant guards, and tells of; other sets for each connection."""
        self._numbers = itertools.count(1)
        self._connection: Connection | None = None
        self._channel: paramiko.Channel | None = None
        self._waiting: dict[int, Future[list[str]]] = {}
        self._answers: dict[int, list[str]] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._copying = threading.Semaphore(COPIES)
        self._connecting = threading.Lock()
        self._closed = threading.Event()
        self._lost = threading.Event()
        self._wanted = False
        self._thread: threading.Thread | None = None
        self._unanswered: float | None = None  # since when; what is heard of ends is no answer: it may be one way only

    # -- to and fro --

    @property
    def up(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._channel is not None

    def connected(self, *, make: bool = True) -> attendant.Hello:
        """Connect if that is needed. Raises why it cannot be reached, at once if that was tried a moment ago."""
        with self._connecting:
            if self._closed.is_set():
                raise DrmCommunicationError(f"{self.name}: the connection was closed")
            if self._channel is not None and self.hello is not None:
                return self.hello
            with self.attempts.one():
                return self._connect(make=make)

    def _connect(self, *, make: bool) -> attendant.Hello:
        connection = Connection(self.login, timeout=self._speaks.timeout, passphrase=self._speaks.passphrase)
        try:
            channel = connection.command(f"exec {self._speaks.shell} -s")
            beginning = attendant.enter(self._speaks.directory, self._speaks.session, make=make)
            with suppress(OSError):  # it has ended already: why, it has said
                channel.sendall(_bytes(beginning))
            buffer = bytearray()
            line = _read_line(channel, buffer, self._speaks.timeout)
            try:
                hello = attendant.Hello.read(line, datetime.now(UTC))
            except DrmCommunicationError as error:
                said = _words(channel) if str(error) != NOTHING else ""  # a login may complain of anything
                kind = NothingError if str(error) == NOTHING else SessionManagementError
                raise kind(
                    f"{self.name}: {self._speaks.shell} cannot be used there: {error}{': ' if said else ''}{said}"
                ) from error
        except BaseException as error:
            connection.close()
            if isinstance(error, LOST):
                raise DrmCommunicationError(f"{self.name}: {network.words(error)}") from error
            raise
        again = self.hello is not None
        arguments = (connection, channel, buffer, again)
        with self._lock:
            if not self._closed.is_set():
                self._connection, self._channel, self.hello = connection, channel, hello
                self.owned, self.followed = set(), set()
                self._thread = threading.Thread(target=self._read, args=arguments, name="wfl-ssh", daemon=True)
                self._thread.start()
                return hello
        connection.close()
        raise DrmCommunicationError(f"{self.name}: the connection was closed")

    def ask(self, make: Callable[[int], str], *, timeout: float | None = None) -> list[str]:
        """Send a request, given its number, and wait for its answer: what was told for it.

        Raises DrmCommunicationError where there is none, so that nobody knows whether it was carried out, and
        DeniedByDrmsError with the host's words where it could not be.
        """
        number = next(self._numbers)
        answer: Future[list[str]] = Future()
        with self._lock:
            channel, connection = self._channel, self._connection
            if channel is None:
                raise DrmCommunicationError(f"{self.name}: the connection is lost")
            self._waiting[number] = answer
            self._answers[number] = []
        try:
            with self._sending:
                channel.sendall(_bytes(make(number)))
            return answer.result(timeout or self._speaks.timeout)
        except LateError as error:
            if connection is not None:
                connection.close()  # the reader sees that, and what was asked for is settled anew
            raise DrmCommunicationError(f"{self.name} does not answer") from error
        except LOST as error:
            if connection is not None:
                connection.close()  # half of a request may have been sent
            raise DrmCommunicationError(f"{self.name}: the connection was lost") from error
        finally:
            with self._lock:
                self._waiting.pop(number, None)
                self._answers.pop(number, None)

    @contextmanager
    def files(self) -> Iterator[paramiko.SFTPClient]:
        """A channel for copying; raises DrmCommunicationError where there is no connection."""
        connection = self._connection
        if connection is None:
            raise DrmCommunicationError(f"{self.name}: the connection is lost")
        with connection.files() as client:
            yield client

    @contextmanager
    def copies(self) -> Iterator[paramiko.SFTPClient]:
        """The same for what may take long: one channel is left for others."""
        with self._copying, self.files() as client:
            yield client

    # -- the reader --

    def _read(self, connection: Connection, channel: paramiko.Channel, rest: bytearray, again: bool) -> None:  # noqa: FBT001
        """Of one connection; at its end, of the next one, if that is wanted."""
        try:
            if again:
                threading.Thread(target=self._guarded, args=(self._back,), name="wfl-ssh-back", daemon=True).start()
            self._listen(channel, rest)
        except Exception:
            log.exception("%s: connecting again after this error", self.name)
        finally:
            with self._lock:
                self._channel = self._connection = None
                waiting, self._waiting = dict(self._waiting), {}
            connection.close()
            for answer in waiting.values():
                with suppress(Exception):
                    answer.set_exception(DrmCommunicationError(f"{self.name}: the connection was lost"))
        if not self._closed.is_set():
            self._guarded(self._away)

    def _guarded(self, f: Callable[[Line], None]) -> None:
        try:
            f(self)
        except WflError as error:
            log.warning("%s: %s", self.name, error)
        except Exception:
            log.exception("%s: the line goes on after this error", self.name)

    def _listen(self, channel: paramiko.Channel, buffer: bytearray) -> None:
        channel.settimeout(self._pause)
        said, self._unanswered = time.monotonic(), None
        while True:
            *lines, rest = bytes(buffer).split(b"\n")
            buffer[:] = rest
            for line in lines:
                self._hear(line.decode("utf-8", "surrogateescape"))
            if self._unanswered is not None and time.monotonic() - self._unanswered > self._patience:
                log.warning("%s: nothing was answered for %g s, connecting again", self.name, self._patience)
                return
            if time.monotonic() - said > self._pause:
                self._say_that_we_live(channel)
                said = time.monotonic()
                self._unanswered = self._unanswered or said
            try:
                piece = channel.recv(PIECE)
            except TimeoutError:
                continue
            except LOST:
                return
            if not piece:
                return
            buffer += piece

    def _say_that_we_live(self, channel: paramiko.Channel) -> None:
        request = self._beat(self)
        with self._sending, suppress(*LOST):
            channel.sendall(_bytes(request or "w_say '+ 0'\n"))

    def _hear(self, line: str) -> None:
        """A line that means nothing is passed over."""
        found = _ANSWER.fullmatch(line)
        if found is not None:
            self._unanswered = None
            with self._lock:
                answer = self._waiting.pop(int(found[2]), None)
                lines = self._answers.pop(int(found[2]), [])
            if answer is None:
                return
            if found[1] == "+":
                answer.set_result(lines)
            else:
                answer.set_exception(DeniedByDrmsError(f"{self.name}: {found[3] or 'it cannot be done there'}"))
        elif (found := _ATTACHED.match(line)) is not None:
            with self._lock:
                if (told := self._answers.get(int(found[1]))) is not None:
                    told.append(line)
        elif line.startswith("e\t"):
            try:
                self._tell(self, line)
            except Exception:
                log.exception("%s: the line goes on after this error", self.name)

    def words(self) -> str:
        """What the host's shell has complained of since the last look."""
        channel = self._channel
        return _words(channel) if channel is not None else ""

    # -- the end --

    def close(self) -> None:
        """Cut it for good; who is just connecting is not waited for, and learns it in the end."""
        self._closed.set()
        with self._lock:
            connection, thread = self._connection, self._thread
        if connection is not None:
            connection.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._speaks.timeout)

    def abandon(self) -> None:
        """In a forked child."""
        if self._connection is not None:
            self._connection.abandon()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _read_line(channel: paramiko.Channel, buffer: bytearray, timeout: float) -> str:
    """The first line; what a login prints before it, as some do, is passed over."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        while b"\n" in buffer:
            line, _, rest = bytes(buffer).partition(b"\n")
            buffer[:] = rest
            text = line.decode("utf-8", "surrogateescape")
            if text.startswith(("hello\t", "fail ")):
                return text
        channel.settimeout(max(0.01, end - time.monotonic()))
        piece = channel.recv(PIECE)
        if not piece:
            return f"fail {_words(channel) or 'the shell ended at once'}"
        buffer += piece
    raise DrmCommunicationError("the shell does not answer")


def _words(channel: paramiko.Channel) -> str:
    pieces = []
    with suppress(OSError):
        while channel.recv_stderr_ready():
            pieces.append(channel.recv_stderr(PIECE))
    return " ".join(b"".join(pieces).decode(errors="replace").split())[-500:]

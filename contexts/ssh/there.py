"""A login node as the machine of a cluster's session: its shell runs the scheduler's commands and sees to the files.

One connection, made when it is first needed and again when it was lost. A few shells are kept there, and fed with one
script for each request, so that nothing of it is on a command line but the scheduler's own words.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import shlex
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import paramiko

from wfl.contexts import network
from wfl.contexts.batch.machine import Text, Times
from wfl.contexts.ssh import transfer
from wfl.contexts.ssh.connection import LOST, PAUSE, Attempts, Connection, is_full
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, InvalidStateError, SessionManagementError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from wfl.contexts.ssh.line import Speaks
    from wfl.contexts.ssh.login import Login

_T = TypeVar("_T")

CHANNELS = 4
"""Scripts at once; a host may allow ten channels of all kinds (MaxSessions of sshd_config(5))."""
FILES = 500
"""On one command line there."""
PIECE = 1 << 16
LOOK = 0.25
"""Seconds after which what a command complains of is taken in, too, so that it does not stop for that."""
MORE = 10.0
"""Seconds in which the node must have killed a command whose time was up."""
_NONE = 127
_KILLED = (124, 137, 143)
"""By `timeout`, of GNU and of busybox."""
_SIGNALS = range(129, 144)
"""Higher ones are the schedulers' own: PBS has 153 for a job it does not know."""
_OWN = frozenset({"_", "SHLVL", "PWD", "OLDPWD"})
"""Variables that a shell sees to by itself."""


class There:
    """One login node. May be used from any thread, and pickled."""

    def __init__(self, login: Login, speaks: Speaks) -> None:
        self._login, self._speaks = login, speaks
        self.name, self.user, self.is_away = f"on {login.name}", login.user, True
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._channels = threading.Semaphore(CHANNELS)
        self._idle: list[_Shell] = []
        self._known: tuple[str, timedelta, dict[str, str]] | None = None  # home, its clock before ours, environment
        self._attempts = Attempts(min(PAUSE[1], speaks.timeout / 2))  # a request makes one attempt
        self._met = False
        self._closed = threading.Event()

    def __reduce__(self) -> tuple[Any, ...]:
        """For the helper, which logs in by itself."""
        return There, (self._login, self._speaks)

    # -- the connection --

    def _connected(self) -> Connection:
        """Raises why it cannot be reached, at once if that was tried a moment ago."""
        with self._lock:
            if self._connection is not None and self._connection.alive:
                return self._connection
            if self._closed.is_set():
                raise DrmCommunicationError(f"{self._login.name}: the connection was closed")
            with self._attempts.one():
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                connection = Connection(self._login, timeout=self._speaks.timeout, passphrase=self._speaks.passphrase)
            self._met, self._connection = True, connection
            if self._closed.is_set():
                connection.close()
                raise DrmCommunicationError(f"{self._login.name}: the connection was closed")
            return connection

    def _reached(self, until: float) -> Connection:
        """The same; a machine that was reached before may be away until then."""
        while True:
            try:
                return self._connected()
            except DrmCommunicationError:
                left = until - time.monotonic()
                if not self._met or left <= 0 or self._closed.wait(min(left, PAUSE[0])):
                    raise

    def _spoken(self, script: str, timeout: float, until: float) -> subprocess.CompletedProcess[bytes]:
        """What a script says, and how it ends. Raises DrmCommunicationError where nobody knows."""
        with self._channels:
            connection = self._reached(until)
            try:
                shell = self._take(connection)
                done = shell.run(script, timeout)
            except TimeoutError as error:
                self._try(connection)
                raise DrmCommunicationError(f"{self._login.name} does not answer") from error
            except LOST as error:
                raise DrmCommunicationError(f"{self._login.name}: the connection was lost") from error
            self._idle.append(shell)
            return done

    def _try(self, connection: Connection) -> None:
        """One command took too long: the connection goes only if it is dead, as others use it, too."""
        try:
            self._idle.append(self._shell(connection))
        except (*LOST, WflError):
            connection.close()

    def _take(self, connection: Connection) -> _Shell:
        """A shell that nobody else uses, of this connection."""
        while True:
            try:
                shell = self._idle.pop()
            except IndexError:
                return self._shell(connection)
            if shell.connection is connection:
                return shell

    def _shell(self, connection: Connection) -> _Shell:
        channel = self._opened(connection, lambda: connection.command(f"exec {self._speaks.shell} -s"))
        return _Shell(channel, connection, self._speaks.timeout)

    def _opened(self, connection: Connection, make: Callable[[], _T]) -> _T:
        """A channel; where the host takes no more at once, in the place of one of ours that is not needed now."""
        until = time.monotonic() + self._speaks.timeout
        while True:
            try:
                return make()
            except DeniedByDrmsError as error:
                late = not (is_full(error) and connection.opened) or time.monotonic() > until
                if late or self._closed.wait(PAUSE[0]):
                    raise
                try:
                    self._idle.pop().close()
                except IndexError:
                    connection.spare()

    def _told(self, script: str) -> bytes:
        """What a script says that ends well, and may be run twice where the connection is lost meanwhile.

        Raises SessionManagementError with its complaint where it does not end well.
        """
        until = time.monotonic() + self._speaks.timeout
        while True:
            try:
                return self._complained(self._spoken(script, self._speaks.timeout, until))
            except DrmCommunicationError:
                if not self._met or time.monotonic() > until or self._closed.wait(PAUSE[0]):
                    raise

    def _complained(self, done: subprocess.CompletedProcess[bytes]) -> bytes:
        if done.returncode:
            words = " ".join(done.stderr.decode(errors="replace").split()) or f"status {done.returncode}"
            raise SessionManagementError(f"{self._login.name}: {words[-500:]}")
        return done.stdout

    def _facts(self) -> tuple[str, timedelta, dict[str, str]]:
        if self._known is None:
            said = self._told(f"{_LOOK} && cd && pwd && date +%s && {{ env -0 2>/dev/null || env; }}").decode(**_CODEC)
            home, date, rest = said.split("\n", 2)
            ahead = datetime.fromtimestamp(int(date), UTC) - datetime.now(UTC)  # logging in took its time before
            pairs = (line.partition("=") for line in rest.split("\0" if "\0" in rest else "\n") if "=" in line)
            self._known = home, ahead, {name: value for name, _, value in pairs if name not in _OWN}
        return self._known

    @property
    def base(self) -> str:
        """The user's home."""
        return self._facts()[0]

    def now(self) -> datetime:
        """By its clock."""
        ahead = self._facts()[1]
        return datetime.now(UTC) + ahead

    # -- commands --

    def environment(self) -> dict[str, str]:
        """What a login without a terminal has there."""
        return dict(self._facts()[2])

    def run(self, argv: Sequence[str], env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[bytes]:
        """Killed there when its time is up, if the machine has `timeout`."""
        own = self.environment()
        command = shlex.join(argv)
        # Where a profile has made one read-only, it stays as it is: `command` keeps the shell from ending for that.
        lines = [f"command unset {name} 2>/dev/null" for name in own if name not in env and _NAME.fullmatch(name)]
        lines += [
            f"command export {name}={shlex.quote(value)} 2>/dev/null"
            for name, value in env.items()
            if own.get(name) != value and _NAME.fullmatch(name)
        ]
        lines += [
            f"command -v {shlex.quote(argv[0])} >/dev/null 2>&1 || exit {_NONE}",
            f"command -v timeout >/dev/null 2>&1 && exec timeout -k 2 {math.ceil(timeout)} {command} </dev/null",
            f"exec {command} </dev/null",
        ]
        done = self._spoken("\n".join(lines), timeout + MORE, time.monotonic() + self._speaks.timeout)
        if done.returncode == _NONE and not done.stderr:
            raise FileNotFoundError(argv[0])
        if done.returncode in _KILLED:
            raise subprocess.TimeoutExpired(argv, timeout, done.stdout, done.stderr)
        if done.returncode in _SIGNALS:
            done.returncode = 128 - done.returncode
        return done

    # -- files --

    def exists(self, path: str) -> bool:
        """Whether it is there."""
        return path in self.times([path])

    def make(self, directories: Iterable[str]) -> None:
        """In one go."""
        self._told(f"umask 077\nmkdir -p -- {shlex.join(directories)}")

    def write(self, texts: Mapping[str, str]) -> None:
        """In one go, each beside its place, then into it."""
        lines = ["umask 077"]
        for path, text in texts.items():
            beside = shlex.quote(f"{path}~")
            lines += [f"printf %s {shlex.quote(text)} >{beside} && mv -f -- {beside} {shlex.quote(path)} || exit 1"]
        self._told("\n".join(lines))

    def append(self, path: str, text: str) -> None:
        """In one piece."""
        self._told(f"umask 077\nprintf %s {shlex.quote(text)} >>{shlex.quote(path)}")

    def texts(self, paths: Collection[str]) -> dict[str, Text]:
        """Many in one go: how long they are, then all of them; again one by one where they do not fit together."""
        found: dict[str, Text] = {}
        if len(paths) == 1:
            return self._text(*paths)
        for some in _parts(paths):
            quoted = shlex.join(some)
            said = self._told(f"stat -c '%s %.9Y %n' -- {quoted} 2>/dev/null\necho\ncat -- {quoted} 2>/dev/null\n:")
            head, _, rest = said.partition(b"\n\n") if not said.startswith(b"\n") else (b"", b"", said[1:])
            there = [line.split(" ", 2) for line in head.decode(**_CODEC).split("\n") if line]
            sizes = [int(size) for size, _, _ in there]
            if sum(sizes) != len(rest):  # one of them grew, or cannot be read
                for path in some:
                    found |= self.texts([path])
                continue
            for size, written, path in there:
                found[path] = Text(rest[: int(size)].decode(**_CODEC), _time(written))
                rest = rest[int(size) :]
        return found

    def _text(self, path: str) -> dict[str, Text]:
        where = shlex.quote(path)
        told = f"cat -- {where} && echo && stat -c %.9Y -- {where}"
        said = self._told(f"[ ! -e {where} ] || {{ {told}; }} || {{ [ ! -e {where} ] && echo; }}")
        text, _, written = said[:-1].rpartition(b"\n")
        return {path: Text(text.decode(**_CODEC), _time(written.decode()))} if written else {}

    def times(self, paths: Collection[str]) -> dict[str, Times]:
        """Many in one go."""
        found = {}
        for some in _parts(paths):
            said = self._told(f"stat -c '%.9Y %.9Z %n' -- {shlex.join(some)} 2>/dev/null\n:").decode(**_CODEC)
            for line in said.split("\n")[:-1]:
                written, changed, path = line.split(" ", 2)
                found[path] = Times(_time(written), _time(changed))
        return found

    def names(self, directories: Sequence[str]) -> list[list[str]]:
        """In one go."""
        lines = []
        for directory in directories:
            where = shlex.quote(directory)
            shown = """{ [ ! -e "$1" ] || printf '%s\\n' "$@"; }"""
            lines += ["echo /", f"[ ! -d {where} ] || ( cd -- {where} && set -- * && {shown} ) || exit 1"]
        if not lines:
            return []
        found: list[list[str]] = []
        for line in self._told("\n".join(lines)).decode(**_CODEC).split("\n")[:-1]:
            if line == "/":
                found.append([])
            else:
                found[-1].append(line)
        return found

    def rename(self, old: str, new: str) -> None:
        """Where the new name is that of a file or an empty directory, that one is gone."""
        with self._files() as client:
            client.posix_rename(old, new)

    def remove(self, paths: Iterable[str]) -> None:
        """In one go."""
        self._told("\n".join(f"rm -f -- {shlex.join(some)} 2>/dev/null" for some in _parts(list(paths))) + "\n:")

    def remove_directory(self, path: str, *, whole: bool) -> None:
        """What can be removed."""
        self._told(f"{'rm -rf' if whole else 'rmdir'} -- {shlex.quote(path)} 2>/dev/null\n:")

    def part(self, path: str, offset: int, limit: int) -> tuple[bytes, bool]:
        """By SFTP."""
        with self._files() as client:
            try:
                data = transfer.read_part(client, path, offset, limit)
            except OSError as error:
                if transfer.is_broken(error):
                    raise
                raise InvalidStateError(f"{self._login.name}: {path}: {network.words(error)}") from error
        return data, len(data) < limit

    def copies(self, mark: str) -> transfer.Copies:
        """Copying to it and back; see `transfer.Copies`."""
        return transfer.Copies(self._channel, mark)

    @contextmanager
    def _channel(self) -> Iterator[paramiko.SFTPClient]:
        connection = self._reached(time.monotonic() + self._speaks.timeout)
        with ExitStack() as stack:
            yield self._opened(connection, lambda: stack.enter_context(connection.files()))

    @contextmanager
    def _files(self) -> Iterator[paramiko.SFTPClient]:
        try:
            with self._channel() as client:
                yield client
        except LOST as error:
            if not transfer.is_broken(error):
                raise
            raise DrmCommunicationError(f"{self._login.name}: {network.words(error)}") from error

    # -- the end --

    def close(self) -> None:
        """Log out; who is just logging in is not waited for, and learns it in the end."""
        self._closed.set()
        connection = self._connection
        if connection is not None:
            connection.close()

    def abandon(self) -> None:
        """In a forked child."""
        if self._connection is not None:
            self._connection.abandon()


_LOOK = "{ stat -c %Y / >/dev/null 2>&1 || { echo 'its stat(1) is neither of GNU nor of busybox' >&2; exit 1; }; }"
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_CODEC: Any = {"encoding": "utf-8", "errors": "surrogateescape"}


class _Shell:
    """A shell there that runs one script after another, each in a shell of its own."""

    def __init__(self, channel: paramiko.Channel, connection: Connection, timeout: float) -> None:
        self._channel, self.connection = channel, connection
        self._mark = f"-- wfl {os.urandom(8).hex()}"
        channel.sendall(b"set +eufC\n")  # some profiles leave such things behind
        self.run(":", timeout)  # what comes before that is the login's own: some profiles print

    def close(self) -> None:
        """It is not needed any more."""
        self._channel.close()

    def run(self, script: str, timeout: float) -> subprocess.CompletedProcess[bytes]:
        """Raises TimeoutError, and ConnectionError for an end that nobody has told. It cannot be used after that."""
        end, mark = time.monotonic() + timeout, self._mark
        text = f"(\n{script}\n) </dev/null\nwfl=$?\necho >&2; echo '{mark}' >&2; echo; echo '{mark} '$wfl\n"
        try:
            self._channel.settimeout(timeout)
            self._channel.sendall(text.encode(**_CODEC))
            complaints = bytearray()
            output, status = self._until(bytearray(), lambda: self._output(complaints, end))
            words, _ = self._until(complaints, lambda: self._in_time(self._channel.recv_stderr, end))
        except BaseException:
            self._channel.close()
            raise
        return subprocess.CompletedProcess((), int(status), output, words)

    def _until(self, found: bytearray, receive: Callable[[], bytes]) -> tuple[bytes, bytes]:
        """What comes before the mark, behind what was found before, and the rest of its line."""
        mark, before = f"\n{self._mark}".encode(), 0
        while True:
            place = found.find(mark, before)
            if place >= 0 and found.endswith(b"\n"):
                return bytes(found[:place]), bytes(found[place + len(mark) : -1])
            before = max(0, len(found) - len(mark) - 8)
            piece = receive()
            if not piece:
                raise ConnectionError("the shell has ended")
            found += piece

    def _output(self, complaints: bytearray, end: float) -> bytes:
        """A piece of it; complaints are taken in meanwhile, as a host sends only so much of both together."""
        while True:
            while self._channel.recv_stderr_ready():
                complaints += self._channel.recv_stderr(PIECE)
            try:
                return self._in_time(self._channel.recv, min(end, time.monotonic() + LOOK))
            except TimeoutError:
                if time.monotonic() >= end:
                    raise

    def _in_time(self, receive: Callable[[int], bytes], end: float) -> bytes:
        self._channel.settimeout(max(0.001, end - time.monotonic()))
        return receive(PIECE)


def _time(seconds: str) -> datetime:
    return datetime.fromtimestamp(float(seconds), UTC)


def _parts(paths: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(paths)
    while some := list(itertools.islice(rest, FILES)):
        yield some

"""Hosts over SSH as tests break them: an sshd of our own on this machine, and a wire to it that may do anything."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any, Literal, Self

import pytest

from tests import ssh
from tests.containers import lacking
from tests.faults.machine import PATIENCE, children_of, wait_until
from tests.faults.servers import free_port, listens, needed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from wfl.contexts.ssh import SshContext

Direction = Literal["there", "back"]
_Queue = Queue[tuple[float, bytes]]
BOTH: tuple[Direction, Direction] = ("there", "back")
WIRE = "wire"
"""The name of its threads."""
ALIAS = "wfl-faults"
"""What the host is called where keys of hosts are kept, at whatever port it is reached."""
_PIECES = 64
"""Pieces of up to 64 KiB that are under way in one direction: a sender is held up then, as by a real network."""


class _Line:
    """One connection over the wire."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self.stalled: set[Direction] = set()
        self.over = False

    def close(self) -> None:
        self.over = True
        for sock in (self.near, self.far):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Wire:
    """A port that leads to another one of this machine. What it is told to do wrong ends with `mend`."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.made = 0
        """How many connections there were."""
        self.sent = 0
        """How many bytes came from the near side, whether they have arrived or not."""
        self._under_way = 0
        self.sprung = threading.Event()
        """Whether what was to happen `after` so many bytes has happened."""
        self._delay = 0.0
        self._stalled: set[Direction] = set()
        self._trap: tuple[Direction, int, Callable[[], None]] | None = None
        self._lines: list[_Line] = []
        self._every: list[_Line] = []
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._listener: socket.socket | None = None
        self.port = 0
        self._listen()

    # -- what may be wrong --

    def cut(self) -> None:
        """All connections end; others can be made."""
        with self._changed:
            lines, self._lines = self._lines, []
        for line in lines:
            line.close()
        with self._changed:
            self._changed.notify_all()

    def refuse(self) -> None:
        """All connections end, and others are refused."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def stall(self, *directions: Direction) -> None:
        """Connections that are there bring nothing any more in these directions, and do not end; others can be made."""
        with self._changed:
            for line in self._lines:
                line.stalled |= {*directions}

    def swallow(self, *directions: Direction) -> None:
        """As `stall`, and also connections that are made from now on."""
        with self._changed:
            self._stalled |= {*directions}

    def slow(self, seconds: float) -> None:
        """What is sent from now on arrives so much later, in either direction."""
        self._delay = seconds

    def after(self, direction: Direction, size: int, do: Callable[[], None]) -> None:
        """When so many more bytes have passed in a direction, this happens before the next one does."""
        self.sprung.clear()
        with self._changed:
            self._trap = (direction, size, do)

    def mend(self) -> None:
        """All is well again: what was kept back arrives now."""
        self._delay = 0.0
        with self._changed:
            self._trap = None
            self._stalled.clear()
            for line in self._lines:
                line.stalled.clear()
            self._changed.notify_all()
        if self._listener is None:
            self._listen()

    def is_quiet(self) -> None:
        """Wait until all that was sent has arrived."""
        wait_until("all has arrived", lambda: not self._under_way)

    # -- how --

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._run(self._accept, self._listener)

    def _run(self, f: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=f, args=arguments, name=WIRE, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            self.made += 1
            far = socket.socket()
            line = _Line(near, far)
            with self._changed:
                self._lines.append(line)
                self._every.append(line)
            try:
                far.connect(("127.0.0.1", self._to))
            except OSError:
                line.close()
                continue
            for source, target, direction in ((near, far, "there"), (far, near, "back")):
                queue: _Queue = Queue(_PIECES)
                self._run(self._take, direction, source, queue)
                self._run(self._give, line, direction, queue, target)

    def _take(self, direction: Direction, source: socket.socket, queue: _Queue) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            with self._changed:
                self._under_way += 1
                self.sent += len(data) if direction == "there" else 0
            queue.put((time.monotonic() + self._delay, data))

    def _give(
        self, line: _Line, direction: Direction, queue: Queue[tuple[float, bytes]], target: socket.socket
    ) -> None:
        while True:
            due, data = queue.get()
            time.sleep(max(0.0, due - time.monotonic()))
            with self._changed:
                self._under_way -= 1
            if not data:
                break
            for piece, do in self._pieces(direction, data):
                self._wait(line, direction)
                with suppress(OSError):
                    target.sendall(piece)
                if do is not None:
                    do()
                    self.sprung.set()
        self._wait(line, direction)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _pieces(self, direction: Direction, data: bytes) -> list[tuple[bytes, Callable[[], None] | None]]:
        """What is passed on, and what happens then."""
        with self._changed:
            if self._trap is None or self._trap[0] != direction:
                return [(data, None)]
            _, size, do = self._trap
            if len(data) < size:
                self._trap = (direction, size - len(data), do)
                return [(data, None)]
            self._trap = None
            return [(data[:size], do), (data[size:], None)]

    def _wait(self, line: _Line, direction: Direction) -> None:
        with self._changed:
            self._changed.wait_for(lambda: line.over or direction not in line.stalled | self._stalled)

    def close(self) -> None:
        """End all connections."""
        self.refuse()
        for thread in self._threads:
            thread.join()
        for line in self._every:
            line.near.close()
            line.far.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


FAULTS: dict[str, Callable[[Wire], None]] = {
    "cut": Wire.cut,
    "refused": lambda wire: (wire.refuse(), threading.Timer(1.0, wire.mend).start())[0],  # type: ignore[func-returns-value]
    "stalled": lambda wire: wire.stall(*BOTH),
    "nothing there": lambda wire: wire.stall("there"),
    "nothing back": lambda wire: wire.stall("back"),
}
"""What may happen to connections."""


class Host:
    """An sshd of our own, with the keys and users of the one that `make services` starts; it may be struck.

    `directory` is where jobs are kept; for root below our own directory, for the ordinary user below its home.
    """

    def __init__(self, directory: Path) -> None:
        self.service = ssh.reached()
        if os.getuid() != 0:
            lacking(f"sshd is started by root here, and this is user {os.getuid()}")
        self.path, self._place = needed("sshd", "openssh-server"), directory
        self.port, self.log = free_port(), directory / "sshd.log"
        self.known = directory / "known_hosts"
        key = (self.service.directory / "host.pub").read_text().split()
        self.known.write_text(f"{ALIAS} {key[0]} {key[1]}\n")
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = 0
        self.start()

    # -- sshd --

    def start(self) -> None:
        """Let it listen (again) at its port."""
        options = [f"Port={self.port}", "PidFile=none"]
        words = [word for option in options for word in ("-o", option)]
        command = [self.path, "-D", "-f", str(self.service.directory / "sshd_config"), "-E", str(self.log), *words]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        process = self._process
        wait_until("sshd listens", lambda: process.poll() is not None or listens(self.port))
        assert process.poll() is None, self.log.read_text()

    def strike(self) -> None:
        """End it at once, with all that serves a connection; what was started through them lives on."""
        assert self._process is not None
        pids = [pid for pid in _descendants(self._process.pid) if _is_sshd(pid, self.path)]
        for pid in (self._process.pid, *pids):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(PATIENCE)

    def connections(self) -> int:
        """How many it serves now."""
        assert self._process is not None
        return len(children_of(self._process.pid))

    def close(self) -> None:
        """End it."""
        if self._process is not None and self._process.poll() is None:
            self.strike()

    def counts(self) -> Counter[str]:
        """What its log tells of: connections that logged in, and channels by what they are for."""
        text = self.log.read_text()
        found = Counter(re.findall(r"Starting session: (command|subsystem)", text))
        return found + Counter(login=len(re.findall(r"Accepted publickey", text)))

    # -- who logs in --

    def config(self, name: str = "there", *, port: int | None = None, user: str = "root", more: str = "") -> Path:
        """A configuration file that knows it by this name, or pattern."""
        self._numbers += 1
        path = self._place / f"config-{self._numbers}"
        path.write_text(self.entry(name, port=port, user=user, more=more))
        return path

    def entry(self, name: str = "there", *, port: int | None = None, user: str = "root", more: str = "") -> str:
        """The lines of such a file."""
        lines = {
            "HostName": "127.0.0.1",
            "Port": port or self.port,
            "User": user,
            "IdentityFile": f'"{self.service.key}"',
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.known,
            "GlobalKnownHostsFile": "/dev/null",
            "HostKeyAlias": ALIAS,
        }
        return f"Host {name}\n{more}" + "".join(f"    {word} {value}\n" for word, value in lines.items())

    def context(self, hosts: str | list[str] = "there", **settings: Any) -> SshContext:
        """A context for hosts of a configuration, by default for this one, with a session of its own."""
        from wfl.contexts.ssh import SshContext

        given = {"session_name": f"faults-{uuid.uuid4().hex[:8]}", "directory": str(self.jobs), "timeout": 20.0}
        if "config" not in settings:
            given["config"] = str(self.config(port=settings.pop("port", None)))
        return SshContext(hosts, **{**given, **settings})

    @property
    def jobs(self) -> Path:
        """Where root's jobs are kept."""
        return self._place / "jobs"

    def kept(self) -> list[str]:
        """What is kept of them now."""
        return sorted(
            os.path.relpath(f"{place}/{name}", self.jobs)
            for place, directories, files in os.walk(self.jobs)  # which passes over what is removed meanwhile
            for name in directories + files
        )

    def is_empty(self, patience: float = PATIENCE) -> None:
        """Nothing is kept of them any more, in so many seconds."""
        end = time.monotonic() + patience
        while kept := self.kept():
            assert time.monotonic() < end, f"after {patience:g} s the host still has {kept}"
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        shutil.rmtree(self.jobs, ignore_errors=True)


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        found += children_of(one)
    return found[1:]


def _is_sshd(pid: int, path: str) -> bool:
    with suppress(OSError):
        return Path(os.readlink(f"/proc/{pid}/exe")).samefile(path)
    return False


def alive(log: Path) -> list[int]:
    """Of the processes that noted themselves in a file (NOTE of tests.faults.machine), those that are still there."""
    from tests.faults.machine import is_alive, noted

    return [pid for pid, ticks in noted(log) if is_alive(pid, ticks)]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """An sshd that nobody else uses."""
    with Host(tmp_path_factory.mktemp("host")) as found:
        yield found

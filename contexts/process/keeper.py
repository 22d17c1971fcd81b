"""The keeper: one small process that starts a session's tasks, reports their ends and outlives the program.

It runs in an interpreter of its own with the standard library alone and must not import wfl. When the program's
socket closes without a goodbye it ends every process it ever started (it is their subreaper, so grandchildren in
sessions of their own are found too), or, detached, stays until the last has ended and its end is in the journal.

Both ways the socket carries one JSON list a line:
    program:  ["env", {…}]  ["fds"] (with descriptors, for the order behind it)
              ["spawn", {order}, [[n, key, {environment}], …]]  ["control", request, action, [n, …]]
              ["pin", request, n]  ["known", request, [n, …]]  ["attach", request]  ["bye", end]
    keeper:   ["hello", pid]  ["tell", [start, …], [end, …], [state, …]]  ["reply", request, value]
A task is known by its number n, a kept output file by its number below the keeper's directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import heapq
import json
import os
import resource
import selectors
import signal
import socket
import sys
import termios
import time
import traceback
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module costs start-up time
    from collections.abc import Iterator
    from typing import Any

TERM_GRACE = 0.7
"""Seconds between asking processes of a dead program to end and killing them: all are gone within two seconds."""
LIMIT_GRACE = 2.0
"""Seconds a task has to end by itself after its wall-clock limit."""
TELL_DELAY = 0.002
"""Seconds that the news of a start may wait for the news of its end, so that a short task costs one message."""
TELL_BATCH = 64
WAKEFUL = 0.0005
"""Seconds to stay awake after the last end: the next link of a chain comes sooner than one falls asleep and wakes."""
LONGEST_SLEEP = 3600.0
"""Seconds: epoll counts milliseconds in an int, and a limit of time may be a month away."""
STAGERS = 8
"""How many copies of files (staging) may run at once."""

SETTLED = 10
"""Looks after which a process that has arguments is taken to have no environment."""
MARK = b"WFL_KEY"
"""Every task has its key in this environment variable: how a process is known as a task's when all else is lost."""

SIGNALS = {
    "suspend": signal.SIGSTOP,
    "resume": signal.SIGCONT,
    "terminate": signal.SIGTERM,
    "kill": signal.SIGKILL,
}
ENDING = ("terminate", "kill")
DEFAULTS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
TRY_LATER = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}

encode = json.JSONEncoder(separators=(",", ":")).encode
parse = json.JSONDecoder().decode


class ChildRefusedError(OSError):
    """The child itself could not do what it was told, under limits of its own: trying later will not help."""


class Task:
    """One process to be, running, or waiting for its files to be copied back."""

    __slots__ = (
        "err", "extra", "key", "n", "order", "out", "pid", "pinned", "result", "stager", "start_ticks", "started",
        "suspended", "why", "words",
    )  # fmt: skip

    def __init__(self, n: int, key: str, extra: dict[str, str], order: Order) -> None:
        self.n, self.key, self.extra, self.order = n, key, extra, order
        self.pid = self.stager = 0
        self.start_ticks: int | None = None
        self.started: float | None = None
        self.out: int | None = None
        self.err: int | None = None
        self.pinned = self.suspended = False
        self.why: str | None = None
        self.words: str | None = None
        self.result: tuple[int | None, float, int] | None = None


class Order:
    """What tasks started together have in common, and the descriptors they were handed."""

    __slots__ = (
        "add", "argv", "cwd", "env", "err", "fds", "inp", "join", "left", "limits", "nice", "out", "path",
        "seconds", "stage_in", "stage_out", "until",
    )  # fmt: skip

    def __init__(self, spec: dict[str, Any], env: dict[bytes, bytes], fds: list[int], left: int) -> None:
        self.path: str = spec["path"]
        self.argv: list[str] = spec["argv"]
        self.cwd: str = spec["cwd"]
        self.inp: str | int = spec.get("in", "/dev/null")
        self.out: str | int | None = spec.get("out")
        self.err: str | int | None = spec.get("err")
        self.join: bool = spec.get("join", False)
        self.limits: list[list[Any]] = spec.get("limits", [])
        self.nice: int | None = spec.get("nice")
        self.seconds: float | None = spec.get("seconds")
        self.until: float | None = spec.get("until")
        self.stage_in: dict[str, str] = spec.get("stage_in", {})
        self.stage_out: dict[str, str] = spec.get("stage_out", {})
        self.env = {**env, **as_bytes(spec.get("add", {}))}
        self.fds, self.left = fds, left

    def release(self) -> None:
        """One task fewer needs the descriptors."""
        self.left -= 1
        if not self.left:
            for fd in self.fds:
                os.close(fd)


class Connection:
    """One program on the other end: the owner, or another that reads along and may control."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self.sock = sock
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.received = 0
        self.arrived: deque[list[int]] = deque()
        self.fds: list[int] = []

    def receive(self) -> list[list[Any]] | None:
        """The messages that have arrived; None at the end of the connection."""
        messages: list[list[Any]] = []
        while True:
            try:
                data, ancillary, flags, _ = self.sock.recvmsg(1 << 16, socket.CMSG_SPACE(16 * 4))
            except BlockingIOError:
                return messages
            except OSError:
                data, ancillary, flags = b"", [], 0
            self._receive_descriptors(ancillary, none_left=bool(flags & socket.MSG_CTRUNC) and not ancillary)
            if not data:
                return messages or None
            self.received += len(data)
            self.inbox += data
            if b"\n" in data:
                *lines, rest = self.inbox.split(b"\n")
                self.inbox = rest
                messages += [message for line in lines if line and (message := decode(line)) is not None]
            if len(data) < 1 << 16:
                return messages

    def _receive_descriptors(self, ancillary: list[tuple[int, int, bytes]], *, none_left: bool) -> None:
        if none_left:  # they came, but this process may not have one more
            self.arrived.append([])
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = [int.from_bytes(payload[i : i + 4], sys.byteorder) for i in range(0, len(payload), 4)]
                for fd in fds:
                    os.set_inheritable(fd, False)  # noqa: FBT003
                self.arrived.append(fds)

    def unread(self) -> int:
        """How many bytes have arrived that were not received yet."""
        return int.from_bytes(fcntl.ioctl(self.sock, termios.FIONREAD, bytes(4)), sys.byteorder)

    def take(self) -> list[int]:
        """The descriptors that came for this order; too few if this process could not have more."""
        fds, self.fds = self.fds, []
        return fds

    def drop(self) -> None:
        """Close the descriptors of an order that never came."""
        for fd in self.take():
            os.close(fd)

    def send(self) -> bool:
        """Send what fits; whether something is left."""
        try:
            while self.outbox:
                del self.outbox[: self.sock.send(self.outbox)]
        except BlockingIOError:
            return True
        except OSError:
            self.outbox.clear()
        return False


class Keeper:
    """All tasks of one keeper and the loop that serves them; single-threaded throughout."""

    def __init__(
        self, owner: socket.socket, program: int, directory: str, *, detach: bool, listener: socket.socket | None
    ) -> None:
        self.directory, self.detach, self.keep = directory, detach, listener is not None
        self.selector = selectors.DefaultSelector()
        self.env: dict[bytes, bytes] = {}
        self.tasks: dict[int, Task] = {}
        self.by_pid: dict[int, Task] = {}
        self.pending: deque[Task] = deque()
        self.rest_until = 0.0
        self.stagers = 0
        self.starts: list[list[Any]] = []
        self.ends: list[list[Any]] = []
        self.states: list[list[Any]] = []
        self.oldest = 0.0
        self.clocks: list[tuple[float, int, str]] = []
        self.files = 0
        self.free: list[int] = []
        self.emptied: list[int] = []
        self.told_to_end = self.ending = False
        self.kill_at = 0.0
        self.journal = os.open(f"{directory}/journal", _APPEND | os.O_CLOEXEC, 0o600) if self.keep else -1
        self.unwritten = bytearray()
        self.connections: list[Connection] = []
        self.owner: Connection | None = Connection(owner)
        self._watch(self.owner)
        self._catch_signals()
        self.program = self._watch_program(program)
        self.listener = listener
        if listener is not None:
            listener.settimeout(0)
            self.selector.register(listener, selectors.EVENT_READ, self._accept)
        self._note(["keeper", os.getpid(), start_ticks("self"), boot_id()])
        self._say(self.owner, ["hello", os.getpid()])

    # -- the loop --

    def run(self) -> None:
        """Serve until nobody needs this process any more."""
        while not self._over():
            for key, _ in self._events():
                key.data()
            if self.told_to_end:
                self._end("its keeper was told to end (SIGTERM)")
            if self.ending:
                self._end_everything()
            else:
                self._start_some()
            self._reap()
            self._ring()
            self._tell()
            self._take_back()
        self._tell(now=True)
        self._leave()

    def _events(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Sleep until there is something to do; with no task left, look again for a moment before that."""
        patience = self._patience()
        if patience is None and not self.tasks:
            end = time.monotonic() + WAKEFUL
            while time.monotonic() < end:
                if events := self.selector.select(0):
                    return events
                os.sched_yield()
        return self.selector.select(patience)

    def _over(self) -> bool:
        if self.ending:
            return not self.tasks and not self._has_children()
        return self.owner is None and not self.tasks

    def _patience(self) -> float | None:
        if self.ending:
            return 0.02
        waits = [self.rest_until - time.monotonic()] if self.pending else []
        if self.starts or self.ends or self.states:
            waits.append(self.oldest + TELL_DELAY - time.monotonic())
        if self.clocks:
            waits.append(self.clocks[0][0] - time.time())
        return max(0.0, min(*waits, LONGEST_SLEEP)) if waits else None

    def _catch_signals(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "told_to_end", True))
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)

        def drain() -> None:
            os.read(reader, 4096)  # it wakes again if that was not all

        self.selector.register(reader, selectors.EVENT_READ, drain)

    # -- connections --

    def _watch(self, connection: Connection) -> None:
        self.connections.append(connection)
        self.selector.register(connection.sock, selectors.EVENT_READ, lambda: self._serve(connection))

    def _watch_program(self, pid: int) -> int:
        """Notice the program's death even where a stray copy of its socket lives on (a fork in foreign code)."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:  # it died before this process came up
            fd, other = os.pipe()
            os.close(other)
        except (AttributeError, OSError):
            return -1
        self.selector.register(fd, selectors.EVENT_READ, self._program_died)
        return fd

    def _program_died(self) -> None:
        self.selector.unregister(self.program)  # before the close: the number may be used again at once
        os.close(self.program)
        if self.owner is not None:
            self._hear_out(self.owner)
        if self.owner is not None:
            self._closed(self.owner)

    def _accept(self) -> None:
        """A program came back."""
        if self.listener is None:
            return
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return
        self._watch(Connection(sock))

    def _serve(self, connection: Connection) -> None:
        """Do what was asked."""
        messages = connection.receive()
        if messages is None:
            self._closed(connection)
            return
        for message in messages:
            try:
                getattr(self, f"do_{message[0]}")(connection, *message[1:])
            except Exception:  # noqa: BLE001 - an odd message (another version's?) must not end everybody's tasks
                complain(traceback.format_exc())

    def _hear_out(self, connection: Connection) -> None:
        """Do all that it has sent so far: as descriptors end every look at a socket, that takes several."""
        end = connection.received + connection.unread()
        before = -1
        while before < connection.received < end:
            before = connection.received
            self._serve(connection)

    def _closed(self, connection: Connection) -> None:
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        self.selector.unregister(connection.sock)
        connection.sock.close()
        connection.drop()
        if connection is self.owner:
            self.owner = None
            if not self.detach:
                self._end("the program that started it ended")

    def _say(self, connection: Connection, message: list[Any]) -> None:
        connection.outbox += encode(message).encode() + b"\n"
        self._push(connection)

    def _push(self, connection: Connection) -> None:
        left = connection.send()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if left else 0)
        if connection not in self.connections or self.selector.get_key(connection.sock).events == events:
            return

        def serve() -> None:
            self._push(connection)
            self._serve(connection)

        self.selector.modify(connection.sock, events, serve)

    # -- what the program asks for --

    def do_env(self, _: Connection, env: dict[str, str]) -> None:
        """The environment that the next orders build on."""
        self.env = as_bytes(env)

    def do_fds(self, connection: Connection) -> None:
        """Descriptors for the next order; those of one before that was interrupted are of no use any more."""
        connection.drop()
        connection.fds = connection.arrived.popleft()

    def do_spawn(self, connection: Connection, spec: dict[str, Any], tasks: list[list[Any]]) -> None:
        """Queue tasks; they start in order, as fast as the system lets them."""
        count = spec.get("fds", 0)
        order = Order(spec, self.env, connection.take() if count else [], len(tasks))
        self._note(["take", [task[:2] for task in tasks], order.cwd])
        for n, key, extra in tasks:
            task = self.tasks[n] = Task(n, key, extra, order)
            if len(order.fds) < count:
                self._finish_unstarted(task, "launch_failure", "its keeper has too many files open to take over more")
                continue
            self.pending.append(task)
            if order.until:
                heapq.heappush(self.clocks, (order.until, n, "deadline"))
        if self.ending:
            self._empty_queue("the keeper it was given to was just being ended")

    def do_control(self, connection: Connection, request: int, action: str, numbers: list[int]) -> None:
        """Signal whole process trees; answers with the failures, a text for each number."""
        failures: dict[int, str] = {}
        running: list[Task] = []
        for n in numbers:
            task = self.tasks.get(n)
            if task is None:
                failures[n] = "it has ended"
            elif task.pid:
                running.append(task)
            elif action in ENDING:
                self._cancel_unstarted(task)
            elif self._start_now(task):
                running.append(task)
            else:
                failures[n] = "it could not be started"
        for task in running if action in ENDING else ():
            task.why = task.why or "cancelled"
        self._signal(running, SIGNALS[action])
        if action in ("suspend", "resume"):
            for task in running:
                self._set_suspended(task, suspended=action == "suspend")
        self._tell(now=True)
        self._say(connection, ["reply", request, failures])

    def do_pin(self, connection: Connection, request: int, n: int) -> None:
        """Somebody reads this task's output while it runs: its files are not used again for another task."""
        task = self.tasks.get(n)
        if task is not None:
            task.pinned = True
        self._tell(now=True)
        self._say(connection, ["reply", request, [task.out, task.err] if task is not None and task.pid else None])

    def do_known(self, connection: Connection, request: int, numbers: list[int]) -> None:
        """Which of these it has; those that have ended were told of before."""
        self._hear_owner_before(connection)
        self._tell(now=True)
        self._say(connection, ["reply", request, [n for n in numbers if n in self.tasks]])

    def do_attach(self, connection: Connection, request: int) -> None:
        """A program came back: everything that has not ended, and from now on all news."""
        self._hear_owner_before(connection)
        self._tell(now=True)
        tasks = [[*self._start_row(task), task.suspended] for task in self.tasks.values()]
        self._say(connection, ["reply", request, tasks])

    def _hear_owner_before(self, connection: Connection) -> None:
        """What the owner has given to this keeper is known here, also if it is still on its way."""
        if self.owner is not None and connection is not self.owner:
            self._hear_out(self.owner)

    def do_bye(self, connection: Connection, end: bool) -> None:  # noqa: FBT001
        """The owner leaves on purpose."""
        if connection is not self.owner:
            return
        self.detach = not end
        self.owner = None
        if end:
            self._end("the program that started it closed its workflow")

    # -- starting --

    def _start_some(self) -> None:
        """Start a few, then look at sockets and ends again: nothing waits long behind a large array."""
        for _ in range(4):
            if not self.pending or time.monotonic() < self.rest_until:
                return
            task = self.pending.popleft()
            if task.n in self.tasks:  # else it was cancelled while it waited
                self._begin(task)

    def _cancel_unstarted(self, task: Task) -> None:
        if task.stager:
            task.why, task.words = task.why or "cancelled", "ended while its files were being copied"
            kill(task.stager, signal.SIGKILL)
        else:
            self._finish_unstarted(task, "cancelled", "ended before it was started")

    def _start_now(self, task: Task) -> bool:
        """Start a task before its turn, as somebody wants to suspend it; whether it runs."""
        if task in self.pending:
            self.pending.remove(task)
            self._begin(task)
        return bool(task.pid)

    def _begin(self, task: Task) -> None:
        staging = task.order.stage_in and task.result is None
        if staging and self.stagers >= STAGERS:
            self.pending.append(task)
            self._rest()
            return
        try:
            if staging:
                self._stage(task, task.order.stage_in)
            else:
                self._spawn(task)
        except OSError as error:
            self._give_back(task)
            shortage = error.errno == errno.EAGAIN or (error.errno in TRY_LATER and self.by_pid)
            if shortage and not isinstance(error, ChildRefusedError):
                self.pending.appendleft(task)  # with EAGAIN all that runs may be another keeper's
                self._rest()
                return
            full = self._full_disk(task) if error.errno in NO_SPACE else None
            self._finish_unstarted(task, "launch_failure", full or explain(task, error))
        except ValueError as error:
            self._give_back(task)
            self._finish_unstarted(task, "launch_failure", f"cannot start {task.order.path}: {error}")

    def _rest(self) -> None:
        """The system gives no more for now: start nothing until something ends, or for a moment."""
        self.rest_until = time.monotonic() + 0.05

    def _spawn(self, task: Task) -> None:
        order = task.order
        env = {**order.env, **as_bytes(task.extra), MARK: task.key.encode()}
        os.chdir(order.cwd)
        actions = [self._open_in(order), *self._open_out(task)]
        if order.limits or order.nice is not None:
            pid = fork_exec(order, env, actions)
        else:
            pid = os.posix_spawn(
                order.path,
                order.argv,
                env,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=DEFAULTS,
            )
        task.pid, task.started = pid, time.time()
        if self.keep:
            task.start_ticks = start_ticks(pid)
        self.by_pid[pid] = task
        order.release()
        self._soon()
        self.starts.append(self._start_row(task))
        if order.seconds is not None:
            heapq.heappush(self.clocks, (task.started + order.seconds, task.n, "limit"))

    @staticmethod
    def _start_row(task: Task) -> list[Any]:
        return [task.n, task.pid, task.start_ticks, task.started, task.out, task.err]

    @staticmethod
    def _open_in(order: Order) -> tuple[Any, ...]:
        if isinstance(order.inp, int):
            return (os.POSIX_SPAWN_DUP2, order.fds[order.inp], 0)
        return (os.POSIX_SPAWN_OPEN, 0, order.inp, os.O_RDONLY, 0)

    def _open_out(self, task: Task) -> Iterator[tuple[Any, ...]]:
        order = task.order
        if order.out is None:
            task.out = self._take_file()
        yield self._open_one(1, order.out if task.out is None else task.out, order, kept=task.out is not None)
        if order.join:
            yield (os.POSIX_SPAWN_DUP2, 1, 2)
            return
        if order.err is None:
            task.err = self._take_file()
        yield self._open_one(2, order.err if task.err is None else task.err, order, kept=task.err is not None)

    def _open_one(self, fd: int, target: str | int | None, order: Order, *, kept: bool) -> tuple[Any, ...]:
        if kept:
            return (os.POSIX_SPAWN_OPEN, fd, f"{self.directory}/{target}", _KEPT, 0o600)
        if isinstance(target, int):
            return (os.POSIX_SPAWN_DUP2, order.fds[target], fd)
        return (os.POSIX_SPAWN_OPEN, fd, target, _APPEND | os.O_TRUNC, 0o666)

    # -- kept output --

    def _take_file(self) -> int:
        if self.free:
            return self.free.pop()
        self.files += 1
        return self.files

    def _written(self, number: int | None, task: Task) -> int | None:
        """The number of a kept file that has something in it, or that somebody reads; an empty one may be used again.

        Creating a file costs up to 2 ms on some file systems.
        """
        if number is None:
            return None
        try:
            if os.stat(f"{self.directory}/{number}").st_size or task.pinned:
                return number
        except OSError:
            return number  # somebody removed it: who reads is told so
        self.emptied.append(number)
        return None

    def _take_back(self) -> None:
        """Use empty files again, once the news is out: those that no process has open for writing any more.

        So a background process that a task left behind never writes into a stranger's output: it goes on with a file
        that has no name, and the number is that of a new one.
        """
        while self.emptied:
            number = self.emptied.pop()
            if not unused(f"{self.directory}/{number}"):
                remove(f"{self.directory}/{number}")
            self.free.append(number)

    def _give_back(self, task: Task) -> None:
        self.free += [number for number in (task.out, task.err) if number is not None]
        task.out = task.err = None

    # -- ends --

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if not pid:
                return
            task = self.by_pid.get(pid)
            if task is None:
                continue  # an orphan of some task, adopted
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                self._set_suspended(task, suspended=os.WIFSTOPPED(status))
                continue
            self.rest_until = 0.0
            del self.by_pid[pid]
            self._stopped(task, os.waitstatus_to_exitcode(status), usage)

    def _stopped(self, task: Task, code: int, usage: Any) -> None:
        """A process of this task ended: a copy made before or after it, or the task itself."""
        if not task.pid:
            self.stagers -= 1
            self._staged(task, code)
            return
        task.result = (code, usage.ru_utime + usage.ru_stime, peak_kib(usage))
        if task.order.stage_out and code == 0:
            task.pid = 0
            try:
                self._stage(task, task.order.stage_out)
            except OSError as error:
                self._staged(task, 1, f"its files could not be copied: {error.strerror}")
            return
        self._finish(task)

    def _finish(self, task: Task, *, incomplete: bool = False) -> None:
        code, cpu, peak = task.result or (None, 0.0, 0)
        why = task.why
        if code == 0 and why == "cancelled" and not incomplete:
            why = None  # it ended well all the same
        out, err = self._written(task.out, task), self._written(task.err, task)
        if code or out or err:
            task.words = task.words or self._full_disk(task)
        self._ended(task, [task.n, code, cpu, peak, task.started, time.time(), out, err, why, task.words])

    def _finish_unstarted(self, task: Task, why: str, words: str) -> None:
        task.order.release()
        self._ended(task, [task.n, None, None, None, None, time.time(), None, None, why, words])

    def _ended(self, task: Task, row: list[Any]) -> None:
        del self.tasks[task.n]
        self._soon()
        self.ends.append(row)

    def _full_disk(self, task: Task) -> str | None:
        places = {self.directory}
        places |= {os.path.dirname(os.path.join(task.order.cwd, p)) for p in (task.order.out, task.order.err)
                   if isinstance(p, str)}  # fmt: skip
        for place in places:
            try:
                if not place.startswith("/dev") and os.statvfs(place).f_bavail == 0:
                    return f"No space left on device: the file system under {place} is full, output may be cut off"
            except OSError:
                continue
        return None

    def _set_suspended(self, task: Task, *, suspended: bool) -> None:
        if task.suspended != suspended:
            task.suspended = suspended
            self._soon()
            self.states.append([task.n, suspended])

    # -- staging --

    def _stage(self, task: Task, files: dict[str, str]) -> None:
        """Copy files in a child of its own, so that a large copy delays nobody."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child_defaults()
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))
                code = copy(files, task.order.cwd, f"{self.directory}/{task.n}.stage")
            finally:
                os._exit(code)
        self.stagers += 1
        task.stager = pid
        self.by_pid[pid] = task

    def _staged(self, task: Task, code: int, words: str | None = None) -> None:
        task.stager = 0
        note = f"{self.directory}/{task.n}.stage"
        if code:
            words = words or task.words or read_text(note) or f"copying its files ended with {code}"
        remove(note)
        if task.result is None:  # before the start
            if code or task.why or self.ending:
                why = task.why or ("cancelled" if self.ending else "launch_failure")
                self._finish_unstarted(task, why, words or task.words or "ended before it was started")
                return
            task.result = (None, 0.0, 0)
            self.pending.appendleft(task)
            return
        if code:
            task.why, task.words = task.why or "exited", words  # this and exit status 0: a failure all the same
        self._finish(task, incomplete=code != 0)

    # -- signals --

    def _signal(self, tasks: list[Task], number: int) -> None:
        """Reach every process of these tasks; a kill is repeated until a look finds none that was forked meanwhile."""
        for task in tasks:
            kill_group(task.pid, number)
        for _ in range(10):
            strays = [pid for pid, task in self._members(tasks) if pid != task.pid]
            for pid in strays:
                kill(pid, number)
            if number != signal.SIGKILL or not strays:
                break
        if number == signal.SIGTERM:  # a stopped process takes it only when continued
            for task in tasks:
                if task.suspended:
                    self._signal([task], signal.SIGCONT)

    def _members(self, tasks: list[Task]) -> list[tuple[int, Task]]:
        """The living processes of these tasks, by descent, session, or (re-parented to us) their environment."""
        leaders = {task.pid: task for task in tasks}
        keys = {task.key: task for task in tasks}
        owners: dict[int, Task | None] = {}
        table = processes()

        def owner(pid: int) -> Task | None:
            if pid in leaders:
                return leaders[pid]
            if pid not in table:
                return None
            if pid not in owners:
                owners[pid] = None  # a cycle cannot be, but the table is no snapshot
                parent, session, group = table[pid]
                found = leaders.get(session) or leaders.get(group) or owner(parent)
                if found is None and parent == os.getpid() and pid not in self.by_pid:
                    found = keys.get(mark_of(pid, looks=20) or "")
                owners[pid] = found
            return owners[pid]

        return [(pid, task) for pid in table if (task := owner(pid)) is not None]

    def _ring(self) -> None:
        """Deadlines that have come."""
        while self.clocks and self.clocks[0][0] <= time.time():
            _, n, what = heapq.heappop(self.clocks)
            task = self.tasks.get(n)
            if task is None:
                continue
            if what == "kill":
                self._signal([task], signal.SIGKILL)
                continue
            words = "its deadline_time came" if what == "deadline" else f"its WALLCLOCK_TIME is {task.order.seconds} s"
            if task.stager:
                task.why, task.words = "timeout", words
                kill(task.stager, signal.SIGKILL)
                continue
            if not task.pid:
                self._finish_unstarted(task, "timeout", words)
                continue
            task.why, task.words = "timeout", words
            self._signal([task], signal.SIGTERM)
            heapq.heappush(self.clocks, (time.time() + LIMIT_GRACE, n, "kill"))

    def _end(self, words: str) -> None:
        """Begin to end everything that was ever started here."""
        if self.ending:
            return
        self.ending = True
        self._empty_queue(words)
        for task in self.tasks.values():
            task.why, task.words = task.why or "cancelled", task.words or words
        self.kill_at = time.monotonic() + TERM_GRACE
        self._signal_all(signal.SIGTERM)
        self._signal_all(signal.SIGCONT)

    def _empty_queue(self, words: str) -> None:
        while self.pending:
            task = self.pending.popleft()
            if task.n in self.tasks:
                self._finish_unstarted(task, "cancelled", words)

    def _end_everything(self) -> None:
        if time.monotonic() >= self.kill_at:
            self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: int) -> None:
        for task in list(self.by_pid.values()):
            kill_group(task.pid, number)
        for pid in descendants(os.getpid()):
            kill(pid, number)

    @staticmethod
    def _has_children() -> bool:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    # -- telling --

    def _soon(self) -> None:
        if not (self.starts or self.ends or self.states):
            self.oldest = time.monotonic()

    def _tell(self, *, now: bool = False) -> None:
        """Send what happened: ends at once unless more are coming, starts a moment later."""
        count = len(self.starts) + len(self.ends) + len(self.states)
        if not count:
            return
        due = now or count >= TELL_BATCH or time.monotonic() - self.oldest >= TELL_DELAY
        if not due and (self.pending or not (self.ends or self.states)):
            return
        message = ["tell", self.starts, self.ends, self.states]
        self._note(message)
        for connection in list(self.connections):
            self._say(connection, message)
        self.starts, self.ends, self.states = [], [], []

    def _note(self, message: list[Any]) -> None:
        """Write down; what a full disk does not take now comes before the next message, so that lines stay whole."""
        if self.journal >= 0:
            self.unwritten += encode(message).encode() + b"\n"
            self._write()

    def _write(self) -> None:
        try:
            while self.unwritten:
                del self.unwritten[: os.write(self.journal, self.unwritten)]
        except OSError as error:  # a full disk must not end the keeper
            complain(f"wfl keeper: cannot write its journal: {error}")

    def _leave(self) -> None:
        self._write()
        for connection in self.connections:
            connection.sock.settimeout(1)
            try:
                connection.sock.sendall(connection.outbox)
            except OSError:
                continue
        if self.listener is not None:
            remove(f"{self.directory}/socket")
        if not self.keep:
            for name in os.listdir(self.directory):
                remove(f"{self.directory}/{name}")
            for place in (self.directory, os.path.dirname(self.directory)):
                try:
                    os.rmdir(place)
                except OSError:
                    return


_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND  # not close-on-exec: posix_spawn opens these in the child
_KEPT = _APPEND | os.O_TRUNC


def fork_exec(order: Order, env: dict[bytes, bytes], actions: list[tuple[Any, ...]]) -> int:
    """posix_spawn for what posix_spawn cannot do: resource limits and niceness. Errors arrive through a pipe."""
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid == 0:
        try:
            child_defaults()
            os.setsid()
            for limit in order.limits:
                set_limit(*limit)
            if order.nice is not None:
                os.setpriority(os.PRIO_PROCESS, 0, order.nice)
            for action in actions:
                do_file_action(action)
            os.execve(order.path, order.argv, env)
        except OSError as error:
            os.write(writer, f"{error.errno} {error.strerror}".encode())
        except BaseException as error:  # noqa: BLE001 - the parent raises it
            os.write(writer, f"0 {error}".encode())
        os._exit(127)
    os.close(writer)
    with open(reader) as report:
        problem = report.read()
    if problem:
        os.waitpid(pid, 0)
        code, _, words = problem.partition(" ")
        raise ChildRefusedError(int(code), words or os.strerror(int(code)))
    return pid


def complain(words: str) -> None:
    """Write to the keeper's log, if its disk is not full."""
    with contextlib.suppress(OSError):
        print(words, file=sys.stderr)  # noqa: T201 - its log


def decode(line: bytearray) -> list[Any] | None:
    """One message. What an interrupted program sent by half is no JSON, and was never meant."""
    try:
        message: list[Any] = parse(line.decode())
    except ValueError:
        return None
    return message


def set_limit(number: int, soft: int, hard: int, name: str) -> None:
    """One resource limit; a refusal says which."""
    try:
        resource.setrlimit(number, (soft, hard))
    except (OSError, ValueError) as error:
        raise OSError(errno.EINVAL, f"resource limit {name} cannot be set to {soft}: {error}") from error


def as_bytes(env: dict[str, str]) -> dict[bytes, bytes]:
    """As the system keeps it: encoded once, not for every task."""
    return {os.fsencode(name): os.fsencode(value) for name, value in env.items()}


def do_file_action(action: tuple[Any, ...]) -> None:
    """One file action of posix_spawn, by hand."""
    kind, *rest = action
    if kind == os.POSIX_SPAWN_DUP2:
        os.dup2(rest[0], rest[1])
        return
    target, path, flags, mode = rest
    fd = os.open(path, flags, mode)
    if fd == target:
        os.set_inheritable(fd, True)  # noqa: FBT003
        return
    os.dup2(fd, target)
    os.close(fd)


def child_defaults() -> None:
    """A forked child of the keeper takes signals as any process does."""
    signal.set_wakeup_fd(-1)
    for number in DEFAULTS:
        try:
            signal.signal(number, signal.SIG_DFL)
        except OSError:
            continue


def copy(files: dict[str, str], directory: str, note: str) -> int:
    """Copy source to target for each; the first failure goes into the note, and the return value is not 0."""
    import shutil

    target = source = ""
    try:
        os.chdir(directory)
        for target, source in files.items():
            if os.path.dirname(target):
                os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.isdir(source):
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target)
    except OSError as error:
        if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # of a directory: all that failed
            source, target, why = error.args[0][0]
        else:
            why = error.strerror or str(error)
        with open(note, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"cannot copy {source} to {target}: {why}")
        return 1
    return 0


def explain(task: Task, error: OSError) -> str:
    """What could not be had, by its path: the system names only the program, whatever was missing."""
    order = task.order
    if not os.path.isdir(order.cwd):
        return f"working_directory {order.cwd} is not a directory that can be entered: {error.strerror}"
    if isinstance(order.inp, str) and not os.access(order.inp, os.R_OK):
        return f"input_path {order.inp} cannot be read: {error.strerror}"
    for name, target in (("output_path", order.out), ("error_path", order.err)):
        if isinstance(target, str):
            try:
                os.close(os.open(target, _APPEND, 0o666))
            except OSError as problem:
                return f"{name} {target} cannot be written: {problem.strerror}"
    return f"cannot start {order.path}: {error.strerror}"


def unused(path: str) -> bool:
    """Whether this file is empty and no process has it open for writing (a write lease on it is granted)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)  # given back when the file is closed
        return not os.fstat(fd).st_size
    except (OSError, AttributeError):
        return False
    finally:
        os.close(fd)


def processes() -> dict[int, tuple[int, int, int]]:
    """Every living process: pid -> (parent, session, process group). Empty where there is no /proc."""
    table: dict[int, tuple[int, int, int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent, group, session = file.read().rpartition(b")")[2].split(None, 4)[:4]
            except (OSError, ValueError):
                continue
            if state not in (b"Z", b"X"):
                table[int(name)] = (int(parent), int(session), int(group))
    return table


def descendants(root: int) -> list[int]:
    """All living processes below this one."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _, _) in processes().items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def mark_of(pid: int, looks: int = 1) -> str | None:
    """The task that a process belongs to, as its environment tells.

    In the middle of execve(2) a process has neither environment nor arguments: it is worth another look then (but
    kernel threads never have them). Arguments alone prove nothing, as they may have come between the two reads.
    """
    entries: list[bytes] = []
    try:
        for look in range(looks):
            if look:
                time.sleep(0.001)
            with open(f"/proc/{pid}/environ", "rb") as environ, open(f"/proc/{pid}/cmdline", "rb") as cmdline:
                entries, arguments = environ.read().split(b"\0"), cmdline.read()
            if entries != [b""] or (arguments and look >= SETTLED):
                break
    except OSError:
        return None
    return next((os.fsdecode(entry[8:]) for entry in entries if entry.startswith(b"WFL_KEY=")), None)


def start_ticks(pid: int | str) -> int | None:
    """When a process started, in clock ticks since boot: with the pid, its name for ever (proc(5), field 22)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def boot_id() -> str:
    """Which boot of this machine this is."""
    return read_text("/proc/sys/kernel/random/boot_id") or ""


def peak_kib(usage: Any) -> int:
    """Peak resident memory in KiB (macOS counts bytes)."""
    return int(usage.ru_maxrss // 1024 if sys.platform == "darwin" else usage.ru_maxrss)


def kill(pid: int, number: int) -> None:
    """Signal one process that may be gone or somebody else's."""
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def kill_group(pid: int, number: int) -> None:
    """Signal a process group that may be gone."""
    if pid > 1:
        with contextlib.suppress(OSError):
            os.killpg(pid, number)


def read_text(path: str) -> str | None:
    """A small file's text, None without the file."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def remove(path: str) -> None:
    """Remove a file that may be gone."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def become_subreaper() -> None:
    """Orphans of tasks come to us, not to init (prctl(2), PR_SET_CHILD_SUBREAPER = 36)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def main(arguments: list[str]) -> None:
    """Arguments: the socket's descriptor, the program's pid, the directory, whether to detach, and the descriptor of
    the socket on which programs that come back are awaited, if records are kept at all.
    """
    fd, program, directory, detach, listening = arguments
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the program's mask came along
    become_subreaper()
    sock = socket.socket(fileno=int(fd))
    sock.set_inheritable(False)
    listener = socket.socket(fileno=int(listening)) if listening else None
    if listener is not None:
        listener.set_inheritable(False)
    Keeper(sock, int(program), directory, detach=detach == "1", listener=listener).run()

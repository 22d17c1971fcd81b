"""Processes as an execution system: templates go to keepers, what keepers tell becomes facts for the ledger."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfl.backend import Action, Answer, Backend, Known, Limits, Report, Stream, Submission, ended
from wfl.contexts import checks, helper
from wfl.contexts.process import keeper, launch
from wfl.contexts.process.link import PATIENCE, Link
from wfl.drmaa2 import Capability, FrozenDict, JobInfo, JobState, JobTemplate, fact
from wfl.errors import (
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidSessionError,
    InvalidStateError,
    SessionManagementError,
    UnsupportedOperationError,
    WflError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

log = logging.getLogger("wfl")

KEEPERS = min(4, os.cpu_count() or 1)
"""A keeper starts about 1,700 processes a second on one core; more are started as load asks for them."""
BUSY = 64
"""Tasks that one keeper has in hand before another is started beside it."""
TIDY_AGE = 60.0
"""Seconds without news after which a keeper's directory that nobody needs is removed."""
DISCARDED = "/dev/null"
INHERIT = "inherit_environment"


class _Process:
    """What is known here of one task: which keeper has it, under which number, and where its output is."""

    __slots__ = ("ended", "err", "id", "link", "n", "out", "paths", "pid", "pinned", "ticks")

    def __init__(self, id: str, link: Link | None, n: int, paths: _Paths) -> None:
        self.id, self.link, self.n, self.paths = id, link, n, paths
        self.pid = 0
        self.ticks: int | None = None
        self.out: int | None = None
        self.err: int | None = None
        self.ended = self.pinned = False


class _Paths:
    """Where output goes for all tasks of one order: explicit paths, or None for files kept by number."""

    __slots__ = ("directory", "err", "join", "out")

    def __init__(self, directory: Path, cwd: str, out: str | None, err: str | None, *, join: bool) -> None:
        self.directory = directory
        self.out = out and os.path.join(cwd, out)
        self.err = err and os.path.join(cwd, err)
        self.join = join


class ProcessBackend(Backend):
    """One session's processes. One thread reads what all keepers tell; submitting is a message to one of them."""

    name = "process"
    capabilities = frozenset(
        {
            Capability.SUSPEND,
            Capability.TERMINATE,
            Capability.OUTPUT,
            Capability.STREAM,
            Capability.JT_STAGING,
            Capability.JT_DEADLINE,
            Capability.DEADLINE,
            Capability.REATTACH,
            Capability.DETACH,
            Capability.WALLCLOCK_LIMIT,
            Capability.RUSAGE,
            Capability.PEAK_MEMORY,
            Capability.RT_MACHINEOS,
            Capability.RT_MACHINEARCH,
        }
    )
    fields = launch.FIELDS
    extensions = frozenset({INHERIT})
    limits = Limits()

    def __init__(self, *, detach: bool = False, inherit_environment: bool = True) -> None:
        self._detach, self._inherit = detach, inherit_environment
        self._lock = threading.Lock()
        self._finding = threading.Lock()
        self._numbers = itertools.count(1)
        self._turn = itertools.count()
        self._names = itertools.count(1)
        self._links: list[Link] = []
        self._tasks: dict[Link, dict[int, _Process]] = {}
        self._processes: dict[str, _Process] = {}
        self._selector = selectors.DefaultSelector()
        self._watcher: threading.Thread | None = None
        self._bell: tuple[socket.socket, socket.socket] | None = None
        self._env: tuple[int, dict[str, str]] = (0, {})
        self._raw_env: dict[bytes, bytes] | None = None
        self._closed = False

    def open(self, report: Report, directory: Path | None) -> None:
        """Nothing is started before the first task; the directory is made then, too."""
        self._report = report
        self._keep = directory is not None
        self._directory = directory
        self._opened = time.time()
        self._machines = (socket.gethostname(),)

    # -- submitting --

    def check(self, template: JobTemplate) -> None:
        """Refuse what this host cannot do, by field and path."""
        super().check(template)
        self._order(template)

    def _order(self, template: JobTemplate) -> dict[str, Any]:
        env = self._environment()[1] if self._inherits(template) else {}
        return launch.order(template, {**env, **template.job_environment} if template.job_environment else env)

    def _inherits(self, template: JobTemplate) -> bool:
        text = template.extensions.get(INHERIT) if template.extensions else None
        if text is None:
            return self._inherit
        if text not in ("true", "false"):
            raise InvalidArgumentError(f"extensions[{INHERIT!r}] is {text!r}, expected 'true' or 'false'")
        return text == "true"

    def _environment(self) -> tuple[int, dict[str, str]]:
        """The program's environment now; a change since the last look gives it a new number."""
        raw = getattr(os.environ, "_data", None)  # the bytes below os.environ: looking there costs 1 µs, not 30
        if raw is None or raw != self._raw_env:
            with self._lock:
                self._raw_env = dict(raw or ())
                self._env = (self._env[0] + 1, helper.child_environment())
        return self._env

    def submit(self, submissions: Sequence[Submission]) -> Sequence[str | WflError]:
        """Hand tasks to keepers; tasks that share a template travel in one message, split among the keepers."""
        outcomes: list[str | WflError] = []
        for template, group in itertools.groupby(submissions, key=lambda submission: submission.template):
            tasks = list(group)
            try:
                super().check(template)
                order = self._order(template)
            except WflError as error:
                outcomes += [error] * len(tasks)
                continue
            self._hand_out(template, order, tasks)
            outcomes += [task.key for task in tasks]
        return outcomes

    def _hand_out(self, template: JobTemplate, order: dict[str, Any], tasks: list[Submission]) -> None:
        links = self._own_links(len(tasks))
        env = self._env if self._inherits(template) else (0, {})
        order["add"] = {**(template.job_environment or {}), "JOB_ID": tasks[0].job_id}
        start = next(self._turn)
        for turn, link in enumerate(links):
            share = tasks[(turn + start) % len(links) :: len(links)]
            if share:
                self._send(link, dict(order), share, env)

    def _send(
        self, link: Link, order: dict[str, Any], tasks: list[Submission], env: tuple[int, dict[str, str]]
    ) -> None:
        paths = _Paths(link.directory, order["cwd"], order["out"], order["err"], join=order["join"])
        rows: list[tuple[int, str, dict[str, str]]] = []
        with self._lock:
            known = self._tasks[link]
            for task in tasks:
                n = next(self._numbers)
                known[n] = self._processes[task.key] = _Process(task.key, link, n, paths)
                extra = {"JOB_ID": task.job_id} if task.index is None else {"TASK_ID": str(task.index)}
                rows.append((n, task.key, extra))
        fds = _pass_descriptors(order)
        try:
            link.spawn(order, rows, env, fds)
        except DrmCommunicationError:
            with self._lock:
                for n, key, _ in rows:
                    known.pop(n, None)
                    self._processes.pop(key, None)
            if not self._keep:
                _kill_marked({task.key for task in tasks})
            raise

    def _own_links(self, count: int) -> list[Link]:
        """The keepers to use: another one is started while there are few and they have much to do."""
        with self._lock:
            if self._closed:
                raise InvalidSessionError("the session is closed")
            own = [link for link in self._links if link.own and not link.closed.is_set()]
            wanted = max(1, len(own))
            if count > BUSY // 4 or (own and min(len(self._tasks[link]) for link in own) >= BUSY):
                wanted = KEEPERS if count > BUSY // 4 else len(own) + 1
            while len(own) < min(wanted, KEEPERS):
                try:
                    own.append(self._start_keeper())
                except SessionManagementError:
                    if not own:
                        raise
                    break  # the system gives no more for now: those that are there do it all
            if count > 1:
                return own
            return [min(own, key=lambda link: len(self._tasks[link]))]

    def _start_keeper(self) -> Link:
        if self._directory is None:
            try:
                self._directory = Path(tempfile.mkdtemp(prefix="wfl-"))
            except OSError as error:
                msg = f"cannot make a directory for output in {tempfile.gettempdir()} (see TMPDIR): {error.strerror}"
                raise SessionManagementError(msg) from error
        name = f"{os.getpid()}-{os.urandom(4).hex()}-{next(self._names)}"
        link = Link.start(self._directory / name, detach=self._detach, keep=self._keep)
        self._follow(link)
        return link

    def _follow(self, link: Link) -> None:
        """Listen to a keeper from now on."""
        self._tasks[link] = {}
        self._links.append(link)
        self._selector.register(link.sock, selectors.EVENT_READ, lambda: self._hear(link))
        self._start_watcher()

    # -- what keepers tell --

    def _start_watcher(self) -> None:
        if self._watcher is None:
            bell = self._bell = socket.socketpair()
            self._selector.register(bell[0], selectors.EVENT_READ, lambda: bell[0].recv(1))
            self._watcher = threading.Thread(target=self._watch, name="wfl-process", daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        """The watcher: survives everything but the end of the session."""
        while not (self._closed and all(link.closed.is_set() for link in self._links)):
            for key, _ in self._selector.select(0.5 if self._closed else None):
                try:
                    key.data()
                except Exception:
                    log.exception("process: the watcher goes on after this error")

    def _hear(self, link: Link) -> None:
        tasks = self._tasks[link]

        def tell(starts: list[Any], ends: list[Any], states: list[Any]) -> None:
            with self._lock:
                if link.missed is not None:
                    link.missed.append((starts, ends, states))
            self._told(tasks, starts, ends, states)

        if link.receive(tell):
            return
        self._selector.unregister(link.sock)
        link.sock.close()
        if link.process is not None and not link.goodbye:
            with contextlib.suppress(subprocess.TimeoutExpired):
                link.process.wait(1)  # it is on its way out
        with self._lock:
            still_reading = link.missed is not None  # who reads its journal sees to the rest
        if not (still_reading or link.goodbye):
            self._bereaved(link)

    def _told(self, tasks: dict[int, _Process], starts: list[Any], ends: list[Any], states: list[Any]) -> None:
        infos = []
        ended_now = {row[0] for row in ends} if starts and ends else ()
        for row in starts:
            if (process := tasks.get(row[0])) is not None:
                _, process.pid, process.ticks, _, process.out, process.err = row
                if row[0] not in ended_now:
                    infos.append(self._started(process, row[3]))
        infos += [
            JobInfo(id=tasks[n].id, state=JobState.SUSPENDED if suspended else JobState.RUNNING)
            for n, suspended in states
            if n in tasks
        ]
        for row in ends:
            if (process := tasks.pop(row[0], None)) is not None:
                infos.append(self._ended(process, row))
        self._report(infos)

    def _started(self, process: _Process, when: float) -> JobInfo:
        return fact(
            id=process.id,
            state=JobState.RUNNING,
            allocated_machines=self._machines,
            dispatch_time=datetime.fromtimestamp(when, UTC),
            slots=1,
        )

    def _ended(self, process: _Process, row: list[Any]) -> JobInfo:
        _, code, cpu, peak, started, finished, process.out, process.err, why, words = row
        process.ended = True
        more: dict[str, Any] = {"finish_time": datetime.fromtimestamp(finished, UTC), "annotation": words}
        if started is not None:
            more["dispatch_time"] = datetime.fromtimestamp(started, UTC)
            more["wallclock_time"] = timedelta(seconds=max(0.0, finished - started))
            more["cpu_time"] = timedelta(seconds=cpu)
            more["allocated_machines"] = self._machines
            more["slots"] = 1
            more["extensions"] = _peak(peak)
        if code is not None and code < 0:
            return ended(process.id, signal_name=_signal_name(-code), exit_status=128 - code, sub_state=why, **more)
        return ended(process.id, exit_status=code, sub_state=why, incomplete=why == "exited", **more)

    # -- control and output --

    def control(self, ids: Sequence[str], action: Action) -> dict[str, WflError]:
        """Signal the whole process trees, one message for all tasks of a keeper."""
        if action in (Action.HOLD, Action.RELEASE):
            return {id: UnsupportedOperationError("a process that was started cannot be held") for id in ids}
        failures: dict[str, WflError] = {}
        found: dict[Link, dict[int, _Process]] = {}
        for id in ids:
            process = self._processes.get(id)
            if process is None or process.ended:
                failures[id] = InvalidStateError(f"{id}: it has ended")
            elif process.link is None:
                if not _signal_orphan(process, action):
                    failures[id] = InvalidStateError(f"{id}: it has ended")
            else:
                found.setdefault(process.link, {})[process.n] = process
        for link, processes in found.items():
            try:
                refused = link.ask("control", action.value, list(processes))
            except DrmCommunicationError:
                if not all(process.ended for process in processes.values()):
                    raise
                refused = dict.fromkeys(processes, "it has ended")  # and with the last one its keeper
            for n, words in refused.items():
                id = processes[int(n)].id
                failures[id] = InvalidStateError(f"{id}: cannot {action.value}: {words}")
        return failures

    def read(self, id: str, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:
        """From the file that the task writes to: its own path, or the keeper's numbered file."""
        process = self._processes.get(id)
        if process is None:
            raise InvalidStateError(f"{id}: its output was removed (reaped), or belongs to another store")
        paths = process.paths
        if stream == "stderr" and paths.join:
            return b"", True
        path = paths.out if stream == "stdout" else paths.err
        if path is None:
            pinned = self._pin(process)
            number = process.out if stream == "stdout" else process.err
            if number is None or not pinned:
                return b"", True
            return _read(f"{paths.directory}/{number}", offset, limit, f"the {stream} of {id}")
        if path == DISCARDED or path in checks.PASSED:
            what = "discarded" if path == DISCARDED else "passed through"
            raise UnsupportedOperationError(f"{id}: {stream} was {what} ({path}); leave the path unset to keep it")
        return _read(path, offset, limit, f"the {stream} of {id}" if process.pid else "")

    def _pin(self, process: _Process) -> bool:
        """Ask where a running task writes; from then on that file is not used again for another task.

        False: it has just ended, and may have given its file back; the news of that is on its way.
        """
        if process.pinned or process.ended or process.link is None:
            return True
        try:
            numbers = process.link.ask("pin", process.n)
        except DrmCommunicationError:
            return True  # no keeper, so nothing is used again
        if numbers is None:
            return process.ended
        if not process.ended:
            process.out, process.err = numbers
            process.pinned = True
        return True

    def reap(self, ids: Sequence[str]) -> None:
        """Remove kept output."""
        for id in ids:
            process = self._processes.pop(id, None)
            if process is not None:
                for number in (process.out, process.err):
                    if number is not None:
                        keeper.remove(f"{process.paths.directory}/{number}")

    def ask(self, ids: Sequence[str]) -> Answer:
        """Only what is gone: everything else is told."""
        return Answer(gone=[id for id in ids if id not in self._processes])

    # -- keepers that died, programs that came back --

    def _bereaved(self, link: Link) -> None:
        """A keeper is gone without a goodbye: what it kept is ended (or, detached, followed by pid)."""
        tasks = self._tasks[link]
        lost = list(tasks.values())
        if not lost:
            return
        words = link.obituary()
        log.error("process: %s; %d tasks were in its hands", words, len(lost))
        if not (self._detach and self._keep) and link.own:
            _kill_marked({process.id for process in lost})
        tasks.clear()
        self._report([self._orphaned(process, words) for process in lost])

    def _orphaned(self, process: _Process, words: str) -> JobInfo:
        """A task without a keeper: if it lives its end will be seen, but nobody can learn how it ended."""
        process.link = None
        if process.ticks is not None and keeper.start_ticks(process.pid) == process.ticks:
            try:
                pidfd = os.pidfd_open(process.pid)
            except (OSError, AttributeError):
                pass
            else:
                self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._orphan_ended(process, pidfd, words))
                self._start_watcher()
                return JobInfo(id=process.id, state=JobState.RUNNING)
        return self._lost(process, words)

    def _orphan_ended(self, process: _Process, pidfd: int, words: str) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        self._report([self._lost(process, words, finish_time=datetime.now(UTC))])

    @staticmethod
    def _lost(process: _Process, words: str, **more: Any) -> JobInfo:
        process.ended = True
        return ended(process.id, sub_state="lost", annotation=f"how it ended is not known: {words}", **more)

    def find(self, known: Sequence[Known]) -> Answer:
        """Read the journals of all keepers of this store and follow those that live; a key in none never started."""
        with self._finding:  # two at once would both take what is told meanwhile for their own
            if self._closed:
                raise DrmCommunicationError("the session is closed")
            return self._find(known)

    def _find(self, known: Sequence[Known]) -> Answer:
        infos, unsent = self._find_own([task.key for task in known])
        wanted = {task.key: task for task in known if task.key not in self._processes}
        mine = {link.directory for link in self._links if link.own and not link.closed.is_set()}
        all_answered = True
        for directory in self._places() if wanted else ():
            if directory not in mine:
                try:
                    infos += self._revisit(directory, wanted)
                except DrmCommunicationError as error:
                    all_answered = False
                    if not self._closed:
                        log.warning("process: %s: %s", directory.name, error)
        missing = [key for key in wanted if key not in self._processes]
        return Answer(infos=infos, gone=[*unsent, *missing] if all_answered else unsent)

    def _places(self) -> list[Path]:
        """The directories of all keepers that this session ever had, where it has a store."""
        if self._directory is None or not self._keep:
            return []
        return [place for place in sorted(self._directory.iterdir()) if place.is_dir()]

    def _find_own(self, keys: Sequence[str]) -> tuple[list[JobInfo], list[str]]:
        """Of tasks of our own keepers: those that are there, and those that an interrupted message never named."""
        by_link: dict[Link, dict[int, str]] = {}
        infos = []
        for key in keys:
            process = self._processes.get(key)
            if process is not None and process.link is not None and process.link.own and not process.ended:
                by_link.setdefault(process.link, {})[process.n] = key
            elif process is not None:
                infos.append(JobInfo(id=key))
        unsent: list[str] = []
        for link, numbers in by_link.items():
            there = set(link.ask("known", list(numbers)))
            for n, key in numbers.items():
                if n in there or self._processes[key].ended:
                    infos.append(JobInfo(id=key))
                else:
                    self._tasks[link].pop(n, None)
                    self._processes.pop(key, None)
                    unsent.append(key)
        return infos, unsent

    def tidy(self, keys: Collection[str]) -> None:
        """Remove what keepers of the past left, all of whose tasks were reaped.

        What is younger than this program stays: a task in it may be one that was submitted after the keys were read.
        """
        used = {process.paths.directory for process in self._processes.values()}
        used |= {link.directory for link in self._links}
        for directory in self._places():
            if directory not in used:
                with contextlib.suppress(OSError, DrmCommunicationError):  # another program was faster, perhaps
                    self._tidy(directory, set(keys))

    def _tidy(self, directory: Path, keys: set[str]) -> None:
        journal = directory / "journal"
        last_news = (journal if journal.exists() else directory).stat().st_mtime
        if last_news > self._opened - TIDY_AGE or any(key in keys for key in _keys_in(directory)):
            return
        link = Link.attach(directory)
        if link is None:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            link.sock.close()

    def _revisit(self, directory: Path, wanted: Mapping[str, Known]) -> list[JobInfo]:
        """One keeper's tasks: first connect, then read, so that nothing falls between journal and news."""
        with self._lock:
            if self._closed:
                raise DrmCommunicationError("the session is closed")
            link = next(
                (link for link in self._links if link.directory == directory and not link.closed.is_set()),
                None,
            )
            if link is None and (link := Link.attach(directory)) is not None:
                self._follow(link)
        if link is not None:
            link.missed = []  # news from now on, until the journal is read and its tasks are known
            try:
                link.ask("attach")
                return self._take_in(_Journal(directory, wanted), link)
            except DrmCommunicationError:
                if link.goodbye or not link.closed.is_set():
                    raise  # no answer says nothing
            finally:
                self._catch_up(link)
        return self._take_in(_Journal(directory, wanted), None)

    def _take_in(self, journal: _Journal, link: Link | None) -> list[JobInfo]:
        """Know the tasks of a journal from now on; what it says of them."""
        with self._lock:
            self._processes.update({process.id: process for process in journal.processes.values()})
            if link is not None:
                for process in journal.unended():
                    process.link = link
                    self._tasks[link][process.n] = process
        infos = [
            self._started(journal.processes[n], row[3]) for n, row in journal.starts.items() if n not in journal.ends
        ]
        infos += [self._ended(journal.processes[n], row) for n, row in journal.ends.items()]
        if link is None:
            infos += [self._orphaned(process, journal.epitaph()) for process in journal.unended()]
        return infos

    def _catch_up(self, link: Link) -> None:
        """Take in what was told while the journal was read, whose tasks were not known then."""
        while link.missed is not None:
            with self._lock:
                news, link.missed = link.missed, [] if link.missed else None
            for message in news:
                self._told(self._tasks[link], *message)
        if link.closed.is_set() and not link.goodbye:
            self._bereaved(link)

    # -- the end --

    def close(self, *, end: bool) -> None:
        """Say goodbye to the keepers; with `end`, wait until they have ended everything (two seconds at most)."""
        with self._lock:
            self._closed = True
            links = list(self._links)
        if self._bell is not None:
            self._bell[1].send(b"!")  # wakes a watcher that has nobody left to listen to
        for link in links:
            link.bye(end=end)
        for link in links:
            if end:
                self._see_out(link)
        if end and not self._keep and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)  # a keeper that was killed could not
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join(PATIENCE)
        with self._finding:  # whoever is looking for something has seen the goodbye
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, int):
                    os.close(key.fileobj)  # the pidfd of a process without a keeper
            for end_of_bell in self._bell or ():
                end_of_bell.close()
            self._selector.close()

    def _see_out(self, link: Link) -> None:
        """Wait for the end of a keeper of our own; one that does not end is killed, and its tasks with it."""
        if link.process is None:
            return
        if not link.closed.wait(PATIENCE):
            log.error("process: a keeper did not end its tasks within %g s; it is killed, and they are", PATIENCE)
            link.process.kill()
            _kill_marked({process.id for process in list(self._tasks[link].values())})
        link.process.wait()

    def abandon(self) -> None:
        """In a forked child: the socket must close with the program that owns it."""
        for link in self._links:
            if link.sock.fileno() >= 0:
                os.close(link.sock.detach())
            if link.process is not None:
                link.process.returncode = 0


class _Journal:
    """What one keeper wrote down, as far as it is wanted: the last word on how its tasks ended."""

    def __init__(self, directory: Path, wanted: Mapping[str, Known]) -> None:
        self.directory = directory
        self.processes: dict[int, _Process] = {}
        self.starts: dict[int, list[Any]] = {}
        self.ends: dict[int, list[Any]] = {}
        self._boot: str | None = None
        self._pid = 0
        for message in _messages(directory / "journal"):
            self._read(message, wanted)

    def _read(self, message: list[Any], wanted: Mapping[str, Known]) -> None:
        if message[0] == "keeper":
            _, self._pid, _, self._boot = message
        elif message[0] == "take":
            _, rows, cwd = message
            for n, key in rows:
                if (task := wanted.get(key)) is not None:
                    self.processes[n] = _Process(key, None, n, _paths(self.directory, cwd, task.template))
        else:
            for row in message[1]:
                if (process := self.processes.get(row[0])) is not None:
                    self.starts[row[0]] = row
                    _, process.pid, process.ticks, _, process.out, process.err = row
                    if self._boot != keeper.boot_id():
                        process.ticks = None
            self.ends.update((row[0], row) for row in message[2] if row[0] in self.processes)

    def unended(self) -> list[_Process]:
        return [process for n, process in self.processes.items() if n not in self.ends]

    def epitaph(self) -> str:
        """Why nobody is there to say how these tasks ended."""
        if self._boot != keeper.boot_id():
            return "this machine was restarted meanwhile"
        return f"its keeper (process {self._pid}) is gone; somebody may have killed it"


def _messages(journal: Path) -> Iterator[list[Any]]:
    """The lines of a journal; none where the program was killed before its keeper came up."""
    try:
        lines = journal.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return
    for line in filter(None, lines):
        try:
            yield json.loads(line)
        except ValueError:
            _complain_of(journal)


@cache
def _complain_of(journal: Path) -> None:
    """Say once that a journal is damaged."""
    log.warning("process: %s has damaged lines (a full disk? a power cut?), which are passed over", journal)


def _keys_in(directory: Path) -> Iterator[str]:
    """The keys of all tasks that a keeper took."""
    for message in _messages(directory / "journal"):
        if message[0] == "take":
            yield from (key for _, key in message[1])


def _paths(directory: Path, cwd: str, template: JobTemplate) -> _Paths:
    out, err = template.output_path or None, template.error_path or None
    join = bool(template.join_files) or (out is not None and out == err)
    return _Paths(directory, cwd, out, None if join else err, join=join)


def _pass_descriptors(order: dict[str, Any]) -> list[int]:
    """Replace the program's own /dev/stdin, /dev/stdout and /dev/stderr by descriptors that go along."""
    fds: list[int] = []
    for name in ("in", "out", "err"):
        fd = checks.PASSED.get(order.get(name) or "")
        if fd is not None:
            order[name] = len(fds)
            fds.append(fd)
    if fds:
        order["fds"] = len(fds)
    return fds


def _read(path: str, offset: int, limit: int, what: str) -> tuple[bytes, bool]:
    """`what`: whose file it is; "" for one that may not be there yet."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if what:
            words = f"{what} is gone: another program reaped the task, or somebody removed or renamed {path}"
            raise InvalidStateError(words) from error
        return b"", True
    except OSError as error:
        raise InvalidStateError(f"cannot read {path}: {error.strerror}") from error
    try:
        data = os.pread(fd, limit, offset)
    finally:
        os.close(fd)
    return data, len(data) < limit


@lru_cache(maxsize=1024)
def _peak(kib: int) -> FrozenDict[str, str]:
    """One for all tasks of the same peak: a dict of its own would be a fifth of what is kept of a task."""
    return FrozenDict(ru_maxrss=str(kib))


@cache
def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def _signal_orphan(process: _Process, action: Action) -> bool:
    """Signal a task whose keeper is gone, if it is still the same process."""
    if keeper.start_ticks(process.pid) != process.ticks:
        return False
    keeper.kill_group(process.pid, keeper.SIGNALS[action.value])
    return True


def _kill_marked(keys: set[str]) -> None:
    """End all processes that carry one of these keys in their environment."""
    for pid in keeper.processes():
        if keeper.mark_of(pid) in keys:
            keeper.kill(pid, signal.SIGKILL)

"""Hosts over SSH as an execution system: each host has an attendant, which starts jobs and tells of their ends.

A job is known by its directory on a host, and lives on when the connection is lost: after each new connection all of
them are looked at. Files of the template are on the caller's side; what they need is copied before and after.
"""

from __future__ import annotations

import logging
import os
import posixpath
import threading
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as LateError
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import paramiko

from wfl.backend import Action, Answer, Backend, Known, Limits, Submission, ended
from wfl.contexts import checks, host
from wfl.contexts.guard import Guard
from wfl.contexts.posix import check_words
from wfl.contexts.ssh import attendant, transfer
from wfl.contexts.ssh.ending import watch
from wfl.contexts.ssh.line import Line, Speaks
from wfl.drmaa2 import Capability, JobInfo, JobState, fact
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidSessionError,
    InvalidStateError,
    UnsupportedOperationError,
    WflError,
)
from wfl.threads import Pool, in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from wfl.backend import Outcome, Report, Stream
    from wfl.contexts.ssh.login import Login
    from wfl.contexts.undertaker import Undertaker
    from wfl.drmaa2 import JobTemplate

log = logging.getLogger("wfl")

FIELDS = frozenset(
    {
        "remote_command", "args", "submit_as_hold", "job_environment", "working_directory", "job_name", "input_path",
        "output_path", "error_path", "join_files", "min_slots", "candidate_machines", "start_time", "deadline_time",
        "stage_in_files", "stage_out_files", "resource_limits", "priority", "machine_os", "machine_arch",
    }
)  # fmt: skip
"""Template fields that mean something to a host."""
LOWEST, HIGHEST = -19, 20
"""Priorities: niceness the other way round."""
REQUESTS = 8
"""Requests to hosts at once, and threads that copy files."""
ASKED = 200
"""Jobs in one question."""
RECONCILE = 60.0
"""Seconds between two looks at all jobs of a host: what waited for one may have been killed, and tells nothing."""
BEATS = 15.0
"""Seconds at most between two signs of life."""
NEVER = 10.0
"""Seconds after which a job that was ordered and has not begun is taken to never begin."""
AGAIN = 0.05
TRIES = 60
"""Seconds between two attempts to reach a job's process, which may just be made, and how many there are."""
SLOW = 3.0
"""Seconds after which a host that has not answered yet keeps no job waiting that others may take."""
STARTS = 32
"""Requests at once by which hosts are given jobs that waited for room; more than there are threads to copy for them."""
COPIES = 5
"""Attempts to bring back the files of a job that has ended before it ends without them."""
_SIGNALS = {Action.SUSPEND: "STOP", Action.RESUME: "CONT", Action.TERMINATE: "TERM", Action.KILL: "KILL"}
_AFTER = {Action.SUSPEND: JobState.SUSPENDED, Action.RESUME: JobState.RUNNING}


class _Job:
    """What is known here of one job."""

    __slots__ = (
        "ended", "finishing", "holds", "key", "line", "missed", "own", "passed_on", "sent", "started", "template",
        "unsure",
    )  # fmt: skip

    def __init__(self, key: str, template: JobTemplate, line: Line | None, *, own: bool) -> None:
        self.key, self.template, self.line, self.own = key, template, line, own
        self.sent = not own  # its orders may have arrived
        self.started = not own  # the host has taken it
        self.ended = self.finishing = False
        self.unsure = False  # whether its orders have arrived
        self.holds: Line | None = None  # where its slots are taken
        self.missed = 0.0  # since when it should have begun
        self.passed_on: dict[Stream, int] = {}  # bytes of its output that are written

    @property
    def slots(self) -> int:
        return self.template.min_slots or 1


class SshBackend(Backend):
    """One session's jobs on a pool of hosts."""

    name = "ssh"
    capabilities = frozenset(
        {
            Capability.SUSPEND, Capability.TERMINATE, Capability.OUTPUT, Capability.STREAM, Capability.JT_STAGING,
            Capability.REATTACH, Capability.DETACH, Capability.RUSAGE, Capability.RT_MACHINEOS,
            Capability.RT_MACHINEARCH,
        }
    )  # fmt: skip
    fields = FIELDS
    limits = Limits(requests=REQUESTS, submissions=attendant.TOGETHER)

    def __init__(
        self, logins: Sequence[Login], slots: Mapping[str, int | None], speaks: Speaks, *, lease: float, detach: bool
    ) -> None:
        self._slots, self._speaks, self._detach = slots, speaks, detach
        self._lease = 0 if detach else max(1, round(lease))
        pause = min(BEATS, self._lease / 4) if self._lease else BEATS
        told: dict[str, Any] = {"tell": self._hear, "back": self._back, "away": self._away, "beat": self._beat}
        self._logins = list(logins)
        self._lines = [Line(login, speaks, pause=pause, **told) for login in logins]
        self._jobs: dict[str, _Job] = {}
        self._waiting: deque[Submission] = deque()
        self._leased: set[Line] = set()  # hosts that wait for signs of life
        self._used: dict[Line, int] = dict.fromkeys(self._lines, 0)
        self._out: set[Line] = set()  # hosts that another attempt is made to reach
        self._attempts: dict[Line, tuple[Future[attendant.Hello], float]] = {}
        self._looked: dict[Line, float] = {}
        self._owner = attendant.NOBODY if detach else os.urandom(8).hex()
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._guard = Guard(self.name, "jobs on hosts", self._closed, None if detach else self._start_helper)
        self._pool, self._starts = Pool("wfl-ssh-work", REQUESTS), Pool("wfl-ssh-start", STARTS)
        self._keep = False

    def open(self, report: Report, directory: Path | None) -> None:
        """Nothing is contacted before the first job, as one of several hosts may be away."""
        self._report, self._keep = report, directory is not None

    # -- submitting --

    def resolve(self, template: JobTemplate) -> JobTemplate:
        """With the paths of this side absolute, whatever directory is gone to before they are used."""
        return checks.from_here(template)

    def check(self, template: JobTemplate) -> None:
        """Refuse by field what no host can do."""
        super().check(template)
        check_words(template)
        if template.priority is not None and not LOWEST <= template.priority <= HIGHEST:
            raise InvalidArgumentError(f"priority is {template.priority}; hosts have {LOWEST} to {HIGHEST}")
        checks.streams_here(template)
        checks.sources(template.stage_in_files or {})
        checks.targets(template.stage_out_files or {})
        self._candidates(template)

    def _candidates(self, template: JobTemplate) -> list[Line]:
        wanted = template.candidate_machines
        found = [line for line in self._lines if not wanted or wanted_here(line, wanted)]
        if not found:
            names = ", ".join(line.name for line in self._lines)
            raise InvalidArgumentError(f"candidate_machines are {', '.join(wanted or ())}; the hosts are {names}")
        most = max((size for line in found if (size := self._slots[line.name]) is not None), default=None)
        unlimited = any(self._slots[line.name] is None for line in found)
        if most is not None and not unlimited and (template.min_slots or 1) > most:
            raise InvalidArgumentError(f"min_slots is {template.min_slots}; no host has more than {most}")
        return found

    def submit(self, submissions: Sequence[Submission]) -> Sequence[Outcome]:
        """Each to a host that has room; those of one host in one request."""
        outcomes: dict[str, Outcome] = {}
        chosen: dict[Line, list[Submission]] = {}
        until = time.monotonic() + self._speaks.timeout
        for one in submissions:
            try:
                self.check(one.template)
                line = self._choose(one, until)
            except WflError as error:
                self._forget(one.key)
                outcomes[one.key] = error
                continue
            outcomes[one.key] = one.key
            if line is not None:
                chosen.setdefault(line, []).append(one)
        if [*map(len, chosen.values())] == [len(submissions)]:  # else what is known of others would be lost
            for line, some in chosen.items():
                with self._guard.on_its_way():
                    outcomes |= self._start(line, some)
        else:
            for told in in_threads(self._start_of_several, list(chosen.items()), REQUESTS, "wfl-ssh-start"):
                outcomes |= told
        return [outcomes[one.key] for one in submissions]

    def _choose(self, one: Submission, until: float, line: Line | None = None) -> Line | None:
        """A host with room, `line` or the least used; None where the job waits for room, or has been ended meanwhile.
        Raises where no host can be reached; until then there is hope for those that were there before.

        One that takes long to answer is passed over until it does, as long as others may.
        """
        candidates, slow = self._candidates(one.template), list[Line]()
        error: WflError | None = None
        tried = 0
        while True:
            if not candidates and not slow:
                candidates = self._wait_for_known(one, error, until)
            if not candidates:
                wait([self._attempt(other)[0] for other in slow], return_when=FIRST_COMPLETED)
                candidates, slow = slow, []
            line = line or self._take_or_wait(one, candidates)
            problem = line and self._problem(one.template, line)
            if line is None or problem is None:
                break
            candidates.remove(line)
            if isinstance(problem, WflError):
                error = problem
                self._try_again(line)
            else:
                slow.append(line)
                self._attempt_all(candidates)
            self._let_go(one.key)
            line, tried = None, tried + 1
        if line is not None and tried:
            self._move_up()  # to where this one held room
        return line

    def _problem(self, template: JobTemplate, line: Line) -> Exception | None:
        try:
            _check_machine(template, line.name, self._reach(line))
        except (LateError, WflError) as error:
            return error
        return None

    def _let_go(self, key: str) -> None:
        """Nothing is held for it anywhere until it is given room again."""
        with self._lock:
            if (job := self._jobs.get(key)) is not None:
                job.line = None
                self._hold(job, None)

    def _wait_for_known(self, one: Submission, error: WflError | None, until: float) -> list[Line]:
        """The hosts that were there before, as they may be again in a moment; raises the error where none was."""
        known = [line for line in self._candidates(one.template) if line.hello is not None]
        if isinstance(error, DrmCommunicationError) and known and (left := until - time.monotonic()) > 0:
            rest = min(line.attempts.rest for line in known)
            if not self._closed.wait(min(left, max(AGAIN, rest))):
                return known
        self._move_up()
        raise error or DrmCommunicationError("no host can be reached")

    def _reach(self, line: Line) -> attendant.Hello:
        """Raises LateError where that takes long; it is tried on, and what waits is told when it is there."""
        if line.up or line.attempts.rest:
            return line.connected()
        attempt, begun = self._attempt(line)
        return attempt.result(max(0.0, begun + SLOW - time.monotonic()))

    def _attempt(self, line: Line) -> tuple[Future[attendant.Hello], float]:
        """To connect, in a thread of its own, if there is none yet; and since when."""
        with self._lock:
            if line not in self._attempts:
                self._attempts[line] = Future(), time.monotonic()
                threading.Thread(target=self._try, args=(line,), name="wfl-ssh-try", daemon=True).start()
            return self._attempts[line]

    def _attempt_all(self, lines: Iterable[Line]) -> None:
        for line in lines:
            if not (line.up or line.attempts.rest):
                self._attempt(line)

    def _try(self, line: Line) -> None:
        attempt, begun = self._attempts[line]
        try:
            attempt.set_result(line.connected())
        except BaseException as error:  # noqa: BLE001 - raised by who waits
            attempt.set_exception(error)
        with self._lock:
            del self._attempts[line]
        if time.monotonic() - begun > SLOW:
            if line.up:
                self._move_up()
            else:
                self._try_again(line)

    def _take_or_wait(self, one: Submission, candidates: Sequence[Line]) -> Line | None:
        """Give the job room on one of these; None where there is none, and it waits, or where it has been ended."""
        with self._lock:
            job = self._jobs.setdefault(one.key, _Job(one.key, one.template, None, own=True))
            if job.ended or self._take(job, candidates):
                return job.line
            self._waiting.append(one)
        self._report([JobInfo(id=one.key, state=JobState.QUEUED)])
        return None

    def _take(self, job: _Job, candidates: Sequence[Line]) -> Line | None:
        """Room on one of these (with the lock held)."""
        free = [line for line in candidates if self._has_room(line, job.slots)]
        job.line = min(free, key=self._preference, default=None)
        self._hold(job, job.line)
        return job.line

    def _has_room(self, line: Line, slots: int) -> bool:
        size = self._slots[line.name]
        return size is None or self._used[line] + slots <= size

    def _preference(self, line: Line) -> tuple[bool, float]:
        away = line.attempts.failed is not None or line in self._attempts
        return away, self._used[line] / (self._slots[line.name] or 1)

    def _hold(self, job: _Job, line: Line | None) -> None:
        """Its slots are taken there, and nowhere else any more (with the lock held)."""
        if job.holds is not None:
            self._used[job.holds] -= job.slots
        job.holds = line
        if line is not None:
            self._used[line] += job.slots

    def _forget(self, key: str) -> None:
        with self._lock:
            job = self._jobs.pop(key, None)
            gives_room = job is not None and job.holds is not None
            if job is not None:
                self._hold(job, None)
        if gives_room:
            self._move_up()

    def _start_of_several(self, part: tuple[Line, Sequence[Submission]]) -> dict[str, Outcome]:
        """On one of several hosts: whether it takes them does not concern the others."""
        line, submissions = part
        try:
            with self._guard.on_its_way():
                return self._start(line, submissions)
        except DrmCommunicationError as error:
            keys = [one.key for one in submissions]
            self._settle_soon(line, keys, error)
            return {key: key for key in keys}

    def _settle_soon(self, line: Line, keys: Sequence[str], error: WflError) -> None:
        """Nobody knows whether orders for these have arrived there."""
        log.warning("%s: %d submissions are unsettled: %s", self.name, len(keys), error)
        with self._lock:
            for key in keys:
                if (job := self._jobs.get(key)) is not None:
                    job.unsure = True
        self._pool.submit(partial(self._settle, line))

    def _settle(self, line: Line) -> None:
        """Find out; what has not arrived never begins any more."""
        found: list[attendant.Seen] = []
        for _ in range(TRIES):
            with self._lock:
                keys = [job.key for job in self._jobs.values() if job.unsure and job.line is line and not job.ended]
            found = []
            with suppress(WflError):
                found = self._look(line, keys, forbid=True)
            self._settled(line, [one for one in found if one.where != "unknown"])
            found = [one for one in found if one.where == "unknown"]  # it is just made, or about to be removed again
            if not found or self._closed.wait(AGAIN):
                return
        self._settled(line, found)

    def _settled(self, line: Line, found: Iterable[attendant.Seen]) -> None:
        for one in found:
            job = self._jobs.get(one.key)
            if job is None:
                continue
            job.unsure = False
            if one.never_began or one.where == "gone":
                words = f"it was never started: the connection to {line.name} was lost"
                self._end(job, ended(one.key, sub_state="launch_failure", annotation=words))
            else:
                job.started = True

    def _start(self, line: Line, submissions: Sequence[Submission]) -> dict[str, Outcome]:
        """On one host; a lost connection is raised, as nobody knows then. What its files prevent is not begun."""
        outcomes: dict[str, Outcome] = {one.key: one.key for one in submissions}
        try:
            self._guard.watch()
            hello = line.connected()
            self._own(line, attendant.programs(one.key for one in submissions))
        except WflError as error:  # nothing was sent
            for one in submissions:
                self._forget(one.key)
            return dict.fromkeys(outcomes, error)
        ready = []
        for one, problem in zip(submissions, self._fill(line, hello, submissions), strict=True):
            if problem is None:
                ready.append(one)
                continue
            outcomes[one.key] = problem
            self._forget(one.key)
        ready = self._to_send(line, ready)
        if not ready:
            return outcomes
        try:
            line.ask(lambda number: attendant.start(number, ready, hello, self._owner))
        except DrmCommunicationError as error:
            if len(ready) == len(submissions):
                raise
            self._settle_soon(line, [one.key for one in ready], error)
            return outcomes
        except DeniedByDrmsError as error:
            said = line.words()
            for one in ready:
                self._forget(one.key)
                outcomes[one.key] = DeniedByDrmsError(f"{error}{': ' if said else ''}{said}")
            return outcomes
        self._begun(line, [one.key for one in ready])
        return outcomes

    def _to_send(self, line: Line, ready: Sequence[Submission]) -> list[Submission]:
        """Without those that were ended while their files were copied: of these nothing stays there."""
        with self._lock:
            jobs = [(one, self._jobs[one.key]) for one in ready if one.key in self._jobs]
            for _, job in jobs:
                job.sent = not job.ended
        if over := [job.key for _, job in jobs if not job.sent]:
            with suppress(WflError):
                for some in _parts(over):
                    line.ask(partial(_call, "w_reap", *some))
        return [one for one, job in jobs if job.sent]

    def _begun(self, line: Line, keys: Iterable[str]) -> None:
        now, infos = datetime.now(UTC), []
        with self._lock:
            for key in keys:
                job = self._jobs.get(key)
                if job is not None:
                    job.started = True
                    if not (job.ended or job.finishing):
                        infos.append(self._running(job, line, now))
        self._report(infos)

    @staticmethod
    def _running(job: _Job, line: Line, now: datetime | None = None) -> JobInfo:
        more: dict[str, Any] = {"allocated_machines": (line.name,), "slots": 1}
        if now is not None:
            more["dispatch_time"] = now
        return fact(id=job.key, state=JobState.RUNNING, **more)

    def _own(self, line: Line, programs: Iterable[str]) -> None:
        """Directories for these programs' jobs there; known to its attendant since the last connection."""
        owned, followed = line.owned, line.followed  # of the connection that there is now
        for program in programs:
            if program not in owned:
                line.ask(partial(_call, "w_own", program, self._owner, self._lease))
                with self._lock:
                    owned.add(program)
                    self._leased.add(line)
                    followed.add(program)

    def _fill(self, line: Line, hello: attendant.Hello, some: Sequence[Submission]) -> list[WflError | None]:
        """Copy in what these need; what went wrong."""
        if not any(one.template.stage_in_files or one.template.input_path for one in some):
            return [None] * len(some)
        return list(in_threads(partial(self._fill_one, line, hello), list(some), REQUESTS, "wfl-ssh-copy"))

    def _fill_one(self, line: Line, hello: attendant.Hello, one: Submission) -> WflError | None:
        given, room = one.template, attendant.Room(hello.root)
        copies = transfer.Copies(partial(self._files, line), f"wfl-{one.key}")
        place = posixpath.join(hello.home, given.working_directory or "")
        todo = {posixpath.join(place, target): source for target, source in (given.stage_in_files or {}).items()}
        if given.input_path:
            todo[room.input(one.key)] = given.input_path
        try:
            copies.put_all(todo, self._closed.wait)
        except DrmCommunicationError as error:
            return error
        except WflError as error:
            return DeniedByDrmsError(str(error))
        return None

    @staticmethod
    def _files(line: Line) -> AbstractContextManager[paramiko.SFTPClient]:
        """A channel for copying, of a new connection where the last one was lost."""
        line.connected()
        return line.copies()

    def _start_helper(self, lost: Callable[[], None]) -> Undertaker:
        return watch(self._logins, self._speaks, self._owner, keep=self._keep, lost=lost)

    # -- what hosts tell --

    def _hear(self, line: Line, text: str) -> None:
        """In the line's thread: of an end."""
        self._learn(line, attendant.seen(text))

    def _learn(self, line: Line, one: attendant.Seen) -> None:
        """Take in what a host says of a job, however often."""
        with self._lock:
            job = self._jobs.get(one.key)
            if job is None or job.ended or job.finishing or job.line not in (line, None) or one.never_began:
                return
            job.line = line
            if one.where == "elsewhere":
                return
            if one.where in ("gone", "unknown") and not self._is_overdue(job):
                return
            if one.where not in ("running", "suspended"):
                job.finishing = True
        if one.where == "running":
            self._report([self._running(job, line)])
        elif one.where == "suspended":
            self._report([fact(id=job.key, state=JobState.SUSPENDED, allocated_machines=(line.name,))])
        else:
            self._over(job, line, one)

    @staticmethod
    def _is_overdue(job: _Job) -> bool:
        """Whether it was missed before, and for long enough; what is just being started is not there yet."""
        now = time.monotonic()
        job.missed = job.missed or now
        return job.started and now - job.missed >= NEVER

    def _over(self, job: _Job, line: Line, one: attendant.Seen) -> None:
        hello = line.hello
        if one.where == "ended" and hello is not None:
            written = None if one.ours else self._written(line, hello, job.key)
            info = attendant.ended_as(one, hello, line.name, written)
        else:
            sub_state, words = _LOST[one.where]
            info = ended(
                job.key, sub_state=sub_state, annotation=words.format(line.name), allocated_machines=(line.name,)
            )
        if self._brings(job) and info.sub_state != "launch_failure" and one.where == "ended":
            self._pool.submit(partial(self._finish, job, line, info))
            return
        self._end(job, info)

    @staticmethod
    def _written(line: Line, hello: attendant.Hello, key: str) -> datetime | None:
        """When an end of before the host's last start was written down, by our clock."""
        path = attendant.Room(hello.root).path("end", key)
        with suppress(WflError, OSError, EOFError, paramiko.SSHException), line.files() as client:
            return hello.ours(float(client.stat(path).st_mtime or 0))
        return None

    def _end(self, job: _Job, info: JobInfo) -> None:
        with self._lock:
            if job.ended:
                return
            job.ended = True
            self._hold(job, None)
        self._report([info])
        self._move_up()

    @staticmethod
    def _brings(job: _Job) -> bool:
        return bool(job.template.stage_out_files or _output_files(job.template))

    def _finish(self, job: _Job, line: Line, info: JobInfo) -> None:
        """Bring its output and files back, and tell of its end then."""
        trouble = ""
        for attempt in range(COPIES):
            try:
                self._write_output(job, line)
                if info.exit_status == 0:
                    self._stage_out(job, line)
                trouble = ""
                break
            except DrmCommunicationError as error:
                trouble = f"its output and files cannot be had: {error}"
                if self._closed.wait(AGAIN * 4**attempt):
                    break
                try:
                    line.connected()
                except WflError:
                    self._put_off(job, line)
                    return
            except (WflError, OSError) as error:
                trouble = str(error)
                break
        if trouble:
            state = info.state if info.exit_status else JobState.FAILED
            info = info.replace(state=state, annotation=info.annotation or trouble)
        self._end(job, info)

    def _put_off(self, job: _Job, line: Line) -> None:
        """The host is away: it tells of this end once more when it is back."""
        with self._lock:
            job.finishing = False
        self._try_again(line)
        if line.up:  # it has just come, and was looked at without this job
            self._reconcile(line)

    def _write_output(self, job: _Job, line: Line) -> None:
        for stream, path in _output_files(job.template).items():
            passed = path in checks.PASSED  # where nothing can be taken back: another attempt goes on behind it
            offset = job.passed_on.get(stream, 0) if passed else 0
            with open(os.dup(checks.PASSED[path]) if passed else path, "wb") as file:
                while piece := self._read_once(job, line, stream, offset, 1 << 20):
                    file.write(piece)
                    offset += len(piece)
                    job.passed_on[stream] = offset

    def _stage_out(self, job: _Job, line: Line) -> None:
        hello = line.connected()
        copies = transfer.Copies(partial(self._files, line), f"wfl-{job.key}")
        place = posixpath.join(hello.home, job.template.working_directory or "")
        for target, source in (job.template.stage_out_files or {}).items():
            copies.get(posixpath.join(place, source), target, self._closed.wait)

    # -- hosts that go and come --

    def _away(self, line: Line) -> None:
        """In the line's thread, at its end: connect again for as long as a job is there."""
        if not self._closed.is_set():
            log.warning("%s: the connection was lost, jobs there go on; connecting again", line.name)
        self._try_again(line)

    def _try_again(self, line: Line) -> None:
        """In a thread of its own, until the host is reached, if anybody may want it."""
        with self._lock:
            if line in self._out or line.up or not (len(self._lines) > 1 or self._unended(line)):
                return
            self._out.add(line)
        threading.Thread(target=self._come_back, args=(line,), name="wfl-ssh-again", daemon=True).start()

    def _come_back(self, line: Line) -> None:
        try:
            while not self._closed.wait(max(0.05, line.attempts.rest)):
                with suppress(WflError):
                    line.connected()
                    self._move_up()
                    return
        finally:
            with self._lock:
                self._out.discard(line)

    def _back(self, line: Line) -> None:
        """Connected again: find every job there."""
        log.warning("%s: connected again", line.name)
        self._settle(line)
        self._reconcile(line)
        self._move_up()

    def _unended(self, line: Line) -> list[str]:
        with self._lock:
            return [job.key for job in self._jobs.values() if job.line is line and not (job.ended or job.finishing)]

    def _reconcile(self, line: Line) -> None:
        with suppress(DrmCommunicationError):
            self._look(line, self._unended(line))

    def _look(self, line: Line, keys: Sequence[str], *, forbid: bool = False) -> list[attendant.Seen]:
        """Ask a host where these are, and be told of their ends from now on.

        With `forbid` own jobs whose orders were not answered, and are not there, never begin: else a connection that
        was lost might still bring them.
        """
        if not keys:
            return []
        line.connected()
        with self._lock:
            followed = line.followed
            new = set(attendant.programs(keys)) - followed
            unsure = {key for key in keys if forbid and (job := self._jobs.get(key)) and not job.started}
        if new:
            line.ask(partial(_call, "w_follow", *sorted(new)))
            with self._lock:
                followed |= new
        said: list[str] = []
        for some in _parts(sorted(unsure)):
            said += line.ask(partial(_call, "w_forbid", self._owner, *some))
        for some in _parts([key for key in keys if key not in unsure]):
            said += line.ask(partial(_call, "w_look", *some))
        found = [attendant.seen(text) for text in said]
        for one in found:
            self._learn(line, one)
        return found

    def _beat(self, line: Line) -> str | None:
        """In the line's thread, now and then: a sign of life, and a look at all jobs when it is time."""
        now = time.monotonic()
        if now - self._looked.setdefault(line, now) > RECONCILE:
            self._looked[line] = now
            self._pool.submit(partial(self._reconcile, line))
        if not self._lease or line not in self._leased or self._closed.is_set():
            return None
        return attendant.call("w_beats", 0, self._owner, self._lease)

    def _move_up(self) -> None:
        """There may be room for what waits."""
        if self._waiting and not self._closed.is_set():
            self._starts.submit(self._start_waiting)

    def _start_waiting(self) -> None:
        """Those that there is room for now, by their hosts; the others stay where they are. None waits for another."""
        chosen: dict[Line, list[Submission]] = {}
        failed: list[tuple[Submission, WflError]] = []
        with self._lock:
            left: deque[Submission] = deque()
            while self._waiting and any(self._has_room(line, 1) for line in self._lines):
                one = self._waiting.popleft()
                job = self._jobs.get(one.key)
                if job is None or job.ended:
                    continue
                try:
                    line = self._take(job, self._candidates(one.template))
                except WflError as error:  # it was another program's, which had other hosts
                    failed.append((one, error))
                    continue
                if line is None:
                    left.append(one)
                else:
                    chosen.setdefault(line, []).append(one)
            self._waiting.extendleft(reversed(left))
        for one, refused in failed:
            self._fail(one.key, refused)
        for line, some in chosen.items():
            for start in range(0, len(some), attendant.TOGETHER):
                self._starts.submit(partial(self._start_moved, line, some[start : start + attendant.TOGETHER]))

    def _start_moved(self, line: Line, submissions: Sequence[Submission]) -> None:
        """On this host, or another one where it cannot be reached."""
        chosen: dict[Line, list[Submission]] = {}
        until = time.monotonic() + self._speaks.timeout
        for one in submissions:
            try:
                found = self._choose(one, until, line)
            except WflError as error:
                self._fail(one.key, error)
            else:
                if found is not None:
                    chosen.setdefault(found, []).append(one)
        for part in chosen.items():
            try:
                outcomes = self._start_of_several(part)
            except InvalidSessionError:  # it is just closed
                return
            for key, outcome in outcomes.items():
                if isinstance(outcome, WflError):
                    self._fail(key, outcome)

    def _fail(self, key: str, error: WflError) -> None:
        """One that waited is never started."""
        if (job := self._jobs.get(key)) is not None and job.ended:
            return
        self._forget(key)
        if not self._closed.is_set():
            self._report([ended(key, sub_state="launch_failure", annotation=str(error))])

    # -- control and output --

    def control(self, ids: Sequence[str], action: Action) -> dict[str, WflError]:
        """Signals to whole process trees, one request for all jobs of a host."""
        if action not in _SIGNALS:
            return {id: UnsupportedOperationError("a job that was started cannot be held") for id in ids}
        failures: dict[str, WflError] = {}
        groups: dict[Line, list[str]] = {}
        for id in ids:
            job = self._jobs.get(id)
            if job is None or job.ended:
                failures[id] = InvalidStateError(f"{id}: it has ended")
                continue
            told = self._control_waiting(job, action)
            if told is not None:
                failures |= told
            elif job.line is not None:
                groups.setdefault(job.line, []).append(id)
        for line, keys in groups.items():
            try:
                failures |= self._signal(line, keys, action)
            except WflError as error:
                failures |= {key: type(error)(f"{key}: cannot {action.value}: {error}") for key in keys}
        return failures

    def _control_waiting(self, job: _Job, action: Action) -> dict[str, WflError] | None:
        """None where its orders may have arrived at a host; before, whoever is at it finds that it has ended."""
        with self._lock:
            if job.line is not None and job.sent:
                return None
            if action not in (Action.TERMINATE, Action.KILL):
                return {job.key: InvalidStateError(f"{job.key}: cannot {action.value}: it has not started")}
            self._waiting = deque(one for one in self._waiting if one.key != job.key)
            job.ended = True
            self._hold(job, None)
        self._report([ended(job.key, sub_state="cancelled", annotation="ended before it was started")])
        self._move_up()
        return {}

    def _signal(self, line: Line, keys: Sequence[str], action: Action) -> dict[str, WflError]:
        line.connected()
        failures: dict[str, WflError] = {}
        left, told = list(keys), dict[str, str]()
        for _ in range(TRIES):
            said = [
                text for some in _parts(left) for text in line.ask(partial(_call, "w_signal", _SIGNALS[action], *some))
            ]
            told = {attendant.key_of(path): how for _, _, path, how in (text.split("\t") for text in said)}
            on_their_way = {key for key in told if (job := self._jobs.get(key)) and not (job.started or job.ended)}
            over = [key for key, how in told.items() if how == "over" and key not in on_their_way]
            failures |= {key: InvalidStateError(f"{key}: cannot {action.value}: it has ended") for key in over}
            done = [key for key in left if key not in told]
            if action in _AFTER and done:
                self._report([JobInfo(id=key, state=_AFTER[action]) for key in done])
            # One that is there and told to end does so when it begins.
            left = [key for key in told if key not in over and (action in _AFTER or told[key] == "over")]
            if not left or self._closed.wait(AGAIN):
                break
        else:
            words = f"cannot {action.value}: it has no process"
            failures |= {
                key: (DrmCommunicationError if told[key] == "over" else InvalidStateError)(f"{key}: {words}")
                for key in left
            }
        return failures

    def read(self, id: str, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:
        """From its file on the host."""
        job = self._jobs.get(id)
        if job is None:
            raise InvalidStateError(f"{id}: its directory was removed (reaped), or belongs to another session")
        path = job.template.output_path if stream == "stdout" else job.template.error_path
        if path == os.devnull:
            raise UnsupportedOperationError(
                f"{id}: {stream} was discarded (/dev/null); leave the path unset to keep it"
            )
        if job.line is None:
            return b"", True
        data = self._read(job, job.line, stream, offset, limit)
        return data, len(data) < limit

    def _read(self, job: _Job, line: Line, stream: Stream, offset: int, limit: int) -> bytes:
        """Again where the connection was lost: whoever follows the output is not to notice."""
        for attempt in range(COPIES):
            with suppress(DrmCommunicationError):
                return self._read_once(job, line, stream, offset, limit)
            if self._closed.wait(AGAIN * 4**attempt):
                break
        return self._read_once(job, line, stream, offset, limit)

    def _read_once(self, job: _Job, line: Line, stream: Stream, offset: int, limit: int) -> bytes:
        hello = line.connected()
        room = attendant.Room(hello.root)
        path = room.path("out" if stream == "stdout" else "err", job.key)
        try:
            with line.files() as client:
                try:
                    return transfer.read_part(client, path, offset, limit)
                except FileNotFoundError:
                    client.stat(posixpath.dirname(path))
                    return b""
        except FileNotFoundError as error:
            raise InvalidStateError(f"{job.key}: its output on {line.name} was removed by somebody") from error
        except PermissionError as error:
            raise InvalidStateError(f"{job.key}: its output on {line.name} cannot be read: {error}") from error
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise DrmCommunicationError(f"{line.name}: the output of {job.key} cannot be read: {error}") from error

    def reap(self, ids: Sequence[str]) -> None:
        """Remove their directories."""
        groups: dict[Line, list[str]] = {}
        for id in ids:
            job = self._jobs.get(id)
            if job is not None and job.line is not None:
                groups.setdefault(job.line, []).append(id)
        for line, keys in groups.items():
            line.connected()
            for some in _parts(keys):
                line.ask(partial(_call, "w_reap", *some))
        for id in ids:
            self._forget(id)

    def ask(self, ids: Sequence[str]) -> Answer:
        """Only what is gone: everything else is told."""
        return Answer(gone=[id for id in ids if id not in self._jobs])

    # -- finding again --

    def remembered(self) -> Sequence[Known]:
        """What detached programs of this session have left on the hosts that can be reached."""
        found: list[Known] = []
        for line in self._lines:
            try:
                hello = line.connected()
                with line.files() as client:
                    for path in _scripts(client, hello.root):
                        try:
                            owner, known = attendant.remembered(transfer.read_all(client, path))
                        except (OSError, ValueError, WflError) as error:
                            log.warning("%s: %s is left out: %s", line.name, path, error)
                        else:
                            if owner == attendant.NOBODY:
                                found.append(known)
            except (WflError, OSError, EOFError, paramiko.SSHException) as error:
                log.warning("%s: what is there is not known: %s", line.name, error)
        return found

    def find(self, known: Sequence[Known]) -> Answer:
        """By their directories, on the host where each is or, of another program's, may be."""
        infos: list[JobInfo] = []
        unsure: dict[str, set[Line]] = {}
        for task in known:
            job = self._jobs.get(task.key) or self._found(task)
            if job.own and not job.sent:  # it waits here
                infos.append(JobInfo(id=task.key))
            else:
                unsure[task.key] = {job.line} if job.line is not None else set(self._lines)
        for line in self._lines:
            try:
                found = self._look(line, [key for key, lines in unsure.items() if line in lines], forbid=True)
            except WflError as error:
                log.info("%s: %s", line.name, error)
                continue
            for one in found:
                if one.where in ("gone", "elsewhere") or one.never_began:
                    unsure[one.key].discard(line)
                else:
                    self._is_here(one.key, line)
                    infos.append(JobInfo(id=one.key))
        gone = [key for key, lines in unsure.items() if not lines]
        waited = [task for task in known if task.inherited and task.key in gone]
        for task in waited:
            gone.remove(task.key)
            self._wait_again(task)
            infos.append(JobInfo(id=task.key))
        for key in gone:
            self._forget(key)
        if known and not (infos or gone):
            raise DrmCommunicationError("no host answers that may have these jobs")
        return Answer(infos=infos, gone=gone)

    def _wait_again(self, task: Known) -> None:
        """One that its program, which is gone, had no room for."""
        with self._lock:
            self._jobs[task.key] = _Job(task.key, task.template, None, own=True)
            self._waiting.append(Submission(task.key, task.template, task.job_id or task.key, task.index))
        self._move_up()

    def _found(self, task: Known) -> _Job:
        """One that another program submitted."""
        job = _Job(task.key, task.template, None, own=False)
        job.ended = task.info is not None and task.info.state.ended
        with self._lock:
            return self._jobs.setdefault(task.key, job)

    def _is_here(self, key: str, line: Line) -> None:
        with self._lock:
            if (job := self._jobs.get(key)) is not None:
                job.line, job.started = line, True
                if not job.ended:
                    self._hold(job, line)

    # -- the end --

    def close(self, *, end: bool) -> None:
        """End what still runs, and leave nothing there but what a later program looks for."""
        self._closed.set()
        left = self._guard.close()
        with self._lock:
            used = [line for line in self._lines if line.hello is not None]
        unreached: list[Line] = []

        def leave() -> None:
            in_threads(one, used, REQUESTS, "wfl-ssh-close")

        def one(line: Line) -> None:
            try:
                try:
                    self._leave(line, end=end)
                except DrmCommunicationError:  # over this connection, which may be the one that was lost
                    self._leave(line, end=end)
            except WflError as error:
                log.debug("%s: %s", line.name, error)
                unreached.append(line)

        leave()
        left += sum(len(self._unended(line)) for line in unreached)
        self._guard.leave(left if end else 0, leave)
        for line in self._lines:
            line.close()
        self._pool.stop()
        self._starts.stop()

    def _leave(self, line: Line, *, end: bool) -> None:
        line.connected()
        if not end:
            line.ask(partial(_call, "w_leave_all", self._owner))
            return
        doomed = [job for job in self._jobs.values() if job.line is line and job.own and not job.ended]
        if wanted := [job for job in doomed if _output_files(job.template)]:
            self._kill_and_write(line, wanted)
        keep = "keep" if self._keep else "nothing"
        line.ask(partial(_call, "w_close", self._owner, keep), timeout=self._speaks.timeout + 10)

    def _kill_and_write(self, line: Line, jobs: Collection[_Job]) -> None:
        """What they wrote until now is kept where it is wanted."""
        self._signal(line, [job.key for job in jobs], Action.KILL)
        for job in jobs:
            with suppress(WflError, OSError):
                self._write_output(job, line)

    def how_to_cancel(self, ids: Collection[str]) -> str:
        """There is no command for that on the hosts."""
        del ids
        return f"wfl.contexts.ssh.clean({self._speaks.session!r}, context)"

    def abandon(self) -> None:
        """In a forked child."""
        for line in self._lines:
            line.abandon()
        self._guard.abandon()


_REMOVED = "its directory on {} is not there any more: somebody removed it"
_LOST: Mapping[str, tuple[Any, str]] = {
    "gone": ("lost", _REMOVED),
    "unknown": ("lost", "it never began on {}"),
    "lost": ("lost", "what waited for it on {} is gone, and it left no record of its end: it was killed from outside"),
    "rebooted": ("node_failure", "{} was started anew while it ran"),
    "ended": ("lost", "{} says that it has ended, and nothing else"),
}  # fmt: skip


def _call(name: str, *words: object) -> str:
    """For `Line.ask`, which has the last word: the number of the request, which comes first."""
    *told, number = words
    return attendant.call(name, number, *told)


def _parts(keys: Sequence[str]) -> list[list[str]]:
    """The paths of jobs, as many together as are asked about at once."""
    paths = [attendant.path_of(key) for key in keys]
    return [paths[start : start + ASKED] for start in range(0, len(paths), ASKED)]


def _scripts(client: paramiko.SFTPClient, root: str) -> Iterator[str]:
    """The files that tell of all jobs, in the order of submission."""
    for program in sorted(name for name in client.listdir(root) if "." not in name):
        numbers = [name for name in client.listdir(f"{root}/{program}") if name[:1].isdigit()]
        for number in sorted(numbers, key=lambda name: [int(part) for part in name.split(".")]):
            yield f"{root}/{program}/{number}/script"


def _check_machine(template: JobTemplate, name: str, hello: attendant.Hello) -> None:
    runs, built = host.os_name(hello.system), host.architecture(hello.machine)
    if template.machine_os and template.machine_os.upper() != runs.upper():
        raise DeniedByDrmsError(f"machine_os is {template.machine_os}; {name} runs {runs}")
    if template.machine_arch and template.machine_arch.upper() not in (built.upper(), hello.machine.upper()):
        raise DeniedByDrmsError(f"machine_arch is {template.machine_arch}; {name} is {built}")


def wanted_here(line: Line, wanted: Sequence[str]) -> bool:
    """Whether one of these names is this host's."""
    names = {line.name, line.login.host, line.name.rpartition("@")[2].partition(":")[0]}
    if line.hello is not None:
        names.add(line.hello.host)
    return bool(names & set(wanted))


def _output_files(given: JobTemplate) -> dict[Stream, str]:
    """Where output goes on this side of it, besides the host's files."""
    paths: dict[Stream, str | None] = {"stdout": given.output_path, "stderr": given.error_path}
    if given.join_files or (given.output_path and given.output_path == given.error_path):
        del paths["stderr"]
    return {stream: path for stream, path in paths.items() if path and path != os.devnull}

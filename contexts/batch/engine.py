"""BatchBackend: what is the same for every scheduler that is used through its commands.

It knows nothing of any scheduler's language (scheduler.py), and little of a job's end: the job writes that down itself
(script.py, place.py), so that most ends cost the scheduler no question. The scheduler is asked for all jobs at once,
the more rarely the more there are, and its records for what has ended: why, when, with which usage.
"""

from __future__ import annotations

import logging
import posixpath
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from wfl.backend import INDEX, Action, Answer, Backend, Known, Limits, Submission, ended
from wfl.contexts.batch import script
from wfl.contexts.batch.carrier import STAGED, Carrier
from wfl.contexts.batch.client import ENDING, Client, how_to_cancel, ordered
from wfl.contexts.batch.ending import Ending
from wfl.contexts.batch.machine import HERE
from wfl.contexts.batch.place import ELEMENT, Entry, Place, Wave, program_of
from wfl.contexts.batch.scheduler import INHERIT, NATIVE, Job, flag
from wfl.contexts.ends import Account, how_it_ended
from wfl.drmaa2 import Capability, JobInfo, JobState, SubState, fact
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidStateError,
    SessionManagementError,
    UnsupportedOperationError,
    WflError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from wfl.backend import Outcome, Report, Stream
    from wfl.contexts.batch.machine import Machine
    from wfl.contexts.batch.scheduler import Scheduler, Seen
    from wfl.contexts.ends import End
    from wfl.drmaa2 import JobTemplate

log = logging.getLogger("wfl")
FIELDS = frozenset(
    {
        "remote_command", "args", "submit_as_hold", "job_environment", "working_directory", "job_name", "input_path",
        "output_path", "error_path", "join_files", "stage_in_files", "stage_out_files", "resource_limits",
        "deadline_time", "extensions",
    }
)  # fmt: skip
"""Template fields that need nothing of a scheduler, or that every scheduler has."""
INDEX_FIELDS = frozenset(
    {
        "remote_command", "args", "job_environment", "working_directory", "input_path", "output_path", "error_path",
        "stage_in_files", "stage_out_files",
    }
)  # fmt: skip
"""Those that the script alone sees to, which knows the element's index."""
CAPABILITIES = frozenset(
    {
        Capability.HOLD, Capability.TERMINATE, Capability.SUSPEND, Capability.OUTPUT, Capability.STREAM,
        Capability.NATIVE_ARRAYS, Capability.REATTACH, Capability.DETACH, Capability.RUSAGE, Capability.JT_STAGING,
    }
)  # fmt: skip
PER_JOB = 0.03
"""Seconds between two questions for each job whose end was not told: with 1,000 jobs one every 30 s."""
TOGETHER = 400
"""Ends whose records are asked for at once, though there are more to come."""
ASK = (1.0, 30.0)
"""Seconds between two questions to the scheduler: the first, and the longest; jobs tell the rest in their files."""
LOOK = (0.25, 5.0)
"""Seconds between two looks at what jobs have written of their ends, which costs the scheduler nothing."""
SLOWER = 1.5
USAGE = 5.0
"""Seconds that the scheduler's record of an end is waited for where the job itself has told how it ended."""
AGAIN = 0.1
"""Seconds after which records that lacked an end are asked for again, """
SHARE = 2.0
"""and how much longer the pause is than the last answer took."""
LATE = 10.0
"""Seconds that the output of a job that has ended is waited for."""
COLLECT = (60.0, 600.0)
"""Seconds after which an end is told without what is not known of it: here, and where the machine may be away."""
GONE = 30.0
"""Seconds after which a job that is in no list and no record is called gone."""

AFTER = {
    Action.SUSPEND: JobState.SUSPENDED,
    Action.RESUME: JobState.RUNNING,
    Action.HOLD: JobState.QUEUED_HELD,
    Action.RELEASE: JobState.QUEUED,
}
"""The state that follows, before the scheduler shows it."""
_DONE = {
    Action.SUSPEND: {JobState.SUSPENDED},
    Action.RESUME: {JobState.RUNNING},
    Action.HOLD: {JobState.QUEUED_HELD, JobState.REQUEUED_HELD, JobState.RUNNING, JobState.SUSPENDED},
    Action.RELEASE: {JobState.QUEUED, JobState.REQUEUED, JobState.RUNNING, JobState.SUSPENDED},
}
"""The states of jobs that have done what they were told."""
_SIGNALS = (Action.SUSPEND, Action.RESUME)


ALIAS = "~"
"""In an id: what follows tells a job from an earlier one with the same id, and the scheduler does not know it."""


def native_id(id: str) -> str:
    """What the scheduler calls it."""
    return id.partition(ALIAS)[0]


class Held:
    """One job, or one element of an array, that the scheduler has."""

    __slots__ = ("array", "cause", "ending", "entry", "key", "missing", "rests", "since", "started", "state")

    def __init__(self, entry: Entry, key: str, array: str | None) -> None:
        self.entry, self.key, self.array = entry, key, array
        self.state: JobInfo | None = None
        self.started = False
        self.cause: SubState | None = None
        self.ending = False  # it was told to end
        self.since = 0.0  # seen ended
        self.missing = 0.0  # in no list and no record
        self.rests = 0.0  # until then it is told nothing


class BatchBackend(Backend):
    """One scheduler through its commands, for one session."""

    tells = False

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        directory: str,
        session_name: str,
        timeout: float,
        environment: Mapping[str, str],
        inherit: bool,
        detach: bool,
        machine: Machine = HERE,
    ) -> None:
        self.name = scheduler.name
        self.fields = FIELDS | scheduler.fields
        self.index_fields = INDEX_FIELDS
        self.extensions = scheduler.extensions | {NATIVE, INHERIT}
        self.capabilities = (CAPABILITIES | scheduler.capabilities) - scheduler.lacks
        self.limits = Limits(
            requests=4,
            submissions=1,
            ask_min=LOOK[0],
            ask_max=LOOK[1],
            collect=COLLECT[machine.is_away],
            missing=COLLECT[False],
        )
        self.scheduler = scheduler
        self._machine, self._inherit = machine, inherit
        self.client = Client(scheduler, environment=environment, timeout=timeout, machine=machine)
        self._carrier = Carrier(machine)
        if machine.is_away:
            self.index_fields = INDEX_FIELDS.difference(STAGED)
        self.place = Place(directory, session_name, machine)
        self.ending = Ending(scheduler, self.place, environment=environment, timeout=timeout, helper=not detach)
        self._lock = threading.RLock()
        self._held: dict[str, Held] = {}
        self._again: dict[str, str] = {}  # by what the scheduler calls it: an id that it has given before
        self._by_key: dict[str, str] = {}
        self._left: dict[str, int] = {}  # by array's key: elements that were not reaped
        self._living: dict[str, set[str]] = {}  # by program: ids that have not ended
        self._asked = -ASK[1]
        self._accounted = 0.0  # when records may be asked for again
        self._pause = ASK[0]
        self._programs: set[str] = set()

    # -- before anything is started --

    def resolve(self, template: JobTemplate) -> JobTemplate:
        """With absolute paths of this side, where the scheduler is on another."""
        return self._carrier.resolve(template)

    def check(self, template: JobTemplate) -> None:
        """Whether this scheduler, and a shell, can do what the template says."""
        super().check(template)
        script.check(template)
        self._carrier.check(template)
        if self._machine.is_away and self._inherits(template):
            raise InvalidArgumentError(
                f"{INHERIT}: the program's environment is not that of jobs submitted {self._machine.name}; name what "
                "they need in job_environment"
            )
        entry = Entry("check-0", _settled(template, "/"), "check-0")
        self._script(entry, place=Place("/", "check"))  # no machine is asked for that
        self.scheduler.submit(Job(entry, "", ""))

    def preview(
        self, submissions: Iterable[tuple[JobTemplate, range | int | None]], max_parallel: int | None
    ) -> list[Preview]:
        """What would be run for these templates, each a job, an array, or an array's element."""
        found = []
        for template, indexes in submissions:
            self.check(template)
            index = indexes if isinstance(indexes, int) else None
            key = "KEY-1" if index is None else f"KEY-1.{index}"
            whole = indexes if isinstance(indexes, range) else None
            submission = Submission(key, template, "KEY-1", index=index)
            entry = self._entry(submission, self._machine.base, whole, max_parallel)
            jobs = [_behind(job, f"ID{job.part}") for job in self._jobs(entry)]
            found += [Preview(self._shown(job), self._script(entry, job.wave)) for job in jobs]
        return found

    def _shown(self, job: Job) -> tuple[str, ...]:
        return tuple(self.scheduler.submit(job))

    def open(self, report: Report, directory: Path | None) -> None:
        """Nothing is contacted: the scheduler answers when it is first needed."""
        self._report, self.ending.keep = report, directory is not None

    # -- submitting --

    def submit(self, submissions: Sequence[Submission]) -> Sequence[Outcome]:
        """One job each."""
        return [self._submit_one(submission) for submission in submissions]

    def _submit_one(self, submission: Submission) -> Outcome:
        try:
            self.check(submission.template)
            (id,) = self._start(submission)
        except DrmCommunicationError:
            raise
        except WflError as error:
            return error
        return id

    def submit_array(self, submission: Submission, indexes: range, max_parallel: int | None) -> Sequence[Outcome]:
        """A native array, or several where the scheduler takes only so many elements in one."""
        if not indexes:
            return []
        try:
            self.check(submission.template)
            return self._start(submission, indexes, max_parallel)
        except DrmCommunicationError:
            raise
        except WflError as error:
            return [error] * len(indexes)

    def _entry(
        self, submission: Submission, base: str, indexes: range | None = None, max_parallel: int | None = None
    ) -> Entry:
        return Entry(
            submission.key,
            _settled(submission.template, base),
            submission.job_id,
            index=submission.index,
            indexes=indexes,
            max_parallel=max_parallel,
            waves=None if indexes is None else self._waves(indexes),
        )

    def _start(
        self, submission: Submission, indexes: range | None = None, max_parallel: int | None = None
    ) -> list[str]:
        """Write everything down, then submit; the ids, an array's one for each element."""
        with _not_yet():
            base = self._machine.base
        entry = self._entry(submission, base, indexes, max_parallel)
        with _not_yet():
            self._carrier.bring(entry)
            self._programs.add(program_of(entry.key))
            self.ending.before(entry.key)
        ids: dict[int, str] = {}
        for part in self._jobs(entry):
            job = _behind(part, ids.get(part.part - 1))
            try:
                with _not_yet():
                    self.place.enter(entry, self._script(entry, job.wave))
                ids[job.part] = self._send(job)
            except DrmCommunicationError:
                raise
            except WflError as error:
                self._cancel(list(ids.values()))
                with suppress(DrmCommunicationError):
                    self.place.forget([entry.key])
                self.ending.after(entry.key)
                if not ids:
                    raise
                raise type(error)(f"{error}; the parts of the array before that were cancelled") from error
            self._write_down(entry.key, ids)
        found = self._hold(entry, ids)
        self._expect()
        self.ending.after(entry.key)
        if entry.template.submit_as_hold:
            self._report([fact(id=id, state=JobState.QUEUED_HELD) for id in found])
        return found

    def _write_down(self, key: str, ids: Mapping[int, str]) -> None:
        """What cannot be written down was submitted all the same: a later program finds it by its key."""
        try:
            self.place.accept(key, ids)
        except SessionManagementError as error:
            log.warning("%s: the ids of %s cannot be written down: %s", self.name, key, error)

    def _send(self, job: Job) -> str:
        """Hand one job, or one wave of an array, to the scheduler; its id."""
        return self.client.submit(job)

    def _jobs(self, entry: Entry) -> list[Job]:
        path, words = self.place.path("script", entry.key), self.place.path("log", entry.key)
        inherit = self._inherits(entry.template)
        return [Job(entry, path, words, inherit, part) for part in entry.parts]

    def _inherits(self, template: JobTemplate) -> bool:
        return flag(template, INHERIT, default=self._inherit)

    def _script(self, entry: Entry, wave: Wave | None = None, place: Place | None = None) -> str:
        scheduler = self.scheduler
        first: int | str = wave.first if wave else 0
        if scheduler.late and len(entry.parts) > 1:
            first = "$1"  # see Job.offset
        login = scheduler.passed is not None and not self._inherits(entry.template)
        return script.script(
            structs.replace(entry, template=self._carrier.scripted(entry.template)),
            place or self.place,
            number=scheduler.number,
            id=scheduler.id,
            first=first,
            step=wave.step if wave else 1,
            login=login,
            reserved=scheduler.reserved,
            passed_on=scheduler.passed_on(entry.template),
            alone=scheduler.alone,
        )

    def _waves(self, indexes: range) -> list[Wave]:
        """One native array with the elements' own numbers where that can be; else parts, counted from the lowest."""
        lowest, most = self.scheduler.lowest, self._highest()
        if indexes[0] >= lowest and (most is None or indexes[-1] <= most):
            return [Wave(indexes)]
        size = len(indexes) if most is None else most - lowest + 1
        parts = [indexes[start : start + size] for start in range(0, len(indexes), size)]
        return [Wave(range(lowest, lowest + len(part)), part.start - lowest * part.step, part.step) for part in parts]

    def _highest(self) -> int | None:
        """The highest number that an array's element may have; None: no limit."""
        return self.client.highest()

    def _hold(self, entry: Entry, ids: Mapping[int, str]) -> list[str]:
        """Know from now on what the scheduler has."""
        found = []
        forgotten: list[str] = []
        reaped = self.place.reaped([entry.key])[entry.key] if entry.indexes is not None else set()
        with self._lock:
            living = self._living.setdefault(program_of(entry.key), set())
            for part, id in ids.items():
                for given, held in self._members(entry, part, id):
                    if reaped and _index(held.key) in reaped:
                        continue
                    one = self._by_key.get(held.key) or self._called(given, held)
                    if one not in self._held:
                        if one != given:
                            forgotten.append(self._again[given])
                            self._again[given] = one
                        self._held[one] = held
                        self._by_key[held.key] = one
                        living.add(one)
                    found.append(one)
            if entry.indexes is not None:
                self._left.setdefault(entry.key, len(entry.indexes) - len(reaped))
        lost = [info for id in forgotten if (info := self._forgotten(id)) is not None]
        if lost:
            self._report(lost)
        return found

    def _called(self, given: str, held: Held) -> str:
        """What a job is called here: as the scheduler calls it, or that and more where it has given its id before.

        One that was killed may have forgotten its last jobs, and begins again where it had written down that it was.
        """
        if given not in self._held and given not in self._again:
            return given
        self._again.setdefault(given, given)
        if held.array is not None:
            held.array = f"{held.array}{ALIAS}{held.entry.key}"
        return f"{given}{ALIAS}{held.key}"

    def _forgotten(self, id: str) -> JobInfo | None:
        """The end of a job whose id the scheduler has given to another."""
        held = self._held.get(id)
        if held is None or not self._lives(id):
            return None
        if self.place.end(held.key) is not None:
            return fact(id=id, state=JobState.DONE)
        return self._over(id, ended(id, sub_state="lost", annotation=f"{self.name} has given its id to another job"))

    def _members(self, entry: Entry, part: int, id: str) -> Iterator[tuple[str, Held]]:
        if entry.waves is None:
            yield id, Held(entry, entry.key, None)
            return
        wave = entry.waves[part]
        for number in wave.numbers:
            yield self.scheduler.element(id, number), Held(entry, f"{entry.key}.{wave.first + wave.step * number}", id)

    def _expect(self, *, soon: bool = False) -> None:
        """Something was submitted or done: the scheduler is asked before long."""
        with self._lock:
            living = 0 if soon else sum(map(len, self._living.values()))
            self._pause, self._asked = max(ASK[0], min(PER_JOB * living, ASK[1])), time.monotonic()

    # -- asking --

    def ask(self, ids: Sequence[str]) -> Answer:
        """Ends that the jobs have told of themselves; and, when it is time, what the scheduler says of all."""
        wanted = {id for id in ids if id in self._held}  # others are still to be found by their keys
        found = self._arrived(self._look(wanted))
        gone: list[str] = []
        now = time.monotonic()
        if len(found) < len(wanted) and now - self._asked >= self._pause:
            self._asked, self._pause = now, min(self._pause * SLOWER, ASK[1])
            told, gone = self._query(wanted - {info.id or "" for info in found})
            found += self._arrived(told)
        return Answer(infos=found, gone=gone)

    def _arrived(self, infos: list[JobInfo]) -> list[JobInfo]:
        """Without ends of jobs whose files are still copied back, as a session waits only so long for what is left."""
        over = {}
        for info in infos if self._carrier.away else ():
            held = self._held.get(info.id or "")
            if held and info.state.ended and held.entry.template.stage_out_files and self._lives(info.id or ""):
                over[info.id] = held
        with suppress(DrmCommunicationError):  # other news is told once only
            ends = self.place.ends([held.key for held in over.values()])
            for id, held in list(over.items()):
                end = ends.get(held.key)
                if end is None or end.refused is not None or self._carrier.fetched(held.entry, held.key) is not None:
                    del over[id]
        for held in over.values():
            held.state = None  # it is told again
        return [info for info in infos if info.id not in over]

    def _look(self, wanted: set[str]) -> list[JobInfo]:
        """What jobs have written of beginnings and ends; one that may run again is the scheduler's to call ended."""
        found = []
        begun: dict[str, tuple[str, Held]] = {}
        for program, living in list(self._living.items()):
            if living.isdisjoint(wanted):
                continue
            over, run = self.place.listed(program, "end", "run")
            for key in run:
                id = self._by_key.get(key)
                if id is None or id not in wanted or id not in living:
                    continue
                held = self._held.get(id)
                if held is None:
                    continue
                if key in over and not held.entry.template.rerunnable and not self._is_awaited(id):
                    found.append(fact(id=id, state=JobState.DONE))
                elif not held.started:
                    begun[key] = (id, held)
        times = self.place.began(begun)
        for key, (id, held) in begun.items():
            held.started = True
            found.append(fact(id=id, state=JobState.RUNNING, dispatch_time=times.get(key)))
        return found

    def _is_awaited(self, id: str) -> bool:
        """Whether this end, which the job has written down, will be told in another way."""
        del id
        return False

    def _query(self, wanted: set[str]) -> tuple[list[JobInfo], list[str]]:
        """What the scheduler's list says of these, as far as it is new; and those that nobody knows any more."""
        found, stuck, missing = self._listed(wanted)
        try:
            found += self._remove(stuck)
            known, whole = self._ended_elsewhere(missing)  # they have ended, and are in the list no more
        except WflError as error:  # what the list tells is told once
            log.info("%s: the rest of the question has no answer now: %s", self.name, error)
            return found, []
        found += known
        missing -= {info.id or "" for info in known}
        if not whole:
            return found, []
        gone, now = [], time.monotonic()
        for id in sorted(missing):
            held = self._held[id]
            late = self._long_missing(held)
            soon = held.ending and (self.client.forgets or now - held.missing > USAGE)
            if (soon or (late and self.client.forgets)) and not self._began(held):
                words = "it was deleted before it began"
                found.append(self._over(id, ended(id, sub_state="cancelled", annotation=words)))
            elif late:
                account = self._explained(held, Account(native_id(id), None))
                if account.cause is None:
                    gone.append(id)
                else:
                    found.append(self._ended(id, held, self.place.end(held.key), account))
        return found, gone

    def _listed(self, wanted: set[str]) -> tuple[list[JobInfo], list[str], set[str]]:
        """The list's news of these; which of them are stuck; and which it does not have."""
        found: list[JobInfo] = []
        there: set[str] = set()
        stuck: list[str] = []
        for seen in self.client.jobs():
            for id in self._ids(seen):
                if id in wanted:
                    self._held[id].missing = 0.0
                    there.add(id)
                    if seen.stuck:
                        stuck.append(id)
                    else:
                        found += self._told(id, seen)
        return found, stuck, wanted - there

    def _remove(self, ids: Sequence[str]) -> list[JobInfo]:
        """Delete what the scheduler holds and will not run; their ends, with its reasons."""
        if not ids:
            return []
        reasons = self.client.reasons(sorted({native_id(self._held[id].array or id) for id in ids}))
        self._cancel(list(self._grouped(ids)))
        found = []
        for id in ids:
            words = reasons.get(native_id(id)) or reasons.get(native_id(self._held[id].array or id))
            words = words or f"{self.name} could not start it"
            found.append(self._over(id, ended(id, sub_state="launch_failure", annotation=words)))
        return found

    @staticmethod
    def _long_missing(held: Held) -> bool:
        """Records of ends come late: a job that is nowhere is called gone only when it has been so for a while."""
        now = time.monotonic()
        held.missing = held.missing or now
        return now - held.missing > GONE

    def _ids(self, seen: Seen) -> Iterable[str]:
        if seen.numbers is None:
            yield self._again.get(seen.id, seen.id)
        for numbers in seen.numbers or ():
            for number in numbers:
                id = self.scheduler.element(seen.id, number)
                yield self._again.get(id, id)

    def _told(self, id: str, seen: Seen) -> list[JobInfo]:
        """A fact from the list, if it is new."""
        held, info, state = self._held[id], seen.info, seen.info.state
        held.cause = seen.cause
        if state in (JobState.QUEUED, JobState.QUEUED_HELD) and held.started:
            again = JobState.REQUEUED if state is JobState.QUEUED else JobState.REQUEUED_HELD
            info = info.replace(state=again)
        if held.state == info:
            return []
        held.state, held.started = info, held.started or (state.started and not state.ended)
        return [info.replace(id=id)]

    def _ended_elsewhere(self, ids: set[str]) -> tuple[list[JobInfo], bool]:
        """Of these, which are not in the list: those that have ended, by their own word or the scheduler's records.

        And whether the records are all that there are.
        """
        ends = self.place.ends({self._held[id].key for id in ids})
        found = [id for id in ids if self._held[id].key in ends]
        rest = ids.difference(found)
        accounts, whole = self._accounts(rest) if rest else ({}, True)
        for id, account in accounts.items():
            if id in rest and account.over:
                found.append(id)
            elif id in rest:
                self._held[id].missing = 0.0
        return [fact(id=id, state=JobState.DONE) for id in found], whole

    # -- ends --

    def collect(self, ids: Sequence[str]) -> Sequence[JobInfo]:
        """How these have ended, from what they have written and from the scheduler's records, for all at once."""
        now = time.monotonic()
        todo = {id: self._held[id] for id in ids if id in self._held}
        for held in todo.values():
            held.since = held.since or now
        living = sum(map(len, self._living.values()))  # these with them
        oldest = min((held.since for held in todo.values()), default=now)
        enough = living <= len(todo) or len(todo) >= TOGETHER or now - oldest >= min(PER_JOB * living, ASK[1])
        if not enough or now < self._accounted:
            return []
        try:
            accounts, _ = self._accounts(todo)
        except WflError as error:
            log.info("%s: the records of ends cannot be had now: %s", self.name, error)
            accounts = {}
        took = time.monotonic() - now
        self._accounted = now + took + max(AGAIN, SHARE * took)
        found = []
        ends = self.place.ends({held.key for held in todo.values()})
        for id, held in todo.items():
            end, account = ends.get(held.key), accounts.get(id)
            late = not self.client.keeps_records or now - held.since > USAGE
            told = end is not None or (held.cause is not None and self.client.forgets)
            if (account is not None and account.over) or (told and late):
                trouble = self._carrier.fetched(held.entry, held.key) if end and end.refused is None else ""
                if trouble is None:
                    continue
                end = structs.replace(end, unsaved=trouble) if end and trouble else end
                found.append(self._ended(id, held, end, account))
        self._carrier.forget(self._held[info.id or ""].key for info in found)
        return found

    def _ended(self, id: str, held: Held, own: End | None, account: Account | None) -> JobInfo:
        """The whole end of one job."""
        if account is None and own is not None and own.status:
            told = self._explained(held, Account(native_id(id), None))
            account = None if told.cause is None else told
        elif own is None and account is not None and account.cause is None and account.signal:
            account = self._explained(held, account)
        info = how_it_ended(
            id,
            own,
            account,
            cause=held.cause,
            began=self._began(held),
            words=lambda: self.place.log(held.key),
            listed=held.state.annotation if held.state is not None and held.state.state.ended else None,
        )
        return self._over(id, info)

    def _explained(self, held: Held, account: Account) -> Account:
        """With what the scheduler has written into the job's log, if it says there why it ended it."""
        called = account.called or (account.id if account.number is None else None)
        told = None if called is None else self.scheduler.explained(self.place.whole_log(held.key), called)
        if told is None:
            return account
        return structs.replace(account, cause=told[0], info=account.info.replace(annotation=told[1]))

    def _began(self, held: Held) -> bool:
        return held.started or bool(self.place.began([held.key]))

    def _lives(self, id: str) -> bool:
        with self._lock:
            return any(id in living for living in self._living.values())

    def _over(self, id: str, info: JobInfo) -> JobInfo:
        self._lives_no_more(id)
        return info

    def _lives_no_more(self, id: str) -> None:
        with self._lock:
            for living in self._living.values():
                living.discard(id)

    def _accounts(self, ids: Iterable[str]) -> tuple[dict[str, Account], bool]:
        """What the scheduler's records say of these, nothing where it keeps none; and whether that is all."""
        ids = list(ids)
        wanted = sorted({native_id(self._held[id].array or id) for id in ids})
        found, whole = self.client.accounts(wanted, self.place.since({self._held[id].entry.key for id in ids}))
        return {self._again.get(id, id): account for id, account in found.items()}, whole

    # -- finding again --

    def find(self, known: Sequence[Known]) -> Answer:
        """By what is written down of each submission; what has no id there is looked for in the scheduler's list."""
        wanted = {one.key: one.key.partition(".")[0] for one in known}
        entries = self.place.entries(set(wanted.values()))
        # Elements that were submitted by themselves have keys of their own.
        entries |= self.place.entries({key for key, array in wanted.items() if array not in entries and key != array})
        unanswered = {}
        accepted = self.place.accepted(entries)
        for key, entry in entries.items():
            self._hold(entry, accepted[key])
            if len(accepted[key]) < len(entry.parts):
                unanswered[key] = entry
        waits = self._search(unanswered) if unanswered else set()
        there = {one.key: id for one in known if (id := self._by_key.get(one.key)) is not None}
        for one in known:
            if one.info is not None and one.info.state.started and one.key in there:
                self._held[there[one.key]].started = True
        infos, gone = self._where(there)
        unknown = [one.key for one in known if one.key not in there]
        return Answer(infos=infos, gone=[*gone, *(k for k in unknown if waits.isdisjoint((k, k.partition(".")[0])))])

    def _search(self, entries: Mapping[str, Entry]) -> set[str]:
        """Those of which no answer was read: by the key that the scheduler's list shows.

        Returns those that another program may still be submitting.
        """
        waits = set()
        listed = {seen.key: seen.id for seen in self.client.jobs_with_keys()}
        accepted = self.place.accepted(entries)
        for key, entry in entries.items():
            ids = accepted[key]
            ids |= {job.part: listed[job.key] for job in self._jobs(entry) if job.key in listed}
            ids |= self._left_word(entry)
            if len(ids) < len(entry.parts) and self._another_may_submit(key):
                waits.add(key)
                continue
            if len(ids) in (0, len(entry.parts)):  # else one of which nobody has heard may still come
                self.ending.after(key)
            if ids:
                self.place.accept(key, ids)
                self._hold(entry, ids)
                lost = next((part for part in entry.parts if part not in ids), None)
                for _, held in () if lost is None else self._members(entry, lost, ""):
                    self.place.stop(held.key)  # should they come late, they end at once; nothing followed them
            else:
                self.place.forget([key])  # should it come late, it finds nothing to do
        return waits

    def _another_may_submit(self, key: str) -> bool:
        own = program_of(key) in self._programs
        return not own and self.place.is_at_work(key, self.client.commands.timeout + ASK[1])

    def _left_word(self, entry: Entry) -> dict[int, str]:
        """The ids that elements of each part have written into the records of their ends."""
        found: dict[int, str] = {}
        for part in entry.parts:
            ends = self.place.ends([held.key for _, held in self._members(entry, part, "")])
            word = next((end.id for end in ends.values() if end.id), None)
            if word is not None:
                found[part] = word
        return found

    def _where(self, there: Mapping[str, str]) -> tuple[list[JobInfo], list[str]]:
        """Where these are now; and the keys of those that nobody knows."""
        keys = {id: key for key, id in there.items()}
        if not keys:
            return [], []
        for id in keys:
            self._held[id].state = None
        infos, gone = self._query(set(keys))
        infos = self._arrived(infos)
        silent = keys.keys() - {info.id for info in infos} - set(gone)
        infos += [JobInfo(id=id) for id in silent]  # nobody can tell now; what they are called is known
        named = [info.replace(extensions={**info.extensions, "key": keys[str(info.id)]}) for info in infos]
        return named, [keys[id] for id in gone]

    def remembered(self) -> Sequence[Known]:
        """What all programs have submitted in this session and nobody has reaped."""
        found: list[Known] = []
        entries = [entry for entry in self.place.all_entries() if program_of(entry.key) not in self._programs]
        reaped = self.place.reaped([entry.key for entry in entries if entry.indexes is not None])
        for entry in entries:
            for index in [None] if entry.indexes is None else entry.indexes:
                if index in reaped.get(entry.key, ()):
                    continue
                key = entry.key if index is None else f"{entry.key}.{index}"
                found.append(
                    Known(key, None, entry.template, job_id=entry.job_id, index=entry.index if index is None else index)
                )
        return found

    # -- control --

    def control(self, ids: Sequence[str], action: Action) -> dict[str, WflError]:
        """In bulk; what the scheduler says of a failure is said of all that it was told in one word."""
        failures: dict[str, WflError] = {}
        grouped = self._grouped(ids)
        if action in ENDING:
            self._call_off(grouped)
        self._let_rest(ids)
        for one, error in ordered(list(grouped), action, self._order, self.scheduler.unknown).items():
            failures |= dict.fromkeys(grouped[one], error)
        failures = self._undone(failures, action)
        self._expect(soon=True)
        self._was_told([id for id in ids if id not in failures], action)
        return failures

    def _was_told(self, ids: Sequence[str], action: Action) -> None:
        """The scheduler has taken this word for these."""
        if action in ENDING:
            for id in ids:
                self._held[id].ending = True
        elif action in _SIGNALS:
            for id in ids:
                self._held[id].rests = time.monotonic() + self.scheduler.rest
        self._tell(ids, action)

    def _let_rest(self, ids: Iterable[str]) -> None:
        """Until the word before has reached these jobs, where a scheduler loses one that comes too soon after it."""
        time.sleep(max(0.0, max((self._held[id].rests for id in ids), default=0.0) - time.monotonic()))

    def _undone(self, failures: dict[str, WflError], action: Action) -> dict[str, WflError]:
        """Without those to which it was done: what an array is told some elements may do where others cannot."""
        states = _DONE.get(action)
        if states is None or all(self._held[id].array is None for id in failures):
            return failures
        done = {id for seen in self.client.jobs() if seen.info.state in states for id in self._ids(seen)}
        return {id: error for id, error in failures.items() if id not in done}

    def _order(self, ids: Sequence[str], action: Action) -> None:
        """Tell the scheduler to do it to all of these."""
        self.client.order([native_id(id) for id in ids], action)

    def _call_off(self, grouped: Mapping[str, Sequence[str]]) -> None:
        """Whatever the scheduler makes of it, what has not begun yet is not to run: jobs, elements, whole arrays."""
        for one, ids in grouped.items():
            held = self._held[ids[0]]
            if one == held.array and len(held.entry.parts) == 1:
                self.place.stop(held.entry.key)
                continue
            for id in ids:
                if not self._held[id].started:
                    self.place.stop(self._held[id].key)

    def _grouped(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """The same jobs in fewer words: an array whose living elements are all meant stands for them."""
        members: dict[str, list[str]] = {}
        for id in ids:
            members.setdefault(self._held[id].array or id, []).append(id)
        with self._lock:
            living = Counter(self._held[id].array or id for ids in self._living.values() for id in ids)
        found: dict[str, list[str]] = {}
        for one, some in members.items():
            found |= {one: some} if len(some) >= living[one] else {id: [id] for id in some}
        return found

    def _tell(self, ids: Sequence[str], action: Action) -> None:
        """The state that follows, before the scheduler shows it."""
        state = AFTER.get(action)
        if state is not None:
            for id in ids:
                self._held[id].state = None
            self._report([fact(id=id, state=state) for id in ids])

    # -- output --

    def read(self, id: str, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:
        """From the file that the job writes."""
        held = self._held.get(id)
        if held is None:
            raise InvalidStateError(f"{id}: its output was removed")
        path = self._output(held, stream)
        if path is None:
            return b"", True
        if path == "/dev/null":
            raise UnsupportedOperationError(f"{id}: its output was sent to /dev/null")
        there = self._machine.exists(path) or not self.place.entries([held.entry.key]) or self._appears(path, held)
        return self._machine.part(path, offset, limit) if there else (b"", True)  # it has not begun

    def _appears(self, path: str, held: Held) -> bool:
        """Whether a job has written this; waits for it, as other machines' files come late on a shared file system."""
        end, id = self.place.end(held.key), self._by_key.get(held.key)
        if (id is not None and self._lives(id)) or (end is not None and end.status is None) or not self._began(held):
            return False
        given_up = time.monotonic() + LATE
        while not self._machine.exists(path):
            if time.monotonic() > given_up:
                if end is None:  # it was killed, perhaps before it wrote anything
                    return False
                words = f"{path} was written by the job and did not appear here within {LATE:g} s"
                raise InvalidStateError(
                    f"{words}: was it removed, or is it on no file system that both machines share?"
                )
            time.sleep(LOOK[0])
            with suppress(SessionManagementError):
                self._machine.names([posixpath.dirname(path)])  # so that a client of NFS looks again
        return True

    def _output(self, held: Held, stream: Stream) -> str | None:
        template = held.entry.template
        if stream == "stderr" and (
            template.join_files or (template.output_path and template.output_path == template.error_path)
        ):
            return None
        given = template.output_path if stream == "stdout" else template.error_path
        if not given:
            return self.place.path("out" if stream == "stdout" else "err", held.key)
        given = given.replace(INDEX, held.key.rpartition(".")[2])
        return posixpath.join(template.working_directory or "/", given)

    def reap(self, ids: Sequence[str]) -> None:
        """Remove what the jobs have left."""
        parts: dict[str, list[int]] = {}
        whole: list[str] = []
        elements: list[str] = []
        for id in ids:
            with self._lock:
                held = self._held.pop(id, None)
                if held is None:
                    continue
                self._lives_no_more(id)  # a job that another program saw end
                self._by_key.pop(held.key, None)
                left = self._left.pop(held.entry.key, 1) - 1
                if left:
                    self._left[held.entry.key] = left
            (whole if held.array is None else elements).append(held.key)
            if held.array is not None and left:
                parts.setdefault(held.entry.key, []).append(_index(held.key))
            elif held.array is not None:
                parts.pop(held.entry.key, None)
                whole.append(held.entry.key)
            if not left:
                self.ending.forget(held.entry.key)
        self.place.forget(elements, ELEMENT)
        self.place.forget(whole)
        for key, indexes in parts.items():
            self.place.note_reaped(key, indexes)

    # -- the end --

    def close(self, *, end: bool) -> None:
        """Leave everything to the scheduler; or end it all, and leave nothing behind that no store tells of."""
        self._carrier.close()
        if not end:
            self.ending.goodbye()
            try:
                for program in list(self._living):
                    self.place.tidy(program)
            except WflError as error:
                log.info("%s: an empty directory may be left: %s", self.name, error)
            finally:
                self._machine.close()
            return
        with self._lock:
            living = [(id, self._held[id]) for ids in self._living.values() for id in ids]
        own = {native_id(held.array or id) for id, held in living if self.ending.is_own(held.entry.key)}
        self._let_rest(id for id, _ in living)
        try:
            self.ending.close(sorted(own))
        finally:
            self._machine.close()

    def _cancel(self, ids: Sequence[str]) -> None:
        self.client.cancel([native_id(id) for id in ids])

    def how_to_cancel(self, ids: Collection[str]) -> str:
        """In the scheduler's own words, too."""
        known = dict.fromkeys(native_id(held.array or id) for id in ids if (held := self._held.get(id)) is not None)
        theirs = f", or {how_to_cancel(self.scheduler, list(known))}" if known else ""
        return super().how_to_cancel(ids) + theirs

    def abandon(self) -> None:
        """In a forked child: the helper must see the end of the program that owns it."""
        self.ending.abandon()
        self._machine.abandon()


class Preview(msgspec.Struct, frozen=True):
    """What would be run: the scheduler's command line, and the script that it is given."""

    command: tuple[str, ...]
    script: str

    def __str__(self) -> str:
        import shlex

        return f"{shlex.join(self.command)}\n\n{self.script}"


@contextmanager
def _not_yet() -> Iterator[None]:
    """Where a machine is not reached in here, nothing was submitted, and that is known."""
    try:
        yield
    except DrmCommunicationError as error:
        raise DeniedByDrmsError(f"nothing was submitted: {error}") from error


def _index(key: str) -> int:
    """Of an element, by its key."""
    return int(key.rpartition(".")[2])


def _behind(job: Job, before: str | None) -> Job:
    """A later part of an array waits for the one before, where only so many elements may run at once."""
    return structs.replace(job, after=before) if job.part and job.entry.max_parallel else job


def _settled(template: JobTemplate, base: str) -> JobTemplate:
    """With absolute directories: the job's own is another than the program's."""
    where = posixpath.normpath(posixpath.join(base, template.working_directory or ""))
    changes: dict[str, Any] = {"working_directory": where}
    for field in ("input_path", "output_path", "error_path"):
        path = getattr(template, field)
        if path and not posixpath.isabs(path):
            changes[field] = posixpath.join(where, path)
    return template.replace(**changes)

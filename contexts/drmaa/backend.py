"""DrmaaBackend: jobs through a scheduler's DRMAA library; what they write about themselves is read as on every cluster.

Ends come from the library, which tells each once to this process (library.py). Where it tells nothing, as for jobs of
an earlier program, the jobs' own records do, and a few questions a second, one job each, as DRMAA 1 has no other.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

from wfl.backend import Action, Limits, Submission
from wfl.contexts.batch.client import ENDING
from wfl.contexts.batch.engine import AFTER, BatchBackend, native_id
from wfl.contexts.batch.gridengine import GridEngine
from wfl.contexts.batch.place import Entry
from wfl.contexts.drmaa import system
from wfl.contexts.drmaa.library import connection
from wfl.drmaa2 import JobInfo, JobState, fact
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, InvalidStateError, WflError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from wfl.backend import Outcome, Report
    from wfl.contexts.batch.engine import Held
    from wfl.contexts.batch.scheduler import Job, Scheduler
    from wfl.contexts.drmaa.library import Waited
    from wfl.contexts.ends import Account
    from wfl.drmaa2 import JobTemplate

log = logging.getLogger("wfl")
LOOK = (0.05, 1.0)
"""Seconds between two looks at what the jobs have written: the shortest, and the longest while there is no news."""
SHARE = 0.02
"""The part of a processor's time that looking may take, where there are many jobs."""
ROUND = (1.0, 30.0)
"""Seconds between two rounds of questions to the library: the shortest, and the longest while there is no news."""
STATES = (5, 20)
"""Questions in one round, one for each job: where the library tells of ends, and where it does not."""
AT_ONCE = 200
"""Questions that finding jobs again may ask; the rest is asked in rounds."""
SLOWER = 1.5
RECORD = 5.0
"""Seconds that a job's own record of its end is waited for when the library has told of that."""
TELLING = 30.0
"""Seconds that the library is waited for when a job's own record tells of its end, or when it knows the job no more."""
_IMPOSSIBLE = {
    Action.SUSPEND: "it has not begun",
    Action.RESUME: "it is not suspended",
    Action.HOLD: "it has begun",
    Action.RELEASE: "it is not held",
}


class DrmaaBackend(BatchBackend):
    """One scheduler through its DRMAA library, for one session."""

    tells = True

    def __init__(self, scheduler: Scheduler, *, contact: str | None, **settings: Any) -> None:
        super().__init__(scheduler, **settings)
        self.limits = Limits(requests=4, submissions=1, collect=60.0)
        self._contact = contact
        self._most: int | None = None  # elements in an array, as an error has told
        self._waited: dict[str, Waited] = {}
        self._records: dict[str, float] = {}  # when a record of an end was seen that the library has not told of
        self._unknown: dict[str, float] = {}  # when the library first did not know a job that it should tell of
        self._told_of: set[str] = set()  # ids whose ends the library will tell
        self._queue: deque[str] = deque()
        self._asked_at, self._rounds = 0.0, ROUND[0]
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._watch: threading.Thread | None = None

    # -- before anything is started --

    def check(self, template: JobTemplate) -> None:
        """Whether the library, and a shell, can do what the template says."""
        super().check(template)
        entry = Entry("check-0", template, "check-0")
        system.attributes(self._jobs(entry)[0], self.scheduler)

    def _shown(self, job: Job) -> tuple[str, ...]:
        """The attributes that would be given to the library in the place of a command line."""
        return _shown(job, self.scheduler)

    def open(self, report: Report, directory: Path | None) -> None:
        """Begin the library's session, which contacts the scheduler."""
        super().open(report, directory)
        connection.enter(self, self._contact)

    # -- submitting --

    def submit_array(self, submission: Submission, indexes: range, max_parallel: int | None) -> Sequence[Outcome]:
        """In one call; in several where an error says how many elements an array may have."""
        outcomes = super().submit_array(submission, indexes, max_parallel)
        refusal = outcomes[0] if outcomes else None
        most = system.most(str(refusal)) if isinstance(refusal, DeniedByDrmsError) else None
        if most is None or (self._most is not None and most >= self._most):
            return outcomes
        self._most = most
        return super().submit_array(submission, indexes, max_parallel)

    def _highest(self) -> int | None:
        return self._most

    def _send(self, job: Job) -> str:
        attributes = system.attributes(job, self.scheduler)
        try:
            if job.wave is None:
                ids = [connection.library.run(attributes)]
            else:
                ids = connection.library.run_bulk(attributes, job.wave.numbers)
        except DeniedByDrmsError as error:
            given = [os.fsdecode(attributes.get(name, b"")) for name in ("jobCategory", "nativeSpecification")]
            raise DeniedByDrmsError(f"{error} (asked for: {' '.join(filter(None, given))})") from error
        id = ids[0] if job.wave is None else ids[0].rpartition(".")[0]
        with self._lock:
            self._told_of.update(ids)
        return id

    def _hold(self, entry: Entry, ids: Mapping[int, str]) -> list[str]:
        found = super()._hold(entry, ids)
        if self._contact is not None:  # whoever takes a session over is told of its jobs
            self._told_of.update(found)
        connection.claim([id for id in found if id in self._told_of], self._have_ended)
        self._attend()
        return found

    def _expect(self, *, soon: bool = False) -> None:
        super()._expect(soon=soon)
        self._rounds = ROUND[0]
        self._wake.set()

    # -- ends --

    def _have_ended(self, waited: Sequence[Waited]) -> None:
        """The library tells: reported whole, unless the job's own record has still to come."""
        infos = []
        for one in waited:
            held = self._held.get(one.id)
            if held is None:
                continue
            self._waited[one.id] = one
            if self._is_whole(held, one):
                infos.append(self._whole(one.id, held))
            else:
                infos.append(fact(id=one.id, state=JobState.DONE))
        self._report(infos)

    def _is_whole(self, held: Held, waited: Waited) -> bool:
        """A command that was not killed leaves a record, which may be late on a shared file system.

        Of a job that has begun `aborted` says no more than that the scheduler knows nothing, as after its own death.
        """
        if waited.aborted:
            return not self._began(held)
        return waited.exit_status is None or self.place.end(held.key) is not None

    def _whole(self, id: str, held: Held, account: Account | None = None) -> JobInfo:
        """What the library has told goes before the scheduler's own record."""
        waited, own = self._waited.pop(id, None), self.place.end(held.key)
        if waited is not None and not (waited.aborted and own is not None):
            account = system.account(waited, held.entry.template)
        with self._lock:
            for seen in (self._records, self._unknown):
                seen.pop(id, None)
            self._told_of.discard(id)
        if waited is None:
            connection.disclaim([id])
        return self._ended(id, held, own, account)

    def collect(self, ids: Sequence[str]) -> Sequence[JobInfo]:
        """Ends of which one source has told and the other was still missing."""
        now, found, rest = time.monotonic(), [], {}
        for id in ids:
            held = self._held.get(id)
            if held is None:
                continue
            held.since = held.since or now
            record, told = self.place.end(held.key) is not None, self._waited.get(id)
            waited = told is not None and not told.aborted
            if now - held.since > RECORD or (record and (waited or not isinstance(self.scheduler, GridEngine))):
                found.append((id, held))
            elif not waited and (record or now - held.since > ROUND[0]):
                rest[id] = held
        return [self._whole(id, held) for id, held in found] + self._from_records(rest)

    def _from_records(self, todo: Mapping[str, Held]) -> list[JobInfo]:
        """Nobody told of these: the scheduler's own records may, where its commands are here."""
        if not todo or not isinstance(self.scheduler, GridEngine):
            return []
        try:
            accounts, _ = self._accounts(todo)
        except WflError as error:
            log.info("drmaa: the records of ends cannot be had now: %s", error)
            return []
        return [self._whole(id, held, accounts[id]) for id, held in todo.items() if id in accounts]

    # -- what happens in between --

    def _attend(self) -> None:
        with self._lock:
            if self._watch is None and not self._stop.is_set():
                self._watch = threading.Thread(target=self._look_on, name="wfl-drmaa-look", daemon=True)
                self._watch.start()
        self._wake.set()

    def _look_on(self) -> None:
        """The thread: looks at what the jobs have written, and asks the library about a few."""
        pause = LOOK[0]
        while not self._stop.is_set():
            self._wake.wait(pause if any(self._living.values()) else None)
            if self._wake.is_set():
                self._wake.clear()
                pause = LOOK[0]
            began = time.thread_time()
            news = self._look_once()
            if news and not self._stop.is_set():
                self._report(news)
            pause = LOOK[0] if news else min(pause * SLOWER, LOOK[1])
            self._stop.wait((time.thread_time() - began) / SHARE)

    def _look_once(self) -> list[JobInfo]:
        try:
            news = self._look(set().union(*self._living.values()))
            return news + self._round() if time.monotonic() - self._asked_at >= self._rounds else news
        except WflError as error:
            log.info("drmaa: looking at jobs: %s; trying again", error)
        except Exception:  # whatever it was, the next look may go better
            log.exception("drmaa: looking at jobs failed in an unforeseen way; trying again")
        return []

    def _is_awaited(self, id: str) -> bool:
        """Whether the library will tell of this end itself: a record that it passes over for long is not its."""
        if id in self._waited:
            return True
        now = time.monotonic()
        return id in self._told_of and now - self._records.setdefault(id, now) < TELLING

    def _round(self) -> list[JobInfo]:
        """Ask for the states of a few, in turn."""
        self._asked_at = time.monotonic()
        living = set().union(*self._living.values())
        foreign = living - self._told_of
        ended = self._have_been_cancelled(foreign)
        living -= {info.id for info in ended}
        if not self._queue:
            self._queue.extend(living)
        ids: list[str] = []
        while self._queue and len(ids) < STATES[bool(foreign)]:
            if (id := self._queue.popleft()) in living:
                ids.append(id)
        found, gone = self._states(ids)
        found += [fact(id=id, state=JobState.DONE) for id in gone]  # to be collected
        unforeseen = any(info.state is not JobState.RUNNING for info in found)
        self._rounds = ROUND[0] if unforeseen or foreign else min(self._rounds * SLOWER, ROUND[1])
        return ended + found

    def _have_been_cancelled(self, foreign: Collection[str]) -> list[JobInfo]:
        """Of many that were told to end, and of which the library does not tell: what Grid Engine's own list says."""
        ending = {id for id in foreign if (held := self._held.get(id)) is not None and held.ending}
        if len(ending) <= STATES[True] or not isinstance(self.scheduler, GridEngine):
            return []
        try:
            found, gone = super()._query(ending)
        except WflError as error:
            log.info("drmaa: the list of jobs cannot be had now: %s", error)
            return []
        return found + [fact(id=id, state=JobState.DONE) for id in gone]

    def _states(self, ids: Iterable[str]) -> tuple[list[JobInfo], list[str]]:
        """What the library says of these, as far as it is new; and those that it does not know (any more)."""
        found: list[JobInfo] = []
        gone: list[str] = []
        for id in ids:
            held = self._held.get(id)
            if held is None or not self._lives(id):
                continue
            try:
                state = system.STATES.get(connection.library.status(native_id(id)))
            except InvalidStateError:
                if id not in self._told_of or self._is_forgotten(id):
                    gone.append(id)
                continue
            self._unknown.pop(id, None)
            if state is not None and (info := self._changed(held, state)) is not None:
                found.append(info.replace(id=id))
        return found, gone

    def _is_forgotten(self, id: str) -> bool:
        """Whether the library has not known a job for long that it should tell of: somebody else was told."""
        now = time.monotonic()
        return now - self._unknown.setdefault(id, now) > TELLING

    def _changed(self, held: Held, state: JobState) -> JobInfo | None:
        if held.started and state in (JobState.QUEUED, JobState.QUEUED_HELD):
            if not held.entry.template.rerunnable:
                return None  # a hold on what runs says nothing; and what is asked may be older than what was seen
            state = JobState.REQUEUED if state is JobState.QUEUED else JobState.REQUEUED_HELD
        info = JobInfo(state=state)
        if info == (held.state or JobInfo(state=JobState.RUNNING if held.started else JobState.QUEUED)):
            return None
        held.state, held.started = info, held.started or state.started
        return info

    def _query(self, wanted: set[str]) -> tuple[list[JobInfo], list[str]]:
        """Where these are, as far as their records and a bounded number of questions tell; the rest follows."""
        found, unknown = [], []
        for id in sorted(wanted):
            held = self._held[id]
            if self.place.end(held.key) is not None and not held.entry.template.rerunnable:
                found.append(fact(id=id, state=JobState.DONE))
            else:
                unknown.append(id)
        for id in unknown:
            held = self._held[id]
            held.started = self._began(held)
        infos, gone = self._states(islice(unknown, AT_ONCE))
        found += infos
        found += [fact(id=id, state=JobState.DONE) for id in gone]  # they have ended; how, collect() finds out
        there = {info.id for info in found}
        for id in unknown:
            if id not in there:
                found.append(fact(id=id, state=self._last_known(id)))
        return found, []

    def _last_known(self, id: str) -> JobState:
        """Where this was when somebody last asked, which may have been the thread that looks on, a moment ago."""
        held = self._held[id]
        if held.state is not None and (held.state.state.started or not held.started):
            return held.state.state
        return JobState.RUNNING if held.started else JobState.QUEUED

    def _search(self, entries: Mapping[str, Entry]) -> set[str]:
        """Submissions without an answer: by Grid Engine's own list; else what has not begun never will."""
        if isinstance(self.scheduler, GridEngine):
            return super()._search(entries)
        waits = {key for key in entries if self._another_may_submit(key)}
        accepted = self.place.accepted(entries.keys() - waits)
        self.place.forget(key for key, ids in accepted.items() if not ids)
        return waits

    # -- control --

    def control(self, ids: Sequence[str], action: Action) -> dict[str, WflError]:
        """One call for each job, or for an array of which all that lives is meant."""
        failures = {id: error for id in ids if (error := self._impossible(id, action)) is not None}
        grouped = self._grouped([id for id in ids if id not in failures])
        if action in ENDING:
            self._call_off(grouped)
        self._let_rest(ids)
        for one, some in grouped.items():
            failures.update(self._controlled(one, some, action))
        self._expect()
        self._was_told([id for id in ids if id not in failures], action)
        return failures

    def _controlled(self, one: str, members: Sequence[str], action: Action) -> dict[str, WflError]:
        try:
            self._order([one], action)
        except DrmCommunicationError:
            raise
        except WflError as error:
            if list(members) == [one]:
                return {one: error}
            failures: dict[str, WflError] = {}  # some may have ended, which is no reason to leave out the others
            for id in members:
                failures.update(self._controlled(id, [id], action))
            return failures
        return {}

    def _impossible(self, id: str, action: Action) -> WflError | None:
        """What the library would do, or pass over, without a word."""
        held = self._held[id]
        held.started = self._began(held)
        state = held.state.state if held.state is not None else None
        wrong = {
            Action.SUSPEND: not held.started,
            Action.RESUME: state is not JobState.SUSPENDED,
            Action.HOLD: held.started,
            Action.RELEASE: held.started,
        }.get(action, False)
        return InvalidStateError(f"{id}: cannot {action.value}: {_IMPOSSIBLE[action]}") if wrong else None

    def _tell(self, ids: Sequence[str], action: Action) -> None:
        super()._tell(ids, action)
        state = AFTER.get(action)
        if state is not None:
            for id in ids:
                self._held[id].state = JobInfo(state=state)

    def _order(self, ids: Sequence[str], action: Action) -> None:
        for id in ids:
            connection.library.control(native_id(id), "terminate" if action is Action.KILL else action.value)

    def _cancel(self, ids: Sequence[str]) -> None:
        for id in ids:
            try:
                self._order([id], Action.KILL)
            except DrmCommunicationError:
                raise
            except WflError as error:  # it has ended
                log.debug("drmaa: %s", error)

    # -- the end --

    def reap(self, ids: Sequence[str]) -> None:
        """Remove what the jobs have left."""
        super().reap(ids)
        for id in ids:
            self._waited.pop(id, None)
            self._told_of.discard(id)

    def close(self, *, end: bool) -> None:
        """Leave the library's session to the others; with `end`, everything that lives is ended first."""
        try:
            if end and not isinstance(self.scheduler, GridEngine):
                with self._lock:
                    own = [id for id in set().union(*self._living.values()) if self._is_own(id)]
                self._cancel(own)
            super().close(end=end)
        finally:
            self._stop.set()
            self._wake.set()
            connection.disclaim(list(self._told_of))
            connection.leave(self)

    def how_to_cancel(self, ids: Collection[str]) -> str:
        """By Grid Engine's command too; elsewhere there is none that is known."""
        return super().how_to_cancel(ids if isinstance(self.scheduler, GridEngine) else ())

    def _is_own(self, id: str) -> bool:
        return self.ending.is_own(self._held[id].entry.key)

    def abandon(self) -> None:
        """In a forked child the library cannot be used, and no thread is there."""
        self._stop = threading.Event()
        self._stop.set()
        super().abandon()


def _shown(job: Job, scheduler: Scheduler) -> tuple[str, ...]:
    """The attributes, for people."""
    words = {
        name: [os.fsdecode(one) for one in value] if isinstance(value, list) else value
        for name, value in system.attributes(job, scheduler).items()
    }
    lines = [f"{name}={os.fsdecode(value) if isinstance(value, bytes) else value}" for name, value in words.items()]
    wave = job.wave
    if wave is None:
        return ("runJob", *lines)
    return ("runBulkJobs", *lines, str(wave.numbers[0]), str(wave.numbers[-1]), str(wave.numbers.step))

"""JobSession: the ledger of all jobs of one workflow, and the only place that waits.

Backends put facts into it (`observe`), verbs and callbacks read it. One lock guards it; it is never held while a
backend works or user code runs.
"""

from __future__ import annotations

import atexit
import itertools
import os
import re
import threading
import weakref
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any

from msgspec import structs

from wfl.asker import Asker
from wfl.backend import INDEX, Action, Backend, Known, Submission, UnsettledError, ended
from wfl.context import check_max_parallel
from wfl.drmaa2 import WALLCLOCK_TIME, Capability, JobInfo, JobState, agrees, fact
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InternalError,
    InvalidArgumentError,
    InvalidSessionError,
    InvalidStateError,
    TimeoutError,
    UnsupportedOperationError,
    WflError,
)
from wfl.gate import Gate, advance, leave_all
from wfl.log import log
from wfl.placeholders import fill, has_placeholders
from wfl.record import ACCEPTED, ENDED, HERE, NEVER, SUBMITTING, Collector, Record, Unseen, Waiter
from wfl.task import Task, TaskArray
from wfl.threads import Pool, in_threads
from wfl.timing import timeout_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from wfl.backend import Outcome, Stream
    from wfl.context import Context
    from wfl.drmaa2 import JobTemplate
    from wfl.persistence import Persistence
    from wfl.store import Store

    Submit = Callable[[Sequence[Submission]], Sequence[Outcome]]

KILL_GRACE = 2.0
"""Seconds between asking a job to end and killing it, where the session enforces a limit of time."""
COLLECT = (0.1, 2.0)
"""Seconds between two rounds of questions about how jobs have ended: the first, and the longest."""
CHUNK = 1 << 20
"""Bytes of output read at once."""
FOLLOW = 0.03
"""Seconds between two looks at the output that somebody is following."""
CALLBACK_THREADS = 1000
_CLOSED = "ended when its session was closed"
_DROPPED = "without a store nobody starts them after this program"
_ENDING = (Action.TERMINATE, Action.KILL)
_CANCELLED = ("cancelled", "ended by its own program")
CALLBACK_PATIENCE = 5.0
"""Seconds that closing waits for callbacks that have not returned."""
_EARLY = _SAME_START = timedelta(seconds=1)
"""Two sources may tell one start with times that differ a little."""
WORKERS = 8
SHOWN = 5
"""Ids in a line for people."""
_KEY = re.compile(r"[0-9a-z]{1,32}-[0-9]{1,18}")
"""What a key may look like, so that every system can have it in a name."""


_PROVIDED = {
    Capability.BULK_JOBS_MAXPARALLEL,
    Capability.CALLBACK,
    Capability.DEADLINE,
    Capability.HOLD,
    Capability.JT_DEADLINE,
    Capability.MAX_PARALLEL,
    Capability.START_TIME,
    Capability.WALLCLOCK_LIMIT,
}
"""What the session does for every system that cannot."""


class JobSession:
    """A DRMAA2 job session on one execution system.

    Opening raises SessionManagementError or what the system says. A session belongs to the process that opened it:
    in a forked child every call is an InvalidSessionError.
    """

    def __init__(self, context: Context) -> None:
        self.name = context.session_name
        self.context = context
        self.backend = context.backend()
        self._lock = threading.RLock()  # a signal handler or finaliser may come in between
        self._records: dict[str, Record] = {}
        self._arrays: dict[str, TaskArray] = {}
        self._uncollected: dict[Record, float] = {}
        self._collects = True  # whether the last attempt went well
        self._collects_at = inf  # when the next round is planned; -inf while one goes on
        self._early: dict[str, list[JobInfo]] = {}
        self._submitting = 0
        self._key = f"{os.urandom(5).hex()}-"
        self._numbers = itertools.count(1)
        self._taken: set[str] = set()  # all keys, from the first that a caller has chosen
        self._watchers: tuple[Callable[[Sequence[Record]], object], ...] = ()
        self._closed: str | None = None
        self._unended = 0
        self.unseen = Unseen()
        self.clock = context.clock()
        self._workers = self.clock.pool("wfl-worker", WORKERS)
        self._callbacks = Pool("wfl-callback", CALLBACK_THREADS)
        self._kept: Persistence | None = None
        self._asker: Asker | None = None
        self._ages: dict[tuple[str | None, str | None], float] = {}  # at which jobs of a kind ended last
        self.changes = 0
        self.callback_errors: list[tuple[Task, Exception]] = []
        requests = self.backend.limits.requests
        self._places: AbstractContextManager[Any] = nullcontext() if requests is None else threading.Semaphore(requests)
        self._has = self.backend.capabilities.__contains__
        self.store = _open_store(context.store)
        with ExitStack() as undo:
            if self.store:
                undo.callback(self.store.close)
            self.backend.open(self.observe, self.store.directory(self.name) if self.store else None)
            undo.callback(self.backend.close, end=False)
            undo.callback(self.clock.stop)
            if not self.backend.tells:
                self._asker = Asker(self, self.clock, self._workers)
                undo.callback(self._asker.stop)
            if self.store:
                from wfl.persistence import Persistence

                self._kept = Persistence(self, self.store)
                undo.callback(self.store.leave)
                self._kept.come_back(opening=True)
            undo.pop_all()
        _open_sessions.add(self)
        atexit.unregister(_close_all)
        atexit.register(_close_all)  # so that it comes before what the backend's libraries do then

    # -- DRMAA2's calls ------------------------------------------------------------------------------------------------

    def supports(self, capability: Capability) -> bool:
        """Whether this can be done here, by the system itself or by the session in its place."""
        return capability in _PROVIDED or self._has(capability)

    def run_job(self, template: JobTemplate) -> Task:
        """Submit one job. Raises what the system says if it refuses."""
        (task,) = self.start([template])
        if task.error is not None:
            raise task.error
        return task

    def run_bulk_jobs(self, template: JobTemplate, indexes: range, max_parallel: int | None = None) -> TaskArray:
        """Submit one array. Raises what the system says if it refuses all of it."""
        array = self.start_array(template, indexes, max_parallel)
        if array.error is not None and all(task.error for task in array.tasks):
            raise array.error
        return array

    def get_jobs(self, like: JobInfo | None = None) -> list[Task]:
        """All jobs of the session, also from earlier programs; only those that agree with `like` where it says.

        The attempts of a retried job are one.
        """
        self.refresh()
        attempts: dict[str, list[Record]] = {}
        with self._lock:
            for record in sorted(self._records.values(), key=lambda record: record.attempt):
                attempts.setdefault(record.first, []).append(record)
        tasks = [Task.of_attempts(records) for records in attempts.values()]
        return [task for task in tasks if like is None or agrees(task.info(), like)]

    def get_job_array(self, id: str) -> TaskArray:
        """The array of this id. Raises InvalidArgumentError if there is none."""
        self.refresh()
        array = self._arrays.get(id)
        if array is None:
            raise InvalidArgumentError(f"session {self.name!r} has no array {id!r}")
        return array

    def array_of(self, task: Task) -> TaskArray | None:
        """The array that a task is an element of."""
        return None if task.index is None else self._arrays.get(task._record.job_id)

    def wait_any_started(self, tasks: Sequence[Task], timeout: float | timedelta | None = None) -> Task:
        """Wait until one of these has started or ended, and return it. Raises TimeoutError."""
        return self._wait_any(tasks, timeout_seconds(timeout), started=True)

    def wait_any_terminated(self, tasks: Sequence[Task], timeout: float | timedelta | None = None) -> Task:
        """Wait until one of these has ended, and return it. Raises TimeoutError."""
        return self._wait_any(tasks, timeout_seconds(timeout), started=False)

    # -- submitting --

    def start(self, templates: Sequence[JobTemplate], keys: Sequence[str] | None = None) -> list[Task]:
        """Submit jobs; one that is refused is a task that has FAILED, with the reason in its `error`.

        `keys` are of `new_key`, this session's or an earlier one's: who has written one down before knows after a crash
        which job it became. Raises InvalidArgumentError, and starts nothing, where the ledger has one of them.
        """
        self._check_open()
        chosen = keys is not None
        keys = [self.new_key() for _ in templates] if keys is None else [_checked_key(key) for key in keys]
        records = []
        for template, key in zip(templates, keys, strict=True):
            source = self.backend.resolve(template)
            records.append(Record(self, key, self._fill(source), source=source))
        self._admit(records, chosen=chosen)
        return [Task(record) for record in records]

    def again(self, record: Record) -> Record:
        """Submit the job of this record once more, as a new record (an element keeps its index)."""
        self._check_open()
        key = self.new_key()
        job_id = key if record.index is None else record.job_id
        template = self._fill(record.source, record.index)
        new = Record(
            self,
            key,
            template,
            source=record.source,
            job_id=job_id,
            index=record.index,
            first=record.first,
            attempt=record.attempt + 1,
        )
        self._admit([new], gate=record.gate)
        return new

    def start_array(
        self, template: JobTemplate, indexes: range, max_parallel: int | None = None, *, key: str | None = None
    ) -> TaskArray:
        """Submit an array: natively where the system has arrays, else element by element.

        Its id is `key`, as in `start`; those of its elements are that, a point and the index.
        """
        self._check_open()
        check_max_parallel(max_parallel)
        job_id = self.new_key() if key is None else _checked_key(key)
        merged = template.merged_with(self.context.default_template)
        if len(indexes) > 1:
            _check_output(merged)
        same = not has_placeholders(merged)
        if same:
            merged = self.backend.resolve(merged)
        template = self.backend.resolve(template)
        records = [
            Record(
                self,
                f"{job_id}.{index}",
                merged if same else self._filled(merged, index),
                source=template,
                job_id=job_id,
                index=index,
            )
            for index in indexes
        ]
        tasks = [Task(record) for record in records]
        array = TaskArray(self, job_id, merged, tasks, source=template, max_parallel=max_parallel)
        native = self.context.takes_whole(self.backend, merged)
        gate: Gate | None = None
        submit: Submit | None = None
        if max_parallel and not (native and self._has(Capability.MAX_PARALLEL)):
            gate = Gate(max_parallel)
        elif native:
            whole = Submission(job_id, merged if same else self._filled(merged, INDEX), job_id)

            def submit(_: Sequence[Submission]) -> Sequence[Outcome]:
                return self.backend.submit_array(whole, indexes, max_parallel)

        self._admit(records, gate=gate, submit=submit, array=array, chosen=key is not None)
        return array

    def new_key(self) -> str:
        """A key that no job has."""
        return f"{self._key}{next(self._numbers)}"

    def _fill(self, template: JobTemplate, index: int | None = None) -> JobTemplate:
        """The template with defaults, and its placeholders replaced."""
        return self._filled(template.merged_with(self.context.default_template), index)

    def _filled(self, merged: JobTemplate, index: int | str | None) -> JobTemplate:
        return self.backend.resolve(fill(merged, index, self.context.next_task_number))

    def _admit(
        self,
        records: list[Record],
        *,
        gate: Gate | None = None,
        submit: Submit | None = None,
        array: TaskArray | None = None,
        chosen: bool = False,
    ) -> None:
        """Enter new records (the elements of `array`) into the ledger, and submit those that may start now."""
        gates = self._gates(gate)
        try:
            with self._lock:
                if chosen:
                    self._check_new([record.key for record in records], array)
                for record in records:
                    record.gates, record.gate = gates, gate
                    self._records[record.id] = record
                if chosen or self._taken:
                    self._taken.update(record.key for record in records)
                if array is not None:
                    self._arrays[array.id] = array
                self._unended += len(records)
            self._launch(records, submit)
        except BaseException:
            entered = [r for r in records if r.phase == HERE and self._records.get(r.id) is r]
            self._end_here(entered, "cancelled", "its submission was interrupted")
            raise

    def _check_new(self, keys: Sequence[str], array: TaskArray | None) -> None:
        """Refuse keys that the ledger has, or that are there twice (with the lock held)."""
        if len(self._taken) != len(self._records):  # the first that are chosen, or others came out of the store
            self._taken = {record.key for record in self._records.values()}
        names = {*keys} if array is None else {*keys, array.id}
        known = names & self._taken | names & self._arrays.keys()
        if known or len({*keys}) < len(keys):
            raise InvalidArgumentError(f"there is a job with the key {min(known, default=keys[0])!r} already")

    def _gates(self, gate: Gate | None) -> tuple[Gate, ...]:
        """What a task has to pass: that of its array, then that of the context."""
        return tuple(g for g in (gate, self.context.gate) if g is not None)

    def _launch(self, records: list[Record], submit: Submit | None) -> None:
        """Submit what may start now; what has to wait here goes to where it waits."""
        waits = bool(records and records[0].gates) or any(self._waits(record.template) for record in records)
        if self._kept is not None:
            try:
                self._kept.add(records, waits=waits)
            except WflError as error:
                self._refuse(records, error)
                return
        if not waits:
            self._submit(records, submit)
            return
        ready = [record for record in records if self._acceptable(record) and self._prepare(record)]
        self._tell(records)
        self._submit(ready, submit if len(ready) == len(records) else None, check_store=True)

    def _waits(self, template: JobTemplate) -> bool:
        return bool(template.submit_as_hold or template.start_time or template.deadline_time)

    def _acceptable(self, record: Record) -> bool:
        """Whether the system would take it: known at once, also for what has to wait here."""
        try:
            for gate in record.gates:
                if record.slots > gate.limit:
                    raise InvalidArgumentError(
                        f"min_slots is {record.slots}, but max_parallel is {gate.limit}: it could never start"
                    )
            self.backend.check(record.template)
        except WflError as error:
            self._refuse([record], error)
            return False
        return True

    def _prepare(self, record: Record) -> bool:
        """Go through hold, start time and gates; True if nothing is in the way."""
        template = record.template
        if template.deadline_time is not None:
            if _until(template.deadline_time) <= 0:
                self._end_here([record], "timeout", "its deadline_time had passed before it was submitted")
                return False
            self._end_by(record, template.deadline_time)
        if template.submit_as_hold and not self._has(Capability.HOLD):
            record.state = JobState.QUEUED_HELD
            return False
        return self._proceed(record)

    def _proceed(self, record: Record) -> bool:
        start = record.template.start_time
        if start is not None and not self._has(Capability.START_TIME) and (wait := _until(start)) > 0:
            self._later(wait, lambda: self._its_time(record))
            return False
        return advance(record)

    def _its_time(self, record: Record) -> None:
        if record.phase == HERE and record.state is JobState.QUEUED and advance(record):
            self._submit([record], check_store=True)

    def _submit(self, records: Sequence[Record], submit: Submit | None = None, *, check_store: bool = False) -> None:
        """Give records to the system, as many in one request, and as many requests at once, as it likes."""
        with self._lock:
            if self._closed is not None:
                return  # what waits is taken over by the next program, or ended by close()
            every = list(records)
            records = [r for r in records if r.phase == HERE and r.state is not JobState.QUEUED_HELD]
            for record in records:
                record.phase = SUBMITTING
        try:
            if check_store and self._kept is not None and records:
                try:
                    records = self._kept.start(records)
                except WflError as error:
                    self._put_back(records, error)
                    return
            if records != every:  # some of an array were ended meanwhile: the others are submitted one by one
                submit = None
            size = self.backend.limits.submissions if submit is None else None
            with self._expecting():
                self._in_parallel(lambda chunk: self._submit_chunk(chunk, submit), self.chunks(records, size))
        except WflError as error:
            self._refuse(records, error)
        except BaseException:
            self._unknown(records, DrmCommunicationError("the submission was interrupted"))
            raise

    def _put_back(self, records: Sequence[Record], error: WflError) -> None:
        """What cannot be written down now waits on, and is submitted when it can."""
        log.warning("%s; what waits goes on waiting", error)
        with self._lock:
            for record in records:
                record.phase = HERE if record.phase == SUBMITTING else record.phase
        self._later(1.0, lambda: self._submit([r for r in records if r.own], check_store=True))

    @contextmanager
    def _expecting(self) -> Iterator[None]:
        """Meanwhile ids become known: what is told of unknown ones before that is kept for them."""
        with self._lock:
            self._submitting += 1
        try:
            yield
        finally:
            with self._lock:
                self._submitting -= 1
                if not self._submitting:
                    self._early.clear()

    @staticmethod
    def chunks(items: Sequence[Any], size: int | None) -> list[Sequence[Any]]:
        """Cut into pieces that fit in one request."""
        if size is None or len(items) <= size:
            return [items] if items else []
        return [items[start : start + size] for start in range(0, len(items), size)]

    def _in_parallel(self, f: Callable[[Sequence[Any]], None], chunks: list[Sequence[Any]]) -> None:
        if len(chunks) <= 1:
            for chunk in chunks:
                f(chunk)
            return
        in_threads(f, chunks, self.backend.limits.requests or WORKERS, "wfl-request")

    def _later(self, seconds: float, f: Callable[[], object]) -> None:
        """Do this in so many seconds, on one of the session's own threads."""
        self.clock.after(seconds, lambda: self._workers.submit(lambda: _void(f())))

    def request(self, f: Callable[..., Any], *arguments: object) -> Any:
        """One request to the system, when there is a place for it."""
        with self._places:
            return f(*arguments)

    def _submit_chunk(self, records: Sequence[Record], submit: Submit | None) -> None:
        submissions = [Submission(r.key, r.template, r.job_id, r.index) for r in records]
        try:
            outcomes: Sequence[str | WflError] = self.request(submit or self.backend.submit, submissions)
        except DrmCommunicationError as error:
            self._unknown(records, error)
            return
        except WflError as error:
            outcomes = [error] * len(records)
        except Exception as error:  # noqa: BLE001 - logged
            log.exception("%s: submitting failed in an unforeseen way", self.backend.name)
            outcomes = [InternalError(f"{self.backend.name}: {error!r}")] * len(records)
        pairs = zip(records, outcomes, strict=True)
        if unsettled := {r: outcome for r, outcome in pairs if isinstance(outcome, UnsettledError)}:
            self._unknown([*unsettled], next(iter(unsettled.values())))
        self._accept(records, outcomes)

    def _accept(self, records: Sequence[Record], outcomes: Sequence[str | WflError]) -> None:
        early: list[JobInfo] = []
        doomed: list[Record] = []
        for record, outcome in zip(records, outcomes, strict=True):
            if isinstance(outcome, UnsettledError):
                continue
            if isinstance(outcome, WflError):
                self._refuse([record], outcome)
                continue
            with self._lock:
                if record.id != outcome:
                    self._records.pop(record.id, None)
                    record.id = outcome
                    self._records[outcome] = record
                if record.phase == SUBMITTING:
                    record.phase = ACCEPTED
                if outcome in self._early:
                    early += self._early.pop(outcome)
                if record.why is not None:
                    doomed.append(record)
        self._note(records)
        if self._kept is not None and not self.backend.finds_by_key:
            self._kept.flush()  # else the jobs of a program that is killed in this moment could not be found again
        self.observe(early)
        if doomed:
            self._workers.submit(lambda: self._kill_rest(doomed))
        self._hurry()

    def _refuse(self, records: Sequence[Record], error: WflError) -> None:
        closing = self._closed is not None and self.context.detach and isinstance(error, InvalidSessionError)
        if closing and self._kept is not None:  # what was on its way out of the queue is the next program's
            records = [record for record in records if not self._kept.has_waited(record)]
        for record in records:
            record.error = error
        self._end_here(records, "launch_failure", str(error))

    def _unknown(self, records: Sequence[Record], error: DrmCommunicationError) -> None:
        """Nobody can say whether these were accepted: ask by key until somebody can, and submit nothing again."""
        with self._lock:
            records = [record for record in records if record.phase == SUBMITTING]  # others were heard of meanwhile
            for record in records:
                record.state = record.state if record.state.started else JobState.UNDETERMINED
        if records:
            self._tell(records)
            log.warning("%s: %d submissions are unsettled: %s", self.backend.name, len(records), error)
            never = DrmCommunicationError(f"{NEVER}: {error}")
            self._later(0.05, lambda: self._find(records, never, 0.1))

    def _find(self, records: Sequence[Record], never: WflError, wait: float = 0.5, *, refusable: bool = False) -> None:
        """Ask the system for these until it has answered for each; `never` is the error of those it never had.

        With `refusable`, that it refuses to answer is raised and not tried again.
        """
        if self._closed or not records:
            return
        left = records
        try:
            with self._expecting():
                left = self._look_for({record.key: record for record in records}, never)
        except Exception as error:
            if refusable and not isinstance(error, DrmCommunicationError):
                raise
            log.warning("%s: looking for %d jobs failed, trying again: %s", self.backend.name, len(records), error)
        if left:
            self._later(wait, lambda: self._find(left, never, min(wait * 2, 5.0)))
        self._hurry()

    def _look_for(self, by_key: Mapping[str, Record], never: WflError) -> list[Record]:
        """Ask once; the records that there was no answer for."""
        known = [_known(r) for r in by_key.values()]
        answer = self.request(self.backend.find, known)
        ids = {info.extensions.get("key", info.id): info.id for info in answer.infos}
        found = [r for key, r in by_key.items() if key in ids and (r.phase == SUBMITTING or r.id != ids[key])]
        self._accept(found, [ids[record.key] for record in found])
        self.observe(answer.infos)
        gone = [by_key[key] for key in answer.gone]
        never_had = [record for record in gone if record.phase == SUBMITTING]
        lost = [record for record in gone if record.phase == ACCEPTED]
        self._refuse([record for record in never_had if not record.waited], never)
        if self._kept is not None and (waited := [record for record in never_had if record.waited]):
            self._kept.wait_on(waited)
        self._end_here(lost, "lost", f"{self.backend.name} does not know it any more")
        answered = ids.keys() | answer.gone
        return [r for key, r in by_key.items() if key not in answered and r.phase in (SUBMITTING, ACCEPTED)]

    # -- the ledger --

    def watch(self, f: Callable[[Sequence[Record]], object]) -> Callable[[], None]:
        """Call `f(records)` after every change of these, until the returned function is called.

        On whichever thread brings the change about, outside of the ledger's lock, and also where nothing has changed
        after all: `f` must be quick, and reads how they are now.
        """
        with self._lock:
            self._watchers = (*self._watchers, f)

        def stop() -> None:
            with self._lock:
                self._watchers = tuple(watcher for watcher in self._watchers if watcher is not f)

        return stop

    def observe(self, infos: Iterable[JobInfo]) -> None:
        """Take in facts: merge each into its record, wake who waits for it. Any thread, any order, any repetition."""
        over: list[Record] = []
        changed: list[Record] = []
        with self._lock:
            for info in infos:
                record = self._records.get(info.id)
                if record is None:
                    if self._submitting:
                        self._early.setdefault(info.id, []).append(info)
                elif self._merge(record, info):
                    changed.append(record)
                    if record.state.ended:
                        over.append(record)
        self._note(changed)
        if over:
            self._after_ends(over)

    def _merge(self, record: Record, info: JobInfo) -> bool:
        """Merge one fact (with the lock held); whether it said something new."""
        state = info.state
        if record.phase == ENDED:
            return False
        if state.ended and info.sub_state is None:
            return self._collect_later(record, info)
        if not state.ended and (record.final is not None or _is_late(record, info)):
            return False
        if record.why is not None and info.sub_state in ("signaled", "cancelled", "exited"):
            sub_state, words = record.why
            timed = sub_state == "timeout" and _ended_itself(info)
            if _is_too_late(record, info) if timed else state is JobState.FAILED:
                state = JobState.FAILED
                info = info.replace(state=state, sub_state=sub_state, annotation=info.annotation or words)
        merged = info if record.info is None else _merged(record.info, info)
        if merged == record.info and state is record.state and not state.ended:
            return False
        self.changes += 1
        was, record.info = record.state, merged
        if state is not JobState.UNDETERMINED:
            record.state = state
        if state.ended:
            self._finish(record)
        elif state.started and not was.started:
            self._wake_started(record)
            self._count_time(record)
        return True

    def _finish(self, record: Record) -> None:
        """The one way to end (with the lock held)."""
        record.phase = ENDED
        if record.began < inf:
            took = record.info.wallclock_time if record.info else None
            self._ages[_kind(record)] = took.total_seconds() if took else self.clock.now() - record.began
        if record.final is not None:
            record.final = None
            self._uncollected.pop(record, None)
        self._unended -= 1
        if record.error is None and record.info is not None and record.info.sub_state == "launch_failure":
            record.error = DeniedByDrmsError(record.info.annotation or "it could not be started")
        expected = self._closed is not None or (record.why is not None and record.why[0] == "cancelled")
        if record.state is JobState.FAILED and not expected:
            record.unseen = True
            self.unseen.add(record, lambda: _describe(record))
        waiters, record.waiters = record.waiters, None
        for waiter in waiters or ():
            waiter.wake(record)

    def _after_ends(self, records: Sequence[Record]) -> None:
        """What follows an end outside of the lock: callbacks, and who moves up in a queue."""
        for record in records:
            if record.callbacks is not None:
                with self._lock:
                    callbacks, record.callbacks = record.callbacks, None
                for callback in callbacks:
                    self._callbacks.submit(callback)
        self._give_back(records)

    @staticmethod
    def _give_back(records: Iterable[Record]) -> None:
        """These need their slots no more; others, also of other sessions, move up."""
        ready = [other for record in records if record.gates for other in leave_all(record)]
        for session in {record.session for record in ready}:
            session._move_up([record for record in ready if record.session is session])

    def _move_up(self, ready: list[Record]) -> None:
        self._workers.submit(lambda: self._submit(ready, check_store=True))

    def _wake_started(self, record: Record) -> None:
        for waiter in record.waiters or ():
            if waiter.started:
                waiter.wake(record)
        if record.waiters:
            record.waiters = [waiter for waiter in record.waiters if not waiter.started]

    def _end_here(
        self, records: Sequence[Record], sub_state: Any, words: str, *, only: int | None = None
    ) -> set[Record]:
        """End records that the system never had (of these, `only` those in that phase); those that have ended now."""
        more = {"sub_state": sub_state, "annotation": words, "finish_time": datetime.now(UTC)}
        return self.observe_own([(record, ended(record.id, **more)) for record in records], only=only)

    def observe_own(self, facts: Sequence[tuple[Record, JobInfo]], *, only: int | None = None) -> set[Record]:
        """Facts that the session itself establishes, about records that the system may not know."""
        with self._lock:
            changed = [r for r, info in facts if (only is None or r.phase == only) and self._merge(r, info)]
        self._note(changed)
        over = [record for record in changed if record.state.ended]
        self._after_ends(over)
        return set(over)

    def _collect_later(self, record: Record, info: JobInfo) -> bool:
        """Seen ended, exit status to come (with the lock held): asked for in bulk, within the documented time."""
        if record.final is None:
            self.changes += 1
            record.final = info
            self._uncollected[record] = self.clock.now() + self.backend.limits.collect
            if self._collects_at > self.clock.now() + COLLECT[0]:
                self._plan_collecting(0.0, COLLECT[0])
        return False

    def _plan_collecting(self, wait: float, following: float) -> None:
        """The next round in so many seconds (with the lock held), whatever was planned before."""
        planned = self._collects_at = self.clock.now() + wait
        self._later(wait, lambda: self._collect(planned, following))

    def _collect(self, planned: float, wait: float) -> None:
        """One round for all ended jobs whose exit status is not known; again after `wait` seconds if some are left."""
        with self._lock:
            if planned != self._collects_at:  # a round comes earlier
                return
            self._collects_at = -inf  # it goes on
            ids = [record.id for record in self._uncollected]
        for chunk in self.chunks(ids, self.backend.limits.ids):
            try:
                self.observe(self.request(self.backend.collect, chunk))
                self._collects = True
            except Exception as error:  # noqa: BLE001 - whatever it was, the next try may go better
                if self._collects:
                    log.warning("%s: collecting ends failed, trying again: %s", self.backend.name, error)
                self._collects = False
                if isinstance(error, DrmCommunicationError):  # no answer is never anything but: ask again
                    self._give_more_time(chunk)
        with self._lock:
            late = [record for record, end in self._uncollected.items() if end <= self.clock.now()]
        self.observe([self._given_up(final) for record in late if (final := record.final) is not None])
        with self._lock:
            if not self._uncollected:
                self._collects_at = inf
            elif {record.id for record in self._uncollected}.issubset(ids):
                self._plan_collecting(wait, min(wait * 2, COLLECT[1]))
            else:  # some have come meanwhile
                self._plan_collecting(COLLECT[0], COLLECT[0] * 2)

    def _give_more_time(self, ids: Sequence[str]) -> None:
        """The exit status of these could not be asked for."""
        with self._lock:
            end = self.clock.now() + self.backend.limits.collect
            for id in ids:
                record = self._records.get(id)
                if record is not None and record in self._uncollected:
                    self._uncollected[record] = end

    def _given_up(self, final: JobInfo) -> JobInfo:
        """Ended, nobody knows how: that is no success."""
        words = f"its exit status could not be had within {self.backend.limits.collect:.0f} s"
        return final.replace(state=JobState.FAILED, sub_state="lost", annotation=final.annotation or words)

    def look(self, record: Record) -> Record:
        """Somebody reads this record: if it failed, the failure is not unnoticed any more."""
        if record.unseen:
            with self._lock:
                if record.unseen:
                    record.unseen = False
                    self.unseen.discard(record)
        return record

    def info(self, record: Record) -> JobInfo:
        """What is known of a record, with what the session itself knows."""
        return self.snapshot(record)[1]

    def snapshot(self, record: Record) -> tuple[int, JobInfo]:
        """The phase of a record and what is known of it, as they were at one moment."""
        with self._lock:
            phase, state, known = record.phase, record.state, record.info or JobInfo(id=record.id)
        return phase, known.replace(
            id=record.id,
            state=state,
            submission_time=known.submission_time or datetime.fromtimestamp(record.submitted, UTC),
            submission_machine=known.submission_machine or os.uname().nodename,
            job_owner=known.job_owner or _user(),
            slots=record.slots if known.slots is not None else None,
        )

    def _hurry(self) -> None:
        """Something is expected soon: a system that must be asked is asked soon (without the lock)."""
        if self._asker is not None:
            self._asker.hurry()

    def accepted(self) -> list[Record]:
        """What the system has and was not seen ended."""
        with self._lock:
            return [r for r in self._records.values() if r.phase == ACCEPTED and r.final is None]

    def until_an_end(self, records: Sequence[Record]) -> float:
        """Seconds until one of these that runs is as old as the last of its kind became, or its time is up; or inf."""
        now, soonest = self.clock.now(), inf
        for record in records:
            if record.state is JobState.RUNNING:
                limits = record.template.resource_limits
                for age in (self._ages.get(_kind(record)), limits.get(WALLCLOCK_TIME) if limits else None):
                    if age is not None and now < record.began + age < now + soonest:
                        soonest = record.began + age - now
        return soonest

    # -- waiting --

    def wait(self, tasks: Sequence[Task], timeout: float | None = None, *, started: bool = False) -> None:
        """Sleep until all of these have ended (or started). Raises TimeoutError; InvalidSessionError once closed."""
        waiter = self._register([task._record for task in tasks], started=started)
        if waiter is None:
            return
        self._hurry()
        woken, left = False, 0
        try:
            woken = waiter.sleep(timeout)
        finally:
            if not woken:
                left = self._unregister([task._record for task in tasks], waiter)
        if left:
            what = "started" if started else "ended"
            raise TimeoutError(f"after {timeout:g} s {left} of {len(tasks)} tasks had not {what}; they go on")
        if self._closed is not None and any(task._record.phase != ENDED for task in tasks):
            self._check_open()

    def _register(self, records: Sequence[Record], *, started: bool = False) -> Waiter | None:
        self._check_fork()
        with self._lock:
            asleep = [r for r in records if r.phase != ENDED and not (started and r.state.started)]
            if not asleep:
                return None
            self._check_open()
            waiter = Waiter(self.clock, len(asleep), started=started)
            _enlist(asleep, waiter)
            return waiter

    def _unregister(self, records: Sequence[Record], waiter: Waiter | Collector) -> int:
        with self._lock:
            left = 0
            for record in records:
                if record.waiters and waiter in record.waiters:
                    record.waiters.remove(waiter)
                    left += 1
            return left

    def _wait_any(self, tasks: Sequence[Task], timeout: float | None, *, started: bool) -> Task:
        if not tasks:
            raise InvalidArgumentError("there is no task to wait for")
        records = [task._record for task in tasks]
        self._check_fork()
        waiter = Waiter(self.clock, 1, started=started)
        with self._lock:
            done = next((t for t in tasks if t._record.state.ended or (started and t._record.state.started)), None)
            if done is not None:
                return done
            self._check_open()
            _enlist(records, waiter)
        self._hurry()
        woken = False
        try:
            woken = waiter.sleep(timeout)
        finally:
            self._unregister(records, waiter)
        if not woken:
            raise TimeoutError(
                f"after {timeout:g} s none of {len(tasks)} tasks had {'started' if started else 'ended'}"
            )
        if waiter.last is None:
            self._check_open()
        return next(task for task in tasks if task._record is waiter.last)

    def collector(self, tasks: Sequence[Task], put: Callable[[Record | None], None]) -> Callable[[], None]:
        """Hand each record to `put` as it ends (at once if it has); the return value stops that.

        `put` is called with the ledger's lock held and must only hand over; None says that the session was closed.
        """
        self._check_fork()
        collector = Collector(put)
        records = [task._record for task in tasks]
        with self._lock:
            asleep = [record for record in records if record.phase != ENDED]
            if asleep:
                self._check_open()
            for record in records:
                if record.phase == ENDED:
                    put(record)
            _enlist(asleep, collector)
        self._hurry()
        return lambda: _void(self._unregister(records, collector))

    async def ended(self, tasks: Sequence[Task]) -> None:
        """Wait for the end of all without blocking the event loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        left = len(tasks)

        def one() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                over.set()

        if not tasks:
            return

        def put(record: Record | None) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(one if record else over.set)

        stop = self.collector(tasks, put)
        attended = self.clock.attend()
        try:
            await over.wait()
        finally:
            attended()
            stop()
        if left > 0:
            self._check_open()

    def add_callback(self, task: Task, f: Callable[[Task], object]) -> None:
        """Call `f(task)` after its end, on a thread for callbacks; what it raises is logged and kept."""
        self._check_fork()
        record = task._record

        def call() -> None:
            try:
                f(task)
            except Exception as error:  # noqa: BLE001 - logged
                log.exception("a callback of task %s raised", task.id)
                self.callback_errors.append((task, error))

        with self._lock:
            if record.phase != ENDED or record.callbacks is not None:
                record.callbacks = [*(record.callbacks or ()), call]
                return
        self._callbacks.submit(call)

    # -- control --

    def control(self, tasks: Sequence[Task], action: Action) -> None:
        """Control many at once. The failures of several are raised together, as one error that lists them."""
        failures = self._try_control([task._record for task in tasks], action)
        if failures:
            first = next(iter(failures.values()))
            if len(failures) == 1:
                raise first
            raise type(first)(
                f"{len(failures)} of {len(tasks)} tasks: {'; '.join(map(str, list(failures.values())[:3]))}"
            )

    def _try_control(self, records: Sequence[Record], action: Action) -> dict[str, WflError]:
        self._check_open()
        failures: dict[str, WflError] = {}
        native: list[Record] = []
        here: list[Record] = []
        elsewhere: list[Record] = []
        with self._lock:
            for record in records:
                if record.phase == ENDED:
                    if action not in _ENDING:
                        failures[record.id] = InvalidStateError(f"{record.id}: cannot {action.value}: it has ended")
                elif record.phase == ACCEPTED:
                    native.append(record)
                elif record.phase == HERE:
                    (here if record.own else elsewhere).append(record)
                elif action in _ENDING:
                    record.why = record.why or ("cancelled", "ended while it was being submitted")
                else:
                    failures[record.id] = InvalidStateError(
                        f"{record.id}: cannot {action.value}: it is being submitted"
                    )
        failures.update(self._control_here(here, action))
        if elsewhere:
            failures.update(self._control_elsewhere(elsewhere, action))
        if native:
            failures.update(self._control_native(native, action))
        return failures

    def _end_native(self, records: Sequence[Record], action: Action) -> dict[str, WflError]:
        """End jobs on purpose: that they fail then is no surprise, and their sub state is our reason."""
        given = [record for record in records if record.why is None]
        for record in given:
            record.why = _CANCELLED
        failures: dict[str, WflError] | None = None
        try:
            failures = self._request_control([record.id for record in records], action)
            return failures
        finally:  # where that could not be done, an end to come has a reason of its own
            for record in given:
                if failures is None or record.id in failures:
                    record.why = None

    def _control_native(self, records: Sequence[Record], action: Action) -> dict[str, WflError]:
        if action in (Action.TERMINATE, Action.KILL):
            return self._end_native(records, action)
        ids = [record.id for record in records]
        needed = {Action.SUSPEND: Capability.SUSPEND, Action.RESUME: Capability.SUSPEND}.get(action)
        if needed is not None and not self._has(needed):
            words = f"{self.backend.name} cannot {action.value} a job"
            return {id: UnsupportedOperationError(f"{id}: {words}") for id in ids}
        return self._request_control(ids, action)

    def _request_control(self, ids: Sequence[str], action: Action) -> dict[str, WflError]:
        failures: dict[str, WflError] = {}
        self._in_parallel(
            lambda chunk: failures.update(self.request(self.backend.control, chunk, action)),
            self.chunks(ids, self.backend.limits.ids),
        )
        if action in _ENDING:  # one that ended meanwhile is as it should be
            return {id: error for id, error in failures.items() if not isinstance(error, InvalidStateError)}
        return failures

    def _control_here(self, records: list[Record], action: Action) -> dict[str, WflError]:
        """Control what waits here and is not known to the system; what has moved on meanwhile is controlled there."""
        if action in _ENDING:
            over = self._end_here(records, "cancelled", "ended before it was started", only=HERE)
            moved_on = [record for record in records if record not in over]
            return self._try_control(moved_on, action) if moved_on else {}
        failures: dict[str, WflError] = {}
        for record in records:
            with self._lock:
                here, held = record.phase == HERE, record.state is JobState.QUEUED_HELD
                if here and action is Action.HOLD:
                    record.state = JobState.QUEUED_HELD
                elif here and held and action is Action.RELEASE:
                    record.state = JobState.QUEUED
            if not here:
                failures.update(self._try_control([record], action))
            elif action is Action.HOLD:
                self._pass_on(record)
            elif action is Action.RELEASE and held:
                if self._proceed(record):
                    self._submit([record], check_store=True)
            else:
                what = "it is not held" if action is Action.RELEASE else "it has not started"
                failures[record.id] = InvalidStateError(f"{record.id}: cannot {action.value}: {what}")
        self._note(records)
        return failures

    def _control_elsewhere(self, records: Sequence[Record], action: Action) -> dict[str, WflError]:
        """Ask the programs in whose queues these wait, through the store: they do it, or who takes over from them."""
        if action in (Action.SUSPEND, Action.RESUME):
            refused = dict.fromkeys(records, "it has not started")
        elif action is Action.RELEASE:
            refused = {record: "it is not held" for record in records if record.state is not JobState.QUEUED_HELD}
        else:
            refused = {}
        failures: dict[str, WflError] = {
            record.id: InvalidStateError(f"{record.id}: cannot {action.value}: {words}")
            for record, words in refused.items()
        }
        wanted = [record for record in records if record not in refused]
        if self._kept is None or not wanted:
            return failures
        all_wait = self._kept.want(wanted, action)
        with self._lock:
            for record in wanted:
                if action in _ENDING:
                    record.why = record.why or _CANCELLED  # what is just being submitted is ended when it is known
                elif record.phase == HERE:  # as it will be in a moment
                    record.state = JobState.QUEUED_HELD if action is Action.HOLD else JobState.QUEUED
        self._tell(wanted)
        if not all_wait:
            self._kept.reread()
            moved_on = [record for record in wanted if record.own or record.phase != HERE]
            failures.update(self._try_control(moved_on, action))
        return failures

    def _pass_on(self, record: Record) -> None:
        """A held task leaves the queue; it gets in line again when it is released."""
        gates = record.gates
        ready = leave_all(record)
        record.gates = gates
        if ready:
            self._move_up(ready)

    def kill_later(self, tasks: Sequence[Task], seconds: float) -> None:
        """Kill what has not ended by then."""
        records = [task._record for task in tasks]
        self._later(seconds, lambda: self._kill_rest(records))

    def _kill_rest(self, records: Sequence[Record]) -> None:
        left = [record for record in records if record.phase != ENDED]
        if left and not self._closed:
            try:
                self._try_control(left, Action.KILL)
            except WflError as error:
                log.warning("%s: killing %d tasks failed, trying again: %s", self.backend.name, len(left), error)
                self.kill_later([Task(record) for record in left], KILL_GRACE)

    def _count_time(self, record: Record) -> None:
        """It has begun (with the lock held): expect its end, and enforce WALLCLOCK_TIME where the system does not."""
        if self._asker is not None:
            record.began = self.clock.now() - _age(record)
        limits = record.template.resource_limits
        limit = limits.get(WALLCLOCK_TIME) if limits else None
        if limit is not None and not self._has(Capability.WALLCLOCK_LIMIT):
            began = record.info.dispatch_time if record.info else None

            def over() -> None:
                now = record.info.dispatch_time if record.info else None
                same = now is None or began is None or abs(now - began) < _SAME_START
                if same and record.state.started:  # else it was requeued, and has its time once more
                    self._time_is_up(record, f"its WALLCLOCK_TIME is {limit} s")

            self._later(limit - _passed(record), over)

    def _end_by(self, record: Record, deadline: datetime) -> None:
        """Enforce deadline_time on what waits here, and where the system does not."""

        def over() -> None:
            words = "its deadline_time came"
            if record.phase == HERE and not record.own:
                return  # the program in whose queue it waits sees to it
            if not self._end_here([record], "timeout", words, only=HERE) and not self._has(Capability.DEADLINE):
                self._time_is_up(record, words)

        self._later(_until(deadline), over)

    def _time_is_up(self, record: Record, words: str) -> None:
        if record.phase == ENDED or self._closed:
            return
        record.why = ("timeout", words)
        self.kill_later([Task(record)], KILL_GRACE)
        self._try_control([record], Action.TERMINATE)

    # -- output --

    def read_all(self, record: Record, stream: Stream) -> bytes:
        """Everything written to this stream so far."""
        return b"".join(self._read_on(record, stream, [0]))

    def read(self, record: Record, stream: Stream, offset: int, limit: int = CHUNK) -> tuple[bytes, bool]:
        """At most `limit` bytes of an output from `offset`, and whether that is the end for now."""
        self._check_open()
        if record.phase in (HERE, SUBMITTING) or (record.phase == ENDED and record.error is not None):
            return b"", True
        if not self._has(Capability.OUTPUT):
            raise UnsupportedOperationError(f"{self.backend.name} does not give output back")
        try:
            data, at_end = self.request(self.backend.read, record.id, stream, offset, limit)
        except InvalidStateError:
            if _never_ran(record):
                return b"", True
            raise
        return data, at_end

    def _read_on(self, record: Record, stream: Stream, position: list[int]) -> Iterator[bytes]:
        at_end = False
        while not at_end:
            data, at_end = self.read(record, stream, position[0])
            position[0] += len(data)
            yield data

    def follow(self, record: Record, stream: Stream) -> Iterator[str]:
        """The lines of an output, as they are written, to its end."""
        self._check_open()
        return self._follow(record, stream)

    def _follow(self, record: Record, stream: Stream) -> Iterator[str]:
        position, rest, over = [0], b"", False
        waiter = self._register([record])
        self._hurry()
        try:
            while not over:
                over = waiter is None or waiter.sleep(FOLLOW)
                if over and self._closed:
                    self._check_open()
                for data in self._read_on(record, stream, position):
                    *lines, rest = (rest + data).split(b"\n")
                    yield from (line.decode(errors="replace").removesuffix("\r") for line in lines)
            if rest:
                yield rest.decode(errors="replace")
        finally:  # whoever reads may stop before the end
            if waiter is not None:
                self._unregister([record], waiter)

    def reap(self, tasks: Sequence[Task]) -> None:
        """Remove what the system, the ledger and the store keep of ended tasks."""
        self._check_open()
        records = [record for task in tasks for record in (*task._earlier, task._record)]
        living = [record.id for record in records if record.phase != ENDED]
        over = [record for record in records if record.phase == ENDED]
        for chunk in self.chunks([r.id for r in over if r.error is None], self.backend.limits.ids):
            self.request(self.backend.reap, chunk)
        with self._lock:
            for record in over:
                self._records.pop(record.id, None)
                self._taken.discard(record.key)
            for job_id in {record.job_id for record in over if record.job_id in self._arrays}:
                if all(task._record.id not in self._records for task in self._arrays[job_id].tasks):
                    del self._arrays[job_id]
        if self._kept is not None:
            self._kept.remove(over)
        if living:
            raise InvalidStateError(f"{len(living)} of {len(records)} tasks have not ended: {', '.join(living[:3])}")

    def refresh(self) -> None:
        """Take in what other programs have put into the store since; without one, what the system itself tells."""
        self._check_open()
        if self._kept is not None:
            self._kept.flush()
            self._kept.come_back()
        elif found := self.request(self.backend.remembered):
            from wfl.persistence import recall

            recall(self, [known for known in found if not known.key.startswith(self._key)])

    def _note(self, records: Sequence[Record]) -> None:
        """These changed: write that down soon, and tell who watches."""
        if self._kept is not None:
            self._kept.note(records)
        self._tell(records)

    def _tell(self, records: Sequence[Record]) -> None:
        """These may have changed: tell who watches."""
        for watcher in self._watchers if records else ():
            try:
                watcher(records)
            except Exception:  # noqa: BLE001 - logged
                log.exception("who watches the session's jobs raised")

    # -- the end --

    @property
    def closed(self) -> bool:
        """Whether the session has been closed."""
        return self._closed is not None

    def close(self) -> None:
        """End what still runs (unless detached), with a warning that counts it, and wake whoever waits."""
        with self._lock:
            if self._closed is not None:
                return
            left = [record for record in self._records.values() if record.own and record.phase != ENDED]
            self._closed = "the session was closed"
        detached = self.context.detach
        doomed = [] if detached else [r for r in left if not (r.phase == HERE and self._is_guest(r))]
        try:
            if detached:
                self._drop_waiting(left)
                self._tell_what_goes_on(left)
            elif doomed:
                log.warning("%s ended now (detach=True would let them live on)", _not_ended(doomed))
            self._end_here([r for r in doomed if r.phase == HERE], "cancelled", _CLOSED)
            if self._asker is not None:
                self._asker.stop()
            try:
                self.backend.close(end=not detached)
            except WflError as error:
                log.error("%s: closing failed, what still runs may live on: %s", self.backend.name, error)
            self._end_here(doomed, "cancelled", _CLOSED)
            self._give_back([record for record in self._records.values() if record.gates and record.phase != ENDED])
            self._callbacks.drain(CALLBACK_PATIENCE)
            self.clock.stop()
            self._workers.stop()
            if self._kept is not None:
                self._kept.close()
        except KeyboardInterrupt:
            self._tell_what_stays(doomed)
            raise
        finally:
            with self._lock:
                for record in self._records.values():
                    for waiter in record.waiters or ():
                        waiter.wake(None)
            self.unseen.warn()
            _open_sessions.discard(self)

    def _drop_waiting(self, left: Sequence[Record]) -> None:
        """Where there is no store, what waits here is lost with this program: say so."""
        waiting = [record for record in left if record.phase == HERE] if self._kept is None else []
        if dropped := self._end_here(waiting, "cancelled", _DROPPED):
            log.warning("%d tasks that had not started are dropped: %s", len(dropped), _DROPPED)

    def _tell_what_goes_on(self, left: Sequence[Record]) -> None:
        """How many jobs live on after this program, how to find them and how to end them."""
        waiting = sum(record.phase == HERE for record in left)
        going = [record.id for record in left if record.phase not in (HERE, ENDED)]
        counts = [_tasks(len(going), "goes on", "go on")] if going else []
        counts += [_tasks(waiting, "waits for a later program", "wait for a later program")] if waiting else []
        if not counts:
            return
        words = "%s: %s; Workflow(%r) finds them; to end them: %s"
        if self._kept is None and type(self.backend).remembered is Backend.remembered:
            words = "%s: %s; without a store no later program finds them (%r); to end them: %s"
        log.warning(words, self.backend.name, ", ".join(counts), self.context, self.backend.how_to_cancel(going))

    def _tell_what_stays(self, left: Sequence[Record]) -> None:
        """Somebody did not want to wait until all had been ended."""
        ids = [record.id for record in left if record.phase not in (HERE, ENDED)]
        if ids:
            some = ", ".join(ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")
            words = "%s: interrupted while ending tasks: %s still be there (%s); %s after this program; by hand: %s"
            count, ends = _tasks(len(ids), "may", "may"), "a helper process ends what is left"
            log.warning(words, self.backend.name, count, some, ends, self.backend.how_to_cancel(ids))

    def _is_guest(self, record: Record) -> bool:
        return self._kept is not None and self._kept.is_guest(record)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise InvalidSessionError(f"{self._closed}; open a new Workflow")

    def _check_fork(self) -> None:
        if self._closed == _FORKED:
            self._check_open()

    def _forked(self) -> None:
        """In a forked child: no lock may be touched (its owner does not exist here), nothing may be sent."""
        self._closed = _FORKED
        self._lock = threading.RLock()
        for record in self._records.values():
            for gate in record.gates:
                gate.clear()
        if self.context.gate is not None:
            self.context.gate.clear()
        self.backend.abandon()


def _checked_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise InvalidArgumentError(f"{key!r} is no key: lower-case letters and digits, '-' and a number")
    return key


def _check_output(template: JobTemplate) -> None:
    """Elements of an array that write to one file would overwrite each other."""
    for name in ("output_path", "error_path"):
        path = getattr(template, name) or "/dev/null"
        if not os.path.isabs(path):
            path = f"{template.working_directory}/{path}"
        if not path.startswith("/dev/") and "$DRMAA2_INDEX$" not in path and "{{" not in path:
            raise InvalidArgumentError(f"{name} is {path!r} for every element of the array: put $DRMAA2_INDEX$ into it")


def _enlist(records: Iterable[Record], waiter: Waiter | Collector) -> None:
    for record in records:
        if record.waiters is None:
            record.waiters = [waiter]
        else:
            record.waiters.append(waiter)


def _is_late(record: Record, info: JobInfo) -> bool:
    """Whether a fact is of a time before what is known: only REQUEUED leads back from a start."""
    if info.state in (JobState.QUEUED, JobState.QUEUED_HELD, JobState.UNDETERMINED):
        return record.state.started or record.state in (JobState.REQUEUED, JobState.REQUEUED_HELD)
    if record.state in (JobState.REQUEUED, JobState.REQUEUED_HELD) and info.state.started and record.info is not None:
        return info.dispatch_time is not None and info.dispatch_time == record.info.dispatch_time
    return False


def _ended_itself(info: JobInfo) -> bool:
    """Whether a job ended by itself, as far as is known, at a time that the system has told."""
    timed = info.wallclock_time is not None or info.finish_time is not None
    return info.state is JobState.DONE or (info.sub_state == "exited" and timed)


def _is_too_late(record: Record, info: JobInfo) -> bool:
    """Whether a job that ended by itself did so after its time was up, by the system's own clock.

    One that was asked to end, and fails for that, may seem to have done so a little earlier: clocks differ.
    """
    early = _EARLY if info.state is JobState.FAILED else timedelta()
    limits, deadline = record.template.resource_limits, record.template.deadline_time
    limit, took = limits.get(WALLCLOCK_TIME) if limits else None, info.wallclock_time
    over = limit is not None and took is not None and (took + early).total_seconds() >= limit
    return over or (deadline is not None and info.finish_time is not None and info.finish_time + early >= deadline)


def _merged(old: JobInfo, new: JobInfo) -> JobInfo:
    """What was known, with what is known now."""
    values = zip(old.__struct_fields__, structs.astuple(old), structs.astuple(new), strict=True)
    return fact(**{name: was if now is None or now in ((), {}) else now for name, was, now in values})


def _never_ran(record: Record) -> bool:
    """Whether it was ended before the system had it, so that there is no output to miss."""
    info = record.info
    return info is not None and info.dispatch_time is None and info.sub_state in ("cancelled", "timeout")


def _known(record: Record) -> Known:
    id = record.id if record.phase != SUBMITTING else None
    return Known(record.key, id, record.template, record.info, record.job_id, record.index, record.inherited)


def _describe(record: Record) -> str:
    command = " ".join([record.template.remote_command or "", *(record.template.args or ())]).strip()
    info = record.info
    ending = ""
    if info is not None:
        ending = info.annotation or f"{info.sub_state} with exit status {info.exit_status}"
    return f"{record.id} ({command[:60]}): {ending}"


def _not_ended(records: Sequence[Record]) -> str:
    return _tasks(len(records), "had not ended and is", "had not ended and are")


def _tasks(number: int, one: str, more: str) -> str:
    return f"1 task {one}" if number == 1 else f"{number} tasks {more}"


def _void(_: object) -> None:
    """For lambdas that must not return anything."""


def _kind(record: Record) -> tuple[str | None, str | None]:
    """Jobs of one kind are expected to run for as long."""
    return record.source.job_name, record.source.remote_command


def _passed(record: Record) -> float:
    """Seconds that a job which an earlier program started has run when this one finds it."""
    return 0.0 if record.own else _age(record)


def _age(record: Record) -> float:
    """Seconds since it began, by the system's clock (at most since it was submitted: hosts' clocks differ)."""
    began = record.info.dispatch_time if record.info else None
    if began is None:
        return 0.0
    return max(0.0, min(-_until(began), -_until(datetime.fromtimestamp(record.submitted, UTC))))


def _until(when: datetime) -> float:
    return (when - datetime.now(UTC)).total_seconds()


@cache
def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _open_store(path: str | None) -> Store | None:
    if path is None:
        return None
    from wfl.store import Store

    return Store(path)


_FORKED = "this process was forked from the program that opened the session, which alone can use it"
_open_sessions: weakref.WeakSet[JobSession] = weakref.WeakSet()


def _close_all() -> None:
    for session in list(_open_sessions):
        session.close()


def _after_fork() -> None:
    for session in list(_open_sessions):
        session._forked()
    _open_sessions.clear()


os.register_at_fork(after_in_child=_after_fork)

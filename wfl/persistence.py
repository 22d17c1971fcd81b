"""What a session shares through the store with programs that come after it, or that run beside it.

It writes down what changes, brings back what earlier programs submitted, inherits the queues of dead ones, and sees
to it that a job which waits in one program's queue is controlled from another and is never started twice.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from wfl.backend import Action
from wfl.drmaa2 import Capability, JobState
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, InvalidSessionError, WflError
from wfl.gate import Gate, occupy
from wfl.log import log
from wfl.record import ACCEPTED, ENDED, HERE, SUBMITTING, Record
from wfl.store import Store, program_lives
from wfl.task import Task, TaskArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from wfl.session import JobSession
    from wfl.store import Row

FLUSH = 0.05
"""Seconds that a change may wait before it is written to the store, so that many are written at once."""
FOLLOW_STORE = 0.5
"""Seconds between two looks at what other living programs have in their queues, or want done in ours."""
_NEVER = DrmCommunicationError("the program was killed before it could be started; it never ran")


class Persistence:
    """One session's dealings with its store. It changes the ledger through the session, under the session's lock."""

    def __init__(self, session: JobSession, store: Store) -> None:
        self._session, self.store = session, store
        self._dirty: dict[str, Record] = {}
        self._queue: dict[str, Record] = {}  # by key: what waits here and is in the store, perhaps some more
        self._heeding = False
        self._uncounted: dict[Record, str] = {}  # found running, with the program that counts it while that lives
        self._written = 0

    # -- writing down --

    def add(self, records: Sequence[Record], *, waits: bool) -> None:
        """Write down submissions before they happen."""
        session = self._session
        array = session._arrays.get(records[0].job_id) if records and records[0].index is not None else None
        limit = array.max_parallel if array else None
        if waits:
            self.heed_later(records)
        self.store.add(records, HERE if waits else SUBMITTING, detach=session.context.detach, max_parallel=limit)

    def remove(self, records: Sequence[Record]) -> None:
        """Forget what was reaped (it is out of the ledger already)."""
        with self._session._lock:
            for record in records:
                self._dirty.pop(record.key, None)
        self.store.remove(record.key for record in records)

    def close(self) -> None:
        """Write down the rest, and leave what goes on to the next program."""
        self.flush()
        self.store.leave()
        self.store.close()

    def note(self, records: Iterable[Record]) -> None:
        """These changed: write them down soon, many at once."""
        with self._session._lock:
            idle = not self._dirty
            self._dirty.update((record.key, record) for record in records)
            wake = idle and bool(self._dirty)
        if wake:
            self._session.clock.after(FLUSH, lambda: self._session._workers.submit(self.flush))

    def flush(self) -> None:
        """Write down all changes now."""
        with self._session._lock:
            dirty, self._dirty = self._dirty, {}
        if dirty:
            try:
                self.store.update(dirty.values())
            except WflError as error:
                log.warning("%s; trying again", error)
                with self._session._lock:
                    self._dirty = {**dirty, **self._dirty}
                self._session.clock.after(1.0, lambda: self._session._workers.submit(self.flush))

    # -- coming back --

    def come_back(self) -> None:
        """Enter stored tasks that the ledger does not have, find them in the system, and go on with what waited."""
        rows = [row for row in self.store.load(self._session.name) if not row.key.startswith(self._session._key)]
        with self._session._lock:
            keys = {record.key for record in self._session._records.values()}
            new = {self._restore(row): row for row in rows if row.key not in keys}
            self._session._records.update((record.id, record) for record in new)
            self._session._unended += sum(record.phase != ENDED for record in new)
            self._restore_arrays(new)
        self._take_over(new, refusable=True)
        for record, row in new.items():
            self._limit_again(record, row)

    def _take_over(self, rows: Mapping[Record, Row], *, refusable: bool = False) -> None:
        """Find what the system knows, leave to living programs what is theirs, inherit the queues of dead ones."""
        lives = cache(program_lives)
        theirs = {r: row for r, row in rows.items() if row.phase in (HERE, SUBMITTING) and lives(row.program)}
        there = {r: row for r, row in rows.items() if r not in theirs and row.phase != HERE}
        self._session._find(list(there), _NEVER, refusable=refusable)
        self._count({r: row.program for r, row in there.items()}, lives)
        queued = {r: row for r, row in rows.items() if r not in theirs and row.phase == HERE}
        self.heed_later(queued)
        faster = {r: row for r, row in queued.items() if row.detach and not self.store.claim(row.key, row.program)}
        with self._session._lock:
            for record in faster:
                self._queue.pop(record.key, None)
        self._session._submit(
            [r for r, row in queued.items() if r not in faster and self._inherit(r, row)], check_store=True
        )
        if queued:
            self._heed()  # the wishes that came before this program
        theirs |= faster  # what another program was faster to inherit
        if theirs:
            self._session.clock.after(
                FOLLOW_STORE, lambda: self._session._workers.submit(lambda: self.reread(list(theirs)))
            )

    def _count(self, found: Mapping[Record, str], lives: Callable[[str], bool]) -> None:
        """What is found running has its place at the gates, unless another living program counts it."""
        with self._session._lock:
            self._uncounted.update(found)
            for record, program in list(self._uncounted.items()):
                if record.phase in (HERE, ENDED):
                    del self._uncounted[record]
                elif not lives(program):
                    del self._uncounted[record]
                    if record.passed < 0:
                        record.gates = self._session._gates(record.gate)
                        occupy(record)

    def _limit_again(self, record: Record, row: Row) -> None:
        """The limits that an earlier program enforced hold on."""
        if record.phase != ENDED and record.template.deadline_time is not None:
            self._session._end_by(record, record.template.deadline_time)
        if record.phase == ACCEPTED and row.info is not None and row.info.state.started:
            with self._session._lock:
                self._session._limit_time(record)

    def _restore(self, row: Row) -> Record:
        record = Record(
            self._session,
            row.key,
            row.template,
            source=row.source,
            job_id=row.job_id,
            index=row.element,
            first=row.first,
            attempt=row.attempt,
        )
        record.id, record.info, record.submitted = row.id, row.info, row.submitted
        record.phase, record.own = row.phase, False
        if row.info is None and row.phase == HERE and row.template.submit_as_hold:
            record.state = JobState.QUEUED_HELD
        if row.info is not None:
            record.state = row.info.state
            if row.phase == ENDED and row.info.sub_state == "launch_failure":
                record.error = DeniedByDrmsError(row.info.annotation or "it could not be started")
        return record

    def _restore_arrays(self, rows: Mapping[Record, Row]) -> None:
        """New elements are an array again; new attempts of known ones join theirs (with the lock held)."""
        elements: dict[str, list[Record]] = {}
        for record in rows:
            if record.index is not None:
                elements.setdefault(record.job_id, []).append(record)
        for job_id, records in elements.items():
            known = self._session._arrays.get(job_id)
            tasks = {task.index: task for task in known.tasks} if known else {}
            for record in records:
                if (task := tasks.get(record.index)) is not None:
                    task._show(record)
                else:
                    tasks[record.index] = Task(record)
            if known is None:
                limit = next((rows[record].max_parallel for record in records if rows[record].max_parallel), None)
                known = self._session._arrays[job_id] = TaskArray(
                    self._session,
                    job_id,
                    records[0].template,
                    [task for _, task in sorted(tasks.items())],
                    source=records[0].source,
                    max_parallel=limit,
                )
                records[0].gate = self._restored_gate(records, limit)
            for record in records:
                record.gate = known.tasks[0]._record.gate or records[0].gate

    def _restored_gate(self, records: Iterable[Record], limit: int | None) -> Gate | None:
        """That of an array of an earlier program, unless the system itself sees to its limit."""
        native = self._session._has(Capability.NATIVE_ARRAYS) and self._session._has(Capability.MAX_PARALLEL)
        return Gate(limit) if limit and not (native and all(r.phase != HERE for r in records)) else None

    def _inherit(self, record: Record, row: Row) -> bool:
        """Go on with what waited in a dead program's queue; whether it may start now."""
        if not row.detach:
            self._session._end_here([record], "cancelled", "the program in whose queue it waited has ended")
            return False
        record.own = True
        record.gates = self._session._gates(record.gate)
        if record.state is JobState.QUEUED_HELD:
            return False
        return self._session._acceptable(record) and self._session._proceed(record)

    def reread(self, records: Sequence[Record]) -> None:
        """Follow in the store what other living programs have in their queues."""
        records = [record for record in records if not record.own and record.phase != ENDED]
        if self._session._closed is not None or not records:
            return
        try:
            rows = {row.key: row for row in self.store.load(self._session.name)}
        except WflError as error:
            log.warning("%s; looking again", error)
            self._session.clock.after(FOLLOW_STORE, lambda: self._session._workers.submit(lambda: self.reread(records)))
            return
        left: dict[Record, Row] = {}
        for record in records:
            row = rows.get(record.key)
            if row is None:
                self._session._end_here([record], "lost", "another program removed it from the store")
                continue
            with self._session._lock:
                record.phase = HERE if row.phase == ENDED else row.phase
                if row.phase == HERE and row.info is not None:
                    record.state = row.info.state  # held or not
            left[record] = row
        self._take_over(left)  # first, so that the backend knows where the output of what has ended is
        self._session.observe_own(
            [(r, row.info) for r, row in left.items() if row.phase == ENDED and row.info is not None]
        )
        self._session._kill_rest([r for r, row in left.items() if r.why is not None and row.phase == ACCEPTED])

    # -- what other programs want --

    def heed_later(self, records: Iterable[Record]) -> None:
        """These wait here: from now on, look whether another program wants something done to them."""
        with self._session._lock:
            self._queue.update((record.key, record) for record in records)
            heeding, self._heeding = self._heeding, bool(self._queue)
        if self._queue and not heeding:
            self._session.clock.after(FOLLOW_STORE, lambda: self._session._workers.submit(self._follow_wishes))

    def _follow_wishes(self) -> None:
        with self._session._lock:
            waiting = (HERE, SUBMITTING)  # to the store, what is just being submitted may wait still
            self._queue = {key: record for key, record in self._queue.items() if record.phase in waiting}
            self._heeding = bool(self._queue) and self._session._closed is None
            if not self._heeding:
                return
        try:
            written = self.store.written()
            if written != self._written:
                self._heed()
                self._written = written
        except WflError as error:
            log.warning("%s; looking again", error)
        self._session.clock.after(FOLLOW_STORE, lambda: self._session._workers.submit(self._follow_wishes))

    def _heed(self) -> None:
        """Do what other programs want done to what waits here."""
        queue = self._queue  # as it was before: nothing leaves it unless the store says that it has started
        for key, action in self.store.wishes().items():
            if key not in queue:
                continue  # it has ended here, which is not written down yet
            try:
                failures = self._session._try_control([queue[key]], Action(action))
            except InvalidSessionError:  # closed meanwhile: the next program does it
                self.store.wish([key], action)
            else:
                for error in failures.values():
                    log.info("another program wanted this: %s", error)

    def start(self, records: Sequence[Record]) -> list[Record]:
        """Write down that these start; those for which another program was faster do not."""
        refused = self.store.start([record.key for record in records])
        started = [record for record in records if record.key not in refused]
        stopped = [record for record in records if record.key in refused]
        taken: list[Record] = []
        for record in stopped:
            row = refused[record.key]
            with self._session._lock:
                record.phase = HERE
                record.own = row is None or (row.program == self.store.program and row.wish is not None)
            if row is None:
                self._session._end_here([record], "lost", "another program removed it from the store")
            elif not record.own:
                taken.append(record)
            elif record.why is not None:
                self._session._end_here([record], *record.why)
        if taken:  # it took this one for dead
            self._session._give_back(taken)
            self._session.clock.after(FOLLOW_STORE, lambda: self._session._workers.submit(lambda: self.reread(taken)))
        if not stopped:
            return started
        self._heed()
        with self._session._lock:  # a wish that changes nothing, such as a release of what is not held
            ready = [r for r in stopped if r.own and r.phase == HERE and r.state is not JobState.QUEUED_HELD]
            for record in ready:
                record.phase = SUBMITTING
        return started + (self.start(ready) if ready else [])

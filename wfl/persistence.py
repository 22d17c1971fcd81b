"""What a session shares through the store with programs that come after it, or that run beside it.

It writes down what changes, brings back what earlier programs submitted, inherits the queues of dead ones, and sees
to it that a job which waits in one program's queue is controlled from another and is never started twice.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING

from wfl.backend import Action
from wfl.drmaa2 import Capability, JobState
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, InvalidSessionError, WflError
from wfl.gate import Gate, occupy
from wfl.log import log
from wfl.program import program_lives
from wfl.record import ACCEPTED, ENDED, HERE, NEVER, SUBMITTING, Record
from wfl.store import Store
from wfl.task import Task, TaskArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from wfl.backend import Known
    from wfl.session import JobSession
    from wfl.store import Row

FLUSH = 0.05
"""Seconds that a change may wait before it is written to the store, so that many are written at once."""
LOOK = 0.5
"""Seconds between two looks at what other programs have written: into their queues, or as a wish for ours."""
AGAIN = 1.0
"""Seconds after which a write that failed is tried again."""
_NEVER = DrmCommunicationError("the program was killed before it could be started; it never ran")
_UNSENT = (NEVER, str(_NEVER))
"""How the words begin of what the system never had; what it refused has words of its own."""


def _waits_there(row: Row) -> bool:
    """Whether a detached program last heard that it waits in the system."""
    return row.detach and row.phase == ACCEPTED and row.info is not None and row.info.state is JobState.QUEUED


def recall(session: JobSession, found: Sequence[Known]) -> None:
    """Without a store: enter jobs of other programs that the system itself remembers, and follow them."""
    with session._lock:
        new: dict[Record, int | None] = {}
        here = {record.key for record in session._records.values()}
        for known in found:
            if known.key not in here:
                record = Record(session, known.key, known.template, job_id=known.job_id, index=known.index)
                record.id, record.info = known.id or known.key, known.info
                record.own, record.state = False, JobState.UNDETERMINED
                record.phase = SUBMITTING if known.id is None else ACCEPTED  # the system will say whether it ever was
                new[record] = None
        session._records.update((record.id, record) for record in new)
        session._unended += len(new)
        _restore_arrays(session, new)
    session._find(list(new), _NEVER)
    for record in new:
        if record.phase == ACCEPTED:
            with session._lock:
                record.gates = session._gates(record.gate)
                occupy(record)
            if record.template.deadline_time is not None:
                session._end_by(record, record.template.deadline_time)


def _restore_arrays(session: JobSession, limits: Mapping[Record, int | None]) -> None:
    """New elements are an array again; new attempts of known ones join theirs (with the session's lock held).

    `limits` are the records with the max_parallel of their arrays.
    """
    elements: dict[str, list[Record]] = {}
    for record in limits:
        if record.index is not None:
            elements.setdefault(record.job_id, []).append(record)
    for job_id, records in elements.items():
        known = session._arrays.get(job_id)
        tasks = {task.index: task for task in known.tasks} if known else {}
        for record in records:
            if (task := tasks.get(record.index)) is not None:
                task._show(record)
            else:
                tasks[record.index] = Task(record)
        if known is None:
            limit = next((limits[record] for record in records if limits[record]), None)
            known = session._arrays[job_id] = TaskArray(
                session,
                job_id,
                records[0].template,
                [task for _, task in sorted(tasks.items())],
                source=records[0].source,
                max_parallel=limit,
            )
            records[0].gate = _restored_gate(session, records, limit)
        for record in records:
            record.gate = known.tasks[0]._record.gate or records[0].gate


def _restored_gate(session: JobSession, records: Iterable[Record], limit: int | None) -> Gate | None:
    """That of an array of an earlier program, unless the system itself sees to its limit."""
    native = session._has(Capability.NATIVE_ARRAYS) and session._has(Capability.MAX_PARALLEL)
    return Gate(limit) if limit and not (native and all(r.phase != HERE for r in records)) else None


class Persistence:
    """One session's dealings with its store. It changes the ledger through the session, under the session's lock."""

    def __init__(self, session: JobSession, store: Store) -> None:
        self._session, self.store = session, store
        self._turn = threading.RLock()  # one at a time takes in what others wrote; taken before the session's lock
        self._dirty: dict[str, Record] = {}
        self._queue: dict[str, Record] = {}  # by key: what waits here; some have moved on since the last look
        self._followed: dict[Record, Row] = {}  # what living programs have in their queues, as it was at the last look
        self._guests: set[Record] = set()  # taken over from a detached program by a session that is not
        self._uncounted: dict[Record, str] = {}  # found running, with the program that counts it while that lives
        self._looking = False
        self._written = 0

    # -- writing down --

    def add(self, records: Sequence[Record], *, waits: bool) -> None:
        """Write down submissions before they happen."""
        session = self._session
        array = session._arrays.get(records[0].job_id) if records and records[0].index is not None else None
        limit = array.max_parallel if array else None
        if waits:
            self.watch_queue(records)
        self.store.add(records, HERE if waits else SUBMITTING, detach=session.context.detach, max_parallel=limit)

    def remove(self, records: Sequence[Record]) -> None:
        """Forget what was reaped (it is out of the ledger already)."""
        with self._session._lock:
            for record in records:
                self._dirty.pop(record.key, None)
        self.store.remove(record.key for record in records)

    def close(self) -> None:
        """Write down the rest, and leave what goes on to the next program."""
        try:
            self._write()
            self.store.leave()
        except WflError as error:
            log.error("%s; the last changes are not in it", error)
        finally:
            self.store.close()

    def note(self, records: Iterable[Record]) -> None:
        """These changed: write them down soon, many at once."""
        with self._session._lock:
            idle = not self._dirty
            self._dirty.update((record.key, record) for record in records)
            wake = idle and bool(self._dirty)
        if wake:
            self._session._later(FLUSH, self.flush)

    def flush(self) -> None:
        """Write down all changes now, or soon if the store cannot be written now."""
        try:
            self._write()
        except WflError as error:
            log.warning("%s; trying again", error)
            self._session._later(AGAIN, self.flush)

    def _write(self) -> None:
        with self._session._lock:
            dirty, self._dirty = self._dirty, {}
        if dirty:
            try:
                self.store.update(dirty.values())
            except BaseException:
                with self._session._lock:
                    self._dirty = {**dirty, **self._dirty}
                raise

    # -- coming back --

    def come_back(self, *, opening: bool = False) -> None:
        """Enter stored tasks that the ledger does not have, find them in the system, and go on with what waited."""
        session = self._session
        with self._turn:
            if opening:
                self.store.forget_templates()
            rows = [row for row in self.store.load(session.name) if not row.key.startswith(session._key)]
            with session._lock:
                keys = {record.key for record in session._records.values()}
                new = {self._restore(row): row for row in rows if row.key not in keys}
                session._records.update((record.id, record) for record in new)
                session._unended += sum(record.phase != ENDED for record in new)
                _restore_arrays(session, {record: row.max_parallel for record, row in new.items()})
            self._take_over(new, refusable=opening)
            for record, row in new.items():
                self._limit_again(record, row)
            if opening:
                session.backend.tidy([row.key for row in rows])

    def _take_over(self, rows: Mapping[Record, Row], *, refusable: bool = False) -> None:
        """Follow what living programs have in their queues; find, or queue here, what dead ones left.

        Whatever goes wrong, what is not settled is followed, and so looked at again.
        """
        session, lives = self._session, cache(program_lives)
        left = dict(rows)
        try:
            waiting = {r: row for r, row in rows.items() if row.phase in (HERE, SUBMITTING)}
            claimable = [row for r, row in rows.items() if r in waiting or _waits_there(row)]
            abandoned = [row for row in claimable if row.program == self.store.program or not lives(row.program)]
            claimed = self.store.claim(abandoned)
            for record, row in rows.items():
                record.inherited = row.key in claimed and _waits_there(row)
                record.waited = row.key in claimed and row.waited and row.detach
            ours = [r for r, row in waiting.items() if row.key in claimed]
            queued = [r for r in ours if rows[r].phase == HERE]
            self.watch_queue(queued)  # before they can start, so that no wish is overlooked
            there = [r for r in rows if r not in waiting or (r in ours and rows[r].phase == SUBMITTING)]
            session._find(there, _NEVER, refusable=refusable)
            self._count({r: rows[r].program for r in there}, lives)
            session._submit([r for r in queued if self._inherit(r, detach=rows[r].detach)], check_store=True)
            left = {r: row for r, row in waiting.items() if r not in ours}
            if queued:
                self._fulfil()  # the wishes that came before this program
        finally:
            self._follow(left)

    def _count(self, found: Mapping[Record, str], lives: Callable[[str], bool]) -> None:
        """What is found running takes its place at the gates, unless another living program counts it."""
        with self._session._lock:
            self._uncounted.update(found)
            for record, program in list(self._uncounted.items()):
                if record.phase in (HERE, ENDED):
                    del self._uncounted[record]
                elif program == self.store.program or not lives(program):
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
                self._session._count_time(record)

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
                words = row.info.annotation or "it could not be started"
                record.error = (DrmCommunicationError if words.startswith(_UNSENT) else DeniedByDrmsError)(words)
        return record

    def wait_on(self, records: Sequence[Record]) -> None:
        """The system never had these: they go on waiting, in this program's queue."""
        session = self._session
        with session._lock:
            for record in records:
                record.waited, record.phase, record.state = False, HERE, JobState.QUEUED
        self.note(records)
        self.watch_queue(records)
        session._later(0.0, lambda: self._go_on(records))

    def _go_on(self, records: Sequence[Record]) -> None:
        with self._turn:  # when all that was found has its place at the gates
            ready = [record for record in records if self._inherit(record, detach=True)]
        self._session._submit(ready, check_store=True)

    def has_waited(self, record: Record) -> bool:
        """Whether it waited in this program's queue, and has not got out of it yet."""
        return record.key in self._queue

    def _inherit(self, record: Record, *, detach: bool) -> bool:
        """Go on with what waited in a dead program's queue; whether it may start now."""
        if not detach:
            self._session._end_here([record], "cancelled", "the program in whose queue it waited has ended")
            return False
        record.own = True
        if not self._session.context.detach:
            self._guests.add(record)
        record.gates = self._session._gates(record.gate)
        if record.state is JobState.QUEUED_HELD:
            return False
        return self._session._acceptable(record) and self._session._proceed(record)

    def is_guest(self, record: Record) -> bool:
        """Whether it waits for a detached program that is gone: closing this session does not end it."""
        return record in self._guests

    def reread(self) -> None:
        """Take in how it stands with what other programs have in their queues."""
        session = self._session
        with self._turn:
            with session._lock:
                followed, self._followed = self._followed, {}
            left: dict[Record, Row] = {}
            try:
                rows = {row.key: row for row in self.store.load(session.name)} if followed else {}
            except WflError:
                self._follow(followed)
                raise
            for record in followed:
                row = rows.get(record.key)
                if row is None:
                    session._end_here([record], "lost", "another program removed it from the store")
                elif self._is_now(record, row):
                    left[record] = row
            self._take_over(left)  # first, so that the backend knows where the output of what has ended is
            session.observe_own([(r, row.info) for r, row in left.items() if row.phase == ENDED and row.info])
            session._kill_rest([r for r, row in left.items() if r.why is not None and row.phase == ACCEPTED])

    def _is_now(self, record: Record, row: Row) -> bool:
        """Bring a record up to its row; whether it still is what others wrote."""
        with self._session._lock:
            if record.own or record.phase == ENDED:
                return False
            if row.id != record.id:
                self._session._records.pop(record.id, None)
                record.id = row.id
                self._session._records[row.id] = record
            record.phase = HERE if row.phase == ENDED else row.phase  # its end is a fact like others, and comes next
            if row.phase == HERE and row.info is not None and row.wish is None:
                record.state = row.info.state  # held or not
            return True

    # -- what other programs do, and want --

    def watch_queue(self, records: Iterable[Record]) -> None:
        """These wait here: from now on, look whether another program wants something done to them."""
        with self._session._lock:
            self._queue.update((record.key, record) for record in records)
        self._look_later()

    def _follow(self, rows: Mapping[Record, Row]) -> None:
        with self._session._lock:
            self._followed.update(rows)
        self._look_later()

    def _look_later(self) -> None:
        with self._session._lock:
            waiting = (HERE, SUBMITTING)  # to the store, what is just being submitted may wait still
            self._queue = {key: record for key, record in self._queue.items() if record.phase in waiting}
            needed = bool(self._queue or self._followed) and self._session._closed is None
            start = needed and not self._looking
            self._looking |= start  # a look that is under way, or to come, ends by asking for the next one itself
        if start:
            self._session._later(LOOK, self._look)

    def _look(self) -> None:
        lives = cache(program_lives)
        try:
            written = self.store.written()
            changed = written != self._written
            done = self._fulfil() if changed and self._queue else True
            if changed or any(not lives(row.program) for row in list(self._followed.values())):
                self.reread()
            self._count({}, lives)
            self._written = written if done else 0
        except Exception as error:  # noqa: BLE001 - whatever it was, the next look may go better
            if self._session._closed is None:
                log.warning("%s; looking again", error)
        finally:
            with self._session._lock:
                self._looking = False
            self._look_later()

    def want(self, records: Sequence[Record], action: Action) -> bool:
        """Ask the programs in whose queues these wait for it; False where some do not wait any more."""
        return self.store.wish([record.key for record in records], action.value)

    def _fulfil(self) -> bool:
        """Do what other programs want done to what waits here; whether all was done.

        A wish goes when what came of it is written, so that it outlives this program.
        """
        wishes = self.store.wishes()
        done: list[tuple[str, str]] = []
        for key, action in wishes.items():
            record = self._queue.get(key)
            if record is None:
                continue  # it has ended here, which is not written down yet, or is just being taken over
            try:
                failures = self._session._try_control([record], Action(action))
            except InvalidSessionError:  # closed meanwhile: the next program does it
                continue
            except Exception:  # noqa: BLE001 - one of many; it is tried again at the next look
                log.exception("%s: another program wants this: %s", key, action)
                continue
            done.append((key, action))
            for error in failures.values():
                log.info("another program wanted this: %s", error)
        if done:
            self._write()
            self.store.wish_is_done(done)
        return len(done) == len(wishes)

    def start(self, records: Sequence[Record]) -> list[Record]:
        """Write down that these start; those for which another program was faster do not."""
        refused = self.store.start([record.key for record in records])
        started = [record for record in records if record.key not in refused]
        stopped = [record for record in records if record.key in refused]
        taken: dict[Record, Row] = {}
        for record in stopped:
            row = refused[record.key]
            with self._session._lock:
                record.phase = HERE
                record.own = row is None or row.program == self.store.program
            if row is None:
                self._session._end_here([record], "lost", "another program removed it from the store")
            elif not record.own:
                taken[record] = row
            elif record.why is not None:
                self._session._end_here([record], *record.why)
            elif row.info is not None and row.phase == ENDED:
                self._session.observe_own([(record, row.info)])
        if taken:  # another program took this one for dead
            self._session._give_back(taken)
            self._follow(taken)
        if not stopped or not self._fulfil():
            return started
        with self._session._lock:  # a wish that changes nothing
            ready = [r for r in stopped if r.own and r.phase == HERE and r.state is not JobState.QUEUED_HELD]
            for record in ready:
                record.phase = SUBMITTING
        return started + (self.start(ready) if ready else [])

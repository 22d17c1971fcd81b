"""The server's view of its session's ledger: whose job is which, and that a request sent twice is one job.

A submission is written down with the key that its job will have, and only then handed to the session: whatever happens
in between, the same request finds it, or starts it with that same key. Any thread may call; nothing here knows HTTP.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from wfl.backend import Action
from wfl.drmaa2 import JobState
from wfl.errors import (
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidStateError,
    OutOfResourceError,
    TryLaterError,
    WflError,
)
from wfl.log import log
from wfl.record import ENDED, SUBMITTING
from wfl.server.database import Row
from wfl.server.refusals import ConflictError, QuotaError, UnknownError
from wfl.task import Task, TaskArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from wfl.backend import Stream
    from wfl.drmaa2 import JobInfo, JobTemplate
    from wfl.record import Record
    from wfl.server.database import Database
    from wfl.server.events import Owner
    from wfl.server.files import Files
    from wfl.server.identities import Identity
    from wfl.server.limits import ServerLimits
    from wfl.server.policy import Policy
    from wfl.session import JobSession

NATIVE_ID = "native_id"
"""Extension of JobInfo: the execution system's own id of the job, where that is not the job's id."""
STALE = 7 * 86400.0
"""Seconds for which what was written down and never handed over waits for the same request to come again."""
PATIENCE = 5.0
"""Seconds to wait for another request with the same key."""
REAPED = 100_000
"""Keys of reaped jobs that are remembered."""


class ClientSession:
    """The jobs of one identity under one session name, in the order in which they came."""

    __slots__ = ("by_key", "jobs", "owner")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.jobs: dict[str, Job] = {}
        self.by_key: dict[str, Job | Array] = {}


class Job:
    """One job, or one element of an array. Without a task it was written down, but never came to the session."""

    __slots__ = ("array", "id", "index", "key", "refused", "row", "session", "task")

    def __init__(self, session: ClientSession, row: Row, array: Array | None = None, index: int | None = None) -> None:
        self.session, self.row, self.array, self.index = session, row, array, index
        self.id, self.key = (row.id, row.key) if index is None else (f"{row.id}.{index}", f"{row.key}.{index}")
        self.task: Task | None = None
        self.refused = False  # and about to be forgotten

    @property
    def jobs(self) -> list[Job]:
        """Itself, as an array has its elements."""
        return [self]

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.task is not None and self.task._record.phase == ENDED


class Array:
    """One array: `elements` are those that were not reaped, by index; `errors` say which were refused at its start."""

    __slots__ = ("elements", "errors", "id", "key", "row", "session")

    def __init__(self, session: ClientSession, row: Row) -> None:
        self.session, self.row, self.id, self.key = session, row, row.id, row.key
        self.elements = {index: Job(session, row, self, index) for index in row.indexes or ()}
        self.errors: dict[int, WflError] = {}

    @property
    def jobs(self) -> list[Job]:
        """Its elements."""
        return [*self.elements.values()]


class Asked:
    """One job that a client wants: under which key, with which template; an array if it has indexes."""

    __slots__ = ("body", "digest", "indexes", "key", "max_parallel", "template", "text")

    def __init__(
        self, key: str | None, template: JobTemplate, indexes: range | None = None, max_parallel: int | None = None
    ) -> None:
        self.key, self.template, self.indexes, self.max_parallel = key, template, indexes, max_parallel
        self.text = _canonical(template)
        self.digest = self.body = hashlib.sha256(self.text.encode()).digest()
        if indexes is not None:
            self.body = hashlib.sha256(self.digest + repr((indexes, max_parallel)).encode()).digest()


class _New:
    """What is to be started: its row, the template as the session gets it, the uploads that it uses."""

    __slots__ = ("fresh", "number", "row", "template", "text", "uses")

    def __init__(self, number: int, row: Row, template: JobTemplate, text: str, uses: Iterable[str]) -> None:
        self.number, self.row, self.template, self.text, self.uses = number, row, template, text, uses
        self.fresh = not row.number  # never written down before

    @property
    def size(self) -> int:
        """How many jobs it is."""
        return 1 if self.row.indexes is None else len(self.row.indexes)


Answer = Job | Array | WflError
"""Of one submission: what it is now, or why it is not."""


class Ledger:
    """All jobs of the server."""

    def __init__(
        self,
        session: JobSession,
        database: Database,
        files: Files,
        policy: Policy,
        limits: ServerLimits,
        *,
        isolated: bool,
        own: bool,
        hide: str,
    ) -> None:
        """`isolated` and `own`: as in Policy.check. `hide`: a path of the server that no text shows."""
        self.session = session
        self._database, self._files, self._policy, self._limits = database, files, policy, limits
        self._isolated, self._own, self._hide = isolated, own, hide
        self._lock = threading.Lock()
        self._sessions: dict[Owner, ClientSession] = {}
        self._jobs: dict[str, Job] = {}
        self._arrays: dict[str, Array] = {}
        self._counts: dict[str, int] = {}
        self._reaped: dict[tuple[Owner, str], None] = {}  # in order
        self._under_way: set[tuple[Owner, str]] = set()
        self._expected: Counter[tuple[Owner, str]] = Counter()
        self._settled = threading.Condition()
        self.draining = False
        self._come_back()

    # -- after a start --

    def _come_back(self) -> None:
        """What earlier servers knew; a reaping that broke off is finished."""
        tasks = {task._record.key: task for task in self.session.get_jobs()}
        reaped: list[str] = []
        for row in self._database.rows():
            jobs = self._enter(row).jobs
            for job in jobs:
                job.task = tasks.pop(job.id, None)
            if row.reaped:
                if self._finish_reaping(jobs):
                    reaped.append(row.id)
            elif any(job.task for job in jobs):
                self._drop([job for job in jobs if job.task is None])  # elements that were reaped one by one
            elif row.created < time.time() - STALE:
                self._drop(jobs)
                reaped.append(row.id)
        if tasks:
            log.warning("%d jobs of this session are no identity's, and are left as they are", len(tasks))
        self._database.forget(reaped)
        self._database.tidy()
        self._files.tidy([*self._jobs, *tasks])

    def _finish_reaping(self, jobs: Sequence[Job]) -> bool:
        """Whether that could be done; else they are there until the next start."""
        over = [job.task for job in jobs if job.ended and job.task is not None]
        try:
            if over:
                self.session.reap(over)
        except WflError as error:
            log.warning("%s was reaped, and is still there: %s", jobs[0].row.id, error)
            self._drop([job for job in jobs if job.task is None])
            return False
        self._drop(jobs)
        return True

    def _enter(self, row: Row, *, counted: bool = False) -> Job | Array:
        owner = (row.identity, row.session)
        with self._lock:
            session = self._sessions.get(owner) or self._sessions.setdefault(owner, ClientSession(owner))
            entry: Job | Array = Job(session, row) if row.indexes is None else Array(session, row)
            session.by_key[row.key] = entry
            if isinstance(entry, Array):
                self._arrays[row.id] = entry
            for job in entry.jobs:
                session.jobs[job.id] = self._jobs[job.id] = job
            if not counted:
                self._counts[row.identity] = self._counts.get(row.identity, 0) + len(entry.jobs)
        return entry

    def _drop(self, jobs: Sequence[Job]) -> None:
        """Out of all that is in memory."""
        with self._lock:
            for job in jobs:
                if self._jobs.pop(job.id, None) is None:
                    continue
                session, array = job.session, job.array
                session.jobs.pop(job.id, None)
                self._counts[session.owner[0]] -= 1
                if array is not None and job.index is not None:
                    array.elements.pop(job.index, None)
                if array is None or not array.elements:
                    session.by_key.pop(job.row.key, None)
                    self._arrays.pop(job.row.id, None)
                if not session.by_key:
                    self._sessions.pop(session.owner, None)

    def _client_session(self, owner: Owner) -> ClientSession:
        """Kept for as long as there are jobs in it: names cost nothing."""
        with self._lock:
            return self._sessions.get(owner) or ClientSession(owner)

    # -- submitting --

    def submit(self, owner: Owner, asked: Sequence[Asked]) -> list[Answer]:
        """Each is a job (an array), new or known by its key, or the reason why it is none.

        Raises TryLaterError, and does nothing, where the server is being stopped and not all are known.
        """
        with self._alone(owner, {one.key for one in asked if one.key is not None}):
            session = self._client_session(owner)
            if self.draining and not all(one.key in session.by_key for one in asked):
                raise TryLaterError("the server is being stopped; the same request works when it is there again")
            known = [session.by_key[one.key] for one in asked if one.key in session.by_key]
            if any(_in_doubt(job.task) for entry in known for job in entry.jobs if job.task is not None):
                raise TryLaterError("the system has not told yet what became of this before the server was restarted")
            return self._submit(session, asked)

    @contextmanager
    def _alone(self, owner: Owner, keys: set[str]) -> Iterator[None]:
        """No other request submits with one of these keys meanwhile. Raises TryLaterError."""
        marks = {(owner, key) for key in keys}
        with self._settled:
            if not self._settled.wait_for(lambda: not marks & self._under_way, PATIENCE):
                raise TryLaterError("another request is just submitting with the same key")
            self._under_way |= marks
        try:
            yield
        finally:
            with self._settled:
                self._under_way -= marks
                self._settled.notify_all()

    @contextmanager
    def expecting(self, owner: Owner, keys: Sequence[str]) -> Iterator[None]:
        """A request that submits with these keys has come: until it is settled, nobody says that there are none."""
        marks = [(owner, key) for key in keys]
        with self._settled:
            self._expected.update(marks)
        try:
            yield
        finally:
            with self._settled:
                self._expected.subtract(marks)
                for mark in marks:
                    if not self._expected[mark]:
                        del self._expected[mark]
                self._settled.notify_all()

    def _await_settled(self, owner: Owner, keys: Iterable[str]) -> None:
        marks = {(owner, key) for key in keys}
        with self._settled:
            if not self._settled.wait_for(lambda: not marks & (self._under_way | self._expected.keys()), PATIENCE):
                raise TryLaterError("a request with one of these keys is not settled yet")

    def _submit(self, session: ClientSession, asked: Sequence[Asked]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        twins: dict[int, int] = {}
        first: dict[str, int] = {}
        new: list[_New] = []
        for number, one in enumerate(asked):
            if one.key is not None and first.setdefault(one.key, number) != number:
                twins[number] = first[one.key]
                continue
            try:
                found = self._known(session, one, number)
            except WflError as error:
                answers[number] = error
                continue
            if isinstance(found, _New):
                new.append(found)
            else:
                answers[number] = found
        refused = self._admitted(session.owner[0], new)
        answers.update(refused)
        answers.update(self._start([one for one in new if one.number not in refused]))
        for number, other in twins.items():
            answers[number] = answers[other] if asked[number].body == asked[other].body else _conflict(asked[other])
        return [answers[number] for number in range(len(asked))]

    def _known(self, session: ClientSession, asked: Asked, number: int) -> Job | Array | _New:
        """What there is under this key, or what is to be started. Raises ConflictError, and what the policy says."""
        known = None if asked.key is None else session.by_key.get(asked.key)
        if known is not None:
            if known.row.body != asked.body:
                raise _conflict(asked)
            if any(job.task is not None and not _never_started(job.task) for job in known.jobs):
                return self._without_lost(known)
        if known is None and (session.owner, asked.key) in self._reaped:
            raise ConflictError(f"the job of the key {asked.key!r} was reaped")
        defaults = self.session.context.default_template
        self._policy.check(asked.template, defaults, isolated=self._isolated, own=self._own)
        if known is not None:
            return self._again(known, asked, number)
        id = self.session.new_key()
        template, uses = self._translated(session.owner, asked, id)
        row = Row(
            0, id, *session.owner, asked.key or id, asked.body, asked.digest, asked.indexes, asked.max_parallel,
            time.time(),
        )  # fmt: skip
        return _New(number, row, template, asked.text, uses)

    def _without_lost(self, known: Job | Array) -> Job | Array:
        """What of an array was never started, as the server died in between, is told as refused to who asks again."""
        if isinstance(known, Array):
            lost = [job for job in known.jobs if job.task is not None and _never_started(job.task)]
            known.errors.update((job.index or 0, error) for job in lost if job.task and (error := job.task.error))
            self._forget(lost)
        return known

    def _again(self, known: Job | Array, asked: Asked, number: int) -> _New:
        """It was written down and never started, as the server died in between: now it is, with the same id."""
        template, uses = self._translated(known.session.owner, asked, known.id)
        tasks = [job.task for job in known.jobs if job.task is not None]
        if tasks:
            self.session.reap(tasks)
        self._drop(known.jobs)
        return _New(number, known.row, template, asked.text, uses)

    def _translated(self, owner: Owner, asked: Asked, id: str) -> tuple[JobTemplate, set[str]]:
        return self._files.translate(*owner, asked.template, id, array=asked.indexes is not None)

    def _admitted(self, identity: str, new: Sequence[_New]) -> dict[int, Answer]:
        """What there is room for is counted from now on; the errors for the rest. `new` is of one identity."""
        refused: dict[int, Answer] = {}
        with self._lock:
            for one in new:
                count = self._counts.get(identity, 0)
                if one.fresh and count + one.size > self._limits.jobs:
                    words = f"you have {count} jobs here, of {self._limits.jobs}; reap those that have ended"
                    refused[one.number] = QuotaError(words)
                elif one.fresh:
                    self._counts[identity] = count + one.size
        return refused

    def _start(self, new: Sequence[_New]) -> dict[int, Answer]:
        """Write them down, then hand them over."""
        if not new:
            return {}
        try:
            self._write_down(new)
        except BaseException:
            with self._lock:
                self._counts[new[0].row.identity] -= sum(one.size for one in new if one.fresh)
            raise
        entries = [self._enter(one.row, counted=one.fresh) for one in new]
        answers: dict[int, Answer] = {}
        refused: list[Job] = []
        try:
            for one, entry in zip(new, entries, strict=True):
                for job in entry.jobs:
                    self._files.make(job.id, one.template)
            singles = [(one, entry) for one, entry in zip(new, entries, strict=True) if isinstance(entry, Job)]
            if singles:
                tasks = self.session.start([one.template for one, _ in singles], [one.row.id for one, _ in singles])
                for (one, job), task in zip(singles, tasks, strict=True):
                    error = self._taken(job, task)
                    answers[one.number] = error or job
                    refused += [job] if error else []
            for one, entry in zip(new, entries, strict=True):
                if isinstance(entry, Array):
                    refused += self._start_array(entry, one)
                    answers[one.number] = entry
        except OSError as error:
            raise OutOfResourceError(f"there is no room for what a job needs: {error.strerror}") from error
        finally:
            self._attach([job for entry in entries for job in entry.jobs if job.task is None])
            lost = [job for entry in entries for job in entry.jobs if job.task is None]
            self._forget([*refused, *lost])
        return answers

    def _attach(self, jobs: Sequence[Job]) -> None:
        """Something went wrong in between: what the session has of these all the same."""
        if jobs:
            with self.session._lock:
                records = {record.key: record for record in self.session._records.values()}
            for job in jobs:
                if (record := records.get(job.id)) is not None:
                    job.task = Task(record)

    def _write_down(self, new: Sequence[_New]) -> None:
        fresh = [one for one in new if one.fresh]
        uses = [(upload, one.row.id) for one in new for upload in one.uses]
        if fresh:
            texts = {one.row.template: one.text for one in fresh}
            numbers = self._database.add([one.row for one in fresh], texts, uses)
            for one, number in zip(fresh, numbers, strict=True):
                one.row = one.row._replace(number=number)
        elif uses:
            self._database.use(uses)

    def _start_array(self, array: Array, one: _New) -> list[Job]:
        """The elements that are refused."""
        started = self.session.start_array(
            one.template, one.row.indexes or range(0), one.row.max_parallel, key=one.row.id
        )
        refused = []
        for task in started.tasks:
            job = array.elements[task.index or 0]
            if error := self._taken(job, task):
                array.errors[task.index or 0] = error
                refused.append(job)
        return refused

    def _taken(self, job: Job, task: Task) -> WflError | None:
        """Why it was refused."""
        error = task.error
        job.refused, job.task = error is not None, task
        if error is None and task._record.error is not None:  # it failed in this moment: `describe` may have passed it
            self.session._tell([task._record])
        return error

    def _forget(self, jobs: Sequence[Job]) -> None:
        """What is over, and is to leave no trace."""
        if not jobs:
            return
        leaving = {job.id for job in jobs}
        arrays = {job.array.id: job.array for job in jobs if job.array is not None}
        whole = {job.row.id for job in jobs if job.array is None}
        whole |= {id for id, array in arrays.items() if leaving.issuperset(job.id for job in array.jobs)}
        self._database.reaping(whole)
        tasks = [job.task for job in jobs if job.task is not None]
        try:
            if tasks:
                self.session.reap(tasks)
        except WflError:
            self._database.reaping(whole, over=True)  # who asked is told that it is still there
            raise
        self._drop(jobs)
        self._files.remove(leaving)
        self._database.forget(whole)

    # -- looking --

    def get(self, identity: Identity, id: str, owner: Owner | None = None) -> Job | Array:
        """The job or array of this id, in that client session. Raises UnknownError, also for another identity's."""
        with self._lock:
            found = self._jobs.get(id) or self._arrays.get(id)
        if found is None or all(job.task is None for job in found.jobs):
            raise _unknown(id)
        whose = found.session.owner
        if not identity.admin and (whose[0] != identity.name or (owner is not None and whose != owner)):
            raise _unknown(id)
        return found

    def sessions(self, identity: Identity) -> list[tuple[Owner, int]]:
        """The client sessions that an identity may look at, with their numbers of jobs."""
        with self._lock:
            found = [(owner, len(session.jobs)) for owner, session in self._sessions.items()]
        return [(owner, count) for owner, count in found if count and (identity.admin or owner[0] == identity.name)]

    def by_keys(self, owner: Owner, keys: Sequence[str]) -> list[list[Job]]:
        """Of each key its job; of an array all elements, or the one of KEY.INDEX. Raises TryLaterError."""
        self._await_settled(owner, [name for key in keys for name in (key, key.rpartition(".")[0])])
        session = self._client_session(owner)
        return [self._by_key(session, key) for key in keys]

    def _by_key(self, session: ClientSession, key: str) -> list[Job]:
        with self._lock:
            entry = session.by_key.get(key)
            if entry is not None:
                found = entry.jobs
            else:
                whole, _, index = key.rpartition(".")
                array = session.by_key.get(whole)
                element = array.elements.get(int(index)) if isinstance(array, Array) and _is_index(index) else None
                found = [element] if element is not None else []
        return [job for job in found if job.task is not None]

    def page(self, owner: Owner, after: tuple[int, int], limit: int, state: JobState | None) -> list[Job]:
        """At most so many jobs of a client session that come after this place; see `place`."""
        session = self._client_session(owner)
        with self._lock:
            jobs = [job for job in session.jobs.values() if job.task is not None and place(job) > after]
        wanted = jobs if state is None else [job for job in jobs if job.task and job.task._record.state is state]
        return sorted(wanted, key=place)[:limit]

    def living(self, identity: Identity, session: str | None, after: tuple[int, int], limit: int) -> list[Job]:
        """At most so many jobs after this place that have not ended, of all sessions that this identity may look at."""
        with self._lock:
            jobs = [
                job
                for owner, found in self._sessions.items()
                if (identity.admin or owner[0] == identity.name) and session in (None, owner[1])
                for job in found.jobs.values()
                if job.task is not None and not job.ended and place(job) > after
            ]
        return sorted(jobs, key=place)[:limit]

    def ids(self, owner: Owner) -> list[str]:
        """All jobs of a client session, elements one by one."""
        session = self._client_session(owner)
        with self._lock:
            return [job.id for job in session.jobs.values() if job.task is not None]

    def task(self, job: Job) -> Task:
        """What the session has of it. Raises UnknownError."""
        if job.task is None:
            raise _unknown(job.id)
        return job.task

    def info(self, entry: Job | Array) -> JobInfo:
        """What is known of a job, or of an array as a whole, under its id here."""
        if isinstance(entry, Job):
            return self._info(entry.id, self.task(entry)._record)
        tasks = [job.task for job in entry.jobs if job.task is not None]
        return TaskArray(self.session, entry.id, tasks[0].template, tasks).info()

    def _info(self, id: str, record: Record) -> JobInfo:
        info = self.session.info(self.session.look(record))
        native = info.id
        if native == id:
            return info
        return info.replace(id=id, extensions={**info.extensions, NATIVE_ID: native})

    def info_json(self, entry: Job | Array) -> bytes:
        """The same as JSON."""
        return self.shown(self.info(entry).to_json()).encode()

    def describe(self, record: Record) -> tuple[Owner, bytes] | None:
        """Whose a changed record is, and what is told of it."""
        job = self._jobs.get(record.key)
        if job is None or job.refused or (job.task is None and record.error is not None):
            return None  # refused: its client is just being told
        info = self.shown(self._info(job.id, record).to_json())
        return job.session.owner, f'{{"id":"{job.id}","info":{info}}}'.encode()

    def shown(self, text: str) -> str:
        """A text without the place where this server keeps things."""
        return text.replace(self._hide, "SERVER") if self._hide in text else text

    def template_json(self, job: Job | Array) -> bytes:
        """The template as the client gave it."""
        return self._database.template(job.row.template).encode()

    def read(self, job: Job, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:
        """At most `limit` bytes of output from `offset`, and whether that is the end for now."""
        return self.session.read(self.task(job)._record, stream, offset, limit)

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in which state."""
        found = dict.fromkeys(JobState, 0)
        with self._lock:
            jobs = [*self._jobs.values()]
        for job in jobs:
            if job.task is not None:
                found[job.task._record.state] += 1
        return found

    # -- acting --

    def control(self, jobs: Sequence[Job], action: Action) -> dict[str, WflError]:
        """Do it to these; the failures by id."""
        records = {job.id: self.task(job)._record for job in jobs}
        names = {record.id: id for id, record in records.items()}
        failures = self.session._try_control([*records.values()], action)
        names |= {record.id: id for id, record in records.items()}  # some have got their system's id meanwhile
        return {names[id]: _said(error, id, names[id]) for id, error in failures.items()}

    def reap(self, jobs: Sequence[Job]) -> dict[str, WflError]:
        """Forget these with all that they left; the failures by id."""
        over = [job for job in jobs if job.ended]
        living = {job.id: InvalidStateError(f"{job.id}: it has not ended") for job in jobs if not job.ended}
        self._remember_keys(over)
        try:
            self._forget(over)
        except WflError as error:
            return {**living, **dict.fromkeys((job.id for job in over if job.id in self._jobs), error)}
        return dict(living)

    def _remember_keys(self, jobs: Iterable[Job]) -> None:
        """What is reaped stays so, even where its submission comes once more, which was kept on its way so long."""
        with self._lock:
            self._reaped.update(((job.session.owner, job.row.key), None) for job in jobs)
            for mark in list(islice(self._reaped, max(0, len(self._reaped) - REAPED))):
                del self._reaped[mark]


def place(job: Job) -> tuple[int, int]:
    """Where a job stands in its client session: by submission, then by index."""
    return job.row.number, -1 if job.index is None else job.index


def _never_started(task: Task) -> bool:
    """Whether the system is known never to have had it: we, or the connection, died before."""
    record = task._record
    return record.phase == ENDED and isinstance(record.error, DrmCommunicationError)


def _in_doubt(task: Task) -> bool:
    """Whether an earlier server died while it submitted this, and the system has not said yet whether it has it."""
    return not task._record.own and task._record.phase == SUBMITTING


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and str(int(text)) == text  # noqa: PLR2004


def _said(error: WflError, native: str, id: str) -> WflError:
    """An error with the id that the client knows."""
    return error if native == id else type(error)(str(error).replace(native, id))


def _conflict(asked: Asked) -> ConflictError:
    return ConflictError(f"the key {asked.key!r} was used for another job")


def _unknown(id: str) -> UnknownError:
    return UnknownError(f"there is no job {id!r}")


def _canonical(template: JobTemplate) -> str:
    """Its JSON, in which the same content is the same text."""
    try:
        return msgspec.json.encode(template, order="sorted").decode()
    except UnicodeEncodeError:  # file names that are not UTF-8
        return json.dumps(json.loads(template.to_json()), sort_keys=True, separators=(",", ":"))


def check_indexes(start: int, stop: int, step: int, most: int) -> range:
    """The indexes of an array. Raises InvalidArgumentError."""
    if start < 0 or step < 1 or stop > 1 << 31:
        raise InvalidArgumentError(
            f"indexes are [{start}, {stop}, {step}], expected [start, stop, step] from 0 upwards"
        )
    indexes = range(start, stop, step)
    if not 1 <= len(indexes) <= most:
        raise InvalidArgumentError(f"the array has {len(indexes)} elements, expected 1 to {most}")
    return indexes

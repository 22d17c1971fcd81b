"""A wfl job server as an execution system, by its own interface: each job bears its key there, and so does each array.

One connection for a session tells of all its jobs. Whenever something may not have been heard, all that has not ended
is asked for. What has no answer is made again with the same key, so that nothing is lost, and nothing is done twice.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from wfl.backend import Action, Answer, Backend, Known, Limits, Report, Stream, Submission, UnsettledError, ended
from wfl.contexts import checks
from wfl.contexts.guard import Guard
from wfl.contexts.remote import files, template
from wfl.contexts.remote.client import Client
from wfl.contexts.remote.connection import UnansweredError
from wfl.contexts.remote.ending import Journal, chunks, end_now, reached, watch
from wfl.contexts.remote.events import Listener
from wfl.contexts.remote.facts import AS_WANTED
from wfl.contexts.remote.following import Followers
from wfl.contexts.remote.v1 import Api, Told, raw
from wfl.drmaa2 import Capability, JobInfo, JobState, JobTemplate
from wfl.errors import (
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidStateError,
    UnsupportedOperationError,
    WflError,
)
from wfl.threads import Clock, Pool, in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from wfl.contexts.remote.settings import Credentials, Place
    from wfl.contexts.remote.v1 import Info
    from wfl.contexts.undertaker import Undertaker

    _Ready = tuple[Submission, msgspec.Raw]

log = logging.getLogger("wfl")

REQUESTS = 8
"""Requests at once that a session makes."""
SENDERS = 4
"""Threads that send files for one submission of many."""
TRIES = 3
"""Times that output and files of an ended job are asked for, while the server is there, before it ends without them."""
AGAIN = 1.0
"""Seconds after which what failed for want of an answer is tried again."""
_ENDING = (Action.TERMINATE, Action.KILL)
_ROOM = 256
"""Bytes of a request besides a job's template and key."""
_OURS = frozenset(
    {
        Capability.BULK_JOBS_MAXPARALLEL,
        Capability.DEADLINE,
        Capability.DETACH,
        Capability.HOLD,
        Capability.JT_DEADLINE,
        Capability.MAX_PARALLEL,
        Capability.NATIVE_ARRAYS,
        Capability.REATTACH,
        Capability.START_TIME,
        Capability.TERMINATE,
        Capability.WALLCLOCK_LIMIT,
    }
)
"""What every server's own session sees to, whatever system is behind it."""


class _Job:
    """What is known here of one job."""

    __slots__ = ("ended", "finishing", "heard", "id", "index", "key", "own", "reaped", "template", "tries")

    def __init__(self, id: str, key: str, given: JobTemplate, index: int | None, *, own: bool) -> None:
        self.id, self.key, self.template, self.index = id, key, given, index
        self.own = own  # submitted by this program, and ended with it
        self.ended = self.finishing = self.reaped = False
        self.heard = 0  # which of all facts that were told was the last of it
        self.tries = 0  # to have its output and files after its end

    @property
    def leaves(self) -> bool:
        """Whether something is to be fetched after its end."""
        return bool(template.written(self.template, self.index) or self.template.stage_out_files)


class RemoteBackend(Backend):
    """One session's jobs on one server."""

    name = "remote"
    index_fields = template.INDEX_FIELDS

    def __init__(self, place: Place, credentials: Credentials, info: Info, session: str, *, detach: bool) -> None:
        """`info` is what the server has said of itself."""
        self.capabilities = _OURS | {Capability(name) for name in info.capabilities if name in set(Capability)}
        self.fields = fields_of(info.fields, output=Capability.OUTPUT in self.capabilities)
        self.extensions = frozenset(info.extensions)
        self.limits = Limits(requests=REQUESTS, submissions=info.limits.submissions, ids=info.limits.ids)
        self._place, self._credentials, self._info, self._session = place, credentials, info, session
        self._told = 0
        self._jobs: dict[str, _Job] = {}
        self._doubtful: dict[str, float] = {}  # by key: when a submission was given up that no answer came to
        self._early: dict[str, Told] = {}
        self._submitting = 0
        self._unsettled = False
        self._lock = threading.Lock()
        self._directory: Path | None = None
        self._closed = threading.Event()
        self._guard = Guard(self.name, "jobs", self._closed, None if detach else self._start_helper)
        self._detach = detach
        self._pool = Pool("wfl-remote", REQUESTS)
        self._clock = Clock("wfl-remote-clock")

    def open(self, report: Report, directory: Path | None) -> None:
        """Nothing is asked: the server was greeted when the backend was made."""
        self._report, self._keep = report, directory is not None
        self._client = Client(self._place, self._credentials, stopped=self._closed)
        self._api = Api(self._client, self._session)
        self._followers = Followers(self._api, self._place_here, self._closed)
        self._listener = Listener(
            self._api, heard=self._hear, look=self._look_at_all, closed=self._closed, wait=self._info.limits.wait
        )
        log.debug("remote: %s at %s, wfl %s", self._info.context, self._client.url, self._info.version)

    def _place_here(self) -> Path:
        """A directory of this session's own, for what is on its way."""
        with self._lock:
            if self._directory is None:
                self._directory = Path(tempfile.mkdtemp(prefix="wfl-"))
                self._journal = Journal(self._directory)
            return self._directory

    def _start_helper(self, lost: Any) -> Undertaker:
        self._place_here()
        return watch(self._where(), self._journal.path, keep=self._keep, lost=lost)

    def _where(self) -> dict[str, Any]:
        """What is told to who ends jobs."""
        return {
            "place": self._place.to_dict(),
            "credentials": self._credentials.to_dict(),
            "protocol": {"session": self._session, "ids": self._info.limits.ids},
        }

    # -- submitting --

    def resolve(self, given: JobTemplate) -> JobTemplate:
        """With the paths of this side absolute, whatever directory is gone to before they are used."""
        return checks.from_here(given, template.is_local)

    def check(self, template_: JobTemplate) -> None:
        """Refuse by field what the server does not honour, and what cannot be sent there."""
        super().check(template_)
        template.check(template_)

    def submit(self, submissions: Sequence[Submission]) -> Sequence[str | WflError]:
        """Send their files, then start them in as few requests as they fit in."""
        outcomes: dict[str, str | WflError] = {}
        with self._guard.on_its_way():
            ready: list[_Ready] = []
            for submission, found in zip(submissions, self._all_prepared(submissions), strict=True):
                if isinstance(found, WflError):
                    outcomes[submission.key] = found
                else:
                    ready.append((submission, found))
            if ready:
                self._begin([submission.key for submission, _ in ready])
            lost: WflError | None = None
            for some in self._fitting(ready):
                told = self._send(some) if lost is None else {submission.key: lost for submission, _ in some}
                outcomes.update(told)
                if lost is None and all(isinstance(outcome, DrmCommunicationError) for outcome in told.values()):
                    lost = DrmCommunicationError("it was not sent: the server did not answer the request before it")
        return [outcomes[submission.key] for submission in submissions]

    def _all_prepared(self, submissions: Sequence[Submission]) -> list[msgspec.Raw | WflError]:
        """Their templates as the server is to have them. Files are sent in a few threads."""

        def prepare(submission: Submission) -> msgspec.Raw | WflError:
            try:
                return self._prepared(submission)
            except WflError as error:  # nothing was submitted, so this one never was
                return error

        if len(submissions) > 1 and any(template.sends(submission.template) for submission in submissions):
            return in_threads(prepare, submissions, SENDERS, "wfl-remote-files")
        return [prepare(submission) for submission in submissions]

    def _prepared(self, submission: Submission) -> msgspec.Raw:
        self.check(submission.template)
        given = submission.template
        if submission.index is not None:  # an element by itself is a job like any other to the server
            number = {"TASK_ID": str(submission.index)}
            given = given.replace(job_environment={**number, **(given.job_environment or {})})
        found = raw(files.send(self._api, given))
        size, most = len(bytes(found)) + len(submission.key) + _ROOM, self._info.limits.body
        if size > most:
            raise InvalidArgumentError(f"the template has {size} bytes, the server takes {most}: use stage_in_files")
        return found

    def _fitting(self, ready: Sequence[_Ready]) -> Iterator[list[_Ready]]:
        """In pieces that fit into one request."""
        piece: list[_Ready] = []
        size = _ROOM
        for submission, found in ready:
            more = len(bytes(found)) + len(submission.key) + _ROOM
            if piece and size + more > self._info.limits.body:
                yield piece
                piece, size = [], _ROOM
            piece.append((submission, found))
            size += more
        if piece:
            yield piece

    def _begin(self, keys: Sequence[str]) -> None:
        """Before something is submitted: see to it that its end is heard of, and that it ends with this program."""
        self._listener.start()
        self._guard.watch()
        if not self._detach:
            self._journal.add(keys)

    def _send(self, some: Sequence[_Ready]) -> dict[str, str | WflError]:
        """One request; that it is refused as a whole says nothing of others."""
        jobs = [(submission.key, found) for submission, found in some]
        submissions = [submission for submission, _ in some]
        with self._expecting(submissions) as new:
            outcomes = _outcomes(lambda: self._api.submit(jobs), len(jobs))
            pairs = zip(submissions, outcomes, strict=True)
            self._doubt([submission.key for submission, found in pairs if isinstance(found, UnsettledError)])
            new += [
                _Job(outcome, submission.key, submission.template, None, own=True)
                for submission, outcome in zip(submissions, outcomes, strict=True)
                if isinstance(outcome, str)
            ]
        return {submission.key: outcome for submission, outcome in zip(submissions, outcomes, strict=True)}

    def submit_array(
        self, submission: Submission, indexes: range, max_parallel: int | None
    ) -> Sequence[str | WflError]:
        """Start one array; what is sent to it is the same for all its elements."""
        with self._guard.on_its_way():
            try:
                self.check(submission.template)
                sent = files.send(self._api, submission.template)
            except WflError as error:
                return [error] * len(indexes)
            self._begin([submission.key])
            with self._expecting([submission]) as new:
                outcomes = _outcomes(
                    lambda: self._api.submit_array(submission.key, sent, indexes, max_parallel), len(indexes)
                )
                self._doubt([submission.key] if any(isinstance(found, UnsettledError) for found in outcomes) else [])
                new += [
                    _Job(outcome, f"{submission.key}.{index}", submission.template, index, own=True)
                    for index, outcome in zip(indexes, outcomes, strict=True)
                    if isinstance(outcome, str)
                ]
        return outcomes

    @contextmanager
    def _expecting(self, submissions: Sequence[Submission]) -> Iterator[list[_Job]]:
        """Meanwhile ids become known; who asks puts the jobs into the list. What is told of others before is kept for
        them, and what may have been missed is asked for.
        """
        with self._lock:
            self._submitting += 1
            connections = self._listener.connections
        new: list[_Job] = []
        try:
            yield new
            self._take_in(new)
        except BaseException:
            self._doubt([submission.key for submission in submissions])
            raise
        finally:
            with self._lock:
                self._submitting -= 1
                if not self._submitting:
                    self._early.clear()
        self._look_if_missed(connections, [job.id for job in new])
        if held := [job.id for job in new if job.template.submit_as_hold]:  # nothing happens that would be told
            self._look_soon(held)

    def _doubt(self, keys: Sequence[str]) -> None:
        """Nobody can say whether the server has these, or is yet to have them."""
        if keys:
            self._guard.doubt()
            with self._lock:
                self._unsettled = True
                self._doubtful.update(dict.fromkeys(keys, time.monotonic()))

    def _take_in(self, new: Sequence[_Job]) -> None:
        """Know these jobs, and what was told of them before."""
        with self._lock:
            self._jobs.update((job.id, job) for job in new)
            early = [told for job in new if (told := self._early.pop(job.id, None)) is not None]
        self._take(early, 0)

    # -- what the server tells --

    def _hear(self, many: Sequence[Told]) -> None:
        """Changes, in their order."""
        self._take(many, None)

    def _take(self, many: Iterable[Told], since: int | None) -> None:
        """Take in what is told of jobs. `since`: it was asked for after so many facts; newer ones count more."""
        infos: list[JobInfo] = []
        for told in many:
            job = self._job_of(told, count=since is None)
            if job is None or job.ended or job.finishing:
                continue
            try:
                info = told.known
            except DrmCommunicationError as error:
                log.warning("remote: %s: %s", job.id, error)
                continue
            if info.state.ended:
                if self._over(job, info):
                    infos.append(info)
            elif since is None or job.heard <= since:
                infos.append(info)
        if infos:
            self._report(infos)

    def _job_of(self, told: Told, *, count: bool) -> _Job | None:
        """Whose this is. What belongs to nobody is kept while something is being submitted: it may be of that."""
        with self._lock:
            job = self._jobs.get(told.id or "")
            if job is None and self._submitting and told.id is not None:
                self._early[told.id] = told
            if job is not None and count:
                self._told += 1
                job.heard = self._told
            return job

    def _over(self, job: _Job, info: JobInfo) -> bool:
        """It has ended: whether that is to be told now. What is to be fetched comes first."""
        with self._lock:
            if job.ended or job.finishing:
                return False
            if not (job.leaves and _ran(info)):
                job.ended = True
                return True
            job.finishing = True
        self._pool.submit(lambda: self._finish(job, info))
        return False

    def _look_at_all(self) -> None:
        """Ask for all that has not ended: something may not have been heard."""
        with self._lock:
            ids = [job.id for job in self._jobs.values() if not (job.ended or job.finishing or job.reaped)]
        self._look(ids)

    def _look(self, ids: Sequence[str]) -> None:
        """Ask for these. One that the server knew, and does not know any more, has ended as lost."""
        for some in chunks(ids, self._info.limits.ids):
            with self._lock:
                since = self._told
            found = self._api.find(ids=some)
            self._take(found.jobs, since)
            if found.gone.ids:
                self._lose(found.gone.ids)

    def _lose(self, ids: Sequence[str]) -> None:
        words = "the job server does not know it any more: somebody removed it there"
        if self._api.info().server != self._info.server:
            words = "the job server does not know it any more: it has another database than before"
        infos = []
        for id in ids:
            job = self._jobs.get(id)
            if job is not None and not (job.ended or job.finishing or job.reaped):
                job.ended = True
                infos.append(ended(id, sub_state="lost", annotation=words, finish_time=datetime.now(UTC)))
        self._report(infos)

    def _look_now(self, ids: Sequence[str]) -> None:
        try:
            self._look(ids)
        except WflError as error:  # it will be told, or the next connection brings it up
            log.debug("remote: %s", error)

    def _look_soon(self, ids: Sequence[str]) -> None:
        self._pool.submit(lambda: self._look_now(ids))

    # -- ends --

    def _finish(self, job: _Job, info: JobInfo) -> None:
        """Fetch what an ended job leaves, then tell of its end."""
        try:
            trouble = self._fetch(job, info)
        except DrmCommunicationError as error:
            job.tries += self._listener.listening.is_set()
            if job.tries < TRIES:
                if not self._closed.is_set():
                    log.info("remote: %s has ended, its output and files are not here yet: %s", job.id, error)
                    self._clock.after(AGAIN, lambda: self._pool.submit(lambda: self._finish(job, info)))
                return
            trouble = f"its output and files cannot be had: {error}"
        except Exception as error:
            log.exception("remote: %s has ended", job.id)
            trouble = f"its output and files cannot be had: {error!r}"
        with self._lock:
            job.ended, job.finishing = True, False
        self._report([_troubled(info, trouble)])

    def _fetch(self, job: _Job, info: JobInfo) -> str | None:
        """Output, and what is staged out where it ended well; what went wrong, in words."""
        trouble = files.write_output(self._api, job.id, template.written(job.template, job.index), self._place_here())
        if info.state is JobState.DONE:
            wanted = template.brought(job.template, job.index)
            trouble = files.bring_back(self._api, job.id, wanted) or trouble
        return trouble

    # -- control and output --

    def control(self, ids: Sequence[str], action: Action) -> dict[str, WflError]:
        """In one request; and one more for the new states."""
        known = [id for id in ids if id in self._jobs]
        failures: dict[str, WflError] = {
            id: InvalidStateError(f"{id}: cannot {action.value}: it is not known") for id in ids if id not in self._jobs
        }
        if known:
            failed = self._api.control(known, action)
            mended = self._done_before(failed.failures, action) if failed.doubtful else set()
            failures.update((id, error) for id, error in failed.failures.items() if id not in mended)
            if action not in _ENDING:
                self._look_now(known)
        return failures

    def _done_before(self, failures: Mapping[str, WflError], action: Action) -> set[str]:
        """Those that an earlier try, which had no answer, has brought to where they were to be brought."""
        found = [
            told for some in chunks(list(failures), self._info.limits.ids) for told in self._api.find(ids=some).jobs
        ]
        return {told.id for told in found if told.id is not None and told.known.state in AS_WANTED[action]}

    def read(self, id: str, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:
        """From the server, by ranges; while it runs, what somebody follows is followed there, too."""
        job = self._jobs.get(id)
        if job is None or job.reaped:
            raise InvalidStateError(f"{id}: it was removed (reaped), or belongs to another session")
        if template.discards(job.template, stream):
            words = f"{stream} was discarded (/dev/null); leave the path unset to keep it"
            raise UnsupportedOperationError(f"{id}: {words}")
        if job.ended or job.finishing:
            self._followers.drop(id)
            return self._api.output(id, stream, offset, limit)
        return self._followers.read(id, stream, offset, limit)

    def reap(self, ids: Sequence[str]) -> None:
        """Remove them from the server, with what it keeps of them."""
        for some in chunks(ids, self._info.limits.ids):
            failed = self._api.reap(some)
            known = {told.id for told in self._api.find(ids=list(failed.failures)).jobs} if failed.failures else set()
            for id in some:
                if id not in known:
                    self._forget(id)
            for id, error in failed.failures.items():
                if id in known:
                    raise error

    def _forget(self, id: str) -> None:
        self._followers.drop(id)
        with self._lock:
            if (job := self._jobs.pop(id, None)) is not None:
                job.reaped = True

    def ask(self, ids: Sequence[str]) -> Answer:
        """Only what is gone: everything else is told."""
        return Answer(gone=[id for id in ids if id not in self._jobs])

    # -- finding again --

    def remembered(self) -> Sequence[Known]:
        """All that the server has of this session, whichever program started it."""
        listed = [told for told in self._api.jobs() if told.id and told.key and told.id not in self._jobs]
        found: list[Known] = []
        for some in chunks([told.id for told in listed if told.id], self._info.limits.ids):
            for told in self._api.find(ids=some, templates=True).jobs:
                try:
                    found.append(_remembered(told))
                except WflError as error:  # others are remembered
                    log.warning("remote: %s is left out: %s", told.id, error)
        return found

    def find(self, known: Sequence[Known]) -> Answer:
        """By their keys; what may still be on its way is neither found nor gone."""
        self._listener.start()
        by_key = {task.key: task for task in known}
        infos: list[JobInfo] = []
        gone: list[str] = []
        for some in chunks(list(by_key), self._info.limits.ids):
            with self._lock:
                connections = self._listener.connections
            found = self._api.find(keys=some)
            infos += [self._found(by_key[told.key], told) for told in found.jobs if told.key in by_key]
            gone += [key for key in found.gone.keys if self._is_gone(key)]
            self._look_if_missed(connections, [told.id for told in found.jobs if told.id])
        return Answer(infos=infos, gone=gone)

    def _is_gone(self, key: str) -> bool:
        """Whether it can be said that it never was: a request that nobody waits for any more may still arrive."""
        with self._lock:
            asked = self._doubtful.get(key, self._doubtful.get(key.rpartition(".")[0]))
            if asked is not None and time.monotonic() - asked < 2 * self._place.timeout:
                return False
            self._doubtful.pop(key, None)
            return True

    def _found(self, task: Known, told: Told) -> JobInfo:
        """The fact for who asked by key; it is told of from now on."""
        info = told.known
        job = self._known_job(task, told)
        id = JobInfo(id=info.id, extensions={"key": task.key})
        if task.info is not None and task.info.state.ended:
            job.ended = True
            return id
        if info.state.ended and not job.ended and not self._over(job, info):  # it is told when all is here
            return id
        return info.replace(extensions={**info.extensions, "key": task.key})

    def _known_job(self, task: Known, told: Told) -> _Job:
        with self._lock:
            job = self._jobs.get(told.id or "")
            if job is None:
                doubtful = task.key in self._doubtful or task.key.rpartition(".")[0] in self._doubtful
                job = _Job(told.id or "", task.key, task.template, told.index, own=doubtful)
                self._jobs[job.id] = job
            self._doubtful.pop(task.key, None)
            return job

    def _look_if_missed(self, connections: int, ids: Sequence[str]) -> None:
        """What was not known here when the connection was made was not asked for then."""
        if ids and self._listener.listening.is_set() and self._listener.connections != connections:
            self._look_soon(ids)

    # -- the end --

    def close(self, *, end: bool) -> None:
        """End what still runs, and remove it and, without a store, all that has ended."""
        left = self._guard.close()
        self._client.hang_up()
        self._followers.close()
        if end:
            left += self._end_all()
        self._guard.leave(left, self._end_all if end else lambda: 0)
        self._client.close()
        self._listener.join()
        self._pool.stop()
        self._clock.stop()
        if self._directory is not None:
            self._journal.close()
            if self._detach or not (left or self._unsettled):  # else the helper reads what is in it, and removes it
                shutil.rmtree(self._directory, ignore_errors=True)

    def _end_all(self) -> int:
        """End what this program has submitted; how many could not be."""
        with self._lock:
            own = {job.id: job for job in self._jobs.values() if job.own and not job.reaped}
        alive = {id: job for id, job in own.items() if not job.ended}
        if not alive and (self._keep or not own):
            return 0
        server = reached(**self._where())
        try:
            over, left = end_now(server, list(alive), [job.key for job in alive.values()]) if alive else ({}, 0)
            for id, info in over.items():
                self._save(alive[id], info)
            if not self._keep:
                server.remove([id for id in own if id in over or id not in alive])
            return left
        except WflError as error:
            log.debug("remote: ending the jobs of this program: %s", error)
            return len(alive)
        finally:
            server.close()

    def _save(self, job: _Job, info: JobInfo) -> None:
        """What it wrote until now is kept where it is wanted in files."""
        job.ended = True  # as closing says, whatever may be told of it now
        wanted = template.written(job.template, job.index)
        if wanted and _ran(info):
            client = Client(self._place, self._credentials, patience=AGAIN)
            try:
                files.write_output(Api(client, self._session), job.id, wanted, self._place_here())
            except WflError as error:
                log.warning("remote: the output of %s is not here: %s", job.id, error)
            finally:
                client.close()

    def abandon(self) -> None:
        """In a forked child: the helper must see the end of the program that owns it. No connection is touched."""
        self._guard.abandon()


def _outcomes(f: Callable[[], list[str | WflError]], count: int) -> list[str | WflError]:
    """The outcomes of a request; that it was refused, or not answered, is the outcome of all that it had."""
    try:
        return f()
    except WflError as error:
        certain = error.certain if isinstance(error, UnansweredError) else not isinstance(error, DrmCommunicationError)
        return [error if certain else UnsettledError(str(error))] * count


def fields_of(told: Iterable[str], *, output: bool) -> frozenset[str]:
    """Template fields that are honoured: those that the server says, in either spelling, and paths of this side."""
    names = dict(zip(JobTemplate.__struct_encode_fields__, JobTemplate.__struct_fields__, strict=True))
    found = {names.get(name, name) for name in told} & set(JobTemplate.__struct_fields__)
    return frozenset(found | {"output_path", "error_path"} if output else found - {"output_path", "error_path"})


def _remembered(told: Told) -> Known:
    """A job as the server tells it to a program that did not start it; paths of this side are not known."""
    key = told.key or ""
    given = JobTemplate.from_json(bytes(told.template)).replace(**dict.fromkeys(checks.HERE))
    job_id = key if told.index is None else key.removesuffix(f".{told.index}")
    return Known(key=key, id=told.id, template=given, info=JobInfo(id=told.id or ""), job_id=job_id, index=told.index)


def _ran(info: JobInfo) -> bool:
    """Whether there may be output."""
    return info.dispatch_time is not None or info.exit_status is not None


def _troubled(info: JobInfo, trouble: str | None) -> JobInfo:
    """An end, where what had to follow it may have gone wrong."""
    return info if trouble is None else info.replace(state=JobState.FAILED, annotation=trouble)

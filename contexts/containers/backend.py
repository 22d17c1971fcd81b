"""Containers as an execution system: each job is a container that bears its key; one stream of events tells of all.

What the events leave out (their ring is short, the daemon may have been away) a list of all containers of the session
makes good, after each connection. An end is completed by an inspection, in a few threads, and told once.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfl.backend import Action, Answer, Backend, Known, Limits, Report, Stream, Submission, ended
from wfl.contexts.containers import facts, staging, template
from wfl.contexts.containers.client import Client, NotThereError
from wfl.contexts.containers.dialect import Dialect
from wfl.contexts.containers.spool import Spool
from wfl.contexts.containers.undertaker import Undertaker
from wfl.drmaa2 import Capability, JobInfo, JobState, JobTemplate
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidSessionError,
    InvalidStateError,
    UnsupportedOperationError,
    WflError,
)
from wfl.log import log
from wfl.threads import Pool, in_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REQUESTS = 8
"""Requests at once: the daemon starts no more containers a second with more, they only wait longer."""
PATIENCE = 10.0
"""Seconds that closing waits for what is under way."""
RECONNECT = (0.1, 2.0)
"""First and longest pause in seconds before a lost connection for events is tried again."""
NOT_RUN = (1, 126, 127)
"""Exit codes of the container's init when there is no such command (1: Podman's)."""
KINDS = ("start", "die", "died", "pause", "unpause", "destroy", "remove")
"""Events that say something new; Podman's names are among them."""


class _Job:
    """What is known here of one container."""

    __slots__ = ("code", "ended", "key", "prepared", "reaped", "spool", "template")

    def __init__(self, key: str, template: JobTemplate) -> None:
        self.key, self.template = key, template
        self.prepared = self.ended = self.reaped = False
        self.code: int | None = None  # as the event of its end said, should it be gone when it is looked at
        self.spool: Spool | None = None


class ContainerBackend(Backend):
    """One session's containers."""

    capabilities = frozenset(
        {
            Capability.SUSPEND,
            Capability.TERMINATE,
            Capability.OUTPUT,
            Capability.STREAM,
            Capability.JT_STAGING,
            Capability.REATTACH,
            Capability.DETACH,
        }
    )
    fields = template.FIELDS
    extensions = template.EXTENSIONS
    limits = Limits(requests=REQUESTS, submissions=1)

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        session: str,
        *,
        image: str | None,
        pull: str,
        detach: bool,
        dialect: Dialect,
    ) -> None:
        self.name, self._dialect = name, dialect
        self._settings, self._session, self._image, self._pull = dict(settings), session, image, pull
        self._detach = detach
        self._program = os.urandom(8).hex()
        self._jobs: dict[str, _Job] = {}
        self._finishing: set[str] = set()
        self._lock = threading.Lock()
        self._pulled: dict[str, threading.Lock] = {}
        self._events: Any = None
        self._listening = threading.Event()
        self._listener: threading.Thread | None = None
        self._undertaker: Undertaker | None = None
        self._closed = threading.Event()
        self._pool = Pool(f"wfl-{name}", REQUESTS)
        self._place: Path | None = None

    def open(self, report: Report, directory: Path | None) -> None:
        """Ask the daemon who it is: what cannot be reached is said at once."""
        self._report = report
        self._keep = directory is not None
        self._client = Client(self._settings)
        try:
            version = self._client.version()
        except DrmCommunicationError as error:
            self._client.close()
            raise DrmCommunicationError(f"{error}. {self._dialect.cure}") from error
        self._machine = str(version.get("Name") or socket.gethostname())

    # -- submitting --

    def check(self, template_: JobTemplate) -> None:
        """Refuse by field what no container can be made of."""
        super().check(template_)
        self._dialect.check(template_, self.name)
        template.check(template_, self._image)

    def submit(self, submissions: Sequence[Submission]) -> Sequence[str | WflError]:
        """Create, fill and start one container (limits.submissions is 1)."""
        outcomes: list[str | WflError] = []
        for submission in submissions:
            try:
                self.check(submission.template)
                self._run(submission)
                outcomes.append(submission.key)
            except DrmCommunicationError:
                raise
            except WflError as error:
                with self._lock:
                    self._jobs.pop(submission.key, None)
                outcomes.append(error)
        return outcomes

    def _run(self, submission: Submission) -> None:
        self._listen()
        self._watch_over()
        job = _Job(submission.key, submission.template)
        with self._lock:
            self._jobs[job.key] = job
        self._create(submission)
        self._fill_and_start(job)

    def _create(self, submission: Submission) -> None:
        given = submission.template
        body = self._dialect.adapt(
            template.body(
                given,
                image=self._image,
                key=submission.key,
                session=self._session,
                program=self._program,
                job_id=submission.job_id,
                index=submission.index,
                detach=self._detach,
            )
        )
        query = template.query(given, submission.key)
        image, policy = body["Image"], template.pull_policy(given, self._pull)
        if policy == "always":
            self._fetch(image, query.get("platform"), once=True)
        try:
            self._client.create(body, query)
        except NotThereError as error:
            if policy == "never":
                raise DeniedByDrmsError(f"{error} (pull is 'never')") from error
            self._fetch(image, query.get("platform"), once=False)
            self._client.create(body, query)

    def _fetch(self, image: str, platform: str | None, *, once: bool) -> None:
        """Pull an image, once however many jobs want it at the same time."""
        with self._lock:
            known = image in self._pulled
            lock = self._pulled.setdefault(image, threading.Lock())
        with lock:
            if not (once and known) and (once or not self._client.has_image(image)):
                self._client.pull(image, platform)

    def _fill_and_start(self, job: _Job) -> None:
        name = _name(job.key)
        try:
            if copies := template.copies_in(job.template):
                self._client.put(name, staging.pack(copies))
            feed = self._client.attach_input(name) if job.template.input_path else None
            job.prepared = True
            self._client.start(name)
        except DrmCommunicationError:
            raise
        except (WflError, OSError) as error:
            self._client.remove(name)
            if isinstance(error, WflError):
                raise DeniedByDrmsError(str(error)) from error
            raise DeniedByDrmsError(f"its files cannot be copied in: {error}") from error
        if feed is not None:
            threading.Thread(target=_feed, args=(feed, job.template.input_path), name="wfl-input", daemon=True).start()

    def _watch_over(self) -> None:
        """See to it that a dead program leaves no container behind."""
        if self._detach:
            return
        with self._lock:
            if self._closed.is_set():
                raise InvalidSessionError("the session is closed")
            if self._undertaker is not None and self._undertaker.alive:
                return
            label = f"wfl.program={self._program}"
            self._undertaker = Undertaker.start(self._settings, label, keep=self._keep, lost=self._unwatched)

    def _unwatched(self) -> None:
        """The helper is gone: start another."""
        if not self._closed.is_set():
            log.error("%s: the helper that ends containers after this program is gone; starting another", self.name)
            self._closed.wait(1.0)  # one that cannot live does not keep the machine busy
            try:
                self._watch_over()
            except WflError as error:
                log.error("%s: %s; if this program is killed now, its containers go on", self.name, error)

    # -- what the daemon tells --

    def _listen(self) -> None:
        with self._lock:
            if self._listener is None:
                self._listener = threading.Thread(target=self._follow, name=f"wfl-{self.name}-events", daemon=True)
                self._listener.start()
        if not self._listening.wait(PATIENCE):
            raise DrmCommunicationError(f"{self._client.url}: the daemon does not tell of events")

    def _follow(self) -> None:
        """Read events for as long as the session is open; after each connection, look at all containers."""
        pause = RECONNECT[0]
        while not self._closed.is_set():
            try:
                self._events = self._client.events({"wfl.session": self._session}, KINDS)
                self._listening.set()
                self._reconcile()
                pause = RECONNECT[0]
                for event in self._events:
                    self._heard(event)
            except Exception as error:  # noqa: BLE001 - whatever it was, the next connection may do better
                if not self._closed.is_set():
                    log.warning("%s: the connection for events was lost, connecting again: %s", self.name, error)
            self._closed.wait(pause)
            pause = min(2 * pause, RECONNECT[1])

    def _heard(self, event: Mapping[str, Any]) -> None:
        attributes = event["Actor"]["Attributes"]
        job = self._jobs.get(attributes.get("wfl.key", ""))
        if job is None or job.ended:
            return
        what = event["Action"]
        if what in ("die", "died"):
            code = attributes.get("exitCode", attributes.get("containerExitCode"))
            job.code = int(code) if code is not None else None
            self._finish_soon(job)
        elif what in ("destroy", "remove"):
            self._finish_soon(job)
        else:
            state = JobState.SUSPENDED if what == "pause" else JobState.RUNNING
            more: dict[str, Any] = {}
            if what == "start":
                more = {"dispatch_time": _event_time(event), "allocated_machines": (self._machine,), "slots": 1}
            self._report([JobInfo(id=job.key, state=state, **more)])

    def _reconcile(self) -> None:
        """Compare what is known here with what is there."""
        with self._lock:
            waiting = [job for job in self._jobs.values() if job.prepared and not job.ended]
        if not waiting:
            return
        there = self._all()
        for job in waiting:
            found = there.get(job.key)
            if found is None or found["State"].lower() in facts.OVER:
                self._finish_soon(job)
            elif found["State"].lower() != "created":
                self._report([self._inspected(job)])

    def _all(self) -> dict[str, dict[str, Any]]:
        """All containers of the session by key."""
        found = self._client.list({"wfl.session": self._session})
        return {key: one for one in found if (key := one["Labels"].get("wfl.key"))}

    def _inspected(self, job: _Job) -> JobInfo:
        return facts.living(job.key, self._client.inspect(_name(job.key)), self._machine)

    # -- ends --

    def _finish_soon(self, job: _Job) -> None:
        with self._lock:
            if job.ended or job.key in self._finishing:
                return
            self._finishing.add(job.key)
        self._pool.submit(lambda: self._finish(job))

    def _finish(self, job: _Job) -> None:
        """Complete an end: what the daemon recorded, and the files that are to be brought back."""
        info: JobInfo | None = None
        try:
            inspected = self._client.inspect(_name(job.key))
            if inspected["State"]["Status"].lower() in facts.OVER:
                code = inspected["State"]["ExitCode"]
                trouble = self._bring_back(job) if code == 0 else self._write_output(job)
                if code in NOT_RUN and (words := self._never_ran(job)):
                    info = ended(job.key, sub_state="launch_failure", annotation=words)
                else:
                    info = facts.over(job.key, inspected, self._machine, trouble)
            else:  # started again by somebody, or not yet over for this daemon
                self._report([facts.living(job.key, inspected, self._machine)])
                if job.code is not None:
                    self._closed.wait(0.02)
        except NotThereError:
            if not job.reaped:
                info = facts.removed(job.key, job.code, self._machine, datetime.now(UTC))
        except DrmCommunicationError as error:  # the next connection brings it up again
            log.warning("%s: %s has ended, how is not known yet: %s", self.name, job.key, error)
        finally:
            with self._lock:
                self._finishing.discard(job.key)
                job.ended = info is not None
        if info is not None:
            self._report([info])
        elif job.code is not None and self._listening.is_set() and not self._closed.is_set():
            self._finish_again(job)

    def _finish_again(self, job: _Job) -> None:
        timer = threading.Timer(0.2, lambda: self._finish_soon(job))
        timer.daemon = True
        timer.start()

    def _never_ran(self, job: _Job) -> str | None:
        """What the first process said of a command that it could not run; None where the command itself ended so."""
        words = self._spooled(job).read("stderr", 0, 1000).decode(errors="replace")
        return words.strip() if re.match(r"\[FATAL tini \(\d+\)\] exec |ERROR \(catatonit", words) else None

    def _write_output(self, job: _Job) -> str | None:
        """Write output_path and error_path; what went wrong, in words."""
        wanted = _output_files(job.template)
        if not wanted:
            return None
        try:
            spool = self._spooled(job)
            for stream, path in wanted.items():
                spool.copy_to(stream, path)
        except (WflError, OSError) as error:
            return f"its output cannot be written: {error}"
        return None

    def _bring_back(self, job: _Job) -> str | None:
        """Output and stage_out_files; what went wrong, in words."""
        trouble = self._write_output(job)
        for target, source in (job.template.stage_out_files or {}).items():
            try:
                staging.unpack(self._client.get(_name(job.key), source), source, os.path.abspath(target))
            except WflError as error:
                trouble = trouble or str(error)
        return trouble

    # -- control and output --

    def control(self, ids: Sequence[str], action: Action) -> dict[str, WflError]:
        """One request for each, a few at once."""
        if action in (Action.HOLD, Action.RELEASE):
            return {id: UnsupportedOperationError("a container that was started cannot be held") for id in ids}
        failures: dict[str, WflError] = {}

        def one(id: str) -> None:
            try:
                self._control_one(id, action)
            except InvalidStateError as error:
                failures[id] = InvalidStateError(f"{id}: cannot {action.value}: {error}")

        in_threads(one, list(ids), REQUESTS, f"wfl-{self.name}-control")
        return failures

    def _control_one(self, id: str, action: Action) -> None:
        name = _name(id)
        if action is Action.SUSPEND:
            self._client.pause(name)
            self._report([JobInfo(id=id, state=JobState.SUSPENDED)])
        elif action is Action.RESUME:
            self._client.unpause(name)
            self._report([JobInfo(id=id, state=JobState.RUNNING)])
        elif action is Action.KILL:
            self._client.kill(name)
        else:
            self._client.kill(name, "SIGTERM")
            with suppress(InvalidStateError):  # it takes the signal only when it goes on
                self._client.unpause(name)

    def read(self, id: str, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:
        """From the daemon's log, through a file of our own beside the session."""
        job = self._jobs.get(id)
        if job is None or job.reaped:
            raise InvalidStateError(f"{id}: its container was removed (reaped), or belongs to another session")
        path = job.template.output_path if stream == "stdout" else job.template.error_path
        if path == os.devnull:
            raise UnsupportedOperationError(
                f"{id}: {stream} was discarded (/dev/null); leave the path unset to keep it"
            )
        spool = self._spooled(job)
        data = spool.read(stream, offset, limit)
        return data, len(data) < limit

    def _spooled(self, job: _Job) -> Spool:
        """The spool of a job: filled to its end where the container has ended, else being filled while it runs."""
        with self._lock:
            if job.spool is None:
                job.spool = Spool(self._directory(), job.key, merged=_joined(job.template))
                threading.Thread(target=self._fill, args=(job, job.spool), name="wfl-output", daemon=True).start()
            spool = job.spool
        if job.ended or job.key in self._finishing:
            spool.complete.wait()
        if spool.complete.is_set() and spool.error is not None:
            with self._lock:
                job.spool = None
            spool.remove()
            if isinstance(spool.error, NotThereError):
                raise InvalidStateError(f"{job.key}: its output is gone: its container was removed by somebody")
            raise spool.error
        return spool

    def _fill(self, job: _Job, spool: Spool) -> None:
        """Twice, as a followed log may end early: what was written before is not written again."""
        name = _name(job.key)
        followed = () if job.ended else self._client.logs(name, follow=True)
        spool.fill(followed, self._client.logs(name, follow=False))

    def _directory(self) -> Path:
        if self._place is None:
            self._place = Path(tempfile.mkdtemp(prefix="wfl-"))
        return self._place

    def reap(self, ids: Sequence[str]) -> None:
        """Remove containers, their anonymous volumes and what was read of their output."""

        def one(id: str) -> None:
            job = self._jobs.get(id)
            if job is not None:
                job.reaped = True
            self._client.remove(_name(id))
            if job is not None and job.spool is not None:
                job.spool.remove()
            with self._lock:
                self._jobs.pop(id, None)

        in_threads(one, list(ids), REQUESTS, f"wfl-{self.name}-reap")

    def ids(self) -> Sequence[str]:
        """By label, also those of earlier programs."""
        return list(self._all())

    def ask(self, ids: Sequence[str]) -> Answer:
        """Only what is gone: everything else is told."""
        return Answer(gone=[id for id in ids if id not in self._jobs])

    # -- finding again --

    def find(self, known: Sequence[Known]) -> Answer:
        """By label; a container that was created and never filled is removed, as if it had never been."""
        self._listen()
        there = self._all()
        infos: list[JobInfo] = []
        gone: list[str] = []
        for task in known:
            found = there.get(task.key)
            job = self._jobs.get(task.key)
            if found is None:
                if job is not None and not job.ended:
                    with self._lock:
                        self._jobs.pop(task.key, None)
                gone.append(task.key)
                continue
            if job is None:
                with self._lock:
                    job = self._jobs.setdefault(task.key, _Job(task.key, task.template))
            if found["State"].lower() in ("created", "configured", "initialized") and not self._go_on(job):
                gone.append(task.key)
                continue
            job.prepared = True
            infos.append(self._look(job, found, task))
        return Answer(infos=infos, gone=gone)

    def _go_on(self, job: _Job) -> bool:
        """One that was created: start it if all was ready for that, else remove it; whether it was started."""
        if job.prepared:
            self._client.start(_name(job.key))
            return True
        self._client.remove(_name(job.key))
        with self._lock:
            self._jobs.pop(job.key, None)
        return False

    def _look(self, job: _Job, found: Mapping[str, Any], task: Known) -> JobInfo:
        if task.info is not None and task.info.state.ended:
            job.ended = True
            return JobInfo(id=job.key)
        if found["State"].lower() in facts.OVER:
            self._finish_soon(job)
            return JobInfo(id=job.key)
        return self._inspected(job)

    # -- the end --

    def close(self, *, end: bool) -> None:
        """End what still runs, and remove it and, without a store, all that has ended."""
        self._closed.set()
        with self._lock:
            jobs = list(self._jobs.values())
        if end and jobs:
            doomed = [job for job in jobs if not (self._keep and job.ended)]
            in_threads(lambda job: self._client.remove(_name(job.key)), doomed, REQUESTS, f"wfl-{self.name}-close")
        if self._undertaker is not None:
            self._undertaker.goodbye()
        if self._events is not None:
            with suppress(Exception):
                self._events.close()
        if self._listener is not None:
            self._listener.join(PATIENCE)
        self._pool.stop()
        self._client.close()
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)

    def abandon(self) -> None:
        """In a forked child: the helper must see the end of the program that owns it."""
        if self._undertaker is not None:
            self._undertaker.abandon()


def _name(key: str) -> str:
    return f"wfl-{key}"


def _joined(given: JobTemplate) -> bool:
    same = (
        given.output_path
        and given.error_path
        and os.path.abspath(given.output_path) == os.path.abspath(given.error_path)
    )
    return bool(given.join_files or same)


def _output_files(given: JobTemplate) -> dict[Stream, str]:
    """Where output goes on this side of it, besides the daemon's log."""
    paths: dict[Stream, str | None] = {"stdout": given.output_path, "stderr": given.error_path}
    if _joined(given):
        del paths["stderr"]
    return {stream: os.path.abspath(path) for stream, path in paths.items() if path and path != os.devnull}


def _event_time(event: Mapping[str, Any]) -> datetime:
    nanoseconds = event.get("timeNano")
    return datetime.fromtimestamp(nanoseconds / 1e9 if nanoseconds else event.get("time", time.time()), UTC)


def _feed(sock: socket.socket, path: str | None) -> None:
    """Write a file to a container's standard input, which may take it slowly or not at all."""
    try:
        with sock, open(path or os.devnull, "rb") as file:
            sock.settimeout(None)
            while data := file.read(1 << 18):
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)
    except OSError:
        return

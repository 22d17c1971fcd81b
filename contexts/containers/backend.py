"""Containers as an execution system: each job is a container that bears its key; one stream of events tells of all.

What the events leave out (their ring is short, the daemon may have been away) a list of all containers of the session
makes good, after each connection. An end is completed by an inspection, in a few threads, and told once.
"""

from __future__ import annotations

import logging
import math
import os
import posixpath
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from wfl import staging
from wfl.backend import Action, Answer, Backend, Known, Limits, Report, Stream, Submission, ended
from wfl.contexts import checks
from wfl.contexts.containers import facts, template
from wfl.contexts.containers.client import REQUESTS, Client, NotThereError, UnsentError
from wfl.contexts.containers.dialect import Dialect
from wfl.contexts.containers.ending import watch
from wfl.contexts.containers.spool import Demultiplexer, Spool
from wfl.contexts.guard import Guard
from wfl.drmaa2 import Capability, JobInfo, JobState, JobTemplate, fact
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidStateError,
    UnsupportedOperationError,
    WflError,
)
from wfl.threads import Pool, in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from wfl.contexts.containers.connection import Input
    from wfl.contexts.undertaker import Undertaker


log = logging.getLogger("wfl")

PATIENCE = 10.0
"""Seconds that closing waits for what is under way."""
RECONNECT = (0.1, 2.0)
"""First and longest pause in seconds before a lost connection for events is tried again."""
FAILED_PULL = 1.0
"""Seconds in which an image that could not be fetched is not asked for again: an array would ask for each element."""
_FIRST_WORDS = 1000
"""Bytes of the error output in which the init has said what it could not do."""
TRIES = 5
"""Times that output and files of an ended job are asked for before it ends without them."""
AGAIN = 0.2
"""Seconds after which an end that could not be completed is looked at again."""
LOOK = 300.0
"""Seconds between two looks at all containers where events never cease: one of them may have been lost."""
LOOKS = (0.25, 2.0)
"""Shortest and longest pause in seconds between two looks at a log that cannot be followed."""
KINDS = ("start", "kill", "die", "died", "pause", "unpause", "destroy", "remove")
"""Events that say something new; Podman's names are among them."""
_UNSTARTED = ("created", "configured", "initialized")


class _Job:
    """What is known here of one container."""

    __slots__ = (
        "asked",
        "code",
        "ended",
        "feed",
        "key",
        "killed",
        "own",
        "prepared",
        "reaped",
        "spool",
        "template",
        "tries",
        "trouble",
        "unheard",
    )

    def __init__(self, key: str, template: JobTemplate, *, own: bool) -> None:
        self.key, self.template = key, template
        self.own = own  # made by this program, and ended with it
        self.killed = not own  # by a signal from outside, or nobody knows
        self.prepared = self.ended = self.reaped = False
        self.unheard = False  # it ended while nobody listened
        self.feed: Input | None = None
        self.trouble: str | None = None  # that its files made
        self.tries = 0  # to have its output and files after its end
        self.asked = time.monotonic()
        self.code: int | None = None  # as the event of its end said, should it be gone when it is looked at
        self.spool: Spool | None = None

    def hear_no_more(self) -> None:
        """It is over: what it did not read of its input, it will not."""
        if self.feed is not None:
            self.feed.close()


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
    limits = Limits(submissions=1)  # the client sees to how many requests there are at once

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
        self.fields = template.FIELDS - dialect.refused
        self.extensions = template.EXTENSIONS - dialect.refused
        self._settings, self._session, self._image, self._pull = dict(settings), session, image, pull
        self._detach = detach
        self._program = os.urandom(8).hex()
        self._jobs: dict[str, _Job] = {}
        self._finishing: set[str] = set()
        self._lock = threading.Lock()
        self._pulls: dict[tuple[str, str | None], _Pull] = {}
        self._listening = threading.Event()
        self._listener: threading.Thread | None = None
        self._closed = threading.Event()
        self._guard = Guard(name, "containers", self._closed, None if detach else self._start_helper)
        self._pool = Pool(f"wfl-{name}", REQUESTS)
        self._place: Path | None = None

    def open(self, report: Report, directory: Path | None) -> None:
        """Ask the daemon who it is: what cannot be reached is said at once."""
        self._report = report
        self._opened = time.monotonic()
        self._keep = directory is not None
        self._client = Client(self._settings)

    @cached_property
    def _told(self) -> Mapping[str, Any]:
        """What the daemon says of itself; asked for when it is needed, as Podman is slow to answer."""
        return self._client.info()

    @cached_property
    def _machine(self) -> str:
        """The daemon's; a socket in the file system leads to one on this machine."""
        here = sys.platform == "linux" and self._client.url.startswith("unix:")
        return socket.gethostname() if here else str(self._told.get("Name") or self._client.url)

    # -- submitting --

    def resolve(self, given: JobTemplate) -> JobTemplate:
        """With the paths of this side absolute, whatever directory is gone to before they are used."""
        return checks.from_here(given, template.is_local)

    def check(self, template_: JobTemplate) -> None:
        """Refuse by field what no container can be made of."""
        super().check(template_)
        self._dialect.check(template_, self.name, lambda: self._told)
        template.check(template_, self._image)

    def submit(self, submissions: Sequence[Submission]) -> Sequence[str | WflError]:
        """Create, fill and start one container (limits.submissions is 1)."""
        outcomes: list[str | WflError] = []
        for submission in submissions:
            try:
                self.check(submission.template)
                with self._guard.on_its_way():
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
        self._guard.watch()
        job = _Job(submission.key, submission.template, own=True)
        with self._lock:
            self._jobs[job.key] = job
        self._create(submission, job)
        self._fill_and_start(job)

    def _create(self, submission: Submission, job: _Job) -> None:
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
        image, policy = (body["Image"], query.get("platform")), template.pull_policy(given, self._pull)
        if policy == "always":
            self._fetch(image, since=self._opened)
        asked = time.monotonic()
        try:
            self._make(job, body, query)
        except NotThereError as error:
            if "image" not in str(error).lower():
                raise
            if policy == "never":
                raise DeniedByDrmsError(f"{error} (pull is 'never')") from error
            self._fetch(image, since=asked)
            try:
                self._make(job, body, query)
            except NotThereError as still:  # its registry has it for another platform only
                raise DeniedByDrmsError(str(still)) from still

    def _make(self, job: _Job, body: Mapping[str, Any], query: Mapping[str, str]) -> None:
        job.asked = time.monotonic()
        try:
            self._client.create(body, query)
        except WflError as error:
            if isinstance(error, UnsentError) or not isinstance(error, DrmCommunicationError):
                job.asked = -math.inf  # it is certain that there is none
            raise

    def _fetch(self, image: tuple[str, str | None], *, since: float) -> None:
        """Pull an image (of a platform) unless that was done since then: once, however many jobs want it."""
        with self._lock:
            pull = self._pulls.setdefault(image, _Pull())
        with pull.lock:
            if pull.error is not None and time.monotonic() - pull.failed < FAILED_PULL:
                raise pull.error
            if pull.done < since:
                try:
                    self._client.pull(*image)
                except DeniedByDrmsError as error:
                    pull.failed, pull.error = time.monotonic(), error
                    raise
                pull.done, pull.error = time.monotonic(), None

    def _fill_and_start(self, job: _Job) -> None:
        name = _name(job.key)
        try:
            self._copy_in(job)
            if job.template.input_path:  # before the start, so that it goes on should that have no answer
                self._feed(job, name, job.template.input_path)
            job.prepared = True
            self._client.start(name)
        except DrmCommunicationError:
            raise
        except (WflError, OSError) as error:
            job.reaped = True  # its end is told by who asked for it
            self._client.remove(name)
            if isinstance(error, WflError):
                raise DeniedByDrmsError(str(error)) from error
            raise DeniedByDrmsError(f"its files cannot be copied in: {error}") from error

    def _feed(self, job: _Job, name: str, path: str) -> None:
        """Write a file to a container's standard input, which may take it slowly or not at all."""
        file = open(path, "rb")  # noqa: SIM115 - closed in the thread
        try:
            standard_input = self._client.attach_input(name)
        except BaseException:
            file.close()
            raise

        def write() -> None:
            job.feed = standard_input
            with suppress(OSError), standard_input, file:  # it need not read all
                while data := self._read_input(job, file):
                    standard_input.sendall(data)
                standard_input.finish()

        threading.Thread(target=write, name="wfl-input", daemon=True).start()

    @staticmethod
    def _read_input(job: _Job, file: IO[bytes]) -> bytes:
        try:
            return file.read(1 << 18)
        except OSError as error:
            job.trouble = f"input_path {file.name} cannot be read: {error.strerror}"
            return b""

    def _copy_in(self, job: _Job) -> None:
        """Into each mount by itself: Podman would unpack a whole archive beneath them."""
        copies = template.copies_in(job.template, self._place_of(job))
        for place in (*sorted(template.mounted(job.template), key=len, reverse=True), "/"):
            here = {target: copies.pop(target) for target in list(copies) if template.above(target, [place])}
            if here:
                self._client.put(_name(job.key), staging.pack(here, place=place), place)

    def _place_of(self, job: _Job) -> str:
        """The directory that relative paths of staging start from: the job's, or its image's."""
        if not template.has_relative(job.template):
            return "/"
        return self._client.inspect(_name(job.key))["Config"].get("WorkingDir") or "/"

    def _start_helper(self, lost: Callable[[], None]) -> Undertaker:
        label = f"wfl.program={self._program}"
        return watch(self._settings, label, keep=self._keep, place=self._directory(), lost=lost)

    # -- what the daemon tells --

    def _listen(self) -> None:
        with self._lock:
            if self._listener is None:
                log.debug("%s: at %s", self.name, self._machine)  # so that it is known before anything is told
                self._listener = threading.Thread(target=self._follow, name=f"wfl-{self.name}-events", daemon=True)
                self._listener.start()
        if not self._listening.wait(PATIENCE):
            raise DrmCommunicationError(f"{self._client.url}: the daemon does not tell of events")

    def _follow(self) -> None:
        """Read events for as long as the session is open; after each connection, look at all containers."""
        pause, lost, looked = RECONNECT[0], False, 0.0
        while not self._closed.is_set():
            try:
                for event in self._client.events({"wfl.session": self._session}, KINDS):
                    if event is not None:
                        self._heard(event)
                        if time.monotonic() - looked > LOOK:
                            looked = time.monotonic()
                            self._pool.submit(self._reconcile)
                        continue
                    if lost:
                        log.warning("%s: the daemon is there again", self.name)
                    self._listening.set()
                    looked = time.monotonic()
                    self._reconcile()
                    pause, lost = RECONNECT[0], False
            except Exception as error:  # noqa: BLE001 - whatever it was, the next connection may do better
                if not lost and not self._closed.is_set():
                    log.warning("%s: the connection for events was lost, connecting again: %s", self.name, error)
                    lost = True
            self._listening.clear()
            self._closed.wait(pause)
            pause = min(2 * pause, RECONNECT[1])

    def _heard(self, event: Mapping[str, Any]) -> None:
        attributes = event["Actor"]["Attributes"]
        job = self._jobs.get(attributes.get("wfl.key", ""))
        if job is None or job.ended or attributes.get("name", _name(job.key)) != _name(job.key):
            return
        what = event["Action"]
        if what in ("die", "died"):
            code = attributes.get("exitCode", attributes.get("containerExitCode"))
            job.code = int(code) if code is not None else None
            self._finish_soon(job)
        elif what in ("destroy", "remove"):
            self._finish_soon(job)
        elif what == "kill":
            job.killed = True
        elif what == "start":
            job.code = None
            began: dict[str, Any] = {"dispatch_time": _event_time(event), "allocated_machines": (self._machine,)}
            self._report([fact(id=job.key, state=JobState.RUNNING, slots=1, **began)])
        else:  # it may be late, and no more so
            self._pool.submit(lambda: self._report_living(job))

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
                job.unheard = job.code is None
                self._finish_soon(job)
            elif found["State"].lower() not in _UNSTARTED:
                self._pool.submit(partial(self._report_living, job))

    def _all(self) -> dict[str, dict[str, Any]]:
        """All containers of the session by key, which is also in the name: labels go along with a container's image."""
        found = self._client.list({"wfl.session": self._session})
        keyed = ((one["Labels"].get("wfl.key"), one) for one in found)
        return {key: one for key, one in keyed if key and f"/{_name(key)}" in one["Names"]}

    def _report_living(self, job: _Job) -> None:
        """How it is now; if it is over, that is told by an event, or found at the next look."""
        with suppress(WflError):
            inspected = self._client.inspect(_name(job.key))
            if inspected["State"]["Status"].lower() not in facts.OVER:
                self._report([facts.living(job.key, inspected, self._machine)])

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
        again = False
        try:
            inspected = self._client.inspect(_name(job.key))
            if inspected["State"]["Status"].lower() in facts.OVER:
                info = self._over(job, inspected)
            else:  # started again by somebody, or not yet over for this daemon
                self._report([facts.living(job.key, inspected, self._machine)])
                again = job.code is not None
        except NotThereError:
            if not job.reaped:
                info = facts.removed(job.key, job.code, self._machine, datetime.now(UTC))
        except WflError as error:
            log.info("%s: %s has ended, how is not known yet: %s", self.name, job.key, error)
            again = True
        except Exception as error:
            log.exception("%s: %s has ended", self.name, job.key)
            info = ended(job.key, sub_state="lost", annotation=f"what is said of its end cannot be understood: {error}")
        finally:
            with self._lock:
                self._finishing.discard(job.key)
                job.ended = job.ended or info is not None
        if info is not None:
            self._report([info])
            job.hear_no_more()
        elif again and self._listening.is_set() and not self._closed.is_set():  # else the next connection brings it up
            timer = threading.Timer(AGAIN, lambda: self._finish_soon(job))
            timer.daemon = True
            timer.start()

    def _over(self, job: _Job, inspected: Mapping[str, Any]) -> JobInfo:
        code = inspected["State"]["ExitCode"]
        try:
            trouble = self._bring_back(job, inspected) if code == 0 else self._write_output(job)
        except DrmCommunicationError as error:
            job.tries += 1
            if job.tries < TRIES:
                raise
            trouble = f"its output and files cannot be had: {error}"
        trouble = job.trouble or trouble
        if code in self._dialect.not_run and (words := self._never_ran(job)):
            return ended(job.key, sub_state="launch_failure", annotation=words)
        guess = self._dialect.guesses_memory and not (job.killed or job.unheard)
        return facts.over(job.key, inspected, self._machine, trouble, guess_memory=guess, unheard=job.unheard)

    def _never_ran(self, job: _Job) -> str | None:
        """What the first process said of a command that it could not run; None where the command itself ended so."""
        demultiplexer, words = Demultiplexer(), b""
        with suppress(WflError), closing(self._client.logs(_name(job.key), follow=False, stdout=False)) as log:
            for piece in log:
                words += demultiplexer.feed(piece)[1]
                if len(words) >= _FIRST_WORDS:
                    break
        said = words[:_FIRST_WORDS].decode(errors="replace")
        if not re.match(r"\[FATAL tini \(\d+\)\] exec |ERROR \(catatonit", said):
            return None
        command = job.template.remote_command or ""
        return said.strip() if command in said else f"{command}: {said.strip()}"

    def _write_output(self, job: _Job) -> str | None:
        """Write output_path and error_path; what went wrong, in words."""
        wanted = _output_files(job.template)
        if not wanted:
            return None
        try:
            spool = self._spooled(job)
            for stream, path in wanted.items():
                spool.copy_to(stream, path)
        except DrmCommunicationError:
            raise
        except (WflError, OSError) as error:
            return f"its output cannot be written: {error}"
        return None

    def _bring_back(self, job: _Job, inspected: Mapping[str, Any]) -> str | None:
        """Output and stage_out_files; what went wrong, in words."""
        trouble = self._write_output(job)
        place = job.template.working_directory or inspected["Config"].get("WorkingDir") or "/"
        for target, given in (job.template.stage_out_files or {}).items():
            source = posixpath.join(place, given)
            try:
                with closing(self._client.get(_name(job.key), source)) as archive:
                    staging.unpack(archive, source, target)
            except DrmCommunicationError:
                raise
            except WflError as error:
                words = str(error)
                what = "" if source in words and target in words else f"{source} cannot be copied to {target}: "
                trouble = trouble or f"{what}{words}"
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
            except WflError as error:
                failures[id] = type(error)(f"{id}: cannot {action.value}: {error}")

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
            self._client.kill(name, self._client.inspect(name)["Config"].get("StopSignal") or "SIGTERM")
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
            come = -1
            while not spool.complete.wait(self._settings["timeout"]):
                if come == spool.come:
                    self._drop(job, spool)
                    raise DrmCommunicationError(f"{self._client.url}: the output of {job.key} has stopped coming")
                come = spool.come
        if spool.complete.is_set() and spool.error is not None:
            self._drop(job, spool)
            if isinstance(spool.error, NotThereError):
                raise InvalidStateError(f"{job.key}: its output is gone: its container was removed by somebody")
            raise spool.error
        return spool

    def _drop(self, job: _Job, spool: Spool) -> None:
        """What is asked for next is read anew, from the beginning."""
        with self._lock:
            if job.spool is spool:  # else somebody did so, and the next one has files of the same names
                job.spool = None
                spool.remove()

    def _fill(self, job: _Job, spool: Spool) -> None:
        """Twice, as a followed log may end early: what was written before is not written again."""
        if self._dialect.loses_lines:
            spool.fill(more=self._looks(job))
            return
        ways = (False,) if job.ended or job.key in self._finishing else (True, False)
        plain, stamped = (
            [self._client.logs(_name(job.key), follow=follow, stamped=stamped) for follow in ways]
            for stamped in (False, True)
        )
        spool.fill(*plain, stamped=stamped if self._dialect.loses_breaks else ())

    def _looks(self, job: _Job) -> Iterator[Iterable[bytes]]:
        """The whole log again and again, for as long as the job runs, and once more; the longer it takes the rarer."""
        while not (job.ended or job.key in self._finishing or self._closed.is_set()):
            began = time.monotonic()
            yield self._client.logs(_name(job.key), follow=False)
            self._closed.wait(min(max(LOOKS[0], 4 * (time.monotonic() - began)), LOOKS[1]))
        yield self._client.logs(_name(job.key), follow=False)

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

    def ask(self, ids: Sequence[str]) -> Answer:
        """Only what is gone: everything else is told."""
        return Answer(gone=[id for id in ids if id not in self._jobs])

    # -- finding again --

    def remembered(self) -> Sequence[Known]:
        """By label, what programs of this session have started detached; the rest is nobody else's concern."""
        found: list[tuple[tuple[int, list[int]], Known]] = []
        for key, one in self._all().items():
            if one["Labels"].get("wfl.detach") == "true" and not _unstarted(one):
                try:
                    found.append((_order(key, one), facts.remembered(key, one)))
                except Exception as error:  # noqa: BLE001 - anybody may write labels; the others are remembered
                    log.warning("%s: container %s is left out: its labels: %r", self.name, _name(key), error)
        return [known for _, known in sorted(found, key=lambda each: each[0])]

    def find(self, known: Sequence[Known]) -> Answer:
        """By label; a container that its program made and never filled is removed, as if it had never been."""
        self._listen()
        there = self._all()
        infos: list[JobInfo] = []
        gone: list[str] = []
        for task in known:
            found, job = there.get(task.key), self._jobs.get(task.key)
            if found is None:
                if job is None or not self._is_coming(job):
                    self._forget(task.key)
                    gone.append(task.key)
                continue
            if job is None:
                with self._lock:
                    job = self._jobs.setdefault(task.key, _Job(task.key, task.template, own=False))
            if not _unstarted(found):
                job.prepared = True
                infos.append(self._look(job, found, task))
            elif job.own:
                infos += self._go_on(job)
            else:
                self._forget(job.key)  # before the daemon tells of its removal
                with suppress(InvalidStateError):  # its program's last request has just started it: then the next look
                    self._client.discard(_name(job.key))
                    gone.append(task.key)
        return Answer(infos=infos, gone=gone)

    def _is_coming(self, job: _Job) -> bool:
        """Whether the daemon may still be making it, though nobody waits for its answer any more."""
        return job.own and not job.prepared and time.monotonic() - job.asked < 2 * self._settings["timeout"]

    def _forget(self, key: str) -> None:
        with self._lock:
            if (job := self._jobs.get(key)) is not None and not job.ended:
                del self._jobs[key]

    def _go_on(self, job: _Job) -> list[JobInfo]:
        """Fill and start what was made, as no answer came to one of these requests; nothing happens twice."""
        try:
            if job.prepared:
                self._client.start(_name(job.key))
            else:
                self._fill_and_start(job)
        except DrmCommunicationError:
            return []
        except WflError as error:
            self._forget(job.key)
            self._client.remove(_name(job.key))
            return [ended(job.key, sub_state="launch_failure", annotation=str(error))]
        return [JobInfo(id=job.key)]

    def _look(self, job: _Job, found: Mapping[str, Any], task: Known) -> JobInfo:
        if task.info is not None and task.info.state.ended:
            job.ended = True
            return JobInfo(id=job.key)
        inspected = found if found["State"].lower() in facts.OVER else self._client.inspect(_name(job.key))
        if inspected is found or inspected["State"]["Status"].lower() in facts.OVER:  # it ended since it was listed
            self._finish_soon(job)
            return JobInfo(id=job.key)
        return facts.living(job.key, inspected, self._machine)

    # -- the end --

    def close(self, *, end: bool) -> None:
        """End what still runs, and remove it and, without a store, all that has ended."""
        self._closed.set()
        self._client.hang_up()
        left = self._guard.close()
        if self._listener is not None:
            left += self._end_all(end=end)
        self._guard.leave(left, partial(self._end_all, end=end))
        self._client.close()
        if self._listener is not None:
            self._listener.join(PATIENCE)
        self._pool.stop()
        for job in list(self._jobs.values()):
            if job.spool is not None:
                job.spool.remove()
            job.hear_no_more()
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)

    def _end_all(self, *, end: bool) -> int:
        """Remove what this program made and must not leave; how many could not be."""
        try:
            found = self._client.list({"wfl.program": self._program})
        except WflError:
            return sum(job.own and not job.ended for job in self._jobs.values())
        doomed = [
            one for one in found if _unstarted(one) or (end and not (self._keep and one["State"].lower() in facts.OVER))
        ]
        failed: list[WflError] = []

        def remove(container: Mapping[str, Any]) -> None:
            try:
                if not failed:  # one that waited in vain is enough
                    self._end_one(container)
            except WflError as error:
                failed.append(error)

        in_threads(remove, doomed, REQUESTS, f"wfl-{self.name}-close")
        return len(doomed) if failed else 0

    def _end_one(self, container: Mapping[str, Any]) -> None:
        """What it wrote until now is kept where it is wanted: in its files, and for a program that comes back."""
        id, job = container["Id"], self._jobs.get(container["Labels"].get("wfl.key", ""))
        if job is not None and not job.ended and not _unstarted(container):
            job.ended = True  # as closing says, whatever the daemon may tell of it now
            if self._keep or _output_files(job.template):
                with suppress(InvalidStateError):
                    self._client.kill(id)
                with suppress(WflError):
                    self._write_output(job)
            if self._keep:
                return
        self._client.remove(id)

    def abandon(self) -> None:
        """In a forked child: the helper must see the end of the program that owns it."""
        self._guard.abandon()


class _Pull:
    """One image's fetching: when it was done last, or failed, and who does it now."""

    __slots__ = ("done", "error", "failed", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.done = self.failed = -math.inf
        self.error: DeniedByDrmsError | None = None


def _unstarted(found: Mapping[str, Any]) -> bool:
    return found["State"].lower() in _UNSTARTED


_name = template.container_name


def _order(key: str, found: Mapping[str, Any]) -> tuple[int, list[int]]:
    """That of submission: by the second, and in a program by the numbers at the key's end."""
    return found["Created"], [int(part) for part in key.rpartition("-")[2].split(".")]


def _joined(given: JobTemplate) -> bool:
    return bool(given.join_files or (given.output_path and given.output_path == given.error_path))


def _output_files(given: JobTemplate) -> dict[Stream, str]:
    """Where output goes on this side of it, besides the daemon's log."""
    paths: dict[Stream, str | None] = {"stdout": given.output_path, "stderr": given.error_path}
    if _joined(given):
        del paths["stderr"]
    return {stream: path for stream, path in paths.items() if path and path != os.devnull}


def _event_time(event: Mapping[str, Any]) -> datetime:
    nanoseconds = event.get("timeNano")
    return datetime.fromtimestamp(nanoseconds / 1e9 if nanoseconds else event.get("time", time.time()), UTC)

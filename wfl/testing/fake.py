"""FakeContext: workflows on a FakeSystem, and how their sessions speak with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from wfl.backend import Action, Answer, Backend, Monitor, Submission
from wfl.context import Context
from wfl.errors import InvalidArgumentError, WflError
from wfl.testing.clock import SessionClock
from wfl.testing.system import FakeSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from wfl.backend import Known, Report, Stream
    from wfl.drmaa2 import JobInfo, JobTemplate, MachineInfo, QueueInfo
    from wfl.testing.system import Behave, Job
    from wfl.threads import Clock

_T = TypeVar("_T")


class FakeContext(Context):
    """Run nothing; let jobs end as a test wants them to.

    system: a FakeSystem, or what one is made with: FakeContext({"make": 1}). Several contexts may share one. Besides
    that it takes the settings of every Context. Time-outs, pauses and limits of its sessions are in virtual time, too.
    """

    name = "fake"

    def __init__(self, system: FakeSystem | Behave | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if not isinstance(system, FakeSystem):
            system = FakeSystem() if system is None else FakeSystem(system)
        self.system = system

    def backend(self) -> Backend:
        """One more connection to the system."""
        return FakeBackend(self.system, self.session_name)

    def monitor(self) -> Monitor:
        """A look at the system."""
        return FakeMonitor(self.system)

    def clock(self) -> Clock:
        """The system's virtual time."""
        return SessionClock(self.system.time)


class FakeBackend(Backend):
    """One session's connection to a FakeSystem."""

    name = "fake"

    def __init__(self, system: FakeSystem, session_name: str = "wfl") -> None:
        self._system, self._session_name = system, session_name
        self._call = system.call
        self._own: list[Job] = []
        self.capabilities, self.fields, self.extensions = system.capabilities, system.fields, system.extensions
        self.limits, self.tells = system.limits, system.tells

    def check(self, template: JobTemplate) -> None:
        """Besides fields and extensions: there must be a command."""
        super().check(template)
        if not template.remote_command:
            raise InvalidArgumentError("remote_command is empty: name the program to run")

    def open(self, report: Report, directory: Path | None) -> None:  # noqa: ARG002 - the system outlives the program
        """From now on the session is told, and time goes on."""
        self._report = report
        self._call("open", lambda: self._system.listen(report))

    def submit(self, submissions: Sequence[Submission]) -> Sequence[str | WflError]:
        """Ids are short numbers."""
        return self._call("submit", lambda: [self._accept(one, self._system.new_id()) for one in submissions])

    def submit_array(
        self,
        submission: Submission,
        indexes: range,
        max_parallel: int | None,  # noqa: ARG002 - without Capability.MAX_PARALLEL the session sees to it
    ) -> Sequence[str | WflError]:
        """Ids are the array's number, a point and the index."""
        id, key, template, job_id = (self._system.new_id(), submission.key, submission.template, submission.job_id)
        elements = [Submission(f"{key}.{index}", template, job_id, index) for index in indexes]
        return self._call("submit", lambda: [self._accept(one, f"{id}.{one.index}") for one in elements])

    def _accept(self, submission: Submission, id: str) -> str | WflError:
        try:
            self.check(submission.template)
            self._own.append(self._system.accept(submission, id, self._session_name))
        except WflError as error:
            return error
        return id

    def control(self, ids: Sequence[str], action: Action) -> dict[str, WflError]:
        """At once."""
        return self._call("control", lambda: self._control(ids, action))

    def _control(self, ids: Sequence[str], action: Action) -> dict[str, WflError]:
        failures: dict[str, WflError] = {}
        for id in ids:
            try:
                self._system.control(id, action)
            except WflError as error:
                failures[id] = error
        return failures

    def ask(self, ids: Sequence[str]) -> Answer:
        """All that it knows."""
        return self._call("ask", lambda: self._system.answer(ids))

    def find(self, known: Sequence[Known]) -> Answer:
        """By key alone."""
        return self._call("find", lambda: self._system.find([job.key for job in known]))

    def collect(self, ids: Sequence[str]) -> Sequence[JobInfo]:
        """What two_steps keeps back."""
        return self._call("collect", lambda: self._system.collect(ids))

    def read(self, id: str, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:
        """What it was made to write."""
        text = self._call("read", lambda: self._system.output(id, stream))
        return text[offset : offset + limit], offset + limit >= len(text)

    def reap(self, ids: Sequence[str]) -> None:
        """Forget them."""
        self._call("reap", lambda: self._system.forget(ids))

    def close(self, *, end: bool) -> None:
        """With `end`, what this session has submitted is killed."""
        for job in self._own if end else ():
            self._system.cancel(job)
        self._call("close", lambda: self._system.ignore(self._report))


class FakeMonitor(Monitor):
    """One MonitoringSession's connection to a FakeSystem."""

    def __init__(self, system: FakeSystem) -> None:
        self._system = system
        self._look(lambda: None)

    def _look(self, work: Callable[[], _T]) -> _T:
        return self._system.call("monitor", work)

    def jobs(self, session_name: str | None) -> Sequence[JobInfo]:
        """Those that have not ended."""
        return self._look(lambda: self._system.living(session_name))

    def machines(self) -> Sequence[MachineInfo]:
        """What the test has set."""
        return self._look(lambda: self._system.machines)

    def queues(self) -> Sequence[QueueInfo]:
        """What the test has set."""
        return self._look(lambda: self._system.queues)

    def categories(self) -> Sequence[str]:
        """What the test has set."""
        return self._look(lambda: self._system.categories)

"""FakeSystem: what a FakeContext pretends to use. Jobs take virtual time, run nothing, and end as the test says.

It can fail in every way in which real systems do; what sessions ask of it comes by way of wfl.testing.fake.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from time import sleep
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from wfl.backend import Action, Answer, Limits, Report, Stream, Submission, ended
from wfl.drmaa2 import Capability, JobInfo, JobState, JobTemplate, MachineInfo, QueueInfo, SubState
from wfl.errors import InvalidStateError, WflError
from wfl.testing.clock import VirtualTime
from wfl.testing.commands import understood

if TYPE_CHECKING:
    from wfl.task import Task

_T = TypeVar("_T")


class Outcome(Struct, frozen=True, kw_only=True):
    """What becomes of a job: it waits `pending` seconds in the queue, runs for `duration` seconds, and ends so.

    Without exit status, signal and sub state it ends with 0. A duration of math.inf: it runs until somebody ends it;
    a stubborn one until somebody kills it. Its output is there from its start.
    """

    duration: float = 0.0
    exit_status: int | None = None
    signal: str | None = None
    sub_state: SubState | None = None
    annotation: str | None = None
    output: str | bytes = ""
    error_output: str | bytes = ""
    pending: float = 0.0
    stubborn: bool = False


Behaviour = Outcome | int
"""An outcome, or just an exit status."""
Behave = Callable[[JobTemplate, int | None], Behaviour | None] | Mapping[str, Behaviour | Sequence[Behaviour]]
"""What becomes of which job. A function of its template and array index: it returns that, or None for what the system
does by itself, or raises the WflError with which the job is refused. Or a mapping from the first words of a command
line to an outcome, or to one for each attempt (the last one stays)."""

CAPABILITIES = frozenset({
    Capability.SUSPEND, Capability.HOLD, Capability.TERMINATE, Capability.OUTPUT, Capability.STREAM,
    Capability.NATIVE_ARRAYS, Capability.REATTACH, Capability.DETACH,
})  # fmt: skip
"""What a FakeSystem can do; the session does the rest, as for any system."""


class FakeSystem:
    """The system that a FakeContext pretends to use; it outlives sessions, as real ones do.

    behave: see Behave. Commands of which it says nothing end at once with 0; but `sleep`, `echo`, `true`, `false`, and
    lines of shell made of these, `exit N` and `kill -N $$`, do what they say, in virtual time.
    auto: time jumps to what happens next whenever somebody waits. False: jobs start, and time goes on, only by
    `advance` (or job by job, with `start` and `finish`).
    tells: False for a system that must be asked. two_steps: exit statuses are known only when collected.
    without: capabilities that it shall not have. fields, extensions, limits: as in Backend.

    `calls` counts what was asked of it, by kind; `submitted` is all that it was given; `slow` makes calls of a kind
    take so many real seconds. `machines`, `queues` and `categories` are what a MonitoringSession is shown besides the
    jobs; set them as a test needs them.
    """

    def __init__(
        self,
        behave: Behave = lambda _template, _index: None,
        *,
        auto: bool = True,
        tells: bool = True,
        two_steps: bool = False,
        without: Collection[Capability] = (),
        fields: Collection[str] = JobTemplate.__struct_fields__,
        extensions: Collection[str] = (),
        limits: Limits | None = None,
    ) -> None:
        self.tells, self.two_steps = tells, two_steps
        self.capabilities = CAPABILITIES - {*without}
        self.fields, self.extensions = frozenset(fields), frozenset(extensions)
        self.limits = limits or Limits()
        self.calls: Counter[str] = Counter()
        self.submitted: list[Submission] = []
        self.slow: dict[str, float] = {}
        self.machines: Sequence[MachineInfo] = (
            MachineInfo(name="fake", available=True, cores=1, load=0.0, phys_memory=1 << 20),
        )
        self.queues: Sequence[QueueInfo] = ()
        self.categories: Sequence[str] = ("fake",)
        self.time = VirtualTime(auto=auto)
        self._behave = behave if callable(behave) else _by_command(behave)
        self._began = datetime.now(UTC)
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._jobs: dict[str, Job] = {}
        self._reports: list[Report] = []
        self._faults: defaultdict[str, deque[tuple[WflError, bool]]] = defaultdict(deque)

    # -- steering it --

    @property
    def now(self) -> float:
        """Virtual seconds since it was made."""
        return self.time.now

    def advance(self, seconds: float = 0.0) -> None:
        """Let everything happen that is due within so many seconds, in order."""
        self.time.advance(seconds)

    def start(self, task: Task | str) -> None:
        """It leaves the queue and runs."""
        with self._lock:
            job = self._job(task)
            job.turn += 1
            dispatch = self._date()
            if job.info.dispatch_time is not None:  # a second start is another one, even if no time has passed
                dispatch = max(dispatch, job.info.dispatch_time + timedelta(microseconds=1))
            slots = job.template.min_slots or 1
            self._change(job, state=JobState.RUNNING, dispatch_time=dispatch, allocated_machines=("fake",), slots=slots)
            self._go_on(job, job.outcome.duration)

    def finish(self, task: Task | str, **fields: Any) -> None:
        """It ends now: with 0, or as fields of Outcome say (exit_status, signal, sub_state, output, …)."""
        job = self._job(task)
        self._end(job, Outcome(**{"output": job.outcome.output, "error_output": job.outcome.error_output, **fields}))

    def requeue(self, task: Task | str) -> None:
        """It goes back to the queue, to start once more."""
        with self._lock:
            job = self._job(task)
            self._change(job, state=JobState.REQUEUED)
            self._queue(job)

    def vanish(self, task: Task | str) -> None:
        """Somebody removes it, and the system knows it no more."""
        with self._lock:
            job = self._jobs.pop(self._job(task).info.id)
            job.turn += 1
            if self.tells:
                self.tell(ended(job.info.id, sub_state="lost", annotation="somebody removed it"))

    def tell(self, *facts: JobInfo) -> None:
        """Report these facts, true or not: once more, late, out of order."""
        for report in [*self._reports]:
            report(facts)

    def fail(self, call: str, error: WflError, times: int = 1, *, done: bool = False) -> None:
        """The next calls of this kind (submit, control, ask, find, collect, read, reap, monitor) raise `error`.

        done: what was asked for is done all the same; only the answer is lost.
        """
        self._faults[call] += [(error, done)] * times

    # -- what FakeBackend asks of it --

    def call(self, call: str, work: Callable[[], _T]) -> _T:
        """Count it, do it, and fail if that is wanted."""
        with self._lock:
            self.calls[call] += 1
            faults = self._faults[call]
            error, done = faults.popleft() if faults else (None, True)
        sleep(self.slow.get(call, 0.0))
        if error is None:
            return work()
        if done:
            work()
        raise error

    def listen(self, report: Report) -> None:
        """A session is there."""
        with self._lock:
            self._reports.append(report)
        self.time.use(1)

    def ignore(self, report: Report) -> None:
        """It is not any more."""
        with self._lock:
            self._reports.remove(report)
        self.time.use(-1)

    def new_id(self) -> str:
        """A short number."""
        return str(next(self._numbers))

    def accept(self, submission: Submission, id: str, session_name: str) -> Job:
        """One more job. Raises why it is refused."""
        job = Job(submission, self._outcome(submission), JobInfo(id=id), session_name)
        with self._lock:
            self._jobs[id] = job
            self.submitted.append(submission)
            held = submission.template.submit_as_hold and Capability.HOLD in self.capabilities
            state = JobState.QUEUED_HELD if held else JobState.QUEUED
            self._change(job, state=state, submission_time=self._date())
            if not held:
                self._queue(job)
        return job

    def control(self, id: str, action: Action) -> None:
        """Do it, or raise InvalidStateError."""
        with self._lock:
            job = self._job(id)
            state = job.info.state
            if state.ended or state not in _POSSIBLE.get(action, (state,)):
                raise InvalidStateError(f"{id}: cannot {action.value}: it is {state}")
            if action in (Action.SUSPEND, Action.HOLD):
                job.left -= self.now - job.since
                job.turn += 1
                self._change(job, state=JobState.SUSPENDED if action is Action.SUSPEND else JobState.QUEUED_HELD)
            elif action is Action.RESUME:
                self._change(job, state=JobState.RUNNING)
                self._go_on(job, job.left)
            elif action is Action.RELEASE:
                self._change(job, state=JobState.QUEUED)
                self._queue(job)
            elif action is Action.KILL or not job.outcome.stubborn:
                signal = "SIGKILL" if action is Action.KILL else "SIGTERM"
                how: dict[str, Any] = {"signal": signal} if state.started else {"sub_state": "cancelled"}
                self.finish(id, **how)

    def cancel(self, job: Job) -> None:
        """Kill it if it is still there."""
        with self._lock:
            if job.info.id in self._jobs and not job.info.state.ended:
                self.control(job.info.id, Action.KILL)

    def answer(self, ids: Sequence[str]) -> Answer:
        """Where these are."""
        with self._lock:
            infos = [self._seen(self._jobs[id]) for id in ids if id in self._jobs]
            return Answer(infos=infos, gone=[id for id in ids if id not in self._jobs])

    def find(self, keys: Sequence[str]) -> Answer:
        """Where the jobs of these keys are."""
        with self._lock:
            wanted = {*keys}
            jobs = [job for job in self._jobs.values() if job.key in wanted]
            infos = [self._seen(job).replace(extensions={"key": job.key}) for job in jobs]
        return Answer(infos=infos, gone=[*wanted.difference(job.key for job in jobs)])

    def collect(self, ids: Sequence[str]) -> list[JobInfo]:
        """All that is known of those that have ended."""
        with self._lock:
            return [self._jobs[id].info for id in ids if id in self._jobs and self._jobs[id].info.state.ended]

    def output(self, id: str, stream: Stream) -> bytes:
        """What it has written."""
        outcome = self._job(id).outcome
        text = outcome.output if stream == "stdout" else outcome.error_output
        return text.encode() if isinstance(text, str) else text

    def forget(self, ids: Sequence[str]) -> None:
        """Nothing is left of these."""
        with self._lock:
            for id in ids:
                self._jobs.pop(id, None)

    def living(self, session_name: str | None) -> list[JobInfo]:
        """The jobs that have not ended: all, or those of one session."""
        with self._lock:
            return [
                job.info.replace(extensions={"session": job.session_name})
                for job in self._jobs.values()
                if not job.info.state.ended and session_name in (None, job.session_name)
            ]

    def ids(self) -> list[str]:
        """All jobs."""
        with self._lock:
            return list(self._jobs)

    # -- inside --

    def _job(self, task: Task | str) -> Job:
        id = task if isinstance(task, str) else task.id
        if id not in self._jobs:
            raise InvalidStateError(f"the fake system has no job {id!r}")
        return self._jobs[id]

    def _date(self) -> datetime:
        return self._began + timedelta(seconds=self.now)

    def _outcome(self, submission: Submission) -> Outcome:
        template, index = submission.template, submission.index
        found = self._behave(template, index)
        if found is None:
            env = {"JOB_ID": submission.job_id, "TASK_ID": "" if index is None else str(index)}
            words = [template.remote_command or "", *(template.args or ())]
            return Outcome(**understood(words, {**env, **(template.job_environment or {})}) or {})
        return found if isinstance(found, Outcome) else Outcome(exit_status=found)

    def _queue(self, job: Job) -> None:
        """It starts when it has waited."""
        job.turn += 1
        self._when(job, job.outcome.pending, lambda: self.start(job.info.id))

    def _go_on(self, job: Job, seconds: float) -> None:
        """It ends when it has run for so long."""
        job.since, job.left = self.now, seconds
        self._when(job, seconds, lambda: self._end(job, job.outcome))

    def _when(self, job: Job, seconds: float, f: Callable[[], None]) -> None:
        """Do this then, unless something else has become of the job."""
        turn = job.turn

        def unless_changed() -> None:
            with self._lock:
                if job.turn == turn:
                    f()

        if seconds > 0 or not self.time.auto:
            self.time.after(seconds, unless_changed)
        else:
            f()

    def _end(self, job: Job, outcome: Outcome) -> None:
        with self._lock:
            job.turn += 1
            job.outcome = outcome
            why = (outcome.exit_status, outcome.signal, outcome.sub_state)
            status = 0 if why == (None, None, None) else outcome.exit_status
            end = ended(job.info.id, exit_status=status, signal_name=outcome.signal, sub_state=outcome.sub_state)
            began = job.info.dispatch_time
            now = max(self._date(), began or self._began)
            self._change(
                job,
                **{name: getattr(end, name) for name in ("state", "sub_state", "exit_status", "terminating_signal")},
                annotation=outcome.annotation,
                finish_time=now,
                wallclock_time=now - began if began else None,
            )

    def _change(self, job: Job, **facts: Any) -> None:
        job.info = job.info.replace(**facts)
        if self.tells:
            self.tell(self._seen(job))

    def _seen(self, job: Job) -> JobInfo:
        """What is known of it without collecting."""
        if self.two_steps and job.info.state.ended:
            return JobInfo(id=job.info.id, state=job.info.state)
        return job.info


_POSSIBLE = {
    Action.SUSPEND: (JobState.RUNNING,),
    Action.RESUME: (JobState.SUSPENDED,),
    Action.HOLD: (JobState.QUEUED, JobState.REQUEUED),
    Action.RELEASE: (JobState.QUEUED_HELD,),
}


class Job:
    """One pretended job. `turn` changes with everything that becomes of it."""

    def __init__(self, submission: Submission, outcome: Outcome, info: JobInfo, session_name: str) -> None:
        self.key, self.template = submission.key, submission.template
        self.outcome, self.info, self.session_name = outcome, info, session_name
        self.turn = 0
        self.since = self.left = 0.0


def _by_command(rules: Mapping[str, Behaviour | Sequence[Behaviour]]) -> Callable[[JobTemplate, int | None], Any]:
    attempts: Counter[str] = Counter()

    def behave(template: JobTemplate, _: int | None) -> Behaviour | None:
        line = " ".join([template.remote_command or "", *(template.args or ()), ""])
        rule = max((words for words in rules if line.startswith(f"{words} ")), key=len, default=None)
        if rule is None:
            return None
        found = rules[rule]
        if not isinstance(found, Sequence):
            return found
        attempts[rule] += 1
        return found[min(attempts[rule], len(found)) - 1]

    return behave

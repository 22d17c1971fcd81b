"""Task and TaskArray: the handles of one submission each, as verbs, callbacks and `for_each` are given them.

They hold nothing but a record of the session's ledger (and, after a retry, those of earlier attempts).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, overload

from wfl.backend import Action
from wfl.drmaa2 import JobState
from wfl.errors import InvalidStateError
from wfl.timing import timeout_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from wfl.backend import Stream
    from wfl.drmaa2 import JobInfo, JobTemplate
    from wfl.errors import WflError
    from wfl.record import Record
    from wfl.session import JobSession


class Task:
    """One job. Reading it never blocks, except where its docstring says that it waits."""

    __slots__ = ("__weakref__", "_earlier", "_record")

    def __init__(self, record: Record) -> None:
        self._record = record
        self._earlier: tuple[Record, ...] = ()

    @classmethod
    def of_attempts(cls, records: Sequence[Record]) -> Task:
        """The task that made these attempts, oldest first."""
        task = cls(records[-1])
        task._earlier = tuple(records[:-1])
        return task

    # -- what it is --

    @property
    def id(self) -> str:
        """The system's id of the job; before it is known, wfl's own key."""
        return self._record.id

    @property
    def session_name(self) -> str:
        """The session that the job belongs to."""
        return self._record.session.name

    @property
    def template(self) -> JobTemplate:
        """What was submitted: defaults filled in, placeholders replaced."""
        return self._record.template

    @property
    def source(self) -> JobTemplate:
        """The template as it was given, before defaults and placeholders; what a resubmission starts from."""
        return self._record.source

    @property
    def index(self) -> int | None:
        """TASK_ID of an array element, else None."""
        return self._record.index

    @property
    def state(self) -> JobState:
        """The state as last heard of."""
        return self._record.session.look(self._record).state

    @property
    def error(self) -> WflError | None:
        """Why the job could not be started, None if it was."""
        return self._record.session.look(self._record).error

    def info(self) -> JobInfo:
        """All that is known now; complete once the job has ended."""
        record = self._record
        return record.session.info(record.session.look(record))

    @property
    def attempts(self) -> tuple[Task, ...]:
        """Every attempt that `retry` made, oldest first; the last one is what this task shows."""
        return (*map(Task, self._earlier), Task(self._record))

    def _renew(self) -> None:
        """Submit it once more; from now on this handle shows the new attempt."""
        record = self._record.session.again(self._record.session.look(self._record))  # this failure is being seen to
        self._show(record)

    def _show(self, record: Record) -> None:
        self._earlier, self._record = (*self._earlier, self._record), record

    @property
    def success(self) -> bool:
        """Whether it has ended well."""
        return self.state is JobState.DONE

    # -- control --

    def suspend(self) -> None:
        """Stop all its processes until `resume`."""
        self._control(Action.SUSPEND)

    def resume(self) -> None:
        """Go on after `suspend`."""
        self._control(Action.RESUME)

    def hold(self) -> None:
        """Keep it from starting until `release`; only while it is queued."""
        self._control(Action.HOLD)

    def release(self) -> None:
        """Let a held job start."""
        self._control(Action.RELEASE)

    def terminate(self, grace: float | timedelta | None = None) -> None:
        """End it at once; with `grace` (seconds) ask first, and kill what is left then."""
        _end(self._record.session, [self], grace)

    def _control(self, action: Action) -> None:
        self._record.session.control([self], action)

    # -- waiting --

    def wait_started(self, timeout: float | timedelta | None = None) -> None:
        """Wait until it runs or has ended. Raises TimeoutError after `timeout` seconds."""
        self._record.session.wait([self], timeout_seconds(timeout), started=True)

    def wait_terminated(self, timeout: float | timedelta | None = None) -> None:
        """Wait until it has ended. Raises TimeoutError after `timeout` seconds; nothing is cancelled."""
        self._record.session.wait([self], timeout_seconds(timeout))

    def add_done_callback(self, f: Callable[[Task], object]) -> None:
        """Call `f(task)` once it has ended (at once if it has), in a thread kept for callbacks."""
        self._record.session.add_callback(self, f)

    def __await__(self) -> Generator[object, None, Task]:
        """Wait for the end without blocking the event loop."""
        yield from self._record.session.ended([self]).__await__()
        return self

    # -- output --

    @overload
    def output(self, *, encoding: str = "utf-8") -> str: ...
    @overload
    def output(self, *, encoding: None) -> bytes: ...
    def output(self, *, encoding: str | None = "utf-8") -> str | bytes:
        """Wait for the end, then all of its standard output without the last line break (encoding=None: all bytes)."""
        return _text(self._all("stdout"), encoding)

    @overload
    def error_output(self, *, encoding: str = "utf-8") -> str: ...
    @overload
    def error_output(self, *, encoding: None) -> bytes: ...
    def error_output(self, *, encoding: str | None = "utf-8") -> str | bytes:
        """Wait for the end, then all of its standard error, as `output` does."""
        return _text(self._all("stderr"), encoding)

    def _all(self, stream: Stream) -> bytes:
        self.wait_terminated()
        return self._record.session.read_all(self._record, stream)

    def stream(self, stream: Literal["stdout", "stderr"] = "stdout") -> Iterator[str]:
        """Yield the lines of its output as they are written, without line breaks, until it has ended."""
        return self._record.session.follow(self._record, stream)

    def reap(self) -> None:
        """Remove what the system keeps of it, output included. Raises InvalidStateError before its end."""
        self._record.session.reap([self])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self._record.state.value}>"


class TaskArray:
    """All elements of one array. Its state is theirs together; control reaches all of them."""

    __slots__ = ("id", "max_parallel", "session", "source", "tasks", "template")

    def __init__(
        self,
        session: JobSession,
        id: str,
        template: JobTemplate,
        tasks: Sequence[Task],
        *,
        source: JobTemplate | None = None,
        max_parallel: int | None = None,
    ) -> None:
        self.session, self.id, self.template = session, id, template
        self.tasks = tuple(tasks)
        self.source, self.max_parallel = source or template, max_parallel

    @property
    def indexes(self) -> range:
        """The elements' indexes."""
        numbers = [task.index or 0 for task in self.tasks]
        step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
        return range(numbers[0], numbers[-1] + 1, step)

    @property
    def session_name(self) -> str:
        """The session that the array belongs to."""
        return self.session.name

    @property
    def state(self) -> JobState:
        """FAILED or DONE when all have ended; else the most lively state of those that have not."""
        states = {task.state for task in self.tasks}
        for state in _LIVELIEST:
            if state in states:
                return state
        return JobState.FAILED if JobState.FAILED in states else JobState.DONE

    @property
    def success(self) -> bool:
        """Whether all have ended well."""
        return self.state is JobState.DONE

    @property
    def error(self) -> WflError | None:
        """Why the first element that could not be started was not."""
        return next((task.error for task in self.tasks if task.error), None)

    def infos(self) -> list[JobInfo]:
        """What is known now of each element."""
        return [task.info() for task in self.tasks]

    def info(self) -> JobInfo:
        """What is known now of all elements together.

        Exit status and sub state are those of the first that failed, times reach from the first to the last, CPU
        time and slots are sums.
        """
        infos, state = self.infos(), self.state
        telling = next((info for info in infos if info.state is JobState.FAILED), infos[0])
        begin = min((info.dispatch_time for info in infos if info.dispatch_time), default=None)
        finish = max((info.finish_time for info in infos if info.finish_time), default=None) if state.ended else None
        return telling.replace(
            id=self.id,
            state=state,
            sub_state=telling.sub_state if state.ended else None,
            exit_status=telling.exit_status if state.ended else None,
            slots=sum(info.slots or 0 for info in infos),
            allocated_machines=sorted({machine for info in infos for machine in info.allocated_machines}),
            submission_time=min(info.submission_time for info in infos if info.submission_time),
            dispatch_time=begin,
            finish_time=finish,
            wallclock_time=finish - begin if finish and begin else None,
            cpu_time=sum((info.cpu_time for info in infos if info.cpu_time), timedelta()),
        )

    def suspend(self) -> None:
        """Suspend every element that has not ended."""
        self._control(Action.SUSPEND)

    def resume(self) -> None:
        """Resume every element that has not ended."""
        self._control(Action.RESUME)

    def hold(self) -> None:
        """Hold every element that has not ended."""
        self._control(Action.HOLD)

    def release(self) -> None:
        """Release every held element."""
        self._control(Action.RELEASE)

    def terminate(self, grace: float | timedelta | None = None) -> None:
        """End every element that has not ended, as `Task.terminate`."""
        _end(self.session, self._unended(), grace)

    def _control(self, action: Action) -> None:
        tasks = self._unended()
        if not tasks:
            raise InvalidStateError(f"{self.id}: cannot {action.value}: all its elements have ended")
        wanted = _MEANT_FOR.get(action)
        meant = [task for task in tasks if wanted is None or task._record.state in wanted]
        self.session.control(meant or tasks, action)

    def _unended(self) -> list[Task]:
        return [task for task in self.tasks if not task._record.state.ended]

    def wait_started(self, timeout: float | timedelta | None = None) -> None:
        """Wait until all have started or ended. Raises TimeoutError after `timeout` seconds."""
        self.session.wait(self.tasks, timeout_seconds(timeout), started=True)

    def wait_terminated(self, timeout: float | timedelta | None = None) -> None:
        """Wait until all have ended. Raises TimeoutError after `timeout` seconds; nothing is cancelled."""
        self.session.wait(self.tasks, timeout_seconds(timeout))

    def add_done_callback(self, f: Callable[[TaskArray], object]) -> None:
        """Call `f(array)` once all elements have ended, in a thread kept for callbacks."""
        left = itertools.count(len(self.tasks) - 1, -1)
        for task in self.tasks:
            task.add_done_callback(lambda _: f(self) if next(left) == 0 else None)

    def output(self) -> str:
        """Wait for all, then their standard outputs in order, each ended by a line break but the last."""
        return "\n".join(text for task in self.tasks if (text := task.output()))

    def error_output(self) -> str:
        """Wait for all, then their standard errors, as `output`."""
        return "\n".join(text for task in self.tasks if (text := task.error_output()))

    def stream(self, stream: Literal["stdout", "stderr"] = "stdout") -> Iterator[str]:
        """Yield the lines of their output, element by element, until all have ended."""
        for task in self.tasks:
            yield from task.stream(stream)

    def __await__(self) -> Generator[object, None, TaskArray]:
        """Wait for all ends without blocking the event loop."""
        yield from self.session.ended(self.tasks).__await__()
        return self

    def reap(self) -> None:
        """Remove what the system keeps of every element. Raises InvalidStateError before the end of all."""
        self.session.reap(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __getitem__(self, position: int) -> Task:
        return self.tasks[position]

    def __repr__(self) -> str:
        return f"<TaskArray {self.id} {len(self.tasks)} tasks {self.state.value}>"


_MEANT_FOR = {
    Action.HOLD: {JobState.QUEUED, JobState.REQUEUED},
    Action.RELEASE: {JobState.QUEUED_HELD, JobState.REQUEUED_HELD},
}
"""Of an array, holding and releasing mean the elements that can be; if there are none, the system says why."""

_LIVELIEST = (
    JobState.RUNNING,
    JobState.SUSPENDED,
    JobState.REQUEUED,
    JobState.QUEUED,
    JobState.REQUEUED_HELD,
    JobState.QUEUED_HELD,
    JobState.UNDETERMINED,
)


def leaves(tasks: Sequence[Task | TaskArray]) -> list[Task]:
    """Single tasks, and array elements one by one, in order of submission."""
    return [leaf for task in tasks for leaf in (task.tasks if isinstance(task, TaskArray) else (task,))]


def _end(session: JobSession, tasks: Sequence[Task], grace: float | timedelta | None) -> None:
    seconds = timeout_seconds(grace, "grace")
    for_ever = grace is not None and seconds is None
    tasks = [task for task in tasks if not task._record.state.ended]
    if not seconds and not for_ever:
        session.control(tasks, Action.KILL)
        return
    session.control(tasks, Action.TERMINATE)
    if seconds:
        session.kill_later(tasks, seconds)


def _text(data: bytes, encoding: str | None) -> str | bytes:
    if encoding is None:
        return data
    text = data.decode(encoding, errors="replace")
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text

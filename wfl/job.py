"""Job: the fluent chain. Each verb is a few lines over tasks; waiting itself is the session's.

What the system answers (refused, unreachable, timed out) is kept in the chain, which goes on as written; wrong use
(an unknown field, a negative time-out) raises at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

from wfl.drmaa2 import JobState, JobTemplate
from wfl.errors import InvalidArgumentError, InvalidSessionError, InvalidStateError, JobFailedError, WflError
from wfl.matrix import Replacement, expand
from wfl.retry import Backoff, retry_tasks
from wfl.task import Task, TaskArray, leaves
from wfl.threads import Clock, in_threads
from wfl.timing import seconds, timeout_seconds

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Generator, Iterable
    from typing import Unpack

    from wfl.branch import Branches
    from wfl.drmaa2 import JobInfo, TemplateFields
    from wfl.notifier import Notifier
    from wfl.observer import Observer
    from wfl.session import JobSession
    from wfl.workflow import Workflow

    Command = str | os.PathLike[str] | JobTemplate
    When = Callable[[Task], bool] | Collection[str]

_T = TypeVar("_T")

FOR_ALL_THREADS = 32
TAIL = 2000
"""Bytes of error output that a JobFailedError quotes."""


class Job:
    """Tasks in order of submission. "Last" is the last one; an array counts as one and every verb covers its elements.

    May be used from several threads at once. `await job` waits for all tasks without blocking the event loop.
    """

    def __init__(self, workflow: Workflow | None = None) -> None:
        self._workflow = workflow
        self._tasks: list[Task | TaskArray] = []
        self._errors: list[Exception] = []
        self._untold: list[Exception] = []
        self._tag = ""

    # -- submitting --

    def run(self, command: Command, *arguments: str, **fields: Unpack[TemplateFields]) -> Self:
        """Submit a command with its arguments, or a JobTemplate. Does not wait."""
        return self._submit([make_template(command, arguments, fields)])

    def run_array(
        self,
        indexes: int | range,
        command: Command,
        *arguments: str,
        max_parallel: int | None = None,
        **fields: Unpack[TemplateFields],
    ) -> Self:
        """Submit one job per index: n means 1 … n; each sees its index as TASK_ID. Does not wait.

        max_parallel: how many may run at once.
        """
        return self._submit_array(make_template(command, arguments, fields), check_indexes(indexes), max_parallel)

    def run_matrix(self, template: Command, *replacements: Replacement) -> Self:
        """Submit the template in every combination of the replacements' values; the first is outermost."""
        return self._submit(expand(make_template(template, (), {}), replacements))

    def resubmit(self, n: int = 1) -> Self:
        """Submit the last task's template n more times, its placeholders filled anew. Does not wait."""
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n is {n!r} ({type(n).__name__}), expected int")
        if n < 1:
            raise InvalidArgumentError(f"n is {n}, expected 1 or more")
        task = self._last()
        if isinstance(task, TaskArray):
            for _ in range(n):
                self._submit_array(task.source, task.indexes, task.max_parallel)
        elif task is not None:
            self._submit([task.source] * n)
        return self

    def run_every(
        self,
        interval: float | timedelta,
        command: Command,
        *arguments: str,
        until: float | timedelta | datetime,
        **fields: Unpack[TemplateFields],
    ) -> Self:
        """Submit at once and then every `interval` seconds, without drift, until a time or for a duration. Blocks."""
        template = make_template(command, arguments, fields)
        step = seconds(interval, "interval")
        if not step:
            raise InvalidArgumentError("interval is 0, expected a time above 0")
        clock = self._clock()
        begin = clock.now()
        end = begin + _duration_until(until)
        count = 0
        while (due := begin + count * step) <= end:
            clock.sleep(max(0.0, due - clock.now()))
            self._submit([template])
            count += 1
        return self

    # -- waiting --

    def wait(self, timeout: float | timedelta | None = None) -> Self:
        """Wait until the last task has ended. A time-out is an error of the Job, and cancels nothing; 0 looks once."""
        limit = timeout_seconds(timeout)
        task = self._last()
        if task is not None:
            self._try(lambda: task.wait_terminated(limit))
            self._raise_late([task])
        return self

    def synchronize(
        self,
        timeout: float | timedelta | None = None,
        progress: bool | None = None,  # noqa: FBT001 - the contract has it so
    ) -> Self:
        """Wait until all tasks have ended. progress=True shows a live line in a terminal or notebook."""
        limit = timeout_seconds(timeout)
        tasks = self._leaves()
        if not tasks:
            return self
        if progress if progress is not None else self._workflow is not None and self._workflow.progress:
            from wfl.progress import show

            self._try(lambda: show(self._session(), tasks, limit))
        else:
            self._try(lambda: self._session().wait(tasks, limit))
        self._raise_late(tasks)
        return self

    def after(self, duration: float | timedelta) -> Self:
        """Sleep for so many seconds."""
        self._clock().sleep(seconds(duration, "duration"))
        return self

    def __await__(self) -> Generator[object, None, Self]:
        """Synchronize without blocking the event loop."""
        tasks = leaves(self._tasks)
        if tasks:
            try:
                yield from self._session().ended(tasks).__await__()
            except WflError as error:
                self._keep(error)
        else:
            self._last()
        return self

    # -- reacting to the end of the last task --

    def then(self, f: Callable[[Any], object]) -> Self:
        """Wait for the last task, then call `f(task)`."""
        return self._react(f)

    def on_success(self, f: Callable[[Any], object]) -> Self:
        """Wait for the last task, then call `f(task)` if it is DONE."""
        return self._react(f, JobState.DONE)

    def on_failure(self, f: Callable[[Any], object]) -> Self:
        """Wait for the last task, then call `f(task)` if it FAILED; a failed submission counts."""
        return self._react(f, JobState.FAILED)

    def then_run(self, command: Command, *arguments: str, **fields: Unpack[TemplateFields]) -> Self:
        """Wait for the last task, then submit."""
        template = make_template(command, arguments, fields)
        return self._react(lambda _: self._submit([template]))

    def on_success_run(self, command: Command, *arguments: str, **fields: Unpack[TemplateFields]) -> Self:
        """Wait for the last task, then submit if it is DONE."""
        template = make_template(command, arguments, fields)
        return self._react(lambda _: self._submit([template]), JobState.DONE)

    def on_failure_run(self, command: Command, *arguments: str, **fields: Unpack[TemplateFields]) -> Self:
        """Wait for the last task, then submit if it FAILED."""
        template = make_template(command, arguments, fields)
        return self._react(lambda _: self._submit([template]), JobState.FAILED)

    def then_run_array(
        self,
        indexes: int | range,
        command: Command,
        *arguments: str,
        max_parallel: int | None = None,
        **fields: Unpack[TemplateFields],
    ) -> Self:
        """Wait for the last task, then submit an array."""
        template, elements = make_template(command, arguments, fields), check_indexes(indexes)
        return self._react(lambda _: self._submit_array(template, elements, max_parallel))

    def observe(self, observer: Observer) -> Self:
        """Wait for the last task; call the observer's function for an error of the Job, a failure or a success."""
        self.wait()
        if observer.on_error is not None:
            self.on_error(observer.on_error)
        if observer.on_failed is not None:
            self.on_failure(observer.on_failed)
        if observer.on_success is not None:
            self.on_success(observer.on_success)
        return self

    def do(self, f: Callable[[Any], object]) -> Self:
        """Call `f(task)` with the last task at once."""
        task = self._last()
        if task is not None:
            f(task)
        return self

    # -- reacting to errors --

    def on_error(self, f: Callable[[Exception], object]) -> Self:
        """Call `f(error)` with the latest error of the Job, if it has one."""
        error = self.last_error
        if error is not None:
            f(error)
        return self

    def on_error_raise(self) -> Self:
        """Raise the latest error of the Job, if it has one."""
        error = self.last_error
        if error is not None:
            raise error
        return self

    # -- all tasks --

    def for_each(self, f: Callable[[Task], object]) -> Self:
        """Call `f(task)` for every task and array element, in order, each after its end.

        What the calls raise is collected and raised together, as an ExceptionGroup.
        """
        return self._raise_together(self._collect_errors(f, task) for task in self._ended_one_by_one())

    def for_all(self, f: Callable[[Task], object]) -> Self:
        """Call `f(task)` for every task and array element in threads, each after its end; else as `for_each`."""
        tasks = self._leaves()
        if not tasks:
            return self

        def call(task: Task) -> Exception | None:
            try:
                task.wait_terminated()
            except WflError as error:
                return error
            return self._collect_errors(f, task)

        return self._raise_together(in_threads(call, tasks, FOR_ALL_THREADS, "wfl-for-all"))

    def retry(
        self, times: int, *, backoff: Backoff | float | timedelta | None = None, when: When | None = None
    ) -> Self:
        """Submit the last task again until it is DONE, at most `times` more; each attempt is waited for.

        backoff: the pause before each (default Backoff()). when: which failures to retry, a function of the task or
        sub states such as {"timeout", "preempted"}. The task shows the latest attempt and keeps all in `attempts`.
        """
        check = _check_retry(times, backoff, when)
        task = self._last()
        if task is not None:
            self._retry(leaves([task]), *check)
        return self

    def retry_any_failed(
        self, times: int, *, backoff: Backoff | float | timedelta | None = None, when: When | None = None
    ) -> Self:
        """Wait for all tasks and retry every failed one and every failed array element, in parallel; see `retry`."""
        check = _check_retry(times, backoff, when)
        tasks = self._leaves()
        if tasks:
            self._retry(tasks, *check)
        return self

    # -- control --

    def suspend(self) -> Self:
        """Suspend the last task."""
        return self._control(lambda task: task.suspend())

    def resume(self) -> Self:
        """Resume the last task."""
        return self._control(lambda task: task.resume())

    def hold(self) -> Self:
        """Keep the last task from starting."""
        return self._control(lambda task: task.hold())

    def release(self) -> Self:
        """Let the last task, which is held, start."""
        return self._control(lambda task: task.release())

    def kill(self, grace: float | timedelta | None = None) -> Self:
        """End the last task; with `grace` (seconds) ask it first, and kill it then."""
        timeout_seconds(grace, "grace")
        return self._control(lambda task: task.terminate(grace))

    def kill_all(self, grace: float | timedelta | None = None) -> Self:
        """End all tasks that have not ended, in bulk."""
        timeout_seconds(grace, "grace")
        tasks = self._leaves()
        if not tasks:
            return self
        everything = TaskArray(self._session(), "", JobTemplate(), tasks)
        self._try(lambda: everything.terminate(grace))
        return self

    def reap_all(self) -> Self:
        """Remove what the system keeps of all tasks, output included; one that has not ended is an error."""
        tasks = self._leaves()
        if not tasks:
            return self
        self._try(lambda: self._session().reap(tasks))
        return self

    # -- around it --

    def tag_with(self, tag: str) -> Self:
        """Give the Job a tag, for the script's own use."""
        self._tag = tag
        return self

    def notify(self, notifier: Notifier) -> Self:
        """Send this Job to whoever receives from the notifier."""
        notifier.send(self)
        return self

    def branch(self, *functions: Callable[[Job], object]) -> Branches:
        """Run each function in its own thread, with a fresh Job of the same workflow."""
        from wfl.branch import Branches

        if self._workflow is None:
            raise InvalidSessionError("this Job belongs to no workflow: get it from Workflow.new_job()")
        return Branches(self._workflow, functions)

    # -- reading --

    @property
    def tasks(self) -> list[Task | TaskArray]:
        """The tasks in order of submission; an array is one."""
        return list(self._tasks)

    @property
    def job_id(self) -> str:
        """The id of the last task, "" without one."""
        return self._tasks[-1].id if self._tasks else ""

    @property
    def state(self) -> JobState:
        """The state of the last task, UNDETERMINED without one."""
        return self._tasks[-1].state if self._tasks else JobState.UNDETERMINED

    @property
    def template(self) -> JobTemplate | None:
        """The template of the last task."""
        return self._tasks[-1].template if self._tasks else None

    @property
    def tag(self) -> str:
        """What `tag_with` gave, else ""."""
        return self._tag

    @property
    def errors(self) -> list[Exception]:
        """All errors of the chain, in the order in which they became known; nothing clears them."""
        tasks = leaves(self._tasks)
        self._gather(tasks)
        for task in tasks:
            record = task._record
            if record.error is not None and record.unseen:
                record.session.look(record)
        self._tell()
        return list(self._errors)

    @property
    def last_error(self) -> Exception | None:
        """The latest error of the chain."""
        errors = self.errors
        return errors[-1] if errors else None

    def info(self) -> JobInfo | None:
        """What is known now of the last task (of an array: of all elements together)."""
        task = self._last()
        return None if task is None else task.info()

    def infos(self) -> list[JobInfo]:
        """What is known now of every task and array element, in order of submission."""
        return [task.info() for task in self._leaves()]

    def exit_status(self) -> int | None:
        """Wait for the last task, then its exit status (an array: the first that is not 0); None if it never ran."""
        self.wait()
        info = self.info() if self._tasks else None
        return None if info is None else info.exit_status

    def success(self) -> bool:
        """Wait for the last task, then whether it is DONE."""
        self.wait()
        return self.state is JobState.DONE

    def output(self) -> str:
        """Wait for the last task, then its standard output without the last line break (an array: all, in order)."""
        task = self._last()
        return "" if task is None else self._try(task.output) or ""

    def error_output(self) -> str:
        """Wait for the last task, then its standard error, as `output`."""
        task = self._last()
        return "" if task is None else self._try(task.error_output) or ""

    def outputs(self) -> dict[str, str]:
        """Wait for all, then the standard output of every task and array element by id, in order of submission."""
        return {task.id: self._try(task.output) or "" for task in self._ended_one_by_one()}

    def any_failed(self) -> bool:
        """Whether a task or array element has FAILED by now."""
        return any([task.state is JobState.FAILED for task in self._leaves()])  # noqa: C419 - looks at all of them

    def has_any_failed(self) -> bool:
        """Wait for all, then whether any FAILED."""
        return bool(self.failed())

    def failed(self) -> list[Task]:
        """Wait for all, then the tasks and array elements that FAILED."""
        tasks = self._leaves()
        if tasks:
            self._try(lambda: self._session().wait(tasks))
            self._raise_late(tasks)
        return [task for task in tasks if task.state is JobState.FAILED]

    def raise_for_status(self) -> Self:
        """Wait for all, then raise JobFailedError if anything failed, and else the latest error of the chain if any."""
        failed = self.failed()
        if failed:
            raise JobFailedError(_failure(failed), tasks=failed)
        return self.on_error_raise()

    def stream(self) -> Iterator[str]:
        """Yield the output lines of the last task while it runs (of an array: element by element)."""
        task = self._last()
        return iter(()) if task is None else task.stream()

    def __repr__(self) -> str:
        tag = f" {self._tag!r}" if self._tag else ""
        last = f"{self.job_id} {_state(self._tasks[-1]).value}" if self._tasks else "none"
        return f"<Job{tag} {len(self._tasks)} tasks, last {last}>"

    # -- inside --

    def _session(self) -> JobSession:
        """The open session. Raises what went wrong when it was opened."""
        if self._workflow is None:
            raise InvalidSessionError("this Job belongs to no workflow: get it from Workflow.new_job()")
        if self._workflow.session is None:
            raise self._workflow.error or InvalidSessionError("the workflow was not opened")
        return self._workflow.session

    def _clock(self) -> Clock:
        """The session's; without a session, time goes by all the same."""
        opened = self._workflow is not None and self._workflow.session is not None
        return self._session().clock if opened else Clock("wfl-clock")

    def _submit(self, templates: Sequence[JobTemplate]) -> Self:
        tasks = self._try(lambda: self._session().start(templates))
        self._add(tasks or [])
        return self

    def _submit_array(self, template: JobTemplate, indexes: range, max_parallel: int | None) -> Self:
        array = self._try(lambda: self._session().start_array(template, indexes, max_parallel), raising=ValueError)
        self._add([array] if array is not None else [])
        return self

    def _add(self, tasks: Sequence[Task | TaskArray]) -> None:
        self._tasks += tasks
        self._raise_new(leaves(tasks))

    def _gather(self, tasks: Sequence[Task]) -> list[Task]:
        """Failed submissions are errors of the Job; the tasks whose failure was not known."""
        known = set(map(id, self._errors))
        new = []
        for task in tasks:
            error = task._record.error
            if error is not None and id(error) not in known:
                known.add(id(error))
                self._errors.append(error)
                new.append(task)
        return new

    def _raise_new(self, tasks: Sequence[Task]) -> None:
        """Gather, and with raise_errors raise what is new."""
        for task in self._gather(tasks):
            if self._workflow is not None and self._workflow.raise_errors and (error := task.error) is not None:
                raise error

    def _raise_late(self, tasks: Sequence[Task | TaskArray]) -> None:
        """With raise_errors, raise what turned out only now: a start of our own (no earlier program's) that failed."""
        if self._workflow is not None and self._workflow.raise_errors:
            self._raise_new([task for task in leaves(tasks) if task._record.own])

    def _last(self) -> Task | TaskArray | None:
        """The last task; without one, that is an error of the Job."""
        if self._tasks:
            return self._tasks[-1]
        if not self._errors:
            self._keep(InvalidStateError("this Job has no task yet: run something first"))
        return None

    def _leaves(self) -> list[Task]:
        """All tasks and array elements; none at all is an error of the Job."""
        if not self._tasks:
            self._last()
        return leaves(self._tasks)

    def _react(self, f: Callable[[Any], object], wanted: JobState | None = None) -> Self:
        """Wait for the last task; call `f` if it ended in the wanted state (None: in any)."""
        task = self._last()
        if task is None:
            return self
        try:
            task.wait_terminated()
        except WflError as error:
            self._keep(error)
            return self
        self._raise_late([task])
        if wanted is JobState.FAILED:
            _look(task)  # somebody cares; a condition on success alone would hide the failure
        if wanted is None or _state(task) is wanted:
            f(task)
        return self

    def _control(self, f: Callable[[Task | TaskArray], object]) -> Self:
        task = self._last()
        if task is not None:
            self._try(lambda: f(task))
        return self

    def _retry(self, tasks: list[Task], times: int, backoff: Backoff, when: Callable[[Task], bool]) -> None:
        self._try(lambda: retry_tasks(tasks, times, backoff, when))

    def _ended_one_by_one(self) -> Iterator[Task]:
        for task in self._leaves():
            self._try(task.wait_terminated)
            if task._record.state.ended:
                yield task

    @staticmethod
    def _collect_errors(f: Callable[[Task], object], task: Task) -> Exception | None:
        try:
            f(task)
        except Exception as error:  # noqa: BLE001 - raised with the others'
            error.add_note(f"raised for task {task.id}")
            return error
        return None

    def _raise_together(self, results: Iterable[Exception | None]) -> Self:
        errors = [error for error in results if error is not None]
        if errors:
            raise ExceptionGroup(f"{len(errors)} calls raised", errors)
        return self

    def _try(self, f: Callable[[], _T], raising: type[Exception] | tuple[()] = ()) -> _T | None:
        """Do it; what the system answers instead is kept in the chain."""
        try:
            return f()
        except WflError as error:
            if raising and isinstance(error, raising):
                raise
            self._keep(error)
            return None

    def _keep(self, error: WflError) -> None:
        self._errors.append(error)
        if self._workflow is not None:
            if self._workflow.raise_errors:
                raise error
            self._untold.append(error)
            self._workflow.unseen.add(error, lambda: f"{type(error).__name__}: {error}")

    def _tell(self) -> None:
        with suppress(IndexError):  # several threads may tell at once
            while self._workflow is not None:
                self._workflow.unseen.discard(self._untold.pop())


def _look(task: Task | TaskArray) -> None:
    """Read the state as a user does, so that a failure is known to be noticed."""
    for leaf in leaves([task]):
        leaf.state  # noqa: B018 - reading is the point


def _state(task: Task | TaskArray) -> JobState:
    """The state, without noticing a failure."""
    states = [leaf._record.state for leaf in leaves([task])]
    return JobState.FAILED if JobState.FAILED in states else states[-1]


def make_template(command: Command, arguments: Sequence[str], fields: Any) -> JobTemplate:
    """What run() and its like are given, as a template."""
    if not isinstance(command, JobTemplate):
        return JobTemplate(remote_command=command, args=arguments or None, **fields)
    if arguments:
        raise TypeError(f"{arguments!r} came with a JobTemplate: put the arguments into it, template.replace(args=…)")
    return command.replace(**fields) if fields else command


def check_indexes(indexes: int | range) -> range:
    """1 … n for a number n; a range must be ascending, of numbers from 0, and not empty."""
    if isinstance(indexes, bool) or not isinstance(indexes, int | range):
        raise TypeError(f"indexes is {indexes!r} ({type(indexes).__name__}), expected a number or a range")
    found = range(1, indexes + 1) if isinstance(indexes, int) else indexes
    if not found:
        raise InvalidArgumentError(f"indexes is {indexes!r}: it has no element")
    if found.step < 1 or found.start < 0:
        raise InvalidArgumentError(f"indexes is {indexes!r}, expected an ascending range of numbers from 0")
    return found


def _duration_until(until: float | timedelta | datetime) -> float:
    if not isinstance(until, datetime):
        return seconds(until, "until")
    if until.utcoffset() is None:
        raise InvalidArgumentError(f"until is {until!r}, without a time zone; use datetime.now(UTC), or .astimezone()")
    return (until - datetime.now(UTC)).total_seconds()


def _check_retry(
    times: int, backoff: Backoff | float | timedelta | None, when: When | None
) -> tuple[int, Backoff, Callable[[Task], bool]]:
    if isinstance(times, bool) or not isinstance(times, int):
        raise TypeError(f"times is {times!r} ({type(times).__name__}), expected int")
    if times < 0:
        raise InvalidArgumentError(f"times is {times}, expected 0 or more")
    if backoff is None:
        backoff = Backoff()
    elif not isinstance(backoff, Backoff):
        pause = seconds(backoff, "backoff")
        backoff = Backoff(initial=pause, factor=1.0, maximum=pause, jitter=0.0)
    if when is None:
        return times, backoff, lambda _: True
    if callable(when):
        return times, backoff, when
    return times, backoff, _sub_state_in(when)


def _sub_state_in(names: Collection[str]) -> Callable[[Task], bool]:
    from wfl.drmaa2 import SUB_STATES
    from wfl.errors import nearest

    wanted = {names} if isinstance(names, str) else set(names)
    for name in wanted - SUB_STATES:
        raise InvalidArgumentError(f"when: there is no sub state {name!r}:{nearest(name, SUB_STATES)}")
    return lambda task: (info := task._record.info) is not None and info.sub_state in wanted


def _failure(failed: Sequence[Task]) -> str:
    """Command, end and the tail of the error output of the first; how many more there are."""
    task = failed[0]
    info, template = task.info(), task.template
    command = " ".join([template.remote_command or "", *(template.args or ())])
    words = [f"task {task.id} failed: {command[:500]}"]
    words.append(
        f"  {info.sub_state}, exit status {info.exit_status}" + (f": {info.annotation}" if info.annotation else "")
    )
    try:
        tail = task.error_output(encoding=None)[-TAIL:].decode(errors="replace").strip()
    except WflError as error:
        tail = f"(its error output cannot be read: {error})"
    if tail:
        words += ["  its error output ends:", *(f"    {line}" for line in tail.splitlines()[-20:])]
    if len(failed) > 1:
        words.append(f"  and {len(failed) - 1} more: {', '.join(task.id for task in failed[1:6])}")
    return "\n".join(words)

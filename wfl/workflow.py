"""Workflow: a context opened for work; where jobs start. It opens the session, makes Jobs, and closes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from wfl.context import Context
from wfl.errors import InternalError, WflError
from wfl.job import Job
from wfl.record import Unseen
from wfl.session import JobSession
from wfl.task import Task, TaskArray

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Unpack

    from wfl.branch import Branches
    from wfl.drmaa2 import TemplateFields
    from wfl.job import Command
    from wfl.matrix import Replacement


class Workflow:
    """Runs jobs on the system that `context` chooses (None: what WFL_CONTEXT names, else processes).

    raise_errors=True: errors of opening and of every chain raise at once instead of being kept.
    progress=True: `synchronize` shows a live line unless told otherwise.
    As a context manager it ends what still runs and closes, also after an exception.
    """

    def __init__(self, context: Context | None = None, *, raise_errors: bool = False, progress: bool = False) -> None:
        if context is not None and not isinstance(context, Context):
            raise TypeError(f"context is {context!r} ({type(context).__name__}), expected a Context")
        self.raise_errors, self.progress = raise_errors, progress
        self.unseen = Unseen()
        self._session: JobSession | None = None
        self._error: WflError | None = None
        try:
            self._session = JobSession(context or Context.from_environment())
            self.unseen = self._session.unseen
        except WflError as error:
            self._fail(error)
        except (OSError, RuntimeError) as error:
            self._fail(InternalError(f"opening {context!r} failed: {error}"))

    def _fail(self, error: WflError) -> None:
        if self.raise_errors:
            raise error
        self._error = error

    @property
    def session(self) -> JobSession | None:
        """The DRMAA2 job session; None if it could not be opened."""
        return self._session

    # -- submitting --

    def new_job(self) -> Job:
        """An empty chain."""
        return Job(self)

    def run(self, command: Command, *arguments: str, **fields: Unpack[TemplateFields]) -> Job:
        """Submit a command with its arguments, or a JobTemplate, as the start of a chain."""
        return self.new_job().run(command, *arguments, **fields)

    def run_array(
        self,
        indexes: int | range,
        command: Command,
        *arguments: str,
        max_parallel: int | None = None,
        **fields: Unpack[TemplateFields],
    ) -> Job:
        """Submit one job per index (n means 1 … n; seen as TASK_ID), at most `max_parallel` running at once."""
        return self.new_job().run_array(indexes, command, *arguments, max_parallel=max_parallel, **fields)

    def run_matrix(self, template: Command, *replacements: Replacement) -> Job:
        """Submit the template in every combination of the replacements' values; the first is outermost."""
        return self.new_job().run_matrix(template, *replacements)

    def branch(self, *functions: Callable[[Job], object]) -> Branches:
        """Run each function in its own thread, with a fresh Job."""
        return self.new_job().branch(*functions)

    # -- all jobs --

    def jobs(self) -> list[Job]:
        """All jobs that the session knows, also from earlier programs with the same store; one Job each."""
        session = self._opened()
        found: dict[str, Task | TaskArray] = {}
        for task in session.get_jobs():
            array = session.array_of(task)
            found.setdefault(array.id if array else task.id, array or task)
        jobs = []
        for handle in found.values():
            job = self.new_job()
            job._tasks.append(handle)
            jobs.append(job)
        return jobs

    def kill_all(self) -> Self:
        """End every task of this session that has not ended."""
        session = self._opened()
        tasks = [task for task in session.get_jobs() if not task._record.state.ended]
        if tasks:
            TaskArray(session, "", tasks[0].template, tasks).terminate()
        return self

    def _opened(self) -> JobSession:
        if self._session is None:
            raise self._error or InternalError("the workflow was not opened")
        return self._session

    # -- errors of opening --

    @property
    def error(self) -> WflError | None:
        """What went wrong on opening, None if nothing did."""
        return self._error

    @property
    def has_error(self) -> bool:
        """Whether something went wrong on opening."""
        return self._error is not None

    def on_error(self, f: Callable[[WflError], object]) -> Self:
        """Call `f(error)` if something went wrong on opening."""
        if self._error is not None:
            f(self._error)
        return self

    def raise_for_error(self) -> Self:
        """Raise what went wrong on opening, if anything did."""
        if self._error is not None:
            raise self._error
        return self

    # -- the end --

    def close(self) -> None:
        """End what still runs (unless detached), report failures that nobody looked at, let go of the system."""
        if self._session is not None:
            self._session.close()
        else:
            self.unseen.warn()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "not opened" if self._session is None else "closed" if self._session.closed else "open"
        return f"<Workflow {self._session.name if self._session else ''} {state}>"

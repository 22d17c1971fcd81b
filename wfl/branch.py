"""Branches: functions that go on side by side, each in its own thread with a Job of its own."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from wfl.errors import TimeoutError
from wfl.timing import timeout_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from wfl.job import Job
    from wfl.workflow import Workflow


class Branches:
    """Running branches. Their threads are daemons: a program that ends without `join` does not wait for them."""

    def __init__(self, workflow: Workflow, functions: Sequence[Callable[[Job], object]]) -> None:
        for f in functions:
            if not callable(f):
                raise TypeError(f"{f!r} ({type(f).__name__}) is no function of a Job")
        self._jobs: list[Job] = [workflow.new_job() for _ in functions]
        self._errors: list[BaseException | None] = [None for _ in functions]
        self._unseen, self._joined = workflow.unseen, False
        self._threads = [
            threading.Thread(target=self._run, args=(number, f), name=f"wfl-branch-{number + 1}", daemon=True)
            for number, f in enumerate(functions)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, f: Callable[[Job], object]) -> None:
        from wfl.job import Job

        try:
            result = f(self._jobs[number])
        except BaseException as error:  # noqa: BLE001 - join() raises it
            where = f"raised in branch {number + 1} ({getattr(f, '__name__', f)})"
            error.add_note(where)
            self._errors[number] = error
            words = f"{error!r}, {where}"
            self._unseen.add(error, lambda: words)
        else:
            if isinstance(result, Job):
                self._jobs[number] = result

    def join(self, timeout: float | timedelta | None = None) -> list[Job]:
        """Wait for all branches; the Job each returned (else the one it was given), in order.

        Raises TimeoutError, or what branches raised, as one ExceptionGroup.
        """
        limit = timeout_seconds(timeout)
        end = None if limit is None else time.monotonic() + limit
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        running = sum(thread.is_alive() for thread in self._threads)
        if running:
            raise TimeoutError(f"after {limit:g} s {running} of {len(self._threads)} branches were still running")
        errors = [error for error in self._errors if error is not None]
        if not self._joined:
            self._joined = True
            for error in errors:
                self._unseen.discard(error)
        if errors:
            raise BaseExceptionGroup(f"{len(errors)} of {len(self._threads)} branches raised", errors)
        return list(self._jobs)

    def __len__(self) -> int:
        return len(self._threads)

"""as_completed: tasks in the order in which they end."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING

from wfl.errors import InvalidSessionError, TimeoutError
from wfl.job import Job
from wfl.task import Task, TaskArray, leaves
from wfl.timing import timeout_seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from queue import SimpleQueue

    from wfl.record import Record


class as_completed:  # noqa: N801 - used as the function of the same name in concurrent.futures and asyncio
    """Iterate over tasks as they end: `for task in as_completed(tasks)`, or `async for`.

    `tasks` are Tasks, TaskArrays or Jobs, of which every task and array element is meant, each once. Raises
    TimeoutError when `timeout` seconds after the start of the iteration some have not ended.
    """

    def __init__(self, tasks: Iterable[Task | TaskArray | Job], timeout: float | timedelta | None = None) -> None:
        given = [tasks] if isinstance(tasks, Task | TaskArray | Job) else list(tasks)
        flat = [part for item in given for part in (leaves(item.tasks) if isinstance(item, Job) else leaves([item]))]
        self._tasks = {task._record: task for task in flat}
        self._timeout = timeout_seconds(timeout)

    def __iter__(self) -> Iterator[Task]:
        if not self._tasks:
            return
        clock = next(iter(self._tasks)).session.clock
        queue: SimpleQueue[Record | None] = clock.queue()
        end = None if self._timeout is None else clock.now() + self._timeout
        stops = self._collect(queue.put)
        try:
            for left in range(len(self._tasks), 0, -1):
                try:
                    record = clock.get(queue, None if end is None else max(0.0, end - clock.now()))
                except Empty:
                    raise self._late(left) from None
                yield self._task(record)
        finally:
            for stop in stops:
                stop()

    async def __aiter__(self) -> AsyncIterator[Task]:
        import asyncio

        queue: asyncio.Queue[Record | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        end = None if self._timeout is None else loop.time() + self._timeout

        def put(record: Record | None) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(queue.put_nowait, record)

        stops = [*self._collect(put), *(session.clock.attend() for session in {r.session for r in self._tasks})]
        try:
            for left in range(len(self._tasks), 0, -1):
                try:
                    async with asyncio.timeout_at(end):
                        record = await queue.get()
                except builtins.TimeoutError:
                    raise self._late(left) from None
                yield self._task(record)
        finally:
            for stop in stops:
                stop()

    def _collect(self, put: Callable[[Record | None], None]) -> list[Callable[[], None]]:
        by_session: dict[object, list[Task]] = {}
        for record, task in self._tasks.items():
            by_session.setdefault(record.session, []).append(task)
        return [tasks[0]._record.session.collector(tasks, put) for tasks in by_session.values()]

    def _task(self, record: Record | None) -> Task:
        if record is None:
            raise InvalidSessionError("the session was closed while tasks were waited for")
        return self._tasks[record]

    def _late(self, left: int) -> TimeoutError:
        return TimeoutError(f"after {self._timeout:g} s {left} of {len(self._tasks)} tasks had not ended; they go on")

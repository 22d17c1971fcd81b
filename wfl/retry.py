"""Trying again: how long to wait before it, and the loop that does it for many tasks at once."""

from __future__ import annotations

from datetime import timedelta
from heapq import heappop, heappush
from queue import Empty
from sys import float_info
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import force_setattr

from wfl.drmaa2 import JobState
from wfl.errors import InvalidArgumentError, InvalidSessionError
from wfl.timing import seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from wfl.record import Record
    from wfl.task import Task


class Backoff(Struct, frozen=True):
    """Waiting times that grow: `initial`, then `factor` times the one before, up to `maximum`.

    `initial` and `maximum` are seconds or timedelta. `jitter` is the fraction of each that chance may take
    off, so that many jobs which failed together do not come back together; 0 makes the times exact.
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 60.0
    jitter: float = 0.5

    if TYPE_CHECKING:

        def __init__(
            self,
            initial: float | timedelta = 1.0,
            factor: float = 2.0,
            maximum: float | timedelta = 60.0,
            jitter: float = 0.5,
        ) -> None: ...

    def __post_init__(self) -> None:
        force_setattr(self, "initial", seconds(self.initial, "initial"))
        force_setattr(self, "maximum", seconds(self.maximum, "maximum"))
        if self.maximum < self.initial:
            raise InvalidArgumentError(f"maximum is {self.maximum} s, below initial, which is {self.initial} s")
        force_setattr(self, "factor", _number("factor", self.factor, 1, float_info.max))
        force_setattr(self, "jitter", _number("jitter", self.jitter, 0, 1))

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after `attempt` (from 1) has failed; never more than `maximum`."""
        if isinstance(attempt, bool) or not isinstance(attempt, int):
            raise TypeError(f"attempt is {attempt!r} ({type(attempt).__name__}), expected int")
        if attempt < 1:
            raise InvalidArgumentError(f"attempt is {attempt}, expected 1 or more")
        full = self._full(attempt)
        return full * (1 - self.jitter * _chance()) if self.jitter else full

    def _full(self, attempt: int) -> float:
        try:
            return min(self.maximum, self.initial * self.factor ** (attempt - 1))
        except OverflowError:
            return self.maximum if self.initial else 0.0


def _number(name: str, value: float, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected a number")
    if not low <= value <= high:  # so is NaN refused
        raise InvalidArgumentError(f"{name} is {value!r}, expected a number from {low} to {high}")
    return float(value)


def _chance() -> float:
    from random import random

    return random()  # noqa: S311 - spreads load, keeps no secret


def retry_tasks(tasks: list[Task], times: int, backoff: Backoff, when: Callable[[Task], bool]) -> None:
    """Wait for these and submit each that failed again, until DONE or after `times` more attempts, all in parallel.

    One thread, the caller's: it sleeps until something ends or a pause is over.
    """
    if not tasks:
        return
    session = tasks[0]._record.session
    clock = session.clock
    ends: SimpleQueue[Record | None] = clock.queue()
    left = {task._record: task for task in tasks}
    stops = [session.collector(tasks, ends.put)]
    pauses: list[tuple[float, int, Task]] = []
    try:
        while left or pauses:
            while pauses and pauses[0][0] <= clock.now():
                task = heappop(pauses)[2]
                task._renew()
                left[task._record] = task
                stops.append(session.collector([task], ends.put))
            try:
                record = clock.get(ends, max(0.0, pauses[0][0] - clock.now()) if pauses else None)
            except Empty:
                continue
            if record is None:
                raise InvalidSessionError("the session was closed while tasks were being retried")
            task = left.pop(record)
            made = len(task.attempts) - 1
            on_purpose = record.why is not None and record.why[0] == "cancelled"
            if record.state is JobState.FAILED and made < times and not on_purpose and when(task):
                heappush(pauses, (clock.now() + backoff.delay(made + 1), id(task), task))
    finally:
        for stop in stops:
            stop()

"""Job templates that change from one submission to the next: counted, timed or mapped by functions."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from threading import Lock
from typing import Any, Self

from wfl.drmaa2 import JobTemplate
from wfl.errors import InvalidArgumentError, nearest
from wfl.timing import seconds

Mapper = Callable[[JobTemplate], JobTemplate]


class Template:
    """A job template with iterators, which advance it for good, and maps, which show it differently once.

    Iterators are applied in the order in which they were added; a name given again replaces what it stood
    for. Threads may share a Template: each call of next() advances it exactly once.
    """

    def __init__(self, job_template: JobTemplate) -> None:
        self._current = _checked("Template", job_template)
        self._iterators: dict[str, Mapper] = {}
        self._maps: dict[str, Mapper] = {}
        self._lock = Lock()

    def add_iterator(self, name: str, f: Mapper) -> Self:
        """Apply `f` at every next()."""
        self._iterators[name] = f
        return self

    def next(self) -> JobTemplate:
        """Apply all iterators and return the result; if one raises, the template stays as it was."""
        with self._lock:
            template = self._current
            for name, f in tuple(self._iterators.items()):
                template = _applied("iterator", name, f, template)
            self._current = template
            return template

    def add_map(self, name: str, f: Mapper) -> Self:
        """Make `f` available to map_to() and next_map()."""
        self._maps[name] = f
        return self

    def map_to(self, name: str) -> JobTemplate:
        """Return the present template changed by the map `name`; the template itself stays as it is."""
        return _applied("map", name, self._map(name), self._current)

    def next_map(self, name: str) -> JobTemplate:
        """Advance, then map: next() and map_to() in one."""
        f = self._map(name)
        return _applied("map", name, f, self.next())

    def _map(self, name: str) -> Mapper:
        if name not in self._maps:
            raise InvalidArgumentError(f"Template has no map {name!r}:{nearest(name, self._maps)}")
        return self._maps[name]


def _checked(giver: str, value: Any) -> JobTemplate:
    if not isinstance(value, JobTemplate):
        raise TypeError(f"{giver} was given {value!r} ({type(value).__name__}), expected a JobTemplate")
    return value


def _applied(kind: str, name: str, f: Mapper, template: JobTemplate) -> JobTemplate:
    return _checked(f"Template, by its {kind} {name!r},", f(template))


def _with_variables(template: JobTemplate, variables: dict[str, str]) -> JobTemplate:
    return template.replace(job_environment={**(template.job_environment or {}), **variables})


def env_sequence(name: str, start: float, step: float = 1) -> Mapper:
    """Return an iterator that sets the variable `name` to start, start + step, start + 2·step and so on."""
    JobTemplate(job_environment={name: str(start + step)})  # refuses an impossible name, and text, at once
    steps = count()
    return lambda template: _with_variables(template, {name: str(start + next(steps) * step)})


def time_ticks(interval: float | timedelta) -> Mapper:
    """Return an iterator that waits for the next tick, every `interval` from the first call.

    It sets the environment variables wfl_iteration (1, 2, …: the number of the call) and wfl_time (RFC 3339,
    UTC). Ticks do not drift: tick n is due n intervals after the start, however long the work between them
    took. A caller who comes too late gets the latest missed tick at once, the earlier ones are left out.
    """
    length = seconds(interval, "interval")
    if not length:
        raise InvalidArgumentError("interval is 0, expected a time above 0")
    ticks = _Ticks(length)

    def tick(template: JobTemplate) -> JobTemplate:
        iteration = ticks.wait()
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return _with_variables(template, {"wfl_iteration": str(iteration), "wfl_time": now})

    return tick


class _Ticks:
    def __init__(self, length: float) -> None:
        self._length = length  # seconds
        self._start: float | None = None
        self._last = 0
        self._calls = 0
        self._lock = Lock()

    def wait(self) -> int:
        with self._lock:
            now = time.monotonic()
            if self._start is None:
                self._start = now
            self._last = max(self._last + 1, int((now - self._start) // self._length))
            time.sleep(max(0.0, self._start + self._last * self._length - now))
            self._calls += 1
            return self._calls

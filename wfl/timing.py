"""Times at the edge: a caller writes seconds or a timedelta, inside they are seconds as float."""

from __future__ import annotations

from datetime import timedelta
from math import inf, isnan
from threading import TIMEOUT_MAX

from wfl.errors import InvalidArgumentError


def _number(value: object, name: str) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected seconds or a timedelta")
    try:
        return float(value)
    except OverflowError:  # an int beyond every float
        return inf if value > 0 else -inf


def _duration(value: object, name: str) -> float:
    number = _number(value, name)
    if isnan(number) or number < 0:
        raise InvalidArgumentError(f"{name} is {value!r}, expected a duration of 0 seconds or more")
    return number


def seconds(value: float | timedelta, name: str) -> float:
    """Return the duration `value` as finite seconds >= 0; errors call it `name`."""
    number = _duration(value, name)
    if number == inf:
        raise InvalidArgumentError(f"{name} is {value!r}, expected a finite duration")
    return number


def timeout_seconds(value: float | timedelta | None, name: str = "timeout") -> float | None:
    """Return the time-out `value` as seconds >= 0, or None for one that never comes, such as infinity."""
    if value is None:
        return None
    number = _duration(value, name)
    return number if number <= TIMEOUT_MAX else None

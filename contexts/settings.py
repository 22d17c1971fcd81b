"""Settings of contexts, checked by their names before anything is contacted."""

from __future__ import annotations

import threading
from math import inf

from wfl.errors import InvalidArgumentError


def wrong(name: str, value: object, expected: str) -> TypeError:
    """What to raise for a value of another type."""
    return TypeError(f"{name} is {value!r} ({type(value).__name__}), expected {expected}")


def seconds(name: str, value: object, *, endless: bool = False) -> float:
    """A time above 0; infinite ones where they are `endless`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(name, value, "seconds")
    if not 0 < value <= threading.TIMEOUT_MAX and not (endless and value == inf):  # nor is "not a number"
        raise InvalidArgumentError(f"{name} is {value}, expected seconds above 0")
    return float(value)


def flag(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise wrong(name, value, "True or False")


def text(name: str, value: object) -> None:
    """None, or text that has something in it, and nothing that ends a header, a line or a path."""
    if value is None:
        return
    if not isinstance(value, str):
        raise wrong(name, value, "str")
    if not value.strip():
        raise InvalidArgumentError(f"{name} is empty")
    if not value.isprintable():
        raise InvalidArgumentError(f"{name} is {value!r}, with characters that cannot be printed")

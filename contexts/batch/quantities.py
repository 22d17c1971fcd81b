"""Numbers, times and machines, as several schedulers are told them and tell them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from wfl.contexts.batch.scheduler import extension
from wfl.drmaa2 import WALLCLOCK_TIME
from wfl.errors import InvalidArgumentError, UnsupportedAttributeError

if TYPE_CHECKING:
    from wfl.drmaa2 import JobTemplate

_DATE = re.compile(r"(?:\w{3} )?(\w{3}) +(\d+) (\d+):(\d+):(\d+) (\d{4})")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def divided(template: JobTemplate, name: str, by: int = 1) -> int | None:
    """An extension that is a number of things, evenly divided."""
    text = extension(template, name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not int(text) or int(text) % by:
        more = f" that {by} nodes have in equal parts" if by > 1 else ""
        raise InvalidArgumentError(f"extensions: {name} is {text!r}, expected a number above 0{more}")
    return int(text) // by


def fixed_slots(template: JobTemplate, by: str) -> int | None:
    """The number of slots, where `by` gives no range of them."""
    slots, most = template.min_slots, template.max_slots
    if most is not None and most != (slots or most):
        raise UnsupportedAttributeError(f"{by} gives a fixed number of slots: let max_slots be min_slots, or unset")
    return slots or most


def time_limit(template: JobTemplate) -> float | None:
    """The seconds by the clock after which it is to be ended."""
    return template.resource_limits.get(WALLCLOCK_TIME) if template.resource_limits else None


def hours(seconds: float) -> str:
    """A duration as HH:MM:SS, rounded up to whole seconds."""
    whole = int(-(-seconds // 1))
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def in_seconds(text: str) -> float:
    """A duration as `[[HH:]MM:]SS[.mmm]`."""
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def later(moment: datetime, *, seconds: int) -> datetime:
    """The next whole number of seconds, such as of a minute, by this machine's clock; the same if it is one."""
    return datetime.fromtimestamp(-(-moment.timestamp() // seconds) * seconds, UTC).astimezone()


def ranges(text: str) -> list[range] | None:
    """Elements, as `3`, `1-4:1,9` or `[1-5,7,10-20:5%2]` has them; None for a job that is no array."""
    if not text:
        return None
    found = []
    for part in text.strip("[]").partition("%")[0].split(","):
        begin, _, rest = part.partition("-")
        end, _, step = rest.partition(":")
        found.append(range(int(begin), int(end or begin) + 1, int(step or 1)))
    return found


def host_list(text: str) -> tuple[str, ...]:
    """The machines of a list such as `a,n[1-3,07-09]x` (RFC 29 of Flux)."""
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        head, bracket, rest = part.partition("[")
        if not bracket:
            found.append(part)
            continue
        numbers, _, tail = rest.partition("]")
        for one in numbers.split(","):
            begin, _, end = one.partition("-")
            found += [f"{head}{n:0{len(begin)}}{tail}" for n in range(int(begin), int(end or begin) + 1)]
    return tuple(found)


def english_time(text: str) -> datetime | None:
    """`Tue May 29 09:37:00 2018`, also without the weekday: this machine's time, in English whatever the language."""
    found = _DATE.match(text.strip())
    if found is None or found[1] not in _MONTHS:
        return None
    day, hour, minute, second, year = (int(found[n]) for n in range(2, 7))
    local = datetime(year, _MONTHS.index(found[1]) + 1, day, hour, minute, second)  # noqa: DTZ001 - local by intent
    return local.astimezone(UTC)

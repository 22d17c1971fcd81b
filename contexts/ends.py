"""How a job has ended, from what its shell has written, what a scheduler's record says, and what was seen before.

Pure: exit status, signal and the finer times are the job's to tell, why it ended is the scheduler's.
"""

from __future__ import annotations

import signal
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from wfl.backend import ended
from wfl.drmaa2 import JobInfo, SubState

if TYPE_CHECKING:
    from collections.abc import Callable

WHOLE = "."
"""The last line of an end: a file that lacks it is still being written."""
_SAME = timedelta(seconds=2)
"""Two clocks that differ by less agree."""
_UNSAID = frozenset({"SIGINT", "SIGPIPE"})
"""Signals of which a shell says nothing."""


class End(msgspec.Struct, frozen=True, gc=False):
    """What a job has written about its end. `refused`: why its command was never started, else None.

    `id`: what the scheduler calls it, an element by its array. `said`: its shell had something to say, which is that a
    signal ended the command (but for those it never mentions).
    """

    status: int | None
    refused: str | None
    unsaved: str | None
    said: bool
    shell: str
    host: str
    id: str
    wallclock: timedelta | None
    cpu: timedelta | None
    time: datetime


class Account(msgspec.Struct, frozen=True, gc=False):
    """What the scheduler's records say of an end. `cause`: why, where it was not the command's own doing.

    None where a record says nothing of it.
    """

    id: str
    number: int | None
    exit_status: int | None = None
    signal: int | None = None
    cause: SubState | None = None
    info: JobInfo = JobInfo()
    """Times, machines, usage, and the scheduler's words as the annotation."""
    over: bool = True
    called: str | None = None
    """What the scheduler's words in the job's log call it, where that is not `id`."""


def read_end(text: str, time: datetime) -> End | None:
    """The lines that the script has written: a name and a value each, then what `times` prints, then WHOLE."""
    *lines, last = text.removesuffix("\n").split("\n")
    if last != WHOLE:
        return None
    said: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(" ")
        said.setdefault(name, value)
    cpu = [_minutes(part) for line in lines if line[:1].isdigit() for part in line.split()]
    begun, over = said.get("begun"), said.get("over")
    return End(
        status=int(said["status"]) if "status" in said else None,
        refused=said.get("refused"),
        unsaved=said.get("unsaved"),
        said=said.get("said") == "yes",
        shell=said.get("shell", ""),
        host=said.get("host", ""),
        id=said.get("id", ""),
        wallclock=timedelta(seconds=float(over) - float(begun)) if begun and over else None,
        cpu=timedelta(seconds=sum(cpu)) if cpu else None,
        time=time,
    )


def _minutes(text: str) -> float:
    """Seconds of what `times` prints, such as 1m2.30s; some shells write a comma, after the language."""
    minutes, _, seconds = text.partition("m")
    return 60 * float(minutes) + float(seconds.rstrip("s").replace(",", "."))


def how_it_ended(
    id: str,
    end: End | None,
    account: Account | None = None,
    *,
    cause: SubState | None = None,
    began: bool = True,
    words: Callable[[], str] = str,
    listed: str | None = None,
) -> JobInfo:
    """The whole end of one job.

    `cause`: why, where the scheduler's list said so before, and `listed` its words; `began`: whether the job is known
    to have run; `words`: the last of the scheduler's log, for an end of which nobody knows more.
    """
    if end is not None and end.refused is not None:
        return ended(id, sub_state="launch_failure", annotation=end.refused, finish_time=end.time)
    info = account.info if account is not None else JobInfo()
    told = {name: value for name in info.__struct_fields__ if (value := getattr(info, name)) not in (None, (), {})}
    for name in ("id", "state"):
        told.pop(name, None)
    status = number = None
    if account is not None:
        cause, status, number = account.cause, account.exit_status, account.signal
    if cause is not None and listed is not None and listed.startswith(info.annotation or ""):  # and says more
        told["annotation"] = listed
    by = signal_name(number) if number else None
    if end is not None:
        status, by = end.status, _signal_of(end)
        told |= _told(end, info)
    elif cause is None and status is None and by is None:
        cause = "lost"
        told["annotation"] = (
            words() or info.annotation or "the job left no record of its end, and the scheduler has none"
        )
    if by is None and status is None and cause not in ("lost", "launch_failure") and (began or info.dispatch_time):
        by = "SIGKILL"  # what schedulers end a job with that does not end by itself
    return ended(
        id,
        exit_status=None if by is not None and not status else status,
        signal_name=by,
        sub_state=cause,
        incomplete=bool(end and end.unsaved),
        **told,
    )


def _told(end: End, info: JobInfo) -> dict[str, Any]:
    """What the job's own record knows better than the scheduler's, which has whole seconds."""
    begun = end.time - end.wallclock if end.wallclock is not None else None
    found = {
        "annotation": end.unsaved,
        "finish_time": _finer(info.finish_time, end.time),
        "dispatch_time": _finer(info.dispatch_time, begun),
        "wallclock_time": info.wallclock_time if end.wallclock is None else end.wallclock,
        "cpu_time": info.cpu_time or end.cpu,
        "allocated_machines": info.allocated_machines or ((end.host,) if end.host else None),
    }
    return {name: value for name, value in found.items() if value is not None}


def _signal_of(end: End) -> str | None:
    """The signal behind a status over 128, if it was one."""
    if end.status is None or end.status <= 128:  # noqa: PLR2004 - a shell's 128 + N
        return None
    name = signal_name(end.status - 128)
    silent = name in _UNSAID or (end.shell == "bash" and name == "SIGTERM")
    return name if end.said or silent else None


def signal_name(number: int) -> str | None:
    """What a signal is called here; None for a number that is none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


def _finer(coarse: datetime | None, fine: datetime | None) -> datetime | None:
    """The scheduler's time, or the file system's, if the two clocks agree."""
    if coarse is None or fine is None:
        return coarse or fine
    return fine if abs(fine - coarse) < _SAME else coarse

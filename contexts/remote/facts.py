"""What job servers say of a job, as facts in DRMAA2's terms, for both protocols. Pure functions."""

from __future__ import annotations

import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from wfl.backend import Action, ended
from wfl.drmaa2 import SUB_STATES, FrozenDict, JobInfo, JobState, fact
from wfl.errors import DrmCommunicationError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wfl.drmaa2 import SubState

_NAMES = dict(zip(JobInfo.__struct_encode_fields__, JobInfo.__struct_fields__, strict=True))
_BEFORE_ANY = 1970
_SIGNALLED = 128
_WORDS = {
    "hangup": "SIGHUP",
    "interrupt": "SIGINT",
    "quit": "SIGQUIT",
    "aborted": "SIGABRT",
    "killed": "SIGKILL",
    "segmentation fault": "SIGSEGV",
    "terminated": "SIGTERM",
}
"""Names that Go gives to signals."""

AS_WANTED: dict[Action, frozenset[JobState]] = {
    Action.SUSPEND: frozenset({JobState.SUSPENDED}),
    Action.RESUME: frozenset({JobState.RUNNING}),
    Action.HOLD: frozenset({JobState.QUEUED_HELD, JobState.REQUEUED_HELD}),
    Action.RELEASE: frozenset({JobState.QUEUED, JobState.REQUEUED, JobState.RUNNING}),
    Action.TERMINATE: frozenset({JobState.DONE, JobState.FAILED}),
    Action.KILL: frozenset({JobState.DONE, JobState.FAILED}),
}
"""States that a job is in when this was done to it: where an answer was lost, a second try may be refused for that."""


# --- version 1 --------------------------------------------------------------------------------------------


def info_of(id: str, said: bytes | msgspec.Raw) -> JobInfo:
    """A JobInfo in JSON. What a newer server adds is passed over; an end has a reason.

    Raises DrmCommunicationError for what is no JobInfo.
    """
    try:
        info = JobInfo.from_json(bytes(said))
    except InvalidArgumentError:
        info = _understood(bytes(said))
    if info.id != id:
        info = info.replace(id=id)
    if info.state.ended and info.sub_state is None:
        known = info.state is JobState.DONE or info.exit_status is not None
        info = info.replace(sub_state="exited" if known else "lost")
    return info


def _understood(said: bytes) -> JobInfo:
    """Without what is not known here."""
    try:
        given = msgspec.json.decode(said, type=dict[str, Any])
        known = {name: value for name, value in given.items() if name in _NAMES}
        if (reason := known.get("subState")) not in SUB_STATES and reason is not None:
            known |= {"subState": None, "annotation": known.get("annotation") or reason}
        return JobInfo.from_json(msgspec.json.encode(known))
    except (msgspec.DecodeError, InvalidArgumentError) as error:
        raise DrmCommunicationError(f"what the server says of a job cannot be understood: {error}") from error


# --- the compatible protocol ------------------------------------------------------------------------------


def compatible(said: Mapping[str, Any]) -> JobInfo:
    """An answer to /jobinfo that has no error. Keys are taken in any case, as Go does."""
    told = {key.lower(): value for key, value in said.items()}
    id, state = str(told.get("id") or ""), _state(told.get("state"))
    more: dict[str, Any] = {
        "allocated_machines": tuple(map(str, told.get("allocatedmachines") or ())),
        "annotation": told.get("annotation") or None,
        "submission_machine": told.get("submissionmachine") or None,
        "job_owner": told.get("jobowner") or None,
        "queue_name": told.get("queuename") or None,
        "slots": _number(told.get("slots")) or None,
        "submission_time": when(told.get("submissiontime")),
        "dispatch_time": when(told.get("dispatchtime")),
        "finish_time": when(told.get("finishtime")),
        "wallclock_time": _duration(told.get("wallclocktime")),
        "cpu_time": _duration(told.get("cputime")),
        "extensions": FrozenDict({str(k): str(v) for k, v in (told.get("extension") or {}).items()}),
    }
    if not state.ended:
        return fact(id=id, state=state, **more)
    if (
        more["dispatch_time"] and more["finish_time"]
    ):  # exact, where the protocol has whole seconds for the time between
        more["wallclock_time"] = max(timedelta(0), more["finish_time"] - more["dispatch_time"])
    return _over(id, state, told, more)


def _over(id: str, state: JobState, told: Mapping[str, Any], more: dict[str, Any]) -> JobInfo:
    """An end. The protocol has no "not known": FAILED with exit status 0 and no signal says nothing of the status."""
    code, name = _number(told.get("exitstatus")), signal_name(told.get("terminatingsignal"))
    said = str(told.get("substate") or "")
    sub_state: Any = said if said in SUB_STATES else None
    if said and sub_state is None:
        more["annotation"] = more["annotation"] or said
    if state is JobState.DONE:
        return ended(id, exit_status=0, sub_state="exited", **more)
    if name is not None:
        return ended(id, signal_name=name, sub_state=sub_state, **more)
    if code is not None and code > 0:
        return ended(id, exit_status=code, sub_state=sub_state, **more)
    never: SubState = "exited" if more["dispatch_time"] is not None else "launch_failure"
    more["annotation"] = more["annotation"] or "it failed; the server tells no exit status"
    return ended(id, sub_state=sub_state or never, **more)


def signal_name(said: object) -> str | None:
    """The name of a signal that is given by name, by number, or in the words of Go."""
    text = str(said or "").strip()
    text = _WORDS.get(text.removeprefix("signal: ").lower(), text)
    with suppress(ValueError, KeyError):
        number = signal.Signals(int(text)) if text.isdecimal() else signal.Signals[text.upper()]
        return number.name
    return None


def _state(said: object) -> JobState:
    try:
        return JobState(str(said))
    except ValueError:  # such as "unset"
        return JobState.UNDETERMINED


def when(said: object) -> datetime | None:
    """A time; Go's zero time is None."""
    with suppress(ValueError):
        found = datetime.fromisoformat(str(said or ""))
        return None if found.year < _BEFORE_ANY or found.tzinfo is None else found.astimezone(UTC)
    return None


def _number(said: object) -> int | None:
    return said if isinstance(said, int) and not isinstance(said, bool) else None


def _duration(said: object) -> timedelta | None:
    """Whole seconds; 0 is what the protocol has for "not known"."""
    number = _number(said)
    return timedelta(seconds=number) if number else None

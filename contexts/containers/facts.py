"""What the daemon says of a container, as facts in DRMAA2's terms. Pure functions."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wfl.backend import Known, ended
from wfl.drmaa2 import FrozenDict, JobInfo, JobState, JobTemplate, fact

if TYPE_CHECKING:
    from collections.abc import Mapping

RUNNING = {"running": JobState.RUNNING, "paused": JobState.SUSPENDED, "restarting": JobState.RUNNING}
"""States of a container that was started and has not ended, in DRMAA2's terms."""
OVER = ("exited", "dead", "stopped", "removing")
"""States of a container that runs no more: Docker's, and Podman's `stopped`."""
_SIGNALLED = 128
_KILLED = _SIGNALLED + signal.SIGKILL
_BEFORE_ANY = 1970
_HERE = ("input_path", "output_path", "error_path", "stage_in_files", "stage_out_files")


def living(id: str, inspected: Mapping[str, Any], machine: str) -> JobInfo:
    """What an inspection says of a container that was started and has not ended."""
    state = inspected["State"]
    return fact(
        id=id,
        state=RUNNING.get(state["Status"].lower(), JobState.UNDETERMINED),
        allocated_machines=(machine,),
        dispatch_time=when(state.get("StartedAt")),
        slots=1,
        extensions=FrozenDict(container_id=inspected["Id"]),
    )


def remembered(key: str, found: Mapping[str, Any]) -> Known:
    """The job of a container in a list, as its labels tell; its environment is not among them.

    Nor are the paths on this side that it was to read and write: anybody who may use the daemon could say that.
    """
    labels = found["Labels"]
    template = JobTemplate.from_json(labels["wfl.template"])
    template = template.replace(**dict.fromkeys(_HERE))
    index = labels.get("wfl.index")
    submitted = datetime.fromtimestamp(found["Created"], UTC)
    return Known(
        key=key,
        id=key,
        template=template,
        info=JobInfo(id=key, submission_time=submitted),
        job_id=labels["wfl.job"],
        index=None if index is None else int(index),
    )


def over(
    id: str,
    inspected: Mapping[str, Any],
    machine: str,
    trouble: str | None = None,
    *,
    guess_memory: bool = False,
    unheard: bool = False,
) -> JobInfo:
    """What an inspection says of a container that has ended; `trouble`: what had to follow its command went wrong.

    `guess_memory`: nobody else has killed it, and this daemon does not tell what its memory's limit has done.
    `unheard`: it ended while the daemon could not tell of it; by its own stop, perhaps.
    """
    state = inspected["State"]
    started, finished = when(state.get("StartedAt")), when(state.get("FinishedAt"))
    words = trouble or state.get("Error") or None
    if unheard and state["ExitCode"] > _SIGNALLED:
        words = words or "it ended while the daemon was away, or could not be heard"
    if started is None:
        return ended(id, sub_state="launch_failure", annotation=words, finish_time=finished)
    more: dict[str, Any] = {
        "allocated_machines": (machine,),
        "dispatch_time": started,
        "finish_time": finished,
        "slots": 1,
        "extensions": FrozenDict(container_id=inspected["Id"]),
        "annotation": words,
    }
    if finished is not None:
        more["finish_time"] = max(started, finished)  # a daemon's clock may be coarse
        more["wallclock_time"] = more["finish_time"] - started
    if state.get("OOMKilled"):
        more["annotation"] = words or "a process of it was killed as it needed more than its min_phys_memory"
        more["sub_state"] = "out_of_memory"
    elif guess_memory and state["ExitCode"] == _KILLED and inspected["HostConfig"].get("Memory"):
        more["annotation"] = words or "it was killed by nobody known, so most likely for more than its min_phys_memory"
        more["sub_state"] = "out_of_memory"
    return status(id, state["ExitCode"], incomplete=trouble is not None, **more)


def removed(id: str, code: int | None, machine: str, finished: datetime | None) -> JobInfo:
    """Of a container that is gone: with its exit code, if that was told before."""
    words = "its container was removed by somebody"
    if code is None:
        return ended(id, sub_state="lost", annotation=words, finish_time=finished)
    return status(id, code, annotation=words, allocated_machines=(machine,), finish_time=finished)


def status(id: str, code: int, **more: Any) -> JobInfo:
    """An end by the first process' exit code: 128 + N where that was killed by signal N."""
    name = _signal(code - _SIGNALLED)
    return ended(id, exit_status=code, signal_name=name, **more)


def _signal(number: int) -> str | None:
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


def when(text: str | None) -> datetime | None:
    """The daemon's time, with nanoseconds and any offset; its zero time is None."""
    if not text:
        return None
    found = datetime.fromisoformat(text)
    return None if found.year < _BEFORE_ANY else found.astimezone(UTC)

"""What the cluster says of pods and Jobs, as facts in DRMAA2's terms. Pure functions.

A pod's container tells how a command ended; its Job comes two seconds later and never tells an exit status, so a Job is
asked only for what no pod tells any more.
"""

from __future__ import annotations

import re
import signal
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from wfl.backend import ended
from wfl.contexts.containers.facts import status
from wfl.drmaa2 import FrozenDict, JobInfo, JobState, fact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from wfl.drmaa2 import SubState

    Object = Mapping[str, Any]

MAIN = "main"
"""The container that runs the command."""
INDEX = "batch.kubernetes.io/job-completion-index"
"""Label of an array element's pod: its number, from 0."""
NOT_FOUND = "wfl: "
"""The wrapper's words begin so where it found no command to run."""
LATE = 3.0
"""Seconds after which a pod's phase says, too, that its containers are over."""
HARMLESS = ("ContainerCreating", "PodInitializing", "")
"""Reasons for waiting that every pod has on its way."""

_NO_CLAIM = re.compile(r'persistentvolumeclaim "[^"]*" not found')
_NOT_FOUND_STATUS, _KILLED = 127, 128 + signal.SIGKILL
_OUT_OF_MEMORY = "a process of it was killed as it needed more than its min_phys_memory"
_PERHAPS = "it was killed by nobody known, perhaps as it needed more than its min_phys_memory"
_BEFORE_ANY = 1970
_NEVER_RAN = ("StartError", "ContainerCannotRun", "CreateContainerError", "CreateContainerConfigError")
_DISRUPTIONS: dict[str, SubState] = {
    "PreemptionByScheduler": "preempted",
    "PreemptionByKubeScheduler": "preempted",
    "EvictionByEvictionAPI": "evicted",
    "TerminationByKubelet": "evicted",
    "DeletionByTaintManager": "node_failure",
    "DeletionByPodGC": "node_failure",
}
"""Reasons of the condition DisruptionTarget (Kubernetes: Disruptions, pod disruption conditions)."""
_REASONS: dict[str, SubState] = {
    "DeadlineExceeded": "timeout",
    "Evicted": "evicted",
    "NodeLost": "node_failure",
    "NodeShutdown": "node_failure",
    "Shutdown": "node_failure",
    "Terminated": "node_failure",
    "Preempting": "preempted",
}
"""Reasons of a failed pod itself."""


# -- pods --


def container(pod: Object, name: str = MAIN) -> Object:
    """The state of one of a pod's containers: {"waiting" | "running" | "terminated": {…}}; empty if unknown."""
    told = pod.get("status", {})
    for one in (*told.get("containerStatuses", ()), *told.get("initContainerStatuses", ())):
        if one["name"] == name:
            state: Object = one.get("state", {})
            return state
    return {}


def started(pod: Object) -> bool:
    """Whether its command has begun."""
    state = container(pod)
    return "running" in state or when(state.get("terminated", {}).get("startedAt")) is not None


def over(pod: Object) -> bool:
    """Whether its command has ended, or never begins."""
    state = container(pod)  # a pod that is evicted has failed some seconds before its command has ended
    failed = pod.get("status", {}).get("phase") in ("Succeeded", "Failed") and "running" not in state
    return "terminated" in state or failed


def waits(pod: Object, name: str) -> bool:
    """Whether one of its helping containers runs, and waits for what is to be done with files."""
    return "running" in container(pod, name)


def went_well(pod: Object, name: str) -> bool:
    """Whether one of its helping containers has done what it was there for."""
    return bool(container(pod, name).get("terminated", {}).get("exitCode") == 0)


def disruption(pod: Object) -> tuple[SubState, str] | None:
    """Why the cluster itself ended it, where it did: the controller may then start another in its place."""
    for one in _conditions(pod, "DisruptionTarget"):
        if one.get("reason") in _DISRUPTIONS:
            return _DISRUPTIONS[one["reason"]], _words(one)
    return None


def living(id: str, pod: Object) -> JobInfo:
    """A pod that has not ended: it runs, or it waits and says why."""
    more = _place(pod)
    state = container(pod)
    if "running" in state:
        lost = disruption(pod)  # of a node that does not answer: whether it still runs there, nobody knows
        return fact(
            id=id,
            state=JobState.RUNNING,
            annotation=lost[1] if lost else None,
            dispatch_time=when(state["running"].get("startedAt")),
            slots=slots(pod),
            **more,
        )
    return fact(id=id, state=JobState.QUEUED, annotation=reason(pod), **more)


def slots(pod: Object) -> int:
    """The whole processors that its command has asked for, one at least."""
    text = str(_resources(pod).get("requests", {}).get("cpu", ""))
    return int(text) if text.isdecimal() and int(text) else 1


def _resources(pod: Object) -> Object:
    containers = pod.get("spec", {}).get("containers", ())
    found: Object = next((one.get("resources", {}) for one in containers if one["name"] == MAIN), {})
    return found


def _is_limited(pod: Object) -> bool:
    return "memory" in _resources(pod).get("limits", {})


def reason(pod: Object) -> str | None:
    """Why it does not run yet, in the cluster's own words; None where it is just on its way."""
    return stuck(pod) or next((_words(one) for one in _unscheduled(pod)), None)


def stuck(pod: Object) -> str | None:
    """Why it cannot start unless somebody does something; None where time alone may help.

    What no machine has room for is not among it: in a full cluster that is the usual way to wait.
    """
    for waiting in _waiting(pod):
        if waiting.get("reason", "") not in HARMLESS:
            return _words(waiting)
    missing = (one for one in _unscheduled(pod) if _NO_CLAIM.search(one.get("message") or ""))
    return next(map(_words, missing), None)


def _waiting(pod: Object) -> Iterator[Object]:
    told = pod.get("status", {})
    for one in (*told.get("initContainerStatuses", ()), *told.get("containerStatuses", ())):
        if "waiting" in one.get("state", {}):
            yield one["state"]["waiting"]


def _unscheduled(pod: Object) -> Iterator[Object]:
    return (one for one in _conditions(pod, "PodScheduled") if one.get("status") == "False")


def end(
    id: str,
    pod: Object,
    *,
    trouble: str | None = None,
    killed: bool = False,
    why: tuple[SubState, str] | None = None,
) -> JobInfo:
    """How a pod's command has ended.

    `trouble`: what had to follow it went wrong; `killed`: by its own program; `why`: what else has ended it.
    """
    more = {**_place(pod), "slots": slots(pod)}
    told, final = pod.get("status", {}), container(pod).get("terminated")
    sub_state, words = why or _why(pod, killed=killed)
    words = trouble or words
    if final is None:
        said = words or _failed_before(pod) or told.get("message")
        return ended(id, sub_state=sub_state or "launch_failure", annotation=_line(said), **more)
    code, cause, message = final["exitCode"], final.get("reason"), final.get("message") or ""
    begun, finished = when(final.get("startedAt")), when(final.get("finishedAt"))
    if cause == "ContainerStatusUnknown":
        return ended(id, sub_state=sub_state or "lost", annotation=words or _words(final), **more)
    not_found = code == _NOT_FOUND_STATUS and message.startswith(NOT_FOUND)
    if not_found or begun is None or cause in _NEVER_RAN:
        said = words or _line(message.removeprefix(NOT_FOUND)) or cause
        more["finish_time"] = finished
        return ended(id, sub_state=sub_state or "launch_failure", annotation=said, **more)
    if cause == "OOMKilled":
        sub_state, words = "out_of_memory", words or _OUT_OF_MEMORY
    elif code == 0:
        sub_state = None  # it was done before what was to end it came
    elif code == _KILLED and sub_state is None and _is_limited(pod):
        words = words or _PERHAPS
    more |= _times(begun, finished)
    return status(id, code, sub_state=sub_state, annotation=words, incomplete=trouble is not None, **more)


def vanished(id: str, pod: Object | None, *, killed: bool) -> JobInfo:
    """Of a job whose pod is gone without a word on how its command ended."""
    more = {} if pod is None else _place(pod)
    cause = None if pod is None else disruption(pod)
    if killed:
        return ended(id, sub_state="cancelled", finish_time=datetime.now(UTC), **more)
    sub_state, words = cause or ("lost", "its pod, or its Job, was removed by somebody")
    return ended(id, sub_state=sub_state, annotation=words, finish_time=datetime.now(UTC), **more)


def _why(pod: Object, *, killed: bool) -> tuple[SubState | None, str | None]:
    """What ended it, if not the command itself."""
    told = pod.get("status", {})
    if told.get("reason") in _REASONS and not _was_over(pod):
        return _REASONS[told["reason"]], _words(told)
    if found := disruption(pod):
        return found
    if killed:
        return "cancelled", None
    if pod["metadata"].get("deletionTimestamp"):
        return "cancelled", "its pod, or its Job, was deleted by somebody"
    return None, None


def _was_over(pod: Object) -> bool:
    """Whether its command had ended before the time of its pod was up, which then waited for its files only."""
    begun, limit = when(pod["status"].get("startTime")), pod.get("spec", {}).get("activeDeadlineSeconds")
    ended_at = when(container(pod).get("terminated", {}).get("finishedAt"))
    if pod["status"]["reason"] != "DeadlineExceeded" or begun is None or ended_at is None or limit is None:
        return False
    return bool((ended_at - begun).total_seconds() < limit)


def _failed_before(pod: Object) -> str | None:
    """The words of a container before the command's own that has failed."""
    for one in pod.get("status", {}).get("initContainerStatuses", ()):
        final = one.get("state", {}).get("terminated")
        if final and final.get("exitCode"):
            return f"its container {one['name']} failed with {final['exitCode']}: {_words(final)}"
    return None


def _place(pod: Object) -> dict[str, Any]:
    node = pod.get("spec", {}).get("nodeName")
    found: dict[str, Any] = {"extensions": FrozenDict(pod=pod["metadata"]["name"])}
    return {**found, "allocated_machines": (node,)} if node else found


def _times(begun: datetime | None, finished: datetime | None) -> dict[str, Any]:
    if begun is None or finished is None:
        return {"dispatch_time": begun, "finish_time": finished}
    finished = max(begun, finished)
    return {"dispatch_time": begun, "finish_time": finished, "wallclock_time": finished - begun}


def _conditions(found: Object, kind: str) -> Iterator[Object]:
    return (one for one in found.get("status", {}).get("conditions", ()) if one["type"] == kind)


def _words(told: Object) -> str:
    """Reason and message in one line."""
    return _line(": ".join(filter(None, (told.get("reason"), told.get("message"))))) or "no reason is given"


def _line(text: str | None) -> str | None:
    return " ".join(text.split()) if text else None


# -- Jobs --


def finished(job: Object) -> bool:
    """Whether all of a Job is over, as it says itself."""
    return any(one.get("status") == "True" for kind in ("Complete", "Failed") for one in _conditions(job, kind))


def overdue(job: Object) -> tuple[SubState, str] | None:
    """Whether a Job's own time is up, which ends its pods without a word to them."""
    for kind in ("FailureTarget", "Failed"):
        for one in _conditions(job, kind):
            if one.get("reason") == "DeadlineExceeded":
                return "timeout", _words(one)
    return None


def end_by_job(id: str, job: Object, number: int | None, *, killed: bool = False) -> JobInfo | None:
    """How a job, or the element of an array, has ended, as far as its Job tells when the pod is gone.

    None where the Job says nothing of it: it has not ended.
    """
    told = job.get("status", {})
    more: dict[str, Any] = {"finish_time": when(told.get("completionTime"))}
    failed = next((one for kind in ("Failed", "FailureTarget") for one in _conditions(job, kind)), None)
    if number is None:
        done = any(True for kind in ("Complete", "SuccessCriteriaMet") for _ in _conditions(job, kind))
        bad = failed is not None
    else:
        done = number in indexes(told.get("completedIndexes", ""))
        bad = not done and (failed is not None or number in indexes(told.get("failedIndexes", "")))
    if done and (number is not None or not bad):
        return ended(id, exit_status=0, annotation="its pod is gone; the Job says that it succeeded", **more)
    if not bad:
        return None
    if failed is not None:
        more["finish_time"] = when(failed.get("lastTransitionTime"))
    if late := overdue(job):
        return ended(id, sub_state=late[0], annotation=late[1], **more)
    if killed:
        return ended(id, sub_state="cancelled", **more)
    said = _words(failed) if failed is not None else "the element failed"
    return ended(id, sub_state="lost", annotation=f"its pod is gone, and its exit status with it; {said}", **more)


@lru_cache(maxsize=8)  # asked for each element of an array
def indexes(text: str) -> _Indexes:
    """A Job's list of elements, such as "0,4-7"."""
    return _Indexes(text)


class _Indexes:
    """As ranges: a list of ten thousand may be one."""

    def __init__(self, text: str) -> None:
        parts = (part.partition("-") for part in text.split(",") if part)
        self._ranges = [range(int(first), int(last or first) + 1) for first, _, last in parts]

    def __contains__(self, number: int) -> bool:
        return any(number in one for one in self._ranges)


def when(text: str | None) -> datetime | None:
    """The cluster's time; its zero time is None."""
    if not text:
        return None
    found = datetime.fromisoformat(text)
    return None if found.year <= _BEFORE_ANY else found.astimezone(UTC)

"""Facts of Kubernetes: what a real cluster has answered, and what is made of it (tests/data/kubernetes/answers)."""

import copy
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from wfl.contexts.kubernetes import facts
from wfl.drmaa2 import JobState

ANSWERS = Path(__file__).parent.parent / "data" / "kubernetes" / "answers"
PODS: dict[str, dict[str, Any]] = json.loads((ANSWERS / "pods.json").read_text())
JOBS: dict[str, dict[str, Any]] = json.loads((ANSWERS / "jobs.json").read_text())

MEMORY = "a process of it was killed as it needed more than its min_phys_memory"
NO_ROOM = "Unschedulable: 0/1 nodes are available: 1 Insufficient memory. no new claims to deallocate, preemption: "
NO_COMMAND = 'unable to start container process: exec: "no-such-command": executable file not found in $PATH: unknown'
DISK = "Evicted: Pod ephemeral local storage usage exceeds the total limit of containers 10Mi."
LONGER = "DeadlineExceeded: Pod was active on the node longer than the specified deadline"
DELETED = "its pod, or its Job, was deleted by somebody"
EVICTED = "EvictionByEvictionAPI: Eviction API: evicting"


def at(text: str) -> datetime:
    """A time of day of the recorded answers."""
    return datetime.fromisoformat(f"2026-11-22T{text}+00:00")


def changed(pod: Mapping[str, Any], **state: Any) -> dict[str, Any]:
    """A pod whose command has ended in another way."""
    found = copy.deepcopy(dict(pod))
    found["status"]["containerStatuses"][0]["state"]["terminated"].update(state)
    return found


def disrupted(pod: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """A pod that the cluster itself has ended."""
    found = copy.deepcopy(dict(pod))
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "says why"}
    found["status"]["conditions"].append(condition)
    return found


# --- pods that have not ended -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("new", None),
        ("crowded", "Unschedulable: 0/1 nodes are available: 1 Too many pods."),
        ("creating", None),
        ("initializing", None),
        ("no-image-here", 'ErrImageNeverPull: Container image "registry.invalid/none:1" is not present with pull'),
        ("no-image", 'ErrImagePull: failed to pull and unpack image "registry.invalid/none:1": failed to resolve'),
        ("no-image-later", 'ImagePullBackOff: Back-off pulling image "registry.invalid/none:1": ErrImagePull: fail'),
        ("no-config", 'CreateContainerConfigError: configmap "nobody" not found'),
        ("no-volume", None),
        ("too-big", NO_ROOM),
    ],
)
def test_a_pod_that_waits_says_why(name: str, begins: str | None) -> None:
    """It is QUEUED with the cluster's words in one line; with none while it is just on its way."""
    info = facts.living("k", PODS[name])
    assert (info.id, info.state) == ("k", JobState.QUEUED)
    assert not facts.over(PODS[name])
    assert not facts.started(PODS[name])
    assert info.annotation is None if begins is None else (info.annotation or "").startswith(begins)
    assert "\n" not in (info.annotation or "")


@pytest.mark.parametrize("name", ["no-image-here", "no-image", "no-image-later", "no-config"])
def test_what_somebody_must_cure_is_stuck(name: str) -> None:
    """It is told in the same words as the reason for waiting."""
    assert facts.stuck(PODS[name]) == facts.reason(PODS[name])
    assert facts.stuck(PODS[name]) is not None


@pytest.mark.parametrize("name", ["new", "crowded", "creating", "initializing", "no-volume", "too-big"])
def test_what_time_may_cure_is_not_stuck(name: str) -> None:
    """A full cluster, and what every pod goes through, do not end a job."""
    assert facts.stuck(PODS[name]) is None


def test_an_init_container_that_waits_is_stuck_too() -> None:
    """The image of a container before the command's own may be missing as well."""
    pod = copy.deepcopy(PODS["initializing"])
    pod["status"]["initContainerStatuses"][0]["state"]["waiting"] = {"reason": "ErrImagePull", "message": "no\nsuch"}
    assert facts.stuck(pod) == "ErrImagePull: no such"


def test_a_pod_that_runs_says_where_and_since_when() -> None:
    """RUNNING with node, time, slots, and the pod's name."""
    info = facts.living("k", PODS["running"])
    assert (info.state, info.allocated_machines, info.slots) == (JobState.RUNNING, ("node-1",), 1)
    assert (info.dispatch_time, info.annotation) == (at("06:23:45"), None)
    assert dict(info.extensions or {}) == {"pod": "sleeper-unit000000-23-ms9dq"}
    assert facts.started(PODS["running"])
    assert not facts.over(PODS["running"])


def test_a_pod_without_a_node_has_no_machine() -> None:
    """Before it is placed nobody knows where it will be."""
    assert facts.living("k", PODS["new"]).allocated_machines in (None, ())


def test_a_pod_that_is_being_ended_still_runs() -> None:
    """Until its command has ended; why it is to end is told meanwhile, where the cluster itself does it."""
    assert facts.living("k", PODS["deleted-early"]).state is JobState.RUNNING
    info = facts.living("k", PODS["evicted-early"])
    assert (info.state, info.annotation) == (JobState.RUNNING, EVICTED)
    assert not facts.over(PODS["evicted-early"])


def test_an_evicted_pod_whose_command_still_runs_is_not_over() -> None:
    """A node says Failed and Evicted before it ends the command, whose exit status comes seconds later."""
    assert PODS["full-disk-early"]["status"]["phase"] == "Failed"
    assert not facts.over(PODS["full-disk-early"])
    assert facts.over(PODS["full-disk"])


@pytest.mark.parametrize(("cpu", "slots"), [("2", 2), ("1", 1), ("500m", 1), ("0", 1), ("", 1), (3, 3)])
def test_slots_are_whole_processors(cpu: object, slots: int) -> None:
    """Of the container that runs the command; one at least."""
    helper = {"name": "wfl-out", "resources": {"requests": {"cpu": "7"}}}
    main = {"name": "main", "resources": {"requests": {"cpu": cpu}}}
    assert facts.slots({"spec": {"containers": [helper, main]}}) == slots


def test_slots_of_a_pod_that_asks_for_none() -> None:
    """One."""
    assert facts.slots(PODS["running"]) == facts.slots({}) == 1


def test_only_the_command_of_main_counts() -> None:
    """What a helper beside it does says nothing of the job."""
    pod = copy.deepcopy(PODS["running"])
    ended = {"name": "sidecar", "state": {"terminated": {"exitCode": 9, "startedAt": "2026-11-22T06:23:45Z"}}}
    pod["status"]["containerStatuses"].insert(0, ended)
    assert not facts.over(pod)
    assert facts.living("k", pod).state is JobState.RUNNING
    assert facts.container(pod, "sidecar") == ended["state"]
    assert facts.container(pod, "nobody") == {}


# --- ends of pods -----------------------------------------------------------------------------------------

ENDS: list[tuple[str, dict[str, Any]]] = [
    ("done", {"state": JobState.DONE, "sub_state": "exited", "exit_status": 0}),
    ("three", {"sub_state": "exited", "exit_status": 3}),
    ("killed", {"sub_state": "signaled", "exit_status": 137, "terminating_signal": "SIGKILL"}),
    ("eater", {"sub_state": "out_of_memory", "exit_status": 137, "annotation": MEMORY}),
    ("eater-child", {"sub_state": "out_of_memory", "exit_status": 0, "annotation": MEMORY}),
    ("missing", {"sub_state": "launch_failure", "exit_status": None}),
    ("missing-wrapped", {"sub_state": "launch_failure", "annotation": "no-such-command: not found"}),
    (
        "init-fails",
        {"sub_state": "launch_failure", "annotation": "its container before failed with 4: Error", "exit_status": None},
    ),
    ("full-disk", {"sub_state": "evicted", "exit_status": 143, "annotation": DISK}),
    ("limited", {"sub_state": "timeout", "exit_status": 143, "annotation": LONGER}),
    ("deleted", {"sub_state": "cancelled", "exit_status": 7, "annotation": DELETED}),
    ("forced", {"sub_state": "cancelled", "exit_status": 143, "annotation": DELETED}),
    ("evicted", {"sub_state": "evicted", "exit_status": 7, "annotation": EVICTED}),
    ("array-1", {"sub_state": "exited", "exit_status": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "wanted"), ENDS, ids=[name for name, _ in ENDS])
def test_how_commands_end(name: str, wanted: dict[str, Any]) -> None:
    """Each end that a cluster was seen to give, as state, sub_state, exit status and words."""
    assert facts.over(PODS[name])
    info = facts.end("k", PODS[name])
    expected = {"state": JobState.FAILED, **wanted}
    assert {field: getattr(info, field) for field in expected} == expected
    assert info.extensions == {"pod": PODS[name]["metadata"]["name"]} or name == "missing-wrapped"


def test_an_end_has_its_times() -> None:
    """When it began and ended, and how long that took; where it ran."""
    info = facts.end("k", PODS["limited"])
    assert (info.dispatch_time, info.finish_time) == (at("06:28:48"), at("06:28:50"))
    assert info.wallclock_time == timedelta(seconds=2)
    assert (info.allocated_machines, info.slots) == (("node-1",), 1)


def test_an_end_is_never_before_its_beginning() -> None:
    """A node's clock may be put back."""
    info = facts.end("k", changed(PODS["three"], finishedAt="2026-11-22T06:20:00Z"))
    assert (info.finish_time, info.wallclock_time) == (at("06:23:36"), timedelta(0))


def test_what_never_ran_has_no_beginning_and_the_nodes_words() -> None:
    """A command that is not there: its start is of 1970, which is no time."""
    info = facts.end("k", PODS["missing"])
    assert info.dispatch_time is None
    assert info.wallclock_time is None
    assert (info.annotation or "").endswith(NO_COMMAND)
    assert info.finish_time == at("06:23:40")
    assert not facts.started(PODS["missing"])


@pytest.mark.parametrize("reason", ["ContainerCannotRun", "CreateContainerError", "CreateContainerConfigError"])
def test_other_runtimes_have_other_words_for_what_never_ran(reason: str) -> None:
    """They are launch failures, whatever their status and times."""
    assert facts.end("k", changed(PODS["three"], reason=reason)).sub_state == "launch_failure"


def test_a_kill_that_may_have_been_for_memory() -> None:
    """A node may say so half a minute too late: killed by nobody known, and with a limit, it is said as a guess."""
    early = changed(PODS["eater"], reason="Error")
    info = facts.end("k", early)
    assert (info.sub_state, info.terminating_signal) == ("signaled", "SIGKILL")
    assert "min_phys_memory" in (info.annotation or "")
    assert facts.end("k", early, killed=True).annotation is None
    assert facts.end("k", changed(early, exitCode=143)).annotation is None
    assert facts.end("k", PODS["killed"]).annotation is None


def test_a_command_may_give_127_itself() -> None:
    """Only the wrapper's own words tell that there was no command."""
    assert facts.end("k", changed(PODS["three"], exitCode=127)).sub_state == "exited"
    assert facts.end("k", changed(PODS["missing-wrapped"], exitCode=3)).sub_state == "exited"


@pytest.mark.parametrize(
    ("reason", "sub_state"),
    [
        ("PreemptionByScheduler", "preempted"),
        ("EvictionByEvictionAPI", "evicted"),
        ("TerminationByKubelet", "evicted"),
        ("DeletionByTaintManager", "node_failure"),
        ("DeletionByPodGC", "node_failure"),
    ],
)
def test_disruptions(reason: str, sub_state: str) -> None:
    """What the cluster itself ends is not cancelled by somebody, though its pod was deleted."""
    pod = disrupted(PODS["deleted"], reason)
    info = facts.end("k", pod)
    assert (info.sub_state, info.exit_status, info.annotation) == (sub_state, 7, f"{reason}: says why")
    assert facts.disruption(pod) == (sub_state, f"{reason}: says why")


def test_other_conditions_are_no_disruption() -> None:
    """Nor are reasons that nobody knows."""
    assert facts.disruption(disrupted(PODS["deleted"], "SomethingNew")) is None
    assert facts.disruption(PODS["deleted"]) is None


@pytest.mark.parametrize(
    ("reason", "sub_state"),
    [
        ("NodeLost", "node_failure"),
        ("NodeShutdown", "node_failure"),
        ("Shutdown", "node_failure"),
        ("Terminated", "node_failure"),
        ("Preempting", "preempted"),
    ],
)
def test_a_pods_own_reasons(reason: str, sub_state: str) -> None:
    """A node that stops says so in the pod, not in its container."""
    pod = copy.deepcopy(PODS["killed"])
    pod["status"].update(reason=reason, message="Pod was\nterminated")
    info = facts.end("k", pod)
    assert (info.sub_state, info.exit_status, info.annotation) == (sub_state, 137, f"{reason}: Pod was terminated")


def test_a_container_that_its_node_does_not_find_any_more_is_lost() -> None:
    """As a node that was started anew tells it: no times, and 137 for want of anything better."""
    words = "The container could not be located when the pod was terminated"
    unknown = {"reason": "ContainerStatusUnknown", "exitCode": 137, "startedAt": None, "finishedAt": None}
    info = facts.end("k", changed(PODS["killed"], **unknown, message=words))
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "lost", None)
    assert info.annotation == f"ContainerStatusUnknown: {words}"


def test_a_pod_refused_by_its_node_never_ran() -> None:
    """It has no containers at all; its words are the pod's."""
    pod = copy.deepcopy(PODS["creating"])
    pod["status"] = {"phase": "Failed", "reason": "OutOfcpu", "message": "Pod was rejected: node has too few"}
    info = facts.end("k", pod)
    assert (info.sub_state, info.annotation) == ("launch_failure", "Pod was rejected: node has too few")


def test_what_its_program_killed_is_cancelled() -> None:
    """Without words, as who did it knows why."""
    info = facts.end("k", PODS["deleted"], killed=True)
    assert (info.sub_state, info.exit_status, info.annotation) == ("cancelled", 7, None)
    assert facts.end("k", disrupted(PODS["deleted"], "EvictionByEvictionAPI"), killed=True).sub_state == "evicted"


def test_what_was_done_before_is_done() -> None:
    """A command that returns 0 has done its work, whatever was about to end it; but not what ran out of memory."""
    for name in ("deleted", "limited", "evicted"):
        info = facts.end("k", changed(PODS[name], exitCode=0, reason="Completed"), killed=True)
        assert (info.state, info.sub_state, info.exit_status) == (JobState.DONE, "exited", 0)
    assert facts.end("k", PODS["eater-child"], killed=True).state is JobState.FAILED


def test_what_else_ended_it_goes_before() -> None:
    """A Job's time was up: its pods are deleted without a word on that."""
    info = facts.end("k", PODS["deleted"], killed=True, why=("timeout", "too long"))
    assert (info.sub_state, info.annotation, info.exit_status) == ("timeout", "too long", 7)


def test_trouble_makes_a_job_fail() -> None:
    """What had to follow went wrong: it has FAILED with its exit status and those words."""
    info = facts.end("k", PODS["done"], trouble="no files")
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "exited", 0)
    assert info.annotation == "no files"
    assert facts.end("k", PODS["eater"], trouble="no files").annotation == "no files"


def test_a_pod_that_is_gone_without_a_word() -> None:
    """Cancelled by its own program, ended by the cluster, or lost."""
    before = datetime.now(UTC)
    lost = facts.vanished("k", PODS["running"], killed=False)
    assert (lost.state, lost.sub_state, lost.exit_status) == (JobState.FAILED, "lost", None)
    assert lost.annotation == "its pod, or its Job, was removed by somebody"
    assert lost.allocated_machines == ("node-1",)
    assert before <= (lost.finish_time or before) <= datetime.now(UTC)
    assert lost.finish_time is not None
    assert facts.vanished("k", None, killed=False).sub_state == "lost"
    cancelled = facts.vanished("k", PODS["running"], killed=True)
    assert (cancelled.sub_state, cancelled.annotation) == ("cancelled", None)
    evicted = facts.vanished("k", PODS["evicted-early"], killed=False)
    assert (evicted.sub_state, evicted.annotation) == ("evicted", EVICTED)


# --- Jobs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "finished"),
    [(name, name in ("done", "three", "overdue", "array")) for name in JOBS],
)
def test_a_job_is_finished_when_it_says_so(name: str, finished: bool) -> None:  # noqa: FBT001 - a table's column
    """Complete or Failed; what goes before these two does not count, nor does a condition that is not true."""
    assert facts.finished(JOBS[name]) is finished
    other = copy.deepcopy(JOBS[name])
    for one in other["status"].get("conditions", ()):
        one["status"] = "False"
    assert not facts.finished(other)


def test_a_jobs_time_is_up() -> None:
    """As its conditions tell, also the earlier of the two."""
    late = ("timeout", "DeadlineExceeded: Job was active longer than specified deadline")
    assert facts.overdue(JOBS["overdue"]) == facts.overdue(JOBS["overdue-early"]) == late
    assert facts.overdue(JOBS["three"]) is None
    assert facts.overdue({"spec": {}}) is None


BACKOFF = "BackoffLimitExceeded: Job has reached the specified backoff limit"
GONE = "its pod is gone, and its exit status with it"
BY_JOB: list[tuple[str, int | None, dict[str, Any] | None]] = [
    ("running", None, None),
    ("held", None, None),
    ("no-account", None, None),
    ("done", None, {"state": JobState.DONE, "exit_status": 0, "finish_time": at("06:25:01")}),
    ("done-early", None, {"state": JobState.DONE, "exit_status": 0, "finish_time": None}),
    ("three", None, {"sub_state": "lost", "exit_status": None, "annotation": f"{GONE}; {BACKOFF}"}),
    ("three-early", None, {"sub_state": "lost", "exit_status": None}),
    ("overdue", None, {"sub_state": "timeout", "finish_time": at("06:23:27")}),
    ("overdue-early", None, {"sub_state": "timeout", "finish_time": at("06:23:26")}),
    ("array-early", 0, None),
    ("array", 0, {"state": JobState.DONE, "exit_status": 0}),
    ("array", 1, {"sub_state": "lost", "annotation": f"{GONE}; FailedIndexes: Job has failed indexes"}),
    ("array", 2, {"state": JobState.DONE, "exit_status": 0}),
    ("missing-wrapped-early", 0, None),
    ("missing-wrapped-early", 1, {"sub_state": "lost", "annotation": f"{GONE}; the element failed"}),
]


@pytest.mark.parametrize(("name", "number", "wanted"), BY_JOB)
def test_what_a_job_tells_when_its_pods_are_gone(name: str, number: int | None, wanted: dict[str, Any] | None) -> None:
    """DONE or FAILED without an exit status that nobody knows; None where it has not ended."""
    info = facts.end_by_job("k", JOBS[name], number)
    if wanted is None:
        assert info is None
    else:
        expected = {"state": JobState.FAILED, **wanted}
        assert info is not None
        assert {field: getattr(info, field) for field in expected} == expected


def test_a_killed_job_whose_pod_is_gone() -> None:
    """Cancelled, unless it was done before, or its time was up."""
    told = {name: facts.end_by_job("k", JOBS[name], None, killed=True) for name in ("three", "done", "overdue")}
    assert {name: info and info.sub_state for name, info in told.items()} == {
        "three": "cancelled",
        "done": "exited",
        "overdue": "timeout",
    }


def test_an_element_that_never_came_fails_with_its_array() -> None:
    """A Job that is over starts nothing more, also not what is in neither list."""
    job = copy.deepcopy(JOBS["array"])
    job["status"]["completedIndexes"] = "0"
    info = facts.end_by_job("k", job, 2)
    assert info is not None
    assert info.sub_state == "lost"


@pytest.mark.parametrize(
    ("text", "there", "absent"),
    [
        ("", (), (0, 1)),
        ("0", (0,), (1,)),
        ("0,4-7", (0, 4, 5, 7), (1, 3, 8)),
        ("1-3,5-7", (1, 2, 3, 5, 7), (0, 4, 8)),
        ("10-99999", (10, 99_999), (9, 100_000)),
    ],
)
def test_lists_of_elements(text: str, there: tuple[int, ...], absent: tuple[int, ...]) -> None:
    """Numbers and ranges, as a Job's status has them."""
    found = facts.indexes(text)
    assert all(number in found for number in there)
    assert not any(number in found for number in absent)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (None, None),
        ("", None),
        ("1970-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00Z", None),
        ("2026-11-22T06:23:20Z", at("06:23:20")),
        ("2026-11-22T07:23:20+01:00", at("06:23:20")),
        ("2026-11-22T06:23:20.523589Z", at("06:23:20.523589")),
    ],
)
def test_times(text: str | None, time: datetime | None) -> None:
    """In UTC; the times that stand for none are none."""
    assert facts.when(text) == time
    assert time is None or (facts.when(text) or time).tzinfo is UTC


def test_a_claim_that_is_not_there_is_stuck() -> None:
    """No node can be found for it, but it is no want of room: somebody has to make it."""
    message = '0/1 nodes are available: persistentvolumeclaim "data" not found.'
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    pod = {"metadata": {"name": "p"}, "spec": {}, "status": {"phase": "Pending", "conditions": [condition]}}
    assert facts.stuck(pod) == f"Unschedulable: {message}"


@pytest.mark.parametrize(
    ("finished", "sub_state"), [("2030-01-01T00:00:05Z", "exited"), ("2030-01-01T00:01:02Z", "timeout")]
)
def test_time_that_is_up_when_all_is_done(finished: str, sub_state: str) -> None:
    """A pod that waits for its files to be fetched has ended what it was to do."""
    final = {"exitCode": 3, "reason": "Error", "startedAt": "2030-01-01T00:00:02Z", "finishedAt": finished}
    pod = {
        "metadata": {"name": "p"},
        "spec": {"activeDeadlineSeconds": 60},
        "status": {
            "phase": "Failed",
            "reason": "DeadlineExceeded",
            "startTime": "2030-01-01T00:00:00Z",
            "containerStatuses": [{"name": "main", "state": {"terminated": final}}],
        },
    }
    info = facts.end("k-1", pod)
    assert (info.sub_state, info.exit_status) == (sub_state, 3)

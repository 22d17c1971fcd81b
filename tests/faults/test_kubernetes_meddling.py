"""What others do in the cluster, to pods, Jobs, quotas and nodes: the session tells what became of its jobs."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.kubernetes import NODE, Cluster, opened, reached, until
from tests.faults.machine import PATIENCE
from wfl import JobState, shell
from wfl.contexts.kubernetes.template import STARTING
from wfl.drmaa2 import WALLCLOCK_TIME
from wfl.errors import DeniedByDrmsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wfl import Job, JobInfo, Task, TaskArray, Workflow

HASTY = 2.0
"""Seconds of patience with what cannot start."""
NOWHERE: dict[str, Any] = {"candidate_machines": ("nowhere",)}
"""Fields of a job that waits for a node."""
NOBODY: dict[str, Any] = {"extensions": {"service_account": "nobody"}}
"""Fields of a job that never gets a pod."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A namespace of ours."""
    with reached() as found:
        yield found


@pytest.fixture
def flow(cluster: Cluster) -> Iterator[Workflow]:
    """A workflow of which nothing is left."""
    with opened(cluster, patience=HASTY) as found:
        yield found
    until("nothing is left", lambda: not any(cluster.held().values()))


class Gate:
    """A directory of this machine, which jobs see as /gate."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fields: dict[str, Any] = {"stage_in_files": {"/gate": f"hostpath:{path}"}}

    def twice(self, flow: Workflow, **fields: Any) -> Job:
        """A job that stays when it is run first, as it is now, and ends well when it is run again."""
        line = "echo $JOB_ID >>/gate/starts; [ $(wc -l </gate/starts) = 1 ] || exec echo again; sleep 600"
        job = started(flow.run(shell(line, **self.fields, **fields)))
        until("it has noted its start", self.starts)
        return job

    def starts(self) -> int:
        """How often it was run."""
        noted = self.path / "starts"
        return len(noted.read_text().split()) if noted.exists() else 0


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """The test's own."""
    return Gate(tmp_path)


def started(job: Job) -> Job:
    """Wait until its command runs."""
    for task in job.tasks:
        task.wait_started(PATIENCE)
    return job


def end(job: Job | Task | TaskArray) -> JobInfo:
    """Wait for its end."""
    wait = job.wait_terminated if hasattr(job, "wait_terminated") else job.wait
    wait(PATIENCE)
    found = job.info()
    assert found is not None
    return found


def queued(job: Job, words: str) -> None:
    """Wait until it waits, and says so for this reason."""
    until(f"{job!r} waits, with {words!r}", lambda: words in (job.tasks[0].info().annotation or ""))
    assert job.state is JobState.QUEUED


def is_state(job: Job, state: JobState) -> None:
    """Wait until it is in this state."""
    until(f"{job!r} is {state}", lambda: job.state is state)


def outlasts(job: Job, flow: Workflow) -> None:
    """It is not given up in a time in which another job, which began to wait later, is."""
    other = end(flow.run("true", **NOBODY))
    assert other.sub_state == "launch_failure"
    assert job.state is JobState.QUEUED


# --- pods -------------------------------------------------------------------------------------------------


def test_running_pod_deleted(cluster: Cluster, flow: Workflow) -> None:
    """The job is cancelled, with words, signal and node; there is no second pod."""
    job = started(flow.run("sleep", "600"))
    cluster.kubectl("delete", "pod", cluster.pod(job), "--wait=false")
    info = end(job)
    assert (info.state, info.sub_state) == (JobState.FAILED, "cancelled")
    assert (info.exit_status, info.terminating_signal) == (143, "SIGTERM")
    assert "deleted by somebody" in (info.annotation or "")
    assert info.allocated_machines == (NODE,)
    until("the Job is over", lambda: cluster.jobs(job)[0]["status"].get("failed"))
    until("there is no pod", lambda: not cluster.pods(job))


def test_pending_pod_deleted(cluster: Cluster, flow: Workflow) -> None:
    """A job whose pod was removed before it ran has failed, without a status, and with words."""
    job = flow.run("true", **NOWHERE)
    queued(job, "Unschedulable")
    cluster.kubectl("delete", "pod", cluster.pod(job), "--wait=false")
    info = end(job)
    assert (info.state, info.exit_status) == (JobState.FAILED, None)
    assert info.sub_state in ("cancelled", "lost")
    assert info.annotation
    assert info.dispatch_time is None


def test_element_s_pod_deleted(cluster: Cluster, flow: Workflow, gate: Gate) -> None:
    """Of an array that element is cancelled; the others go on to their ends."""
    job = started(
        flow.run_array(3, "sh", "-c", "until [ -e /gate/go ]; do sleep 0.1; done; exit $TASK_ID", **gate.fields)
    )
    elements = list(job.tasks[0])  # type: ignore[arg-type]
    until("all run", lambda: all(one.state is JobState.RUNNING for one in elements))
    cluster.kubectl("delete", "pod", cluster.pod(elements[1]), "--wait=false", "--grace-period=1")
    assert end(elements[1]).sub_state == "cancelled"
    assert [one.state for one in elements] == [JobState.RUNNING, JobState.FAILED, JobState.RUNNING]
    (gate.path / "go").touch()
    assert [end(one).exit_status for one in (elements[0], elements[2])] == [1, 3]
    assert [one.info().sub_state for one in elements] == ["exited", "cancelled", "exited"]


def test_pod_force_deleted(cluster: Cluster, flow: Workflow) -> None:
    """Nobody knows its status any more, and that is said."""
    job = started(flow.run("sleep", "600"))
    cluster.kubectl("delete", "pod", cluster.pod(job), "--force", "--grace-period=0")
    info = end(job)
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "lost", None)
    assert "pod" in (info.annotation or "")
    until("the Job is over", lambda: cluster.jobs(job)[0]["status"].get("failed"))
    assert not cluster.pods(job)


@pytest.mark.parametrize("rerunnable", [False, True])
def test_evicted(cluster: Cluster, flow: Workflow, gate: Gate, *, rerunnable: bool) -> None:
    """A job that is evicted has failed for that; one that may be run again is, in a second pod."""
    job = gate.twice(flow, rerunnable=rerunnable)
    first = cluster.pod(job)
    cluster.evict(first)
    info = end(job)
    if not rerunnable:
        assert (info.state, info.sub_state) == (JobState.FAILED, "evicted")
        assert "EvictionByEvictionAPI" in (info.annotation or "")
        until("the Job is over", lambda: cluster.jobs(job)[0]["status"].get("failed"))
        assert gate.starts() == 1
        return
    assert info.state is JobState.DONE
    assert job.output() == "again"
    assert info.extensions["pod"] != first
    assert gate.starts() == 2


def test_evicted_is_requeued(cluster: Cluster, flow: Workflow) -> None:
    """One that may be run again and finds no node any more is requeued, with the reason, until there is one."""
    job = started(flow.run("sleep", "600", rerunnable=True))
    first = cluster.pod(job)
    try:
        cluster.kubectl("cordon", NODE)
        cluster.evict(first)
        is_state(job, JobState.REQUEUED)
    finally:
        cluster.kubectl("uncordon", NODE)
    is_state(job, JobState.RUNNING)
    assert cluster.pod(job) != first


def test_out_of_memory(flow: Workflow) -> None:
    """A job that needs more than it asked for is told apart from others that were killed."""
    info = end(flow.run(shell("x=xxxxxxxx; while :; do x=$x$x; done"), min_phys_memory=16 * 1024))
    assert (info.state, info.sub_state) == (JobState.FAILED, "out_of_memory")
    assert "min_phys_memory" in (info.annotation or "")


@pytest.mark.parametrize(("kept_by", "seconds"), [("program", 2 + STARTING), ("node", 2)])
def test_wallclock_time(kept_by: str, seconds: int, cluster: Cluster, flow: Workflow) -> None:
    """The program keeps it; a pod has more, as activeDeadlineSeconds. Whoever ends it, it has timed out."""
    more: dict[str, Any] = {"extensions": {"pod_patch": "{activeDeadlineSeconds: 2}"}}
    if kept_by == "program":
        more = {"resource_limits": {WALLCLOCK_TIME: 2}}
    job = flow.run("sleep", "600", **more)
    until("there is a pod", lambda: cluster.pods(job))
    assert cluster.pods(job)[0]["spec"]["activeDeadlineSeconds"] == seconds
    info = end(job)
    assert (info.state, info.sub_state) == (JobState.FAILED, "timeout")
    assert info.annotation


# --- Jobs -------------------------------------------------------------------------------------------------


def test_running_job_deleted(cluster: Cluster, flow: Workflow) -> None:
    """A job whose Job was deleted is cancelled, with its status; its pod goes with it."""
    job = started(flow.run("sleep", "600"))
    cluster.kubectl("delete", "job", cluster.job(job), "--wait=false")
    info = end(job)
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "cancelled", 143)
    assert "deleted by somebody" in (info.annotation or "")


def test_held_job_deleted(cluster: Cluster, flow: Workflow) -> None:
    """One that has no pod yet has failed at once."""
    job = flow.run("true", submit_as_hold=True)
    assert job.state is JobState.QUEUED_HELD
    cluster.kubectl("delete", "job", cluster.job(job))
    info = end(job)
    assert (info.state, info.exit_status) == (JobState.FAILED, None)
    assert "removed by somebody" in (info.annotation or "")


def test_array_s_job_deleted(cluster: Cluster, flow: Workflow) -> None:
    """Elements that run and such that wait for their turn all end."""
    job = flow.run_array(3, "sleep", "600", max_parallel=1)
    elements = list(job.tasks[0])  # type: ignore[arg-type]
    until("one runs", lambda: any(one.state is JobState.RUNNING for one in elements))
    cluster.kubectl("delete", "job", cluster.job(job), "--wait=false")
    for one in elements:
        assert end(one).state is JobState.FAILED
        assert "by somebody" in (one.info().annotation or "")


def suspend(cluster: Cluster, job: Job, *, on: bool) -> None:
    """By somebody."""
    cluster.kubectl("patch", "job", cluster.job(job), "--patch", json.dumps({"spec": {"suspend": on}}))


def test_running_job_suspended(cluster: Cluster, flow: Workflow, gate: Gate) -> None:
    """Kubernetes ends what runs then: it is requeued and held, and begins anew when it is released."""
    job = gate.twice(flow)
    suspend(cluster, job, on=True)
    is_state(job, JobState.REQUEUED_HELD)
    assert "begins anew" in (job.tasks[0].info().annotation or "")
    suspend(cluster, job, on=False)
    info = end(job)
    assert (info.state, info.exit_status) == (JobState.DONE, 0)
    assert job.output() == "again"


def test_running_job_suspended_and_released_here(cluster: Cluster, flow: Workflow, gate: Gate) -> None:
    """What somebody has held can be released by the session."""
    job = gate.twice(flow)
    suspend(cluster, job, on=True)
    is_state(job, JobState.REQUEUED_HELD)
    assert end(job.release()).state is JobState.DONE


def test_waiting_job_suspended(cluster: Cluster, flow: Workflow) -> None:
    """One that has not begun is held by that, and waits again when it is released."""
    job = flow.run("true", **NOWHERE)
    queued(job, "Unschedulable")
    suspend(cluster, job, on=True)
    is_state(job, JobState.QUEUED_HELD)
    suspend(cluster, job, on=False)
    is_state(job, JobState.QUEUED)
    queued(job, "Unschedulable")


def test_held_job_released(cluster: Cluster, flow: Workflow) -> None:
    """What the session holds may be released by somebody."""
    job = flow.run("echo", "released", submit_as_hold=True)
    until("the Job is seen", lambda: cluster.jobs(job))
    suspend(cluster, job, on=False)
    assert end(job).state is JobState.DONE
    assert job.output() == "released"


# --- what waits -------------------------------------------------------------------------------------------


def test_cordoned_node(cluster: Cluster, flow: Workflow) -> None:
    """A job waits, and says for what, until the node takes pods again."""
    try:
        cluster.kubectl("cordon", NODE)
        job = flow.run("true")
        queued(job, "unschedulable")
    finally:
        cluster.kubectl("uncordon", NODE)
    assert end(job).state is JobState.DONE


def test_no_node_has_room(flow: Workflow) -> None:
    """What no node has room for waits for ever, with the scheduler's words."""
    job = flow.run("true", min_phys_memory=1 << 40)
    queued(job, "Insufficient memory")
    outlasts(job, flow)


def test_quota_of_pods(cluster: Cluster, flow: Workflow) -> None:
    """A job waits, and says so, while others use the quota up; when it is raised it runs."""
    cluster.kubectl("create", "quota", "few", "--hard=pods=1")
    try:
        until("the quota is known", lambda: cluster.kubectl("get", "quota", "few", "--output=jsonpath={.status.hard}"))
        first = started(flow.run("sleep", "600"))
        job = flow.run("true")
        queued(job, "exceeded quota")
        outlasts(job, flow)
        cluster.kubectl("patch", "quota", "few", "--patch", '{"spec": {"hard": {"pods": "9"}}}')
        until("it has ended", lambda: job.state.ended, 2 * PATIENCE)  # the cluster tries again after up to a minute
        assert end(job).state is JobState.DONE
        assert first.state is JobState.RUNNING
    finally:
        cluster.kubectl("delete", "quota", "few")


@pytest.mark.parametrize("counted", ["jobs.batch", "configmaps"])
def test_quota_of_objects(counted: str, cluster: Cluster, flow: Workflow) -> None:
    """A job that may not be made is refused at once, in the server's words; nothing of it is left."""
    there = 1 if counted == "configmaps" else 0  # the cluster's own
    cluster.kubectl("create", "quota", "none", f"--hard=count/{counted}={there}")
    try:
        until("the quota is known", lambda: cluster.kubectl("get", "quota", "none", "--output=jsonpath={.status.used}"))
        fields: dict[str, Any] = {"stage_in_files": {"/etc/greeting": "inline:hello"}}
        jobs = [flow.run("true", **fields), flow.run_array(2, "true", **fields)]
        for job in jobs:
            info = end(job)
            assert (info.state, info.sub_state) == (JobState.FAILED, "launch_failure")
            assert isinstance(job.last_error, DeniedByDrmsError)
            assert "exceeded quota: none" in str(job.last_error)
        until("nothing is there", lambda: not any(cluster.held().values()))
    finally:
        cluster.kubectl("delete", "quota", "none")


HOPELESS: dict[str, tuple[dict[str, Any], str]] = {
    "image never pulled": ({"job_category": "no:1", "extensions": {"pull": "never"}}, "ErrImageNeverPull"),
    "image nowhere": ({"job_category": "127.0.0.1:9/no:1"}, "mage"),
    "configmap as file": ({"stage_in_files": {"/in": "configmap:missing-one"}}, '"missing-one" not found'),
    "secret as variables": ({"extensions": {"env_from": "secret:missing-one"}}, '"missing-one" not found'),
    "service account": ({"extensions": {"service_account": "missing-one"}}, '"missing-one" not found'),
}  # fmt: skip
"""What waits for ever by itself, and a word of what the cluster says."""


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("case", HOPELESS)
def test_hopeless(case: str, cluster: Cluster, flow: Workflow, *, array: bool) -> None:
    """What can never start waits with the cluster's words, is given up after the patience, and leaves no pod."""
    fields, words = HOPELESS[case]
    job = flow.run_array(3, "true", **fields) if array else flow.run("true", **fields)
    for task in job.tasks[0] if array else job.tasks:  # type: ignore[union-attr]
        info = end(task)
        assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "launch_failure", None)
        assert words in (info.annotation or "")
        assert f"{HASTY:g} s" in (info.annotation or "")
    until("no pod is left", lambda: not cluster.pods(job))


def test_missing_namespace(cluster: Cluster) -> None:
    """It is said at once, and named."""
    with opened(cluster, namespace="wfl-nowhere") as flow:
        for job in (flow.run("true"), flow.run_array(2, "true")):
            info = end(job)
            assert (info.state, info.sub_state) == (JobState.FAILED, "launch_failure")
            assert '"wfl-nowhere" not found' in str(job.last_error)


# --- the cluster's own doing ------------------------------------------------------------------------------


@pytest.fixture
def classes(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Two priority classes, both below that of all others."""
    names = (f"wfl-faults-low-{uuid.uuid4().hex[:8]}", f"wfl-faults-high-{uuid.uuid4().hex[:8]}")
    for name, value in zip(names, (-100, -50), strict=True):
        cluster.kubectl("create", "priorityclass", name, f"--value={value}")
    yield names
    cluster.kubectl("delete", "priorityclass", *names)


@pytest.mark.parametrize("rerunnable", [False, True])
def test_preempted(cluster: Cluster, classes: tuple[str, str], flow: Workflow, gate: Gate, *, rerunnable: bool) -> None:
    """What needs the node gives way to what is worth more: it has failed for that, or is run again later."""
    low, high = classes
    all_of_it = int(cluster.client.get("nodes", NODE)["status"]["allocatable"]["cpu"])
    loser = gate.twice(flow, queue_name=low, min_slots=all_of_it, rerunnable=rerunnable)
    winner = started(flow.run("sleep", "600", queue_name=high, min_slots=all_of_it))
    if not rerunnable:
        info = end(loser)
        assert (info.state, info.sub_state) == (JobState.FAILED, "preempted")
        assert "reempt" in (info.annotation or "")
        return
    is_state(loser, JobState.REQUEUED)
    winner.kill()
    assert end(loser).state is JobState.DONE
    assert loser.output() == "again"


@pytest.mark.parametrize("rerunnable", [False, True])
def test_tainted_node(cluster: Cluster, flow: Workflow, gate: Gate, *, rerunnable: bool) -> None:
    """A node that gets rid of its pods has ended the job, as the cluster says, or makes it run again."""
    job = gate.twice(flow, rerunnable=rerunnable)
    alone(cluster)
    try:
        cluster.kubectl("taint", "node", NODE, "wfl-faults=here:NoExecute")
        until("the pod is to go", lambda: job.state is not JobState.RUNNING, 4)
    finally:
        cluster.kubectl("taint", "node", NODE, "wfl-faults-")
    info = end(job)
    if rerunnable:
        assert info.state is JobState.DONE
        assert gate.starts() == 2
    else:
        assert (info.state, info.sub_state) == (JobState.FAILED, "node_failure")
        assert "DeletionByTaintManager" in (info.annotation or "")


def alone(cluster: Cluster) -> None:
    """Nobody else's pods are to be ended."""
    try:
        until("no other pods are on the node", lambda: not cluster.strangers(), PATIENCE / 2)
    except AssertionError:
        pytest.skip(f"others have pods on the node that would be ended: {cluster.strangers()}")


# --- what belongs to whom ---------------------------------------------------------------------------------

HIDDEN = "wfl-Secret-word"


@pytest.fixture
def foreign(cluster: Cluster) -> Iterator[dict[str, set[str]]]:
    """What somebody else has in the namespace, by kind."""
    data = {"text": "not ours"}
    told = {"apiVersion": "v1", "metadata": {"name": "foreign"}}
    cluster.create(**told, kind="ConfigMap", data=data)
    cluster.create(**told, kind="Secret", stringData=data)
    spec: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    cluster.create(**told, kind="PersistentVolumeClaim", spec=spec)
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "600"]}],
    }
    template = {"metadata": {"labels": {"wfl/session": "foreign"}}, "spec": pod}
    cluster.create(**{**told, "apiVersion": "batch/v1"}, kind="Job", spec={"template": template})
    until("its pod is there", lambda: cluster.held()["pods"])
    yield cluster.held()
    cluster.kubectl("delete", "job,configmap,secret,pvc", "foreign", "--wait=false")
    until("nothing is left", lambda: not any(cluster.held().values()))


def test_all_that_was_made_goes(
    cluster: Cluster, foreign: dict[str, set[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After reaping nothing of any kind is left but what is others'; a secret was nowhere but in Secrets."""
    caplog.set_level(logging.DEBUG)
    (tmp_path / "file").write_text("copied")
    staged = {
        "/in/inline": "inline:hello",
        "/in/secret": f"inline-secret:{HIDDEN}",
        "/in/file": str(tmp_path / "file"),
        "/foreign": "configmap:foreign/text",
        "/hidden": "secret:foreign/text",
    }
    digest = hashlib.md5(HIDDEN.encode()).hexdigest()[:8]  # noqa: S324 - busybox has it
    with opened(cluster) as flow:
        jobs = [
            flow.run(
                shell(
                    f"cat /in/inline /in/file /foreign /hidden; [ $(cat /in/secret | md5sum | head -c 8) = {digest} ]"
                ),
                stage_in_files=staged,
            ),
            flow.run_array(2, "cat", "/in/secret", stage_in_files={"/in/secret": f"inline-secret:{HIDDEN}"}),
            flow.run("false", stage_in_files={"/in/inline": "inline:hello"}),
        ]
        claiming = flow.run("true", stage_in_files={"/data": "new-claim:no-such-class:1Gi"})
        assert [end(job).state for job in jobs] == [JobState.DONE, JobState.DONE, JobState.FAILED]
        assert jobs[0].output() == "hellocopiednot oursnot ours"
        held = cluster.held()
        assert {kind: len(held[kind] - foreign[kind]) for kind in held} == {
            "configmaps": 2, "jobs": 4, "persistentvolumeclaims": 1, "pods": 5, "secrets": 2,
        }  # fmt: skip
        told = [one for kind in ("jobs", "pods", "configmaps", "events") for one in cluster.client.list(kind)[0]]
        told += [one["metadata"] for one in cluster.client.list("secrets")[0]]
        claiming.kill()
        end(claiming)
        for job in (*jobs, claiming):
            job.reap_all()
        until("all of ours has gone", lambda: cluster.held() == foreign)
        assert '"phase": "Active"' in json.dumps(cluster.client.get("namespaces", cluster.namespace))
    shown = json.dumps(told) + caplog.text
    for text in (HIDDEN, base64.b64encode(HIDDEN.encode()).decode()):
        assert text not in shown
    assert cluster.held() == foreign

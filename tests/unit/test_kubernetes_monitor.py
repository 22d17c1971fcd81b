"""KubernetesMonitor: a cluster's Jobs, nodes and priority classes, as its lists have them."""

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from wfl.contexts.kubernetes import monitor as module
from wfl.contexts.kubernetes.client import NotThereError
from wfl.contexts.kubernetes.monitor import KubernetesMonitor, machine, of_job, quantity
from wfl.contexts.kubernetes.settings import Place
from wfl.drmaa2 import JobState
from wfl.errors import DeniedByDrmsError, DrmCommunicationError

ANSWERS = Path(__file__).parent.parent / "data" / "kubernetes" / "answers"
PODS: dict[str, dict[str, Any]] = json.loads((ANSWERS / "pods.json").read_text())
JOBS: dict[str, dict[str, Any]] = json.loads((ANSWERS / "jobs.json").read_text())
NODE: dict[str, Any] = {
    "metadata": {"name": "node-1"},
    "spec": {},
    "status": {
        "capacity": {"cpu": "2", "memory": "24684092Ki", "pods": "250"},
        "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
        "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux", "kernelVersion": "6.1.0"},
    },
}
Listed = list[dict[str, Any]]


class Server:
    """Stands for the client: lists are as a test gives them, by kind; an error is raised."""

    def __init__(self) -> None:
        self.lists: dict[str, Listed | Exception] = {}
        self.asked: list[tuple[str, str, bool]] = []
        self.denied = False  # to look beyond the namespace
        self.away = False
        self.closed = 0

    def __call__(self, place: Place) -> "Server":
        """As the class of clients."""
        assert place == Place()
        return self

    def version(self) -> str:
        """It is there."""
        if self.away:
            raise DrmCommunicationError("nobody is there")
        return "v1.34.4"

    def list(self, kind: str, selector: str = "", *, everywhere: bool = False) -> tuple[Listed, str]:
        """What the test has said."""
        self.asked.append((kind, selector, everywhere))
        if everywhere and self.denied:
            raise DeniedByDrmsError("the right to list jobs in the cluster is missing")
        answer = self.lists.get(kind, [])
        if isinstance(answer, Exception):
            raise answer
        return answer, "1"

    def close(self) -> None:
        """Only counted."""
        self.closed += 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """An empty cluster."""
    made = Server()
    monkeypatch.setattr(module, "Client", made)
    return made


def of(name: str, change: Callable[[dict[str, Any]], object] | None = None) -> dict[str, Any]:
    """A recorded Job, changed."""
    found = copy.deepcopy(JOBS[name])
    if change is not None:
        change(found)
    return found


# --- jobs -------------------------------------------------------------------------------------------------


def test_it_greets_the_server(server: Server) -> None:
    """What cannot be reached is said when it is made; closing closes the connections."""
    KubernetesMonitor(Place()).close()
    assert server.closed == 1
    server.away = True
    with pytest.raises(DrmCommunicationError):
        KubernetesMonitor(Place())


def test_all_jobs_are_two_lists(server: Server) -> None:
    """Of all namespaces; what has ended is not among them."""
    server.lists = {"jobs": list(JOBS.values()), "pods": list(PODS.values())}
    infos = {info.id: info for info in KubernetesMonitor(Place()).jobs(None)}
    assert server.asked == [("jobs", "", True), ("pods", "batch.kubernetes.io/job-name", True)]
    running = infos["unit000000-23"]
    assert (running.state, running.allocated_machines) == (JobState.RUNNING, ("node-1",))
    assert running.submission_time == datetime(2026, 11, 22, 6, 23, 20, tzinfo=UTC)
    assert dict(running.extensions or {}) == {
        "pod": "sleeper-unit000000-23-ms9dq",
        "namespace": "wfl-unit",
        "job": "sleeper-unit000000-23",
        "image": "busybox:1",
        "session": "unit",
    }
    assert infos["unit000000-21"].state is JobState.QUEUED_HELD
    assert infos["unit000000-17"].state is JobState.QUEUED
    assert not {"unit000000-1", "unit000000-2", "unit000000-22.0"} & infos.keys()


def test_where_one_may_not_look_beyond_the_namespace(server: Server) -> None:
    """Its own Jobs are shown."""
    server.denied = True
    server.lists = {"jobs": [of("running")], "pods": [PODS["running"]]}
    assert [info.id for info in KubernetesMonitor(Place()).jobs(None)] == ["unit000000-23"]
    assert server.asked[1:] == [("jobs", "", False), ("pods", "batch.kubernetes.io/job-name", False)]


def test_a_sessions_jobs_are_asked_for_by_label(server: Server) -> None:
    """In the context's namespace; a name that no label can hold by its digest."""
    monitor = KubernetesMonitor(Place())
    monitor.jobs("unit")
    assert server.asked == [("jobs", "wfl/session=unit", False), ("pods", "wfl/session=unit", False)]
    monitor.jobs("ä")
    assert server.asked[2][1].startswith("wfl/session=sha1-")


def test_pods_belong_to_the_job_of_their_own_namespace(server: Server) -> None:
    """Names are used in several."""
    other = copy.deepcopy(PODS["running"])
    other["metadata"]["namespace"] = "elsewhere"
    server.lists = {"jobs": [of("running")], "pods": [other]}
    (info,) = KubernetesMonitor(Place()).jobs(None)
    assert info.state is JobState.QUEUED


def test_jobs_of_others_have_their_names() -> None:
    """Namespace and name are their ids; their class of priority is their queue."""

    def foreign(job: dict[str, Any]) -> None:
        job["metadata"] = {"name": "x", "namespace": "n", "creationTimestamp": "2026-11-22T06:23:20Z"}
        job["spec"]["template"]["spec"]["priorityClassName"] = "high"

    (info,) = of_job(of("running", foreign), [])
    assert (info.id, info.state, info.queue_name) == ("n/x", JobState.QUEUED, "high")
    assert dict(info.extensions or {}) == {"namespace": "n", "job": "x", "image": "busybox:1"}
    foreigners = of("array-early", foreign)
    assert [one.id for one in of_job(foreigners, [])] == ["n/x.0", "n/x.1", "n/x.2"]


@pytest.mark.parametrize(
    ("why", "state"),
    [
        ("held", JobState.QUEUED_HELD),
        ("waiting", JobState.QUEUED_HELD),
        ("making", JobState.QUEUED_HELD),
        ("paused", JobState.SUSPENDED),
        (None, JobState.QUEUED_HELD),
    ],
)
def test_suspended_jobs(why: str | None, state: JobState) -> None:
    """Held, by whomever, or suspended after they ran; also while a pod is left that has ended."""

    def suspended(job: dict[str, Any]) -> None:
        job["spec"]["suspend"] = True
        job["metadata"]["annotations"].pop("wfl/suspended", None)
        if why is not None:
            job["metadata"]["annotations"]["wfl/suspended"] = why

    job = of("running", suspended)
    assert [info.state for info in of_job(job, [])] == [state]
    assert [info.state for info in of_job(job, [PODS["three"]])] == [state]


def test_cancelled_jobs_have_ended() -> None:
    """They will never run."""
    job = of("held", lambda job: job["metadata"]["annotations"].update({"wfl/suspended": "cancelled"}))
    assert list(of_job(job, [])) == []


def test_a_job_whose_pod_has_ended_has_ended() -> None:
    """The Job says so two seconds later."""
    assert list(of_job(of("running"), [PODS["three"]])) == []


def test_the_latest_pod_counts() -> None:
    """One that was evicted goes before its successor."""
    first = copy.deepcopy(PODS["evicted"])
    first["metadata"]["creationTimestamp"] = "2026-11-22T06:00:00Z"
    for pods in ([first, PODS["running"]], [PODS["running"], first]):
        (info,) = of_job(of("running"), pods)
        assert info.state is JobState.RUNNING


def test_elements_of_an_array() -> None:
    """Those that have not ended, by their own indexes."""
    job = of("array-early", lambda job: job["metadata"]["annotations"].update({"wfl/indexes": "5:11:2"}))
    assert [info.id for info in of_job(job, [])] == ["unit000000-22.5", "unit000000-22.7", "unit000000-22.9"]
    job["status"].update(completedIndexes="0", failedIndexes="2")
    assert [info.id for info in of_job(job, [])] == ["unit000000-22.7"]
    pod = copy.deepcopy(PODS["array-1"])
    assert list(of_job(job, [pod])) == []
    pod["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": "2026-11-22T06:23:43Z"}}
    pod["status"]["phase"] = "Running"
    (info,) = of_job(job, [pod])
    assert (info.id, info.state) == ("unit000000-22.7", JobState.RUNNING)


# --- nodes and queues -------------------------------------------------------------------------------------


def test_machines(server: Server) -> None:
    """Name, processors, KiB, system; the load where there are metrics."""
    server.lists = {
        "nodes": [NODE, {**NODE, "metadata": {"name": "node-2"}}],
        "metrics.k8s.io/v1beta1/nodes": [{"metadata": {"name": "node-1"}, "usage": {"cpu": "1500m", "memory": "1Gi"}}],
    }
    one, two = KubernetesMonitor(Place()).machines()
    assert (one.name, one.available, one.cores, one.phys_memory) == ("node-1", True, 2, 24_684_092)
    assert (one.load, two.load) == (1.5, None)
    assert (str(one.machine_os), one.machine_os_version, str(one.machine_arch)) == ("LINUX", "6.1.0", "X64")


@pytest.mark.parametrize("error", [NotThereError("no such path"), DeniedByDrmsError("missing")])
def test_machines_without_metrics(server: Server, error: Exception) -> None:
    """Most clusters have no such server."""
    server.lists = {"nodes": [NODE], "metrics.k8s.io/v1beta1/nodes": error}
    (one,) = KubernetesMonitor(Place()).machines()
    assert one.load is None


def test_machines_that_take_nothing() -> None:
    """Cordoned, or not ready: not available."""
    cordoned = {**NODE, "spec": {"unschedulable": True}}
    unready = {**NODE, "status": {**NODE["status"], "conditions": [{"type": "Ready", "status": "Unknown"}]}}
    assert [machine(node, None).available for node in (NODE, cordoned, unready)] == [True, False, False]


def test_queues_are_priority_classes(server: Server) -> None:
    """By name."""
    server.lists = {"priorityclasses": [{"metadata": {"name": "high"}}, {"metadata": {"name": "low"}}]}
    assert [queue.name for queue in KubernetesMonitor(Place()).queues()] == ["high", "low"]


def test_categories_are_images(server: Server) -> None:
    """By tags, each once; one without a tag by its digest, one without any name not at all."""
    tagged = {"names": ["docker.io/library/a@sha256:0", "docker.io/library/a:1", "docker.io/library/a:2"]}
    listed = [[tagged, {"names": ["b@sha256:1", "<none>:<none>"]}, {}, {"names": None}], [tagged], None]
    server.lists = {"nodes": [{**NODE, "status": {"images": images}} for images in listed]}
    found = ["b@sha256:1", "docker.io/library/a:1", "docker.io/library/a:2"]
    assert KubernetesMonitor(Place()).categories() == found


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (None, None),
        ("2", 2),
        ("0.5", 0.5),
        ("250m", 0.25),
        ("1500000u", 1.5),
        ("250000000n", 0.25),
        ("24684092Ki", 24_684_092 * 1024),
        ("512Mi", 512 << 20),
        ("2Gi", 2 << 30),
        ("1Ti", 1 << 40),
        ("5k", 5000),
        ("5M", 5_000_000),
        ("5G", 5_000_000_000),
        ("1e3", 1000),
        ("2T", 2 * 10**12),
        ("1Pi", 1 << 50),
    ],
)
def test_quantities(text: str | None, number: float | None) -> None:
    """Kubernetes' own notation, with all its units."""
    assert quantity(text) == (None if number is None else pytest.approx(number))

"""A cluster as it is looked at: nodes are machines, priority classes queues, and images job categories."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wfl.backend import Monitor
from wfl.contexts import host
from wfl.contexts.kubernetes import facts
from wfl.contexts.kubernetes.client import Client, NotThereError
from wfl.contexts.kubernetes.jobs import CANCELLED, KEY, PAUSED, suspension
from wfl.contexts.kubernetes.template import label_value
from wfl.drmaa2 import FrozenDict, JobInfo, JobState, MachineInfo, QueueInfo, fact
from wfl.errors import DeniedByDrmsError, TryLaterError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from wfl.contexts.kubernetes.settings import Place

    Object = Mapping[str, Any]

_UNITS: dict[str, float] = {
    "": 1,
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "k": 1e3,
    **{letter: 1000.0**power for power, letter in enumerate("KMGTPE", 1)},
    **{f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)},
}


class KubernetesMonitor(Monitor):
    """Each call is one or two lists, however many Jobs and nodes there are.

    Jobs are those of all namespaces where that may be asked, else those of the context's. The id of one that is not
    wfl's is its namespace and name. extensions: namespace, job, image, and session where wfl made it.
    """

    def __init__(self, place: Place) -> None:
        self._client = Client(place)
        self._client.version()

    def jobs(self, session_name: str | None) -> Sequence[JobInfo]:
        """By a list of Jobs and one of pods; a session's by their labels, in the context's namespace."""
        selector = "" if session_name is None else f"wfl/session={label_value(session_name)}"
        found, pods = self._lists(selector, everywhere=session_name is None)
        by_job: dict[tuple[str, str], list[Object]] = {}
        for pod in pods:
            owner = pod["metadata"].get("labels", {}).get("batch.kubernetes.io/job-name", "")
            by_job.setdefault((pod["metadata"]["namespace"], owner), []).append(pod)
        infos: list[JobInfo] = []
        for job in found:
            if not facts.finished(job):
                infos += of_job(job, by_job.get((job["metadata"]["namespace"], job["metadata"]["name"]), []))
        return infos

    def _lists(self, selector: str, *, everywhere: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        with suppress(DeniedByDrmsError):
            if everywhere:
                jobs, _ = self._client.list("jobs", everywhere=True)
                pods, _ = self._client.list("pods", "batch.kubernetes.io/job-name", everywhere=True)
                return jobs, pods
        jobs, _ = self._client.list("jobs", selector)
        pods, _ = self._client.list("pods", selector or "batch.kubernetes.io/job-name")
        return jobs, pods

    def machines(self) -> Sequence[MachineInfo]:
        """The nodes, with the load in processors where the cluster has a metrics server."""
        nodes, _ = self._client.list("nodes")
        used: dict[str, Object] = {}
        with suppress(NotThereError, DeniedByDrmsError, TryLaterError):
            metrics, _ = self._client.list("metrics.k8s.io/v1beta1/nodes")
            used = {one["metadata"]["name"]: one["usage"] for one in metrics}
        return [machine(node, used.get(node["metadata"]["name"])) for node in nodes]

    def queues(self) -> Sequence[QueueInfo]:
        """The priority classes, which `queue_name` may name."""
        found, _ = self._client.list("priorityclasses")
        return [QueueInfo(name=one["metadata"]["name"]) for one in found]

    def categories(self) -> Sequence[str]:
        """The images that nodes tell of, which are 50 of each at most, by the names that begin with a registry."""
        nodes, _ = self._client.list("nodes")
        return sorted({name for node in nodes for image in node["status"].get("images") or () for name in names(image)})

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def of_job(job: Object, pods: Sequence[Object]) -> Iterator[JobInfo]:
    """The jobs that one Job is: itself, or the elements of an array that have not ended."""
    told, labels = job["metadata"], job["metadata"].get("labels", {})
    annotations = told.get("annotations") or {}
    id = labels.get(KEY, f"{told['namespace']}/{told['name']}")
    state = JobState.QUEUED
    why = suspension(job)
    if why == CANCELLED:
        return
    if why is not None:
        state = JobState.SUSPENDED if why == PAUSED else JobState.QUEUED_HELD
    session = {"session": annotations["wfl/session"]} if "wfl/session" in annotations else {}
    image = job["spec"]["template"]["spec"]["containers"][0].get("image", "")
    more = {
        "submission_time": datetime.fromisoformat(told["creationTimestamp"]).astimezone(UTC),
        "extensions": FrozenDict(namespace=told["namespace"], job=told["name"], image=image, **session),
        "queue_name": job["spec"]["template"]["spec"].get("priorityClassName"),
    }
    latest = {_number(pod): pod for pod in sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])}
    for number, one in _tasks(job, id):
        pod = latest.get(number)
        if pod is None or (facts.over(pod) and state is not JobState.QUEUED):
            yield fact(id=one, state=state, **more)
        elif not facts.over(pod):
            living = facts.living(one, pod)
            yield living.replace(**{**more, "extensions": FrozenDict({**living.extensions, **more["extensions"]})})


def _number(pod: Object) -> int | None:
    text = pod["metadata"].get("labels", {}).get(facts.INDEX)
    return None if text is None else int(text)


def _tasks(job: Object, id: str) -> Iterator[tuple[int | None, str]]:
    """The numbers of a Job's tasks that have not ended, and their ids."""
    spec, told = job["spec"], job.get("status", {})
    if spec.get("completionMode") != "Indexed":
        yield None, id
        return
    indexes = (job["metadata"].get("annotations") or {}).get("wfl/indexes")
    numbers = range(*map(int, indexes.split(":"))) if indexes else range(spec["completions"])
    ended = facts.indexes(told.get("completedIndexes", "")), facts.indexes(told.get("failedIndexes", ""))
    for number, index in enumerate(numbers):
        if not any(number in some for some in ended):
            yield number, f"{id}.{index}"


def names(image: Object) -> list[str]:
    """Of an image on a node: its tags, or where it has none its digests."""
    known = [name for name in image.get("names") or () if "<none>" not in name]
    return [name for name in known if "@" not in name] or known


def machine(node: Object, used: Object | None) -> MachineInfo:
    """A node; what pods may have of it is a little less than what it has."""
    told, spec = node["status"], node.get("spec", {})
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in told.get("conditions", ()))
    info, capacity = told.get("nodeInfo", {}), told.get("capacity", {})
    memory = quantity(capacity.get("memory"))
    load = quantity((used or {}).get("cpu"))
    return MachineInfo(
        name=node["metadata"]["name"],
        available=ready and not spec.get("unschedulable", False),
        cores=None if (cores := quantity(capacity.get("cpu"))) is None else int(cores),
        load=load,
        phys_memory=None if memory is None else int(memory) // 1024,
        machine_os=host.os_name(info["operatingSystem"]) if "operatingSystem" in info else None,
        machine_os_version=info.get("kernelVersion"),
        machine_arch=host.architecture(info["architecture"]) if "architecture" in info else None,
    )


def quantity(text: str | None) -> float | None:
    """Kubernetes' numbers with units, such as "250m", "24684Ki" or "1e3"."""
    form = re.fullmatch(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)([a-zA-Z]*)", text or "")
    if form is None or form[2] not in _UNITS:
        return None
    return float(form[1]) * _UNITS[form[2]]

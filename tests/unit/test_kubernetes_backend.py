"""KubernetesBackend: on a cluster in memory, which tells what a test lets happen and notes what it is asked for."""

import copy
import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from wfl import JobTemplate
from wfl.backend import INDEX, Action, Known, Submission
from wfl.contexts import guard
from wfl.contexts.kubernetes import backend as module
from wfl.contexts.kubernetes import files, results, trouble, watching
from wfl.contexts.kubernetes.answers import UnauthorizedError
from wfl.contexts.kubernetes.backend import TERMINATE, KubernetesBackend
from wfl.contexts.kubernetes.client import Client, ExistsError, NotThereError, UnsentError
from wfl.contexts.kubernetes.ending import KILL, PIECE, UNENDED
from wfl.contexts.kubernetes.settings import Place
from wfl.contexts.kubernetes.template import Defaults
from wfl.drmaa2 import Capability, JobInfo, JobState
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidSessionError,
    InvalidStateError,
    TryLaterError,
    UnsupportedAttributeError,
    UnsupportedOperationError,
    WflError,
)

PATIENCE = 30.0  # seconds that a thread may take on a busy machine
BEGAN, ENDED = "2030-01-01T00:00:01Z", "2030-01-01T00:00:03Z"
LOST = DrmCommunicationError("the connection was cut")
CREATING = {"waiting": {"reason": "ContainerCreating"}}
RUNNING = {"running": {"startedAt": BEGAN}}
NO_IMAGE = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
WFL = ("wfl/session", "wfl/key", "wfl/program", "wfl/detach")

Object = dict[str, Any]


def ended(code: int = 0) -> Object:
    """How a container has ended."""
    reason = "Error" if code else "Completed"
    return {"terminated": {"exitCode": code, "reason": reason, "startedAt": BEGAN, "finishedAt": ENDED}}


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "this did not come"
        time.sleep(0.002)


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    """Whether an object with these labels is meant."""
    if many := re.fullmatch(r"(\S+) in \((.*)\)", selector):
        return labels.get(many[1]) in many[2].split(",")
    return all(labels.get(pair.partition("=")[0]) == pair.partition("=")[2] for pair in selector.split(",") if pair)


class Cluster:
    """Stands for the client and for what is behind it. It does at once what it is asked for, and tells the watches.

    `on` has what happens before that, by "verb kind": a function of the arguments, which may wait or raise.
    """

    url = "https://fake"
    namespace = "n"

    def __init__(self) -> None:
        self.place = Place(timeout=60)
        self.jobs: dict[str, Object] = {}
        self.pods: dict[str, Object] = {}
        self.others: dict[str, Object] = {}
        self.events: list[Object] = []
        self.classes: list[Object] = []
        self.logs: dict[str, bytes] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.on: dict[str, Callable[..., Any]] = {}
        self.obedient = True  # pods that are deleted end
        self.sessions = 1  # that listen
        self._told: dict[str, list[tuple[int, tuple[str, Object] | Exception]]] = {"jobs": [], "pods": []}
        self._heard: dict[str, list[int]] = {"jobs": [], "pods": []}  # each watch has heard so far, -1: it has ended
        self._number = 0
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._closed = False

    # -- as the client --

    def _called(self, verb: str, kind: str, *arguments: Any) -> None:
        self.asked.append((f"{verb} {kind}", *arguments))
        if (hook := self.on.get(f"{verb} {kind}")) is not None:
            hook(*arguments)

    def _kept(self, kind: str) -> dict[str, Object]:
        return {"jobs": self.jobs, "pods": self.pods}.get(kind, self.others)

    def version(self) -> str:
        """It is there."""
        self._called("get", "version")
        return "v1"

    def get(self, kind: str, name: str) -> Object:
        """One."""
        self._called("get", kind, name)
        with self._lock:
            if name not in self._kept(kind):
                raise NotThereError(f"{kind} {name!r} not found")
            return copy.deepcopy(self._kept(kind)[name])

    def list(self, kind: str, selector: str = "", *, fields: str = "") -> tuple[list[Object], str]:
        """Some."""
        self._called("list", kind, selector or fields)
        found = {"events": self.events, "priorityclasses": self.classes}.get(kind)
        with self._lock:
            if found is None:
                kept = self._kept(kind).values()
                found = [one for one in kept if matches(selector, one["metadata"].get("labels", {}))]
            return copy.deepcopy(found), str(self._number)

    def create(self, kind: str, body: Mapping[str, Any]) -> Object:
        """One more."""
        self._called("create", kind, body)
        with self._lock:
            made = copy.deepcopy(dict(body))
            name = made["metadata"]["name"]
            if name in self._kept(kind):
                raise ExistsError(f"{kind} {name!r} already exists")
            made["metadata"] |= {"uid": f"uid of {name}", "creationTimestamp": "2030-01-01T00:00:00Z"}
            made.setdefault("status", {})
            self._kept(kind)[name] = made
            self.tell("ADDED", kind, made)
            return copy.deepcopy(made)

    def patch(self, kind: str, name: str, body: Mapping[str, Any]) -> Object:
        """Another."""
        self._called("patch", kind, name, body)
        with self._lock:
            if name not in self._kept(kind):
                raise NotThereError(f"{kind} {name!r} not found")
            found = self._kept(kind)[name]
            found["spec"].update(body.get("spec", {}))
            notes = {**found["metadata"].get("annotations", {}), **body.get("metadata", {}).get("annotations", {})}
            found["metadata"]["annotations"] = {key: value for key, value in notes.items() if value is not None}
            self.tell("MODIFIED", kind, found)
            return copy.deepcopy(found)

    def delete(self, kind: str, name: str, *, grace: int | None = None) -> bool:
        """One less."""
        self._called("delete", kind, name, grace)
        return self._remove(kind, [name], grace) == 1

    def delete_all(self, kind: str, selector: str, *, grace: int | None = None, fields: str = "") -> None:
        """Fewer."""
        self._called("delete_all", kind, selector, grace)
        with self._lock:
            kept = self._kept(kind).items()
            names = [name for name, one in kept if matches(selector, one["metadata"].get("labels", {}))]
            if fields:
                assert fields == UNENDED
                names = [name for name in names if self.pods[name]["status"]["phase"] not in ("Succeeded", "Failed")]
        self._remove(kind, names, grace)

    def _remove(self, kind: str, names: Sequence[str], grace: int | None) -> int:
        with self._lock:
            found = [name for name in names if name in self._kept(kind)]
            for name in found:
                if kind == "pods":
                    self.go(name, 30 if grace is None else grace)
                else:
                    self.tell("DELETED", kind, self._kept(kind).pop(name))
            return len(found)

    def watch(self, kind: str, selector: str, version: str) -> Iterator[tuple[str, Object]]:
        """What a test lets happen."""
        self._called("watch", kind, selector, version)
        told, heard = self._told[kind], self._heard[kind]
        me, heard_so_far = len(heard), int(version)
        heard.append(heard_so_far)
        try:
            while True:
                with self._changed:
                    heard[me] = heard_so_far
                    self._changed.notify_all()
                    while not self._closed and (not told or told[-1][0] <= heard_so_far):
                        self._changed.wait()
                    if self._closed:
                        raise LOST
                    heard_so_far, event = next(one for one in told if one[0] > heard_so_far)
                if isinstance(event, Exception):
                    raise event
                if matches(selector, event[1]["metadata"].get("labels", {})):
                    yield event
        finally:
            heard[me] = -1

    def log(
        self, pod: str, *, follow: bool = False, since: str | None = None, container: str = "main"
    ) -> Iterator[bytes]:
        """What it has written; with `follow`, what it still writes."""
        del container
        self._called("log", "pods", pod, follow, since)
        given = 0
        while True:
            if pod not in self.pods:
                raise NotThereError(f"pods {pod!r} not found")
            over = "terminated" in self.pods[pod]["status"]["containerStatuses"][0]["state"]
            text = self.logs.get(pod, b"")
            lines = [b"2030-01-01T00:00:01.%09dZ " % n + line for n, line in enumerate(text.splitlines(keepends=True))]
            yield from lines[given:]
            given = len(lines)
            if over or not follow or self._closed:
                return
            time.sleep(0.002)

    def exec(self, pod: str, container: str, command: Sequence[str], **more: Any) -> tuple[int, str]:
        """Only noted."""
        del more
        self._called("exec", "pods", pod, container, *command)
        return 0, ""

    def hang_up(self) -> None:
        """No watches any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """The same, for good."""
        self.asked.append(("close",))
        self.hang_up()

    def open_again(self) -> None:
        """For another program."""
        self._closed = False
        for heard in self._heard.values():
            heard.clear()

    # -- as the world --

    def tell(self, what: str, kind: str, one: Object) -> None:
        """To the watches."""
        with self._changed:
            self._number += 1
            one["metadata"]["resourceVersion"] = str(self._number)
            if kind in self._told:
                self._told[kind].append((self._number, (what, copy.deepcopy(one))))
                self._changed.notify_all()

    def cut(self, kind: str) -> None:
        """The watches of these break off; they are listed again."""
        with self._changed:
            self._number += 1
            self._told[kind].append((self._number, LOST))
            self._changed.notify_all()

    def heard(self) -> None:
        """Wait until every session has heard all that was told."""
        for kind, told in self._told.items():
            self._all_have_heard(self._heard[kind], told[-1][0] if told else 0)

    def _all_have_heard(self, heard: Sequence[int], last: int) -> None:
        until(lambda: len([one for one in heard if one >= last]) == self.sessions)

    def job(self, key: str) -> Object:
        """The Job with that key."""
        (found,) = [job for job in [*self.jobs.values()] if job["metadata"]["labels"]["wfl/key"] == key]
        return found

    def pod(self, key: str, number: int | None = None, *, state: Object = CREATING, node: str | None = "node-1") -> str:
        """The controller makes a pod; its name."""
        with self._lock:
            job = self.job(key)
            self._number += 1
            name = f"{job['metadata']['name']}-{'' if number is None else f'{number}-'}{self._number}"
            labels = {key: job["metadata"]["labels"][key] for key in WFL}
            if number is not None:
                labels["batch.kubernetes.io/job-completion-index"] = str(number)
            told = {
                "name": name,
                "uid": f"uid of {name}",
                "labels": labels,
                "creationTimestamp": "2030-01-01T00:00:00Z",
            }
            self.pods[name] = {
                "metadata": told,
                "spec": {"containers": [{"name": "main"}], **({"nodeName": node} if node else {})},
                "status": {
                    "phase": "Pending",
                    "conditions": [],
                    "containerStatuses": [{"name": "main", "state": state}],
                },
            }
            self.tell("ADDED", "pods", self.pods[name])
            return name

    def state(self, name: str, state: Object, *, of: str = "containerStatuses", **told: Any) -> None:
        """What becomes of its container."""
        with self._lock:
            pod = self.pods[name]
            pod["status"].update(told)
            pod["status"].setdefault(of, [{"name": "wfl-in"}])[0]["state"] = state
            self.tell("MODIFIED", "pods", pod)

    def disrupt(self, name: str, reason: str = "EvictionByEvictionAPI") -> None:
        """The cluster itself means to end it."""
        condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "evicting"}
        self.pods[name]["status"]["conditions"].append(condition)

    def go(self, name: str, grace: int) -> None:
        """A pod is to go: what runs is ended by SIGTERM, if it obeys or there is little time."""
        with self._lock:
            pod = self.pods[name]
            pod["metadata"] |= {"deletionTimestamp": ENDED, "deletionGracePeriodSeconds": grace}
            self.tell("MODIFIED", "pods", pod)
            state = pod["status"]["containerStatuses"][0]["state"]
            if "running" in state and not self.obedient and grace > KILL:
                return
            if "running" in state:
                self.state(name, ended(143))
            self.gone(name)

    def gone(self, name: str) -> None:
        """A pod is not there any more."""
        with self._lock:
            self.tell("DELETED", "pods", self.pods.pop(name))

    def finish(self, key: str, kind: str = "Complete", **told: Any) -> None:
        """The controller says that a Job is over."""
        with self._lock:
            job = self.job(key)
            job["status"] |= {"conditions": [{"type": kind, "status": "True", "reason": "Because"}], **told}
            self.tell("MODIFIED", "jobs", job)

    def count(self, request: str) -> int:
        """How often that was asked for."""
        return sum(asked[0] == request for asked in [*self.asked])

    def of(self, *requests: str) -> Sequence[tuple[Any, ...]]:
        """Those requests, in order."""
        return [asked for asked in [*self.asked] if asked[0] in requests]


class Helper:
    """Stands for the undertaker; it notes what it is told."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def goodbye(self) -> None:
        """Nothing is left."""
        self.words.append("goodbye")

    def take_over(self) -> None:
        """Something is."""
        self.words.append("take over")


class Room:
    """A backend, its cluster, and what it tells."""

    def __init__(self, backend: KubernetesBackend, cluster: Cluster) -> None:
        self.backend, self.cluster = backend, cluster
        self.infos: list[JobInfo] = []
        self.words: list[str] = []
        self.helpers: list[Mapping[str, Any]] = []

    def report(self, infos: Iterable[JobInfo]) -> None:
        """Keep what it tells."""
        self.infos += infos

    def submit(self, key: str = "k-1", indexes: range | None = None, most: int | None = None, **fields: Any) -> Any:
        """Submit a job or an array; what became of it."""
        given = JobTemplate(**{"remote_command": "true", **fields})
        if indexes is not None:
            return self.backend.submit_array(Submission(key, given, key), indexes, most)
        (outcome,) = self.backend.submit([Submission(key, given, key)])
        return outcome

    def runs(self, key: str = "k-1", **fields: Any) -> str:
        """Submit a job that runs; its pod's name."""
        self.submit(key, **fields)
        name = self.cluster.pod(key, state=RUNNING)
        until(lambda: self.last(key).state is JobState.RUNNING)
        return name

    def states(self, id: str = "k-1") -> list[JobState]:
        """The states that were told of it; each once where it was repeated."""
        told = [info.state for info in [*self.infos] if info.id == id and info.state is not JobState.UNDETERMINED]
        return [state for n, state in enumerate(told) if n == 0 or told[n - 1] is not state]

    def last(self, id: str = "k-1") -> JobInfo:
        """What was told last."""
        return next((info for info in reversed([*self.infos]) if info.id == id), JobInfo(id=id))

    def end(self, id: str = "k-1") -> JobInfo:
        """Its end, when it is told: there is one."""

        def ends() -> list[JobInfo]:
            return [info for info in [*self.infos] if info.id == id and info.state.ended]

        until(ends)
        (info,) = ends()
        return info

    def ended(self, id: str = "k-1") -> bool:
        """Whether that was told already, when all was heard."""
        self.cluster.heard()
        return any(info.state.ended for info in [*self.infos] if info.id == id)

    def control(self, action: Action, *ids: str) -> dict[str, WflError]:
        """Do it."""
        return self.backend.control(ids or ("k-1",), action)


Open = Callable[..., Room]


@pytest.fixture
def cluster() -> Cluster:
    """Nothing is in it."""
    return Cluster()


@pytest.fixture
def open_room(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens backends on that cluster; they are closed afterwards."""
    rooms: list[Room] = []
    words: list[str] = []
    helpers: list[Mapping[str, Any]] = []

    def helper(where: Place, program: str, **more: Any) -> Helper:
        helpers.append({"where": where, "program": program, **more})
        return Helper(words)

    def to_cluster(place: Place) -> Client:
        cluster.place = place
        return cast("Client", cluster)

    monkeypatch.setattr(module, "Client", to_cluster)
    monkeypatch.setattr(module, "watch", helper)
    monkeypatch.setattr(module, "AGAIN", 0.02)
    monkeypatch.setattr(guard, "AFTERMATH", 0.01)
    monkeypatch.setattr(results, "AGAIN", 0.02)
    monkeypatch.setattr(watching, "PAUSE", (0.01, 0.02))

    def opened(
        *, directory: Path | None = None, timeout: float = 60.0, shell: str | None = "/bin/sh", **more: Any
    ) -> Room:
        settings = {"detach": False, "patience": 300.0, "suspend_restarts": False, **more}
        defaults = Defaults(image="busybox:1", shell=shell)
        room = Room(KubernetesBackend(Place(timeout=timeout), "s", defaults=defaults, **settings), cluster)
        room.words, room.helpers = words, helpers
        room.backend.open(room.report, directory)
        rooms.append(room)
        return room

    yield opened
    cluster.on = {}
    for room in rooms:
        room.backend.close(end=True)


@pytest.fixture
def room(open_room: Open) -> Room:
    """A session without a store."""
    return open_room()


# --- submitting -------------------------------------------------------------------------------------------


def test_a_job_is_one_request(room: Room, cluster: Cluster) -> None:
    """Besides the two watches, which are there first; it is told as queued since the cluster's own time."""
    assert room.submit() == "k-1"
    assert cluster.count("create jobs") == 1
    assert cluster.count("patch jobs") == cluster.count("get jobs") == 0
    begun = [asked[0] for asked in cluster.asked]
    assert begun.index("create jobs") > max(begun.index("list pods"), begun.index("list jobs"))
    assert {asked[1] for asked in cluster.of("watch pods", "watch jobs", "list pods")} == {"wfl/session=s"}
    assert room.last().state is JobState.QUEUED
    submitted = {info.submission_time for info in room.infos} - {None}
    assert submitted == {datetime(2030, 1, 1, tzinfo=UTC)}
    labels = cluster.job("k-1")["metadata"]["labels"]
    assert (labels["wfl/key"], labels["wfl/session"], labels["wfl/detach"]) == ("k-1", "s", "false")
    assert labels["wfl/program"] == room.helpers[0]["program"]


def test_the_helper_is_there_before_the_first_job(room: Room, cluster: Cluster) -> None:
    """It knows the program, and what stays; there is one for all jobs."""
    cluster.on["create jobs"] = lambda body: room.words.append(f"{len(room.helpers)} for {body['kind']}")
    room.submit()
    room.submit("k-2")
    assert room.words == ["1 for Job"] * 2
    assert (room.helpers[0]["keep"], room.helpers[0]["where"]) == (False, Place(timeout=60))


def test_detached_jobs_have_no_helper(open_room: Open, cluster: Cluster) -> None:
    """They are to live on."""
    room = open_room(detach=True)
    room.submit()
    assert room.helpers == []
    assert cluster.job("k-1")["metadata"]["labels"]["wfl/detach"] == "true"


def test_a_new_helper_follows_a_lost_one(room: Room) -> None:
    """Or jobs would outlive the program."""
    room.submit()
    room.helpers[0]["lost"]()
    assert len(room.helpers) == 2


def test_a_refused_template_asks_for_nothing(room: Room, cluster: Cluster) -> None:
    """It is refused by field."""
    assert isinstance(room.submit(email=("a@b.c",)), UnsupportedAttributeError)
    assert isinstance(room.submit(job_category="No Image"), InvalidArgumentError)
    assert cluster.count("create jobs") == 0


def test_a_refused_job_is_not_known(room: Room, cluster: Cluster) -> None:
    """The cluster's words are its outcome."""

    def refuse(body: object) -> None:
        del body
        raise DeniedByDrmsError("exceeded quota")

    cluster.on["create jobs"] = refuse
    outcome = room.submit()
    assert isinstance(outcome, DeniedByDrmsError)
    assert "exceeded quota" in str(outcome)
    assert room.backend.ask(["k-1"]).gone == ["k-1"]
    assert [str(one) for one in room.submit("k-2", range(1, 4))] == ["exceeded quota"] * 3


def test_an_array_is_one_request(room: Room, cluster: Cluster) -> None:
    """Its elements' ids are its own with their indexes; their pods are told apart by number."""
    assert room.submit("k-1", range(5, 11, 2), 2) == ["k-1.5", "k-1.7", "k-1.9"]
    assert cluster.count("create jobs") == 1
    assert cluster.job("k-1")["spec"]["parallelism"] == 2
    cluster.state(cluster.pod("k-1", 1, state=RUNNING), ended(4))
    assert room.end("k-1.7").exit_status == 4
    cluster.state(cluster.pod("k-1", 0, state=RUNNING), ended())
    assert room.end("k-1.5").state is JobState.DONE
    assert not room.ended("k-1.9")


def test_what_a_job_needs_is_made_for_it_before_it_starts(room: Room, cluster: Cluster) -> None:
    """The Job waits until its ConfigMap is there, which is removed with it."""
    room.submit(stage_in_files={"/etc/x": "inline:text"})
    create, extra, release = cluster.of("create jobs", "create configmaps", "patch jobs")
    assert create[1]["spec"]["suspend"] is True
    assert create[1]["metadata"]["annotations"]["wfl/suspended"] == "making"
    (owner,) = extra[1]["metadata"]["ownerReferences"]
    name = create[1]["metadata"]["name"]
    assert owner == {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": f"uid of {name}"}
    assert release[1:] == (name, {"spec": {"suspend": False}, "metadata": {"annotations": {"wfl/suspended": None}}})
    assert room.last().state is JobState.QUEUED


def test_a_held_job_that_needs_something_stays_held(room: Room, cluster: Cluster) -> None:
    """It is made, and not released for that; until then nobody is to take it for complete."""
    room.submit(stage_in_files={"/etc/x": "inline:text"}, submit_as_hold=True)
    create, _, held = cluster.of("create jobs", "create configmaps", "patch jobs")
    assert create[1]["metadata"]["annotations"]["wfl/suspended"] == "making"
    assert held[2] == {"metadata": {"annotations": {"wfl/suspended": "held"}}}
    assert cluster.job("k-1")["spec"]["suspend"] is True
    assert room.last().state is JobState.QUEUED_HELD
    assert room.control(Action.RELEASE) == {}
    assert cluster.job("k-1")["spec"]["suspend"] is False
    assert room.last().state is JobState.QUEUED


def test_a_job_that_needs_something_waits_for_its_start(room: Room, cluster: Cluster) -> None:
    """Also where that comes while it is made; what is held then waits on when it is released."""
    start = datetime.now(UTC) + timedelta(seconds=1)

    def slow(body: object) -> None:
        del body
        assert cluster.job("k-1")["metadata"]["annotations"]["wfl/suspended"] == "making"
        room.submit("k-0", start_time=start)
        until(lambda: cluster.job("k-0")["spec"]["suspend"] is False)

    cluster.on["create configmaps"] = slow
    room.submit(stage_in_files={"/etc/x": "inline:text"}, start_time=start)
    name = cluster.job("k-1")["metadata"]["name"]
    first = next(asked for asked in cluster.of("patch jobs") if asked[1] == name)
    assert first[2] == {"metadata": {"annotations": {"wfl/suspended": "waiting"}}}
    until(lambda: cluster.job("k-1")["spec"]["suspend"] is False)
    cluster.on = {}
    room.submit("k-2", stage_in_files={"/etc/x": "inline:text"}, start_time=datetime.now(UTC) + timedelta(hours=1))
    assert (room.last("k-2").state, room.last("k-2").annotation) == (JobState.QUEUED, "it waits for its start_time")
    assert room.control(Action.HOLD, "k-2") == {}
    assert room.control(Action.RELEASE, "k-2") == {}
    assert cluster.job("k-2")["metadata"]["annotations"]["wfl/suspended"] == "waiting"
    assert cluster.job("k-2")["spec"]["suspend"] is True


def test_what_is_refused_takes_its_job_along(room: Room, cluster: Cluster) -> None:
    """Its words are the outcome, and the only end there is."""

    def refuse(body: object) -> None:
        del body
        raise DeniedByDrmsError("exceeded quota")

    cluster.on["create configmaps"] = refuse
    assert isinstance(room.submit(stage_in_files={"/etc/x": "inline:text"}), DeniedByDrmsError)
    assert cluster.jobs == {}
    assert not room.ended()
    assert room.backend.ask(["k-1"]).gone == ["k-1"]


def test_output_of_elements_in_directories(room: Room, tmp_path: Path) -> None:
    """The index may be in a directory's name: it is not looked for as it is written."""
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    path = f"{tmp_path}/{INDEX}/out.txt"
    assert room.submit("k-1", range(2), output_path=path) == ["k-1.0", "k-1.1"]
    refused = room.submit("k-2", range(2, 4), output_path=path)
    assert [type(error) for error in refused] == [InvalidArgumentError] * 2


def test_time_is_limited_by_the_session(room: Room, cluster: Cluster) -> None:
    """From when the command begins: as long as its pod waits for files it is queued."""
    assert Capability.WALLCLOCK_LIMIT not in room.backend.capabilities
    room.submit(resource_limits={"WALLCLOCK_TIME": 60})
    name = cluster.pod("k-1")
    cluster.state(name, RUNNING, of="initContainerStatuses")
    cluster.heard()
    assert (room.last().state, room.last().dispatch_time) == (JobState.QUEUED, None)
    cluster.state(name, RUNNING)
    until(lambda: room.last().state is JobState.RUNNING)
    assert room.last().dispatch_time == datetime.fromisoformat(BEGAN)


def test_priorities_are_classes(room: Room, cluster: Cluster) -> None:
    """Looked up by value; anew where a value is not known, as one may have been made since."""
    cluster.classes = [{"metadata": {"name": "high"}, "value": 7}]
    room.submit(priority=7)
    room.submit("k-2", priority=7)
    assert cluster.job("k-2")["spec"]["template"]["spec"]["priorityClassName"] == "high"
    assert cluster.count("list priorityclasses") == 1
    refused = room.submit("k-3", priority=8)
    assert isinstance(refused, InvalidArgumentError)
    assert "7 (high)" in str(refused)
    cluster.classes.append({"metadata": {"name": "higher"}, "value": 8})
    assert room.submit("k-4", priority=8) == "k-4"


def test_a_closed_session_takes_nothing(room: Room, cluster: Cluster) -> None:
    """Nothing is asked for."""
    room.backend.close(end=True)
    assert isinstance(room.submit(), InvalidSessionError)
    assert cluster.count("create jobs") == 0


# --- no answer --------------------------------------------------------------------------------------------


def test_a_job_whose_answer_was_lost_is_found_and_completed(room: Room, cluster: Cluster) -> None:
    """It is there, so what it needs is made, and it is released."""
    create = cluster.create

    def cut(body: Mapping[str, Any]) -> None:
        cluster.on.pop("create jobs")
        create("jobs", body)
        raise LOST

    cluster.on["create jobs"] = cut
    with pytest.raises(DrmCommunicationError):
        room.submit(stage_in_files={"/etc/x": "inline:text"})
    assert cluster.count("create configmaps") == 0
    answer = room.backend.find([Known("k-1", None, JobTemplate(remote_command="true"))])
    assert [info.id for info in answer.infos] == ["k-1"]
    assert answer.gone == []
    assert cluster.count("create configmaps") == 1
    assert cluster.job("k-1")["spec"]["suspend"] is False
    assert room.last().state is JobState.QUEUED
    cluster.state(cluster.pod("k-1", state=RUNNING), ended(3))
    assert room.end().exit_status == 3


def test_what_is_there_already_is_not_made_again(room: Room, cluster: Cluster) -> None:
    """The answer to the ConfigMap was lost."""
    create = cluster.create

    def cut(body: Mapping[str, Any]) -> None:
        cluster.on.pop("create configmaps")
        create("configmaps", body)
        raise LOST

    cluster.on["create configmaps"] = cut
    with pytest.raises(DrmCommunicationError):
        room.submit(stage_in_files={"/etc/x": "inline:text"})
    assert room.backend.find([Known("k-1", None, JobTemplate(remote_command="true"))]).gone == []
    assert cluster.job("k-1")["spec"]["suspend"] is False


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize(
    ("fields", "why", "state"),
    [
        ({}, None, JobState.QUEUED),
        ({"submit_as_hold": True}, "held", JobState.QUEUED_HELD),
        ({"start_time": datetime(2130, 1, 1, tzinfo=UTC)}, "waiting", JobState.QUEUED),
    ],
)
def test_a_last_step_without_an_answer(
    room: Room, cluster: Cluster, fields: Mapping[str, Any], why: str | None, state: JobState, *, done: bool
) -> None:
    """Whether it was done or not, the job is then as it was to be, and can be held and released."""
    patch = cluster.patch

    def cut(name: str, body: Mapping[str, Any]) -> None:
        cluster.on.pop("patch jobs")
        if done:
            patch("jobs", name, body)
        raise LOST

    cluster.on["patch jobs"] = cut
    with pytest.raises(DrmCommunicationError):
        room.submit(stage_in_files={"/etc/x": "inline:text"}, **fields)
    cluster.heard()
    time.sleep(2 * module.AGAIN)
    cluster.tell("MODIFIED", "jobs", cluster.job("k-1"))
    cluster.heard()
    answer = room.backend.find([Known("k-1", None, JobTemplate(remote_command="true"))])
    assert ([info.id for info in answer.infos], answer.gone) == (["k-1"], [])
    assert cluster.count("patch jobs") == 2
    assert cluster.job("k-1")["metadata"]["annotations"].get("wfl/suspended") == why
    assert cluster.job("k-1")["spec"]["suspend"] is (why is not None)
    assert room.last().state is state
    if why != "held":
        assert room.control(Action.HOLD) == {}
    assert room.control(Action.RELEASE) == {}
    assert room.last().state is JobState.QUEUED
    assert cluster.job("k-1")["spec"]["suspend"] is (why == "waiting")


def test_a_late_word_of_what_was_made(room: Room, cluster: Cluster) -> None:
    """That it was to be completed is old news when it is."""
    room.submit(stage_in_files={"/etc/x": "inline:text"}, submit_as_hold=True)
    time.sleep(2 * module.AGAIN)
    late = copy.deepcopy(cluster.job("k-1"))
    late["metadata"]["annotations"]["wfl/suspended"] = "making"
    cluster.tell("MODIFIED", "jobs", late)
    cluster.heard()
    assert room.last().state is JobState.QUEUED_HELD
    assert room.control(Action.RELEASE) == {}


def test_what_is_refused_after_a_lost_answer_is_gone(room: Room, cluster: Cluster) -> None:
    """The others that are looked for are answered for all the same."""
    create = cluster.create

    def cut(body: Mapping[str, Any]) -> None:
        cluster.on.pop("create jobs")
        create("jobs", body)
        raise LOST

    def refuse(body: object) -> None:
        del body
        raise DeniedByDrmsError("exceeded quota")

    room.submit("k-2")
    cluster.on = {"create jobs": cut, "create configmaps": refuse}
    with pytest.raises(DrmCommunicationError):
        room.submit(stage_in_files={"/etc/x": "inline:text"})
    given = JobTemplate(remote_command="true")
    answer = room.backend.find([Known("k-1", None, given), Known("k-2", "k-2", given)])
    assert answer.gone == ["k-1"]
    assert [info.id for info in answer.infos] == ["k-2"]


def test_a_job_may_still_be_coming(open_room: Open, cluster: Cluster) -> None:
    """Nothing is said of it until it can come no more; one that comes yet later is removed."""
    room = open_room(timeout=0.1)
    bodies: list[Mapping[str, Any]] = []

    def cut(body: Mapping[str, Any]) -> None:
        bodies.append(body)
        raise LOST

    cluster.on["create jobs"] = cut
    with pytest.raises(DrmCommunicationError):
        room.submit()
    known = [Known("k-1", None, JobTemplate(remote_command="true"))]
    assert room.backend.find(known).gone == []
    until(lambda: room.backend.find(known).gone == ["k-1"])
    cluster.on = {}
    cluster.create("jobs", bodies[0])
    until(lambda: not cluster.jobs)


def test_what_was_not_sent_is_gone_at_once(room: Room, cluster: Cluster) -> None:
    """There was no connection."""

    def refuse(body: object) -> None:
        del body
        raise UnsentError("refused")

    cluster.on["create jobs"] = refuse
    with pytest.raises(UnsentError):
        room.submit()
    assert room.backend.find([Known("k-1", None, JobTemplate(remote_command="true"))]).gone == ["k-1"]


def test_watches_that_do_not_begin_are_no_answer(room: Room, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is created of whose end nobody would hear."""

    def lost(selector: str) -> None:
        del selector
        raise LOST

    monkeypatch.setattr(module, "AWHILE", 0.05)
    cluster.on["list pods"] = lost
    with pytest.raises(DrmCommunicationError):
        room.submit()
    assert cluster.count("create jobs") == 0


# --- states and ends --------------------------------------------------------------------------------------


def test_a_jobs_life(room: Room, cluster: Cluster) -> None:
    """As its pod tells it; its end costs no request, however many jobs there are."""
    room.submit(output_path="/dev/null")
    name = cluster.pod("k-1", state=CREATING)
    cluster.state(name, RUNNING)
    before = len(cluster.asked)
    cluster.state(name, ended(3))
    info = room.end()
    assert room.states() == [JobState.QUEUED, JobState.RUNNING, JobState.FAILED]
    assert (info.exit_status, info.allocated_machines) == (3, ("node-1",))
    assert cluster.asked[before:] == []


def test_a_pod_that_waits_says_why(room: Room, cluster: Cluster) -> None:
    """In its job's annotation."""
    room.submit()
    cluster.pod("k-1", state=NO_IMAGE)
    until(lambda: room.last().annotation == "ErrImagePull: no such image")
    assert room.last().state is JobState.QUEUED


def test_what_can_never_start_has_failed(open_room: Open, cluster: Cluster) -> None:
    """After the context's patience, with the cluster's words, and as nothing else; its pod is removed."""
    room = open_room(patience=0.05)
    room.submit()
    room.submit("k-2", range(1, 21))
    name = cluster.pod("k-1", state=NO_IMAGE)
    for number in range(20):
        cluster.pod("k-2", number, state=NO_IMAGE)
    for id in ("k-1", *(f"k-2.{index}" for index in range(1, 21))):
        info = room.end(id)
        assert info.sub_state == "launch_failure"
        assert info.annotation == "ErrImagePull: no such image (for 0.05 s, the context's patience)"
    assert name not in cluster.pods


def test_what_never_has_a_pod_has_failed(open_room: Open, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """As events say of its Job, which will never make one."""
    monkeypatch.setattr(trouble, "UNEXPLAINED", 0.01)
    monkeypatch.setattr(trouble, "LOOKS", (0.01, 0.02))
    room = open_room(patience=0.05)
    room.submit()
    name = cluster.job("k-1")["metadata"]["name"]
    said = {"reason": "FailedCreate", "message": "no account", "involvedObject": {"name": name}, "metadata": {}}
    cluster.events = [said]
    room.submit("k-2")  # it is looked at when something new waits
    info = room.end()
    assert (info.sub_state, info.exit_status) == ("launch_failure", None)
    assert (info.annotation or "").startswith("FailedCreate: no account")
    assert cluster.job("k-1")["metadata"]["annotations"]["wfl/suspended"] == "cancelled"


def test_a_pod_deleted_by_somebody(room: Room, cluster: Cluster) -> None:
    """Cancelled, with its exit status."""
    cluster.go(room.runs(), 30)
    info = room.end()
    assert (info.sub_state, info.exit_status) == ("cancelled", 143)
    assert info.annotation == "its pod, or its Job, was deleted by somebody"


def test_a_pod_removed_by_force(room: Room, cluster: Cluster) -> None:
    """Nobody knows how its command ends."""
    cluster.gone(room.runs())
    info = room.end()
    assert (info.sub_state, info.exit_status) == ("lost", None)


def test_a_job_removed_by_somebody(room: Room, cluster: Cluster) -> None:
    """Before it had a pod: there is nothing that could still tell."""
    room.submit()
    room.submit("k-2")
    cluster.delete("jobs", cluster.job("k-1")["metadata"]["name"])
    assert room.end().sub_state == "lost"
    assert not room.ended("k-2")


def test_a_job_removed_while_its_pod_runs(room: Room, cluster: Cluster) -> None:
    """The pod tells of the end."""
    name = room.runs()
    cluster.delete("jobs", cluster.job("k-1")["metadata"]["name"])
    assert not room.ended()
    cluster.go(name, 30)
    assert room.end().exit_status == 143


def test_a_job_and_its_pod_that_go_at_once(room: Room, cluster: Cluster) -> None:
    """A pod that is not there any more may have told of its end, which is heard a moment later."""
    looked = threading.Event()

    def gone(*_: object) -> None:
        looked.set()
        raise NotThereError("it is gone")

    name = room.runs()
    cluster.on["get pods"] = gone
    cluster.delete("jobs", cluster.job("k-1")["metadata"]["name"])
    until(looked.is_set)
    assert not room.ended()
    cluster.go(name, 30)
    assert room.end().exit_status == 143


def test_evicted_is_the_end(room: Room, cluster: Cluster) -> None:
    """Unless the template says that it may run again."""
    name = room.runs()
    cluster.disrupt(name)
    cluster.go(name, 30)
    info = room.end()
    assert (info.sub_state, info.exit_status) == ("evicted", 143)


def test_a_rerunnable_job_runs_again(room: Room, cluster: Cluster) -> None:
    """What the cluster itself ended is waited for; the end of its second pod is the end."""
    name = room.runs(rerunnable=True)
    cluster.disrupt(name)
    cluster.go(name, 30)
    until(lambda: room.last().state is JobState.REQUEUED)
    assert room.last().annotation == "EvictionByEvictionAPI: evicting"
    assert not room.ended()
    second = cluster.pod("k-1", state=RUNNING)
    cluster.state(second, ended())
    assert room.end().state is JobState.DONE
    assert room.states() == [JobState.QUEUED, JobState.RUNNING, JobState.REQUEUED, JobState.RUNNING, JobState.DONE]
    assert dict(room.end().extensions or {}) == {"pod": second}


@pytest.mark.parametrize("files", [{"stage_out_files": {"/tmp/x": "/out/x"}}, {"extensions": {"output": "file"}}])
def test_a_pod_that_is_replaced_does_not_wait(room: Room, cluster: Cluster, files: Mapping[str, Any]) -> None:
    """For its files: nobody wants those of a run that is done again, and the next pod is made when it has ended."""
    name = room.runs(rerunnable=True, **files)
    cluster.pods[name]["status"]["initContainerStatuses"] = [{"name": "wfl-out", "state": RUNNING}]
    cluster.disrupt(name)
    cluster.state(name, ended(143))
    until(lambda: [one for one in cluster.of("exec pods") if '.done"' in one[-3]])
    assert room.last().state is JobState.REQUEUED


def test_a_rerunnable_job_may_end_by_itself(room: Room, cluster: Cluster) -> None:
    """An exit status of its own is its end."""
    cluster.state(room.runs(rerunnable=True), ended(3))
    assert room.end().exit_status == 3


def test_a_rerunnable_job_is_killed_between_its_runs(room: Room, cluster: Cluster) -> None:
    """It has no pod then: its Job is to make none, and one that comes all the same is removed."""
    name = room.runs(rerunnable=True)
    cluster.disrupt(name)
    cluster.go(name, 30)
    until(lambda: room.last().state is JobState.REQUEUED)
    assert room.control(Action.KILL) == {}
    assert room.end().sub_state == "cancelled"
    late = cluster.pod("k-1", state=CREATING)
    until(lambda: late not in cluster.pods)


def test_what_kueue_takes_back_begins_anew(room: Room, cluster: Cluster) -> None:
    """Kueue ends a running job for a more urgent one; that is no end of it, and nobody holds it."""
    name = room.runs(extensions={"kueue_queue": "q"})
    cluster.job("k-1")["spec"]["suspend"] = True
    cluster.go(name, 30)
    until(lambda: room.last().state is JobState.REQUEUED)
    assert not room.ended()
    cluster.job("k-1")["spec"]["suspend"] = False
    cluster.state(cluster.pod("k-1", state=RUNNING), ended())
    assert room.end().state is JobState.DONE
    assert JobState.REQUEUED_HELD not in room.states()


def test_kueue_alone_lets_its_jobs_go(room: Room, cluster: Cluster) -> None:
    """Neither is one released that only waited for its objects, nor is one held."""
    extensions = {"kueue_queue": "q"}
    room.submit(extensions=extensions, stage_in_files={"/a": "inline:x"})
    (patched,) = cluster.of("patch jobs")
    assert patched[2] == {"metadata": {"annotations": {"wfl/suspended": None}}}
    failures = room.control(Action.HOLD)
    assert "Kueue holds and releases it" in str(failures["k-1"])


def test_an_earlier_pod_says_nothing(room: Room, cluster: Cluster) -> None:
    """A job has the pod that came last."""
    first = room.runs(rerunnable=True)
    second = cluster.pod("k-1", state=RUNNING)
    cluster.pods[first]["metadata"]["creationTimestamp"] = "2029-01-01T00:00:00Z"
    cluster.heard()
    cluster.state(first, ended(9))
    assert not room.ended()
    cluster.state(second, ended(4))
    assert room.end().exit_status == 4


def test_pods_of_others_are_left_alone(room: Room, cluster: Cluster) -> None:
    """Also those that bear labels as ours do, and numbers that no element has."""
    room.submit("k-1", range(2))
    for text in ("x", "7"):
        strange = cluster.pods[cluster.pod("k-1", 0)]
        cluster.pods.pop(strange["metadata"]["name"])
        strange["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] = text
        strange["metadata"]["name"] = f"strange-{text}"
        cluster.pods[f"strange-{text}"] = strange
    cluster.cut("pods")
    cluster.state(cluster.pod("k-1", 1, state=RUNNING), ended(5))
    assert room.end("k-1.1").exit_status == 5


# --- what nobody heard ------------------------------------------------------------------------------------


def test_an_end_in_an_outage(room: Room, cluster: Cluster) -> None:
    """The list afterwards tells it."""
    name = room.runs()
    cluster.pods[name]["status"]["containerStatuses"][0]["state"] = ended(3)
    cluster.cut("pods")
    assert room.end().exit_status == 3


@pytest.mark.parametrize(
    ("condition", "state", "sub_state"),
    [("Complete", JobState.DONE, "exited"), ("Failed", JobState.FAILED, "lost"), (None, JobState.FAILED, "lost")],
)
def test_a_pod_that_vanished_in_an_outage(
    room: Room, cluster: Cluster, condition: str | None, state: JobState, sub_state: str
) -> None:
    """Its Job tells how it ended, as far as it knows."""
    name = room.runs()
    if condition is not None:
        cluster.job("k-1")["status"] = {"conditions": [{"type": condition, "status": "True"}]}
    cluster.pods.pop(name)
    cluster.cut("pods")
    info = room.end()
    assert (info.state, info.sub_state) == (state, sub_state)


def test_a_pod_that_came_just_after_a_list_is_there(room: Room, cluster: Cluster) -> None:
    """What is not in a list is asked for by name before it is called gone."""
    name = room.runs()
    pod = cluster.pods.pop(name)
    cluster.on["get pods"] = lambda asked: cluster.pods.__setitem__(asked, pod)
    cluster.cut("pods")
    until(lambda: cluster.count("get pods"))
    cluster.state(name, ended(3))
    assert room.end().exit_status == 3


def test_a_job_and_its_pod_that_vanished_in_an_outage(room: Room, cluster: Cluster) -> None:
    """Nothing tells any more."""
    room.runs()
    room.submit("k-2")
    cluster.pods.clear()
    cluster.jobs.clear()
    cluster.cut("pods")
    cluster.cut("jobs")
    assert room.end().sub_state == "lost"
    assert room.end("k-2").sub_state == "lost"


def test_a_job_is_over_though_no_pod_told(room: Room, cluster: Cluster) -> None:
    """Its pod came and went unheard."""
    room.submit()
    room.submit("k-2", range(1, 4))
    cluster.finish("k-1")
    assert room.end().state is JobState.DONE
    cluster.finish("k-2", "Failed", completedIndexes="0,2", failedIndexes="1")
    ends = [room.end(f"k-2.{index}") for index in (1, 2, 3)]
    assert [info.sub_state for info in ends] == ["exited", "lost", "exited"]


def test_a_job_is_over_and_its_pods_are_asked(room: Room, cluster: Cluster) -> None:
    """They know exit statuses."""
    room.submit()
    name = cluster.pod("k-1", state=CREATING)
    cluster.heard()
    cluster.pods[name]["status"]["containerStatuses"][0]["state"] = ended(3)
    cluster.finish("k-1", "Failed")
    assert room.end().exit_status == 3


def test_how_a_job_ended_is_asked_again(room: Room, cluster: Cluster) -> None:
    """Until somebody answers."""
    failures = [LOST, LOST]

    def cut(*asked: object) -> None:
        del asked
        if failures:
            raise failures.pop()

    room.submit()
    cluster.on["list pods"] = cut
    cluster.finish("k-1")
    assert room.end().state is JobState.DONE
    name = room.runs("k-2")
    failures += [LOST, LOST]
    cluster.on = {"get jobs": cut}
    cluster.go(name, 30)
    assert room.end("k-2").exit_status == 143


def test_a_jobs_time_is_up(room: Room, cluster: Cluster) -> None:
    """Its pods are deleted, and only the Job says why."""
    name = room.runs()
    condition = {"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}
    cluster.job("k-1")["status"] = {"conditions": [condition]}
    cluster.go(name, 30)
    info = room.end()
    assert (info.sub_state, info.exit_status, info.annotation) == ("timeout", 143, "DeadlineExceeded: too long")


# --- ending -----------------------------------------------------------------------------------------------


def test_many_jobs_are_ended_in_few_requests(room: Room, cluster: Cluster) -> None:
    """By their pods, as many as a selector can name at once; their ends are told by these."""
    keys = [f"k-{number}" for number in range(PIECE + 10)]
    for key in keys:
        room.submit(key, output_path="/dev/null")
        cluster.pod(key, state=RUNNING)
    until(lambda: all(room.last(key).state is JobState.RUNNING for key in keys))
    before = len(cluster.asked)
    assert room.control(Action.KILL, *keys) == {}
    requests = [asked for asked in cluster.asked[before:] if not asked[0].startswith("get")]
    assert [asked[0] for asked in requests] == ["delete_all pods"] * 2
    assert {asked[2] for asked in requests} == {KILL}
    for key in keys:
        info = room.end(key)
        assert (info.sub_state, info.exit_status, info.annotation) == ("cancelled", 143, None)


def test_what_has_no_pod_will_have_none(room: Room, cluster: Cluster) -> None:
    """Its Job stays as the record of it; that costs one request each, and its end is told at once."""
    for key in ("k-1", "k-2"):
        room.submit(key, submit_as_hold=True)
    before = len(cluster.asked)
    assert room.control(Action.KILL, "k-1", "k-2") == {}
    assert [asked[0] for asked in cluster.asked[before:]] == ["patch jobs"] * 2
    for key in ("k-1", "k-2"):
        assert room.end(key).sub_state == "cancelled"
        assert cluster.job(key)["metadata"]["annotations"]["wfl/suspended"] == "cancelled"
        assert cluster.job(key)["spec"]["suspend"] is True


def test_elements_are_ended_by_their_pods(room: Room, cluster: Cluster) -> None:
    """The others go on; one without a pod has ended, and the pod that comes for it is removed."""
    room.submit("k-1", range(4))
    names = [cluster.pod("k-1", number, state=RUNNING) for number in (0, 1)]
    until(lambda: room.last("k-1.1").state is JobState.RUNNING)
    assert room.control(Action.KILL, "k-1.0", "k-1.2") == {}
    assert [asked[1:] for asked in cluster.of("delete pods")] == [(names[0], KILL)]
    assert cluster.count("patch jobs") == cluster.count("delete_all pods") == 0
    assert [room.end(f"k-1.{index}").sub_state for index in (0, 2)] == ["cancelled"] * 2
    assert not room.ended("k-1.1")
    late = cluster.pod("k-1", 2, state=CREATING)
    until(lambda: late not in cluster.pods)
    assert names[1] in cluster.pods


def test_the_last_elements_are_ended_with_their_array(room: Room, cluster: Cluster) -> None:
    """No pod is to come any more: pods, the Job, and what came meanwhile."""
    room.submit("k-1", range(3))
    cluster.state(cluster.pod("k-1", 0, state=RUNNING), ended())
    room.end("k-1.0")
    cluster.pod("k-1", 1, state=RUNNING)
    until(lambda: room.last("k-1.1").state is JobState.RUNNING)
    assert room.control(Action.KILL, "k-1.0", "k-1.1", "k-1.2") == {}
    order = [asked[0] for asked in cluster.of("delete_all pods", "patch jobs", "delete pods")]
    assert order == ["delete_all pods", "patch jobs", "delete_all pods"]
    assert [room.end(f"k-1.{index}").sub_state for index in (1, 2)] == ["cancelled"] * 2
    assert room.end("k-1.0").state is JobState.DONE


def test_what_was_asked_to_end_can_be_killed(room: Room, cluster: Cluster) -> None:
    """Its node waits for it and hears nothing more, so that is done from within."""
    cluster.obedient = False
    name = room.runs()
    assert room.control(Action.TERMINATE) == {}
    assert cluster.of("delete_all pods")[0][2] == TERMINATE
    cluster.heard()
    assert not room.ended()
    assert cluster.count("exec pods") == 0
    assert room.control(Action.KILL) == {}
    assert cluster.of("exec pods") == [("exec pods", name, "main", "/bin/sh", "-c", "kill -9 -1")]


def test_an_end_may_be_heard_before_the_answer(room: Room, cluster: Cluster) -> None:
    """It is that of a kill all the same."""
    name = room.runs()

    def end_first(selector: str, grace: int) -> None:
        del selector
        cluster.on.clear()
        cluster.go(name, grace)
        room.end()

    cluster.on["delete_all pods"] = end_first
    assert room.control(Action.KILL) == {}
    assert (room.end().sub_state, room.end().annotation) == ("cancelled", None)


def test_a_kill_that_was_not_done_is_told(room: Room, cluster: Cluster) -> None:
    """By id; what ends afterwards was not cancelled by it."""

    def refuse(*asked: object) -> None:
        del asked
        raise DeniedByDrmsError("no right")

    name = room.runs()
    cluster.on["delete_all pods"] = refuse
    failures = room.control(Action.KILL, "k-1", "k-9")
    assert {id: type(error) for id, error in failures.items()} == {"k-1": DeniedByDrmsError, "k-9": InvalidStateError}
    cluster.state(name, ended(3))
    assert room.end().sub_state == "exited"


def test_a_held_job_that_could_not_be_killed_is_held(room: Room, cluster: Cluster) -> None:
    """It can be released."""

    def refuse(*asked: object) -> None:
        cluster.on.clear()
        raise DrmCommunicationError(f"cut: {asked}")

    room.submit(submit_as_hold=True)
    cluster.on["patch jobs"] = refuse
    assert list(room.control(Action.KILL)) == ["k-1"]
    assert not room.ended()
    assert room.control(Action.RELEASE) == {}


# --- holding ----------------------------------------------------------------------------------------------


def test_hold_and_release(room: Room, cluster: Cluster) -> None:
    """By suspending the Job; its pod, which had not begun, goes, and that is not the job's end."""
    room.submit()
    name = cluster.pod("k-1", state=CREATING, node=None)
    cluster.heard()
    assert room.control(Action.HOLD) == {}
    assert room.last().state is JobState.QUEUED_HELD
    assert cluster.job("k-1")["metadata"]["annotations"]["wfl/suspended"] == "held"
    cluster.go(name, 30)
    assert not room.ended()
    assert room.control(Action.RELEASE) == {}
    assert room.last().state is JobState.QUEUED
    assert cluster.job("k-1")["spec"]["suspend"] is False
    assert "wfl/suspended" not in cluster.job("k-1")["metadata"]["annotations"]
    cluster.state(cluster.pod("k-1", state=RUNNING), ended())
    assert room.end().state is JobState.DONE


def test_a_held_job_whose_pod_went_is_killed(room: Room, cluster: Cluster) -> None:
    """It has no pod that could tell of its end."""
    room.submit()
    name = cluster.pod("k-1", state=CREATING, node=None)
    cluster.heard()
    room.control(Action.HOLD)
    cluster.go(name, 30)
    cluster.heard()
    assert room.control(Action.KILL) == {}
    assert room.end().sub_state == "cancelled"


def test_what_was_started_is_not_held(room: Room, cluster: Cluster) -> None:
    """Holding would end it; nor what a node has begun to start. What is not held is not released."""
    room.runs()
    room.submit("k-2")
    cluster.pod("k-2", state=CREATING, node="node-1")
    cluster.heard()
    room.submit("k-3")
    wrong = {
        **room.control(Action.HOLD, "k-1", "k-2"),
        **room.control(Action.RELEASE, "k-3"),
    }
    assert {id: type(error) for id, error in wrong.items()} == dict.fromkeys(("k-1", "k-2", "k-3"), InvalidStateError)
    assert str(wrong["k-1"]).startswith("k-1: cannot hold: it was started")
    assert cluster.count("patch jobs") == 0


def test_arrays_are_held_as_a_whole(room: Room, cluster: Cluster) -> None:
    """Their elements are one Job."""
    room.submit("k-1", range(3))
    wrong = room.control(Action.HOLD, "k-1.0", "k-1.1")
    assert [type(error) for error in wrong.values()] == [UnsupportedOperationError] * 2
    assert cluster.count("patch jobs") == 0
    assert room.control(Action.HOLD, "k-1.0", "k-1.1", "k-1.2") == {}
    assert [room.last(f"k-1.{index}").state for index in range(3)] == [JobState.QUEUED_HELD] * 3
    assert cluster.count("patch jobs") == 1


def test_a_hold_that_comes_too_late(room: Room, cluster: Cluster) -> None:
    """The pod has started meanwhile: that is the job's only run, though its Job is suspended."""
    room.submit()
    name = cluster.pod("k-1", state=CREATING, node=None)
    cluster.heard()
    assert room.control(Action.HOLD) == {}
    cluster.state(name, RUNNING)
    until(lambda: room.last().state is JobState.RUNNING)
    until(lambda: cluster.job("k-1")["metadata"]["annotations"]["wfl/suspended"] == "cancelled")
    cluster.state(name, ended(3))
    assert room.end().exit_status == 3


def test_a_hold_that_was_not_done_changes_nothing(room: Room, cluster: Cluster) -> None:
    """The job runs and ends as if nobody had asked."""

    def refuse(*asked: object) -> None:
        cluster.on.clear()
        raise DrmCommunicationError(f"cut: {asked}")

    room.submit()
    name = cluster.pod("k-1", state=CREATING, node=None)
    cluster.heard()
    cluster.on["patch jobs"] = refuse
    assert list(room.control(Action.HOLD)) == ["k-1"]
    cluster.state(name, RUNNING)
    cluster.state(name, ended(3))
    assert room.end().exit_status == 3
    assert cluster.count("patch jobs") == 1


def test_a_start_time_is_waited_for(room: Room, cluster: Cluster) -> None:
    """Suspended until then; holding it puts it off, releasing it before its time lets it wait on."""
    room.submit(start_time=datetime.now(UTC) + timedelta(hours=1))
    assert (room.last().state, room.last().annotation) == (JobState.QUEUED, "it waits for its start_time")
    assert room.control(Action.HOLD) == {}
    assert room.control(Action.RELEASE) == {}
    assert cluster.job("k-1")["metadata"]["annotations"]["wfl/suspended"] == "waiting"
    assert cluster.job("k-1")["spec"]["suspend"] is True
    room.submit("k-2", start_time=datetime.now(UTC) + timedelta(seconds=1))
    assert cluster.job("k-2")["spec"]["suspend"] is True
    until(lambda: cluster.job("k-2")["spec"]["suspend"] is False)
    assert room.last("k-2").state is JobState.QUEUED


def test_a_release_at_its_time_is_tried_again(room: Room, cluster: Cluster) -> None:
    """The API server may be away just then."""
    failures = [LOST, LOST]

    def cut(*asked: object) -> None:
        del asked
        if failures:
            raise failures.pop()

    cluster.on["patch jobs"] = cut
    room.submit(start_time=datetime.now(UTC) + timedelta(seconds=1))
    until(lambda: cluster.job("k-1")["spec"]["suspend"] is False)
    assert cluster.count("patch jobs") == 3


# --- suspending -------------------------------------------------------------------------------------------


def test_suspending_is_for_those_who_ask_for_it(open_room: Open, room: Room) -> None:
    """As what runs begins anew."""
    assert Capability.SUSPEND not in room.backend.capabilities
    assert Capability.SUSPEND in open_room(suspend_restarts=True).backend.capabilities


def test_suspend_and_resume(open_room: Open, cluster: Cluster) -> None:
    """The pod's end is not the job's; another begins anew."""
    room = open_room(suspend_restarts=True)
    name = room.runs()
    assert room.control(Action.SUSPEND) == {}
    assert cluster.job("k-1")["metadata"]["annotations"]["wfl/suspended"] == "paused"
    cluster.go(name, 30)
    assert not room.ended()
    assert isinstance(room.control(Action.RELEASE)["k-1"], InvalidStateError)
    assert room.control(Action.RESUME) == {}
    cluster.state(cluster.pod("k-1", state=RUNNING), ended())
    assert room.end().state is JobState.DONE
    wanted = [JobState.RUNNING, JobState.SUSPENDED, JobState.REQUEUED, JobState.RUNNING, JobState.DONE]
    assert room.states() == [JobState.QUEUED, *wanted]


def test_only_what_runs_is_suspended(open_room: Open, cluster: Cluster) -> None:
    """What waits is held."""
    room = open_room(suspend_restarts=True)
    room.submit()
    assert isinstance(room.control(Action.SUSPEND)["k-1"], InvalidStateError)
    assert cluster.count("patch jobs") == 0


def test_a_suspended_job_is_killed(open_room: Open, cluster: Cluster) -> None:
    """Its pod is gone, so its end is told at once."""
    room = open_room(suspend_restarts=True)
    name = room.runs()
    room.control(Action.SUSPEND)
    cluster.go(name, 30)
    cluster.heard()
    assert room.control(Action.KILL) == {}
    assert room.end().sub_state == "cancelled"


def test_a_suspension_that_was_not_done_changes_nothing(open_room: Open, cluster: Cluster) -> None:
    """The end of what runs on is told with its exit status."""

    def refuse(*asked: object) -> None:
        cluster.on.clear()
        raise DeniedByDrmsError(f"no right: {asked}")

    room = open_room(suspend_restarts=True)
    name = room.runs()
    cluster.on["patch jobs"] = refuse
    assert list(room.control(Action.SUSPEND)) == ["k-1"]
    cluster.state(name, ended(3))
    assert room.end().exit_status == 3


def suspend(cluster: Cluster, key: str, *, suspended: bool) -> None:
    """Somebody else does it, who writes no annotation."""
    time.sleep(2 * module.AGAIN)  # what comes just after our own doing is taken for it
    cluster.job(key)["spec"]["suspend"] = suspended
    cluster.tell("MODIFIED", "jobs", cluster.job(key))


def test_others_may_hold_and_release(room: Room, cluster: Cluster) -> None:
    """As its Job says."""
    room.submit()
    suspend(cluster, "k-1", suspended=True)
    until(lambda: room.last().state is JobState.QUEUED_HELD)
    suspend(cluster, "k-1", suspended=False)
    until(lambda: room.last().state is JobState.QUEUED)


def test_what_others_suspend_begins_anew(room: Room, cluster: Cluster) -> None:
    """They may not know that this ends what runs; it is not the job's end."""
    name = room.runs()
    suspend(cluster, "k-1", suspended=True)
    cluster.go(name, 30)
    until(lambda: room.last().state is JobState.REQUEUED_HELD)
    assert not room.ended()
    suspend(cluster, "k-1", suspended=False)
    until(lambda: room.last().state is JobState.REQUEUED)
    cluster.state(cluster.pod("k-1", state=RUNNING), ended())
    assert room.end().state is JobState.DONE


# --- files and output -------------------------------------------------------------------------------------


def test_files_are_put_into_a_pod_that_waits_for_them(
    room: Room, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Once; again where the connection broke."""
    put: list[tuple[str, Mapping[str, str]]] = []

    def fail_once(client: object, pod: str, copies: Mapping[str, str], *, shell: str) -> None:
        del client
        assert shell == "/bin/sh"
        put.append((pod, copies))
        if len(put) == 1:
            raise LOST

    monkeypatch.setattr(files, "put", fail_once)
    source = tmp_path / "in.csv"
    source.write_text("1")
    room.submit(stage_in_files={"/in.csv": str(source)})
    name = cluster.pod("k-1")
    cluster.heard()
    assert put == []
    for _ in range(3):
        cluster.state(name, RUNNING, of="initContainerStatuses")
    until(lambda: len(put) == 2)
    assert put[0] == put[1] == (name, {"in/0": str(source)})


def test_files_that_cannot_be_put(
    room: Room, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The job has failed with the words of that, and waits no more."""

    def fail(*given: object, **more: object) -> None:
        del given, more
        raise InvalidArgumentError("in.csv has changed")

    monkeypatch.setattr(files, "put", fail)
    source = tmp_path / "in.csv"
    source.write_text("1")
    room.submit(stage_in_files={"/in.csv": str(source)})
    name = cluster.pod("k-1")
    cluster.state(name, RUNNING, of="initContainerStatuses")
    info = room.end()
    assert (info.sub_state, info.annotation) == ("launch_failure", "its files cannot be copied in: in.csv has changed")
    until(lambda: name not in cluster.pods)


@pytest.mark.parametrize("trouble", [None, "/out/x cannot be copied"])
def test_files_are_fetched_before_the_end(
    room: Room, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trouble: str | None
) -> None:
    """Then the pod may go; what went wrong makes the job fail."""
    done: list[Any] = []

    def fetch(client: object, pod: str, wanted: Mapping[str, str], *, shell: str) -> str | None:
        del client
        assert shell == "/bin/sh"
        done.extend((pod, {target: source}, room.ended()) for target, source in wanted.items())
        return trouble

    monkeypatch.setattr(files, "fetch", fetch)
    monkeypatch.setattr(files, "done", lambda client, pod, shell: done.append(("done", client and shell and pod)))
    target = str(tmp_path / "x")
    name = room.runs(stage_out_files={target: "/out/x"})
    helper = {"name": "wfl-out", "state": RUNNING}
    cluster.state(name, ended(), initContainerStatuses=[helper])
    info = room.end()
    assert (info.state, info.annotation) == (JobState.FAILED if trouble else JobState.DONE, trouble)
    assert done == [(name, {target: "/out/x"}, False), ("done", name)]


def test_files_that_nobody_fetched_in_time(room: Room, cluster: Cluster, tmp_path: Path) -> None:
    """Their helper has ended with the pod."""
    name = room.runs(stage_out_files={str(tmp_path / "x"): "/out/x"})
    cluster.state(name, ended(), initContainerStatuses=[{"name": "wfl-out", "state": ended(137)}])
    info = room.end()
    assert (info.state, info.exit_status) == (JobState.FAILED, 0)
    assert info.annotation == "its files were not fetched before its pod ended"


def test_files_that_another_program_has_fetched(room: Room, cluster: Cluster, tmp_path: Path) -> None:
    """Its helper has ended well, as somebody told it that all are fetched."""
    name = room.runs(stage_out_files={str(tmp_path / "x"): "/out/x"})
    cluster.state(name, ended(), initContainerStatuses=[{"name": "wfl-out", "state": ended()}])
    info = room.end()
    assert (info.state, info.annotation) == (JobState.DONE, None)


def test_output_while_it_runs_and_afterwards(room: Room, cluster: Cluster) -> None:
    """From the pod's log, by ranges."""
    room.submit()
    assert room.backend.read("k-1", "stdout", 0, 100) == (b"", True)
    name = cluster.pod("k-1", state=RUNNING)
    cluster.logs[name] = b"one\ntwo\n"
    until(lambda: room.last().state is JobState.RUNNING)
    until(lambda: room.backend.read("k-1", "stdout", 0, 100)[0] == b"one\ntwo\n")
    cluster.logs[name] += b"three\n"
    until(lambda: room.backend.read("k-1", "stdout", 8, 100)[0] == b"three\n")
    cluster.logs[name] += b"end"
    cluster.state(name, ended())
    room.end()
    assert room.backend.read("k-1", "stdout", 0, 100) == (b"one\ntwo\nthree\nend", True)
    assert room.backend.read("k-1", "stdout", 4, 3) == (b"two", False)
    assert room.backend.read("k-1", "stderr", 0, 100) == (b"", True)


def test_output_of_a_pod_that_was_removed_is_kept(room: Room, cluster: Cluster) -> None:
    """It is here before the pod is gone."""
    name = room.runs()
    cluster.logs[name] = b"last words\n"
    cluster.obedient = False
    cluster.go(name, 30)
    cluster.state(name, ended(143))
    room.end()
    cluster.gone(name)
    cluster.heard()
    assert room.backend.read("k-1", "stdout", 0, 100) == (b"last words\n", True)


def test_output_that_is_gone(open_room: Open, cluster: Cluster) -> None:
    """Of a job that an earlier program saw end, and somebody has removed the pod since."""
    room = open_room()
    name = room.runs(output_path="/dev/null")
    cluster.state(name, ended())
    room.end()
    with pytest.raises(UnsupportedOperationError, match="discarded"):
        room.backend.read("k-1", "stdout", 0, 100)
    with pytest.raises(InvalidStateError, match="removed"):
        room.backend.read("k-9", "stdout", 0, 100)
    later = open_room()
    info = room.end()
    later.backend.find([Known("k-1", "k-1", JobTemplate(remote_command="true"), info)])
    cluster.pods.clear()
    with pytest.raises(InvalidStateError, match="its output is gone"):
        later.backend.read("k-1", "stdout", 0, 100)


def test_output_is_written_before_the_end(room: Room, cluster: Cluster, tmp_path: Path) -> None:
    """All of it; what cannot be written makes the job fail."""
    good, bad = tmp_path / "out", tmp_path / "made"
    bad.mkdir()
    first = room.runs(output_path=str(good))
    cluster.logs[first] = b"text\n"
    cluster.state(first, ended())
    assert room.end().state is JobState.DONE
    assert good.read_bytes() == b"text\n"
    second = room.runs("k-2", output_path=str(bad / "out"))
    bad.rmdir()
    cluster.logs[second] = b"text\n"
    cluster.state(second, ended())
    info = room.end("k-2")
    assert (info.state, info.exit_status) == (JobState.FAILED, 0)
    assert (info.annotation or "").startswith("its output cannot be written: ")


# --- reaping and finding ----------------------------------------------------------------------------------


def test_reaped_jobs_are_removed(room: Room, cluster: Cluster) -> None:
    """In one request; an array with its last element. They are not known any more."""
    for key in ("k-1", "k-2"):
        room.submit(key)
        cluster.finish(key)
        room.end(key)
    room.submit("k-3", range(2))
    room.backend.reap(["k-1", "k-2", "k-3.0"])
    assert cluster.of("delete_all jobs") == [("delete_all jobs", "wfl/key in (k-1,k-2)", None)]
    assert list(cluster.jobs) == [cluster.job("k-3")["metadata"]["name"]]
    assert room.backend.ask(["k-1", "k-3.0"]).gone == ["k-1"]
    with pytest.raises(InvalidStateError, match="reaped"):
        room.backend.read("k-3.0", "stdout", 0, 1)
    room.backend.reap(["k-3.1"])
    assert cluster.jobs == {}


def test_a_later_program_remembers_what_was_detached(open_room: Open, cluster: Cluster) -> None:
    """In the order of submission, elements one by one, without paths of this side; what is left undone is left out."""
    first = open_room(detach=True)
    first.submit("k-10", args=("a",), output_path="/tmp/x", job_environment={"A": "secret"})
    first.submit("k-9", range(5, 9, 3))
    first.submit("k-11", submit_as_hold=True)
    cluster.job("k-11")["metadata"]["annotations"]["wfl/suspended"] = "making"
    first.submit("k-12")
    cluster.job("k-12")["metadata"]["annotations"]["wfl/template"] = "nonsense"
    first.backend.submit([Submission("k-13.4", JobTemplate(remote_command="true"), "k-13.4", 4)])
    known = open_room(detach=True).backend.remembered()
    assert [(one.key, one.id, one.job_id, one.index) for one in known] == [
        ("k-9.5", "k-9.5", "k-9", 5),
        ("k-9.8", "k-9.8", "k-9", 8),
        ("k-10", "k-10", "k-10", None),
        ("k-13.4", "k-13.4", "k-13.4", 4),
    ]
    assert known[2].template == JobTemplate(remote_command="true", args=("a",))
    assert cluster.of("list jobs")[-1][1] == "wfl/session=s,wfl/detach=true"
    assert json.dumps(cluster.jobs).count("secret") == 1  # in the container alone


def test_jobs_are_found_as_they_are(open_room: Open, cluster: Cluster) -> None:
    """By their pods, and by their Jobs where these are gone."""
    first = open_room(detach=True)
    for key in ("k-1", "k-2", "k-3", "k-4", "k-5", "k-8"):
        first.submit(key, submit_as_hold=key == "k-2")
    first.submit("k-6", range(3))
    cluster.pod("k-1", state=RUNNING)
    for key, why in (("k-3", "paused"), ("k-4", "cancelled")):
        cluster.patch("jobs", cluster.job(key)["metadata"]["name"], {
            "spec": {"suspend": True}, "metadata": {"annotations": {"wfl/suspended": why}},
        })  # fmt: skip
    cluster.finish("k-5")
    cluster.state(cluster.pod("k-8", state=RUNNING), ended(3))
    cluster.pod("k-6", 1, state=RUNNING)
    cluster.job("k-6")["status"] = {"completedIndexes": "0"}
    first.cluster.heard()
    later = open_room(detach=True)
    keys = ["k-1", "k-2", "k-3", "k-4", "k-5", "k-6.0", "k-6.1", "k-6.2", "k-7", "k-8"]
    answer = later.backend.find([Known(key, key, JobTemplate(remote_command="true")) for key in keys])
    assert answer.gone == ["k-7"]
    assert {info.id for info in answer.infos} == {*keys} - {"k-7"}
    states = {key: later.last(key).state for key in keys if key not in ("k-7", "k-8")}
    assert states == {
        "k-1": JobState.RUNNING,
        "k-2": JobState.QUEUED_HELD,
        "k-3": JobState.SUSPENDED,
        "k-4": JobState.FAILED,
        "k-5": JobState.DONE,
        "k-6.0": JobState.DONE,
        "k-6.1": JobState.RUNNING,
        "k-6.2": JobState.QUEUED,
    }
    assert later.end("k-4").sub_state == "cancelled"
    assert later.end("k-8").exit_status == 3


def test_a_job_that_was_never_completed_is_removed(open_room: Open, cluster: Cluster) -> None:
    """Its program died; it can never run."""
    open_room(detach=True).submit(submit_as_hold=True)
    cluster.job("k-1")["metadata"]["annotations"]["wfl/suspended"] = "making"
    answer = open_room(detach=True).backend.find([Known("k-1", None, JobTemplate(remote_command="true"))])
    assert answer.gone == ["k-1"]
    assert cluster.jobs == {}


def test_what_another_program_has_cancelled(open_room: Open, cluster: Cluster) -> None:
    """Of the same session: it says so in the Job, and both tell the same."""
    first = open_room()
    name = first.runs()
    second = open_room()
    second.backend.find([Known("k-1", "k-1", JobTemplate(remote_command="true"))])
    cluster.patch("jobs", cluster.job("k-1")["metadata"]["name"], {
        "spec": {"suspend": True}, "metadata": {"annotations": {"wfl/suspended": "cancelled"}},
    })  # fmt: skip
    cluster.go(name, KILL)
    for room in (first, second):
        assert (room.end().sub_state, room.end().exit_status) == ("cancelled", 143)


def test_how_to_cancel(room: Room) -> None:
    """A line for kubectl: few jobs by name, many as the whole session."""
    for number in range(1, 8):
        room.submit(f"k-{number}")
    room.submit("k-8", range(3))
    line = room.backend.how_to_cancel(["k-1", "k-8.0", "k-8.1", "k-99"])
    assert line == "kubectl --namespace n delete jobs --selector 'wfl/key in (k-1,k-8)'"
    many = room.backend.how_to_cancel([f"k-{number}" for number in range(1, 8)])
    assert many == "kubectl --namespace n delete jobs --selector 'wfl/session=s'"


# --- closing ----------------------------------------------------------------------------------------------


def test_closing_ends_and_removes_everything(room: Room, cluster: Cluster) -> None:
    """Pods first; the helper is told that nothing is left."""
    room.runs()
    room.submit("k-2")
    program = f"wfl/program={room.helpers[0]['program']}"
    room.backend.close(end=True)
    assert cluster.of("delete_all pods", "delete_all jobs") == [
        ("delete_all pods", program, KILL),
        ("delete_all jobs", program, None),
        ("delete_all pods", program, KILL),
    ]
    assert (cluster.jobs, cluster.pods) == ({}, {})
    assert room.words == ["goodbye"]
    assert cluster.asked[-1] == ("close",)


def test_closing_with_a_store_leaves_records(open_room: Open, cluster: Cluster, tmp_path: Path) -> None:
    """Jobs that will never run, for a program that comes back; what has ended stays as it is."""
    room = open_room(directory=tmp_path)
    room.runs()
    room.submit("k-2")
    cluster.finish("k-2")
    room.end("k-2")
    assert room.helpers[0]["keep"] is True
    room.backend.close(end=True)
    assert cluster.count("delete_all jobs") == 0
    assert cluster.pods == {}
    assert cluster.job("k-1")["metadata"]["annotations"]["wfl/suspended"] == "cancelled"
    assert "wfl/suspended" not in cluster.job("k-2")["metadata"]["annotations"]
    assert room.words == ["goodbye"]


def test_closing_may_leave_all_that_lives(open_room: Open, cluster: Cluster) -> None:
    """But for what was never completed."""
    room = open_room(detach=True)
    room.runs()
    room.submit("k-2", submit_as_hold=True)
    cluster.job("k-2")["metadata"]["annotations"]["wfl/suspended"] = "making"
    room.backend.close(end=False)
    assert [job["metadata"]["labels"]["wfl/key"] for job in cluster.jobs.values()] == ["k-1"]
    assert len(cluster.pods) == 1


def test_what_lives_on_has_its_files_first(
    open_room: Open, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Nobody else brings them: closing waits for that a while, and says what has not got them."""
    monkeypatch.setattr(module, "AWHILE", 0.1)
    source = tmp_path / "in.csv"
    source.write_text("1")
    rooms = [open_room(detach=True), open_room(detach=True)]
    for number, room in enumerate(rooms):
        room.submit(f"k-{number}", stage_in_files={"/in.csv": str(source)})
    cluster.pod("k-1", state=RUNNING)
    until(lambda: rooms[1].last("k-1").state is JobState.RUNNING)
    rooms[1].backend.close(end=False)
    assert "have not got their files" not in caplog.text
    rooms[0].backend.close(end=False)
    assert "1 jobs have not got their files yet; as nobody brings them, they end" in caplog.text
    assert cluster.job("k-0")["metadata"]["annotations"]["wfl/suspended"] == "cancelled"
    assert len(cluster.jobs) == 2


def test_what_cannot_be_ended_is_the_helpers(room: Room, cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """The API server is away: the helper goes on with it."""
    room.runs()
    room.submit("k-2")

    def lost(selector: str) -> None:
        del selector
        raise LOST

    cluster.on["list jobs"] = lost
    room.backend.close(end=True)
    assert room.words == ["take over"]
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert said == ["kubernetes: 2 Jobs are not ended yet; a helper process goes on with that"]


def test_what_may_still_come_is_the_helpers(room: Room, cluster: Cluster) -> None:
    """An answer was lost: the API server may still be making that Job."""

    def cut(body: object) -> None:
        del body
        raise LOST

    cluster.on["create jobs"] = cut
    with pytest.raises(DrmCommunicationError):
        room.submit()
    room.backend.close(end=True)
    assert room.words == ["take over"]


def test_closing_waits_for_what_is_being_made(room: Room, cluster: Cluster) -> None:
    """So that it can be ended with the rest."""
    entered, go_on = threading.Event(), threading.Event()

    def wait(body: object) -> None:
        del body
        entered.set()
        assert go_on.wait(PATIENCE)

    room.submit("k-0")
    cluster.on["create jobs"] = wait
    submitting = threading.Thread(target=room.submit, daemon=True)
    submitting.start()
    assert entered.wait(PATIENCE)
    closing = threading.Thread(target=lambda: room.backend.close(end=True), daemon=True)
    closing.start()
    time.sleep(0.05)
    assert cluster.count("delete_all jobs") == 0
    go_on.set()
    closing.join(PATIENCE)
    submitting.join(PATIENCE)
    assert cluster.jobs == {}


def test_a_session_that_was_never_used_asks_for_nothing(open_room: Open, cluster: Cluster) -> None:
    """But for the greeting."""
    open_room().backend.close(end=True)
    assert [asked[0] for asked in cluster.asked] == ["get version", "close"]


def test_output_is_saved_where_it_is_wanted_when_all_is_ended(room: Room, cluster: Cluster, tmp_path: Path) -> None:
    """What a job had written until then."""
    name = room.runs(output_path=str(tmp_path / "out"))
    cluster.logs[name] = b"so far\n"
    room.backend.close(end=True)
    assert (tmp_path / "out").read_bytes() == b"so far\n"


def test_a_creation_that_finds_its_own_job(room: Room, cluster: Cluster) -> None:
    """A request that was repeated on its way has made it; somebody else's of that name is refused."""

    def repeated(body: Mapping[str, Any]) -> None:
        cluster.on = {}
        cluster.create("jobs", body)

    cluster.on["create jobs"] = repeated
    assert room.submit() == "k-1"

    def taken(body: Mapping[str, Any]) -> None:
        cluster.on = {}
        cluster.create("jobs", {**body, "metadata": {**body["metadata"], "labels": {"app": "other"}}})

    cluster.on["create jobs"] = taken
    assert isinstance(room.submit("k-2"), ExistsError)


def test_a_job_with_strange_labels_is_left_out(open_room: Open, cluster: Cluster) -> None:
    """Anybody may write them; the session's own jobs are remembered all the same."""
    room = open_room(detach=True)
    room.submit()
    strange = copy.deepcopy(cluster.job("k-1"))
    strange["metadata"] = {**strange["metadata"], "name": "strange", "annotations": {}}
    strange["metadata"]["labels"] = {**strange["metadata"]["labels"], "wfl/key": "no-number"}
    cluster.create("jobs", strange)
    del strange["metadata"]["labels"]["wfl/key"]
    strange["metadata"]["name"] = "stranger"
    cluster.create("jobs", strange)
    assert [known.key for known in room.backend.remembered()] == ["k-1"]


def test_a_deadline_is_counted_from_the_release(room: Room, cluster: Cluster) -> None:
    """The cluster counts seconds, and begins when the Job is not suspended any more."""
    room.submit(submit_as_hold=True, deadline_time=datetime.now(UTC) + timedelta(hours=1))
    cluster.jobs[cluster.job("k-1")["metadata"]["name"]]["spec"]["activeDeadlineSeconds"] = 9
    assert room.control(Action.RELEASE) == {}
    assert 3500 < cluster.job("k-1")["spec"]["activeDeadlineSeconds"] <= 3600


def test_output_in_files_of_a_job_that_is_found_without_a_store(open_room: Open, cluster: Cluster) -> None:
    """The paths on this side are not taken from annotations, but that there is something to fetch is."""
    open_room(detach=True).submit(error_path="/tmp/somewhere")
    room = open_room(detach=True)
    cluster.sessions = 2
    (known,) = room.backend.remembered()
    assert known.template.error_path is None
    room.backend.find([known])
    assert [*room.backend._known.jobs["k-1"].streams] == ["stderr"]  # noqa: SLF001 - its pod would have to end


def test_a_kill_that_fails_leaves_what_an_earlier_one_has_done(room: Room, cluster: Cluster) -> None:
    """The job was ended by its own program, whatever becomes of a second word to it."""
    cluster.obedient = False
    name = room.runs()
    assert room.control(Action.TERMINATE) == {}
    cluster.on["delete_all pods"] = lambda *_: (_ for _ in ()).throw(LOST)
    assert isinstance(room.control(Action.KILL)["k-1"], DrmCommunicationError)
    cluster.state(name, ended(143))
    assert room.end().sub_state == "cancelled"
    assert room.end().annotation is None


def test_giving_up_waits_for_the_api_server(open_room: Open, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is not called failed while it may yet start."""
    monkeypatch.setattr(trouble, "RATHER", 0.001)
    monkeypatch.setattr(trouble, "LOOKS", (0.02, 0.1))
    room = open_room(patience=0.05)
    room.submit()
    cluster.on["delete_all pods"] = lambda *_: (_ for _ in ()).throw(LOST)
    cluster.pod("k-1", state=NO_IMAGE)
    until(lambda: cluster.count("delete_all pods") > 1)
    assert not room.ended()
    cluster.on = {}
    info = room.end()
    assert (info.sub_state, "no such image" in (info.annotation or "")) == ("launch_failure", True)


# --- at the wrong moment ----------------------------------------------------------------------------------


REFUSED = [UnauthorizedError("the credentials were refused"), TryLaterError("too many requests"), LOST]


def fails(times: int, error: WflError = LOST) -> Callable[..., None]:
    """Raises that, and lets all later ones pass."""
    left = [error] * times

    def fail(*given: object) -> None:
        del given
        if left:
            raise left.pop()

    return fail


@pytest.mark.parametrize("error", REFUSED)
def test_an_end_is_asked_for_until_it_is_told(room: Room, cluster: Cluster, error: WflError) -> None:
    """Credentials that have just ended, or too many requests, say nothing of a job."""
    cluster.obedient = False
    name = room.runs()
    cluster.on["get jobs"] = fails(2, error)
    cluster.go(name, 30)
    cluster.state(name, ended())
    assert room.end().state is JobState.DONE


@pytest.mark.parametrize("error", REFUSED)
def test_files_are_asked_for_until_they_come(room: Room, cluster: Cluster, tmp_path: Path, error: WflError) -> None:
    """As long as their pod waits for that."""
    name = room.runs(stage_out_files={str(tmp_path / "x"): "/out/x"})
    cluster.on["exec pods"] = fails(9, error)
    cluster.state(name, ended(), initContainerStatuses=[{"name": "wfl-out", "state": RUNNING}])
    until(lambda: cluster.count("exec pods") > 9)


@pytest.mark.parametrize("error", REFUSED)
def test_files_are_offered_until_they_are_taken(room: Room, cluster: Cluster, tmp_path: Path, error: WflError) -> None:
    """The job is not ended for that."""
    source = tmp_path / "in.csv"
    source.write_text("1")
    cluster.on["exec pods"] = fails(3, error)
    room.submit(stage_in_files={"/in.csv": str(source)})
    name = cluster.pod("k-1")
    cluster.state(name, RUNNING, of="initContainerStatuses")
    until(lambda: cluster.count("exec pods") == 4)
    assert not room.ended()


def test_what_waits_for_its_files_in_vain_goes(room: Room, cluster: Cluster, tmp_path: Path) -> None:
    """A pod has an hour to let its files be fetched: whoever reaps the job does not want them."""
    name = room.runs(stage_out_files={str(tmp_path / "x"): "/out/x"})
    cluster.on["exec pods"] = fails(99, InvalidArgumentError("no"))
    cluster.state(name, ended(), initContainerStatuses=[{"name": "wfl-out", "state": RUNNING}])
    assert room.end().state is JobState.FAILED
    room.backend.reap(["k-1"])
    assert [asked[0] for asked in cluster.asked[-2:]] == ["delete_all pods", "delete_all jobs"]


def test_a_kill_without_an_answer_is_looked_after(
    room: Room, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was done all the same: nobody waits for the job for ever."""
    room.submit()
    patch, lost = cluster.patch, [LOST]

    def without_answer(kind: str, name: str, body: Mapping[str, Any]) -> Object:
        done = patch(kind, name, body)
        if lost:
            raise lost.pop()
        return done

    monkeypatch.setattr(cluster, "patch", without_answer)
    assert isinstance(room.control(Action.KILL)["k-1"], DrmCommunicationError)
    assert room.end().sub_state == "cancelled"


def test_others_hold_a_job_at_the_same_moment(room: Room, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes just after a request of our own is looked at again."""
    monkeypatch.setattr(module, "AGAIN", 0.3)
    room.submit()
    cluster.job("k-1")["spec"]["suspend"] = True
    cluster.tell("MODIFIED", "jobs", cluster.job("k-1"))
    until(lambda: room.last().state is JobState.QUEUED_HELD)


def test_a_rerunnable_job_whose_pod_is_gone_runs_again(room: Room, cluster: Cluster) -> None:
    """The list came before the controller had made another."""
    name = room.runs(rerunnable=True)
    held = threading.Event()
    cluster.on["list pods"] = lambda *_: held.wait(PATIENCE)
    cluster.cut("pods")
    until(lambda: cluster.count("list pods") >= 2)
    del cluster.pods[name]
    held.set()
    until(lambda: room.last().state is JobState.REQUEUED)
    cluster.state(cluster.pod("k-1", state=RUNNING), ended())
    assert room.end().state is JobState.DONE


@pytest.mark.parametrize("action", [Action.KILL, Action.TERMINATE])
def test_ending_the_rest_of_an_array_leaves_what_is_over(room: Room, cluster: Cluster, action: Action) -> None:
    """Pods that have ended stay, with their output; that of the last is taken before it can go."""
    room.submit("k-1", range(3))
    pods = [cluster.pod("k-1", number, state=RUNNING) for number in range(3)]
    cluster.logs.update({pods[0]: b"first\n", pods[1]: b"late\n"})
    cluster.state(pods[0], ended(), phase="Succeeded")
    cluster.state(pods[1], ended())  # the phase comes a second later
    for id in ("k-1.0", "k-1.1"):
        assert room.end(id).state is JobState.DONE
        room.backend._results.drop(room.backend._known.tasks[id])  # noqa: SLF001 - as of one that was not followed
    room.backend._known.tasks["k-1.0"].ended -= 10  # noqa: SLF001
    assert room.control(action, "k-1.0", "k-1.1", "k-1.2") == {}
    assert room.end("k-1.2").sub_state == "cancelled"
    assert [*cluster.pods] == pods[:1]
    assert room.backend.read("k-1.0", "stdout", 0, 9) == (b"first\n", True)
    assert room.backend.read("k-1.1", "stdout", 0, 9) == (b"late\n", True)


def test_elements_that_get_a_pod_while_they_are_ended(room: Room, cluster: Cluster) -> None:
    """That goes at once; also where the first attempt is refused."""
    room.submit("k-1", range(6), 2)
    for number in range(2):
        cluster.pod("k-1", number, state=RUNNING)
    until(lambda: room.last("k-1.1").state is JobState.RUNNING)
    made: list[str] = []
    refuse = fails(1, TryLaterError("too many requests"))

    def fill(name: str, grace: int) -> None:
        del grace
        if not made:  # the controller fills the place at once
            made.append(cluster.pod("k-1", 2, state=RUNNING))
            until(lambda: room.last("k-1.2").state is JobState.RUNNING)
        elif name == made[0]:
            refuse()

    cluster.on["delete pods"] = fill
    assert room.control(Action.KILL, *(f"k-1.{number}" for number in range(4))) == {}
    assert room.end("k-1.2").sub_state == "cancelled"
    until(lambda: made[0] not in cluster.pods)


def test_ends_do_not_wait_for_files_of_others(
    room: Room, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However many there are, and however large."""
    held = threading.Event()
    monkeypatch.setattr(files, "put", lambda *_, **__: held.wait(PATIENCE))
    source = tmp_path / "in"
    source.write_text("1")
    name = room.runs("k-0", output_path=str(tmp_path / "out"))
    for number in range(1, 18):
        room.submit(f"k-{number}", stage_in_files={"/in": str(source)})
        cluster.state(cluster.pod(f"k-{number}"), RUNNING, of="initContainerStatuses")
    cluster.state(name, ended())
    assert room.end("k-0").state is JobState.DONE
    held.set()


def test_files_of_another_program_are_left_to_it(
    open_room: Open, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program that found the job does not know where they are to go: it does not let their pod go."""
    done: list[str] = []
    monkeypatch.setattr(files, "fetch", lambda *_, **__: None)
    monkeypatch.setattr(files, "done", lambda _, pod, shell: done.append(pod and shell))
    first = open_room(detach=True)
    first.submit(stage_out_files={str(tmp_path / "x"): "/out/x"})
    first.backend.close(end=False)
    cluster.open_again()
    second = open_room()
    second.backend.find(second.backend.remembered())
    name = cluster.pod("k-1", state=RUNNING)
    until(lambda: second.last().state is JobState.RUNNING)
    cluster.state(name, ended(), initContainerStatuses=[{"name": "wfl-out", "state": RUNNING}])
    info = second.end()
    assert (info.state, done) == (JobState.DONE, [])
    assert info.annotation == "its files are in its pod for the program that knows where they are to go"


def test_paths_of_this_side_are_resolved(room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever directory the program is in that finds the job again."""
    monkeypatch.chdir(tmp_path)
    given = JobTemplate(
        output_path="out", input_path="/in", stage_in_files={"a": "b", "c": "claim:d"}, stage_out_files={"e": "f"}
    )
    assert room.backend.resolve(given) == JobTemplate(
        output_path=f"{tmp_path}/out",
        input_path="/in",
        stage_in_files={"a": f"{tmp_path}/b", "c": "claim:d"},
        stage_out_files={f"{tmp_path}/e": "f"},
    )
    one = room.backend.resolve(JobTemplate(output_path="o/p", error_path="./o//p"))
    assert one.output_path == one.error_path == f"{tmp_path}/o/p"
    twice = JobTemplate(output_path="$DRMAA2_HOME_DIR$/o", stage_out_files={"e": "f", f"{tmp_path}/e": "g"})
    assert room.backend.resolve(twice) == twice


def test_patience_is_the_jobs_own(open_room: Open, cluster: Cluster) -> None:
    """A program that finds it is neither more patient than the one that has submitted it, nor less."""
    first = open_room(detach=True, patience=math.inf)
    first.submit()
    first.backend.close(end=False)
    cluster.open_again()
    second = open_room(patience=0.0)
    second.backend.find(second.backend.remembered())
    cluster.pod("k-1", state=NO_IMAGE)
    cluster.heard()
    time.sleep(0.3)
    assert (second.ended(), second.backend._known.jobs["k-1"].patience) == (False, math.inf)  # noqa: SLF001


def test_closing_lets_those_with_their_files_live(
    open_room: Open, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Their image may still be on its way."""
    monkeypatch.setattr(module, "AWHILE", 0.1)
    monkeypatch.setattr(files, "put", lambda *_, **__: None)
    source = tmp_path / "in.csv"
    source.write_text("1")
    room = open_room(detach=True)
    room.submit(stage_in_files={"/in.csv": str(source)})
    name = cluster.pod("k-1")
    cluster.state(name, RUNNING, of="initContainerStatuses")
    until(lambda: room.backend._known.tasks["k-1"].supplied)  # noqa: SLF001
    room.backend.close(end=False)
    assert "have not got" not in caplog.text
    assert name in cluster.pods


def test_closing_lets_no_pod_wait_for_being_fetched(
    open_room: Open, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would have an hour, and its job is known to have ended."""
    done: list[str] = []
    monkeypatch.setattr(files, "fetch", lambda *_, **__: (_ for _ in ()).throw(LOST))
    monkeypatch.setattr(files, "done", lambda _, pod, shell: done.append(pod and shell and pod))
    room = open_room(directory=tmp_path)
    name = room.runs(stage_out_files={str(tmp_path / "x"): "/out/x"})
    cluster.state(name, ended(), initContainerStatuses=[{"name": "wfl-out", "state": RUNNING}])
    until(lambda: room.backend._known.tasks["k-1"].troubled)  # noqa: SLF001
    room.backend.close(end=True)
    assert done == [name]


def test_elements_that_will_not_run_again(room: Room, cluster: Cluster) -> None:
    """Their pods are gone, and the Job counts them as failed: they do not wait for the others' ends."""
    room.submit("k-1", range(2), rerunnable=True)
    names = [cluster.pod("k-1", number, state=RUNNING) for number in range(2)]
    until(lambda: room.last("k-1.1").state is JobState.RUNNING)
    held = threading.Event()
    cluster.on["list pods"] = lambda *_: held.wait(PATIENCE)
    cluster.cut("pods")
    until(lambda: cluster.count("list pods") >= 2)
    del cluster.pods[names[0]]
    held.set()
    until(lambda: room.last("k-1.0").state is JobState.REQUEUED)
    cluster.job("k-1")["status"]["failedIndexes"] = "0"
    cluster.tell("MODIFIED", "jobs", cluster.job("k-1"))
    assert room.end("k-1.0").state is JobState.FAILED
    assert not room.ended("k-1.1")

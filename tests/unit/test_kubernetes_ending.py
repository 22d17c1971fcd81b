"""Ending all Jobs of a program: what is asked for, and in which order."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from wfl.contexts import undertaker
from wfl.contexts.kubernetes import ending, facts
from wfl.contexts.kubernetes.client import REQUESTS, Client, NotThereError
from wfl.contexts.kubernetes.ending import (
    KILL,
    PIECE,
    UNENDED,
    cancel,
    end_all,
    end_program,
    kill_inside,
    pieces,
    remove_jobs,
    remove_pods,
)
from wfl.contexts.kubernetes.settings import Place
from wfl.contexts.undertaker import Undertaker
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, InvalidStateError, WflError

PROGRAM = "wfl/program=p"
CANCELLED = {"spec": {"suspend": True}, "metadata": {"annotations": {"wfl/suspended": "cancelled"}}}


def job(key: str, suspended: str | None = None, condition: str | None = None) -> dict[str, Any]:
    """A Job as a list has it."""
    notes = {} if suspended is None else {"wfl/suspended": suspended}
    conditions = [] if condition is None else [{"type": condition, "status": "True"}]
    return {
        "metadata": {"name": f"wfl-{key}", "labels": {"wfl/key": key}, "annotations": notes},
        "spec": {"suspend": suspended is not None},
        "status": {"conditions": conditions},
    }


def pod(key: str, *, over: bool = False, grace: int | None = None) -> dict[str, Any]:
    """A pod as a list has it: it runs, or has just ended; with a grace it was told to end."""
    state = {"terminated": {"exitCode": 0}} if over else {"running": {}}
    told = {} if grace is None else {"deletionGracePeriodSeconds": grace}
    return {
        "metadata": {"name": f"wfl-{key}-x", "labels": {"wfl/key": key}, **told},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Running", "containerStatuses": [{"name": "main", "state": state}]},
    }


class Server:
    """Stands for the client, and notes what it is asked for."""

    def __init__(self, *jobs: dict[str, Any], pods: Sequence[dict[str, Any]] = ()) -> None:
        self.jobs, self.pods = list(jobs), list(pods)
        self.asked: list[tuple[Any, ...]] = []
        self.gone: set[str] = set()
        self.refusals: dict[str, WflError] = {}
        self.status = 0

    @property
    def client(self) -> Client:
        """As what it stands for."""
        return cast("Client", self)

    def list(self, kind: str, selector: str, *, fields: str = "") -> tuple[list[dict[str, Any]], str]:
        """All of them."""
        self.asked.append(("list", kind, selector, *([fields] if fields else [])))
        return (self.jobs if kind == "jobs" else self.pods), "1"

    def exec(self, pod: str, container: str, command: Sequence[str], *, timeout: float) -> tuple[int, str]:
        """Only noted."""
        self.asked.append(("exec", pod, container, *command))
        assert timeout
        if pod in self.refusals:
            raise self.refusals[pod]
        return self.status, "not found"

    def patch(self, kind: str, name: str, body: Mapping[str, Any]) -> None:
        """Only noted."""
        self.asked.append(("patch", kind, name, body))
        if name in self.gone:
            raise NotThereError(name)

    def delete_all(self, kind: str, selector: str, *, grace: int | None = None, fields: str = "") -> None:
        """Only noted."""
        self.asked.append(("delete", kind, selector, grace, *([fields] if fields else [])))

    def delete(self, kind: str, name: str, *, grace: int) -> bool:
        """Only noted."""
        self.asked.append(("delete one", kind, name, grace))
        return True


def test_everything_is_removed_pods_first() -> None:
    """A Job that is removed first would give its pods all the time that they have; pods that came meanwhile go last."""
    server = Server(job("k-1"), job("k-2", condition="Complete"), job("k-3", "held"))
    assert end_program(server.client, "p", keep=False, end=True, shell="/bin/sh") == 3
    assert server.asked == [
        ("list", "jobs", PROGRAM),
        ("list", "pods", PROGRAM, "status.phase=Running"),
        ("delete", "pods", PROGRAM, KILL),
        ("delete", "jobs", PROGRAM, None),
        ("delete", "pods", PROGRAM, KILL),
    ]


def test_what_was_told_to_end_is_killed_by_a_command() -> None:
    """Its node would give it all the time that it was told."""
    pods = [pod("k-1", grace=3600), pod("k-2", grace=KILL), pod("k-3"), pod("k-4", grace=3600, over=True)]
    for shell, command in (("/bin/sh", ("/bin/sh", "-c", "kill -9 -1")), (None, ("kill", "-9", "-1"))):
        server = Server(job("k-1"), pods=pods)
        end_program(server.client, "p", keep=False, end=True, shell=shell)
        assert [asked for asked in server.asked if asked[0] == "exec"] == [("exec", "wfl-k-1-x", "main", *command)]


def test_why_nothing_could_be_killed() -> None:
    """In words; a container that has ended needs none."""
    server = Server()
    server.refusals = {"over": InvalidStateError("it does not run"), "mine": DeniedByDrmsError("no right")}
    assert kill_inside(server.client, "x", None) is None
    assert kill_inside(server.client, "over", None) is None
    assert kill_inside(server.client, "mine", None) == "no right"
    server.status = 127
    assert kill_inside(server.client, "x", None) == "not found"


def test_an_image_without_a_shell_keeps_no_other_from_being_killed() -> None:
    """It says nothing of its node."""
    pods = [pod(f"k-{number}", grace=30) for number in range(200)]
    server = Server(job("k-1"), pods=pods)
    server.status = 127
    end_program(server.client, "p", keep=False, end=True, shell="/bin/sh")
    assert [asked[0] for asked in server.asked].count("exec") == 200


def test_where_there_is_nothing_nothing_is_removed() -> None:
    """One question is all."""
    server = Server()
    assert end_program(server.client, "p", keep=False, end=True, shell="/bin/sh") == 0
    assert end_program(server.client, "p", keep=True, end=True, shell="/bin/sh") == 0
    assert server.asked == [("list", "jobs", PROGRAM)] * 2


def test_what_is_kept_is_cancelled() -> None:
    """With a store Jobs stay as records; those that have ended, or were cancelled, are left as they are."""
    jobs = [
        job("k-1"),
        job("k-2", condition="Failed"),
        job("k-3", "cancelled"),
        job("k-4", "held"),
        job("k-5", "making"),
    ]
    server = Server(*jobs)
    assert end_program(server.client, "p", keep=True, end=True, shell="/bin/sh") == 3
    which = "wfl/key in (k-1,k-4,k-5)"
    first, *patches, last = server.asked[2:]
    assert first == last == ("delete", "pods", which, KILL, UNENDED)
    assert sorted(patches, key=lambda asked: str(asked[2])) == [
        ("patch", "jobs", f"wfl-{key}", CANCELLED) for key in ("k-1", "k-4", "k-5")
    ]


def test_what_has_just_ended_is_no_more_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Job is told to be over two seconds later; an array goes on while there are elements without an end."""
    monkeypatch.setattr(facts, "LATE", 0.0)
    array = job("k-2")
    array["spec"]["completions"] = 2
    server = Server(job("k-1"), array, pods=[pod("k-1", over=True), pod("k-2", over=True)])
    assert end_program(server.client, "p", keep=True, end=True, shell=None) == 1
    assert [asked[2] for asked in server.asked if asked[0] == "patch"] == ["wfl-k-2"]
    other = pod("k-2", over=True)
    server.pods.append(other)  # another pod of the same element
    assert end_program(server.client, "p", keep=True, end=True, shell=None) == 1
    other["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] = "1"
    assert end_program(server.client, "p", keep=True, end=True, shell=None) == 0
    server.pods.append(pod("k-2"))
    assert end_program(server.client, "p", keep=True, end=True, shell=None) == 1


def test_what_the_cluster_has_ended_may_run_again() -> None:
    """The pod of a rerunnable job that was evicted is over, and another follows."""
    again, evicted = job("k-1"), pod("k-1", over=True)
    evicted["status"] |= {
        "phase": "Failed",
        "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}],
    }
    server = Server(again, pods=[evicted])
    assert end_program(server.client, "p", keep=True, end=True, shell=None) == 0
    again["spec"]["podFailurePolicy"] = {}
    assert end_program(server.client, "p", keep=True, end=True, shell=None) == 1


def test_what_is_just_over_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods go by their phases, which tell that a little later: what is over keeps its output."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    array = job("k-1")
    array["spec"]["completions"] = 2
    server = Server(array, pods=[pod("k-1"), pod("k-1", over=True)])
    end_program(server.client, "p", keep=True, end=True, shell=None)
    assert waited == [facts.LATE]
    server.pods = [pod("k-1")]
    end_program(server.client, "p", keep=True, end=True, shell=None)
    assert waited == [facts.LATE]


def test_what_waits_for_being_fetched_goes_on_waiting() -> None:
    """For a program that comes back; the other elements go, one by one."""
    array, waits = job("k-1"), pod("k-1", over=True)
    array["spec"]["completions"] = 2
    waits["status"]["initContainerStatuses"] = [{"name": "wfl-out", "state": {"running": {}}}]
    server = Server(array, pods=[pod("k-1"), waits])
    server.pods[0]["metadata"]["name"] = "runs"
    assert end_program(server.client, "p", keep=True, end=True, shell=None) == 1
    assert server.asked[2:] == [("delete one", "pods", "runs", KILL), ("patch", "jobs", "wfl-k-1", CANCELLED)]


def test_a_node_that_does_not_answer_is_asked_once() -> None:
    """Closing does not wait for each pod of a machine that is gone; all else was removed before."""
    pods = [pod(f"k-{number}", grace=30) for number in range(200)]
    server = Server(job("k-1"), pods=pods)
    server.refusals = {one["metadata"]["name"]: DrmCommunicationError("no route") for one in pods}
    end_program(server.client, "p", keep=False, end=True, shell=None)
    asked = [asked[0] for asked in server.asked]
    assert asked.index("exec") > max(number for number, what in enumerate(asked) if what == "delete")
    assert asked.count("exec") <= 2 * REQUESTS


@pytest.mark.parametrize("keep", [True, False])
def test_what_lives_on_lives_on_but_what_was_never_completed(keep: bool) -> None:  # noqa: FBT001 - by pytest
    """A Job whose ConfigMaps were never made could never run."""
    server = Server(job("k-1"), job("k-2", "making"), job("k-3", "held"))
    assert end_program(server.client, "p", keep=keep, end=False, shell="/bin/sh") == 0
    assert server.asked == [("list", "jobs", PROGRAM), ("delete", "jobs", "wfl/key in (k-2)", None)]


def test_a_job_that_is_gone_needs_no_cancelling() -> None:
    """Somebody was quicker; the others are cancelled all the same."""
    server = Server()
    server.gone = {"a"}
    cancel(server.client, {"k-1": "a", "k-2": "b"}, 5)
    assert {asked[2] for asked in server.asked if asked[0] == "patch"} == {"a", "b"}


def test_jobs_alone_may_be_cancelled() -> None:
    """Their pods have been told already, or are to go on."""
    server = Server()
    cancel(server.client, {"k-1": "a"}, 5, pods=False)
    assert server.asked == [("patch", "jobs", "a", CANCELLED)]


def test_selectors_name_a_few_keys_each() -> None:
    """They are part of a URL."""
    keys = [f"k-{number}" for number in range(2 * PIECE + 1)]
    parts = pieces(keys)
    assert [len(part) for part in parts] == [PIECE, PIECE, 1]
    assert [key for part in parts for key in part] == keys
    server = Server()
    cancel(server.client, {key: key for key in keys}, 5)
    removed = [asked for asked in server.asked if asked[0] == "delete"]
    assert len(removed) == 6
    assert all(asked[3] == 5 for asked in removed)


def test_pods_and_jobs_go_in_one_request() -> None:
    """However many they are."""
    server = Server()
    remove_pods(server.client, ["k-1", "k-2.3"], 7)
    remove_jobs(server.client, ["k-1", "k-2.3"])
    which = "wfl/key in (k-1,k-2.3)"
    assert server.asked == [("delete", "pods", which, 7, UNENDED), ("delete", "jobs", which, None)]


# --- in the helper ----------------------------------------------------------------------------------------


class Found(Server):
    """A cluster whose Jobs go when they are removed; the first questions are not answered."""

    def __init__(self, *jobs: dict[str, Any], away: int = 0) -> None:
        super().__init__(*jobs)
        self.away, self.places, self.closed = away, list[Place](), 0

    def __call__(self, place: Place) -> "Found":
        """As the class of clients."""
        self.places.append(place)
        return self

    def list(self, kind: str, selector: str, *, fields: str = "") -> tuple[list[dict[str, Any]], str]:
        """All Jobs, if it is there."""
        self.away -= 1
        if self.away >= 0:
            raise DrmCommunicationError("nobody is there")
        return super().list(kind, selector, fields=fields)

    def delete_all(self, kind: str, selector: str, *, grace: int | None = None, fields: str = "") -> None:
        """Remove them."""
        super().delete_all(kind, selector, grace=grace, fields=fields)
        if kind == "jobs":
            self.jobs = []

    def close(self) -> None:
        """Only counted."""
        self.closed += 1


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undertaker, "AFTERMATH", 0.001)
    monkeypatch.setattr(undertaker, "PAUSE", (0.001, 0.001))


@pytest.mark.usefixtures("_quick")
def test_the_helper_ends_all_until_none_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever breaks off is tried again; what the program kept on this side is removed."""
    server = Found(job("k-1"), away=2)
    monkeypatch.setattr(ending, "Client", server)
    place = tmp_path / "output"
    place.mkdir()
    (place / "k-1.log").write_text("x")
    end_all(Place(namespace="n").to_dict(), "p", place=str(place))
    assert not place.exists()
    assert server.jobs == []
    assert [asked[:2] for asked in server.asked] == [
        *[("list", "jobs"), ("list", "pods"), ("delete", "pods"), ("delete", "jobs"), ("delete", "pods")],
        *[("list", "jobs")] * 2,
    ]  # fmt: skip
    assert server.places[0] == Place(namespace="n", timeout=ending.REQUEST)
    assert server.closed == len(server.places) == 5


def test_the_helper_is_told_where_and_what(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As JSON; it finds the function by its name."""
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Undertaker, "start", lambda *given, **more: told.append((*given, more)))
    ending.watch(Place(namespace="n", impersonate_groups=("g",)), "p", keep=True, shell="ash", place=tmp_path)
    ((function, arguments, more),) = told
    assert function == "wfl.contexts.kubernetes.ending:end_all"
    said = json.loads(json.dumps(arguments, default=str))
    assert Place.from_dict(said.pop("where")) == Place(namespace="n", impersonate_groups=("g",))
    assert said == {"program": "p", "keep": True, "shell": "ash", "place": str(tmp_path)}
    assert more == {"lost": None, "log": "/dev/null"}

"""Ending all Jobs of a program: what is asked for, and in which order."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from wfl.contexts import undertaker
from wfl.contexts.kubernetes import ending
from wfl.contexts.kubernetes.client import Client, NotThereError
from wfl.contexts.kubernetes.ending import KILL, PIECE, cancel, end_all, end_program, pieces, remove_jobs, remove_pods
from wfl.contexts.kubernetes.settings import Place
from wfl.contexts.undertaker import Undertaker
from wfl.errors import DrmCommunicationError

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


class Server:
    """Stands for the client, and notes what it is asked for."""

    def __init__(self, *jobs: dict[str, Any]) -> None:
        self.jobs = list(jobs)
        self.asked: list[tuple[Any, ...]] = []
        self.gone: set[str] = set()

    @property
    def client(self) -> Client:
        """As what it stands for."""
        return cast("Client", self)

    def list(self, kind: str, selector: str) -> tuple[list[dict[str, Any]], str]:
        """All Jobs."""
        self.asked.append(("list", kind, selector))
        return self.jobs, "1"

    def patch(self, kind: str, name: str, body: Mapping[str, Any]) -> None:
        """Only noted."""
        self.asked.append(("patch", kind, name, body))
        if name in self.gone:
            raise NotThereError(name)

    def delete_all(self, kind: str, selector: str, *, grace: int | None = None) -> None:
        """Only noted."""
        self.asked.append(("delete", kind, selector, grace))


def test_everything_is_removed_pods_first() -> None:
    """A Job that is removed first would give its pods all the time that they have; pods that came meanwhile go last."""
    server = Server(job("k-1"), job("k-2", condition="Complete"), job("k-3", "held"))
    assert end_program(server.client, "p", keep=False, end=True) == 3
    assert server.asked == [
        ("list", "jobs", PROGRAM),
        ("delete", "pods", PROGRAM, KILL),
        ("delete", "jobs", PROGRAM, None),
        ("delete", "pods", PROGRAM, KILL),
    ]


def test_where_there_is_nothing_nothing_is_removed() -> None:
    """One question is all."""
    server = Server()
    assert end_program(server.client, "p", keep=False, end=True) == 0
    assert end_program(server.client, "p", keep=True, end=True) == 0
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
    assert end_program(server.client, "p", keep=True, end=True) == 3
    which = "wfl/key in (k-1,k-4,k-5)"
    first, *patches, last = server.asked[1:]
    assert first == last == ("delete", "pods", which, KILL)
    assert sorted(patches, key=lambda asked: str(asked[2])) == [
        ("patch", "jobs", f"wfl-{key}", CANCELLED) for key in ("k-1", "k-4", "k-5")
    ]


@pytest.mark.parametrize("keep", [True, False])
def test_what_lives_on_lives_on_but_what_was_never_completed(keep: bool) -> None:  # noqa: FBT001 - by pytest
    """A Job whose ConfigMaps were never made could never run."""
    server = Server(job("k-1"), job("k-2", "making"), job("k-3", "held"))
    assert end_program(server.client, "p", keep=keep, end=False) == 0
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
    assert server.asked == [("delete", "pods", which, 7), ("delete", "jobs", which, None)]


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

    def list(self, kind: str, selector: str) -> tuple[list[dict[str, Any]], str]:
        """All Jobs, if it is there."""
        self.away -= 1
        if self.away >= 0:
            raise DrmCommunicationError("nobody is there")
        return super().list(kind, selector)

    def delete_all(self, kind: str, selector: str, *, grace: int | None = None) -> None:
        """Remove them."""
        super().delete_all(kind, selector, grace=grace)
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
        *[("list", "jobs"), ("delete", "pods"), ("delete", "jobs"), ("delete", "pods")],
        *[("list", "jobs")] * 2,
    ]  # fmt: skip
    assert server.places[0] == Place(namespace="n", timeout=ending.REQUEST)
    assert server.closed == len(server.places) == 5


def test_the_helper_is_told_where_and_what(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As JSON; it finds the function by its name."""
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Undertaker, "start", lambda *given, **more: told.append((*given, more)))
    ending.watch(Place(namespace="n", impersonate_groups=("g",)), "p", keep=True, place=tmp_path)
    ((function, arguments, more),) = told
    assert function == "wfl.contexts.kubernetes.ending:end_all"
    said = json.loads(json.dumps(arguments, default=str))
    assert Place.from_dict(said.pop("where")) == Place(namespace="n", impersonate_groups=("g",))
    assert said == {"program": "p", "keep": True, "place": str(tmp_path)}
    assert more == {"lost": None, "log": "/dev/null"}

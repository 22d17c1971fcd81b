"""Files that are copied back from a login node: an end is told when they have arrived, and not otherwise."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from wfl import JobInfo, JobState, JobTemplate
from wfl.backend import Submission
from wfl.contexts.batch import engine
from wfl.contexts.batch.carrier import Carrier
from wfl.contexts.batch.command import Commands
from wfl.contexts.batch.engine import BatchBackend
from wfl.contexts.batch.machine import Here
from wfl.contexts.batch.place import Entry, Place
from wfl.contexts.batch.slurm import Slurm
from wfl.errors import DrmCommunicationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from wfl.contexts.batch.machine import Copies

JOB = JobTemplate(remote_command="true", stage_out_files={"/tmp/here": "there"})
END = "begun 1\nover 2\nid 12\nstatus 0\n.\n"


class Away(Here):
    """A login node with this machine's files. `get` is what copying back does."""

    is_away = True
    breaks = 0

    def __init__(self, get: Callable[[], object]) -> None:
        self._get = get
        self.asked_for: list[str] = []

    def copies(self, mark: str) -> Copies:
        """Those of this."""
        del mark
        return self

    def put_all(self, files: Mapping[str, str], wait: Callable[[float], object]) -> None:
        """Not used here."""
        raise NotImplementedError

    def get(self, source: str, target: str, wait: Callable[[float], object]) -> None:
        """As it was given."""
        del source, wait
        self.asked_for.append(target)
        self._get()


class Between:
    """A lock after whose release something else happens, once, when it is released by a thread that copies."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.then: Callable[[], object] | None = None

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if self.then is not None and threading.current_thread() is not threading.main_thread():
            then, self.then = self.then, None
            then()


def wait_for(f: Callable[[], str | None]) -> str:
    """What it says at last."""
    until = time.monotonic() + 30
    while (found := f()) is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def test_asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a copy has broken off and is asked for again in that very moment, nothing is called lost."""
    tries = iter([DrmCommunicationError("away")])

    def get() -> None:
        for error in tries:
            raise error
        time.sleep(0.5)

    carrier, entry, lock = Carrier(Away(get)), Entry("p-1", JOB, "p-1"), Between()
    monkeypatch.setattr(carrier, "_lock", lock)
    lock.then = lambda: carrier.fetched(entry, "p-1")
    assert carrier.fetched(entry, "p-1") is None
    assert wait_for(lambda: carrier.fetched(entry, "p-1")) == ""
    carrier.close()


def test_what_arrived_is_not_copied_again(caplog: pytest.LogCaptureFixture) -> None:
    """Files that are here stay so when the next break off, which is told once; a machine that is away is no end."""
    tries = iter((None, *[DrmCommunicationError("away")] * 10))

    def get() -> None:
        if (error := next(tries, None)) is not None:
            raise error

    machine = Away(get)
    carrier, entry = Carrier(machine), Entry("p-1", JOB.replace(stage_out_files={"/one": "1", "/two": "2"}), "p-1")
    assert wait_for(lambda: carrier.fetched(entry, "p-1")) == ""
    assert machine.asked_for == ["/one"] + ["/two"] * 11
    assert caplog.messages == ["files cannot be copied back now, trying again: away"]
    carrier.close()


def test_what_always_breaks_off_has_an_end() -> None:
    """A machine that is reached, and of which nothing more arrives again and again, keeps no job from its end."""

    def get() -> None:
        machine.breaks += 2
        raise DrmCommunicationError("it broke off")

    machine = Away(get)
    carrier, entry = Carrier(machine), Entry("p-1", JOB, "p-1")
    assert wait_for(lambda: carrier.fetched(entry, "p-1")) == "stage_out_files: it broke off"
    assert len(machine.asked_for) == 3
    carrier.close()


def test_an_end_waits_for_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However long they take, neither the job's own word nor the list's begins the time that the rest may take."""
    arrive = threading.Event()
    answers = {"sbatch": "12\n", "squeue": "", "sacct": "", "scontrol": ""}

    def run(_: Commands, argv: Sequence[str], *others: object, **more: object) -> str:
        del others, more
        return answers[argv[0]]

    monkeypatch.setattr(Commands, "run", run)
    monkeypatch.setattr(engine, "ASK", (0.0, 0.0))
    monkeypatch.setattr(engine, "USAGE", -1.0)
    backend = BatchBackend(
        Slurm(),
        directory=str(tmp_path),
        session_name="s",
        timeout=10,
        environment={},
        inherit=False,
        detach=True,
        machine=Away(lambda: arrive.wait(30)),
    )
    backend.open(lambda _: None, None)
    assert backend.submit([Submission("program-1", JOB, "1")]) == ["12"]
    for kind in ("run", "end"):
        (tmp_path / "s/program" / kind / "1").write_text(END)
    answers["squeue"] = "12|COMPLETED|1000|1001|1|debug|n1|wfl:program-1|None\n"

    def ends() -> list[JobInfo]:
        return [info for info in backend.ask(["12"]).infos if info.state.ended]

    def lost(*_: object) -> None:
        raise DrmCommunicationError("away")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Place, "ends", lost)
        assert ends() == []
    assert [ends() for _ in range(3)] == [[]] * 3
    arrive.set()
    wait_for(lambda: "told" if ends() else None)
    (info,) = backend.collect(["12"])
    assert (info.state, info.exit_status) == (JobState.DONE, 0)
    backend.close(end=False)

"""What a scheduler's commands say that is no answer, or half of one, or the same id twice."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from wfl import (
    DeniedByDrmsError,
    DrmCommunicationError,
    JobInfo,
    JobState,
    JobTemplate,
    SessionManagementError,
    TryLaterError,
)
from wfl.backend import Action, Submission
from wfl.contexts.batch import client, engine
from wfl.contexts.batch.command import Commands
from wfl.contexts.batch.gridengine import GridEngine, GridEngineContext
from wfl.contexts.batch.place import Place
from wfl.contexts.batch.slurm import Slurm, SlurmContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from wfl.contexts.batch.engine import BatchBackend
    from wfl.contexts.batch.scheduler import Scheduler

JOB = JobTemplate(remote_command="true")
LISTED = "{}|{}|1000|1001|1|debug|n1|wfl:{}|None\n"
RECORD = "{0}|{0}|{1}|0:0|1000|1001|1002|1|00:01||1|debug|n1|None\n"


class Replay:
    """What the commands answer, by their names, and with what they were called."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[], str]] = dict.fromkeys(("squeue", "sacct", "scontrol", "scancel"), str)
        self.called: list[Sequence[str]] = []
        self.told: list[JobInfo] = []

    def run(self, argv: Sequence[str], *others: object, **more: object) -> str:
        """In place of `Commands.run`."""
        del others, more
        self.called.append(argv)
        return self.answers[argv[0]]()

    def report(self, infos: Iterable[JobInfo]) -> None:
        """In place of the ledger's ear."""
        self.told += infos


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Replay:
    """A Slurm of which nothing is to be waited for."""
    replay = Replay()
    monkeypatch.setattr(Commands, "run", replay.run)
    for name in ("LOOK", "ASK"):
        monkeypatch.setattr(engine, name, (0.0, 0.0))
    monkeypatch.setattr(engine, "GONE", -1.0)
    monkeypatch.setattr(engine, "LATE", 0.0)
    return replay


@pytest.fixture
def backend(replay: Replay, tmp_path: Path) -> Iterator[BatchBackend]:
    """A session there."""
    backend = SlurmContext(directory=tmp_path, session_name="s").backend()
    backend.open(replay.report, None)
    yield backend
    backend.close(end=False)


def run(backend: BatchBackend, replay: Replay, id: str, number: int) -> str:
    """Submit one job, to which the scheduler gives this id."""
    replay.answers["sbatch"] = lambda: f"{id}\n"
    (outcome,) = backend.submit([Submission(f"program-{number}", JOB, "1")])
    assert isinstance(outcome, str)
    return outcome


def refuse(words: str) -> Callable[[], str]:
    """An answer that is an error."""

    def answer() -> str:
        raise DeniedByDrmsError(words)

    return answer


@pytest.mark.parametrize("scheduler", [Slurm(), GridEngine()], ids=["slurm", "gridengine"])
@pytest.mark.parametrize("said", ["", "\n", "Service Unavailable\n", "7 of 8\n"])
def test_submission_without_an_id(scheduler: Scheduler, said: str) -> None:
    """A submission that ends well and tells no id may have been accepted: nobody knows, it is not refused."""
    with pytest.raises(DrmCommunicationError, match="did not tell an id"):
        scheduler.accepted(said)


def test_submission_with_remarks() -> None:
    """What is said before the id does no harm."""
    assert Slurm().accepted("warning: maintenance\n12;cluster\n") == "12"
    assert GridEngine().accepted("warning: maintenance\n12.1-4:1\n") == "12"


@pytest.mark.parametrize("said", ["12|RUNN", "<html>", "12|RUNNING|1000|1001|1|debug|n1|wfl:a-1|None\n13|"])
def test_half_a_list(said: str) -> None:
    """A list that ends within a line is no answer: what is missing from it may be there."""
    with pytest.raises(DrmCommunicationError, match="not whole"):
        list(Slurm().seen(said))


def test_remark_in_a_list() -> None:
    """A line that is none of the list's is passed over."""
    (seen,) = Slurm().seen("maintenance tonight\n" + LISTED.format(12, "RUNNING", "a-1"))
    assert (seen.id, seen.key) == ("12", "a-1")


def test_half_a_record() -> None:
    """A record that was cut tells nothing, neither slurmdbd's nor the controller's."""
    with pytest.raises(DrmCommunicationError, match="not whole"):
        list(Slurm().accounts(RECORD.format(12, "COMPLETED")[:20], 0))
    assert not list(Slurm().accounts("JobId=12 JobName=x JobState=COMPLETED Reason=None", 1))


def test_record_of_what_goes_on() -> None:
    """The state of a job that slurmdbd has not heard the end of is no word about its end."""
    (account,) = Slurm().accounts(RECORD.format(12, "RUNNING"), 0)
    assert (account.over, account.info.annotation) == (False, None)


def test_refusal_of_the_moment(backend: BatchBackend, replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error instead of records is no proof that there are none: they are looked at again, until that is sure."""
    id = run(backend, replay, "12", 1)
    replay.answers |= {"sacct": refuse("error: odd"), "scontrol": refuse("error: odd")}
    assert backend.ask([id]).gone == []
    replay.answers["sacct"] = lambda: RECORD.format(12, "CANCELLED")
    assert [info.state for info in backend.ask([id]).infos] == [JobState.DONE], "it has ended; how, is to be collected"
    (info,) = backend.collect([id])
    assert info.sub_state == "cancelled"
    replay.answers["sacct"] = refuse("error: odd")
    monkeypatch.setattr(client, "REFUSED", -1.0)
    run(backend, replay, "13", 2)
    (info,) = backend.ask(["13"]).infos
    assert (info.sub_state, info.annotation) == ("cancelled", "it was deleted before it began")


def test_no_file_of_records_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grid Engine makes its file of records with the first end: who asks before that asks again later."""
    said = "/sge/default/common/accounting: No such file or directory\nno jobs running since startup"
    answers: Iterator[Callable[[], str]] = iter([refuse(said), refuse(said), lambda: "x"])
    monkeypatch.setattr(Commands, "run", lambda *_, **__: next(answers)())
    asking = client.Client(GridEngine(), environment={}, timeout=1)
    for _ in range(2):
        with pytest.raises(DeniedByDrmsError):
            asking.accounts(["12"], datetime.now(UTC))
        assert asking.keeps_records
    assert asking.accounts(["12"], datetime.now(UTC)) == ({}, True)


def test_list_counts_without_records(backend: BatchBackend, replay: Replay) -> None:
    """What the list says of some is told, though nobody answers what has become of others."""
    ids = [run(backend, replay, "12", 1), run(backend, replay, "13", 2)]

    def down() -> str:
        raise DrmCommunicationError("slurmdbd is away")

    replay.answers |= {"squeue": lambda: LISTED.format(12, "CANCELLED", "program-1"), "sacct": down}
    answer = backend.ask(ids)
    assert [(info.id, info.state) for info in answer.infos] == [("12", JobState.FAILED)]
    assert answer.gone == []


def test_disk_that_is_full(backend: BatchBackend, replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the scheduler has accepted runs, also where its id cannot be written down: it is not called refused."""

    def full(*_: object) -> None:
        raise SessionManagementError("no space left")

    monkeypatch.setattr(Place, "accept", full)
    assert run(backend, replay, "12", 1) == "12"


def test_part_that_is_refused(backend: BatchBackend, replay: Replay) -> None:
    """Of an array of which a later part is refused nothing runs, and nothing is left."""
    answers = iter(["12"])

    def accept_one() -> str:
        for answer in answers:
            return f"{answer}\n"
        raise DeniedByDrmsError("no more")

    replay.answers |= {"scontrol": lambda: "MaxArraySize = 3\n", "sbatch": accept_one}
    outcomes = backend.submit_array(Submission("program-1", JOB, "1"), range(4), None)
    assert ["parts of the array before that were cancelled" in str(outcome) for outcome in outcomes] == [True] * 4
    assert ["scancel", "12"] in replay.called
    assert list(backend.place.all_entries()) == []


def test_same_id_again(backend: BatchBackend, replay: Replay) -> None:
    """A slurmctld that was killed forgets its last jobs and gives their ids again: neither is taken for the other."""
    first, second = run(backend, replay, "12", 1), run(backend, replay, "12", 2)
    assert first == "12"
    assert second != first
    (lost,) = replay.told
    assert (lost.id, lost.sub_state) == (first, "lost")
    replay.answers["squeue"] = lambda: LISTED.format(12, "RUNNING", "program-2")
    assert [(info.id, info.state) for info in backend.ask([second]).infos] == [(second, JobState.RUNNING)]
    backend.control([second], Action.TERMINATE)
    assert list(replay.called[-1]) == ["scancel", "12"]
    replay.answers |= {"squeue": str, "sacct": lambda: RECORD.format(12, "CANCELLED")}
    assert [info.id for info in backend.ask([second]).infos] == [second]
    (info,) = backend.collect([second])
    assert (info.id, info.sub_state) == (second, "cancelled")
    backend.reap([first])
    assert backend.read(second, "stdout", 0, 10) == (b"", True)


def test_silent_command_has_said_why(tmp_path: Path) -> None:
    """The words of a command that does not end are in the error; what it has started ends with it."""
    script = tmp_path / "sbatch"
    script.write_text(
        f"#!/bin/sh\necho 'Slurm temporarily unable to accept job' >&2\nsleep 600 &\necho $! >{tmp_path}/pid\nwait\n"
    )
    script.chmod(0o755)
    commands = Commands("slurm", site={}, answers={}, down=lambda _: False, timeout=0.5)
    with pytest.raises(DrmCommunicationError, match=r"within 0\.5 s: Slurm temporarily unable"):
        commands.run([str(script)])
    stat = tmp_path.joinpath("pid").read_text().strip()
    end = time.monotonic() + 60
    while _lives(stat):
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.01)


def test_no_room_for_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who has as many jobs as he may have is told to try later, in Grid Engine's words."""
    words = "gridengine: qsub: Unable to run job: job rejected: only 4 jobs are allowed per user (current job count: 4)"
    monkeypatch.setattr(Commands, "run", lambda *_, **__: refuse(words)())
    backend = GridEngineContext(directory=tmp_path, session_name="s").backend()
    backend.open(lambda _: None, None)
    (outcome,) = backend.submit([Submission("program-1", JOB, "1")])
    assert isinstance(outcome, TryLaterError)
    assert "allowed per user" in str(outcome)
    backend.close(end=False)


def _lives(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_an_array_that_was_reaped_in_part(backend: BatchBackend, replay: Replay, tmp_path: Path) -> None:
    """A program that comes back finds the elements that are left, and nothing stays when these are reaped, too."""
    replay.answers |= {"sbatch": lambda: "12\n", "scontrol": lambda: "MaxArraySize = 1001\n"}
    ids = backend.submit_array(Submission("program-1", JOB, "1"), range(1, 4), None)
    backend.reap([str(id) for id in ids[:2]])
    again = SlurmContext(directory=tmp_path, session_name="s").backend()
    again.open(replay.report, None)
    (known,) = again.remembered()
    assert (known.key, known.index) == ("program-1.3", 3)
    replay.answers["squeue"] = lambda: LISTED.format("12_3", "RUNNING", "program-1")
    (info,) = again.find([known]).infos
    again.reap([str(info.id)])
    assert not list(again.place.all_entries())
    again.close(end=False)
    assert not (tmp_path / "s" / "program").exists()

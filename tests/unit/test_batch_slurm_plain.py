"""Slurm without slurmdbd and without cgroups, which forgets ends and tells little of them, by a replay of its words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from wfl import JobInfo, JobState, JobTemplate, Workflow
from wfl.backend import Action, Known, Submission
from wfl.contexts.batch import engine
from wfl.contexts.batch.command import Commands
from wfl.contexts.batch.engine import BatchBackend
from wfl.contexts.batch.slurm import Slurm, SlurmContext
from wfl.drmaa2 import SubState
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, InvalidStateError, SessionManagementError

Answer = Callable[[Sequence[str]], str]

KEY = "program-1"
JOB = JobTemplate(remote_command="true")
LOG = """\
slurmstepd-vm: error: StepId=501.batch exceeded memory limit (315326464 > 52428800), being killed
slurmstepd-vm: error: Exceeded job memory limit
slurmstepd-vm: error: *** JOB 501 ON vm CANCELLED AT 2026-11-21T16:57:57 ***
"""
"""Of an array of two, whose elements have the numbers 501 and 500 for themselves; Slurm 22.05."""
RECORD = (
    "JobId={} {}JobName=mem JobState={} Reason={} ExitCode={} SubmitTime=1000 StartTime={} EndTime=1002 "
    "Partition=debug NodeList={} NumNodes=1 NumCPUs=1 StdOut=/log\n"
)


class Replay:
    """What the commands answer, by their names; sacct has no records to show."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {
            "sbatch": lambda _: "500\n",
            "squeue": lambda _: "",
            "sacct": _no_accounting,
            "scontrol": lambda _: "",
            "scancel": lambda _: "",
        }

    def run(self, argv: Sequence[str], *others: object, **more: object) -> str:
        """In place of `Commands.run`."""
        del others, more
        return self.answers[argv[0]](argv)


def _no_accounting(argv: Sequence[str]) -> str:
    raise DeniedByDrmsError(f"slurm: {argv[0]}: Slurm accounting storage is disabled")


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Replay:
    """A Slurm without jobs; what is not to be waited for comes at once."""
    replay = Replay()
    monkeypatch.setattr(Commands, "run", replay.run)
    for name in ("GONE", "USAGE"):
        monkeypatch.setattr(engine, name, -1.0)
    monkeypatch.setattr(engine, "LOOK", (0.0, 0.0))
    monkeypatch.setattr(engine, "ASK", (0.0, 0.0))
    return replay


@pytest.fixture
def backend(replay: Replay, tmp_path: Path) -> Iterator[BatchBackend]:
    """A session there."""
    del replay
    backend = SlurmContext(directory=tmp_path, session_name="s").backend()
    backend.open(lambda _: None, None)
    yield backend
    backend.close(end=False)


def run(backend: BatchBackend) -> str:
    """Submit one job."""
    (id,) = backend.submit([Submission(KEY, JOB, KEY)])
    assert isinstance(id, str)
    return id


def array(backend: BatchBackend, count: int) -> list[str]:
    """Submit an array."""
    return [str(id) for id in backend.submit_array(Submission(KEY, JOB, KEY), range(1, count + 1), None)]


@pytest.mark.parametrize(
    ("called", "cause", "words"),
    [
        ("501", "out_of_memory", "exceeded memory limit"),
        ("500", None, ""),
        ("50", None, ""),
        ("7", "timeout", "DUE TO TIME LIMIT"),
        ("8", "cancelled", "JOB 8 ON"),
        ("9", "out_of_memory", "oom-kill"),
    ],
)
def test_words_in_the_log(called: str, cause: SubState | None, words: str) -> None:
    """Why a job ended is told by slurmstepd's words about that very job."""
    log = (
        LOG
        + "slurmstepd: error: *** JOB 7 ON n CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***\n"
        + "slurmstepd: error: *** JOB 8 ON n CANCELLED AT 2026-01-01T00:00:00 ***\n"
        + "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=9.batch. Some of your processes may have been "
        + "killed by the cgroup out-of-memory handler.\n"
    )
    told = Slurm().explained(log, called)
    assert (told and told[0]) == cause
    assert words in (told[1] if told else "")


def test_out_of_memory(backend: BatchBackend, replay: Replay) -> None:
    """With OverMemoryKill the record has no more than a SIGKILL: the log tells which elements had too much memory."""
    ids = array(backend, 2)
    Path(backend.place.path("log", KEY)).write_text(LOG)
    replay.answers["scontrol"] = lambda _: "".join(
        RECORD.format(number, f"ArrayJobId=500 ArrayTaskId={task} ", "FAILED", "JobLaunchFailure", "0:9", 1001, "vm")
        for number, task in ((501, 1), (500, 2))
    )
    ends = {str(info.id): info for info in backend.collect(ids)}
    assert (ends["500_1"].sub_state, ends["500_1"].exit_status) == ("out_of_memory", 137)
    assert "StepId=501.batch exceeded memory limit" in (ends["500_1"].annotation or "")
    assert (ends["500_2"].sub_state, ends["500_2"].exit_status) == ("signaled", 137)


def test_forgotten(backend: BatchBackend) -> None:
    """After MinJobAge nothing is known of a job that was deleted before it began: it was cancelled."""
    id = run(backend)
    backend.find([Known(KEY, None, JOB)])  # asked for its records, sacct has refused
    (info,) = backend.find([Known(KEY, None, JOB)]).infos
    assert (info.id, info.sub_state, info.exit_status) == (id, "cancelled", None)


def test_forgotten_by_slurmdbd(backend: BatchBackend, replay: Replay) -> None:
    """Where records are kept for good, a job that is in none of them is not known to have been cancelled."""
    replay.answers["sacct"] = lambda _: ""
    run(backend)
    backend.find([Known(KEY, None, JOB)])
    answer = backend.find([Known(KEY, None, JOB)])
    assert (answer.infos, answer.gone) == ([], [KEY])


@pytest.mark.parametrize("words", ["*** JOB 500 ON vm CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***", ""])
def test_forgotten_after_it_began(backend: BatchBackend, words: str) -> None:
    """Of a job that ran and left no record of its end, the log may still say why; else it is lost."""
    id = run(backend)
    Path(backend.place.path("run", KEY)).touch()
    Path(backend.place.path("log", KEY)).write_text(words)
    answer = backend.find([Known(KEY, None, JOB)])
    if words:
        (info,) = answer.infos
        assert (info.id, info.sub_state, info.exit_status) == (id, "timeout", 137)
    else:
        assert answer.gone == [KEY]


@pytest.mark.parametrize(
    ("words", "cause"),
    [("JOB 500 ON vm CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT", "timeout"), ("", "exited")],
)
def test_record_of_its_own(backend: BatchBackend, words: str, cause: SubState) -> None:
    """A job that has written its end down has ended so, whatever Slurm has forgotten; its log may tell why."""
    id = run(backend)
    Path(backend.place.path("run", KEY)).touch()
    Path(backend.place.path("end", KEY)).write_text("status 7\nid 500\n.\n")
    Path(backend.place.path("log", KEY)).write_text(words)
    (seen,) = backend.find([Known(KEY, None, JOB)]).infos
    assert seen.state.ended
    (info,) = backend.collect([id])
    assert (info.sub_state, info.exit_status) == (cause, 7)


def test_shorter_than_the_clock_tells(backend: BatchBackend) -> None:
    """A job that began and ended in the same hundredth of a second took no time, which is known."""
    id = run(backend)
    Path(backend.place.path("run", KEY)).touch()
    Path(backend.place.path("end", KEY)).write_text("status 0\nid 500\nbegun 5.25\nover 5.25\n.\n")
    (info,) = backend.collect([id])
    assert info.wallclock_time == timedelta(0)


def test_normal_end_has_no_words(backend: BatchBackend, replay: Replay) -> None:
    """That a job failed because of its exit status goes without saying."""
    id = run(backend)
    replay.answers["scontrol"] = lambda _: RECORD.format(500, "", "FAILED", "NonZeroExitCode", "3:0", 1001, "vm")
    (info,) = backend.collect([id])
    assert (info.exit_status, info.annotation) == (3, None)


def test_machines_of_what_never_ran(replay: Replay, tmp_path: Path) -> None:
    """What was cancelled while it waited has no machines, and an array of such can be looked at as a whole."""
    replay.answers["squeue"] = lambda _: "500_[1-2]|CANCELLED|1000|1001|1|debug||wfl:x|None"
    replay.answers["scontrol"] = lambda _: RECORD.format(
        500, "ArrayJobId=500 ArrayTaskId=1-2 ", "CANCELLED", "None", "0:0", 1001, "(null)"
    )
    with Workflow(SlurmContext(directory=tmp_path, session_name="s")) as flow:
        job = flow.run_array(2, "true").kill().wait(60)
        infos: list[JobInfo] = job.infos()
        assert [info.allocated_machines for info in infos] == [(), ()]
        assert job.tasks[0].info().sub_state == "cancelled"


def test_suspend_a_part(backend: BatchBackend, replay: Replay) -> None:
    """To suspend an array is done to those elements that run: of the others it is said that they do not."""
    ids = array(backend, 3)

    def suspend(argv: Sequence[str]) -> str:
        if argv[1] == "suspend":
            raise DeniedByDrmsError("slurm: scontrol: 500_1: No error 500_2-3: Job is pending execution")
        return ""

    replay.answers["scontrol"] = suspend
    replay.answers["squeue"] = lambda _: (
        "500_1|SUSPENDED|1000|1001|1|debug|vm|wfl:program-1|None\n"
        "500_[2-3]|PENDING|1000||1|debug||wfl:program-1|Resources\n"
    )
    failures = backend.control(ids, Action.SUSPEND)
    assert set(failures) == {"500_2", "500_3"}
    assert all(isinstance(error, InvalidStateError) for error in failures.values())


def test_part_that_comes_late(backend: BatchBackend, replay: Replay) -> None:
    """A part of an array whose submission got no answer, and which is not there, ends at once should it come late."""
    replay.answers["scontrol"] = lambda _: "MaxArraySize            = 1001\n"
    numbers = iter(("500\n", ""))

    def submit(argv: Sequence[str]) -> str:
        del argv
        number = next(numbers)
        if not number:
            raise DrmCommunicationError("slurm: sbatch: Socket timed out on send/recv operation")
        return number

    replay.answers["sbatch"] = submit
    with pytest.raises(DrmCommunicationError):
        array(backend, 2500)
    replay.answers["squeue"] = lambda _: "500_[0-1000]|PENDING|1000||1|debug||wfl:program-1|Resources\n"
    known = [Known(f"{KEY}.{index}", None, JOB) for index in range(1, 2501)]
    answer = backend.find(known)
    assert {info.state for info in answer.infos} == {JobState.QUEUED}
    assert answer.gone == [f"{KEY}.{index}" for index in range(1002, 2501)]
    stopped = {int(name.partition(".")[2]) for name in os.listdir(Path(backend.place.path("stop", KEY)).parent)}
    assert stopped == set(range(1002, 2003))


def test_no_configuration(tmp_path: Path) -> None:
    """A SLURM_CONF that is not there is said at once: Slurm's commands try it for a minute."""
    path = str(tmp_path / "slurm.conf")
    with Workflow(SlurmContext(directory=tmp_path, environment={"SLURM_CONF": path})) as flow:
        for job in (flow.run("true"), flow.run_array(2, "true")):
            assert isinstance(job.last_error, SessionManagementError)
            assert path in str(job.last_error)


def test_forgotten_between_two_questions(backend: BatchBackend, replay: Replay) -> None:
    """What the list has said of an end is what is known when the record of it is gone a moment later."""
    id = run(backend)
    Path(backend.place.path("run", KEY)).touch()
    replay.answers["squeue"] = lambda _: "500|TIMEOUT|1000|1001|1|debug|vm|wfl:program-1|None\n"
    (seen,) = backend.find([Known(KEY, None, JOB)]).infos
    assert seen.state.ended
    (info,) = backend.collect([id])
    assert (info.sub_state, info.exit_status) == ("timeout", 137)

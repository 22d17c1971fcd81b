"""Whole workflows on PBS, Torque, LSF and Flux, by the commands as tests/replay runs them on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import replay
from wfl import Job, JobInfo, JobState, JobTemplate, Task, TaskArray, Workflow, shell
from wfl.contexts.batch import engine
from wfl.contexts.batch.client import Client
from wfl.contexts.batch.place import BY, Entry, Place
from wfl.drmaa2 import WALLCLOCK_TIME
from wfl.errors import InvalidStateError, SessionManagementError
from wfl.program import program_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wfl.contexts.batch.scheduler import Job as BatchJob

DIALECTS = ("openpbs", "torque", "lsf", "flux")
ARRAYS = ("openpbs", "torque", "lsf")
PATIENCE = 120.0


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    """Each of the four."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay is asked more often than a scheduler that has other users."""
    monkeypatch.setattr(engine, "LOOK", (0.05, 1.0))
    monkeypatch.setattr(engine, "ASK", (0.3, 2.0))


@pytest.fixture
def flow(dialect: str, tmp_path: Path) -> Iterator[Workflow]:
    """A workflow on it; what it leaves ends with it."""
    with Workflow(replay.context(dialect, tmp_path, detach=False)) as flow:
        yield flow


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for it, not for ever."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def commands(tmp_path: Path, dialect: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run one of the replay's commands."""
    path = tmp_path / dialect / "bin" / words[0]
    return subprocess.run([path, *words[1:]], capture_output=True, text=True, check=False, timeout=PATIENCE)


def ended(job: Job) -> JobInfo:
    """What is known of the end of a job's last task."""
    info = job.wait().info()
    assert info is not None
    return info


def status(task: Task) -> int | None:
    """Its exit status."""
    return task.info().exit_status


def _tasks(job: Job) -> list[Task]:
    """One by one."""
    return [one for task in job.tasks for one in (task.tasks if isinstance(task, TaskArray) else [task])]


def test_ends(flow: Workflow) -> None:
    """Output, exit status, signal and a command that is not there."""
    good, bad, killed = flow.run("echo", "hello"), flow.run(shell("exit 3")), flow.run(shell("kill -9 $$"))
    missing = flow.run("no-such-program")
    assert good.output() == "hello"
    assert ended(good).exit_status == 0
    assert ended(bad).exit_status == 3
    assert (ended(killed).terminating_signal, ended(killed).sub_state) == ("SIGKILL", "signaled")
    assert ended(missing).sub_state == "launch_failure"


def test_words_arrive(flow: Workflow) -> None:
    """Quotes, line breaks, commas, "=" and "$" arrive as they are, in arguments and in the environment."""
    text = "a 'b' \"c\"\n,d=e $f \\ `g` %h {i} ü"
    job = flow.run("sh", "-c", 'printf "%s|%s" "$1" "$WORD"', "sh", text, job_environment={"WORD": text})
    assert job.output() == f"{text}|{text}"


def test_environment(flow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job has nothing of the program's environment, unless that is asked for."""
    monkeypatch.setenv("WFL_TEST_WORD", "from outside")
    show = shell('printf "%s" "${WFL_TEST_WORD-nothing}"')
    assert flow.run(show).output() == "nothing"
    assert flow.run(show.replace(extensions={"inherit_environment": "true"})).output() == "from outside"


@pytest.mark.parametrize("indexes", [range(2, 12, 3), range(3), range(7, 8)])
def test_array(flow: Workflow, indexes: range) -> None:
    """Elements have their own indexes, whether the scheduler could count so or not."""
    array = flow.run_array(indexes, shell('echo "$TASK_ID"; exit $((TASK_ID == 5))'))
    assert list(array.outputs().values()) == [str(index) for index in indexes]
    assert [status(task) for task in _tasks(array.wait())] == [int(index == 5) for index in indexes]


def test_one_submission_per_array(flow: Workflow, dialect: str, tmp_path: Path) -> None:
    """Arrays are the scheduler's, where it has them."""
    flow.run_array(20, "true").wait()
    submitted = len(list((tmp_path / dialect / "spool").glob("*.json")))
    assert submitted == (1 if dialect in ARRAYS else 20)


def test_max_parallel(flow: Workflow, tmp_path: Path) -> None:
    """Not more elements run at once than may."""
    line = f"d={tmp_path}/now; mkdir -p $d; touch $d/$TASK_ID; ls $d | wc -l; sleep 0.2; rm $d/$TASK_ID"
    array = flow.run_array(6, shell(line), max_parallel=2)
    assert max(int(text) for text in array.outputs().values()) <= 2


def test_hold_and_release(flow: Workflow) -> None:
    """A job that is held does not begin before it is released."""
    job = flow.run("echo", "now", submit_as_hold=True)
    until(lambda: job.state is JobState.QUEUED_HELD, "held")
    assert job.release().output() == "now"


def test_suspend_and_resume(flow: Workflow, dialect: str) -> None:
    """A suspended job shows it, and goes on when it is resumed."""
    if dialect == "flux":
        pytest.skip("Flux suspends no jobs")
    job = flow.run(shell("sleep 1; echo done"))
    until(lambda: job.state is JobState.RUNNING, "running")
    job.suspend()
    assert job.state is JobState.SUSPENDED
    assert job.resume().output() == "done"


@pytest.mark.parametrize("held", [False, True])
def test_kill(flow: Workflow, held: bool) -> None:  # noqa: FBT001 - a case
    """What is killed has been cancelled, whether it had begun or not."""
    job = flow.run("sleep", "600", submit_as_hold=held)
    until(lambda: job.state is (JobState.QUEUED_HELD if held else JobState.RUNNING), "there")
    info = ended(job.kill())
    assert (info.state, info.sub_state) == (JobState.FAILED, "cancelled")
    assert (info.terminating_signal is None) is held


def test_limit_of_time(flow: Workflow) -> None:
    """A job that takes longer than it may has timed out."""
    info = ended(flow.run("sleep", "600", resource_limits={WALLCLOCK_TIME: 1.0}))
    assert info.sub_state == "timeout"


def test_limit_of_time_told_by_the_scheduler(dialect: str, tmp_path: Path) -> None:
    """That a job was ended by the scheduler for its time is learnt, where nobody else has ended it."""
    if dialect == "lsf":
        pytest.skip("LSF counts minutes")
    with Workflow(replay.context(dialect, tmp_path, session_name="kept")) as flow:
        flow.run("sleep", "600", resource_limits={WALLCLOCK_TIME: 3.0})
    time.sleep(3.5)  # nobody is there while it ends
    with Workflow(replay.context(dialect, tmp_path, session_name="kept")) as flow:
        (job,) = flow.jobs()
        assert ended(job).sub_state == "timeout"


def test_found_again(dialect: str, tmp_path: Path) -> None:
    """A new program finds what an earlier one left: jobs, arrays and their ends."""
    script = f"""
import sys
from pathlib import Path
from tests import replay
from wfl import Workflow, shell
with Workflow(replay.context({dialect!r}, Path({str(tmp_path)!r}), session_name="kept")) as flow:
    flow.run(shell("sleep 1; echo one; exit 4"))
    flow.run_array(3, shell("echo element $TASK_ID"))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False,
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Workflow(replay.context(dialect, tmp_path, session_name="kept")) as flow:
        found = flow.jobs()
        outputs = sorted(text for job in found for text in job.wait().outputs().values())
        assert outputs == ["element 1", "element 2", "element 3", "one"]
        assert sorted(status(task) or 0 for job in found for task in _tasks(job)) == [0, 0, 0, 4]


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("seconds", [0, 2])
def test_answer_that_was_lost(dialect: str, tmp_path: Path, seconds: int, array: bool) -> None:  # noqa: FBT001 - a case
    """A submission whose answer was never read is found by its key, while it runs or ended, and not sent again."""
    context = replay.context(dialect, tmp_path, detach=False)
    name = {"lsf": "bsub", "flux": "flux"}.get(dialect, "qsub")
    real, mute = tmp_path / dialect / "bin" / name, tmp_path / dialect / "bin" / f"{name}-real"
    real.rename(mute)
    lost = 'if [ ! -e "$0-lost" ]; then : >"$0-lost"; echo "Connection refused" >&2; exit 1; fi'
    submits = '[ "$1" = submit ]' if dialect == "flux" else "true"
    real.write_text(f'#!/bin/sh\nout=$("$0-real" "$@") || exit\nif {submits}; then {lost}; fi\necho "$out"\n')
    real.chmod(0o755)
    with Workflow(context, raise_errors=True) as flow:
        job = (
            flow.run_array(3, shell(f"sleep {seconds}; echo $TASK_ID"))
            if array
            else flow.run(shell(f"sleep {seconds}; echo one"))
        )
        assert list(job.wait().outputs().values()) == (["1", "2", "3"] if array else ["one"])
    submitted = len(list((tmp_path / dialect / "spool").glob("*.json")))
    assert submitted == (3 if array and dialect not in ARRAYS else 1)


def test_array_over_the_limit(tmp_path: Path) -> None:
    """An array that is longer than LSF takes goes in parts, each of which knows its elements when it begins at last."""
    with Workflow(replay.context("lsf", tmp_path, detach=False)) as flow:
        template = JobTemplate(remote_command="sh", args=("-c", "test $TASK_ID -ne 1002"), submit_as_hold=True)
        array = flow.run_array(range(1, 1003), template)
        parts = [json.loads(path.read_text()) for path in sorted((tmp_path / "lsf" / "spool").glob("*.json"))]
        assert [len(part["elements"]) for part in parts] == [1000, 2]
        array.release()
        assert [task.index for task in _tasks(array.wait()) if status(task)] == [1002]


def test_unknown_options_are_errors(dialect: str, tmp_path: Path) -> None:
    """The replay knows no options that the real commands lack; so a wrong one shows in every test."""
    with Workflow(replay.context(dialect, tmp_path, detach=False)) as flow:
        job = flow.run("true", extensions={"native": "--no-such-option=1"})
        assert job.last_error is not None


def test_no_commands(dialect: str, tmp_path: Path) -> None:
    """Where there are no such commands, the first job says what to do."""
    context = replay.context(dialect, tmp_path, environment={"PATH": str(tmp_path / "none")})
    with Workflow(context) as flow:
        error = flow.run("true").last_error
    assert isinstance(error, SessionManagementError)
    assert "run this on a machine that can submit jobs" in str(error)


def test_preview_is_what_is_run(dialect: str, tmp_path: Path) -> None:
    """The previewed command line is one that the scheduler takes."""
    context = replay.context(dialect, tmp_path)
    template = JobTemplate(remote_command="true", job_name="named", min_slots=1)
    (preview,) = context.preview(template)  # type: ignore[attr-defined] # a BatchContext
    script = tmp_path / "script"
    script.write_text(preview.script)
    words = [word if "/script/" not in word else str(script) for word in preview.command]
    words = [word if "/log/" not in word else word.partition("/")[0] + str(tmp_path / "log") for word in words]
    done = commands(tmp_path, dialect, *words)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("comes", [True, False])
def test_output_that_comes_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes: bool) -> None:  # noqa: FBT001
    """On a shared file system a file of another machine may show late: it is waited for, and not for ever."""
    monkeypatch.setattr(engine, "LATE", PATIENCE if comes else 0.1)
    path, away = tmp_path / "out", tmp_path / "away"
    with Workflow(replay.context("torque", tmp_path, detach=False)) as flow:
        job = flow.run(JobTemplate(remote_command="echo", args=("hello",), output_path=str(path))).wait()
        path.rename(away)
        if comes:
            threading.Timer(0.5, away.rename, [path]).start()
            assert job.output() == "hello"
        else:
            assert job.output() == ""
            with pytest.raises(InvalidStateError, match=f"{path} .* did not appear here within 0.1 s"):
                job.on_error_raise()


def test_what_another_program_is_just_submitting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second program in the session leaves it alone, follows it when it is there, and both are told of its end."""
    submit, begun, go = Client.submit, threading.Event(), threading.Event()

    def slow(client: Client, job: BatchJob) -> str:
        begun.set()
        assert go.wait(PATIENCE)
        return submit(client, job)

    monkeypatch.setattr(Client, "submit", slow)
    with Workflow(replay.context("torque", tmp_path, detach=False), raise_errors=True) as first:
        job = first.new_job()
        other = threading.Thread(target=job.run, args=["echo", "hello"])
        other.start()
        assert begun.wait(PATIENCE)
        with Workflow(replay.context("torque", tmp_path), raise_errors=True) as second:
            (same,) = second.jobs()
            assert same.state is JobState.UNDETERMINED
            go.set()
            other.join(PATIENCE)
            assert (job.wait(PATIENCE).output(), same.wait(PATIENCE).output()) == ("hello", "hello")


def test_what_a_dead_program_never_submitted(tmp_path: Path) -> None:
    """Without a store, too, a job that was written down and not submitted is known never to have run."""
    context = replay.context("torque", tmp_path, detach=False)
    place = Place(str(tmp_path / "torque" / "jobs"), context.session_name)
    place.enter(Entry("dead-1", JobTemplate(remote_command="true"), "dead-1"), "exit 0\n")
    host, boot, pid, _ = program_name("self").split(" ")
    Path(place.root, "dead", BY).write_text(f"{host} {boot} {pid} then", encoding="utf-8")
    with Workflow(context) as flow:
        (job,) = flow.jobs()
        info = ended(job)
        assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "launch_failure", None)
        assert "it never ran" in str(info.annotation)


def test_nothing_is_left_of_what_was_reaped(tmp_path: Path) -> None:
    """When all jobs are reaped, the directories of the programs go with the last session."""
    context = replay.context("torque", tmp_path, detach=True)
    with Workflow(context, raise_errors=True) as flow:
        flow.run("true").wait()
    with Workflow(replay.context("torque", tmp_path, detach=True), raise_errors=True) as flow:
        (job,) = flow.jobs()
        job.wait(PATIENCE).reap_all()
        flow.run("true").wait(PATIENCE).reap_all()
        flow.run("true").wait(PATIENCE).reap_all()
    assert not (tmp_path / "torque" / "jobs" / context.session_name).exists()

"""The keeper itself is killed, told to end, or stopped: the program notices, says so, and goes on with another."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.machine import PATIENCE, children_of, is_alive, keepers_of, stat_of, wait_until
from wfl import Workflow
from wfl.contexts.process import ProcessContext, link
from wfl.drmaa2 import JobState
from wfl.errors import DrmCommunicationError, WflError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wfl import Job


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Workflow]:
    """A workflow whose tasks end with it."""
    with Workflow(ProcessContext(store=tmp_path / "store")) as flow:
        yield flow


@pytest.fixture
def detached(tmp_path: Path) -> Iterator[Workflow]:
    """A workflow whose tasks outlive it."""
    with Workflow(ProcessContext(store=tmp_path / "store", detach=True)) as flow:
        yield flow
        for job in flow.jobs():
            if not job.state.ended:
                job.kill()
        for job in flow.jobs():
            assert job.wait(PATIENCE).state.ended


def pid_of(job: Job, file: Path) -> tuple[int, int]:
    """The pid and start time of a task that writes its pid into a file, once the program knows that it runs."""
    wait_until("the task has said its pid", lambda: file.exists() and file.read_text().endswith("\n"))
    pid = int(file.read_text())
    stat = stat_of(pid)
    assert stat is not None, job.infos()
    job.tasks[-1].wait_started(PATIENCE)
    return pid, stat[2]


def goes_on(flow: Workflow) -> None:
    """New tasks run with a new keeper; one given to the old keeper in its last moment may end, and says so."""
    for _ in range(20):
        job = flow.run("echo", "again")
        if job.success():
            assert job.output() == "again"
            return
        (info,) = job.infos()
        assert info.sub_state in ("lost", "launch_failure", "cancelled")
        assert "keeper" in (info.annotation or "")
    pytest.fail("no new task runs")


def sleeper(file: Path) -> list[str]:
    """A task that writes its pid into a file and sleeps."""
    return ["sh", "-c", f"echo $$ >{file}; exec sleep 600"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_tasks_of_a_killed_keeper_end(
    number: signal.Signals, own: Workflow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The program notices at once and says so; running tasks are ended; new tasks get a new keeper."""
    job = own.run(*sleeper(tmp_path / "pid"))
    pid, ticks = pid_of(job, tmp_path / "pid")
    keepers = keepers_of(os.getpid())
    for keeper in keepers:
        os.kill(keeper, number)
    job.wait(PATIENCE)
    info = job.info()
    assert info is not None
    assert (info.state, info.exit_status is None) == (JobState.FAILED, number == signal.SIGKILL)
    if number == signal.SIGKILL:
        assert info.sub_state == "lost"
        assert "keeper" in (info.annotation or "")
        wait_until("it is in the log", lambda: "keeper" in caplog.text)
    else:
        assert info.sub_state == "cancelled"
        assert "SIGTERM" in (info.annotation or "")
    wait_until("the task's process is gone", lambda: not is_alive(pid, ticks))
    goes_on(own)
    assert not set(keepers_of(os.getpid())) & set(keepers)


def test_many_tasks_of_a_killed_keeper_are_all_told_of(own: Workflow) -> None:
    """A burst is in the keeper's hands when it is killed: every task ends, none is waited for in vain."""
    job = own.run_array(300, "sleep", "0.05")
    for keeper in keepers_of(os.getpid()):
        os.kill(keeper, signal.SIGKILL)
    job.synchronize(PATIENCE)
    infos = job.infos()
    assert len(infos) == 300
    assert all(info.state.ended for info in infos), job.errors
    assert {info.sub_state for info in infos} <= {"exited", "lost", "launch_failure"}
    assert "lost" in {info.sub_state for info in infos} or "launch_failure" in {info.sub_state for info in infos}
    goes_on(own)


def test_a_detached_task_without_a_keeper_is_followed_by_pid(detached: Workflow, tmp_path: Path) -> None:
    """It lives on, can be controlled, and its end is seen; how it ended nobody can know: lost, and the words say so."""
    job = detached.run(*sleeper(tmp_path / "pid"))
    pid, ticks = pid_of(job, tmp_path / "pid")
    (keeper,) = keepers_of(os.getpid())
    os.kill(keeper, signal.SIGKILL)
    goes_on(detached)
    assert is_alive(pid, ticks)
    assert job.state is JobState.RUNNING
    job.suspend()
    wait_until("it is stopped", lambda: (stat_of(pid) or "?")[0] == "T")
    job.resume()
    os.kill(pid, signal.SIGKILL)
    job.wait(PATIENCE)
    info = job.info()
    assert info is not None
    assert (info.sub_state, info.exit_status) == ("lost", None)
    assert "keeper" in (info.annotation or "")


def test_a_detached_keeper_that_is_told_to_end_ends_its_tasks(detached: Workflow, tmp_path: Path) -> None:
    """SIGTERM to the keeper is the way to end what a detached program left; the tasks say who ended them."""
    job = detached.run(*sleeper(tmp_path / "pid"))
    pid, ticks = pid_of(job, tmp_path / "pid")
    for keeper in keepers_of(os.getpid()):
        os.kill(keeper, signal.SIGTERM)
    job.wait(PATIENCE)
    info = job.info()
    assert info is not None
    assert (info.sub_state, info.terminating_signal) == ("cancelled", "SIGTERM")
    assert not is_alive(pid, ticks)


def test_a_keeper_that_left_with_its_last_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ending a task once more, whose keeper goes as it has ended, is no error: there is nobody left to be asked."""
    with Workflow(ProcessContext(store=tmp_path / "store", detach=True, session_name="one")) as first:
        pid, _ = pid_of(first.run(*sleeper(tmp_path / "pid")), tmp_path / "pid")
    asked = link.Link.ask

    def late(self: link.Link, what: str, *arguments: object) -> object:
        os.kill(pid, signal.SIGKILL)
        wait_until("its keeper has left", self.closed.is_set)
        return asked(self, what, *arguments)

    with Workflow(ProcessContext(store=tmp_path / "store", detach=True, session_name="one")) as again:
        (job,) = again.jobs()
        monkeypatch.setattr(link.Link, "ask", late)
        job.tasks[-1].terminate()
        info = job.wait(PATIENCE).info()
    assert info is not None
    assert (info.sub_state, info.terminating_signal) == ("cancelled", "SIGKILL")


def test_a_stopped_keeper_does_not_hang_the_program(
    own: Workflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A control call ends with DrmCommunicationError after its time; nothing has ended; later all is as before."""
    monkeypatch.setattr(link, "PATIENCE", 0.5)
    job = own.run(*sleeper(tmp_path / "pid"))
    pid_of(job, tmp_path / "pid")
    keepers = keepers_of(os.getpid())
    for keeper in keepers:
        os.kill(keeper, signal.SIGSTOP)
    begin = time.monotonic()
    job.kill()
    assert isinstance(job.last_error, DrmCommunicationError)
    assert time.monotonic() - begin < PATIENCE
    assert job.state is JobState.RUNNING
    with pytest.raises(WflError):
        job.tasks[0].wait_terminated(0.05)
    for keeper in keepers:
        os.kill(keeper, signal.SIGCONT)
    job.wait(PATIENCE)
    assert job.info().sub_state == "cancelled"  # type: ignore[union-attr]
    goes_on(own)


def test_submitting_to_a_stopped_keeper_ends(
    own: Workflow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More orders than fit into the socket: the call returns, and once the keeper goes on every task ends."""
    monkeypatch.setattr(link, "PATIENCE", 0.5)
    assert own.run("true").success()
    keepers = keepers_of(os.getpid())
    for keeper in keepers:
        os.kill(keeper, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        jobs = [own.run("echo", "x" * 100_000) for _ in range(8)]
        assert time.monotonic() - begin < PATIENCE
    finally:
        for keeper in keepers:
            os.kill(keeper, signal.SIGCONT)
    for job in jobs:
        job.wait(PATIENCE)
        assert job.state.ended, caplog.text
    goes_on(own)


def test_closing_with_a_stopped_keeper_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """close() gives up after a time, kills keeper and tasks, and leaves neither process nor file."""
    from wfl.contexts.process import backend

    monkeypatch.setattr(backend, "PATIENCE", 0.5)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(children_of(os.getpid()))
    with Workflow() as flow:
        job = flow.run(*sleeper(tmp_path / "pid"))
        pid, ticks = pid_of(job, tmp_path / "pid")
        keepers = set(keepers_of(os.getpid())) - before
        for keeper in keepers:
            os.kill(keeper, signal.SIGSTOP)
    assert "keeper" in caplog.text
    wait_until("the task is gone", lambda: not is_alive(pid, ticks))
    assert not keepers & set(children_of(os.getpid()))
    assert [path.name for path in tmp_path.iterdir()] == ["pid"]


# -- journals that lie: another boot, another process under the pid --


def forge(journal: Path, change: dict[str, object]) -> None:
    """Rewrite a journal: the boot id of its keeper, or pid and start time of its tasks."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        if line[0] == "keeper" and "boot" in change:
            line[3] = change["boot"]
        if line[0] == "tell":
            for row in line[1]:
                row[1], row[2] = change.get("pid", row[1]), change.get("ticks", row[2])
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("lie", ["boot", "ticks", "both"])
def test_a_stranger_under_the_old_pid_is_left_alone(lie: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a reboot, or with the pid used again, a task is lost, and no control call reaches the stranger."""
    caplog.set_level(logging.CRITICAL)
    source = f"""
import os, sys
from wfl import Workflow
from wfl.contexts.process import ProcessContext
flow = Workflow(ProcessContext(store={str(tmp_path / "store")!r}, detach=True))
flow.run("sleep", "600").tasks[0].wait_started()
flow.refresh() if hasattr(flow, "refresh") else flow.jobs()
os.kill(os.getpid(), 9)
"""
    import sys

    subprocess.run([sys.executable, "-c", source], check=False, timeout=PATIENCE)
    (journal,) = (tmp_path / "store.d" / "wfl").glob("*/journal")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    keeper, task = lines[0][1], next(line[1][0][1] for line in lines if line[0] == "tell" and line[1])
    for pid in (keeper, task):  # as a reboot does
        os.kill(pid, signal.SIGKILL)
    wait_until("the keeper is gone", lambda: stat_of(keeper) is None or (stat_of(keeper) or "Z")[0] == "Z")
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        try:
            stat = stat_of(stranger.pid)
            assert stat is not None
            changes: dict[str, dict[str, object]] = {
                "boot": {"boot": "another", "pid": stranger.pid, "ticks": stat[2]},
                "ticks": {"pid": stranger.pid, "ticks": stat[2] + 1},
                "both": {"boot": "another", "pid": stranger.pid, "ticks": stat[2] + 1},
            }
            forge(journal, changes[lie])
            with Workflow(ProcessContext(store=tmp_path / "store", detach=True)) as flow:
                (job,) = flow.jobs()
                job.kill()
                job.kill_all()
                flow.kill_all()
                info = job.info()
                assert info is not None
                assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "lost", None)
                assert ("restarted" in (info.annotation or "")) == (lie != "ticks")
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_living_process_of_the_right_start_time_is_found_again(tmp_path: Path) -> None:
    """The counterpart: with pid and start time right, a task whose keeper is gone is RUNNING, and kill() ends it."""
    import sys

    source = f"""
import os
from wfl import Workflow
from wfl.contexts.process import ProcessContext
flow = Workflow(ProcessContext(store={str(tmp_path / "store")!r}, detach=True))
flow.run("sh", "-c", "echo $$ >{tmp_path / "pid"}; exec sleep 600").tasks[0].wait_started()
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", source], check=False, timeout=PATIENCE)
    (journal,) = (tmp_path / "store.d" / "wfl").glob("*/journal")
    keeper = json.loads(journal.read_text().splitlines()[0])[1]
    os.kill(keeper, signal.SIGKILL)
    with Workflow(ProcessContext(store=tmp_path / "store", detach=True)) as flow:
        (job,) = flow.jobs()
        pid, ticks = pid_of(job, tmp_path / "pid")
        assert job.state is JobState.RUNNING
        job.kill().wait(PATIENCE)
        wait_until("it is gone", lambda: not is_alive(pid, ticks))
        assert job.info().sub_state == "lost"  # type: ignore[union-attr]


def test_half_a_line_in_the_journal_is_no_obstacle(tmp_path: Path) -> None:
    """A keeper killed in the middle of a write leaves half a line: what stands before it is read."""
    with Workflow(ProcessContext(store=tmp_path / "store", detach=True)) as flow:
        assert flow.run("echo", "whole").output() == "whole"
    (journal,) = (tmp_path / "store.d" / "wfl").glob("*/journal")
    with journal.open("a") as file:
        file.write('["tell",[[1,')
    with Workflow(ProcessContext(store=tmp_path / "store", detach=True)) as flow:
        (job,) = flow.jobs()
        assert (job.state, job.output()) == (JobState.DONE, "whole")

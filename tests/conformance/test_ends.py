"""How jobs end: exit status, signal, and never having run."""

from __future__ import annotations

import signal
from pathlib import Path

from wfl import Capability, JobInfo, JobState, Workflow, shell
from wfl.testing.conformance.site import Field, Site, Trait, needs


def end(job: object) -> JobInfo:
    """What is known of the end of a Job's last task."""
    info = job.wait().info()  # type: ignore[attr-defined] # a Job
    assert isinstance(info, JobInfo)
    assert info.state.ended
    return info


def test_good_end(site: Site, flow: Workflow) -> None:
    """A job that exits with 0 is DONE: exit status 0, sub state exited, no signal."""
    info = end(flow.run(site.succeed()))
    assert (info.state, info.exit_status, info.sub_state) == (JobState.DONE, 0, "exited")
    assert info.terminating_signal is None


def test_exit_status(site: Site, flow: Workflow) -> None:
    """A job that exits with anything else has FAILED with that exit status: 1, 2, 13, 77, 127, 255."""
    for status in (1, 2, 13, 77, 127, 255):
        info = end(flow.run(site.fail(status)))
        assert (info.state, info.exit_status, info.sub_state) == (JobState.FAILED, status, "exited")
        assert info.terminating_signal is None


@needs(Trait.EXECUTION)
def test_signals(flow: Workflow) -> None:
    """A job killed by signal N has the signal's name and exit status 128 + N, sub state signaled."""
    for name in ("SIGTERM", "SIGKILL", "SIGABRT", "SIGUSR1", "SIGSEGV"):
        number = signal.Signals[name]
        info = end(flow.run("sh", "-c", f"ulimit -c 0; kill -{number} $$"))
        assert (info.terminating_signal, info.exit_status, info.sub_state) == (name, 128 + number, "signaled")
        assert info.state is JobState.FAILED


@needs(Trait.EXECUTION)
def test_status_above_128(flow: Workflow) -> None:
    """A job that exits with 143 by itself was not killed: sub state exited, no signal."""
    info = end(flow.run(shell("exit 143")))
    assert (info.exit_status, info.sub_state, info.terminating_signal) == (143, "exited", None)


@needs(Trait.EXECUTION)
def test_default_signal_handling(flow: Workflow) -> None:
    """Signals that the program ignores, such as SIGPIPE in Python, have their default effect in jobs."""
    info = end(flow.run("sh", "-c", "kill -PIPE $$; exit 0"))
    assert info.terminating_signal == "SIGPIPE"


@needs(Trait.EXECUTION)
def test_command_not_found(flow: Workflow) -> None:
    """A command that does not exist: FAILED, launch_failure, no exit status, and the words name it."""
    job = flow.run("/no/such/command", "--option")
    info = end(job)
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "launch_failure", None)
    assert "/no/such/command" in (info.annotation or "")
    assert "/no/such/command" in str(job.last_error)


@needs(Trait.EXECUTION)
def test_name_not_found(flow: Workflow) -> None:
    """A name that is not in PATH: FAILED, launch_failure, and the words name it."""
    info = end(flow.run("no-such-command-anywhere"))
    assert (info.sub_state, info.exit_status) == ("launch_failure", None)
    assert "no-such-command-anywhere" in (info.annotation or "")


@needs(Trait.SHARED)
def test_not_executable(flow: Workflow, shared: Path) -> None:
    """A file that is not executable, and a directory, cannot be started: launch_failure, named."""
    (shared / "data").write_text("x")
    for path in (shared / "data", shared):
        info = end(flow.run(path))
        assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "launch_failure", None)
        assert str(path) in (info.annotation or "")


@needs(Trait.SHARED)
def test_not_a_program(flow: Workflow, shared: Path) -> None:
    """An executable file that the system cannot run has FAILED with launch_failure and the system's words."""
    (shared / "junk").write_bytes(b"\x00\x01\x02 no program")
    (shared / "junk").chmod(0o755)
    info = end(flow.run(shared / "junk"))
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "launch_failure", None)
    assert "junk" in (info.annotation or "")


@needs(Trait.EXECUTION, Field("working_directory"))
def test_missing_working_directory(flow: Workflow) -> None:
    """A working directory that does not exist: launch_failure that names it; the program goes on."""
    info = end(flow.run("true", working_directory="/no/such/place"))
    assert (info.state, info.sub_state) == (JobState.FAILED, "launch_failure")
    assert "/no/such/place" in (info.annotation or "")
    assert flow.run("true").success()


@needs(Trait.EXECUTION, Field("input_path"))
def test_missing_input(flow: Workflow) -> None:
    """An input file that does not exist: launch_failure that names it."""
    info = end(flow.run("cat", input_path="/no/such/input"))
    assert (info.state, info.sub_state) == (JobState.FAILED, "launch_failure")
    assert "/no/such/input" in (info.annotation or "")


@needs(Trait.EXECUTION, Field("stage_in_files"))
def test_missing_stage_in(flow: Workflow) -> None:
    """A file to stage in that does not exist: launch_failure that names it."""
    info = end(flow.run("true", stage_in_files={"a": "/no/such/source"}))
    assert (info.state, info.sub_state) == (JobState.FAILED, "launch_failure")
    assert "/no/such/source" in (info.annotation or "")


def test_end_is_final(site: Site, flow: Workflow) -> None:
    """An end is final: to kill an ended job is no error and changes nothing."""
    job = flow.run(site.succeed()).wait()
    before = job.info()
    job.kill().kill(grace=1)
    assert job.errors == []
    assert job.info() == before
    assert job.state is JobState.DONE


@needs(Capability.TERMINATE)
def test_killed(site: Site, flow: Workflow) -> None:
    """A job that was killed has FAILED as signaled or cancelled, never as exited, and with 128 + N as exit status."""
    job = flow.run(site.stay())
    job.tasks[0].wait_started(site.within(30))
    info = end(job.kill())
    assert info.state is JobState.FAILED
    assert info.sub_state in {"signaled", "cancelled"}
    assert (info.exit_status, info.terminating_signal) == (128 + signal.Signals[site.killed], site.killed)


@needs(Trait.EXECUTION)
def test_quick_and_slow(flow: Workflow) -> None:
    """Each of many jobs that end in another order than they were started has its own exit status."""
    job = flow.new_job()
    for status in range(12):
        job.run(shell(f"sleep 0.{(11 - status) % 10}; exit {status}"))
    assert [info.exit_status for info in job.synchronize().infos()] == list(range(12))


@needs(Trait.EXECUTION)
def test_left_over_child(site: Site, flow: Workflow) -> None:
    """A job has ended when its command has, though a child that it started in the background still runs."""
    job = flow.run(shell("sleep 600 >/dev/null 2>&1 & exit 4"))
    job.wait(site.within(30))
    assert job.last_error is None
    assert job.exit_status() == 4

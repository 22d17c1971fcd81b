"""Containers when their program dies, when somebody else meddles with them, and when memory or image are lacking."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.containers import NAMES, Daemon, reached
from tests.faults.machine import CLEAN, PATIENCE, Program, slowness, wait_until
from wfl import Context, JobState, JobTemplate, Workflow, shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from wfl import Job

RUNNING = {"docker": 8, "podman": 3}
"""Containers that a program has when it dies; Podman takes half a second and more to start one."""
SLOW = 4
"""How many times longer than an undertaker's kill alone several containers may take to be removed on two cores."""

BEGIN = """
import os, sys
from wfl import JobTemplate, Workflow, shell
from wfl.contexts.docker import DockerContext
from wfl.contexts.podman import PodmanContext
kind, url, session, *rest = sys.argv[1:]
def context(**settings):
    template = JobTemplate(extensions={"network": "none"})
    return (DockerContext if kind == "docker" else PodmanContext)(
        image="busybox:latest", base_url=url, session_name=session, default_template=template, **settings)
"""
SOME = """
flow = Workflow(context(), raise_errors=True)
job = flow.run_array(int(rest[0]), "sleep", "600")
for task in job.tasks[0].tasks:
    task.wait_started()
print("running", flush=True)
job.synchronize()
"""
DETACHED = """
flow = Workflow(context(store=rest[1], detach=True), raise_errors=True)
line = "echo out $TASK_ID; sleep $((TASK_ID % 2 * 6)); echo err >&2; exit $((TASK_ID % 3))"
job = flow.run_array(int(rest[0]), shell(line))
for task in job.tasks[0].tasks:
    task.wait_started()
print("running", job.job_id, flush=True)
job.synchronize()
import time; time.sleep(600)
"""


@pytest.fixture(params=NAMES, scope="module")
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """Each of the daemons that `make services` starts."""
    with reached(request.param) as found:
        yield found


@pytest.fixture
def session(daemon: Daemon) -> Iterator[str]:
    """A name of a session of our own, of which nothing is left after the test."""
    name = Context.unique_session_name()
    try:
        yield name
        daemon.is_empty(name)
    finally:
        daemon.remove_all(name)


@pytest.fixture
def flow(daemon: Daemon, session: str) -> Iterator[Workflow]:
    """An open workflow in that session."""
    with Workflow(daemon.context(session_name=session)).raise_for_error() as found:
        yield found


@pytest.fixture
def run(daemon: Daemon, session: str, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts programs in that session; afterwards nothing of them is left."""
    programs: list[Program] = []

    def start(source: str, *arguments: str) -> Program:
        programs.append(Program(BEGIN + source, tmp_path, daemon.name, daemon.url, session, *arguments))
        return programs[-1]

    yield start
    for program in programs:
        program.__exit__(None, None, None)


def one_of(daemon: Daemon, session: str) -> str:
    """The id of the only container of a session, once it runs."""
    wait_until("it runs", lambda: daemon.states(session) == ["running"])
    id: str = daemon.containers(session)[0]["Id"]
    return id


def end_of(job: Job) -> tuple[Any, ...]:
    """How the last task ended."""
    info = job.wait(PATIENCE).info()
    assert info is not None
    return info.state, info.sub_state, info.exit_status, info.terminating_signal


# --- death ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_container_outlives_its_program(
    death: signal.Signals, daemon: Daemon, session: str, run: Callable[..., Program]
) -> None:
    """Several run when it is killed: in a few seconds none does, and nothing else of the program is left either."""
    program = run(SOME, str(RUNNING[daemon.name]))
    program.expect("running")
    assert daemon.states(session) == ["running"] * RUNNING[daemon.name]
    before = slowness()
    program.kill(death)
    wait_until("none runs", lambda: "running" not in daemon.states(session))
    took = time.monotonic() - program.struck
    wait_until("nothing is left", lambda: not daemon.containers(session) and not program.left())
    if took >= CLEAN:
        limit = CLEAN * SLOW * max(before, slowness())
        assert took < limit, f"it took {took:.1f} s until none ran; here and now {limit:.1f} s are allowed"


@pytest.mark.parametrize("death", [signal.SIGINT, signal.SIGKILL])
def test_what_is_detached_goes_on(
    death: signal.Signals, daemon: Daemon, session: str, run: Callable[..., Program], tmp_path: Path
) -> None:
    """A later program finds all of them: those that ended meanwhile and those that still run, with end and output."""
    store, number = tmp_path / "store", RUNNING[daemon.name]
    program = run(DETACHED, str(number), str(store))
    id = program.expect("running")
    program.kill(death)
    assert len(daemon.containers(session)) == number
    with Workflow(daemon.context(session_name=session, store=store, detach=True)).raise_for_error() as flow:
        (job,) = flow.jobs()
        assert job.job_id == id
        job.synchronize(timeout=PATIENCE)
        assert [info.exit_status for info in job.infos()] == [index % 3 for index in range(1, number + 1)]
        assert all(info.state is not JobState.DONE or info.exit_status == 0 for info in job.infos())
        assert list(job.outputs().values()) == [f"out {index}" for index in range(1, number + 1)]
        assert flow.session is not None
        assert all(task.error_output() == "err" for task in flow.session.get_job_array(id).tasks)
        job.reap_all()


def test_what_was_left_behind_is_removed_by_name(daemon: Daemon, session: str, run: Callable[..., Program]) -> None:
    """clean(session) removes what a program has left, running or not; what belongs to other sessions stays."""
    from wfl.contexts.docker import clean

    number = RUNNING[daemon.name]
    program = run(SOME.replace("context()", "context(detach=True, store=rest[1])"), str(number), f"{session}.store")
    program.expect("running")
    program.kill()
    other = Context.unique_session_name()
    try:
        with Workflow(daemon.context(session_name=other)).raise_for_error() as flow:
            job = flow.run("true").wait(PATIENCE).run("sleep", "600")
            job.tasks[-1].wait_started(PATIENCE)
            context: Any = daemon.context()
            assert clean(session, context) == number
            assert daemon.containers(session) == []
            assert clean(session, context) == 0
            assert daemon.states(other) == ["exited", "running"]
            assert job.state is JobState.RUNNING
            job.kill().wait(PATIENCE)
        daemon.is_empty(other)
    finally:
        daemon.remove_all(other)


# --- somebody else ---------------------------------------------------------------------------------------------


def test_killed_by_somebody(daemon: Daemon, session: str, flow: Workflow) -> None:
    """A kill that is not wfl's is an end by that signal."""
    job = flow.run("sleep", "600")
    daemon.api.kill(one_of(daemon, session))
    assert end_of(job) == (JobState.FAILED, "signaled", 137, "SIGKILL")


def test_stopped_by_somebody(daemon: Daemon, session: str, flow: Workflow) -> None:
    """A stop asks first: one that ends itself then has ended with its own status, one that does not by the signal."""
    job = flow.run(shell("trap 'exit 7' TERM; while :; do sleep 0.05; done"))
    wait_until("the trap is set", lambda: one_of(daemon, session))
    time.sleep(0.5)  # a shell that has not come to its first line ends by the signal: both are true then
    daemon.api.stop(one_of(daemon, session), timeout=60)
    assert end_of(job) in (
        (JobState.FAILED, "exited", 7, None),
        (JobState.FAILED, "signaled", 143, "SIGTERM"),
    )


@pytest.mark.parametrize("running", [True, False])
def test_removed_by_somebody(daemon: Daemon, session: str, flow: Workflow, *, running: bool) -> None:
    """A container that is gone is an end with words; one that had ended before keeps its end, and lost its output."""
    job = flow.run(shell("echo x; exit 3" if not running else "sleep 600"))
    if not running:
        assert end_of(job) == (JobState.FAILED, "exited", 3, None)
        daemon.remove_all(session)
        assert end_of(job) == (JobState.FAILED, "exited", 3, None)
        assert job.output() in ("", "x")  # as it was read before, or not
        return
    id = one_of(daemon, session)
    daemon.api.remove_container(id, force=True)
    state, sub_state, status, name = end_of(job)
    assert (state, sub_state, status, name) in (
        (JobState.FAILED, "lost", None, None),
        (JobState.FAILED, "signaled", 137, "SIGKILL"),
    )
    info = job.info()
    assert info is not None
    assert "removed" in (info.annotation or "") or sub_state == "signaled"


def test_paused_by_somebody(daemon: Daemon, session: str, flow: Workflow) -> None:
    """Pause and unpause show as SUSPENDED and RUNNING; killed while paused it has ended."""
    job = flow.run("sleep", "600")
    id = one_of(daemon, session)
    wait_until("it is known to run", lambda: job.state is JobState.RUNNING)
    daemon.api.pause(id)
    wait_until("it is known to be paused", lambda: job.state is JobState.SUSPENDED)
    daemon.api.unpause(id)
    wait_until("it is known to go on", lambda: job.state is JobState.RUNNING)
    daemon.api.pause(id)
    wait_until("it is known to be paused", lambda: job.state is JobState.SUSPENDED)
    if daemon.name == "podman":  # which refuses to kill what is paused
        daemon.api.unpause(id)
    daemon.api.kill(id)
    assert end_of(job) == (JobState.FAILED, "signaled", 137, "SIGKILL")


def test_started_again_by_somebody(daemon: Daemon, session: str, flow: Workflow) -> None:
    """A restart ends the task, or the task is what was started then; never both, and never no end."""
    job = flow.run(shell("sleep 4; exit 5"))
    daemon.api.restart(one_of(daemon, session), timeout=0)
    assert end_of(job) in (
        (JobState.FAILED, "signaled", 137, "SIGKILL"),
        (JobState.FAILED, "signaled", 143, "SIGTERM"),
        (JobState.FAILED, "exited", 5, None),
    )
    before = job.info()
    if daemon.states(session) == ["running"]:
        wait_until("that has ended, too", lambda: daemon.states(session) == ["exited"])
    assert job.info() == before


# --- memory, image, command --------------------------------------------------------------------------------------

HUNGRY = "awk 'BEGIN { x = \"0123456789abcdef\"; while (1) x = x x }'"
"""Takes memory until it has none."""


def test_out_of_memory(daemon: Daemon, flow: Workflow) -> None:
    """Its only process was killed as memory ran out."""
    job = flow.run("awk", 'BEGIN { x = "0123456789abcdef"; while (1) x = x x }', min_phys_memory=32 * 1024)
    state, sub_state, status, name = end_of(job)
    assert (state, status, name) == (JobState.FAILED, 137, "SIGKILL")
    assert sub_state == "out_of_memory" if daemon.name == "docker" else sub_state in ("out_of_memory", "signaled")


def test_a_child_was_out_of_memory(daemon: Daemon, flow: Workflow) -> None:
    """The first process went on to exit 0: the daemon says that memory ran out, and so does the task (not Podman)."""
    job = flow.run(shell(f"{HUNGRY}; echo on; exit 0", min_phys_memory=32 * 1024))
    state, sub_state, status, _ = end_of(job)
    assert status == 0
    assert job.output() == "on"
    if daemon.name == "docker":
        assert (state, sub_state) == (JobState.FAILED, "out_of_memory")
    else:
        assert (state, sub_state) in ((JobState.DONE, "exited"), (JobState.FAILED, "out_of_memory"))


@pytest.mark.parametrize("pull", ["never", "missing", "always"])
def test_no_such_image(pull: str, daemon: Daemon, session: str, flow: Workflow) -> None:
    """It is refused with the image's name: at once, or when no registry gives it."""
    image = "127.0.0.1:9/wfl/nowhere:none"
    job = flow.run(JobTemplate(remote_command="true", job_category=image, extensions={"pull": pull}))
    assert end_of(job) == (JobState.FAILED, "launch_failure", None, None)
    (error,) = job.errors
    assert "wfl/nowhere" in str(error)
    assert "\n" not in str(error)
    assert daemon.containers(session) == []


@pytest.mark.parametrize("command", ["no-such-command", "/etc", "/no/such/path"])
def test_no_such_command(command: str, daemon: Daemon, session: str, flow: Workflow) -> None:
    """It never ran, and has no exit status; the words name the command."""
    job = flow.run(command)
    assert end_of(job) == (JobState.FAILED, "launch_failure", None, None)
    info = job.info()
    assert info is not None
    if daemon.name == "docker":  # Podman's first process says only what is wrong
        assert command in (info.annotation or "")
    assert info.annotation
    assert job.errors
    assert flow.run("true").wait(PATIENCE).success(), "the session goes on"
    assert "running" not in daemon.states(session)

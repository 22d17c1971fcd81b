"""Programs that fork, with Python's knowledge or without, and programs that are pid 1."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.machine import NOTE, Program, marked, noted, wait_until

if TYPE_CHECKING:
    from pathlib import Path

SLEEPER = f"""
import os, sys
from wfl import Workflow, shell
flow = Workflow()
job = flow.run(shell({NOTE + "exec sleep 600"!r}, job_environment={{"LOG": sys.argv[1]}}))
job.tasks[0].wait_started(30)
import time
while not os.path.exists(sys.argv[1]):  # started, but perhaps not yet at its note
    time.sleep(0.01)
"""


def test_a_forked_child_has_no_session(tmp_path: Path) -> None:
    """Every call in the child is an InvalidSessionError; its exit, with or without clean-up, ends nothing."""
    source = (
        SLEEPER
        + """
from wfl import InvalidSessionError, as_completed
task = job.tasks[0]
calls = {
    "run": lambda: flow.run("true").on_error_raise(), "run_array": lambda: flow.run_array(2, "true").on_error_raise(),
    "jobs": flow.jobs, "kill_all": flow.kill_all, "suspend": task.suspend, "terminate": task.terminate,
    "wait": lambda: task.wait_terminated(1), "wait_started": lambda: flow.session.wait_any_started([task], 1),
    "wait_any": lambda: flow.session.wait_any_terminated([task], 1), "output": task.output, "stream": task.stream,
    "callback": lambda: task.add_done_callback(print), "as_completed": lambda: list(as_completed([job], 1)),
    "reap": task.reap, "run_job": lambda: flow.session.run_job(task.template), "retry": lambda: job.retry(1)
    .on_error_raise(), "kill": lambda: job.kill().on_error_raise(), "get_jobs": lambda: flow.session.get_jobs(),
}
for leave in (os._exit, sys.exit):
    child = os.fork()
    if child == 0:
        for name, call in calls.items():
            try:
                call()
            except InvalidSessionError as error:
                assert "forked" in str(error), error
            else:
                print("no error from", name, file=sys.stderr, flush=True)
                os._exit(1)
        flow.close()
        leave(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert job.state.name == "RUNNING"
assert flow.run("echo", "x").output() == "x"
job.kill()
flow.close()
print("over", flush=True)
"""
    )
    with Program(source, tmp_path, str(tmp_path / "log")) as program:
        program.expect("over")
        program.finish()


def test_a_forked_child_may_open_a_session_of_its_own(tmp_path: Path) -> None:
    """A pool of forked workers: each opens a workflow, beside that of the program."""
    source = (
        SLEEPER
        + """
import multiprocessing
def work(number):
    with Workflow() as own:
        return own.run("echo", str(number)).output()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(work, range(4)) == ["0", "1", "2", "3"]
assert job.state.name == "RUNNING"
assert flow.run("echo", "x").output() == "x"
print("over", flush=True)
"""
    )
    with Program(source, tmp_path, str(tmp_path / "log")) as program:
        program.expect("over")
        program.process.wait(60)
        program.struck = time.monotonic()
        program.is_clean_in_time(tmp_path / "log")


FORKS = {
    "os.fork": "child = os.fork()",
    "multiprocessing": "import multiprocessing, time\n"
    "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))\n"
    "child.start()\nchild = child.pid",
    "C": "import ctypes\nchild = ctypes.CDLL(None).fork()",
}


@pytest.mark.parametrize("fork", FORKS)
def test_the_death_of_the_program_is_noticed_though_its_child_lives(fork: str, tmp_path: Path) -> None:
    """Copies of the program's descriptors in a living child, also of a fork unknown to Python, hide nothing."""
    source = (
        SLEEPER
        + FORKS[fork]
        + """
import time
if child == 0:
    time.sleep(600)
print("child", child, flush=True)
sys.stdin.readline()
"""
    )
    log = tmp_path / "log"
    with Program(source, tmp_path, str(log)) as program:
        child = int(program.expect("child"))
        program.kill()
        os.kill(child, 0)
        wait_until("only the child is left", lambda: [child] == marked(program.mark) and len(program.left()) == 1)
        os.kill(child, 9)
        program.is_clean_in_time(log)


def test_a_program_that_is_process_1(tmp_path: Path) -> None:
    """In a pid namespace of its own, as in a container: tasks run and end, orphans and zombies do not pile up."""
    command = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare: makes a pid namespace")
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("a pid namespace cannot be made here")
    source = """
import os, sys
from wfl import Workflow
assert os.getpid() == 1
with Workflow() as flow:
    assert flow.run("echo", "x").output() == "x"
    assert flow.run_array(50, "sh", "-c", "sleep 0.01 & exit 3").failed()
    job = flow.run("sh", "-c", "setsid sleep 600 & exec sleep 600")
    job.tasks[0].wait_started(30)
    assert job.kill().wait(30).info().terminating_signal == "SIGKILL"
    job = flow.run("sh", "-c", "(setsid sleep 601 &) ; exit 0")
    assert job.success()
left = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
print("left", left, [open(f"/proc/{name}/stat").read() for name in left], flush=True)
"""
    with Program(source, tmp_path, before=command) as program:
        assert program.expect("left") == "[] []"
        program.finish()


def test_a_killed_process_1_leaves_nothing(tmp_path: Path) -> None:
    """The system ends the whole namespace with its process 1: keeper and tasks too, at once (their files stay)."""
    command = ("unshare", "--pid", "--fork", "--mount-proc")
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare: makes a pid namespace")
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("a pid namespace cannot be made here")
    source = SLEEPER + "print('ready', flush=True); os._exit(0)"
    with Program(source, tmp_path, str(tmp_path / "log"), before=command) as program:
        program.expect("ready")
        program.process.wait(60)
        program.struck = time.monotonic()
        wait_until("no process is left", lambda: not [line for line in program.left() if line.startswith("process")])
    assert noted(tmp_path / "log")

"""Without detach nothing outlives the program, however and whenever it dies."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.machine import HYDRA, NOTE, Program, is_alive, kills, noted, seed, wait_until

if TYPE_CHECKING:
    from pathlib import Path

BURST = f"""
import itertools, os, sys
from wfl import Workflow, shell
hydra, log = sys.argv[1:]
flow = Workflow()
print("ready", flush=True)
task = shell({NOTE + "exec sleep 600"!r}, job_environment={{"LOG": log}})
for turn in itertools.count():
    job = flow.run(sys.executable, "-I", "-S", hydra, log) if turn < 3 else flow.run(task)
    if turn % 10 == 5:
        flow.run_array(10, task, max_parallel=None if turn % 20 == 5 else 4)
    if turn == 60:
        break
print("submitted", flush=True)
job.synchronize()
"""

DEATHS = {
    "SIGINT": (signal.SIGINT, False),
    "SIGTERM": (signal.SIGTERM, False),
    "SIGHUP": (signal.SIGHUP, False),
    "SIGKILL": (signal.SIGKILL, False),
    "SIGINT-group": (signal.SIGINT, True),
    "SIGKILL-group": (signal.SIGKILL, True),
}


@pytest.mark.parametrize("death", DEATHS)
def test_nothing_is_left_of_a_killed_program(death: str, tmp_path: Path) -> None:
    """Killed at random moments, also inside a burst: no task, grandchild, keeper or temporary file is left in 2 s."""
    number, group = DEATHS[death]
    chance = random.Random(start := seed())  # noqa: S311 - moments, no secrets
    print("WFL_FAULTS_SEED", start)  # noqa: T201 - what repeats a failure
    for turn in range(kills(2)):
        log = tmp_path / f"log-{turn}"
        with Program(BURST, tmp_path, str(HYDRA), str(log)) as program:
            program.expect("ready")
            time.sleep(chance.uniform(0, 0.4))
            program.kill(number, group=group)
            program.is_clean_in_time(log)


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_every_head_of_a_stubborn_task_is_ended(death: signal.Signals, tmp_path: Path) -> None:
    """A task that ignores SIGTERM, its setsid child, its stopped child and its daemon without environment all end."""
    log = tmp_path / "log"
    source = "import sys; from wfl import Workflow; Workflow().run(sys.executable, *sys.argv[1:]).synchronize()"
    with Program(source, tmp_path, "-I", "-S", str(HYDRA), str(log)) as program:
        wait_until("all four heads are there", lambda: len(noted(log)) == 4)
        assert all(is_alive(*head) for head in noted(log))
        program.kill(death)
        program.is_clean_in_time(log)


def test_a_killed_task_takes_its_heads_along(tmp_path: Path) -> None:
    """kill() reaches the child in a session of its own and the stopped one; the session goes on."""
    log = tmp_path / "log"
    source = """
import sys
from wfl import Workflow
flow = Workflow()
job = flow.run(sys.executable, *sys.argv[1:])
sys.stdin.readline()
job.kill().wait()
print("ended", job.info().sub_state, job.info().terminating_signal, flush=True)
print("after", flow.run("echo", "x").output(), flush=True)
sys.stdin.readline()
"""
    with Program(source, tmp_path, "-I", "-S", str(HYDRA), str(log)) as program:
        wait_until("all four heads are there", lambda: len(noted(log)) == 4)
        program.say("kill")
        assert program.expect("ended") == "cancelled SIGKILL"
        assert program.expect("after") == "x"
        daemon = noted(log)  # the daemon gave up all that ties it to the task: it ends with the session
        wait_until("the heads are gone", lambda: sum(is_alive(*head) for head in daemon) <= 1)
        program.kill()
        program.is_clean_in_time(log)


def test_a_closed_session_leaves_no_daemon_behind(tmp_path: Path) -> None:
    """Leaving the `with` block ends what tasks left running, and removes the temporary files."""
    log = tmp_path / "log"
    source = """
import sys
from wfl import Workflow
with Workflow() as flow:
    job = flow.run("sh", "-c", '"$0" "$@" & while [ "$(wc -l <"$LOG")" != 4 ]; do sleep 0.02; done', *sys.argv[1:],
                   job_environment={"LOG": sys.argv[-1]})
    assert job.success(), job.error_output()
    print("ended", flush=True)
    sys.stdin.readline()
"""
    import sys

    log.touch()
    with Program(source, tmp_path, sys.executable, "-I", "-S", str(HYDRA), str(log)) as program:
        program.expect("ended")
        assert all(is_alive(*head) for head in noted(log))
        program.say("close")
        program.struck = time.monotonic()
        program.finish()
        program.is_clean_in_time(log)

"""Programs steer what waits in another one's queue, which may be killed meanwhile: nothing is lost or done twice."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.machine import Program, kills, marked, seed, wait_until

if TYPE_CHECKING:
    from pathlib import Path

TASKS = 40

OPEN = """
import json, random, sys, time
from wfl import Workflow
from wfl.contexts.process import ProcessContext
directory = sys.argv[1]
flow = Workflow(ProcessContext(store=directory + "/store", detach=True, max_parallel=2), raise_errors=True)
def tell(jobs):
    print("end", json.dumps({job.job_id: [job.state.name, job.info().sub_state] for job in jobs}))
"""

OWNER = (
    OPEN
    + f"""
for number in range({TASKS}):
    flow.run("sh", "-c", 'echo "$JOB_ID" >>"$LOG"; sleep 0.05', job_environment={{"LOG": directory + "/ran"}})
print("ready", flush=True)
jobs = flow.jobs()
for job in jobs:
    job.wait()
tell(jobs)
flow.close()
"""
)

OTHER = (
    OPEN
    + """
chance = random.Random(int(sys.argv[2]))
jobs = flow.jobs()
print("open", flush=True)
sys.stdin.readline()
flow.raise_errors = False
for job in chance.sample(jobs, 15):
    time.sleep(chance.uniform(0, 0.03))
    if chance.random() < 0.6:
        job.kill()
        print("killed", job.job_id)
    else:
        job.hold()
        job.release()
while not all(job.state.ended for job in jobs):
    for job in jobs:
        if job.state.name == "QUEUED_HELD":
            job.release()
    time.sleep(0.02)
    flow.jobs()
tell(jobs)
flow.close()
"""
)


def reports(lines: list[str]) -> dict[str, list[Any]]:
    """What a program knew of all jobs in the end."""
    (found,) = [json.loads(line.removeprefix("end ")) for line in lines if line.startswith("end ")]
    assert isinstance(found, dict)
    return found


@pytest.mark.timeout(600)
def test_steering_another_programs_queue(tmp_path: Path) -> None:
    """Two programs end, hold and release at random what waits in a third, which is killed in half of the turns: no
    job runs twice, what was ended is cancelled (unless it had run), all others run, and all programs agree.
    """
    chance = random.Random(start := seed())  # noqa: S311 - moments, no secrets
    print("WFL_FAULTS_SEED", start)  # noqa: T201 - what repeats a failure
    for turn in range(kills(20) // 4):
        directory = tmp_path / f"turn-{turn}"
        directory.mkdir()
        with ExitStack() as stack:
            owner = stack.enter_context(Program(OWNER, directory, str(directory)))
            owner.expect("ready")
            others = [
                stack.enter_context(Program(OTHER, directory, str(directory), str(chance.random())[2:]))
                for _ in range(2)
            ]
            for other in others:
                other.expect("open")
            for other in others:
                other.say("go")
            left = list(others)
            if chance.random() < 0.5:
                time.sleep(chance.uniform(0, 0.7))
                owner.kill()
            else:
                left.append(owner)
            told = [program.finish().splitlines() for program in left]
            found = [reports(lines) for lines in told]
            killed = {line.split()[1] for lines in told for line in lines if line.startswith("killed ")}
            ran = Counter((directory / "ran").read_text().split())
            assert [id for id, times in ran.items() if times != 1] == []
            assert len(found[0]) == TASKS
            assert all(report == found[0] for report in found)
            for id, (state, sub_state) in found[0].items():
                if id in killed and state == "FAILED":
                    assert sub_state == "cancelled", id
                else:
                    assert (state, sub_state, id in ran) == ("DONE", "exited", True), id
            wait_until("no process is left", lambda marks=[p.mark for p in left]: not any(map(marked, marks)))  # type: ignore[misc]

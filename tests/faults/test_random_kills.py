"""With detach and a store a program may die at any moment: nothing that it began is lost or done twice."""

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

OPEN = """
import json, os, sys, time
from wfl import Workflow, shell
from wfl.contexts.process import ProcessContext
directory, limit = sys.argv[1], int(sys.argv[2])
def connect():
    return Workflow(ProcessContext(store=directory + "/store", detach=True, max_parallel=limit or None),
                    raise_errors=True)
"""

BURST = (
    OPEN
    + """
returned = os.open(directory + "/returned", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
task = '''echo "$JOB_ID ${TASK_ID:--} $0" >>"$LOG"; sleep 0.0$(($0 % 4)); echo "out $0"; exit $(($0 % 3))'''
flow = connect()
print("ready", flush=True)
for number in range(60):
    command = ["sh", "-c", task, str(number)]
    if number % 10 == 7:
        job = flow.run_array(6, *command, max_parallel=2 if number % 20 == 7 else None,
                             job_environment={"LOG": directory + "/ran"})
    else:
        job = flow.run(*command, job_environment={"LOG": directory + "/ran"})
    os.write(returned, f"{job.job_id} {number}\\n".encode())
time.sleep(600)
"""
)

BACK = (
    OPEN
    + """
print("here", flush=True)
sys.stdin.readline()
with connect() as flow:
    print("open", flush=True)
    jobs = flow.jobs()
    for job in jobs:
        job.synchronize(30)
        for task in job.tasks:
            for leaf in getattr(task, "tasks", [task]):
                info = leaf.info()
                print("task", json.dumps([
                    leaf._record.job_id, leaf.index, int(leaf.template.args[2]), info.state.name, info.sub_state,
                    info.exit_status, info.annotation, leaf.output() if info.exit_status is not None else None]))
        print("errors", job.errors)
print("over", flush=True)
"""
)


def report_of(program: Program) -> list[list[Any]]:
    """What a program that came back found, task by task."""
    lines = program.finish().splitlines()
    assert lines[-1] == "over", program.log()
    return [json.loads(line.removeprefix("task ")) for line in lines if line.startswith("task ")]


def check(directory: Path, found: list[list[Any]]) -> None:
    """Every task once: never started, with words; or run once, with its exit status and output."""
    ran: Counter[tuple[str, str, str]] = Counter()
    if (directory / "ran").exists():
        for line in (directory / "ran").read_text().splitlines():
            job_id, index, number = line.split()
            ran[job_id, index, number] += 1
    assert [key for key, times in ran.items() if times != 1] == []
    told = Counter((job_id, str(index or "-"), str(number)) for job_id, index, number, *_ in found)
    assert [key for key, times in told.items() if times != 1] == []
    assert ran.keys() - told.keys() == set(), "ran, but nobody knows of it"
    returned = (directory / "returned").read_text().split("\n")[:-1] if (directory / "returned").exists() else []
    assert {line.split()[0] for line in returned} <= {job_id for job_id, *_ in found}, "submitted and forgotten"
    for job_id, index, number, state, sub_state, status, words, output in found:
        if (job_id, str(index or "-"), str(number)) in ran:
            expected = ["DONE" if number % 3 == 0 else "FAILED", "exited", number % 3, f"out {number}"]
            assert [state, sub_state, status, output] == expected, (job_id, words)
        else:
            assert (state, sub_state, status) == ("FAILED", "launch_failure", None), (job_id, words)
            assert "never ran" in words


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("limit", [0, 3], ids=["unlimited", "queued"])
def test_every_submission_is_accounted_for_once(limit: int, tmp_path: Path) -> None:
    """Killed at a random moment, perhaps twice; then one or two programs come back at the same time and find all."""
    chance = random.Random(start := seed())  # noqa: S311 - moments, no secrets
    print("WFL_FAULTS_SEED", start)  # noqa: T201 - what repeats a failure
    for turn in range(kills(20) // 2):
        directory = tmp_path / f"turn-{turn}"
        directory.mkdir()
        with ExitStack() as stack:
            programs = [
                stack.enter_context(Program(source, directory, str(directory), str(limit)))
                for source in (BURST, *[BACK] * chance.choice([1, 2, 2, 3]))
            ]
            first, *others = programs
            first.expect("ready")
            for other in others:
                other.expect("here")
            time.sleep(chance.uniform(0, chance.choice([0.05, 0.5])))
            first.kill()
            if len(others) == 3:  # one comes back first, and is killed, too
                others[0].say("go")
                time.sleep(chance.uniform(0, 0.3))
                others[0].kill()
                del others[0]
            for other in others:
                other.say("go")
            reports = [report_of(other) for other in others]
            for report in reports:
                check(directory, report)
            assert all(sorted(map(str, report)) == sorted(map(str, reports[0])) for report in reports)
            marks = [one.mark for one in programs]
            wait_until("no process is left", lambda marks=marks: not any(map(marked, marks)))  # type: ignore[misc]


def test_a_keeper_that_was_just_starting_is_waited_for(tmp_path: Path) -> None:
    """A program is killed before its keeper has come up; another comes back at once and finds what it submitted."""
    source = (
        OPEN
        + """
from wfl.contexts import helper
command = helper._command
helper._command = lambda *words: ["sh", "-c", 'sleep 0.7; exec "$@"', "sh", *command(*words)]
flow = connect()
sys.stdin.readline()
flow.run("sh", "-c", 'echo "$JOB_ID - $0" >>"$LOG"; echo "out $0"; exit $(($0 % 3))', "1",
         job_environment={"LOG": directory + "/ran"})
os.kill(os.getpid(), 9)
"""
    )
    arguments = (tmp_path, str(tmp_path), "0")
    with Program(source, *arguments) as first, Program(BACK, *arguments) as other:
        other.expect("here")
        first.say("go")
        first.process.wait(30)
        other.say("go")
        (found,) = report_of(other)
        assert found[3:6] == ["FAILED", "exited", 1], found
        check(tmp_path, [found])

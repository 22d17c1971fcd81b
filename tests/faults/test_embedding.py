"""Programs that are no plain script: threads, asyncio, no standard streams, odd ways to end, Ctrl-C in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.machine import NOTE, PATIENCE, Program, noted, wait_until

if TYPE_CHECKING:
    from pathlib import Path

START = f"""
import os, sys, threading, time
from wfl import JobState, Workflow, shell
log = sys.argv[1]
sleeper = shell({NOTE + "exec sleep 600"!r}, job_environment={{"LOG": log}})

def wait_noted():
    while not (os.path.exists(log) and os.path.getsize(log)):
        time.sleep(0.01)
"""


def run(source: str, directory: Path, code: int = 0) -> str:
    """Run a program to its end, with this exit code, leaving nothing behind; what it says on standard error."""
    with Program(START + source, directory, str(directory / "log")) as program:
        assert program.process.stdin is not None
        program.process.stdin.close()
        program.process.stdin = None
        program.finish(code)
        program.struck = time.monotonic()
        program.is_clean_in_time(directory / "log")
        return program.log()


def test_a_program_may_end_while_tasks_run(tmp_path: Path) -> None:
    """They are ended, with one warning that counts them; the exit code stays the program's own."""
    source = """
flow = Workflow()
flow.run_array(5, sleeper)
flow.run(sleeper)
wait_noted()
sys.exit(23)
"""
    said = run(source, tmp_path, 23)
    assert said.count("tasks had not ended") == 1
    assert "6 tasks" in said
    assert "Traceback" not in said
    assert noted(tmp_path / "log")


ENDS = {
    "the last line": ("", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "an exception": ("raise RuntimeError('mine')", 1, "RuntimeError: mine"),
    "os._exit": ("os._exit(4)", 4, ""),
    "os.abort": ("os.abort()", -signal.SIGABRT, ""),
    "an exception in an exit handler": ("import atexit; atexit.register(lambda: 1 / 0)", 0, "ZeroDivisionError"),
    "an exception in a with block": ("with flow: raise KeyError('mine')", 1, "KeyError: 'mine'"),
    "sys.exit in a with block": ("with flow: sys.exit(5)", 5, ""),
    "the last reference": ("del flow, job", 0, ""),
    "a thread that goes on": ("threading.Thread(target=time.sleep, args=(600,), daemon=True).start()", 0, ""),
    "a thread that waits for a task": ("threading.Thread(target=job.wait, daemon=True).start()", 0, ""),
    "a pool that is shut down at exit": (
        "from concurrent.futures import ThreadPoolExecutor; ThreadPoolExecutor().submit(job.kill)", 0, ""),
    "a callback that leaves": (
        "job.tasks[0].add_done_callback(lambda _: os._exit(6)); job.kill(); time.sleep(60)", 6, ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_however_it_ends_the_code_is_its_own_and_nothing_is_left(end: str, tmp_path: Path) -> None:
    """The exit code is the program's, its own words are seen, tasks and keeper end."""
    last, code, words = ENDS[end]
    said = run(f"flow = Workflow()\njob = flow.run(sleeper)\nwait_noted()\n{last}\n", tmp_path, code)
    assert words in said
    assert said.count("Traceback") == (1 if words else 0), said
    assert noted(tmp_path / "log")


def test_an_exit_in_a_callback_ends_no_other_callback(tmp_path: Path) -> None:
    """sys.exit() in a callback ends that call only: later callbacks are called, close() does not wait in vain."""
    source = """
begin = time.monotonic()
called = threading.Semaphore(0)
with Workflow() as flow:
    for _ in range(8):
        task = flow.run("true").tasks[0]
        task.add_done_callback(lambda _: sys.exit(9))
        task.add_done_callback(lambda _: called.release())
    for _ in range(8):
        assert called.acquire(timeout=30)
    closing = time.monotonic()
assert time.monotonic() - closing < 4, time.monotonic() - closing
"""
    run(source, tmp_path)


def test_an_exit_in_a_branch_ends_that_branch(tmp_path: Path) -> None:
    """sys.exit() in a branch ends its thread only; join() returns, the others do their work."""
    source = """
with Workflow() as flow:
    branches = flow.branch(lambda job: job.run("echo", "one"), lambda job: sys.exit(9), lambda job: job.run("date"))
    try:
        jobs = branches.join(30)
    except BaseExceptionGroup as group:
        assert len(group.exceptions) == 1, group.exceptions
    assert flow.run("echo", "x").output() == "x"
    assert len(flow.jobs()) == 3
"""
    run(source, tmp_path)


def test_without_standard_streams(tmp_path: Path) -> None:
    """Descriptors 0, 1 and 2 are closed, as in some services: tasks, output and clean-up work as ever."""
    source = """
import os, sys
os.close(0); os.close(1); os.close(2)
sys.stdin = sys.stdout = sys.stderr = None
from wfl import Workflow
result = "failed"
try:
    with Workflow() as flow:
        job = flow.run("sh", "-c", "cat; echo out; echo err >&2")
        assert (job.output(), job.error_output()) == ("out", "err")
        assert len(flow.run_array(50, "sh", "-c", "echo $TASK_ID").outputs()) == 50
        assert list(flow.run("echo", "x").stream()) == ["x"]
        fields = {"resource_limits": {"OPEN_FILES": 50}}
        assert flow.run("sh", "-c", "cat; echo out; echo err >&2", **fields).error_output() == "err"
    result = "well"
except BaseException as error:
    result = repr(error)
with open(sys.argv[1], "w") as file:
    file.write(result)
"""
    result = tmp_path / "result"
    subprocess.run([sys.executable, "-c", source, str(result)], check=True, timeout=PATIENCE)
    assert result.read_text() == "well"


def test_as_in_a_notebook(tmp_path: Path) -> None:
    """Not the main thread, an event loop that runs, standard streams that are objects without a descriptor."""
    source = """
import asyncio
class Stream:
    def __init__(self): self.text = []
    def write(self, text): self.text.append(text); return len(text)
    def flush(self): pass
real, sys.stdout, sys.stdin = sys.stdout, Stream(), None
async def cell():
    flow = Workflow(progress=True)
    job = flow.run("sh", "-c", "sleep 0.1; echo cell")
    ticks = 0
    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)
    ticking = asyncio.create_task(tick())
    assert (await job).output() == "cell"
    assert ticks > 2
    await asyncio.gather(*[flow.run("true") for _ in range(20)])
    flow.run_array(4, "true").synchronize()
    try:
        await asyncio.wait_for(flow.run(sleeper), 0.1)
    except TimeoutError:
        pass
    ticking.cancel()
    flow.close()
def kernel():
    asyncio.run(cell())
    done.append(True)
done = []
thread = threading.Thread(target=kernel)
thread.start()
thread.join()
assert done
"""
    run(source, tmp_path)


VERBS = {
    "wait": "job.wait()",
    "synchronize": "job.synchronize()",
    "then_run": "job.then_run('true')",
    "for_each": "job.for_each(print)",
    "for_all": "job.for_all(lambda task: None)",
    "stream": "list(job.stream())",
    "output": "job.output()",
    "retry": "job.retry(1)",
    "after": "job.after(600)",
    "run_every": "job.run_every(300, 'true', until=600)",
    "as_completed": "list(as_completed([job]))",
    "join": "flow.branch(lambda job: job.run(sleeper).wait()).join()",
    "asyncio": "asyncio.run(wait_for(job))",
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_blocking_verb_is_interrupted(verb: str, tmp_path: Path) -> None:
    """Ctrl-C raises KeyboardInterrupt out of the verb; tasks go on, the session can be used, threads do not hang."""
    source = f"""
import asyncio, signal
from wfl import as_completed
signal.signal(signal.SIGINT, signal.default_int_handler)
async def wait_for(job):
    await job
flow = Workflow()
job = flow.run(sleeper)
job.tasks[0].wait_started()
main = threading.main_thread().ident
threading.Timer(0.15, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
try:
    {VERBS[verb]}
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert job.tasks[0].state is JobState.RUNNING
assert flow.run("echo", "x").output() == "x"
assert flow.run_array(3, "true").synchronize().state is JobState.DONE
job.kill_all().synchronize(30)
flow.close()
"""
    with Program(START + source, tmp_path, str(tmp_path / "log")) as program:
        program.expect("interrupted")
        program.finish()
        program.struck = time.monotonic()
        program.is_clean_in_time(tmp_path / "log")


def test_an_interrupted_burst_leaves_the_session_usable(tmp_path: Path) -> None:
    """Ctrl-C at random moments of run() and run_array(): every submission is known and ends, none is done twice.

    What was interrupted before it was handed over is cancelled, or a failed launch.
    """
    source = """
import random, signal
from collections import Counter
signal.signal(signal.SIGINT, signal.default_int_handler)
chance = random.Random(int(sys.argv[2]))
flow = Workflow()
main = threading.main_thread().ident
interrupts = 0
for turn in range(40):
    timer = threading.Timer(chance.uniform(0, 0.01), lambda: signal.pthread_kill(main, signal.SIGINT))
    try:
        timer.start()
        if turn % 2:
            flow.run_array(3000, "sh", "-c", 'echo $JOB_ID $TASK_ID >>"$0"', log, job_environment={"X": "x" * 1000}) \
                if turn == 21 else flow.run_array(40, "sh", "-c", 'echo $JOB_ID $TASK_ID >>"$0"', log)
        else:
            for _ in range(30):
                flow.run("sh", "-c", 'echo $JOB_ID - >>"$0"', log)
        while timer.is_alive():
            time.sleep(0.001)
        timer.join()
    except KeyboardInterrupt:
        interrupts += 1
    while timer.is_alive():
        try:
            timer.join()
        except KeyboardInterrupt:
            interrupts += 1
try:
    time.sleep(0.01)
except KeyboardInterrupt:
    pass
ran = Counter()
tasks = flow.session.get_jobs()
for task in tasks:
    task.wait_terminated(60)
states = Counter((task.state.name, task.info().sub_state) for task in tasks)
if os.path.exists(log):
    ran.update(tuple(line.split()) for line in open(log))
assert set(ran.values()) <= {1}, ran.most_common(3)
done = {(task._record.job_id, str(task.index or "-")) for task in tasks if task.state is JobState.DONE}
assert done == set(ran), (len(done), len(ran), states)
never = {("FAILED", "launch_failure"), ("FAILED", "cancelled")}
assert set(states) <= {("DONE", "exited"), *never}, states
assert flow.run("echo", "x").output() == "x"
[task.error for task in tasks]
flow.close()
print("interrupts", interrupts, flush=True)
"""
    from tests.faults.machine import seed

    with Program(START + source, tmp_path, str(tmp_path / "ran"), str(seed())) as program:
        assert int(program.expect("interrupts")) > 0
        program.finish()


def test_a_stopped_program_goes_on(tmp_path: Path) -> None:
    """SIGSTOP and SIGCONT of the program (Ctrl-Z): its tasks run on meanwhile, their ends are heard of afterwards."""
    log = tmp_path / "log"
    source = """
with Workflow() as flow:
    job = flow.run_array(200, "sh", "-c", 'sleep 0.1; echo 1 1 >>"$0"', log)
    print("submitted", flush=True)
    assert job.synchronize(60).state is JobState.DONE
print("over", flush=True)
"""
    with Program(START + source, tmp_path, str(log)) as program:
        program.expect("submitted")
        program.process.send_signal(signal.SIGSTOP)
        wait_until("all tasks have run", lambda: len(noted(log)) == 200)
        program.process.send_signal(signal.SIGCONT)
        program.expect("over")
        program.finish()

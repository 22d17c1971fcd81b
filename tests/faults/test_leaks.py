"""Counted before and after: threads, descriptors, files, zombies and memory come back to what they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.machine import PATIENCE, Program, marked, wait_until

if TYPE_CHECKING:
    from pathlib import Path

COUNT = """
import gc, os, sys, tempfile, threading, time, warnings
from wfl import Workflow
from wfl.contexts.process import ProcessContext
warnings.simplefilter("error")
store = sys.argv[1] or None
detach = len(sys.argv) > 2
def context():
    return ProcessContext(store=store, detach=detach) if store else None
def zombies():
    found = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    state, parent = file.read().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            found += state == "Z" and int(parent) == os.getpid()
    return found
def files():
    return sum(len(files) for place in filter(None, [tempfile.gettempdir(), store and store + ".d"])
               for _, _, files in os.walk(place))
def memory():
    gc.collect()
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private"))
def settle(what, wanted):
    end = time.monotonic() + 30
    while (now := what()) > wanted and time.monotonic() < end:
        time.sleep(0.05)
    return now
def descriptors():
    return len(os.listdir("/proc/self/fd"))
"""

JOBS = (
    COUNT
    + """
def load(flow, count):
    flow.run_array(count, "sh", "-c", "echo $TASK_ID; exit $((TASK_ID % 2))").failed()
    for job in [flow.run("echo", "x") for _ in range(count // 4)]:
        assert job.output() == "x"
        job.tasks[0].add_done_callback(lambda task: task.id)
        job.wait().reap_all()
    sleepers = flow.run_array(40, "sleep", "600")
    for task in sleepers.tasks[0].tasks:
        task.wait_started(60)
    sleepers.kill_all().failed()
    list(flow.run("seq", "100").stream())
    for job in flow.jobs():
        job.reap_all()
with Workflow(context()) as flow:
    load(flow, 1000)  # whatever is kept once is there now
    before = [threading.active_count(), descriptors(), zombies()]
    for again in range(4):
        size, kept = memory(), files()
        load(flow, 1000)
        more, grown = files() - kept, memory() - size
        print("round", more, grown, flush=True)
        if more <= 0 and grown < 1290:
            break  # files are used again, as many as were ever needed at once; a leak comes with each round
    after = [settle(what, wanted) for what, wanted in
             zip([threading.active_count, descriptors, zombies], before, strict=True)]
    assert max(a - b for a, b in zip(after, before)) <= 0, (before, after)
    print("grown", more, grown, flush=True)
print("over", flush=True)
"""
)

SESSIONS = (
    COUNT
    + """
def session(number):
    with Workflow(context()) as flow:
        assert flow.run("echo", "x").output() == "x"
        flow.run_array(40, "true").synchronize()
        flow.run("sh", "-c", "exit 3").then(lambda task: None).retry(1, backoff=0).failed()
        flow.branch(lambda job: job.run("true").wait()).join()
        sleeper = flow.run("sleep", "0.2" if detach else "600")
        sleeper.tasks[0].wait_started(30)
        if not detach:
            sleeper.kill()
for number in range(3):
    session(number)
before = [threading.active_count(), descriptors(), zombies()]
for number in range(20):
    session(number)
if detach:
    time.sleep(0.5)
    session(-1)
after = [settle(what, wanted) for what, wanted in
         zip([threading.active_count, descriptors, zombies], before, strict=True)]
assert max(a - b for a, b in zip(after, before)) <= (2 if detach else 0), (before, after)
print("over", os.listdir(tempfile.gettempdir()), flush=True)
"""
)


@pytest.mark.parametrize("kept", [False, True], ids=["no store", "store"])
def test_a_thousand_jobs_leave_nothing(kept: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """After 1,000 jobs, ended and reaped, the counts are those from before; a job leaves less than 1 KiB."""
    with Program(JOBS, tmp_path, str(tmp_path / "store") if kept else "") as program:
        files, grown = map(int, program.expect("grown").split())
        program.expect("over")
        program.finish()
        assert files <= 0, f"{files} files more after 1,291 jobs, again and again"
        assert grown < 1290, f"{grown} KiB more after 1,291 jobs, again and again"
        assert program.left() == []


@pytest.mark.parametrize("store", ["", "store", "detached"])
def test_twenty_sessions_leave_nothing(store: str, tmp_path: Path) -> None:
    """Opened, used and closed 20 times: no thread, descriptor, zombie, temporary file or keeper is left."""
    arguments = [str(tmp_path / "store") if store else "", *(["detach"] if store == "detached" else [])]
    with Program(SESSIONS, tmp_path, *arguments) as program:
        assert program.expect("over") == "[]"
        program.finish()
        wait_until("no keeper is left", lambda: not marked(program.mark), PATIENCE)

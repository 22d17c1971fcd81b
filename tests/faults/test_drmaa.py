"""DrmaaContext on a real Grid Engine: one session of the library for all, ends of others, and a program's own end.

Each test is a program of its own, as a process has one session with the library, and loads it once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.machine import PATIENCE

SERVICES = Path(__file__).parents[1] / "services"
PLAIN_LIBRARY = Path("/usr/lib/gridengine-drmaa/lib/libdrmaa.so.1.0")
"""Debian's own, which needs more room for its threads' variables than a running interpreter has."""
BEGIN = """
import json, os, sys, time
from collections import Counter
from wfl import JobState, Workflow, WflError
from wfl.contexts.drmaa import DrmaaContext
from wfl.contexts.drmaa.library import connection
directory, *rest = sys.argv[1:]
def context(**settings):
    return DrmaaContext(**{"directory": directory, "detach": False, **settings})
def say(**what):
    print(json.dumps({**what, "time": time.time()}), flush=True)
"""


@pytest.fixture(scope="module")
def site() -> dict[str, str]:
    """The variables of a Grid Engine that answers."""
    told = subprocess.run([SERVICES / "environment.sh", "sge"], capture_output=True, text=True, check=True).stdout
    found = {**os.environ, **dict(line.split("=", 1) for line in told.splitlines())}
    try:
        subprocess.run(["qstat"], env=found, capture_output=True, check=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no Grid Engine answers (make services)")
    return found


@pytest.fixture
def program(site: dict[str, str], tmp_path: Path) -> Any:
    """Runs lines as a program; the last thing that it says, and when it had ended."""

    def run(lines: str, *arguments: str, status: int = 0, **variables: str) -> dict[str, Any]:
        argv = [sys.executable, "-W", "error", "-c", BEGIN + lines, str(tmp_path / "jobs"), *arguments]
        env = {**site, **variables, "PYTHONPATH": os.getcwd()}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=8 * PATIENCE)
        ended = time.time()
        assert done.returncode == status, done.stderr
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return {**said, "ended": ended, "errors": done.stderr}

    return run


def test_two_sessions(program: Any) -> None:
    """Closing one workflow ends neither the other nor its jobs; the library's session ends with the last."""
    said = program("""
first, second = Workflow(context(), raise_errors=True), Workflow(context(), raise_errors=True)
one, other = first.run("sleep", "600"), second.run("sh", "-c", "exit 4")
first.close()
status, attached = other.wait(120).exit_status(), DrmaaContext.attached_to() is not None
second.close()
after = DrmaaContext.attached_to()
with Workflow(context(), raise_errors=True) as third:
    again = third.run("true").wait(120).state
say(status=status, attached=attached, after=after, again=again, first=one.state)
""")
    assert (said["status"], said["attached"], said["after"], said["again"]) == (4, True, None, "done")
    assert said["first"] == "failed"


def test_bulk(program: Any) -> None:
    """A thousand elements are submitted by one call, and their ends come without one question for each."""
    said = program("""
with Workflow(context(), raise_errors=True) as flow:
    array = flow.run_array(1000, "/bin/true")
    calls = dict(connection.library.calls)
    array.wait(600)
    say(states=Counter(info.state for info in array.infos()), calls=calls, after=connection.library.calls,
        usage=all(info.extensions.get("ru_maxrss") for info in array.infos()))
""")
    assert said["states"] == {"done": 1000}
    assert said["calls"]["runBulkJobs"] == 1
    assert "runJob" not in said["calls"]
    assert said["after"].get("jobStatus", 0) < 200
    assert said["usage"]


def test_values_arrive(program: Any) -> None:
    """What the library's own environment attribute would cut at "=" arrives, as do quotes and line breaks."""
    said = program("""
value = "a=b=c, \\"d\\" 'e' $HOME\\nf; \\\\g"
with Workflow(context(), raise_errors=True) as flow:
    job = flow.run("sh", "-c", 'printf "%s|%s" "$X" "$1"', "sh", value, job_environment={"X": value})
    say(output=job.wait(120).output(), expected=f"{value}|{value}")
""")
    assert said["output"] == said["expected"]


@pytest.mark.parametrize("status", [99, 100])
def test_reserved_status(program: Any, status: int) -> None:
    """Exit statuses that Grid Engine takes for wishes of its own are a command's own here."""
    said = program(
        """
with Workflow(context(), raise_errors=True) as flow:
    info = flow.run("sh", "-c", f"exit {rest[0]}").wait(120).info()
    say(status=info.exit_status, why=info.sub_state)
""",
        str(status),
    )
    assert (said["status"], said["why"]) == (status, "exited")


@pytest.mark.parametrize("leaving", ["", "sys.exit(0)", "os.kill(os.getpid(), 2)"])
def test_end_is_not_delayed(program: Any, leaving: str) -> None:
    """Neither waiting for ends nor looking at jobs holds up a program that leaves its jobs behind."""
    lines = f"""
import signal
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
flow = Workflow(context(detach=True), raise_errors=True)
job = flow.run("sleep", "3")
job.tasks[0].wait_started(120)
say()
{leaving}
"""
    said = program(lines)
    assert said["ended"] - said["time"] < 5
    assert "goes on" in said["errors"]


def test_coming_back(program: Any) -> None:
    """A later program finds what an earlier one left: ends and output by the records, without a store."""
    program("""
with Workflow(context(detach=True), raise_errors=True) as flow:
    flow.run("sh", "-c", "sleep 3; echo late; exit 5")
    flow.run_array(3, "sh", "-c", "echo $TASK_ID")
    say()
""")
    said = program("""
with Workflow(context(detach=True), raise_errors=True) as flow:
    single, array = sorted(flow.jobs(), key=lambda job: len(job.infos()))
    for job in single, array:
        job.wait(120)
    say(status=single.exit_status(), output=single.output(), outputs=sorted(array.outputs().values()))
    single.reap_all(), array.reap_all()
""")
    assert (said["status"], said["output"], said["outputs"]) == (5, "late", ["1", "2", "3"])


def test_killed_behind_its_back(program: Any) -> None:
    """A job that somebody else has removed is cancelled; of an earlier program's it is known that it was killed."""
    lines = """
with Workflow(context(detach=True), raise_errors=True) as flow:
    jobs = flow.jobs() or [flow.run("sleep", "600"), flow.run("sleep", "600")]
    jobs[0].tasks[0].wait_started(120)
    os.system(f"qdel {jobs[0].tasks[0].id} >/dev/null")
    info = jobs[0].wait(120).info()
    say(state=info.state, why=info.sub_state, signal=info.terminating_signal)
    jobs[0].reap_all()
"""
    for why in "cancelled", "signaled":
        said = program(lines)
        assert (said["state"], said["why"], said["signal"]) == ("failed", why, "SIGKILL")


def test_taken_over(program: Any) -> None:
    """With the contact of an earlier program the library tells of its jobs' ends, with their usage."""
    before = program("""
with Workflow(context(detach=True), raise_errors=True) as flow:
    flow.run("sleep", "4").tasks[0].wait_started(120)
    say(contact=DrmaaContext.attached_to())
""")
    said = program(
        """
with Workflow(context(detach=True, contact=rest[0]), raise_errors=True) as flow:
    (job,) = flow.jobs()
    info = job.wait(120).info()
    say(state=info.state, usage=dict(info.extensions), contact=DrmaaContext.attached_to())
    job.reap_all()
""",
        before["contact"],
    )
    assert (said["state"], said["contact"]) == ("done", before["contact"])
    assert said["usage"]["ru_maxrss"]


def test_waited_elsewhere(program: Any) -> None:
    """An end that another part of the program took from the library is told by the job's own record."""
    said = program("""
import drmaa
with Workflow(context(), raise_errors=True) as flow:
    job = flow.run("sh", "-c", "sleep 2; exit 6")
    try:
        drmaa.Session.wait(job.tasks[0].id, 60)
    except drmaa.errors.DrmaaException as error:
        print(error)  # wfl was told first, or both have waited
    say(status=job.wait(120).exit_status())
""")
    assert said["status"] == 6


@pytest.mark.skipif(not PLAIN_LIBRARY.exists(), reason="the library as Debian has it is not here")
def test_import_failure(program: Any) -> None:
    """The library as Debian has it cannot be loaded late: the error says why and what to do, and the cure works."""
    lines = """
flow = Workflow(context())
say(error=str(flow.error or ""))
flow.close()
"""
    said = program(lines, DRMAA_LIBRARY_PATH=str(PLAIN_LIBRARY))
    assert "static TLS" in said["error"]
    assert "\n" not in said["error"]
    cure = {"GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=16384"}
    assert "=".join(next(iter(cure.items()))) in said["error"]
    assert not program(lines, DRMAA_LIBRARY_PATH=str(PLAIN_LIBRARY), **cure)["error"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SGE_ROOT": "/nonexistent"}, "settings.sh"),
        ({"DRMAA_LIBRARY_PATH": "/nonexistent"}, "DRMAA_LIBRARY_PATH"),
        ({"SGE_QMASTER_PORT": "1"}, "drmaa: "),
    ],
)
def test_no_scheduler(program: Any, variables: dict[str, str], words: str) -> None:
    """What is missing is said in one line."""
    said = program('say(error=str(Workflow(context()).error or ""))', **variables)
    assert words in said["error"]
    assert "\n" not in said["error"]


def test_fork(program: Any) -> None:
    """A forked child is told so at once, where the library would hang; the parent goes on."""
    said = program("""
with Workflow(context(), raise_errors=True) as flow:
    job = flow.run("true")
    reader, writer = os.pipe()
    if not os.fork():
        try:
            flow.run("true")
        except WflError as error:
            words = str(error)
        os.write(writer, (words + str(Workflow(context()).error)).encode())
        os._exit(0)
    os.wait()
    say(child=os.read(reader, 5000).decode(), parent=job.wait(120).state)
""")
    assert "forked" in said["child"]
    assert "spawn" in said["child"]
    assert said["parent"] == "done"

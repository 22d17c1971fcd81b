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

from tests.clusters import reached
from tests.faults.machine import PATIENCE

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
    return {**os.environ, **reached("sge")}


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


def test_ten_thousand(program: Any) -> None:
    """Ten thousand elements, held, are one call; no thread is there for each; one word ends them, and all are told."""
    said = program("""
import threading
with Workflow(context(), raise_errors=True) as flow:
    before = threading.active_count()
    array = flow.run_array(10_000, "/bin/true", submit_as_hold=True)
    one = array.tasks[0].tasks[5]
    one.release()
    one.wait_terminated(120)
    during = threading.active_count() - before
    array.kill().synchronize(600)
    say(states=Counter(info.state for info in array.infos()), why=Counter(info.sub_state for info in array.infos()),
        threads=during, calls=connection.library.calls)
""")
    assert said["states"] == {"done": 1, "failed": 9999}
    assert said["why"]["cancelled"] == 9999
    assert said["threads"] < 10
    assert said["calls"]["runBulkJobs"] == 1
    assert said["calls"]["control"] == 2
    assert said["calls"].get("jobStatus", 0) < 1000


def test_array_that_is_too_long(program: Any) -> None:
    """The words with which Grid Engine refuses an array tell its limit, and nothing was submitted."""
    said = program("""
from wfl.contexts.drmaa import system
with Workflow(context(), raise_errors=True):
    limit = int(os.popen("qconf -sconf | sed -n 's/^max_aj_tasks *//p'").read())
    attributes = {"remoteCommand": b"/bin/true", "nativeSpecification": b"-h"}
    try:
        connection.library.run_bulk(attributes, range(1, limit + 2))
    except WflError as error:
        say(limit=limit, most=system.most(str(error)))
""")
    assert said["most"] == said["limit"]


def test_array_in_parts(program: Any) -> None:
    """Where a site allows few elements in an array there are several, and each element has its own index."""
    said = program("""
from wfl.contexts.drmaa.library import Library
from wfl.errors import DeniedByDrmsError
run = Library.run_bulk
def run_bulk(self, attributes, numbers):
    if max(numbers) > 3:
        raise DeniedByDrmsError("drmaa: job rejected: you tried to submit a job with more than 3 tasks")
    return run(self, attributes, numbers)
Library.run_bulk = run_bulk
with Workflow(context(), raise_errors=True) as flow:
    array = flow.run_array(range(10, 24, 2), "sh", "-c", "echo $TASK_ID").wait(120)
    say(outputs=list(array.outputs().values()), arrays=len({id.partition(".")[0] for id in array.outputs()}))
""")
    assert said["outputs"] == ["10", "12", "14", "16", "18", "20", "22"]
    assert said["arrays"] == 3


def test_job_category(program: Any, site: dict[str, str], tmp_path: Path) -> None:
    """A job category is what the site says that it is (qtask(5)); one that it has not is refused by name."""
    real, root = Path(site["SGE_ROOT"]), tmp_path / "root"
    for directory in ("", site["SGE_CELL"], f"{site['SGE_CELL']}/common"):
        (root / directory).mkdir(exist_ok=True)
        for path in (real / directory).iterdir():
            if path.name not in (site["SGE_CELL"], "common"):
                (root / directory / path.name).symlink_to(path)
    (root / site["SGE_CELL"] / "common" / "qtask").write_text("long -ac how=long\n")
    said = program(
        """
with Workflow(context()) as flow:
    task = flow.run("sleep", "600", job_category="long").tasks[0]
    shown = os.popen(f"qstat -j {task.id}").read()
    say(shown=shown, error=str(flow.run("true", job_category="short").last_error))
""",
        SGE_ROOT=str(root),
    )
    assert "how=long" in said["shown"]
    assert "Unknown job category (asked for: short" in said["error"]


def test_native(program: Any) -> None:
    """Native options are passed on; what Grid Engine says of wrong ones is the error, with the options."""
    said = program("""
with Workflow(context()) as flow:
    task = flow.run("sleep", "600", extensions={"native": "-ac a=b -l h_cpu=77"}).tasks[0]
    shown = os.popen(f"qstat -j {task.id}").read()
    say(shown=shown, error=str(flow.run("true", extensions={"native": "-l nosuch=1"}).last_error))
""")
    assert "a=b" in said["shown"]
    assert "h_cpu=77" in said["shown"]
    assert 'unknown resource "nosuch" (asked for: -r n -l nosuch=1)' in said["error"]


def test_limits_of_time(program: Any) -> None:
    """What DRMAA's own attributes cannot say here: a limit is Grid Engine's h_rt; a deadline is kept by the program."""
    said = program("""
from datetime import UTC, datetime, timedelta
with Workflow(context(), raise_errors=True) as flow:
    limited = flow.run("sleep", "600", resource_limits={"WALLCLOCK_TIME": 3600})
    shown = os.popen(f"qstat -j {limited.tasks[0].id}").read()
    info = flow.run("sleep", "600", deadline_time=datetime.now(UTC) + timedelta(seconds=4)).wait(120).info()
    say(shown=shown, why=info.sub_state)
""")
    assert "h_rt=3600" in said["shown"]
    assert said["why"] == "timeout"


def test_limit_without_the_program(program: Any) -> None:
    """The limit of time is kept when the program is gone, and a later one is told that this was the reason."""
    program("""
flow = Workflow(context(detach=True), raise_errors=True)
flow.run("sleep", "600", resource_limits={"WALLCLOCK_TIME": 2}).tasks[0].wait_started(120)
say()
os._exit(0)
""")
    said = program("""
with Workflow(context(detach=True), raise_errors=True) as flow:
    (job,) = flow.jobs()
    say(why=job.wait(200).info().sub_state)
    job.reap_all()
""")
    assert said["why"] == "timeout"


def test_paths(program: Any, tmp_path: Path) -> None:
    """Relative paths are below the program's directory, output that has no path is kept in the context's."""
    said = program(
        """
os.chdir(rest[0])
with Workflow(context(), raise_errors=True) as flow:
    given = flow.run("sh", "-c", "pwd; echo oops >&2", output_path="out", error_path="err").wait(120)
    kept = flow.run("echo", "kept").wait(120)
    here = [os.path.join(path, name) for path, _, names in os.walk(directory) for name in names]
    say(output=given.output(), out=open("out").read(), err=open("err").read(), kept=kept.output(),
        inside=[name for name in here if "/out/" in name and open(name).read() == "kept\\n"])
""",
        str(tmp_path),
    )
    assert said["output"] == str(tmp_path)
    assert (said["out"], said["err"]) == (f"{tmp_path}\n", "oops\n")
    assert said["kept"] == "kept"
    assert len(said["inside"]) == 1


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


@pytest.mark.parametrize("detach", [True, False])
def test_end_is_not_delayed_by_many(program: Any, detach: bool) -> None:  # noqa: FBT001
    """Nor do a thousand jobs that wait, whether they go on or are ended."""
    said = program(f"""
flow = Workflow(context(detach={detach}), raise_errors=True)
array = flow.run_array(1000, "sleep", "600", submit_as_hold=True)
say()
""")
    assert said["ended"] - said["time"] < 5
    if detach:
        assert "1000 tasks go on" in said["errors"]
        said = program("""
with Workflow(context(detach=False), raise_errors=True) as flow:
    flow.kill_all()
    say(states=Counter(info.state for job in flow.jobs() for info in job.synchronize(600).infos()))
""")
        assert said["states"] == {"failed": 1000}


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


def test_no_library_named(program: Any) -> None:
    """Where nothing says which library to use, and none is found, the error says how to name it."""
    said = program("""
import ctypes.util
ctypes.util.find_library = lambda name: None
del os.environ["DRMAA_LIBRARY_PATH"]
say(error=str(Workflow(context()).error))
""")
    assert "set DRMAA_LIBRARY_PATH to the scheduler's libdrmaa.so" in said["error"]
    assert "\n" not in said["error"]


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


def test_forked_child_leaves(program: Any) -> None:
    """A child that ends as programs do leaves the parent's session and jobs alone."""
    said = program("""
with Workflow(context(), raise_errors=True) as flow:
    job = flow.run("sh", "-c", "sleep 4; exit 5")
    child = os.fork()
    if not child:
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    say(child=status, attached=DrmaaContext.attached_to() is not None, status=job.wait(120).exit_status())
""")
    assert (said["child"], said["attached"], said["status"]) == (0, True, 5)

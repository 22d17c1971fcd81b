"""Limits of the machine and of the user: descriptors, processes. Tasks wait for their turn instead of failing."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.faults.machine import Program

WANTED = 20_000

MANY = """
import os, resource, sys, threading
from wfl import Workflow
from wfl.drmaa2 import JobState
count, hold = int(sys.argv[1]), sys.argv[2]
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
with Workflow() as flow:
    job = flow.run_array(count, "sh", "-c", 'read line <"$0"; exit $((TASK_ID % 2))', hold, output_path="/dev/null")
    tasks = job.tasks[0].tasks
    for task in tasks:
        task.wait_started(120)
    assert all(task.state is JobState.RUNNING for task in tasks)
    print("running", len(tasks), len(os.listdir("/proc/self/fd")), threading.active_count(), flush=True)
    fd = os.open(hold, os.O_RDWR)
    os.write(fd, b"\\n" * count)  # a shell reads no more than its line
    for task in tasks:
        task.wait_terminated(120)
    statuses = [info.exit_status for info in job.infos()]
    assert statuses == [number % 2 for number in range(1, count + 1)], job.errors
    assert job.failed()
print("over", flush=True)
"""


def threads_of(pid: str) -> int:
    """How many threads a process has; 0 if it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def room() -> int:
    """How many processes more this machine and user may have, with some to spare."""
    limits = [int(Path("/proc/sys/kernel/pid_max").read_text()), int(Path("/proc/sys/kernel/threads-max").read_text())]
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    limits += [soft] if soft != resource.RLIM_INFINITY and os.geteuid() != 0 else []
    for place in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
        if Path(place).exists() and (text := Path(place).read_text().strip()).isdigit():
            limits.append(int(text))
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (512 * 1024)  # of a sleeping shell, at most
    threads = sum(map(threads_of, filter(str.isdigit, os.listdir("/proc"))))
    return min(min(limits) - threads - 1000, memory)


@pytest.mark.timeout(400)
def test_a_large_array_runs_within_1024_descriptors(tmp_path: Path) -> None:
    """20,000 elements in flight (fewer here: WFL_FAULTS=100 asks for all); none fails, few threads and files."""
    wanted = WANTED if int(os.environ.get("WFL_FAULTS", "20")) >= 100 else 2_000
    count = min(wanted, room())
    print("in flight:", count)  # noqa: T201 - tells what this machine had room for
    if count < 100:
        pytest.skip(f"the limits of this machine leave room for {count} processes")
    os.mkfifo(tmp_path / "hold")
    with Program(MANY, tmp_path, str(count), str(tmp_path / "hold")) as program:
        running, descriptors, threads = map(int, program.expect("running").split())
        program.expect("over")
        assert running == count
        assert descriptors < 40
        assert threads < 12


FEW = """
import resource, sys, time
from wfl import Workflow
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
with Workflow() as flow:
    job = flow.run_array(60, "sleep", "0.2", output_path="/dev/null", error_path="/dev/null")
    limited = flow.run_array(10, "sleep", "0.01", resource_limits={"OPEN_FILES": 50})
    staged = flow.run("cat", "copy", stage_in_files={"copy": "/etc/hostname"}, working_directory=sys.argv[2])
    begin = time.monotonic()
    for one in (job, limited, staged):
        one.synchronize(50)
    print("took", time.monotonic() - begin, flush=True)
    print("states", sorted({(info.state.name, info.annotation) for info in [*job.infos(), *limited.infos(),
                                                                            *staged.infos()]}, key=str), flush=True)
"""


def test_tasks_wait_where_the_user_may_have_no_more_processes(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """RLIMIT_NPROC is reached, by one keeper or by both: tasks wait for their turn, and all end well."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv: becomes a user without processes")
    rights = "-all,+dac_override,+dac_read_search"  # so that it can read this Python, wherever it is
    sets = [f"--{name}={rights}" for name in ("inh-caps", "ambient-caps", "bounding-set")]
    user = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", *sets)
    if subprocess.run([*user, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("setpriv cannot change user and rights here")
    place = tempfile.mkdtemp()  # open to all from the root on, other than tmp_path
    request.addfinalizer(lambda: shutil.rmtree(place))
    os.chown(place, 54321, 54321)
    for limit in (14, 25):
        with Program(FEW, tmp_path, str(limit), place, before=user) as program:
            assert float(program.expect("took")) > 60 * 0.2 / limit
            assert program.expect("states") == "[('DONE', None)]", program.log()
            program.finish()

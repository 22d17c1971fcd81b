"""What a task gets from the program: nothing but its environment, umask and working directory."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.faults.machine import Program
from wfl import Task, Workflow
from wfl.contexts.process import ProcessContext

if TYPE_CHECKING:
    from pathlib import Path

LOOK = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "descriptors": sorted(os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
                          if os.path.exists(f"/proc/self/fd/{name}")),
    "umask": status["Umask"].strip(), "session": os.getsid(0) == os.getpid(), "cwd": os.getcwd(),
}))
"""

HOSTILE = """
import json, os, signal, socket, subprocess, sys, tempfile, threading
look = sys.argv[1]
keep = [open("/etc/passwd"), socket.socket(), socket.socketpair(), os.pipe(), tempfile.TemporaryFile()]
keep.append(os.open("/etc/group", os.O_RDONLY)); os.set_inheritable(keep[-1], True)
shared = socket.create_server(("127.0.0.1", 0)); shared.set_inheritable(True)
for fd in (77, 900):
    os.dup2(keep[-1], fd, inheritable=True)
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.umask(0o027)
from wfl import Workflow
def one(**fields):
    flow = Workflow()
    job = flow.run(sys.executable, "-I", "-S", "-c", look, **fields)
    assert job.wait(30).success(), (job.infos(), job.error_output())
    signals = dict(line.split(":") for line in flow.run("cat", "/proc/self/status").output().splitlines())
    signals = {name: int(signals[name], 16) for name in ("SigBlk", "SigIgn", "SigPnd", "SigCgt")}
    print("seen", json.dumps({**json.loads(job.output()), **signals}), flush=True)
    child = flow.run("sleep", "600")
    child.tasks[0].wait_started(30)
    child.kill().wait(30)
    assert child.info().terminating_signal == "SIGKILL", child.infos()
    flow.close()
one()
one(resource_limits={"OPEN_FILES": 50})
thread = threading.Thread(target=one)
thread.start()
thread.join()
"""


@pytest.fixture
def seen(tmp_path: Path) -> list[dict[str, object]]:
    """What tasks of a program in an unusual state see: started plainly, with limits, from another thread."""
    with Program(HOSTILE, tmp_path, LOOK) as program:
        found = [json.loads(program.expect("seen")) for _ in range(3)]
        program.finish()
    return found


def test_no_descriptor_leaks_into_tasks(seen: list[dict[str, object]]) -> None:
    """Open files, sockets and pipes of the program, inheritable ones as well, are not seen: only input and output."""
    for task in seen:
        descriptors = task["descriptors"]
        assert isinstance(descriptors, list)
        assert descriptors[0] == "/dev/null"
        assert len(descriptors) == 3
        assert all("/wfl-" in path for path in descriptors[1:])


def test_signals_are_as_in_any_new_process(seen: list[dict[str, object]]) -> None:
    """Nothing is blocked, ignored or pending, whatever the program ignores or blocks; the task is a session leader."""
    c_library = 0b11 << 31  # signals 32 and 33 are its own; posix_spawn(3) of glibc ignores them in the child
    for task in seen:
        assert task["session"] is True
        assert all(int(str(task[name])) & ~c_library == 0 for name in ("SigBlk", "SigIgn", "SigPnd", "SigCgt")), task


def test_umask_and_directory_are_the_programs(seen: list[dict[str, object]], tmp_path: Path) -> None:
    """A task creates files with the rights and at the place that the program would."""
    for task in seen:
        assert (task["umask"], task["cwd"]) == ("0027", str(tmp_path))


def test_an_environment_from_nothing_is_exact() -> None:
    """Without inheritance a task sees what its template says, its ids, and wfl's mark; nothing else."""
    with Workflow(ProcessContext(inherit_environment=False)) as flow:
        job = flow.run("/usr/bin/env", "-0", job_environment={"A": "1", "EMPTY": "", "LINES": "x\ny=z"})
        variables = dict(entry.split("=", 1) for entry in job.output().rstrip("\0").split("\0"))
        assert variables.pop("WFL_KEY") == job.job_id
        assert variables == {"A": "1", "EMPTY": "", "LINES": "x\ny=z", "JOB_ID": job.job_id}
        array = flow.run_array(2, "/usr/bin/env", "-0")
        for number, text in enumerate(array.outputs().values(), start=1):
            names = dict(entry.split("=", 1) for entry in text.rstrip("\0").split("\0"))
            assert names.keys() == {"JOB_ID", "TASK_ID", "WFL_KEY"}
            assert (names["TASK_ID"], names["JOB_ID"]) == (str(number), array.job_id)


def test_the_environment_is_that_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that the program sets, changes or removes between two tasks is seen so by each."""
    with Workflow() as flow:
        seen = []
        for value in ("one", "two", None, "ünï \udcff"):
            if value is None:
                monkeypatch.delenv("WFL_TEST_VALUE")
            else:
                monkeypatch.setenv("WFL_TEST_VALUE", value)
            task = flow.run("sh", "-c", 'printf %s "${WFL_TEST_VALUE-unset}"').tasks[0]
            assert isinstance(task, Task)
            seen.append(task.output(encoding=None))
    assert seen == [b"one", b"two", b"unset", os.fsencode("ünï \udcff")]

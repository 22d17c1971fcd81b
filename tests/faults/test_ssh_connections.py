"""Connections to a host that are cut, stalled or slow, at any moment: no job is lost, doubled, or told of wrongly."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections import Counter
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults import hosts
from tests.faults.hosts import BOTH, FAULTS, WIRE, Host, Wire
from tests.faults.machine import PATIENCE, wait_until
from wfl import JobState, Workflow, shell
from wfl.errors import DrmCommunicationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from wfl import Job, Task

SILENCE = 1.0
"""Seconds between two signs of life in these tests."""
ANSWER = 5.0
"""Seconds that a host may take to answer one; then a connection is given up."""
SOON = 15.0
"""Seconds after which all must be known again, here where nothing stays broken: noticing that, and connecting."""
LEFT = 25.0
"""Seconds after which nothing of a session is left on the host: sshd gives up a silent connection after fifteen."""
SIZE = 6_000_000
"""Bytes of a file: more than all buffers on its way hold."""


host = hosts.host


@pytest.fixture
def wire(host: Host) -> Iterator[Wire]:
    """The way to it; afterwards nothing of any job is left there."""
    with Wire(host.port) as found:
        yield found
    try:
        host.is_empty(LEFT)
    finally:
        shutil.rmtree(host.jobs, ignore_errors=True)  # the next test begins with nothing


@pytest.fixture(params=[*FAULTS])
def fault(request: pytest.FixtureRequest, wire: Wire) -> Callable[[], None]:
    """What happens to the connection."""
    return lambda: FAULTS[request.param](wire)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent connection is noticed soon."""
    from wfl.contexts.ssh import backend

    monkeypatch.setattr(backend, "BEATS", SILENCE)


@pytest.fixture
def flow(host: Host, wire: Wire) -> Iterator[Workflow]:
    """A workflow over the wire."""
    with Workflow(host.context(port=wire.port, timeout=ANSWER), raise_errors=True) as found:
        yield found


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    """What no compression makes smaller, in the file "in"."""
    found = os.urandom(SIZE)
    (tmp_path / "in").write_bytes(found)
    return found


def tasks_of(job: Job) -> list[Task]:
    """An array's elements."""
    return list(job.tasks[0].tasks)  # type: ignore[union-attr]


def digest(data: bytes) -> str:
    """What sha256sum prints."""
    return hashlib.sha256(data).hexdigest()


def patient(read: Callable[[], bytes | str]) -> bytes | str:
    """What is read in the end; that the connection is lost may be told meanwhile."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return read()
        except DrmCommunicationError:
            assert time.monotonic() < end
            time.sleep(0.2)


# --- submission -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 60_000])
def test_submitting(size: int, fault: Callable[[], None], wire: Wire, flow: Workflow, tmp_path: Path) -> None:
    """Whatever arrives of the orders: each job has run once, or it FAILED, is said to have never begun, and did not."""
    assert flow.run("true").wait(PATIENCE).success()
    ran = tmp_path / "ran"
    line = f"echo $TASK_ID >>{ran}"
    wire.after("there", size, fault)
    begin = time.monotonic()
    job = flow.run_array(12, shell(line, job_environment={"LONG": "x" * 60_000}))
    with suppress(Exception):
        job.synchronize(timeout=PATIENCE)
    assert wire.sprung.is_set()
    counts = Counter(map(int, ran.read_text().split() if ran.exists() else ()))
    for task in tasks_of(job):
        assert task.index is not None
        info = task.info()
        if info.state is JobState.DONE:
            assert counts[task.index] == 1
        else:
            assert (info.state, info.sub_state) == (JobState.FAILED, "launch_failure"), info
            assert "never started" in (info.annotation or "")
            assert counts[task.index] == 0
    assert time.monotonic() - begin < SOON
    assert patient(lambda: flow.run("echo", "on").wait(PATIENCE).output()) == "on"


def test_answers_that_never_come(wire: Wire, flow: Workflow) -> None:
    """Orders arrive, and nothing comes back: the jobs are found by their directories, and none is doubled or failed."""
    assert flow.run("true").wait(PATIENCE).success()
    wire.stall("back")
    job = flow.run_array(10, shell("sleep 0.$TASK_ID; exit $TASK_ID"))
    job.synchronize(timeout=SOON)
    assert [task.info().exit_status for task in tasks_of(job)] == list(range(1, 11))
    assert wire.made == 2


# --- waiting ----------------------------------------------------------------------------------------------


def test_waiting(fault: Callable[[], None], wire: Wire, flow: Workflow) -> None:
    """Some run longer than the fault lasts, some end meanwhile: all ends are known soon, with their status and time."""
    job = flow.run_array(12, shell("sleep $((TASK_ID % 4 * 3)).2; [ $TASK_ID -lt 9 ] || kill -9 $$; exit $TASK_ID"))
    tasks = tasks_of(job)
    for task in tasks:
        task.wait_started(PATIENCE)
    begin = time.monotonic()
    fault()
    job.synchronize(timeout=SOON)
    assert time.monotonic() - begin < SOON
    for task in tasks:
        assert task.index is not None
        info = task.info()
        expected = (task.index, None) if task.index < 9 else (137, "SIGKILL")
        assert (info.exit_status, info.terminating_signal) == expected
        assert info.wallclock_time is not None
        assert -0.05 < info.wallclock_time.total_seconds() - (task.index % 4 * 3 + 0.2) < 2.0
        assert info.finish_time is not None
        assert info.dispatch_time is not None
        assert abs((info.finish_time - info.dispatch_time - info.wallclock_time).total_seconds()) < 0.5
    assert wire.made == 2


def test_waiting_again_and_again(wire: Wire, flow: Workflow, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that is cut whenever it was made, six times: the jobs end as they would."""
    job = flow.run_array(10, shell("sleep 3; exit $TASK_ID"))
    for task in tasks_of(job):
        task.wait_started(PATIENCE)
    for number in range(6):
        wait_until("it is connected again", lambda n=number: caplog.text.count("connected again") >= n, SOON)  # type: ignore[misc]
        wire.cut()
    job.synchronize(timeout=SOON)
    assert [task.info().exit_status for task in tasks_of(job)] == list(range(1, 11))
    assert wire.made > 6


def test_one_way_is_not_enough(wire: Wire, flow: Workflow) -> None:
    """The host hears nothing, and is heard all the time: that is noticed, before it takes the program for dead."""
    job = flow.run_array(40, shell("sleep $((TASK_ID / 5)).$((TASK_ID % 5 * 2)); exit 0"))
    for task in tasks_of(job):
        task.wait_started(PATIENCE)
    wire.stall("there")
    wait_until("it is connected again", lambda: wire.made == 2, SOON / 2)
    job.synchronize(timeout=PATIENCE)
    assert job.success(), [task.info() for task in tasks_of(job)]


def test_control_while_it_is_stalled(wire: Wire, flow: Workflow) -> None:
    """To suspend, resume or kill is done or says that nobody knows; soon it is known where the job is, in truth."""
    job = flow.run("sleep", "600")
    task: Any = job.tasks[0]
    task.wait_started(PATIENCE)
    for action in ("suspend", "resume", "terminate"):
        wire.stall("back")  # the order arrives
        begin = time.monotonic()
        with suppress(DrmCommunicationError):
            getattr(task, action)()
        assert time.monotonic() - begin < SOON
        if action != "terminate":
            state = JobState.SUSPENDED if action == "suspend" else JobState.RUNNING
            wait_until("it is known where it is", lambda s=state: task.state is s, SOON)  # type: ignore[misc]
    task.wait_terminated(SOON)
    info = task.info()
    assert (info.state, info.terminating_signal) == (JobState.FAILED, "SIGKILL")


# --- files ------------------------------------------------------------------------------------------------


def test_staging_in(fault: Callable[[], None], wire: Wire, flow: Workflow, data: bytes, tmp_path: Path) -> None:
    """A copy goes on where it was: the command sees the whole file and the whole directory, once."""
    tree = tmp_path / "tree"
    for number in range(20):
        (tree / f"d{number % 4}").mkdir(parents=True, exist_ok=True)
        (tree / f"d{number % 4}" / f"f{number}").write_bytes(data[number * 1000 : number * 2000])
    there = tmp_path / "there"
    staged = {f"{there}/in": str(tmp_path / "in"), f"{there}/tree": str(tree)}
    assert flow.run("true").wait(PATIENCE).success()
    wire.after("there", SIZE // 2, fault)
    line = f"cd {there} && sha256sum <in | head -c 64; find tree -type f | wc -l; ls -A | wc -l"
    job = flow.run(shell(line, stage_in_files=staged))
    job.wait(PATIENCE)
    assert wire.sprung.is_set()
    assert job.success(), job.infos()
    assert patient(job.output) == f"{digest(data)}20\n2"
    for number in range(20):
        one = f"d{number % 4}/f{number}"
        assert (there / "tree" / one).read_bytes() == (tree / one).read_bytes()


def test_staging_out(fault: Callable[[], None], wire: Wire, flow: Workflow, data: bytes, tmp_path: Path) -> None:
    """What was fetched is whole; the end is told when it is there, as the job's own."""
    target, kept = tmp_path / "out", tmp_path / "kept"
    gate, there = tmp_path / "gate", tmp_path / "there"
    line = f"until [ -e {gate} ]; do sleep 0.05; done; cp {tmp_path}/in {there}; cat {there}"
    job = flow.run(shell(line, stage_out_files={str(target): str(there)}, output_path=str(kept)))
    job.tasks[0].wait_started(PATIENCE)
    wire.after("back", SIZE // 2, fault)
    gate.touch()
    job.wait(PATIENCE)
    assert wire.sprung.is_set()
    assert job.success(), job.infos()
    assert digest(target.read_bytes()) == digest(kept.read_bytes()) == digest(data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gate", "in", "kept", "out", "there"]


# --- output -----------------------------------------------------------------------------------------------


def test_reading_output(fault: Callable[[], None], wire: Wire, flow: Workflow, data: bytes, tmp_path: Path) -> None:
    """Output is whole in one call: its reading goes on over another connection."""
    job = flow.run("cat", str(tmp_path / "in")).wait(PATIENCE)
    task: Any = job.tasks[0]
    wire.after("back", SIZE // 2, fault)
    assert digest(task.output(encoding=None)) == digest(data)
    assert wire.sprung.is_set()


def test_following_output(fault: Callable[[], None], wire: Wire, flow: Workflow) -> None:
    """Lines that are followed come whole and once, while the connection is lost twice."""
    line = "n=0; while [ $n -lt 300 ]; do n=$((n+1)); echo line $n; sleep 0.01; done"
    job = flow.run(shell(line))
    lines, came = job.stream(), []
    for _ in range(2):
        came += list(islice(lines, 50))
        fault()
    came += lines
    assert came == [f"line {n}" for n in range(1, 301)]
    assert wire.made > 1


# --- far away ---------------------------------------------------------------------------------------------


def test_slow(wire: Wire, host: Host, data: bytes, tmp_path: Path) -> None:
    """With 200 ms in each direction all is as on a near host, and an end is known with one such delay."""
    wire.slow(0.2)
    small = data[:2_000_000]
    (tmp_path / "in").write_bytes(small)
    there, out = tmp_path / "there", tmp_path / "out"
    with Workflow(host.context(port=wire.port), raise_errors=True) as flow:
        begin = time.monotonic()
        job = flow.run_array(100, shell("exit $((TASK_ID % 5))"))
        job.synchronize(timeout=PATIENCE)
        assert [task.info().exit_status for task in tasks_of(job)] == [n % 5 for n in range(1, 101)]
        assert time.monotonic() - begin < SOON, "not a way to and fro for each job"
        begin = time.monotonic()
        fields: dict[str, Any] = {
            "stage_in_files": {str(there): str(tmp_path / "in")}, "stage_out_files": {str(out): f"{there}2"},
        }  # fmt: skip
        staged = flow.run(shell(f"cat {there}; cp {there} {there}2", **fields)).wait(PATIENCE)
        assert staged.success(), staged.infos()
        task: Any = staged.tasks[0]
        assert digest(task.output(encoding=None)) == digest(out.read_bytes()) == digest(small)
        assert time.monotonic() - begin < 2 * SOON, "not a way to and fro for each piece"
        sleeper = flow.run(shell(f"sleep 600 & echo $!; echo >{tmp_path}/begun; wait"))
        wait_until("it has begun", (tmp_path / "begun").exists)
        sleeper.suspend()
        assert sleeper.state is JobState.SUSPENDED
        sleeper.resume().kill().wait(PATIENCE)
        noted = tmp_path / "noted"
        short = flow.run(shell(f"until [ -e {noted}-go ]; do sleep 0.01; done; date +%s.%N >{noted}"))
        short.tasks[0].wait_started(PATIENCE)
        (tmp_path / "noted-go").touch()
        short.wait(PATIENCE)
        assert 0.2 <= time.time() - float(noted.read_text()) < 0.2 + 0.4 + 1.0
    assert wire.made == 1


def test_nothing_of_the_program_is_left(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """After connections that were cut, stalled and refused there are as many threads and descriptors as before."""

    def threads() -> list[str]:
        return sorted(thread.name for thread in threading.enumerate() if thread.name != WIRE)

    def used() -> int:
        count = 0
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                count += os.readlink(f"/proc/self/fd/{name}").startswith(("socket:", "pipe:"))
        return count

    def session() -> None:
        with Wire(host.port) as wire, Workflow(host.context(port=wire.port), raise_errors=True) as flow:
            job = flow.run_array(5, shell("sleep 3.$TASK_ID"))
            for task in tasks_of(job):
                task.wait_started(PATIENCE)
            for fault in (Wire.cut, lambda wire: wire.stall(*BOTH)):
                before = caplog.text.count("connected again")
                fault(wire)
                wait_until("it is connected again", lambda n=before: caplog.text.count("connected again") > n)  # type: ignore[misc]
            job.synchronize(timeout=PATIENCE)
            assert job.success()

    before = threads()
    session()
    wait_until("all threads have ended", lambda: threads() <= before)
    sockets = used()
    session()
    wait_until("all threads have ended", lambda: threads() <= before)
    wait_until("no more sockets are open", lambda: used() <= sockets)
    host.is_empty(LEFT)

"""Hosts over SSH when somebody dies: the program, its helper, their whole machine, or the host's sshd."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults import hosts
from tests.faults.hosts import BOTH, Host, Wire, alive
from tests.faults.machine import CLEAN, PATIENCE, Program, children_of, command_of, marked, slowness, wait_until
from wfl import JobState, Workflow, shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wfl import Task

JOBS = 8
LEASE = 4.0
"""Seconds, in tests in which it runs out."""
STEP = 3.0
"""Seconds that a host may take longer than the lease: it looks now and then, and ends jobs then."""
BEGIN = """
import json, os, sys, time
from wfl import Workflow, shell
from wfl.contexts.ssh import SshContext
given, note, log, *rest = json.loads(sys.argv[1])
def context(**more):
    return SshContext(**{"hosts": "there", **given, **more})
def some(flow, count):
    line = f"{note} & setsid {note} & exec {note}"
    job = flow.run_array(count, shell(line, job_environment={"LOG": log}))
    for task in job.tasks[0].tasks:
        task.wait_started(60)
    while not os.path.exists(log) or len(open(log).readlines()) < 3 * count:
        time.sleep(0.01)
    print("running", flush=True)
    return job
"""
SOME = "job = some(Workflow(context(), raise_errors=True), int(rest[0]))\njob.synchronize()\n"


host = hosts.host


@pytest.fixture
def wire(host: Host) -> Iterator[Wire]:
    """The way to it."""
    with Wire(host.port) as found:
        yield found


class Runs:
    """Programs with jobs that note themselves; afterwards nothing of them is left."""

    def __init__(self, host: Host, wire: Wire, place: Path) -> None:
        self._host, self._place = host, place
        self.log, self._note = place / "log", place / "note"
        self.settings: dict[str, Any] = {
            "config": str(host.config(port=wire.port)), "directory": str(host.jobs), "session_name": f"s{os.getpid()}",
            "timeout": 20.0,
        }  # fmt: skip
        self._note.write_text(
            '#!/bin/sh\nread -r s </proc/$$/stat; set -- x $s; echo "$$ ${23}" >>"$LOG"; exec sleep 600\n'
        )
        self._note.chmod(0o755)
        self._programs: list[Program] = []

    def start(self, source: str, *rest: object, **changes: Any) -> Program:
        """Start one."""
        told = json.dumps([{**self.settings, **changes}, str(self._note), str(self.log), *map(str, rest)])
        self._programs.append(Program(BEGIN + source, self._place, told))
        return self._programs[-1]

    def context(self, **changes: Any) -> Any:
        """The same context, here."""
        return self._host.context(**{**self.settings, **changes})

    def alive(self) -> list[int]:
        """The processes of their jobs."""
        return alive(self.log)

    def are_over(self, program: Program, patience: float = PATIENCE) -> float:
        """Wait until none is there, and return for how many seconds the program has been dead."""
        wait_until("no job is left", lambda: not self.alive(), patience)
        return time.monotonic() - program.struck

    def close(self) -> None:
        """End all of it."""
        for program in self._programs:
            program.__exit__(None, None, None)
        for pid in self.alive():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def runs(host: Host, wire: Wire, tmp_path: Path) -> Iterator[Runs]:
    """Programs on the host, over the wire."""
    found = Runs(host, wire, tmp_path)
    try:
        yield found
    finally:
        found.close()


def helpers_of(program: Program) -> list[int]:
    """Its helper processes."""
    return [pid for pid in children_of(program.pid) if b"vigil.main" in command_of(pid)]


def vanish(program: Program, wire: Wire) -> None:
    """Its whole machine goes: nothing comes from there any more, not even an end, and nobody is there."""
    wire.swallow(*BOTH)
    helpers = helpers_of(program)
    os.kill(program.pid, signal.SIGSTOP)  # else it would see to another helper
    for pid in helpers:
        os.kill(pid, signal.SIGKILL)
    program.kill()


def come_back(runs: Runs, wire: Wire, host: Host) -> None:
    """It is there again, and removes what is left on the host."""
    from wfl.contexts.ssh import clean

    wire.cut()
    wire.mend()
    assert clean(runs.settings["session_name"], runs.context()) == 0
    host.is_empty(20)


def tasks_of(flow: Workflow) -> list[Task]:
    """The elements of its only array."""
    (job,) = flow.jobs()
    return list(job.tasks[0].tasks)  # type: ignore[union-attr]


# --- the program dies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_job_outlives_its_program(death: signal.Signals, runs: Runs, host: Host) -> None:
    """Two seconds later none is left, nor what left its group; soon also no helper, and no directory on the host."""
    program = runs.start(SOME, JOBS)
    program.expect("running")
    assert len(runs.alive()) == 3 * JOBS
    before = slowness()
    program.kill(death)
    took = runs.are_over(program)
    if took >= CLEAN:
        limit = CLEAN * max(before, slowness())
        assert took < limit, f"it took {took:.1f} s until none was left; here and now {limit:.1f} s are allowed"
    wait_until("nothing is left here", lambda: not program.left())
    host.is_empty()


@pytest.mark.parametrize("before", [0, 30])
def test_orders_that_arrive_after_the_end(before: int, runs: Runs, wire: Wire, host: Host) -> None:
    """What a program ordered last arrives when it is dead, and its helper has done its work: no job is left."""
    source = """
flow = Workflow(context(), raise_errors=True)
flow.run("true").wait()
job = some(flow, int(rest[0])) if int(rest[0]) else None
print("ready", flush=True)
sys.stdin.readline()
line = f"{note} & setsid {note} & exec {note}"
flow.run_array(20, shell(line, job_environment={"LOG": log}))
"""
    program = runs.start(source, before)
    program.expect("ready")
    sent = wire.sent
    wire.slow(3.0)
    program.say("")
    wait_until("it has ordered them", lambda: wire.sent > sent + 3_000)
    wire.slow(0.0)
    program.kill()
    wait_until("the helper has done its work", lambda: not program.left())
    wire.is_quiet()
    wait_until("nobody brings anything any more", lambda: not host.connections())
    wait_until("no job is left", lambda: not runs.alive(), 10)
    host.is_empty(20)


def test_another_helper_comes(runs: Runs, host: Host) -> None:
    """A helper that is killed is replaced, jobs go on; then the program dies, and they do."""
    program = runs.start(SOME, 2)
    program.expect("running")
    for _ in range(2):
        (helper,) = helpers_of(program)
        os.kill(helper, signal.SIGKILL)
        wait_until("there is another", lambda h=helper: helpers_of(program) not in ([], [h]))  # type: ignore[misc]
    assert len(runs.alive()) == 6
    program.kill()
    runs.are_over(program, 10)
    wait_until("nothing is left here", lambda: not program.left())
    host.is_empty()


def test_the_helper_cannot_reach_the_host_yet(runs: Runs, wire: Wire, host: Host) -> None:
    """It tries again, until the host is there and the jobs end."""
    program = runs.start(SOME, 2)
    program.expect("running")
    wire.refuse()
    program.kill()
    wait_until("the helper is alone", lambda: marked(program.mark))
    time.sleep(2)
    assert len(runs.alive()) == 6
    wire.mend()
    runs.are_over(program, 15)
    wait_until("nothing is left here", lambda: not program.left())
    host.is_empty()


# --- their machine goes away ------------------------------------------------------------------------------


def test_the_lease_ends_jobs(runs: Runs, wire: Wire, host: Host) -> None:
    """Nothing comes from there any more, of program or helper: the host ends the jobs, and not before the lease."""
    program = runs.start(SOME, JOBS, lease=LEASE)
    program.expect("running")
    vanish(program, wire)
    assert len(runs.alive()) == 3 * JOBS
    took = runs.are_over(program)
    assert not helpers_of(program)
    assert LEASE * 0.7 <= took < LEASE + STEP * slowness()
    come_back(runs, wire, host)


BUSY = """
flow = Workflow(context(), raise_errors=True)
job = some(flow, 4)
end = time.monotonic() + 2 * given["lease"]
while time.monotonic() < end:
    done = flow.run_array(20, shell("head -c 300000 /dev/zero | tr '\\\\0' x"))
    assert all(len(output) == 300_000 for output in done.outputs().values())
    spin = time.monotonic() + 0.3
    while time.monotonic() < spin:
        sum(range(10_000))
states = {task.state.value for task in job.tasks[0].tasks}
print("states", *states, flush=True)
sys.stdin.readline()
flow.close()
"""


def test_the_lease_is_renewed(runs: Runs, host: Host) -> None:
    """A program that lives keeps its jobs, however busy it is and the connection with it."""
    program = runs.start(BUSY, lease=LEASE)
    program.expect("running")
    assert program.expect("states") == "running"
    assert len(runs.alive()) == 12
    program.say("")
    program.finish()
    assert not runs.alive()
    host.is_empty()


def test_the_lease_is_renewed_over_each_connection(runs: Runs, wire: Wire, host: Host) -> None:
    """Jobs whose connection was lost and made again live on, though nothing new is submitted; then the lease holds."""
    program = runs.start(SOME, 4, lease=LEASE)
    program.expect("running")
    for _ in range(2):
        made = wire.made
        wire.cut()
        wait_until("it is connected again", lambda n=made: wire.made > n)  # type: ignore[misc]
    end = time.monotonic() + 2 * LEASE
    while time.monotonic() < end:
        assert len(runs.alive()) == 12
        time.sleep(0.2)
    vanish(program, wire)
    runs.are_over(program, LEASE + STEP * slowness())
    come_back(runs, wire, host)


STOPPED = """
flow = Workflow(context(), raise_errors=False)
job = some(flow, 3)
job.synchronize()
infos = [task.info() for task in job.tasks[0].tasks]
ends = {f"{i.state.value}:{i.sub_state}:{i.terminating_signal}:{i.annotation.partition(' for ')[0]}" for i in infos}
print("ends", *sorted(ends), flush=True)
os.remove(log)
again = some(flow, 2)
again.synchronize()
"""


def test_a_stopped_program_loses_its_jobs(runs: Runs, wire: Wire, host: Host) -> None:
    """SIGSTOP for longer than the lease is as if it were away: ends are told of, and for new jobs the lease holds."""
    program = runs.start(STOPPED, lease=LEASE)
    program.expect("running")
    os.kill(program.pid, signal.SIGSTOP)
    try:
        wait_until("its jobs are over", lambda: not runs.alive(), LEASE + STEP * slowness())
        wait_until("nobody looks for more of them", lambda: not [*host.jobs.glob("*/guard.*")])
    finally:
        os.kill(program.pid, signal.SIGCONT)
    assert program.expect("ends") == "failed:signaled:SIGKILL:there ended it: it had heard nothing of the program"
    program.expect("running")
    end = time.monotonic() + 1.5 * LEASE
    while time.monotonic() < end:
        assert len(runs.alive()) == 6
        time.sleep(0.1)
    vanish(program, wire)
    runs.are_over(program, LEASE + STEP * slowness())
    come_back(runs, wire, host)


# --- detached ---------------------------------------------------------------------------------------------

DETACHED = """
flow = Workflow(context(detach=True, store=rest[0] or None), raise_errors=True)
line = 'echo out $TASK_ID; echo err $TASK_ID >&2; until [ -e "$GATE$((TASK_ID % 2))" ]; do sleep 0.05; done; '
line += '[ $TASK_ID -lt 7 ] || kill -9 $$; exit $((TASK_ID % 3))'
job = flow.run_array(8, shell(line, job_environment={"GATE": rest[1]}))
for task in job.tasks[0].tasks:
    task.wait_started(60)
print("running", job.job_id, flush=True)
job.synchronize()
"""


@pytest.mark.parametrize("death", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("kept", [True, False], ids=["store", "no store"])
def test_what_is_detached_goes_on(
    death: signal.Signals,
    kept: bool,  # noqa: FBT001
    runs: Runs,
    host: Host,
    tmp_path: Path,
) -> None:
    """A new program finds all of them: what ended meanwhile and what still runs, with status, output and times."""
    store, gate = str(tmp_path / "store") if kept else "", tmp_path / "gate"
    began = datetime.now(UTC)
    program = runs.start(DETACHED, store, gate)
    id = program.expect("running")
    program.kill(death)
    wait_until("nothing is left here", lambda: not program.left())
    opened = datetime.now(UTC)
    (tmp_path / "gate1").touch()
    wait_until(
        "half of them have ended",
        lambda: sum(path.read_text().endswith("\n.\n") for path in host.jobs.glob("*/*/*/end")) == 4,
    )
    closed = datetime.now(UTC)
    time.sleep(1)
    with Workflow(runs.context(detach=True, store=store or None), raise_errors=True) as flow:
        tasks = tasks_of(flow)
        assert {task._record.job_id for task in tasks} == {id}  # noqa: SLF001
        odd = [task for task in tasks if task.index is not None and task.index % 2]
        assert {task.state for task in tasks if task not in odd} == {JobState.RUNNING}
        for task in odd:
            _is_right(task, began, opened, closed)
        (tmp_path / "gate0").touch()
        now = datetime.now(UTC)
        for task in tasks:
            task.wait_terminated(PATIENCE)
        for task in tasks:
            if task not in odd:
                _is_right(task, began, now, datetime.now(UTC))
        flow.jobs()[0].reap_all()
    host.is_empty()


def _is_right(task: Task, began: datetime, opened: datetime, closed: datetime) -> None:
    """One of DETACHED that ended between two moments."""
    info, index, little = task.info(), task.index or 0, timedelta(seconds=0.2)
    expected = (137, "SIGKILL", "signaled") if index >= 7 else (index % 3, None, "exited")
    assert (info.exit_status, info.terminating_signal, info.sub_state) == expected
    assert task.output() == f"out {index}"
    assert task.error_output() == f"err {index}"
    assert info.dispatch_time is not None
    assert info.finish_time is not None
    assert info.wallclock_time is not None
    assert began - little <= info.dispatch_time <= opened + little
    assert opened - little <= info.finish_time <= closed + little
    assert abs(info.finish_time - info.dispatch_time - info.wallclock_time) < little


CROWDED = """
flow = Workflow(context(detach=True, store=rest[0]), raise_errors=True)
line = 'echo $TASK_ID >>"$LOG"; until [ -e "$GATE" ]; do sleep 0.05; done; exit $TASK_ID'
job = flow.run_array(5, shell(line, job_environment={"LOG": rest[2], "GATE": rest[1]}), candidate_machines=["there"])
job.tasks[0].tasks[0].wait_started(60)
while [task.state.value for task in job.tasks[0].tasks].count("queued") < 4:
    time.sleep(0.01)
time.sleep(0.5)  # until that is written down, too
print("running", job.job_id, flush=True)
job.synchronize()
"""


def test_who_waits_for_room_goes_on(runs: Runs, host: Host, tmp_path: Path) -> None:
    """What a program that was killed had no room for is started by the next one: once each, as what it was."""
    store, gate = str(tmp_path / "store"), tmp_path / "gate"
    config, ran = tmp_path / "config", tmp_path / "ran"
    config.write_text(host.entry("there") + host.entry("other"))
    more: dict[str, Any] = {"hosts": ["there", "other"], "slots": {"there": 1}, "config": str(config)}
    program = runs.start(CROWDED, store, gate, ran, **more)
    program.expect("running")
    program.kill()
    wait_until("nothing is left here", lambda: not program.left())
    gate.touch()
    with Workflow(runs.context(detach=True, store=store, **more), raise_errors=False) as flow:
        tasks = tasks_of(flow)
        for task in tasks:
            task.wait_terminated(PATIENCE)
        assert [task.info().exit_status for task in tasks] == [1, 2, 3, 4, 5], [task.info() for task in tasks]
        assert {task.info().allocated_machines for task in tasks} == {("there",)}
        assert sorted(ran.read_text().split()) == ["1", "2", "3", "4", "5"]
        flow.jobs()[0].reap_all()
    host.is_empty()


# --- sshd dies --------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Host]:
    """An sshd to be struck."""
    with Host(tmp_path) as found:
        yield found


def test_sshd_is_restarted(own: Host) -> None:
    """Thirty jobs run when it dies with all its connections: they go on, and their ends are known as ever."""
    with Workflow(own.context(), raise_errors=True) as flow:
        job = flow.run_array(30, shell("echo $TASK_ID; sleep 3; exit $((TASK_ID % 4))"))
        for task in (tasks := list(job.tasks[0].tasks)):  # type: ignore[union-attr]
            task.wait_started(PATIENCE)
        own.strike()
        own.start()
        job.synchronize(timeout=15)
        _are_right(tasks)
        wall = [info.wallclock_time.total_seconds() for task in tasks if (info := task.info()).wallclock_time]
        assert len(wall) == 30
        assert min(wall) >= 3
        assert max(wall) < 5 * slowness()
        assert flow.run("true").wait(PATIENCE).success()
    own.is_empty()


def test_sshd_is_away(own: Host, tmp_path: Path) -> None:
    """For 5 s, while 30 run and 30 are just ending, with files to be fetched: none is called failed, all are told."""
    gate, results = tmp_path / "gate", tmp_path / "results"
    results.mkdir()
    with Workflow(own.context(), raise_errors=True) as flow:
        ending = [
            flow.run(
                shell(f"until [ -e {gate} ]; do sleep 0.02; done; echo {n}; exit {n % 2}"),
                output_path=str(results / f"{n}"),
            )
            for n in range(30)
        ]
        line = f"until [ -e {gate}2 ]; do sleep 0.1; done; echo $TASK_ID; exit $((TASK_ID % 4))"
        running = flow.run_array(30, shell(line))
        tasks = [*(job.tasks[0] for job in ending), *running.tasks[0].tasks]  # type: ignore[union-attr]
        for task in tasks:
            task.wait_started(PATIENCE)
        gate.touch()
        wait_until("they end", lambda: any(job.state.ended for job in ending))
        own.strike()
        gate.with_name("gate2").touch()
        time.sleep(5)
        assert not any(task.state is JobState.FAILED and task.info().exit_status is None for task in tasks)
        begin = time.monotonic()
        own.start()
        for task in tasks:
            task.wait_terminated(SLOWEST)
        assert time.monotonic() - begin < SLOWEST
        for n, job in enumerate(ending):
            info = job.info()
            assert info is not None
            assert (info.exit_status, info.sub_state, job.output()) == (n % 2, "exited", str(n))
            assert info.state is (JobState.FAILED if n % 2 else JobState.DONE), info
            assert (results / f"{n}").read_text() == f"{n}\n"
        _are_right(list(running.tasks[0].tasks))  # type: ignore[union-attr]
    own.is_empty()


def test_submitting_while_sshd_is_away(own: Host) -> None:
    """For 3 s: a job that comes then waits for the host, which was there before, and runs once."""
    with Workflow(own.context(), raise_errors=True) as flow:
        assert flow.run("true").wait(PATIENCE).success()
        own.strike()
        starts = threading.Timer(3, own.start)
        starts.start()
        try:
            assert flow.run("echo", "here").output() == "here"
        finally:
            starts.join()
    own.is_empty()


SLOWEST = 20.0
"""Seconds until all is told after so long: the pause between two attempts has grown to 7 s, more or less a fifth."""


def _are_right(tasks: list[Task]) -> None:
    for task in tasks:
        assert task.index is not None
        info = task.info()
        assert (info.exit_status, info.sub_state) == (task.index % 4, "exited"), info
        assert task.output() == str(task.index)

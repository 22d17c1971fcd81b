"""Connections to a job server that are cut, stalled, slow, or answered by somebody else: no job is lost or doubled."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("httpx", reason="httpx is not in this environment")
pytest.importorskip("uvicorn", reason="uvicorn is not in this environment")

from tests.faults.hosts import FAULTS, WIRE, Wire
from tests.faults.jobservers import GATEWAY, Gateway, JobServer
from tests.faults.machine import PATIENCE, seed, wait_until
from wfl import JobState, Workflow, shell
from wfl.contexts.remote import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from wfl import Job, JobInfo, Task

SILENCE = 3.0
"""Seconds after which a stream without a sign of life is given up in these tests; the server gives one every half."""
SOON = 20.0
"""Seconds after which all must be known again, here where nothing stays broken: some silences, and connecting."""
SIZE = 6_000_000
"""Bytes of a file: more than all buffers on its way hold."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobServer]:
    """One for all, which nobody else uses."""
    options = ("--end-jobs", "--legacy-get", "--limit", "heartbeat=0.5")
    with JobServer(tmp_path_factory.mktemp("server"), *options) as found:
        yield found


@pytest.fixture
def wire(server: JobServer) -> Iterator[Wire]:
    """The way to it."""
    with Wire(server.port) as found:
        yield found


@pytest.fixture(params=[*FAULTS])
def fault(request: pytest.FixtureRequest, wire: Wire) -> Callable[[], None]:
    """What happens to the connections."""
    return lambda: FAULTS[request.param](wire)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent stream is noticed soon."""
    from wfl.contexts.remote import v1

    monkeypatch.setattr(v1, "QUIET", SILENCE)


@pytest.fixture(autouse=True)
def _ends_its_threads() -> Iterator[None]:
    yield
    names = (WIRE, GATEWAY)
    wait_until("no thread is left", lambda: not [t for t in threading.enumerate() if t.name in names], PATIENCE)


@pytest.fixture
def flow(server: JobServer, wire: Wire) -> Iterator[Workflow]:
    """A workflow over the wire, which leaves nothing on the server."""
    context = server.context(wire.port)
    with Workflow(context, raise_errors=True) as found:
        yield found
        wire.mend()
    assert clean(context.session_name, server.context()) == 0


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file in which jobs write down that they ran."""
    return tmp_path / "ran"


def tasks_of(job: Job) -> list[Task]:
    """An array's elements."""
    return list(job.tasks[0].tasks)  # type: ignore[union-attr]


def info_of(job: Job) -> JobInfo:
    """What is known of its last task."""
    found = job.info()
    assert found is not None
    return found


def words_in(path: Path) -> Counter[str]:
    """What jobs wrote, how often."""
    return Counter(path.read_text().split() if path.exists() else ())


def submit_some(flow: Workflow, ran: Path, number: int = 6) -> list[Job]:
    """Jobs one by one, and an array, each of which writes down once that it ran."""
    line = f'echo "$NAME$TASK_ID" >>{ran}'
    jobs = [flow.run(shell(line), job_environment={"NAME": f"job{n}"}) for n in range(number)]
    return [*jobs, flow.run_array(number, shell(line), job_environment={"NAME": "array", "LONG": "x" * 60_000})]


def all_ran_once(jobs: list[Job], ran: Path) -> None:
    """Each has ended well, and has run just once."""
    for job in jobs:
        job.synchronize(timeout=PATIENCE)
        assert job.success(), [info for info in job.infos() if info.state is not JobState.DONE][:1]
    number = len(jobs) - 1
    expected = {f"{name}{n}" for n in range(number) for name in ("job",)} | {f"array{n + 1}" for n in range(number)}
    assert words_in(ran) == dict.fromkeys(expected, 1)


# --- submission -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [("there", 1), ("there", 1500), ("there", 30_000), ("back", 1), ("back", 300)])
def test_submitting(at: tuple[Any, int], fault: Callable[[], None], wire: Wire, flow: Workflow, ran: Path) -> None:
    """Whatever arrives of requests and answers: each job runs once, and its end is known."""
    assert flow.run("true").wait(PATIENCE).success()
    wire.after(*at, fault)
    begin = time.monotonic()
    jobs = submit_some(flow, ran)
    all_ran_once(jobs, ran)
    assert wire.sprung.is_set()
    assert time.monotonic() - begin < SOON


def test_answers_that_never_come(wire: Wire, server: JobServer, ran: Path) -> None:
    """Requests arrive, and nothing comes back for longer than they are repeated: the jobs are found by their keys."""
    with Workflow(server.context(wire.port, patience=3.0)) as flow:
        assert flow.run("true").wait(PATIENCE).success()
        wire.swallow("back")
        job = flow.run(shell(f"echo here >>{ran}"))
        assert job.state is JobState.UNDETERMINED
        assert flow.session is not None
        assert not job.last_error
        wait_until("it has run", ran.exists)
        wire.mend()
        assert job.wait(PATIENCE).success()
    assert words_in(ran) == {"here": 1}


# --- waiting ----------------------------------------------------------------------------------------------


def test_waiting(fault: Callable[[], None], flow: Workflow) -> None:
    """Some run longer than the fault lasts, some end meanwhile: all ends are known soon, with status and times."""
    job = flow.run_array(12, shell("sleep $((TASK_ID % 4)).2; [ $TASK_ID -lt 9 ] || kill -9 $$; exit $TASK_ID"))
    for task in tasks_of(job):
        task.wait_started(PATIENCE)
    begin = time.monotonic()
    fault()
    job.synchronize(timeout=PATIENCE)
    assert time.monotonic() - begin < SOON
    for task in tasks_of(job):
        assert task.index is not None
        info = task.info()
        expected = (task.index, None) if task.index < 9 else (137, "SIGKILL")
        assert (info.exit_status, info.terminating_signal) == expected
        assert info.wallclock_time is not None
        assert -0.05 < info.wallclock_time.total_seconds() - (task.index % 4 + 0.2) < 2.0


def test_waiting_again_and_again(wire: Wire, flow: Workflow, caplog: pytest.LogCaptureFixture) -> None:
    """Connections that are cut whenever they were made, ten times: the jobs end as they would, and are told of."""
    job = flow.run_array(10, shell("sleep 3; exit $TASK_ID"))
    for task in tasks_of(job):
        task.wait_started(PATIENCE)
    for number in range(10):
        wait_until("it is there again", lambda n=number: caplog.text.count("there again") >= n)  # type: ignore[misc]
        wire.cut()
    job.synchronize(timeout=PATIENCE)
    assert [task.info().exit_status for task in tasks_of(job)] == list(range(1, 11))


def test_control(fault: Callable[[], None], wire: Wire, flow: Workflow) -> None:
    """What is done to jobs while connections break is done, and its answer is true."""
    job = flow.run_array(4, "sleep", "600")
    for task in tasks_of(job):
        task.wait_started(PATIENCE)
    wire.after("there", 100, fault)
    job.suspend()
    assert [task.state for task in tasks_of(job)] == [JobState.SUSPENDED] * 4
    wire.after("back", 20, fault)
    job.kill()
    job.synchronize(timeout=SOON)
    assert {task.info().terminating_signal for task in tasks_of(job)} == {"SIGKILL"}


# --- files and output -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10_000, 3_000_000])
def test_files_on_their_way_there(
    size: int, fault: Callable[[], None], wire: Wire, flow: Workflow, tmp_path: Path
) -> None:
    """Uploads that break off are gone on with: the job has what was sent, whole."""
    data = os.urandom(SIZE)
    (tmp_path / "in").write_bytes(data)
    assert flow.run("true").wait(PATIENCE).success()
    wire.after("there", size, fault)
    source = str(tmp_path / "in")
    job = flow.run(shell("cmp copy - && wc -c <copy"), stage_in_files={"copy": source}, input_path=source)
    assert job.wait(PATIENCE).success(), info_of(job)
    assert wire.sprung.is_set()
    assert int(job.output()) == SIZE


@pytest.mark.parametrize("size", [10_000, 3_000_000])
def test_files_on_their_way_back(
    size: int, fault: Callable[[], None], wire: Wire, flow: Workflow, tmp_path: Path
) -> None:
    """Output and results that break off are gone on with: what is here is what the job made, or nothing else."""
    job = flow.run(
        shell(f"read line </dev/null; head -c {SIZE} /dev/urandom | tee made; sleep 1"),
        output_path=str(tmp_path / "out"),
        stage_out_files={str(tmp_path / "made"): "made"},
    )
    wire.after("back", size, fault)
    assert job.wait(PATIENCE).success(), info_of(job)
    assert wire.sprung.is_set()
    made = (tmp_path / "made").read_bytes()
    assert len(made) == SIZE
    assert made == (tmp_path / "out").read_bytes()


def test_followed_output(fault: Callable[[], None], flow: Workflow) -> None:
    """A stream of output that breaks off goes on where it was: no line is missing, none comes twice."""
    job = flow.run(shell("for n in 1 2 3 4 5 6 7 8; do echo $n; sleep 0.4; done"))
    lines = job.stream()
    got = [next(lines), next(lines)]
    fault()
    assert [*got, *lines] == list("12345678")


def test_slow(wire: Wire, flow: Workflow, tmp_path: Path, ran: Path) -> None:
    """With 200 ms in each direction all works, and the elements of an array do not wait for one another."""
    wire.slow(0.2)
    begin = time.monotonic()
    all_ran_once(submit_some(flow, ran), ran)
    assert flow.run_array(1000, "true").synchronize(timeout=PATIENCE).success()
    assert flow.run_array(10, shell("echo $TASK_ID")).output().split() == [str(n + 1) for n in range(10)]
    (tmp_path / "in").write_text("over there")
    job = flow.run(shell("tee back"), input_path=str(tmp_path / "in"), stage_out_files={str(tmp_path / "back"): "back"})
    assert job.output() == (tmp_path / "back").read_text() == "over there"
    assert time.monotonic() - begin < 3 * SOON


# --- who stands in between --------------------------------------------------------------------------------


FATES = ("502", "503", "504", "502 after", "503 after", "504 after", "half")


@pytest.mark.parametrize("fate", FATES)
def test_a_gateway(fate: str, server: JobServer, tmp_path: Path, ran: Path) -> None:
    """Half of all requests are answered by a gateway, or not in whole, done or not: jobs run once, all else is true."""
    chance = random.Random(seed())  # noqa: S311 - a test's choice

    def plan(_: str, path: str) -> str | None:
        return fate if not path.endswith("/info") and chance.random() < 0.5 else None

    with Gateway(server.port, plan) as gateway:
        context = server.context(gateway.port)
        with Workflow(context, raise_errors=True) as flow:
            all_ran_once(submit_some(flow, ran, 10), ran)
            job = flow.run("sleep", "600").suspend()
            assert job.state is JobState.SUSPENDED
            assert info_of(job.kill().wait(PATIENCE)).terminating_signal == "SIGKILL"
            (tmp_path / "in").write_bytes(os.urandom(SIZE))
            job = flow.run("cat", input_path=str(tmp_path / "in"), output_path=str(tmp_path / "out"))
            assert job.wait(PATIENCE).success(), info_of(job)
        assert (tmp_path / "in").read_bytes() == (tmp_path / "out").read_bytes()
        assert len(gateway.spoiled) > 10
    assert clean(context.session_name, server.context()) == 0


# --- the compatible protocol ------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [("there", 1), ("there", 700), ("back", 1), ("back", 90)])
def test_compatible(at: tuple[Any, int], fault: Callable[[], None], wire: Wire, server: JobServer, ran: Path) -> None:
    """It cannot tell what became of a submission whose answer was lost, and says so; nothing runs twice, and what it
    says of all others is true.
    """
    with Workflow(server.context(wire.port, protocol="compatible")) as flow:
        assert flow.run("true").wait(PATIENCE).success()
        wire.after(*at, fault)
        jobs = [flow.run(shell(f"echo job{n} >>{ran}")) for n in range(8)]
        for job in jobs:
            job.wait(PATIENCE)
        assert wire.sprung.is_set()
        wire.mend()
    counts = words_in(ran)
    assert max(counts.values()) == 1
    lost = 0
    for number, job in enumerate(jobs):
        info = info_of(job)
        if info.state is JobState.DONE:
            assert counts[f"job{number}"] == 1
        else:
            assert info.sub_state == "lost"
            assert "cannot tell whether it was started" in (info.annotation or "")
            lost += 1
    assert lost <= 1

"""A job server that is killed, or started again, at any moment: no job is lost or doubled, and all ends are true."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("httpx", reason="httpx is not in this environment")
pytest.importorskip("uvicorn", reason="uvicorn is not in this environment")

from tests.faults.jobservers import JobServer
from tests.faults.machine import NOTE, PATIENCE, is_alive, kills, noted, seed, wait_until
from wfl import Job, JobState, Workflow, shell
from wfl.contexts.remote import clean

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wfl import JobInfo

Serve = Callable[..., JobServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers, which end with all their jobs."""
    servers: list[JobServer] = []

    def start(*options: str) -> JobServer:
        servers.append(JobServer(tmp_path / f"server-{len(servers)}", *options))
        return servers[-1]

    yield start
    for server in servers:
        with server:
            for session in ("kept", "legacy"):
                clean(session, server.context())


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file in which jobs write down that they ran."""
    return tmp_path / "ran"


def info_of(job: Job) -> JobInfo:
    """What is known of its last task."""
    found = job.info()
    assert found is not None
    return found


def words_in(path: Path) -> Counter[str]:
    """What jobs wrote, how often."""
    return Counter(path.read_text().split() if path.exists() else ())


def submit_all(flow: Workflow, ran: Path, number: int) -> tuple[list[Job], list[threading.Thread]]:
    """Jobs that write down their names, from four threads, while the caller does something else."""
    jobs: list[Job] = []

    def submit(turn: int) -> None:
        jobs.extend(
            flow.run(shell(f"echo {n} >>{ran}; echo out {n}; exit $(({n} % 3))"), job_name=str(n))
            for n in range(turn, number, 4)
        )

    threads = [threading.Thread(target=submit, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    return jobs, threads


def name_of(job: Job) -> int:
    """The number that it writes."""
    assert job.template is not None
    return int(job.template.job_name or -1)


@pytest.mark.parametrize("times", [1, 2])
def test_killed_while_jobs_are_submitted(serve: Serve, ran: Path, times: int) -> None:
    """Each job runs once, its end and output are known; also if the server is killed again as soon as it is there."""
    chance, server = random.Random(seed()), serve()  # noqa: S311 - a test's choice
    with Workflow(server.context(session_name="kept"), raise_errors=True) as flow:
        jobs, threads = submit_all(flow, ran, 400)
        for _ in range(kills(6)):
            if not any(thread.is_alive() for thread in threads):
                break
            time.sleep(chance.uniform(0.05, 0.6))
            for _ in range(times):
                server.kill()
                server.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(jobs) == 400
        for job in jobs:
            assert job.wait(PATIENCE).state.ended
            assert info_of(job).exit_status == name_of(job) % 3, info_of(job)
        assert words_in(ran) == {str(n): 1 for n in range(400)}
        assert all(job.output() == f"out {name_of(job)}" for job in jobs)


def test_detached_jobs_go_on(serve: Serve, ran: Path) -> None:
    """While the server is dead jobs go on; those that ended meanwhile, and those that run, are known truly."""
    server = serve()
    with Workflow(server.context(session_name="kept"), raise_errors=True) as flow:
        short = flow.run_array(10, shell(f"sleep 1; echo $TASK_ID >>{ran}; exit $TASK_ID"))
        killed = flow.run(shell("sleep 1; kill -SEGV $$"))
        long = flow.run(shell(f"while [ ! -e {ran}.go ]; do sleep 0.1; done; echo long >>{ran}; exit 7"))
        for job in (short, killed, long):
            job.tasks[0].wait_started(PATIENCE)
        server.kill()
        wait_until("the short ones have run", lambda: len(words_in(ran)) == 10)
        time.sleep(0.5)
        server.start()
        assert [info.exit_status for info in short.synchronize(timeout=PATIENCE).infos()] == list(range(1, 11))
        assert info_of(killed.wait(PATIENCE)).terminating_signal == "SIGSEGV"
        assert long.state is JobState.RUNNING
        (ran.parent / f"{ran.name}.go").touch()
        assert long.wait(PATIENCE).exit_status() == 7
        took = short.infos()[0].wallclock_time
        assert took is not None
        assert 1.0 <= took.total_seconds() < 2.5  # it was not the server that took the time
    assert words_in(ran) == {**{str(n): 1 for n in range(1, 11)}, "long": 1}


def test_jobs_that_end_with_the_server(serve: Serve, tmp_path: Path) -> None:
    """With --end-jobs a server that is killed leaves no process, and the next one tells that they were ended."""
    server, log = serve("--end-jobs"), tmp_path / "log"
    with Workflow(server.context(session_name="kept"), raise_errors=True) as flow:
        job = flow.run_array(5, shell(f"{NOTE} sleep 600 & sleep 600", job_environment={"LOG": str(log)}))
        wait_until("all run", lambda: len(noted(log)) == 5)
        server.kill()
        wait_until("none is left", lambda: not any(is_alive(*one) for one in noted(log)), 10)
        server.start()
        job.synchronize(timeout=PATIENCE)
        infos = job.infos()
        assert {info.state for info in infos} == {JobState.FAILED}
        assert all("ended" in (info.annotation or "") for info in infos), infos


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_started_again_while_many_wait(serve: Serve, ran: Path, number: int) -> None:
    """Hundreds of jobs, most of which wait for their turn, and many who wait for them: all run once, and all wake."""
    server = serve()
    with Workflow(server.context(session_name="kept"), raise_errors=True) as flow:
        array = flow.run_array(300, shell(f"sleep 0.1; echo $TASK_ID >>{ran}"), max_parallel=20)
        held = flow.run(shell(f"echo held >>{ran}"), submit_as_hold=True)
        ended: list[bool] = []
        waiters = [threading.Thread(target=lambda: ended.append(array.wait(PATIENCE).success())) for _ in range(50)]
        for waiter in waiters:
            waiter.start()
        for least in (20, 100):
            wait_until("some have run", lambda least=least: len(words_in(ran)) >= least)  # type: ignore[misc]
            server.kill(number)
            server.start()
        assert array.synchronize(timeout=PATIENCE).success()
        for waiter in waiters:
            waiter.join(PATIENCE)
        assert ended == [True] * 50
        assert held.state is JobState.QUEUED_HELD
        assert held.release().wait(PATIENCE).success()
    assert words_in(ran) == {**{str(n): 1 for n in range(1, 301)}, "held": 1}


def test_client_and_server_killed(serve: Serve, ran: Path) -> None:
    """A program that comes back to a server that was killed, too, finds its detached jobs as they are."""
    server = serve()
    first = Workflow(server.context(session_name="kept", detach=True), raise_errors=True)
    ids = [first.run(shell(f"sleep 1; echo {n} >>{ran}; exit {n}")).job_id for n in range(5)]
    server.kill()
    first.close()
    server.start()
    with Workflow(server.context(session_name="kept", detach=True), raise_errors=True) as second:
        jobs = second.jobs()
        assert [job.job_id for job in jobs] == ids
        assert [job.wait(PATIENCE).exit_status() for job in jobs] == list(range(5))
        assert words_in(ran) == {str(n): 1 for n in range(5)}


def test_compatible_protocol(serve: Serve, ran: Path) -> None:
    """Nothing runs twice; of what it cannot know the client says so, and all else that it says is true."""
    chance, server = random.Random(seed()), serve("--legacy-get")  # noqa: S311 - a test's choice
    with Workflow(server.context(protocol="compatible")) as flow:
        flow.raise_for_error()
        jobs, threads = submit_all(flow, ran, 120)
        for _ in range(kills(4)):
            time.sleep(chance.uniform(0.1, 0.6))
            server.kill()
            server.start()
        for thread in threads:
            thread.join(PATIENCE)
        for job in jobs:
            assert job.wait(PATIENCE).state.ended
        counts, unknown = words_in(ran), 0
        assert set(counts.values()) == {1}
        for job in jobs:
            info = info_of(job)
            if info.sub_state == "lost":
                assert "cannot tell whether it was started" in (info.annotation or "")
                unknown += 1
            else:
                assert counts[str(name_of(job))] == 1, info
                assert info.exit_status == name_of(job) % 3, info
        assert unknown <= 4 * kills(4)  # what was on its way in each of the four threads

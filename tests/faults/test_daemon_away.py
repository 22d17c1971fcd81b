"""A daemon that is stopped, killed, not there or silent: no task is lost, started twice or called failed for that."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.containers import NAMES, Daemon, Own, reached
from tests.faults.machine import PATIENCE, wait_until, when_asked
from tests.faults.proxy import ANY, CREATE, EVENTS, INSPECT, LOGS, START, Proxy
from wfl import Context, DrmCommunicationError, JobState, Workflow, shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wfl import Job

pytestmark = [  # docker-py leaves a socket that could not be connected to the collector
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*<socket.socket fd=:pytest.PytestUnraisableExceptionWarning"),
]
AWAY = 10.0
"""Seconds that a daemon is away."""
TIMEOUT = 2.0
"""Seconds that a silent daemon is waited for in these tests."""
BOUNDED = 45.0
"""Seconds in which everything has to be settled that a silent daemon left open, on any machine."""


@pytest.fixture(scope="module")
def owned() -> Iterator[Callable[[str], Own]]:
    """Daemons of our own, which are started when they are first asked for."""
    with when_asked(Own) as own:
        yield own


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """Docker's of the daemons that `make services` starts: Podman's may take seconds for an answer by itself."""
    with reached("docker") as found:
        yield found


@pytest.fixture
def session() -> str:
    """A name of a session of our own."""
    return Context.unique_session_name()


# --- stopped, killed and started again ------------------------------------------------------------------------

# Whose daemon, how many tasks run, what strikes it, with which options it runs, and whether containers go on then.
AWAYS: dict[str, tuple[str, int, int, tuple[str, ...], bool]] = {
    "docker-stopped": ("docker", 50, signal.SIGTERM, (), False),
    "docker-stopped-live-restore": ("docker", 50, signal.SIGTERM, ("--live-restore",), True),
    "docker-killed": ("docker", 50, signal.SIGKILL, ("--live-restore",), True),
    "docker-killed-for-good": ("docker", 16, signal.SIGKILL, (), False),
    "podman-killed": ("podman", 8, signal.SIGKILL, (), True),
}


@pytest.mark.parametrize("away", AWAYS)
def test_tasks_outlive_the_daemon_s_absence(
    away: str, owned: Callable[[str], Own], session: str, tmp_path: Path
) -> None:
    """All that ran are there once, with the end that they had: while it was away, after it, or by the daemon itself."""
    name, number, blow, options, goes_on = AWAYS[away]
    own = owned(name)
    if name == "docker":
        own.strike(signal.SIGTERM)
        own.start(*options)
    daemon = Daemon(name, own.url)
    starts = tmp_path / "starts"
    starts.touch()
    bound = {"/gate": f"bind:{tmp_path}"}
    with Workflow(daemon.context(session_name=session, timeout=10)).raise_for_error() as flow:
        job = flow.new_job()
        for turn in range(number):
            line = (
                "echo $JOB_ID >>/gate/starts; echo begin; "
                f"until [ -e /gate/{turn % 2} ]; do sleep 0.3; done; echo over; exit {turn % 3}"
            )
            job.run(shell(line, stage_in_files=bound))
        wait_until("all have started", lambda: len(starts.read_text().split()) == number)
        own.strike(blow)
        gone = time.monotonic()
        (tmp_path / "0").touch()
        late = flow.run("true")
        assert late.state is JobState.UNDETERMINED, "nobody can know yet what becomes of it"
        time.sleep(max(0.0, gone + AWAY - time.monotonic()))
        assert not any(task.state.ended for task in job.tasks[1::2] if goes_on)
        own.start(*options)
        wait_until("those that ended meanwhile are known", lambda: all(t.state.ended for t in job.tasks[::2]))
        if goes_on:
            assert not any(task.state.ended for task in job.tasks[1::2])
        (tmp_path / "1").touch()
        job.synchronize(timeout=PATIENCE)

        for turn, info in enumerate(job.infos()):
            end = (info.state, info.sub_state, info.exit_status, info.terminating_signal)
            own_end = (JobState.DONE if turn % 3 == 0 else JobState.FAILED, "exited", turn % 3, None)
            ended_by_daemon = end in (
                (JobState.FAILED, "signaled", 143, "SIGTERM"),
                (JobState.FAILED, "signaled", 137, "SIGKILL"),
            )
            assert end == own_end or (not goes_on and ended_by_daemon), f"task {turn}: {info}"
            if goes_on:
                assert info.finish_time is not None
        outputs = list(job.outputs().values())
        assert all(text.startswith("begin") for text in outputs)
        if goes_on:
            assert set(outputs[1::2]) == {"begin\nover"}
        ids = starts.read_text().split()
        assert sorted(ids) == sorted(task.id for task in job.tasks), "a task was started twice, or not at all"

        unsent = late.wait(PATIENCE).info()
        assert unsent is not None
        assert (unsent.sub_state, unsent.exit_status) == ("launch_failure", None)
        assert "it was never started" in (unsent.annotation or "")
        assert flow.run(shell("echo new")).wait(PATIENCE).output() == "new"
    daemon.is_empty(session)
    daemon.close()


# --- not there --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lack", ["no socket", "refused"])
def test_a_daemon_that_is_not_there(lack: str, name: str, tmp_path: Path) -> None:
    """One line says at once what cannot be reached and what to do; nothing is run, and nothing hangs."""
    path = tmp_path / "socket"
    if lack == "refused":
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(path))
    begin = time.monotonic()
    with Workflow(Context.named(name, image="busybox", base_url=f"unix://{path}")) as flow:
        assert isinstance(flow.error, DrmCommunicationError)
        words = str(flow.error)
        assert str(path) in words
        assert "\n" not in words
        assert "base_url" in words
        assert {"docker": "DOCKER_HOST", "podman": "podman system service"}[name] in words
        assert ("No such file" if lack == "no socket" else "refused") in words
        assert str(flow.run("true").last_error) == words
    assert time.monotonic() - begin < BOUNDED / 2


def test_a_daemon_that_may_not_be_asked(tmp_path: Path) -> None:
    """A socket that this user may not write to is named, with what to do."""
    path = tmp_path / "socket"
    source = """
import os, sys
from wfl import Workflow
from wfl.contexts.docker import DockerContext
def attempt(path):
    return Workflow(DockerContext(image="busybox", base_url=f"unix://{path}")).error
attempt(sys.argv[1] + "-none")  # imports what another user may not be able to read
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
print(repr(attempt(sys.argv[1])))
"""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        path.chmod(0)
        words = subprocess.run(
            [sys.executable, "-c", source, path], capture_output=True, text=True, check=True, timeout=PATIENCE
        ).stdout
    assert words.startswith("DrmCommunicationError")
    assert "Permission denied" in words
    assert str(path) in words
    assert "group" in words or "DOCKER_HOST" in words


# --- no answer ----------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(daemon: Daemon, tmp_path: Path) -> Iterator[Proxy]:
    """What keeps back requests and answers between a program and the daemon."""
    with Proxy(tmp_path / "proxy", daemon.url) as found:
        yield found


@pytest.fixture
def flow(daemon: Daemon, proxy: Proxy, session: str) -> Iterator[Workflow]:
    """A workflow that talks through the proxy and has run a task; closed in bounded time, nothing is left of it."""
    found = Workflow(daemon.context(session_name=session, base_url=proxy.url, timeout=TIMEOUT)).raise_for_error()
    try:
        assert found.run("true").wait(PATIENCE).success()
        yield found
        begin = time.monotonic()
        found.close()
        assert time.monotonic() - begin < BOUNDED
        wait_until("its containers are gone", lambda: not daemon.containers(session))
        daemon.is_empty(session)
    finally:
        proxy.withhold(None)
        found.close()
        daemon.remove_all(session)


def ends(job: Job, status: int) -> None:
    """It ends so in bounded time."""
    job.wait(BOUNDED)
    assert not job.errors
    info = job.info()
    assert info is not None
    assert info.exit_status == status, info


@pytest.mark.parametrize("request_", [CREATE, START])
def test_a_submission_that_is_not_answered(
    request_: str, daemon: Daemon, proxy: Proxy, flow: Workflow, session: str
) -> None:
    """It may have been done: the task is found by its name and goes on, once."""
    proxy.withhold(request_)
    begin = time.monotonic()
    job = flow.run(shell("echo once; exit 3"))
    assert time.monotonic() - begin < BOUNDED
    wait_until("the request was made", lambda: proxy.count(request_) == 2)
    proxy.withhold(None)
    ends(job, 3)
    assert job.output() == "once"
    assert proxy.count(CREATE) == 2
    assert len(daemon.containers(session)) == 2
    ends(flow.run("true"), 0)


@pytest.mark.parametrize("request_", [CREATE, START])
def test_a_submission_that_comes_late(
    request_: str, daemon: Daemon, proxy: Proxy, flow: Workflow, session: str
) -> None:
    """What the daemon does only when nobody waits for the answer any more is settled, too, and done once."""
    arrived = proxy.delay(request_)
    job = flow.run(shell("echo once; exit 3"))
    assert job.state is JobState.UNDETERMINED
    time.sleep(TIMEOUT / 2)
    arrived.set()
    ends(job, 3)
    assert job.output() == "once"
    assert proxy.count(CREATE) == 2
    assert len(daemon.containers(session)) == 2


def test_a_create_that_comes_after_all(daemon: Daemon, proxy: Proxy, flow: Workflow, session: str) -> None:
    """One that nobody expects any more was never started, is not started then, and closing removes it."""
    arrived = proxy.delay(CREATE)
    job = flow.run("true").wait(BOUNDED)
    info = job.info()
    assert info is not None
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "launch_failure", None)
    arrived.set()
    wait_until("it is there", lambda: len(daemon.containers(session)) == 2)
    assert daemon.states(session) in (["created", "exited"], ["configured", "exited"])


def test_events_break_off(proxy: Proxy, flow: Workflow) -> None:
    """A connection for events that ends is made anew, and what was told meanwhile is found in the list."""
    job = flow.run(shell("sleep 1; exit 4"))
    proxy.drop(EVENTS)
    ends(job, 4)


@pytest.fixture
def soon_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is looked into after seconds."""
    monkeypatch.setattr("wfl.contexts.containers.client.QUIET", 3.0)


@pytest.mark.usefixtures("soon_impatient")
def test_events_fall_silent(proxy: Proxy, flow: Workflow) -> None:
    """A connection for events that stays open and brings nothing more does not hide an end for ever."""
    job = flow.run(shell("sleep 1; exit 4"))
    proxy.silence(EVENTS)
    ends(job, 4)


def test_an_end_that_cannot_be_asked_about(proxy: Proxy, flow: Workflow) -> None:
    """It is told when the daemon answers again, and not before."""
    job = flow.run(shell("sleep 1; exit 4"))
    before = proxy.count(INSPECT)
    proxy.withhold(INSPECT)
    wait_until("it was asked about twice", lambda: proxy.count(INSPECT) >= before + 2)
    assert not job.state.ended
    proxy.withhold(None)
    ends(job, 4)


def test_output_that_does_not_come(proxy: Proxy, flow: Workflow) -> None:
    """A log that stalls is an error of the reading, in bounded time; when the daemon answers again it is read."""
    proxy.withhold(LOGS)
    job = flow.run(shell("echo x; exit 4"))
    ends(job, 4)
    assert job.output() == ""
    assert isinstance(job.last_error, DrmCommunicationError)
    proxy.withhold(None)
    assert job.output() == "x"


def test_output_that_cannot_be_written_yet(proxy: Proxy, flow: Workflow, tmp_path: Path) -> None:
    """A log that stalls is no failure of the task: its output_path is written when the daemon answers again."""
    proxy.withhold(LOGS)
    job = flow.run(shell("echo y"), output_path=str(tmp_path / "written"))
    wait_until("its output was asked for", lambda: proxy.count(LOGS))
    time.sleep(1.5 * TIMEOUT)
    proxy.withhold(None)
    ends(job, 0)
    assert job.state is JobState.DONE, job.info()
    assert (tmp_path / "written").read_text() == "y\n"


def test_a_daemon_that_says_nothing_more(daemon: Daemon, proxy: Proxy, session: str) -> None:
    """The session closes in bounded time, and what it could not end is ended when the daemon answers again."""
    context: Any = daemon.context(session_name=session, base_url=proxy.url, timeout=TIMEOUT)
    flow = Workflow(context).raise_for_error()
    try:
        for _ in range(3):
            flow.run("sleep", "600").tasks[-1].wait_started(PATIENCE)
        proxy.withhold(ANY)
        proxy.silence(ANY)
        begin = time.monotonic()
        flow.close()
        assert time.monotonic() - begin < BOUNDED
        proxy.withhold(None)
        wait_until("nothing of it is left", lambda: not daemon.containers(session), 2 * PATIENCE)
        daemon.is_empty(session)
    finally:
        daemon.remove_all(session)

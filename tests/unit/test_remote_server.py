"""The client and the real job server together, over loopback: both protocols, restarts, dead clients, forks."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="httpx is not in this environment")
pytest.importorskip("starlette", reason="starlette is not in this environment")
pytest.importorskip("uvicorn", reason="uvicorn is not in this environment")

import uvicorn

from wfl import Job, JobInfo, JobState, JobTemplate, Workflow, shell
from wfl.contexts.process import ProcessContext
from wfl.contexts.remote import RemoteContext, clean
from wfl.server import Anybody, create_app
from wfl.session import JobSession
from wfl.task import Task

PATIENCE = 30.0  # seconds that anything may take on a busy machine
Place = Callable[[], str]


class Running:
    """One server in a thread, which can be stopped and started again on the same directory and port."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self._port: int = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Serve, and wait until it does."""
        context = ProcessContext(detach=True, store=self._directory / "unused.db")
        directory = self._directory / "server"
        app = create_app(context, directory=directory, identities=Anybody(), legacy=True, legacy_get=True)
        settings = uvicorn.Config(
            app, host="127.0.0.1", port=self._port, log_level="error", timeout_graceful_shutdown=5
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        eventually(lambda: self._server.started)

    def stop(self) -> None:
        """As SIGTERM does; jobs go on."""
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def eventually(true: Callable[[], object]) -> None:
    """Wait until something is true, within bounds."""
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for all tests."""
    found = Running(tmp_path_factory.mktemp("server"))
    yield found
    found.stop()


def session_of(flow: Workflow) -> JobSession:
    """What a workflow is over."""
    assert flow.session is not None
    return flow.session


def info_of(job: Job) -> JobInfo:
    """What is known of a job's last task."""
    info = job.info()
    assert info is not None
    return info


@contextmanager
def opened(server: Running, **settings: Any) -> Iterator[Workflow]:
    """A workflow in a session of its own, which leaves nothing behind."""
    context = RemoteContext(server.url, **{"session_name": RemoteContext.unique_session_name(), **settings})
    with Workflow(context, raise_errors=True) as flow:
        yield flow
    if context.protocol != "compatible":
        assert clean(context.session_name, context) == 0


def test_jobs_and_arrays(server: Running) -> None:
    """What jobs write and how they end comes back; elements know their indexes and their array."""
    with opened(server) as flow:
        assert flow.run("echo", "hello").output() == "hello"
        assert flow.run(shell("exit 3")).exit_status() == 3
        array = flow.run_array(range(0, 30, 3), shell("echo $TASK_ID $JOB_ID"))
        words = [text.split() for text in array.outputs().values()]
        assert [index for index, _ in words] == [str(index) for index in range(0, 30, 3)]
        assert len({job_id for _, job_id in words}) == 1
    with opened(server, max_parallel=2) as flow:
        assert flow.run_array(4, shell("echo $TASK_ID")).output() == "1\n2\n3\n4"


def test_files_go_there_and_back(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are this side's: input, output, and trees with their modes, in both directions."""
    monkeypatch.chdir(tmp_path)
    Path("tree/below").mkdir(parents=True)
    Path("tree/below/tool").write_text("#!/bin/sh\nread line; echo $line; echo made > made/it; echo trouble >&2\n")
    Path("tree/below/tool").chmod(0o755)
    Path("in").write_bytes(b"first\n" + os.urandom(6 << 20))
    with opened(server) as flow:
        job = flow.run(
            shell("mkdir made; ./work/below/tool"),
            input_path="in",
            output_path="out",
            error_path="err",
            stage_in_files={"work": "tree", "copies/": "tree/below/tool"},
            stage_out_files={"back": "made", "tool": "copies/tool"},
        ).wait()
        assert job.success(), info_of(job).annotation
    assert (Path("out").read_text(), Path("err").read_text()) == ("first\n", "trouble\n")
    assert Path("back/it").read_text() == "made\n"
    assert Path("tool").stat().st_mode & 0o111


def test_results_of_an_array(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each element's results and output go where its index says."""
    monkeypatch.chdir(tmp_path)
    with opened(server) as flow:
        template = shell("echo $TASK_ID | tee made").replace(
            stage_out_files={"made-$DRMAA2_INDEX$": "made"}, output_path="out-$DRMAA2_INDEX$"
        )
        assert flow.run_array(3, template).synchronize().success()
    for index in "123":
        assert Path(f"made-{index}").read_text() == Path(f"out-{index}").read_text() == f"{index}\n"


def test_control_and_streams(server: Running) -> None:
    """Jobs are steered, and their output is followed while they run."""
    with opened(server) as flow:
        job = flow.run(shell("echo one; read line < /dev/null; sleep 0.3; echo two"))
        assert list(job.stream()) == ["one", "two"]
        job = flow.run("sleep", "600", submit_as_hold=True)
        states = [job.state]
        for verb in (job.release, job.suspend, job.resume):
            verb()
            states.append(job.state)
        assert states[0] in (JobState.QUEUED, JobState.QUEUED_HELD)
        assert states[1:] in ([JobState.QUEUED, JobState.SUSPENDED, JobState.RUNNING],
                              [JobState.RUNNING, JobState.SUSPENDED, JobState.RUNNING])  # fmt: skip
        assert info_of(job.kill().wait()).terminating_signal == "SIGKILL"


def test_refusals(server: Running) -> None:
    """What the server's system refuses is told with its words; what its policy refuses is refused here by name."""
    with opened(server) as flow:
        (task,) = session_of(flow).start([JobTemplate(remote_command="no-such-program")])
        assert "not found in PATH" in str(task.error)
        (task,) = session_of(flow).start([JobTemplate(remote_command="true", working_directory="/")])
        assert "does not honour working_directory" in str(task.error)


def test_restart_of_the_server(server: Running) -> None:
    """Jobs go on while the server is away; those that end, run and are submitted meanwhile are known afterwards."""
    with opened(server) as flow:
        short = [flow.run(shell(f"sleep 0.5; echo {n}")) for n in range(10)]
        long = flow.run("sleep", "600")
        server.stop()
        late: list[Any] = []
        submitting = threading.Thread(target=lambda: late.append(flow.run("echo", "late")))
        submitting.start()
        time.sleep(0.7)  # so that the short ones end while nobody listens
        server.start()
        submitting.join(PATIENCE)
        assert [job.output() for job in short] == [str(n) for n in range(10)]
        assert late[0].output() == "late"
        assert long.state is JobState.RUNNING
        assert info_of(long.kill().wait()).sub_state == "cancelled"


def serving(directory: Path, port: int) -> subprocess.Popen[bytes]:
    """The server as a program of its own, which is up when this returns."""
    command = [sys.executable, "-m", "wfl.server", "--log-level", "error", "serve", "--no-authentication"]
    program = subprocess.Popen([*command, "--listen", f"127.0.0.1:{port}", "--directory", str(directory)])

    def answers() -> bool:
        assert program.poll() is None
        with socket.socket() as sock:
            return not sock.connect_ex(("127.0.0.1", port))

    eventually(answers)
    return program


def words_of(job: Job) -> str:
    """What a job of the next test writes."""
    assert job.template is not None
    return job.template.job_name or ""


def test_server_that_is_killed(tmp_path: Path) -> None:
    """While the server is killed again and again, every job that is submitted runs once, and its end is known."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    program = serving(tmp_path / "server", port)
    ran = tmp_path / "ran"
    try:
        context = RemoteContext(f"http://127.0.0.1:{port}", session_name="killed", timeout=5.0)
        with Workflow(context) as flow:
            flow.raise_for_error()
            jobs: list[Job] = []

            def submit(number: int) -> None:
                jobs.extend(
                    flow.run(shell(f"echo {number}.{n} >> {ran}; echo out {n}"), job_name=f"{number}.{n}")
                    for n in range(40)
                )

            threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for enough in (20, 70, 120):
                eventually(lambda enough=enough: len(jobs) >= enough)  # type: ignore[misc]
                program.kill()
                program.wait()
                program = serving(tmp_path / "server", port)
            for thread in threads:
                thread.join(PATIENCE)
            assert len(jobs) == 160
            assert {job.wait(PATIENCE).state for job in jobs} == {JobState.DONE}
            assert sorted(ran.read_text().split()) == sorted(words_of(job) for job in jobs)
            assert all(job.output() == f"out {words_of(job).split('.')[1]}" for job in jobs)
    finally:
        program.terminate()
        program.wait()


def test_later_program(server: Running) -> None:
    """Detached jobs are found by their session's name alone, with outputs and states."""
    context = RemoteContext(server.url, session_name="later", detach=True)
    with Workflow(context) as flow:
        ids = [flow.run("echo", "here").wait().job_id, flow.run("sleep", "600").job_id]
        flow.run_array(2, shell("echo $TASK_ID")).synchronize()
    with Workflow(RemoteContext(server.url, session_name="later", detach=True)) as flow:
        done, running, array = flow.jobs()
        assert [done.job_id, running.job_id] == ids
        assert (done.output(), running.state) == ("here", JobState.RUNNING)
        assert array.output() == "1\n2"
    assert clean("later", context) == 4


CLIENT = """
import sys, time
from wfl import Workflow, shell
from wfl.contexts.remote import RemoteContext
flow = Workflow(RemoteContext(sys.argv[1], session_name="dying", protocol=sys.argv[2]), raise_errors=True)
jobs = [flow.run("sleep", "600") for _ in range(3)] + [flow.run_array(2, "sleep", "600")]
print("started", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("protocol", ["v1", "compatible"])
def test_jobs_end_with_a_killed_program(server: Running, protocol: str) -> None:
    """A program that is killed leaves nothing: its helper process has the server end all its jobs."""
    session = "dying" if protocol == "v1" else "legacy"
    with Workflow(RemoteContext(server.url, session_name=session, detach=True)) as flow:
        with subprocess.Popen([sys.executable, "-c", CLIENT, server.url, protocol], stdout=subprocess.PIPE) as program:
            assert program.stdout
            assert program.stdout.readline() == b"started\n"
            assert len(session_of(flow).get_jobs()) == 5
            program.send_signal(signal.SIGKILL)

        def none_is_left() -> bool:
            with Workflow(RemoteContext(server.url, session_name=session, detach=True)) as later:
                return not session_of(later).get_jobs()

        eventually(none_is_left)


def test_forked_child_leaves_all_alone(server: Running) -> None:
    """A forked child uses no connection and ends nothing; its parent goes on."""
    with opened(server) as flow:
        job = flow.run("sleep", "600")
        child = os.fork()
        if not child:
            try:
                flow.close()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert flow.run("echo", "still").output() == "still"
        assert job.state is JobState.RUNNING


def test_compatible_protocol_alone(server: Running) -> None:
    """Restricted to the old protocol, jobs run, end, are steered and removed."""
    with opened(server, protocol="compatible") as flow:
        assert flow.run("true").success()
        assert info_of(flow.run(shell("exit 3")).wait()).exit_status == 3
        assert [info.exit_status for info in flow.run_array(3, shell("exit $TASK_ID")).synchronize().infos()] == [
            1,
            2,
            3,
        ]
        (task,) = session_of(flow).start([JobTemplate(remote_command="no-such-program")])
        assert "not found in PATH" in str(task.error)
        job = flow.run("sleep", "600").suspend()
        assert job.state is JobState.SUSPENDED
        assert info_of(job.kill().wait()).terminating_signal == "SIGTERM"


def test_nothing_is_left(server: Running) -> None:
    """Threads and descriptors are as many after a hundred jobs as before; directories of its own are gone."""

    def count() -> tuple[int, int]:
        threads = [thread for thread in threading.enumerate() if "remote" in thread.name or "undertaker" in thread.name]
        return len(threads), len(os.listdir("/proc/self/fd"))

    def run() -> None:
        session = JobSession(RemoteContext(server.url, session_name="count"))
        tasks: list[Task] = session.start([JobTemplate(remote_command="true")] * 100)
        session.wait(tasks, PATIENCE)
        session.close()

    run()
    eventually(lambda: count()[0] == 0)
    before = count()
    for _ in range(8):
        run()
    eventually(lambda: count()[0] == 0)
    assert count()[1] < before[1] + 8  # those of the server, which is in this process, too, come and go

"""MonitoringSession on a system that does what the test says, and what its rooms make of what systems tell."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.machine import wait_until
from wfl import MonitoringSession, Workflow
from wfl.context import Context
from wfl.contexts import host
from wfl.contexts.process import ProcessContext
from wfl.drmaa2 import JobInfo, JobState, MachineInfo, QueueInfo
from wfl.errors import (
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidSessionError,
    UnsupportedOperationError,
)
from wfl.testing import FakeContext, FakeSystem, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator


NODES = [MachineInfo(name=name, cores=cores) for name, cores in (("a", 4), ("b", 8))]


@pytest.fixture
def system() -> FakeSystem:
    """Jobs wait until they are started, and run until they are ended."""
    return FakeSystem(auto=False)


@pytest.fixture
def flows(system: FakeSystem) -> Iterator[dict[str, Workflow]]:
    """Two sessions on one system."""
    opened = {name: Workflow(FakeContext(system, session_name=name), raise_errors=True) for name in ("one", "two")}
    yield opened
    for flow in opened.values():
        flow.kill_all().close()


@pytest.fixture
def monitor(system: FakeSystem) -> Iterator[MonitoringSession]:
    """A monitoring session of a third name."""
    with MonitoringSession(FakeContext(system, session_name="three")) as session:
        yield session


def ids(infos: list[JobInfo]) -> list[str]:
    """Their ids."""
    return [info.id for info in infos]


class TestJobs:
    """What runs on the system."""

    def test_of_all_sessions(self, flows: dict[str, Workflow], monitor: MonitoringSession) -> None:
        """Jobs of every session are there, under the ids that they have in it, with the session's name."""
        jobs = {name: flow.run("x") for name, flow in flows.items()}
        seen = monitor.get_all_jobs()
        assert {info.extensions["session"]: info.id for info in seen} == {n: job.job_id for n, job in jobs.items()}

    def test_of_one_session(self, flows: dict[str, Workflow], monitor: MonitoringSession) -> None:
        """With a session's name only its jobs are there; none for a name that nobody uses."""
        job = flows["one"].run("x")
        flows["two"].run("x")
        assert ids(monitor.get_all_jobs(session_name="one")) == [job.job_id]
        assert monitor.get_all_jobs(session_name="three") == []

    def test_that_have_not_ended(
        self, system: FakeSystem, flows: dict[str, Workflow], monitor: MonitoringSession
    ) -> None:
        """A job is there from its submission to its end, in the state that it is in."""
        job = flows["one"].run("x")
        task = job.tasks[0]
        states = [monitor.get_all_jobs()[0].state]
        for step in (lambda: system.start(task.id), job.suspend, job.resume):
            step()
            states.append(monitor.get_all_jobs()[0].state)
        assert states == [JobState.QUEUED, JobState.RUNNING, JobState.SUSPENDED, JobState.RUNNING]
        system.finish(task.id)
        assert monitor.get_all_jobs() == []

    def test_like(self, system: FakeSystem, flows: dict[str, Workflow], monitor: MonitoringSession) -> None:
        """Jobs are filtered as JobSession.get_jobs does: equal, machines contained, times not before."""
        first, second = flows["one"].run("x", min_slots=2), flows["two"].run("x")
        system.start(first.tasks[0].id)
        (began,) = [info.dispatch_time for info in monitor.get_all_jobs() if info.dispatch_time]
        likes = {
            JobInfo(id=second.job_id): [second],
            JobInfo(state=JobState.RUNNING): [first],
            JobInfo(slots=2): [first],
            JobInfo(slots=3): [],
            JobInfo(allocated_machines=["fake"]): [first],
            JobInfo(allocated_machines=["fake", "other"]): [],
            JobInfo(dispatch_time=began): [first],
            JobInfo(dispatch_time=began + timedelta(seconds=1)): [],
            JobInfo(extensions={"session": "two"}): [second],
            JobInfo(): [first, second],
        }
        for like, jobs in likes.items():
            assert ids(monitor.get_all_jobs(like)) == [job.job_id for job in jobs]
        assert monitor.get_all_jobs(JobInfo(slots=2), session_name="two") == []

    def test_session_name_is_checked(self, monitor: MonitoringSession) -> None:
        """A name that is no text is a mistake of the caller."""
        with pytest.raises(TypeError, match="session_name is 7"):
            monitor.get_all_jobs(session_name=7)  # type: ignore[arg-type]

    def test_waiting_in_a_session(self, system: FakeSystem, monitor: MonitoringSession) -> None:
        """A job that its own session has not given to the system yet is not there."""
        with Workflow(FakeContext(system, max_parallel=1)) as flow:
            first, second = flow.run("x"), flow.run("x")
            assert ids(monitor.get_all_jobs()) == [first.job_id]
            system.start(first.tasks[0].id)
            system.finish(first.tasks[0].id)
            first.wait()
            wait_until("the second is given to it", lambda: ids(monitor.get_all_jobs()) == [second.job_id])
            flow.kill_all()


class TestSystem:
    """Machines, queues and job categories."""

    def test_machines(self, system: FakeSystem, monitor: MonitoringSession) -> None:
        """All machines, or those of given names that are there, in the system's order."""
        system.machines = NODES
        assert monitor.get_all_machines() == NODES
        assert monitor.get_all_machines(["b", "c"]) == NODES[1:]
        assert monitor.get_all_machines({"b", "a"}) == NODES
        assert monitor.get_all_machines([]) == []

    def test_queues(self, system: FakeSystem, monitor: MonitoringSession) -> None:
        """All queues, or those of given names that are there."""
        assert monitor.get_all_queues() == []
        system.queues = [QueueInfo(name="long"), QueueInfo(name="short")]
        assert monitor.get_all_queues() == system.queues
        assert monitor.get_all_queues(["short", "none"]) == [QueueInfo(name="short")]

    def test_names_are_no_single_text(self, monitor: MonitoringSession) -> None:
        """A text in place of a list of texts is a mistake of the caller, not a list of letters."""
        for call in (monitor.get_all_machines, monitor.get_all_queues):
            with pytest.raises(TypeError, match="names is 'fake'"):
                call("fake")

    def test_job_categories(self, system: FakeSystem, monitor: MonitoringSession) -> None:
        """What the system lists, asked for anew every time."""
        assert monitor.get_all_job_categories() == ["fake"]
        system.categories = ("mpi", "gpu")
        assert monitor.get_all_job_categories() == ["mpi", "gpu"]


class TestSession:
    """Opening, closing, errors."""

    def test_contacts_the_system_when_opened(self, system: FakeSystem) -> None:
        """Making a context asks nothing; opening does, and what the system says is raised."""
        context = FakeContext(system)
        assert not system.calls
        system.fail("monitor", DrmCommunicationError("nobody there"))
        with pytest.raises(DrmCommunicationError, match="nobody there"):
            MonitoringSession(context)
        MonitoringSession(context).close()
        assert system.calls == {"monitor": 2}

    def test_errors_are_raised(self, system: FakeSystem, monitor: MonitoringSession) -> None:
        """What goes wrong in one call is raised by it; the next one asks again."""
        for call in (
            monitor.get_all_jobs,
            monitor.get_all_machines,
            monitor.get_all_queues,
            monitor.get_all_job_categories,
        ):
            system.fail("monitor", DrmCommunicationError("broke off"))
            with pytest.raises(DrmCommunicationError, match="broke off"):
                call()
            call()

    def test_closed(self, monitor: MonitoringSession) -> None:
        """A closed one refuses; its text says that it is closed, and closing again does nothing."""
        assert "open" in repr(monitor)
        monitor.close()
        monitor.close()
        assert "closed" in repr(monitor)
        for call in (
            monitor.get_all_jobs,
            monitor.get_all_machines,
            monitor.get_all_queues,
            monitor.get_all_job_categories,
        ):
            with pytest.raises(InvalidSessionError, match="open a new one"):
                call()

    def test_closes_after_an_exception(self, system: FakeSystem) -> None:
        """The end of a `with` block closes it, however the block ends; what runs goes on."""
        with Workflow(FakeContext(system)) as flow:
            job = flow.run("x")
            with pytest.raises(KeyError), MonitoringSession(FakeContext(system)) as monitor:
                raise KeyError
            with pytest.raises(InvalidSessionError):
                monitor.get_all_jobs()
            assert not job.state.ended
            flow.kill_all()

    def test_context_without_a_monitor(self) -> None:
        """A context that shows nothing of its system is refused by its name."""

        class Plain(FakeContext):
            name = "plain"
            monitor = Context.monitor

        with pytest.raises(UnsupportedOperationError, match="'plain' shows nothing"):
            MonitoringSession(Plain())

    def test_something_else_than_a_context(self) -> None:
        """A name in place of a context is refused at once."""
        with pytest.raises(TypeError, match="context is 'docker'"):
            MonitoringSession("docker")  # type: ignore[arg-type]

    def test_steps_beside_the_fake(self) -> None:
        """A job that ends in virtual time is seen until then."""
        system = FakeSystem({"x": Outcome(pending=5, duration=10)}, auto=False)
        with Workflow(FakeContext(system)) as flow, MonitoringSession(FakeContext(system)) as monitor:
            flow.run("x")
            seen = []
            for _ in range(3):
                system.advance(5)
                seen += [info.state for info in monitor.get_all_jobs()]
            assert seen == [JobState.RUNNING, JobState.RUNNING]


class TestValues:
    """MachineInfo and QueueInfo."""

    def test_json(self) -> None:
        """What is known stands in JSON under DRMAA2's names, and comes back; what is not known is left out."""
        machine = MachineInfo(name="a", available=True, load=1, phys_memory=2048, machine_os="LINUX")
        text = machine.to_json()
        assert text == '{"name":"a","available":true,"load":1.0,"physMemory":2048,"machineOs":"LINUX"}'
        assert MachineInfo.from_json(text) == machine
        assert MachineInfo.from_json(text.replace("machineOs", "machineOS")) == machine
        assert QueueInfo.from_json(QueueInfo(name="q").to_json()) == QueueInfo(name="q")

    def test_are_values(self) -> None:
        """They are equal and hash by content, cannot be changed, and are replaced with the same checks."""
        one = MachineInfo(name="a", cores=2)
        assert {one, MachineInfo(name="a", cores=2)} == {one}
        assert one.replace(cores=4) == MachineInfo(name="a", cores=4)
        with pytest.raises(AttributeError):
            one.cores = 3  # type: ignore[misc]
        with pytest.raises(TypeError, match="did you mean 'cores'"):
            one.replace(core=3)

    @pytest.mark.parametrize(
        ("fields", "error", "words"),
        [
            ({}, TypeError, "name"),
            ({"name": 1}, TypeError, "name is 1"),
            ({"name": "a", "cores": 0}, InvalidArgumentError, "cores is 0"),
            ({"name": "a", "load": -0.5}, InvalidArgumentError, "load is -0.5"),
            ({"name": "a", "load": float("nan")}, InvalidArgumentError, "load is nan"),
            ({"name": "a", "load": "1"}, TypeError, "load is '1'"),
            ({"name": "a", "load": True}, TypeError, "load is True"),
            ({"name": "a", "phys_memory": 1.5}, TypeError, "phys_memory"),
            ({"name": "a", "available": "yes"}, TypeError, "available"),
        ],
    )
    def test_are_checked(self, fields: dict[str, Any], error: type[Exception], words: str) -> None:
        """A wrong type and an impossible number are refused by field."""
        with pytest.raises(error, match=words):
            MachineInfo(**fields)


class TestProcesses:
    """This machine and its tasks."""

    def test_machine(self) -> None:
        """This machine is told in DRMAA2's terms, as the operating system counts."""
        with MonitoringSession(ProcessContext()) as monitor:
            (machine,) = monitor.get_all_machines()
            assert (monitor.get_all_queues(), monitor.get_all_job_categories()) == ([], [])
        with open("/proc/meminfo", encoding="ascii") as file:
            memory = {line.split(":")[0]: int(line.split()[1]) for line in file}
        assert (machine.name, machine.available) == (socket.gethostname(), True)
        assert (machine.cores, machine.phys_memory) == (os.cpu_count(), memory["MemTotal"])
        assert machine.virt_memory == memory["MemTotal"] + memory["SwapTotal"]
        assert machine.load is not None
        assert machine.load >= 0
        assert (machine.machine_os, machine.machine_os_version) == ("LINUX", platform.release())

    def test_job(self) -> None:
        """A task is told with its owner, its first process and when that was started."""
        before = datetime.now(UTC) - timedelta(seconds=1)
        with Workflow(ProcessContext()) as flow, MonitoringSession(ProcessContext()) as monitor:
            job = flow.run("sh", "-c", "echo $$; sleep 600 & sleep 600")
            pid = next(iter(job.stream()))
            (info,) = monitor.get_all_jobs(JobInfo(id=job.job_id))
            flow.kill_all()
        assert (info.job_owner, info.slots, info.extensions["pid"]) == (getpass.getuser(), 1, pid)
        assert info.dispatch_time is not None
        assert before <= info.dispatch_time <= datetime.now(UTC) + timedelta(seconds=1)

    def test_job_of_a_job(self) -> None:
        """A task of a program that is itself a task is a job of its own, and neither is told twice."""
        code = "from wfl import *; f = Workflow(); j = f.run('sleep', '600'); j.tasks[0].wait_started();"
        code += "print(j.job_id, flush=True); j.wait()"
        with Workflow(ProcessContext()) as flow, MonitoringSession(ProcessContext()) as monitor:
            outer = flow.run(sys.executable, "-c", code)
            inner = next(iter(outer.stream()))
            found = ids(monitor.get_all_jobs())
            flow.kill_all()
        assert [found.count(id) for id in (outer.job_id, inner)] == [1, 1]

    def test_what_a_job_left_behind(self) -> None:
        """A process that outlives its task in the background does not keep the task in the list."""
        with Workflow(ProcessContext()) as flow, MonitoringSession(ProcessContext()) as monitor:
            job = flow.run("sh", "-c", "sleep 600 & echo $!").wait()
            assert os.path.exists(f"/proc/{job.output()}")
            assert job.job_id not in ids(monitor.get_all_jobs())

    def test_other_processes_are_no_jobs(self) -> None:
        """A process without the mark of a task is not told, though it leads a session."""
        with (
            subprocess.Popen(["sleep", "600"], start_new_session=True) as other,
            MonitoringSession(ProcessContext()) as monitor,
        ):
            try:
                assert str(other.pid) not in [info.extensions["pid"] for info in monitor.get_all_jobs()]
            finally:
                other.kill()

    def test_jobs_of_a_session(self) -> None:
        """Processes do not bear their session's name, so that asking for it is refused."""
        with (
            MonitoringSession(ProcessContext()) as monitor,
            pytest.raises(UnsupportedOperationError, match="name of their session"),
        ):
            monitor.get_all_jobs(session_name="wfl")

    @pytest.mark.parametrize(
        ("name", "expected"), [("x86_64", "X64"), ("amd64", "X64"), ("aarch64", "ARM64"), ("riscv64", "riscv64")]
    )
    def test_architecture(self, name: str, expected: str) -> None:
        """What systems call an architecture becomes DRMAA2's name, where that has one."""
        assert host.architecture(name) == expected


DOCKER = {
    "Name": "node7",
    "NCPU": 16,
    "MemTotal": 25276514304,
    "OSType": "linux",
    "KernelVersion": "6.1.0",
    "Architecture": "x86_64",
}
RUNNING = {
    "Id": "4f6aa5fd",
    "Names": ["/wfl-ab-1"],
    "Image": "busybox",
    "Created": 1795254690,
    "State": "running",
    "Labels": {"wfl.key": "ab-1", "wfl.session": "night", "wfl.job": "ab-1"},
}


class TestContainers:
    """What a daemon tells, in DRMAA2's terms: recorded answers."""

    @pytest.fixture(autouse=True)
    def _needs_docker_py(self) -> None:
        pytest.importorskip("docker")

    def test_machine(self) -> None:
        """The daemon's machine; of another machine the load is not known, and swap is told by some alone."""
        from wfl.contexts.containers.monitor import machine

        found = machine(DOCKER, "unix:///run/docker.sock")
        assert found == MachineInfo(
            name="node7",
            available=True,
            cores=16,
            phys_memory=24684096,
            machine_os="LINUX",
            machine_os_version="6.1.0",
            machine_arch="X64",
        )
        assert machine({**DOCKER, "SwapTotal": 1024}, "unix:///s").virt_memory == 24684097

    @pytest.mark.parametrize(
        ("url", "here"), [("unix:///s", True), ("tcp://localhost:2376", False), ("ssh://user@host", False)]
    )
    def test_load(self, url: str, here: bool) -> None:  # noqa: FBT001 - a column
        """The load is known where the daemon is on this machine: behind a local socket, and of its name."""
        from wfl.contexts.containers.monitor import machine

        assert (machine({**DOCKER, "Name": socket.gethostname()}, url).load is not None) is here

    def test_silent_daemon(self) -> None:
        """What a daemon does not tell is None, not 0."""
        from wfl.contexts.containers.monitor import machine

        assert machine({}, "tcp://x") == MachineInfo(name=socket.gethostname(), available=True)

    def test_own_container(self) -> None:
        """A container of wfl's has its job's id; when it was started its list does not tell, so that is None."""
        from wfl.contexts.containers.monitor import job

        info = job(RUNNING, "node7")
        assert (info.id, info.state, info.allocated_machines) == ("ab-1", JobState.RUNNING, ("node7",))
        assert info.extensions == {"container_id": "4f6aa5fd", "image": "busybox", "session": "night"}
        assert info.submission_time == datetime.fromtimestamp(1795254690, UTC)
        assert (info.dispatch_time, info.job_owner) == (None, None)

    @pytest.mark.parametrize("labels", [{}, None])
    def test_other_container(self, labels: dict[str, str] | None) -> None:
        """A container of others has its name as id, and no session."""
        from wfl.contexts.containers.monitor import job

        info = job({**RUNNING, "Labels": labels, "Names": ["/web"], "State": "Paused"}, "node7")
        assert (info.id, info.state) == ("web", JobState.SUSPENDED)
        assert "session" not in info.extensions
        assert job({**RUNNING, "Labels": labels, "Names": None}, "node7").id == "4f6aa5fd"

    def test_images(self) -> None:
        """Images are told by their tags, or their digests; one without either cannot be asked for."""
        from wfl.contexts.containers.monitor import images

        listed: list[dict[str, Any]] = [
            {"RepoTags": ["b:2", "b:latest"], "RepoDigests": ["b@sha256:1"]},
            {"RepoTags": ["<none>:<none>"], "RepoDigests": ["a@sha256:2"]},
            {"RepoTags": None, "RepoDigests": None},
            {"RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"]},
        ]
        assert images(listed) == ["a@sha256:2", "b:2", "b:latest"]

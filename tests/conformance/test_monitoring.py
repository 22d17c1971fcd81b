"""MonitoringSession: jobs of all sessions, machines, queues and job categories of the system."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from wfl import (
    Capability,
    Context,
    InvalidSessionError,
    Job,
    JobInfo,
    JobState,
    MonitoringSession,
    TaskArray,
    Workflow,
)
from wfl.testing.conformance.site import Field, Site, Trait, needs

pytestmark = needs(Trait.MONITOR)


@pytest.fixture
def monitor(flow: Workflow) -> Iterator[MonitoringSession]:
    """An open monitoring session on the system of `flow`."""
    with MonitoringSession(context_of(flow)) as session:
        yield session


def context_of(flow: Workflow) -> Context:
    """The context that a workflow was opened with."""
    assert flow.session is not None
    return flow.session.context


def started(site: Site, flow: Workflow) -> Job:
    """A job that runs until it is killed."""
    job = flow.run(site.stay())
    job.tasks[0].wait_started(site.within(60))
    return job


def listed(monitor: MonitoringSession, *ids: str) -> list[JobInfo]:
    """What is told of these jobs."""
    return [info for info in monitor.get_all_jobs() if info.id in ids]


def test_running_job(site: Site, flow: Workflow, monitor: MonitoringSession) -> None:
    """A running job is listed once, under its own id, as RUNNING and on its machine; after its end it is not."""
    job = started(site, flow)
    own = job.info()
    assert own is not None
    (seen,) = listed(monitor, job.job_id)
    assert (seen.state, seen.allocated_machines) == (JobState.RUNNING, own.allocated_machines)
    job.kill().wait(site.within(60))
    site.until(lambda: not listed(monitor, job.job_id), "the job is listed no more")


def test_ended_job(site: Site, flow: Workflow, monitor: MonitoringSession) -> None:
    """A job that has ended is not listed, though its own session still knows it."""
    job = flow.run(site.fail(3)).wait(site.within(60))
    site.until(lambda: not listed(monitor, job.job_id), "the job is listed no more")
    assert [known.job_id for known in flow.jobs()] == [job.job_id]


def test_array(site: Site, flow: Workflow, monitor: MonitoringSession) -> None:
    """The elements of an array are listed one by one."""
    (array,) = flow.run_array(3, site.stay()).tasks
    assert isinstance(array, TaskArray)
    for element in array.tasks:
        element.wait_started(site.within(60))
    ids = [element.id for element in array.tasks]
    assert sorted(info.id for info in listed(monitor, *ids)) == sorted(ids)


@needs(Capability.SUSPEND)
def test_suspended_job(site: Site, flow: Workflow, monitor: MonitoringSession) -> None:
    """A suspended job is listed as SUSPENDED, and as RUNNING when it goes on."""
    job = started(site, flow).suspend()

    def seen() -> list[JobState]:
        return [info.state for info in listed(monitor, job.job_id)]

    site.until(lambda: seen() == [JobState.SUSPENDED], "it is listed as suspended")
    job.resume()
    site.until(lambda: seen() == [JobState.RUNNING], "it is listed as running")


@needs(Trait.EXECUTION)
def test_jobs_of_all_sessions(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """Jobs of every session are listed, whichever context the monitoring session was opened with."""
    one, two = make_flow(), make_flow()
    ids = [started(site, flow).job_id for flow in (one, two)]
    for flow in (one, two):
        with MonitoringSession(context_of(flow)) as monitor:
            assert {info.id for info in listed(monitor, *ids)} == {*ids}


@needs(Trait.EXECUTION)
def test_jobs_of_session(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """With a session's name only its jobs are listed, all of them; none for a name that nobody uses."""
    one, two = make_flow(), make_flow()
    jobs = {context_of(flow).session_name: started(site, flow).job_id for flow in (one, two)}
    with MonitoringSession(context_of(one)) as monitor:
        for name, id in jobs.items():
            assert [info.id for info in monitor.get_all_jobs(session_name=name)] == [id]
        assert monitor.get_all_jobs(session_name=Context.unique_session_name()) == []


def test_like(site: Site, flow: Workflow, monitor: MonitoringSession) -> None:
    """With a JobInfo those are listed that agree with it where it says something."""
    job = started(site, flow)
    assert [info.id for info in monitor.get_all_jobs(JobInfo(id=job.job_id))] == [job.job_id]
    running = monitor.get_all_jobs(JobInfo(state=JobState.RUNNING))
    assert job.job_id in [info.id for info in running]
    assert {info.state for info in running} == {JobState.RUNNING}
    assert monitor.get_all_jobs(JobInfo(id=job.job_id, state=JobState.DONE)) == []


def test_machines(site: Site, flow: Workflow, monitor: MonitoringSession) -> None:
    """Machines have names of their own, cores and memory; a job runs on some of them."""
    machines = monitor.get_all_machines()
    names = [machine.name for machine in machines]
    assert names
    assert len({*names}) == len(names)
    for machine in machines:
        assert machine.available is not None
        assert machine.cores is not None
        assert machine.cores >= 1
        assert machine.phys_memory is not None
        assert 1 << 16 <= machine.phys_memory < 1 << 40  # KiB: 64 MiB to 1 PiB
        assert machine.load is None or machine.load >= 0
    info = started(site, flow).info()
    assert info is not None
    assert {*info.allocated_machines} <= {*names}


def test_machines_by_name(monitor: MonitoringSession) -> None:
    """With names only the machines of these names are told; a name that no machine has is passed over."""
    first = monitor.get_all_machines()[0]
    assert [machine.name for machine in monitor.get_all_machines([first.name, "no such machine"])] == [first.name]
    assert monitor.get_all_machines([]) == []
    with pytest.raises(TypeError, match="names"):
        monitor.get_all_machines(first.name)


def test_queues(monitor: MonitoringSession) -> None:
    """Queues have names of their own; they can be chosen by name."""
    names = [queue.name for queue in monitor.get_all_queues()]
    assert len({*names}) == len(names)
    assert [queue.name for queue in monitor.get_all_queues([*names[:1], "no such queue"])] == names[:1]


@needs(Field("job_category"))
def test_job_categories(site: Site, flow: Workflow, monitor: MonitoringSession) -> None:
    """A job category that is listed is one that a job can have."""
    categories = monitor.get_all_job_categories()
    assert any(flow.run(site.succeed(), job_category=name).wait(site.within(60)).success() for name in categories)


def test_changes_nothing(site: Site, flow: Workflow) -> None:
    """What runs goes on when a monitoring session is closed, and can be seen by the next."""
    job = started(site, flow)
    for _ in range(2):
        with MonitoringSession(context_of(flow)) as monitor:
            assert len(listed(monitor, job.job_id)) == 1
    assert job.state is JobState.RUNNING


def test_closed(monitor: MonitoringSession) -> None:
    """After `close` every call is an InvalidSessionError; closing again does nothing."""
    monitor.close()
    monitor.close()
    for call in (
        monitor.get_all_jobs,
        monitor.get_all_machines,
        monitor.get_all_queues,
        monitor.get_all_job_categories,
    ):
        with pytest.raises(InvalidSessionError):
            call()


def test_without_a_workflow(site: Site) -> None:
    """A monitoring session needs no workflow, and no job that ever ran."""
    with MonitoringSession(site.open()) as monitor:
        assert monitor.get_all_machines()

"""JobInfo: what is known of a job."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from wfl import Capability, JobInfo, JobState, Workflow, shell
from wfl.testing.conformance.site import Field, Site, Trait, needs

SLACK = timedelta(seconds=2)
"""Clocks of this and the job's machine may differ by so much, and systems may round."""


def known(info: JobInfo | None) -> JobInfo:
    """The info, which is there."""
    assert info is not None
    return info


def test_info_of_running(site: Site, flow: Workflow) -> None:
    """A running job has no exit status, no finish time and no sub state yet."""
    job = flow.run(site.stay())
    job.tasks[0].wait_started(site.within(60))
    info = known(job.info())
    assert info.state is JobState.RUNNING
    assert (info.exit_status, info.finish_time, info.sub_state, info.terminating_signal) == (None,) * 4


def test_times(site: Site, flow: Workflow) -> None:
    """Submission, dispatch and finish are aware times, in that order and of now; wallclock time lies between."""
    before = datetime.now(UTC)
    info = known(flow.run(site.succeed()).wait().info())
    after = datetime.now(UTC)
    assert info.submission_time is not None
    assert info.dispatch_time is not None
    assert info.finish_time is not None
    assert before - SLACK <= info.submission_time <= info.dispatch_time + SLACK
    assert info.dispatch_time <= info.finish_time <= after + SLACK
    assert info.wallclock_time is not None
    assert timedelta(0) <= info.wallclock_time <= after - before + SLACK


@needs(Trait.EXECUTION)
def test_wallclock_time(flow: Workflow) -> None:
    """The wallclock time is how long the job ran."""
    info = known(flow.run("sleep", "1").wait().info())  # some systems tell times in whole seconds
    assert info.wallclock_time is not None
    assert info.wallclock_time >= timedelta(seconds=0.95)


@needs(Trait.EXECUTION, Capability.RUSAGE)
def test_cpu_time(flow: Workflow) -> None:
    """The CPU time is what the job used: much for a loop, little for a sleep."""
    busy = known(flow.run("awk", "BEGIN { for (i = 0; i < 3000000; i++) x += i }").wait().info())
    idle = known(flow.run("sleep", "0.2").wait().info())
    assert busy.cpu_time is not None
    assert idle.cpu_time is not None
    assert busy.cpu_time > timedelta(seconds=0.03)
    assert idle.cpu_time < busy.cpu_time


@needs(Trait.EXECUTION, Capability.RUSAGE)
def test_cpu_time_of_children(flow: Workflow) -> None:
    """The CPU time of the processes that a job started counts."""
    info = known(flow.run(shell("awk 'BEGIN { for (i = 0; i < 3000000; i++) x += i }'; true")).wait().info())
    assert info.cpu_time is not None
    assert info.cpu_time > timedelta(seconds=0.03)


@needs(Trait.EXECUTION, Capability.PEAK_MEMORY)
def test_peak_memory(site: Site, flow: Workflow) -> None:
    """The peak of the memory is told in the extensions, even where a system looks at it only now and then."""
    line = f'BEGIN {{ s = "x"; for (i = 0; i < 24; i++) s = s s; system("sleep {site.latency / 2}") }}'
    big, small = known(flow.run("awk", line).wait().info()), known(flow.run("true").wait().info())
    assert int(big.extensions["ru_maxrss"]) > int(small.extensions["ru_maxrss"]) + 10_000


def test_who_and_where(site: Site, flow: Workflow) -> None:
    """Owner, submitting machine, allocated machines and slots of a job that ran are known."""
    info = known(flow.run(site.succeed()).wait().info())
    assert info.job_owner
    assert info.submission_machine
    assert info.allocated_machines
    assert info.slots == 1


@needs(Field("min_slots"))
def test_slots(site: Site, flow: Workflow) -> None:
    """The slots of a job are what it asked for."""
    assert known(flow.run(site.succeed(), min_slots=2).wait().info()).slots == 2


def test_refused(site: Site, flow: Workflow) -> None:
    """A job that never ran has no exit status and no dispatch time; its annotation says why."""
    info = known(flow.run(site.refuse()).wait().info())
    assert (info.exit_status, info.dispatch_time, info.sub_state) == (None, None, "launch_failure")
    assert site.reason in (info.annotation or "")


def test_array_info(site: Site, flow: Workflow) -> None:
    """The info of an array covers its elements: from the first start to the last end, slots together."""
    job = flow.run_array(3, site.succeed()).wait()
    info, infos = known(job.info()), job.infos()
    assert info.dispatch_time == min(one.dispatch_time for one in infos if one.dispatch_time)
    assert info.finish_time == max(one.finish_time for one in infos if one.finish_time)
    assert (info.slots, info.exit_status, info.id) == (3, 0, job.job_id)


def test_array_info_of_failure(site: Site, flow: Workflow) -> None:
    """The info of a failed array has exit status and sub state of the first element that failed."""
    info = known(flow.run_array(2, site.fail(5)).wait().info())
    assert (info.state, info.exit_status, info.sub_state) == (JobState.FAILED, 5, "exited")


def test_info_is_a_value(site: Site, flow: Workflow) -> None:
    """A JobInfo is a frozen value: equal when read again after the end, and the same through JSON."""
    job = flow.run(site.fail(2)).wait()
    info = known(job.info())
    assert info == job.info()
    assert JobInfo.from_json(info.to_json()) == info
    assert hash(info) == hash(known(job.info()))


def test_filter(site: Site, flow: Workflow) -> None:
    """The session lists the jobs that agree with a JobInfo where it says something."""
    assert flow.session is not None
    good, bad = flow.run(site.succeed()).wait(), flow.run(site.fail(7)).wait()
    found = flow.session.get_jobs(JobInfo(exit_status=7))
    assert [task.id for task in found] == [bad.job_id]
    assert [task.id for task in flow.session.get_jobs(JobInfo(state=JobState.DONE))] == [good.job_id]


def test_repr(site: Site, flow: Workflow) -> None:
    """Jobs, tasks and workflows show id and state when printed."""
    job = flow.run(site.succeed()).wait()
    assert job.job_id in repr(job)
    assert job.job_id in repr(job.tasks[0])
    assert "done" in repr(job.tasks[0])
    assert "open" in repr(flow)

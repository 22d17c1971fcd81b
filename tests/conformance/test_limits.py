"""Limits of time, number and resources."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from wfl import InvalidArgumentError, JobInfo, JobState, UnsupportedAttributeError, Workflow, shell
from wfl.testing.conformance.site import Field, Site, Trait, needs, quoted
from wfl.testing.conformance.test_arrays import most_at_once


def limits(**values: float) -> dict[str, float]:
    """Resource limits."""
    return values


def known(info: JobInfo | None) -> JobInfo:
    """The info, which is there."""
    assert info is not None
    return info


@needs(Field("resource_limits"), Trait.CLOCK)
def test_wallclock_time(site: Site, flow: Workflow) -> None:
    """A job that takes longer than its WALLCLOCK_TIME is ended: FAILED, sub state timeout (design point 15)."""
    begin = time.monotonic()
    job = flow.run(site.stay(), resource_limits=limits(WALLCLOCK_TIME=1)).wait(site.within(60))
    info = known(job.info())
    assert (info.state, info.sub_state) == (JobState.FAILED, "timeout")
    assert info.annotation
    assert time.monotonic() - begin >= 1


@needs(Field("resource_limits"), Trait.CLOCK)
def test_within_wallclock_time(site: Site, flow: Workflow) -> None:
    """A job that ends before its WALLCLOCK_TIME is not touched by it."""
    info = known(flow.run(site.succeed(), resource_limits=limits(WALLCLOCK_TIME=site.seconds(300))).wait().info())
    assert (info.state, info.sub_state) == (JobState.DONE, "exited")


@needs(Field("resource_limits"), Trait.SHARED)
def test_wallclock_asks_first(site: Site, flow: Workflow, shared: Path) -> None:
    """At its WALLCLOCK_TIME a job is asked to end by SIGTERM before it is killed, and may save its work (design point
    21).
    """
    saved = shared / "saved"
    line = f"trap 'touch {quoted(saved)}; exit 0' TERM; while :; do sleep 0.02; done"
    info = known(flow.run(shell(line), resource_limits=limits(WALLCLOCK_TIME=1)).wait(site.within(60)).info())
    assert saved.exists()
    assert (info.state, info.sub_state) == (JobState.FAILED, "timeout")


@needs(Field("resource_limits"))
def test_wallclock_of_elements(site: Site, flow: Workflow) -> None:
    """Each element of an array has the WALLCLOCK_TIME for itself, from its own start."""
    job = flow.run_array(2, site.stay(), max_parallel=1, resource_limits=limits(WALLCLOCK_TIME=0.5))
    job.wait(site.within(60))
    assert [info.sub_state for info in job.infos()] == ["timeout"] * 2


@needs(Field("start_time"))
def test_start_time(site: Site, flow: Workflow) -> None:
    """A job with a start time waits for it, QUEUED, and is run then."""
    start = datetime.now(UTC) + timedelta(seconds=1)
    job = flow.run(site.succeed(), start_time=start)
    assert job.state is JobState.QUEUED
    info = known(job.wait(site.within(60)).info())
    assert info.state is JobState.DONE
    assert info.dispatch_time is not None
    assert info.dispatch_time >= start - timedelta(milliseconds=50)


@needs(Field("start_time"))
def test_start_time_passed(site: Site, flow: Workflow) -> None:
    """A start time that has passed means now."""
    assert flow.run(site.succeed(), start_time=datetime.now(UTC) - timedelta(days=1)).success()


@needs(Field("start_time"))
def test_kill_before_start_time(site: Site, flow: Workflow) -> None:
    """A job that waits for its start time can be killed, and never runs."""
    job = flow.run(site.succeed(), start_time=datetime.now(UTC) + timedelta(hours=1)).kill().wait(site.within(30))
    info = known(job.info())
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "cancelled", None)


@needs(Field("deadline_time"), Trait.CLOCK)
def test_deadline(site: Site, flow: Workflow) -> None:
    """A job that has not ended at its deadline is ended: FAILED, sub state timeout."""
    deadline = datetime.now(UTC) + timedelta(seconds=1)
    info = known(flow.run(site.stay(), deadline_time=deadline).wait(site.within(60)).info())
    assert (info.state, info.sub_state) == (JobState.FAILED, "timeout")
    assert datetime.now(UTC) >= deadline


@needs(Field("deadline_time"))
def test_deadline_in_the_queue(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """A job that still waits at its deadline ends as timeout and never runs."""
    flow = make_flow(max_parallel=1)
    flow.run(site.stay())
    job = flow.run(site.succeed(), deadline_time=datetime.now(UTC) + timedelta(seconds=0.3)).wait(site.within(60))
    info = known(job.info())
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "timeout", None)


@needs(Trait.EXECUTION)
def test_context_max_parallel(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """`max_parallel` of the context: never more of its tasks run at once, single ones and arrays together (design
    point 12).
    """
    flow = make_flow(max_parallel=2)
    duration = str(0.1 * site.latency)
    job = flow.run("sleep", duration).resubmit(3).run_array(4, "sleep", duration).synchronize()
    assert not job.any_failed()
    assert most_at_once(job) == 2


def test_queue_is_fair(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """Tasks that queue here start in the order of submission; they are QUEUED until then."""
    flow = make_flow(max_parallel=1)
    first = flow.run(site.stay())
    job = flow.run(site.succeed()).resubmit(4)
    assert {info.state for info in job.infos()} == {JobState.QUEUED}
    first.kill()
    infos = job.synchronize(site.within(60)).infos()
    assert {info.state for info in infos} == {JobState.DONE}
    assert all(one.dispatch_time <= two.dispatch_time for one, two in pairwise(infos))  # type: ignore[operator]


def test_workflows_of_one_context_share(site: Site) -> None:
    """Two workflows of one context share its `max_parallel`."""
    context = site.open(max_parallel=1)
    with Workflow(context) as one, Workflow(context) as two:
        first = one.run(site.stay())
        job = two.run(site.succeed())
        assert job.state is JobState.QUEUED
        first.kill()
        assert job.wait(site.within(60)).state is JobState.DONE


@needs(Field("min_slots"))
def test_min_slots(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """A task counts against `max_parallel` with its `min_slots`."""
    flow = make_flow(max_parallel=3)
    first = flow.run(site.stay(), min_slots=2)
    wide, narrow = flow.run(site.succeed(), min_slots=2), flow.run(site.succeed())
    assert wide.state is JobState.QUEUED
    first.kill()
    assert wide.run(site.succeed()).synchronize(site.within(60)).any_failed() is False
    assert narrow.wait(site.within(60)).state is JobState.DONE


@needs(Field("min_slots"))
def test_more_slots_than_there_are(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """A task with more `min_slots` than `max_parallel` could never start and is refused."""
    job = make_flow(max_parallel=2).run(site.succeed(), min_slots=3)
    assert isinstance(job.last_error, InvalidArgumentError)
    assert "min_slots" in str(job.last_error)
    assert job.state is JobState.FAILED


def rlimit(flow: Workflow, line: str, **values: float) -> JobInfo:
    """The end of a job under resource limits."""
    job = flow.run(shell(line), resource_limits=limits(**values))
    if isinstance(job.last_error, UnsupportedAttributeError):
        import pytest

        pytest.skip(f"not applicable: {job.last_error}")
    return known(job.wait().info())


@needs(Trait.EXECUTION, Field("resource_limits"))
def test_cpu_time(flow: Workflow) -> None:
    """A job that uses more than its CPU_TIME is ended by a signal."""
    info = rlimit(flow, "while :; do :; done", CPU_TIME=1)
    assert info.state is JobState.FAILED
    assert info.terminating_signal in {"SIGXCPU", "SIGKILL"}


@needs(Trait.EXECUTION, Field("resource_limits"))
def test_open_files(flow: Workflow) -> None:
    """OPEN_FILES is the number of descriptors that a job may have."""
    assert rlimit(flow, 'test "$(ulimit -n)" = 50', OPEN_FILES=50).exit_status == 0


@needs(Trait.SHARED, Field("resource_limits"))
def test_file_size(flow: Workflow, shared: Path) -> None:
    """FILE_SIZE (KiB) bounds the files that a job writes."""
    line = f"dd if=/dev/zero of={quoted(shared / 'big')} bs=1024 count=100 2>/dev/null"
    assert rlimit(flow, line, FILE_SIZE=10).state is JobState.FAILED
    assert (shared / "big").stat().st_size <= 10 * 1024


@needs(Trait.EXECUTION, Field("resource_limits"))
def test_virtual_memory(flow: Workflow) -> None:
    """VIRTUAL_MEMORY (KiB) bounds the address space: a job that asks for more does not get it."""
    line = "dd if=/dev/zero of=/dev/null bs=300M count=1 2>/dev/null"
    assert rlimit(flow, line, VIRTUAL_MEMORY=100_000).exit_status != 0

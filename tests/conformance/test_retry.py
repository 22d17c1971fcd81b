"""Trying again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from wfl import Backoff, Capability, InvalidArgumentError, JobState, Task, TaskArray, Workflow, shell
from wfl.testing.conformance.site import Site, Trait, needs, quoted

NTH = "echo x >> {}; [ $(wc -l < {}) -ge {} ] || exit 9"
"""A job that ends well at its n-th attempt."""


def nth(path: Path, n: int) -> str:
    """Line of such a job."""
    return NTH.format(quoted(path), quoted(path), n)


def only(tasks: Sequence[Task | TaskArray]) -> Task:
    """The one task in a list."""
    (task,) = tasks
    assert isinstance(task, Task)
    return task


def test_good_job(site: Site, flow: Workflow) -> None:
    """A job that is DONE is not submitted again."""
    job = flow.run(site.succeed()).retry(5, backoff=0)
    assert job.success()
    assert len(only(job.tasks).attempts) == 1


def test_exhausted(site: Site, flow: Workflow) -> None:
    """A job that always fails is tried once and then `times` more; the last attempt is waited for and FAILED."""
    job = flow.run(site.fail(4)).retry(3, backoff=0)
    task = only(job.tasks)
    assert task.state is JobState.FAILED
    assert [attempt.info().exit_status for attempt in task.attempts] == [4] * 4


def test_attempts_are_jobs(site: Site, flow: Workflow) -> None:
    """Each attempt is a job with an id of its own; the task shows the latest, and remains one task of the Job."""
    job = flow.run(site.fail(1))
    first = job.job_id
    task = only(job.retry(2, backoff=0).tasks)
    ids = [attempt.id for attempt in task.attempts]
    assert ids[0] == first
    assert len(set(ids)) == 3
    assert job.job_id == task.id == ids[-1]


@needs(Trait.SHARED)
def test_until_done(flow: Workflow, shared: Path) -> None:
    """A job that succeeds at the third attempt is DONE, after exactly three."""
    job = flow.run(shell(nth(shared / "count", 3))).retry(10, backoff=0)
    assert job.success()
    assert [attempt.info().exit_status for attempt in only(job.tasks).attempts] == [9, 9, 0]
    assert (shared / "count").read_text() == "x\n" * 3


@needs(Trait.SHARED)
def test_then_after_retry(flow: Workflow, shared: Path) -> None:
    """Verbs after `retry` see its result: what failed at first and succeeded then is a success."""
    words: list[str] = []
    job = flow.run(shell(nth(shared / "count", 2))).retry(2, backoff=0)
    job.on_failure(lambda _: words.append("failure")).on_success(lambda _: words.append("success"))
    assert words == ["success"]
    assert not job.has_any_failed()
    assert job.raise_for_status() is job


@needs(Trait.SHARED, Capability.OUTPUT)
def test_output_of_attempts(flow: Workflow, shared: Path) -> None:
    """The outputs of all attempts are kept apart; the task gives the latest."""
    line = f"echo x >> {quoted(shared / 'n')}; wc -l < {quoted(shared / 'n')}; exit 1"
    job = flow.run(shell(line)).retry(2, backoff=0)
    assert [attempt.output().strip() for attempt in only(job.tasks).attempts] == ["1", "2", "3"]
    assert job.output().strip() == "3"


def test_zero_times(site: Site, flow: Workflow) -> None:
    """`retry(0)` waits and tries nothing again; a negative number is refused at once."""
    job = flow.run(site.fail(1)).retry(0)
    assert job.state is JobState.FAILED
    assert len(only(job.tasks).attempts) == 1
    with pytest.raises(InvalidArgumentError, match="times"):
        job.retry(-1)


def test_when_sub_state(site: Site, flow: Workflow) -> None:
    """`when` with sub states retries only those ends (design point 16)."""
    exited = flow.run(site.fail(1)).retry(2, backoff=0, when={"timeout", "preempted"})
    assert len(only(exited.tasks).attempts) == 1
    again = flow.run(site.fail(1)).retry(2, backoff=0, when="exited")
    assert len(only(again.tasks).attempts) == 3


def test_when_unknown(site: Site, flow: Workflow) -> None:
    """A sub state that does not exist is refused at once, with the nearest right name."""
    with pytest.raises(InvalidArgumentError, match="timeout"):
        flow.run(site.fail(1)).retry(1, when={"timeoutt"})


def test_when_function(site: Site, flow: Workflow) -> None:
    """`when` as a function is asked with the failed task before each further attempt (design point 16)."""
    statuses: list[int | None] = []

    def ask(task: Task) -> bool:
        statuses.append(task.info().exit_status)
        return len(statuses) < 2

    job = flow.run(site.fail(6)).retry(5, backoff=0, when=ask)
    assert statuses == [6, 6]
    assert len(only(job.tasks).attempts) == 2


@needs(Trait.CLOCK)
def test_backoff(site: Site, flow: Workflow) -> None:
    """`backoff` is waited for before each further attempt, longer each time up to the maximum."""
    begin = time.monotonic()
    job = flow.run(site.fail(1)).retry(3, backoff=Backoff(initial=0.1, factor=2, maximum=0.2, jitter=0))
    assert time.monotonic() - begin >= 0.5
    assert len(only(job.tasks).attempts) == 4


def test_refused_is_retried(site: Site, flow: Workflow) -> None:
    """A failed submission is retried like any failure."""
    job = flow.run(site.refuse()).retry(2, backoff=0)
    assert len(only(job.tasks).attempts) == 3
    assert len(job.errors) >= 1


@needs(Trait.SHARED)
def test_failed_elements_only(flow: Workflow, shared: Path) -> None:
    """`retry_any_failed` tries failed array elements again and leaves those alone that are DONE."""
    ran = shared / "ran"
    line = f"echo $TASK_ID >> {quoted(ran)}; if [ $TASK_ID = 2 ]; then {nth(shared / 'count', 2)}; fi"
    job = flow.run_array(3, shell(line)).retry_any_failed(3, backoff=0)
    assert not job.any_failed()
    assert sorted(ran.read_text().split()) == ["1", "2", "2", "3"]


@needs(Trait.SHARED)
def test_all_kinds_in_parallel(flow: Workflow, shared: Path) -> None:
    """`retry_any_failed` waits for single tasks and arrays and retries all that failed, side by side."""
    job = flow.run(shell(nth(shared / "a", 2))).run_array(1, shell(nth(shared / "b", 3))).run("true")
    job.retry_any_failed(5, backoff=0.05)
    assert not job.any_failed()
    assert [info.exit_status for info in job.infos()] == [0, 0, 0]


def test_retry_of_killed(site: Site, flow: Workflow) -> None:
    """A killed job can be excluded from retries by its sub state."""
    job = flow.run(site.stay())
    job.tasks[0].wait_started(site.within(60))
    job.kill().retry(3, backoff=0, when={"timeout", "exited"})
    assert len(only(job.tasks).attempts) == 1

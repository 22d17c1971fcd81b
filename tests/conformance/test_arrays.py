"""Arrays: many elements as one task, each with an index."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from wfl import Capability, InvalidArgumentError, Job, JobState, JobTemplate, TaskArray, Workflow, shell
from wfl.testing.conformance.site import Site, Trait, needs, quoted


def array_of(job: Job) -> TaskArray:
    """The array that is the Job's last task."""
    array = job.tasks[-1]
    assert isinstance(array, TaskArray)
    return array


def most_at_once(job: Job) -> int:
    """How many of these tasks ran at the same time, by their own times."""
    changes = []
    for info in job.infos():
        assert info.dispatch_time is not None
        assert info.finish_time is not None
        changes += [(info.dispatch_time, 1), (info.finish_time, -1)]
    running = highest = 0
    for _, change in sorted(changes):
        running += change
        highest = max(highest, running)
    return highest


def test_number(site: Site, flow: Workflow) -> None:
    """A number n means the indexes 1 … n; the array is one task of the Job."""
    job = flow.run_array(4, site.succeed())
    assert [task.index for task in array_of(job)] == [1, 2, 3, 4]
    assert len(job.tasks) == 1
    assert job.success()


def test_range(site: Site, flow: Workflow) -> None:
    """A range means what it means in Python: the end is not in it, 0 may be, steps are kept."""
    for indexes in (range(3), range(1, 2), range(2, 11, 3)):
        job = flow.run_array(indexes, site.succeed())
        assert [task.index for task in array_of(job)] == list(indexes)
        assert job.success()


@pytest.mark.parametrize("indexes", [0, -3, range(0), range(5, 1), range(5, 1, -1), range(-2, 3)])
def test_impossible_indexes(site: Site, flow: Workflow, indexes: int | range) -> None:
    """Empty, reversed and negative ranges are refused at once; nothing is submitted."""
    with pytest.raises(InvalidArgumentError, match="indexes"):
        flow.run_array(indexes, site.succeed())
    assert flow.jobs() == []


def test_ids(site: Site, flow: Workflow) -> None:
    """The array and each element have ids of their own, by which the session finds the array again."""
    job = flow.run_array(5, site.succeed())
    array = array_of(job)
    assert len({array.id, *(task.id for task in array)}) == 6
    assert flow.session is not None
    assert [task.id for task in flow.session.get_job_array(array.id)] == [task.id for task in array]


def test_one_element(site: Site, flow: Workflow) -> None:
    """An array of one element is an array."""
    job = flow.run_array(1, site.fail(3))
    assert len(array_of(job)) == 1
    assert (job.exit_status(), job.state) == (3, JobState.FAILED)


@needs(Trait.EXECUTION)
def test_one_fails(flow: Workflow) -> None:
    """An array of which one element failed has FAILED; its exit status is that of the first that is not 0."""
    job = flow.run_array(4, shell('test "$TASK_ID" != 3 || exit 77')).wait()
    assert (job.state, job.exit_status(), job.success()) == (JobState.FAILED, 77, False)
    assert [task.index for task in job.failed()] == [3]
    assert [info.exit_status for info in job.infos()] == [0, 0, 77, 0]


def test_state_while_it_runs(site: Site, flow: Workflow) -> None:
    """An array of which some elements still run is RUNNING, not ended, though others have failed."""
    job = flow.run_array(3, site.stay())
    array = array_of(job)
    array.wait_started(site.within(60))
    array[0].terminate()
    array[0].wait_terminated(site.within(30))
    assert job.state is JobState.RUNNING
    assert job.any_failed()
    assert job.info() is not None
    assert job.info().exit_status is None  # type: ignore[union-attr] # checked above


@needs(Trait.EXECUTION, Capability.OUTPUT)
def test_all_once(site: Site, flow: Workflow) -> None:
    """Hundreds of elements run each exactly once, each with its own index."""
    count = site.many(300)
    outputs = flow.run_array(count, shell("echo $TASK_ID")).outputs()
    assert list(outputs.values()) == [str(index) for index in range(1, count + 1)]


@needs(Trait.EXECUTION)
def test_max_parallel(site: Site, flow: Workflow) -> None:
    """`max_parallel` of an array: never more elements at once, and as many where there is time for it."""
    long = str(0.2 * site.latency)  # slow systems tell times in whole seconds
    job = flow.run_array(12, "sleep", long, max_parallel=3).wait()
    assert job.state is JobState.DONE
    assert 1 < most_at_once(job) <= 3


@needs(Trait.EXECUTION)
def test_one_after_another(site: Site, flow: Workflow) -> None:
    """With `max_parallel=1` elements run one after another, in order of their indexes."""
    long = str(0.15 * site.latency)  # slow systems tell times in whole seconds
    job = flow.run_array(5, "sleep", long, max_parallel=1).wait()
    begins = [info.dispatch_time for info in job.infos()]
    assert most_at_once(job) == 1
    assert all(one is not None and two is not None and one < two for one, two in pairwise(begins))


def test_max_parallel_of_impossible(site: Site, flow: Workflow) -> None:
    """`max_parallel` of 0 or less is refused at once."""
    for number in (0, -1):
        with pytest.raises(InvalidArgumentError, match="max_parallel"):
            flow.run_array(3, site.succeed(), max_parallel=number)


@needs(Trait.SHARED)
def test_elements_run_together(flow: Workflow, shared: Path) -> None:
    """Without a limit elements run side by side: three that wait for each other all end."""
    line = f"touch {quoted(shared)}/$TASK_ID; until [ $(ls {quoted(shared)} | wc -l) -ge 3 ]; do sleep 0.02; done"
    assert flow.run_array(3, shell(line)).success()


def test_defaults_apply(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """The default template and placeholders apply to arrays as to single tasks."""
    flow = make_flow(default_template=JobTemplate(job_name="default-$DRMAA2_INDEX$"))
    job = flow.run_array(3, site.succeed())
    assert [task.template.job_name for task in array_of(job)] == ["default-1", "default-2", "default-3"]


def test_refused_array(site: Site, flow: Workflow) -> None:
    """An array that cannot be started: every element has FAILED with launch_failure, and it is an error of the Job."""
    job = flow.run_array(3, site.refuse())
    assert job.last_error is not None
    assert [info.sub_state for info in job.infos()] == ["launch_failure"] * 3
    assert job.wait().state is JobState.FAILED


def test_retry_array(site: Site, flow: Workflow) -> None:
    """A retried element stays the same element: the array keeps its size, its order and its indexes."""
    job = flow.run_array(3, site.fail(1)).retry(1, backoff=0)
    array = array_of(job)
    assert [task.index for task in array] == [1, 2, 3]
    assert [len(task.attempts) for task in array] == [2, 2, 2]
    assert len(job.tasks) == 1


def test_two_arrays(site: Site, flow: Workflow) -> None:
    """A Job may hold several arrays and single tasks; bulk verbs cover all elements in order."""
    job = flow.run_array(2, site.succeed()).run(site.fail(1)).run_array(2, site.fail(2)).synchronize()
    assert [info.exit_status for info in job.infos()] == [0, 0, 1, 2, 2]
    assert len(job.failed()) == 3


def test_array_in_list(site: Site, flow: Workflow) -> None:
    """`Workflow.jobs` gives an array back as one Job with one array, and the session lists its elements."""
    flow.run_array(3, site.succeed()).wait()
    (job,) = flow.jobs()
    assert len(array_of(job)) == 3
    assert flow.session is not None
    assert len(flow.session.get_jobs()) == 3

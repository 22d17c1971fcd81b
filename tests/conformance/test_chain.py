"""The chain: every verb on a single task, an array, a matrix, a failed submission and an empty Job."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from wfl import (
    InvalidStateError,
    Job,
    JobFailedError,
    JobState,
    JobTemplate,
    Notifier,
    Observer,
    Replacement,
    Task,
    TaskArray,
    TimeoutError,
    WflError,
    Workflow,
)
from wfl.testing.conformance.site import Site, Trait, needs

GOOD = ("single", "array", "matrix")
BAD = ("failing single", "failing array", "failing matrix", "refused")
Make = Callable[[Workflow, Site], Job]


def matrix(flow: Workflow, template: JobTemplate) -> Job:
    """A Job of two tasks by run_matrix."""
    return flow.run_matrix(template.replace(job_name="name-N"), Replacement("N", [1, 2], ["job_name"]))


KINDS: dict[str, Make] = {
    "single": lambda flow, site: flow.run(site.succeed()),
    "array": lambda flow, site: flow.run_array(2, site.succeed()),
    "matrix": lambda flow, site: matrix(flow, site.succeed()),
    "failing single": lambda flow, site: flow.run(site.fail(3)),
    "failing array": lambda flow, site: flow.run_array(2, site.fail(3)),
    "failing matrix": lambda flow, site: matrix(flow, site.fail(3)),
    "refused": lambda flow, site: flow.run(site.refuse()),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of Job once."""
    return str(request.param)


@pytest.fixture
def job(kind: str, common: Workflow, site: Site) -> Job:
    """A Job of this kind, just submitted."""
    return KINDS[kind](common, site)


def elements(job: Job) -> list[Task]:
    """Single tasks and array elements."""
    return [part for task in job.tasks for part in (list(task.tasks) if isinstance(task, TaskArray) else [task])]


def test_wait(kind: str, job: Job) -> None:
    """`wait` waits for the last task: single, array and failed submission alike."""
    last = job.wait().tasks[-1]
    assert last.state is (JobState.DONE if kind in GOOD else JobState.FAILED)
    assert job.state is last.state


def test_state_by_reading(site: Site, kind: str, job: Job) -> None:
    """Reading `state` never blocks and comes to the end by itself; a good job never shows as FAILED."""
    seen: list[JobState] = []

    def look() -> bool:
        seen.append(job.state)
        return seen[-1].ended

    site.until(look, "the job ends")
    assert (JobState.FAILED in seen) == (kind in BAD)


def test_synchronize(kind: str, job: Job) -> None:
    """`synchronize` waits for all tasks and array elements."""
    states = {task.state for task in elements(job.synchronize())}
    assert states == {JobState.DONE if kind in GOOD else JobState.FAILED}


def test_progress(kind: str, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """`synchronize(progress=True)` waits as ever; without a terminal or notebook it draws nothing."""
    states = {task.state for task in elements(job.synchronize(progress=True))}
    assert states == {JobState.DONE if kind in GOOD else JobState.FAILED}
    assert capsys.readouterr() == ("", "")


def test_then(job: Job) -> None:
    """`then(f)` waits and calls f once, with the last task, however it ended."""
    calls: list[Any] = []
    job.then(calls.append)
    assert calls == [job.tasks[-1]]
    assert calls[0].state.ended


def test_on_success(kind: str, job: Job) -> None:
    """`on_success(f)` calls f with the last task if that is DONE, arrays included, else not."""
    calls: list[Any] = []
    job.on_success(calls.append)
    assert calls == ([job.tasks[-1]] if kind in GOOD else [])


def test_on_failure(kind: str, job: Job) -> None:
    """`on_failure(f)` calls f with the last task if that FAILED; a failed submission counts."""
    calls: list[Any] = []
    job.on_failure(calls.append)
    assert calls == ([job.tasks[-1]] if kind in BAD else [])


def test_success_and_failure_in_any_order(kind: str, job: Job) -> None:
    """`on_failure` and `on_success` may follow each other in any order and as often as one likes."""
    words: list[str] = []
    job.on_failure(lambda _: words.append("failure")).on_success(lambda _: words.append("success"))
    job.on_success(lambda _: words.append("success")).on_failure(lambda _: words.append("failure"))
    assert words == (["success"] * 2 if kind in GOOD else ["failure"] * 2)


def test_then_run(site: Site, job: Job) -> None:
    """`then_run` submits after the end of the last task, however that ended."""
    before = job.tasks[-1]
    job.then_run(site.succeed(), job_name="next")
    assert before.state.ended
    assert job.template is not None
    assert (job.template.job_name, job.success()) == ("next", True)


def test_on_success_run(site: Site, kind: str, job: Job) -> None:
    """`on_success_run` submits if the last task is DONE, else the Job stays as it is."""
    count = len(job.tasks)
    job.on_success_run(site.succeed())
    assert len(job.tasks) == count + (kind in GOOD)


def test_on_failure_run(site: Site, kind: str, job: Job) -> None:
    """`on_failure_run` submits if the last task FAILED, else the Job stays as it is."""
    count = len(job.tasks)
    job.on_failure_run(site.succeed())
    assert len(job.tasks) == count + (kind in BAD)
    assert job.success()


def test_then_run_array(site: Site, job: Job) -> None:
    """`then_run_array` submits an array after the end of the last task."""
    before = job.tasks[-1]
    array = job.then_run_array(3, site.succeed()).tasks[-1]
    assert before.state.ended
    assert isinstance(array, TaskArray)
    assert len(array.tasks) == 3
    assert job.success()


def test_chain_of_three(site: Site, flow: Workflow) -> None:
    """A chain reads as it runs: the second step after the first, the handler of the failure, not that of success."""
    words: list[str] = []
    job = (
        flow.run(site.succeed())
        .on_success_run(site.fail(13))
        .on_error(lambda _: words.append("error"))
        .on_success(lambda _: words.append("success"))
        .on_failure(lambda task: words.append(f"failure {task.info().exit_status}"))
        .on_failure_run(site.succeed())
    )
    assert words == ["failure 13"]
    assert job.success()
    assert [task.state for task in elements(job)] == [JobState.DONE, JobState.FAILED, JobState.DONE]


def test_then_after_timeout(site: Site, flow: Workflow) -> None:
    """A time-out does not end a job: the verbs after it wait as ever."""
    calls: list[Any] = []
    job = flow.run(site.stay()).wait(timeout=0.05)
    job.kill().then(calls.append)
    assert calls == job.tasks
    assert isinstance(job.errors[0], TimeoutError)


def test_function_raises(site: Site, flow: Workflow) -> None:
    """What a function given to `then` raises reaches the caller, and the Job can be used on."""
    job = flow.run(site.succeed())
    with pytest.raises(ZeroDivisionError):
        job.then(lambda _: 1 / 0)
    assert job.then_run(site.succeed()).success()


def test_on_error(kind: str, job: Job) -> None:
    """`on_error(f)` calls f with the latest error of the Job; a job that failed is no error, a failed submission is."""
    calls: list[Exception] = []
    job.synchronize().on_error(calls.append)
    assert len(calls) == (kind == "refused")
    assert all(isinstance(error, WflError) for error in calls)


def test_on_error_raise(kind: str, job: Job) -> None:
    """`on_error_raise` raises the error of a failed submission, and nothing for a job that merely failed."""
    if kind == "refused":
        with pytest.raises(WflError):
            job.on_error_raise()
    else:
        assert job.synchronize().on_error_raise() is job


def test_do(job: Job) -> None:
    """`do(f)` calls f with the last task at once."""
    calls: list[Any] = []
    assert job.do(calls.append) is job
    assert calls == [job.tasks[-1]]


def test_do_does_not_wait(site: Site, flow: Workflow) -> None:
    """`do(f)` does not wait for the end."""
    states: list[JobState] = []
    flow.run(site.stay()).do(lambda task: states.append(task.state))
    assert not states[0].ended


def test_for_each(job: Job) -> None:
    """`for_each(f)` calls f for every task and array element, ended, in order of submission."""
    seen: list[tuple[str, bool]] = []
    job.resubmit().for_each(lambda task: seen.append((task.id, task.state.ended)))
    assert seen == [(task.id, True) for task in elements(job)]
    assert len(seen) > 1


def test_for_all(job: Job) -> None:
    """`for_all(f)` calls f for every task and array element, in threads, each after its end."""
    seen: list[tuple[str, bool]] = []
    job.resubmit().for_all(lambda task: seen.append((task.id, task.state.ended)))
    assert sorted(seen) == sorted((task.id, True) for task in elements(job))


def test_for_all_is_parallel(site: Site, flow: Workflow) -> None:
    """`for_all` calls run side by side: five that wait for each other all get on."""
    import threading

    barrier = threading.Barrier(5)
    flow.run_array(5, site.succeed()).for_all(lambda _: barrier.wait(site.seconds(30)))
    assert not barrier.broken


@pytest.mark.parametrize("verb", ["for_each", "for_all"])
def test_exceptions_together(site: Site, flow: Workflow, verb: str) -> None:
    """What calls of `for_each` and `for_all` raise is collected and raised together; every task was visited."""
    seen: list[str] = []

    def call(task: Task) -> None:
        seen.append(task.id)
        if len(seen) != 2:
            raise ValueError(task.id)

    job = flow.run(site.succeed()).resubmit(3)
    with pytest.raises(ExceptionGroup) as caught:
        getattr(job, verb)(call)
    assert len(seen) == 4
    assert len(caught.value.exceptions) == 3


def test_retry(kind: str, job: Job) -> None:
    """`retry` resubmits what failed until it is DONE or the tries are used up, and waits for each."""
    last = job.retry(2, backoff=0).tasks[-1]
    members = list(last.tasks) if isinstance(last, TaskArray) else [last]
    assert {len(task.attempts) for task in members} == {1 if kind in GOOD else 3}
    assert all(task.state.ended for task in members)


def test_retry_any_failed(kind: str, job: Job) -> None:
    """`retry_any_failed` does so for every failed task and array element, and for those alone."""
    job.retry_any_failed(1, backoff=0)
    assert {len(task.attempts) for task in elements(job)} == {1 if kind in GOOD else 2}


def test_kill(site: Site, kind: str, common: Workflow) -> None:
    """`kill` ends the last task; on an array all elements; on a failed submission it changes nothing."""
    job = KINDS[kind](common, replace(site, succeed=site.stay, fail=lambda _: site.stay()))
    last = job.kill().wait(site.within(60)).tasks[-1]
    assert last.state is JobState.FAILED
    assert not [error for error in job.errors if isinstance(error, InvalidStateError)]


def test_kill_all(site: Site, kind: str, common: Workflow) -> None:
    """`kill_all` ends all tasks and array elements."""
    job = KINDS[kind](common, replace(site, succeed=site.stay, fail=lambda _: site.stay()))
    job.kill_all().synchronize(site.within(60))
    assert {task.state for task in elements(job)} == {JobState.FAILED}


def test_reap_all(kind: str, job: Job) -> None:
    """`reap_all` removes what is kept of ended tasks, failed submissions included, without an error."""
    errors = job.synchronize().errors
    assert job.reap_all().errors == errors
    assert len(errors) == (kind == "refused")


def test_reap_forgets(site: Site, flow: Workflow) -> None:
    """Reaped tasks are not listed any more; others are."""
    flow.run(site.succeed()).wait().reap_all()
    flow.run_array(2, site.succeed()).wait().reap_all()
    job = flow.run(site.succeed())
    assert [job.job_id for job in flow.jobs()] == [job.job_id]


def test_reap_of_running(site: Site, flow: Workflow) -> None:
    """To reap a task that has not ended is an InvalidStateError kept in the chain; the ended ones are reaped."""
    job = flow.run(site.succeed()).wait().run(site.stay()).reap_all()
    assert isinstance(job.last_error, InvalidStateError)
    assert [job.job_id for job in flow.jobs()] == [job.job_id]
    assert not job.state.ended


@needs(Trait.CLOCK)
def test_after(job: Job) -> None:
    """`after` sleeps so long and is a step of the chain."""
    begin = time.monotonic()
    assert job.after(0.1) is job
    assert time.monotonic() - begin >= 0.1


def test_tag(job: Job) -> None:
    """`tag_with` gives a Job a tag, a second one replaces it; without one the tag is empty."""
    assert job.tag == ""
    assert job.tag_with("one").tag == "one"
    assert job.tag_with("two").tag == "two"


def test_notify(job: Job) -> None:
    """`notify` sends the Job itself to whoever receives."""
    notifier = Notifier()
    assert job.notify(notifier) is job
    assert notifier.receive(0) is job


def test_observe(kind: str, job: Job) -> None:
    """`observe` waits and calls what fits: the error of a failed submission, the failure, or the success."""
    calls: list[str] = []
    job.observe(
        Observer(
            on_error=lambda _: calls.append("error"),
            on_failed=lambda _: calls.append("failed"),
            on_success=lambda _: calls.append("success"),
        )
    )
    assert calls == {"refused": ["error", "failed"]}.get(kind, ["success" if kind in GOOD else "failed"])


def test_branch(site: Site, job: Job) -> None:
    """`branch` gives each function a fresh Job of the same workflow, and does not wait for this one."""
    jobs = job.branch(lambda new: new.run(site.succeed()), lambda new: new.run(site.fail(1))).join()
    assert [new.success() for new in jobs] == [True, False]
    assert all(new is not job for new in jobs)


def test_job_id_and_template(kind: str, job: Job) -> None:
    """`job_id` and `template` are the last task's, at once, also of a failed submission."""
    assert job.job_id == job.tasks[-1].id != ""
    assert job.template is not None
    assert job.template == job.tasks[-1].template
    assert bool(job.template.remote_command) is (kind != "refused")


def test_info(kind: str, job: Job) -> None:
    """`info()` tells of the last task, of an array of all elements together."""
    info = job.wait().info()
    assert info is not None
    assert info.state is job.state
    assert info.exit_status == (0 if kind in GOOD else None if kind == "refused" else 3)
    assert info.sub_state == ("launch_failure" if kind == "refused" else "exited")


def test_infos(job: Job) -> None:
    """`infos()` tells of every task and array element, in order of submission."""
    infos = job.resubmit().synchronize().infos()
    assert [info.id for info in infos] == [task.id for task in elements(job)]
    assert all(info.state.ended for info in infos)


def test_exit_status(kind: str, job: Job) -> None:
    """`exit_status()` waits; an array has that of the first element that is not 0, a failed submission None."""
    assert job.exit_status() == (0 if kind in GOOD else None if kind == "refused" else 3)


def test_success(kind: str, job: Job) -> None:
    """`success()` waits, then tells whether the last task is DONE."""
    assert job.success() is (kind in GOOD)


def test_any_failed(kind: str, job: Job) -> None:
    """`any_failed()` tells of now, `has_any_failed()` waits for all; both see array elements."""
    assert job.has_any_failed() is job.any_failed() is (kind in BAD)


def test_any_failed_does_not_wait(site: Site, flow: Workflow) -> None:
    """`any_failed()` does not wait for tasks that still run."""
    assert flow.run(site.stay()).any_failed() is False


def test_failed(kind: str, job: Job) -> None:
    """`failed()` waits and lists failed tasks and array elements one by one."""
    assert job.failed() == ([] if kind in GOOD else elements(job))


def test_raise_for_status(kind: str, job: Job) -> None:
    """`raise_for_status` raises JobFailedError if anything failed: with id, end and exit status; else it returns the
    Job.
    """
    if kind in GOOD:
        assert job.raise_for_status() is job
        return
    with pytest.raises(JobFailedError) as caught:
        job.raise_for_status()
    assert elements(job)[0].id in str(caught.value)
    assert ("launch_failure" if kind == "refused" else "exit status 3") in str(caught.value)
    assert list(caught.value.tasks) == elements(job)


def test_raise_for_status_of_error(site: Site, flow: Workflow) -> None:
    """`raise_for_status` raises the latest error of the chain when no job failed."""
    job = flow.run(site.succeed()).wait().hold()
    with pytest.raises(InvalidStateError):
        job.raise_for_status()


def never(task: object) -> None:
    """Nobody may call this."""
    pytest.fail(f"called with {task}")


EMPTY: dict[str, Callable[[Job], object]] = {
    "wait": lambda job: job.wait(),
    "synchronize": lambda job: job.synchronize(),
    "then": lambda job: job.then(never),
    "on_success": lambda job: job.on_success(never),
    "on_failure": lambda job: job.on_failure(never),
    "then_run": lambda job: job.then_run("true"),
    "on_success_run": lambda job: job.on_success_run("true"),
    "on_failure_run": lambda job: job.on_failure_run("true"),
    "then_run_array": lambda job: job.then_run_array(2, "true"),
    "resubmit": lambda job: job.resubmit(),
    "do": lambda job: job.do(never),
    "for_each": lambda job: job.for_each(never),
    "for_all": lambda job: job.for_all(never),
    "retry": lambda job: job.retry(1),
    "retry_any_failed": lambda job: job.retry_any_failed(1),
    "suspend": lambda job: job.suspend(),
    "resume": lambda job: job.resume(),
    "hold": lambda job: job.hold(),
    "release": lambda job: job.release(),
    "kill": lambda job: job.kill(),
    "kill_all": lambda job: job.kill_all(),
    "reap_all": lambda job: job.reap_all(),
}


@pytest.mark.parametrize("verb", EMPTY)
def test_verbs_of_empty_job(common: Workflow, verb: str) -> None:
    """Every verb on an empty Job keeps an InvalidStateError in the chain, calls no function and does not crash."""
    job = common.new_job()
    assert EMPTY[verb](job) is job
    assert [type(error) for error in job.errors] == [InvalidStateError]
    assert job.tasks == []


def test_reads_of_empty_job(flow: Workflow) -> None:
    """Reads of an empty Job: state UNDETERMINED, no id, no template, no info, no failures, no outputs."""
    job = flow.new_job()
    assert (job.state, job.job_id, job.template, job.tag) == (JobState.UNDETERMINED, "", None, "")
    assert (job.tasks, job.errors, job.last_error) == ([], [], None)
    assert (job.info(), job.infos(), job.exit_status(), job.success()) == (None, [], None, False)
    assert (job.output(), job.error_output(), job.outputs(), list(job.stream())) == ("", "", {}, [])
    assert (job.any_failed(), job.has_any_failed(), job.failed()) == (False, False, [])


def test_empty_job_gets_on(site: Site, flow: Workflow) -> None:
    """An empty Job that was used wrongly can still run something."""
    assert flow.new_job().wait().run(site.succeed()).success()


def test_errors_are_kept(site: Site, flow: Workflow) -> None:
    """`errors` keeps all errors in order, `last_error` is the latest; nothing clears them."""
    job = (
        flow.run(site.refuse())
        .run(site.stay())
        .wait(timeout=0)
        .run(site.refuse())
        .run(site.succeed())
        .wait(site.within(60))
    )
    errors = job.errors
    assert len(errors) == 3
    assert isinstance(errors[1], TimeoutError)
    assert job.last_error is errors[2]
    assert job.state is JobState.DONE
    assert job.errors == errors


def test_chain_goes_on(site: Site, flow: Workflow) -> None:
    """A chain goes on after an error as written."""
    job = flow.run(site.refuse()).then_run(site.succeed()).wait(site.within(60)).then_run(site.succeed())
    assert job.success()
    assert len(job.errors) == 1


def test_raise_errors(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """With `raise_errors=True` every error of a chain raises at once."""
    flow = make_flow(raise_errors=True)
    with pytest.raises(WflError):
        flow.run(site.refuse())
    with pytest.raises(TimeoutError):
        flow.run(site.stay()).wait(timeout=0)
    with pytest.raises(InvalidStateError):
        flow.new_job().wait()


def test_unseen_failures_are_logged(
    site: Site, make_flow: Callable[..., Workflow], caplog: pytest.LogCaptureFixture
) -> None:
    """Failures that nobody looked at are logged as one warning with their number when the workflow closes."""
    flow = make_flow()
    flow.run(site.fail(1)).resubmit(3).wait().run(site.refuse())
    with caplog.at_level(logging.WARNING, "wfl"):
        flow.run(site.succeed()).wait()
        for task in flow.jobs():
            task.synchronize()
        caplog.clear()
        flow.close()
    warnings = [record.getMessage() for record in caplog.records if "nobody looked" in record.getMessage()]
    assert len(warnings) == 1
    assert "5" in warnings[0]


def test_seen_failures_are_not_logged(
    site: Site, make_flow: Callable[..., Workflow], caplog: pytest.LogCaptureFixture
) -> None:
    """Failures that a script looked at, by any verb or property, are not logged again."""
    flow = make_flow()
    flow.run(site.fail(1)).on_failure(lambda _: None)
    flow.run(site.fail(1)).success()
    flow.run(site.fail(1)).has_any_failed()
    flow.run(site.fail(1)).exit_status()
    flow.run(site.fail(1)).wait().infos()
    flow.run(site.fail(1)).on_failure_run(site.succeed()).wait()
    assert flow.run(site.refuse()).last_error
    with caplog.at_level(logging.WARNING, "wfl"):
        caplog.clear()
        flow.close()
    assert not [record for record in caplog.records if "nobody looked" in record.getMessage()]


def test_dropped_jobs(site: Site, flow: Workflow) -> None:
    """A Job that nobody holds any more runs on and is listed."""
    ids = [flow.run(site.succeed()).job_id for _ in range(3)]
    gc.collect()
    jobs = flow.jobs()
    assert [job.job_id for job in jobs] == ids
    assert all(job.success() for job in jobs)


def test_with_block(site: Site) -> None:
    """A workflow used with `with` is closed after it, and after an exception its tasks are ended."""
    flow = Workflow(site.open())
    job = flow.run(site.stay())
    with pytest.raises(ZeroDivisionError), flow:
        _ = 1 / 0
    assert flow.session is not None
    assert flow.session.closed
    if flow.session.backend.tells:  # else the end of the job is not learnt any more
        assert job.state is JobState.FAILED

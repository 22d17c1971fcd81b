"""Waiting: time-outs, any of many, callbacks; and that it disturbs nothing."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from queue import Empty, SimpleQueue

import pytest

from wfl import Capability, InvalidSessionError, Job, JobState, Task, TaskArray, TimeoutError, Workflow, as_completed
from wfl.testing.conformance.site import Site, Trait, needs


def only(job: Job) -> Task:
    """The single task of a Job."""
    (task,) = job.tasks
    assert isinstance(task, Task)
    return task


@needs(Trait.CLOCK)
def test_wait_timeout(site: Site, flow: Workflow) -> None:
    """A wait that times out is a TimeoutError kept in the chain, comes in time, and cancels nothing."""
    begin = time.monotonic()
    job = flow.run(site.stay()).wait(timeout=0.2)
    assert 0.2 <= time.monotonic() - begin < site.seconds(30)
    assert isinstance(job.last_error, TimeoutError)
    assert not job.state.ended


def test_timeout_is_a_timeout(site: Site, flow: Workflow) -> None:
    """The TimeoutError of wfl is also Python's own."""
    import builtins

    task = only(flow.run(site.stay()))
    with pytest.raises(builtins.TimeoutError):
        task.wait_terminated(0.05)


def test_wait_zero(site: Site, flow: Workflow) -> None:
    """A time-out of 0 looks once: an error for a job that runs, none for one that has ended."""
    begin = time.monotonic()
    assert isinstance(flow.run(site.stay()).wait(timeout=0).last_error, TimeoutError)
    assert time.monotonic() - begin < site.seconds(30)
    assert flow.run(site.succeed()).wait().wait(timeout=0).last_error is None


def test_timedelta(site: Site, flow: Workflow) -> None:
    """Times are seconds or timedelta everywhere."""
    job = flow.run(site.stay()).wait(timeout=timedelta(milliseconds=50)).wait(0.05).wait(timeout=0)
    assert [type(error) for error in job.errors] == [TimeoutError] * 3


def test_wait_in_time(site: Site, flow: Workflow) -> None:
    """A job that ends before the time-out is over is no error, and the wait ends with the job."""
    begin = time.monotonic()
    job = flow.run(site.succeed()).wait(timeout=site.within(120))
    assert job.last_error is None
    assert time.monotonic() - begin < site.seconds(60)


def test_waiting_clears_nothing(site: Site, flow: Workflow) -> None:
    """Errors are kept: a later wait that succeeds clears nothing."""
    job = flow.run(site.stay()).wait(timeout=0).kill().wait(site.within(30))
    assert [type(error) for error in job.errors] == [TimeoutError]
    assert job.state is JobState.FAILED


def test_wait_again(site: Site, flow: Workflow) -> None:
    """Waiting for an ended job returns at once, as often as one likes."""
    job = flow.run(site.succeed()).wait()
    for _ in range(1000):
        job.wait(timeout=0)
    assert not job.errors


def test_synchronize(site: Site, flow: Workflow) -> None:
    """`synchronize` waits for all tasks, arrays included, `wait` for the last only."""
    job = flow.run(site.stay()).run(site.succeed()).wait(site.within(60))
    assert (job.errors, job.state) == ([], JobState.DONE)
    assert isinstance(job.synchronize(timeout=0.1).last_error, TimeoutError)
    job.tasks[0].terminate()
    assert {info.state.ended for info in job.synchronize(site.within(60)).infos()} == {True}


@needs(Trait.CLOCK)
def test_synchronize_timeout_counts(site: Site, flow: Workflow) -> None:
    """The time-out of `synchronize` is for all together, and its error counts what has not ended."""
    begin = time.monotonic()
    job = flow.run_array(5, site.stay()).run(site.succeed()).wait(site.within(60)).synchronize(timeout=0.3)
    assert time.monotonic() - begin < site.seconds(60)
    assert "5 of 6" in str(job.last_error)


def test_array_timeout(site: Site, flow: Workflow) -> None:
    """An array whose wait timed out still counts as running, and can be waited for again."""
    job = flow.run_array(3, site.stay()).wait(timeout=0.1)
    assert isinstance(job.last_error, TimeoutError)
    assert not job.state.ended
    assert job.kill().wait(site.within(60)).state is JobState.FAILED


def test_many_waiters(site: Site, flow: Workflow) -> None:
    """Twenty threads that wait for one task all wake at its end."""
    job = flow.run(site.stay())
    woken: SimpleQueue[JobState] = SimpleQueue()
    threads = [threading.Thread(target=lambda: woken.put(job.wait().state), daemon=True) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert job.state.ended is False
    job.kill()
    assert [woken.get(timeout=site.seconds(60)) for _ in threads] == [JobState.FAILED] * 20


def test_timed_out_waits_harm_nobody(site: Site, flow: Workflow) -> None:
    """Hundreds of waits that timed out leave nothing behind that would disturb later ends or waits."""
    job = flow.run(site.stay())
    task = only(job)
    for _ in range(300):
        with pytest.raises(TimeoutError):
            task.wait_terminated(0)
        with pytest.raises(TimeoutError):
            task.wait_terminated(0.0001)
    assert job.kill().wait(site.within(30)).state is JobState.FAILED
    assert flow.run(site.succeed()).wait(site.within(60)).state is JobState.DONE


def test_wait_started(site: Site, flow: Workflow) -> None:
    """`wait_started` returns when the task runs, and at once when it has ended."""
    task = only(flow.run(site.stay()))
    task.wait_started(site.within(60))
    assert task.state is JobState.RUNNING
    ended = only(flow.run(site.succeed()).wait())
    ended.wait_started(0)


def test_wait_started_timeout(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """`wait_started` of a queued task times out; when the task ends unstarted it returns."""
    flow = make_flow(max_parallel=1)
    flow.run(site.stay())
    task = only(flow.run(site.stay()))
    with pytest.raises(TimeoutError):
        task.wait_started(0.05)
    task.terminate()
    task.wait_started(site.within(30))


def test_wait_any(site: Site, flow: Workflow) -> None:
    """`wait_any_terminated` returns the task that has ended, out of many that have not."""
    assert flow.session is not None
    tasks = [only(flow.run(site.stay())) for _ in range(5)]
    tasks.insert(2, only(flow.run(site.succeed())))
    assert flow.session.wait_any_terminated(tasks, site.within(60)) is tasks[2]


def test_wait_any_timeout(site: Site, flow: Workflow) -> None:
    """`wait_any_terminated` times out when none ends; `wait_any_started` returns one that runs."""
    assert flow.session is not None
    tasks = [only(flow.run(site.stay())) for _ in range(3)]
    assert flow.session.wait_any_started(tasks, site.within(60)) in tasks
    with pytest.raises(TimeoutError):
        flow.session.wait_any_terminated(tasks, 0.1)


def test_as_completed(site: Site, flow: Workflow) -> None:
    """`as_completed` yields every task and array element once, in the order of their ends."""
    slow = flow.run(site.stay())
    array = flow.run_array(3, site.succeed())
    seen = []
    for task in as_completed([slow, array], timeout=site.within(60)):
        seen.append(task)
        if len(seen) == 3:
            slow.kill()
    assert {task.index for task in seen[:3]} == {1, 2, 3}
    assert seen[3] is slow.tasks[0]


def test_as_completed_timeout(site: Site, flow: Workflow) -> None:
    """`as_completed` raises TimeoutError when some have not ended in time; those go on."""
    done, slow = flow.run(site.succeed()).wait(), flow.run(site.stay())
    ends = iter(as_completed([done, slow], timeout=0.2))
    assert next(ends) is done.tasks[0]
    with pytest.raises(TimeoutError):
        next(ends)
    assert not slow.state.ended


@needs(Trait.CLOCK)
def test_as_completed_of_two_workflows(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """`as_completed` takes tasks of several workflows together."""
    jobs = [make_flow().run(site.succeed()), make_flow().run(site.fail(1))]
    assert {task.id for task in as_completed(jobs, site.within(60))} == {job.job_id for job in jobs}


def test_callback(site: Site, flow: Workflow) -> None:
    """A done callback is called once, with the task, after its end; one added later is called at once."""
    calls: SimpleQueue[tuple[Task, JobState]] = SimpleQueue()
    task = only(flow.run(site.succeed()))
    task.add_done_callback(lambda task: calls.put((task, task.state)))
    assert calls.get(timeout=site.seconds(60)) == (task, JobState.DONE)
    task.add_done_callback(lambda task: calls.put((task, task.state)))
    assert calls.get(timeout=site.seconds(60)) == (task, JobState.DONE)
    with pytest.raises(Empty):
        calls.get(timeout=0.1)


def test_blocked_callback(site: Site, flow: Workflow) -> None:
    """A callback that blocks stops neither submitting nor ends nor other callbacks (design point 24)."""
    go_on, called = threading.Event(), threading.Event()
    first = only(flow.run(site.succeed()))
    first.add_done_callback(lambda _: go_on.wait(site.seconds(120)))
    first.wait_terminated(site.within(60))
    try:
        job = flow.run_array(5, site.succeed()).wait(site.within(60))
        assert job.state is JobState.DONE
        array = job.tasks[0]
        assert isinstance(array, TaskArray)
        array[0].add_done_callback(lambda _: called.set())
        assert called.wait(site.seconds(60))
    finally:
        go_on.set()


def test_raising_callback(site: Site, flow: Workflow, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that raises harms nobody: it is logged with the task, and later callbacks are called (design point
    4).
    """
    called = threading.Event()
    task = only(flow.run(site.stay()))
    with caplog.at_level(logging.ERROR, "wfl"):
        task.add_done_callback(lambda _: 1 / 0)
        task.add_done_callback(lambda _: called.set())
        task.terminate()
        assert called.wait(site.seconds(60))
        site.until(lambda: "ZeroDivisionError" in caplog.text, "the exception is logged")
    assert task.id in caplog.text


def test_callback_may_submit(site: Site, flow: Workflow) -> None:
    """A callback may use the workflow: submit, wait, read."""
    results: SimpleQueue[bool] = SimpleQueue()
    only(flow.run(site.succeed())).add_done_callback(lambda _: results.put(flow.run(site.succeed()).success()))
    assert results.get(timeout=site.seconds(60))


@needs(Capability.TERMINATE, Trait.CLOCK)
def test_interrupted_wait(site: Site, flow: Workflow) -> None:
    """Ctrl-C during a wait raises KeyboardInterrupt and leaves the session usable (design point 6)."""
    job = flow.run(site.stay())
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        job.wait(site.within(60))
    timer.join()
    assert not job.state.ended
    assert flow.run(site.succeed()).wait(site.within(60)).state is JobState.DONE
    assert job.kill().wait(site.within(30)).state is JobState.FAILED


def test_close_wakes_waiters(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """Whoever waits when the workflow is closed wakes; afterwards its calls are errors that say so."""
    flow = make_flow()
    job = flow.run(site.stay())
    woken = threading.Event()

    def wait() -> None:
        job.wait()
        woken.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    site.until(thread.is_alive, "the thread waits")
    flow.close()
    assert woken.wait(site.seconds(30))
    assert isinstance(flow.run(site.succeed()).last_error, InvalidSessionError)


def test_close_counts(site: Site, make_flow: Callable[..., Workflow], caplog: pytest.LogCaptureFixture) -> None:
    """Closing without detach ends what still runs, with one warning that counts it."""
    flow = make_flow(detach=False)
    flow.run_array(3, site.stay())
    with caplog.at_level(logging.WARNING, "wfl"):
        flow.close()
    assert any("3 tasks" in record.getMessage() for record in caplog.records)

"""Control: suspend, resume, hold, release, kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from wfl import Capability, InvalidStateError, Job, JobState, Task, TaskArray, Workflow, shell
from wfl.testing.conformance.site import Command, Field, Site, Trait, needs, quoted

BEAT = "while :; do echo x >> {}; sleep 0.02; done"
"""A job that writes to a file as long as it runs."""


def started(site: Site, job: Job) -> Job:
    """The Job, once its last task runs."""
    job.tasks[-1].wait_started(site.within(60))
    return job


def grows(site: Site, path: Path) -> None:
    """Wait until somebody writes to this file."""
    before = size(path)
    site.until(lambda: size(path) > before, f"{path.name} grows")


def size(path: Path) -> int:
    """Bytes in a file, 0 if it is not there."""
    return path.stat().st_size if path.exists() else 0


def rests(site: Site, path: Path) -> None:
    """Wait until nobody writes to this file any more."""
    site.rests(lambda: size(path), f"{path.name} rests")


@needs(Capability.SUSPEND)
def test_suspend_resume(site: Site, flow: Workflow) -> None:
    """A running job that is suspended is SUSPENDED, and RUNNING again once resumed."""
    job = started(site, flow.run(site.stay())).suspend()
    site.until(lambda: job.state is JobState.SUSPENDED, "SUSPENDED")
    job.resume()
    site.until(lambda: job.state is JobState.RUNNING, "RUNNING")
    assert not job.errors


@needs(Capability.SUSPEND, Trait.SHARED)
def test_suspended_rests(site: Site, flow: Workflow, shared: Path) -> None:
    """A suspended job does nothing; resumed it goes on where it was."""
    beat = shared / "beat"
    job = flow.run(shell(BEAT.format(quoted(beat))))
    grows(site, beat)
    job.suspend()
    rests(site, beat)
    job.resume()
    grows(site, beat)
    assert not job.errors


@needs(Capability.SUSPEND, Trait.SHARED)
def test_suspend_tree(site: Site, flow: Workflow, shared: Path) -> None:
    """Suspending reaches the children of the job's command, too."""
    beat = shared / "beat"
    job = flow.run(shell(f"sh -c {quoted(BEAT.format(quoted(beat)))} & wait"))
    grows(site, beat)
    job.suspend()
    rests(site, beat)
    job.resume()
    grows(site, beat)


@needs(Capability.SUSPEND, Trait.EXECUTION)
def test_suspended_ends_well(site: Site, flow: Workflow) -> None:
    """A job that was suspended and resumed ends as if nothing had been."""
    job = started(site, flow.run(shell(f"sleep {0.3 * site.latency}; exit 5"))).suspend()
    site.until(lambda: job.state is JobState.SUSPENDED, "SUSPENDED")
    assert job.resume().exit_status() == 5


@needs(Capability.SUSPEND)
def test_kill_suspended(site: Site, flow: Workflow) -> None:
    """A suspended job can be killed."""
    job = started(site, flow.run(site.stay())).suspend().kill().wait(site.within(30))
    assert job.state is JobState.FAILED
    assert not job.errors


@needs(Capability.SUSPEND)
def test_suspend_array(site: Site, flow: Workflow) -> None:
    """Suspending and resuming an array covers all of its elements."""
    job = started(site, flow.run_array(3, site.stay())).suspend()
    array = job.tasks[0]
    assert isinstance(array, TaskArray)
    site.until(lambda: {task.state for task in array.tasks} == {JobState.SUSPENDED}, "all SUSPENDED")
    job.resume()
    site.until(lambda: {task.state for task in array.tasks} == {JobState.RUNNING}, "all RUNNING")
    assert not job.errors


@needs(Field("submit_as_hold"))
def test_submit_as_hold(site: Site, flow: Workflow) -> None:
    """A job submitted as hold is QUEUED_HELD and does not start until it is released."""
    job = flow.run(site.succeed(), submit_as_hold=True)
    site.until(lambda: job.state is JobState.QUEUED_HELD, "QUEUED_HELD")
    assert flow.run(site.succeed()).success()
    assert job.state is JobState.QUEUED_HELD
    assert job.release().wait(site.within(60)).state is JobState.DONE
    assert not job.errors


@needs(Field("submit_as_hold"))
def test_kill_held(site: Site, flow: Workflow) -> None:
    """A held job that is killed has FAILED as cancelled, without an exit status: it never ran."""
    info = flow.run(site.succeed(), submit_as_hold=True).kill().wait(site.within(30)).info()
    assert info is not None
    assert (info.state, info.exit_status, info.sub_state) == (JobState.FAILED, None, "cancelled")


@needs(Field("submit_as_hold"))
def test_held_array(site: Site, flow: Workflow) -> None:
    """A whole array can be submitted as hold and released."""
    job = flow.run_array(3, site.succeed(), submit_as_hold=True)
    site.until(lambda: job.state is JobState.QUEUED_HELD, "QUEUED_HELD")
    assert job.release().wait(site.within(60)).state is JobState.DONE


def test_hold_queued(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """A queued job that is held lets others pass, and starts after its release."""
    flow = make_flow(max_parallel=1)
    first, held, other = flow.run(site.stay()), flow.run(site.succeed()), flow.run(site.succeed())
    held.hold()
    assert (held.state, held.errors) == (JobState.QUEUED_HELD, [])
    first.kill()
    assert other.wait(site.within(60)).state is JobState.DONE
    assert held.state is JobState.QUEUED_HELD
    assert held.release().wait(site.within(60)).state is JobState.DONE


def test_release_of_not_held(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """To release a job that waits but is not held is an InvalidStateError kept in the chain."""
    flow = make_flow(max_parallel=1)
    flow.run(site.stay())
    job = flow.run(site.succeed()).release()
    assert isinstance(job.last_error, InvalidStateError)
    assert job.state is JobState.QUEUED


def test_hold_of_ended(site: Site, flow: Workflow) -> None:
    """To hold, release, suspend or resume an ended job is an InvalidStateError each, kept in the chain."""
    job = flow.run(site.succeed()).wait().hold().release().suspend().resume()
    assert [type(error) for error in job.errors] == [InvalidStateError] * 4
    assert job.state is JobState.DONE


@needs(Field("submit_as_hold"))
def test_release_some(site: Site, flow: Workflow) -> None:
    """Releasing an array releases the elements that are held; that others are not is no error."""
    job = flow.run_array(2, site.succeed(), submit_as_hold=True)
    array = job.tasks[0]
    assert isinstance(array, TaskArray)
    array[0].release()
    array[0].wait_terminated(site.within(60))
    assert job.release().wait(site.within(60)).errors == []
    assert job.success()


def test_control_of_ended_array(site: Site, flow: Workflow) -> None:
    """To hold, release, suspend or resume an array that has ended is the same as for a single job."""
    job = flow.run_array(2, site.succeed()).wait().hold().release().suspend().resume()
    assert [type(error) for error in job.errors] == [InvalidStateError] * 4


@needs(Capability.TERMINATE)
def test_kill(site: Site, flow: Workflow) -> None:
    """A killed job has FAILED soon after, long before its time."""
    begin = time.monotonic()
    assert started(site, flow.run(site.stay())).kill().wait().state is JobState.FAILED
    assert time.monotonic() - begin < site.seconds(60)


@needs(Capability.TERMINATE)
def test_kill_at_once(site: Site, flow: Workflow) -> None:
    """Killing right after submitting works, started or not, and waiting for the end does not hang."""
    for _ in range(10):
        job = flow.run(site.stay()).kill().wait(site.within(60))
        assert (job.state, job.errors) == (JobState.FAILED, [])


@needs(Capability.TERMINATE, Trait.SHARED)
def test_grace(site: Site, flow: Workflow, shared: Path) -> None:
    """`kill(grace)` asks first: a job that handles SIGTERM may end by itself, with its own exit status (design point
    21).
    """
    ready = shared / "ready"
    job = flow.run(shell(f"trap 'exit 7' TERM; touch {quoted(ready)}; while :; do sleep 0.05; done"))
    site.until(ready.exists, "the job is ready")
    assert job.kill(grace=site.seconds(60)).wait(site.within(30)).exit_status() == 7
    assert not job.errors


@needs(Capability.TERMINATE, Trait.SHARED)
def test_grace_is_over(site: Site, flow: Workflow, shared: Path) -> None:
    """A job that ignores SIGTERM is killed when the grace is over."""
    ready = shared / "ready"
    job = flow.run(shell(f"trap '' TERM; touch {quoted(ready)}; while :; do sleep 0.05; done"))
    site.until(ready.exists, "the job is ready")
    begin = time.monotonic()
    info = job.kill(grace=0.5).wait(site.within(60)).info()
    assert info is not None
    assert time.monotonic() - begin >= 0.5
    assert info.terminating_signal == "SIGKILL"


@needs(Capability.TERMINATE, Trait.SHARED)
def test_kill_tree(site: Site, flow: Workflow, shared: Path) -> None:
    """Killing reaches the children of the job's command."""
    beat = shared / "beat"
    job = flow.run(shell(f"sh -c {quoted(BEAT.format(quoted(beat)))} & wait"))
    grows(site, beat)
    job.kill().wait(site.within(30))
    rests(site, beat)


@needs(Capability.TERMINATE, Trait.SHARED, Command("setsid"))
def test_kill_other_session(site: Site, flow: Workflow, shared: Path) -> None:
    """Killing reaches a grandchild that made itself a session of its own."""
    beat = shared / "beat"
    job = flow.run(shell(f"(setsid sh -c {quoted(BEAT.format(quoted(beat)))} &); exec sleep 600"))
    grows(site, beat)
    job.kill().wait(site.within(30))
    rests(site, beat)


@needs(Capability.TERMINATE)
def test_kill_last_only(site: Site, flow: Workflow) -> None:
    """`kill` ends the last task and leaves the others alone."""
    job = flow.run(site.stay()).run(site.stay()).kill().wait(site.within(30))
    first, last = job.tasks
    assert last.state is JobState.FAILED
    assert not first.state.ended


@needs(Capability.TERMINATE)
def test_kill_all(site: Site, flow: Workflow) -> None:
    """`Job.kill_all` ends every task that has not ended, arrays too, and nothing of other Jobs (design point 7)."""
    job = flow.run(site.succeed()).wait().run_array(3, site.stay()).run(site.stay())
    other = flow.run(site.stay())
    states = [info.state for info in job.kill_all().synchronize(site.within(60)).infos()]
    assert states == [JobState.DONE] + [JobState.FAILED] * 4
    assert not job.errors
    assert not other.state.ended


@needs(Capability.TERMINATE)
def test_workflow_kill_all(site: Site, flow: Workflow) -> None:
    """`Workflow.kill_all` ends everything of the session that has not ended."""
    jobs = [flow.run(site.stay()), flow.run_array(3, site.stay()), flow.run(site.stay())]
    flow.kill_all()
    assert [job.synchronize(site.within(60)).state for job in jobs] == [JobState.FAILED] * 3


@needs(Capability.TERMINATE)
def test_kill_one_element(site: Site, flow: Workflow) -> None:
    """One element of an array can be killed; the others go on."""
    job = started(site, flow.run_array(3, site.stay()))
    array = job.tasks[0]
    assert isinstance(array, TaskArray)
    array[1].terminate()
    array[1].wait_terminated(site.within(30))
    assert [task.state.ended for task in array.tasks] == [False, True, False]
    assert not job.state.ended


@needs(Capability.TERMINATE)
def test_kill_queued_element(site: Site, flow: Workflow) -> None:
    """Killing an element that waits in the queue of its array leaks no slot: the others all run and end."""
    job = flow.run_array(6, site.succeed(), max_parallel=1, submit_as_hold=False)
    array = job.tasks[0]
    assert isinstance(array, TaskArray)
    array[2].terminate() if not array[2].state.ended else None
    job.synchronize(site.within(60))
    assert not job.errors
    states = [task.state for task in array.tasks]
    assert states[:2] + states[3:] == [JobState.DONE] * 5


@needs(Capability.TERMINATE)
def test_kill_queued(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """A job killed while it waits has FAILED as cancelled and never ran; who waits for it wakes, the next moves up."""
    flow = make_flow(max_parallel=1)
    running, killed, last = flow.run(site.stay()), flow.run(site.succeed()), flow.run(site.succeed())
    info = killed.kill().wait(site.within(30)).info()
    assert info is not None
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "cancelled", None)
    running.kill()
    assert last.wait(site.within(60)).state is JobState.DONE


@needs(Capability.TERMINATE)
def test_kill_twice(site: Site, flow: Workflow) -> None:
    """Killing a task twice in a row does no harm."""
    job = started(site, flow.run(site.stay()))
    task = job.tasks[0]
    assert isinstance(task, Task)
    task.terminate()
    task.terminate()
    task.wait_terminated(site.within(30))
    assert task.state is JobState.FAILED

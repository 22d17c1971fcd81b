"""The store: what a later program, or another one, knows of jobs."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from wfl import Capability, InvalidStateError, Job, JobState, SessionManagementError, TaskArray, Workflow
from wfl.testing.conformance.programs import Program
from wfl.testing.conformance.site import Field, Site, Trait, needs, quoted

pytestmark = needs(Trait.STORE)
SESSIONS = ("kept", "one", "two")
"""Names that return from case to case: what a session of these has left is removed after each."""

Start = Callable[..., Program]
MakeFlow = Callable[..., Workflow]

OPEN = "flow = Workflow(open_context(store=arguments[0], session_name='kept', detach=arguments[1] == 'detach'))\n"
DETACHED = (Trait.PROGRAMS, Trait.SHARED, Capability.REATTACH, Capability.DETACH)


def only(flow: Workflow) -> Job:
    """The one Job that the session knows."""
    (job,) = flow.jobs()
    return job


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where a store may be."""
    return tmp_path / "store"


@pytest.fixture
def again(make_flow: MakeFlow, store: Path) -> Callable[[], Workflow]:
    """Opens the same session once more, in this program."""
    return lambda: make_flow(store=store, session_name="kept", detach=True).raise_for_error()


def until_written(path: Path, *, then: str = "exit 0") -> str:
    """Line of a job that runs until a file is there (or its directory is not, as the case is over)."""
    return f"until [ -e {quoted(path)} ] || [ ! -d {quoted(path.parent)} ]; do sleep 0.02; done; echo over; {then}"


@needs(Trait.PROGRAMS)
def test_ended_jobs(program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """A later program knows jobs that had ended as soon as it opens: state, exit status, times (design point 5)."""
    source = OPEN + "job = flow.run('true', job_name='one').wait().run(shell('exit 5')).wait()\n"
    started = program(source + "say(job.job_id)\nflow.close()\n", store, "-")
    last = started.line()
    assert started.wait() == 0
    good, bad = again().jobs()
    assert bad.job_id == last
    assert [good.state, bad.state] == [JobState.DONE, JobState.FAILED]
    assert [good.exit_status(), bad.exit_status()] == [0, 5]
    assert good.template is not None
    assert good.template.job_name == "one"
    info = bad.info()
    assert info is not None
    assert info.dispatch_time is not None
    assert info.finish_time is not None
    assert info.dispatch_time <= info.finish_time <= datetime.now(UTC)


@needs(Trait.PROGRAMS, Trait.EXECUTION, Capability.OUTPUT)
def test_ended_output(program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """The output of jobs that had ended can be read by a later program."""
    started = program(OPEN + "flow.run(shell('echo out; echo err >&2')).wait()\nflow.close()\n", store, "-")
    assert started.wait() == 0
    job = only(again())
    assert (job.output(), job.error_output()) == ("out", "err")


@needs(Trait.PROGRAMS, Trait.EXECUTION)
def test_signal_is_kept(program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """A later program knows by which signal a job ended."""
    assert program(OPEN + "flow.run('sh', '-c', 'kill -USR1 $$').wait()\nflow.close()\n", store, "-").wait() == 0
    info = only(again()).info()
    assert info is not None
    assert (info.terminating_signal, info.exit_status) == ("SIGUSR1", 128 + signal.SIGUSR1)


@needs(Trait.PROGRAMS)
def test_refused_is_kept(site: Site, program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """A failed submission is known to a later program with its reason."""
    source = OPEN + "flow.run(JobTemplate.from_json(arguments[2]))\nflow.close()\n"
    assert program(source, store, "-", site.refuse().to_json()).wait() == 0
    info = only(again()).info()
    assert info is not None
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "launch_failure", None)
    assert site.reason in (info.annotation or "")


@needs(Trait.PROGRAMS)
def test_array_is_kept(program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """An array is found again as one array with its elements in order."""
    started = program(OPEN + "say(flow.run_array(range(2, 9, 3), 'true').wait().job_id)\nflow.close()\n", store, "-")
    job_id = started.line()
    assert started.wait() == 0
    job = only(again())
    (array,) = job.tasks
    assert isinstance(array, TaskArray)
    assert array.id == job_id
    assert [task.index for task in array] == [2, 5, 8]
    assert job.state is JobState.DONE


@needs(Trait.PROGRAMS)
def test_attempts_are_kept(program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """A retried task is found again as one task with its attempts in order, in the state of the last."""
    source = OPEN + "job = flow.run('false').retry(2, backoff=0)\nsay(*[task.id for task in job.tasks[0].attempts])\n"
    started = program(source + "flow.close()\n", store, "-")
    ids = started.line().split()
    assert started.wait() == 0
    job = only(again())
    (task,) = job.tasks
    assert not isinstance(task, TaskArray)
    assert [attempt.id for attempt in task.attempts] == ids
    assert [job.job_id, len(set(ids))] == [ids[-1], 3]
    assert {attempt.info().exit_status for attempt in task.attempts} == {1}
    assert job.state is JobState.FAILED
    assert job.reap_all().errors == []
    assert again().jobs() == []


@needs(Trait.PROGRAMS, Trait.EXECUTION, Capability.OUTPUT)
def test_placeholders_are_kept(program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """The template comes back as it was given: submitted again, its placeholders are filled anew."""
    source = OPEN + "flow.run_array(range(3, 5), 'echo', 'n$DRMAA2_INDEX$').wait()\nflow.close()\n"
    assert program(source, store, "-").wait() == 0
    job = only(again())
    assert list(job.resubmit().outputs().values()) == ["n3", "n4", "n3", "n4"]


@needs(Trait.EXECUTION, Capability.OUTPUT)
def test_output_reaped_elsewhere(store: Path, make_flow: MakeFlow) -> None:
    """Output that another program has removed is an InvalidStateError, not empty; that of a silent job is empty."""
    flow, other = (make_flow(store=store, session_name="kept") for _ in range(2))
    loud, silent = flow.run("echo", "x").wait(), flow.run("true").wait()
    found = {job.job_id: job for job in other.jobs()}
    assert found[silent.job_id].wait().output() == ""
    assert found[loud.job_id].wait().output() == "x"
    assert found[loud.job_id].reap_all().errors == []
    task = loud.tasks[0]
    with pytest.raises(InvalidStateError):
        task.output()
    with pytest.raises(InvalidStateError):
        list(task.stream())
    assert (loud.output(), [type(error) for error in loud.errors]) == ("", [InvalidStateError])
    assert (silent.output(), silent.error_output(), silent.errors) == ("", "", [])


@needs(Trait.PROGRAMS)
def test_reaped_is_forgotten(program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """Reaped jobs are gone for later programs, too; others are not."""
    source = OPEN + "flow.run('true').wait().reap_all()\nsay(flow.run('true').wait().job_id)\nflow.close()\n"
    started = program(source, store, "-")
    kept = started.line()
    assert started.wait() == 0
    assert [job.job_id for job in again().jobs()] == [kept]


def test_sessions_apart(site: Site, store: Path, make_flow: MakeFlow) -> None:
    """Sessions of different names in one store do not see each other's jobs."""
    one, two = make_flow(store=store, session_name="one"), make_flow(store=store, session_name="two")
    job = one.run(site.succeed()).wait()
    assert two.jobs() == []
    assert [found.job_id for found in one.jobs()] == [job.job_id]


def test_undetached_ends(site: Site, store: Path, make_flow: MakeFlow) -> None:
    """Without `detach` closing ends what runs; the store says so afterwards."""
    flow = make_flow(store=store, session_name="kept", detach=False)
    job = flow.run(site.stay())
    job.tasks[0].wait_started(site.within(60))
    flow.close()
    found = only(make_flow(store=store, session_name="kept"))
    assert found.job_id == job.job_id
    assert found.wait(site.within(30)).state is JobState.FAILED


@needs(*DETACHED, Capability.OUTPUT)
def test_detached_runs_on(site: Site, program: Start, store: Path, again: Callable[[], Workflow], shared: Path) -> None:
    """A detached job outlives the program that ended; a new one finds it RUNNING, waits for it, and learns exit status
    and output (design point 9).
    """
    source = OPEN + f"flow.run(shell({until_written(shared / 'go', then='exit 6')!r})).do(lambda t: t.wait_started())\n"
    assert program(source + "flow.close()\n", store, "detach").wait() == 0
    job = only(again())
    assert job.state is JobState.RUNNING
    (shared / "go").touch()
    assert job.wait(site.within(60)).exit_status() == 6
    assert job.output() == "over"


@needs(*DETACHED, Capability.OUTPUT)
def test_detached_ends_alone(
    site: Site, program: Start, store: Path, again: Callable[[], Workflow], shared: Path
) -> None:
    """A detached job that ends while no program is there: the next one knows its true exit status, times and output."""
    line = until_written(shared / "go", then=f"touch {quoted(shared / 'done')}; exit 6")
    source = OPEN + f"flow.run(shell({line!r})).do(lambda task: task.wait_started())\nflow.close()\n"
    assert program(source, store, "detach").wait() == 0
    (shared / "go").touch()
    site.until((shared / "done").exists, "the job ends")
    job = only(again()).wait(site.within(30))
    assert (job.exit_status(), job.output()) == (6, "over")
    info = job.info()
    assert info is not None
    assert info.finish_time is not None
    assert info.wallclock_time is not None


@needs(*DETACHED)
def test_detached_after_kill(
    site: Site, program: Start, store: Path, again: Callable[[], Workflow], shared: Path
) -> None:
    """Detached jobs outlive a program that was killed with SIGKILL, and are found again (design point 9)."""
    source = (
        OPEN + f"flow.run_array(3, shell({until_written(shared / 'go')!r})).do(lambda array: array.wait_started())\n"
    )
    started = program(source + "say('runs')\nimport time; time.sleep(600)\n", store, "detach")
    assert started.line() == "runs"
    started.send(signal.SIGKILL)
    started.wait()
    job = only(again())
    assert not job.state.ended
    (shared / "go").touch()
    assert job.wait(site.within(60)).state is JobState.DONE


@needs(*DETACHED)
def test_kill_found(site: Site, program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """A job that an earlier program started can be killed."""
    source = OPEN + "flow.run('sleep', '600').do(lambda task: task.wait_started())\nflow.close()\n"
    assert program(source, store, "detach").wait() == 0
    job = only(again()).kill().wait(site.within(30))
    assert job.errors == []
    (info,) = job.infos()
    assert (info.state, info.terminating_signal) == (JobState.FAILED, site.killed)


@needs(*DETACHED, Capability.SUSPEND)
def test_suspend_found(site: Site, program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """A job that an earlier program started can be suspended and resumed."""
    source = OPEN + "flow.run('sleep', '600').do(lambda task: task.wait_started())\nflow.close()\n"
    assert program(source, store, "detach").wait() == 0
    job = only(again()).suspend()
    site.until(lambda: job.state is JobState.SUSPENDED, "SUSPENDED")
    job.resume()
    site.until(lambda: job.state is JobState.RUNNING, "RUNNING")
    assert job.kill().wait(site.within(30)).errors == []


@needs(*DETACHED, Capability.STREAM)
def test_stream_found(program: Start, store: Path, again: Callable[[], Workflow], shared: Path) -> None:
    """The output of a job that an earlier program started can be followed while it runs."""
    line = "echo first; " + until_written(shared / "go")
    source = OPEN + f"flow.run(shell({line!r})).do(lambda task: task.wait_started())\nflow.close()\n"
    assert program(source, store, "detach").wait() == 0
    lines = only(again()).stream()
    assert next(lines) == "first"
    (shared / "go").touch()
    assert list(lines) == ["over"]


@needs(*DETACHED, Field("submit_as_hold"))
def test_held_is_kept(site: Site, program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """A detached job that was held is still held for the next program, which can release it."""
    assert program(OPEN + "flow.run('true', submit_as_hold=True)\nflow.close()\n", store, "detach").wait() == 0
    job = only(again())
    assert job.state is JobState.QUEUED_HELD
    assert job.release().wait(site.within(60)).state is JobState.DONE


@needs(*DETACHED)
def test_queue_is_kept(site: Site, program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """Detached jobs that still queued here are run by the next program that opens the session."""
    source = "flow = Workflow(open_context(store=arguments[0], session_name='kept', detach=True, max_parallel=1))\n"
    source += (
        "flow.run('sleep', '600').do(lambda task: task.wait_started())\nflow.run('true').resubmit(2)\nflow.close()\n"
    )
    assert program(source, store).wait() == 0
    flow = again()
    first, *rest = flow.jobs()
    first.kill()
    assert [job.wait(site.within(60)).state for job in rest] == [JobState.DONE] * 3


@needs(*DETACHED)
def test_running_is_counted(program: Start, store: Path, make_flow: MakeFlow, shared: Path) -> None:
    """What an earlier program left running has its place in the queue: max_parallel holds across programs."""
    source = OPEN + f"flow.run(shell({until_written(shared / 'go')!r})).do(lambda task: task.wait_started())\n"
    assert program(source + "flow.close()\n", store, "detach").wait() == 0
    flow = make_flow(store=store, session_name="kept", detach=True, max_parallel=1).raise_for_error()
    first = only(flow)
    second = flow.run("true")
    assert (first.state, second.state) == (JobState.RUNNING, JobState.QUEUED)
    (shared / "go").touch()
    assert second.wait().state is JobState.DONE
    one, two = first.info(), second.info()
    assert one is not None
    assert two is not None
    assert one.finish_time is not None
    assert two.dispatch_time is not None
    assert one.finish_time <= two.dispatch_time


@needs(*DETACHED)
def test_array_limit_is_kept(
    site: Site, program: Start, store: Path, again: Callable[[], Workflow], shared: Path
) -> None:
    """The max_parallel of an array holds on in the next program."""
    source = OPEN + f"job = flow.run_array(4, shell({until_written(shared / 'go')!r}), max_parallel=1)\n"
    source += "flow.session.wait_any_started(job.tasks[0].tasks)\nflow.close()\n"
    assert program(source, store, "detach").wait() == 0
    job = only(again())
    (array,) = job.tasks
    assert isinstance(array, TaskArray)
    assert array.max_parallel == 1
    (shared / "go").touch()
    assert job.wait(site.within(120)).state is JobState.DONE
    times = sorted((info.dispatch_time, info.finish_time) for info in job.infos() if info.dispatch_time)
    assert len(times) == 4
    assert all(end is not None and end <= begin for (_, end), (begin, _) in pairwise(times))


@needs(*DETACHED)
def test_queued_elsewhere(site: Site, program: Start, store: Path, again: Callable[[], Workflow], shared: Path) -> None:
    """What waits in the queue of another program can be held, released and ended; both programs see what became of it,
    and what was ended never runs.
    """
    source = "flow = Workflow(open_context(store=arguments[0], session_name='kept', detach=True, max_parallel=1))\n"
    source += f"flow.run(shell({until_written(shared / 'go')!r})).do(lambda task: task.wait_started())\n"
    touch = f"touch {quoted(shared / 'ran')}"
    source += f"ended = flow.run(shell({touch!r}))\nheld = flow.run('true')\nsay('waits')\n"
    source += "say(ended.wait().state.name, ended.info().sub_state)\nsay(held.wait().state.name)\nflow.close()\n"
    started = program(source, store)
    assert started.line() == "waits"
    _, ended, held = again().jobs()
    assert [ended.state, held.state] == [JobState.QUEUED] * 2
    assert held.hold().errors == []
    site.until(lambda: held.state is JobState.QUEUED_HELD, "QUEUED_HELD")
    assert ended.kill().errors == []
    assert ended.wait(site.within(60)).state is JobState.FAILED
    assert started.line() == "FAILED cancelled"
    (shared / "go").touch()
    assert held.release().wait(site.within(60)).state is JobState.DONE
    assert started.line() == "DONE"
    assert started.wait() == 0
    assert not (shared / "ran").exists()


@needs(*DETACHED)
def test_two_programs(site: Site, program: Start, store: Path, again: Callable[[], Workflow], shared: Path) -> None:
    """Two programs may have one session open: each sees the other's jobs and their ends, and can wait for them."""
    line = until_written(shared / "go", then="exit 3")
    source = OPEN + f"job = flow.run(shell({line!r})).do(lambda task: task.wait_started())\nsay(job.job_id)\n"
    source += "say(job.exit_status())\nflow.close()\n"
    started = program(source, store, "detach")
    job_id = started.line()
    job = only(again())
    site.until(lambda: job.state is JobState.RUNNING, "RUNNING")
    assert job.job_id == job_id  # what the first program knows reaches the store a moment later
    (shared / "go").touch()
    assert job.wait(site.within(60)).exit_status() == 3
    assert started.line() == "3"
    assert started.wait() == 0


@needs(Trait.PROGRAMS, Trait.SHARED, Capability.REATTACH)
def test_undetached_after_kill(site: Site, program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """After SIGKILL of a program without detach its jobs are ended, and the next program knows them as FAILED."""
    source = OPEN + "flow.run('sleep', '600').do(lambda task: task.wait_started())\nsay('runs')\n"
    started = program(source + "import time; time.sleep(600)\n", store, "-")
    assert started.line() == "runs"
    started.send(signal.SIGKILL)
    started.wait()
    assert only(again()).wait(site.within(30)).state is JobState.FAILED


@needs(*DETACHED)
def test_killed_in_a_burst(
    site: Site, program: Start, store: Path, again: Callable[[], Workflow], shared: Path
) -> None:
    """A program killed while it submits: afterwards every recorded job ran exactly once or is known never to have run;
    none is lost, none is doubled (design point 10).
    """
    ran = shared / "ran"
    source = OPEN + f"job = flow.new_job()\nwhile True:\n    job.run(shell({f'echo $JOB_ID >> {quoted(ran)}'!r}))\n"
    source += "    if len(job.tasks) == 20: say('submits')\n"
    started = program(source, store, "detach")
    assert started.line() == "submits"
    started.send(signal.SIGKILL)
    started.wait()
    jobs = again().jobs()
    assert len(jobs) >= 20
    did = [job.wait(site.within(120)).state is JobState.DONE for job in jobs]
    assert {job.infos()[0].sub_state for job, done in zip(jobs, did, strict=True) if not done} <= {"launch_failure"}
    lines = ran.read_text().split()
    assert len(lines) == len(set(lines)) == sum(did)


@needs(Trait.PROGRAMS, Trait.REMEMBERS)
def test_found_without_a_store(site: Site, program: Start, make_flow: MakeFlow) -> None:
    """Where the system itself remembers jobs, a new program finds detached ones by their session's name alone: single
    ones and arrays, running and ended, with output and exit status; they can be controlled and reaped.
    """
    source = (
        "flow = Workflow(open_context(session_name='kept', detach=True))\n"
        "flow.run(shell('echo out; exit 3'), job_name='one').wait()\n"
        "flow.run_array(range(4, 8, 3), 'sleep', '600').do(lambda array: array.wait_started())\n"
    )
    started = program(source + "say('runs')\nimport time; time.sleep(600)\n")
    assert started.line() == "runs"
    started.send(signal.SIGKILL)
    started.wait()
    flow = make_flow(session_name="kept")
    single, array = flow.jobs()
    assert (single.wait(site.within(60)).exit_status(), single.output()) == (3, "out")
    assert single.template is not None
    assert single.template.job_name == "one"
    (task,) = array.tasks
    assert isinstance(task, TaskArray)
    assert [element.index for element in task] == [4, 7]
    site.until(lambda: array.state is JobState.RUNNING, "RUNNING")
    flow.close()
    again = make_flow(session_name="kept")
    single, array = again.jobs()
    assert array.kill().wait(site.within(60)).state is JobState.FAILED
    assert [info.terminating_signal for info in array.infos()] == [site.killed] * 2
    assert single.reap_all().errors == array.reap_all().errors == []
    assert again.jobs() == []


def test_damaged_store(store: Path, make_flow: MakeFlow) -> None:
    """A damaged store is a SessionManagementError that names it, before anything is started."""
    store.write_bytes(b"this is no database, and never was one" * 100)
    flow = make_flow(store=store)
    assert isinstance(flow.error, SessionManagementError)
    assert str(store) in str(flow.error)


def test_foreign_database(store: Path, make_flow: MakeFlow) -> None:
    """A database of something else is refused and not written to."""
    with sqlite3.connect(store) as connection:
        connection.execute("create table birds (name text)")
    connection.close()
    flow = make_flow(store=store)
    assert isinstance(flow.error, SessionManagementError)
    with sqlite3.connect(store) as connection:
        assert connection.execute("select name from sqlite_master").fetchall() == [("birds",)]
    connection.close()


def test_newer_store(store: Path, make_flow: MakeFlow) -> None:
    """A store that a newer version wrote is refused with words that say so."""
    make_flow(store=store).close()
    with sqlite3.connect(store) as connection:
        connection.execute("pragma user_version = 999")
    connection.close()
    flow = make_flow(store=store)
    assert isinstance(flow.error, SessionManagementError)
    assert "newer" in str(flow.error)


def leave_many(site: Site, program: Start, store: Path | str) -> None:
    """A program that is killed when it has submitted single jobs and an array."""
    source = "settings = {'store': arguments[0]} if arguments[0] else {}\n"
    source += "flow = Workflow(open_context(session_name='kept', detach=True, **settings), raise_errors=True)\n"
    source += "stay = JobTemplate.from_json(arguments[1])\nflow.run('true').wait()\n"
    source += "flow.run(stay).run(stay).run_array(3, stay)\nsay('left')\nimport time; time.sleep(600)\n"
    left = program(source, store, site.stay().to_json())
    assert left.line() == "left"
    left.send(signal.SIGKILL)
    left.wait()


def ends_all(site: Site, flow: Workflow) -> None:
    """`kill_all` at once in a program that has done nothing but open the session."""
    flow.kill_all()
    jobs = [job.synchronize(site.within(60)) for job in flow.jobs()]
    assert [[info.state for info in job.infos()] for job in jobs] == [
        [JobState.DONE],
        [JobState.FAILED],
        [JobState.FAILED],
        [JobState.FAILED] * 3,
    ]
    assert {info.sub_state for job in jobs[1:] for info in job.infos()} == {"cancelled"}
    assert [error for job in jobs for error in job.reap_all().errors] == []


@needs(Trait.PROGRAMS, Capability.REATTACH, Capability.DETACH, Capability.TERMINATE)
def test_kill_all_of_an_earlier_program(site: Site, program: Start, store: Path, again: Callable[[], Workflow]) -> None:
    """`Workflow.kill_all` ends what an earlier program with the same store left, single jobs and arrays."""
    leave_many(site, program, store)
    ends_all(site, again())


@needs(Trait.PROGRAMS, Trait.REMEMBERS, Capability.TERMINATE)
def test_kill_all_without_a_store(site: Site, program: Start, make_flow: MakeFlow) -> None:
    """Where the system itself remembers jobs, it does so by the session's name alone."""
    leave_many(site, program, "")
    ends_all(site, make_flow(session_name="kept").raise_for_error())

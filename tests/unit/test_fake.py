"""wfl.testing: a system that runs nothing, its virtual time, and how it fails when it is told to."""

import asyncio
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl import testing
from wfl.backend import Limits
from wfl.completed import as_completed
from wfl.drmaa2 import Capability, JobInfo, JobState, JobTemplate
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidStateError,
    TimeoutError,
    UnsupportedAttributeError,
    UnsupportedOperationError,
    WflError,
)
from wfl.job import Job
from wfl.retry import Backoff
from wfl.shell import shell
from wfl.task import Task
from wfl.testing import FakeContext, FakeSystem, Outcome
from wfl.testing.commands import understood
from wfl.workflow import Workflow

PATIENCE = 30  # seconds that a thread may take on a busy machine
FOREVER = Outcome(duration=math.inf)


@pytest.fixture
def flow_on() -> Iterator[Callable[..., Workflow]]:
    """Opens workflows on a system, whose errors raise; they are closed afterwards."""
    flows: list[Workflow] = []

    def make(system: FakeSystem, **settings: Any) -> Workflow:
        flows.append(Workflow(FakeContext(system, **settings), raise_errors=True))
        return flows[-1]

    yield make
    for flow in flows:
        flow.close()


@pytest.fixture(params=["told", "asked"])
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of a FakeSystem of either kind."""
    return {"tells": request.param == "told"}


def only(job: Job) -> Task:
    """The one task of a job."""
    (task,) = job.tasks
    assert isinstance(task, Task)
    return task


def until(condition: Callable[[], object]) -> None:
    """Wait until something is true that threads bring about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.001)


# --- what becomes of jobs ---------------------------------------------------------------------------------


def test_exported_names() -> None:
    """What the package exports is what can be imported from it."""
    assert sorted(testing.__all__) == ["FakeBackend", "FakeContext", "FakeSystem", "Outcome"]
    assert all(hasattr(testing, name) for name in testing.__all__)


def test_every_job_ends_well_at_once(flow_on: Callable[..., Workflow]) -> None:
    """Without a word from the test jobs take no time and end with 0; no command need exist."""
    system = FakeSystem()
    job = flow_on(system).run("no such command", "x")
    assert job.state is JobState.DONE
    assert job.exit_status() == 0
    assert system.now == 0


def test_behaviour_by_command(flow_on: Callable[..., Workflow]) -> None:
    """A mapping from the first words of a command line; the longest that fits counts."""
    flow = flow_on(FakeSystem({"git": 1, "git pull": 2, "git pull x": Outcome(exit_status=3)}))
    assert [flow.run(*line.split()).exit_status() for line in ("git push", "git pull y", "git pull x y", "gitk")] == [
        1, 2, 3, 0,
    ]  # fmt: skip


def test_behaviour_by_attempt(flow_on: Callable[..., Workflow]) -> None:
    """A sequence of outcomes is one for each attempt; the last stays."""
    flow = flow_on(FakeSystem({"flaky": [1, Outcome(signal="SIGBUS"), 0]}))
    job = flow.run("flaky").retry(5)
    attempts = only(job).attempts
    assert [task.info().exit_status for task in attempts] == [1, 135, 0]
    assert flow.run("flaky").success()


def test_behaviour_by_function(flow_on: Callable[..., Workflow]) -> None:
    """A function of template and index says what becomes of a job; None leaves it to the system."""

    def behave(template: JobTemplate, index: int | None) -> Outcome | int | None:
        if template.job_name == "named":
            return Outcome(output=f"index {index}")
        return index and index - 1

    flow = flow_on(FakeSystem(behave))
    assert flow.run("x", job_name="named").output() == "index None"
    array = flow.run_array(3, "x")
    assert [info.exit_status for info in array.infos()] == [0, 1, 2]


def test_function_that_refuses() -> None:
    """A WflError of the function is the system's refusal of that job alone."""

    def behave(_: JobTemplate, index: int | None) -> None:
        if index == 2:
            raise DeniedByDrmsError("not this one")

    system = FakeSystem(behave)
    job = Workflow(FakeContext(system)).run_array(3, "x")
    assert [info.sub_state for info in job.infos()] == ["exited", "launch_failure", "exited"]
    assert str(job.last_error) == "not this one"
    assert len(system.submitted) == 2


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome(), ("done", "exited", 0, None)),
        (Outcome(exit_status=3), ("failed", "exited", 3, None)),
        (Outcome(signal="SIGKILL"), ("failed", "signaled", 137, "SIGKILL")),
        (Outcome(signal="SIGKILL", sub_state="out_of_memory"), ("failed", "out_of_memory", 137, "SIGKILL")),
        (Outcome(sub_state="node_failure"), ("failed", "node_failure", None, None)),
        (Outcome(sub_state="preempted", exit_status=1), ("failed", "preempted", 1, None)),
    ],
)
def test_all_kinds_of_end(
    flow_on: Callable[..., Workflow], kind: dict[str, Any], outcome: Outcome, expected: tuple[object, ...]
) -> None:
    """Exit status, signal and sub state are reported as any backend would, whether told or asked for."""
    info = only(flow_on(FakeSystem({"x": outcome}, **kind)).run("x").wait()).info()
    assert (info.state, info.sub_state, info.exit_status, info.terminating_signal) == expected


def test_what_a_job_tells_of_itself(flow_on: Callable[..., Workflow]) -> None:
    """Times are virtual and agree with each other; the words are those of the outcome."""
    begin = datetime.now(UTC)
    system = FakeSystem({"x": Outcome(pending=10, duration=60, annotation="as planned")})
    info = only(flow_on(system).run("x", min_slots=4).wait()).info()
    assert info.submission_time is not None
    assert info.dispatch_time is not None
    assert info.finish_time is not None
    assert begin <= info.submission_time
    assert info.dispatch_time - info.submission_time == timedelta(seconds=10)
    assert info.finish_time - info.dispatch_time == info.wallclock_time == timedelta(seconds=60)
    assert (info.annotation, info.slots, info.allocated_machines) == ("as planned", 4, ("fake",))


def test_output_is_what_the_outcome_says(flow_on: Callable[..., Workflow]) -> None:
    """Both streams, as text or bytes, in pieces as the session asks for them."""
    flow = flow_on(FakeSystem({"a": Outcome(output="out\n", error_output="err"), "b": Outcome(output=b"\xff\0")}))
    job = flow.run("a")
    assert (job.output(), job.error_output()) == ("out", "err")
    assert only(flow.run("b")).output(encoding=None) == b"\xff\0"
    long = flow_on(FakeSystem({"c": Outcome(output=b"x" * 3_000_000)})).run("c")
    assert len(long.output()) == 3_000_000


def test_output_of_a_running_job(flow_on: Callable[..., Workflow]) -> None:
    """A service says that it is ready while it runs: its lines can be followed, and it be ended then."""
    job = flow_on(FakeSystem({"serve": Outcome(duration=math.inf, output="ready\n")})).run("serve")
    for line in job.stream():
        assert line == "ready"
        job.kill()
    assert only(job).info().terminating_signal == "SIGKILL"


def test_submitted_tells_what_was_given(flow_on: Callable[..., Workflow]) -> None:
    """Every job as the system got it: with defaults and placeholders filled in, and the indexes of arrays."""
    system = FakeSystem()
    flow = flow_on(system, default_template=JobTemplate(queue_name="q"))
    flow.run("one", "two").run_array(range(5, 8, 2), "a", "$DRMAA2_INDEX$")
    assert [submission.template for submission in system.submitted] == [
        JobTemplate(remote_command="one", args=["two"], queue_name="q"),
        JobTemplate(remote_command="a", args=["5"], queue_name="q"),
        JobTemplate(remote_command="a", args=["7"], queue_name="q"),
    ]
    assert [submission.index for submission in system.submitted] == [None, 5, 7]


# --- commands that do what they say -----------------------------------------------------------------------


def test_lines_of_shell_do_what_they_say(flow_on: Callable[..., Workflow]) -> None:
    """sleep, echo, exit and variables need no running; time is virtual."""
    system = FakeSystem()
    job = flow_on(system).run(shell("echo a $X; sleep 5; echo why >&2; exit 3; echo no"), job_environment={"X": "b"})
    assert job.exit_status() == 3
    assert (job.output(), job.error_output(), system.now) == ("a b", "why", 5)


def test_elements_see_their_index(flow_on: Callable[..., Workflow]) -> None:
    """TASK_ID and JOB_ID are what they are for any job."""
    job = flow_on(FakeSystem()).run_array(range(2, 4), shell("echo $TASK_ID $JOB_ID"))
    assert job.output() == f"2 {job.job_id}\n3 {job.job_id}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["true"], {}),
        (["false"], {"exit_status": 1}),
        (["sleep", "2.5"], {"duration": 2.5}),
        (["sleep", "inf"], {"duration": math.inf}),
        (["echo"], {"output": "\n"}),
        (["echo", "a", "b"], {"output": "a b\n"}),
        (["sh", "-c", "echo 'a  b'; echo c"], {"output": "a  b\nc\n"}),
        (["sh", "-c", "false\ntrue"], {}),
        (["sh", "-c", "true; false"], {"exit_status": 1}),
        (["sh", "-c", "exit 300"], {"exit_status": 44}),
        (["sh", "-c", "sleep 1; kill -TERM $$; sleep 9"], {"duration": 1, "exit_status": None, "signal": "SIGTERM"}),
        (["/bin/sh", "-c", "kill -9 $$"], {"exit_status": None, "signal": "SIGKILL"}),
        (["bash", "-c", "echo [$NO]"], {"output": "[]\n"}),
    ],
)
def test_understood(words: list[str], expected: dict[str, object]) -> None:
    """What these commands would do, as fields of an Outcome."""
    nothing = {"duration": 0, "exit_status": 0, "output": "", "error_output": ""}
    assert understood(words, {}) == {**nothing, **expected}


@pytest.mark.parametrize(
    "words",
    [
        ["python"],
        ["sleep", "a"],
        ["sleep"],
        ["sh", "script"],
        ["sh", "-c", "echo a | sort"],
        ["sh", "-c", "echo a > file"],
        ["sh", "-c", "echo $(date)"],
        ["sh", "-c", "echo 'a"],
        ["sh", "-c", "make; exit 3"],
        ["sh", "-c", "kill -TERM 1"],
    ],
)
def test_not_understood(words: list[str]) -> None:
    """Of anything else nothing is made up."""
    assert understood(words, {}) is None


@given(st.lists(st.text(st.characters(exclude_characters="\0"))), st.text())
def test_any_command_is_taken(words: list[str], line: str) -> None:
    """No command line is an error."""
    understood([line, *words], {})
    understood(["sh", "-c", line], {})


# --- time -------------------------------------------------------------------------------------------------


def test_hours_pass_at_once(flow_on: Callable[..., Workflow], kind: dict[str, Any]) -> None:
    """A chain of long jobs, pauses and retries with backoff takes virtual time only."""
    begin = time.monotonic()
    system = FakeSystem({"long": Outcome(duration=3600), "flaky": [1, 1, 0]}, **kind)
    job = flow_on(system).run("long").then_run("long").after(1800).run("flaky")
    job.retry(5, backoff=Backoff(initial=600, factor=2, maximum=9999, jitter=0))
    assert job.success()
    late = 0 if system.tells else 3 * 60  # a system that is asked once a minute is learnt of so late
    assert 0 <= system.now - (3600 + 1800 + 600 + 1200) <= late
    assert time.monotonic() - begin < PATIENCE


def test_timeouts_are_virtual(flow_on: Callable[..., Workflow], kind: dict[str, Any]) -> None:
    """Who waits for a minute for what takes an hour is late after a minute, and the job goes on."""
    system = FakeSystem({"long": Outcome(duration=3600)}, **kind)
    task = only(flow_on(system).run("long"))
    with pytest.raises(TimeoutError, match="after 60 s 1 of 1 tasks had not ended"):
        task.wait_terminated(60)
    assert (system.now, task.state) == (60, JobState.RUNNING)
    task.wait_terminated(3540 if system.tells else 3610)
    assert task.state is JobState.DONE


def test_a_look_takes_no_time(flow_on: Callable[..., Workflow]) -> None:
    """A time-out of 0 looks once."""
    system = FakeSystem({"long": Outcome(duration=1)})
    task = only(flow_on(system).run("long"))
    with pytest.raises(TimeoutError):
        task.wait_terminated(0)
    assert system.now == 0


def test_time_does_not_jump_to_what_is_over(flow_on: Callable[..., Workflow]) -> None:
    """A time-out of a wait that ended in time is forgotten: nothing is due any more."""
    system = FakeSystem()
    flow_on(system).run("sleep", "1").wait(3600)
    assert (system.now, system.time._next()) == (1, math.inf)  # noqa: SLF001 - nobody else needs to see it


def test_things_happen_in_order(flow_on: Callable[..., Workflow], kind: dict[str, Any]) -> None:
    """Jobs end in the order of their virtual ends, whatever the order of submission."""
    flow = flow_on(FakeSystem(**kind))
    jobs = [flow.run("sleep", str(seconds)) for seconds in (3, 1, 2)]
    assert [task.template.args for task in as_completed(jobs)] == [("1",), ("2",), ("3",)]


def test_time_waits_for_who_was_woken(flow_on: Callable[..., Workflow]) -> None:
    """While the test's own code runs after a wait, nothing more happens: the rest can be ended in time."""
    flow = flow_on(FakeSystem())
    jobs = [flow.run("sleep", str(seconds)) for seconds in (1, 1.001, 1.002)]
    first = next(iter(as_completed(jobs)))
    for job in jobs:
        job.kill()
    assert [only(job).state for job in jobs] == [JobState.DONE, JobState.FAILED, JobState.FAILED]
    assert first.id == only(jobs[0]).id


def test_queues_move_in_virtual_time(flow_on: Callable[..., Workflow], kind: dict[str, Any]) -> None:
    """Five jobs of three seconds, two at once, take nine."""
    system = FakeSystem(**kind)
    job = flow_on(system).run_array(5, "sleep", "3", max_parallel=2).wait(30)
    assert job.success()
    assert 9 <= system.now <= (9 if system.tells else 20)


def test_run_every_is_drift_free(flow_on: Callable[..., Workflow]) -> None:
    """Once a minute for an hour is sixty-one submissions at full minutes."""
    system = FakeSystem()
    job = flow_on(system).new_job().run_every(60, "x", until=3600)
    times = [info.submission_time for info in job.infos()]
    assert len(times) == 61
    assert [time - times[0] for time in times if time and times[0]] == [timedelta(minutes=n) for n in range(61)]


def test_limits_of_time_are_virtual(flow_on: Callable[..., Workflow]) -> None:
    """WALLCLOCK_TIME ends a job after its virtual time; a stubborn one is killed."""
    system = FakeSystem({"x": FOREVER, "stubborn": Outcome(duration=math.inf, stubborn=True)})
    flow = flow_on(system)
    info = only(flow.run("x", resource_limits={"WALLCLOCK_TIME": 3600}).wait()).info()
    assert (info.sub_state, info.terminating_signal, system.now) == ("timeout", "SIGTERM", 3600)
    info = only(flow.run("stubborn", resource_limits={"WALLCLOCK_TIME": 60}).wait()).info()
    assert (info.sub_state, info.terminating_signal) == ("timeout", "SIGKILL")


def test_polling_programs_get_on(flow_on: Callable[..., Workflow]) -> None:
    """A script that only looks at a state, or waits by other means, is not left waiting."""
    flow = flow_on(FakeSystem())
    job = flow.run("sleep", "60")
    until(lambda: job.state is JobState.DONE)
    called = threading.Event()
    only(flow.run("sleep", "60")).add_done_callback(lambda _: called.set())
    assert called.wait(PATIENCE)


def test_event_loops_get_on(flow_on: Callable[..., Workflow]) -> None:
    """Awaiting lets time go on as well, for many at once and one after another."""
    system = FakeSystem()
    flow = flow_on(system)

    async def main() -> None:
        for _ in range(3):
            await flow.run("sleep", "1000")
        await asyncio.gather(*(only(flow.run("sleep", str(n))) for n in range(1, 4)))
        seen = [task.template.args async for task in as_completed([flow.run("sleep", n) for n in "213"])]
        assert seen == [("1",), ("2",), ("3",)]

    asyncio.run(main())
    assert system.now == 3006


def test_branches_share_the_time(flow_on: Callable[..., Workflow]) -> None:
    """Branches that sleep side by side take as long as the longest."""
    system = FakeSystem()
    begin = threading.Barrier(3)

    def branch(job: Job) -> None:
        job.run("sleep", str(5 + begin.wait(PATIENCE)))
        begin.wait(PATIENCE)
        job.wait()

    flow_on(system).branch(branch, branch, branch).join(PATIENCE)
    assert system.now == 7


def test_time_stands_still_without_a_session(flow_on: Callable[..., Workflow]) -> None:
    """Detached jobs wait for the next session, so that a test decides what happens in between."""
    system = FakeSystem()
    flow = flow_on(system, detach=True)
    task = only(flow.run("sleep", "1"))
    flow.close()
    assert system.now == 0
    system.advance(1)
    assert system.now == 1
    assert FakeContext(system).backend().ask([task.id]).infos[0].state is JobState.DONE


def test_no_thread_stays(flow_on: Callable[..., Workflow]) -> None:
    """A closed workflow leaves no thread behind, and a system none without workflows."""
    before = set(threading.enumerate())
    for auto in (True, False):
        flow = flow_on(FakeSystem(auto=auto, tells=False), max_parallel=1)
        flow.run("x").run("y")
        flow.kill_all().close()
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
    assert set(threading.enumerate()) <= before


# --- steered by hand --------------------------------------------------------------------------------------


def test_nothing_happens_by_itself(flow_on: Callable[..., Workflow]) -> None:
    """Without automatic time a job waits until it is started, and runs until it is finished."""
    system = FakeSystem(auto=False)
    task = only(flow_on(system).run("x"))
    states = [task.state]
    system.start(task)
    states.append(task.state)
    system.finish(task, exit_status=4, error_output="four")
    assert states == ["queued", "running"]
    assert (task.info().exit_status, task.error_output()) == (4, "four")


def test_advance_moves_time_so_far(flow_on: Callable[..., Workflow]) -> None:
    """Everything due within the time happens, nothing of later."""
    system = FakeSystem(auto=False)
    flow = flow_on(system)
    tasks = [only(flow.run("sleep", str(seconds))) for seconds in (1, 2, 3)]
    system.advance(2)
    assert [task.state for task in tasks] == ["done", "done", "running"]
    assert system.now == 2
    system.advance(1)
    assert tasks[2].state is JobState.DONE


def test_systems_that_are_asked_are_learnt_of_late(flow_on: Callable[..., Workflow]) -> None:
    """What happens there is known after the next question, as with real ones."""
    system = FakeSystem(auto=False, tells=False, limits=Limits(ask_min=10, ask_max=10))
    task, seen = only(flow_on(system).run("sleep", "15")), []
    for seconds in (0, 14, 2, 7):  # it is asked at 0, from 10 to 11, and from 20 to 22
        system.advance(seconds)
        seen.append(str(task.state))
    assert seen == ["running", "running", "running", "done"]


def test_advance_is_finished_when_it_returns(flow_on: Callable[..., Workflow]) -> None:
    """Also what the session does in consequence: a queue of jobs moves through within one call."""
    system = FakeSystem(auto=False)
    job = flow_on(system, max_parallel=1).run_array(4, "sleep", "10")
    system.advance(25)
    assert [info.state for info in job.infos()] == ["done", "done", "running", "queued"]
    system.advance(15)
    assert job.state is JobState.DONE


def test_waiting_is_moved_by_hand(flow_on: Callable[..., Workflow]) -> None:
    """A thread that sleeps for ten minutes wakes when the test has moved time by ten minutes."""
    system = FakeSystem(auto=False)
    flow = flow_on(system)
    errors: list[WflError] = []

    def wait() -> None:
        try:
            only(flow.run("sleep", "inf")).wait_terminated(600)
        except TimeoutError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: system.time._asleep)  # noqa: SLF001 - nobody else needs to see it
    system.advance(599)
    assert thread.is_alive()
    assert not errors
    system.advance(1)
    thread.join(PATIENCE)
    assert len(errors) == 1


def test_wrong_ids_are_errors() -> None:
    """Steering a job that is not there says so."""
    with pytest.raises(InvalidStateError, match="the fake system has no job '7'"):
        FakeSystem().finish("7")


def test_control(flow_on: Callable[..., Workflow]) -> None:
    """Suspended time does not count; held jobs do not start; what is not possible in a state is refused."""
    system = FakeSystem(auto=False)
    task = only(flow_on(system).run("sleep", "10"))
    seen = []

    def after(seconds: float) -> None:
        system.advance(seconds)
        seen.append(str(task.state))

    task.hold()
    after(100)
    task.release()
    after(4)
    with pytest.raises(InvalidStateError, match="cannot release: it is running"):
        task.release()
    task.suspend()
    after(100)
    task.resume()
    after(5)
    after(1)
    assert seen == ["queuedHeld", "running", "suspended", "running", "done"]


def test_killing_what_waits_in_the_system(flow_on: Callable[..., Workflow]) -> None:
    """A job that never ran has no exit status, and says that it was cancelled."""
    system = FakeSystem({"x": Outcome(pending=math.inf)})
    task = only(flow_on(system).run("x"))
    task.terminate()
    info = task.info()
    assert (info.sub_state, info.exit_status, info.dispatch_time) == ("cancelled", None, None)


def test_stubborn_jobs_need_killing(flow_on: Callable[..., Workflow]) -> None:
    """Asked to end they do not; killed they do."""
    system = FakeSystem({"x": Outcome(duration=math.inf, stubborn=True)})
    task = only(flow_on(system).run("x"))
    begin = system.now
    task.terminate(grace=30)
    task.wait_terminated()
    assert (task.info().terminating_signal, system.now - begin) == ("SIGKILL", 30)


def test_requeued_jobs_start_once_more(flow_on: Callable[..., Workflow]) -> None:
    """A requeued job waits and runs again, with all of its time."""
    system = FakeSystem({"x": Outcome(pending=1, duration=10)}, auto=False)
    task = only(flow_on(system).run("x"))
    seen = []
    for seconds in (6, 0, 1, 9, 1):
        system.advance(seconds)
        if not seconds:
            system.requeue(task)
        seen.append(str(task.state))
    assert seen == ["running", "requeued", "running", "running", "done"]


def test_vanished_jobs_are_lost(flow_on: Callable[..., Workflow], kind: dict[str, Any]) -> None:
    """What somebody removed from the system is lost, whether that is told or found out by asking."""
    system = FakeSystem({"x": FOREVER}, **kind)
    task = only(flow_on(system).run("x"))
    until(lambda: task.state is JobState.RUNNING)
    system.vanish(task)
    task.wait_terminated()
    assert (task.info().sub_state, task.info().exit_status) == ("lost", None)


def test_facts_can_be_told_freely(flow_on: Callable[..., Workflow]) -> None:
    """Any fact, at any time, as often as wanted."""
    system = FakeSystem(auto=False)
    task = only(flow_on(system).run("x"))
    system.tell(JobInfo(id=task.id, state=JobState.SUSPENDED, queue_name="q"), JobInfo(id="nobody"))
    assert (task.state, task.info().queue_name) == (JobState.SUSPENDED, "q")


# --- how it fails -----------------------------------------------------------------------------------------


def test_calls_fail_when_told_to(flow_on: Callable[..., Workflow]) -> None:
    """The next calls of a kind raise; then it is as before."""
    system = FakeSystem({"x": FOREVER})
    flow = flow_on(system)
    task = only(flow.run("x"))
    system.fail("control", DrmCommunicationError("no route"), times=2)
    for _ in range(2):
        with pytest.raises(DrmCommunicationError, match="no route"):
            task.suspend()
    task.suspend()
    assert (task.state, system.calls["control"]) == (JobState.SUSPENDED, 3)


def test_only_the_answer_is_lost(flow_on: Callable[..., Workflow]) -> None:
    """With `done` the system does what it was asked for, and nobody learns of it."""
    system = FakeSystem({"x": FOREVER})
    task = only(flow_on(system).run("x"))
    system.fail("control", DrmCommunicationError("broken pipe"), done=True)
    with pytest.raises(DrmCommunicationError):
        task.suspend()
    assert task.state is JobState.SUSPENDED


def test_slow_calls(flow_on: Callable[..., Workflow]) -> None:
    """A slow system keeps its caller for real seconds."""
    system = FakeSystem()
    system.slow["submit"] = 0.05
    flow = flow_on(system)
    begin = time.monotonic()
    flow.run("x")
    assert time.monotonic() - begin >= 0.05


def test_calls_are_counted(flow_on: Callable[..., Workflow]) -> None:
    """What was asked of the system, by kind: an array is one submission, bulk control one call."""
    system = FakeSystem({"x": FOREVER})
    job = flow_on(system).run_array(1000, "x")
    job.suspend().kill().reap_all()
    assert system.calls == {"open": 1, "submit": 1, "control": 2, "reap": 1}


# --- what it can and cannot do ----------------------------------------------------------------------------


def test_capabilities_can_be_taken_away(flow_on: Callable[..., Workflow]) -> None:
    """Without a capability the session refuses, or does it itself."""
    system = FakeSystem({"x": FOREVER}, without=[Capability.SUSPEND, Capability.NATIVE_ARRAYS, Capability.HOLD])
    flow = flow_on(system)
    task = only(flow.run("x"))
    with pytest.raises(UnsupportedOperationError, match="fake cannot suspend"):
        task.suspend()
    held = flow.run("x", submit_as_hold=True)
    assert (held.state, len(system.submitted)) == (JobState.QUEUED_HELD, 1)
    array = flow.run_array(3, "x")
    assert [task.id for task in array.tasks[0]] == ["2", "3", "4"]  # type: ignore[union-attr] # it is an array


def test_native_arrays(flow_on: Callable[..., Workflow]) -> None:
    """With native arrays elements share the number of their array."""
    array = flow_on(FakeSystem()).run_array(range(3, 8, 2), "x")
    assert [task.id for task in array.tasks[0]] == ["1.3", "1.5", "1.7"]  # type: ignore[union-attr] # it is an array


def test_fields_are_those_asked_for() -> None:
    """A workflow meant for a system that honours less can be tested against that."""
    flow = Workflow(FakeContext(FakeSystem(fields=["remote_command", "args"], extensions=["gpu"])))
    error = flow.run("x", queue_name="q").last_error
    assert isinstance(error, UnsupportedAttributeError)
    assert str(error) == "fake does not honour queue_name; remove it (honoured: args, remote_command)"


def test_extensions_are_those_asked_for() -> None:
    """Extensions are refused by name, unless the system was made with them."""
    flow = Workflow(FakeContext(FakeSystem(extensions=["gpus"])))
    assert flow.run("x", extensions={"gpus": "1"}).success()
    error = flow.run("x", extensions={"gpu": "1"}).last_error
    assert re.search(r"no extension 'gpu'; did you mean 'gpus'", str(error))


def test_empty_command_is_refused() -> None:
    """A job needs something to run, also here."""
    error = Workflow(FakeContext()).run("").last_error
    assert isinstance(error, InvalidArgumentError)


def test_reaped_jobs_are_forgotten(flow_on: Callable[..., Workflow]) -> None:
    """After reaping, the system does not know the job any more."""
    system = FakeSystem()
    job = flow_on(system).run("x").reap_all()
    assert job.job_id == "1"
    assert not system.ids()


def test_sessions_share_a_system(flow_on: Callable[..., Workflow]) -> None:
    """Several workflows, each with its own jobs, in one time."""
    system = FakeSystem()
    one, two = flow_on(system), flow_on(system)
    first, second = one.run("sleep", "5"), two.run("sleep", "3")
    assert second.wait().state is JobState.DONE
    assert first.state is JobState.RUNNING
    assert first.wait().state is JobState.DONE
    assert system.now == 5


def test_closing_ends_what_it_started(flow_on: Callable[..., Workflow], caplog: pytest.LogCaptureFixture) -> None:
    """A workflow that closes ends its own jobs, and not those of others."""
    system = FakeSystem({"x": FOREVER})
    one, two = flow_on(system), flow_on(system)
    mine, theirs = only(one.run("x")), only(two.run("x"))
    one.close()
    assert (mine.state, theirs.state) == (JobState.FAILED, JobState.RUNNING)
    assert "1 task had not ended" in caplog.text


def test_system_or_behaviour() -> None:
    """A context takes a system, or makes one of the behaviour that it is given."""
    system = FakeSystem()
    assert FakeContext(system).system is system
    with Workflow(FakeContext({"x": 3})) as flow:
        assert flow.run("x").exit_status() == 3


def test_example_of_the_package(tmp_path: Path) -> None:
    """The example in the documentation of wfl.testing runs."""
    assert testing.__doc__ is not None
    example = "\n".join(testing.__doc__.splitlines()[2:])
    script = tmp_path / "example.py"
    script.write_text(example)
    exec(compile(example, script, "exec"), {})  # noqa: S102 - its own text

"""JobSession: submitting, the ledger, waiting, callbacks, queues, limits, asking and closing; on a fake system."""

import asyncio
import itertools
import logging
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl import asker, errors
from wfl.backend import Action, Answer, Limits, Submission, ended
from wfl.completed import as_completed
from wfl.drmaa2 import Capability, JobInfo, JobState, JobTemplate
from wfl.record import ENDED
from wfl.session import JobSession
from wfl.task import Task
from wfl.testing import FakeBackend, FakeContext, FakeSystem, Outcome
from wfl.workflow import Workflow

PATIENCE = 30  # seconds that a thread may take on a busy machine
FOREVER = Outcome(duration=math.inf)
NOW = datetime(2030, 1, 1, tzinfo=UTC)
BROKEN = errors.DrmCommunicationError("connection reset")


@pytest.fixture
def open_session() -> Iterator[Callable[..., JobSession]]:
    """Opens sessions on fake systems; they are closed afterwards."""
    opened: list[JobSession] = []

    def make(system: FakeSystem | FakeContext, **settings: Any) -> JobSession:
        context = system if isinstance(system, FakeContext) else FakeContext(system, **settings)
        opened.append(JobSession(context))
        return opened[-1]

    yield make
    for session in opened:
        session.close()


Open = Callable[..., JobSession]


def run(session: JobSession, command: str = "x", *args: str, **fields: Any) -> Task:
    """Submit one job."""
    (task,) = session.start([JobTemplate(remote_command=command, args=args, **fields)])
    return task


def run_many(session: JobSession, number: int, command: str = "x", **fields: Any) -> list[Task]:
    """Submit the same job so many times, in one go."""
    return session.start([JobTemplate(remote_command=command, **fields)] * number)


def run_array(session: JobSession, number: int, command: str = "x", **settings: Any) -> list[Task]:
    """Submit an array; its elements."""
    return list(session.start_array(JobTemplate(remote_command=command), range(1, number + 1), **settings))


def states(tasks: Sequence[Task]) -> list[JobState]:
    """The states of these."""
    return [task.state for task in tasks]


def state(task: Task) -> JobState:
    """The state of this."""
    return task.state


def why(task: Task) -> str | None:
    """How it ended."""
    return task.info().sub_state


def until(condition: Callable[[], object]) -> None:
    """Wait until something is true that threads bring about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.001)


def in_thread(f: Callable[[], object]) -> threading.Thread:
    """Do it on the side."""
    thread = threading.Thread(target=f, daemon=True)
    thread.start()
    return thread


def waiting(task: Task) -> bool:
    """Whether somebody sleeps until it ends."""
    return bool(task._record.waiters)  # noqa: SLF001 - seen nowhere else


def fact(id: str, state: JobState, **known: Any) -> JobInfo:
    """A fact about a job."""
    return JobInfo(id=id, state=state, **known)


# --- a key before the job ---------------------------------------------------------------------------------


def test_keys_come_before_ids(open_session: Open) -> None:
    """Every job, and every element, is given to the system with a key that no other ever had."""
    system = FakeSystem(without=[Capability.NATIVE_ARRAYS])
    for session in (open_session(system), open_session(system)):
        run_many(session, 3)
        run_array(session, 3)
    assert len({submission.key for submission in system.submitted}) == 12


def test_refused_submission(open_session: Open) -> None:
    """A refusal is a task that has failed, with the system's own error; the session goes on."""
    system = FakeSystem()
    session = open_session(system)
    error = errors.DeniedByDrmsError("no such queue")
    system.fail("submit", error)
    task = run(session)
    assert task.error is error
    info = task.info()
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "launch_failure", None)
    assert info.annotation == "no such queue"
    assert state(run(session)) is JobState.DONE


def test_drmaa2_calls_raise_a_refusal(open_session: Open) -> None:
    """run_job and run_bulk_jobs raise what the system says, as DRMAA2 has it."""
    system = FakeSystem()
    session = open_session(system)
    system.fail("submit", errors.OutOfResourceError("quota"), times=2)
    with pytest.raises(errors.OutOfResourceError, match="quota"):
        session.run_job(JobTemplate(remote_command="x"))
    with pytest.raises(errors.OutOfResourceError, match="quota"):
        session.run_bulk_jobs(JobTemplate(remote_command="x"), range(1, 3))


def test_unforeseen_trouble_on_submission(open_session: Open, caplog: pytest.LogCaptureFixture) -> None:
    """A mistake inside a backend fails the job, not the program, and is logged with its traceback."""

    def behave(_template: JobTemplate, _index: int | None) -> None:
        raise ZeroDivisionError

    task = run(open_session(FakeSystem(behave)))
    assert isinstance(task.error, errors.InternalError)
    assert "ZeroDivisionError" in caplog.text


def test_unknown_submission_that_was_accepted(open_session: Open) -> None:
    """When the answer is lost, the job is found by its key; it is not submitted a second time."""
    system = FakeSystem({"x": Outcome(duration=5)})
    session = open_session(system)
    system.fail("submit", BROKEN, done=True)
    task = run(session)
    assert state(task) is JobState.UNDETERMINED
    task.wait_terminated()
    assert (state(task), task.id) == (JobState.DONE, "1")
    assert (system.calls["submit"], system.calls["find"], len(system.submitted)) == (1, 1, 1)


def test_unknown_submission_that_was_not_accepted(open_session: Open) -> None:
    """When the system does not know the key, the job was never started; that is said, and nothing submitted again."""
    system = FakeSystem()
    session = open_session(system)
    system.fail("submit", BROKEN)
    task = run(session)
    task.wait_terminated()
    assert (why(task), len(system.submitted)) == ("launch_failure", 0)
    assert str(task.error) == "it was never started: connection reset"


def test_unknown_stays_unknown_while_nobody_answers(open_session: Open) -> None:
    """As long as the system does not answer, or says nothing of it, the job is neither lost nor submitted again."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system)
    system.fail("submit", BROKEN, done=True)
    system.fail("find", BROKEN, times=5)
    silent, find = [Answer(), Answer()], session.backend.find
    session.backend.find = lambda known: silent.pop() if silent else find(known)  # type: ignore[method-assign]
    task = run(session)
    until(lambda: state(task) is JobState.RUNNING)
    assert (len(system.submitted), system.calls["find"]) == (1, 6)
    assert not silent


def test_part_of_an_unknown_submission_was_accepted(open_session: Open) -> None:
    """Of several jobs in one lost answer each is settled by itself."""

    def behave(_: JobTemplate, index: int | None) -> None:
        if index == 2:
            raise errors.DeniedByDrmsError("no")

    system = FakeSystem(behave)
    session = open_session(system)
    system.fail("submit", BROKEN, done=True)
    tasks = run_array(session, 3)
    session.wait(tasks)
    assert [why(task) for task in tasks] == ["exited", "launch_failure", "exited"]


def test_end_that_is_told_before_the_id_is_known(open_session: Open) -> None:
    """A job may end before its submission is settled; its end is kept until it is known whose it is."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system)
    find = session.backend.find

    def find_then_end(known: Any) -> Answer:
        answer = find(known)
        system.finish("1", exit_status=9)  # told while the answer is on its way
        return answer

    session.backend.find = find_then_end  # type: ignore[method-assign] # at the worst moment
    system.fail("submit", BROKEN, done=True)
    task = run(session)
    task.wait_terminated(60)
    assert task.info().exit_status == 9


class KeysAreIds(FakeBackend):
    """A system that uses our key as its id, as processes do: facts may be told before the submission returns."""

    def submit(self, submissions: Sequence[Submission]) -> Sequence[str | errors.WflError]:
        """Accept under their keys."""
        return self._call("submit", lambda: [self._accept(one, one.key) for one in submissions])


class KeyContext(FakeContext):
    """A context of such a system."""

    def backend(self) -> KeysAreIds:
        """Connect to it."""
        return KeysAreIds(self.system)


def test_end_that_is_told_before_the_answer_is_lost(open_session: Open) -> None:
    """What is known of a job is not forgotten when its submission turns out to be unsettled."""
    system = FakeSystem({"x": 3, "y": FOREVER})
    session = open_session(KeyContext(system))
    system.fail("submit", BROKEN, times=2, done=True)
    ended_one, running = run(session, "x"), run(session, "y")
    assert (state(ended_one), ended_one.info().exit_status) == (JobState.FAILED, 3)
    assert state(running) is JobState.RUNNING
    assert ended_one.error is None
    until(lambda: system.calls["find"])
    system.finish(running)
    assert state(running) is JobState.DONE


def test_killing_what_is_unsettled(open_session: Open) -> None:
    """A job that is ended while nobody knows whether it was started is ended as soon as it is found."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system)
    system.fail("submit", BROKEN, done=True)
    system.fail("find", BROKEN, times=2)
    task = run(session)
    task.terminate()
    task.wait_terminated()
    assert why(task) == "cancelled"
    assert system.collect(["1"])[0].state is JobState.FAILED


def test_job_id_is_known_before_the_job_starts(open_session: Open) -> None:
    """JOB_ID is the key, which exists before the system's id; elements have that of their array, and an index."""
    system = FakeSystem()
    session = open_session(system)
    task = run(session, "sh", "-c", "echo $JOB_ID")
    array = session.start_array(JobTemplate(remote_command="sh", args=["-c", "echo $JOB_ID $TASK_ID"]), range(4, 6))
    assert task.output() == system.submitted[0].key
    assert [element.output() for element in array] == [f"{array.id} 4", f"{array.id} 5"]


# --- requests: how many at once, how much in one ----------------------------------------------------------


class Meter:
    """Counts how many calls are going on at once; each takes a moment."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def around(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, counted."""

        def counted(*args: Any) -> Any:
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(0.002)
            try:
                return f(*args)
            finally:
                with self._lock:
                    self.now -= 1

        return counted


def test_submissions_are_cut_into_requests(open_session: Open) -> None:
    """No request holds more jobs than the system takes, and no more requests are on their way than it likes."""
    system = FakeSystem(without=[Capability.NATIVE_ARRAYS], limits=Limits(submissions=10, requests=3))
    session, meter, sizes = open_session(system), Meter(), list[int]()
    submit = meter.around(session.backend.submit)
    session.backend.submit = lambda jobs: sizes.append(len(jobs)) or submit(jobs)  # type: ignore[method-assign]
    tasks = run_many(session, 95) + run_array(session, 95)
    assert sorted(sizes) == [5] * 2 + [10] * 18
    assert 1 < meter.most <= 3
    assert {state(task) for task in tasks} == {JobState.DONE}


def test_order_of_submission_is_kept(open_session: Open) -> None:
    """One after another in the caller's thread: ids grow in the order of submission."""
    tasks = run_many(open_session(FakeSystem()), 20)
    assert [int(task.id) for task in tasks] == list(range(1, 21))


def test_requests_of_many_threads(open_session: Open) -> None:
    """Also when many threads work at once, no more chunks are on their way than the system likes."""
    system = FakeSystem(limits=Limits(submissions=1, requests=2))
    session, meter = open_session(system), Meter()
    session.backend.submit = meter.around(session.backend.submit)  # type: ignore[method-assign] # counted
    threads = [in_thread(lambda: run_many(session, 6)) for _ in range(4)]
    for thread in threads:
        thread.join(PATIENCE)
    assert len(system.submitted) == 24
    assert meter.most <= 2


@pytest.mark.parametrize("call", ["control", "reap"])
def test_ids_are_cut_into_requests(open_session: Open, call: str) -> None:
    """Controlling and reaping many at once keep to the number of ids in one request."""
    system = FakeSystem({"x": FOREVER}, limits=Limits(ids=10))
    session = open_session(system)
    tasks = run_many(session, 25)
    session.control(tasks, Action.KILL)
    session.reap(tasks)
    assert system.calls[call] == 3


def test_native_array_is_one_request(open_session: Open) -> None:
    """However many elements, a native array is one submission."""
    system = FakeSystem()
    tasks = run_array(open_session(system), 2000)
    assert (system.calls["submit"], len(system.submitted)) == (1, 2000)
    assert {state(task) for task in tasks} == {JobState.DONE}


def test_elements_that_differ_are_submitted_one_by_one(open_session: Open) -> None:
    """A native array has one template; elements with placeholders are jobs of their own."""
    system = FakeSystem()
    array = open_session(system).start_array(JobTemplate(remote_command="$DRMAA2_INDEX$"), range(3))
    assert [task.template.remote_command for task in array] == ["0", "1", "2"]
    assert [task.id for task in array] == ["1", "2", "3"]


# --- the ledger -------------------------------------------------------------------------------------------


@pytest.fixture
def told(open_session: Open) -> tuple[FakeSystem, JobSession, Task]:
    """A job that waits in a system, of which facts can be told by hand."""
    system = FakeSystem(auto=False)
    session = open_session(system)
    return system, session, run(session)


def test_an_end_is_final(told: tuple[FakeSystem, JobSession, Task]) -> None:
    """Whatever is told after an end changes nothing."""
    system, session, task = told
    system.finish(task, exit_status=3)
    info, changes = task.info(), session.changes
    for late in JobState:
        system.tell(fact(task.id, late, sub_state="exited", exit_status=0))
    system.tell(ended(task.id, signal_name="SIGKILL"))
    assert (task.info(), session.changes) == (info, changes)


def test_a_fact_that_says_nothing_new(told: tuple[FakeSystem, JobSession, Task]) -> None:
    """A repetition changes nothing, and wakes nobody."""
    system, session, task = told
    running = fact(task.id, JobState.RUNNING, dispatch_time=NOW)
    system.tell(running)
    changes = session.changes
    system.tell(running, running)
    system.tell(fact(task.id, JobState.RUNNING))
    assert session.changes == changes


def test_late_facts_do_not_lead_back(told: tuple[FakeSystem, JobSession, Task]) -> None:
    """A job that has started is not queued again by a fact of before."""
    system, _, task = told
    system.tell(fact(task.id, JobState.RUNNING))
    for late in (JobState.QUEUED, JobState.QUEUED_HELD, JobState.UNDETERMINED):
        system.tell(fact(task.id, late))
        assert state(task) is JobState.RUNNING


def test_only_requeueing_leads_back(told: tuple[FakeSystem, JobSession, Task]) -> None:
    """A requeued job waits; its first run is over, also when it is told of once more; the second one counts."""
    system, _, task = told
    first = fact(task.id, JobState.RUNNING, dispatch_time=NOW)
    seen = []
    for told_now in (
        first,
        fact(task.id, JobState.REQUEUED),
        first,
        fact(task.id, JobState.QUEUED),
        fact(task.id, JobState.RUNNING, dispatch_time=NOW + timedelta(1)),
        ended(task.id, exit_status=0),
    ):
        system.tell(told_now)
        seen.append(state(task))
    assert seen == ["running", "requeued", "requeued", "requeued", "running", "done"]


def test_what_is_known_is_kept(told: tuple[FakeSystem, JobSession, Task]) -> None:
    """Facts complete each other: what a later one does not say stays."""
    system, _, task = told
    system.tell(fact(task.id, JobState.RUNNING, queue_name="q", allocated_machines=["a"], dispatch_time=NOW))
    system.tell(fact(task.id, JobState.SUSPENDED, annotation="by hand"))
    system.tell(ended(task.id, exit_status=1, cpu_time=timedelta(seconds=2)))
    info = task.info()
    assert (info.queue_name, info.allocated_machines, info.dispatch_time) == ("q", ("a",), NOW)
    assert (info.annotation, info.cpu_time, info.exit_status) == ("by hand", timedelta(seconds=2), 1)


def test_facts_of_strangers(told: tuple[FakeSystem, JobSession, Task]) -> None:
    """Facts about jobs that are not the session's are not its business."""
    system, session, task = told
    system.tell(fact("stranger", JobState.RUNNING), ended("stranger", exit_status=0))
    assert [other.id for other in session.get_jobs()] == [task.id]


STORY = [
    fact("1", JobState.QUEUED),
    fact("1", JobState.RUNNING, dispatch_time=NOW, queue_name="q"),
    fact("1", JobState.SUSPENDED, dispatch_time=NOW),
    fact("1", JobState.UNDETERMINED),
    ended("1", exit_status=5, finish_time=NOW + timedelta(1)),
    ended("1", exit_status=5, finish_time=NOW + timedelta(1)),
]


@given(st.permutations(STORY), st.lists(st.sampled_from(STORY), max_size=4))
def test_any_order_of_facts(order: list[JobInfo], again: list[JobInfo]) -> None:
    """However facts come, late, repeated, out of order: the job ends once, with its exit status, and is told of once."""
    system = FakeSystem(auto=False)
    session = JobSession(FakeContext(system))
    task, called = run(session), list[Task]()
    task.add_done_callback(called.append)
    system.tell(*order, *again)
    assert (state(task), task.info().exit_status, why(task)) == (JobState.FAILED, 5, "exited")
    session.close()  # waits for callbacks
    assert called == [task]


@given(st.lists(st.sampled_from(STORY[:4])))
def test_facts_never_end_a_job_by_themselves(facts: list[JobInfo]) -> None:
    """Without an end among the facts nothing has ended, and a start is never taken back."""
    system = FakeSystem(auto=False)
    session = JobSession(FakeContext(system))
    task = run(session)
    system.tell(*facts)
    assert not state(task).ended
    assert state(task).started == any(told.state.started for told in facts)
    session.close()


def test_session_adds_what_it_knows(open_session: Open) -> None:
    """Time of submission, submitting machine and owner are there, whether or not the system tells them."""
    before = datetime.now(UTC)
    system = FakeSystem()
    system.fail("submit", errors.DeniedByDrmsError("no"))
    info = run(open_session(system)).info()
    assert info.submission_time is not None
    assert before - timedelta(seconds=1) <= info.submission_time <= datetime.now(UTC)
    assert info.submission_machine
    assert info.job_owner


@pytest.mark.parametrize(
    ("like", "ids"),
    [
        (JobInfo(), ["1", "2", "3"]),
        (JobInfo(state=JobState.DONE), ["1"]),
        (JobInfo(state=JobState.FAILED, exit_status=2), ["2"]),
        (JobInfo(exit_status=0, id="2"), []),
        (JobInfo(allocated_machines=["fake"]), ["1", "2", "3"]),
        (JobInfo(allocated_machines=["other"]), []),
        (JobInfo(wallclock_time=timedelta(seconds=4)), ["2"]),
    ],
)
def test_jobs_can_be_filtered(open_session: Open, like: JobInfo, ids: list[str]) -> None:
    """DRMAA2's filter: what it says must agree; times are lower bounds, machines are contained."""
    session = open_session(FakeSystem({"a": 0, "b": Outcome(duration=5, exit_status=2), "c": FOREVER}))
    tasks = [run(session, command) for command in "abc"]
    session.wait(tasks[:2])
    assert [task.id for task in session.get_jobs(like)] == ids


# --- gone, no answer, ends in two steps -------------------------------------------------------------------


def asked(**settings: Any) -> FakeSystem:
    """A system that must be asked, with jobs that run until they are finished."""
    return FakeSystem({"x": FOREVER}, tells=False, **settings)


def answers(session: JobSession, f: Callable[[Answer], Answer]) -> None:
    """Change what the system answers."""
    ask = session.backend.ask
    session.backend.ask = lambda ids: f(ask(ids))  # type: ignore[method-assign] # on the way


def test_gone_after_it_was_seen(open_session: Open) -> None:
    """A job that was there and is not any more is lost, in words; its exit status is not made up."""
    system = asked()
    task = run(open_session(system))
    until(lambda: state(task) is JobState.RUNNING)
    system.vanish(task)
    task.wait_terminated()
    info = task.info()
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "lost", None)
    assert info.annotation == "fake does not know it any more"


def test_gone_before_it_was_ever_seen(open_session: Open) -> None:
    """A fresh job of which the system does not know yet is asked about again, not given up."""
    system = asked()
    session = open_session(system)
    unknowing = 5

    def not_yet(answer: Answer) -> Answer:
        nonlocal unknowing
        unknowing -= 1
        return Answer(gone=["1"]) if unknowing >= 0 else answer

    answers(session, not_yet)
    task = run(session)
    until(lambda: state(task) is JobState.RUNNING)
    assert unknowing < 0


def test_no_answer_says_nothing(open_session: Open, caplog: pytest.LogCaptureFixture) -> None:
    """While the system does not answer nothing fails and nobody gives up; both are said once."""
    system = asked()
    session = open_session(system)
    task = run(session)
    until(lambda: state(task) is JobState.RUNNING)
    system.fail("ask", BROKEN, times=5)
    until(lambda: system.calls["ask"] > 8)
    assert state(task) is JobState.RUNNING
    system.finish(task)
    task.wait_terminated()
    lines = [record.message for record in caplog.records]
    assert lines == ["fake does not answer, asking on: connection reset", "fake answers again"]


def test_jobs_that_an_answer_leaves_out(open_session: Open) -> None:
    """A job that is neither told of nor said to be gone is asked about again."""
    session = open_session(system := asked())
    tasks = run_many(session, 2)
    answers(session, lambda answer: Answer(infos=answer.infos[:1]))
    until(lambda: state(tasks[0]) is JobState.RUNNING)
    until(lambda: system.calls["ask"] > 5)
    assert state(tasks[1]) is JobState.QUEUED


def test_asking_survives_everything(open_session: Open, caplog: pytest.LogCaptureFixture) -> None:
    """An unforeseen exception does not end the asking."""
    session, times = open_session(asked()), 3

    def stumble(answer: Answer) -> Answer:
        nonlocal times
        times -= 1
        return answer if times < 0 else Answer(infos=[None])  # type: ignore[list-item] # unforeseen

    answers(session, stumble)
    task = run(session)
    until(lambda: state(task) is JobState.RUNNING)
    assert "fake does not answer in an unforeseen way, asking on" in caplog.text


@pytest.mark.parametrize("tells", [True, False])
def test_ends_are_collected_in_bulk(open_session: Open, tells: bool) -> None:
    """Jobs seen ended are asked for their exit status together, and end with it."""
    system = FakeSystem({"x": Outcome(duration=1, exit_status=4)}, tells=tells, two_steps=True)
    session = open_session(system)
    tasks = run_array(session, 200)
    session.wait(tasks)
    assert {task.info().exit_status for task in tasks} == {4}
    assert system.calls["collect"] <= 3


@pytest.mark.parametrize("trouble", [BROKEN, errors.TryLaterError("busy")])
def test_collecting_is_tried_again(open_session: Open, trouble: errors.WflError) -> None:
    """As long as the documented time lasts, an exit status that cannot be had is asked for again."""
    system = FakeSystem({"x": Outcome(duration=1, exit_status=4)}, two_steps=True)
    session = open_session(system)
    tasks = run_many(session, 50)
    system.fail("collect", trouble, times=3)
    session.wait(tasks)
    assert {task.info().exit_status for task in tasks} == {4}
    assert system.calls["collect"] == 4


@pytest.mark.parametrize(("status", "sub_state"), [(0, "exited"), (4, "lost")])
def test_collecting_has_an_end(open_session: Open, status: int, sub_state: str) -> None:
    """What cannot be had in time stays unknown: the end that was seen, without an exit status, and words about it."""
    limits = Limits(collect=30)
    system = FakeSystem({"x": Outcome(duration=1, exit_status=status)}, two_steps=True, limits=limits)
    session = open_session(system)
    session.backend.collect = lambda _: ()  # type: ignore[method-assign] # never known
    task = run(session)
    task.wait_terminated()
    info = task.info()
    assert info.state is (JobState.FAILED if status else JobState.DONE)
    assert (info.exit_status, info.sub_state) == (None, sub_state)
    assert info.annotation == "its exit status could not be had within 30 s"
    assert 31 <= system.now < 35


def test_what_was_seen_ended_is_not_lost(open_session: Open) -> None:
    """A scheduler forgets what has ended: such a job is collected, neither asked about any more nor called lost."""
    system = asked(two_steps=True)
    session = open_session(system)
    task, other = run_many(session, 2)
    until(lambda: states([task, other]) == ["running", "running"])
    system.fail("collect", BROKEN, times=4)
    asked_for: list[Sequence[str]] = []
    ask = session.backend.ask
    session.backend.ask = lambda ids: asked_for.append(ids) or ask(ids)  # type: ignore[method-assign] # watched
    system.finish(task, exit_status=4)
    task.wait_terminated()
    assert (why(task), task.info().exit_status) == ("exited", 4)
    assert asked_for[-1] == [other.id]


# --- asking -----------------------------------------------------------------------------------------------


def test_systems_that_tell_are_never_asked(open_session: Open) -> None:
    """No question, however long one waits."""
    system = FakeSystem({"x": Outcome(duration=3600)})
    session = open_session(system)
    tasks = run_many(session, 50)
    session.wait(tasks)
    assert system.calls == {"open": 1, "submit": 1}


def test_one_question_for_all_jobs(open_session: Open) -> None:
    """Every question is about all jobs, and between two lies at least the shortest interval."""
    interval = 0.03
    system = asked(limits=Limits(ask_min=interval, ask_max=interval))
    session, times, sizes = open_session(system), list[float](), set[int]()
    ask = session.backend.ask

    def watched(ids: Sequence[str]) -> Answer:
        times.append(time.monotonic())
        sizes.add(len(ids))
        return ask(ids)

    session.backend.ask = watched  # type: ignore[method-assign] # watched
    tasks = run_many(session, 500)
    for _ in range(20):
        in_thread(lambda: session.wait(tasks))
    until(lambda: len(times) > 5)
    assert sizes == {500}
    assert all(later - earlier >= interval for earlier, later in itertools.pairwise(times))


def test_questions_keep_to_the_number_of_ids(open_session: Open) -> None:
    """A question about more jobs than fit in one is asked in parts."""
    system = asked(limits=Limits(ask_min=0.01, ask_max=0.01, ids=10))
    session, sizes = open_session(system), list[int]()
    ask = session.backend.ask
    session.backend.ask = lambda ids: sizes.append(len(ids)) or ask(ids)  # type: ignore[method-assign] # watched
    tasks = run_many(session, 25)
    until(lambda: set(states(tasks)) == {"running"})
    assert sizes[:3] == [10, 10, 5]


def test_the_interval_grows_while_nothing_changes(open_session: Open) -> None:
    """The longer nothing happens, the more rarely is asked, up to a longest interval."""
    system = asked(limits=Limits(ask_min=0.02, ask_max=0.08))
    session, times = open_session(system), list[float]()
    task = run(session)
    until(lambda: state(task) is JobState.RUNNING)
    answers(session, lambda answer: times.append(time.monotonic()) or answer)  # type: ignore[func-returns-value]
    until(lambda: len(times) > 6)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[1] >= 0.02 * asker.SLOWER
    assert gaps[2] >= 0.02 * asker.SLOWER**2
    assert min(gaps[4:]) >= 0.08


async def await_task(task: Task) -> None:
    """Wait in an event loop."""
    await task


@pytest.mark.parametrize(
    "wait",
    [
        lambda task: task.wait_terminated(),
        lambda task: task._record.session.wait_any_terminated([task]),  # noqa: SLF001 - as DRMAA2 has it
        lambda task: list(as_completed([task])),
        lambda task: asyncio.run(await_task(task)),
        lambda task: list(task.stream()),
    ],
    ids=["wait", "wait_any", "as_completed", "await", "stream"],
)
def test_waiting_hurries_the_asking(
    open_session: Open, monkeypatch: pytest.MonkeyPatch, wait: Callable[[Task], object]
) -> None:
    """Who begins to wait gets a fresh answer at once, not after an interval that has become long."""
    monkeypatch.setattr(asker, "SLOWER", 1e6)
    system = asked(limits=Limits(ask_min=0.01, ask_max=3600))
    session = open_session(system)
    task = run(session)
    until(lambda: state(task) is JobState.RUNNING)
    until(lambda: session._asker is not None and session._asker._interval == 3600)  # noqa: SLF001 - now it sleeps
    system.finish(task)
    thread = in_thread(lambda: wait(task))
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_submitting_hurries_the_asking(open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new job is asked about soon, whatever the interval has become."""
    monkeypatch.setattr(asker, "SLOWER", 1e6)
    session = open_session(asked(limits=Limits(ask_min=0.01, ask_max=3600)))
    for _ in range(3):
        task = run(session)
        until(lambda task=task: state(task) is JobState.RUNNING)  # type: ignore[misc]


def test_nobody_is_asked_without_jobs(open_session: Open) -> None:
    """When all have ended the questions end."""
    system = asked(limits=Limits(ask_min=0.005, ask_max=0.005))
    task = run(open_session(system))
    until(lambda: state(task) is JobState.RUNNING)
    system.finish(task)
    task.wait_terminated()
    time.sleep(0.02)
    calls = system.calls["ask"]
    time.sleep(0.05)  # ten intervals
    assert system.calls["ask"] == calls


# --- waiting ----------------------------------------------------------------------------------------------


def test_waiting_for_an_end(open_session: Open) -> None:
    """Without a time-out until it ends, for one and for all, also for what has ended already."""
    system = FakeSystem()
    session = open_session(system)
    tasks = [run(session, "sleep", str(seconds)) for seconds in (3, 0, 2)]
    session.wait(tasks)
    assert states(tasks) == ["done"] * 3
    session.wait(tasks)
    assert system.now == 3


@pytest.mark.parametrize("timeout", [0, 2, timedelta(seconds=2), 2.0])
def test_a_wait_that_is_too_short(open_session: Open, timeout: float | timedelta) -> None:
    """After its time a wait is an error that says how many had not ended; nothing is cancelled."""
    session = open_session(FakeSystem())
    tasks = [run(session, "sleep", "1"), run(session, "sleep", "3"), run(session, "sleep", "4")]
    number = 2 if timeout else 3
    with pytest.raises(errors.TimeoutError, match=f"after {2 if timeout else 0} s {number} of 3 tasks had not ended"):
        session.wait(tasks, timeout if timeout == 0 else 2.0)
    assert states(tasks[1:]) == ["running", "running"]
    for task in tasks:
        with pytest.raises(errors.TimeoutError) if not task.state.ended else pytest.warns(None) as _:  # type: ignore[call-overload]
            task.wait_terminated(0)

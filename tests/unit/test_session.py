"""JobSession: submitting, the ledger, waiting, callbacks, queues, limits, asking and closing; on a fake system."""

import asyncio
import itertools
import logging
import math
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl import Job, asker, errors
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


def is_running(task: Task) -> bool:
    """Whether it runs."""
    return task.state is JobState.RUNNING


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


def each(tasks: Sequence[Task], f: Callable[[Task], object]) -> None:
    """Do it with each of these."""
    for task in tasks:
        f(task)


def waiting(task: Task) -> bool:
    """Whether somebody sleeps until it ends."""
    return bool(task._record.waiters)  # noqa: SLF001 - seen nowhere else


def put(session: JobSession, call: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put something in the place of a call to the system; it is made of the call itself."""
    setattr(session.backend, call, make(getattr(session.backend, call)))


def watch(session: JobSession, call: str, note: Callable[[Any], object]) -> None:
    """Note what the system is given with each call of a kind."""

    def make(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def noted(given: Any) -> Any:
            note(given)
            return f(given)

        return noted

    put(session, call, make)


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
    silent = [Answer(), Answer()]
    put(session, "find", lambda find: lambda known: silent.pop() if silent else find(known))
    task = run(session)
    task.wait_started()
    assert (state(task), len(system.submitted), system.calls["find"]) == (JobState.RUNNING, 1, 6)
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

    def find_then_end(find: Callable[[Any], Answer]) -> Callable[[Any], Answer]:
        def found(known: Any) -> Answer:
            answer = find(known)
            system.finish("1", exit_status=9)  # told while the answer is on its way
            return answer

        return found

    put(session, "find", find_then_end)
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
    system.advance(10)
    assert system.calls["find"] == 1
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
    put(session, "submit", meter.around)
    watch(session, "submit", lambda jobs: sizes.append(len(jobs)))
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
    put(session, "submit", meter.around)
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


@pytest.mark.parametrize("field", ["submit_as_hold", "deadline_time"])
def test_native_array_that_waits(open_session: Open, field: str) -> None:
    """Nor does a hold cut it up where the system itself holds, nor a deadline."""
    system = FakeSystem()
    given: dict[str, Any] = {field: soon(3600) if field == "deadline_time" else True}
    array = open_session(system).start_array(JobTemplate(remote_command="x", **given), range(2000))
    assert (system.calls["submit"], len(system.submitted)) == (1, 2000)
    array.release() if field == "submit_as_hold" else None
    assert {state(task) for task in array} == {JobState.DONE}


def test_native_array_of_which_some_have_ended(open_session: Open) -> None:
    """Elements that were killed before it could be submitted are left out, and the others run."""
    system = FakeSystem()
    session = open_session(system)
    admit = session._prepare  # noqa: SLF001 - the moment is nowhere else

    def prepare(record: Any) -> bool:
        if record.index == 2:
            session._end_here([record], "cancelled", "too late")  # noqa: SLF001
        return admit(record)

    session._prepare = prepare  # type: ignore[method-assign] # noqa: SLF001
    array = session.start_array(JobTemplate(remote_command="x", submit_as_hold=True), range(4))
    assert [submission.index for submission in system.submitted] == [0, 1, 3]
    assert [state(task) == JobState.FAILED for task in array] == [False, False, True, False]


def test_elements_that_differ_are_submitted_one_by_one(open_session: Open) -> None:
    """A native array has one template; elements with placeholders are jobs of their own."""
    system = FakeSystem()
    array = open_session(system).start_array(JobTemplate(remote_command="$DRMAA2_INDEX$"), range(3))
    assert [task.template.remote_command for task in array] == ["0", "1", "2"]
    assert [task.id for task in array] == ["1", "2", "3"]


class Resolving(FakeBackend):
    """A system that names files of this side by whole paths."""

    place = "/here"

    def resolve(self, template: JobTemplate) -> JobTemplate:
        """The output's."""
        path = template.output_path or ""
        return template.replace(output_path=path if path[:1] == "$" else os.path.join(self.place, path))


def test_templates_are_resolved_by_their_system(open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single jobs, their next attempts, elements, and arrays as a whole."""
    context = FakeContext(FakeSystem({"x": 3}))
    monkeypatch.setattr(context, "backend", lambda: Resolving(context.system))
    session = open_session(context)
    first = run(session, "x", output_path="a")
    monkeypatch.setattr(Resolving, "place", "/there")
    again = session.again(first._record)  # noqa: SLF001 - what a retry calls
    monkeypatch.undo()
    whole = session.start_array(JobTemplate(remote_command="x", output_path="c"), range(1))
    differs = JobTemplate(remote_command="x", output_path="$DRMAA2_HOME_DIR$/$DRMAA2_INDEX$")
    each = session.start_array(differs, range(2))
    paths = [first.template.output_path, again.template.output_path, *(task.template.output_path for task in whole)]
    assert paths == ["/here/a", "/here/a", "/here/c"]
    home = os.path.expanduser("~")
    assert [task.template.output_path for task in each] == [f"{home}/0", f"{home}/1"]


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
    """However facts come, late, repeated, out of order: the job ends once, with its exit status, and one callback."""
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
    put(session, "ask", lambda ask: lambda ids: f(ask(ids)))


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


def test_gone_and_never_seen(open_session: Open) -> None:
    """It is waited for a time of its own, however long exit statuses may take."""
    session = open_session(asked(limits=Limits(collect=600, missing=0)))
    answers(session, lambda _: Answer(gone=["1"]))
    task = run(session)
    task.wait_terminated()
    assert (state(task), why(task)) == (JobState.FAILED, "lost")


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
    task.wait_started()
    assert (state(task), unknowing) == (JobState.RUNNING, -1)


def test_no_answer_says_nothing(open_session: Open, caplog: pytest.LogCaptureFixture) -> None:
    """While the system does not answer nothing fails and nobody gives up; both are said once."""
    system = asked()
    session = open_session(system)
    task = run(session)
    task.wait_started()
    system.fail("ask", BROKEN, times=5)
    system.advance(60)
    assert (state(task), system.calls["ask"] > 6) == (JobState.RUNNING, True)
    system.finish(task)
    task.wait_terminated()
    lines = [record.message for record in caplog.records]
    assert lines == ["fake does not answer, asking on: connection reset", "fake answers again"]


def test_jobs_that_an_answer_leaves_out(open_session: Open) -> None:
    """A job that is neither told of nor said to be gone is asked about again."""
    session = open_session(system := asked())
    tasks = run_many(session, 2)
    answers(session, lambda answer: Answer(infos=answer.infos[:1]))
    system.advance(1000)
    assert system.calls["ask"] > 10
    assert states(tasks) == ["running", "queued"]


def test_asking_survives_everything(open_session: Open, caplog: pytest.LogCaptureFixture) -> None:
    """An unforeseen exception does not end the asking."""
    session, times = open_session(asked()), 3

    def stumble(answer: Answer) -> Answer:
        nonlocal times
        times -= 1
        return answer if times < 0 else Answer(infos=[None])  # type: ignore[list-item] # unforeseen

    answers(session, stumble)
    task = run(session)
    task.wait_started()
    assert state(task) is JobState.RUNNING
    assert "fake does not answer in an unforeseen way, asking on" in caplog.text


@pytest.mark.parametrize("tells", [True, False])
def test_ends_are_collected_in_bulk(open_session: Open, *, tells: bool) -> None:
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


@pytest.mark.parametrize("status", [0, 4])
def test_collecting_has_an_end(open_session: Open, status: int) -> None:
    """What cannot be had in time stays unknown: no success, without an exit status, and words about it."""
    limits = Limits(collect=30)
    system = FakeSystem({"x": Outcome(duration=1, exit_status=status)}, two_steps=True, limits=limits)
    session, calls = open_session(system), list[Sequence[str]]()
    put(session, "collect", lambda _: lambda _: ())
    watch(session, "collect", calls.append)
    tasks = run_array(session, 50)
    session.wait(tasks)
    assert {len(ids) for ids in calls} == {50}
    assert len(calls) < 25  # ever more rarely
    info = tasks[0].info()
    assert (info.state, info.exit_status, info.sub_state) == (JobState.FAILED, None, "lost")
    assert info.annotation == "its exit status could not be had within 30 s"
    assert 31 <= system.now < 35


def test_collecting_waits_for_a_system_that_is_away(open_session: Open, caplog: pytest.LogCaptureFixture) -> None:
    """An exit status may take so long while the system answers: its silence ends nothing, and is told once."""
    system = FakeSystem({"x": Outcome(duration=1, exit_status=4)}, two_steps=True, limits=Limits(collect=30))
    session = open_session(system)
    task = run(session)
    system.fail("collect", BROKEN, times=100)
    task.wait_terminated()
    assert system.now > 150
    assert (task.info().exit_status, why(task)) == (4, "exited")
    assert [line for line in caplog.messages if "collecting ends" in line] == [
        "fake: collecting ends failed, trying again: connection reset"
    ]


def test_ends_that_are_awaited_delay_no_others(open_session: Open) -> None:
    """An exit status that does not come is asked for ever more rarely, and the next one at once all the same."""
    system = FakeSystem({"x": Outcome(duration=1), "y": Outcome(duration=12.25)}, two_steps=True)
    session = open_session(system)
    stuck, other = run(session), session.run_job(JobTemplate(remote_command="y"))
    put(session, "collect", lambda collect: lambda ids: [info for info in collect(ids) if info.id != stuck.id])
    other.wait_terminated()
    assert system.now < 12.5


def test_what_was_seen_ended_is_not_lost(open_session: Open) -> None:
    """A scheduler forgets what has ended: such a job is collected, neither asked about any more nor called lost."""
    system = asked(two_steps=True)
    session = open_session(system)
    task, other = run_many(session, 2)
    until(lambda: states([task, other]) == ["running", "running"])
    asked_for: list[Sequence[str]] = []
    watch(session, "ask", asked_for.append)
    system.fail("collect", BROKEN, times=8)
    system.finish(task, exit_status=4)
    task.wait_terminated()
    assert (why(task), task.info().exit_status) == ("exited", 4)
    assert asked_for[0] == [task.id, other.id]
    assert len(asked_for) > 1
    assert all(ids == [other.id] for ids in asked_for[1:])


# --- asking -----------------------------------------------------------------------------------------------


def test_systems_that_tell_are_never_asked(open_session: Open) -> None:
    """No question, however long one waits."""
    system = FakeSystem({"x": Outcome(duration=3600)})
    session = open_session(system)
    tasks = run_many(session, 50)
    session.wait(tasks)
    assert system.calls == {"open": 1, "submit": 1}


def test_one_question_for_all_jobs(open_session: Open) -> None:
    """One question per interval, about all jobs, however many there are and however many wait for them."""
    system = asked(auto=False, limits=Limits(ask_min=10, ask_max=10))
    session, times, sizes = open_session(system), list[float](), set[int]()

    def note(ids: Sequence[str]) -> None:
        times.append(system.now)
        sizes.add(len(ids))

    watch(session, "ask", note)
    tasks = run_many(session, 500)
    for _ in range(20):
        in_thread(lambda: session.wait(tasks))
    until(lambda: len(tasks[0]._record.waiters or ()) == 20)  # noqa: SLF001 - seen nowhere else
    system.advance(1000)
    assert sizes == {500}
    assert 90 <= len(times) <= 101
    assert all(10 <= later - earlier <= 11 for earlier, later in itertools.pairwise(times))


def test_questions_keep_to_the_number_of_ids(open_session: Open) -> None:
    """A question about more jobs than fit in one is asked in parts."""
    system = asked(limits=Limits(ids=10))
    session, sizes = open_session(system), list[int]()
    watch(session, "ask", lambda ids: sizes.append(len(ids)))
    tasks = run_many(session, 25)
    until(lambda: set(states(tasks)) == {"running"})
    assert sizes[:3] == [10, 10, 5]


def test_the_interval_grows_while_nothing_changes(open_session: Open) -> None:
    """The longer nothing happens, the more rarely is asked, up to a longest interval; a change makes it short again."""
    system = asked(auto=False, limits=Limits(ask_min=2, ask_max=20))
    session, times = open_session(system), list[float]()
    watch(session, "ask", lambda _: times.append(system.now))
    task = run(session)
    system.advance(200)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    for gap, expected in zip(gaps, [2, 3, 4.5, 6.75, 10.125, 15.1875, 20, 20], strict=False):
        assert expected <= gap <= expected * (1 + asker.JITTER)
    assert len(times) < 20
    system.control(task.id, Action.SUSPEND)
    seen = len(times)  # the next question learns of it
    system.advance(30)
    assert state(task) is JobState.SUSPENDED
    assert times[seen + 1] - times[seen] <= 2 * (1 + asker.JITTER)


def test_an_expected_end_is_asked_for_in_time(open_session: Open) -> None:
    """At the age at which the last job of its kind ended, and when its time is up, the next question is not far."""
    system = asked(auto=False, limits=Limits(ask_min=2, ask_max=3600))
    system.capabilities |= {Capability.WALLCLOCK_LIMIT}
    session, times = open_session(system), list[float]()
    watch(session, "ask", lambda _: times.append(system.now))

    def asked_at(when: float) -> bool:
        return any(when <= time <= when + 2.5 for time in times)

    first = run(session)
    system.advance(1000)
    system.finish(first)
    in_thread(first.wait_terminated)
    until(lambda: bool(first._record.waiters))  # noqa: SLF001 - seen nowhere else
    system.advance(5)
    assert state(first) is JobState.DONE
    began = system.now
    run(session)
    run(session, job_name="other", resource_limits={"WALLCLOCK_TIME": 4000})
    system.advance(5000)
    assert asked_at(began + 1000)
    assert asked_at(began + 4000)
    assert len(times) < 60


def test_an_expected_end_of_an_earlier_program_s_job(open_session: Open, tmp_path: Path) -> None:
    """What a program finds running it expects to end, too."""
    system = asked(auto=False, limits=Limits(ask_min=2, ask_max=3600))
    system.capabilities |= {Capability.WALLCLOCK_LIMIT}
    with JobSessionOf(system, tmp_path) as session:
        task = run(session, resource_limits={"WALLCLOCK_TIME": 4000})
        system.advance(5)
        assert state(task) is JobState.RUNNING
    times, begin = list[float](), system.now
    watch(open_session(system, store=tmp_path / "jobs", detach=True), "ask", lambda _: times.append(system.now))

    def its_thread_is_there() -> bool:
        system.advance(0.001)
        return bool(times)

    until(its_thread_is_there)
    system.advance(4500)
    assert any(begin + 3990 <= time <= begin + 4003 for time in times)
    assert len(times) < 60


def test_an_end_is_a_change_before_its_exit_status_is_known(open_session: Open) -> None:
    """Where one ends others do: the interval is short again, though it is not told yet how it ended."""
    system = asked(auto=False, two_steps=True, limits=Limits(ask_min=2, ask_max=20))
    session, times = open_session(system), list[float]()
    watch(session, "ask", lambda _: times.append(system.now))
    put(session, "collect", lambda _: lambda _: ())
    first, _ = run_many(session, 2)
    system.advance(200)
    system.finish(first)
    seen = len(times)
    system.advance(30)
    assert times[seen + 1] - times[seen] <= 2 * (1 + asker.JITTER)


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
    system = asked(limits=Limits(ask_min=2, ask_max=3600))
    session = open_session(system)
    task = run(session)
    system.advance(10)  # by now the next question is an hour away
    system.finish(task)
    system.advance(10)
    assert state(task) is JobState.RUNNING
    wait(task)
    assert state(task) is JobState.DONE
    assert system.now < 25


def test_submitting_hurries_the_asking(open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new job is asked about soon, whatever the interval has become."""
    monkeypatch.setattr(asker, "SLOWER", 1e6)
    system = asked(limits=Limits(ask_min=2, ask_max=3600))
    session = open_session(system)
    for _ in range(3):
        task = run(session)
        system.advance(10)
        assert state(task) is JobState.RUNNING


def test_nobody_is_asked_without_jobs(open_session: Open) -> None:
    """When all have ended the questions end."""
    system = asked()
    task = run(open_session(system))
    task.wait_started()
    system.finish(task)
    task.wait_terminated()
    calls = system.calls["ask"]
    system.advance(1000)
    assert system.calls["ask"] == calls


def test_submissions_from_many_threads_are_all_asked_about(open_session: Open) -> None:
    """However submissions and questions overlap, no job is forgotten."""
    system = FakeSystem({"x": Outcome(duration=1)}, tells=False)
    session = open_session(system)

    def work() -> None:
        for _ in range(20):
            session.wait(run_many(session, 2))

    threads = [in_thread(work) for _ in range(4)]
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


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


@pytest.mark.parametrize(("timeout", "late"), [(0, 3), (2, 2), (timedelta(seconds=3.5), 1)])
def test_a_wait_that_is_too_short(open_session: Open, timeout: float | timedelta, late: int) -> None:
    """After its time a wait is an error that says how many had not ended; nothing is cancelled. 0 looks once."""
    system = FakeSystem()
    session = open_session(system)
    array = session.start_array(JobTemplate(remote_command="sleep", args=["$DRMAA2_INDEX$"]), range(1, 6, 2))
    with pytest.raises(errors.TimeoutError, match=rf"after \S+ s {late} of 3 tasks had not ended; they go on"):
        array.wait_terminated(timeout)
    assert states(list(array)) == ["done"] * (3 - late) + ["running"] * late
    assert system.now == (timeout if isinstance(timeout, int) else 3.5)


@pytest.mark.parametrize("timeout", [-1, math.nan, timedelta(seconds=-1)])
def test_times_that_cannot_be(open_session: Open, timeout: float) -> None:
    """A negative time-out, or none at all, is wrong use and raises at once, also for what has ended."""
    task = run(open_session(FakeSystem()))
    for wait in (task.wait_terminated, task.wait_started):
        with pytest.raises(errors.InvalidArgumentError, match="timeout is"):
            wait(timeout)


@pytest.mark.parametrize("timeout", [None, math.inf, 1e300])
def test_times_without_an_end(open_session: Open, timeout: float | None) -> None:
    """None, infinity and what is beyond all patience wait until the end."""
    task = run(open_session(FakeSystem()), "sleep", "1e9".replace("e9", "000000000"))
    task.wait_terminated(timeout)
    assert state(task) is JobState.DONE


def test_waiting_for_a_start(open_session: Open) -> None:
    """A wait for the start is over when the job runs, and also when it ends without ever having run."""
    system = FakeSystem({"x": Outcome(pending=10, duration=10)})
    session = open_session(system)
    task, killed = run_many(session, 2)
    killed.terminate()
    killed.wait_started()
    task.wait_started()
    assert (state(task), system.now) == (JobState.RUNNING, 10)
    task.wait_started(0)
    with pytest.raises(errors.TimeoutError, match="1 of 1 tasks had not started"):
        run(session).wait_started(5)


def test_a_wait_that_timed_out_leaves_nothing_behind(open_session: Open) -> None:
    """Waiters that have gone are not woken later, and hold nothing up."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system)
    task = run(session)
    for _ in range(3):
        for wait in (task.wait_terminated, lambda limit: session.wait_any_terminated([task], limit)):
            with pytest.raises(errors.TimeoutError):
                wait(1)
    assert not waiting(task)
    system.requeue(task)
    system.finish(task)
    task.wait_terminated()


def test_first_of_thousands(open_session: Open) -> None:
    """Waiting for any of thousands returns the one that ended, and leaves no waiter at the others."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system)
    tasks = run_array(session, 5000)
    system.time.after(7, lambda: system.finish(tasks[4321]))
    assert session.wait_any_terminated(tasks) is tasks[4321]
    assert not any(waiting(task) for task in tasks)
    assert session.wait_any_terminated(tasks, timeout=0) is tasks[4321]
    with pytest.raises(errors.TimeoutError, match="after 3 s none of 4321 tasks had ended"):
        session.wait_any_terminated(tasks[:4321], 3)


def test_first_to_start(open_session: Open) -> None:
    """The one that started is returned, even if it is requeued the next moment."""
    system = FakeSystem({"x": Outcome(pending=math.inf)})
    session = open_session(system)
    tasks = run_many(session, 3)

    def start_and_requeue() -> None:
        system.start(tasks[1])
        system.requeue(tasks[1])

    system.time.after(1, start_and_requeue)
    assert session.wait_any_started(tasks, 5) is tasks[1]
    with pytest.raises(errors.InvalidArgumentError, match="there is no task to wait for"):
        session.wait_any_started([])


def test_many_wait_for_one(open_session: Open) -> None:
    """One end wakes everybody who waits for it, in whichever way."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system)
    task, other = run_many(session, 2)
    ways: list[Callable[[], object]] = [
        task.wait_terminated,
        lambda: session.wait_any_terminated([other, task]),
        lambda: next(iter(as_completed([task, other]))),
        lambda: asyncio.run(await_task(task)),
        lambda: list(task.stream()),
        task.output,
    ]
    threads = [in_thread(way) for way in ways * 5]
    until(lambda: len(task._record.waiters or ()) == len(threads))  # noqa: SLF001 - seen nowhere else
    system.finish(task)
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


def test_as_completed_gives_each_task_once(open_session: Open) -> None:
    """Tasks given twice, arrays and ended ones come once each, in the order of their ends."""
    session = open_session(FakeSystem())
    over = run(session, "true")
    array = session.start_array(JobTemplate(remote_command="sleep", args=["$DRMAA2_INDEX$"]), range(3, 1, -1)[::-1])
    task = run(session, "sleep", "1")
    assert [one.id for one in as_completed([array, task, over, task, array])] == [
        over.id, task.id, array[0].id, array[1].id,
    ]  # fmt: skip
    assert list(as_completed([])) == []


def test_as_completed_in_time(open_session: Open) -> None:
    """The time-out is that of the whole iteration; what came in time was given."""
    session = open_session(FakeSystem())
    tasks = [run(session, "sleep", str(seconds)) for seconds in (1, 2, 30)]
    completed = iter(as_completed(tasks, timeout=5))
    assert [next(completed), next(completed)] == tasks[:2]
    with pytest.raises(errors.TimeoutError, match="after 5 s 1 of 3 tasks had not ended; they go on"):
        next(completed)


def test_awaiting(open_session: Open) -> None:
    """A task is awaited among others; a time-out of the loop cancels the wait and not the task."""
    system = FakeSystem()
    session = open_session(system)

    async def main() -> None:
        tasks = [run(session, "sleep", str(seconds)) for seconds in (5, 3)]
        assert await asyncio.gather(*tasks) == tasks
        endless = run(session, "sleep", "inf")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(await_task(endless), 0.01)
        assert state(endless) is JobState.RUNNING
        assert not waiting(endless)

    asyncio.run(main())


def test_interrupted_wait(open_session: Open) -> None:
    """Ctrl-C during a wait leaves the session usable, and no waiter behind."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where it was ignored from the start
    system = FakeSystem({"x": FOREVER})
    session = open_session(system)
    task, main = run(session), threading.get_ident()

    def interrupt() -> None:
        until(lambda: waiting(task))
        signal.pthread_kill(main, signal.SIGINT)

    for wait in (task.wait_terminated, lambda: session.wait_any_terminated([task]), lambda: list(as_completed([task]))):
        thread = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            wait()
        thread.join(PATIENCE)
        assert not waiting(task)
    signal.signal(signal.SIGINT, before)
    system.finish(task)
    task.wait_terminated()
    assert state(run(session, "true")) is JobState.DONE


# --- callbacks --------------------------------------------------------------------------------------------


def test_callbacks_come_once(open_session: Open) -> None:
    """Each is called once with its task after the end, at once if it has ended, and never by the system's thread."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system)
    tasks, called, how = run_many(session, 50), list[str](), set[tuple[JobState, str]]()

    def note(task: Task) -> None:
        called.append(task.id)
        how.add((task.state, threading.current_thread().name))

    for task in tasks:
        task.add_done_callback(note)
    for task in tasks:
        system.finish(task)
    for task in tasks:
        task.add_done_callback(note)
    session.close()
    assert sorted(called) == sorted([task.id for task in tasks] * 2)
    assert how == {(JobState.DONE, "wfl-callback")}


def test_callback_that_raises(open_session: Open, caplog: pytest.LogCaptureFixture) -> None:
    """What a callback raises is logged with the task's id and kept with the task; the others are called."""
    session, called = open_session(FakeSystem()), list[Task]()
    task, error = run(session), ValueError("on purpose")

    def fail(_: Task) -> None:
        raise error

    for callback in (fail, called.append, fail):
        task.add_done_callback(callback)
    session.close()
    assert called == [task]
    assert session.callback_errors == [(task, error), (task, error)]
    assert caplog.text.count(f"a callback of task {task.id} raised") == 2
    assert "on purpose" in caplog.text


def test_callbacks_that_block(open_session: Open) -> None:
    """Callbacks that do not return delay neither the others nor submissions and ends."""
    session = open_session(FakeSystem(), max_parallel=2)
    go, blocked, called = threading.Event(), threading.Semaphore(0), threading.Event()

    def block(_: Task) -> None:
        blocked.release()
        go.wait(PATIENCE)

    for task in run_many(session, 10):
        task.add_done_callback(block)
    for _ in range(10):
        assert blocked.acquire(timeout=PATIENCE)
    last = run(session)
    last.add_done_callback(lambda _: called.set())
    last.wait_terminated()
    assert called.wait(PATIENCE)
    go.set()


def test_callbacks_may_use_the_session(open_session: Open) -> None:
    """No lock is held while they run: they submit, wait, list, reap and add callbacks as anybody else."""
    system = FakeSystem({"x": 0, "y": Outcome(duration=5, exit_status=3)})
    session, seen = open_session(system), threading.Event()

    def go_on(task: Task) -> None:
        follower = run(session, "y")
        follower.wait_terminated()
        assert follower.info().exit_status == 3
        assert len(session.get_jobs()) == 2
        session.reap([task])
        follower.add_done_callback(lambda _: seen.set())

    run(session).add_done_callback(go_on)
    assert seen.wait(PATIENCE)
    assert not session.callback_errors


def test_no_lock_is_held_while_behaviour_is_asked(open_session: Open) -> None:
    """A backend, too, may be slow or look at the session while it works."""
    seen: list[int] = []
    system = FakeSystem(lambda _template, _index: seen.append(len(session.get_jobs())))
    session = open_session(system)
    run(session)
    assert seen == [1]


def test_callback_added_at_the_last_moment(open_session: Open) -> None:
    """However closely a callback is added to the end, it is called exactly once."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system)
    tasks, called = run_many(session, 300), list[Task]()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread = in_thread(lambda: each(tasks, system.finish))
        for task in tasks:
            for _ in range(5):
                task.add_done_callback(called.append)
        thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)
    session.close()
    assert len(called) == 1500


def test_closing_waits_for_callbacks(open_session: Open) -> None:
    """A script that ends right after its last job loses no callback."""
    called: list[Task] = []
    session = open_session(FakeSystem())

    def call(task: Task) -> None:
        time.sleep(0.005)
        called.append(task)

    for task in run_many(session, 20):
        task.add_done_callback(call)
    session.close()
    assert len(called) == 20


# --- queues -----------------------------------------------------------------------------------------------


class Running:
    """How much of a fake system's jobs runs, as the facts that it tells say; and the most that ever did."""

    def __init__(self, system: FakeSystem) -> None:
        self.slots: dict[str, int] = {}
        self.most = 0
        self.order: list[str] = []
        system.listen(self._heard)
        self._system = system

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._system.ignore(self._heard)

    def _heard(self, facts: Any) -> None:
        for info in facts if isinstance(facts, list | tuple) else [facts]:
            if info.state is JobState.RUNNING:
                self.order.append(info.id)
                self.slots[info.id] = info.slots or 1
            elif info.state.ended:
                self.slots.pop(info.id, None)
            self.most = max(self.most, sum(self.slots.values()))


def test_max_parallel_of_a_context(open_session: Open) -> None:
    """No more than so many run at once, all run in the end, first come, first served."""
    system = FakeSystem({"x": Outcome(duration=1)})
    session = open_session(system, max_parallel=3)
    with Running(system) as running:
        tasks = run_many(session, 10)
        assert states(tasks) == ["running"] * 3 + ["queued"] * 7
        session.wait(tasks)
    assert running.most == 3
    assert running.order == [str(number) for number in range(1, 11)]
    assert [submission.key for submission in system.submitted] == [task._record.key for task in tasks]  # noqa: SLF001
    assert system.now == 4


def test_max_parallel_of_an_array(open_session: Open) -> None:
    """An array's own limit holds besides that of the context; the lower counts."""
    system = FakeSystem({"x": Outcome(duration=1), "y": FOREVER})
    session = open_session(system, max_parallel=5)
    with Running(system) as running:
        array = run_array(session, 6, max_parallel=2)
        wide = run_array(session, 6, max_parallel=100)
        assert states(array).count(JobState.RUNNING) == 2
        assert states(wide).count(JobState.RUNNING) == 3
        session.wait(array + wide)
    assert running.most == 5


def test_slots_are_weighed(open_session: Open) -> None:
    """A job counts as many times as it needs slots; one that could never start is refused at once, by number."""
    system = FakeSystem({"x": Outcome(duration=1)})
    session = open_session(system, max_parallel=4)
    with Running(system) as running:
        tasks = [run(session, min_slots=slots) for slots in (3, 2, 1, 4, 1)]
        session.wait(tasks)
        assert running.most == 4
    refused = run(session, min_slots=5)
    assert isinstance(refused.error, errors.InvalidArgumentError)
    assert "min_slots is 5, but max_parallel is 4: it could never start" in str(refused.error)


def test_what_queues_is_checked_at_once(open_session: Open) -> None:
    """A job that the system cannot honour is refused when it is run, not when its turn comes."""
    system = FakeSystem({"x": FOREVER}, fields=["remote_command", "args", "extensions"], extensions=[])
    session = open_session(system, max_parallel=1)
    run(session)
    assert isinstance(run(session, extensions={"gpu": "1"}).error, errors.UnsupportedAttributeError)


def test_killing_in_the_queue(open_session: Open) -> None:
    """A job ended in the queue never starts, frees no slot that it does not have, and blocks none behind it."""
    system = FakeSystem({"x": Outcome(duration=1)})
    session = open_session(system)
    with Running(system) as running:
        tasks = run_array(session, 6, max_parallel=1)
        tasks[2].terminate()
        tasks[2].wait_terminated(0)
        session.wait(tasks)
    assert running.most == 1
    assert states(tasks) == ["done", "done", "failed", "done", "done", "done"]
    assert (why(tasks[2]), tasks[2].info().exit_status, len(system.submitted)) == ("cancelled", None, 5)


def test_killing_what_runs_lets_others_start(open_session: Open) -> None:
    """The slot of a killed job goes to the next in line."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system, max_parallel=1)
    tasks = run_many(session, 3)
    for task in tasks:
        task.wait_started()
        task.terminate()
    assert states(tasks) == ["failed"] * 3


def test_refused_jobs_give_their_slots_back(open_session: Open) -> None:
    """A refusal when its turn comes lets the next start."""
    system = FakeSystem({"x": Outcome(duration=1)})
    session = open_session(system, max_parallel=1)
    tasks = run_many(session, 4)
    system.fail("submit", errors.TryLaterError("busy"), times=2)
    session.wait(tasks)
    assert states(tasks) == ["done", "failed", "failed", "done"]


def test_holding_in_the_queue(open_session: Open) -> None:
    """A job held in the queue is passed by; released, it gets in line again."""
    system = FakeSystem({"x": FOREVER}, auto=False)
    session = open_session(system, max_parallel=1)
    first, held, last = tasks = run_many(session, 3)
    held.hold()
    held.hold()  # once more changes nothing
    system.finish(first)
    system.advance()
    assert states(tasks) == ["done", "queuedHeld", "running"]
    held.release()
    with pytest.raises(errors.InvalidStateError, match="cannot release: it is not held"):
        held.release()
    assert state(held) is JobState.QUEUED
    system.finish(last)
    system.advance()
    assert states(tasks) == ["done", "running", "done"]


def test_what_cannot_be_done_in_the_queue(open_session: Open) -> None:
    """A job that has not started cannot be suspended."""
    session = open_session(FakeSystem({"x": FOREVER}), max_parallel=1)
    _, queued = run_many(session, 2)
    for f in (queued.suspend, queued.resume):
        with pytest.raises(errors.InvalidStateError, match="it has not started"):
            f()


def test_workflows_share_the_queue_of_their_context(open_session: Open) -> None:
    """The limit belongs to the context: two workflows on it take turns, in the order of submission."""
    system = FakeSystem({"x": Outcome(duration=1)})
    context = FakeContext(system, max_parallel=2)
    one, two = open_session(context), open_session(context)
    with Running(system) as running:
        tasks = [run(session) for session in (one, two, one, two, one, two)]
        assert states(tasks) == ["running"] * 2 + ["queued"] * 4
        for task in tasks:
            task.wait_terminated()
    assert running.most == 2
    assert system.now == 3


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("tells", [False, True])
def test_a_closed_workflow_gives_its_slots_back(
    open_session: Open, caplog: pytest.LogCaptureFixture, *, detach: bool, tells: bool
) -> None:
    """What a closed workflow ran or had in line does not stand in the way of another on the same context."""
    system = FakeSystem({"x": FOREVER, "y": 0}, tells=tells)
    context = FakeContext(system, max_parallel=1, detach=detach)
    one, two = open_session(context), open_session(context)
    run_many(one, 3)
    task = run(two, "y")
    one.close()
    task.wait_terminated()
    assert state(task) is JobState.DONE
    assert ("3 tasks had not ended and are ended now" in caplog.text) is not detach


def test_killed_while_its_turn_comes(open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that leaves the queue for the system in the moment in which it is ended is ended there."""
    system = FakeSystem({"x": FOREVER}, auto=False)
    session = open_session(system, max_parallel=1)
    first, second = run_many(session, 2)
    control = session._control_here  # noqa: SLF001 - its turn comes between the look at it and the deed

    def late(records: Any, action: Action) -> Any:
        if not first.state.ended:
            system.finish(first)
            system.advance()
        return control(records, action)

    monkeypatch.setattr(session, "_control_here", late)
    second.terminate()
    assert len(system.submitted) == 2
    assert {info.state.ended for info in system.answer(system.ids()).infos} == {True}
    assert state(second) is JobState.FAILED


def test_held_while_its_turn_comes(open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is held in the moment in which a slot is free for it stays here, and the slot goes to the next."""
    system = FakeSystem({"x": FOREVER}, auto=False)
    session = open_session(system, max_parallel=1)
    first, second, third = tasks = run_many(session, 3)
    move_up = session._move_up  # noqa: SLF001 - the moment between having the slot and being submitted

    def hold_first(ready: Any) -> None:
        if not state(second).started and state(second) is not JobState.QUEUED_HELD:
            second.hold()
        move_up(ready)

    monkeypatch.setattr(session, "_move_up", hold_first)
    system.finish(first)
    system.advance()
    assert states(tasks) == ["done", "queuedHeld", "running"]
    system.finish(third)
    second.release()
    system.advance()
    assert state(second) is JobState.RUNNING


def test_kills_holds_and_turns_at_once(open_session: Open) -> None:
    """In whatever moment jobs are ended or held in the queue, none is lost, none runs on, and no slot is."""
    system = FakeSystem({"x": Outcome(duration=0.001)})
    context = FakeContext(system, max_parallel=3)
    session, chance = open_session(context), random.Random(1)  # noqa: S311 - the same every time
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        tasks = run_many(session, 300)
        victims = chance.sample(tasks, 100)
        held = chance.sample(tasks, 50)

        def hold(task: Task) -> None:
            with suppress(errors.InvalidStateError):  # it runs already, or has ended
                task.hold()
                task.release()

        threads = [
            in_thread(lambda: each(victims, Task.terminate)),
            in_thread(lambda: each(held, hold)),
        ]
        session.wait(tasks)
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)
    assert {info.state.ended for info in system.answer(system.ids()).infos} == {True}
    assert context.gate is not None
    assert context.gate._used == 0  # noqa: SLF001 - or some day nothing would start any more
    last = run(session)
    last.wait_terminated()


# --- holding, times and limits ----------------------------------------------------------------------------


def test_hold_where_the_system_has_none(open_session: Open) -> None:
    """A job submitted as held is not given to such a system until it is released."""
    system = FakeSystem(without=[Capability.HOLD])
    session = open_session(system)
    task = run(session, submit_as_hold=True)
    assert (state(task), system.submitted) == (JobState.QUEUED_HELD, [])
    with pytest.raises(errors.TimeoutError):
        task.wait_terminated(1000)
    task.release()
    task.wait_terminated()
    assert state(task) is JobState.DONE


def test_hold_where_the_system_has_it(open_session: Open) -> None:
    """There it is the system that holds."""
    system = FakeSystem()
    task = run(open_session(system), submit_as_hold=True)
    assert (state(task), len(system.submitted)) == (JobState.QUEUED_HELD, 1)
    task.release()
    assert state(task) is JobState.DONE


def test_holding_what_runs_where_the_system_cannot(open_session: Open) -> None:
    """What such a system has cannot be held any more."""
    system = FakeSystem({"x": FOREVER}, without=[Capability.HOLD])
    with pytest.raises(errors.InvalidStateError, match="cannot hold"):
        run(open_session(system)).hold()


def soon(seconds: float) -> datetime:
    """A time so far in the future."""
    return datetime.now(UTC) + timedelta(seconds=seconds)


def test_start_time(open_session: Open) -> None:
    """Before its time a job is not given to a system that knows no such time."""
    system = FakeSystem()
    task = run(open_session(system), start_time=soon(3600))
    assert (state(task), system.submitted) == (JobState.QUEUED, [])
    task.wait_terminated()
    assert state(task) is JobState.DONE
    assert 3590 < system.now <= 3600


def test_start_time_that_has_passed(open_session: Open) -> None:
    """A time in the past starts at once."""
    assert state(run(open_session(FakeSystem()), start_time=soon(-5))) is JobState.DONE


def test_hold_and_release_before_the_start_time(open_session: Open) -> None:
    """However often it is held and released, a job starts once, at its time, and takes its slots once."""
    system = FakeSystem({"x": Outcome(duration=10)})
    session = open_session(system, max_parallel=1)
    blocker = run(session, "sleep", "20")
    task = run(session, start_time=soon(5))
    for _ in range(3):
        task.hold()
        task.release()
    others = run_many(session, 2)
    with Running(system) as running:
        session.wait([blocker, task, *others])
    assert running.most == 1
    assert len(system.submitted) == 4


def test_deadline_in_the_queue(open_session: Open) -> None:
    """A job whose deadline comes while it waits ends as such and never starts."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system, max_parallel=1)
    run(session)
    late = run(session, deadline_time=soon(60))
    late.wait_terminated()
    assert (why(late), late.info().annotation, len(system.submitted)) == ("timeout", "its deadline_time came", 1)


def test_deadline_of_what_runs(open_session: Open) -> None:
    """A job that runs over its deadline is ended, if the system does not do that itself."""
    system = FakeSystem({"x": FOREVER})
    late = run(open_session(system), deadline_time=soon(60))
    late.wait_terminated()
    info = late.info()
    assert (info.sub_state, info.terminating_signal, info.annotation) == (
        "timeout",
        "SIGTERM",
        "its deadline_time came",
    )


def test_deadline_of_what_is_unsettled(open_session: Open) -> None:
    """A job whose deadline comes while nobody knows whether it was started is ended for that once it is found."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system)
    system.fail("submit", BROKEN, done=True)
    system.fail("find", BROKEN, times=30)  # for about two minutes
    late = run(session, deadline_time=soon(60))
    late.wait_terminated()
    assert (why(late), late.info().terminating_signal) == ("timeout", "SIGKILL")
    assert system.now > 100


def limited(seconds: float) -> dict[str, Any]:
    """The field that limits a job's time."""
    return {"resource_limits": {"WALLCLOCK_TIME": seconds}}


def test_limit_of_time(open_session: Open) -> None:
    """A system that cannot limit a job's time has it done by the session, counted from the start of the job."""
    system = FakeSystem({"x": Outcome(pending=100, duration=math.inf), "y": Outcome(duration=59)})
    session = open_session(system)
    over, within = run(session, **limited(60)), run(session, "y", **limited(60))
    session.wait([over, within])
    info = over.info()
    assert (info.sub_state, info.terminating_signal, info.exit_status) == ("timeout", "SIGTERM", 143)
    assert info.annotation == "its WALLCLOCK_TIME is 60.0 s"
    assert (state(within), system.now) == (JobState.DONE, 160)


def test_limit_of_time_of_a_stubborn_job(open_session: Open) -> None:
    """One that does not end when asked to is killed two seconds later."""
    system = FakeSystem({"x": Outcome(duration=math.inf, stubborn=True)})
    task = run(open_session(system), **limited(60))
    task.wait_terminated()
    assert (why(task), task.info().terminating_signal, system.now) == ("timeout", "SIGKILL", 62)


@pytest.mark.parametrize(("took", "sub_state"), [(5, "exited"), (19.5, "timeout")])
def test_limit_of_time_that_passes_after_the_end(open_session: Open, took: float, sub_state: str) -> None:
    """A job that failed by itself before its time was up did not run out of it, however late its end is known."""
    system = FakeSystem({"x": Outcome(duration=took, exit_status=3)}, two_steps=True, limits=Limits(collect=60))
    session = open_session(system)

    def late(collect: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda ids: collect(ids) if system.now > 40 else ()

    put(session, "collect", late)
    task = run(session, **limited(20))
    task.wait_terminated()
    assert (why(task), task.info().exit_status) == (sub_state, 3)


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_limit_of_time_while_the_system_is_away(open_session: Open, failures: int) -> None:
    """A system that does not answer when a limit is reached is told again, until it does."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system)
    task = run(session, **limited(60))
    system.fail("control", BROKEN, times=failures)
    task.wait_terminated()
    assert (why(task), state(task)) == ("timeout", JobState.FAILED)
    assert system.now == 60 + 2 * failures


def test_limit_of_time_after_requeueing(open_session: Open) -> None:
    """A requeued job has its whole time once more."""
    system = FakeSystem({"x": Outcome(pending=100, duration=50)})
    session = open_session(system)
    task = run(session, **limited(60))
    system.time.after(140, lambda: system.requeue(task))  # it has run for 40 s, and will again from 240 to 290
    task.wait_terminated()
    assert (state(task), system.now) == (JobState.DONE, 290)


def test_limits_hold_for_the_next_program(open_session: Open, tmp_path: Path) -> None:
    """What an earlier program had to limit, the next one does: time is counted from the start of the job."""
    system = FakeSystem({"x": FOREVER})
    system._began -= timedelta(seconds=1000)  # noqa: SLF001 - its jobs started so long ago
    settings = {"store": tmp_path / "jobs", "detach": True}
    one = open_session(system, **settings)
    limit, deadline = run(one, **limited(3600)), run(one, deadline_time=soon(1800))
    for task in (limit, deadline):
        task._record.submitted -= 5000  # noqa: SLF001 - and were submitted before that
    one.close()
    with closing(sqlite3.connect(tmp_path / "jobs")) as connection, connection:
        connection.execute("update tasks set submitted = submitted - 5000")
    tasks = open_session(system, **settings).get_jobs()
    ends = []
    for task in (tasks[1], tasks[0]):
        task.wait_terminated()
        ends.append((why(task), round(system.now, -2)))
    assert ends == [("timeout", 1800), ("timeout", 2600)]


def test_killing_with_grace(open_session: Open) -> None:
    """Asked first, killed after the grace; who ends in time is not killed."""
    system = FakeSystem({"x": FOREVER, "y": Outcome(duration=math.inf, stubborn=True)})
    session = open_session(system)
    mild, stubborn = run(session), run(session, "y")
    for task in (mild, stubborn):
        task.terminate(grace=timedelta(seconds=30))
    session.wait([mild, stubborn])
    assert [task.info().terminating_signal for task in (mild, stubborn)] == ["SIGTERM", "SIGKILL"]
    assert system.now == 30


# --- control ----------------------------------------------------------------------------------------------


def test_failures_of_bulk_control_are_told_together(open_session: Open) -> None:
    """One error for all, with their number; what could be done was done."""
    system = FakeSystem({"x": FOREVER}, auto=False)
    session = open_session(system)
    tasks = run_many(session, 5)
    for task in tasks[:2]:
        system.start(task)
    with pytest.raises(errors.InvalidStateError, match="3 of 5 tasks: 3: cannot suspend: it is queued; 4: "):
        session.control(tasks, Action.SUSPEND)
    assert states(tasks) == ["suspended"] * 2 + ["queued"] * 3


def test_control_of_what_has_ended(open_session: Open) -> None:
    """Ended jobs cannot be suspended; ending them once more is no error."""
    task = run(open_session(FakeSystem()))
    with pytest.raises(errors.InvalidStateError, match="cannot suspend: it has ended"):
        task.suspend()
    task.terminate()


def test_reaping(open_session: Open) -> None:
    """Reaped jobs are gone from the system and from the list; living ones are refused, by number."""
    system = FakeSystem({"x": FOREVER, "y": 0})
    session = open_session(system)
    living, over = run(session), run(session, "y")
    with pytest.raises(errors.InvalidStateError, match="1 of 2 tasks have not ended: 1"):
        session.reap([living, over])
    assert system.ids() == [living.id]
    assert [task.id for task in session.get_jobs()] == [living.id]
    system.tell(ended(over.id, exit_status=9))  # late news of it hurt nobody
    assert over.info().exit_status == 0


def test_unknown_array(open_session: Open) -> None:
    """An array that is not there is an error that names it and the session."""
    with pytest.raises(errors.InvalidArgumentError, match="session 'wfl' has no array 'x'"):
        open_session(FakeSystem()).get_job_array("x")


# --- closing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tells", [True, False])
def test_closing_with_tasks_running(open_session: Open, caplog: pytest.LogCaptureFixture, *, tells: bool) -> None:
    """What still runs or waits is ended, with one warning that counts it, and shows that it has ended."""
    system = FakeSystem({"x": FOREVER}, tells=tells)
    session = open_session(system, max_parallel=2)
    tasks = run_many(session, 5)
    session.close()
    session.close()  # once more changes nothing
    assert [record.message for record in caplog.records] == [
        "5 tasks had not ended and are ended now (detach=True would let them live on)"
    ]
    assert states(tasks) == ["failed"] * 5
    assert {info.state for info in system.answer(system.ids()).infos} == {JobState.FAILED}
    assert len(system.submitted) == 2


def test_closing_detached(open_session: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Detached jobs live on, and one line says how many, who finds them and how they are ended."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system, detach=True)
    run_many(session, 2)
    session.close()
    session.close()
    (words,) = [record.message for record in caplog.records]
    assert words == (
        "fake: 2 tasks go on; without a store no later program finds them (FakeContext(session_name='wfl')); "
        "to end them: kill_all()"
    )
    assert {info.state for info in system.answer(["1", "2"]).infos} == {JobState.RUNNING}


def test_closing_detached_when_all_has_ended(open_session: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing goes on, and nothing is said."""
    session = open_session(FakeSystem({"x": 0}), detach=True)
    session.wait([run(session)])
    session.close()
    assert not caplog.records


def test_closing_detached_with_a_store(open_session: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What waits here is counted apart; whoever opens the context that is named finds all."""
    store = tmp_path / "jobs"
    session = open_session(FakeSystem({"x": FOREVER}), detach=True, store=store, max_parallel=1)
    run_many(session, 3)
    session.close()
    (words,) = [record.message for record in caplog.records]
    assert words == (
        "fake: 1 task goes on, 2 tasks wait for a later program; "
        f"Workflow(FakeContext(session_name='wfl', store='{store}')) finds them; to end them: kill_all()"
    )


@pytest.mark.parametrize("detach", [False, True])
def test_interrupted_while_closing(
    open_session: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, detach: bool
) -> None:
    """A second Ctrl-C leaves at once; what may still be there is listed, the first ones by their ids."""
    session = open_session(FakeSystem({"x": FOREVER}), detach=detach)
    run_many(session, 7)

    def interrupt(**_: bool) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as change:
        change.setattr(session.backend, "close", interrupt)
        change.setattr(session.backend, "how_to_cancel", lambda ids: f"cancel {len(ids)}")
        with pytest.raises(KeyboardInterrupt):
            session.close()
    assert session.closed
    assert len(caplog.records) == 2 - detach
    if not detach:
        assert caplog.records[-1].message == (
            "fake: interrupted while ending tasks: 7 tasks may still be there (1, 2, 3, 4, 5, …); "
            "a helper process ends what is left after this program; by hand: cancel 7"
        )


def test_closing_wakes_who_waits(open_session: Open) -> None:
    """Whoever sleeps in a closed session is told so; nobody sleeps for ever."""
    session = open_session(FakeSystem({"x": FOREVER}), detach=True)
    task, told = run(session), list[BaseException]()

    def expect(wait: Callable[[], object]) -> None:
        try:
            wait()
        except errors.InvalidSessionError as error:
            told.append(error)

    ways: list[Callable[[], object]] = [
        task.wait_terminated,
        lambda: session.wait_any_terminated([task]),
        lambda: list(as_completed([task])),
        lambda: asyncio.run(await_task(task)),
        lambda: list(task.stream()),
    ]
    threads = [in_thread(partial(expect, way)) for way in ways]
    until(lambda: len(task._record.waiters or ()) == len(ways))  # noqa: SLF001 - seen nowhere else
    session.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(told) == len(ways)


def test_a_closed_session(open_session: Open) -> None:
    """Reading and waiting for what has ended still work; everything else is an error that says what to do."""
    system = FakeSystem({"x": FOREVER, "y": 0})
    session = open_session(system, detach=True)
    living, over = run(session), run(session, "y")
    session.close()
    over.wait_terminated()
    assert (state(over), state(living)) == (JobState.DONE, JobState.RUNNING)
    for f in (
        lambda: run(session),
        lambda: run_array(session, 2),
        session.get_jobs,
        living.suspend,
        living.wait_terminated,
        over.output,
        over.reap,
        lambda: list(as_completed([living])),
        lambda: list(living.stream()),
        lambda: asyncio.run(await_task(living)),
    ):
        with pytest.raises(errors.InvalidSessionError, match="the session was closed; open a new Workflow"):
            f()


def test_closing_while_the_system_is_away(open_session: Open, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A system that does not answer does not keep a session from closing: what may live on is said."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system, store=tmp_path / "jobs")
    task = run(session)
    thread = in_thread(task.wait_terminated)
    until(lambda: waiting(task))
    system.fail("close", BROKEN, done=True)
    session.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert "fake: closing failed, what still runs may live on: connection reset" in caplog.text


def test_a_session_that_cannot_be_opened(tmp_path: Path) -> None:
    """When opening fails half-way nothing stays open: no thread, no connection, no store."""
    before = set(threading.enumerate())
    system = FakeSystem()
    system.fail("open", errors.SessionManagementError("no licence"))
    with pytest.raises(errors.SessionManagementError, match="no licence"):
        JobSession(FakeContext(system, store=tmp_path / "jobs"))
    with JobSessionOf(system, tmp_path) as session:
        run(session)
    system.fail("find", errors.DeniedByDrmsError("no rights"))
    with pytest.raises(errors.DeniedByDrmsError, match="no rights"):
        JobSession(FakeContext(system, store=tmp_path / "jobs", detach=True))
    assert system.calls["close"] == 2
    assert set(threading.enumerate()) <= before


class JobSessionOf:
    """A session that is closed when its block is left."""

    def __init__(self, system: FakeSystem, place: Path) -> None:
        self._session = JobSession(FakeContext(system, store=place / "jobs", detach=True))

    def __enter__(self) -> JobSession:
        return self._session

    def __exit__(self, *_: object) -> None:
        self._session.close()


def test_no_thread_and_no_descriptor_stays() -> None:
    """After sessions of all kinds there are as many threads and open files as before."""

    def once(number: int) -> None:
        system = FakeSystem({"x": Outcome(duration=1)}, tells=bool(number % 2), two_steps=bool(number % 3))
        session = JobSession(FakeContext(system, max_parallel=2))
        tasks = run_many(session, 5)
        tasks[0].add_done_callback(lambda _: None)
        session.wait(tasks)
        session.close()

    once(0)
    before = len(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    for number in range(30):
        once(number)
    until(lambda: len(threading.enumerate()) <= before[0])
    assert len(os.listdir("/proc/self/fd")) <= before[1]


# --- failures that nobody looked at -----------------------------------------------------------------------


def unseen(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of failures that nobody looked at."""
    return [record.message for record in caplog.records if "nobody looked at" in record.message]


def test_failures_that_nobody_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    """One warning on closing, with their number and the first few: command, and how it ended."""
    with Workflow(FakeContext({"bad": 3})) as flow:
        flow.run_array(5, "bad", "data").wait()
        flow.run("good").wait()
    flow.close()
    (warning,) = unseen(caplog)
    assert warning.startswith("5 failures or errors that nobody looked at: ")
    assert warning.count("(bad data): exited with exit status 3") == 3
    assert warning.endswith(" and 2 more")


@pytest.mark.parametrize(
    "look",
    [
        lambda task: task.state,
        lambda task: task.info(),
        lambda task: task.success,
        lambda task: task.error,
    ],
    ids=["state", "info", "success", "error"],
)
def test_failures_that_were_looked_at(caplog: pytest.LogCaptureFixture, look: Callable[[Task], object]) -> None:
    """Whoever reads how a task ended knows of it: no warning."""
    session = JobSession(FakeContext({"bad": 3}))
    task = run(session, "bad")
    look(task)
    session.close()
    assert unseen(caplog) == []


def test_waiting_is_not_looking(caplog: pytest.LogCaptureFixture) -> None:
    """A script that only waits does not know what came of it."""
    session = JobSession(FakeContext({"bad": 3}))
    task = run(session, "bad")
    task.wait_terminated()
    session.close()
    assert len(unseen(caplog)) == 1


@pytest.mark.parametrize(("command", "warnings"), [("false", 1), ("once", 0)])
def test_a_retry_sees_to_all_failures_but_the_last(
    command: str, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What was tried again is no unseen failure; that the last attempt failed, too, is one."""
    outcomes = iter([Outcome(exit_status=1), Outcome()])
    system = FakeSystem(
        lambda template, _: Outcome(exit_status=1) if template.remote_command == "false" else next(outcomes)
    )
    with Workflow(FakeContext(system)) as flow:
        flow.run(command).retry(1, backoff=0)
    assert len(unseen(caplog)) == warnings


@pytest.mark.parametrize("verb", [Job.wait, Job.synchronize, Job.failed, lambda job: job.then_run("good")])
def test_a_start_that_failed_late_raises(verb: Callable[[Job], object]) -> None:
    """With raise_errors a start that turns out to have failed raises where its end is waited for, once."""
    system = FakeSystem({"bad": Outcome(duration=1, sub_state="launch_failure")})
    with Workflow(FakeContext(system), raise_errors=True) as flow:
        job = flow.run("bad")
        with pytest.raises(errors.DeniedByDrmsError):
            verb(job)
        assert job.wait().state is JobState.FAILED


def test_what_closing_ends_is_no_unseen_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Jobs that closing ends are told of once, as such."""
    session = JobSession(FakeContext({"x": FOREVER}))
    run_many(session, 3)
    session.close()
    assert unseen(caplog) == []


def test_failures_are_counted_from_many_threads(caplog: pytest.LogCaptureFixture) -> None:
    """The number is right, also when chains in many threads have errors at once."""
    flow = Workflow(FakeContext({"x": FOREVER}))
    job = flow.run("x")
    job.kill()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [in_thread(lambda: [flow.new_job().wait() for _ in range(200)]) for _ in range(8)]
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)
    assert job.any_failed()
    flow.close()
    (warning,) = unseen(caplog)
    assert warning.startswith("1600 failures or errors")


# --- after a fork -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork(open_session: Open) -> None:
    """A forked child has no session: every call says so, nothing hangs, and the parent's jobs live on."""
    system = FakeSystem({"x": FOREVER})
    session = open_session(system, max_parallel=5)
    task = run(session)
    child = os.fork()
    if not child:
        os._exit(child_of(session, task))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert state(task) is JobState.RUNNING
    system.finish(task)
    task.wait_terminated()


def child_of(session: JobSession, task: Task) -> int:
    """What a forked child finds; 0 if it is as it should be."""
    logging.disable()
    signal.alarm(PATIENCE)  # ends it should it hang
    for f in (
        lambda: run(session),
        task.wait_terminated,
        task.suspend,
        session.get_jobs,
        lambda: [*as_completed([task])],
    ):
        try:
            f()
        except errors.InvalidSessionError as error:
            if "this process was forked" not in str(error):
                return 1
        else:
            return 2
    session.close()
    other = JobSession(FakeContext())
    return 0 if state(run(other)) is JobState.DONE else 3


def test_submission_holds_all_that_the_system_needs(open_session: Open) -> None:
    """What a backend is given: key, template with everything filled in, JOB_ID, and the index of an element."""
    system = FakeSystem()
    session = open_session(system, default_template=JobTemplate(queue_name="q"))
    task = run(session, "a", job_name="n$DRMAA2_INDEX$")
    expected = JobTemplate(remote_command="a", args=(), job_name="n", queue_name="q")
    assert system.submitted == [Submission(system.submitted[0].key, expected, system.submitted[0].key)]
    assert task.template == expected
    assert task._record.phase == ENDED  # noqa: SLF001 - a job of the fake takes no time


# -- keys that a caller has chosen, and who watches ----------------------------------------------------------------


def test_a_chosen_key_is_what_the_system_gets(open_session: Open) -> None:
    """With `keys`, jobs have these keys; the elements of an array have that of the array, a point and the index."""
    system = FakeSystem()
    session = open_session(system)
    keys = [session.new_key(), "0a1b-7"]
    session.start([JobTemplate(remote_command="x")] * 2, keys=keys)
    array = session.start_array(JobTemplate(remote_command="x"), range(1, 3), key="c0ffee-1")
    assert array.id == "c0ffee-1"
    assert [submission.key for submission in system.submitted] == [*keys, "c0ffee-1.1", "c0ffee-1.2"]


@pytest.mark.parametrize("reaped", [False, True])
def test_a_key_that_the_ledger_has_is_refused(open_session: Open, reaped: bool) -> None:  # noqa: FBT001
    """A chosen key starts one job, also from many threads; it is free again when that job is reaped."""
    system = FakeSystem()
    session = open_session(system)
    (first,) = session.start([JobTemplate(remote_command="x")], keys=["ab-1"])
    first.wait_terminated()
    if reaped:
        first.reap()
        session.start([JobTemplate(remote_command="x")], keys=["ab-1"])
        assert len(system.submitted) == 2
        return
    refused: list[str] = []

    def again() -> None:
        try:
            session.start([JobTemplate(remote_command="x")] * 2, keys=["ab-2", "ab-1"])
        except errors.InvalidArgumentError as error:
            refused.append(str(error))

    threads = [in_thread(again) for _ in range(4)]
    for thread in threads:
        thread.join()
    assert refused == ["there is a job with the key 'ab-1' already"] * 4
    assert [submission.key for submission in system.submitted] == ["ab-1"]
    assert len(session.get_jobs()) == 1


def test_one_of_many_threads_has_the_key(open_session: Open) -> None:
    """Of several that submit with one key at once, one does."""
    system = FakeSystem()
    session = open_session(system)
    won: list[Task] = []

    def race(number: int) -> None:
        with suppress(errors.InvalidArgumentError):
            won.extend(session.start([JobTemplate(remote_command="x")], keys=[f"ab-{number // 8}"]))

    threads = [in_thread(partial(race, number)) for number in range(64)]
    for thread in threads:
        thread.join()
    assert len(won) == len(system.submitted) == 8


@pytest.mark.parametrize("key", ["", "ab", "ab-", "-1", "AB-1", "ab-1.2", "a b-1", "ab-1\n", "ab_1-1", f"{'a' * 33}-1"])
def test_what_is_no_key(open_session: Open, key: str) -> None:
    """A key is lower-case letters and digits, '-' and a number: every system can have that in a name."""
    session = open_session(FakeSystem())
    with pytest.raises(errors.InvalidArgumentError, match="is no key"):
        session.start([JobTemplate(remote_command="x")], keys=[key])
    with pytest.raises(errors.InvalidArgumentError, match="is no key"):
        session.start_array(JobTemplate(remote_command="x"), range(2), key=key)
    assert session.get_jobs() == []


def test_keys_that_collide(open_session: Open) -> None:
    """Twice the same key in one call, an array's key for a job, an element's key: all are refused, nothing starts."""
    system = FakeSystem()
    session = open_session(system)
    session.start_array(JobTemplate(remote_command="x"), range(1, 3), key="ab-1")
    template = JobTemplate(remote_command="x")
    with pytest.raises(errors.InvalidArgumentError, match="already"):
        session.start([template, template], keys=["ab-2", "ab-2"])
    with pytest.raises(errors.InvalidArgumentError, match="already"):
        session.start_array(template, range(1), key="ab-1")
    assert len(system.submitted) == 2
    assert session.get_job_array("ab-1").tasks[0].id == "1.1"


def test_chosen_keys_beside_others_and_those_of_the_store(open_session: Open, tmp_path: Path) -> None:
    """Keys of jobs without chosen ones, and of jobs that come out of the store, are refused as well."""
    system, store = FakeSystem(), tmp_path / "store"
    first = open_session(FakeContext(system, store=store, detach=True))
    (old,) = first.start([JobTemplate(remote_command="x")], keys=["ab-1"])
    old.wait_terminated()
    first.close()
    session = open_session(FakeContext(system, store=store, detach=True))
    new = run(session)
    for key in ("ab-1", new._record.key):  # noqa: SLF001 - seen nowhere else
        with pytest.raises(errors.InvalidArgumentError, match="already"):
            session.start([JobTemplate(remote_command="x")], keys=[key])
    assert len(session.start([JobTemplate(remote_command="x")], keys=["ab-2"])) == 1


def test_watching_tells_of_every_change(open_session: Open) -> None:
    """Who watches is called after each change, outside of the lock, and sees the state that it led to."""
    system = FakeSystem({"x": Outcome(duration=5)}, auto=False)
    session = open_session(system)
    seen: list[JobState] = []

    def watch(records: Sequence[Any]) -> None:
        free = in_thread(session.get_jobs)  # another thread can have the lock
        free.join(PATIENCE)
        assert not free.is_alive()
        seen.extend(record.state for record in records)

    stop = session.watch(watch)
    task = run(session)
    system.advance()
    task.suspend()
    task.resume()
    system.advance(10)
    stop()
    run(session)
    assert [state for state, _ in itertools.groupby(seen)] == [
        JobState.QUEUED,
        JobState.RUNNING,
        JobState.SUSPENDED,
        JobState.RUNNING,
        JobState.DONE,
    ]


def test_watching_what_waits_here(open_session: Open) -> None:
    """What the session itself holds back is told of, too: when it comes, and when it is released."""
    session = open_session(FakeSystem(without={Capability.HOLD}))
    seen: list[JobState] = []
    session.watch(lambda records: seen.extend(record.state for record in records))
    task = run(session, submit_as_hold=True)
    assert seen == [JobState.QUEUED_HELD]
    task.release()
    task.wait_terminated()
    until(lambda: seen[-1] is JobState.DONE)
    assert JobState.QUEUED in seen


def test_a_watcher_that_raises(open_session: Open, caplog: pytest.LogCaptureFixture) -> None:
    """What a watcher raises is logged, and keeps nobody else from being told."""
    session = open_session(FakeSystem())
    seen: list[int] = []
    session.watch(lambda _: 1 / 0)
    session.watch(lambda records: seen.append(len(records)))
    run(session).wait_terminated()
    assert seen
    assert "who watches the session's jobs raised" in caplog.text


def test_reading_a_part_of_the_output(open_session: Open) -> None:
    """`read` gives so many bytes from an offset, and whether that is all for now; nothing of what never started."""
    session = open_session(FakeSystem({"x": Outcome(output="0123456789")}))
    task = run(session)
    task.wait_terminated()
    held = run(session, start_time=NOW)
    assert session.read(task._record, "stdout", 2, 3) == (b"234", False)  # noqa: SLF001 - as the job server does
    assert session.read(task._record, "stdout", 8, 30) == (b"89", True)  # noqa: SLF001
    assert session.read(held._record, "stdout", 0, 3) == (b"", True)  # noqa: SLF001

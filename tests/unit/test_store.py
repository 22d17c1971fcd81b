"""Store: what survives a program, who may have it open, what it refuses, and how seldom it writes."""

import math
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from wfl import Backoff, Workflow, errors, store
from wfl.backend import Submission
from wfl.drmaa2 import JobInfo, JobState, JobTemplate
from wfl.program import program_lives, program_name
from wfl.record import ACCEPTED, ENDED, HERE, SUBMITTING
from wfl.retry import retry_tasks
from wfl.session import JobSession
from wfl.store import Store
from wfl.task import Task
from wfl.testing import FakeContext, FakeSystem, Outcome

PATIENCE = 30  # seconds that a thread may take on a busy machine
DEAD = f"{socket.gethostname()} no-such-boot 1 1 0"
"""The name of a program that ran before the last boot."""
FOREVER = Outcome(duration=math.inf)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / "jobs"


@pytest.fixture
def open_session(path: Path) -> Iterator[Callable[..., JobSession]]:
    """Opens sessions with this store, which are closed afterwards."""
    opened: list[JobSession] = []

    def make(system: FakeSystem | None = None, **settings: Any) -> JobSession:
        settings = {"store": path, "detach": True, **settings}
        opened.append(JobSession(FakeContext(system or FakeSystem(), **settings)))
        return opened[-1]

    yield make
    for session in opened:
        session.close()


def sql(path: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Read or change the store from outside."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


def run(session: JobSession, *command: str, number: int = 1, **fields: Any) -> list[Task]:
    """Submit the same job so many times."""
    return session.start([JobTemplate(remote_command=command[0], args=command[1:], **fields)] * number)


def killed(path: Path, *, phase: int | None = None) -> None:
    """Make it so that the program which wrote the store was killed, with its jobs in this phase (None: as they are)."""
    sql(path, "update tasks set program = ?", DEAD)
    if phase is not None:
        sql(path, "update tasks set phase = ?, id = key, info = null", phase)


def wait(tasks: list[Task]) -> None:
    """Wait for the end of all."""
    tasks[0]._record.session.wait(tasks, PATIENCE)  # noqa: SLF001 - as verbs do


# --- what survives ----------------------------------------------------------------------------------------


def test_ended_jobs_are_found_again(open_session: Callable[..., JobSession]) -> None:
    """Ids, templates, states, exit status, times and words come back as they were, and can be filtered."""
    system = FakeSystem({"bad": Outcome(exit_status=3, duration=5, annotation="so it was", error_output="no")})
    session = open_session(system)
    (good,), (bad,) = run(session, "true", job_name="a"), run(session, "bad", "x")
    wait([good, bad])
    before = [good.info(), bad.info()]
    session.close()
    again = open_session(system)
    tasks = again.get_jobs()
    assert [task.info() for task in tasks] == before
    assert [task.template for task in tasks] == [good.template, bad.template]
    assert tasks[1].error_output() == "no"
    assert [task.id for task in again.get_jobs(JobInfo(state=JobState.FAILED))] == [bad.id]


def test_running_jobs_are_found_again(open_session: Callable[..., JobSession]) -> None:
    """What still runs is waited for and controlled by the next program; its end is told of once it comes."""
    system = FakeSystem({"job": FOREVER})
    session = open_session(system)
    run(session, "job", number=3)
    session.close()
    tasks = open_session(system).get_jobs()
    assert [task.state for task in tasks] == [JobState.RUNNING] * 3
    tasks[0].suspend()
    assert tasks[0].state is JobState.SUSPENDED
    tasks[1].terminate()
    system.finish(tasks[2], exit_status=7)
    wait(tasks[1:])
    assert [task.info().exit_status for task in tasks] == [None, 137, 7]


def test_what_ended_in_between(open_session: Callable[..., JobSession]) -> None:
    """A job that ended while no program was there shows its true end at once."""
    system = FakeSystem({"job": FOREVER})
    session = open_session(system)
    (task,) = run(session, "job")
    session.close()
    system.finish(task.id, signal="SIGSEGV")
    (found,) = open_session(system).get_jobs()
    assert found.info().terminating_signal == "SIGSEGV"


def test_what_was_removed_in_between(open_session: Callable[..., JobSession]) -> None:
    """A job that the system does not know any more is lost, in words."""
    system = FakeSystem({"job": FOREVER})
    session = open_session(system)
    (task,) = run(session, "job")
    session.close()
    system.vanish(task.id)
    (found,) = open_session(system).get_jobs()
    info = found.info()
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "lost", None)
    assert info.annotation == "fake does not know it any more"


def test_arrays_are_found_again(open_session: Callable[..., JobSession]) -> None:
    """Elements come back as an array, with their indexes."""
    system = FakeSystem()
    session = open_session(system)
    array = session.run_bulk_jobs(JobTemplate(remote_command="true"), range(2, 9, 3))
    array.wait_terminated(PATIENCE)
    session.close()
    again = open_session(system)
    found = again.get_job_array(array.id)
    assert (found.indexes, [task.id for task in found]) == (range(2, 9, 3), [task.id for task in array])


def test_sessions_of_other_names_are_not_seen(open_session: Callable[..., JobSession]) -> None:
    """One file holds many sessions; each sees its own jobs."""
    system = FakeSystem()
    for name in ("one", "two"):
        session = open_session(system, session_name=name)
        wait(run(session, name))
        session.close()
    (task,) = open_session(system, session_name="two").get_jobs()
    assert task.template.remote_command == "two"


def test_reaped_jobs_do_not_come_back(open_session: Callable[..., JobSession], path: Path) -> None:
    """Reaping removes a job from the store as well."""
    system = FakeSystem()
    session = open_session(system)
    tasks = run(session, "true", number=3)
    wait(tasks)
    session.reap(tasks[:2])
    assert session.get_jobs() != []
    session.close()
    assert [task.id for task in open_session(system).get_jobs()] == [tasks[2].id]
    assert sql(path, "select count(*) from tasks") == [(1,)]


# --- killed in between ------------------------------------------------------------------------------------


def test_submission_is_recorded_before_it_happens(open_session: Callable[..., JobSession], path: Path) -> None:
    """When the system is given a job, its key is in the file already, as being submitted."""
    seen: list[tuple[Any, ...]] = []
    system = FakeSystem(lambda _template, _index: seen.extend(sql(path, "select phase, program from tasks")))
    session = open_session(system)
    run(session, "true")
    assert session.store is not None
    assert seen == [(SUBMITTING, session.store.program)]


def test_killed_after_the_system_had_it(open_session: Callable[..., JobSession], path: Path) -> None:
    """A job whose id never came back is found by its key: not lost, not doubled."""
    system = FakeSystem({"job": FOREVER})
    run_before = open_session(system)
    run(run_before, "job")
    run_before.close()
    killed(path, phase=SUBMITTING)
    (task,) = open_session(system).get_jobs()
    assert (task.id, task.state) == ("1", JobState.RUNNING)
    system.finish(task)
    assert task.state is JobState.DONE
    assert len(system.submitted) == 1


def test_killed_before_the_system_had_it(open_session: Callable[..., JobSession], path: Path) -> None:
    """A job that never got there is failed, says so, and is not submitted behind anybody's back."""
    session = open_session()
    run(session, "true")
    session.close()
    killed(path, phase=SUBMITTING)
    system = FakeSystem()
    (task,) = open_session(system).get_jobs()
    assert (task.state, task.info().sub_state) == (JobState.FAILED, "launch_failure")
    assert "it never ran" in str(task.error)
    assert not system.submitted


def test_unreachable_system_on_coming_back(
    open_session: Callable[..., JobSession], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No answer says nothing of any job: nothing is called failed, and they are looked for again."""
    system = FakeSystem({"job": FOREVER})
    session = open_session(system)
    run(session, "job", number=2)
    session.close()
    killed(path, phase=SUBMITTING)
    system.fail("find", errors.DrmCommunicationError("no route"), times=3)
    tasks = open_session(system).get_jobs()
    assert {task.state for task in tasks} == {JobState.QUEUED}
    for number in "12":
        system.finish(number)
    wait(tasks)
    assert {task.state for task in tasks} == {JobState.DONE}
    assert system.calls["find"] == 4
    assert "looking for 2 jobs failed, trying again: no route" in caplog.text


def test_queue_of_a_dead_program_is_inherited(open_session: Callable[..., JobSession], path: Path) -> None:
    """Detached jobs that still waited in a dead program's queue run in the next one's, under its limit, in which those
    count that are found running.
    """
    system = FakeSystem({"job": FOREVER})
    session = open_session(system, max_parallel=1)
    run(session, "job", number=4)
    session.close()
    killed(path)
    tasks = open_session(system, max_parallel=2).get_jobs()
    assert len(system.submitted) == 2  # one by the first program, one beside it by the second
    for _ in tasks:
        for task in tasks:
            if task.state is JobState.RUNNING:
                system.finish(task)
        system.advance()
    wait(tasks)
    assert len({submission.key for submission in system.submitted}) == len(system.submitted) == 4


def test_queue_is_not_inherited_without_detach(open_session: Callable[..., JobSession], path: Path) -> None:
    """Jobs that were to end with their program are ended, not started by another."""
    system = FakeSystem({"job": FOREVER})
    session = open_session(system, max_parallel=1)
    run(session, "job", number=2)
    session.close()
    killed(path)
    sql(path, "update tasks set detach = 0")
    _, waiting = open_session(system).get_jobs()
    assert waiting.info().sub_state == "cancelled"
    assert len(system.submitted) == 1


def test_held_jobs_stay_held(open_session: Callable[..., JobSession], path: Path) -> None:
    """A job held in a dead program's queue waits for its release in the next one's."""
    system = FakeSystem(without=["hold"])  # type: ignore[list-item] # a Capability is a str
    session = open_session(system)
    run(session, "true", submit_as_hold=True)
    session.close()
    killed(path)
    (task,) = open_session(system).get_jobs()
    assert (task.state, len(system.submitted)) == (JobState.QUEUED_HELD, 0)
    task.release()
    wait([task])
    assert len(system.submitted) == 1


# --- several programs -------------------------------------------------------------------------------------


def test_a_queue_is_inherited_by_one_program_only(open_session: Callable[..., JobSession], path: Path) -> None:
    """Two programs that come back at once share the rows that waited: each is started exactly once."""
    system = FakeSystem({"first": FOREVER})
    session = open_session(system, max_parallel=1)
    run(session, "first")
    run(session, "true", number=40)
    session.close()
    killed(path)
    begin = threading.Barrier(4)

    def come_back() -> None:
        begin.wait(PATIENCE)
        open_session(system)

    threads = [threading.Thread(target=come_back) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    keys = [submission.key for submission in system.submitted]
    assert len(keys) == len(set(keys)) == 41


def test_a_living_programs_queue_is_left_to_it(open_session: Callable[..., JobSession]) -> None:
    """What waits in a running program's queue is not started by another, which follows it to its end all the same."""
    system = FakeSystem({"job": FOREVER})
    owner = open_session(system, max_parallel=1)
    mine = run(owner, "job", number=2)
    owner.refresh()  # writes what is due
    theirs = open_session(system).get_jobs()
    assert [task.state for task in theirs] == [JobState.RUNNING, JobState.QUEUED]
    assert len(system.submitted) == 1
    system.finish(mine[0])
    mine[1].wait_started(PATIENCE)
    system.finish(mine[1], exit_status=4)
    wait(mine)
    wait(theirs)
    assert [task.info().exit_status for task in theirs] == [0, 4]
    assert len(system.submitted) == 2


def test_what_another_program_submits_is_seen(open_session: Callable[..., JobSession]) -> None:
    """Listing the jobs takes in what others have put into the store since."""
    system = FakeSystem()
    one, two = open_session(system), open_session(system)
    wait(run(one, "true"))
    one.refresh()  # writes what is due
    (task,) = two.get_jobs()
    assert (task.id, task.state) == ("1", JobState.DONE)


def test_listing_while_submitting(open_session: Callable[..., JobSession], monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is submitted while the store is read for a list is one job: listed once, and waited for."""
    system = FakeSystem({"job": FOREVER})
    session = open_session(system)
    assert session.store is not None
    load, late = session.store.load, list[Task]()

    def submit_then_load(name: str) -> Any:
        late.extend(run(session, "job"))
        return load(name)

    monkeypatch.setattr(session.store, "load", submit_then_load)  # the other thread, at the worst moment
    assert [task.id for task in session.get_jobs()] == ["1"]
    system.finish(late[0])
    wait(late)
    assert late[0].state is JobState.DONE


def test_reaping_while_listing(open_session: Callable[..., JobSession], monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is reaped while the store is read for a list does not come back with it."""
    session = open_session(FakeSystem())
    (task,) = run(session, "true")
    wait([task])
    assert session.store is not None
    load = session.store.load

    def load_then_reap(name: str) -> Any:
        rows = list(load(name))
        session.reap([task])
        return rows

    monkeypatch.setattr(session.store, "load", load_then_reap)  # the other thread, at the worst moment
    assert session.get_jobs() == []


def test_many_threads(open_session: Callable[..., JobSession], path: Path) -> None:
    """Submissions, ends, lists and reaping from eight threads leave the store complete and correct."""
    system = FakeSystem()
    session = open_session(system)
    kept: list[Task] = []

    def work() -> None:
        for _ in range(10):
            tasks = run(session, "true", number=5)
            wait(tasks)
            session.get_jobs()
            session.reap(tasks[:4])
            kept.append(tasks[4])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    session.close()
    rows = sql(path, "select id, phase from tasks")
    assert sorted(rows) == sorted((task.id, ENDED) for task in kept)


def test_many_programs_open_one_store_at_once(path: Path) -> None:
    """Programs that find no store and make it at the same moment all get it."""
    code = f"from wfl.store import Store; Store({os.fspath(path)!r}).close()"
    programs = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(6)]
    for program in programs:
        _, trouble = program.communicate(timeout=PATIENCE)
        assert program.returncode == 0, trouble


# --- attempts, templates, limits --------------------------------------------------------------------------


def test_attempts_come_back_as_one_job(path: Path) -> None:
    """Attempts of a retried job are one job again, in order, in the state of the last; reaping it removes them all."""
    system = FakeSystem({"job": [Outcome(exit_status=1), Outcome(exit_status=2), Outcome(exit_status=0)]})
    with Workflow(FakeContext(system, store=path, detach=True)) as flow:
        flow.run("job").retry(5, backoff=0)
        flow.run("true").wait()
        ids = [[task.id for task in job.tasks[0].attempts] for job in flow.jobs()]  # type: ignore[union-attr]
    assert [len(attempts) for attempts in ids] == [3, 1]
    with Workflow(FakeContext(system, store=path, detach=True)) as flow:
        found = flow.jobs()
        assert [[task.id for task in job.tasks[0].attempts] for job in found] == ids  # type: ignore[union-attr]
        assert found[0].state is JobState.DONE
        attempts = found[0].tasks[0].attempts  # type: ignore[union-attr]
        assert [task.info().exit_status for task in attempts] == [1, 2, 0]
        found[0].reap_all()
        assert len(flow.jobs()) == 1
    assert sql(path, "select count(*) from tasks") == [(1,)]


def test_attempts_are_told_from_each_other_by_number(open_session: Callable[..., JobSession], path: Path) -> None:
    """A program was killed between the end of an attempt and its note: the attempts are in their order all the same."""
    system = FakeSystem({"job": Outcome(exit_status=1)})
    session = open_session(system)
    (task,) = run(session, "job")
    wait([task])
    retry_tasks([task], 2, Backoff(initial=0), lambda _: True)
    ids = [attempt.id for attempt in task.attempts]
    session.close()
    killed(path)
    first = sql(path, "select key from tasks order by number")[0][0]
    sql(path, "update tasks set phase = ?, id = key, info = null where key = ?", SUBMITTING, first)
    (found,) = open_session(system).get_jobs()
    assert [attempt.id for attempt in found.attempts] == ids


def test_a_retry_by_a_later_program_joins_the_task(open_session: Callable[..., JobSession]) -> None:
    """Attempts that a later program makes, of a single job or of an element, belong to the same task for the next."""
    system = FakeSystem({"job": [Outcome(exit_status=1), Outcome(exit_status=1), Outcome(exit_status=0)]})
    session = open_session(system)
    array = session.run_bulk_jobs(JobTemplate(remote_command="job"), range(1, 2))
    (single,) = run(session, "job")
    wait([*array, single])
    session.close()
    second = open_session(system)
    for task in second.get_jobs():
        retry_tasks([task], 1, Backoff(initial=0), lambda _: True)
    second.refresh()  # writes what is due
    third = open_session(system)
    element, again = third.get_jobs()
    assert [len(element.attempts), len(again.attempts)] == [2, 2]
    assert third.get_job_array(array.id).tasks[0].attempts[-1].id == element.id
    assert (element.index, again.state) == (1, JobState.DONE)


def test_other_programs_attempts_join_the_array(open_session: Callable[..., JobSession]) -> None:
    """A living program sees an element's new attempt on its array, which keeps its other elements."""
    system = FakeSystem({"job": Outcome(exit_status=1)})
    session = open_session(system)
    array = session.run_bulk_jobs(JobTemplate(remote_command="job"), range(1, 4))
    array.wait_terminated(PATIENCE)
    session.refresh()
    other = open_session(system)
    retry_tasks([other.get_job_array(array.id)[1]], 1, Backoff(initial=0), lambda _: True)
    other.refresh()
    assert session.get_job_array(array.id) is array
    assert [len(task.attempts) for task in array] == [1, 2, 1]


def test_templates_come_back_as_they_were_given(open_session: Callable[..., JobSession]) -> None:
    """What a resubmission starts from is the template without defaults, its placeholders to be filled anew."""
    system = FakeSystem(fields=["output_path", "remote_command", "args", "job_environment"])
    template = JobTemplate(remote_command="a", args=["$DRMAA2_INDEX$"], output_path="/tmp/{{.ID}}.$DRMAA2_INDEX$")
    default = JobTemplate(job_environment={"WHERE": "one"})
    session = open_session(system, default_template=default)
    array = session.run_bulk_jobs(template, range(1, 3))
    single = session.run_job(template)
    wait([*array, single])
    session.close()
    again = open_session(system, default_template=JobTemplate(job_environment={"WHERE": "two"}))
    found = again.get_job_array(array.id)
    assert {found.source, *(task.source for task in again.get_jobs())} == {template}
    assert [task.template for task in found] == [task.template for task in array]
    new = Task(again.again(found[1]._record))  # noqa: SLF001 - as retry does
    assert new.template.args == ("2",)
    assert new.template.job_environment == {"WHERE": "two"}
    assert new.template.output_path != found[1].template.output_path


def test_max_parallel_of_an_array_comes_back(open_session: Callable[..., JobSession], path: Path) -> None:
    """The limit of an array holds on in the next program: for what runs, what waits and what is retried."""
    system = FakeSystem({"job": FOREVER})
    session = open_session(system)
    array = session.run_bulk_jobs(JobTemplate(remote_command="job"), range(1, 7), max_parallel=2)
    session.close()
    killed(path)
    again = open_session(system)
    found = again.get_job_array(array.id)
    assert found.max_parallel == 2
    for started in range(2, 6):
        assert len(system.submitted) == started
        system.finish(found[started - 2], exit_status=1)
        found[started].wait_started(PATIENCE)
    retried = Task(again.again(found[0]._record))  # noqa: SLF001 - as retry does
    assert (retried.state, len(system.submitted)) == (JobState.QUEUED, 6)
    found.terminate()
    wait([*found])
    retried.wait_started(PATIENCE)
    retried.terminate()


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_what_is_found_running_counts(open_session: Callable[..., JobSession], path: Path, *, closed: bool) -> None:
    """max_parallel counts the slots of tasks that an ended program has left running, also if they are too many."""
    system = FakeSystem({"job": FOREVER}, fields=["min_slots", "remote_command", "args"])
    session = open_session(system)
    left = run(session, "job", number=2, min_slots=2)
    session.close()
    if not closed:
        killed(path)
    again = open_session(system, max_parallel=3)
    (new,) = run(again, "true")
    assert new.state is JobState.QUEUED
    system.finish(left[0])
    wait([new])
    again.close()


def test_a_context_that_is_opened_again_counts_once(path: Path) -> None:
    """Sessions of one context, one after the other, share its queue: what runs on has one place in it."""
    system = FakeSystem({"job": FOREVER})
    context = FakeContext(system, store=path, detach=True, max_parallel=2)
    for _ in range(3):
        session = JobSession(context)
        if not system.submitted:
            run(session, "job")
        (task,) = run(session, "true")
        wait([task])
        session.close()


def test_a_living_program_counts_its_own(open_session: Callable[..., JobSession], path: Path) -> None:
    """What another living program runs counts there, until that program has ended."""
    system = FakeSystem({"job": FOREVER})
    owner = open_session(system)
    run(owner, "job")
    owner.refresh()
    other = open_session(system, max_parallel=1)
    wait(run(other, "true"))
    killed(path)
    late = open_session(system, max_parallel=1)
    (waiting,) = run(late, "true")
    assert waiting.state is JobState.QUEUED


# --- control from elsewhere -------------------------------------------------------------------------------


@pytest.fixture
def queued(open_session: Callable[..., JobSession]) -> tuple[FakeSystem, Task, Task, JobSession]:
    """A system that runs one job; the next as its owner sees it, as another program sees it, and that program."""
    system = FakeSystem({"first": FOREVER, "job": FOREVER})
    owner = open_session(system, max_parallel=1)
    run(owner, "first")
    (mine,) = run(owner, "job")
    owner.refresh()
    other = open_session(system)
    return system, mine, other.get_jobs()[-1], other


def test_ending_what_waits_elsewhere(queued: tuple[FakeSystem, Task, Task, JobSession]) -> None:
    """Ended by another program, a queued job is cancelled for both, and never started."""
    system, mine, theirs, _ = queued
    theirs.terminate()
    theirs.terminate()
    wait([mine])
    wait([theirs])
    assert {mine.info().sub_state, theirs.info().sub_state} == {"cancelled"}
    system.finish("1")
    system.advance(10)
    assert len(system.submitted) == 1


def test_ending_what_is_about_to_start(queued: tuple[FakeSystem, Task, Task, JobSession]) -> None:
    """The wish is heeded also if the job's turn comes before its program has looked."""
    system, mine, theirs, _ = queued
    system.time.auto = False  # nobody looks any more
    theirs.terminate()
    system.finish("1")
    system.advance(0)
    assert (mine.state, len(system.submitted)) == (JobState.FAILED, 1)


def test_ending_what_has_just_started(queued: tuple[FakeSystem, Task, Task, JobSession]) -> None:
    """What has started before the other program knew is ended all the same."""
    system, mine, theirs, _ = queued
    system.time.auto = False
    system.finish("1")
    system.advance(0.1)
    assert (mine.state, theirs.state) == (JobState.RUNNING, JobState.QUEUED)
    theirs.terminate()
    assert mine.info().terminating_signal == "SIGKILL"


def test_holding_and_releasing_elsewhere(queued: tuple[FakeSystem, Task, Task, JobSession]) -> None:
    """Another program holds a queued job, which lets its turn pass, and releases it."""
    system, mine, theirs, other = queued
    theirs.hold()
    system.finish("1")
    system.advance(10)
    assert (mine.state, theirs.state, len(system.submitted)) == (JobState.QUEUED_HELD, JobState.QUEUED_HELD, 1)
    theirs.release()
    mine.wait_started(PATIENCE)
    assert len(system.submitted) == 2
    other.refresh()
    theirs.wait_started(PATIENCE)
    theirs.terminate()
    wait([mine])


@pytest.mark.parametrize(
    ("verb", "words"), [("suspend", "it has not started"), ("resume", "it has not started"), ("release", "not held")]
)
def test_what_cannot_be_done_elsewhere(
    queued: tuple[FakeSystem, Task, Task, JobSession], verb: str, words: str
) -> None:
    """What its own program could not do to a queued job is refused at once to another."""
    _, mine, theirs, _ = queued
    with pytest.raises(errors.InvalidStateError, match=words):
        getattr(theirs, verb)()
    assert mine.state is JobState.QUEUED


@pytest.mark.parametrize("action", ["terminate", "hold"])
def test_wishes_outlive_the_owner(
    open_session: Callable[..., JobSession], queued: tuple[FakeSystem, Task, Task, JobSession], path: Path, action: str
) -> None:
    """A program that was killed before it heeded a wish: who inherits its queue heeds it."""
    system, _, theirs, other = queued
    system.time.auto = False
    getattr(theirs, action)()
    other.close()
    killed(path)
    task = open_session(system).get_jobs()[-1]
    expected = JobState.FAILED if action == "terminate" else JobState.QUEUED_HELD
    assert (task.state, len(system.submitted)) == (expected, 1)


def test_what_another_took_over_is_not_started(queued: tuple[FakeSystem, Task, Task, JobSession], path: Path) -> None:
    """A program that was taken for dead leaves what another has taken over to that one, whatever is wanted of it."""
    system, mine, theirs, other = queued
    system.time.auto = False  # nobody looks any more
    assert other.store is not None
    theirs.hold()
    sql(path, "update tasks set program = ? where phase = ?", other.store.program, HERE)
    system.finish("1")
    system.advance(1)
    assert mine.state in (JobState.QUEUED, JobState.QUEUED_HELD)  # as the other has it by now
    assert len(system.submitted) == 1


def test_reading_what_another_program_reaped(open_session: Callable[..., JobSession]) -> None:
    """Output that another program removed is an error, not empty; what never ran has none."""
    system = FakeSystem({"job": Outcome(output="x"), "waiting": FOREVER})
    session, other = open_session(system, max_parallel=1), open_session(system)
    (task,) = run(session, "job")
    wait([task])
    session.refresh()
    other.reap(other.get_jobs())
    for read in (task.output, task.error_output, lambda: list(task.stream())):
        with pytest.raises(errors.InvalidStateError):
            read()
    _, never = run(session, "waiting", number=2)
    never.terminate()
    assert never.output() == ""


# --- what it refuses --------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    """What a session says that cannot open this store; nothing of the system is touched before."""
    system = FakeSystem()
    with pytest.raises(errors.SessionManagementError) as caught:
        JobSession(FakeContext(system, store=path))
    assert not system.calls
    assert str(caught.value).startswith(f"store {path}: ")
    return str(caught.value)


def test_newer_store(path: Path) -> None:
    """A store that a newer wfl wrote is left alone, and the message says what to do."""
    Store(os.fspath(path)).close()
    sql(path, "pragma user_version = 99")
    assert refusal(path).endswith("written by a newer wfl (store version 99, this one reads 1); update wfl")


def test_no_database(path: Path) -> None:
    """A file of something else is not overwritten."""
    path.write_bytes(b"important text\n" * 1000)
    assert "damaged or no wfl store" in refusal(path)
    assert path.read_bytes() == b"important text\n" * 1000


@pytest.mark.parametrize("version", [0, 1, 99])
def test_foreign_database(path: Path, version: int) -> None:
    """Another program's database, whatever its version, is refused and not changed by a single byte."""
    sql(path, "create table precious (thing text)")
    sql(path, f"pragma user_version = {version}")
    before = path.read_bytes()
    assert "a database of something else" in refusal(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("where", ["middle", "end"])
def test_damaged_store(open_session: Callable[..., JobSession], path: Path, where: str) -> None:
    """A store with garbage in it, or without its end, is refused before anything is started."""
    session = open_session()
    for number in range(200):
        run(session, "true", str(number), "x" * 100)
    session.close()
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + b"\xa5" * 4096 + content[half + 4096 :] if where == "middle" else content[:half])
    assert "damaged" in refusal(path)


def test_store_in_a_missing_directory(tmp_path: Path) -> None:
    """The directory that is missing is named; it is not made, as it may be misspelt."""
    assert refusal(tmp_path / "no" / "jobs").endswith(f"there is no directory {tmp_path / 'no'}")


def test_store_that_is_a_directory(path: Path) -> None:
    """A directory is no store."""
    path.mkdir()
    assert "cannot be written" in refusal(path)


def test_directory_for_output_that_cannot_be_made(path: Path) -> None:
    """The place beside the store, where backends keep things, is named when it cannot be had."""
    Path(f"{path}.d").write_text("in the way")
    assert f"cannot make {path}.d" in refusal(path)


def test_empty_file_is_a_new_store(path: Path) -> None:
    """A file that somebody made in advance is used."""
    path.touch()
    Store(os.fspath(path)).close()
    assert sql(path, "pragma user_version") == [(store.VERSION,)]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """A directory, and a way to make it read-only: root, whom no permission stops, mounts it so."""
    place = tmp_path / "place"
    place.mkdir()
    root = os.geteuid() == 0
    if root:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"root cannot be kept from writing here: {mounted.stderr.decode().strip()}")

    def freeze() -> Path:
        if root:
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        else:
            for file in place.iterdir():
                file.chmod(0o444)
            place.chmod(0o555)
        return place

    yield freeze
    if root:
        subprocess.run(["umount", place], check=True)
    else:
        place.chmod(0o755)


def test_others_do_not_read_it(tmp_path: Path) -> None:
    """A new store is its user's alone, as templates may have secrets; one that is shared stays so."""
    before = os.umask(0o022)
    try:
        with closing(Store(str(tmp_path / "jobs"))) as opened:
            opened.directory("s")
            assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_file()} == {0o600}
        (tmp_path / "jobs").chmod(0o664)
        with closing(Store(str(tmp_path / "jobs"))):
            assert (tmp_path / "jobs").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


def test_read_only_store(read_only: Callable[[], Path], tmp_path: Path) -> None:
    """A store that cannot be written is refused on opening, not when the first job is lost."""
    Store(os.fspath(tmp_path / "place" / "jobs")).close()
    assert "it cannot be written here" in refusal(read_only() / "jobs")


def test_read_only_directory(read_only: Callable[[], Path]) -> None:
    """A new store in a directory that cannot be written is refused on opening."""
    assert "it cannot be written here" in refusal(read_only() / "jobs")


def test_locked_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that another program keeps locked is refused after some patience."""
    monkeypatch.setattr(store, "PATIENCE", 0.05)
    Store(os.fspath(path)).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("begin immediate")
        assert "another program has kept it locked" in refusal(path)
        other.rollback()
    Store(os.fspath(path)).close()


def test_store_locked_later(
    open_session: Callable[..., JobSession], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that cannot be recorded is not started; its failure says why, and the session lives on."""
    monkeypatch.setattr(store, "PATIENCE", 0.05)
    system = FakeSystem()
    session = open_session(system)
    with closing(sqlite3.connect(path)) as other:
        other.execute("begin immediate")
        (task,) = run(session, "true")
        other.rollback()
    assert (task.state, task.info().sub_state) == (JobState.FAILED, "launch_failure")
    assert isinstance(task.error, errors.SessionManagementError)
    assert not system.submitted
    wait(run(session, "true"))
    assert len(system.submitted) == 1


def test_full_disk(open_session: Callable[..., JobSession]) -> None:
    """When nothing more fits, jobs fail with the reason; when it does again, they are recorded whole."""
    system = FakeSystem()
    session = open_session(system)
    assert session.store is not None
    connection = session.store._connection  # noqa: SLF001 - a small disk without a small disk
    pages = connection.execute("pragma page_count").fetchone()[0]
    connection.execute(f"pragma max_page_count = {pages + 2}")  # for the template, not for all jobs
    lost = run(session, "true", number=1000)
    assert {str(task.error).partition(": ")[2] for task in lost} == {"database or disk is full"}
    connection.execute("pragma max_page_count = 100000")
    wait(run(session, "true", number=1000))
    session.close()
    assert [task.state for task in open_session(system).get_jobs()] == [JobState.DONE] * 1000


# --- how seldom it writes ---------------------------------------------------------------------------------


def counted(session: JobSession) -> list[str]:
    """The statements that end a write, from now on."""
    statements: list[str] = []
    assert session.store is not None
    session.store._connection.set_trace_callback(  # noqa: SLF001 - SQLite's own count
        lambda statement: statements.append(statement) if statement == "commit" else None
    )
    return statements


def test_an_array_is_few_writes(open_session: Callable[..., JobSession]) -> None:
    """Two thousand submissions and ends are a handful of writes, not thousands."""
    session = open_session()
    commits = counted(session)
    array = session.run_bulk_jobs(JobTemplate(remote_command="true"), range(1, 2001))
    array.wait_terminated(PATIENCE)
    session.refresh()
    assert 1 <= len(commits) <= 5


def test_a_single_job_is_recorded_once_before_it_starts(open_session: Callable[..., JobSession]) -> None:
    """One write each for a hundred submissions; what becomes of them is written together."""
    session = open_session()
    commits = counted(session)
    for _ in range(100):
        run(session, "true")
    session.refresh()
    assert 100 <= len(commits) <= 110


def test_no_write_waits_for_the_disk(open_session: Callable[..., JobSession]) -> None:
    """Write-ahead, without an fsync for every change."""
    session = open_session()
    assert session.store is not None
    connection = session.store._connection  # noqa: SLF001 - these settings belong to the connection
    assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    assert connection.execute("pragma synchronous").fetchone() == (1,)


def test_templates_are_stored_once(open_session: Callable[..., JobSession], path: Path) -> None:
    """Jobs that are the same share one template in the file, whether of one array or submitted one by one."""
    session = open_session()
    session.run_bulk_jobs(JobTemplate(remote_command="a"), range(1, 101)).wait_terminated(PATIENCE)
    for _ in range(10):
        run(session, "b")
    assert sql(path, "select count(*) from templates") == [(2,)]


def test_elements_that_differ_have_their_own(open_session: Callable[..., JobSession], path: Path) -> None:
    """Placeholders make templates differ: each is stored, and comes back filled."""
    system = FakeSystem()
    session = open_session(system)
    template = JobTemplate(remote_command="a", args=["$DRMAA2_INDEX$"])
    session.run_bulk_jobs(template, range(1, 101)).wait_terminated(PATIENCE)
    session.close()
    assert sql(path, "select count(*) from templates") == [(101,)]  # and the one that was given
    assert [task.template.args for task in open_session(system).get_jobs()] == [(str(n),) for n in range(1, 101)]


def test_rows_say_where_jobs_are(open_session: Callable[..., JobSession], path: Path) -> None:
    """What waits here, what the system has, what is over: each is written as such."""
    system = FakeSystem({"job": FOREVER})
    session = open_session(system, max_parallel=1)
    tasks = run(session, "job", number=2)
    session.refresh()
    assert sql(path, "select phase, id from tasks") == [(ACCEPTED, "1"), (HERE, tasks[1].id)]
    system.finish(tasks[0])
    tasks[1].wait_started(PATIENCE)
    session.refresh()
    assert sql(path, "select phase, id from tasks") == [(ENDED, "1"), (ACCEPTED, "2")]


# --- programs' names --------------------------------------------------------------------------------------


def test_this_program_lives() -> None:
    """Its own name, and its name as others see it, are one, and alive."""
    assert program_name("self") == program_name(os.getpid())
    assert program_lives(f"{program_name('self')} 0")


def test_ended_program() -> None:
    """A program that has ended does not live, also when its number is used by another."""
    program = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    name = f"{program_name(program.pid)} 0"
    assert program_lives(name)
    program.communicate(timeout=PATIENCE)
    assert not program_lives(name)
    host, boot, _, started, store_number = name.split(" ")
    assert not program_lives(f"{host} {boot} {os.getpid()} {started} {store_number}")


def test_program_before_the_last_boot() -> None:
    """After a reboot nobody of before lives, whatever its number."""
    host, _, number, started = program_name("self").split(" ")
    assert not program_lives(f"{host} another-boot {number} {started} 0")


def test_program_on_another_host() -> None:
    """Nobody can tell from here; what is theirs is left to them."""
    _, boot, number, started = program_name("self").split(" ")
    assert program_lives(f"elsewhere {boot} {number} {started} 0")


def test_nobodys_tasks() -> None:
    """What a program has left to the next one belongs to nobody alive."""
    assert not program_lives("")


def test_submission_keys_are_unique(open_session: Callable[..., JobSession]) -> None:
    """Sessions of one store never give the same key, array elements included."""
    system = FakeSystem()
    for _ in range(3):
        session = open_session(system)
        run(session, "true", number=5)
        session.run_bulk_jobs(JobTemplate(remote_command="true"), range(1, 6))
        session.close()
    keys: list[Submission] = system.submitted
    assert len({submission.key for submission in keys}) == 30

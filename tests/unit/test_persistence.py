"""Persistence: how sessions share a store, at the moments at which one of them is late, locked out, or killed."""

import os
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from tests.unit import test_store
from tests.unit.test_store import FOREVER, PATIENCE, killed, run, sql
from wfl import errors, store
from wfl.drmaa2 import JobState
from wfl.program import program_name
from wfl.record import ACCEPTED, ENDED, SUBMITTING
from wfl.session import JobSession
from wfl.store import Store
from wfl.task import Task
from wfl.testing import FakeSystem

path = test_store.path
open_session = test_store.open_session

Sessions = Callable[..., JobSession]
LOOKS = 2.0
"""Virtual seconds in which every session has looked at what others wrote, also after a look that failed."""


@pytest.fixture
def system() -> FakeSystem:
    """One in which nothing happens, and nobody looks, but by `advance`."""
    return FakeSystem({"job": FOREVER}, auto=False, without=["hold"])  # type: ignore[list-item] # a Capability is a str


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores that are opened from now on wait only for a moment until they are unlocked."""
    monkeypatch.setattr(store, "PATIENCE", 0.05)


@pytest.fixture
def owner(system: FakeSystem, open_session: Sessions) -> JobSession:
    """A program that may run one job at a time."""
    return open_session(system, max_parallel=1)


@pytest.fixture
def mine(system: FakeSystem, owner: JobSession) -> Task:
    """A job that waits in the owner's queue, behind job 1, which runs."""
    run(owner, "job")
    (task,) = run(owner, "job")
    system.advance()
    owner.refresh()  # writes what is due
    return task


@pytest.fixture
def other(system: FakeSystem, mine: Task, open_session: Sessions) -> JobSession:
    """Another program, which has seen that job."""
    assert mine.state is JobState.QUEUED
    return open_session(system)


@pytest.fixture
def theirs(other: JobSession) -> Task:
    """The same job as that other program sees it."""
    return other.get_jobs()[-1]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Meanwhile a third program is writing into the store."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("begin immediate")
        yield


def until(condition: Callable[[], object]) -> None:
    """Wait for what a thread does in real time."""
    end = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < end
        sleep(0.01)


def phase(task: Task) -> int:
    """Where the session believes it to be."""
    return task._record.phase  # noqa: SLF001 - nothing else tells an end that is known from one that is shown


def counted(monkeypatch: pytest.MonkeyPatch, store: Store | None, name: str) -> list[None]:
    """One element for each call of this method from now on."""
    calls: list[None] = []
    real = getattr(store, name)

    def call(*arguments: Any) -> Any:
        calls.append(None)
        return real(*arguments)

    monkeypatch.setattr(store, name, call)
    return calls


# --- interrupted, locked ----------------------------------------------------------------------------------


class Interrupted:
    """A connection that meets Ctrl-C once, before or after a statement is executed."""

    def __init__(self, connection: sqlite3.Connection, statement: str, moment: str) -> None:
        self.connection, self.statement, self.moment = connection, statement, moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """As the connection itself."""
        met, self.statement = statement == self.statement, "" if statement == self.statement else self.statement
        if met and self.moment == "before":
            raise KeyboardInterrupt
        cursor = self.connection.execute(statement, *values)
        if met:
            raise KeyboardInterrupt
        return cursor


@pytest.mark.parametrize(
    ("statement", "moment"), [("begin immediate", "before"), ("begin immediate", "after"), ("commit", "before")]
)
def test_interrupted_write(path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, moment: str) -> None:
    """After Ctrl-C in a write, this program and others can go on writing."""
    opened = Store(os.fspath(path))
    interrupted: Any = Interrupted(opened._connection, statement, moment)  # noqa: SLF001 - Ctrl-C at one instruction
    monkeypatch.setattr(opened, "_connection", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened.leave()
    sql(path, "delete from tasks")
    again = threading.Thread(target=opened.leave, daemon=True)
    again.start()
    again.join(PATIENCE)
    assert not again.is_alive()
    sql(path, "delete from tasks")
    opened.close()


@pytest.mark.usefixtures("impatient")
def test_closing_with_a_locked_store(
    system: FakeSystem, open_session: Sessions, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It returns, wakes who waits, and says what is missing; the next program finds out by itself."""
    session = open_session(system)
    (task,) = run(session, "job")
    system.advance()
    raised: list[Exception] = []

    def wait() -> None:
        try:
            task.wait_terminated()
        except errors.InvalidSessionError as error:
            raised.append(error)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    until(lambda: task._record.waiters)  # noqa: SLF001 - asleep
    with locked(path):
        session.close()
    waiter.join(PATIENCE)
    assert "the session was closed" in str(raised)
    assert "kept it locked" in caplog.text
    assert "the last changes are not in it" in caplog.text
    killed(path)
    (found,) = open_session(system).get_jobs()
    assert found.state is JobState.RUNNING


@pytest.mark.usefixtures("impatient")
def test_locked_when_an_owner_has_died(
    system: FakeSystem, theirs: Task, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue that cannot be taken over now, as the store is locked, is taken over when it is unlocked."""
    killed(path)
    with locked(path):
        system.advance(LOOKS)
        assert (theirs.state, len(system.submitted)) == (JobState.QUEUED, 1)
    assert "looking again" in caplog.text
    system.advance(LOOKS)
    assert (theirs.state, len(system.submitted)) == (JobState.RUNNING, 2)


@pytest.mark.usefixtures("impatient")
def test_locked_when_a_wish_is_done(system: FakeSystem, mine: Task, theirs: Task, path: Path) -> None:
    """A wish that cannot be heeded in full, as the store is locked, is heeded when it is unlocked."""
    theirs.terminate()
    with locked(path):
        system.advance(LOOKS)
    system.advance(LOOKS)
    assert (mine.info().sub_state, theirs.info().sub_state) == ("cancelled", "cancelled")
    assert sql(path, "select phase from tasks")[1:] == [(ENDED,)]


@pytest.mark.usefixtures("impatient")
def test_locked_when_tasks_move_up(
    system: FakeSystem, mine: Task, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whose turn comes while the store is locked waits until that is over, and is no launch failure."""
    with locked(path):
        system.finish("1")
        system.advance()
        assert (mine.state, len(system.submitted)) == (JobState.QUEUED, 1)
    assert "what waits goes on waiting" in caplog.text
    system.advance(LOOKS)
    assert (mine.state, len(system.submitted)) == (JobState.RUNNING, 2)


@pytest.mark.usefixtures("impatient")
def test_ended_while_the_store_was_locked(system: FakeSystem, mine: Task, path: Path) -> None:
    """What waits because the store was locked when its turn came can be ended, and is not started then."""
    with locked(path):
        system.finish("1")
        system.advance()
        mine.terminate()
    system.advance(LOOKS)
    assert mine.info().sub_state == "cancelled"
    assert len(system.submitted) == 1


# --- looking ----------------------------------------------------------------------------------------------


def test_looking_does_not_end_a_detached_queue(
    system: FakeSystem, open_session: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    """A session without detach leaves what waited for detached programs, held or queued, to the next one."""
    session = open_session(system, max_parallel=1)
    run(session, "job", number=2)
    run(session, "job", submit_as_hold=True)
    system.advance()
    session.close()
    expected = [JobState.RUNNING, JobState.QUEUED, JobState.QUEUED_HELD]
    guest = open_session(system, max_parallel=1, detach=False)
    assert [task.state for task in guest.get_jobs()] == expected
    guest.close()
    assert "had not ended" not in caplog.text
    tasks = open_session(system, max_parallel=2).get_jobs()
    system.advance()
    assert Counter(task.state for task in tasks) == {JobState.RUNNING: 2, JobState.QUEUED_HELD: 1}


@pytest.mark.parametrize("exit_status", [0, 3])
def test_an_end_that_was_half_written(system: FakeSystem, open_session: Sessions, path: Path, exit_status: int) -> None:
    """A row that says where a job was before its end, and its end as well, has ended."""
    session = open_session(system)
    run(session, "job")
    system.advance()
    session.close()
    session = open_session(system)  # what it is told on coming back is what the next one will be told
    system.finish("1", exit_status=exit_status)
    session.close()
    sql(path, "update tasks set phase = ?", ACCEPTED)
    again = open_session(system)
    (found,) = again.get_jobs()
    assert (found.info().exit_status, phase(found)) == (exit_status, ENDED)
    again.refresh()
    assert sql(path, "select phase from tasks") == [(ENDED,)]


def test_deadline_of_what_waits_elsewhere(
    system: FakeSystem, open_session: Sessions, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that has not seen yet that a job was started does not end it at its deadline_time."""
    monkeypatch.setattr("wfl.session._until", lambda _: 100.2)  # between two looks
    session = open_session(system)
    (task,) = run(session, "true", submit_as_hold=True, deadline_time=datetime.max.replace(tzinfo=UTC))
    session.refresh()
    (seen,) = open_session(system).get_jobs()
    system.advance(100.1)
    task.release()
    system.advance(0)
    session.refresh()
    assert (task.state, seen.state) == (JobState.DONE, JobState.QUEUED_HELD)
    system.advance(LOOKS)
    assert seen.info().sub_state == "exited"
    assert sql(path, "select phase, json_extract(info, '$.subState') from tasks") == [(ENDED, "exited")]


def test_an_end_is_not_written_over(system: FakeSystem, open_session: Sessions, path: Path) -> None:
    """What one program knows to have ended is not made running again by one that does not know it yet."""
    session = open_session(system)
    (task,) = run(session, "job")
    system.advance()
    session.refresh()
    sql(path, "update tasks set phase = ?, info = json_set(info, '$.annotation', 'over')", ENDED)
    task.suspend()
    session.refresh()
    assert sql(path, "select phase, json_extract(info, '$.annotation') from tasks") == [(ENDED, "over")]


def test_only_its_program_writes_what_waits(other: JobSession, theirs: Task, path: Path) -> None:
    """What a program believes of jobs in another's queue is not written down as if it were so."""
    before = sql(path, "select phase, id, info from tasks")
    theirs.hold()
    assert other.store is not None
    other.store.update([theirs._record])  # noqa: SLF001 - as after each change
    assert theirs.state is JobState.QUEUED_HELD
    assert sql(path, "select phase, id, info from tasks") == before


def test_rows_of_before_come_late(  # noqa: PLR0917 - all who take part
    system: FakeSystem, owner: JobSession, mine: Task, other: JobSession, theirs: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that takes long does not bring back what another thread has seen ended meanwhile."""
    assert other.store is not None
    load, too_late = other.store.load, threading.Thread(target=theirs.terminate, daemon=True)

    def load_slowly(name: str) -> Any:
        rows = load(name)
        if too_late.ident is None:
            mine.terminate()
            owner.refresh()
            too_late.start()  # it is seen in the store that this has ended
            too_late.join(1)  # or its turn comes after that of these rows
        return rows

    monkeypatch.setattr(other.store, "load", load_slowly)
    run(owner, "job")  # something new to look at
    system.advance(LOOKS)
    too_late.join(PATIENCE)
    system.advance(LOOKS)
    assert (theirs.info().sub_state, phase(theirs)) == ("cancelled", ENDED)


def test_owner_that_dies_without_a_word(system: FakeSystem, theirs: Task, path: Path) -> None:
    """The queue of a living program is left to it, and taken over when it is gone, though it has written nothing."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as program:
        sql(path, "update tasks set program = ?", f"{program_name(program.pid)} 0")
        system.advance(LOOKS)
        assert (theirs.state, len(system.submitted)) == (JobState.QUEUED, 1)
        program.kill()
    system.advance(LOOKS)
    assert (theirs.state, len(system.submitted)) == (JobState.RUNNING, 2)


def test_listing_often_looks_no_more(
    system: FakeSystem, owner: JobSession, other: JobSession, theirs: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often jobs are listed and submitted, each session looks twice a second, and reads only what is new."""
    for _ in range(15):
        run(owner, "job")
        other.get_jobs()
        system.advance(LOOKS)  # with something new to read
    looks = [counted(monkeypatch, session.store, "written") for session in (owner, other)]
    reads = counted(monkeypatch, other.store, "load")
    system.advance(10)
    assert [len(calls) for calls in looks] == [20, 20]
    assert not reads
    assert theirs.state is JobState.QUEUED


# --- what others want -------------------------------------------------------------------------------------


def test_wish_that_was_taken_outlives_the_taker(  # noqa: PLR0917 - all who take part
    system: FakeSystem, owner: JobSession, mine: Task, theirs: Task, open_session: Sessions, path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A program that is killed after it did what another wanted, and before it wrote so: the next does it again."""

    def write_nothing(_: object) -> None:
        raise errors.SessionManagementError("it was killed at this moment")

    monkeypatch.setattr(owner.store, "update", write_nothing)
    theirs.terminate()
    system.advance(LOOKS)
    assert mine.state is JobState.FAILED
    killed(path)
    found = open_session(system).get_jobs()[-1]
    system.advance(LOOKS)
    assert found.info().sub_state == "cancelled"
    assert len(system.submitted) == 1


def test_wish_that_fails(  # noqa: PLR0917 - all who take part
    system: FakeSystem, owner: JobSession, mine: Task, other: JobSession, theirs: Task, path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One of many wishes that cannot be fulfilled now is tried again, and the others do not suffer."""
    tasks = [mine, *run(owner, "job", number=3)]
    control, failures = owner._try_control, iter([errors.DrmCommunicationError("no answer now")])  # noqa: SLF001 - once

    def control_or_fail(*arguments: Any) -> Any:
        for error in failures:
            raise error
        return control(*arguments)

    monkeypatch.setattr(owner, "_try_control", control_or_fail)
    for task in other.get_jobs()[1:]:
        task.terminate()
    system.advance(0.5)
    assert Counter(task.state for task in tasks) == {JobState.QUEUED: 1, JobState.FAILED: 3}
    system.advance(LOOKS)
    assert {task.info().sub_state for task in [*tasks, theirs]} == {"cancelled"}
    assert sql(path, "select count(*) from tasks where wish is not null") == [(0,)]
    assert len(system.submitted) == 1


@pytest.mark.usefixtures("impatient")
def test_wish_that_could_not_be_written(system: FakeSystem, mine: Task, theirs: Task, path: Path) -> None:
    """What could not be asked for is not taken for done: a later failure of the job is one of its own."""
    with locked(path), pytest.raises(errors.SessionManagementError, match="kept it locked"):
        theirs.terminate()
    assert theirs.state is JobState.QUEUED
    system.finish("1")
    system.advance(LOOKS)
    system.finish(mine, exit_status=3)
    system.advance(LOOKS)
    info = theirs.info()
    assert (info.sub_state, info.exit_status, info.annotation) == ("exited", 3, None)


def test_holding_and_releasing_at_once(system: FakeSystem, mine: Task, theirs: Task) -> None:
    """What waits elsewhere can be released as soon as it was held, before its program has looked, and starts then."""
    states = []
    for verb in (theirs.hold, theirs.release):
        verb()
        states.append(theirs.state)
    assert states == [JobState.QUEUED_HELD, JobState.QUEUED]
    system.advance(LOOKS)
    system.finish("1")
    system.advance(LOOKS)
    assert (mine.state, theirs.state) == (JobState.RUNNING, JobState.RUNNING)


# --- from one to the next ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("done", "state"), [(True, JobState.RUNNING), (False, JobState.FAILED)])
def test_submission_unsettled_at_the_close(
    system: FakeSystem, open_session: Sessions, path: Path, *, done: bool, state: JobState
) -> None:
    """Whether the system has it is found out by the next session, also by one of the same program."""
    session = open_session(system)
    system.fail("submit", errors.DrmCommunicationError("no line"), done=done)
    (task,) = run(session, "job")
    assert task.state is JobState.UNDETERMINED
    session.close()
    assert sql(path, "select phase from tasks") == [(SUBMITTING,)]
    (found,) = open_session(system).get_jobs()
    system.advance(LOOKS)
    assert found.state is state
    assert len(system.submitted) == done


def test_killed_as_it_gave_on_what_had_waited(system: FakeSystem, open_session: Sessions, path: Path) -> None:
    """What a detached program's queue had, and the system has not, waits on in the next program's queue."""
    session = open_session(system, max_parallel=1)
    first, second, _ = (run(session, "job")[0] for _ in range(3))
    system.advance()
    session.refresh()  # writes what is due
    session._kept.store.start([second.id])  # type: ignore[union-attr] # noqa: SLF001 - and then it was killed
    killed(path)
    later = open_session(system, max_parallel=1)
    *_, again, last = later.get_jobs()
    assert (again.state, last.state, len(system.submitted)) == (JobState.QUEUED, JobState.QUEUED, 1)
    for done in (first, last, again):
        system.finish(done)
        system.advance(LOOKS)
    assert [again.state, last.state] == [JobState.DONE] * 2
    assert len(system.submitted) == 3


def test_closed_as_it_gave_on_what_had_waited(
    system: FakeSystem, open_session: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that is closed meanwhile refuses it, which says nothing of the job: the next program starts it."""
    session = open_session(system, max_parallel=1)
    first, _ = (run(session, "job")[0] for _ in range(2))
    system.advance()
    session.refresh()

    def closing(_: object) -> None:
        session.close()
        raise errors.InvalidSessionError("the session is closed")

    monkeypatch.setattr(session.backend, "submit", closing)
    system.finish(first)
    system.advance(LOOKS)
    assert session.closed
    (_, again) = open_session(system, max_parallel=1).get_jobs()
    system.advance(LOOKS)
    assert again.state is JobState.RUNNING, again.info()


def test_templates_of_reaped_jobs(system: FakeSystem, open_session: Sessions, path: Path) -> None:
    """They are removed when the store is opened; a program that has used one of them can go on using it."""
    session = open_session(system)
    tasks = run(session, "first")
    system.advance()
    session.reap(tasks)
    assert sql(path, "select count(*) from templates") == [(1,)]
    late = open_session(system)
    assert sql(path, "select count(*) from templates") == [(0,)]
    run(late, "second")
    run(session, "first")
    system.advance()
    session.close()
    late.close()
    found = open_session(system).get_jobs()
    assert [task.template.remote_command for task in found] == ["second", "first"]
    assert sql(path, "select count(*) from templates") == [(2,)]

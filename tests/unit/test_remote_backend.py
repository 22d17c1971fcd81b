"""RemoteBackend on a server in memory, through a real session: nothing is lost, nothing is done twice."""

import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="httpx is not in this environment")

from tests.unit.test_remote_fake import (
    PATIENCE,
    URL,
    Fault,
    JobServer,
    eventually,
    half,
    put_in_place,
    refused,
    reset,
    status,
    status_after,
    swallowed,
    unheard,
)
from wfl import JobState, JobTemplate, Workflow
from wfl.backend import Action, Known, Submission
from wfl.contexts import undertaker
from wfl.contexts.remote import RemoteContext, clean, ending, events
from wfl.contexts.remote import backend as module
from wfl.contexts.remote.backend import RemoteBackend
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidStateError,
    UnsupportedAttributeError,
    WflError,
)
from wfl.session import JobSession
from wfl.task import Task

Open = Callable[..., JobSession]
JOBS, FIND, EVENTS = "POST /api/v1/sessions/s/jobs", "/find", "/events"


class NoHelper:
    """What stands for the helper process: it notes what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def goodbye(self) -> None:
        """All is in order."""
        self.said.append("goodbye")

    def take_over(self) -> None:
        """Something is left."""
        self.said.append("take over")

    def abandon(self) -> None:
        """In a forked child."""
        self.said.append("abandon")


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch) -> NoHelper:
    """No process is started."""
    found = NoHelper()
    monkeypatch.setattr(module, "watch", lambda *_, **__: found)
    return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, helper: NoHelper) -> JobServer:
    """A server, which every client talks to."""
    del helper
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))  # no helper removes it
    return put_in_place(JobServer(), monkeypatch)


@pytest.fixture
def opened(server: JobServer) -> Iterator[Open]:
    """Opens sessions, and closes them."""
    del server
    with ExitStack() as sessions:

        def open_(**settings: Any) -> JobSession:
            session = JobSession(RemoteContext(URL, **{"session_name": "s", "patience": 5.0, **settings}))
            sessions.callback(session.close)
            return session

        yield open_


def ran(session: JobSession, *words: str, **fields: Any) -> Task:
    """One job, submitted."""
    (task,) = session.start([JobTemplate(remote_command=words[0], args=words[1:], **fields)])
    return task


def over(session: JobSession, *tasks: Task) -> None:
    """Wait for their ends, within bounds."""
    session.wait(list(tasks), PATIENCE)


def listening(session: JobSession) -> None:
    """Wait until it is told of what happens."""
    backend = session.backend
    assert isinstance(backend, RemoteBackend)
    eventually(backend._listener.listening.is_set, "the connection for events")  # noqa: SLF001 - not for users


# --- submitting -------------------------------------------------------------------------------------------


def test_job_ends_as_the_server_tells(server: JobServer, opened: Open) -> None:
    """A job's id is the server's, and its end comes from there."""
    session = opened()
    done, failed = ran(session, "true"), ran(session, "false")
    over(session, done, failed)
    assert (done.state, failed.state) == (JobState.DONE, JobState.FAILED)
    assert failed.info().exit_status == 1
    assert {done.id, failed.id} == set(server.jobs)


@pytest.mark.parametrize(
    "faults",
    [
        [swallowed, swallowed],
        [unheard],
        [reset, half],
        [status(502), status(503), status(504), status(429)],
        [status_after(504), unheard],
        [refused, unheard, status_after(502), half],
    ],
)
def test_submission_is_repeated_until_answered(server: JobServer, opened: Open, faults: list[Fault]) -> None:
    """Whatever becomes of requests and answers, each job is started once, and is known by one id."""
    session = opened()
    server.fail(JOBS, *faults)
    tasks = session.start([JobTemplate(remote_command="true")] * 3)
    over(session, *tasks)
    assert [task.state for task in tasks] == [JobState.DONE] * 3
    assert sorted(server.started.values()) == [1, 1, 1]
    assert server.count(JOBS) == len(faults) + 1


def test_unknown_submission_is_settled_by_find(server: JobServer, opened: Open) -> None:
    """A submission that patience ran out for is not repeated: the server is asked by its key, and it is found."""
    session = opened(patience=1e-9)
    server.hold = True
    server.fail(JOBS, unheard)
    task = ran(session, "true")
    eventually(lambda: task.id in server.jobs, "the id")
    server.end(task.id)
    over(session, task)
    assert task.state is JobState.DONE
    assert server.started == {task._record.key: 1}  # noqa: SLF001 - not for users


def test_unknown_submission_that_never_arrived(server: JobServer, opened: Open) -> None:
    """What the server does not know, after any request of it can have been under way, was never started."""
    session = opened(patience=1e-9, timeout=0.05)
    server.fail(JOBS, swallowed)
    task = ran(session, "true")
    over(session, task)
    assert task.info().sub_state == "launch_failure"
    assert "never started" in str(task.error)
    assert not server.jobs


def test_late_request_is_not_taken_for_lost(server: JobServer, opened: Open) -> None:
    """As long as a request may still arrive, a key that the server does not know says nothing."""
    session = opened(patience=1e-9, timeout=30.0)
    late: list[Any] = []

    def slow(act: Any) -> Any:
        late.append(act)
        return swallowed(act)

    server.fail(JOBS, slow)
    task = ran(session, "true")
    asked = server.count(FIND)
    eventually(lambda: server.count(FIND) > asked + 2, "some questions")
    assert not task.state.ended
    late[0]()
    over(session, task)
    assert task.state is JobState.DONE


def test_server_that_is_away_takes_nothing(server: JobServer, opened: Open) -> None:
    """Where no connection was ever made it is certain that nothing was started: that is said at once."""
    session = opened(patience=0.02)
    server.fail(JOBS, *[refused] * 100)
    task = ran(session, "true")
    assert isinstance(task.error, DrmCommunicationError)
    assert task.info().sub_state == "launch_failure"


def test_busy_server_is_tried_later(server: JobServer, opened: Open) -> None:
    """A server that had no time through all patience has started nothing, and says so."""
    session = opened(patience=0.02)
    server.fail(JOBS, *[status(429)] * 100)
    task = ran(session, "true")
    assert type(task.error).__name__ == "TryLaterError"


def test_refusals_are_the_servers(server: JobServer, opened: Open) -> None:
    """One job of several may be refused, with the server's words; the others run."""
    session = opened()
    good, bad = session.start([JobTemplate(remote_command="true"), JobTemplate(remote_command="nonsense")])
    over(session, good, bad)
    assert good.state is JobState.DONE
    assert isinstance(bad.error, InvalidArgumentError)
    assert "no nonsense" in str(bad.error)
    assert len(server.jobs) == 1


def test_server_that_does_not_know_itself(server: JobServer, opened: Open) -> None:
    """Where the server says that it does not know what became of a job, it is asked by its key."""
    session = opened(timeout=0.05)
    task = ran(session, "unsure")
    over(session, task)
    assert "never started" in str(task.error)
    assert server.count(FIND) >= 1


def test_one_that_nobody_knows_says_nothing_of_others(server: JobServer, opened: Open) -> None:
    """What the same answer says of other jobs stands: one is refused with the server's words, one runs."""
    session = opened(timeout=0.05)
    words = ("true", "nonsense", "unsure")
    good, bad, unsure = session.start([JobTemplate(remote_command=word) for word in words])
    over(session, good, bad, unsure)
    assert good.state is JobState.DONE
    assert isinstance(bad.error, InvalidArgumentError)
    assert "no nonsense" in str(bad.error)
    assert "never started" in str(unsure.error)
    assert server.count(JOBS) == 1


def test_large_submissions_are_divided(server: JobServer, opened: Open) -> None:
    """No request has more jobs or bytes than the server takes; what does not fit by itself is refused by its size."""
    server.limits |= {"body": 3000, "submissions": 100}
    session = opened()
    tasks = session.start([JobTemplate(remote_command="true", args=("x" * 500,))] * 9)
    (large,) = session.start([JobTemplate(remote_command="true", args=("x" * 5000,))])
    over(session, *tasks)
    sizes = [len(request.content) for request in server.requests if request.url.path.endswith("/jobs")]
    assert len(sizes) >= 3
    assert max(sizes) <= 3000
    assert "stage_in_files" in str(large.error)


def test_refused_request_says_nothing_of_others(server: JobServer, opened: Open) -> None:
    """Where a submission takes several requests, those that were answered stand, whatever becomes of the next one."""
    server.limits |= {"body": 1200, "submissions": 100}
    for fault, patience in ((status(403), 5.0), (unheard, 1e-9), (refused, 1e-9)):
        server.jobs.clear()
        session = opened(patience=patience)
        server.fail(JOBS, lambda act: act(), fault)
        tasks = session.start([JobTemplate(remote_command="true", args=("x" * 500,))] * 2)
        over(session, *tasks)
        assert tasks[0].state is JobState.DONE
        assert (tasks[1].error is None) is (fault is unheard)
        assert len(server.jobs) == (2 if fault is unheard else 1)


def test_a_server_that_is_away_is_not_waited_for_twice(server: JobServer, opened: Open) -> None:
    """Where a submission takes several requests, and one is not answered in time, the others are not sent."""
    server.limits |= {"body": 1200, "submissions": 100}
    session = opened(patience=1e-9)
    server.fail(JOBS, refused, lambda act: act(), lambda act: act())
    tasks = session.start([JobTemplate(remote_command="true", args=("x" * 500,))] * 3)
    over(session, *tasks)
    assert server.count(JOBS) == 1
    assert "it was not sent" in str(tasks[1].error)
    assert "it was not sent" in str(tasks[2].error)


def test_server_with_strange_ids(server: JobServer, opened: Open, tmp_path: Path) -> None:
    """Whatever a server calls a job, nothing is written but where it was asked for."""
    session = opened()
    server._start = lambda session, one: {  # type: ignore[method-assign] # noqa: SLF001 - another kind of server
        "key": one["key"], "id": server._new(session, one["key"], one["template"], id="../../up").id  # noqa: SLF001
    }  # fmt: skip
    task = ran(session, "stay", output_path=tmp_path / "out")
    server.end(task.id, stdout=b"words")
    over(session, task)
    assert (tmp_path / "out").read_bytes() == b"words"
    place = session.backend._directory  # type: ignore[attr-defined] # noqa: SLF001 - not for users
    assert not list(place.parent.parent.glob("up.*"))
    assert not list(place.parent.glob("up.*"))


def test_array_is_one_request(server: JobServer, opened: Open) -> None:
    """An array is submitted whole, with the placeholder for the server to fill; elements keep their indexes."""
    session = opened()
    server.fail("/arrays", unheard)
    array = session.start_array(JobTemplate(remote_command="true", args=("$DRMAA2_INDEX$",)), range(0, 7, 3), 2)
    over(session, *array.tasks)
    bodies = [json.loads(request.content) for request in server.requests if request.url.path.endswith("/arrays")]
    assert [task.index for task in array.tasks] == [0, 3, 6]
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]
    assert (bodies[0]["indexes"], bodies[0]["max_parallel"]) == ([0, 7, 3], 2)
    assert bodies[0]["template"]["args"] == ["$DRMAA2_INDEX$"]
    assert set(server.started.values()) == {1}


def test_unknown_array_is_found_by_its_elements(server: JobServer, opened: Open) -> None:
    """An array whose answer was lost for good is found, element by element."""
    session = opened(patience=1e-9)
    server.fail("/arrays", unheard)
    array = session.start_array(JobTemplate(remote_command="true"), range(1, 26))
    over(session, *array.tasks)
    assert {task.state for task in array.tasks} == {JobState.DONE}
    assert set(server.started.values()) == {1}


def test_single_elements_see_their_index(server: JobServer, opened: Open) -> None:
    """Elements that are submitted one by one, for the context's limit, have TASK_ID in their environment."""
    session = opened(max_parallel=2)
    array = session.start_array(JobTemplate(remote_command="true"), range(1, 5))
    over(session, *array.tasks)
    seen = sorted(job.template["jobEnvironment"]["TASK_ID"] for job in server.jobs.values())
    assert seen == ["1", "2", "3", "4"]


def test_fields_are_the_servers(opened: Open) -> None:
    """What the server does not honour is refused by name before anything is sent; so are unknown extensions."""
    session = opened()
    assert "does not honour accounting_id" in str(ran(session, "true", accounting_id="a").error)
    assert isinstance(ran(session, "true", extensions={"unknown": "1"}).error, UnsupportedAttributeError)
    assert ran(session, "true", extensions={"known": "1"}, queue_name="q").error is None


def test_held_jobs_are_held_there(server: JobServer, opened: Open) -> None:
    """Holding is the server's own doing: a held job is there, and waits there."""
    session = opened()
    task = ran(session, "stay", submit_as_hold=True)
    eventually(lambda: task.state is JobState.QUEUED_HELD, "held")
    assert server.only().state == "queuedHeld"
    session.control([task], Action.RELEASE)
    assert task.state is JobState.RUNNING


# --- what the server tells --------------------------------------------------------------------------------


def test_end_before_the_answer(server: JobServer, opened: Open) -> None:
    """What is told of a job before the answer to its submission has come is not lost."""
    session = opened()
    first = ran(session, "stay")
    listening(session)

    def slow(act: Any) -> Any:
        answer = act()
        server.end(first.id)  # when this is heard, the other end was heard before
        over(session, first)
        return answer

    server.fail(JOBS, slow)
    task = ran(session, "true")
    over(session, task)
    assert task.state is JobState.DONE


def test_restarted_server_is_asked_for_everything(server: JobServer, opened: Open, caplog: Any) -> None:
    """A restart takes what was told meanwhile with it: all jobs are looked for, and their ends are known."""
    caplog.set_level(logging.WARNING, "wfl")
    session = opened()
    tasks = [ran(session, "stay") for _ in range(15)]
    listening(session)
    server.fail(EVENTS, refused, status(503), swallowed)
    for number, task in enumerate(tasks):
        server.end(task.id, code=number % 2, quietly=True)
    server.restart()
    over(session, *tasks)
    assert [task.info().exit_status for task in tasks] == [number % 2 for number in range(15)]
    words = " ".join(caplog.messages)
    assert "connection for events was lost" in words
    assert "there again" in words


def test_reconnection_goes_on_where_it_was(server: JobServer, opened: Open) -> None:
    """A new connection names the last event that was heard."""
    session = opened()
    task = ran(session, "stay")
    listening(session)
    server.turn(task.id, "suspended")
    eventually(lambda: task.state is JobState.SUSPENDED)
    server.restart()
    eventually(lambda: server.count(EVENTS) >= 2)
    asked = [request.headers.get("Last-Event-ID") for request in server.requests if "/events" in request.url.path]
    assert asked[0] is None
    assert asked[1] == "run-1.1"


def test_gone_jobs_are_lost(server: JobServer, opened: Open) -> None:
    """A job that the server knew, and does not know any more, has ended as lost, with words on who removed it."""
    session = opened()
    one, other = ran(session, "stay"), ran(session, "stay")
    listening(session)
    del server.jobs[one.id]
    server.restart()
    over(session, one)
    assert (one.info().sub_state, other.state.ended) == ("lost", False)
    assert "somebody removed it" in (one.info().annotation or "")
    server.server = "another"
    server.jobs.clear()
    server.restart()
    over(session, other)
    assert "another database" in (other.info().annotation or "")


def test_long_poll_where_there_is_no_stream(server: JobServer, opened: Open) -> None:
    """Without server-sent events the server is asked, and what it forgot is looked for."""
    server.stream = False
    session = opened()
    first, second = ran(session, "stay"), ran(session, "stay")
    listening(session)
    server.end(first.id)
    over(session, first)
    server.end(second.id, quietly=True)
    server.restart()
    over(session, second)
    assert (first.state, second.state) == (JobState.DONE, JobState.DONE)


def test_silent_stream_is_given_up(server: JobServer, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that something on its way keeps back is not waited for again and again: the server is asked instead."""
    server.silent = True
    monkeypatch.setattr(events, "QUIET", 0.0)
    session = opened()
    task = ran(session, "stay")
    eventually(lambda: server.count(EVENTS), "a connection")
    server.timed_out = True
    eventually(lambda: server.count(EVENTS) >= 3, "questions")
    server.end(task.id)
    over(session, task)
    assert task.state is JobState.DONE
    streams = [request for request in server.requests if request.headers.get("Accept") == "text/event-stream"]
    assert len(streams) == 1


def test_strange_event_does_no_harm(server: JobServer, opened: Open) -> None:
    """What cannot be understood of one job is logged, and the others are heard of; new fields are passed over."""
    session = opened()
    one, other = ran(session, "stay"), ran(session, "stay")
    listening(session)
    server.turn(one.id, "suspended", exitStatus="seven")
    server.end(other.id, code=3, newField={"x": 1}, subState="vaporised")
    over(session, other)
    assert (other.info().exit_status, other.info().annotation) == (3, "vaporised")
    assert one.state is JobState.RUNNING or one.state is JobState.QUEUED
    server.turn(one.id, "running", exitStatus=None)
    eventually(lambda: one.state is JobState.RUNNING)


# --- control, output --------------------------------------------------------------------------------------


def test_control_reports_the_new_state(server: JobServer, opened: Open) -> None:
    """After a verb the new state is known; what the server refuses is told with its words."""
    session = opened()
    task = ran(session, "stay")
    session.control([task], Action.SUSPEND)
    assert task.state is JobState.SUSPENDED
    with pytest.raises(InvalidStateError, match="is suspended"):
        session.control([task], Action.SUSPEND)
    session.control([task], Action.KILL)
    over(session, task)
    assert task.info().sub_state == "cancelled"
    assert task.info().terminating_signal == "SIGKILL"
    del server


@pytest.mark.parametrize("fault", [unheard, half, reset])
def test_repeated_control_is_no_failure(server: JobServer, opened: Open, fault: Fault) -> None:
    """An action whose answer was lost is repeated; that the job is then where it was to be is no failure."""
    session = opened()
    task = ran(session, "stay")
    server.fail("/control", fault)
    session.control([task], Action.SUSPEND)
    assert task.state is JobState.SUSPENDED
    assert server.count("/control") == 2


def test_output_is_whole_in_spite_of_faults(server: JobServer, opened: Open) -> None:
    """Output is read by ranges, each until it is answered whole."""
    session = opened()
    task = ran(session, "stay")
    data = os.urandom(3 << 20)
    server.end(task.id, stdout=data)
    over(session, task)
    server.fail("/output/", half, status(502), unheard)
    assert session.read_all(task._record, "stdout") == data  # noqa: SLF001 - not for users
    assert session.read_all(task._record, "stderr") == b""  # noqa: SLF001


def test_output_is_followed(server: JobServer, opened: Open) -> None:
    """Lines come as they are written, over one stream and not by a question each, to the end."""
    session = opened()
    task = ran(session, "stay")
    listening(session)
    lines = session.follow(task._record, "stdout")  # noqa: SLF001 - not for users
    job = server.jobs[task.id]
    for number in range(5):
        job.stdout += f"line {number}\n".encode()
        assert next(lines) == f"line {number}"
    assert server.count("/output/") < 30
    server.end(task.id)
    assert list(lines) == []


def test_output_goes_into_files(server: JobServer, opened: Open, tmp_path: Path) -> None:
    """Output is written on this side before the end is told; the server is not told of paths of this side."""
    session = opened()
    out, err = tmp_path / "out", tmp_path / "err"
    task = ran(session, "stay", output_path=out, error_path=err)
    job = server.only()
    assert not {"outputPath", "errorPath"} & job.template.keys()
    job.stdout, job.stderr = b"words", b"errors"
    server.fail("/output/", half, status(503))
    server.end(task.id)
    over(session, task)
    assert (out.read_bytes(), err.read_bytes()) == (b"words", b"errors")


def test_output_that_cannot_be_written(server: JobServer, opened: Open, tmp_path: Path) -> None:
    """A job whose output cannot be written here has failed, with words saying why."""
    session = opened()
    place = tmp_path / "place"
    place.mkdir()
    task = ran(session, "stay", output_path=place / "out")
    place.rmdir()
    server.end(task.id, stdout=b"words")
    over(session, task)
    assert task.state is JobState.FAILED
    assert "cannot write" in (task.info().annotation or "")


def test_joined_and_discarded_output(server: JobServer, opened: Open, tmp_path: Path) -> None:
    """Two equal paths mean one stream; /dev/null is the server's to know, and nothing is fetched."""
    session = opened()
    both = tmp_path / "both"
    ran(session, "true", output_path=both, error_path=both)
    ran(session, "true", output_path="/dev/null", error_path="/dev/null")
    first, second = (job.template for job in server.jobs.values())
    assert first["joinFiles"]
    assert (second["outputPath"], "errorPath" in second) == ("/dev/null", False)
    eventually(both.exists)


# --- files ------------------------------------------------------------------------------------------------


def test_files_are_sent_and_fetched(server: JobServer, opened: Open, tmp_path: Path) -> None:
    """Input and staged files go there, results come back, in spite of faults in between; names are the server's."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "script").write_text("exit 0")
    (tmp_path / "tree" / "script").chmod(0o755)
    (tmp_path / "in").write_bytes(b"input")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "part").write_text("result")
    session = opened()
    server.fail("PUT /api", unheard, half, swallowed, status(503))
    server.fail("/complete", unheard)
    server.fail("POST /api/v1/sessions/s/uploads", unheard)
    task = ran(
        session,
        "stay",
        input_path=tmp_path / "in",
        stage_in_files={"work": tmp_path / "tree", "bin/": tmp_path / "tree" / "script"},
        stage_out_files={str(tmp_path / "back"): "made"},
    )
    assert task.error is None
    job = server.only()
    sent = {name: bytes(data) for name, data in server.uploads.items()}
    assert sent[job.template["inputPath"].removeprefix("upload:")] == b"input"
    assert set(job.template["stageInFiles"]) == {"work", "bin/script"}
    assert b"exit 0" in sent[job.template["stageInFiles"]["bin/script"].removeprefix("upload:")]
    assert job.template["stageOutFiles"] == {"result:0": "made"}
    job.results["0"] = {"/made": str(tmp_path / "made")}
    server.fail("/files/", half, half, status(502), swallowed)
    server.end(task.id)
    over(session, task)
    assert task.state is JobState.DONE, task.info().annotation
    assert (tmp_path / "back" / "part").read_text() == "result"


def test_forgotten_upload_is_sent_again(server: JobServer, opened: Open, tmp_path: Path) -> None:
    """An upload that the server has forgotten in between is begun anew."""
    (tmp_path / "in").write_bytes(b"input")
    session = opened()

    def forget(act: Any) -> Any:
        server.uploads.clear()
        return act()

    server.fail("PUT /api", forget)
    task = ran(session, "true", input_path=tmp_path / "in")
    over(session, task)
    assert task.state is JobState.DONE


def test_results_of_an_array(server: JobServer, opened: Open, tmp_path: Path) -> None:
    """Each element's results go where its index says, though the server was sent one template."""
    session = opened()
    template = JobTemplate(
        remote_command="stay",
        stage_out_files={str(tmp_path / "r-$DRMAA2_INDEX$"): "out-$DRMAA2_INDEX$"},
        output_path=tmp_path / "o-$DRMAA2_INDEX$",
    )
    array = session.start_array(template, range(1, 4))
    assert server.count("/arrays") == 1
    for task in array.tasks:
        made = tmp_path / f"made-{task.index}"
        made.write_text(str(task.index))
        server.jobs[task.id].results["0"] = {f"/out-{task.index}": str(made)}
        server.end(task.id, stdout=b"out of %d" % (task.index or 0))
    over(session, *array.tasks)
    assert [(tmp_path / f"r-{n}").read_text() for n in (1, 2, 3)] == ["1", "2", "3"]
    assert [(tmp_path / f"o-{n}").read_text() for n in (1, 2, 3)] == [f"out of {n}" for n in (1, 2, 3)]


def test_missing_result_fails_the_job(server: JobServer, opened: Open, tmp_path: Path) -> None:
    """A result that the server has not is a failure with words; output was written all the same."""
    session = opened()
    task = ran(session, "stay", stage_out_files={str(tmp_path / "back"): "made"}, output_path=tmp_path / "out")
    server.end(task.id, stdout=b"words")
    over(session, task)
    assert task.state is JobState.FAILED
    assert "no result '0'" in (task.info().annotation or "")
    assert (tmp_path / "out").read_bytes() == b"words"


def test_missing_files_are_refused_here(server: JobServer, opened: Open, tmp_path: Path) -> None:
    """What is not on this side is refused by its path, and nothing is sent."""
    session = opened()
    task = ran(session, "true", stage_in_files={"x": tmp_path / "missing"})
    assert "missing" in str(task.error)
    assert "input_path" in str(ran(session, "true", input_path="/dev/stdin").error)
    assert not server.uploads
    assert not server.jobs


# --- finding again ----------------------------------------------------------------------------------------


def test_later_program_finds_jobs_by_the_store(server: JobServer, opened: Open, tmp_path: Path) -> None:
    """With a store another session knows the jobs, goes on with their files, and ends nothing that is detached."""
    store, out = tmp_path / "jobs.db", tmp_path / "out"
    first = opened(store=store, detach=True)
    task = ran(first, "stay", output_path=out)
    first.close()
    assert server.only().state == "running"
    second = opened(store=store, detach=True)
    (found,) = second.get_jobs()
    server.end(found.id, stdout=b"late")
    over(second, found)
    assert (found.id, found.state) == (task.id, JobState.DONE)
    assert out.read_bytes() == b"late"


def test_later_program_finds_jobs_without_a_store(server: JobServer, opened: Open) -> None:
    """The server itself remembers: jobs and arrays of the session are told, page by page."""
    first = opened(detach=True)
    ran(first, "stay")
    first.start_array(JobTemplate(remote_command="stay"), range(1, 4))
    first.close()
    second = opened(detach=True)
    found = second.get_jobs()
    assert len(found) == 4
    assert sorted(task.index or 0 for task in found) == [0, 1, 2, 3]
    assert {task.template.remote_command for task in found} == {"stay"}
    for task in found:
        server.end(task.id)
    over(second, *found)


def test_lost_submission_of_a_killed_program(server: JobServer, opened: Open) -> None:
    """A key that a dead program left behind is found, or never was."""
    session = opened()
    ran(session, "true")
    server._new("s", "key-1", {"remoteCommand": "stay"}, id="theirs")  # noqa: SLF001 - somebody else's request
    known = [Known(key, None, JobTemplate(remote_command="stay")) for key in ("key-1", "key-2")]
    answer = session.backend.find(known)
    assert [(info.id, info.extensions["key"]) for info in answer.infos] == [("theirs", "key-1")]
    assert answer.gone == ["key-2"]


# --- the end ----------------------------------------------------------------------------------------------


def test_closing_ends_and_removes(server: JobServer, opened: Open, helper: NoHelper, tmp_path: Path) -> None:
    """Closing ends what runs, keeps what it wrote where that is wanted, and leaves nothing on the server."""
    session = opened()
    done, task = ran(session, "true"), ran(session, "stay", output_path=tmp_path / "out")
    over(session, done)
    server.jobs[task.id].stdout = b"so far"
    session.close()
    assert task.info().sub_state == "cancelled"
    assert not server.jobs
    assert (tmp_path / "out").read_bytes() == b"so far"
    assert helper.said == ["goodbye"]
    assert not [thread for thread in threading.enumerate() if thread.name == "wfl-remote-events"]


def test_closing_with_a_store_keeps_what_has_ended(server: JobServer, opened: Open, tmp_path: Path) -> None:
    """With a store ended jobs stay on the server for a later program."""
    session = opened(store=tmp_path / "jobs.db")
    ran(session, "stay")
    session.close()
    assert server.only().state == "failed"


def test_closing_detached_leaves_all(server: JobServer, opened: Open) -> None:
    """Detached jobs go on."""
    session = opened(detach=True)
    ran(session, "stay")
    session.close()
    assert server.only().state == "running"


@pytest.mark.parametrize("whole", [False, True])
def test_closing_with_what_nobody_knows_hands_over(
    server: JobServer,
    opened: Open,
    helper: NoHelper,
    whole: bool,  # noqa: FBT001
) -> None:
    """A submission that was given up may still become a job: the helper looks for it."""
    session = opened(patience=1e-9)
    server.fail("POST /api/v1/sessions/s/arrays" if whole else JOBS, swallowed)
    if whole:
        session.start_array(JobTemplate(remote_command="true"), range(2))
    else:
        ran(session, "true")
    session.close()
    assert helper.said == ["take over"]


def test_closing_without_an_answer_hands_over(
    server: JobServer, opened: Open, helper: NoHelper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be ended is the helper's, which finds it in the journal."""
    monkeypatch.setattr(ending, "PATIENCE", 0.02)
    session = opened()
    task = ran(session, "stay")
    key = task._record.key  # noqa: SLF001 - not for users
    server.fail("/control", *[status(502)] * 10_000)
    session.close()
    assert helper.said == ["take over"]
    journal = session.backend._journal.path  # type: ignore[attr-defined] # noqa: SLF001
    assert ending.Journal.read(journal) == [key]
    server.faults.clear()
    monkeypatch.setattr(undertaker, "AFTERMATH", 0.01)
    ending.end_all(**session.backend._where(), journal=str(journal))  # type: ignore[attr-defined] # noqa: SLF001
    assert not server.jobs
    assert not journal.parent.exists()


def test_helper_ends_what_a_dead_program_left(
    server: JobServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the journal's keys: what runs is ended, all of it is removed, and what is kept stays, ended."""
    monkeypatch.setattr(undertaker, "AFTERMATH", 0.01)
    monkeypatch.setattr(undertaker, "PAUSE", (0.01, 0.02))
    told: dict[str, Any] = {
        "place": RemoteContext(URL).place.to_dict(),
        "credentials": {"token": None, "auth": None},
        "protocol": {"session": "s", "ids": 10},
    }
    for keep in (False, True):
        directory = tmp_path / str(keep)
        directory.mkdir()
        journal = ending.Journal(directory)
        journal.add([f"k-{n}" for n in range(25)])
        journal.add(["never"])
        journal.close()
        for n in range(25):
            server._new("s", f"k-{n}", {"remoteCommand": "true" if n % 5 == 0 else "stay"})  # noqa: SLF001
        other = server._new("s", "other", {"remoteCommand": "stay"})  # noqa: SLF001
        server.fail("/find", status(503))
        ending.end_all(**told, journal=str(journal.path), keep=keep)
        assert other.state == "running"
        del server.jobs[other.id]
        assert len(server.jobs) == (25 if keep else 0)
        assert {job.state for job in server.jobs.values()} <= {"done", "failed"}
        assert not directory.exists()


def test_abandoning_touches_nothing(server: JobServer, opened: Open, helper: NoHelper) -> None:
    """In a forked child not one request is made."""
    session = opened()
    ran(session, "stay")
    listening(session)
    asked = len(server.requests)
    session.backend.abandon()
    assert len(server.requests) == asked
    assert helper.said == ["abandon"]


def test_reaping_removes_from_the_server(server: JobServer, opened: Open) -> None:
    """A reaped job is gone there; that it was gone before, as the answer was lost, is no failure."""
    session = opened()
    tasks = [ran(session, "true") for _ in range(3)]
    over(session, *tasks)
    server.fail("/reap", unheard)
    session.reap(tasks)
    assert not server.jobs
    with pytest.raises(InvalidStateError, match="reaped"):
        session.backend.read(tasks[0].id, "stdout", 0, 10)


def test_cleaning_a_session(server: JobServer, opened: Open) -> None:
    """`clean` ends and removes all that programs have left in a session, and nothing of others."""
    session = opened(detach=True)
    for command in ("stay", "true", "stay"):
        ran(session, command)
    session.close()
    other = server._new("other", "k", {"remoteCommand": "stay"})  # noqa: SLF001
    assert clean("s", RemoteContext(URL)) == 3
    assert list(server.jobs) == [other.id]


# --- opening ----------------------------------------------------------------------------------------------


def test_opening_says_what_is_wrong(server: JobServer) -> None:
    """What cannot be reached, or does not know us, is said when the workflow is opened, and no secret is in it."""
    server.token = "secret-of-theirs"  # noqa: S105 - a test's
    with Workflow(RemoteContext(URL, token="secret-of-mine")) as flow:  # noqa: S106
        assert isinstance(flow.error, DeniedByDrmsError)
        assert "give the right token" in str(flow.error)
        assert "secret" not in str(flow.error)
    server.fail("/info", refused)
    with Workflow(RemoteContext(URL, token="secret-of-theirs")) as flow:  # noqa: S106
        assert isinstance(flow.error, DrmCommunicationError)
        assert "refused" in str(flow.error)
    with Workflow(RemoteContext(URL, token="secret-of-theirs", session_name="s")) as flow:  # noqa: S106
        assert flow.run("true").wait(PATIENCE).success()


def test_capabilities_are_the_servers(server: JobServer, opened: Open) -> None:
    """What the server's system cannot do is refused here; what a newer one can besides is passed over."""
    server.capabilities = []
    session = opened()
    task = ran(session, "stay")
    with pytest.raises(WflError, match="cannot suspend"):
        session.control([task], Action.SUSPEND)
    with pytest.raises(WflError, match="does not give output"):
        session.read_all(task._record, "stdout")  # noqa: SLF001 - not for users
    assert "output_path" in str(ran(session, "true", output_path="/tmp/x").error)


def test_submission_after_closing(server: JobServer, opened: Open) -> None:
    """Nothing is sent once the session is closed."""
    session = opened()
    backend = session.backend
    session.close()
    with pytest.raises(WflError, match="closed"):
        backend.submit([Submission("k", JobTemplate(remote_command="true"), "k")])
    assert not server.jobs

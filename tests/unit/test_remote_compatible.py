"""CompatibleBackend on a server in memory: what the old protocol can do, and what it cannot tell."""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="httpx is not in this environment")

from tests.unit.test_remote_backend import NoHelper
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
from wfl import JobState, JobTemplate, MonitoringSession
from wfl.backend import Action, Known, Submission
from wfl.contexts import undertaker
from wfl.contexts.remote import RemoteContext, ending
from wfl.contexts.remote import compatible_backend as module
from wfl.contexts.remote.backend import RemoteBackend
from wfl.contexts.remote.compatible import Calls
from wfl.contexts.remote.compatible_backend import CompatibleBackend
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidStateError,
    UnsupportedOperationError,
    WflError,
)
from wfl.session import JobSession
from wfl.task import Task

Open = Callable[..., JobSession]


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch) -> NoHelper:
    """No process is started."""
    found = NoHelper()
    monkeypatch.setattr(module, "watch", lambda *_, **__: found)
    return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, helper: NoHelper) -> JobServer:
    """A server that speaks the old protocol alone."""
    del helper
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))  # no helper removes it
    found = put_in_place(JobServer(), monkeypatch)
    found.v1 = False
    return found


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


# --- which protocol ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "url"), [("/jobserver/jobmanagement", ""), ("/old", "/old"), ("/a/b", "/a/b")])
def test_the_protocol_is_found(server: JobServer, base: str, url: str) -> None:
    """Where version 1 is not spoken the old protocol is looked for, at the address and where our server has it."""
    server.base = base
    for protocol in ("auto", "compatible"):
        backend = RemoteContext(URL + url, protocol=protocol).backend()
        assert isinstance(backend, CompatibleBackend)
        assert not backend.tells


def test_the_better_protocol_is_used(server: JobServer) -> None:
    """Version 1 is taken where it is spoken, unless the old one is asked for, or version 1 alone."""
    server.v1 = True
    assert isinstance(RemoteContext(URL).backend(), RemoteBackend)
    assert isinstance(RemoteContext(URL, protocol="compatible").backend(), CompatibleBackend)
    server.v1 = False
    with pytest.raises(WflError, match="404"):
        RemoteContext(URL, protocol="v1").backend()


def test_no_job_server_at_all(server: JobServer) -> None:
    """What speaks neither protocol is told by its answer."""
    server.base = "/elsewhere"
    for protocol in ("auto", "compatible"):
        with pytest.raises(DrmCommunicationError, match=r"there is no wfl job server.*404"):
            RemoteContext(URL, protocol=protocol).backend()
    server.token = "theirs"  # noqa: S105 - a test's
    with pytest.raises(DeniedByDrmsError, match="give the right token"):
        RemoteContext(URL).backend()


def test_a_server_that_is_away_is_not_taken_for_an_old_one(server: JobServer) -> None:
    """No answer says nothing of the protocol."""
    server.fail("/info", status(502))
    with pytest.raises(DrmCommunicationError, match="502"):
        RemoteContext(URL).backend()
    assert server.count("listjobs") == 0


# --- jobs -------------------------------------------------------------------------------------------------


def test_jobs_are_asked_for(server: JobServer, opened: Open) -> None:
    """Ends are learnt by asking, in spite of faults."""
    session = opened()
    server.fail("/jobinfo", half, status(502), unheard)
    done, failed, refusal = ran(session, "true"), ran(session, "false"), ran(session, "nonsense")
    over(session, done, failed)
    assert (done.state, failed.info().exit_status) == (JobState.DONE, 1)
    assert isinstance(refusal.error, DeniedByDrmsError)
    assert "no such file" in str(refusal.error)


def test_elements_are_submitted_one_by_one(server: JobServer, opened: Open) -> None:
    """Each with its index in its environment: not every server gives it."""
    session = opened()
    array = session.start_array(JobTemplate(remote_command="true"), range(2, 6, 2))
    over(session, *array.tasks)
    seen = [(job.template["jobEnvironment"]["TASK_ID"], job.key) for job in server.jobs.values()]
    assert sorted(seen) == [("2", array.id), ("4", array.id)]


@pytest.mark.parametrize("fault", [swallowed, unheard, reset, half, status(502), status_after(504), status(503)])
def test_lost_answer_is_told(server: JobServer, opened: Open, fault: Fault, caplog: Any) -> None:
    """A submission that may have been carried out is not repeated; that nobody can tell is an end, and is said."""
    caplog.set_level(logging.WARNING, "wfl")
    session = opened()
    server.fail("/addjob", fault)
    task = ran(session, "stay")
    over(session, task)
    assert (task.state, task.info().sub_state) == (JobState.FAILED, "lost")
    assert "cannot tell whether it was started" in (task.info().annotation or "")
    assert server.count("/addjob") == 1
    session.close()
    assert "cannot tell whether it was started" in " ".join(caplog.messages)


def test_unsent_submission_is_repeated(server: JobServer, opened: Open) -> None:
    """What certainly did not arrive is made again, and refused where that never succeeds."""
    session = opened()
    server.fail("/addjob", refused, status(429), refused)
    task = ran(session, "true")
    over(session, task)
    assert task.state is JobState.DONE
    late = opened(patience=0.01)
    server.fail("/addjob", *[refused] * 100)
    task = ran(late, "true")
    assert isinstance(task.error, DrmCommunicationError)
    assert task.info().sub_state == "launch_failure"


def test_removed_jobs_are_lost(server: JobServer, opened: Open) -> None:
    """A job that is not listed any more is gone; one that is listed, and has an error, is asked for again."""
    session = opened()
    one, other = ran(session, "stay"), ran(session, "stay")
    eventually(lambda: one.state is JobState.RUNNING and other.state is JobState.RUNNING)
    del server.jobs[one.id]
    over(session, one)
    assert (one.info().sub_state, other.state) == ("lost", JobState.RUNNING)


def test_control(server: JobServer, opened: Open) -> None:
    """New states are known after a verb; killing is terminating; refusals have the server's words."""
    session = opened()
    task = ran(session, "stay")
    server.fail("/jobcontrol", unheard)
    states = []
    for action in (Action.SUSPEND, Action.RESUME):
        session.control([task], action)
        states.append(task.state)
    assert states == [JobState.SUSPENDED, JobState.RUNNING]
    session.control([task], Action.KILL)
    over(session, task)
    assert task.info().terminating_signal == "SIGTERM"
    assert session.backend.control([task.id], Action.KILL) == {}
    failures = session.backend.control([task.id, "nobody"], Action.HOLD)
    assert {type(error) for error in failures.values()} == {InvalidStateError}
    server.fail("/jobcontrol", status(405))
    running = ran(session, "stay")
    with pytest.raises(UnsupportedOperationError):
        session.control([running], Action.SUSPEND)


def test_there_is_no_output(server: JobServer, opened: Open) -> None:
    """The protocol gives none back, and that is said."""
    session = opened()
    task = ran(session, "true")
    over(session, task)
    with pytest.raises(UnsupportedOperationError, match="does not give output back"):
        session.read_all(task._record, "stdout")  # noqa: SLF001 - not for users
    with pytest.raises(UnsupportedOperationError, match="compatible protocol"):
        session.backend.read(task.id, "stdout", 0, 1)
    del server


def test_paths_are_the_servers(server: JobServer, opened: Open) -> None:
    """They are refused where they might be taken for this side's, and passed on where that is known."""
    found = opened()
    assert "moves no files" in str(ran(found, "true", output_path="/srv/out").error)
    assert ran(found, "true", output_path="/dev/null").error is None
    asked_for = opened(protocol="compatible")
    task = ran(asked_for, "stay", output_path="relative/out", extensions={"any": "thing"})
    template = server.jobs[task.id].template
    assert (template["outputPath"], template["extension"]) == ("relative/out", {"any": "thing"})


# --- finding again, the end -------------------------------------------------------------------------------


def test_later_program_finds_jobs_by_their_ids(server: JobServer, opened: Open, tmp_path: Path) -> None:
    """With a store the ids are known; without an id nobody can tell."""
    store = tmp_path / "jobs.db"
    first = opened(store=store, detach=True)
    task = ran(first, "stay")
    first.close()
    second = opened(store=store, detach=True)
    (found,) = second.get_jobs()
    assert found.id == task.id
    server.end(found.id)
    over(second, found)
    assert found.state is JobState.DONE
    answer = second.backend.find([Known("x", None, JobTemplate()), Known("y", "nobody", JobTemplate())])
    assert [info.sub_state for info in answer.infos] == ["lost"]
    assert answer.gone == ["y"]


def test_ids_are_written_down_at_once(
    server: JobServer, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered is found by other programs, also if this one is killed in the next moment."""
    monkeypatch.setattr("wfl.persistence.FLUSH", 3600.0)
    store = tmp_path / "jobs.db"
    task = ran(opened(store=store, detach=True), "stay")
    (found,) = opened(store=store, detach=True).get_jobs()
    assert found.id == task.id
    assert found.id in server.jobs


def test_a_job_that_another_program_is_just_submitting(
    server: JobServer, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has seen it before it had an id learns that, too."""
    store, go = tmp_path / "jobs.db", threading.Event()
    first, second = (opened(store=store, detach=True) for _ in range(2))
    add = Calls.add

    def slowly(self: Calls, submission: Submission) -> str:
        assert go.wait(PATIENCE)
        return add(self, submission)

    monkeypatch.setattr(Calls, "add", slowly)
    tasks: list[Task] = []
    submitting = threading.Thread(target=lambda: tasks.append(ran(first, "stay")))
    submitting.start()
    eventually(second.get_jobs)
    (found,) = second.get_jobs()
    go.set()
    submitting.join(PATIENCE)
    eventually(lambda: found.state is JobState.RUNNING)
    assert found.id == tasks[0].id
    server.end(found.id)
    over(second, found)
    assert found.state is JobState.DONE


def test_nothing_is_shown_of_the_system(server: JobServer) -> None:
    """A monitoring session says why there is none."""
    del server
    with pytest.raises(UnsupportedOperationError, match="shows nothing of the server's system"):
        MonitoringSession(RemoteContext(URL, protocol="compatible"))


def test_closing_ends_and_removes(server: JobServer, opened: Open, helper: NoHelper) -> None:
    """Closing ends what runs, and leaves nothing on the server."""
    session = opened()
    done, task = ran(session, "true"), ran(session, "stay")
    over(session, done)
    session.close()
    assert task.info().sub_state == "cancelled"
    assert not server.jobs
    assert helper.said == ["goodbye"]


def test_reaping(server: JobServer, opened: Open) -> None:
    """A reaped job is gone there, also where the answer was lost; what cannot be removed is told."""
    session = opened()
    tasks = [ran(session, "true") for _ in range(3)]
    over(session, *tasks)
    server.fail("/deletejob", unheard, half)
    session.reap(tasks)
    assert not server.jobs
    running = ran(session, "stay")
    with pytest.raises(WflError, match="has not ended"):
        session.backend.reap([running.id])


def test_helper_ends_what_a_dead_program_left(
    server: JobServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the ids in the journal."""
    monkeypatch.setattr(undertaker, "AFTERMATH", 0.01)
    monkeypatch.setattr(undertaker, "PAUSE", (0.01, 0.02))
    directory = tmp_path / "place"
    directory.mkdir()
    journal = ending.Journal(directory)
    for number in range(3):
        server._new("legacy", "k", {"remoteCommand": "stay"}, id=str(number))  # noqa: SLF001 - of a dead program
        journal.add([str(number)])
    journal.close()
    server.fail("/jobcontrol", status(503), swallowed)
    told: dict[str, Any] = {
        "place": RemoteContext(URL).place.to_dict(),
        "credentials": {"token": None, "auth": None},
        "protocol": {"base": server.base},
    }
    ending.end_all(**told, journal=str(journal.path))
    assert not server.jobs
    assert not directory.exists()


def test_abandoning_touches_nothing(server: JobServer, opened: Open, helper: NoHelper) -> None:
    """In a forked child not one request is made."""
    session = opened(protocol="compatible", detach=False)
    ran(session, "true")
    asked = server.count("/addjob")
    session.backend.abandon()
    assert server.count("/addjob") == asked
    assert helper.said == ["abandon"]

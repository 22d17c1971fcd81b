"""The v1 API of the job server: submitting once whatever happens, looking, acting, and whose jobs are whose."""

import hashlib
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.asgi import API, PATIENCE, SESSION, Served, ended, started, state, submit, until
from wfl import errors
from wfl.backend import ended as ended_fact
from wfl.drmaa2 import Capability, JobTemplate, MachineInfo, QueueInfo
from wfl.server import Anybody, Policy, ServerLimits
from wfl.server.jobs import check_indexes
from wfl.session import JobSession
from wfl.testing import FakeContext, FakeSystem, Outcome

FOREVER = Outcome(duration=math.inf)
BROKEN = errors.DrmCommunicationError("connection reset")
Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers of a fake system, which are stopped afterwards."""
    made: list[Served] = []

    def start(system: FakeSystem | None = None, **settings: Any) -> Served:
        system = system or FakeSystem({"stay": FOREVER, "fail": 3, "talk": Outcome(output="hello\n")})
        made.append(Served(tmp_path / str(len(made)), lambda: FakeContext(system, detach=True), **settings))
        return made[-1]

    yield start
    for one in made:
        one.stop()


# -- what it is --


def test_what_the_server_says_of_itself(serve: Serve) -> None:
    """Its names, version and limits, what jobs can be and have here, and who is asking."""
    served = serve(FakeSystem(extensions=["a", "b"]), policy=Policy(extensions={"a": None}))
    info = served.alice.get(f"{API}/info").json()
    assert info["context"] == "fake"
    assert info["identity"] == {"name": "alice", "admin": False}
    assert info["extensions"] == ["a"]
    assert {"remote_command", "stage_in_files"} <= set(info["fields"])
    assert not {"email", "output_path", "working_directory", "priority"} & set(info["fields"])
    assert {"native_arrays", "hold", "max_parallel", "detach"} <= set(info["capabilities"])
    assert info["limits"]["submissions"] == 1000
    served.restart()
    again = served.root.get(f"{API}/info").json()
    assert again["server"] == info["server"]
    assert again["started"] != info["started"]
    assert again["identity"] == {"name": "root", "admin": True}


def test_health_needs_nobody(serve: Serve) -> None:
    """Whether it lives and takes jobs is told to anybody, and nothing else is."""
    served = serve(base_path="/wfl")
    assert (served.open.get("/wfl/healthz").body, served.open.get("/wfl/readyz").body) == (b"ok\n", b"ready\n")
    for path in ("/wfl/metrics", "/wfl/api/v1/info", "/wfl/api/v1/openapi.json", "/wfl/nothing", "/", "/healthz"):
        assert served.open.get(path).error == (401, "DeniedByDrmsError")
    assert served.alice.get("/wfl/api/v1/info").status == 200
    assert served.alice.get("/api/v1/info").error == (404, "InvalidArgumentError")


# -- submitting --


def test_jobs_in_order(serve: Serve) -> None:
    """Each job of a request is answered in order: its key and id, or why it was refused; the others go on."""
    system = FakeSystem({"no": Outcome(), "talk": Outcome(output="hello")})
    served = serve(system, policy=Policy(commands=["talk", "gone"]))
    system.fail("submit", errors.DeniedByDrmsError("not today"), times=0)
    found = submit(
        served.alice,
        {"remoteCommand": "talk"},
        {"remoteCommand": "no"},
        {"remoteCommand": ["no text"]},
        {"remoteComand": "talk"},
        {"remoteCommand": "talk", "minSlots": 0},
        {"remoteCommand": "talk", "jobName": "n"},
    )
    assert [one["key"] for one in found] == [f"key {number}" for number in range(6)]
    assert [sorted(one) for one in found[0:6:5]] == [["id", "key"]] * 2
    assert [one["error"]["type"] for one in found[1:5]] == ["DeniedByDrmsError"] + ["InvalidArgumentError"] * 3
    assert "did you mean 'remoteCommand'" in found[3]["error"]["message"]
    assert ended(served.alice, found[0]["id"]) == "done"
    assert len(system.submitted) == 2
    assert system.submitted[0].key == found[0]["id"]  # the id here is the key there


def test_what_the_system_refuses(serve: Serve) -> None:
    """A job that the system refuses is answered with its words, and is no job: the same key may be used again."""
    system = FakeSystem()
    served = serve(system)
    system.fail("submit", errors.DeniedByDrmsError("not today"))
    (refused,) = submit(served.alice, {"remoteCommand": "x"})
    assert refused["error"] == {"type": "DeniedByDrmsError", "message": "not today"}
    assert served.alice.get(f"{SESSION}/jobs").json()["jobs"] == []
    (taken,) = submit(served.alice, {"remoteCommand": "x"})
    assert ended(served.alice, taken["id"]) == "done"


def test_the_same_request_again(serve: Serve) -> None:
    """The same key with the same job is the same job, however often it comes, also after it has ended."""
    system = FakeSystem()
    served = serve(system)
    first = submit(served.alice, {"remoteCommand": "x", "jobEnvironment": {"A": "1", "B": "2"}})
    ended(served.alice, first[0]["id"])
    again = submit(served.alice, {"jobEnvironment": {"B": "2", "A": "1"}, "remoteCommand": "x"})
    assert again == first
    assert len(system.submitted) == 1


def test_the_same_request_after_it_was_reaped(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that something on the way has kept, and delivers once more, starts nothing; so many are remembered."""
    from wfl.server import jobs as module

    system = FakeSystem()
    served = serve(system)
    array = {"key": "array", "template": {"remoteCommand": "x"}, "indexes": [1, 3, 1]}
    told = [
        *submit(served.alice, {"remoteCommand": "x"}),
        *served.alice.post(f"{SESSION}/arrays", array).json()["jobs"],
    ]
    for one in told:
        ended(served.alice, one["id"])
    assert served.alice.post(f"{SESSION}/reap", {"ids": [one["id"] for one in told]}).json()["failures"] == {}
    (late,) = submit(served.alice, {"remoteCommand": "x"})
    assert late["error"] == {"type": "InvalidStateError", "message": "the job of the key 'key 0' was reaped"}
    assert served.alice.post(f"{SESSION}/arrays", array).error == (409, "InvalidStateError")
    assert "id" in submit(served.bob, {"remoteCommand": "x"})[0]
    monkeypatch.setattr(module, "REAPED", 1)
    (other,) = submit(served.alice, {"remoteCommand": "x"}, session="another")
    ended(served.alice, other["id"])
    served.alice.post(f"{API}/sessions/another/reap", {"ids": [other["id"]]})
    assert "id" in submit(served.alice, {"remoteCommand": "x"})[0]


def test_the_same_key_for_another_job(serve: Serve) -> None:
    """That is a conflict: nothing is started, in one request as in two."""
    system = FakeSystem()
    served = serve(system)
    submit(served.alice, {"remoteCommand": "x"})
    (other,) = submit(served.alice, {"remoteCommand": "y"})
    assert other["error"]["type"] == "InvalidStateError"
    body = {"jobs": [{"key": "k", "template": {"remoteCommand": name}} for name in ("x", "x", "y")]}
    one, same, other = served.alice.post(f"{SESSION}/jobs", body).json()["jobs"]
    assert one["id"] == same["id"]
    assert other["error"]["type"] == "InvalidStateError"
    array = {"key": "key 0", "template": {"remoteCommand": "x"}, "indexes": [1, 3, 1]}
    assert served.alice.post(f"{SESSION}/arrays", array).error == (409, "InvalidStateError")
    assert len(system.submitted) == 2


def test_keys_are_an_identitys_own(serve: Serve) -> None:
    """The same key of another identity, or in another session, is another job."""
    system = FakeSystem()
    served = serve(system)
    ids = {
        submit(client, {"remoteCommand": "x"}, session=session)[0]["id"]
        for client in (served.alice, served.bob)
        for session in ("s", "t")
    }
    assert len(ids) == len(system.submitted) == 4


def test_the_key_in_a_header(serve: Serve) -> None:
    """A request of one job may have its key in the header Idempotency-Key; one that contradicts is malformed."""
    system = FakeSystem()
    served = serve(system)
    client = served.alice.with_headers(**{"idempotency-key": "mine"})
    body: dict[str, Any] = {"jobs": [{"template": {"remoteCommand": "x"}}]}
    answers = [client.post(f"{SESSION}/jobs", body).json()["jobs"] for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0][0]["key"] == "mine"
    array = {"template": {"remoteCommand": "x"}, "indexes": [0, 1, 1]}
    assert client.post(f"{SESSION}/arrays", array).error == (409, "InvalidStateError")
    body["jobs"][0]["key"] = "other"
    assert client.post(f"{SESSION}/jobs", body).error == (400, "InvalidArgumentError")
    body["jobs"] = [{"template": {"remoteCommand": "x"}}] * 2
    assert client.post(f"{SESSION}/jobs", body).error == (400, "InvalidArgumentError")


def test_without_a_key(serve: Serve) -> None:
    """Then each request is another job, and its key is its id."""
    served = serve()
    body = {"jobs": [{"template": {"remoteCommand": "x"}}]}
    answers = [served.alice.post(f"{SESSION}/jobs", body).json()["jobs"][0] for _ in range(2)]
    assert answers[0] != answers[1]
    assert all(one["key"] == one["id"] for one in answers)


def test_the_same_request_at_once(serve: Serve) -> None:
    """Several requests with one key at the same time are one job, and all are answered with it."""
    system = FakeSystem()
    system.slow["submit"] = 0.1
    served = serve(system)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(submit(served.alice, {"remoteCommand": "x"})[0]["id"]))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len({*found}) == len(system.submitted) == 1


def test_looking_for_what_is_just_submitted(serve: Serve) -> None:
    """Nobody is told that there is no job of a key while a request with it is under way."""
    system = FakeSystem()
    system.slow["submit"] = 0.3
    served = serve(system)
    thread = threading.Thread(target=submit, args=(served.alice, {"remoteCommand": "x"}))
    thread.start()
    until(lambda: served.server.ledger._expected)  # noqa: SLF001 - the request has come
    found = served.alice.post(f"{SESSION}/find", {"keys": ["key 0", "other"]}).json()
    thread.join()
    assert [job["key"] for job in found["jobs"]] == ["key 0"]
    assert found["gone"] == {"keys": ["other"], "ids": []}


@pytest.mark.parametrize("restart", [False, True])
def test_a_death_between_writing_down_and_submitting(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    restart: bool,  # noqa: FBT001
) -> None:
    """What was written down and never handed over is no job, until the same request comes: then it is, with its id."""
    system = FakeSystem()
    served = serve(system)
    written: list[str] = []

    def die(_: JobSession, templates: object, keys: list[str]) -> None:
        written.extend(keys)
        del templates
        raise errors.InternalError("died")

    with monkeypatch.context() as patch:
        patch.setattr(JobSession, "start", die)
        patch.setattr(served.server.ledger, "_forget", lambda _: None)
        answer = served.alice.post(f"{SESSION}/jobs", {"jobs": [{"key": "k", "template": {"remoteCommand": "x"}}]})
    assert answer.status == 500
    if restart:
        served.restart()
    assert served.alice.post(f"{SESSION}/find", {"keys": ["k"]}).json()["gone"]["keys"] == ["k"]
    assert served.alice.get(f"{API}/jobs/{written[0]}").error == (404, "InvalidArgumentError")
    body = {"jobs": [{"key": "k", "template": {"remoteCommand": "x"}}]}
    ids = {served.alice.post(f"{SESSION}/jobs", body).json()["jobs"][0]["id"] for _ in range(2)}
    assert ids == {*written}
    assert [submission.key for submission in system.submitted] == written


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_death_before_the_system_had_it(serve: Serve, monkeypatch: pytest.MonkeyPatch, restarts: int) -> None:
    """What the session had written down, but the system never had, is started when the same request comes again.

    Also when the server was restarted once more in between.
    """
    system = FakeSystem()
    served = serve(system)
    store = served.directory / "data" / "jobs.db"
    (first,) = submit(served.alice, {"remoteCommand": "x"})
    ended(served.alice, first["id"])
    served.stop()
    with (
        closing(sqlite3.connect(store)) as connection,
        connection,
    ):  # as if the program had been killed while it submitted
        connection.execute("update tasks set phase = 1, info = null, id = key, program = ''")
    monkeypatch.setattr(system, "_jobs", {})
    system.submitted.clear()
    served.start()
    until(lambda: state(served.alice, first["id"]) == "failed")
    for _ in range(restarts):
        served.restart()
    assert submit(served.alice, {"remoteCommand": "x"}) == [first]
    assert ended(served.alice, first["id"]) == "done"
    assert [submission.key for submission in system.submitted] == [first["id"]]


def test_what_cannot_be_started_again_stays(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the same request comes too late, as what it uploaded is gone, the job is what it was."""
    system = FakeSystem()
    served = serve(system)
    store = served.directory / "data" / "jobs.db"
    id = served.alice.post(f"{SESSION}/uploads", {}).json()["upload"]
    sha = hashlib.sha256(b"").hexdigest()
    assert served.alice.post(f"{SESSION}/uploads/{id}/complete", {"sha256": sha}).status == 200
    (first,) = submit(served.alice, {"remoteCommand": "x", "inputPath": f"upload:{id}"})
    ended(served.alice, first["id"])
    served.stop()
    with closing(sqlite3.connect(store)) as connection, connection:  # as if it had been killed while it submitted
        connection.execute("update tasks set phase = 1, info = null, id = key, program = ''")
    with closing(sqlite3.connect(store.with_name("server.db"))) as connection, connection:
        connection.execute("delete from uploads")
    monkeypatch.setattr(system, "_jobs", {})
    served.start()
    until(lambda: state(served.alice, first["id"]) == "failed")
    (again,) = submit(served.alice, {"remoteCommand": "x", "inputPath": f"upload:{id}"})
    assert "there is no upload" in again["error"]["message"]
    served.restart()
    assert state(served.alice, first["id"]) == "failed"


def test_a_death_that_is_not_settled_yet(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the system does not say whether it has a job, the same request is not answered as if it had."""
    system = FakeSystem()
    served = serve(system)
    store = served.directory / "data" / "jobs.db"
    (first,) = submit(served.alice, {"remoteCommand": "x"})
    ended(served.alice, first["id"])
    served.stop()
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute("update tasks set phase = 1, info = null, id = key, program = ''")
    monkeypatch.setattr(system, "_jobs", {})
    system.submitted.clear()
    system.fail("find", BROKEN)
    served.start()
    body = {"jobs": [{"key": "key 0", "template": {"remoteCommand": "x"}}]}
    assert served.alice.post(f"{SESSION}/jobs", body).error == (503, "TryLaterError")
    until(lambda: state(served.alice, first["id"]) == "failed")
    assert submit(served.alice, {"remoteCommand": "x"}) == [first]
    assert ended(served.alice, first["id"]) == "done"
    assert len(system.submitted) == 1


def test_a_death_in_the_middle_of_an_array(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements that the system never had are told as refused to who asks again; the others are what they are."""
    system = FakeSystem()
    served = serve(system)
    store = served.directory / "data" / "jobs.db"
    body = {"key": "a", "template": {"remoteCommand": "x"}, "indexes": [1, 4, 1]}
    first = served.alice.post(f"{SESSION}/arrays", body).json()
    assert ended(served.alice, first["id"]) == "done"
    served.stop()
    with (
        closing(sqlite3.connect(store)) as connection,
        connection,
    ):  # as if the program had been killed while it submitted
        connection.execute("update tasks set phase = 1, info = null, id = key, program = '' where task_index > 1")
    monkeypatch.setattr(system, "_jobs", {})
    served.start()
    until(lambda: state(served.alice, f"{first['id']}.3") == "failed")
    again = served.alice.post(f"{SESSION}/arrays", body).json()
    assert [sorted(job) for job in again["jobs"]] == [["id", "index"], ["error", "index"], ["error", "index"]]
    assert "never ran" in again["jobs"][1]["error"]["message"]
    assert [job["index"] for job in served.alice.get(f"{SESSION}/jobs").json()["jobs"]] == [1]


def test_what_was_never_asked_for_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written down and never handed over is forgotten after some days."""
    served = serve()
    with monkeypatch.context() as patch:
        patch.setattr(JobSession, "start", lambda *_: (_ for _ in ()).throw(errors.InternalError("died")))
        patch.setattr(served.server.ledger, "_forget", lambda _: None)
        served.alice.post(f"{SESSION}/jobs", {"jobs": [{"key": "k", "template": {"remoteCommand": "x"}}]})
    served.restart()
    assert served.server.ledger._jobs  # noqa: SLF001 - it waits
    monkeypatch.setattr("wfl.server.jobs.STALE", -1.0)
    served.restart()
    assert not served.server.ledger._jobs  # noqa: SLF001
    assert not served.server.database.rows()


def test_an_answer_of_the_system_that_is_lost(serve: Serve) -> None:
    """What nobody knows for a moment is a job with an id, and it is found by that: it was started once."""
    system = FakeSystem()
    served = serve(system)
    system.fail("submit", BROKEN, done=True)
    (one,) = submit(served.alice, {"remoteCommand": "x"})
    assert ended(served.alice, one["id"]) == "done"
    assert submit(served.alice, {"remoteCommand": "x"}) == [one]
    assert len(system.submitted) == 1


def test_after_a_restart_everything_is_known(serve: Serve) -> None:
    """Jobs, keys, owners, arrays and templates are there again; what ran goes on, what ended has its end."""
    system = FakeSystem({"stay": FOREVER, "fail": 3})
    served = serve(system)
    (failed, stays) = submit(served.alice, {"remoteCommand": "fail"}, {"remoteCommand": "stay", "args": ["1"]})
    array = served.bob.post(f"{SESSION}/arrays", {"key": "a", "template": {"remoteCommand": "x"}, "indexes": [2, 9, 3]})
    ids = [job["id"] for job in array.json()["jobs"]]
    assert ended(served.alice, failed["id"]) == "failed"
    assert served.bob.request("DELETE", f"{API}/jobs/{ids[0]}").status == 200
    served.restart()
    assert submit(served.alice, {"remoteCommand": "fail"}, {"remoteCommand": "stay", "args": ["1"]}) == [failed, stays]
    assert state(served.alice, stays["id"]) == "running"
    info = served.alice.get(f"{API}/jobs/{failed['id']}").json()
    assert (info["info"]["exitStatus"], info["identity"], info["session"]) == (3, "alice", "s")
    assert served.bob.get(f"{API}/jobs/{failed['id']}").error == (404, "InvalidArgumentError")
    found = served.bob.post(f"{SESSION}/find", {"keys": ["a"], "templates": True}).json()["jobs"]
    assert [(job["id"], job["index"], job["template"]) for job in found] == [
        (id, index, {"remoteCommand": "x"}) for id, index in zip(ids[1:], (5, 8), strict=True)
    ]
    assert len(system.submitted) == 5


def test_reaping_that_broke_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was about to be forgotten when the server died is forgotten; nobody takes it for what never was."""
    served = serve()
    (one,) = submit(served.alice, {"remoteCommand": "x"})
    ended(served.alice, one["id"])
    with monkeypatch.context() as patch:
        patch.setattr(JobSession, "reap", lambda *_: (_ for _ in ()).throw(RuntimeError("died")))
        assert served.alice.post(f"{SESSION}/reap", {"ids": [one["id"]]}).status == 500
    served.restart()
    assert served.alice.get(f"{API}/jobs/{one['id']}").status == 404
    assert served.alice.get(f"{SESSION}/jobs").json()["jobs"] == []


def test_reaping_that_failed(serve: Serve) -> None:
    """What the system would not let go of is still there, also after a restart, until somebody asks for it again."""
    system = FakeSystem()
    served = serve(system)
    (one,) = submit(served.alice, {"remoteCommand": "x"})
    ended(served.alice, one["id"])
    system.fail("reap", BROKEN)
    failures = served.alice.post(f"{SESSION}/reap", {"ids": [one["id"]]}).json()["failures"]
    assert failures == {one["id"]: {"type": "DrmCommunicationError", "message": "connection reset"}}
    assert state(served.alice, one["id"]) == "done"
    served.restart()
    assert state(served.alice, one["id"]) == "done"
    assert served.alice.request("DELETE", f"{API}/jobs/{one['id']}").status == 200
    assert served.alice.get(f"{API}/jobs/{one['id']}").status == 404


def test_reaping_that_broke_off_and_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server starts also where the system still refuses; the job is there, and goes at the next start."""
    system = FakeSystem()
    served = serve(system)
    (one,) = submit(served.alice, {"remoteCommand": "x"})
    ended(served.alice, one["id"])
    with monkeypatch.context() as patch:
        patch.setattr(JobSession, "reap", lambda *_: (_ for _ in ()).throw(RuntimeError("died")))
        served.alice.post(f"{SESSION}/reap", {"ids": [one["id"]]})
    system.fail("reap", errors.DeniedByDrmsError("not yet"))
    served.restart()
    assert state(served.alice, one["id"]) == "done"
    served.restart()
    assert served.alice.get(f"{API}/jobs/{one['id']}").status == 404


def test_a_second_server_in_the_directory(serve: Serve) -> None:
    """One directory is one server's."""
    served = serve()
    with pytest.raises(errors.SessionManagementError, match="another server is at work"):
        Served(served.directory, FakeContext)


# -- arrays --


def test_arrays(serve: Serve) -> None:
    """An array is one submission; its elements have its id and their index, and can be asked for alone or together."""
    system = FakeSystem()
    served = serve(system)
    body = {"key": "a", "template": {"remoteCommand": "x", "args": ["$DRMAA2_INDEX$"]}, "indexes": [1, 6, 2]}
    answer = served.alice.post(f"{SESSION}/arrays", body)
    id = answer.json()["id"]
    assert answer.json()["jobs"] == [{"index": index, "id": f"{id}.{index}"} for index in (1, 3, 5)]
    assert served.alice.post(f"{SESSION}/arrays", body).json() == answer.json()
    assert ended(served.alice, id) == "done"
    whole = served.alice.get(f"{API}/jobs/{id}").json()
    assert (whole["id"], whole["index"], whole["info"]["id"]) == (id, None, id)
    element = served.alice.get(f"{API}/jobs/{id}.3").json()
    assert (element["array"], element["index"], element["key"], element["info"]["id"]) == (id, 3, "a.3", f"{id}.3")
    found = served.alice.post(f"{SESSION}/find", {"keys": ["a.3", "a.2", "a.03", "a.x"], "ids": [id, f"{id}.5"]}).json()
    assert {job["id"] for job in found["jobs"]} == {f"{id}.{index}" for index in (1, 3, 5)}
    assert found["gone"] == {"keys": ["a.2", "a.03", "a.x"], "ids": []}
    assert sorted(submission.template.args or () for submission in system.submitted) == [("1",), ("3",), ("5",)]


def test_an_array_with_a_limit(serve: Serve) -> None:
    """No more than max_parallel of its elements run at once."""
    system = FakeSystem({"x": Outcome(duration=1)}, auto=False)
    served = serve(system)
    body = {"template": {"remoteCommand": "x"}, "indexes": [0, 5, 1], "max_parallel": 2}
    assert served.alice.post(f"{SESSION}/arrays", body).status == 200
    assert len(system.submitted) == 2


def test_elements_that_are_refused(serve: Serve) -> None:
    """Of an array that the system takes in part, the answer says which are jobs, and why others are none."""

    def behave(_: JobTemplate, index: int | None) -> None:
        if index != 2:
            raise errors.OutOfResourceError("full")

    served = serve(FakeSystem(behave))
    answer = served.alice.post(
        f"{SESSION}/arrays", {"key": "a", "template": {"remoteCommand": "x"}, "indexes": [1, 4, 1]}
    )
    jobs = answer.json()["jobs"]
    assert [job["index"] for job in jobs] == [1, 2, 3]
    assert [job.get("error", {}).get("type") for job in jobs] == ["OutOfResourceError", None, "OutOfResourceError"]
    listed = served.alice.get(f"{SESSION}/jobs").json()["jobs"]
    assert [job["index"] for job in listed] == [2]


def test_an_array_of_which_nothing_is_taken(serve: Serve) -> None:
    """It is no job; the same request may come again."""
    system = FakeSystem()
    served = serve(system)
    system.fail("submit", errors.DeniedByDrmsError("not today"))
    body = {"key": "a", "template": {"remoteCommand": "x"}, "indexes": [1, 3, 1]}
    jobs = served.alice.post(f"{SESSION}/arrays", body).json()["jobs"]
    assert [job["error"]["message"] for job in jobs] == ["not today"] * 2
    again = served.alice.post(f"{SESSION}/arrays", body).json()
    assert ended(served.alice, again["id"]) == "done"


@pytest.mark.parametrize(
    ("indexes", "status"),
    [
        ([1, 1, 1], 422), ([5, 1, 1], 422), ([1, 5, 0], 422), ([0, 5], 400), ([0, 5, 1, 1], 400), ([-1, 5, 1], 400),
        ([0, 1 << 40, 1], 400), ([0, 101, 1], 422), (["a", 1, 1], 400), ([0.5, 1, 1], 400), (None, 400),
    ],
)  # fmt: skip
def test_indexes(serve: Serve, indexes: object, status: int) -> None:
    """Indexes go upwards from 0 on, and there are not more than the server takes."""
    served = serve(limits=ServerLimits(elements=100))
    body = {"template": {"remoteCommand": "x"}, "indexes": indexes}
    assert served.alice.post(f"{SESSION}/arrays", body).error == (status, "InvalidArgumentError")


def test_indexes_are_checked_where_they_are_used() -> None:
    """A negative one, or a step of none, is refused by name."""
    with pytest.raises(errors.InvalidArgumentError, match="expected"):
        check_indexes(-1, 5, 1, 10)
    with pytest.raises(errors.InvalidArgumentError, match="elements"):
        check_indexes(0, 50, 1, 10)


def test_an_array_that_policy_refuses(serve: Serve) -> None:
    """It is a refusal of the whole request."""
    served = serve()
    body = {"template": {"remoteCommand": "x", "inputPath": "/etc/passwd"}, "indexes": [0, 2, 1]}
    assert served.alice.post(f"{SESSION}/arrays", body).error == (403, "DeniedByDrmsError")


# -- looking --


def test_listing_in_pages(serve: Serve) -> None:
    """Jobs are listed in order of submission, page by page; only those in a state, if one is named."""
    served = serve(FakeSystem({"stay": FOREVER, "x": 0}))
    ids = [started(served.alice, "stay" if number % 2 else "x") for number in range(5)]
    array = served.alice.post(f"{SESSION}/arrays", {"template": {"remoteCommand": "stay"}, "indexes": [0, 3, 1]}).json()
    ids += [job["id"] for job in array["jobs"]]
    for number in (0, 2, 4):
        ended(served.alice, ids[number])
    pages, cursor = [], ""
    while True:
        page = served.alice.get(f"{SESSION}/jobs?limit=3{cursor}").json()
        pages.append([job["id"] for job in page["jobs"]])
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
    assert pages == [ids[:3], ids[3:6], ids[6:]]
    done = served.alice.get(f"{SESSION}/jobs?state=done").json()
    assert [job["id"] for job in done["jobs"]] == ids[0:5:2]
    assert served.alice.get(f"{API}/sessions/other/jobs").json() == {"jobs": [], "cursor": None}


def test_all_that_live(serve: Serve) -> None:
    """Jobs that have not ended are listed, of all sessions and in pages: one's own, to administrators everybody's."""
    served = serve(FakeSystem({"stay": FOREVER}))
    stay = {"remoteCommand": "stay"}
    ((one,), (two,)) = (submit(served.alice, stay, session=name) for name in ("a", "b"))
    array = served.bob.post(f"{API}/sessions/a/arrays", {"template": stay, "indexes": [0, 3, 1]}).json()
    three = [job["id"] for job in array["jobs"]]
    ended(served.alice, started(served.alice, "x"))

    def told(client: Any, query: str = "") -> list[tuple[str, str, str]]:
        jobs = client.get(f"{API}/jobs{query}").json()["jobs"]
        assert all(job["info"]["state"] != "done" for job in jobs)
        return [(job["identity"], job["session"], job["id"]) for job in jobs]

    mine = [("alice", "a", one["id"]), ("alice", "b", two["id"])]
    theirs = [("bob", "a", id) for id in three]
    assert told(served.alice) == mine
    assert told(served.bob) == theirs
    assert told(served.root) == mine + theirs
    assert told(served.root, "?session=a") == mine[:1] + theirs
    assert told(served.alice, "?session=none") == []
    page = served.root.get(f"{API}/jobs?limit=3").json()
    assert told(served.root, f"?cursor={page['cursor']}") == theirs[1:]
    assert served.open.get(f"{API}/jobs").error == (401, "DeniedByDrmsError")


def test_the_system_as_a_whole(serve: Serve) -> None:
    """Machines, queues and categories are those of the server's system; of images those that are allowed."""
    system = FakeSystem()
    system.machines = [MachineInfo(name="node", cores=4)]
    system.queues = [QueueInfo(name="long")]
    served = serve(system)

    def told(what: str) -> Any:
        return served.alice.get(f"{API}/system/{what}").json()[what]

    assert told("machines") == [{"name": "node", "cores": 4}]
    assert told("queues") == [{"name": "long"}]
    assert told("categories") == ["fake"]
    assert served.alice.get(f"{API}/system/else").error == (404, "InvalidArgumentError")
    system.fail("monitor", BROKEN)
    assert served.alice.get(f"{API}/system/machines").error == (503, "DrmCommunicationError")
    narrow = serve(FakeSystem(), policy=Policy(images=["busybox", "mine/*"]))
    assert narrow.alice.get(f"{API}/system/categories").json()["categories"] == ["busybox"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=-1",
        "limit=1e3",
        "limit=٣",
        "state=nothing",
        "cursor=x",
        "cursor=1.x",
        "cursor=",
    ],
)
def test_queries_that_are_wrong(serve: Serve, query: str) -> None:
    """They are malformed, by name."""
    answer = serve().alice.get(f"{SESSION}/jobs?{query}")
    assert answer.error == (400, "InvalidArgumentError")


def test_the_systems_own_id(serve: Serve) -> None:
    """It is an extension of the info; the id is the one here."""
    served = serve()
    id = started(served.alice)
    info = served.alice.get(f"{API}/jobs/{id}").json()["info"]
    assert (info["id"], info["extensions"]) == (id, {"native_id": "1"})


# -- acting --


def test_control(serve: Serve) -> None:
    """What can be done to jobs is done to many at once; what cannot is told by id."""
    served = serve()
    ids = [started(served.alice, "stay") for _ in range(3)]
    over = started(served.alice, "x")
    ended(served.alice, over)
    until(lambda: all(state(served.alice, id) == "running" for id in ids))
    answer = served.alice.post(f"{SESSION}/control", {"ids": [*ids, over, "nothing"], "action": "suspend"})
    failures = answer.json()["failures"]
    assert {id: one["type"] for id, one in failures.items()} == {
        over: "InvalidStateError",
        "nothing": "InvalidArgumentError",
    }
    assert over in failures[over]["message"]  # not the system's own id
    assert [state(served.alice, id) for id in ids] == ["suspended"] * 3
    assert served.alice.post(f"{API}/jobs/{ids[0]}/resume").json() == {"failures": {}}
    assert served.alice.post(f"{API}/jobs/{ids[0]}/resume").error == (409, "InvalidStateError")
    assert served.alice.post(f"{SESSION}/control", {"ids": ids, "action": "kill"}).json() == {"failures": {}}
    assert [ended(served.alice, id) for id in ids] == ["failed"] * 3
    assert served.alice.post(f"{API}/jobs/{ids[0]}/explode").error == (404, "InvalidArgumentError")
    assert served.alice.post(f"{SESSION}/control", {"ids": ids, "action": "explode"}).status == 400


def test_control_of_an_array(serve: Serve) -> None:
    """Its id stands for its elements that have not ended."""
    served = serve()
    id = served.alice.post(f"{SESSION}/arrays", {"template": {"remoteCommand": "stay"}, "indexes": [0, 3, 1]}).json()[
        "id"
    ]
    until(lambda: state(served.alice, id) == "running")
    assert served.alice.post(f"{API}/jobs/{id}.1/terminate").status == 200
    assert ended(served.alice, f"{id}.1") == "failed"
    assert served.alice.post(f"{API}/jobs/{id}/terminate").status == 200
    assert ended(served.alice, id) == "failed"
    assert served.alice.request("DELETE", f"{API}/jobs/{id}").status == 200
    assert served.alice.get(f"{API}/jobs/{id}").status == served.alice.get(f"{API}/jobs/{id}.1").status == 404


def test_reaping(serve: Serve) -> None:
    """An ended job is forgotten; one that lives is not."""
    system = FakeSystem({"stay": FOREVER})
    served = serve(system)
    (over, lives) = submit(served.alice, {"remoteCommand": "x"}, {"remoteCommand": "stay"})
    ended(served.alice, over["id"])
    failures = served.alice.post(f"{SESSION}/reap", {"ids": [over["id"], lives["id"], "nothing"]}).json()["failures"]
    assert {id: one["type"] for id, one in failures.items()} == {
        lives["id"]: "InvalidStateError",
        "nothing": "InvalidArgumentError",
    }
    assert served.alice.request("DELETE", f"{API}/jobs/{lives['id']}").error == (409, "InvalidStateError")
    assert served.alice.get(f"{API}/jobs/{over['id']}").status == 404
    assert len(system.submitted) == 2


def test_reaping_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    """Nothing is kept of reaped jobs: in memory, in the databases, on disk."""
    served = serve()
    ids = [one["id"] for one in submit(served.alice, *[{"remoteCommand": "x"}] * 20)]
    for id in ids:
        ended(served.alice, id)
    served.alice.post(f"{SESSION}/reap", {"ids": ids})
    ledger = served.server.ledger
    assert not ledger._jobs  # noqa: SLF001 - what would be kept
    assert not served.server.session._records  # noqa: SLF001
    for name, table in (("server.db", "submissions"), ("jobs.db", "tasks")):
        with closing(sqlite3.connect(served.directory / "data" / name)) as connection:
            assert connection.execute(f"select count(*) from {table}").fetchone() == (0,)  # noqa: S608 - our own
    assert not [name for place in ("work", "results") for name in os.listdir(tmp_path / "0" / "data" / place)]


# -- whose is whose --


def test_another_identitys_job(serve: Serve) -> None:
    """To everybody else there is no such job, whatever is asked of it; an administrator has access to all."""
    served = serve()
    id = started(served.alice, "stay")
    until(lambda: state(served.alice, id) == "running")
    for method, path in (
        ("GET", f"/jobs/{id}"), ("DELETE", f"/jobs/{id}"), ("POST", f"/jobs/{id}/kill"),
        ("GET", f"/jobs/{id}/output/stdout"), ("GET", f"/jobs/{id}/files/x"),
    ):  # fmt: skip
        there, nothing = (served.bob.request(method, f"{API}{one}") for one in (path, path.replace(id, "nothing")))
        assert there.error == nothing.error == (404, "InvalidArgumentError")
        assert there.message.replace(id, "") == nothing.message.replace("nothing", "")
    failures = served.bob.post(f"{SESSION}/control", {"ids": [id], "action": "kill"}).json()["failures"]
    assert [one["type"] for one in failures.values()] == ["InvalidArgumentError"]
    assert [*served.bob.post(f"{SESSION}/reap", {"ids": [id]}).json()["failures"]] == [id]
    assert served.bob.post(f"{SESSION}/find", {"ids": [id]}).json()["gone"]["ids"] == [id]
    assert served.bob.get(f"{SESSION}/jobs").json()["jobs"] == []
    assert state(served.alice, id) == "running"
    assert served.root.get(f"{API}/jobs/{id}").json()["identity"] == "alice"
    assert [job["id"] for job in served.root.get(f"{SESSION}/jobs?identity=alice").json()["jobs"]] == [id]
    assert served.root.post(f"{API}/jobs/{id}/kill").status == 200
    assert ended(served.alice, id) == "failed"


def test_another_session_of_the_same_identity(serve: Serve) -> None:
    """What is asked of one session is not done to the jobs of another."""
    served = serve()
    id = started(served.alice, "stay")
    other = f"{API}/sessions/other"
    assert [*served.alice.post(f"{other}/control", {"ids": [id], "action": "kill"}).json()["failures"]] == [id]
    assert served.alice.post(f"{other}/find", {"ids": [id]}).json()["gone"]["ids"] == [id]


def test_only_administrators_name_others(serve: Serve) -> None:
    """Another's jobs, events and sessions are not for everybody."""
    served = serve()
    started(served.alice)
    for path in ("jobs", "events"):
        assert served.bob.get(f"{SESSION}/{path}?identity=alice").error == (403, "DeniedByDrmsError")
    assert served.alice.get(f"{SESSION}/jobs?identity=alice").status == 200
    assert served.bob.get(f"{API}/sessions").json() == {"sessions": []}
    everybodys = served.root.get(f"{API}/sessions").json()["sessions"]
    assert everybodys == [{"identity": "alice", "session": "s", "jobs": 1}]


@pytest.mark.parametrize("name", ["..", ".hidden", "a b", "ä", "x" * 101, "a%0ab", "a:b"])
def test_names_of_sessions(serve: Serve, name: str) -> None:
    """A session's name is of letters, digits and a few signs."""
    answer = serve().alice.get(f"{API}/sessions/{name}/jobs")
    assert answer.error == (400, "InvalidArgumentError")


# -- bodies --


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b'{"jobs": {}}', b'{"jobs": [{}]}', b'{"jobs": [{"template": []}]}',
        b'{"jobs": [], "more": 1}', b'{"jobs": [{"template": {}, "kye": "x"}]}',
        b'{"jobs": [{"template": {}, "key": ""}]}',
        b'{"jobs": [{"template": {}, "key": "\\n"}]}', b'{"jobs": [{"template": {}, "key": "a\\n"}]}', b"\xff",
        b'{"jobs": [{"template": {}, "key": "\xc3\xa4"}]}', b"[" * 100_000, b'{"jobs":' * 50_000,
        b'{"jobs": [{"template": {}, "key": "' + b"x" * 201 + b'"}]}',
    ],
)  # fmt: skip
def test_bodies_that_are_malformed(serve: Serve, body: bytes) -> None:
    """They are told to be, and nothing is started."""
    system = FakeSystem()
    answer = serve(system).alice.post(f"{SESSION}/jobs", body)
    assert answer.error == (400, "InvalidArgumentError")
    assert system.submitted == []


def test_bodies_of_another_type(serve: Serve) -> None:
    """A page of another site could send a form or plain text for somebody: only JSON is read."""
    served = serve()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        client = served.alice.with_headers(**{"content-type": kind})
        answer = client.request("POST", f"{SESSION}/jobs", b'{"jobs":[]}', headers={"content-type": kind})
        assert answer.error == (400, "InvalidArgumentError")


def test_names_of_files_that_are_no_text(serve: Serve) -> None:
    """File names that are not UTF-8 are lone surrogates in JSON, here as in Python; they arrive."""
    system = FakeSystem()
    served = serve(system)
    body = b'{"jobs": [{"key": "k", "template": {"remoteCommand": "x", "args": ["a\\udcff"]}}]}'
    first, again = (served.alice.post(f"{SESSION}/jobs", body).json() for _ in range(2))
    assert first == again
    assert system.submitted[0].template.args == ("a\udcff",)
    found = served.alice.post(f"{SESSION}/find", {"keys": ["k"], "templates": True})
    assert b'"args":["a\\udcff"]' in found.body


def test_numbers_in_one_request(serve: Serve) -> None:
    """There are not more jobs, nor ids and keys, in one request than the server says."""
    served = serve(limits=ServerLimits(submissions=2, ids=3))
    jobs = [{"template": {"remoteCommand": "x"}}] * 3
    assert served.alice.post(f"{SESSION}/jobs", {"jobs": jobs}).error == (400, "InvalidArgumentError")
    assert served.alice.post(f"{SESSION}/find", {"ids": ["a", "b"], "keys": ["c", "d"]}).status == 400
    assert served.alice.post(f"{SESSION}/reap", {"ids": ["a"] * 4}).status == 400
    assert served.alice.post(f"{SESSION}/jobs", {"jobs": []}).json() == {"jobs": []}


def test_jobs_of_one_identity(serve: Serve) -> None:
    """One identity cannot fill the server: it is told to reap; others are not concerned."""
    served = serve(limits=ServerLimits(jobs=2))
    ids = [started(served.alice) for _ in range(2)]
    (third,) = submit(served.alice, {"remoteCommand": "x"})
    assert third["error"]["type"] == "OutOfResourceError"
    started(served.bob)
    ended(served.alice, ids[0])
    served.alice.post(f"{SESSION}/reap", {"ids": ids[:1]})
    started(served.alice)


def test_jobs_of_one_request(serve: Serve) -> None:
    """Those of one request count, too, and so do those of requests at once: what there is room for is taken."""
    served = serve(limits=ServerLimits(jobs=5))
    answers = submit(served.alice, *[{"remoteCommand": "x"}] * 8)
    assert ["id" in one for one in answers] == [True] * 5 + [False] * 3
    assert {one["error"]["type"] for one in answers[5:]} == {"OutOfResourceError"}
    assert submit(served.alice, *[{"remoteCommand": "x"}] * 8)[:5] == answers[:5]  # the same ones, which need no room
    body = {"template": {"remoteCommand": "x"}, "indexes": [0, 6, 1]}
    assert served.bob.post(f"{SESSION}/arrays", body).error == (422, "OutOfResourceError")
    statuses: list[int] = []
    small = {"template": {"remoteCommand": "x"}, "indexes": [0, 3, 1]}
    threads = [
        threading.Thread(target=lambda: statuses.append(served.bob.post(f"{SESSION}/arrays", small).status))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 422, 422, 422]


def test_room_for_what_could_not_be_written_down(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was never written down takes no room."""
    served = serve(limits=ServerLimits(jobs=1))

    def full(*_: object) -> None:
        raise errors.SessionManagementError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(served.server.database, "add", full)
        body = {"jobs": [{"template": {"remoteCommand": "x"}}]}
        assert served.alice.post(f"{SESSION}/jobs", body).error == (503, "SessionManagementError")
    started(served.alice)


def test_nobody_else_reads_what_is_kept(tmp_path: Path) -> None:
    """Files of a server in a directory that was there before are its user's alone, also those of an older version."""
    directory = tmp_path / "data"
    directory.mkdir(mode=0o755)
    for name in ("server.db", "jobs.db"):
        (directory / name).touch(mode=0o644)
    before = os.umask(0o022)
    try:
        served = Served(tmp_path, lambda: FakeContext(FakeSystem()))
        started(served.alice)
        found = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir() if path.is_file()}
        served.stop()
    finally:
        os.umask(before)
    assert {"server.db", "server.db-wal", "jobs.db", "jobs.db-wal"} <= found.keys()
    assert set(found.values()) == {0o600}


@pytest.mark.parametrize("what", ["control", "find", "reap"])
def test_ids_that_are_no_text(serve: Serve, what: str) -> None:
    """An id that cannot even be answered is malformed; in a template such a name is a file's."""
    served = serve()
    more = b', "action": "kill"' if what == "control" else b""
    body = b'{"ids": ["\\ud800"]%s}' % more
    answer = served.alice.request("POST", f"{SESSION}/{what}", body, headers={"content-type": "application/json"})
    assert answer.error == (400, "InvalidArgumentError")
    job = b'{"jobs": [{"template": {"remoteCommand": "x", "args": ["\\udcff"]}}]}'
    answer = served.alice.request("POST", f"{SESSION}/jobs", job, headers={"content-type": "application/json"})
    assert "id" in answer.json()["jobs"][0]


@pytest.mark.parametrize("key", ["", "a\n", "\u00e4", "x" * 201])
def test_keys_that_are_none(serve: Serve, key: str) -> None:
    """A key is one line of printable ASCII."""
    served = serve()
    jobs = {"jobs": [{"key": key, "template": {"remoteCommand": "x"}}]}
    assert served.alice.post(f"{SESSION}/jobs", jobs).status == 400
    assert served.alice.post(f"{SESSION}/find", {"keys": [key]}).status == 400


# -- the system, and the end --


def test_where_things_are_kept_is_not_told(serve: Serve) -> None:
    """Messages and infos do not show the server's directory."""
    system = FakeSystem({"stay": FOREVER})
    served = serve(system)
    place = str(served.directory / "data")
    system.fail("submit", errors.OutOfResourceError(f"{place}/jobs.db: no space left"))
    (one,) = submit(served.alice, {"remoteCommand": "x"})
    assert one["error"]["message"] == "SERVER/jobs.db: no space left"
    id = started(served.alice, "stay")
    system.tell(ended_fact("1", exit_status=1, annotation=f"see {place}/x"))
    ended(served.alice, id)
    assert served.alice.get(f"{API}/jobs/{id}").json()["info"]["annotation"] == "see SERVER/x"


def test_the_system_is_away(serve: Serve) -> None:
    """What the system cannot be asked now is 503 with a time to try again."""
    system = FakeSystem({"stay": FOREVER})
    served = serve(system)
    id = started(served.alice, "stay")
    until(lambda: state(served.alice, id) == "running")
    system.fail("control", BROKEN)
    answer = served.alice.post(f"{API}/jobs/{id}/kill")
    assert answer.error == (503, "DrmCommunicationError")
    assert int(answer.headers["retry-after"]) > 0


def test_a_system_that_takes_too_long(serve: Serve) -> None:
    """A request does not wait for ever; what it asked for is done all the same, and found by the same request."""
    system = FakeSystem()
    system.slow["submit"] = 0.5
    served = serve(system, limits=ServerLimits(answer_seconds=0.05))
    body = {"jobs": [{"key": "k", "template": {"remoteCommand": "x"}}]}
    assert served.alice.post(f"{SESSION}/jobs", body).error == (503, "TimeoutError")
    until(lambda: system.submitted)
    until(lambda: served.alice.post(f"{SESSION}/jobs", body).status == 200)
    assert len(system.submitted) == 1


def test_too_many_at_once(serve: Serve) -> None:
    """Where all threads are busy and enough requests wait for one, more are told to come again."""
    system = FakeSystem()
    system.slow["submit"] = 0.5
    served = serve(system, limits=ServerLimits(threads=1, threads_each=1, waiting=1, waiting_each=1))
    body = {"jobs": [{"template": {"remoteCommand": "x"}}]}
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(served.alice.post(f"{SESSION}/jobs", body).status))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 200, 503, 503, 503, 503]


def test_one_slow_identity(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever one identity has under way, others get their turn; where too much of its own waits, it is told so."""
    served = serve(limits=ServerLimits(threads=3, threads_each=2, waiting=100, waiting_each=2))
    go, submit = threading.Event(), served.server.ledger.submit

    def slowly(owner: tuple[str, str], asked: Any) -> Any:
        assert owner[0] == "bob" or go.wait(PATIENCE)
        return submit(owner, asked)

    monkeypatch.setattr(served.server.ledger, "submit", slowly)
    body = {"jobs": [{"template": {"remoteCommand": "x"}}]}
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(served.alice.post(f"{SESSION}/jobs", body).status))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(statuses) == 2)
    assert served.bob.post(f"{SESSION}/jobs", body).status == 200
    assert statuses == [503, 503]
    go.set()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 200, 200, 200, 503, 503]
    assert served.alice.post(f"{SESSION}/jobs", body).status == 200


def test_draining(serve: Serve) -> None:
    """Told to stop, it takes no new job, and says so where probes look; what is there is still answered."""
    served = serve()
    (one,) = submit(served.alice, {"remoteCommand": "x"})
    served.open.call(served.server.drain)
    assert served.open.get("/readyz").status == 503
    assert served.open.get("/healthz").status == 200
    jobs = [{"key": key, "template": {"remoteCommand": "x"}} for key in ("key 0", "new")]
    answer = served.alice.post(f"{SESSION}/jobs", {"jobs": jobs})
    assert answer.error == (503, "TryLaterError")  # for all of them, so that the same request may come again
    assert int(answer.headers["retry-after"]) > 0
    array = {"template": {"remoteCommand": "x"}, "indexes": [0, 1, 1]}
    answer = served.alice.post(f"{SESSION}/arrays", array)
    assert answer.error == (503, "TryLaterError")
    assert submit(served.alice, {"remoteCommand": "x"}) == [one]
    assert served.alice.get(f"{API}/jobs/{one['id']}").status == 200


@pytest.mark.parametrize("detach", [False, True])
def test_stopping(tmp_path: Path, detach: bool) -> None:  # noqa: FBT001
    """Jobs end with the server, or go on, as its context says."""
    system = FakeSystem({"stay": FOREVER})
    served = Served(tmp_path, lambda: FakeContext(system, detach=detach))
    id = started(served.alice, "stay")
    until(lambda: state(served.alice, id) == "running")
    served.restart()
    assert state(served.alice, id) == ("running" if detach else "failed")
    served.stop()


def test_a_mistake_of_the_server(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and told without any detail."""
    served = serve()
    monkeypatch.setattr(served.server.ledger, "sessions", lambda _: 1 / 0)
    answer = served.alice.get(f"{API}/sessions")
    assert answer.error == (500, "InternalError")
    assert "Zero" not in answer.message
    assert "ZeroDivisionError" in caplog.text


def test_authentication_is_never_left_out_by_mistake(tmp_path: Path) -> None:
    """That nobody needs a token has to be said."""
    with pytest.raises(TypeError, match=r"expected Identities\(PATH\), or Anybody"):
        Served(tmp_path, FakeContext, identities=None)


def test_without_authentication(tmp_path: Path) -> None:
    """Anybody is one identity, whose jobs are everybody's."""
    served = Served(tmp_path, FakeContext, identities=Anybody())
    id = started(served.open)
    assert served.open.get(f"{API}/jobs/{id}").json()["identity"] == "anybody"
    assert served.open.get(f"{API}/info").json()["identity"] == {"name": "anybody", "admin": False}
    served.stop()


def test_jobs_of_a_system_that_must_be_asked(tmp_path: Path) -> None:
    """Also there ends become known, and everything is found again."""
    system = FakeSystem(tells=False, without={Capability.NATIVE_ARRAYS})
    served = Served(tmp_path, lambda: FakeContext(system, detach=True))
    id = started(served.alice)
    array = served.alice.post(f"{SESSION}/arrays", {"template": {"remoteCommand": "x"}, "indexes": [0, 3, 1]}).json()
    assert ended(served.alice, id) == ended(served.alice, array["id"]) == "done"
    served.restart()
    assert state(served.alice, id) == state(served.alice, array["id"]) == "done"
    served.stop()


def test_submitting_takes_little_time(serve: Serve) -> None:
    """A thousand jobs are one write in each database, and some seconds at the very most on a busy machine."""
    system = FakeSystem()
    served = serve(system)
    began = time.monotonic()
    found = submit(served.alice, *[{"remoteCommand": "x"}] * 1000)
    assert time.monotonic() - began < 20
    assert len({one["id"] for one in found}) == system.calls["submit"] * 1000 == 1000

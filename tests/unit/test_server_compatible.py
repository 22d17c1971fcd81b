"""The protocol of wfl for Go, byte by byte: literal requests, and literally what its server answers."""

import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.asgi import API, Answer, Client, Served, started, until
from wfl import errors
from wfl.backend import ended
from wfl.drmaa2 import JobInfo, JobState, JobTemplate
from wfl.server import Policy, ServerLimits
from wfl.server.compatible import MalformedError, info_of, template_of
from wfl.testing import FakeContext, FakeSystem, Outcome

BASE = "/jobserver/jobmanagement"
FOREVER = Outcome(duration=math.inf)
Serve = Callable[..., Served]

WHOLE = (
    b'{"accountingID":"","args":["10"],"candidateMachines":null,"deadlineTime":"0001-01-01T00:00:00Z","email":null,'
    b'"emailOnStarted":false,"emailOnTerminated":false,"errorPath":"","extension":{},"inputPath":"","jobCategory":"",'
    b'"jobEnvironment":{},"jobName":"","joinFiles":false,"machineArch":"","machineOs":"","maxSlots":0,'
    b'"minPhysMemory":0,"minSlots":0,"outputPath":"","priority":0,"queueName":"","reRunnable":false,'
    b'"remoteCommand":"stay","reservationID":"","resourceLimits":{},"stageInFiles":{},"stageOutFiles":{},'
    b'"startTime":"0001-01-01T00:00:00Z","submitAsHold":false,"workingDirectory":""}'
)
"""What the Go client sends for a command and one argument."""
PARAMETER = b"Invalid format for parameter %s: error binding string parameter: strconv.ParseInt: parsing %s\n"
ZERO = (
    b'{"allocatedMachines":null,"annotation":"","cpuTime":0,"dispatchTime":"0001-01-01T00:00:00Z","exitStatus":0,'
    b'"extension":{},"finishTime":"0001-01-01T00:00:00Z","id":"","jobOwner":"","queueName":"","slots":0,'
    b'"state":"unset","subState":"","submissionMachine":"","submissionTime":"0001-01-01T00:00:00Z",'
    b'"terminatingSignal":"","wallclockTime":0,"Error":"job does not exist"}'
)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers of a fake system that speak the old protocol, too."""
    made: list[Served] = []

    def start(system: FakeSystem | None = None, **settings: Any) -> Served:
        system = system or FakeSystem({"stay": FOREVER, "fail": 3})
        given = {"legacy": True, "legacy_get": True, **settings}
        made.append(Served(tmp_path / str(len(made)), lambda: FakeContext(system), **given))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def get(client: Client, path: str) -> Answer:
    """Ask by GET."""
    return client.get(f"{BASE}/{path}")


def post(client: Client, path: str, body: bytes) -> Answer:
    """Send a body."""
    return client.request("POST", f"{BASE}/{path}", body, headers={"content-type": "application/json"})


def add(client: Client, command: str = "stay", **fields: object) -> str:
    """One job; its id."""
    answer = post(client, "addjob", json.dumps({"remoteCommand": command, "extension": {}, **fields}).encode())
    assert answer.json()["Error"] == "", answer.body
    return str(answer.json()["JobID"])


def is_running(client: Client, id: str) -> bool:
    """Whether a job runs."""
    return get(client, f"jobstate?jobID={id}").body == b'{"JobState":"running","JobSubState":""}'


def test_a_job_from_its_start_to_its_end(serve: Serve) -> None:
    """Each answer is what the Go server sends, to the byte, with a type that its clients take for JSON."""
    served = serve()
    client = served.alice
    added = post(client, "addjob", WHOLE)
    id = added.json()["JobID"]
    assert added.body == b'{"JobID":"%s","Error":""}' % id.encode()
    assert (added.status, "json" in added.headers["content-type"]) == (200, True)
    until(lambda: is_running(client, id))
    assert get(client, "listjobs").body == b'["%s"]' % id.encode()
    assert get(client, f"jobcontrol?jobID={id}&action=suspend").body == b'""'
    assert get(client, f"jobstate?jobID={id}").body == b'{"JobState":"suspended","JobSubState":""}'
    assert get(client, f"jobcontrol?jobID={id}&action=resume").body == b'""'
    assert get(client, f"deletejob?jobID={id}").body == b'"%s: it has not ended"' % id.encode()
    assert get(client, f"jobcontrol?jobID={id}&action=terminate").body == b'""'
    ended_state = b'{"JobState":"failed","JobSubState":"cancelled"}'
    until(lambda: get(client, f"jobstate?jobID={id}").body == ended_state)
    info = get(client, f"jobinfo?jobID={id}")
    assert list(info.json()) == [*json.loads(ZERO)]
    assert info.body.startswith(b'{"allocatedMachines":["fake"],"annotation":"')
    assert info.body.endswith(b',"terminatingSignal":"SIGTERM","wallclockTime":0,"Error":""}')
    assert info.json()["exitStatus"] == 143
    answer = get(client, f"jobcontrol?jobID={id}&action=suspend").json()
    assert "has ended" in answer
    assert get(client, f"deletejob?jobID={id}").body == b'""'
    assert get(client, "listjobs").body == b"[]"
    assert get(client, f"jobinfo?jobID={id}").body == ZERO


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("listjobs", b"[]"),
        ("listjobs?skip=0&limit=100000", b"[]"),
        ("listjobs?skip=&limit=", b"[]"),
        ("listarrayjobs?arrayJobID=nothing", b"[]"),
        ("jobstate?jobID=nothing", b'{"JobState":"undetermined","JobSubState":""}'),
        ("jobinfo?jobID=nothing", ZERO),
        ("jobcontrol?jobID=nothing&action=terminate", b'"job does not exist"'),
        ("jobcontrol?jobID=nothing&action=explode", b'"job does not exist"'),
        ("deletejob?jobID=nothing", b'"job does not exist"'),
        ("listjobcategories", b'["fake"]'),
    ],
)
def test_literal_answers(serve: Serve, target: str, body: bytes) -> None:
    """What is answered where there is no job."""
    answer = get(serve().alice, target)
    assert (answer.status, answer.body) == (200, body)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("jobstate", b"Query argument jobID is required, but not found\n"),
        ("jobstate?jobID=", b"Query argument jobID is required, but not found\n"),
        ("jobinfo?jobid=1", b"Query argument jobID is required, but not found\n"),
        ("deletejob", b"Query argument jobID is required, but not found\n"),
        ("jobcontrol?action=suspend", b"Query argument jobID is required, but not found\n"),
        ("jobcontrol?jobID=1", b"Query argument action is required, but not found\n"),
        ("listarrayjobs", b"Query argument arrayJobID is required, but not found\n"),
        (
            "listjobs?skip=x",
            PARAMETER % (b"skip", b'"x": invalid syntax'),
        ),
        (
            "listarrayjobs?arrayJobID=1&limit=3000000000",
            PARAMETER % (b"limit", b'"3000000000": value out of range'),
        ),
    ],
)
def test_queries_that_are_wrong(serve: Serve, target: str, body: bytes) -> None:
    """They are answered as Go's http.Error does."""
    answer = get(serve().alice, target)
    assert (answer.status, answer.body) == (400, body)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b'{"remoteCommand": 1}',
        b'{"args": "x"}', b'{"args": [1]}',
        b'{"minSlots": "1"}', b'{"minSlots": 1.5}', b'{"minSlots": true}', b'{"priority": 9223372036854775808}',
        b'{"joinFiles": 1}', b'{"startTime": ""}', b'{"startTime": 5}', b'{"startTime": "2030-01-01"}',
        b'{"startTime": "2030-13-01T00:00:00Z"}', b'{"jobEnvironment": []}', b'{"jobEnvironment": {"a": 1}}',
        b'{"resourceLimits": {"CPU_TIME": 5}}', b'{"extension": "x"}', b'{"minSlots": NaN}', b"[" * 100_000,
        b'{"minSlots": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_bodies_that_go_does_not_take(serve: Serve, body: bytes) -> None:
    """They are refused in its words, which differ between jobs and arrays."""
    served = serve()
    answer = post(served.alice, "addjob", body)
    assert (answer.status, answer.body) == (400, b"can't unmarshal body\n")
    answer = post(served.alice, "addarrayjob", body)
    assert (answer.status, answer.body) == (400, b"can't read body\n")
    assert get(served.alice, "listjobs").body == b"[]"


def test_every_field(serve: Serve) -> None:
    """A template arrives whole, in whatever case its names are written; zero, empty and null mean unset."""
    system = FakeSystem(extensions=["k"])
    served = serve(
        system, policy=Policy(fields=JobTemplate.__struct_fields__, extensions={"k": None}, server_paths=True)
    )
    body = {
        "accountingID": "a", "args": ["1", "2"], "candidateMachines": ["m"],
        "deadlineTime": "2999-01-01T00:00:00+01:00",
        "email": ["e"], "emailOnStarted": True, "emailOnTerminated": True, "errorPath": "/e", "extension": {"k": "v"},
        "inputPath": "/i", "jobCategory": "c", "jobEnvironment": {"A": "1"}, "jobName": "n", "joinFiles": True,
        "machineArch": "X64", "machineOs": "LINUX", "maxSlots": 2, "minPhysMemory": 3, "minSlots": 1,
        "outputPath": "/o", "priority": -4, "queueName": "q", "reRunnable": True, "REMOTECOMMAND": "x",
        "reservationID": "r", "resourceLimits": {"CPU_TIME": "1.5", "OPEN_FILES": "9"}, "stageInFiles": {"t": "s"},
        "stageOutFiles": {"/t": "s"}, "startTime": "2000-01-01T00:00:00.123456789Z", "submitAsHold": False,
        "workingDirectory": "/w", "unknown": 5,
    }  # fmt: skip
    answer = post(served.alice, "addjob", json.dumps(body).encode())
    assert answer.json()["Error"] == ""
    until(lambda: system.submitted)
    assert system.submitted[0].template == JobTemplate(
        accounting_id="a", args=["1", "2"], candidate_machines=["m"], email=["e"], email_on_started=True,
        deadline_time=datetime(2999, 1, 1, tzinfo=timezone(timedelta(hours=1))), email_on_terminated=True,
        error_path="/e", extensions={"k": "v"}, input_path="/i", job_category="c", job_environment={"A": "1"},
        job_name="n", join_files=True, machine_arch="X64", machine_os="LINUX", max_slots=2, min_phys_memory=3,
        min_slots=1, output_path="/o", priority=-4, queue_name="q", rerunnable=True, remote_command="x",
        reservation_id="r", resource_limits={"CPU_TIME": 1.5, "OPEN_FILES": 9}, stage_in_files={"t": "s"},
        stage_out_files={"/t": "s"}, start_time=datetime(2000, 1, 1, 0, 0, 0, 123456, tzinfo=UTC),
        working_directory="/w",
    )  # fmt: skip
    assert template_of({key.lower(): value for key, value in json.loads(WHOLE).items()}) == JobTemplate(
        remote_command="stay", args=["10"]
    )
    assert template_of(dict.fromkeys(key.lower() for key in json.loads(WHOLE))) == JobTemplate()
    with pytest.raises(MalformedError):
        template_of({"starttime": "yesterday"})


def test_jobs_that_are_refused(serve: Serve) -> None:
    """Why is in the answer, which is 200."""
    system = FakeSystem()
    served = serve(system)
    system.fail("submit", errors.DeniedByDrmsError("fork/exec /x: no such file or directory"))
    answer = post(served.alice, "addjob", b'{"remoteCommand":"/x","extension":{}}')
    assert (answer.status, answer.body) == (
        200,
        b'{"JobID":"","Error":"fork/exec /x: no such file or directory"}',
    )
    for field, words in (
        (b'"outputPath":"/tmp/x"', "output_path"), (b'"workingDirectory":"/"', "working_directory"),
        (b'"inputPath":"/etc/passwd"', "input_path"), (b'"stageInFiles":{"a":"/etc/passwd"}', "stage_in_files"),
        (b'"extension":{"user":"root"}', "extensions"), (b'"resourceLimits":{"CPU_TIME":"x"}', "resourceLimits"),
        (b'"resourceLimits":{"X":"1"}', "resource_limits"), (b'"maxSlots":-1', "max_slots"),
    ):  # fmt: skip
        answer = post(served.alice, "addjob", b'{"remoteCommand":"x",%s}' % field)
        assert answer.status == 200
        assert answer.json()["JobID"] == ""
        assert words in answer.json()["Error"]
    assert system.submitted == []


def test_what_html_might_take_for_its_own(serve: Serve) -> None:
    """Go's encoder writes some characters as numbers."""
    system = FakeSystem()
    served = serve(system)
    system.fail("submit", errors.DeniedByDrmsError('a<b>&"c"\\ é\u2028'))
    answer = post(served.alice, "addjob", b'{"remoteCommand":"x"}')
    assert answer.body == b'{"JobID":"","Error":"a\\u003cb\\u003e\\u0026\\"c\\"\\\\ \xc3\xa9\\u2028"}'


def test_arrays(serve: Serve) -> None:
    """From begin to end, which is in it; the array has one state, and its elements have ids."""
    system = FakeSystem({"stay": FOREVER})
    served = serve(system)
    body = WHOLE[:-1] + b',"begin":1,"end":5,"step":2,"maxParallel":2}'
    answer = post(served.alice, "addarrayjob", body)
    id = answer.json()["JobID"]
    assert answer.body == b'{"JobID":"%s","Error":""}' % id.encode()
    elements = [f"{id}.{index}" for index in (1, 3, 5)]
    assert get(served.alice, f"listarrayjobs?arrayJobID={id}").json() == elements
    assert get(served.alice, "listjobs").json() == elements
    until(lambda: is_running(served.alice, f"{id}.3"))
    assert is_running(served.alice, id)
    assert len(system.submitted) == 2
    assert get(served.alice, f"jobinfo?jobID={id}").json()["id"] == id
    assert get(served.alice, f"jobcontrol?jobID={id}&action=terminate").body == b'""'
    until(lambda: get(served.alice, f"jobstate?jobID={id}").json()["JobState"] == "failed")
    assert get(served.alice, f"deletejob?jobID={id}").body == b'""'
    assert get(served.alice, f"listarrayjobs?arrayJobID={id}").body == b"[]"


@pytest.mark.parametrize(
    "more", ['"begin":5,"end":1', '"begin":-1,"end":1', '"begin":1,"end":101', '"begin":1,"end":2,"maxParallel":-1']
)
def test_arrays_that_are_refused(serve: Serve, more: str) -> None:
    """Indexes that are none are told as errors of the job."""
    answer = post(
        serve(limits=ServerLimits(elements=100)).alice, "addarrayjob", b'{"remoteCommand":"x",%s}' % more.encode()
    )
    assert (answer.status, answer.json()["JobID"]) == (200, "")
    assert answer.json()["Error"]


def test_an_array_of_which_nothing_is_taken(serve: Serve) -> None:
    """It is no job."""
    system = FakeSystem()
    served = serve(system)
    system.fail("submit", errors.DeniedByDrmsError("not today"))
    answer = post(served.alice, "addarrayjob", b'{"remoteCommand":"x","begin":1,"end":2}')
    assert answer.body == b'{"JobID":"","Error":"not today"}'


def test_actions(serve: Serve) -> None:
    """Each does what it says; one that there is not is told."""
    served = serve()
    id = add(served.alice, submitAsHold=True)
    assert get(served.alice, f"jobstate?jobID={id}").body == b'{"JobState":"queuedHeld","JobSubState":""}'
    assert get(served.alice, f"jobcontrol?jobID={id}&action=release").body == b'""'
    until(lambda: is_running(served.alice, id))
    assert get(served.alice, f"jobcontrol?jobID={id}&action=explode").body == b'"undefined job operation explode"'
    assert "cannot hold" in get(served.alice, f"jobcontrol?jobID={id}&action=hold").json()


def test_gets_that_change_something_are_off(serve: Serve) -> None:
    """Unless it is asked for, they are refused with words that say where else to go; nothing is done."""
    served = serve(legacy_get=False)
    id = add(served.alice)
    until(lambda: is_running(served.alice, id))
    for target in (f"jobcontrol?jobID={id}&action=terminate", f"deletejob?jobID={id}"):
        answer = get(served.alice, target)
        assert answer.status == 405
        assert "switched off" in answer.json()
    assert is_running(served.alice, id)


def test_all_of_it_is_off(serve: Serve) -> None:
    """Unless it is asked for, there is nothing of it."""
    served = serve(legacy=False)
    for target in ("listjobs", "jobstate?jobID=1", "jobcontrol?jobID=1&action=terminate"):
        assert get(served.alice, target).status == 404
    assert post(served.alice, "addjob", WHOLE).status == 404


def test_it_has_a_place(serve: Serve) -> None:
    """Its path can be chosen, below the server's own."""
    served = serve(base_path="/wfl", legacy_path="/v1")
    assert served.alice.get("/wfl/v1/listjobs").body == b"[]"


def test_whose_is_whose(serve: Serve) -> None:
    """Also here there is no job of somebody else, nor one of another session of one's own."""
    served = serve()
    id, own = add(served.alice), started(served.alice, "stay")
    until(lambda: is_running(served.alice, id))
    for client, other in ((served.bob, id), (served.alice, own)):
        assert get(client, f"jobinfo?jobID={other}").body == ZERO
        assert get(client, f"jobcontrol?jobID={other}&action=terminate").body == b'"job does not exist"'
        assert get(client, f"deletejob?jobID={other}").body == b'"job does not exist"'
    assert get(served.bob, "listjobs").body == b"[]"
    assert is_running(served.alice, id)
    assert served.alice.get(f"{API}/jobs/{id}").json()["session"] == "legacy"
    assert served.open.get(f"{BASE}/listjobs").status == 401


@pytest.mark.parametrize("kind", ["text/plain", "text/plain;x=application/json"])
def test_bodies_of_another_type(serve: Serve, kind: str) -> None:
    """What a page of another site can send unasked is not read."""
    served = serve()
    answer = served.alice.request("POST", f"{BASE}/addjob", WHOLE, headers={"content-type": kind})
    assert answer.status == 415
    assert get(served.alice, "listjobs").body == b"[]"


def test_categories(serve: Serve) -> None:
    """What may be named: what the policy allows, or what the system shows; null where nothing is known."""
    policy = Policy(images=["busybox", "registry/*"])
    assert get(serve(policy=policy).alice, "listjobcategories").body == b'["busybox"]'
    system = FakeSystem()
    served = serve(system)
    system.categories = ()
    assert get(served.alice, "listjobcategories").body == b"null"
    system.fail("monitor", errors.DrmCommunicationError("away"))
    assert get(served.alice, "listjobcategories").body == b"null"


def test_infos() -> None:
    """Times are as Go writes them, spans whole seconds, what is not known zero; the extension is always there."""
    info = ended(
        "1",
        exit_status=0,
        allocated_machines=("node1",),
        cpu_time=timedelta(seconds=2.9),
        wallclock_time=timedelta(seconds=10.5),
        dispatch_time=datetime(2024, 1, 1, 11, tzinfo=timezone(timedelta(hours=1))),
        finish_time=datetime(2024, 1, 1, 10, 0, 10, 120000, tzinfo=UTC),
        submission_time=datetime(200, 1, 1, tzinfo=UTC),
        job_owner="1000",
        slots=1,
        submission_machine="host",
        extensions={"b": "2", "a": "1"},
    )
    assert json.dumps(info_of(info), separators=(",", ":")) == (
        '{"allocatedMachines":["node1"],"annotation":"","cpuTime":2,"dispatchTime":"2024-01-01T10:00:00Z",'
        '"exitStatus":0,"extension":{"a":"1","b":"2"},"finishTime":"2024-01-01T10:00:10.12Z","id":"1",'
        '"jobOwner":"1000","queueName":"","slots":1,"state":"done","subState":"exited","submissionMachine":"host",'
        '"submissionTime":"0200-01-01T00:00:00Z","terminatingSignal":"","wallclockTime":10}'
    )
    assert {info_of(JobInfo(id="1", state=state))["state"] for state in JobState} == {*map(str, JobState)}

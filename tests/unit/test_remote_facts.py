"""What job servers say of jobs, as facts, in both protocols; and what of a template is sent to them."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl import JobInfo, JobState, JobTemplate
from wfl.backend import Submission
from wfl.contexts.remote import facts, template
from wfl.errors import DrmCommunicationError, InvalidArgumentError

pytest.importorskip("httpx", reason="httpx is not in this environment")

from wfl.contexts.remote.compatible import body
from wfl.contexts.remote.events import Event, Parser

ZERO = "0001-01-01T00:00:00Z"
GO = {
    "allocatedMachines": ["node1"], "annotation": "", "cpuTime": 0, "dispatchTime": "2024-01-01T10:00:00Z",
    "exitStatus": 0, "extension": {"user_time_ms": "3"}, "finishTime": "2024-01-01T10:00:10Z", "id": "1",
    "jobOwner": "1000", "queueName": "", "slots": 1, "state": "done", "subState": "", "submissionMachine": "host",
    "submissionTime": "2024-01-01T10:00:00Z", "terminatingSignal": "", "wallclockTime": 10, "Error": "",
}  # fmt: skip
"""As a server in Go really answers /jobinfo."""


# --- version 1 --------------------------------------------------------------------------------------------


def test_info_is_wfls_own() -> None:
    """A JobInfo goes there and back; the id is the one that it is told under."""
    info = JobInfo(
        id="x", state=JobState.RUNNING, dispatch_time=datetime(2030, 1, 1, tzinfo=UTC), extensions={"a": "b"}
    )
    assert facts.info_of("x", info.to_json().encode()) == info
    assert facts.info_of("y", info.to_json().encode()) == info.replace(id="y")


def test_newer_servers_are_understood() -> None:
    """What is not known here is passed over; a reason for an end that is not, becomes words."""
    said = json.dumps({"state": "failed", "exitStatus": 3, "subState": "vaporised", "colour": "red"}).encode()
    info = facts.info_of("x", said)
    assert (info.exit_status, info.sub_state, info.annotation) == (3, "exited", "vaporised")


@pytest.mark.parametrize(
    ("said", "sub_state"),
    [({"state": "done"}, "exited"), ({"state": "failed", "exitStatus": 1}, "exited"), ({"state": "failed"}, "lost")],
)
def test_ends_have_a_reason(said: dict[str, Any], sub_state: str) -> None:
    """No end is left to be asked for once more."""
    assert facts.info_of("x", json.dumps(said).encode()).sub_state == sub_state


@pytest.mark.parametrize("said", [b"", b"[]", b"nonsense", b'{"state": 7}', b'{"exitStatus": "seven"}', b"null"])
def test_what_is_no_info(said: bytes) -> None:
    """It is no fact, and no guess is made of it."""
    with pytest.raises(DrmCommunicationError, match="cannot be understood"):
        facts.info_of("x", said)


# --- the compatible protocol ------------------------------------------------------------------------------


def test_a_server_in_go() -> None:
    """Its real answer, with zero times as unknown and whole seconds."""
    info = facts.compatible(GO)
    assert info == JobInfo(
        id="1",
        state=JobState.DONE,
        sub_state="exited",
        exit_status=0,
        allocated_machines=("node1",),
        submission_machine="host",
        job_owner="1000",
        slots=1,
        wallclock_time=timedelta(seconds=10),
        submission_time=datetime(2024, 1, 1, 10, tzinfo=UTC),
        dispatch_time=datetime(2024, 1, 1, 10, tzinfo=UTC),
        finish_time=datetime(2024, 1, 1, 10, 0, 10, tzinfo=UTC),
        extensions={"user_time_ms": "3"},
    )


@pytest.mark.parametrize(
    ("said", "status", "signal", "sub_state"),
    [
        ({"exitStatus": 7}, 7, None, "exited"),
        ({"exitStatus": -1, "terminatingSignal": "killed"}, 137, "SIGKILL", "signaled"),
        ({"exitStatus": 143, "terminatingSignal": "SIGTERM"}, 143, "SIGTERM", "signaled"),
        ({"terminatingSignal": "15"}, 143, "SIGTERM", "signaled"),
        ({"terminatingSignal": "signal: segmentation fault"}, 139, "SIGSEGV", "signaled"),
        ({"exitStatus": 137, "terminatingSignal": "SIGKILL", "subState": "cancelled"}, 137, "SIGKILL", "cancelled"),
        ({"exitStatus": 1, "subState": "OOMKilled"}, 1, None, "exited"),
        ({"exitStatus": 0, "dispatchTime": ZERO}, None, None, "launch_failure"),
        ({"exitStatus": 0}, None, None, "exited"),
        ({"exitStatus": 0, "subState": "lost"}, None, None, "lost"),
    ],
)
def test_failures_of_a_server_in_go(
    said: dict[str, Any], status: int | None, signal: str | None, sub_state: str
) -> None:
    """Signals by name, number or Go's words; what is not told stays unknown, and foreign reasons become words."""
    info = facts.compatible({**GO, "state": "failed", **said})
    assert (info.state, info.exit_status) == (JobState.FAILED, status)
    assert (info.terminating_signal, info.sub_state) == (signal, sub_state)
    if said.get("subState") == "OOMKilled":
        assert info.annotation == "OOMKilled"


def test_states_and_cases_of_a_server_in_go() -> None:
    """Keys come in any case, lists may be null, times may be missing, and what is unset is unknown."""
    for name, state in (
        ("queuedHeld", JobState.QUEUED_HELD),
        ("unset", JobState.UNDETERMINED),
        ("?", JobState.UNDETERMINED),
    ):
        said = {"ID": "1", "STATE": name, "allocatedMachines": None, "submissionTime": None, "dispatchTime": ""}
        assert facts.compatible(said) == JobInfo(id="1", state=state)


def test_template_for_a_server_in_go() -> None:
    """Every field is there, spelled as there; numbers of limits are texts; the session's own business is left out."""
    given = JobTemplate(
        remote_command="sleep",
        args=("10",),
        rerunnable=True,
        accounting_id="a",
        reservation_id="r",
        submit_as_hold=True,
        start_time=datetime(2030, 1, 1, tzinfo=UTC),
        job_environment={"A": "b"},
        resource_limits={"WALLCLOCK_TIME": 5, "CPU_TIME": 1.5, "FILE_SIZE": 10_000_000},
        extensions={"k": "v"},
    )
    told = json.loads(body(Submission("key-1.3", given, "key-1", 3)))
    assert len(told) == 31
    assert (told["reRunnable"], told["accountingID"], told["reservationID"]) == (True, "a", "r")
    assert told["resourceLimits"] == {"CPU_TIME": "1.5", "FILE_SIZE": "10000000"}
    assert told["extension"] == {"k": "v"}
    assert told["jobEnvironment"] == {"A": "b", "JOB_ID": "key-1", "TASK_ID": "3"}
    assert (told["submitAsHold"], told["startTime"], told["deadlineTime"]) == (False, ZERO, ZERO)
    empty = json.loads(body(Submission("key-1", JobTemplate(remote_command="true"), "key-1")))
    assert (empty["extension"], empty["minSlots"], empty["outputPath"]) == ({}, 0, "")


# --- what is sent -----------------------------------------------------------------------------------------


def test_paths_of_this_side_are_not_sent(tmp_path: Path) -> None:
    """Uploads take the places of sources, numbers those of targets; /dev/null means the same everywhere."""
    (tmp_path / "data").write_text("x")
    given = JobTemplate(
        remote_command="x",
        input_path=tmp_path / "data",
        output_path=tmp_path / "out",
        error_path="/dev/null",
        stage_in_files={"in/": str(tmp_path / "data"), "vol": "volume:data"},
        stage_out_files={str(tmp_path / "a"): "one", str(tmp_path / "b"): "two"},
    )
    template.check(given)
    assert template.copies_in(given) == {"in/": str(tmp_path / "data")}
    sent = template.sent(given, {"in/": "1"}, "2")
    assert sent == JobTemplate(
        remote_command="x",
        input_path="upload:2",
        error_path="/dev/null",
        stage_in_files={"in/data": "upload:1", "vol": "volume:data"},
        stage_out_files={"result:0": "one", "result:1": "two"},
    )
    assert template.names(sent, None) == {"one": "0", "two": "1"}
    assert template.written(given, None) == {"stdout": str(tmp_path / "out")}
    assert template.discards(given, "stderr")
    assert not template.discards(given, "stdout")


def test_nothing_to_send() -> None:
    """A template without paths goes as it is."""
    given = JobTemplate(remote_command="x", args=("y",))
    template.check(given)
    assert template.sent(given, {}, None) is given


def test_joined_output(tmp_path: Path) -> None:
    """One path for both streams is one stream, there and here."""
    path = str(tmp_path / "out")
    for one in (
        JobTemplate(remote_command="x", output_path=path, error_path=path),
        JobTemplate(remote_command="x", output_path=path, join_files=True),
    ):
        assert template.sent(one, {}, None) == JobTemplate(remote_command="x", join_files=True)
        assert template.written(one, None) == {"stdout": path}


def test_indexes_are_filled_here_and_there(tmp_path: Path) -> None:
    """An element's paths are made of the array's, and its results are found by their sources, filled or not."""
    given = JobTemplate(
        stage_out_files={f"{tmp_path}/r-$DRMAA2_INDEX$": "out-$DRMAA2_INDEX$"}, output_path="/tmp/$DRMAA2_INDEX$"
    )
    assert template.brought(given, 7) == {f"{tmp_path}/r-7": "out-7"}
    assert template.written(given, 7) == {"stdout": "/tmp/7"}
    sent = template.sent(given, {}, None)
    assert template.names(sent, 7) == {"out-7": "0"}
    filled = JobTemplate(stage_out_files={f"{tmp_path}/r-7": "out-7"})
    assert template.names(sent, 7)[next(iter(template.brought(filled, None).values()))] == "0"


def test_sources_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What names its kind is the server's, unless there is such a file here."""
    monkeypatch.chdir(tmp_path)
    assert template.is_local("data")
    assert template.is_local("/x/bind:y")
    assert not template.is_local("bind:/scratch")
    assert not template.is_local("secret-data:aGk=")
    (tmp_path / "bind:here").write_text("")
    assert template.is_local("bind:here")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input_path": "/dev/stdin"}, "cannot read that"),
        ({"input_path": "/no/such/file"}, "input_path"),
        ({"output_path": "/no/such/place/out"}, "output_path"),
        ({"stage_in_files": {"x": "/no/such/file"}}, "/no/such/file"),
        ({"stage_out_files": {"a/../b": "x", "b": "y"}}, "something else is copied"),
        ({"join_files": True, "error_path": "/tmp/x"}, "join_files"),
    ],
)
def test_refused_here(fields: dict[str, Any], words: str) -> None:
    """What cannot be sent or brought back is refused by its field before anything is started."""
    with pytest.raises(InvalidArgumentError, match=words):
        template.check(JobTemplate(remote_command="x", **fields))


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    """A file name that is not UTF-8 is sent under the same bytes."""
    name = os.fsdecode(b"\xff")
    (tmp_path / name).write_text("x")
    given = JobTemplate(remote_command="x", stage_in_files={name: str(tmp_path / name)})
    sent = template.sent(given, {name: "1"}, None)
    assert JobTemplate.from_json(sent.to_json()).stage_in_files == {name: "upload:1"}


# --- server-sent events -----------------------------------------------------------------------------------

STREAM = """: hello

id: a.1
event: jobs
data: {"jobs":["\u2028"]}

event: reset
data:

: alive

id: a.2
event: jobs
data: one
data:two

retry: 10
data: plain\r
\r
id: a.3

event: reset

event: jobs
data: not whole""".encode()
EVENTS = [
    Event("jobs", '{"jobs":["\u2028"]}'.encode(), "a.1"),
    Event("reset", b"", "a.1"),
    Event("jobs", b"one\ntwo", "a.2"),
    Event("message", b"plain", "a.2"),
    Event("reset", b"", "a.3"),
]


@given(st.lists(st.integers(1, 40)))
def test_events_come_in_any_pieces(sizes: list[int]) -> None:
    """However the stream is cut, the same events are in it; one that is not whole is none."""
    parser, rest = Parser(), STREAM
    found: list[Event] = []
    for size in sizes:
        found += parser.feed(rest[:size])
        rest = rest[size:]
    assert [*found, *parser.feed(rest)] == EVENTS


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_anything_may_come(pieces: list[bytes]) -> None:
    """No bytes are a mistake of the parser's."""
    parser = Parser()
    for piece in pieces:
        assert all(isinstance(event, Event) for event in parser.feed(piece))

"""Flux: what is submitted, word by word, and how its answers are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from wfl import Capability, JobState, JobTemplate, Workflow
from wfl.backend import Action
from wfl.contexts.batch.flux import Flux, FluxContext
from wfl.drmaa2 import WALLCLOCK_TIME
from wfl.errors import DrmCommunicationError, UnsupportedAttributeError

DATA = Path(__file__).parents[1] / "data" / "batch" / "flux"
START = datetime(2026, 12, 1, 10, 30, 15, 1).astimezone()
SIMPLE = JobTemplate(remote_command="true")
WHOLE = JobTemplate(
    remote_command="true",
    job_name="a job",
    queue_name="batch",
    min_slots=4,
    priority=-7,
    candidate_machines=("n1", "n2"),
    start_time=START,
    accounting_id="acc",
    resource_limits={WALLCLOCK_TIME: 3601.5},
    extensions={"gpus": "2", "dependency": "afterok:f17", "signal": "USR1@60s", "native": "--flags 'n o'"},
)


def command(template: JobTemplate, **settings: Any) -> list[str]:
    """The words of the submission, from which the directory and the script are left out."""
    (preview,) = FluxContext(directory="/d", session_name="s", **settings).preview(template)
    return [word.replace("/d/s/KEY", "") for word in preview.command]


def test_whole_template() -> None:
    """Every field has its option; the key stands in the name, which is what the list shows."""
    assert command(WHOLE) == [
        "flux", "submit", "--job-name=a_job wfl:KEY-1", "--setattr=user.wfl=KEY-1", "--output=/log/1", "--error=/log/1",
        "--env-remove=*", "--ntasks=1", "--cores-per-task=4", "--gpus-per-task=2", "--time-limit=3601.5s",
        "--urgency=9", "--queue=batch", "--bank=acc", "--requires=host:n1,n2", "--begin-time=2026-12-01 10:30:16",
        "--dependency=afterok:f17", "--signal=USR1@60s", "--flags", "n o", "/bin/sh", "-l", "/script/1",
    ]  # fmt: skip


def test_least_template() -> None:
    """What the template leaves open is left to the site."""
    assert command(SIMPLE) == [
        "flux", "submit", "--job-name=wfl:KEY-1", "--setattr=user.wfl=KEY-1", "--output=/log/1", "--error=/log/1",
        "--env-remove=*", "--ntasks=1", "/bin/sh", "-l", "/script/1",
    ]  # fmt: skip


def test_held() -> None:
    """What is held has no urgency."""
    assert "--urgency=hold" in command(SIMPLE.replace(submit_as_hold=True))
    with pytest.raises(UnsupportedAttributeError, match="submit_as_hold"):
        command(SIMPLE.replace(submit_as_hold=True, priority=1))


def test_inherited_environment() -> None:
    """On request the job has the program's environment, and then no login's."""
    words = command(SIMPLE, inherit_environment=True)
    assert "--env-remove=*" not in words
    assert words[-2:] == ["/bin/sh", "/script/1"]


def test_nodes() -> None:
    """With nodes the script is a batch script, which starts its tasks itself."""
    extensions = {"nodes": "3", "tasks_per_node": "2", "gpus": "12", "exclusive": "true"}
    words = command(SIMPLE.replace(min_slots=4, extensions=extensions))
    assert words[:2] == ["flux", "batch"]
    assert words[-6:] == [
        "--nodes=3", "--nslots=6", "--cores-per-slot=4", "--gpus-per-slot=2", "--exclusive", "/script/1",
    ]  # fmt: skip
    with pytest.raises(UnsupportedAttributeError, match="gpus"):
        command(SIMPLE.replace(extensions={"nodes": "1", "tasks_per_node": "2", "gpus": "3"}))
    with pytest.raises(UnsupportedAttributeError, match="need extensions nodes"):
        command(SIMPLE.replace(extensions={"exclusive": "true"}))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"priority": 16}, "priority"),
        ({"priority": -16}, "priority"),
        ({"min_slots": 1, "max_slots": 2}, "max_slots"),
        ({"min_phys_memory": 1}, "min_phys_memory"),
        ({"email": ("a@b",)}, "email"),
        ({"reservation_id": "r"}, "reservation_id"),
        ({"rerunnable": True}, "rerunnable"),
    ],
)
def test_refused(fields: dict[str, Any], words: str) -> None:
    """What Flux has no word for is refused by its name."""
    with pytest.raises(UnsupportedAttributeError, match=words):
        command(SIMPLE.replace(**fields))


def test_capabilities() -> None:
    """There are no arrays with one id, and no job is suspended."""
    flow = Workflow(FluxContext(directory="/tmp/unused"))
    with flow:
        assert flow.session is not None
        has = flow.session.backend.capabilities
    assert has.isdisjoint({Capability.NATIVE_ARRAYS, Capability.SUSPEND, Capability.MAX_PARALLEL})
    assert {Capability.HOLD, Capability.DETACH, Capability.START_TIME} <= has


@pytest.mark.parametrize("output", ["ƒ2NC4YXP\n", "f2NC4YXP\n", "flux-submit: a remark\nƒ2NC4YXP\n"])
def test_accepted(output: str) -> None:
    """An id is the same with either letter."""
    assert Flux().accepted(output) == "f2NC4YXP"


def test_no_id() -> None:
    """Without an id nobody knows whether there is a job, so it is looked for."""
    with pytest.raises(DrmCommunicationError, match="did not tell an id"):
        Flux().accepted("")


def test_commands() -> None:
    """The questions and orders, word by word."""
    flux = Flux()
    form = (
        "{id.f58}|{state}|{result}|{returncode}|{exception.type}|{urgency}|{t_submit}|{t_run}|{t_cleanup}|{ncores}|{queue}"
        "|{nodelist}|{name}|{exception.note}"
    )
    assert flux.query("me") == ["flux", "jobs", "-n", "-c", "0", "--filter=pending,running", "-o", form]
    assert flux.accounting(["f1", "f2"], "me", 0) == [["flux", "jobs", "-n", "-c", "0", "-a", "-o", form, "f1", "f2"]]
    assert flux.control(["f1", "f2"], Action.TERMINATE) == [["flux", "cancel", "f1", "f2"]]
    assert flux.control(["f1", "f2"], Action.KILL) == [
        ["flux", "job", "kill", "--signal=SIGKILL", "f1", "f2"], ["flux", "cancel", "f1", "f2"],
    ]  # fmt: skip
    assert flux.control(["f1", "f2"], Action.HOLD) == [
        ["flux", "job", "urgency", "f1", "hold"], ["flux", "job", "urgency", "f2", "hold"],
    ]  # fmt: skip
    assert flux.control(["f1"], Action.RELEASE) == [["flux", "job", "urgency", "f1", "default"]]


def test_return_codes() -> None:
    """What Flux's own tests expect: running, signal 15, cancelled before it began, 42, 1, 0."""
    found = list(Flux().accounts((DATA / "returncode.txt").read_text(), 0))
    assert [(one.over, one.exit_status, one.signal, one.cause) for one in found] == [
        (False, None, None, None),
        (True, None, 15, None),
        (True, None, None, "cancelled"),
        (True, 42, None, None),
        (True, 1, None, None),
        (True, 0, None, None),
    ]
    assert found[2].info.annotation == "cancel: interrupted by ctrl-C"
    assert found[2].info.dispatch_time is None
    assert found[3].info.submission_time == datetime.fromtimestamp(0, UTC) + timedelta(seconds=1607972301.4822261)
    assert found[3].info.wallclock_time is not None
    assert abs(found[3].info.wallclock_time - timedelta(seconds=0.0437834)) < timedelta(milliseconds=1)
    assert found[3].info.allocated_machines == ("asp",)


def test_exceptions() -> None:
    """Why a job has ended: the machine, no such resources, the limit of time."""
    *_, node, alloc, late = Flux().accounts((DATA / "pending.txt").read_text(), 0)
    assert (node.cause, node.info.allocated_machines) == ("node_failure", ("elcap8766", "elcap8767"))
    assert node.info.annotation == "node-failure: node failure on elcap8767 (shell rank 1127)"
    assert (alloc.cause, alloc.exit_status) == ("launch_failure", None)
    assert (late.cause, late.exit_status, late.signal) == ("timeout", None, 14)


@pytest.mark.parametrize(
    ("state", "urgency", "expected"),
    [
        ("DEPEND", "16", JobState.QUEUED), ("PRIORITY", "16", JobState.QUEUED), ("SCHED", "16", JobState.QUEUED),
        ("SCHED", "0", JobState.QUEUED_HELD), ("RUN", "16", JobState.RUNNING), ("RUN", "0", JobState.RUNNING),
        ("CLEANUP", "16", JobState.RUNNING), ("INACTIVE", "16", JobState.DONE),
    ],
)  # fmt: skip
def test_states(state: str, urgency: str, expected: JobState) -> None:
    """Every state of RFC 21; no urgency means held."""
    (seen,) = Flux().seen(f"ƒ2N|{state}||||{urgency}|1664571163.5|0.0|0.0|1|q||a_job wfl:0123-4|")
    assert (seen.id, seen.numbers, seen.key, seen.info.state) == ("f2N", None, "0123-4", expected)
    assert (seen.info.queue_name, seen.info.dispatch_time) == ("q", None)


def test_other_names() -> None:
    """A name without our key is another's job; a line that is cut is no answer."""
    assert [seen.key for seen in Flux().seen((DATA / "pending.txt").read_text())] == [None] * 6
    assert list(Flux().seen("f2N|SCHED|||")) == []

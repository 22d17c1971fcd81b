"""OpenPBS and Torque: what is submitted, word by word, and how their answers are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from wfl import Capability, JobState, JobTemplate, Workflow
from wfl.backend import Action
from wfl.contexts.batch.pbs import Pbs, PbsContext, Torque, dialect_of
from wfl.drmaa2 import WALLCLOCK_TIME
from wfl.errors import DrmCommunicationError, InvalidArgumentError, UnsupportedAttributeError

DATA = Path(__file__).parents[1] / "data" / "batch"
START = datetime(2026, 12, 1, 10, 30, 15, 1).astimezone()
WHOLE = JobTemplate(
    remote_command="true",
    rerunnable=True,
    email=("a@b", "c@d"),
    email_on_started=True,
    email_on_terminated=True,
    job_name="a job, named",
    queue_name="long",
    min_slots=4,
    max_slots=4,
    priority=7,
    candidate_machines=("n1",),
    min_phys_memory=2048,
    start_time=START,
    accounting_id="acc",
    submit_as_hold=True,
    resource_limits={WALLCLOCK_TIME: 3601.5},
    extensions={"gpus": "2", "dependency": "afterok:17", "exclusive": "true", "native": "-c 'n o'"},
)
SIMPLE = JobTemplate(remote_command="true")


def command(
    template: JobTemplate, indexes: range | None = None, limit: int | None = None, **settings: Any
) -> list[str]:
    """The words of the submission, from which the directory and the script are left out."""
    context = PbsContext(directory="/d", session_name="s", **settings)
    (preview,) = context.preview(template, indexes, limit)
    return [word.replace("/d/s/KEY", "") for word in preview.command]


def test_whole_template_openpbs() -> None:
    """Every field has its option; one chunk has all that one machine must have."""
    assert command(WHOLE, dialect="openpbs") == [
        "qsub", "-N", "a_job__named", "-v", "WFL_KEY=KEY-1", "-S", "/bin/sh", "-j", "oe", "-o", "/log/1",
        "-r", "y", "-W", "depend=afterok:17",
        "-l", "select=1:ncpus=4:ngpus=2:mem=2048kb:host=n1", "-l", "place=excl", "-l", "walltime=01:00:02",
        "-m", "bae", "-M", "a@b,c@d", "-p", "7", "-A", "acc", "-h", "-a", "202612011030.16", "-q", "long",
        "-c", "n o", "/script/1",
    ]  # fmt: skip


def test_whole_template_torque() -> None:
    """The same in Torque's words: nodes and ppn, and memory of the whole job."""
    assert command(WHOLE, dialect="torque") == [
        "qsub", "-N", "a_job__named", "-v", "WFL_KEY=KEY-1", "-S", "/bin/sh", "-j", "oe", "-o", "/log/1",
        "-r", "y", "-W", "depend=afterok:17",
        "-l", "nodes=n1:ppn=4:gpus=2", "-l", "mem=2048kb", "-l", "naccesspolicy=singlejob", "-l", "walltime=01:00:02",
        "-m", "bae", "-M", "a@b,c@d", "-p", "7", "-A", "acc", "-h", "-a", "202612011030.16", "-q", "long",
        "-c", "n o", "/script/1",
    ]  # fmt: skip


@pytest.mark.parametrize("dialect", ["openpbs", "torque"])
def test_least_template(dialect: str) -> None:
    """What the template leaves open is left to the site; but nobody gets mail unasked, and nothing is run twice."""
    assert command(SIMPLE, dialect=dialect) == [
        "qsub", "-N", "wfl-KEY-1", "-v", "WFL_KEY=KEY-1", "-S", "/bin/sh", "-j", "oe", "-o", "/log/1", "-r", "n",
        "-m", "n", "/script/1",
    ]  # fmt: skip


def test_inherited_environment() -> None:
    """-V is given on request alone."""
    assert "-V" not in command(SIMPLE, dialect="openpbs")
    assert "-V" in command(SIMPLE, dialect="openpbs", inherit_environment=True)


def test_nodes() -> None:
    """Several nodes are chunks on machines apart; what is counted for the job is divided among them."""
    template = SIMPLE.replace(
        min_slots=2, min_phys_memory=1024, extensions={"nodes": "3", "tasks_per_node": "4", "gpus": "6"}
    )
    openpbs, torque = command(template, dialect="openpbs"), command(template, dialect="torque")
    assert "select=3:ncpus=8:mpiprocs=4:ngpus=2:mem=1024kb" in openpbs
    assert "place=scatter" in openpbs
    assert "nodes=3:ppn=8:gpus=2" in torque
    assert "mem=3072kb" in torque
    with pytest.raises(InvalidArgumentError, match="gpus is '7'"):
        command(template.replace(extensions={"nodes": "3", "gpus": "7"}), dialect="openpbs")


@pytest.mark.parametrize(
    ("indexes", "limit", "openpbs", "torque"),
    [
        (range(1, 11), None, "1-10", "1-10"),
        (range(10), 3, "0-9%3", "0-9%3"),
        (range(2, 12, 3), 2, "2-11:3%2", "2,5,8,11%2"),
        (range(5, 6), None, "5-6:2", "5"),
    ],
)
def test_arrays(monkeypatch: pytest.MonkeyPatch, indexes: range, limit: int | None, openpbs: str, torque: str) -> None:
    """Elements have their own numbers. OpenPBS wants two ends even for one element; Torque knows no steps."""
    monkeypatch.setattr(Pbs, "limits", lambda _: None)
    words = command(SIMPLE, indexes, limit, dialect="openpbs")
    assert words[words.index("-J") + 1] == openpbs
    assert "-r" not in words  # arrays have to be rerunnable
    words = command(SIMPLE, indexes, limit, dialect="torque")
    assert words[words.index("-t") + 1] == torque


@pytest.mark.parametrize(
    ("dialect", "fields", "words"),
    [
        ("openpbs", {"max_slots": 5, "min_slots": 2}, "max_slots"),
        ("openpbs", {"candidate_machines": ("a", "b")}, "candidate_machines"),
        ("openpbs", {"priority": 1024}, "priority"),
        ("openpbs", {"reservation_id": "R1", "queue_name": "q"}, "reservation_id"),
        ("torque", {"reservation_id": "R1"}, "reservation_id"),
        ("torque", {"extensions": {"project": "p"}}, "project"),
        ("openpbs", {"machine_os": "linux"}, "machine_os"),
        ("openpbs", {"extensions": {"qos": "high"}}, "qos"),
    ],
)
def test_refused(dialect: str, fields: dict[str, Any], words: str) -> None:
    """What cannot be honoured is refused by its name."""
    with pytest.raises(UnsupportedAttributeError, match=words):
        command(SIMPLE.replace(**fields), dialect=dialect)


def test_reservation_and_project() -> None:
    """A reservation of OpenPBS is a queue."""
    words = command(SIMPLE.replace(reservation_id="R12", extensions={"project": "p"}), dialect="openpbs")
    assert words[-5:-1] == ["-q", "R12", "-P", "p"]


def test_wrong_dialect() -> None:
    """There are two."""
    with pytest.raises(InvalidArgumentError, match="dialect is 'sge'"):
        PbsContext(dialect="sge")


@pytest.mark.parametrize(
    ("version", "dialect"),
    [
        ("pbs_version = 23.06.06\n", "openpbs"),
        ("pbs_version = PBSPro_11.1.0.111761\n", "openpbs"),
        ("Version: 6.1.2\nCommit: 661e09\n", "torque"),
        ("version: 2.4.16\n", "torque"),
        ("", "openpbs"),
    ],
)
def test_dialect_of_version(version: str, dialect: str) -> None:
    """What `qsub --version` says tells the dialect."""
    assert dialect_of(version) == dialect


@pytest.mark.parametrize(
    ("output", "id"), [("123.server\n", "123"), ("123[].pbs.cluster.org\n", "123[]"), ("qsub: hello\n45.a\n", "45")]
)
def test_accepted(output: str, id: str) -> None:
    """The id is the last line, without the server's name; an array's has brackets."""
    assert Pbs().accepted(output) == id


@pytest.mark.parametrize("output", ["", "submitted\n"])
def test_no_id(output: str) -> None:
    """Without an id nobody knows whether there is a job, so it is looked for."""
    with pytest.raises(DrmCommunicationError, match="did not tell an id"):
        Pbs().accepted(output)


def test_commands() -> None:
    """The questions and orders, word by word."""
    pbs, torque = Pbs(), Torque()
    assert pbs.element("12[]", 4) == "12[4]"
    assert pbs.query("me") == ["qstat", "-a", "-n", "-1", "-w", "-t", "-u", "me"]
    assert torque.query("me") == ["qstat", "-a", "-n", "-1", "-t", "-u", "me"]
    assert pbs.search("me") == ["/bin/sh", "-c", pbs.mine, "sh", "me"]
    assert pbs.accounting(["1", "2[]"], "me", 0) == [["qstat", "-x", "-f", "-t", "1", "2[]"]]
    assert torque.accounting(["1", "2[]"], "me", 0) == [["qstat", "-f", "-t", "1", "2[]"]]
    orders = {action: pbs.control(["1", "2[3]"], action) for action in Action}
    assert orders == {
        Action.TERMINATE: [["qdel", "1", "2[3]"]],
        Action.KILL: [["qsig", "-s", "SIGKILL", "1", "2[3]"], ["qdel", "1", "2[3]"]],
        Action.SUSPEND: [["qsig", "-s", "suspend", "1", "2[3]"]],
        Action.RESUME: [["qsig", "-s", "resume", "1", "2[3]"]],
        Action.HOLD: [["qhold", "1", "2[3]"]],
        Action.RELEASE: [["qrls", "1", "2[3]"]],
    }


def test_highest_number() -> None:
    """The limit is a number of elements, which are counted from 0; OpenPBS has one that it does not always tell."""
    assert Pbs().most("Server: a\n    max_array_size = 500\n") == 499
    assert Pbs().most("Server: a\n") == 9999
    assert Torque().most("Server: a\n    max_job_array_size = 200\n") == 199
    assert Torque().most("Server: a\n") is None


def test_finished_job() -> None:
    """The long form of an ended job: times of this machine's zone, usage, and no cause where it ended by itself."""
    (account,) = Pbs().accounts((DATA / "pbs/finished.txt").read_text(), 0)
    assert (account.id, account.number, account.over) == ("45", None, True)
    assert (account.exit_status, account.signal, account.cause) == (0, None, None)
    began = datetime(2024, 9, 14, 8, 37, 55).astimezone(UTC)
    assert account.info.dispatch_time == account.info.finish_time == began
    assert account.info.submission_time == began - timedelta(seconds=10)
    assert (account.info.slots, account.info.queue_name) == (1, "workq")
    assert account.info.allocated_machines == ("login",)
    assert account.info.annotation is None


def test_folded_lines() -> None:
    """Long values are put together again, whatever they are folded with."""
    (account,) = Pbs().accounts((DATA / "pbs/nodes.txt").read_text(), 0)
    assert account.info.allocated_machines == ("node0088", "node0094", "node0085")
    assert account.info.slots == 8


def test_ends() -> None:
    """Limits, qdel and what still runs."""
    found = {account.id: account for account in Pbs().accounts((DATA / "pbs/ends.txt").read_text(), 0)}
    assert found["12345"].cause == "out_of_memory"
    assert found["12345"].info.annotation == "job killed: vmem 192GB exceeded limit 190GB"
    assert found["12345"].info.extensions == {"ru_maxrss": "186465316"}
    assert found["12345"].info.wallclock_time == timedelta(minutes=34, seconds=18)
    assert (found["12346"].cause, found["12346"].exit_status) == ("timeout", None)
    assert (found["42637"].cause, found["42637"].signal) == ("cancelled", 15)
    assert [found[id].over for id in ("42634", "42635")] == [False, False]


def record(status: str | None, *, state: str = "F", ran: bool = True, more: str = "") -> str:
    """A record with an exit status."""
    start = "    stime = Fri Jun 26 17:33:02 2020\n    start_time = Fri Jun 26 17:33:02 2020\n" if ran else ""
    code = f"    Exit_status = {status}\n" if status else ""
    return f"Job Id: 7.server\n    job_state = {state}\n{start}{more}{code}\n"


@pytest.mark.parametrize(
    ("dialect", "text", "cause", "status", "signal"),
    [
        (Pbs, record("0"), None, 0, None),
        (Pbs, record("255"), None, 255, None),
        (Pbs, record("42"), None, 42, None),
        (Pbs, record("137"), None, None, 9),
        (Pbs, record("265"), None, None, 9),
        (Pbs, record("-29"), "timeout", None, None),
        (Pbs, record("-28"), "timeout", None, None),
        (Pbs, record("-27"), "out_of_memory", None, None),
        (Pbs, record("-25"), "cancelled", None, None),
        (Pbs, record("-3"), "launch_failure", None, None),
        (Pbs, record("-1", ran=False), "launch_failure", None, None),
        (Pbs, record(None, ran=False, more="    substate = 91\n"), "cancelled", None, None),
        (Pbs, record("143", more="    substate = 91\n"), "cancelled", None, 15),
        (Torque, record("271"), "cancelled", None, 15),
        (Torque, record("-11"), "timeout", None, None),
        (Torque, record("-10"), "out_of_memory", None, None),
        (Torque, record("-8"), "launch_failure", None, None),
        (
            Torque,
            record("271", more="    resources_used.walltime = 00:01:03\n    Resource_List.walltime = 00:01:00\n"),
            "timeout", None, None,
        ),
    ],
)  # fmt: skip
def test_exit_statuses(
    dialect: type[Pbs], text: str, cause: str | None, status: int | None, signal: int | None
) -> None:
    """Below 0 PBS speaks, above 256 it adds a signal, above 128 the job's shell does; in between it is the command."""
    (account,) = dialect().accounts(text, 0)
    assert (account.cause, account.exit_status, account.signal) == (cause, status, signal)


def test_elements_without_records() -> None:
    """Older servers only say that an element is over: that is no record, and it was not cancelled for that."""
    text = "Job Id: 7[1].server\n    job_state = X\n    substate = 70\n\n"
    assert Pbs().accounts(text, 0) == []
    (account,) = Pbs().accounts(text.replace("70", "91"), 0)
    assert (account.number, account.cause) == (1, "cancelled")


def test_torque_records() -> None:
    """Attributes in small letters, an array's element, and a function in the environment that breaks the lines."""
    whole, element = Torque().accounts((DATA / "torque/complete.txt").read_text(), 0)
    assert (whole.id, whole.exit_status, whole.over) == ("9", 0, True)
    assert whole.info.wallclock_time == timedelta(minutes=1)
    assert whole.info.finish_time == datetime(2018, 5, 29, 9, 38, 1).astimezone(UTC)
    assert whole.info.allocated_machines == ("torque01",)
    assert (element.id, element.number, element.cause, element.signal) == ("48[]", 1, "cancelled", None)
    assert element.info.annotation == (
        "Job 48[].torque01 deleted because its dependency of array 43[].torque01 can never be satisfied"
    )


def test_table() -> None:
    """A line is a job; headings are not."""
    (seen,) = Pbs().seen((DATA / "pbs/table.txt").read_text())
    assert (seen.id, seen.numbers, seen.info.state) == ("10[]", None, JobState.RUNNING)


@pytest.mark.parametrize(
    ("letter", "state"),
    [
        ("Q", JobState.QUEUED), ("W", JobState.QUEUED), ("T", JobState.QUEUED), ("M", JobState.QUEUED),
        ("H", JobState.QUEUED_HELD), ("R", JobState.RUNNING), ("E", JobState.RUNNING), ("B", JobState.RUNNING),
        ("S", JobState.SUSPENDED), ("U", JobState.SUSPENDED), ("X", JobState.DONE), ("F", JobState.DONE),
        ("C", JobState.DONE),
    ],
)  # fmt: skip
def test_states(letter: str, state: JobState) -> None:
    """Every letter of column S; machines are told of what has begun."""
    line = f"12[34].pbs-server me workq a-name 123 1 1 -- 01:00 {letter} 00:10 n1/0*2+n2/1"
    (seen,) = Pbs().seen(line)
    assert (seen.id, seen.numbers, seen.info.state) == ("12[]", [range(34, 35)], state)
    assert seen.info.queue_name == "workq"
    assert seen.info.allocated_machines == (("n1", "n2") if state.started else None)


def test_keys() -> None:
    """The long form shows the key, also where it was folded."""
    text = (
        "Job Id: 12[].a\n    job_state = Q\n    Variable_List = PBS_O_HOME=/home/user,WFL_KEY=0123456789-12/\n"
        "\t3,A=b\n\n"
        "Job Id: 13.a\n    job_state = R\n    Variable_List = PBS_O_HOME=/home/user\n\n"
    )
    assert [(seen.id, seen.key) for seen in Pbs().seen(text)] == [("12[]", "0123456789-12/3"), ("13", None)]


def test_capabilities() -> None:
    """PBS does arrays, also so many at once, and starts later by itself."""
    flow = Workflow(PbsContext(dialect="openpbs", directory="/tmp/unused"))
    with flow:
        assert flow.session is not None
        has = flow.session.backend.capabilities
    assert {Capability.NATIVE_ARRAYS, Capability.MAX_PARALLEL, Capability.START_TIME, Capability.SUSPEND} <= has

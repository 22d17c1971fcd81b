"""LSF: what is submitted, word by word, and how its answers are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from wfl import JobState, JobTemplate
from wfl.backend import Action
from wfl.contexts.batch.lsf import Lsf, LsfContext
from wfl.drmaa2 import WALLCLOCK_TIME
from wfl.errors import DrmCommunicationError, InvalidArgumentError, UnsupportedAttributeError

DATA = Path(__file__).parents[1] / "data" / "batch" / "lsf"
START = datetime(2026, 12, 1, 10, 30, 15).astimezone()
SIMPLE = JobTemplate(remote_command="true")
WHOLE = JobTemplate(
    remote_command="true",
    rerunnable=True,
    email=("a@b", "c@d"),
    email_on_started=True,
    email_on_terminated=True,
    job_name="a job[1]",
    reservation_id="user#0",
    queue_name="long",
    min_slots=2,
    max_slots=4,
    priority=7,
    candidate_machines=("n1", "n2"),
    min_phys_memory=2048,
    start_time=START,
    accounting_id="acc",
    submit_as_hold=True,
    resource_limits={WALLCLOCK_TIME: 3601.5},
    extensions={"gpus": "2", "dependency": "done(17)", "exclusive": "true", "native": "-app 'n o'"},
)


def command(
    template: JobTemplate, indexes: range | None = None, limit: int | None = None, **settings: Any
) -> list[str]:
    """The words of the submission, from which the directory and the script are left out."""
    (preview,) = LsfContext(directory="/d", session_name="s", **settings).preview(template, indexes, limit)
    return [word.replace("/d/s/KEY", "") for word in preview.command]


def test_whole_template() -> None:
    """Every field has its option; memory has its unit, and minutes are rounded up."""
    assert command(WHOLE) == [
        "bsub", "-J", "a_job_1_", "-Jd", "wfl:KEY-1", "-o", "/log/1", "-env", "none", "-r", "-w", "done(17)",
        "-n", "2,4", "-R", "span[hosts=1]", "-M", "2048KB", "-R", "rusage[mem=2048KB]", "-W", "61", "-m", "n1 n2",
        "-gpu", "num=2", "-x", "-q", "long", "-P", "acc", "-U", "user#0", "-sp", "7", "-u", "a@b c@d", "-B", "-N", "-H",
        "-b", "2026:12:01:10:31", "-app", "n o",
        "trap : HUP INT QUIT TERM USR1 USR2 XCPU XFSZ; /bin/sh -l /script/1",
    ]  # fmt: skip


def test_least_template() -> None:
    """What the template leaves open is left to the site; nothing is run twice."""
    assert command(SIMPLE) == [
        "bsub", "-J", "wfl-KEY-1", "-Jd", "wfl:KEY-1", "-o", "/log/1", "-env", "none", "-rn",
        "trap : HUP INT QUIT TERM USR1 USR2 XCPU XFSZ; /bin/sh -l /script/1",
    ]  # fmt: skip


def test_inherited_environment() -> None:
    """On request the job has the program's environment, and then no login's."""
    words = command(SIMPLE, inherit_environment=True)
    assert words[words.index("-env") + 1] == "all"
    assert words[-1].endswith("; /bin/sh /script/1")


def test_blank_in_directory() -> None:
    """Bsub hands its last words to a shell, so they are quoted for one."""
    (preview,) = LsfContext(directory="/a b", session_name="s").preview(SIMPLE)
    assert preview.command[-1].endswith("; /bin/sh -l '/a b/s/KEY/script/1'")


def test_nodes() -> None:
    """Several nodes are slots with so many on each."""
    words = command(SIMPLE.replace(min_slots=2, extensions={"nodes": "3", "tasks_per_node": "4", "gpus": "6"}))
    assert words[words.index("-n") : words.index("-n") + 4] == ["-n", "24", "-R", "span[ptile=8]"]
    assert words[words.index("-gpu") + 1] == "num=2"


@pytest.mark.parametrize(
    ("indexes", "limit", "text"),
    [
        (range(1, 11), None, "[1-10]"),
        (range(1, 11), 3, "[1-10]%3"),
        (range(2, 12, 3), 2, "[2-11:3]%2"),
        (range(5, 6), None, "[5]"),
        (range(3), None, "[1-3]"),  # there is no element 0
    ],
)
def test_arrays(monkeypatch: pytest.MonkeyPatch, indexes: range, limit: int | None, text: str) -> None:
    """Elements have their own numbers, where these begin with 1."""
    monkeypatch.setattr(Lsf, "limits", lambda _: None)
    words = command(SIMPLE, indexes, limit)
    assert words[words.index("-J") + 1] == f"wfl-KEY-1{text}"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"priority": -1}, "priority"),
        ({"min_slots": 1, "max_slots": 2, "extensions": {"nodes": "2"}}, "max_slots"),
        ({"machine_arch": "x64"}, "machine_arch"),
        ({"extensions": {"qos": "high"}}, "qos"),
    ],
)
def test_refused(fields: dict[str, Any], words: str) -> None:
    """What cannot be honoured is refused by its name."""
    with pytest.raises(UnsupportedAttributeError, match=words):
        command(SIMPLE.replace(**fields))


@pytest.mark.parametrize("extensions", [{"exclusive": "yes"}, {"nodes": "0"}, {"gpus": "two"}])
def test_wrong_extensions(extensions: dict[str, str]) -> None:
    """Wrong values are told with what is expected."""
    with pytest.raises(InvalidArgumentError, match="expected"):
        command(SIMPLE.replace(extensions=extensions))


def test_accepted() -> None:
    """The id stands between angle brackets, also where LSF complains before; without one the job is looked for."""
    assert Lsf().accepted((DATA / "submitted.txt").read_text()) == "12345678"
    assert Lsf().accepted("Job <7> is submitted to default queue <normal>.\n") == "7"
    with pytest.raises(DrmCommunicationError, match="did not tell an id"):
        Lsf().accepted("")


def test_commands() -> None:
    """The questions and orders, word by word."""
    lsf = Lsf()
    fields = (
        "jobid jobindex stat exit_code queue slots exec_host submit_time start_time finish_time cpu_used run_time "
        "max_mem job_description exit_reason pend_reason delimiter='|'"
    )
    assert lsf.element("12", 4) == "12[4]"
    assert lsf.query("me") == ["bjobs", "-noheader", "-u", "me", "-o", fields]
    assert lsf.accounting(["1", "2"], "me", 0) == [["bjobs", "-noheader", "-o", fields, "1", "2"]]
    assert {action: lsf.control(["1", "2[3]"], action) for action in Action} == {
        Action.TERMINATE: [["bkill", "1", "2[3]"]],
        Action.KILL: [["bkill", "-s", "KILL", "1", "2[3]"]],
        Action.SUSPEND: [["bstop", "1", "2[3]"]],
        Action.RESUME: [["bresume", "1", "2[3]"]],
        Action.HOLD: [["bstop", "1", "2[3]"]],
        Action.RELEASE: [["bresume", "1", "2[3]"]],
    }


def test_highest_number() -> None:
    """MAX_JOB_ARRAY_SIZE of `bparams -a`; 1,000 where it is not told."""
    assert Lsf().most("    MAX_JOB_ARRAY_SIZE = 5000\n") == 5000
    assert Lsf().most("    CLEAN_PERIOD = 3600\n") == 1000


def line(**given: str) -> str:
    """A line of bjobs: a dash for each field that is not given."""
    fields = (
        "jobid", "jobindex", "stat", "exit_code", "queue", "slots", "exec_host", "submit_time", "start_time",
        "finish_time", "cpu_used", "run_time", "max_mem", "job_description", "exit_reason", "pend_reason",
    )  # fmt: skip
    return "|".join({"jobid": "7", "jobindex": "0", **given}.get(field, "-") for field in fields)


def test_done() -> None:
    """A job that ended well has no exit code; times without seconds tell less than the job itself, and are left out."""
    (account,) = Lsf().accounts((DATA / "done.txt").read_text(), 0)
    assert (account.id, account.number, account.exit_status, account.cause) == ("261871", None, 0, None)
    assert account.info.dispatch_time is None
    assert account.info.cpu_time == timedelta(0)


def test_usage() -> None:
    """Usage in LSF's words, with their units."""
    text = line(
        stat="EXIT", exit_code="3", exec_host="4*a:b:b", slots="6", max_mem="3.9 Gbytes", cpu_used="12.5 second(s)",
        run_time="33 second(s)", start_time="Oct 22 09:22:31 2026", queue="normal", jobindex="4",
    )  # fmt: skip
    (account,) = Lsf().accounts(text, 0)
    assert (account.number, account.exit_status, account.info.slots) == (4, 3, 6)
    assert account.info.allocated_machines == ("a", "b")
    assert account.info.extensions == {"ru_maxrss": str(int(3.9 * 1024**2))}
    assert (account.info.cpu_time, account.info.wallclock_time) == (timedelta(seconds=12.5), timedelta(seconds=33))
    assert account.info.dispatch_time == datetime(2026, 10, 22, 9, 22, 31).astimezone(UTC)


@pytest.mark.parametrize(
    ("reason", "code", "cause", "status", "signal"),
    [
        ("-", "1", None, 1, None),
        ("-", "255", None, 255, None),
        ("-", "139", None, None, 11),
        ("TERM_UNKNOWN: unknown reason", "134", None, None, 6),
        ("TERM_EXTERNAL_SIGNAL: job killed by a signal external to LSF", "137", None, None, 9),
        ("TERM_OWNER: job killed by owner", "130", "cancelled", None, 2),
        ("TERM_ADMIN: job killed by root or LSF administrator", "143", "cancelled", None, 15),
        ("TERM_RUNLIMIT: job killed after reaching LSF run time limit", "140", "timeout", None, 12),
        ("TERM_CPULIMIT: job killed after reaching LSF CPU usage limit", "152", "timeout", None, 24),
        ("TERM_MEMLIMIT: job killed after reaching LSF memory usage limit", "137", "out_of_memory", None, 9),
        ("TERM_SWAP: job killed after reaching LSF swap usage limit", "137", "out_of_memory", None, 9),
        ("TERM_PREEMPT: job killed after preemption", "137", "preempted", None, 9),
        ("TERM_CWD_NOTEXIST: current working directory is not accessible", "2", "launch_failure", None, None),
        ("TERM_ZOMBIE: job exited while LSF is not available", "-", "node_failure", None, None),
    ],
)
def test_reasons(reason: str, code: str, cause: str | None, status: int | None, signal: int | None) -> None:
    """Why LSF ended a job; a signal of the command is 128 and its number."""
    text = line(stat="EXIT", exit_code=code, exit_reason=reason, exec_host="a", start_time="Oct 22 09:22")
    (account,) = Lsf().accounts(text, 0)
    assert (account.cause, account.exit_status, account.signal) == (cause, status, signal)
    assert account.info.annotation == (None if reason == "-" else reason)


def test_killed_before_it_began() -> None:
    """Without a machine and a time it never ran, so it has neither exit status nor signal."""
    (account,) = Lsf().accounts(line(stat="EXIT", exit_code="130", exit_reason="TERM_OWNER: job killed by owner"), 0)
    assert (account.cause, account.exit_status, account.signal) == ("cancelled", None, None)


@pytest.mark.parametrize(
    ("stat", "state"),
    [
        ("PEND", JobState.QUEUED), ("WAIT", JobState.QUEUED), ("PSUSP", JobState.QUEUED_HELD),
        ("PROV", JobState.RUNNING), ("RUN", JobState.RUNNING), ("UNKWN", JobState.RUNNING),
        ("USUSP", JobState.SUSPENDED), ("SSUSP", JobState.SUSPENDED), ("DONE", JobState.DONE),
        ("EXIT", JobState.FAILED), ("ZOMBI", JobState.FAILED),
    ],
)  # fmt: skip
def test_states(stat: str, state: JobState) -> None:
    """Every STAT; a machine that does not answer says nothing of the job."""
    (seen,) = Lsf().seen(line(stat=stat, job_description="wfl:0123-4/1", pend_reason="waiting; more"))
    assert (seen.id, seen.numbers, seen.key, seen.info.state) == ("7", None, "0123-4/1", state)
    assert seen.info.annotation == "waiting; more"


def test_elements_and_remarks() -> None:
    """An element has its index; lines that are cut, or of LSF itself, are no answer."""
    text = f"Cannot connect to LSF. Please wait ...\n{line(stat='RUN', jobindex='12')}\n{line(stat='RUN')[:20]}\n"
    (seen,) = Lsf().seen(text)
    assert seen.numbers == [range(12, 13)]

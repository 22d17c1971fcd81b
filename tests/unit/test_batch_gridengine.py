"""Grid Engine's language: command lines for templates, and what its recorded answers mean.

The answers in tests/data/batch/gridengine are those of 8.1.9; lines that are not read here are left out of some.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from wfl import InvalidArgumentError, JobInfo, JobState, JobTemplate, UnsupportedAttributeError
from wfl.backend import Action, Known, Submission
from wfl.contexts.batch.engine import BatchBackend
from wfl.contexts.batch.gridengine import GridEngine, GridEngineContext
from wfl.contexts.batch.place import Entry, Wave
from wfl.contexts.batch.scheduler import Job, Seen
from wfl.contexts.ends import Account
from wfl.drmaa2 import WALLCLOCK_TIME
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, InvalidStateError

DATA = Path(__file__).parents[1] / "data" / "batch" / "gridengine"
KEY = "ab12cd34ef-7"
SCHEDULER = GridEngine(parallel_environment="smp")


@pytest.fixture(autouse=True)
def _in_utc() -> Iterator[None]:
    """Grid Engine's times are local ones; the answers were recorded in this zone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def line(template: JobTemplate, scheduler: GridEngine = SCHEDULER, **more: Any) -> list[str]:
    """The options that a template leads to, between those that are always there and the script."""
    waves = more.pop("waves", None)
    entry = Entry(KEY, template, KEY, waves=waves, max_parallel=more.pop("max_parallel", None))
    found = list(scheduler.submit(Job(entry, "/s/script/7", "/s/log/7", **more)))
    assert found[-1] == "/s/script/7"
    return found[:-1]


BEGINNING = ["qsub", "-terse", "-C", "", "-N", f"wfl-{KEY}", "-S", "/bin/sh", "-wd", "/", "-o", ":/s/log/7", "-j", "y"]


def options(template: JobTemplate, scheduler: GridEngine = SCHEDULER, **more: Any) -> list[str]:
    """Without what is the same for all unnamed jobs that are not to be run again."""
    found = line(template, scheduler, **more)
    beginning = [*BEGINNING, "-r", "n"]
    assert found[: len(beginning)] == beginning
    return found[len(beginning) :]


def of(data: str) -> str:
    """A recorded answer."""
    return (DATA / data).read_text()


# --- command lines ---


def test_a_plain_job_has_our_key_as_its_name() -> None:
    """No option is in the script (-C), which the user's text is in; the log's path is not one of another host (`:`)."""
    assert line(JobTemplate(remote_command="true")) == [*BEGINNING, "-r", "n"]


def test_every_field_is_an_option() -> None:
    """All fields that Grid Engine honours, in one line."""
    template = JobTemplate(
        remote_command="true",
        job_name="my job/1",
        rerunnable=True,
        submit_as_hold=True,
        email=("a@b", "c@d"),
        email_on_started=True,
        email_on_terminated=True,
        reservation_id="12",
        queue_name="all.q",
        min_slots=2,
        max_slots=4,
        priority=-5,
        candidate_machines=("n1", "n2*"),
        min_phys_memory=3001,
        machine_os="LINUX",
        machine_arch="X64",
        start_time=datetime(2030, 1, 2, 3, 4, 5, 600000, UTC),
        accounting_id="acc",
        resource_limits={WALLCLOCK_TIME: 90.5},
        extensions={
            "project": "p",
            "dependency": "3,4",
            "gpus": "2",
            "exclude": "n3,n4",
            "exclusive": "true",
            "signal": "USR1@30",
            "resources": "scratch=1G",
            "soft_resources": "fast=true",
            "native": "-js 5 -l 'a=b c'",
        },
    )
    hard = "h_rt=91,s_rt=61,h_vmem=1501K,gpu=2,exclusive=true,hostname=(n1|n2*)&!(n3|n4),arch=lx*-amd64"
    assert line(template, inherit=True) == [
        *["qsub", "-terse", "-C", "", "-N", "my_job_1", "-ac", f"wfl_key=wfl-{KEY}", "-S", "/bin/sh", "-wd", "/"],
        *["-o", ":/s/log/7", "-j", "y", "-r", "y", "-V", "-pe", "smp", "2-4"],
        *["-l", hard, "-l", "scratch=1G", "-soft", "-l", "fast=true", "-hard"],
        *["-q", "all.q", "-A", "acc", "-ar", "12", "-p", "-5", "-M", "a@b,c@d", "-m", "bea", "-P", "p"],
        *["-hold_jid", "3,4", "-h", "-a", "203001020304.06", "-js", "5", "-l", "a=b c"],
    ]


def test_all_fields_are_named_that_have_an_option() -> None:
    """A field that is listed as honoured changes the command line, so that none is ignored."""
    values = {
        "rerunnable": True,
        "email": ("a@b",),
        "email_on_started": True,
        "email_on_terminated": True,
        "reservation_id": "12",
        "queue_name": "q",
        "min_slots": 2,
        "max_slots": 2,
        "priority": 1,
        "candidate_machines": ("n",),
        "min_phys_memory": 5,
        "machine_os": "LINUX",
        "machine_arch": "X64",
        "start_time": datetime(2030, 1, 1, tzinfo=UTC),
        "accounting_id": "a",
    }
    assert set(values) == SCHEDULER.fields
    plain = line(JobTemplate(remote_command="true"))
    for name, value in values.items():
        assert line(JobTemplate(remote_command="true", **{name: value})) != plain, name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("waves", "limit", "more", "expected"),
    [
        ([Wave(range(1, 11))], None, {}, ["-t", "1-10:1"]),
        ([Wave(range(2, 11, 3))], 4, {}, ["-t", "2-8:3", "-tc", "4"]),
        ([Wave(range(5, 6))], None, {}, ["-t", "5-5:1"]),
        ([Wave(range(1, 3)), Wave(range(1, 3), 2)], 1, {"after": "12"}, ["-t", "1-2:1", "-tc", "1", "-hold_jid", "12"]),
    ],
)
def test_arrays_have_step_and_limit(
    waves: list[Wave], limit: int | None, more: dict[str, Any], expected: list[str]
) -> None:
    """Native arrays; a wave waits for the one before it where only so many may run."""
    assert options(JobTemplate(remote_command="true"), waves=waves, max_parallel=limit, **more) == expected


def test_the_second_wave_has_a_key_of_its_own() -> None:
    """A name takes no slash: it is an underscore there, and a slash again in what is read."""
    waves = [Wave(range(1, 3)), Wave(range(1, 3), 2)]
    found = line(JobTemplate(remote_command="true"), waves=waves, part=1)
    assert found[5] == f"wfl-{KEY}_1"
    name = f"<job_info><job_list><JB_name>{found[5]}</JB_name><state>qw</state></job_list></job_info>"
    assert next(iter(SCHEDULER.seen(name))).key == f"{KEY}/1"


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [(1, None, []), (4, None, ["4"]), (4, 4, ["4"]), (2, 8, ["2-8"]), (None, 8, ["1-8"])],
)
def test_slots_are_a_range(least: int | None, most: int | None, expected: list[str]) -> None:
    """In the site's parallel environment; one slot needs none."""
    template = JobTemplate(remote_command="true", min_slots=least, max_slots=most)
    assert options(template) == (["-pe", "smp", *expected] if expected else [])


def test_slots_need_a_parallel_environment() -> None:
    """Without its name several slots are refused, by the field; the template's own goes first."""
    with pytest.raises(UnsupportedAttributeError, match=r"min_slots.*parallel_environment"):
        options(JobTemplate(remote_command="true", min_slots=2), GridEngine())
    with pytest.raises(UnsupportedAttributeError, match=r"max_slots.*parallel_environment"):
        options(JobTemplate(remote_command="true", max_slots=2), GridEngine())
    own = JobTemplate(remote_command="true", extensions={"parallel_environment": "mpi"})
    assert options(own) == ["-pe", "mpi", "1"]


def test_memory_is_asked_as_the_site_counts_it() -> None:
    """Divided among the slots, rounded up, or whole; as the resource that the context names."""
    template = JobTemplate(remote_command="true", min_slots=3, min_phys_memory=1000)
    assert options(template)[3:] == ["-l", "h_vmem=334K"]
    other = GridEngine(parallel_environment="smp", memory_resource="mem_free", memory_per_slot=False)
    assert options(template, other)[3:] == ["-l", "mem_free=1000K"]
    each = JobTemplate(remote_command="true", extensions={"memory_per_cpu": "4G"})
    assert options(each) == ["-l", "h_vmem=4G"]
    with pytest.raises(InvalidArgumentError, match="not both"):
        options(each.replace(min_phys_memory=5))


@pytest.mark.parametrize(
    ("system", "architecture", "expected"),
    [
        ("LINUX", None, "lx*"),
        (None, "ARM64", "*-arm64"),
        (None, "lx-amd64", "lx-amd64"),
        ("LINUX", "lx24-x86", "lx24-x86"),
        ("irix", "X86", "irix*-x86"),
    ],
)
def test_system_and_architecture_are_one(system: str | None, architecture: str | None, expected: str) -> None:
    """DRMAA2's names become patterns; the site's own are taken as they are."""
    template = JobTemplate(remote_command="true", machine_os=system, machine_arch=architecture)
    assert options(template) == ["-l", f"arch={expected}", "-w", "e"]


@pytest.mark.parametrize(
    "fields",
    [
        {"min_phys_memory": 5},
        *({"extensions": {name: value}} for name, value in (("memory_per_cpu", "4G"), ("gpus", "1"))),
        *({"extensions": {name: value}} for name, value in (("resources", "scratch=1"), ("native", "-l scratch=1"))),
    ],
)
def test_only_what_never_changes_is_verified(fields: dict[str, object]) -> None:
    """A kind of machine that there is not is refused at once; not so what only the load of now does not allow."""
    template = JobTemplate(remote_command="true", machine_os="LINUX", **fields)  # type: ignore[arg-type]
    assert "-w" not in options(template)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"priority": 2000}, "priority"),
        *(({"accounting_id": f"a{letter}b"}, "accounting_id") for letter in " /:?@*\\é\n"),
        ({"candidate_machines": ("a,h_rt=1",)}, "machine"),
        ({"machine_arch": "a,b"}, "architecture"),
        ({"extensions": {"signal": "USR1@30"}}, "WALLCLOCK_TIME"),
        ({"extensions": {"signal": "USR1@30"}, "resource_limits": {WALLCLOCK_TIME: 30}}, "WALLCLOCK_TIME"),
        ({"extensions": {"signal": "HUP@30"}, "resource_limits": {WALLCLOCK_TIME: 90}}, "USR1"),
        ({"extensions": {"exclusive": "yes"}}, "exclusive"),
        ({"extensions": {"native": "'"}}, "native"),
    ],
)
def test_what_cannot_be_said_is_refused(fields: dict[str, object], words: str) -> None:
    """By name, before anything is submitted."""
    with pytest.raises((InvalidArgumentError, UnsupportedAttributeError), match=words):
        line(JobTemplate(remote_command="true", **fields))  # type: ignore[arg-type]


def test_a_path_that_qsub_would_read_otherwise_is_refused() -> None:
    """Commas part paths, and $ begins a variable, in the path of a log."""
    for log in ("/a,b/1", "/a$USER/1"):
        with pytest.raises(InvalidArgumentError, match="directory"):
            SCHEDULER.submit(Job(Entry(KEY, JobTemplate(remote_command="true"), KEY), "s", log))


def test_the_context_hands_on_its_settings(tmp_path: Path) -> None:
    """What the site is like is said to the context."""
    context = GridEngineContext(
        directory=tmp_path, parallel_environment="pe", memory_resource="mf", memory_per_slot=False, gpu_resource="g"
    )
    backend = context.backend()
    assert isinstance(backend, BatchBackend)
    template = JobTemplate(remote_command="true", min_slots=2, min_phys_memory=8, extensions={"gpus": "1"})
    assert options(template, backend.scheduler) == ["-pe", "pe", "2", "-l", "mf=8K,g=1"]  # type: ignore[arg-type]


def test_a_preview_shows_command_and_script(tmp_path: Path) -> None:
    """A script never ends with what Grid Engine takes for an order: 99 to run it again, 100 to set it aside."""
    preview = GridEngineContext(directory=tmp_path).preview(JobTemplate(remote_command="true"))
    assert preview[0].command[0] == "qsub"
    assert preview[0].script.startswith("#!/bin/sh -l\n")
    assert preview[0].script.endswith("case $wfl_status in 99|100) exit 1 ;; esac\nexit $wfl_status\n")


# --- answers ---


@pytest.mark.parametrize("said", ["12\n", "12.1-10:1\n", "warning: no suitable queues\n12.2-8:3\n"])
def test_the_id_is_what_terse_says(said: str) -> None:
    """Also behind a warning."""
    assert SCHEDULER.accepted(said) == "12"


def listed() -> dict[tuple[str, str], Seen]:
    """The recorded list, by id and elements."""
    found = {}
    for seen in SCHEDULER.seen(of("jobs.xml")):
        found[seen.id, ",".join(f"{r[0]}-{r[-1]}:{r.step}" for r in seen.numbers or ())] = seen
    return found


def test_the_list_has_all_states() -> None:
    """One entry is a job, an element, or all waiting elements that are alike."""
    states = {key: seen.info.state for key, seen in listed().items()}
    assert states == {
        ("12", "2-2:1"): JobState.RUNNING,
        ("12", "5-5:1"): JobState.RUNNING,
        ("18", ""): JobState.RUNNING,
        ("19", ""): JobState.RUNNING,
        ("20", ""): JobState.RUNNING,
        ("6", ""): JobState.REQUEUED,
        ("7", ""): JobState.QUEUED,
        ("15", ""): JobState.QUEUED,
        ("16", "1-3:1"): JobState.QUEUED,
        ("10", ""): JobState.QUEUED_HELD,
        ("11", "1-1000:1"): JobState.QUEUED_HELD,
        ("12", "8-20:3"): JobState.QUEUED,
        ("13", ""): JobState.QUEUED,
        ("14", ""): JobState.QUEUED,
    }
    assert {key[0] for key, seen in listed().items() if seen.stuck} == {"7", "15", "16"}


def test_the_list_tells_more_of_what_runs() -> None:
    """Machine, queue, slots and times of a running job; for what a job waits."""
    running = listed()["18", ""].info
    assert (running.slots, running.queue_name, running.allocated_machines) == (4, "all.q", ("localhost",))
    assert running.dispatch_time == datetime(2026, 11, 21, 14, 4, 22, tzinfo=UTC)
    waiting = listed()["14", ""].info
    assert waiting.annotation == "it waits for the end of job 11"
    assert waiting.submission_time == datetime(2026, 11, 21, 14, 4, 22, tzinfo=UTC)
    assert waiting.slots is None


@pytest.mark.parametrize(
    ("letters", "state", "stuck"),
    [
        ("qw", JobState.QUEUED, False),
        ("hqw", JobState.QUEUED_HELD, False),
        ("Rq", JobState.REQUEUED, False),
        ("hRwq", JobState.REQUEUED_HELD, False),
        ("Eqw", JobState.QUEUED, True),
        ("EhRqw", JobState.REQUEUED_HELD, True),
        ("dEqw", JobState.QUEUED, False),
        ("t", JobState.RUNNING, False),
        ("r", JobState.RUNNING, False),
        ("hr", JobState.RUNNING, False),
        ("Rr", JobState.RUNNING, False),
        ("dr", JobState.RUNNING, False),
        ("dt", JobState.RUNNING, False),
        ("s", JobState.SUSPENDED, False),
        ("ts", JobState.SUSPENDED, False),
        ("S", JobState.SUSPENDED, False),
        ("tT", JobState.SUSPENDED, False),
        ("Rs", JobState.SUSPENDED, False),
        ("ds", JobState.SUSPENDED, False),
    ],
)
def test_every_state_of_the_manual(letters: str, state: JobState, stuck: bool) -> None:  # noqa: FBT001
    """sge_status(5); what is being deleted is still there."""
    answer = f"<job_info><job_list><JB_job_number>1</JB_job_number><state>{letters}</state></job_list></job_info>"
    (seen,) = SCHEDULER.seen(answer)
    assert (seen.info.state, seen.stuck) == (state, stuck)


def test_scattered_elements_are_read() -> None:
    """After some were deleted, or have run."""
    answer = "<job_info><job_list><state>qw</state><tasks>1-4:1,9,11-19:2</tasks></job_list></job_info>"
    (seen,) = SCHEDULER.seen(answer)
    assert seen.numbers == [range(1, 5), range(9, 10), range(11, 20, 2)]


@pytest.mark.parametrize("cut", [0, 100, 3000, -8])
def test_half_an_answer_is_none(cut: int) -> None:
    """An answer that was cut names no job gone."""
    with pytest.raises(DrmCommunicationError):
        list(SCHEDULER.seen(of("jobs.xml").rstrip()[:cut]))


def test_no_job_is_an_answer() -> None:
    """The list of a user who has none."""
    assert (
        list(SCHEDULER.seen("<?xml version='1.0'?>\n<job_info>\n  <queue_info>\n  </queue_info>\n</job_info>\n")) == []
    )


def test_descriptions_tell_our_keys() -> None:
    """Where the name is the user's own, the key is in the job's context."""
    assert SCHEDULER.keys(of("described.txt")) == {"ab12cd34ef-7/1": "72"}
    assert SCHEDULER.describe(["72", "73"]) == ["qstat", "-j", "72,73"]
    assert SCHEDULER.describe([]) is None


def test_descriptions_tell_why_a_job_could_not_start() -> None:
    """By the job's id, and by the elements'; without the time and the shepherd's number."""
    words = 'can\'t open output file "/no/such/dir/x.log": No such file or directory'
    assert SCHEDULER.reasons(of("stuck.txt")) == dict.fromkeys(["15", "15.1", "16", "16.1", "16.2", "16.3"], words)


def ends() -> dict[tuple[str, int | None], Account]:
    """The recorded ends, by id and element."""
    return {(account.id, account.number): account for account in SCHEDULER.accounts(of("ends.txt"), 0)}


def test_an_exit_status_is_recorded() -> None:
    """With times, machine, queue and usage."""
    account = ends()["8", None]
    assert (account.exit_status, account.signal, account.cause, account.over) == (7, None, None, True)
    info = account.info
    assert info.dispatch_time == info.finish_time == datetime(2026, 11, 21, 14, 4, 22, tzinfo=UTC)
    assert (info.slots, info.queue_name, info.allocated_machines) == (1, "all.q", ("localhost",))
    assert (info.cpu_time, info.wallclock_time) == (timedelta(milliseconds=3), timedelta(0))
    assert info.extensions == {"ru_maxrss": "4445"}
    assert info.annotation is None


def test_a_signal_is_recorded() -> None:
    """What ended by a signal, which qdel's is, too; of an array by the element."""
    assert (ends()["9", None].signal, ends()["9", None].exit_status) == (11, None)
    assert {number: account.signal for (id, number), account in ends().items() if id == "12"} == {2: 9, 5: 9}


def test_a_limit_is_recorded() -> None:
    """With Grid Engine's own words."""
    account = ends()["17", None]
    assert (account.cause, account.signal, account.exit_status) == ("timeout", 9, None)
    assert account.info.annotation == "failed 37: qmaster enforced h_rt, h_cpu, or h_vmem limit"
    assert account.info.extensions == {"ru_maxrss": "4543", "max_vmem_kib": "3303"}


def test_what_waits_again_is_not_over() -> None:
    """A record of a run that was not to be the last; and what never ran has no times."""
    assert not ends()["6", None].over
    never = ends()["15", None]
    assert (never.cause, never.exit_status, never.over) == ("launch_failure", None, True)
    assert never.info.dispatch_time is None
    assert never.info.wallclock_time is None
    assert never.info.annotation == "failed 26: opening input/output file"


def record(**fields: str) -> Account:
    """What is read from one record with these lines."""
    said = {
        "jobnumber": "5",
        "taskid": "undefined",
        "start_time": "Sat Nov 21 14:04:22 2026",
        "slots": "1",
        "exit_status": "0",
        "failed": "0",
        "maxvmem": "0.000B",
        **fields,
    }
    text = "=" * 62 + "\n" + "".join(f"{name:<12} {value:<20}\n" for name, value in said.items())
    (account,) = SCHEDULER.accounts(text, 0)
    return account


CODES = {
    **dict.fromkeys([1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 21, 26, 27, 28, 29, 31, 32, 33, 34, 35, 36, 38], "launch_failure"),
    **dict.fromkeys([0, 12, 13, 14, 15, 16], None),
    **dict.fromkeys([18, 19, 20, 100], "node_failure"),
    37: "timeout",
}


@pytest.mark.parametrize(("failed", "cause"), CODES.items())
def test_every_code_of_the_manual(failed: int, cause: str | None) -> None:
    """sge_status(5): what never ran, what ran and then something else went wrong, and what a machine took with it."""
    account = record(failed=f"{failed:<3} : words")
    assert (account.cause, account.over) == (cause, True)
    assert account.exit_status == (0 if cause is None else None)


@pytest.mark.parametrize("failed", [24, 25, 30])
def test_codes_of_what_runs_again(failed: int) -> None:
    """Migrated, or put back."""
    assert not record(failed=f"{failed} : words").over


def test_memory_is_told_from_time() -> None:
    """Both limits have one code: what the job had asked for, and had, decides. For each slot there is so much."""
    limited = {"failed": "37 : limit", "exit_status": "137 (Killed)", "category": "-l h_rt=5,h_vmem=100M -pe smp 2"}
    assert record(**limited, maxvmem="104.900MB").cause == "out_of_memory"
    assert record(**limited, maxvmem="104.900MB", slots="2").cause == "timeout"
    assert record(**limited, maxvmem="90.000MB").cause == "timeout"
    assert record(**limited, maxvmem="90.000MB").signal == 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sat Nov 21 14:04:22 2026", datetime(2026, 11, 21, 14, 4, 22, tzinfo=UTC)),
        ("2026-11-21T14:04:22", datetime(2026, 11, 21, 14, 4, 22, tzinfo=UTC)),
        ("11/21/2026 14:04:22.250", datetime(2026, 11, 21, 14, 4, 22, 250000, UTC)),
        ("2026-11-21 14:04:22", datetime(2026, 11, 21, 14, 4, 22, tzinfo=UTC)),
        ("1795269862", datetime(2026, 11, 21, 14, 4, 22, tzinfo=UTC)),
        ("1795269862250", datetime(2026, 11, 21, 14, 4, 22, 250000, UTC)),
        ("-/-", None),
        ("0", None),
        ("in the evening", None),
    ],
)
def test_times_in_all_forms(text: str, expected: datetime | None) -> None:
    """Versions differ; what cannot be read is not known, and no error."""
    assert record(start_time=text).info.dispatch_time == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3s", 3), ("0.250s", 0.25), ("62", 62), ("00:01:02", 62), ("1.500e+01", 15), ("", 0), ("-", 0)],
)
def test_durations_in_all_forms(text: str, seconds: float) -> None:
    """With a unit, without, or by the clock."""
    assert record(ru_wallclock=text).info.wallclock_time == timedelta(seconds=seconds)


def test_a_record_that_was_cut_is_none() -> None:
    """It is asked for again."""
    whole = of("ends.txt")
    cut = whole[: whole.rindex("maxvmem")]
    assert len(list(SCHEDULER.accounts(cut, 0))) == len(list(SCHEDULER.accounts(whole, 0))) - 1
    assert list(SCHEDULER.accounts("", 0)) == []


def test_few_are_looked_up_one_by_one_and_many_at_once() -> None:
    """Qacct takes no list, and each question reads all of the site's records: many are had by time."""
    since = datetime(2026, 11, 21, 14, 4, 22, tzinfo=UTC)
    assert SCHEDULER.records(["5", "6"], "ann", 0, since) == [["qacct", "-j", "5"], ["qacct", "-j", "6"]]
    many = SCHEDULER.records([str(id) for id in range(200)], "ann", 0, since)
    assert many == [["qacct", "-o", "ann", "-b", "202611211259.22", "-j"]]


# --- control, limits ---


@pytest.mark.parametrize(
    ("action", "verb"),
    [
        (Action.SUSPEND, ["qmod", "-sj"]),
        (Action.RESUME, ["qmod", "-usj"]),
        (Action.HOLD, ["qhold"]),
        (Action.RELEASE, ["qrls"]),
        (Action.TERMINATE, ["qdel"]),
        (Action.KILL, ["qdel"]),
    ],
)
def test_control_is_one_command(action: Action, verb: list[str]) -> None:
    """For whole jobs and arrays and for elements, neighbours in one word."""
    ids = ["7", SCHEDULER.element("12", 3), "12.1", "12.2", "12.9", "13.4"]
    assert SCHEDULER.control(ids, action) == [[*verb, "7", "12.1-3", "12.9", "13.4"]]


def test_what_qmod_could_not_do_is_no_success() -> None:
    """It ends with 0 all the same."""
    words = "Modify operation can not be applied on job-array task 31.1 in pending/hold state"
    assert SCHEDULER.undone(f"{words}\n") == words
    assert SCHEDULER.unknown(words)
    assert SCHEDULER.undone("root - suspended job 18\n") is None


def test_the_length_of_arrays_is_the_sites() -> None:
    """0 is no limit, as is a configuration without it."""
    assert SCHEDULER.most("max_aj_instances             2000\nmax_aj_tasks                 75000\n") == 75000
    assert SCHEDULER.most("max_aj_tasks                 0\n") is None
    assert SCHEDULER.most("max_u_jobs 0\n") is None


# --- with the engine ---

EMPTY = "<job_info>\n</job_info>\n"


class Site:
    """Grid Engine as its commands tell of it: the answers are given, what was run is kept."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        backend = GridEngineContext(directory=tmp_path).backend()
        assert isinstance(backend, BatchBackend)
        self.backend = backend
        self.told: list[JobInfo] = []
        self.backend.open(self.told.extend, None)
        self.answers: dict[str, str | Exception] = {"qsub": "15\n", "qstat -u": EMPTY, "qconf": ""}
        self.ran: list[list[str]] = []
        monkeypatch.setattr(backend.client.commands, "run", self.run)

    def run(self, argv: Sequence[str], *_: object, despite: Callable[[str], bool] | None = None, **__: object) -> str:
        """What the command prints; nothing where none is given."""
        self.ran.append(list(argv))
        answer = self.answers.get(" ".join(argv[:2]), self.answers.get(argv[0], ""))
        if isinstance(answer, Exception):
            if despite is not None and despite(str(answer)):
                return ""
            raise answer
        return answer

    def submit(self) -> None:
        """A job whose id is that of the answer."""
        outcome = self.backend.submit([Submission(KEY, JobTemplate(remote_command="true"), KEY)])
        assert outcome == ["15"]

    def ask(self) -> list[JobInfo]:
        """What is told of it, as if the last question were long ago."""
        self.backend._asked = -1000.0  # noqa: SLF001 - time that passes
        return list(self.backend.ask(["15"]).infos)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """One with a job."""
    made = Site(tmp_path, monkeypatch)
    made.submit()
    return made


def test_a_job_in_an_error_state_fails_and_is_deleted(site: Site) -> None:
    """It would stay in the queue for ever; the reason is Grid Engine's."""
    site.answers |= {"qstat -u": of("jobs.xml"), "qstat -j": of("stuck.txt")}
    (info,) = site.ask()
    assert (info.state, info.sub_state) == (JobState.FAILED, "launch_failure")
    assert "can't open output file" in str(info.annotation)
    assert site.ran[-1] == ["qdel", "15"]


def test_a_job_that_was_ended_before_it_began_is_cancelled(site: Site) -> None:
    """Grid Engine keeps no record of it."""
    site.answers["qacct"] = DeniedByDrmsError("gridengine: qacct: error: job id 15 not found")
    assert site.ask() == []
    assert site.backend.control(["15"], Action.TERMINATE) == {}
    (info,) = site.ask()
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "cancelled", None)


def test_no_record_yet_is_not_no_records(site: Site) -> None:
    """That qacct does not know a job is no reason to ask it never again."""
    site.answers["qacct"] = DeniedByDrmsError("gridengine: qacct: error: job id 15 not found")
    assert site.ask() == []
    site.answers["qacct"] = of("ends.txt")
    (info,) = site.ask()
    assert info.state is JobState.DONE
    (whole,) = site.backend.collect(["15"])
    assert (whole.state, whole.sub_state) == (JobState.FAILED, "launch_failure")


def test_suspending_what_waits_is_an_error(site: Site) -> None:
    """Though qmod calls it no failure."""
    words = "Modify operation can not be applied on job-array task 15.1 in pending/hold state"
    site.answers["qmod"] = words
    failures = site.backend.control(["15"], Action.SUSPEND)
    assert isinstance(failures["15"], InvalidStateError)
    assert words in str(failures["15"])


def test_the_next_word_waits_for_a_signal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grid Engine loses one that comes too soon after it: to resume what was just suspended, or to kill."""
    monkeypatch.setattr(GridEngine, "rest", 0.2)
    site.answers["qmod"] = "root - suspended job 15\n"
    times = []
    for action in (Action.HOLD, Action.SUSPEND, Action.RESUME, Action.TERMINATE, Action.KILL):
        assert site.backend.control(["15"], action) == {}
        times.append(time.monotonic())
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert [gap >= 0.2 for gap in gaps] == [False, True, True, False]


def test_closing_waits_for_a_signal(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no suspended job stays that was killed in the same moment."""
    (tmp_path / "qdel").write_text("#!/bin/sh\n")
    (tmp_path / "qdel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(GridEngine, "rest", 0.2)
    site.answers["qmod"] = "root - suspended job 15\n"
    assert site.backend.control(["15"], Action.SUSPEND) == {}
    before = time.monotonic()
    site.backend.close(end=True)
    assert time.monotonic() - before >= 0.2


def test_an_id_that_is_not_known_yet_is_not_asked_about(site: Site) -> None:
    """A job of an earlier program is looked for by its key at the same time."""
    site.answers["qacct"] = DeniedByDrmsError("gridengine: qacct: error: job id 15 not found")
    assert site.backend.ask(["15", "ab12cd34ef-9"]).gone == []


def test_a_submission_without_answer_is_found_by_name_or_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is the user's own: what the jobs without our key in their name have in their context decides."""
    site = Site(tmp_path, monkeypatch)
    site.answers["qsub"] = DrmCommunicationError("no answer")
    template = JobTemplate(remote_command="true", job_name="mine")
    with pytest.raises(DrmCommunicationError):
        site.backend.submit([Submission(KEY, template, KEY)])
    entry = "<job_list><JB_job_number>72</JB_job_number><state>qw</state><JB_name>mine</JB_name></job_list>"
    site.answers |= {
        "qstat -u": f"<job_info>{entry}</job_info>",
        "qstat -j": of("described.txt").replace(f"wfl-{KEY}_1", f"wfl-{KEY}"),
    }
    (info,) = site.backend.find([Known(KEY, None, template)]).infos
    assert (info.id, info.state, info.extensions["key"]) == ("72", JobState.QUEUED, KEY)

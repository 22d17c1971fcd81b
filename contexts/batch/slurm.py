"""Slurm, by sbatch, squeue, sacct, scontrol and scancel."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from msgspec import structs

from wfl.backend import Action
from wfl.contexts.batch.context import BatchContext
from wfl.contexts.batch.quantities import fixed_slots, host_list, in_seconds, later, ranges, time_limit
from wfl.contexts.batch.scheduler import Scheduler, Seen, extension, flag, job_name, native
from wfl.contexts.ends import Account
from wfl.drmaa2 import Capability, FrozenDict, JobInfo, JobState, SubState, fact
from wfl.errors import DrmCommunicationError, InvalidArgumentError, UnsupportedAttributeError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from wfl.contexts.batch.scheduler import Command, Job
    from wfl.drmaa2 import JobTemplate

_STATES = {
    "PENDING": JobState.QUEUED,
    "REQUEUED": JobState.REQUEUED,
    "REQUEUE_FED": JobState.REQUEUED,
    "REQUEUE_HOLD": JobState.REQUEUED_HELD,
    "SPECIAL_EXIT": JobState.REQUEUED_HELD,
    "RESV_DEL_HOLD": JobState.QUEUED_HELD,
    "CONFIGURING": JobState.RUNNING,
    "RUNNING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "STOPPED": JobState.SUSPENDED,
    "SUSPENDED": JobState.SUSPENDED,
    "COMPLETED": JobState.DONE,
}
"""What is not listed has ended, and not well (squeue(1), "Job State Codes")."""
_CAUSES: dict[str, SubState] = {
    "BOOT_FAIL": "node_failure",
    "CANCELLED": "cancelled",
    "DEADLINE": "timeout",
    "NODE_FAIL": "node_failure",
    "OUT_OF_MEMORY": "out_of_memory",
    "PREEMPTED": "preempted",
    "TIMEOUT": "timeout",
}
_NO_SIGNAL = 32
"""From here on what an ExitCode shows as a signal is what is left of an error number of Slurm's own, such as 0:53 for a
script whose log could not be opened."""
_HELD = ("JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue")
_FEW = 3
"""Jobs that are asked about one by one."""
_QUIET = {"None", "NonZeroExitCode", "Priority", "Resources", ""}
"""Reasons that go without saying."""
_LIST = "%i|%T|%V|%S|%C|%P|%N|%k|%r"
_RECORD = (
    "JobID,JobIDRaw,State,ExitCode,Submit,Start,End,ElapsedRaw,TotalCPU,MaxRSS,AllocCPUS,Partition,NodeList,Reason"
)
_NUMBER = re.compile(r"\b(?:Array)?JobId=(\d+)")
_KEY = re.compile(r"wfl:([^|\s]+)")
_EXPLAINED: tuple[tuple[str, SubState], ...] = (
    (r"StepId={}\.\S+ exceeded memory limit", "out_of_memory"),
    (r"oom.kill events?(?:\(s\))? in (?:StepId=)?{}\.", "out_of_memory"),
    (r"JOB {} ON .* DUE TO TIME LIMIT", "timeout"),
    (r"JOB {} ON .* DUE TO PREEMPTION", "preempted"),
    (r"JOB {} ON .* DUE TO NODE FAILURE", "node_failure"),
    (r"JOB {} ON .* CANCELLED AT", "cancelled"),
)
"""What slurmstepd writes into a job's log; an array's element has a number of its own there."""
_SIGNAL = re.compile(r"(?:B:)?(?:SIG)?([A-Z][A-Z0-9]+)@(\d+)\Z")
_OWNED = (
    "-a* --array --chdir -D* --clusters -M* --comment --error -e* --export --export-file -i* --input --open-mode"
    " --output -o* --parsable --test-only --usage -V --version --wait -W --wrap"
)
"""Options that are not the user's to give."""
_EXTENSIONS = {
    "constraint": "--constraint",
    "exclude": "--exclude",
    "gpus": "--gpus",
    "licenses": "--licenses",
    "memory_per_cpu": "--mem-per-cpu",
    "nodes": "--nodes",
    "qos": "--qos",
    "tasks": "--ntasks",
    "tasks_per_node": "--ntasks-per-node",
}


class Slurm(Scheduler):
    """Slurm 20.02 and later."""

    name = "slurm"
    fields = frozenset(
        {
            "rerunnable", "email", "email_on_started", "email_on_terminated", "reservation_id", "queue_name",
            "min_slots", "max_slots", "priority", "candidate_machines", "min_phys_memory", "start_time",
            "accounting_id",
        }
    )  # fmt: skip
    extensions = frozenset({*_EXTENSIONS, "dependency", "exclusive", "signal"})
    capabilities = frozenset(
        {
            Capability.START_TIME, Capability.MAX_PARALLEL, Capability.BULK_JOBS_MAXPARALLEL, Capability.JT_EMAIL,
            Capability.JT_ACCOUNTINGID, Capability.ADVANCE_RESERVATION, Capability.PEAK_MEMORY,
        }
    )  # fmt: skip
    # Times are seconds since 1970, lists of elements are not cut short, and what a user has set up for his own eyes
    # changes no answer.
    answers = {"LC_ALL": "C", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"} | dict.fromkeys(
        (
            "SQUEUE_ACCOUNT", "SQUEUE_ARRAY", "SQUEUE_NAMES", "SQUEUE_PARTITION", "SQUEUE_QOS", "SQUEUE_SORT",
            "SQUEUE_STATES", "SQUEUE_USERS", "SQUEUE_LICENSES", "SACCT_FORMAT", "SACCT_FEDERATION", "SCANCEL_ACCOUNT",
            "SCANCEL_BATCH", "SCANCEL_FULL", "SCANCEL_HURRY", "SCANCEL_INTERACTIVE", "SCANCEL_NAME",
            "SCANCEL_PARTITION", "SCANCEL_QOS", "SCANCEL_STATE", "SCANCEL_USER", "SCANCEL_WCKEY", "SLURM_CLUSTERS",
        ),
        "",
    )  # fmt: skip
    id = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}"
    number = "SLURM_ARRAY_TASK_ID"
    # All of the command's environment goes to the job: it has to be next to none. (With --export=NIL or NONE each job
    # begins with a login of its own on its node, which takes a third of a second and more.)
    passed = ("SLURM_CONF", "SBATCH_")
    unwanted = frozenset({"SBATCH_ARRAY_INX", "SBATCH_CLUSTERS", "SBATCH_WAIT", "SLURM_CLUSTERS"})
    leads = "SLURM_CONF"  # it is tried again for a minute
    lowest = 0
    # With proctrack/cgroup no signal but SIGKILL reaches what is not slurmstepd's own child.
    alone = "*:freezer:/slurm* | 0::*slurm*"
    rungs = 2
    fading = 1
    down_words = (
        "unable to contact", "timed out", "connection refused", "communication", "zero bytes", "connection reset",
        "temporarily unavailable", "not responding", "database is down", "problem talking", "connect failure",
        "unable to connect", "broken pipe", "protocol authentication", "backup controller",
    )  # fmt: skip
    """Of the controller, the database, or munge."""
    none_words = ("disabled",)
    """`Slurm accounting storage is disabled`."""
    partly_words = ("invalid job id specified",)
    over_words = (
        "invalid job id", "already complet", "no longer pending", "job has finished", "not running",
        "no longer running", "job is pending execution", "job is not suspended",
    )  # fmt: skip
    """Also of what is in another state than it would have to be."""

    def submit(self, job: Job) -> Command:
        """`sbatch`; the script sees to directory, environment and streams."""
        template = job.template
        return [
            "sbatch",
            "--parsable",
            f"--job-name={job_name(template, job.entry.key)}",
            f"--comment=wfl:{job.key}",
            f"--output={_log(job.log)}",
            "--open-mode=append",
            "--chdir=/",
            "--export=ALL",
            "--requeue" if template.rerunnable else "--no-requeue",
            *_array(job),
            *_dependencies(job),
            *_resources(template),
            *_wishes(template),
            *native(template, _OWNED),
            job.script,
        ]

    def passed_on(self, template: JobTemplate) -> str | None:
        """Without "B:" Slurm sends it to steps alone (sbatch(1), --signal), which only srun makes."""
        warning = _warning(template)
        return warning[0] if warning else None

    def accepted(self, output: str) -> str:
        """`ID` or `ID;CLUSTER`."""
        found = re.search(r"^(\d+)(?:;\S*)?\s*\Z", output, re.MULTILINE)
        if found is None:  # it may have been accepted all the same: it is found by its key
            raise DrmCommunicationError(f"slurm: sbatch did not tell an id: {output.strip()[-200:]!r}")
        return found[1]

    def query(self, user: str) -> Command:
        """One question for all, with what has ended in the last minutes."""
        return ["squeue", "--noheader", "--states=all", f"--user={user}", f"--format={_LIST}"]

    def seen(self, output: str) -> Iterator[Seen]:
        """A line is a job, an element, or all waiting elements of an array: `12_[3-9:2,20%4]`."""
        lines = [line.split("|", _LIST.count("|") - 1) for line in output.splitlines()]
        whole = _LIST.count("|")
        if lines and len(lines[-1]) < whole:  # nor can it be said what else is missing
            raise DrmCommunicationError("slurm: the answer of squeue is not whole")
        for parts in lines:
            if len(parts) == whole:  # else it is somebody's remark
                yield _seen(*parts)

    def accounting(self, ids: Sequence[str], user: str, rung: int) -> Sequence[Command]:
        """From slurmdbd; where there is none, from the controller, which remembers for some minutes (MinJobAge)."""
        del user
        if rung:  # which takes one id, or tells of everybody's jobs
            show = ["scontrol", "--local", "--oneliner", "show", "job"]  # else it asks about a federation, too
            return [[*show, id] for id in ids] if len(ids) <= _FEW else [show]
        return [["sacct", "--noheader", "--parsable2", "--noconvert", f"--jobs={','.join(ids)}", f"--format={_RECORD}"]]

    def accounts(self, output: str, rung: int, ids: Collection[str] = ()) -> Iterable[Account]:
        """The job's line, with the memory that its steps have on theirs."""
        return _from_controller(output, ids) if rung else _from_database(output)

    def control(self, ids: Sequence[str], action: Action) -> Sequence[Command]:
        """`scancel` asks with SIGTERM, and kills after the site's KillWait.

        To send SIGKILL instead reaches the batch shell alone, and where processes are not tracked by cgroups its
        children live on.
        """
        if action in (Action.TERMINATE, Action.KILL):
            return [["scancel", *ids]]
        verb = {Action.SUSPEND: "suspend", Action.RESUME: "resume", Action.HOLD: "hold", Action.RELEASE: "release"}
        return [["scontrol", verb[action], ",".join(ids)]]

    def explained(self, words: str, called: str) -> tuple[SubState, str] | None:
        """With OverMemoryKill, and when slurmctld has forgotten the job, it is known from nowhere else."""
        for pattern, cause in _EXPLAINED:
            found = re.search(f".*{pattern.format(re.escape(called))}.*", words)
            if found:
                return cause, found[0]
        return None

    def limits(self) -> Command:
        """The configuration has MaxArraySize."""
        return ["scontrol", "show", "config"]

    def most(self, output: str) -> int | None:
        """One less than MaxArraySize (slurm.conf(5))."""
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", output, re.MULTILINE)
        return int(found[1]) - 1 if found else None


def _log(path: str) -> str:
    """Slurm replaces what follows a % in this path, and has a meaning of its own for backslashes (sbatch(1))."""
    if "\\" in path:
        raise InvalidArgumentError(f"slurm takes no backslash in a path of a log: {path!r}; give another directory")
    return path.replace("%", "%%")


def _array(job: Job) -> list[str]:
    if job.wave is None:
        return []
    numbers = job.wave.numbers
    text = f"{numbers[0]}-{numbers[-1]}" + (f":{numbers.step}" if numbers.step != 1 and len(numbers) > 1 else "")
    limit = f"%{job.entry.max_parallel}" if job.entry.max_parallel else ""
    return [f"--array={text}{limit}"]


def _dependencies(job: Job) -> list[str]:
    """One option: of two, sbatch knows only the last."""
    wished = extension(job.template, "dependency")
    if job.after and wished and "?" in wished:
        words = "slurm: an array in parts cannot wait for one of several: give a dependency without '?'"
        raise UnsupportedAttributeError(words)
    given = [*([f"afterany:{job.after}"] if job.after else []), *([wished] if wished else [])]
    if not given:
        return []
    # With a wish it would wait for ever for what cannot happen any more.
    return [f"--dependency={','.join(given)}", *(["--kill-on-invalid-dep=yes"] if wished else [])]


def _resources(template: JobTemplate) -> list[str]:
    found = []
    slots, limit = fixed_slots(template, "slurm"), time_limit(template)
    if slots:
        found += [f"--cpus-per-task={slots}"]
    if template.min_phys_memory:
        found += [f"--mem={template.min_phys_memory}K"]
    if limit is not None:  # Slurm counts minutes; to the second it is the session that ends it
        found += [f"--time={max(1, math.ceil(limit / 60))}"]
    if template.candidate_machines:
        if len(template.candidate_machines) > 1:
            words = (
                "slurm's --nodelist means all of them: give one candidate_machines, or extensions constraint, exclude"
            )
            raise UnsupportedAttributeError(words)
        found += [f"--nodelist={template.candidate_machines[0]}"]
    given = {option: extension(template, name) for name, option in _EXTENSIONS.items()}
    found += [f"{option}={value}" for option, value in given.items() if value is not None]
    warning = _warning(template)
    if warning:
        found += [f"--signal=B:{warning[0]}@{warning[1]}"]
    if flag(template, "exclusive"):
        found += ["--exclusive"]
    return found


def _warning(template: JobTemplate) -> tuple[str, str] | None:
    """A signal, and how many seconds before the limit of time it is wanted."""
    text = extension(template, "signal")
    if text is None:
        return None
    found = _SIGNAL.match(text)
    if found is None or found[1] in ("KILL", "STOP"):
        raise InvalidArgumentError(f"extensions: signal is {text!r}, expected the like of 'USR1@60'")
    return found[1], found[2]


def _wishes(template: JobTemplate) -> list[str]:
    found = []
    for option, value in (
        ("--partition", template.queue_name),
        ("--account", template.accounting_id),
        ("--reservation", template.reservation_id),
        ("--nice", -template.priority if template.priority else None),
        ("--mail-user", ",".join(template.email or ())),
    ):
        if value:
            found += [f"{option}={value}"]
    mails = [
        *(["BEGIN"] if template.email_on_started else []),
        *(["END", "FAIL"] if template.email_on_terminated else []),
    ]
    if mails:
        found += [f"--mail-type={','.join(mails)}"]
    if template.submit_as_hold:
        found += ["--hold"]
    if template.start_time:
        found += [f"--begin={later(template.start_time, seconds=1):%Y-%m-%dT%H:%M:%S}"]
    return found


def _seen(  # noqa: PLR0917 - the columns
    id: str, name: str, submitted: str, start: str, cpus: str, queue: str, nodes: str, rest: str
) -> Seen:
    comment, _, reason = rest.rpartition("|")
    state = _STATES.get(name, JobState.FAILED)
    if state is JobState.QUEUED and (reason in _HELD or "held" in reason.lower()):
        state = JobState.REQUEUED_HELD if "requeued" in reason else JobState.QUEUED_HELD
    base, _, numbers = id.partition("_")
    key = _KEY.search(comment)
    begun = state.started
    info = fact(
        state=state,
        submission_time=_time(submitted),
        dispatch_time=_time(start) if begun else None,
        queue_name=queue or None,
        slots=int(cpus) if cpus.isdigit() and begun else None,
        allocated_machines=_machines(nodes) if begun else (),
        annotation=_words(name, reason, state),
    )
    return Seen(base, ranges(numbers), info, key[1] if key else None, _CAUSES.get(name) if state.ended else None)


def _words(name: str, reason: str, state: JobState) -> str | None:
    """Why a job waits; why it ended, as its record has it, which sometimes says less."""
    if reason in _QUIET or (state.started and not state.ended):
        return None
    return f"{name}: {reason}" if state.ended else reason


def _from_database(output: str) -> Iterator[Account]:
    jobs: dict[str, list[str]] = {}
    memory: dict[str, int] = {}
    lines = [line.split("|", _RECORD.count(",")) for line in output.splitlines()]
    if lines and len(lines[-1]) <= _RECORD.count(","):
        raise DrmCommunicationError("slurm: the answer of sacct is not whole")
    for parts in lines:
        if len(parts) <= _RECORD.count(","):  # somebody's remark
            continue
        id, _, step = parts[0].partition(".")
        if not step:
            jobs[id] = parts
        if parts[9]:
            memory[id] = max(memory.get(id, 0), _kib(parts[9]))
    for id, parts in jobs.items():
        base, _, number = id.partition("_")
        _, called, state, code, submitted, start, end, elapsed, cpu, _, cpus, queue, nodes, reason = parts
        info = fact(
            submission_time=_time(submitted),
            dispatch_time=_time(start),
            finish_time=_time(end),
            wallclock_time=timedelta(seconds=int(elapsed)) if elapsed.isdigit() else None,
            cpu_time=_duration(cpu),
            slots=int(cpus) if cpus.isdigit() else None,
            queue_name=queue or None,
            allocated_machines=_machines(nodes),
            extensions=FrozenDict({"ru_maxrss": str(memory[id])} if memory.get(id) else {}),
        )
        for one in _each(number):
            yield structs.replace(_account(base, one, state, code, reason, info), called=called)


def _from_controller(output: str, ids: Collection[str]) -> Iterator[Account]:
    for line in output.splitlines():
        if ids and not any(id in ids for id in _NUMBER.findall(line)):
            continue
        said = dict(re.findall(r"(\w+)=(\S*)", line))
        if not {"JobId", "JobState", "ExitCode", "NodeList"} <= said.keys():  # a line that was cut tells no end
            continue
        numbers = said.get("ArrayTaskId", "")
        info = fact(
            submission_time=_time(said.get("SubmitTime", "")),
            dispatch_time=_time(said.get("StartTime", "")),
            finish_time=_time(said.get("EndTime", "")),
            slots=int(said["NumCPUs"]) if said.get("NumCPUs", "").isdigit() else None,
            queue_name=said.get("Partition") or None,
            allocated_machines=_machines(said.get("NodeList", "")),
        )
        id = str(said.get("ArrayJobId", said["JobId"]) if numbers else said["JobId"])
        for one in _each(numbers):
            account = _account(
                id, one, said.get("JobState", ""), said.get("ExitCode", ""), said.get("Reason", ""), info
            )
            yield structs.replace(account, called=said["JobId"])


def _each(numbers: str) -> list[str]:
    """An element's number by itself; all that were ended while they waited are one record."""
    return [numbers] if not numbers or numbers.isdigit() else [str(n) for some in ranges(numbers) or () for n in some]


def _account(id: str, number: str, state: str, code: str, reason: str, info: JobInfo) -> Account:  # noqa: PLR0917
    name = state.partition(" ")[0]
    status, _, signal = code.partition(":")
    by = int(signal or 0)
    words = state if reason in _QUIET else f"{state}: {reason}"
    cause: SubState | None = _CAUSES.get(name)
    if reason == "JobLaunchFailure" and name == "FAILED":  # with OverMemoryKill that is what Slurm calls it
        cause = "launch_failure" if not by else None
    if by >= _NO_SIGNAL and name == "FAILED":
        cause, by = "launch_failure", 0
        words = f"slurm could not start it (ExitCode {code}): do its machines share the context's directory?"
    never_ran = info.dispatch_time is None or not info.allocated_machines
    if never_ran:  # what it calls the start is when it was cancelled
        info = info.replace(dispatch_time=None)
    over = _STATES.get(name, JobState.FAILED).ended
    plain = cause is None and name in ("COMPLETED", "FAILED") and reason in _QUIET
    return Account(
        id,
        int(number) if number else None,
        exit_status=None if never_ran or cause else int(status or 0),
        signal=by or None,
        cause=cause,
        info=info.replace(annotation=None if plain or not over else words),
        over=over,
    )


def _time(text: str) -> datetime | None:
    return datetime.fromtimestamp(int(text), UTC) if text.isdigit() and int(text) else None


def _duration(text: str) -> timedelta | None:
    """`[DD-[HH:]]MM:SS[.mmm]`."""
    if not text:
        return None
    days, _, rest = text.rpartition("-")
    return timedelta(days=int(days or 0), seconds=in_seconds(rest))


def _kib(text: str) -> int:
    """`1234`, bytes, or with a letter behind."""
    units = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}
    if text[-1:] in units:
        return int(float(text[:-1]) * units[text[-1]])
    return int(float(text)) // 1024


def _machines(text: str) -> tuple[str, ...]:
    return () if text.startswith(("None", "(null)", "Unknown")) else host_list(text)


class SlurmContext(BatchContext):
    """Run each job through Slurm's commands, on a machine that can submit jobs.

    Besides the settings of every context of a cluster (see `BatchContext`), extensions of a template: nodes, tasks,
    tasks_per_node, gpus, memory_per_cpu, qos, constraint, exclude, exclusive, licenses, dependency, signal (such as
    "USR1@60": a signal so many seconds before the limit of time), inherit_environment, and native: options as sbatch
    takes them.
    """

    name = "slurm"

    def scheduler(self) -> Scheduler:
        """Slurm's language."""
        return Slurm()

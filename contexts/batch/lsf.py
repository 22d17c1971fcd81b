"""IBM Spectrum LSF, by bsub, bjobs, bkill, bstop, bresume and bparams."""

from __future__ import annotations

import math
import re
import shlex
from datetime import timedelta
from typing import TYPE_CHECKING

from wfl.backend import Action
from wfl.contexts.batch.context import BatchContext
from wfl.contexts.batch.quantities import divided, english_time, fixed_slots, later, time_limit
from wfl.contexts.batch.scheduler import Scheduler, Seen, extension, flag, job_name, native
from wfl.contexts.batch.script import TRAPPED
from wfl.contexts.ends import Account
from wfl.drmaa2 import Capability, FrozenDict, JobState, SubState, fact
from wfl.errors import DrmCommunicationError, UnsupportedAttributeError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from wfl.contexts.batch.scheduler import Command, Job
    from wfl.drmaa2 import JobTemplate

_OWNED = "-e -eo -env -I -Ip -Is -IS -ISp -ISs -i -is -J -Jd -K -o -oo -pack"
"""Options that are not the user's to give."""
_STATES = {
    "PEND": JobState.QUEUED,
    "WAIT": JobState.QUEUED,
    "PSUSP": JobState.QUEUED_HELD,
    "PROV": JobState.RUNNING,
    "RUN": JobState.RUNNING,
    "UNKWN": JobState.RUNNING,
    "USUSP": JobState.SUSPENDED,
    "SSUSP": JobState.SUSPENDED,
    "DONE": JobState.DONE,
    "EXIT": JobState.FAILED,
    "ZOMBI": JobState.FAILED,
}
"""bjobs(1), STAT. UNKWN: the machine does not answer, which says nothing of the job."""
_CAUSES: dict[str, SubState] = {
    "TERM_ADMIN": "cancelled",
    "TERM_BUCKET_KILL": "cancelled",
    "TERM_CHKPNT": "cancelled",
    "TERM_CPULIMIT": "timeout",
    "TERM_CWD_NOTEXIST": "launch_failure",
    "TERM_DEADLINE": "timeout",
    "TERM_FORCE_ADMIN": "cancelled",
    "TERM_FORCE_OWNER": "cancelled",
    "TERM_LOAD": "preempted",
    "TERM_MEMLIMIT": "out_of_memory",
    "TERM_ORPHAN_SYSTEM": "cancelled",
    "TERM_OWNER": "cancelled",
    "TERM_PREEMPT": "preempted",
    "TERM_PRE_EXEC_FAIL": "launch_failure",
    "TERM_REMOVE_HUNG_JOB": "node_failure",
    "TERM_REQUEUE_ADMIN": "cancelled",
    "TERM_REQUEUE_OWNER": "cancelled",
    "TERM_RMS": "node_failure",
    "TERM_RUNLIMIT": "timeout",
    "TERM_SWAP": "out_of_memory",
    "TERM_WINDOW": "timeout",
    "TERM_ZOMBIE": "node_failure",
}
"""bacct(1), termination reasons. TERM_EXTERNAL_SIGNAL, TERM_PROCESSLIMIT and TERM_UNKNOWN leave it at the signal."""
_FIELDS = (
    "jobid", "jobindex", "stat", "exit_code", "queue", "slots", "exec_host", "submit_time", "start_time",
    "finish_time", "cpu_used", "run_time", "max_mem", "job_description", "exit_reason", "pend_reason",
)  # fmt: skip
_FORMAT = f"{' '.join(_FIELDS)} delimiter='|'"
_KEY = re.compile(r"wfl:([^|\s]+)")
_SIGNALS = range(129, 193)
"""Exit statuses that tell a signal, which is 128 less."""
_DEFAULT_ARRAY = 1000
"""MAX_JOB_ARRAY_SIZE where lsb.params does not say (lsb.params(5))."""


class Lsf(Scheduler):
    """LSF 10.1."""

    name = "lsf"
    late = True
    fields = frozenset(
        {
            "rerunnable", "email", "email_on_started", "email_on_terminated", "reservation_id", "queue_name",
            "min_slots", "max_slots", "priority", "candidate_machines", "min_phys_memory", "start_time",
            "accounting_id",
        }
    )  # fmt: skip
    extensions = frozenset({"dependency", "exclusive", "gpus", "nodes", "tasks_per_node"})
    capabilities = frozenset(
        {
            Capability.START_TIME, Capability.MAX_PARALLEL, Capability.BULK_JOBS_MAXPARALLEL, Capability.JT_EMAIL,
            Capability.JT_ACCOUNTINGID, Capability.JT_MAXSLOTS, Capability.ADVANCE_RESERVATION, Capability.PEAK_MEMORY,
        }
    )  # fmt: skip
    id = "$LSB_JOBID"
    number = "LSB_JOBINDEX"
    down_words = (
        "lsf is down", "cannot connect to lsf", "communication time out", "connection refused", "daemon not responding",
        "failed in an lsf library call", "concurrent query limit", "connection reset",
        "cannot open your job file", "lim is down", "lim is not responding", "no response", "timed out", "mbatchd",
        "please wait",
    )  # fmt: skip
    over_words = ("is not found", "already finished", "no matching job", "has not started", "is not in")
    partly_words = ("is not found", "no unfinished job found", "no matching job found", "no job found")

    def submit(self, job: Job) -> Command:
        """`bsub`, whose last words go to a shell, which has to outlive the script's: signals reach both."""
        template = job.template
        return [
            "bsub",
            "-J", f"{job_name(template, job.entry.key)}{_array(job)}",
            "-Jd", f"wfl:{job.key}",
            "-o", job.log,
            "-env", "all" if job.inherit else "none",
            "-r" if template.rerunnable else "-rn",
            *_dependencies(job),
            *_resources(template),
            *_wishes(template),
            *native(template, _OWNED),
            f"trap : {TRAPPED}; /bin/sh {'' if job.inherit else '-l '}{shlex.join([job.script, *job.offset])}",
        ]  # fmt: skip

    def accepted(self, output: str) -> str:
        """The id in `Job <123> is submitted to queue <normal>.`."""
        found = re.search(r"Job <(\d+)>", output)
        if found is None:  # such as with BSUB_QUIET: it is found by its key
            raise DrmCommunicationError(f"lsf: bsub did not tell an id: {output.strip()[-200:]!r}")
        return found[1]

    def element(self, id: str, number: int) -> str:
        """`123[4]`."""
        return f"{id}[{number}]"

    def query(self, user: str) -> Command:
        """What has not ended, a line for each job and each element."""
        return ["bjobs", "-noheader", "-u", user, "-o", _FORMAT]

    def search(self, user: str) -> Command:
        """Also what has ended in the last hour."""
        return ["bjobs", "-noheader", "-a", "-u", user, "-o", _FORMAT]

    def seen(self, output: str) -> Iterator[Seen]:
        """The fields with bars between them."""
        for said in _lines(output):
            index = int(said["jobindex"])
            info = fact(
                state=_STATES.get(said["stat"], JobState.RUNNING),
                submission_time=english_time(said["submit_time"]),
                dispatch_time=english_time(said["start_time"]),
                queue_name=said["queue"] or None,
                allocated_machines=_machines(said["exec_host"]),
                annotation=said["pend_reason"].strip("; ") or None,
            )
            key = _KEY.search(said["job_description"])
            cause = _CAUSES.get(said["exit_reason"].partition(":")[0])
            yield Seen(
                said["jobid"], [range(index, index + 1)] if index else None, info, key[1] if key else None, cause
            )

    def accounting(self, ids: Sequence[str], user: str, rung: int) -> Sequence[Command]:
        """Ended jobs are remembered for a while (CLEAN_PERIOD, an hour); an array's id stands for all its elements."""
        del user, rung
        return [["bjobs", "-noheader", "-o", _FORMAT, *ids]]

    def accounts(self, output: str, rung: int, ids: Collection[str] = ()) -> Iterable[Account]:
        """The same fields."""
        del rung, ids
        return map(_account, _lines(output))

    def control(self, ids: Sequence[str], action: Action) -> Sequence[Command]:
        """`bkill` asks with SIGINT and SIGTERM before it kills; `bstop` suspends what runs, and holds what waits."""
        words = {
            Action.TERMINATE: ["bkill"],
            Action.KILL: ["bkill", "-s", "KILL"],
            Action.SUSPEND: ["bstop"],
            Action.RESUME: ["bresume"],
            Action.HOLD: ["bstop"],
            Action.RELEASE: ["bresume"],
        }
        return [[*words[action], *ids]]

    def limits(self) -> Command:
        """The configuration of the batch system."""
        return ["bparams", "-a"]

    def most(self, output: str) -> int | None:
        """MAX_JOB_ARRAY_SIZE is the highest index."""
        found = re.search(r"MAX_JOB_ARRAY_SIZE\s*=\s*(\d+)", output)
        return int(found[1]) if found else _DEFAULT_ARRAY


# -- the template --


def _array(job: Job) -> str:
    if job.wave is None:
        return ""
    numbers = job.wave.numbers
    text = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
    step = f":{numbers.step}" if numbers.step != 1 and len(numbers) > 1 else ""
    return f"[{text}{step}]{f'%{job.entry.max_parallel}' if job.entry.max_parallel else ''}"


def _dependencies(job: Job) -> list[str]:
    wished = extension(job.template, "dependency")
    before = f"ended({job.after})" if job.after else None
    both = f"{before} && ({wished})" if before and wished else before or wished
    return ["-w", both] if both else []


def _resources(template: JobTemplate) -> list[str]:
    found: list[str] = []
    slots, most, limit = template.min_slots, template.max_slots, time_limit(template)
    nodes, tasks = divided(template, "nodes"), divided(template, "tasks_per_node")
    if nodes or tasks:
        each = (fixed_slots(template, "lsf with nodes") or 1) * (tasks or 1)
        found += ["-n", str(each * (nodes or 1)), "-R", f"span[ptile={each}]"]
    elif slots or most:
        found += ["-n", f"{slots or 1},{most}" if most not in (None, slots) else f"{slots}", "-R", "span[hosts=1]"]
    memory = template.min_phys_memory
    if memory:  # with its unit: LSF_UNIT_FOR_LIMITS says what a bare number is
        found += ["-M", f"{memory}KB", "-R", f"rusage[mem={memory}KB]"]
    if limit is not None:  # LSF counts minutes; to the second it is the session that ends it
        found += ["-W", str(max(1, math.ceil(limit / 60)))]
    if template.candidate_machines:
        found += ["-m", " ".join(template.candidate_machines)]
    gpus = divided(template, "gpus", nodes or 1)
    if gpus:
        found += ["-gpu", f"num={gpus}"]
    if flag(template, "exclusive"):
        found += ["-x"]
    return found


def _wishes(template: JobTemplate) -> list[str]:
    priority = template.priority
    if priority is not None and priority < 0:
        raise UnsupportedAttributeError(f"lsf: priority is {priority}, expected 1 or more, to the site's highest")
    found = []
    for option, value in (
        ("-q", template.queue_name),
        ("-P", template.accounting_id),
        ("-U", template.reservation_id),
        ("-sp", str(priority) if priority else None),
        ("-u", " ".join(template.email or ())),
    ):
        if value:
            found += [option, value]
    found += ["-B"] if template.email_on_started else []
    found += ["-N"] if template.email_on_terminated else []
    found += ["-H"] if template.submit_as_hold else []
    if template.start_time:  # LSF counts minutes
        found += ["-b", f"{later(template.start_time, seconds=60):%Y:%m:%d:%H:%M}"]
    return found


# -- the answers --


def _lines(output: str) -> Iterator[dict[str, str]]:
    """One job each; a dash is nothing. Other lines are LSF's remarks."""
    for line in output.splitlines():
        parts = [part.strip() for part in line.split("|", len(_FIELDS) - 1)]
        if len(parts) == len(_FIELDS) and parts[0].isdigit():
            said = dict(zip(_FIELDS, ("" if part == "-" else part for part in parts), strict=True))
            said["jobindex"] = said["jobindex"] if said["jobindex"].isdigit() else "0"
            yield said


def _account(said: dict[str, str]) -> Account:
    state = _STATES.get(said["stat"], JobState.RUNNING)
    reason = said["exit_reason"]
    cause = _CAUSES.get(reason.partition(":")[0]) if state.ended else None
    if said["stat"] == "ZOMBI":
        cause = "node_failure"
    begun = bool(said["start_time"] or said["exec_host"])
    status = int(said["exit_code"]) if said["exit_code"].isdigit() else 0 if said["stat"] == "DONE" else None
    signal = status - 128 if status is not None and status in _SIGNALS else None
    memory = _kib(said["max_mem"])
    if state.ended and not begun and cause is None:
        cause = "cancelled"
    return Account(
        said["jobid"],
        int(said["jobindex"]) or None,
        exit_status=status if begun and cause is None and signal is None else None,
        signal=signal if begun else None,
        cause=cause,
        info=fact(
            submission_time=english_time(said["submit_time"]),
            dispatch_time=english_time(said["start_time"]),
            finish_time=english_time(said["finish_time"]) if state.ended else None,
            wallclock_time=_seconds(said["run_time"]),
            cpu_time=_seconds(said["cpu_used"]),
            slots=int(said["slots"]) if said["slots"].isdigit() else None,
            queue_name=said["queue"] or None,
            allocated_machines=_machines(said["exec_host"]),
            annotation=reason or None,
            extensions=FrozenDict({"ru_maxrss": str(memory)} if memory else {}),
        ),
        over=state.ended,
    )


def _seconds(text: str) -> timedelta | None:
    """`12.5 second(s)`."""
    found = re.match(r"(\d+(?:\.\d+)?) second", text)
    return timedelta(seconds=float(found[1])) if found else None


def _kib(text: str) -> int | None:
    """`3.9 Gbytes`, `512M`."""
    found = re.match(r"(\d+(?:\.\d+)?) *([KMGT])", text)
    return int(float(found[1]) * 1024 ** "KMGT".index(found[2])) if found else None


def _machines(text: str) -> tuple[str, ...] | None:
    """`8*hostA:hostB:hostB`."""
    found = [part.rpartition("*")[2] for part in text.split(":") if part]
    return tuple(dict.fromkeys(found)) or None


class LsfContext(BatchContext):
    """Run each job through LSF's commands, on a machine that can submit jobs.

    Besides the settings of every context of a cluster (see `BatchContext`), extensions of a template: nodes,
    tasks_per_node, gpus (of the whole job), exclusive, dependency (a condition, such as "done(123)"),
    inherit_environment, and native: options as bsub takes them. Memory is reserved, and is the limit too.
    """

    name = "lsf"

    def scheduler(self) -> Scheduler:
        """LSF's language."""
        return Lsf()

"""Flux, by its command flux, in an instance of Flux or where a system's instance is reached.

Flux has no arrays with one id: elements are jobs of their own. It has no word for memory either.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar

from wfl.backend import Action
from wfl.contexts.batch.context import BatchContext
from wfl.contexts.batch.quantities import divided, fixed_slots, host_list, later, time_limit
from wfl.contexts.batch.scheduler import Scheduler, Seen, extension, flag, job_name, native
from wfl.contexts.ends import Account
from wfl.drmaa2 import Capability, JobState, SubState, fact
from wfl.errors import DrmCommunicationError, UnsupportedAttributeError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from wfl.contexts.batch.scheduler import Command, Job
    from wfl.drmaa2 import JobTemplate

_OWNED = "--bcc --cc --dry-run --error --input --job-name --output --wait --watch --wrap"
"""Options that are not the user's to give."""
_STATES = {
    "NEW": JobState.QUEUED,
    "DEPEND": JobState.QUEUED,
    "PRIORITY": JobState.QUEUED,
    "SCHED": JobState.QUEUED,
    "RUN": JobState.RUNNING,
    "CLEANUP": JobState.RUNNING,
    "INACTIVE": JobState.DONE,
}
"""RFC 21; how it ended is the result."""
_CAUSES: dict[str, SubState] = {"CANCELED": "cancelled", "TIMEOUT": "timeout"}
_TYPES: dict[str, SubState] = {
    "alloc": "launch_failure",
    "cancel": "cancelled",
    "depend": "launch_failure",
    "dependency": "cancelled",
    "exec": "launch_failure",
    "fatal": "launch_failure",
    "node-failure": "node_failure",
    "prolog": "launch_failure",
    "timeout": "timeout",
}
"""Types of the exception that ended a job (RFC 21), where no shell of it told an exit status."""
_FIELDS = (
    "id.f58", "state", "result", "returncode", "exception.type", "urgency", "t_submit", "t_run", "t_cleanup",
    "ncores", "queue", "nodelist", "name", "exception.note",
)  # fmt: skip
_FORMAT = "|".join(f"{{{field}}}" for field in _FIELDS)
_KEY = re.compile(r"(?:^| )wfl:(\S+)$")
_NOT_STARTED = -128
"""The return code of a job that was cancelled before it began (flux-jobs(1))."""
_SIGNALS = range(129, 193)
"""Return codes that tell a signal, which is 128 less."""
_URGENCY = (1, 16, 31)
"""The lowest that is not held, the usual one, the highest (flux-submit(1)); a guest's highest is the usual one."""
_LETTER = "ƒ"
"""What an id begins with, where the language's characters have it; else, and always here, it is an f (RFC 19)."""


class Flux(Scheduler):
    """flux-core 0.50 and later."""

    name = "flux"
    fields = frozenset(
        {
            "min_slots", "max_slots", "priority", "candidate_machines", "queue_name", "start_time", "accounting_id",
        }
    )  # fmt: skip
    extensions = frozenset({"dependency", "exclusive", "gpus", "nodes", "signal", "tasks_per_node"})
    capabilities = frozenset({Capability.START_TIME, Capability.JT_ACCOUNTINGID})
    lacks = frozenset({Capability.NATIVE_ARRAYS, Capability.SUSPEND})
    answers: ClassVar[Mapping[str, str]] = {"LC_ALL": "C", "FLUX_F58_FORCE_ASCII": "1"}
    id = "$FLUX_JOB_ID"
    number = "FLUX_JOB_CC"
    down_words = (
        "unable to connect", "connection refused", "lost contact", "timed out", "connection reset",
        "function not implemented", "no service matching method", "host is unreachable", "broken pipe",
    )  # fmt: skip
    over_words = ("inactive", "unknown job", "unknown id", "no such job", "job is not running")

    def submit(self, job: Job) -> Command:
        """`flux submit` starts the script once; with nodes it is `flux batch`, whose script starts tasks itself."""
        template = job.template
        nodes = divided(template, "nodes")
        if nodes is None and (extension(template, "tasks_per_node") or extension(template, "exclusive")):
            raise UnsupportedAttributeError("flux: tasks_per_node and exclusive need extensions nodes")
        name = f"{job_name(template, job.entry.key)} " if template.job_name else ""
        command = ["/bin/sh", *([] if job.inherit else ["-l"]), job.script] if nodes is None else [job.script]
        return [
            "flux",
            "submit" if nodes is None else "batch",
            f"--job-name={name}wfl:{job.key}",
            f"--setattr=user.wfl={job.key}",
            f"--output={job.log}",
            f"--error={job.log}",
            *([] if job.inherit else ["--env-remove=*", *([] if nodes is None else ["--env=PATH"])]),
            *(_task(template) if nodes is None else _nodes(template, nodes)),
            *_wishes(template),
            *native(template, _OWNED),
            *command,
        ]

    def accepted(self, output: str) -> str:
        """`fABC`, the id in RFC 19's F58."""
        found = re.search(r"^[ƒf]\w+$", output.strip(), re.MULTILINE)
        if found is None:
            raise DrmCommunicationError(f"flux: flux submit did not tell an id: {output.strip()[-200:]!r}")
        return found[0].replace(_LETTER, "f")

    def query(self, user: str) -> Command:
        """What has not ended."""
        del user  # one's own jobs are listed
        return ["flux", "jobs", "-n", "-c", "0", "--filter=pending,running", "-o", _FORMAT]

    def search(self, user: str) -> Command:
        """Also what has ended."""
        del user
        return ["flux", "jobs", "-n", "-c", "0", "-a", "-o", _FORMAT]

    def seen(self, output: str) -> Iterator[Seen]:
        """The fields with bars between them."""
        for said in _lines(output):
            state = _STATES.get(said["state"], JobState.RUNNING)
            if state is JobState.QUEUED and said["urgency"] == "0":
                state = JobState.QUEUED_HELD
            key = _KEY.search(said["name"])
            info = fact(
                state=state,
                submission_time=_time(said["t_submit"]),
                dispatch_time=_time(said["t_run"]),
                queue_name=said["queue"] or None,
                allocated_machines=host_list(said["nodelist"]) or None,
            )
            yield Seen(said["id.f58"], None, info, key[1] if key else None, _CAUSES.get(said["result"]))

    def accounting(self, ids: Sequence[str], user: str, rung: int) -> Sequence[Command]:
        """The instance remembers its jobs."""
        del user, rung
        return [["flux", "jobs", "-n", "-c", "0", "-a", "-o", _FORMAT, *ids]]

    def accounts(self, output: str, rung: int, ids: Collection[str] = ()) -> Iterable[Account]:
        """The same fields."""
        del rung, ids
        return map(_account, _lines(output))

    def control(self, ids: Sequence[str], action: Action) -> Sequence[Command]:
        """`flux cancel` asks with SIGTERM, and kills five seconds later; to hold is to be of no urgency."""
        if action is Action.TERMINATE:
            return [["flux", "cancel", *ids]]
        if action is Action.KILL:
            return [["flux", "job", "kill", "--signal=SIGKILL", *ids], ["flux", "cancel", *ids]]
        urgency = "hold" if action is Action.HOLD else "default"
        return [["flux", "job", "urgency", id, urgency] for id in ids]

    def partly(self, words: str) -> bool:
        """Some ids are not known, the others were told of."""
        return re.search(r"jobid \S+ unknown|unknown job|unknown id", words.lower()) is not None


# -- the template --


def _task(template: JobTemplate) -> list[str]:
    slots, gpus = fixed_slots(template, "flux"), divided(template, "gpus")
    return [
        "--ntasks=1",
        *([f"--cores-per-task={slots}"] if slots else []),
        *([f"--gpus-per-task={gpus}"] if gpus else []),
    ]


def _nodes(template: JobTemplate, nodes: int) -> list[str]:
    slots, gpus = fixed_slots(template, "flux"), divided(template, "gpus", nodes)
    tasks = divided(template, "tasks_per_node") or 1
    if gpus and gpus % tasks:
        raise UnsupportedAttributeError("flux gives each task as many gpus as the others")
    return [
        f"--nodes={nodes}",
        f"--nslots={nodes * tasks}",
        *([f"--cores-per-slot={slots}"] if slots else []),
        *([f"--gpus-per-slot={gpus // tasks}"] if gpus else []),
        *(["--exclusive"] if flag(template, "exclusive") else []),
    ]


def _wishes(template: JobTemplate) -> list[str]:
    lowest, usual, highest = _URGENCY
    urgency = usual + (template.priority or 0)
    if not lowest <= urgency <= highest:
        raise UnsupportedAttributeError(
            f"flux: priority is {template.priority}, expected {lowest - usual} to {highest - usual}"
        )
    if template.submit_as_hold and template.priority:
        raise UnsupportedAttributeError("flux: a held job has no priority: set one of submit_as_hold, priority")
    limit, begin = time_limit(template), template.start_time
    requires = f"host:{','.join(template.candidate_machines)}" if template.candidate_machines else None
    given = {
        "time-limit": None if limit is None else f"{float(limit):.12g}s",
        "urgency": "hold" if template.submit_as_hold else urgency if template.priority else None,
        "queue": template.queue_name,
        "bank": template.accounting_id,
        "requires": requires,
        "begin-time": None if begin is None else f"{later(begin, seconds=1):%Y-%m-%d %H:%M:%S}",
        "dependency": extension(template, "dependency"),
        "signal": extension(template, "signal"),
    }
    return [f"--{option}={value}" for option, value in given.items() if value is not None and value != ""]


# -- the answers --


def _lines(output: str) -> Iterator[dict[str, str]]:
    for line in output.splitlines():
        parts = line.split("|", len(_FIELDS) - 1)
        if len(parts) == len(_FIELDS):
            said = dict(zip(_FIELDS, parts, strict=True))
            said["id.f58"] = said["id.f58"].strip().replace(_LETTER, "f")
            yield said


def _account(said: dict[str, str]) -> Account:
    over = said["state"] == "INACTIVE"
    code = int(said["returncode"]) if re.fullmatch(r"-?\d+", said["returncode"]) else None
    begun = _time(said["t_run"])
    cause = _CAUSES.get(said["result"]) if over else None
    if over and cause is None and (code is None or begun is None):
        cause = _TYPES.get(said["exception.type"], "launch_failure")
    signal = None
    if code is not None and code not in (0, _NOT_STARTED):
        signal = -code if code < 0 else code - 128 if code in _SIGNALS else None
    finished = _time(said["t_cleanup"])
    words = ": ".join(text for text in (said["exception.type"], said["exception.note"]) if text)
    return Account(
        said["id.f58"],
        None,
        exit_status=code if cause is None and signal is None else None,
        signal=signal if begun is not None else None,
        cause=cause,
        info=fact(
            submission_time=_time(said["t_submit"]),
            dispatch_time=begun,
            finish_time=finished if over else None,
            wallclock_time=finished - begun if over and finished and begun else None,
            slots=int(said["ncores"]) if said["ncores"].isdigit() else None,
            queue_name=said["queue"] or None,
            allocated_machines=host_list(said["nodelist"]) or None,
            annotation=words or None,
        ),
        over=over,
    )


def _time(text: str) -> datetime | None:
    """Seconds since 1970; nothing, or 0, for what has not been."""
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not float(text):
        return None
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=float(text))


class FluxContext(BatchContext):
    """Run each job through Flux, where a program can reach an instance of it (`flux jobs` works).

    Besides the settings of every context of a cluster (see `BatchContext`), extensions of a template: gpus (of the
    whole job), dependency, signal (such as "USR1@60s": a signal so long before the limit of time), inherit_environment,
    nodes, with which tasks_per_node and exclusive, and native: options as flux submit takes them. With nodes the script
    is that of `flux batch`: it runs in an instance of its own, in which it starts tasks by `flux run`.
    """

    name = "flux"

    def scheduler(self) -> Scheduler:
        """Flux's language."""
        return Flux()

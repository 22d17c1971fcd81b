"""OpenPBS (also PBS Professional) and Torque, by qsub, qstat, qselect, qdel, qhold, qrls and qsig.

What is asked again and again is qstat's table of the user's own jobs. The long form (`-f`), which costs a server much,
is only asked for what has ended; as text, since its JSON leaves out jobs and breaks at some values (OpenPBS's issues
2672 and 2541).
"""

from __future__ import annotations

import functools
import re
import subprocess
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from wfl.backend import Action
from wfl.contexts.batch.context import BatchContext
from wfl.contexts.batch.quantities import divided, english_time, fixed_slots, hours, in_seconds, later, time_limit
from wfl.contexts.batch.scheduler import Scheduler, Seen, extension, flag, job_name, native
from wfl.contexts.ends import Account
from wfl.drmaa2 import Capability, FrozenDict, JobInfo, JobState, SubState, fact
from wfl.errors import DrmCommunicationError, InvalidArgumentError, UnsupportedAttributeError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from wfl.contexts.batch.machine import Machine
    from wfl.contexts.batch.scheduler import Command, Job
    from wfl.drmaa2 import JobTemplate

OPENPBS, TORQUE = "openpbs", "torque"
KEY = "WFL_KEY"
"""The variable that a job's Variable_List shows: PBS has no place for a comment."""

_OWNED = "-I -J* -j* -k* -N* -o* -e* -S* -t* -V -v* -X -z"
"""Options that are not the user's to give."""
_STATES = {
    "B": JobState.RUNNING,
    "C": JobState.DONE,
    "E": JobState.RUNNING,
    "F": JobState.DONE,
    "H": JobState.QUEUED_HELD,
    "M": JobState.QUEUED,
    "Q": JobState.QUEUED,
    "R": JobState.RUNNING,
    "S": JobState.SUSPENDED,
    "T": JobState.QUEUED,
    "U": JobState.SUSPENDED,
    "W": JobState.QUEUED,
    "X": JobState.DONE,
}
"""qstat(1B), column S; how it ended is told elsewhere."""
_OVERRUN: Mapping[str, Mapping[int, SubState]] = {
    OPENPBS: {-26: "out_of_memory", -27: "out_of_memory", -28: "timeout", -29: "timeout"},
    TORQUE: {-10: "out_of_memory", -11: "timeout", -12: "timeout"},
}
"""JOB_EXEC_KILL_VMEM, MEM, CPUT, WALLTIME; JOB_EXEC_OVERLIMIT_MEM, WT, CPUT. Others below 0: never begun."""
_TOO_MANY_PROCESSORS = (-24, -25)
_TERMINATED = "91"
"""OpenPBS's substate of a job that was deleted (JOB_SUBSTATE_TERMINATED)."""
_SIGNALS = 256
"""Exit_status is this and the signal's number, where one ended the job's shell; that one adds half of it."""
_HIGHEST = 64
"""The highest signal."""
_ID = re.compile(r"(\d+)(?:(\[)(\d*)\])?(?:\.\S*|\*)?\Z")
_COLUMNS = 11
_ATTRIBUTE = re.compile(r" {4}([A-Za-z][\w.]*) = (.*)")
_PRIORITY = 1024
_DEFAULT_ARRAY = 10000
"""OpenPBS's max_array_size where nobody has set it."""


class Pbs(Scheduler):
    """OpenPBS 20 and later; PBS Professional 18 and later but for limits of concurrency in arrays."""

    name = "pbs"
    dialect: ClassVar[str] = OPENPBS
    fields = frozenset(
        {
            "rerunnable", "email", "email_on_started", "email_on_terminated", "reservation_id", "queue_name",
            "min_slots", "max_slots", "priority", "candidate_machines", "min_phys_memory", "start_time",
            "accounting_id",
        }
    )  # fmt: skip
    extensions = frozenset({"dependency", "exclusive", "gpus", "nodes", "project", "tasks_per_node"})
    capabilities = frozenset(
        {
            Capability.START_TIME, Capability.MAX_PARALLEL, Capability.BULK_JOBS_MAXPARALLEL, Capability.JT_EMAIL,
            Capability.JT_ACCOUNTINGID, Capability.ADVANCE_RESERVATION, Capability.PEAK_MEMORY,
        }
    )  # fmt: skip
    number = "PBS_ARRAY_INDEX"
    after: ClassVar[str] = "afterany"
    mine: ClassVar[str] = (
        'ids=$(qselect -x -u "$1") || ids=$(qselect -u "$1") || exit; '
        '[ -z "$ids" ] || qstat -x -f $ids || qstat -f $ids'
    )
    lowest = 0
    down_words = (
        "cannot connect to", "could not connect", "connection refused", "connection timed out", "communication failure",
        "end of file", "premature end of message", "server shutting down", "invalid credential", "no route to host",
        "cannot resolve", "unable to communicate", "timed out", "broken pipe", "server is not responding",
    )  # fmt: skip
    over_words = ("unknown job id", "job has finished", "request invalid for state", "invalid state for job")
    """Also of what cannot be had in this state."""
    partly_words = ("unknown job id",)

    def submit(self, job: Job) -> Command:
        """`qsub`, with a shell that PBS starts as one of a login."""
        template = job.template
        return [
            "qsub",
            "-N", job_name(template, job.entry.key),
            "-v", f"{KEY}={job.key}",
            "-S", "/bin/sh",
            "-j", "oe",
            "-o", job.log,
            *(["-V"] if job.inherit else []),
            *self._reruns(job),
            *self._array(job),
            *self._dependencies(job),
            *self._resources(template),
            *_wishes(template),
            *self._queue(template),
            *native(template, _OWNED),
            job.script,
        ]  # fmt: skip

    def accepted(self, output: str) -> str:
        """`123.server`, or `123[].server` of an array; the server's name is left out, as in cut columns."""
        found = _ID.match(output.strip().splitlines()[-1]) if output.strip() else None
        if found is None:
            raise DrmCommunicationError(f"{self.name}: qsub did not tell an id: {output.strip()[-200:]!r}")
        return f"{found[1]}[]" if found[2] else found[1]

    def element(self, id: str, number: int) -> str:
        """`123[4]` of `123[]`."""
        return f"{id.removesuffix('[]')}[{number}]"

    def query(self, user: str) -> Command:
        """A line for each job and each element, with its machines, in wide columns."""
        return ["qstat", "-a", "-n", "-1", "-w", "-t", "-u", user]

    def search(self, user: str) -> Command:
        """Only the long form shows keys: that of the user's own jobs, with those in the history if there is one."""
        return ["/bin/sh", "-c", self.mine, "sh", user]

    def seen(self, output: str) -> Iterator[Seen]:
        """The table, or the long form."""
        if re.search(r"^Job Id: ", output, re.MULTILINE):
            yield from map(_from_record, _records(output))
            return
        for line in output.splitlines():
            parts = line.split()
            found = _ID.match(parts[0]) if len(parts) >= _COLUMNS else None
            if found is not None and parts[9] in _STATES:
                info = _listed(parts[9], parts[2], parts[11] if len(parts) > _COLUMNS else "")
                yield _seen(found, info)

    def accounting(self, ids: Sequence[str], user: str, rung: int) -> Sequence[Command]:
        """From the history that the server keeps of ended jobs, if it does."""
        del user, rung
        return [["qstat", "-x", "-f", "-t", *ids]]

    def accounts(self, output: str, rung: int, ids: Collection[str] = ()) -> Iterable[Account]:
        """The long form of each."""
        del rung, ids
        return [account for record in _records(output) if (account := _account(record, self.dialect)) is not None]

    def control(self, ids: Sequence[str], action: Action) -> Sequence[Command]:
        """`qdel` asks with SIGTERM, and kills after the site's kill_delay; to suspend is for operators."""
        words = {
            Action.TERMINATE: ["qdel"],
            Action.KILL: ["qdel"],
            Action.SUSPEND: ["qsig", "-s", "suspend"],
            Action.RESUME: ["qsig", "-s", "resume"],
            Action.HOLD: ["qhold"],
            Action.RELEASE: ["qrls"],
        }
        order = [*words[action], *ids]
        return [["qsig", "-s", "SIGKILL", *ids], order] if action is Action.KILL else [order]

    def limits(self) -> Command:
        """The server's attributes."""
        return ["qstat", "-B", "-f"]

    def most(self, output: str) -> int | None:
        """`max_array_size` elements, counted from 0."""
        found = re.search(r"^\s*max_(?:job_)?array_size = (\d+)", output, re.MULTILINE)
        if found is None:
            return _DEFAULT_ARRAY - 1 if self.dialect == OPENPBS else None
        return int(found[1]) - 1

    # -- what the dialects say differently --

    def _reruns(self, job: Job) -> list[str]:
        """An array has to be rerunnable."""
        return [] if job.wave is not None else ["-r", "y" if job.template.rerunnable else "n"]

    def _array(self, job: Job) -> list[str]:
        """A range must have two ends: `5-6:2` is 5 alone."""
        if job.wave is None:
            return []
        numbers = job.wave.numbers
        last, step = (numbers[-1], numbers.step) if len(numbers) > 1 else (numbers[0] + 1, 2)
        limit = f"%{job.entry.max_parallel}" if job.entry.max_parallel else ""
        return ["-J", f"{numbers[0]}-{last}{f':{step}' if step != 1 else ''}{limit}"]

    def _dependencies(self, job: Job) -> list[str]:
        given = [f"{self.after}:{job.after}"] if job.after else []
        wished = extension(job.template, "dependency")
        given += [wished] if wished else []
        return ["-W", f"depend={','.join(given)}"] if given else []

    def _resources(self, template: JobTemplate) -> list[str]:
        """One chunk for each node."""
        slots, nodes, tasks = _slots(template)
        memory, machine, gpus = template.min_phys_memory, _machine(template), divided(template, "gpus", nodes or 1)
        parts = [
            str(nodes or 1),
            *([f"ncpus={slots * (tasks or 1)}"] if slots else []),
            *([f"mpiprocs={tasks}"] if tasks else []),
            *([f"ngpus={gpus}"] if gpus else []),
            *([f"mem={memory}kb"] if memory else []),
            *([f"host={machine}"] if machine else []),
        ]
        found = ["-l", f"select={':'.join(parts)}"] if len(parts) > 1 or nodes else []
        exclusive = flag(template, "exclusive")
        place = (["scatter"] if (nodes or 0) > 1 else []) + (["excl"] if exclusive else [])
        if place:
            found += ["-l", f"place={':'.join(place)}"]
        return [*found, *_walltime(template)]

    def _queue(self, template: JobTemplate) -> list[str]:
        """A reservation is a queue."""
        if template.reservation_id and template.queue_name:
            raise UnsupportedAttributeError("pbs: a reservation_id is a queue of its own: leave queue_name out")
        queue, project = template.reservation_id or template.queue_name, extension(template, "project")
        return [*(["-q", queue] if queue else []), *(["-P", project] if project else [])]


class Torque(Pbs):
    """Torque 3 and later."""

    dialect = TORQUE
    number = "PBS_ARRAYID"
    after = "afteranyarray"
    mine = 'ids=$(qselect -u "$1") || exit; [ -z "$ids" ] || qstat -f $ids'

    def query(self, user: str) -> Command:
        """Its columns are wide."""
        return ["qstat", "-a", "-n", "-1", "-t", "-u", user]

    def accounting(self, ids: Sequence[str], user: str, rung: int) -> Sequence[Command]:
        """Ended jobs stay in the list for a while (keep_completed)."""
        del user, rung
        return [["qstat", "-f", "-t", *ids]]

    def _reruns(self, job: Job) -> list[str]:
        return ["-r", "y" if job.template.rerunnable else "n"]

    def _array(self, job: Job) -> list[str]:
        """A list: there are no steps."""
        if job.wave is None:
            return []
        numbers = job.wave.numbers
        whole = numbers.step == 1 and len(numbers) > 1
        text = f"{numbers[0]}-{numbers[-1]}" if whole else ",".join(map(str, numbers))
        return ["-t", f"{text}%{job.entry.max_parallel}" if job.entry.max_parallel else text]

    def _resources(self, template: JobTemplate) -> list[str]:
        """Memory is the whole job's."""
        slots, nodes, tasks = _slots(template)
        machine, gpus = _machine(template), divided(template, "gpus", nodes or 1)
        found = []
        if slots or nodes or gpus or machine:
            found += ["-l", f"nodes={machine or nodes or 1}:ppn={(slots or 1) * (tasks or 1)}"]
            found[-1] += f":gpus={gpus}" if gpus else ""
        if template.min_phys_memory:
            found += ["-l", f"mem={template.min_phys_memory * (nodes or 1)}kb"]
        if flag(template, "exclusive"):
            found += ["-l", "naccesspolicy=singlejob"]
        return [*found, *_walltime(template)]

    def _queue(self, template: JobTemplate) -> list[str]:
        if template.reservation_id:
            raise UnsupportedAttributeError("torque knows of no reservation_id: its scheduler has them; use native")
        if extension(template, "project"):
            raise UnsupportedAttributeError("torque has no project: use accounting_id")
        return ["-q", template.queue_name] if template.queue_name else []


# -- the template --


def _slots(template: JobTemplate) -> tuple[int | None, int | None, int | None]:
    """Processors of each task, nodes, tasks on each of them."""
    slots, nodes, tasks = fixed_slots(template, "pbs"), divided(template, "nodes"), divided(template, "tasks_per_node")
    return slots or (1 if nodes or tasks else None), nodes, tasks


def _machine(template: JobTemplate) -> str | None:
    machines = template.candidate_machines or ()
    if len(machines) > 1 or (machines and extension(template, "nodes")):
        words = "pbs takes machines one by one, not one of several: give one of candidate_machines, and no nodes"
        raise UnsupportedAttributeError(words)
    return machines[0] if machines else None


def _walltime(template: JobTemplate) -> list[str]:
    limit = time_limit(template)
    return [] if limit is None else ["-l", f"walltime={hours(limit)}"]


def _wishes(template: JobTemplate) -> list[str]:
    priority = template.priority or 0
    if not -_PRIORITY <= priority < _PRIORITY:
        raise UnsupportedAttributeError(f"pbs: priority is {priority}, expected -1024 to 1023")
    mails = ("b" if template.email_on_started else "") + ("ae" if template.email_on_terminated else "")
    found = ["-m", mails or "n"]
    if template.email:
        found += ["-M", ",".join(template.email)]
    if priority:
        found += ["-p", str(priority)]
    if template.accounting_id:
        found += ["-A", template.accounting_id]
    if template.submit_as_hold:
        found += ["-h"]
    if template.start_time:
        found += ["-a", f"{later(template.start_time, seconds=1):%Y%m%d%H%M.%S}"]
    return found


# -- the answers --


def _records(output: str) -> Iterator[dict[str, str]]:
    """The long form: attributes by their names in small letters, and the id as "id". Long lines are folded."""
    record: dict[str, str] = {}
    last = ""
    for line in output.splitlines():
        found = _ATTRIBUTE.fullmatch(line)
        if line.startswith("Job Id: "):
            if record:
                yield record
            record = {"id": line.removeprefix("Job Id: ").strip()}
            last = ""
        elif line.startswith(("\t", " " * 8)):
            if last:
                record[last] += line.removeprefix("\t").removeprefix(" " * 8)
        elif found is not None and record:
            last = found[1].lower() if found[1].lower() not in record else ""
            if last:
                record[last] = found[2]
        else:
            last = ""
    if record:
        yield record


def _from_record(record: Mapping[str, str]) -> Seen:
    found = _ID.match(record["id"])
    keys = re.search(rf"(?:^|,){KEY}=([^,]+)", record.get("variable_list", ""))
    info = _listed(record.get("job_state", "Q"), record.get("queue", ""), record.get("exec_host", ""))
    if found is None:
        return Seen(record["id"], None, info, keys[1] if keys else None)
    return _seen(found, info, keys[1] if keys else None)


def _seen(found: re.Match[str], info: JobInfo, key: str | None = None) -> Seen:
    if found[3]:
        return Seen(f"{found[1]}[]", [range(int(found[3]), int(found[3]) + 1)], info, key)
    return Seen(f"{found[1]}[]" if found[2] else found[1], None, info, key)


def _listed(letter: str, queue: str, hosts: str) -> JobInfo:
    state = _STATES.get(letter, JobState.RUNNING)
    machines = _machines(hosts) if state.started else None
    return fact(state=state, queue_name=queue.rstrip("*") or None, allocated_machines=machines)


def _account(record: Mapping[str, str], dialect: str) -> Account | None:
    found = _ID.match(record["id"])
    if found is None:
        return None
    started = english_time(record.get("stime") or record.get("start_time") or "")
    state = _STATES.get(record.get("job_state", ""), JobState.RUNNING)
    status = int(text) if re.fullmatch(r"-?\d+", text := record.get("exit_status", "")) else None
    if record.get("job_state") == "X" and status is None and record.get("substate") != _TERMINATED:
        return None  # servers before 20 keep nothing of an element but that it is over
    memory = re.fullmatch(r"(\d+)kb", record.get("resources_used.mem", ""))
    slots = record.get("resources_used.ncpus") or record.get("resource_list.ncpus") or ""
    cause = _cause(record, dialect, status, ran=started is not None) if state.ended else None
    info = fact(
        submission_time=english_time(record.get("ctime", "")),
        dispatch_time=started,
        finish_time=english_time(record.get("comp_time") or record.get("obittime") or record.get("mtime") or "")
        if state.ended
        else None,
        wallclock_time=_duration(record.get("resources_used.walltime", "")),
        cpu_time=_duration(record.get("resources_used.cput", "")),
        slots=int(slots) if slots.isdigit() else None,
        queue_name=record.get("queue"),
        allocated_machines=_machines(record.get("exec_host", "")),
        annotation=_words(record, status) if cause else None,
        extensions=FrozenDict({"ru_maxrss": memory[1]} if memory and int(memory[1]) else {}),
    )
    signal = _signal(status) if cause is None or cause == "cancelled" else None
    return Account(
        found[1] if not found[2] else f"{found[1]}[]",
        int(found[3]) if found[3] else None,
        exit_status=status if cause is None and signal is None and (status or 0) >= 0 else None,
        signal=signal if started is not None else None,
        cause=cause,
        info=info,
        over=state.ended,
    )


def _signal(status: int | None) -> int | None:
    """The shell's own 128 and N, or PBS's 256 and N."""
    number = (status or 0) % (_SIGNALS // 2) if (status or 0) > _SIGNALS // 2 else 0
    return number if 0 < number <= _HIGHEST else None


def _cause(record: Mapping[str, str], dialect: str, status: int | None, *, ran: bool) -> SubState | None:
    """Why it ended, where that was not the command's own doing."""
    if status is not None and status < 0:
        if dialect == OPENPBS and status in _TOO_MANY_PROCESSORS:
            return "cancelled"
        return _OVERRUN[dialect].get(status, "launch_failure")
    comment = re.sub(r"\([^)]*\)", "", record.get("comment", "").lower())  # without the machines
    exceeded, killed = "exceeded" in comment, status is not None and status > _SIGNALS
    found: SubState | None = None
    if not ran or status is None:
        found = "cancelled"
    elif (exceeded and ("walltime" in comment or "cput" in comment)) or (killed and _overtime(record)):
        found = "timeout"
    elif exceeded and "mem" in comment:
        found = "out_of_memory"
    elif record.get("substate") == _TERMINATED or (killed and dialect == TORQUE):
        found = "cancelled"
    return found


def _overtime(record: Mapping[str, str]) -> bool:
    used, limit = (
        _duration(record.get("resources_used.walltime", "")),
        _duration(record.get("resource_list.walltime", "")),
    )
    return used is not None and limit is not None and used >= limit


def _words(record: Mapping[str, str], status: int | None) -> str:
    comment = record.get("comment", "")
    return comment or f"Exit_status {status}"


def _duration(text: str) -> timedelta | None:
    """`[HHH:]MM:SS`, or seconds."""
    return timedelta(seconds=in_seconds(text)) if re.fullmatch(r"\d+(:\d+){0,2}", text) else None


def _machines(text: str) -> tuple[str, ...] | None:
    """`a/0*4+b/1`, or `a/0+a/1`, or `a/0-3`."""
    found = [part.partition("/")[0] for part in text.split("+") if part not in ("", "--")]
    return tuple(dict.fromkeys(found)) or None


class PbsContext(BatchContext):
    """Run each job through the commands of OpenPBS, PBS Professional or Torque, on a machine that can submit jobs.

    Besides the settings of every context of a cluster (see `BatchContext`):
    dialect: "openpbs" or "torque"; None: what `qsub --version` says.

    Extensions of a template: nodes, tasks_per_node, gpus (of the whole job), exclusive, dependency, project (OpenPBS),
    inherit_environment, and native: options as qsub takes them.
    """

    name = "pbs"

    def __init__(self, *, dialect: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if dialect not in (None, OPENPBS, TORQUE):
            raise InvalidArgumentError(f"dialect is {dialect!r}, expected 'openpbs', 'torque' or None")
        self.dialect = dialect

    def scheduler(self) -> Scheduler:
        """The language of this dialect."""
        machine = self.machine()
        try:
            return self.scheduler_of(machine)
        finally:
            machine.close()

    def scheduler_of(self, machine: Machine) -> Scheduler:
        """The language of this dialect, which the machine's qsub tells."""
        kind = Torque if (self.dialect or _spoken(machine, frozenset(self.environment.items()))) == TORQUE else Pbs
        return kind()


@functools.lru_cache(8)
def _spoken(machine: Machine, environment: frozenset[tuple[str, str]]) -> str:
    """The dialect of the qsub that is found there; OpenPBS where there is none. The server is not asked."""
    try:
        done = machine.run(["qsub", "--version"], {**machine.environment(), **dict(environment)}, 10)
    except (OSError, subprocess.TimeoutExpired):
        return OPENPBS
    return dialect_of((done.stdout + done.stderr).decode(errors="replace"))


def dialect_of(version: str) -> str:
    """OpenPBS says `pbs_version = 23.06.06`, Torque `Version: 6.1.2` or `version: 2.5.13`."""
    return TORQUE if re.search(r"^version: ", version, re.MULTILINE | re.IGNORECASE) else OPENPBS

"""Grid Engine, by qsub, qstat, qacct, qdel, qhold, qrls and qmod.

What is said of it here was seen on 8.1.9, or stands in its manual: sge_submit(1), sge_status(5), sge_accounting(5).
"""

from __future__ import annotations

import functools
import html
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from wfl.backend import Action
from wfl.contexts.batch.context import BatchContext
from wfl.contexts.batch.quantities import in_seconds, later, ranges, time_limit
from wfl.contexts.batch.scheduler import NATIVE, Scheduler, Seen, extension, flag, job_name, native
from wfl.contexts.ends import Account
from wfl.drmaa2 import Capability, FrozenDict, JobState, fact
from wfl.errors import DrmCommunicationError, InvalidArgumentError, UnsupportedAttributeError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from wfl.contexts.batch.scheduler import Command, Job
    from wfl.drmaa2 import JobTemplate, SubState

_OWNED = "-@ -b -cwd -e -help -i -j -now -o -S -shell -sync -t -terse -v -verify -wd -xml"
"""Options that are not the user's to give."""
_KEY = "wfl_key"
"""The variable of a job's context that has our key where the job's name is the user's."""
_NAMED = re.compile(r"wfl-([0-9a-zA-Z]+-\d+)(?:_(\d+))?\Z")
_FEW = 3
"""Jobs, or arrays, about whose ends qacct is asked one by one: each question reads all of the site's records."""
_EARLIER = timedelta(hours=1, minutes=5)
"""How far clocks may be apart, and the hour that comes twice a year."""
_PRIORITIES = range(-1023, 1025)
_OS = {"LINUX": "lx*", "MACOS": "darwin*", "SOLARIS": "sol*", "AIX": "aix*", "HPUX": "hp*"}
_ARCHITECTURES = {"X64": "*-amd64", "X86": "*-x86", "ARM64": "*-arm64", "IA64": "*-ia64", "SPARC64": "*-sparc64"}
"""How Grid Engine's `arch` begins and ends for DRMAA2's names."""
_HOST = re.compile(r"[A-Za-z0-9._*?\[\]-]+\Z")
_SIGNAL = re.compile(r"USR1@(\d+)\Z")
_ACCOUNT = re.compile(r"[!-.0-9;->A-~]+\Z")
"""What -A takes: no spaces, nothing beyond ASCII, and none of `/:?@*\\` (seen; qsub's own words are no help)."""
_MALFORMED = re.compile(r"[,$\n]")
_JOB = re.compile(r"<job_list\b[^>]*>(.*?)</job_list>", re.DOTALL)
_FIELD = re.compile(r"<(\w+)[^>]*>([^<]*)</\1>")
_NUMBER = re.compile(r"^jobnumber +(\d+)", re.MULTILINE)
_LINE = re.compile(r"^(\w+) +(\S.*?) *$", re.MULTILINE)
_AFTER = frozenset({12, 13, 14, 15, 16})
"""Codes of `failed` for what went wrong when the command had ended."""
_BROKEN = frozenset({18, 19, 20})
"""Codes for a machine that went down, or lost its way."""
_AGAIN = frozenset({24, 25, 30})
"""Codes with which a job waits once more."""
_LIMIT, _SIGNALLED, _ASSUMED = 37, 17, 100
_VOLATILE = ("memory_per_cpu", "gpus", "exclusive", "resources", NATIVE)
"""Extensions that may be resources of any kind."""
_OPTIONS = {"project": "-P", "dependency": "-hold_jid"}


class GridEngine(Scheduler):
    """Grid Engine 6.2 and later; its descendants as far as they kept to the answers."""

    name = "gridengine"
    fields = frozenset(
        {
            "rerunnable", "email", "email_on_started", "email_on_terminated", "reservation_id", "queue_name",
            "min_slots", "max_slots", "priority", "candidate_machines", "min_phys_memory", "machine_os",
            "machine_arch", "start_time", "accounting_id",
        }
    )  # fmt: skip
    extensions = frozenset(
        {
            *_OPTIONS, "parallel_environment", "gpus", "memory_per_cpu", "exclude", "exclusive", "signal", "resources",
            "soft_resources",
        }
    )  # fmt: skip
    capabilities = frozenset(
        {
            Capability.START_TIME, Capability.MAX_PARALLEL, Capability.BULK_JOBS_MAXPARALLEL, Capability.JT_EMAIL,
            Capability.JT_ACCOUNTINGID, Capability.JT_MAXSLOTS, Capability.ADVANCE_RESERVATION, Capability.PEAK_MEMORY,
        }
    )  # fmt: skip
    id = "$JOB_ID"
    number = "SGE_TASK_ID"
    # Of the shell's start the queue decides (shell_start_mode): by -S, as a login shell, or by the script's first line.
    passed = ("SGE_", "LD_LIBRARY_PATH", "TZ")
    reserved = frozenset({99, 100})
    silent = True
    # A shepherd that is sent a signal while it passes one on waits until a third comes, and forgets the second. (Seen:
    # 13 of 32 that came at once, 1 of 32 after 0.2 s, none of 64 after 0.5 s and more.)
    rest = 1.0
    down_words = (
        "commlib error", "unable to contact", "unable to send message", "got no response", "can't connect",
        "error reading answer", "got send error", "connection refused", "connection reset", "timed out", "broken pipe",
    )  # fmt: skip
    busy_words = ("jobs are allowed per", "try again later")
    """By max_u_jobs, or max_jobs, of sge_conf(5)."""
    none_words = ()
    """There is no file before the first end, nor for a while where it was put away: that alone says nothing."""
    over_words = (
        "does not exist", "do not exist", "not found", "invalid queue or job", "already in deletion",
        "can not be applied",
    )  # fmt: skip
    partly_words = ("not found", "do not exist")
    """There is no record of the one job that qacct was asked for, or none yet; qstat has described the others."""

    def __init__(
        self,
        *,
        memory_resource: str = "h_vmem",
        memory_per_slot: bool = True,
        gpu_resource: str = "gpu",
        parallel_environment: str | None = None,
    ) -> None:
        self._memory, self._per_slot, self._gpu = memory_resource, memory_per_slot, gpu_resource
        self._environment = parallel_environment

    def submit(self, job: Job) -> Command:
        """`qsub`; the script sees to directory, environment and streams, and has no options for qsub in it (-C)."""
        template = job.template
        if _MALFORMED.search(job.log):
            words = (
                f"gridengine takes no ',', '$' or line break in a path of a log: {job.log!r}; give another directory"
            )
            raise InvalidArgumentError(words)
        return [
            "qsub",
            "-terse",
            "-C",
            "",
            *_named(job),
            "-S",
            "/bin/sh",
            "-wd",
            "/",
            "-o",
            f":{job.log}",
            "-j",
            "y",
            "-r",
            "y" if template.rerunnable else "n",
            *(["-V"] if job.inherit else []),
            *_array(job),
            *self._slots(template),
            *self._resources(template),
            *_verified(template),
            *_wishes(template),
            *native(template, _OWNED),
            job.script,
        ]

    def accepted(self, output: str) -> str:
        """`ID`, or `ID.FIRST-LAST:STEP`; before it there may be warnings."""
        found = re.search(r"^(\d+)(?:\.\S*)?\s*\Z", output, re.MULTILINE)
        if found is None:  # it may have been accepted all the same: it is found by its key
            raise DrmCommunicationError(f"gridengine: qsub did not tell an id: {output.strip()[-200:]!r}")
        return found[1]

    def element(self, id: str, number: int) -> str:
        """As all of Grid Engine's commands take it."""
        return f"{id}.{number}"

    def query(self, user: str) -> Command:
        """With -r there is for what a job waits; what has ended is in no list."""
        return ["qstat", "-u", user, "-r", "-xml"]

    def seen(self, output: str) -> Iterator[Seen]:
        """An entry is a job, an element, or all waiting elements of an array in the same state."""
        if not output.rstrip().endswith("</job_info>") or output.count("<job_info") != output.count("</job_info>"):
            raise DrmCommunicationError("gridengine: the answer of qstat is not whole")
        for entry in _JOB.finditer(output):
            said: dict[str, str] = {}
            for name, value in _FIELD.findall(entry[1]):
                said.setdefault(name, html.unescape(value))
            yield _seen(said)

    def describe(self, ids: Sequence[str]) -> Command | None:
        """What qstat's list does not show: a job's context, and why it is in an error state."""
        return ["qstat", "-j", ",".join(ids)] if ids else None

    def keys(self, output: str) -> Mapping[str, str]:
        """`context: NAME=VALUE,NAME=VALUE`."""
        keys = {}
        for id, said in _described(output):
            context = dict(part.partition("=")[::2] for part in said.get("context", "").split(","))
            key = _key(context.get(_KEY, ""))
            if key is not None:
                keys[key] = id
        return keys

    def reasons(self, output: str) -> Mapping[str, str]:
        """`error reason  NUMBER:  DATE TIME [UID:PID]: WORDS`, by a job's id and by an element's."""
        words = {}
        for id, said in _described(output):
            for name, value in said.items():
                if name.startswith("error reason"):
                    text = re.sub(r"^[\d/.:\s-]*\[\d+:\d+\]:\s*(error:\s*)?", "", value)
                    words[self.element(id, int(name.split()[-1]))] = text
                    words.setdefault(id, text)
        return words

    def accounting(self, ids: Sequence[str], user: str, rung: int) -> Sequence[Command]:
        """One by one."""
        del user, rung
        return [["qacct", "-j", id] for id in ids]

    def records(self, ids: Sequence[str], user: str, rung: int, since: datetime) -> Sequence[Command]:
        """Many at once as all that the user's jobs have left that were started since: qacct takes no list of ids."""
        if len(ids) <= _FEW:
            return self.accounting(ids, user, rung)
        return [["qacct", "-o", user, "-b", f"{since.astimezone() - _EARLIER:%Y%m%d%H%M.%S}", "-j"]]

    def accounts(self, output: str, rung: int, ids: Collection[str] = ()) -> Iterator[Account]:
        """A job that ran several times has as many records; the last counts."""
        del rung
        for block in output.split("=" * 62)[1:]:
            number = _NUMBER.search(block)
            if ids and (number is None or number[1] not in ids):
                continue
            said = dict(_LINE.findall(block))
            if "maxvmem" in said and "jobnumber" in said:  # else it was cut
                yield _account(said)

    def control(self, ids: Sequence[str], action: Action) -> Sequence[Command]:
        """`qdel` kills, whether one asks or insists: what is softer is the queue's own (terminate_method)."""
        short = _shortened(ids)
        verbs = {
            Action.SUSPEND: ["qmod", "-sj"],
            Action.RESUME: ["qmod", "-usj"],
            Action.HOLD: ["qhold"],
            Action.RELEASE: ["qrls"],
        }
        return [[*verbs.get(action, ["qdel"]), *short]]

    def undone(self, output: str) -> str | None:
        """`qmod` ends well also where it could not do what it was told."""
        return next((line for line in output.splitlines() if "can not be applied" in line), None)

    def limits(self) -> Command:
        """The configuration has max_aj_tasks."""
        return ["qconf", "-sconf"]

    def most(self, output: str) -> int | None:
        """0 is no limit (sge_conf(5))."""
        found = re.search(r"^max_aj_tasks\s+(\d+)", output, re.MULTILINE)
        return int(found[1]) or None if found else None

    def _slots(self, template: JobTemplate) -> list[str]:
        least, most = template.min_slots, template.max_slots
        name = extension(template, "parallel_environment") or self._environment
        if (most or least or 1) == 1 and extension(template, "parallel_environment") is None:
            return []
        if name is None:
            field = "min_slots" if (least or 1) > 1 else "max_slots"
            words = (
                f"gridengine: {field} above 1 needs the name of a parallel environment of the site (qconf -spl): "
                "the context's parallel_environment, or the extension of that name"
            )
            raise UnsupportedAttributeError(words)
        least = least or 1
        return ["-pe", name, str(least) if most in (None, least) else f"{least}-{most}"]

    def _resources(self, template: JobTemplate) -> list[str]:
        wanted: dict[str, Any] = {}
        limit = time_limit(template)
        if limit is not None:
            wanted["h_rt"] = int(-(-limit // 1))
        warning = extension(template, "signal")
        if warning is not None:
            wanted["s_rt"] = _warned(warning, wanted.get("h_rt"))
        memory, each = template.min_phys_memory, extension(template, "memory_per_cpu")
        if memory and each:
            raise InvalidArgumentError("give min_phys_memory or the extension memory_per_cpu, not both")
        if memory:
            slots = template.min_slots or 1
            wanted[self._memory] = f"{-(-memory // slots) if self._per_slot else memory}K"
        if each:
            wanted[self._memory] = each
        gpus = extension(template, "gpus")
        if gpus is not None:
            wanted[self._gpu] = gpus
        if flag(template, "exclusive"):
            wanted["exclusive"] = "true"
        wanted |= {"hostname": _hosts(template), "arch": _arch(template)}
        hard = [f"{name}={value}" for name, value in wanted.items() if value is not None]
        found = ["-l", ",".join(hard)] if hard else []
        more = extension(template, "resources")
        if more is not None:
            found += ["-l", more]
        soft = extension(template, "soft_resources")
        return found if soft is None else [*found, "-soft", "-l", soft, "-hard"]


def _named(job: Job) -> list[str]:
    """Our key in the name, which every list shows; where the user gave a name, in the job's context."""
    key = job.key.replace("/", "_")
    if job.template.job_name:
        return ["-N", job_name(job.template, key), "-ac", f"{_KEY}=wfl-{key}"]
    return ["-N", f"wfl-{key}"]


def _array(job: Job) -> list[str]:
    if job.wave is None:
        return []
    numbers = job.wave.numbers
    limit = ["-tc", str(job.entry.max_parallel)] if job.entry.max_parallel else []
    step = numbers.step if len(numbers) > 1 else 1
    return ["-t", f"{numbers[0]}-{numbers[-1]}:{step}", *limit, *(["-hold_jid", job.after] if job.after else [])]


def _warned(text: str, limit: int | None) -> int:
    """The soft limit of time, at which a job gets SIGUSR1 (queue_conf(5))."""
    found = _SIGNAL.match(text)
    if found is None:
        words = f"extensions: signal is {text!r}: gridengine can send USR1 before the limit of time: 'USR1@SECONDS'"
        raise UnsupportedAttributeError(words)
    if limit is None or int(found[1]) >= limit:
        raise InvalidArgumentError(f"extensions: signal is {text!r}: resource_limits needs a WALLCLOCK_TIME above that")
    return limit - int(found[1])


def _hosts(template: JobTemplate) -> str | None:
    wanted = list(template.candidate_machines or ())
    excluded = [name for name in (extension(template, "exclude") or "").split(",") if name]
    for name in (*wanted, *excluded):
        if not _HOST.match(name):
            raise InvalidArgumentError(f"{name!r} is no name of a machine, and no pattern of such names")
    first, second = "|".join(wanted), "|".join(excluded)
    if not second:
        return first or None
    return f"({first})&!({second})" if first else f"!({second})"


def _arch(template: JobTemplate) -> str | None:
    """As Grid Engine has system and architecture in one, such as lx-amd64."""
    system, architecture = template.machine_os, template.machine_arch
    for name in (system, architecture):
        if name and _MALFORMED.search(name):
            raise InvalidArgumentError(f"{name!r} is no name of a system or an architecture")
    if not architecture:
        return _OS.get(system.upper(), system) if system else None
    ending = _ARCHITECTURES.get(architecture.upper(), architecture)
    if not system:
        return ending
    beginning = _OS.get(system.upper(), f"{system}*")
    return beginning + ending.removeprefix("*") if ending.startswith("*") else ending


def _verified(template: JobTemplate) -> list[str]:
    """Refused at once where no machine is of that kind; such that are away count (seen).

    Only where nothing is asked for that changes with the load: qsub would look whether that can be had now.
    """
    volatile = template.min_phys_memory or any(extension(template, name) is not None for name in _VOLATILE)
    return ["-w", "e"] if (template.machine_os or template.machine_arch) and not volatile else []


def _wishes(template: JobTemplate) -> list[str]:
    found = []
    priority = template.priority
    if priority is not None and priority not in _PRIORITIES:
        raise InvalidArgumentError(f"priority is {priority}: gridengine has {_PRIORITIES[0]} to {_PRIORITIES[-1]}")
    account = template.accounting_id
    if account and (not _ACCOUNT.match(account) or any(letter in account for letter in "*\\")):
        words = (
            f"accounting_id is {account!r}: gridengine takes ASCII without spaces and without any of / : ? @ * \\ in it"
        )
        raise InvalidArgumentError(words)
    for option, value in (
        ("-q", template.queue_name),
        ("-A", template.accounting_id),
        ("-ar", template.reservation_id),
        ("-p", priority),
        ("-M", ",".join(template.email or ())),
        ("-m", ("b" if template.email_on_started else "") + ("ea" if template.email_on_terminated else "")),
        *((option, extension(template, name)) for name, option in _OPTIONS.items()),
    ):
        if value:
            found += [option, str(value)]
    if template.submit_as_hold:
        found += ["-h"]
    if template.start_time:  # whole seconds, and not before
        found += ["-a", f"{later(template.start_time, seconds=1):%Y%m%d%H%M.%S}"]
    return found


def _key(name: str) -> str | None:
    """Ours, as Job.key has it, in a name that we gave."""
    found = _NAMED.match(name)
    return None if found is None else found[1] + (f"/{found[2]}" if found[2] else "")


def _seen(said: Mapping[str, str]) -> Seen:
    letters = said.get("state", "")
    stuck = "E" in letters and "d" not in letters
    state = _state(letters, said.get("predecessor_jobs"))
    begun = state.started
    queue, _, host = said.get("queue_name", "").partition("@")
    slots = said.get("slots", "")
    waits = "predecessor_jobs" in said and state is JobState.QUEUED
    info = fact(
        state=state,
        submission_time=_time(said.get("JB_submission_time", "")),
        dispatch_time=_time(said.get("JAT_start_time", "")) if begun else None,
        queue_name=(queue or None) if begun else None,
        slots=int(slots) if slots.isdigit() and begun else None,
        allocated_machines=(host,) if host and begun else (),
        annotation=f"it waits for the end of job {said['predecessor_jobs']}" if waits else None,
    )
    return Seen(
        said.get("JB_job_number", ""),
        ranges(said.get("tasks", "")),
        info,
        _key(said.get("full_job_name") or said.get("JB_name", "")),
        stuck=stuck,
    )


def _state(letters: str, predecessors: str | None) -> JobState:
    """sge_status(5); "d" says that it is being deleted, "h" of one that runs that it is held when it waits again."""
    if "q" in letters or "w" in letters:
        held = "h" in letters and predecessors is None
        if "R" in letters:
            return JobState.REQUEUED_HELD if held else JobState.REQUEUED
        return JobState.QUEUED_HELD if held else JobState.QUEUED
    if any(letter in letters for letter in "sSTNP"):
        return JobState.SUSPENDED
    if any(letter in letters for letter in "rt"):
        return JobState.RUNNING
    return JobState.UNDETERMINED


def _shortened(ids: Sequence[str]) -> list[str]:
    """Neighbours in one word: 12.1 12.2 12.3 is 12.1-3."""
    arrays: dict[str, list[int]] = {}
    found = []
    for id in ids:
        base, dot, number = id.partition(".")
        if dot:
            arrays.setdefault(base, []).append(int(number))
        else:
            found.append(id)
    for base, numbers in arrays.items():
        runs: list[list[int]] = []
        for one in sorted(numbers):
            if runs and one == runs[-1][-1] + 1:
                runs[-1].append(one)
            else:
                runs.append([one])
        found += [f"{base}.{run[0]}" + (f"-{run[-1]}" if len(run) > 1 else "") for run in runs]
    return found


def _described(output: str) -> Iterator[tuple[str, dict[str, str]]]:
    """What `qstat -j` says of each job; an id comes first."""
    said: dict[str, str] = {}
    for line in output.splitlines():
        name, colon, value = line.partition(":")
        if name == "job_number":
            if said:
                yield said["job_number"], said
            said = {}
        if colon and (said or name == "job_number"):
            said[" ".join(name.split())] = value.strip()
    if said:
        yield said["job_number"], said


def _account(said: Mapping[str, str]) -> Account:
    code, _, words = said.get("failed", "0").partition(":")
    failed = int(code.split()[0]) if code.split() and code.split()[0].isdigit() else 0
    status = int(re.match(r"\d*", said.get("exit_status", ""))[0] or 0)  # type: ignore[index] # it matches ""
    number = said.get("taskid", "undefined")
    cause, signal = _cause(failed, status, said)
    started = _time(said.get("start_time", ""))
    memory = {"ru_maxrss": _amount(said.get("ru_maxrss", "")), "max_vmem_kib": _amount(said["maxvmem"]) / 1024}
    return Account(
        said["jobnumber"],
        int(number) if number.isdigit() and int(number) else None,
        exit_status=None if cause or signal or started is None else status,
        signal=signal,
        cause=cause,
        info=fact(
            submission_time=_time(said.get("qsub_time", "")),
            dispatch_time=started,
            finish_time=_time(said.get("end_time", "")),
            wallclock_time=timedelta(seconds=_amount(said.get("ru_wallclock", ""))) if started else None,
            cpu_time=timedelta(seconds=_cpu(said)) if started else None,
            slots=int(said["slots"]) if said.get("slots", "").isdigit() else None,
            queue_name=said.get("qname") if started else None,
            allocated_machines=(said["hostname"],) if started and said.get("hostname") else (),
            annotation=f"failed {failed}: {words.strip()}" if failed not in (0, _ASSUMED) else None,
            extensions=FrozenDict({name: str(int(value)) for name, value in memory.items() if value >= 1}),
        ),
        over=failed not in _AGAIN,
    )


def _cause(failed: int, status: int, said: Mapping[str, str]) -> tuple[SubState | None, int | None]:
    """Why it ended, and by which signal."""
    signal = status - 128 if status > 128 else None  # noqa: PLR2004 - as a shell has it
    if failed == 0 or failed in _AFTER or failed in _AGAIN:  # an exit status over 128 is the script's own
        return None, None
    if failed == _LIMIT:
        return _exceeded(said), signal
    if failed in (_SIGNALLED, _ASSUMED):
        return (None, signal) if signal else ("node_failure", None)
    return ("node_failure" if failed in _BROKEN else "launch_failure"), None


def _exceeded(said: Mapping[str, str]) -> SubState:
    """Which of its limits it was: there is one code for time, processor time and memory."""
    limits = dict(re.findall(r"\b(h_rt|h_cpu|h_vmem)=([^,\s]+)", said.get("category", "")))
    slots = int(said.get("slots", "1") or 1)
    if "h_vmem" in limits and _amount(said.get("maxvmem", "")) >= _amount(limits["h_vmem"], 1024) * slots:
        return "out_of_memory"
    return "timeout"


def _cpu(said: Mapping[str, str]) -> float:
    """What was measured while it ran, or by the kernel of what has ended: neither has all."""
    return max(_amount(said.get("cpu", "")), _amount(said.get("ru_utime", "")) + _amount(said.get("ru_stime", "")))


_UNITS = {"K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def _amount(text: str, base: int = 1000) -> float:
    """`4`, `3s`, `3.383MB`, `1.5G`, `00:01:02`: qacct counts by thousands, and shows ru_maxrss, KiB, as if bytes."""
    if ":" in text:
        return in_seconds(text)
    found = re.match(r"([\d.]+)(?:e([+-]?\d+))?([KMGTP])?", text, re.IGNORECASE)
    if found is None:
        return 0.0
    power = _UNITS[found[3].upper()] if found[3] else 0
    return float(found[1]) * 10.0 ** int(found[2] or 0) * float(base) ** power


_FORMATS = ("%a %b %d %H:%M:%S %Y", "%Y-%m-%dT%H:%M:%S", "%m/%d/%Y %H:%M:%S", "%Y-%m-%d %H:%M:%S", "%d/%m/%Y %H:%M:%S")


@functools.lru_cache(maxsize=4096)  # jobs of an array have many in common, and reading one is slow
def _time(text: str) -> datetime | None:
    """The local time in the forms that different versions have, with or without parts of a second; or since 1970."""
    if text.isdigit():
        number = int(text)
        seconds = number / 1000 if number > 10**11 else number  # later versions count milliseconds
        return datetime.fromtimestamp(seconds, UTC) if number else None
    plain, _, part = text.partition(".")
    for form in _FORMATS:
        try:
            when = datetime.strptime(plain, form).astimezone(UTC)  # the local time zone is meant
        except ValueError:
            continue
        return when + timedelta(seconds=float(f"0.{part}")) if part.isdigit() else when
    return None


class GridEngineContext(BatchContext):
    """Run each job through Grid Engine's commands, on a machine that can submit jobs.

    Besides the settings of every context of a cluster (see `BatchContext`):
    parallel_environment: the site's parallel environment for jobs with more than one slot (qconf -spl); such jobs are
    refused without one.
    memory_resource: the resource that min_phys_memory is asked as: h_vmem is a limit, too, of all the memory that a job
    maps; mem_free and virtual_free are what a machine has to have left. What a site has, `qconf -sc` tells.
    memory_per_slot: True where the site counts this resource for each slot, so that it is divided by their number.
    gpu_resource: the site's resource for the extension gpus.

    Extensions of a template: parallel_environment; gpus; memory_per_cpu (such as 4G, for each slot); exclude (machines,
    with commas between them); exclusive ("true": the site's resource exclusive); project (-P; accounting_id is the
    accounting string, -A); dependency (ids or names of jobs that have to end before, with commas between them); signal
    ("USR1@60": this signal so many seconds before the limit of time); resources and soft_resources (as -l has them);
    inherit_environment; and native: options as qsub takes them.

    TERMINATE and KILL are the same: Grid Engine kills with SIGKILL. A command's exit statuses 99 and 100, by which Grid
    Engine takes a job back or sets it aside, have no such meaning here.
    """

    name = "gridengine"

    def __init__(
        self,
        *,
        parallel_environment: str | None = None,
        memory_resource: str = "h_vmem",
        memory_per_slot: bool = True,
        gpu_resource: str = "gpu",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.parallel_environment, self.memory_resource = parallel_environment, memory_resource
        self.memory_per_slot, self.gpu_resource = memory_per_slot, gpu_resource

    def scheduler(self) -> Scheduler:
        """Grid Engine's language."""
        return GridEngine(
            memory_resource=self.memory_resource,
            memory_per_slot=self.memory_per_slot,
            gpu_resource=self.gpu_resource,
            parallel_environment=self.parallel_environment,
        )

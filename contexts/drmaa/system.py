"""What a template becomes in the library's own attributes, and what its answers mean. Pure.

On Grid Engine all that qsub's command line would say is said, by attributes and by the native specification; elsewhere
what DRMAA 1 has a name for.
"""

from __future__ import annotations

import os
import re
import signal
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from wfl.contexts.batch.gridengine import GridEngine
from wfl.contexts.batch.quantities import time_limit
from wfl.contexts.batch.scheduler import NATIVE, Scheduler, extension, job_name
from wfl.contexts.ends import Account
from wfl.drmaa2 import Capability, FrozenDict, JobState, SubState, fact
from wfl.errors import InvalidArgumentError, UnsupportedOperationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from wfl.backend import Action
    from wfl.contexts.batch.scheduler import Command, Job, Seen
    from wfl.contexts.drmaa.library import Waited
    from wfl.drmaa2 import JobTemplate

STATES = {
    "queued_active": JobState.QUEUED,
    "system_on_hold": JobState.QUEUED_HELD,
    "user_on_hold": JobState.QUEUED_HELD,
    "user_system_on_hold": JobState.QUEUED_HELD,
    "running": JobState.RUNNING,
    "system_suspended": JobState.SUSPENDED,
    "user_suspended": JobState.SUSPENDED,
    "user_system_suspended": JobState.SUSPENDED,
}
"""By the package's names of states; an end says more than its name."""
_GRID_ENGINE = re.compile(r"\b(SGE|GE|UGE|OGE|OCS|GCS)\b|Grid ?Engine", re.IGNORECASE)
_SET = {"-terse": 0, "-C": 1, "-N": 1, "-S": 1, "-wd": 1, "-o": 1, "-j": 1, "-t": 1}
"""Options of qsub, and how many words follow, that are attributes here, or have no meaning."""
_TOO_MANY = re.compile(r"more than (\d+) tasks")
_MILLISECONDS = 1e11
"""Times above that are no seconds: some libraries count milliseconds."""


class Portable(Scheduler):
    """Any scheduler with a library of DRMAA 1: what has no attribute there is refused, and arrays are single jobs."""

    name = "drmaa"
    fields = frozenset({"email", "email_on_terminated", "job_category", "start_time"})
    extensions = frozenset({NATIVE})
    capabilities = frozenset({Capability.JT_EMAIL})
    lacks = frozenset({Capability.NATIVE_ARRAYS})
    down_words = ()
    number = "TASK_ID"

    def submit(self, job: Job) -> Command:
        """There is no command."""
        del job
        return ()

    def accepted(self, output: str) -> str:
        """As it is."""
        return output

    def query(self, user: str) -> Command:
        """DRMAA 1 has no list."""
        raise UnsupportedOperationError(f"drmaa: no list of the jobs of {user}")

    def seen(self, output: str) -> Iterable[Seen]:
        """Nothing."""
        del output
        return ()

    def accounting(self, ids: Sequence[str], user: str, rung: int) -> Sequence[Command]:
        """DRMAA 1 tells of an end once."""
        del ids, user, rung
        return ()

    def accounts(self, output: str, rung: int, ids: Collection[str] = ()) -> Iterable[Account]:
        """Nothing."""
        del output, rung, ids
        return ()

    def control(self, ids: Sequence[str], action: Action) -> Sequence[Command]:
        """There is no command."""
        del ids, action
        return ()


class DrmaaGridEngine(GridEngine):
    """Grid Engine behind its library, which knows the site's job categories too (qtask(5))."""

    name = "drmaa"
    late = True
    fields = GridEngine.fields | {"job_category"}


def scheduler(system: str, **settings: Any) -> Scheduler:
    """By what the library calls its system; the settings are Grid Engine's."""
    return DrmaaGridEngine(**settings) if _GRID_ENGINE.search(system) else Portable()


def attributes(job: Job, scheduler: Scheduler) -> dict[str, Any]:
    """What is set on the library's template; as bytes, since the package would encode text after the language."""
    template = job.template
    found: dict[str, Any] = {
        "jobName": job_name(template, job.key),
        "remoteCommand": "/bin/sh",
        "args": [*([] if job.inherit else ["-l"]), job.script, *job.offset],
        "workingDirectory": "/",
        "outputPath": f":{job.log}",
        "joinFiles": True,
    }
    if template.job_category:
        found["jobCategory"] = template.job_category
    if isinstance(scheduler, GridEngine):
        command = scheduler.submit(job)
        found["jobName"] = command[command.index("-N") + 1]
        found["nativeSpecification"] = _specification(command)
    else:
        found |= _portable(job)
    return {name: _encoded(value) for name, value in found.items() if value != ""}


def _portable(job: Job) -> dict[str, Any]:
    template = job.template
    if job.inherit:
        words = "drmaa: DRMAA 1 has nothing for inherit_environment: use the scheduler's own option, by native"
        raise InvalidArgumentError(words)
    found: dict[str, Any] = {"nativeSpecification": extension(template, NATIVE) or ""}
    if template.submit_as_hold:
        found["jobSubmissionState"] = "drmaa_hold"
    if template.email:
        found |= {"email": list(template.email), "blockEmail": not template.email_on_terminated}
    return found


def _specification(command: Command) -> str:
    """The options of a qsub, but for those that are attributes and for the script."""
    words, options = iter(command[1:-1]), []
    for word in words:
        if word in _SET:
            for _ in range(_SET[word]):
                next(words)
        elif not word or re.search(r"\s", word):
            raise InvalidArgumentError(f"drmaa: the library splits options at blanks, so {word!r} cannot be passed on")
        else:
            options.append(word)
    return " ".join(options)


def most(words: str) -> int | None:
    """How many elements an array may have, where an error tells."""
    found = _TOO_MANY.search(words)
    return int(found[1]) if found else None


def account(waited: Waited, template: JobTemplate) -> Account:
    """What the library says of an end."""
    said = waited.usage
    begun, over = _time(said, "start_time"), _time(said, "end_time")
    wallclock = _span(said, "ru_wallclock") or (over - begun if begun and over else None)
    number = _signal(waited.signal)
    cause: SubState | None = "cancelled" if waited.aborted else None
    limit = time_limit(template)
    if number and limit and wallclock and wallclock.total_seconds() >= limit:
        cause = "timeout"
    memory = {"ru_maxrss": _number(said, "ru_maxrss"), "max_vmem_kib": (_number(said, "maxvmem") or 0) / 1024}
    least, greatest = template.min_slots or 1, template.max_slots
    return Account(
        waited.id,
        None,
        exit_status=waited.exit_status,
        signal=number,
        cause=cause,
        info=fact(
            submission_time=_time(said, "submission_time"),
            dispatch_time=begun,
            finish_time=over,
            wallclock_time=wallclock,
            cpu_time=_span(said, "cpu"),
            slots=least if greatest in (None, least) and begun else None,
            extensions=FrozenDict({name: str(int(value)) for name, value in memory.items() if value and value >= 1}),
        ),
    )


def _encoded(value: Any) -> Any:
    if isinstance(value, list):
        return [os.fsencode(text) for text in value]
    return os.fsencode(value) if isinstance(value, str) else value


def _number(said: Mapping[str, str], name: str) -> float | None:
    try:
        return float(said[name]) or None
    except (KeyError, ValueError):
        return None


def _time(said: Mapping[str, str], name: str) -> datetime | None:
    value = _number(said, name)
    if value is None:
        return None
    return datetime.fromtimestamp(value / 1000 if value > _MILLISECONDS else value, UTC)


def _span(said: Mapping[str, str], name: str) -> timedelta | None:
    value = _number(said, name)
    return None if value is None else timedelta(seconds=value)


def _signal(name: str | None) -> int | None:
    try:
        return signal.Signals[name].value if name else None
    except KeyError:
        return None

"""Schedulers as they are without wfl: jobs by hand with the scheduler's own blocking wait, its list, and its counts."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tests.bench.references import ROOT, TRUE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Command = Sequence[str]

PATIENCE = 1800.0
"""Seconds that everything by hand may take."""
ANSWER = 60.0
"""Seconds that a question may take."""
IDS = 500
"""Ids on one command line."""
FROM_NODES = ("MESSAGE_", "REQUEST_COMPLETE_", "REQUEST_STEP_COMPLETE")
"""How the names of RPCs begin that Slurm's own daemons send."""
COUNTING = "REQUEST_STATS_INFO"
"""The RPC of `sdiag` itself."""
TAIL = 4096
"""Bytes that hold Grid Engine's last record of an end."""
_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Jobs from their submission to the end of the wait. `begin` is by the clock of the day."""

    begin: float
    seconds: float
    ids: Sequence[str]


class Scheduler(ABC):
    """One that `make services` starts."""

    question: ClassVar[Command]
    """Only a scheduler that is there answers it."""
    wait: ClassVar[str]
    """Its own way to wait, in words."""
    notes: ClassVar[bool] = False
    """Whether `noted` can tell."""

    def __init__(self, service: str) -> None:
        self.service = service

    @cached_property
    def variables(self) -> dict[str, str]:
        """What its clients need."""
        script = ROOT / "tests" / "services" / "environment.sh"
        told = subprocess.check_output([script, self.service], text=True)
        return dict(line.split("=", 1) for line in told.splitlines())

    @property
    @abstractmethod
    def settings(self) -> Path:
        """What is there once it was started."""

    def lacks(self) -> str | None:
        """Why nothing can be measured here; None if something can."""
        if not self.settings.exists():
            return f"there is no {self.settings}; `make services` makes it"
        try:
            self.tell(self.question)
        except (OSError, subprocess.SubprocessError) as error:
            return f"{error}; start it with `make services`"
        return None

    def tell(self, command: Command, where: str | None = None, timeout: float = ANSWER) -> str:
        """The output of a command."""
        environment = {**os.environ, **self.variables}
        return subprocess.check_output(
            command, cwd=where, env=environment, stdin=subprocess.DEVNULL, text=True, timeout=timeout
        )

    # -- by hand --

    def array(self, tasks: int) -> Run:
        """One array of `true`; its output is left where the scheduler puts it."""
        return self._wait(tasks, lambda name: self.array_command(name, tasks))

    def singles(self, tasks: int) -> Run:
        """As many jobs by one shell, one after another; then one more that begins after them, and is waited for."""

        def command(name: str) -> Command:
            one, last = map(shlex.join, self.single_commands(name))
            return ["sh", "-c", f"i=0; while [ $((i += 1)) -le {tasks} ]; do {one} || exit; done; exec {last}"]

        return self._wait(tasks, command)

    def _wait(self, tasks: int, command: Callable[[str], Command]) -> Run:
        name = f"bench-{os.getpid()}-{next(_numbers)}"
        with tempfile.TemporaryDirectory(prefix="wfl-bench-", ignore_cleanup_errors=True) as place:
            begin, clock = time.time(), time.perf_counter()
            try:
                told = self.tell(command(name), place, PATIENCE)
            except BaseException:
                with suppress(OSError, subprocess.SubprocessError):
                    self.tell(self.cancel_command(name))
                raise
            seconds = time.perf_counter() - clock
            return Run(begin=begin, seconds=seconds, ids=told.split()[:tasks])  # without the one that only waits

    @abstractmethod
    def array_command(self, name: str, tasks: int) -> Command:
        """Submits an array, prints its id, and waits for its end."""

    @abstractmethod
    def single_commands(self, name: str) -> tuple[Command, Command]:
        """One that submits a job and prints its id; one that submits the last, and waits for its end."""

    @abstractmethod
    def cancel_command(self, name: str) -> Command:
        """Ends all jobs of a name."""

    # -- what it knows --

    def to_last_end(self, run: Run) -> float | None:
        """Seconds to the end of the last job, where the list shows what has ended: at least 1, by whole seconds."""
        del run
        return None

    def noted(self, id: str) -> float | None:
        """When the scheduler noted the end of this job, if no other job has ended since; None if it does not tell."""
        del id
        return None

    def requests(self) -> Counter[str] | None:
        """What clients have asked it up to now, by kind; None where it does not count."""
        return None


class Slurm(Scheduler):
    """Its own wait is that of sbatch, which asks after 2 s, then after 4 more, then after 6, at last every 10 s."""

    question = ("sinfo", "--noheader")
    wait = "sbatch --wait"
    notes = True

    @property
    def settings(self) -> Path:
        """The configuration."""
        return Path(self.variables["SLURM_CONF"])

    def array_command(self, name: str, tasks: int) -> Command:
        """`sbatch --wait --array`."""
        return ["sbatch", "--parsable", f"--job-name={name}", f"--wrap={TRUE}", "--wait", f"--array=1-{tasks}"]

    def single_commands(self, name: str) -> tuple[Command, Command]:
        """`sbatch`; and `sbatch --wait` for one that begins when all of its name have ended."""
        one = ["sbatch", "--parsable", f"--job-name={name}", f"--wrap={TRUE}"]
        return one, [*one, "--wait", "--dependency=singleton"]

    def cancel_command(self, name: str) -> Command:
        """`scancel`."""
        return ["scancel", f"--name={name}"]

    def to_last_end(self, run: Run) -> float | None:
        """`squeue` shows for some minutes what has ended, with times that are cut to whole seconds."""
        ends = ""
        for start in range(0, len(run.ids), IDS):
            part = ",".join(run.ids[start : start + IDS])
            listed = ["squeue", "--noheader", "--states=all", "--array", f"--jobs={part}", "--format=%e"]
            ends += self.tell(["env", "SLURM_TIME_FORMAT=%s", *listed])
        last = max(map(float, ends.split()), default=None)
        return None if last is None else max(1.0, last + 0.5 - run.begin)

    def noted(self, id: str) -> float | None:
        """When slurmctld wrote into its log that the job has ended; slurmdbd learns of it afterwards."""
        told = (self.settings.parent / "log" / "slurmctld.log").read_text(errors="replace")
        ends = re.findall(rf"^\[(\S+)\] _job_complete: JobId={id} done$", told, re.MULTILINE)
        return datetime.fromisoformat(ends[-1]).timestamp() if ends else None

    def requests(self) -> Counter[str]:
        """`sdiag`, without what the nodes send."""
        kinds = re.findall(r"^\s*(\w+) +\( *\d+\) +count:(\d+)", self._by_type(), re.MULTILINE)
        theirs = (*FROM_NODES, COUNTING)
        return Counter({kind: int(count) for kind, count in kinds if not kind.startswith(theirs)})

    def _by_type(self) -> str:
        told = self.tell(["sdiag"])
        return told.partition("statistics by message type")[2].partition("statistics by user")[0]


class GridEngine(Scheduler):
    """Its own wait is that of `qsub -sync`, which the scheduler tells."""

    question = ("qstat",)
    wait = "qsub -sync y"
    notes = True

    @property
    def settings(self) -> Path:
        """Its directory."""
        return Path(self.variables["SGE_ROOT"])

    def array_command(self, name: str, tasks: int) -> Command:
        """`qsub -sync y -t`."""
        return self._submit(name, "-sync", "y", "-t", f"1-{tasks}")

    def single_commands(self, name: str) -> tuple[Command, Command]:
        """`qsub`; and `qsub -sync y` for one that is held until all of that name have ended."""
        return self._submit(name), self._submit(f"{name}-last", "-sync", "y", "-hold_jid", name)

    @staticmethod
    def _submit(name: str, *more: str) -> Command:
        """By the shell that wfl's jobs have: the queue's own may read a person's files for a second."""
        return ["qsub", "-terse", "-cwd", "-N", name, *more, "-S", "/bin/sh", "-b", "y", TRUE]

    def cancel_command(self, name: str) -> Command:
        """`qdel`."""
        return ["qdel", f"{name}*"]

    def noted(self, id: str) -> float | None:
        """The file of its records changes with each end (accounting_flush_time is 0); that is exact to some ms."""
        path = self.settings / self.variables["SGE_CELL"] / "common" / "accounting"
        with path.open("rb") as file:
            changed = os.fstat(file.fileno())
            file.seek(max(0, changed.st_size - TAIL))
            last = file.read().decode(errors="replace").splitlines()[-1].split(":")
        return changed.st_mtime if last[5] == id else None

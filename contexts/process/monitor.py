"""This machine as it is looked at: itself, and the tasks of all programs, which their mark in the environment tells."""

from __future__ import annotations

import os
import pwd
import socket
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from wfl.backend import Monitor
from wfl.contexts import host
from wfl.contexts.process import keeper
from wfl.drmaa2 import FrozenDict, JobInfo, JobState, fact
from wfl.errors import UnsupportedOperationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wfl.drmaa2 import MachineInfo


class ProcessMonitor(Monitor):
    """Jobs are the tasks whose processes this user may look into: the own ones, all for root.

    Of a job are known: id, state, machine, owner, when it was dispatched (to 0.01 s), and the id of its first process
    in extensions["pid"]. There are no queues and no job categories.
    """

    def jobs(self, session_name: str | None) -> Sequence[JobInfo]:
        """One for each task that has a living first process. Raises UnsupportedOperationError for a session's alone."""
        if session_name is not None:
            words = "processes do not bear the name of their session; ask for all jobs, or open the session"
            raise UnsupportedOperationError(f"process: {words}")
        if not os.path.isdir("/proc/self"):
            raise UnsupportedOperationError("process: the processes of this machine cannot be listed: it has no /proc")
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        infos = [_job(key, pid, boot) for key, pid in _first_processes().items()]
        return [info for info in infos if info is not None]

    def machines(self) -> Sequence[MachineInfo]:
        """This one."""
        return [host.this_machine()]


def _first_processes() -> dict[str, int]:
    """Of each task: a keeper starts it in a session of its own, and is not of the task itself.

    A descendant may have made itself a session, too, and lost its parents: the first one is the oldest.
    """
    found: dict[str, tuple[int, int]] = {}
    for pid, (parent, session, _) in keeper.processes().items():
        if pid != session:
            continue
        key, ticks = keeper.mark_of(pid, looks=20), keeper.start_ticks(pid)
        if key and ticks is not None and keeper.mark_of(parent) != key:
            found[key] = min(found.get(key, (ticks, pid)), (ticks, pid))
    return {key: pid for key, (_, pid) in found.items()}


def _job(key: str, pid: int, boot: float) -> JobInfo | None:
    """What the system says of it; None if it has just ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            values = file.read().rpartition(b")")[2].split()
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
    state, ticks = values[0], int(values[19])  # fields 3 and 22 in proc(5)
    if state in (b"Z", b"X"):
        return None
    return fact(
        id=key,
        state=JobState.SUSPENDED if state == b"T" else JobState.RUNNING,
        allocated_machines=(socket.gethostname(),),
        job_owner=_user(owner),
        slots=1,
        dispatch_time=datetime.fromtimestamp(round(boot + ticks / os.sysconf("SC_CLK_TCK"), 2), UTC),
        extensions=FrozenDict(pid=str(pid)),
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)

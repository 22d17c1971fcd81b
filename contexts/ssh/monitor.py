"""Hosts as they are looked at: themselves as machines, and the jobs below the context's directory on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from wfl.backend import Monitor
from wfl.contexts import host
from wfl.contexts.posix import quoted
from wfl.contexts.ssh import attendant
from wfl.contexts.ssh.connection import Connection, spoken
from wfl.drmaa2 import FrozenDict, JobInfo, JobState, MachineInfo, fact
from wfl.errors import DrmCommunicationError, WflError
from wfl.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wfl.contexts.ssh.line import Speaks
    from wfl.contexts.ssh.login import Login

_T = TypeVar("_T")
TOGETHER = 8
"""Hosts at once."""
_JOBS = """
{home}cd -- {directory} 2>/dev/null || exit 0
w_here
for w_session in {sessions}; do
    cd -- "$w_session" 2>/dev/null || continue
    for w_n in */[0-9]*; do
        [ -d "$w_n" ] && ! w_whole "$w_n" && w_at "$w_n" && [ "$w_home" = here ] && w_command "$w_n" || continue
        printf '%s\\t%s\\t%s\\t%s\\n' "${{w_session%/}}" "$w_n" "$w_state" "$w_process"
    done
    cd ..
done
"""
_MACHINE = """
uname -s; uname -r; uname -m
getconf _NPROCESSORS_ONLN 2>/dev/null || nproc
read -r w_load w_rest 2>/dev/null </proc/loadavg; echo "${w_load:-}"
w_ram= w_swap=
while read -r w_name w_size w_rest; do
    case $w_name in MemTotal:) w_ram=$w_size ;; SwapTotal:) w_swap=$w_size ;; esac
done 2>/dev/null </proc/meminfo
echo "$w_ram"; echo "$w_swap"
"""


class SshMonitor(Monitor):
    """Each call is one connection to each host. A host that cannot be reached has no jobs, and is not available.

    Jobs are those below the context's directory, of all its sessions: of each are known id, state, machine, session,
    and the number of its process in extensions["pid"].
    """

    def __init__(self, logins: Sequence[Login], speaks: Speaks) -> None:
        self._logins, self._speaks = list(logins), speaks

    def jobs(self, session_name: str | None) -> Sequence[JobInfo]:
        """Those that run or are suspended. Raises DrmCommunicationError where no host can be reached."""
        sessions = "*/" if session_name is None else quoted(session_name)
        directory = self._speaks.directory
        home = "" if directory.startswith("/") else "cd && "
        look = attendant.text() + _JOBS.format(home=home, directory=quoted(directory), sessions=sessions)
        return [info for found in self._all(lambda login: self._jobs(login, look)) for info in found or ()]

    def _jobs(self, login: Login, look: str) -> list[JobInfo]:
        return [_job(login, line.split("\t")) for line in self._told(login, look).splitlines()]

    def machines(self) -> Sequence[MachineInfo]:
        """The hosts, by the names that the context was given."""
        found = self._all(lambda login: _machine(login, self._told(login, _MACHINE).splitlines()))
        away = (MachineInfo(name=login.name, available=False) for login in self._logins)
        return [info or other for info, other in zip(found, away, strict=True)]

    def _told(self, login: Login, look: str) -> str:
        connection = Connection(login, timeout=self._speaks.timeout, passphrase=self._speaks.passphrase)
        try:
            return spoken(connection, self._speaks.shell, look)
        finally:
            connection.close()

    def _all(self, one: Callable[[Login], _T]) -> list[_T | None]:
        """Of each host; None for one that does not answer."""
        errors: list[WflError] = []

        def tried(login: Login) -> _T | None:
            try:
                return one(login)
            except DrmCommunicationError as error:
                errors.append(error)
                return None

        found = list(in_threads(tried, self._logins, TOGETHER, "wfl-ssh-monitor"))
        if len(errors) == len(found):
            raise errors[0]
        return found


def _job(login: Login, said: Sequence[str]) -> JobInfo:
    session, path, state, process = said
    return fact(
        id=attendant.key_of(path),
        state=JobState.SUSPENDED if state in ("T", "t") else JobState.RUNNING,
        allocated_machines=(login.name,),
        slots=1,
        extensions=FrozenDict(pid=process, session=session),
    )


def _machine(login: Login, said: Sequence[str]) -> MachineInfo:
    system, release, machine, cores, load, memory, swap = [*said, *[""] * 7][:7]
    return MachineInfo(
        name=login.name,
        available=True,
        cores=int(cores) if cores.isdigit() else None,
        load=float(load) if load else None,
        phys_memory=int(memory) if memory else None,
        virt_memory=int(memory) + int(swap) if memory and swap else None,
        machine_os=host.os_name(system) if system else None,
        machine_os_version=release or None,
        machine_arch=host.architecture(machine) if machine else None,
    )

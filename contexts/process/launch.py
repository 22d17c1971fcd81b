"""From a JobTemplate to what the keeper is told to start: pure but for looking at the file system.

Everything that can be seen to be wrong beforehand is refused here, by path, before anything is started.
"""

from __future__ import annotations

import os
import platform
import resource
import socket
import stat
from functools import cache
from typing import TYPE_CHECKING, Any

from wfl.contexts import checks, host
from wfl.drmaa2 import CPU_TIME, OPEN_FILES, WALLCLOCK_TIME
from wfl.errors import DeniedByDrmsError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wfl.drmaa2 import JobTemplate

FIELDS = frozenset({
    "remote_command", "args", "submit_as_hold", "job_environment", "working_directory", "job_name", "input_path",
    "output_path", "error_path", "join_files", "min_slots", "priority", "candidate_machines", "machine_os",
    "machine_arch", "start_time", "deadline_time", "stage_in_files", "stage_out_files", "resource_limits",
    "extensions",
})  # fmt: skip
"""Template fields that mean something to a process."""

_LIMITS = {
    "CORE_FILE_SIZE": resource.RLIMIT_CORE,
    "CPU_TIME": resource.RLIMIT_CPU,
    "DATA_SEGMENT_SIZE": resource.RLIMIT_DATA,
    "FILE_SIZE": resource.RLIMIT_FSIZE,
    "OPEN_FILES": resource.RLIMIT_NOFILE,
    "STACK_SIZE": resource.RLIMIT_STACK,
    "VIRTUAL_MEMORY": resource.RLIMIT_AS,
}
LOWEST, HIGHEST = -20, 19  # niceness (setpriority(2))
_ALL_MAY = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH


def order(template: JobTemplate, env: Mapping[str, str]) -> dict[str, Any]:
    """What the keeper needs to start this template; `env` is the whole environment that the command will see.

    Raises InvalidArgumentError or DeniedByDrmsError naming what is wrong.
    """
    if not template.remote_command:
        raise InvalidArgumentError("remote_command is empty: name the program to run")
    _check_host(template)
    cwd = _directory(template)
    argv = [template.remote_command, *(template.args or ())]
    checks.sizes(argv, env, template.job_environment)
    found: dict[str, Any] = {
        "path": _program(template, cwd, env),
        "argv": argv,
        "cwd": cwd,
        **checks.streams(template, cwd, look=not template.stage_in_files),
        **_limits(template),
    }
    if template.stage_in_files:
        found["stage_in"] = checks.sources(template.stage_in_files)
    if template.stage_out_files:
        found["stage_out"] = {
            os.path.normpath(checks.absolute("stage_out_files", to)): source
            for to, source in template.stage_out_files.items()
        }
    if template.priority is not None:
        found["nice"] = _niceness(template.priority)
    if template.deadline_time is not None:
        found["until"] = template.deadline_time.timestamp()
    return found


def _program(template: JobTemplate, cwd: str, env: Mapping[str, str]) -> str:
    command = template.remote_command or ""
    if template.stage_in_files and "/" in command:
        return os.path.join(cwd, command)  # it may be among the files that are copied in before the start
    return find_program(command, cwd, env.get("PATH") or os.defpath)


def _directory(template: JobTemplate) -> str:
    cwd = checks.absolute("working_directory", template.working_directory or "")
    if template.working_directory:
        _check_directory(cwd)
    return cwd


def find_program(command: str, cwd: str, path: str) -> str:
    """The absolute path of a command, as execvp(3) would find it."""
    if "/" in command:
        candidates = [os.path.join(cwd, command)]
    else:
        candidates = [os.path.join(cwd, place, command) for place in path.split(":")]
    refusal = ""
    for candidate in candidates:
        try:
            mode = os.stat(candidate).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode) and (mode & _ALL_MAY == _ALL_MAY or os.access(candidate, os.X_OK)):
            return candidate
        refusal = refusal or f"{candidate} is {'not executable' if stat.S_ISREG(mode) else 'not a program'}"
    if refusal:
        raise InvalidArgumentError(f"remote_command {command!r}: {refusal}")
    where = "there is no such file" if "/" in command else f"not found in PATH ({path})"
    raise InvalidArgumentError(f"remote_command {command!r}: {where}" + _hint(command))


def _hint(command: str) -> str:
    if " " in command.strip():
        return "; give arguments one by one, or use wfl.shell() for a shell command line"
    return ""


def _check_directory(cwd: str) -> None:
    if not os.path.isdir(cwd):
        raise InvalidArgumentError(f"working_directory {cwd} is not there")
    if not os.access(cwd, os.X_OK):
        raise InvalidArgumentError(f"working_directory {cwd} cannot be entered")


def _limits(template: JobTemplate) -> dict[str, Any]:
    """Real limits as [number, soft, hard]; the keeper itself watches over WALLCLOCK_TIME."""
    found: dict[str, Any] = {}
    limits = []
    for name, value in (template.resource_limits or {}).items():
        if name == WALLCLOCK_TIME:
            found["seconds"] = value
            continue
        number = _LIMITS[name]
        soft = max(1, round(value)) if name == CPU_TIME else int(value) * (1 if name == OPEN_FILES else 1024)
        hard = soft + 2 if name == CPU_TIME else soft  # SIGXCPU first, SIGKILL two seconds later
        highest = resource.getrlimit(number)[1]
        if highest != resource.RLIM_INFINITY:
            if soft > highest and os.geteuid() != 0:
                raise DeniedByDrmsError(f"resource_limits[{name!r}] is {value}, above this host's limit of {highest}")
            hard = hard if os.geteuid() == 0 else min(hard, highest)
        limits.append([number, soft, hard, name])
    if limits:
        found["limits"] = limits
    return found


def _niceness(priority: int) -> int:
    """Higher priority is lower niceness: priority 5 runs with the program's niceness minus 5."""
    nice = os.getpriority(os.PRIO_PROCESS, 0) - priority
    if not LOWEST <= nice <= HIGHEST:
        raise InvalidArgumentError(f"priority {priority} means niceness {nice}; niceness goes from -20 to 19")
    if priority > 0 and os.geteuid() != 0 and 20 - nice > resource.getrlimit(resource.RLIMIT_NICE)[0]:
        raise DeniedByDrmsError(f"priority {priority} needs niceness {nice}, which this user may not set")
    return nice


@cache
def host_names() -> frozenset[str]:
    """What this host is called."""
    name = socket.gethostname()
    return frozenset({name, name.partition(".")[0], "localhost"})


def _check_host(template: JobTemplate) -> None:
    if template.candidate_machines and not host_names() & set(template.candidate_machines):
        wanted = ", ".join(template.candidate_machines)
        raise DeniedByDrmsError(f"candidate_machines are {wanted}; processes run on {socket.gethostname()}")
    if template.machine_os and template.machine_os.upper() != (runs := host.os_name(platform.system())):
        raise DeniedByDrmsError(f"machine_os is {template.machine_os}; this host runs {runs}")
    if template.machine_arch:
        here = host.architecture(platform.machine())
        if template.machine_arch.upper() not in (here, platform.machine().upper()):
            raise DeniedByDrmsError(f"machine_arch is {template.machine_arch}; this host is {here}")

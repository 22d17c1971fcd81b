"""What a POSIX shell does that becomes a job's command: its directory, environment, limits, streams and arguments.

All free text is quoted, so that any character arrives as it is. Plain shell without a command of its own on the way.
Pure: for whoever has a shell run jobs, a scheduler's or a host's.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from wfl.backend import INDEX
from wfl.contexts import checks
from wfl.drmaa2 import CPU_TIME, OPEN_FILES, WALLCLOCK_TIME
from wfl.errors import InvalidArgumentError, UnsupportedAttributeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wfl.drmaa2 import JobTemplate

ULIMIT = {
    "CORE_FILE_SIZE": ("-c", 2),
    CPU_TIME: ("-t", 1),
    "DATA_SEGMENT_SIZE": ("-d", 1),
    "FILE_SIZE": ("-f", 2),
    OPEN_FILES: ("-n", 1),
    "STACK_SIZE": ("-s", 1),
    "VIRTUAL_MEMORY": ("-v", 1),
}
"""The shell's options, and how many of their units are in one of ours: 512 bytes in a KiB, as POSIX has it."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
CR = '"$wfl_cr"'
_PIECES = {INDEX: '"$wfl_index"', "\r": CR}
"""What stands in the script for the placeholder of the index, and for what sbatch takes in no script."""
_SPLIT = re.compile("(" + "|".join(map(re.escape, _PIECES)) + ")")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SHELLS = frozenset(
    {
        "BASHOPTS", "BASHPID", "BASH_ALIASES", "BASH_ARGC", "BASH_ARGV", "BASH_CMDS", "BASH_COMMAND", "BASH_LINENO",
        "BASH_MONOSECONDS", "BASH_SOURCE", "BASH_SUBSHELL", "BASH_TRAPSIG", "BASH_VERSINFO", "DIRSTACK",
        "EPOCHREALTIME", "EPOCHSECONDS", "EUID", "FUNCNAME", "GROUPS", "HISTCMD", "IFS", "LINENO", "OPTIND", "PPID",
        "PS4", "RANDOM", "SECONDS", "SHELLOPTS", "SHLVL", "SRANDOM", "UID", "_",
    }
)  # fmt: skip
_OURS = frozenset(
    {
        "w_group", "w_place", "w_umask", "wfl_by", "wfl_cr", "wfl_end", "wfl_env", "wfl_err", "wfl_id", "wfl_index",
        "wfl_out",
    }
)  # fmt: skip
"""Variables that a shell does not let be set, or goes by itself, and ours that it needs last: `env` sets them."""


def becoming(template: JobTemplate, job_id: str, *, element: bool, last: Iterable[str] = (), by: str = "") -> list[str]:
    """What a shell does that becomes the command of a job, or of an element of the array with this id.

    It is given `wfl_refuse`, which ends it with words, wfl_index for an element, wfl_out and wfl_err, two paths, and
    wfl_cr, a carriage return. `last`: what it does last. `by`: words that run the command.
    """
    return [
        *_surroundings(template),
        *_environment(template.job_environment or {}, job_id, element=element),
        _can_be_run(template),
        *last,
        f"exec {by}{_by_env(template)}{_command(template)} {_streams(template)}",
    ]


def quoted(text: str) -> str:
    """A string for the shell; the placeholder of the index stands for the element's own."""
    return "".join(_PIECES.get(part) or shlex.quote(part) for part in _SPLIT.split(text) if part) or "''"


def _environment(given: Mapping[str, str], job_id: str, *, element: bool) -> list[str]:
    """In the shell that becomes the command: nothing that is set here changes what the shell before it does."""
    lines = ["wfl_by=$(command -v env)"] if any(map(_is_special, given)) else []
    for name, value in given.items():
        if not _is_special(name):
            lines += [f"{name}={quoted(value)}", f"export {name}"]
    lines += [f"JOB_ID={quoted(job_id)}", "export JOB_ID"]
    return [*lines, *(["TASK_ID=$wfl_index", "export TASK_ID"] if element else ["unset TASK_ID"])]


def _by_env(template: JobTemplate) -> str:
    given = (template.job_environment or {}).items()
    special = [f"{name}={quoted(value)}" for name, value in given if _is_special(name)]
    return f'"$wfl_by" {" ".join(special)} ' if special else ""


def _is_special(name: str) -> bool:
    return name in _SHELLS or name in _OURS


def _surroundings(template: JobTemplate) -> list[str]:
    """In a shell of its own, which then becomes the command: what is refused here is written down as never run."""
    where = template.working_directory or "."
    lines = [f"cd -- {quoted(where)} || {_refuse('working_directory', where)}"]
    for target, source in (template.stage_in_files or {}).items():
        refuse = f'wfl_refuse "stage_in_files: {inside(source)} cannot be copied to {inside(target)}"'
        lines += [f"cp -RL -- {quoted(source)} {quoted(target)} || {refuse}"]
    if template.input_path:
        lines += [f"[ -r {quoted(template.input_path)} ] || {_refuse('input_path', template.input_path)}"]
    for field, path in (("output_path", template.output_path), ("error_path", template.error_path)):
        if path:
            lines += [f"command : >{quoted(path)} || {_refuse(field, path)}"]
    for name, value in (template.resource_limits or {}).items():
        if name != WALLCLOCK_TIME:
            option, units = ULIMIT[name]
            lines += [
                f"ulimit {option} {int(value) * units} || wfl_refuse 'resource_limits: {name} {value} is not allowed'"
            ]
    return lines


def _can_be_run(template: JobTemplate) -> str:
    command = template.remote_command or ""
    there = f"[ -f {quoted(command)} ] && [ -x {quoted(command)} ]" if "/" in command else _found(command)
    return f"{there} || {_refuse('remote_command', command)}"


def _found(command: str) -> str:
    return f"command -v {quoted(command)} >/dev/null"


def _refuse(field: str, value: str | None) -> str:
    words = {
        "working_directory": "cannot be entered",
        "input_path": "cannot be read",
        "remote_command": "is no program that can be run here",
    }.get(field, "cannot be written")
    return f'wfl_refuse "{field} {inside(value or "")} {words}"'


def inside(text: str) -> str:
    """For double quotes, on one line."""
    flat = _CONTROLS.sub(" ", text)
    return re.sub(r'([\\"$`])', r"\\\1", flat).replace("\\" + INDEX[:-1] + "\\$", "${wfl_index}")


def _command(template: JobTemplate) -> str:
    return " ".join(quoted(word) for word in (template.remote_command or "", *(template.args or ())))


def _streams(template: JobTemplate) -> str:
    out, err = template.output_path, template.error_path
    joined = template.join_files or (out and out == err)
    source = quoted(template.input_path) if template.input_path else "/dev/null"
    output = quoted(out) if out else '"$wfl_out"'
    errors = "&1" if joined else quoted(err) if err else '"$wfl_err"'
    return f"<{source} >{output} 2>{errors}"


def check_words(template: JobTemplate, limits: Mapping[str, object] = ULIMIT) -> None:
    """Raise for a command, an environment or limits that no script can bring about."""
    if not template.remote_command:
        raise InvalidArgumentError("remote_command is empty: say what to run")
    arguments = [template.remote_command, *(template.args or ())]
    if any("\0" in text for text in (*arguments, *(template.job_environment or {}).values())):
        raise InvalidArgumentError("a NUL character can be in no argument and no variable")
    checks.sizes(arguments, template.job_environment or {}, template.job_environment)
    for name in template.resource_limits or {}:
        if name not in limits and name != WALLCLOCK_TIME:
            raise UnsupportedAttributeError(f"resource_limits: {name} cannot be set by a shell")
    for name in template.job_environment or {}:
        if not _NAME.match(name):
            raise InvalidArgumentError(f"job_environment: {name!r} is no name that a shell can export")

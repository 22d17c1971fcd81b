"""The script that a scheduler runs for a template: environment, directory, streams, command, and a record of the end.

Everything that is free text stands in the file, quoted, and never on the scheduler's own command line, so that quotes,
line breaks, commas and "=" arrive as they are. Plain POSIX shell without any command of its own on the way: a job costs
one shell. Pure: what is written here is what `preview` shows.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING

from wfl.backend import INDEX
from wfl.contexts import checks
from wfl.contexts.batch.place import WHOLE
from wfl.drmaa2 import CPU_TIME, OPEN_FILES, WALLCLOCK_TIME
from wfl.errors import InvalidArgumentError, UnsupportedAttributeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wfl.contexts.batch.place import Entry, Place
    from wfl.drmaa2 import JobTemplate

_ULIMIT = {
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
_SIGNALS = "HUP INT QUIT TERM USR1 USR2 XCPU XFSZ"
"""They reach all processes of a job, also this shell, which has to live on to tell how the command has ended."""


def script(
    entry: Entry,
    place: Place,
    *,
    number: str,
    id: str = "",
    first: int | str = 0,
    step: int = 1,
    login: bool = False,
    reserved: Iterable[int] = (),
    passed_on: str | None = None,
) -> str:
    """The whole script for one job, or for an array whose elements find their number in the variable `number`.

    An element's index is `first + step * number`, with `first` as a number or in the shell's words; `id` is what a
    shell there finds its id by. The script itself never ends with one of the statuses `reserved`. `passed_on`: a signal
    that reaches the script's shell alone.
    """
    template = entry.template
    lines = [
        "(",
        *_surroundings(template),
        f"exec {'$wfl_env ' if passed_on else ''}{_command(template)} {_streams(template)}",
        ")",
        'wfl_status=$? wfl_said=no; [ -s "$wfl_run" ] && wfl_said=yes',
        *_stage_out(template),
        *_end(reserved),
    ]
    return "\n".join(
        [
            f"#!/bin/sh{' -l' if login else ''}",
            f"# {entry.key}",
            f'wfl_id="{id}"',
            *_beginning(entry, place, number, first, step),
            *_environment(template),
            *(_passing_on(passed_on, lines) if passed_on else lines),
            "",
        ]
    )


def _passing_on(signal: str, lines: Iterable[str]) -> list[str]:
    """The same beside a shell that gives a signal to its whole process group.

    A shell that has a command in its foreground would do that after the command's end only; commands in the background
    begin with SIGINT and SIGQUIT ignored, which `env` can undo.
    """
    again = "--default-signal=INT,QUIT"
    return [
        f"wfl_env=; env {again} true 2>/dev/null && wfl_env='env {again}'",
        "{",
        f"trap : {_SIGNALS} {signal}",
        *lines,
        "} &",
        f"wfl_pass_on() {{ wfl_again=yes; trap '' {signal}; kill -s {signal} 0; trap wfl_pass_on {signal}; }}",
        f"trap wfl_again=yes {_SIGNALS}",
        f"trap wfl_pass_on {signal}",
        "wfl_again=yes wfl_status=",
        'while [ "$wfl_again" = yes ]; do',
        'wfl_again=no; wait "$!"; wfl_now=$?',
        '[ "$wfl_now" = 127 ] && [ -n "$wfl_status" ] || wfl_status=$wfl_now',  # it was waited for already
        "done",
        'exit "$wfl_status"',
    ]


def quoted(text: str) -> str:
    """A string for the shell; the placeholder of the index stands for the element's own."""
    return '"$TASK_ID"'.join(shlex.quote(part) if part or INDEX not in text else "" for part in text.split(INDEX))


def _beginning(entry: Entry, place: Place, number: str, first: int | str, step: int) -> list[str]:
    paths = {kind: place.path(kind, entry.key) for kind in ("job", "stop", "run", "end", "out", "err")}
    lines = [f"wfl_{kind}={quoted(path)}" for kind, path in paths.items()]
    if entry.indexes is not None:
        index = f"${{{number}}}" if (first, step) == (0, 1) else f"$(( {first} + {step} * ${{{number}}} ))"
        lines += [
            f"TASK_ID={index}",
            '[ -e "$wfl_stop" ] && kill -9 $$',
            'for wfl_kind in stop run end out err; do eval "wfl_$wfl_kind=\\$wfl_$wfl_kind.\\$TASK_ID"; done',
        ]
    elif entry.index is not None:
        lines += [f"TASK_ID={entry.index}"]
    else:
        lines += ["unset TASK_ID"]
    if entry.indexes is not None or entry.index is not None:
        lines += ["export TASK_ID"]
    return [
        *lines,
        f"JOB_ID={quoted(entry.job_id)}",
        "export JOB_ID",
        f"trap : {_SIGNALS}",
        # Whoever gave up on this job has removed what it needs: it must not run any more.
        '[ -e "$wfl_job" ] || exit 125',
        # Grid Engine loses a kill that comes before a job has a process group, and passes on none after that.
        '[ -e "$wfl_stop" ] && kill -9 $$',
        'exec 2>"$wfl_run" || exit 125',
        '[ -e "$wfl_end" ] && rm -f -- "$wfl_end"',  # of a run before this one, which was not to be the last
        "wfl_begun= wfl_over= wfl_host= wfl_unsaved=",
        "[ -r /proc/uptime ] && read -r wfl_begun wfl_rest </proc/uptime",
        "[ -r /proc/sys/kernel/hostname ] && read -r wfl_host </proc/sys/kernel/hostname",
        f'wfl_refuse() {{ printf \'refused %s\\nid %s\\n{WHOLE}\\n\' "$1" "$wfl_id" >"$wfl_end"; exit 125; }}',
    ]


def _environment(template: JobTemplate) -> list[str]:
    lines = []
    for name, value in (template.job_environment or {}).items():
        if not _NAME.match(name):
            raise InvalidArgumentError(f"job_environment: {name!r} is no name that a shell can export")
        lines += [f"{name}={quoted(value)}", f"export {name}"]
    return lines


def _surroundings(template: JobTemplate) -> list[str]:
    """In a shell of its own, which then becomes the command: what is refused here is written down as never run."""
    where = template.working_directory or "."
    lines = [f"cd -- {quoted(where)} || {_refuse('working_directory', where)}"]
    for target, source in (template.stage_in_files or {}).items():
        refuse = f'wfl_refuse "stage_in_files: {_inside(source)} cannot be copied to {_inside(target)}"'
        lines += [f"cp -RL -- {quoted(source)} {quoted(target)} || {refuse}"]
    if template.input_path:
        lines += [f"[ -r {quoted(template.input_path)} ] || {_refuse('input_path', template.input_path)}"]
    for field, path in (("output_path", template.output_path), ("error_path", template.error_path)):
        if path:
            lines += [f"command : >{quoted(path)} || {_refuse(field, path)}"]
    for name, value in (template.resource_limits or {}).items():
        if name != WALLCLOCK_TIME:
            option, units = _ULIMIT[name]
            lines += [
                f"ulimit {option} {int(value) * units} || wfl_refuse 'resource_limits: {name} {value} is not allowed'"
            ]
    command = template.remote_command or ""
    if "/" in command:
        lines += [f"[ -f {quoted(command)} ] && [ -x {quoted(command)} ] || {_refuse('remote_command', command)}"]
    else:
        lines += [f"command -v {quoted(command)} >/dev/null || {_refuse('remote_command', command)}"]
    return lines


def _refuse(field: str, value: str | None) -> str:
    words = {
        "working_directory": "cannot be entered",
        "input_path": "cannot be read",
        "remote_command": "is no program that can be run here",
    }.get(field, "cannot be written")
    return f'wfl_refuse "{field} {_inside(value or "")} {words}"'


def _inside(text: str) -> str:
    """For double quotes, on one line."""
    flat = " ".join(text.split("\n"))
    return re.sub(r'([\\"$`])', r"\\\1", flat).replace("\\" + INDEX[:-1] + "\\$", "$TASK_ID")


def _command(template: JobTemplate) -> str:
    return " ".join(quoted(word) for word in (template.remote_command or "", *(template.args or ())))


def _streams(template: JobTemplate) -> str:
    out, err = template.output_path, template.error_path
    joined = template.join_files or (out and out == err)
    source = quoted(template.input_path) if template.input_path else "/dev/null"
    output = quoted(out) if out else '"$wfl_out"'
    errors = "&1" if joined else quoted(err) if err else '"$wfl_err"'
    return f"<{source} >{output} 2>{errors}"


def _stage_out(template: JobTemplate) -> list[str]:
    lines = []
    where = quoted(template.working_directory or ".")
    for target, source in (template.stage_out_files or {}).items():
        words = f'"stage_out_files: {_inside(source)} cannot be copied to {_inside(target)}"'
        lines += [f"( cd -- {where} && cp -RL -- {quoted(source)} {quoted(target)} ) || wfl_unsaved={words}"]
    return lines


def _end(reserved: Iterable[int]) -> list[str]:
    statuses = "|".join(map(str, sorted(reserved)))
    return [
        '[ -e "$wfl_end" ] && exit 125',
        "[ -r /proc/uptime ] && read -r wfl_over wfl_rest </proc/uptime",
        "{",
        "printf 'status %s\\nsaid %s\\nshell %s\\nid %s\\nhost %s\\nbegun %s\\nover %s\\n' \\",
        '  "$wfl_status" "$wfl_said" "${BASH_VERSION:+bash}" "$wfl_id" "$wfl_host" "$wfl_begun" "$wfl_over"',
        '[ -n "$wfl_unsaved" ] && printf \'unsaved %s\\n\' "$wfl_unsaved"',
        "times",
        f"echo {WHOLE}",
        '} >"$wfl_end"',
        *([f"case $wfl_status in {statuses}) exit 1 ;; esac"] if statuses else []),
        "exit $wfl_status",
    ]


def check(template: JobTemplate, limits: Mapping[str, object] = _ULIMIT) -> None:
    """Raise for what no script can do."""
    if not template.remote_command:
        raise InvalidArgumentError("remote_command is empty: say what to run")
    for field in ("input_path", "output_path", "error_path"):
        if getattr(template, field) in checks.PASSED:
            words = f"{field} is {getattr(template, field)}: a job on another machine has no streams of this program"
            raise UnsupportedAttributeError(words)
    arguments = [template.remote_command, *(template.args or ())]
    if any("\0" in text for text in (*arguments, *(template.job_environment or {}).values())):
        raise InvalidArgumentError("a NUL character can be in no argument and no variable")
    checks.sizes(arguments, template.job_environment or {}, template.job_environment)
    checks.streams(template, template.working_directory or os.getcwd(), look=False)
    for name in template.resource_limits or {}:
        if name not in limits and name != WALLCLOCK_TIME:
            raise UnsupportedAttributeError(f"resource_limits: {name} cannot be set by a shell")
    _environment(template)

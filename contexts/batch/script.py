"""The script that a scheduler runs for a template: environment, directory, streams, command, and a record of the end.

Everything that is free text stands in the file, quoted, and never on the scheduler's own command line, so that quotes,
line breaks, commas and "=" arrive as they are. Plain POSIX shell without any command of its own on the way: a job costs
one shell. Pure: what is written here is what `preview` shows.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Protocol

from wfl.backend import INDEX
from wfl.contexts import checks
from wfl.contexts.batch.place import WHOLE
from wfl.drmaa2 import CPU_TIME, OPEN_FILES, WALLCLOCK_TIME
from wfl.errors import InvalidArgumentError, UnsupportedAttributeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wfl.contexts.batch.place import Entry, Kind
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
_PIECES = {INDEX: '"$wfl_index"', "\r": '"$wfl_cr"'}
"""What stands in the script for the placeholder of the index, and for what sbatch takes in no script."""
_SPLIT = re.compile("(" + "|".join(map(re.escape, _PIECES)) + ")")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SHELLS = frozenset({"BASHOPTS", "BASH_VERSINFO", "EUID", "IFS", "OPTIND", "PPID", "PS4", "SHELLOPTS", "UID", "_"})
"""Variables that a shell does not let be set, or goes by itself: `env` sets them."""
TRAPPED = "HUP INT QUIT TERM USR1 USR2 XCPU XFSZ"
"""They reach all processes of a job, also this shell, which has to live on to tell how the command has ended."""


class Paths(Protocol):
    """Who knows where a job's files are."""

    def path(self, kind: Kind, key: str) -> str:
        """The file of this kind for a job, by its key."""


def script(
    entry: Entry,
    place: Paths,
    *,
    number: str,
    id: str = "",
    first: int | str = 0,
    step: int = 1,
    login: bool = False,
    reserved: Iterable[int] = (),
    passed_on: str | None = None,
    alone: str = "",
    last: Iterable[str] = (),
    by: str = "",
) -> str:
    """The whole script for one job, or for an array whose elements find their number in the variable `number`.

    An element's index is `first + step * number`, with `first` as a number or in the shell's words; `id` is what a
    shell there finds its id by. The script itself never ends with one of the statuses `reserved`. `passed_on`: a signal
    that reaches the script's shell alone; `alone`: patterns of the control groups in which SIGTERM does so, too.
    `last`: what the shell that becomes the command does last; it sees to it that a job that was told to stop does not
    begin. `by`: words that run the command.
    """
    template = entry.template
    lines = [
        "(",
        *becoming(entry, last=last, by=f"{by}{'$wfl_env ' if passed_on else ''}"),
        ")",
        'wfl_status=$? wfl_said=no; [ -s "$wfl_run" ] && wfl_said=yes',
        *_stage_out(template),
        *_end(reserved),
    ]
    lines = [
        *_beginning(entry, place, number, first, step, stops=not last),
        *(_passing_on(lines, passed_on, alone) if passed_on or alone else lines),
    ]
    head = [f"#!/bin/sh{' -l' if login else ''}", f"# {entry.key}", f'wfl_id="{id}"']
    if any(_PIECES["\r"] in line for line in lines):
        head += [r"wfl_cr=$(printf '\r')"]
    return "\n".join([*head, *lines, ""])


def becoming(entry: Entry, *, last: Iterable[str] = (), by: str = "") -> list[str]:
    """What a shell does that becomes the command; see `script`.

    It is given `wfl_refuse`, which ends it with words, wfl_index for an element, and wfl_out and wfl_err, two paths.
    """
    template = entry.template
    return [
        *_surroundings(template),
        *_environment(entry),
        _can_be_run(template),
        *last,
        f"exec {by}{_by_env(template)}{_command(template)} {_streams(template)}",
    ]


def _passing_on(lines: Iterable[str], signal: str | None, alone: str) -> list[str]:
    """The same with a shell beside it that gives signals to its whole process group, where they do not reach that.

    A shell that has a command in its foreground would do that after the command's end only. In the background some
    shells have SIGINT and SIGQUIT ignored, which `env` can undo at the price of two programs.
    """
    again = "--default-signal=INT,QUIT"
    tell = f'for wfl_rest in {signal or ""} ${{wfl_alone:+TERM}}; do trap "wfl_pass_on $wfl_rest" $wfl_rest; done'
    return [
        *([f'wfl_env=; env {again} true 2>/dev/null && wfl_env="$(command -v env) {again}"'] if signal else []),
        "wfl_job() {",
        f"trap : {TRAPPED} {signal or ''}".rstrip(),
        *lines,
        "}",
        "wfl_alone=",
        *(_look_for(alone) if alone else []),
        *([] if signal else ['[ -n "$wfl_alone" ] || wfl_job']),
        'wfl_pass_on() { wfl_again=yes; trap \'\' "$1"; kill -s "$1" 0; trap "wfl_pass_on $1" "$1"; }',
        f"trap wfl_again=yes {TRAPPED}",
        tell,
        "wfl_job &",
        "wfl_again=yes wfl_status=",
        'while [ "$wfl_again" = yes ]; do',
        'wfl_again=no; wait "$!"; wfl_now=$?',
        '[ "$wfl_now" = 127 ] && [ -n "$wfl_status" ] || wfl_status=$wfl_now',  # it was waited for already
        "done",
        'exit "$wfl_status"',
    ]


def _look_for(groups: str) -> list[str]:
    return [
        "if [ -r /proc/self/cgroup ]; then",
        f"while read -r wfl_rest; do case $wfl_rest in {groups}) wfl_alone=yes ;; esac; done </proc/self/cgroup",
        "fi",
    ]


def quoted(text: str) -> str:
    """A string for the shell; the placeholder of the index stands for the element's own."""
    return "".join(_PIECES.get(part) or shlex.quote(part) for part in _SPLIT.split(text) if part) or "''"


def _beginning(entry: Entry, place: Paths, number: str, first: int | str, step: int, *, stops: bool) -> list[str]:
    paths = {kind: place.path(kind, entry.key) for kind in ("job", "stop", "run", "end", "out", "err")}
    lines = [f"wfl_{kind}={quoted(path)}" for kind, path in paths.items()]
    if entry.indexes is not None:
        index = f"${{{number}}}" if (first, step) == (0, 1) else f"$(( {first} + {step} * ${{{number}}} ))"
        lines += [
            f"wfl_index={index}",
            '[ -e "$wfl_stop" ] && kill -9 $$',
            'for wfl_kind in stop run end out err; do eval "wfl_$wfl_kind=\\$wfl_$wfl_kind.\\$wfl_index"; done',
        ]
    elif entry.index is not None:
        lines += [f"wfl_index={entry.index}"]
    return [
        *lines,
        f"trap : {TRAPPED}",
        # Whoever gave up on this job has removed what it needs: it must not run any more.
        '[ -e "$wfl_job" ] || exit 125',
        # Grid Engine loses a kill that comes before a job has a process group, and passes on none after that.
        *(['[ -e "$wfl_stop" ] && kill -9 $$'] if stops else []),
        'exec 2>"$wfl_run" || exit 125',
        '[ -e "$wfl_end" ] && rm -f -- "$wfl_end"',  # of a run before this one, which was not to be the last
        "wfl_begun= wfl_over= wfl_host= wfl_unsaved=",
        "[ -r /proc/uptime ] && read -r wfl_begun wfl_rest </proc/uptime",
        "[ -r /proc/sys/kernel/hostname ] && read -r wfl_host </proc/sys/kernel/hostname",
        f'wfl_refuse() {{ printf \'refused %s\\nid %s\\n{WHOLE}\\n\' "$1" "$wfl_id" >"$wfl_end"; exit 125; }}',
    ]


def _environment(entry: Entry) -> list[str]:
    """In the shell that becomes the command: nothing that is set here changes what the script itself does."""
    given: Mapping[str, str] = entry.template.job_environment or {}
    lines = ["wfl_by=$(command -v env)"] if any(map(_is_special, given)) else []
    for name, value in given.items():
        if not _is_special(name):
            lines += [f"{name}={quoted(value)}", f"export {name}"]
    lines += [f"JOB_ID={quoted(entry.job_id)}", "export JOB_ID"]
    if entry.indexes is None and entry.index is None:
        return [*lines, "unset TASK_ID"]
    return [*lines, "TASK_ID=$wfl_index", "export TASK_ID"]


def _by_env(template: JobTemplate) -> str:
    given = (template.job_environment or {}).items()
    special = [f"{name}={quoted(value)}" for name, value in given if _is_special(name)]
    return f'"$wfl_by" {" ".join(special)} ' if special else ""


def _is_special(name: str) -> bool:
    return name in _SHELLS or name.startswith(("wfl_", "w_"))  # ours, here and on hosts


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
    return f'wfl_refuse "{field} {_inside(value or "")} {words}"'


def _inside(text: str) -> str:
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
    """Raise for what no script can do on a machine that shares a file system with this one."""
    for field in ("input_path", "output_path", "error_path"):
        if getattr(template, field) in checks.PASSED:
            words = f"{field} is {getattr(template, field)}: a job on another machine has no streams of this program"
            raise UnsupportedAttributeError(words)
    check_words(template, limits)
    checks.streams(template, template.working_directory or os.getcwd(), look=False)


def check_words(template: JobTemplate, limits: Mapping[str, object] = _ULIMIT) -> None:
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

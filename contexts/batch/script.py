"""The script that a scheduler runs for a template: environment, directory, streams, command, and a record of the end.

Everything that is free text stands in the file, quoted, and never on the scheduler's own command line, so that quotes,
line breaks, commas and "=" arrive as they are. Plain POSIX shell without any command of its own on the way: a job costs
one shell. Pure: what is written here is what `preview` shows.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from wfl.contexts import checks
from wfl.contexts.ends import WHOLE
from wfl.contexts.posix import CR, ULIMIT, becoming, check_words, inside, quoted
from wfl.errors import UnsupportedAttributeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wfl.contexts.batch.place import Entry, Kind
    from wfl.drmaa2 import JobTemplate

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
    template, element = entry.template, entry.indexes is not None or entry.index is not None
    lines = [
        "(",
        *becoming(template, entry.job_id, element=element, last=last, by=f"{by}{'$wfl_env ' if passed_on else ''}"),
        ") 2>/dev/null",  # what it complains of is no word on how the command has ended
        'wfl_status=$? wfl_said=no; [ -s "$wfl_run" ] && wfl_said=yes',
        *_stage_out(template),
        *_end(reserved),
    ]
    lines = [
        *_beginning(entry, place, number, first, step, stops=not last),
        *(_passing_on(lines, passed_on, alone) if passed_on or alone else lines),
    ]
    head = [f"#!/bin/sh{' -l' if login else ''}", f"# {entry.key}", f'wfl_id="{id}"']
    if any(CR in line for line in lines):
        head += [r"wfl_cr=$(printf '\r')"]
    return "\n".join([*head, *lines, ""])


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


def _stage_out(template: JobTemplate) -> list[str]:
    lines = []
    where = quoted(template.working_directory or ".")
    for target, source in (template.stage_out_files or {}).items():
        words = f'"stage_out_files: {inside(source)} cannot be copied to {inside(target)}"'
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


def check(template: JobTemplate, limits: Mapping[str, object] = ULIMIT) -> None:
    """Raise for what no script can do on a machine that shares a file system with this one."""
    for field in ("input_path", "output_path", "error_path"):
        if getattr(template, field) in checks.PASSED:
            words = f"{field} is {getattr(template, field)}: a job on another machine has no streams of this program"
            raise UnsupportedAttributeError(words)
    check_words(template, limits)
    checks.streams(template, template.working_directory or os.getcwd(), look=False)

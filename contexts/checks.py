"""What rooms look at before a start where the caller's files are on this side: paths, and how long strings are.

Everything that can be seen to be wrong is refused here by field and path; nothing is opened or changed.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from wfl.errors import InvalidArgumentError
from wfl.placeholders import DIRECTORIES, PATHS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from wfl.drmaa2 import JobTemplate

PASSED = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
"""Paths that stand for the program's own descriptors."""

HERE = (*PATHS, "stage_in_files", "stage_out_files")
"""Fields with paths of the caller's side, where that is not the job's."""
_MAX_STRING = 131072
"""Bytes of one argument or variable: MAX_ARG_STRLEN of Linux (execve(2))."""


def absolute(field: str, path: str) -> str:
    """A path of the caller, from the directory that the program is in."""
    if os.path.isabs(path):
        return path
    try:
        return os.path.join(os.getcwd(), path) if path else os.getcwd()
    except FileNotFoundError:
        words = f"{field} {path!r}: the directory that the program is in was removed"
        raise InvalidArgumentError(words) from None


def from_here(template: JobTemplate, is_local: Callable[[str], bool] = lambda _: True) -> JobTemplate:
    """All paths of the caller as they are from the directory that the program is in; `is_local`: a source is one.

    One path has one form then. What cannot be told, or is empty, stays as it is.
    """
    if not any(map(template.__getattribute__, HERE)):
        return template

    def path(given: str) -> str:
        filled = given not in PASSED and given and not given.startswith(DIRECTORIES)
        return os.path.normpath(os.path.join(here, given)) if filled else given

    try:
        here = os.getcwd()
    except FileNotFoundError:
        return template
    found: dict[str, Any] = {name: path(given) for name in PATHS if (given := getattr(template, name))}
    if template.stage_in_files:
        pairs = template.stage_in_files.items()
        found["stage_in_files"] = {target: path(source) if is_local(source) else source for target, source in pairs}
    if template.stage_out_files:
        targets = {path(target): source for target, source in template.stage_out_files.items()}
        if len(targets) == len(template.stage_out_files):  # else one place is there twice: refused as it stands
            found["stage_out_files"] = targets
    return template.replace(**found)


def targets(files: Mapping[str, str]) -> dict[str, str]:
    """What is to be copied out, with the targets as absolute paths, no two of which are the same."""
    found: dict[str, str] = {}
    for given, source in files.items():
        target = os.path.normpath(absolute("stage_out_files", given))
        if target in found:
            raise InvalidArgumentError(f"stage_out_files has {given!r}, where something else is copied to")
        found[target] = source
    return found


def streams_here(template: JobTemplate) -> None:
    """Refuse paths of the caller's side that cannot be used; see `streams`."""
    here: Any = {name: absolute(name, path) for name in PATHS if (path := getattr(template, name))}
    streams(template.replace(**here), "/", look=True)


def streams(template: JobTemplate, cwd: str, *, look: bool) -> dict[str, Any]:
    """Standard input, output and error ("in", "out", "err", "join"); None stands for kept output.

    Without `look` it does not matter what is there now: files may come before the start.
    """
    out = template.output_path or None
    err = template.error_path or None
    if template.join_files and template.error_path:
        raise InvalidArgumentError("join_files sends errors to the output: leave error_path unset (or set it to '')")
    found: dict[str, Any] = {"join": bool(template.join_files) or (isinstance(out, str) and _same(out, err, cwd))}
    if template.input_path:
        found["in"] = template.input_path
        passed = template.input_path in PASSED
        if not passed:
            _check_no_pipe("input_path", os.path.join(cwd, template.input_path))
        if look and not passed and os.path.isdir(os.path.join(cwd, template.input_path)):
            raise InvalidArgumentError(f"input_path {os.path.join(cwd, template.input_path)} is a directory")
        if look and not passed and not os.access(os.path.join(cwd, template.input_path), os.R_OK):
            raise InvalidArgumentError(f"input_path {os.path.join(cwd, template.input_path)} cannot be read")
    for name, path in (("output_path", out), ("error_path", err)):
        if path is not None and path not in PASSED:
            if template.input_path and _same(path, template.input_path, cwd) and path != "/dev/null":
                raise InvalidArgumentError(f"{name} and input_path are the same file, {path}: it would be emptied")
            if look:
                _check_writable(name, os.path.join(cwd, path))
    found.update(out=out, err=None if found["join"] else err)
    return found


def sources(files: Mapping[str, str]) -> dict[str, str]:
    """What is to be copied in, by target, with the sources as absolute paths that can be read."""
    found = {target: os.path.normpath(absolute("stage_in_files", source)) for target, source in files.items()}
    for source in found.values():
        if not os.access(source, os.R_OK):
            raise InvalidArgumentError(f"stage_in_files: {source} cannot be read")
    return found


def sizes(argv: Sequence[str], env: Mapping[str, str], own: Mapping[str, str] | None) -> None:
    """Execve's two limits: on one string, and on all of them together. `own` are the template's part of `env`."""
    total = sum(map(len, argv))
    for name, value in (own or {}).items():
        total += len(name) + len(value)
        if len(name) + len(value) > _MAX_STRING // 4:
            _check_string(f"job_environment[{name!r}]", f"{name}={value}")
    if total > _MAX_STRING // 4:  # below that no single string can be too long, in whatever encoding
        _check_string("an argument", max(argv, key=lambda text: len(os.fsencode(text)), default=""))
        total = sum(len(os.fsencode(text)) + 9 for text in (*argv, *env.keys(), *env.values()))
        limit = os.sysconf("SC_ARG_MAX")
        if total > limit:
            raise InvalidArgumentError(f"args and environment need {total} bytes, the system takes {limit}: use a file")


def _same(one: str, other: str | None, cwd: str) -> bool:
    return other is not None and os.path.realpath(os.path.join(cwd, one)) == os.path.realpath(os.path.join(cwd, other))


def _check_no_pipe(name: str, path: str) -> None:
    """Opening a named pipe waits for its other end, and everybody would wait with it."""
    if os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode):
        raise InvalidArgumentError(f"{name} {path} is a named pipe: let a shell open it, shell('… < pipe')")


def _check_writable(name: str, path: str) -> None:
    _check_no_pipe(name, path)
    if os.path.isdir(path):
        raise InvalidArgumentError(f"{name} {path} is a directory")
    if os.path.exists(path):
        if not os.access(path, os.W_OK):
            raise InvalidArgumentError(f"{name} {path} cannot be written")
        return
    place = os.path.dirname(path)
    if not os.path.isdir(place):
        raise InvalidArgumentError(f"{name} {path}: there is no directory {place}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InvalidArgumentError(f"{name} {path}: no right to create files in {place}")
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        raise InvalidArgumentError(f"{name} {path}: the file system is read-only")


def _check_string(what: str, text: str) -> None:
    size = len(os.fsencode(text)) + 1
    if size > _MAX_STRING:
        raise InvalidArgumentError(f"{what} has {size} bytes, the system takes {_MAX_STRING}: use a file")

"""What of a template goes to a job server, and what is done on this side. Looks at files, and knows no server.

Version 1 only: paths are those of the caller. Files go there before the start and come from there after the end.
"""

from __future__ import annotations

import os
import posixpath
import re
from typing import TYPE_CHECKING, Any

from wfl.backend import INDEX
from wfl.contexts import checks
from wfl.drmaa2 import TEXT_FIELDS
from wfl.errors import InvalidArgumentError
from wfl.placeholders import PATHS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wfl.backend import Stream
    from wfl.drmaa2 import JobTemplate

HERE = frozenset(checks.HERE)
"""Fields that the client sees to, in part or in whole."""
INDEX_FIELDS = frozenset(TEXT_FIELDS) - {"input_path", "stage_in_files"}
"""The server fills the index in, the client in paths of its own; but what is sent there is the same for all."""
UPLOAD, RESULT = "upload:", "result:"
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]+:")


def is_local(source: str) -> bool:
    """Whether a source of stage_in_files is a file of this side; else it is one of the server's system, as it says
    there ("volume:data", "bind:/scratch").
    """
    return _ELSEWHERE.match(source) is None or os.path.lexists(source)


def check(template: JobTemplate) -> None:
    """Refuse by field and path what cannot be sent, or brought back."""
    checks.streams_here(template)
    if template.input_path in checks.PASSED:
        raise InvalidArgumentError(f"input_path is {template.input_path}: a job elsewhere cannot read that; use a file")
    copies_in(template)
    checks.targets(template.stage_out_files or {})


def sends(template: JobTemplate) -> bool:
    """Whether it has files that go along."""
    return bool(template.stage_in_files or template.input_path)


def copies_in(template: JobTemplate) -> dict[str, str]:
    """What is to be sent: {target there: absolute source here}. A target with a slash at its end names a directory."""
    local = {target: source for target, source in (template.stage_in_files or {}).items() if is_local(source)}
    return checks.sources(local)


def sent(template: JobTemplate, uploads: Mapping[str, str], standard_input: str | None) -> JobTemplate:
    """As the server is to have it. `uploads` by target, and `standard_input`, are the ids of what was sent."""
    is_joined = joined(template)
    changes: dict[str, Any] = {name: None for name in PATHS if getattr(template, name) not in (None, os.devnull)}
    if standard_input is not None:
        changes["input_path"] = UPLOAD + standard_input
    if is_joined:
        changes |= {"join_files": True, "error_path": None}
    if template.stage_in_files:
        changes["stage_in_files"] = dict(
            (_target(target, source), UPLOAD + uploads[target]) if target in uploads else (target, source)
            for target, source in template.stage_in_files.items()
        )
    if sources := template.stage_out_files:
        changes["stage_out_files"] = {f"{RESULT}{number}": source for number, source in enumerate(sources.values())}
    return template.replace(**changes) if changes else template


def _target(target: str, source: str) -> str:
    """What is sent has no name of its own there: a file that goes into a directory gets it with the target."""
    if target.endswith("/") and not os.path.isdir(source):
        return target + posixpath.basename(posixpath.normpath(source))
    return target


def names(sent: JobTemplate, index: int | None) -> dict[str, str]:
    """What the server calls its results, by their sources, from the template that it has."""
    return {
        _filled(source, index): target.removeprefix(RESULT)
        for target, source in (sent.stage_out_files or {}).items()
        if target.startswith(RESULT)
    }


def brought(template: JobTemplate, index: int | None) -> dict[str, str]:
    """What is to be copied out after the end: {absolute target here: source there}."""
    files: Mapping[str, str] = template.stage_out_files or {}
    return checks.targets({_filled(target, index): _filled(source, index) for target, source in files.items()})


def written(template: JobTemplate, index: int | None) -> dict[Stream, str]:
    """Where output is to be written after the end, besides being kept on the server."""
    paths: dict[Stream, str | None] = {"stdout": template.output_path, "stderr": template.error_path}
    if joined(template):
        del paths["stderr"]
    return {stream: _filled(path, index) for stream, path in paths.items() if path and path != os.devnull}


def joined(template: JobTemplate) -> bool:
    """Whether errors go to the output."""
    return bool(template.join_files or (template.output_path and template.output_path == template.error_path))


def discards(template: JobTemplate, stream: Stream) -> bool:
    """Whether nobody wants this."""
    path = template.output_path if stream == "stdout" or joined(template) else template.error_path
    return path == os.devnull


def _filled(text: str, index: int | None) -> str:
    return text if index is None else text.replace(INDEX, str(index))

"""What identities may ask for. Paths of the server, extensions and what costs others are refused unless allowed.

`Policy.check` looks at a template as it came; what it lets through names no file of the server (but /dev/null), reaches
out of its own directory nowhere, and runs nothing that is not allowed.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from msgspec import Struct

from wfl.backend import INDEX
from wfl.drmaa2 import JobTemplate
from wfl.errors import InvalidArgumentError, nearest
from wfl.server.refusals import ForbiddenError

if TYPE_CHECKING:
    from collections.abc import Iterable

UPLOAD = "upload:"
"""How a source of stage_in_files, and input_path, name what was uploaded."""
RESULT = "result:"
"""How a target of stage_out_files names a file of the job's own results."""
RESULT_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._+=@,-]{1,128}")
UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
NOWHERE = "/dev/null"
ISOLATED = frozenset({"docker", "podman", "kubernetes"})
"""Contexts whose jobs have a file system of their own."""
ELSEWHERE = frozenset({"remote", "ssh"})
"""Contexts whose jobs do not see this side's directories."""

FIELDS = frozenset({
    "remote_command", "args", "submit_as_hold", "rerunnable", "job_environment", "job_category", "job_name",
    "join_files", "queue_name", "min_slots", "max_slots", "candidate_machines", "min_phys_memory", "machine_os",
    "machine_arch", "start_time", "deadline_time", "resource_limits", "input_path", "output_path", "error_path",
    "stage_in_files", "stage_out_files", "working_directory", "extensions",
})  # fmt: skip
"""Fields that anybody may set; for paths and extensions there are rules of their own. What is not among them costs
others: mail, priority, accounts and reservations."""


class Policy(Struct, frozen=True, kw_only=True):
    """What is allowed. Patterns are those of a shell (`*`, `?`, `[…]`); None allows everything.

    commands: of remote_command. Where they are restricted, no variable may be set but those in `environment`.
    images: of job_category. environment: names of variables.
    fields: more fields of JobTemplate than FIELDS, or fewer. extensions: those that may be set, with the patterns that
    their values have to match, such as {"user": ["1000", "guest*"]}.
    server_paths: True lets identities name any path of the server, in any field.
    isolated: whether a job's paths are in a file system of its own (containers), so that absolute ones are no matter
    of the server; None: as the context is known to be.
    """

    commands: Collection[str] | None = None
    images: Collection[str] | None = None
    environment: Collection[str] | None = None
    fields: Collection[str] = FIELDS
    extensions: Mapping[str, Collection[str] | None] = {}
    server_paths: bool = False
    isolated: bool | None = None

    def __post_init__(self) -> None:
        for name in ("commands", "images", "environment", "fields"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is a str, expected several")
        for name in self.fields:
            if name not in JobTemplate.__struct_fields__:
                known = JobTemplate.__struct_fields__
                raise InvalidArgumentError(f"fields: JobTemplate has no {name!r}:{nearest(name, known)}")

    def check(self, template: JobTemplate, defaults: JobTemplate, *, isolated: bool, own: bool = True) -> None:
        """Raise ForbiddenError that names the field. `defaults` are the context's, which are the server's own.

        `own`: each job has a directory of its own. Where it has not, and is not isolated either, nothing is staged: it
        would be among the files of others, and of the server.
        """
        for name in template.__struct_fields__:
            if name not in self.fields and getattr(template, name) not in (None, "", (), {}, False):
                raise ForbiddenError(f"{name} may not be set on this server")
        self._check_command(template, defaults)
        _check_pattern("job_category", template.job_category, self.images)
        self._check_extensions(template)
        self._check_environment(template)
        if not self.server_paths:
            _check_paths(template, isolated=isolated)
            for name in ("stage_in_files", "stage_out_files"):
                if getattr(template, name) and not isolated and not own:
                    raise ForbiddenError(f"{name} may not be set: jobs have no directory of their own on this server")

    def _check_command(self, template: JobTemplate, defaults: JobTemplate) -> None:
        if self.commands is None:
            return
        if template.remote_command is None and defaults.remote_command:
            return
        _check_pattern("remote_command", template.remote_command or "", self.commands)

    def _check_extensions(self, template: JobTemplate) -> None:
        for name, text in (template.extensions or {}).items():
            if name not in self.extensions:
                raise ForbiddenError(f"extensions[{name!r}] may not be set on this server")
            _check_pattern(f"extensions[{name!r}]", text, self.extensions[name])

    def _check_environment(self, template: JobTemplate) -> None:
        allowed = self.environment
        if allowed is None and self.commands is not None:
            allowed = ()  # PATH, LD_PRELOAD and the like make any command another one
        for name in (template.job_environment or {}) if allowed is not None else ():
            if not _matches(name, allowed or ()):
                raise ForbiddenError(f"job_environment[{name!r}] may not be set on this server")


def _matches(text: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _check_pattern(field: str, text: str | None, patterns: Collection[str] | None) -> None:
    if patterns is None or text is None:
        return
    climbs = ".." in text.split("/") and text not in patterns  # "/opt/*" does not mean "/opt/../bin/sh"
    placeholder = "$DRMAA2_" in text and text not in patterns
    if climbs or placeholder or not _matches(text, patterns):
        raise ForbiddenError(f"{field} {text!r} is not allowed on this server")


def _check_paths(template: JobTemplate, *, isolated: bool) -> None:
    if template.working_directory and not isolated:
        raise ForbiddenError("working_directory may not be set on this server: each job has a directory of its own")
    for field in ("output_path", "error_path"):
        if getattr(template, field) not in (None, "", NOWHERE):
            raise ForbiddenError(f"{field} may not be a path of the server: output is kept, and read from the job")
    if template.input_path not in (None, "", NOWHERE):
        check_upload("input_path", template.input_path or "")
    for target, source in (template.stage_in_files or {}).items():
        check_upload("stage_in_files", source)
        _check_place("stage_in_files", target, isolated=isolated)
    for target, source in (template.stage_out_files or {}).items():
        if not target.startswith(RESULT) or not RESULT_NAME.fullmatch(target.removeprefix(RESULT)):
            words = "letters, digits and '._+=@,-'"
            raise ForbiddenError(f"stage_out_files has the target {target!r}, expected '{RESULT}NAME' ({words})")
        _check_place("stage_out_files", source, isolated=isolated)


def check_upload(field: str, text: str) -> str:
    """The id of an upload. Raises ForbiddenError for any other source."""
    id = text.removeprefix(UPLOAD)
    if not text.startswith(UPLOAD) or not UPLOAD_ID.fullmatch(id):
        raise ForbiddenError(f"{field} has the source {text!r}, expected '{UPLOAD}ID': no path of the server")
    return id


def _check_place(field: str, path: str, *, isolated: bool) -> None:
    """A job's own path: below its directory, whatever becomes of the placeholders in it."""
    for number in ("", "1"):  # outside of an array the index is the empty text, which can make '..' and placeholders
        filled = path.replace(INDEX, number)
        if "$DRMAA2_" in filled or "{{" in filled:
            raise ForbiddenError(f"{field} has {path!r}: no placeholder but {INDEX} may be in it")
        if isolated:
            continue
        if posixpath.isabs(filled) or ".." in filled.split("/"):
            raise ForbiddenError(f"{field} has {path!r}, which is not below the job's own directory")

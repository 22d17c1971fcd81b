"""Files of this side on their way to a job server, and what it keeps for this side on its way back."""

from __future__ import annotations

import os
from contextlib import closing, suppress
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

from wfl import staging
from wfl.contexts.remote import template
from wfl.contexts.remote.connection import NotThereError
from wfl.contexts.spool import OutputFile
from wfl.drmaa2 import JobTemplate
from wfl.errors import DrmCommunicationError, InvalidArgumentError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from wfl.backend import Stream
    from wfl.contexts.remote.v1 import Api

_TRIES = 3
"""Times that something is sent whole which the server has forgotten in between."""
_AT_ONCE = 1 << 20
"""Bytes of output that are asked for at once."""


def send(api: Api, given: JobTemplate) -> JobTemplate:
    """Send what a job is to have, and return the template that names it.

    Files go as archives of one thing, with its modes and times; a directory whole. Raises InvalidArgumentError for
    what cannot be read.
    """
    uploads = {target: _send_tree(api, source) for target, source in template.copies_in(given).items()}
    path = given.input_path if given.input_path not in ("", os.devnull) else None
    return template.sent(given, uploads, _send_input(api, path) if path else None)


def _send_tree(api: Api, source: str) -> str:
    name = os.path.basename(source) or "root"
    return _again(lambda: api.upload(staging.pack({f"/{name}": source}), "tar", None))


def _send_input(api: Api, path: str) -> str:
    def attempt() -> str:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return api.upload(_read(file), "file", size)

    try:
        return _again(attempt)
    except OSError as error:
        raise InvalidArgumentError(f"input_path {path} cannot be read: {error.strerror}") from error


def _read(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_AT_ONCE):
        yield piece


def _again(send: Callable[[], str]) -> str:
    """From the beginning, where the server has forgotten the beginning."""
    for _ in range(_TRIES - 1):
        with suppress(NotThereError):
            return send()
    try:
        return send()
    except NotThereError as error:
        raise DrmCommunicationError(f"what is sent is forgotten there: {error}") from error


def write_output(api: Api, id: str, wanted: Mapping[Stream, str], directory: Path) -> str | None:
    """Write output into files of this side, by way of `directory`; what went wrong, in words.

    Raises DrmCommunicationError where the server gives no answer: called again it goes on with what is missing.
    """
    try:
        for stream, path in wanted.items():
            file = OutputFile(directory / file_name(id, stream))
            try:
                _fetch(api, id, stream, file)
            finally:
                file.close()
            file.copy_to(path)
            file.remove()
    except DrmCommunicationError:
        raise
    except (WflError, OSError) as error:
        return f"its output cannot be written: {error}"
    return None


def file_name(id: str, *more: object) -> str:
    """One for a job's file here: what the server calls the job leads to no other directory."""
    return ".".join(map(str, (quote(id, safe=""), *more)))


def _fetch(api: Api, id: str, stream: Stream, file: OutputFile) -> None:
    at_end = False
    while not at_end:
        data, at_end = api.output(id, stream, file.size, _AT_ONCE)
        file.write(data)


def bring_back(api: Api, id: str, wanted: Mapping[str, str]) -> str | None:
    """Copy results out of the server, {target here: source there}; what went wrong, in words.

    Raises DrmCommunicationError where the server gives no answer.
    """
    if not wanted:
        return None
    trouble: str | None = None
    names = _names(api, id)
    for target, source in wanted.items():
        try:
            if source not in names:
                raise InvalidArgumentError("the server does not have it")
            with closing(api.file(id, names[source])) as archive:
                staging.unpack(archive, source, target)
        except DrmCommunicationError:
            raise
        except WflError as error:
            words = str(error)
            what = "" if source in words and target in words else f"{source} cannot be copied to {target}: "
            trouble = trouble or f"{what}{words}"
    return trouble


def _names(api: Api, id: str) -> dict[str, str]:
    """By the template that the server has, as the program that submitted it may have been another one."""
    for told in api.find(ids=[id], templates=True).jobs:
        return template.names(JobTemplate.from_json(bytes(told.template)), told.index)
    return {}

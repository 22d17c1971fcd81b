"""Output of one container on the caller's side: the daemon's log stream, taken apart into files read by ranges.

Knows how the stream is framed, and nothing of the connection that it comes from.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from itertools import chain
from typing import TYPE_CHECKING

from wfl.contexts.checks import PASSED
from wfl.errors import DrmCommunicationError, ImplementationSpecificError, InvalidStateError, OutOfResourceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from wfl.backend import Stream

STDIN, STDOUT, STDERR, SYSTEM = (kind << 24 for kind in range(4))
"""The first four bytes of a header as a number: the kind of stream and three zeros. What the daemon marks as 0 is
shown as standard output; 3 are the daemon's own words on why it cannot go on."""
CUT = 16384
"""Bytes of the parts into which Docker cuts longer lines (its copier's buffer)."""
_HEADER = struct.Struct(">II")
_CHUNK = 1 << 20
_STREAMS = ("stdout", "stderr")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)


class Demultiplexer:
    """Takes Docker's multiplexed stream in any pieces and hands payload on, `merged` all as standard output.

    A frame is a header of eight bytes (kind of stream, three zeros, length as a big-endian number) and its payload.
    https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach
    """

    def __init__(self, *, merged: bool = False, cut: int | None = None) -> None:
        """With `cut`, a frame of that size raises CutLineError: line breaks may be missing from there on."""
        self._merged, self._cut = merged, cut
        self._head = b""
        self._kind = STDOUT
        self._missing = 0
        self._words = b""

    def feed(self, piece: bytes) -> tuple[bytes, bytes]:
        """What has come for standard output and for standard error with this piece, also of frames not yet whole.

        Raises DrmCommunicationError for what is no such stream, as that of a container with a terminal.
        """
        # A frame is often one short line: a million of them must not cost a call each.
        piece = self._head + piece if self._head else piece
        out: list[bytes] = []
        err: list[bytes] = out if self._merged else []
        words: list[bytes] = []
        parts = {STDIN: out, STDOUT: out, STDERR: err, SYSTEM: words}
        kind, cut, unpack, size = self._kind, self._cut, _HEADER.unpack_from, _HEADER.size
        position, end = self._missing, len(piece)
        if position:
            parts[kind].append(piece[:position])
        try:
            while end - position >= size:
                kind, length = unpack(piece, position)
                if length == cut:
                    raise CutLineError
                position += size
                parts[kind].append(piece[position : position + length])
                position += length
        except KeyError:
            raise DrmCommunicationError(f"the log is not a stream of frames: one begins with {kind:#010x}") from None
        self._kind = kind
        self._missing = max(0, position - end)
        self._head = piece[position:]
        self._words += b"".join(words)
        return b"".join(out), b"" if self._merged else b"".join(err)

    def finish(self) -> None:
        """The stream has ended: raises if it broke off within a frame, or if the daemon said that it cannot go on."""
        _check_end(self._missing or self._head, self._words)


class CutLineError(Exception):
    """A line was cut, and the daemon may have forgotten where it ended."""


class Mender:
    """A Demultiplexer for a stream with time stamps, which puts back the line breaks that Docker has lost.

    Its log driver "local" (seen with 20.10) cuts long lines and drops their breaks; all parts of a line bear one
    stamp. So a part that has no break, and is followed by another stamp, ended its line. The last one of all is left
    as it is: nobody knows whether there was a break.
    """

    def __init__(self, *, merged: bool = False) -> None:
        self._merged = merged
        self._rest = self._words = b""
        self._open: dict[int, bytes] = {}

    def feed(self, piece: bytes) -> tuple[bytes, bytes]:
        """As a Demultiplexer's, but of whole frames only."""
        rest, position, size = self._rest + piece, 0, _HEADER.size
        out: list[bytes] = []
        err: list[bytes] = out if self._merged else []
        while len(rest) - position >= size:
            kind, length = _HEADER.unpack_from(rest, position)
            if len(rest) - position - size < length:
                break
            position += size + length
            stamp, _, text = rest[position - length : position].partition(b" ")
            if kind == SYSTEM:
                self._words += text
                continue
            part, stream = (err, STDERR) if kind == STDERR and not self._merged else (out, STDOUT)
            if self._open.pop(stream, stamp) != stamp:
                part.append(b"\n")
            part.append(text)
            if not text.endswith(b"\n"):
                self._open[stream] = stamp
        self._rest = rest[position:]
        return b"".join(out), b"" if self._merged else b"".join(err)

    def finish(self) -> None:
        """As a Demultiplexer's."""
        _check_end(self._rest, self._words)


def _check_end(rest: object, words: bytes) -> None:
    if rest:
        raise DrmCommunicationError("the log broke off in the middle of a frame")
    if words:
        raise ImplementationSpecificError(words.decode(errors="replace").strip())


class Spool:
    """Files for the output of one container, written by one thread and read by any.

    `merged` puts both streams into standard output, in the order in which the daemon noted them. `complete` is set
    when nothing more will come: the log was read to its end, or `error` says why not. Filling again takes both back.
    """

    def __init__(self, directory: Path, name: str, *, merged: bool = False) -> None:
        self._directory, self._name, self._merged = directory, name, merged
        self._filling, self._writing = threading.Lock(), threading.Lock()
        self._removed = False
        self._made: set[str] = set()
        self.come = 0  # bytes, of whatever kind: it still goes on
        self.complete = threading.Event()
        self.error: Exception | None = None

    def fill(
        self,
        *logs: Iterable[bytes],
        stamped: Sequence[Iterable[bytes]] = (),
        more: Iterable[Iterable[bytes]] = (),
    ) -> None:
        """Write a log, given from its start, to its end; what an earlier try has written is not written again.

        Further ones are the same log read once more, each when the one before has ended. A log that was followed
        needs that: seen with the daemon 20.10 under load, such a stream ends well, but short of the last lines, where
        the container ended before the daemon had passed on all of them. Read without following it is whole.

        `stamped` are the same logs with time stamps, for a daemon that loses line breaks: they are read from the first
        cut line on. `more`: further ones that are not known yet.

        Made to be a thread's target: what goes wrong is not raised but kept in `error`. That is what a log raises,
        DrmCommunicationError where it breaks off within a frame, or OutOfResourceError where the disk is full.
        """
        with self._filling:
            self.complete.clear()
            self.error = None
            try:
                for number, log in enumerate(chain(logs, more)):
                    try:
                        self._pour(log, Demultiplexer(merged=self._merged, cut=CUT if stamped else None))
                    except CutLineError:
                        for again in stamped[number:]:
                            self._pour(again, Mender(merged=self._merged))
                        break
            except Exception as error:  # noqa: BLE001 - whatever it is, who waits for output is to be told
                self.error = error
            finally:
                self.complete.set()

    def _pour(self, log: Iterable[bytes], demultiplexer: Demultiplexer | Mender) -> None:
        files = {stream: _File(self._path(stream)) for stream in _STREAMS}
        try:
            self._distribute(log, demultiplexer, files)
        finally:
            for file in files.values():
                file.close()

    def _distribute(self, log: Iterable[bytes], demultiplexer: Demultiplexer | Mender, files: dict[str, _File]) -> None:
        for piece in log:
            self.come += len(piece)
            for stream, data in zip(_STREAMS, demultiplexer.feed(piece), strict=True):
                if data:
                    with self._writing:
                        if self._removed:
                            return
                        files[stream].write(data)
                        self._made.add(stream)
        demultiplexer.finish()

    def read(self, stream: Stream, offset: int, limit: int) -> bytes:
        """At most `limit` bytes from `offset`: fewer are all that there are now.

        Raises InvalidStateError where the output was removed, or cannot be read.
        """
        path = self._path(stream)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if self._removed or stream in self._made:
                raise InvalidStateError(f"the output in {path} was removed") from error
            return b""
        except OSError as error:
            raise InvalidStateError(f"cannot read {path}: {error.strerror}") from error
        try:
            return os.pread(descriptor, limit, offset)
        finally:
            os.close(descriptor)

    def copy_to(self, stream: Stream, path: str) -> None:
        """Write what there is of a stream into a file, which is made or emptied first, or to the program's own."""
        try:
            with open(os.dup(PASSED[path]) if path in PASSED else path, "wb") as file:
                offset = 0
                while data := self.read(stream, offset, _CHUNK):
                    file.write(data)
                    offset += len(data)
        except OSError as error:
            raise _cannot_write(path, error) from error

    def remove(self) -> None:
        """Remove the files; what still comes is dropped."""
        with self._writing:
            self._removed = True
            for stream in _STREAMS:
                self._path(stream).unlink(missing_ok=True)

    def _path(self, stream: str) -> Path:
        return self._directory / f"{self._name}.{stream}"


class _File:
    """One stream's file, made when there is something to write. Its size is the count of what was written before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._skip = path.stat().st_size if path.exists() else 0

    def write(self, data: bytes) -> None:
        """Append what was not written before."""
        if self._skip:
            self._skip, data = max(0, self._skip - len(data)), data[self._skip :]
        try:
            if self._descriptor is None:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                self._descriptor = os.open(self._path, flags, 0o600)
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _cannot_write(path: Path | str, error: OSError) -> OutOfResourceError | InvalidStateError:
    kind = OutOfResourceError if error.errno in _FULL else InvalidStateError
    return kind(f"cannot write {path}: {error.strerror}")

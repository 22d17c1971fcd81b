"""Output of one container on the caller's side: the daemon's log stream, taken apart into files read by ranges.

Knows how the stream is framed, and nothing of the connection that it comes from.
"""

from __future__ import annotations

import struct
import threading
from itertools import chain
from typing import TYPE_CHECKING

from wfl.contexts.spool import OutputFile
from wfl.errors import DrmCommunicationError, ImplementationSpecificError

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
_STREAMS = ("stdout", "stderr")


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
        self._files = {stream: OutputFile(directory / f"{name}.{stream}") for stream in _STREAMS}
        self._merged = merged
        self._filling = threading.Lock()
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
        for file in self._files.values():
            file.skip(file.size)
        try:
            for piece in log:
                self.come += len(piece)
                for stream, data in zip(_STREAMS, demultiplexer.feed(piece), strict=True):
                    if data and not self._files[stream].write(data):
                        return
            demultiplexer.finish()
        finally:
            for file in self._files.values():
                file.close()

    def read(self, stream: Stream, offset: int, limit: int) -> bytes:
        """As OutputFile.read."""
        return self._files[stream].read(offset, limit)

    def copy_to(self, stream: Stream, path: str) -> None:
        """As OutputFile.copy_to."""
        self._files[stream].copy_to(path)

    def remove(self) -> None:
        """Remove the files; what still comes is dropped."""
        for file in self._files.values():
            file.remove()

"""Output of one pod's container on the caller's side: its log without the time stamps, as a file read by ranges.

The stamps are what makes a log readable further: a node tells it from its beginning, or from a second on, no finer.
"""

from __future__ import annotations

import re
import threading
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from wfl.contexts.kubernetes.client import NotThereError
from wfl.contexts.spool import OutputFile
from wfl.errors import DrmCommunicationError, ImplementationSpecificError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from wfl.contexts.kubernetes.client import Client

_STAMP = rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) "
"""RFC 3339 and a blank; the time zone is the node's."""
_BEGINNING = re.compile(_STAMP)
_BEGINNINGS = re.compile(b"(?m)^" + _STAMP)
_STRANGE = re.compile(b"(?m)^(?!" + _STAMP + b").*\n")
_PART_OF_A_STAMP = re.compile(rb"[0-9T:.Z+-]*")
_LONGEST = len("2026-01-01T00:00:00.123456789+00:00 ")
_FIXED = len("2026-01-01T00:00:00.123456789")
_MOST_WORDS = 4096  # bytes
_REMOVED = "unable to retrieve container logs for "
_SECOND = 10**9  # nanoseconds


class Output:
    """A file for the output of one pod's container, written by one thread and read by any.

    `complete` is set when nothing more will come: the log was read to its end, or `error` says why not. Filling again
    takes both back, and goes on after what has come.
    """

    def __init__(self, client: Client, directory: Path, key: str) -> None:
        self._client = client
        self._file = OutputFile(directory / f"{key}.log")
        self._filling = threading.Lock()
        self._taken = _Taken()
        self.complete = threading.Event()
        self.error: Exception | None = None

    def fill(self, pod: str, follow: bool) -> None:  # noqa: FBT001 - a thread's arguments go by their places
        """Read the log to its end; with `follow`, to the end of the container.

        A log that was followed is read on, for as long as that brings more: a node begins a new file with every
        10 MiB, and a follow ends, and ends well, at the end of an old file when the container ends meanwhile.

        Made to be a thread's target: what goes wrong is not raised but kept in `error`. That is what the client
        raises, ImplementationSpecificError for words of the node's own in place of output, or OutOfResourceError
        where the disk is full.
        """
        with self._filling:
            self.complete.clear()
            self.error = None
            try:
                self._pour(pod, follow=follow)
                if follow:
                    with suppress(NotThereError):  # removed since: then what was followed is all that there is
                        while self._pour(pod, follow=False):
                            pass
            except Exception as error:  # noqa: BLE001 - whatever it is, who waits for output is to be told
                self.error = error
            finally:
                self.complete.set()

    def _pour(self, pod: str, *, follow: bool) -> bool:
        """Read the log once, and say whether it had something new."""
        size = self._file.size
        self._file.skip(max(0, size - self._taken.written))  # of a line that was not whole
        reader = _Reader(self._taken, self._file)
        try:
            with closing(self._client.log(pod, follow=follow, since=self._taken.since())) as log:
                for piece in self._taken.skipped(log):
                    if not reader.feed(piece):
                        return False
                reader.finish()
        finally:
            self._file.close()
        return self._file.size > size

    @property
    def size(self) -> int:
        """Bytes that there are now."""
        return self._file.size

    def read(self, offset: int, limit: int) -> bytes:
        """As OutputFile.read."""
        return self._file.read(offset, limit)

    def copy_to(self, path: str) -> None:
        """As OutputFile.copy_to."""
        self._file.copy_to(path)

    def remove(self) -> None:
        """Remove the file; what still comes is dropped."""
        self._file.remove()


class _Taken:
    """What has been taken of a log: its whole lines, up to the last one's stamp, as there may be more that bear it."""

    def __init__(self) -> None:
        self.stamp = b""
        self.alike = 0  # of the lines that bear it, those that were taken
        self.written = 0  # bytes of whole lines, without stamps
        self.open = b""  # stamp of the line after those, of which a part is written already

    def since(self) -> str | None:
        """The second from which the log is to be told."""
        if not self.stamp:
            return None
        return f"{datetime.fromtimestamp(self._moment // _SECOND, UTC):%Y-%m-%dT%H:%M:%SZ}"

    def add(self, lines: bytes, size: int) -> None:
        """Whole lines have been written, `size` bytes without their stamps."""
        end, alike, stamp = len(lines), 0, b""
        while end:
            start = lines.rfind(b"\n", 0, end - 1) + 1
            if not lines.startswith(stamp, start):
                break
            stamp = stamp or lines[start : lines.index(b" ", start) + 1]
            alike, end = alike + 1, start
        self.alike = alike + (self.alike if not end and stamp == self.stamp else 0)
        self.stamp = stamp
        self.written += size

    def skipped(self, log: Iterable[bytes]) -> Iterator[bytes]:
        """The log without the lines at its beginning that were taken.

        Only there: after a clock was put back, later lines bear earlier stamps.
        """
        pieces = iter(log)
        rest, alike = b"", 0
        for piece in pieces if self.stamp else ():
            *lines, rest = (rest + piece).split(b"\n")
            for number, line in enumerate(lines):
                if self._is_new(line, alike):
                    yield b"\n".join([*lines[number:], rest])
                    yield from pieces
                    return
                alike += line.startswith(self.stamp)
            if (len(rest) > _LONGEST or _BEGINNING.match(rest)) and self._is_new(rest, alike):
                break
            rest = rest[:_LONGEST]  # the stamp is enough of what is left out
        if rest and self._is_new(rest, alike):
            yield rest
        yield from pieces

    def _is_new(self, line: bytes, alike: int) -> bool:
        """Whether a line comes after all that was taken, when so many that bear the last one's stamp went before."""
        if alike == self.alike:
            return True
        size, zone = len(self.stamp), self.stamp[_FIXED:]
        if zone and line[_FIXED:size] == zone:  # as nodes write them today: their order is that of their bytes
            return line[:size] > self.stamp
        stamp = _BEGINNING.match(line)
        return stamp is None or _moment(stamp) > self._moment

    @property
    def _moment(self) -> int:
        stamp = _BEGINNING.match(self.stamp)
        return _moment(stamp) if stamp else 0


class _Reader:
    """Takes a log with time stamps in any pieces, and writes it without them."""

    def __init__(self, taken: _Taken, file: OutputFile) -> None:
        self._taken, self._file = taken, file
        self._expected = taken.open
        self._head = (
            b""  # beginning of a line: its stamp, where what has come of its text is written, or a part of that
        )
        self._part = 0  # bytes that are written of that text

    def feed(self, piece: bytes) -> bool:
        """Write what has come, also of a line that is not whole yet. False: the output was removed."""
        # A million lines must not cost a call each: all lines of a piece are treated at once.
        data = self._head + piece
        end = data.rfind(b"\n") + 1
        lines, rest = data[:end], data[end:]
        text, count = _BEGINNINGS.subn(b"", lines)
        if count != lines.count(b"\n") and (strange := _STRANGE.search(lines)):
            self._head = b""
            self.feed(lines[: strange.start()])
            raise _strange(lines[strange.start() :])
        stamp = _BEGINNING.match(rest)
        if stamp is None and len(rest) > _MOST_WORDS:
            raise _strange(rest)
        head, more = (stamp[0], rest[stamp.end() :]) if stamp else (rest, b"")
        if lines or stamp:
            self._check_first(data)
        if (text or more) and not self._file.write(text + more):
            return False
        if lines:
            self._taken.add(lines, self._part + len(text))
            self._part = 0
        self._part += len(more)
        self._head, self._taken.open = head, head if stamp else b""
        return True

    def _check_first(self, data: bytes) -> None:
        """A line that was half written goes on under another stamp: in a new file, its node forgets how it began."""
        if not data.startswith(self._expected):
            self._taken.written = self._file.size
            self._file.skip(0)
        self._expected = b""

    def finish(self) -> None:
        """The log has ended. Raises where that was within a stamp, or in words that bear none."""
        if _PART_OF_A_STAMP.fullmatch(self._head):
            if self._head:
                raise DrmCommunicationError("the log broke off within a time stamp")
        elif not _BEGINNING.match(self._head):
            raise _strange(self._head)


def _moment(stamp: re.Match[bytes]) -> int:
    """Nanoseconds since 1970."""
    second, fraction, zone = (part.decode() for part in stamp.groups(b""))
    return int(datetime.fromisoformat(second + zone).timestamp()) * _SECOND + int(fraction.ljust(9, "0"))


def _strange(words: bytes) -> ImplementationSpecificError | NotThereError:
    """What the node has put in place of output; its words for a container that it has removed, while the pod goes."""
    said = words[:_MOST_WORDS].decode(errors="replace").strip()
    if said.startswith(_REMOVED):
        return NotThereError(said)
    return ImplementationSpecificError(f"the log has words of the node itself: {said}")

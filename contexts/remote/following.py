"""Output of jobs that run, for who reads it again and again: followed on the server by one stream each, into a file.

Who reads but once asks the server; who comes back to where the output ended is followed for. Streams are few: beyond
that the server is asked, more rarely the longer nothing comes.
"""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from wfl.contexts.remote.files import file_name
from wfl.contexts.spool import OutputFile
from wfl.errors import WflError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from wfl.backend import Stream
    from wfl.contexts.remote.v1 import Api

STREAMS = 16
"""Streams of output that one session follows at once."""
PAUSES = (0.03, 0.5)
"""Shortest and longest time in seconds between two questions of one who is not followed for."""


class Followers:
    """Of one session. Any thread."""

    def __init__(self, api: Api, directory: Callable[[], Path], closed: threading.Event) -> None:
        self._api, self._directory, self._closed = api, directory, closed
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._readers: dict[tuple[str, Stream], _Reader] = {}

    def read(self, id: str, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:
        """At most `limit` bytes from `offset`, and whether that is the end for now."""
        with self._lock:
            reader = self._readers.setdefault((id, stream), _Reader(self._api, id, stream))
            if reader.wants_stream(offset) and sum(one.follows for one in self._readers.values()) < STREAMS:
                path = self._directory() / file_name(id, stream, next(self._numbers))
                reader.follow(path, offset, self._closed)
        return reader.read(offset, limit)

    def drop(self, id: str) -> None:
        """It has ended, or is gone: the server has it all."""
        with self._lock:
            readers = [self._readers.pop(key) for key in list(self._readers) if key[0] == id]
        for reader in readers:
            reader.stop()

    def close(self) -> None:
        """Follow nothing more."""
        for id in {id for id, _ in list(self._readers)}:
            self.drop(id)


class _Reader:
    """One output, as it is read."""

    def __init__(self, api: Api, id: str, stream: Stream) -> None:
        self._api, self._id, self._stream = api, id, stream
        self._end: int | None = None  # where the output ended when it was last asked for
        self._asked, self._pause = 0.0, PAUSES[0]
        self._file: OutputFile | None = None
        self._start = 0
        self._stopped = False

    @property
    def follows(self) -> bool:
        """Whether there is a stream for it."""
        return self._file is not None

    def wants_stream(self, offset: int) -> bool:
        """Whether somebody waits for more at the output's end."""
        return self._file is None and offset == self._end

    def follow(self, path: Path, offset: int, closed: threading.Event) -> None:
        """Begin a stream from here on."""
        file = self._file = OutputFile(path)
        self._start = offset
        threading.Thread(target=self._fill, args=(file, closed), name="wfl-remote-output", daemon=True).start()

    def _fill(self, file: OutputFile, closed: threading.Event) -> None:
        """What breaks off is gone on with; when the job has ended, the server is asked again."""
        try:
            with suppress(WflError), self._api.follow(self._id, self._stream, self._start) as pieces:
                for piece in pieces:
                    if closed.is_set() or self._stopped or not file.write(piece):
                        break
        finally:
            file.close()
            self._file, self._end = None, None
            file.remove()

    def read(self, offset: int, limit: int) -> tuple[bytes, bool]:
        """From the stream where there is one, else from the server."""
        file = self._file
        if file is not None and offset >= self._start:
            with suppress(WflError):  # the stream has ended meanwhile
                data = file.read(offset - self._start, limit)
                return data, len(data) < limit
        if offset == self._end and time.monotonic() - self._asked < self._pause:
            return b"", True
        data, at_end = self._api.output(self._id, self._stream, offset, limit)
        self._pause = PAUSES[0] if data else min(2 * self._pause, PAUSES[1])
        self._asked, self._end = time.monotonic(), offset + len(data) if at_end else None
        return data, at_end

    def stop(self) -> None:
        """Nobody reads it any more."""
        self._stopped = True
        file = self._file
        if file is not None:
            file.remove()

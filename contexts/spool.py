"""Output of a job as a file on the caller's side, written by one thread and read by ranges by any."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from wfl.contexts.checks import PASSED
from wfl.errors import InvalidStateError, OutOfResourceError
from wfl.staging import FULL

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 1 << 20


class OutputFile:
    """One stream of a job. The file is made when there is something to write; none is as an empty one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = threading.Lock()
        self._descriptor: int | None = None
        self._skip = 0
        self._made = self._removed = False

    @property
    def size(self) -> int:
        """Bytes that there are now."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def skip(self, count: int) -> None:
        """The next so many bytes that are written are there already: what comes is read once more."""
        self._skip = count

    def write(self, data: bytes) -> bool:
        """Append; False where the output was removed meanwhile.

        Raises OutOfResourceError for a full disk, and InvalidStateError for what else the system refuses.
        """
        if self._skip:
            self._skip, data = max(0, self._skip - len(data)), data[self._skip :]
        with self._writing:
            if self._removed:
                return False
            try:
                self._append(data)
            except OSError as error:
                raise _cannot_write(self._path, error) from error
        return True

    def _append(self, data: bytes) -> None:
        if self._descriptor is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._path, flags, 0o600)
            self._made = True
        while data:
            data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        """Nothing more is written for now."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self, offset: int, limit: int) -> bytes:
        """At most `limit` bytes from `offset`: fewer are all that there are now.

        Raises InvalidStateError where the output was removed, or cannot be read.
        """
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if self._removed or self._made:
                raise InvalidStateError(f"the output in {self._path} was removed") from error
            return b""
        except OSError as error:
            raise InvalidStateError(f"cannot read {self._path}: {error.strerror}") from error
        try:
            return os.pread(descriptor, limit, offset)
        finally:
            os.close(descriptor)

    def copy_to(self, path: str) -> None:
        """Write what there is now into a file, which is made or emptied first, or to the program's own."""
        try:
            with open(os.dup(PASSED[path]) if path in PASSED else path, "wb") as file:
                offset, end = 0, self.size
                while data := self.read(offset, min(_CHUNK, end - offset)):
                    file.write(data)
                    offset += len(data)
        except OSError as error:
            raise _cannot_write(path, error) from error

    def remove(self) -> None:
        """Remove the file; what still comes is dropped."""
        with self._writing:
            self._removed = True
            self._path.unlink(missing_ok=True)


def _cannot_write(path: Path | str, error: OSError) -> OutOfResourceError | InvalidStateError:
    kind = OutOfResourceError if error.errno in FULL else InvalidStateError
    return kind(f"cannot write {path}: {error.strerror}")

"""The machine on which a scheduler's commands run, and which sees a session's directory: this one.

Another one stands in its place when a login node is worked on over SSH (wfl.contexts.ssh.there).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import msgspec

from wfl.contexts import helper
from wfl.errors import InvalidStateError, SessionManagementError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence


class Times(msgspec.Struct, frozen=True, gc=False):
    """When a file was last written, and when anything of it was last changed."""

    written: datetime
    changed: datetime


class Text(msgspec.Struct, frozen=True, gc=False):
    """What is in a file, and when it was written."""

    text: str
    written: datetime


class Copies(Protocol):
    """Files and directories to another machine and back; `wait` waits before another attempt.

    Raises DrmCommunicationError where that broke off. `breaks` is how often copying back did so in a row on a machine
    that was reached, without anything more arriving.
    """

    breaks: int

    def put_all(self, files: Mapping[str, str], wait: Callable[[float], object]) -> None:
        """There, the sources by their targets."""

    def get(self, source: str, target: str, wait: Callable[[float], object]) -> None:
        """Back."""


class Machine(Protocol):
    """What a session on a cluster needs of a machine. It can be pickled, for the helper that outlives the program.

    What cannot be read or written raises SessionManagementError with the path. A machine that is not reached raises
    DrmCommunicationError, whatever it is asked.
    """

    def __hash__(self) -> int:
        """By identity."""

    @property
    def name(self) -> str:
        """As in "there is no such file NAME"."""

    @property
    def is_away(self) -> bool:
        """Whether its files are not this machine's."""

    @property
    def user(self) -> str | None:
        """Whose jobs are submitted; None: the program's user."""

    @property
    def base(self) -> str:
        """The directory that relative paths begin at."""

    def now(self) -> datetime:
        """By its clock."""

    def environment(self) -> dict[str, str]:
        """What commands have unless they are given another one."""

    def run(self, argv: Sequence[str], env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, without input.

        Raises FileNotFoundError where there is no such command, OSError where it cannot be run, and
        subprocess.TimeoutExpired, with what it has said, for one that was killed after `timeout` seconds.
        """

    def exists(self, path: str) -> bool:
        """Whether anything is there."""

    def make(self, directories: Iterable[str]) -> None:
        """These and those above them, for nobody else to read."""

    def write(self, texts: Mapping[str, str]) -> None:
        """Into files by their paths, each at once or not at all."""

    def append(self, path: str, text: str) -> None:
        """Behind what is in a file, which is made if it is not there."""

    def texts(self, paths: Collection[str]) -> dict[str, Text]:
        """Of those that are there."""

    def times(self, paths: Collection[str]) -> dict[str, Times]:
        """Of those that are there."""

    def names(self, directories: Sequence[str]) -> list[list[str]]:
        """What is in each of these; nothing where there is no such directory."""

    def rename(self, old: str, new: str) -> None:
        """As os.rename has it."""

    def remove(self, paths: Iterable[str]) -> None:
        """Files, as far as they are there."""

    def remove_directory(self, path: str, *, whole: bool) -> None:
        """With all that is in it, or if it is empty; as far as that can be done."""

    def part(self, path: str, offset: int, limit: int) -> tuple[bytes, bool]:
        """At most `limit` bytes of a file from `offset`, and whether that was the end for now."""

    def copies(self, mark: str) -> Copies:
        """For one job's files, where it is away; `mark` is in the names of what is still on its way."""

    def close(self) -> None:
        """Nothing more is wanted."""

    def abandon(self) -> None:
        """In a forked child."""


class Here:
    """This machine."""

    name = "here"
    is_away = False
    user = None

    @property
    def base(self) -> str:
        """The program's directory."""
        return os.getcwd()

    def now(self) -> datetime:
        """By this machine's clock."""
        return datetime.now(UTC)

    def environment(self) -> dict[str, str]:
        """The program's."""
        return helper.child_environment()

    def run(self, argv: Sequence[str], env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[bytes]:
        """In a session of its own."""
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,  # the terminal's Ctrl-C is for the program, which decides what follows
        ) as process:
            try:
                output, words = process.communicate(timeout=timeout)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # a site's command may be a script that has started others
                raise
        return subprocess.CompletedProcess(argv, process.returncode, output, words)

    def exists(self, path: str) -> bool:
        """Whether it is there."""
        return os.path.exists(path)

    def make(self, directories: Iterable[str]) -> None:
        """With os.makedirs."""
        for path in directories:
            with _told(path):
                os.makedirs(path, mode=0o700, exist_ok=True)

    def write(self, texts: Mapping[str, str]) -> None:
        """Beside their places, then into them."""
        for path, text in texts.items():
            with _told(path):
                with open(f"{path}~", "w", encoding="utf-8", errors="surrogateescape", opener=_private) as file:
                    file.write(text)
                os.rename(f"{path}~", path)

    def append(self, path: str, text: str) -> None:
        """In one piece."""
        with _told(path), open(path, "a", encoding="utf-8", opener=_private) as file:
            file.write(text)

    def texts(self, paths: Collection[str]) -> dict[str, Text]:
        """One after another."""
        found = {}
        for path in paths:
            with (
                _told(path),
                contextlib.suppress(FileNotFoundError),
                open(path, encoding="utf-8", errors="surrogateescape") as file,
            ):
                found[path] = Text(file.read(), datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC))
        return found

    def times(self, paths: Collection[str]) -> dict[str, Times]:
        """One after another."""
        found = {}
        for path in paths:
            with contextlib.suppress(OSError):
                seen = os.stat(path)
                found[path] = Times(
                    datetime.fromtimestamp(seen.st_mtime, UTC), datetime.fromtimestamp(seen.st_ctime, UTC)
                )
        return found

    def names(self, directories: Sequence[str]) -> list[list[str]]:
        """In no order."""
        found: list[list[str]] = []
        for directory in directories:
            found.append([])
            with _told(directory), contextlib.suppress(FileNotFoundError):
                found[-1] = os.listdir(directory)
        return found

    def rename(self, old: str, new: str) -> None:
        """With os.rename."""
        os.rename(old, new)

    def remove(self, paths: Iterable[str]) -> None:
        """What is there."""
        for path in paths:
            with contextlib.suppress(OSError):
                os.remove(path)

    def remove_directory(self, path: str, *, whole: bool) -> None:
        """What can be removed."""
        if whole:
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.rmdir(path)

    def part(self, path: str, offset: int, limit: int) -> tuple[bytes, bool]:
        """From the file."""
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read(limit)
                return data, len(data) < limit or file.tell() >= os.fstat(file.fileno()).st_size
        except OSError as error:
            raise InvalidStateError(f"{path}: {error.strerror}") from error

    def copies(self, mark: str) -> Copies:
        """There is nothing to copy."""
        raise NotImplementedError(mark)

    def close(self) -> None:
        """It stays."""

    def abandon(self) -> None:
        """Nothing is held."""


HERE = Here()


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SessionManagementError(f"{path}: {error.strerror}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

"""Where a session keeps what its jobs need and leave, on a file system that the cluster's machines share.

`DIRECTORY/SESSION/PROGRAM/KIND/NUMBER`: of each program that worked in a session, its jobs by their keys: what was
submitted (job, script), the scheduler's answer (id), output (out, err), what the job itself says of its beginning (run)
and of its end (end), and whether it was told to end before it began (stop). So a later program finds all jobs by the
session's name, and their ends without asking.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from wfl.drmaa2 import JobTemplate
from wfl.errors import InvalidStateError, SessionManagementError
from wfl.program import program_lives, program_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Kind = Literal["job", "job~", "script", "id", "run", "end", "out", "err", "log", "stop", "reaped"]
KINDS: tuple[Kind, ...] = ("job", "script", "id", "run", "end", "out", "err", "log", "stop", "reaped")
ELEMENT: tuple[Kind, ...] = ("run", "end", "out", "err", "stop")
"""Those that each element of an array has."""
BY = "by"
"""The file with the name of the program that submits."""
WHOLE = "."
"""The last line of an end: a file that lacks it is still being written."""
_making = threading.Lock()
_made: set[str] = set()
"""Directories that this program has made."""


def program_of(key: str) -> str:
    """The program in a job's, an array's or an element's key."""
    return key.rpartition("-")[0]


class Wave(msgspec.Struct, frozen=True, gc=False):
    """The part of an array that is one native array: elements `first + step * n` for n in `numbers`."""

    numbers: range
    first: int = 0
    step: int = 1


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What was submitted under one key: one job, or an array with these indexes, in these waves.

    `index` is set for a job that takes the part of one element of an array, `job_id` is that array's id, or the key.
    """

    key: str
    template: JobTemplate
    job_id: str
    index: int | None = None
    indexes: range | None = None
    max_parallel: int | None = None
    waves: Sequence[Wave] | None = None

    @property
    def parts(self) -> range:
        """The numbers of what is submitted, each with an id of its own: an array's waves, or the one job."""
        return range(1 if self.waves is None else len(self.waves))


class End(msgspec.Struct, frozen=True, gc=False):
    """What a job has written about its end. `refused`: why its command was never started, else None.

    `id`: what the scheduler calls it, an element by its array. `said`: its shell had something to say, which is that a
    signal ended the command (but for those it never mentions).
    """

    status: int | None
    refused: str | None
    unsaved: str | None
    said: bool
    shell: str
    host: str
    id: str
    wallclock: timedelta | None
    cpu: timedelta | None
    time: datetime


class Place:
    """The directory of one session."""

    def __init__(self, directory: str, session_name: str) -> None:
        self.root = os.path.join(directory, session_name)

    def path(self, kind: Kind, key: str) -> str:
        """The file of this kind for a job, or an element, by its key."""
        program, _, number = key.rpartition("-")
        return f"{self.root}/{program}/{kind}/{number}"

    def enter(self, entry: Entry, script: str) -> None:
        """Write down a submission before it happens."""
        said = {
            "key": entry.key,
            "job_id": entry.job_id,
            "index": entry.index,
            "indexes": None if entry.indexes is None else _three(entry.indexes),
            "max_parallel": entry.max_parallel,
            "waves": None if entry.waves is None else [[*_three(w.numbers), w.first, w.step] for w in entry.waves],
            "template": json.loads(entry.template.to_json()),
        }
        program = os.path.join(self.root, program_of(entry.key))
        with _making:
            if program not in _made or not os.path.isdir(f"{program}/job"):  # others may remove one that is empty
                self._make(program)
        _write(self.path("job", entry.key), json.dumps(said))
        _write(self.path("script", entry.key), script)

    def accept(self, key: str, parts: Mapping[int, str]) -> None:
        """Write down the scheduler's ids: of the job, or of an array's waves, by their numbers."""
        _write(self.path("id", key), json.dumps(parts))

    def accepted(self, key: str) -> dict[int, str]:
        """The scheduler's ids, as far as its answers were read."""
        text = self._read("id", key)
        return {} if text is None else {int(part): id for part, id in json.loads(text).items()}

    def entry(self, key: str) -> Entry | None:
        """What was submitted under this key, also what was put away; None if nothing was, or it was reaped."""
        text = self._read("job", key) or self._read("job~", key)
        if text is None:
            return None
        said = json.loads(text)
        return Entry(
            key=said["key"],
            template=JobTemplate.from_json(json.dumps(said["template"])),
            job_id=said["job_id"],
            index=said["index"],
            indexes=None if said["indexes"] is None else range(*said["indexes"]),
            max_parallel=said["max_parallel"],
            waves=None if said["waves"] is None else [Wave(range(*w[:3]), *w[3:]) for w in said["waves"]],
        )

    def entries(self) -> Iterator[Entry]:
        """All that was submitted in this session."""
        for name in _names(self.root):
            whole = (number for number in _names(f"{self.root}/{name}/job") if not number.endswith("~"))
            for number in sorted(whole, key=_order):
                entry = self.entry(f"{name}-{number}")
                if entry is not None:
                    yield entry

    def programs(self) -> list[str]:
        """The programs that worked in this session, and of which something is left."""
        return [name for name in _names(self.root) if not name.endswith("~")]

    def listed(self, kind: Kind, program: str) -> set[str]:
        """The keys of this program that have a file of this kind."""
        return {f"{program}-{name}" for name in _names(f"{self.root}/{program}/{kind}") if not name.endswith("~")}

    def end(self, key: str) -> End | None:
        """What the job says of its end; None if it has not ended, or never could say so."""
        path = self.path("end", key)
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text, changed = file.read(), os.fstat(file.fileno()).st_mtime
        except OSError:
            return None
        try:
            return read_end(text, datetime.fromtimestamp(changed, UTC))
        except ValueError:  # no script wrote that
            return None

    def began(self, key: str) -> datetime | None:
        """When the job began, by the file system's clock."""
        try:
            return datetime.fromtimestamp(os.stat(self.path("run", key)).st_ctime, UTC)
        except OSError:
            return None

    def since(self, keys: Iterable[str]) -> datetime:
        """When the first of these was about to be submitted, by the file system's clock."""
        first = datetime.now(UTC)
        for key in keys:
            with contextlib.suppress(OSError):
                first = min(first, datetime.fromtimestamp(os.stat(self.path("job", key)).st_mtime, UTC))
        return first

    def log(self, key: str) -> str:
        """The last words of the scheduler about a job, or about any element of its array."""
        return " ".join(self.whole_log(key)[-300:].split())

    def whole_log(self, key: str) -> str:
        """All that the scheduler has written about a job, or about all elements of its array."""
        return self._read("log", key.partition(".")[0]) or ""

    def stop(self, key: str) -> None:
        """From now on this job, element, or any element of this array, ends when it begins."""
        with contextlib.suppress(OSError):  # the scheduler is told, too
            os.close(_private(self.path("stop", key), os.O_CREAT | os.O_WRONLY))

    def note_reaped(self, key: str, indexes: Iterable[int]) -> None:
        """Write down that nobody wants to know any more of these elements of an array."""
        with contextlib.suppress(OSError), open(self.path("reaped", key), "a", encoding="ascii") as file:
            file.write("".join(f"{index}\n" for index in indexes))

    def reaped(self, key: str) -> set[int]:
        """The indexes of those."""
        return {int(line) for line in (self._read("reaped", key) or "").split()}

    def forget(self, key: str, kinds: Iterable[Kind] = KINDS) -> None:
        """Remove all of one job, or what an array's elements have in common; or of one element, with its `kinds`."""
        for kind in kinds:
            with contextlib.suppress(OSError):
                os.remove(self.path(kind, key))

    def is_at_work(self, key: str, patience: float) -> bool:
        """Whether a program may be submitting this just now, which it does for `patience` seconds at most."""
        written = self.since([key])
        if datetime.now(UTC) - written > timedelta(seconds=patience):
            return False
        return program_lives(_read(f"{self.root}/{program_of(key)}/{BY}") or "")

    def tidy(self, program: str) -> None:
        """Remove the directory of a program of which nothing is left."""
        place = f"{self.root}/{program}"
        if _names(f"{place}/job") or not os.path.isdir(place):
            return
        with contextlib.suppress(OSError):
            os.rename(place, f"{place}~")
            if _names(f"{place}~/job"):  # it has just begun again
                os.rename(f"{place}~", place)
            else:
                self.remove(f"{program}~")
        _made.discard(place)

    def remove(self, program: str | None = None) -> None:
        """Remove everything, or all of one program; and the session's directory, if nothing else is in it."""
        for name in [program] if program is not None else _names(self.root):
            _made.discard(os.path.join(self.root, name))
            shutil.rmtree(os.path.join(self.root, name), ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(self.root)

    def _make(self, program: str) -> None:
        try:
            for kind in KINDS:
                os.makedirs(f"{program}/{kind}", mode=0o700, exist_ok=True)
            _write(f"{program}/{BY}", program_name("self"))
        except OSError as error:
            words = f"{program}: {error.strerror}. Give a directory that the cluster's machines share: directory=PATH"
            raise SessionManagementError(words) from error
        _made.add(program)

    def _read(self, kind: Kind, key: str) -> str | None:
        return _read(self.path(kind, key))


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SessionManagementError(f"{path}: {error.strerror}") from error


def _write(path: str, text: str) -> None:
    """At once or not at all."""
    try:
        with open(f"{path}~", "w", encoding="utf-8", errors="surrogateescape", opener=_private) as file:
            file.write(text)
        os.rename(f"{path}~", path)
    except OSError as error:
        raise SessionManagementError(f"{path}: {error.strerror}") from error


def _three(numbers: range) -> list[int]:
    return [numbers.start, numbers.stop, numbers.step]


def read_part(path: str, offset: int, limit: int) -> tuple[bytes, bool]:
    """At most `limit` bytes of a file from `offset`, and whether that was the end for now."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(limit)
            return data, len(data) < limit or file.tell() >= os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InvalidStateError(f"{path}: {error.strerror}") from error


def read_end(text: str, time: datetime) -> End | None:
    """The lines that the script has written: a name and a value each, then what `times` prints, then WHOLE."""
    *lines, last = text.removesuffix("\n").split("\n")
    if last != WHOLE:
        return None
    said: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(" ")
        said.setdefault(name, value)
    cpu = [_minutes(part) for line in lines if line[:1].isdigit() for part in line.split()]
    begun, over = said.get("begun"), said.get("over")
    return End(
        status=int(said["status"]) if "status" in said else None,
        refused=said.get("refused"),
        unsaved=said.get("unsaved"),
        said=said.get("said") == "yes",
        shell=said.get("shell", ""),
        host=said.get("host", ""),
        id=said.get("id", ""),
        wallclock=timedelta(seconds=float(over) - float(begun)) if begun and over else None,
        cpu=timedelta(seconds=sum(cpu)) if cpu else None,
        time=time,
    )


def _minutes(text: str) -> float:
    """Seconds of what `times` prints, such as 1m2.30s; some shells write a comma, after the language."""
    minutes, _, seconds = text.partition("m")
    return 60 * float(minutes) + float(seconds.rstrip("s").replace(",", "."))


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SessionManagementError(f"{directory}: {error.strerror}") from error


def _order(number: str) -> Any:
    return (0, int(number)) if number.isdigit() else (1, number)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

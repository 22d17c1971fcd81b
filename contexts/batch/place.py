"""Where a session keeps what its jobs need and leave, on a file system that the cluster's machines share.

`DIRECTORY/SESSION/PROGRAM/KIND/NUMBER`: of each program that worked in a session, its jobs by their keys: what was
submitted (job, script), the scheduler's answer (id), output (out, err), what the job itself says of its beginning (run)
and of its end (end), and whether it was told to end before it began (stop). So a later program finds all jobs by the
session's name, and their ends without asking.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import posixpath
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from wfl.contexts.batch.machine import HERE
from wfl.contexts.ends import read_end
from wfl.drmaa2 import JobTemplate
from wfl.errors import SessionManagementError
from wfl.program import program_lives, program_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from wfl.contexts.batch.machine import Machine, Text, Times
    from wfl.contexts.ends import End

Kind = Literal["job", "job~", "script", "id", "run", "end", "out", "err", "log", "stop", "reaped"]
KINDS: tuple[Kind, ...] = ("job", "script", "id", "run", "end", "out", "err", "log", "stop", "reaped")
ELEMENT: tuple[Kind, ...] = ("run", "end", "out", "err", "stop")
"""Those that each element of an array has."""
BY = "by"
"""The file with the name of the program that submits."""
AWAY = "~"
"""Behind the names of directories that nobody is to find any more."""


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


class Place:
    """The directory of one session, as a machine sees it."""

    def __init__(self, directory: str, session_name: str, machine: Machine = HERE) -> None:
        """A directory that is relative begins at the machine's base, which is asked for when it is first needed."""
        self._directory, self._session, self.machine = directory, session_name, machine
        self._making = threading.Lock()
        self._made: set[str] = set()  # directories that are there

    @functools.cached_property
    def root(self) -> str:
        """Its path."""
        base = "" if posixpath.isabs(self._directory) else self.machine.base
        return posixpath.join(base, self._directory, self._session)

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
        program = f"{self.root}/{program_of(entry.key)}"
        texts = {self.path("job", entry.key): json.dumps(said), self.path("script", entry.key): script}
        if program in self._made:
            try:
                self.machine.write(texts)
            except SessionManagementError:  # others may remove a directory that is empty
                self._made.discard(program)
            else:
                return
        with self._making:
            self._make(program)
        self.machine.write(texts)

    def accept(self, key: str, parts: Mapping[int, str]) -> None:
        """Write down the scheduler's ids: of the job, or of an array's waves, by their numbers."""
        self.machine.write({self.path("id", key): json.dumps(parts)})

    def accepted(self, keys: Collection[str]) -> dict[str, dict[int, str]]:
        """The scheduler's ids for what was submitted under these keys, as far as its answers were read."""
        found: dict[str, dict[int, str]] = {key: {} for key in keys}
        for key, told in self._texts("id", keys).items():
            found[key] = {int(part): id for part, id in json.loads(told.text).items()}
        return found

    def entries(self, keys: Collection[str]) -> dict[str, Entry]:
        """What was submitted under these keys, also what was put away; nothing for what was not, or was reaped."""
        found = {key: _entry(told.text) for key, told in self._texts("job", keys).items() if told.text}
        rest = [key for key in keys if key not in found]
        return found | {key: _entry(told.text) for key, told in self._texts("job~", rest).items()}

    def all_entries(self) -> Iterator[Entry]:
        """All that was submitted in this session."""
        programs = self._names(self.root)[0]
        listed = self._names(*(f"{self.root}/{name}/job" for name in programs))
        for name, numbers in zip(programs, listed, strict=True):
            whole = sorted((number for number in numbers if not number.endswith("~")), key=_order)
            yield from self.entries([f"{name}-{number}" for number in whole]).values()

    def programs(self) -> list[str]:
        """The programs that worked in this session, and of which something is left."""
        return [name for name in self._names(self.root)[0] if not name.endswith("~")]

    def listed(self, program: str, *kinds: Kind) -> list[set[str]]:
        """The keys of this program that have a file of this kind, for each kind."""
        found = self._names(*(f"{self.root}/{program}/{kind}" for kind in kinds))
        return [{f"{program}-{name}" for name in names if not name.endswith("~")} for names in found]

    def ends(self, keys: Collection[str]) -> dict[str, End]:
        """What jobs say of their ends: those that have ended, and could say so."""
        found = {}
        try:
            texts = self._texts("end", keys)
        except SessionManagementError:
            half = len(keys) // 2  # one that cannot be read hinders no other
            return self.ends([*keys][:half]) | self.ends([*keys][half:]) if half else {}
        for key, told in texts.items():
            with contextlib.suppress(ValueError):  # no script wrote that
                end = read_end(os.fsencode(told.text).decode(errors="replace"), told.written)
                if end is not None:
                    found[key] = end
        return found

    def end(self, key: str) -> End | None:
        """What the job says of its end; None if it has not ended, or never could say so."""
        return self.ends([key]).get(key)

    def began(self, keys: Collection[str]) -> dict[str, datetime]:
        """When those of these that have begun did so, by the file system's clock."""
        return {key: times.changed for key, times in self._times("run", keys).items()}

    def since(self, keys: Collection[str]) -> datetime:
        """When the first of these was about to be submitted, by the file system's clock."""
        return min((self.machine.now(), *(times.written for times in self._times("job", keys).values())))

    def log(self, key: str) -> str:
        """The last words of the scheduler about a job, or about any element of its array."""
        return " ".join(self.whole_log(key)[-300:].split())

    def whole_log(self, key: str) -> str:
        """All that the scheduler has written about a job, or about all elements of its array."""
        path = self.path("log", key.partition(".")[0])
        told = self.machine.texts([path]).get(path)
        return told.text if told is not None else ""

    def stop(self, key: str) -> None:
        """From now on this job, element, or any element of this array, ends when it begins."""
        with contextlib.suppress(SessionManagementError):  # the scheduler is told, too
            self.machine.append(self.path("stop", key), "")

    def note_reaped(self, key: str, indexes: Iterable[int]) -> None:
        """Write down that nobody wants to know any more of these elements of an array."""
        with contextlib.suppress(SessionManagementError):
            self.machine.append(self.path("reaped", key), "".join(f"{index}\n" for index in indexes))

    def reaped(self, keys: Collection[str]) -> dict[str, set[int]]:
        """The indexes of those, by the arrays' keys."""
        told = self._texts("reaped", keys)
        return {key: {int(line) for line in told[key].text.split()} if key in told else set() for key in keys}

    def forget(self, keys: Iterable[str], kinds: Sequence[Kind] = KINDS) -> None:
        """Remove all of these jobs, or what arrays' elements have in common; or of single elements, their `kinds`."""
        self.machine.remove(self.path(kind, key) for key in keys for kind in kinds)

    def is_at_work(self, key: str, patience: float) -> bool:
        """Whether a program may be submitting this just now, which it does for `patience` seconds at most."""
        written = self.since([key])
        if self.machine.now() - written > timedelta(seconds=patience):
            return False
        path = f"{self.root}/{program_of(key)}/{BY}"
        told = self.machine.texts([path]).get(path)
        return told is not None and program_lives(told.text)

    def tidy(self, program: str) -> None:
        """Remove the directory of a program of which nothing is left."""
        place = f"{self.root}/{program}"
        jobs, all_of_it = self._names(f"{place}/job", place)
        if jobs or not all_of_it:
            return
        with contextlib.suppress(OSError):
            self.machine.rename(place, f"{place}~")
            if self._names(f"{place}~/job")[0]:  # it has just begun again
                self.machine.rename(f"{place}~", place)
            else:
                self.remove(f"{program}~")
        with self._making:
            self._made.discard(place)

    def is_there(self, program: str) -> bool:
        """Whether this program has submitted anything in this session."""
        return self.machine.exists(f"{self.root}/{program}")

    def put_away(self, program: str) -> None:
        """From now on no job of this program starts."""
        with contextlib.suppress(FileNotFoundError):  # somebody began with that before
            self.machine.rename(f"{self.root}/{program}/job", f"{self.root}/{program}/job{AWAY}")

    def leave(self, program: str, *, keep: bool) -> None:
        """Of a program that was put away, when all has ended: all as it was, or nothing."""
        root = f"{self.root}/{program}"
        with contextlib.suppress(FileNotFoundError):
            if keep:
                self.machine.rename(f"{root}/job{AWAY}", f"{root}/job")
            else:
                self.machine.rename(root, f"{root}{AWAY}")  # a shell that just writes its last words finds it no more
                self.remove(f"{program}{AWAY}")

    def remove(self, program: str | None = None) -> None:
        """Remove everything, or all of one program; and the session's directory, if nothing else is in it."""
        for name in [program] if program is not None else self._names(self.root)[0]:
            with self._making:
                self._made.discard(f"{self.root}/{name}")
            self.machine.remove_directory(f"{self.root}/{name}", whole=True)
        self.machine.remove_directory(self.root, whole=False)

    def _make(self, program: str) -> None:
        try:
            self.machine.make(f"{program}/{kind}" for kind in KINDS)
            self.machine.write({f"{program}/{BY}": program_name("self")})
        except SessionManagementError as error:
            words = f"{error}. Give a directory that the cluster's machines share: directory=PATH"
            raise SessionManagementError(words) from error
        self._made.add(program)

    def _texts(self, kind: Kind, keys: Collection[str]) -> dict[str, Text]:
        paths = {self.path(kind, key): key for key in keys}
        return {paths[path]: told for path, told in self.machine.texts(paths).items()} if paths else {}

    def _times(self, kind: Kind, keys: Collection[str]) -> dict[str, Times]:
        paths = {self.path(kind, key): key for key in keys}
        return {paths[path]: told for path, told in self.machine.times(paths).items()} if paths else {}

    def _names(self, *directories: str) -> list[list[str]]:
        return self.machine.names(directories)


def _entry(text: str) -> Entry:
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


def _three(numbers: range) -> list[int]:
    return [numbers.start, numbers.stop, numbers.step]


def _order(number: str) -> Any:
    return (0, int(number)) if number.isdigit() else (1, number)

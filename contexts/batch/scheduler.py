"""What a scheduler's file has to say: how a template is submitted, how all jobs are asked for, what the answers mean.

Functions without side effects; running commands, waiting, remembering and trying again is the engine's.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import msgspec

from wfl.backend import Action
from wfl.drmaa2 import Capability, JobInfo, SubState
from wfl.errors import InvalidArgumentError

if TYPE_CHECKING:
    from datetime import datetime

    from wfl.contexts.batch.place import Entry, Wave
    from wfl.contexts.ends import Account
    from wfl.drmaa2 import JobTemplate

Command = Sequence[str]

NATIVE = "native"
"""The extension with options as the scheduler's own command takes them."""
INHERIT = "inherit_environment"
"""The extension that decides for one template whether jobs have the program's environment: "true" or "false"."""


class Job(msgspec.Struct, frozen=True, gc=False):
    """What goes to the scheduler: a script's path, and the part of an array that it is for."""

    entry: Entry
    script: str
    log: str
    inherit: bool = False
    part: int = 0
    """Of an array: the number of the wave."""
    after: str | None = None
    """The array's wave before this one, which must have ended."""

    @property
    def template(self) -> JobTemplate:
        """What was submitted."""
        return self.entry.template

    @property
    def wave(self) -> Wave | None:
        """The part of the array that this is; None for a job that is no array."""
        return None if self.entry.waves is None else self.entry.waves[self.part]

    @property
    def key(self) -> str:
        """What the scheduler's list has to show, so that a job is found whose submission got no answer."""
        return self.entry.key if not self.part else f"{self.entry.key}/{self.part}"

    @property
    def offset(self) -> list[str]:
        """Where a script is read late: its argument, by which the parts of an array, which share it, differ."""
        return [str(self.wave.first)] if self.wave is not None and len(self.entry.parts) > 1 else []


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What the scheduler's list says of one job (`numbers` None), or of some elements of one array.

    `key` is ours, where the list has it. An `info` that has ended has neither exit status nor sub state yet; `cause` is
    why it ended, where that was not the command's own doing.
    """

    id: str
    numbers: Sequence[range] | None
    info: JobInfo
    key: str | None = None
    cause: SubState | None = None
    stuck: bool = False
    """The scheduler has set it aside because it could not be started: it is to be deleted, and has failed."""


class Scheduler(ABC):
    """One scheduler's language."""

    name: ClassVar[str]
    fields: ClassVar[frozenset[str]]
    """Template fields that are honoured, besides those that the script sees to."""
    extensions: ClassVar[frozenset[str]]
    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    """Besides those that the engine has."""
    lacks: ClassVar[frozenset[Capability]] = frozenset()
    """Of those that the engine has: what this scheduler cannot do."""
    answers: ClassVar[Mapping[str, str]] = {"LC_ALL": "C"}
    """Variables that give its commands' answers a form that can be read."""
    id: ClassVar[str] = ""
    """For a job's shell: its id, an array's element that of the array; empty where it cannot be had."""
    number: ClassVar[str]
    """The variable in which an array's element finds its number."""
    unwanted: ClassVar[frozenset[str]] = frozenset()
    """The user's variables that would make something else of a submission than its options say."""
    late: ClassVar[bool] = False
    """Whether a script is read when a job begins, and not when it is submitted."""
    lowest: ClassVar[int] = 1
    """The smallest number of an element."""
    rungs: ClassVar[int] = 1
    """Kinds of records of ends that there may be, the best first: where one is refused, the next is looked at."""
    fading: ClassVar[int] = 0
    """Of these, how many at the end of the ladder forget an end after a while."""
    passed: ClassVar[tuple[str, ...] | None] = None
    """Beginnings of the variables that a submission sees, where it passes all that it sees on to the job: then the
    script asks for a login shell itself, to have what the site gives to every login. None: nothing is passed on."""
    leads: ClassVar[str | None] = None
    """The variable with the path of its configuration, if its commands look long for a file that is not there."""
    alone: ClassVar[str] = ""
    """Patterns, as a shell's `case` has them, of lines in a job's /proc/self/cgroup: where there is such a one, the
    scheduler's signals reach the script's shell and none of its children, so it passes SIGTERM on."""
    reserved: ClassVar[frozenset[int]] = frozenset()
    """Exit statuses by which a script tells the scheduler something else than how its command has ended."""
    silent: ClassVar[bool] = False
    """Whether a job that is deleted before it begins leaves no record."""
    rest: ClassVar[float] = 0.0
    """Seconds for which a job is told nothing after it was told to stop or to go on."""
    down_words: ClassVar[tuple[str, ...]]
    busy_words: ClassVar[tuple[str, ...]] = ()
    none_words: ClassVar[tuple[str, ...]] = ("",)
    over_words: ClassVar[tuple[str, ...]] = ()
    partly_words: ClassVar[tuple[str, ...]] = ()
    """What stands, in small letters, in an error of which `down`, `busy`, `keeps_none`, `unknown`, `partly` is true."""

    @abstractmethod
    def submit(self, job: Job) -> Command:
        """The command that submits; its options come from the template.

        With `job.inherit` the job gets the environment that the command sees.
        """

    @abstractmethod
    def accepted(self, output: str) -> str:
        """The id in what that command says."""

    def element(self, id: str, number: int) -> str:
        """What one element of an array is called."""
        return f"{id}_{number}"

    @abstractmethod
    def query(self, user: str) -> Command:
        """The command that lists all jobs of a user."""

    def search(self, user: str) -> Command:
        """The command that lists all jobs of a user with our keys, for `seen` too, where the usual list lacks them."""
        return self.query(user)

    @abstractmethod
    def seen(self, output: str) -> Iterable[Seen]:
        """What that list says."""

    @abstractmethod
    def accounting(self, ids: Sequence[str], user: str, rung: int) -> Sequence[Command]:
        """The commands that tell how these jobs and arrays have ended, from the records of this rung."""

    def records(self, ids: Sequence[str], user: str, rung: int, since: datetime) -> Sequence[Command]:
        """The same, where records are looked through from a time on: none of these was submitted before `since`."""
        del since
        return self.accounting(ids, user, rung)

    @abstractmethod
    def accounts(self, output: str, rung: int, ids: Collection[str] = ()) -> Iterable[Account]:
        """What these say; where `ids` are given, of others it need not be read."""

    @abstractmethod
    def control(self, ids: Sequence[str], action: Action) -> Sequence[Command]:
        """The commands that do it to all of these."""

    def undone(self, output: str) -> str | None:
        """What a command that controls, and ended well, says of a job to which it could not be done."""
        del output
        return None

    def describe(self, ids: Sequence[str]) -> Command | None:
        """The command that says more of these than the list, about keys and reasons; None where there is no more."""
        del ids
        return None

    def keys(self, output: str) -> Mapping[str, str]:
        """From a description: ids by our keys, where the list cannot show them."""
        del output
        return {}

    def reasons(self, output: str) -> Mapping[str, str]:
        """From a description: why jobs are stuck, by their ids, an element's by its own and by its array's."""
        del output
        return {}

    def passed_on(self, template: JobTemplate) -> str | None:
        """The signal that this scheduler sends to the script's shell alone, which has to pass it on; None: no such."""
        del template
        return None

    def explained(self, words: str, called: str) -> tuple[SubState, str] | None:
        """Why the job that is called so was ended, and that line, from what the scheduler has written into its log."""
        del words, called
        return None

    def limits(self) -> Command | None:
        """The command that tells how many elements an array may have; None where there is no limit to ask for."""
        return None

    def most(self, output: str) -> int | None:  # pragma: no cover - only called with `limits`
        """The highest number of an element, from what that says; None: no limit."""
        raise NotImplementedError(output)

    def down(self, words: str) -> bool:
        """Whether an error's words say that the scheduler was not reached."""
        return _says(words, self.down_words)

    def busy(self, words: str) -> bool:
        """Whether an error's words say that there is no room for a job now."""
        return _says(words, self.busy_words)

    def keeps_none(self, words: str) -> bool:
        """Whether an error's words say that records of this kind are not kept, and not that something went wrong."""
        return _says(words, self.none_words)

    def unknown(self, words: str) -> bool:
        """Whether an error's words say that there is no such job any more, or that it has ended."""
        return _says(words, self.over_words)

    def partly(self, words: str) -> bool:
        """Whether an error's words only say that there are no such jobs, so that what was said of others counts."""
        return _says(words, self.partly_words)


def _says(words: str, parts: Iterable[str]) -> bool:
    low = words.lower()
    return any(part in low for part in parts)


def native(template: JobTemplate, owned: str) -> list[str]:
    """The options that the template gives as they are; `owned` are those that would undo what wfl relies on.

    A short one of these may have its value attached where there is a "*" behind it.
    """
    text = extension(template, NATIVE) or ""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidArgumentError(f"extensions: native is {text!r}: {error}") from error
    for word in words:
        name = word.partition("=")[0]
        for option in owned.split():
            short = option.endswith("*") and word[:2] == option[:2]
            cut = option.startswith("--") and len(name) > 3 and option.startswith(name)  # noqa: PLR2004 - "--x"
            if short or cut or name == option:
                raise InvalidArgumentError(f"extensions: native has {word}: {option.rstrip('*')} is for wfl to set")
    return words


def extension(template: JobTemplate, name: str) -> str | None:
    """What an extension is set to."""
    return None if template.extensions is None else template.extensions.get(name)


def flag(template: JobTemplate, name: str, *, default: bool = False) -> bool:
    """An extension that is 'true' or 'false'."""
    text = extension(template, name)
    if text not in (None, "true", "false"):
        raise InvalidArgumentError(f"extensions: {name} is {text!r}, expected 'true' or 'false'")
    return default if text is None else text == "true"


def job_name(template: JobTemplate, key: str) -> str:
    """A name that every scheduler takes: letters, digits, '.', '_' and '-', beginning with a letter."""
    text = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in template.job_name or f"wfl-{key}")
    return text if text[:1].isalpha() else f"j{text}"

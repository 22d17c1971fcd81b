"""Site: what the suite must know of the place where jobs run, and what a case needs of it."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from wfl import Capability, Context, JobTemplate, shell

POSIX = frozenset({
    "awk", "cat", "dd", "echo", "env", "false", "head", "kill", "ls", "mkdir", "nice", "printf", "pwd", "sh",
    "sleep", "sort", "tr", "true", "wc",
})  # fmt: skip
"""Commands that a job finds by their names unless a Site says otherwise."""
EVERY = os.environ.get("WFL_EVERY") == "1"
"""Whether everything is run everywhere, whatever is left out otherwise to save time."""


class Trait(StrEnum):
    """What a site can be used for; the text is the reason where it cannot."""

    EXECUTION = "commands are not really run"
    CLOCK = "time is not the clock's"
    SHARED = "jobs and test see no common directory"
    STORE = "contexts of this kind take no store"
    PROGRAMS = "the context cannot be made in another program"
    REMEMBERS = "the system tells of no job without a store"
    LOCAL = "jobs are no processes of this machine's process table"
    MONITOR = "the context shows nothing of its system but its own jobs"


class Field(str):
    """A template field that the backend must honour for a case to apply."""

    __slots__ = ()


class Command(str):
    """A command that jobs must find for a case to apply."""

    __slots__ = ()


Need = Capability | Trait | Field | Command


def needs(*what: Need) -> pytest.MarkDecorator:
    """Mark a case, or by `pytestmark` a file: where this is missing it is listed as not applicable."""
    return pytest.mark.needs(*what)


@dataclass(frozen=True, kw_only=True)
class Site:
    """One place to run the suite at.

    name: the column's heading.
    context: makes a Context from the keyword arguments that all have (session_name, store, detach, max_parallel,
    default_template).
    program: "package.module:attribute" by which another program finds `context`; None if it cannot.
    shared: a directory that jobs see under the same path, in which the suite makes directories of its own.
    commands: what jobs find by name.
    latency: every time-out of the suite is multiplied by it: 1 for processes, more where starting a job takes seconds.
    executes: False where commands are not really run, nor take the time that they say.
    local: jobs are processes that this machine's /proc shows.
    store: whether `store` is an argument that works.
    remembers: whether the system tells a later program of detached jobs without one.
    settings: arguments that every context of this site gets, such as a store; a callable is called for each.
    succeed, fail, stay: templates of a job that ends well, one that ends with a status, one that runs for ten minutes.
    killed: the signal that jobs which are killed get first, and end by.
    refuse, reason: the template of a job that is never started, and a word of the error that says why.
    default: what the contexts of this site add to every template.
    count: how many things of each kind the system holds, the same before and after the cases of a file; clean: removes
    what a session, by its name, has left there for later programs.
    files, why: the suite's files that are run unless WFL_EVERY=1, None for all; and the reason why those are enough.
    inapplicable: reasons for cases known not to apply, by the test's name, or by its file's ("test_death").
    """

    name: str
    context: Callable[..., Context]
    program: str | None = None
    shared: Path | None = None
    commands: frozenset[str] = POSIX
    latency: float = 1.0
    executes: bool = True
    local: bool = False
    store: bool = True
    remembers: bool = False
    settings: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    succeed: Callable[[], JobTemplate] = lambda: JobTemplate(remote_command="true")
    fail: Callable[[int], JobTemplate] = lambda status: shell(f"exit {status}")
    stay: Callable[[], JobTemplate] = lambda: JobTemplate(remote_command="sleep", args=("600",))
    killed: str = "SIGKILL"
    refuse: Callable[[], JobTemplate] = lambda: JobTemplate(remote_command="")
    reason: str = "remote_command"
    default: JobTemplate = field(default_factory=JobTemplate)
    count: Callable[[], Mapping[str, int]] | None = None
    clean: Callable[[str], object] | None = None
    files: frozenset[str] | None = None
    why: str = ""
    inapplicable: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A part of the suite needs a reason."""
        assert (self.files is None) == (not self.why), f"{self.name}: files and why go together"

    def runs(self, file: str) -> bool:
        """Whether the cases of a file are run here."""
        return self.files is None or file in self.files or EVERY

    def open(self, **settings: Any) -> Context:
        """A context with a session name of its own."""
        given = {name: make() for name, make in self.settings.items()}
        return self.context(**{"session_name": Context.unique_session_name(), **given, **settings})

    def filled(self, template: JobTemplate) -> JobTemplate:
        """What a task shows that was submitted with this template."""
        return template.merged_with(self.default)

    def seconds(self, idle: float) -> float:
        """A time-out for what takes much less than `idle` seconds on an idle machine."""
        return idle * self.latency * float(os.environ.get("WFL_PATIENCE", "1"))

    def many(self, number: int, least: int = 20) -> int:
        """So many of `number` that this site does them in seconds, `least` or more."""
        return max(min(number, least), int(number / self.latency**2))

    def within(self, idle: float) -> float | None:
        """The same for waits of wfl's own; none where time is not the clock's, as it may pass in a moment."""
        return self.seconds(idle) if self.executes else None

    def until(self, condition: Callable[[], object], what: str, idle: float = 30.0) -> None:
        """Wait until `condition()` is true; fail with `what` if it does not become so."""
        end = time.monotonic() + self.seconds(idle)
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"not within {self.seconds(idle):g} s: {what}")
            time.sleep(0.01 * self.latency)

    def rests(self, read: Callable[[], object], what: str) -> None:
        """Wait until this gives the same for a while: what changed it many times a second does so no more."""
        last, since = read(), time.monotonic()

        def still() -> bool:
            nonlocal last, since
            now = read()
            if now != last:
                last, since = now, time.monotonic()
            return time.monotonic() - since >= min(0.5 * self.latency, 1.5)

        self.until(still, what)

    def lacks(self, need: Need, backend: Any) -> str | None:
        """Why a case that needs this does not apply; None if it does."""
        if isinstance(need, Capability):
            return None if need in backend.capabilities else f"{backend.name} has no capability {need}"
        if isinstance(need, Field):
            return None if need in backend.fields else f"{backend.name} does not honour {need}"
        if isinstance(need, Command):
            return None if need in self.commands else f"jobs find no command {need}"
        if need is Trait.MONITOR:
            return str(need) if type(self.open()).monitor is Context.monitor else None
        has = {
            Trait.EXECUTION: self.executes,
            Trait.CLOCK: self.executes,
            Trait.SHARED: self.shared is not None and self.executes,
            Trait.STORE: self.store,
            Trait.PROGRAMS: self.program is not None,
            Trait.LOCAL: self.local,
            Trait.REMEMBERS: self.remembers,
        }
        return None if has[need] else str(need)


def load(name: str) -> Site:
    """The site that "package.module:attribute" names: a Site, or a factory of contexts, of which one is made."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise pytest.UsageError(f"--wfl-context is {name!r}, expected package.module:attribute")
    try:
        found = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"--wfl-context {name}: {error}") from error
    if isinstance(found, Site):
        return found
    if not callable(found):
        raise pytest.UsageError(
            f"--wfl-context {name} is {found!r}, expected a Site or a function that makes a Context"
        )
    return Site(name=attribute.rpartition(".")[2], context=found, program=name)


def quoted(path: os.PathLike[str] | str) -> str:
    """For a line of shell."""
    return shlex.quote(os.fspath(path))

"""Context: which execution system a workflow uses, under which name and with which defaults.

It contacts nothing; a Workflow opens it. One line of a script names the context, and nothing else changes.
"""

from __future__ import annotations

import itertools
import os
import re
from abc import ABC, abstractmethod
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from wfl.backend import INDEX
from wfl.drmaa2 import Capability, JobTemplate
from wfl.errors import InvalidArgumentError, SessionManagementError, UnsupportedOperationError, nearest
from wfl.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from wfl.backend import Backend, Monitor
    from wfl.threads import Clock

BUILT_IN = {
    "docker": "wfl.contexts.docker:DockerContext",
    "drmaa": "wfl.contexts.drmaa:DrmaaContext",
    "fake": "wfl.testing:FakeContext",
    "flux": "wfl.contexts.batch.flux:FluxContext",
    "gridengine": "wfl.contexts.batch.gridengine:GridEngineContext",
    "kubernetes": "wfl.contexts.kubernetes:KubernetesContext",
    "lsf": "wfl.contexts.batch.lsf:LsfContext",
    "pbs": "wfl.contexts.batch.pbs:PbsContext",
    "podman": "wfl.contexts.podman:PodmanContext",
    "process": "wfl.contexts.process:ProcessContext",
    "remote": "wfl.contexts.remote:RemoteContext",
    "slurm": "wfl.contexts.batch.slurm:SlurmContext",
    "ssh": "wfl.contexts.ssh:SshContext",
}
"""Contexts that come with wfl; others are found by entry points of the group `wfl.contexts`."""

VARIABLE = "WFL_CONTEXT"


class Context(ABC):
    """A choice of execution system with its settings; see `wfl.contexts` for the ones there are.

    default_template: fills the unset fields of every job (own value wins; environments are joined).
    session_name: jobs are listed by it; letters, digits, '.', '_' and '-'.
    max_parallel: how many slots of this context's tasks may be in use at once; the rest queue here. None: no limit.
    store: path of a file in which jobs are recorded, so that a later program finds them again. None: no record.
    detach: True lets jobs outlive the program.
    """

    name: str
    """The name by which `Context.named` finds it."""

    def __init__(
        self,
        *,
        default_template: JobTemplate | None = None,
        session_name: str = "wfl",
        max_parallel: int | None = None,
        store: str | os.PathLike[str] | None = None,
        detach: bool = False,
    ) -> None:
        if default_template is not None and not isinstance(default_template, JobTemplate):
            raise TypeError(f"default_template is {default_template!r}, expected a JobTemplate")
        if not isinstance(detach, bool):
            raise TypeError(f"detach is {detach!r} ({type(detach).__name__}), expected bool")
        self.default_template = default_template or JobTemplate()
        self.session_name = check_session_name(session_name)
        self.max_parallel = check_max_parallel(max_parallel)
        self.gate = Gate(max_parallel) if max_parallel else None
        self.store = None if store is None else os.path.abspath(store)
        self.detach = detach
        self._task_numbers: Iterator[int] = itertools.count(1)

    @abstractmethod
    def backend(self) -> Backend:
        """A new backend for one session, not yet opened."""

    def monitor(self) -> Monitor:
        """A new look at the whole system, for one MonitoringSession: contacts it, and raises what it says."""
        raise UnsupportedOperationError(f"context {self.name!r} shows nothing of its system but its own jobs")

    def clock(self) -> Clock:
        """What a session goes by in time; wfl.testing puts one of its own here."""
        from wfl.threads import Clock

        return Clock("wfl-clock")

    def submissions(
        self, backend: Backend, template: JobTemplate, indexes: range | None
    ) -> list[tuple[JobTemplate, range | int | None]]:
        """What a template comes to: itself, an array as a whole where that can be, or else each of its elements.

        With the defaults, and with placeholders filled; running numbers begin with 1 here.
        """
        from wfl.placeholders import fill

        merged, number = template.merged_with(self.default_template), itertools.count(1).__next__
        if indexes is None or self.takes_whole(backend, merged):
            return [(fill(merged, None if indexes is None else INDEX, number), indexes)]
        return [(fill(merged, index, number), index) for index in indexes]

    def takes_whole(self, backend: Backend, template: JobTemplate) -> bool:
        """Whether an array of this template is one submission."""
        from wfl.placeholders import only_index

        native = Capability.NATIVE_ARRAYS in backend.capabilities and self.gate is None
        return native and only_index(template, backend.index_fields)

    def next_task_number(self) -> int:
        """The running number that `{{.ID}}` stands for."""
        return next(self._task_numbers)

    @staticmethod
    def unique_session_name() -> str:
        """A session name that nobody else uses."""
        return f"wfl-{os.urandom(8).hex()}"

    @staticmethod
    def named(name: str, **settings: Any) -> Context:
        """The context of this name ("process", "docker", …) with these settings.

        More of them may be in the name, as in "slurm?directory=/shared/me&timeout=30"; those that are given here win.
        Raises InvalidArgumentError for a name that neither wfl nor an installed package knows.
        """
        return _made("the context", name, settings)

    @staticmethod
    def from_environment() -> Context:
        """The context that WFL_CONTEXT names, such as `slurm` or `process?max_parallel=4`; processes without it."""
        return _made(VARIABLE, os.environ.get(VARIABLE) or "process", {})

    def __repr__(self) -> str:
        store = "" if self.store is None else f", store={self.store!r}"
        return f"{type(self).__name__}(session_name={self.session_name!r}{store})"


def check_session_name(name: str) -> str:
    """One that can be the name of a directory, too."""
    if not isinstance(name, str):
        raise TypeError(f"session_name is {name!r} ({type(name).__name__}), expected str")
    if not name or not all(c.isalnum() or c in "._-" for c in name) or name[0] == ".":
        raise InvalidArgumentError(f"session_name is {name!r}: use letters, digits, '.', '_' and '-'")
    return name


def check_max_parallel(value: int | None) -> int | None:
    """A positive number or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"max_parallel is {value!r} ({type(value).__name__}), expected int or None")
    if value < 1:
        raise InvalidArgumentError(f"max_parallel is {value}, expected 1 or more (None: no limit)")
    return value


def _made(what: str, given: str, settings: Mapping[str, Any]) -> Context:
    """The context of NAME?SETTING=VALUE&…, with more settings; `what` has that text, for an error."""
    from urllib.parse import parse_qsl

    name, _, query = given.partition("?")
    try:
        told = dict(parse_qsl(query, strict_parsing=bool(query), keep_blank_values=True))
    except ValueError as error:
        raise InvalidArgumentError(f"{what} is {given!r}, expected NAME?SETTING=VALUE&…: {error}") from error
    found = _find(name)
    kinds = _kinds(found) if told else {}
    more = {key: _value(text, kinds.get(key, "bool | int")) for key, text in told.items()}
    return found(**{**more, **settings})


def _kinds(context: type[Context]) -> dict[str, str]:
    """The types of a context's settings, in the words of its `__init__` and of those that it hands settings on to."""
    found: dict[str, str] = {}
    for kind in reversed(context.__mro__):
        hints = getattr(vars(kind).get("__init__"), "__annotations__", {})
        found |= {setting: str(hint) for setting, hint in hints.items()}
    return found


def _value(text: str, kind: str) -> object:
    """A setting in a text: a number or true/false where that can be meant."""
    words = re.findall(r"\w+", kind)
    if "bool" in words and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        if number.__name__ in words:
            with suppress(ValueError):
                return number(text)
    return text


def _find(name: str) -> type[Context]:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found: type[Context] = getattr(import_module(module), attribute)
        return found
    from importlib.metadata import entry_points

    points = {point.name: point for point in entry_points(group="wfl.contexts")}
    if name not in points:
        raise InvalidArgumentError(f"there is no context {name!r}:{nearest(name, {*points, *BUILT_IN})}")
    try:
        loaded: type[Context] = points[name].load()
    except ImportError as error:
        raise SessionManagementError(f"context {name!r} ({points[name].value}) cannot be loaded: {error}") from error
    return loaded

"""The sites that wfl's own repository runs the suite at."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

from wfl import Capability, JobTemplate
from wfl.contexts.process import ProcessContext
from wfl.testing import FakeContext, FakeSystem
from wfl.testing.conformance.site import POSIX, Site

_numbers = itertools.count(1)
_stores: list[tempfile.TemporaryDirectory[str]] = []


def _store() -> str:
    """A path for a new store, in a directory that goes with the program."""
    if not _stores:
        _stores.append(tempfile.TemporaryDirectory(prefix="wfl-stores-"))
    return f"{_stores[0].name}/{next(_numbers)}"


PROCESS = Site(
    name="process",
    context=ProcessContext,
    program="wfl.contexts.process:ProcessContext",
    shared=Path(tempfile.gettempdir()),
    commands=POSIX | {"setsid"},
    local=True,
)
PROCESS_STORE = Site(
    name="process-store",
    context=ProcessContext,
    program="wfl.contexts.process:ProcessContext",
    shared=Path(tempfile.gettempdir()),
    commands=PROCESS.commands,
    local=True,
    settings={"store": _store},
    files=frozenset(
        {"test_arrays", "test_chain", "test_control", "test_ends", "test_info", "test_output", "test_retry"}
    ),
)


_FAKED = {*JobTemplate.__struct_fields__} - {"candidate_machines", "machine_os", "machine_arch"}


def _fake(name: str, **settings: Any) -> Site:
    """A site where nothing is run; each session has a system of its own."""
    return Site(
        name=name,
        context=lambda **given: FakeContext(FakeSystem(fields=_FAKED, **settings), **given),
        executes=False,
        stay=lambda: JobTemplate(remote_command="sleep", args=("inf",)),
        inapplicable={"test_persistence": "what it runs lives in one program"},
    )


FAKE = _fake("fake")
FAKE_ASKED = _fake("fake-asked", tells=False, two_steps=True, without=[Capability.NATIVE_ARRAYS])


def sites() -> list[Site]:
    """All of them."""
    return [PROCESS, PROCESS_STORE, FAKE, FAKE_ASKED]

"""The sites that wfl's own repository runs the suite at."""

from __future__ import annotations

import functools
import itertools
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from wfl import Capability, Context, JobTemplate
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

SERVICES = Path(__file__).resolve().parents[1] / "services"
"""Where the repository has the scripts that start real systems; an installed wfl has none."""
MOUNTED = Path(tempfile.gettempdir())
"""What jobs in containers see of this machine, under the same path."""


@functools.cache
def _address(name: str) -> str:
    """Where a system that `make services` starts is reached, whether it is there or not."""
    script = SERVICES / "address.sh"
    return subprocess.run([script, name], capture_output=True, text=True, check=True).stdout.strip()


def _mounted(given: JobTemplate | None) -> JobTemplate:
    """A default template with the shared directory in it."""
    bound = JobTemplate(stage_in_files={str(MOUNTED): f"bind:{MOUNTED}"})
    return bound if given is None else given.merged_with(bound)


def _docker(*, default_template: JobTemplate | None = None, **given: Any) -> Context:
    from wfl.contexts.docker import DockerContext

    given = {"image": "busybox", "base_url": _address("docker"), **given}
    return DockerContext(default_template=_mounted(default_template), **given)


def _podman(*, default_template: JobTemplate | None = None, **given: Any) -> Context:
    from wfl.contexts.podman import PodmanContext

    given = {"image": "busybox", "base_url": _address("podman"), **given}
    return PodmanContext(default_template=_mounted(default_template), **given)


_ALIKE = {"test_status_above_128": "daemons of containers tell an exit with 128+N and an end by signal N alike"}

DOCKER = Site(
    name="docker",
    context=_docker,
    program="wfl.testing.conformance.ours:DOCKER",
    shared=MOUNTED,
    latency=5.0,
    inapplicable=_ALIKE,
)
PODMAN = Site(
    name="podman",
    context=_podman,
    program="wfl.testing.conformance.ours:PODMAN",
    shared=MOUNTED,
    latency=10.0,
    inapplicable=_ALIKE,
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
    """All of them. Whether a system is there shows when it is opened; one that is not is skipped with the reason."""
    containers = [DOCKER, PODMAN] if SERVICES.is_dir() else []
    return [PROCESS, PROCESS_STORE, FAKE, FAKE_ASKED, *containers]

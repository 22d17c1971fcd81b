"""What jobs in containers have on every system: an image, and an architecture that it is for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from wfl.errors import InvalidArgumentError, UnsupportedAttributeError, nearest

if TYPE_CHECKING:
    from wfl.drmaa2 import JobTemplate

_ARCHITECTURES = {
    "X64": "amd64", "X86_64": "amd64", "AMD64": "amd64", "X86": "386", "I386": "386", "I686": "386", "ARM64": "arm64",
    "AARCH64": "arm64", "ARM": "arm", "PPC64": "ppc64", "PPC64LE": "ppc64le", "S390X": "s390x", "RISCV64": "riscv64",
    "MIPS64": "mips64",
}  # fmt: skip
_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::\d+)?/)?{_PART}(?:/{_PART})*"
    r"(?::[\w][\w.-]{0,127})?(?:@\w+(?:[-_+.]\w+)*:[0-9a-fA-F]{32,})?",
    re.ASCII,
)


def image(template: JobTemplate, default: str | None) -> str:
    """The job's image, or the context's. Raises InvalidArgumentError where it is none, or no name of one."""
    found = template.job_category or default
    if not found:
        raise InvalidArgumentError("no image: set job_category in the template, or image in the context")
    if not _IMAGE.fullmatch(found):
        given = "job_category" if template.job_category else "the context's image"
        raise InvalidArgumentError(f"{given} is {found!r}, no name of an image, such as 'python:3.13' (lower case)")
    return found


def architecture(machine_arch: str) -> str:
    """As Go and images call it, such as "amd64". Raises UnsupportedAttributeError."""
    found = _ARCHITECTURES.get(machine_arch.upper())
    if found is None:
        end = nearest(machine_arch.upper(), _ARCHITECTURES)
        raise UnsupportedAttributeError(f"machine_arch is {machine_arch}, which no image is made for;{end}")
    return found

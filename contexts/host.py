"""This machine as execution systems show machines: names in DRMAA2's terms, size, load. Standard library alone."""

from __future__ import annotations

import os
import platform
import socket

from wfl.drmaa2 import MachineInfo

_SYSTEMS = {"linux": "LINUX", "darwin": "MACOS", "windows": "WINNT"}
_ARCHITECTURES = {
    "x86_64": "X64",
    "amd64": "X64",
    "i686": "X86",
    "i386": "X86",
    "386": "X86",
    "aarch64": "ARM64",
    "arm64": "ARM64",
}


def os_name(name: str) -> str:
    """DRMAA2's name of an operating system; its own where DRMAA2 has none."""
    return _SYSTEMS.get(name.lower(), name)


def architecture(name: str) -> str:
    """DRMAA2's name of what `uname -m`, or the makers of images, call so; the same where DRMAA2 has none."""
    return _ARCHITECTURES.get(name.lower(), name)


def load() -> float | None:
    """The average of the last minute; None where the system does not count it."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def this_machine() -> MachineInfo:
    """What is known of it; how its processors are divided into sockets and threads is left open."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024
    swap = _swap()
    return MachineInfo(
        name=socket.gethostname(),
        available=True,
        cores=os.cpu_count(),
        load=load(),
        phys_memory=memory,
        virt_memory=None if swap is None else memory + swap,
        machine_os=os_name(platform.system()),
        machine_os_version=platform.release(),
        machine_arch=architecture(platform.machine()),
    )


def _swap() -> int | None:
    """KiB of swap (proc(5), /proc/meminfo)."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("SwapTotal:")), None)
    except OSError:
        return None

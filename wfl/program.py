"""Running programs by names that stay theirs, so that others can tell whether one is still at work."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def program_name(pid: int | str) -> str:
    """A running program's name for ever: host, boot, pid and start time."""
    number = os.getpid() if pid == "self" else pid
    return f"{socket.gethostname()} {_boot()} {number} {_started(pid)}"


def program_lives(name: str) -> bool:
    """Whether the program of this name still runs; one on another host is taken to.

    What the host is called now is asked last: its name may have changed since.
    """
    if not name:
        return False
    host, boot, pid, started, *_ = name.split(" ")
    if boot == _boot():
        return started != "-" and _started(pid) == started
    return host != socket.gethostname()


def _boot() -> str:
    """This boot of this machine, and the pid namespace (container) in which pids mean something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return "-"


def _started(pid: int | str) -> str:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return "-" if fields[0] in (b"Z", b"X") else fields[19].decode()  # a zombie is dead
    except (OSError, IndexError):
        pass
    try:
        os.kill(os.getpid() if pid == "self" else int(pid), 0)
    except OSError:
        return "-"
    return "alive"

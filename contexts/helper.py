"""Helper processes: what a room starts beside the program, to see to things when the program cannot any more.

A helper is a small script without wfl, in an interpreter of its own; in a one-file binary the binary starts itself,
with a mark in its environment that wfl's runtime hook (wfl/_pyinstaller) finds before anything else is imported.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from wfl.errors import SessionManagementError

if TYPE_CHECKING:
    from collections.abc import Sequence

MARK = "WFL_HELPER"
"""In the environment of a binary that started itself: the script's name and its arguments, one a line."""


def start(script: str, arguments: Sequence[str], *, passed: Sequence[int], log: str) -> subprocess.Popen[bytes]:
    """Start a script by its path, and do not wait for it: its `main(arguments)` is called.

    It has a session of its own, where no Ctrl-C reaches it, and nothing open but the descriptors that are `passed`
    and its log. Raises OSError, or SessionManagementError where there is no interpreter.
    """
    with open(log, "wb") as words:
        return subprocess.Popen(
            _command(script, arguments),
            env=_environment(script, arguments),
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            cwd="/",
            pass_fds=passed,
            start_new_session=True,
        )


def above_standard(fd: int) -> int:
    """A program that closed its standard streams would have this under their numbers, which children take over."""
    if fd > 2:  # noqa: PLR2004 - standard error
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def pair() -> tuple[socket.socket, socket.socket]:
    """The program's and the helper's end of a connection; both close when the program is replaced (execve(2))."""
    ours, theirs = socket.socketpair()
    return raised(ours), raised(theirs)


def raised(sock: socket.socket) -> socket.socket:
    """The same socket, above the standard streams."""
    return socket.socket(fileno=above_standard(sock.detach()))


def child_environment() -> dict[str, str]:
    """The program's environment as its children should see it: without what a frozen program added for itself."""
    env = dict(os.environ)
    if _frozen():
        for name in ("LD_LIBRARY_PATH", "LIBPATH", "DYLD_LIBRARY_PATH"):
            original = env.pop(f"{name}_ORIG", None)
            if original is not None:
                env[name] = original
            elif env.get(name, "").split(":")[0] == getattr(sys, "_MEIPASS", None):
                env.pop(name)
        for name in [name for name in env if name.startswith("_PYI_")]:
            env.pop(name)
    return env


def _frozen() -> bool:
    return bool(getattr(sys, "frozen", False))


def _name(script: str) -> str:
    return os.path.basename(script).partition(".")[0]


def _command(script: str, arguments: Sequence[str]) -> list[str]:
    if _frozen():
        return [sys.executable]  # wfl's runtime hook finds the mark and becomes the helper
    name = _name(script)
    boot = f"import sys; sys.path.insert(0, sys.argv.pop(1)); import {name}; {name}.main(sys.argv[1:])"
    return [_interpreter(), "-I", "-S", "-c", boot, os.path.dirname(os.path.abspath(script)), *arguments]


def _interpreter() -> str:
    """This Python. Where Python is embedded, sys.executable is the program around it and must not be run."""
    if "python" in os.path.basename(sys.executable or "").lower() or "pypy" in os.path.basename(sys.executable or ""):
        return sys.executable
    import shutil

    found = shutil.which(f"python{sys.version_info[0]}.{sys.version_info[1]}", path=f"{sys.base_prefix}/bin")
    found = found or shutil.which("python3")
    if found is None:
        raise SessionManagementError("no Python interpreter found to run helper processes with: put python3 into PATH")
    return found


def _environment(script: str, arguments: Sequence[str]) -> dict[str, str]:
    env = child_environment()
    if _frozen():  # unpack anew: our own unpacked files vanish when this program ends
        env["PYINSTALLER_RESET_ENVIRONMENT"] = "1"
        env[MARK] = "\n".join([_name(script), *arguments])
    return env

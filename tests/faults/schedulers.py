"""Schedulers of our own, to be stopped, filled and set up anew, with other ports than those of `make services`.

`Own` is one of them; `wrapped` puts a script before one of a scheduler's commands; `ordinary` is another user.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.containers import lacking
from tests.faults.machine import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

SERVICES = Path(__file__).parents[1] / "services"
PORTS = (16817, 16818, 16819, 16464, 16465)
"""What the schedulers listen at that `make services` starts."""
_ASKED = {
    "slurmctld": ("scontrol", "ping"),
    "slurmdbd": ("sacctmgr", "--noheader", "show", "cluster"),
    "sge_qmaster": ("qconf", "-sh"),
}
"""A question that only this daemon answers."""
BEREFT = """
"$real" "$@" >"$here/lost"
kill -KILL $PPID
"""
"""A command that submits, whose program is killed before it has read the answer."""


class Own:
    """One of the schedulers that the scripts start, with its daemons."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = Path(tempfile.mkdtemp(prefix="wfl-own-"))
        self.directory.chmod(0o755)  # other users may come in
        place = str(self.directory)
        self._environment = {**os.environ, "TMPDIR": place, "WFL_SERVICES": place, "WFL_PORTS": str(_free())}
        run = self._script(f"start-{name}.sh")
        if run.returncode:
            self.close()
            lacking(f"no {name} of our own: {(run.stdout or run.stderr).strip()}")
        told = self._script("environment.sh", name).stdout
        self.variables: Mapping[str, str] = dict(line.split("=", 1) for line in told.splitlines())
        self.base = self.directory / "wfl-services" / name
        self._daemons: dict[str, tuple[list[str], dict[str, str]]] = {}

    def _script(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SERVICES / name, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE,
            check=False,
        )

    def run(self, *argv: str, ok: bool = True) -> str:
        """One of the scheduler's commands; what it says."""
        env = {**os.environ, **self.variables}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert not ok or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def strike(self, daemon: str, number: int) -> None:
        """Send it a signal; one that ends it is waited for."""
        pid = self._pid(daemon)
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
        pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")[:-1]
        self._daemons[daemon] = words, dict(pair.split("=", 1) for pair in pairs)
        os.kill(pid, number)
        if number not in (signal.SIGSTOP, signal.SIGCONT):
            wait_until(f"{daemon} has ended", lambda: not Path(f"/proc/{pid}/exe").exists())

    def start(self, daemon: str) -> None:
        """Start one that was ended, as it was started before, and wait until it answers."""
        words, variables = self._daemons[daemon]
        self._pid_file(daemon).unlink(missing_ok=True)
        program = shutil.which(words[0], path=variables["PATH"])
        assert program is not None
        with (self.base / "log" / f"{daemon}.out").open("ab") as log:
            subprocess.run(
                ["/bin/sh", "-c", 'ulimit -n 1024; exec "$@"', "sh", program, *words[1:]],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=PATIENCE,
                check=True,
            )
        self.answers(daemon)
        if daemon == "sge_qmaster":  # execd looks for it every half minute: it is started anew, as on a site's reboot
            self.strike("sge_execd", signal.SIGKILL)
            self.start("sge_execd")

    def answers(self, daemon: str) -> None:
        """Wait until it does."""
        if daemon in _ASKED:
            wait_until(f"{daemon} answers", lambda: self._asked(daemon))

    def _asked(self, daemon: str) -> bool:
        env = {**os.environ, **self.variables}
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                _ASKED[daemon], env=env, capture_output=True, text=True, check=False, timeout=PATIENCE / 6
            )
            return done.returncode == 0 and "DOWN" not in done.stdout
        return False

    def _pid(self, daemon: str) -> int:
        return int(self._pid_file(daemon).read_text())

    def _pid_file(self, daemon: str) -> Path:
        if self.name == "sge":
            part = daemon.removeprefix("sge_")
            return self.base / "spool" / part / ("localhost" if part == "execd" else "") / f"{part}.pid"
        return self.base / "run" / f"{daemon}.pid"

    def is_saved(self) -> None:
        """Wait until slurmctld has written down the jobs that it has now, which it does some seconds after a change."""
        now, state = time.time(), self.base / "state" / "job_state"
        id = self.run("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true").strip()
        self.run("scancel", id)
        wait_until("the jobs are written down", lambda: state.exists() and state.stat().st_mtime > now)

    def recover(self) -> None:
        """What an administrator has to do: Slurm takes a node out of service on which an id is there twice."""
        if self.name == "slurm" and "drain" in (told := self.run("sinfo", "--noheader", "--Node", "--format=%N %T")):
            self.run("scontrol", "update", f"NodeName={told.split()[0]}", "State=RESUME")

    def queue(self) -> list[str]:
        """The ids of all jobs that have not ended."""
        if self.name == "slurm":
            return self.run("squeue", "--noheader", "--array", "--format=%i").split()
        return [line.split()[0] for line in self.run("qstat").splitlines()[2:]]

    def is_empty(self) -> None:
        """Wait until it has no job."""
        wait_until(f"{self.name} is empty", lambda: not self.queue())

    def forget(self) -> None:
        """Let the next slurmctld begin without the jobs of this one, which count for a while after their ends."""
        for file in (self.base / "state").glob("job_state*"):
            file.unlink()

    def clear(self) -> None:
        """Have it forget the jobs that are left: execd tells of ends that it missed itself a minute later only."""
        if self.queue():
            self.run(*(("qdel", "-f", "-u", "*") if self.name == "sge" else ("scancel", "--partition=debug")), ok=False)
        self.is_empty()
        self.recover()

    def close(self) -> None:
        """Stop it; nothing is left."""
        for daemon in getattr(self, "_daemons", ()):
            with suppress(OSError, ValueError):
                os.kill(self._pid(daemon), signal.SIGCONT)
        self._script(f"stop-{self.name}.sh")
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _free() -> int:
    """By how much ports have to be higher so that all of them are free."""
    for ports in range(100 + os.getpid() % 20 * 100, 6000, 100):
        if all(_is_free(port + ports) for port in PORTS):
            return ports
    raise AssertionError("no ports are free")


def _is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def wrapped(directory: Path, command: str, lines: str, path: str) -> None:
    """Put a script before a scheduler's command, which is `$real` in it; `$here` is the script's directory."""
    real = shutil.which(command, path=path)
    assert real is not None, command
    script = directory / command
    script.write_text(f"#!/bin/sh\nreal={real} here={directory}\n{lines}\n")
    script.chmod(0o755)


@contextmanager
def ordinary(own: Own, user: str) -> Iterator[tuple[Path, tuple[str, ...], dict[str, str]]]:
    """What a user without rights needs for a program: his place, what stands before its command, and variables.

    Python, wfl and what it imports are copied for him: a developer's are often in a home that he may not enter.
    """
    place = Path(tempfile.mkdtemp(prefix="user-", dir=own.directory))
    place.chmod(0o755)
    python = place / "python"
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    leave = shutil.ignore_patterns("__pycache__", "site-packages", "test", "idlelib", "ensurepip", "config-*", "*.a")
    shutil.copytree(stdlib, python / sys.platlibdir / stdlib.name, ignore=leave)
    (python / "bin").mkdir()
    interpreter = str(shutil.copy(Path(sys.executable).resolve(), python / "bin"))
    for library in (Path(sys.base_prefix) / "lib").glob("libpython*.so*"):
        shutil.copy(library, python / "lib")
    for name in ("wfl", "msgspec", "drmaa"):
        found = _where(name)
        if found is not None:
            shutil.copytree(found, python / "packages" / name, ignore=leave)
    for name in ("home", "tmp"):
        (place / name).mkdir()
    for path in (place, place / "home", place / "tmp"):
        shutil.chown(path, user, "nogroup")
    before: tuple[str, ...] = (
        *("setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups", "--no-new-privs"),
        *("/bin/sh", "-c", 'shift; exec "$PROGRAM" "$@"', "sh"),
    )
    variables = {
        "HOME": str(place / "home"),
        "LD_LIBRARY_PATH": str(python / "lib"),
        "LOGNAME": user,
        "PROGRAM": interpreter,
        "PYTHONHOME": str(python),
        "PYTHONPATH": str(python / "packages"),
        "TMPDIR": str(place / "tmp"),
        "USER": user,
    }
    yield place, before, variables
    shutil.rmtree(place, ignore_errors=True)


def _where(name: str) -> str | None:
    """The directory of a package, which is not imported."""
    found = importlib.util.find_spec(name)
    return None if found is None or not found.submodule_search_locations else found.submodule_search_locations[0]

"""What fault tests share: programs to be killed, a look at all processes, and how busy this machine is."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

_T = TypeVar("_T")

PATIENCE = 60.0
"""Seconds that anything may take on a machine that is busy with other things."""
CLEAN = 2.0
"""Seconds after a program's death until nothing of it is left, on an idle machine."""
MARK = "WFL_FAULTS_RUN"
HERE = Path(__file__).parent
HYDRA = HERE / "hydra.py"
NOTE = 'read -r s </proc/$$/stat; set -- "$1" $s; echo "$$ ${23} $JOB_ID $TASK_ID" >>"$LOG"; '
"""What a shell task begins with, in order to note its pid, start time and ids in the file LOG."""


def kills(default: int) -> int:
    """How many random kills a test makes: WFL_FAULTS, or its own number."""
    return int(os.environ.get("WFL_FAULTS", default))


def seed() -> int:
    """The number that random moments are drawn from; shown by a test that fails."""
    return int(os.environ.get("WFL_FAULTS_SEED", time.time_ns() % 1_000_000_000))


def wait_until(what: str, condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Look until it is so; fail after so many seconds."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"after {patience:g} s still not: {what}"
        time.sleep(0.005)


def slowness() -> float:
    """How many times slower than on an idle machine a process gets on now: its wall time over its CPU time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    spin = "import time\nwhile time.process_time() < 0.05: pass"
    subprocess.run([sys.executable, "-I", "-S", "-c", spin], check=True)
    wall = time.monotonic() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return max(1.0, wall / (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))


def stat_of(pid: int | str) -> tuple[str, int, int] | None:
    """State, parent and start time (clock ticks) of a process; None if there is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return words[0], int(words[1]), int(words[19])


def is_alive(pid: int, ticks: int) -> bool:
    """Whether this very process is still there, and not only as a zombie."""
    stat = stat_of(pid)
    return stat is not None and stat[0] not in "ZX" and stat[2] == ticks


def marked(mark: str) -> list[int]:
    """All living processes with this mark in their environment, but for this one."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError):
                if f"{MARK}={mark}".encode() in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(int(name))
    return found


def keepers_of(pid: int) -> list[int]:
    """The keepers that a program has started (its children that run keeper.main)."""
    return [child for child in children_of(pid) if b"keeper.main" in command_of(child)]


def children_of(pid: int) -> list[int]:
    """The living children of a process."""
    stats = {int(name): stat_of(name) for name in os.listdir("/proc") if name.isdigit()}
    return [child for child, stat in stats.items() if stat is not None and stat[1] == pid and stat[0] not in "ZX"]


def command_of(pid: int) -> bytes:
    """A process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def noted(log: Path) -> list[tuple[int, int]]:
    """The processes that noted themselves in a log: pid and start time."""
    if not log.exists():
        return []
    lines = log.read_text().split("\n")[:-1]
    return [(int(pid), int(ticks)) for pid, ticks in (line.split()[:2] for line in lines)]


class Program:
    """A Python program of a user, in a process group of its own, with temporary files of its own."""

    def __init__(
        self, source: str, directory: Path, *arguments: str, before: tuple[str, ...] = (), **variables: str
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.directory = directory
        self.temporary = directory / f"tmp-{self.mark[:8]}"
        self.temporary.mkdir()
        self.errors = directory / f"errors-{self.mark[:8]}"
        self.struck = 0.0
        environment = {**os.environ, MARK: self.mark, "TMPDIR": str(self.temporary), **variables}
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-c", source, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=directory,
                start_new_session=True,
                text=True,
                bufsize=1,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def expect(self, word: str) -> str:
        """Read lines until one begins with the word; the rest of that line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line[len(word) :].strip()
        self.process.wait(PATIENCE)
        raise AssertionError(f"the program ended without saying {word!r}: {self.log()}")

    def say(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def log(self) -> str:
        """What it wrote to its standard error."""
        return self.errors.read_text(errors="replace")

    def kill(self, number: int = signal.SIGKILL, *, group: bool = False) -> None:
        """Send a signal and wait for its end."""
        self.struck = time.monotonic()
        (os.killpg if group else os.kill)(self.pid, number)
        self.process.wait(PATIENCE)

    def finish(self, code: int | None = 0) -> str:
        """Wait for its end; the rest of its output."""
        output, _ = self.process.communicate(timeout=PATIENCE)
        assert code is None or self.process.returncode == code, f"{self.process.returncode}: {self.log()}"
        return output

    def left(self) -> list[str]:
        """What is left of it: living processes and temporary files."""
        processes = [f"process {pid}: {command_of(pid)!r}" for pid in marked(self.mark)]
        return processes + [str(path) for path in self.temporary.iterdir()]

    def is_clean_in_time(self, log: Path | None = None) -> None:
        """Two seconds after it was struck (more on a busy machine) nothing is left, nor any process in the log."""

        def rest() -> list[str]:
            living = [f"process {pid}" for pid, ticks in noted(log) if is_alive(pid, ticks)] if log else []
            return living + self.left()

        before = slowness()
        while (left := rest()) and time.monotonic() - self.struck < PATIENCE:
            time.sleep(0.01)
        took = time.monotonic() - self.struck
        assert not left, f"after {took:.1f} s there is still {left}\n{self.log()}"
        if took >= CLEAN:
            limit = CLEAN * max(before, slowness())
            assert took < limit, f"it took {took:.1f} s until nothing was left; here and now {limit:.1f} s are allowed"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it and everything it left."""
        for _ in range(10):
            for pid in [self.pid] if self.process.poll() is None else marked(self.mark):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            if self.process.poll() is not None and not marked(self.mark):
                break
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


@contextmanager
def when_asked(start: Callable[[str], AbstractContextManager[_T]]) -> Iterator[Callable[[str], _T]]:
    """Systems by their names, each of which is started when it is first asked for; all end together."""
    with ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(start(name)))

"""The lines for hosts over SSH: what wfl does with a real sshd, beside the ssh command in the same run."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil

from tests import ssh
from tests.bench.measure import Goal, Row, Scale, in_turn, percentile, resident_mib, row
from tests.bench.scenes import check
from wfl import Context, Workflow

if TYPE_CHECKING:
    from wfl import Job

XARGS = "xargs -P8 ssh, one shared connection"
BARE = "two forks, setsid and true for each, in a shell here, and nothing else"
"""What no way to have jobs of their own process groups can do with less, as long as a shell waits for each."""
TOGETHER = 64
MEMORY = "/dev/shm/wfl-bench"
ONE = "ssh, one after another over a shared connection"
CLOCK = "exec date +%s%N"
"""What a job of the latency line says last: when it is about to end."""
SETTLING = 3.0
WAITING = 1000
"""Jobs that run while memory and processor time are looked at."""


def lacks() -> str | None:
    """Why nothing can be measured here; None if something can."""
    return ssh.settings().why_not() or None


@contextmanager
def workflow(**settings: Any) -> Iterator[Workflow]:
    """A workflow whose connection and helper are there."""
    from wfl.contexts.ssh import SshContext

    name = Context.unique_session_name()
    context = SshContext(ssh.USER, config=ssh.settings().config, session_name=name, **settings)
    with Workflow(context, raise_errors=True) as flow:
        check(flow.run("true"))
        yield flow


@contextmanager
def shared() -> Iterator[list[str]]:
    """The ssh command over a connection that is there; the first words of each of its uses."""
    with tempfile.TemporaryDirectory(prefix="wfl-") as place:
        options = ["-o", f"ControlPath={place}/master"]
        command = ["ssh", "-F", str(ssh.settings().config), *options]
        subprocess.run([*command, "-o", "ControlMaster=yes", "-o", "ControlPersist=600", "-fN", ssh.USER], check=True)
        try:
            yield [*command, ssh.USER]
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                subprocess.run([*command, "-O", "exit", ssh.USER], check=True, capture_output=True)


def array(tasks: int, **settings: Any) -> float:
    """Tasks a second of one array, to the end of the wait."""
    return _rate(tasks, lambda job: job.run_array(tasks, "true"), **settings)


def singles(tasks: int) -> float:
    """The same of as many run()."""

    def submit(job: Job) -> None:
        for _ in range(tasks):
            job.run("true")

    return _rate(tasks, submit)


def _rate(tasks: int, submit: Callable[[Job], object], **settings: Any) -> float:
    with workflow(**settings) as flow:
        job, begin = flow.new_job(), time.perf_counter()
        submit(job)
        job.synchronize()
        seconds = time.perf_counter() - begin
        check(job)
        job.reap_all()
    return tasks / seconds


def xargs(command: list[str], tasks: int) -> float:
    """What people do by hand."""
    begin = time.perf_counter()
    numbers = "\n".join(map(str, range(tasks))).encode()
    subprocess.run(["xargs", "-P8", "-I{}", *command, "true"], input=numbers, check=True, capture_output=True)
    return tasks / (time.perf_counter() - begin)


def bare(tasks: int) -> float:
    """What of a job is the shell's and the kernel's alone: no connection, no file, no record of its end."""
    together = " | ".join(["{ ( exec setsid true ); :; }"] * TOGETHER)
    script = "\n".join([f"( {together} )"] * (tasks // TOGETHER + 1))
    begin = time.perf_counter()
    subprocess.run(["/bin/sh"], input=script.encode(), check=True)
    return (tasks // TOGETHER + 1) * TOGETHER / (time.perf_counter() - begin)


def rates(scale: Scale) -> list[Row]:
    """Tasks a second on one host, against xargs."""
    n, few = scale.of(1000, 50), scale.of(100, 10)
    one, many = f"array of {n:,}", f"{n:,} run()"
    memory = f"{one}, the jobs' directories in memory"  # five files each: what a disk makes of that differs by far
    with shared() as command:
        sides: dict[str, Callable[[], float]] = {
            one: lambda: array(n),
            memory: lambda: array(n, directory=MEMORY),
            XARGS: lambda: xargs(command, few),
            many: lambda: singles(n),
            BARE: lambda: bare(n),
        }
        found = in_turn(sides, scale.of(5, 1))
    goal = Goal("at least", 5.0)
    rows = [row(name, "/s", found[name], (XARGS, found[XARGS]), goal) for name in (one, memory, many)]
    return [*rows, row(BARE, "/s", found[BARE], (XARGS, found[XARGS]))]


def latency(scale: Scale) -> list[Row]:
    """From a job's last act to wait() returning; and one task after another, beside the ssh command."""
    n, after = scale.of(100, 5), []
    with workflow() as flow, shared() as command:
        for _ in range(n):
            job = flow.run("sh", "-c", CLOCK).wait()
            seen = time.time_ns()
            after.append((seen - int(job.output())) / 1e6)
            check(job)

        def chain() -> float:
            begin = time.perf_counter()
            for _ in range(n):
                flow.run("true").wait()
            return (time.perf_counter() - begin) * 1e3 / n

        def by_hand() -> float:
            begin = time.perf_counter()
            for _ in range(n):
                subprocess.run([*command, "true"], check=True, capture_output=True)
            return (time.perf_counter() - begin) * 1e3 / n

        found = in_turn({"run().wait()": chain, ONE: by_hand}, scale.of(3, 1))
    note = f"after the job looked at the clock and ended, of {n}"
    return [
        Row("wait() returns, p50", median(after), "ms", note, goal=Goal("at most", 100, " ms")),
        Row("wait() returns, p99", percentile(after, 0.99), "ms", note),
        row("run().wait()", "ms", found["run().wait()"], (ONE, found[ONE])),
    ]


def waiting(scale: Scale) -> list[Row]:
    """Many jobs that run, and what they cost here and there."""
    n, seconds = scale.of(WAITING, 20), scale.of(20, 2)
    program = psutil.Process()
    with workflow() as flow:
        before, threads = resident_mib(program), program.num_threads()
        begin = time.perf_counter()
        job = flow.run_array(n, "sleep", "600")
        submitted = time.perf_counter() - begin
        time.sleep(SETTLING)
        cpu, clock = time.process_time(), time.monotonic()
        time.sleep(seconds)
        used = 100 * (time.process_time() - cpu) / (time.monotonic() - clock)
        more, resident = program.num_threads() - threads, resident_mib(program)
        channels = _sessions()
        begin = time.perf_counter()
        job.kill_all()
        job.synchronize()
        killed = time.perf_counter() - begin
        job.failed()
    name = f"{n:,} that run"
    return [
        Row(f"{name}: time to submit", submitted, "s"),
        Row(f"{name}: resident", resident, "MiB", f"the program; {before:.0f} before"),
        Row(f"{name}: threads", more, "", "more than before them"),
        Row(f"{name}: CPU while waiting", used, "%", "of the program"),
        Row(f"{name}: connections", channels, "", "to the host"),
        Row(f"{name}: kill_all() and their ends", killed, "s"),
    ]


def _sessions() -> int:
    """This program's connections to the sshd."""
    port = ssh.settings().port
    return sum(bool(one.raddr) and one.raddr.port == port for one in psutil.Process().net_connections(kind="tcp"))


LINES: dict[str, tuple[Callable[[Scale], list[Row]], Callable[[], object] | None]] = {
    "ssh": (rates, lambda: array(1000)),
    "ssh-latency": (latency, None),
    "ssh-waiting": (waiting, None),
}
"""By name: what measures, what `profile` runs."""

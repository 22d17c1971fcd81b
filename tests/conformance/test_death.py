"""Death of a program: by whatever means, nothing of its jobs is left within two seconds, unless detached."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from wfl import Capability
from wfl.testing.conformance.programs import Program
from wfl.testing.conformance.site import Command, Field, Site, Trait, needs, quoted

pytestmark = needs(Trait.PROGRAMS)
SESSIONS = ("kept",)
"""Names that return from case to case: what a session of these has left is removed after each."""

Start = Callable[..., Program]

GONE = 2.0
"""Seconds within which nothing is left."""
OPEN = "flow = Workflow(open_context(session_name=Context.unique_session_name(), detach=False))\n"
SLEEP = "import time; [time.sleep(0.1) for _ in range(6000)]\n"
"""In pieces: a signal that comes just while Python goes to sleep, which may take a while, does not wake it."""


def beating(path: Path) -> str:
    """A line of a job that touches a file again and again."""
    return f"while :; do : > {quoted(path)}; sleep 0.05; done"


def run_beating(path: Path, *, line: str | None = None) -> str:
    """The program's lines that start such a job and say so once it runs."""
    return (
        f"import os, time\njob = flow.run(shell({line or beating(path)!r}))\n"
        f"while not os.path.exists({str(path)!r}): time.sleep(0.01)\nsay('beats')\n"
    )


def stops(site: Site, path: Path, death: float) -> None:
    """The last beat comes at most two seconds after this time."""
    site.rests(lambda: path.stat().st_mtime_ns, "the job is gone")
    assert path.stat().st_mtime - death <= GONE * site.latency


def marked(token: str) -> list[int]:
    """Processes of this machine that have this word in their environment."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and token.encode() in Path(f"/proc/{entry}/environ").read_bytes():
                found.append(int(entry))
        except OSError:
            continue
    return found


@needs(Trait.SHARED)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGKILL"])
def test_signals(site: Site, program: Start, shared: Path, name: str) -> None:
    """SIGINT, SIGTERM, SIGHUP, SIGQUIT or SIGKILL of the program: its jobs are gone within two seconds (design point
    8).
    """
    started = program(OPEN + run_beating(shared / "beat") + SLEEP)
    assert started.line() == "beats"
    death = time.time()
    started.send(signal.Signals[name])
    assert started.wait() != 0
    stops(site, shared / "beat", death)


@needs(Trait.SHARED)
def test_terminal_interrupt(site: Site, program: Start, shared: Path) -> None:
    """Ctrl-C in a terminal, which reaches the whole process group: the jobs are ended, once (design point 6)."""
    started = program(OPEN + run_beating(shared / "beat") + SLEEP)
    assert started.line() == "beats"
    death = time.time()
    started.send(signal.SIGINT, group=True)
    assert started.wait() != 0
    stops(site, shared / "beat", death)


@needs(Trait.SHARED)
def test_two_interrupts(site: Site, program: Start, shared: Path) -> None:
    """A second Ctrl-C while the program is ending its jobs leaves none behind (design point 6)."""
    started = program(OPEN + "with flow:\n    " + run_beating(shared / "beat").replace("\n", "\n    ") + SLEEP)
    assert started.line() == "beats"
    death = time.time()
    started.send(signal.SIGINT, group=True)
    started.send(signal.SIGINT, group=True)
    assert started.wait() != 0
    stops(site, shared / "beat", death)


@needs(Trait.SHARED)
def test_group_is_killed(site: Site, program: Start, shared: Path) -> None:
    """SIGKILL of the program's whole process group leaves no job."""
    started = program(OPEN + run_beating(shared / "beat") + SLEEP)
    assert started.line() == "beats"
    death = time.time()
    started.send(signal.SIGKILL, group=True)
    started.wait()
    stops(site, shared / "beat", death)


@needs(Trait.SHARED)
@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "raise ValueError", "os._exit(1)", "os.abort()"])
def test_ends_without_close(site: Site, program: Start, shared: Path, end: str) -> None:
    """A program that just ends, by an exception, or at once: its jobs are gone within two seconds."""
    started = program(OPEN + run_beating(shared / "beat") + end + "\n")
    assert started.line() == "beats"
    started.wait()
    stops(site, shared / "beat", time.time())


@needs(Trait.SHARED)
def test_warning_counts(program: Start, shared: Path) -> None:
    """A program that ends normally while jobs run ends them with a warning that counts them."""
    started = program(OPEN + run_beating(shared / "beat") + "flow.run('sleep', '600')\n")
    assert started.line() == "beats"
    assert started.wait() == 0
    assert "2 tasks" in started.errors()


@needs(Trait.SHARED)
def test_stubborn_job(site: Site, program: Start, shared: Path) -> None:
    """A job that ignores SIGTERM, SIGINT and SIGHUP goes, too."""
    line = f"trap '' TERM INT HUP; {beating(shared / 'beat')}"
    started = program(OPEN + run_beating(shared / "beat", line=line) + SLEEP)
    assert started.line() == "beats"
    death = time.time()
    started.send(signal.SIGKILL)
    started.wait()
    stops(site, shared / "beat", death)


@needs(Trait.LOCAL, Capability.SUSPEND)
def test_suspended_job(site: Site, program: Start) -> None:
    """A suspended job goes with its program and does not come back to life."""
    token = uuid.uuid4().hex
    source = f"job = flow.run('sleep', '600', job_environment={{'MARK': {token!r}}})\njob.tasks[0].wait_started()\n"
    started = program(OPEN + source + "job.suspend()\nsay(job.state)\n" + SLEEP)
    started.line()
    assert marked(token)
    started.send(signal.SIGKILL)
    started.wait()
    site.until(lambda: not marked(token), "the suspended job is gone")


@needs(Trait.SHARED, Command("setsid"))
def test_daemon_grandchild(site: Site, program: Start, shared: Path) -> None:
    """A grandchild that made itself a session of its own goes with the program."""
    line = f"(setsid sh -c {quoted(beating(shared / 'beat'))} &); exec sleep 600"
    started = program(OPEN + run_beating(shared / "beat", line=line) + SLEEP)
    assert started.line() == "beats"
    death = time.time()
    started.send(signal.SIGKILL)
    started.wait()
    stops(site, shared / "beat", death)


@needs(Trait.LOCAL, Field("job_environment"))
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("count", [1, 40])
def test_in_a_burst(site: Site, program: Start, name: str, count: int) -> None:
    """A program that dies in the middle of submitting leaves nothing (design point 8)."""
    token = uuid.uuid4().hex
    source = f"job = flow.new_job()\nwhile len(job.tasks) < 1000:\n    if len(job.tasks) == {count}: say('submits')\n"
    source += f"    job.run('sleep', '600', job_environment={{'MARK': {token!r}}})\n"
    started = program(OPEN + source + SLEEP)
    assert started.line() == "submits"
    started.send(signal.Signals[name])
    started.wait()
    site.until(lambda: not marked(token), "all jobs are gone")


@needs(Trait.SHARED, Trait.STORE, Capability.DETACH, Capability.TERMINATE)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_detached_lives_on(site: Site, program: Start, shared: Path, tmp_path: Path, name: str) -> None:
    """With `detach` jobs live on after SIGINT, SIGTERM, SIGHUP or SIGKILL of the program (design point 9)."""
    settings = f"store={str(tmp_path / 'store')!r}, session_name='kept', detach=True"
    source = f"flow = Workflow(open_context({settings}))\n"
    started = program(source + run_beating(shared / "beat") + SLEEP)
    assert started.line() == "beats"
    started.send(signal.Signals[name], group=True)
    started.wait()
    before = (shared / "beat").stat().st_mtime_ns
    site.until(lambda: (shared / "beat").stat().st_mtime_ns > before + GONE * 1e9, "it still beats after two seconds")
    assert program(source + "flow.kill_all().close()\nsay('killed')\n").line() == "killed"


@needs(Trait.SHARED)
def test_forked_child(program: Start, shared: Path) -> None:
    """A child that the program forks has no session and says so; its end does not touch the program's jobs."""
    source = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "job.tasks[0].wait_started()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    say(type(flow.run('true').last_error).__name__)\n"
        "    raise SystemExit\n"
        "os.waitpid(pid, 0)\n"
        "say(flow.run('true').success(), job.state)\n"
        "job.kill().wait()\nflow.close()\n"
    )
    started = program(OPEN + run_beating(shared / "beat") + source)
    assert started.line() == "beats"
    assert started.line() == "InvalidSessionError"
    assert started.line() == "True running"
    assert started.wait() == 0

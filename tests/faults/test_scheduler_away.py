"""Schedulers whose daemons are away, silent, full or talk nonsense: no job is lost, run twice or called failed for that.

Each test is a program of its own with jobs on a scheduler of our own, as an outage is nothing to do to a shared one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.machine import PATIENCE, Program, slowness, wait_until
from tests.faults.schedulers import Own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTEXTS = {
    "slurm": ("slurm", "wfl.contexts.batch.slurm:SlurmContext"),
    "gridengine": ("sge", "wfl.contexts.batch.gridengine:GridEngineContext"),
    "drmaa": ("sge", "wfl.contexts.drmaa:DrmaaContext"),
}
"""Whose scheduler each context uses."""
TIMEOUT = 3.0
"""Seconds that a command may take in these tests."""

BEGIN = """
import importlib, json, logging, os, signal, sys, threading, time
from wfl import JobState, Workflow, shell
from wfl.errors import WflError
logging.basicConfig(level=logging.WARNING, format="%(message)s")
made_by, place, settings, *rest = sys.argv[1:]
module, _, attribute = made_by.partition(":")
def context(**more):
    make = getattr(importlib.import_module(module), attribute)
    return make(directory=f"{place}/jobs", session_name="away", **{**json.loads(settings), **more})
def say(word, **what):
    print(word, json.dumps(what), flush=True)
def told(word):
    line = sys.stdin.readline().strip()
    assert line == word, f"{line!r} instead of {word!r}"
def end(task):
    info = task.info()
    words = info.annotation or ""
    return [task.state.value, info.sub_state, info.exit_status, info.terminating_signal, words, task.id]
"""


@pytest.fixture(scope="module")
def owned() -> Iterator[Callable[[str], Own]]:
    """Schedulers of our own, which are started when they are first asked for."""
    with contextlib.ExitStack() as stack:
        made: dict[str, Own] = {}

        def own(name: str) -> Own:
            if name not in made:
                made[name] = stack.enter_context(Own(name))
            return made[name]

        yield own


class Site:
    """A context on a scheduler of our own, in programs that use it."""

    def __init__(self, name: str, own: Own, place: Path) -> None:
        self.name, self.own, self.place = name, own, place
        self.made_by = CONTEXTS[name][1]
        self.commands = place / "commands"
        self.commands.mkdir()
        self.programs: list[Program] = []

    def program(self, source: str, *arguments: str, **settings: Any) -> Program:
        """Start one that knows the scheduler by its environment."""
        if self.name != "drmaa":
            settings = {"timeout": TIMEOUT, **settings}
        variables = dict(self.own.variables)
        variables["PATH"] = f"{self.commands}:{variables.get('PATH', os.environ['PATH'])}"
        given = (self.made_by, str(self.place), json.dumps(settings), *arguments)
        self.programs.append(Program(BEGIN + source, self.place, *given, **variables))
        return self.programs[-1]

    def starts(self) -> list[str]:
        """What each job has written at its beginning, sorted."""
        file = self.place / "starts"
        return sorted(file.read_text().split()) if file.exists() else []


@pytest.fixture
def site(request: pytest.FixtureRequest, owned: Callable[[str], Own], tmp_path: Path) -> Iterator[Site]:
    """The one that the test names; afterwards it has no job."""
    name = request.param
    tmp_path.chmod(0o755)
    found = Site(name, owned(CONTEXTS[name][0]), tmp_path)
    yield found
    for program in found.programs:
        program.__exit__(None, None, None)
    found.own.is_empty()


def heard(program: Program, word: str) -> dict[str, Any]:
    """What the program says next."""
    said: dict[str, Any] = json.loads(program.expect(word))
    return said


# --- stopped and started again ----------------------------------------------------------------------------------

OUTAGE = """
logging.getLogger("wfl").setLevel(logging.WARNING)
ENDS = ["exit 0", "exit 3", "kill -KILL $$", "kill -TERM $$"]
def line(token, gate, ending):
    return f"echo {token} >>{place}/starts; until [ -e {place}/{gate} ]; do sleep 0.2; done; echo over; {ending}"
with Workflow(context(detach=False)).raise_for_error() as flow:
    during = [flow.run(shell(line(f"d{n}", "during", ENDS[n]))).tasks[0] for n in range(4)]
    after = [flow.run(shell(line(f"a{n}", "after", ENDS[n]))).tasks[0] for n in range(4)]
    gate = "$([ $TASK_ID -le 3 ] && echo during || echo after)"
    array = flow.run_array(6, shell(line("e$TASK_ID", gate, "exit $((TASK_ID % 3))"))).tasks[0]
    for task in (*during, *after, *array.tasks):
        task.wait_started(120)
    say("running")
    told("strike")
    sent, stop, go = [], threading.Event(), threading.Event()
    go.set()
    def submit():
        while not stop.wait(0.5):
            go.wait()
            token = f"s{len(sent)}"
            sent.append(flow.run(shell(f"echo {token} >>{place}/starts; exit {len(sent) % 2 * 3}")).tasks[0])
    sender = threading.Thread(target=submit)
    sender.start()
    wait = time.monotonic() + 120
    while not any(task.state.ended for task in sent) and time.monotonic() < wait:
        time.sleep(0.05)
    say("struck")
    told("away")
    open(f"{place}/during", "w").close()
    begin = time.monotonic()
    flow.jobs()[4].wait(timeout=1.0)
    waited = time.monotonic() - begin
    go.clear()
    time.sleep(1.0)
    begin = time.process_time()
    flow.jobs()[4].wait(timeout=3.0)
    cpu = time.process_time() - begin
    go.set()
    say("waited", waited=waited, cpu=cpu, living=[end(task) for task in (*after, *array.tasks[3:])])
    told("back")
    time.sleep(1.0)
    stop.set()
    open(f"{place}/after", "w").close()
    sender.join()
    for job in flow.jobs():
        job.synchronize(timeout=120)
    inflight = {f"d{n}": end(task) for n, task in enumerate(during)}
    inflight |= {f"a{n}": end(task) for n, task in enumerate(after)}
    inflight |= {f"e{n}": end(task) for n, task in enumerate(array.tasks, 1)}
    outputs = sorted({task.output() for task in (*during, *after, *array.tasks)})
    say("over", inflight=inflight, sent=[end(task) for task in sent], outputs=outputs)
"""
OUTAGES = [
    ("slurm", "slurmctld", signal.SIGKILL),
    ("slurm", "slurmctld", signal.SIGSTOP),
    ("slurm", "slurmdbd", signal.SIGKILL),
    ("slurm", "slurmdbd", signal.SIGSTOP),
    ("gridengine", "sge_qmaster", signal.SIGKILL),
    ("gridengine", "sge_qmaster", signal.SIGSTOP),
    ("drmaa", "sge_qmaster", signal.SIGKILL),
    ("drmaa", "sge_qmaster", signal.SIGSTOP),
]


@pytest.mark.parametrize(
    ("site", "daemon", "blow"), OUTAGES, indirect=["site"], ids=[f"{c}-{d}-{b.name}" for c, d, b in OUTAGES]
)
def test_jobs_outlive_a_daemon_s_absence(site: Site, daemon: str, blow: signal.Signals) -> None:
    """Jobs that run, end or are submitted while it is away: each runs once, at most, and has the end that it had.

    What was submitted meanwhile has run, or was never started and says so; time-outs are kept, and no processor is
    used for waiting.
    """
    program = site.program(OUTAGE)
    heard(program, "running")
    site.own.is_saved()
    program.say("strike")
    heard(program, "struck")
    site.own.strike(daemon, blow)
    program.say("away")
    said = heard(program, "waited")
    print(said)
    if blow == signal.SIGSTOP:
        site.own.strike(daemon, signal.SIGCONT)
        site.own.answers(daemon)
    else:
        site.own.start(daemon)
    program.say("back")
    over = heard(program, "over")
    program.finish()
    print(program.log())
    print(over)
    assert said["waited"] < 1 + 2 * slowness()
    assert said["cpu"] < 0.5
    assert not [end for end in said["living"] if end[0] in ("done", "failed")]
    ends = [("done", "exited", 0, None), ("failed", "exited", 3, None)]
    ends += [("failed", "signaled", 137, "SIGKILL"), ("failed", "signaled", 143, "SIGTERM")]
    expected = {f"{letter}{n}": end for letter in "da" for n, end in enumerate(ends)}
    expected |= {f"e{n}": ("failed" if n % 3 else "done", "exited", n % 3, None) for n in range(1, 7)}
    assert {token: tuple(end[:4]) for token, end in over["inflight"].items()} == expected
    assert over["outputs"] == ["over"]
    starts = site.starts()
    assert len(starts) == len(set(starts)), "a job ran twice"
    ran = set(expected)
    for n, (state, sub_state, status, _, words, _) in enumerate(over["sent"]):
        if sub_state == "lost" and daemon == "slurmctld" and blow == signal.SIGKILL:
            assert "does not know it any more" in words  # it was killed before it had written the job down
        elif sub_state == "launch_failure":
            assert status is None
            assert "it was never started" in words or daemon == "drmaa", words
        else:
            assert (state, sub_state, status) == ("failed" if n % 2 else "done", "exited", n % 2 * 3)
            ran.add(f"s{n}")
    assert set(starts) == ran

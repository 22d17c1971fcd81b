"""Schedulers that are away, silent, full or talk nonsense: no job is lost, run twice or called failed for that.

Each test is a program of its own with jobs on a scheduler of our own, as an outage is nothing to do to a shared one.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.machine import Program, slowness, wait_until, when_asked
from tests.faults.schedulers import Own, ordinary, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
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
def used():
    # seconds of processor, but for libdrmaa's own threads: one of them may take a whole second when its daemon dies
    ticks = 0
    for native in {*os.listdir("/proc/self/task")} - {str(thread.native_id) for thread in threading.enumerate()}:
        with open(f"/proc/self/task/{native}/stat") as file:
            ticks += sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
    return time.process_time() - ticks / os.sysconf("SC_CLK_TCK")
"""


@pytest.fixture(scope="module")
def owned() -> Iterator[Callable[[str], Own]]:
    """Schedulers of our own, which are started when they are first asked for."""
    with when_asked(Own) as own:
        yield own


class Site:
    """A context on a scheduler of our own, in programs that use it."""

    def __init__(self, name: str, own: Own, place: Path) -> None:
        self.name, self.own, self.place = name, own, place
        self.made_by = CONTEXTS[name][1]
        self.commands = place / "commands"
        self.commands.mkdir(exist_ok=True)
        self.programs: list[Program] = []

    def program(
        self,
        source: str,
        *,
        timeout: float = TIMEOUT,
        before: tuple[str, ...] = (),
        variables: Mapping[str, str] | None = None,
    ) -> Program:
        """Start one that knows the scheduler by its environment; `before` stands before its command."""
        settings = {} if self.name == "drmaa" else {"timeout": timeout}
        known = {**self.own.variables, **(variables or {})}
        known["PATH"] = f"{self.commands}:{known.get('PATH', os.environ['PATH'])}"
        given = (self.made_by, str(self.place), json.dumps(settings))
        self.programs.append(Program(BEGIN + source, self.place, *given, before=before, **known))
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
    found.own.clear()


def heard(program: Program, word: str) -> dict[str, Any]:
    """What the program says next."""
    said: dict[str, Any] = json.loads(program.expect(word))
    return said


# --- stopped and started again ----------------------------------------------------------------------------------

OUTAGE = """
from wfl.contexts.batch import engine
engine.GONE = 10.0
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
    begin = used()
    flow.jobs()[4].wait(timeout=3.0)
    cpu = used() - begin
    go.set()
    say("waited", waited=waited, cpu=cpu, living=[end(task) for task in (*after, *array.tasks[3:])])
    told("back")
    time.sleep(1.0)
    stop.set()
    open(f"{place}/after", "w").close()
    sender.join()
    patience = time.monotonic() + 120  # for all: what has not ended by then is told as it is
    for job in flow.jobs():
        job.synchronize(timeout=max(0.0, patience - time.monotonic()))
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

    What was submitted meanwhile has run, or was never started and says so; time-outs are kept, and wfl uses no
    processor for waiting.
    """
    forgets = (daemon, blow) == ("slurmctld", signal.SIGKILL)  # what came last it has not written down
    program = site.program(OUTAGE)
    heard(program, "running")
    if forgets:
        site.own.is_saved()
    program.say("strike")
    heard(program, "struck")
    site.own.strike(daemon, blow)
    program.say("away")
    said = heard(program, "waited")
    if blow == signal.SIGSTOP:
        site.own.strike(daemon, signal.SIGCONT)
        site.own.answers(daemon)
    else:
        site.own.start(daemon)
    program.say("back")
    for _ in range(10 if forgets else 0):
        time.sleep(0.5)
        site.own.recover()
    over = heard(program, "over")
    program.finish()
    assert said["waited"] < 1 + 2 * slowness()
    assert said["cpu"] < 0.5
    assert not [end for end in said["living"] if end[0] in ("done", "failed")]
    ends: list[tuple[str, str, int, str | None]] = [("done", "exited", 0, None), ("failed", "exited", 3, None)]
    ends += [("failed", "signaled", 137, "SIGKILL"), ("failed", "signaled", 143, "SIGTERM")]
    expected = {f"{letter}{n}": end for letter in "da" for n, end in enumerate(ends)}
    expected |= {f"e{n}": ("failed" if n % 3 else "done", "exited", n % 3, None) for n in range(1, 7)}
    assert {token: tuple(end[:4]) for token, end in over["inflight"].items()} == expected
    assert over["outputs"] == ["over"]
    starts = site.starts()
    assert len(starts) == len(set(starts)), "a job ran twice"
    ran = set(expected)
    for n, (state, sub_state, status, _, words, _) in enumerate(over["sent"]):
        if sub_state == "lost" and forgets:
            assert "does not know it any more" in words or "has given its id to another job" in words
        elif sub_state == "cancelled" and forgets:  # by Slurm, which had given its id twice; perhaps before it began
            assert "CANCELLED" in words
            ran |= {f"s{n}"} & set(starts)
        elif sub_state == "launch_failure":
            assert status is None
            assert "it was never started" in words or daemon == "drmaa", words
        else:
            assert (state, sub_state, status) == ("failed" if n % 2 else "done", "exited", n % 2 * 3)
            ran.add(f"s{n}")
    assert set(starts) == ran


# --- answers that are none --------------------------------------------------------------------------------------

NONSENSE = """
from wfl.contexts.batch import engine
engine.ASK, engine.GONE, engine.USAGE = (0.2, 1.0), 2.0, 1.0
with Workflow(context(detach=False)).raise_for_error() as flow:
    line = f"echo lives >>{place}/starts; until [ -e {place}/over ]; do sleep 0.2; done; exit 5"
    lives = flow.run(shell(line)).tasks[0]
    lives.wait_started(120)
    for mode in iter(lambda: sys.stdin.readline().strip(), "over"):
        told("broken")
        ends = {
            "exits": flow.run(shell(f"echo exits-{mode} >>{place}/starts; exit 3")),
            "dies": flow.run(shell(f"echo dies-{mode} >>{place}/starts; kill -KILL $$")),
            "cancelled": flow.run("true", submit_as_hold=True),
        }
        begin = time.monotonic()
        ends["cancelled"].wait(timeout=0.5)
        say("submitted", waited=time.monotonic() - begin, id=ends["cancelled"].tasks[0].id)
        told("mended")
        for job in ends.values():
            job.wait(timeout=100)
        say("ended", lives=end(lives), **{name: end(job.tasks[0]) for name, job in ends.items()})
    open(f"{place}/over", "w").close()
    lives.wait_terminated(100)
    say("last", lives=end(lives))
"""
ANSWERS = """
case "$(cat "$here/mode" 2>/dev/null)" in
    hangs) echo called >>"$here/called-${0##*/}"; sleep 600; exit 0 ;;
    half-0) echo called >>"$here/called-${0##*/}"; printf %s "$("$real" "$@" | head -c 12)"; exit 0 ;;
    half-1) echo called >>"$here/called-${0##*/}"; printf %s "$("$real" "$@" | head -c 12)"; exit 1 ;;
    error) echo called >>"$here/called-${0##*/}"; echo "error: something is wrong here" >&2; exit 1 ;;
    empty) echo called >>"$here/called-${0##*/}"; exit 0 ;;
    garbage) echo called >>"$here/called-${0##*/}"; printf '\\001\\377<html>Unavailable|\\n'; exit 0 ;;
esac
exec "$real" "$@"
"""
MODES = ("hangs", "half-0", "half-1", "error", "empty", "garbage")
BROKEN = {
    "squeue": ("slurm", ("squeue",)),
    "sacct-scontrol": ("slurm", ("sacct", "scontrol")),
    "qstat": ("gridengine", ("qstat",)),
    "qacct": ("gridengine", ("qacct",)),
}
"""Whose commands they are, and which of them talk nonsense together."""


@pytest.mark.parametrize(("site", "commands"), BROKEN.values(), indirect=["site"], ids=BROKEN)
def test_nonsense_is_no_answer(site: Site, commands: tuple[str, ...]) -> None:
    """A command that hangs, prints half a line, an error, nothing or anything else says nothing of any job.

    Whoever waits is back in time, and as soon as the command is itself again all ends are known.
    """
    path = site.own.variables.get("PATH", os.environ["PATH"])
    for command in commands:
        wrapped(site.commands, command, ANSWERS, path)
    program = site.program(NONSENSE, timeout=1.5)
    expected = [["failed", "exited", 3, None], ["failed", "signaled", 137, "SIGKILL"]]
    for mode in MODES:
        program.say(mode)
        (site.commands / "mode").write_text(mode)
        for command in commands:
            (site.commands / f"called-{command}").unlink(missing_ok=True)
        program.say("broken")
        said = heard(program, "submitted")
        assert said["waited"] < 0.5 + 2 * slowness(), mode
        wait_until(f"{commands[0]} was called: {mode}", lambda: _calls(site.commands / f"called-{commands[0]}") >= 2)
        site.own.run(*(("scancel", said["id"]) if site.name == "slurm" else ("qdel", said["id"])))
        (site.commands / "mode").unlink()
        program.say("mended")
        ended = heard(program, "ended")
        assert ended["lives"][0] == "running", (mode, ended)
        assert [ended[name][:4] for name in ("exits", "dies")] == expected, (mode, ended)
        assert ended["cancelled"][:3] == ["failed", "cancelled", None], (mode, ended)
    program.say("over")
    assert heard(program, "last")["lives"][:4] == ["failed", "exited", 5, None]
    program.finish()
    wait_until("no command is left", lambda: not program.left())
    assert site.starts() == sorted([*(f"{name}-{mode}" for name in ("exits", "dies") for mode in MODES), "lives"])


ANSWERLESS = """
case "$(cat "$here/mode" 2>/dev/null)" in
    silent) "$real" "$@" >/dev/null; exit 0 ;;
    garbage) "$real" "$@" >/dev/null; echo "Service Unavailable"; exit 0 ;;
    late) "$real" "$@"; sleep 600 ;;
esac
exec "$real" "$@"
"""


@pytest.mark.parametrize("site", ["slurm", "gridengine"], indirect=True)
def test_submission_whose_answer_is_lost(site: Site) -> None:
    """What was accepted though no id was told, or too late, is found by its key: it runs once and is told of."""
    command = "sbatch" if site.name == "slurm" else "qsub"
    wrapped(site.commands, command, ANSWERLESS, site.own.variables.get("PATH", os.environ["PATH"]))
    program = site.program(
        """
with Workflow(context(detach=False)).raise_for_error() as flow:
    jobs = {}
    for mode in ("silent", "garbage", "late"):
        open(f"{place}/commands/mode", "w").write(mode)
        jobs[mode] = flow.run(shell(f"echo {mode} >>{place}/starts; sleep 2; exit 3"))
    for job in jobs.values():
        job.wait(timeout=100)
    say("over", **{name: end(job.tasks[0]) for name, job in jobs.items()})
"""
    )
    over = heard(program, "over")
    program.finish()
    assert [end[:4] for end in over.values()] == [["failed", "exited", 3, None]] * 3, over
    assert site.starts() == ["garbage", "late", "silent"]
    wait_until("no command is left", lambda: not program.left())


# --- full -------------------------------------------------------------------------------------------------------

FULL = """
with Workflow(context(detach=False)).raise_for_error() as flow:
    line = "echo {} >>" + place + "/starts; until [ -e " + place + "/over ]; do sleep 0.2; done; exit 3"
    jobs = []
    while len(jobs) < 20:
        jobs.append(flow.run(shell(line.format(len(jobs)))))
        if len(jobs) > 3:
            try:
                jobs[-1].tasks[0].wait_started(10)
            except WflError:
                pass
        if jobs[-1].state.ended:
            break
    error = jobs[-1].last_error
    say("full", number=len(jobs), end=end(jobs[-1].tasks[0]), error=type(error).__name__, words=str(error))
    open(f"{place}/over", "w").close()
    for job in jobs[:-1]:
        job.wait(timeout=100)
    say("over", ends=[end(job.tasks[0]) for job in jobs[:-1]])
"""
ROOM = 4
"""Jobs that the scheduler takes when it is full."""


@pytest.fixture
def full(site: Site) -> Iterator[Site]:
    """The scheduler takes few jobs; afterwards as many as before."""
    own = site.own
    if site.name == "slurm":
        conf = own.base / "slurm.conf"
        before = conf.read_text()
        own.strike("slurmctld", signal.SIGTERM)
        few = before.replace("MinJobAge=300", "MinJobAge=2").replace("MaxJobCount=100000", f"MaxJobCount={ROOM}")
        conf.write_text(few)
        own.forget()
        own.start("slurmctld")
        yield site
        own.is_empty()
        own.strike("slurmctld", signal.SIGTERM)
        conf.write_text(before)
        own.start("slurmctld")
        return
    before = own.run("qconf", "-sconf").split("\n", 1)[1]
    given = site.place / "global"
    lines = [f"max_u_jobs {ROOM}" if line.startswith("max_u_jobs") else line for line in before.splitlines()]
    given.write_text("\n".join(lines) + "\n")
    own.run("qconf", "-Mconf", str(given))
    yield site
    given.write_text(before)
    own.run("qconf", "-Mconf", str(given))


@pytest.mark.parametrize("site", list(CONTEXTS), indirect=True)
def test_full_job_table(full: Site) -> None:
    """What the scheduler has no room for was never started, in its own words; what it has is all right."""
    program = full.program(FULL)
    said = heard(program, "full")
    over = heard(program, "over")
    program.finish()
    words = "temporarily unable to accept job" if full.name == "slurm" else "jobs are allowed per user"
    assert words in said["words"], said
    assert said["end"][:3] == ["failed", "launch_failure", None]
    assert said["error"] == ("DrmCommunicationError" if full.name == "slurm" else "TryLaterError"), said
    assert [end[:3] for end in over["ends"]] == [["failed", "exited", 3]] * (said["number"] - 1)
    assert said["number"] > 1
    assert full.starts() == sorted(str(number) for number in range(said["number"] - 1))


# --- an ordinary user ---------------------------------------------------------------------------------------------

USER = "nobody"
FIRST = """
import getpass
with Workflow(context()).raise_for_error() as flow:
    who = flow.run("id", "-un").wait(100)
    array = flow.run_array(3, shell("echo $TASK_ID; echo no >&2; exit $TASK_ID")).wait(100)
    killed = flow.run("sleep", "600")
    killed.tasks[0].wait_started(100)
    killed.kill().wait(100)
    flow.run(shell(f"until [ -e {place}/over ]; do sleep 0.2; done; echo kept; exit 7"))
    infos = [[info.exit_status, info.sub_state] for info in array.infos()]
    say("over", user=getpass.getuser(), who=who.output(), outputs=list(array.outputs().values()), infos=infos,
        killed=end(killed.tasks[0])[:2], error=array.tasks[0].tasks[0].error_output())
"""
SECOND = """
with Workflow(context()).raise_for_error() as flow:
    open(f"{place}/over", "w").close()
    last = flow.jobs()[-1].wait(100)
    found = len(flow.jobs())
    say("over", found=found, output=last.output(), end=end(last.tasks[0])[:4])
    for job in flow.jobs():
        job.reap_all()
"""
THIRD = """
with Workflow(context(detach=False)).raise_for_error() as flow:
    flow.run("sleep", "600").tasks[0].wait_started(100)
    flow.run_array(3, "sleep", "600")
    say("running")
    time.sleep(600)
"""


@pytest.mark.parametrize("site", list(CONTEXTS), indirect=True)
def test_ordinary_user(site: Site) -> None:
    """Jobs of a user without any right: they run as he, are found by their session's name, end with their program."""
    with ordinary(site.own, USER) as (place, before, variables):
        theirs = Site(site.name, site.own, place)
        site.programs = theirs.programs
        first = theirs.program(FIRST, before=before, variables=variables)
        said = heard(first, "over")
        first.finish()
        assert (said["user"], said["who"]) == (USER, USER)
        assert said["outputs"] == ["1", "2", "3"]
        assert said["error"] == "no"
        assert said["infos"] == [[1, "exited"], [2, "exited"], [3, "exited"]]
        assert said["killed"] == ["failed", "cancelled" if site.name != "gridengine" else said["killed"][1]]
        second = theirs.program(SECOND, before=before, variables=variables)
        said = heard(second, "over")
        second.finish()
        assert said == {"found": 4, "output": "kept", "end": ["failed", "exited", 7, None]}
        third = theirs.program(THIRD, before=before, variables=variables)
        heard(third, "running")
        assert len(site.own.queue()) == (4 if site.name == "slurm" else len(site.own.queue()))
        third.kill()
        site.own.is_empty()
        wait_until("nothing of the program is left", lambda: not third.left())
        for program in theirs.programs:
            assert "Traceback" not in program.log()


def _calls(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0

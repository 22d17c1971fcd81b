"""Jobs on a cluster when their program dies or is interrupted: on a real Slurm, counted by their name."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import ssh
from tests.clusters import left_in
from tests.containers import lacking
from tests.faults.machine import PATIENCE, Program, children_of, command_of, slowness, wait_until
from wfl import JobState, Workflow
from wfl.contexts.batch.slurm import SlurmContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVICES = Path(__file__).parents[1] / "services"
SINGLES, ELEMENTS = 20, 200
"""What a program has submitted when it dies; more than Slurm runs at once."""
GONE = 5.0
"""Seconds after a program's death until Slurm has nothing of it any more, on an idle machine."""

BEGIN = """
import logging, os, signal, sys, time
from wfl import Workflow, shell
from wfl.contexts.batch.slurm import SlurmContext
from wfl.contexts.ssh import SshContext
logging.basicConfig(level=logging.WARNING, format="%(message)s")
directory, name, conf, config, *rest = sys.argv[1:]
def context(**settings):
    via = SshContext("wfl-root", config=config) if config else None
    environment = {"SLURM_CONF": conf, "PATH": os.environ["PATH"]}
    return SlurmContext(directory=directory, session_name=name, environment=environment, via=via, **settings)
"""
MANY = f"""
with Workflow(context(SETTINGS), raise_errors=True) as flow:
    for _ in range({SINGLES}):
        flow.run("sleep", "600", job_name=name)
    flow.run_array({ELEMENTS}, "sleep", "600", job_name=name)
    flow.jobs()[0].tasks[0].wait_started()
    print("running", flush=True)
    time.sleep(600)
"""
FEW = """
with Workflow(context(SETTINGS), raise_errors=True) as flow:
    jobs = [flow.run("sleep", "600", job_name=name), flow.run_array(3, "sleep", "600", job_name=name)]
    jobs[0].tasks[0].wait_started()
    print("running", flush=True)
    time.sleep(600)
"""


class Cluster:
    """A real Slurm, and what one session has in it."""

    def __init__(self, conf: str, config: str, place: Path) -> None:
        self.conf, self.config = conf, config
        self.directory, self.name = place / "jobs", f"death-{uuid.uuid4().hex[:12]}"
        self.commands = place / "commands"
        self.commands.mkdir()

    def run(self, *argv: str) -> str:
        """One of Slurm's commands."""
        env = {**os.environ, "SLURM_CONF": self.conf}
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout

    def queue(self, *states: str) -> list[str]:
        """The session's jobs and elements that have not ended, or those in these states."""
        some = [f"--states={','.join(states)}"] if states else []
        return self.run("squeue", "--noheader", "--array", f"--name={self.name}", "--format=%i %T", *some).splitlines()

    def files(self) -> list[Path]:
        """What is left in the directory."""
        return left_in(self.directory)

    def context(self, **settings: object) -> SlurmContext:
        """One that finds the same session."""
        environment = {"SLURM_CONF": self.conf}
        given: dict[str, object] = {"directory": self.directory, "session_name": self.name}
        return SlurmContext(environment=environment, **{**given, **settings})  # type: ignore[arg-type]

    def wrap(self, command: str, lines: str) -> None:
        """Put a script before one of Slurm's commands, which is `$real` in it; `$here` is a directory for its files."""
        path = self.commands / command
        path.write_text(f"#!/bin/sh\nreal={shutil.which(command)} here={self.commands}\n{lines}\n")
        path.chmod(0o755)

    def is_empty(self, program: Program, gone: float = GONE) -> None:
        """Soon after the program's death nothing of it is left: no job, no file, no process."""
        before = slowness()
        wait_until("Slurm has nothing of it", lambda: not self.queue())
        took = time.monotonic() - program.struck
        wait_until("nothing is left in its directory", lambda: not self.files())
        wait_until("nothing of the program is left", lambda: not program.left())
        assert not self.queue()
        if took >= gone:
            limit = gone * max(before, slowness())
            assert took < limit, f"it took {took:.1f} s until nothing was left; here and now {limit:.1f} s are allowed"


@pytest.fixture(scope="module")
def conf() -> str:
    """Where the Slurm that `make services` starts has its configuration."""
    done = subprocess.run([SERVICES / "environment.sh", "slurm"], capture_output=True, text=True, check=True)
    found = done.stdout.strip().removeprefix("SLURM_CONF=")
    env = {**os.environ, "SLURM_CONF": found}
    if shutil.which("squeue") is None or not Path(found).exists():
        lacking("no Slurm is here: make services")
    if subprocess.run(["squeue", "--noheader"], env=env, capture_output=True, check=False, timeout=PATIENCE).returncode:
        lacking("Slurm does not answer: make services")
    return found


@pytest.fixture(params=["here", "via a login node"])
def config(request: pytest.FixtureRequest) -> str:
    """The configuration of SSH that leads to the login node; empty where this machine is it."""
    return "" if request.param == "here" else str(ssh.reached().config)


@pytest.fixture
def cluster(conf: str, config: str, tmp_path: Path) -> Iterator[Cluster]:
    """It, and a session of which nothing is left afterwards."""
    found = Cluster(conf, config, tmp_path)
    yield found
    found.run("scancel", f"--name={found.name}")
    wait_until("our jobs are gone", lambda: not found.queue())


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts programs in that session; afterwards nothing of them is left."""
    programs: list[Program] = []

    def start(source: str, settings: str = "detach=False", *arguments: str) -> Program:
        path = f"{cluster.commands}:{os.environ['PATH']}"
        given = (str(cluster.directory), cluster.name, cluster.conf, cluster.config, *arguments)
        programs.append(Program(BEGIN + source.replace("SETTINGS", settings), tmp_path, *given, PATH=path))
        return programs[-1]

    yield start
    for program in programs:
        program.__exit__(None, None, None)


def helpers_of(program: Program) -> list[int]:
    """The processes that wait for its death."""
    return [child for child in children_of(program.pid) if b"vigil.main" in command_of(child)]


# --- death ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_job_outlives_its_program(death: signal.Signals, cluster: Cluster, run: Callable[..., Program]) -> None:
    """Single jobs and an array, running and waiting: in a few seconds Slurm and the directory have none of it."""
    program = run(MANY)
    program.expect("running")
    assert len(cluster.queue()) == SINGLES + ELEMENTS
    program.kill(death)
    cluster.is_empty(program)
    assert ("220 tasks had not ended and are ended now" in program.log()) is (death == signal.SIGINT)


def test_a_program_that_just_ends(cluster: Cluster, run: Callable[..., Program]) -> None:
    """Nor do jobs outlive one that leaves by os._exit."""
    program = run(FEW.replace("time.sleep(600)", "os._exit(3)"))
    program.expect("running")
    program.struck = time.monotonic()
    program.finish(3)
    cluster.is_empty(program)


def test_a_lost_helper_is_replaced(cluster: Cluster, run: Callable[..., Program]) -> None:
    """Should it be killed, another is started, and said; it ends what was submitted before, too."""
    program = run(FEW)
    program.expect("running")
    (first,) = helpers_of(program)
    os.kill(first, signal.SIGKILL)
    wait_until("there is another", lambda: helpers_of(program) not in ([], [first]))
    program.kill()
    cluster.is_empty(program)
    assert "starting another" in program.log()


def test_a_controller_that_is_away_is_waited_for(cluster: Cluster, run: Callable[..., Program]) -> None:
    """The helper asks until Slurm answers."""
    lines = """
if [ -e "$here/away" ]; then
    echo asked >>"$here/asked"
    echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2
    exit 1
fi
exec "$real" "$@"
"""
    cluster.wrap("squeue", lines)
    program = run(FEW)
    program.expect("running")
    (cluster.commands / "away").touch()
    program.kill()
    wait_until("it was asked again", lambda: _lines(cluster.commands / "asked") >= 3)
    assert len(cluster.queue()) == 4
    (cluster.commands / "away").unlink()
    program.struck = time.monotonic()  # until then nobody could end them
    cluster.is_empty(program, gone=4 * GONE)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_death_while_submitting(moment: str, cluster: Cluster, run: Callable[..., Program]) -> None:
    """A submission that was under way, and comes late, is found by its key and ended, too."""
    cluster.wrap(
        "sbatch",
        """
[ -e "$here/slow" ] || exec "$real" "$@"
echo begun >"$here/begun"
[ -e "$here/before" ] && sleep 2
"$real" "$@"
echo done >"$here/done"
[ -e "$here/after" ] && sleep 2
""",
    )
    source = FEW.replace("time.sleep(600)", "open(rest[0], 'w').close()\n    flow.run_array(3, 'sleep', '600')")
    (cluster.commands / moment).touch()
    program = run(
        source.replace("'600')", "'600', job_name=name)"), "detach=False, timeout=30", f"{cluster.commands}/slow"
    )
    program.expect("running")
    awaited = cluster.commands / ("begun" if moment == "before" else "done")
    wait_until("it is submitting", awaited.exists)
    program.kill()
    wait_until("the submission is over", (cluster.commands / "done").exists)
    cluster.is_empty(program, gone=4 * GONE)


def test_what_has_ended_is_kept_with_a_store(cluster: Cluster, run: Callable[..., Program], tmp_path: Path) -> None:
    """A program that comes back finds how all has ended, what ended with its program as well."""
    source = """
with Workflow(context(SETTINGS), raise_errors=True) as flow:
    flow.run(shell("echo out; exit 3"), job_name=name).wait()
    flow.run("sleep", "600", job_name=name).tasks[0].wait_started()
    print("running", flush=True)
    time.sleep(600)
"""
    program = run(source, "detach=False, store=rest[0]", f"{tmp_path}/store")
    program.expect("running")
    program.kill()
    wait_until("Slurm has nothing of it", lambda: not cluster.queue())
    wait_until("nothing of the program is left", lambda: not program.left())
    with Workflow(cluster.context(store=tmp_path / "store"), raise_errors=True) as flow:
        over, ended = flow.jobs()
        assert (over.exit_status(), over.output()) == (3, "out")
        info = ended.wait(PATIENCE).info()
        assert info is not None
        assert (info.state, info.terminating_signal) == (JobState.FAILED, "SIGTERM")
        for job in (over, ended):
            assert job.reap_all().errors == []


# --- detached -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_is_detached_goes_on(death: signal.Signals, cluster: Cluster, run: Callable[..., Program]) -> None:
    """All of it, without a helper; an interrupted program says how many, who finds them and how they are ended.

    A new program finds all by the session's name, and ends all at once.
    """
    program = run(MANY, "")
    program.expect("running")
    assert helpers_of(program) == []
    program.kill(death)
    assert program.left() == []
    if death == signal.SIGINT:
        (line,) = [line for line in program.log().splitlines() if line.startswith("slurm: ")]
        via = ", via='wfl-root'" if cluster.config else ""
        assert line.startswith(
            f"slurm: {SINGLES + ELEMENTS} tasks go on; Workflow(SlurmContext(session_name='{cluster.name}', "
            f"directory='{cluster.directory}'{via})) finds them; to end them: kill_all(), or scancel "
        )
        assert line.endswith(f" … (and {SINGLES + 1 - 5} more)")
    time.sleep(2)
    assert len(cluster.queue()) == SINGLES + ELEMENTS
    with Workflow(cluster.context(), raise_errors=True) as flow:
        jobs = flow.jobs()
        assert sorted(len(job.tasks[0].tasks) if hasattr(job.tasks[0], "tasks") else 1 for job in jobs) == [
            *[1] * SINGLES,
            ELEMENTS,
        ]
        flow.kill_all()
        wait_until("Slurm has nothing of it", lambda: not cluster.queue())
        for job in jobs:
            assert job.synchronize(PATIENCE).failed()
            job.reap_all()
    assert cluster.files() == []


def test_ends_of_what_was_detached(cluster: Cluster, run: Callable[..., Program], tmp_path: Path) -> None:
    """A new program learns how all ended, whether that was while nobody looked or later."""
    source = """
line = "echo $TASK_ID; while [ ! -e " + rest[0] + " -a ${TASK_ID:-1} -gt 1 ]; do sleep 0.2; done; exit ${TASK_ID:-7}"
with Workflow(context(SETTINGS), raise_errors=True) as flow:
    flow.run(shell(line), job_name=name)
    flow.run_array(3, shell(line), job_name=name)
    print("running", flush=True)
    time.sleep(600)
"""
    program = run(source, "", f"{tmp_path}/go")
    program.expect("running")
    program.kill()
    wait_until("two have ended", lambda: len(cluster.queue()) == 2)
    with Workflow(cluster.context(), raise_errors=True) as flow:
        single, array = flow.jobs()
        assert single.wait(PATIENCE).exit_status() == 7
        assert JobState.DONE not in {info.state for info in array.infos()}
        (tmp_path / "go").touch()
        array.synchronize(PATIENCE)
        assert [info.exit_status for info in array.infos()] == [1, 2, 3]
        assert list(array.outputs().values()) == ["1", "2", "3"]
        for job in (single, array):
            assert job.reap_all().errors == []


# --- Ctrl-C ---------------------------------------------------------------------------------------------------

HANGING = """
while [ -e "$here/hangs" ]; do echo called >>"$here/called"; sleep 0.1; done
exec "$real" "$@"
"""


def test_ctrl_c_when_cancelling_hangs(cluster: Cluster, run: Callable[..., Program]) -> None:
    """The program leaves after its time limit and says that the helper goes on, which ends all when that can be."""
    cluster.wrap("scancel", HANGING)
    (cluster.commands / "hangs").touch()
    begun = cluster.commands / "begun"  # an element that has not begun never does, whatever hangs
    command = f'"sh", "-c", "echo >>{begun}; exec sleep 600"'
    program = run("from wfl.contexts.batch import ending\nending.ANSWER = 3\n" + FEW.replace('"sleep", "600"', command))
    program.expect("running")
    wait_until("all have begun", lambda: begun.exists() and begun.read_text().count("\n") == 4)
    program.kill(signal.SIGINT)
    assert time.monotonic() - program.struck < 30
    assert "4 tasks had not ended and are ended now" in program.log()
    assert "2 jobs and arrays are not ended yet; a helper process goes on with that" in program.log()
    assert len(cluster.queue()) == 4
    (cluster.commands / "hangs").unlink()
    cluster.is_empty(program, gone=8 * GONE)


def test_ctrl_c_twice(cluster: Cluster, run: Callable[..., Program]) -> None:
    """The second leaves at once and lists what stays; the helper ends it when that can be."""
    cluster.wrap("scancel", HANGING)
    (cluster.commands / "hangs").touch()
    program = run(FEW, "detach=False, timeout=600")
    program.expect("running")
    os.kill(program.pid, signal.SIGINT)
    wait_until("it is cancelling", (cluster.commands / "called").exists)
    program.kill(signal.SIGINT)
    assert time.monotonic() - program.struck < 10
    (line,) = [line for line in program.log().splitlines() if "interrupted while ending tasks" in line]
    assert "4 tasks may still be there (" in line
    assert "a helper process ends what is left after this program; by hand: kill_all(), or scancel " in line
    (cluster.commands / "hangs").unlink()
    cluster.is_empty(program, gone=8 * GONE)


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0

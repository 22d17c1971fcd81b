"""What only a real Grid Engine shows: what it refuses and sets aside, its limits and records, lost answers."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.clusters import jobs_of, left_in, reached
from tests.faults.machine import PATIENCE, Program, wait_until
from tests.faults.schedulers import BEREFT, wrapped
from wfl import DeniedByDrmsError, Job, JobInfo, JobState, TaskArray, Workflow, shell
from wfl.contexts.batch.gridengine import GridEngineContext
from wfl.drmaa2 import WALLCLOCK_TIME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

WAIT = 3 * PATIENCE
"""Seconds that a job may take where other tests' jobs can have all the slots there are."""
LIMIT = 200 * 1024
"""KiB: an interpreter has room in it, and what the tests then want has not."""
LOST = """
if [ ! -e "$here/lost" ]; then
    "$real" "$@" >"$here/lost"
    echo 'Unable to run job: unable to send message to qmaster using port 6444 on host "h": got send error' >&2
    exit 1
fi
exec "$real" "$@"
"""
"""qsub, which submits, and whose first answer gets lost on the way."""
BEGIN = """
import sys
from wfl import Workflow, shell
from wfl.contexts.batch.gridengine import GridEngineContext
directory, runs, named, *pairs = sys.argv[1:]
environment = dict(pair.split("=", 1) for pair in pairs)
fields = {"job_name": "mine"} if named else {}
with Workflow(GridEngineContext(directory=directory, session_name="one", environment=environment)) as flow:
    line = shell("echo $JOB_ID >>" + runs, **fields)
"""


class Cluster:
    """A real Grid Engine, and what one session has in it."""

    def __init__(self, variables: Mapping[str, str], place: Path) -> None:
        self.directory, self.commands = place / "jobs", place / "commands"
        self.commands.mkdir()
        self.variables = {**variables, "PATH": f"{self.commands}:{variables['PATH']}"}
        self._path = variables["PATH"]

    def run(self, *argv: str) -> str:
        """One of Grid Engine's commands."""
        env = {**self.variables, "PATH": self._path}
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout

    def queue(self) -> list[str]:
        """The session's jobs that have not ended, an array as one."""
        return jobs_of(self.directory, "sge")

    def context(self, **settings: Any) -> GridEngineContext:
        """One in the session, which takes the commands that the test has wrapped."""
        given = {"directory": self.directory, "session_name": "one", "environment": self.variables}
        return GridEngineContext(**{**given, **settings})

    def wrap(self, command: str, lines: str) -> None:
        """Put a script before one of Grid Engine's commands, which is `$real` in it; `$here` is for its files."""
        wrapped(self.commands, command, lines, self._path)

    def files(self) -> list[Path]:
        """What is left in the directory."""
        return left_in(self.directory)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """It, and a session of which nothing is left afterwards."""
    found = Cluster(reached("sge"), tmp_path)
    yield found
    with Workflow(found.context()) as flow:
        flow.kill_all()
    wait_until("our jobs are gone", lambda: not found.queue(), WAIT)


@pytest.fixture
def flow(cluster: Cluster) -> Iterator[Workflow]:
    """A workflow in the session; what it leaves ends with it."""
    with Workflow(cluster.context(detach=False)) as flow:
        yield flow


def ended(job: Job) -> JobInfo:
    """What is known of the end of a job's last task, when it has ended."""
    info = job.wait(WAIT).info()
    assert info is not None
    assert info.state.ended, info
    return info


def number_of(job: Job) -> str:
    """What Grid Engine calls it, or the array that it is."""
    (task,) = job.tasks
    first = task.tasks[0] if isinstance(task, TaskArray) else task
    return str(first.id).partition(".")[0]


def started(job: Job) -> str:
    """The same, when it runs."""
    job.tasks[0].wait_started(WAIT)
    return number_of(job)


# --- what is never run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", [False, True])
def test_set_aside(array: bool, cluster: Cluster, flow: Workflow) -> None:  # noqa: FBT001 - a case
    """What Grid Engine cannot start and would keep as Eqw has failed, with its reason, and is deleted."""
    job = flow.run_array(2, "true", submit_as_hold=True) if array else flow.run("true", submit_as_hold=True)
    wait_until("it is there", cluster.queue)
    (log,) = cluster.directory.glob("*/*/log")
    log.rename(log.with_name("away"))
    job.release().synchronize(WAIT)
    for info in job.infos():
        assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "launch_failure", None)
        assert "can't open output file" in str(info.annotation)
        assert str(log) in str(info.annotation)
    wait_until("it is deleted", lambda: not cluster.queue(), WAIT)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"queue_name": "no.such.q"}, "no.such.q"),
        ({"extensions": {"resources": "nosuch=1"}}, 'unknown resource "nosuch"'),
        ({"extensions": {"parallel_environment": "nosuch"}, "min_slots": 2}, "nosuch"),
        ({"extensions": {"project": "nosuch"}}, "nosuch"),
        ({"machine_os": "ATARI_TOS"}, "no suitable queues"),
        ({"extensions": {"native": "-no-such-option"}}, "no-such-option"),
    ],
)
@pytest.mark.parametrize("array", [False, True])
def test_refused(
    fields: dict[str, Any],
    words: str,
    array: bool,  # noqa: FBT001 - a case
    cluster: Cluster,
    flow: Workflow,
) -> None:
    """At once, in qsub's own words with what was asked for; nothing is left."""
    job = flow.run_array(3, "true", **fields) if array else flow.run("true", **fields)
    assert isinstance(job.last_error, DeniedByDrmsError)
    assert words in str(job.last_error)
    assert "asked for: " in str(job.last_error)
    assert job.state is JobState.FAILED
    assert cluster.queue() == []
    assert cluster.files() == []


def test_cancelled_from_outside(cluster: Cluster, flow: Workflow) -> None:
    """By qdel: what waited is cancelled, of which there is no record; what ran was killed, as the record says."""
    waits, runs = flow.run("true", submit_as_hold=True), flow.run("sleep", "600")
    id = started(runs)
    cluster.run("qdel", id, number_of(waits))
    info = ended(runs)
    assert (info.state, info.sub_state, info.terminating_signal) == (JobState.FAILED, "signaled", "SIGKILL")
    assert info.queue_name == "all.q"
    info = ended(waits)
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "cancelled", None)
    assert (info.dispatch_time, info.cpu_time) == (None, None)


def test_killed_while_it_waits(cluster: Cluster, flow: Workflow) -> None:
    """So it is with what the session kills itself."""
    jobs = [flow.run("true", submit_as_hold=True), flow.run_array(3, "true", submit_as_hold=True)]
    for job in jobs:
        job.kill().synchronize(WAIT)
        for info in job.infos():
            assert (info.state, info.sub_state, info.dispatch_time) == (JobState.FAILED, "cancelled", None)
    assert cluster.queue() == []


# --- limits ---------------------------------------------------------------------------------------------------


def test_limit_of_time(flow: Workflow) -> None:
    """Grid Engine's own: timeout, whichever way it was asked for; one that is not reached ends nothing."""
    jobs = [
        flow.run("sleep", "600", extensions={"resources": "h_rt=2"}),
        flow.run("sleep", "600", resource_limits={WALLCLOCK_TIME: 2}),
        flow.run_array(2, "sleep", "600", extensions={"native": "-l h_rt=2"}),
    ]
    well = flow.run("true", resource_limits={WALLCLOCK_TIME: 600})
    for job in jobs:
        job.synchronize(WAIT)
        for info in job.infos():
            assert (info.state, info.sub_state) == (JobState.FAILED, "timeout")
            assert info.terminating_signal == "SIGKILL"
    assert ended(well).exit_status == 0


def test_warned_of_the_limit_of_time(flow: Workflow) -> None:
    """With the extension signal the command gets SIGUSR1 before that; it ends as it likes."""
    job = flow.run(
        shell("trap 'exit 7' USR1; while :; do sleep 0.1; done"),
        extensions={"signal": "USR1@600"},
        resource_limits={WALLCLOCK_TIME: 602},
    )
    assert (ended(job).sub_state, ended(job).exit_status) == ("exited", 7)


def test_limit_of_memory(flow: Workflow) -> None:
    """h_vmem is what one process may map, and gets no more of; and what all of them may map together, which kills."""
    fits = flow.run(sys.executable, "-c", "data = b'x' * 10_000_000", min_phys_memory=LIMIT)
    greedy = flow.run(sys.executable, "-c", "data = b'x' * 400_000_000", min_phys_memory=LIMIT)
    line = f"{sys.executable} -c 'data = b\"x\" * 100_000_000; import time; time.sleep(600)' &"
    together = flow.run(shell(f"{line} {line} {line} wait"), min_phys_memory=LIMIT)
    assert ended(fits).exit_status == 0
    assert (ended(greedy).sub_state, ended(greedy).exit_status) == ("exited", 1)
    assert "MemoryError" in greedy.error_output()
    info = ended(together)
    assert (info.state, info.sub_state, info.terminating_signal) == (JobState.FAILED, "out_of_memory", "SIGKILL")


def test_so_many_at_once(cluster: Cluster, flow: Workflow, tmp_path: Path) -> None:
    """`max_parallel` is the array's own limit (-tc): never more run, though there are slots."""
    line = f"echo >{tmp_path}/begun.$TASK_ID; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done"
    job = flow.run_array(6, shell(line), max_parallel=2)
    wait_until("two have begun", lambda: len(list(tmp_path.glob("begun.*"))) == 2, WAIT)
    (told,) = [text for text in cluster.run("qstat", "-j", number_of(job)).splitlines() if "concurrency" in text]
    assert told.split()[-1] == "2"
    time.sleep(3)  # in which the scheduler, which looks each second, would start the others
    assert len(list(tmp_path.glob("begun.*"))) == 2
    (tmp_path / "go").touch()
    job.synchronize(WAIT)
    assert [info.exit_status for info in job.infos()] == [0] * 6


# --- records --------------------------------------------------------------------------------------------------


def test_usage(cluster: Cluster, flow: Workflow) -> None:
    """Queue, machine, slots, memory and times of an end are those of qacct's record."""
    line = f"{sys.executable} -c 'data = b\"x\" * 60_000_000; sum(range(10_000_000))'"
    job = flow.run(shell(line), min_slots=2, extensions={"parallel_environment": "smp"})
    info = ended(job)
    record = cluster.run("qacct", "-j", number_of(job))
    said = dict(text.split(None, 1) for text in record.splitlines() if len(text.split(None, 1)) == 2)
    assert (info.queue_name, info.slots) == (said["qname"].strip(), 2)
    assert info.allocated_machines == (said["hostname"].strip(),)
    assert int(info.extensions["ru_maxrss"]) > 60_000
    assert info.cpu_time is not None
    assert info.cpu_time.total_seconds() > 0.1
    assert info.submission_time is not None
    assert info.dispatch_time is not None
    assert info.finish_time is not None
    assert info.submission_time <= info.dispatch_time < info.finish_time


# --- control --------------------------------------------------------------------------------------------------


def test_one_word_right_after_another(flow: Workflow) -> None:
    """A job that is suspended, resumed and suspended at once gets every signal: it goes on, and it can be killed."""
    well, killed = flow.run(shell("sleep 3; exit 5")), flow.run("sleep", "600")
    for job in (well, killed):
        started(job)
    for job in (well, killed):
        job.suspend().resume().suspend().resume()
        assert job.errors == []
    assert ended(killed.kill()).terminating_signal == "SIGKILL"
    assert ended(well).exit_status == 5


# --- answers that were lost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("name", [None, "mine"])
def test_lost_answer(
    array: bool,  # noqa: FBT001 - a case
    name: str | None,
    cluster: Cluster,
    flow: Workflow,
    tmp_path: Path,
) -> None:
    """A submission whose answer got lost is found by its key, whoever named it, and not done twice."""
    cluster.wrap("qsub", LOST)
    line = shell(f"echo $JOB_ID >>{tmp_path}/runs; sleep 3", job_name=name)
    job = flow.run_array(3, line) if array else flow.run(line)
    job.synchronize(WAIT)
    assert job.errors == []
    assert {(info.state, info.exit_status) for info in job.infos()} == {(JobState.DONE, 0)}
    assert len((tmp_path / "runs").read_text().split()) == (3 if array else 1)
    assert (cluster.commands / "lost").read_text().startswith(number_of(job))


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts programs in that session; afterwards nothing of them is left."""
    programs: list[Program] = []

    def start(source: str, *arguments: str) -> Program:
        pairs = [f"{name}={value}" for name, value in cluster.variables.items()]
        programs.append(Program(BEGIN + source, tmp_path, str(cluster.directory), *arguments, *pairs))
        return programs[-1]

    yield start
    for program in programs:
        program.__exit__(None, None, None)


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("name", ["", "mine"])
def test_lost_answer_of_a_dead_program(
    array: bool,  # noqa: FBT001 - a case
    name: str,
    cluster: Cluster,
    run: Callable[..., Program],
    tmp_path: Path,
) -> None:
    """A program that was killed before it read the answer: the next one finds what it submitted, and does it once."""
    cluster.wrap("qsub", BEREFT)
    program = run(f"    {'flow.run_array(3, line)' if array else 'flow.run(line)'}\n", f"{tmp_path}/runs", name)
    program.finish(-9)
    wait_until("it has run", (tmp_path / "runs").exists, WAIT)
    with Workflow(cluster.context()) as flow:
        (job,) = flow.jobs()
        job.synchronize(WAIT)
        assert {(info.state, info.exit_status) for info in job.infos()} == {(JobState.DONE, 0)}
        assert len((tmp_path / "runs").read_text().split()) == (3 if array else 1)
        job.reap_all()
    assert cluster.files() == []

"""What only a real Slurm shows: why jobs ended, that they run again, what it refuses, and answers that were lost."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults import test_batch_death as death
from tests.faults.machine import PATIENCE, wait_until
from tests.faults.schedulers import BEREFT, Own
from wfl import DeniedByDrmsError, InvalidArgumentError, Job, JobInfo, JobState, Workflow, shell
from wfl.contexts.batch.slurm import SlurmContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.faults.machine import Program

conf, cluster, run = death.conf, death.cluster, death.run
MINUTES = 300.0
"""Seconds after which Slurm has ended what has a minute: it looks at its limits of time every half minute only."""
LOST = """
if [ ! -e "$here/lost" ]; then
    "$real" "$@" >"$here/lost"
    echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
    exit 1
fi
exec "$real" "$@"
"""
"""sbatch, which submits, and whose first answer gets lost on the way."""


@pytest.fixture
def config() -> str:
    """This machine is the login node."""
    return ""


@pytest.fixture
def flow(cluster: death.Cluster) -> Iterator[Workflow]:
    """A workflow in the session; what it leaves ends with it."""
    with Workflow(context(cluster, detach=False)) as flow:
        yield flow


def context(cluster: death.Cluster, **settings: Any) -> SlurmContext:
    """One in the session, which takes the commands that the test has wrapped."""
    environment = {"SLURM_CONF": cluster.conf, "PATH": f"{cluster.commands}:{os.environ['PATH']}"}
    given = {"directory": cluster.directory, "session_name": cluster.name, "environment": environment}
    return SlurmContext(**{**given, **settings})


def ended(job: Job, patience: float = PATIENCE) -> JobInfo:
    """What is known of the end of a job's last task, when it has ended."""
    info = job.wait(patience).info()
    assert info is not None
    assert info.state.ended, info
    return info


def number_of(job: Job) -> str:
    """What Slurm calls its first task."""
    (task,) = job.tasks
    return str(task.id)


def started(job: Job) -> str:
    """The same, when it runs."""
    job.tasks[0].wait_started(PATIENCE)
    return number_of(job)


def states_of(job: Job) -> Callable[[], list[JobState]]:
    """Looks at a job's state; all that was seen up to now, each once in a row."""
    seen: list[JobState] = []

    def look() -> list[JobState]:
        state = job.state
        if seen[-1:] != [state]:
            seen.append(state)
        return seen

    return look


def submitted(cluster: death.Cluster) -> int:
    """How many jobs of the session's name Slurm has taken, those that have ended among them."""
    told = cluster.run("squeue", "--noheader", "--states=all", f"--name={cluster.name}", "--format=%F")
    return len(set(told.split()))


# --- why a job ended ------------------------------------------------------------------------------------------


def test_out_of_memory(cluster: death.Cluster, flow: Workflow) -> None:
    """More memory than was asked for: out_of_memory in Slurm's words, with the memory it had at most."""
    if "task/cgroup" not in cluster.run("scontrol", "show", "config"):
        pytest.skip("without cgroups Slurm does not call it so")
    greedy = (sys.executable, "-c", "data = b'x' * 400_000_000; import time; time.sleep(60)")
    single = flow.run(*greedy, job_name=cluster.name, min_phys_memory=60 * 1024)
    array = flow.run_array(2, *greedy, job_name=cluster.name, min_phys_memory=60 * 1024)
    for info in (ended(single), *array.synchronize(PATIENCE).infos()):
        assert (info.state, info.sub_state) == (JobState.FAILED, "out_of_memory")
        assert (info.terminating_signal, info.exit_status) == ("SIGKILL", 137)
        assert str(info.annotation).startswith("OUT_OF_MEMORY")
        assert 0 < int(info.extensions["ru_maxrss"]) <= 60 * 1024


def test_limit_of_time(cluster: death.Cluster, flow: Workflow, tmp_path: Path) -> None:
    """Slurm's own limit of time: timeout, in its words; the command has got the signal before that, if one was wanted.

    Whether it is a shell, ends by the signal, or goes on: it alone decides how it ends.
    """
    told = tmp_path / "told"
    minute = "--time=1"
    stays = shell(f"trap 'echo told >>{told}' USR1; while :; do sleep 0.2; done", job_name=cluster.name)
    leaves = shell("trap 'echo saved; exit 5' USR1; while :; do sleep 0.2; done", job_name=cluster.name)
    warned = {"native": minute, "signal": "USR1@5"}
    plain = flow.run("sleep", "600", job_name=cluster.name, extensions={"native": minute})
    asked = flow.run(stays.replace(extensions=warned))
    clever = flow.run(leaves.replace(extensions={"native": minute, "signal": "B:SIGUSR1@5"}))
    simple = flow.run("sleep", "600", job_name=cluster.name, extensions=warned)
    polite = flow.run(
        sys.executable,
        "-c",
        "import time\ntry:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    print('interrupted')",
        job_name=cluster.name,
        extensions={"native": minute, "signal": "INT@5"},
    )
    for job in (plain, asked):
        info = ended(job, MINUTES)
        assert (info.state, info.sub_state) == (JobState.FAILED, "timeout")
        assert str(info.annotation).startswith("TIMEOUT")
        assert info.wallclock_time is not None
        assert info.wallclock_time.total_seconds() > 30
    assert told.read_text() == "told\n"
    assert (ended(clever).exit_status, clever.output()) == (5, "saved")
    assert (ended(simple).sub_state, ended(simple).terminating_signal) == ("signaled", "SIGUSR1")
    assert (ended(polite).exit_status, polite.output()) == (0, "interrupted")


def test_signal_that_cannot_be_given(flow: Workflow) -> None:
    """A signal that is none, or that no shell can pass on, is refused before anything is submitted."""
    for text in ("USR1", "now", "KILL@30", "10@30", "USR1@soon"):
        with pytest.raises(InvalidArgumentError, match="the like of 'USR1@60'"):
            flow.run("true", extensions={"signal": text}).on_error_raise()


@pytest.mark.parametrize("array", [False, True])
def test_cancelled_from_outside(
    array: bool,  # noqa: FBT001 - a case
    cluster: death.Cluster,
    flow: Workflow,
    tmp_path: Path,
) -> None:
    """`scancel` in a shell, of what waits and of what runs: cancelled, in Slurm's words."""
    up = tmp_path / "up"
    template = shell(f"echo up >>{up}; exec sleep 600", job_name=cluster.name)
    held = template.replace(submit_as_hold=True)
    waiting, running = (
        (flow.run_array(3, held), flow.run_array(3, template)) if array else (flow.run(held), flow.run(template))
    )
    wait_until("they run", lambda: up.exists() and len(up.read_text().split()) == (3 if array else 1))
    ids = {str(info.id).partition("_")[0] for job in (waiting, running) for info in job.infos()}
    cluster.run("scancel", *ids)
    for info in waiting.synchronize(PATIENCE).infos():
        assert (info.state, info.sub_state) == (JobState.FAILED, "cancelled")
        assert (info.exit_status, info.terminating_signal, info.dispatch_time) == (None, None, None)
        assert str(info.annotation).startswith("CANCELLED by ")
    for info in running.synchronize(PATIENCE).infos():
        assert (info.state, info.sub_state, info.terminating_signal) == (JobState.FAILED, "cancelled", "SIGTERM")
        assert str(info.annotation).startswith("CANCELLED by ")


# --- running again --------------------------------------------------------------------------------------------


def test_requeued(cluster: death.Cluster, flow: Workflow, tmp_path: Path) -> None:
    """`scontrol requeue`: REQUEUED, then it runs again, and ends as its last run does; it has never failed."""
    go = tmp_path / "go"
    line = f"echo run >>{tmp_path}/runs; while [ ! -e {go} ]; do sleep 0.1; done; echo done"
    job = flow.run(shell(line, job_name=cluster.name), rerunnable=True)
    look = states_of(job)
    id = started(job)
    cluster.run("scontrol", "requeue", id)
    wait_until("it is known to wait again", lambda: JobState.REQUEUED in look())
    hurry(cluster.run, id)
    wait_until("it runs again", lambda: look()[-1] is JobState.RUNNING, MINUTES)
    go.touch()
    wait_until("it has ended", lambda: look()[-1].ended)
    info = ended(job)
    assert (info.state, info.sub_state, info.exit_status, job.output()) == (JobState.DONE, "exited", 0, "done")
    assert (tmp_path / "runs").read_text() == "run\n" * 2
    states = look()
    begin = states.index(JobState.REQUEUED)
    assert states[begin:] == [JobState.REQUEUED, JobState.RUNNING, JobState.DONE]


def hurry(slurm: Callable[..., str], id: str) -> None:
    """Slurm lets a job wait for two minutes before it runs again: this one for some seconds.

    To start it in the second in which it was killed is an error of Slurm's.
    """
    wait_until("it waits", lambda: "PENDING" in slurm("squeue", "--noheader", f"--jobs={id}", "--format=%T"))
    slurm("scontrol", "update", f"JobId={id}", "StartTime=now+5")


def test_requeued_and_held(cluster: death.Cluster, flow: Workflow) -> None:
    """`scontrol requeuehold`: REQUEUED_HELD until it is released."""
    job = flow.run("sleep", "600", job_name=cluster.name, rerunnable=True)
    id = started(job)
    cluster.run("scontrol", "requeuehold", id)
    wait_until("it is known to be held", lambda: job.state is JobState.REQUEUED_HELD)
    job.release()
    assert job.errors == []
    hurry(cluster.run, id)
    wait_until("it runs again", lambda: job.state is JobState.RUNNING, MINUTES)
    job.kill()
    assert ended(job).sub_state == "cancelled"


# --- refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"queue_name": "nowhere"}, "invalid partition specified: nowhere"),
        ({"reservation_id": "nothing"}, "Requested reservation is invalid"),
        ({"min_phys_memory": 1 << 40}, "Memory specification can not be satisfied"),
        ({"min_slots": 1000}, "More processors requested than permitted|CPU count"),
        ({"candidate_machines": ["no-such-machine"]}, "Invalid node name specified"),
        ({"extensions": {"gpus": "1"}}, r"Invalid generic resource \(gres\) specification"),
        ({"extensions": {"nodes": "2"}}, "Node count specification invalid|More processors|node configuration"),
        ({"extensions": {"tasks": "1000"}}, "node configuration is not available|More processors"),
        ({"extensions": {"constraint": "unknown"}}, "Invalid feature specification"),
        ({"extensions": {"licenses": "unknown"}}, "Invalid license specification"),
        ({"extensions": {"dependency": "afterok:nobody"}}, "dependency problem"),
        ({"extensions": {"native": "--no-such-option"}}, "unrecognized option '--no-such-option'"),
    ],
)
def test_refused(fields: dict[str, Any], words: str, cluster: death.Cluster, flow: Workflow) -> None:
    """What Slurm refuses raises with its own words, and nothing was started; without raising, the error is kept."""
    with pytest.raises(DeniedByDrmsError, match=words):
        flow.run("sleep", "600", job_name=cluster.name, **fields).on_error_raise()
    job = flow.run_array(2, "sleep", "600", job_name=cluster.name, **fields)
    with pytest.raises(DeniedByDrmsError, match=words):
        job.on_error_raise()
    assert cluster.queue() == []
    assert cluster.files() == []


@pytest.mark.parametrize(
    ("extensions", "shown"),
    [
        ({"exclusive": "true"}, "OverSubscribe=NO"),
        ({"tasks": "2"}, "NumTasks=2"),
        ({"nodes": "1", "tasks_per_node": "3"}, "NumTasks=3"),
        ({"memory_per_cpu": "50M"}, "MinMemoryCPU=50M"),
    ],
)
def test_granted(extensions: dict[str, str], shown: str, cluster: death.Cluster, flow: Workflow) -> None:
    """What Slurm has, it is asked for; the command runs once, whatever the number of tasks."""
    job = flow.run("echo", "once", job_name=cluster.name, extensions=extensions)
    assert ended(job, MINUTES).exit_status == 0  # a whole node may be long in coming
    assert job.output() == "once"
    assert shown in cluster.run("scontrol", "show", "job", number_of(job))


# --- dependencies ---------------------------------------------------------------------------------------------


def test_dependency(cluster: death.Cluster, flow: Workflow) -> None:
    """A job waits for another as Slurm's words say; what can never begin any more is cancelled, and says why."""
    good = flow.run("sleep", "1", job_name=cluster.name)
    bad = flow.run(shell("sleep 1; exit 3", job_name=cluster.name))
    ids = [number_of(good), number_of(bad)]

    def after(kind: str, id: str) -> Job:
        return flow.run("true", job_name=cluster.name, extensions={"dependency": f"{kind}:{id}"})

    fulfilled, despite, never = after("afterok", ids[0]), after("afternotok", ids[1]), after("afterok", ids[1])
    for job in (fulfilled, despite):
        assert ended(job).exit_status == 0
    first, second = ended(good), ended(fulfilled)
    assert first.finish_time is not None
    assert second.dispatch_time is not None
    assert second.dispatch_time.timestamp() >= int(first.finish_time.timestamp())
    info = ended(never)
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "cancelled", None)
    assert info.annotation == "CANCELLED: DependencyNeverSatisfied"


# --- answers that were lost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("store", [False, True])
def test_lost_answer(
    array: bool,  # noqa: FBT001 - a case
    store: bool,  # noqa: FBT001 - a case
    cluster: death.Cluster,
    tmp_path: Path,
) -> None:
    """A submission whose answer got lost is found by its key, and not done twice."""
    cluster.wrap("sbatch", LOST)
    settings = {"store": tmp_path / "store"} if store else {}
    with Workflow(context(cluster, detach=False, **settings)) as flow:
        line = shell(f"echo $SLURM_JOB_ID >>{tmp_path}/runs", job_name=cluster.name)
        job = flow.run_array(3, line) if array else flow.run(line)
        job.synchronize(PATIENCE)
        assert job.errors == []
        assert {(info.state, info.exit_status) for info in job.infos()} == {(JobState.DONE, 0)}
        assert len((tmp_path / "runs").read_text().split()) == (3 if array else 1)
        assert submitted(cluster) == 1
        job.reap_all()
    assert cluster.files() == []


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("store", [False, True])
def test_lost_answer_of_a_dead_program(
    array: bool,  # noqa: FBT001 - a case
    store: bool,  # noqa: FBT001 - a case
    cluster: death.Cluster,
    run: Callable[..., Program],
    tmp_path: Path,
) -> None:
    """A program that was killed before it read the answer: the next one finds what it submitted, and does it once."""
    cluster.wrap("sbatch", BEREFT)
    source = f"""
with Workflow(context(SETTINGS)) as flow:
    line = shell("echo $SLURM_JOB_ID >>" + rest[0], job_name=name)
    {"flow.run_array(3, line)" if array else "flow.run(line)"}
"""
    path = tmp_path / "store"
    program = run(source, f"store={str(path)!r}" if store else "", f"{tmp_path}/runs")
    program.finish(-9)
    wait_until("it was submitted", lambda: submitted(cluster) == 1)
    with Workflow(cluster.context(**({"store": path} if store else {}))) as flow:
        (job,) = flow.jobs()
        job.synchronize(PATIENCE)
        assert {(info.state, info.exit_status) for info in job.infos()} == {(JobState.DONE, 0)}
        assert len((tmp_path / "runs").read_text().split()) == (3 if array else 1)
        assert submitted(cluster) == 1
        job.reap_all()


# --- on a Slurm of our own: preemption, and a node that fails -------------------------------------------------

MORE = """
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL PriorityTier=1 MaxTime=INFINITE State=UP OverSubscribe=NO PreemptMode={mode}
PartitionName=high Nodes=ALL PriorityTier=9 MaxTime=INFINITE State=UP OverSubscribe=NO PreemptMode=OFF
"""


@pytest.fixture(scope="module")
def own() -> Iterator[Own]:
    """A Slurm with a partition whose jobs are cancelled, and one whose jobs are requeued, for those of a third."""
    with Own("slurm") as own:
        path = own.base / "slurm.conf"
        lines = MORE.format(mode="CANCEL") + "".join(
            line.replace("PartitionName=low", "PartitionName=again").format(mode="REQUEUE") + "\n"
            for line in MORE.splitlines()
            if "=low" in line
        )
        path.write_text(path.read_text() + lines)
        own.strike("slurmctld", 15)
        own.start("slurmctld")
        wait_until("the node takes jobs", lambda: "idle" in own.run("sinfo", "--noheader", "--format=%t"))
        yield own


@pytest.fixture
def own_flow(own: Own, tmp_path: Path) -> Iterator[Workflow]:
    """A workflow on it."""
    own.is_empty()
    with Workflow(
        SlurmContext(directory=tmp_path / "jobs", environment=own.variables, detach=False), raise_errors=True
    ) as flow:
        yield flow


def test_preempted(own_flow: Workflow) -> None:
    """A job that has to make room for a better one: preempted, in Slurm's words."""
    job = own_flow.run("sleep", "600", queue_name="low", min_slots=64)
    started(job)
    better = own_flow.run("true", queue_name="high", min_slots=64)
    info = ended(job, MINUTES)
    assert (info.state, info.sub_state) == (JobState.FAILED, "preempted")
    assert str(info.annotation).startswith("PREEMPTED")
    assert ended(better, MINUTES).exit_status == 0


def test_preempted_and_run_again(own: Own, own_flow: Workflow, tmp_path: Path) -> None:
    """Where it may run again it is REQUEUED, not FAILED, and is DONE when it has."""
    line = f"echo run >>{tmp_path}/runs; [ -e {tmp_path}/go ] || sleep 600"
    job = own_flow.run(shell(line), queue_name="again", min_slots=64, rerunnable=True)
    look = states_of(job)
    id = started(job)
    better = own_flow.run("sleep", "5", queue_name="high", min_slots=64)
    wait_until("it is known to wait again", lambda: JobState.REQUEUED in look(), MINUTES)
    (tmp_path / "go").touch()
    assert ended(better, MINUTES).exit_status == 0
    hurry(own.run, id)
    wait_until("it has ended", lambda: look()[-1].ended, MINUTES)
    assert (ended(job).state, ended(job).sub_state) == (JobState.DONE, "exited")
    assert JobState.FAILED not in look()
    assert (tmp_path / "runs").read_text() == "run\n" * 2


def test_node_that_fails(own: Own, own_flow: Workflow, tmp_path: Path) -> None:
    """Its jobs end as node_failure, in Slurm's words; those that may run again do so when a node is there."""
    line = f"[ -e {tmp_path}/go ] || sleep 600"
    lost, again = own_flow.run("sleep", "600"), own_flow.run(shell(line), rerunnable=True)
    look = states_of(again)
    started(lost)
    id = started(again)
    node = own.run("sinfo", "--noheader", "--format=%N").split()[0]
    own.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    info = ended(lost, MINUTES)
    assert (info.state, info.sub_state) == (JobState.FAILED, "node_failure")
    assert str(info.annotation).startswith("NODE_FAIL")
    wait_until("it is known to wait again", lambda: JobState.REQUEUED in look(), MINUTES)
    (tmp_path / "go").touch()
    own.run("scontrol", "update", f"NodeName={node}", "State=RESUME", ok=False)  # its slurmd may have done so
    wait_until("the node takes jobs", lambda: "idle" in own.run("sinfo", "--noheader", "--format=%t"))
    hurry(own.run, id)
    wait_until("it has ended", lambda: look()[-1].ended, MINUTES)
    assert (ended(again).state, ended(again).sub_state) == (JobState.DONE, "exited")
    assert JobState.FAILED not in look()

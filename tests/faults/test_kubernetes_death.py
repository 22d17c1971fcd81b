"""Jobs on Kubernetes when their program dies: none runs on, or all do; and what a program finds that comes back."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.kubernetes_own import Namespace, Programs, namespace
from tests.faults.machine import (
    CLEAN,
    PATIENCE,
    Program,
    children_of,
    command_of,
    kills,
    marked,
    seed,
    slowness,
    wait_until,
)
from wfl import Context, JobState, Workflow, shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wfl import Job

SLOW = 4
"""How many times longer than ending processes of one's own it may take until a dozen pods are told to end."""

MANY = """
file = rest[0] + "/file"
open(file, "w").close()
with Workflow(context(SETTINGS), raise_errors=True) as flow:
    runs = [flow.run("sleep", "600") for _ in range(2)]
    runs.append(flow.run(shell("trap '' TERM; sleep 600 & wait; sleep 600")))
    runs.append(flow.run("sleep", "600", stage_in_files={"/in/a": file}, stage_out_files={rest[0] + "/out": "/out/a"}))
    runs.append(flow.run("sleep", "600", stage_in_files={"/in/a": "inline:a", "/in/b": "inline-secret:b"}))
    held = flow.run("sleep", "600", submit_as_hold=True)
    queued = flow.run("sleep", "600", min_phys_memory=1 << 40)
    array = flow.run_array(4, "sleep", "600", max_parallel=2)
    for job in runs:
        job.tasks[0].wait_started()
    while sum(task.state.value == "running" for task in array.tasks[0].tasks) < 2:
        time.sleep(0.01)
    while not (queued.info().annotation or ""):
        time.sleep(0.01)
    print("running", flush=True)
    LAST
"""
RUNNING, JOBS = 7, 8
"""Pods that run, and objects of the kind Job, in the midst of MANY."""
FEW = """
with Workflow(context(SETTINGS), raise_errors=True) as flow:
    flow.run("sleep", "600").tasks[0].wait_started()
    array = flow.run_array(3, "sleep", "600", max_parallel=1)
    print("running", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def there() -> Iterator[Namespace]:
    """A namespace of our own in the cluster that `make services` starts."""
    with namespace() as found:
        yield found


@pytest.fixture
def place(there: Namespace) -> Namespace:
    """It, with a session of our own."""
    there.session = Context.unique_session_name()
    return there


@pytest.fixture
def run(place: Namespace, tmp_path: Path) -> Iterator[Programs]:
    """Starts programs in that session; afterwards nothing of them is left, and nothing in the namespace."""
    programs = Programs(place, tmp_path)
    yield programs
    programs.close()


def source(text: str, settings: str = "", last: str = "time.sleep(600)") -> str:
    """One of the above, with the context's settings and its last line."""
    return text.replace("SETTINGS", settings).replace("LAST", last)


def helpers_of(program: Program) -> list[int]:
    """The processes that wait for its death."""
    return [child for child in children_of(program.pid) if b"vigil" in command_of(child)]


def is_gone(program: Program) -> None:
    """Soon after the program's death no process of it or of its pods runs."""
    before = slowness()
    wait_until("no process is left", lambda: not marked(program.mark))
    took = time.monotonic() - program.struck
    if took >= CLEAN:
        limit = CLEAN * SLOW * max(before, slowness())
        assert took < limit, f"it took {took:.1f} s until no task ran; here and now {limit:.1f} s are allowed"


def ends_of(job: Job) -> list[tuple[JobState, Any, int | None]]:
    """How all tasks of a job have ended."""
    job.synchronize(PATIENCE)
    return [(info.state, info.sub_state, info.exit_status) for info in job.infos()]


# --- death ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", ["SIGKILL", "SIGTERM", "SIGINT", "os._exit(3)", "pass"])
def test_no_pod_outlives_its_program(death: str, place: Namespace, run: Programs, tmp_path: Path) -> None:
    """Whatever runs, waits, is held or has files made for it: soon after the program's end the namespace has none."""
    by_signal = death.startswith("SIG")
    last = "time.sleep(600)" if by_signal else f"told('end'); {death}"
    program = run(source(MANY, last=last), str(tmp_path))
    program.expect("running")
    assert (place.running(), len(place.found("jobs"))) == (RUNNING, JOBS)
    assert len(marked(program.mark)) > RUNNING
    if by_signal:
        program.kill(getattr(signal, death))
    else:
        program.struck = time.monotonic()
        program.say("end")
        program.process.wait(PATIENCE)
        assert program.process.returncode == (3 if death == "os._exit(3)" else 0), program.log()
    is_gone(program)
    place.is_empty()


def test_a_lost_helper_is_replaced(place: Namespace, run: Programs) -> None:
    """Should it be killed, another is started, and said; it ends what was submitted before, too."""
    program = run(source(FEW))
    program.expect("running")
    (first,) = helpers_of(program)
    os.kill(first, signal.SIGKILL)
    wait_until("there is another", lambda: helpers_of(program) not in ([], [first]))
    assert place.running() >= 1, "nothing was ended for that"
    program.kill()
    is_gone(program)
    place.is_empty()
    assert "starting another" in program.log()


def test_a_killed_program_leaves_no_file(place: Namespace, run: Programs) -> None:
    """Neither output nor what a kubeconfig says inline (keys, certificates) stays in its directory for such files."""
    program = run(source(FEW))
    program.expect("running")
    program.kill()
    wait_until("no process is left", lambda: not marked(program.mark))
    assert program.left() == []
    place.is_empty()


BETWEEN = """
from wfl.contexts.kubernetes.client import Client
create = Client.create
def stopped(self, kind, body):
    if kind == "configmaps":
        print("between", flush=True)
        time.sleep(600)
    return create(self, kind, body)
Client.create = stopped
flow = Workflow(context(SETTINGS), raise_errors=True)
flow.run("sleep", "600", stage_in_files={"/in/a": "inline:a"})
"""


def test_death_between_a_job_and_what_it_needs(place: Namespace, run: Programs) -> None:
    """A Job that waits for what its program was just making: the helper removes it, and its command never runs."""
    program = run(source(BETWEEN))
    program.expect("between")
    (job,) = place.found("jobs")
    assert job["spec"]["suspend"]
    assert job["metadata"]["annotations"]["wfl/suspended"] == "making"
    program.kill()
    place.is_empty()
    is_gone(program)


def test_what_was_never_completed_is_removed_by_the_next_program(
    place: Namespace, run: Programs, tmp_path: Path
) -> None:
    """Detached there is no helper: the program that comes back removes it, and tells that it never ran."""
    program = run(source(BETWEEN, "detach=True, store=rest[0]"), f"{tmp_path}/store")
    program.expect("between")
    program.kill()
    assert len(place.found("jobs")) == 1
    with Workflow(place.context(store=tmp_path / "store", detach=True), raise_errors=True) as flow:
        (job,) = flow.jobs()
        assert ends_of(job) == [(JobState.FAILED, "launch_failure", None)]
        assert "never ran" in str(job.infos()[0].annotation)
        place.is_empty()
        job.reap_all()


# --- with a store -----------------------------------------------------------------------------------------------

STORED = """
with Workflow(context(store=rest[0], detach=False), raise_errors=True) as flow:
    flow.run(shell("echo out; exit 3")).wait()
    flow.run("true").wait()
    flow.run("sleep", "600").tasks[0].wait_started()
    flow.run("sleep", "600", submit_as_hold=True)
    array = flow.run_array(3, shell("[ $TASK_ID = 1 ] || sleep 600; echo $TASK_ID"), max_parallel=2).tasks[0]
    array.tasks[0].wait_terminated()
    array.tasks[1].wait_started()
    print("running", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGINT])
def test_what_has_ended_is_kept_with_a_store(
    death: signal.Signals, place: Namespace, run: Programs, tmp_path: Path
) -> None:
    """Nothing runs on; Jobs stay as the record, and a program that comes back finds how all has ended."""
    program = run(STORED, f"{tmp_path}/store")
    program.expect("running")
    program.kill(death)
    is_gone(program)
    wait_until("the cluster knows it", lambda: place.running() == 0)
    assert len(place.found("jobs")) == 5
    with Workflow(place.context(store=tmp_path / "store"), raise_errors=True) as flow:
        failed, done, ran, held, array = flow.jobs()
        cancelled = (JobState.FAILED, "cancelled")
        assert ends_of(failed) == [(JobState.FAILED, "exited", 3)]
        assert ends_of(done) == [(JobState.DONE, "exited", 0)]
        assert ends_of(ran)[0][:2] == cancelled
        assert ends_of(held) == [(*cancelled, None)]
        first, *others = ends_of(array)
        assert first == (JobState.DONE, "exited", 0)
        assert [end[:2] for end in others] == [cancelled] * 2
        assert failed.output() == "out"
        for job in (failed, done, ran, held, array):
            assert job.reap_all().errors == []
    place.is_empty()


def test_programs_beside_each_other(place: Namespace, run: Programs, tmp_path: Path) -> None:
    """Two programs in one session with a store: each sees the other's jobs, and only its own end with it."""
    program = run(source(FEW, "store=rest[0], detach=False"), f"{tmp_path}/store")
    program.expect("running")
    with Workflow(place.context(store=tmp_path / "store"), raise_errors=True) as flow:
        theirs = flow.jobs()[0]
        wait_until("the other's job is known to run", lambda: theirs.state is JobState.RUNNING)
        own = flow.run(shell("echo own; sleep 600"))
        own.tasks[0].wait_started(PATIENCE)
        program.kill()
        is_gone(program)
        assert [end[:2] for end in ends_of(theirs)] == [(JobState.FAILED, "cancelled")]
        wait_until("the cluster knows it", lambda: place.running() == 1)
        assert own.state is JobState.RUNNING
        own.kill()
        assert own.wait(PATIENCE).output() == "own"
        for job in flow.jobs():
            assert job.synchronize(PATIENCE).reap_all().errors == []
    place.is_empty()


def test_a_program_that_leaves_spares_the_other(place: Namespace, run: Programs, tmp_path: Path) -> None:
    """It closes in good order, and ends what is its own; the jobs of the other go on, and end as they end."""
    store = f"{tmp_path}/store"
    line = "until [ -e /shared/go ]; do sleep 0.1; done; echo over; exit 4"
    with Workflow(place.context(store=store), raise_errors=True) as flow:
        own = flow.run(shell(line, stage_in_files={"/shared": f"hostpath:{tmp_path}"}))
        own.tasks[0].wait_started(PATIENCE)
        program = run(source(FEW, "store=rest[0], detach=False").replace("time.sleep(600)", "told('end')"), store)
        program.expect("running")
        program.struck = time.monotonic()
        program.say("end")
        program.process.wait(PATIENCE)
        is_gone(program)
        assert own.state is JobState.RUNNING
        (tmp_path / "go").touch()
        assert (own.wait(PATIENCE).exit_status(), own.output()) == (4, "over")
        for job in flow.jobs():
            assert job.synchronize(PATIENCE).reap_all().errors == []
    place.is_empty()


# --- detached ---------------------------------------------------------------------------------------------------

DETACHED = """
stage = {"/shared": "hostpath:" + rest[0]}
line = "echo begun $TASK_ID; until [ -e /shared/go ]; do sleep 0.1; done; echo out $TASK_ID; exit ${TASK_ID:-7}"
with Workflow(context(detach=True), raise_errors=True) as flow:
    flow.run(shell("echo early; exit 5")).wait()
    single = flow.run(shell(line, stage_in_files=stage, job_name="single"))
    held = flow.run("echo", "held", submit_as_hold=True)
    array = flow.run_array(range(0, 5, 2), shell(line, stage_in_files=stage))
    single.tasks[0].wait_started()
    for task in array.tasks[0].tasks:
        task.wait_started()
    print("running", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_is_detached_goes_on(death: signal.Signals, place: Namespace, run: Programs, tmp_path: Path) -> None:
    """Without a helper and a store; a new program finds all by the session's name, with ends and outputs."""
    program = run(DETACHED, str(tmp_path))
    program.expect("running")
    assert helpers_of(program) == []
    program.kill(death)
    if death == signal.SIGINT:
        (words,) = [line for line in program.log().splitlines() if line.startswith("kubernetes: ")]
        assert words.startswith("kubernetes: 5 tasks go on; ")
        assert f"kubectl --namespace {place.namespace} delete jobs --selector" in words
    assert place.running() == 4
    with Workflow(place.context(detach=True), raise_errors=True) as flow:
        early, single, held, array = flow.jobs()
        assert (early.exit_status(), early.output()) == (5, "early")
        assert (single.state, held.state) == (JobState.RUNNING, JobState.QUEUED_HELD)
        assert next(single.stream()) == "begun"
        assert held.release().output() == "held"
        (tmp_path / "go").touch()
        assert ends_of(single) == [(JobState.FAILED, "exited", 7)]
        assert single.output() == "begun\nout"
        assert [status for _, _, status in ends_of(array)] == [0, 2, 4]
        assert list(array.outputs().values()) == [f"begun {index}\nout {index}" for index in (0, 2, 4)]
        template = single.template
        assert template is not None
        assert template.job_name == "single"
        for job in (early, single, held, array):
            assert job.reap_all().errors == []
    place.is_empty()


def test_ends_of_jobs_whose_pods_are_gone(place: Namespace, run: Programs) -> None:
    """Their Jobs tell: DONE, or FAILED without an exit status and with words; of an array each element by itself."""
    program = run(
        """
with Workflow(context(detach=True), raise_errors=True) as flow:
    jobs = [flow.run("true"), flow.run(shell("exit 3")), flow.run_array(3, shell("exit $((TASK_ID % 2))"))]
    for job in jobs:
        job.synchronize()
    print("over", flush=True)
"""
    )
    program.expect("over")
    program.finish()
    wait_until("the Jobs are over", lambda: all(_is_over(job) for job in place.found("jobs")))
    place.client.delete_all("pods", "wfl/session")
    wait_until("no pod is left", lambda: not place.found("pods"))
    with Workflow(place.context(detach=True), raise_errors=True) as flow:
        done, failed, array = flow.jobs()
        lost = (JobState.FAILED, "lost", None)
        assert ends_of(done) == [(JobState.DONE, "exited", 0)]
        assert ends_of(failed) == [lost]
        assert ends_of(array) == [lost, (JobState.DONE, "exited", 0), lost]
        (info,) = failed.infos()
        assert "its pod is gone, and its exit status with it" in (info.annotation or "")
        assert "succeeded" in (done.infos()[0].annotation or "")
        for job in (done, failed, array):
            assert job.reap_all().errors == []
    place.is_empty()


def _is_over(job: dict[str, Any]) -> bool:
    return {one["type"] for one in job["status"].get("conditions", ())} & {"Complete", "Failed"} != set()


# --- at any moment ----------------------------------------------------------------------------------------------

BURST = """
returned = os.open(f"{rest[0]}/returned", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
flow = Workflow(context(store=rest[0] + "/store", detach=True), raise_errors=True)
print("ready", flush=True)
line = 'echo $JOB_ID >>/shared/ran; cat /in/file 2>/dev/null; echo out $0; exit $(($0 % 3))'
for number in range(10):
    stage = {"/shared": "hostpath:" + rest[0]}
    if number % 4 == 1:
        stage["/in/file"] = "inline:inline "
    if number % 4 == 3:
        stage["/in/file"] = rest[0] + "/file"
    job = flow.run("sh", "-c", line, str(number), stage_in_files=stage)
    os.write(returned, f"{job.job_id}\\n".encode())
time.sleep(600)
"""


@pytest.mark.timeout(900)
def test_every_submission_is_accounted_for_once(place: Namespace, run: Programs, tmp_path: Path) -> None:
    """Programs that submit are killed at random moments, one after another, in one session: then a last one finds all.

    Each job has run once, and its end and output are told; or it never ran, and that is told. None is forgotten.
    """
    chance = random.Random(start := seed())  # noqa: S311 - moments, no secrets
    print("WFL_FAULTS_SEED", start)  # noqa: T201 - what repeats a failure
    (tmp_path / "file").write_text("copied")
    for _ in range(kills(20)):
        program = run(BURST, str(tmp_path))
        program.expect("ready")
        time.sleep(chance.uniform(0, chance.choice([0.1, 0.6])))
        program.kill()
    with Workflow(place.context(store=tmp_path / "store", detach=True), raise_errors=True) as flow:
        jobs = flow.jobs()
        for job in jobs:
            job.synchronize(5 * PATIENCE)
        ran = Counter((tmp_path / "ran").read_text().split())
        assert [id for id, times in ran.items() if times != 1] == [], "run twice"
        known = {job.job_id for job in jobs}
        assert len(known) == len(jobs)
        assert set(ran) <= known, "ran, and nobody knows of it"
        assert set((tmp_path / "returned").read_text().split()) <= known, "submitted and forgotten"
        for job in jobs:
            (info,) = job.infos()
            if job.job_id in ran:
                _is_true(job)
                assert job.errors == []
            else:
                assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "launch_failure", None)
                assert "never ran" in (info.annotation or "")
            job.reap_all()
    place.is_empty()


def _is_true(job: Job) -> None:
    """The end and the output that its number makes."""
    template, (info,) = job.template, job.infos()
    assert template is not None
    number = int((template.args or ())[2])
    words = {1: "inline ", 3: "copied"}.get(number % 4, "")
    assert (info.sub_state, info.exit_status) == ("exited", number % 3), info
    assert job.output() == f"{words}out {number}"

"""A Kubernetes whose daemons are away for a while: no job is lost, run twice or called failed for that.

Each test is a program of its own with jobs in a cluster of our own, as an outage is nothing to do to a shared one.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.kubernetes_own import OwnCluster, Programs, heard, namespace
from tests.faults.machine import PATIENCE, Program, slowness, wait_until
from wfl import Context

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AWAY = 20.0
"""Seconds that a daemon is away."""
TOLD = 15.0
"""Seconds after a return in which ends are told, on an idle machine: kubelets wait for ten before they try again."""

COMMON = """
place = rest[0]
shared = {"/shared": "hostpath:" + place}
def line(token, gate, ending):
    return f"echo {token} >>/shared/starts; until [ -e /shared/{gate} ]; do sleep 0.2; done; echo over; {ending}"
def leaves(job):
    return [leaf for task in job.tasks for leaf in getattr(task, "tasks", [task])]
def all_over(tasks, patience):
    until = time.monotonic() + patience
    while not all(task.state.ended for task in tasks) and time.monotonic() < until:
        time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[OwnCluster]:
    """A cluster of our own."""
    with OwnCluster() as found:
        yield found


@pytest.fixture
def run(cluster: OwnCluster, tmp_path: Path) -> Iterator[Programs]:
    """Starts programs in a namespace there; afterwards nothing of them is left."""
    with namespace(cluster.kubeconfig) as there:
        there.session = Context.unique_session_name()
        programs = Programs(there, tmp_path)
        yield programs
        cluster.start()
        programs.close()


def starts(place: Path) -> list[str]:
    """What each task has written at its beginning."""
    file = place / "starts"
    return sorted(file.read_text().split()) if file.exists() else []


# --- the API server ---------------------------------------------------------------------------------------------

# First the short outage: after a long one the cluster's own programs take a minute more to come back from another.

LOST = (
    COMMON
    + """
sent = []
stop = threading.Event()
with Workflow(context(detach=False, timeout=10.0)).raise_for_error() as flow:
    def submit():
        while not stop.is_set():
            token = f"s{len(sent)}"
            sent.append(flow.run(shell(f"echo {token} >>/shared/starts; exit 3", stage_in_files=shared)).tasks[0])
            time.sleep(0.02)
            if len(sent) >= 60:
                break
    sender = threading.Thread(target=submit)
    sender.start()
    while len(sent) < 5:
        time.sleep(0.001)
    say("sending")
    told("back")
    stop.set()
    sender.join()
    all_over(sent, 150)
    say("over", sent=[end(task) for task in sent])
"""
)


@pytest.mark.timeout(300)
def test_submissions_that_an_outage_meets(cluster: OwnCluster, run: Programs, tmp_path: Path) -> None:
    """Killed in the midst of many creations: those whose answers were lost run once, none twice, none is forgotten."""
    program = run(LOST, str(tmp_path))
    heard(program, "sending")
    cluster.strike("kube-apiserver", signal.SIGKILL)
    time.sleep(1.0)  # how long it is away
    cluster.start()
    program.say("back")
    over = heard(program, "over")
    program.finish()
    ran = []
    for n, (state, sub_state, status, words) in enumerate(over["sent"]):
        if sub_state == "launch_failure":
            assert (status, "never started" in words) == (None, True), words
        else:
            assert (state, sub_state, status) == ("failed", "exited", 3), words
            ran.append(f"s{n}")
    assert starts(tmp_path) == sorted(ran)
    assert len(ran) >= 5


OUTAGE = (
    COMMON
    + """
ENDS = ["exit 0", "exit 3", "kill -KILL $$", "kill -TERM $$"]
with Workflow(context(detach=False)).raise_for_error() as flow:
    singles = [flow.run(shell(line(f"d{n}", "during", ENDS[n]), stage_in_files=shared)).tasks[0] for n in range(4)]
    gate = '$([ "$TASK_ID" -le 16 ] && echo during || echo after)'
    ending = 'exit $((TASK_ID % 3))'
    array = flow.run_array(56, shell(line("e$TASK_ID", gate, ending), stage_in_files=shared), max_parallel=26)
    elements = leaves(array)
    for task in (*singles, *elements[:26]):
        task.wait_started(150)
    say("running")
    told("away")
    sent = []
    until = time.monotonic() + 6
    while time.monotonic() < until:
        token = f"s{len(sent)}"
        ending = f"exit {len(sent) % 2 * 3}"
        sent.append(flow.run(shell(f"echo {token} >>/shared/starts; {ending}", stage_in_files=shared)).tasks[0])
        time.sleep(0.5)
    open(f"{place}/during", "w").close()
    begin = time.monotonic()
    array.wait(timeout=1.0)
    waited = time.monotonic() - begin
    begin = time.process_time()
    time.sleep(5.0)
    cpu = time.process_time() - begin
    states = [task.state.value for task in (*singles, *elements)]
    say("waited", waited=waited, cpu=cpu, states=states)
    told("back")
    begin = time.monotonic()
    all_over([*singles, *elements[:16]], 100)
    took = time.monotonic() - begin
    open(f"{place}/after", "w").close()
    all_over([*singles, *elements, *sent], 150)
    ends = {f"d{n}": end(task) for n, task in enumerate(singles)}
    ends |= {f"e{n}": end(task) for n, task in enumerate(elements, 1)}
    say("over", took=took, ends=ends, sent=[end(task) for task in sent],
        outputs=sorted({task.output() for task in (*singles, *elements)}))
"""
)


@pytest.mark.timeout(400)
def test_jobs_outlive_an_absence_of_the_api_server(cluster: OwnCluster, run: Programs, tmp_path: Path) -> None:
    """Killed for 20 s with 30 tasks that run and 30 that wait: each runs once, and its end is told right afterwards.

    Nothing is called failed meanwhile, time-outs are kept, and no processor is used for waiting. What is submitted
    during the outage has run once, or was never started and says so.
    """
    program = run(OUTAGE, str(tmp_path))
    heard(program, "running")
    assert len(starts(tmp_path)) == 30
    cluster.strike("kube-apiserver", signal.SIGKILL)
    away = time.monotonic()
    program.say("away")
    said = heard(program, "waited")
    time.sleep(max(0.0, away + AWAY - time.monotonic()))  # how long it is away is what the test is about
    cluster.start()
    program.say("back")
    over = heard(program, "over")
    program.finish()
    assert said["waited"] < 1 + 2 * slowness()
    assert said["cpu"] < 0.5
    assert set(said["states"]) <= {"running", "queued"}
    assert over["took"] < TOLD * slowness()
    ends = [("done", "exited", 0), ("failed", "exited", 3), ("failed", "signaled", 137), ("failed", "signaled", 143)]
    expected = {f"d{n}": end for n, end in enumerate(ends)}
    expected |= {f"e{n}": ("failed" if n % 3 else "done", "exited", n % 3) for n in range(1, 57)}
    assert {token: tuple(end[:3]) for token, end in over["ends"].items()} == expected
    assert over["outputs"] == ["over"]
    ran = set(expected)
    for n, (state, sub_state, status, words) in enumerate(over["sent"]):
        if sub_state == "launch_failure":
            assert (status, "never started" in words) == (None, True), words
        else:
            assert (state, sub_state, status) == ("failed" if n % 2 else "done", "exited", n % 2 * 3)
            ran.add(f"s{n}")
    assert starts(tmp_path) == sorted(ran)
    assert over["sent"], "nothing was submitted meanwhile"


# --- the node, the controllers ----------------------------------------------------------------------------------

STOPPED = (
    COMMON
    + """
with Workflow(context(detach=False)).raise_for_error() as flow:
    tasks = [flow.run(shell(line(f"d{n}", "during", f"exit {n}"), stage_in_files=shared)).tasks[0] for n in range(3)]
    for task in tasks:
        task.wait_started(100)
    say("running")
    told("away")
    later = flow.run(shell("echo later >>/shared/starts; exit 5", stage_in_files=shared)).tasks[0]
    time.sleep(15.0)
    say("waited", states=[task.state.value for task in (*tasks, later)])
    told("back")
    begin = time.monotonic()
    all_over(tasks, 100)
    took = time.monotonic() - begin
    all_over([later], 100)
    say("over", took=took, ends=[end(task) for task in (*tasks, later)])
"""
)


@pytest.mark.timeout(300)
def test_jobs_outlive_a_silent_kubelet(cluster: OwnCluster, run: Programs, tmp_path: Path) -> None:
    """Stopped for 20 s while jobs end: nothing is told meanwhile, and all ends are told afterwards, as they were."""
    program = run(STOPPED, str(tmp_path))
    heard(program, "running")
    cluster.strike("kubelet", signal.SIGSTOP)
    away = time.monotonic()
    try:
        program.say("away")
        (tmp_path / "during").touch()
        said = heard(program, "waited")
        time.sleep(max(0.0, away + AWAY - time.monotonic()))
    finally:
        cluster.strike("kubelet", signal.SIGCONT)
    program.say("back")
    over = heard(program, "over")
    program.finish()
    assert said["states"] == ["running"] * 3 + ["queued"]
    assert over["took"] < TOLD * slowness()
    ends = [["done", "exited", 0], ["failed", "exited", 1], ["failed", "exited", 2], ["failed", "exited", 5]]
    assert [end[:3] for end in over["ends"]] == ends
    assert starts(tmp_path) == ["d0", "d1", "d2", "later"]


NO_CONTROLLER = (
    COMMON
    + """
with Workflow(context(detach=False)).raise_for_error() as flow:
    runs = flow.run(shell(line("d", "during", "exit 4"), stage_in_files=shared)).tasks[0]
    runs.wait_started(100)
    say("running")
    told("away")
    job = flow.run(shell("echo s >>/shared/starts; exit 3", stage_in_files=shared))
    held = flow.run(shell("echo h >>/shared/starts", stage_in_files=shared), submit_as_hold=True)
    array = flow.run_array(3, shell("echo e$TASK_ID >>/shared/starts", stage_in_files=shared))
    dropped = flow.run("true")
    dropped.kill().wait(30)
    held.release()
    open(f"{place}/during", "w").close()
    runs.wait_terminated(60)
    tasks = [job.tasks[0], held.tasks[0], *leaves(array)]
    say("waited", states=[task.state.value for task in tasks], ended=end(runs), dropped=end(dropped.tasks[0]))
    told("back")
    all_over(tasks, 150)
    say("over", ends=[end(task) for task in tasks])
"""
)


@pytest.mark.timeout(300)
def test_jobs_wait_for_the_controllers(cluster: OwnCluster, run: Programs, tmp_path: Path) -> None:
    """Without those that make pods: what is submitted is queued until their return, and what runs ends as ever."""
    program = run(NO_CONTROLLER, str(tmp_path))
    heard(program, "running")
    cluster.strike("kube-controller-manager", signal.SIGKILL)
    program.say("away")
    said = heard(program, "waited")
    cluster.start()
    program.say("back")
    over = heard(program, "over")
    program.finish()
    assert said["states"] == ["queued"] * 5
    assert said["ended"][:3] == ["failed", "exited", 4]
    assert said["dropped"][:3] == ["failed", "cancelled", None]
    ends = [["failed", "exited", 3], *[["done", "exited", 0]] * 4]
    assert [end[:3] for end in over["ends"]] == ends
    assert starts(tmp_path) == ["d", "e1", "e2", "e3", "h", "s"]


def test_the_helper_waits_for_the_api_server(cluster: OwnCluster, run: Programs, tmp_path: Path) -> None:
    """A program that dies while it is away: its jobs are ended as soon as it is there again."""
    program = run(STOPPED, str(tmp_path))
    heard(program, "running")
    cluster.strike("kube-apiserver", signal.SIGKILL)
    program.kill()
    cluster.start()
    _is_gone(program)


def _is_gone(program: Program) -> None:
    def processes() -> list[str]:
        return [one for one in program.left() if one.startswith("process ")]

    wait_until("none of its jobs runs", lambda: not processes(), 2 * PATIENCE)

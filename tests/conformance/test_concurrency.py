"""Many threads, many jobs, and nothing left over."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wfl import Capability, JobState, Workflow, as_completed, shell
from wfl.testing.conformance.site import Site, Trait, needs


def left_over() -> Counter[str]:
    """Threads, descriptors, child processes and temporary directories of this program."""
    gc.collect()
    found: Counter[str] = Counter(thread.name.rstrip("_0123456789") for thread in threading.enumerate())
    if os.path.isdir("/proc/self/fd"):
        found["descriptors"] = len(os.listdir("/proc/self/fd"))
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        found["children"] = len(children.read_text().split()) if children.exists() else 0
    mine = [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("wfl-")]
    found["temporary directories"] = sum(not name.startswith(("wfl-conformance", "wfl-stores")) for name in mine)
    return found


def settles(site: Site, before: Counter[str], what: str) -> None:
    """Wait until there is no more than before."""
    site.until(lambda: not left_over() - before, f"{what}: {left_over() - before} more than before")


def test_thousand_tasks(site: Site, flow: Workflow) -> None:
    """1,000 tasks submitted one by one all end well, each once."""
    count = site.many(1000)
    job = flow.new_job()
    for _ in range(count):
        job.run(site.succeed())
    assert Counter(info.state for info in job.synchronize().infos()) == {JobState.DONE: count}
    assert len({task.id for task in job.tasks}) == count


def test_thousand_elements(site: Site, flow: Workflow) -> None:
    """An array of 1,000 elements ends well, and `as_completed` hands out each once."""
    count = site.many(1000)
    job = flow.run_array(count, site.succeed())
    assert sorted(task.index or 0 for task in as_completed([job])) == list(range(1, count + 1))
    assert not job.any_failed()


def test_mixed_ends(site: Site, flow: Workflow) -> None:
    """Among hundreds of tasks every one has its own end."""
    count = site.many(250)
    job = flow.new_job()
    for number in range(count):
        job.run(site.fail(number % 7))
    assert [info.exit_status for info in job.synchronize().infos()] == [number % 7 for number in range(count)]


def test_threads_on_one_workflow(site: Site, flow: Workflow) -> None:
    """Sixteen threads that run, wait and chain on one workflow do not disturb each other."""

    def work(number: int) -> None:
        job = flow.new_job()
        for step in range(site.many(10, least=2)):
            status = (number + step) % 5
            job.run(site.fail(status)).wait()
            info = job.info()
            wrong.extend([] if info and info.exit_status == status else [f"not {status}: {info}"])

    wrong = list[str]()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert not wrong


def test_threads_on_one_job(site: Site, flow: Workflow) -> None:
    """A Job object may be used from several threads at once: no task is lost."""
    job = flow.new_job()
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(lambda: [job.run(site.succeed()) for _ in range(10)]) for _ in range(8)]:
            future.result()
    assert len(job.tasks) == 80
    assert not job.synchronize().any_failed()


def test_control_from_threads(site: Site, flow: Workflow) -> None:
    """Killing from many threads while others wait ends every task, and hangs nobody."""
    jobs = [flow.run(site.stay()) for _ in range(20)]
    with ThreadPoolExecutor(40) as pool:
        waits = [pool.submit(job.wait) for job in jobs]
        kills = [pool.submit(job.kill) for job in jobs]
        assert [wait.result().state for wait in waits] == [JobState.FAILED] * 20
        assert all(kill.result() for kill in kills)


def test_many_workflows(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """Ten workflows side by side in one program keep their jobs apart."""
    flows = [make_flow() for _ in range(10)]
    jobs = [flow.run(site.fail(number)) for number, flow in enumerate(flows)]
    assert [job.exit_status() for job in jobs] == list(range(10))
    assert [len(flow.jobs()) for flow in flows] == [1] * 10


def test_nothing_is_left(site: Site) -> None:
    """After closing a workflow that ran many jobs there are as many threads, descriptors, children and temporary
    files as before (design point 20).
    """

    def work() -> None:
        with Workflow(site.open()) as flow:
            flow.run_array(site.many(100, least=2), site.succeed()).wait()
            flow.run(site.stay()).wait(timeout=0).kill()
            flow.run(site.fail(1)).has_any_failed()

    work()
    before = left_over()
    for _ in range(3):
        work()
    settles(site, before, "after closing")


def test_nothing_grows(site: Site, flow: Workflow) -> None:
    """Threads and descriptors do not grow with the number of jobs that have run and were reaped (design point 20)."""
    flow.run_array(20, site.succeed()).wait().reap_all()
    before = left_over()
    for _ in range(5):
        flow.run_array(site.many(100, least=2), site.succeed()).wait().reap_all()
    settles(site, before, "after reaping")


@needs(Trait.CLOCK)
def test_waiting_threads(site: Site, flow: Workflow) -> None:
    """A hundred running jobs take no thread each (design point 25)."""
    flow.run(site.stay())
    before = threading.active_count()
    count = site.many(100)
    job = flow.run_array(count, site.stay())
    for task in job.tasks:
        task.wait_started(site.within(120))
    assert threading.active_count() - before <= 12 < count
    job.kill().wait(site.within(60))


@needs(Trait.LOCAL)
def test_descriptors_are_not_inherited(flow: Workflow) -> None:
    """Descriptors that the program has open do not leak into jobs."""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        found = flow.run("ls", "/proc/self/fd").output().split()
        assert set(found) <= {"0", "1", "2", "3"}
    finally:
        os.close(read)
        os.close(write)


@needs(Trait.EXECUTION, Capability.OUTPUT)
def test_output_of_many(flow: Workflow, site: Site) -> None:
    """The outputs of hundreds of jobs are each their own."""
    count = site.many(200)
    job = flow.new_job()
    for number in range(count):
        job.run(shell(f"echo {number}"))
    assert list(job.outputs().values()) == [str(number) for number in range(count)]

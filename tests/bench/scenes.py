"""What wfl does while it is measured; `profile` runs the same once."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.measure import children_us, cpu_us, keepers
from tests.bench.references import TRUE
from wfl import JobTemplate, Workflow
from wfl.contexts.process import ProcessContext

if TYPE_CHECKING:
    from wfl import Job
    from wfl.drmaa2 import TemplateFields

NULL: TemplateFields = {"output_path": os.devnull, "error_path": os.devnull}
KEPT: TemplateFields = {}
WARM = 64
"""Tasks run before the measurement: enough for all keepers to be started."""


@dataclass
class Cost:
    """What a number of tasks cost. CPU is µs per task: of the program, of its keepers, of the tasks themselves."""

    tasks: int
    seconds: float
    submitting: float
    program_us: float
    keepers_us: float
    children_us: float

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return self.tasks / self.seconds


@contextmanager
def workflow(*, store: bool = False, warm: bool = True) -> Iterator[Workflow]:
    """A workflow of its own, its keepers running unless it is to be measured cold."""
    with tempfile.TemporaryDirectory(prefix="wfl-bench-") as place:
        context = ProcessContext(store=f"{place}/store" if store else None)
        with Workflow(context, raise_errors=True) as flow:
            if warm:
                warmed = flow.run_array(WARM, TRUE)
                check(warmed)
                warmed.reap_all()
            yield flow


def check(job: Job) -> None:
    """Wait for all; a bench that measures failures is worth nothing."""
    failed = job.synchronize().failed()
    if failed:
        raise RuntimeError(f"{len(failed)} tasks failed, the first: {failed[0].info()}")


def array(tasks: int, fields: TemplateFields = KEPT, *, store: bool = False, warm: bool = True) -> Cost:
    """One array, awaited."""
    with workflow(store=store, warm=warm) as flow:
        return cost(tasks, lambda job: job.run_array(tasks, TRUE, **fields), flow)


def singles(tasks: int, fields: TemplateFields = KEPT, *, store: bool = False) -> Cost:
    """As many run(), then synchronize()."""

    def submit(job: Job) -> None:
        for _ in range(tasks):
            job.run(TRUE, **fields)

    with workflow(store=store) as flow:
        return cost(tasks, submit, flow)


def chain(links: int, fields: TemplateFields = KEPT) -> Cost:
    """A chain of as many links, each waiting for the one before."""

    def submit(job: Job) -> None:
        for _ in range(links):
            job.then_run(TRUE, **fields)
        job.wait()

    with workflow() as flow:
        job = flow.run(TRUE)
        return cost(links, submit, flow, job)


def cost(tasks: int, submit: Callable[[Job], object], flow: Workflow, job: Job | None = None) -> Cost:
    """Submit, wait for all, and say what it took."""
    job = job or flow.new_job()
    helpers = keepers()
    cpu = [time.process_time() * 1e6, sum(map(cpu_us, helpers)), sum(map(children_us, helpers))]
    begin = time.perf_counter()
    submit(job)
    submitted = time.perf_counter()
    job.synchronize()
    end = time.perf_counter()
    check(job)
    helpers = keepers()
    cpu_after = [time.process_time() * 1e6, sum(map(cpu_us, helpers)), sum(map(children_us, helpers))]
    program, keeping, children = ((after - was) / tasks for was, after in zip(cpu, cpu_after, strict=True))
    return Cost(tasks, end - begin, submitted - begin, program, keeping, children)


def latencies(samples: int, child: list[str]) -> list[float]:
    """µs from a child's clock, read just before its end, to wait() returning."""
    found = []
    with workflow() as flow:
        for _ in range(samples):
            job = flow.run(child[0], *child[1:]).wait()
            seen = time.monotonic_ns()
            found.append((seen - int(job.output())) / 1000)
            job.reap_all()
    return found


def templates(count: int) -> None:
    """Make as many templates as most scripts would."""
    for _ in range(count):
        JobTemplate(remote_command="python", args=("train.py", "--rate", "0.1"), job_name="train")

"""Measures that need a program of their own: `python -m tests.bench.alone NAME NUMBER` prints figures as JSON."""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from typing import TYPE_CHECKING

import psutil

from tests.bench.measure import cpu_us, keepers, peak_mib, proportional_mib, resident_mib
from tests.bench.references import ROOT, TRUE, compiled
from tests.bench.scenes import check, workflow

if TYPE_CHECKING:
    from wfl import Workflow

Figures = dict[str, float]

DESCRIPTORS = 1024
BATCH = 2000
SETTLING = 6.0
"""Seconds after which threads without work have ended."""


def measure(name: str, number: int, *more: float, **environment: str) -> Figures:
    """Run one of these in a program of its own, and return its figures."""
    command = [sys.executable, "-m", "tests.bench.alone", name, str(number), *map(str, more)]
    done = subprocess.run(command, cwd=ROOT, env=compiled() | environment, stdout=subprocess.PIPE, check=True)
    figures: Figures = json.loads(done.stdout)
    return figures


def family() -> list[psutil.Process]:
    """This program and its keepers."""
    return [psutil.Process(), *keepers()]


def in_flight(tasks: int, seconds: float) -> Figures:
    """So many sleeping tasks at once: how fast they start, and what waiting costs for some seconds."""
    with workflow() as flow:
        before = sum(map(resident_mib, family()))
        begin = time.perf_counter()
        job = flow.run_array(tasks, "sleep", "300")
        submitted = time.perf_counter()
        job.tasks[0].wait_started()
        started = time.perf_counter()
        all_of_us = family()
        cpu = time.process_time() * 1e6 + sum(map(cpu_us, all_of_us[1:]))
        time.sleep(seconds)
        used = time.process_time() * 1e6 + sum(map(cpu_us, all_of_us[1:])) - cpu
        figures = {
            "start_rate": tasks / (started - begin),
            "submit_s": submitted - begin,
            "threads": sum(process.num_threads() for process in all_of_us),
            "keepers": len(all_of_us) - 1,
            "before_mib": before,
            "resident_mib": sum(map(resident_mib, all_of_us)),
            "proportional_mib": sum(map(proportional_mib, all_of_us)),
            "program_mib": resident_mib(all_of_us[0]),
            "cpu_percent": used / seconds / 1e4,
        }
        begin = time.perf_counter()
        job.kill_all().synchronize()
        figures["kill_s"] = time.perf_counter() - begin
        job.failed()  # they were killed: seen, and no reason for a warning
        return figures


def kept(tasks: int) -> Figures:
    """Memory per finished task: held by the program after reap, before it, and the growth over many batches."""
    with workflow() as flow:
        figures = {
            "reaped_bytes": traced(flow, reap=True),
            "unreaped_bytes": traced(flow, reap=False),
        }
        batch(flow, min(BATCH, tasks))  # the allocators have what they need from now on
        sizes = []
        for _ in range(max(2, tasks // BATCH)):
            batch(flow, min(BATCH, tasks))
            gc.collect()
            sizes.append(sum(map(resident_mib, family())) * (1 << 20))
        half = len(sizes) // 2
        done = len(sizes) * min(BATCH, tasks)
        figures["growth_bytes"] = (sizes[-1] - sizes[0]) / (done - min(BATCH, tasks))
        figures["late_growth_bytes"] = (sizes[-1] - sizes[half - 1]) / (done / 2)
        figures["resident_mib"] = sizes[-1] / (1 << 20)
        return figures


def batch(flow: Workflow, tasks: int) -> None:
    """An array from its beginning to its removal."""
    job = flow.run_array(tasks, TRUE)
    check(job)
    job.reap_all()


def traced(flow: Workflow, *, reap: bool) -> float:
    """Bytes per task of an ended array that the script still holds, with output kept."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    job = flow.run_array(BATCH, TRUE)
    check(job)
    if reap:
        job.reap_all()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    job.reap_all()
    return (after - before) / BATCH


def wide(tasks: int) -> Figures:
    """An array far wider than the limit of open files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    with workflow() as flow:
        begin = time.perf_counter()
        check(flow.run_array(tasks, TRUE))
        return {
            "seconds": time.perf_counter() - begin,
            "program_mib": peak_mib(psutil.Process()),
            "keepers_mib": sum(map(peak_mib, keepers())),
        }


def first(_: int) -> Figures:
    """From Workflow() to the end of its first task, as a user's fresh program has it."""
    from wfl import Workflow

    begin = time.perf_counter()
    with Workflow() as flow:
        opened = time.perf_counter()
        flow.run(TRUE).wait()
        ended = time.perf_counter()
    closed = time.perf_counter()
    return {
        "open_ms": (opened - begin) * 1000,
        "first_ms": (ended - begin) * 1000,
        "close_ms": (closed - ended) * 1000,
    }


def containers(tasks: int, seconds: float) -> Figures:
    """So many sleeping containers of the daemon at DOCKER_HOST at once, and what waiting costs for some seconds."""
    from wfl import Context, JobTemplate, Workflow
    from wfl.contexts.docker import DockerContext

    offline = JobTemplate(extensions={"network": "none"})
    session = Context.unique_session_name()
    with Workflow(DockerContext(image="busybox", session_name=session, default_template=offline)) as flow:
        check(flow.run("true"))
        program, helper = psutil.Process(), undertaker()
        before = resident_mib(program)
        begin = time.perf_counter()
        job = flow.run_array(tasks, "sleep", "100000")
        job.tasks[0].wait_started()
        started = time.perf_counter()
        time.sleep(SETTLING)
        waiting_from, cpu = time.monotonic(), time.process_time() * 1e6 + cpu_us(helper)
        time.sleep(seconds)
        waiting_to, used = time.monotonic(), time.process_time() * 1e6 + cpu_us(helper) - cpu
        figures = {
            "waiting_from": waiting_from,
            "waiting_to": waiting_to,
            "start_rate": tasks / (started - begin),
            "threads": program.num_threads(),
            "helper_threads": helper.num_threads(),
            "before_mib": before,
            "program_mib": resident_mib(program),
            "helper_mib": resident_mib(helper),
            "cpu_percent": used / seconds / 1e4,
        }
        begin = time.perf_counter()
        job.kill_all().synchronize()
        killed = time.perf_counter()
        job.failed()  # they were killed: seen, and no reason for a warning
        job.reap_all()
        return {**figures, "kill_s": killed - begin, "reap_s": time.perf_counter() - killed}


def undertaker() -> psutil.Process:
    """The process that ends the jobs of this program if it dies."""
    return next(one for one in psutil.Process().children() if any("import vigil" in word for word in one.cmdline()))


def cluster(tasks: int, seconds: float) -> Figures:
    """So many sleeping elements at once, at the scheduler that WFL_BENCH_CLUSTER names."""
    from tests.bench import clusters

    return clusters.alone_in_flight(tasks, seconds)


def held(tasks: int, seconds: float) -> Figures:
    """So many Jobs of Kubernetes that are held, in the namespace that WFL_BENCH_NAMESPACE names."""
    from tests.bench import kubernetes

    return kubernetes.alone_held(tasks, seconds)


MEASURES = {
    "in_flight": in_flight,
    "kept": kept,
    "wide": wide,
    "first": first,
    "containers": containers,
    "cluster": cluster,
    "held": held,
}


def main(name: str, number: str, *more: str) -> None:
    """Print the figures of one measure."""
    figures = MEASURES[name](int(number), *map(float, more))  # type: ignore[operator]
    print(json.dumps(figures))


if __name__ == "__main__":
    os.chdir(ROOT)
    main(*sys.argv[1:])

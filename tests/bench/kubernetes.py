"""The lines for Kubernetes: what wfl does with a real cluster, beside kubectl in the same run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import psutil

from tests.bench import alone, apiserver
from tests.bench.apiserver import IMAGE, Ends, Object, by_hand
from tests.bench.measure import Goal, Row, Scale, cpu_us, in_turn, percentile, resident_mib, row
from tests.bench.scenes import check
from wfl import Context, Workflow

if TYPE_CHECKING:
    from wfl import Job
    from wfl.contexts.kubernetes.client import Client

NAMESPACE = "WFL_BENCH_NAMESPACE"
"""The variable that names the namespace for a program of its own."""
KUBECTL = "kubectl apply, kubectl wait"
CLUSTER = "what the cluster gives: kubectl apply to the last pod's end"
NAP = 0.3
"""Seconds that a job of the latency line lives."""
SETTLING = 10.0
"""Seconds after which what submitting has caused is over."""


@contextmanager
def workflow(space: str) -> Iterator[Workflow]:
    """A workflow whose connections, watches and helper are there."""
    from wfl.contexts.kubernetes import KubernetesContext

    context = KubernetesContext(
        image=IMAGE,
        kubeconfig=apiserver.kubeconfig(),
        namespace=space,
        session_name=Context.unique_session_name(),
    )
    with Workflow(context, raise_errors=True) as flow:
        job = flow.run("true")
        check(job)
        job.reap_all()
        apiserver.empty(space)
        yield flow


def client(flow: Workflow) -> Client:
    """What asks the API server, and counts its requests."""
    from wfl.contexts.kubernetes.backend import KubernetesBackend

    assert flow.session is not None
    assert isinstance(flow.session.backend, KubernetesBackend)
    return flow.session.backend._client  # noqa: SLF001 - nothing else counts them


# -- what wfl does -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a number of tasks cost, up to the end of the wait: all of them in seconds, each in all else."""

    seconds: float
    submitting_ms: float
    program_us: float
    requests: float
    requests_reaped: float
    """With those that remove it."""


def singles(space: str, tasks: int) -> Cost:
    """As many run(), then synchronize()."""

    def submit(job: Job) -> None:
        for _ in range(tasks):
            job.run("true")

    return cost(space, tasks, submit)


def array(space: str, tasks: int) -> Cost:
    """One array, awaited."""
    return cost(space, tasks, lambda job: job.run_array(tasks, "true"))


def cost(space: str, tasks: int, submit: Callable[[Job], object]) -> Cost:
    """Submit, wait for all, remove all, and say what it took."""
    with workflow(space) as flow:
        job, asking = flow.new_job(), client(flow)
        asked, cpu, begin = asking.requests, time.process_time(), time.perf_counter()
        submit(job)
        submitted = time.perf_counter()
        job.synchronize()
        end = time.perf_counter()
        used, ended = time.process_time() - cpu, asking.requests
        check(job)
        job.reap_all()
        reaped = asking.requests
    apiserver.empty(space)
    return Cost(
        seconds=end - begin,
        submitting_ms=(submitted - begin) * 1e3 / tasks,
        program_us=used * 1e6 / tasks,
        requests=(ended - asked) / tasks,
        requests_reaped=(reaped - asked) / tasks,
    )


# -- lines -------------------------------------------------------------------------------------------------------------


def rates(
    full: tuple[int, int, int], ours: Callable[[str, int], Cost], theirs: Callable[[int], list[Object]]
) -> Callable[[Scale], list[Row]]:
    """Pods a second of so many (all, with --quick) in so many rounds, from the submission to the end of the wait."""

    def line(scale: Scale) -> list[Row]:
        n, costs, given = scale.of(*full[:2]), list[Cost](), list[float]()
        name = f"{n:,} pods, to the end of the wait"
        with apiserver.namespace() as space, closing(Ends(space)) as ends:

            def wfl() -> float:
                costs.append(ours(space, n))
                return n / costs[-1].seconds

            def hand() -> float:
                run = by_hand(space, theirs(n), ends)
                given.append(n / run.to_last_end)
                return n / run.seconds

            found = in_turn({name: wfl, KUBECTL: hand}, scale.of(full[2], 1))
        return [
            row(name, "/s", found[name], (KUBECTL, found[KUBECTL]), Goal("at least", 1.0)),
            row(name, "/s", found[name], (CLUSTER, given), Goal("at least", 0.95)),
            Row("requests", median(one.requests for one in costs), "", "per task"),
            Row("requests, reap_all() included", median(one.requests_reaped for one in costs), "", "per task"),
            Row("CPU of the program", median(one.program_us for one in costs), "µs", "per task"),
            Row("time to submit", median(one.submitting_ms for one in costs), "ms", "per task"),
        ]

    return line


def latency(scale: Scale) -> list[Row]:
    """From the moment at which another watch tells that main has terminated to wait() returning."""
    n, after = scale.of(20, 3), []
    with apiserver.namespace() as space, closing(Ends(space)) as ends, workflow(space) as flow:
        for _ in range(n):
            job = flow.run("sleep", str(NAP)).wait()
            seen = time.monotonic_ns()
            after.append((seen - ends.last({f"wfl-{job.job_id}"})) / 1e6)
            check(job)
            job.reap_all()
    note = f"after another watch told of main's end, of {n}"
    return [
        Row("wait() returns, p50", median(after), "ms", note, goal=Goal("at most", 100, " ms")),
        Row("wait() returns, p90", percentile(after, 0.9), "ms", note),
    ]


def held(scale: Scale) -> list[Row]:
    """Many Jobs that are held, and what they cost."""
    n = scale.of(5000, 20)
    with apiserver.namespace() as space:
        found = alone.measure("held", n, scale.of(20, 2), **{NAMESPACE: space})
    name = f"{n:,} held"
    return [
        Row(f"{name}: time to submit", found["submit_s"], "s"),
        Row(f"{name}: resident", found["program_mib"], "MiB", f"the program; {found['before_mib']:.0f} before",
            goal=Goal("at most", 80, " MiB")),
        Row(f"{name}: resident, helper", found["helper_mib"], "MiB", "which ends the jobs of a killed program"),
        Row(f"{name}: threads", found["threads"], "", "of the program"),
        Row(f"{name}: CPU while waiting", found["cpu_percent"], "%", "program and helper"),
        Row(f"{name}: requests while waiting", found["requests"], "", f"in {found['seconds']:.0f} s"),
        Row(f"{name}: kill_all() returns", found["kill_s"], "s", f"after {found['kill_requests']:.0f} requests"),
        Row(f"{name}: all ends are known", found["ended_s"], "s", "after kill_all() was called"),
        Row(f"{name}: time to reap all", found["reap_s"], "s", f"{found['reap_requests']:.0f} requests"),
    ]  # fmt: skip


def alone_held(tasks: int, seconds: float) -> alone.Figures:
    """What the program of its own does, in the namespace that a variable names."""
    with workflow(os.environ[NAMESPACE]) as flow:
        program, helper, asking = psutil.Process(), alone.undertaker(), client(flow)
        before = resident_mib(program)
        job, begin = flow.new_job(), time.perf_counter()
        for _ in range(tasks):
            job.run("true", submit_as_hold=True)
        submitted = time.perf_counter()
        time.sleep(SETTLING)
        asked, cpu, clock = asking.requests, time.process_time() * 1e6 + cpu_us(helper), time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - clock
        used = time.process_time() * 1e6 + cpu_us(helper) - cpu
        figures = {
            "seconds": passed,
            "submit_s": submitted - begin,
            "before_mib": before,
            "program_mib": resident_mib(program),
            "helper_mib": resident_mib(helper),
            "threads": program.num_threads(),
            "cpu_percent": used / passed / 1e4,
            "requests": asking.requests - asked,
        }
        asked, begin = asking.requests, time.perf_counter()
        job.kill_all()
        figures |= {"kill_s": time.perf_counter() - begin, "kill_requests": asking.requests - asked}
        job.synchronize()
        ended = time.perf_counter()
        figures["ended_s"] = ended - begin
        job.failed()  # they were killed: seen, and no reason for a warning
        asked = asking.requests
        job.reap_all()
        return {**figures, "reap_s": time.perf_counter() - ended, "reap_requests": asking.requests - asked}


def once(ours: Callable[[str, int], Cost], tasks: int) -> Callable[[], object]:
    """What `profile` runs."""

    def scene() -> None:
        with apiserver.namespace() as space:
            ours(space, tasks)

    return scene


LINES: dict[str, tuple[Callable[[Scale], list[Row]], Callable[[], object] | None]] = {
    "kubernetes-singles": (rates((60, 4, 3), singles, apiserver.singles), once(singles, 60)),
    "kubernetes-array": (rates((200, 6, 2), array, apiserver.array), once(array, 200)),
    "kubernetes-latency": (latency, None),
    "kubernetes-held": (held, None),
}
"""By name: what measures, what `profile` runs."""

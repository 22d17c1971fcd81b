"""The lines for clusters: what wfl does with a real scheduler, beside the same by hand in the same run."""

from __future__ import annotations

import importlib.util
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from unittest.mock import patch

import psutil

from tests.bench import alone
from tests.bench.measure import Goal, Row, Scale, cpu_us, in_turn, percentile, resident_mib, row
from tests.bench.references import TRUE
from tests.bench.scenes import check
from tests.bench.schedulers import GridEngine, Run, Scheduler, Slurm
from wfl import Context, TaskArray, Workflow

if TYPE_CHECKING:
    from wfl import Job
    from wfl.contexts.batch.command import Commands
    from wfl.contexts.batch.engine import BatchBackend

CLUSTER = "WFL_BENCH_CLUSTER"
"""The variable that names the cluster for a program of its own."""
ROUNDS = 2
SETTLING = 10.0
"""Seconds after which questions have become as rare as they will."""
NAPS = [0.3 + 0.13 * number for number in range(10)]
"""Seconds that jobs of the latency line live: short, and at no fixed place in an interval of questions."""
R = TypeVar("R", bound=Run)
TOTAL = Goal("at most", 1.1)
PER_TASK = Goal("at most", 0.01)


@dataclass(frozen=True)
class Cluster:
    """A scheduler, and wfl's context for it. `latency`: the goal in seconds, from the scheduler's own end mark."""

    name: str
    context: str
    scheduler: Scheduler
    latency: float = 0.5

    @property
    def drmaa(self) -> bool:
        """Whether it is used through the library, which reads this process's own environment."""
        return self.context == "drmaa"

    def lacks(self) -> str | None:
        """Why nothing can be measured here; None if something can."""
        if self.drmaa and importlib.util.find_spec("drmaa") is None:
            return "the package drmaa is not installed"
        return self.scheduler.lacks()


_GRID_ENGINE = GridEngine("sge")
CLUSTERS = {
    cluster.name: cluster
    for cluster in (
        Cluster("slurm", "slurm", Slurm("slurm")),
        Cluster("slurm-plain", "slurm", Slurm("slurm-plain")),
        Cluster("grid-engine", "gridengine", _GRID_ENGINE),
        Cluster("drmaa", "drmaa", _GRID_ENGINE, latency=0.1),
    )
}


@contextmanager
def workflow(cluster: Cluster, *, detach: bool = True) -> Iterator[Workflow]:
    """A workflow with a directory of its own; what goes wrong ends its jobs."""
    variables = cluster.scheduler.variables
    settings: dict[str, Any] = {} if cluster.drmaa else {"environment": variables}
    with (
        tempfile.TemporaryDirectory(prefix="wfl-bench-", ignore_cleanup_errors=True) as place,
        patch.dict(os.environ, variables if cluster.drmaa else {}),
        Workflow(Context.named(cluster.context, directory=place, detach=detach, **settings), raise_errors=True) as flow,
    ):
        try:
            yield flow
        except BaseException:
            flow.kill_all()
            raise


def commands(flow: Workflow) -> Commands:
    """What runs the scheduler's commands, and counts them."""
    return backend(flow).client.commands


def backend(flow: Workflow) -> BatchBackend:
    """The workflow's."""
    from wfl.contexts.batch.engine import BatchBackend

    assert flow.session is not None
    assert isinstance(flow.session.backend, BatchBackend)
    return flow.session.backend


# -- what wfl does -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cost(Run):
    """What a number of tasks cost. CPU is µs per task: of the program, and of the commands that it ran."""

    submitting: float
    commands: int
    calls: Counter[str]
    program_us: float
    commands_us: float


def array(cluster: Cluster, tasks: int) -> Cost:
    """One array, awaited."""
    return cost(cluster, tasks, lambda job: job.run_array(tasks, TRUE))


def singles(cluster: Cluster, tasks: int) -> Cost:
    """As many run(), then synchronize()."""

    def submit(job: Job) -> None:
        for _ in range(tasks):
            job.run(TRUE)

    return cost(cluster, tasks, submit)


def cost(cluster: Cluster, tasks: int, submit: Callable[[Job], object]) -> Cost:
    """Submit, wait for all, remove all, and say what it took up to the end of the wait."""
    with workflow(cluster) as flow:
        job, calls = flow.new_job(), library_calls(cluster)
        begin, cpu, children = time.time(), time.process_time(), _children_s()
        clock = time.perf_counter()
        submit(job)
        submitted = time.perf_counter()
        job.synchronize()
        end = time.perf_counter()
        used, theirs, asked = time.process_time() - cpu, _children_s() - children, commands(flow).count
        check(job)
        place = backend(flow).place
        ids = [
            id
            for given in place.accepted([entry.key for entry in place.all_entries()]).values()
            for id in given.values()
        ]
        job.reap_all()
        return Cost(
            begin=begin,
            seconds=end - clock,
            ids=ids,
            submitting=submitted - clock,
            commands=asked,
            calls=library_calls(cluster) - calls,
            program_us=used * 1e6 / tasks,
            commands_us=theirs * 1e6 / tasks,
        )


def library_calls(cluster: Cluster) -> Counter[str]:
    """What the DRMAA library has been asked in its session, by the names of its calls."""
    if not cluster.drmaa:
        return Counter()
    from wfl.contexts.drmaa.library import connection

    return Counter(connection.library.calls)


def _children_s() -> float:
    """CPU seconds of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# -- lines -------------------------------------------------------------------------------------------------------------


@dataclass
class Side(Generic[R]):
    """One of two that are compared: what its runs have found, and what the scheduler's clients asked it meanwhile."""

    scheduler: Scheduler
    run: Callable[[], R]
    found: list[R] = field(default_factory=list)
    requests: list[Counter[str]] = field(default_factory=list)
    to_last_end: list[float] = field(default_factory=list)

    def seconds(self) -> float:
        """Run once."""
        before = self.scheduler.requests()
        self.found.append(self.run())
        after = self.scheduler.requests()
        if before is not None and after is not None:
            self.requests.append(after - before)
        last = self.scheduler.to_last_end(self.found[-1])
        if last is not None:
            self.to_last_end.append(last)
        return self.found[-1].seconds


def totals(
    cluster: Cluster,
    full: tuple[int, int],
    ours: Callable[[Cluster, int], Cost],
    theirs: Callable[[Scheduler, int], Run],
    per_task: Goal | None,
) -> Callable[[Scale], list[Row]]:
    """Seconds for so many tasks (all, or with --quick), from the submission to the return of the wait, beside by hand.

    `per_task`: the goal for commands and requests.
    """

    def line(scale: Scale) -> list[Row]:
        n, scheduler = scale.of(*full), cluster.scheduler
        mine = Side(scheduler, lambda: ours(cluster, n))
        hand = Side(scheduler, lambda: theirs(scheduler, n))
        found = in_turn({"wfl": mine.seconds, "hand": hand.seconds}, ROUNDS)
        rows = [row(f"{n:,} tasks, in all", "s", found["wfl"], (scheduler.wait, found["hand"]), TOTAL)]
        if mine.to_last_end:
            rows += [row("until the last end in the list", "s", mine.to_last_end, (scheduler.wait, hand.to_last_end))]
        return [
            *rows,
            *costs(mine.found, n, per_task),
            *requests(mine, n, "RPCs", per_task),
            *requests(hand, n, "RPCs by hand", None),
        ]

    return line


def costs(of: Sequence[Cost], n: int, goal: Goal | None) -> list[Row]:
    """What a task costs the program and those that it asks."""
    calls: Counter[str] = sum((one.calls for one in of), Counter())
    told = ", ".join(f"{count / n / len(of):.3g} {kind}" for kind, count in calls.most_common(4))
    return [
        Row("time to submit", median(one.submitting for one in of), "s"),
        Row("CPU of the program", median(one.program_us for one in of), "µs", "per task"),
        Row("CPU of its commands", median(one.commands_us for one in of), "µs", "per task"),
        Row("commands", median(one.commands for one in of) / n, "", "per task", goal=goal),
        *([Row("calls of the library", calls.total() / n / len(of), "", f"per task: {told}")] if calls else []),
    ]


def requests(side: Side[Any], n: int, name: str, goal: Goal | None) -> list[Row]:
    """RPCs of clients, where the scheduler counts them."""
    if not side.requests:
        return []
    rounds, kinds = len(side.requests), sum(side.requests, Counter())
    told = ", ".join(f"{count / rounds:g} {kind}" for kind, count in kinds.most_common(5))
    return [Row(name, kinds.total() / n / rounds, "", f"per task; in all: {told}", goal=goal)]


def latency(cluster: Cluster) -> Callable[[Scale], list[Row]]:
    """From the end of a single job, by the scheduler's mark and by the job's own record, to wait() returning."""

    def line(scale: Scale) -> list[Row]:
        n = scale.of(30, 4)
        after_record: list[float] = []
        after_mark: list[float] = []
        with workflow(cluster) as flow:
            for number in range(n):
                job = flow.run("sleep", f"{NAPS[number % len(NAPS)]:.2f}").wait()
                now = time.time()
                mark = cluster.scheduler.noted(job.job_id)
                after_record.append(now - record(flow))
                after_mark += [] if mark is None else [now - mark]
                check(job)
                job.reap_all()
            asked = commands(flow).count / n
        goal = Goal("at most", cluster.latency, " s")
        rows = []
        if after_mark:
            note = f"after the scheduler's own record, of {len(after_mark)}"
            rows += spread("wait() returns", after_mark, note, goal)
        return [
            *rows,
            *spread(
                "wait() returns",
                after_record,
                f"after the job's own record, of {n}",
                None if cluster.scheduler.notes else goal,
            ),
            Row("commands", asked, "", "per task"),
        ]

    return line


def record(flow: Workflow) -> float:
    """When the only job that was not reaped wrote down its end, which is the last that it does."""
    return max(path.stat().st_mtime for path in Path(backend(flow).place.root).glob("*/end/*"))


def spread(name: str, seconds: list[float], note: str, goal: Goal | None) -> list[Row]:
    """The median, which has the goal, and the 90th percentile."""
    return [
        Row(f"{name}, p50", median(seconds), "s", note, goal=goal),
        Row(f"{name}, p90", percentile(seconds, 0.9), "s", note),
    ]


def in_flight(cluster: Cluster) -> Callable[[Scale], list[Row]]:
    """Many elements that sleep or wait in the queue, and what that costs."""

    def line(scale: Scale) -> list[Row]:
        n = scale.of(10_000, 20)
        found = alone.measure("cluster", n, scale.of(20, 2), **{CLUSTER: cluster.name})
        name = f"{n:,} in flight"
        return [
            Row(f"{name}: time to submit", found["submit_s"], "s"),
            Row(f"{name}: resident", found["program_mib"], "MiB", f"the program; {found['before_mib']:.0f} before"),
            Row(f"{name}: resident, helper", found["helper_mib"], "MiB", "which ends the jobs of a killed program"),
            Row(f"{name}: threads", found["threads"], "", "of the program"),
            Row(f"{name}: CPU while waiting", found["cpu_percent"], "%", "program and helper"),
            Row(f"{name}: CPU of its commands", found["commands_percent"], "%", "meanwhile"),
            Row(f"{name}: commands while waiting", found["commands"], "", f"in {found['seconds']:.0f} s"),
            Row(f"{name}: kill_all() returns", found["kill_s"], "s", f"after {found['kill_commands']:.0f} commands"),
            Row(f"{name}: all ends are known", found["ended_s"], "s", "after kill_all() was called"),
            Row(f"{name}: commands for the ends", found["end_commands"], "", "with those of kill_all()"),
            Row(f"{name}: time to reap all", found["reap_s"], "s"),
        ]

    return line


def alone_in_flight(tasks: int, seconds: float) -> alone.Figures:
    """What the program of its own does, at the cluster that a variable names."""
    with workflow(CLUSTERS[os.environ[CLUSTER]], detach=False) as flow:
        program, asking = psutil.Process(), commands(flow)
        before = resident_mib(program)
        begin = time.perf_counter()
        job = flow.run_array(tasks, "sleep", "100000")
        submitted = time.perf_counter()
        (elements,) = job.tasks
        assert isinstance(elements, TaskArray)
        elements.tasks[0].wait_started()
        time.sleep(SETTLING)
        helper = alone.undertaker()
        asked, children = asking.count, _children_s()
        cpu, clock = time.process_time() * 1e6 + cpu_us(helper), time.monotonic()
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
            "commands_percent": (_children_s() - children) / passed * 100,
            "commands": asking.count - asked,
        }
        asked, begin = asking.count, time.perf_counter()
        job.kill_all()
        figures |= {"kill_s": time.perf_counter() - begin, "kill_commands": asking.count - asked}
        job.synchronize()
        ended = time.perf_counter()
        figures |= {"ended_s": ended - begin, "end_commands": asking.count - asked}
        job.failed()  # they were killed: seen, and no reason for a warning
        job.reap_all()
        return {**figures, "reap_s": time.perf_counter() - ended}


LINES: dict[str, tuple[Cluster, Callable[[Scale], list[Row]], Callable[[], object] | None]] = {}
for _cluster in CLUSTERS.values():
    LINES |= {
        f"{_cluster.name}-array": (
            _cluster,
            totals(_cluster, (1000, 20), array, Scheduler.array, PER_TASK),
            partial(array, _cluster, 1000),
        ),
        f"{_cluster.name}-singles": (
            _cluster,
            totals(_cluster, (200, 5), singles, Scheduler.singles, None),
            partial(singles, _cluster, 200),
        ),
        f"{_cluster.name}-latency": (_cluster, latency(_cluster), None),
        f"{_cluster.name}-in-flight": (_cluster, in_flight(_cluster), None),
    }
"""By name: the cluster, what measures, what `profile` runs."""

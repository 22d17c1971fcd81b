"""The table: one function for each line, which measures wfl and its references in turn and returns the rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from tests.bench import alone, apiserver, clusters, containers, kubernetes, references, scenes, server, ssh
from tests.bench.daemon import DOCKER, PODMAN, Service
from tests.bench.measure import Goal, Row, Scale, in_turn, percentile, row
from tests.bench.references import c_program
from tests.bench.scenes import KEPT, NULL, Cost

if TYPE_CHECKING:
    from collections.abc import Sequence

C = "C posix_spawn on two threads"
XARGS = "xargs -P4, /dev/null"
POOL_NULL = "ThreadPoolExecutor(8), /dev/null"
POOL_FILES = "ThreadPoolExecutor(8), files"
CLOCK = "import os, time; time.sleep(0.005); os.write(1, b'%d' % time.monotonic_ns()); os._exit(0)"


class Costs:
    """Sides that run a scene and note what it cost beside its rate."""

    def __init__(self) -> None:
        self.noted: dict[str, list[Cost]] = {}

    def rate(self, name: str, scene: Callable[[], Cost]) -> Callable[[], float]:
        """A side for `in_turn`: tasks a second."""

        def run() -> float:
            cost = scene()
            self.noted.setdefault(name, []).append(cost)
            return cost.rate

        return run

    def rows(self, name: str) -> list[Row]:
        """CPU time per task, and the time to submit."""
        costs = self.noted[name]
        return [
            Row(f"{name}: CPU of the program", median(c.program_us for c in costs), "µs", "per task"),
            Row(f"{name}: CPU of the keepers", median(c.keepers_us for c in costs), "µs", "per task"),
            Row(f"{name}: CPU of the tasks", median(c.children_us for c in costs), "µs", "per task"),
            Row(f"{name}: time to submit", median(c.submitting * 1e6 / c.tasks for c in costs), "µs", "per task"),
        ]


def array(scale: Scale) -> list[Row]:
    """2,000 × /bin/true as one array."""
    n, costs = scale.of(2000, 300), Costs()
    kept, null, cold = "array, output kept", "array, /dev/null", "array, output kept, keepers not yet running"
    sides: dict[str, Callable[[], float]] = {
        kept: costs.rate(kept, lambda: scenes.array(n)),
        XARGS: lambda: references.xargs_rate(n),
        null: costs.rate(null, lambda: scenes.array(n, NULL)),
        POOL_FILES: lambda: references.threads_rate(n, kept=True),
        POOL_NULL: lambda: references.threads_rate(n, kept=False),
        cold: costs.rate(cold, lambda: scenes.array(n, warm=False)),
    }
    if c_program():
        sides[C] = lambda: references.c_rate(n)
    found = in_turn(sides, scale.rounds)
    return [
        *against_c(kept, found, 0.75),
        *against_c(null, found, 0.85),
        row(kept, "/s", found[kept], (XARGS, found[XARGS]), Goal("at least", 1.4)),
        row(null, "/s", found[null], (XARGS, found[XARGS]), Goal("at least", 1.4)),
        row(kept, "/s", found[kept], (POOL_FILES, found[POOL_FILES]), Goal("at least", 1.0)),
        row(null, "/s", found[null], (POOL_NULL, found[POOL_NULL]), Goal("at least", 1.0)),
        row(kept, "/s", found[kept], (POOL_NULL, found[POOL_NULL])),
        *against_c(cold, found, None),
        *costs.rows(kept),
        *costs.rows(null),
    ]


def against_c(name: str, found: dict[str, list[float]], bound: float | None) -> list[Row]:
    """Compare to the C program; where there is none, to the best Python reference, and without a goal."""
    if C not in found:
        return [row(name, "/s", found[name], (POOL_NULL, found[POOL_NULL]))]
    goal = None if bound is None else Goal("at least", bound)
    return [row(name, "/s", found[name], (C, found[C]), goal)]


def run(scale: Scale) -> list[Row]:
    """The same tasks one by one, then waited for together."""
    n, costs = scale.of(2000, 300), Costs()
    kept, null = "run(), output kept", "run(), /dev/null"
    sides: dict[str, Callable[[], float]] = {
        kept: costs.rate(kept, lambda: scenes.singles(n)),
        null: costs.rate(null, lambda: scenes.singles(n, NULL)),
        POOL_NULL: lambda: references.threads_rate(n, kept=False),
    }
    if c_program():
        sides[C] = lambda: references.c_rate(n)
    found = in_turn(sides, scale.rounds)
    return [*against_c(kept, found, 0.65), *against_c(null, found, 0.65), *costs.rows(kept)]


def chain(scale: Scale) -> list[Row]:
    """A chain of 100 then_run."""
    n, costs = scale.of(100, 30), Costs()
    kept, null, reference = "chain, output kept", "chain, /dev/null", "subprocess.run"

    def link(name: str, scene: Callable[[], Cost]) -> Callable[[], float]:
        measured = costs.rate(name, scene)
        return lambda: 1000 / measured()

    sides = {
        kept: link(kept, lambda: scenes.chain(n, KEPT)),
        reference: lambda: references.subprocess_chain_ms(n),
        null: link(null, lambda: scenes.chain(n, NULL)),
    }
    found = in_turn(sides, 2 * scale.rounds)
    goal = Goal("at most", 1.3)
    return [
        row(kept, "ms", found[kept], (reference, found[reference]), goal),
        row(null, "ms", found[null], (reference, found[reference]), goal),
        *costs.rows(kept)[:3],
    ]


def latency(scale: Scale) -> list[Row]:
    """From a child's exit to wait() returning, without what the child does after it has read the clock."""
    part, rounds = scale.of(120, 30), scale.rounds
    program = c_program()
    child = [program, "clock", "5"] if program else [sys.executable, "-I", "-S", "-c", CLOCK]
    raw: list[float] = []
    floor: list[float] = []
    for _ in range(rounds):
        if program:
            floor += references.c_latencies(part)
        raw += scenes.latencies(part, child)
    own = median(floor) if floor else 0.0  # the child's own way out: what waitpid in C sees
    corrected = [max(0.0, figure - own) for figure in raw]
    note = f"of {len(raw)}, less {own:.0f} µs, the median of waitpid in C" if floor else "with Python's own way out"
    goals = [Goal("at most", bound, " ms") if floor else None for bound in (1, 10)]
    return [
        Row("latency, p50", percentile(corrected, 0.5) / 1000, "ms", note, goal=goals[0]),
        Row("latency, p99", percentile(corrected, 0.99) / 1000, "ms", note, goal=goals[1]),
        *([Row("waitpid in C, p99", percentile(floor, 0.99) / 1000, "ms")] if floor else []),
    ]


def in_flight(scale: Scale) -> list[Row]:
    """10,000 tasks in flight."""
    n = scale.of(10_000, 300)
    found = alone.measure("in_flight", n, scale.of(10, 2))
    name = f"{n:,} in flight"
    return [
        Row(f"{name}: threads", found["threads"], "", "program and keepers", goal=Goal("at most", 12)),
        Row(f"{name}: resident", found["resident_mib"], "MiB", "program and keepers, shared pages counted in each",
            goal=Goal("at most", 80, " MiB")),
        Row(f"{name}: proportional", found["proportional_mib"], "MiB", "a page shared by n counts 1/n"),
        Row(f"{name}: program alone", found["program_mib"], "MiB", "resident"),
        Row(f"{name}: resident before", found["before_mib"], "MiB", "program and keepers"),
        Row(f"{name}: CPU while waiting", found["cpu_percent"], "%", "program and keepers",
            goal=Goal("at most", 1, " %")),
        Row(f"{name}: rate of starting", found["start_rate"], "/s", "from run_array() to the last start told"),
        Row(f"{name}: time to submit", found["submit_s"] * 1000, "ms"),
        Row(f"{name}: time to kill all", found["kill_s"], "s"),
    ]  # fmt: skip


def kept(scale: Scale) -> list[Row]:
    """What a finished task leaves behind."""
    n = scale.of(100_000, 6000)
    found = alone.measure("kept", n)
    kib = Goal("at most", 1024, " bytes")
    return [
        Row("kept per reaped task, handles held", found["reaped_bytes"], "bytes", "tracemalloc", goal=kib),
        Row("kept per ended task before reap", found["unreaped_bytes"], "bytes", "tracemalloc"),
        Row(f"growth over {n:,} reaped tasks", found["growth_bytes"], "bytes",
            "per task, resident, program and keepers", goal=Goal("at most", 64, " bytes")),
        Row("growth in the second half", found["late_growth_bytes"], "bytes", "per task",
            goal=Goal("at most", 32, " bytes")),
        Row("resident at the end", found["resident_mib"], "MiB", "program and keepers"),
    ]  # fmt: skip


def wide(scale: Scale) -> list[Row]:
    """An array of 20,000 with 1,024 descriptors."""
    n = scale.of(20_000, 2000)
    found = alone.measure("wide", n)
    name = f"array of {n:,}, {alone.DESCRIPTORS:,} descriptors"
    return [
        Row(f"{name}", found["seconds"], "s"),
        Row(f"{name}: rate", n / found["seconds"], "/s"),
        Row(f"{name}: program", found["program_mib"], "MiB", "peak resident"),
        Row(f"{name}: keepers", found["keepers_mib"], "MiB", "peak resident, together"),
    ]


def imports(scale: Scale) -> list[Row]:
    """The time of `import wfl`."""
    references.program_ms("import wfl")  # compiled from now on
    sides = {
        "wfl": lambda: references.program_ms("import wfl"),
        "pass": lambda: references.program_ms("pass"),
    }
    found = in_turn(sides, scale.of(20, 5))
    extra = median(one - other for one, other in zip(found["wfl"], found["pass"], strict=True))
    note = f"more than python -c pass ({median(found['pass']):.0f} ms)"
    return [Row("import wfl", extra, "ms", note, goal=Goal("at most", 60, " ms"))]


def start_up(scale: Scale) -> list[Row]:
    """From Workflow() to the end of the first task, in a fresh program."""
    alone.measure("first", 0)  # compiled from now on
    found = [alone.measure("first", 0) for _ in range(scale.of(10, 3))]
    return [
        Row("Workflow() to the end of its first task", median(f["first_ms"] for f in found), "ms"),
        Row("Workflow() alone", median(f["open_ms"] for f in found), "ms"),
        Row("close()", median(f["close_ms"] for f in found), "ms"),
    ]


def store(scale: Scale) -> list[Row]:
    """With a store against without."""
    n, m, costs = scale.of(2000, 300), scale.of(500, 100), Costs()
    sides = {
        "array, store": costs.rate("array, store", lambda: scenes.array(n, store=True)),
        "array": costs.rate("array", lambda: scenes.array(n)),
        "run(), store": costs.rate("run(), store", lambda: scenes.singles(m, store=True)),
        "run()": costs.rate("run()", lambda: scenes.singles(m)),
    }
    found = in_turn(sides, scale.rounds)
    goal = Goal("at least", 0.5)
    return [
        row("array, store", "/s", found["array, store"], ("without", found["array"]), goal),
        row("run(), store", "/s", found["run(), store"], ("without", found["run()"]), goal),
        *costs.rows("array, store"),
        *costs.rows("run(), store"),
    ]


def template(scale: Scale) -> list[Row]:
    """Making a JobTemplate."""
    n = scale.of(100_000, 5000)

    def make() -> float:
        begin = time.perf_counter()
        scenes.templates(n)
        return (time.perf_counter() - begin) * 1e6 / n

    return [Row("JobTemplate(...) of three fields", median(make() for _ in range(scale.rounds)), "µs")]


@dataclass(frozen=True)
class Line:
    """A line of the table.

    scene: what `profile` runs, where one program does it all; lacks: why it cannot be measured here, None if it can.
    """

    name: str
    measure: Callable[[Scale], Sequence[Row]]
    scene: Callable[[], object] | None = None
    lacks: Callable[[], str | None] = lambda: None


CONTAINERS: dict[str, tuple[Service, str | None, int]] = {
    "docker": (DOCKER, None, 40),
    "docker-none": (DOCKER, "none", 40),
    "docker-host": (DOCKER, "host", 60),
    "podman": (PODMAN, None, 10),
}
"""Lines of rates: the daemon, the network, how many containers."""
LINES = (
    Line("array", array, lambda: scenes.array(2000)),
    Line("run", run, lambda: scenes.singles(2000)),
    Line("chain", chain, lambda: scenes.chain(500)),
    Line("latency", latency),
    Line("in-flight", in_flight, lambda: alone.in_flight(2000, 2)),
    Line("kept", kept, lambda: alone.kept(10_000)),
    Line("wide", wide, lambda: scenes.array(20_000)),
    Line("import", imports),
    Line("start-up", start_up, lambda: alone.first(0)),
    Line("store", store, lambda: scenes.array(2000, store=True)),
    Line("template", template, lambda: scenes.templates(20_000)),
    *(
        Line(name, containers.rates(*given), partial(containers.rate, *given[:2]), given[0].lacks)
        for name, given in CONTAINERS.items()
    ),
    Line("docker-latency", containers.latency, lacks=DOCKER.lacks),
    Line("docker-output", containers.output, lacks=DOCKER.lacks),
    Line("docker-in-flight", containers.in_flight, lacks=DOCKER.lacks),
    *(Line(name, line, scene, cluster.lacks) for name, (cluster, line, scene) in clusters.LINES.items()),
    *(Line(name, line, scene, apiserver.lacks) for name, (line, scene) in kubernetes.LINES.items()),
    *(Line(name, line, scene, ssh.lacks) for name, (line, scene) in ssh.LINES.items()),
    *(Line(name, line, scene) for name, (line, scene) in server.LINES.items()),
)
MORE_SCENES: dict[str, Callable[[], object]] = {
    "array-null": lambda: scenes.array(2000, NULL),
    "run-store": lambda: scenes.singles(500, store=True),
}
"""What can be profiled besides the lines."""

"""The lines for containers: what wfl does with a real daemon, beside what others do with it in the same run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING

from tests.bench import alone
from tests.bench.daemon import (
    AT_ONCE,
    DOCKER,
    IMAGE,
    Arrivals,
    Counted,
    Service,
    command_rate,
    direct_rate,
    docker_command,
    docker_py_rate,
    logs_seconds,
    sweep,
)
from tests.bench.measure import Goal, Row, Scale, in_turn, percentile, row
from tests.bench.scenes import check
from wfl import Context, JobTemplate, Workflow

if TYPE_CHECKING:
    from wfl import Job

IN_FLIGHT = int(os.environ.get("WFL_BENCH_CONTAINERS", "500"))
"""Each takes 14 MB of the machine, most of them the daemon's."""
DIRECT = f"the daemon asked directly, {AT_ONCE} requests at once"
COMMAND = f"xargs -P{AT_ONCE} docker run --rm, same options"
PLAIN = f"xargs -P{AT_ONCE} docker run --rm"
DOCKER_PY = f"docker-py in {AT_ONCE} threads"
GOALS = {DIRECT: Goal("at least", 0.9), COMMAND: Goal("at least", 1.0), DOCKER_PY: Goal("at least", 1.0)}
NAPS = 0.3
"""Seconds that a container of the latency line lives: long enough that somebody waits for it."""
LONG, SHORT = 1 << 20, 20
"""Bytes of a line."""


@contextmanager
def workflow(service: Service, url: str | None = None, network: str | None = None) -> Iterator[Workflow]:
    """A workflow whose connections and helper are there."""
    from wfl.contexts.docker import DockerContext
    from wfl.contexts.podman import PodmanContext

    kind = DockerContext if service is DOCKER else PodmanContext
    template = JobTemplate(extensions={"network": network}) if network else None
    session = Context.unique_session_name()
    context = kind(image=IMAGE, base_url=url or service.url, session_name=session, default_template=template)
    with Workflow(context, raise_errors=True) as flow:
        through(flow.run("true"))
        yield flow


def through(job: Job) -> None:
    """Wait for all, and remove all."""
    check(job)
    job.reap_all()


def rate(service: Service, network: str | None, tasks: int = 40) -> float:
    """Containers a second of an array, from its submission to its removal."""
    with workflow(service, network=network) as flow:
        begin = time.perf_counter()
        through(flow.run_array(tasks, "true"))
        return tasks / (time.perf_counter() - begin)


# -- lines -------------------------------------------------------------------------------------------------------------


def rates(service: Service, network: str | None, full: int) -> Callable[[Scale], list[Row]]:
    """Containers a second in one network, None being the daemon's default."""

    def line(scale: Scale) -> list[Row]:
        n = scale.of(full, 4)
        name = f"{service.name}, network {network or 'default'}"
        sides: dict[str, Callable[[], float]] = {
            name: lambda: rate(service, network, n),
            DIRECT: lambda: direct_rate(service, n, network),
            DOCKER_PY: lambda: docker_py_rate(service, n, network),
        }
        if docker_command() and service is DOCKER:
            sides[COMMAND] = lambda: command_rate(service, n, network, "--init", "--log-driver", "local")
            if network is None:
                sides[PLAIN] = lambda: command_rate(service, n, network)
        try:
            found = in_turn(sides, scale.of(5, 1))
        finally:
            sweep(service.path)
        compared = [
            row(name, "/s", found[name], (side, found[side]), GOALS.get(side)) for side in sides if side != name
        ]
        return [*compared, *costs(service, scale.of(20, 4), network)]

    return line


def costs(service: Service, tasks: int, network: str | None) -> list[Row]:
    """CPU time of the program, and requests, per task."""
    counted = Counted(service)
    try:
        with workflow(service, counted.url, network) as flow:
            begin, cpu = time.monotonic(), time.process_time()
            through(flow.run_array(tasks, "true"))
            used, kinds = time.process_time() - cpu, counted.between(begin, time.monotonic())
    finally:
        counted.close()
    told = ", ".join(f"{number / tasks:g} {kind}" for kind, number in kinds.most_common())
    return [
        Row("CPU of the program", used * 1e6 / tasks, "µs", "per task, with a proxy that counts requests in it"),
        Row("requests", kinds.total() / tasks, "", f"per task: {told}"),
    ]


def latency(scale: Scale) -> list[Row]:
    """From the arrival of the event of the end, at somebody else who listens, to wait() returning."""
    import docker

    n = scale.of(30, 3)
    after_event: list[float] = []
    after_end: list[float] = []
    reference: list[float] = []
    client = docker.APIClient(base_url=DOCKER.url, version="1.41", timeout=60)
    arrivals: Arrivals | None = None
    try:
        with workflow(DOCKER, network="none") as flow:
            arrivals = Arrivals(DOCKER, "wfl.key")
            for _ in range(n):
                job = flow.run("sleep", str(NAPS)).wait()
                seen, now = time.monotonic_ns(), time.time()
                after_event.append((seen - arrivals.of(f"wfl-{job.job_id}")) / 1e6)
                info = job.info()
                assert info is not None
                assert info.finish_time is not None
                after_end.append((now - info.finish_time.timestamp()) * 1000)
                job.reap_all()
                job = flow.run("sleep", str(NAPS))
                client.wait(f"wfl-{job.job_id}")
                reference.append((time.monotonic_ns() - arrivals.of(f"wfl-{job.job_id}")) / 1e6)
                through(job)
    finally:
        client.close()
        if arrivals is not None:
            arrivals.close()
    note = f"after the event arrived elsewhere, of {n}"
    return [
        Row("wait() returns, p50", median(after_event), "ms", note, goal=Goal("at most", 15, " ms")),
        Row("wait() returns, p90", percentile(after_event, 0.9), "ms", note),
        Row("wait() returns, p50", median(after_end), "ms", "after State.FinishedAt"),
        Row("docker-py's wait() returns, p50", median(reference), "ms", note),
    ]


def in_flight(scale: Scale) -> list[Row]:
    """Many containers that do nothing, and what that costs."""
    n = scale.of(IN_FLIGHT, 10)
    counted = Counted(DOCKER)
    try:
        found = alone.measure("containers", n, scale.of(20, 2), DOCKER_HOST=counted.url)
        kinds = counted.between(found["waiting_from"], found["waiting_to"])
    finally:
        counted.close()
    name, seconds = f"{n:,} containers", found["waiting_to"] - found["waiting_from"]
    told = ", ".join(kinds) or f"in {seconds:.0f} s"
    return [
        Row(f"{name}: requests while waiting", kinds.total() / seconds, "/s", told, goal=Goal("at most", 0, " /s")),
        Row(f"{name}: threads", found["threads"], "", "of the program"),
        Row(f"{name}: threads of the helper", found["helper_threads"], ""),
        Row(f"{name}: resident", found["program_mib"], "MiB", f"the program; {found['before_mib']:.0f} before"),
        Row(f"{name}: resident, helper", found["helper_mib"], "MiB"),
        Row(f"{name}: CPU while waiting", found["cpu_percent"], "%", "program and helper"),
        Row(f"{name}: rate of starting", found["start_rate"], "/s"),
        Row(f"{name}: time to kill all", found["kill_s"], "s", "until all ends are known"),
        Row(f"{name}: time to reap all", found["reap_s"], "s"),
    ]


def output(scale: Scale) -> list[Row]:
    """50 MB of output of a container that has ended, whole, in long lines and in short ones."""
    size = scale.of(50 << 20, 5 << 20)  # whole lines of either length
    rows = []
    for length, kind in ((LONG, "1 MB"), (SHORT, f"{SHORT} bytes")):
        name, printed = f"output() of {size >> 20} MB in lines of {kind}", Printed(length, size)
        sides = {name: printed.ours}
        if docker_command():
            sides["docker logs"] = printed.theirs
        found = in_turn(sides, scale.of(3, 1))
        if "docker logs" in found:
            rows.append(row(name, "s", found[name], ("docker logs", found["docker logs"])))
        else:
            rows.append(Row(name, median(found[name]), "s"))
        rows.append(Row("bytes missing", printed.missing, "", f"of {size:,}", goal=Goal("at most", 0)))
    return rows


class Printed:
    """A container that prints so many bytes in lines of a length (its break included), and two who read them."""

    def __init__(self, length: int, size: int) -> None:
        self.size, self.missing = size, 0
        line = f"head -c {length - 1} /dev/zero | tr '\\0' x"
        if length < 4096:
            self.script = f"yes $({line}) | head -c {size}"
        else:
            self.script = f"for i in $(seq {size // length}); do {line}; echo; done"

    @contextmanager
    def job(self) -> Iterator[Job]:
        """It has ended, and nobody has read any of it."""
        with workflow(DOCKER, network="none") as flow:
            job = flow.run("sh", "-c", self.script)
            check(job)
            yield job

    def ours(self) -> float:
        """Seconds that output() takes."""
        with self.job() as job:
            begin = time.perf_counter()
            got = job.output()
            seconds = time.perf_counter() - begin
            self.missing = max(self.missing, self.size - 1 - len(got))
            return seconds

    def theirs(self) -> float:
        """Seconds that `docker logs` takes."""
        with self.job() as job:
            return logs_seconds(DOCKER, f"wfl-{job.job_id}")

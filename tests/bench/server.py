"""The lines for the job server on loopback, beside the same processes without a server."""

from __future__ import annotations

import http.client
import json
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from tests.asgi import API
from tests.bench.measure import Goal, Row, Scale, in_turn, resident_mib, row
from tests.server import Running
from wfl import Context, Workflow
from wfl.contexts.process import ProcessContext
from wfl.contexts.remote import RemoteContext

DIRECT = "without a server, with a store"
ONE = "run().wait() without a server"
LIMITS = [word for one in ("rate=1000000", "burst=10000000", "streams=2000", "streams_each=2000", "wait=600")
          for word in ("--limit", one)]  # fmt: skip
"""A bench is more than what one identity may ask for in a second."""
BATCH = 100
"""Jobs in one plain request."""
WAITING = 1000


@contextmanager
def server() -> Iterator[Running]:
    """One that serves processes, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="wfl-") as place, Running(Path(place) / "server", *LIMITS) as found:
        yield found


@contextmanager
def remote(running: Running) -> Iterator[Workflow]:
    """A workflow of our client, whose connections and keepers are there."""
    url = f"http://127.0.0.1:{running.port}"
    context = RemoteContext(url, token=running.token, session_name=Context.unique_session_name())
    with Workflow(context, raise_errors=True) as flow:
        yield warm(flow)


@contextmanager
def direct() -> Iterator[Workflow]:
    """The same processes, kept in a store as the server keeps them."""
    with tempfile.TemporaryDirectory(prefix="wfl-") as place:
        context = ProcessContext(store=f"{place}/store", session_name=Context.unique_session_name())
        with Workflow(context, raise_errors=True) as flow:
            yield warm(flow)


def warm(flow: Workflow) -> Workflow:
    """All keepers are there."""
    job = flow.run_array(100, "true")
    job.synchronize()
    job.reap_all()
    return flow


def array(flow: Workflow, tasks: int) -> float:
    """Tasks a second of one array, to the end of the wait."""
    job, begin = flow.new_job(), time.perf_counter()
    job.run_array(tasks, "true").synchronize()
    seconds = time.perf_counter() - begin
    job.reap_all()
    return tasks / seconds


def singles(flow: Workflow, tasks: int) -> float:
    """The same of as many run()."""
    job, begin = flow.new_job(), time.perf_counter()
    for _ in range(tasks):
        job.run("true")
    job.synchronize()
    seconds = time.perf_counter() - begin
    job.reap_all()
    return tasks / seconds


class Plain:
    """A client of a few lines, as any program could be: requests over one connection, ends by long polls."""

    def __init__(self, running: Running) -> None:
        self._headers = {"Authorization": f"Bearer {running.token}", "Content-Type": "application/json"}
        self._connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        self._session = f"{API}/sessions/plain"

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """One request; what is answered."""
        raw = None if body is None else json.dumps(body)
        self._connection.request(method, self._session + path, raw, self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        return json.loads(text)

    def batches(self, tasks: int) -> float:
        """Tasks a second, submitted in requests of many, until all have ended."""
        self.close()  # the server has closed it, if other sides took long
        cursor, template = self.ask("GET", "/events")["cursor"], {"remoteCommand": "true"}
        begin, ids = time.perf_counter(), []
        for first in range(0, tasks, BATCH):
            jobs = [{"template": template} for _ in range(min(BATCH, tasks - first))]
            ids += [job["id"] for job in self.ask("POST", "/jobs", {"jobs": jobs})["jobs"]]
        over: set[str] = set()
        while len(over) < tasks:
            told = self.ask("GET", f"/events?cursor={cursor}&wait=60")
            cursor = told["cursor"]
            over |= {job["id"] for job in told["jobs"] if job["info"]["state"] == "done"}
        seconds = time.perf_counter() - begin
        assert over == {*ids}
        assert self.ask("POST", "/reap", {"ids": ids}) == {"failures": {}}
        return tasks / seconds

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def rates(scale: Scale) -> list[Row]:
    """Tasks a second: arrays, requests of many, and one by one."""
    n, few, costs = scale.of(2000, 100), scale.of(500, 20), list[float]()
    batches, one, many = f"plain client, {BATCH} in a request", f"array of {n:,}", f"{few:,} run()"
    with server() as running, remote(running) as far, direct() as near, closing(Plain(running)) as plain:
        process = psutil.Process(running.process.pid)

        def counted() -> float:
            before = sum(process.cpu_times()[:2])
            rate = plain.batches(n)
            costs.append((sum(process.cpu_times()[:2]) - before) * 1e6 / n)
            return rate

        sides: dict[str, Callable[[], float]] = {
            batches: counted,
            one: lambda: array(far, n),
            DIRECT: lambda: array(near, n),
            many: lambda: singles(far, few),
        }
        found = in_turn(sides, scale.rounds)
    goal = Goal("at least", 1000, " /s")
    return [
        *(Row(name, median(found[name]), "/s", goal=goal) for name in (batches, one)),
        *(row(name, "/s", found[name], (DIRECT, found[DIRECT])) for name in (batches, one, many)),
        Row("CPU of the server", median(costs), "µs", "per task, in requests of many"),
    ]


def latency(scale: Scale) -> list[Row]:
    """One task after another: what the server adds to each."""
    n = scale.of(100, 5)
    with server() as running, remote(running) as far, direct() as near:
        process, spent = psutil.Process(running.process.pid), list[float]()

        def one_by_one(flow: Workflow) -> float:
            took = []
            for _ in range(n):
                begin = time.perf_counter()
                flow.run("true").wait()
                took.append((time.perf_counter() - begin) * 1e3)
            return median(took)

        def through() -> float:
            before = sum(process.cpu_times()[:2]) * 1e6
            figure = one_by_one(far)
            spent.append((sum(process.cpu_times()[:2]) * 1e6 - before) / n)
            return figure

        found = in_turn({"through the server": through, ONE: lambda: one_by_one(near)}, scale.rounds)
    there, here = found["through the server"], found[ONE]
    added = [one - other for one, other in zip(there, here, strict=True)]
    return [
        Row("added to one task, p50", median(added), "ms", f"in {len(added)} rounds", goal=Goal("at most", 5, " ms")),
        row("run().wait()", "ms", there, (ONE, here)),
        Row("CPU of the server", median(spent), "µs", "per task"),
    ]


def waiting(scale: Scale) -> list[Row]:
    """A thousand clients that wait for events, and what they cost; then one job of theirs ends."""
    n, seconds = scale.of(WAITING, 20), scale.of(20, 2)
    with server() as running, ExitStack() as stack, closing(Plain(running)) as plain:
        process = psutil.Process(running.process.pid)
        plain.batches(1)
        before = resident_mib(process)
        lines = ["GET /api/v1/sessions/plain/events HTTP/1.1", "Host: x", "Accept: text/event-stream",
                 f"Authorization: Bearer {running.token}", "", ""]  # fmt: skip
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", running.port), 60)) for _ in range(n)]
        for client in clients:
            client.sendall("\r\n".join(lines).encode())
        heard = [_first(client) for client in clients]
        assert all(heard)
        held = resident_mib(process)
        cpu = sum(process.cpu_times()[:2])
        time.sleep(seconds)
        used = (sum(process.cpu_times()[:2]) - cpu) / seconds
        latest = _tell_all(plain, clients)
        peak = resident_mib(process)
    return [
        Row(f"memory of {n:,} clients that wait", held - before, "MiB", f"beside {before:.0f} MiB of the server"),
        Row("CPU of the server meanwhile", used * 100, "%", "of one core, with a sign of life to each in 10 s"),
        Row("an end is told to the last of them", latest * 1e3, "ms", "after its request was sent"),
        Row("memory after that", peak - before, "MiB", f"beside {before:.0f} MiB of the server"),
    ]


def _first(client: socket.socket) -> bool:
    """Whether it has heard where it stands."""
    text = b""
    while b"event: jobs" not in text:
        piece = client.recv(1 << 16)
        if not piece:
            return False
        text += piece
    return True


def _tell_all(plain: Plain, clients: list[socket.socket]) -> float:
    """Seconds from a submission to the moment at which all have heard of the job's end."""
    over: list[float] = []

    def listen(some: list[socket.socket]) -> None:
        for client in some:
            text = b""
            while b'"state":"done"' not in text:
                text += client.recv(1 << 16)
        over.append(time.perf_counter())

    threads = [threading.Thread(target=listen, args=(clients[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    plain.close()  # the server has closed it meanwhile
    begin = time.perf_counter()
    plain.ask("POST", "/jobs", {"jobs": [{"template": {"remoteCommand": "true"}}]})
    for thread in threads:
        thread.join()
    return max(over) - begin


def profiled() -> None:
    """What is profiled: our client's side of an array."""
    with server() as running, remote(running) as far:
        array(far, 2000)


LINES: dict[str, tuple[Callable[[Scale], list[Row]], Callable[[], object] | None]] = {
    "server": (rates, profiled),
    "server-latency": (latency, None),
    "server-waiting": (waiting, None),
}

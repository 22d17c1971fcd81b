"""Daemons of containers as they are without wfl: asked directly, by their command line, through docker-py; and counted.

`python -m tests.bench.daemon SOCKET LABEL` prints the name and the monotonic clock (ns) of each container that ends.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import quote

from tests.bench.references import ROOT

IMAGE = "busybox"
LABEL = "wfl.bench=reference"
"""On each container that is started here and not by wfl."""
AT_ONCE = 8
PATIENCE = 120.0
"""Seconds that any one answer, or the next end, may take."""
_API = "/v1.41"


@dataclass(frozen=True)
class Service:
    """A daemon that `make services` starts, or the one that its variable names."""

    name: str
    variable: str

    @property
    def url(self) -> str:
        """Where it listens."""
        script = ROOT / "tests" / "services" / "address.sh"
        return os.environ.get(self.variable) or subprocess.check_output([script, self.name], text=True).strip()

    @property
    def path(self) -> str:
        """Its socket."""
        return self.url.removeprefix("unix://")

    def lacks(self) -> str | None:
        """Why nothing can be measured here; None if something can."""
        try:
            import docker  # noqa: F401 - wfl needs it, too
        except ImportError:
            return "docker-py is not installed"
        if not self.url.startswith("unix://"):
            return f"{self.url} is no unix socket"
        try:
            ask(self.path, "GET", f"/images/{IMAGE}/json")
        except (OSError, http.client.HTTPException) as error:
            return f"{self.url}: {error}; start it with `make services`"
        except RefusedError:
            return f"{self.url} has no image {IMAGE}; `make services` makes it"
        return None


DOCKER = Service("docker", "DOCKER_HOST")
PODMAN = Service("podman", "CONTAINER_HOST")


class RefusedError(Exception):
    """The daemon's answer is an error."""


# -- asked directly ----------------------------------------------------------------------------------------------------


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        """Over the unix socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


_own = threading.local()


def ask(path: str, method: str, what: str, body: Mapping[str, Any] | None = None) -> Any:
    """One request, on the connection that this thread keeps."""
    if getattr(_own, "path", None) != path:
        _own.connection, _own.path = _Connection(path), path
    headers = {"Content-Type": "application/json"} if body is not None else {}
    _own.connection.request(method, _API + what, None if body is None else json.dumps(body), headers)
    response = _own.connection.getresponse()
    text = response.read()
    if response.status >= 400:
        raise RefusedError(f"{method} {what}: {response.status} {text.decode(errors='replace').strip()}")
    return json.loads(text) if text else None


@contextmanager
def ends(path: str, label: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of the ends of all containers with a label, from now on."""
    connection = _Connection(path)
    filters = quote(json.dumps({"type": ["container"], "label": [label], "event": ["die", "died"]}))
    connection.request("GET", f"{_API}/events?filters={filters}")
    response = connection.getresponse()
    try:
        yield map(json.loads, iter(response.readline, b""))
    finally:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
        response.close()
        connection.close()


def host_config(network: str | None) -> dict[str, Any]:
    """What wfl's containers have: an init, and a log that is quick to read."""
    log = {"Type": "local", "Config": {"max-size": "1t", "max-file": "1", "compress": "false"}}
    return {"Init": True, "LogConfig": log, "NetworkMode": network or "default"}


def sweep(path: str) -> None:
    """Remove what the references have left behind."""
    filters = quote(json.dumps({"label": [LABEL]}))
    for found in ask(path, "GET", f"/containers/json?all=1&filters={filters}"):
        ask(path, "DELETE", f"/containers/{found['Id']}?force=1&v=1")


def direct_rate(service: Service, tasks: int, network: str | None) -> float:
    """Containers a second with nothing between: create, start, the event of the end, remove; eight requests at once."""
    name, _, value = LABEL.partition("=")
    host = host_config(network) if service is DOCKER else {"NetworkMode": network or "default"}
    body = {"Image": IMAGE, "Cmd": ["true"], "Labels": {name: value}, "HostConfig": host}
    request = partial(ask, service.path)

    def start(_: int) -> None:
        id = request("POST", "/containers/create", body)["Id"]
        request("POST", f"/containers/{id}/start")

    def remove(event: dict[str, Any]) -> None:
        request("DELETE", f"/containers/{event['Actor']['ID']}?v=1")

    with ends(service.path, LABEL) as ended, ThreadPoolExecutor(AT_ONCE) as pool:
        begin = time.perf_counter()
        for _ in pool.map(start, range(tasks)):
            pass
        for _ in pool.map(remove, islice(ended, tasks)):
            pass
        return tasks / (time.perf_counter() - begin)


# -- by what else there is ---------------------------------------------------------------------------------------------


def docker_command() -> str | None:
    """The docker command line, if it is there."""
    return shutil.which("docker")


def command_rate(service: Service, tasks: int, network: str | None, *more: str) -> float:
    """Containers a second of `docker run --rm`, eight at once by xargs; `more` are its options."""
    chosen = ["--network", network] if network else []
    command = ["docker", "run", "--rm", "--label", LABEL, *more, *chosen, IMAGE, "true"]
    numbers = "\n".join(map(str, range(tasks))).encode()
    begin = time.perf_counter()
    subprocess.run(
        ["xargs", f"-P{AT_ONCE}", "-n1", *command],
        input=numbers,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "DOCKER_HOST": service.url},
        check=True,
    )
    return tasks / (time.perf_counter() - begin)


def docker_py_rate(service: Service, tasks: int, network: str | None) -> float:
    """Containers a second of docker-py in eight threads, each with a client: create, start, wait, remove."""
    import docker

    clients = threading.local()
    opened = []
    name, _, value = LABEL.partition("=")
    host = host_config(network) if service is DOCKER else {"NetworkMode": network or "default"}

    def one(_: int) -> None:
        if not hasattr(clients, "own"):
            clients.own = docker.APIClient(base_url=service.url, version=_API[2:], timeout=PATIENCE)
            opened.append(clients.own)
        client = clients.own
        id = client.create_container(IMAGE, ["true"], labels={name: value}, host_config=host)["Id"]
        client.start(id)
        client.wait(id)
        client.remove_container(id, v=True)

    begin = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(one, range(tasks)):
            pass
    seconds = time.perf_counter() - begin
    for client in opened:
        client.close()
    return tasks / seconds


def logs_seconds(service: Service, container: str) -> float:
    """Seconds until `docker logs` has written the whole log of a container into a pipe."""
    environment = {**os.environ, "DOCKER_HOST": service.url}
    begin = time.perf_counter()
    subprocess.run(["docker", "logs", container], env=environment, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - begin


# -- seen from outside -------------------------------------------------------------------------------------------------


class Arrivals:
    """Another process that notes when the events of ends arrive at anybody who listens."""

    def __init__(self, service: Service, label: str) -> None:
        command = [sys.executable, "-m", "tests.bench.daemon", service.path, label]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._lines = self._process.stdout
        self._lines.readline()  # it listens

    def of(self, name: str) -> int:
        """When the event of this container's end arrived; containers are asked for in the order of their ends."""
        for line in self._lines:
            ended, arrived = line.split()
            if ended.decode() == name:
                return int(arrived)
        raise RuntimeError(f"no event told of the end of {name}")

    def close(self) -> None:
        """Let the process go."""
        self._process.kill()
        self._process.wait()
        self._lines.close()


def tell_arrivals(path: str, label: str) -> None:
    """What the other process does."""
    with ends(path, label) as ended:
        print("listening", flush=True)
        for event in ended:
            arrived = time.monotonic_ns()
            print(event["Actor"]["Attributes"]["name"], arrived, flush=True)


class Counted:
    """A socket in front of a daemon's own: everything goes through, each request is noted with its time."""

    _REQUEST = re.compile(rb"(GET|HEAD|POST|PUT|DELETE) (?:/v[\d.]+)?(/[^ ?]*)")
    _NAMES = re.compile(r"/containers/[^/]*[\d-][^/]*")

    def __init__(self, service: Service) -> None:
        self.seen: list[tuple[float, str]] = []
        self._place = tempfile.TemporaryDirectory(prefix="wfl-bench-")
        path = f"{self._place.name}/socket"
        self.url = f"unix://{path}"
        counted, behind = self, service.path

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.socket(socket.AF_UNIX) as daemon:
                    daemon.connect(behind)
                    back = threading.Thread(target=_copy, args=(daemon, self.request), daemon=True)
                    back.start()
                    _copy(self.request, daemon, counted.note)
                    back.join()

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads, block_on_close, request_queue_size = True, False, 128

        self._server = Server(path, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def note(self, data: bytes) -> None:
        """What a client sends: a request begins with a piece of its own, as none is sent before the last answer."""
        if found := self._REQUEST.match(data):
            what = self._NAMES.sub("/containers/*", found[2].decode())
            self.seen.append((time.monotonic(), f"{found[1].decode()} {what}"))

    def between(self, begin: float, end: float) -> Counter[str]:
        """Requests by kind between two times of the monotonic clock."""
        return Counter(what for at, what in self.seen if begin <= at < end)

    def close(self) -> None:
        """Take no more connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._place.cleanup()


def _copy(source: socket.socket, target: socket.socket, note: Any = None) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            if note is not None:
                note(data)
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def main(arguments: Sequence[str]) -> None:
    """Listen until somebody ends this process."""
    tell_arrivals(*arguments)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The cluster that `make services` starts, as others use it: a namespace for tests, kubectl, and a way to be broken.

`Cluster` is asked past wfl; `Way` stands between a program and the API server.
"""

from __future__ import annotations

import base64
import json
import os
import re
import select
import socket
import ssl
import subprocess
import threading
import uuid
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from tests import clusters
from tests.containers import lacking
from tests.faults.machine import PATIENCE, wait_until
from wfl import Context, Workflow
from wfl.errors import WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from wfl import Job, Task
    from wfl.contexts.kubernetes import KubernetesContext

NODE = "wfl-node"
"""The service's only one."""
KINDS = ("configmaps", "jobs", "persistentvolumeclaims", "pods", "secrets")
"""What wfl may make, and what comes of it."""
_OURS = {"kube-root-ca.crt"}
"""What the cluster itself puts into each namespace."""
Object = dict[str, Any]


class Cluster:
    """A namespace of our own in it."""

    def __init__(self, kubeconfig: str) -> None:
        try:
            from wfl.contexts.kubernetes.client import Client
            from wfl.contexts.kubernetes.settings import Place
        except ImportError as error:
            lacking(f"the client of Kubernetes is not in this environment: {error}")
        self.kubeconfig, self.namespace = kubeconfig, f"wfl-faults-{uuid.uuid4().hex[:8]}"
        self.client = Client(Place(kubeconfig=kubeconfig, namespace=self.namespace))

    def context(self, **settings: Any) -> KubernetesContext:
        """A context on it, with a session of its own."""
        from wfl.contexts.kubernetes import KubernetesContext

        given = {"image": "busybox:1", "kubeconfig": self.kubeconfig, "namespace": self.namespace}
        return KubernetesContext(**{**given, "session_name": Context.unique_session_name(), **settings})

    def kubectl(self, *words: str, given: Object | None = None, ok: bool = True) -> str:
        """What somebody else does; `given` is the file "-". What it says."""
        done = subprocess.run(
            ["kubectl", "--namespace", self.namespace, *words],
            env={**os.environ, "KUBECONFIG": self.kubeconfig},
            input=None if given is None else json.dumps(given),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert not ok or done.returncode == 0, f"kubectl {words}: {done.stderr}"
        return done.stdout + done.stderr

    def create(self, **what: Any) -> None:
        """Make an object of somebody else's."""
        self.kubectl("create", "--filename=-", given=what)

    def jobs(self, of: Task | Job) -> list[Object]:
        """The objects of the kind Job that are of a task, or of a workflow's job."""
        return self.client.list("jobs", _selector(of))[0]

    def pods(self, of: Task | Job) -> list[Object]:
        """The pods that there are now of a task, or of a workflow's job."""
        return self.client.list("pods", _selector(of))[0]

    def pod(self, of: Task | Job) -> str:
        """The name of its one pod, as soon as there is one."""
        until(f"there is a pod of {of!r}", lambda: self.pods(of))
        (found,) = self.pods(of)
        return str(found["metadata"]["name"])

    def job(self, of: Task | Job) -> str:
        """The name of its Job."""
        (found,) = self.jobs(of)
        return str(found["metadata"]["name"])

    def evict(self, pod: str) -> None:
        """By the eviction API, as `kubectl drain` does."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        self.kubectl("create", "--raw", path, "--filename=-", given=body)

    def held(self) -> dict[str, set[str]]:
        """The names of all that the namespace holds, by kind."""
        return {kind: {one["metadata"]["name"] for one in self.client.list(kind)[0]} - _OURS for kind in KINDS}

    def strangers(self) -> list[str]:
        """The pods of others that are on the node now."""
        found, _ = self.client.list("pods", fields=f"spec.nodeName={NODE}", everywhere=True)
        living = (one for one in found if one["status"].get("phase") in ("Pending", "Running"))
        names = (one["metadata"] for one in living)
        return [f"{one['namespace']}/{one['name']}" for one in names if one["namespace"] != self.namespace]


def _selector(of: Task | Job) -> str:
    """By wfl's label; of an element by its number, too, which counts from 0."""
    task = getattr(of, "tasks", [of])[0]
    if not hasattr(task, "indexes"):
        key, dot, _ = task.id.partition(".")
        place = f",batch.kubernetes.io/job-completion-index={task.index - 1}" if dot else ""
        return f"wfl/key={key}{place}"
    return f"wfl/key={task[0].id.partition('.')[0]}"


def until(what: str, condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Look until it is so; no answer is an answer that is not there yet."""

    def holds() -> bool:
        with suppress(WflError):
            return bool(condition())
        return False

    wait_until(what, holds, patience)


@contextmanager
def reached() -> Iterator[Cluster]:
    """The service's cluster with a namespace that goes afterwards; the test is skipped, or fails, without it."""
    found = Cluster(clusters.reached("kubernetes")["KUBECONFIG"])
    with closing(found.client):
        found.client.create("namespaces", {"metadata": {"name": found.namespace}})
        try:  # pods need the account that a controller makes
            until(
                "the namespace is ready",
                lambda: "default" in found.kubectl("get", "serviceaccounts", "--output=name", ok=False),
            )
            yield found
        finally:
            found.client.delete("namespaces", found.namespace)


@contextmanager
def opened(cluster: Cluster, **settings: Any) -> Iterator[Workflow]:
    """A workflow whose jobs go with it; nothing of it is left, however the test ended."""
    with Workflow(cluster.context(**settings)).raise_for_error() as flow:
        yield flow
        flow.kill_all()


class _Line:
    """One connection through a way."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far, self.request = near, far, ""
        self.mute = self.lost = False
        self.passed = 0

    def close(self) -> None:
        for one in (self.near, self.far):
            with suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)  # below TLS


class Way:
    """A port of this machine that leads to the API server, and a kubeconfig for it.

    It takes plain HTTP and goes on with TLS, so that it sees requests; with `sealed` all bytes pass as they are.
    Patterns are for "METHOD /path?query" at the beginning of requests; "" is any connection.
    """

    def __init__(self, cluster: Cluster, directory: Path, *, sealed: bool = False) -> None:
        self._sealed = sealed
        self.requests: list[str] = []
        self._lost: str | None = None
        self._refused: str | None = None
        self._silent = False
        self._cut: tuple[str, int, int] = ("", 0, 0)
        self._answers: list[tuple[str, bytes]] = []
        self._lines: list[_Line] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        port = self._listener.getsockname()[1]
        told = yaml.safe_load(Path(cluster.kubeconfig).read_text())
        self._user = told["users"][0]["user"]
        there = told["clusters"][0]["cluster"]
        self._server = re.sub(r"\Ahttps://|/\Z", "", there["server"]).partition(":")
        self._trust = ssl.create_default_context(cadata=_decoded(there["certificate-authority-data"]))
        there["server"] = f"{'https' if sealed else 'http'}://127.0.0.1:{port}"
        self.url: str = there["server"]
        self._told = told
        self.kubeconfig = str(directory / f"way-{port}")
        self.admit(**self._user)
        self._threads = [threading.Thread(target=self._accept, name="way", daemon=True)]
        self._threads[0].start()

    def admit(self, **user: Any) -> None:
        """Say in the kubeconfig who asks."""
        self._told["users"][0]["user"] = user
        Path(self.kubeconfig).write_text(yaml.safe_dump(self._told))

    def lose(self, pattern: str | None) -> None:
        """From now on such requests arrive; instead of their answers the connection ends. None: all is well again."""
        self._lost = pattern

    def refuse(self, pattern: str | None) -> None:
        """From now on connections end with such requests, which do not arrive. None: all is well again."""
        self._refused = pattern

    def answer(self, pattern: str, *answers: tuple[int, Object, str]) -> None:
        """The next such requests do not arrive, and are answered so: HTTP status, body, further headers."""
        for status, body, more in answers:
            data = json.dumps(body).encode() + b"\n"
            head = (
                f"HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{more}\r\n"
            )
            self._answers.append((pattern, head.encode() + data))

    def cut(self, pattern: str, after: int, times: int = 1) -> None:
        """The next such connections end when so many bytes have passed, of which that is only a part."""
        self._cut = (pattern, after, times)

    @property
    def uncut(self) -> int:
        """How many connections are still to be cut."""
        return self._cut[2]

    def silence(self, *, on: bool = True) -> None:
        """Connections bring nothing any more, and do not end; with `on` also those that are made from now on."""
        self._silent = on
        for line in list(self._lines):
            line.mute = True

    def drop(self, pattern: str = "") -> None:
        """Connections whose latest request was such a one end."""
        for line in list(self._lines):
            if re.match(pattern, line.request):
                line.close()

    def count(self, pattern: str) -> int:
        """How many such requests were made."""
        return sum(re.match(pattern, one) is not None for one in list(self.requests))

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                host, _, port = self._server
                far = socket.create_connection((host, int(port or 443)), PATIENCE)
                far.settimeout(None)
                if not self._sealed:
                    far = self._trust.wrap_socket(far, server_hostname=host)
            except OSError:
                return
            line = _Line(near, far)
            line.mute = self._silent
            self._lines.append(line)
            self._threads.append(threading.Thread(target=self._carry, args=(line,), name="way", daemon=True))
            self._threads[-1].start()

    def _carry(self, line: _Line) -> None:
        ends = [line.near, line.far]
        with suppress(OSError):
            while True:
                waiting = isinstance(line.far, ssl.SSLSocket) and line.far.pending()
                ready = [line.far] if waiting else select.select(ends, [], [])[0]
                if line.near in ready and not self._asks(line):
                    break
                if line.far in ready:
                    data = _received(line.far)
                    if data is None:
                        continue
                    if line.lost or (not data and not line.mute):
                        break
                    if not data:
                        ends = [line.near]
                    elif self._is_cut(line, data):
                        break
                    elif not line.mute:
                        line.near.sendall(data)
        line.close()

    def _asks(self, line: _Line) -> bool:
        """What the program sends; False where the connection is to end."""
        data = line.near.recv(1 << 16)
        if found := re.match(rb"((?:GET|POST|PATCH|DELETE) \S+) HTTP/1\.1\r\n", data):
            line.request, line.passed = found[1].decode(), 0
            self.requests.append(line.request)
            line.lost = self._lost is not None and re.match(self._lost, line.request) is not None
            if self._refused is not None and re.match(self._refused, line.request):
                return False
            if answer := self._own_answer(line.request):
                _skip_body(line.near, data)
                line.near.sendall(answer)
                return True
        if self._is_cut(line, data):
            return False
        line.far.sendall(data)
        return bool(data)

    def _is_cut(self, line: _Line, data: bytes) -> bool:
        line.passed += len(data)
        pattern, after, times = self._cut
        if not times or line.passed < after or not re.match(pattern, line.request):
            return False
        self._cut = (pattern, after, times - 1)
        return True

    def _own_answer(self, request: str) -> bytes | None:
        for number, (pattern, _) in enumerate(self._answers):
            if re.match(pattern, request):
                return self._answers.pop(number)[1]
        return None

    def close(self) -> None:
        """End all connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for line in self._lines:
            line.close()
        for thread in self._threads:
            thread.join()
        for line in self._lines:
            line.near.close()
            line.far.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _received(sock: socket.socket) -> bytes | None:
    """What is there; None where it is TLS's own alone, such as a ticket."""
    sock.settimeout(0)
    try:
        return sock.recv(1 << 16)
    except ssl.SSLWantReadError:
        return None
    finally:
        sock.settimeout(None)


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


def _skip_body(sock: socket.socket, begun: bytes) -> None:
    """Read a request to its end."""
    while b"\r\n\r\n" not in begun:
        begun += sock.recv(1 << 16)
    head, _, body = begun.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    missing = int(length[1]) - len(body) if length else 0
    while missing > 0:
        missing -= len(sock.recv(missing))

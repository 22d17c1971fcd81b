"""Kubernetes for programs that die or lack rights, or whose cluster is away: namespaces, and a cluster of our own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.clusters import SERVICES, reached, variables
from tests.containers import lacking
from tests.faults.kubernetes import Cluster
from tests.faults.machine import PATIENCE, Program, marked, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from wfl.contexts.kubernetes import KubernetesContext

ROLE = Path(__file__).parents[2] / "docs" / "kubernetes-role.yaml"
PORTS = (16379, 16380)
"""Where the etcd listens that `make services` starts."""
BEGIN = """
import json, logging, os, signal, sys, threading, time
from wfl import JobTemplate, Workflow, shell
from wfl.contexts.kubernetes import KubernetesContext
logging.basicConfig(level=logging.WARNING, format="%(message)s")
kubeconfig, namespace, name, *rest = sys.argv[1:]
def context(**settings):
    default = JobTemplate(job_environment={"WFL_FAULTS_RUN": os.environ["WFL_FAULTS_RUN"]})
    settings = {"session_name": name, "default_template": default, **settings}
    return KubernetesContext(image="busybox:1", kubeconfig=kubeconfig, namespace=namespace, **settings)
def say(word, **what):
    print(word, json.dumps(what), flush=True)
def told(word):
    line = sys.stdin.readline().strip()
    assert line == word, f"{line!r} instead of {word!r}"
def end(task):
    info = task.info()
    return [task.state.value, info.sub_state, info.exit_status, info.annotation or ""]
"""
"""What each program begins with. Its pods' processes bear its mark: the node is this machine."""


class Namespace(Cluster):
    """A namespace of our own in a cluster, with one session at a time."""

    session = ""

    def context(self, **settings: Any) -> KubernetesContext:
        """One that finds the session."""
        return super().context(**{"session_name": self.session, **settings})

    def found(self, kind: str) -> list[dict[str, Any]]:
        """What it has of Jobs or pods that are wfl's."""
        return self.client.list(kind, "wfl/session")[0]

    def running(self) -> int:
        """How many pods run their commands."""
        from wfl.contexts.kubernetes import facts

        return sum("running" in facts.container(pod) for pod in self.found("pods"))

    def is_empty(self) -> None:
        """Wait until nothing of any kind is left in it."""
        wait_until(f"nothing is left in {self.namespace}", lambda: not any(self.held().values()))

    def clear(self) -> None:
        """Remove all that is left in it of sessions."""
        self.client.delete_all("pods", "wfl/session", grace=1)
        self.client.delete_all("jobs", "wfl/session")
        self.is_empty()


@contextmanager
def namespace(kubeconfig: str | None = None) -> Iterator[Namespace]:
    """A new one, in the cluster that `make services` starts or in this one; it goes with all that is in it."""
    found = Namespace(kubeconfig or reached("kubernetes")["KUBECONFIG"])
    with closing(found.client):
        found.client.create("namespaces", {"metadata": {"name": found.namespace}})
        try:
            found.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=60s")  # which every pod has
            yield found
        finally:
            found.client.delete("namespaces", found.namespace)


class Programs:
    """Programs that have jobs in a namespace, of whose processes none is left in the end."""

    def __init__(self, there: Namespace, place: Path) -> None:
        self._there, self._place = there, place
        self._all: list[Program] = []

    def __call__(self, source: str, *arguments: str) -> Program:
        """Start one, after BEGIN."""
        given = (self._there.kubeconfig, self._there.namespace, self._there.session, *arguments)
        self._all.append(Program(BEGIN + source, self._place, *given))
        return self._all[-1]

    def close(self) -> None:
        """End them; then their pods, which must end by the cluster's hand."""
        for program in self._all:
            with suppress(OSError):
                os.kill(program.pid, signal.SIGKILL)
            program.process.wait(PATIENCE)
        self._there.clear()
        wait_until("none of their processes is left", lambda: not any(marked(program.mark) for program in self._all))
        for program in self._all:
            program.__exit__(None, None, None)


def heard(program: Program, word: str) -> dict[str, Any]:
    """What the program says next."""
    said: dict[str, Any] = json.loads(program.expect(word))
    return said


class OwnCluster:
    """A cluster of our own beside the one of `make services`, whose daemons may be struck."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="wfl-own-"))
        place = str(self.directory)
        self._environment = {**os.environ, "TMPDIR": place, "WFL_SERVICES": place, "WFL_PORTS": str(_free())}
        self.base = self.directory / "wfl-services" / "kubernetes"
        images = Path(variables("kubernetes")["KUBECONFIG"]).parent / "images"
        if images.is_dir():  # made once for both
            shutil.copytree(images, self.base / "images", ignore=shutil.ignore_patterns("*.new"))
        self.start()
        self.kubeconfig = str(self.base / "kubeconfig")

    def start(self) -> None:
        """Start all of its daemons that are not there, and wait until it answers and the node is ready."""
        run = self._script("start-kubernetes.sh")
        if run.returncode:
            words = (run.stdout or run.stderr).strip()
            self.close()
            lacking(f"no Kubernetes of our own: {words}")

    def _script(self, name: str) -> subprocess.CompletedProcess[str]:
        log = self.directory / "script.log"  # no pipe: the daemons keep what they inherit
        with log.open("wb") as file:
            done = subprocess.run(
                [SERVICES / name],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=4 * PATIENCE,
                check=False,
            )
        return subprocess.CompletedProcess(name, done.returncode, log.read_text(errors="replace"), "")

    def strike(self, daemon: str, number: int) -> None:
        """Send it a signal; one that ends it is waited for."""
        pid = int((self.base / "run" / f"{daemon}.pid").read_text())
        os.kill(pid, number)
        if number == signal.SIGKILL:
            wait_until(f"{daemon} has ended", lambda: not Path(f"/proc/{pid}/exe").exists())

    def close(self) -> None:
        """Stop it; nothing is left."""
        with suppress(OSError, ValueError):
            self.strike("kubelet", signal.SIGCONT)
        self._script("stop-kubernetes.sh")
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _free() -> int:
    """By how much ports, and the number of its network, have to be higher so that all are free."""
    for ports in range(100 + os.getpid() % 20 * 100, 6000, 100):
        if not Path(f"/sys/class/net/wfl{ports}").exists() and all(_is_free(port + ports) for port in PORTS):
            return ports
    raise AssertionError("no ports are free")


def _is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False

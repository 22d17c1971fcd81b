"""Kubernetes as it is without wfl: Jobs by kubectl, and another process that sees in the API when pods end.

`python -m tests.bench.apiserver KUBECONFIG NAMESPACE` prints, for each pod whose main container has terminated, its
Job's name and the monotonic clock (ns) at which the API told so.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.bench.references import ROOT

IMAGE = "busybox:1"
PATIENCE = 1800
"""Seconds that all Jobs of a run may take, and what they have left behind to go."""
ANSWER = 60
"""Seconds that a question may take."""
Object = Mapping[str, Any]


@cache
def kubeconfig() -> str:
    """The file that leads to the cluster of `make services`, whether it is there or not."""
    script = ROOT / "tests" / "services" / "environment.sh"
    return subprocess.check_output([script, "kubernetes"], text=True).strip().removeprefix("KUBECONFIG=")


def lacks() -> str | None:
    """Why nothing can be measured here; None if something can."""
    if importlib.util.find_spec("kubernetes") is None:
        return "the package kubernetes is not installed"
    if shutil.which("kubectl") is None:
        return "there is no kubectl"
    if not Path(kubeconfig()).exists():
        return f"there is no {kubeconfig()}; `make services` makes it"
    try:
        kubectl("get", "--raw", "/readyz")
    except subprocess.SubprocessError as error:
        return f"{error}; start it with `make services`"
    return None


def kubectl(*words: str, timeout: float = ANSWER) -> str:
    """The output of a command."""
    command = ["kubectl", f"--kubeconfig={kubeconfig()}", *words]
    return subprocess.check_output(command, stdin=subprocess.DEVNULL, text=True, timeout=timeout)


@contextmanager
def namespace() -> Iterator[str]:
    """A namespace in which pods can begin; it goes with all that is in it."""
    name = f"wfl-bench-{os.getpid()}"
    kubectl("create", "namespace", name)
    try:
        _until(lambda: "default" in there(name, "serviceaccounts"))  # no pod can be made before
        yield name
    finally:
        kubectl("delete", "namespace", name, timeout=PATIENCE)


def empty(space: str) -> None:
    """Wait until no pod is left: what removes them takes the node's time."""
    _until(lambda: not there(space, "pods"))


def there(space: str, kind: str) -> list[str]:
    """The names of what there is."""
    names = "jsonpath={.items[*].metadata.name}"
    return kubectl("get", kind, f"--namespace={space}", f"--output={names}").split()


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"the cluster was given {PATIENCE} s")
        time.sleep(0.5)


# -- by hand -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run:
    """Seconds from the beginning of `kubectl apply`: to the end of `kubectl wait`, and to the last pod's end."""

    seconds: float
    to_last_end: float


def singles(tasks: int) -> list[Object]:
    """As many Jobs of `true`, with pods like those of wfl."""
    return [_job(f"hand-{number}", completions=1, backoffLimit=0) for number in range(tasks)]


def array(tasks: int) -> list[Object]:
    """One Indexed Job of `true`, as parallel as wfl's."""
    return [_job("hand", completionMode="Indexed", completions=tasks, parallelism=tasks, backoffLimitPerIndex=0)]


def _job(name: str, **fields: Any) -> Object:
    pod = {
        "restartPolicy": "Never",
        "shareProcessNamespace": True,
        "automountServiceAccountToken": False,
        "containers": [{"name": "main", "image": IMAGE, "command": ["true"]}],
    }
    spec = {**fields, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def by_hand(space: str, jobs: Sequence[Object], ends: Ends) -> Run:
    """`kubectl apply` of one file, then `kubectl wait` for the same; what they have left is removed."""
    names = {job["metadata"]["name"] for job in jobs}
    pods = sum(job["spec"]["completions"] for job in jobs)
    with tempfile.NamedTemporaryFile("w", prefix="wfl-bench-", suffix=".json") as file:
        json.dump({"apiVersion": "v1", "kind": "List", "items": jobs}, file)
        file.flush()
        where = (f"--namespace={space}", f"--filename={file.name}")
        begin = time.monotonic()
        kubectl("apply", *where, timeout=PATIENCE)
        kubectl("wait", *where, "--for=condition=complete", f"--timeout={PATIENCE}s", timeout=PATIENCE)
        seconds = time.monotonic() - begin
        kubectl("delete", *where, timeout=PATIENCE)
    empty(space)
    return Run(seconds=seconds, to_last_end=ends.last(names, pods) / 1e9 - begin)


# -- seen from outside -------------------------------------------------------------------------------------------------


class Ends:
    """Another process that notes when the API tells of ends to anybody who watches; told in their order."""

    def __init__(self, space: str) -> None:
        command = [sys.executable, "-m", "tests.bench.apiserver", kubeconfig(), space]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._lines = self._process.stdout
        self._lines.readline()  # it watches

    def last(self, jobs: Collection[str], pods: int = 1) -> int:
        """When the last of so many pods of these Jobs had ended: nanoseconds of the monotonic clock."""
        for line in self._lines:
            job, told = line.decode().split()
            pods -= job in jobs
            if not pods:
                return int(told)
        raise RuntimeError(f"the watch of pods ended before {pods} pods of {', '.join(sorted(jobs))} did")

    def close(self) -> None:
        """Let the process go."""
        self._process.kill()
        self._process.wait()
        self._lines.close()


def tell_ends(config: str, space: str) -> None:
    """What the other process does, with the official client."""
    kubernetes: Any = importlib.import_module("kubernetes")  # has no types
    pods = kubernetes.client.CoreV1Api(kubernetes.config.new_client_from_config(config)).list_namespaced_pod
    version = pods(space).metadata.resource_version
    print("watching", flush=True)
    told = set()
    for event in kubernetes.watch.Watch().stream(pods, space, resource_version=version, deserialize=False):
        seen, pod = time.monotonic_ns(), event["object"]
        if pod["metadata"]["uid"] not in told and has_ended(pod):
            told.add(pod["metadata"]["uid"])
            print(pod["metadata"]["labels"]["job-name"], seen, flush=True)


def has_ended(pod: Object) -> bool:
    """Whether the main container has terminated."""
    containers = pod.get("status", {}).get("containerStatuses", ())
    return any(one["name"] == "main" and "terminated" in one["state"] for one in containers)


if __name__ == "__main__":
    tell_ends(*sys.argv[1:])

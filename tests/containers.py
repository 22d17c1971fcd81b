"""Real daemons of containers for tests: where they are, what of ours is in them, and one of our own to be killed."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
import threading
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import pytest

from tests.faults.machine import PATIENCE, wait_until
from wfl.errors import WflError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from wfl import Context

NAMES = ("docker", "podman")
IMAGE = "busybox:latest"
ANSWER = 60.0
"""Seconds that a daemon may take to answer."""
_VARIABLES = (
    "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "CONTAINER_HOST", "XDG_RUNTIME_DIR",
)  # fmt: skip
SERVICES = Path(__file__).parent / "services"


def address(name: str) -> str:
    """Where the daemon is reached that `make services` starts, whether it is there or not."""
    script = SERVICES / "address.sh"
    return subprocess.run([script, name], capture_output=True, text=True, check=True).stdout.strip()


def settings_of(url: str | None) -> dict[str, Any]:
    """How a Client is told of the daemon (None: that of the surroundings). Skips, or fails, where there is none."""
    with warnings.catch_warnings(
        action="ignore", category=ResourceWarning
    ):  # docker-py leaves sockets to the collector
        try:
            from wfl.contexts.containers.client import Client
            from wfl.contexts.containers.settings import client_of

            settings = client_of(url, None, ANSWER, None)
            client = Client(settings)
            try:
                client.info()
                tags = [tag for image in client.images() for tag in image.get("RepoTags") or ()]
            finally:
                client.close()
        except ImportError as error:
            lacking(f"docker-py is not in this environment: {error}")
        except WflError as error:
            lacking(f"no container daemon answers: {error}")
        finally:
            gc.collect()
    if not any(tag == IMAGE or tag.endswith(f"/{IMAGE}") for tag in tags):
        lacking(f"the image {IMAGE} is not there")
    return settings


def lacking(reason: str) -> NoReturn:
    """Skip the test, with the reason; with WFL_REQUIRE_ALL=1 it fails."""
    if os.environ.get("WFL_REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def reached(name: str) -> Iterator[Daemon]:
    """A daemon that `make services` has started."""
    url = address(name)
    settings_of(url)
    found = Daemon(name, url)
    yield found
    found.close()


def silence(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Nothing is said of daemons but by the test; `home` is the docker command's directory."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(home))


class Daemon:
    """A daemon asked directly, past wfl: what is in it, and what somebody else may do to it."""

    def __init__(self, name: str, url: str) -> None:
        import docker

        self.name, self.url = name, url
        self.api: Any = docker.APIClient(base_url=url, version="1.41", timeout=ANSWER)
        self._before = self.others()

    def context(self, **settings: Any) -> Context:
        """A context on it; containers without a network start faster."""
        from wfl import JobTemplate
        from wfl.contexts.docker import DockerContext
        from wfl.contexts.podman import PodmanContext

        kind = DockerContext if self.name == "docker" else PodmanContext
        template = JobTemplate(extensions={"network": "none"})
        return kind(**{"image": IMAGE, "base_url": self.url, "default_template": template, **settings})

    def containers(self, session: str) -> list[dict[str, Any]]:
        """All containers of a session."""
        found: list[dict[str, Any]] = self.api.containers(all=True, filters={"label": [f"wfl.session={session}"]})
        return found

    def states(self, session: str) -> list[str]:
        """Their states, sorted."""
        return sorted(one["State"] for one in self.containers(session))

    def others(self) -> set[str]:
        """Names of all volumes, networks and images."""
        volumes = {f"volume {one['Name']}" for one in self.api.volumes()["Volumes"] or ()}
        images = {f"image {one['Id']}" for one in self.api.images()}
        return volumes | images | {f"network {one['Name']}" for one in self.api.networks()}

    def is_empty(self, *sessions: str) -> None:
        """No container of these sessions is left, nor any volume, network or image that was not there before."""
        left = [one["Names"] for session in sessions for one in self.containers(session)]
        assert not left
        wait_until("no volume or network is left", lambda: self.others() <= self._before)

    def remove_all(self, *sessions: str) -> None:
        """Clean up after a test that failed."""
        import docker.errors

        for session in sessions:
            for one in self.containers(session):
                with suppress(docker.errors.APIError):
                    self.api.remove_container(one["Id"], v=True, force=True)

    def close(self) -> None:
        """Close its connections."""
        self.api.close()


class Own:
    """A daemon of a test's own, which may be stopped and killed: started with the scripts, in a short directory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._directory = tempfile.mkdtemp(prefix="wfl-", dir="/tmp")
        self._environment = {**os.environ, "TMPDIR": self._directory, "WFL_SERVICES": self._directory}
        run = subprocess.run(
            [SERVICES / f"start-{name}.sh"],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE,
            check=False,
        )
        if run.returncode != 0:
            self.close()
            lacking(f"no {name} of our own: {run.stdout.strip()}")
        self.base = Path(self._directory) / "wfl-services" / name
        self.socket = self.base / f"{name}.sock"
        self.url = f"unix://{self.socket}"
        self._pid = int((self.base / "pid").read_text())
        self._command = Path(f"/proc/{self._pid}/cmdline").read_text().split("\0")[:-1]
        self._variables = _variables(self._pid)
        self._place = os.readlink(f"/proc/{self._pid}/cwd")
        self._process: subprocess.Popen[bytes] | None = None

    def strike(self, number: int) -> None:
        """Send the daemon a signal, and wait for its end; nothing happens to one that has ended."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)
        if self._process is not None:
            self._process.wait(PATIENCE)
            self._process = None
        wait_until(f"{self.name} has ended", lambda: not Path(f"/proc/{self._pid}/exe").exists())

    def start(self, *options: str) -> None:
        """Start it again with these options beside the script's, and wait until it answers."""
        with open(self.base / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *options],
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._place,
                start_new_session=True,
            )
        # The scripts wait until its number is gone: it must not stay as a zombie.
        threading.Thread(target=self._process.wait, daemon=True).start()
        self._pid = self._process.pid
        (self.base / "pid").write_text(f"{self._pid}\n")
        wait_until(f"{self.name} answers", self.answers)

    def answers(self) -> bool:
        """Whether it does."""
        import docker
        import requests

        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            api = docker.APIClient(base_url=self.url, version="1.41", timeout=ANSWER)
            try:
                return bool(api.ping())
            except requests.ConnectionError:
                return False
            finally:
                api.close()
                gc.collect()

    def close(self) -> None:
        """Stop it and remove all that it kept."""
        script = SERVICES / f"stop-{self.name}.sh"
        subprocess.run([script], env=self._environment, capture_output=True, timeout=4 * PATIENCE, check=False)
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _variables(pid: int) -> Mapping[str, str]:
    """The environment of a process."""
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")[:-1]
    return dict(pair.split("=", 1) for pair in pairs)

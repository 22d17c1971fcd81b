"""PodmanContext: jobs run in containers of Podman, through the API that it shares with Docker."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from typing import Any

from wfl.contexts import docker
from wfl.contexts.containers.dialect import Dialect
from wfl.contexts.docker import DockerContext

_REFUSED = frozenset({"gpus", "platform", "machine_os", "machine_arch"})
"""Podman 4 passes over these in silence when it is asked through this API."""
_HIGHEST = 1 << 20


class PodmanContext(DockerContext):
    """Run each job in a container of its own with Podman (extra: `wfl-sdk[podman]`); it needs its service to run.

    The settings are those of DockerContext, but for base_url: None is CONTAINER_HOST, else this user's own (rootless)
    service, `systemctl --user start podman.socket`, else that of root. "ssh://user@host/run/podman/podman.sock" runs
    the podman command on the other host; without a path, for the service that it finds there itself.
    """

    name = "podman"

    def __init__(self, *, base_url: str | None = None, **settings: Any) -> None:
        super().__init__(base_url=_service() if base_url is None else base_url, **settings)

    def dialect(self) -> Dialect:
        """Where Podman differs from Docker."""
        here = (self.base_url or "").startswith("unix:")
        return Dialect(
            log={"Type": "k8s-file", "Config": {}},
            refused=_REFUSED,
            ulimits=_ulimits() if here else {},
            guesses_memory=True,
            loses_breaks=False,
            loses_lines=True,
            init_with_pid=False,
            host_gateway=False,
            not_run=(1,),
            cure="Start its service: systemctl --user start podman.socket, or podman system service -t 0; "
            "set CONTAINER_HOST or base_url to where it listens.",
        )


def _service() -> str:
    if url := os.environ.get("CONTAINER_HOST"):
        return url
    own = f"{os.environ.get('XDG_RUNTIME_DIR') or f'/run/user/{os.getuid()}'}/podman/podman.sock"
    return f"unix://{own}" if os.getuid() and os.path.exists(own) else "unix:///run/podman/podman.sock"


def _ulimits() -> dict[str, int]:
    """With any limit given, Podman asks for the highest numbers of files and processes, which its host may refuse."""
    limits = {
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "nproc": resource.getrlimit(resource.RLIMIT_NPROC)[1],
    }
    if limits["nproc"] != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError), open("/proc/sys/kernel/pid_max", encoding="ascii") as file:
            limits["nproc"] = min(limits["nproc"], int(file.read()))  # Podman lowers its own to this
    return {name: min(_HIGHEST, hard) for name, hard in limits.items() if hard != resource.RLIM_INFINITY}


def clean(session_name: str, context: DockerContext | None = None) -> int:
    """Remove all containers that programs have left behind in a session; see wfl.contexts.docker.clean."""
    return docker.clean(session_name, context or PodmanContext())

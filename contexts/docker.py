"""DockerContext: jobs run in containers of a Docker daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wfl.context import Context
from wfl.contexts.containers.dialect import Dialect
from wfl.contexts.containers.settings import auth_of, check_session, check_settings, client_of
from wfl.extras import needed
from wfl.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wfl.backend import Backend, Monitor

_WHY = "jobs in containers need docker-py"


class DockerContext(Context):
    """Run each job in a container of its own (extra: `wfl-sdk[docker]`).

    Besides the settings of every Context:
    image: the image of jobs that name none (job_category).
    base_url: where the daemon listens, such as "unix:///var/run/docker.sock", "tcp://host:2376" or "ssh://user@host";
    None: as the docker command finds it (DOCKER_HOST with its TLS variables, DOCKER_CONTEXT, the context in use, each
    in DOCKER_CONFIG's directory if that is set). ssh:// runs the ssh command, which asks nothing: keys, an agent, jumps
    and the host's key are the business of ~/.ssh; there must be a docker command on the other host.
    tls: client_cert (certificate, key), ca_cert and verify, for a tcp:// given here. verify=False trusts anybody.
    timeout: seconds that the daemon may take to answer one request.
    pull: when images are fetched: "missing" (default), "always" (once in each session) or "never".
    registry_auth: {"username": …, "password": …} or {"identitytoken": …} for the registry "serveraddress" (host or
    host:port), which is that of `image` if it is left out; other registries do not see it. None, and for all other
    registries: as the docker command is configured (`docker login`, credential helpers).

    What cannot be reached is said when the context is first used, as a DrmCommunicationError in one line.
    """

    name = "docker"

    def __init__(
        self,
        *,
        image: str | None = None,
        base_url: str | None = None,
        tls: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        pull: str = "missing",
        registry_auth: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_settings(image=image, base_url=base_url, tls=tls, timeout=timeout, pull=pull, registry_auth=registry_auth)
        self.image, self.base_url, self.tls, self.timeout = image, base_url, tls, float(timeout)
        self.pull, self.registry_auth = pull, auth_of(registry_auth, image)

    def backend(self) -> Backend:
        """A new backend; it contacts the daemon when it is opened."""
        with needed(self.name, _WHY):
            from wfl.contexts.containers.backend import ContainerBackend
        return ContainerBackend(
            self.name,
            self.client_settings(),
            self.session_name,
            image=self.image,
            pull=self.pull,
            detach=self.detach,
            dialect=self.dialect(),
        )

    def monitor(self) -> Monitor:
        """The daemon as a machine, all running containers, and its images as job categories."""
        with needed(self.name, _WHY):
            from wfl.contexts.containers.monitor import ContainerMonitor
        return ContainerMonitor(self.client_settings())

    def dialect(self) -> Dialect:
        """Where this daemon differs from others that speak Docker's API."""
        return Dialect()

    def client_settings(self) -> dict[str, Any]:
        """Where the daemon is, and how it is spoken to."""
        found = client_of(self.base_url, self.tls, self.timeout, self.registry_auth)
        return {**found, "cure": self.dialect().cure, "remote": self.name}


def clean(session_name: str, context: DockerContext | None = None) -> int:
    """Remove all containers that programs have left behind in a session; how many there were.

    Those that run go too, and so do those of a program that is still at work in this session.
    """
    check_session(session_name)
    chosen = context or DockerContext()
    with needed(chosen.name, _WHY):
        from wfl.contexts.containers.client import REQUESTS, Client
    client = Client(chosen.client_settings())
    try:
        found = [container["Id"] for container in client.list({"wfl.session": session_name})]
        in_threads(client.remove, found, REQUESTS, f"wfl-{chosen.name}-clean")
    finally:
        client.close()
    return len(found)

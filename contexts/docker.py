"""DockerContext: jobs run in containers of a Docker daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wfl.context import Context
from wfl.contexts.containers.dialect import Dialect
from wfl.contexts.containers.settings import check_settings, client_of
from wfl.errors import InvalidArgumentError, SessionManagementError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wfl.backend import Backend


class DockerContext(Context):
    """Run each job in a container of its own (extra: `wfl-sdk[docker]`).

    Besides the settings of every Context:
    image: the image of jobs that name none (job_category).
    base_url: where the daemon listens, such as "unix:///var/run/docker.sock", "tcp://host:2376" or "ssh://user@host";
    None: as the docker command finds it (DOCKER_HOST with its TLS variables, DOCKER_CONTEXT, the context in use).
    tls: client_cert (certificate, key), ca_cert and verify, for a base_url given here.
    timeout: seconds that the daemon may take to answer one request.
    pull: "missing" (default), "always" or "never": when images are fetched.
    auth: {"username": …, "password": …} for the registry; None: as the docker command is configured.
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
        auth: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_settings(image=image, base_url=base_url, tls=tls, timeout=timeout, pull=pull, auth=auth)
        if tls is not None and base_url is None:
            raise InvalidArgumentError("tls is for a base_url given here; else set DOCKER_CERT_PATH")
        self.image, self.base_url, self.tls, self.timeout = image, base_url, tls, float(timeout)
        self.pull, self.auth = pull, auth

    def backend(self) -> Backend:
        """A new backend; it contacts the daemon when it is opened."""
        try:
            from wfl.contexts.containers.backend import ContainerBackend
        except ImportError as error:
            msg = f"jobs in containers need docker-py: pip install 'wfl-sdk[{self.name}]' ({error})"
            raise SessionManagementError(msg) from error
        return ContainerBackend(
            self.name,
            self.client_settings(),
            self.session_name,
            image=self.image,
            pull=self.pull,
            detach=self.detach,
            dialect=self.dialect(),
        )

    def dialect(self) -> Dialect:
        """Where this daemon differs from others that speak Docker's API."""
        return Dialect()

    def client_settings(self) -> dict[str, Any]:
        """Where the daemon is, and how it is spoken to."""
        return client_of(self.base_url, self.tls, self.timeout, self.auth)


def clean(session_name: str, context: DockerContext | None = None) -> int:
    """Remove all containers that programs have left behind in a session, running ones too; how many there were."""
    from wfl.contexts.containers.client import Client

    client = Client((context or DockerContext()).client_settings())
    try:
        found = client.list({"wfl.session": session_name})
        for container in found:
            client.remove(container["Id"])
    finally:
        client.close()
    return len(found)

"""What the contexts of containers are given, checked; and where their daemon is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from wfl.errors import InvalidArgumentError, SessionManagementError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

PULL = ("missing", "always", "never")
_TLS = ("client_cert", "ca_cert", "verify")
_AUTH = ("username", "password", "identitytoken", "registrytoken", "serveraddress", "email")


def check_settings(
    *,
    image: str | None,
    base_url: str | None,
    tls: Mapping[str, Any] | None,
    timeout: float,
    pull: str,
    auth: Mapping[str, str] | None,
) -> None:
    """Refuse by name what cannot be meant."""
    for name, value in (("image", image), ("base_url", base_url)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected str")
        if value == "":
            raise InvalidArgumentError(f"{name} is empty")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout is {timeout!r} ({type(timeout).__name__}), expected seconds")
    if timeout <= 0:
        raise InvalidArgumentError(f"timeout is {timeout}, expected seconds above 0")
    if pull not in PULL:
        raise InvalidArgumentError(f"pull is {pull!r}:{nearest(str(pull), PULL)}")
    for what, given, known in (("tls", tls, _TLS), ("auth", auth, _AUTH)):
        for key in given or ():
            if key not in known:
                raise InvalidArgumentError(f"{what} has no {key!r}:{nearest(str(key), known)}")


def client_of(
    base_url: str | None, tls: Mapping[str, Any] | None, timeout: float, auth: Mapping[str, str] | None
) -> dict[str, Any]:
    """The settings of a Client. What is not given is found as the docker command finds it."""
    if base_url is None:
        base_url, tls = _surroundings()
    return {
        "base_url": base_url,
        "tls": dict(tls) if tls else None,
        "timeout": timeout,
        "auth": dict(auth) if auth else None,
    }


def _surroundings() -> tuple[str, Mapping[str, Any] | None]:
    """DOCKER_HOST with its TLS variables, DOCKER_CONTEXT, or the context that `docker context use` has set."""
    if url := os.environ.get("DOCKER_HOST"):
        verify, place = bool(os.environ.get("DOCKER_TLS_VERIFY")), os.environ.get("DOCKER_CERT_PATH")
        return url, _certificates(place or os.path.expanduser("~/.docker"), verify=verify) if verify or place else None
    try:
        import docker.errors
        from docker.context import ContextAPI
    except ImportError as error:
        raise SessionManagementError("jobs in containers need docker-py: pip install 'wfl-sdk[docker]'") from error
    name = os.environ.get("DOCKER_CONTEXT")
    try:
        chosen = ContextAPI.get_context(name) if name else ContextAPI.get_current_context()
    except (docker.errors.DockerException, OSError, ValueError) as error:
        raise InvalidArgumentError(f"docker context {name or 'in use'}: {error}") from error
    if chosen is None:
        raise InvalidArgumentError(f"there is no docker context {name!r}; `docker context ls` shows those there are")
    return chosen.Host or "unix:///var/run/docker.sock", _of_context(chosen.TLSConfig)


def _of_context(found: Any) -> dict[str, Any] | None:
    if found is None or not getattr(found, "cert", None):
        return None
    return {"client_cert": tuple(found.cert), "ca_cert": found.ca_cert, "verify": found.verify}


def _certificates(place: str, *, verify: bool) -> dict[str, Any]:
    return {
        "client_cert": (f"{place}/cert.pem", f"{place}/key.pem"),
        "ca_cert": f"{place}/ca.pem" if verify else None,
        "verify": verify,
    }

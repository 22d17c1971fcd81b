"""What the contexts of containers are given, checked; and where their daemon is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from wfl.contexts import settings
from wfl.errors import InvalidArgumentError, nearest

PULL = ("missing", "always", "never")
_KINDS = ("unix", "tcp", "ssh", "http", "https")
_DEFAULT = "default"
_HUB = "docker.io"
_TLS = ("client_cert", "ca_cert", "verify")
_AUTH = ("username", "password", "identitytoken", "registrytoken", "serveraddress", "email")


def check_settings(
    *,
    image: str | None,
    base_url: str | None,
    tls: Mapping[str, Any] | None,
    timeout: float,
    pull: str,
    registry_auth: Mapping[str, str] | None,
) -> None:
    """Refuse by name what cannot be meant."""
    settings.text("image", image)
    settings.text("base_url", base_url)
    if base_url is not None:
        _check_url("base_url", base_url)
    settings.seconds("timeout", timeout)
    if pull not in PULL:
        raise InvalidArgumentError(f"pull is {pull!r}:{nearest(str(pull), PULL)}")
    if tls is not None and not (base_url or "").startswith(("tcp:", "https:")):
        raise InvalidArgumentError("tls is for a base_url 'tcp://…' given here; else set DOCKER_CERT_PATH")
    _check_keys("tls", tls, _TLS)
    _check_keys("registry_auth", registry_auth, _AUTH)
    if not all(isinstance(value, str) for value in (registry_auth or {}).values()):
        raise TypeError("registry_auth has a value that is no str")


def _check_keys(what: str, given: object, known: tuple[str, ...]) -> None:
    """No value is shown: some are secrets."""
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} is a {type(given).__name__}, expected a dict")
    for key in given:
        if key not in known:
            raise InvalidArgumentError(f"{what} has no {key!r}:{nearest(str(key), known)}")


def check_session(name: str) -> None:
    """A session that is to be cleaned must be named."""
    if name is None:
        raise TypeError("session_name is None, expected str")
    settings.text("session_name", name)


def auth_of(auth: Mapping[str, str] | None, image: str | None) -> Mapping[str, str] | None:
    """The credentials with the registry that they are for: without a serveraddress, that of the context's image."""
    if auth is None or auth.get("serveraddress"):
        return auth
    if image is None:
        raise InvalidArgumentError(
            "registry_auth has no serveraddress, and there is no image: which registry is meant?"
        )
    return {**auth, "serveraddress": registry_of(image)}


def registry_of(image: str) -> str:
    """The registry that an image's name begins with, as host[:port]."""
    first, slash, _ = image.partition("/")
    return host_of(first) if slash and ("." in first or ":" in first or first == "localhost") else _HUB


def host_of(address: str) -> str:
    """The registry at an address such as "https://index.docker.io/v1/", as host[:port]."""
    host = address.rpartition("://")[2].partition("/")[0]
    return _HUB if host in (f"index.{_HUB}", f"registry-1.{_HUB}") else host


def client_of(
    base_url: str | None, tls: Mapping[str, Any] | None, timeout: float, auth: Mapping[str, str] | None
) -> dict[str, Any]:
    """The settings of a Client. What is not given is found as the docker command finds it."""
    if base_url is None:
        base_url, tls = _surroundings()
    if not base_url.startswith(("tcp:", "https:")):
        tls = None  # as for the docker command: DOCKER_TLS_VERIFY may be set for good
    return {
        "base_url": base_url,
        "tls": dict(tls) if tls else None,
        "timeout": timeout,
        "auth": dict(auth) if auth else None,
    }


def _check_url(what: str, url: str) -> str:
    kind, mark, place = url.partition("://")
    if not mark or kind not in _KINDS or not place:
        raise InvalidArgumentError(
            f"{what} is {url!r}, expected 'unix:///path/of/socket', 'tcp://host:port' or 'ssh://user@host'"
        )
    try:
        parts = urlsplit(url)
        if kind != "unix" and (not parts.hostname or (kind == "tcp" and not parts.port)):
            raise InvalidArgumentError(f"{what} is {url!r}: it has no {'port' if parts.hostname else 'host'}")
    except ValueError as error:
        raise InvalidArgumentError(f"{what} is {url!r}: {error}") from None
    if kind != "unix" and parts.password is not None:
        raise InvalidArgumentError(f"{what} has a password in it: leave it out")
    return url


def configuration() -> dict[str, Any]:
    """What the docker command keeps in its config.json; InvalidArgumentError where that cannot be read."""
    return _read(f"{_home()}/config.json")


def _home() -> str:
    return os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")


def _surroundings() -> tuple[str, Mapping[str, Any] | None]:
    """DOCKER_HOST with its TLS variables, DOCKER_CONTEXT, or the context that `docker context use` has set."""
    home = _home()
    if url := os.environ.get("DOCKER_HOST"):
        verify, place = bool(os.environ.get("DOCKER_TLS_VERIFY")), os.environ.get("DOCKER_CERT_PATH")
        tls = _certificates(place or home, verify=verify) if verify or place else None
        return _check_url("DOCKER_HOST", url), tls
    name = os.environ.get("DOCKER_CONTEXT") or configuration().get("currentContext") or _DEFAULT
    return _context(home, name) if name != _DEFAULT else ("unix:///var/run/docker.sock", None)


def _context(home: str, name: str) -> tuple[str, Mapping[str, Any] | None]:
    """What `docker context create` has written. Not by docker-py, which finds none beside a missing config.json."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    found = _read(f"{home}/contexts/meta/{digest}/meta.json").get("Endpoints", {}).get("docker", {})
    if not found.get("Host"):
        raise InvalidArgumentError(f"there is no docker context {name!r}; `docker context ls` shows those there are")
    place = f"{home}/contexts/tls/{digest}/docker"
    tls = _certificates(place, verify=not found.get("SkipTLSVerify")) if os.path.isdir(place) else None
    return _check_url(f"docker context {name!r}", found["Host"]), tls


def _read(path: str) -> dict[str, Any]:
    """A file of the docker command; empty where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def _certificates(place: str, *, verify: bool) -> dict[str, Any]:
    """As far as they are there: a daemon may want none, and its own may come from a well-known authority."""
    there = {name: f"{place}/{name}.pem" for name in ("ca", "cert", "key") if os.path.isfile(f"{place}/{name}.pem")}
    pair = (there["cert"], there["key"]) if "cert" in there and "key" in there else None
    return {"client_cert": pair, "ca_cert": there.get("ca"), "verify": verify}

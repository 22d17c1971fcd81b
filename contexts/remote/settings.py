"""What the context for a job server is given, checked: where the server is, and who asks there."""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from wfl.contexts import settings
from wfl.errors import InvalidArgumentError, nearest

PROTOCOLS = ("auto", "v1", "compatible")
TOKEN = "WFL_REMOTE_TOKEN"  # noqa: S105 - the name of a variable, no secret
"""The environment variable with the token of who gives none."""
_HIDDEN = "•••"
_SHORTEST_SECRET = 4
"""Characters; to hide shorter ones would spoil words."""


class Credentials:
    """Who asks: a bearer token, or a user with a password, or nobody. Neither repr nor pickle shows the secret."""

    __slots__ = ("_said",)

    def __init__(self, *, token: str | None = None, auth: Sequence[str] | None = None) -> None:
        self._said: dict[str, Any] = {"token": token, "auth": None if auth is None else tuple(auth)}

    def __bool__(self) -> bool:
        return any(self._said.values())

    def __repr__(self) -> str:
        kind = "token" if self._said["token"] else "auth" if self._said["auth"] else "nobody"
        return f"Credentials({kind})"

    def __reduce__(self) -> Any:
        raise TypeError("credentials are not pickled: they are secrets")

    def headers(self) -> dict[str, str]:
        """What a request says of who asks."""
        if token := self._said["token"]:
            return {"Authorization": f"Bearer {token}"}
        if auth := self._said["auth"]:
            return {"Authorization": f"Basic {base64.b64encode(':'.join(auth).encode()).decode()}"}
        return {}

    def scrubbed(self, words: str) -> str:
        """Words, of a server that may have said it back, without the secret."""
        auth = self._said["auth"]
        sent = self.headers().get("Authorization", "").partition(" ")[2]
        for secret in (self._said["token"], auth and auth[1], sent):
            if secret and len(secret) >= _SHORTEST_SECRET:
                words = words.replace(secret, _HIDDEN)
        return words

    def to_dict(self) -> dict[str, Any]:
        """With the secret in it: for the helper process alone, through a socket that nobody else has."""
        return dict(self._said)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the server is, how it is trusted, and how long it may take (seconds). It holds no secrets.

    timeout: of one request; patience: for how long one that is not answered is repeated.
    """

    base_url: str
    verify: bool | str = True
    cert: tuple[str, ...] | None = None
    timeout: float = 30.0
    patience: float = 60.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Self:
        """What `to_dict` has written."""
        return cls(**{**said, "cert": None if said["cert"] is None else tuple(said["cert"])})


def credentials_of(token: str | None, auth: Sequence[str] | None) -> Credentials:
    """Checked; without any the token of the environment. No value is shown: they are secrets."""
    if token is None and auth is None:
        token = os.environ.get(TOKEN) or None
    if token is not None and auth is not None:
        raise InvalidArgumentError("token and auth are both given: which of them is meant?")
    if token is not None:
        if not isinstance(token, str):
            raise TypeError(f"token is a {type(token).__name__}, expected str")
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise InvalidArgumentError("token is empty, or has characters that no header takes")
    if auth is not None:
        _check_auth(auth)
    return Credentials(token=token, auth=auth)


def _check_auth(auth: object) -> None:
    two = isinstance(auth, tuple | list) and len(auth) == 2  # noqa: PLR2004 - a pair
    if not isinstance(auth, tuple | list) or not two or not all(isinstance(part, str) for part in auth):
        raise TypeError(f"auth is a {type(auth).__name__}, expected (user, password)")
    if not auth[0] or ":" in auth[0]:
        raise InvalidArgumentError("auth has a user that is empty, or has a ':' in it")


def place_of(
    base_url: str,
    *,
    credentials: Credentials,
    verify: bool | str | os.PathLike[str],
    cert: str | Sequence[str] | None,
    timeout: float,
    patience: float,
    insecure: bool,
) -> Place:
    """Checked; a secret is not sent in the clear over a network unless `insecure`."""
    url = _url(base_url)
    settings.flag("insecure", insecure)
    if credentials and url.startswith("http:") and not insecure and not is_loopback(url):
        words = "anybody on the way could read the credentials: use https://, or insecure=True"
        raise InvalidArgumentError(f"base_url is {url!r}: {words}")
    return Place(
        base_url=url,
        verify=verify if isinstance(verify, bool) else _path("verify", verify),
        cert=_certificate(cert),
        timeout=settings.seconds("timeout", timeout),
        patience=settings.seconds("patience", patience),
    )


def check_protocol(protocol: str) -> str:
    """One of PROTOCOLS."""
    if protocol not in PROTOCOLS:
        raise InvalidArgumentError(f"protocol is {protocol!r}:{nearest(str(protocol), PROTOCOLS)}")
    return protocol


def is_loopback(url: str) -> bool:
    """Whether what is sent there stays on this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _url(given: object) -> str:
    if not isinstance(given, str):
        raise settings.wrong("base_url", given, "str")
    expected = "expected 'https://host[:port][/path]'"
    try:
        parts = urlsplit(given)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 0) >= 0
    except ValueError as error:
        raise InvalidArgumentError(f"base_url cannot be read: {error}; {expected}") from None
    if "@" in parts.netloc:
        raise InvalidArgumentError("base_url has a user or a password in it: give auth=(user, password), or token")
    if not known or not given.isprintable() or " " in given:
        raise InvalidArgumentError(f"base_url is {given!r}, {expected}")
    if parts.query or parts.fragment:
        raise InvalidArgumentError(f"base_url is {given!r}, with something after its path; {expected}")
    return given.rstrip("/")


def _certificate(given: object) -> tuple[str, ...] | None:
    """Of this client: one file with certificate and key, or the two."""
    if given is None:
        return None
    parts = (given,) if isinstance(given, str | os.PathLike) else given
    if not isinstance(parts, Sequence) or len(parts) not in (1, 2):
        raise settings.wrong("cert", given, "a path, or (certificate, key)")
    return tuple(_path("cert", part) for part in parts)


def _path(name: str, given: object) -> str:
    if not isinstance(given, str | os.PathLike):
        raise settings.wrong(name, given, "a path")
    path = os.path.abspath(os.path.expanduser(os.fspath(given)))
    if not os.path.exists(path):
        raise InvalidArgumentError(f"{name} is {os.fspath(given)!r}: there is no {path}")
    return path

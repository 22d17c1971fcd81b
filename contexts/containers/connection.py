"""Connections to a daemon through docker-py, one pool for each client; and words for what keeps them from it."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import docker
import docker.errors
import requests
import urllib3
from docker.tls import TLSConfig
from docker.transport.unixconn import UnixHTTPAdapter, UnixHTTPConnection, UnixHTTPConnectionPool
from urllib3.connection import HTTPConnection

from wfl.contexts import network
from wfl.contexts.containers import tunnel
from wfl.errors import InvalidArgumentError, SessionManagementError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

POOL = 64
"""Connections that are kept: more than the requests and followers there are at once."""
TLS_CURE = (
    "Give the right certificates: tls={'client_cert': (CERT, KEY), 'ca_cert': CA, 'verify': True}, "
    "or DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH."
)
_GROUP_CURE = "Put this user into the group that may use it (Docker's: usermod -aG docker USER), and log in again."


def connected(settings: Mapping[str, Any], version: str) -> Any:
    """Docker-py's client, which has contacted nothing yet."""
    url, timeout, tls = settings["base_url"], settings["timeout"], settings.get("tls")
    far = url.startswith("ssh:")
    try:
        api = docker.APIClient(
            base_url=None if far else url, version=version, timeout=timeout, tls=TLSConfig(**tls) if tls else False
        )
    except docker.errors.TLSParameterError as error:
        raise InvalidArgumentError(f"{url}: {error.msg}: {', '.join(_files(tls or {}))}") from error
    except (docker.errors.DockerException, ValueError) as error:
        raise SessionManagementError(f"{url}: {error}") from error
    # Of the environment only proxies count: REQUESTS_CA_BUNDLE would be taken instead of the ca_cert that was given.
    api.trust_env = False
    api.headers.update(api._general_configs.get("HttpHeaders") or {})  # noqa: SLF001 - of the docker configuration
    if far:
        command = tunnel.command(url, settings.get("remote") or "docker", timeout)
        api.mount("http+docker://", tunnel.Tunnels(command, timeout, POOL))
    elif api.base_url.startswith("http+docker:"):
        api.mount("http+docker://", _OnePool(api.get_adapter(api.base_url).socket_path, timeout))
    else:
        api.proxies = requests.utils.get_environ_proxies(api.base_url)
        api.mount(api.base_url, _Far(pool_maxsize=POOL))
    return api


def reason(error: BaseException) -> BaseException:
    """What is below requests' and urllib3's wrappings."""
    while isinstance(error, requests.RequestException | urllib3.exceptions.HTTPError) and error.__context__:
        error = error.__context__
    return error


def words(reason: BaseException) -> str:
    """It in one line."""
    if isinstance(reason, ValueError) and not isinstance(reason, ssl.SSLError):
        return "the connection was cut"
    return network.words(reason)


def unreached(url: str, error: BaseException, cure: str) -> str:
    """In one line: which address, what went wrong, and what to do; `cure` where nothing better is known."""
    why = reason(error)
    if isinstance(why, ssl.SSLError):
        cure = TLS_CURE
    elif isinstance(why, PermissionError):
        cure = _GROUP_CURE
    elif isinstance(why, tunnel.TunnelError):
        host = url.partition("://")[2].partition("/")[0]
        cure = f"This must work, and ask nothing: ssh -o BatchMode=yes ssh://{host} {why.program} version"
    return f"{url}: {words(why).rstrip('.')}. {cure}"


def cut(response: requests.Response) -> None:
    """End a stream that another thread reads."""
    with suppress(OSError, AttributeError):  # it has ended
        _socket_of(response).shutdown(socket.SHUT_RDWR)


def _socket_of(response: requests.Response) -> socket.socket:
    found: socket.socket = response.raw._fp.fp.raw._sock  # noqa: SLF001 - there is no other way to it
    return found


class Input:
    """The socket of a connection that has become a container's standard input; it closes with its connection."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._sock = _socket_of(response)
        self._sock.settimeout(None)

    def sendall(self, data: bytes) -> None:
        """Write all of it, however long it takes."""
        self._sock.sendall(data)

    def finish(self) -> None:
        """That was all; returns when the other side has closed, too, or says something."""
        self._sock.shutdown(socket.SHUT_WR)
        self._sock.recv(1)

    def close(self) -> None:
        """Close the connection."""
        cut(self._response)
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _files(tls: Mapping[str, Any]) -> list[str]:
    return [str(path) for path in (*(tls.get("client_cert") or ()), tls.get("ca_cert")) if path]


class _Far(requests.adapters.HTTPAdapter):
    """The system notices when the other machine is gone, though nothing is said for hours."""

    def init_poolmanager(self, *args: Any, **settings: Any) -> None:
        options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        if hasattr(socket, "TCP_KEEPIDLE"):
            options += [(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30), (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)]
        super().init_poolmanager(*args, socket_options=[*HTTPConnection.default_socket_options, *options], **settings)


class _OnePool(UnixHTTPAdapter):  # type: ignore[misc] # docker-py has no types
    """Docker-py keys its pools by URL, of which every container has its own, and loses requests as it drops pools."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__(f"http+unix://{path}", timeout)
        self._pool = _Pool("http+docker://localhost", path, timeout, maxsize=POOL)

    def get_connection(self, url: str, proxies: object = None) -> Any:
        del url, proxies
        return self._pool

    def close(self) -> None:
        super().close()
        self._pool.close()


class _Pool(UnixHTTPConnectionPool):  # type: ignore[misc] # as above
    def _new_conn(self) -> UnixHTTPConnection:
        return _Connection(self.base_url, self.socket_path, self.timeout)


class _Connection(UnixHTTPConnection):  # type: ignore[misc] # as above
    def connect(self) -> None:
        """Docker-py leaves the socket open where nobody listens."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self.unix_socket)
        except BaseException:
            sock.close()
            raise
        self.sock = sock

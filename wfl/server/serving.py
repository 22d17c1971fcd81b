"""Runs the application on sockets, with uvicorn: addresses, TLS, connections that say nothing, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import resource
import signal
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from typing import TYPE_CHECKING, Any, ClassVar

import uvicorn
from msgspec import Struct
from uvicorn.protocols.http.h11_impl import H11Protocol

from wfl.errors import InvalidArgumentError
from wfl.server.identities import fingerprint_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.applications import Starlette

    from wfl.server.app import JobServer
    from wfl.server.limits import ServerLimits

log = logging.getLogger("wfl.server")

KEEP_ALIVE = 15
"""Seconds for which a connection is kept between two requests."""
SPARE = 200
"""Descriptors that are left for jobs, files and databases."""
_BACKLOG = 2048
"""Connections that wait in the kernel to be accepted."""
_ACCEPTED = 16
"""Connections that are accepted in one round: they are counted only in later ones, which files have to last for."""
_TLS_BUFFER = 32 << 10
"""Bytes that asyncio keeps for each connection with TLS; its own 256 KiB would be a gigabyte for idle ones."""


class Tls(Struct, frozen=True, kw_only=True):
    """Files in PEM form: the server's certificate with its chain, its key, and who may sign those of clients.

    required: a client without a certificate is turned away.
    """

    certificate: str
    key: str | None = None
    client_authorities: str | None = None
    required: bool = False

    def context(self) -> ssl.SSLContext:
        """Raises InvalidArgumentError for files that cannot be used."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            made.load_cert_chain(self.certificate, self.key)
            if self.client_authorities is not None:
                made.load_verify_locations(self.client_authorities)
                made.verify_mode = ssl.CERT_REQUIRED if self.required else ssl.CERT_OPTIONAL
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(filter(None, (self.certificate, self.key, self.client_authorities)))
            raise InvalidArgumentError(f"TLS cannot be set up with {files}: {error}") from error
        return made


class Place:
    """What has a place among the connections. Where there are too many, those that say nothing go first."""

    limits: ClassVar[ServerLimits]
    most: ClassVar[int]
    silent: ClassVar[dict[Place, None]]
    connections: set[Any]
    transport: asyncio.Transport

    def _take_place(self) -> None:
        self.silent[self] = None
        if len(self.connections) > self.most:
            next(iter(self.silent))._abort()

    def _abort(self) -> None:
        self.silent.pop(self, None)
        self.transport.abort()


class Connection(Place, H11Protocol):
    """One connection. One that says nothing is closed."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, if there is room."""
        super().connection_made(transport)  # type: ignore[arg-type] # a transport for streams, as TCP is
        self.app_state = {**self.app_state, "abort": self._abort}
        if secured := transport.get_extra_info("ssl_object"):
            certificate = secured.getpeercert(binary_form=True)
            self.app_state["certificate"] = fingerprint_of(certificate) if certificate else None
        self._take_place()
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Something came."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._is_busy():
            self._stop_waiting()
        elif self._deadline is None:
            self._wait_for_head()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        log.info("%s: what came is no request: 400", _address(self.transport))
        super().send_400_response(msg)

    def on_response_complete(self) -> None:
        """It may ask for something else, and has a while for that."""
        super().on_response_complete()
        if not self.transport.is_closing() and not self._is_busy():
            self.silent[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_busy(self) -> bool:
        """Whether a request is under way; before the first there is no cycle."""
        return not getattr(self.cycle, "response_complete", True)

    def _wait_for_head(self) -> None:
        self._deadline = self.loop.call_later(self.limits.header_seconds, self._cut)

    def _stop_waiting(self) -> None:
        self.silent.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut(self) -> None:
        if self.conn.trailing_data[0]:
            log.info("%s: cut off: the head of its request came too slowly", _address(self.transport))
        self._abort()

    def _abort(self) -> None:
        self._stop_waiting()
        super()._abort()


class Gate(Place, asyncio.Protocol):
    """A connection until TLS is agreed upon: it counts, and has as little time, as one that has not asked yet."""

    tls: ClassVar[ssl.SSLContext]
    behind: ClassVar[type[Connection]]

    def __init__(self, **given: Any) -> None:
        """`given`: what uvicorn gives to its protocols."""
        self._given, self._early = given, b""
        self.connections = given["server_state"].connections
        self._agreeing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, if there is room."""
        self.transport = transport  # type: ignore[assignment] # one for streams, as TCP is
        self.connections.add(self)
        self._agreeing = asyncio.get_running_loop().create_task(self._agree())
        self._take_place()

    def data_received(self, data: bytes) -> None:
        """What the client said before the one behind was there."""
        self._early += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - whatever it was
        """It was over before it began."""
        self._leave()

    def shutdown(self) -> None:
        """The server is being stopped."""
        self._abort()

    async def _agree(self) -> None:
        try:
            secured = await asyncio.get_running_loop().start_tls(
                self.transport, self, self.tls, server_side=True, ssl_handshake_timeout=self.limits.header_seconds
            )
        except OSError as error:
            log.info("%s: TLS was not agreed upon: %s", _address(self.transport), error)
            return
        finally:
            self._leave()
        if secured is None or secured.is_closing():
            return
        connection = self.behind(**self._given)
        secured.set_protocol(connection)
        connection.connection_made(secured)
        if self._early:
            connection.data_received(self._early)

    def _leave(self) -> None:
        self.silent.pop(self, None)
        self.connections.discard(self)

    def _abort(self) -> None:
        super()._abort()
        if self._agreeing is not None:
            self._agreeing.cancel()


def _address(transport: asyncio.BaseTransport) -> str:
    """Of the other end, as it is in the log."""
    found = transport.get_extra_info("peername")
    return str(found[0]) if found else "-"


class _Uvicorn(uvicorn.Server):
    """Signals are the runner's."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """With another number for the kernel than for asyncio, which takes one for both."""
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(_BACKLOG)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InvalidArgumentError where there can be none."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, _, _, _, place = found[0]
        # With the protocol by name: asyncio sends small answers at once only on sockets that say that they are TCP's.
        made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(place)
            made.listen(_BACKLOG)
        except OSError:
            made.close()
            raise
        return made
    except OSError as error:
        raise InvalidArgumentError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


async def serve(
    app: Starlette, sockets: list[socket.socket], *, tls: Tls | None, grace: float, proxies: str | None
) -> None:
    """Serve until SIGTERM or SIGINT comes, then drain: `grace` seconds for what is under way. Twice: at once.

    proxies: addresses of reverse proxies whose X-Forwarded-For is believed.
    """
    server: JobServer = app.state.server
    config = uvicorn.Config(
        app,
        http=_connections(server.limits, tls),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=proxies is not None,
        forwarded_allow_ips=proxies or "",
        timeout_keep_alive=KEEP_ALIVE,
        backlog=_ACCEPTED,
        timeout_graceful_shutdown=max(1, round(grace)),
        h11_max_incomplete_event_size=server.limits.headers + server.limits.url,
    )
    running = _Uvicorn(config)

    def stop() -> None:
        if running.should_exit:
            running.force_exit = True
        log.info("stopping: no job is taken any more")
        server.drain()
        running.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await running.serve(sockets)


def _connections(limits: ServerLimits, tls: Tls | None) -> type[Connection | Gate]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(limits.connections, max(files - SPARE, 16))
    if most < limits.connections:
        log.warning("at most %d connections at once, as the limit of open files is %d", most, files)
    settings: dict[str, Any] = {"limits": limits, "most": most, "silent": {}}
    behind = type("LimitedConnection", (Connection,), settings)
    if tls is None:
        return behind
    SSLProtocol.max_size = _TLS_BUFFER
    return type("LimitedGate", (Gate,), {**settings, "tls": tls.context(), "behind": behind})

"""What every request passes before anything is done for it: sizes, host, who it is, how often; and that it is logged.

An ASGI middleware without knowledge of jobs. What it refuses costs nothing but the answer. No header, no query and no
body is ever logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from wfl.errors import DeniedByDrmsError, InternalError, InvalidArgumentError, TryLaterError, WflError
from wfl.server.identities import Credentials, TooManyError
from wfl.server.refusals import CHALLENGES, ForbiddenError, HttpError, problem, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from wfl.server.identities import Guardian, Identity
    from wfl.server.limits import ServerLimits
    from wfl.server.metrics import Metrics

log = logging.getLogger("wfl.server")

SAFE = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
"""In every answer: what a browser makes of it is nobody's business."""


class BrokenOffError(Exception):
    """The client is gone, or does not take what it is sent."""


class Protection:
    """Wraps an application. `open_paths` need no authentication. `hosts`: what Host may say; None: anything."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        guardian: Guardian,
        limits: ServerLimits,
        metrics: Metrics,
        open_paths: Collection[str],
        hosts: Collection[str] | None,
    ) -> None:
        self._app, self._guardian, self._limits, self._metrics = app, guardian, limits, metrics
        self._open, self._hosts = frozenset(open_paths), None if hosts is None else frozenset(hosts)
        self._rates: dict[str, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; anything but HTTP (and a host application's lifespan) is turned away."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, sent = time.perf_counter(), _Sent(scope, send, self._limits.send_seconds)
        state: dict[str, Any] = dict(scope.get("state") or {})
        scope["state"] = state
        try:
            identity = await self._admitted(scope)
            state["identity"] = identity
            await self._app(scope, receive, sent)
        except HttpError as error:
            await sent.refuse(error)
        except WflError as error:
            await sent.refuse(refusal(error))
        except (BrokenOffError, ClientDisconnect):
            sent.status = sent.status or 499
            sent.abort()
        except Exception:
            log.exception("a mistake of the server")
            await sent.refuse(HttpError(500, InternalError("a mistake of the server, which its log describes")))
        finally:
            self._note(scope, state, sent, time.perf_counter() - began)

    async def _admitted(self, scope: Scope) -> Identity | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._check_sizes(scope, headers)
        given: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in _ONCE and name in given:
                raise HttpError(400, InvalidArgumentError(f"the header {name.decode()} is there twice"))
            given[name] = value
        if b"content-length" in given and b"transfer-encoding" in given:
            # A proxy that goes by the other one would take the rest of the body for a request of somebody else's.
            words = InvalidArgumentError("the body has two lengths")
            raise HttpError(400, words, headers={"Connection": "close"})
        self._check_origin(given)
        if _path(scope) in self._open:
            return None
        identity = await self._identified(scope, given)
        self._check_rate(identity.name)
        return identity

    def _check_sizes(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        limits = self._limits
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > limits.url:
            raise HttpError(414, InvalidArgumentError(f"the address is longer than {limits.url} bytes"))
        if len(headers) > limits.header_lines or sum(len(n) + len(v) for n, v in headers) > limits.headers:
            raise HttpError(431, InvalidArgumentError(f"the headers are longer than {limits.headers} bytes"))

    def _check_origin(self, given: dict[bytes, bytes]) -> None:
        """A page of another site in somebody's browser is not that somebody; nor is a name that leads here."""
        host = given.get(b"host", b"").decode("latin-1").lower()
        if self._hosts is not None and _name(host) not in self._hosts:
            raise HttpError(403, ForbiddenError("this server is not called that"))
        origin = given.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host:
            raise HttpError(403, ForbiddenError("requests from pages of other sites are refused"))
        if given.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
            raise HttpError(403, ForbiddenError("requests from pages of other sites are refused"))

    async def _identified(self, scope: Scope, given: dict[bytes, bytes]) -> Identity:
        client = scope.get("client")
        authorization = given.get(b"authorization")
        credentials = Credentials(
            None if authorization is None else authorization.decode("latin-1"),
            (scope.get("state") or {}).get("certificate"),
            str(client[0]) if client else "",
        )
        try:
            identity = await self._guardian.identify(credentials)
        except TooManyError as error:
            raise HttpError(429, TryLaterError(str(error)), headers={"Retry-After": str(error.seconds)}) from error
        if identity is None:
            raise HttpError(401, DeniedByDrmsError("a valid token or password is needed"))
        return identity

    def _check_rate(self, name: str) -> None:
        """A bucket of `burst` requests, into which `rate` a second drop."""
        now = time.monotonic()
        left, since = self._rates.get(name, (float(self._limits.burst), now))
        left = min(float(self._limits.burst), left + (now - since) * self._limits.rate)
        if left < 1:
            wait = str(int((1 - left) / self._limits.rate) + 1)
            raise HttpError(429, TryLaterError("too many requests"), headers={"Retry-After": wait})
        self._rates[name] = (left - 1, now)

    def _note(self, scope: Scope, state: dict[str, Any], sent: _Sent, seconds: float) -> None:
        identity: Identity | None = state.get("identity")
        route = state.get("route") or "-"
        stream = bool(state.get("stream"))
        self._metrics.request(_word(scope["method"]), route, sent.status, seconds, stream=stream)
        if _path(scope) in self._open and sent.status < 400:  # noqa: PLR2004 - probes come every few seconds
            return
        client = scope.get("client")
        path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        log.info(
            "%s %s %s %s %d %d bytes %.1f ms",
            _shown(str(client[0])) if client else "-",
            identity.name if identity else "-",
            _word(scope["method"]),
            _shown(path),
            sent.status,
            sent.size,
            seconds * 1000,
        )


class _Sent:
    """Where answers go: with the headers that all have, in bounded time, counted."""

    def __init__(self, scope: Scope, send: Send, seconds: float) -> None:
        self._scope, self._send, self._seconds = scope, send, seconds
        self.status = self.size = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ())]
            have = {name for name, _ in headers}
            message = {**message, "headers": [*headers, *(one for one in SAFE if one[0] not in have)]}
        else:
            self.size += len(message.get("body", b""))
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except OSError as error:  # a time-out is one, too
            raise BrokenOffError from error

    async def refuse(self, error: HttpError) -> None:
        """Answer with an error, if nothing was answered yet; else break off."""
        if self.status:
            self.abort()
            return
        body = problem(error)
        headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        if error.status == 401:  # noqa: PLR2004
            headers += [(b"www-authenticate", challenge.encode()) for challenge in CHALLENGES]
        if error.status in (413, 431):
            headers.append((b"connection", b"close"))  # what is still coming is not read
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        try:
            await self({"type": "http.response.start", "status": error.status, "headers": headers})
            await self({"type": "http.response.body", "body": body})
        except BrokenOffError:
            self.abort()

    def abort(self) -> None:
        """Cut the connection: an answer that broke off must not look like a whole one."""
        cut: Callable[[], None] | None = self._scope["state"].get("abort")
        if cut is not None:
            cut()


_ONCE = frozenset({b"authorization", b"host", b"origin", b"content-length", b"content-type", b"idempotency-key"})


def _path(scope: Scope) -> str:
    """The part of the path that routes go by: without where another application has mounted this one."""
    path, root = scope["path"], scope.get("root_path", "")
    return str(path.removeprefix(root) if path.startswith(f"{root}/") else path)


def _name(host: str) -> str:
    """Without the port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if ":" in host else host


def _word(method: str) -> str:
    return method if method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH") else "OTHER"


def _shown(path: str) -> str:
    """A path in one line of the log, whatever it has in it."""
    text = path[:300] + ("…" if len(path) > 300 else "")  # noqa: PLR2004
    return text if text.isascii() and text.isprintable() else repr(text)[1:-1]

"""The server as an ASGI application: one JobSession of one context, what is around it, and how it begins and ends."""

from __future__ import annotations

import asyncio
import copy
import os
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from wfl.drmaa2 import Capability
from wfl.errors import InvalidArgumentError, WflError
from wfl.log import log
from wfl.server.bodies import Bodies
from wfl.server.compatible import Compatible
from wfl.server.database import Database
from wfl.server.events import Hub
from wfl.server.files import Files
from wfl.server.identities import Identities
from wfl.server.jobs import Ledger
from wfl.server.limits import ServerLimits
from wfl.server.metrics import MEDIA, Metrics
from wfl.server.policy import ELSEWHERE, ISOLATED, Policy
from wfl.server.protection import Protection
from wfl.server.refusals import HttpError, UnknownError, problem, refusal
from wfl.server.routes import ENDPOINTS, Api
from wfl.server.streams import Places
from wfl.server.workers import Workers
from wfl.session import JobSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from wfl.context import Context
    from wfl.server.identities import Guardian

    Handler = Callable[[Request], Awaitable[ASGIApp]]

VERSION_PATH = "/api/v1"
LEGACY_PATH = "/jobserver/jobmanagement"
TIDY = 60.0
"""Seconds between two looks for what nobody needs any more."""
OWN = ""
"""What the server does by itself, among what identities ask for; none of them is called that."""
_DEFAULT_SESSION = "wfl"


class JobServer:
    """What an application serves: made closed, `open` by its lifespan (or before), closed by it."""

    def __init__(
        self,
        context: Context,
        directory: Path,
        guardian: Guardian,
        policy: Policy,
        limits: ServerLimits,
        *,
        own_directories: bool | None,
    ) -> None:
        self._given, self.directory, self.guardian, self.policy, self.limits = (
            context, directory, guardian, policy, limits,
        )  # fmt: skip
        self.context = context
        own = context.name not in ISOLATED | ELSEWHERE if own_directories is None else own_directories
        self._own = own and not context.default_template.working_directory  # which is one for all jobs
        self.metrics = Metrics()
        self.places = Places(self.metrics, limits)
        self.bodies = Bodies(limits)
        self.base_path = self.api_path = ""
        self.draining = False
        self._opened = False
        self.session: JobSession
        self.database: Database
        self.files: Files
        self.ledger: Ledger
        self.hub: Hub
        self.acting: Workers
        self.looking: Workers
        self.reading: Workers

    # -- its life --

    def open(self) -> None:
        """Open the session and all that is known of earlier ones; blocks. Raises what the execution system says."""
        if self._opened:
            return
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as undo:
            self.database = Database(self.directory)
            undo.callback(self.database.close)
            self.context = _with_store(self._given, self.directory, self.database.id)
            self.files = Files(self.directory, self.database, self.limits, own_directories=self._own)
            self.session = JobSession(self.context)
            undo.callback(self.session.close)
            self.ledger = Ledger(
                self.session,
                self.database,
                self.files,
                self.policy,
                self.limits,
                isolated=self.isolated,
                own=self._own,
                hide=str(self.directory),
            )
            self.hub = Hub(self.ledger.describe, self.limits.events)
            self.acting, self.looking, self.reading = (
                Workers(name, self.limits) for name in ("acting", "looking", "reading")
            )
            undo.pop_all()
        self._opened = True

    @asynccontextmanager
    async def running(self, _: object = None) -> AsyncIterator[None]:
        """While it serves; at the end the session is closed, with its jobs ended or not as the context says."""
        await asyncio.to_thread(self.open)
        self.hub.open()
        stop = self.session.watch(self.hub.changed)
        tidying = asyncio.create_task(self._tidy())
        try:
            yield
        finally:
            self.drain()
            stop()
            tidying.cancel()
            with suppress(asyncio.CancelledError):
                await tidying
            for workers in (self.acting, self.looking, self.reading):
                workers.close()
            await asyncio.to_thread(self.close)

    def drain(self) -> None:
        """Take no submission any more, and end what is told to clients; on the event loop."""
        self.draining = True
        if self._opened:
            self.ledger.draining = True
            self.hub.close()

    def close(self) -> None:
        """Let go of everything; blocks."""
        if self._opened:
            self._opened = False
            try:
                self.session.close()
            finally:
                self.database.close()

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY)
            self.hub.tidy()
            try:
                await self.reading.run(OWN, self.files.remove_unused)
            except WflError as error:
                log.warning("looking for what nobody needs: %s", error)

    # -- what it is --

    @property
    def isolated(self) -> bool:
        """Whether a job's paths are in a file system of its own."""
        known = self.policy.isolated
        return self.context.name in ISOLATED if known is None else known

    def capabilities(self) -> list[str]:
        """What can be done with a job here: arrays are taken as a whole, and jobs outlive those who started them."""
        always = {Capability.NATIVE_ARRAYS, Capability.REATTACH, Capability.DETACH}
        return sorted(one.value for one in Capability if one in always or self.session.supports(one))

    def fields(self) -> list[str]:
        """Fields of a template that can be set."""
        found = self.session.backend.fields & {*self.policy.fields}
        if not self.policy.server_paths:
            found -= {"output_path", "error_path"}
            found -= set() if self.isolated else {"working_directory"}
            found -= set() if self.isolated or self._own else {"stage_in_files", "stage_out_files"}
        return sorted(found if self.extensions() else found - {"extensions"})

    def extensions(self) -> list[str]:
        """Extensions of a template that can be set."""
        return sorted(self.session.backend.extensions & {*self.policy.extensions})

    def categories(self) -> list[str]:
        """What job_category may name, as far as that is known; blocks."""
        if self.policy.images is not None:
            return sorted(image for image in self.policy.images if not set(image) & set("*?["))
        try:
            return list(self.system("categories"))
        except WflError:
            return []

    def system(self, what: str) -> Sequence[Any]:
        """What the system has of "machines", "queues" or "categories"; blocks. Raises what it says."""
        if what == "categories" and self.policy.images is not None:
            return self.categories()
        with closing(self.context.monitor()) as monitor:
            found: Sequence[Any] = getattr(monitor, what)()
            return found

    # -- how it answers --

    def endpoint(self, path: str, handler: Handler) -> Handler:
        """A handler whose errors hide where this server keeps things, and that is counted under its path."""

        async def answer(request: Request) -> ASGIApp:
            request.scope["state"]["route"] = path
            try:
                return await handler(request)
            except WflError as error:
                shown = type(error)(self.ledger.shown(str(error)))
                raise refusal(shown) from error
            finally:
                self.bodies.release(request)

        return answer

    async def healthz(self, request: Request) -> Response:
        """Whether it is alive: it answers."""
        request.scope["state"]["route"] = "/healthz"
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Whether it takes jobs."""
        request.scope["state"]["route"] = "/readyz"
        ready = self._opened and not self.draining and not self.session.closed
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    async def show_metrics(self, request: Request) -> Response:
        """What it counts."""
        request.scope["state"]["route"] = "/metrics"
        states = await self.looking.run(OWN, self.ledger.counts)
        waiting = self.acting.pending + self.looking.pending + self.reading.pending
        by_name = {str(state): count for state, count in states.items()}
        text = self.metrics.text(by_name, waiting=waiting, draining=self.draining)
        return Response(text, media_type=MEDIA)


def create_app(
    context: Context,
    *,
    directory: str | os.PathLike[str],
    identities: Guardian,
    base_path: str = "",
    policy: Policy | None = None,
    limits: ServerLimits | None = None,
    legacy: bool = False,
    legacy_get: bool = False,
    legacy_path: str = LEGACY_PATH,
    open_metrics: bool = False,
    hosts: Collection[str] | None = None,
    own_directories: bool | None = None,
) -> Starlette:
    """An ASGI application that offers a context to others; its lifespan opens and closes the session.

    directory: where it keeps its jobs, uploads and results; for this server alone, on a local file system.
    identities: an Identities, or Anybody() for no authentication at all.
    base_path: what all addresses begin with, such as "/wfl" behind a proxy that leaves that there.
    policy, limits: what may be asked for; see Policy and ServerLimits.
    legacy: also speak the protocol of wfl for Go, below `legacy_path`; legacy_get: with its GETs that change something.
    open_metrics: /metrics needs no authentication. hosts: what the header Host may say; None: anything.
    own_directories: each job starts in a directory of its own here, which a cluster's machines have to see, too; None:
    unless jobs are in containers, or on other machines. Where the context's default_template has a working_directory,
    that is the directory of all jobs.

    To make it part of another application, mount it there and run its lifespan in that one's:
    `async with app.router.lifespan_context(app): …`. `app.state.server.drain()` prepares for the end.
    """
    if not callable(getattr(identities, "identify", None)):
        raise TypeError(f"identities is {identities!r}, expected Identities(PATH), or Anybody() for none")
    place = Path(directory).absolute()
    base, old = _checked_path("base_path", base_path), _checked_path("legacy_path", legacy_path)
    limits = limits or ServerLimits()
    if isinstance(identities, Identities):
        identities.passwords = limits.passwords
    server = JobServer(context, place, identities, policy or Policy(), limits, own_directories=own_directories)
    server.base_path, server.api_path = base, base + VERSION_PATH
    routes = _routes(server, Api(server))
    routes += Compatible(server, control=legacy_get).routes(base + old) if legacy else []
    routes += [
        Route(f"{base}/healthz", server.healthz),
        Route(f"{base}/readyz", server.readyz),
        Route(f"{base}/metrics", server.show_metrics),
    ]
    open_paths = {f"{base}/healthz", f"{base}/readyz", *([f"{base}/metrics"] if open_metrics else [])}
    protection = Middleware(
        Protection,
        guardian=identities,
        limits=limits,
        metrics=server.metrics,
        open_paths=open_paths,
        hosts=hosts,
    )
    app = Starlette(
        routes=routes,
        middleware=[protection],
        exception_handlers={HTTPException: _by_router},
        lifespan=server.running,
    )
    app.router.redirect_slashes = False
    app.state.server = server
    return app


def _routes(server: JobServer, api: Api) -> list[Route]:
    """One for each path, so that Allow says all that is possible there."""
    handlers: dict[str, dict[str, Handler]] = {}
    for one in ENDPOINTS:
        path = server.api_path + one.path
        handlers.setdefault(path, {})[one.method] = server.endpoint(path, getattr(api, one.handler))

    def route(path: str, by_method: dict[str, Handler]) -> Route:
        async def answer(request: Request) -> ASGIApp:
            method = request.method
            return await by_method[method if method in by_method else "GET"](request)  # HEAD is a GET without a body

        return Route(path, answer, methods=[*by_method])

    return [route(path, by_method) for path, by_method in handlers.items()]


async def _by_router(request: Request, error: Exception) -> Response:
    """What there is no endpoint for."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    headers = dict(getattr(error, "headers", None) or {})
    words = f"{request.method} is not possible here" if status == 405 else "there is nothing here"  # noqa: PLR2004
    return Response(problem(HttpError(status, UnknownError(words))), status, headers, "application/json")


def _with_store(context: Context, directory: Path, id: str) -> Context:
    """The context with its record in the server's directory, and jobs that are told from those of other servers."""
    found: Any = copy.copy(context)
    found.store = str(directory / "jobs.db")
    if context.session_name == _DEFAULT_SESSION:
        found.session_name = f"server-{id}"
    result: Context = found
    return result


def _checked_path(name: str, path: str) -> str:
    if path and (not path.startswith("/") or path.endswith("/") or "{" in path):
        raise InvalidArgumentError(f"{name} is {path!r}, expected '' or a path such as '/wfl'")
    return path

"""The v1 API: one method for each endpoint, and the table of them that routes and their description are made from.

Handlers read the request, have the ledger do the work in a thread, and write the answer; they decide nothing else.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import FileResponse, Response

from wfl.backend import Action
from wfl.drmaa2 import JobState
from wfl.errors import InvalidArgumentError, InvalidStateError, WflError
from wfl.server import messages as m
from wfl.server.jobs import Array, Asked, Job, check_indexes, place
from wfl.server.openapi import BYTES, Endpoint, Parameter, document, release
from wfl.server.protection import BrokenOffError
from wfl.server.refusals import (
    Fault,
    ForbiddenError,
    HttpError,
    UnknownError,
    fault,
    malformed,
)
from wfl.server.streams import EVENTS, Stream, events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from wfl.backend import Stream as Output
    from wfl.server.app import JobServer
    from wfl.server.events import Owner
    from wfl.server.files import Upload
    from wfl.server.identities import Identity
    from wfl.server.jobs import Answer

JSON = "application/json"
PIECE = 1 << 20
"""Bytes of an upload that are written at once, and of output that is sent at once."""
PAGE = 1000
_PLACE = r"\d{1,18}\.(-1|\d{1,10})"
_SESSION = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})", re.ASCII)
_LOOKS = (0.02, 1.0)
"""Seconds between two looks at output that is followed, the shortest and the longest."""
_LEAST_RATE = 1024
"""Bytes a second that an upload must bring, after a while."""
SYSTEM = ("machines", "queues", "categories")
_ACTION = {action.value: action for action in Action}


class Api:
    """The endpoints of one server."""

    def __init__(self, server: JobServer) -> None:
        self._server = server
        self._document = cache(lambda: document(ENDPOINTS))

    # -- about the server --

    async def info(self, request: Request) -> Response:
        """What it is and can do, and who you are."""
        server, identity = self._server, identity_of(request)
        limits = server.limits
        return _json(
            m.About(
                server=server.database.id,
                started=server.hub.started,
                version=release(),
                context=server.context.name,
                capabilities=server.capabilities(),
                fields=server.fields(),
                extensions=server.extensions(),
                identity=m.Who(identity.name, identity.admin),
                limits=m.Bounds(
                    limits.submissions, limits.elements, limits.ids, limits.body, limits.upload, limits.wait
                ),
            )
        )

    async def openapi(self, request: Request) -> Response:
        """The description of this API, below the address by which it was asked for."""
        base = request.scope.get("root_path", "") + self._server.api_path
        return Response(msgspec.json.encode({**self._document(), "servers": [{"url": base}]}), media_type=JSON)

    async def docs(self, request: Request) -> Response:  # noqa: ARG002 - the same for everybody
        """The same in short, for people."""
        rows = "".join(f"<tr><td>{one.method}<td><code>{one.path}</code><td>{one.about}" for one in ENDPOINTS)
        page = f"<!doctype html><meta charset=utf-8><title>wfl job server</title><h1>wfl job server</h1><table>{rows}"
        return Response(f"{page}</table><p>All of it: openapi.json", media_type="text/html")

    async def sessions(self, request: Request) -> Response:
        """Under which names there are jobs."""
        found = self._server.ledger.sessions(identity_of(request))
        return _json(m.Sessions(sessions=[m.SessionView(*owner, count) for owner, count in sorted(found)]))

    # -- submitting --

    async def submit(self, request: Request) -> Response:
        """Start jobs."""
        owner = self._own(request)
        body = m.read(await self._body(request), m.Jobs)
        if len(body.jobs) > self._server.limits.submissions:
            raise malformed(
                f"there are {len(body.jobs)} jobs, at most {self._server.limits.submissions} in one request"
            )
        keys = self._keys(request, body)
        ledger = self._server.ledger

        def start() -> tuple[list[Answer], dict[int, WflError]]:
            asked, wrong = _asked(zip(keys, body.jobs, strict=True))
            return ledger.submit(owner, asked) if asked else [], wrong

        with ledger.expecting(owner, [key for key in keys if key]):
            answers, wrong = await self._server.acting.run(owner[0], start)
        left = iter(answers)
        answers = [wrong[number] if number in wrong else next(left) for number in range(len(keys))]
        refused = sum(isinstance(answer, WflError) for answer in answers)
        self._server.metrics.submitted(len(answers) - refused, refused)
        return _json(m.StartedJobs(jobs=[self._started(*pair) for pair in zip(keys, answers, strict=True)]))

    def _keys(self, request: Request, body: m.Jobs) -> list[str | None]:
        keys = [job.key for job in body.jobs]
        header = request.headers.get("idempotency-key")
        if header is not None:
            if len(keys) != 1 or keys[0] not in (None, header):
                raise malformed("the header Idempotency-Key is for one job that has no other key")
            keys = [header]
        for key in keys:
            _check_key(key)
        return keys

    def _started(self, key: str | None, answer: Job | Array | WflError) -> m.Started:
        if isinstance(answer, WflError):
            return m.Started(key=key, error=self._fault(answer))
        return m.Started(key=answer.key, id=answer.id)

    async def submit_array(self, request: Request) -> Response:
        """Start an array."""
        owner = self._own(request)
        body = m.read(await self._body(request), m.WantedArray)
        key = body.key or request.headers.get("idempotency-key")
        _check_key(key)
        start, stop, step = body.indexes
        indexes = check_indexes(start, stop, step, self._server.limits.elements)
        ledger = self._server.ledger
        with ledger.expecting(owner, [key] if key else []):
            (array,) = await self._server.acting.run(
                owner[0],
                lambda: ledger.submit(owner, [Asked(key, m.template_of(body.template), indexes, body.max_parallel)]),
            )
        if isinstance(array, WflError):
            raise array
        elements = {job.index or 0: m.StartedElement(index=job.index or 0, id=job.id) for job in array.jobs}
        errors = array.errors if isinstance(array, Array) else {}
        elements |= {index: m.StartedElement(index=index, error=self._fault(error)) for index, error in errors.items()}
        self._server.metrics.submitted(len(elements) - len(errors), len(errors))
        return _json(m.StartedArray(id=array.id, jobs=[one for _, one in sorted(elements.items())]))

    # -- looking --

    async def jobs(self, request: Request) -> Response:
        """List jobs."""
        owner, limit = self._owner(request), _whole(request, "limit", PAGE, most=PAGE, least=1)
        wanted = request.query_params.get("state")
        if wanted is not None and wanted not in set(JobState):
            raise malformed(f"state is {wanted!r}, expected one of {', '.join(JobState)}", state="unknown")
        state = None if wanted is None else JobState(wanted)
        after = _place(request.query_params.get("cursor"))
        ledger = self._server.ledger

        def look() -> m.Page:
            found = ledger.page(owner, after, limit + 1, state)
            more = len(found) > limit
            cursor = "{}.{}".format(*place(found[limit - 1])) if more else None
            return m.Page(jobs=self._views(found[:limit], templates=False), cursor=cursor)

        return _json(await self._server.looking.run(identity_of(request).name, look))

    async def find(self, request: Request) -> Response:
        """Find jobs by key or id."""
        owner, identity = self._owner(request), identity_of(request)
        body = m.read(await self._body(request), m.Sought)
        self._check_number([*body.keys, *body.ids])
        ledger = self._server.ledger

        def look() -> m.Found:
            gone = m.Gone([], [])
            found: dict[str, Job] = {}
            for key, jobs in zip(body.keys, ledger.by_keys(owner, body.keys), strict=True):
                found.update((job.id, job) for job in jobs)
                gone.keys += [] if jobs else [key]
            for id in body.ids:
                jobs = self._mine(identity, id, owner)
                found.update((job.id, job) for job in jobs)
                gone.ids += [] if jobs else [id]
            return m.Found(jobs=self._views(found.values(), templates=body.templates), gone=gone)

        return _json(await self._server.looking.run(identity_of(request).name, look))

    def _mine(self, identity: Identity, id: str, owner: Owner) -> list[Job]:
        try:
            return [job for job in self._server.ledger.get(identity, id, owner).jobs if job.task is not None]
        except UnknownError:
            return []

    def _views(self, jobs: Iterable[Job], *, templates: bool) -> list[m.JobView]:
        views = []
        for job in jobs:
            try:
                views.append(m.JobView(**self._view(job, templates=templates)))
            except UnknownError:  # reaped meanwhile
                continue
        return views

    def _view(self, job: Job | Array, *, templates: bool) -> dict[str, Any]:
        ledger = self._server.ledger
        found: dict[str, Any] = {
            "id": job.id,
            "key": job.key,
            "array": job.array.id if isinstance(job, Job) and job.array is not None else None,
            "index": job.index if isinstance(job, Job) else None,
            "info": msgspec.Raw(ledger.info_json(job)),
        }
        return {**found, "template": msgspec.Raw(ledger.template_json(job))} if templates else found

    async def job(self, request: Request) -> Response:
        """Look at one job."""
        job = self._job(request)

        def look() -> m.JobDetails:
            identity, session = job.session.owner
            results = self._server.files.results(job.id) if isinstance(job, Job) else None
            view = self._view(job, templates=True)
            return m.JobDetails(**view, identity=identity, session=session, results=results)

        return _json(await self._server.looking.run(identity_of(request).name, look))

    # -- the system as a whole --

    async def living(self, request: Request) -> Response:
        """List all jobs that have not ended."""
        limit, after = _whole(request, "limit", PAGE, most=PAGE, least=1), _place(request.query_params.get("cursor"))
        ledger, identity, session = self._server.ledger, identity_of(request), request.query_params.get("session")

        def look() -> m.Living:
            found = ledger.living(identity, session, after, limit + 1)
            cursor = "{}.{}".format(*place(found[limit - 1])) if len(found) > limit else None
            jobs = [m.Alive(job.id, *job.session.owner, msgspec.Raw(ledger.info_json(job))) for job in found[:limit]]
            return m.Living(jobs=jobs, cursor=cursor)

        return _json(await self._server.looking.run(identity.name, look))

    async def system(self, request: Request) -> Response:
        """Look at machines, queues or job categories."""
        what = request.path_params["what"]
        if what not in SYSTEM:
            raise HttpError(404, UnknownError(f"there is no {what!r}, but {', '.join(SYSTEM)}"))
        found = await self._server.looking.run(identity_of(request).name, self._server.system, what)
        told: list[Any] = [one if isinstance(one, str) else msgspec.Raw(one.to_json().encode()) for one in found]
        return _json(m.System(**{what: told}))

    # -- acting --

    async def control(self, request: Request) -> Response:
        """Suspend, resume, hold, release or end jobs."""
        owner = self._owner(request)
        body = m.read(await self._body(request), m.Control)
        return _json(await self._act(request, owner, body.ids, _ACTION[body.action]))

    async def reap(self, request: Request) -> Response:
        """Forget jobs that have ended."""
        owner = self._owner(request)
        body = m.read(await self._body(request), m.Ids)
        return _json(await self._act(request, owner, body.ids, None))

    async def _act(self, request: Request, owner: Owner, ids: Sequence[str], action: Action | None) -> m.Failures:
        self._check_number(ids)
        identity, ledger = identity_of(request), self._server.ledger

        def act() -> dict[str, WflError]:
            failures: dict[str, WflError] = {}
            jobs: dict[str, Job] = {}
            for id in ids:
                try:
                    entry = ledger.get(identity, id, owner)
                    jobs.update((job.id, job) for job in _meant(entry, action))
                except WflError as error:
                    failures[id] = error
            if action is None:
                return failures | ledger.reap([*jobs.values()])
            return failures | ledger.control([*jobs.values()], action)

        failures = await self._server.acting.run(identity.name, act)
        return m.Failures(failures={id: self._fault(error) for id, error in failures.items()})

    async def act(self, request: Request) -> Response:
        """Suspend, resume, hold, release or end one job."""
        action = _ACTION.get(request.path_params["action"])
        if action is None:
            raise HttpError(404, UnknownError(f"there is no action {request.path_params['action']!r}"))
        return await self._act_alone(request, action)

    async def delete(self, request: Request) -> Response:
        """Forget one job that has ended."""
        return await self._act_alone(request, None)

    async def _act_alone(self, request: Request, action: Action | None) -> Response:
        job, ledger = self._job(request), self._server.ledger
        meant = _meant(job, action)
        failures = await self._server.acting.run(
            identity_of(request).name, lambda: ledger.reap(meant) if action is None else ledger.control(meant, action)
        )
        for error in failures.values():
            raise error
        return _json(m.Failures(failures={}))

    # -- events --

    async def events(self, request: Request) -> ASGIApp:
        """Be told what happens."""
        owner, hub = self._owner(request), self._server.hub
        cursor = request.headers.get("last-event-id") or request.query_params.get("cursor")
        if EVENTS not in request.headers.get("accept", ""):
            return await self._poll(request, owner, cursor)
        identity, guardian = identity_of(request), self._server.guardian

        async def pieces(gone: asyncio.Future[Any]) -> AsyncGenerator[bytes]:
            with self._server.places.one(identity.name):
                told = events(
                    hub, owner, cursor, gone,
                    heartbeat=self._server.limits.heartbeat, still=lambda: guardian.still(identity),
                )  # fmt: skip
                async with aclosing(told):
                    async for piece in told:
                        yield piece

        self._server.places.check(identity.name)
        hub.channel(owner)  # from now on events are kept
        return Stream(EVENTS, pieces)

    async def _poll(self, request: Request, owner: Owner, cursor: str | None) -> Response:
        """The same for one answer: at once if there is something to tell, or else after a while."""
        hub, end = self._server.hub, asyncio.get_running_loop().time() + self._wait(request)
        channel = hub.channel(owner)
        if cursor is None:
            return _events(hub.cursor, b"", reset=False)
        position = hub.position(channel, cursor)
        with self._server.places.one(identity_of(request).name):
            while position is not None:
                told = hub.after(channel, position)
                if told is None:
                    break
                left = end - asyncio.get_running_loop().time()
                if told or left <= 0 or hub.closed:
                    last = told[-1].number if told else position
                    return _events(f"{hub.started}.{last}", b",".join(one.jobs for one in told), reset=False)
                await hub.wait(channel, left)
        return _events(hub.cursor, b"", reset=True)

    def _wait(self, request: Request) -> float:
        text = request.query_params.get("wait", "0")
        if not re.fullmatch(r"\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,3})?", text, re.ASCII):
            raise malformed(f"wait is {text!r}, expected seconds", wait="seconds")
        return min(float(text), self._server.limits.wait)

    # -- output --

    async def output(self, request: Request) -> ASGIApp:
        """Read output."""
        job, stream = self._single(request), _stream(request)
        if _flag(request, "follow"):
            return self._following(request, job, stream)
        limits, who = self._server.limits, identity_of(request).name
        begin, end = _range(request)
        if begin is not None:
            most = limits.chunk if end is None else min(limits.chunk, end - begin + 1)
            data, at_end = await self._read(who, job, stream, begin, most)
            if not data:
                raise HttpError(416, InvalidArgumentError(f"there is nothing from {begin} on, at least not yet"))
            where = {"Content-Range": f"bytes {begin}-{begin + len(data) - 1}/*"}
            return _bytes(data, begin, 206, where, at_end=at_end)
        offset = _whole(request, "offset", 0)
        if "limit" not in request.query_params:
            return self._whole_output(request, job, stream, offset)
        data, at_end = await self._read(who, job, stream, offset, min(limits.chunk, _whole(request, "limit", 0)))
        return _bytes(data, offset, 200, {}, at_end=at_end)

    async def _read(self, who: str, job: Job, stream: Output, offset: int, limit: int) -> tuple[bytes, bool]:
        return await self._server.reading.run(who, self._server.ledger.read, job, stream, offset, limit)

    def _whole_output(self, request: Request, job: Job, stream: Output, offset: int) -> ASGIApp:
        """All that there is now."""
        server, identity = self._server, identity_of(request)
        server.places.check(identity.name)

        async def pieces(gone: asyncio.Future[Any]) -> AsyncGenerator[bytes]:
            position, at_end = offset, False
            with server.places.one(identity.name):
                while not at_end and not gone.done():
                    data, at_end = await self._read_still(identity, job, stream, position)
                    position += len(data)
                    yield data

        return Stream(BYTES, pieces, {"X-Wfl-Offset": str(offset), "X-Wfl-End": "true"})

    def _following(self, request: Request, job: Job, stream: Output) -> ASGIApp:
        """All that there is now, and what comes, until the job has ended."""
        offset, identity = _whole(request, "offset", 0), identity_of(request)
        server, channel = self._server, self._server.hub.channel(job.session.owner)
        server.places.check(identity.name)

        async def pieces(gone: asyncio.Future[Any]) -> AsyncGenerator[bytes]:
            position, pause, over = offset, _LOOKS[0], False
            with server.places.one(identity.name):
                while not gone.done() and not server.hub.closed:
                    over = job.ended  # first, so that nothing is missed that came before the end
                    data, at_end = await self._read_still(identity, job, stream, position)
                    position += len(data)
                    if data:
                        pause = _LOOKS[0]
                        yield data
                    elif over:
                        return
                    elif at_end:
                        await server.hub.wait(channel, pause, gone)
                        pause = min(pause * 1.5, _LOOKS[1])

        return Stream(BYTES, pieces, {"X-Wfl-Offset": str(offset), "X-Wfl-End": "false"})

    async def _read_still(self, identity: Identity, job: Job, stream: Output, offset: int) -> tuple[bytes, bool]:
        """A piece. Raises BrokenOffError where the secret was revoked meanwhile: that is no end of the output."""
        if not self._server.guardian.still(identity):
            raise BrokenOffError
        return await self._read(identity.name, job, stream, offset, PIECE)

    # -- files --

    async def result(self, request: Request) -> Response:
        """Fetch a result."""
        job, name = self._single(request), request.path_params["name"]
        if not job.ended:
            raise InvalidStateError(f"{job.id}: it has not ended")
        archive = await self._server.reading.run(identity_of(request).name, self._server.files.packed, job.id, name)
        return FileResponse(archive, media_type="application/x-tar")

    async def new_upload(self, request: Request) -> Response:
        """Begin an upload."""
        owner = self._own(request)
        body = m.read(await self._body(request), m.NewUpload)
        upload = await self._server.reading.run(owner[0], self._server.files.new_upload, *owner, body.kind, body.size)
        return _json(_uploaded(upload))

    def _upload(self, request: Request) -> Upload:
        return self._server.files.upload(*self._own(request), request.path_params["upload"])

    async def put(self, request: Request) -> Response:
        """Go on with an upload."""
        upload, files, run = self._upload(request), self._server.files, self._server.reading.run
        who = identity_of(request).name
        with files.writing(upload, _whole(request, "offset", 0)) as file:
            waiting: list[bytes] = []
            async for piece in self._pieces(request, upload):
                waiting.append(piece)
                if sum(map(len, waiting)) >= PIECE:
                    await run(who, files.write, upload, file, b"".join(waiting))
                    waiting = []
            if waiting:
                await run(who, files.write, upload, file, b"".join(waiting))
        return _json(_uploaded(upload), {"Upload-Offset": str(upload.size)})

    async def head(self, request: Request) -> Response:
        """Ask how much of an upload is there."""
        upload = self._upload(request)
        return Response(
            headers={"Upload-Offset": str(upload.size), "Upload-Complete": str(_is_complete(upload)).lower()}
        )

    async def complete(self, request: Request) -> Response:
        """End an upload."""
        upload = self._upload(request)
        body = m.read(await self._body(request), m.Complete)
        await self._server.reading.run(identity_of(request).name, self._server.files.complete, upload, body.sha256)
        return _json(_uploaded(upload))

    # -- what requests have in common --

    def _own(self, request: Request) -> Owner:
        """The client session of the address, which is the identity's own."""
        name = request.path_params["session"]
        if not _SESSION.fullmatch(name):
            raise malformed("a session's name has up to 100 letters, digits, '.', '_' and '-', and no '.' first")
        return identity_of(request).name, name

    def _owner(self, request: Request) -> Owner:
        """The same; an administrator may name another's."""
        own, other = self._own(request), request.query_params.get("identity")
        if other is None or other == own[0]:
            return own
        if not identity_of(request).admin:
            raise HttpError(403, ForbiddenError("only an administrator looks at another identity's jobs"))
        return other, own[1]

    def _job(self, request: Request) -> Job | Array:
        return self._server.ledger.get(identity_of(request), request.path_params["id"])

    def _single(self, request: Request) -> Job:
        job = self._job(request)
        if isinstance(job, Array):
            raise HttpError(422, InvalidArgumentError(f"{job.id} is an array: name one of its elements, ID.INDEX"))
        return job

    def _check_number(self, ids: Sequence[str]) -> None:
        if len(ids) > self._server.limits.ids:
            raise malformed(f"there are {len(ids)} ids and keys, at most {self._server.limits.ids} in one request")

    def _fault(self, error: WflError) -> Fault:
        found = fault(error)
        found.message = self._server.ledger.shown(found.message)
        return found

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:
            raise malformed(f"the body is {kind or 'of no type'}, expected {JSON}")
        return await self._server.bodies.read(request)

    async def _pieces(self, request: Request, upload: Upload) -> AsyncGenerator[bytes]:
        """A long body; it is cut off where it comes too slowly, or its client makes another request for the upload."""
        loop, seconds = asyncio.get_running_loop(), self._server.limits.body_seconds
        began, size = loop.time(), 0
        stream = request.stream().__aiter__()
        while True:
            try:
                async with asyncio.timeout_at(began + seconds + size / _LEAST_RATE) as upload.waits:
                    piece = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise HttpError(408, InvalidArgumentError("the body came too slowly")) from None
            finally:
                upload.waits = None
            size += len(piece)
            yield piece


def identity_of(request: Request) -> Identity:
    """Who sent it."""
    found: Identity = request.scope["state"]["identity"]
    return found


def _asked(jobs: Iterable[tuple[str | None, m.Wanted]]) -> tuple[list[Asked], dict[int, WflError]]:
    """What is to be started, and by position what cannot even be a template."""
    asked: list[Asked] = []
    wrong: dict[int, WflError] = {}
    for number, (key, job) in enumerate(jobs):
        try:
            asked.append(Asked(key, m.template_of(job.template)))
        except WflError as error:
            wrong[number] = error
    return asked, wrong


def _meant(entry: Job | Array, action: Action | None) -> list[Job]:
    """Of an array those elements that an action can mean."""
    jobs = [job for job in entry.jobs if job.task is not None]
    return jobs if isinstance(entry, Job) or action is None else [job for job in jobs if not job.ended]


def _check_key(key: str | None) -> None:
    if key is not None and not re.fullmatch(m.KEY, key):
        raise malformed("a key has 1 to 200 printable ASCII characters", key="not printable, or too long")


def _whole(request: Request, name: str, default: int, *, least: int = 0, most: int = 10**18 - 1) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or not least <= int(text) <= most:
        raise malformed(f"{name} is {text!r}, expected a number from {least} to {most}", **{name: "not between these"})
    return int(text)


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false")
    if text not in ("true", "false"):
        raise malformed(f"{name} is {text!r}, expected true or false", **{name: "neither true nor false"})
    return text == "true"


def _place(cursor: str | None) -> tuple[int, int]:
    if cursor is None:
        return 0, -2
    if not re.fullmatch(_PLACE, cursor, re.ASCII):
        raise malformed(f"cursor is {cursor!r}, expected one that was given by the page before", cursor="unknown")
    number, index = cursor.split(".")
    return int(number), int(index)


def _stream(request: Request) -> Output:
    name = request.path_params["stream"]
    if name == "stdout":
        return "stdout"
    if name == "stderr":
        return "stderr"
    raise HttpError(404, UnknownError(f"there is no output {name!r}, but stdout and stderr"))


def _range(request: Request) -> tuple[int | None, int | None]:
    """The first and last byte that are asked for; what is no plain range is as if there were none (RFC 9110, 14.2)."""
    form = _RANGE.fullmatch(request.headers.get("range", ""))
    if form is None:
        return None, None
    begin, end = int(form[1]), int(form[2]) if form[2] else None
    return (None, None) if end is not None and end < begin else (begin, end)


def _is_complete(upload: Upload) -> bool:
    return upload.row.digest is not None


def _uploaded(upload: Upload) -> m.Uploaded:
    return m.Uploaded(upload=upload.row.id, offset=upload.size, complete=_is_complete(upload))


def _json(body: m.Reply | m.JobDetails, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), media_type=JSON, headers=headers)


def _events(cursor: str, jobs: bytes, *, reset: bool) -> Response:
    words = b"true" if reset else b"false"
    body = b'{"cursor":"%s","reset":%s,"jobs":[%s]}' % (cursor.encode(), words, jobs)
    return Response(body, media_type=JSON)


def _bytes(data: bytes, offset: int, status: int, headers: Mapping[str, str], *, at_end: bool) -> Response:
    more = {"X-Wfl-Offset": str(offset), "X-Wfl-End": str(at_end).lower(), "Accept-Ranges": "bytes", **headers}
    return Response(data, status, more, BYTES)


_TEXT = {"type": "string"}
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_S = Parameter(
    "session", "path", {"type": "string", "pattern": f"^{_SESSION.pattern}$"}, "a name for some of your jobs"
)
_ONE = Parameter("session", "query", _TEXT, "only jobs of this one")
_WHAT = Parameter("what", "path", {"enum": [*SYSTEM]}, "what to look at")
_J = Parameter("id", "path", _TEXT, "of a job, or of an array")
_U = Parameter("upload", "path", _TEXT, "of an upload")
_I = Parameter("identity", "query", _TEXT, "whose jobs (for administrators)")
_K = Parameter("Idempotency-Key", "header", {"type": "string", "pattern": m.KEY}, "the key of one job")
_C = Parameter("cursor", "query", _TEXT, "from the answer before")
_NEXT = Parameter("cursor", "query", {"type": "string", "pattern": f"^{_PLACE}$"}, "from the page before")
_OFFSET = Parameter("offset", "query", _NUMBER, "in bytes")
_STREAM = Parameter("stream", "path", {"enum": ["stdout", "stderr"]}, "which output")
_VERB = Parameter("action", "path", {"enum": [*_ACTION]}, "what to do")
_STATE = Parameter("state", "query", {"enum": [*JobState]}, "only jobs that are in it")
_FOLLOW = Parameter("follow", "query", {"type": "boolean"}, "go on until the job has ended")
_WAIT = Parameter("wait", "query", {"type": "number", "minimum": 0}, "seconds, of a long poll")
_LIMIT = Parameter("limit", "query", _NUMBER, "at most so many bytes")
_PAGE = Parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": PAGE}, "at most so many jobs")
_RANGE_HEADER = Parameter("Range", "header", _TEXT, "bytes=FIRST-LAST")
_NAME = Parameter("name", "path", _TEXT, "of a result: what follows result: in stage_out_files")
_LAST = Parameter("Last-Event-ID", "header", _TEXT, "the cursor, as clients of server-sent events repeat it")

ENDPOINTS = (
    Endpoint(method="GET", path="/info", handler="info", about="What the server is and can do", answer=m.About),
    Endpoint(method="GET", path="/sessions", handler="sessions", about="Sessions that have jobs", answer=m.Sessions),
    Endpoint(
        method="POST", path="/sessions/{session}/jobs", handler="submit", about="Start jobs", body=m.Jobs,
        answer=m.StartedJobs, parameters=(_S, _K), statuses=(408,),
    ),
    Endpoint(
        method="GET", path="/sessions/{session}/jobs", handler="jobs", about="List jobs", answer=m.Page,
        parameters=(_S, _NEXT, _PAGE, _STATE, _I),
    ),
    Endpoint(
        method="POST", path="/sessions/{session}/arrays", handler="submit_array", about="Start an array",
        body=m.WantedArray, answer=m.StartedArray, parameters=(_S, _K), statuses=(404, 408, 409, 422),
    ),
    Endpoint(
        method="POST", path="/sessions/{session}/find", handler="find", about="Find jobs by key or id", body=m.Sought,
        answer=m.Found, parameters=(_S, _I), statuses=(408,),
    ),
    Endpoint(
        method="POST", path="/sessions/{session}/control", handler="control",
        about="Suspend, resume, hold, release or end jobs", body=m.Control, answer=m.Failures, parameters=(_S, _I),
        statuses=(408,),
    ),
    Endpoint(
        method="POST", path="/sessions/{session}/reap", handler="reap", about="Forget jobs that have ended", body=m.Ids,
        answer=m.Failures, parameters=(_S, _I), statuses=(408,),
    ),
    Endpoint(
        method="GET", path="/sessions/{session}/events", handler="events",
        about="What happens: server-sent events where these are accepted, else a long poll", answer=m.Events,
        parameters=(_S, _C, _WAIT, _LAST, _I),
    ),
    Endpoint(
        method="GET", path="/jobs/{id}", handler="job", about="One job or array", answer=m.JobDetails, parameters=(_J,),
        statuses=(404,),
    ),
    Endpoint(
        method="DELETE", path="/jobs/{id}", handler="delete", about="Forget a job that has ended", answer=m.Failures,
        parameters=(_J,), statuses=(404, 409),
    ),
    Endpoint(
        method="POST", path="/jobs/{id}/{action}", handler="act", about="Suspend, resume, hold, release or end a job",
        answer=m.Failures, parameters=(_J, _VERB), statuses=(404, 409, 422),
    ),
    Endpoint(
        method="GET", path="/jobs/{id}/output/{stream}", handler="output", about="Output, whole, in part, or followed",
        answer=BYTES, parameters=(_J, _STREAM, _OFFSET, _LIMIT, _FOLLOW, _RANGE_HEADER),
        statuses=(206, 404, 409, 416, 422),
    ),
    Endpoint(
        method="GET", path="/jobs/{id}/files/{name}", handler="result", about="A result, as an archive (tar)",
        answer="application/x-tar", parameters=(_J, _NAME, _RANGE_HEADER), statuses=(206, 404, 409, 416, 422),
    ),
    Endpoint(
        method="POST", path="/sessions/{session}/uploads", handler="new_upload", about="Begin an upload",
        body=m.NewUpload, answer=m.Uploaded, parameters=(_S,), statuses=(408, 422),
    ),
    Endpoint(
        method="PUT", path="/sessions/{session}/uploads/{upload}", handler="put", about="Go on with an upload",
        body=BYTES, answer=m.Uploaded, parameters=(_S, _U, _OFFSET), statuses=(404, 408, 409, 422),
    ),
    Endpoint(
        method="HEAD", path="/sessions/{session}/uploads/{upload}", handler="head",
        about="How much of an upload is there (Upload-Offset)", parameters=(_S, _U), statuses=(404,),
    ),
    Endpoint(
        method="POST", path="/sessions/{session}/uploads/{upload}/complete", handler="complete", about="End an upload",
        body=m.Complete, answer=m.Uploaded, parameters=(_S, _U), statuses=(404, 408, 409, 422),
    ),
    Endpoint(
        method="GET", path="/jobs", handler="living", about="All jobs that have not ended", answer=m.Living,
        parameters=(_ONE, _NEXT, _PAGE),
    ),
    Endpoint(
        method="GET", path="/system/{what}", handler="system", about="Machines, queues or job categories",
        answer=m.System, parameters=(_WHAT,), statuses=(404, 422),
    ),
    Endpoint(method="GET", path="/openapi.json", handler="openapi", about="This description", answer=JSON),
    Endpoint(method="GET", path="/docs", handler="docs", about="The same in short", answer="text/html"),
)  # fmt: skip

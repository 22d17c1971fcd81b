"""Answers that stay open: events as they happen, output as it is written."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from wfl.errors import TryLaterError
from wfl.server.refusals import HttpError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping

    from starlette.types import Receive, Scope, Send

    from wfl.server.events import Hub, Owner
    from wfl.server.limits import ServerLimits
    from wfl.server.metrics import Metrics

EVENTS = "text/event-stream"
ALIVE = b": alive\n\n"
RESET = b"event: reset\ndata: {}\n\n"
NOTHING = b'event: jobs\ndata: {"jobs":[]}\n\n'


class Places:
    """So many streams may be open at once, and so many of one identity."""

    def __init__(self, metrics: Metrics, limits: ServerLimits) -> None:
        self._metrics, self._limits = metrics, limits
        self._taken: Counter[str] = Counter()

    def check(self, identity: str) -> None:
        """Raise HttpError (503) where there is no place left."""
        if self._metrics.streams >= self._limits.streams or self._taken[identity] >= self._limits.streams_each:
            raise HttpError(503, TryLaterError("too many clients wait for events"), headers={"Retry-After": "5"})

    @contextmanager
    def one(self, identity: str) -> Iterator[None]:
        """Take one, as `check` allows."""
        self.check(identity)
        self._metrics.streams += 1
        self._taken[identity] += 1
        try:
            yield
        finally:
            self._metrics.streams -= 1
            self._taken[identity] -= 1


class Stream:
    """An answer that is sent as it comes, and that ends when the client is gone."""

    def __init__(
        self,
        media: str,
        pieces: Callable[[asyncio.Future[Any]], AsyncGenerator[bytes]],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`pieces` is given what is done when the client is gone."""
        given = {"content-type": media, **(headers or {})}
        self._headers = [(name.lower().encode(), value.encode()) for name, value in given.items()]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        scope["state"]["stream"] = True
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        gone = asyncio.ensure_future(_gone(receive))
        try:
            async with aclosing(self._pieces(gone)) as pieces:
                async for piece in pieces:
                    if gone.done():
                        return
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone


async def _gone(receive: Receive) -> None:
    """Until the client is."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def events(
    hub: Hub,
    owner: Owner,
    cursor: str | None,
    gone: asyncio.Future[Any],
    *,
    heartbeat: float,
    still: Callable[[], bool],
) -> AsyncGenerator[bytes]:
    """What happens, from a cursor or from now on, with signs of life in between, until `still` fails."""
    channel = hub.channel(owner)  # only now, when it is known as listened to
    position = hub.number if cursor is None else hub.position(channel, cursor)
    channel.listeners += 1
    try:
        lost = position is None
        position = hub.number if position is None else position
        yield _first(hub, position, lost=lost)
        while not hub.closed and not gone.done() and still():
            told = hub.after(channel, position)
            if told is None:  # this client was too slow
                position = hub.number
                yield _first(hub, position, lost=True)
            elif told:
                position = told[-1].number
                yield b"".join(one.frame for one in told) if len(told) > 1 else told[0].frame
            else:
                await hub.wait(channel, heartbeat, gone)
                if not still():
                    return
                if hub.after(channel, position) == []:
                    yield ALIVE
    finally:
        channel.listeners -= 1


def _first(hub: Hub, position: int, *, lost: bool) -> bytes:
    """Where the client stands now, so that it can come back to that; or that it missed something."""
    return f"id: {hub.started}.{position}\n".encode() + (RESET if lost else NOTHING)

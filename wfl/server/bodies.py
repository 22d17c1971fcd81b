"""Bodies of requests that are read as a whole: how large, how slow, and how much memory all of them may take."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from wfl.errors import InvalidArgumentError, TryLaterError
from wfl.server.refusals import AGAIN, HttpError

if TYPE_CHECKING:
    from starlette.requests import Request

    from wfl.server.limits import ServerLimits

_HELD = "body"
"""Where a request's state says how many bytes of it are counted."""


class Bodies:
    """Counts the bytes of all requests that are under way: while they come, and until they are answered."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._of: Counter[str] = Counter()
        self.size = 0

    async def read(self, request: Request) -> bytes:
        """All of a body. Raises HttpError where that is too much, takes too long, or must wait for others."""
        limit = self._limits.body
        declared = request.headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > limit:
            raise HttpError(413, InvalidArgumentError(f"the body is larger than {limit} bytes"))
        pieces, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for piece in request.stream():
                    size += len(piece)
                    if size > limit:
                        raise HttpError(413, InvalidArgumentError(f"the body is larger than {limit} bytes"))
                    self._take(request, len(piece))
                    pieces.append(piece)
        except TimeoutError:
            raise HttpError(408, InvalidArgumentError("the body came too slowly")) from None
        return b"".join(pieces)

    def _take(self, request: Request, size: int) -> None:
        limits, state = self._limits, request.scope["state"]
        who = state["identity"].name
        most, most_each = max(limits.bodies, limits.body), max(limits.bodies_each, limits.body)
        if self.size + size > most or self._of[who] + size > most_each:
            # What is still coming is not read.
            headers = {"Retry-After": AGAIN, "Connection": "close"}
            raise HttpError(503, TryLaterError("too many large requests are under way"), headers=headers)
        self.size += size
        self._of[who] += size
        state[_HELD] = state.get(_HELD, 0) + size

    def release(self, request: Request) -> None:
        """It is answered."""
        state = request.scope["state"]
        if size := state.pop(_HELD, 0):
            self.size -= size
            self._of[state["identity"].name] -= size

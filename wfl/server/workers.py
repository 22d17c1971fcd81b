"""Threads for what blocks: so many at once, so many that wait, and no request waits for ever."""

from __future__ import annotations

import asyncio
import builtins
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from wfl.errors import TimeoutError, TryLaterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wfl.server.limits import ServerLimits

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Workers:
    """One pool of threads, used from the event loop."""

    def __init__(self, name: str, limits: ServerLimits) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.threads, f"wfl-server-{name}")
        self.pending = 0

    async def run(self, f: Callable[_P, _R], *arguments: _P.args, **more: _P.kwargs) -> _R:
        """Call it in a thread. Raises TryLaterError where too many wait, TimeoutError where it takes too long."""
        if self.pending >= self._limits.threads + self._limits.waiting:
            raise TryLaterError("the server is busy")
        self.pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, lambda: f(*arguments, **more))
        future.add_done_callback(self._over)
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                return await asyncio.shield(future)
        except builtins.TimeoutError:
            if future.done():
                raise  # its own
            words = "the execution system has not answered yet; what was asked for may still be done"
            raise TimeoutError(words) from None

    def _over(self, future: asyncio.Future[_R]) -> None:
        self.pending -= 1
        if not future.cancelled():
            future.exception()  # nobody may be waiting for it any more

    def close(self) -> None:
        """Take nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

"""Threads for what blocks: so many at once, so many that wait, not all for one identity, and nobody waits for ever."""

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


class _Share:
    """What one identity has of the threads: `pending` requests run, or wait for one of its places."""

    __slots__ = ("pending", "places")

    def __init__(self, places: int) -> None:
        self.pending, self.places = 0, asyncio.Semaphore(places)


class Workers:
    """One pool of threads, used from the event loop."""

    def __init__(self, name: str, limits: ServerLimits) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.threads, f"wfl-server-{name}")
        self._shares: dict[str, _Share] = {}
        self.pending = 0

    async def run(self, who: str, f: Callable[_P, _R], *arguments: _P.args, **more: _P.kwargs) -> _R:
        """Call it in a thread, for this identity.

        Raises TryLaterError where too many wait, in all or of this identity, and TimeoutError where it takes too long.
        """
        limits, share = self._limits, self._shares.get(who)
        if self.pending >= limits.threads + limits.waiting:
            raise TryLaterError("the server is busy")
        if share is None:
            share = self._shares[who] = _Share(min(limits.threads_each, limits.threads))
        elif share.pending >= limits.threads_each + limits.waiting_each:
            raise TryLaterError("too many of your requests are under way")

        async def at_its_turn() -> _R:
            async with share.places:
                return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: f(*arguments, **more))

        def over(done: asyncio.Task[_R]) -> None:
            self.pending -= 1
            share.pending -= 1
            if not share.pending:
                self._shares.pop(who, None)
            if not done.cancelled():
                done.exception()  # nobody may be waiting for it any more

        self.pending += 1
        share.pending += 1
        task = asyncio.create_task(at_its_turn())
        task.add_done_callback(over)
        try:
            async with asyncio.timeout(limits.answer_seconds):
                return await asyncio.shield(task)
        except builtins.TimeoutError:
            if task.done():
                raise  # its own
            words = "the execution system has not answered yet; what was asked for may still be done"
            raise TimeoutError(words) from None

    def close(self) -> None:
        """Take nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

"""What happens to jobs, told to those who listen: made once for each client session, sent to all of its listeners.

Changes come from the session's threads (`changed`); everything else is done on the event loop, without locks.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from wfl.record import Record

Owner = tuple[str, str]
"""An identity's name, and that of one of its sessions."""
GAPS = (0.001, 0.005)
"""Seconds between two rounds of telling, the first of which is at once: after few changes, and after FEW or more, so
that what happens meanwhile is told together."""
FEW = 10
ROUND = 500
"""Changes in one round, so that others get their turn on the loop."""
MOST = 10_000
"""Sessions of one identity for which events are kept; beyond that those that nobody listens to are forgotten, oldest
first: no identity is in the way of others."""
IDLE = 900.0
"""Seconds for which events are kept for a client session that nobody listens to."""


class Told(NamedTuple):
    """One event: `frame` is as server-sent events have it, and its jobs as JSON are frame[begin:end]."""

    number: int
    frame: bytes
    begin: int
    end: int

    @property
    def jobs(self) -> bytes:
        """The objects of a JSON array."""
        return self.frame[self.begin : self.end]


class Channel:
    """What is told to the listeners of one client session; what is not later than `floor` is not here any more."""

    __slots__ = ("floor", "listeners", "told", "touched", "waiters")

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self.told: deque[Told] = deque()
        self.waiters: set[asyncio.Future[None]] = set()
        self.listeners = 0
        self.touched = time.monotonic()

    @property
    def is_heard(self) -> bool:
        """Whether somebody waits here, or is just being told."""
        return bool(self.listeners or self.waiters)


class Hub:
    """All channels. `describe` gives of changed records whose they are, and their job as JSON (None: nobody's)."""

    def __init__(self, describe: Callable[[Record], tuple[Owner, bytes] | None], limit: int) -> None:
        self.started = os.urandom(6).hex()
        self.number = 0
        self.closed = False
        self._describe, self._limit = describe, limit
        self._channels: dict[Owner, Channel] = {}
        self._each: Counter[str] = Counter()  # of an identity
        self._kept: deque[Channel] = deque()  # in the order of what they told
        self._size = 0
        self._lock = threading.Lock()
        self._changed: dict[str, Record] = {}
        self._planned = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """From now on it is told on this loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """No event comes any more: all streams end."""
        self.closed = True
        for channel in self._channels.values():
            _wake(channel)

    # -- what happens --

    def changed(self, records: Sequence[Record]) -> None:
        """These may have changed (any thread)."""
        with self._lock:
            for record in records:
                self._changed[record.key] = record
            plan = not self._planned and self._loop is not None
            self._planned |= plan
        if plan and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._round)
            except RuntimeError:  # the loop is closed: nobody listens any more
                self._loop = None

    def _round(self) -> None:
        with self._lock:
            changed = self._changed
            if not changed:
                self._planned = False
                return
            if len(changed) > ROUND:
                keys = [key for key, _ in zip(changed, range(ROUND), strict=False)]
                records = [changed.pop(key) for key in keys]
            else:
                records, self._changed = [*changed.values()], {}
        self._tell(records)
        if self._loop is not None:
            gap = 0.0 if len(records) >= ROUND else GAPS[len(records) >= FEW]
            self._loop.call_later(gap, self._round)

    def _tell(self, records: Iterable[Record]) -> None:
        jobs: dict[Owner, list[bytes]] = {}
        for record in records:
            described = self._describe(record)
            if described is not None and described[0] in self._channels:
                jobs.setdefault(described[0], []).append(described[1])
        for owner, parts in jobs.items():
            self._publish(self._channels[owner], b",".join(parts))

    def _publish(self, channel: Channel, jobs: bytes) -> None:
        self.number += 1
        head = f'id: {self.cursor}\nevent: jobs\ndata: {{"jobs":['.encode()
        channel.told.append(Told(self.number, b"".join((head, jobs, b"]}\n\n")), len(head), len(head) + len(jobs)))
        self._kept.append(channel)
        self._size += len(channel.told[-1].frame)
        while self._size > self._limit and len(self._kept) > 1:
            oldest = self._kept.popleft()
            if oldest.told:
                told = oldest.told.popleft()
                oldest.floor = told.number
                self._size -= len(told.frame)
        _wake(channel)

    # -- who listens --

    @property
    def cursor(self) -> str:
        """Now."""
        return f"{self.started}.{self.number}"

    def channel(self, owner: Owner) -> Channel:
        """That of a client session; events are kept from the first time on that somebody asks."""
        channel = self._channels.pop(owner, None)
        if channel is None:
            channel = Channel(self.number)
            if self._each[owner[0]] >= MOST:
                its = ((name, one) for name, one in self._channels.items() if name[0] == owner[0])
                self._forget(next((name for name, one in its if not one.is_heard), owner))
            self._each[owner[0]] += 1
        self._channels[owner] = channel  # the last one that was asked for is the last one in line
        channel.touched = time.monotonic()
        return channel

    def _forget(self, owner: Owner) -> None:
        channel = self._channels.pop(owner, None)
        if channel is not None:
            self._each[owner[0]] -= 1
            self._size -= sum(len(told.frame) for told in channel.told)
            channel.told.clear()

    def position(self, channel: Channel, cursor: str) -> int | None:
        """Where a listener stands that has heard all up to this cursor; None where that is not known any more."""
        started, _, number = cursor.partition(".")
        if started != self.started or not number.isascii() or not number.isdigit() or len(number) > 15:  # noqa: PLR2004
            return None
        position = int(number)
        return position if channel.floor <= position <= self.number else None

    def after(self, channel: Channel, position: int) -> list[Told] | None:
        """What was told since; None where some of that is gone."""
        if position < channel.floor:
            return None
        found: list[Told] = []
        for told in reversed(channel.told):
            if told.number <= position:
                break
            found.append(told)
        return found[::-1]

    async def wait(self, channel: Channel, seconds: float, *others: asyncio.Future[Any]) -> None:
        """Sleep until something is told, one of the others is done, the hub is closed, or so many seconds are over."""
        if self.closed:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        channel.waiters.add(waiter)
        try:
            await asyncio.wait((waiter, *others), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            channel.waiters.discard(waiter)
            channel.touched = time.monotonic()

    def tidy(self) -> None:
        """Forget what nobody has listened to for long; who comes back all the same looks at all of its jobs."""
        now = time.monotonic()
        for owner, channel in [*self._channels.items()]:
            if not channel.is_heard and now - channel.touched > IDLE:
                self._forget(owner)
        self._kept = deque(channel for channel in self._kept if channel.told)


def _wake(channel: Channel) -> None:
    for waiter in channel.waiters:
        if not waiter.done():
            waiter.set_result(None)

"""The few threads that a session keeps: a clock for what is due later, and pools that grow when a thread blocks.

All are daemons, started at first use. They know nothing of jobs.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from wfl.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_T = TypeVar("_T")
_R = TypeVar("_R")

BLOCKED = 0.05
"""Seconds in which each thread of a pool ends a call at least, or the pool takes it that they are blocked."""
IDLE = 5.0
"""Seconds after which a thread without work ends."""


class Clock:
    """All that a session knows of time, so that wfl.testing can put a time of its own in its place.

    Tells it, sleeps, and calls functions at their time, on one thread; they must be quick and never run user code.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def now(self) -> float:
        """Seconds since some beginning; they only grow."""
        return time.monotonic()

    def queue(self) -> SimpleQueue[Any]:
        """A new queue, in which `get` can sleep."""
        return SimpleQueue()

    def get(self, queue: SimpleQueue[_T], timeout: float | None = None) -> _T:
        """Sleep until something is in the queue, and take it out. Raises Empty after `timeout` seconds."""
        return queue.get(timeout=timeout)

    def sleep(self, seconds: float) -> None:
        """Sleep for so many seconds."""
        with suppress(Empty):
            self.get(self.queue(), min(seconds, threading.TIMEOUT_MAX))

    def attend(self) -> Callable[[], None]:
        """Somebody waits by other means (an event loop), until the returned function is called."""
        return lambda: None

    def pool(self, name: str, limit: int) -> Pool:
        """Threads for what takes a while and belongs to the session itself."""
        return Pool(name, limit)

    def after(self, seconds: float, f: Callable[[], None]) -> None:
        """Call `f` in so many seconds."""
        with self._changed:
            if self._stopped:
                return
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), f))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            elif self._due[0][2] is f:
                self._changed.notify()

    def stop(self) -> None:
        """Call nothing more."""
        with self._changed:
            self._stopped = True
            self._due.clear()
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while (f := self._next()) is not None:
            try:
                f()
            except Exception:  # noqa: BLE001 - logged
                log.exception("the session's clock goes on after this error")

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._stopped:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(wait if wait is None else min(wait, threading.TIMEOUT_MAX))
        return None


def in_threads(f: Callable[[_T], _R], items: Sequence[_T], limit: int, name: str) -> list[_R]:
    """Call `f` for each item in at most `limit` threads; the results in order, or the first error.

    Interrupted, it leaves the calls that are under way to themselves: daemons, they keep no program from ending.
    """
    done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()
    left = deque(enumerate(items))

    def work() -> None:
        with suppress(IndexError):
            while True:
                number, item = left.popleft()
                try:
                    done.put((number, f(item), None))
                except BaseException as error:  # noqa: BLE001 - raised by who waits
                    done.put((number, None, error))

    for _ in range(min(limit, len(items))):
        threading.Thread(target=work, name=name, daemon=True).start()
    results: dict[int, Any] = {}
    try:
        while len(results) < len(items):
            number, result, error = done.get()
            if error is not None:
                raise error
            results[number] = result
    finally:
        left.clear()
    return [results[number] for number in range(len(items))]


class Pool:
    """Runs functions in threads: two at first, more (up to `limit`) only while the present ones are blocked."""

    def __init__(self, name: str, limit: int) -> None:
        self._name, self._limit = name, limit
        self._clock = Clock(f"{name}-clock")
        self._work: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._threads = self._idle = self._busy = self._ended = 0
        self._growing = self._stopped = False

    def submit(self, f: Callable[[], None]) -> None:
        """Run `f` soon; what it raises is logged."""
        with self._changed:
            if self._stopped:
                return
            self._work.append(f)
            if self._idle >= len(self._work):
                self._changed.notify()
            elif self._threads < min(2, self._limit):
                self._start()
            elif not self._growing:
                self._growing, self._ended = True, 0
                self._clock.after(BLOCKED, self._grow)

    def drain(self, patience: float) -> None:
        """Wait until all work is done, or for so many seconds, then stop (not from a thread of the pool itself)."""
        with self._changed:
            own = threading.current_thread().name == self._name
            if not self._changed.wait_for(lambda: self._busy <= own and not self._work, patience):
                left = self._busy + len(self._work)
                log.warning("%s: %d calls have not returned and are left behind", self._name, left)
        self.stop()

    def stop(self) -> None:
        """Start nothing more; what runs is not waited for."""
        with self._changed:
            self._stopped = True
            self._work.clear()
            self._changed.notify_all()
        self._clock.stop()

    def _start(self) -> None:
        self._threads += 1
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def _grow(self) -> None:
        """Work waits, and fewer calls have ended than there are threads to make them: add a thread."""
        with self._changed:
            if not self._work or self._stopped:
                self._growing = False
                return
            if self._ended < self._threads < self._limit:
                self._start()
            self._ended = 0
            self._clock.after(BLOCKED, self._grow)

    def _run(self) -> None:
        while (f := self._next()) is not None:
            try:
                f()
            except BaseException:  # noqa: BLE001 - logged; sys.exit() in a callback ends that call only
                log.exception("%s: the session goes on after this error", self._name)
            with self._changed:
                self._busy -= 1
                self._ended += 1
                if not self._busy and not self._work:
                    self._changed.notify_all()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._work and not self._stopped:
                self._idle += 1
                woken = self._changed.wait(IDLE)
                self._idle -= 1
                if not woken and not self._work:
                    break
            if not self._work:
                self._threads -= 1
                return None
            self._busy += 1
            return self._work.popleft()

"""Time for a FakeSystem: it stands still until somebody waits, or until it is moved. It knows nothing of jobs."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from heapq import heappop, heappush
from math import inf
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar, cast

from wfl.threads import Clock, Pool

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("wfl")

_T = TypeVar("_T")

IDLE = 0.5
"""Real seconds without a sign from anybody, after which time goes on all the same: somebody may be waiting by means
that are not seen here, such as a loop that looks at a state."""
ATTENDED = 0.01
"""The same while an event loop waits: the time that it gets to run what was woken before more happens."""


class _Alarm:
    """Put into a queue when somebody has slept long enough."""


class _Queue(SimpleQueue[_T]):
    """Knows what was put into it and is not yet with who sleeps there: a woken thread takes its time to wake up."""

    def __init__(self) -> None:
        self.coming: deque[_T] = deque()

    def put(self, item: _T, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002, FBT001, FBT002 - as its base has it
        """Put it in; never blocks."""
        self.coming.append(item)
        super().put(item)


class VirtualTime:
    """What is due, in order, and who sleeps. One for all sessions of a system; a thread moves it while there are any.

    auto: when all who wait are asleep, the next thing happens at once, and time jumps to it. Otherwise it moves by
    `advance` alone.
    """

    def __init__(self, *, auto: bool) -> None:
        self.auto = auto
        self.now = 0.0
        self._due: list[tuple[float, int, list[Callable[[], object]]]] = []
        self._soon: deque[Callable[[], object]] = deque()
        self._order = itertools.count()
        self._asleep: dict[_Alarm, _Queue[Any]] = {}
        self._attended = self._users = 0
        self._changed = threading.Condition()
        self._turn = threading.RLock()
        self._thread: threading.Thread | None = None

    def after(self, seconds: float, f: Callable[[], object]) -> Callable[[], None]:
        """Call `f` in so many seconds (infinity: never); the returned function calls that off."""
        entry = [f]
        with self._changed:
            if seconds < inf:
                heappush(self._due, (self.now + seconds, next(self._order), entry))
            self._changed.notify()

        def call_off() -> None:
            with self._changed:
                entry.clear()

        return call_off

    def soon(self, f: Callable[[], object]) -> None:
        """Call `f` before time goes on."""
        with self._changed:
            self._soon.append(f)
            self._changed.notify()

    def get(self, queue: _Queue[_T], timeout: float | None) -> _T:
        """Sleep until something is in the queue. Raises Empty when `timeout` seconds are over."""
        coming = queue.coming
        while timeout == 0:
            got = queue.get_nowait()
            coming.popleft()
            if type(got) is not _Alarm:
                return got
        late: Any = _Alarm()
        call_off = self.after(inf if timeout is None else timeout, lambda: queue.put(late))
        with self._changed:
            self._asleep[late] = queue
            self._changed.notify()
        try:
            got = queue.get()
            while type(got) is _Alarm and got is not late:
                coming.popleft()  # that was of an earlier sleep, which had been woken just before
                got = queue.get()
        finally:
            call_off()
            with self._changed:
                del self._asleep[late]
                if coming:
                    coming.popleft()
                self._changed.notify()
        if got is late:
            raise Empty
        return got

    def attend(self, change: int) -> None:
        """So many event loops more, or fewer, wait."""
        with self._changed:
            self._attended += change
            self._changed.notify()

    def advance(self, seconds: float) -> None:
        """Let everything happen that is due within so many seconds; then it is so much later."""
        end = self.now + seconds
        while self._step(end):
            pass
        with self._changed:
            self.now = max(self.now, end)

    def _step(self, until: float) -> bool:
        """Let the next thing happen; False if nothing is due by then."""
        with self._turn:
            with self._changed:
                if self._soon:
                    f: Callable[[], object] = self._soon.popleft()
                elif self._next() <= until and self._due:
                    when, _, (f,) = heappop(self._due)
                    self.now = max(self.now, when)
                else:
                    return False
            try:
                f()
            except Exception:
                log.exception("the fake system's time goes on after this error")
            return True

    def _next(self) -> float:
        """When something is due (with the lock held)."""
        while self._due and not self._due[0][2]:
            heappop(self._due)  # called off
        return self._due[0][0] if self._due else inf

    def use(self, change: int) -> None:
        """So many sessions more, or fewer, live in this time; without any it stands still."""
        with self._changed:
            self._users += change
            self._changed.notify()
            if self._users and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="wfl-fake", daemon=True)
                self._thread.start()
            thread = None if self._users else self._thread
            self._thread = self._thread if self._users else None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while self._wait_for_turn():
            self._step(inf if self.auto else -inf)

    def _wait_for_turn(self) -> bool:
        with self._changed:
            while self._users:
                when = self._next() if self.auto else inf
                if self._soon or when <= self.now or (when < inf and self._all_asleep()):
                    return True
                pause = ATTENDED if self._attended else IDLE
                if not self._changed.wait(pause if when < inf else None):
                    return True
        return False

    def _all_asleep(self) -> bool:
        return bool(self._asleep) and not any(queue.coming for queue in self._asleep.values())


class SessionClock(Clock):
    """The clock of one session in virtual time."""

    def __init__(self, time: VirtualTime) -> None:
        super().__init__("wfl-clock")
        self._time = time

    def now(self) -> float:
        """Virtual seconds."""
        return self._time.now

    def queue(self) -> SimpleQueue[Any]:
        """One that says whether somebody sleeps in it."""
        return _Queue()

    def get(self, queue: SimpleQueue[_T], timeout: float | None = None) -> _T:
        """Sleep in virtual time."""
        return self._time.get(cast("_Queue[_T]", queue), timeout)

    def attend(self) -> Callable[[], None]:
        """Let time go on while an event loop waits."""
        self._time.attend(1)
        return lambda: self._time.attend(-1)

    def after(self, seconds: float, f: Callable[[], None]) -> None:
        """Call `f` in so many virtual seconds, unless the session is closed by then."""
        self._time.after(seconds, lambda: None if self._stopped else f())

    def soon(self, f: Callable[[], None]) -> None:
        """Call `f` before time goes on, unless the session is closed by then."""
        self._time.soon(lambda: None if self._stopped else f())

    def pool(self, name: str, limit: int) -> Pool:
        """What belongs to the session is done in order, by the thread that moves time."""
        pool = Pool(name, limit)
        pool.submit = self.soon  # type: ignore[method-assign] # no threads of its own
        return pool

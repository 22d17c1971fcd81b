"""What the session's ledger is made of: records of jobs, who sleeps on them, and the failures nobody looked at."""

from __future__ import annotations

import threading
import time
from math import inf
from queue import Empty
from typing import TYPE_CHECKING

from wfl.drmaa2 import JobState
from wfl.log import log

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from wfl.drmaa2 import JobInfo, JobTemplate
    from wfl.errors import WflError
    from wfl.gate import Gate
    from wfl.session import JobSession
    from wfl.threads import Clock

HERE, SUBMITTING, ACCEPTED, ENDED = range(4)
"""Phases of a record: not given to the system yet, on its way, known to the system, over."""
NEVER = "it was never started"
"""How the words begin that say so of what was submitted, and never came to the system."""


class Record:
    """What the ledger knows of one attempt to run one job. Written by the session alone, under its lock."""

    __slots__ = (
        "attempt", "began", "callbacks", "error", "final", "first", "gate", "gates", "id", "index", "info", "inherited",
        "job_id", "key", "own", "passed", "phase", "session", "slots", "source", "state", "submitted", "template",
        "unseen", "waited", "waiters", "why",
    )  # fmt: skip

    def __init__(
        self,
        session: JobSession,
        key: str,
        template: JobTemplate,
        *,
        source: JobTemplate | None = None,
        job_id: str | None = None,
        index: int | None = None,
        first: str | None = None,
        attempt: int = 0,
    ) -> None:
        self.session, self.key, self.id = session, key, key
        self.first, self.attempt = first or key, attempt  # of a retried task: the first attempt's key, and which it is
        self.template = template
        self.source = source or template  # as it was given: without defaults, with placeholders
        self.job_id, self.index = job_id or key, index
        self.state = JobState.QUEUED
        self.phase = HERE
        self.info: JobInfo | None = None
        self.error: WflError | None = None
        self.final: JobInfo | None = None  # an end that was seen, with its exit status still to be collected
        self.why: tuple[str, str] | None = None  # sub state and words, where the session itself ends the job
        self.gates: tuple[Gate, ...] = ()
        self.gate: Gate | None = None  # that of its array, for another attempt
        self.passed = -1  # gates; below 0: not in line
        self.slots = template.min_slots or 1
        self.submitted = time.time()
        self.began = inf  # by the session's clock, where the system is asked
        self.unseen = False
        self.inherited = False  # of a detached program that is gone, and waited in the system when it was last heard of
        self.waited = False  # in the queue of a detached program that died as it was just giving it to the system
        self.own = True  # started by this program (or taken over), so ended with it
        self.waiters: list[Waiter | Collector] | None = None
        self.callbacks: list[Callable[[], None]] | None = None


class Waiter:
    """Somebody asleep until a number of records has ended (or started); `last` is the one that woke it."""

    __slots__ = ("_clock", "_needed", "_over", "last", "started")

    def __init__(self, clock: Clock, needed: int, *, started: bool = False) -> None:
        self._clock, self._needed, self.started = clock, needed, started
        self._over: SimpleQueue[Record | None] = clock.queue()
        self.last: Record | None = None

    def wake(self, record: Record | None) -> None:
        """One record fewer to wait for; None: the wait is over (called with the ledger's lock held)."""
        if self._needed > 0:
            self._needed = self._needed - 1 if record is not None else 0
            if not self._needed:
                self._over.put(record)

    def sleep(self, timeout: float | None) -> bool:
        """Whether it was woken in time."""
        try:
            self.last = self._clock.get(self._over, timeout)
        except Empty:
            return False
        return True


class Collector:
    """A waiter that is handed each record as it ends, and None when the session closes."""

    __slots__ = ("started", "wake")

    def __init__(self, put: Callable[[Record | None], None]) -> None:
        self.wake, self.started = put, False


class Unseen:
    """Failures and errors that nobody has looked at yet: their number, and words for the first few."""

    FEW = 3

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._count = 0
        self._first: dict[int, str] = {}

    def add(self, thing: object, words: Callable[[], str]) -> None:
        """One more; the caller adds and discards each thing once."""
        with self._lock:
            self._count += 1
            if len(self._first) < self.FEW:
                self._first[id(thing)] = words()

    def discard(self, thing: object) -> None:
        """Somebody looked at it."""
        with self._lock:
            self._count -= 1
            self._first.pop(id(thing), None)

    def warn(self) -> None:
        """One warning for all of them."""
        if self._count > 0:
            shown = "; ".join(self._first.values())
            more = f" and {self._count - len(self._first)} more" if self._count > len(self._first) else ""
            what = "1 failure or error" if self._count == 1 else f"{self._count} failures or errors"
            log.warning("%s that nobody looked at: %s%s", what, shown, more)

"""Gate: at most so many slots in use at once; the rest queue, first come, first served.

One stands before each context with max_parallel and one before each array with it; a task passes them in turn.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wfl.record import Record


class Gate:
    """`limit` slots. Tasks that ended while they waited are skipped when their turn comes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._waiting: deque[Record] = deque()
        self._lock = threading.Lock()

    def enter(self, record: Record) -> bool:
        """Take the slots at once, or wait in line."""
        with self._lock:
            if self._waiting or self._used + record.slots > self.limit:
                self._waiting.append(record)
                return False
            self._used += record.slots
            return True

    def leave(self, record: Record) -> list[Record]:
        """Give the slots back; those who have theirs now, in order."""
        with self._lock:
            self._used -= record.slots
            return self._admit()

    def skip(self, record: Record) -> list[Record]:
        """Somebody in line is not coming any more; those who move up to a slot."""
        with self._lock:
            try:
                self._waiting.remove(record)
            except ValueError:
                return []
            return self._admit()

    def _admit(self) -> list[Record]:
        admitted = []
        while self._waiting and self._used + self._waiting[0].slots <= self.limit:
            record = self._waiting.popleft()
            self._used += record.slots
            admitted.append(record)
        return admitted


def advance(record: Record) -> bool:
    """Pass the gates that are still ahead; True if none is left."""
    while record.passed < len(record.gates):
        if not record.gates[record.passed].enter(record):
            return False
        record.passed += 1
    return True


def leave_all(record: Record) -> list[Record]:
    """Give back all slots this one has; those that may start now."""
    gates, passed = record.gates, record.passed
    admitted = [other for gate in gates[:passed] for other in gate.leave(record)]
    if passed < len(gates):
        admitted += gates[passed].skip(record)
    record.gates, record.passed = (), 0
    for other in admitted:
        other.passed += 1
    return [other for other in admitted if advance(other)]

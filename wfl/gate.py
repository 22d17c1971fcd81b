"""Gate: at most so many slots in use at once; the rest queue, first come, first served.

One stands before each context with max_parallel and one before each array with it; a task passes them in turn. One
lock guards them all, so that how far a task has come always agrees with what each gate knows of it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wfl.record import Record

_lock = threading.Lock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Gate:
    """`limit` slots, and who waits for some."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._waiting: deque[Record] = deque()

    def clear(self) -> None:
        """Nobody is here: this is a fork of the program whose tasks have the slots."""
        self._used = 0
        self._waiting.clear()

    def enter(self, record: Record) -> bool:
        """Take the slots at once, or wait in line (as the others: with the lock held)."""
        if self._waiting or self._used + record.slots > self.limit:
            self._waiting.append(record)
            return False
        self._used += record.slots
        return True

    def take(self, record: Record) -> None:
        """Take the slots, also where that is more than there are: what runs, runs."""
        self._used += record.slots

    def leave(self, record: Record) -> list[Record]:
        """Give the slots back; those who have theirs now, in order."""
        self._used -= record.slots
        return self._admit()

    def skip(self, record: Record) -> list[Record]:
        """Somebody in line is not coming any more; those who move up to a slot."""
        self._waiting.remove(record)
        return self._admit()

    def _admit(self) -> list[Record]:
        admitted = []
        while self._waiting and self._used + self._waiting[0].slots <= self.limit:
            record = self._waiting.popleft()
            self._used += record.slots
            admitted.append(record)
        return admitted


def advance(record: Record) -> bool:
    """Get in line; True if all gates are passed at once. Who is in line already stays where it is."""
    with _lock:
        if record.passed >= 0:
            return False
        record.passed = 0
        return _advance(record)


def occupy(record: Record) -> None:
    """It runs already, started by an earlier program: its slots are taken, as if it had come through the gates."""
    with _lock:
        for gate in record.gates:
            gate.take(record)
        record.passed = len(record.gates)


def _advance(record: Record) -> bool:
    while record.passed < len(record.gates):
        if not record.gates[record.passed].enter(record):
            return False
        record.passed += 1
    return True


def leave_all(record: Record) -> list[Record]:
    """Give back all slots this one has; those that may start now."""
    with _lock:
        gates, passed = record.gates, record.passed
        record.gates, record.passed = (), -1
        if passed < 0:
            return []
        admitted = [other for gate in gates[:passed] for other in gate.leave(record)]
        if passed < len(gates):
            admitted += gates[passed].skip(record)
        for other in admitted:
            other.passed += 1
        return [other for other in admitted if _advance(other)]

"""Asker: puts one question for all jobs of a session to a backend that must be asked, at an interval that adapts."""

from __future__ import annotations

import random
import threading
import time
from math import inf
from typing import TYPE_CHECKING

from wfl.backend import ended
from wfl.errors import WflError
from wfl.log import log
from wfl.record import ACCEPTED

if TYPE_CHECKING:
    from wfl.session import JobSession
    from wfl.threads import Clock, Pool

SLOWER = 1.5
"""By how much the interval grows while nothing changes."""
JITTER = 0.1


class Asker:
    """Asks soon after a submission, when somebody begins to wait or an end is expected; otherwise ever more rarely.

    Between two questions lie at least `limits.ask_min` seconds and at most `limits.ask_max`. No answer means asking
    again later; it says nothing about any job. It needs no thread: the session's clock rings, and a worker asks.
    """

    def __init__(self, session: JobSession, clock: Clock, workers: Pool) -> None:
        self._session, self._clock, self._workers = session, clock, workers
        self._limits = session.backend.limits
        self._lock = threading.Lock()
        self._interval = self._limits.ask_min
        self._last = -inf
        self._due: float | None = None  # when the clock will ring
        self._asking = self._hurried = self._stopped = self._down = False

    def hurry(self) -> None:
        """Something is expected: ask as soon as the shortest interval allows."""
        with self._lock:
            self._interval, self._hurried = self._limits.ask_min, True
            self._plan()

    def stop(self) -> None:
        """Ask no more."""
        with self._lock:
            self._stopped = True

    def _plan(self) -> None:
        """Have the next question put in time (with the lock held), unless it is already, or one is on its way."""
        now = self._clock.now()
        due = max(now, self._last + self._interval * random.uniform(1, 1 + JITTER))  # noqa: S311
        if not self._stopped and not self._asking and (self._due is None or due < self._due):
            self._due = due
            self._clock.after(due - now, lambda: self._ring(due))

    def _ring(self, due: float) -> None:
        with self._lock:
            if self._stopped or due != self._due:  # an earlier one has been planned since
                return
            self._due, self._last, self._asking, self._hurried = None, self._clock.now(), True, False
        self._workers.submit(self._round)

    def _round(self) -> None:
        """One question, if there is somebody to ask about; it survives everything."""
        try:
            if self._session.accepted():
                self._ask()
        except Exception as error:  # noqa: BLE001 - what it missed it asks again
            if not self._down:
                words = "" if isinstance(error, WflError) else " in an unforeseen way"
                log.warning("%s does not answer%s, asking on: %s", self._session.backend.name, words, error)
            self._down = True
            self._slow_down()
        with self._lock:
            self._asking = False
        if self._session.accepted():
            with self._lock:
                self._plan()

    def _ask(self) -> None:
        session = self._session
        before = session.changes
        records = session.accepted()
        for chunk in session.chunks([record.id for record in records], self._limits.ids):
            answer = session.request(session.backend.ask, chunk)
            session.observe(answer.infos)
            gone = set(answer.gone)
            session.observe(
                [
                    ended(r.id, sub_state="lost", annotation=f"{session.backend.name} does not know it any more")
                    for r in records
                    if r.id in gone
                    and r.phase == ACCEPTED
                    and (r.info or time.time() - r.submitted > self._limits.missing)
                ]
            )
        if self._down:
            log.warning("%s answers again", session.backend.name)
        self._down = False
        if session.changes == before:
            self._slow_down()
            soon = session.until_an_end(records)
            if soon < self._interval:
                self._clock.after(soon, self.hurry)
        else:
            self._interval = self._limits.ask_min

    def _slow_down(self) -> None:
        with self._lock:
            if not self._hurried:  # while this question was on its way: it may not have been about what is expected
                self._interval = min(self._interval * SLOWER, self._limits.ask_max)

"""Asker: puts one question for all jobs of a session to a backend that must be asked, at an interval that adapts."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

from wfl.backend import ended
from wfl.errors import WflError
from wfl.log import log
from wfl.record import ACCEPTED

if TYPE_CHECKING:
    from wfl.session import JobSession

SLOWER = 1.5
"""By how much the interval grows while nothing changes."""
JITTER = 0.1


class Asker:
    """One thread: asks soon after something was submitted or somebody began to wait, then ever more rarely.

    Between two questions lie at least `limits.ask_min` seconds and at most `limits.ask_max`. No answer means asking
    again later; it says nothing about any job.
    """

    def __init__(self, session: JobSession) -> None:
        self._session = session
        self._limits = session.backend.limits
        self._changed = threading.Condition()
        self._interval = self._limits.ask_min
        self._last = 0.0
        self._thread: threading.Thread | None = None
        self._stopped = self._down = False

    def hurry(self) -> None:
        """Something is expected: ask as soon as the shortest interval allows."""
        with self._changed:
            self._interval = self._limits.ask_min
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="wfl-asker", daemon=True)
                self._thread.start()
            self._changed.notify()

    def stop(self) -> None:
        """Ask no more."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _run(self) -> None:
        while self._wait():
            try:
                self._ask()
            except Exception as error:  # noqa: BLE001 - the asker survives; what it missed it asks again
                if not self._down:
                    words = "" if isinstance(error, WflError) else " in an unforeseen way"
                    log.warning("%s does not answer%s, asking on: %s", self._session.backend.name, words, error)
                self._down = True
                self._slow_down()

    def _wait(self) -> bool:
        """Until the next question is due and there is somebody to ask about."""
        with self._changed:
            while not self._stopped:
                due = self._last + self._interval * random.uniform(1, 1 + JITTER) - time.monotonic()  # noqa: S311
                if due > 0:  # first, as many submissions at once hurry it many times
                    self._changed.wait(due)
                elif not self._session.accepted():
                    self._changed.wait()
                else:
                    self._last = time.monotonic()
                    return True
        return False

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
                    and (r.info or time.time() - r.submitted > self._limits.collect)
                ]
            )
        if self._down:
            log.warning("%s answers again", session.backend.name)
        self._down = False
        if session.changes == before:
            self._slow_down()
        else:
            self._interval = self._limits.ask_min

    def _slow_down(self) -> None:
        self._interval = min(self._interval * SLOWER, self._limits.ask_max)

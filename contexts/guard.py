"""What a session makes on a remote system does not outlive its program unseen.

Closing waits for what is just being made, so that it can be ended; what is not certain, or cannot be ended, a helper
process goes on with, as it does when the program dies (wfl.contexts.undertaker).
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wfl.contexts.undertaker import AFTERMATH, Undertaker, revive
from wfl.errors import DrmCommunicationError, InvalidSessionError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("wfl")

PATIENCE = 10.0
"""Seconds that closing waits for what is under way."""


class Guard:
    """Of one session. `closed` is set when it closes; `things` are what it makes, for people."""

    def __init__(
        self, name: str, things: str, closed: threading.Event, start: Callable[[Callable[[], None]], Undertaker] | None
    ) -> None:
        """`start` starts the helper, given what is to be called when that is lost; None: the jobs may live on."""
        self._name, self._things, self._closed, self._start = name, things, closed, start
        self._lock = threading.Lock()
        self._quiet = threading.Condition()
        self._making, self._uncertain = 0, False
        self._helper: Undertaker | None = None

    @contextmanager
    def on_its_way(self) -> Iterator[None]:
        """Something is being made. Raises InvalidSessionError, and nothing may be made, where the session is closed."""
        with self._quiet:
            self._check()
            self._making += 1
        try:
            yield
        except BaseException as error:
            if isinstance(error, DrmCommunicationError) or not isinstance(error, WflError):
                self.doubt()
            raise
        finally:
            with self._quiet:
                self._making -= 1
                self._quiet.notify_all()

    def doubt(self) -> None:
        """The system may still be at something that was given up."""
        self._uncertain = True

    def watch(self) -> None:
        """See to it that a dead program leaves nothing behind; at the first call the helper is started."""
        with self._lock:
            self._check()
            if self._helper is None:
                self._begin()

    def _check(self) -> None:
        if self._closed.is_set():
            raise InvalidSessionError("the session is closed")

    def _begin(self) -> None:
        if self._start is not None:
            self._helper = self._start(self._lost)

    def _lost(self) -> None:
        def again() -> None:
            with self._lock:
                if not self._closed.is_set():
                    self._begin()

        revive(self._name, self._things, self._closed, again)

    def close(self) -> int:
        """Nothing new is begun. Waits a while for what is being made; how much of that there still is."""
        with self._quiet:
            self._closed.set()
            self._quiet.wait_for(lambda: not self._making, PATIENCE)
            return self._making

    def leave(self, left: int, end: Callable[[], object]) -> None:
        """All is ended but what `left` counts, and what nobody knows of: with these the helper goes on.

        Where there is no helper, `end` ends once more what has come meanwhile.
        """
        with self._lock:
            helper = self._helper
        if helper is None:
            if left:
                log.error(
                    "%s: %d %s are not ended yet; `clean` ends what a session has left", self._name, left, self._things
                )
            if self._uncertain:
                time.sleep(AFTERMATH)
                end()
            return
        if left:
            words = "%s: %d %s are not ended yet; a helper process goes on with that"
            log.error(words, self._name, left, self._things)
        if left or self._uncertain:
            helper.take_over()
        else:
            helper.goodbye()

    def abandon(self) -> None:
        """In a forked child: the helper must see the end of the program that owns it. No lock is touched."""
        if self._helper is not None:
            self._helper.abandon()

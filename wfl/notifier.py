"""Handing Jobs over between branches, which run in threads of their own."""

from __future__ import annotations

from collections import deque
from threading import Condition
from typing import TYPE_CHECKING, Self

from wfl.errors import InvalidStateError, TimeoutError
from wfl.timing import timeout_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

    from wfl.job import Job


class Notifier:
    """An unbounded queue of Jobs that any number of threads may fill and empty; send() never blocks.

    Closing it ends the hand-over: what was sent can still be received, then receivers are told that it is
    over, and iterations end. As a context manager it closes itself.
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._closed = False
        self._changed = Condition()

    def send(self, job: Job) -> None:
        """Hand `job` over to one receiver; InvalidStateError after close()."""
        with self._changed:
            if self._closed:
                raise InvalidStateError("this notifier is closed: send the job before close()")
            self._jobs.append(job)
            self._changed.notify()

    def receive(self, timeout: float | timedelta | None = None) -> Job:
        """Return the Job that was sent first, waiting for it up to `timeout` (None: as long as it takes).

        TimeoutError when none came in time; InvalidStateError when closed and empty, as none can come.
        """
        limit = timeout_seconds(timeout)
        with self._changed:
            if not self._changed.wait_for(lambda: self._jobs or self._closed, limit):
                raise TimeoutError(f"no job was sent to this notifier within {limit} s")
            if not self._jobs:
                raise InvalidStateError("this notifier is closed and every job was received")
            return self._jobs.popleft()

    def __iter__(self) -> Iterator[Job]:
        """Receive until closed and empty."""
        while True:
            try:
                job = self.receive()
            except InvalidStateError:
                return
            yield job

    def close(self) -> None:
        """End the hand-over; closing again does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""What a job server tells: server-sent events, or a long poll where something on the way does not let these through.

One thread for a session. It is told in which state all is when it begins, and from then on of every change; whenever
something may have been missed, who listens is told to look at everything.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from wfl.contexts.remote.client import pauses
from wfl.contexts.remote.connection import NotThereError, UnansweredError
from wfl.contexts.remote.v1 import QUIET, Jobs, Told
from wfl.errors import UnsupportedOperationError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wfl.contexts.remote.v1 import Api

log = logging.getLogger("wfl")

RECONNECT = (0.1, 5.0)
"""First and longest pause in seconds before a lost connection for events is tried again."""
LOOK = 300.0
"""Seconds between two looks at everything where events never cease: one of them may have been lost."""
POLL = 25.0
"""Seconds that a long poll may take, if the server allows it; what stands on the way often allows no more than 30."""
PATIENCE = 10.0
"""Seconds that closing waits for the thread."""


class Event(NamedTuple):
    """One server-sent event; `id` is that of the last event which had one."""

    name: str
    data: bytes
    id: str


class Parser:
    """Takes a stream of server-sent events in any pieces (WHATWG HTML, 9.2.6). One that is not whole says nothing."""

    def __init__(self) -> None:
        self._rest = b""
        self._name, self._id = "", ""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that are whole with this piece. Lines end with LF or CR LF."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            event = self._line(line.removesuffix(b"\r"))
            if event is not None:
                yield event

    def _line(self, line: bytes) -> Event | None:
        if not line:
            return self._dispatched()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode(errors="replace")
        elif field == b"id" and b"\0" not in value:
            self._id = value.decode(errors="replace")
        return None

    def _dispatched(self) -> Event | None:
        name, data = self._name or "message", self._data
        self._name, self._data = "", []
        return Event(name, b"\n".join(data), self._id) if data or name != "message" else None


class Listener:
    """Tells `heard` of changes, and calls `look` after each connection and where the server says `reset`.

    `listening` is set while there is a connection; `connections` counts them, so that who asked something can tell
    whether a change may have been missed meanwhile.
    """

    def __init__(
        self,
        api: Api,
        *,
        heard: Callable[[Sequence[Told]], None],
        look: Callable[[], None],
        closed: threading.Event,
        wait: float,
    ) -> None:
        self._api, self._heard, self._look, self._closed = api, heard, look, closed
        self._wait = min(wait, POLL)
        self._cursor: str | None = None
        self._polls = False
        self._lost = False
        self._looked = 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.connections = 0
        self.listening = threading.Event()

    def start(self) -> None:
        """Listen from now on; at the first call."""
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._follow, name="wfl-remote-events", daemon=True)
                self._thread.start()

    def join(self) -> None:
        """Wait until it has ended, after `closed` was set and the connection was cut."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(
                0.1 if self._polls else PATIENCE
            )  # a question that waits for its answer is left to itself

    def _follow(self) -> None:
        tries = pauses(RECONNECT)
        while not self._closed.is_set():
            began, wanted = time.monotonic(), 0.0
            try:
                self._listen()
            except Exception as error:  # noqa: BLE001 - whatever it was, the next connection may do better
                self._say_lost(error)
                wanted = getattr(error, "pause", 0.0)
            self.listening.clear()
            if time.monotonic() - began > RECONNECT[1]:
                tries = pauses(RECONNECT)
            self._closed.wait(max(next(tries), wanted))

    def _say_lost(self, error: Exception) -> None:
        if self._lost or self._closed.is_set():
            return
        self._lost = True
        words = "" if isinstance(error, WflError) else " in an unforeseen way"
        log.warning("remote: the connection for events was lost%s, connecting again: %s", words, error)

    def _listen(self) -> None:
        """One connection, to its end."""
        if not self._polls:
            with suppress(NotThereError, UnsupportedOperationError):
                self._stream()
                return
            self._polls = True
            log.info("remote: there is no stream of events, asking instead")
        self._poll()

    def _connected(self) -> None:
        if self._lost:
            log.warning("remote: the job server is there again")
        self._lost = False
        self.connections += 1
        self.listening.set()
        self._look_now()

    def _look_now(self) -> None:
        self._looked = time.monotonic()
        self._look()

    def _look_sometimes(self) -> None:
        if time.monotonic() - self._looked > LOOK:
            self._look_now()

    # -- server-sent events --

    def _stream(self) -> None:
        parser, silent, began = Parser(), True, time.monotonic()
        try:
            with self._api.events(self._cursor) as pieces:
                for piece in pieces:
                    if silent:  # from here on nothing is missed: the headers may come before the server listens itself
                        silent = False
                        self._connected()
                    for event in parser.feed(piece):
                        self._event(event)
                    self._look_sometimes()
        except UnansweredError:
            self._polls = silent and time.monotonic() - began >= QUIET  # something keeps it back until there is more
            raise

    def _event(self, event: Event) -> None:
        if event.name == "jobs":
            try:
                self._heard(msgspec.json.decode(event.data, type=Jobs).jobs)
            except msgspec.DecodeError as error:
                raise UnansweredError(f"an event cannot be understood: {error}") from error
        self._cursor = event.id or self._cursor
        if event.name == "reset":
            self._look_now()

    # -- long poll --

    def _poll(self) -> None:
        if self._cursor is None:
            self._cursor = self._api.poll(None, 0).cursor
        self._connected()
        while not self._closed.is_set():
            answer = self._api.poll(self._cursor, self._wait)
            self._heard(answer.jobs)
            self._cursor = answer.cursor
            if answer.reset:
                self._look_now()
            self._look_sometimes()
            if answer.cursor is None:  # so the next question would have its answer at once
                return

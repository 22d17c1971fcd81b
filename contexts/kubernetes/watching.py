"""One kind of object as the cluster tells of it: listed, then watched from there, for as long as the session is open.

No end gets lost: after each connection, refusal or silence everything is listed again, and who listens compares.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wfl.contexts.kubernetes.client import ExpiredError

if TYPE_CHECKING:
    from wfl.contexts.kubernetes.client import Client

log = logging.getLogger("wfl")

PAUSE = (0.1, 5.0)
"""First and longest pause in seconds before a lost watch is tried again."""

Object = Mapping[str, Any]


class Watch:
    """A thread that tells of all objects of a kind with a label."""

    def __init__(
        self,
        client: Client,
        kind: str,
        selector: str,
        *,
        listed: Callable[[Sequence[Object]], None],
        heard: Callable[[str, Object], None],
        closed: threading.Event,
    ) -> None:
        """`listed` is given all there are, `heard` each change: "ADDED", "MODIFIED" or "DELETED" and the object."""
        self._client, self._kind, self._selector = client, kind, selector
        self._listed, self._heard, self._closed = listed, heard, closed
        self.ready = threading.Event()
        """Whether it listens now."""
        self.error: Exception | None = None
        """Why it did not, the last time."""
        self._lost = False
        self._thread = threading.Thread(target=self._run, name=f"wfl-kubernetes-{kind}", daemon=True)
        self._thread.start()

    def join(self, patience: float) -> None:
        """Wait until it has noticed that the session is closed."""
        self._thread.join(patience)

    def _run(self) -> None:
        pause = PAUSE[0]
        while not self._closed.is_set():
            began = time.monotonic()
            try:
                version = self._list()
                while not self._closed.is_set():
                    began = time.monotonic()
                    version = self._follow(version)
                    if time.monotonic() - began < PAUSE[0]:  # nobody is asked in a loop that does not pause
                        self._closed.wait(PAUSE[0])
            except ExpiredError as error:  # usual after the API server's restart
                log.debug("kubernetes: %s: %s", self._kind, error)
            except Exception as error:  # noqa: BLE001 - whatever it was, the next connection may do better
                self.error = error
                if not self._lost and not self._closed.is_set():
                    log.warning("kubernetes: the watch of %s was lost, trying again: %s", self._kind, error)
                    self._lost = True
            self.ready.clear()
            if time.monotonic() - began > PAUSE[1]:
                pause = PAUSE[0]
            self._closed.wait(pause)
            pause = min(2 * pause, PAUSE[1])

    def _list(self) -> str:
        items, version = self._client.list(self._kind, self._selector)
        self._listed(items)
        self.error = None
        self.ready.set()
        return version

    def _follow(self, version: str) -> str:
        """Until the API server ends it in good order; the version to go on from."""
        for what, found in self._client.watch(self._kind, self._selector, version):
            if self._lost:
                log.warning("kubernetes: the watch of %s is there again", self._kind)
                self._lost = False
            version = found["metadata"]["resourceVersion"]
            if what != "BOOKMARK":
                self._tell(what, found)
        return version

    def _tell(self, what: str, found: Object) -> None:
        try:
            self._heard(what, found)
        except Exception:  # the others are to be heard of
            log.exception("kubernetes: %s of %s %s", what, self._kind, found["metadata"].get("name"))

"""Ending all jobs of a program on its job server: when it closes its session, and what its helper process does when it
has died (see wfl.contexts.undertaker).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

from wfl.backend import Action
from wfl.contexts.remote.client import Client, pauses
from wfl.contexts.remote.compatible import Calls
from wfl.contexts.remote.settings import Credentials, Place
from wfl.contexts.remote.v1 import Api, Limits
from wfl.contexts.undertaker import Undertaker, tell, until_none_is_left
from wfl.errors import InvalidStateError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from wfl.drmaa2 import JobInfo

log = logging.getLogger("wfl")

PATIENCE = 10.0
"""Seconds that closing waits for an answer, and for the end of what it has killed."""
_LOOKS = (0.02, 0.5)
"""Shortest and longest pause in seconds between two looks whether all have ended."""
_NAME = "journal"


class Journal:
    """What this program has submitted, on this machine, for its helper process. Lines are added, by any thread.

    With version 1 they are keys, written before the submission; with the compatible protocol, which knows none, ids.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / _NAME
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def add(self, names: Iterable[str]) -> None:
        """Write them down, for a reader that comes after this program's death (not after the machine's)."""
        line = json.dumps(list(names)).encode() + b"\n"
        with self._lock:
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                self._descriptor = os.open(self.path, flags, 0o600)
            while line:
                line = line[os.write(self._descriptor, line) :]

    def close(self) -> None:
        """Nothing more is added."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    @staticmethod
    def read(path: str) -> list[str]:
        """All names; a line that was not whole is of what was not sent."""
        try:
            with open(path, "rb") as file:
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        return list(dict.fromkeys(name for line in lines for name in json.loads(line)))


class Server(Protocol):
    """What ending jobs needs of either protocol; `names` are what a Journal has."""

    def look(self, names: Sequence[str]) -> dict[str, JobInfo]:
        """Where jobs are, by their ids on the server; those that it does not know are left out."""

    def kill(self, ids: Sequence[str]) -> dict[str, WflError]:
        """End them; what failed."""

    def remove(self, ids: Sequence[str]) -> dict[str, WflError]:
        """Remove what the server keeps of ended ones; what failed."""

    def close(self) -> None:
        """Let go."""


class V1:
    """Version 1, by keys."""

    def __init__(self, client: Client, session: str, most: int) -> None:
        self._client, self._api, self.most = client, Api(client, session), most

    def look(self, names: Sequence[str]) -> dict[str, JobInfo]:
        """As many keys in a request as the server takes; of an array's key, all its elements."""
        found = [self._api.find(keys=chunk) for chunk in chunks(names, self.most)]
        return {told.id: told.known for one in found for told in one.jobs if told.id is not None}

    def kill(self, ids: Sequence[str]) -> dict[str, WflError]:
        """In bulk."""
        return self._all(lambda chunk: self._api.control(chunk, Action.KILL).failures, ids)

    def remove(self, ids: Sequence[str]) -> dict[str, WflError]:
        """In bulk."""
        return self._all(lambda chunk: self._api.reap(chunk).failures, ids)

    def _all(self, f: Callable[[Sequence[str]], Mapping[str, WflError]], ids: Sequence[str]) -> dict[str, WflError]:
        return {id: error for chunk in chunks(ids, self.most) for id, error in f(chunk).items()}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class Compatible:
    """The compatible protocol, by ids, one by one."""

    def __init__(self, client: Client, base: str) -> None:
        self._client, self._calls = client, Calls(client, base)

    def look(self, names: Sequence[str]) -> dict[str, JobInfo]:
        """One request each, and one where some are not known."""
        answer = self._calls.where(names)
        return {info.id: info for info in answer.infos}

    def kill(self, ids: Sequence[str]) -> dict[str, WflError]:
        """The protocol's only way to end a job."""
        return self._calls.control(ids, Action.TERMINATE)

    def remove(self, ids: Sequence[str]) -> dict[str, WflError]:
        """One request each."""
        return self._calls.delete(ids)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def chunks(items: Sequence[str], size: int) -> list[Sequence[str]]:
    """Pieces that fit in one request."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def reached(place: Mapping[str, Any], credentials: Mapping[str, Any], protocol: Mapping[str, Any]) -> Server:
    """A server, as the settings say that a helper process is given, too. `protocol`: {"session", "ids"} of version 1,
    or {"base"} of the compatible one.
    """
    client = Client(Place.from_dict(place), Credentials(**credentials), patience=PATIENCE)
    if "session" in protocol:
        return V1(client, protocol["session"], protocol.get("ids", Limits().ids))
    return Compatible(client, protocol["base"])


def end_now(server: Server, ids: Sequence[str], names: Sequence[str]) -> tuple[dict[str, JobInfo], int]:
    """Kill jobs and wait for a while until they have ended: those that have, and how many have not.

    Raises what the server says.
    """
    server.kill(ids)
    return _await_ends(lambda: server.look(names), ids)


def _await_ends(look: Callable[[], Mapping[str, JobInfo]], ids: Sequence[str]) -> tuple[dict[str, JobInfo], int]:
    until = time.monotonic() + PATIENCE
    over: dict[str, JobInfo] = {}
    left = 0
    for pause in pauses(_LOOKS):
        found = look()
        over = {id: found[id] for id in ids if id in found and found[id].state.ended}
        left = sum(id in found and id not in over for id in ids)  # what is not there has no end to come
        if not left or time.monotonic() > until:
            break
        time.sleep(pause)
    return over, left


def remove_all(place: Place, credentials: Credentials, session: str) -> int:
    """End and remove all jobs of a session; how many there were."""
    with closing(Client(place, credentials)) as client:
        api = Api(client, session)
        server = V1(client, session, api.info().limits.ids)
        ids = [told.id for told in api.jobs() if told.id is not None]
        for some in chunks(ids, server.most):
            _remove(api, server, some)
    return len(ids)


def _remove(api: Api, server: V1, ids: Sequence[str]) -> None:
    def look() -> dict[str, JobInfo]:
        return {told.id: told.known for told in api.find(ids=ids).jobs if told.id is not None}

    alive = [id for id, info in look().items() if not info.state.ended]
    if alive:
        server.kill(alive)
        _await_ends(look, alive)
    for error in server.remove(ids).values():
        raise error


# -- in the helper, after the program's death --


def watch(
    told: Mapping[str, Any], journal: Path, *, keep: bool, lost: Callable[[], object] | None, log: str = os.devnull
) -> Undertaker:
    """Start the helper for all jobs in a journal; see `Undertaker.start`.

    `told` are the arguments of `reached`; the credentials go through the helper's socket, which nobody else has. With
    `keep` jobs that have ended stay on the server for a program that comes back.
    """
    given = {**told, "journal": journal, "keep": keep}
    return Undertaker.start(f"{__name__}:{end_all.__name__}", given, lost=lost, log=log)


def end_all(
    *,
    place: Mapping[str, Any],
    credentials: Mapping[str, Any],
    protocol: Mapping[str, Any],
    journal: str,
    keep: bool = False,
) -> None:
    """End all jobs in a journal, and remove them; see `watch`. Its directory goes, too."""
    names = Journal.read(journal)

    def attempt() -> tuple[int, bool]:
        with closing(reached(place, credentials, protocol)) as server:
            found = server.look(names)
            alive = [id for id, info in found.items() if not info.state.ended]
            over = [] if keep else [id for id, info in found.items() if info.state.ended]
            failures = server.kill(alive) if alive else {}
            if over:
                failures |= server.remove(over)
            for error in failures.values():
                if not isinstance(error, InvalidStateError):  # it has ended, or is gone, meanwhile
                    tell(error)
            return len(alive) + len(over), not alive and not failures

    if names:
        until_none_is_left(attempt, f"jobs at {place['base_url']}")
    shutil.rmtree(os.path.dirname(journal), ignore_errors=True)

"""A job server's system as it is looked at: its own jobs, and what its execution system tells the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wfl.backend import Monitor
from wfl.contexts.remote.client import Client
from wfl.contexts.remote.facts import info_of
from wfl.contexts.remote.v1 import Api
from wfl.drmaa2 import FrozenDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wfl.contexts.remote.settings import Credentials, Place
    from wfl.contexts.remote.v1 import Alive
    from wfl.drmaa2 import JobInfo, MachineInfo, QueueInfo

PATIENCE = 5.0
"""Seconds for which a question is repeated: who looks wants to know now."""


class RemoteMonitor(Monitor):
    """Jobs are those of this identity, an administrator's are everybody's; of all its sessions on the server.

    extensions["session"] is the session's name, extensions["identity"] whose it is.
    """

    def __init__(self, place: Place, credentials: Credentials) -> None:
        """Raises what the server says."""
        self._client = Client(place, credentials, patience=min(PATIENCE, place.patience))
        self._api = Api(self._client, "")
        try:
            self._api.info()
        except BaseException:
            self._client.close()
            raise

    def jobs(self, session_name: str | None) -> Sequence[JobInfo]:
        """Those that wait on the server count, too."""
        return [_job(alive) for alive in self._api.living(session_name)]

    def machines(self) -> Sequence[MachineInfo]:
        """Those of the server's system."""
        return self._api.system("machines").machines

    def queues(self) -> Sequence[QueueInfo]:
        """Those of the server's system."""
        return self._api.system("queues").queues

    def categories(self) -> Sequence[str]:
        """Those of the server's system, or what the server allows of them."""
        return self._api.system("categories").categories

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _job(alive: Alive) -> JobInfo:
    info = info_of(alive.id, alive.info)
    names = {"session": alive.session, "identity": alive.identity}
    return info.replace(extensions=FrozenDict({**info.extensions, **names}))

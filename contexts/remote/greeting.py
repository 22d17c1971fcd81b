"""Finding out which protocol a server speaks: the better one is used, and what speaks neither is told by name."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from wfl.contexts.remote.backend import RemoteBackend
from wfl.contexts.remote.client import Client
from wfl.contexts.remote.compatible import PREFIX, Calls
from wfl.contexts.remote.compatible_backend import CompatibleBackend
from wfl.contexts.remote.connection import NotThereError
from wfl.contexts.remote.v1 import Api
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, WflError

if TYPE_CHECKING:
    from wfl.backend import Backend
    from wfl.contexts.remote.settings import Credentials, Place


def greeted(place: Place, credentials: Credentials, protocol: str, session: str, *, detach: bool) -> Backend:
    """A backend for the server, which is asked who it is: once, as what cannot be reached is to be said at once."""
    with closing(Client(place, credentials, patience=0)) as client:
        if protocol != "compatible":
            try:
                info = Api(client, session).info()
            except WflError as error:
                if protocol == "v1" or not _may_be_older(error):
                    raise
                reason = error
            else:
                return RemoteBackend(place, credentials, info, session, detach=detach)
            base = _base(client, reason)
        else:
            base = _base(client, None)
    return CompatibleBackend(place, credentials, base, paths=protocol == "compatible", detach=detach)


def _may_be_older(error: WflError) -> bool:
    """Whether there is a server that does not know version 1."""
    return isinstance(error, NotThereError) or not isinstance(error, DeniedByDrmsError | DrmCommunicationError)


def _base(client: Client, reason: WflError | None) -> str:
    """Where the calls of the compatible protocol are: where the address says, or where our own server has them."""
    first = reason
    for base in ("", PREFIX):
        try:
            Calls(client, base).jobs()
        except DeniedByDrmsError:
            raise
        except WflError as error:
            first = first or error
        else:
            return base
    raise DrmCommunicationError(f"{client.url}: there is no wfl job server: {first}") from first

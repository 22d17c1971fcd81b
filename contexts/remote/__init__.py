"""RemoteContext: jobs run on a wfl job server, which offers any other system over HTTP."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from wfl.context import Context, check_session_name
from wfl.contexts.remote.settings import check_protocol, credentials_of, place_of
from wfl.errors import UnsupportedOperationError
from wfl.extras import needed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wfl.backend import Backend, Monitor

__all__ = ["RemoteContext", "clean"]

_WHY = "jobs on a job server need httpx"


class RemoteContext(Context):
    """Run each job on a wfl job server (extra: `wfl-sdk[remote]`).

    Besides the settings of every Context:
    base_url: where the server is, such as "https://host:8443" or "https://host/path".
    token, auth: who asks: a bearer token, or (user, password); without either the token in WFL_REMOTE_TOKEN. They are
    sent to this server alone, and shown by nothing.
    verify: True trusts the well-known authorities (SSL_CERT_FILE and SSL_CERT_DIR name others); a path those of a file
    or directory; False anybody.
    cert: this client's certificate: a file that has its key, too, or (certificate, key).
    protocol: "v1", our own; "compatible", that of the Go implementation; "auto": the better one that there is.
    timeout: seconds that one request may take. patience: seconds for which one that is not answered is repeated.
    insecure: True sends credentials in the clear to another machine (http://); else that is refused.

    Paths in templates are this side's: files are sent before the start, output and results are fetched after the end.
    With protocol="compatible", which moves no files, they are the server's.

    Proxies are those of the environment (HTTPS_PROXY, NO_PROXY, …). What cannot be reached is said when the context is
    first used, as a DrmCommunicationError in one line.
    """

    name = "remote"

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        auth: Sequence[str] | None = None,
        verify: bool | str | os.PathLike[str] = True,
        cert: str | Sequence[str] | None = None,
        protocol: str = "auto",
        timeout: float = 30.0,
        patience: float = 60.0,
        insecure: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.protocol = check_protocol(protocol)
        self.credentials = credentials_of(token, auth)
        self.place = place_of(
            base_url,
            credentials=self.credentials,
            verify=verify,
            cert=cert,
            timeout=timeout,
            patience=patience,
            insecure=insecure,
        )

    def backend(self) -> Backend:
        """A new backend. The server is asked who it is: what it can do is part of the backend."""
        with needed("remote", _WHY):
            from wfl.contexts.remote.greeting import greeted
        return greeted(self.place, self.credentials, self.protocol, self.session_name, detach=self.detach)

    def monitor(self) -> Monitor:
        """The server's system: this identity's jobs there, and machines, queues and job categories as it tells them."""
        with needed("remote", _WHY):
            from wfl.contexts.remote.monitor import RemoteMonitor
        if self.protocol == "compatible":
            raise UnsupportedOperationError("the compatible protocol shows nothing of the server's system")
        return RemoteMonitor(self.place, self.credentials)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, base_url={self.place.base_url!r})"


def clean(session_name: str, context: RemoteContext) -> int:
    """Remove all jobs that programs have left behind in a session of a server; how many there were.

    Those that run go too, and so do those of a program that is still at work in this session. The compatible protocol
    knows no sessions: UnsupportedOperationError.
    """
    check_session_name(session_name)
    with needed("remote", _WHY):
        from wfl.contexts.remote.ending import remove_all
    if context.protocol == "compatible":
        raise UnsupportedOperationError("the compatible protocol knows no sessions: remove jobs one by one")
    return remove_all(context.place, context.credentials, session_name)

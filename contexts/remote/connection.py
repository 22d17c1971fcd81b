"""Connections to a job server through httpx; words for what keeps an answer from us, and what answers mean."""

from __future__ import annotations

import os
import socket
import ssl
import time
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import msgspec

import wfl.errors
from wfl.contexts import network
from wfl.contexts.remote.settings import is_loopback
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    ImplementationSpecificError,
    InvalidArgumentError,
    InvalidStateError,
    JobFailedError,
    OutOfResourceError,
    UnsupportedOperationError,
    WflError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wfl.contexts.remote.settings import Credentials, Place

CONNECT = 10.0
"""Seconds that making a connection may take, if `timeout` is not less."""
IDLE = 4.0
"""Seconds after which an idle connection is not used again; servers close theirs after five (uvicorn's default)."""
BUSY, _ERROR, UNAVAILABLE = 429, 500, 503
PASSING = frozenset({408, 425, BUSY, 502, UNAVAILABLE, 504})
"""Status codes after which the same request may be answered: by who stands before the server, or by a busy one."""
LONGEST = 30.0
"""Seconds that a server can have us wait before it is asked again."""
SEVERAL = 3
"""Times that a request is made which the server fails at."""
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
_HEADERS = {"Accept-Encoding": "identity", "Cache-Control": "no-store", "User-Agent": "wfl"}
"""Lengths are those of what is meant, and answers come from the server."""
_MOST_WORDS = 500
"""Characters of an answer that is shown to people."""
_ERRORS = {
    name: kind
    for name, kind in vars(wfl.errors).items()
    if isinstance(kind, type) and issubclass(kind, WflError) and kind is not JobFailedError
}


class UnansweredError(DrmCommunicationError):
    """There was no answer, or none that says what has become of the request.

    certain: nothing was done there; pause: seconds after which the server would have us ask again; tries: how often
    it is worth asking; busy: the server was reached, and has no time.
    """

    def __init__(
        self,
        words: str,
        *,
        certain: bool = False,
        pause: float = 0.0,
        tries: float = float("inf"),
        busy: bool = False,
    ) -> None:
        super().__init__(words)
        self.certain, self.pause, self.tries, self.busy = certain, pause, tries, busy


class NotThereError(InvalidStateError):
    """The server does not know it (any more), or it is somebody else's."""


class PastEndError(InvalidArgumentError):
    """There is nothing where a part of a file was asked for."""


def connected(place: Place, credentials: Credentials, *, fresh: bool = False) -> httpx.Client:
    """A client, which has contacted nothing yet. `fresh`: each request has a connection of its own.

    Proxies come from the environment, but what stays on this machine is never given to one in the clear.
    """
    loopback = place.base_url.startswith("http:") and is_loopback(place.base_url)
    direct: dict[str, Any] = {f"all://{urlsplit(place.base_url).netloc}": None} if loopback else {}
    try:
        verify = _trust(place)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(filter(None, (*(place.cert or ()), str(place.verify))))
        raise InvalidArgumentError(f"cert or verify cannot be used ({files}): {network.words(error)}") from error
    return httpx.Client(
        headers={**_HEADERS, **credentials.headers()},
        timeout=httpx.Timeout(place.timeout, connect=min(place.timeout, CONNECT)),
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=0 if fresh else None, keepalive_expiry=IDLE
        ),
        verify=verify,
        mounts=direct,
        follow_redirects=False,
    )


def _trust(place: Place) -> ssl.SSLContext:
    """Whom to trust, and what to show."""
    if place.base_url.startswith("http:") and place.verify is True and place.cert is None:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used: reading all authorities takes a tenth of a second
    if isinstance(place.verify, str):
        several = os.path.isdir(place.verify)
        context = ssl.create_default_context(
            cafile=None if several else place.verify, capath=place.verify if several else None
        )
    else:
        context = httpx.create_ssl_context(verify=place.verify)
    if place.cert is not None:
        key = place.cert[1] if len(place.cert) > 1 else None
        context.load_cert_chain(place.cert[0], key, password=str)  # none: else OpenSSL would ask at the terminal
    return context


def cut(response: httpx.Response) -> None:
    """End a stream that another thread is just reading from: closing alone would not wake it."""
    stream = response.extensions.get("network_stream")
    if stream is not None:
        sock = stream.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # below TLS, whose state is the reader's


def unanswered(url: str, error: httpx.HTTPError | httpx.StreamError | httpx.InvalidURL) -> UnansweredError:
    """What httpx raises, in one line."""
    return UnansweredError(f"{url}: {_words(error)}", certain=isinstance(error, _UNSENT))


def _words(error: BaseException) -> str:
    """The innermost reason, which httpx wraps twice."""
    reason: BaseException = error
    while (inner := reason.__cause__ or reason.__context__) is not None:
        reason = inner
    if isinstance(error, httpx.TimeoutException):
        return "nothing was heard in time"
    if isinstance(error, httpx.RemoteProtocolError):
        return "the connection was cut" if "disconnect" in str(error) or "peer closed" in str(error) else str(error)
    return network.words(reason)


def refusal(url: str, response: httpx.Response) -> WflError:
    """What an answer means that is no success; its body has been read."""
    status = response.status_code
    kind, said = _said(response)
    words = f"{url}: {said}"
    if status in PASSING:
        pause = _pause(response.headers.get("Retry-After", ""))
        return UnansweredError(words, certain=status == BUSY, pause=pause, busy=status in (BUSY, UNAVAILABLE))
    if status >= _ERROR or (kind is not None and issubclass(kind, DrmCommunicationError)):
        return UnansweredError(words, tries=SEVERAL)
    if status in _CURES:
        return DeniedByDrmsError(f"{words} ({_CURES[status]})")
    if status in _PLAIN:
        return _PLAIN[status](words)
    return (kind or _KINDS.get(status, ImplementationSpecificError))(words)


_CURES = {401: "give the right token or auth", 407: "the proxy wants a user and a password: see HTTPS_PROXY"}
_PLAIN: dict[int, type[WflError]] = {404: NotThereError, 416: PastEndError}
"""Whatever error the server names."""
_KINDS: dict[int, type[WflError]] = {
    400: InvalidArgumentError,
    403: DeniedByDrmsError,
    405: UnsupportedOperationError,
    409: InvalidStateError,
    413: OutOfResourceError,
    422: InvalidArgumentError,
}
"""Where it names none."""


def _said(response: httpx.Response) -> tuple[type[WflError] | None, str]:
    """The kind of error that the server names, and its words."""
    with suppress(msgspec.DecodeError, UnicodeError, AttributeError, KeyError, TypeError):
        error = msgspec.json.decode(response.content)
        if isinstance(error, str):  # as the compatible protocol has it
            return None, error
        error = error["error"]
        fields = "; ".join(f"{name}: {text}" for name, text in (error.get("fields") or {}).items())
        words = f"{error['message']}{f' ({fields})' if fields else ''}"
        return _ERRORS.get(str(error.get("type"))), words
    text = " ".join(response.text.split()) if response.headers.get("Content-Type", "").startswith("text/plain") else ""
    return None, f"HTTP {response.status_code} {text or response.reason_phrase}"[:_MOST_WORDS].strip()


def error_of(said: Mapping[str, Any]) -> WflError:
    """One of many errors in an answer: {"type", "message"}."""
    words = str(said.get("message") or said.get("type") or "no reason was given")
    return _ERRORS.get(str(said.get("type")), ImplementationSpecificError)(words)


def _pause(text: str) -> float:
    """Seconds that a Retry-After means, as a number or as a date (RFC 9110, 10.2.3), within bounds; 0 where there is
    none.
    """
    seconds = 0.0
    if text.strip().isdecimal():
        seconds = float(text)
    else:
        with suppress(ValueError, OverflowError):
            when = parsedate_to_datetime(text)
            seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - time.time()
    return min(max(0.0, seconds), LONGEST)

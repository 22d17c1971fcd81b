"""Requests to a job server: repeated until answered, never to another host than the one that was meant.

Knows HTTP, and nothing of jobs.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from wfl.contexts.remote import connection
from wfl.contexts.remote.connection import NotThereError, UnansweredError
from wfl.errors import DeniedByDrmsError, InvalidArgumentError, TryLaterError, WflError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from wfl.contexts.remote.settings import Credentials, Place

REPEAT = (0.1, 5.0)
"""Seconds before a request is repeated that was not answered: the first pause, and the longest; each is doubled."""
REDIRECTS = 5
"""Redirects, within the server, that are followed for one request."""
_SAME_METHOD = (307, 308)
_SUCCESS = range(200, 300)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One request. `path` is what follows the server's address.

    once: it must not be made again where it may have been carried out. `timeout`: seconds that nothing may be heard.
    """

    method: str = "GET"
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    once: bool = False
    timeout: float | None = None


@dataclass(frozen=True)
class Reply:
    """An answer; `doubtful`: the same request was made before, and may have been carried out then."""

    response: httpx.Response
    doubtful: bool = False

    @property
    def data(self) -> bytes:
        """The body."""
        return self.response.content


class Client:
    """One server. Every method may be called from any thread.

    Raises UnansweredError where there was no answer within `place.patience`, TryLaterError where the server had no
    time all the while, and what the server says where it refuses.
    """

    def __init__(
        self,
        place: Place,
        credentials: Credentials,
        *,
        stopped: threading.Event | None = None,
        patience: float | None = None,
    ) -> None:
        """`stopped`: is set when nothing is worth waiting for any more."""
        self.url, self.timeout = place.base_url, place.timeout
        self._patience = place.patience if patience is None else patience
        self._credentials = credentials
        self._stopped = stopped or threading.Event()
        self._streams: set[httpx.Response] = set()
        self._http = connection.connected(place, credentials)
        self._fresh: httpx.Client | None = None
        self._place, self._lock = place, threading.Lock()

    def close(self) -> None:
        """Close all connections, also those that somebody is just reading from."""
        self.hang_up()
        self._http.close()
        if self._fresh is not None:
            self._fresh.close()

    def hang_up(self) -> None:
        """End all streams that there are."""
        for response in list(self._streams):
            connection.cut(response)

    # -- one answer --

    def ask(self, question: Question, *, patience: float | None = None) -> Reply:
        """Make a request until it is answered; `patience` 0: once."""
        most = self._patience if patience is None else patience
        until, doubtful = time.monotonic() + most, False
        for number, pause in enumerate(pauses(), start=1):
            try:
                return Reply(self._ask(question), doubtful)
            except UnansweredError as error:
                doubtful = doubtful or not error.certain
                left = until - time.monotonic()
                wait = max(pause, min(error.pause, left))  # who would have us wait for longer is asked at the end
                last = (question.once and doubtful) or number >= error.tries
                if last or wait > left or self._stopped.wait(wait):
                    raise self._given_up(error, doubtful=doubtful, waited=most > 0) from error
            except (DeniedByDrmsError, NotThereError) as error:
                if doubtful:  # it was kept from those who could say what an earlier try has done
                    raise UnansweredError(str(error)) from error
                raise
        raise AssertionError  # pauses never end

    @staticmethod
    def _given_up(error: UnansweredError, *, doubtful: bool, waited: bool) -> WflError:
        if error.busy and waited and not doubtful:
            return TryLaterError(str(error))
        return UnansweredError(str(error), certain=not doubtful, pause=error.pause, tries=error.tries, busy=error.busy)

    def rest(self, seconds: float) -> None:
        """Wait before something is tried again. Raises UnansweredError where nothing is worth that any more."""
        if self._stopped.wait(seconds):
            raise UnansweredError(f"{self.url}: the session is closed", certain=True, tries=1)

    def json(self, question: Question, kind: Any, *, patience: float | None = None) -> Any:
        """The answer as a value of a type."""
        return self.decoded(self.ask(question, patience=patience), kind)

    def decoded(self, reply: Reply, kind: Any) -> Any:
        """A body as a value of a type. What is no such value comes from somebody else, so it answers nothing."""
        try:
            return msgspec.json.decode(reply.data, type=kind)
        except (msgspec.DecodeError, UnicodeError) as error:
            what = f"what answers there is no wfl job server: {_shown(reply)} ({error})"
            raise UnansweredError(f"{self.url}: {what}") from error

    def _ask(self, question: Question) -> httpx.Response:
        with self._opened(question) as response:
            self._read(response)
            if response.status_code not in _SUCCESS:
                raise self._refusal(response)
            return response

    def _read(self, response: httpx.Response) -> None:
        try:
            response.read()
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._unanswered(error) from error

    def _refusal(self, response: httpx.Response) -> WflError:
        error = connection.refusal(self.url, response)
        error.args = (self._credentials.scrubbed(str(error)),)
        return error

    def _unanswered(self, error: Any) -> UnansweredError:
        return connection.unanswered(self.url, error)

    # -- streams --

    @contextmanager
    def stream(self, question: Question) -> Iterator[httpx.Response]:
        """An answer whose body is still to come; what breaks it off inside is an UnansweredError."""
        with self._opened(question) as response:
            if response.status_code not in _SUCCESS:
                self._read(response)
                raise self._refusal(response)
            self._streams.add(response)
            if self._stopped.is_set():  # who hangs up may just have done so
                connection.cut(response)
            try:
                yield response
            except (httpx.HTTPError, httpx.StreamError) as error:
                raise self._unanswered(error) from error
            finally:
                self._streams.discard(response)

    # -- connections --

    @contextmanager
    def _opened(self, question: Question) -> Iterator[httpx.Response]:
        response = self._send(question)
        try:
            yield response
        finally:
            response.close()

    def _send(self, question: Question) -> httpx.Response:
        """The answer of the server that was meant: no other host is ever told who asks."""
        url: Any = self.url + question.path
        for turn in range(REDIRECTS + 1):
            response = self._send_to(url, question, first=not turn)
            if "location" not in response.headers or not response.is_redirect:
                return response
            response.close()
            target = self._target(response)
            if not self._may_follow(question, response, target):
                away = self._credentials.scrubbed(str(target.copy_with(query=None)))
                words = "a redirect, which is not followed; is base_url the server's own address?"
                raise UnansweredError(f"{self.url} answers with {words} (to {away})", tries=1)
            url = target
        raise UnansweredError(f"{self.url}: more than {REDIRECTS} redirects", tries=1)

    def _send_to(self, url: Any, question: Question, *, first: bool) -> httpx.Response:
        http = self._http_of(question)
        more: dict[str, Any] = {}
        if question.timeout is not None:
            more["timeout"] = httpx.Timeout(self.timeout, connect=http.timeout.connect, read=question.timeout)
        try:
            request = http.build_request(
                question.method,
                url,
                params=dict(question.query) if first and question.query else None,
                content=question.content,
                headers=dict(question.headers),
                **more,
            )
            return http.send(request, stream=True)
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise self._unanswered(error) from error
        except RuntimeError as error:  # httpx's word for a client that was closed
            raise UnansweredError(f"{self.url}: {error}", certain=True, tries=1) from error

    def _http_of(self, question: Question) -> httpx.Client:
        """A connection that was used before may end just as the next request is written: nobody knows what became of
        that, so what must not be made twice has one of its own.
        """
        if not question.once:
            return self._http
        with self._lock:
            if self._fresh is None:
                self._fresh = connection.connected(self._place, self._credentials, fresh=True)
            return self._fresh

    def _target(self, response: httpx.Response) -> httpx.URL:
        try:
            return response.request.url.join(response.headers["location"])
        except (httpx.InvalidURL, ValueError) as error:
            raise UnansweredError(f"{self.url} answers with a redirect to nowhere", tries=1) from error

    @staticmethod
    def _may_follow(question: Question, response: httpx.Response, target: httpx.URL) -> bool:
        """Within the server, and with the same method."""
        asked = response.request.url
        same = (asked.scheme, asked.host, _port(asked)) == (target.scheme, target.host, _port(target))
        return same and (question.method in ("GET", "HEAD") or response.status_code in _SAME_METHOD)


def pauses(limits: tuple[float, float] | None = None) -> Iterator[float]:
    """Seconds to wait after each try that failed; the shortest and the longest are REPEAT's unless given.

    Chance takes a part off: many clients lose one server together.
    """
    shortest, longest = limits or REPEAT
    for number in itertools.count():
        full = min(longest, shortest * 2 ** min(number, 32))
        yield full * random.uniform(0.5, 1)  # noqa: S311 - spreads load, keeps no secret


def encoded(what: Any) -> bytes:
    """JSON for a request."""
    try:
        return msgspec.json.encode(what)
    except UnicodeEncodeError as error:  # half of a surrogate pair, from a name that is not UTF-8
        raise InvalidArgumentError(f"the request has text that is no Unicode: {error}") from error


def _port(url: httpx.URL) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)


def _shown(reply: Reply) -> str:
    return repr(reply.data[:80].decode(errors="replace"))

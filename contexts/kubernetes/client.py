"""The cluster's API: one connection pool, plain dicts, few words, errors in wfl's terms. It knows nothing of jobs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import msgspec
import urllib3
from kubernetes.stream import ws_client
from websocket import WebSocket, WebSocketBadStatusException

from wfl.contexts.kubernetes import configuration
from wfl.contexts.kubernetes.answers import (
    CONFLICT,
    SERVER_ERROR,
    THROTTLED,
    UNAUTHORIZED,
    UNAVAILABLE,
    ExistsError,
    ExpiredError,
    NotThereError,
    Question,
    UnsentError,
    in_our_words,
    refusal,
    status_of,
)
from wfl.contexts.kubernetes.command import PROTOCOLS, Command
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InternalError,
    InvalidArgumentError,
    UnsupportedOperationError,
    WflError,
)

if TYPE_CHECKING:
    from wfl.contexts.kubernetes.settings import Place

__all__ = ["REQUESTS", "Client", "ExistsError", "ExpiredError", "NotThereError", "UnsentError"]

Object = dict[str, Any]
Objects = list[Object]

REQUESTS = 16
"""Requests at once; streams and commands in containers do not count."""
CONNECT = 3.0
"""Seconds in which there must be a connection."""
SILENCE = 75.0
"""Seconds without a word after which a watch is dead: the server says something every 60."""
PAGE = 500
"""Objects in one answer to a list."""
REPEATS = (0.1, 0.5)
"""Seconds before a question that was not answered is asked again."""
CONFLICTS = 5
"""Attempts where others change the same thing, such as a quota, at the same time."""

_PREFIXES = {
    "configmaps": "api/v1",
    "events": "api/v1",
    "jobs": "apis/batch/v1",
    "namespaces": "api/v1",
    "nodes": "api/v1",
    "persistentvolumeclaims": "api/v1",
    "pods": "api/v1",
    "priorityclasses": "apis/scheduling.k8s.io/v1",
    "secrets": "api/v1",
}
_OF_THE_CLUSTER = frozenset({"namespaces", "nodes", "priorityclasses"})
_websockets: Any = ws_client  # these have no types
_WebSocket: Any = WebSocket


class Client:
    """One cluster and one namespace. Every method may be called from any thread.

    Raises DrmCommunicationError where no answer was had (so that nobody knows whether what was asked for is done);
    UnsentError is one of these, and tells that it is not. Answers are NotThereError, ExistsError, InvalidStateError,
    InvalidArgumentError, DeniedByDrmsError, and TryLaterError where the server has too much to do.

    Questions are repeated, within `place.timeout`, where the server asks for it, and where they were not answered and
    change nothing. Credentials that are refused are loaded anew, once.
    """

    def __init__(self, place: Place) -> None:
        """Load the configuration; nobody is contacted yet."""
        self._link = configuration.load(place)
        self.place = self._link.place
        """With what was found filled in: from there every other process finds the same cluster."""
        self.namespace: str = self.place.namespace or "default"
        self.requests = 0
        """Requests that were sent."""
        self._places = threading.Semaphore(REQUESTS)
        self._lock = threading.Lock()
        self._credentials = threading.Lock()
        self._streams: set[socket.socket] = set()
        self._closed = threading.Event()

    @property
    def url(self) -> str:
        """Where the server is."""
        return str(self._link.configuration.host)

    def close(self) -> None:
        """Close all connections, also those that somebody is just reading from."""
        self._closed.set()
        self.hang_up()
        self._link.pool.clear()

    def hang_up(self) -> None:
        """End all streams that there are."""
        with self._lock:
            for stream in self._streams:
                with suppress(OSError):  # it has ended
                    socket.socket.shutdown(stream, socket.SHUT_RDWR)  # below TLS, whose state belongs to the reader

    def version(self) -> str:
        """What the server is: the first thing to ask."""
        try:
            found = self._ask(Question("get", "version", None, "/version"))
        except DrmCommunicationError as error:
            cure = "`kubectl version` must reach it: is the kubeconfig the right one, does the cluster run?"
            raise type(error)(f"{error}. {cure}") from error
        if "gitVersion" not in found:
            raise DrmCommunicationError(f"{self.url}: what answers there is no Kubernetes API")
        return str(found["gitVersion"])

    # -- objects; a kind is "pods", or with its group and version "metrics.k8s.io/v1beta1/nodes" --

    def get(self, kind: str, name: str) -> Object:
        """One object."""
        return self._ask(self._question("get", kind, name))

    def list(self, kind: str, selector: str = "", *, fields: str = "", everywhere: bool = False) -> tuple[Objects, str]:
        """The objects with these labels and fields, here or in all namespaces; and the version to watch them from."""
        found: Objects = []
        query = {"labelSelector": selector, "fieldSelector": fields, "limit": str(PAGE)}
        while True:
            try:
                page = self._ask(self._question("list", kind, query=query, everywhere=everywhere))
            except ExpiredError:  # the version that the pages are of is forgotten: everything at once
                if "limit" not in query:
                    raise
                found, query = [], {"labelSelector": selector, "fieldSelector": fields}
                continue
            told = page.get("metadata") or {}
            found = [*found, *(page.get("items") or ())]
            if not told.get("continue"):
                return found, str(told.get("resourceVersion", ""))
            query["continue"] = told["continue"]

    def create(self, kind: str, body: Mapping[str, Any]) -> Object:
        """Make an object; it as the server has it. Members that it does not know are refused by name."""
        return self._ask(self._question("create", kind, query={"fieldValidation": "Strict"}, body=body))

    def patch(self, kind: str, name: str, body: Mapping[str, Any]) -> Object:
        """Change an object by a JSON merge patch."""
        return self._ask(self._question("patch", kind, name, body=body))

    def delete(self, kind: str, name: str, *, grace: int | None = None) -> bool:
        """Remove an object, a Job with its pods; False if it was not there."""
        try:
            self._ask(self._question("delete", kind, name, query=_removal(kind, grace)))
        except NotThereError:
            return False
        return True

    def delete_all(self, kind: str, selector: str, *, grace: int | None = None, fields: str = "") -> None:
        """Remove the objects with these labels and fields."""
        if not selector and not fields:
            raise InternalError(f"all {kind} of the namespace would be removed")
        query = {"labelSelector": selector, "fieldSelector": fields, **_removal(kind, grace)}
        self._ask(self._question("deletecollection", kind, query=query))

    def watch(self, kind: str, selector: str, version: str) -> Iterator[tuple[str, Object]]:
        """What happens to objects after a version: ADDED, MODIFIED, DELETED, BOOKMARK (its version alone is news).

        It ends when the server ends it. ExpiredError: list again.
        """
        query = {"labelSelector": selector, "resourceVersion": version, "watch": "1", "allowWatchBookmarks": "true"}
        question = self._question("watch", kind, query=query)
        for line in _lines(self._stream(question, SILENCE)):
            event = self._decoded(line)
            happened, told = str(event.get("type")), event.get("object")
            if not isinstance(told, dict):
                raise DrmCommunicationError(f"{self.url}: an event without an object: {line[:200]!r}")
            if happened == "ERROR":
                raise refusal(self.url, question, int(told.get("code") or SERVER_ERROR), told)
            yield happened, told

    # -- pods --

    def log(
        self, pod: str, *, follow: bool = False, since: str | None = None, container: str = "main"
    ) -> Generator[bytes]:
        """The output of a container, each line behind its time and a blank; with `follow`, until the container ends.

        `since`: a time as RFC 3339, of which the server takes whole seconds. InvalidStateError: it has not begun.
        """
        query = {"container": container, "timestamps": "true", "sinceTime": since or ""}
        question = self._question("get", "pods", pod, "log", query={**query, "follow": "true" if follow else ""})
        return self._stream(question, None if follow else self.place.timeout)

    def exec(
        self,
        pod: str,
        container: str,
        command: Sequence[str],
        *,
        input: Iterable[bytes] | None = None,  # noqa: A002 - as subprocess has it
        output: Callable[[bytes], object] | None = None,
        timeout: float | None = None,
    ) -> tuple[int, str]:
        """Run a command in a container that runs: its exit status, and the end of its standard error.

        A command that cannot be started has status 127, or 126 if it may not be executed. `timeout` is for all of it.
        Input must be read to its end, also by a command that fails (`…; s=$?; cat > /dev/null; exit $s`), and not by
        the last process of the command: servers would never tell its end, or cut the input.
        InvalidStateError: the container does not run.
        """
        query = [("container", container), ("stdout", "1"), ("stderr", "1"), *(("command", word) for word in command)]
        if input is not None:
            query.append(("stdin", "1"))
        question = self._question("create", "pods", pod, "exec", query=query)
        connection = self._upgraded(question)
        try:
            if input is not None and connection.subprotocol != PROTOCOLS[0]:
                raise UnsupportedOperationError(f"{self.url}: copying into a pod needs Kubernetes 1.30 or later")
            with self._cuttable(connection.sock):
                return Command(connection, self.url, timeout).run(input, output)
        finally:
            connection.shutdown()

    # -- requests --

    def _question(
        self,
        verb: str,
        kind: str,
        name: str = "",
        part: str = "",
        *,
        query: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
        everywhere: bool = False,
    ) -> Question:
        group, _, plural = kind.rpartition("/")
        whole = everywhere or plural in _OF_THE_CLUSTER
        space = "" if whole else f"namespaces/{quote(self.namespace, safe='')}"
        prefix = f"apis/{group}" if group else _PREFIXES[plural]
        path = "/" + "/".join(filter(None, (prefix, space, plural, quote(name, safe=""), part)))
        pairs = [(key, value) for key, value in dict(query).items() if value] if isinstance(query, Mapping) else query
        try:
            content = None if body is None else msgspec.json.encode(body)
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(f"{error.object!r} has characters that no {plural} can hold") from error
        resource = f"{plural}/{part}" if part else plural
        path += f"?{urlencode(pairs)}" if pairs else ""
        return Question(verb, resource, None if whole else self.namespace, path, content)

    def _ask(self, question: Question) -> Object:
        """One question and its answer, repeated where it was not carried out, or changes nothing."""
        until = time.monotonic() + self.place.timeout
        attempt = 0
        while True:
            try:
                with self._places:
                    response = self._sent(question, self.place.timeout)
            except DrmCommunicationError:
                pause = REPEATS[attempt] if question.method == "GET" and attempt < len(REPEATS) else None
                if not self._paused(pause, until):
                    raise
            else:
                if not self._paused(_wanted_pause(response, attempt), until):
                    return self._answer(question, response)
            attempt += 1

    def _paused(self, seconds: float | None, until: float) -> bool:
        """Whether there was time, and reason, to wait for another attempt."""
        if seconds is None or time.monotonic() + seconds > until:
            return False
        return not self._closed.wait(seconds)

    def _sent(self, question: Question, read: float | None, *, stream: bool = False) -> urllib3.BaseHTTPResponse:
        """An answer, whatever it is; with credentials that were loaded anew if they were refused."""
        link = self._link
        response = self._send(link, question, read, stream=stream)
        if response.status == UNAUTHORIZED:
            response.close()
            response = self._send(self._renewed(link), question, read, stream=stream)
        return response

    def _send(
        self, link: configuration.Link, question: Question, read: float | None, *, stream: bool
    ) -> urllib3.BaseHTTPResponse:
        with in_our_words(self.url):
            headers = self._headers(link)
            if question.body is not None:
                patch = question.verb == "patch"
                headers["Content-Type"] = "application/merge-patch+json" if patch else "application/json"
            return link.pool.urlopen(
                question.method,
                link.configuration.host + question.path,
                body=question.body,
                headers=headers,
                preload_content=not stream,
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=CONNECT, read=read),
            )

    def _headers(self, link: configuration.Link) -> urllib3.HTTPHeaderDict:
        """Who asks: with credentials that are read again, or made by a plugin, when they are too old."""
        if self._closed.is_set():
            raise DrmCommunicationError(f"{self.url}: the connections were closed")
        headers = urllib3.HTTPHeaderDict({"User-Agent": "wfl-sdk", "Accept": "application/json, */*"})
        with self._credentials:
            self.requests += 1
            for setting in link.configuration.auth_settings().values():
                headers[setting["key"]] = str(setting["value"]).strip()  # files end with a line break
        if self.place.impersonate is not None:
            headers["Impersonate-User"] = self.place.impersonate
        for group in self.place.impersonate_groups:
            headers.add("Impersonate-Group", group)
        return headers

    def _renewed(self, link: configuration.Link) -> configuration.Link:
        """The configuration, loaded after this one was refused."""
        with self._credentials:
            if self._link is link:
                try:
                    self._link = configuration.load(self.place)
                except WflError as error:
                    words = f"{self.url}: the credentials were refused, and cannot be loaded anew: {error}"
                    raise DeniedByDrmsError(words) from error
                link.pool.clear()
            return self._link

    def _stream(self, question: Question, read: float | None) -> Generator[bytes]:
        """What comes, from a connection that `hang_up` cuts."""
        response = self._sent(question, read, stream=True)
        try:
            with in_our_words(self.url):
                if response.status != 200:  # noqa: PLR2004 - OK
                    raise refusal(self.url, question, response.status, status_of(response.data))
                with self._cuttable(_socket_of(response)):
                    yield from response.stream(1 << 18, decode_content=False)
        finally:
            response.close()

    @contextmanager
    def _cuttable(self, stream: socket.socket) -> Iterator[None]:
        with self._lock:
            self._streams.add(stream)
        try:
            if self._closed.is_set():
                raise DrmCommunicationError(f"{self.url}: the connections were closed")
            yield
        finally:
            with self._lock:  # before it is closed, and its number another's
                self._streams.discard(stream)

    def _upgraded(self, question: Question) -> Any:
        link = self._link
        try:
            return self._upgrade(link, question)
        except WebSocketBadStatusException as error:
            if error.status_code != UNAUTHORIZED:
                raise refusal(self.url, question, error.status_code, status_of(error.resp_body)) from error
        try:
            return self._upgrade(self._renewed(link), question)
        except WebSocketBadStatusException as error:
            raise refusal(self.url, question, error.status_code, status_of(error.resp_body)) from error

    def _upgrade(self, link: configuration.Link, question: Question) -> Any:
        """A connection for one command. The official client's own knows neither impersonation nor waiting in vain."""
        settings, url = link.configuration, link.configuration.host + question.path
        with in_our_words(self.url):
            header = [f"{name}: {value}" for name, value in self._headers(link).items()]
            options = {"header": header, "subprotocols": list(PROTOCOLS), "redirect_limit": 0}
            if settings.proxy or settings.proxy_headers:
                options = _websockets.websocket_proxycare(options, settings, url, {})
            tls = {"context": link.tls, "server_hostname": settings.tls_server_name}
            connection: Any = _WebSocket(sslopt=tls, sockopt=configuration.KEEPALIVE, skip_utf8_validation=True)
            connection.connect("ws" + url.removeprefix("http"), timeout=self.place.timeout, **options)
        return connection

    # -- answers --

    def _answer(self, question: Question, response: urllib3.BaseHTTPResponse) -> Object:
        if not 200 <= response.status < 300:  # noqa: PLR2004 - all that is well
            raise refusal(self.url, question, response.status, status_of(response.data))
        return self._decoded(response.data)

    def _decoded(self, data: bytes) -> Object:
        try:
            found = msgspec.json.decode(data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise DrmCommunicationError(f"{self.url}: what answers there is no Kubernetes API: {data[:80]!r}")
        return found


def _removal(kind: str, grace: int | None) -> dict[str, str]:
    """By default the server would leave a Job's pods running."""
    query = {"propagationPolicy": "Background"} if kind == "jobs" else {}
    return query if grace is None else {**query, "gracePeriodSeconds": str(grace)}


def _wanted_pause(response: urllib3.BaseHTTPResponse, attempt: int) -> float | None:
    """Seconds after which the server would have us ask again: it has not done what it was asked for."""
    wanted = response.headers.get("Retry-After", "")
    if response.status in (THROTTLED, UNAVAILABLE) and wanted.isdigit():
        return max(float(wanted), 0.05)
    if response.status == CONFLICT and attempt < CONFLICTS and status_of(response.data).get("reason") == "Conflict":
        return float(0.05 * 2**attempt)
    return None


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from filter(None, lines)


def _socket_of(response: urllib3.BaseHTTPResponse) -> socket.socket:
    found: socket.socket = response._fp.fp.raw._sock  # type: ignore[attr-defined] # noqa: SLF001 - no other way to it
    return found

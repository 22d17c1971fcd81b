"""What the API server answers, and what keeps its answers away, in wfl's terms."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import msgspec
from kubernetes.config import ConfigException
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from websocket import WebSocketBadStatusException, WebSocketException, WebSocketTimeoutException

from wfl.contexts import network
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidStateError,
    TryLaterError,
    WflError,
)

BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT = 400, 401, 403, 404, 409
GONE, TOO_LARGE, UNPROCESSABLE, THROTTLED = 410, 413, 422, 429
SERVER_ERROR, UNAVAILABLE, TIMED_OUT = 500, 503, 504
_UNANSWERED = (HTTPError, OSError, ConfigException, WebSocketException, ValueError)
_ROLE = "docs/kubernetes-role.yaml"
_CLUSTER_ROLE = "docs/kubernetes-cluster-role.yaml"
_METHODS = {"create": "POST", "patch": "PATCH", "delete": "DELETE", "deletecollection": "DELETE"}  # all others: GET


class NotThereError(InvalidStateError):
    """The server was reached, and it does not know this object."""


class ExistsError(InvalidStateError):
    """There is an object of this name already."""


class ExpiredError(DrmCommunicationError):
    """The server no longer knows, or does not know yet, the version to go on from: list again."""


class UnauthorizedError(DeniedByDrmsError):
    """The credentials were refused: they have ended, and may be renewed."""


class UnsentError(DrmCommunicationError):
    """There was no connection, so nothing was asked for."""


PASSING = (DrmCommunicationError, TryLaterError, UnauthorizedError)
"""What time may make good."""
_REFUSALS: dict[int, type[WflError]] = {
    BAD_REQUEST: InvalidArgumentError,
    NOT_FOUND: NotThereError,
    CONFLICT: InvalidStateError,
    GONE: ExpiredError,
    TOO_LARGE: InvalidArgumentError,
    UNPROCESSABLE: InvalidArgumentError,
    THROTTLED: TryLaterError,
}


class Question(NamedTuple):
    """One request, with the names that a Role has for it; `namespace` is None for what concerns the whole cluster."""

    verb: str
    resource: str
    namespace: str | None
    path: str
    body: bytes | None = None

    @property
    def method(self) -> str:
        """Of HTTP."""
        return _METHODS.get(self.verb, "GET")


def status_of(data: bytes | None) -> Mapping[str, Any]:
    """The server's own Status, or the beginning of whatever text there is."""
    with suppress(ValueError):
        found = msgspec.json.decode(data or b"")
        if isinstance(found, dict):
            return found
    return {"message": (data or b"")[:500].decode(errors="replace")}


def words_of(said: Mapping[str, Any]) -> str:
    """A Status in one line."""
    return " ".join(str(said.get("message") or "").split())


def refusal(url: str, question: Question, status: int, said: Mapping[str, Any]) -> WflError:
    """An answer other than well, as an error."""
    words = words_of(said) or f"HTTP {status}"
    if status == UNAUTHORIZED:
        cure = "log in again, or give another kubeconfig or context"
        return UnauthorizedError(f"{url}: the credentials were refused ({words}): {cure}")
    if status == FORBIDDEN:
        return _denied(question, words)
    if kind := _kind(question, status, said, words):
        return kind(words)
    if BAD_REQUEST <= status < SERVER_ERROR:
        return DeniedByDrmsError(f"{question.verb} {question.resource}: {words} ({status})")
    if status >= SERVER_ERROR:
        return DrmCommunicationError(f"{url}: {words} ({status})")
    return DrmCommunicationError(f"{url}: what answers there is no Kubernetes API (HTTP {status})")


def _kind(question: Question, status: int, said: Mapping[str, Any], words: str) -> type[WflError] | None:
    if status == CONFLICT and said.get("reason") == "AlreadyExists":
        return ExistsError
    if status == TIMED_OUT and question.verb == "watch":  # "Too large resource version"
        return ExpiredError
    if status == BAD_REQUEST and "/" in question.resource:  # a log, a command: not wrong, but too early or too late
        return InvalidStateError
    if status == SERVER_ERROR and "container not found" in words:
        return InvalidStateError
    return _REFUSALS.get(status)


def _denied(question: Question, words: str) -> DeniedByDrmsError:
    """By missing rights, or by what else has a say: quotas, policies."""
    if "forbidden:" in words and " cannot " not in words:
        return DeniedByDrmsError(words)
    where = "the cluster" if question.namespace is None else f"namespace {question.namespace!r}"
    role = _CLUSTER_ROLE if question.namespace is None else _ROLE
    said = re.search(r" cannot (\w+) resource ", words)  # some servers want another verb for commands in containers
    what = f"the right to {said[1] if said else question.verb} {question.resource} in {where} is missing"
    return DeniedByDrmsError(f"{what} ({words}); see {role}")


@contextmanager
def in_our_words(url: str) -> Iterator[None]:
    """What keeps an answer from us, in one line with the address."""
    try:
        yield
    except (WflError, WebSocketBadStatusException):  # the second is an answer
        raise
    except _UNANSWERED as error:
        unsent = isinstance(error, NewConnectionError | ConnectTimeoutError | ConnectionRefusedError)
        raise (UnsentError if unsent else DrmCommunicationError)(f"{url}: {words(error)}") from error


def words(error: BaseException) -> str:
    """The innermost reason in one line."""
    wrapped = isinstance(error, HTTPError)
    while isinstance(error, HTTPError) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__ or error
    if isinstance(error, WebSocketTimeoutException):
        return "nothing was heard in time"
    if wrapped and isinstance(error, ValueError) and not isinstance(error, ssl.SSLError):
        return "the connection was cut"
    return network.words(error)

"""What is answered when something cannot be done: a status of HTTP, and wfl's own error in JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from wfl import errors
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    ImplementationSpecificError,
    InternalError,
    InvalidArgumentError,
    InvalidSessionError,
    InvalidStateError,
    OutOfResourceError,
    SessionManagementError,
    TryLaterError,
    WflError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

AGAIN = "5"
"""Seconds after which a client may try again what could not be done now."""
CHALLENGES = ('Bearer realm="wfl"', 'Basic realm="wfl", charset="UTF-8"')


class ForbiddenError(DeniedByDrmsError):
    """The server's policy refuses it; the execution system was not asked."""


class UnknownError(InvalidArgumentError):
    """There is no such thing, or it is somebody else's."""


class ConflictError(InvalidStateError):
    """The same key was used for something else."""


class QuotaError(OutOfResourceError):
    """What one identity may have at a time is used up: others, and another time, are not concerned."""


class HttpError(Exception):
    """Ends a request with this status. `fields` names what is wrong where that can be told apart."""

    def __init__(
        self,
        status: int,
        error: WflError,
        *,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(str(error))
        self.status, self.error, self.headers = status, error, dict(headers or {})
        self.fields = dict(fields) if fields else None


class Fault(msgspec.Struct, omit_defaults=True):
    """What went wrong: the name of wfl's error class, words for people, and where it can be told, which field."""

    type: str
    message: str
    fields: dict[str, str] | None = None


class Problem(msgspec.Struct):
    """The body of every answer that is no success."""

    error: Fault


_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (ForbiddenError, 403),
    (UnknownError, 404),
    (QuotaError, 422),
    (InvalidStateError, 409),
    (DrmCommunicationError, 503),
    (TryLaterError, 503),
    (InvalidSessionError, 503),
    (SessionManagementError, 503),
    (OutOfResourceError, 503),
    (errors.TimeoutError, 503),
    (InternalError, 500),
    (ImplementationSpecificError, 500),
    (WflError, 422),
)


def status_of(error: WflError) -> int:
    """The status of HTTP that says the same."""
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def refusal(error: WflError) -> HttpError:
    """The end of a request that this error caused."""
    status = status_of(error)
    return HttpError(status, error, headers={"Retry-After": AGAIN} if status == 503 else None)  # noqa: PLR2004


def malformed(message: str, **fields: str) -> HttpError:
    """The request itself is wrong."""
    return HttpError(400, InvalidArgumentError(message), fields=fields)


def public_name(error: BaseException) -> str:
    """The class of wfl.errors that an error is of; what is none is a mistake in here."""
    for kind in type(error).__mro__:
        if issubclass(kind, WflError) and getattr(errors, kind.__name__, None) is kind:
            return str(kind.__name__)
    return "InvalidArgumentError" if isinstance(error, TypeError | ValueError) else "InternalError"


def words(text: str) -> str:
    """A text that can be sent: what is no character is shown as its number."""
    return text.encode("utf-8", "backslashreplace").decode()


def fault(error: BaseException, fields: Mapping[str, str] | None = None) -> Fault:
    """An error as it is sent."""
    return Fault(public_name(error), words(str(error)), dict(fields) if fields else None)


def problem(error: HttpError) -> bytes:
    """The body that goes with it."""
    return msgspec.json.encode(Problem(fault(error.error, error.fields)))

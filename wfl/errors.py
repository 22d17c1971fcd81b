"""What can go wrong, as one tree. Messages say what happened, to which job, where, and what to do next.

::

    WflError
    ├── DeniedByDrmsError           the system understood and said no
    ├── DrmCommunicationError       the system could not be reached, or broke off
    ├── TryLaterError               the system is busy; the same call may work later
    ├── SessionManagementError      a session could not be opened, found or closed
    ├── TimeoutError                a wait ran out of time; nothing was cancelled (also the builtin)
    ├── InternalError               a mistake inside wfl: please report it
    ├── InvalidArgumentError        a value that can never work (also ValueError)
    ├── InvalidSessionError         the session is closed
    ├── InvalidStateError           not possible in the job's present state
    ├── OutOfResourceError          disk, memory, processes or quota are used up
    ├── UnsupportedAttributeError   a template field that this system cannot honour
    ├── UnsupportedOperationError   a call that this system cannot carry out
    ├── ImplementationSpecificError the system's own error, which fits nowhere above
    └── JobFailedError              a job ended otherwise than well; raised on request only

All but the root and JobFailedError are DRMAA2's (GFD.231), with its meaning. A value of the wrong type is
Python's own TypeError.
"""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wfl.task import Task


class WflError(Exception):
    """Root of everything that wfl raises on purpose."""


class DeniedByDrmsError(WflError):
    """The system understood the request and refused it: rights, policy, quota."""


class DrmCommunicationError(WflError):
    """The system could not be reached, or the connection broke off."""


class TryLaterError(WflError):
    """The system is busy or restarting; the same call may succeed later."""


class SessionManagementError(WflError):
    """A session could not be created, found, opened or closed."""


class TimeoutError(WflError, builtins.TimeoutError):
    """A wait ran out of time. What was waited for goes on."""


class InternalError(WflError):
    """A mistake inside wfl or the backend's client."""


class InvalidArgumentError(WflError, ValueError):
    """A value of the right type that can never work."""


class InvalidSessionError(WflError):
    """The session is closed or was never opened."""


class InvalidStateError(WflError):
    """The call is not possible in the present state of the job or object."""


class OutOfResourceError(WflError):
    """Disk, memory, processes, descriptors or a quota are used up."""


class UnsupportedAttributeError(WflError):
    """A template field that this backend cannot honour; nothing is silently ignored."""


class UnsupportedOperationError(WflError):
    """A call that this backend cannot carry out."""


class ImplementationSpecificError(WflError):
    """The system's own error, which no other class describes."""


class JobFailedError(WflError):
    """A job ended otherwise than well.

    `tasks` are the failed tasks, as live handles. They stay behind when the error is pickled; the text goes
    along.
    """

    def __init__(self, message: str, *, tasks: Iterable[Task] = ()) -> None:
        super().__init__(message)
        self.tasks: tuple[Task, ...] = tuple(tasks)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {**self.__dict__, "tasks": ()}


def nearest(name: str, choices: Iterable[str]) -> str:
    """End of a message about a wrong name: ``" did you mean 'args'?"``, or else the names that are valid."""
    from difflib import get_close_matches

    valid = sorted(map(str, choices))  # an enum shows as its text
    found = get_close_matches(name, valid, n=1)
    return f" did you mean {found[0]!r}?" if found else f" valid are {', '.join(valid) or 'none at all'}"

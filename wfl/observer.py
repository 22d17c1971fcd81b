"""What shall happen when a job has ended: three functions, kept together to be used for many jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from wfl.log import log

if TYPE_CHECKING:
    from wfl.task import Task


class Observer(Struct, frozen=True):
    """on_error(exception) for an error of the chain, on_failed(task) and on_success(task) for its ends."""

    on_error: Callable[[Exception], object] | None = None
    on_failed: Callable[[Task], object] | None = None
    on_success: Callable[[Task], object] | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            f = getattr(self, name)
            if f is not None and not callable(f):
                raise TypeError(f"{name} is {f!r} ({type(f).__name__}), expected a function")

    @classmethod
    def default(cls) -> Self:
        """Return the observer that logs: errors and failures at level ERROR, successes at level INFO."""
        return cls(_log_error, _log_failed, _log_success)


def _log_error(error: Exception) -> None:
    log.error("%s: %s", type(error).__name__, error)


def _log_failed(task: Task) -> None:
    log.error("job %s failed", task.id)


def _log_success(task: Task) -> None:
    log.info("job %s finished successfully", task.id)

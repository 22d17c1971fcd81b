"""Observers: three functions kept together, and the one that logs."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from wfl.errors import DeniedByDrmsError, InvalidStateError
from wfl.observer import Observer
from wfl.testing import FakeContext
from wfl.workflow import Workflow

TASK = cast("Any", SimpleNamespace(id="17"))


def test_functions_are_kept_and_default_to_none() -> None:
    """What is not given is None, so that the caller of an observer knows that nobody asked."""
    observer = Observer(on_failed=print)
    assert (observer.on_error, observer.on_failed, observer.on_success) == (None, print, None)


def test_observer_is_a_frozen_value() -> None:
    """Observers of the same functions are equal and hash alike, and cannot be changed."""
    assert Observer(print) == Observer(on_error=print)
    assert len({Observer.default(), Observer.default()}) == 1
    with pytest.raises(AttributeError):
        Observer().on_error = print  # type: ignore[misc] # the point of the test


def test_what_cannot_be_called_is_refused() -> None:
    """A value that is no function is a TypeError that names the argument."""
    with pytest.raises(TypeError, match="on_success is 'print'"):
        Observer(on_success=cast("Any", "print"))


@pytest.mark.parametrize(
    ("name", "argument", "line"),
    [
        ("on_error", DeniedByDrmsError("no rights"), (logging.ERROR, "DeniedByDrmsError: no rights")),
        ("on_failed", TASK, (logging.ERROR, "job 17 failed")),
        ("on_success", TASK, (logging.INFO, "job 17 finished successfully")),
    ],
)
def test_default_observer_logs(
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    name: str,
    argument: Any,
    line: tuple[int, str],
) -> None:
    """The default observer writes one line to logger wfl, and nothing to the terminal."""
    with caplog.at_level(logging.INFO, logger="wfl"):
        getattr(Observer.default(), name)(argument)
    assert caplog.record_tuples == [("wfl", *line)]
    assert capfd.readouterr() == ("", "")


def test_a_job_without_tasks_is_an_error_that_is_observed() -> None:
    """Errors are looked for after the wait, so that the wait's own are among them."""
    seen: list[Exception] = []
    with Workflow(FakeContext()) as flow:
        flow.new_job().observe(Observer(on_error=seen.append))
    assert [type(error) for error in seen] == [InvalidStateError]

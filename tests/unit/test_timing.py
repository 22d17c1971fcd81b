"""Durations as callers write them."""

from datetime import timedelta
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl.errors import InvalidArgumentError
from wfl.timing import seconds, timeout_seconds


@given(st.floats(min_value=0, max_value=1e9) | st.integers(min_value=0, max_value=10**9))
def test_numbers_are_seconds(number: float) -> None:
    """An int or float is taken as it is, as float."""
    result = seconds(number, "pause")
    assert type(result) is float
    assert result == timeout_seconds(number) == number


def test_timedelta_becomes_seconds() -> None:
    """A timedelta is its total number of seconds."""
    assert seconds(timedelta(minutes=1, milliseconds=500), "pause") == 60.5
    assert timeout_seconds(timedelta(0)) == 0.0


@pytest.mark.parametrize("value", [True, "3", b"3", [3], 3j])
def test_other_types_are_type_errors_that_name_the_argument(value: Any) -> None:
    """Anything but a number or timedelta is refused, a bool too: it would be one second."""
    for function in (seconds, timeout_seconds):
        with pytest.raises(TypeError, match=r"pause is .* expected seconds or a timedelta"):
            function(value, "pause")


@pytest.mark.parametrize("value", [-1, -0.001, nan, timedelta(seconds=-1), -inf, -(10**400)])
def test_negative_durations_and_nan_are_refused(value: Any) -> None:
    """What is no length of time is an InvalidArgumentError that names the argument."""
    for function in (seconds, timeout_seconds):
        with pytest.raises(InvalidArgumentError, match=r"pause is .* 0 seconds or more"):
            function(value, "pause")


@pytest.mark.parametrize("value", [inf, 10**400])
def test_a_duration_is_finite(value: float) -> None:
    """Nothing can be done every infinity."""
    with pytest.raises(InvalidArgumentError, match=r"pause is .* finite"):
        seconds(value, "pause")


def test_none_is_no_duration() -> None:
    """Only a time-out may be None."""
    with pytest.raises(TypeError, match="pause is None"):
        seconds(None, "pause")  # type: ignore[arg-type] # the point of the test


@pytest.mark.parametrize("value", [None, inf, 10**400, timedelta.max])
def test_a_timeout_that_never_comes_is_none(value: Any) -> None:
    """None, infinity, and more than a lock can wait for, mean to wait for ever."""
    assert timeout_seconds(value) is None

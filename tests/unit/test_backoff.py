"""Backoff: growing, bounded, spread waiting times."""

import pickle
from datetime import timedelta
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl.errors import InvalidArgumentError
from wfl.retry import Backoff


def test_delays_grow_by_the_factor_up_to_the_maximum() -> None:
    """Without jitter the times are exact: initial, times factor, never above maximum."""
    backoff = Backoff(initial=1, factor=3, maximum=20, jitter=0)
    assert [backoff.delay(attempt) for attempt in range(1, 6)] == [1, 3, 9, 20, 20]


@given(attempt=st.integers(min_value=1, max_value=10**400), jitter=st.floats(min_value=0, max_value=1))
def test_jitter_only_shortens_by_its_fraction(attempt: int, jitter: float) -> None:
    """A delay lies between full·(1 - jitter) and full, however many attempts there were."""
    full = Backoff(jitter=0).delay(attempt)
    assert full * (1 - jitter) <= Backoff(jitter=jitter).delay(attempt) <= full <= 60


def test_jitter_spreads() -> None:
    """With jitter, many delays of the same attempt are not the same time."""
    backoff = Backoff()
    assert len({backoff.delay(3) for _ in range(20)}) > 1


def test_no_initial_delay_stays_none() -> None:
    """Zero grows to zero, also after more attempts than a float can count."""
    backoff = Backoff(initial=0)
    assert backoff.delay(1) == backoff.delay(10**6) == 0


def test_durations_may_be_timedelta() -> None:
    """A timedelta is the same value as its seconds."""
    assert Backoff(timedelta(seconds=2), maximum=timedelta(minutes=3)) == Backoff(2, maximum=180)


def test_backoff_is_a_frozen_value() -> None:
    """Equal settings are equal, hash alike and survive pickling; nothing can be changed."""
    backoff = Backoff(2, 3, 40, 0.1)
    assert len({backoff, Backoff(2.0, 3.0, 40.0, 0.1), pickle.loads(pickle.dumps(backoff))}) == 1  # noqa: S301
    with pytest.raises(AttributeError):
        backoff.factor = 1  # type: ignore[misc] # the point of the test


@pytest.mark.parametrize(
    "setting",
    [
        {"initial": -1},
        {"maximum": inf},
        {"initial": 5, "maximum": 4},
        {"factor": 0.5},
        {"factor": inf},
        {"factor": 10**400},
        {"factor": nan},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"jitter": nan},
    ],
)
def test_impossible_settings_are_refused_by_name(setting: dict[str, Any]) -> None:
    """A setting out of range is an InvalidArgumentError that names it."""
    with pytest.raises(InvalidArgumentError, match=f"{list(setting)[-1]} is"):
        Backoff(**setting)


@pytest.mark.parametrize("name", ["initial", "factor", "maximum", "jitter"])
@pytest.mark.parametrize("value", [True, "2"])
def test_wrong_types_are_refused_by_name(name: str, value: Any) -> None:
    """Text and bool are no numbers."""
    with pytest.raises(TypeError, match=f"{name} is {value!r}"):
        Backoff(**{name: value})


def test_attempts_count_from_one() -> None:
    """There is no attempt 0, nor attempt True."""
    with pytest.raises(InvalidArgumentError, match="attempt is 0"):
        Backoff().delay(0)
    with pytest.raises(TypeError, match="attempt is True"):
        Backoff().delay(True)

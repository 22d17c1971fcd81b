"""Numbers, times and machines in the forms of several schedulers."""

from __future__ import annotations

from datetime import datetime

import pytest

from wfl.contexts.batch.quantities import english_time, host_list, in_seconds, ranges


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("3", [range(3, 4)]),
        ("1-4:1,9", [range(1, 5), range(9, 10)]),
        ("[1-5,7,10-20:5%2]", [range(1, 6), range(7, 8), range(10, 21, 5)]),
    ],
)
def test_ranges(text: str, expected: list[range] | None) -> None:
    """Brackets, and how many may run at a time, are no part of it."""
    assert ranges(text) == expected


@pytest.mark.parametrize(("text", "names"), [("", ""), ("a", "a"), ("a,n[1-2,09-10]x,m[3]", "a n1x n2x n09x n10x m3")])
def test_host_list(text: str, names: str) -> None:
    """Numbers have as many digits as their list's first."""
    assert host_list(text) == tuple(names.split())


@pytest.mark.parametrize("text", ["Tue May 29 09:37:00 2018", "May 29 09:37:00 2018 L", " May  29 09:37:00 2018"])
def test_english_time(text: str) -> None:
    """With the weekday or with something behind it, in this machine's time; a date that lacks a part is none."""
    assert english_time(text) == datetime(2018, 5, 29, 9, 37).astimezone()
    assert english_time(text.replace("May", "Mai")) is None
    assert english_time(text.replace(":00", "")) is None


@pytest.mark.parametrize(("text", "seconds"), [("5", 5), ("1:05", 65), ("2:00:00.5", 7200.5)])
def test_in_seconds(text: str, seconds: float) -> None:
    """As clocks show it."""
    assert in_seconds(text) == seconds

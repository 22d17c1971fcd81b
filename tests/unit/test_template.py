"""Template: iterators that advance it, maps that show it differently, counting and ticking."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl.drmaa2 import JobTemplate
from wfl.errors import InvalidArgumentError
from wfl.template import Template, env_sequence, time_ticks

SLEEP = JobTemplate(remote_command="sleep", args=["1"])


def environment(template: JobTemplate) -> Mapping[str, str]:
    """Return the environment of a template that has one."""
    assert template.job_environment is not None
    return template.job_environment


def double(template: JobTemplate) -> JobTemplate:
    """Double the variable N."""
    return template.replace(job_environment={"N": str(2 * int(environment(template)["N"]))})


def failing(template: JobTemplate) -> JobTemplate:
    """Raise instead of returning a template."""
    raise LookupError(template.remote_command)


def test_without_iterators_next_returns_the_template() -> None:
    """Nothing added, nothing changed."""
    assert Template(SLEEP).next() == SLEEP


def test_iterators_are_applied_in_order_of_addition() -> None:
    """A sequence 1, 2, 3 that is then doubled gives 2, 4, 6."""
    template = Template(SLEEP).add_iterator("count", env_sequence("N", 1)).add_iterator("double", double)
    assert [environment(template.next())["N"] for _ in range(3)] == ["2", "4", "6"]


def test_an_iterator_sees_what_it_made_before() -> None:
    """Iterators advance the template for good: doubling again and again gives powers of two."""
    template = Template(JobTemplate(job_environment={"N": "1"})).add_iterator("double", double)
    assert [environment(template.next())["N"] for _ in range(3)] == ["2", "4", "8"]


def test_a_name_given_again_replaces_the_iterator() -> None:
    """There is one iterator of each name."""
    template = Template(SLEEP).add_iterator("a", failing).add_iterator("a", env_sequence("N", 1))
    assert environment(template.next())["N"] == "1"


def test_a_failing_iterator_leaves_the_template_as_it_was() -> None:
    """An exception comes through, and what ran before it in the same step does not stay."""
    template = Template(SLEEP).add_iterator("count", env_sequence("N", 1)).add_iterator("bad", failing)
    with pytest.raises(LookupError, match="sleep"):
        template.next()
    assert template.add_iterator("bad", lambda t: t.replace(job_name="good")).next().job_name == "good"
    assert SLEEP.job_environment is None


def test_map_shows_the_template_changed_once() -> None:
    """A map does not advance the template."""
    template = Template(SLEEP).add_map("short", lambda t: t.replace(args=["0"]))
    assert template.map_to("short") == SLEEP.replace(args=["0"])
    assert template.next() == SLEEP


def test_next_map_advances_and_maps() -> None:
    """The map is applied to the next template and is not kept."""
    template = Template(SLEEP).add_iterator("count", env_sequence("N", 3)).add_map("double", double)
    assert [environment(template.next_map("double"))["N"] for _ in range(2)] == ["6", "8"]
    assert environment(template.next())["N"] == "5"


@pytest.mark.parametrize("method", ["map_to", "next_map"])
def test_an_unknown_map_is_refused_with_the_nearest_name(method: str) -> None:
    """A wrong name is told with the right one, before anything advances."""
    template = Template(SLEEP).add_iterator("count", env_sequence("N", 1)).add_map("short", double)
    with pytest.raises(InvalidArgumentError, match="no map 'shrot': did you mean 'short'"):
        getattr(template, method)("shrot")
    assert environment(template.next())["N"] == "1"


def test_what_is_no_template_is_refused() -> None:
    """A function that forgets its return is a TypeError that names it, and so is a wrong start."""
    forgetful = cast("Any", lambda _: None)
    with pytest.raises(TypeError, match="iterator 'forgetful', was given None"):
        Template(SLEEP).add_iterator("forgetful", forgetful).next()
    with pytest.raises(TypeError, match="map 'forgetful', was given None"):
        Template(SLEEP).add_map("forgetful", forgetful).map_to("forgetful")
    with pytest.raises(TypeError, match="Template was given 'sleep'"):
        Template(cast("Any", "sleep"))


def test_threads_share_a_template() -> None:
    """Each next() advances exactly once, whichever thread calls."""
    template = Template(SLEEP).add_iterator("count", env_sequence("N", 0))
    with ThreadPoolExecutor(max_workers=8) as pool:
        numbers = list(pool.map(lambda _: int(environment(template.next())["N"]), range(400)))
    assert sorted(numbers) == list(range(400))


@given(start=st.integers(), step=st.integers(), calls=st.integers(1, 20))
def test_env_sequence_counts(start: int, step: int, calls: int) -> None:
    """Call n sets start + n·step as text, and keeps the other variables."""
    iterator = env_sequence("N", start, step)
    template = JobTemplate(job_environment={"N": "old", "HOME": "/"})
    results = [iterator(template) for _ in range(calls)]
    assert [dict(environment(t)) for t in results] == [{"N": str(start + n * step), "HOME": "/"} for n in range(calls)]


def test_env_sequence_does_not_add_up_rounding_errors() -> None:
    """With fractions, step n is start + n·step, not n additions."""
    iterator = env_sequence("N", 0.0, 0.1)
    assert [environment(iterator(SLEEP))["N"] for _ in range(101)][-1] == "10.0"


def test_env_sequence_refuses_an_impossible_name_at_once() -> None:
    """A name that no environment can hold is refused where the iterator is made."""
    with pytest.raises(InvalidArgumentError, match="A=B"):
        env_sequence("A=B", 1)


@pytest.mark.parametrize("interval", [0.03, timedelta(milliseconds=30)])
def test_ticks_come_at_the_interval_and_are_counted(interval: float | timedelta) -> None:
    """Each call waits for its tick, counts from 1 and sets the time in UTC."""
    template = Template(SLEEP).add_iterator("tick", time_ticks(interval))
    begin, clock = datetime.now(UTC), time.monotonic()
    ticks = [environment(template.next()) for _ in range(3)]
    assert time.monotonic() - clock > 0.089
    assert [tick["wfl_iteration"] for tick in ticks] == ["1", "2", "3"]
    times = [datetime.fromisoformat(tick["wfl_time"]) for tick in ticks]
    assert begin < times[0] <= times[1] <= times[2] <= datetime.now(UTC)


class FakeClock:
    """A clock that only sleeping and working move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("wfl.template.time", self)

    def monotonic(self) -> float:
        """Tell the time in seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


def test_ticks_do_not_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work between the ticks does not move them: they stay at whole intervals from the first call."""
    clock = FakeClock(monkeypatch)
    tick = time_ticks(10)
    seen = []
    for work in (1, 7, 9.5, 0):
        tick(SLEEP)
        seen.append(clock.now)
        clock.now += work
    assert seen == [1010, 1020, 1030, 1040]


def test_missed_ticks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a long pause one tick comes at once, then the next on time; the iteration counts calls."""
    clock = FakeClock(monkeypatch)
    tick = time_ticks(10)
    tick(SLEEP)
    clock.now = 1047.0
    assert environment(tick(SLEEP))["wfl_iteration"] == "2"
    assert clock.now == 1047
    assert environment(tick(SLEEP))["wfl_iteration"] == "3"
    assert clock.now == 1050


@pytest.mark.parametrize("interval", [0, -1, timedelta(0)])
def test_ticks_need_an_interval(interval: float | timedelta) -> None:
    """An interval of no length is refused by name."""
    with pytest.raises(InvalidArgumentError, match="interval is"):
        time_ticks(interval)

"""Replacements and their combinations."""

import pickle
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl.drmaa2 import JobTemplate
from wfl.errors import InvalidArgumentError
from wfl.matrix import Replacement, expand

TRAIN = JobTemplate(
    remote_command="MODEL",
    args=["--lr", "LR", "--out=MODEL-LR"],
    job_environment={"RATE_LR": "LR"},
    output_path="/out/MODEL",
    min_slots=2,
)
plain_text = st.text(alphabet="abc", min_size=1)


def args_of(templates: list[JobTemplate]) -> list[tuple[str, ...] | None]:
    """Return the args of each template."""
    return [template.args for template in templates]


def test_no_replacement_is_the_template_alone() -> None:
    """Nothing to vary gives one job."""
    assert expand(TRAIN, []) == [TRAIN]


def test_a_pattern_is_replaced_in_every_kind_of_text() -> None:
    """Strings, items, keys and values are searched, and every occurrence is replaced."""
    assert expand(TRAIN, [Replacement("LR", ["0.1"]), Replacement("MODEL", ["m"])]) == [
        TRAIN.replace(
            remote_command="m",
            args=["--lr", "0.1", "--out=m-0.1"],
            job_environment={"RATE_0.1": "0.1"},
            output_path="/out/m",
        )
    ]


def test_the_first_replacement_is_outermost() -> None:
    """x1 y1, x1 y2, x2 y1, x2 y2."""
    template = JobTemplate(args=["X", "Y"])
    result = expand(template, [Replacement("X", ["x1", "x2"]), Replacement("Y", ["y1", "y2"])])
    assert args_of(result) == [("x1", "y1"), ("x1", "y2"), ("x2", "y1"), ("x2", "y2")]


@given(st.lists(st.lists(plain_text, min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_matrix_is_the_cartesian_product_in_order(axes: list[list[str]]) -> None:
    """Any number of axes gives as many jobs as there are combinations, in the order of itertools.product."""
    template = JobTemplate(args=[f"<{n}>" for n in range(len(axes))])
    result = expand(template, [Replacement(f"<{n}>", axis) for n, axis in enumerate(axes)])
    assert args_of(result) == list(product(*axes))


@given(pattern=plain_text, values=st.lists(plain_text, min_size=1, max_size=3))
def test_a_value_is_not_searched_again(pattern: str, values: list[str]) -> None:
    """A value that contains its own pattern stays as it is."""
    grown = [f"{value}{pattern}{value}" for value in values]
    result = expand(JobTemplate(job_name=pattern), [Replacement(pattern, grown)])
    assert [template.job_name for template in result] == grown


def test_a_later_replacement_finds_what_an_earlier_one_put_in() -> None:
    """Replacements build on each other, in their order."""
    result = expand(JobTemplate(args=["A"]), [Replacement("A", ["B", "x"]), Replacement("B", [1, 2])])
    assert args_of(result) == [("1",), ("2",), ("x",), ("x",)]


def test_fields_narrow_the_search() -> None:
    """Only the named fields are touched; one name may stand alone."""
    for fields in (["args"], "args", {"args"}):
        (result,) = expand(TRAIN, [Replacement("MODEL", ["m"], fields)])
        assert result == TRAIN.replace(args=["--lr", "LR", "--out=m-LR"])


def test_a_pattern_that_occurs_nowhere_is_refused() -> None:
    """A replacement that would only repeat the same job is a mistake, told with pattern and fields."""
    with pytest.raises(InvalidArgumentError, match="pattern 'BATCH' does not occur in any text field"):
        expand(TRAIN, [Replacement("BATCH", ["1"])])
    with pytest.raises(InvalidArgumentError, match="pattern 'LR' does not occur in job_name, output_path"):
        expand(TRAIN, [Replacement("LR", ["1"], ["output_path", "job_name"])])


def test_two_keys_that_become_one_are_refused() -> None:
    """A replacement may not make one variable out of two, as one of the values would be lost."""
    with pytest.raises(InvalidArgumentError, match="two keys become one"):
        expand(JobTemplate(job_environment={"A": "1", "B": "2"}), [Replacement("A", ["B"])])


def test_a_combination_that_cannot_work_is_refused() -> None:
    """The result is checked like any template."""
    with pytest.raises(InvalidArgumentError, match="job_environment"):
        expand(TRAIN, [Replacement("LR", ["a=b"])])


def test_values_are_texts_numbers_and_paths() -> None:
    """Numbers and paths become text; any iterable is taken."""
    assert Replacement("X", [1, 0.5, Decimal("0.10"), "a", Path("/b")]).values == (
        "1",
        "0.5",
        "0.10",
        "a",
        "/b",
    )
    assert Replacement("X", range(3)).values == ("0", "1", "2")
    assert Replacement("X", (str(n) for n in range(2))) == Replacement("X", ["0", "1"])


def test_replacement_is_a_frozen_value() -> None:
    """Equal replacements are equal, hash alike and survive pickling; nothing can be changed."""
    replacement = Replacement("X", ["1"], ["args", "email"])
    again = pickle.loads(pickle.dumps(replacement))  # noqa: S301 - our own bytes
    assert len({replacement, again, Replacement("X", ("1",), {"email", "args"})}) == 1
    with pytest.raises(AttributeError):
        replacement.pattern = "Y"  # type: ignore[misc] # the point of the test


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("", ["1"]), "pattern is empty"),
        (("X", []), "values is empty"),
        (("X", ["1"], ["agrs"]), "no field 'agrs': did you mean 'args'"),
        (("X", ["1"], ["min_slots"]), "min_slots holds no text"),
    ],
)
def test_impossible_replacements_are_refused(arguments: Any, text: str) -> None:
    """What can never work is refused where it is written."""
    with pytest.raises(InvalidArgumentError, match=text):
        Replacement(*arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, ["1"]), "pattern is 1"),
        (("X", "abc"), "values is 'abc'"),
        (("X", 5), "values is 5"),
        (("X", [True]), r"values\[0\] is True"),
        (("X", ["a", None]), r"values\[1\] is None"),
        (("X", ["a", b"b"]), r"values\[1\] is b'b'"),
    ],
)
def test_wrong_types_are_refused(arguments: Any, text: str) -> None:
    """A wrong type is a TypeError with the argument's name and value."""
    with pytest.raises(TypeError, match=text):
        Replacement(*arguments)


def test_only_replacements_can_be_expanded() -> None:
    """Something else in place of a Replacement is a TypeError that shows it."""
    with pytest.raises(TypeError, match=r"'X' .* is no Replacement"):
        expand(TRAIN, ["X"])  # type: ignore[list-item] # the point of the test

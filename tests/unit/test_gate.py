"""Gate: slots in use, who waits for them, and that none is ever lost or given twice."""

import random
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from wfl.drmaa2 import JobTemplate
from wfl.gate import Gate, advance, leave_all
from wfl.record import Record


def records(number: int, *gates: Gate, slots: int = 1) -> list[Record]:
    """Tasks that have to pass these gates in turn."""
    made = [Record(cast("Any", None), str(n), JobTemplate(min_slots=slots)) for n in range(number)]
    for record in made:
        record.gates = gates
    return made


def used(gate: Gate) -> int:
    """Slots in use."""
    return gate._used  # noqa: SLF001 - nobody else needs to know


def test_free_slots_are_taken_at_once() -> None:
    """As many as there are slots pass; the others wait."""
    assert [advance(record) for record in records(5, Gate(3))] == [True, True, True, False, False]


def test_first_come_first_served() -> None:
    """Those in line move up in the order in which they came."""
    first, *others = records(4, Gate(1))
    assert advance(first)
    assert [advance(record) for record in others] == [False] * 3
    order = []
    ready = leave_all(first)
    while ready:
        order += ready
        ready = leave_all(ready[0])
    assert order == others


def test_slots_are_weighed() -> None:
    """A task takes as many slots as it asks for, and gives them all back."""
    gate = Gate(4)
    (big,) = records(1, gate, slots=3)
    one, two = records(2, gate)
    assert advance(big)
    assert advance(one)
    assert not advance(two)
    assert leave_all(big) == [two]
    assert used(gate) == 2


def test_a_big_task_is_not_overtaken() -> None:
    """Small tasks that came later wait behind a big one, so that it gets its turn."""
    gate = Gate(2)
    (one,), (big,), (small,) = records(1, gate), records(1, gate, slots=2), records(1, gate)
    assert advance(one)
    assert not advance(big)
    assert not advance(small)
    assert leave_all(one) == [big]
    assert leave_all(big) == [small]


def test_who_leaves_the_line_frees_no_slot() -> None:
    """A task that ends while it waits had no slot, so none is given on."""
    gate = Gate(1)
    running, killed, last = records(3, gate)
    assert advance(running)
    assert not advance(killed)
    assert not advance(last)
    assert leave_all(killed) == []
    assert used(gate) == 1
    assert leave_all(running) == [last]


def test_who_leaves_the_head_of_the_line_lets_others_pass() -> None:
    """When a big task at the head goes away, those behind it that fit move up at once."""
    gate = Gate(2)
    (one,), (big,), (small,) = records(1, gate), records(1, gate, slots=2), records(1, gate)
    for record in (one, big, small):
        advance(record)
    assert leave_all(big) == [small]


def test_two_gates_are_passed_in_turn() -> None:
    """A task waits at the second gate with the slot of the first in hand."""
    array, context = Gate(2), Gate(1)
    one, two, three = records(3, array, context)
    assert advance(one)
    assert not advance(two)  # waits for the context
    assert not advance(three)  # waits for the array
    assert (used(array), used(context)) == (2, 1)
    assert leave_all(one) == [two]
    assert three.passed == 1  # moved up to the second gate
    assert leave_all(two) == [three]
    assert leave_all(three) == []
    assert (used(array), used(context)) == (0, 0)


def test_getting_in_line_twice_is_once() -> None:
    """Who is in line, or through, does not take slots again."""
    gate = Gate(1)
    one, two = records(2, gate)
    assert advance(one)
    assert not advance(one)
    assert not advance(two)
    assert not advance(two)
    assert leave_all(one) == [two]
    assert leave_all(two) == []
    assert used(gate) == 0


def test_leaving_twice_gives_back_once() -> None:
    """Slots are given back once, however often a task leaves."""
    gate = Gate(2)
    one, two = records(2, gate)
    assert advance(one)
    assert advance(two)
    leave_all(one)
    leave_all(one)
    assert used(gate) == 1


def test_leaving_without_having_come() -> None:
    """A task that never got in line gives back nothing."""
    gate = Gate(1)
    one, held = records(2, gate)
    assert advance(one)
    assert leave_all(held) == []
    assert used(gate) == 1


def test_without_gates_everybody_passes() -> None:
    """No gate, no waiting."""
    assert [advance(record) for record in records(3)] == [True] * 3


@given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(1, 4), st.integers(1, 12))
def test_whatever_happens_no_slot_is_lost(chance: random.Random, inner: int, outer: int, number: int) -> None:
    """In any order of coming and leaving, also from within the line: never too many, and in the end all are through."""
    array, context = Gate(inner), Gate(outer)
    made = [r for _ in range(number) for r in records(1, array, context, slots=chance.randint(1, min(inner, outer)))]
    outside, inside, running = made, list[Record](), list[Record]()
    while outside or inside:
        if outside and chance.random() < 0.5:
            inside.append(outside.pop())
            if advance(inside[-1]):
                running.append(inside[-1])
        elif inside:
            record = chance.choice(running or inside if chance.random() < 0.7 else inside)
            inside.remove(record)
            if record in running:
                running.remove(record)
            running += leave_all(record)
        assert used(context) == sum(record.slots for record in running) <= outer
        assert used(array) <= inner
        assert running or not inside  # somebody always gets on
    assert used(array) == used(context) == 0

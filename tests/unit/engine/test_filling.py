"""When the next step begins."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.filling import LEAD_SECONDS, NEVER, UnderWay, begins_at

NOW = 100.0
times = st.floats(0.0, 200.0)
under_way = st.builds(UnderWay, st.integers(0, 4), st.integers(1, 100), st.floats(0, 10), times | st.just(math.inf))


def begins(given_: UnderWay, waiting: int = 1, *, whole: bool = False, now: float = NOW) -> float:
    return begins_at(given_, waiting=waiting, whole=whole, now=now)


@given(under_way, st.integers(1, 100))
def test_a_whole_batch_begins_at_once_unless_the_ranks_have_enough_to_do(given_, waiting):
    enough = given_.steps >= 2 and given_.ends >= NOW + LEAD_SECONDS
    assert begins(given_, waiting, whole=True) == (NEVER if enough else NOW)


@given(under_way, st.integers(1, 63))
def test_it_is_never_in_the_past_and_a_reason_to_wait_is_one_that_ends(given_, waiting):
    when = begins(given_, waiting)
    assert when >= NOW
    if when < NEVER:
        assert when <= max(NOW, given_.ends)
    else:
        assert given_.steps  # a step that ends has them looked at again


def test_idle_ranks_begin_at_once():
    assert begins(UnderWay()) == NOW


def test_as_many_rows_as_a_short_step_has_follow_it_at_once():
    short = UnderWay(steps=1, rows=5, lasts=LEAD_SECONDS / 2, ends=NOW + LEAD_SECONDS / 2)
    assert begins(short, 5) == NOW
    assert begins(short, 4) == math.inf


def test_behind_a_long_step_rows_come_together_until_just_before_the_ranks_are_done():
    assert begins(UnderWay(steps=1, rows=5, lasts=0.02, ends=NOW + 0.02), 40) == NOW + 0.02 - LEAD_SECONDS
    assert begins(UnderWay(steps=1, rows=5, lasts=1.0, ends=NOW + 1.0), 40) == NOW + 0.9
    late = UnderWay(steps=1, rows=5, lasts=1.0, ends=NOW + 0.001)
    assert begins(late, 1) == NOW


def test_two_steps_are_enough_to_go_on_with():
    assert begins(UnderWay(steps=2, rows=1, lasts=1.0, ends=NOW), 63) == math.inf


def test_behind_a_step_of_which_nothing_is_known_its_end_is_waited_for():
    unknown = UnderWay(steps=1, rows=5, lasts=math.inf, ends=math.inf)
    assert begins(unknown, 40) == NEVER
    assert begins(unknown, 40, whole=True) == NOW

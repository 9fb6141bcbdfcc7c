"""Given how long steps took, when the next is planned, then it ends well within the time that it has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.pace import Pace


def test_a_loops_first_slice_is_one_turn():
    assert Pace(60.0).turns(0, rows=8, most=100) == 1


def test_a_slice_has_as_many_turns_as_a_fifth_of_the_time_holds():
    pace = Pace(60.0)
    pace.ran(0, rows=4, seconds=6.0, turns=2)
    assert pace.turns(0, rows=4, most=100) == 4
    assert pace.turns(0, rows=4, most=3) == 3
    assert pace.turns(0, rows=1, most=100) == 4, "fewer rows may take as long"
    assert pace.turns(0, rows=8, most=100) == 2
    assert pace.turns(0, rows=400, most=100) == 1
    assert pace.turns(1, rows=1, most=100) == 1


def test_turns_and_calls_tell_the_same_of_a_row():
    pace, other = Pace(60.0), Pace(60.0)
    pace.ran(0, rows=4, seconds=6.0, turns=2)
    other.ran(0, rows=4, seconds=3.0)
    assert pace.rows(0, 1000) == other.rows(0, 1000) == 16


def test_after_a_slice_that_was_overdue_the_next_is_one_turn():
    pace = Pace(60.0)
    pace.ran(0, rows=1, seconds=0.01, turns=1)
    assert pace.turns(0, rows=1, most=50) == 50
    pace.overdue(0, rows=1)
    assert pace.turns(0, rows=1, most=50) == 1


@given(st.floats(1e-4, 2.0), st.integers(1, 500), st.floats(0.01, 60.0))
def test_a_slice_takes_no_longer_than_it_may(turn, most, seconds):
    pace = Pace(60.0)
    pace.ran(0, 4, turn * 10, turns=10)
    turns = pace.turns(0, 4, most, seconds)
    assert 1 <= turns <= most
    assert turns == 1 or turns * turn <= seconds * (1 + 1e-9)
    assert turns == most or (turns + 1) * turn > min(seconds, 12.0) * (1 - 1e-9)


def test_what_a_step_is_expected_to_take():
    pace = Pace(60.0)
    assert pace.expected(0, 10) == 0.0
    pace.ran(0, 10, 0.5)
    assert pace.expected(0, 20) == pytest.approx(1.0)
    pace.ran(1, 4, 0.8, turns=8)
    assert pace.expected(1, 4, 10) == pytest.approx(1.0)
    assert pace.expected(1, 2, 10) == pytest.approx(1.0)  # fewer rows may take as long
    assert pace.expected(1, 8, 10) == pytest.approx(2.0)

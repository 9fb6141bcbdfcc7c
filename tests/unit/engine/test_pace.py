"""Given how long steps took, when the next is planned, then it ends well within the time that it has."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.pace import Pace


def test_a_loops_first_slice_is_one_turn():
    assert Pace(60.0).turns(0, None, rows=8, most=100) == 1


def test_a_slice_has_as_many_turns_as_a_fifth_of_the_time_holds():
    pace = Pace(60.0)
    pace.ran(0, None, rows=4, seconds=6.0, turns=2)
    assert pace.turns(0, None, rows=4, most=100) == 4
    assert pace.turns(0, None, rows=4, most=3) == 3
    assert pace.turns(0, None, rows=1, most=100) == 4, "fewer rows may take as long"
    assert pace.turns(0, None, rows=8, most=100) == 2
    assert pace.turns(0, None, rows=400, most=100) == 1
    assert pace.turns(1, None, rows=1, most=100) == 1


def test_turns_and_calls_tell_the_same_of_a_row():
    pace, other = Pace(60.0), Pace(60.0)
    pace.ran(0, None, rows=4, seconds=6.0, turns=2)
    other.ran(0, None, rows=4, seconds=3.0)
    assert pace.rows(0, None, 1000) == other.rows(0, None, 1000) == 16


def test_after_a_slice_that_was_overdue_the_next_is_one_turn():
    pace = Pace(60.0)
    pace.ran(0, None, rows=1, seconds=0.01, turns=1)
    assert pace.turns(0, None, rows=1, most=50) == 50
    pace.overdue(0, None, rows=1)
    assert pace.turns(0, None, rows=1, most=50) == 1


@given(st.floats(1e-4, 2.0), st.integers(1, 500), st.floats(0.01, 60.0))
def test_a_slice_takes_no_longer_than_it_may(turn, most, seconds):
    pace = Pace(60.0)
    pace.ran(0, None, 4, turn * 10, turns=10)
    turns = pace.turns(0, None, 4, most, seconds)
    assert 1 <= turns <= most
    assert turns == 1 or turns * turn <= seconds * (1 + 1e-9)
    assert turns == most or (turns + 1) * turn > min(seconds, 12.0) * (1 - 1e-9)


def test_what_a_step_is_expected_to_take():
    pace = Pace(60.0)
    assert pace.expected(0, None, 10) == math.inf
    pace.ran(0, None, 10, 0.5)
    assert pace.expected(0, None, 20) == pytest.approx(1.0)
    pace.ran(1, None, 4, 0.8, turns=8)
    assert pace.expected(1, None, 4, 10) == pytest.approx(1.0)
    assert pace.expected(1, None, 2, 10) == pytest.approx(1.0)  # fewer rows may take as long
    assert pace.expected(1, None, 8, 10) == pytest.approx(2.0)


@given(st.floats(0.0, 1.0), st.floats(1e-4, 0.1), st.lists(st.integers(1, 256), min_size=8, max_size=40))
def test_what_a_step_takes_is_told_from_what_a_row_does(step, row, sizes):
    pace = Pace(60.0)
    for rows in [*sizes, 8, 64, 8, 64, 8, 64]:
        pace.ran(0, None, rows, step + row * rows)
    for rows in (8, 32, 64, 128):
        assert pace.expected(0, None, rows) == pytest.approx(step + row * rows)


def test_a_step_of_few_rows_says_little_of_one_of_many_and_nothing_of_other_shapes():
    pace = Pace(60.0)
    for _ in range(3):
        pace.ran(0, "short", 256, 0.8)
        pace.ran(0, "long", 1, 0.5)
    assert pace.rows(0, "short", 256) == 256
    assert pace.expected(0, "short", 256) == pytest.approx(0.8)
    assert pace.rows(0, "long", 256) == 24
    assert pace.rows(0, "another", 256) == 24  # it may be as slow
    assert pace.rows(0, "another", 256, seconds=1.0) == 256  # nothing is lost over it if it is


def test_more_rows_than_are_sure_to_be_done_in_time_come_step_by_step():
    pace = Pace(60.0)
    for rows in (1, 2, 3):
        pace.ran(0, None, rows, 4.0)  # as if rows took nothing
    assert pace.rows(0, None, 256) == 24
    pace.ran(0, None, 24, 4.0)
    assert pace.rows(0, None, 256) == 192


def test_where_all_shapes_are_slow_one_that_is_new_is_taken_to_be_so():
    pace = Pace(60.0)
    for number in range(5):
        pace.ran(0, number, 1, 4.0)
    assert pace.rows(0, "new", 256) == 3
    assert pace.expected(0, "new", 2) == pytest.approx(8.0)


def test_new_slow_shapes_among_quick_ones_do_not_cost_an_epoch_each():
    pace, lost = Pace(60.0), 0
    for number in range(10):
        for _ in range(3):
            pace.ran(0, "quick", 32, 0.02)
        rows = pace.rows(0, number, 1024)
        if 0.1 * rows > 60.0:
            lost += 1
            pace.overdue(0, number, rows)
        else:
            pace.ran(0, number, rows, 0.1 * rows)
    assert lost == 1


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(1e-6, 100.0)), min_size=1, max_size=30), st.integers(1, 300))
def test_more_rows_never_take_less(steps, rows):
    pace = Pace(60.0)
    for size, seconds in steps:
        pace.ran(0, None, size, seconds)
    assert 0.0 <= pace.expected(0, None, rows) <= pace.expected(0, None, rows + 1) * (1 + 1e-9)
    most = pace.rows(0, None, 300)
    assert most == 1 or pace.expected(0, None, most) <= 12.0 * (1 + 1e-6)


def test_no_more_shapes_are_remembered_than_some():
    pace = Pace(60.0)
    for number in range(1000):
        pace.ran(0, number, 1, 0.1, turns=1)
        pace.overdue(0, -number, 1)
    pace.ran(0, 999, 1, 0.1, turns=1)
    assert len(pace._lines) == 256
    assert len(pace._turns) <= 256
    assert pace.turns(0, 999, 1, 50) == 50
    assert pace.turns(0, 1, 1, 50) == 1


def test_a_slice_whose_outputs_are_too_large_is_half_as_large_next_time():
    pace = Pace(60.0)
    pace.ran(0, None, rows=4, seconds=0.001, turns=8)
    pace.too_large(0, None, rows=4, turns=8)
    assert pace.turns(0, None, rows=4, most=8) == 4
    pace.too_large(0, None, rows=4, turns=8)
    assert pace.turns(0, None, rows=4, most=8) == 4, "known already: it was under way"
    assert pace.turns(0, None, rows=1, most=8) == 8, "of fewer rows more turns fit"
    assert pace.turns(0, "x", rows=4, most=8) == 1
    pace.too_large(0, None, rows=4, turns=4)
    pace.too_large(0, None, rows=4, turns=2)
    assert pace.turns(0, None, rows=4, most=8) == pace.turns(0, None, rows=99, most=8) == 1


@given(st.integers(1, 64), st.integers(2, 64), st.integers(1, 200))
def test_slices_are_halved_until_they_fit(rows, most, fits):
    pace = Pace(60.0)
    pace.ran(0, None, rows, 1e-6, turns=1)
    for _ in range(10):
        turns = pace.turns(0, None, rows, most)
        if turns * rows <= fits or turns == 1:
            break
        pace.too_large(0, None, rows, turns)
    assert turns == 1 or turns * rows <= fits
    assert turns == most or 2 * (turns + 1) * rows > fits, "not smaller than it has to be by more than a half"

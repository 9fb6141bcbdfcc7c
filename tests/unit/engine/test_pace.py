"""Given how long steps took, when the next is planned, then it ends well within the time that it has."""

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

"""Given rows that come turn by turn of the loop, then they begin together; one that comes alone waits for nobody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.filling import LEAD_SECONDS, Gathering

_LONGEST_TURN = 2e-3


def test_a_row_that_comes_alone_begins_after_one_turn_in_which_none_came():
    gathering = Gathering()
    assert gathering.came(0.0)
    assert not gathering.is_over(1e-5)
    assert gathering.is_over(2e-5)


def test_rows_of_turns_that_follow_each_other_begin_together():
    gathering = Gathering()
    for turn in range(5):
        now = turn * 1e-4
        assert gathering.came(now) == (turn == 0)
        assert not gathering.came(now)
        assert not gathering.is_over(now + 1e-4)
    assert gathering.is_over(6e-4)
    assert gathering.came(7e-4), "the next is the first again"


@given(st.lists(st.tuples(st.booleans(), st.floats(1e-6, _LONGEST_TURN)), max_size=60))
def test_nothing_waits_for_longer_than_it_may_and_all_is_looked_at(turns):
    gathering, now, asked = Gathering(), 0.0, False
    waiting: list[float] = []
    for comes, seconds in [*turns, (False, 1e-3), (False, 1e-3)]:
        if comes:
            waiting.append(now)
            asked = gathering.came(now) or asked
        now += seconds
        if asked and gathering.is_over(now):
            asked = False
            waiting.clear()
        assert all(now - since <= LEAD_SECONDS + 2 * _LONGEST_TURN for since in waiting)
    assert not waiting

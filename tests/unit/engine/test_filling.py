"""When the next step begins."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.filling import COMPANY_SECONDS, CROWD_SECONDS, LEAD_SECONDS, NEVER, Crowd, UnderWay, begins_at

NOW = 100.0
times = st.floats(0.0, 200.0)
under_way = st.builds(UnderWay, st.integers(0, 4), st.integers(1, 100), st.floats(0, 10), times | st.just(math.inf))


def begins(given_: UnderWay, waiting: int = 1, *, whole: bool = False, now: float = NOW, crowd: int = 0) -> float:
    return begins_at(given_, waiting=waiting, whole=whole, now=now, crowd=crowd, since=NOW)


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


@given(st.integers(1, 100), st.integers(0, 200))
def test_the_first_rows_of_short_steps_wait_a_moment_for_half_of_those_that_were_there(waiting, crowd):
    when = begins(UnderWay(), waiting, crowd=crowd)
    assert when == (NOW if waiting >= crowd / 2 else NOW + COMPANY_SECONDS)
    assert begins(UnderWay(), waiting, whole=True, crowd=crowd) == NOW
    later = NOW + 2 * COMPANY_SECONDS
    assert begins(UnderWay(), waiting, crowd=crowd, now=later) == later


def test_who_is_alone_waits_for_nobody():
    crowd, now = Crowd(), NOW
    for _ in range(100):
        assert begins(UnderWay(), 1, crowd=crowd.seen(1, now)) == NOW
        now += 0.003


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0.0, 0.2)), min_size=1, max_size=50))
def test_a_crowd_is_the_most_of_the_last_moment_and_is_forgotten_after_three(seen):
    crowd, now, past = Crowd(), NOW, []
    for rows, pause in seen:
        now += pause
        past.append((rows, now))
        found = crowd.seen(rows, now)
        assert found >= max(it for it, at in past if at > now - CROWD_SECONDS + 1e-9)
        assert found <= max(it for it, at in past if at >= now - 3 * CROWD_SECONDS - 1e-9)


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

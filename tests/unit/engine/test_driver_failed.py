"""Given rows that fail, then they are found in few steps, and other calls are not held up meanwhile."""

from __future__ import annotations

import pytest
from rankmq.engine.batch import Batch
from rankmq.engine.conveyor import Flight
from rankmq.engine.ledger import Finished
from rankmq.engine.results import suspect_of
from rankmq.schemas.errors import GraphFailed, LimitExceeded
from rankmq.schemas.messages import ErrorInfo, RankReply

from tests.unit.engine.graphs_in_memory import BAD
from tests.unit.engine.group_life import GROUP
from tests.unit.engine.simulation import Calls, ready_world, rows_of, steps
from tests.unit.engine.waiting_calls import call


def bad_rows(*which):
    return {f"row{row}": BAD for row in which}


@pytest.mark.parametrize("stacked", [True, False])
def test_where_all_rows_are_bad_that_takes_little_more_than_one_step_a_row(stacked):
    world = ready_world(stacked=stacked)
    calls = Calls(world)
    calls.call(0, rows_of(0, 64, **bad_rows(*range(64))))
    world.run()
    assert calls.check(0) == dict.fromkeys(range(64), GraphFailed)
    assert len(steps(world)) <= 64 + 2 * 7  # two at once are under way: what one tells comes late for the next


def test_behind_the_last_bad_row_the_parts_become_larger_again():
    world = ready_world()
    calls = Calls(world)
    calls.call(0, rows_of(0, 64, **bad_rows(*range(32))))
    world.run()
    assert calls.check(0) == dict.fromkeys(range(32), GraphFailed)
    assert len(steps(world)) <= 32 + 2 * 7


def test_one_bad_row_is_found_by_halving():
    world = ready_world()
    calls = Calls(world)
    calls.call(0, rows_of(0, 64, **bad_rows(37)))
    world.run()
    assert calls.check(0) == {37: GraphFailed}
    assert len(steps(world)) <= 2 * 6 + 1


def test_where_rows_run_back_to_back_the_rank_says_which_failed():
    world = ready_world(stacked=False)
    calls = Calls(world)
    calls.call(0, rows_of(0, 64, **bad_rows(37)))
    world.run()
    assert calls.check(0) == {37: GraphFailed}
    assert list(steps(world).values()) == [64, 37, 1, 26]


@pytest.mark.parametrize("stacked", [True, False])
def test_calls_of_others_are_done_while_bad_rows_are_searched_for(stacked):
    world = ready_world(stacked=stacked, window=1)
    calls = Calls(world)
    calls.call(0, rows_of(0, 64, **bad_rows(*range(64))))
    number = 0
    while not calls.results.get(0):
        number = calls.call(1, rows_of(1, 1))
        before = len(steps(world))
        while number not in calls.results:
            world.choices()[0]()
        assert len(steps(world)) - before <= 3, "a part that is under way, another, and then it"
    assert number > 30
    world.run()
    assert calls.check(0) == dict.fromkeys(range(64), GraphFailed)


def test_what_is_too_large_for_one_message_goes_in_order_and_apart_from_nobody():
    world = ready_world(max_message=8192, window=1)
    calls = Calls(world)
    for number in range(3):
        calls.call(2, rows_of(2, 1, seed=number) * 600)
    world.run()
    assert [calls.check(number) for number in range(3)] == [{}] * 3
    assert list(calls.results) == [0, 1, 2]


def test_a_row_whose_outputs_are_too_large_fails_alone():
    world = ready_world(max_reply=16384, stacked=False)
    calls = Calls(world)
    rows = rows_of(2, 20)
    rows[7] = (rows[7][0].repeat(3000),)
    calls.call(2, rows)
    world.run()
    assert calls.check(0) == {7: LimitExceeded}


def test_a_row_that_was_not_in_the_step_is_not_believed():
    def suspect(*replies):
        given = {rank: RankReply(group=GROUP, epoch=1, step=0, rank=rank, **it) for rank, it in enumerate(replies)}
        batch = Batch(0, ((call(rows=3), 0), (call(), 0), (call(), 0)))
        return suspect_of(Finished(0, Flight(batch, 0, batch.rows), given, 0.0))

    failed = {"error": ErrorInfo(code="graph_failed", message="bad")}
    assert suspect({"failed_row": 0}, {**failed, "failed_row": 2}, {**failed, "failed_row": 1}) == 1
    assert suspect({**failed, "failed_row": 3}, failed, {}) is None

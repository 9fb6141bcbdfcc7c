"""Given ranks that compute in memory, when calls are made, then each row gets its own answer."""

from __future__ import annotations

import gc
from random import Random

import numpy as np
import pytest
from rankmq.engine.group import GroupState
from rankmq.engine.ticket import Ticket
from rankmq.schemas.errors import (
    GraphFailed,
    InvalidInput,
    LimitExceeded,
    ModelError,
    RanksDisagree,
)
from rankmq.schemas.messages import RankReply

from tests.unit.engine.graphs_in_memory import BAD, CONFUSING, a_row
from tests.unit.engine.group_life import GROUP
from tests.unit.engine.simulation import Calls, World, ready_world, rows_of, steps

# -------------------------------------------------------------------------------------------------------- right answers


MODELS = (
    {"stacked": True},
    {"stacked": False},
    {"stacked": True, "rows": 4},
    {"stacked": True, "batch_size": 3},
)
ONE_RANK = {"stacked": True, "ranks": 1, "window": 1}


@pytest.mark.parametrize(
    ("model", "subgraph"),
    [*((model, subgraph) for model in MODELS for subgraph in range(3)), (ONE_RANK, 0), (ONE_RANK, 2)],
    ids=str,
)
def test_every_row_gets_what_numpy_says(model, subgraph):
    world = ready_world(**model)
    calls = Calls(world)
    for count in (1, 5, 2, 9):
        calls.call(subgraph, rows_of(subgraph, count, seed=count))
    world.run()
    assert [calls.check(number) for number in range(4)] == [{}] * 4
    most = model.get("rows") or model.get("batch_size") or 64
    assert max(steps(world).values()) <= most
    assert world.driver.steps == len(steps(world))
    assert world.driver.status().waiting == world.driver.outstanding == 0


def test_calls_of_several_requests_share_a_step():
    world = ready_world(window=1)
    calls = Calls(world)
    for number in range(5):
        calls.call(0, rows_of(0, 2, seed=number))
    world.run()
    assert list(steps(world).values()) == [2, 8]
    assert world.tasks[-1][2].requests == ("r1", "r2", "r3", "r4")
    assert [calls.check(number) for number in range(5)] == [{}] * 5


def test_the_window_is_used_and_kept():
    world = ready_world(window=3, stacked=False)
    calls = Calls(world)
    world.seconds_per_row = 0.00001
    calls.call(0, rows_of(0, 64))
    world.run()  # now it is known that such steps are short
    for _ in range(6):
        calls.call(0, rows_of(0, 64))
    assert world.driver.outstanding == 3
    assert world.driver.status().waiting == 3 * 64
    slow = world.agents[0]
    slow.frozen = True
    world.run()
    assert {task.step for _, _, task in world.tasks} == {0, 1, 2, 3}
    slow.frozen = False
    world.run()
    assert len(calls.results) == 7


def test_rows_that_run_alone_are_learned_from_and_nothing_of_them_is_kept():
    world = ready_world()
    for _ in range(2):
        world.driver.call(0, rows_of(0, 3), lambda _: None, lenient=False, requests=("apart",), alone=True)
    world.run()
    assert world.driver.steps == 6
    # By its type, never isinstance: that asks a weak proxy of some other test for the class of what is gone.
    assert not [it for it in gc.get_objects() if type(it) is Ticket and it.requests == ("apart",)]


def test_calls_made_before_the_group_is_ready_wait_for_it():
    world = World()
    calls = Calls(world)
    calls.call(0, rows_of(0, 3))
    calls.call(7, rows_of(0, 2))
    assert world.driver.status().waiting == 5
    assert calls.results == {}
    world.run()
    assert calls.check(0) == {}
    assert calls.check(1) == {0: ModelError, 1: ModelError}


def test_a_call_waits_for_the_ranks_that_come_to_serve():
    """Those that form first may fail to load, and others with other graphs come in their place."""
    world = World()
    world.run(most=10_000, revive=False)
    for rank in range(3):
        world.starts(rank)
    while world.driver.group.state is GroupState.FORMING:
        world.choices()[0]()
    assert world.driver.plans
    calls = Calls(world)
    calls.call(0, [(np.zeros(5, np.float32),)])
    assert calls.results == {}  # not refused by graphs that may not come to serve


def test_a_call_without_rows_is_done():
    world = ready_world()
    calls = Calls(world)
    calls.call(0, [])
    assert calls.results == {0: []}


def test_values_without_a_dtype_are_converted():
    world = ready_world()
    calls = Calls(world)
    given = [([1, 2, 3],), (np.array([1, 2, 3], np.int64),)]
    calls.call(0, given, lenient=True)
    calls.call(0, given, lenient=False)
    world.run()
    assert [result[0].tolist() for result in calls.results[0]] == [[3, 5, 7]] * 2
    assert calls.errors(1) == {0: InvalidInput, 1: InvalidInput}


def test_thousands_of_calls_that_are_made_in_the_moment_another_is_done_do_not_pile_up_on_the_stack():
    world = ready_world(window=1)
    made = []

    def again(results):
        made.append(results)
        if len(made) < 3000:
            wrong = (np.zeros(1, np.int8),) if len(made) % 2 else a_row(0, Random(0))
            world.driver.call(0, [wrong], again, lenient=False, requests=())

    world.driver.call(0, [a_row(0, Random(0))], again, lenient=False, requests=())
    world.run()
    assert len(made) == 3000


def test_calls_may_be_made_while_others_are_told_their_results():
    world = ready_world(window=2)
    inner = Calls(world)

    def done(results):
        inner.call(1, rows_of(1, 3))

    world.driver.call(0, rows_of(0, 5), done, lenient=False, requests=())
    world.driver.call(0, rows_of(0, 5), done, lenient=False, requests=())
    world.run()
    assert [inner.check(number) for number in range(2)] == [{}, {}]


# ------------------------------------------------------------------------------------------------------------- bad rows


def test_what_does_not_fit_is_refused_before_anything_is_sent():
    world = ready_world()
    calls = Calls(world)
    good = a_row(0, Random(0))
    rows = [(np.zeros(4, np.float32),), good, (np.zeros(3, np.int8),), (), (*good, *good), (np.array(["a"]),)]
    calls.call(0, rows)
    assert {task.work.rows for _, _, task in world.tasks} == {1}
    world.run()
    wrong = calls.errors(0)
    assert wrong == dict.fromkeys((0, 2, 3, 4, 5), InvalidInput)
    np.testing.assert_array_equal(calls.results[0][1][0], good[0] * 2 + 1)
    calls.call(0, rows[:1])
    assert calls.errors(1) == {0: InvalidInput}
    assert len(steps(world)) == 1


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("subgraph", [0, 1, 2])
def test_bad_rows_fail_alone(stacked, subgraph):
    world = ready_world(stacked=stacked)
    calls = Calls(world)
    calls.call(subgraph, rows_of(subgraph, 20, row3=BAD, row4=BAD, row19=BAD))
    calls.call(subgraph, rows_of(subgraph, 5, seed=2))
    world.run()
    assert calls.check(0) == {3: GraphFailed, 4: GraphFailed, 19: GraphFailed}
    assert calls.check(1) == {}
    assert "a bad row" in calls.results[0][3].message
    assert world.readied == 1


def test_a_row_on_which_the_ranks_disagree_fails_alone():
    world = ready_world()
    calls = Calls(world)
    rows = [(np.full(2, value, np.float64),) for value in (1, 2, CONFUSING, 3)]
    calls.call(2, rows)
    world.run()
    assert calls.check(0) == {2: RanksDisagree}


def test_an_error_that_a_rank_makes_up_becomes_one_of_serving():
    world = ready_world()
    calls = Calls(world)
    calls.call(0, rows_of(0, 1))
    for rank in range(3):
        error = {"code": "invalid_configuration", "message": "odd"}
        reply = RankReply(group=GROUP, epoch=1, step=0, rank=rank)
        world.driver.replied(
            type(reply)(group=GROUP, epoch=1, step=0, rank=rank, error=_info(**error) if rank == 1 else None)
        )
    (result,) = calls.results[0]
    assert (type(result), result.message) == (GraphFailed, "rank 1: odd")


def _info(code, message):
    from rankmq.schemas.messages import ErrorInfo

    return ErrorInfo(code=code, message=message)


def test_a_row_that_is_too_large_for_the_broker_fails_alone():
    world = ready_world(max_message=8192)
    calls = Calls(world)
    rows = [(np.zeros(size, np.float64),) for size in (1, 600, 1, 2)]
    calls.call(2, rows)
    world.run()
    assert calls.check(0) == {1: LimitExceeded}
    assert "the broker takes 8192" in calls.results[0][1].message
    assert max(world.sizes) < 8192


@pytest.mark.parametrize("stacked", [True, False])
def test_many_rows_are_parted_where_one_message_would_be_too_large(stacked):
    world = ready_world(max_message=8192, stacked=stacked, window=1)
    calls = Calls(world)
    calls.call(2, [(np.full(100, value % 7, np.float64),) for value in range(60)])
    calls.call(1, rows_of(1, 400))
    world.run()
    assert [calls.check(number) for number in range(2)] == [{}, {}]
    assert max(world.sizes) < 8192
    assert len(steps(world)) < 60

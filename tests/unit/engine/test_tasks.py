"""The tasks of a step carry each input once to each rank, and are no larger than is said."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from rankmq.engine.agreement import plan_all, rank_plans
from rankmq.engine.batch import Batch, PendingCall
from rankmq.engine.conveyor import Flight
from rankmq.engine.pace import Pace
from rankmq.engine.servable import Subgraph
from rankmq.engine.tasks import largest_bytes, least_bytes, tasks_of
from rankmq.engine.topology import RANK_ALL
from rankmq.schemas import codec
from rankmq.schemas.errors import ModelError
from rankmq.workers.lockstep import LockstepGuard

from tests.unit.engine.graphs_in_memory import a_row, infos, servable
from tests.unit.engine.group_life import GROUP, graph


def step(subgraph, rows, *, stacked, ranks=3):
    """The tasks of a step, and what was put together for it."""
    plans = plan_all(
        servable(ranks, stacked=stacked), GROUP, dict.fromkeys(range(ranks), infos(ranks, stacked=stacked))
    )
    (plan,) = plans[subgraph]
    random = Random(4)
    made = [plan.check_row(a_row(subgraph, random), lenient=False) for _ in range(rows)]
    if subgraph == 2:
        made = [made[0]] * rows  # of one size
    call = PendingCall(subgraph, made, requests=("r1", "r2"))
    batch = Batch(subgraph, tuple((call, index) for index in range(rows)))
    scattered = plan.scatter(batch.rows)
    flight = Flight(batch, 0, batch.rows)
    return plan, batch, scattered, dict(tasks_of(flight, plan, scattered, group=GROUP, epoch=5, step=7, tag=RANK_ALL))


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("subgraph", [0, 1, 2])
@pytest.mark.parametrize("rows", [1, 5])
def test_every_rank_gets_a_whole_step(subgraph, rows, stacked):
    _, _, _, tasks = step(subgraph, rows, stacked=stacked)
    assert tasks.keys() == ({RANK_ALL, "rank.0", "rank.1", "rank.2"} if subgraph == 1 else {RANK_ALL})
    for rank in range(3):
        guard = LockstepGuard(GROUP, rank, 5)
        guard._next = 7
        found = [guard.accept(task) for tag, task in tasks.items() if tag in (RANK_ALL, f"rank.{rank}")]
        assert found[-1] is not None
        assert found[:-1] == [None] * (len(found) - 1)
        assert (found[-1].step, found[-1].work.rows, found[-1].work.stacked) == (7, rows, stacked)
        assert found[-1].requests == ("r1", "r2")


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("subgraph", [0, 1, 2])
@pytest.mark.parametrize("rows", [1, 40])
def test_sizes_are_known_before_anything_is_encoded(subgraph, rows, stacked):
    plan, batch, scattered, tasks = step(subgraph, rows, stacked=stacked)
    largest = max(len(codec.encode(task)) for task in tasks.values())
    assert largest_bytes(scattered) <= largest <= largest_bytes(scattered) + 4096 + 60 * rows
    assert 0 < least_bytes(plan, batch.rows) <= sum(len(codec.encode(task)) for task in tasks.values())


def test_ranks_that_hold_different_numbers_of_graphs():
    held = {0: (graph(), graph()), 1: (graph(),)}
    with pytest.raises(ModelError, match="different numbers of graphs: rank 0 2, rank 1 1"):
        plan_all(servable(2), GROUP, held)
    with pytest.raises(ModelError, match="the ranks hold 1 graphs, the configuration has 3 subgraphs"):
        plan_all(servable(2), GROUP, dict.fromkeys(range(2), (graph(),)))


def test_each_rank_is_told_what_to_send_back():
    served = servable(3)
    plans = plan_all(served, GROUP, dict.fromkeys(range(3), infos(3, stacked=True)))
    assert [[it.returns for it in rank_plans(served, plans, rank)] for rank in range(3)] == [
        [(), (0, 1), (0,)],
        [(), (0, 1), (0,)],
        [(0,), (0, 1), (0,)],
    ]
    assert {it.stacked for it in rank_plans(served, plans, 0)} == {True}


def test_each_rank_is_told_for_which_numbers_of_rows_to_compile():
    served = servable(3)
    model = replace(served.models[0], subgraphs=tuple(Subgraph(compiled_rows=rows) for rows in ((1, 8), (), (2,))))
    served = replace(served, models=(model,))
    plans = plan_all(served, GROUP, dict.fromkeys(range(3), infos(3, stacked=True)))
    for rank in range(3):
        assert [it.compiled_rows for it in rank_plans(served, plans, rank)] == [(1, 8), (), (2,)]


# --------------------------------------------------------------------------------------------------------------- pace


def test_where_nothing_is_known_as_many_rows_as_there_may_be():
    assert Pace(60.0).rows(0, None, 64) == 64


@pytest.mark.parametrize(("seconds", "rows"), [(0.001, 64), (0.1875, 64), (0.5, 24), (2.0, 6), (30.0, 1), (1000.0, 1)])
def test_a_step_takes_a_fifth_of_the_time_allowed(seconds, rows):
    pace = Pace(60.0)
    pace.ran(0, None, 10, 10 * seconds)
    assert pace.rows(0, None, 64) == rows
    assert pace.rows(1, None, 64) == 64


def test_what_was_not_done_in_time_is_slow_until_it_is_seen_to_be_quick():
    pace = Pace(60.0)
    pace.ran(0, None, 64, 0.01)
    pace.overdue(0, None, 64)
    assert pace.rows(0, None, 64) == 12
    pace.overdue(0, None, 12)
    assert pace.rows(0, None, 64) == 2
    for _ in range(30):
        pace.ran(0, None, 2, 0.01)
    assert pace.rows(0, None, 64) == 64

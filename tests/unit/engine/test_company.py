"""Given rows that wait for others to fill a step (`max_wait`), then nobody waits behind them, nor they too long."""

from __future__ import annotations

import numpy as np
import pytest
from rankmq.engine.life import Life
from rankmq.schemas.errors import DeadlineExceeded

from tests.unit.engine.edge import MODEL, Edge, outputs_of
from tests.unit.engine.graphs_in_memory import DEADLY
from tests.unit.engine.servable_files import load
from tests.unit.engine.simulation import Calls, ready_world, rows_of

LOOP = """
@register.register_method(output_names=["y"])
def grow(x, times):
    return register.repeat(x, times=times, at_most=20, feed={0: 0}, last=[0], slice_turns=4)

@register.register_method(output_names=["y"])
def once(x):
    return register.call_servable(x, subgraph=2)
"""


def subgraphs(world):
    """Of each step, in their order."""
    return [subgraph for subgraph, tag, _ in world.tasks if tag == "rank.all"]


def test_a_full_step_of_another_subgraph_does_not_wait_behind_them():
    world = ready_world(max_wait=0.25, batch_size=3)
    calls, began = Calls(world), world.clock.now
    calls.call(0, rows_of(0, 1))
    calls.call(2, [(np.zeros(2),)] * 2)
    assert not world.tasks
    calls.call(2, [(np.zeros(2),)])
    assert subgraphs(world) == [2]
    assert world.wakes == began + 0.25
    world.run()
    assert subgraphs(world) == [2, 0]
    assert world.clock.now == began + 0.25
    assert [calls.check(number) for number in range(3)] == [{}, {}, {}]


def test_rows_in_many_shapes_wait_each_for_their_like():
    world = ready_world(max_wait=0.25, batch_size=2)
    calls, began = Calls(world), world.clock.now
    for size in (1, 2, 3):
        calls.call(2, [(np.zeros(size),)])
        world.clock.now += 0.0625
    calls.call(2, [(np.zeros(3),)])
    assert [task.work.rows for _, _, task in world.tasks] == [2], "those of shape 3 fill a step"
    world.run()
    assert [task.work.rows for _, _, task in world.tasks] == [2, 1, 1]
    assert world.clock.now == began + 0.3125, "the second came so much later than the first"


def test_the_slices_of_a_loop_do_not_wait_behind_them(tmp_path):
    world = ready_world(methods=load(tmp_path, MODEL + LOOP).methods, max_wait=0.25, batch_size=3)
    edge, began = Edge(tmp_path, {"matmul": MODEL + LOOP}, world), world.clock.now
    waiting = edge.ask("once", {"x": np.zeros(2)})
    turning = edge.ask("grow", {"x": np.ones(3, np.float32), "times": np.int32(9)})
    while not turning.replies:
        next(it for it in world.choices() if it != world._wakes)()
    assert world.clock.now == began
    edge.run()
    assert outputs_of(turning) == [{"y": [2.0**10 - 1] * 3}]
    assert outputs_of(waiting) == [{"y": [1.0, 1.0]}]
    assert world.clock.now == began + 0.25
    edge.close()


@pytest.mark.parametrize(("seconds", "waits"), [(0.5, 0.25), (0.0, 0.0), (-1.0, 0.0), (60.0, 1.5), (None, 1.5)])
def test_they_wait_for_half_of_the_time_at_most_that_their_deadline_leaves(seconds, waits):
    world = ready_world(max_wait=1.5, batch_size=8)
    calls, began, life = Calls(world), world.clock.now, Life()
    life.deadline = None if seconds is None else began + seconds
    calls.call(0, rows_of(0, 1))
    calls.call(0, rows_of(0, 1), life=life)
    if waits:
        assert not world.tasks
        assert world.wakes == began + waits
        world._wakes()
    assert world.clock.now == began + waits
    assert subgraphs(world) == [0], "one step for both"
    world.run()
    assert calls.check(0) == calls.check(1) == {}


def test_whoever_is_given_up_hurries_nobody_any_more():
    world = ready_world(max_wait=1.5, batch_size=8)
    calls, began, life = Calls(world), world.clock.now, Life()
    life.deadline = began + 0.5
    calls.call(0, rows_of(0, 1))
    calls.call(0, rows_of(0, 1), life=life)
    life.end(DeadlineExceeded("given up"))
    world.run()
    assert world.clock.now == began + 1.5
    assert calls.check(0) == {}


def test_rows_that_run_by_themselves_wait_for_nobody():
    world = ready_world(max_wait=0.25, batch_size=8, max_attempts=2)
    calls, began = Calls(world), world.clock.now
    calls.call(0, rows_of(0, 1), alone=True)
    assert subgraphs(world) == [0]
    calls.call(0, rows_of(0, 1, row0=DEADLY), alone=True)
    world.run()
    assert world.clock.now == began
    assert calls.check(0) == {}
    assert list(calls.check(1)) == [0]


def test_a_request_is_served_whose_deadline_is_shorter_than_the_wait(tmp_path):
    world = ready_world(max_wait=1.5, batch_size=8)
    edge, began = Edge(tmp_path, {"matmul": MODEL + LOOP}, world), world.clock.now
    fate = edge.ask("once", {"x": np.zeros(2)}, headers={"rankmq-deadline": int(edge.wall() * 1000) + 500})
    edge.run()
    assert outputs_of(fate) == [{"y": [1.0, 1.0]}]
    assert world.clock.now == pytest.approx(began + 0.25, abs=0.01)
    edge.close()

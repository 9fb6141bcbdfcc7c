"""Given a servable with slots, then calls of the graphs that have the input `slot` take one, and no others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from rankmq.engine.driver import GroupDriver
from rankmq.engine.life import Life
from rankmq.schemas.errors import ConnectionLost
from rankmq.schemas.tensors import to_array

from tests.unit.engine.edge import Edge, error_of, outputs_of
from tests.unit.engine.servable_files import WORDS, load
from tests.unit.engine.simulation import World
from tests.unit.engine.test_sessions import at_rest, has_sent, inputs_of, turn, x_of

SERVABLE = (
    WORDS
    + """
distributed.declare_servable(rank_size=3, stage_size=1, with_batch_dim=True, slots=1)

@register.register_method(output_names=["y"])
def free(x):
    return register.call_servable(x, subgraph=2)

@register.register_method(output_names=["y"])
def kept(x):
    return register.call_servable(x, subgraph=3)

@register.register_method(output_names=["y"])
def turns(x):
    return register.repeat(x, subgraph=2, times=3, feed={0: 0}, last=0)

@register.register_method(output_names=["y"])
def kept_turns(x):
    return register.repeat(x, subgraph=3, times=3, feed={0: 0}, last=0)

free_, kept_ = PipelineServable("matmul", "free"), PipelineServable("matmul", "kept")

@register.register_pipeline(output_names=["y"])
def mixed(x):
    return free_.run(kept_.run(free_.run(x)))

@register.register_pipeline(output_names=["y"])
def free_twice(x):
    return free_.run(free_.run(x))
"""
)


@pytest.fixture
def early(tmp_path) -> Iterator[Edge]:
    """Before the ranks have come."""
    world = World(slots=1, kept=True, methods=load(tmp_path, SERVABLE).methods)
    found = Edge(tmp_path, {"matmul": SERVABLE}, world)
    yield found
    found.close()


@pytest.fixture
def edge(early) -> Edge:
    early.world.run()
    return early


def hold(driver: GroupDriver):
    """Takes the one slot, as a long loop would."""
    got = []
    driver.slots.acquire(got.append, Life())
    return got[0]


@pytest.mark.parametrize(("method", "more"), [("free", 1), ("turns", 3), ("free_twice", 2)])
def test_who_needs_no_slot_waits_for_none(edge, method, more):
    session = hold(edge.world.driver)
    fates = [edge.ask(method, x_of(number), x_of(number + 1)) for number in (1, 5)]
    edge.run()
    assert [outputs_of(it) for it in fates] == [[{"y": [n + more]}, {"y": [n + more + 1.0]}] for n in (1.0, 5.0)]
    edge.world.driver.slots.release(session)
    at_rest(edge.world)


def test_rows_that_need_no_slot_are_one_step_however_few_slots_there_are(edge):
    fate = edge.ask("free", *map(x_of, range(5)))
    edge.run()
    assert outputs_of(fate) == [{"y": [number + 1.0]} for number in range(5)]
    assert [len(rows) for rows in inputs_of(edge.world, 1)] in ([5], [1, 4])


@pytest.mark.parametrize(("method", "more"), [("kept", 1), ("kept_turns", 3), ("mixed", 3)])
def test_who_needs_a_slot_waits_for_one(edge, method, more):
    session = hold(edge.world.driver)
    fates = [edge.ask(method, x_of(number)) for number in (1, 5)]
    turn(edge, lambda: edge.world.driver.slots.waiting == 2)
    assert not any(fate.replies for fate in fates)
    edge.world.driver.slots.release(session)
    edge.run()
    assert [outputs_of(it) for it in fates] == [[{"y": [1.0 + more]}], [{"y": [5.0 + more]}]]
    at_rest(edge.world)


def test_before_the_group_has_formed_nobody_takes_one_who_needs_none(early):
    fates = [early.ask(method, x_of(1)) for method in ("kept", "free", "turns", "free_twice")]
    assert early.world.driver.slots.waiting == 0
    early.run()
    assert [outputs_of(it)[0]["y"] for it in fates] == [[2.0], [2.0], [4.0], [3.0]]
    at_rest(early.world)


def test_what_waits_for_the_group_to_form_is_told_when_there_will_be_none(early):
    fates = [early.ask(method, x_of(1)) for method in ("kept", "free")]
    early.world.driver.fail_all(ConnectionLost("gone"))
    early.run()
    assert {error_of(fate)[0] for fate in fates} == {"connection_lost"}


def test_a_pipeline_that_has_called_one_that_keeps_state_keeps_its_slot_until_it_ends(edge):
    driver, calls = edge.world.driver, []
    call = driver.call

    def watched(subgraph, rows, *args, **options):
        calls.append((subgraph, options["session"]))
        call(subgraph, rows, *args, **options)

    driver.call = watched
    fate = edge.ask("mixed", x_of(1))
    edge.run()
    assert outputs_of(fate) == [{"y": [4.0]}]
    (first, none), (second, session), (third, same) = calls
    assert (first, second, third) == (2, 3, 2)
    assert none is None
    assert session is same is not None
    at_rest(edge.world)


@pytest.mark.parametrize("sent", [2, 3])
def test_an_epoch_that_ends_under_it_has_it_run_again_from_its_inputs(edge, sent):
    world = edge.world
    fate = edge.ask("mixed", x_of(10))
    turn(edge, has_sent(world, 1, sent))
    world.dies(world.agents[1])
    edge.run()
    assert outputs_of(fate) == [{"y": [13.0]}]
    assert inputs_of(world, 2) == [[10], [0, 11], [12]], "slot 0 with the second"
    at_rest(world)


def test_an_epoch_that_ends_before_it_has_a_slot_costs_one_call_only(edge):
    world = edge.world
    fate = edge.ask("mixed", x_of(10))
    turn(edge, has_sent(world, 1, 1))
    world.dies(world.agents[1])
    edge.run()
    assert outputs_of(fate) == [{"y": [13.0]}]
    assert inputs_of(world, 2) == [[10], [0, 11], [12]]
    at_rest(world)


def test_where_no_graph_has_the_input_each_call_takes_a_slot(tmp_path):
    edge = Edge(tmp_path, {"matmul": SERVABLE.replace("subgraph=3", "subgraph=2")}, World(slots=1))
    edge.world.run()
    hold(edge.world.driver)
    edge.ask("free", x_of(1))
    assert edge.world.driver.slots.waiting == 1
    assert not edge.world.tasks
    edge.close()


def test_the_slot_goes_where_the_graph_has_it(edge):
    edge.ask("kept", x_of(7))
    edge.run()
    (columns,) = [task.inputs for _, _, task in edge.world.tasks]
    assert [to_array(tensor).tolist() for column in columns for tensor in column.tensors] == [[[7.0]], [0]]
    assert np.asarray(to_array(columns[1].tensors[0])).dtype == np.int32

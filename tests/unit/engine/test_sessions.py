"""Given instances that keep state on the ranks, when an epoch ends under them, each is run anew from its inputs."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rankmq.engine.group import GroupState
from rankmq.engine.life import Life
from rankmq.engine.sessions import InstanceSessions
from rankmq.engine.slots import Session
from rankmq.schemas.errors import ConnectionLost, SessionLost
from rankmq.schemas.tensors import to_array

from tests.unit.engine.edge import PATIENCE, Edge, Fate, error_of, outputs_of
from tests.unit.engine.graphs_in_memory import BAD, DEADLY
from tests.unit.engine.servable_files import WORDS
from tests.unit.engine.simulation import World, ready_world

SERVABLE = (
    WORDS
    + """
distributed.declare_servable(rank_size=3, stage_size=1, with_batch_dim=True, slots=2)

@register.register_method(output_names=["y"])
def once(x):
    y = register.call_servable(x, subgraph=2)
    return y

@register.register_method(output_names=["y"])
def two(x):
    y = register.call_servable(x, subgraph=2)
    z = register.call_servable(y, subgraph=2)
    return z

step = PipelineServable("matmul", "once")

@register.register_pipeline(output_names=["y"])
def three(x):
    return step.run(step.run(step.run(x)))

@register.register_pipeline(output_names=["y"])
def fails(x):
    step.run(x)
    raise ValueError("after its first call")
"""
)
CALLS = {"once": 1, "two": 2, "three": 3}


@contextmanager
def edge_with(tmp_path: Path, slots: int, **options: int) -> Iterator[Edge]:
    edge = Edge(tmp_path, {"matmul": SERVABLE}, ready_world(slots=slots), **options)
    try:
        yield edge
    finally:
        edge.close()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    with edge_with(tmp_path, 2) as found:
        yield found


def x_of(number: float) -> dict[str, np.ndarray]:
    return {"x": np.array([number], np.float64)}


def turn(edge: Edge, until: Callable[[], bool]) -> None:
    """Turns the loop, one thing at a time, until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not until():
        for rank in range(edge.world.ranks):
            edge.world.starts(rank)
        choices = edge.world.choices()
        if choices:
            choices[0]()
            continue
        try:
            edge.news.get(timeout=0.05)()
        except queue.Empty:
            assert time.monotonic() < deadline, "it does not come so far"


def has_sent(world: World, epoch: int, count: int) -> Callable[[], bool]:
    """Whether so many steps of an epoch were sent."""
    return lambda: len({task.step for _, _, task in world.tasks if task.epoch == epoch}) >= count


def inputs_of(world: World, epoch: int) -> list[list[float]]:
    """By step of an epoch, the numbers that its task carried."""
    found: dict[int, list[float]] = {}
    for _, _, task in world.tasks:
        if task.epoch == epoch:
            columns = [to_array(tensor) for column in task.inputs for tensor in column.tensors]
            found.setdefault(task.step, sorted(float(it) for array in columns for it in array.ravel()))
    return [found[step] for step in sorted(found)]


def at_rest(world: World) -> None:
    """No slot is held, and nobody waits for one."""
    slots = world.driver.slots
    assert (slots.held, slots.waiting) == (0, 0)
    given: list[Session | None] = []
    for _ in range(world.driver.servable.slots):
        slots.acquire(given.append, Life())
    assert sorted(it.slot for it in given if it is not None) == list(range(world.driver.servable.slots))
    for session in given:
        assert session is not None
        slots.release(session)


# ------------------------------------------------------------------------------------------------------ run anew


@pytest.mark.parametrize("method", ["two", "three"])
def test_what_the_ranks_lost_is_run_again_from_its_inputs(edge, method):
    world = edge.world
    fate = edge.ask(method, x_of(10))
    turn(edge, has_sent(world, 1, 2))
    world.dies(world.agents[1])
    edge.run()
    assert inputs_of(world, 1) == [[10], [11]]
    assert inputs_of(world, 2) == [[10 + call] for call in range(CALLS[method])]
    assert outputs_of(fate) == [{"y": [10.0 + CALLS[method]]}]
    at_rest(world)


def test_an_epoch_that_ends_between_two_calls_of_a_pipeline_is_noticed_at_the_next(edge):
    world = edge.world
    fate = edge.ask("three", x_of(5))
    turn(edge, lambda: has_sent(world, 1, 1)() and not world.driver.outstanding)  # its thread has yet to go on
    world.dies(world.agents[0])
    world.run()
    assert world.driver.group.epoch == 2
    edge.run()
    assert inputs_of(world, 2) == [[5], [6], [7]]
    assert outputs_of(fate) == [{"y": [8.0]}]
    at_rest(world)


def test_attempts_are_bounded(edge):
    """A row that takes the ranks down each time."""
    fate = edge.ask("two", x_of(DEADLY - 1))
    edge.run()
    code, text = error_of(fate)
    assert code == "attempts_exhausted"
    assert text.startswith("tried 3 times")
    edge.world.settle()
    sent = [
        numbers for epoch in range(1, edge.world.driver.group.epoch + 1) for numbers in inputs_of(edge.world, epoch)
    ]
    assert sent.count([DEADLY]) <= sent.count([DEADLY - 1]) <= 3
    assert len(fate.replies) == 1
    at_rest(edge.world)
    again = edge.ask("two", x_of(1))
    edge.run()
    assert outputs_of(again) == [{"y": [3.0]}]


def test_each_instance_has_attempts_of_its_own(edge):
    """The first instance was run under every lost epoch, the second came between them."""
    world = edge.world
    first = edge.ask("three", x_of(0))
    for epoch in (1, 2):
        turn(edge, has_sent(world, epoch, 1))
        if epoch == 2:
            second = edge.ask("three", x_of(100))
            turn(edge, lambda: world.driver.slots.held == 2)
        world.dies(world.agents[epoch])
        turn(edge, lambda epoch=epoch: world.driver.group.epoch > epoch)
    edge.run()
    assert outputs_of(first) == [{"y": [3.0]}]
    assert outputs_of(second) == [{"y": [103.0]}]
    at_rest(world)


def test_the_end_of_the_service_ends_those_that_wait(edge):
    world = edge.world
    fates = [edge.ask("two", x_of(number)) for number in range(4)]
    assert (world.driver.slots.held, world.driver.slots.waiting) == (2, 2)
    world.driver.fail_all(ConnectionLost("gone"))
    edge.run()
    for fate in fates:
        assert len(fate.replies) == 1
        assert error_of(fate)[0] in ("connection_lost", "group_unavailable")


# --------------------------------------------------------------------------------------------------------- slots


def test_an_instance_holds_one_slot_for_all_its_calls(edge):
    sessions = []
    call = edge.world.driver.call

    def watched(*args, **options):
        sessions.append(options["session"])
        call(*args, **options)

    edge.world.driver.call = watched
    edge.ask("three", x_of(1), x_of(2))
    edge.run()
    assert len(sessions) == 6
    assert len(set(sessions)) == 2
    assert {it.slot for it in sessions} == {0, 1}
    at_rest(edge.world)


@pytest.mark.parametrize(("method", "number"), [("two", BAD), ("two", BAD - 1), ("three", BAD - 2), ("fails", 1)])
def test_an_error_gives_the_slot_back(edge, method, number):
    fates = [edge.ask(method, x_of(number)) for _ in range(5)]  # more than there are slots
    edge.run()
    assert {error_of(fate)[0] for fate in fates} == {"stage_failed" if method == "fails" else "graph_failed"}
    at_rest(edge.world)


def test_a_refused_row_gives_the_slot_back(edge):
    fate = edge.ask("two", {"x": np.zeros((2, 2), np.float64)})
    edge.run()
    assert error_of(fate)[0] == "invalid_input"
    at_rest(edge.world)


def test_who_finds_no_slot_waits_in_order(tmp_path):
    with edge_with(tmp_path, 1) as edge:
        fates = [edge.ask("two", x_of(10 * number)) for number in range(4)]
        assert (edge.world.driver.slots.held, edge.world.driver.slots.waiting) == (1, 3)
        edge.run()
        assert inputs_of(edge.world, 1) == [[value] for number in range(4) for value in (10 * number, 10 * number + 1)]
        assert [outputs_of(fate) for fate in fates] == [[{"y": [10.0 * number + 2]}] for number in range(4)]
        at_rest(edge.world)


def test_before_the_first_epoch_everybody_waits(tmp_path):
    world = World(slots=2)
    edge = Edge(tmp_path, {"matmul": SERVABLE}, world)
    try:
        fates = [edge.ask("once", x_of(number)) for number in range(3)]
        assert (world.driver.slots.held, world.driver.status().waiting) == (0, 3)
        edge.run()
        assert [outputs_of(fate) for fate in fates] == [[{"y": [number + 1.0]}] for number in range(3)]
        at_rest(world)
    finally:
        edge.close()


def test_a_slot_that_comes_after_the_instance_has_ended_goes_back():
    world = ready_world(slots=1)
    driver, first, second, got = world.driver, InstanceSessions(), InstanceSessions(), []
    first.use(driver, got.append, Life())
    second.use(driver, got.append, Life())
    second.release()
    first.release()
    assert len(got) == 2
    at_rest(world)


def test_a_call_for_a_session_of_an_ended_epoch_reaches_no_rank():
    world = ready_world(slots=1)
    got: list[Session | None] = []
    world.driver.slots.acquire(got.append, Life())
    world.dies(world.agents[2])
    world.run()
    assert world.driver.group.state is GroupState.READY
    results: list[Sequence[object]] = []
    row = (np.array([1.0]),)
    world.driver.call(2, [row, row], results.append, lenient=False, requests=("r",), session=got[0])
    ((one, other),) = results
    assert isinstance(one, SessionLost)
    assert isinstance(other, SessionLost)
    assert not world.tasks


# ----------------------------------------------------------------------------------------------------- any order


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    slots=st.integers(1, 3),
    asked=st.lists(
        st.tuples(st.sampled_from(["once", "two"]), st.lists(st.integers(0, 14), min_size=1, max_size=3)), max_size=6
    ),
    kills=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2)), max_size=2),
    order=st.randoms(use_true_random=False),
)
def test_every_instance_has_one_right_answer(tmp_path, slots, asked, kills, order):
    """Fewer ranks are killed than attempts are allowed."""
    with edge_with(tmp_path, slots) as edge:
        world, fates = edge.world, list[Fate]()
        deaths = dict(kills)
        pending = list(asked)
        for turn_number in range(100_000):
            if turn_number in deaths and world.agents[deaths[turn_number]].alive:
                world.dies(world.agents[deaths[turn_number]], sent=order.random() < 0.5)
            if pending and order.random() < 0.2:
                method, numbers = pending.pop(0)
                fates.append(edge.ask(method, *map(x_of, numbers)))
            for rank in range(world.ranks):
                world.starts(rank)
            choices = world.choices()
            if choices:
                order.choice(choices)()
            elif not pending and turn_number > 60:
                break
            assert world.driver.slots.held <= slots
        edge.run()
        world.settle(order)  # the last word of a process may come after the word of its end: then its silence tells
        edge.run()
        for fate, (method, numbers) in zip(fates, asked, strict=True):
            assert fate.ends == 1
            ((publish, _),) = fate.replies
            failed = {index for index, it in enumerate(numbers) if it <= BAD < it + CALLS[method]}
            if publish.reply.error is not None:
                assert publish.reply.error.code == "graph_failed"
                assert len(failed) == len(numbers)
                continue
            assert {error.index: error.error.code for error in publish.reply.errors} == dict.fromkeys(
                failed, "graph_failed"
            )
            for index, outputs in enumerate(outputs_of(fate)):
                assert outputs == (None if index in failed else {"y": [float(numbers[index] + CALLS[method])]})
        at_rest(world)

"""Given many instances that wait for a slot, then who is given up or cannot be run leaves the line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.life import Life
from rankmq.engine.slots import Slots
from rankmq.engine.waiting_line import WaitingLine
from rankmq.schemas.errors import Cancelled, GroupUnavailable

from tests.unit.engine.edge import Edge, error_of, errors_of, outputs_of
from tests.unit.engine.simulation import World, ready_world
from tests.unit.engine.test_sessions import SERVABLE, at_rest, turn, x_of

MANY = 3000
"""More than calls may be nested, had each of them a frame."""
REASON = Cancelled("enough")


# ------------------------------------------------------------------------------------------------------------ the line


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 40))
def test_who_has_left_the_line_never_comes_and_the_others_come_in_order(leaves, taken):
    line, gone, lives = WaitingLine(), [], [Life() for _ in leaves]
    for number, life in enumerate(lives):
        line.add(number, life, lambda number=number: gone.append(number))
    found = [line.take() for _ in range(min(taken, len(line)))]
    for life, leave in zip(lives, leaves, strict=True):
        if leave:
            life.end(REASON)
    while line:
        found.append(line.take())
    assert gone == [number for number, leave in enumerate(leaves) if leave and number not in found]
    assert found == [number for number in range(len(leaves)) if number not in gone]
    with pytest.raises(IndexError):
        line.take()


def test_who_is_over_already_does_not_stand_in_line():
    line, gone, life = WaitingLine(), [], Life()
    life.end(REASON)
    line.add("a", life, lambda: gone.append("a"))
    assert (len(line), gone) == (0, ["a"])


def test_who_is_given_up_is_told_so_and_gets_no_slot():
    slots, given, life = Slots(1), [], Life()
    slots.began(1)
    slots.acquire(given.append, Life())
    slots.acquire(given.append, life)
    slots.acquire(given.append, Life())
    life.end(REASON)
    assert given[1:] == [None]
    assert slots.waiting == 1
    slots.release(given[0])
    assert given[2].slot == 0


def test_those_who_give_their_slot_back_at_once_are_served_one_after_the_other():
    slots, given = Slots(1), []

    def take(session):
        given.append(session)
        slots.release(session)

    for _ in range(MANY):
        slots.acquire(take, Life())
    slots.began(1)
    assert len(given) == MANY
    assert (slots.held, slots.waiting) == (0, 0)


# ------------------------------------------------------------------------------------------------------------ requests


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    edge = Edge(tmp_path, {"matmul": SERVABLE}, ready_world(slots=2), max_in_flight=2 * MANY)
    yield edge
    edge.close()


@pytest.mark.parametrize("ends", ["cancelled", "deadline_exceeded"])
def test_a_request_of_which_many_instances_wait_is_given_up(edge, ends):
    world = edge.world
    held = edge.ask("once", x_of(1))
    fate = edge.ask(
        "two", *[x_of(2)] * MANY, message_id="a", headers={"rankmq-deadline": int(1000 * edge.wall()) + 500}
    )
    other = edge.ask("two", x_of(3))
    assert world.driver.slots.waiting == MANY
    if ends == "cancelled":
        assert edge.service.cancel("a") == "cancelled"
    else:
        world.clock.now += 1.0
        edge.service.tick()
    assert error_of(fate)[0] == ends
    assert world.driver.slots.waiting <= 1
    edge.run()
    assert outputs_of(held) == [{"y": [2.0]}]
    assert outputs_of(other) == [{"y": [5.0]}]
    at_rest(world)


@pytest.mark.parametrize("waits", ["for a slot", "for the ranks"])
def test_requests_that_are_given_up_while_they_wait_leave_nothing_behind(tmp_path, waits):
    world = ready_world(slots=2) if waits == "for a slot" else World(slots=2)
    edge = Edge(tmp_path, {"matmul": SERVABLE}, world)
    held = edge.ask("once", x_of(1), x_of(1))
    fates = [edge.ask("once", x_of(2), message_id=str(number)) for number in range(20)]
    if waits == "for a slot":
        assert world.driver.slots.waiting == 20
    else:
        assert world.driver.status().waiting == 22
    for number in range(20):
        assert edge.service.cancel(str(number)) == "cancelled"
    assert {error_of(fate)[0] for fate in fates} == {"cancelled"}
    assert world.driver.slots.waiting == 0
    assert world.driver.status().waiting <= 2
    edge.run()
    assert outputs_of(held) == [{"y": [2.0]}] * 2
    at_rest(world)
    edge.close()


def test_rows_that_cannot_be_run_do_not_wait_for_a_slot(edge):
    """Neither behind those that hold them, nor after them."""
    held = edge.ask("two", x_of(1), x_of(1))
    odd = {"x": np.zeros((2, 2), np.float64)}
    fate = edge.ask("two", *[odd] * MANY)
    assert error_of(fate)[0] == "invalid_input"
    some = edge.ask("two", odd, x_of(2))
    assert edge.world.driver.slots.waiting == 1
    edge.run()
    assert errors_of(some) == {0: "invalid_input"}
    assert outputs_of(some)[1] == {"y": [4.0]}
    assert outputs_of(held) == [{"y": [3.0]}] * 2
    at_rest(edge.world)


def test_all_who_wait_are_told_when_there_will_be_no_slots(edge):
    fate = edge.ask("once", *[x_of(2)] * MANY)
    edge.world.driver.fail_all(GroupUnavailable("gone"))
    assert error_of(fate)[0] == "group_unavailable"
    assert (edge.world.driver.slots.held, edge.world.driver.slots.waiting) == (0, 0)


def later(edge: Edge, seconds: float) -> None:
    edge.world.clock.now += seconds
    edge.service.tick()


def test_what_a_request_may_take_does_not_count_the_wait_for_a_slot(tmp_path):
    edge = Edge(tmp_path, {"matmul": SERVABLE}, ready_world(slots=1))
    slots, got = edge.world.driver.slots, []
    slots.acquire(got.append, Life())
    patient = edge.ask("once", x_of(1), headers={"rankmq-run-ms": 2000})
    late = {"rankmq-run-ms": 2000, "rankmq-deadline": int(1000 * (edge.wall() + 5))}
    hurried = edge.ask("once", x_of(2), headers=late)
    for _ in range(6):
        later(edge, 0.8)
    assert not patient.replies
    assert not hurried.replies
    later(edge, 0.5)
    code, message = error_of(hurried)
    assert (code, message) == ("deadline_exceeded", "its deadline passed while it waited for a slot")
    # When it has its slot, then its time begins
    slots.release(got[0])
    later(edge, 1.9)
    assert not patient.replies
    later(edge, 0.2)
    assert error_of(patient) == ("deadline_exceeded", "its deadline passed before it was done")
    assert slots.waiting == 0
    edge.run()
    at_rest(edge.world)
    edge.close()


def test_past_what_a_request_may_take_the_instances_that_are_done_are_answered(tmp_path):
    edge = Edge(tmp_path, {"matmul": SERVABLE}, ready_world(slots=1))
    fate = edge.ask("once", *map(x_of, range(4)), headers={"rankmq-run-ms": 2000})
    turn(edge, lambda: edge.world.driver.slots.waiting == 1)
    assert not fate.replies
    later(edge, 2.1)
    assert outputs_of(fate) == [{"y": [1.0]}, {"y": [2.0]}, None, None]
    assert errors_of(fate) == {2: "deadline_exceeded", 3: "deadline_exceeded"}
    edge.run()
    assert len(fate.replies) == 1
    at_rest(edge.world)
    edge.close()

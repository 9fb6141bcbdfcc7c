"""Given an agent that holds a rank, when it registers again, then the epoch ends if it cannot follow it, else not."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.group import Ended, GroupState
from rankmq.schemas.messages import Form, Restart

from tests.unit.engine.group_life import (
    graph,
    heartbeat,
    new_group,
    of,
    pass_time,
    ready,
    ready_all,
    ready_group,
    register,
    register_all,
    sent,
)
from tests.unit.engine.simulation import World

BOUND = {"graphs": (graph(collectives=True),)}


def loading(**fields):
    """A group in its second epoch, whose ranks knew of the first when they registered."""
    group = new_group(3)
    register_all(group, last_epoch=1, **fields)
    assert (group.state, group.epoch) == (GroupState.LOADING, 2)
    return group


@pytest.mark.parametrize("fields", [{}, BOUND], ids=["free", "bound"])
def test_who_has_not_seen_the_form_that_is_on_its_way_to_its_queue_ends_nothing(fields):
    """As when its registration and the word of an orchestrator that takes the group up cross."""
    group = loading(**fields)
    for rank in (0, 1, 1, 2):
        assert group.registered(register(rank, last_epoch=1, **fields), 0.1) == []
    assert (group.state, group.epoch) == (GroupState.LOADING, 2)
    ready_all(group)
    assert group.state is GroupState.READY


def test_it_is_heard_of_all_the_same():
    group = loading()
    now, _ = pass_time(group, 0.0, 9.0, alive=(0, 2))
    group.registered(register(1, last_epoch=1), now)
    for rank in (0, 1, 2):
        group.ready(ready(rank, 2), now)
        group.heartbeat(heartbeat(rank, epoch=2), now)
    assert of(pass_time(group, now, 5.0, alive=(0, 2))[1], Ended) == []


@pytest.mark.parametrize(
    ("word", "why"),
    [
        (register(1, last_epoch=2), "it has seen the form, and cannot follow the epoch"),
        (register(1, last_epoch=3), "it knows a newer one"),
        (register(1, last_epoch=1, queue="another"), "the form went to a queue that is gone"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_who_will_not_get_ready_ends_the_epoch(word, why):
    group = loading()
    actions = group.registered(word, 0.1)
    assert of(actions, Ended) == [Ended(2, "rank 1 registered anew")], why
    assert {it.epoch for it in sent(actions, Form).values()} == {max(2, word.last_epoch) + 1}


def test_who_reconnected_while_processes_are_bound_to_each_other_has_them_all_start_anew():
    group = loading(**BOUND)
    actions = group.registered(register(1, last_epoch=1, queue="another", **BOUND), 0.1)
    assert sent(actions, Restart).keys() == {"rank.0", "rank.1", "rank.2"}


@pytest.mark.parametrize("last_epoch", [0, 1])
def test_who_was_ready_ends_the_epoch(last_epoch):
    group = ready_group(3)
    assert len(of(group.registered(register(1, last_epoch=last_epoch), 0.1), Ended)) == 1


def test_who_is_ready_while_others_load_ends_the_epoch():
    """It said so after it had seen the form: so this word is a later one."""
    group = loading()
    group.ready(ready(1, 2), 0.1)
    assert len(of(group.registered(register(1, last_epoch=1), 0.2), Ended)) == 1


# ------------------------------------------------------------------------------------------- with agents, in any order


@given(seed=st.integers(0, 2**32), heard=st.integers(0, 12), collectives=st.booleans())
def test_a_clean_start_takes_one_epoch(seed, heard, collectives):
    """The agents are there before the orchestrator's first word, or come after it, or while it is on its way."""
    world, random = World(ranks=3, collectives=collectives), Random(seed)
    late = random.sample(range(3), random.randint(0, 3))
    for rank in set(range(3)) - set(late):
        world.starts(rank)
    world.is_taken_up()
    for _ in range(heard):
        found = world.choices()
        if found:
            random.choice(found)()
    world.run(random)
    assert world.driver.group.state is GroupState.READY
    assert (world.driver.group.epoch, world.broken, world.deaths) == (1, [], 0)


@given(seed=st.integers(0, 2**32), steps=st.integers(0, 40), times=st.integers(1, 3))
def test_who_loses_its_connection_does_not_hold_up_the_group(seed, steps, times):
    """What was in its queue is lost: no time has to pass until the group knows."""
    world, random = World(ranks=3), Random(seed)
    for rank in range(3):
        world.starts(rank)
    world.is_taken_up()
    for _ in range(times):
        for _ in range(random.randint(0, steps)):
            found = world.choices()
            if found:
                random.choice(found)()
        random.choice(world.living()).reconnects(sent=random.random() < 0.5)
    world.run(random)
    assert world.driver.group.state is GroupState.READY
    assert world.deaths == 0

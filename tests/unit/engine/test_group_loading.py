"""Given a group that loads, when ranks fail to get ready, then it is tried again, in time and with an end."""

from __future__ import annotations

import itertools

from rankmq.engine.group import MAX_FORMATIONS, Began, Ended, GiveUp, GroupState
from rankmq.schemas.errors import GroupError, ModelError
from rankmq.schemas.messages import Form, Restart

from tests.unit.engine.group_life import (
    heartbeat,
    load_failed,
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


def test_a_group_that_was_never_ready_may_fail_to_load_a_few_times():
    group = new_group(2)
    register_all(group)
    for epoch in range(1, MAX_FORMATIONS):
        actions = group.load_failed(load_failed(1, epoch), 0.0)
        assert of(actions, Ended) == [Ended(epoch, "rank 1: cannot load")]
        assert sent(actions, Form)["rank.0"].epoch == epoch + 1
        assert not of(actions, GiveUp)

    actions = group.load_failed(load_failed(0, MAX_FORMATIONS), 0.0)

    (gave_up,) = of(actions, GiveUp)
    assert isinstance(gave_up.error, GroupError)
    assert "rank 0: cannot load" in gave_up.error.message
    assert not sent(actions, Form)
    assert group.ranks()[1].last_error == "cannot load"


def test_a_model_that_cannot_be_loaded_is_given_up_at_once():
    group = new_group(2)
    register_all(group)
    actions = group.load_failed(load_failed(1, 1, code="invalid_model"), 0.0)
    assert [type(it.error) for it in of(actions, GiveUp)] == [ModelError]
    assert not sent(actions, Form)


def test_all_ranks_fail_to_load_and_the_epoch_ends_once():
    group = new_group(3)
    register_all(group)
    group.lost(0, "gone", 0.0)
    assert group.state is GroupState.FORMING
    assert group.load_failed(load_failed(1, 1), 0.0) == []
    assert group.load_failed(load_failed(2, 1), 0.0) == []
    assert not of(group.registered(register(0, "again"), 0.0), GiveUp)
    assert group.epoch == 2


def test_a_group_that_has_served_is_never_given_up_and_never_in_haste():
    group = ready_group(2)
    now, forms = 0.0, []
    group.lost(0, "gone", now)
    group.registered(register(0), now)
    for _ in range(2000):
        now += 0.5
        actions = [*group.heartbeat(heartbeat(0), now), *group.heartbeat(heartbeat(1), now)]
        actions += group.load_failed(load_failed(0, group.epoch), now) + group.tick(now)
        assert not of(actions, GiveUp)
        if sent(actions, Form):
            forms.append(now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(forms)]
    assert 20 < len(forms) < 60
    assert pauses == sorted(pauses)
    assert max(pauses) < 35
    group.load_failed(load_failed(0, group.epoch), now)
    _, actions = pass_time(group, now, 40.0, alive=(0, 1))
    assert sent(actions, Form)  # it is tried again
    assert [it for it in ready_all(group, now) if isinstance(it, Began)]


def test_a_group_that_was_ready_in_between_is_formed_again_at_once():
    group = ready_group(2)
    now = 0.0
    for _ in range(2):
        group.broken("out of step", now)
        for _ in range(3):
            group.load_failed(load_failed(0, group.epoch), now)
        assert group.state is GroupState.FORMING
        now, actions = pass_time(group, now, 1.5, alive=(0, 1))
        assert sent(actions, Form)
        assert of(ready_all(group, now), Began)
    group.broken("out of step", now)
    assert sent(group.load_failed(load_failed(0, group.epoch), now), Form).keys() == {"rank.0", "rank.1"}


def test_a_model_that_cannot_be_loaded_any_more_is_not_given_up():
    group = ready_group(2)
    group.broken("out of step", 1.0)
    actions = group.load_failed(load_failed(1, 2, code="invalid_model"), 1.0)
    assert not of(actions, GiveUp)
    assert sent(actions, Form)["rank.0"].epoch == 3


def test_ranks_that_do_not_get_ready_in_time_are_started_anew():
    group = new_group(3, load_seconds=20.0)
    register_all(group)
    group.ready(ready(1, 1), 0.0)
    now, actions = pass_time(group, 0.0, 19.0, alive=(0, 1, 2))
    assert actions == []
    now, actions = pass_time(group, now, 2.0, alive=(0, 1, 2))
    assert sent(actions, Restart).keys() == {"rank.0", "rank.2"}
    assert len(of(actions, Ended)) == 1
    assert group.missing == (0, 2)


def test_who_registers_twice_at_the_start_does_no_harm():
    """Agents that wait for an orchestrator register by themselves and once more when they are welcomed."""
    group = new_group(8)
    register_all(group)
    for rank in range(8):
        assert group.registered(register(rank), 0.1) == []
    assert group.epoch == 1
    assert [it.restarts for it in group.ranks()] == [0] * 8
    assert ready_all(group)[-1] == Began(1)


def test_who_reconnects_one_after_the_other_does_no_harm():
    """Each has lost its form; that is no failure to load, however many there are."""
    group = new_group(8)
    register_all(group)
    for rank in range(8):
        actions = group.registered(register(rank, queue="another"), 0.1)
        assert not of(actions, GiveUp)
        assert len(sent(actions, Form)) == 8
    assert group.epoch == 9
    assert [it.restarts for it in group.ranks()] == [0] * 8
    assert ready_all(group)[-1] == Began(9)


def test_a_rank_that_compiles_may_be_silent_unless_there_is_another_to_take_its_place():
    for heir in (False, True):
        group = new_group(3)
        register_all(group)
        if heir:
            group.registered(register(1, "heir"), 0.0)
        _, actions = pass_time(group, 0.0, 60.0)
        assert bool(actions) == heir
        if heir:
            assert len(of(actions, Ended)) == 1
            assert sent(actions, Form)["rank.1"].agent == "heir"

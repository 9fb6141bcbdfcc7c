"""Given a rank that claims what it was never given, then it is not believed, told once, and comes back by itself."""

from __future__ import annotations

import logging

import pytest
from rankmq.engine.group import Ended, GroupState
from rankmq.schemas.errors import GroupError
from rankmq.schemas.messages import Form, Refused, Welcome

from tests.unit.engine.group_life import heartbeat, of, pass_time, ready_group, register, sent

WINDOW = 4


def served_to(step: int):
    """A group whose ranks have all answered this step."""
    group = ready_group(3, window=WINDOW)
    for rank in range(3):
        group.progressed(rank, step, 0.0)
    return group


@pytest.mark.parametrize("claim", [{"epoch": 2}, {"epoch": 10**9}, {"step": 10 + WINDOW + 1}, {"step": 10**9}])
def test_a_heartbeat_from_the_future_is_no_sign_of_life(claim, caplog):
    group, now, actions = served_to(10), 0.0, []
    with caplog.at_level(logging.WARNING):
        for _ in range(24):
            now, told = pass_time(group, now, 0.5, alive=(0, 2))
            actions += told + group.heartbeat(heartbeat(1, **claim), now)
    lines = [it.message for it in caplog.records]
    assert len(lines) == 1
    assert "rank 1 of matmul.v1.g0" in lines[0]
    assert str(next(iter(claim.values()))) in lines[0]
    assert len(of(actions, Ended)) == 1
    assert "silent" in of(actions, Ended)[0].reason
    assert sent(actions[-2:], Welcome)["rank.1"].agent == "a1"
    # It registers, and says what it knows: the next epoch is after that.
    epoch = claim.get("epoch", 1)
    assert sent(group.registered(register(1, last_epoch=epoch), now), Form)["rank.1"].epoch == max(1, epoch) + 1


@pytest.mark.parametrize("claim", [{}, {"step": 10}, {"step": 10 + WINDOW}, {"step": 3}, {"epoch": 0, "step": 10**6}])
def test_what_a_rank_can_have_done_is_believed(claim, caplog):
    """A heartbeat may overtake the replies to as many steps as the window has."""
    group = served_to(10)
    _, actions = pass_time(group, 0.0, 9.0, alive=(0, 2))
    assert group.heartbeat(heartbeat(1, **claim), 9.0) == []
    _, more = pass_time(group, 9.0, 9.0, alive=(0, 2))
    assert (actions, more, caplog.records) == ([], [], [])
    assert group.state is GroupState.READY


def test_the_steps_of_an_epoch_that_is_over_are_no_future():
    """A rank that registered anew says where it was, until the next epoch forms."""
    group = served_to(500)
    group.lost(2, "gone", 0.0)
    group.registered(register(1, last_epoch=1), 0.0)
    now = 0.0
    for _ in range(30):
        now += 0.5
        assert group.heartbeat(heartbeat(1, step=500), now) == []
        group.heartbeat(heartbeat(0, step=500), now)
        group.tick(now)
    assert group.missing == (2,)


def test_no_agent_can_use_up_the_numbers_of_epochs():
    group = ready_group(3)
    group.lost(1, "gone", 0.0)
    refused = sent(group.registered(register(1, last_epoch=2**60), 1.0), Refused)["rank.1"]
    assert refused.error.code == GroupError.code
    assert refused.error.message == f"rank 1 of matmul.v1.g0 says that there was an epoch {2**60}"
    assert sent(group.registered(register(1, last_epoch=2**50), 1.0), Form)["rank.1"].epoch == 2**50 + 1

"""Given processes that were part of an epoch, when they register for another, those that cannot join start anew."""

import pytest
from rankmq.engine.group import GroupState
from rankmq.schemas.messages import Form, Restart

from tests.unit.engine.group_life import graph, new_group, ready_all, ready_group, register, register_all, sent

COLLECTIVE = {"graphs": (graph(collectives=True),)}


@pytest.mark.parametrize("rules", [{"communication": "mccl"}, {"communication": "hccl"}, {}])
def test_a_new_orchestrator_has_the_ranks_of_the_last_start_anew(rules):
    """They have joined MindSpore's own communication, which they can do only once: loading would fail on each."""
    group = new_group(**rules)
    actions = register_all(group, last_epoch=4, **COLLECTIVE)
    assert set(sent(actions, Restart)) == {"rank.0", "rank.1", "rank.2"}
    assert not sent(actions, Form)
    assert (group.state, group.missing) == (GroupState.FORMING, (0, 1, 2))
    fresh = [action for rank in range(3) for action in group.registered(register(rank, f"b{rank}", **COLLECTIVE), 1.0)]
    assert set(sent(fresh, Form)) == {"rank.0", "rank.1", "rank.2"}
    assert group.epoch == 5  # what the old ones knew is not forgotten


def test_only_those_that_have_been_part_of_an_epoch_start_anew():
    group = new_group()
    for rank in (0, 2):
        assert not group.registered(register(rank, **COLLECTIVE), 0.0)
    actions = group.registered(register(1, last_epoch=1, **COLLECTIVE), 0.0)
    assert set(sent(actions, Restart)) == {"rank.1"}
    assert group.missing == (1,)
    assert sent(group.registered(register(1, "b1", **COLLECTIVE), 1.0), Form)


def test_one_that_comes_back_when_its_group_has_formed_without_it():
    """As when its connection was silent for long: it was not reached by the word that all had to start anew."""
    group = ready_group(fields=COLLECTIVE)
    group.lost(2, "silent", 1.0)
    actions = group.registered(register(2, last_epoch=1, **COLLECTIVE), 2.0)
    assert set(sent(actions, Restart)) == {"rank.2"}
    assert 2 in group.missing


@pytest.mark.parametrize("communication", ["shm", "none"])
def test_where_processes_can_join_again_they_do(communication):
    group = new_group(communication=communication)
    actions = register_all(group, last_epoch=4)
    assert set(sent(actions, Form)) == {"rank.0", "rank.1", "rank.2"}
    assert not sent(actions, Restart)
    ready_all(group)
    assert group.state is GroupState.READY

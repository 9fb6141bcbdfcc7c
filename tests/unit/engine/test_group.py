"""Given a group that forms, when agents ask for its ranks, then each rank has one holder, and the group loads."""

from __future__ import annotations

import pytest
from rankmq.engine.group import Began, Ended, GiveUp, GroupState, Send
from rankmq.engine.topology import RANK_ALL
from rankmq.schemas import codec
from rankmq.schemas.errors import AlreadyRunning, GroupError, ModelError
from rankmq.schemas.messages import Drain, Form, Refused, Restart, Welcome

from tests.unit.engine.group_life import (
    FOREIGN,
    GROUP,
    exited,
    graph,
    heartbeat,
    leave,
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

ALL = {"rank.0", "rank.1", "rank.2"}


COLLECTIVE = {"graphs": (graph(collectives=True),)}


# ---------------------------------------------------------------------------------------------------------- forming


def test_it_forms_when_the_last_rank_registers_and_begins_when_the_last_is_ready():
    group = new_group(3, window=7, heartbeat_seconds=1.5, rank_table={"version": "1.0"})
    assert group.registered(register(2), 0.0) == group.registered(register(0), 0.0) == []
    assert group.missing == (1,)
    assert group.forming().missing == (1,)

    forms = sent(group.registered(register(1), 0.0), Form)

    assert forms.keys() == ALL
    assert [forms[f"rank.{rank}"].rank for rank in range(3)] == [0, 1, 2]
    form = forms["rank.1"]
    assert (form.group, form.agent, form.epoch, form.results) == (GROUP, "a1", 1, "rankmq.results.matmul.v1.g0")
    assert (form.window, form.heartbeat_seconds, form.rank_table) == (7, 1.5, {"version": "1.0"})
    assert (form.communication, form.scheduler) == ("none", "")
    assert group.state is GroupState.LOADING
    assert group.ready(ready(0, 1), 1.0) == group.ready(ready(2, 1), 1.0) == []
    assert group.ready(ready(1, 1), 1.0) == [Began(1)]
    assert group.state is GroupState.READY
    assert group.forming() is None


def test_everything_that_it_sends_can_be_encoded():
    group = new_group(2, heartbeat_seconds=1.0, heartbeats_missed=2)
    actions = register_all(group) + ready_all(group) + group.registered(register(9), 0.0)
    actions += group.leaving(leave(0), 0.0) + group.drained(0.0) + group.stuck([1], "overdue", 0.0)
    actions += group.heartbeat(heartbeat(0), 0.0) + group.heartbeat(heartbeat(0), 1.0)
    messages = [action.message for action in actions if isinstance(action, Send)]

    assert {type(message) for message in messages} == {Form, Refused, Drain, Restart, Welcome}
    for message in messages:
        assert codec.decode_to_agent(codec.encode(message)) == message


def test_a_ready_of_another_epoch_or_agent_or_state_counts_nothing():
    group = new_group(2)
    group.registered(register(0), 0.0)
    assert group.ready(ready(0, 0), 0.0) == []
    group.registered(register(1), 0.0)
    group.ready(ready(0, 1), 0.0)
    for wrong in (ready(1, 0), ready(1, 2), ready(1, 1, "somebody"), ready(5, 1), ready(0, 1)):
        assert group.ready(wrong, 0.0) == []
    assert group.state is GroupState.LOADING
    assert group.ready(ready(1, 1), 0.0) == [Began(1)]
    assert group.ready(ready(1, 1), 0.0) == []


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (register(0, group=FOREIGN), "this is group matmul.v1.g0, not other.v1.g0"),
        (register(3), "rank 3 is not one of the 3 ranks"),
        (register(10**9), "is not one of"),
    ],
)
def test_who_does_not_belong_is_refused(message, match):
    group = new_group(3)
    refused = sent(group.registered(message, 0.0), Refused)

    assert refused.keys() == {f"rank.{message.rank}"}
    (refused,) = refused.values()
    assert (refused.agent, refused.error.code) == (message.agent, GroupError.code)
    assert match in refused.error.message
    assert group.missing == (0, 1, 2)


def test_ranks_that_do_not_fit_together_are_sent_away_and_the_group_is_given_up():
    group = new_group(2)
    group.registered(register(0), 0.0)

    actions = group.registered(register(1, graphs=(graph(digest="e"),)), 0.0)

    assert sent(actions, Refused)[RANK_ALL].agent == "*"
    assert [type(it.error) for it in of(actions, GiveUp)] == [ModelError]
    assert group.state is GroupState.FORMING
    assert group.missing == (0, 1)
    assert group.tick(0.5) == []  # said once
    # ... and when somebody has put it right
    assert sent(register_all(group, 1.0), Form).keys() == {"rank.0", "rank.1"}


def test_a_second_holder_is_refused_once_the_first_is_heard_of():
    group = ready_group(3)
    assert group.registered(register(1, "usurper", pid=9), 1.0) == []
    assert group.state is GroupState.READY
    assert group.heartbeat(heartbeat(1), 1.1) == []  # may have been under way

    refused = sent(group.heartbeat(heartbeat(1), 3.1), Refused)["rank.1"]

    assert (refused.agent, refused.error.code) == ("usurper", AlreadyRunning.code)
    assert "pid 1001 on here" in refused.error.message
    assert group.holds(1, "a1")
    assert group.heartbeat(heartbeat(1), 5.1) == []


def test_of_several_that_wait_for_a_rank_the_first_inherits():
    """Any of them may be dead already, and the word of it on its way."""
    group = ready_group(3)
    for agent in ("second", "third", "second"):
        assert group.registered(register(1, agent), 1.0) == []
    group.exited(exited(1), 4.6)
    assert group.holds(1, "second")
    assert sent(group.heartbeat(heartbeat(1, "second"), 4.7), Refused)["rank.1"].agent == "third"


def test_all_that_wait_for_a_rank_are_refused_by_its_holder():
    group = ready_group(3)
    group.registered(register(1, "second"), 1.0)
    group.registered(register(1, "third"), 2.0)
    group.registered(register(1, "fourth"), 4.0)
    actions = group.heartbeat(heartbeat(1), 4.5)
    assert [it.message.agent for it in actions] == ["second", "third"]
    assert [it.message.agent for it in group.heartbeat(heartbeat(1), 6.5)] == ["fourth"]


def test_who_waits_does_not_wait_longer_for_asking_again():
    group = ready_group(3)
    for moment in (1.0, 2.0, 3.0):
        group.registered(register(1, "usurper"), moment)
    assert sent(group.heartbeat(heartbeat(1), 3.1), Refused).keys() == {"rank.1"}


def test_a_rank_that_was_started_again_takes_its_place_however_late_the_word_of_its_death():
    group = ready_group(3)
    assert group.registered(register(1, "heir", pid=77), 1.0) == []

    actions = group.exited(exited(1), 1.2)

    assert [type(it) for it in actions] == [Ended, Send, Send, Send]
    assert sent(actions, Form)["rank.1"].agent == "heir"
    assert group.epoch == 2
    assert group.ranks()[1].restarts == 1


def test_the_heir_of_a_silent_rank_takes_its_place():
    group = ready_group(3)
    now, _ = pass_time(group, 0.0, 8.0, alive=(0, 2))
    assert group.registered(register(1, "heir"), now) == []
    now, actions = pass_time(group, now, 3.0, alive=(0, 2))
    assert [it.epoch for it in of(actions, Ended)] == [1]
    assert sent(actions, Form)["rank.1"].agent == "heir"


def test_who_is_silent_is_replaced_at_once():
    group = ready_group(3)
    now, _ = pass_time(group, 0.0, 10.0, alive=(0, 2))
    actions = group.registered(register(1, "heir"), now + 0.4)
    assert [it.epoch for it in of(actions, Ended)] == [1]
    assert sent(actions, Form).keys() == ALL


def test_of_two_heirs_of_a_silent_rank_the_one_that_comes_in_time_gets_it_and_the_other_is_told():
    group = ready_group(3)
    now, _ = pass_time(group, 0.0, 10.0, alive=(0, 2))
    group.registered(register(1, "second"), now)
    assert sent(group.registered(register(1, "third"), now + 0.4), Form)["rank.1"].agent == "third"
    assert sent(group.heartbeat(heartbeat(1, "third"), now + 3.0), Refused)["rank.1"].agent == "second"
    assert group.heartbeat(heartbeat(1, "third"), now + 5.0) == []


def test_an_heir_that_asks_again_of_a_silent_rank_is_its_holder_and_not_its_own_heir():
    group = ready_group(3)
    now, _ = pass_time(group, 0.0, 10.0, alive=(0, 2))
    group.registered(register(1, "heir"), now)
    group.registered(register(1, "heir"), now + 0.4)
    assert group.holds(1, "heir")
    assert group.heartbeat(heartbeat(1, "heir"), now + 5.0) == []


def test_the_heir_of_a_stuck_rank_takes_its_place_and_is_not_the_one_that_starts_anew():
    group = ready_group(3)
    group.registered(register(1, "heir"), 1.0)
    actions = group.stuck([1], "step 3 is overdue", 1.0)
    assert {tag: it.agent for tag, it in sent(actions, Restart).items()} == {"rank.1": "a1"}
    assert sent(actions, Form)["rank.1"].agent == "heir"
    assert group.missing == ()


@pytest.mark.parametrize("silent", [False, True])
def test_the_heir_in_a_group_whose_processes_end_together_is_not_one_of_them(silent):
    group = ready_group(3, fields=COLLECTIVE)
    now = 0.0
    if silent:
        now, _ = pass_time(group, now, 10.0, alive=(0, 2))
        actions = group.registered(register(1, "heir", **COLLECTIVE), now + 0.4)
    else:
        assert group.registered(register(1, "heir", **COLLECTIVE), now) == []
        actions = group.exited(exited(1), now)
    assert {it.agent for it in sent(actions, Restart).values()} == {"a0", "a1", "a2"}
    assert group.holds(1, "heir")
    assert group.missing == (0, 2)


def test_an_heir_that_dies_or_leaves_does_not_inherit():
    for word in ("exit", "leave"):
        group = ready_group(3)
        group.registered(register(1, "heir", pid=77), 1.0)
        if word == "exit":
            assert group.exited(exited(1, 77), 1.0) == []
        else:
            assert sent(group.leaving(leave(1, "heir"), 1.0), Drain).keys() == {"rank.1"}
        assert group.state is GroupState.READY
        group.exited(exited(1), 2.0)
        assert group.missing == (1,)


def test_an_exit_of_another_process_is_no_loss():
    group = ready_group(3)
    assert group.exited(exited(1, pid=4711), 1.0) == []
    assert group.exited(exited(9), 1.0) == []
    assert group.state is GroupState.READY


def test_other_model_files_than_it_has_served_with_are_refused():
    group = ready_group(3)
    group.lost(1, "gone", 1.0)

    refused = sent(group.registered(register(1, "new", graphs=(graph(digest="e"),)), 2.0), Refused)["rank.1"]

    assert refused.error.code == ModelError.code
    assert group.missing == (1,)
    assert sent(group.registered(register(1, "right"), 3.0), Form).keys() == ALL


def test_epochs_go_on_from_the_newest_that_an_agent_knows():
    group = new_group(3)
    group.registered(register(0, last_epoch=41), 0.0)
    group.registered(register(1, last_epoch=7), 0.0)
    assert sent(group.registered(register(2), 0.0), Form)["rank.0"].epoch == 42

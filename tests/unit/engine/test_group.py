"""Given a group in some state, when something happens to it, then this is to be done."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rankmq.engine.group import MAX_FORMATIONS, Began, Ended, GiveUp, Group, GroupRules, GroupState, Send
from rankmq.engine.topology import RANK_ALL
from rankmq.schemas import codec
from rankmq.schemas.errors import AlreadyRunning, GroupError, ModelError
from rankmq.schemas.messages import Drain, Form, Refused, Restart, Welcome

from tests.unit.engine.group_life import (
    FOREIGN,
    GROUP,
    agree,
    exited,
    graph,
    heartbeat,
    leave,
    load_failed,
    new_group,
    of,
    ready,
    ready_all,
    ready_group,
    register,
    register_all,
    sent,
)

ALL = {"rank.0", "rank.1", "rank.2"}
COLLECTIVE = {"graphs": (graph(collectives=True),)}


def pass_time(group: Group, now: float, seconds: float, *, alive: tuple[int, ...] = ()) -> tuple[float, list]:
    """Ticks twice a second, with a heartbeat of the living ranks at each."""
    actions = []
    for _ in range(int(seconds * 2)):
        now += 0.5
        for rank in alive:
            actions += group.heartbeat(heartbeat(rank), now)
        actions += group.tick(now)
    return now, actions


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


def test_of_two_that_wait_for_a_rank_the_older_is_refused():
    group = ready_group(3)
    group.registered(register(1, "second"), 1.0)
    assert group.registered(register(1, "second"), 4.0) == []  # again the same
    refused = sent(group.registered(register(1, "third"), 4.0), Refused)["rank.1"]
    assert refused.agent == "second"
    assert group.heartbeat(heartbeat(1), 4.5) == []
    group.exited(exited(1), 4.6)
    assert group.holds(1, "third")


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


def test_an_heir_that_asks_again_of_a_silent_rank_is_its_holder_and_not_its_own_heir():
    group = ready_group(3)
    now, _ = pass_time(group, 0.0, 10.0, alive=(0, 2))
    group.registered(register(1, "heir"), now)
    group.registered(register(1, "heir"), now + 0.4)
    assert group.holds(1, "heir")
    assert group.heartbeat(heartbeat(1, "heir"), now + 5.0) == []


def test_the_heir_of_a_stuck_rank_starts_anew_with_it():
    group = ready_group(3)
    group.registered(register(1, "heir"), 1.0)
    actions = group.stuck([1], "step 3 is overdue", 1.0)
    assert sent(actions, Restart).keys() == {"rank.1"}  # which reaches both
    assert group.missing == (1,)


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


# ------------------------------------------------------------------------------------------------------------- loading


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
    for moment in (1.0, 2.0):
        for _ in range(4):
            group.broken("out of step", moment)
            for _ in range(3):
                group.load_failed(load_failed(0, group.epoch), moment)
        moment += 1.5
        assert sent(group.tick(moment), Form)
        assert of(ready_all(group, moment), Began)
    group.broken("out of step", 4.0)
    assert sent(group.load_failed(load_failed(0, group.epoch), 4.0), Form).keys() == {"rank.0", "rank.1"}


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
    forms = 0
    for rank in range(8):
        actions = group.registered(register(rank), 0.1)
        assert not of(actions, GiveUp)
        forms += len(sent(actions, Form))
    assert forms == 64
    assert group.epoch == 9
    assert [it.restarts for it in group.ranks()] == [0] * 8
    assert ready_all(group)[-1] == Began(9)


# ---------------------------------------------------------------------------------------------------------------- ready


@pytest.mark.parametrize("sign", ["lost", "exited", "registered anew", "broken", "stuck"])
def test_whatever_ends_the_epoch_ends_it_once(sign):
    group = ready_group(3)
    actions = {
        "lost": lambda: group.lost(1, "gone", 1.0),
        "exited": lambda: group.exited(exited(1), 1.0),
        "registered anew": lambda: group.registered(register(1), 1.0),
        "broken": lambda: group.broken("out of step", 1.0),
        "stuck": lambda: group.stuck([1], "step 3 is overdue", 1.0),
    }[sign]()

    assert len(of(actions, Ended)) == 1
    assert not any(it.state == "ready" for it in group.ranks())
    whole = sign in ("registered anew", "broken")
    assert group.state is (GroupState.LOADING if whole else GroupState.FORMING)
    assert len(sent(actions, Form)) == (3 if whole else 0)
    assert sent(actions, Restart).keys() == ({"rank.1"} if sign == "stuck" else set())


def test_several_stuck_ranks_are_lost_together():
    group = ready_group(3)
    actions = group.stuck([0, 2, 7], "step 3 is overdue", 1.0)
    assert sent(actions, Restart).keys() == {"rank.0", "rank.2"}
    assert len(of(actions, Ended)) == 1
    assert group.missing == (0, 2)
    assert [it.last_error for it in group.ranks()] == ["step 3 is overdue", "", "step 3 is overdue"]


def test_what_happens_to_who_is_not_there_is_nothing():
    group = new_group(2)
    group.registered(register(0), 0.0)
    assert group.lost(1, "gone", 0.0) == group.lost(99, "gone", 0.0) == []
    assert group.stuck([1], "stuck", 0.0) == []
    assert group.broken("out of step", 0.0) == []
    assert group.load_failed(load_failed(1, 0), 0.0) == []
    group.progressed(1, 5, 0.0)
    assert group.drained(0.0) == []
    assert group.lost(0, "gone", 0.0) == []
    assert group.state is GroupState.FORMING
    assert group.reason == "rank 0 lost: gone"
    assert [it.state for it in group.ranks()] == ["lost", "missing"]


def test_a_rank_that_is_silent_is_lost():
    group = ready_group(3, heartbeat_seconds=1.0, heartbeats_missed=3)
    now, actions = pass_time(group, 0.0, 3.0, alive=(0, 2))
    assert actions == []
    now, actions = pass_time(group, now, 1.0, alive=(0, 2))
    assert of(actions, Ended) == [Ended(1, "rank 1 lost: silent for 3.5 s")]


def test_several_silent_ranks_are_lost_together():
    group = ready_group(3)
    now, _ = pass_time(group, 0.0, 10.0, alive=(1,))
    actions = group.tick(now + 0.5)
    assert group.missing == (0, 2)
    assert len(of(actions, Ended)) == 1


def test_work_is_as_good_as_a_heartbeat():
    group = ready_group(1, heartbeat_seconds=1.0, heartbeats_missed=2)
    now = 0.0
    for step in range(40):
        now += 0.5
        group.progressed(0, step, now)
        assert group.tick(now) == []
    assert group.ranks()[0].step == 39


def test_when_the_orchestrator_itself_stood_still_nobody_is_lost():
    group = ready_group(3, heartbeat_seconds=1.0, heartbeats_missed=3)
    assert group.tick(3600.0) == []
    now, actions = pass_time(group, 3600.0, 3.0)
    assert actions == []
    _, actions = pass_time(group, now, 1.0)
    assert len(of(actions, Ended)) == 1


def test_time_in_which_the_orchestrator_stood_still_is_not_time_to_load_or_to_register_in():
    group = new_group(2, wait_seconds=10.0, load_seconds=10.0)
    assert group.tick(3600.0) == []
    register_all(group, 3600.0)
    assert group.tick(7200.0) == []
    now, actions = pass_time(group, 7200.0, 9.5, alive=(0, 1))
    assert actions == []
    assert of(pass_time(group, now, 1.0, alive=(0, 1))[1], Ended)


def test_who_lives_and_was_taken_for_dead_is_asked_to_register():
    group = ready_group(3)
    group.lost(1, "silent", 1.0)
    assert group.heartbeat(heartbeat(1), 2.0) == []  # its registration may be under way
    assert sent(group.heartbeat(heartbeat(1), 4.0), Welcome).keys() == {"rank.1"}
    assert sent(group.registered(register(1), 4.1), Form).keys() == ALL
    assert group.heartbeat(heartbeat(1), 6.0) == []


def test_nobody_else_is_asked_to_register():
    group = ready_group(3)
    for stranger in (heartbeat(1, "usurper"), heartbeat(7), heartbeat(7)):
        assert group.heartbeat(stranger, 1.0) == []
        assert group.heartbeat(stranger, 2.0) == []
    group.lost(1, "gone", 2.0)
    assert group.heartbeat(heartbeat(1, "one"), 3.0) == group.heartbeat(heartbeat(1, "other"), 3.0) == []
    assert group.heartbeat(heartbeat(2), 3.0) == []


# ------------------------------------------------------------------------------------------------- waiting for ranks


def test_ranks_that_do_not_come_are_waited_for_so_long():
    group = new_group(4, wait_seconds=30.0)
    group.registered(register(2), 0.0)
    now, actions = pass_time(group, 0.0, 29.5, alive=(2,))
    assert not of(actions, GiveUp)

    now, actions = pass_time(group, now, 1.0, alive=(2,))

    (gave_up,) = of(actions, GiveUp)
    assert isinstance(gave_up.error, GroupError)
    assert gave_up.error.message == "matmul.v1.g0: ranks 0, 1, 3 have not registered within 30 s"
    assert pass_time(group, now, 20.0, alive=(2,))[1] == []  # said once


def test_without_a_bound_they_are_waited_for_for_ever():
    assert pass_time(new_group(4), 0.0, 5000.0)[1] == []


def test_a_group_that_has_served_waits_for_its_ranks_for_ever():
    group = ready_group(2, wait_seconds=10.0)
    group.lost(1, "gone", 0.0)
    assert not of(pass_time(group, 0.0, 100.0, alive=(0,))[1], GiveUp)


# ------------------------------------------------------------------------------------------------------------ leaving


def test_a_rank_that_leaves_goes_when_nothing_is_outstanding():
    group = ready_group(3)

    assert group.leaving(leave(1), 1.0) == []
    assert group.state is GroupState.DRAINING
    assert group.forming().reason == "rank 1 is leaving: told to"
    actions = group.drained(2.0)

    assert of(actions, Ended) == [Ended(1, "rank 1 is leaving: told to")]
    assert sent(actions, Drain).keys() == {"rank.1"}
    assert (group.state, group.missing) == (GroupState.FORMING, (1,))
    assert group.drained(2.0) == []
    assert [it.restarts for it in group.ranks()] == [0, 0, 0]


def test_when_all_leave_what_is_outstanding_is_still_finished():
    group = ready_group(3)
    for rank in (0, 1, 2, 1):
        assert group.leaving(leave(rank), 1.0) == []
    assert group.state is GroupState.DRAINING

    actions = group.drained(2.0)

    assert len(of(actions, Ended)) == 1
    assert sent(actions, Drain).keys() == ALL
    assert group.missing == (0, 1, 2)


@pytest.mark.parametrize("state", ["forming", "loading"])
def test_who_leaves_before_it_is_ready_may_go_at_once(state):
    group = new_group(3)
    register_all(group) if state == "loading" else group.registered(register(1), 0.0)

    actions = group.leaving(leave(1), 1.0)

    assert sent(actions, Drain).keys() == {"rank.1"}
    assert len(of(actions, Ended)) == (state == "loading")
    assert 1 in group.missing
    assert group.state is GroupState.FORMING


def test_who_holds_no_rank_may_leave_at_once():
    group = ready_group(3)
    assert sent(group.leaving(leave(1, "usurper"), 1.0), Drain).keys() == {"rank.1"}
    assert group.state is GroupState.READY
    group.lost(1, "silent", 1.0)
    assert sent(group.leaving(leave(1), 1.0), Drain).keys() == {"rank.1"}


def test_leavers_go_too_when_the_epoch_ends_under_them():
    group = ready_group(3)
    group.leaving(leave(0), 1.0)

    actions = group.exited(exited(2), 1.5)

    assert sent(actions, Drain).keys() == {"rank.0"}
    assert len(of(actions, Ended)) == 1
    assert group.missing == (0, 2)
    assert sent(group.registered(register(2, "heir"), 2.0), Form) == {}  # not with the leaver


def test_a_broken_epoch_is_not_formed_again_with_a_leaver():
    group = ready_group(3)
    group.leaving(leave(0), 1.0)
    actions = group.broken("no queue", 1.5)
    assert sent(actions, Drain).keys() == {"rank.0"}
    assert not sent(actions, Form)


def test_the_heir_of_a_leaver_inherits():
    group = ready_group(3)
    group.leaving(leave(1), 1.0)
    group.registered(register(1, "heir"), 1.0)
    assert sent(group.drained(2.0), Form)["rank.1"].agent == "heir"


# ------------------------------------------------------------------------------------------------------- communication


@pytest.mark.parametrize(
    ("wanted", "fields", "expected"),
    [
        ("auto", {}, ("none", "")),
        ("auto", COLLECTIVE, ("mccl", "127.0.0.1:7000")),
        ("auto", {**COLLECTIVE, "device": "Ascend"}, ("hccl", "")),
        ("none", COLLECTIVE, ("none", "")),
        ("mccl", {}, ("mccl", "127.0.0.1:7000")),
        ("hccl", {}, ("hccl", "")),
    ],
)
def test_communication_is_chosen_by_what_was_declared_and_by_the_graphs(wanted, fields, expected):
    group = new_group(2, communication=wanted)
    forms = sent(register_all(group, **fields), Form)
    assert {(form.communication, form.scheduler) for form in forms.values()} == {expected}
    assert group.communication == expected[0]


def test_one_rank_with_collectives_is_enough_and_other_hosts_need_the_real_address():
    group = new_group(2)
    group.registered(register(0, scheduler="10.0.0.1:7000", host="one"), 0.0)
    forms = sent(group.registered(register(1, host="two", **COLLECTIVE), 0.0), Form)
    assert {(form.communication, form.scheduler) for form in forms.values()} == {("mccl", "10.0.0.1:7000")}


@pytest.mark.parametrize("how", ["lost", "registered anew", "load failed", "broken", "stuck", "late", "drained"])
def test_processes_that_are_bound_to_each_other_start_anew_together(how):
    group = new_group(3, load_seconds=4.0)
    register_all(group, **COLLECTIVE)
    if how not in ("load failed", "late"):
        ready_all(group)
    if how == "drained":
        group.leaving(leave(1), 0.5)
    actions = {
        "lost": lambda: group.lost(1, "gone", 1.0),
        "registered anew": lambda: group.registered(register(1, **COLLECTIVE), 1.0),
        "load failed": lambda: group.load_failed(load_failed(1, 1), 1.0),
        "broken": lambda: group.broken("no queue", 1.0),
        "stuck": lambda: group.stuck([1], "overdue", 1.0),
        "late": lambda: pass_time(group, 0.0, 4.5)[1],
        "drained": lambda: group.drained(1.0),
    }[how]()

    assert sent(actions, Restart).keys() == {RANK_ALL}
    assert sent(actions, Drain).keys() == ({"rank.1"} if how == "drained" else set())
    assert len(of(actions, Ended)) == 1
    assert not sent(actions, Form)
    assert group.missing == (0, 1, 2)
    # the doomed die, one by one, and their heirs come: in any order, the group forms once
    forms = []
    for rank in (0, 1, 2):
        forms += group.exited(exited(rank), 2.0)
        forms += group.registered(register(rank, f"heir{rank}", pid=rank, **COLLECTIVE), 2.0)
    assert sent(forms, Form).keys() == ALL
    assert sent(forms, Form)["rank.0"].epoch == 2


# ------------------------------------------------------------------------------------------------------ in any order


class AnyOrder(RuleBasedStateMachine):
    """Agents that come, load, fail, fall silent, leave and die in any order, also ones that are long gone."""

    size = 3

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.group = self.make()
        self.agents: dict[str, tuple[int, int]] = {}  # alive or not: agent -> rank, pid
        self.began: int | None = None
        self.formed: set[int] = set()
        self.epochs: list[int] = []
        self.serving = False
        self.gave_up = False

    def make(self) -> Group:
        rules = GroupRules(size=self.size, communication="none", load_seconds=15.0, wait_seconds=0.0)
        return Group(GROUP, rules, agree, self.now)

    def restarted(self) -> None:
        pass

    def happened(self, actions: list) -> None:
        forms: dict[int, list[str]] = {}
        for action in actions:
            match action:
                case Began(epoch):
                    assert self.began is None
                    assert epoch in self.formed
                    assert not self.epochs or epoch > self.epochs[-1]
                    self.began = epoch
                    self.epochs.append(epoch)
                    self.serving = True
                case Ended(epoch):
                    assert self.began in (None, epoch)
                    assert epoch in self.formed
                    self.formed.discard(epoch)  # a second end would be found here
                    self.began = None
                case GiveUp(error):
                    assert not self.serving
                    assert isinstance(error, GroupError | ModelError)
                    self.gave_up = True
                case Send(tag, Form() as form):
                    assert tag == f"rank.{form.rank}"
                    forms.setdefault(form.epoch, []).append(tag)
                    assert form.agent in self.agents
                case Send(tag, Refused() as refused):
                    assert not self.group.holds(refused.rank, refused.agent)
                case Send(tag, Restart()):
                    self.restarted()
        for epoch, tags in forms.items():
            assert sorted(tags) == [f"rank.{rank}" for rank in range(self.size)]
            assert not self.formed or epoch > max(self.formed)
            self.formed.add(epoch)

    @rule(rank=st.integers(0, size), known=st.integers(0, 20))
    def an_agent_comes(self, rank, known):
        agent = f"x{len(self.agents)}"
        self.agents[agent] = rank, 5000 + len(self.agents)
        message = register(rank, agent, pid=self.agents[agent][1], last_epoch=known, **self.fields)
        self.happened(self.group.registered(message, self.now))

    fields: ClassVar[dict] = {}

    @precondition(lambda self: self.agents)
    @rule(data=st.data())
    def an_agent_registers_again(self, data):
        agent = data.draw(st.sampled_from(sorted(self.agents)))
        rank, pid = self.agents[agent]
        self.happened(self.group.registered(register(rank, agent, pid=pid, **self.fields), self.now))

    @precondition(lambda self: self.agents)
    @rule(data=st.data(), word=st.sampled_from(["ready", "beat", "leave", "exit", "fail", "lost", "stuck"]))
    def something_happens_to_an_agent(self, data, word):
        agent = data.draw(st.sampled_from(sorted(self.agents)))
        rank, pid = self.agents[agent]
        epoch = max(0, self.group.epoch - data.draw(st.integers(0, 2)))
        group, now = self.group, self.now
        self.happened(
            {
                "ready": lambda: group.ready(ready(rank, epoch, agent), now),
                "beat": lambda: group.heartbeat(heartbeat(rank, agent), now),
                "leave": lambda: group.leaving(leave(rank, agent), now),
                "exit": lambda: group.exited(exited(rank, pid), now),
                "fail": lambda: group.load_failed(load_failed(rank, epoch, agent=agent), now),
                "lost": lambda: group.lost(rank, "gone", now),
                "stuck": lambda: group.stuck([rank], "overdue", now),
            }[word]()
        )

    @rule()
    def all_get_ready(self):
        for it in self.group.ranks():
            if it.agent:
                self.happened(self.group.ready(ready(it.rank, self.group.epoch, it.agent), self.now))
        if self.group.state is not GroupState.DRAINING:
            assert (self.group.state is GroupState.READY) == (self.began is not None)

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, 4.5, 11.0, 86400.0]))
    def time_passes(self, seconds):
        until = self.now + seconds
        while seconds < 60 and self.now < until:
            self.now += 0.5
            self.happened(self.group.tick(self.now))
        self.now = until
        self.happened(self.group.tick(self.now))

    @rule()
    def nothing_is_outstanding(self):
        if self.group.state is GroupState.DRAINING:
            self.happened(self.group.drained(self.now))
            assert self.group.state is not GroupState.DRAINING

    @rule()
    def the_epoch_breaks(self):
        self.happened(self.group.broken("out of step", self.now))

    @invariant()
    def it_serves_between_began_and_ended_and_only_then(self):
        serving = self.group.state in (GroupState.READY, GroupState.DRAINING)
        assert serving == (self.began is not None)
        assert (self.group.forming() is None) == (self.group.state is GroupState.READY)
        states = [it.state for it in self.group.ranks()]
        if serving:
            assert states == ["ready"] * self.size
            assert self.began == self.group.epoch or self.group.epoch > self.began
        if self.group.state is GroupState.FORMING:
            assert "ready" not in states
        else:
            assert self.group.missing == ()

    @invariant()
    def a_group_that_is_whole_does_not_wait_for_nothing(self):
        """What lives comes to serve: a group with all its ranks loads, or has a time at which it will."""
        if self.group.state is GroupState.FORMING and not self.group.missing:
            assert self.gave_up or self.serving

    def teardown(self):
        """From wherever it is, with fresh agents that do as they are told, it serves again."""
        for rank in range(self.size):
            for it in self.group.ranks():
                if it.rank == rank and it.agent:
                    self.happened(self.group.exited(exited(rank, it.pid), self.now))
            agent = f"fresh{rank}"
            self.agents[agent] = rank, 9000 + rank
            self.happened(self.group.registered(register(rank, agent, pid=9000 + rank, **self.fields), self.now))
        for _ in range(200):
            if self.group.state is GroupState.READY:
                break
            self.now += 0.5
            for rank in range(self.size):
                if not self.group.holds(rank, f"fresh{rank}"):
                    message = register(rank, f"fresh{rank}", pid=9000 + rank, **self.fields)
                    self.happened(self.group.registered(message, self.now))
                self.happened(self.group.heartbeat(heartbeat(rank, f"fresh{rank}"), self.now))
            self.happened(self.group.tick(self.now))
            self.all_get_ready()
        assert self.group.state is GroupState.READY


class AnyOrderBoundTogether(AnyOrder):
    """The same, where the end of an epoch is the end of all processes."""

    fields: ClassVar[dict] = COLLECTIVE

    def make(self) -> Group:
        return Group(GROUP, GroupRules(size=self.size, load_seconds=15.0), agree, self.now)

    def restarted(self) -> None:
        assert self.group.missing == (0, 1, 2) or self.group.state is not GroupState.READY


TestAnyOrder = AnyOrder.TestCase
TestAnyOrderBoundTogether = AnyOrderBoundTogether.TestCase

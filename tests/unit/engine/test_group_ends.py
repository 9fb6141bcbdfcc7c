"""Given a group that serves, when ranks are lost, fall silent or leave, then its epoch ends once."""

from __future__ import annotations

import pytest
from rankmq.engine.group import Ended, GiveUp, GroupState
from rankmq.schemas.errors import GroupError
from rankmq.schemas.messages import Drain, Form, Restart, Welcome

from tests.unit.engine.group_life import (
    exited,
    graph,
    heartbeat,
    leave,
    load_failed,
    new_group,
    of,
    pass_time,
    ready_all,
    ready_group,
    register,
    register_all,
    sent,
)

ALL = {"rank.0", "rank.1", "rank.2"}


COLLECTIVE = {"graphs": (graph(collectives=True),)}


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
    assert {it.agent for it in sent(actions, Restart).values()} == ({"a1"} if sign == "stuck" else set())


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
    welcomes = sent(group.heartbeat(heartbeat(1), 4.0), Welcome)
    assert {tag: it.agent for tag, it in welcomes.items()} == {"rank.1": "a1"}  # and not whoever is its heir by now
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
    assert {tag: it.agent for tag, it in sent(actions, Drain).items()} == {"rank.1": "a1"}
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
    assert {it.agent for it in sent(group.leaving(leave(1, "usurper"), 1.0), Drain).values()} == {"usurper"}
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

    restarts = sent(actions, Restart)
    assert {tag: it.agent for tag, it in restarts.items()} == {
        f"rank.{rank}": f"a{rank}" for rank in range(3) if (how, rank) != ("drained", 1)
    }
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

"""Given calls under way, when ranks are lost or leave, or the driver ends, then each row is told once, and rightly."""

from __future__ import annotations

import pytest
from rankmq.engine.group import GroupState
from rankmq.engine.topology import RANK_ALL
from rankmq.schemas.errors import (
    AttemptsExhausted,
    ConnectionLost,
)
from rankmq.schemas.messages import RankReply

from tests.unit.engine.graphs_in_memory import DEADLY
from tests.unit.engine.group_life import FOREIGN, GROUP
from tests.unit.engine.simulation import Calls, World, ready_world, rows_of, steps

# ------------------------------------------------------------------------------------------------------------ losses


def test_steps_of_a_lost_epoch_run_again_in_the_next():
    world = ready_world()
    calls = Calls(world)
    for number in range(4):
        calls.call(number % 3, rows_of(number % 3, 3, seed=number))
    world.dies(world.agents[1], sent=False)
    world.run()
    assert [calls.check(number) for number in range(4)] == [{}] * 4
    assert world.readied == 2
    assert len(world.broken) == 1
    assert "rank 1 lost" in world.broken[0]
    assert world.driver.group.epoch == 2
    assert {rank for rank, epoch, _ in world.executed if epoch == 2} == {0, 1, 2}


@pytest.mark.parametrize("attempts", [1, 2, 3, 5])
def test_a_row_that_takes_ranks_down_harms_only_itself(attempts):
    world = ready_world(max_attempts=attempts, window=4)
    calls = Calls(world)
    for number in range(6):
        special = {"row1": DEADLY} if number == 3 else {}
        calls.call(number % 2, rows_of(number % 2, 3, seed=number, **special))
    world.settle()
    failed = {number: calls.check(number) for number in range(6) if calls.check(number)}
    assert calls.errors(3)[1] is AttemptsExhausted
    assert f"the group was lost {attempts} times under it" in calls.results[3][1].message
    if attempts > 1:  # with one attempt, all that was under way has had it
        assert failed == {3: {1: AttemptsExhausted}}
    assert world.driver.group.epoch == attempts + 1


def test_rows_that_wait_are_not_counted_as_tried():
    world = ready_world(max_attempts=1, stacked=False, window=1)
    calls = Calls(world)
    calls.call(0, rows_of(0, 64))
    calls.call(0, rows_of(0, 3, seed=2))
    world.dies(world.agents[0])
    world.settle()
    assert calls.check(0) == dict.fromkeys(range(64), AttemptsExhausted)
    assert calls.check(1) == {}


def test_a_call_that_is_partly_done_keeps_what_it_has():
    world = ready_world(max_attempts=1, stacked=False, window=1)
    world.seconds_per_row = 0.0001
    calls = Calls(world)
    calls.call(0, rows_of(0, 130))
    while world.driver.steps < 2:
        world.choices()[0]()
    world.dies(world.agents[2], sent=False)
    world.settle()
    assert calls.check(0) == dict.fromkeys(range(64, 128), AttemptsExhausted)


def test_rows_that_run_apart_do_not_mix_with_others_and_the_window_opens_again_behind_them():
    world = ready_world(window=4)
    calls = Calls(world)
    for number in range(4):
        calls.call(0, rows_of(0, 2, seed=number))
    world.dies(world.agents[0], sent=False)
    while world.readied < 2:
        world.starts(0)
        world.choices()[0]()
    for _ in range(3):
        calls.call(0, rows_of(0, 2, seed=9))
    assert world.driver.outstanding == 1
    assert world.driver.status().waiting == 12
    world.settle()
    for _ in range(9):
        calls.call(0, rows_of(0, 3, seed=9))
    assert world.driver.outstanding == 2  # the ranks have something to go on with: the rest comes together
    for _ in range(60):
        calls.call(0, rows_of(0, 3, seed=9))
    assert world.driver.outstanding == 2  # nor whole batches: what is more urgent would find them all before it
    world.settle()
    assert all(calls.check(number) == {} for number in range(76))


def test_the_loss_of_a_rank_is_seen_by_its_queue():
    world = ready_world()
    calls = Calls(world)
    world.dies(world.agents[1])
    world.launcher.clear()  # nobody saw it end
    calls.call(1, rows_of(1, 2))
    world.run(revive=False)
    assert world.driver.group.missing == (1,)
    world.settle()
    assert calls.check(0) == {}


def test_the_loss_of_all_ranks_is_seen_by_their_queues():
    world = ready_world()
    for agent in list(world.agents.values()):
        world.dies(agent)
    world.launcher.clear()
    calls = Calls(world)
    calls.call(0, rows_of(0, 2))
    world.run(revive=False)
    assert world.driver.group.missing == (0, 1, 2)
    world.settle()
    assert calls.check(0) == {}


def test_a_task_that_comes_back_late_does_not_harm_who_came_since():
    world = ready_world()
    world.dies(world.agents[1])
    world.run(revive=False)
    world.starts(1)
    world.says(world.agents[1].control.popleft())
    assert world.driver.group.missing == ()
    world.driver.rank_unreachable("rank.1")
    world.driver.rank_unreachable(RANK_ALL)
    assert world.driver.group.missing == ()


def test_a_step_that_is_overdue_ends_the_epoch_and_its_ranks_start_anew():
    world = ready_world(step_timeout=20.0)
    calls = Calls(world)
    calls.call(0, rows_of(0, 2))
    stuck = world.agents[2]
    stuck.hears()
    stuck.work.clear()  # its compute thread does not come back
    world.run()

    def each():
        world.beats()
        world.run()
        world.driver.tick()

    world.clock.tick(19.5, 0.5, each)
    assert world.driver.group.epoch == 1
    world.clock.tick(1.5, 0.5, each)
    assert not stuck.alive
    assert world.broken == ["rank 2 lost: step 0 is overdue"]
    world.settle()
    assert calls.check(0) == {}


def test_a_graph_that_is_slow_gets_fewer_rows_at_once():
    world = ready_world(step_timeout=60.0, stacked=False, window=1)
    world.seconds_per_row = 0.01
    calls = Calls(world)
    calls.call(0, rows_of(0, 200))
    world.run()
    sizes = list(steps(world).values())
    assert sizes[0] == 64  # nothing is known yet
    assert set(sizes[1:-1]) == {5}  # which take 0.05 s, one behind the other
    assert calls.check(0) == {}


def test_a_batch_that_cannot_be_done_in_time_is_tried_again_in_smaller_ones():
    world = ready_world(step_timeout=60.0, stacked=False, window=1)
    world.seconds_per_row = 1.0
    calls = Calls(world)
    calls.call(0, rows_of(0, 64))
    for agent in world.agents.values():
        agent.hears()  # ... and computes, for more than a minute

    def each():
        world.beats()
        for agent in world.living():
            while agent.control:
                world.says(agent.control.popleft())
        world.driver.tick()

    world.clock.tick(61.0, 0.5, each)
    assert world.deaths == 0
    world.settle()
    assert calls.check(0) == {}
    assert max(rows for (epoch, _), rows in steps(world).items() if epoch > 1) <= 12


def test_who_is_out_of_step_is_started_anew():
    world = ready_world()
    calls = Calls(world)
    calls.call(0, rows_of(0, 1))
    world.driver.replied(RankReply(group=GROUP, epoch=1, step=5, rank=1))
    assert "out of step" in world.broken[0]
    world.settle()
    assert calls.check(0) == {}


@pytest.mark.parametrize(
    "reply",
    [
        RankReply(group=FOREIGN, epoch=1, step=0, rank=0),
        RankReply(group=GROUP, epoch=0, step=0, rank=0),
        RankReply(group=GROUP, epoch=2, step=0, rank=0),
        RankReply(group=GROUP, epoch=1, step=0, rank=77),
    ],
    ids=["foreign group", "older epoch", "newer epoch", "no such rank"],
)
def test_a_reply_of_somebody_else_changes_nothing(reply):
    world = ready_world()
    calls = Calls(world)
    calls.call(0, rows_of(0, 1))
    world.driver.replied(reply)
    assert world.driver.group.state is GroupState.READY
    world.run()
    assert calls.check(0) == {}


def test_a_reply_between_two_epochs_is_refused():
    world = ready_world()
    world.dies(world.agents[0])
    world.run(revive=False)
    world.driver.replied(RankReply(group=GROUP, epoch=1, step=0, rank=0))
    assert world.driver.group.state is GroupState.FORMING


# ------------------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("when", ["early", "waiting", "under way", "partly done", "held apart"])
def test_all_calls_fail_when_the_driver_ends(when):
    window = 2 if when == "held apart" else 1
    world = World(stacked=False) if when == "early" else ready_world(stacked=False, window=window)
    calls = Calls(world)
    calls.call(0, rows_of(0, 100))
    calls.call(1, rows_of(1, 3))
    if when == "under way":
        for _ in range(5):
            world.choices()[0]()
    if when == "partly done":
        while world.driver.steps < 2:
            world.choices()[0]()
    if when == "held apart":
        world.dies(world.agents[0], sent=False)
        while world.driver.group.epoch < 2 or world.driver.group.state is not GroupState.READY:
            world.starts(0)
            world.choices()[0]()
        assert (world.driver.outstanding, world.driver.status().waiting) == (1, 39)
    world.driver.fail_all(ConnectionLost("gone"))
    kept = 64 if when == "partly done" else 0
    assert calls.check(0) == dict.fromkeys(range(kept, 100), ConnectionLost)
    assert calls.check(1) == dict.fromkeys(range(3), ConnectionLost)
    assert world.driver.status().waiting == 0
    if when != "early":
        world.run()  # what still comes in harms nobody


def test_a_call_made_when_the_driver_has_ended_fails_too():
    """A pipeline that caught the first error may try again: it must not wait for ever."""
    world = ready_world()
    calls = Calls(world)
    late = Calls(world)

    def done(results):
        late.call(0, rows_of(0, 2))

    world.driver.call(0, rows_of(0, 1), done, lenient=False, requests=())
    world.driver.fail_all(ConnectionLost("gone"))
    calls.call(0, rows_of(0, 2))
    for made in (calls, late):
        assert made.errors(0) == {0: ConnectionLost, 1: ConnectionLost}


def test_when_all_ranks_leave_what_was_sent_is_finished_first():
    world = ready_world(window=2, stacked=False)
    calls = Calls(world)
    for number in range(4):
        calls.call(0, rows_of(0, 64, seed=number))
    for agent in world.agents.values():
        world.leaves(agent)
    for agent in world.agents.values():  # the orchestrator hears of it before anything is computed
        world.says(agent.control.popleft())
    assert world.driver.group.state is GroupState.DRAINING
    world.run(revive=False)
    assert [number for number in range(4) if number in calls.results] == [0, 1]
    assert world.living() == []
    assert world.driver.group.epoch == 1
    world.settle()
    assert [calls.check(number) for number in range(4)] == [{}] * 4


def test_a_rank_that_leaves_an_idle_group_goes_at_once():
    world = ready_world()
    world.leaves(world.agents[1])
    world.run(revive=False)
    assert not world.agents[1].alive
    assert world.agents[0].alive
    assert world.driver.group.missing == (1,)


def test_the_status_tells_what_is_going_on():
    world = ready_world(window=1)
    calls = Calls(world)
    for _ in range(3):
        calls.call(0, rows_of(0, 4))
    status = world.driver.status()
    assert (status.state, status.epoch, status.in_flight, status.waiting) == ("ready", 1, 1, 8)
    assert status.subgraphs == ("scale", "parts", "any")
    world.run()
    status = world.driver.status()
    assert (status.step, status.in_flight, status.waiting) == (2, 0, 0)
    assert {rank.step for rank in status.ranks} == {1}

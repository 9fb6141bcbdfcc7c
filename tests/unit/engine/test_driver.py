"""Given ranks that compute in memory, when calls are made and anything is lost, then each row gets its own answer."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rankmq.engine.group import GroupState
from rankmq.engine.topology import RANK_ALL
from rankmq.schemas.errors import (
    AttemptsExhausted,
    ConnectionLost,
    GraphFailed,
    InvalidInput,
    LimitExceeded,
    ModelError,
    RanksDisagree,
)
from rankmq.schemas.messages import RankReply

from tests.unit.engine.group_life import FOREIGN, GROUP
from tests.unit.engine.simulation import BAD, CONFUSING, DEADLY, Calls, World, a_row, ready_world


def rows_of(subgraph, count, seed=1, **special):
    """`count` rows; `row3=BAD` puts a special number into row 3."""
    random = Random(seed)
    return [a_row(subgraph, random, special=special.get(f"row{index}")) for index in range(count)]


def steps(world):
    """By step, how many rows it had."""
    return {(task.epoch, task.step): task.work.rows for _, _, task in world.tasks}


# -------------------------------------------------------------------------------------------------------- right answers


@pytest.mark.parametrize("subgraph", [0, 1, 2])
@pytest.mark.parametrize(
    "model",
    [
        {"stacked": True},
        {"stacked": False},
        {"stacked": True, "rows": 4},
        {"stacked": True, "batch_size": 3},
        {"stacked": True, "ranks": 1, "window": 1},
    ],
    ids=str,
)
def test_every_row_gets_what_numpy_says(model, subgraph):
    if model.get("ranks") == 1 and subgraph == 1:
        pytest.skip("one rank has no shards of 6")
    world = ready_world(**model)
    calls = Calls(world)
    for count in (1, 5, 2, 9):
        calls.call(subgraph, rows_of(subgraph, count, seed=count))
    world.run()
    assert [calls.check(number) for number in range(4)] == [{}] * 4
    most = model.get("rows") or model.get("batch_size") or 64
    assert max(steps(world).values()) <= most
    assert world.driver.steps == len(steps(world))
    assert world.driver.status().waiting == world.driver.outstanding == 0


def test_calls_of_several_requests_share_a_step():
    world = ready_world(window=1)
    calls = Calls(world)
    for number in range(5):
        calls.call(0, rows_of(0, 2, seed=number))
    world.run()
    assert list(steps(world).values()) == [2, 8]
    assert world.tasks[-1][2].requests == ("r1", "r2", "r3", "r4")
    assert [calls.check(number) for number in range(5)] == [{}] * 5


def test_the_window_is_used_and_kept():
    world = ready_world(window=3, stacked=False)
    calls = Calls(world)
    for _ in range(6):
        calls.call(0, rows_of(0, 64))
    assert world.driver.outstanding == 3
    assert world.driver.status().waiting == 3 * 64
    slow = world.agents[0]
    slow.frozen = True
    world.run()
    assert {task.step for _, _, task in world.tasks} == {0, 1, 2}
    slow.frozen = False
    world.run()
    assert len(calls.results) == 6


def test_calls_made_before_the_group_is_ready_wait_for_it():
    world = World()
    calls = Calls(world)
    calls.call(0, rows_of(0, 3))
    calls.call(7, rows_of(0, 2))
    assert world.driver.status().waiting == 5
    assert calls.results == {}
    world.run()
    assert calls.check(0) == {}
    assert calls.check(1) == {0: ModelError, 1: ModelError}


def test_a_call_waits_for_the_ranks_that_come_to_serve():
    """Those that form first may fail to load, and others with other graphs come in their place."""
    world = World()
    world.run(most=10_000, revive=False)
    for rank in range(3):
        world.starts(rank)
    while world.driver.group.state is GroupState.FORMING:
        world.choices()[0]()
    assert world.driver.plans
    calls = Calls(world)
    calls.call(0, [(np.zeros(5, np.float32),)])
    assert calls.results == {}  # not refused by graphs that may not come to serve


def test_a_call_without_rows_is_done():
    world = ready_world()
    calls = Calls(world)
    calls.call(0, [])
    assert calls.results == {0: []}


def test_values_without_a_dtype_are_converted():
    world = ready_world()
    calls = Calls(world)
    given = [([1, 2, 3],), (np.array([1, 2, 3], np.int64),)]
    calls.call(0, given, lenient=True)
    calls.call(0, given, lenient=False)
    world.run()
    assert [result[0].tolist() for result in calls.results[0]] == [[3, 5, 7]] * 2
    assert calls.errors(1) == {0: InvalidInput, 1: InvalidInput}


def test_thousands_of_calls_that_are_made_in_the_moment_another_is_done_do_not_pile_up_on_the_stack():
    world = ready_world(window=1)
    made = []

    def again(results):
        made.append(results)
        if len(made) < 3000:
            wrong = (np.zeros(1, np.int8),) if len(made) % 2 else a_row(0, Random(0))
            world.driver.call(0, [wrong], again, lenient=False, requests=())

    world.driver.call(0, [a_row(0, Random(0))], again, lenient=False, requests=())
    world.run()
    assert len(made) == 3000


def test_calls_may_be_made_while_others_are_told_their_results():
    world = ready_world(window=2)
    inner = Calls(world)

    def done(results):
        inner.call(1, rows_of(1, 3))

    world.driver.call(0, rows_of(0, 5), done, lenient=False, requests=())
    world.driver.call(0, rows_of(0, 5), done, lenient=False, requests=())
    world.run()
    assert [inner.check(number) for number in range(2)] == [{}, {}]


# ------------------------------------------------------------------------------------------------------------- bad rows


def test_what_does_not_fit_is_refused_before_anything_is_sent():
    world = ready_world()
    calls = Calls(world)
    good = a_row(0, Random(0))
    rows = [(np.zeros(4, np.float32),), good, (np.zeros(3, np.int8),), (), (*good, *good), (np.array(["a"]),)]
    calls.call(0, rows)
    assert {task.work.rows for _, _, task in world.tasks} == {1}
    world.run()
    wrong = calls.errors(0)
    assert wrong == dict.fromkeys((0, 2, 3, 4, 5), InvalidInput)
    np.testing.assert_array_equal(calls.results[0][1][0], good[0] * 2 + 1)
    calls.call(0, rows[:1])
    assert calls.errors(1) == {0: InvalidInput}
    assert len(steps(world)) == 1


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("subgraph", [0, 1, 2])
def test_bad_rows_fail_alone(stacked, subgraph):
    world = ready_world(stacked=stacked)
    calls = Calls(world)
    calls.call(subgraph, rows_of(subgraph, 20, row3=BAD, row4=BAD, row19=BAD))
    calls.call(subgraph, rows_of(subgraph, 5, seed=2))
    world.run()
    assert calls.check(0) == {3: GraphFailed, 4: GraphFailed, 19: GraphFailed}
    assert calls.check(1) == {}
    assert "a bad row" in calls.results[0][3].message
    assert world.readied == 1


def test_a_row_on_which_the_ranks_disagree_fails_alone():
    world = ready_world()
    calls = Calls(world)
    rows = [(np.full(2, value, np.float64),) for value in (1, 2, CONFUSING, 3)]
    calls.call(2, rows)
    world.run()
    assert calls.check(0) == {2: RanksDisagree}


def test_an_error_that_a_rank_makes_up_becomes_one_of_serving():
    world = ready_world()
    calls = Calls(world)
    calls.call(0, rows_of(0, 1))
    for rank in range(3):
        error = {"code": "invalid_configuration", "message": "odd"}
        reply = RankReply(group=GROUP, epoch=1, step=0, rank=rank)
        world.driver.replied(
            type(reply)(group=GROUP, epoch=1, step=0, rank=rank, error=_info(**error) if rank == 1 else None)
        )
    (result,) = calls.results[0]
    assert (type(result), result.message) == (GraphFailed, "rank 1: odd")


def _info(code, message):
    from rankmq.schemas.messages import ErrorInfo

    return ErrorInfo(code=code, message=message)


def test_a_row_that_is_too_large_for_the_broker_fails_alone():
    world = ready_world(max_message=8192)
    calls = Calls(world)
    rows = [(np.zeros(size, np.float64),) for size in (1, 600, 1, 2)]
    calls.call(2, rows)
    world.run()
    assert calls.check(0) == {1: LimitExceeded}
    assert "the broker takes 8192" in calls.results[0][1].message
    assert max(world.sizes) < 8192


@pytest.mark.parametrize("stacked", [True, False])
def test_many_rows_are_parted_where_one_message_would_be_too_large(stacked):
    world = ready_world(max_message=8192, stacked=stacked, window=1)
    calls = Calls(world)
    calls.call(2, [(np.full(100, value % 7, np.float64),) for value in range(60)])
    calls.call(1, rows_of(1, 400))
    world.run()
    assert [calls.check(number) for number in range(2)] == [{}, {}]
    assert max(world.sizes) < 8192
    assert len(steps(world)) < 60


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
        calls.call(0, rows_of(0, 2, seed=9))
    assert world.driver.outstanding == 4
    world.settle()
    assert all(calls.check(number) == {} for number in range(16))


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
    world.seconds_per_row = 2.0
    calls = Calls(world)
    calls.call(0, rows_of(0, 200))
    world.run()
    sizes = list(steps(world).values())
    assert sizes[0] == 64  # nothing is known yet
    assert set(sizes[1:-1]) == {6}  # a fifth of the time allowed
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


# ------------------------------------------------------------------------------------------------------------ anything


class Anything(RuleBasedStateMachine):
    """Calls, deliveries, deaths and births in any order; at the end all is told, once and rightly."""

    collectives = False

    def __init__(self):
        super().__init__()
        self.world = None

    @precondition(lambda self: self.world is None)
    @rule(
        model=st.sampled_from(
            [{"stacked": True}, {"stacked": False}, {"stacked": True, "rows": 4}, {"stacked": True, "batch_size": 2}]
        ),
        window=st.integers(1, 4),
    )
    def begin(self, model, window):
        self.world = World(window=window, max_attempts=3, collectives=self.collectives, **model)
        self.calls = Calls(self.world)
        self.marked = {}
        self.killed = 0

    def in_a_world(self):
        return self.world is not None

    @precondition(in_a_world)
    @rule(
        subgraph=st.integers(0, 2),
        count=st.integers(1, 7),
        seed=st.integers(0, 99),
        special=st.sampled_from([None, None, None, BAD, DEADLY]),
        place=st.integers(0, 6),
    )
    def a_call(self, subgraph, count, seed, special, place):
        place %= count
        marked = {} if special is None else {f"row{place}": special}
        number = self.calls.call(subgraph, rows_of(subgraph, count, seed, **marked))
        self.marked[number] = (place, special)

    @precondition(in_a_world)
    @rule(seed=st.integers(0, 2**32), most=st.integers(1, 60), revive=st.booleans())
    def messages_arrive(self, seed, most, revive):
        random = Random(seed)
        for _ in range(most):
            if revive:
                for rank in range(3):
                    self.world.starts(rank)
            found = self.world.choices()
            if not found:
                return
            random.choice(found)()

    @precondition(in_a_world)
    @rule(rank=st.integers(0, 2), sent=st.booleans(), seen=st.booleans())
    def a_rank_dies(self, rank, sent, seen):
        agent = self.world.agents.get(rank)
        if agent is not None and agent.alive:
            self.killed += 1
            self.world.dies(agent, sent=sent)
            if not seen:
                self.world.launcher.pop()

    @precondition(in_a_world)
    @rule(rank=st.integers(0, 2))
    def a_rank_leaves(self, rank):
        agent = self.world.agents.get(rank)
        if agent is not None and agent.alive and not agent.leaving:
            self.killed += 1
            self.world.leaves(agent)

    @precondition(in_a_world)
    @rule(seconds=st.sampled_from([0.5, 3.0, 11.0, 70.0, 4000.0]), beat=st.booleans())
    def time_passes(self, seconds, beat):
        self.world.late_news()
        epoch = self.world.driver.group.epoch
        until = self.world.clock.now + seconds
        while seconds < 100 and self.world.clock.now < until:
            self.world.clock.now += 0.5
            if beat:
                self.world.beats()
            self.world.driver.tick()
        self.world.clock.now = until
        self.world.driver.tick()
        self.killed += epoch == self.world.driver.group.epoch and self.world.driver.group.missing != ()

    @precondition(in_a_world)
    @invariant()
    def what_is_told_is_right(self):
        for number in self.calls.results:
            self.calls.check(number)
        assert self.world.driver.outstanding <= self.world.window

    def teardown(self):
        if self.world is None:
            return
        self.world.settle(Random(7), seconds=400.0)
        assert self.killed >= 3 or self.world.gave_up == []
        assert self.world.refused == []
        deadly = sum(special == DEADLY for _, special in self.marked.values())
        for number, (place, special) in self.marked.items():
            errors = self.calls.check(number)
            wanted = {BAD: GraphFailed, DEADLY: AttemptsExhausted}.get(special)
            if wanted is not None:
                assert errors.pop(place) in (wanted, AttemptsExhausted)
            # others only ever fail when epochs were lost often enough by other means than their own
            assert set(errors.values()) <= {AttemptsExhausted}
            if self.killed == 0 and deadly <= 1:
                assert errors == {}
        assert self.world.driver.status().waiting == 0


class AnythingBoundTogether(Anything):
    """The same, where the ranks' processes end together."""

    collectives = True


TestAnything = Anything.TestCase
TestAnything.settings = settings(stateful_step_count=30, max_examples=60, deadline=None)
TestAnythingBoundTogether = AnythingBoundTogether.TestCase
TestAnythingBoundTogether.settings = settings(stateful_step_count=30, max_examples=40, deadline=None)

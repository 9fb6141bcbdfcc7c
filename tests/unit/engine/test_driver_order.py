"""Calls, deliveries, deaths and births in any order: at the end all is told, once and rightly."""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rankmq.schemas.errors import (
    AttemptsExhausted,
    GraphFailed,
)

from tests.unit.engine.graphs_in_memory import BAD, DEADLY
from tests.unit.engine.simulation import Calls, World, ready_world, rows_of


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
        self.world.settle(Random(7), seconds=4000.0)
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


def test_where_rows_are_to_wait_for_others_they_do_and_not_for_longer():
    world = ready_world(max_wait=0.25, batch_size=3)
    calls, began = Calls(world), world.clock.now
    calls.call(0, rows_of(0, 1))
    calls.call(0, rows_of(0, 1))
    assert not world.tasks
    assert world.wakes == began + 0.25
    world.run()
    assert world.clock.now == began + 0.25
    assert {task.work.rows for _, _, task in world.tasks} == {2}
    sent = len(world.tasks)
    calls.call(0, rows_of(0, 1))
    assert len(world.tasks) == sent
    calls.call(0, rows_of(0, 2))
    assert len(world.tasks) > sent, "a whole batch has nothing to wait for"
    world.run()
    assert all(calls.check(number) == {} for number in range(4))

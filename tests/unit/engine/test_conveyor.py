"""Given stages of ranks, when they answer in any order, then each batch goes through all of them, in bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rankmq.engine.batch import Batch, PendingCall
from rankmq.engine.conveyor import Conveyor, Flight
from rankmq.engine.stages import stage_of, stage_ranks
from rankmq.schemas.errors import LockstepError
from rankmq.schemas.messages import RankReply

from tests.unit.engine.group_life import GROUP

EPOCH = 4

divisions = st.tuples(st.integers(1, 6), st.integers(1, 5)).map(lambda pair: (pair[0] * pair[1], pair[0]))
"""How many ranks, and into how many stages they are divided."""


def a_batch(number: int) -> Batch:
    call = PendingCall(0, [(np.array(number),)], owner=None)
    call.number = number
    return Batch(0, ((call, 0),))


def number_of(batch: Batch) -> int:
    return batch.owners[0][0].number


def reply(rank: int, step: int, epoch: int = EPOCH) -> RankReply:
    return RankReply(group=GROUP, epoch=epoch, step=step, rank=rank)


def answer(conveyor: Conveyor, ranks: Iterable[int], step: int, now: float = 0.0):
    """All of these ranks answer a step; gives what the last answer brings."""
    finished = [conveyor.reply(reply(rank, step), now) for rank in ranks]
    assert not any(finished[:-1])
    return finished[-1]


# ----------------------------------------------------------------------------------------------------------- division


@given(divisions)
def test_every_rank_is_in_one_stage_and_stages_are_of_one_size(division):
    size, stages = division
    members = [stage_ranks(stage, size, stages) for stage in range(stages)]
    assert [rank for ranks in members for rank in ranks] == list(range(size))
    assert len({len(ranks) for ranks in members}) == 1
    assert all(stage_of(rank, size, stages) == stage for stage, ranks in enumerate(members) for rank in ranks)


# -------------------------------------------------------------------------------------------------------- by example


def test_what_one_stage_made_is_the_input_of_the_next():
    conveyor = Conveyor(EPOCH, 4, 2, 2)
    batch, made = a_batch(1), [(np.array(5),)]
    first = Flight(batch, 0, batch.rows)
    assert conveyor.issue(first, 0.0) == 0
    finished = answer(conveyor, (0, 1), 0)
    assert finished is not None
    assert finished.item is first
    assert set(finished.replies) == {0, 1}
    assert conveyor.pass_on(first, made)
    second = conveyor.next()
    assert second is not None
    assert (second.batch, second.stage, second.rows) == (batch, 1, made)
    assert conveyor.issue(second, 0.0) == 0  # the ranks of this stage count their own steps
    assert answer(conveyor, (2, 3), 0).item is second
    assert not conveyor.pass_on(second, made)
    assert conveyor.outstanding == 0


def test_later_stages_go_first():
    conveyor = Conveyor(EPOCH, 3, 3, 4)
    for number in range(2):
        conveyor.issue(Flight(a_batch(number), 0, ()), 0.0)
    for step in range(2):
        conveyor.pass_on(answer(conveyor, (0,), step).item, ())
    second = conveyor.next()
    conveyor.issue(second, 0.0)
    conveyor.pass_on(answer(conveyor, (1,), 0).item, ())  # now one waits for stage 1, and one for stage 2
    found = [conveyor.next(), conveyor.next(), conveyor.next()]
    assert [flight and (number_of(flight.batch), flight.stage) for flight in found] == [(0, 2), (1, 1), None]


def test_the_first_stage_waits_while_the_second_is_stuck():
    conveyor = Conveyor(EPOCH, 2, 2, 2)
    issued = 0
    while conveyor.has_room() and issued < 50:
        step = conveyor.issue(Flight(a_batch(issued), 0, ()), 0.0)
        conveyor.pass_on(answer(conveyor, (0,), step).item, ())
        flight = conveyor.next()
        if flight is not None:
            conveyor.issue(flight, 0.0)  # and rank 1 never answers
        issued += 1
    assert issued == 4  # two at rank 1, two before it


def test_a_rank_of_another_stage_has_no_say():
    conveyor = Conveyor(EPOCH, 4, 2, 2)
    conveyor.issue(Flight(a_batch(0), 0, ()), 0.0)
    with pytest.raises(LockstepError):
        conveyor.reply(reply(2, 0), 0.0)
    with pytest.raises(LockstepError):
        conveyor.reply(reply(0, 0, EPOCH - 1), 0.0)
    assert answer(conveyor, (0, 1), 0) is not None


def test_overdue_names_the_ranks_of_the_stage_that_is_late():
    conveyor = Conveyor(EPOCH, 4, 2, 2)
    batch = a_batch(0)
    conveyor.issue(Flight(batch, 0, ()), 0.0)
    conveyor.pass_on(answer(conveyor, (0, 1), 0, 5.0).item, ())
    assert conveyor.overdue(100.0, 10.0) is None  # what waits for a stage is nobody's fault
    late = conveyor.next()
    conveyor.issue(late, 100.0)
    conveyor.reply(reply(3, 0), 101.0)
    assert conveyor.overdue(110.0, 10.0) is None
    assert conveyor.overdue(110.1, 10.0) == (late, 0, (2,))


# -------------------------------------------------------------------------------------------------------- by machine


class ConveyorMachine(RuleBasedStateMachine):
    """Batches enter when there is room; ranks answer in any order; at any time the epoch may end."""

    @initialize(division=divisions, window=st.integers(1, 3))
    def begin(self, division: tuple[int, int], window: int) -> None:
        self.size, self.stages = division
        self.window = window
        self.conveyor = Conveyor(EPOCH, self.size, self.stages, window)
        self.each = self.size // self.stages
        self.sent: list[list[int]] = [[] for _ in range(self.stages)]  # by stage, the batches in order of issue
        self.done: list[list[int]] = [[] for _ in range(self.stages)]
        self.answered = dict.fromkeys(range(self.size), 0)
        self.entered = 0

    def _issue(self, flight: Flight) -> None:
        step = self.conveyor.issue(flight, 0.0)
        assert step == len(self.sent[flight.stage])
        self.sent[flight.stage].append(number_of(flight.batch))

    @precondition(lambda self: self.conveyor.has_room())
    @rule()
    def enter(self) -> None:
        batch = a_batch(self.entered)
        self.entered += 1
        self._issue(Flight(batch, 0, batch.rows))

    @rule()
    def go_on(self) -> None:
        flight = self.conveyor.next()
        if flight is None:
            for stage in range(1, self.stages):  # none waits, or it must not go
                waits = len(self.done[stage - 1]) > len(self.sent[stage])
                assert not waits or not self._may_issue(stage)
            return
        assert flight.stage > 0
        assert flight.rows == [(number_of(flight.batch), flight.stage - 1)]
        self._issue(flight)

    def _may_issue(self, stage: int) -> bool:
        ranks = stage_ranks(stage, self.size, self.stages)
        free = all(len(self.sent[stage]) - self.answered[rank] < self.window for rank in ranks)
        behind = len(self.done[stage]) - len(self.sent[stage + 1]) if stage + 1 < self.stages else 0
        return free and behind < self.window

    @rule(data=st.data())
    def rank_answers(self, data: st.DataObject) -> None:
        owing = [
            rank
            for rank in range(self.size)
            if self.answered[rank] < len(self.sent[stage_of(rank, self.size, self.stages)])
        ]
        if not owing:
            return
        rank = data.draw(st.sampled_from(owing))
        stage, step = stage_of(rank, self.size, self.stages), self.answered[rank]
        finished = self.conveyor.reply(reply(rank, step), 0.0)
        self.answered[rank] += 1
        last = all(self.answered[it] > step for it in stage_ranks(stage, self.size, self.stages))
        assert (finished is not None) == last
        if finished is None:
            return
        flight = finished.item
        assert (flight.stage, number_of(flight.batch)) == (stage, self.sent[stage][step])
        self.done[stage].append(number_of(flight.batch))
        further = self.conveyor.pass_on(flight, [(number_of(flight.batch), stage)])
        assert further == (stage + 1 < self.stages)

    def teardown(self) -> None:
        """The epoch ends."""
        if not hasattr(self, "conveyor"):
            return
        ended = set(self.done[-1])
        void = [number_of(batch) for batch in self.conveyor.void()]
        assert void == [it for it in range(self.entered) if it not in ended], "each once, oldest first"
        assert self.conveyor.outstanding == 0
        assert not self.conveyor.has_room()
        assert self.conveyor.next() is None

    @invariant()
    def in_order_and_in_bounds(self) -> None:
        if not hasattr(self, "conveyor"):
            return
        for stage in range(self.stages):
            assert self.sent[stage] == list(range(len(self.sent[stage]))), "no batch overtakes another, none is twice"
            assert max(Counter(self.sent[stage]).values(), default=1) == 1
        assert self.conveyor.outstanding == self.entered - len(self.done[-1])
        # At each stage no more than the window, and between two no more than it and what was under way meanwhile.
        assert self.conveyor.outstanding <= self.window * (3 * self.stages - 2)
        assert self.conveyor.has_room() == self._may_issue(0)


TestConveyor = ConveyorMachine.TestCase
TestConveyor.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_what_is_under_way_ends_when_the_last_of_it_does_and_is_seen_anew_with_each_end():
    conveyor = Conveyor(EPOCH, 2, 1, 4)
    assert conveyor.under_way().steps == 0
    for number, (now, lasts) in enumerate([(10.0, 2.0), (11.0, 3.0)]):
        conveyor.issue(Flight(a_batch(number), 0, ()), now)
        conveyor.began(5 + number, lasts, now)
    found = conveyor.under_way()
    assert (found.steps, found.rows, found.lasts, found.ends) == (2, 6, 3.0, 15.0)
    answer(conveyor, range(2), 0, 10.5)  # sooner than was thought
    found = conveyor.under_way()
    assert (found.steps, found.rows, found.lasts, found.ends) == (1, 6, 3.0, 13.5)
    answer(conveyor, range(2), 1, 14.0)
    assert conveyor.under_way().steps == 0
    conveyor.issue(Flight(a_batch(2), 0, ()), 20.0)
    conveyor.began(1, 1.0, 20.0)
    assert conveyor.under_way().ends == 21.0

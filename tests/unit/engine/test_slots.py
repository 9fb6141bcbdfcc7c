"""Slots: given in order, never twice, all free after an epoch."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rankmq.engine.life import Life
from rankmq.engine.slots import Session, Slots


def test_who_finds_no_slot_waits_in_order():
    # Given one slot, held
    slots, given = Slots(1), []
    slots.began(1)
    slots.acquire(lambda it: given.append(("a", it)), Life())
    # When two more ask, and the holder lets go
    slots.acquire(lambda it: given.append(("b", it)), Life())
    slots.acquire(lambda it: given.append(("c", it)), Life())
    slots.release(given[0][1])
    # Then the first of them has it
    assert [name for name, _ in given] == ["a", "b"]
    assert slots.waiting == 1


def test_nothing_is_given_before_an_epoch_began():
    slots, given = Slots(2), []
    slots.acquire(given.append, Life())
    assert given == []
    slots.began(7)
    assert [(it.slot, it.epoch) for it in given] == [(0, 7)]


def test_a_session_of_an_epoch_that_ended_is_lost_and_its_release_frees_nothing_twice():
    slots, given = Slots(1), []
    slots.began(1)
    slots.acquire(given.append, Life())
    slots.ended()
    assert not slots.live(given[0])
    slots.began(2)
    slots.acquire(given.append, Life())
    slots.release(given[0])
    slots.acquire(given.append, Life())
    assert len(given) == 2
    assert slots.live(given[1])


class SlotsMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.slots = Slots(3)
        self.given: list[tuple[int, Session]] = []
        self.asked = 0
        self.open: list[Session] = []
        self.epoch = 0
        self.running = False

    @rule()
    def ask(self):
        number = self.asked
        self.asked += 1

        def take(session: Session) -> None:
            self.given.append((number, session))
            self.open.append(session)

        self.slots.acquire(take, Life())

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def let_go(self, data):
        session = data.draw(st.sampled_from(self.open))
        self.open.remove(session)
        self.slots.release(session)

    @precondition(lambda self: not self.running)
    @rule()
    def begin(self):
        self.epoch += 1
        self.running = True
        self.slots.began(self.epoch)

    @precondition(lambda self: self.running)
    @rule()
    def end(self):
        self.running = False
        self.slots.ended()

    @invariant()
    def given_in_order_and_never_twice(self):
        assert [number for number, _ in self.given] == list(range(len(self.given)))
        live = [session for session in self.open if self.slots.live(session)]
        assert len({session.slot for session in live}) == len(live) == self.slots.held <= 3
        assert all(session.epoch == self.epoch for session in live)
        assert self.slots.waiting == self.asked - len(self.given)
        if self.running and self.slots.waiting:
            assert self.slots.held == 3


TestSlots = SlotsMachine.TestCase
TestSlots.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

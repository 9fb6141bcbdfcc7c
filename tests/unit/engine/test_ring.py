"""Spans of a ring against a model that knows every byte."""

import hypothesis.strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from rankmq.engine.ring import ALIGNMENT, Ring

SIZE = 16 * ALIGNMENT


class Machine(RuleBasedStateMachine):
    spans = Bundle("spans")

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring(SIZE)
        self.held = set()

    @rule(target=spans, length=st.integers(0, SIZE + 1))
    def take(self, length):
        span = self.ring.take(length)
        if span is None:
            assert self.held or length > SIZE  # an empty one has room for all it can hold
            return None
        assert span.offset % ALIGNMENT == 0
        assert span.length >= length
        assert 0 <= span.offset <= span.offset + span.length <= SIZE
        for other in self.held:
            assert span.offset + span.length <= other.offset or other.offset + other.length <= span.offset
        if not self.held:
            assert span.offset == 0
        self.held.add(span)
        return span

    @rule(span=consumes(spans))
    def give_back(self, span):
        if span is not None:
            self.held.discard(span)
            self.ring.give_back(span)
            self.ring.give_back(span)

    @invariant()
    def counts(self):
        assert self.ring.used == len(self.held)


TestRing = Machine.TestCase


def test_in_order_it_goes_round_and_never_runs_full():
    """As steps do: the oldest comes back first, and a third of the room is always free."""
    ring = Ring(SIZE)
    held = []
    for number in range(500):
        if len(held) == 3:
            ring.give_back(held.pop(0))
        span = ring.take(ALIGNMENT * (1 + number % 3))
        assert span is not None
        held.append(span)

"""Given publishes, when the broker answers them in any way that AMQP allows, then each is told its own fate, once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rankmq.engine.confirms import Confirms, Outcome

CONFIRMED, RETURNED, REJECTED, LOST = Outcome.CONFIRMED, Outcome.RETURNED, Outcome.REJECTED, Outcome.LOST


def publish(confirms, *routes):
    """Publishes; gives what becomes of each, by its tag."""
    fates = {}
    for route in routes:
        tag = confirms.next_tag()
        confirms.published(route, lambda outcome, tag=tag: fates.setdefault(tag, []).append(outcome))
    return fates


def test_tags_count_from_one():
    confirms = Confirms()
    assert confirms.next_tag() == 1
    publish(confirms, "a", "b")
    assert (confirms.next_tag(), len(confirms)) == (3, 2)


@pytest.mark.parametrize(("positive", "outcome"), [(True, CONFIRMED), (False, REJECTED)])
def test_answers_come_singly_in_any_order_or_for_all_up_to_one(positive, outcome):
    confirms = Confirms()
    fates = publish(confirms, *"abcdef")
    confirms.answered(5, multiple=False, positive=positive)
    assert fates == {5: [outcome]}
    confirms.answered(3, multiple=True, positive=positive)
    assert fates == {tag: [outcome] for tag in (1, 2, 3, 5)}
    assert len(confirms) == 2
    confirms.answered(9, multiple=True, positive=positive)
    assert sorted(fates) == [1, 2, 3, 4, 5, 6]


def test_what_came_back_is_told_so_when_its_confirm_comes():
    confirms = Confirms()
    fates = publish(confirms, "a", "b", "c")
    assert confirms.returned("b")
    assert fates == {}
    confirms.answered(3, multiple=True, positive=True)
    assert fates == {1: [CONFIRMED], 2: [RETURNED], 3: [CONFIRMED]}


def test_what_came_back_and_was_refused_too_was_refused():
    confirms = Confirms()
    fates = publish(confirms, "a")
    confirms.returned("a")
    confirms.answered(1, multiple=False, positive=False)
    assert fates == {1: [REJECTED]}


def test_the_same_route_twice_comes_back_twice():
    confirms = Confirms()
    fates = publish(confirms, ("", "gone", "m"), ("", "there", "m"), ("", "gone", "m"))
    assert confirms.returned(("", "gone", "m"))
    assert confirms.returned(("", "gone", "m"))
    assert not confirms.returned(("", "gone", "m"))
    confirms.answered(3, multiple=True, positive=True)
    assert fates == {1: [RETURNED], 2: [CONFIRMED], 3: [RETURNED]}


def test_what_is_not_on_record_changes_nothing():
    confirms = Confirms()
    fates = publish(confirms, "a")
    assert not confirms.returned("b")
    confirms.answered(7, multiple=False, positive=True)
    confirms.answered(0, multiple=True, positive=True)
    assert (fates, len(confirms)) == ({}, 1)


def test_nobody_need_ask():
    confirms = Confirms()
    confirms.published("a", None)
    confirms.published("b", None)
    confirms.answered(1, multiple=False, positive=True)
    confirms.lost()
    assert len(confirms) == 0


def test_who_is_told_may_publish_again():
    confirms = Confirms()
    told = []

    def then(outcome):
        told.append(outcome)
        if len(told) < 3:
            confirms.published("again", then)

    confirms.published("a", then)
    confirms.answered(9, multiple=True, positive=True)
    assert told == [CONFIRMED]  # the new one is another
    confirms.lost()
    assert told == [CONFIRMED, LOST]
    assert len(confirms) == 1


@given(st.lists(st.integers(0, 3), max_size=30), st.data())
def test_each_is_told_once(routes, data):
    confirms = Confirms()
    fates = publish(confirms, *routes)
    for _ in range(data.draw(st.integers(0, 10))):
        tag, multiple = data.draw(st.integers(0, 40)), data.draw(st.booleans())
        confirms.answered(tag, multiple=multiple, positive=data.draw(st.booleans()))
    assert len(fates) + len(confirms) == len(routes)
    confirms.lost()
    assert len(confirms) == 0
    assert all(len(found) == 1 for found in fates.values())
    assert len(fates) == len(routes)


class AsABroker(RuleBasedStateMachine):
    """A broker that routes by key and confirms out of order; a return comes before its confirm, as it does."""

    def __init__(self):
        super().__init__()
        self.confirms = Confirms()
        self.open = {}
        self.fates = {}

    @rule(route=st.sampled_from(["there", "gone"]), message=st.sampled_from("ab"))
    def publish(self, route, message):
        tag = self.confirms.next_tag()
        self.open[tag] = (route, message)
        self.confirms.published((route, message), lambda outcome: self.fates.setdefault(tag, []).append(outcome))
        if route == "gone":
            assert self.confirms.returned((route, message))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), multiple=st.booleans())
    def confirm(self, data, multiple):
        tag = data.draw(st.sampled_from(sorted(self.open)))
        self.confirms.answered(tag, multiple=multiple, positive=True)
        for it in [it for it in self.open if it == tag or (multiple and it < tag)]:
            route, _ = self.open.pop(it)
            assert self.fates.pop(it) == [RETURNED if route == "gone" else CONFIRMED]

    @invariant()
    def the_rest_is_open(self):
        assert self.fates == {}
        assert len(self.confirms) == len(self.open)


TestAsABroker = AsABroker.TestCase

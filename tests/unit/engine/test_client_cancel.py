"""What several orchestrators say of a cancel, put together."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.client_cancel import Words

STATES = ("cancelled", "answered", "noted")


@pytest.mark.parametrize("states", [*permutations(STATES), *permutations(STATES, 2), *permutations(STATES, 1)])
def test_the_best_word_counts_in_whatever_order_they_come(states):
    words = Words(["a"])
    for state in states:
        words.say("a", state)
    assert words.known() == {"a": min(states, key=STATES.index)}


def test_nothing_is_known_before_somebody_speaks():
    words = Words(["a", "b"])
    assert words.known() == {}
    assert not words.complete
    assert not words.final


def test_only_cancelled_is_final():
    words = Words(["a"])
    for state in ("noted", "answered"):
        words.say("a", state)
        assert words.complete
        assert not words.final
    words.say("a", "cancelled")
    assert words.final


def test_every_request_needs_a_word():
    words = Words(["a", "b", "a"])
    words.say("a", "cancelled")
    assert not words.complete
    words.say("b", "noted")
    assert words.complete
    assert not words.final


def test_what_nobody_hears_is_not_waited_for():
    words = Words(["a", "b"])
    words.nobody("a")
    words.say("b", "cancelled")
    assert words.complete
    assert words.final
    assert words.known() == {"b": "cancelled"}


def test_no_requests_need_no_words():
    assert Words([]).complete
    assert Words([]).final


@given(st.lists(st.tuples(st.sampled_from("abcx"), st.sampled_from(STATES))))
def test_words_on_requests_that_were_not_asked_for_are_dropped(said):
    words = Words("abc")
    for request_id, state in said:
        words.say(request_id, state)
    expected = {
        it: min((state for name, state in said if name == it), key=STATES.index)
        for it in "abc"
        if any(name == it for name, _ in said)
    }
    assert words.known() == expected
    assert words.complete is (len(expected) == 3)
    assert words.final is (len(expected) == 3 and set(expected.values()) == {"cancelled"})

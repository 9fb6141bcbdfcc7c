"""Given requests of several lanes, when places are free, then they start by weight, in order, and none starves."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rankmq.engine.admission import WEIGHTS, Admission
from rankmq.engine.topology import LANES

LONGEST_WAIT = 64
"""Starts that a request at the head of its lane may see go by, while there is room for it."""


def filled(most, **lanes):
    """An admission in which so many of each lane wait, as (lane, number)."""
    admission = Admission(most)
    for lane, count in lanes.items():
        for number in range(count):
            admission.put(lane, (lane, number))
    return admission


def started(admission):
    return list(iter(admission.take, None))


def lanes_of(items):
    return Counter(lane for lane, _ in items)


def test_nothing_waits_nothing_starts():
    admission = Admission(4)
    assert admission.take() is None
    assert (admission.running, admission.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("most", "high", "normal", "low"),
    [(1, 2, 1, 1), (2, 3, 2, 1), (8, 9, 8, 7), (64, 72, 64, 56), (100, 112, 100, 88)],
)
def test_how_many_of_one_lane_run_at_once(most, high, normal, low):
    for lane, count in (("high", high), ("normal", normal), ("low", low)):
        admission = filled(most, **{lane: 500})
        assert len(started(admission)) == count == admission.running
        assert admission.waiting == 500 - count


def test_the_low_lane_leaves_places_to_those_above():
    admission = filled(16, low=50)
    assert lanes_of(started(admission)) == {"low": 14}
    for number in range(50):
        admission.put("normal", ("normal", number))
    assert lanes_of(started(admission)) == {"normal": 2}
    for number in range(50):
        admission.put("high", ("high", number))
    assert lanes_of(started(admission)) == {"high": 2}
    assert admission.running == 18


def test_what_is_urgent_has_places_of_its_own_and_takes_no_others_for_ever():
    """Where all places are taken by the highest lane, what ends makes room for the others too."""
    admission = filled(16, high=500)
    running = started(admission)
    assert len(running) == 18
    for number in range(50):
        admission.put("normal", ("normal", number))
        admission.put("low", ("low", number))
    assert admission.take() is None
    found = Counter()
    for _ in range(42):
        admission.ended(running.pop(0))
        (item,) = started(admission)
        running.append(item)
        found[item[0]] += 1
    assert admission.running == 18
    assert 1 <= found["low"] < found["normal"] < found["high"]


def test_the_weights():
    """Of 21 starts from full lanes, 16, 4 and 1."""
    admission = filled(10_000, high=2000, normal=2000, low=2000)
    for lane in LANES:
        for number in range(1250 if lane == "high" else 0):  # which fills the places that only this lane has
            admission.put(lane, (lane, 10_000 + number))
    order = [admission.take() for _ in range(210)]
    assert lanes_of(order) == {lane: 10 * weight for lane, weight in WEIGHTS.items()}
    for window in (order[start : start + 21] for start in range(0, 210, 21)):
        assert lanes_of(window) == dict(WEIGHTS)


def test_a_request_that_leaves_makes_room():
    admission = filled(1, normal=3)
    assert admission.take() == ("normal", 0)
    admission.ended(("normal", 1))  # given up while it waited
    assert admission.take() is None
    admission.ended(("normal", 0))
    assert admission.take() == ("normal", 2)
    admission.ended(("normal", 2))
    admission.ended(("normal", 2))
    admission.ended(("normal", 77))
    assert (admission.running, admission.waiting) == (0, 0)


def test_a_lane_that_nobody_knows_is_the_normal_one():
    admission = Admission(1)
    admission.put("urgent", "x")
    admission.put("normal", "y")
    assert admission.take() == "x"


class Lanes(RuleBasedStateMachine):
    """Requests come by any lane, end in any order, are given up wherever they are."""

    def __init__(self):
        super().__init__()
        self.most = 5
        self.admission = Admission(self.most)
        self.names = itertools.count()
        self.waiting = {lane: [] for lane in LANES}
        self.running = []
        self.passed = dict.fromkeys(LANES, 0)

    @rule(lane=st.sampled_from(LANES), count=st.integers(1, 6))
    def comes(self, lane, count):
        for _ in range(count):
            item = (lane, next(self.names))
            self.waiting[lane].append(item)
            self.admission.put(lane, item)

    @rule()
    def starts(self):
        item = self.admission.take()
        if item is None:
            count = lanes_of(self.running)
            if self.waiting["high"]:
                assert len(self.running) == self.most + 1
            if self.waiting["normal"]:
                assert len(self.running) - min(1, count["high"]) >= self.most
            if self.waiting["low"]:
                assert count["low"] == self.most - 1 or len(self.running) - min(1, count["high"]) >= self.most
            return
        lane = item[0]
        assert self.waiting[lane].pop(0) == item, "first come, first served"
        self.running.append(item)
        room = {it for it in LANES if self.waiting[it] and self.has_room(it)}
        for it in LANES:
            self.passed[it] = self.passed[it] + 1 if it in room and it != lane else 0
            assert self.passed[it] <= LONGEST_WAIT, f"{it} is starved"

    def has_room(self, lane):
        others = self.running[:-1]
        count = lanes_of(others)
        shared = len(others) - min(1, count["high"])
        return shared < self.most and (lane != "low" or count["low"] < self.most - 1)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def ends(self, data):
        item = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.admission.ended(item)

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def is_given_up(self, data):
        lane = data.draw(st.sampled_from([lane for lane in LANES if self.waiting[lane]]))
        item = self.waiting[lane].pop(data.draw(st.integers(0, len(self.waiting[lane]) - 1)))
        self.admission.ended(item)

    @rule(rounds=st.integers(1, 80))
    def is_busy(self, rounds):
        """Each end is followed by as many starts as there is room for, all lanes being full."""
        for lane in LANES:
            self.comes(lane, 3)
        for _ in range(rounds):
            self.starts()
            if len(self.running) > self.most:
                self.admission.ended(self.running.pop(0))

    @invariant()
    def is_bounded(self):
        assert self.admission.running == len(self.running) <= self.most + 1
        assert self.admission.waiting == sum(map(len, self.waiting.values()))
        count = lanes_of(self.running)
        assert count["low"] <= self.most - 1
        assert count["normal"] + count["low"] <= self.most


TestLanes = Lanes.TestCase
TestLanes.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)

"""How many requests are under way, and how many rows are in each."""

import heapq
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.jobs.packing import Packing
from rankmq.engine.jobs.window import Window


class Group:
    """Answers requests of one row, `most` at a time, each of which takes so many seconds; the others wait."""

    def __init__(self, window: Window, most: int, seconds: float) -> None:
        self.window, self.seconds = window, seconds
        self.servers = [0.0] * most
        self.sent: list[tuple[float, int, float]] = []  # answered at, number, sent at
        self.numbers = itertools.count()
        self.now = 0.0
        self.answered = 0

    def run(self, until: float) -> None:
        while self.now < until:
            for _ in range(self.window.room(len(self.sent), len(self.sent), 1)):
                self.window.sent(self.now)
                begins = max(self.now, heapq.heappop(self.servers))
                heapq.heappush(self.servers, begins + self.seconds)
                heapq.heappush(self.sent, (begins + self.seconds, next(self.numbers), self.now))
            self.now, _, sent_at = heapq.heappop(self.sent)
            self.answered += 1
            self.window.answered(1, self.now - sent_at, self.now)


@pytest.mark.parametrize(("most", "seconds"), [(1, 0.01), (1, 2.0), (16, 0.5), (16, 30.0), (100, 1.0), (200, 60.0)])
def test_it_keeps_busy_who_can_have_many_at_once_or_is_slow(most: int, seconds: float) -> None:
    group = Group(Window(), most, seconds)
    group.run(20 * seconds + 20.0)
    before, began = group.answered, group.now
    group.run(group.now + 20 * seconds + 20.0)
    rate, best = (group.answered - before) / (group.now - began), most / seconds
    assert rate >= 0.95 * best
    assert len(group.sent) <= max(16, 1.1 * best * (4.0 + 2 * seconds) + 1)


def test_what_waits_behind_it_waits_for_seconds_only() -> None:
    group = Group(Window(), 1, 0.05)
    group.run(60.0)
    assert len(group.sent) / 20 <= 4.5


def test_one_slow_period_does_not_shake_it() -> None:
    window = Window()
    group = Group(window, 1, 0.02)
    group.run(30.0)
    before = window.room(0, 0, 1)
    assert before > 100
    window.answered(1, 5.0, group.now + 5.0)
    assert window.room(0, 0, 1) == before


def test_batches_that_end_together_are_one_rate() -> None:
    window, now = Window(), 0.0
    for _ in range(40):
        now += 0.8
        for _ in range(8):
            window.answered(32, 1.6, now)
    assert window.rate == pytest.approx(8 * 32 / 0.8, rel=0.2)


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(0, 300)), min_size=1, max_size=60), st.floats(0, 1e6))
def test_the_first_rate_counts_from_when_the_first_request_was_sent(
    answers: list[tuple[float, int]], began: float
) -> None:
    """However long nothing came, and however much then came at once."""
    window, now, done = Window(), began, 0
    window.sent(began)
    for seconds, rows in answers:
        now += seconds
        done += rows
        window.sent(now)
        told = window.answered(rows, seconds, now)
        if len(window._periods) > 4:
            return
        if told:
            assert window.rate == pytest.approx(done / (now - began))
    assert window.rate or done == 0 or now - began < 0.5


def test_a_burst_after_a_silence_is_no_rate_of_its_own() -> None:
    window = Window()
    window.sent(100.0)
    for number in range(16):
        window.answered(16, 30.0, 130.0 + number / 100)
    assert window.rate == pytest.approx(16 * 16 / 30, rel=0.01)
    for number in range(16):
        window.answered(16, 60.0, 160.0 + number / 100)
    assert window.rate == pytest.approx(2 * 16 * 16 / 60, rel=0.01)


def test_a_broker_that_pushes_back_has_half_as_many_for_a_while() -> None:
    group = Group(Window(), 100, 1.0)
    group.run(30.0)
    before = len(group.sent)
    assert before > 200
    group.window.pressed(before, group.now)
    group.run(group.now + 25.0)
    assert len(group.sent) <= before // 2
    group.run(group.now + 20.0)
    assert len(group.sent) > before // 2


def test_so_few_as_one_if_the_broker_has_no_room() -> None:
    window = Window()
    for second in range(10):
        window.pressed(16, float(second))
    assert window.room(0, 0, 1) == 1


def test_fewer_requests_that_have_more_rows() -> None:
    group = Group(Window(), 1, 0.01)
    group.run(30.0)
    rows = group.window.room(0, 0, 1)
    assert 256 >= rows > 200
    assert group.window.room(0, 0, 10) == pytest.approx(400 / 10, rel=0.1)
    assert group.window.room(10, 100, 10) == pytest.approx(300 / 10, rel=0.1)
    assert group.window.room(40, 500, 10) == 0
    assert group.window.room(0, 0, 256) == 16


@given(st.integers(1, 64), st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(0, 300), st.booleans()), max_size=200))
def test_it_is_never_out_of_bounds(most: int, steps: list[tuple[float, int, bool]]) -> None:
    window, now = Window(most=most), 0.0
    for seconds, rows, pressed in steps:
        now += seconds
        if pressed:
            window.pressed(rows, now)
        else:
            window.answered(rows, seconds, now)
        assert 1 <= window.room(0, 0, 3) <= most
        assert window.room(most, 0, 3) == 0
        assert window.rate >= 0.0


def test_a_request_is_worth_a_little_of_the_ranks_time() -> None:
    packing = Packing()
    for _ in range(20):
        packing.measured(200.0)
    assert packing.rows == 50
    packing.measured(60.0)
    assert packing.rows == 50
    packing.measured(0.5)
    assert packing.rows == 25
    for _ in range(20):
        packing.measured(0.5)
    assert packing.rows == 1
    for _ in range(20):
        packing.measured(1e9)
    assert packing.rows == 256


def test_large_replies_travel_in_few() -> None:
    packing = Packing(most_bytes=1000)
    for _ in range(20):
        packing.measured(1e9)
    packing.answered(10, 2000)
    assert packing.rows == 5
    packing.answered(1, 5000)
    assert packing.rows == 1


def test_a_fixed_number_stays() -> None:
    packing = Packing(7)
    packing.measured(1e9)
    packing.answered(1, 1 << 30)
    assert packing.rows == 7

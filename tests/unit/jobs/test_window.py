"""How many requests are under way, and how many rows are in each."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.jobs.packing import Packing
from rankmq.engine.jobs.window import Window


def run(window: Window, rate_at: Callable[[int], float], seconds: float, begin: float = 0.0) -> float:
    """A group that answers so many requests a second, which depends on how many are under way."""
    now = begin
    while now < begin + seconds:
        now += 1 / rate_at(window.size)
        window.answered(1, now)
    return now


@pytest.mark.parametrize("useful", [4, 8, 30, 100])
def test_it_grows_to_what_helps_and_not_far_beyond(useful: int) -> None:
    window = Window(0.0)
    run(window, lambda size: 10.0 * min(size, useful), 25.0)
    assert useful / 2 <= window.size <= 2 * useful


def test_it_stays_within_its_bounds() -> None:
    window = Window(0.0, first=8, least=2, most=32)
    for _ in range(20):
        now = run(window, lambda size: 10.0 * size, 10.0, window._since)
        assert 2 <= window.size <= 32
    run(window, lambda size: 10.0 * size, 3.0, now)
    assert window.size >= 16
    for second in range(10):
        window.pressed(now + 10.0 + second)
    assert window.size == 2


def test_it_tries_again_when_there_may_be_more_to_have() -> None:
    window = Window(0.0)
    now = run(window, lambda size: 10.0 * min(size, 8), 20.0)
    small = window.size
    run(window, lambda size: 10.0 * min(size, 64), 60.0, now)
    assert window.size >= 2 * small


def test_a_broker_that_pushes_back_has_half_as_many() -> None:
    window = Window(0.0, first=64)
    window.pressed(1.0)
    assert window.size == 32


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.booleans()), max_size=200))
def test_it_is_never_out_of_bounds(steps: list[tuple[float, bool]]) -> None:
    window, now = Window(0.0, first=8, least=2, most=64), 0.0
    for seconds, pressed in steps:
        now += seconds
        if pressed:
            window.pressed(now)
        else:
            window.answered(3, now)
        assert 2 <= window.size <= 64


def test_it_has_no_more_under_way_than_helps() -> None:
    window = Window(0.0, first=64)
    run(window, lambda size: 10.0 * min(size, 8), 60.0)
    assert 8 <= window.size <= 16


def test_a_request_is_worth_a_little_of_the_ranks_time() -> None:
    packing = Packing()
    for _ in range(20):
        packing.measured(1000.0)
    assert packing.rows == 60
    packing.measured(0.5)
    assert packing.rows == 30
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

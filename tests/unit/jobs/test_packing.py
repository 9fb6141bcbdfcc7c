"""How many rows and bytes a request of a job has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.jobs.packing import Packing

MIB = 1 << 20


def test_past_the_broker_a_request_may_have_more():
    packing = Packing(most_bytes=MIB)
    packing.travels(near=True, most=64 * MIB)
    assert packing.most_bytes == 4 * MIB
    packing.travels(near=True, most=2 * MIB)
    assert packing.most_bytes == 2 * MIB
    packing.travels(near=False, most=64 * MIB)
    assert packing.most_bytes == MIB


def test_an_engine_that_takes_less_is_not_asked_for_more_again():
    packing = Packing(most_bytes=MIB)
    packing.travels(near=True, most=64 * MIB)
    packing.too_large()
    for near in (True, False, True):
        packing.travels(near=near, most=64 * MIB)
        assert packing.most_bytes == (2 * MIB if near else MIB)
    packing.too_large()
    packing.too_large()
    packing.travels(near=False, most=64 * MIB)
    assert packing.most_bytes == MIB // 2


@given(st.integers(1, 64 * MIB), st.booleans())
def test_whatever_an_engine_takes_is_found_in_a_few_steps(takes, near):
    packing, refused = Packing(most_bytes=MIB), 0
    packing.travels(near=near, most=64 * MIB)
    while packing.most_bytes > takes:
        packing.too_large()
        packing.travels(near=near, most=64 * MIB)
        refused += 1
    assert refused <= 23


@pytest.mark.parametrize("fixed", [None, 7])
def test_rows_follow_the_rate_unless_they_are_fixed(fixed):
    packing = Packing(fixed)
    packing.measured(1e6)
    packing.measured(1e6)
    assert packing.rows == (fixed or 256)
    for _ in range(20):
        packing.measured(4.0)
    assert packing.rows == (fixed or 4)

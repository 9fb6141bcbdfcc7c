"""How much shared memory a process takes: what it wants, and never what the others cannot do without."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.memory_share import share_of

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("wanted", "free", "among", "share"),
    [
        (64 * MIB, 256 * MIB, 1, 64 * MIB),
        (64 * MIB, 256 * MIB - 1, 1, 32 * MIB),
        (64 * MIB, 64 * MIB, 1, 16 * MIB),  # of Docker's own /dev/shm
        (8 * MIB, 48 * MIB, 8, MIB),
        (8 * MIB, 31 * MIB, 8, 0),
        (64 * MIB, 3 * MIB, 1, 0),
        (64 * MIB, 0, 1, 0),
    ],
)
def test_it_is_halved_until_there_is_room_for_the_others(wanted, free, among, share):
    assert share_of(wanted, MIB, free, among) == share


sizes = st.integers(0, 1 << 40)


@given(wanted=st.integers(1, 1 << 34), least=st.integers(1, MIB), free=sizes, among=st.integers(1, 64))
def test_all_of_them_together_take_a_quarter_at_most(wanted, least, free, among):
    share = share_of(wanted, least, free, among)
    assert share == 0 or least <= share <= wanted
    assert share * among * 4 <= free
    if share < wanted and share:
        assert 2 * (share + 1) * among * 4 > free  # and no less than half of what they could have

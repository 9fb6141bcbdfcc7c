"""Given the properties of a request, when it is asked how long it is worth serving, then they say so."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.connection import Properties
from rankmq.engine.deadline import DEADLINE_HEADER, RUN_HEADER, Deadlines, run_seconds, seconds_left
from rankmq.schemas.errors import InvalidInput

NOW = 1_700_000_000.5


def left(headers=None, **properties):
    return seconds_left(Properties(**properties), headers or {}, NOW)


def test_the_header_says_when():
    assert left({DEADLINE_HEADER: 1_700_000_002_000}) == pytest.approx(1.5)
    assert left({DEADLINE_HEADER: 1_700_000_000_000}) == pytest.approx(-0.5)
    assert left({DEADLINE_HEADER: 0}) == -NOW
    assert left({DEADLINE_HEADER: 1 << 62}) > 1e12


def test_the_header_counts_before_the_expiration():
    assert left({DEADLINE_HEADER: 1_700_000_002_000}, expiration="99000") == pytest.approx(1.5)
    with pytest.raises(InvalidInput):
        left({DEADLINE_HEADER: "1700000002000"}, expiration="99000")


@pytest.mark.parametrize("value", ["soon", "", b"1", 1.0, True, False, [], {}])
def test_a_header_that_is_no_integer(value):
    with pytest.raises(InvalidInput, match="milliseconds since 1970 as an integer"):
        left({DEADLINE_HEADER: value})


def test_a_long_header_is_told_in_short():
    with pytest.raises(InvalidInput) as caught:
        left({DEADLINE_HEADER: "x" * 10_000})
    assert len(caught.value.message) < 200


def test_how_long_it_may_take():
    assert run_seconds({}) is None
    assert run_seconds({RUN_HEADER: 1500}) == 1.5
    for value in ("1500", 1.5, True, 0, -1, [], b"1"):
        with pytest.raises(InvalidInput, match="milliseconds as an integer, 1 at least"):
            run_seconds({RUN_HEADER: value})


@pytest.mark.parametrize(
    ("expiration", "timestamp", "seconds"),
    [
        ("3000", 1_700_000_000, 3.0),  # published within that second, up to its end
        ("3000", 1_699_999_998, 1.5),
        ("3000", 1_699_999_990, -6.5),
        ("3000", None, 3.0),
        ("3000", 0, 3.0),
        ("3000", -7, 3.0),
        ("3000", 1_800_000_000, 3.0),  # by a clock that is ahead
        ("0", None, 0.0),
        ("4294967295", None, 4294967.295),
    ],
)
def test_the_expiration_counts_from_the_timestamp_on(expiration, timestamp, seconds):
    assert left(expiration=expiration, timestamp=timestamp) == pytest.approx(seconds)


@pytest.mark.parametrize("expiration", [None, "", "soon", "-5", "1.5", b"3000", 3000, " 3"])
def test_without_either_there_is_no_deadline(expiration):
    assert left(expiration=expiration) is None
    assert left({DEADLINE_HEADER: None}, expiration=expiration) is None


# ---------------------------------------------------------------------------------------------------------- which first


class Item:
    """Something that can be told from others and be forgotten."""


def test_what_is_over_comes_out_once_and_in_order():
    deadlines = Deadlines()
    assert deadlines.next() is None
    assert deadlines.due(1e9) == []
    for name, when in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 2.0)):
        deadlines.add(name, when)
    assert deadlines.next() == 1.0
    assert deadlines.due(0.99) == []
    assert deadlines.due(2.0) == ["a", "b", "d"]
    assert (deadlines.next(), len(deadlines)) == (3.0, 1)
    deadlines.discard("c")
    deadlines.discard("c")
    assert (deadlines.next(), len(deadlines)) == (None, 0)


@given(
    made=st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=300),
    looks=st.lists(st.floats(0, 100), max_size=5),
)
def test_what_was_taken_out_never_comes(made, looks):
    deadlines = Deadlines()
    wanted = {}
    for number, (when, stays) in enumerate(made):
        deadlines.add(number, when)
        if stays:
            wanted[number] = when
        else:
            deadlines.discard(number)
    for now in sorted(looks):
        due = deadlines.due(now)
        assert set(due) == {number for number, when in wanted.items() if when <= now}
        assert [wanted.pop(number) for number in due] == sorted(made[number][0] for number in due)
        assert len(deadlines) == len(wanted)
        assert deadlines.next() == min(wanted.values(), default=None)


def test_what_was_taken_out_is_not_held():
    """Requests with an hour's time that are served in a moment must not pile up for that hour."""
    deadlines = Deadlines()
    alive = []
    for number in range(5000):
        item = Item()
        alive.append(weakref.ref(item))
        deadlines.add(item, 3600.0 + number)
        deadlines.discard(item)
        del item
    gc.collect()
    assert sum(it() is not None for it in alive) <= 65

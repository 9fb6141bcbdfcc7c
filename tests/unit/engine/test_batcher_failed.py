"""Given a batch that failed, then the rows to blame are found, in few steps, and others get in between."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.batcher import Batcher

from tests.unit.engine.waiting_calls import call, drain, owners


def test_a_failed_batch_comes_back_in_halves_that_stay_apart():
    batcher = Batcher({0: 3})
    for owner in "abc":
        batcher.add(call(owner=owner))
    batcher.split(batcher.take())
    for owner in "de":
        batcher.add(call(owner=owner))

    assert batcher.waiting_rows == 5
    first, rest, second = drain(batcher)
    assert [owners(batch) for batch in (first, rest, second)] == [
        [("a", 0), ("b", 0)],
        [("d", 0), ("e", 0)],
        [("c", 0)],
    ]
    batcher.put_back(first)
    batcher.put_back(rest)
    assert [owners(batch) for batch in drain(batcher)] == [owners(rest), owners(first)]  # `second` went last


def test_where_it_is_known_at_which_row_it_failed_that_row_is_tried_by_itself():
    batcher = Batcher({0: 8})
    batcher.add(call(rows=6))
    for suspect, parts in [(0, [1, 5]), (2, [2, 1, 3]), (5, [5, 1])]:
        batch = batcher.take()
        batcher.split(batch, suspect)
        assert [len(batch) for batch in drain(batcher)] == parts
        batcher.put_back(batch)


def test_a_row_cannot_be_split():
    batcher = Batcher({0: 3})
    batcher.add(call())

    with pytest.raises(ValueError, match="one row"):
        batcher.split(batcher.take())


def test_a_limit_that_shrank_holds_for_halves_too():
    limits = {0: 8}
    batcher = Batcher(limits)
    batcher.add(call(rows=8))
    batcher.split(batcher.take())
    limits[0] = 3

    assert [len(batch) for batch in drain(batcher)] == [3, 1, 3, 1]


def test_rows_that_failed_together_wait_for_nobody():
    batcher = Batcher({0: 4})
    batcher.add(call(rows=2, owner="a", keys=["k", "k"]))
    batcher.split(batcher.take())

    assert [owners(batcher.take({(0, "k")})) for _ in range(2)] == [[("a", 0)], [("a", 1)]]


# ------------------------------------------------------------------------------------------------ others get in between


def test_between_two_parts_one_of_the_others_goes():
    batcher = Batcher({0: 4, 1: 1})
    batcher.add(call(rows=4, owner="bad"))
    batcher.split(batcher.take())
    for subgraph, owner in [(1, "a"), (0, "b"), (1, "c")]:
        batcher.add(call(subgraph, owner=owner))

    order = []
    while (batch := batcher.take()) is not None:
        order.append(owners(batch)[0][0])
        if batch.apart is not None and len(batch) > 1:
            batcher.split(batch)

    assert order == ["bad", "a", "bad", "b", "bad", "c", "bad", "bad", "bad"]


def test_what_is_urgent_goes_before_the_parts():
    batcher = Batcher({0: 4, 1: 1})
    batcher.add(call(rows=4, owner="bad"))
    batcher.split(batcher.take())
    for number in range(3):
        batcher.add(call(1, owner=number, head_start=10))

    assert [owners(batch)[0][0] for batch in drain(batcher)] == [0, 1, 2, "bad", "bad"]


def test_what_waits_for_others_holds_up_no_part():
    batcher = Batcher({0: 4, 1: 4})
    batcher.add(call(rows=4, owner="bad"))
    batcher.split(batcher.take())
    batcher.add(call(1, owner="patient", waits_until=5.0))
    batcher.add(call(1, owner="joins", keys=["k"]))

    assert [owners(batcher.take({(1, "k")}))[0][0] for _ in range(2)] == ["bad", "bad"]
    assert batcher.take({(1, "k")}) is None


def test_batches_that_failed_take_turns():
    batcher = Batcher({0: 4})
    for owner in "ab":
        batcher.add(call(rows=4, owner=owner))
    failed = [batcher.take(), batcher.take()]
    for batch in failed:
        batcher.split(batch)

    order = []
    while (batch := batcher.take()) is not None:
        order.append(owners(batch)[0][0])
        if len(batch) > 1:
            batcher.split(batch)

    assert order == list("abababababab")


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 6), st.sampled_from([0, 0, 2])), min_size=1, max_size=25),
    st.integers(1, 9),
    st.integers(0, 2**32),
)
def test_nobody_waits_for_longer_than_a_step_where_it_is_their_turn(specs, most, seed):
    """After a part one of the others goes, if any waits; after that a part, unless who goes came before it failed."""
    random, batcher = Random(seed), Batcher({0: most, 1: 1})
    others = parts = 0
    before, youngest = None, -1
    while specs or batcher.waiting_rows:
        if specs and (random.random() < 0.5 or not batcher.waiting_rows):
            bad, rows, ahead = specs.pop()
            batcher.add(call(0 if bad else 1, rows, owner=bad, head_start=ahead))
            others += rows
            continue
        batch = batcher.take()
        one, _ = batch.owners[0]
        if batch.apart is not None:
            assert before != "part" or not others
            before, parts = "part", parts - len(batch)
        else:
            place = one.number - one.head_start
            assert before != "other" or not parts or place <= youngest
            before, others = "other", others - len(batch)
        if one.owner and len(batch) > 1:
            youngest = max(youngest, batch.apart.age[0] if batch.apart is not None else place)
            batcher.split(batch)
            parts += len(batch)
    assert others == parts == 0


# ---------------------------------------------------------------------------------------------- how many steps it takes


def search(count, bad, *, back_to_back=False):
    """Runs rows, of which some are bad, until all are done; how many steps that took, and which rows failed."""
    batcher = Batcher({0: count})
    batcher.add(call(rows=count))
    steps, good, failed = 0, [], []
    while (batch := batcher.take()) is not None:
        steps += 1
        rows = [index for _, index in batch.owners]
        at = next((place for place, row in enumerate(rows) if row in bad), None)
        if at is None:
            good += rows
            if batch.apart is not None:
                batch.apart.ran()
        elif len(rows) > 1:
            batcher.split(batch, at if back_to_back else None)
        else:
            failed += rows
            if batch.apart is not None:
                batch.apart.failed_alone()
    assert sorted(good + failed) == list(range(count))
    assert set(failed) == {row for row in bad if row < count}
    return steps


@given(st.integers(1, 200), st.data())
def test_one_bad_row_is_found_by_halving(count, data):
    bad = data.draw(st.integers(0, count - 1))
    assert search(count, {bad}) <= 2 * (count - 1).bit_length() + 1
    assert search(count, {bad}, back_to_back=True) <= 4


@given(st.integers(1, 1024))
def test_where_all_are_bad_that_takes_little_more_than_one_step_a_row(count):
    assert search(count, range(count)) <= count + count.bit_length()
    assert search(count, range(count), back_to_back=True) <= count + 2


@pytest.mark.parametrize(
    ("bad", "most"),
    [
        (range(512), 540),  # in the first half
        (range(512, 1024), 540),
        (range(100, 120), 50),
        (range(0, 1024, 2), 1600),
        (range(0, 1024, 10), 900),
        ((0, 1023), 50),
    ],
)
def test_how_many_steps_it_takes_for_some_of_1024(bad, most):
    assert search(1024, bad) <= most


@given(st.integers(1, 60), st.sets(st.integers(0, 59)), st.booleans())
def test_exactly_the_bad_rows_fail_in_a_bounded_number_of_steps(count, bad, back_to_back):
    steps = search(count, bad, back_to_back=back_to_back)
    found = len([row for row in bad if row < count])
    assert steps <= 1 + 3 * count.bit_length() * found
    assert steps <= 2 * count

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.batcher import Batcher

from tests.unit.engine.waiting_calls import call, drain, owners


def test_nothing_waits_nothing_comes():
    assert Batcher({0: 4}).take() is None


def test_rows_of_many_calls_share_a_step():
    batcher = Batcher({0: 4})
    calls = [call(rows=2, owner="a", requests=("r1",)), call(owner="b", requests=("r2", "r1")), call(owner="c")]
    for one in calls:
        batcher.add(one)
    assert (len(batcher), batcher.waiting_rows) == (3, 4)

    batch = batcher.take()

    assert owners(batch) == [("a", 0), ("a", 1), ("b", 0), ("c", 0)]
    assert [row[0] for row in batch.rows] == [0, 1, 0, 0]
    assert batch.rows[1] is calls[0].rows[1]
    assert batch.requests == ("r1", "r2")
    assert (len(batch), len(batcher), batcher.waiting_rows) == (4, 0, 0)


def test_a_large_call_is_split_and_its_rest_filled_up():
    batcher = Batcher({0: 3})
    batcher.add(call(rows=4, owner="a"))
    batcher.add(call(rows=3, owner="b"))

    assert [owners(batch) for batch in drain(batcher)] == [
        [("a", 0), ("a", 1), ("a", 2)],
        [("a", 3), ("b", 0), ("b", 1)],
        [("b", 2)],
    ]


def test_the_oldest_call_goes_first_and_takes_company_along():
    batcher = Batcher(lambda subgraph, key: 8)
    for subgraph, owner in [(0, "a"), (1, "b"), (0, "c"), (2, "d"), (1, "e")]:
        batcher.add(call(subgraph, owner=owner))

    assert [(batch.subgraph, owners(batch)) for batch in drain(batcher)] == [
        (0, [("a", 0), ("c", 0)]),
        (1, [("b", 0), ("e", 0)]),
        (2, [("d", 0)]),
    ]


def test_a_stream_of_one_subgraph_does_not_starve_another():
    batcher = Batcher({0: 2, 1: 2})
    for _ in range(3):
        batcher.add(call(0))
    batcher.add(call(1, owner="other"))
    order = []
    for _ in range(3):
        batcher.add(call(0))
        order.append(batcher.take().subgraph)

    assert order == [0, 0, 1]


def test_rows_of_other_keys_wait_for_a_step_of_their_own():
    batcher = Batcher({0: 8})
    batcher.add(call(rows=3, keys=["x", "y", "x"], owner="a"))
    batcher.add(call(rows=2, keys=["y", "x"], owner="b"))
    batcher.add(call(owner="c"))

    assert [owners(batch) for batch in drain(batcher)] == [
        [("a", 0), ("a", 2), ("b", 1)],
        [("a", 1), ("b", 0)],
        [("c", 0)],
    ]


def test_a_cancelled_call_comes_out_no_more():
    batcher = Batcher({0: 2, 1: 2})
    a, b, c = call(rows=3, owner="a"), call(1, owner="b"), call(owner="c")
    for one in (a, b, c):
        batcher.add(one)
    batch = batcher.take()

    batcher.cancel(a)
    assert (len(batcher), batcher.waiting_rows) == (2, 2)
    batcher.put_back(batch)
    assert (len(batcher), batcher.waiting_rows) == (2, 2)
    batcher.split(batch)

    # b is older than c, although c stands behind a, the oldest
    assert [owners(batch) for batch in drain(batcher)] == [[("b", 0)], [("c", 0)]]


def test_what_was_put_back_stands_where_it_stood():
    batcher = Batcher({0: 2, 1: 2})
    for subgraph, owner in [(0, "a"), (1, "b"), (0, "c"), (0, "d"), (1, "e"), (1, "f")]:
        batcher.add(call(subgraph, owner=owner))
    taken = [batcher.take() for _ in range(3)]
    batcher.add(call(0, owner="g"))

    for batch in (taken[1], taken[2], taken[0]):
        batcher.put_back(batch)

    assert [owners(batch) for batch in drain(batcher)] == [
        [("a", 0), ("c", 0)],
        [("b", 0), ("e", 0)],
        [("d", 0), ("g", 0)],
        [("f", 0)],
    ]


def test_misuse_is_refused():
    batcher = Batcher({0: 0})
    one = call(rows=2)
    batcher.add(one)
    with pytest.raises(ValueError, match="before"):
        batcher.add(one)
    with pytest.raises(ValueError, match="no max_rows for subgraph 3"):
        batcher.add(call(3))
    with pytest.raises(ValueError, match="at least one row"):
        call(rows=0)
    with pytest.raises(ValueError, match="1 batch keys for 2 rows"):
        call(rows=2, keys=["x"])
    assert [len(batch) for batch in drain(batcher)] == [1, 1]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 5)), max_size=30), st.integers(1, 4))
def test_every_row_comes_once_in_order_and_never_too_many(specs, max_rows):
    batcher = Batcher({0: max_rows, 1: max_rows})
    for number, (subgraph, rows) in enumerate(specs):
        batcher.add(call(subgraph, rows, owner=number))

    batches = drain(batcher)

    assert all(len(batch) <= max_rows for batch in batches)
    for subgraph in (0, 1):
        came = [owner for batch in batches if batch.subgraph == subgraph for owner in owners(batch)]
        expected = [(n, row) for n, (number, rows) in enumerate(specs) if number == subgraph for row in range(rows)]
        assert came == expected
    heads = [owners(batch)[0] for batch in batches]
    assert heads == sorted(heads)


def test_rows_wait_for_those_that_will_join_them_unless_they_make_a_whole_batch():
    batcher = Batcher({0: 2, 1: 2})
    batcher.add(call(owner="a", keys=["k"]))
    batcher.add(call(subgraph=1, owner="b", keys=["k"]))
    batcher.add(call(owner="c", keys=["other"]))
    joining = {(0, "k")}

    assert owners(batcher.take(joining)) == [("b", 0)]
    assert owners(batcher.take(joining)) == [("c", 0)]
    assert batcher.take(joining) is None
    assert batcher.waiting_rows == 1
    batcher.add(call(rows=2, owner="d", keys=["k", "k"]))
    assert owners(batcher.take(joining)) == [("a", 0), ("d", 0)]
    assert batcher.take(joining) is None
    assert owners(batcher.take()) == [("d", 1)]


def test_rows_of_rare_shapes_let_full_steps_go_first_a_few_times():
    batcher = Batcher({0: 2})
    rare = call(keys=["rare"], owner="rare")
    batcher.add(rare)
    for number in range(12):
        batcher.add(call(rows=2, keys=["often", "often"], owner=number))

    found = [batch.owners[0][0].owner for batch in drain(batcher)]

    assert found == [*range(8), "rare", *range(8, 12)]


@pytest.mark.parametrize(
    ("rare", "often"),
    [
        ({"keys": ["rare"], "head_start": 1}, {"keys": ["often", "often"]}),  # somebody waits for it
        ({"keys": ["rare"]}, {"keys": ["often"]}),  # the others do not fill a step either
        ({"keys": ["rare"]}, {"keys": ["often", "often"], "subgraph": 1}),  # it is not their turn
    ],
)
def test_else_the_oldest_goes_first(rare, often):
    batcher = Batcher({0: 2, 1: 2})
    batcher.add(call(owner="rare", **rare))
    batcher.add(call(rows=len(often["keys"]), owner="often", **often))
    assert batcher.take().owners[0][0].owner == "rare"


def test_rows_that_nobody_wants_any_more_fill_no_step():
    batcher = Batcher({0: 2})
    batcher.add(call(keys=["rare"], owner="rare"))
    gone = call(rows=1, keys=["often"])
    batcher.add(call(rows=1, keys=["often"], owner="often"))
    batcher.add(gone)
    batcher.cancel(gone)
    assert [batch.owners[0][0].owner for batch in drain(batcher)] == ["rare", "often"]

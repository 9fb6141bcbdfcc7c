"""Given a graph and rows with turns and flags of their own, when they are run as one loop, then each is as if alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rankmq.schemas.errors import GraphFailed
from rankmq.schemas.messages import Repeat
from rankmq.workers.repeating import repeat

Array = np.ndarray[Any, Any]


def graph(inputs: list[Array]) -> list[Array]:
    """total, step, limit -> total + step, whether that is the limit or more, twice the total."""
    total, step, limit = inputs
    after = total + step
    return [after, np.any(after >= limit, axis=-1), after * 2]


def alone(total: Array, step: Array, limit: Array, turns: int) -> tuple[int, Array, list[Array]]:
    collected: list[Array] = []
    while len(collected) < turns:
        total = total + step
        collected.append(total * 2)
        if (total >= limit).any():
            break
    return len(collected), total, collected


ROWS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 5), st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=6
)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.sampled_from(["shrink", "padded", "one by one"]), st.integers(0, 3))
def test_each_row_runs_its_turns(rows: list[tuple[int, int, int, int]], kind: str, padding: int) -> None:
    values = [[np.array([value, value + 1]) for value in row[:3]] for row in rows]
    turns = tuple(row[3] for row in rows)
    sizes: list[int] = []

    def run(inputs: list[Array]) -> list[Array]:
        sizes.append(len(inputs[0]))
        before = [one.copy() for one in inputs]
        outputs = graph(inputs)
        assert all(np.array_equal(one, two) for one, two in zip(before, inputs, strict=True))
        return outputs

    stacked, shrink = kind != "one by one", kind == "shrink"
    if stacked:
        more = 0 if shrink else padding
        columns = [[np.stack([row[i] for row in values] + [values[-1][i]] * more)] for i in range(3)]
    else:
        columns = [[row[i] for row in values] for i in range(3)]
    work = Repeat(
        subgraph=0,
        rows=len(rows),
        stacked=stacked,
        turns=turns,
        feed=((0, 0),),
        until=1,
        last=(0, 1),
        collect=(2,),
        shrink=shrink,
    )
    found = repeat(run, work, columns)

    wanted = [alone(*row, most) for row, most in zip(values, turns, strict=True)]
    assert found.turns == [ran for ran, _, _ in wanted]
    for row, (ran, total, collected) in enumerate(wanted):
        last = found.last[0][0][row] if stacked else found.last[0][row]
        np.testing.assert_array_equal(last, total)
        flag = found.last[1][0][row] if stacked else found.last[1][row]
        assert bool(flag) == bool((total >= values[row][2]).any())
        kept = found.collected[2][0][:ran, row] if stacked else found.collected[2][row]
        np.testing.assert_array_equal(kept, collected)
    if stacked:
        assert len(sizes) == max(ran for ran, _, _ in wanted), "it stops when all are done"
        assert sizes == [
            sum(ran > turn for ran, _, _ in wanted) if shrink else len(rows) + padding for turn in range(len(sizes))
        ]


def test_rows_that_are_done_stay_in_a_batch_of_a_fixed_size_as_copies_of_one_that_is_not() -> None:
    seen: list[list[int]] = []

    def run(inputs: list[Array]) -> list[Array]:
        seen.append(inputs[0].tolist())
        return [inputs[0] + 1]

    work = Repeat(subgraph=0, rows=3, stacked=True, turns=(1, 3, 2), feed=((0, 0),), last=(0,))
    found = repeat(run, work, [[np.array([10, 20, 30, 30])]])
    assert seen == [[10, 20, 30, 30], [21, 21, 31, 21], [22, 22, 22, 22]]
    assert found.last[0][0].tolist() == [11, 23, 32]


def test_an_input_without_a_batch_axis_stays_whole() -> None:
    work = Repeat(subgraph=0, rows=2, stacked=True, turns=(1, 2), feed=((0, 0),), last=(0,), shrink=True)
    found = repeat(lambda it: [it[0] * it[1].sum()], work, [[np.array([1, 2])], [np.array([1, 1, 1])]], unstacked=(1,))
    assert found.last[0][0].tolist() == [3, 18]


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize(("field", "value"), [("feed", ((0, 2),)), ("until", 2), ("collect", (0, 2)), ("last", (2,))])
def test_an_output_that_there_is_not(stacked: bool, field: str, value: Any) -> None:
    given = {"feed": ((0, 0),), "collect": (0,), field: value}
    work = Repeat(subgraph=3, rows=1, stacked=stacked, turns=(2,), **given)
    with pytest.raises(GraphFailed, match="subgraph 3 has 2 outputs, not output 2"):
        repeat(lambda inputs: [inputs[0], inputs[0]], work, [[np.ones((1, 2))]])


@pytest.mark.parametrize("stacked", [True, False])
def test_an_output_that_grows_cannot_be_collected(stacked: bool) -> None:
    work = Repeat(subgraph=0, rows=1, stacked=stacked, turns=(2,), feed=((0, 0),), collect=(0,))
    with pytest.raises(GraphFailed, match="in one turn of a loop and"):
        repeat(lambda inputs: [np.concatenate([inputs[0]] * 2, axis=-1)], work, [[np.ones((1, 2))]])


def test_an_output_without_the_rows() -> None:
    work = Repeat(subgraph=0, rows=2, stacked=True, turns=(1, 1), feed=((0, 0),), collect=(1,))
    with pytest.raises(GraphFailed, match=r"output 1: shape \(3,\) for 2 rows"):
        repeat(lambda inputs: [inputs[0], np.ones(3)], work, [[np.ones((2, 2))]])

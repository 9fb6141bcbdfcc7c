"""Given graphs that are compiled for some numbers of rows by themselves, then they give the same and keep one state."""

from __future__ import annotations

import numpy as np
import pytest
from rankmq.schemas.errors import GraphFailed, ModelError
from rankmq.schemas.messages import GraphPlan


def ready(executor, path, *rows, unstacked_inputs=()):
    executor.load([path], [GraphPlan(stacked=True, unstacked_inputs=unstacked_inputs, compiled_rows=rows)])
    executor.open_group("none", 0, 1)
    return executor.warm_up()


def test_the_same_comes_out_for_any_number_of_rows(executor, graphs):
    from .mindir_cells import WEIGHT

    (info,) = ready(executor, graphs / "matmul.mindir", 1, 4)
    assert info.inputs[0].shape == (-1, 3)
    for rows in (1, 2, 4, 7, 1):
        x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
        np.testing.assert_allclose(executor.run(0, [x])[0], x @ WEIGHT, rtol=1e-4, atol=1e-5)
    own = {key: len(cell.compile_cache) for key, cell in executor._compiled.items()}
    assert own == {(0, 1): 1, (0, 4): 1}, "each is compiled once, before the first step"
    assert len(executor._cells[0].compile_cache) == 1


def test_an_input_without_a_batch_axis_keeps_its_shape(executor, graphs):
    ready(executor, graphs / "biased.mindir", 2, unstacked_inputs=(1,))
    bias = np.array([1, 2, 3], np.float32)
    for rows in (2, 5):
        x = np.ones((rows, 3), np.float32)
        np.testing.assert_array_equal(executor.run(0, [x, bias])[0], x + bias)


def test_all_of_them_have_one_state(executor, graphs):
    ready(executor, graphs / "nines.mindir", 3, 6)
    counts = [int(executor.run(0, [np.ones((rows, 3), np.float32)])[1][0]) for rows in (3, 6, 9, 3, 12, 6)]
    assert counts == list(range(counts[0], counts[0] + 6))


def test_after_a_failure_it_serves_on_with_its_state(executor, graphs):
    ready(executor, graphs / "nines.mindir", 3)
    before = executor.run(0, [np.ones((3, 3), np.float32)])[1][0]
    with pytest.raises(GraphFailed, match="Reshape"):
        executor.run(0, [np.ones((4, 3), np.float32)])
    counts = [executor.run(0, [np.ones((rows, 3), np.float32)])[1][0] for rows in (3, 6, 3)]
    assert counts == [counts[0], counts[0] + 1, counts[0] + 2]
    assert counts[0] > before
    # As on the ranks where nothing failed: those talk to it within their graphs.
    assert {key: len(cell.compile_cache) for key, cell in executor._compiled.items()} == {(0, 3): 1}
    executor.warm_up()  # the next epoch
    assert set(executor._compiled) == {(0, 3)}
    counts = [executor.run(0, [np.ones((rows, 3), np.float32)])[1][0] for rows in (3, 6)]
    assert counts[1] == counts[0] + 1


def test_a_number_of_rows_that_the_graph_cannot_take_is_found_when_it_is_warmed_up(executor, graphs):
    with pytest.raises(ModelError, match=r"nines\.mindir does not run: "):
        ready(executor, graphs / "nines.mindir", 4)

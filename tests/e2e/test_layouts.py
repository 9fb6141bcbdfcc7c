"""Every layout of inputs and outputs over 1, 2 and 8 ranks, and how rows become batches."""

import numpy as np
import pytest
from rankmq.schemas.errors import RanksDisagree

from tests.e2e.layouts import BATCH, CASES, LIMIT, PLAIN, STACKED, random
from tests.e2e.systems import System


@pytest.mark.parametrize("instances", [1, 5])
@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("name", [name for name in CASES if name != "disagree"])
def test_every_layout_agrees_with_numpy(gallery: System, name: str, size: int, instances: int) -> None:
    case = CASES[name]
    rows = [tuple(random(*shape) for shape in case.inputs) for _ in range(instances)]
    with gallery.client(f"layouts{size}", name) as client:
        got = client.infer([dict(zip("xb", row, strict=False)) for row in rows])
    assert len(got) == instances
    for row, answer in zip(rows, got, strict=True):
        expected = case.expected(size, *row)
        assert list(answer) == [f"y{index}" for index in range(len(expected))]
        for value, wanted in zip(answer.values(), expected, strict=True):
            assert value.dtype == np.float32
            assert value.shape == wanted.shape
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4)


def test_ranks_that_must_agree_and_do_not(gallery: System) -> None:
    x = random(*PLAIN["disagree"].inputs[0])
    with gallery.client("layouts8", "disagree") as client, pytest.raises(RanksDisagree, match=r"0.*7"):
        client.infer({"x": x})


def steps_of(system: System, servable: str) -> int:
    return system.group(servable).step


@pytest.mark.parametrize(
    ("name", "rows", "steps"),
    [
        ("stacked", 40, 1),  # one tensor of 40 rows
        ("stacked_shard_rows", 13, 1),  # padded to 16, so that each rank gets as many
        ("limited", 7, 3),
        ("static", 2 * BATCH + 3, 3),  # the last one padded
        ("first_rank", 5, 1),  # without a batch dimension: one task, back to back
    ],
)
def test_rows_of_a_request_share_steps(gallery: System, name: str, rows: int, steps: int) -> None:
    assert LIMIT == 3
    case = CASES[name]
    given = [random(*case.inputs[0]) for _ in range(rows)]
    before = steps_of(gallery, "layouts8")
    with gallery.client("layouts8", name) as client:
        got = client.infer([{"x": x} for x in given])
    assert steps_of(gallery, "layouts8") - before == steps
    for x, answer in zip(given, got, strict=True):
        np.testing.assert_allclose(answer["y0"], case.expected(8, x)[0], rtol=1e-4, atol=1e-4)


def test_rows_of_different_requests_share_steps(gallery: System) -> None:
    """While some steps run, what comes meanwhile waits, and goes out together."""
    case, count = STACKED["stacked"], 200
    given = [random(*case.inputs[0]) for _ in range(count)]
    before = steps_of(gallery, "layouts8")
    with gallery.client("layouts8", "stacked") as client:
        futures = [client.infer_async({"x": x}) for x in given]
        for x, future in zip(given, futures, strict=True):
            np.testing.assert_allclose(future.result(60)[0]["y0"], case.expected(8, x)[0], rtol=1e-4, atol=1e-4)
    assert steps_of(gallery, "layouts8") - before < count


def test_rows_with_different_unbatched_inputs_are_not_mixed(gallery: System) -> None:
    rows = [{"x": random(16), "b": random(8)} for _ in range(6)]
    rows += [{"x": random(16), "b": rows[0]["b"]} for _ in range(6)]
    with gallery.client("layouts2", "biased") as client:
        got = client.infer(rows)
    for row, answer in zip(rows, got, strict=True):
        np.testing.assert_allclose(answer["y0"], STACKED["biased"].expected(2, **row)[0], rtol=1e-4, atol=1e-4)

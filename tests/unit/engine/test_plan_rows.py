"""What one row must bring, and which rows may share a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from msgspec import structs
from rankmq.engine.layouts import Replicate, Shard
from rankmq.engine.plan import make_plan
from rankmq.schemas.errors import InvalidInput
from rankmq.schemas.messages import GraphInfo, TensorSpec
from rankmq.schemas.tensors import BFLOAT16, bfloat16_to_float32, float32_to_bfloat16, from_plain

RANKS = (0, 1, 2, 3)


def plan_of(*inputs, layouts=None, stacked=False, unstacked=()):
    """A plan of a graph whose inputs are pairs of a rank's shape and dtype."""
    specs = tuple(TensorSpec(name="x", dtype=dtype, shape=shape) for shape, dtype in inputs)
    graph = GraphInfo(file="a", digest="0", inputs=specs, outputs=())
    return make_plan(
        1,
        ranks=RANKS,
        inputs=layouts,
        outputs=None,
        stacked=stacked,
        unstacked_inputs=unstacked,
        infos=dict.fromkeys(RANKS, graph),
        default_rank=0,
    )


def test_a_row_that_fits_comes_back_as_it_is():
    row = (np.ones((128, 96), np.float32), np.arange(3, dtype=np.int64))

    checked = plan_of(((128, 96), "float32"), ((-1,), "int64")).check_row(row, lenient=False)

    assert checked[0] is row[0]
    assert checked[1] is row[1]


def test_the_refusal_says_what_is_taken_and_what_came():
    plan = plan_of(((128, 96), "float32"))

    with pytest.raises(InvalidInput) as caught:
        plan.check_row((np.ones((128, 96)),), lenient=False)

    assert str(caught.value) == "input 0 (x) of subgraph 1 takes float32 (128, 96), got float64 (128, 96)"


def test_an_input_without_a_name_is_refused_by_its_number():
    one = plan_of(((3,), "int32")).inputs[0]
    unnamed = replace(one, spec=structs.replace(one.spec, name=""))

    with pytest.raises(InvalidInput, match=r"^input 0 of subgraph 1 takes "):
        unnamed.check(np.ones(3), 1, lenient=False)


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((128, 95), np.float32), r"takes float32 \(\?, 96\), got float32 \(128, 95\)"),
        (np.ones(96, np.float32), r"takes float32 \(\?, 96\), got float32 \(96,\)"),
        (np.ones((1, 5, 96), np.float32), "takes float32"),
        (np.float32(3).reshape(()), r"got float32 \(\)"),
        (np.array(["a"], np.dtypes.StringDType()), r"got string \(1,\)"),
        (np.array([b"a"], object), r"got bytes \(1,\)"),
        (np.ones((2, 96), np.complex64), r"got complex64 \(2, 96\)"),
        (np.zeros((2, 96), "M8[s]"), "got datetime64"),
    ],
)
def test_another_shape_or_kind_is_refused_always(value, message, lenient):
    with pytest.raises(InvalidInput, match=message):
        plan_of(((-1, 96), "float32")).check_row((value,), lenient=lenient)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_inputs_is_refused(count):
    with pytest.raises(InvalidInput, match=rf"subgraph 1 takes 2 input\(s\), got {count}"):
        plan_of(((2,), "int32"), ((2,), "int32")).check_row((np.zeros(2, np.int32),) * count, lenient=True)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "bool"])
def test_values_with_a_dtype_are_not_converted(dtype):
    with pytest.raises(InvalidInput, match=f"takes float32 .*, got {dtype}"):
        plan_of(((2,), "float32")).check_row((np.zeros(2, dtype),), lenient=False)


def test_byte_order_is_no_difference():
    (checked,) = plan_of(((3,), "int32")).check_row((np.arange(3, dtype=">i4"),), lenient=False)

    assert checked.dtype == np.dtype("<i4")
    assert checked.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        ([1, 2], "float32", [1.0, 2.0]),
        ([1, 2], "float64", [1.0, 2.0]),
        ([1.5, 2], "float16", [1.5, 2.0]),
        ([0.1], "float64", [float(np.float32(0.1))]),
        ([16777217], "float32", [16777216.0]),
        ([255, 0], "uint8", [255, 0]),
        ([-128, 127], "int8", [-128, 127]),
        ([2**40], "int64", [2**40]),
        ([1, 2], "int64", [1, 2]),
        ([True, False], "int32", [1, 0]),
        ([True, False], "bool", [True, False]),
        ([float("nan"), float("inf")], "float16", [float("nan"), float("inf")]),
        ([], "float16", []),
    ],
)
def test_plain_numbers_are_converted_where_nothing_is_lost(value, dtype, expected):
    (checked,) = plan_of(((-1,), dtype)).check_row((from_plain(value),), lenient=True)

    assert checked.dtype == dtype
    np.testing.assert_array_equal(checked, np.array(expected, dtype))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1.0], "int32"),
        ([float("nan")], "int64"),
        ([1.0], "bool"),
        ([1], "bool"),
        ([256], "uint8"),
        ([-1], "uint64"),
        ([2**31], "int32"),
        ([1e38], "float16"),
        ([65520], "float16"),
        (["1"], "int32"),
    ],
)
def test_plain_numbers_that_do_not_fit_are_refused(value, dtype):
    with pytest.raises(InvalidInput, match=r"input 0 \(x\) of subgraph 1 takes"):
        plan_of(((-1,), dtype)).check_row((from_plain(value),), lenient=True)


def test_bfloat16_is_taken_as_it_is_and_from_plain_numbers():
    plan = plan_of(((2,), "bfloat16"))
    given_bits = float32_to_bfloat16(np.array([1.5, -2], np.float32))

    assert plan.check_row((given_bits,), lenient=False)[0] is given_bits
    (converted,) = plan.check_row((from_plain([3, 0.25]),), lenient=True)
    assert converted.dtype == BFLOAT16
    assert bfloat16_to_float32(converted).tolist() == [3, 0.25]
    with pytest.raises(InvalidInput, match="takes bfloat16"):
        plan.check_row((np.zeros(2, np.float32),), lenient=False)
    with pytest.raises(InvalidInput, match="do not fit"):
        plan.check_row((np.array([1, 3.4e38], np.float32),), lenient=True)


@given(hnp.arrays(st.sampled_from(["i4", "i8", "f4", "?"]), hnp.array_shapes(max_dims=2, max_side=3)))
def test_leniency_never_changes_a_value_beyond_rounding(value):
    for dtype in ("int8", "uint16", "int32", "uint64", "float16", "float32", "float64", "bool"):
        plan = plan_of(((-1,) * value.ndim, dtype))
        try:
            (checked,) = plan.check_row((value,), lenient=True)
        except InvalidInput:
            continue
        assert checked.shape == value.shape
        if np.dtype(dtype).kind == "f":
            np.testing.assert_allclose(
                checked.astype(np.float64), value.astype(np.float64), rtol=np.finfo(dtype).eps, atol=6e-8
            )
        else:
            assert checked.tolist() == value.tolist()


def test_a_divided_axis_must_divide_by_the_ranks():
    plan = plan_of(((5, -1), "float32"), layouts=[Shard(1)])

    plan.check_row((np.zeros((5, 8), np.float32),), lenient=False)
    with pytest.raises(InvalidInput, match="over 4 ranks along axis 1: size 30 is no multiple of 4"):
        plan.check_row((np.zeros((5, 30), np.float32),), lenient=False)


def test_in_a_batch_axes_count_with_the_batch():
    plan = plan_of(((-1, 5, -1), "float32"), layouts=[Shard(2)], stacked=True)

    plan.check_row((np.zeros((5, 8), np.float32),), lenient=False)
    with pytest.raises(InvalidInput, match="axis 2: size 6"):
        plan.check_row((np.zeros((5, 6), np.float32),), lenient=False)
    with pytest.raises(InvalidInput, match=r"takes float32 \(5, \?\), got float32 \(1, 5, 8\)"):
        plan.check_row((np.zeros((1, 5, 8), np.float32),), lenient=False)


def test_rows_dealt_out_to_ranks_need_divide_by_nothing():
    plan = plan_of(((-1, 5), "float32"), layouts=[Shard(0)], stacked=True)

    plan.check_row((np.zeros(5, np.float32),), lenient=False)


class TestBatchKey:
    def test_rows_of_fixed_shapes_share_any_step(self):
        plan = plan_of(((-1, 5), "int32"), stacked=True)

        assert plan.batch_key((np.zeros(5, np.int32),)) is None

    def test_rows_without_a_batch_dimension_share_any_step(self):
        plan = plan_of(((-1, -1), "int32"))

        assert plan.batch_key((np.zeros((5, 2), np.int32),)) is None

    def test_rows_share_a_step_only_with_those_of_their_shape(self):
        plan = plan_of(((-1, -1), "int32"), ((-1, 2), "int32"), stacked=True)
        keys = [plan.batch_key((np.zeros(n, np.int32), np.full(2, n, np.int32))) for n in (5, 5, 6)]

        assert keys[0] == keys[1]
        assert keys[0] != keys[2]
        assert len(set(keys)) == 2

    def test_rows_share_a_step_only_with_those_of_the_same_unstacked_value(self):
        plan = plan_of(
            ((-1, 2), "int32"), ((-1, 2), "float32"), layouts=[Replicate(), Replicate()], stacked=True, unstacked=[1]
        )
        row = np.zeros(2, np.int32)
        values = [
            np.zeros((3, 2), np.float32),
            np.zeros((3, 4), np.float32)[:, ::2],
            np.zeros((2, 2), np.float32),
            np.full((3, 2), 1, np.float32),
            np.full((3, 2), -0.0, np.float32),
        ]
        keys = [plan.batch_key((row, value)) for value in values]

        assert keys[0] == keys[1]
        assert len(set(keys)) == 4
        assert plan.batch_key((row + 1, values[0])) == keys[0]

    def test_the_key_tells_shapes_of_the_same_bytes_apart(self):
        plan = plan_of(((-1, 2), "int32"), ((-1, -1), "float32"), stacked=True, unstacked=[1])
        row = np.zeros(2, np.int32)

        assert plan.batch_key((row, np.zeros((2, 3), np.float32))) != plan.batch_key(
            (row, np.zeros((3, 2), np.float32))
        )

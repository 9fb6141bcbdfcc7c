"""Scatter and gather, held against numpy on the arrays that were never cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rankmq.engine.layouts import AllEqual, Concat, FromRank, Replicate, Shard, Sum
from rankmq.engine.plan import make_plan
from rankmq.schemas.errors import GraphFailed, InternalError, RanksDisagree
from rankmq.schemas.messages import Column, GraphInfo, TensorSpec
from rankmq.schemas.tensors import (
    BFLOAT16,
    Tensor,
    bfloat16_to_float32,
    dtype_name,
    float32_to_bfloat16,
    from_array,
    to_array,
)

DTYPES = ["float32", "float16", "int64", "uint8", "bool", "bfloat16"]


def make(inputs, outputs, *, ranks, input_layouts=None, output_layouts=None, stacked=False, unstacked=()):
    """A plan from pairs of a rank's shape and dtype."""
    specs = [
        tuple(TensorSpec(name="t", dtype=dtype, shape=tuple(shape)) for shape, dtype in side)
        for side in (inputs, outputs)
    ]
    return make_plan(
        1,
        ranks=ranks,
        inputs=input_layouts,
        outputs=output_layouts,
        stacked=stacked,
        unstacked_inputs=unstacked,
        infos=dict.fromkeys(ranks, GraphInfo(file="a", digest="0", inputs=specs[0], outputs=specs[1])),
        default_rank=ranks[0],
    )


def received(scattered, place):
    """What the rank at `place` holds: per input its arrays."""
    columns = (*scattered.replicated, *(scattered.sharded[place] if scattered.sharded else ()))
    assert len({column.index for column in columns}) == len(columns)
    return {column.index: [to_array(tensor) for tensor in column.tensors] for column in columns}


def column(index, *arrays):
    return Column(index=index, tensors=tuple(from_array(np.asarray(array)) for array in arrays))


def random_array(rng, shape, dtype):
    bits = rng.integers(0, 256, (*shape, 8), dtype=np.uint8)
    if dtype == "bool":
        return bits[..., 0] > 127
    if dtype == "bfloat16":
        return float32_to_bfloat16(rng.standard_normal(shape).astype(np.float32))
    if dtype.startswith("float"):
        return np.asarray(rng.standard_normal(shape), dtype)
    return bits.view(np.int64)[..., 0].astype(dtype)


def same(one, other):
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


@st.composite
def cases(draw):
    """Ranks, rows, and inputs with their layouts; of each input the shape of a whole row."""
    stacked = draw(st.booleans())
    count = draw(st.integers(1, 8))
    ranks = tuple(range(start := draw(st.integers(0, 3)), start + count))
    inputs = []
    for _ in range(draw(st.integers(1, 3))):
        shape = list(draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)))
        unstacked = stacked and bool(inputs) and draw(st.booleans())
        batched = stacked and not unstacked
        axis = draw(st.sampled_from([None, *range(len(shape) + batched)]))
        if axis is not None and not (batched and axis == 0):
            shape[axis - batched] *= count
        inputs.append((tuple(shape), draw(st.sampled_from(DTYPES)), axis, unstacked))
    return stacked, ranks, draw(st.integers(1, 9)), inputs, draw(st.booleans()), draw(st.randoms(use_true_random=False))


@given(cases())
def test_what_was_cut_and_put_together_is_what_it_was(case):
    stacked, ranks, rows, inputs, static, random = case
    rng = np.random.default_rng(random.getrandbits(32))
    count = len(ranks)
    batch = (rows + 2 + count) // count * count if static else -1
    specs, layouts, out_layouts = [], [], []
    for shape, dtype, axis, unstacked in inputs:
        full = [batch, *shape] if stacked and not unstacked else list(shape)
        if axis is not None and full[axis] >= 0:
            full[axis] //= count
        specs.append((full, dtype))
        layouts.append(Replicate() if axis is None else Shard(axis))
    batched_numbers = [number for number, (*_, unstacked) in enumerate(inputs) if not unstacked]
    for number in batched_numbers:
        axis = inputs[number][2]
        whole = [AllEqual(), FromRank(), FromRank(ranks[-1])]
        out_layouts.append(random.choice(whole) if axis is None else Concat(axis))
    plan = make(
        specs,
        [specs[number] for number in batched_numbers],
        ranks=ranks,
        input_layouts=layouts,
        output_layouts=out_layouts,
        stacked=stacked,
        unstacked=[number for number, (*_, unstacked) in enumerate(inputs) if unstacked],
    )
    common = [random_array(rng, shape, dtype) for shape, dtype, *_ in inputs]
    table = [
        tuple(
            common[number] if unstacked else random_array(rng, shape, dtype)
            for number, (shape, dtype, _, unstacked) in enumerate(inputs)
        )
        for _ in range(rows)
    ]
    checked = [plan.check_row(row, lenient=False) for row in table]
    assert len({plan.batch_key(row) for row in checked}) == 1

    scattered = plan.scatter(checked)

    held = {rank: received(scattered, place) for place, rank in enumerate(ranks)}
    padded = [*table, *[table[-1]] * (plan.padded(rows) - rows)]
    if stacked and static:
        assert len(padded) == batch
    for place, rank in enumerate(ranks):
        assert held[rank].keys() == set(range(len(inputs)))
        for number, (_, _, axis, unstacked) in enumerate(inputs):
            if not stacked:
                wholes = [row[number] for row in table]
            elif unstacked:
                wholes = [common[number]]
            else:
                wholes = [np.stack([row[number] for row in padded])]
            if axis is not None:
                size = wholes[0].shape[axis] // count
                wholes = [np.take(whole, range(place * size, (place + 1) * size), axis=axis) for whole in wholes]
            for got, whole in zip(held[rank][number], wholes, strict=True):
                same(got, whole)

    # the identity on every rank: each sends what it owes of what it got
    sent = {
        rank: tuple(column(output, *held[rank][batched_numbers[output]]) for output in plan.returns(rank))
        for rank in ranks
    }
    results = plan.gather(sent, rows)
    assert len(results) == rows
    for result, row in zip(results, table, strict=True):
        for got, number in zip(result, batched_numbers, strict=True):
            same(got, row[number])


@given(
    st.integers(1, 8), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 2**32 - 1)
)
def test_partial_products_sum_up_to_the_product(count, rows, inner, width, stacked, seed):
    """A row-parallel matmul: the input is divided along its inner axis, the ranks' products are added up."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(-9, 9, (inner * count, width))
    table = [(rng.integers(-9, 9, (inner * count,)),) for _ in range(rows)]
    lead = (-1,) if stacked else ()
    plan = make(
        [((*lead, inner), "int64")],
        [((*lead, width), "int64")],
        ranks=range(count),
        input_layouts=[Shard(len(lead))],
        output_layouts=[Sum()],
        stacked=stacked,
    )
    scattered = plan.scatter(table)
    sent = {}
    for rank in range(count):
        part = weights[rank * inner : (rank + 1) * inner]
        sent[rank] = (column(0, *[held @ part for held in received(scattered, rank)[0]]),)

    for result, row in zip(plan.gather(sent, rows), table, strict=True):
        same(result[0], row[0] @ weights)


def test_data_parallel_rows_come_back_to_their_rows():
    """Three ranks, seven rows: each rank gets three, the last two are padding, and whoever computes sees no seam."""
    plan = make(
        [((-1, 2), "float32")],
        [((-1,), "float32")],
        ranks=range(3),
        input_layouts=[Shard(0)],
        output_layouts=[Concat(0)],
        stacked=True,
    )
    table = [(np.array([row, 1], np.float32),) for row in range(7)]

    scattered = plan.scatter(table)

    assert scattered.replicated == ()
    assert [received(scattered, rank)[0][0].tolist() for rank in range(3)] == [
        [[0, 1], [1, 1], [2, 1]],
        [[3, 1], [4, 1], [5, 1]],
        [[6, 1], [6, 1], [6, 1]],
    ]
    sent = {rank: (column(0, received(scattered, rank)[0][0].sum(axis=1)),) for rank in range(3)}
    results = plan.gather(sent, 7)
    assert [result[0].tolist() for result in results] == [1, 2, 3, 4, 5, 6, 7]
    assert all(isinstance(result[0], np.ndarray) and result[0].shape == () for result in results)


def test_a_graph_of_fixed_batch_size_is_padded_and_takes_no_more():
    plan = make([((4, 2), "int32")], [((4, 2), "int32")], ranks=(0, 1), stacked=True)
    rows = [(np.full(2, row, np.int32),) for row in range(3)]

    (tensor,) = plan.scatter(rows).replicated[0].tensors

    assert to_array(tensor)[:, 0].tolist() == [0, 1, 2, 2]
    assert to_array(plan.scatter([*rows, rows[0]]).replicated[0].tensors[0])[:, 0].tolist() == [0, 1, 2, 0]
    with pytest.raises(InternalError, match="a step of 5 rows for subgraph 1"):
        plan.scatter([*rows, *rows[:2]])
    with pytest.raises(InternalError, match="a step of 0 rows"):
        plan.scatter([])


def test_nothing_is_copied_that_lies_together():
    one = np.arange(12, dtype=np.float32).reshape(4, 3)
    layouts = [Replicate(), Shard(0)]
    plain = make([((4, 3), "float32"), ((2, 3), "float32")], [], ranks=(0, 1), input_layouts=layouts)
    batch = make([((-1, 4, 3), "float32")], [], ranks=(0, 1), stacked=True)

    scattered = plain.scatter([(one, one)])
    stacked = batch.scatter([(one,)])

    tensors = [scattered.replicated[0], *(columns[0] for columns in scattered.sharded), stacked.replicated[0]]
    for sent in tensors:
        assert np.shares_memory(np.frombuffer(sent.tensors[0].data, np.float32), one)


def test_a_graph_without_inputs_is_sent_nothing():
    plan = make([], [((2,), "int32")], ranks=(0, 1))

    scattered = plan.scatter([(), ()])

    assert (scattered.replicated, scattered.sharded) == ((), ())
    assert [row[0].tolist() for row in plan.gather({0: (column(0, np.int32([1, 2]), np.int32([3, 4])),)}, 2)] == [
        [1, 2],
        [3, 4],
    ]


def outputs_of(layout, arrays, *, stacked=True, rows=None):
    """What `gather` makes of one array per rank."""
    arrays = [np.asarray(array) for array in arrays]
    dtype = dtype_name(arrays[0].dtype)
    shape = (-1,) * arrays[0].ndim
    plan = make(
        [((-1,), "int32")], [(shape, dtype)], ranks=range(len(arrays)), output_layouts=[layout], stacked=stacked
    )
    rows = rows or (arrays[0].shape[0] if stacked else 1)
    results = plan.gather({rank: (column(0, array),) for rank, array in enumerate(arrays)}, rows)
    return [result[0] for result in results]


class TestSum:
    def test_whole_numbers_wrap_as_the_collectives_do(self):
        (total,) = outputs_of(Sum(), [np.array([250, 1], np.uint8)] * 2, stacked=False)

        assert total.dtype == np.uint8
        assert total.tolist() == [244, 2]

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_halves_are_added_in_float32_and_rounded_once(self, dtype):
        values = np.array([[2048.0, 1.0]] + [[1.0, 0.001]] * 7, np.float32)
        arrays = values.astype(np.float16) if dtype == "float16" else float32_to_bfloat16(values)
        exact = (arrays.astype(np.float32) if dtype == "float16" else bfloat16_to_float32(arrays)).sum(axis=0)

        (total,) = outputs_of(Sum(), list(arrays), stacked=False)

        expected = exact.astype(np.float16) if dtype == "float16" else float32_to_bfloat16(exact)
        same(total, expected)
        assert total.dtype == (BFLOAT16 if dtype == "bfloat16" else np.float16)

    def test_floats_are_added_in_the_order_of_the_ranks(self):
        arrays = [np.array([value], np.float32) for value in (1e8, -1e8, 1.0, 1e-8)]

        assert outputs_of(Sum(), arrays)[0] == np.float32(1.0)

    def test_what_a_rank_sent_is_not_changed(self):
        arrays = [np.ones(3, np.float32), np.ones(3, np.float32)]

        outputs_of(Sum(), arrays, stacked=False)

        assert arrays[0].tolist() == [1, 1, 1]

    def test_truth_values_are_not_added_up(self):
        plan = make([], [((2,), "float32")], ranks=(0, 1), output_layouts=[Sum()])

        with pytest.raises(GraphFailed, match="output 0 of subgraph 1 is bool"):
            plan.gather(dict.fromkeys((0, 1), (column(0, np.array([True, False])),)), 1)


class TestAllEqual:
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
    def test_any_nan_equals_any_other(self, dtype):
        values = np.array([1.0, np.nan, -np.nan], np.float32)
        arrays = [values, np.array([1.0, -np.nan, np.nan], np.float32)]
        arrays = [float32_to_bfloat16(one) if dtype == "bfloat16" else one.astype(dtype) for one in arrays]
        assert arrays[0].tobytes() != arrays[1].tobytes()

        (result,) = outputs_of(AllEqual(), arrays, stacked=False)

        same(result, arrays[0])

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (np.array([1.0, np.nan]), np.array([1.0, 2.0])),
            (np.array([1.0, np.nan]), np.array([np.nan, 1.0])),
            (np.array([0.0]), np.array([-0.0])),
            (np.array([1, 2]), np.array([1, 3])),
            (np.array([1.0], np.float32), np.array([np.nextafter(np.float32(1), np.float32(2))])),
        ],
    )
    def test_a_difference_is_named_with_its_ranks(self, one, other):
        with pytest.raises(RanksDisagree, match=r"output 0 of subgraph 1 .* differs: ranks 0, 1, 3 / rank 2"):
            outputs_of(AllEqual(), [one, one, other, one], stacked=False)

    def test_any_row_may_differ(self):
        good = np.arange(6).reshape(3, 2)
        bad = good.copy()
        bad[2, 1] = 9

        with pytest.raises(RanksDisagree, match="rank 0 / ranks 1, 2"):
            outputs_of(AllEqual(), [bad, good, good])


def test_parts_of_different_sizes_are_joined():
    arrays = [np.arange(3).reshape(1, 3), np.arange(2).reshape(1, 2), np.arange(0).reshape(1, 0)]

    (result,) = outputs_of(Concat(1), arrays)

    assert result.tolist() == [0, 1, 2, 0, 1]


class TestWhatDoesNotGoTogether:
    @pytest.mark.parametrize("layout", [AllEqual(), Sum(), Concat(0)])
    def test_shapes(self, layout):
        message = r"float32 \(2, 3\) on ranks 0, 2, float32 \(2, 4\) on rank 1"
        arrays = [np.zeros((2, width), np.float32) for width in (3, 4, 3)]
        with pytest.raises(RanksDisagree, match=message):
            outputs_of(layout, arrays, rows=2)

    def test_dtypes(self):
        with pytest.raises(RanksDisagree, match=r"float32 \(2,\) on rank 0, float64 \(2,\) on rank 1"):
            outputs_of(Concat(0), [np.zeros(2, np.float32), np.zeros(2)], rows=4)

    @pytest.mark.parametrize("layout", [FromRank(1), AllEqual(), Sum(), Concat(0)])
    def test_a_missing_output(self, layout):
        plan = make([], [((2,), "int32")], ranks=(0, 1), output_layouts=[layout])

        with pytest.raises(RanksDisagree, match="rank 1 did not send output 0 of subgraph 1"):
            plan.gather({0: (column(0, np.int32([1, 2])),), 1: (column(1, np.int32([1, 2])),)}, 1)
        with pytest.raises(RanksDisagree, match="rank 1 did not send"):
            plan.gather({0: (column(0, np.int32([1, 2])),)}, 1)

    def test_a_wrong_number_of_tensors(self):
        plan = make([], [((2,), "int32")], ranks=(0, 1))

        with pytest.raises(RanksDisagree, match=r"rank 0 sent 1 tensor\(s\) for output 0 of subgraph 1, not 3"):
            plan.gather({0: (column(0, np.int32([1, 2])),)}, 3)

    @pytest.mark.parametrize("layout", [FromRank(0), Concat(0)])
    def test_an_output_without_the_rows(self, layout):
        with pytest.raises(GraphFailed, match=r"output 0 of subgraph 1: shape .* for 5 rows"):
            outputs_of(layout, [np.zeros((3, 2), np.float32)] * 2, rows=5)

    def test_an_output_without_axes(self):
        plan = make([((-1,), "int32")], [((-1, 1), "int32")], ranks=(0,), stacked=True, output_layouts=[Concat(1)])

        with pytest.raises(GraphFailed, match="has no axis 1"):
            plan.gather({0: (column(0, np.int32([1, 2])),)}, 2)

    def test_bytes_that_are_no_tensor_are_not_the_senders_fault(self):
        plan = make([], [((2,), "int32")], ranks=(0, 1))
        broken = Column(index=0, tensors=(Tensor("int32", (2,), memoryview(b"123")),))

        with pytest.raises(InternalError, match="rank 0 sent output 0 of subgraph 1 unreadable: 3 bytes"):
            plan.gather({0: (broken,)}, 1)

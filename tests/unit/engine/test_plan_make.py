"""What `make_plan` takes and what it refuses."""

from __future__ import annotations

import pytest
from rankmq.engine.layouts import AllEqual, Concat, FromRank, Replicate, Shard, Sum
from rankmq.engine.plan import SubgraphPlan, make_plan
from rankmq.schemas.errors import ModelError
from rankmq.schemas.messages import GraphInfo, TensorSpec


def spec(*shape, dtype="float32"):
    return TensorSpec(name="x", dtype=dtype, shape=shape)


def info(inputs, outputs):
    return GraphInfo(file="a.mindir", digest="0", inputs=tuple(inputs), outputs=tuple(outputs))


def plan(graph_inputs, graph_outputs, *, ranks=(0, 1, 2, 3), **options) -> SubgraphPlan:
    defaults = {
        "inputs": None,
        "outputs": None,
        "stacked": False,
        "unstacked_inputs": (),
        "infos": dict.fromkeys(ranks, info(graph_inputs, graph_outputs)),
        "default_rank": 0,
    }
    return make_plan(1, ranks=ranks, **(defaults | options))


def test_without_layouts_every_rank_gets_all_and_the_default_rank_answers():
    made = plan([spec(128, 96), spec(3)], [spec(128, 16)], default_rank=2)

    assert [one.layout for one in made.inputs] == [Replicate(), Replicate()]
    assert [one.layout for one in made.outputs] == [FromRank(2)]
    assert made.ranks == (0, 1, 2, 3)
    assert made.static_rows is None
    assert not made.stacked


def test_full_shapes_are_the_shards_times_the_ranks():
    made = plan(
        [spec(128, 24), spec(-1, 24), spec(8, -1)],
        [spec(128, 4), spec(5)],
        inputs=[Shard(1), Replicate(), Shard(1)],
        outputs=[Concat(0), Sum()],
    )

    assert [one.spec.shape for one in made.inputs] == [(128, 96), (-1, 24), (8, -1)]
    assert [one.spec.shape for one in made.outputs] == [(512, 4), (5,)]


def test_rows_of_a_batch_have_no_batch_axis():
    made = plan([spec(-1, 96), spec(7, dtype="int32")], [spec(-1, 16)], stacked=True, unstacked_inputs=[1, 5])

    assert [one.row_shape for one in made.inputs] == [(96,), (7,)]
    assert made.unstacked_inputs == {1}
    assert made.static_rows is None


@pytest.mark.parametrize(
    ("shapes", "layouts", "rows"),
    [
        ([(32, 96)], [Replicate()], 32),
        ([(8, 96)], [Shard(0)], 32),
        ([(8, 96), (32, 2), (-1, 3)], [Shard(0), Replicate(), Replicate()], 32),
        ([(32, 24)], [Shard(1)], 32),
        ([(-1, 24)], [Shard(1)], None),
    ],
)
def test_a_fixed_batch_size_counts_over_all_ranks(shapes, layouts, rows):
    made = plan([spec(*shape) for shape in shapes], [spec(-1, 4)], inputs=layouts, stacked=True)

    assert made.static_rows == rows


def test_unstacked_inputs_mean_nothing_without_a_batch_dimension():
    made = plan([spec(4)], [spec(4)], unstacked_inputs=[0])

    assert made.unstacked_inputs == frozenset()
    assert made.inputs[0].row_shape == (4,)


def test_returns_names_the_outputs_that_a_rank_owes():
    made = plan(
        [spec(4)],
        [spec(4)] * 5,
        ranks=(0, 1, 2),
        outputs=[FromRank(), FromRank(0), Concat(0), Sum(), AllEqual()],
        default_rank=1,
    )

    assert made.returns(0) == (1, 2, 3, 4)
    assert made.returns(1) == (0, 2, 3, 4)
    assert made.returns(2) == (2, 3, 4)
    assert made.returns(3) == ()


def _infos(**changed):
    good = info([spec(128, 24), spec(3)], [spec(128, 4)])
    return {0: good, 1: good, 2: info(**({"inputs": good.inputs, "outputs": good.outputs} | changed)), 3: good}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"infos": _infos(inputs=[spec(128, 12), spec(3)])},
            r"rank 2: input 0 of subgraph 1 is float32 \(128, 12\), but float32 \(128, 24\) on rank 0",
        ),
        (
            {"infos": _infos(inputs=[spec(128, 24), spec(3, dtype="int32")])},
            r"rank 2: input 1 of subgraph 1 is int32 \(3,\), but float32 \(3,\) on rank 0",
        ),
        ({"infos": _infos(inputs=[spec(128, 24)])}, r"rank 2: subgraph 1 has 1 input\(s\), but 2 on rank 0"),
        ({"infos": _infos(outputs=[spec(128, 5)])}, r"rank 2: output 0 of subgraph 1 is float32 \(128, 5\)"),
        ({"infos": _infos(outputs=[])}, r"rank 2: subgraph 1 has 0 output\(s\), but 1 on rank 0"),
        ({"infos": {0: _infos()[0]}}, "rank 1 has no graph"),
        ({"ranks": (), "default_rank": 0, "infos": {}}, "no ranks"),
        ({"inputs": [Replicate()]}, r"subgraph 1 has 2 input\(s\), but 1 layout\(s\)"),
        ({"outputs": [Sum(), Sum()]}, r"subgraph 1 has 1 output\(s\), but 2 layout\(s\)"),
        ({"inputs": [Shard(2), Replicate()]}, r"input 0 of subgraph 1 is float32 \(128, 24\): it has no axis 2"),
        ({"inputs": [Shard(-1), Replicate()]}, "no axis -1"),
        ({"outputs": [Concat(2)]}, "output 0 of subgraph 1 .* no axis 2"),
        ({"outputs": [FromRank(4)]}, r"output 0 of subgraph 1 comes from rank 4, which is none of its ranks"),
        ({"default_rank": 7}, "comes from rank 7"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    options = {"ranks": (0, 1, 2, 3), **options}
    with pytest.raises(ModelError, match=message) as caught:
        plan([spec(128, 24), spec(3)], [spec(128, 4)], **options)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "outputs", "options", "message"),
    [
        ([spec(4, dtype="string")], [spec(4)], {}, "input 0 of subgraph 1 is string"),
        ([spec(4)], [spec(4, dtype="bytes")], {}, "output 0 of subgraph 1 is bytes"),
        ([spec(4)], [spec(4, dtype="bool")], {"outputs": [Sum()]}, "output 0 of subgraph 1 is bool"),
        ([spec()], [spec(4)], {"stacked": True}, "input 0 of subgraph 1 is a single float32"),
        ([spec(4)], [spec()], {"stacked": True}, "output 0 of subgraph 1 is a single float32"),
        ([spec(4)], [spec(4)], {"stacked": True, "unstacked_inputs": [0]}, "no input that has it"),
        ([], [spec(4)], {"stacked": True}, "no input that has it"),
        ([spec(0, 2)], [spec(-1)], {"stacked": True}, r"batch size: 0 \(input 0\)"),
        ([spec(32, 2), spec(16, 2)], [spec(-1)], {"stacked": True}, r"batch size: 32 \(input 0\), 16 \(input 1\)"),
        (
            [spec(8, 2)],
            [spec(8, 2)],
            {"stacked": True, "inputs": [Shard(0)]},
            r"output 0 of subgraph 1 with from_rank\(0\) has 8 rows for a batch of 32",
        ),
        ([spec(8, 2)], [spec(8, 2)], {"stacked": True, "outputs": [Concat(0)]}, "32 rows for a batch of 8"),
    ],
)
def test_graphs_that_cannot_be_served_are_refused(inputs, outputs, options, message):
    with pytest.raises(ModelError, match=message):
        plan(inputs, outputs, **options)

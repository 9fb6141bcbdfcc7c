"""Given a graph's specs and layouts, when a loop names inputs and outputs, then it is planned, or refused in words."""

import numpy as np
import pytest
from rankmq.engine.layouts import AllEqual, Concat, FromRank, Replicate, Shard, Sum
from rankmq.engine.loop import Loop
from rankmq.engine.loop_plan import Turned, plan_loop
from rankmq.engine.plan import make_plan
from rankmq.schemas.errors import InvalidInput, ModelError, RanksDisagree
from rankmq.schemas.messages import Column, GraphInfo, GroupId, RankReply, TensorSpec
from rankmq.schemas.tensors import from_array

GROUP = GroupId(servable="loops", version=1)


def spec(name, *shape, dtype="float32"):
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def plan(inputs=None, outputs=None, *, ranks=2, layouts=(None, None), stacked=True, unstacked=(), rows=-1):
    front = (rows,) if stacked else ()
    inputs = inputs or [spec("x", *front, 4), spec("n", *front, dtype="int32")]
    outputs = outputs or [
        spec("y", *front, 4),
        spec("m", *front, dtype="int32"),
        spec("stop", *front, dtype="bool"),
    ]
    info = GraphInfo(file="g", digest="g", inputs=tuple(inputs), outputs=tuple(outputs))
    return make_plan(
        5,
        ranks=range(ranks),
        inputs=layouts[0],
        outputs=layouts[1],
        stacked=stacked,
        unstacked_inputs=unstacked,
        infos=dict.fromkeys(range(ranks), info),
        default_rank=0,
    )


def loop(feed=(("x", "y"),), until=None, collect=(), last=()):
    return Loop(tuple(feed), until, tuple(collect), tuple(last))


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("rows", [-1, 8])
def test_names_and_places_are_the_same(stacked, rows):
    graph = plan(stacked=stacked, rows=rows)
    by_name = plan_loop(loop([("n", "m"), ("x", "y")], "stop", ["m"], ["y"]), graph, slots=False)
    by_place = plan_loop(loop([(1, 1), (0, 0)], 2, [1], [0]), graph, slots=False)
    assert by_name == by_place
    assert by_name.feed == ((1, 1), (0, 0))
    work = by_name.work(graph, [3, 1])
    assert (work.rows, work.turns, work.until, work.last, work.collect) == (2, (3, 1), 2, (1, 0, 2), (1,))
    assert work.shrink == (stacked and rows == -1)


def test_the_slot_is_no_argument():
    inputs = [spec("slot", -1, dtype="int32"), spec("x", -1, 4)]
    found = plan_loop(loop([(0, 0)], collect=[0]), plan(inputs), slots=True)
    assert (found.feed, found.arguments) == (((1, 0),), (0,))
    with pytest.raises(ModelError, match="no input to feed is named 'slot'; there are: x"):
        plan_loop(loop([("slot", 1)], collect=[0]), plan(inputs), slots=True)
    assert plan_loop(loop([("slot", 1)], collect=[0]), plan(inputs), slots=False).feed == ((0, 1),)


@pytest.mark.parametrize(
    ("given", "asked", "match"),
    [
        ({}, {"feed": [("z", 0)]}, "no input to feed is named 'z'; there are: x, n"),
        ({}, {"feed": [(2, 0)]}, "there is no argument 2: the graph takes 2"),
        ({}, {"feed": [("x", "z")]}, r"there is no output 'z'; there are: 0 \(y\), 1 \(m\), 2 \(stop\)"),
        ({}, {"feed": [("x", 3)]}, "there is no output 3"),
        ({}, {"feed": [(0, 0), ("x", 0)]}, "input 0 is fed twice"),
        ({}, {"feed": [("x", "m")]}, r"input 0 takes float32 \(4,\), and output 1 of subgraph 5 is int32 \(\)"),
        ({"inputs": [spec("x", -1, 5)]}, {}, r"takes float32 \(5,\), and output 0 of subgraph 5 is float32 \(4,\)"),
        ({"inputs": [spec("x", 4), spec("n", -1)], "unstacked": (0,)}, {}, "input 0 has no batch axis"),
        ({"layouts": (None, [Sum(), FromRank(), FromRank()])}, {}, r"has only a part of output 0 .*: sum\(\)"),
        ({"layouts": (None, [Concat(1), FromRank(), FromRank()])}, {}, r"has only a part of output 0 .*: concat\(1\)"),
        ({"layouts": ([Shard(1), Replicate()], None)}, {}, r"shard\(1\): it can be fed only from .* concat\(1\)"),
        ({"layouts": ([Shard(0), Shard(0)], None)}, {}, r"input 0 is divided by rows \(shard\(0\)\)"),
        ({}, {"until": "y"}, r"one bool or whole number a row, not float32 \(4,\)"),
        ({"layouts": (None, [FromRank(), Sum(), FromRank()])}, {"until": "m"}, r"the same on every rank, not sum\(\)"),
        ({"layouts": (None, [FromRank(), Concat(0), FromRank()])}, {"collect": [1]}, r"along its rows \(concat\(0\)\)"),
    ],
)
def test_what_cannot_be(given, asked, match):
    with pytest.raises(ModelError, match=match):
        plan_loop(loop(**{"last": [0], **asked}), plan(**given), slots=False)


def reply(rank, turns, *columns):
    outputs = tuple(Column(index=place, tensors=(from_array(array),)) for place, array in columns)
    return RankReply(group=GROUP, epoch=1, step=0, rank=rank, outputs=outputs, turns=turns)


def test_a_slice_is_put_together():
    """x is divided over the ranks, which join it along its axis; n comes from each, and must be equal."""
    graph = plan(
        [spec("x", -1, 2), spec("n", -1, dtype="int32")],
        [spec("y", -1, 2), spec("m", -1, dtype="int32"), spec("stop", -1, dtype="bool")],
        layouts=([Shard(1), Replicate()], [Concat(1), AllEqual(), FromRank(1)]),
    )
    found = plan_loop(loop([("x", "y"), ("n", "m")], "stop", ["y", "m"], ["m"]), graph, slots=False)
    assert found.sent == (0, 1, 2)
    whole = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)  # turns, rows, values
    counts = np.array([[7, 8, 9], [1, 2, 3]], np.int32)
    ended = np.array([7, 2, 3], np.int32)
    given = [(np.full(4, row, np.float32), np.int32(row)) for row in range(3)]

    def replies(turns=(1, 2, 2), other_counts=counts):
        return {
            rank: reply(
                rank,
                turns,
                (0, whole[1, :, 2 * rank : 2 * rank + 2]),
                (1, ended),
                *([(2, np.array([True, False, True]))] if rank else []),
                (3, whole[:, :, 2 * rank : 2 * rank + 2]),
                (4, other_counts if rank else counts),
            )
            for rank in (1, 0)  # in whatever order they came
        }

    rows = [
        Turned.unpacked(row, loop(collect=[0, 1], last=[1])) for row in found.gather(graph, replies(), given, (2, 2, 9))
    ]
    for row, (turned, ran, stopped) in enumerate(zip(rows, (1, 2, 2), (True, False, True), strict=True)):
        assert (turned.turns, turned.stopped) == (ran, stopped)
        np.testing.assert_array_equal(turned.arguments[0], whole[1, row])
        assert turned.arguments[1] == turned.last[0] == ended[row]
        np.testing.assert_array_equal(turned.collected[0], whole[:ran, row])
        np.testing.assert_array_equal(turned.collected[1], counts[:ran, row])
    for turns in ((1, 2, 3), (1, 2), (0, 2, 2), ()):
        with pytest.raises(RanksDisagree, match="turns of a loop"):
            found.gather(graph, replies(turns), given, (2, 2, 2))
    apart = replies()
    apart[1] = reply(1, (1, 1, 2))
    with pytest.raises(RanksDisagree, match="ranks 1 and 0 ran different turns"):
        found.gather(graph, apart, given, (2, 2, 9))
    with pytest.raises(RanksDisagree, match="must be equal on all ranks"):
        found.gather(graph, replies(other_counts=counts + 1), given, (2, 2, 9))


def test_no_turns_at_all():
    graph = plan()
    found = plan_loop(loop(collect=["m", "y"], last=["y"]), graph, slots=False)
    x = np.ones(4, np.float32)
    turned = Turned.unpacked(found.without_turns(graph, (x, np.int32(3))), loop(collect=["m", "y"], last=["y"]))
    assert [(it.shape, it.dtype.name) for it in turned.collected] == [((0,), "int32"), ((0, 4), "float32")]
    assert turned.last[0] is x
    assert turned.turns == 0
    with pytest.raises(InvalidInput, match="a loop of 0 turns has no last one"):
        plan_loop(loop(last=["m"]), graph, slots=False).without_turns(graph, (x, np.int32(3)))

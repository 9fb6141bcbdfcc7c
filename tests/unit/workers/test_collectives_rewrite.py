"""How graphs are rewritten, on files as MindSpore writes them; that it runs them is tested elsewhere."""

from pathlib import Path

import pytest
from rankmq.workers.collectives import CollectivesUnavailable, rewrite
from rankmq.workers.collectives.rewrite import exported_size

LIBRARY = Path("/cache/collectives.so")


@pytest.fixture
def model(schema):
    return schema.ModelProto()


def primitive(model, name, op_type, **attributes):
    added = model.primitives.add(name=name, op_type=op_type, instance_name=op_type.lower())
    for key, value in attributes.items():
        if isinstance(value, str):
            added.attribute.add(name=key, s=value.encode(), type="STRING")
        else:
            added.attribute.add(name=key, i=value, type="INT64")


def node(function, primitive_name, inputs, output, shapes=()):
    added = function.node.add(
        input=inputs, output=[output], name=output, op_type=f"REF::{primitive_name}", domain=f"Default/{output}"
    )
    if shapes:
        shape = added.attribute.add(name="shape", type="TUPLE")
        for dims in shapes:
            shape.values.add(type="TENSORS").tensors.add(dims=dims, data_type=1)


def edges(function):
    """Each node's inputs and the kind of its operator, by its output."""
    return {it.output[0]: (it.op_type.removeprefix("REF::"), list(it.input)) for it in function.node}


def attributes(model, name):
    (found,) = [it for it in model.primitives if it.name == name]
    out = {}
    for attribute in found.attribute:
        if attribute.values:
            out[attribute.name] = [text.decode() for value in attribute.values for text in value.strings]
        else:
            out[attribute.name] = attribute.s.decode() or attribute.i
    return found.op_type, out


@pytest.mark.parametrize("group", ["mccl_world_group", "hccl_world_group", "nccl_world_group"])
@pytest.mark.parametrize(
    ("op_type", "given", "operator"),
    [
        ("AllReduce", {"op": "sum"}, "AllReduce_sum"),
        ("AllReduce", {"op": "max"}, "AllReduce_max"),
        ("AllReduce", {}, "AllReduce_sum"),
        ("AllGather", {"rank_size": 8}, "AllGather"),
        ("ReduceScatter", {"rank_size": 8, "op": "min"}, "ReduceScatter_min"),
        ("Broadcast", {"root_rank": 7}, "Broadcast_7"),
    ],
)
def test_a_collective_becomes_an_operator_of_the_library(model, group, op_type, given, operator):
    primitive(model, "other:1", "Conv2D", group=1)
    primitive(model, "it:2", op_type, group=group, fusion=0, no_eliminate=1, **given)
    untouched = model.primitives[0].SerializeToString()
    assert rewrite(model, LIBRARY, 8) == 0  # no node uses it
    assert model.primitives[0].SerializeToString() == untouched
    assert attributes(model, "it:2") == (
        "Custom",
        {
            "func_type": "aot",
            "func_name": f"/cache/collectives.so:{operator}",
            "uniq_name": f"Custom_{operator}_/cache/collectives.so:{operator}",
            "reg_op_name": operator,
            "primitive_target": "CPU",
            "imply_path": 0,
            "cpp_infer_shape": 1,
            "cpp_infer_type": 1,
            "multi_output": 0,
            "autodiff": 0,
            "input_names": ["x"],
            "pure_input_names": ["x"],
            "output_names": ["y"],
        },
    )
    assert model.primitives[1].instance_name == op_type.lower()


@pytest.mark.parametrize(
    ("op_type", "given", "reason"),
    [
        ("AllReduce", {"group": "some_of_them"}, "AllReduce talks to the group 'some_of_them'"),
        ("AllReduce", {"op": "prod"}, "AllReduce with the operation 'prod'"),
        ("ReduceScatter", {"rank_size": 8, "op": "avg"}, "ReduceScatter with the operation 'avg'"),
        ("AllGather", {"rank_size": 4}, "AllGather was exported for 4 ranks, not for 8"),
        ("AllGather", {}, "AllGather was exported for None ranks"),
        ("Broadcast", {"root_rank": 8}, "Broadcast comes from rank 8, and there are 8"),
        ("AlltoAll", {}, "AlltoAll does not go through shared memory"),
        ("Send", {"sr_tag": 1}, "Send does not go through shared memory"),
    ],
)
def test_what_the_library_does_not_have_is_named(model, op_type, given, reason):
    primitive(model, "it:1", op_type, **{"group": "mccl_world_group", **given})
    with pytest.raises(CollectivesUnavailable, match=reason):
        rewrite(model, LIBRARY, 8)


def test_a_collective_that_is_written_into_the_node_is_not_overlooked(model):
    added = model.graph.node.add(input=["x"], output=["y"], op_type="AllReduce")
    added.attribute.add(name="group", s=b"mccl_world_group", type="STRING")
    with pytest.raises(CollectivesUnavailable, match="AllReduce is written in a way"):
        rewrite(model, LIBRARY, 8)


@pytest.mark.parametrize("path", ["relative.so", "/with:colon/x.so"])
def test_paths_that_mindspore_cannot_take(model, path):
    with pytest.raises(CollectivesUnavailable, match="the path must be absolute"):
        rewrite(model, Path(path), 8)


def test_a_chain_of_collectives_stays_as_it_is(model):
    """As in a tensor-parallel model: each depends on the one before it, through whatever lies between."""
    primitive(model, "r:1", "AllReduce", group="mccl_world_group", op="sum")
    primitive(model, "n:2", "Neg")
    node(model.graph, "r:1", ["x"], "a")
    node(model.graph, "n:2", ["a"], "b")
    node(model.graph, "r:1", ["b"], "c")
    before = [it.SerializeToString() for it in model.graph.node]
    assert rewrite(model, LIBRARY, 2) == 2
    assert [it.SerializeToString() for it in model.graph.node] == before
    assert [it.op_type for it in model.primitives] == ["Custom", "Neg"]


def test_collectives_that_could_run_in_any_order_are_put_into_one(model):
    primitive(model, "r:1", "AllReduce", group="mccl_world_group", op="sum")
    primitive(model, "g:2", "AllGather", group="mccl_world_group", rank_size=2)
    primitive(model, "add:3", "Add")
    node(model.graph, "r:1", ["x"], "a")
    node(model.graph, "g:2", ["y"], "b")
    node(model.graph, "add:3", ["a", "b"], "c")
    node(model.graph, "r:1", ["x"], "d")
    node(model.graph, "r:1", ["c"], "e")
    assert rewrite(model, LIBRARY, 2) == 4
    assert edges(model.graph) == {
        "a": ("r:1", ["x"]),
        "b:after": ("Depend:rankmq", ["y", "a"]),
        "b": ("g:2", ["b:after"]),
        "c": ("add:3", ["a", "b"]),
        "d:after": ("Depend:rankmq", ["x", "b"]),
        "d": ("r:1", ["d:after"]),
        "e:after": ("Depend:rankmq", ["c", "d"]),
        "e": ("r:1", ["e:after"]),
    }
    assert [it.output[0] for it in model.graph.node] == ["a", "b:after", "b", "c", "d:after", "d", "e:after", "e"]
    assert attributes(model, "Depend:rankmq") == ("Depend", {"side_effect_propagate": 1})


def test_a_primitive_that_the_graph_has_is_used(model):
    primitive(model, "r:1", "AllReduce", group="mccl_world_group", op="sum")
    primitive(model, "Depend:9", "Depend", side_effect_propagate=1)
    node(model.graph, "r:1", ["x"], "a")
    node(model.graph, "r:1", ["y"], "b")
    rewrite(model, LIBRARY, 2)
    assert edges(model.graph)["b:after"] == ("Depend:9", ["y", "a"])
    assert len(model.primitives) == 2


def test_a_broadcast_of_a_tuple_becomes_one_for_each_tensor(model):
    primitive(model, "t:1", "MakeTuple")
    primitive(model, "b:2", "Broadcast", group="mccl_world_group", root_rank=1)
    primitive(model, "i:3", "TupleGetItem")
    node(model.graph, "t:1", ["x", "y"], "pair", shapes=[(2, 3), (-1,)])
    node(model.graph, "b:2", ["pair"], "out", shapes=[(2, 3), (-1,)])
    node(model.graph, "i:3", ["out", "zero"], "first")
    whole = model.graph.node[1].attribute[0].SerializeToString()
    assert rewrite(model, LIBRARY, 2) == 2
    assert edges(model.graph) == {
        "pair": ("t:1", ["x", "y"]),
        "out:0": ("b:2", ["x"]),
        "out:1:after": ("Depend:rankmq", ["y", "out:0"]),
        "out:1": ("b:2", ["out:1:after"]),
        "out": ("t:1", ["out:0", "out:1"]),
        "first": ("i:3", ["out", "zero"]),
    }
    nodes = {it.output[0]: it for it in model.graph.node}
    assert [list(it.dims) for it in nodes["out:1"].attribute[0].tensors] == [[-1]]
    assert nodes["out"].attribute[0].SerializeToString() == whole
    assert len({it.domain for it in model.graph.node}) == len(model.graph.node)


def test_a_broadcast_of_a_tuple_from_elsewhere(model):
    primitive(model, "b:2", "Broadcast", group="mccl_world_group", root_rank=1)
    node(model.graph, "b:2", ["argument"], "out", shapes=[(2, 3)])
    with pytest.raises(CollectivesUnavailable, match="Broadcast of a tuple that comes from elsewhere"):
        rewrite(model, LIBRARY, 2)


def test_functions_of_a_graph_are_rewritten_each_for_itself(model):
    primitive(model, "r:1", "AllReduce", group="mccl_world_group", op="sum")
    node(model.graph, "r:1", ["x"], "a")
    branch = model.functions.add(name="branch")
    node(branch, "r:1", ["p"], "b")
    node(branch, "r:1", ["q"], "c")
    assert rewrite(model, LIBRARY, 2) == 3
    assert list(edges(model.graph)) == ["a"]
    assert edges(branch)["c:after"] == ("Depend:rankmq", ["q", "b"])


def test_a_graph_without_collectives(model):
    primitive(model, "n:1", "Neg")
    node(model.graph, "n:1", ["x"], "a")
    before = model.SerializeToString()
    assert rewrite(model, LIBRARY, 2) == 0
    assert model.SerializeToString() == before


@pytest.mark.parametrize(("sizes", "size"), [([], 64), ([4], 4), ([0, 2], 2)])
def test_the_number_of_ranks_that_a_graph_is_for(model, sizes, size):
    primitive(model, "r:0", "AllReduce", group="mccl_world_group")
    for number, given in enumerate(sizes):
        primitive(model, f"g:{number}", "AllGather", group="mccl_world_group", rank_size=given)
    assert exported_size(model) == size

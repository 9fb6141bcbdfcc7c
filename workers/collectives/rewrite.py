"""Graphs whose collectives go through shared memory.

A graph is exported with MindSpore's own operators, so that it runs everywhere; when it is loaded, those are replaced by
custom operators of our library. Works on the `ModelProto` of MindSpore's own protobuf schema, taken here as any object
of that shape, so that this module imports nothing of MindSpore. In it a node of a graph refers to an entry of
`primitives`, one for each kind of call, by an op_type of "REF::" and the entry's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...schemas.errors import CollectivesUnavailable
from .binding import REDUCTIONS

__all__ = ["exported_size", "rewrite"]

_WORLD_GROUPS = frozenset({"mccl_world_group", "hccl_world_group", "nccl_world_group"})
"""All ranks, as the backends call them; a graph that was exported without a group names one of these."""

_MAX_RANKS = 64
_REFERENCE = "REF::"


def rewrite(model: Any, library: Path, size: int) -> int:
    """Replaces the collectives of a graph.

    The ranks must call them in the same order. Those that do not depend on each other MindSpore might run in any; so
    they are made to depend, in the order in which the file has them, which is the same for every rank. That holds
    within one function of a graph, such as a branch or the body of a loop.

    Args:
        model: the ModelProto, which is changed; of no use if this raises.
        library: path of the compiled library; it stays in the graph.
        size: number of ranks.

    Returns:
        How many there were.

    Raises:
        CollectivesUnavailable: a collective that the library does not have, one of another group than that of all
            ranks, or one that was exported for another number of ranks.
    """
    if not library.is_absolute() or ":" in str(library):
        raise CollectivesUnavailable(
            f"MindSpore takes no operators from {library}: the path must be absolute, without ':'"
        )
    operators = {it.name: _operator(it, size) for it in model.primitives if _is_collective(it)}
    functions = (model.graph, *model.functions)
    for node in (node for function in functions for node in function.node):
        if _is_collective(node):
            raise CollectivesUnavailable(
                f"{node.op_type} is written in a way that is not known: export the graph again"
            )
    found = sum(_rewrite_function(model, function, set(operators)) for function in functions)
    for primitive in model.primitives:
        if primitive.name in operators:
            _make_custom(primitive, library, operators[primitive.name])
    return found


def exported_size(model: Any) -> int:
    """For how many ranks a graph was exported, as far as it says: 64 where it could be any number."""
    sizes = (it.i for primitive in model.primitives for it in primitive.attribute if it.name == "rank_size" and it.i)
    return next(sizes, _MAX_RANKS)


# --------------------------------------------------------------------------------------------------------- primitives


def _is_collective(holder: Any) -> bool:
    """Operators that talk to other ranks name their group; no other operator has a text attribute of that name."""
    return any(attribute.name == "group" and attribute.s for attribute in holder.attribute)


def _operator(primitive: Any, size: int) -> str:
    """The name of the library's operator that does what a primitive does."""
    kind = primitive.op_type
    texts = {it.name: it.s.decode("utf-8", "replace") for it in primitive.attribute}
    numbers = {it.name: it.i for it in primitive.attribute}
    if texts["group"] not in _WORLD_GROUPS:
        raise CollectivesUnavailable(f"{kind} talks to the group {texts['group']!r}, which is not that of all ranks")
    if kind in ("AllGather", "ReduceScatter") and numbers.get("rank_size") != size:
        raise CollectivesUnavailable(f"{kind} was exported for {numbers.get('rank_size')} ranks, not for {size}")
    if kind in ("AllReduce", "ReduceScatter"):
        reduction = texts.get("op", "sum")
        if reduction not in REDUCTIONS[1:]:
            raise CollectivesUnavailable(f"{kind} with the operation {reduction!r} does not go through shared memory")
        return f"{kind}_{reduction}"
    if kind == "Broadcast":
        root = numbers.get("root_rank", 0)
        if not 0 <= root < min(size, _MAX_RANKS):
            raise CollectivesUnavailable(f"Broadcast comes from rank {root}, and there are {size}")
        return f"Broadcast_{root}"
    if kind == "AllGather":
        return "AllGather"
    raise CollectivesUnavailable(f"{kind} does not go through shared memory")


def _make_custom(primitive: Any, library: Path, operator: str) -> None:
    """What `mindspore.ops.Custom(library:operator, None, None, func_type="aot")` is exported as."""
    name, label = primitive.name, primitive.instance_name
    prim_type = primitive.prim_type
    primitive.Clear()
    primitive.name, primitive.instance_name, primitive.op_type = name, label, "Custom"
    primitive.prim_type = prim_type
    _set_text(primitive, "func_type", "aot")
    _set_text(primitive, "func_name", f"{library}:{operator}")
    _set_text(primitive, "uniq_name", f"Custom_{operator}_{library}:{operator}")
    _set_text(primitive, "reg_op_name", operator)
    _set_text(primitive, "primitive_target", "CPU")
    _set_text(primitive, "imply_path", "")
    for flag, value in (("cpp_infer_shape", 1), ("cpp_infer_type", 1), ("multi_output", 0), ("autodiff", 0)):
        added = primitive.attribute.add(name=flag, i=value)
        added.type = added.BOOL
    for names, word in (("input_names", "x"), ("pure_input_names", "x"), ("output_names", "y")):
        added = primitive.attribute.add(name=names)
        added.type = added.LIST
        added.values.add(strings=[word.encode()], type=added.STRING)


def _set_text(holder: Any, name: str, value: str) -> None:
    added = holder.attribute.add(name=name, s=value.encode())
    added.type = added.STRING


# -------------------------------------------------------------------------------------------------------------- nodes


def _rewrite_function(model: Any, function: Any, collectives: set[str]) -> int:
    kinds = {it.name: it.op_type for it in model.primitives}
    tuples = {it.output[0]: it for it in function.node if kinds.get(_primitive_of(it)) == "MakeTuple"}
    nodes: list[Any] = []
    for node in function.node:
        if kinds.get(_primitive_of(node)) == "Broadcast":
            nodes.extend(_without_tuple(node, tuples.get(node.input[0])))
        else:
            nodes.append(node)
    nodes = _in_order(model, nodes, collectives)
    if len(nodes) != len(function.node):
        copies = [_copy(node) for node in nodes]
        del function.node[:]
        function.node.extend(copies)
    return sum(_primitive_of(node) in collectives for node in nodes)


def _primitive_of(node: Any) -> str:
    op_type: str = node.op_type
    return op_type.removeprefix(_REFERENCE) if op_type.startswith(_REFERENCE) else ""


def _copy(node: Any) -> Any:
    return type(node).FromString(node.SerializeToString())


def _without_tuple(node: Any, given: Any) -> list[Any]:
    """A Broadcast for every tensor of the tuple that MindSpore's takes and gives, and the tuple of them.

    Args:
        node: MindSpore's Broadcast.
        given: the node that makes the tuple, None if none in the function does.
    """
    shapes = next((it.values for it in node.attribute if it.name == "shape"), ())
    if given is None or len(shapes) != len(given.input):
        raise CollectivesUnavailable("Broadcast of a tuple that comes from elsewhere does not go through shared memory")
    singles = []
    for index, (tensor, shape) in enumerate(zip(given.input, shapes, strict=True)):
        single = _copy(node)
        single.input[:] = [tensor]
        single.output[:] = [f"{node.output[0]}:{index}"]
        single.name, single.domain = single.output[0], f"{node.domain}-{index}"
        del single.attribute[:]
        added = single.attribute.add(name="shape")
        added.type = added.TENSORS
        added.tensors.extend(shape.tensors)
        singles.append(single)
    whole = _copy(node)
    whole.op_type = given.op_type
    whole.input[:] = [single.output[0] for single in singles]
    return [*singles, whole]


def _in_order(model: Any, nodes: Sequence[Any], collectives: set[str]) -> list[Any]:
    """The nodes, and one more before each collective that does not depend on the one before it."""
    after: dict[str, int] = {}  # for each value, the collectives that it depends on, a bit for each
    out: list[Any] = []
    count, last = 0, ""
    for node in nodes:
        depends = 0
        for value in node.input:
            depends |= after.get(value, 0)
        if _primitive_of(node) in collectives:
            if count > 0 and not depends >> (count - 1) & 1:
                node = _waiting_for(model, node, last, out)
                depends |= after[last]
            depends |= 1 << count
            count, last = count + 1, node.output[0]
        for value in node.output:
            after[value] = depends
        out.append(node)
    return out


def _waiting_for(model: Any, node: Any, other: str, out: list[Any]) -> Any:
    """A node that runs after another's output is there; the node that makes it wait is appended to `out`."""
    waits = type(node)()
    waits.input[:] = [node.input[0], other]
    waits.output[:] = [f"{node.output[0]}:after"]
    waits.name = waits.output[0]
    waits.op_type = f"{_REFERENCE}{_depend(model)}"
    waits.domain = f"{node.domain}-after"
    out.append(waits)
    changed = _copy(node)
    changed.input[0] = waits.output[0]
    return changed


def _depend(model: Any) -> str:
    """The name of the primitive Depend."""
    for primitive in model.primitives:
        if primitive.op_type == "Depend":
            return str(primitive.name)
    added = model.primitives.add(name="Depend:rankmq", op_type="Depend", instance_name="Depend")
    added.prim_type = added.PRIMITIVE
    attribute = added.attribute.add(name="side_effect_propagate", i=1)
    attribute.type = attribute.INT64
    return str(added.name)

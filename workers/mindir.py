"""What a MINDIR file says about its graph, read from the parsed file without running it.

The parsed file is the `ModelProto` of MindSpore's own protobuf schema, taken here as any object of that shape, so that
this module imports nothing of MindSpore. The numbers below are that schema's `TensorProto.DataType`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..schemas.errors import ModelError
from ..schemas.messages import TensorSpec

__all__ = ["GraphFacts", "read_graph"]

_DTYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16"},
    **{11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 17: "float64"},
}
_DYNAMIC_RANK = -2


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What the file says.

    Attributes:
        inputs: in order, with the names of `construct`'s parameters.
        outputs: in order, tuples within tuples laid flat.
        groups: the communication groups that its operators name; none if it has no collectives.
        data_files: files beside it that hold weights, relative to its folder.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    groups: frozenset[str]
    data_files: tuple[str, ...]


def read_graph(model: Any, name: str) -> GraphFacts:
    """Read a parsed file.

    Args:
        model: the ModelProto.
        name: the file's name, for messages.

    Raises:
        ModelError: there is no graph in it, or a tensor that cannot travel.
    """
    graph = model.graph
    if not graph.output:
        raise ModelError(f"the model file {name} holds no graph: export it again with file_format='MINDIR'")
    inputs = []
    for value in graph.input:
        tensors = list(_tensors(value))
        if len(tensors) != 1:
            raise ModelError(f"{name}: input {_short(value.name)} is not one tensor: a graph takes tensors only")
        inputs.append(_spec(tensors[0], _short(value.name), name))
    found = [tensor for value in graph.output for tensor in _tensors(value)]
    outputs = [_spec(tensor, f"output{index}", name) for index, tensor in enumerate(found)]
    locations = (it.external_data.location for it in graph.parameter if it.HasField("external_data"))
    return GraphFacts(tuple(inputs), tuple(outputs), frozenset(_groups(model)), tuple(dict.fromkeys(locations)))


def _tensors(value: Any) -> Iterator[Any]:
    """The tensors of an input or output: its own, or those of the tuple that it is."""
    yield from value.tensor
    if not value.tensor and value.HasField("attr_info"):
        yield from _flat(value.attr_info)


def _flat(attribute: Any) -> Iterator[Any]:
    yield from attribute.tensors
    for part in attribute.values:
        yield from _flat(part)


def _spec(tensor: Any, label: str, name: str) -> TensorSpec:
    dtype = _DTYPES.get(tensor.data_type)
    if dtype is None:
        raise ModelError(f"{name}: {label} is of a data type (number {tensor.data_type}) that cannot be sent")
    shape = tuple(int(size) for size in tensor.dims)
    if _DYNAMIC_RANK in shape:
        raise ModelError(f"{name}: {label} has any number of dimensions: export it with a shape")
    return TensorSpec(name=label, dtype=dtype, shape=shape)


def _groups(model: Any) -> Iterator[str]:
    """Operators that talk to other ranks name their group; no other operator has a text attribute of that name."""
    functions = [model.graph, *model.functions]
    holders = [*model.primitives, *(node for function in functions for node in function.node)]
    for holder in holders:
        for attribute in holder.attribute:
            if attribute.name == "group" and attribute.s:
                yield attribute.s.decode("utf-8", "replace")


def _short(name: str) -> str:
    """The parameter's own name: MindSpore writes the names of the functions around it before it, and colons between."""
    return name.rpartition(":")[2]

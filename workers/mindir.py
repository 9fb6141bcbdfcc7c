"""What a MINDIR file says about its graph, read from the parsed file without running it.

The parsed file is the `ModelProto` of MindSpore's own protobuf schema, taken here as any object of that shape, so that
this module imports nothing of MindSpore. The numbers below are that schema's `TensorProto.DataType`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..schemas.errors import ModelError
from ..schemas.messages import GraphInfo, TensorSpec
from .executor import read_model_file

__all__ = ["GraphFacts", "graph_info", "read_graph"]

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


def graph_info(facts: GraphFacts, file: Path, digest: str) -> GraphInfo:
    """The description of a model file, as the other ranks get to know it.

    Args:
        facts: what it says.
        file: its path.
        digest: of its content; those of the files beside it that hold its weights are taken in.

    Raises:
        ModelError: such a file is missing or may not be read.
    """
    if facts.data_files:  # a large model keeps its weights in files beside it
        parts = [digest, *(read_model_file(file.parent / name)[1] for name in facts.data_files)]
        digest = hashlib.sha256("".join(parts).encode()).hexdigest()
    return GraphInfo(
        file=file.name, digest=digest, inputs=facts.inputs, outputs=facts.outputs, collectives=bool(facts.groups)
    )


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
        if len(tensors) != 1 or tensors[0].scalar:
            raise ModelError(f"{name}: input {_short(value.name)} is not one tensor: a graph takes tensors only")
        inputs.append(_spec(tensors[0], _short(value.name), name))
    found = [tensor for value in graph.output for tensor in _tensors(value)]
    outputs = [_spec(tensor, f"output{index}", name) for index, tensor in enumerate(found)]
    locations = (it.external_data.location for it in graph.parameter if it.HasField("external_data"))
    return GraphFacts(tuple(inputs), tuple(outputs), frozenset(_groups(model)), tuple(dict.fromkeys(locations)))


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of an input or output; `scalar`: a number that is none, of which the file says that it has one size."""

    proto: Any
    scalar: bool = False


def _tensors(value: Any) -> Iterator[_Tensor]:
    """The tensors of an input or output: its own, or those of the tuple that it is."""
    yield from map(_Tensor, value.tensor)
    if not value.tensor and value.HasField("attr_info"):
        yield from _flat(value.attr_info)


def _flat(attribute: Any) -> Iterator[_Tensor]:
    scalar = attribute.type == getattr(attribute, "SCALAR", None)  # which older schemas do not have
    for proto in attribute.tensors:
        yield _Tensor(proto, scalar)
    for part in attribute.values:
        yield from _flat(part)


def _spec(tensor: _Tensor, label: str, name: str) -> TensorSpec:
    kind = tensor.proto.data_type
    dtype = _DTYPES.get(kind)
    if dtype is None:
        raise ModelError(f"{name}: {label} is of a data type (number {kind}) that cannot be sent")
    shape = () if tensor.scalar else tuple(int(size) for size in tensor.proto.dims)
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

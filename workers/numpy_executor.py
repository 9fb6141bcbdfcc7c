"""Graphs in numpy: a small executor for tests, and for machines without MindSpore.

A graph is an .npz file without anything of Python in it: its weights, one array each under `weight/<name>`, and under
`graph` a JSON text:

    {"format": "rankmq-graph", "version": 1,
     "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 96]}],
     "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, 16]}],
     "operations": [{"kind": "matmul", "inputs": ["x", "w"], "output": "p"},
                    {"kind": "negative", "inputs": ["p"], "output": "y"}]}

Operations run in order; each reads inputs of the graph, weights, or outputs of operations before it. The graph's
outputs are the values of those names. There are no collectives: the ranks of such a graph do not talk to each other.
"""

from __future__ import annotations

import io
import json
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..schemas.errors import GraphFailed, GroupError, InvalidInput, ModelError
from ..schemas.messages import GraphInfo, GraphPlan, TensorSpec
from ..schemas.tensors import BFLOAT16, bfloat16_to_float32, float32_to_bfloat16, numpy_dtype
from .executor import check_inputs, own, plan_for, read_model_file, with_batch

__all__ = ["OPERATIONS", "NumpyExecutor", "Operation", "write_graph"]

Array = np.ndarray[Any, Any]

_FORMAT = "rankmq-graph"
_VERSION = 1
_WEIGHT = "weight/"
_UNREADABLE = (
    *(EOFError, IndexError, KeyError, MemoryError, NotImplementedError, OSError, OverflowError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error),
)
"""What zipfile, numpy and json raise for bytes that are no .npz of ours."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a graph.

    Attributes:
        kind: one of `OPERATIONS`.
        inputs: the names of the values that it reads.
        output: the name of the value that it makes.
        parameters: numbers and texts that it needs besides.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    parameters: Mapping[str, int | float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Graph:
    info: GraphInfo
    operations: tuple[Operation, ...]
    weights: Mapping[str, Array]


class _Program:
    """A graph with its names looked up, since it is run again and again.

    Args:
        graph: to run.
        rank: gives the rank's number, as an array.
    """

    def __init__(self, graph: _Graph, rank: Callable[[], Array]) -> None:
        names = [spec.name for spec in graph.info.inputs]
        self.info = graph.info
        self._takes = [(spec.shape, numpy_dtype(spec.dtype)) for spec in graph.info.inputs]
        self._weights = list(graph.weights.values())
        places = {name: place for place, name in enumerate([*names, *graph.weights])}
        self._steps: list[tuple[str, Callable[..., Array], tuple[int, ...]]] = []
        for it in graph.operations:
            function = rank if it.kind == "rank" else OPERATIONS[it.kind]
            if it.parameters:
                function = partial(function, **it.parameters)
            self._steps.append((it.kind, function, tuple(places[name] for name in it.inputs)))
            places[it.output] = len(places)
        self._outputs = [places[spec.name] for spec in graph.info.outputs]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The graph's outputs; see `Executor.run`."""
        if [(array.shape, array.dtype) for array in inputs] != self._takes:
            check_inputs(self.info, inputs)  # a batch of any size, or what does not fit
        values = [*inputs, *self._weights]
        foreign = values.copy()
        for kind, function, places in self._steps:
            try:
                values.append(function(*[values[place] for place in places]))
            except GraphFailed as error:
                raise GraphFailed(f"{self.info.file}: {error.message}") from None
            except (ValueError, TypeError, InvalidInput) as error:  # as numpy says that operands do not fit
                raise GraphFailed(f"{self.info.file}: {kind}: {str(error).splitlines()[0]}") from error
        return [own(np.asarray(values[place]), foreign) for place in self._outputs]


def _cast(array: Array, dtype: str) -> Array:
    if array.dtype == BFLOAT16:
        array = bfloat16_to_float32(array)
    return float32_to_bfloat16(array) if dtype == "bfloat16" else array.astype(numpy_dtype(dtype))


def _slice(array: Array, axis: int, start: int, stop: int) -> Array:
    return array[(slice(None),) * axis + (slice(start, stop),)]


def _sleep(array: Array, milliseconds: float) -> Array:
    time.sleep(milliseconds / 1e3)
    return array


def _fail_if(array: Array, value: float) -> Array:
    if array.size and array.reshape(-1)[0] == value:
        raise GraphFailed(f"fail_if: the first element is {value}")
    return array


OPERATIONS: Mapping[str, Callable[..., Array]] = {
    "identity": lambda a: a,
    "negative": np.negative,
    "relu": lambda a: np.maximum(a, a.dtype.type(0)),
    "add": np.add,
    "multiply": np.multiply,
    "matmul": np.matmul,
    "transpose": np.transpose,
    "cast": _cast,  # dtype
    "slice": _slice,  # axis, start, stop
    "sleep": _sleep,  # milliseconds; then as identity
    "fail_if": _fail_if,  # value: raise when the first element equals it; else as identity
}
"""What a graph can do; beside these `rank`, which takes nothing and gives the rank's number as a 0-d int64."""


def write_graph(
    path: Path,
    operations: Sequence[Operation],
    weights: Mapping[str, Array],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> None:
    """Write a graph file.

    Args:
        path: where, with the suffix .npz.
        operations: in the order in which they run.
        weights: arrays by name.
        inputs: what the graph takes, in order.
        outputs: what it gives, in order; their names are those of values.

    Raises:
        ModelError: the graph does not hold together.
    """
    specs = {"inputs": inputs, "outputs": outputs}
    graph = {
        "format": _FORMAT,
        "version": _VERSION,
        **{side: [msgspec.to_builtins(spec) for spec in specs[side]] for side in specs},
        "operations": [
            {"kind": it.kind, "inputs": list(it.inputs), "output": it.output, **it.parameters} for it in operations
        ],
    }
    arrays = {_WEIGHT + name: array for name, array in weights.items()}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, graph=np.array(json.dumps(graph)), **arrays)
    _parse(path.name, content.getvalue(), "")
    path.write_bytes(content.getvalue())


class NumpyExecutor:
    """Runs graphs written by `write_graph`; see `Executor`."""

    device = "CPU"

    def __init__(self) -> None:
        self._rank = 0
        self._programs: tuple[_Program, ...] = ()
        # Where numpy does not warn of numbers; to say so in each call takes as long as a small graph.
        self._quiet = copy_context()
        self._quiet.run(np.seterr, all="ignore")

    def inspect(self, files: Sequence[Path]) -> tuple[GraphInfo, ...]:
        """See `Executor.inspect`."""
        return tuple(_read(file).info for file in files)

    def why_not_shared_memory(self, files: Sequence[Path]) -> str:
        """See `Executor.why_not_shared_memory`."""
        return "graphs in numpy do not talk to each other"

    def begin_step(self, step: int) -> None:
        """See `Executor.begin_step`."""

    def abort(self) -> None:
        """See `Executor.abort`."""

    def load(self, files: Sequence[Path], plans: Sequence[GraphPlan], shared_parameters: Sequence[str] = ()) -> None:
        """See `Executor.load`. No operation changes a weight, so there is nothing to share."""
        graphs = [_read(file) for file in files]
        planned = [replace(it, info=with_batch(it.info, plan_for(plans, place))) for place, it in enumerate(graphs)]
        self._programs = tuple(_Program(graph, lambda: np.array(self._rank)) for graph in planned)

    def open_group(
        self,
        communication: str,
        rank: int,
        size: int,
        address: str = "",
        rank_table: Mapping[str, Any] | None = None,
        timeout: float = 90.0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """See `Executor.open_group`; there is no communication between numpy graphs."""
        if communication != "none":
            raise GroupError(f"numpy graphs do not talk to each other: communication is 'none', not {communication!r}")
        self._rank = rank

    def warm_up(self) -> tuple[GraphInfo, ...]:
        """See `Executor.warm_up`; there is nothing to compile, and nothing is run."""
        return tuple(program.info for program in self._programs)

    def run(self, subgraph: int, inputs: Sequence[Array]) -> list[Array]:
        """See `Executor.run`."""
        return self._quiet.run(self._programs[subgraph].run, inputs)

    def close(self) -> None:
        """See `Executor.close`."""
        self._programs = ()


def _read(file: Path) -> _Graph:
    content, digest = read_model_file(file)
    return _parse(file.name, content, digest)


def _parse(name: str, content: bytes, digest: str) -> _Graph:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            text = str(arrays["graph"][()])
            weights = {key.removeprefix(_WEIGHT): arrays[key] for key in arrays.files if key.startswith(_WEIGHT)}
        graph = json.loads(text)
    except _UNREADABLE as error:
        raise ModelError(
            f"the model file {name} is not a graph that write_graph wrote ({type(error).__name__})"
        ) from None
    if not isinstance(graph, dict) or graph.get("format") != _FORMAT or graph.get("version") != _VERSION:
        raise ModelError(f"the model file {name} is not a {_FORMAT} of version {_VERSION}")
    try:
        inputs = msgspec.convert(graph.get("inputs"), tuple[TensorSpec, ...])
        outputs = msgspec.convert(graph.get("outputs"), tuple[TensorSpec, ...])
        operations = tuple(_operation(item) for item in msgspec.convert(graph.get("operations"), list[dict[str, Any]]))
    except (msgspec.ValidationError, InvalidInput) as error:
        raise ModelError(f"the model file {name}: {error}") from None
    info = GraphInfo(file=name, digest=digest, inputs=inputs, outputs=outputs)
    _check(info, operations, weights)
    return _Graph(info, operations, weights)


def _operation(item: dict[str, Any]) -> Operation:
    fields = dict(item)
    kind = msgspec.convert(fields.pop("kind", None), str)
    inputs = msgspec.convert(fields.pop("inputs", None), tuple[str, ...])
    output = msgspec.convert(fields.pop("output", None), str)
    return Operation(kind, inputs, output, msgspec.convert(fields, dict[str, int | float | str]))


def _check(info: GraphInfo, operations: Sequence[Operation], weights: Mapping[str, Array]) -> None:
    """Every name is defined once, and before it is read."""
    for spec in (*info.inputs, *info.outputs):
        try:
            numpy_dtype(spec.dtype)
        except InvalidInput as error:
            raise ModelError(f"the model file {info.file}: {spec.name}: {error.message}") from None
    defined: set[str] = set()
    for name in (*(spec.name for spec in info.inputs), *weights):
        if name in defined:
            raise ModelError(f"the model file {info.file}: {name!r} is defined twice")
        defined.add(name)
    for operation in operations:
        if operation.kind not in OPERATIONS and operation.kind != "rank":
            raise ModelError(f"the model file {info.file}: there is no operation {operation.kind!r}")
        for name in operation.inputs:
            if name not in defined:
                raise ModelError(f"the model file {info.file}: {operation.kind} reads {name!r}, which nothing defines")
        if operation.output in defined:
            raise ModelError(f"the model file {info.file}: {operation.output!r} is defined twice")
        defined.add(operation.output)
    for spec in info.outputs:
        if spec.name not in defined:
            raise ModelError(f"the model file {info.file}: nothing makes the output {spec.name!r}")

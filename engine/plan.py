"""What the orchestrator knows of one subgraph once all its ranks have registered, as a value.

From it follow: what a row must bring, which rows may share a step, what each rank is sent, which outputs it sends back,
and how those become the outputs of each row. A servable's layouts and the ranks' own description of their graphs go in;
that they agree is checked here, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..schemas.errors import InternalError, InvalidInput, ModelError
from ..schemas.messages import Column, GraphInfo, TensorSpec
from .gather import OutputPlan
from .layouts import Concat, FromRank, InputLayout, OutputLayout, Replicate, Shard, Sum
from .scatter import InputPlan, Scattered, describe

__all__ = ["InputPlan", "OutputPlan", "Scattered", "SubgraphPlan", "make_plan"]

Row = tuple[np.ndarray[Any, Any], ...]


@dataclass(frozen=True)
class SubgraphPlan:
    """One subgraph, over all the ranks that run it.

    Attributes:
        subgraph: its number.
        ranks: the ranks that run it; shards are dealt out and parts joined in this order.
        inputs: in the graph's order.
        outputs: in the graph's order.
        stacked: whether the graph has a batch dimension.
        unstacked_inputs: its inputs that have none all the same: one value for all rows of a step.
        static_rows: the batch size over all ranks, where the graph takes no other; None: any.
    """

    subgraph: int
    ranks: tuple[int, ...]
    inputs: tuple[InputPlan, ...]
    outputs: tuple[OutputPlan, ...]
    stacked: bool
    unstacked_inputs: frozenset[int]
    static_rows: int | None

    @property
    def slot_input(self) -> int | None:
        """The input that is given the number of a session's slot: the one named `slot`; None where it has none."""
        return next((one.index for one in self.inputs if one.spec.name == "slot"), None)

    def check_row(self, arguments: Sequence[np.ndarray[Any, Any]], *, lenient: bool) -> Row:
        """One row, ready for `scatter`.

        Args:
            arguments: a value per input, without the batch axis.
            lenient: the values came without dtypes of their own (as plain numbers): convert them where nothing is lost
                but the last digits of what becomes a float; never a float to a whole number.

        Returns:
            The values, in the graph's dtypes.

        Raises:
            InvalidInput: a wrong number of inputs, a wrong dtype or shape, a size that does not divide by the ranks.
        """
        if len(arguments) != len(self.inputs):
            raise InvalidInput(f"subgraph {self.subgraph} takes {len(self.inputs)} input(s), got {len(arguments)}")
        ranks = len(self.ranks)
        return tuple(
            one.check(value, ranks, lenient=lenient) for one, value in zip(self.inputs, arguments, strict=True)
        )

    def batch_key(self, row: Row) -> tuple[Any, ...] | None:
        """What rows must have in common to run as one step: equal keys may be stacked, others may not.

        Args:
            row: as `check_row` gave it.

        Returns:
            A hashable key; None where any rows may share a step.
        """
        if not self.stacked:
            return None
        keys = tuple(one.key(value) for one, value in zip(self.inputs, row, strict=True))
        return None if all(key is None for key in keys) else keys

    def padded(self, rows: int) -> int:
        """How many rows a step of `rows` rows has when it reaches the graph.

        Raises:
            InternalError: no rows, or more than the graph takes.
        """
        if rows < 1 or (self.static_rows is not None and rows > self.static_rows):
            raise InternalError(
                f"a step of {rows} rows for subgraph {self.subgraph}, which takes 1 to {self.static_rows}"
            )
        if self.static_rows is not None:
            return self.static_rows
        multiple = len(self.ranks) if any(one.splits_rows for one in self.inputs) else 1
        return -(-rows // multiple) * multiple

    def scatter(self, rows: Sequence[Row]) -> Scattered:
        """What the ranks are sent for a step.

        Args:
            rows: as `check_row` gave them, all of one `batch_key`; the last is repeated where the batch must be padded.

        Raises:
            InternalError: no rows, or more than the graph takes.
        """
        padded = self.padded(len(rows))
        replicated: list[Column] = []
        sharded: list[list[Column]] = []
        for number, one in enumerate(self.inputs):
            tensors = one.whole([row[number] for row in rows], padded, stacked=self.stacked)
            columns = one.columns(tensors, len(self.ranks))
            if one.axis is None:
                replicated.extend(columns)
            else:
                sharded.append(columns)
        return Scattered(replicated=tuple(replicated), sharded=tuple(zip(*sharded, strict=True)))

    def returns(self, rank: int) -> tuple[int, ...]:
        """The numbers of the outputs that a rank has to send back."""
        if rank not in self.ranks:
            return ()
        return tuple(output.index for output in self.outputs if output.needs(rank))

    def gather(self, columns: Mapping[int, Iterable[Column]], rows: int) -> list[Row]:
        """The outputs of each row.

        Args:
            columns: by rank, what it sent; of a rank that had to send nothing nothing is needed.
            rows: how many rows the step had.

        Returns:
            Per row its outputs; views of the messages where nothing had to be computed.

        Raises:
            RanksDisagree: an output is missing, or the ranks' parts do not go together.
            GraphFailed: an output that does not fit its layout, or does not have the rows along its first axis.
            InternalError: what a rank sent is no tensor.
        """
        padded = self.padded(rows)
        outputs: list[list[np.ndarray[Any, Any]]] = []
        for output in self.outputs:
            sent = {rank: columns.get(rank, ()) for rank in self.ranks if output.needs(rank)}
            outputs.append(output.gather(sent, rows, padded))
        return [tuple(output[row] for output in outputs) for row in range(rows)]


def make_plan(
    subgraph: int,
    *,
    ranks: Sequence[int],
    inputs: Sequence[InputLayout] | None,
    outputs: Sequence[OutputLayout] | None,
    stacked: bool,
    unstacked_inputs: Iterable[int],
    infos: Mapping[int, GraphInfo],
    default_rank: int,
) -> SubgraphPlan:
    """Put together what a servable says of a subgraph and what its ranks say of their graphs.

    Args:
        subgraph: its number.
        ranks: the ranks that run it, in the order in which shards are dealt out.
        inputs: a layout per input; None: every rank gets every input whole.
        outputs: a layout per output; None: each comes from `default_rank`.
        stacked: whether the graph has a batch dimension.
        unstacked_inputs: the inputs that have none all the same; numbers that this graph does not have are ignored
            (other subgraphs of the model may).
        infos: by rank, its graph as that rank sees it: a shard, where an input or output is divided.
        default_rank: where an output comes from unless its layout says otherwise.

    Raises:
        ModelError: the ranks' graphs differ, or do not go together with the layouts or the batch dimension.
    """
    if not ranks:
        raise ModelError(f"subgraph {subgraph}: no ranks run it")
    missing = [rank for rank in ranks if rank not in infos]
    if missing:
        raise ModelError(f"subgraph {subgraph}: rank {missing[0]} has no graph for it")
    first = infos[ranks[0]]
    for rank in ranks[1:]:
        _check_alike(subgraph, "input", ranks[0], first.inputs, rank, infos[rank].inputs)
        _check_alike(subgraph, "output", ranks[0], first.outputs, rank, infos[rank].outputs)
    unstacked = frozenset(unstacked_inputs) & set(range(len(first.inputs))) if stacked else frozenset()
    input_plans = tuple(
        _input_plan(subgraph, index, spec, layout, batched=stacked and index not in unstacked, ranks=len(ranks))
        for index, (spec, layout) in enumerate(_paired(subgraph, "input", first.inputs, inputs, Replicate()))
    )
    output_plans = tuple(
        _output_plan(subgraph, index, spec, layout, batched=stacked, ranks=ranks, default_rank=default_rank)
        for index, (spec, layout) in enumerate(_paired(subgraph, "output", first.outputs, outputs, FromRank()))
    )
    if stacked and not any(one.batched for one in input_plans):
        raise ModelError(f"subgraph {subgraph} has a batch dimension, but no input that has it")
    static_rows = _static_rows(subgraph, [one for one in input_plans if one.batched])
    for output in output_plans:
        _check_output_rows(output, static_rows)
    return SubgraphPlan(
        subgraph=subgraph,
        ranks=tuple(ranks),
        inputs=input_plans,
        outputs=output_plans,
        stacked=stacked,
        unstacked_inputs=unstacked,
        static_rows=static_rows,
    )


def _check_alike(
    subgraph: int, kind: str, rank: int, specs: Sequence[TensorSpec], other: int, others: Sequence[TensorSpec]
) -> None:
    if len(specs) != len(others):
        raise ModelError(
            f"rank {other}: subgraph {subgraph} has {len(others)} {kind}(s), but {len(specs)} on rank {rank}"
        )
    for index, (one, two) in enumerate(zip(specs, others, strict=True)):
        if (one.dtype, one.shape) != (two.dtype, two.shape):
            raise ModelError(
                f"rank {other}: {kind} {index} of subgraph {subgraph} is {describe(two.dtype, two.shape)}, but "
                f"{describe(one.dtype, one.shape)} on rank {rank}; the ranks' graphs must be alike"
            )


def _paired(
    subgraph: int, kind: str, specs: Sequence[TensorSpec], layouts: Sequence[Any] | None, default: Any
) -> list[tuple[TensorSpec, Any]]:
    if layouts is None:
        layouts = [default] * len(specs)
    if len(layouts) != len(specs):
        raise ModelError(f"subgraph {subgraph} has {len(specs)} {kind}(s), but {len(layouts)} layout(s) are declared")
    return list(zip(specs, layouts, strict=True))


def _check_dtype(what: str, spec: TensorSpec) -> None:
    if spec.dtype in ("string", "bytes"):
        raise ModelError(f"{what} is {spec.dtype}: graphs take and give numbers")


def _full(what: str, spec: TensorSpec, layout: Any, ranks: int) -> TensorSpec:
    """The shape over all ranks of what a rank has a part of."""
    if not isinstance(layout, Shard | Concat):
        return spec
    axis = layout.axis
    if not 0 <= axis < len(spec.shape):
        raise ModelError(f"{what} is {describe(spec.dtype, spec.shape)}: it has no axis {axis} for {layout}")
    size = spec.shape[axis]
    shape = (*spec.shape[:axis], size * ranks if size >= 0 else -1, *spec.shape[axis + 1 :])
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=shape)


def _input_plan(
    subgraph: int, index: int, spec: TensorSpec, layout: InputLayout, *, batched: bool, ranks: int
) -> InputPlan:
    what = f"input {index} of subgraph {subgraph}"
    _check_dtype(what, spec)
    if batched and not spec.shape:
        raise ModelError(
            f"{what} is a single {spec.dtype}, without a batch axis: declare it in without_batch_dim_inputs"
        )
    return InputPlan(subgraph, index, _full(what, spec, layout, ranks), layout, batched)


def _output_plan(
    subgraph: int,
    index: int,
    spec: TensorSpec,
    layout: OutputLayout,
    *,
    batched: bool,
    ranks: Sequence[int],
    default_rank: int,
) -> OutputPlan:
    what = f"output {index} of subgraph {subgraph}"
    _check_dtype(what, spec)
    if batched and not spec.shape:
        raise ModelError(f"{what} is a single {spec.dtype}: a graph with a batch dimension must give a row per row")
    if isinstance(layout, FromRank):
        layout = FromRank(default_rank if layout.rank is None else layout.rank)
        if layout.rank not in ranks:
            raise ModelError(f"{what} comes from rank {layout.rank}, which is none of its ranks {list(ranks)}")
    if isinstance(layout, Sum) and spec.dtype == "bool":
        raise ModelError(f"{what} is bool: only numbers can be added up")
    return OutputPlan(subgraph, index, _full(what, spec, layout, len(ranks)), layout, batched)


def _static_rows(subgraph: int, batched: Sequence[InputPlan]) -> int | None:
    sizes = {one.index: one.spec.shape[0] for one in batched if one.spec.shape[0] >= 0}
    if not sizes:
        return None
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        found = ", ".join(f"{size} (input {index})" for index, size in sizes.items())
        raise ModelError(f"subgraph {subgraph}: its inputs disagree on the batch size: {found}")
    return next(iter(sizes.values()))


def _check_output_rows(output: OutputPlan, static_rows: int | None) -> None:
    """A graph of a fixed batch size says how many rows it gives; of others that is seen when it runs."""
    if not output.batched or static_rows is None:
        return
    rows = output.spec.shape[0]
    if rows not in (-1, static_rows):
        raise ModelError(f"{output} with {output.layout} has {rows} rows for a batch of {static_rows}")

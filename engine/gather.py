"""From ranks to rows: put the ranks' parts of an output together, and give each row its own.

Each output is an `OutputPlan`; `plan.SubgraphPlan` has them all.

A `sum` is added in the order of the ranks, so it is the same each time: float16 and bfloat16 in float32 and rounded
once, whole numbers modulo 2 to the power of their bits, as the collectives of the graphs themselves do. `all_equal`
compares bits, but any NaN equals any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..schemas.errors import GraphFailed, InternalError, RankmqError, RanksDisagree
from ..schemas.messages import Column, TensorSpec
from ..schemas.tensors import BFLOAT16, bfloat16_to_float32, float32_to_bfloat16, to_array
from .layouts import AllEqual, Concat, FromRank, OutputLayout, Sum
from .scatter import Array, describe

__all__ = ["OutputPlan"]


@dataclass(frozen=True)
class OutputPlan:
    """One output of a subgraph.

    Attributes:
        subgraph: the subgraph's number, for messages.
        index: the output's number.
        spec: dtype and the full shape over all ranks, in the graph's axes.
        layout: how it is made of the ranks' outputs; a `FromRank` names its rank.
        batched: whether its first axis is the batch.
    """

    subgraph: int
    index: int
    spec: TensorSpec
    layout: OutputLayout
    batched: bool

    def needs(self, rank: int) -> bool:
        """Whether this rank has to send it."""
        return self.layout.rank == rank if isinstance(self.layout, FromRank) else True

    def gather(self, columns: Mapping[int, Iterable[Column]], rows: int, padded: int) -> list[Array]:
        """The output of each row.

        Args:
            columns: by rank, in order of the ranks, what each sent.
            rows: how many rows the step had.
            padded: how many rows it had with padding.

        Returns:
            Per row its output; views of the messages where nothing had to be computed.

        Raises:
            RanksDisagree: an output is missing, or the ranks' parts do not go together.
            GraphFailed: the graph's output does not have one element per row along its first axis.
            InternalError: what a rank sent is no tensor.
        """
        parts = {rank: self._read(rank, sent, 1 if self.batched else rows) for rank, sent in columns.items()}
        count = 1 if self.batched else rows
        wholes = [self._join({rank: tensors[i] for rank, tensors in parts.items()}) for i in range(count)]
        if not self.batched:
            return wholes
        (whole,) = wholes
        if whole.ndim == 0 or whole.shape[0] != padded:
            raise GraphFailed(f"{self}: shape {whole.shape} for {padded} rows: its first axis is not the batch")
        return [whole[row, ...] for row in range(rows)]  # with the dots, a single number stays an array

    def gather_turns(self, columns: Mapping[int, Iterable[Column]], turns: Sequence[int]) -> list[Array]:
        """The output of each row in every turn of a loop.

        Args:
            columns: by rank, in order of the ranks, what each sent: the turns are along an axis in front.
            turns: per row, how many it ran.

        Returns:
            Per row its outputs, one turn behind the other along the first axis.

        Raises:
            RanksDisagree: an output is missing, or the ranks' parts do not go together.
            GraphFailed: it does not have the turns and rows along its first axes.
            InternalError: what a rank sent is no tensor.
        """
        count = 1 if self.batched else len(turns)
        parts = {rank: self._read(rank, sent, count) for rank, sent in columns.items()}
        wholes = [self._join({rank: tensors[i] for rank, tensors in parts.items()}, 1) for i in range(count)]
        if self.batched:
            (whole,) = wholes
            if whole.shape[:2] != (max(turns), len(turns)):
                raise GraphFailed(f"{self}: shape {whole.shape} for {max(turns)} turns of {len(turns)} rows")
            return [whole[:ran, row] for row, ran in enumerate(turns)]
        for whole, ran in zip(wholes, turns, strict=True):
            if whole.shape[:1] != (ran,):
                raise GraphFailed(f"{self}: shape {whole.shape} for {ran} turns")
        return wholes

    def _read(self, rank: int, columns: Iterable[Column], count: int) -> list[Array]:
        column = next((column for column in columns if column.index == self.index), None)
        if column is None:
            raise RanksDisagree(f"rank {rank} did not send {self}")
        if len(column.tensors) != count:
            raise RanksDisagree(f"rank {rank} sent {len(column.tensors)} tensor(s) for {self}, not {count}")
        try:
            return [to_array(tensor) for tensor in column.tensors]
        except RankmqError as error:  # a fault of the rank's, not of the request's sender
            raise InternalError(f"rank {rank} sent {self} unreadable: {error.message}") from error

    def _join(self, parts: Mapping[int, Array], axes_before: int = 0) -> Array:
        """Puts the ranks' parts together; `axes_before`: how many axes stand before those of the graph."""
        if isinstance(self.layout, Concat):
            return self._concatenate(parts, self.layout.axis + axes_before)
        self._check_alike(parts)
        arrays = list(parts.values())
        if isinstance(self.layout, Sum):
            if arrays[0].dtype.kind not in "iuf" and arrays[0].dtype != BFLOAT16:
                raise GraphFailed(f"{self} is {arrays[0].dtype}: only numbers can be added up")
            return _add(arrays)
        if isinstance(self.layout, AllEqual):
            self._check_equal(parts)
        return arrays[0]

    def _concatenate(self, parts: Mapping[int, Array], axis: int) -> Array:
        rank, first = next(iter(parts.items()))
        if first.ndim <= axis:
            raise GraphFailed(f"{self}: shape {first.shape} on rank {rank} has no axis {axis} to join")
        self._check_alike(parts, except_axis=axis)
        return np.concatenate(list(parts.values()), axis=axis)

    def _check_alike(self, parts: Mapping[int, Array], except_axis: int | None = None) -> None:
        groups: dict[tuple[Any, ...], list[int]] = {}
        for rank, array in parts.items():
            shape = tuple(size for axis, size in enumerate(array.shape) if axis != except_axis)
            groups.setdefault((array.dtype, array.ndim, shape), []).append(rank)
        if len(groups) > 1:
            found = (f"{_of(parts[ranks[0]])} on {_names(ranks)}" for ranks in groups.values())
            raise RanksDisagree(f"{self} does not go together: {', '.join(found)}")

    def _check_equal(self, parts: Mapping[int, Array]) -> None:
        groups: list[list[int]] = []
        for rank, array in parts.items():
            same = next((ranks for ranks in groups if _equal(parts[ranks[0]], array)), None)
            if same is None:
                groups.append([rank])
            else:
                same.append(rank)
        if len(groups) > 1:
            raise RanksDisagree(f"{self} must be equal on all ranks, but differs: {' / '.join(map(_names, groups))}")

    def __str__(self) -> str:
        return f"output {self.index} of subgraph {self.subgraph}"


def _add(arrays: Sequence[Array]) -> Array:
    dtype = arrays[0].dtype
    if dtype == BFLOAT16:
        return float32_to_bfloat16(_add([bfloat16_to_float32(array) for array in arrays]))
    total = arrays[0].astype(np.float32 if dtype == np.float16 else dtype)
    for array in arrays[1:]:
        np.add(total, array, out=total, casting="same_kind")
    return total.astype(dtype, copy=False)


def _equal(one: Array, other: Array) -> bool:
    if _bits(one) == _bits(other):
        return True
    one, other = (bfloat16_to_float32(array) if array.dtype == BFLOAT16 else array for array in (one, other))
    if one.dtype.kind != "f":
        return False
    nan, other_nan = np.isnan(one), np.isnan(other)
    return bool(np.array_equal(nan, other_nan)) and _bits(one[~nan]) == _bits(other[~nan])


def _bits(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _of(array: Array) -> str:
    name = "bfloat16" if array.dtype == BFLOAT16 else str(array.dtype)
    return describe(name, array.shape)


def _names(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"

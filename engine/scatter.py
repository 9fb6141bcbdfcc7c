"""From rows to ranks: check what a row brings for a graph's input, and cut the input into what each rank gets.

Each input is an `InputPlan`; `plan.SubgraphPlan` has them all. Nothing is copied that need not be: rows are stacked
once, a shard is a view of the stack wherever its bytes lie together, and a batch of one row is not copied at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np

from ..schemas.errors import InvalidInput
from ..schemas.messages import Column, TensorSpec
from ..schemas.tensors import BFLOAT16, bfloat16_to_float32, dtype_name, float32_to_bfloat16, from_array, numpy_dtype
from .layouts import InputLayout, Shard

__all__ = ["Array", "InputPlan", "Scattered", "describe", "matches"]

Array = np.ndarray[Any, Any]


def describe(dtype: str, shape: Sequence[int]) -> str:
    """A dtype and a shape for a message; sizes that may be any are given as `?`."""
    sizes = ["?" if size < 0 else str(size) for size in shape]
    return f"{dtype} ({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def matches(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a shape is the one wanted, in which -1 stands for any size."""
    if shape == wanted:  # by far the most
        return True
    return len(shape) == len(wanted) and all(want in (-1, size) for size, want in zip(shape, wanted, strict=True))


@dataclass(frozen=True, slots=True)
class Scattered:
    """The inputs of a step, as they go to the ranks.

    Attributes:
        replicated: the columns that every rank gets.
        sharded: per rank, in the plan's order of ranks, the columns that are its own; empty where nothing is sharded.
    """

    replicated: tuple[Column, ...]
    sharded: tuple[tuple[Column, ...], ...]


@dataclass(frozen=True)
class InputPlan:
    """One input of a subgraph.

    Attributes:
        subgraph: the subgraph's number, for messages.
        index: the input's number.
        spec: dtype and the full shape over all ranks, in the graph's axes (with the batch axis, if it has one).
        layout: how the ranks get it.
        batched: whether its first axis is the batch, which a single row does not have.
    """

    subgraph: int
    index: int
    spec: TensorSpec
    layout: InputLayout
    batched: bool

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The dtype in numpy."""
        return numpy_dtype(self.spec.dtype)

    @cached_property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row, as a producer gives it; -1 stands for any size."""
        return self.spec.shape[1:] if self.batched else self.spec.shape

    def __str__(self) -> str:
        name = f" ({self.spec.name[:60]})" if self.spec.name else ""
        return f"input {self.index}{name} of subgraph {self.subgraph}"

    @property
    def axis(self) -> int | None:
        """The graph's axis along which it is sharded, None where every rank gets it whole."""
        return self.layout.axis if isinstance(self.layout, Shard) else None

    @property
    def splits_rows(self) -> bool:
        """Whether each rank gets some of the rows (data parallelism)."""
        return self.batched and self.axis == 0

    def check(self, value: Array, ranks: int, *, lenient: bool) -> Array:
        """One row's value for this input, in the graph's dtype and little-endian.

        Args:
            value: as it came.
            ranks: over how many ranks it is sharded, if it is.
            lenient: the value came without a dtype of its own: convert it where nothing is lost by it but the last
                digits of what becomes a float.

        Raises:
            InvalidInput: another dtype or shape, a value that the dtype cannot hold, or a size that the ranks cannot
                divide.
        """
        if value.dtype != self.dtype:
            value = self._convert(value, lenient=lenient)
        if not matches(value.shape, self.row_shape):
            raise self._refusal(value)
        if self.axis is not None and not self.splits_rows:
            size = value.shape[self.axis - self.batched]
            if size % ranks:
                raise InvalidInput(
                    f"{self} is divided over {ranks} ranks along axis {self.axis}: "
                    f"size {size} is no multiple of {ranks}"
                )
        return value

    def _convert(self, value: Array, *, lenient: bool) -> Array:
        try:
            name = dtype_name(value.dtype)
        except InvalidInput:
            raise self._refusal(value) from None
        if name == self.spec.dtype and value.dtype.kind in "biufV":  # the other byte order, or ml_dtypes' bfloat16
            return value.view(BFLOAT16) if name == "bfloat16" else value.astype(self.dtype)
        source, target = value.dtype.kind, "f" if self.spec.dtype == "bfloat16" else self.dtype.kind
        if not lenient or source not in "biuf" or target == "b" or (source == "f" and target != "f"):
            raise self._refusal(value)
        if target == "f":
            return self._to_float(value)
        bounds = np.iinfo(self.dtype)
        if value.size and (int(value.min()) < bounds.min or int(value.max()) > bounds.max):
            raise self._lost(value)
        return value.astype(self.dtype)

    def _to_float(self, value: Array) -> Array:
        """Rounding is what floats do; a finite number that becomes infinite is lost."""
        with np.errstate(over="ignore"):
            if self.spec.dtype == "bfloat16":
                result = float32_to_bfloat16(value.astype(np.float32))
                floats = bfloat16_to_float32(result)
            else:
                result = floats = value.astype(self.dtype)
        if value.size and bool(np.any(np.isinf(floats) & np.isfinite(value))):
            raise self._lost(value)
        return result

    def _refusal(self, value: Array) -> InvalidInput:
        try:
            name = dtype_name(value.dtype)
        except InvalidInput:
            name = str(value.dtype)[:40]
        takes = describe(self.spec.dtype, self.row_shape)
        return InvalidInput(f"{self} takes {takes}, got {describe(name, value.shape)}")

    def _lost(self, value: Array) -> InvalidInput:
        return InvalidInput(
            f"{self} takes {describe(self.spec.dtype, self.row_shape)}: "
            f"values from {value.min()} to {value.max()} do not fit"
        )

    def key(self, value: Array) -> tuple[int, ...] | bytes | None:
        """What two rows must have in common in this input to be stacked; only for a graph with a batch dimension.

        Args:
            value: a row's checked value.

        Returns:
            The shape where sizes may vary, a digest where all rows of a step share one value, else None.
        """
        if self.batched:
            return value.shape if -1 in self.row_shape else None
        return blake2b(repr(value.shape).encode() + np.ascontiguousarray(value).tobytes(), digest_size=16).digest()

    def whole(self, values: Sequence[Array], rows: int, *, stacked: bool) -> list[Array]:
        """The tensors of the whole input, before it is cut.

        Args:
            values: per row its checked value.
            rows: up to how many rows to pad a batch, by repeating the last one.
            stacked: whether the graph has a batch dimension.

        Returns:
            One tensor where the graph has a batch dimension, else one for each row.
        """
        if not stacked:
            return list(values)
        if not self.batched:
            return [values[0]]
        if len(values) == 1:
            return [values[0][np.newaxis] if rows == 1 else np.broadcast_to(values[0], (rows, *values[0].shape))]
        return [np.stack([*values, *[values[-1]] * (rows - len(values))])]

    def columns(self, tensors: Sequence[Array], ranks: int) -> list[Column]:
        """What the ranks get: one column where every rank gets the whole, else one per rank.

        Args:
            tensors: as `whole` gives them.
            ranks: how many there are.
        """
        if self.axis is None:
            return [self._column(tensors)]
        shards = [np.split(tensor, ranks, axis=self.axis) for tensor in tensors]
        return [self._column([shard[rank] for shard in shards]) for rank in range(ranks)]

    def _column(self, tensors: Sequence[Array]) -> Column:
        return Column(index=self.index, tensors=tuple(from_array(tensor) for tensor in tensors))

"""The tensor plane: between processes of one host the bytes of tensors go through shared memory, once for all ranks.

A message then says where they are. Each writer has memory of its own: the orchestrator for what goes into the steps of
an epoch, each rank for what comes out. A span of the orchestrator's is free when all ranks have answered the step. One
of a rank's is free when it is told of a step that is a window later: the orchestrator sends none before it has
read this rank's answer to the first.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence

from ..schemas.errors import InternalError
from ..schemas.messages import Column, Placed
from ..schemas.tensors import Tensor
from .ring import ALIGNMENT, Ring, Span

__all__ = ["PLACED_BYTES", "PlaneReader", "PlaneWriter", "ResultWriter"]

PLACED_BYTES = 2048
"""What is smaller goes with the message."""


class PlaneWriter:
    """Puts the tensors of messages into a piece of shared memory.

    Args:
        memory: to write to.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._ring = Ring(len(memory))

    @property
    def size(self) -> int:
        """How much there is, in bytes."""
        return self._ring.size

    @property
    def used(self) -> int:
        """How many spans are in use."""
        return self._ring.used

    def put(self, parts: Sequence[Sequence[Column]]) -> tuple[list[tuple[Column, ...]], Span] | None:
        """Writes what is large in columns.

        Args:
            parts: the columns of one or more messages that are needed for equally long.

        Returns:
            The columns as they are to be sent, and the span to be given back; None where nothing is large, or there
            is no room now.
        """
        total = sum(_room(column) for columns in parts for column in columns)
        span = self._ring.take(total) if total else None
        if span is None:
            return None
        at = span.offset
        out: list[tuple[Column, ...]] = []
        for columns in parts:
            placed: list[Column] = []
            for column in columns:
                if not _room(column):
                    placed.append(column)
                    continue
                places, at = self._write(column.tensors, at)
                placed.append(Column(index=column.index, placed=places))
            out.append(tuple(placed))
        return out, span

    def _write(self, tensors: Sequence[Tensor], at: int) -> tuple[tuple[Placed, ...], int]:
        """Writes tensors one behind the other: the places, where alike ones share one, and where the last one ends."""
        places: list[Placed] = []
        for (dtype, shape), alike in itertools.groupby(tensors, lambda it: (it.dtype, it.shape)):
            offset, length, count = at, 0, 0
            for tensor in alike:
                data = tensor.data
                if not isinstance(data, memoryview):
                    raise InternalError("text beside numbers in one column")
                length, count = data.nbytes, count + 1
                self._memory[at : at + length] = data
                at += _aligned(length)
            places.append(Placed(dtype=dtype, shape=shape, offset=offset, length=length, count=count))
        return tuple(places), at

    def needs(self, parts: Iterable[Sequence[Column]]) -> bool:
        """Whether something is large, and there would be room for it if nothing else were in the memory."""
        return 0 < sum(_room(column) for columns in parts for column in columns) <= self.size

    def give_back(self, span: Span) -> None:
        """What was written is not needed any more."""
        self._ring.give_back(span)


class ResultWriter:
    """A rank's memory: what it wrote for a step is free once a step of a window later has come.

    Args:
        memory: to write to.
        window: how many steps may be sent ahead of the slowest rank.
    """

    def __init__(self, memory: memoryview, window: int) -> None:
        self._writer = PlaneWriter(memory)
        self._window = window
        self._spans: deque[tuple[int, Span]] = deque()

    def put(self, step: int, columns: Sequence[Column]) -> tuple[Column, ...]:
        """The columns as they are to be sent: what is large is in the memory, where there is room.

        Args:
            step: which they are the results of.
            columns: all of them.
        """
        while self._spans and self._spans[0][0] <= step - self._window:
            self._writer.give_back(self._spans.popleft()[1])
        found = self._writer.put([columns])
        if found is None:
            return tuple(columns)
        (placed,), span = found
        self._spans.append((step, span))
        return placed


class PlaneReader:
    """Finds the tensors of messages in a piece of shared memory.

    Args:
        memory: to read from.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def columns(self, columns: Sequence[Column], *, copy: bool) -> tuple[Column, ...]:
        """Columns with all their tensors.

        Args:
            columns: as they came.
            copy: whether they are needed for longer than the writer keeps them.

        Raises:
            InternalError: a place outside the memory.
        """
        return tuple(self._column(column, copy=copy) if column.placed else column for column in columns)

    def _column(self, column: Column, *, copy: bool) -> Column:
        memory = self._memory if copy else self._memory.toreadonly()
        tensors = []
        for place in column.placed:
            step, length = _aligned(place.length), place.length
            end = place.offset + step * (place.count - 1) + length
            if end > len(memory):
                raise InternalError(f"a tensor at {place.offset} to {end} of {len(memory)} shared bytes")
            for number in range(place.count):
                offset = place.offset + number * step
                view = memory[offset : offset + length]
                tensors.append(Tensor(place.dtype, place.shape, memoryview(bytes(view)) if copy else view))
        return Column(index=column.index, tensors=tuple(tensors))


def _room(column: Column) -> int:
    """How many bytes of shared memory a column takes; 0 for one that goes with the message: small, or of text."""
    lengths = [tensor.data.nbytes for tensor in column.tensors if isinstance(tensor.data, memoryview)]
    return sum(map(_aligned, lengths)) if lengths and max(lengths) >= PLACED_BYTES else 0


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT

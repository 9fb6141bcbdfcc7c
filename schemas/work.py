"""What a step runs, and the columns of tensors that it takes and gives."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from .base import Count, Part
from .tensors import Tensor

__all__ = ["Call", "Column", "Placed", "Repeat"]


class Placed(Part, frozen=True, kw_only=True):
    """A tensor whose bytes are in memory that the sender shares with whoever reads this; or several of a kind.

    Attributes:
        dtype: as in `Tensor`.
        shape: as in `Tensor`.
        offset: where its bytes begin.
        length: how many there are.
        count: so many tensors, one behind the other, each where the next multiple of 64 bytes begins.
    """

    dtype: str
    shape: tuple[Count, ...]
    offset: Count
    length: Count
    count: Annotated[int, Meta(ge=1)] = 1


class Column(Part, frozen=True, kw_only=True):
    """One input or output of a step: one tensor of stacked rows, or one tensor for each row.

    Attributes:
        index: which input or output.
        tensors: those that go with the message, or by reference to the blob store.
        placed: those in shared memory; a column has one or the other.
    """

    index: Count
    tensors: tuple[Tensor, ...] = ()
    placed: tuple[Placed, ...] = ()


class Call(Part, tag_field="op", tag="call", frozen=True, kw_only=True):
    """Run one subgraph over the rows of the step.

    Attributes:
        subgraph: its number.
        rows: how many rows the step carries.
        stacked: whether each input is one tensor with the rows along its first axis (the graph has a batch
            dimension), or one tensor a row, run back to back.
    """

    subgraph: Count
    rows: Annotated[int, Meta(ge=1)]
    stacked: bool = False


class Repeat(Part, tag_field="op", tag="repeat", frozen=True, kw_only=True):
    """Run one subgraph again and again over the rows of the step, each turn on what the turn before gave.

    A row is done when it has run its turns, or when the flag that it watches for is set; the others go on without it.
    Each rank feeds its own outputs to its own inputs, and every rank does the same turns over the same rows.

    Attributes:
        subgraph: its number.
        rows: how many rows the step carries.
        stacked: as in `Call`.
        turns: for each row, how many turns it runs at most.
        feed: pairs of an input and the output that it is given from the second turn on.
        until: the output that is not zero for a row that is done; none: rows run all their turns.
        last: the outputs that are sent back as each row's last turn gave them.
        collect: the outputs that are sent back as every turn gave them, the turns along an axis in front: one tensor
            of turns and rows where the rows are stacked, else one tensor of turns a row. What is there for turns that a
            row did not run means nothing.
        shrink: rows that are done leave the batch; else they stay, as copies of one that is not done.
    """

    subgraph: Count
    rows: Annotated[int, Meta(ge=1)]
    stacked: bool = False
    turns: tuple[Annotated[int, Meta(ge=1)], ...]
    feed: tuple[tuple[Count, Count], ...] = ()
    until: Count | None = None
    last: tuple[Count, ...] = ()
    collect: tuple[Count, ...] = ()
    shrink: bool = False

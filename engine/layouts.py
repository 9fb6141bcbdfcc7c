"""How a subgraph's inputs are dealt out to the ranks, and how its outputs are put together again.

These are the words of a servable configuration, as values; applying them to arrays is somebody else's work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "AllEqual",
    "Concat",
    "FromRank",
    "InputLayout",
    "OutputLayout",
    "Replicate",
    "Shard",
    "Sum",
    "all_equal",
    "concat",
    "from_rank",
    "replicate",
    "shard",
    "sum_ranks",
]


@dataclass(frozen=True, slots=True)
class Replicate:
    """Every rank gets the whole input."""

    def __str__(self) -> str:
        return "replicate()"


@dataclass(frozen=True, slots=True)
class Shard:
    """The input is cut along `axis` into equal parts, one per rank, in rank order."""

    axis: int

    def __str__(self) -> str:
        return f"shard({self.axis})"


@dataclass(frozen=True, slots=True)
class FromRank:
    """The output of one rank is the output; None is the first rank of the last stage."""

    rank: int | None = None

    def __str__(self) -> str:
        return f"from_rank({'' if self.rank is None else self.rank})"


@dataclass(frozen=True, slots=True)
class Concat:
    """The ranks' outputs are joined along `axis`, in rank order."""

    axis: int

    def __str__(self) -> str:
        return f"concat({self.axis})"


@dataclass(frozen=True, slots=True)
class Sum:
    """The ranks' outputs are added up, element by element."""

    def __str__(self) -> str:
        return "sum()"


@dataclass(frozen=True, slots=True)
class AllEqual:
    """Every rank must give the same output, which is checked; that one is the output."""

    def __str__(self) -> str:
        return "all_equal()"


InputLayout: TypeAlias = Replicate | Shard
OutputLayout: TypeAlias = FromRank | Concat | Sum | AllEqual


def replicate() -> Replicate:
    """An input that every rank gets whole (the default)."""
    return Replicate()


def shard(axis: int) -> Shard:
    """An input that is cut along `axis` (from 0), one part per rank."""
    return Shard(axis)


def from_rank(rank: int | None = None) -> FromRank:
    """An output that is taken from one rank; the default is the first rank of the last stage."""
    return FromRank(rank)


def concat(axis: int) -> Concat:
    """An output that is joined along `axis` (from 0) from the ranks' parts."""
    return Concat(axis)


def sum_ranks() -> Sum:
    """An output that is the sum of the ranks' outputs; configurations say `distributed.sum()`."""
    return Sum()


def all_equal() -> AllEqual:
    """An output that must be the same on every rank."""
    return AllEqual()

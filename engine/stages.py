"""Pipeline-parallel stages: the ranks of a group divided into stages of the same size, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from .topology import RANK_ALL

__all__ = ["ranks_of_tag", "stage_of", "stage_ranks"]


def stage_of(rank: int, size: int, stages: int) -> int:
    """The stage of a rank, from 0.

    Args:
        rank: its number.
        size: how many ranks there are.
        stages: how many stages; divides `size`.
    """
    return rank // (size // stages)


def stage_ranks(stage: int, size: int, stages: int) -> tuple[int, ...]:
    """The ranks of a stage, in order."""
    each = size // stages
    return tuple(range(stage * each, (stage + 1) * each))


def ranks_of_tag(tag: str, size: int, stages: int) -> Sequence[int]:
    """The ranks that a tag of `topology` reaches: all, those of a stage, or one."""
    if tag == RANK_ALL:
        return range(size)
    kind, _, number = tag.rpartition(".")
    return [int(number)] if kind == "rank" else stage_ranks(int(number), size, stages)

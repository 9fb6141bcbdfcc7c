"""How much of the host's shared memory one process takes, so that there is room for what must have it there. Pure."""

from __future__ import annotations

__all__ = ["share_of"]

_PART = 4
"""The others' is what is not this part of what is free: the collectives of the ranks cannot do without."""


def share_of(wanted: int, least: int, free: int, among: int = 1) -> int:
    """What is wanted, halved until it is no more than the process's share of a quarter of what is free.

    Args:
        wanted: in bytes.
        least: what is worth having.
        free: how much there is.
        among: how many processes share the quarter.

    Returns:
        Bytes; 0 where the share is not worth having.
    """
    size = wanted
    while size > free // (_PART * among):
        size //= 2
    return size if size >= least else 0

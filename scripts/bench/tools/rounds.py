"""Rounds in turns, so that what else the machine does meets both sides alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["in_turns"]

_A = TypeVar("_A")
_B = TypeVar("_B")


def in_turns(
    rounds: int, ours: Callable[[], _A], theirs: Callable[[], _B], *, warm: bool = True
) -> list[tuple[_A, _B]]:
    """Measures two sides in turns: A B A B.

    Args:
        rounds: how many pairs.
        ours: measures the figure.
        theirs: measures what it is held against.
        warm: begin with a pair that does not count.

    Returns:
        The pairs that count.
    """
    ours()
    theirs()
    return [(ours(), theirs()) for _ in range(rounds)]

"""Which part of a piece of memory is whose: spans are given one behind the other, and come back in any order. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["ALIGNMENT", "Ring", "Span"]

ALIGNMENT = 64
"""Bytes: of a cache line, and of the widest vector registers."""


_AMPLE = 2
"""As many times what is wanted now, so that something larger that comes next is not shut out."""


@dataclass(eq=False, slots=True)
class Span:
    """A part of the memory.

    Attributes:
        offset: where it begins, in bytes.
        length: how long it is.
    """

    offset: int
    length: int
    free: bool = False


class Ring:
    """Gives spans of a piece of memory in a circle, which begins again at 0 as soon as there is ample room: what was
    in use a moment ago is warm.

    Args:
        size: of the memory, in bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._spans: deque[Span] = deque()

    @property
    def used(self) -> int:
        """How many spans are given."""
        return sum(not span.free for span in self._spans)

    def take(self, length: int) -> Span | None:
        """A span of so many bytes; None while there is no room for it in one piece.

        Args:
            length: in bytes; 0 takes up room as well.
        """
        length = max(ALIGNMENT, -(-length // ALIGNMENT) * ALIGNMENT)
        offset = self._place_for(length)
        if offset is None:
            return None
        span = Span(offset, length)
        self._spans.append(span)
        return span

    def _place_for(self, length: int) -> int | None:
        if not self._spans:
            return 0 if length <= self.size else None
        oldest, newest = self._spans[0], self._spans[-1]
        behind = newest.offset + newest.length
        if newest.offset >= oldest.offset:  # what is given lies in one piece
            if _AMPLE * length <= oldest.offset:
                return 0
            if behind + length <= self.size:
                return behind
            return 0 if length <= oldest.offset else None
        return behind if behind + length <= oldest.offset else None

    def give_back(self, span: Span) -> None:
        """A span is not needed any more; giving it back twice does nothing."""
        span.free = True
        while self._spans and self._spans[0].free:
            self._spans.popleft()

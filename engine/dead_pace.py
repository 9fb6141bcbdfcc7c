"""How many dead letters are asked for at a time. Pure."""

from __future__ import annotations

__all__ = ["Pace"]

_FIRST = 64
_MOST = 65535
"""What a consumer can have at most: AMQP has 16 bits for it."""

_MOST_HOLDING = 30
"""The broker returns what the consumers of a channel had in the consumers' order only while they are few."""

_BYTES = 16 * 1024 * 1024


class Pace:
    """Chunks of a queue: small ones at first, for who wants but a few; then of so many bytes; then what must be.

    The broker sends a chunk at once, so it should not be large. A chunk of which some letters are kept keeps its
    consumer, of which there must not be many.
    """

    def __init__(self) -> None:
        self._kept: list[int] = []
        self._walked = 0
        self._bytes = 0

    def next(self, left: int) -> int:
        """How many letters to ask for.

        Args:
            left: how many there are yet; at least 1.
        """
        mean = max(1, self._bytes // max(1, self._walked))
        places = max(1, _MOST_HOLDING - sum(kept > 0 for kept in self._kept))
        wanted = max(_BYTES // mean, -(-left // places))
        chunk = max(1, min(left, _MOST, max(_FIRST, self._walked), wanted))
        self._kept.append(chunk)
        return chunk

    @property
    def chunk(self) -> int:
        """The number of the chunk that was asked for last, from 0."""
        return len(self._kept) - 1

    def saw(self, size: int) -> None:
        """A letter came.

        Args:
            size: of its body, in bytes.
        """
        self._walked += 1
        self._bytes += size

    def done(self, chunk: int) -> None:
        """A letter of a chunk will not go back."""
        self._kept[chunk] -= 1

"""How many dead letters are asked for at a time. Pure."""

from __future__ import annotations

__all__ = ["Pace"]

_FIRST = 64
_MOST = 4096
"""The broker takes the longer for an acknowledgement the more unacknowledged messages there are on its channel."""

_BYTES = 16 * 1024 * 1024
_MOST_CHUNKS = 1000
"""Each has a channel of its own, of which a connection has 2047, if not told otherwise."""


class Pace:
    """Chunks of a queue: small ones at first, for what they hold is not known, then of so many bytes.

    The broker sends a chunk at once, so it should not be large.

    Args:
        total: how many letters there are.
    """

    def __init__(self, total: int) -> None:
        self._left = total
        self._least = -(-total // _MOST_CHUNKS)
        self._walked = 0
        self._bytes = 0

    def next(self) -> int:
        """How many letters to ask for; 0 when all were."""
        mean = max(1, self._bytes // max(1, self._walked))
        growing = max(_FIRST, self._walked)
        chunk = min(self._left, max(self._least, 1, min(growing, _MOST, _BYTES // mean)))
        self._left -= chunk
        return chunk

    def saw(self, size: int) -> None:
        """A letter came.

        Args:
            size: of its body, in bytes.
        """
        self._walked += 1
        self._bytes += size

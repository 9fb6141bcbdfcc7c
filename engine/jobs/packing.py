"""How many rows travel in one request. Pure."""

from __future__ import annotations

__all__ = ["Packing"]

_SHARE_SECONDS = 0.06
"""A request is worth so much of the whole group's time: short enough not to keep others waiting, long enough that what
a request costs by itself does not count for much."""

_MOST_ROWS = 256
_FIRST_ROWS = 1
_MOST_GROWTH = 4


class Packing:
    """Adapts the number of rows of a request to how fast rows are done, and how large they and their results are.

    What was packed is on record before it is sent, so a row's request stays the same whatever this says later.

    Args:
        fixed: so many rows, always; None adapts.
        most_bytes: of the rows of a request, and of its reply; a larger row travels alone.
    """

    def __init__(self, fixed: int | None = None, most_bytes: int = 1 << 20) -> None:
        self._fixed = fixed
        self.most_bytes = most_bytes
        self._rows = _FIRST_ROWS
        self._reply_bytes = 0.0

    @property
    def rows(self) -> int:
        """The most rows of the next request."""
        if self._fixed is not None:
            return self._fixed
        return max(1, min(self._rows, int(self.most_bytes / max(1.0, self._reply_bytes))))

    def measured(self, rows_per_second: float) -> None:
        """So many rows are done in a second; it follows step by step, up by a factor of four and down by one of two."""
        wanted = round(rows_per_second * _SHARE_SECONDS)
        self._rows = max(1, min(wanted, self._rows * _MOST_GROWTH, _MOST_ROWS), self._rows // 2)

    def answered(self, rows: int, nbytes: int) -> None:
        """A reply to so many rows had so many bytes."""
        each = nbytes / max(1, rows)
        self._reply_bytes = max(each, 0.9 * self._reply_bytes)

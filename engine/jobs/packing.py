"""How many rows travel in one request. Pure."""

from __future__ import annotations

__all__ = ["Packing"]

_SHARE_SECONDS = 0.25
"""A request is worth so much of the whole group's time: little to do again when it is lost, and enough that what a
request costs by itself does not count. It keeps nobody waiting: its rows travel in several steps if need be."""

_MOST_ROWS = 256
_FIRST_ROWS = 16
_MOST_GROWTH = 4
_NEAR = 4
"""As many times the bytes may travel together where they need not go through the broker: so many fewer messages."""

_FAR_TOO_MANY = 4
"""As many times what is wanted: rates are low while a job gets under way, and requests are not to shrink for that."""


class Packing:
    """Adapts the number of rows of a request to how fast rows are done, and how large they and their results are.

    What was packed is on record before it is sent, so a row's request stays the same whatever this says later.

    Args:
        fixed: so many rows, always; None adapts.
        most_bytes: of the rows of a request, and of its reply; a larger row travels alone.
    """

    def __init__(self, fixed: int | None = None, most_bytes: int = 1 << 20) -> None:
        self._fixed = fixed
        self.most_bytes = self._most_bytes = most_bytes
        self._cap = _NEAR * most_bytes
        self._rows = _FIRST_ROWS
        self._reply_bytes = 0.0

    @property
    def rows(self) -> int:
        """The most rows of the next request."""
        if self._fixed is not None:
            return self._fixed
        return max(1, min(self._rows, int(self.most_bytes / max(1.0, self._reply_bytes))))

    def travels(self, *, near: bool, most: int) -> None:
        """How requests will travel.

        Args:
            near: past the broker, as far as is known.
            most: bytes that the broker would take.
        """
        wanted = max(self._most_bytes, min(_NEAR * self._most_bytes, most)) if near else self._most_bytes
        self.most_bytes = max(1, min(wanted, self._cap, most))

    def too_large(self) -> None:
        """A request of several rows was refused for its size: those that come are half as large at most."""
        self._cap = self.most_bytes = max(1, self.most_bytes // 2)

    def measured(self, rows_per_second: float) -> None:
        """So many rows are done in a second; it follows step by step, up by a factor of four and down by one of two."""
        wanted = round(rows_per_second * _SHARE_SECONDS)
        if wanted > self._rows:
            self._rows = min(wanted, self._rows * _MOST_GROWTH, _MOST_ROWS)
        elif wanted * _FAR_TOO_MANY < self._rows:
            self._rows = max(1, self._rows // 2)

    def answered(self, rows: int, nbytes: int) -> None:
        """A reply to so many rows had so many bytes."""
        each = nbytes / max(1, rows)
        self._reply_bytes = max(each, 0.9 * self._reply_bytes)

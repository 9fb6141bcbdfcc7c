"""How many requests of a job are under way at once: as many as help, and no more. Pure."""

from __future__ import annotations

from typing import Literal

__all__ = ["Window"]

_HELPS = 1.1
_AS_FAST = 0.95
_SLOWER = 0.5
_PERIOD_SECONDS = 0.5
_LOOK_AGAIN_SECONDS = 30.0


class Window:
    """Grows while the rate grows with it, then shrinks while the rate does not: what waits before the ranks beyond that
    only keeps others waiting. Half a minute later it tries again.

    A period lasts until as many requests were answered as may be under way, and half a second at least.

    Args:
        now: seconds, monotonic.
        first: where it begins.
        least: it is never smaller.
        most: nor larger.
    """

    def __init__(self, now: float, *, first: int = 4, least: int = 2, most: int = 256) -> None:
        self._least, self._most = min(least, most), most
        self.size = max(self._least, min(first, most))
        self.rate = 0.0
        self._best = 0.0
        self._before = self.size
        self._mode: Literal["up", "down", "steady"] = "up"
        self._steady_until = 0.0
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._since = now
        self._requests = 0
        self._rows = 0

    def answered(self, rows: int, now: float) -> bool:
        """A request of so many rows was answered.

        Returns:
            Whether a period is over, and `rate` is new: rows a second.
        """
        self._requests += 1
        self._rows += rows
        seconds = now - self._since
        if seconds < _PERIOD_SECONDS or self._requests < self.size:
            return False
        self.rate = self._rows / seconds
        self._judge(now)
        self._begin(now)
        return True

    def _judge(self, now: float) -> None:
        match self._mode:
            case "up" if self.rate >= _HELPS * self._best:
                self._best = self.rate
                if self.size < self._most:
                    self._grow()
                else:
                    self._rest(now)
            case "up":
                self._shrink(self._before)
            case "down" if self.rate >= _AS_FAST * self._best:
                if self.size > self._least:
                    self._shrink(self.size)
                else:
                    self._rest(now)
            case "down":
                self._set(self._before)
                self._rest(now)
            case "steady" if now >= self._steady_until or self.rate < _SLOWER * self._best:
                self._best = self.rate
                if self.size < self._most:
                    self._grow()
                else:
                    self._shrink(self.size)

    def _grow(self) -> None:
        self._mode = "up"
        self._before = self.size
        self._set(2 * self.size)

    def _shrink(self, size: int) -> None:
        """Tries half of a size that would do."""
        self._mode = "down"
        self._before = size
        self._set(size // 2)

    def _set(self, size: int) -> None:
        self.size = max(self._least, min(self._most, size))

    def _rest(self, now: float) -> None:
        self._mode = "steady"
        self._steady_until = now + _LOOK_AGAIN_SECONDS

    def pressed(self, now: float) -> None:
        """The broker refused a request, or takes none: half as many, and no growth for a while."""
        self._set(self.size // 2)
        self._rest(now)
        self._begin(now)

    def paused(self, now: float) -> None:
        """The connection was away: the period does not count."""
        self._begin(now)

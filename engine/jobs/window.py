"""How many requests of a job are under way at once: as many as help. Pure."""

from __future__ import annotations

__all__ = ["Window"]

_HELPS = 1.1
_PERIOD_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 30.0
_SLOWER = 0.5


class Window:
    """Grows while the rate grows with it, and shrinks where the broker pushes back.

    A period lasts until as many requests were answered as may be under way, and a second at least. If a larger window
    did not make it a tenth faster it goes back to the smaller one, and tries again half a minute later.

    Args:
        now: seconds, monotonic.
        first: where it begins.
        least: it is never smaller.
        most: nor larger.
    """

    def __init__(self, now: float, *, first: int = 8, least: int = 2, most: int = 256) -> None:
        self.size = max(least, min(first, most))
        self._least, self._most = least, most
        self._best = 0.0
        self._growing = True
        self._steady_until = 0.0
        self.rate = 0.0
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
        if self._growing:
            if self.rate >= _HELPS * self._best and self.size < self._most:
                self._best = self.rate
                self.size = min(self._most, self.size * 2)
                return
            if self.rate < _HELPS * self._best:
                self.size = max(self._least, self.size // 2)
            self._growing = False
            self._steady_until = now + _LOOK_AGAIN_SECONDS
        elif now >= self._steady_until or self.rate < _SLOWER * self._best:
            self._growing = True
            self._best = self.rate
            self.size = min(self._most, self.size * 2)

    def pressed(self, now: float) -> None:
        """The broker refused a request, or takes none: half as many, and no growth for a while."""
        self.size = max(self._least, self.size // 2)
        self._growing = False
        self._steady_until = now + _LOOK_AGAIN_SECONDS
        self._begin(now)

    def paused(self, now: float) -> None:
        """The connection was away: the period does not count."""
        self._begin(now)

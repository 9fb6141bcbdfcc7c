"""How much of a job is under way at once: as much as helps, and no more. Pure."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Window"]

_SECONDS = 4.0
"""So much of the group's time is under way beyond what a request takes by itself: batches find rows enough to be full,
and who comes behind, as another job does, need not wait for long."""

_LATENCIES = 2.0
"""And so many times what a request takes by itself: ranks that could have more at once get more, if each is slow."""

_PERIOD_SECONDS = 0.5
_TAIL = 0.1
"""So much of its length a period goes on past its end: answers that end together, after a silence, belong to it."""

_PERIODS = 8  # whose best rate counts
_RECENT = 4  # whose mean is the rate that is told
_PRESSED_SECONDS = 30.0


class Window:
    """Follows the best rate of the last periods, so that one in which little was done, or batches that end together,
    do not shake it. It counts rows, since requests may have few of them now and many later.

    Args:
        least: so many requests may be under way in any case, unless the broker takes no more.
        most: and so many at most.

    Attributes:
        rate: how many rows were done in a second, of late.
    """

    def __init__(self, *, least: int = 16, most: int = 256) -> None:
        self._least, self._most = min(least, most), most
        self.rate = 0.0
        self._rows_wanted = 0.0
        self._quickest = math.inf
        self._periods: deque[tuple[float, int]] = deque(maxlen=_PERIODS)  # seconds, rows
        self._ceiling = most
        self._pressed_until = -math.inf
        self.paused()

    def room(self, requests: int, rows: int, each: int) -> int:
        """How many requests may be sent.

        Args:
            requests: so many are under way.
            rows: which have so many rows.
            each: how many rows the next ones will have.
        """
        wanted = max(math.ceil((self._rows_wanted - rows) / each), self._least - requests)
        return max(0, min(wanted, self._ceiling - requests))

    def _begin(self, now: float | None) -> None:
        self._since = now
        self._rows = 0
        if now is None:
            self._open_until = -math.inf

    def sent(self, now: float) -> None:
        """A request was sent: the first period begins with it, so that the wait for the first answers counts.

        Args:
            now: seconds, monotonic.
        """
        if self._since is None:
            self._begin(now)

    def answered(self, rows: int, took: float, now: float) -> bool:
        """A request of so many rows was answered.

        Args:
            rows: of them, those that are done.
            took: seconds since it was sent.
            now: seconds, monotonic.

        Returns:
            Whether a period is over, and `rate` is new.
        """
        if rows:
            self._quickest = min(self._quickest, took)
        if self._since is None:  # sent on an earlier connection
            self._begin(now)
            return False
        self._rows += rows
        seconds = now - self._since
        if now <= self._open_until:
            before, others = self._periods.pop()
            self._periods.append((before + seconds, others + self._rows))
        elif seconds < _PERIOD_SECONDS or not self._rows:
            return False
        else:
            self._periods.append((seconds, self._rows))
            self._open_until = now + _TAIL * seconds
        recent = list(self._periods)[-_RECENT:]
        self.rate = sum(rows for _, rows in recent) / sum(seconds for seconds, _ in recent)
        best = max(rows / seconds for seconds, rows in self._periods)
        self._rows_wanted = best * (_SECONDS + _LATENCIES * self._quickest)
        if now >= self._pressed_until:
            self._ceiling = self._most
        self._begin(now)
        return True

    def pressed(self, requests: int, now: float) -> None:
        """The broker refused a request, or takes none: half as many, and no more than that for a while.

        Args:
            requests: so many are under way.
            now: seconds, monotonic.
        """
        self._ceiling = max(1, min(self._ceiling, requests) // 2)
        self._pressed_until = now + _PRESSED_SECONDS
        self.paused()

    def paused(self) -> None:
        """The connection was away: the period does not count."""
        self._begin(None)

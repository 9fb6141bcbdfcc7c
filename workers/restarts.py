"""How long to wait before something that ended is started again, and when no more."""

from __future__ import annotations

import time
from collections import deque

from ..schemas.errors import GroupError

__all__ = ["Restarts"]

_WINDOW_SECONDS = 600.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0


class Restarts:
    """The ends of one thing within the last ten minutes.

    Args:
        what: for the error.
        most: how many ends are put up with.
    """

    def __init__(self, what: str, most: int) -> None:
        self._what = what
        self._most = most
        self._ends: deque[float] = deque()

    def pause(self, reason: str, now: float | None = None) -> float:
        """It ended once more; gives the seconds to wait, which double each time.

        Args:
            reason: why it ended.
            now: seconds on a monotonic clock; that clock's own time if None.

        Raises:
            GroupError: once too often.
        """
        now = time.monotonic() if now is None else now
        self._ends.append(now)
        while now - self._ends[0] > _WINDOW_SECONDS:
            self._ends.popleft()
        if len(self._ends) > self._most:
            raise GroupError(
                f"{self._what} ended {len(self._ends)} times within ten minutes (last: {reason}); see the log"
            )
        return float(min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (len(self._ends) - 1)))

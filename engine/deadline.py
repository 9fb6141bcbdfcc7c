"""Until when a request is worth serving, as its AMQP properties say it; and which of several is over first. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from ..schemas.errors import InvalidInput

__all__ = ["DEADLINE_HEADER", "RUN_HEADER", "Deadlines", "run_seconds", "seconds_left"]

T = TypeVar("T", bound=Hashable)

_SLACK = 64

DEADLINE_HEADER = "rankmq-deadline"
"""Milliseconds since 1970, by the sender's clock."""

RUN_HEADER = "rankmq-run-ms"
"""Milliseconds that a request may take once it has begun."""


def seconds_left(properties: Any, headers: dict[str, Any], now: float) -> float | None:
    """How long a request is still worth serving; None for any time.

    The header counts where there is one. Without it `expiration`, from `timestamp` on, which counts whole seconds; and
    without that from now on.

    Args:
        properties: of the message.
        headers: of the message.
        now: seconds since 1970.

    Raises:
        InvalidInput: the header is not a number.
    """
    deadline = headers.get(DEADLINE_HEADER)
    if deadline is not None:
        if isinstance(deadline, bool) or not isinstance(deadline, int):
            raise InvalidInput(
                f"the header {DEADLINE_HEADER} is milliseconds since 1970 as an integer: {deadline!r:.40}"
            )
        return deadline / 1000 - now
    expiration = properties.expiration
    if not isinstance(expiration, str) or not expiration.isdecimal():
        return None
    since = properties.timestamp
    began = min(now, since + 1) if isinstance(since, int) and since > 0 else now
    return began + int(expiration) / 1000 - now


def run_seconds(headers: dict[str, Any]) -> float | None:
    """How long a request may take once it has begun; None for any time.

    Args:
        headers: of the message.

    Raises:
        InvalidInput: the header is not a number of milliseconds.
    """
    allowed = headers.get(RUN_HEADER)
    if allowed is None:
        return None
    if isinstance(allowed, bool) or not isinstance(allowed, int) or allowed <= 0:
        raise InvalidInput(f"the header {RUN_HEADER} is milliseconds as an integer, 1 at least: {allowed!r:.40}")
    return allowed / 1000


class Deadlines(Generic[T]):
    """What is over when; holds nothing of what was taken out again."""

    def __init__(self) -> None:
        self._when: dict[T, float] = {}
        self._heap: list[tuple[float, int, T]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._when)

    def add(self, item: T, when: float) -> None:
        """An item is over at a time, whatever was said of it before."""
        self._when[item] = when
        self._count += 1  # breaks ties: items have no order
        heapq.heappush(self._heap, (when, self._count, item))

    def discard(self, item: T) -> None:
        """An item is done, and nobody asks for its deadline any more."""
        if self._when.pop(item, None) is not None and len(self._heap) > 2 * len(self._when) + _SLACK:
            self._heap = [it for it in self._heap if self._when.get(it[2]) == it[0]]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """When the next one is over; None where there is none."""
        while self._heap and self._when.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[T]:
        """Takes out what is over, the first first."""
        found: list[T] = []
        while (when := self.next()) is not None and when <= now:
            item = heapq.heappop(self._heap)[2]
            del self._when[item]
            found.append(item)
        return found

"""Which of the requests that wait runs next: lanes with weights: the urgent go first, and none is starved. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Generic, TypeVar

from .topology import DEFAULT_LANE, LANES

__all__ = ["WEIGHTS", "Admission"]

T = TypeVar("T")

WEIGHTS: Mapping[str, int] = {"high": 16, "normal": 4, "low": 1}
"""How many requests of a lane are started for one of the lowest, where all of them wait."""

_SHARE = 8
"""The lowest lane leaves one place in so many to those above, and the highest has as many beyond what runs at once:
what is urgent does not wait for the end of long work that is not."""


class Admission(Generic[T]):
    """Starts requests: at most so many at once, from the lanes by their weights, from one lane in their order.

    Args:
        most: how many run at once; of the highest lane some more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._spare = max(1, most // _SHARE)
        self._waiting: dict[str, dict[T, None]] = {lane: {} for lane in LANES}
        self._running: dict[T, str] = {}
        self._count: Counter[str] = Counter()
        self._credit = dict.fromkeys(LANES, 0)

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    def put(self, lane: str, item: T) -> None:
        """Has a request wait at the end of its lane; of a lane that does not exist, in the normal one."""
        self._waiting.get(lane, self._waiting[DEFAULT_LANE])[item] = None

    def take(self) -> T | None:
        """The request that runs next, which counts as running from now on; None where none may or none waits."""
        open_lanes = [lane for lane in LANES if self._waiting[lane] and self._has_room(lane)]
        if not open_lanes:
            return None
        for lane in open_lanes:
            self._credit[lane] += WEIGHTS[lane]
        chosen = max(open_lanes, key=self._credit.__getitem__)
        self._credit[chosen] -= sum(WEIGHTS[lane] for lane in open_lanes)
        item = next(iter(self._waiting[chosen]))
        del self._waiting[chosen][item]
        self._running[item] = chosen
        self._count[chosen] += 1
        return item

    def _has_room(self, lane: str) -> bool:
        highest, lowest = LANES[0], LANES[-1]
        beyond = min(self._count[highest], self._spare)  # these take no place from the others
        if len(self._running) - beyond >= self._most:
            return lane == highest and beyond < self._spare
        return lane != lowest or self._count[lowest] < max(1, self._most - self._spare)

    def ended(self, item: T) -> None:
        """A request has ended, or is given up, wherever it was."""
        lane = self._running.pop(item, None)
        if lane is not None:
            self._count[lane] -= 1
            return
        for waiting in self._waiting.values():
            waiting.pop(item, None)

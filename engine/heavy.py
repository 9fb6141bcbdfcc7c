"""Work that holds the loop for long, as to read a large request in JSON: piece by piece, with time for others between.

A thread would not help: the interpreter is held as well. 17 MB of JSON are read in 0.2 s, made arrays in as long again,
and written in 0.4 s: thirty such requests in one go would have everybody wait for half a minute.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from ..schemas import codec
from .admission import Admission
from .open_request import OpenRequest
from .routes import likely_lane
from .ticket import RowResult
from .topology import DEFAULT_LANE

__all__ = ["HEAVY_BYTES", "HEAVY_ELEMENTS", "Heavy", "HeavyLine", "Stage"]

HEAVY_BYTES = 1_000_000
"""Of a request in JSON: what is larger is read in its turn, and made arrays; some 20 ms."""

HEAVY_ELEMENTS = 250_000
"""Of an answer in JSON, the same."""

T = TypeVar("T", bound=Hashable)


class Stage(enum.IntEnum):
    """What is to be done for a request."""

    ANSWER, START, READ = range(3)


class HeavyLine(Generic[T]):
    """Who waits for the next piece of work, and when that may be done. Pure.

    After each piece the loop is left to others for as long as it took. What was begun is finished first, so that few
    are in memory as they were read; from what was not begun the lanes take turns by their weights, each in its order.
    """

    def __init__(self) -> None:
        self._lanes: dict[Stage, Admission[T]] = {stage: Admission(1) for stage in Stage}
        self._work: dict[T, Callable[[], None]] = {}
        self._free = -math.inf

    def __len__(self) -> int:
        return len(self._work)

    def add(self, stage: Stage, lane: str, item: T, work: Callable[[], None]) -> None:
        """Has an item wait for its turn; it waits for one piece at a time."""
        self._lanes[stage].put(lane, item)
        self._work[item] = work

    def discard(self, item: T) -> None:
        """An item is done, or given up: it waits for nothing any more."""
        if self._work.pop(item, None) is not None:
            for lanes in self._lanes.values():
                lanes.ended(item)

    def take(self, now: float, *, others: bool) -> Callable[[], None] | None:
        """The piece that is to be done now; None where none waits, or it is the turn of others.

        Args:
            now: seconds, on a clock that does not jump.
            others: whether anybody is served who is not in the line; if not, the loop is left to nobody.
        """
        if others and now < self._free:
            return None
        for lanes in self._lanes.values():
            item = lanes.take()
            if item is not None:
                lanes.ended(item)
                return self._work.pop(item)
        return None

    def took(self, began: float, ended: float) -> None:
        """A piece was done."""
        self._free = ended + (ended - began)

    def next_at(self, now: float, *, others: bool) -> float | None:
        """When the next piece may be done, as it looks now; None where none waits."""
        if not self._work:
            return None
        return max(now, self._free) if others else now


class Heavy:
    """Has such work done for requests; what is light is done at once.

    Args:
        clock: seconds, monotonic.
        later: runs something on the loop, so many seconds from now.
        served: how many requests are served, those in the line among them.
    """

    def __init__(
        self, clock: Callable[[], float], later: Callable[[float, Callable[[], None]], None], served: Callable[[], int]
    ) -> None:
        self._clock = clock
        self._later = later
        self._served = served
        self._line: HeavyLine[OpenRequest] = HeavyLine()
        self._at_work = self._called = False

    def read(self, open_: OpenRequest, work: Callable[[], None]) -> None:
        """Has a request read; until its turn comes it has not begun."""
        if _is_heavy(open_):
            open_.start = work
            self._add(Stage.READ, likely_lane(open_.delivery), open_, work)
        else:
            work()

    def start(self, open_: OpenRequest, lane: str, work: Callable[[], None]) -> None:
        """Has a request started, which makes arrays of what was read; until its turn comes it has not begun."""
        if _is_heavy(open_):
            open_.start = work
            self._add(Stage.START, lane, open_, work)
        else:
            work()

    def answer(self, open_: OpenRequest, work: Callable[[], None]) -> None:
        """Has the answer written."""
        if open_.content_type == codec.JSON and _elements_of(open_.results) > HEAVY_ELEMENTS:
            lane = open_.context.lane if open_.context is not None else DEFAULT_LANE
            self._add(Stage.ANSWER, lane, open_, work)
        else:
            work()

    def discard(self, open_: OpenRequest) -> None:
        """What waits to be done for a request is not done any more."""
        self._line.discard(open_)

    def _add(self, stage: Stage, lane: str, open_: OpenRequest, work: Callable[[], None]) -> None:
        self._line.add(stage, lane, open_, work)
        if not self._called:
            self._next(others=True)  # as far as is known: the loop may not have looked since the last piece

    def _others(self) -> bool:
        return self._served() > len(self._line)

    def _next(self, *, others: bool) -> None:
        if self._at_work:  # it goes on from there
            return
        now = self._clock()
        work = self._line.take(now, others=others)
        if work is not None:
            self._at_work = True
            try:
                work()
            finally:
                self._at_work = False
            began, now = now, self._clock()
            self._line.took(began, now)
        when = self._line.next_at(now, others=self._others())
        if when is not None:  # not before the loop has seen what came meanwhile
            self._called = True
            self._later(when - now, self._due)

    def _due(self) -> None:
        self._called = False
        self._next(others=self._others())


def _is_heavy(open_: OpenRequest) -> bool:
    return open_.content_type == codec.JSON and len(open_.delivery.body) > HEAVY_BYTES


def _elements_of(results: Iterable[RowResult | None]) -> int:
    return sum(array.size for row in results if isinstance(row, tuple) for array in row)

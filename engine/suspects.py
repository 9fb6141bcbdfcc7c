"""Rows that failed together, as they wait to be tried again in parts. Pure.

Each batch that failed is searched by itself: its parts hold none of the others' rows. Those that are searched take
turns, so that a batch with one bad row does not wait until all of another, where every row is bad, have been found.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable

from .batch import Age, Apart, Batch, Owner, PendingCall, age

__all__ = ["Suspects"]


class Suspects:
    """The parts of batches that failed.

    A row costs O(1) in and out, a part O(log n) of the parts of its batch.
    """

    def __init__(self) -> None:
        self._turns: deque[Apart] = deque()
        self._parts: dict[Apart, list[tuple[Age, deque[Owner]]]] = {}  # heaps by the age of the oldest row

    def add(self, apart: Apart, owners: Iterable[Owner]) -> None:
        """A part waits: in front of those with younger rows of its batch.

        Args:
            apart: what its rows belong to.
            owners: the rows, oldest first; those of cancelled calls are left out.
        """
        part = deque(owner for owner in owners if not owner[0].cancelled)
        if not part:
            return
        parts = self._parts.get(apart)
        if parts is None:
            parts = self._parts[apart] = []
            self._turns.append(apart)
        heapq.heappush(parts, (age(part[0]), part))

    @property
    def age(self) -> Age | None:
        """The place in line of the batch whose turn it is; None where nothing waits."""
        return self._turns[0].age if self._part() is not None else None

    def first(self) -> tuple[PendingCall, int] | None:
        """The call of the row that comes out next, and how many rows may at most come with it, itself among them."""
        part = self._part()
        return (part[0][0], min(len(part), self._turns[0].most)) if part is not None else None

    def take(self, most: Callable[[int], int]) -> Batch | None:
        """The oldest part of the batch whose turn it is, or as much of its front as may be tried at once.

        Args:
            most: by subgraph, how many rows a step may have.
        """
        part = self._part()
        if part is None:
            return None
        apart = self._turns.popleft()
        parts = self._parts[apart]
        heapq.heappop(parts)
        subgraph, found = part[0][0].subgraph, list[Owner]()
        at_most = max(1, min(apart.most, most(subgraph)))
        while part and len(found) < at_most:
            owner = part.popleft()
            if not owner[0].cancelled:
                found.append(owner)
        if part:
            heapq.heappush(parts, (age(part[0]), part))
        if parts:
            self._turns.append(apart)
        else:
            del self._parts[apart]
        return Batch(subgraph, tuple(found), apart)

    def _part(self) -> deque[Owner] | None:
        """The next part; what nobody wants any more at the front of it is dropped."""
        while self._turns:
            parts = self._parts[self._turns[0]]
            while parts:
                part = parts[0][1]
                while part and part[0][0].cancelled:
                    part.popleft()
                if part:
                    return part
                heapq.heappop(parts)
            del self._parts[self._turns.popleft()]
        return None

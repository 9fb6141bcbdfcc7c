"""Acknowledgements of one channel, several in one where none before them is missing: the broker logs each. Pure."""

from __future__ import annotations

from collections import deque

__all__ = ["Acks"]


class Acks:
    """What was delivered on a channel, and which of it is to be acknowledged.

    A delivery that the broker has back must have been handed back, in the same channel, before the next `take`.
    """

    def __init__(self) -> None:
        self._open: deque[int] = deque()  # in their order, with some that are settled
        self._settled: set[int] = set()  # of those
        self._fresh: set[int] = set()

    def delivered(self, tag: int) -> None:
        """A delivery came that is to be acknowledged. Tags grow."""
        self._open.append(tag)

    def add(self, tag: int) -> bool:
        """A delivery is done with.

        Returns:
            Whether it is the first since the last `take`.
        """
        self._fresh.add(tag)
        return len(self._fresh) == 1

    def handed_back(self, tag: int) -> None:
        """The broker has a delivery back."""
        self._settled.add(tag)
        self._pop()

    def take(self) -> list[tuple[int, bool]]:
        """What is to be said: tags, and whether all before each are meant too."""
        fresh, self._fresh = self._fresh, set()
        together: list[int] = []
        while self._open and (self._open[0] in fresh or self._open[0] in self._settled):
            tag = self._open.popleft()
            if tag in fresh:
                together.append(tag)
                fresh.discard(tag)
            else:
                self._settled.discard(tag)
        said = [(together[-1], len(together) > 1)] if together else []
        alone = sorted(fresh)
        self._settled.update(alone)
        self._pop()
        return said + [(tag, False) for tag in alone]

    def all_to(self, tag: int) -> None:
        """All up to this tag were acknowledged in one."""
        while self._open and self._open[0] <= tag:
            self._settled.discard(self._open.popleft())
        self._fresh = {it for it in self._fresh if it > tag}
        self._pop()

    def _pop(self) -> None:
        while self._open and self._open[0] in self._settled:
            self._settled.discard(self._open.popleft())

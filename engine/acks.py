"""Acknowledgements of one channel, several in one where none before them is missing: the broker logs each. Pure."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Acks"]


class Acks:
    """What was delivered on a channel, and which of it is to be acknowledged.

    A delivery that the broker has back must have been handed back, in the same channel, before the next `take`.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[int, None] = OrderedDict()  # what is not settled, in its order
        self._fresh: set[int] = set()

    def delivered(self, tag: int) -> None:
        """A delivery came that is to be acknowledged. Tags grow."""
        self._open[tag] = None

    def add(self, tag: int) -> bool:
        """A delivery is done with.

        Returns:
            Whether it is the first since the last `take`.
        """
        self._fresh.add(tag)
        return len(self._fresh) == 1

    def handed_back(self, tag: int) -> None:
        """The broker has a delivery back."""
        self._open.pop(tag, None)

    def take(self) -> list[tuple[int, bool]]:
        """What is to be said: tags, and whether all before each are meant too."""
        fresh, self._fresh = self._fresh, set()
        together: list[int] = []
        for tag in self._open:
            if tag not in fresh:
                break
            together.append(tag)
        said = [(together[-1], len(together) > 1)] if together else []
        alone = sorted(fresh.difference(together))
        for tag in fresh:
            self._open.pop(tag, None)
        return said + [(tag, False) for tag in alone]

    def all_to(self, tag: int) -> None:
        """All up to this tag were acknowledged in one."""
        while self._open and next(iter(self._open)) <= tag:
            self._open.popitem(last=False)
        self._fresh = {it for it in self._fresh if it > tag}

"""A bound on how much is held at once, and the line of those who wait for a part of it. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Room"]

_K = TypeVar("_K", bound=Hashable)


class Room(Generic[_K]):
    """Holds as much as there is room for; who comes when there is none waits, in order.

    Args:
        most: how much there is.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: dict[_K, int] = {}
        self._waiting: OrderedDict[_K, tuple[int, Callable[[], None]]] = OrderedDict()
        self._used = 0

    @property
    def used(self) -> int:
        """How much is held."""
        return self._used

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def enter(self, key: _K, amount: int, start: Callable[[], None]) -> None:
        """Asks for a part, once for each key; `start` is called when it is there, which may be at once.

        Args:
            key: who asks.
            amount: how much, at most all there is.
            start: called once, unless `leave` is called before.
        """
        self._waiting[key] = amount, start
        self._let_in()

    def leave(self, key: _K) -> None:
        """Gives the part back, or leaves the line."""
        self._waiting.pop(key, None)
        self._used -= self._held.pop(key, 0)
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            key, (amount, start) = next(iter(self._waiting.items()))
            if self._held and self._used + amount > self.most:
                return
            del self._waiting[key]
            self._held[key] = amount
            self._used += amount
            start()

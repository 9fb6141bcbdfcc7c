"""A line in which work stands until its turn comes; what nobody wants any more leaves it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..schemas.errors import RankmqError
from .life import Life

__all__ = ["WaitingLine"]

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Waiter(Generic[T]):
    """One place in a line."""

    item: T
    life: Life
    line: dict[_Waiter[T], None]
    gone: Callable[[], None]

    def leave(self, _reason: RankmqError) -> None:
        """Its life has ended before its turn came."""
        del self.line[self]
        self.gone()


class WaitingLine(Generic[T]):
    """What waits, in order."""

    def __init__(self) -> None:
        self._line: dict[_Waiter[T], None] = {}

    def __len__(self) -> int:
        return len(self._line)

    def add(self, item: T, life: Life, gone: Callable[[], None]) -> None:
        """Puts something at the end of the line.

        Args:
            item: what waits.
            life: of the request that it is for; when it ends, the item leaves the line.
            gone: called then, in place of the item's turn.
        """
        waiter = _Waiter(item, life, self._line, gone)
        self._line[waiter] = None
        life.watch(waiter.leave)

    def take(self) -> T:
        """Takes out the first.

        Raises:
            IndexError: nothing waits.
        """
        if not self._line:
            raise IndexError("nothing waits")
        waiter = next(iter(self._line))
        del self._line[waiter]
        waiter.life.forget(waiter.leave)
        return waiter.item

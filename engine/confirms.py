"""The book of what was published on a channel and not yet answered by the broker. Pure."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass

__all__ = ["Confirms", "Outcome"]


class Outcome(enum.Enum):
    """What became of a publish."""

    CONFIRMED = "confirmed"
    RETURNED = "returned"
    """No queue is bound for it."""
    REJECTED = "rejected"
    """The broker refused it, as a full queue with reject-publish does."""
    LOST = "lost"
    """The channel closed before the broker said anything: it may or may not have arrived."""


@dataclass(slots=True)
class _Pending:
    route: Hashable
    then: Callable[[Outcome], None] | None
    returned: bool = False


class Confirms:
    """Delivery tags count the publishes of a channel from 1; the broker answers them singly or all up to one."""

    def __init__(self) -> None:
        self._pending: dict[int, _Pending] = {}
        self._published = 0

    def __len__(self) -> int:
        return len(self._pending)

    def next_tag(self) -> int:
        """The tag that the next publish will have."""
        return self._published + 1

    def published(self, route: Hashable, then: Callable[[Outcome], None] | None) -> None:
        """Takes down a publish.

        Args:
            route: what a message that is sent back can be told by: exchange, routing key and message id. Two publishes
                that have all of these in common share their fate anyway.
            then: called once with what became of it.
        """
        self._published += 1
        self._pending[self._published] = _Pending(route, then)

    def returned(self, route: Hashable) -> bool:
        """The broker sent a message back; its confirm is still to come, after this.

        Returns:
            Whether it is on record.
        """
        for pending in self._pending.values():
            if pending.route == route and not pending.returned:
                pending.returned = True
                return True
        return False

    def answered(self, tag: int, *, multiple: bool, positive: bool) -> None:
        """The broker confirmed or refused `tag`, or everything up to it."""
        tags = list(itertools.takewhile(lambda it: it <= tag, self._pending)) if multiple else [tag]
        for it in tags:
            pending = self._pending.pop(it, None)
            if pending is None or pending.then is None:
                continue
            if positive:
                pending.then(Outcome.RETURNED if pending.returned else Outcome.CONFIRMED)
            else:
                pending.then(Outcome.REJECTED)

    def lost(self) -> None:
        """The channel is gone: nobody will answer what is pending."""
        pending, self._pending = self._pending, {}
        for entry in pending.values():
            if entry.then is not None:
                entry.then(Outcome.LOST)

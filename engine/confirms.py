"""The book of what was published on a channel and not yet answered by the broker. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable
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
    message_id: str | None
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

    def published(self, message_id: str | None, then: Callable[[Outcome], None] | None) -> None:
        """Takes down a publish."""
        self._published += 1
        self._pending[self._published] = _Pending(message_id, then)

    def returned(self, message_id: str | None) -> bool:
        """The broker sent a message back; its confirm is still to come, after this.

        Returns:
            Whether it is on record.
        """
        for pending in self._pending.values():
            if pending.message_id == message_id and not pending.returned:
                pending.returned = True
                return True
        return False

    def answered(self, tag: int, *, multiple: bool, positive: bool) -> None:
        """The broker confirmed or refused `tag`, or everything up to it."""
        tags = [it for it in self._pending if it <= tag] if multiple else [tag]
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

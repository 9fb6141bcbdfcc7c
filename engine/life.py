"""Whether anybody still wants what a request asks for. Pure."""

from __future__ import annotations

from collections.abc import Callable

from ..schemas.errors import RankmqError

__all__ = ["Life"]

Stop = Callable[[RankmqError], None]


class Life:
    """The life of one request: it ends once, for a reason, and stops what was begun for it.

    Attributes:
        over: why it ended; None while it goes on.
        deadline: until when it is worth serving, in seconds of a clock that does not jump; None: for any time.
    """

    __slots__ = ("_stops", "deadline", "over")

    def __init__(self) -> None:
        self.over: RankmqError | None = None
        self.deadline: float | None = None
        self._stops: dict[Stop, None] = {}

    def watch(self, stop: Stop) -> None:
        """Has `stop` called with the reason when the life ends; at once if it has."""
        if self.over is not None:
            stop(self.over)
        else:
            self._stops[stop] = None

    def forget(self, stop: Stop) -> None:
        """What `stop` would have stopped has ended by itself, or with something that was stopped before it."""
        self._stops.pop(stop, None)

    def end(self, reason: RankmqError) -> None:
        """Ends it; nothing if it has ended."""
        if self.over is not None:
            return
        self.over = reason
        while self._stops:
            stop = next(iter(self._stops))
            del self._stops[stop]
            stop(reason)

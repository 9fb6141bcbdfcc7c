"""One call of a subgraph, from the moment it is made to the moment all its rows have their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..schemas.errors import RankmqError
from .batch import PendingCall
from .loop import Loop
from .slots import Session
from .topology import DEFAULT_LANE

__all__ = ["Came", "Done", "RowResult", "Ticket"]

RowResult = tuple[np.ndarray[Any, Any], ...] | RankmqError
Done = Callable[[list[RowResult]], None]
Came = Callable[[int, tuple[np.ndarray[Any, Any], ...]], None]


class Ticket:
    """Gathers the results of a call's rows as they come, and tells once when all are there.

    Args:
        subgraph: the servable-wide number.
        rows: per row the graph's inputs, as they were given.
        lenient: whether values may be converted to the graph's dtypes.
        requests: ids of the requests that it is part of.
        done: called with one result or error per row, in order.
        session: the state on the ranks that the rows belong to, if to any.
        alone: its rows share no step with others.
        lane: by which its request came.
        loop: the subgraph is run again and again; then what a row gives is packed (see `loop_plan.Turned`).
        turns: per row, how many turns of the loop it runs at most.
        deadline: until when its rows are wanted, in seconds of a clock that does not jump; None: for any time.
        came: called with each row's place and what it gave, as it comes; None where nobody asks.
    """

    __slots__ = (
        "_came",
        "_done",
        "_left",
        "_results",
        "alone",
        "deadline",
        "lane",
        "lenient",
        "loop",
        "pending",
        "places",
        "requests",
        "rows",
        "session",
        "subgraph",
        "turns",
        "voids",
    )

    def __init__(
        self,
        subgraph: int,
        rows: Sequence[tuple[Any, ...]],
        *,
        lenient: bool,
        requests: tuple[str, ...],
        done: Done,
        session: Session | None = None,
        alone: bool = False,
        lane: str = DEFAULT_LANE,
        loop: Loop | None = None,
        turns: Sequence[int] = (),
        deadline: float | None = None,
        came: Came | None = None,
    ) -> None:
        self.subgraph = subgraph
        self.rows = rows
        self.lenient = lenient
        self.requests = requests
        self.session = session
        self.alone = alone
        self.lane = lane
        self.loop = loop
        self.turns = turns
        self.deadline = deadline
        self.pending: PendingCall | None = None  # the rows that could be run, as they wait for their steps
        self.places: list[int] = []  # per row that could be run, where it stands among the rows
        self.voids: dict[int, int] = {}  # by place, how many epochs were lost under it
        self._results: list[RowResult | None] = [None] * len(rows)
        self._left = len(rows)
        self._done = done
        self._came = came

    def settle(self, place: int, result: RowResult) -> None:
        """Gives a row its result; a row that has one keeps it."""
        if self._results[place] is None:
            self._results[place] = result.kept() if isinstance(result, RankmqError) else result
            self._left -= 1
            if self._came is not None and not isinstance(result, RankmqError):
                self._came(place, result)
            if self._left == 0:
                # Both know this ticket: let go of here, all of it goes at once, and not when the collector comes by.
                done, self._done, self._came, self.pending = self._done, _told, None, None
                done([it for it in self._results if it is not None])

    def settle_all(self, error: RankmqError) -> None:
        """Gives every row that has no result this error."""
        for place in range(len(self._results)):
            self.settle(place, error)

    @property
    def is_over(self) -> bool:
        """Whether all its rows have their results."""
        return self._left == 0

    def is_settled(self, place: int) -> bool:
        """Whether a row has its result."""
        return self._results[place] is not None


def _told(results: list[RowResult]) -> None:
    """Nobody is told twice."""

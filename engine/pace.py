"""How long the ranks take for a row, and so how many rows may make a step."""

from __future__ import annotations

__all__ = ["Pace"]

_SHARE = 0.2
"""The part of the time allowed for a step that a step is planned to take."""

_WEIGHT = 0.3
"""Of the newest measurement in the mean."""


class Pace:
    """Learned from the steps that were run, by subgraph.

    Args:
        step_timeout: seconds after which an unanswered step is overdue.
    """

    def __init__(self, step_timeout: float) -> None:
        self._allowed = step_timeout * _SHARE
        self._timeout = step_timeout
        self._seconds: dict[int, float] = {}
        self._turns: dict[int, tuple[float, int]] = {}

    def ran(self, subgraph: int, rows: int, seconds: float, turns: int = 0) -> None:
        """A step of so many rows took so long on its slowest rank.

        Args:
            subgraph: its number.
            rows: how many rows.
            seconds: how long.
            turns: how many turns of a loop; 0: it was none.
        """
        if turns:
            seconds /= turns
            self._turns[subgraph] = (seconds, rows)
        new = seconds / rows
        old = self._seconds.get(subgraph, new)
        self._seconds[subgraph] = old + _WEIGHT * (new - old)

    def overdue(self, subgraph: int, rows: int) -> None:
        """A step of so many rows was not done in the time allowed."""
        self._seconds[subgraph] = max(self._seconds.get(subgraph, 0.0), self._timeout / rows)
        self._turns.pop(subgraph, None)

    def turns(self, subgraph: int, rows: int, most: int, seconds: float | None = None) -> int:
        """How many turns of a loop a step of so many rows may have; at least 1, and 1 where nothing is known.

        Args:
            subgraph: its number.
            rows: how many rows run together.
            most: as many as it may have where they are quick.
            seconds: how long they may take, where that is said.
        """
        allowed = self._allowed if seconds is None else min(self._allowed, seconds)
        known = self._turns.get(subgraph)
        if known is None:
            return 1
        turn = known[0] * max(1.0, rows / known[1])  # fewer rows may take as long
        return most if turn * most <= allowed else max(1, int(allowed / turn))

    def expected(self, subgraph: int, rows: int, turns: int = 0) -> float:
        """How many seconds a step of so many rows and turns is expected to take; 0 where nothing is known."""
        known = self._turns.get(subgraph) if turns else None
        if known is not None:
            return known[0] * turns * max(1.0, rows / known[1])
        return self._seconds.get(subgraph, 0.0) * rows

    def rows(self, subgraph: int, most: int, seconds: float | None = None) -> int:
        """How many rows a step may have; at least 1.

        Args:
            subgraph: its number.
            most: as many as it may have where nothing is known, or they are quick.
            seconds: how long they may take, where that is said.
        """
        row, allowed = self._seconds.get(subgraph, 0.0), self._allowed if seconds is None else seconds
        return most if row * most <= allowed else max(1, int(allowed / row))

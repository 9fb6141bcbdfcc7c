"""How long the ranks take for a step of so many rows, and so how many rows, or turns of a loop, may make one. Pure.

Steps of one subgraph may take very different times: rows of 16 tokens and rows of 128 share it, and not a step. So what
is learned is learned by subgraph and batch key, for as many keys as were seen of late.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Any

__all__ = ["Pace"]

_SHARE = 0.2
"""The part of the time allowed for a step that a step is planned to take."""

_WEIGHT = 0.3
"""Of the newest measurement in the mean."""

_MOST_KEYS = 256
_MOST_GROWTH = 8
_RECENT = 16
_SPREAD = 0.1
"""How far numbers of rows must differ, as a part of their mean, to tell what a step takes from what a row does."""

_ROUNDING = 1e-6

_Key = tuple[int, Hashable]


class _Line:
    """Seconds over rows: the straight line through what was measured of late, neither end of which is below zero."""

    __slots__ = ("_rows", "_rows_rows", "_rows_seconds", "_seconds", "largest")

    def __init__(self) -> None:
        self._rows = self._seconds = self._rows_rows = self._rows_seconds = 0.0
        self.largest = 0

    def add(self, rows: int, seconds: float) -> None:
        weight = _WEIGHT if self.largest else 1.0
        self._rows += weight * (rows - self._rows)
        self._seconds += weight * (seconds - self._seconds)
        self._rows_rows += weight * (rows * rows - self._rows_rows)
        self._rows_seconds += weight * (rows * seconds - self._rows_seconds)
        self.largest = max(rows, self.largest)

    def _slope(self) -> float:
        steepest = self._seconds / self._rows
        variance = self._rows_rows - self._rows**2
        if variance <= (_SPREAD * self._rows) ** 2:
            return steepest
        return min(steepest, max(0.0, (self._rows_seconds - self._rows * self._seconds) / variance))

    def seconds(self, rows: int) -> float:
        """What a step of so many rows is expected to take."""
        return max(0.0, self._seconds + self._slope() * (rows - self._rows))

    def rows(self, seconds: float, most: int) -> int:
        """How many rows fit into a time.

        What the line says of more rows than some times what was seen is believed only if they would fit as well if a
        step took nothing by itself.
        """
        slope = self._slope()
        if self.seconds(most) <= seconds:
            fit = most
        else:
            fit = int(self._rows + (seconds - self._seconds) / slope + _ROUNDING) if slope else 1
        sure = int(seconds * self._rows / self._seconds + _ROUNDING) if self._seconds else most
        return max(1, min(fit, max(sure, _MOST_GROWTH * self.largest)))


class Pace:
    """Learned from the steps that were run, by subgraph and batch key.

    Args:
        step_timeout: seconds after which an unanswered step is overdue.
    """

    def __init__(self, step_timeout: float) -> None:
        self._allowed = step_timeout * _SHARE
        self._timeout = step_timeout
        self._lines: OrderedDict[_Key, _Line] = OrderedDict()
        self._turns: OrderedDict[_Key, tuple[float, int]] = OrderedDict()
        self._fits: OrderedDict[_Key, int] = OrderedDict()  # turns of one row whose outputs are not too large
        self._recent: dict[int, deque[float]] = {}  # by subgraph, seconds a row, whatever the key

    def ran(self, subgraph: int, key: Hashable, rows: int, seconds: float, turns: int = 0) -> None:
        """A step of so many rows took so long.

        Args:
            subgraph: its number.
            key: what its rows have in common.
            rows: how many rows.
            seconds: how long.
            turns: how many turns of a loop; 0: it was none.
        """
        if turns:
            seconds /= turns
            self._turns[subgraph, key] = (seconds, rows)
            _bound(self._turns, (subgraph, key))
        self._line(subgraph, key).add(rows, seconds)
        self._recent.setdefault(subgraph, deque(maxlen=_RECENT)).append(seconds / rows)

    def _line(self, subgraph: int, key: Hashable) -> _Line:
        line = self._lines.setdefault((subgraph, key), _Line())
        _bound(self._lines, (subgraph, key))
        return line

    def overdue(self, subgraph: int, key: Hashable, rows: int) -> None:
        """A step of so many rows was not done in the time allowed: what was known of its like is forgotten."""
        self._lines.pop((subgraph, key), None)
        self._turns.pop((subgraph, key), None)
        self.ran(subgraph, key, rows, self._timeout)

    def too_large(self, subgraph: int, key: Hashable, rows: int, turns: int) -> None:
        """What a slice of so many rows and turns gave was too large to be sent: half of it may not be."""
        half = rows * turns // 2
        self._fits[subgraph, key] = min(half, self._fits.get((subgraph, key), half))
        _bound(self._fits, (subgraph, key))

    def turns(self, subgraph: int, key: Hashable, rows: int, most: int, seconds: float | None = None) -> int:
        """How many turns of a loop a step of so many rows may have; at least 1, and 1 where nothing is known.

        Args:
            subgraph: its number.
            key: what its rows have in common.
            rows: how many rows run together.
            most: as many as it may have where they are quick.
            seconds: how long they may take, where that is said.
        """
        allowed = self._allowed if seconds is None else min(self._allowed, seconds)
        known = self._turns.get((subgraph, key))
        if known is None:
            return 1
        fit = self._fits.get((subgraph, key))
        if fit is not None:
            most = max(1, min(most, fit // rows))
        turn = known[0] * max(1.0, rows / known[1])  # fewer rows may take as long
        return most if turn * most <= allowed else max(1, int(allowed / turn))

    def expected(self, subgraph: int, key: Hashable, rows: int, turns: int = 0) -> float:
        """How many seconds a step of so many rows and turns is expected to take; infinity where nothing is known."""
        known = self._turns.get((subgraph, key)) if turns else None
        if known is not None:
            return known[0] * turns * max(1.0, rows / known[1])
        line = self._lines.get((subgraph, key))
        if line is not None:
            return line.seconds(rows)
        recent = self._recent.get(subgraph)
        return rows * sum(recent) / len(recent) if recent else math.inf

    def rows(self, subgraph: int, key: Hashable, most: int, seconds: float | None = None) -> int:
        """How many rows a step may have; at least 1.

        Args:
            subgraph: its number.
            key: what its rows have in common.
            most: as many as it may have where nothing is known, or they are quick.
            seconds: how long they may take, where that is said.
        """
        allowed = self._allowed if seconds is None else seconds
        line = self._lines.get((subgraph, key))
        if line is not None:
            return line.rows(allowed, most)
        recent = self._recent.get(subgraph, (0.0,))
        # Of rows unlike these. A step that is overdue costs the epoch: there the slowest tells how many are safe.
        row = max(recent) if seconds is None else min(recent)
        return most if row * most <= allowed else max(1, int(allowed / row))


def _bound(known: OrderedDict[_Key, Any], newest: _Key) -> None:
    known.move_to_end(newest)
    if len(known) > _MOST_KEYS:
        known.popitem(last=False)

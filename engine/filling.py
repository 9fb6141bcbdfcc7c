"""When the next step begins: at once where the ranks would else wait, later where more rows can come along. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["COMPANY_SECONDS", "CROWD_SECONDS", "LEAD_SECONDS", "NEVER", "Crowd", "Gathering", "UnderWay", "begins_at"]

LEAD_SECONDS = 0.005
"""How long before the ranks are done with what they have they are sent more, at least: what a way to them takes."""

_LEAD_SHARE = 0.1
"""Of what a step is expected to take, which is never quite what it takes."""

COMPANY_SECONDS = 0.01
"""How long the first rows wait, at most, for others that were there a moment ago and are likely to come again."""

CROWD_SECONDS = 0.05
"""What is a moment ago; up to three times as long."""

NEVER = math.inf

_MOST_STEPS = 2


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What the ranks of a stage have to go on with.

    Attributes:
        steps: how many steps the slowest of them has not answered.
        rows: how many rows the newest of them has.
        all_rows: how many rows they have together.
        lasts: seconds that the newest is expected to take; infinity where nothing is known of its like.
        ends: when they are expected to be done with all of it.
    """

    steps: int = 0
    rows: int = 0
    lasts: float = 0.0
    ends: float = 0.0
    all_rows: int = 0


class Crowd:
    """How many rows a group had at once, of late: those that waited, and those that its ranks were at."""

    def __init__(self) -> None:
        self._since = -math.inf
        self._most = self._before = 0

    def seen(self, rows: int, now: float) -> int:
        """So many are there now.

        Args:
            rows: how many.
            now: seconds, on a clock that does not jump.

        Returns:
            The most of late, these among them.
        """
        ago = now - self._since
        if ago >= CROWD_SECONDS:
            self._before = self._most if ago < 2 * CROWD_SECONDS else 0
            self._most, self._since = 0, now
        self._most = max(self._most, rows)
        return max(self._most, self._before)


class Gathering:
    """Rows that come turn by turn of the loop are looked at together: once none has come in a turn, or 5 ms later."""

    def __init__(self) -> None:
        self._since: float | None = None  # when the first of them came
        self._came = False

    def came(self, now: float) -> bool:
        """A row came.

        Returns:
            Whether it is the first: `is_over` is to be asked in the next turn.
        """
        self._came = True
        if self._since is not None:
            return False
        self._since = now
        return True

    def is_over(self, now: float) -> bool:
        """Whether all that came is to be looked at now; if not, this is to be asked again in the next turn."""
        if self._came and self._since is not None and now - self._since < LEAD_SECONDS:
            self._came = False
            return False
        self._since = None
        return True


def begins_at(
    under_way: UnderWay, *, waiting: int, whole: bool, now: float, crowd: int = 0, since: float = -math.inf
) -> float:
    """When rows that wait are to begin, as it looks now; another row, or a step that ends, may change it.

    Ranks that have nothing to do begin at once. Only where steps are short, so that most of what they take is not for
    their rows, the first rows wait for a moment, until half as many are there as were there of late.

    Ranks that have a step get another just before they are done with it:
    until then others may come along. Where a step takes less time than the way to the ranks, they get another as soon
    as it has as many rows as that one, so that batches do not become smaller and smaller. Of what nothing is known, the
    end is waited for.

    Args:
        under_way: what the ranks have to go on with.
        waiting: how many rows wait.
        whole: those that go next are a batch to which nothing can be added.
        now: seconds, on the clock of the other times.
        crowd: how many rows were there at once of late, where steps are short; else 0.
        since: when the ranks had nothing to do and rows waited, for the first time.

    Returns:
        `now`, a time to look again, or `NEVER`.
    """
    if under_way.steps >= _MOST_STEPS:
        # Rows that are more urgent may still come, and would find all these before them. Short steps go by the way.
        return now if whole and under_way.ends - now < LEAD_SECONDS else NEVER
    if whole:
        return now
    if under_way.steps == 0:
        return now if 2 * waiting >= crowd else max(now, since + COMPANY_SECONDS)
    if under_way.lasts < LEAD_SECONDS:
        return now if waiting >= under_way.rows else NEVER
    if under_way.ends == math.inf:
        return NEVER
    return max(now, under_way.ends - max(LEAD_SECONDS, _LEAD_SHARE * under_way.lasts))

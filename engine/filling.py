"""When the next step begins: at once where the ranks would else wait, later where more rows can come along. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LEAD_SECONDS", "NEVER", "Gathering", "UnderWay", "begins_at"]

LEAD_SECONDS = 0.005
"""How long before the ranks are done with what they have they are sent more, at least: what a way to them takes."""

_LEAD_SHARE = 0.1
"""Of what a step is expected to take, which is never quite what it takes."""

NEVER = math.inf

_MOST_STEPS = 2


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What the ranks of a stage have to go on with.

    Attributes:
        steps: how many steps the slowest of them has not answered.
        rows: how many rows the newest of them has.
        lasts: seconds that the newest is expected to take; infinity where nothing is known of its like.
        ends: when they are expected to be done with all of it.
    """

    steps: int = 0
    rows: int = 0
    lasts: float = 0.0
    ends: float = 0.0


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


def begins_at(under_way: UnderWay, *, waiting: int, whole: bool, now: float) -> float:
    """When rows that wait are to begin, as it looks now; another row, or a step that ends, may change it.

    Ranks that have nothing to do begin at once. Those that have a step get another just before they are done with it:
    until then others may come along. Where a step takes less time than the way to the ranks, they get another as soon
    as it has as many rows as that one, so that batches do not become smaller and smaller. Of what nothing is known, the
    end is waited for.

    Args:
        under_way: what the ranks have to go on with.
        waiting: how many rows wait.
        whole: those that go next are a batch to which nothing can be added.
        now: seconds, on the clock of the other times.

    Returns:
        `now`, a time to look again, or `NEVER`.
    """
    if under_way.steps >= _MOST_STEPS:
        # Rows that are more urgent may still come, and would find all these before them. Short steps go by the way.
        return now if whole and under_way.ends - now < LEAD_SECONDS else NEVER
    if whole or under_way.steps == 0:
        return now
    if under_way.lasts < LEAD_SECONDS:
        return now if waiting >= under_way.rows else NEVER
    if under_way.ends == math.inf:
        return NEVER
    return max(now, under_way.ends - max(LEAD_SECONDS, _LEAD_SHARE * under_way.lasts))

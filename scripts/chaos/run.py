"""A chaos run: one fault after the other, each until all is well again, and what it cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ...schemas.errors import OperatorError
from .damage import Damage
from .faults import Planned
from .site import Site
from .tally import longest_gap

__all__ = ["Run", "Suffered"]

_LEAST_ANSWERS = 8
_ALL_TAKEN = (
    "kill-orchestrator",
    "cut-orchestrator",
    "freeze-orchestrator",
    "restart-broker",
    "kill-broker",
    "kill-group",
)
"""Faults by which the broker gets back all that an orchestrator had taken."""


@dataclass(frozen=True, slots=True)
class Suffered:
    """What became of one fault; times are seconds from it.

    Attributes:
        number: from 1.
        fault: its name.
        group: the number of the group that it hit.
        ranks: those that it hit.
        at: seconds since the first fault could have come.
        moment: the same as `time.time()`.
        noticed: until the first sign of it; None where nobody said anything.
        serving: until the first answer of what was whole again.
        gap: the longest time without an answer.
        repeated: calls that were issued again; where an orchestrator lost all that it had taken, the requests that were
            under way, of which it may have taken `max_in_flight`.
        answered: requests that were answered until all was well.
        reasons: why epochs ended, as the orchestrator has it, and what else is to be known.
        problem: why it is not over; "" if it is.
    """

    number: int
    fault: str
    group: int
    ranks: tuple[int, ...]
    at: float
    moment: float
    noticed: float | None
    serving: float | None
    gap: float
    repeated: int
    answered: int
    reasons: tuple[str, ...]
    problem: str = ""


class Run:
    """Does faults to a site under load.

    Args:
        site: with its producers.
        plans: the faults.
        seconds: after which no further one begins; None: all of them.
        peace: seconds between two, at most.
        patience: seconds that a group may take to serve again.
        taken: requests that an orchestrator takes at most.
        told: called with each fault, once it is over.
    """

    def __init__(
        self,
        site: Site,
        plans: Iterator[Planned],
        *,
        seconds: float | None,
        peace: float,
        patience: float,
        taken: int,
        told: Callable[[Suffered], None],
    ) -> None:
        self._site = site
        self._plans = plans
        self._seconds = seconds
        self._peace = peace
        self._patience = patience
        self._taken = taken
        self._told = told
        self._began = 0.0
        self.suffered: list[Suffered] = []

    async def go(self) -> None:
        """Does them, until the time is over or one does not end."""
        self._began = time.time()
        for planned in self._plans:
            await asyncio.sleep(min(planned.pause, self._peace))  # for the load to be steady; nothing is waited for
            if self._seconds is not None and time.time() - self._began > self._seconds:
                return
            suffered = await self._suffer(planned)
            self.suffered.append(suffered)
            self._told(suffered)
            if suffered.problem:
                return

    async def _suffer(self, planned: Planned) -> Suffered:
        site, damage, problem = self._site, Damage(self._site, planned, self._patience), ""
        at, answered, under_way = time.time(), site.answered, 0
        try:
            await damage.prepare()
            site.look()
            at, answered, under_way = time.time(), site.answered, len(site.unanswered(time.time()))
            await damage.do()
            await site.until(lambda: self._is_well(damage, at), f"an end of {planned}", self._patience)
        except OperatorError as error:
            problem = error.message
            open_ = site.unanswered(at)
            if open_:
                problem += f"; {len(open_)} requests from before have no answer, the first is {open_[0]}"
        until = time.time()
        signs = damage.replica.signs("ended", since=at)
        suffered = Suffered(
            number=len(self.suffered) + 1,
            fault=planned.fault.name,
            group=planned.group,
            ranks=planned.ranks,
            at=round(at - self._began, 2),
            moment=round(at, 6),
            noticed=_after(damage.noticed(at), at),
            serving=_after(self._first_answer(damage.serving_since(at)), at),
            gap=round(longest_gap((it for book in site.books for it in book.answered_at), at, until), 3),
            repeated=min(under_way, self._taken)
            if planned.fault.name.startswith(_ALL_TAKEN)
            else sum(sign.rows for sign in signs),
            answered=site.answered - answered,
            reasons=(*damage.remarks, *(sign.reason for sign in signs)),
            problem=problem,
        )
        if not problem:
            try:
                await damage.mend()
            except OperatorError as error:
                return replace(suffered, problem=error.message)
        return suffered

    def _is_well(self, damage: Damage, at: float) -> bool:
        """All is whole again and answers, and what was asked before the fault has been answered."""
        since = damage.serving_since(at)
        if since is None or self._site.unanswered(at):
            return False
        enough = max(_LEAST_ANSWERS, self._site.plan.in_flight // 2)
        return sum(1 for _ in self._site.answers_since(since)) >= enough

    def _first_answer(self, since: float | None) -> float | None:
        return None if since is None else min(self._site.answers_since(since), default=None)


def _after(moment: float | None, at: float) -> float | None:
    return None if moment is None else round(moment - at, 3)

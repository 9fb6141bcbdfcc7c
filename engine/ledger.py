"""The orchestrator's book of one epoch: which steps were sent, who has answered them, and how many more may be sent.

A pure value: it takes the time as an argument and knows no queue. The rank's side is `workers.lockstep.LockstepGuard`.

A step concerns all ranks of the ledger, or some of them (a stage). Steps are numbered per rank, so that every rank sees
0, 1, 2 and so on without a gap; the ranks that a step concerns must therefore be at the same number, which they are
when the sets of ranks that occur are disjoint.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..schemas.errors import LockstepError
from ..schemas.messages import RankReply

__all__ = ["Finished", "StepLedger"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finished(Generic[T]):
    """A step that every rank it concerns has answered.

    Attributes:
        step: its number.
        item: what it was issued with.
        replies: by rank; some may hold an error.
        took: seconds since it was sent, or since the step before it was finished, whichever was later.
    """

    step: int
    item: T
    replies: Mapping[int, RankReply]
    took: float


@dataclass(slots=True, eq=False)
class _Issued(Generic[T]):
    step: int
    item: T
    ranks: tuple[int, ...]
    at: float
    replies: dict[int, RankReply] = field(default_factory=dict)


@dataclass(slots=True)
class _Rank(Generic[T]):
    """A rank's account: the number of its next step, what it has yet to answer, when it last answered, and when all had
    answered its last step that is finished.
    """

    next: int = 0
    owes: deque[_Issued[T]] = field(default_factory=deque)
    answered_at: float | None = None
    finished_at: float = -math.inf

    @property
    def last(self) -> int:
        return self.next - len(self.owes) - 1


class StepLedger(Generic[T]):
    """The steps of one epoch, from issue to the last rank's answer.

    Args:
        epoch: its number.
        ranks: the ranks of the group.
        window: how many steps may be sent ahead of the slowest rank.

    Raises:
        ValueError: no ranks, or a window below 1.
    """

    def __init__(self, epoch: int, ranks: Iterable[int], window: int) -> None:
        self.epoch = epoch
        self.window = window
        self._ranks: dict[int, _Rank[T]] = {rank: _Rank() for rank in ranks}
        self._unfinished: dict[_Issued[T], None] = {}
        self._over = False
        if not self._ranks or window < 1:
            raise ValueError(f"a ledger needs ranks and a window of at least 1, not {list(self._ranks)} and {window}")

    @property
    def outstanding(self) -> int:
        """How many steps were issued and not finished."""
        return len(self._unfinished)

    @property
    def progress(self) -> dict[int, int]:
        """By rank, the number of the last step that it answered; -1: none yet."""
        return {rank: account.last for rank, account in self._ranks.items()}

    def can_issue(self, ranks: Iterable[int] | None = None) -> bool:
        """Whether another step may be sent to these ranks (None: all) without leaving the slowest too far behind."""
        if self._over:
            return False
        return all(len(self._ranks[rank].owes) < self.window for rank in self._chosen(ranks))

    def ahead(self, ranks: Iterable[int] | None = None) -> int:
        """How many steps the slowest of these ranks (None: all) has been sent and not answered."""
        return max(len(self._ranks[rank].owes) for rank in self._chosen(ranks))

    def issue(self, item: T, now: float, ranks: Iterable[int] | None = None) -> int:
        """Book a step as sent.

        Args:
            item: what to give back when the step is finished or void.
            now: seconds of a clock that does not jump.
            ranks: the ranks that the step concerns; None: all.

        Returns:
            The step's number.

        Raises:
            ValueError: the window is used up, the epoch is over, or the ranks are not at the same step.
        """
        chosen = self._chosen(ranks)
        if not self.can_issue(chosen):
            raise ValueError(f"epoch {self.epoch} is over" if self._over else f"the window of {self.window} is used up")
        step = self._ranks[chosen[0]].next
        if any(self._ranks[rank].next != step for rank in chosen):
            raise ValueError(f"ranks {list(chosen)} are not at the same step: issue to disjoint sets of ranks")
        issued = _Issued(step, item, chosen, now)
        self._unfinished[issued] = None
        for rank in chosen:
            self._ranks[rank].owes.append(issued)
            self._ranks[rank].next = step + 1
        return step

    def reply(self, reply: RankReply, now: float) -> Finished[T] | None:
        """Book a rank's answer.

        Args:
            reply: of any content: an error counts as an answer.
            now: seconds, of the same clock as in `issue`.

        Returns:
            The step, where this was the last answer to it; else None.

        Raises:
            LockstepError: a foreign epoch, a rank that is not in the group, a step that was never sent to this rank, an
                answer given twice, or one that leaves out a step: nothing is booked.
        """
        account = self._account_of(reply)
        issued = account.owes.popleft()
        account.answered_at = now
        issued.replies[reply.rank] = reply
        if len(issued.replies) < len(issued.ranks):
            return None
        del self._unfinished[issued]
        took = now - max(issued.at, *(self._ranks[rank].finished_at for rank in issued.ranks))
        for rank in issued.ranks:
            self._ranks[rank].finished_at = now
        return Finished(issued.step, issued.item, issued.replies, took)

    def overdue(self, now: float, seconds: float) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """The steps that ranks have been at for longer than `seconds`, with the ranks that have not answered.

        A rank works its steps off one by one, so its time for a step runs from when the step was sent, or from its
        answer to the step before, whichever is later.

        Args:
            now: seconds, of the same clock as in `issue`.
            seconds: how long a rank may take for a step.

        Returns:
            Pairs of step and ranks, oldest first; at most one step per rank.
        """
        late: dict[_Issued[T], list[int]] = {}
        for rank, account in self._ranks.items():
            if not account.owes:
                continue
            issued = account.owes[0]
            since = issued.at if account.answered_at is None else max(issued.at, account.answered_at)
            if now - since > seconds:
                late.setdefault(issued, []).append(rank)
        return tuple((issued.step, tuple(late[issued])) for issued in self._unfinished if issued in late)

    def at(self, rank: int) -> T | None:
        """What a rank is at: the item of the oldest step that it has not answered."""
        owes = self._ranks[rank].owes
        return owes[0].item if owes else None

    def void(self) -> list[T]:
        """End the epoch: nothing can be issued or answered any more.

        Returns:
            The items of all unfinished steps, in the order of issue.
        """
        items = [issued.item for issued in self._unfinished]
        self._unfinished.clear()
        for account in self._ranks.values():
            account.next -= len(account.owes)
            account.owes.clear()
        self._over = True
        return items

    def _chosen(self, ranks: Iterable[int] | None) -> tuple[int, ...]:
        if ranks is None:
            return tuple(self._ranks)
        chosen = tuple(dict.fromkeys(ranks))
        if not chosen or not self._ranks.keys() >= set(chosen):
            raise ValueError(f"ranks {list(chosen)} are not among the ledger's, {list(self._ranks)}")
        return chosen

    def _account_of(self, reply: RankReply) -> _Rank[T]:
        what = f"rank {reply.rank} answered step {reply.step}"
        if reply.epoch != self.epoch:
            raise LockstepError(f"{what} of epoch {reply.epoch}: this is epoch {self.epoch}")
        account = self._ranks.get(reply.rank)
        if account is None:
            raise LockstepError(f"{what} of epoch {self.epoch}, but is not in the group: {list(self._ranks)}")
        if self._over:
            raise LockstepError(f"{what} of epoch {self.epoch}, which is over")
        if reply.step <= account.last:
            raise LockstepError(f"{what} of epoch {self.epoch} again")
        if reply.step >= account.next:
            raise LockstepError(f"{what} of epoch {self.epoch}, which was not sent to it: {account.next} comes next")
        if reply.step != account.owes[0].step:
            raise LockstepError(f"{what} of epoch {self.epoch} before step {account.owes[0].step}: a gap")
        return account

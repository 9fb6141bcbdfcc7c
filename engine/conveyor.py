"""One epoch's batches on their way through the stages of a group: several at once, one behind the other. Pure.

A batch that the ranks of one stage have run waits for the ranks of the next. Later stages go first, and a stage takes
nothing while too much waits behind it, so that what is under way stays bounded and the oldest work ends first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ..schemas.messages import RankReply
from .batch import Batch, Row, age
from .filling import UnderWay
from .ledger import Finished, StepLedger
from .stages import stage_ranks

__all__ = ["Conveyor", "Flight"]


_NOTHING = UnderWay()


@dataclass(frozen=True, eq=False, slots=True)
class Flight:
    """A batch at one stage.

    Attributes:
        batch: the batch as it was taken, before the first stage.
        stage: where it is, from 0.
        rows: what goes into this stage.
        turns: per row, how many turns it runs at most; none where it is run once.
    """

    batch: Batch
    stage: int
    rows: Sequence[Row]
    turns: tuple[int, ...] = ()


class Conveyor:
    """The steps of one epoch over all stages.

    Args:
        epoch: its number.
        size: how many ranks the group has.
        stages: into how many stages they are divided.
        window: how many steps may be sent ahead of the slowest rank of a stage.
    """

    def __init__(self, epoch: int, size: int, stages: int, window: int) -> None:
        self.epoch = epoch
        self.stages = stages
        self._window = window
        self._ranks = [stage_ranks(stage, size, stages) for stage in range(stages)]
        self._ledger: StepLedger[Flight] = StepLedger(epoch, range(size), window)
        self._waiting: list[deque[Flight]] = [deque() for _ in range(stages)]
        self._expected: deque[tuple[int, float]] = deque()  # rows and seconds of the first stage's steps
        self._since = 0.0  # when the oldest of them began, as far as that is known
        self._ahead: list[int | None] = [None] * stages
        self._over = False

    @property
    def outstanding(self) -> int:
        """How many batches are under way."""
        return self._ledger.outstanding + sum(map(len, self._waiting))

    def has_room(self) -> bool:
        """Whether the first stage may take another batch."""
        return self._may_issue(0)

    def under_way(self) -> UnderWay:
        """What the ranks of the first stage have to go on with."""
        ahead = self._ahead_of(0)
        if not ahead or not self._expected:
            return _NOTHING
        rows, lasts = self._expected[-1]
        all_rows = sum(count for count, _ in self._expected)
        return UnderWay(ahead, rows, lasts, self._since + sum(seconds for _, seconds in self._expected), all_rows)

    def began(self, rows: int, lasts: float, now: float) -> None:
        """A batch of so many rows was sent to the first stage.

        Args:
            rows: how many.
            lasts: seconds that they are expected to take.
            now: seconds of a clock that does not jump.
        """
        if not self._expected:
            self._since = now
        self._expected.append((rows, lasts))

    def next(self) -> Flight | None:
        """The batch that goes on next, into a later stage than the first; None where none can."""
        for stage in range(self.stages - 1, 0, -1):
            if self._waiting[stage] and self._may_issue(stage):
                return self._waiting[stage].popleft()
        return None

    def put_back(self, flight: Flight) -> None:
        """A batch that `next` gave cannot go on yet after all."""
        self._waiting[flight.stage].appendleft(flight)

    def _may_issue(self, stage: int) -> bool:
        behind = stage + 1
        congested = behind < self.stages and len(self._waiting[behind]) >= self._window
        return not congested and not self._over and self._ahead_of(stage) < self._window

    def _ahead_of(self, stage: int) -> int:
        """How many steps the slowest rank of a stage has been sent and not answered: asked for with every row."""
        ahead = self._ahead[stage]
        if ahead is None:
            ahead = self._ahead[stage] = self._ledger.ahead(self._ranks[stage])
        return ahead

    def issue(self, flight: Flight, now: float) -> int:
        """Books a step as sent to the ranks of its stage.

        Returns:
            Its number for these ranks.
        """
        self._ahead[flight.stage] = None
        return self._ledger.issue(flight, now, self._ranks[flight.stage])

    def reply(self, reply: RankReply, now: float) -> Finished[Flight] | None:
        """Books a rank's answer; see `StepLedger.reply`."""
        self._ahead = [None] * self.stages
        finished = self._ledger.reply(reply, now)
        if finished is not None and finished.item.stage == 0 and self._expected:
            self._expected.popleft()
            self._since = now
        return finished

    def pass_on(self, flight: Flight, rows: Sequence[Row]) -> bool:
        """Has what a stage made go on to the next.

        Returns:
            Whether there is a next one.
        """
        stage = flight.stage + 1
        if stage == self.stages:
            return False
        self._waiting[stage].append(Flight(flight.batch, stage, rows))
        return True

    def overdue(self, now: float, seconds: float) -> tuple[Flight, int, tuple[int, ...]] | None:
        """The first step that ranks have been at for longer than `seconds`, its number, and the ranks."""
        for step, ranks in self._ledger.overdue(now, seconds):
            flight = self._ledger.at(ranks[0])
            if flight is not None:
                return flight, step, ranks
        return None

    def void(self) -> list[Batch]:
        """Ends the epoch.

        Returns:
            The batches that were under way, at whatever stage, oldest first.
        """
        self._over = True
        flights = [flight for waiting in reversed(self._waiting) for flight in waiting]
        for waiting in self._waiting:
            waiting.clear()
        batches = [flight.batch for flight in (*self._ledger.void(), *flights)]
        return sorted(batches, key=lambda batch: age(batch.owners[0]))

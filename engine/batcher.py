"""What the next step runs: calls of the same subgraph, from any requests in flight, become one batch.

A pure value: rows go in with their calls and come out in batches; what is in a row it does not look at. The oldest
waiting row always goes first, so no subgraph starves another, and rows of one subgraph that may share a step (the same
batch key) go in the order in which they came. Rows that wait for company do not stand in line until they fill a step or
their time is over, so that nobody has to wait behind them.

Rows that failed together stand where the oldest of them stood, but between two steps of such rows one of others goes:
it may take long to find those to blame, and nobody else is to wait until it is done.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from .batch import Age, Apart, Batch, Owner, PendingCall, age
from .suspects import Suspects

__all__ = ["Batcher"]


_MOST_OVERTAKEN = 8
"""How many full steps may go before rows of a rare shape: a bound, so that none is starved."""

_MOST_LOOKED_AT = 64
"""Shapes among which a full step is looked for: a bound on what a step costs where nearly every row has its own."""


@dataclass(slots=True)
class _Queue:
    """Waiting rows that may share a step, as a heap by age.

    Attributes:
        listed: the place under which it stands in line; None: in none.
        overtaken: how often others went before it there.
        until: until when it waits for more rows, by the first of its rows to lose patience; 0: it does not.
        rests: until when it is listed among those that wait so; None: it is not.
    """

    subgraph: int
    key: Hashable
    rows: list[tuple[int, int, int, PendingCall]] = field(default_factory=list)
    listed: Age | None = None
    overtaken: int = 0
    until: float = math.inf
    rests: float | None = None

    @property
    def place(self) -> Age:
        return self.rows[0][:3]

    def push(self, owner: Owner) -> None:
        heapq.heappush(self.rows, (*age(owner), owner[0]))
        if owner[0].waits_until < self.until:
            self.until = owner[0].waits_until

    def may_be_overtaken(self, most: int) -> bool:
        """Whether rows that fill a step may go before these, which are to go now and of which none is urgent."""
        return self.overtaken < _MOST_OVERTAKEN and not self.fills(most)

    def fills(self, most: int) -> bool:
        """Whether it has as many rows that are still wanted."""
        wanted = (1 for *_, call in self.rows if not call.cancelled)
        return len(self.rows) >= most and sum(itertools.islice(wanted, most)) == most

    def pop(self, at_most: int) -> tuple[Owner, ...]:
        """The oldest rows, without those of cancelled calls."""
        self.overtaken = 0
        waits = self.rows[0][3].waits_until > 0.0
        found: list[Owner] = []
        while self.rows and len(found) < at_most:
            _, _, index, call = heapq.heappop(self.rows)
            if not call.cancelled:
                found.append((call, index))
        if waits and not self.fills(at_most):  # else it fills the next step, and waits for nothing
            self.look_up()
        return tuple(found)

    def look_up(self) -> None:
        """Finds out anew until when it waits: rows have left."""
        self.until = min((call.waits_until for *_, call in self.rows if not call.cancelled), default=0.0)

    def drop_cancelled(self) -> None:
        """Make the oldest row one that is still wanted."""
        while self.rows and self.rows[0][3].cancelled:
            heapq.heappop(self.rows)


class Batcher:
    """The rows that wait for a step.

    A row costs O(log n) in and out. Rows that are put back stand again where they stood before.

    Args:
        max_rows: by subgraph, or called with subgraph and key, how many rows a step may have at most; less than 1
            counts as 1.
    """

    def __init__(self, max_rows: Mapping[int, int] | Callable[[int, Hashable], int]) -> None:
        self._max_rows = max_rows if callable(max_rows) else lambda subgraph, key: max_rows[subgraph]
        self._queues: dict[tuple[int, Hashable], _Queue] = {}
        self._line: list[tuple[Age, int, _Queue]] = []  # a heap
        self._suspects = Suspects()
        self._yields = False  # the newest step was of such rows
        self._resting: list[tuple[float, int, _Queue]] = []  # a heap of those that wait for company
        self._now = 0.0
        self._waiting: dict[PendingCall, int] = {}
        self._rows = 0
        self._urgent = 0  # of them, those with a head start
        self._calls = 0
        self._entries = 0

    def __len__(self) -> int:
        """How many calls have rows waiting."""
        return len(self._waiting)

    @property
    def waiting_rows(self) -> int:
        """How many rows wait."""
        return self._rows

    def add(self, call: PendingCall) -> None:
        """Put a call at the end.

        Raises:
            ValueError: it was added before, or its subgraph has no `max_rows`.
        """
        if call.number >= 0:
            raise ValueError(f"call {call.number} was added before")
        try:
            self._max_rows(call.subgraph, None)
        except LookupError:
            raise ValueError(f"no max_rows for subgraph {call.subgraph}") from None
        call.number = self._calls
        self._calls += 1
        self._wait([(call, index) for index in range(len(call.rows))])

    def take(self, joining: Container[tuple[int, Hashable]] = ()) -> Batch | None:
        """The next batch: the oldest row, and behind it the oldest others that may share a step with it.

        Where they do not fill a step and others of the subgraph do, those may go first, some times: rows in many
        shapes would else travel in steps of a few. That is only while no row has a head start: nobody waits then.

        Args:
            joining: by subgraph and key, rows that others under way will soon join: they wait for them, unless there
                are enough for a whole batch.

        Returns:
            At most `max_rows` rows of one subgraph; None where nothing waits that may go.
        """
        passed: list[tuple[Age, int, _Queue]] = []
        try:
            return self._take(joining, passed)
        finally:
            for entry in passed:
                heapq.heappush(self._line, entry)

    def _take(self, joining: Container[tuple[int, Hashable]], passed: list[tuple[Age, int, _Queue]]) -> Batch | None:
        while self._line:
            entry = heapq.heappop(self._line)
            place, _, queue = entry
            if queue.listed != place:
                continue  # an older row came into this queue later, and was given a place of its own
            most = max(1, self._max_rows(queue.subgraph, queue.key))
            if (queue.subgraph, queue.key) in joining and len(queue.rows) < most:
                passed.append(entry)
                continue
            queue.drop_cancelled()
            due = bool(queue.rows) and queue.place == place and not self._rests(queue)
            if due and self._suspects_before(place):
                passed.append(entry)
                break
            fuller = self._fuller(queue, most) if due else None
            if fuller is not None:
                batch = self._batch(*fuller)
                if batch is not None:
                    queue.overtaken += 1
                    passed.append(entry)
                    return batch
            batch = self._batch(queue, most if due else 0)
            if batch is not None:
                return batch
        batch = self._suspects.take(lambda subgraph: self._max_rows(subgraph, None))
        return self._taken(batch) if batch is not None else None

    def _suspects_before(self, place: Age) -> bool:
        """Whether rows that failed together go before those that stand there."""
        theirs = self._suspects.age
        return theirs is not None and theirs < place and not self._yields

    def _batch(self, queue: _Queue, most: int) -> Batch | None:
        owners = queue.pop(most) if most else ()
        self._line_up(queue)
        return self._taken(Batch(queue.subgraph, owners)) if owners else None

    def _taken(self, batch: Batch) -> Batch:
        self._yields = batch.apart is not None
        for call, _ in batch.owners:
            self._count(call, -1)
        return batch

    def _fuller(self, queue: _Queue, most: int) -> tuple[_Queue, int] | None:
        """The queue that goes before one whose turn it is, since it fills a step, and how many rows that are."""
        if self._urgent or not queue.may_be_overtaken(most):
            return None
        subgraph = queue.subgraph
        found: tuple[Age, _Queue, int] | None = None
        for place, _, queue in itertools.islice(self._line, _MOST_LOOKED_AT):
            if queue.listed != place or queue.subgraph != subgraph:
                continue
            most = max(1, self._max_rows(subgraph, queue.key))
            if queue.fills(most) and (found is None or place < found[0]):
                found = place, queue, most
        return found and found[1:]

    def first(self) -> tuple[PendingCall, Hashable, int] | None:
        """The call whose row would come out first if nothing were joining, the row's key, and how many rows it might
        share a step with, itself among them; None where nothing waits that may go.
        """
        while self._line:
            place, _, queue = self._line[0]
            if queue.listed == place:
                queue.drop_cancelled()
                if queue.rows and queue.place == place and not self._rests(queue):
                    if self._suspects_before(place):
                        break
                    fuller = self._fuller(queue, max(1, self._max_rows(queue.subgraph, queue.key)))
                    if fuller is not None:
                        queue = fuller[0]
                        queue.drop_cancelled()
                    return queue.rows[0][3], queue.key, len(queue.rows)
                heapq.heappop(self._line)
                self._line_up(queue)
            else:
                heapq.heappop(self._line)
        suspect = self._suspects.first()
        return (suspect[0], None, suspect[1]) if suspect is not None else None

    def ripen(self, now: float) -> None:
        """Lets rows go that have waited for company for long enough, or are wanted for no longer.

        Args:
            now: seconds, on the clock of `PendingCall.waits_until`.
        """
        self._now = now
        while self._resting and self._resting[0][0] <= now:
            until, _, queue = heapq.heappop(self._resting)
            if queue.rests != until:
                continue  # a row that waits for a shorter time came later
            queue.rests = None
            if queue.listed is None:
                queue.look_up()
                self._line_up(queue)

    @property
    def ripens(self) -> float:
        """When `ripen` is to be called next; infinity where no row waits for company."""
        while self._resting and self._resting[0][2].rests != self._resting[0][0]:
            heapq.heappop(self._resting)
        return self._resting[0][0] if self._resting else math.inf

    def cancel(self, call: PendingCall) -> None:
        """Drop the rows of a call: those that wait now, and those that would be put back later."""
        call.cancelled = True
        self._count(call, -self._waiting.get(call, 0))

    def put_back(self, batch: Batch) -> None:
        """Let the rows of a batch that was not run wait again, where they stood: at the front."""
        if batch.apart is None:
            self._wait(batch.owners)
        else:
            self._wait_apart(batch.apart, batch.owners)

    def split(self, batch: Batch, suspect: int | None = None) -> None:
        """Have the rows of a batch that failed tried again in parts, which are mixed with no other rows.

        Done again with each part that fails, it leaves a row that cannot be run in a batch of its own.

        Args:
            batch: it.
            suspect: the row that seems to be to blame: it, those before it and those after it are the parts. Where
                that is not known, the two halves.

        Raises:
            ValueError: the batch has one row only.
        """
        if len(batch) < 2:
            raise ValueError("a batch of one row cannot be split: that row failed by itself")
        apart = batch.apart or Apart(age(batch.owners[0]), len(batch))
        middle = (len(batch) + 1) // 2
        first, second = (middle, middle) if suspect is None else (suspect, suspect + 1)
        for owners in (batch.owners[:first], batch.owners[first:second], batch.owners[second:]):
            self._wait_apart(apart, owners)

    def _wait(self, owners: Sequence[Owner]) -> None:
        for call, index in owners:
            if call.cancelled:
                continue
            queue = self._queue_of(call, index)
            queue.push((call, index))
            self._count(call, 1)
            if queue.listed is None or queue.place < queue.listed:
                self._line_up(queue)

    def _wait_apart(self, apart: Apart, owners: Sequence[Owner]) -> None:
        self._suspects.add(apart, owners)
        for call, _ in owners:
            if not call.cancelled:
                self._count(call, 1)

    def _queue_of(self, call: PendingCall, index: int) -> _Queue:
        key = call.keys[index] if call.keys else None
        queue = self._queues.get((call.subgraph, key))
        if queue is None:
            queue = self._queues[call.subgraph, key] = _Queue(call.subgraph, key)
        return queue

    def _line_up(self, queue: _Queue) -> None:
        """Give a queue the place in line that its oldest row has, unless it waits for company; forget it where it has
        no row.
        """
        if queue.rows and self._rests(queue):
            queue.listed = None
            if queue.rests is None or queue.until < queue.rests:
                queue.rests = queue.until
                self._entries += 1
                heapq.heappush(self._resting, (queue.until, self._entries, queue))
        elif queue.rows:
            queue.listed = queue.place
            self._entries += 1  # breaks ties: queues themselves have no order
            heapq.heappush(self._line, (queue.listed, self._entries, queue))
        else:
            queue.listed = queue.rests = None
            del self._queues[queue.subgraph, queue.key]

    def _rests(self, queue: _Queue) -> bool:
        """Whether a queue waits for company, and not for its turn."""
        if queue.until <= self._now:
            return False
        return not queue.fills(max(1, self._max_rows(queue.subgraph, queue.key)))

    def _count(self, call: PendingCall, rows: int) -> None:
        self._rows += rows
        self._urgent += rows if call.head_start else 0
        left = self._waiting.get(call, 0) + rows
        if left:
            self._waiting[call] = left
        else:
            self._waiting.pop(call, None)

"""What the ranks of a group are given to do: from rows that wait to numbered steps. No I/O of its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from ..schemas.errors import BlobUnavailable, LimitExceeded, RankmqError
from .batch import Batch, PendingCall
from .batcher import Batcher
from .conveyor import Conveyor, Flight
from .filling import LEAD_SECONDS, NEVER, Crowd, begins_at
from .ledger import Finished
from .loops import Joining
from .losses import ticket_of
from .pace import Pace
from .plan import SubgraphPlan
from .sender import StepSender
from .servable import Servable
from .tasks import least_bytes
from .ticket import RowResult

__all__ = ["Feed", "settle"]

_UNSTACKED_ROWS = 64
"""Most rows in a step of a graph without a batch dimension: they run back to back, and others wait meanwhile."""

_UNSTACKED_SECONDS = 0.05
"""About how long such a step takes at most: beyond that more rows gain nothing, and what is more urgent waits."""

_STACKED_ROWS = 1024
"""Most rows in a step of a graph with a batch dimension of any size, where the configuration does not say."""


_WAITING_SHARE = 0.5
"""Of the time that a row has until its deadline, what it waits for others to fill a step, at most."""


class Feed:
    """Makes steps of the calls of one group.

    Args:
        servable: as loaded.
        sender: sends them.
        clock: seconds, monotonic.
        step_timeout: seconds after which an unanswered step is overdue.
        wake_at: has `Driver.pump` called at a time of the clock.

    Attributes:
        plans: by subgraph, stage by stage; set when the ranks are known.
        steps: how many were sent.
    """

    def __init__(
        self,
        servable: Servable,
        sender: StepSender,
        clock: Callable[[], float],
        step_timeout: float,
        wake_at: Callable[[float], None],
    ) -> None:
        self.plans: Mapping[int, tuple[SubgraphPlan, ...]] = {}
        self.steps = 0
        self._servable = servable
        self._sender = sender
        self._clock = clock
        self._wake_at = wake_at
        self._pace = Pace(step_timeout)
        self._batcher = Batcher(self._max_rows)
        self._joining = Joining()
        self._held: Batch | None = None
        self._alone = False
        self._crowd = Crowd()
        self._lasts = NEVER  # seconds that the newest step was expected to take
        self._idle_since = NEVER  # when rows first waited for the next one, and the ranks for rows
        self._waits = any(model.max_wait for model in servable.models)

    def _max_rows(self, subgraph: int, key: Hashable = None) -> int:
        stages, wanted = self.plans[subgraph], self._servable.model_of(subgraph).batch_size
        static = [plan.static_rows for plan in stages if plan.static_rows is not None]
        if static:
            return min(wanted or static[0], *static)  # it takes as long with fewer
        if stages[0].stacked:
            return self._pace.rows(subgraph, key, wanted or _STACKED_ROWS)
        return self._pace.rows(subgraph, key, _UNSTACKED_ROWS, _UNSTACKED_SECONDS)

    # ---------------------------------------------------------------------------------------------- rows that wait

    @property
    def waiting_rows(self) -> int:
        """How many rows wait."""
        return self._batcher.waiting_rows + (len(self._held) if self._held is not None else 0)

    def add(self, call: PendingCall) -> None:
        """Rows that are to be run."""
        if self._waits:
            call.waits_until = self._waits_until(call)
        self._batcher.add(call)

    def _waits_until(self, call: PendingCall) -> float:
        """Until when the rows of a call wait for others to fill a step; 0: they do not.

        A loop's rows come together by themselves, after every slice; those that run alone have nobody to wait for.
        """
        ticket, wait = ticket_of(call), self._servable.model_of(call.subgraph).max_wait
        if not wait or call.loop is not None or ticket.alone:
            return 0.0
        now = self._clock()
        if ticket.deadline is not None:
            wait = min(wait, _WAITING_SHARE * max(0.0, ticket.deadline - now))
        return now + wait

    def cancel(self, call: PendingCall) -> None:
        """They are not wanted any more."""
        self._batcher.cancel(call)

    def put_back(self, batch: Batch) -> None:
        """Rows that were under way wait again, where they stood."""
        self._batcher.put_back(batch)

    def failed(self, flight: Flight, error: RankmqError, suspect: int | None = None) -> None:
        """A step failed: what a slice of several turns gave was too large, or some of its rows are to blame.

        Args:
            flight: the step.
            error: what its rows fail with, where they do so by themselves.
            suspect: the row at which it failed, where that is known.
        """
        batch, turns = flight.batch, max(flight.turns, default=0)
        if isinstance(error, LimitExceeded) and turns > 1:
            self._pace.too_large(batch.subgraph, self._like(batch), len(batch), turns)
            self._batcher.put_back(batch)
        else:
            self.part(batch, error, suspect)

    def part(self, batch: Batch, error: RankmqError, suspect: int | None = None) -> None:
        """A batch failed: a single row has met its end; more are tried again in parts."""
        if len(batch) > 1:
            self._batcher.split(batch, suspect)
            return
        if batch.apart is not None:
            batch.apart.failed_alone()
        call, index = batch.owners[0]
        settle(call, index, error)

    def forget(self) -> None:
        """Nothing waits any more."""
        self._held = None
        self._batcher = Batcher(self._max_rows)

    # ----------------------------------------------------------------------------------------------------- steps

    def pump(self, conveyor: Conveyor) -> None:
        """Sends as many steps as the lockstep window allows."""
        while True:
            flight = conveyor.next()
            if flight is None:
                if not self._take(conveyor):
                    return
            elif not self._issue(conveyor, flight):
                conveyor.put_back(flight)
                return

    def _take(self, conveyor: Conveyor) -> bool:
        """Starts a new batch, if there is one and room for it."""
        if not self.waiting_rows or not conveyor.has_room() or not self._is_time(conveyor):
            return False
        batch, self._held = self._held or self._batcher.take(self._joining), None
        if batch is None:
            return False
        tickets = [ticket_of(call) for call, _ in batch.owners]
        alone = any(it.alone or (batch.apart is not None and it.voids) for it in tickets)
        if conveyor.outstanding and (alone or self._alone):
            self._held = batch  # rows under which an epoch was lost: if it happens again, it was them
            return False
        self._alone = alone
        batch = self._that_fits(batch)
        error = self._sender.refusal(least_bytes(self.plans[batch.subgraph][0], batch.rows))
        if error is not None:
            self.part(batch, error)  # without putting together first what is too large anyway
        elif not self._issue(conveyor, Flight(batch, 0, batch.rows, self._turns(batch))):
            self._held = batch
            return False
        return True

    def _that_fits(self, batch: Batch) -> Batch:
        """Of a batch, the first rows that are not too large for a step anyway; the others wait on, where they stood."""
        rows, most = batch.rows, len(batch)
        while most > 1 and least_bytes(self.plans[batch.subgraph][0], rows[:most]) > self._sender.most_bytes:
            most = (most + 1) // 2
        if most == len(batch):
            return batch
        self._batcher.put_back(Batch(batch.subgraph, batch.owners[most:], batch.apart))
        return Batch(batch.subgraph, batch.owners[:most], batch.apart)

    def _is_time(self, conveyor: Conveyor) -> bool:
        """Whether the rows that wait are to begin; if that is only a matter of time, we are woken then."""
        if self._held is not None:
            return True
        now = self._clock()
        if self._waits:
            self._batcher.ripen(now)
        first = self._batcher.first()
        if self._waits and (ripens := self._batcher.ripens) < NEVER:
            self._wake_at(ripens)
        if first is None:
            return False
        call, key, alike = first
        waiting, under_way = self._batcher.waiting_rows, conveyor.under_way()
        if call.loop is not None and under_way.steps:
            return False  # rows of that step may be for the same loop, and would have to wait for the end of its slice
        stacked = self.plans[call.subgraph][0].stacked
        whole = alike >= (self._max_rows(call.subgraph, key) if stacked else _UNSTACKED_ROWS)
        crowd = self._crowd.seen(waiting + under_way.all_rows, now)
        if under_way.steps == 0:
            self._idle_since = min(self._idle_since, now)
        if self._lasts >= LEAD_SECONDS or call.loop is not None:
            crowd = 0
        when = begins_at(under_way, waiting=waiting, whole=whole, now=now, crowd=crowd, since=self._idle_since)
        if now < when < NEVER:
            self._wake_at(when)
        return when <= now

    def _like(self, batch: Batch) -> Hashable:
        """By what steps are alike in the time they take: the batch key that its rows have where they may share a step.

        Those that run alone have others, which hold their request.
        """
        call, index = batch.owners[0]
        key = self.plans[batch.subgraph][0].batch_key(call.rows[index])
        return key if batch.loop is None else (batch.loop, key)

    def _turns(self, batch: Batch) -> tuple[int, ...]:
        """How many turns of a loop each row of a batch runs, in a step that ends in time; none where it is no loop."""
        wanted, loop = batch.turns, batch.loop
        if loop is None:
            return ()
        most = self._pace.turns(batch.subgraph, self._like(batch), len(batch), max(wanted), loop.slice_seconds)
        return tuple(min(turns, most) for turns in wanted)

    def _issue(self, conveyor: Conveyor, flight: Flight) -> bool:
        """Sends a step; False where it has to wait until others have ended."""
        batch, now = flight.batch, self._clock()
        if all(call.cancelled for call, _ in batch.owners):
            return True  # given up between two stages
        try:
            sent = self._sender.send(conveyor, flight, self.plans[batch.subgraph][flight.stage], now)
        except (BlobUnavailable, LimitExceeded) as error:
            self.part(batch, error)
            return True
        if sent:
            self.steps += 1
            self._joining.began(batch)
            if flight.stage == 0:
                turns = max(flight.turns, default=0)
                self._lasts = self._pace.expected(batch.subgraph, self._like(batch), len(batch), turns)
                self._idle_since = NEVER
                conveyor.began(len(batch), self._lasts, now)
        return sent

    # ----------------------------------------------------------------------------------------- what became of them

    def answered(self, finished: Finished[Flight]) -> None:
        """All ranks have answered a step: what it brought is not needed any more."""
        self._sender.finished(finished.item)

    def ran(self, finished: Finished[Flight]) -> None:
        """A step has given what it should."""
        batch, turns = finished.item.batch, max(finished.item.turns, default=0)
        ran = [reply.ran_us / 1e6 for reply in finished.replies.values()]
        # Ranks that share processors take long for a step beside the one before it; of one alone, the way is no part.
        seconds = max(min(ran), min(max(ran), finished.took))
        self._pace.ran(batch.subgraph, self._like(batch), len(batch), seconds, turns)
        if batch.apart is not None and finished.item.stage == len(self.plans[batch.subgraph]) - 1:
            batch.apart.ran()

    def ended(self, flight: Flight) -> None:
        """The rows of a step are back where they are wanted: those that waited for them may go."""
        self._joining.ended(flight.batch)

    def epoch_began(self) -> None:
        """The ranks are ready."""
        self._sender.began()

    def epoch_ended(self, overdue: Batch | None) -> None:
        """Nothing is under way any more.

        Args:
            overdue: the batch over which the epoch ended, because it was not done in time.
        """
        self._sender.ended()
        self._joining.clear()
        if overdue is not None:
            self._pace.overdue(overdue.subgraph, self._like(overdue), len(overdue))
        held, self._held = self._held, None
        if held is not None:
            self._batcher.put_back(held)


def settle(call: PendingCall, index: int, result: RowResult) -> None:
    """Gives a row of a call its result."""
    ticket = ticket_of(call)
    ticket.settle(ticket.places[index], result)

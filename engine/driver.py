"""One group at work: calls become batches, batches become numbered steps, replies become results.

No I/O of its own: what is to be sent goes through `GroupPorts`. Everything runs on one loop, nothing here blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..schemas.errors import (
    AttemptsExhausted,
    CollectiveFailed,
    LockstepError,
    ModelError,
    RankmqError,
)
from ..schemas.messages import (
    GraphInfo,
    GraphPlan,
    GroupId,
    GroupStatus,
    RankReply,
)
from .agreement import plan_all, rank_plans, stateful
from .batch import Batch
from .conveyor import Conveyor, Flight
from .feed import Feed, settle
from .group import Action, Began, Ended, GiveUp, Group, GroupRules, GroupState, Send
from .group_ports import GroupPorts
from .group_status import status_of
from .intake import pending_call, refusal
from .ledger import Finished
from .life import Life
from .loop import Loop
from .loop_plan import LoopPlan
from .loops import plan_loops
from .losses import losses_of, session_lost, ticket_of
from .plan import SubgraphPlan
from .results import rows_of, suspect_of
from .sender import StepSender
from .servable import Servable
from .slots import Session, Slots
from .stages import ranks_of_tag
from .ticket import Came, Done, RowResult, Ticket
from .topology import DEFAULT_LANE
from .waiting_line import WaitingLine

__all__ = ["Done", "GroupDriver", "GroupPorts", "RowResult"]

log = logging.getLogger(__name__)


class GroupDriver:
    """Runs the subgraph calls of one servable on one group.

    Args:
        servable: as loaded.
        group: the group's id.
        rules: what its life is governed by.
        ports: how it reaches the world.
        clock: seconds, monotonic.
        max_attempts: how many epochs may be lost under a call.
        max_message: largest message that the broker takes, in bytes.
        step_timeout: seconds after which an unanswered step is overdue.
    """

    def __init__(
        self,
        servable: Servable,
        group: GroupId,
        rules: GroupRules,
        ports: GroupPorts,
        clock: Callable[[], float],
        *,
        max_attempts: int,
        max_message: int,
        step_timeout: float,
    ) -> None:
        self.servable = servable
        self.group = Group(group, rules, self._agree, clock())
        self.id = group
        self.loops: dict[tuple[int, Loop], LoopPlan] = {}
        self.files: tuple[str, ...] = ()
        self.slots = Slots(servable.slots)
        self._ports = ports
        self._clock = clock
        self._max_attempts = max_attempts
        self._step_timeout = step_timeout
        sender = StepSender(group, ports, max_message)
        self._feed = Feed(servable, sender, clock, step_timeout, ports.wake_at)
        self._conveyor: Conveyor | None = None
        self._overdue: Batch | None = None
        self._began_once = False
        self._closed: RankmqError | None = None
        self._early: dict[Ticket, None] = {}
        self._unformed: WaitingLine[Callable[[], None]] = WaitingLine()
        self._stateful: frozenset[int] = frozenset()
        self._tickets: dict[Ticket, None] = {}

    # --------------------------------------------------------------------------------------------------- calls

    def call(
        self,
        subgraph: int,
        rows: Sequence[tuple[Any, ...]],
        done: Done,
        *,
        lenient: bool,
        requests: tuple[str, ...],
        session: Session | None = None,
        lane: str = DEFAULT_LANE,
        life: Life | None = None,
        alone: bool = False,
        loop: Loop | None = None,
        turns: Sequence[int] = (),
        came: Came | None = None,
    ) -> None:
        """Runs a subgraph over rows; `done` gets one result or error per row, in order.

        Args:
            subgraph: the servable-wide number.
            rows: per row the graph's inputs.
            done: called on the loop, once.
            lenient: whether values may be converted to the graph's dtypes.
            requests: ids, for logs and the task.
            session: the state on the ranks that the rows belong to, where the servable keeps any.
            lane: by which the request came: what is urgent overtakes what waits.
            life: of the request; when it ends, rows that wait leave, and what others make of them is dropped.
            alone: the rows share no step with others.
            loop: run it again and again, for a slice of turns: `done` gets what comes of it packed (see `Turned`).
            turns: of the loop, per row how many at most; where the ranks are slow, fewer are run.
            came: see `Ticket`.
        """
        if self._closed is not None or not rows:
            done([self._closed for _ in rows if self._closed is not None])
            return
        if session is not None and not self.slots.live(session):
            done([session_lost(session)] * len(rows))
            return
        life = life or Life()

        def settled(results: list[RowResult]) -> None:
            self._tickets.pop(ticket, None)
            life.forget(give_up)
            done(results)

        def give_up(reason: RankmqError) -> None:
            self._early.pop(ticket, None)
            if ticket.pending is not None:
                self._feed.cancel(ticket.pending)
            ticket.settle_all(reason)

        ticket = Ticket(
            subgraph,
            rows,
            lenient=lenient,
            requests=requests,
            done=settled,
            session=session,
            alone=alone,
            lane=lane,
            loop=loop,
            turns=turns,
            deadline=life.deadline,
            came=came,
        )
        self._tickets[ticket] = None
        life.watch(give_up)
        if self._began_once:
            self._admit(ticket)
            self._ports.pump_soon()
        else:
            self._early[ticket] = None  # the ranks that come to serve may have other graphs than those that first try

    def formed(self, then: Callable[[], None], life: Life) -> None:
        """Calls `then` once it is known what the graphs are: at once where an epoch has begun, or none ever will.

        When the life ends before that, it is called as well.
        """
        if self._began_once or self._closed is not None:
            then()
        else:
            self._unformed.add(then, life, then)

    def takes_slot(self, subgraph: int) -> bool:
        """Whether a call of a subgraph needs a session; known once the group has formed (see `formed`)."""
        return self.servable.slots > 0 and subgraph in self._stateful

    def refusals(self, subgraph: int, rows: Sequence[tuple[Any, ...]], *, lenient: bool) -> list[RankmqError | None]:
        """By row, what it would fail with even if it had a slot; known once the group has formed (see `formed`)."""
        plan = self._feed.plans[subgraph][0]
        return [refusal(plan, row, lenient=lenient) for row in rows]

    def _admit(self, ticket: Ticket) -> None:
        if ticket.is_over:
            return
        stages = self._feed.plans.get(ticket.subgraph)
        if stages is None:
            ticket.settle_all(ModelError(f"subgraph {ticket.subgraph}: the ranks hold {len(self._feed.plans)} graphs"))
            return
        loop = self.loops[ticket.subgraph, ticket.loop] if ticket.loop is not None else None
        ticket.pending = pending_call(ticket, stages[0], loop)
        if ticket.pending is not None:
            self._feed.add(ticket.pending)

    def fail_all(self, error: RankmqError) -> None:
        """Fails every call that is waiting or under way, and every one that is made from now on."""
        self._closed = error
        self._early.clear()
        self._feed.forget()
        self._run_unformed()
        for ticket in list(self._tickets):
            ticket.settle_all(error)
        self.slots.close()

    @property
    def outstanding(self) -> int:
        """Batches that are under way on the ranks."""
        return self._conveyor.outstanding if self._conveyor is not None else 0

    # --------------------------------------------------------------------------------------------------- steps

    @property
    def plans(self) -> Mapping[int, tuple[SubgraphPlan, ...]]:
        """By subgraph, stage by stage; none before the ranks are known."""
        return self._feed.plans

    @property
    def steps(self) -> int:
        """How many steps were sent, in all epochs."""
        return self._feed.steps

    def pump(self) -> None:
        """Issues as many steps as the lockstep window allows."""
        if self._conveyor is not None and self.group.state is GroupState.READY:
            self._feed.pump(self._conveyor)

    def replied(self, reply: RankReply) -> None:
        """A rank has run a step."""
        conveyor = self._conveyor
        if reply.group != self.id or conveyor is None or reply.epoch < conveyor.epoch:
            log.debug("late: a reply of rank %d of %s to step %d", reply.rank, reply.group, reply.step)
            return
        now = self._clock()
        try:
            finished = conveyor.reply(reply, now)
        except LockstepError as error:
            log.warning("refused: %s", error)
            if reply.epoch == conveyor.epoch:
                self._do(self.group.stuck([reply.rank], f"out of step: {error.message}", now))
            return
        if finished is not None:
            self._feed.answered(finished)
        self.group.progressed(reply.rank, reply.step, now)
        if reply.error is not None and reply.error.code == CollectiveFailed.code:
            self._collective_failed(reply, finished, f"rank {reply.rank}: {reply.error.message}", now)
            return
        if finished is not None:
            self._finish(conveyor, finished)
            self._feed.ended(finished.item)
        if self.group.state is GroupState.DRAINING and conveyor.outstanding == 0:
            self._do(self.group.drained(now))
        self.pump()

    def _collective_failed(self, reply: RankReply, finished: Finished[Flight] | None, reason: str, now: float) -> None:
        """A rank could not talk to the others: no fault of the rows, and the end of the epoch."""
        if finished is not None:
            self._try_again(finished.item.batch, reason)
        if reply.suspect is None:
            self._do(self.group.broken(reason, now))
        else:
            self._do(self.group.stuck([reply.suspect], reason, now))
        self.pump()

    def _finish(self, conveyor: Conveyor, finished: Finished[Flight]) -> None:
        flight, batch = finished.item, finished.item.batch
        try:
            rows = rows_of(finished, self._feed.plans[batch.subgraph][flight.stage])
        except RankmqError as error:
            self._feed.failed(flight, error, suspect_of(finished))
            return
        self._feed.ran(finished)
        if not conveyor.pass_on(flight, rows):
            for (call, index), row in zip(batch.owners, rows, strict=True):
                settle(call, index, row)

    # ------------------------------------------------------------------------------------------- the group's life

    def handle(self, happened: Callable[[Group, float], list[Action]]) -> None:
        """Tells the group what happened and does what follows from it."""
        self._do(happened(self.group, self._clock()))

    def rank_unreachable(self, tag: str) -> None:
        """A task for the ranks that a tag reaches came back: there is no queue."""
        if self.group.state not in (GroupState.READY, GroupState.DRAINING):
            return  # known already; who holds the rank now has a queue
        gone = ranks_of_tag(tag, self.group.rules.size, self.group.rules.stages)
        now = self._clock()
        self._do([action for rank in gone for action in self.group.lost(rank, "its queue is gone", now)])

    def tick(self) -> None:
        """Time passed."""
        now = self._clock()
        self._do(self.group.tick(now))
        if self._conveyor is not None and self.group.state in (GroupState.READY, GroupState.DRAINING):
            overdue = self._conveyor.overdue(now, self._step_timeout)
            if overdue is not None:
                flight, step, ranks = overdue
                self._overdue = flight.batch
                self._do(self.group.stuck(ranks, f"step {step} is overdue", now))

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._ports.send_control(action.tag, action.message)
                case Began():
                    self._began(action.epoch)
                case Ended():
                    self._ended(action.epoch, action.reason)
                case GiveUp():
                    self._ports.group_given_up(self, action.error)
        if self.group.state is GroupState.DRAINING and self.outstanding == 0:
            self._do(self.group.drained(self._clock()))

    def _began(self, epoch: int) -> None:
        log.info("%s is ready: epoch %d, %d ranks", self.id, epoch, self.group.rules.size, extra={"epoch": epoch})
        rules = self.group.rules
        self._conveyor = Conveyor(epoch, rules.size, rules.stages, rules.window)
        self._feed.epoch_began()
        self._began_once = True
        self.slots.began(epoch)
        early, self._early = self._early, {}
        for ticket in early:
            self._admit(ticket)
        self._run_unformed()
        self._ports.group_ready(self)
        self.pump()

    def _run_unformed(self) -> None:
        while self._unformed:
            self._unformed.take()()

    def _ended(self, epoch: int, reason: str) -> None:
        conveyor, self._conveyor = self._conveyor, None
        voided = conveyor.void() if conveyor is not None else []
        what = (self.id, epoch, len(voided), sum(map(len, voided)), reason)
        log.warning("%s: epoch %d ended, %d steps are void (%d rows): %s", *what, extra={"epoch": epoch})
        self._feed.epoch_ended(self._overdue)
        self._overdue = None
        for batch in voided:
            for call, _ in batch.owners:
                if (session := ticket_of(call).session) is not None:
                    session.suspect = True
        self._lose_sessions()
        for batch in voided:
            self._try_again(batch, reason)
        if conveyor is not None:
            self._ports.group_broken(self, reason)

    def _lose_sessions(self) -> None:
        """What the ranks held of anybody is gone: calls that build on it cannot be run again by themselves."""
        self.slots.ended()
        for ticket in [it for it in self._tickets if it.session is not None]:
            if ticket.pending is not None:
                self._feed.cancel(ticket.pending)
            ticket.settle_all(session_lost(ticket.session))

    def _try_again(self, batch: Batch, reason: str) -> None:
        """Rows under which the epoch was lost are put back, while they have attempts left."""
        losses = losses_of(batch, self._max_attempts)
        for again in losses.again:
            self._feed.put_back(again)
        for ticket, place, lost in losses.exhausted:
            ticket.settle(place, AttemptsExhausted(f"the group was lost {lost} times under it; last: {reason}"))

    def _agree(self, graphs: Mapping[int, Sequence[GraphInfo]]) -> Mapping[int, tuple[GraphPlan, ...]]:
        """Plans every subgraph from what the ranks hold.

        Raises:
            ModelError: the ranks do not fit together, or not to the configuration.
        """
        self._feed.plans = plans = plan_all(self.servable, self.id, graphs)
        self.loops = plan_loops(self.servable, plans)
        self._stateful = stateful(plans)
        self.files = tuple(graph.file for graph in next(iter(graphs.values())))
        return {rank: rank_plans(self.servable, plans, rank) for rank in graphs}

    def status(self) -> GroupStatus:
        """The group at a glance."""
        early = sum(len(ticket.rows) for ticket in self._early) + len(self._unformed)
        waiting = self._feed.waiting_rows + early
        return status_of(self.group, self.servable, self.slots, self.files, self.outstanding, waiting)

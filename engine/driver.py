"""One group at work: calls become batches, batches become numbered steps, replies become results.

No I/O of its own: what is to be sent goes through `GroupPorts`. Everything runs on one loop, nothing here blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..schemas.errors import (
    AttemptsExhausted,
    GraphFailed,
    InternalError,
    LimitExceeded,
    LockstepError,
    ModelError,
    OperatorError,
    RankmqError,
    ServingError,
    from_wire,
)
from ..schemas.messages import (
    Call,
    Column,
    Drain,
    Form,
    GraphInfo,
    GraphPlan,
    GroupId,
    GroupStatus,
    RankReply,
    Refused,
    Restart,
    Task,
    Welcome,
)
from ..schemas.tensors import nbytes
from .batcher import Batch, Batcher, PendingCall, Row
from .group import Action, Began, Ended, GiveUp, Group, GroupRules, GroupState, Send
from .ledger import Finished, StepLedger
from .plan import SubgraphPlan, make_plan
from .servable import Servable
from .topology import RANK_ALL, rank_tag

__all__ = ["GroupDriver", "GroupPorts", "RowResult"]

log = logging.getLogger(__name__)

RowResult = tuple[np.ndarray[Any, Any], ...] | RankmqError
Done = Callable[[list[RowResult]], None]

_UNSTACKED_ROWS = 64
"""Most rows in a step of a graph without a batch dimension: they run back to back, and others wait meanwhile."""

_STACKED_ROWS = 1024
"""Most rows in a step of a graph with a batch dimension of any size, where the configuration does not say."""

_TASK_OVERHEAD = 4096
"""Bytes that a task may take beside its tensors."""


class GroupPorts(Protocol):
    """How a group reaches the world."""

    def send_task(self, subgraph: int, tag: str, task: Task) -> None:
        """Publishes a task to the subgraph's exchange under a rank tag."""

    def send_control(self, tag: str, message: Welcome | Refused | Form | Drain | Restart) -> None:
        """Publishes a control message to the ranks that the tag reaches."""

    def group_ready(self, driver: GroupDriver) -> None:
        """The group serves."""

    def group_broken(self, driver: GroupDriver, reason: str) -> None:
        """The group does not serve any more, for now."""

    def group_given_up(self, driver: GroupDriver, error: OperatorError) -> None:
        """The group cannot form."""


@dataclass(eq=False, slots=True)
class _Ticket:
    """One call and its rows' results, as they come."""

    subgraph: int
    rows: Sequence[tuple[Any, ...]]
    lenient: bool
    requests: tuple[str, ...]
    done: Done
    results: list[RowResult | None]
    left: int
    epochs_lost: int = 0
    places: list[int] = field(default_factory=list)

    def settle(self, place: int, result: RowResult) -> None:
        if self.results[place] is None:
            self.results[place] = result
            self.left -= 1
            if self.left == 0:
                self.done([it for it in self.results if it is not None])


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
        self.plans: dict[int, SubgraphPlan] = {}
        self.files: tuple[str, ...] = ()
        self.steps = 0
        self._ports = ports
        self._clock = clock
        self._max_attempts = max_attempts
        self._max_message = max_message
        self._step_timeout = step_timeout
        self._batcher = Batcher(self._max_rows)
        self._ledger: StepLedger[Batch] | None = None
        self._early: list[_Ticket] = []
        self._tickets: dict[_Ticket, None] = {}

    # --------------------------------------------------------------------------------------------------- calls

    def call(
        self, subgraph: int, rows: Sequence[tuple[Any, ...]], done: Done, *, lenient: bool, requests: tuple[str, ...]
    ) -> None:
        """Runs a subgraph over rows; `done` gets one result or error per row, in order.

        Args:
            subgraph: the servable-wide number.
            rows: per row the graph's inputs.
            done: called on the loop, once.
            lenient: whether values may be converted to the graph's dtypes.
            requests: ids, for logs and the task.
        """

        def settled(results: list[RowResult]) -> None:
            self._tickets.pop(ticket, None)
            done(results)

        ticket = _Ticket(subgraph, rows, lenient, requests, settled, [None] * len(rows), len(rows))
        self._tickets[ticket] = None
        if self.plans:
            self._admit(ticket)
            self.pump()
        else:
            self._early.append(ticket)

    def _admit(self, ticket: _Ticket) -> None:
        plan = self.plans.get(ticket.subgraph)
        good: list[Row] = []
        for place, row in enumerate(ticket.rows):
            if plan is None:
                count = len(self.plans)
                ticket.settle(place, ModelError(f"subgraph {ticket.subgraph}: the ranks hold {count} graphs"))
                continue
            try:
                checked = plan.check_row([np.asarray(value) for value in row], lenient=ticket.lenient)
            except RankmqError as error:
                ticket.settle(place, error)
            else:
                good.append(checked)
                ticket.places.append(place)
        if good and plan is not None:
            keys = [plan.batch_key(row) for row in good]
            self._batcher.add(PendingCall(ticket.subgraph, good, keys, ticket, ticket.requests))

    def _max_rows(self, subgraph: int) -> int:
        plan = self.plans[subgraph]
        if not plan.stacked:
            return _UNSTACKED_ROWS
        wanted = self.servable.model_of(subgraph).batch_size or plan.static_rows or _STACKED_ROWS
        return min(wanted, plan.static_rows or wanted)

    def fail_all(self, error: RankmqError) -> None:
        """Fails every call that is waiting or under way; nothing of this group will be answered any more."""
        self._early.clear()
        self._batcher = Batcher(self._max_rows)
        for ticket in list(self._tickets):
            for place in range(len(ticket.results)):
                ticket.settle(place, error)

    @property
    def outstanding(self) -> int:
        """Steps that were sent and not finished."""
        return self._ledger.outstanding if self._ledger is not None else 0

    # --------------------------------------------------------------------------------------------------- steps

    def pump(self) -> None:
        """Issues as many steps as the lockstep window allows."""
        ledger = self._ledger
        while ledger is not None and self.group.state is GroupState.READY and ledger.can_issue():
            batch = self._batcher.take()
            if batch is None:
                return
            self._issue(ledger, batch)

    def _issue(self, ledger: StepLedger[Batch], batch: Batch) -> None:
        plan = self.plans[batch.subgraph]
        scattered = plan.scatter(batch.rows)
        largest = _size(scattered.replicated), max(map(_size, scattered.sharded), default=0)
        if max(largest) + _TASK_OVERHEAD > self._max_message:
            self._part(batch, LimitExceeded(f"a row of {max(largest)} bytes: the broker takes {self._max_message}"))
            return
        step = ledger.issue(batch, self._clock())
        self.steps += 1
        work = Call(subgraph=batch.subgraph, rows=len(batch), stacked=plan.stacked)
        parts = 2 if scattered.replicated and scattered.sharded else 1

        def task(part: int, columns: tuple[Column, ...]) -> Task:
            return Task(
                group=self.id,
                epoch=self.group.epoch,
                step=step,
                part=part,
                parts=parts,
                work=work,
                inputs=columns,
                requests=batch.requests,
            )

        if scattered.replicated or not scattered.sharded:
            self._ports.send_task(batch.subgraph, RANK_ALL, task(0, scattered.replicated))
        for rank, columns in zip(plan.ranks, scattered.sharded, strict=False):
            self._ports.send_task(batch.subgraph, rank_tag(rank), task(parts - 1, columns))

    def replied(self, reply: RankReply) -> None:
        """A rank has run a step."""
        ledger = self._ledger
        if reply.group != self.id or ledger is None:
            log.warning("refused a reply of rank %d of %s to step %d", reply.rank, reply.group, reply.step)
            return
        now = self._clock()
        try:
            finished = ledger.reply(reply, now)
        except LockstepError as error:
            log.warning("refused: %s", error)
            if reply.epoch == ledger.epoch:  # else it is only late news of an epoch that ended
                self._do(self.group.lost(reply.rank, f"out of step: {error.message}", now))
            return
        self.group.progressed(reply.rank, reply.step, now)
        if finished is not None:
            self._finish(finished)
        if self.group.state is GroupState.DRAINING and ledger.outstanding == 0:
            self._do(self.group.drained(now))
        self.pump()

    def _finish(self, finished: Finished[Batch]) -> None:
        batch = finished.item
        failed = next((reply for reply in finished.replies.values() if reply.error is not None), None)
        if failed is not None and failed.error is not None:
            error = from_wire(failed.error.code, f"rank {failed.rank}: {failed.error.message}")
            self._part(batch, error if isinstance(error, ServingError) else GraphFailed(error.message))
            return
        columns = {rank: reply.outputs for rank, reply in finished.replies.items()}
        try:
            rows = self.plans[batch.subgraph].gather(columns, len(batch))
        except RankmqError as error:
            self._part(batch, error)
            return
        for (call, index), row in zip(batch.owners, rows, strict=True):
            _settle(call, index, row)

    def _part(self, batch: Batch, error: RankmqError) -> None:
        """A batch failed: a single row has met its end; of more, each half is tried again by itself."""
        if len(batch) > 1:
            self._batcher.split(batch)
            return
        call, index = batch.owners[0]
        _settle(call, index, error)

    # ------------------------------------------------------------------------------------------- the group's life

    def handle(self, happened: Callable[[Group, float], list[Action]]) -> None:
        """Tells the group what happened and does what follows from it."""
        self._do(happened(self.group, self._clock()))

    def rank_unreachable(self, tag: str) -> None:
        """A message to a rank came back: its queue is gone."""
        if tag == RANK_ALL:
            self.handle(lambda group, now: group.broken("no rank's queue is there any more", now))
        else:
            rank = int(tag.rpartition(".")[2])
            self.handle(lambda group, now: group.lost(rank, "its queue is gone", now))

    def tick(self) -> None:
        """Time passed."""
        now = self._clock()
        self._do(self.group.tick(now))
        if self._ledger is not None and self.group.state in (GroupState.READY, GroupState.DRAINING):
            for step, ranks in self._ledger.overdue(now, self._step_timeout)[:1]:
                reason = f"step {step} is overdue"
                self._do([action for rank in ranks for action in self.group.lost(rank, reason, now)])

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
        self._ledger = StepLedger(epoch, range(self.group.rules.size), self.group.rules.window)
        early, self._early = self._early, []
        for ticket in early:
            self._admit(ticket)
        self._ports.group_ready(self)
        self.pump()

    def _ended(self, epoch: int, reason: str) -> None:
        ledger, self._ledger = self._ledger, None
        voided = ledger.void() if ledger is not None else []
        log.warning(
            "%s: epoch %d ended, %d steps are void: %s", self.id, epoch, len(voided), reason, extra={"epoch": epoch}
        )
        exhausted = self._count_lost(voided, reason)
        for batch in reversed(voided):
            self._batcher.put_back(batch)
        for call in exhausted:
            self._batcher.cancel(call)
        if ledger is not None:
            self._ports.group_broken(self, reason)

    def _count_lost(self, voided: Sequence[Batch], reason: str) -> list[PendingCall]:
        """Takes down that an epoch was lost under these calls; those that have had enough are failed and given back."""
        exhausted: list[PendingCall] = []
        for call in dict.fromkeys(call for batch in voided for call, _ in batch.owners):
            ticket: _Ticket = call.owner  # type: ignore[assignment]
            ticket.epochs_lost += 1
            if ticket.epochs_lost >= self._max_attempts:
                error = AttemptsExhausted(f"the group was lost {ticket.epochs_lost} times under it; last: {reason}")
                for place in ticket.places:
                    ticket.settle(place, error)
                exhausted.append(call)
        return exhausted

    def _agree(self, graphs: Mapping[int, Sequence[GraphInfo]]) -> Mapping[int, tuple[GraphPlan, ...]]:
        """Plans every subgraph from what the ranks hold.

        Raises:
            ModelError: the ranks do not fit together, or not to the configuration.
        """
        counts = {len(held) for held in graphs.values()}
        declared = self.servable.subgraph_count
        if len(counts) > 1:
            several = ", ".join(f"rank {rank} {len(held)}" for rank, held in sorted(graphs.items()))
            raise ModelError(f"{self.id}: the ranks hold different numbers of graphs: {several}")
        count = counts.pop()
        if declared is not None and declared != count:
            raise ModelError(f"{self.id}: the ranks hold {count} graphs, the configuration has {declared} subgraphs")
        ranks = tuple(sorted(graphs))
        plans = {}
        for subgraph in range(count):
            model, layouts = self.servable.model_of(subgraph), self.servable.subgraph(subgraph)
            plans[subgraph] = make_plan(
                subgraph,
                ranks=ranks,
                inputs=layouts.inputs,
                outputs=layouts.outputs,
                stacked=model.with_batch_dim,
                unstacked_inputs=frozenset(model.without_batch_dim_inputs),
                infos={rank: held[subgraph] for rank, held in graphs.items()},
                default_rank=model.result_rank,
            )
        self.plans = plans
        self.files = tuple(graph.file for graph in graphs[ranks[0]])
        return {
            rank: tuple(
                GraphPlan(
                    stacked=plan.stacked,
                    unstacked_inputs=tuple(sorted(plan.unstacked_inputs)),
                    returns=plan.returns(rank),
                )
                for plan in plans.values()
            )
            for rank in ranks
        }

    def status(self) -> GroupStatus:
        """The group at a glance."""
        group = self.group
        return GroupStatus(
            group=self.id,
            state=group.state.value,
            epoch=group.epoch,
            step=max(0, max((rank.step for rank in group.ranks()), default=-1) + 1),
            size=group.rules.size,
            stage_size=self.servable.stage_size,
            in_flight=self.outstanding,
            waiting=self._batcher.waiting_rows + sum(len(ticket.rows) for ticket in self._early),
            communication=group.communication,
            forming=group.forming(),
            subgraphs=self.files,
            methods=(*self.servable.methods, *self.servable.pipelines),
            ranks=group.ranks(),
        )


def _settle(call: PendingCall, index: int, result: RowResult) -> None:
    ticket = call.owner
    if not isinstance(ticket, _Ticket):
        raise InternalError(f"a call without its ticket: {call.owner!r}")
    ticket.settle(ticket.places[index], result)


def _size(columns: Sequence[Column]) -> int:
    return sum(nbytes(tensor) for column in columns for tensor in column.tensors)

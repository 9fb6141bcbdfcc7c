"""How a step goes out: cut into what each rank gets, put into shared memory where there is any, sent as tasks."""

from __future__ import annotations

from ..schemas.errors import LimitExceeded, RankmqError
from ..schemas.messages import GroupId
from .conveyor import Conveyor, Flight
from .group_ports import GroupPorts
from .plan import SubgraphPlan
from .plane import PlaneWriter
from .ring import Span
from .scatter import Scattered
from .step_blobs import StepWriter
from .tasks import largest_bytes, tasks_of
from .topology import RANK_ALL, stage_tag

__all__ = ["StepSender"]

_TASK_OVERHEAD = 4096
"""Bytes that a task may take beside its tensors."""


class StepSender:
    """Sends the steps of one group.

    Args:
        group: the group.
        ports: how it reaches the ranks.
        max_message: largest message that the broker takes, in bytes.
    """

    def __init__(self, group: GroupId, ports: GroupPorts, max_message: int) -> None:
        self._group = group
        self._ports = ports
        self._max_message = max_message
        self._plane: PlaneWriter | None = None
        self._blobs: StepWriter | None = None
        self._spans: dict[Flight, Span] = {}

    @property
    def most_bytes(self) -> int:
        """How many bytes of inputs a step may have for one rank."""
        return self._max_message if self._plane is None else max(self._max_message, self._plane.size)

    def refusal(self, least: int) -> LimitExceeded | None:
        """Why a row cannot be sent however it is put together; None where it may be.

        Args:
            least: how many bytes a rank would be sent for it, at least.
        """
        return self._too_large(least) if least > self.most_bytes and self._blobs is None else None

    def _too_large(self, nbytes: int) -> LimitExceeded:
        return LimitExceeded(f"a row of {nbytes} bytes: the broker takes {self._max_message}")

    def began(self) -> None:
        """An epoch began."""
        self._plane = self._ports.plane()
        self._blobs = self._ports.blobs()

    def ended(self) -> None:
        """The epoch ended: nothing that was sent is needed any more."""
        self._plane = None
        self._spans.clear()
        blobs, self._blobs = self._blobs, None
        if blobs is not None:
            blobs.ended()

    def send(self, conveyor: Conveyor, flight: Flight, plan: SubgraphPlan, now: float) -> bool:
        """Numbers and sends a step.

        Returns:
            False where it has to wait: the memory for what it brings is taken by steps that are under way, or it is
            being written to the blob store.

        Raises:
            LimitExceeded: it fits neither there nor into a message.
            BlobUnavailable: it does not fit into a message, and the blob store cannot be written.
        """
        blobs = self._blobs
        if blobs is not None:
            if blobs.is_writing(flight):
                return False
            written = blobs.take(flight)
            if written is not None:
                self._issue(conveyor, flight, plan, written[0], now, written[1])
                return True
        scattered = plan.scatter(flight.rows)
        parts = (scattered.replicated, *scattered.sharded)
        placed = self._plane.put(parts) if self._plane is not None else None
        if placed is not None:
            (replicated, *sharded), span = placed
            scattered = Scattered(replicated, tuple(sharded))
            self._spans[flight] = span
        elif self._plane is not None and self._plane.used and self._plane.needs(parts):
            return False
        elif blobs is not None and blobs.needs(scattered):
            blobs.write(flight, scattered)
            return False
        self._issue(conveyor, flight, plan, scattered, now)
        return True

    def _issue(
        self,
        conveyor: Conveyor,
        flight: Flight,
        plan: SubgraphPlan,
        scattered: Scattered,
        now: float,
        trouble: RankmqError | None = None,
    ) -> None:
        largest = largest_bytes(scattered)
        if largest + _TASK_OVERHEAD > self._max_message:
            self.finished(flight)
            raise trouble or self._too_large(largest)
        step = conveyor.issue(flight, now)
        tag = RANK_ALL if conveyor.stages == 1 else stage_tag(flight.stage)
        for to, task in tasks_of(flight, plan, scattered, group=self._group, epoch=conveyor.epoch, step=step, tag=tag):
            self._ports.send_task(flight.batch.subgraph, to, task)

    def finished(self, flight: Flight) -> None:
        """All ranks have answered a step: what it brought is not needed any more."""
        span = self._spans.pop(flight, None)
        if span is not None and self._plane is not None:
            self._plane.give_back(span)
        if self._blobs is not None:
            self._blobs.finished(flight)

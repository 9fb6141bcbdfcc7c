"""The I/O shell of one group: its exchanges and queues on the broker, and the driver behind them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from msgspec import structs

from ..schemas import codec
from ..schemas.errors import ConnectionLost, OperatorError, RankmqError
from ..schemas.messages import (
    Drain,
    Form,
    GroupId,
    GroupStatus,
    Heartbeat,
    Leave,
    LoadFailed,
    RankExited,
    RankReply,
    Ready,
    Refused,
    Register,
    Restart,
    StatusQuery,
    Task,
    ToOrchestrator,
    Welcome,
)
from . import retry, topology
from .confirms import Outcome
from .connection import Channel, Connection, Properties
from .delivery import Delivery
from .driver import GroupDriver, GroupPorts
from .filling import Gathering
from .group import GroupRules
from .group_plane import GroupPlane
from .lease import Lease
from .plane import PlaneWriter
from .servable import Servable
from .step_blobs import StepBlobs, StepWriter

__all__ = ["GroupLink", "LinkOwner"]

log = logging.getLogger(__name__)

_TAKE_OVER_SECONDS = 60.0


class LinkOwner(Protocol):
    """Who is told what becomes of a group."""

    def group_changed(self) -> None:
        """A group became ready or broke."""

    def give_up(self, error: OperatorError) -> None:
        """A group cannot form."""

    def guarded(self) -> AbstractContextManager[None]:
        """The top of whatever the loop runs: catches and logs defects."""


class GroupLink(GroupPorts):
    """Connects a group's driver to the broker.

    Args:
        servable: as loaded.
        group: the group's id.
        rules: what its life is governed by.
        owner: who is told what becomes of the group.
        max_attempts: how many epochs may be lost under a call.
        max_message: largest message that the broker takes, in bytes.
        step_timeout: seconds after which an unanswered step is overdue.
        plane_bytes: how much memory to share with ranks of this host.
        blobs: makes the group's access to the blob store, of how many ranks it has and what to call when a step can be
            sent that had to wait; None where there is no blob store.
    """

    def __init__(
        self,
        servable: Servable,
        group: GroupId,
        rules: GroupRules,
        owner: LinkOwner,
        *,
        max_attempts: int,
        max_message: int,
        step_timeout: float,
        plane_bytes: int,
        blobs: Callable[[int, Callable[[], None]], StepBlobs] | None = None,
    ) -> None:
        self._plane = GroupPlane(group, rules.size, plane_bytes)
        self._channel: Channel | None = None
        self._lease: Lease | None = None
        self._owner = owner
        self._control = topology.rank_control_exchange(group)
        self.group = group
        self.driver = GroupDriver(
            servable,
            group,
            rules,
            self,
            asyncio.get_running_loop().time,
            max_attempts=max_attempts,
            max_message=max_message,
            step_timeout=step_timeout,
        )
        self._blobs = None if blobs is None else blobs(rules.size, self.driver.pump)
        self._subgraphs = servable.subgraph_count or 0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._gathering = Gathering()

    @property
    def ready(self) -> bool:
        """Whether the group serves, and by us."""
        return self._channel is not None and self.driver.group.forming() is None

    async def serve(self, connection: Connection, orchestrator: str) -> None:
        """Waits for the group's lease, then declares its exchanges and queues, has the agents register, and listens.

        Args:
            connection: where.
            orchestrator: the name of the one that takes the group up.

        Raises:
            AlreadyRunning: the queues of the group's last orchestrator do not go away.
            BrokerRefused: a permission is missing.
            ConnectionLost: the connection ended meanwhile.
        """
        self._lease = Lease(connection, self.group)
        await self._lease.acquire()
        async for attempt in retry.taking_over(_TAKE_OVER_SECONDS):
            with attempt:
                channel = await connection.channel()
                await self._declare(channel)
        self._channel = channel
        # Without it the group would be deaf; the next session opens it again.
        channel.closed.add_done_callback(lambda _: asyncio.ensure_future(connection.close()))
        # Before anybody is heard: who reads it after its `Form` could not follow that epoch. Not mandatory: that nobody
        # is there yet is the usual case.
        welcome = Welcome(group=self.group, agent="*", orchestrator=orchestrator)
        channel.publish(self._control, topology.RANK_ALL, codec.encode(welcome), mandatory=False)
        for queue in (topology.results_queue(self.group), topology.control_queue(self.group)):
            await channel.consume(queue, self._on_message, no_ack=True, exclusive=True, properties=False)

    async def _declare(self, channel: Channel) -> None:
        # The group's exchanges are never deleted. Agents outlive an orchestrator, and their queues would lose their
        # bindings; and who publishes to an exchange that is gone loses its channel. They hold nothing, are as few as
        # the subgraphs of the versions that were ever served, and go when the broker starts anew: they are not durable.
        await channel.declare(topology.group_exchanges(self.group, self._subgraphs))
        await channel.declare(topology.orchestrator_queues(self.group))

    def release(self) -> None:
        """Lets a standby have the group at once."""
        if self._lease is not None:
            self._lease.release()

    def close(self) -> None:
        """Lets go of the memory that is shared with the ranks, and of what waits for time to pass."""
        self._plane.close()
        if self._timer is not None:
            self._timer.cancel()

    def tick(self) -> None:
        """Time passed."""
        if self._channel is not None:
            self.driver.tick()

    def status(self) -> GroupStatus:
        """The group at a glance."""
        status = self.driver.status()
        return status if self._channel is not None else structs.replace(status, state="standby")

    def _on_message(self, delivery: Delivery) -> None:
        with self._owner.guarded():
            try:
                message = codec.decode_to_orchestrator(delivery.body)
            except RankmqError as error:
                log.warning("refused a message on %s: %s", delivery.exchange, error.message)
                return
            self._dispatch(message)

    def _dispatch(self, message: ToOrchestrator) -> None:
        driver = self.driver
        if isinstance(message, StatusQuery) or message.group != self.group:
            group = "no group" if isinstance(message, StatusQuery) else message.group
            log.warning("refused a %s of %s on the queues of %s", type(message).__name__, group, self.group)
            return
        match message:
            case RankReply():
                self._replied(message)
            case Heartbeat():
                driver.handle(lambda group, now: group.heartbeat(message, now))
            case Register():
                log.info(
                    "rank %d of %s registers: pid %d on %s", *(message.rank, self.group, message.pid, message.host)
                )
                driver.handle(lambda group, now: group.registered(message, now))
            case Ready():
                self._plane.accept(message)
                if self._blobs is not None:
                    self._blobs.accept(message)
                driver.handle(lambda group, now: group.ready(message, now))
            case LoadFailed():
                driver.handle(lambda group, now: group.load_failed(message, now))
            case Leave():
                driver.handle(lambda group, now: group.leaving(message, now))
            case RankExited():
                driver.handle(lambda group, now: group.exited(message, now))

    def _replied(self, reply: RankReply) -> None:
        try:
            reply = self._plane.read(reply)
        except RankmqError as error:
            log.warning("refused: %s", error.message)  # the step will be overdue
            return
        if self._blobs is None:
            self.driver.replied(reply)
        else:
            self._blobs.read(reply, self.driver.replied)

    # ------------------------------------------------------------------------------------------ what the driver wants

    def plane(self) -> PlaneWriter | None:
        """The memory that is shared with all ranks of the epoch that begins."""
        return self._plane.writer()

    def blobs(self) -> StepWriter | None:
        """The blob store, for the epoch that begins."""
        return None if self._blobs is None else self._blobs.writer()

    def send_task(self, subgraph: int, tag: str, task: Task) -> None:
        """Publishes a task to the subgraph's exchange; a rank whose queue is gone is lost."""

        def then(outcome: Outcome) -> None:
            if outcome is Outcome.RETURNED and self.driver.group.epoch == task.epoch:
                with self._owner.guarded():
                    self.driver.rank_unreachable(tag)

        self._publish(topology.subgraph_exchange(self.group, subgraph), tag, codec.encode(task), then)

    def send_control(self, tag: str, message: Welcome | Refused | Form | Drain | Restart) -> None:
        """Publishes a control message to the ranks that the tag reaches."""
        if isinstance(message, Form):
            message = self._plane.offer(message)
            if self._blobs is not None:
                message = self._blobs.offer(message)
        if isinstance(message, Refused):
            who = (
                "all agents" if message.agent == "*" else f"agent {message.agent}, which asks for rank {message.rank},"
            )
            log.warning("refused %s of %s: %s", who, self.group, message.error.message)
        self._publish(self._control, tag, codec.encode(message), None)

    def _publish(self, exchange: str, tag: str, body: bytes, then: Callable[[Outcome], None] | None) -> None:
        if self._channel is None:
            return
        try:
            self._channel.publish(exchange, tag, body, Properties(content_type=codec.MSGPACK), then=then)
        except ConnectionLost as error:
            log.debug("not sent to %s: %s", tag, error.message)  # the session ends with its connection

    def pump_soon(self) -> None:
        """Has `GroupDriver.pump` called once the rows that come turn by turn of the loop are together."""
        if self._gathering.came(self._loop.time()):
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        if self._gathering.is_over(self._loop.time()):
            self._pump()
        else:
            self._loop.call_soon(self._look)

    def wake_at(self, when: float) -> None:
        """Has `GroupDriver.pump` called at a time of the loop's clock."""
        if self._timer is not None:
            if self._loop.time() < self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._pump)

    def _pump(self) -> None:
        with self._owner.guarded():
            self.driver.pump()

    def group_ready(self, driver: GroupDriver) -> None:
        """The group serves."""
        self._owner.group_changed()

    def group_broken(self, driver: GroupDriver, reason: str) -> None:
        """The group does not serve any more, for now."""
        self._owner.group_changed()

    def group_given_up(self, driver: GroupDriver, error: OperatorError) -> None:
        """The group cannot form."""
        self._owner.give_up(error)

"""What an orchestrator does over one connection to the broker, from declaring its queues to the connection's end.

All state that hangs on deliveries lives here: when the connection goes, the broker has every unacknowledged request
back, and the next session starts clean.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..schemas import codec
from ..schemas.errors import ConnectionLost, OperatorError
from ..schemas.messages import CancelReply, GroupId, QueueStatus, Status
from . import topology
from .answer_log import AnswerLog
from .answers import Answers
from .blob_keeper import BlobKeeper
from .catalog import Catalog
from .claims import Claims
from .connection import Connection, Properties
from .custody import Custody
from .delivery import Delivery
from .direct_replies import DirectReplies
from .edge_blobs import EdgeBlobs
from .front import Front, FrontOwner, Pools
from .group import GroupRules
from .link import GroupLink
from .open_request import OpenRequest
from .questions import Questions
from .rank_table import RankTable
from .servable import Servable
from .service import Service
from .settings import Settings
from .shared_file import FOLDER
from .step_blobs import StepBlobs
from .topology import QueueLimits

__all__ = ["Session"]

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.5


class Session(FrontOwner):
    """One connection's worth of an orchestrator.

    Args:
        orchestrator: its name.
        catalog: what is served.
        rank_tables: by servable name and version.
        group: the name of its group among the servable's replicas.
        settings: see `Settings`.
        pools: the threads for the servables' own Python.
        answers: what was answered; it outlives the connection.
        began: when the process began, as `time.time()`.
        direct: to find out which direct replies can be published.
        keeper: of the blob store; it outlives the connection. None where there is none.
    """

    def __init__(
        self,
        orchestrator: str,
        catalog: Catalog,
        rank_tables: Mapping[tuple[str, int], RankTable],
        group: str,
        settings: Settings,
        pools: Pools,
        answers: Answers,
        began: float,
        direct: DirectReplies,
        keeper: BlobKeeper | None = None,
    ) -> None:
        self._name = orchestrator
        self._catalog = catalog
        self._rank_tables = rank_tables
        self._group = group
        self._settings = settings
        self._pools = pools
        self._answers = answers
        self._began = began
        self._direct = direct
        self._keeper = keeper
        self._links: dict[tuple[str, int], GroupLink] = {}
        self._idle = asyncio.Event()
        self._serving: list[asyncio.Task[None]] = []
        self._stopping = False
        self._quiet_until = 0.0
        self._keeping: asyncio.Task[None] | None = None
        self._questions = Questions(self._status, self._tell, self.guarded)
        self.failure: OperatorError | None = None
        self.all_ready = asyncio.Event()

    # -------------------------------------------------------------------------------------------------------- opening

    async def open(self, connection: Connection) -> None:
        """Declares everything, starts to listen to the ranks, and welcomes those that are there.

        Raises:
            AlreadyRunning: another orchestrator serves one of the groups.
            ConfigurationError: a queue was declared before with other arguments.
            BrokerRefused: a permission is missing.
        """
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        settings = self._settings
        edge = await connection.channel(prefetch=settings.max_in_flight, vital=True)
        self._inner = await connection.channel(vital=True)
        names = tuple(dict.fromkeys(servable.name for servable in self._catalog))
        limits = QueueLimits(settings.max_queue_length, settings.max_queue_age)
        await edge.declare(topology.servable_queues(names, limits))
        for servable in self._catalog:
            if servable.models:
                self._links[servable.name, servable.version] = self._link(servable, connection.max_message)
        answers = self._answers
        hours, most = settings.remember_hours, 4 * settings.remember_bytes
        records = AnswerLog(connection, edge, answers, self._name, hours, most)
        claims = Claims(settings.max_body_bytes, FOLDER if settings.plane_bytes else None)
        self._front = Front(edge, records, self._pools, self, claims, self._direct)
        self.service = self._front.service = Service(
            self._catalog,
            {key: link.driver for key, link in self._links.items()},
            self._front,
            self._loop.time,
            time.time,
            limits=settings.limits,
            max_attempts=settings.max_attempts,
            max_deliveries=settings.max_deliveries,
            max_in_flight=settings.max_in_flight,
            max_message=connection.max_message,
            plane_bytes=settings.plane_bytes,
            answers=answers,
            blobs=self._edge_blobs(connection.max_message),
            processes=self._pools.processes,
        )
        await records.open()
        self._custody = Custody(edge, self._name, settings.hold_seconds, self._loop.time, time.time, self._front.take)
        await self._listen_for_questions()
        self._serving = [self._loop.create_task(self._serve(link)) for link in self._links.values()]
        self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)
        self._check_ready()
        self._consumer = asyncio.create_task(self._consume_as_wanted(names))

    def _edge_blobs(self, max_message: int) -> EdgeBlobs | None:
        keeper, settings = self._keeper, self._settings
        if keeper is None:
            return None
        return EdgeBlobs(
            keeper.store,
            self._front.in_blob_pool,
            keeper.discard,
            inline_limit=settings.inline_limit,
            most_bytes=settings.max_tensor_bytes,
            max_message=max_message,
        )

    async def _serve(self, link: GroupLink) -> None:
        try:
            await link.serve(self._connection, self._name)
        except ConnectionLost:
            return  # the session ends with its connection
        except OperatorError as error:
            self.give_up(error)

    def _link(self, servable: Servable, max_message: int) -> GroupLink:
        settings = self._settings
        rules = GroupRules(
            size=servable.rank_size,
            stages=servable.stage_size,
            shared_parameters=servable.shared_parameters,
            communication=servable.communication,
            rank_table=self._rank_tables[servable.name, servable.version].as_dict(),
            wait_seconds=settings.wait_agents_time_in_seconds,
            load_seconds=settings.load_timeout,
            heartbeat_seconds=settings.heartbeat_seconds,
            heartbeats_missed=settings.heartbeats_missed,
            window=settings.lockstep_window,
        )
        group = GroupId(servable=servable.name, version=servable.version, group=self._group)
        return GroupLink(
            servable,
            group,
            rules,
            self,
            max_attempts=settings.max_attempts,
            max_message=max_message,
            step_timeout=settings.step_timeout,
            plane_bytes=settings.plane_bytes,
            blobs=None if self._keeper is None else partial(self._step_blobs, self._keeper),
        )

    def _step_blobs(self, keeper: BlobKeeper, size: int, written: Callable[[], None]) -> StepBlobs:
        def in_pool(work: Callable[[], Any], done: Callable[[Any], None]) -> None:
            self._front.in_blob_pool(work, done)

        limit = self._settings.inline_limit
        return StepBlobs(keeper.store, in_pool, keeper.delete, limit=limit, size=size, written=written)

    async def _listen_for_questions(self) -> None:
        await self._inner.declare(topology.status(self._name))
        await self._inner.consume(topology.status_queue(self._name), self._on_question, no_ack=True)

    # -------------------------------------------------------------------------------------------------------- requests

    async def _consume_as_wanted(self, names: tuple[str, ...]) -> None:
        """Takes requests of the servables whose groups are ready, and of those only."""
        with self.guarded():
            while not self._connection.closed.done():
                await self._front.changed.wait()
                self._front.changed.clear()
                wanted = {
                    topology.requests_queue(name, lane)
                    for name in names
                    for lane in topology.LANES
                    if not self._stopping and self._is_ready(name)
                }
                if self.all_ready.is_set() and not self._stopping:
                    wanted.add(topology.UNROUTED)
                await self._front.consume(wanted)

    def _is_ready(self, name: str) -> bool:
        return all(link.ready for (it, _), link in self._links.items() if it == name)

    def _check_ready(self) -> None:
        if all(link.ready for link in self._links.values()):
            self.all_ready.set()
        self._front.changed.set()

    def request_ended(self) -> None:
        """A request has its terminal outcome."""
        if self._stopping and not self.service.in_flight:
            self._idle.set()

    def epoch_of(self, open_: OpenRequest) -> int | None:
        """The epoch of the group that a request was for."""
        context = open_.context
        link = self._links.get((context.servable.name, context.servable.version)) if context is not None else None
        return link.driver.group.epoch if link is not None else None

    def run_guarded(self, work: Callable[[], None]) -> None:
        """Runs something at the top of the loop: a defect is logged, and ends the session."""
        with self.guarded():
            work()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """The top of whatever the loop runs for us: a defect is logged, and ends the session rather than hang it."""
        try:
            yield
        except ConnectionLost as error:
            log.debug("not done: %s", error.message)  # the session ends with its connection
        except Exception:
            log.exception("a defect: the session starts again")
            self._loop.create_task(self._connection.close())

    # ---------------------------------------------------------------------------------------------------- the groups

    def group_changed(self) -> None:
        """A group became ready or broke."""
        self._check_ready()

    def give_up(self, error: OperatorError) -> None:
        """A group cannot form: the orchestrator ends with this error."""
        self.failure = self.failure or error
        self._loop.create_task(self._connection.close())

    def _tick(self) -> None:
        with self.guarded():
            settings, now = self._settings, self._loop.time()
            self._probe()
            if self._connection.blocked:  # nobody's messages come through: that the ranks are silent says nothing
                self._quiet_until = now + settings.heartbeat_seconds * settings.heartbeats_missed
            elif now >= self._quiet_until:
                for link in self._links.values():
                    link.tick()
            if self._keeping is None or self._keeping.done():
                self._keeping = self._loop.create_task(self._keep())
        self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _probe(self) -> None:
        """Publishes something to nobody: a broker that is short of memory tells only those who publish."""
        with contextlib.suppress(ConnectionLost):
            self._inner.publish("", topology.status_queue(self._name), b"", mandatory=False)

    async def _keep(self) -> None:
        with self.guarded():
            await self._custody.tick(self.service.requests)

    # --------------------------------------------------------------------------------------------------------- status

    def _on_question(self, delivery: Delivery) -> None:
        with self.guarded():
            if delivery.exchange == topology.CANCEL:
                self._cancel(delivery)
            elif delivery.exchange == topology.STATUS:
                self._questions.ask(delivery)

    def _cancel(self, delivery: Delivery) -> None:
        """Gives up the request that the message's correlation id names, and says so to whoever asked."""
        asked = delivery.properties
        if not isinstance(asked.correlation_id, str):
            log.warning("refused a cancel: its correlation_id is to name the request")
            return
        state = self.service.cancel(asked.correlation_id)
        # What changes nothing here anybody may send in any number.
        level = logging.INFO if state == "cancelled" else logging.DEBUG
        log.log(level, "asked to cancel %s: %s", asked.correlation_id, state, extra={"request": asked.correlation_id})
        if isinstance(asked.reply_to, str) and asked.reply_to:
            content_type = codec.JSON if asked.content_type == codec.JSON else codec.MSGPACK
            reply = CancelReply(orchestrator=self._name, id=asked.correlation_id, state=state)
            properties = Properties(content_type=content_type, correlation_id=asked.message_id, app_id="rankmq")
            self._tell(asked.reply_to, codec.encode_cancel_reply(reply, content_type), properties)

    def _tell(self, reply_to: str, body: bytes, properties: Any) -> None:
        def tell() -> None:
            try:
                self._inner.publish("", reply_to, body, properties)
            except ConnectionLost as error:
                log.debug("not told: %s", error.message)

        self._direct.when_safe(reply_to, tell)

    async def _status(self) -> Status:
        channel = await self._connection.channel(confirm=False)
        names = dict.fromkeys(servable.name for servable in self._catalog)
        queues = [topology.requests_queue(name, lane) for name in names for lane in topology.LANES]
        try:
            depths = [await channel.depth(name) for name in (*queues, topology.UNROUTED, topology.DEAD)]
        finally:
            await channel.close()
        return Status(
            orchestrator=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            uptime_seconds=round(time.time() - self._began, 3),
            in_flight=self.service.in_flight - self.service.waiting,
            waiting=self.service.waiting,
            max_in_flight=self._settings.max_in_flight,
            served=self.service.served,
            failed=self.service.failed,
            groups=tuple(link.status() for link in self._links.values()),
            queues=tuple(
                QueueStatus(name=depth.name, messages=depth.messages, consumers=depth.consumers) for depth in depths
            ),
        )

    # --------------------------------------------------------------------------------------------------------- ending

    async def drain(self, timeout: float) -> int:
        """Takes nothing more, finishes what runs, hands the rest back.

        Args:
            timeout: seconds that what runs may take.

        Returns:
            How many requests were handed back.
        """
        self._stopping = self._front.stopping = True
        self._front.changed.set()
        handed = self.service.hand_back_waiting()
        if self.service.in_flight:
            finished: asyncio.Future[Any] = asyncio.ensure_future(self._idle.wait())
            ends: list[asyncio.Future[Any]] = [finished, self._connection.closed]
            await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finished.cancel()
        handed += self.service.hand_back_all()
        if not self.service.in_flight and not self._connection.closed.done():
            await self._front.settle()
        for link in self._links.values():
            link.release()
        return handed

    def close(self) -> None:
        """Ends what runs: threads that wait for the ranks get `ConnectionLost`. The connection stays its owner's."""
        self._stopping = True
        if hasattr(self, "_timer"):
            self._timer.cancel()
        if hasattr(self, "_consumer"):
            self._consumer.cancel()
        self._questions.close()
        for task in self._serving:
            task.cancel()
        ended = ConnectionLost("the orchestrator's connection to the broker ended")
        for link in self._links.values():
            link.driver.fail_all(ended)
            link.close()
        if hasattr(self, "_front"):
            self._front.close()
            self.service.close(ended)

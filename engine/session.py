"""What an orchestrator does over one connection to the broker, from declaring its queues to the connection's end.

All state that hangs on deliveries lives here: when the connection goes, the broker has every unacknowledged request
back, and the next session starts clean.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from ..schemas import codec
from ..schemas.errors import ConnectionLost, OperatorError
from ..schemas.messages import GroupId, QueueStatus, Status
from . import topology
from .catalog import Catalog
from .confirms import Outcome
from .connection import Channel, Connection, Properties
from .delivery import Delivery
from .group import GroupRules
from .link import GroupLink
from .rank_table import RankTable
from .servable import Servable
from .service import Service
from .settings import Settings

__all__ = ["Session"]

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.5
_MIB = 1024 * 1024


class Session:
    """One connection's worth of an orchestrator.

    Args:
        orchestrator: its name.
        catalog: what is served.
        rank_tables: by servable name and version.
        group: the name of its group among the servable's replicas.
        settings: see `Settings`.
        stages: the threads for the functions of methods.
        pipelines: the threads for pipelines.
        began: when the process began, as `time.time()`.
    """

    def __init__(
        self,
        orchestrator: str,
        catalog: Catalog,
        rank_tables: Mapping[tuple[str, int], RankTable],
        group: str,
        settings: Settings,
        stages: ThreadPoolExecutor,
        pipelines: ThreadPoolExecutor,
        began: float,
    ) -> None:
        self._name = orchestrator
        self._catalog = catalog
        self._rank_tables = rank_tables
        self._group = group
        self._settings = settings
        self._stages = stages
        self._pipelines = pipelines
        self._began = began
        self._links: dict[tuple[str, int], GroupLink] = {}
        self._idle = asyncio.Event()
        self._serving: list[asyncio.Task[None]] = []
        self._consuming: dict[str, str] = {}
        self._stopping = False
        self._wake = asyncio.Event()
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
        max_message = (16 if connection.server_version >= (4,) else 128) * _MIB
        self._edge = await connection.channel(prefetch=self._settings.max_in_flight, vital=True)
        self._inner = await connection.channel(vital=True)
        names = tuple(dict.fromkeys(servable.name for servable in self._catalog))
        await self._edge.declare(topology.servable_queues(names))
        for servable in self._catalog:
            if servable.models:
                self._links[servable.name, servable.version] = self._link(servable, max_message)
        self.service = Service(
            self._catalog,
            {key: link.driver for key, link in self._links.items()},
            self,
            self._loop.time,
            limits=self._settings.limits,
            max_attempts=self._settings.max_attempts,
            max_message=max_message,
        )
        await self._listen_for_status()
        self._serving = [self._loop.create_task(self._serve(link)) for link in self._links.values()]
        self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)
        self._check_ready()
        self._consumer = asyncio.create_task(self._consume_as_wanted(names))

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
        )

    async def _listen_for_status(self) -> None:
        queue = topology.status_queue(self._name)
        await self._inner.declare(
            (
                topology.Queue(queue, durable=False, exclusive=True),
                topology.Binding(queue, topology.STATUS),
            )
        )
        await self._inner.consume(queue, self._on_status_query, no_ack=True)

    # -------------------------------------------------------------------------------------------- requests, in and out

    async def _consume_as_wanted(self, names: tuple[str, ...]) -> None:
        """Takes requests of the servables whose groups are ready, and of those only."""
        with self.guarded():
            while not self._connection.closed.done():
                await self._wake.wait()
                self._wake.clear()
                wanted = {
                    topology.requests_queue(name, lane)
                    for name in names
                    for lane in topology.LANES
                    if not self._stopping and self._is_ready(name)
                }
                if self.all_ready.is_set() and not self._stopping:
                    wanted.add(topology.UNROUTED)
                for queue in wanted - self._consuming.keys():
                    await self._consume(queue)
                for queue in self._consuming.keys() - wanted:
                    await self._edge.cancel(self._consuming.pop(queue))

    async def _consume(self, queue: str) -> None:
        def cancelled() -> None:
            log.warning("the broker ended our consumer of %s", queue)
            self._consuming.pop(queue, None)
            self._wake.set()

        self._consuming[queue] = await self._edge.consume(queue, self._on_request, cancelled=cancelled)

    def _is_ready(self, name: str) -> bool:
        return all(link.ready for (it, _), link in self._links.items() if it == name)

    def _check_ready(self) -> None:
        if all(link.ready for link in self._links.values()):
            self.all_ready.set()
        self._wake.set()

    def _on_request(self, delivery: Delivery) -> None:
        with self.guarded():
            if self._stopping:
                self._edge.hand_back(delivery.tag)  # it was on its way when the consumer was cancelled
            else:
                self.service.receive(delivery)

    def reply(self, delivery: Delivery, body: bytes, content_type: str, then: Callable[[Outcome], None]) -> None:
        """Publishes the reply to a request, to the queue that it named."""
        asked = delivery.properties
        if not isinstance(asked.reply_to, str):  # bytes, where it is not UTF-8: no queue is called that
            then(Outcome.RETURNED)
            return
        properties = Properties(
            message_id=uuid.uuid4().hex,  # not made of the request's, which may be of any length and there twice
            correlation_id=asked.correlation_id or asked.message_id,
            content_type=content_type,
            delivery_mode=2,
            timestamp=int(time.time()),
            app_id="rankmq",
        )
        self._publish(self._edge, "", asked.reply_to, body, properties, then)

    def dead_letter(self, delivery: Delivery, headers: Mapping[str, Any], then: Callable[[Outcome], None]) -> None:
        """Publishes the request itself to the dead-letter exchange."""
        asked = delivery.properties
        properties = Properties(
            message_id=asked.message_id or headers.get("rankmq-request"),
            correlation_id=asked.correlation_id,
            reply_to=asked.reply_to,
            content_type=asked.content_type,
            priority=asked.priority,
            timestamp=int(time.time()),
            delivery_mode=2,
            headers={**delivery.headers, **headers},
        )
        key = delivery.routing_key if isinstance(delivery.routing_key, str) else ""  # bytes, where it is not UTF-8
        self._publish(self._edge, topology.DEAD, key or "unknown", delivery.body, properties, then)

    def request_ended(self) -> None:
        """A request has its terminal outcome."""
        if self._stopping and not self.service.in_flight:
            self._idle.set()

    def ack(self, delivery: Delivery) -> None:
        """Acknowledges the delivery."""
        self._edge.ack(delivery.tag)

    def hand_back(self, delivery: Delivery) -> None:
        """Gives the delivery back to its queue."""
        self._edge.hand_back(delivery.tag)

    def _publish(
        self,
        channel: Channel,
        exchange: str,
        key: str,
        body: bytes,
        properties: Any,
        then: Callable[[Outcome], None] | None,
    ) -> None:
        try:
            channel.publish(exchange, key, body, properties, then=then)
        except ConnectionLost:
            if then is not None:
                then(Outcome.LOST)

    # -------------------------------------------------------------------------------------------------------- threads

    def in_pool(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Runs `work` on a thread for the functions of methods, then `done` with its result on the loop."""
        self._in(self._stages, work, done)

    def in_pipeline_pool(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """The same on a thread for pipelines."""
        self._in(self._pipelines, work, done)

    def _in(self, pool: ThreadPoolExecutor, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        def run() -> None:
            result = work()
            self.on_loop(lambda: done(result))

        pool.submit(run).add_done_callback(_report)

    def on_loop(self, work: Callable[[], None]) -> None:
        """Runs `work` on the loop; may be called from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._run_guarded, work)

    def _run_guarded(self, work: Callable[[], None]) -> None:
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
            for link in self._links.values():
                link.tick()
        self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)

    # --------------------------------------------------------------------------------------------------------- status

    def _on_status_query(self, delivery: Delivery) -> None:
        with self.guarded():
            self._loop.create_task(self._tell_status(delivery))

    async def _tell_status(self, delivery: Delivery) -> None:
        status = await self._status()
        reply_to = delivery.properties.reply_to
        if reply_to:
            properties = Properties(
                content_type=codec.MSGPACK, correlation_id=delivery.properties.correlation_id, app_id="rankmq"
            )
            self._publish(self._inner, "", reply_to, codec.encode(status), properties, None)

    async def _status(self) -> Status:
        channel = await self._connection.channel(confirm=False)
        names = dict.fromkeys(servable.name for servable in self._catalog)
        queues = [topology.requests_queue(name, lane) for name in names for lane in topology.LANES]
        depths = [await channel.depth(name) for name in (*queues, topology.UNROUTED, topology.DEAD)]
        await channel.close()
        return Status(
            orchestrator=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            uptime_seconds=round(time.time() - self._began, 3),
            in_flight=self.service.in_flight,
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
        self._stopping = True
        self._wake.set()
        if self.service.in_flight:
            finished: asyncio.Future[Any] = asyncio.ensure_future(self._idle.wait())
            ends: list[asyncio.Future[Any]] = [finished, self._connection.closed]
            await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finished.cancel()
        handed = self.service.hand_back_all()
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
        for task in self._serving:
            task.cancel()
        ended = ConnectionLost("the orchestrator's connection to the broker ended")
        for link in self._links.values():
            link.driver.fail_all(ended)
        if hasattr(self, "service"):
            self.service.close(ended)


def _report(future: Future[None]) -> None:
    """A thread of ours that raised has a defect: what it ran catches everything that a servable can raise."""
    error = future.exception()
    if error is not None:
        log.error("a defect on a thread", exc_info=error)

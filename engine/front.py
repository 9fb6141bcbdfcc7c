"""The side of an orchestrator that producers see: its consumers of the requests queues, its replies, its threads."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ..schemas.errors import ConnectionLost, InvalidInput, RankmqError
from ..schemas.messages import Answered
from . import topology
from .answer_log import AnswerLog
from .carriers import Pipelines, report_defect
from .claims import Claims
from .confirms import Outcome
from .connection import Channel, Properties
from .dead_headers import deaths_of, headers_of
from .delivery import Delivery
from .direct_replies import DirectReplies, is_direct
from .open_request import OpenRequest
from .service import Service, ServicePorts
from .stage_processes import StageProcesses

__all__ = ["Front", "FrontOwner", "Pools"]

log = logging.getLogger(__name__)

_MOST_UNCONFIRMED = 512
"""Publishes that the broker has not confirmed; above that parts are not worth sending."""

_MOST_UNCONFIRMED_BYTES = 16 << 20
"""Of parts that the broker has not confirmed: what it is slow to read is in our memory."""


@dataclass(frozen=True, slots=True)
class Pools:
    """The threads on which the servables' own Python runs, and what else must not hold up the loop.

    Attributes:
        stages: for the functions of methods.
        pipelines: for pipelines.
        blobs: to read and write the blob store.
        processes: for functions of methods, in place of threads; None: there are none.
    """

    stages: ThreadPoolExecutor
    pipelines: Pipelines
    blobs: ThreadPoolExecutor
    processes: StageProcesses | None = None


class FrontOwner(Protocol):
    """What the front needs of the session that it is part of."""

    def run_guarded(self, work: Callable[[], None]) -> None:
        """Runs something at the top of the loop: a defect is logged, and ends the session."""

    def request_ended(self) -> None:
        """A request has its outcome, or the broker has it back."""

    def epoch_of(self, open_: OpenRequest) -> int | None:
        """The epoch of the group that a request was for."""


class Front(ServicePorts):
    """The I/O of the service.

    Args:
        channel: for the consumers and the replies.
        records: the log of answers, on the same channel.
        pools: the threads.
        owner: the session.
        claims: to bodies that are not in their messages; None where there are none.
        direct: to ask who hears direct replies; None where that is not known.
    """

    def __init__(
        self,
        channel: Channel,
        records: AnswerLog,
        pools: Pools,
        owner: FrontOwner,
        claims: Claims | None = None,
        direct: DirectReplies | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._records = records
        self._pools = pools
        self._owner = owner
        self._claims = claims
        self._direct = direct
        self._consuming: dict[str, str] = {}
        self._reading: list[Delivery] | None = None
        self._bytes_of_parts = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._later: dict[object, asyncio.TimerHandle] = {}
        self.service: Service
        self.stopping = False
        self.changed = asyncio.Event()

    # ------------------------------------------------------------------------------------------------------- consumers

    async def consume(self, wanted: Iterable[str]) -> None:
        """Has consumers of these queues, and of no others."""
        wanted = set(wanted)
        if wanted - self._consuming.keys():
            await self._catch_up()  # whoever served them until now may have answered what is published again
        for queue in wanted - self._consuming.keys():
            await self._consume(queue)
        for queue in self._consuming.keys() - wanted:
            await self._channel.cancel(self._consuming.pop(queue))

    async def _consume(self, queue: str) -> None:
        def cancelled() -> None:
            log.warning("the broker ended our consumer of %s", queue)
            self._consuming.pop(queue, None)
            self.changed.set()

        self._consuming[queue] = ""
        self._consuming[queue] = await self._channel.consume(queue, self._on_request, cancelled=cancelled)

    def _on_request(self, delivery: Delivery) -> None:
        self._owner.run_guarded(lambda: self.take(delivery))

    def take(self, delivery: Delivery) -> None:
        """Takes a request; one that somebody had before, after a look into the log of answers."""
        if self.stopping:
            self._channel.hand_back(delivery.tag)  # it was on its way when the consumer was cancelled
            return
        reply_to = delivery.properties.reply_to
        if self._direct is not None and isinstance(reply_to, str) and self._direct.is_safe(reply_to) is not True:
            self._do(self._try_out(delivery, self._direct, reply_to))
            return
        if self._claims is not None:
            delivery = self._claims.taken(delivery)
        if self._reading is not None:
            self._reading.append(delivery)
        elif (delivery.redelivered or deaths_of(delivery.headers)) and not self.service.knows(delivery):
            self._reading = [delivery]  # whoever had it before may have answered it
            self._do(self._read_first())
        else:
            self.service.receive(delivery)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)  # a loop itself does not hold its tasks
        task.add_done_callback(self._tasks.discard)

    async def _try_out(self, delivery: Delivery, direct: DirectReplies, reply_to: str) -> None:
        """A request whose answer is to go where none went yet."""
        if not await direct.try_out(reply_to):
            properties = copy.copy(delivery.properties)
            properties.reply_to = None
            fault = InvalidInput(f"reply_to {reply_to!r:.80} is no name for direct replies that the broker can read")
            delivery = dataclasses.replace(delivery, properties=properties, fault=delivery.fault or fault)
        self._owner.run_guarded(lambda: self.take(delivery))

    async def _read_first(self) -> None:
        await self._catch_up()
        held, self._reading = self._reading or [], None
        for delivery in held:
            if self.stopping:
                self._channel.hand_back(delivery.tag)
            else:
                self._owner.run_guarded(lambda delivery=delivery: self.service.receive(delivery))  # type: ignore[misc]

    async def _catch_up(self) -> None:
        try:
            await self._records.catch_up()
        except RankmqError as error:
            log.warning("the log of answers cannot be read: %s", error.message)

    # ---------------------------------------------------------------------------------------------------- AnswerPorts

    def reply(self, delivery: Delivery, body: bytes, content_type: str, then: Callable[[Outcome], None]) -> None:
        """Publishes the reply to a request, to the queue that it named."""
        asked = delivery.properties
        if not isinstance(asked.reply_to, str):  # bytes, where it is not UTF-8: no queue is called that
            then(Outcome.RETURNED)
            return
        headers, claims = None, self._claims
        if claims is not None:
            headers, body = claims.given(delivery.headers, body)
        correlation = asked.correlation_id or asked.message_id
        properties = Properties(
            headers=headers,
            message_id=_reply_id(asked.message_id, asked.reply_to, correlation),
            correlation_id=correlation,
            content_type=content_type,
            delivery_mode=2,
            timestamp=int(time.time()),
            app_id="rankmq",
            type="reply",
        )

        def told(outcome: Outcome) -> None:
            # One that is lost may be with the broker all the same.
            if claims is not None and outcome in (Outcome.RETURNED, Outcome.REJECTED):
                claims.take_back(delivery.headers, headers)
            then(outcome)

        try:
            self._channel.publish("", asked.reply_to, body, properties, then=told)
        except ConnectionLost:  # it was never sent
            if claims is not None:
                claims.take_back(delivery.headers, headers)
            then(Outcome.LOST)

    def heard(self, reply_to: str, then: Callable[[bool], None]) -> None:
        """Asks whether a reply can reach anybody there: of a direct reply the broker says nothing."""
        direct = self._direct
        if direct is None or not is_direct(reply_to):
            then(True)
            return

        async def ask() -> None:
            heard = await direct.hears(reply_to)
            self._owner.run_guarded(lambda: then(heard))

        self._do(ask())

    def part(self, delivery: Delivery, body: bytes, content_type: str) -> None:
        """Publishes a part of the answer, on the channel of the answers, which so come behind it."""
        asked = delivery.properties
        if not isinstance(asked.reply_to, str) or not self.takes_parts():
            return
        properties = Properties(
            correlation_id=asked.correlation_id or asked.message_id,
            content_type=content_type,
            delivery_mode=1,
            timestamp=int(time.time()),
            app_id="rankmq",
            type="part",
        )
        size = len(body)

        def gone(_: Outcome) -> None:
            self._bytes_of_parts -= size

        with contextlib.suppress(ConnectionLost):
            self._channel.publish("", asked.reply_to, body, properties, mandatory=False, then=gone)
            self._bytes_of_parts += size

    def takes_parts(self) -> bool:
        """Whether a part that is published now would go out; may be called from any thread, for a guess."""
        return (
            not self._channel.blocked
            and self._channel.unconfirmed <= _MOST_UNCONFIRMED
            and self._bytes_of_parts < _MOST_UNCONFIRMED_BYTES
        )

    def dead_letter(
        self, open_: OpenRequest, error: RankmqError, last: RankmqError | None, then: Callable[[Outcome], None]
    ) -> None:
        """Publishes the request itself to the dead-letter exchange."""
        delivery, asked = open_.delivery, open_.delivery.properties
        headers = headers_of(
            error,
            request=open_.id,
            attempts=open_.attempts,
            exchange=delivery.exchange,
            routing_key=delivery.routing_key,
            headers=delivery.headers,
            now=time.time(),
            epoch=self._owner.epoch_of(open_),
            last=last,
        )
        properties = Properties(
            message_id=asked.message_id or headers.get("rankmq-request"),
            correlation_id=asked.correlation_id,
            reply_to=asked.reply_to,
            content_type=asked.content_type,
            content_encoding=asked.content_encoding,
            type=asked.type,
            app_id=asked.app_id,
            priority=asked.priority,
            timestamp=int(time.time()),
            delivery_mode=2,
            headers=headers,
        )
        key = delivery.routing_key if isinstance(delivery.routing_key, str) else ""  # bytes, where it is not UTF-8
        self._publish(topology.DEAD, key or "unknown", delivery.body, properties, then)

    def answered(self, answered: Answered) -> None:
        """Puts it on record that a request was answered."""
        self._records.add(answered)

    def ack(self, delivery: Delivery) -> None:
        """Acknowledges the delivery."""
        self._channel.ack(delivery.tag)

    def hand_back(self, delivery: Delivery) -> None:
        """Gives the delivery back to its queue."""
        self._channel.hand_back(delivery.tag)

    def request_ended(self) -> None:
        """A request has its outcome, or the broker has it back."""
        self._owner.request_ended()

    def _publish(self, exchange: str, key: str, body: bytes, properties: Any, then: Callable[[Outcome], None]) -> None:
        try:
            self._channel.publish(exchange, key, body, properties, then=then)
        except ConnectionLost:
            then(Outcome.LOST)

    # ------------------------------------------------------------------------------------------- time and threads

    def wake_at(self, when: float) -> None:
        """Has `Service.tick` called at a time of the loop's clock."""
        if self._timer is not None:
            if self._timer.when() <= when and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._owner.run_guarded(self.service.tick)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        """Runs `work` on the loop, so many seconds from now."""
        key = object()  # and not the handle, which holds what it calls

        def run() -> None:
            del self._later[key]
            self._owner.run_guarded(work)

        self._later[key] = self._loop.call_later(seconds, run)

    def in_pool(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Runs `work` on a thread for the functions of methods, then `done` with its result on the loop."""
        self._in(self._pools.stages, work, done)

    def in_pipeline_pool(self, kind: Hashable, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """The same where pipelines run."""
        self._pools.pipelines.submit(kind, partial(self._work, work, done))

    def in_blob_pool(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """The same on a thread that may wait for the blob store."""
        self._in(self._pools.blobs, work, done)

    def _in(self, pool: ThreadPoolExecutor, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        pool.submit(self._work, work, done).add_done_callback(report_defect)

    def _work(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        result = work()
        self.on_loop(lambda: done(result))

    def on_loop(self, work: Callable[[], None]) -> None:
        """Runs `work` on the loop; may be called from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._owner.run_guarded, work)

    # --------------------------------------------------------------------------------------------------------- ending

    async def settle(self) -> None:
        """Everything is answered or handed back: says so in the log of answers."""
        await self._records.close()

    def close(self) -> None:
        """Ends what waits for time to pass."""
        self.stopping = True
        if self._claims is not None:
            self._claims.close()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        for handle in self._later.values():
            handle.cancel()


def _reply_id(message_id: Any, reply_to: str, correlation: Any) -> str:
    """An id for a reply: should it have to be sent twice, it is the same, by whomever it is sent."""
    if not message_id:
        return uuid.uuid4().hex
    text = f"{message_id!r} {reply_to} {correlation!r}"  # of any length, and the id must be short
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()

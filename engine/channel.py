"""One AMQP channel: declares, consumes, publishes with the broker's word on each publish."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from ..schemas.errors import BrokerUnavailable, ConnectionLost, LimitExceeded, RankmqError
from .acks import Acks
from .amqp_headers import size_of
from .confirms import Confirms, Outcome
from .delivery import Delivery
from .topology import Binding, Exchange, Queue, Topology

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Channel", "QueueDepth"]

log = logging.getLogger(__name__)

_RPC_SECONDS: Final = 30.0
_DIRECT_REPLY: Final = "amq.rabbitmq.reply-to"
_FRAME_OVERHEAD: Final = 3072
"""Bytes that a message's other properties and the frame itself may take beside the headers."""


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many messages wait in a queue, and how many consumers it has."""

    name: str
    messages: int
    consumers: int


class Channel:
    """One channel of a connection; `closed` is done, with the reason, once it is gone.

    Args:
        connection: whose it is.
        driver: the driver's channel.
    """

    def __init__(self, connection: Connection, driver: Any) -> None:
        self._connection = connection
        self._driver = driver
        self._loop = connection.loop
        self._waiting: set[asyncio.Future[Any]] = set()
        self._confirms: Confirms | None = None
        self._prefetch = 0
        self._acks = Acks()
        self.closed: asyncio.Future[RankmqError] = self._loop.create_future()

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return bool(self._driver.is_open)

    @property
    def blocked(self) -> bool:
        """Whether the broker takes nothing at present: what is published waits in our memory."""
        return self._connection.blocked

    @property
    def unconfirmed(self) -> int:
        """How many publishes the broker has not answered yet."""
        return len(self._confirms) if self._confirms is not None else 0

    # ------------------------------------------------------------------------------------------------- queues and such

    async def declare(self, topology: Topology) -> None:
        """Declares exchanges, queues and bindings, in their order.

        Raises:
            AlreadyRunning: an exclusive queue is held by another connection.
            ConfigurationError: declared before with other arguments.
            BrokerRefused: a permission is missing.
        """
        for item in topology:
            match item:
                case Exchange():
                    await self._rpc(
                        self._driver.exchange_declare,
                        exchange=item.name,
                        exchange_type=item.kind,
                        durable=item.durable,
                        arguments=item.arguments,
                    )
                case Queue():
                    await self._rpc(
                        self._driver.queue_declare,
                        queue=item.name,
                        durable=item.durable,
                        exclusive=item.exclusive,
                        arguments=item.arguments,
                    )
                case Binding():
                    await self._rpc(
                        self._driver.queue_bind, queue=item.queue, exchange=item.exchange, routing_key=item.key
                    )

    async def reply_queue(self) -> str:
        """Declares an exclusive queue under a name that the broker makes up, and gives the name."""
        frame = await self._rpc(self._driver.queue_declare, queue="", exclusive=True)
        name: str = frame.method.queue
        return name

    async def depth(self, queue: str) -> QueueDepth:
        """How many messages wait in a queue that exists.

        Raises:
            BrokerUnavailable: there is no such queue; the channel is closed then.
        """
        frame = await self._rpc(self._driver.queue_declare, queue=queue, passive=True)
        return QueueDepth(queue, frame.method.message_count, frame.method.consumer_count)

    async def has_exchange(self, name: str) -> bool:
        """Whether there is an exchange of this name; if not, the channel is closed by the question."""
        try:
            await self._rpc(self._driver.exchange_declare, exchange=name, passive=True)
        except BrokerUnavailable:
            return False
        return True

    async def delete_exchanges(self, names: Iterable[str]) -> None:
        """Deletes exchanges; one that is not there is no error."""
        for name in names:
            await self._rpc(self._driver.exchange_delete, exchange=name)

    async def delete_queue(self, name: str) -> None:
        """Deletes a queue and what is in it; one that is not there is no error."""
        await self._rpc(self._driver.queue_delete, queue=name)

    # -------------------------------------------------------------------------------------------------------- consumers

    async def consume(
        self,
        queue: str,
        handler: Callable[[Delivery], None],
        *,
        no_ack: bool = False,
        exclusive: bool = False,
        offset: int | float | str | None = None,
        cancelled: Callable[[], None] | None = None,
        prefetch: int | None = None,
        properties: bool = True,
    ) -> str:
        """Starts a consumer; `handler` runs on the loop for each message.

        Args:
            queue: where from; `amq.rabbitmq.reply-to` for direct replies.
            handler: must not block.
            no_ack: the broker forgets a message once it is sent.
            exclusive: no other consumer may share the queue.
            offset: of a stream, where to begin: an entry's number, seconds since 1970 as a float, or "first", "next".
            cancelled: called when the broker ends the consumer, as when the queue is deleted.
            prefetch: how many deliveries it may hold unacknowledged, 0 for any number; None for the channel's own.
            properties: whether they are wanted; else they are None in all deliveries.

        Returns:
            The consumer's tag.
        """
        delivered = self._acks.delivered

        def on_message(_: Any, it: Any, found: Any, body: bytes) -> None:
            if not no_ack:
                delivered(it.delivery_tag)
            handler(Delivery(body, it.delivery_tag, it.exchange, it.routing_key, it.redelivered, found))

        tag: list[str] = []

        def on_cancel(frame: Any) -> None:
            if cancelled is not None and frame.method.consumer_tag in tag:
                cancelled()

        since = datetime.fromtimestamp(offset, UTC) if isinstance(offset, float) else offset
        arguments = None if since is None else {"x-stream-offset": since}

        def start(callback: Callable[[Any], None]) -> None:
            tag.append(
                self._driver.basic_consume(
                    queue,
                    on_message,
                    auto_ack=no_ack,
                    exclusive=exclusive,
                    arguments=arguments,
                    callback=callback,
                )
            )
            if not properties:
                self._connection.leave_out_properties(tag[0])

        self._driver.add_on_cancel_callback(on_cancel)
        if prefetch is not None:
            await self._bound(prefetch)
        await self._rpc(start)
        if prefetch is not None:
            await self._bound(self._prefetch)
        return tag[0]

    async def _bound(self, count: int) -> None:
        await self._rpc(self._driver.basic_qos, prefetch_count=count)

    async def cancel(self, tag: str) -> None:
        """Ends a consumer; deliveries that are unacknowledged stay so."""
        await self._rpc(self._driver.basic_cancel, tag)

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        """Acknowledges a delivery; nothing on a closed channel, where the broker has taken it back already.

        Args:
            tag: the delivery's.
            multiple: and all those before it.
        """
        if not self._driver.is_open:
            return
        if multiple:
            self._acks.all_to(tag)
            self._connection.acknowledge(self._driver, tag, multiple=True)
        elif self._acks.add(tag):
            self._connection.say_last(self.write_acks)

    def write_acks(self) -> None:
        """Says what is acknowledged: usually at the end of a turn of the loop, all of that turn together."""
        said = self._acks.take()
        if self._driver.is_open:
            for tag, multiple in said:
                self._connection.acknowledge(self._driver, tag, multiple=multiple)

    def hand_back(self, tag: int) -> None:
        """Gives a delivery back to its queue; nothing on a closed channel."""
        if self._driver.is_open:
            self._driver.basic_reject(tag, requeue=True)
            self._acks.handed_back(tag)

    # -------------------------------------------------------------------------------------------------------- publishes

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: Any = None,
        *,
        mandatory: bool = True,
        then: Callable[[Outcome], None] | None = None,
    ) -> None:
        """Publishes; `then` is called on the loop with what became of it.

        A direct reply is never mandatory: RabbitMQ 3.10 returns one although it was delivered.

        Args:
            exchange: where to; "" straight to the queue that the key names.
            routing_key: with which key.
            body: the message's bytes.
            properties: its AMQP properties, which are left as they are.
            mandatory: whether it comes back where no queue is bound for it.
            then: called once, on the loop; without confirms never.

        Raises:
            ConnectionLost: the channel is closed.
            LimitExceeded: properties that AMQP cannot carry, or headers over which the broker would close the
                connection.
        """
        if not self._driver.is_open:
            raise ConnectionLost("the channel to the broker is closed")
        mandatory = mandatory and not routing_key.startswith(_DIRECT_REPLY)
        message_id = properties.message_id if properties is not None else None
        if self._confirms is not None and mandatory and message_id is None:
            message_id = f"rankmq-{self._confirms.next_tag()}"
        headers = properties.headers if properties is not None else None
        if headers and size_of(headers) > self._connection.frame_max - _FRAME_OVERHEAD:
            raise LimitExceeded(f"headers larger than a frame, which has {self._connection.frame_max} bytes")
        try:
            self._connection.publish(
                self._driver, exchange, routing_key, body, properties, message_id, mandatory=mandatory
            )
        except (struct.error, UnicodeError, RecursionError) as error:
            raise LimitExceeded(f"properties that AMQP cannot carry: {error}") from error
        if self._confirms is not None:
            self._confirms.published((exchange, routing_key, message_id), then)

    def publish_from_thread(self, exchange: str, routing_key: str, body: bytes, properties: Any) -> bool:
        """Publishes from any thread, on a channel without confirms, whose loop need not be woken for it.

        What one thread publishes so stays in its order, as long as it publishes in no other way.

        Args:
            exchange: where to.
            routing_key: with which key.
            body: the message's bytes.
            properties: its AMQP properties.

        Returns:
            Whether it was done; if not, as on a closed channel or over TLS, it is for `publish`, on the loop.
        """
        if self._confirms is not None or not self._driver.is_open:
            return False
        return self._connection.publish_from_thread(self._driver, exchange, routing_key, body, properties)

    async def publish_confirmed(
        self, exchange: str, routing_key: str, body: bytes, properties: Any = None, *, timeout: float = _RPC_SECONDS
    ) -> Outcome:
        """Publishes, and waits for the broker's word.

        Raises:
            ConnectionLost: the channel is closed, or nothing came within `timeout` seconds.
            LimitExceeded: properties that AMQP cannot carry.
        """
        done: asyncio.Future[Outcome] = self._loop.create_future()
        self.publish(exchange, routing_key, body, properties, then=_setter(done))
        try:
            return await asyncio.wait_for(done, timeout)
        except TimeoutError:
            raise ConnectionLost(f"the broker did not confirm a message within {timeout:g} s") from None

    def _on_return(self, _: Any, method: Any, properties: Any, __: bytes) -> None:
        route = method.exchange, method.routing_key, properties.message_id
        if self._confirms is None or not self._confirms.returned(route):
            log.warning("returned without a record: %s to %s %s", method.reply_text, *route[:2])

    def _on_confirm(self, tag: int, multiple: bool, positive: bool) -> None:  # as it comes
        if self._confirms is not None:
            self._confirms.answered(tag, multiple=multiple, positive=positive)

    # ----------------------------------------------------------------------------------------------------- opening, end

    async def open(self, opened: asyncio.Future[Any], *, confirm: bool, prefetch: int) -> None:
        """Makes it ready for use; for `Connection.channel`.

        Args:
            opened: done when the driver's channel is open.
            confirm: publishes are confirmed by the broker.
            prefetch: how many deliveries may be unacknowledged per consumer; 0 for any number.

        Raises:
            ConnectionLost: the broker did not answer, or the connection is gone.
        """
        await self._answer(opened)
        if confirm:
            self._driver.add_on_return_callback(self._on_return)
            self._connection.tell_confirms(self._driver, self._on_confirm)
            await self._rpc(lambda callback: self._driver.confirm_delivery(lambda _: None, callback))
            self._confirms = Confirms()
        if prefetch:
            self._prefetch = prefetch
            await self._bound(prefetch)

    async def close(self, timeout: float = 5.0) -> None:
        """Closes it, and waits for the broker's word at most `timeout` seconds."""
        if self._driver.is_open:
            self.write_acks()
            self._driver.close()
            await asyncio.wait([self.closed], timeout=timeout)

    async def _rpc(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.closed.done():
            raise self.closed.result()
        done: asyncio.Future[Any] = self._loop.create_future()
        with self._connection.mapped_errors():
            method(*args, **kwargs, callback=_setter(done))
        return await self._answer(done)

    async def _answer(self, done: asyncio.Future[Any]) -> Any:
        self._waiting.add(done)
        try:
            return await asyncio.wait_for(done, _RPC_SECONDS)
        except TimeoutError:
            raise ConnectionLost(f"the broker did not answer within {_RPC_SECONDS:g} s") from None
        finally:
            self._waiting.discard(done)

    def ended(self, reason: RankmqError) -> None:
        """It is gone: all who wait for something of it are told; for `Connection`."""
        if self.closed.done():
            return
        self.closed.set_result(reason)
        for future in list(self._waiting):
            if not future.done():
                future.set_exception(reason)
        if self._confirms is not None:
            self._confirms.lost()


def _setter(future: asyncio.Future[Any]) -> Callable[[Any], None]:
    return lambda result: None if future.done() else future.set_result(result)

"""One AMQP connection on one asyncio loop: the only module that knows pika.

A `Connection` belongs to the loop on which it was opened; other threads reach it by `loop.call_soon_threadsafe`. No
compute runs on that loop, so heartbeats are never starved. The driver's errors become ours here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import pika
import pika.exceptions
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils import connection_workflow
from pika.channel import Channel as PikaChannel

from ..schemas.errors import (
    AlreadyRunning,
    BrokerRefused,
    BrokerUnavailable,
    ConfigurationError,
    ConnectionLost,
    InternalError,
    LimitExceeded,
    RankmqError,
)
from . import retry
from .address import BrokerAddress
from .confirms import Confirms, Outcome
from .delivery import Delivery
from .topology import Binding, Exchange, Queue, Topology

__all__ = ["Channel", "Connection", "Properties", "QueueDepth", "map_error"]

log = logging.getLogger(__name__)

# pika logs every refused socket with a traceback; what matters of it is in the error that we raise.
logging.getLogger("pika").setLevel(logging.CRITICAL)

_RPC_SECONDS: Final = 30.0
_DIRECT_REPLY: Final = "amq.rabbitmq.reply-to"

Properties = pika.BasicProperties


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many messages wait in a queue, and how many consumers it has."""

    name: str
    messages: int
    consumers: int


def map_error(error: BaseException) -> RankmqError:
    """Our error for one of the driver's.

    Args:
        error: anything that pika, its connection workflow, `ssl` or the socket layer raises or reports.
    """
    if isinstance(error, RankmqError):
        return error
    if isinstance(error, connection_workflow.AMQPConnectionWorkflowFailed):
        return map_error(error.exceptions[-1])
    if isinstance(error, connection_workflow.AMQPConnectorPhaseErrorBase):
        return map_error(error.exception)
    if (
        isinstance(error, pika.exceptions.AMQPConnectionError)
        and error.args
        and isinstance(error.args[0], BaseException)
    ):
        return map_error(error.args[0])
    text = " ".join(str(error).split()) or type(error).__name__
    match error:
        case pika.exceptions.ProbableAuthenticationError() | pika.exceptions.AuthenticationError():
            return BrokerRefused("the broker refuses this user or password: check the broker URL")
        case pika.exceptions.ProbableAccessDeniedError():
            return BrokerRefused("the broker refuses this virtual host to this user: check the broker URL")
        case pika.exceptions.ConnectionClosedByBroker() if error.reply_code in (403, 530):
            return BrokerRefused(_access(error.reply_text))
        case pika.exceptions.ConnectionClosedByBroker():
            return BrokerUnavailable(f"the broker closed the connection: {error.reply_code} {error.reply_text}")
        case pika.exceptions.ChannelClosedByBroker():
            return _channel_error(error.reply_code, error.reply_text)
        case pika.exceptions.BodyTooLongError() | pika.exceptions.ShortStringTooLong():
            return LimitExceeded(text)
        case pika.exceptions.IncompatibleProtocolError() | pika.exceptions.ProtocolVersionMismatch():
            return BrokerUnavailable("what answers there does not speak AMQP 0-9-1 (a TLS port wants an amqps URL)")
        case ssl.SSLCertVerificationError():
            return BrokerRefused(f"the broker's certificate is not trusted: {error.verify_message}")
        case ssl.SSLError():
            return BrokerRefused(f"TLS with the broker failed: {error.reason or text}")
        case pika.exceptions.AMQPHeartbeatTimeout():
            return BrokerUnavailable("the broker missed its heartbeats")
        case pika.exceptions.AMQPConnectionError() | connection_workflow.AMQPConnectorException() | OSError():
            return BrokerUnavailable(f"no broker answers ({text})")
        case pika.exceptions.AMQPChannelError() | pika.exceptions.AMQPError():
            return ConnectionLost(f"the connection to the broker broke: {text}")
        case _:
            return InternalError(f"{type(error).__name__}: {text}")


def _channel_error(code: int, text: str) -> RankmqError:
    match code:
        case 403:
            return BrokerRefused(_access(text))
        case 404:
            return BrokerUnavailable(f"not on this broker: {text} (has an orchestrator ever been started there?)")
        case 405:
            return AlreadyRunning(f"somebody else holds it: {text}")
        case 406 if "max size" in text or "larger than" in text:
            return LimitExceeded(text)
        case 406:
            return ConfigurationError(
                f"declared before with other arguments: {text}; delete it, or use another virtual host"
            )
        case _:
            return ConnectionLost(f"the broker closed the channel: {code} {text}")


def _access(text: str) -> str:
    return f"the broker refuses a permission: {text}"


class Connection:
    """One connection; `closed` is done, with the reason, once it is gone."""

    def __init__(self, driver: AsyncioConnection, loop: asyncio.AbstractEventLoop) -> None:
        self._driver = driver
        self._loop = loop
        self._channels: set[Channel] = set()
        self.closed: asyncio.Future[RankmqError] = loop.create_future()
        self.blocked = False

    @classmethod
    async def open(
        cls,
        address: BrokerAddress,
        *,
        name: str,
        patience: float = 0.0,
        heartbeat: int = 10,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Connection:
        """Connects, with retries while nobody answers.

        Args:
            address: where and as whom.
            name: shown in the broker's list of connections.
            patience: seconds to go on trying; 0 tries once.
            heartbeat: seconds; the broker may ask for less.
            stopped: asked between attempts; True gives up at once.

        Raises:
            BrokerUnavailable: nobody answered in time.
            BrokerRefused: wrong user, password, virtual host or certificate.
        """
        async for attempt in retry.connecting(patience, stopped):
            with attempt:
                return await cls._open_once(address, name, heartbeat)
        raise AssertionError("unreachable: the policy re-raises")

    @classmethod
    async def _open_once(cls, address: BrokerAddress, name: str, heartbeat: int) -> Connection:
        loop = asyncio.get_running_loop()
        context = address.ssl_context()
        parameters = pika.ConnectionParameters(
            host=address.host,
            port=address.port,
            virtual_host=address.vhost,
            credentials=pika.PlainCredentials(address.user, address.password, erase_on_connect=False),
            ssl_options=pika.SSLOptions(context, address.host) if context else None,
            heartbeat=heartbeat,
            socket_timeout=10,
            stack_timeout=15,
            blocked_connection_timeout=None,
            client_properties={"connection_name": name, "product": "rankmq"},
        )
        opened: asyncio.Future[AsyncioConnection] = loop.create_future()
        self_box: list[Connection] = []

        def failed(_: Any, error: BaseException) -> None:
            if not opened.done():
                opened.set_exception(_at(map_error(error), address))

        def on_close(_: Any, error: BaseException) -> None:
            if self_box:
                self_box[0]._on_close(error)
            elif not opened.done():
                opened.set_exception(_at(map_error(error), address))

        driver = AsyncioConnection(
            parameters,
            on_open_callback=lambda it: None if opened.done() else opened.set_result(it),
            on_open_error_callback=failed,
            on_close_callback=on_close,
            custom_ioloop=loop,
        )
        await opened
        connection = cls(driver, loop)
        self_box.append(connection)
        driver.add_on_connection_blocked_callback(lambda *_: connection._set_blocked(True))
        driver.add_on_connection_unblocked_callback(lambda *_: connection._set_blocked(False))
        return connection

    def _set_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        log.warning(
            "the broker %s", "is short of memory or disk and takes no messages" if blocked else "takes messages again"
        )

    def _on_close(self, error: BaseException) -> None:
        reason = map_error(error)
        for channel in list(self._channels):
            channel._on_close(reason)
        if not self.closed.done():
            self.closed.set_result(reason)

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return bool(self._driver.is_open)

    @property
    def server_version(self) -> tuple[int, ...]:
        """The broker's version, as (3, 10, 8)."""
        text = str((self._driver.server_properties or {}).get("version", "0"))
        return tuple(int(part) for part in text.split("-")[0].split(".") if part.isdigit())

    async def channel(self, *, confirm: bool = True, prefetch: int = 0) -> Channel:
        """Opens a channel.

        Args:
            confirm: publishes are confirmed by the broker.
            prefetch: how many deliveries may be unacknowledged per consumer; 0 for any number.

        Raises:
            ConnectionLost: the connection is gone.
        """
        if not self.is_open:
            raise ConnectionLost("the connection to the broker is closed")
        opened: asyncio.Future[PikaChannel] = self._loop.create_future()
        driver = self._driver.channel(on_open_callback=lambda it: None if opened.done() else opened.set_result(it))
        channel = Channel(self, driver, self._loop)
        self._channels.add(channel)
        driver.add_on_close_callback(lambda _, error: channel._on_close(map_error(error)))
        channel._waiting.add(opened)
        try:
            await asyncio.wait_for(opened, _RPC_SECONDS)
        finally:
            channel._waiting.discard(opened)
        if confirm:
            await channel._confirm()
        if prefetch:
            await channel._rpc(driver.basic_qos, prefetch_count=prefetch)
        return channel

    async def close(self, timeout: float = 5.0) -> None:
        """Closes it, and waits for the broker's word at most `timeout` seconds."""
        if self.closed.done():
            return
        if self._driver.is_open:
            self._driver.close()
        await asyncio.wait([self.closed], timeout=timeout)


def _at(error: RankmqError, address: BrokerAddress) -> RankmqError:
    if isinstance(error, BrokerUnavailable | BrokerRefused):
        return type(error)(f"{address}: {error.message}")
    return error


class Channel:
    """One channel of a connection; `closed` is done, with the reason, once it is gone."""

    def __init__(self, connection: Connection, driver: PikaChannel, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._driver = driver
        self._loop = loop
        self._waiting: set[asyncio.Future[Any]] = set()
        self._confirms: Confirms | None = None
        self.closed: asyncio.Future[RankmqError] = loop.create_future()

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return bool(self._driver.is_open)

    @property
    def unconfirmed(self) -> int:
        """How many publishes the broker has not answered yet."""
        return len(self._confirms) if self._confirms is not None else 0

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

    async def delete_exchanges(self, names: Iterable[str]) -> None:
        """Deletes exchanges; one that is not there is no error."""
        for name in names:
            await self._rpc(self._driver.exchange_delete, exchange=name)

    async def consume(
        self,
        queue: str,
        handler: Callable[[Delivery], None],
        *,
        no_ack: bool = False,
        exclusive: bool = False,
        cancelled: Callable[[], None] | None = None,
    ) -> str:
        """Starts a consumer; `handler` runs on the loop for each message.

        Args:
            queue: where from; `amq.rabbitmq.reply-to` for direct replies.
            handler: must not block.
            no_ack: the broker forgets a message once it is sent.
            exclusive: no other consumer may share the queue.
            cancelled: called when the broker ends the consumer, as when the queue is deleted.

        Returns:
            The consumer's tag.
        """

        def on_message(_: Any, method: Any, properties: Any, body: bytes) -> None:
            handler(
                Delivery(body, method.delivery_tag, method.exchange, method.routing_key, method.redelivered, properties)
            )

        if cancelled is not None:
            told = cancelled
            self._driver.add_on_cancel_callback(lambda _: told())
        tag: list[str] = []

        def start(callback: Callable[[Any], None]) -> None:
            tag.append(
                self._driver.basic_consume(queue, on_message, auto_ack=no_ack, exclusive=exclusive, callback=callback)
            )

        await self._rpc(start)
        return tag[0]

    async def cancel(self, tag: str) -> None:
        """Ends a consumer; deliveries that are unacknowledged stay so."""
        await self._rpc(self._driver.basic_cancel, tag)

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

        Raises:
            ConnectionLost: the channel is closed.
        """
        if not self._driver.is_open:
            raise ConnectionLost("the channel to the broker is closed")
        mandatory = mandatory and not routing_key.startswith(_DIRECT_REPLY)
        properties = properties or pika.BasicProperties()
        if self._confirms is not None and mandatory and properties.message_id is None:
            properties.message_id = str(self._confirms.next_tag())
        try:
            self._driver.basic_publish(exchange, routing_key, body, properties, mandatory)
        except pika.exceptions.AMQPError as error:
            raise map_error(error) from error
        if self._confirms is not None:
            self._confirms.published(properties.message_id, then)

    async def publish_confirmed(
        self, exchange: str, routing_key: str, body: bytes, properties: Any = None, *, timeout: float = _RPC_SECONDS
    ) -> Outcome:
        """Publishes, and waits for the broker's word.

        Raises:
            ConnectionLost: the channel is closed, or nothing came within `timeout` seconds.
        """
        done: asyncio.Future[Outcome] = self._loop.create_future()
        self.publish(
            exchange, routing_key, body, properties, then=lambda it: None if done.done() else done.set_result(it)
        )
        try:
            return await asyncio.wait_for(done, timeout)
        except TimeoutError:
            raise ConnectionLost(f"the broker did not confirm a message within {timeout:g} s") from None

    def ack(self, tag: int) -> None:
        """Acknowledges a delivery; nothing on a closed channel, where the broker has taken it back already."""
        if self._driver.is_open:
            self._driver.basic_ack(tag)

    def hand_back(self, tag: int) -> None:
        """Gives a delivery back to its queue; nothing on a closed channel."""
        if self._driver.is_open:
            self._driver.basic_reject(tag, requeue=True)

    async def close(self, timeout: float = 5.0) -> None:
        """Closes it, and waits for the broker's word at most `timeout` seconds."""
        if self._driver.is_open:
            self._driver.close()
            await asyncio.wait([self.closed], timeout=timeout)

    async def _rpc(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.closed.done():
            raise self.closed.result()
        done: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.add(done)
        try:
            method(*args, **kwargs, callback=lambda frame: None if done.done() else done.set_result(frame))
            return await asyncio.wait_for(done, _RPC_SECONDS)
        except TimeoutError:
            raise ConnectionLost(f"the broker did not answer within {_RPC_SECONDS:g} s") from None
        except pika.exceptions.AMQPError as error:
            raise map_error(error) from error
        finally:
            self._waiting.discard(done)

    async def _confirm(self) -> None:
        self._driver.add_on_return_callback(self._on_return)
        done: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.add(done)
        self._driver.confirm_delivery(self._on_confirm, lambda frame: None if done.done() else done.set_result(frame))
        try:
            await asyncio.wait_for(done, _RPC_SECONDS)
        finally:
            self._waiting.discard(done)
        self._confirms = Confirms()

    def _on_return(self, _: Any, method: Any, properties: Any, __: bytes) -> None:
        if self._confirms is None or not self._confirms.returned(properties.message_id):
            log.warning(
                "returned without a record: %s to %s %s", method.reply_text, method.exchange, method.routing_key
            )

    def _on_confirm(self, frame: Any) -> None:
        if self._confirms is not None:
            method = frame.method
            positive = isinstance(method, pika.spec.Basic.Ack)
            self._confirms.answered(method.delivery_tag, multiple=method.multiple, positive=positive)

    def _on_close(self, reason: RankmqError) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        self._connection._channels.discard(self)
        for future in list(self._waiting):
            if not future.done():
                future.set_exception(reason)
        if self._confirms is not None:
            self._confirms.lost()

"""One AMQP connection on one asyncio loop: the only module that knows pika.

A `Connection` belongs to the loop on which it was opened; other threads reach it by `loop.call_soon_threadsafe`. No
compute runs on that loop, so heartbeats are never starved. The driver's errors become ours here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pika
import pika.exceptions
import pika.frame
import pika.spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils import connection_workflow
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport, _AsyncTransportBase

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
from .amqp_headers import mended
from .amqp_shortcuts import Shortcuts
from .channel import Channel, QueueDepth
from .message_limit import MessageLimit
from .refusal import refusal, refuses_certificate

__all__ = ["Channel", "Connection", "Properties", "QueueDepth", "map_error"]

log = logging.getLogger(__name__)

# pika logs every refused socket with a traceback; what matters of it is in the error that we raise.
logging.getLogger("pika").setLevel(logging.CRITICAL)

Properties = pika.BasicProperties
_NONE = Properties()


def map_error(error: BaseException, method: tuple[int, int] | None = None) -> RankmqError:
    """Our error for one of the driver's.

    Args:
        error: anything that pika, its connection workflow, `ssl` or the socket layer raises or reports.
        method: class and number of the AMQP method that the broker refused, where that is known.
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
    if refuses_certificate(text):
        return BrokerRefused("the broker does not take our certificate, or wants one: set tls_cert_file, tls_key_file")
    match error:
        case pika.exceptions.ProbableAuthenticationError() | pika.exceptions.ProbableAccessDeniedError() if (
            "ClosedByBroker" not in text
        ):  # a guess of the driver's: the broker said nothing, as when it goes down in the middle of the handshake
            return BrokerUnavailable(f"the connection broke while it was opened: {text}")
        case pika.exceptions.ProbableAuthenticationError() | pika.exceptions.AuthenticationError():
            return BrokerRefused("the broker refuses this user or password: check the broker URL")
        case pika.exceptions.ProbableAccessDeniedError():
            return BrokerRefused("the broker refuses this virtual host to this user: check the broker URL")
        case pika.exceptions.ConnectionClosedByBroker() if error.reply_code in (403, 530):
            return BrokerRefused(refusal(error.reply_text))
        case pika.exceptions.ConnectionClosedByBroker():
            return BrokerUnavailable(f"the broker closed the connection: {error.reply_code} {error.reply_text}")
        case pika.exceptions.ConnectionClosedByClient() | pika.exceptions.ChannelClosedByClient():
            return ConnectionLost("closed by this side")
        case pika.exceptions.ConnectionWrongStateError() | pika.exceptions.ChannelWrongStateError():
            return ConnectionLost("the connection to the broker is closed")
        case pika.exceptions.ChannelClosedByBroker():
            return _channel_error(error.reply_code, error.reply_text, method)
        case pika.exceptions.BodyTooLongError() | pika.exceptions.ShortStringTooLong():
            return LimitExceeded(f"more than AMQP can carry: {type(error).__name__}")
        case pika.exceptions.UnsupportedAMQPFieldException():
            return LimitExceeded("a header of a kind that AMQP cannot carry")
        case pika.exceptions.IncompatibleProtocolError() | pika.exceptions.ProtocolVersionMismatch():
            return BrokerUnavailable("what answers there does not speak AMQP 0-9-1 (a TLS port wants an amqps URL)")
        case pika.exceptions.ConnectionOpenAborted() | connection_workflow.AMQPConnectorStackTimeout():
            return BrokerUnavailable("who answers there says nothing of AMQP")
        case pika.exceptions.StreamLostError():
            return BrokerUnavailable(f"the connection to the broker broke: {text}")
        case ssl.SSLCertVerificationError():
            return BrokerRefused(f"the broker's certificate is not trusted: {getattr(error, 'verify_message', text)}")
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError() | ssl.SSLSyscallError():
            return BrokerUnavailable(f"the connection to the broker broke: {text}")
        case ssl.SSLError():
            return BrokerRefused(f"TLS with the broker failed: {getattr(error, 'reason', None) or text}")
        case pika.exceptions.AMQPHeartbeatTimeout():
            return BrokerUnavailable("the broker missed its heartbeats")
        case pika.exceptions.AMQPConnectionError() | connection_workflow.AMQPConnectorException() | OSError():
            return BrokerUnavailable(f"no broker answers ({text})")
        case pika.exceptions.AMQPError() | pika.exceptions.ChannelError() | pika.exceptions.ReentrancyError():
            return ConnectionLost(f"the connection to the broker broke: {text}")
        case pika.exceptions.DuplicateGetOkCallback():
            return ConnectionLost("a message was asked for twice at once")
        case _:
            return InternalError(f"{type(error).__name__}: {text}")


def _channel_error(code: int, text: str, method: tuple[int, int] | None) -> RankmqError:
    match code:
        case 403 if "exclusive" in text:
            return AlreadyRunning(f"somebody else holds it: {text}")
        case 403:
            return BrokerRefused(refusal(text, method))
        case 404 if "down or inaccessible" in text:
            return ConnectionLost(f"the broker is not all up yet: {text}")
        case 404:
            return BrokerUnavailable(f"not on this broker: {text} (has an orchestrator ever been started there?)")
        case 405:
            return AlreadyRunning(f"somebody else holds it: {text}")
        case 406 if "max size" in text or "larger than" in text:
            return LimitExceeded(text)
        case 406 if "inequivalent arg" in text or "invalid" in text:
            return ConfigurationError(
                f"declared before with other arguments: {text}; delete it, or use another virtual host"
            )
        case _:
            return ConnectionLost(f"the broker closed the channel: {code} {text}")


# Of each readable socket pika reads 4 KiB at a time: a call of the loop, and of its parser, for each.
_AsyncTransportBase._MAX_RECV_BYTES = 128 * 1024
# And then once more, to be told that there is nothing left.
_AsyncTransportBase._MAX_CONSUME_BYTES = 1


class _Driver(Shortcuts, AsyncioConnection):  # type: ignore[misc]
    """pika's connection, which lives on when a message has headers that pika cannot read; messages go shorter ways.

    Attributes:
        refused: by channel the class and number of the method over which the broker closed it.
    """

    plain_transport = _AsyncPlaintextTransport

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.refused: dict[int, tuple[int, int]] = {}
        super().__init__(*args, **kwargs)

    def _read_frame(self) -> tuple[int, Any]:
        try:
            read: tuple[int, Any] = super()._read_frame()
        except (ValueError, OverflowError, OSError, RecursionError, pika.exceptions.AMQPError):
            frame = mended(self._frame_buffer)
            if frame is None:
                raise
            _, found = pika.frame.decode_frame(frame)
            return 8 + int.from_bytes(self._frame_buffer[3:7]), found
        found = read[1]
        if type(found) is pika.frame.Method and type(found.method) is pika.spec.Channel.Close:
            self.refused[found.channel_number] = (found.method.class_id, found.method.method_id)
        return read


class Connection:
    """One connection; `closed` is done, with the reason, once it is gone.

    Args:
        loop: the loop that it lives on, which is the caller's.
        limit: what is known of how large a message may be.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: MessageLimit) -> None:
        self.loop = loop
        self._limit = limit
        self._driver: _Driver | None = None
        self._channels: set[Channel] = set()
        self._reason: RankmqError | None = None
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
        limit: MessageLimit | None = None,
    ) -> Connection:
        """Connects, with retries while nobody answers.

        Args:
            address: where and as whom.
            name: shown in the broker's list of connections.
            patience: seconds to go on trying; 0 tries once.
            heartbeat: seconds; the broker may ask for less.
            stopped: asked between attempts; True gives up at once.
            limit: what the caller knows of how large a message may be; more is learned when one is refused.

        Raises:
            BrokerUnavailable: nobody answered in time.
            BrokerRefused: wrong user, password, virtual host or certificate.
        """
        async for attempt in retry.connecting(patience, stopped):
            with attempt:
                return await cls._open_once(address, name, heartbeat, limit or MessageLimit())
        raise AssertionError("unreachable: the policy re-raises")

    @classmethod
    async def _open_once(cls, address: BrokerAddress, name: str, heartbeat: int, limit: MessageLimit) -> Connection:
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
        connection = cls(loop, limit)
        opened: asyncio.Future[None] = loop.create_future()

        def on_open(driver: AsyncioConnection) -> None:
            if opened.done():  # nobody waits for it any more
                driver.close()
            else:
                opened.set_result(None)

        def on_failure(_: Any, error: BaseException) -> None:
            if not opened.done():
                opened.set_exception(address.named(map_error(error)))

        driver = connection._driver = _Driver(
            parameters,
            on_open_callback=on_open,
            on_open_error_callback=on_failure,
            on_close_callback=lambda _, error: connection._on_close(error),
            custom_ioloop=loop,
        )
        driver.add_on_connection_blocked_callback(lambda *_: connection._set_blocked(True))
        driver.add_on_connection_unblocked_callback(lambda *_: connection._set_blocked(False))
        await opened
        return connection

    def _set_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        log.warning(
            "the broker %s", "is short of memory or disk and takes no messages" if blocked else "takes messages again"
        )

    def _on_close(self, error: BaseException) -> None:
        reason = self._reason or _gone(map_error(error))
        if not self.closed.done():
            self.closed.set_result(reason)
        channels, self._channels = self._channels, set()
        for channel in channels:
            channel.ended(reason)

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._driver is not None and bool(self._driver.is_open)

    @property
    def server_version(self) -> tuple[int, ...]:
        """The broker's version, as (3, 10, 8)."""
        known = self._driver.server_properties if self._driver is not None else None
        text = str((known or {}).get("version", "0"))
        return tuple(int(part) for part in re.split(r"[-+]", text)[0].split(".") if part.isdigit())

    @property
    def max_message(self) -> int:
        """The largest message that the broker takes, as far as is known, in bytes."""
        return self._limit.of(self.server_version)

    @property
    def frame_max(self) -> int:
        """The largest frame that both sides agreed on, in bytes; a message's headers must fit into one."""
        return int(self._driver.params.frame_max) if self._driver is not None else 0

    def publish(
        self, channel: Any, exchange: str, key: str, body: bytes, properties: Any, message_id: Any, *, mandatory: bool
    ) -> None:
        """Publishes on one of the driver's channels, under this message id, if any; for `Channel`."""
        with self.mapped_errors():
            self._open_driver().publish(
                channel, exchange, key, body, properties or _NONE, message_id, mandatory=mandatory
            )

    def publish_from_thread(self, channel: Any, exchange: str, key: str, body: bytes, properties: Any) -> bool:
        """Publishes on one of the driver's channels from another thread; for `Channel`.

        Returns:
            Whether it was done.
        """
        driver = self._driver
        return driver is not None and driver.publish_from_thread(channel, exchange, key, body, properties)

    def acknowledge(self, channel: Any, tag: int, *, multiple: bool) -> None:
        """Acknowledges a delivery on one of the driver's channels; for `Channel`."""
        self._open_driver().acknowledge(channel, tag, multiple=multiple)

    def say_last(self, work: Callable[[], None]) -> None:
        """Has something called when what was said in this turn of the loop is about to be written; for `Channel`."""
        self._open_driver().say_last(work)

    def leave_out_properties(self, consumer_tag: str) -> None:
        """The messages of a consumer come without their properties; for `Channel`."""
        self._open_driver().without_properties.add(consumer_tag)

    def tell_confirms(self, channel: Any, told: Callable[[int, bool, bool], None]) -> None:
        """Has somebody told what the broker says of publishes on one of the driver's channels: tag, multiple, good."""
        self._open_driver().confirmed[channel.channel_number] = told

    def _open_driver(self) -> _Driver:
        if self._driver is None:
            raise ConnectionLost("the connection to the broker is closed")
        return self._driver

    @contextmanager
    def mapped_errors(self) -> Iterator[None]:
        """Raises what the driver raises within as ours; see `map_error`."""
        try:
            yield
        except pika.exceptions.AMQPError as error:
            raise map_error(error) from error

    async def channel(self, *, confirm: bool = True, prefetch: int = 0, vital: bool = False) -> Channel:
        """Opens a channel.

        Args:
            confirm: publishes are confirmed by the broker.
            prefetch: how many deliveries may be unacknowledged per consumer; 0 for any number.
            vital: when the broker closes it, the connection closes too, and its `closed` tells why: for whoever could
                not go on without it.

        Raises:
            ConnectionLost: the connection is gone, or the broker does not answer.
        """
        if self._driver is None or not self.is_open:
            raise ConnectionLost("the connection to the broker is closed")
        opened: asyncio.Future[Any] = self.loop.create_future()
        with self.mapped_errors():
            driver = self._driver.channel(on_open_callback=lambda it: None if opened.done() else opened.set_result(it))
        channel = Channel(self, driver)
        self._channels.add(channel)
        driver.add_on_close_callback(lambda it, error: self._on_channel_close(channel, it, error, vital=vital))
        await channel.open(opened, confirm=confirm, prefetch=prefetch)
        return channel

    def _on_channel_close(self, channel: Channel, closed: Any, error: BaseException, *, vital: bool) -> None:
        by_broker = isinstance(error, pika.exceptions.ChannelClosedByBroker)
        driver = self._open_driver()
        method = driver.refused.pop(closed.channel_number, None)
        driver.confirmed.pop(closed.channel_number, None)
        reason = map_error(error, method) if by_broker else _gone(map_error(error))
        self._limit.learn(reason)
        self._channels.discard(channel)
        channel.ended(reason)
        if vital and by_broker:
            self._reason = self._reason or reason
            if driver.is_open:
                driver.close()

    async def close(self, timeout: float = 5.0) -> None:
        """Closes it, and waits for the broker's word at most `timeout` seconds."""
        if self.closed.done():
            return
        if self._driver is not None and self._driver.is_open:
            for channel in self._channels:
                channel.write_acks()
            self._driver.close()
        await asyncio.wait([self.closed], timeout=timeout)


def _gone(error: RankmqError) -> RankmqError:
    """The error for a connection that had been open: it was lost, which is no refusal and may pass."""
    return ConnectionLost(error.message) if isinstance(error, BrokerUnavailable) else error

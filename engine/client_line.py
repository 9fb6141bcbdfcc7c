"""A client's line to the broker: a thread with an event loop, one connection at a time, and the requests under way.

A line lives from the first connection until it is closed or the broker stays away. Every request that it took is
settled by then, and none is taken afterwards: the book of requests and the word that the line is over share a lock.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..schemas import codec
from ..schemas.errors import (
    BrokerRefused,
    BrokerUnavailable,
    ClientClosed,
    ConnectionLost,
    ProducerError,
    RankmqError,
    ReplyTimeout,
)
from ..schemas.messages import Reply
from . import retry, topology
from .address import BrokerAddress
from .confirms import Outcome
from .connection import Channel, Connection, Properties
from .delivery import Delivery

__all__ = ["Asked", "ClientLine"]

log = logging.getLogger("rankmq.engine.client")  # one name for the producer library

_DIRECT = "amq.rabbitmq.reply-to"
_MOST_REFUSALS = 8
_LONGEST_PAUSE_SECONDS = 2.0
_AWAY_SECONDS = 30.0
_GRACE_SECONDS = 30.0
_MIB = 1024 * 1024


@dataclass(eq=False, slots=True)
class Asked:
    """A request that waits for its reply; kept whole, to be sent again when the connection was lost.

    Attributes:
        id: its message id.
        servable: its routing key.
        body: the message.
        future: for what `read` makes of the reply.
        read: called on the line's thread.
        deadline: on the monotonic clock.
        seconds: the time that it was given, for the error.
    """

    id: str
    servable: str
    body: bytes
    future: Future[Any]
    read: Callable[[Reply], Any]
    deadline: float
    seconds: float
    timer: asyncio.TimerHandle | None = None
    refusals: int = 0

    def settle(self, outcome: Reply | RankmqError) -> None:
        """Gives the future its result or error, unless it was cancelled."""
        if self.timer is not None:
            self.timer.cancel()
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, RankmqError):
            self.future.set_exception(outcome)
            return
        try:
            result = self.read(outcome)
        except BaseException as error:  # noqa: BLE001  # whoever waits gets it, and the loop goes on
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class ClientLine:
    """One thread, one loop, one connection at a time.

    Args:
        address: the broker.
        connect_timeout: seconds to go on trying to reach it.
    """

    def __init__(self, address: BrokerAddress, connect_timeout: float) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._connected: Future[None] = Future()
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._lock = threading.Lock()
        self._asked: dict[str, Asked] = {}
        self._over: RankmqError | None = None
        self.max_message = 128 * _MIB
        self._thread = threading.Thread(target=self._run, name="rankmq-client", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------------ for any thread

    @property
    def is_over(self) -> bool:
        """Whether it takes no more requests."""
        return self._over is not None

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller runs on the line's thread, as the callbacks of futures do, which must not wait for it."""
        return threading.current_thread() is self._thread

    def await_connected(self) -> None:
        """Waits for the first connection.

        Raises:
            BrokerUnavailable: nobody answers.
            BrokerRefused: wrong user, password, virtual host or certificate.
            ClientClosed: the line was closed meanwhile.
        """
        try:
            self._connected.result(self._connect_timeout + _GRACE_SECONDS)
        except TimeoutError:
            raise BrokerUnavailable(f"{self._address}: not connected in time") from None

    def ask(self, asked: Asked) -> None:
        """Takes a request; its future is settled by the deadline.

        Raises:
            RankmqError: the line is over, for this reason.
        """
        with self._lock:
            if self._over is not None:
                raise _again(self._over)
            self._asked[asked.id] = asked
            self._loop.call_soon_threadsafe(self._begin, asked)

    def forget(self, request_id: str) -> None:
        """Nobody waits for the request any more."""
        with self._lock:
            if self._over is None:
                self._loop.call_soon_threadsafe(self._finish, request_id, ClientClosed("cancelled"))

    def close(self, timeout: float) -> None:
        """Closes the connection; requests that wait get `ClientClosed`.

        Args:
            timeout: seconds to wait for it.
        """
        with self._lock:
            if self._over is None:
                self._loop.call_soon_threadsafe(self._stop.set)
        if not self.is_own_thread:
            self._thread.join(timeout)

    # ------------------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        reason: RankmqError = ClientClosed("the client was closed before the reply came")
        try:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(self._main())
        except RankmqError as error:
            lost = f"the broker went away and did not come back: {error.message}"
            reason = ConnectionLost(lost) if self._connected.done() else error
        except Exception as error:
            log.exception("a defect of the client")
            reason = ProducerError(f"a defect of the client: {type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._over = reason
                left, self._asked = list(self._asked.values()), {}
            if not self._connected.done():
                self._connected.set_exception(reason)
            for asked in left:
                asked.settle(_again(reason))
            self._loop.close()

    async def _main(self) -> None:
        stopped = asyncio.ensure_future(self._stop.wait())
        patience = self._connect_timeout
        try:
            while True:
                opening = asyncio.ensure_future(self._open(patience))
                first: list[asyncio.Future[Any]] = [stopped, opening]
                await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
                if self._stop.is_set():
                    opening.cancel()
                    await asyncio.wait([opening])
                    return
                connection, channel = opening.result()
                if not self._connected.done():
                    self._connected.set_result(None)
                self._channel = channel
                for asked in self._begun():
                    self._publish(asked)
                ends: list[asyncio.Future[Any]] = [stopped, connection.closed, channel.closed]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                self._channel = None
                if self._stop.is_set():
                    return
                if not connection.closed.done():
                    self._fail_all(ProducerError(f"the broker closed the channel: {channel.closed.result().message}"))
                await connection.close()
                patience = max(self._connect_timeout, _AWAY_SECONDS)
        finally:
            stopped.cancel()
            if self._connection is not None:
                await self._connection.close()

    async def _open(self, patience: float) -> tuple[Connection, Channel]:
        """A connection and a channel that listens for replies: one is no use without the other."""
        async for attempt in retry.connecting(patience, self._stop.is_set):
            with attempt:
                try:
                    connection = self._connection = await Connection.open(self._address, name="rankmq producer")
                except BrokerRefused as error:
                    if not self._connected.done():
                        raise
                    raise BrokerUnavailable(error.message) from error  # it took us before: it may be shutting down
                try:
                    channel = await connection.channel()
                    await channel.consume(_DIRECT, self._on_reply, no_ack=True)
                except (ConnectionLost, BrokerUnavailable, TimeoutError) as error:
                    await connection.close()
                    raise BrokerUnavailable(f"{self._address}: the broker went away again ({error})") from error
                self.max_message = (16 if connection.server_version >= (4,) else 128) * _MIB
                return connection, channel
        raise AssertionError("unreachable: the policy re-raises")

    # ---------------------------------------------------------------------------------------------------- on the loop

    def _begin(self, asked: Asked) -> None:
        if asked.id in self._asked:
            left = max(0.0, asked.deadline - time.monotonic())
            asked.timer = self._loop.call_later(left, self._timed_out, asked)
            self._publish(asked)

    def _publish(self, asked: Asked) -> None:
        channel = self._channel
        if channel is None or not channel.is_open:
            return  # sent when the connection is back
        properties = Properties(
            message_id=asked.id,
            correlation_id=asked.id,
            reply_to=_DIRECT,
            content_type=codec.MSGPACK,
            delivery_mode=2,
            timestamp=int(time.time()),
        )

        def then(outcome: Outcome) -> None:
            if outcome is Outcome.REJECTED:
                self._refused(asked)
            elif outcome is Outcome.RETURNED:
                self._finish(asked.id, ProducerError("no queue takes requests for this servable on this broker"))

        try:
            channel.publish(topology.REQUESTS, asked.servable, asked.body, properties, then=then)
        except ConnectionLost:
            log.debug("sent when the connection is back", extra={"request": asked.id})
        except RankmqError as error:
            self._finish(asked.id, error)

    def _refused(self, asked: Asked) -> None:
        """The queue is full, or not up yet after a restart of the broker: again, some times."""
        if asked.refusals == _MOST_REFUSALS:
            self._finish(asked.id, ProducerError("the broker refused the request: its queue is full or not available"))
            return
        pause = min(_LONGEST_PAUSE_SECONDS, 0.1 * 2**asked.refusals)
        asked.refusals += 1
        self._loop.call_later(pause, self._publish_again, asked, self._channel)

    def _publish_again(self, asked: Asked, channel: Channel | None) -> None:
        if asked.id in self._asked and channel is self._channel:  # on another one it has been published again already
            self._publish(asked)

    def _on_reply(self, delivery: Delivery) -> None:
        request_id = delivery.properties.correlation_id
        if request_id not in self._asked:
            log.debug("a reply that nobody waits for", extra={"request": request_id})
            return
        try:
            reply = codec.decode_reply(delivery.body, delivery.properties.content_type or codec.MSGPACK)
        except RankmqError as error:
            self._finish(request_id, ProducerError(f"a reply that cannot be read: {error.message}"))
            return
        self._finish(request_id, reply)

    def _timed_out(self, asked: Asked) -> None:
        where = ""
        if self._channel is None:
            where = " (the broker is not reached)"
        elif self._connection is not None and self._connection.blocked:
            where = " (the broker is short of memory or disk and takes no messages)"
        self._finish(asked.id, ReplyTimeout(f"no reply within {asked.seconds:g} s{where}"))

    def _finish(self, request_id: str, outcome: Reply | RankmqError) -> None:
        asked = self._asked.pop(request_id, None)
        if asked is not None:
            asked.settle(outcome)

    def _begun(self) -> list[Asked]:
        """The requests that the loop knows of; those that another thread has only just put down come by themselves."""
        with self._lock:
            return [asked for asked in self._asked.values() if asked.timer is not None]

    def _fail_all(self, reason: RankmqError) -> None:
        for asked in self._begun():
            self._finish(asked.id, _again(reason))


def _again(error: RankmqError) -> RankmqError:
    """The same error anew: several threads raise it, and each adds a traceback."""
    return type(error)(error.message)

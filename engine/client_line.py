"""A client's line to the broker: a thread with an event loop, one connection at a time, and the requests under way.

A line lives from the first connection until it is closed or the broker stays away. Every request that it took is
settled by then, and none is taken afterwards (see `Book`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import random
import threading
import time
from concurrent.futures import Future
from typing import Any

from ..schemas import codec
from ..schemas.errors import (
    BrokerRefused,
    BrokerUnavailable,
    ClientClosed,
    ConnectionLost,
    ProducerError,
    QueueFull,
    RankmqError,
    ReplyTimeout,
)
from ..schemas.messages import Reply
from . import retry, topology
from .address import BrokerAddress
from .client_blobs import ClientBlobs
from .client_book import Asked, Book, Call, anew
from .client_cancel import CancelState, Teller, ask_cancel
from .client_stream import hand_on
from .client_terms import expiration
from .confirms import Outcome
from .connection import Channel, Connection, Properties
from .delivery import Delivery
from .message_limit import MESSAGE_OVERHEAD, MessageLimit, too_large
from .references import names_of, outputs_of

__all__ = ["ClientLine"]

log = logging.getLogger("rankmq.engine.client")  # one name for the producer library

_DIRECT = "amq.rabbitmq.reply-to"
_MOST_REFUSALS = 8
_LONGEST_PAUSE_SECONDS = 2.0
_AWAY_SECONDS = 30.0
_GRACE_SECONDS = 30.0
_LAST_WORD_SECONDS = 1.0


class ClientLine:
    """One thread, one loop, one connection at a time.

    Args:
        address: the broker.
        connect_timeout: seconds to go on trying to reach it.
        blobs: for outputs by reference; None where there is no blob store.
    """

    def __init__(self, address: BrokerAddress, connect_timeout: float, blobs: ClientBlobs | None = None) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self._blobs = blobs
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._reached = asyncio.Event()
        self._connected: Future[None] = Future()
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._book = Book()
        self._teller = Teller()
        self._alone = False
        self.max_message, self._limit = 0, MessageLimit()
        self._thread = threading.Thread(target=self._run, name="rankmq-client", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------------ for any thread

    @property
    def is_over(self) -> bool:
        """Whether it takes no more requests."""
        return self._book.over is not None

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller runs on the line's thread, as the callbacks of futures do, which must not wait for it."""
        return threading.current_thread() is self._thread

    def await_connected(self) -> None:
        """Waits for the first connection; `max_message` is known then.

        Raises:
            BrokerUnavailable: nobody answers.
            BrokerRefused: wrong user, password, virtual host or certificate.
            ClientClosed: the line was closed meanwhile.
        """
        try:
            self._connected.result(self._connect_timeout + _GRACE_SECONDS)
        except TimeoutError:
            raise BrokerUnavailable(f"{self._address}: not connected in time") from None

    def ask(self, asked: Asked, call: Call) -> None:
        """Takes a request, or a further call of one that is under way; the call is settled in its time.

        Raises:
            RequestIdReused: another request is under way under the id.
            RankmqError: the line is over, for this reason.
        """
        self._book.enter(asked, call, lambda known: self._loop.call_soon_threadsafe(self._begin, known, call))

    def forget(self, request_id: str, call: Call) -> None:
        """A call was cancelled; where nobody else waits for its request, the engine is told."""
        self._book.unless_over(lambda: self._loop.call_soon_threadsafe(self._forget, request_id, call))

    def cancel(self, request_id: str, timeout: float) -> CancelState:
        """Has the engine give up a request, whoever asked for it.

        Args:
            request_id: its id.
            timeout: seconds to wait for the engine's word.

        Raises:
            ReplyTimeout: no orchestrator has answered.
            ProducerError: no orchestrator runs.
            RankmqError: the line is over, for this reason.
        """
        asking: list[Future[CancelState]] = []
        self._book.unless_over(
            lambda: asking.append(asyncio.run_coroutine_threadsafe(self._ask_cancel(request_id, timeout), self._loop))
        )
        try:
            if asking:
                return asking[0].result(timeout + _GRACE_SECONDS)
        except TimeoutError:  # a callback of somebody's holds up the thread
            raise ReplyTimeout(f"not cancelled within {timeout:g} s, and the client's thread does not run") from None
        except concurrent.futures.CancelledError:
            log.debug("closed while a cancel was asked for")
        raise anew(self._book.over or ClientClosed("the client was closed"))

    def close(self, timeout: float) -> None:
        """Closes the connection; requests that wait get `ClientClosed`.

        Args:
            timeout: seconds to wait for it.
        """
        self._book.unless_over(lambda: self._loop.call_soon_threadsafe(self._stop.set))
        if not self.is_own_thread:
            self._thread.join(timeout)

    def leave_alone(self) -> None:
        """Nobody will ask anything more: it closes by itself once nothing is under way."""
        self._book.unless_over(lambda: self._loop.call_soon_threadsafe(self._left_alone))

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
            left = self._book.close(reason)
            if not self._connected.done():
                self._connected.set_exception(reason)
            for asked in left:
                asked.settle(reason)
            self._loop.run_until_complete(_end_tasks())
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
                self._begin_anew(channel)
                ends: list[asyncio.Future[Any]] = [stopped, connection.closed, channel.closed]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                self._channel = None
                self._reached.clear()
                if self._stop.is_set():
                    return
                if not connection.closed.done() and connection.max_message == self.max_message:
                    why = channel.closed.result()  # and not that a message was larger than was known to be allowed
                    refused = isinstance(why, BrokerRefused)
                    self._fail_all(why if refused else ProducerError(f"the broker closed the channel: {why.message}"))
                await connection.close()
                patience = max(self._connect_timeout, _AWAY_SECONDS)
        finally:
            stopped.cancel()
            await self._teller.told(_LAST_WORD_SECONDS)
            if self._connection is not None:
                await self._connection.close()

    async def _open(self, patience: float) -> tuple[Connection, Channel]:
        """A connection and a channel that listens for replies: one is no use without the other."""
        async for attempt in retry.connecting(patience, self._stop.is_set):
            with attempt:
                try:
                    opening = Connection.open(self._address, name="rankmq producer", limit=self._limit)
                    connection = self._connection = await opening
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
                self.max_message = connection.max_message
                return connection, channel
        raise AssertionError("unreachable: the policy re-raises")

    def _begin_anew(self, channel: Channel) -> None:
        """On a new connection everything that has no reply is asked again."""
        if not self._connected.done():
            self._connected.set_result(None)
        self._channel = channel
        self._reached.set()
        for asked in self._book.begun():
            self._publish(asked)
        self._teller.tell(self._connection)

    # ---------------------------------------------------------------------------------------------------- on the loop

    def _begin(self, asked: Asked, call: Call) -> None:
        if not self._book.holds(asked, call):
            return
        call.timer = self._loop.call_later(max(0.0, call.until - time.monotonic()), self._timed_out, asked, call)
        if not asked.begun:
            asked.begun = True
            self._publish(asked)

    def _publish(self, asked: Asked) -> None:
        channel = self._channel
        if channel is None or not channel.is_open:
            return  # sent when the connection is back
        if len(asked.body) + MESSAGE_OVERHEAD > self.max_message:  # the broker takes less than was known
            asked.over = True
            self._finish(asked.id, too_large("a request", len(asked.body), self.max_message, blobs=asked.blobs))
            return
        properties = Properties(
            message_id=asked.id,
            correlation_id=asked.question,
            reply_to=_DIRECT,
            content_type=codec.MSGPACK,
            delivery_mode=2,
            timestamp=int(time.time()),
            expiration=expiration(asked.expires),
            headers=asked.headers,
        )

        def then(outcome: Outcome) -> None:
            asked.refused = outcome is Outcome.REJECTED
            if outcome is Outcome.REJECTED:
                self._refused(asked)
            elif outcome is Outcome.RETURNED:
                asked.over = True
                self._finish(asked.id, ProducerError("no queue takes requests for this servable on this broker"))

        try:
            channel.publish(topology.REQUESTS, asked.key, asked.body, properties, then=then)
            asked.sent = True
        except ConnectionLost:
            log.debug("sent when the connection is back", extra={"request": asked.id})
        except RankmqError as error:
            self._finish(asked.id, error)

    def _refused(self, asked: Asked) -> None:
        """The queue is full, or not up yet after a restart of the broker: again, some times."""
        if asked.refusals == _MOST_REFUSALS:
            asked.over = True
            self._finish(asked.id, QueueFull(asked.full))
            return
        pause = min(_LONGEST_PAUSE_SECONDS, 0.1 * 2**asked.refusals) * random.uniform(0.75, 1.0)
        asked.refusals += 1
        self._loop.call_later(pause, self._publish_again, asked, self._channel)

    def _publish_again(self, asked: Asked, channel: Channel | None) -> None:
        # On another channel it has been published again already.
        if self._book.find(asked.id) is asked and channel is self._channel:
            self._publish(asked)

    def _on_reply(self, delivery: Delivery) -> None:
        if delivery.properties.type == "part":
            hand_on(self._book, delivery)
            return
        asked = self._book.find_question(delivery.properties.correlation_id)
        try:
            reply = codec.decode_reply(delivery.body, delivery.properties.content_type or codec.MSGPACK)
        except RankmqError as error:
            if asked is not None:
                self._finish(asked.id, ProducerError(f"a reply that cannot be read: {error.message}"))
            return
        asked = asked or self._book.find(reply.id)  # or to the same request, asked before
        if asked is not None:
            asked.over = True
            self._finish(asked.id, reply)
        else:
            log.debug("a reply that nobody waits for", extra={"request": reply.id})
            if self._blobs is not None:
                self._blobs.discard(names_of(outputs_of(reply)))

    def _timed_out(self, asked: Asked, call: Call) -> None:
        error: RankmqError = ReplyTimeout(f"no reply within {call.seconds:g} s{self._trouble()}")
        if asked.refused and self._channel is not None:
            error = QueueFull(f"{asked.full} within {call.seconds:g} s")
        self._book.leave(asked, call)
        call.settle(error)
        self._end_if_alone()

    def _trouble(self) -> str:
        """Why nothing may have come."""
        if self._channel is None:
            return " (the broker is not reached)"
        if self._connection is not None and self._connection.blocked:
            return " (the broker is short of memory or disk and takes no messages)"
        return ""

    def _finish(self, request_id: str, outcome: Reply | RankmqError) -> None:
        asked = self._book.take(request_id)
        if asked is None:
            pass
        elif self._blobs is not None and isinstance(outcome, Reply) and outputs_of(outcome):
            asked.hold()
            self._blobs.read(outcome, asked.settle)
        else:
            asked.settle(outcome)
        self._end_if_alone()

    def _fail_all(self, reason: RankmqError) -> None:
        for asked in self._book.begun():
            self._finish(asked.id, reason)

    def _left_alone(self) -> None:
        self._alone = True
        self._end_if_alone()

    def _end_if_alone(self) -> None:
        if self._alone and not len(self._book):
            self._stop.set()

    # -------------------------------------------------------------------------------------------------------- cancels

    def _forget(self, request_id: str, call: Call) -> None:
        asked = self._book.find(request_id)
        call.settle(ClientClosed("cancelled"))
        if asked is not None and self._book.leave(asked, call) and asked.sent:
            self._teller.add(request_id)
            if self._channel is not None:
                self._teller.tell(self._connection)
        self._end_if_alone()

    async def _ask_cancel(self, request_id: str, timeout: float) -> CancelState:
        until = self._loop.time() + timeout
        try:
            await asyncio.wait_for(self._reached.wait(), timeout)
        except TimeoutError:
            raise ReplyTimeout(f"not cancelled within {timeout:g} s{self._trouble()}") from None
        if self._connection is None:
            raise ClientClosed("the client is closed")
        try:
            found = await ask_cancel(self._connection, [request_id], timeout=until - self._loop.time())
        except ConnectionLost:
            if self._stop.is_set():
                raise ClientClosed("the client was closed before the engine's word came") from None
            raise
        if request_id in found:
            return found[request_id]
        if self._loop.time() >= until:
            raise ReplyTimeout(f"no orchestrator answered a cancel within {timeout:g} s{self._trouble()}")
        raise ProducerError("no orchestrator runs on this broker: nobody hears of a cancel")


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_LAST_WORD_SECONDS)
        await asyncio.sleep(0)  # for those who wait on other threads to hear of it

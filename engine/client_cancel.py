"""Asking for requests to be given up: every orchestrator on a broker hears it, and says what became of them."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from ..schemas import codec
from ..schemas.errors import BrokerRefused, BrokerUnavailable, RankmqError
from . import topology
from .channel import Channel
from .confirms import Outcome
from .connection import Connection, Properties
from .delivery import Delivery

if TYPE_CHECKING:
    from .settings import Settings

__all__ = ["CancelState", "Teller", "Words", "ask_cancel", "collect_cancels", "tell_cancel"]

log = logging.getLogger("rankmq.engine.client")  # one name for the producer library

_DIRECT = "amq.rabbitmq.reply-to"
_SETTLE_SECONDS = 0.3

CancelState = Literal["cancelled", "answered", "noted"]
"""What became of a request that was to be given up: it was, and its producer got the error `cancelled`; it had been
answered before; or no orchestrator knows it, and none will serve it should it come."""

_BEST_FIRST: tuple[CancelState, ...] = ("cancelled", "answered", "noted")


class Words:
    """What the orchestrators have said so far. One that has the request counts for more than those that do not. Pure.

    Args:
        ids: of the requests.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._said: dict[str, CancelState | None] = dict.fromkeys(ids)
        self._open = set(self._said)
        self._unheard: set[str] = set()

    @property
    def complete(self) -> bool:
        """Whether there is a word on every request, or nobody to say one."""
        return all(state is not None or it in self._unheard for it, state in self._said.items())

    @property
    def final(self) -> bool:
        """Whether no better word can come."""
        return not self._open

    def say(self, request_id: str, state: CancelState) -> None:
        """An orchestrator said what became of a request."""
        if request_id not in self._said:
            return
        before = self._said[request_id]
        if before is None or _BEST_FIRST.index(state) < _BEST_FIRST.index(before):
            self._said[request_id] = state
        if state == _BEST_FIRST[0]:
            self._open.discard(request_id)

    def nobody(self, request_id: str) -> None:
        """No orchestrator heard of it."""
        self._unheard.add(request_id)
        self._open.discard(request_id)

    def known(self) -> dict[str, CancelState]:
        """The best word on each request on which there is one."""
        return {it: state for it, state in self._said.items() if state is not None}


async def ask_cancel(
    connection: Connection, ids: Sequence[str], *, timeout: float = 2.0, settle: float = _SETTLE_SECONDS
) -> dict[str, CancelState]:
    """Has every orchestrator give up requests, and waits for what they say.

    Args:
        connection: to the broker.
        ids: of the requests.
        timeout: seconds to wait in all.
        settle: seconds to wait for a better word, once there is one on each request.

    Returns:
        By id the best word. An id on which nobody said a word is missing: no orchestrator runs, or none has heard it
        within the time.

    Raises:
        BrokerRefused: a permission is missing.
        ConnectionLost: the broker went away.
    """
    loop = asyncio.get_running_loop()
    words = Words(ids)
    waiting = {uuid.uuid4().hex: request_id for request_id in dict.fromkeys(ids)}
    complete, final = loop.create_future(), loop.create_future()

    def look() -> None:
        for future, holds in ((complete, words.complete), (final, words.final)):
            if holds and not future.done():
                future.set_result(None)

    def on_answer(delivery: Delivery) -> None:
        request_id = waiting.get(str(delivery.properties.correlation_id))
        if request_id is None:
            return
        try:
            words.say(request_id, codec.decode_cancel_reply(delivery.body).state)
        except RankmqError as error:
            log.warning("an answer to a cancel that cannot be read: %s", error.message)
        look()

    def unheard(request_id: str, outcome: Outcome) -> None:
        if outcome is Outcome.RETURNED:
            words.nobody(request_id)
            look()

    async def talk() -> None:
        channel = await _opened(connection)
        try:
            await channel.consume(_DIRECT, on_answer, no_ack=True)
            for number, request_id in waiting.items():
                properties = Properties(
                    message_id=number, correlation_id=request_id, reply_to=_DIRECT, content_type=codec.MSGPACK
                )
                channel.publish(topology.CANCEL, "", b"", properties, then=partial(unheard, request_id))
            await asyncio.wait([complete, channel.closed], return_when=asyncio.FIRST_COMPLETED)
            if not channel.closed.done() and not final.done():
                await asyncio.wait([final, channel.closed], timeout=settle, return_when=asyncio.FIRST_COMPLETED)
            _raise_why_closed(channel)
        finally:
            await channel.close(timeout=0.5)

    look()
    try:
        await asyncio.wait_for(talk(), timeout)
    except TimeoutError:
        log.debug("no word on some requests that were to be given up")
    return words.known()


async def tell_cancel(connection: Connection, ids: Sequence[str]) -> None:
    """Has every orchestrator give up requests, and does not wait for what they say.

    Args:
        connection: to the broker.
        ids: of the requests.

    Raises:
        BrokerRefused: a permission is missing.
        ConnectionLost: the broker went away.
    """
    channel = await connection.channel(confirm=False)
    try:
        for request_id in ids:
            channel.publish(topology.CANCEL, "", b"", Properties(correlation_id=request_id), mandatory=False)
    finally:
        await channel.close()
    if channel.closed.done() and isinstance(channel.closed.result(), BrokerRefused):
        raise channel.closed.result()
    if connection.closed.done():
        raise connection.closed.result()


async def _opened(connection: Connection) -> Channel:
    """A channel; one that comes when nobody waits for it any more is closed again."""
    opening = asyncio.ensure_future(connection.channel())

    def close(done: asyncio.Future[Channel]) -> None:
        if not done.cancelled() and done.exception() is None:
            closing.append(asyncio.ensure_future(done.result().close()))

    closing: list[asyncio.Future[None]] = []
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(close)
        raise


class Teller:
    """Tells the engine of requests that nobody waits for any more, many at a time. Lives on one loop."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, request_id: str) -> None:
        """Has the engine told of a request, with the next `tell`."""
        self._ids.append(request_id)

    def tell(self, connection: Connection | None) -> None:
        """Tells what there is to tell over this connection; what is added meanwhile as well."""
        if connection is not None and self._ids and (self._task is None or self._task.done()):
            self._task = asyncio.ensure_future(self._tell(connection))

    async def told(self, timeout: float) -> None:
        """Waits until it has told everything, or its connection was lost; at most so many seconds."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout)

    async def _tell(self, connection: Connection) -> None:
        while self._ids:
            ids, self._ids = self._ids, []
            try:
                await tell_cancel(connection, ids)
            except RankmqError as error:
                log.warning("%d cancelled requests may be served all the same: %s", len(ids), error.message)


def _raise_why_closed(channel: Channel) -> None:
    """Nothing where there is no such exchange: no orchestrator has ever been on this broker."""
    if channel.closed.done() and not isinstance(channel.closed.result(), BrokerUnavailable):
        raise channel.closed.result()


def collect_cancels(
    settings: Settings, ids: Sequence[str], *, name: str, timeout: float = 2.0
) -> dict[str, CancelState]:
    """The same as `ask_cancel`, for a caller without a loop: connects, asks, closes.

    Args:
        settings: the broker's URL must be set.
        ids: of the requests.
        name: of the connection, in the broker's list.
        timeout: seconds to wait in all, once connected.

    Raises:
        OperatorError: the broker cannot be used.
        ConnectionLost: the broker went away.
    """

    async def ask() -> dict[str, CancelState]:
        connection = await Connection.open(settings.address(), name=name, patience=settings.connect_timeout)
        try:
            return await ask_cancel(connection, ids, timeout=timeout)
        finally:
            await connection.close()

    return asyncio.run(ask())

"""Looking through the dead-letter queue without taking from it: the I/O shell.

AMQP has no way to read a queue but to be given its messages. So they are taken without an acknowledgement, and go back
when their channel closes. A quorum queue puts what goes back in the order in which a channel had it, behind whatever
went back before. So the order of the queue is kept by taking all of it, in chunks, and returning these in their order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from ..schemas.errors import AlreadyRunning, BrokerUnavailable
from .connection import Channel, Connection
from .dead_pace import Pace
from .delivery import Delivery
from .topology import DEAD

__all__ = ["DeadQueue", "Held", "queue_exists"]

_SILENCE_SECONDS = 5.0
_RETURN_SECONDS = 3.0
_LOOK_SECONDS = 0.002


@dataclass(eq=False, slots=True)
class _Chunk:
    """Letters that came over one channel."""

    channel: Channel
    held: int = 0
    done: list[int] = field(default_factory=list)
    complete: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Held:
    """A letter that is looked at.

    Attributes:
        delivery: the letter.
        chunk: with which it came.
    """

    delivery: Delivery
    chunk: _Chunk


class DeadQueue:
    """The dead letters that are there when it is opened, in their order; for `async with` and `async for`, once.

    What is not `done` goes back to where it was. If the loop is left before its end, or this process is killed, nothing
    is lost, but what was looked at may be behind the rest afterwards.

    Args:
        connection: to the broker.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._arrived: deque[Held] = deque()
        self._news = asyncio.Event()
        self._chunks: list[_Chunk] = []
        self.total = 0
        self.others = 0

    async def __aenter__(self) -> Self:
        """Counts the letters (`total`) and who else looks at them now, and so has some of them (`others`).

        Raises:
            BrokerUnavailable: the queue is not there.
        """
        self._watch = await self._connection.channel(confirm=False)
        depth = await self._watch.depth(DEAD)
        self.total, self.others = depth.messages, depth.consumers
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        chunks, self._chunks = self._chunks, []
        for chunk in chunks:
            self._acknowledge(chunk)
        for chunk in chunks:
            await self._return(chunk)
        await self._watch.close()

    async def __aiter__(self) -> AsyncIterator[Held]:
        pace = Pace(self.total)
        while size := pace.next():
            channel = await self._connection.channel(confirm=False, prefetch=size)
            chunk = _Chunk(channel)
            self._chunks.append(chunk)
            tag = await channel.consume(DEAD, lambda it, chunk=chunk: self._on_letter(chunk, it))  # type: ignore[misc]
            for _ in range(size):
                letter = await self._next(channel)
                if letter is None:  # somebody else has taken some
                    return
                pace.saw(len(letter.delivery.body))
                yield letter
            await channel.cancel(tag)  # it had all that it may have: nothing is on its way to it
            chunk.complete = True
            self._acknowledge(chunk)

    def done(self, letter: Held) -> None:
        """The letter is not to go back."""
        chunk = letter.chunk
        chunk.done.append(letter.delivery.tag)
        if chunk.complete:
            self._acknowledge(chunk)

    def _acknowledge(self, chunk: _Chunk) -> None:
        tags, chunk.done = chunk.done, []
        for tag in tags:
            chunk.channel.ack(tag)
        chunk.held -= len(tags)

    def _on_letter(self, chunk: _Chunk, delivery: Delivery) -> None:
        chunk.held += 1
        self._arrived.append(Held(delivery, chunk))
        self._news.set()

    async def _next(self, channel: Channel) -> Held | None:
        if not self._arrived:
            self._news.clear()
            coming = asyncio.ensure_future(self._news.wait())
            waits: list[asyncio.Future[Any]] = [coming, channel.closed]
            try:
                await asyncio.wait(waits, timeout=_SILENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            finally:
                coming.cancel()
            if channel.closed.done():
                raise channel.closed.result()
        return self._arrived.popleft() if self._arrived else None

    async def _return(self, chunk: _Chunk) -> None:
        """Closes its channel, and waits until its letters can be seen again: the next chunk's must come behind them."""
        if not chunk.channel.is_open:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + _RETURN_SECONDS
        before = (await self._watch.depth(DEAD)).messages if chunk.held else 0
        await chunk.channel.close()
        while chunk.held and loop.time() < until:
            if (await self._watch.depth(DEAD)).messages >= before + chunk.held:
                return
            await asyncio.sleep(_LOOK_SECONDS)  # the broker tells nobody


async def queue_exists(connection: Connection, name: str) -> bool:
    """Whether a queue is there, be it somebody's own, or where a direct reply still finds its requester.

    Args:
        connection: to the broker.
        name: of the queue; `amq.rabbitmq.reply-to.` and a token for a direct reply.
    """
    channel = await connection.channel(confirm=False)
    try:
        await channel.depth(name)
    except AlreadyRunning:  # exclusive to another connection
        return True
    except BrokerUnavailable:
        return False
    finally:
        await channel.close()
    return True

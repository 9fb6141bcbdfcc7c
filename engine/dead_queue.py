"""Looking through the dead-letter queue without taking from it: the I/O shell.

AMQP has no way to read a queue but to be given its messages. So they are taken without an acknowledgement, and go back
when the channel closes: the broker then puts what each of its consumers had in front of the queue again, in order. To
keep that order, and memory within bounds, one consumer after the other is given just so many letters, and what is done
with is acknowledged when its consumer has ended: nothing is on its way to it then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from ..schemas.errors import AlreadyRunning, BrokerUnavailable
from .connection import Connection
from .dead_pace import Pace
from .delivery import Delivery
from .topology import DEAD

__all__ = ["DeadQueue", "queue_exists"]

_SILENCE_SECONDS = 5.0
_RETURN_SECONDS = 3.0
_LOOK_SECONDS = 0.02


class DeadQueue:
    """The dead letters that are there when it is opened, in their order; for `async with` and `async for`, once.

    What is not `done` goes back to where it was, also when this process is killed.

    Args:
        connection: to the broker.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._arrived: deque[Delivery] = deque()
        self._news = asyncio.Event()
        self._pace = Pace()
        self._chunks: dict[int, int] = {}
        self._over = -1
        self._waiting: list[int] = []
        self._taken = self._acknowledged = 0
        self.total = 0
        self.others = 0

    async def __aenter__(self) -> Self:
        """Opens it.

        Raises:
            BrokerUnavailable: the queue is not there.
            BrokerRefused: a permission is missing.
        """
        self._watch = await self._connection.channel(confirm=False)
        depth = await self._watch.depth(DEAD)
        self.total, self.others = depth.messages, depth.consumers
        self._channel = await self._connection.channel(confirm=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._acknowledge()
        await self._channel.close()
        if kind is None:
            await self._until_back()
        await self._watch.close()

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        left = self.total
        while left:
            size = self._pace.next(left)
            chunk = self._pace.chunk
            name = f"rankmq-dead-{chunk:04d}"  # what consumers had goes back in the order of their names
            await self._channel.prefetch(size)
            await self._channel.consume(DEAD, self._on_letter, name=name)
            for _ in range(size):
                delivery = await self._next()
                if delivery is None:  # somebody else has taken some
                    return
                self._chunks[delivery.tag] = chunk
                self._pace.saw(len(delivery.body))
                yield delivery
            await self._channel.cancel(name)
            self._over = chunk
            self._acknowledge()
            left -= size

    def done(self, delivery: Delivery) -> None:
        """The letter is not to go back."""
        chunk = self._chunks.pop(delivery.tag)
        self._pace.done(chunk)
        self._waiting.append(delivery.tag)
        if chunk <= self._over:
            self._acknowledge()

    def _acknowledge(self) -> None:
        waiting, self._waiting = self._waiting, []
        for tag in waiting:
            self._channel.ack(tag)
        self._acknowledged += len(waiting)

    def _on_letter(self, delivery: Delivery) -> None:
        self._taken += 1
        self._arrived.append(delivery)
        self._news.set()

    async def _next(self) -> Delivery | None:
        if not self._arrived:
            self._news.clear()
            coming = asyncio.ensure_future(self._news.wait())
            waits: list[asyncio.Future[Any]] = [coming, self._channel.closed]
            try:
                await asyncio.wait(waits, timeout=_SILENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            finally:
                coming.cancel()
            if self._channel.closed.done():
                raise self._channel.closed.result()
        return self._arrived.popleft() if self._arrived else None

    async def _until_back(self) -> None:
        """Waits until the letters can be seen again, so that who looks next sees them all, and first."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _RETURN_SECONDS
        while self._taken > self._acknowledged and loop.time() < until:
            if (await self._watch.depth(DEAD)).messages >= self.total - self._acknowledged:
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

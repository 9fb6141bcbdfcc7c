"""Looking through the dead-letter queue without taking from it: the I/O shell.

AMQP has no way to read a queue but to be given its messages. So they are taken without an acknowledgement, and go back
when their channel closes. A quorum queue puts what goes back in the order in which a channel had it, behind whatever
went back before. So the order of the queue is kept by taking all of it, in chunks, and returning these in their order.

Acknowledgements are not confirmed. RabbitMQ 3.10 keeps them back when more than 32 are under way to a quorum queue, and
loses those when the channel closes. So an end of a chunk that is done with is acknowledged at once; and if more letters
come back than were kept, those that were done with are looked for and acknowledged again.
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
_MOST_ROUNDS = 10
_LOOK_SECONDS = 0.002


@dataclass(eq=False, slots=True)
class _Chunk:
    """Letters that came over one channel, whose tags count from 1.

    Attributes:
        channel: theirs.
        held: how many are not acknowledged.
        done: tags that are not acknowledged yet.
        until: all up to this tag are acknowledged.
        further: acknowledged tags past it.
        complete: all of it has come.
    """

    channel: Channel
    held: int = 0
    done: list[int] = field(default_factory=list)
    until: int = 0
    further: set[int] = field(default_factory=set)
    complete: bool = False

    def acknowledge(self) -> None:
        """Acknowledges what is done with, in as few words as can be."""
        done, self.done = set(self.done), []
        self.held -= len(done)
        last = self.until
        while last + 1 in done or last + 1 in self.further:
            last += 1
        together = [tag for tag in done if tag <= last]
        if together:
            self.channel.ack(max(together), multiple=True)
        for tag in sorted(done.difference(together)):
            self.channel.ack(tag)
            self.further.add(tag)
        self.until = last
        self.further = {tag for tag in self.further if tag > last}


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
        self._done: set[int] = set()
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
        back = await self._return_all()
        for _ in range(_MOST_ROUNDS):
            if not back or kind is not None:
                break
            back = await self._acknowledge_again(back)
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
            chunk.acknowledge()

    def done(self, letter: Held) -> None:
        """The letter is not to go back."""
        chunk = letter.chunk
        chunk.done.append(letter.delivery.tag)
        self._done.add(_mark(letter.delivery))
        if chunk.complete:
            chunk.acknowledge()

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

    async def _return_all(self) -> int:
        """Gives the letters back that are not done with, chunk by chunk: the next one's must come behind them.

        Returns:
            How many more are back than were held.
        """
        chunks, self._chunks = self._chunks, []
        self._arrived.clear()
        for chunk in chunks:
            chunk.acknowledge()
        if not chunks or not self._watch.is_open:
            return 0
        before = (await self._watch.depth(DEAD)).messages
        kept = [chunk for chunk in chunks if chunk.held]
        for chunk in chunks:
            if not chunk.held:
                await chunk.channel.close()
        await self._until_fewer(len(kept))
        for number, chunk in enumerate(kept, start=1):
            await chunk.channel.close()
            await self._until_fewer(len(kept) - number)
        after = (await self._watch.depth(DEAD)).messages
        return max(0, after - before - sum(chunk.held for chunk in kept))

    async def _until_fewer(self, ours: int) -> None:
        """Waits until no more than so many consumers hold letters for us, and what the others had is back."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _RETURN_SECONDS
        while True:
            depth = await self._watch.depth(DEAD)
            if depth.consumers <= self.others + ours or loop.time() > until:
                return
            await asyncio.sleep(_LOOK_SECONDS)  # the broker tells nobody

    async def _acknowledge_again(self, most: int) -> int:
        """Acknowledges letters once more that were done with and are back; gives how many are back again."""
        self.total = (await self._watch.depth(DEAD)).messages
        marks, found = self._done, 0
        async for letter in self:
            if found < most and _mark(letter.delivery) in marks:
                found += 1
                self.done(letter)
        back = await self._return_all()
        return back if found else 0


def _mark(delivery: Delivery) -> int:
    """What a letter can be told by."""
    headers, properties = delivery.headers, delivery.properties
    said = (properties.message_id, headers.get("rankmq-dead-at"), delivery.routing_key, len(delivery.body))
    return hash(said if isinstance(said[1], int) else said[::2])


async def queue_exists(connection: Connection, name: str) -> bool:
    """Whether a queue is there, be it somebody's own. Not for names of direct replies: see `DirectReplies`.

    Args:
        connection: to the broker.
        name: of the queue.
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

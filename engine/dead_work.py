"""What is done with dead letters: looked at, thrown away, sent again. The I/O shell around the decisions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..schemas.errors import ConnectionLost, RankmqError
from .confirms import Outcome
from .connection import Channel, Connection, Properties
from .dead_headers import text_of
from .dead_letters import DeadLetter, Wanted
from .dead_queue import DeadQueue, Held, queue_exists
from .dead_replay import Replay, replay_of
from .delivery import Delivery
from .direct_replies import DirectReplies, is_direct
from .references import names_in

__all__ = ["Stayed", "Tally", "look", "purge", "replay"]

_WINDOW = 32
_CONFIRM_SECONDS = 30.0
_IDS_SHOWN = 5


@dataclass(slots=True)
class Stayed:
    """Letters that could not be sent again, for one reason; `ids` has the first of them."""

    count: int = 0
    ids: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """What came of it.

    Attributes:
        total: letters that were there.
        others: who else looked at them at that time, and may have had more.
        meant: letters that were meant.
        done: letters with which it was done.
        stayed: those with which it could not be, by the reason.
        blobs: the names of the blobs of those that were thrown away.
    """

    total: int = 0
    others: int = 0
    meant: int = 0
    done: int = 0
    stayed: dict[str, Stayed] = field(default_factory=dict)
    blobs: list[str] = field(default_factory=list)

    def stay(self, letter: DeadLetter, reason: str) -> None:
        """A letter stays."""
        found = self.stayed.setdefault(reason, Stayed())
        found.count += 1
        if len(found.ids) < _IDS_SHOWN:
            found.ids.append(letter.id)


async def look(
    connection: Connection,
    wanted: Wanted,
    see: Callable[[DeadLetter, Delivery], None] = lambda letter, delivery: None,
    *,
    most: int = 0,
) -> Tally:
    """Looks at the dead letters that are meant, the oldest first, and leaves all of them where they are.

    Args:
        connection: to the broker.
        wanted: which are meant.
        see: called with each.
        most: so many of them at most are seen; 0 for any number. All are counted.

    Raises:
        BrokerUnavailable: there is no dead-letter queue.
        BrokerRefused: a permission is missing.
        ConnectionLost: the broker went away.
    """
    now = time.time()
    async with DeadQueue(connection) as queue:
        tally = Tally(queue.total, queue.others)
        async for held in queue:
            letter = DeadLetter.read(held.delivery)
            if wanted.takes(letter, now):
                tally.meant += 1
                if not most or tally.meant <= most:
                    tally.done += 1
                    see(letter, held.delivery)
    return tally


async def purge(connection: Connection, wanted: Wanted, *, most: int = 0) -> Tally:
    """Throws away the dead letters that are meant, the oldest first.

    Args:
        connection: to the broker.
        wanted: which are meant.
        most: so many at most; 0 for any number.

    Raises:
        BrokerUnavailable: there is no dead-letter queue.
        BrokerRefused: a permission is missing.
        ConnectionLost: the broker went away.
    """
    now = time.time()
    async with DeadQueue(connection) as queue:
        tally = Tally(queue.total, queue.others)
        async for held in queue:
            if wanted.takes(DeadLetter.read(held.delivery), now):
                tally.meant += 1
                if not most or tally.done < most:
                    tally.done += 1
                    tally.blobs += names_in(held.delivery.body)
                    queue.done(held)
    return tally


async def replay(
    connection: Connection,
    wanted: Wanted,
    *,
    most: int = 0,
    reply_to: str = "",
    keep_deadline: bool = False,
    dry: bool = False,
    direct: DirectReplies | None = None,
) -> Tally:
    """Sends the dead letters that are meant again, the oldest first; each is let go of once the broker has it.

    Args:
        connection: to the broker.
        wanted: which are meant.
        most: so many at most; 0 for any number.
        reply_to: the queue for answers to letters whose own reply queue is gone, or that named none.
        keep_deadline: whether their deadlines still count.
        dry: only find out what would be done.
        direct: to find out who still waits for a direct reply; None: nobody.

    Raises:
        BrokerUnavailable: there is no dead-letter queue.
        BrokerRefused: a permission is missing.
        ConnectionLost: the broker went away, or takes no messages.
    """
    now = time.time()
    async with DeadQueue(connection) as queue:
        sending = _Sending(connection, queue, Tally(queue.total, queue.others), reply_to, keep_deadline, direct)
        await sending.open()
        async for held in queue:
            letter = DeadLetter.read(held.delivery)
            if not wanted.takes(letter, now):
                continue
            sending.tally.meant += 1
            if most and sending.tally.meant > most:
                continue
            found = await sending.plan(held.delivery, letter)
            if isinstance(found, str):
                sending.tally.stay(letter, found)
            elif dry:
                sending.tally.done += 1
            else:
                await sending.send(held, letter, found)
        await sending.settle(leave=0)
    return sending.tally


class _Sending:
    """Letters on their way back, of which so many at most are not confirmed."""

    def __init__(
        self,
        connection: Connection,
        queue: DeadQueue,
        tally: Tally,
        reply_to: str,
        keep_deadline: bool,
        direct: DirectReplies | None,
    ) -> None:
        self._connection = connection
        self._queue = queue
        self._reply_to = reply_to
        self._keep_deadline = keep_deadline
        self._direct = direct
        self._there: dict[str, bool] = {}
        self._pending = 0
        self._settled = asyncio.Event()
        self._channel: Channel
        self.tally = tally

    async def open(self) -> None:
        self._channel = await self._connection.channel()

    async def plan(self, delivery: Delivery, letter: DeadLetter) -> Replay | str:
        """How a letter is sent, or why it cannot be."""
        answer: str | None = text_of(delivery.properties.reply_to) or None
        gone = answer is not None and not await self._exists(answer)
        if answer is None or gone:
            answer = self._reply_to or None
        found = replay_of(delivery, reply_to=answer, keep_deadline=self._keep_deadline, now=time.time())
        if found is None:
            where = f"exchange {letter.exchange!r}, routing key {letter.routing_key!r}"
            return f"they were not published to a requests queue but to {where}"
        if not await self._exists(found.queue):
            return f"there is no queue {found.queue}: start an orchestrator that serves what they ask for"
        if gone and answer is None:
            return "their reply queues are gone: name a queue for the answers with --reply-to"
        return found

    async def _exists(self, name: str) -> bool:
        if name not in self._there:
            if is_direct(name):
                self._there[name] = self._direct is not None and await self._direct.hears(name)
            else:
                self._there[name] = await queue_exists(self._connection, name)
        return self._there[name]

    async def send(self, held: Held, letter: DeadLetter, found: Replay) -> None:
        def then(outcome: Outcome) -> None:
            self._pending -= 1
            self._settled.set()
            match outcome:
                case Outcome.CONFIRMED:
                    self._queue.done(held)
                    self.tally.done += 1
                case Outcome.RETURNED:
                    self.tally.stay(letter, f"nothing takes what is published to {found.exchange!r} for {found.queue}")
                case Outcome.REJECTED:
                    self.tally.stay(letter, f"the queue {found.queue} is full")
                case Outcome.LOST:  # whoever waits finds the channel closed
                    pass

        await self.settle(leave=_WINDOW - 1)
        self._pending += 1
        try:
            self._channel.publish(
                found.exchange, found.routing_key, held.delivery.body, Properties(**found.properties), then=then
            )
        except ConnectionLost:
            raise self._reason() from None
        except RankmqError as error:
            self._pending -= 1
            self.tally.stay(letter, error.message)

    async def settle(self, *, leave: int) -> None:
        """Waits until no more than so many are not confirmed.

        Raises:
            BrokerRefused: a permission is missing.
            ConnectionLost: the broker went away, or says nothing.
        """
        while self._pending > leave:
            self._settled.clear()
            news = asyncio.ensure_future(self._settled.wait())
            waits: list[asyncio.Future[Any]] = [news, self._channel.closed]
            done, _ = await asyncio.wait(waits, timeout=_CONFIRM_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            if self._channel.closed.done():
                raise self._reason()
            if not done:
                why = "is short of memory or disk" if self._connection.blocked else "says nothing"
                raise ConnectionLost(f"the broker {why}: {self.tally.done} were sent again, the others are still there")

    def _reason(self) -> RankmqError:
        closed = self._channel.closed
        return closed.result() if closed.done() else ConnectionLost("the connection to the broker is closed")

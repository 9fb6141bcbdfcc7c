"""The log of answers on the broker: a stream that every orchestrator writes and, when it takes up its work, reads.

An entry is written once the broker has confirmed the answer that it is about. So whoever finds it does not send that
again; unless the broker was restarted since, and the queue with it may be another of the same name: then the transient
exchange that the writer had declared is gone. That an entry stands behind its answer on the same channel would not be
enough: when a channel ends, a quorum queue may drop what it was sent over it, and a stream keeps what came after.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque

from msgspec import structs

from ..schemas import codec
from ..schemas.errors import ConfigurationError, ConnectionLost, RankmqError
from ..schemas.messages import Answered, AnswersSent
from . import topology
from .answers import Answers
from .connection import Channel, Connection, Properties
from .delivery import Delivery

__all__ = ["AnswerLog"]

log = logging.getLogger(__name__)

_MOST_LOGGED_BYTES = 4096
"""Larger answers are in the memory of who gave them, and not in the log: twice the bytes through the broker."""

_FIRST_SECONDS = 3.0
_READ_SECONDS = 30.0
_PREFETCH = 200
_MOST_MARKS = 200


class AnswerLog:
    """Reads and writes the log over one connection.

    Args:
        connection: to the broker.
        channel: on which the answers are published.
        answers: the memory that is filled from it.
        orchestrator: the name of the one that writes.
        hours: how long entries are kept.
        most_bytes: how large the log may get.
    """

    def __init__(
        self, connection: Connection, channel: Channel, answers: Answers, orchestrator: str, hours: int, most_bytes: int
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._answers = answers
        self._orchestrator = orchestrator
        self._hours = hours
        self._most_bytes = most_bytes
        self._session = uuid.uuid4().hex
        self._next_offset: int | None = None
        self._unwritten: list[Answered] = []
        self._reading = asyncio.Lock()

    async def open(self) -> None:
        """Declares it, and reads what is in it. Bounds that it was declared with before stay."""
        channel = await self._connection.channel(confirm=False)  # which a refusal closes
        try:
            await channel.declare(topology.answers(self._hours, self._most_bytes))
            await channel.close()
        except ConfigurationError as error:
            log.warning("the log of answers keeps the bounds that it has: %s", error.message)
        mark = topology.Exchange(topology.boot_mark(self._session), "fanout", durable=False)
        await self._channel.declare((mark,))
        await self.catch_up()

    async def catch_up(self) -> None:
        """Reads what was written since it was last read, by whomever."""
        async with self._reading:
            began = time.monotonic()
            entries = await self._read()
            settled = {entry.session for entry in entries if entry.settled}
            marks = settled | await self._marks({entry.session for entry in entries if entry.answers} - settled)
            for entry in entries:
                for answered in entry.answers:
                    self._answers.learn(answered, entry.at_ms / 1000, routed=entry.session in marks)
            count = sum(len(entry.answers) for entry in entries)
            if count:
                log.info("%d answers are known from the log, read in %.2f s", count, time.monotonic() - began)

    async def _read(self) -> list[AnswersSent]:
        """The entries up to a mark that is put at the end for that."""
        mark = AnswersSent(orchestrator=self._orchestrator, session=uuid.uuid4().hex, at_ms=_now_ms())
        await self._channel.publish_confirmed("", topology.ANSWERS, codec.encode(mark))
        channel = await self._connection.channel(confirm=False, prefetch=_PREFETCH)
        entries: deque[AnswersSent] = deque()
        kept = 0
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        begin = self._next_offset

        def on_entry(delivery: Delivery) -> None:
            nonlocal kept
            channel.ack(delivery.tag)
            offset = delivery.headers.get("x-stream-offset")
            if not isinstance(offset, int) or (begin is not None and offset < begin):
                return  # the broker begins with the chunk that the wanted entry is in
            self._next_offset = offset + 1
            try:
                entry = codec.decode_answers_sent(delivery.body)
            except RankmqError as error:
                log.warning("an entry in the log of answers that cannot be read: %s", error.message)
                return
            if entry.session == mark.session:
                if not done.done():
                    done.set_result(None)
            elif (entry.answers or entry.settled) and entry.session != self._session:
                entries.append(entry)
                kept += len(entry.answers)
                while kept - len(entries[0].answers) >= self._answers.most_ids:  # older ones would be forgotten at once
                    kept -= len(entries.popleft().answers)

        since = time.time() - 3600.0 * self._hours if begin is None else begin
        tag = await channel.consume(topology.ANSWERS, on_entry, offset=since)
        ends: list[asyncio.Future[object]] = [done, channel.closed]  # type: ignore[list-item]  # any result will do
        await asyncio.wait(ends, timeout=_FIRST_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if self._next_offset is None and not done.done() and not channel.closed.done():
            # By our clock everything in it is too old; by the broker's there is at least our mark.
            log.warning(
                "our clock is ahead of the broker's by more than %d h: the log of answers is not read", self._hours
            )
            await channel.cancel(tag)
            await channel.consume(topology.ANSWERS, on_entry, offset="last")
        await asyncio.wait(ends, timeout=_READ_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if channel.closed.done():
            raise channel.closed.result()
        if not done.done():
            log.warning("the log of answers was not read to its end within %g s", _READ_SECONDS)
        await channel.close()
        return list(entries)

    async def _marks(self, sessions: set[str]) -> set[str]:
        """Of other connections, those since whose beginning the broker has not been restarted."""
        there: set[str] = set()
        for session in list(sessions)[-_MOST_MARKS:]:
            channel = await self._connection.channel(confirm=False)
            if await channel.has_exchange(topology.boot_mark(session)):
                there.add(session)
                await channel.close()
        return there

    def add(self, answered: Answered) -> None:
        """Puts an answer on record that the broker has confirmed: with what else is confirmed in this turn of the loop.

        No later, since what is not on record is answered twice when the connection dies. Its request may be
        acknowledged before: then it does not come again, and the record is for who asks again under the same id.
        """
        if answered.body is not None and len(answered.body) > _MOST_LOGGED_BYTES:
            answered = structs.replace(answered, body=None)
        self._unwritten.append(answered)
        if len(self._unwritten) == 1:
            asyncio.get_running_loop().call_soon(self._write_all)

    def _write_all(self) -> None:
        answers, self._unwritten = self._unwritten, []
        if answers:
            self._write(tuple(answers))

    def _write(self, answers: tuple[Answered, ...], *, settled: bool = False) -> None:
        entry = AnswersSent(
            orchestrator=self._orchestrator, session=self._session, at_ms=_now_ms(), answers=answers, settled=settled
        )
        try:
            self._channel.publish("", topology.ANSWERS, codec.encode(entry), Properties(app_id="rankmq"))
        except ConnectionLost:
            log.debug("%d answers are not on record: the connection ended", len(answers))

    async def close(self) -> None:
        """Says that all its answers are confirmed, where they are, and takes the mark back that would show it else.

        Of an orchestrator that is killed the mark stays until the broker is restarted.
        """
        self._write_all()
        if self._channel.is_open:
            self._write((), settled=True)
            await self._channel.delete_exchanges([topology.boot_mark(self._session)])


def _now_ms() -> int:
    return int(time.time() * 1000)

"""Names for direct replies, as they come with messages: which of them can be published to, and who is still there.

RabbitMQ takes such a name apart when something is published to it. One that it did not make itself, and cannot read,
ends the connection of whoever publishes (3.10.8: 541 INTERNAL_ERROR). Whether it can read one is seen by asking for its
queue on a connection that nothing else depends on.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from ..schemas.errors import AlreadyRunning, BrokerUnavailable, RankmqError
from .connection import Channel, Connection

__all__ = ["DirectReplies", "is_direct"]

log = logging.getLogger(__name__)

_PREFIX = "amq.rabbitmq.reply-to."
_MOST_KNOWN = 8192
_MOST_WAITING = 1000
_DEFECT = " 541 "
"""In the reason for which a connection was closed: the broker met a defect of its own."""


class _Found(enum.Enum):
    THERE, GONE, UNREADABLE, UNKNOWN = range(4)


def is_direct(name: str) -> bool:
    """Whether it is the name of somebody who waits for a direct reply."""
    return name.startswith(_PREFIX)


class DirectReplies:
    """What is known of names for direct replies; asks for those that are new, one after the other.

    Args:
        connect: opens a connection of its own; called when first asked, and after a name that the broker cannot read.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._asking = asyncio.Lock()
        self._known: OrderedDict[str, bool] = OrderedDict()
        self._waiting: set[asyncio.Task[None]] = set()
        self._warned = False

    def is_safe(self, name: str) -> bool | None:
        """Whether something can be published to a name, direct or not; None where `try_out` has to find out."""
        if not is_direct(name):
            return True
        found = self._known.get(name)
        if found is not None:
            self._known.move_to_end(name)
        return found

    async def try_out(self, name: str) -> bool:
        """Whether something can be published to a name; what cannot be found out is taken to be so."""
        async with self._asking:
            known = self.is_safe(name)
            if known is not None:
                return known
            found = await self._ask(name)
            if found is not _Found.UNKNOWN:
                self._known[name] = found is not _Found.UNREADABLE
                while len(self._known) > _MOST_KNOWN:
                    self._known.popitem(last=False)
            return found is not _Found.UNREADABLE

    def when_safe(self, name: str, publish: Callable[[], None]) -> None:
        """Has something published to a name, at once or once it has been tried out; never, if that cannot be.

        Where more wait than can be tried out in time, it is dropped: whoever asked gives up waiting after a while.
        """
        safe = self.is_safe(name)
        if safe:
            publish()
        elif safe is None and len(self._waiting) < _MOST_WAITING:
            self._waiting.add(task := asyncio.get_running_loop().create_task(self._later(name, publish)))
            task.add_done_callback(self._waiting.discard)

    async def _later(self, name: str, publish: Callable[[], None]) -> None:
        if await self.try_out(name):
            publish()

    async def hears(self, name: str) -> bool:
        """Whether whoever waits for a direct reply is still there; what cannot be found out is taken to be so."""
        async with self._asking:
            return await self._ask(name) in (_Found.THERE, _Found.UNKNOWN)

    async def close(self) -> None:
        """Closes its connection, if it has one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _ask(self, name: str) -> _Found:
        try:
            connection, channel = await self._open_channel()
        except RankmqError as error:
            if not self._warned:  # a limit on connections, as an example
                log.warning("names for direct replies are taken as they come: %s", error.message)
                self._warned = True
            return _Found.UNKNOWN
        try:
            await channel.depth(name)
        except RankmqError as error:
            self._channel = None
            if not connection.is_open:
                reason = await connection.closed
                return _Found.UNREADABLE if _DEFECT in f"{reason.message} " else _Found.UNKNOWN
            if isinstance(error, AlreadyRunning):  # exclusive to its connection
                return _Found.THERE
            return _Found.GONE if isinstance(error, BrokerUnavailable) else _Found.UNKNOWN
        return _Found.THERE

    async def _open_channel(self) -> tuple[Connection, Channel]:
        connection, channel = self._connection, self._channel
        if connection is None or not connection.is_open:
            connection, channel = await self._connect(), None
        self._connection, self._channel = connection, channel
        if channel is None:
            self._channel = channel = await connection.channel(confirm=False)
        return connection, channel

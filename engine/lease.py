"""Who serves a group: of several orchestrators the one that holds the group's lease; the others stand by.

The lease is a queue with a single active consumer. Each contender puts a claim into it and consumes one; the broker
gives claims to one contender only, which keeps one unacknowledged for as long as it serves. When its connection goes,
by whatever cause, the broker hands the lease on. One that comes back from the dead finds its connection closed; what it
may still have sent carries an old epoch.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ..schemas.messages import GroupId
from . import topology
from .connection import Channel, Connection, Properties
from .delivery import Delivery

__all__ = ["Lease"]

log = logging.getLogger(__name__)

_RENEW_SECONDS = 300.0
"""The broker closes the channel of a consumer that keeps a delivery for half an hour (consumer_timeout)."""


class Lease:
    """The lease of one group, contended for over one connection.

    Args:
        connection: whose end is the lease's end.
        group: the group.
    """

    def __init__(self, connection: Connection, group: GroupId) -> None:
        self._connection = connection
        self._group = group
        self._queue = topology.lease_queue(group)
        self._channel: Channel | None = None
        self._held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._claim: Delivery | None = None
        self._renewal: asyncio.TimerHandle | None = None

    async def acquire(self, patience: float = 0.5) -> None:
        """Waits until the lease is ours; says so in the log if it takes longer than `patience` seconds.

        Raises:
            BrokerRefused: a permission is missing.
            ConnectionLost: the connection ended meanwhile.
        """
        channel = self._channel = await self._connection.channel(prefetch=1, vital=True)
        await channel.declare(topology.lease(self._group))
        await channel.consume(self._queue, self._on_claim)
        self._put_claim(channel)
        ends: list[asyncio.Future[Any]] = [self._held, channel.closed]
        await asyncio.wait(ends, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if not any(end.done() for end in ends):
            log.info("standing by: another orchestrator serves %s", self._group)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._held.done():
                log.warning("taking over %s", self._group)
        if not self._held.done():
            raise channel.closed.result()

    def _put_claim(self, channel: Channel) -> None:
        channel.publish("", self._queue, b"", Properties(app_id="rankmq"))

    def _on_claim(self, delivery: Delivery) -> None:
        self._claim = delivery
        self._renewal = asyncio.get_running_loop().call_later(_RENEW_SECONDS, self._renew)
        if not self._held.done():
            self._held.set_result(None)

    def _renew(self) -> None:
        """Takes a fresh claim for the old one; as the active consumer we are the one to get it."""
        channel, claim = self._channel, self._claim
        if channel is not None and channel.is_open and claim is not None:
            self._put_claim(channel)
            channel.ack(claim.tag)

    def release(self) -> None:
        """Lets the next contender have it at once; nothing if it is not held."""
        if self._renewal is not None:
            self._renewal.cancel()
        channel, claim = self._channel, self._claim
        self._claim = None
        if channel is not None and claim is not None:
            channel.ack(claim.tag)

"""Requests that run for longer than the broker lets a delivery be unacknowledged (consumer_timeout, half an hour).

Such a request is put as a copy into a queue of the orchestrator's own, which is its only consumer; once the copy has
come, it stands for the request, and the first delivery is acknowledged. So the broker holds the request all the time.
When the orchestrator is gone for ten seconds, the copy goes back to its requests queue.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable

from ..schemas.errors import RankmqError
from . import topology
from .confirms import Outcome
from .connection import Channel, Properties
from .deadline import DEADLINE_HEADER, seconds_left
from .delivery import Delivery
from .open_request import HELD_HEADER, OpenRequest

__all__ = ["Custody"]

log = logging.getLogger(__name__)


class Custody:
    """Keeps long requests.

    Args:
        channel: on which requests are taken and acknowledged.
        orchestrator: its name.
        seconds: how long a delivery may be unacknowledged.
        clock: seconds, monotonic.
        wall: seconds since 1970.
        receive: takes a copy whose request is not under way here, as any other request.
    """

    def __init__(
        self,
        channel: Channel,
        orchestrator: str,
        seconds: float,
        clock: Callable[[], float],
        wall: Callable[[], float],
        receive: Callable[[Delivery], None],
    ) -> None:
        self._channel = channel
        self._orchestrator = orchestrator
        self._exchange = topology.held_exchange(orchestrator)
        self._seconds = seconds
        self._clock = clock
        self._wall = wall
        self._receive = receive
        self._expected: dict[str, OpenRequest] = {}
        self._opened = False

    async def tick(self, requests: Iterable[OpenRequest]) -> None:
        """Time passed: what was delivered too long ago is put into custody."""
        now = self._clock()
        due = [it for it in requests if now - it.delivered >= self._seconds]
        if due and not self._opened:
            self._opened = True
            await self._open()
        for open_ in due:
            open_.delivered = now  # tried again after as long, should it not work
            self._put(open_)

    async def _open(self) -> None:
        await self._channel.declare(topology.held(self._orchestrator))
        # Not bounded but by what is put there.
        await self._channel.consume(self._exchange, self._on_copy, prefetch=0)

    def _put(self, open_: OpenRequest) -> None:
        token = uuid.uuid4().hex
        delivery, given = open_.delivery, open_.delivery.properties
        # CC and BCC are for who publishes first: they would send the copy to others as well.
        headers = {name: value for name, value in delivery.headers.items() if name not in ("CC", "BCC")}
        headers[HELD_HEADER] = token
        try:
            left = seconds_left(given, delivery.headers, self._wall())
        except RankmqError:
            left = None
        if left is not None:
            headers[DEADLINE_HEADER] = int((self._wall() + left) * 1000)
        properties = Properties(
            message_id=given.message_id,
            correlation_id=given.correlation_id,
            reply_to=given.reply_to,
            content_type=given.content_type,
            content_encoding=given.content_encoding,
            timestamp=given.timestamp,
            priority=given.priority,
            delivery_mode=2,
            headers=headers,
        )

        def then(outcome: Outcome) -> None:
            if outcome is not Outcome.CONFIRMED:
                self._expected.pop(token, None)
                log.warning("a long request could not be put into custody: %s", outcome.value)

        self._expected[token] = open_
        try:
            self._channel.publish(self._exchange, delivery.routing_key, delivery.body, properties, then=then)
        except RankmqError as error:
            self._expected.pop(token, None)
            log.warning("a long request could not be put into custody: %s", error.message)

    def _on_copy(self, delivery: Delivery) -> None:
        open_ = self._expected.pop(str(delivery.headers.get(HELD_HEADER)), None)
        if open_ is None:
            self._receive(delivery)
        elif open_.ended:
            self._channel.ack(delivery.tag)
        else:
            before, open_.delivery = open_.delivery, delivery
            self._channel.ack(before.tag)
            log.info("request %s runs long: taken anew from the broker", open_.id, extra={"request": open_.id})

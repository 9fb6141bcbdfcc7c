"""A producer that speaks AMQP itself, as one in any language would, with a durable reply queue of its own.

It hides nothing: each reply that the broker delivers is written down, a second one too; which of them such a producer
drops, as the protocol has it, is for `tally` to say. When it is killed, the next process of the same name reads the
journal, publishes once more what the broker had not confirmed, under the same ids, and takes the answers from the
queue.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine import topology
from ...engine.address import BrokerAddress
from ...engine.client_values import to_wire
from ...engine.confirms import Outcome
from ...engine.connection import Channel, Connection, Properties
from ...engine.delivery import Delivery
from ...schemas import codec
from ...schemas.errors import BrokerRefused, BrokerUnavailable, ConnectionLost, RankmqError
from ...schemas.messages import Request
from ...schemas.tensors import to_array
from .journal import WRONG, Journal, read
from .questions import METHOD, SERVABLE, Questions, weights_of

__all__ = ["Order", "RawProducer", "verdict_of"]

log = logging.getLogger(__name__)

_AWAY_SECONDS = 120.0
_AGAIN_SECONDS = 0.2
_SETTLE_SECONDS = 2.0
"""How long to listen for what comes twice, once everything is answered."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a producer is told.

    Attributes:
        name: which its requests' ids begin with.
        journal: its journal's file.
        weights: the folder with the servable's weights.
        rows: of the inputs.
        seed: of the inputs.
        in_flight: how many requests are unanswered at once.
    """

    name: str
    journal: str
    weights: str
    rows: int
    seed: int
    in_flight: int

    def questions(self) -> Questions:
        """What it asks."""
        return Questions(weights_of(Path(self.weights)), self.rows, self.seed)


class RawProducer:
    """One life of the producer.

    Args:
        order: see `Order`.
        address: the broker's.
    """

    def __init__(self, order: Order, address: BrokerAddress) -> None:
        self._order = order
        self._address = address
        self._queue = f"chaos.{order.name}"
        self._questions = order.questions()
        self._journal = Journal(Path(order.journal))
        self._unconfirmed: set[int] = set()
        self._unanswered: set[int] = set()
        self._next = 0
        for word, _, *told in read(Path(order.journal)):
            self._remember(word, told)
        self._channel: Channel | None = None
        self._stop = asyncio.Event()
        self._done = asyncio.Event()

    def _remember(self, word: str, told: list[Any]) -> None:
        match word:
            case "sent":
                self._next = max(self._next, told[0] + 1)
                self._unconfirmed.add(told[0])
                self._unanswered.add(told[0])
            case "accepted":
                self._unconfirmed.discard(told[0])
            case "reply":
                self._unconfirmed.discard(told[0])
                self._unanswered.discard(told[0])

    async def run(self) -> None:
        """Asks until SIGTERM; then waits for the answers that are missing."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._told_to_stop)
        loop = asyncio.get_running_loop()
        since = loop.time()
        while not self._done.is_set():
            try:
                connection = await Connection.open(self._address, name=self._queue, patience=_AWAY_SECONDS)
            except BrokerRefused:  # as it does while it shuts down
                if loop.time() - since > _AWAY_SECONDS:
                    raise
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            try:
                await self._session(connection)
            except (BrokerRefused, BrokerUnavailable, ConnectionLost) as error:
                log.warning("the connection to the broker ended: %s", error.message)
                self._journal.say("lost", error.message)
                await asyncio.sleep(_AGAIN_SECONDS)
            finally:
                self._channel, since = None, loop.time()
                await connection.close()

    def _told_to_stop(self) -> None:
        self._stop.set()
        self._finish_if_answered()

    async def _session(self, connection: Connection) -> None:
        channel = await connection.channel(vital=True)
        await channel.declare((topology.Queue(self._queue, arguments={"x-queue-type": "quorum"}),))
        await channel.consume(self._queue, self._on_reply)
        self._channel = channel
        self._journal.say("opened")
        for number in sorted(self._unconfirmed):
            self._publish(number)
        self._ask()
        done = asyncio.ensure_future(self._done.wait())
        try:
            ends: list[asyncio.Future[Any]] = [done, connection.closed]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if connection.closed.done():
                raise connection.closed.result()
            await asyncio.wait([connection.closed], timeout=_SETTLE_SECONDS)
        finally:
            done.cancel()

    def _ask(self) -> None:
        """Asks as much as may be under way."""
        while not self._stop.is_set() and len(self._unanswered) < self._order.in_flight and self._channel is not None:
            number, self._next = self._next, self._next + 1
            self._journal.say("sent", number)
            self._unanswered.add(number)
            self._unconfirmed.add(number)
            self._publish(number)

    def _publish(self, number: int) -> None:
        channel = self._channel
        if channel is None or number not in self._unconfirmed:
            return
        name = f"{self._order.name}-{number}"
        instances = to_wire(self._questions.inputs(number))
        properties = Properties(
            message_id=name,
            correlation_id=name,
            reply_to=self._queue,
            content_type=codec.MSGPACK,
            delivery_mode=2,
            timestamp=int(time.time()),
        )

        def again() -> None:
            if channel is self._channel:  # over another one it has been sent again already
                self._publish(number)

        def then(outcome: Outcome) -> None:
            if outcome is Outcome.CONFIRMED:
                self._unconfirmed.discard(number)
                self._journal.say("accepted", number)
            elif outcome is not Outcome.LOST:  # which is sent again over the next connection
                self._journal.say("refused", number)
                asyncio.get_running_loop().call_later(_AGAIN_SECONDS, again)

        body = codec.encode_request(Request(servable=SERVABLE, method=METHOD, instances=instances))
        try:
            channel.publish(topology.REQUESTS, SERVABLE, body, properties, then=then)
        except ConnectionLost:
            self._channel = None  # until there is another

    def _on_reply(self, delivery: Delivery) -> None:
        properties = delivery.properties
        name, _, number = str(properties.correlation_id).rpartition("-")
        if name != self._order.name or not number.isdecimal():
            log.error("a reply to %r", properties.correlation_id)
            number = "-1"
        verdict = verdict_of(self._questions, int(number), delivery.body, properties.content_type)
        self._journal.say("reply", int(number), str(properties.message_id), delivery.redelivered, *verdict)
        if self._channel is not None:
            self._channel.ack(delivery.tag)
        self._unanswered.discard(int(number))
        self._unconfirmed.discard(int(number))
        self._ask()
        self._finish_if_answered()

    def _finish_if_answered(self) -> None:
        if self._stop.is_set() and not self._unanswered:
            self._done.set()


def verdict_of(questions: Questions, number: int, body: bytes, content_type: str | None) -> tuple[str, str]:
    """What an answer is worth: `RIGHT`, `WRONG` or the code of its error, and a text."""
    try:
        reply = codec.decode_reply(body, content_type or codec.MSGPACK)
    except RankmqError as error:
        return WRONG, error.message
    refusal = reply.error or next((it.error for it in reply.errors), None)
    if refusal is not None:
        return refusal.code, refusal.message
    row = reply.outputs[0] if len(reply.outputs) == 1 else None
    if row is None:
        return WRONG, f"{len(reply.outputs)} outputs for one instance"
    return questions.verdict(number, {name: to_array(tensor) for name, tensor in row.items()})

"""Asking what runs: every orchestrator on a broker hears the question and answers with its `Status`."""

from __future__ import annotations

import asyncio
import logging

from ..schemas import codec
from ..schemas.errors import BrokerUnavailable, RankmqError
from ..schemas.messages import Status, StatusQuery
from . import topology
from .confirms import Outcome
from .connection import Connection, Properties
from .delivery import Delivery
from .settings import Settings

__all__ = ["ask_status", "collect_status"]

log = logging.getLogger(__name__)

_DIRECT = "amq.rabbitmq.reply-to"
_ASK_AGAIN_SECONDS = 0.5


async def ask_status(connection: Connection, *, timeout: float = 3.0, settle: float = 0.3) -> list[Status]:
    """Asks every orchestrator on the broker.

    Args:
        connection: to the broker.
        timeout: seconds to wait for the first answer.
        settle: seconds to wait for others after it.

    Returns:
        The answers, by the orchestrators' names; none where no orchestrator runs.

    Raises:
        BrokerRefused: a permission is missing.
        ConnectionLost: the broker went away.
    """
    loop = asyncio.get_running_loop()
    answers: dict[str, Status] = {}
    known: asyncio.Future[None] = loop.create_future()

    def on_answer(delivery: Delivery) -> None:
        try:
            status = codec.decode_status(delivery.body)
        except RankmqError as error:
            log.warning("a status that cannot be read: %s", error.message)
            return
        answers[status.orchestrator] = status
        if not known.done():
            known.set_result(None)

    def then(outcome: Outcome) -> None:
        if outcome is not Outcome.CONFIRMED and not known.done():
            known.set_result(None)  # nobody listens

    channel = await connection.channel()
    try:
        await channel.consume(_DIRECT, on_answer, no_ack=True)
        properties = Properties(content_type=codec.MSGPACK, reply_to=_DIRECT, app_id="rankmq")
        channel.publish(topology.STATUS, "", codec.encode(StatusQuery()), properties, then=then)
        waits: list[asyncio.Future[None] | asyncio.Future[RankmqError]] = [known, channel.closed]
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if answers and settle:
            await asyncio.wait([channel.closed], timeout=settle)
        if channel.closed.done():
            reason = channel.closed.result()
            if isinstance(reason, BrokerUnavailable):  # no such exchange: no orchestrator has ever been on this broker
                return []
            raise reason
        return [answers[name] for name in sorted(answers)]
    finally:
        await channel.close()


def collect_status(
    settings: Settings, *, name: str, timeout: float = 3.0, settle: float = 0.3, patience: float = 0.0
) -> list[Status]:
    """The same for a caller without a loop: connects, asks, closes.

    Args:
        settings: the broker's URL must be set.
        name: of the connection, in the broker's list.
        timeout: seconds to wait for the first answer to a question.
        settle: seconds to wait for others after it.
        patience: seconds to go on asking while nobody answers.

    Raises:
        OperatorError: the broker cannot be used.
        ConnectionLost: the broker went away.
    """

    async def ask() -> list[Status]:
        loop = asyncio.get_running_loop()
        connection = await Connection.open(settings.address(), name=name, patience=settings.connect_timeout)
        until = loop.time() + patience
        try:
            while not (answers := await ask_status(connection, timeout=timeout, settle=settle)) and loop.time() < until:
                await asyncio.wait([connection.closed], timeout=_ASK_AGAIN_SECONDS)
            return answers
        finally:
            await connection.close()

    return asyncio.run(ask())

"""What is in the dead-letter queue at the end of a chaos run, where nothing should be."""

from __future__ import annotations

import asyncio

from ...engine import topology
from ...engine.address import BrokerAddress
from ...engine.connection import Connection
from ...engine.delivery import Delivery

__all__ = ["dead_letters"]

_LOOK_SECONDS = 10.0


async def dead_letters(address: BrokerAddress) -> list[dict[str, str]]:
    """Looks at every dead letter, and leaves them where they are.

    Returns:
        The id, the code and the reason of each.

    Raises:
        RankmqError: the broker cannot be used.
    """
    connection = await Connection.open(address, name="rankmq chaos", patience=_LOOK_SECONDS)
    try:
        channel = await connection.channel()
        found: list[dict[str, str]] = []
        count = (await channel.depth(topology.DEAD)).messages
        all_seen = asyncio.Event()

        def on_letter(delivery: Delivery) -> None:
            headers = delivery.headers
            reason = str(headers.get("rankmq-reason", headers.get("x-first-death-reason", "")))
            name = str(delivery.properties.message_id)
            found.append({"id": name, "code": str(headers.get("rankmq-code", "")), "reason": reason})
            if len(found) >= count:
                all_seen.set()

        if count:
            await channel.consume(topology.DEAD, on_letter)
            await asyncio.wait([asyncio.ensure_future(all_seen.wait())], timeout=_LOOK_SECONDS)
        return found[:count]
    finally:
        await connection.close()

"""Dead letters on a real broker, in a virtual host of their own."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from rankmq.engine import topology
from rankmq.engine.address import BrokerAddress
from rankmq.engine.channel import Channel
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Connection, Properties
from rankmq.engine.dead_letters import headers_of
from rankmq.schemas.errors import InvalidInput, RankmqError
from rankmq.workers.broker import PrivateBroker, find_server

from tests.integration.connections import SOON, until


class Site:
    """A broker with the queues of the servables `matmul` and `small`, as an orchestrator leaves them.

    Args:
        connection: to it.
        channel: with confirms.
    """

    def __init__(self, connection: Connection, channel: Channel) -> None:
        self.connection = connection
        self.channel = channel
        self._numbers = itertools.count()

    async def bury(self, count: int = 1, error: RankmqError | None = None, **given: Any) -> list[str]:
        """Puts dead letters into the queue; gives their ids."""
        ids = [f"{next(self._numbers):05d}" for _ in range(count)]
        outcomes: list[Outcome] = []
        for name in ids:
            self._bury(name, outcomes, error, **given)
        await until(lambda: len(outcomes) == count)
        assert set(outcomes) == {Outcome.CONFIRMED}
        return ids

    def _bury(
        self,
        name: str,
        outcomes: list[Outcome],
        error: RankmqError | None,
        *,
        key: str = "matmul",
        exchange: str = topology.REQUESTS,
        body: bytes | None = None,
        headers: dict[str, Any] | None = None,
        **properties: Any,
    ) -> None:
        told = headers_of(
            error or InvalidInput("x is odd"),
            request=name,
            attempts=1,
            exchange=exchange,
            routing_key=key,
            headers=headers or {},
            now=time.time(),
        )
        given = Properties(message_id=name, delivery_mode=2, headers=told, **properties)
        self.channel.publish(topology.DEAD, key or "any", body or request(), given, then=outcomes.append)

    async def depth(self, queue: str) -> int:
        """How many messages wait in a queue."""
        return (await self.channel.depth(queue)).messages

    async def there(self, queue: str, count: int) -> None:
        """Waits until so many messages wait in a queue."""
        end = time.monotonic() + SOON
        while (found := await self.depth(queue)) != count:
            assert time.monotonic() < end, f"{found} messages in {queue}, not {count}"

    async def take(self, queue: str, count: int) -> list[Any]:
        """Takes messages out of a queue."""
        got: list[Any] = []
        channel = await self.connection.channel()
        await channel.consume(queue, got.append, no_ack=True)
        await until(lambda: len(got) >= count)
        await channel.close()
        assert len(got) == count
        return got


def request(servable: str = "matmul", method: str = "predict", **values: Any) -> bytes:
    body: bytes = msgpack.packb({"servable": servable, "method": method, "instances": [values or {"x": 1}]})
    return body


@asynccontextmanager
async def site(address: BrokerAddress) -> AsyncIterator[Site]:
    """A site over a connection of its own; what is in its dead-letter queue is gone afterwards."""
    connection = await Connection.open(address, name=f"test {uuid.uuid4().hex[:6]}")
    try:
        channel = await connection.channel()
        await channel.declare(topology.servable_queues(("matmul", "small")))
        yield Site(connection, channel)
    finally:
        await connection.close()


@contextmanager
def hosts(folder: Path, count: int = 20) -> Iterator[Iterator[BrokerAddress]]:
    """A node with so many virtual hosts that nobody has used."""
    if find_server() is None:
        pytest.skip("needs a rabbitmq-server of its own on this machine")
    names = [f"dead-{number}" for number in range(count)]
    with PrivateBroker(folder, vhosts=names) as node:
        address = BrokerAddress.parse(node.url)
        yield iter([replace(address, vhost=name) for name in names])

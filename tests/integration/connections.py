"""Connections to a real broker for tests that are coroutines."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from rankmq.engine.address import BrokerAddress
from rankmq.engine.channel import Channel
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Connection

SOON = 10.0


def run(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs a coroutine as a test, and not for ever."""

    def wrapped(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 60))

    wrapped.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    wrapped.__name__ = test.__name__
    wrapped.__doc__ = test.__doc__
    return wrapped


@asynccontextmanager
async def connected(address: BrokerAddress, **given: Any) -> AsyncIterator[Connection]:
    connection = await Connection.open(address, name="test", **given)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def channels(address: BrokerAddress, count: int = 1, **given: Any) -> AsyncIterator[list[Channel]]:
    async with connected(address) as connection:
        yield [await connection.channel(**given) for _ in range(count)]


async def until(holds: Callable[[], Any], seconds: float = SOON) -> Any:
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.01)
    return found


class Fates(dict[str, Outcome]):
    """What became of publishes, by name."""

    def of(self, name: str) -> Callable[[Outcome], None]:
        def then(outcome: Outcome) -> None:
            assert name not in self, "told once"
            self[name] = outcome

        return then

"""Whether anybody hears a direct reply, asked of a real broker, which says nothing of the reply itself."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from rankmq.engine import topology
from rankmq.engine.address import BrokerAddress
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Channel, Connection, Properties
from rankmq.engine.front import Front

from tests.integration.connections import channels, connected, run, until


@pytest.fixture
def address(broker_url: str) -> BrokerAddress:
    return BrokerAddress.parse(broker_url)


@pytest.fixture
def name() -> str:
    return f"test.{uuid.uuid4().hex[:8]}"


class Owner:
    def run_guarded(self, work: Any) -> None:
        work()


async def front(connection: Connection) -> Front:
    return Front(await connection.channel(), None, None, Owner(), None, connection)  # type: ignore[arg-type]


async def hears(found: Front, reply_to: str) -> bool:
    heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    found.heard(reply_to, heard.set_result)
    return await asyncio.wait_for(heard, 10)


async def consumer(connection: Connection, inbox: Channel, name: str) -> str:
    """A consumer of direct replies, by the name that the broker has made up for it."""
    channel = await connection.channel()
    await channel.consume("amq.rabbitmq.reply-to", lambda _: None, no_ack=True)
    asked: list[str] = []
    tag = await inbox.consume(name, lambda it: asked.append(it.properties.reply_to), no_ack=True)
    await channel.publish_confirmed("", name, b"", Properties(reply_to="amq.rabbitmq.reply-to"))
    await until(lambda: asked)
    await inbox.cancel(tag)
    return asked[0]


@run
async def test_who_is_gone_does_not_hear_and_who_is_there_does(address, name):
    async with connected(address) as engine, channels(address) as (inbox,), connected(address) as stays:
        await inbox.declare((topology.Queue(name, durable=False, exclusive=True),))
        found = await front(engine)
        there = await consumer(stays, inbox, name)
        async with connected(address) as goes:
            gone = await consumer(goes, inbox, name)
            assert await hears(found, gone)
        assert not await hears(found, gone)
        assert await hears(found, there)
        assert await inbox.publish_confirmed("", gone, b"a reply") is Outcome.CONFIRMED  # and so nobody would know
        assert engine.is_open


@run
async def test_what_cannot_be_asked_is_taken_for_heard(address, name):
    async with connected(address) as engine, channels(address) as (inbox,), connected(address) as goes:
        await inbox.declare((topology.Queue(name, durable=False, exclusive=True),))
        found, gone = await front(engine), await consumer(goes, inbox, name)
        await goes.close()
        await engine.close()
        assert await hears(found, gone)


@run
async def test_of_a_queue_that_is_not_the_brokers_own_nothing_is_asked(address, name):
    async with connected(address) as engine:
        assert await hears(await front(engine), name)

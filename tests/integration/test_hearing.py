"""Whether anybody hears a direct reply, asked of a real broker, which says nothing of the reply itself."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import uuid
from functools import partial
from typing import Any

import pytest
from rankmq.engine import topology
from rankmq.engine.address import BrokerAddress
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Channel, Connection, Properties
from rankmq.engine.direct_replies import DirectReplies
from rankmq.engine.front import Front
from rankmq.schemas.errors import BrokerUnavailable

from tests.integration.connections import channels, connected, run, until

PREFIX = "amq.rabbitmq.reply-to."


@pytest.fixture
def address(broker_url: str) -> BrokerAddress:
    return BrokerAddress.parse(broker_url)


@pytest.fixture
def name() -> str:
    return f"test.{uuid.uuid4().hex[:8]}"


class Owner:
    def run_guarded(self, work: Any) -> None:
        work()


async def front(connection: Connection, address: BrokerAddress) -> Front:
    direct = DirectReplies(partial(Connection.open, address, name="asking"))
    return Front(await connection.channel(), None, None, Owner(), None, direct)  # type: ignore[arg-type]


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
        found = await front(engine, address)
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
        gone = await consumer(goes, inbox, name)
        await goes.close()
        assert await hears(await front(engine, dataclasses.replace(address, port=1)), gone)


@run
async def test_of_a_queue_that_is_not_the_brokers_own_nothing_is_asked(address, name):
    async with connected(address) as engine:
        assert await hears(await front(engine, address), name)


# ----------------------------------------------------------------------------------------------------- what can be sent


@run
async def test_names_that_the_broker_cannot_read_are_found_out_at_no_cost_for_others(address, name):
    opened: list[Connection] = []

    async def connect() -> Connection:
        opened.append(await Connection.open(address, name="asking"))
        return opened[-1]

    direct = DirectReplies(connect)
    async with connected(address) as engine, channels(address) as (inbox,), connected(address) as goes:
        await inbox.declare((topology.Queue(name, durable=False, exclusive=True),))
        good = await consumer(goes, inbox, name)
        raw = base64.b64decode(good.split(".")[-2])
        far = PREFIX + base64.b64encode(raw[:-12] + b"\xff" * 8 + raw[-4:]).decode() + ".x"
        elsewhere = PREFIX + base64.b64encode(raw.replace(b"@", b"@9")).decode() + ".x"
        bad = [PREFIX + "made.up", far, elsewhere]
        fine = [good, PREFIX + "gone", PREFIX, name]
        assert [direct.is_safe(it) for it in (*bad, *fine)] == [None] * 6 + [True]
        assert [await direct.try_out(it) for it in (*bad, *fine)] == [False] * 3 + [True] * 4
        assert [direct.is_safe(it) for it in (*bad, *fine)] == [False] * 3 + [True] * 4
        assert len(opened) == 4, "a new one after each that it cannot read"
        assert not await direct.hears(bad[0])
        said: list[str] = []
        for it in (*bad, *fine, PREFIX + "another"):
            direct.when_safe(it, lambda it=it: said.append(it))  # type: ignore[misc]
        await until(lambda: len(said) == 5)
        assert said == [*fine, PREFIX + "another"]
        for it in fine:  # and so it is
            await (await engine.channel()).publish_confirmed("", it, b"", Properties())
        assert engine.is_open
        assert await (await engine.channel()).publish_confirmed("", bad[0], b"", Properties()) is Outcome.LOST
    await direct.close()
    assert not opened[-1].is_open


@run
async def test_of_those_that_wait_to_be_tried_out_there_are_only_so_many():
    begun, opened = asyncio.Event(), asyncio.Event()

    async def connect() -> Connection:
        begun.set()
        await opened.wait()
        raise BrokerUnavailable("no more connections")

    direct, said = DirectReplies(connect), list[int]()
    for number in range(3000):
        direct.when_safe(f"{PREFIX}{number}", lambda number=number: said.append(number))  # type: ignore[misc]
    await begun.wait()
    opened.set()
    await until(lambda: len(said) >= 1000)
    await asyncio.sleep(0)
    assert said == list(range(1000))

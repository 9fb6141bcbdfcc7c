"""The connection to a real broker when it goes away: everybody who waits for something is told."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import pytest
from rankmq.engine.address import BrokerAddress
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Connection
from rankmq.engine.topology import Queue
from rankmq.schemas.errors import (
    BrokerUnavailable,
    ConnectionLost,
)
from rankmq.workers.broker import PrivateBroker

from tests.integration.connections import SOON, Fates, connected, run, until


@pytest.fixture
def address(broker_url: str) -> BrokerAddress:
    return BrokerAddress.parse(broker_url)


@pytest.fixture
def name() -> str:
    """A name of our own on the shared broker."""
    return f"test-{uuid.uuid4().hex[:12]}"


# ------------------------------------------------------------------------------------------------------- it goes away


@run
async def test_when_the_broker_closes_the_connection_everybody_is_told(broker, address, name):
    connection = await Connection.open(address, name=name)
    channel, idle = await connection.channel(), await connection.channel()
    await channel.declare((Queue(name, False, True),))
    fates = Fates()
    listed = await asyncio.to_thread(broker.ctl, "list_connections", "pid", "client_properties")
    (pid,) = [line.split("\t")[0] for line in listed.splitlines() if name in line]
    closing = asyncio.ensure_future(asyncio.to_thread(broker.ctl, "close_connection", pid, "by the test"))
    number = 0
    while not connection.closed.done() and number < 100_000:
        for _ in range(20):
            if channel.is_open:
                number += 1
                channel.publish("", name, bytes(1000), then=fates.of(str(number)))
        await asyncio.sleep(0.005)
    await closing
    reason = await asyncio.wait_for(connection.closed, SOON)
    assert isinstance(reason, ConnectionLost)
    assert "320" in reason.message
    assert not connection.is_open
    assert {it.closed.result().message for it in (channel, idle)} == {reason.message}
    assert len(fates) == number
    assert channel.unconfirmed == 0
    assert set(fates.values()) <= {Outcome.CONFIRMED, Outcome.LOST}
    with pytest.raises(ConnectionLost):
        await connection.channel()
    with pytest.raises(ConnectionLost):
        await channel.depth(name)
    await connection.close()


@run
async def test_when_the_line_is_cut_everybody_is_told(address, name):
    """Also a call that waits for its answer, and publishes that nobody has confirmed."""
    lines = []

    async def relay(reader, writer):
        theirs, ours = await asyncio.open_connection(address.host, address.port)
        lines.extend((writer, ours))
        await asyncio.gather(pipe(reader, ours), pipe(theirs, writer), return_exceptions=True)

    deaf = False

    async def pipe(source, sink):
        while data := await source.read(65536):
            if not deaf:
                sink.write(data)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    connection = await Connection.open(replace(address, port=server.sockets[0].getsockname()[1]), name="test")
    channel = await connection.channel()
    deaf = True
    fates = Fates()
    for number in range(5):
        channel.publish("", name, b"", then=fates.of(str(number)))
    asking = asyncio.ensure_future(channel.depth(name))
    confirming = asyncio.ensure_future(channel.publish_confirmed("", name, b""))
    opening = asyncio.ensure_future(connection.channel())
    await asyncio.sleep(0.1)
    for line in lines:
        line.transport.abort()
    reason = await asyncio.wait_for(connection.closed, SOON)
    assert isinstance(reason, ConnectionLost)
    assert await asyncio.wait_for(confirming, SOON) is Outcome.LOST
    for waiting in (asking, opening):
        with pytest.raises(ConnectionLost, match="the connection to the broker broke"):
            await asyncio.wait_for(waiting, SOON)
    assert fates == {str(number): Outcome.LOST for number in range(5)}
    server.close()


@run
async def test_a_connection_that_says_nothing_any_more_is_given_up(address):
    """No word from the broker, no end of the connection either: its heartbeats are missed."""
    deaf = False

    async def relay(reader, writer):
        theirs, ours = await asyncio.open_connection(address.host, address.port)
        await asyncio.gather(pipe(reader, ours), pipe(theirs, writer), return_exceptions=True)

    async def pipe(source, sink):
        while data := await source.read(65536):
            if not deaf:
                sink.write(data)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    there = replace(address, port=server.sockets[0].getsockname()[1])
    connection = await Connection.open(there, name="test", heartbeat=2)
    deaf = True
    reason = await asyncio.wait_for(connection.closed, 15)
    assert isinstance(reason, ConnectionLost)
    server.close()


@run
async def test_our_own_close_is_no_alarm(address):
    connection = await Connection.open(address, name="test")
    channel = await connection.channel()
    await channel.close()
    assert isinstance(channel.closed.result(), ConnectionLost)
    assert connection.is_open
    await connection.close()
    assert connection.closed.result().message == "closed by this side"
    await connection.close()


@run
async def test_a_channel_that_the_owner_cannot_do_without_takes_the_connection_along(address, name):
    async with connected(address) as connection:
        mere, vital = await connection.channel(), await connection.channel(vital=True)
        mere.publish(name, "no such exchange", b"")
        await asyncio.wait_for(mere.closed, SOON)
        assert connection.is_open
        vital.publish(name, "no such exchange", b"")
        reason = await asyncio.wait_for(connection.closed, SOON)
        assert isinstance(reason, BrokerUnavailable)
        assert name in reason.message
    async with connected(address) as connection:
        vital = await connection.channel(vital=True)
        await vital.close()
        assert connection.is_open


@run
async def test_a_broker_that_is_short_of_memory_says_so(tmp_path):
    with PrivateBroker(tmp_path / "blocked") as node:
        async with connected(BrokerAddress.parse(node.url)) as connection:
            channel = await connection.channel()
            name = await channel.reply_queue()
            await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.0001")
            fates = Fates()
            channel.publish("", name, b"", then=fates.of("blocked"))  # only who publishes is told
            await until(lambda: connection.blocked)
            channel.publish("", name, b"", then=fates.of("later"))
            await asyncio.sleep(0.2)
            assert "later" not in fates
            await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.4")
            await until(lambda: not connection.blocked and len(fates) == 2)
            assert set(fates.values()) == {Outcome.CONFIRMED}

"""The connection to a real broker, or to something else: what it says when it is refused."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from dataclasses import replace
from typing import Any

import pika
import pika.data
import pika.exceptions
import pytest
from rankmq.engine.address import BrokerAddress
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Connection
from rankmq.engine.topology import Exchange, Queue
from rankmq.schemas.errors import (
    AlreadyRunning,
    BrokerRefused,
    BrokerUnavailable,
    ConfigurationError,
    ConnectionLost,
    LimitExceeded,
    OperatorError,
    RankmqError,
)

from tests.integration.connections import SOON, Fates, channels, connected, run


@pytest.fixture
def address(broker_url: str) -> BrokerAddress:
    return BrokerAddress.parse(broker_url)


@pytest.fixture
def name() -> str:
    """A name of our own on the shared broker."""
    return f"test-{uuid.uuid4().hex[:12]}"


# ---------------------------------------------------------------------------------------------- what the broker refuses


@run
async def test_an_exclusive_queue_of_somebody_else(address, name):
    async with channels(address) as (channel,):
        await channel.declare((Queue(name, False, True),))
        async with channels(address) as (other,):
            with pytest.raises(AlreadyRunning, match="somebody else holds it"):
                await other.declare((Queue(name, False, True),))
            assert isinstance(other.closed.result(), AlreadyRunning)
            with pytest.raises(AlreadyRunning):
                await other.declare((Queue(name, False, True),))
        assert channel.is_open


@run
async def test_a_queue_that_another_consumes_alone(address, name):
    async with channels(address, 2) as (channel, other):
        await channel.declare((Queue(name, False, True),))
        await channel.consume(name, print, exclusive=True)
        with pytest.raises(AlreadyRunning):
            await other.consume(name, print, exclusive=True)


@pytest.mark.parametrize("again", [Queue("", True, False, {"x-max-length": 3}), Queue("", False)], ids=str)
@run
async def test_a_queue_that_was_declared_otherwise(address, name, again):
    async with channels(address, 2) as (channel, other):
        await channel.declare((Queue(name),))
        with pytest.raises(ConfigurationError, match=r"declared before with other arguments.*delete it"):
            await other.declare((replace(again, name=name),))
        await channel._rpc(channel._driver.queue_delete, queue=name)


@run
async def test_a_queue_that_cannot_be(address, name):
    async with channels(address) as (channel,):
        with pytest.raises(OperatorError):
            await channel.declare((Queue(name, True, False, {"x-queue-type": "nonsense"}),))


@run
async def test_what_is_not_there(address, name):
    async with channels(address, 3) as (first, second, third):
        with pytest.raises(BrokerUnavailable, match="has an orchestrator ever been started"):
            await first.depth(name)
        with pytest.raises(BrokerUnavailable):
            await second.consume(name, print)
        fates = Fates()
        third.publish(name, "key", b"", then=fates.of("no exchange"))
        reason = await asyncio.wait_for(third.closed, SOON)
        assert isinstance(reason, BrokerUnavailable)
        assert fates == {"no exchange": Outcome.LOST}
        for channel in (first, second, third):
            with pytest.raises(ConnectionLost, match="the channel to the broker is closed"):
                channel.publish("", name, b"")
            channel.ack(1)
            channel.hand_back(1)
            await channel.close()


@run
async def test_an_acknowledgement_of_what_never_came_closes_the_channel(address):
    async with channels(address) as (channel,):
        channel.ack(4711)
        reason = await asyncio.wait_for(channel.closed, SOON)
        assert isinstance(reason, ConnectionLost)
        assert "unknown delivery tag" in reason.message


@run
async def test_a_message_larger_than_the_broker_takes(address, name):
    async with connected(address) as connection:
        channel = await connection.channel()
        size = (16 if connection.server_version >= (4,) else 128) * 1024 * 1024 + 1
        fates = Fates()
        channel.publish("", name, bytes(size), then=fates.of("large"))
        reason = await asyncio.wait_for(channel.closed, 30)
        assert isinstance(reason, LimitExceeded)
        assert fates == {"large": Outcome.LOST}
        assert connection.is_open


@run
async def test_a_user_without_permissions(broker, address, name):
    user = f"weak{name[-6:]}"
    broker.ctl("add_user", user, "weak")
    broker.ctl("set_permissions", user, f"^mine-{name}", f"^mine-{name}", f"^mine-{name}")
    weak = replace(address, user=user, password="weak")
    async with channels(weak, 3) as (first, second, third):
        with pytest.raises(BrokerRefused, match=r"the broker refuses a permission: user .* on queue"):
            await first.declare((Queue(name, False, True),))
        with pytest.raises(BrokerRefused):
            await second.declare((Exchange(name, durable=False),))
        await third.declare((Queue(f"mine-{name}", False, True),))
        third.publish("amq.direct", "key", b"")
        assert isinstance(await asyncio.wait_for(third.closed, SOON), BrokerRefused)
    broker.ctl("delete_user", user)


# ------------------------------------------------------------------------------------------------------------ no broker


@pytest.fixture
def silent_port():
    """Somebody who accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


async def refused(address: BrokerAddress, kind: type[RankmqError], match: str, **given: Any) -> float:
    began = time.monotonic()
    with pytest.raises(kind, match=match) as caught:
        await Connection.open(address, name="test", **given)
    assert str(address) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert address.password not in str(caught.value)
    assert caught.value.exit_code == 4  # type: ignore[attr-defined]
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"password": "wrong-password"}, "refuses this user or password"),
        ({"user": "nobody-of-this-name"}, "refuses this user or password"),
        ({"vhost": "no-such-vhost"}, "refuses this virtual host"),
    ],
    ids=str,
)
@run
async def test_who_is_refused_is_not_tried_again(address, change, match):
    assert await refused(replace(address, **change), BrokerRefused, match, patience=30) < 10


@run
async def test_nobody_listens(address, free_port):
    assert await refused(replace(address, port=free_port), BrokerUnavailable, "no broker answers") < 10


@run
async def test_a_host_that_does_not_exist(address):
    await refused(replace(address, host="no-such-host.invalid"), BrokerUnavailable, "no broker answers")


@run
async def test_trying_again_ends_in_time(address, free_port):
    took = await refused(replace(address, port=free_port), BrokerUnavailable, "no broker answers", patience=3)
    assert 2.9 < took < 10


@run
async def test_trying_again_ends_when_told_to(address, free_port):
    asked = []
    took = await refused(
        replace(address, port=free_port),
        BrokerUnavailable,
        "no broker answers",
        patience=60,
        stopped=lambda: asked.append(1) or len(asked) > 2,
    )
    assert took < 30


@run
async def test_it_is_tried_again_until_somebody_answers(address, free_port):
    async def relay(reader, writer):
        theirs, ours = await asyncio.open_connection(address.host, address.port)
        await asyncio.gather(pipe(reader, ours), pipe(theirs, writer))

    async def pipe(source, sink):
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    opening = asyncio.ensure_future(Connection.open(replace(address, port=free_port), name="test", patience=20))
    await asyncio.sleep(0.5)
    server = await asyncio.start_server(relay, "127.0.0.1", free_port)
    connection = await asyncio.wait_for(opening, 20)
    assert connection.is_open
    await connection.close()
    server.close()


@run
async def test_somebody_who_says_nothing(address, silent_port, monkeypatch):
    parameters = pika.ConnectionParameters
    quick = {"stack_timeout": 1.0, "socket_timeout": 1.0}
    monkeypatch.setattr(pika, "ConnectionParameters", lambda **given: parameters(**{**given, **quick}))
    took = await refused(replace(address, port=silent_port), BrokerUnavailable, "says nothing of AMQP")
    assert took < 10


@pytest.mark.parametrize(
    "word", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x01\x01\x00\x09", b"\x15\x03\x03\x00\x02\x02\x46"]
)
@run
async def test_somebody_who_speaks_something_else(address, word):
    async def talk(_, writer):
        writer.write(word)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await refused(replace(address, port=port), BrokerUnavailable, "does not speak AMQP 0-9-1")
    server.close()


@run
async def test_opening_that_is_given_up_leaves_no_connection_behind(broker, address, name):
    for delay in (0.0, 0.001, 0.005, 0.01, 0.02):
        opening = asyncio.ensure_future(Connection.open(address, name=name))
        await asyncio.sleep(delay)
        opening.cancel()
        found = (await asyncio.gather(opening, return_exceptions=True))[0]
        if isinstance(found, Connection):
            await found.close()
    await asyncio.sleep(1)
    assert name not in await asyncio.to_thread(broker.ctl, "list_connections", "client_properties")

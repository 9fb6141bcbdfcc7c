"""The connection to a real broker: what it declares, publishes and consumes, and odd properties."""

from __future__ import annotations

import asyncio
import struct
import uuid
from typing import Any

import pika
import pika.data
import pika.exceptions
import pytest
from rankmq.engine import topology
from rankmq.engine.address import BrokerAddress
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Connection, Properties
from rankmq.engine.topology import Binding, Exchange, Queue
from rankmq.schemas.errors import (
    LimitExceeded,
)

from tests.integration.connections import Fates, channels, run, until


@pytest.fixture
def address(broker_url: str) -> BrokerAddress:
    return BrokerAddress.parse(broker_url)


@pytest.fixture
def name() -> str:
    """A name of our own on the shared broker."""
    return f"test-{uuid.uuid4().hex[:12]}"


# ------------------------------------------------------------------------------------------- declare, publish, consume


@run
async def test_what_is_published_is_confirmed_and_consumed(address, name):
    async with channels(address, prefetch=2) as (channel,):
        await channel.declare(
            (Exchange(name, "topic", durable=False), Queue(name, False, True), Binding(name, name, "a.#"))
        )
        got = []
        tag = await channel.consume(name, got.append)
        fates = Fates()
        for number in range(3):
            properties = Properties(message_id=f"m{number}", headers={"n": number})
            channel.publish(name, f"a.{number}", b"%d" % number, properties, then=fates.of(str(number)))
        assert channel.unconfirmed == 3
        await until(lambda: len(fates) == 3)
        assert set(fates.values()) == {Outcome.CONFIRMED}
        assert channel.unconfirmed == 0
        await until(lambda: len(got) == 2)  # the prefetch
        assert [(it.body, it.exchange, it.routing_key, it.redelivered) for it in got] == [
            (b"0", name, "a.0", False),
            (b"1", name, "a.1", False),
        ]
        assert (got[0].properties.message_id, got[0].headers) == ("m0", {"n": 0})
        channel.ack(got[0].tag)
        await until(lambda: len(got) == 3)
        channel.hand_back(got[1].tag)
        await until(lambda: len(got) == 4)
        assert (got[3].body, got[3].redelivered) == (b"1", True)
        await channel.cancel(tag)
        channel.ack(got[2].tag)
        channel.ack(got[3].tag)
        assert await channel.publish_confirmed(name, "a.x", b"left") is Outcome.CONFIRMED
        assert (await channel.depth(name)).messages == 1
        assert (await channel.depth(name)).consumers == 0


@run
async def test_the_whole_topology_can_be_declared_and_declared_again(address, name):
    group = topology.GroupId(servable=f"s{name[5:]}", version=1)
    parts = (
        *topology.servable_queues((group.servable,)),
        *topology.group_exchanges(group, 2),
        *topology.orchestrator_queues(group),
        *topology.rank_bindings(group, 0, topology.rank_queue(group, 0, "agent"), 2),
    )
    async with channels(address) as (channel,):
        await channel.declare(parts)
        await channel.declare(parts)
        got = []
        await channel.consume(topology.rank_queue(group, 0, "agent"), got.append, no_ack=True)
        for key in (topology.rank_tag(0), topology.RANK_ALL):
            for exchange in (topology.rank_control_exchange(group), topology.subgraph_exchange(group, 1)):
                assert await channel.publish_confirmed(exchange, key, b"") is Outcome.CONFIRMED
        assert await channel.publish_confirmed(topology.subgraph_exchange(group, 1), "rank.1", b"") is Outcome.RETURNED
        assert await channel.publish_confirmed(topology.REQUESTS, group.servable, b"request") is Outcome.CONFIRMED
        assert (await channel.depth(topology.requests_queue(group.servable))).messages == 1
        await until(lambda: len(got) == 4)
        await channel.delete_exchanges([topology.subgraph_exchange(group, 0), "never-was"])


@run
async def test_what_no_queue_takes_comes_back(address, name):
    async with channels(address) as (channel,):
        await channel.declare((Queue(name, False, True),))
        fates = Fates()
        properties = Properties(message_id="the same for all")
        for number in range(20):
            key = name if number % 2 else f"{name}-nowhere"
            channel.publish("", key, b"", properties, then=fates.of(str(number)))
        await until(lambda: len(fates) == 20)
        assert [fates[str(number)] for number in range(20)] == [Outcome.RETURNED, Outcome.CONFIRMED] * 10
        channel.publish("", f"{name}-nowhere", b"", mandatory=False, then=fates.of("not mandatory"))
        channel.publish("", f"{name}-nowhere", b"")  # nobody asks
        await until(lambda: not channel.unconfirmed)
        assert fates["not mandatory"] is Outcome.CONFIRMED


@run
async def test_what_was_given_is_left_as_it_is(address, name):
    async with channels(address) as (channel,):
        properties = Properties(content_type="x")
        assert await channel.publish_confirmed("", name, b"", properties) is Outcome.RETURNED
        assert properties.message_id is None


@run
async def test_a_full_queue_rejects(address, name):
    async with channels(address) as (channel,):
        queue = Queue(name, False, True, {"x-max-length": 1, "x-overflow": "reject-publish"})
        await channel.declare((queue,))
        outcomes = [await channel.publish_confirmed("", name, b"") for _ in range(3)]
        assert outcomes[0] is Outcome.CONFIRMED
        assert outcomes[-1] is Outcome.REJECTED


@run
async def test_direct_replies_are_never_mandatory(address, name):
    """RabbitMQ 3.10 returns one that is, although it was delivered."""
    async with channels(address, 2) as (asking, answering):
        got, fates = [], Fates()
        await asking.consume("amq.rabbitmq.reply-to", got.append, no_ack=True)
        await answering.declare((Queue(name, False, True),))

        def answer(delivery):
            answering.publish("", delivery.properties.reply_to, b"answer", then=fates.of("answer"))

        await answering.consume(name, answer, no_ack=True)
        asking.publish("", name, b"ask", Properties(reply_to="amq.rabbitmq.reply-to"))
        await until(lambda: got and fates)
        assert (got[0].body, fates) == (b"answer", {"answer": Outcome.CONFIRMED})


@run
async def test_a_reply_queue_of_the_brokers_naming(address):
    async with channels(address) as (channel,):
        name = await channel.reply_queue()
        assert name.startswith("amq.gen-")
        assert await channel.publish_confirmed("", name, b"") is Outcome.CONFIRMED


@run
async def test_a_consumer_that_the_broker_ends_is_told_so_and_no_other(address, name):
    async with channels(address, 2) as (channel, other):
        await channel.declare((Queue(name), Queue(f"{name}-2", False, True)))
        told = []
        await channel.consume(name, told.append, cancelled=lambda: told.append("cancelled"))
        await channel.consume(f"{name}-2", told.append, cancelled=lambda: told.append("wrong"))
        await other._rpc(other._driver.queue_delete, queue=name)
        await until(lambda: told)
        assert told == ["cancelled"]


# ----------------------------------------------------------------------------------------------------- odd properties


@run
async def test_short_strings_that_are_no_text(address, name):
    """AMQP says they are UTF-8, and nobody holds a producer to it."""
    async with channels(address) as (channel,):
        await channel.declare((Exchange(name, "fanout", durable=False), Queue(name, False, True), Binding(name, name)))
        got = []
        await channel.consume(name, got.append, no_ack=True)
        odd = b"\xff\xfe"
        with pika.BlockingConnection(pika.URLParameters(address.url())) as connection:
            properties = pika.BasicProperties(message_id=odd, correlation_id=odd, reply_to=odd, headers={odd: odd})
            connection.channel().basic_publish(name, odd, b"", properties)
        (delivery,) = await until(lambda: got)
        assert delivery.routing_key == "\ufffd\ufffd"
        assert (delivery.properties.reply_to, delivery.headers) == (odd, {odd: odd})
        # ... and such a message can be passed on, as to the dead letters
        passed_on = Properties(message_id=odd, correlation_id=odd, reply_to=odd, headers=delivery.headers)
        assert await channel.publish_confirmed(name, delivery.routing_key, b"", passed_on) is Outcome.CONFIRMED


READABLE = {
    "bool": b"t\x01",
    "bytes": b"x\x00\x00\x00\x01a",
    "double": b"d" + struct.pack(">d", 2.5),
    "decimal": b"D\x02" + struct.pack(">i", -314),
    "long": b"l" + struct.pack(">q", -(2**63)),
    "unsigned": b"i" + struct.pack(">I", 2**32 - 1),
    "time": b"T" + struct.pack(">Q", 1_700_000_000),
    "void": b"V",
    "table": b"F" + struct.pack(">I", 4) + b"\x01at\x01",
    "array": b"A" + struct.pack(">I", 4) + b"t\x01t\x00",
}
UNREADABLE = {
    "milliseconds": b"T" + struct.pack(">Q", 1_700_000_000_000),
    "the end of time": b"T" + struct.pack(">Q", 2**63),
    "nested": b"A" + struct.pack(">I", 9) + b"T" + struct.pack(">Q", 2**62),
}


@run
async def test_headers_that_the_driver_cannot_read(address, name, monkeypatch):
    """A producer that gives milliseconds for seconds would take the connection down, and again with each redelivery."""
    async with channels(address) as (channel,):
        await channel.declare((Queue(name, False, True),))
        got = []
        await channel.consume(name, got.append, no_ack=True)
        encode = pika.data.encode_value
        monkeypatch.setattr(pika.data, "encode_value", lambda pieces, it: raw(pieces, it) or encode(pieces, it))

        def raw(pieces, value):
            if isinstance(value, bytearray):
                pieces.append(bytes(value))
                return len(value)
            return None

        values = {key: bytearray(value) for key, value in {**READABLE, **UNREADABLE}.items()}
        properties = pika.BasicProperties(content_type="c", headers={**values, "last": 1}, message_id="m")
        with pika.BlockingConnection(pika.URLParameters(address.url())) as connection:
            connection.channel().basic_publish("", name, b"body", properties)
            connection.channel().basic_publish("", name, b"next")
        await until(lambda: len(got) == 2)
        assert got[0].headers.keys() == {*READABLE, "last"}
        assert (got[0].headers["last"], got[0].headers["unsigned"]) == (1, 2**32 - 1)
        assert (got[0].body, got[0].properties.content_type, got[0].properties.message_id) == (b"body", "c", "m")
        assert got[1].body == b"next"
        monkeypatch.undo()
        again = Properties(headers=got[0].headers)
        assert await channel.publish_confirmed("", name, b"", again) is Outcome.CONFIRMED


@pytest.mark.parametrize(
    "properties",
    [
        {"message_id": "m" * 256},
        {"headers": {"h": Ellipsis}},
        {"headers": {"h" * 256: 1}},
        {"headers": {"h": 2**63}},
        {"priority": 256},
        {"timestamp": -1},
        {"message_id": "\ud800"},
    ],
    ids=str,
)
@run
async def test_properties_that_amqp_cannot_carry_harm_nobody(address, name, properties):
    async with channels(address) as (channel,):
        with pytest.raises(LimitExceeded):
            channel.publish("", name, b"", Properties(**properties))
        assert channel.unconfirmed == 0
        assert await channel.publish_confirmed("", name, b"") is Outcome.RETURNED


@run
async def test_nested_far_too_deeply_to_be_passed_on(address, name):
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    async with channels(address) as (channel,):
        with pytest.raises(LimitExceeded):
            channel.publish("", name, b"", Properties(headers={"h": value}))
        assert await channel.publish_confirmed("", name, b"") is Outcome.RETURNED


@run
async def test_a_connection_on_which_nothing_happens_but_heartbeats_stays(broker_url):
    connection = await Connection.open(BrokerAddress.parse(broker_url), name="a test", heartbeat=1)
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(connection.closed), 4)
        assert connection.is_open
    finally:
        await connection.close()


@run
async def test_a_consumer_that_does_not_want_properties(broker_url):
    async with channels(BrokerAddress.parse(broker_url)) as (channel,):
        queue = await channel.reply_queue()
        found: list[tuple[bytes, object]] = []
        await channel.consume(queue, lambda it: found.append((it.body, it.properties)), no_ack=True, properties=False)
        properties = Properties(headers={"when": [1, {"a": None}]}, message_id="m")
        for body in (b"", b"x" * 200_000):
            assert await channel.publish_confirmed("", queue, body, properties) is Outcome.CONFIRMED
        await until(lambda: len(found) == 2)
        assert found == [(b"", None), (b"x" * 200_000, None)]

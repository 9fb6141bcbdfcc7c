"""The log of answers on a real broker: who reads it knows what was answered, and what the broker may have lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from rankmq.engine import topology
from rankmq.engine.address import BrokerAddress
from rankmq.engine.answer_log import AnswerLog
from rankmq.engine.answers import Answers, Known
from rankmq.engine.channel import Channel
from rankmq.engine.connection import Connection, Properties
from rankmq.engine.delivery import Delivery
from rankmq.engine.front import Front
from rankmq.engine.topology import Queue
from rankmq.schemas import codec
from rankmq.schemas.errors import ConnectionLost
from rankmq.schemas.messages import Answered, AnswersSent
from rankmq.workers.broker import PrivateBroker, find_server

from tests.integration.connections import connected, run, until

Q = ("q", "c1")
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    """A node that may be restarted."""
    if find_server() is None:
        pytest.skip("needs a rabbitmq-server of its own on this machine")
    names = [f"log-{number}" for number in range(20)]
    with PrivateBroker(tmp_path_factory.mktemp("node"), vhosts=names) as broker:
        yield broker


@pytest.fixture(scope="module")
def names() -> Iterator[str]:
    return iter([f"log-{number}" for number in range(20)])


@pytest.fixture
def address(node: PrivateBroker, names: Iterator[str]) -> BrokerAddress:
    """A virtual host that nobody has used."""
    return replace(BrokerAddress.parse(node.url), vhost=next(names))


class Book:
    """A log over a connection of its own, and the memory that is filled from it."""

    def __init__(self, connection: Connection, channel: Channel, **given: Any) -> None:
        self.connection = connection
        self.channel = channel
        self.answers = Answers(3600.0, 1 << 20, 1000)
        bounds = {"hours": 1, "most_bytes": 16 * MEGABYTE, **given}
        self.log = AnswerLog(connection, channel, self.answers, "test", **bounds)

    def knows(self, key: str) -> Known | None:
        return self.answers.find(key, time.time())

    async def write(self, *keys: str, **given: Any) -> None:
        """Puts answers on record, and waits until the broker has them."""
        for key in keys:
            self.log.add(answered(key, **given))
        await asyncio.sleep(0)  # they are written together, in the next turn of the loop
        await until(lambda: not self.channel.unconfirmed)


def answered(key: str = "m1", **given: Any) -> Answered:
    return Answered(
        **{
            **{"id": key, "check": 7, "reply_to": "q", "correlation_id": "c1", "content_type": codec.MSGPACK},
            **{"body": b"an answer to " + key.encode(), "failed": False, **given},
        }
    )


@asynccontextmanager
async def book(address: BrokerAddress, **given: Any) -> AsyncIterator[Book]:
    async with connected(address) as connection:
        found = Book(connection, await connection.channel(), **given)
        await found.log.open()
        yield found


async def entries(channel: Channel) -> int:
    return (await channel.depth(topology.ANSWERS)).messages


# ------------------------------------------------------------------------------------------------------ write and read


@run
async def test_what_one_writes_another_reads(address):
    async with book(address) as writer:
        await writer.write("m1", "m2", failed=True)
        writer.log.add(answered("m3", body=None, reply_to="", check=1 << 60))
        await asyncio.sleep(0)
        await until(lambda: not writer.channel.unconfirmed)
        async with book(address) as reader:
            assert len(reader.answers) == 3
            known = reader.knows("m2")
            assert (known.check, known.content_type, known.failed) == (7, codec.MSGPACK, True)
            assert (known.body, known.routes) == (b"an answer to m2", {Q: True})
            assert abs(known.at - time.time()) < 30
            nobody = reader.knows("m3")
            assert (nobody.check, nobody.body, nobody.routes) == (1 << 60, None, {})


@run
async def test_an_empty_log_is_read_at_once(address):
    began = time.monotonic()
    async with book(address) as one, book(address) as other:
        await asyncio.gather(one.log.catch_up(), other.log.catch_up(), one.log.catch_up())
        assert len(one.answers) == len(other.answers) == 0
    assert time.monotonic() - began < 10  # it does not wait for something to come


@run
async def test_what_was_written_since_is_caught_up(address, caplog):
    caplog.set_level(logging.INFO, "rankmq.engine.answer_log")
    async with book(address) as writer, book(address) as reader:
        for turn in range(3):
            await writer.write(*(f"m{turn}-{number}" for number in range(5)))
            assert reader.knows(f"m{turn}-4") is None
            await reader.log.catch_up()
            assert reader.knows(f"m{turn}-4") is not None
        await reader.log.catch_up()
    read = [record.args[0] for record in caplog.records if "answers are known from the log" in record.msg]
    assert read == [5, 5, 5]  # none is read twice


@run
async def test_own_answers_are_known_already(address):
    async with book(address) as one, book(address) as other:
        await one.write("m1")
        await other.write("m2")
        await one.log.catch_up()
        assert (one.knows("m1"), one.knows("m2").routes) == (None, {Q: True})


@run
async def test_two_who_look_at_once_learn_the_same(address):
    async with book(address) as writer, book(address) as reader:
        await writer.write(*(f"m{number}" for number in range(300)))
        await asyncio.gather(*(reader.log.catch_up() for _ in range(4)))
        assert len(reader.answers) == 300


@run
async def test_a_large_answer_is_on_record_without_its_bytes(address):
    async with book(address) as writer:
        await writer.write("large", body=b"x" * 100_000)
        await writer.write("small", body=b"x" * 1000)
        async with book(address) as reader:
            assert [len(reader.knows(key).body or b"") for key in ("large", "small")] == [0, 1000]
            assert reader.knows("large").routes == {Q: True}


# ------------------------------------------------------------------------------------------------- entries of any kind


@run
async def test_what_cannot_be_read_is_passed_over(address, caplog):
    async with book(address) as writer, book(address) as reader:
        entry = AnswersSent(orchestrator="x", session="s", at_ms=1, answers=(answered("bad"),))
        newer = codec.encode(entry).replace(b"\xa1v\x01", b"\xa1v\x63", 1)
        assert newer != codec.encode(entry)
        for body in (b"", b"\xc1", b"what", newer, b"\x81" * 1000, codec.encode(entry)[:-3], b'{"v": 1}'):
            await writer.channel.publish_confirmed("", topology.ANSWERS, body)
        await writer.write("m1")
        await reader.log.catch_up()
        assert reader.knows("m1") is not None
        assert reader.knows("bad") is None
    refused = [record for record in caplog.records if "cannot be read" in record.message]
    assert len(refused) == 7


@run
async def test_what_is_too_old_is_not_known(address):
    async with book(address) as writer:
        for key, age in (("old", 3700), ("young", 3500)):
            at_ms = int((time.time() - age) * 1000)
            entry = AnswersSent(orchestrator="x", session="s", at_ms=at_ms, answers=(answered(key),))
            await writer.channel.publish_confirmed("", topology.ANSWERS, codec.encode(entry))
        async with book(address) as reader:
            assert [reader.knows(key) is not None for key in ("old", "young")] == [False, True]


@run
async def test_it_is_read_up_to_what_may_be_remembered(address):
    async with book(address) as writer:
        await writer.write(*(f"m{number}" for number in range(1500)))
        async with book(address) as reader:
            assert len(reader.answers) == 1000
            assert [reader.knows(f"m{number}") is not None for number in (499, 500, 1499)] == [False, True, True]


@run
async def test_other_bounds_than_before_are_no_reason_not_to_begin(address, caplog):
    """A queue keeps the arguments that it was declared with."""
    async with book(address) as writer:
        await writer.write("m1")
    async with book(address, hours=2, most_bytes=32 * MEGABYTE) as reader:
        assert reader.knows("m1") is not None
        await reader.write("m2")
    assert "keeps the bounds that it has" in caplog.text


# ------------------------------------------------------------------------------------------------- restarts and deaths


@run
async def test_of_one_that_died_it_is_known_that_its_answers_arrived(address):
    async with book(address) as writer, connected(address) as other:
        await writer.write("m1")
        await writer.connection.close()
        channel = await other.channel()
        assert await channel.has_exchange(topology.boot_mark(writer.log._session))
        async with book(address) as reader:
            assert reader.knows("m1").routes == {Q: True}


@run
async def test_one_that_ends_in_order_leaves_no_mark(address):
    async with book(address) as writer, connected(address) as other:
        await writer.write("m1")
        await writer.log.close()
        await writer.connection.close()
        await writer.log.close()  # nothing, on a connection that is closed
        writer.log.add(answered("m2"))
        assert not await (await other.channel()).has_exchange(topology.boot_mark(writer.log._session))
        async with book(address) as reader:
            assert reader.knows("m1").routes == {Q: True}
            assert reader.knows("m2") is None


def test_after_a_restart_of_the_broker_it_is_not_known_what_arrived(node, address):
    """But of those that had ended in order, all of whose answers were confirmed."""

    async def before() -> None:
        async with book(address) as settled, book(address) as killed:
            await settled.write("settled")
            await killed.write("killed", "both")
            await settled.write("both", reply_to="other")
            await settled.log.close()

    async def after() -> None:
        async with book(address) as heir, book(address) as reader:
            assert reader.knows("settled").routes == {Q: True}
            assert reader.knows("killed").routes == {Q: False}
            assert reader.knows("both").routes == {Q: False, ("other", "c1"): True}
            await heir.write("killed")  # it was sent again
            await reader.log.catch_up()
            assert reader.knows("killed").routes == {Q: True}

    asyncio.run(asyncio.wait_for(before(), 60))
    node.stop()
    node.start()
    address = replace(BrokerAddress.parse(node.url), vhost=address.vhost)
    asyncio.run(asyncio.wait_for(all_up(address), 60))
    asyncio.run(asyncio.wait_for(after(), 60))


async def all_up(address: BrokerAddress) -> None:
    """Waits until a broker that comes up has its queues."""
    while True:
        try:
            async with connected(address) as connection:
                await (await connection.channel()).depth(topology.ANSWERS)
                return
        except ConnectionLost:
            await asyncio.sleep(0.05)


# ----------------------------------------------------------------------------------------- who looks into it, and when


class Taker:
    """In place of a service: takes down what it is given, and what was known then."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.given: list[tuple[str, bool]] = []

    def knows(self, delivery: Delivery) -> bool:
        return self.answers.find(delivery.properties.message_id, time.time()) is not None

    def receive(self, delivery: Delivery) -> None:
        self.given.append((delivery.properties.message_id, self.knows(delivery)))


class Owner:
    def run_guarded(self, work: Any) -> None:
        work()


@asynccontextmanager
async def front(address: BrokerAddress) -> AsyncIterator[tuple[Book, Front, Taker]]:
    """A front whose queue is `requests`."""
    async with book(address) as reader:
        found = Front(reader.channel, reader.log, None, Owner())  # type: ignore[arg-type]
        taker = found.service = Taker(reader.answers)
        await reader.channel.declare((Queue("requests"),))
        yield reader, found, taker
        found.close()


async def send(channel: Channel, *keys: str, headers: dict[str, Any] | None = None) -> None:
    for key in keys:
        properties = Properties(message_id=key, headers=headers, delivery_mode=2)
        await channel.publish_confirmed("", "requests", b"", properties)


async def deliver_to_nobody(address: BrokerAddress, count: int) -> None:
    """Somebody takes the messages and ends."""
    async with connected(address) as connection:
        channel, got = await connection.channel(), []
        await channel.consume("requests", got.append)
        await until(lambda: len(got) == count)


@run
async def test_before_it_takes_over_it_looks_what_was_answered(address):
    """By whoever served until now: a request may be published again, and not be delivered again."""
    async with book(address) as before, front(address) as (reader, found, taker):
        await before.write("m1")
        await send(reader.channel, "m1", "m2")
        await found.consume(["requests"])
        await until(lambda: len(taker.given) == 2)
        assert taker.given == [("m1", True), ("m2", False)]


@pytest.mark.parametrize("how", ["redelivered", "dropped", "neither"])
def test_what_somebody_may_have_had_is_looked_up(address, how):
    async def test() -> None:
        async with book(address) as before, front(address) as (reader, found, taker):
            await found.consume(["requests"])
            await found.consume([])
            headers = {"x-death": [{"reason": "expired", "queue": "q"}]} if how == "dropped" else None
            await send(reader.channel, "m1", "m2", "m3", headers=headers)
            if how == "redelivered":
                await deliver_to_nobody(address, 3)
            await found._consume("requests")  # without the look that comes with a queue that is new
            await until(lambda: len(taker.given) == 3)
            assert [key for key, _ in taker.given] == ["m1", "m2", "m3"]  # in their order, held up or not
            await before.write("m4")
            await send(reader.channel, "m4", headers=headers)
            await until(lambda: len(taker.given) == 4)
            assert taker.given[3] == ("m4", how == "dropped")

    asyncio.run(asyncio.wait_for(test(), 60))


@run
async def test_what_is_held_up_while_it_looks_goes_back_when_it_stops(address):
    async with front(address) as (reader, found, taker):
        await send(reader.channel, "m1", "m2", headers={"x-death": [{"reason": "expired"}]})
        await found.consume(["requests"])
        await until(lambda: found._reading)
        found.stopping = True
        await found.consume([])
        await until(lambda: not found._tasks)
        assert taker.given == []

        async def depth() -> int:
            return (await reader.channel.depth("requests")).messages

        end = time.monotonic() + 10
        while await depth() < 2:
            assert time.monotonic() < end


@run
async def test_what_waits_for_time_to_pass_ends_with_the_front(address):
    async with front(address) as (_, found, _):
        ran: list[str] = []
        found.later(0.01, lambda: ran.append("soon"))
        found.later(0.3, lambda: ran.append("late"))
        await until(lambda: ran)
        assert len(found._later) == 1
        found.close()
        await asyncio.sleep(0.4)
        assert ran == ["soon"]

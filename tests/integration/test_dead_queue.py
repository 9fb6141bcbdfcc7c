"""Looking through the dead-letter queue of a real broker: nothing is lost, and everything stays in its order."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from rankmq.engine import topology
from rankmq.engine.address import BrokerAddress
from rankmq.engine.channel import Channel
from rankmq.engine.connection import Connection
from rankmq.engine.dead_letters import Wanted
from rankmq.engine.dead_queue import DeadQueue, queue_exists
from rankmq.engine.dead_work import look
from rankmq.schemas.errors import BrokerUnavailable, ConnectionLost

from tests.integration.connections import connected, run
from tests.integration.dead_letters import Site, hosts, request, site


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[BrokerAddress]]:
    with hosts(tmp_path_factory.mktemp("node")) as found:
        yield found


@pytest.fixture
def address(addresses: Iterator[BrokerAddress]) -> BrokerAddress:
    return next(addresses)


async def ids(it: Site) -> list[str]:
    """The ids of all dead letters, in their order."""
    async with DeadQueue(it.connection) as queue:
        return [held.delivery.properties.message_id async for held in queue]


@run
async def test_looking_changes_nothing(address):
    """Given letters, more than one chunk of them, when they are looked at again and again, then they stay as they are.

    More often than the delivery limit that newer brokers have if no other is set.
    """
    async with site(address) as it:
        buried = await it.bury(1000)
        for _ in range(25):
            assert await ids(it) == buried
        buried += await it.bury(100)
        for _ in range(3):
            assert await ids(it) == buried
        assert await it.depth(topology.DEAD) == 1100


@run
async def test_what_is_done_with_goes_and_the_others_stay_in_their_order(address):
    async with site(address) as it:
        left = await it.bury(700)
        chance = random.Random(5)
        while left:
            gone = set(chance.sample(left, k=min(len(left), chance.choice([1, 60, 250]))))
            async with DeadQueue(it.connection) as queue:
                async for held in queue:
                    if held.delivery.properties.message_id in gone:
                        queue.done(held)
            left = [name for name in left if name not in gone]
            assert await ids(it) == left


@run
async def test_acknowledgements_that_are_lost_with_their_channel_are_said_again(address, monkeypatch):
    """RabbitMQ 3.10 passes so many on to a quorum queue at once; others it forgets with the channel."""
    said: list[int] = []
    ack = Channel.ack

    def forgetful(channel: Channel, tag: int, **given: bool) -> None:
        said.append(tag)
        if len(said) % 3:
            ack(channel, tag, **given)

    monkeypatch.setattr(Channel, "ack", forgetful)
    async with site(address) as it:
        buried = await it.bury(400)
        async with DeadQueue(it.connection) as queue:
            async for held in queue:
                if int(held.delivery.properties.message_id) % 2:
                    queue.done(held)
        assert sorted(await ids(it)) == buried[::2]
        assert len(said) > 250


@run
async def test_letters_that_are_done_with_later(address):
    """Given a letter of an early chunk, when it is done with after its chunk has come, then it goes all the same."""
    async with site(address) as it:
        buried = await it.bury(300)
        async with DeadQueue(it.connection) as queue:
            early = []
            async for held in queue:
                early.append(held)
            for held in early[::2]:
                queue.done(held)
        assert await ids(it) == buried[1::2]


@run
async def test_a_look_that_is_cut_short_loses_nothing(address):
    async with site(address) as it:
        buried = await it.bury(500)
        async with DeadQueue(it.connection) as queue:
            async for held in queue:
                if held.delivery.properties.message_id == buried[200]:
                    break
        assert sorted(await ids(it)) == buried


@run
async def test_a_connection_that_goes_in_the_middle_loses_nothing(address):
    async with site(address) as it:
        buried = await it.bury(500)

        async def walk(connection: Connection) -> None:
            async with DeadQueue(connection) as queue:
                async for held in queue:
                    if held.delivery.properties.message_id == buried[100]:
                        await connection.close()

        async with connected(address) as other:
            with pytest.raises(ConnectionLost):
                await walk(other)
        await it.there(topology.DEAD, 500)
        assert sorted(await ids(it)) == buried


@run
async def test_two_who_look_at_the_same_time_hear_of_each_other(address):
    async with site(address) as it:
        await it.bury(20)
        async with connected(address) as other, DeadQueue(it.connection) as first:
            assert (first.total, first.others) == (20, 0)
            async for _ in first:
                pass
            async with DeadQueue(other) as second:
                assert second.total == 0
                assert [held async for held in second] == []
        async with DeadQueue(it.connection) as queue:
            assert (queue.total, queue.others) == (20, 0)


@run
async def test_letters_that_somebody_else_takes_are_not_waited_for(address, monkeypatch):
    monkeypatch.setattr("rankmq.engine.dead_queue._SILENCE_SECONDS", 0.3)
    async with site(address) as it:
        await it.bury(5)
        async with DeadQueue(it.connection) as queue:
            queue.total = 8
            assert len([held async for held in queue]) == 5


@run
async def test_an_empty_queue_and_none_at_all(address, addresses):
    async with site(address) as it:
        assert await ids(it) == []
    async with connected(next(addresses)) as connection:
        with pytest.raises(BrokerUnavailable, match="has an orchestrator ever been started"):
            async with DeadQueue(connection):
                pass


@run
async def test_memory_does_not_grow_with_the_queue(address):
    """120 MB of letters are looked at within a small part of that."""

    def resident() -> int:
        return int(Path(f"/proc/{os.getpid()}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async with site(address) as it:
        for _ in range(30):
            await it.bury(1000, body=request(x="a" * 4000))
        most = before = resident()

        def see(*_: object) -> None:
            nonlocal most
            most = max(most, resident())

        tally = await look(it.connection, Wanted(), see)
        assert (tally.total, tally.meant) == (30_000, 30_000)
        assert most - before < 40_000_000


@run
async def test_which_queues_exist(address):
    async with site(address) as it, connected(address) as other:
        theirs = await other.channel()
        exclusive = await theirs.reply_queue()
        assert await queue_exists(it.connection, topology.DEAD)
        assert await queue_exists(it.connection, exclusive)
        assert not await queue_exists(it.connection, "no-such-queue")

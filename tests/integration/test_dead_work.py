"""Dead letters are looked at, thrown away and sent again, on a real broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest
from rankmq.engine import topology
from rankmq.engine.address import BrokerAddress
from rankmq.engine.connection import Connection, Properties
from rankmq.engine.dead_letters import DeadLetter, Wanted
from rankmq.engine.dead_work import look, purge, replay
from rankmq.engine.direct_replies import DirectReplies
from rankmq.engine.topology import Binding, Queue
from rankmq.schemas.errors import BrokerRefused, StageFailed, UnknownServable
from rankmq.workers.broker import PrivateBroker, User

from tests.integration.connections import connected, run, until
from tests.integration.dead_letters import Site, hosts, request, site

NORMAL = "rankmq.requests.matmul.normal"


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[BrokerAddress]]:
    with hosts(tmp_path_factory.mktemp("node")) as found:
        yield found


@pytest.fixture
def address(addresses: Iterator[BrokerAddress]) -> BrokerAddress:
    return next(addresses)


async def letters(it: Site, wanted: Wanted = Wanted(), most: int = 0) -> list[DeadLetter]:  # noqa: B008  # frozen
    seen: list[DeadLetter] = []
    await look(it.connection, wanted, lambda letter, _: seen.append(letter), most=most)
    return seen


# ----------------------------------------------------------------------------------------------- looked at, thrown away


@run
async def test_some_of_them_are_seen_and_all_are_counted(address):
    async with site(address) as it:
        first = await it.bury(80)
        second = await it.bury(80, StageFailed("odd"), key="small.low", body=request("small", "double"))
        seen: list[str] = []
        tally = await look(
            it.connection, Wanted(servable="small"), lambda letter, delivery: seen.append(letter.id), most=3
        )
        assert seen == second[:3]
        assert (tally.total, tally.meant, tally.done) == (160, 80, 3)
        assert [letter.id for letter in await letters(it, Wanted(code="invalid_input"))] == first
        assert [letter.id for letter in await letters(it, Wanted(ids=frozenset({second[5], first[1]})))] == [
            first[1],
            second[5],
        ]


@run
async def test_what_is_thrown_away_is_gone_and_nothing_else(address):
    async with site(address) as it:
        first, second = await it.bury(70), await it.bury(70, StageFailed("odd"))
        tally = await purge(it.connection, Wanted(code="stage_failed"), most=60)
        assert (tally.total, tally.meant, tally.done) == (140, 70, 60)
        assert [letter.id for letter in await letters(it)] == first + second[60:]
        assert (await purge(it.connection, Wanted())).done == 80
        assert await it.depth(topology.DEAD) == 0


# ----------------------------------------------------------------------------------------------------------- sent again


@run
async def test_they_go_where_they_were_at_first_as_they_were(address):
    async with site(address) as it:
        kept = {"traceparent": "00-1"}
        await it.bury(70, key="matmul", body=request(x=3), headers=kept, correlation_id="c", content_type="a/b")
        await it.bury(1, key="small.high", body=request("small"))
        await it.bury(1, key=NORMAL, exchange="")
        tally = await replay(it.connection, Wanted())
        assert (tally.total, tally.meant, tally.done, tally.stayed) == (72, 72, 72, {})

        got = await it.take(NORMAL, 71)
        assert [one.properties.message_id for one in got[:70]] == [f"{number:05d}" for number in range(70)]
        assert {(one.exchange, one.routing_key, one.body) for one in got[:70]} == {
            ("rankmq.requests", "matmul", request(x=3))
        }
        assert got[0].headers == {**kept, "rankmq-replayed": 1}
        assert (got[0].properties.correlation_id, got[0].properties.content_type) == ("c", "a/b")
        assert got[0].properties.reply_to is None
        assert got[70].exchange == ""
        [high] = await it.take("rankmq.requests.small.high", 1)
        assert high.routing_key == "small.high"
        assert await it.depth(topology.DEAD) == 0


@run
async def test_only_those_that_are_meant_and_not_too_many(address):
    async with site(address) as it:
        first, second = await it.bury(10), await it.bury(10, StageFailed("odd"))
        tally = await replay(it.connection, Wanted(code="stage_failed"), most=4)
        assert (tally.meant, tally.done) == (10, 4)
        assert [one.properties.message_id for one in await it.take(NORMAL, 4)] == second[:4]
        assert [letter.id for letter in await letters(it)] == first + second[4:]


@run
async def test_a_dry_run_does_nothing(address):
    async with site(address) as it:
        buried = await it.bury(5)
        await it.bury(2, key="gone")
        tally = await replay(it.connection, Wanted(), dry=True)
        assert (tally.done, [stayed.count for stayed in tally.stayed.values()]) == (5, [2])
        assert await it.depth(NORMAL) == 0
        assert [letter.id for letter in await letters(it)][:5] == buried


@run
async def test_a_servable_that_is_gone(address):
    """Given letters for a servable that no orchestrator has served, when they are sent again, then they stay.

    The broker would take them: for the queue of requests that nobody serves.
    """
    async with site(address) as it:
        gone = await it.bury(7, UnknownServable("no servable gone"), key="gone", body=request("gone"))
        here = await it.bury(2)
        tally = await replay(it.connection, Wanted())
        assert tally.done == 2
        [(reason, stayed)] = tally.stayed.items()
        assert reason.startswith("there is no queue rankmq.requests.gone.normal: start an orchestrator")
        assert (stayed.count, stayed.ids) == (7, gone[:5])
        assert [letter.id for letter in await letters(it)] == gone
        assert [one.properties.message_id for one in await it.take(NORMAL, 2)] == here
        assert await it.depth(topology.UNROUTED) == 0


@run
async def test_letters_that_were_not_published_as_requests(address):
    async with site(address) as it:
        await it.channel.declare((Queue("theirs"), Binding("theirs", "amq.topic", "#")))
        await it.bury(1, exchange="amq.topic", key="any")
        await it.bury(1, exchange="", key="theirs")
        await it.bury(1, exchange="", key=topology.DEAD)
        tally = await replay(it.connection, Wanted())
        assert (tally.done, sorted(stayed.count for stayed in tally.stayed.values())) == (0, [1, 1, 1])
        assert all("not published to a requests queue" in reason for reason in tally.stayed)
        assert await it.depth("theirs") == 0
        assert await it.depth(topology.DEAD) == 3


@run
async def test_where_the_answers_go(address):
    """To the letter's own queue while it is there; else to the one that is named; and else the letter stays."""
    async with site(address) as it, connected(address) as producer:
        theirs = await producer.channel()
        own = await theirs.reply_queue()
        await it.channel.declare((Queue("answers"),))
        for reply_to in (own, "gone", "amq.rabbitmq.reply-to.gone", None):
            await it.bury(1, reply_to=reply_to)

        tally = await replay(it.connection, Wanted())
        assert tally.done == 2
        [(reason, stayed)] = tally.stayed.items()
        assert reason == "their reply queues are gone: name a queue for the answers with --reply-to"
        assert stayed.count == 2
        assert [one.properties.reply_to for one in await it.take(NORMAL, 2)] == [own, None]

        await it.bury(1, reply_to=own)
        await it.bury(1)
        assert (await replay(it.connection, Wanted(), reply_to="answers")).done == 4
        assert [one.properties.reply_to for one in await it.take(NORMAL, 4)] == ["answers", "answers", own, "answers"]


@run
async def test_a_direct_reply_that_still_finds_its_requester(address):
    async with site(address) as it, connected(address) as producer:
        line, got = await producer.channel(), []
        await line.consume("amq.rabbitmq.reply-to", got.append, no_ack=True)
        line.publish("rankmq.requests", "matmul", b"", Properties(reply_to="amq.rabbitmq.reply-to"))
        [asked] = await it.take(NORMAL, 1)

        await it.bury(1, reply_to=asked.properties.reply_to)
        direct = DirectReplies(partial(Connection.open, address, name="asking"))
        assert (await replay(it.connection, Wanted(), direct=direct)).done == 1
        [again] = await it.take(NORMAL, 1)
        it.channel.publish("", again.properties.reply_to, b"the answer")
        await until(lambda: got)
        assert got[0].body == b"the answer"


@run
async def test_a_queue_that_is_full(address):
    async with site(address) as it:
        limits = {"x-queue-type": "quorum", "x-max-length": 2, "x-overflow": "reject-publish"}
        await it.channel.declare(
            (
                Queue("rankmq.requests.full.normal", arguments=limits),
                Binding("rankmq.requests.full.normal", topology.REQUESTS, "full"),
            )
        )
        buried = await it.bury(40, key="full", body=request("full"))
        tally = await replay(it.connection, Wanted())
        [(reason, stayed)] = tally.stayed.items()
        assert reason == "the queue rankmq.requests.full.normal is full"
        assert tally.done + stayed.count == 40
        sent = [one.properties.message_id for one in await it.take("rankmq.requests.full.normal", tally.done)]
        assert sorted([letter.id for letter in await letters(it)] + sent) == buried


@run
async def test_deadlines(address):
    async with site(address) as it:
        past = int(time.time() * 1000) - 60_000
        await it.bury(2, headers={"rankmq-deadline": past})
        await replay(it.connection, Wanted(), most=1)
        await replay(it.connection, Wanted(), keep_deadline=True)
        free, bound = await it.take(NORMAL, 2)
        assert "rankmq-deadline" not in free.headers
        assert bound.headers["rankmq-deadline"] == past
        assert (free.properties.expiration, bound.properties.expiration) == (None, None)


@run
async def test_what_the_broker_drops_can_be_sent_again(address):
    """Given a request that expires where nobody serves it, when it is sent again, then it is whole."""
    async with site(address) as it:
        given = Properties(
            message_id="late", expiration="1", headers={"mine": 1}, user_id=address.user, delivery_mode=2
        )
        it.channel.publish(topology.REQUESTS, "later", request("later"), given)
        await it.there(topology.DEAD, 1)
        [letter] = await letters(it)
        assert (letter.id, letter.code) == ("late", "expired")
        assert letter.reason == "the broker dropped it from the queue rankmq.unrouted: expired"
        assert (letter.exchange, letter.routing_key) == (topology.REQUESTS, "later")
        assert letter.died_at is not None
        assert abs(letter.died_at - time.time()) < 30

        await it.channel.declare(topology.requests("later"))
        assert (await replay(it.connection, Wanted())).done == 1
        [again] = await it.take("rankmq.requests.later.normal", 1)
        assert again.headers == {"mine": 1, "rankmq-replayed": 1}
        assert again.body == request("later")
        assert again.properties.expiration is None


@run
async def test_large_letters_go_in_bounded_memory(address):
    """120 letters of 512 KiB each: in chunks, and not too many that the broker has not confirmed."""
    async with site(address) as it:
        await it.bury(120, body=request(x="a" * 512 * 1024))
        tally = await replay(it.connection, Wanted())
        assert tally.done == 120
        assert len(await it.take(NORMAL, 120)) == 120


@run
async def test_an_operator_who_may_look_but_not_publish(tmp_path):
    looker = User("looker", read="^rankmq\\.dead$")
    with PrivateBroker(tmp_path, users=[looker]) as node:
        async with site(BrokerAddress.parse(node.url)) as it:
            buried = await it.bury(100)
            async with connected(BrokerAddress.parse(node.user_url("looker"))) as connection:
                assert (await look(connection, Wanted())).meant == 100
                with pytest.raises(BrokerRefused, match=r"rankmq\.requests"):
                    await replay(connection, Wanted())
            await it.there(topology.DEAD, 100)
            assert sorted(letter.id for letter in await letters(it)) == buried
            assert await it.depth(NORMAL) == 0

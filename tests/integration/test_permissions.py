"""What each role is refused under the permissions of docs/security.md: in one line, with who, what and which."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from rankmq.engine import topology
from rankmq.engine.address import BrokerAddress
from rankmq.engine.channel import Channel
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Connection
from rankmq.engine.dead_queue import queue_exists
from rankmq.engine.topology import Binding, Exchange, Queue
from rankmq.schemas.errors import BrokerRefused
from rankmq.schemas.messages import GroupId
from rankmq.workers.broker import PrivateBroker, User, find_server

from tests.integration.connections import SOON, connected, run
from tests.permissions import roles

GROUP = GroupId(servable="matmul", version=1)
RANK = topology.rank_queue(GROUP, 0, "agent0")
RANK_1 = topology.rank_queue(GROUP, 1, "agent1", 3)
RANK_2 = topology.rank_queue(GROUP, 2, "agent2")
Act = Callable[[Channel], Awaitable[None]]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    if find_server() is None:
        pytest.skip("needs a rabbitmq-server of its own on this machine")
    topical = User("topical", write=".*", topics=(("rankmq.dead", "^matmul$", "^$"),))
    with PrivateBroker(tmp_path_factory.mktemp("node"), users=[*roles().values(), topical]) as broker:
        asyncio.run(declare(BrokerAddress.parse(broker.url)))
        yield broker


async def declare(address: BrokerAddress) -> None:
    """What an orchestrator leaves on a broker, and a reply queue of somebody's."""
    async with connected(address) as connection:
        channel = await connection.channel()
        await channel.declare(topology.servable_queues(("matmul",)))
        await channel.declare(topology.answers(1, 1_000_000))
        await channel.declare(topology.group_exchanges(GROUP, 2))
        await channel.declare((*topology.lease(GROUP), Queue("somebodys"), Exchange("theirs")))


@asynccontextmanager
async def as_user(node: PrivateBroker, name: str) -> AsyncIterator[Connection]:
    async with connected(BrokerAddress.parse(node.user_url(name))) as connection:
        yield connection


# ------------------------------------------------------------------------------------------------------------- the acts


def publish(exchange: str, key: str = "matmul") -> Act:
    async def act(channel: Channel) -> None:
        outcome = await channel.publish_confirmed(exchange, key, b"")
        assert (outcome is Outcome.LOST) == (not channel.is_open)

    return act


def consume(queue: str) -> Act:
    async def act(channel: Channel) -> None:
        await channel.consume(queue, lambda _: None, no_ack=queue.startswith("amq."))

    return act


def make(*items: Queue | Exchange | Binding) -> Act:
    async def act(channel: Channel) -> None:
        await channel.declare(items)

    return act


def delete(exchange: str) -> Act:
    async def act(channel: Channel) -> None:
        await channel.delete_exchanges([exchange])

    return act


REQUESTS_QUEUE = topology.requests_queue("matmul")
DEFAULT = "amq.default"


@pytest.mark.parametrize(
    ("role", "act", "permission", "what"),
    [
        # a producer sees nothing but its replies, and says nothing but requests
        ("producer", consume(REQUESTS_QUEUE), "read", f"queue '{REQUESTS_QUEUE}'"),
        ("producer", consume("rankmq.dead"), "read", "queue 'rankmq.dead'"),
        ("producer", consume("rankmq.answers"), "read", "queue 'rankmq.answers'"),
        ("producer", consume("somebodys"), "read", "queue 'somebodys'"),
        ("producer", publish("", "somebodys"), "write", f"exchange '{DEFAULT}' (the default exchange)"),
        ("producer", publish("", REQUESTS_QUEUE), "write", f"exchange '{DEFAULT}' (the default exchange)"),
        ("producer", publish("rankmq.results", str(GROUP)), "write", "exchange 'rankmq.results'"),
        ("producer", publish("rankmq.control", str(GROUP)), "write", "exchange 'rankmq.control'"),
        ("producer", publish("rankmq.dead"), "write", "exchange 'rankmq.dead'"),
        ("producer", publish("rankmq.matmul.v1.g0.subgraph.0", "rank.all"), "write", "subgraph.0'"),
        ("producer", make(Queue(REQUESTS_QUEUE)), "configure", f"queue '{REQUESTS_QUEUE}'"),
        ("producer", make(Queue("mine", exclusive=True)), "configure", "queue 'mine'"),
        ("producer", make(Binding("somebodys", "theirs")), "write", "queue 'somebodys'"),
        ("producer", delete("rankmq.requests"), "configure", "exchange 'rankmq.requests'"),
        # an agent serves its group, and no more
        ("agent", publish("rankmq.requests"), "write", "exchange 'rankmq.requests'"),
        ("agent", publish("rankmq.matmul.v1.g0.subgraph.0", "rank.all"), "write", "subgraph.0'"),
        ("agent", publish("rankmq.matmul.v1.g0.control", "rank.all"), "write", "control'"),
        ("agent", publish("", "somebodys"), "write", f"exchange '{DEFAULT}' (the default exchange)"),
        ("agent", publish("rankmq.dead"), "write", "exchange 'rankmq.dead'"),
        ("agent", publish("rankmq.cancel"), "write", "exchange 'rankmq.cancel'"),
        ("agent", consume(REQUESTS_QUEUE), "read", f"queue '{REQUESTS_QUEUE}'"),
        ("agent", consume("rankmq.unrouted"), "read", "queue 'rankmq.unrouted'"),
        ("agent", consume("rankmq.dead"), "read", "queue 'rankmq.dead'"),
        ("agent", consume("rankmq.lease.matmul.v1.g0"), "read", "queue 'rankmq.lease.matmul.v1.g0'"),
        ("agent", make(Queue(topology.results_queue(GROUP))), "configure", "queue 'rankmq.results.matmul.v1.g0'"),
        ("agent", make(Queue("rankmq.requests.mine.normal")), "configure", "queue 'rankmq.requests.mine.normal'"),
        ("agent", make(Queue(RANK, False, True), Binding(RANK, "rankmq.requests")), "read", "'rankmq.requests'"),
        ("agent", make(Queue(RANK, False, True), Binding(RANK, "rankmq.results")), "read", "'rankmq.results'"),
        # an orchestrator has what is rankmq's, and answers
        ("orchestrator", consume("somebodys"), "read", "queue 'somebodys'"),
        ("orchestrator", make(Queue("mine")), "configure", "queue 'mine'"),
        ("orchestrator", make(Queue(RANK)), "configure", f"queue '{RANK}'"),
        ("orchestrator", publish("theirs"), "write", "exchange 'theirs'"),
        ("orchestrator", make(Binding("somebodys", "theirs")), "write", "queue 'somebodys'"),
        # an operator asks, and looks at the dead letters
        ("operator", consume(REQUESTS_QUEUE), "read", f"queue '{REQUESTS_QUEUE}'"),
        ("operator", consume("rankmq.answers"), "read", "queue 'rankmq.answers'"),
        ("operator", publish("rankmq.dead"), "write", "exchange 'rankmq.dead'"),
        ("operator", publish("rankmq.control", str(GROUP)), "write", "exchange 'rankmq.control'"),
        ("operator", make(Queue("rankmq.dead")), "configure", "queue 'rankmq.dead'"),
    ],
)
@run
async def test_who_is_refused_is_told_what_is_missing(node, role, act, permission, what):
    async with as_user(node, role) as connection:
        channel = await connection.channel()
        with pytest.raises(BrokerRefused) as caught:
            await attempt(channel, act)
        line = str(caught.value)
        assert re.search(rf"user '{role}' has no {permission}\b.* permission on .*{re.escape(what)}", line), line
        assert "in virtual host '/'" in line
        assert "\n" not in line
        assert connection.is_open


async def attempt(channel: Channel, act: Act) -> None:
    """Acts, and raises what the broker says of it; of a publish it says so by closing the channel."""
    await asyncio.wait_for(act(channel), SOON)
    if channel.closed.done():
        raise channel.closed.result()


@pytest.mark.parametrize(
    ("role", "act"),
    [
        ("producer", publish("rankmq.requests")),
        ("producer", publish("rankmq.cancel")),
        ("producer", consume("amq.rabbitmq.reply-to")),
        ("orchestrator", publish("", "somebodys")),
        ("operator", publish("rankmq.status")),
        ("operator", publish("rankmq.cancel")),
        ("operator", consume("rankmq.dead")),
        ("operator", publish("rankmq.requests")),
        ("agent", publish("rankmq.results", str(GROUP))),
        ("agent", make(*topology.inner(), *topology.group_exchanges(GROUP, 2))),
        (
            "agent",
            make(*topology.rank_bindings(GROUP, 1, RANK_1, 2), *topology.stage_bindings(GROUP, RANK_1, 0, 2)),
        ),
        ("orchestrator", make(*topology.servable_queues(("matmul", "small")))),
        ("orchestrator", make(*topology.held("one.host"), *topology.status("one.host"), *topology.lease(GROUP))),
        ("orchestrator", make(*topology.group_exchanges(GROUP, 3), *topology.orchestrator_queues(GROUP))),
        ("orchestrator", make(*topology.answers(1, 1_000_000), Exchange(topology.boot_mark("a"), "fanout", False))),
    ],
)
@run
async def test_what_a_role_needs_it_may(node, role, act):
    async with as_user(node, role) as connection:
        channel = await connection.channel(prefetch=1)
        await act(channel)
        assert channel.is_open


@run
async def test_an_orchestrator_may_ask_who_hears_a_direct_reply(node):
    async with as_user(node, "orchestrator") as connection:
        assert not await queue_exists(connection, "amq.rabbitmq.reply-to.gone")


@run
async def test_an_agents_queue_is_its_own(node):
    """Given an agent, when another of the same role wants its queue, then it is refused: the queue is exclusive."""
    async with as_user(node, "agent") as one, as_user(node, "agent") as other:
        await (await one.channel()).declare(topology.rank_bindings(GROUP, 2, RANK_2, 1))
        with pytest.raises(Exception, match="somebody else holds it"):
            await (await other.channel()).consume(RANK_2, lambda _: None)


@run
async def test_a_topic_permission_is_named_too(node):
    async with as_user(node, "topical") as connection:
        channel = await connection.channel()
        await publish("rankmq.dead", "matmul")(channel)
        with pytest.raises(BrokerRefused, match=r"'topical' has no write permission on topic 'small' of exchange"):
            await attempt(channel, publish("rankmq.dead", "small"))


@run
async def test_a_channel_that_others_cannot_do_without_says_why_too(node):
    """As the orchestrator's and the agents' are: the connection ends with the same line."""
    async with as_user(node, "agent") as connection:
        channel = await connection.channel(vital=True)
        channel.publish("rankmq.requests", "matmul", b"")
        reason = await asyncio.wait_for(connection.closed, SOON)
        assert isinstance(reason, BrokerRefused)
        assert "user 'agent' has no write permission on exchange 'rankmq.requests'" in str(reason)


@run
async def test_a_user_of_another_virtual_host(node):
    address = BrokerAddress.parse(node.user_url("producer").removesuffix("%2F") + "elsewhere")
    with pytest.raises(BrokerRefused, match="refuses this virtual host to this user"):
        await Connection.open(address, name="test")

"""The topology as data, held against a small model of what AMQP does with it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine import topology
from rankmq.engine.topology import RANK_ALL, Binding, Exchange, Queue, rank_tag, stage_tag
from rankmq.schemas.messages import GroupId

GROUP = GroupId(servable="matmul", version=1)
AGENT = "0123456789ab"


class Broker:
    """What is declared, refused where a broker would refuse it; where messages go."""

    def __init__(self, *topologies):
        self.exchanges, self.queues, self.bindings = {}, {}, []
        for item in (item for items in topologies for item in items):
            self.declare(item)

    def declare(self, item):
        match item:
            case Exchange():
                assert self.exchanges.setdefault(item.name, item) == item
            case Queue():
                assert self.queues.setdefault(item.name, item) == item
            case Binding():
                assert item.queue in self.queues, "bound before it is declared"
                assert item.exchange in self.exchanges, "bound before it is declared"
                self.bindings.append(item)

    def route(self, exchange, key):
        kind = self.exchanges[exchange].kind
        found = {
            it.queue
            for it in self.bindings
            if it.exchange == exchange and (kind == "fanout" or it.key == key or (kind == "topic" and it.key == "#"))
        }
        alternate = self.exchanges[exchange].arguments.get("alternate-exchange")
        return self.route(alternate, key) if alternate and not found else found


def everything(groups=(GROUP,), ranks=3, subgraphs=2):
    return Broker(
        topology.servable_queues(tuple(dict.fromkeys(group.servable for group in groups))),
        *(topology.lease(group) for group in groups),
        *(topology.group_exchanges(group, subgraphs) for group in groups),
        *(topology.orchestrator_queues(group) for group in groups),
        *(
            topology.rank_bindings(group, rank, topology.rank_queue(group, rank, AGENT), subgraphs)
            for group in groups
            for rank in range(ranks)
        ),
    )


def test_a_request_reaches_the_queue_of_its_servable_in_any_lane():
    broker = everything((GROUP, GroupId(servable="other", version=1)))
    for lane in topology.LANES:
        assert broker.route(topology.REQUESTS, f"matmul.{lane}") == {topology.requests_queue("matmul", lane)}
    assert broker.route(topology.REQUESTS, "matmul") == {"rankmq.requests.matmul.normal"}
    assert broker.route(topology.REQUESTS, "other") == {"rankmq.requests.other.normal"}


@pytest.mark.parametrize("key", ["nobody", "", "matmul.nolane", "matmul.", "#"])
def test_what_nobody_serves_is_not_lost(key):
    assert everything().route(topology.REQUESTS, key) == {topology.UNROUTED}


def test_a_step_reaches_the_ranks_that_its_tag_names():
    broker = everything()
    queues = {rank: topology.rank_queue(GROUP, rank, AGENT) for rank in range(3)}
    exchanges = [topology.rank_control_exchange(GROUP), *(topology.subgraph_exchange(GROUP, i) for i in range(2))]
    for exchange in exchanges:
        for rank, queue in queues.items():
            assert broker.route(exchange, rank_tag(rank)) == {queue}
        assert broker.route(exchange, RANK_ALL) == set(queues.values())
        assert broker.route(exchange, rank_tag(3)) == set()


def test_stages_get_a_tag_of_their_own():
    broker = everything(ranks=4)
    queues = [topology.rank_queue(GROUP, rank, AGENT) for rank in range(4)]
    for rank, queue in enumerate(queues):
        for item in topology.stage_bindings(GROUP, queue, rank // 2, 2):
            broker.declare(item)
    assert broker.route(topology.subgraph_exchange(GROUP, 1), stage_tag(1)) == set(queues[2:])
    assert broker.route(topology.subgraph_exchange(GROUP, 1), RANK_ALL) == set(queues)


def test_what_the_ranks_say_reaches_their_own_orchestrator():
    other = GroupId(servable="matmul", version=1, group="g1")
    broker = everything((GROUP, other))
    for group in (GROUP, other):
        assert broker.route(topology.CONTROL, str(group)) == {topology.control_queue(group)}
        assert broker.route(topology.RESULTS, str(group)) == {topology.results_queue(group)}


def test_agents_that_come_first_can_say_so():
    queue = topology.rank_queue(GROUP, 0, AGENT)
    broker = Broker(topology.inner(), topology.group_exchanges(GROUP, 1), topology.rank_bindings(GROUP, 0, queue, 1))
    assert broker.route(topology.CONTROL, str(GROUP)) == set()


def test_nothing_that_waits_is_ever_dropped():
    broker = everything()
    waiting = [queue for queue in broker.queues.values() if not queue.exclusive and "lease" not in queue.name]
    lanes = {f"rankmq.requests.matmul.{lane}" for lane in ("high", "normal", "low")}
    assert {queue.name for queue in waiting} == {*lanes, topology.UNROUTED, topology.DEAD}
    for queue in waiting:
        assert queue.durable
        assert queue.arguments["x-queue-type"] == "quorum"
        if queue.name != topology.DEAD:
            key = queue.arguments.get("x-dead-letter-routing-key", "matmul")
            assert broker.route(queue.arguments["x-dead-letter-exchange"], key)
            assert queue.arguments["x-overflow"] == "reject-publish"
            # one that takes the orchestrator down would come back for ever
            assert queue.arguments["x-delivery-limit"] > 20
    assert broker.route(topology.DEAD, "any.key at all") == {topology.DEAD}
    assert all(it.durable for it in broker.exchanges.values() if not it.name.startswith(f"rankmq.{GROUP}"))


def test_what_belongs_to_a_process_goes_with_it():
    broker = everything()
    own = [queue for queue in broker.queues.values() if queue.exclusive]
    assert len(own) == 5
    assert not any(queue.durable for queue in own)


names = st.from_regex(re.compile(r"^[A-Za-z_][A-Za-z0-9_-]{0,63}\Z"), fullmatch=True)
groups = st.builds(GroupId, servable=names, version=st.integers(1, 10**6), group=names)


@given(st.lists(groups, min_size=1, max_size=4, unique_by=str))
def test_names_are_short_enough_and_no_two_the_same(found):
    broker = everything(tuple(found), ranks=2)
    for name in (*broker.queues, *broker.exchanges, *(it.key for it in broker.bindings)):
        assert len(name.encode()) <= 255
        assert not name.startswith("amq.")
    servables = {group.servable for group in found}
    assert len(broker.queues) == 2 + 3 * len(servables) + len(found) * (1 + 2 + 2)
    for group in found:
        exchange = topology.subgraph_exchange(group, 1)
        assert broker.route(exchange, rank_tag(1)) == {topology.rank_queue(group, 1, AGENT)}


def test_the_longest_names():
    group = GroupId(servable="s" * 64, version=2**63, group="g" * 64)
    broker = everything((group,))
    assert max(len(name) for name in (*broker.queues, *broker.exchanges)) <= 255

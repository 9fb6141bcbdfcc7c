"""Every exchange, queue and binding of rankmq, as data, in one place. `Channel.declare` makes them.

producer --> rankmq.requests --(servable)--> rankmq.requests.<servable>.normal   quorum, durable
                 | no such servable
                 +--> rankmq.unrouted                                            quorum, answered by any orchestrator
orchestrator --> rankmq.<group>.subgraph.<i> --(rank.<r>, rank.all)--> rankmq.<group>.rank.<r>.<agent>   exclusive
orchestrator --> rankmq.<group>.control      --(rank.<r>, rank.all)--> the same queues
agent --> rankmq.results --(group)--> rankmq.results.<group>                     exclusive to the orchestrator
agent --> rankmq.control --(group)--> rankmq.control.<group>                     exclusive to the orchestrator
orchestrator <--> rankmq.lease.<group>                                           single active consumer
anyone --> rankmq.status --> rankmq.status.<orchestrator>                        exclusive to the orchestrator
what cannot be answered --> rankmq.dead --> rankmq.dead                          quorum, durable
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..schemas.messages import GroupId

__all__ = [
    "CONTROL",
    "DEAD",
    "DELIVERY_LIMIT",
    "LANES",
    "RANK_ALL",
    "REQUESTS",
    "RESULTS",
    "STATUS",
    "UNROUTED",
    "Binding",
    "Exchange",
    "Queue",
    "Topology",
    "control_queue",
    "edge",
    "group_exchanges",
    "inner",
    "lease",
    "lease_queue",
    "orchestrator_queues",
    "rank_bindings",
    "rank_control_exchange",
    "rank_queue",
    "rank_tag",
    "requests",
    "requests_queue",
    "results_queue",
    "servable_queues",
    "stage_bindings",
    "stage_tag",
    "status_queue",
    "subgraph_exchange",
]

REQUESTS = "rankmq.requests"
UNROUTED = "rankmq.unrouted"
DEAD = "rankmq.dead"
CONTROL = "rankmq.control"
RESULTS = "rankmq.results"
STATUS = "rankmq.status"
RANK_ALL = "rank.all"
LANES: tuple[str, ...] = ("normal",)
DELIVERY_LIMIT = 25
"""After how many deliveries the broker itself dead-letters a request: the last resort against one that takes the
orchestrator down each time. A queue's arguments cannot change, so this does not follow any setting."""

Kind = Literal["direct", "fanout", "topic"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange to declare."""

    name: str
    kind: Kind = "direct"
    durable: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue to declare; a queue that is exclusive lives as long as the connection that declared it."""

    name: str
    durable: bool = True
    exclusive: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding to make: messages of `exchange` with routing key `key` go to `queue`."""

    queue: str
    exchange: str
    key: str = ""


Topology = tuple[Exchange | Queue | Binding, ...]


def requests_queue(servable: str, lane: str = "normal") -> str:
    """The queue in which requests for a servable wait."""
    return f"{REQUESTS}.{servable}.{lane}"


def lease_queue(group: GroupId) -> str:
    """The queue whose single active consumer is the orchestrator that serves the group."""
    return f"rankmq.lease.{group}"


def results_queue(group: GroupId) -> str:
    """The queue for what the ranks of a group send back."""
    return f"{RESULTS}.{group}"


def control_queue(group: GroupId) -> str:
    """The queue for the registrations and heartbeats of a group's agents."""
    return f"{CONTROL}.{group}"


def status_queue(orchestrator: str) -> str:
    """The queue in which an orchestrator is asked for its status."""
    return f"{STATUS}.{orchestrator}"


def subgraph_exchange(group: GroupId, subgraph: int) -> str:
    """The exchange to which the steps of one subgraph are published."""
    return f"rankmq.{group}.subgraph.{subgraph}"


def rank_control_exchange(group: GroupId) -> str:
    """The exchange through which the orchestrator speaks to a group's agents."""
    return f"rankmq.{group}.control"


def rank_queue(group: GroupId, rank: int, agent: str) -> str:
    """The one queue of a rank; named for the process too, so that a rank that was replaced does not block its heir."""
    return f"rankmq.{group}.rank.{rank}.{agent}"


def stage_tag(stage: int) -> str:
    """The routing key that reaches the ranks of one stage, where a group has more than one."""
    return f"stage.{stage}"


def rank_tag(rank: int) -> str:
    """The routing key that reaches one rank."""
    return f"rank.{rank}"


def _quorum(name: str, **arguments: Any) -> Queue:
    return Queue(name, arguments={"x-queue-type": "quorum", **arguments})


def _dead_letters(key: str) -> dict[str, Any]:
    """What the broker itself dead-letters (expired, delivered too often) it moves at least once, not at most once."""
    return {
        "x-dead-letter-exchange": DEAD,
        "x-dead-letter-routing-key": key,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # which the strategy asks for
        "x-delivery-limit": DELIVERY_LIMIT,
    }


def edge() -> Topology:
    """What producers publish to and where dead letters go; the same for every servable."""
    return (
        Exchange(DEAD, "topic"),
        _quorum(DEAD),
        Binding(DEAD, DEAD, "#"),
        Exchange(UNROUTED, "fanout"),
        _quorum(UNROUTED, **_dead_letters("unrouted")),
        Binding(UNROUTED, UNROUTED),
        Exchange(REQUESTS, arguments={"alternate-exchange": UNROUTED}),
        *inner(),
        Exchange(STATUS, "fanout"),
    )


def inner() -> Topology:
    """Where the orchestrators hear the agents; agents may be there first."""
    return (Exchange(CONTROL), Exchange(RESULTS))


def requests(servable: str) -> Topology:
    """The requests queues of one servable, one per lane.

    Args:
        servable: its name.
    """
    out: list[Queue | Binding] = []
    for lane in LANES:
        name = requests_queue(servable, lane)
        out += [
            _quorum(name, **_dead_letters(servable)),
            Binding(name, REQUESTS, f"{servable}.{lane}"),
        ]
    return (*out, Binding(requests_queue(servable), REQUESTS, servable))


def servable_queues(servables: tuple[str, ...]) -> Topology:
    """The edge and the requests queues of all servables of an orchestrator."""
    return (*edge(), *(item for name in servables for item in requests(name)))


def group_exchanges(group: GroupId, subgraphs: int) -> Topology:
    """The rank-tagged exchanges of a group: one for control, one per subgraph. They go with the group."""
    control = Exchange(rank_control_exchange(group), durable=False)
    return (control, *(Exchange(subgraph_exchange(group, i), durable=False) for i in range(subgraphs)))


def lease(group: GroupId) -> Topology:
    """The lease of a group; old claims of orchestrators that were killed are pushed out by new ones."""
    arguments = {"x-single-active-consumer": True, "x-max-length": 16}
    return (Queue(lease_queue(group), arguments=arguments),)


def orchestrator_queues(group: GroupId) -> Topology:
    """What the orchestrator that serves a group listens to."""
    results, control = results_queue(group), control_queue(group)
    return (
        Queue(control, durable=False, exclusive=True),
        Binding(control, CONTROL, str(group)),
        Queue(results, durable=False, exclusive=True),
        Binding(results, RESULTS, str(group)),
    )


def rank_bindings(group: GroupId, rank: int, agent: str, subgraphs: int) -> Topology:
    """An agent's queue, bound by its rank tags to the group's exchanges."""
    queue = rank_queue(group, rank, agent)
    exchanges = [rank_control_exchange(group), *(subgraph_exchange(group, i) for i in range(subgraphs))]
    return (
        Queue(queue, durable=False, exclusive=True),
        *(Binding(queue, exchange, key) for exchange in exchanges for key in (rank_tag(rank), RANK_ALL)),
    )


def stage_bindings(group: GroupId, rank: int, agent: str, stage: int, subgraphs: int) -> Topology:
    """The bindings that an agent adds when it hears which stage it is part of."""
    queue = rank_queue(group, rank, agent)
    return tuple(Binding(queue, subgraph_exchange(group, i), stage_tag(stage)) for i in range(subgraphs))

"""Every exchange, queue and binding of rankmq, as data, in one place. `Channel.declare` makes them.

producer --> rankmq.requests --(servable.lane)--> rankmq.requests.<servable>.<lane>   quorum, durable
                 | no such servable         | expired, or delivered too often
                 +--> rankmq.unrouted <-----+                                    quorum, answered by any orchestrator
orchestrator --> rankmq.<group>.subgraph.<i> --(rank.<r>, rank.all)--> rankmq.<group>.rank.<r>.<agent>-<n>   exclusive
orchestrator --> rankmq.<group>.control      --(rank.<r>, rank.all)--> the same queues
agent --> rankmq.results --(group)--> rankmq.results.<group>                     exclusive to the orchestrator
agent --> rankmq.control --(group)--> rankmq.control.<group>                     exclusive to the orchestrator
orchestrator <--> rankmq.lease.<group>                                           single active consumer
anyone --> rankmq.status, rankmq.cancel --> rankmq.status.<orchestrator>         exclusive to the orchestrator
orchestrator --> rankmq.answers                                                  stream: which requests were answered
orchestrator <--> rankmq.held.<orchestrator>                                     requests that run for long
replies to an offline job --> rankmq.job.<job>                                   quorum, durable, while the job is there
what cannot be answered --> rankmq.dead --> rankmq.dead                          quorum, durable
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..schemas.messages import GroupId

__all__ = [
    "ANSWERS",
    "CANCEL",
    "CONTROL",
    "DEAD",
    "DEFAULT_LANE",
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
    "QueueLimits",
    "Topology",
    "answers",
    "boot_mark",
    "control_queue",
    "edge",
    "group_exchanges",
    "held",
    "held_exchange",
    "inner",
    "job",
    "job_queue",
    "lease",
    "lease_queue",
    "orchestrator_queues",
    "rank_bindings",
    "rank_control_exchange",
    "rank_queue",
    "rank_tag",
    "requests",
    "requests_key",
    "requests_queue",
    "results_queue",
    "servable_queues",
    "stage_bindings",
    "stage_tag",
    "status",
    "status_queue",
    "subgraph_exchange",
]

REQUESTS = "rankmq.requests"
UNROUTED = "rankmq.unrouted"
DEAD = "rankmq.dead"
CONTROL = "rankmq.control"
RESULTS = "rankmq.results"
STATUS = "rankmq.status"
CANCEL = "rankmq.cancel"
ANSWERS = "rankmq.answers"
RANK_ALL = "rank.all"
LANES: tuple[str, ...] = ("high", "normal", "low")
DEFAULT_LANE = "normal"
DELIVERY_LIMIT = 25
"""After how many deliveries the broker itself dead-letters a request: the last resort against one that takes the
orchestrator down each time. A queue's arguments cannot change, so this does not follow any setting."""

_MOST_DEAD = 1_000_000
_HELD_MS = 10_000
_JOB_MS = 7 * 86_400_000

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


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What a requests queue holds at most; past it the broker refuses, and the producer hears of it.

    Attributes:
        length: messages.
        age_seconds: seconds that a request may wait in it; 0 for any time.
    """

    length: int = 1_000_000
    age_seconds: float = 0.0


def requests_queue(servable: str, lane: str = DEFAULT_LANE) -> str:
    """The queue in which requests for a servable wait."""
    return f"{REQUESTS}.{servable}.{lane}"


def requests_key(servable: str, lane: str = DEFAULT_LANE) -> str:
    """The routing key of a request; the servable's name alone is the normal lane."""
    return servable if lane == DEFAULT_LANE else f"{servable}.{lane}"


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


def rank_queue(group: GroupId, rank: int, agent: str, connection: int | str = 1) -> str:
    """The one queue of a rank.

    It is named for the process too, so that a rank that was replaced does not block its heir; and for the connection,
    so that what was sent to a queue that is gone is known not to be in this one.

    Args:
        group: the group.
        rank: the rank.
        agent: the id of its agent.
        connection: which of the agent's connections to the broker has the queue, from 1.
    """
    return f"rankmq.{group}.rank.{rank}.{agent}-{connection}"


def stage_tag(stage: int) -> str:
    """The routing key that reaches the ranks of one stage, where a group has more than one."""
    return f"stage.{stage}"


def rank_tag(rank: int) -> str:
    """The routing key that reaches one rank."""
    return f"rank.{rank}"


def _quorum(name: str, **arguments: Any) -> Queue:
    return Queue(name, arguments={"x-queue-type": "quorum", **arguments})


def _dead_letters(to: str, key: str | None = None) -> dict[str, Any]:
    """What the broker itself dead-letters (expired, delivered too often) it moves at least once, not at most once."""
    return {
        "x-dead-letter-exchange": to,
        **({} if key is None else {"x-dead-letter-routing-key": key}),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # which the strategy asks for
        "x-delivery-limit": DELIVERY_LIMIT,
    }


def edge() -> Topology:
    """What producers publish to and where dead letters go; the same for every servable."""
    return (
        Exchange(DEAD, "topic"),
        # Dead letters are looked at again and again, and each look is a delivery.
        _quorum(DEAD, **{"x-delivery-limit": 1_000_000_000, "x-max-length": _MOST_DEAD}),
        Binding(DEAD, DEAD, "#"),
        Exchange(UNROUTED, "fanout"),
        _quorum(UNROUTED, **_dead_letters(DEAD, "unrouted"), **{"x-max-length": _MOST_DEAD}),
        Binding(UNROUTED, UNROUTED),
        Exchange(REQUESTS, arguments={"alternate-exchange": UNROUTED}),
        *inner(),
        Exchange(STATUS, "fanout"),
        Exchange(CANCEL, "fanout"),
    )


def inner() -> Topology:
    """Where the orchestrators hear the agents; agents may be there first."""
    return (Exchange(CONTROL), Exchange(RESULTS))


def requests(servable: str, limits: QueueLimits = QueueLimits()) -> Topology:  # frozen
    """The requests queues of one servable, one per lane.

    Args:
        servable: its name.
        limits: what each of them holds at most.
    """
    bounds: dict[str, Any] = {"x-max-length": limits.length}
    if limits.age_seconds:
        bounds["x-message-ttl"] = round(limits.age_seconds * 1000)
    out: list[Queue | Binding] = []
    for lane in LANES:
        name = requests_queue(servable, lane)
        out += [
            _quorum(name, **_dead_letters(UNROUTED), **bounds),
            Binding(name, REQUESTS, f"{servable}.{lane}"),
        ]
    return (*out, Binding(requests_queue(servable), REQUESTS, servable))


def servable_queues(servables: tuple[str, ...], limits: QueueLimits = QueueLimits()) -> Topology:
    """The edge and the requests queues of all servables of an orchestrator."""
    return (*edge(), *(item for name in servables for item in requests(name, limits)))


def answers(hours: int, max_bytes: int) -> Topology:
    """The log of what was answered: a stream, so that every orchestrator can read it, and again from the start.

    Args:
        hours: how long an answer is kept, at least.
        max_bytes: how large the log may get, in bytes.
    """
    arguments = {
        "x-queue-type": "stream",
        "x-max-age": f"{hours}h",
        "x-max-length-bytes": max_bytes,
        "x-stream-max-segment-size-bytes": max(1_000_000, max_bytes // 16),
    }
    return (Queue(ANSWERS, arguments=arguments),)


def boot_mark(session: str) -> str:
    """A transient exchange that an orchestrator declares with each connection: gone once the broker was restarted."""
    return f"rankmq.boot.{session}"


def held_exchange(orchestrator: str) -> str:
    """The exchange, and the queue, through which an orchestrator keeps what runs for long."""
    return f"rankmq.held.{orchestrator}"


def held(orchestrator: str) -> Topology:
    """Where an orchestrator keeps a request that runs for longer than the broker lets a delivery be unacknowledged.

    What nobody takes out of it goes back to its requests queue, by the routing key that it always had.

    Args:
        orchestrator: its name.
    """
    name = held_exchange(orchestrator)
    arguments = {
        **_dead_letters(REQUESTS),
        "x-message-ttl": _HELD_MS,
        "x-expires": 4 * _HELD_MS,
        "x-max-length": _MOST_DEAD,
    }
    return (Exchange(name, "fanout"), _quorum(name, **arguments), Binding(name, name))


def status(orchestrator: str) -> Topology:
    """Where an orchestrator is asked for its status, and told what to cancel."""
    queue = status_queue(orchestrator)
    return (Queue(queue, durable=False, exclusive=True), Binding(queue, STATUS), Binding(queue, CANCEL))


def job_queue(name: str) -> str:
    """The queue for the replies to an offline job; it outlives whoever runs the job."""
    return f"rankmq.job.{name}"


def job(name: str) -> Topology:
    """Where the replies to an offline job wait until they are on record. One that nobody resumes is let go.

    Each run that ends takes unacknowledged replies as delivered once, so deliveries are not counted.

    Args:
        name: its id.
    """
    arguments = {"x-expires": _JOB_MS, "x-delivery-limit": 1_000_000_000}
    return (_quorum(job_queue(name), **arguments),)


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


def rank_bindings(group: GroupId, rank: int, queue: str, subgraphs: int) -> Topology:
    """An agent's queue, bound by its rank tags to the group's exchanges."""
    exchanges = [rank_control_exchange(group), *(subgraph_exchange(group, i) for i in range(subgraphs))]
    return (
        Queue(queue, durable=False, exclusive=True),
        *(Binding(queue, exchange, key) for exchange in exchanges for key in (rank_tag(rank), RANK_ALL)),
    )


def stage_bindings(group: GroupId, queue: str, stage: int, subgraphs: int) -> Topology:
    """The bindings that an agent adds to its queue when it hears which stage it is part of."""
    return tuple(Binding(queue, subgraph_exchange(group, i), stage_tag(stage)) for i in range(subgraphs))

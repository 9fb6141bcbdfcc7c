"""Every message of rankmq, declared once: decoding checks against these types, the published schemas are made of them.

The edge, which producers see: `Request` in, `ReplyPart` and `Reply` out. Inside, between the orchestrator and the
agents of a group: `ToAgent` and `ToOrchestrator`. Each is a msgpack map with a schema version `v`; inner ones carry
their kind in `type`.
This module is the door to them all; `base`, `edge`, `status` and `work` hold a part each.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .base import MAX_ERROR_MESSAGE, SCHEMA_VERSION, Count, ErrorInfo, GroupId, Identifier, Message, Part
from .edge import CancelReply, InstanceError, Reply, ReplyPart, Request, Stats, Value
from .status import Forming, GroupStatus, QueueStatus, RankStatus, Status
from .work import Call, Column, Placed, Repeat

__all__ = [
    "MAX_ERROR_MESSAGE",
    "SCHEMA_VERSION",
    "Answered",
    "AnswersSent",
    "Call",
    "CancelReply",
    "Column",
    "Drain",
    "ErrorInfo",
    "Form",
    "Forming",
    "GraphInfo",
    "GraphPlan",
    "GroupId",
    "GroupStatus",
    "Heartbeat",
    "InstanceError",
    "Leave",
    "LoadFailed",
    "Message",
    "Placed",
    "QueueStatus",
    "RankExited",
    "RankReply",
    "RankStatus",
    "Ready",
    "Refused",
    "Register",
    "Repeat",
    "Reply",
    "ReplyPart",
    "Request",
    "Restart",
    "Stats",
    "Status",
    "StatusQuery",
    "Task",
    "TensorSpec",
    "ToAgent",
    "ToOrchestrator",
    "Value",
    "Welcome",
]


# ----------------------------------------------------------------------------------------------- groups and graphs


class TensorSpec(Part, frozen=True, kw_only=True):
    """What a graph takes or gives: a dtype name and a shape in which -1 stands for any size."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class GraphInfo(Part, frozen=True, kw_only=True):
    """One model file as a rank holds it.

    Attributes:
        file: its name, for people.
        digest: SHA-256 of the file, hexadecimal.
        inputs: in the graph's order, as this rank sees them (a shard where the input is sharded).
        outputs: in the graph's order.
        collectives: whether the graph talks to the other ranks.
    """

    file: str
    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    collectives: bool = False


# --------------------------------------------------------------------------------------------------------- the work


class Task(Message, tag="task", frozen=True, kw_only=True):
    """The message that carries a step to a rank.

    A step whose inputs are partly replicated and partly sharded comes in two parts: one for all ranks, one for each.

    Attributes:
        group: whose step it is; a rank of another group refuses it.
        epoch: the life of the group in which it was numbered.
        step: its number in that epoch, from 0.
        part: which part of the step this is, from 0.
        parts: how many parts make the step.
        work: what to run.
        inputs: the columns that this part carries.
        requests: the ids of the requests that it serves, for logs.
    """

    group: GroupId
    epoch: Count
    step: Count
    part: Count = 0
    parts: Annotated[int, Meta(ge=1)] = 1
    work: Call | Repeat
    inputs: tuple[Column, ...] = ()
    requests: tuple[str, ...] = ()


class RankReply(Message, tag="rank_reply", frozen=True, kw_only=True):
    """What a rank says when it has run a step: the outputs that it owns, or the error.

    Attributes:
        outputs: numbered as the graph's; after a `Repeat` by their place in `last` and behind it `collect`.
        turns: after a `Repeat`, how many turns each row ran.
        suspect: the rank that this one found at fault when the ranks talked to each other.
        failed_row: which row raised, where the rows ran back to back.
        waited_us: microseconds between arrival of the step and its start on this rank.
        ran_us: microseconds in the graph.
    """

    group: GroupId
    epoch: Count
    step: Count
    rank: Count
    outputs: tuple[Column, ...] = ()
    turns: tuple[Count, ...] = ()
    error: ErrorInfo | None = None
    suspect: Count | None = None
    failed_row: Count | None = None
    waited_us: Count = 0
    ran_us: Count = 0


# ------------------------------------------------------------------------------------------ agents to orchestrator


class Register(Message, tag="register", frozen=True, kw_only=True):
    """An agent is there, has read its model files, and asks to hold a rank.

    Attributes:
        agent: an id that is new with every process.
        queue: its exclusive queue; another one with each of its connections, for what was in the last is lost.
        scheduler: host:port where this agent could run the scheduler of MindSpore's own communication; rank 0's counts.
        shm: whether its graphs could talk to each other through shared memory.
        device: "CPU", "Ascend" or "GPU".
        last_epoch: the newest epoch it has been part of, so that no epoch's number is used twice.
    """

    group: GroupId
    rank: Count
    agent: Identifier
    host: str
    pid: int
    queue: str
    graphs: tuple[GraphInfo, ...]
    scheduler: str = ""
    shm: bool = False
    device: str = "CPU"
    last_epoch: Count = 0


class Ready(Message, tag="ready", frozen=True, kw_only=True):
    """The rank has loaded and warmed up its graphs for this epoch.

    Attributes:
        plane: the name of the memory that it shares for its results; "" where there is none.
        no_plane: why not, in words, where the orchestrator offered some.
        blobs: whether it has a blob store.
    """

    group: GroupId
    epoch: Count
    rank: Count
    agent: Identifier
    graphs: tuple[GraphInfo, ...]
    plane: str = ""
    no_plane: str = ""
    blobs: bool = False


class LoadFailed(Message, tag="load_failed", frozen=True, kw_only=True):
    """The rank could not load or warm up its graphs; the group cannot form with them."""

    group: GroupId
    epoch: Count
    rank: Count
    agent: Identifier
    error: ErrorInfo


class Heartbeat(Message, tag="heartbeat", frozen=True, kw_only=True):
    """The rank lives; `step` is the last one that it finished in `epoch` (-1: none yet)."""

    group: GroupId
    epoch: Count
    rank: Count
    agent: Identifier
    step: int = -1
    rss: Count = 0


class Leave(Message, tag="leave", frozen=True, kw_only=True):
    """The rank was told to stop: no further steps, please; it waits for `Drain` before it goes."""

    group: GroupId
    rank: Count
    agent: Identifier
    reason: str = ""


class RankExited(Message, tag="rank_exited", frozen=True, kw_only=True):
    """The launcher saw an agent's process end."""

    group: GroupId
    rank: Count
    pid: int
    reason: str = ""


class StatusQuery(Message, tag="status_query", frozen=True, kw_only=True):
    """Somebody asks for a `Status`, to be sent to the message's reply_to."""


# ------------------------------------------------------------------------------- what orchestrators tell each other


class Answered(Part, frozen=True, kw_only=True):
    """A request was answered.

    Attributes:
        id: its message id.
        check: of its body, to tell another request under the same id.
        reply_to: where the answer went; "" where nobody was told.
        correlation_id: what it answered: a producer that asks again under the same id gives another one.
        content_type: of the answer.
        body: the answer, where it is not too large to be kept.
        failed: serving it failed for a reason that may pass.
    """

    id: str
    check: Count
    reply_to: str = ""
    correlation_id: str = ""
    content_type: str = ""
    body: bytes | None = None
    failed: bool = False


class AnswersSent(Message, tag="answers_sent", frozen=True, kw_only=True):
    """An entry in the log of answers; it was published right behind the answers themselves, on the same channel.

    Attributes:
        orchestrator: whose it is.
        session: of which connection of it; the mark that shows whether the broker was restarted since carries it.
        at_ms: milliseconds since 1970.
        answers: what was answered; none in an entry that only marks a place.
        settled: the connection is about to end, and the broker has confirmed all answers that it sent.
    """

    orchestrator: str
    session: Identifier
    at_ms: Count
    answers: tuple[Answered, ...] = ()
    settled: bool = False


# ------------------------------------------------------------------------------------------ orchestrator to agents


class Welcome(Message, tag="welcome", frozen=True, kw_only=True):
    """An orchestrator took up the group: who it is for registers (again).

    Attributes:
        agent: whom it is for; "*": every agent of the group.
    """

    group: GroupId
    agent: Identifier
    orchestrator: Identifier


class Refused(Message, tag="refused", frozen=True, kw_only=True):
    """The orchestrator does not want this agent, "*" being every agent of the group; it ends with this word."""

    group: GroupId
    rank: Count
    agent: Identifier
    error: ErrorInfo


class GraphPlan(Part, frozen=True, kw_only=True):
    """How a rank is to run one of its graphs.

    Attributes:
        stacked: the graph has a batch dimension: rows come stacked along the first axis.
        unstacked_inputs: the inputs that have none all the same.
        returns: the outputs that this rank sends back.
        compiled_rows: for which numbers of rows the graph is to be compiled by itself, besides once for any.
    """

    stacked: bool = False
    unstacked_inputs: tuple[int, ...] = ()
    returns: tuple[int, ...] = ()
    compiled_rows: tuple[int, ...] = ()


class Form(Message, tag="form", frozen=True, kw_only=True):
    """All ranks are there and agree: load, join the communication group, warm up, say `Ready`.

    Attributes:
        epoch: the epoch that begins when all are ready.
        results: the queue for `RankReply`.
        peers: the ranks of its stage, in order: those that its graphs may talk to.
        stage: which stage it is part of, from 0.
        stages: into how many the group is divided.
        communication: "none", "shm", "mccl" or "hccl".
        scheduler: where the peers meet: host:port for mccl, the name of the segment for shm.
        rank_table: the table in its 1.0 form.
        plans: how to run each graph, by subgraph.
        shared_parameters: patterns of the names of parameters that are one and the same in all graphs of a rank.
        window: how many steps may be sent ahead of the slowest rank.
        heartbeat_seconds: how often to send a `Heartbeat`.
        plane: the name of the memory that the orchestrator shares with ranks of its own host; "" for none.
        plane_bytes: how much a rank is to share for its results.
        inline_limit: largest tensor in a message, in bytes, for a rank with a blob store; 0: the orchestrator has none.
    """

    group: GroupId
    epoch: Count
    rank: Count
    agent: Identifier
    results: str
    peers: tuple[int, ...] = ()
    stage: Count = 0
    stages: Annotated[int, Meta(ge=1)] = 1
    communication: str = "none"
    scheduler: str = ""
    rank_table: dict[str, Any] = msgspec.field(default_factory=dict)
    plans: tuple[GraphPlan, ...] = ()
    shared_parameters: tuple[str, ...] = ()
    window: Annotated[int, Meta(ge=1)] = 4
    heartbeat_seconds: float = 2.0
    plane: str = ""
    plane_bytes: Count = 0
    inline_limit: Count = 0


class Drain(Message, tag="drain", frozen=True, kw_only=True):
    """Nothing more will come for this agent: it finishes what was sent, then ends."""

    group: GroupId
    agent: Identifier
    epoch: Count


class Restart(Message, frozen=True, tag="restart", kw_only=True):
    """This agent's process cannot be part of another epoch: its communication is bound to one, or it is stuck.

    It starts anew. Whoever else holds or wants its rank by now is not meant.
    """

    group: GroupId
    agent: Identifier
    reason: str = ""


ToOrchestrator = RankReply | Register | Ready | LoadFailed | Heartbeat | Leave | RankExited | StatusQuery
ToAgent = Task | Welcome | Refused | Form | Drain | Restart

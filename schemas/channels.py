"""Who sends what where, as data: the channels and the operations of the published AsyncAPI document.

The names of exchanges and queues are not said here, but what each is for: the topology of the broker is not this
layer's business.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from .messages import RankReply, StatusQuery, Task, ToAgent, ToOrchestrator

__all__ = ["CHANNELS", "CHANNEL_NAMES", "OPERATIONS", "PARAMETERS", "Channel", "Operation", "named"]

CHANNEL_NAMES: dict[str, str] = {
    "requests_exchange": "exchange for requests",
    "requests_key": "routing key of a request",
    "requests_queue": "queue in which requests wait",
    "unrouted_queue": "queue of requests for which nobody declared a queue",
    "dead_exchange": "exchange for dead letters",
    "dead_key": "routing key of a dead letter",
    "dead_queue": "queue of dead letters",
    "cancel_exchange": "exchange that asks every orchestrator to give up a request",
    "subgraph_exchange": "rank-tagged exchange of one subgraph",
    "rank_control_exchange": "rank-tagged exchange for what the orchestrator says to its agents",
    "rank_key": "rank tag: one rank, or all",
    "rank_queue": "queue of one agent",
    "results_exchange": "exchange for what ranks send back",
    "results_queue": "queue of a group's results",
    "control_exchange": "exchange for what agents say to their orchestrator",
    "control_queue": "queue of a group's registrations and heartbeats",
    "group_key": "routing key of results and control: the group",
    "status_exchange": "exchange that asks every orchestrator",
    "status_queue": "queue in which one orchestrator is asked",
    "answers_queue": "stream that is the log of answers",
}
"""The names that `asyncapi` wants, and what each is; parameters stand in braces: `rankmq.requests.{servable}`."""

PARAMETERS: dict[str, str] = {
    "servable": "The servable's name.",
    "version": "The servable's version.",
    "group": "The group's name among its replicas.",
    "subgraph": "The subgraph's number.",
    "rank": "The rank's number, or `all`.",
    "agent": "The id of the agent's process.",
    "connection": "Which of the agent's connections to the broker it is, from 1.",
    "lane": "The lane: what is urgent goes before what is not.",
    "orchestrator": "The id of the orchestrator's process.",
}
"""What the parameters in names are."""


class Channel(NamedTuple):
    """Where messages are published (`exchange` and routing key) or consumed (`queue`)."""

    description: str
    messages: list[str]
    exchange: str = ""
    key: str = ""
    queue: str = ""


class Operation(NamedTuple):
    """Who does what on which channel; several who do it stand behind each other, with commas.

    An answer comes to the queue that the message names in reply_to, as one of the messages in `answers`.
    """

    who: str
    does: Literal["sends", "receives"]
    channel: str
    summary: str
    answers: tuple[str, ...] = ()
    persistent: bool | None = None
    only: tuple[str, ...] = ()


def named(union: Any, *but: type) -> list[str]:
    """The names of the messages in a union."""
    return [kind.__name__ for kind in get_args(union) if kind not in but]


_REQUEST = ["Request", "RequestJson"]
_REPLY = ("Reply", "ReplyJson")
_PART = ("ReplyPart", "ReplyPartJson")
_STATUS = ("Status",)
_CANCELLED = ("CancelReply", "CancelReplyJson")
_TO_AGENTS = named(ToAgent, Task)
_FROM_AGENTS = named(ToOrchestrator, RankReply, StatusQuery)

CHANNELS: dict[str, Channel] = {
    "requests": Channel(
        "Where producers publish; the servable alone is the routing key of the lane normal.",
        _REQUEST,
        "requests_exchange",
        "requests_key",
    ),
    "requestsQueue": Channel(
        "The durable queues in which requests wait, one for each lane.", _REQUEST, queue="requests_queue"
    ),
    "unroutedQueue": Channel(
        "Requests for a servable that is not served, and those that the broker took out of their queue.",
        _REQUEST,
        queue="unrouted_queue",
    ),
    "replies": Channel(
        "The queue that the message named in its property reply_to.", [*_REPLY, *_PART, *_STATUS, *_CANCELLED]
    ),
    "deadLetters": Channel("Requests that could not be answered.", ["DeadLetter"], "dead_exchange", "dead_key"),
    "deadLetterQueue": Channel("Requests that could not be answered.", ["DeadLetter"], queue="dead_queue"),
    "cancel": Channel("Asks every orchestrator to give up a request.", ["Cancel"], "cancel_exchange"),
    "tasks": Channel("The steps of one subgraph, by rank tag.", ["Task"], "subgraph_exchange", "rank_key"),
    "rankControl": Channel("To the agents, by rank tag.", _TO_AGENTS, "rank_control_exchange", "rank_key"),
    "rankQueue": Channel("All that is for one agent, in order.", ["Task", *_TO_AGENTS], queue="rank_queue"),
    "results": Channel("What ranks have run.", ["RankReply"], "results_exchange", "group_key"),
    "resultsQueue": Channel("What the ranks of a group have run.", ["RankReply"], queue="results_queue"),
    "control": Channel("What agents say.", _FROM_AGENTS, "control_exchange", "group_key"),
    "controlQueue": Channel("What the agents of a group say.", _FROM_AGENTS, queue="control_queue"),
    "status": Channel("Asks every orchestrator for its status.", ["StatusQuery"], "status_exchange"),
    "statusQueue": Channel(
        "Asks one orchestrator for its status, and to give up requests.",
        ["StatusQuery", "Cancel"],
        queue="status_queue",
    ),
    "answers": Channel(
        "The log of answers: a stream, which every orchestrator writes and reads.",
        ["AnswersSent"],
        queue="answers_queue",
    ),
}

OPERATIONS: dict[str, Operation] = {
    "sendRequest": Operation("producer", "sends", "requests", "Ask.", _REPLY, persistent=True),
    "receiveReply": Operation("producer", "receives", "replies", "Be answered.", only=_REPLY),
    "receivePart": Operation(
        "producer", "receives", "replies", "See what there is so far, where the request asked for it.", only=_PART
    ),
    "takeRequest": Operation("orchestrator", "receives", "requestsQueue", "Take; acknowledged when answered.", _REPLY),
    "refuseRequest": Operation("orchestrator", "receives", "unroutedQueue", "Take, to answer an error.", _REPLY),
    "sendReply": Operation("orchestrator", "sends", "replies", "Answer.", persistent=True, only=_REPLY),
    "sendPart": Operation(
        "orchestrator",
        "sends",
        "replies",
        "Tell what there is so far; before the answer, and never after it.",
        persistent=False,
        only=_PART,
    ),
    "deadLetter": Operation("orchestrator", "sends", "deadLetters", "Put aside, with the reason.", persistent=True),
    "readDeadLetter": Operation("operator", "receives", "deadLetterQueue", "See what was put aside."),
    "replayDeadLetter": Operation(
        "operator", "sends", "requests", "Ask what was put aside once more.", _REPLY, persistent=True
    ),
    "askCancel": Operation(
        "producer, operator",
        "sends",
        "cancel",
        "Have a request given up; each orchestrator says what became of it. It comes back where none runs.",
        _CANCELLED,
        persistent=False,
    ),
    "takeCancel": Operation(
        "orchestrator",
        "receives",
        "statusQueue",
        "Give a request up, if it is here; else remember that nobody wants it.",
        _CANCELLED,
        only=("Cancel",),
    ),
    "sendTask": Operation("orchestrator", "sends", "tasks", "Give a step to the ranks.", persistent=False),
    "sendControl": Operation("orchestrator", "sends", "rankControl", "Form, drain, refuse.", persistent=False),
    "takeTask": Operation("agent", "receives", "rankQueue", "Run steps in order, follow the orchestrator."),
    "sendResult": Operation("agent", "sends", "results", "Give the outputs of a step.", persistent=False),
    "takeResult": Operation("orchestrator", "receives", "resultsQueue", "Gather."),
    "report": Operation("agent", "sends", "control", "Register, be ready, live, leave.", persistent=False),
    "takeReport": Operation("orchestrator", "receives", "controlQueue", "Know the group."),
    "askStatus": Operation("operator", "sends", "status", "Ask what is up.", _STATUS, persistent=False),
    "takeStatusQuery": Operation(
        "orchestrator", "receives", "statusQueue", "Say what is up.", _STATUS, only=("StatusQuery",)
    ),
    "logAnswers": Operation(
        "orchestrator",
        "sends",
        "answers",
        "Put on record what was answered, right behind the answers and on their channel.",
        persistent=False,
    ),
    "readAnswers": Operation(
        "orchestrator", "receives", "answers", "Know what was answered before, by whomever, when it takes up its work."
    ),
}

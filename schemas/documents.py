"""The published schemas: JSON Schema of all messages, and an AsyncAPI document of who sends what where.

Both are generated from the declared types. The names of exchanges and queues come from the caller, since the topology
of the broker is not this layer's business.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from . import messages
from .codec import JSON, MSGPACK
from .components import components
from .messages import SCHEMA_VERSION, RankReply, Reply, Request, Status, StatusQuery, Task, ToAgent, ToOrchestrator

__all__ = ["CHANNEL_NAMES", "asyncapi", "json_schema"]

CHANNEL_NAMES: dict[str, str] = {
    "requests_exchange": "exchange for requests",
    "requests_key": "routing key of a request",
    "requests_queue": "queue in which requests wait",
    "unrouted_queue": "queue of requests for which nobody declared a queue",
    "dead_exchange": "exchange for dead letters",
    "dead_key": "routing key of a dead letter",
    "dead_queue": "queue of dead letters",
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
}
"""The names that `asyncapi` wants, and what each is; parameters stand in braces: `rankmq.requests.{servable}`."""

_PARAMETERS = {
    "servable": "The servable's name.",
    "version": "The servable's version.",
    "group": "The group's name among its replicas.",
    "subgraph": "The subgraph's number.",
    "rank": "The rank's number, or `all`.",
    "agent": "The id of the agent's process.",
    "lane": "The priority lane.",
    "orchestrator": "The id of the orchestrator's process.",
}
_DIRECTIONS = {"sends": "send", "receives": "receive"}


class _Channel(NamedTuple):
    """Where messages are published (`exchange` and routing key) or consumed (`queue`)."""

    description: str
    messages: list[str]
    exchange: str = ""
    key: str = ""
    queue: str = ""


class _Operation(NamedTuple):
    """Who does what on which channel."""

    who: str
    does: Literal["sends", "receives"]
    channel: str
    summary: str
    reply: str = ""
    persistent: bool | None = None
    only: tuple[str, ...] = ()


def _named(union: Any, *but: type) -> list[str]:
    return [kind.__name__ for kind in get_args(union) if kind not in but]


_REQUEST = ["Request", "RequestJson"]
_REPLY = ["Reply", "ReplyJson"]
_TO_AGENTS = _named(ToAgent, Task)
_FROM_AGENTS = _named(ToOrchestrator, RankReply, StatusQuery)

_CHANNELS: dict[str, _Channel] = {
    "requests": _Channel("Where producers publish.", _REQUEST, "requests_exchange", "requests_key"),
    "requestsQueue": _Channel("The durable queue in which requests wait.", _REQUEST, queue="requests_queue"),
    "unroutedQueue": _Channel("Requests for a servable that is not served.", _REQUEST, queue="unrouted_queue"),
    "replies": _Channel("The queue that the request named in its property reply_to.", [*_REPLY, "Status"]),
    "deadLetters": _Channel("Requests that could not be answered.", ["DeadLetter"], "dead_exchange", "dead_key"),
    "deadLetterQueue": _Channel("Requests that could not be answered.", ["DeadLetter"], queue="dead_queue"),
    "tasks": _Channel("The steps of one subgraph, by rank tag.", ["Task"], "subgraph_exchange", "rank_key"),
    "rankControl": _Channel("To the agents, by rank tag.", _TO_AGENTS, "rank_control_exchange", "rank_key"),
    "rankQueue": _Channel("All that is for one agent, in order.", ["Task", *_TO_AGENTS], queue="rank_queue"),
    "results": _Channel("What ranks have run.", ["RankReply"], "results_exchange", "group_key"),
    "resultsQueue": _Channel("What the ranks of a group have run.", ["RankReply"], queue="results_queue"),
    "control": _Channel("What agents say.", _FROM_AGENTS, "control_exchange", "group_key"),
    "controlQueue": _Channel("What the agents of a group say.", _FROM_AGENTS, queue="control_queue"),
    "status": _Channel("Asks every orchestrator for its status.", ["StatusQuery"], "status_exchange"),
    "statusQueue": _Channel("Asks one orchestrator for its status.", ["StatusQuery"], queue="status_queue"),
}

_OPERATIONS: dict[str, _Operation] = {
    "sendRequest": _Operation("producer", "sends", "requests", "Ask.", "replies", persistent=True),
    "receiveReply": _Operation("producer", "receives", "replies", "Be answered.", only=tuple(_REPLY)),
    "takeRequest": _Operation(
        "orchestrator", "receives", "requestsQueue", "Take; acknowledged when answered.", "replies"
    ),
    "refuseRequest": _Operation("orchestrator", "receives", "unroutedQueue", "Take, to answer an error.", "replies"),
    "sendReply": _Operation("orchestrator", "sends", "replies", "Answer.", persistent=True, only=tuple(_REPLY)),
    "deadLetter": _Operation("orchestrator", "sends", "deadLetters", "Put aside, with the reason.", persistent=True),
    "readDeadLetter": _Operation("operator", "receives", "deadLetterQueue", "See what was put aside."),
    "sendTask": _Operation("orchestrator", "sends", "tasks", "Give a step to the ranks.", persistent=False),
    "sendControl": _Operation("orchestrator", "sends", "rankControl", "Form, drain, refuse.", persistent=False),
    "takeTask": _Operation("agent", "receives", "rankQueue", "Run steps in order, follow the orchestrator."),
    "sendResult": _Operation("agent", "sends", "results", "Give the outputs of a step.", persistent=False),
    "takeResult": _Operation("orchestrator", "receives", "resultsQueue", "Gather."),
    "report": _Operation("agent", "sends", "control", "Register, be ready, live, leave.", persistent=False),
    "takeReport": _Operation("orchestrator", "receives", "controlQueue", "Know the group."),
    "askStatus": _Operation("operator", "sends", "status", "Ask what is up.", "replies", persistent=False),
    "takeStatusQuery": _Operation("orchestrator", "receives", "statusQueue", "Say what is up.", "replies"),
}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of all messages: each under `$defs`, any of them at the root.

    It describes requests and replies in JSON as they are, and messages in MessagePack with binary strings in base64.
    """
    defs = components("#/$defs/")
    for name, union in (("ToAgent", ToAgent), ("ToOrchestrator", ToOrchestrator)):
        defs[name] = {"title": name, "oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in _named(union)]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:rankmq:messages:{SCHEMA_VERSION}",
        "title": "rankmq messages",
        "description": "Every message of rankmq. Producers need Request and Reply; the others pass between the "
        "orchestrator and the agents of a group.",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in ("Request", "Reply", "ToAgent", "ToOrchestrator", "Status")],
        "$defs": defs,
    }


def asyncapi(names: Mapping[str, str], version: str) -> dict[str, Any]:
    """The AsyncAPI 3.0.0 document: channels, and operations of producer, orchestrator, agent and operator.

    Args:
        names: of exchanges, queues and routing keys, one for each of `CHANNEL_NAMES`; parameters in braces.
        version: of the software that speaks it.

    Raises:
        ValueError: a name is missing, or one is too many.
    """
    if wrong := sorted(CHANNEL_NAMES.keys() ^ names.keys()):
        raise ValueError(f"names missing or too many: {', '.join(wrong)}")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "rankmq",
            "version": version,
            "description": "Batch inference over RabbitMQ for models that are split into several compiled graphs. A "
            "producer needs two channels: it publishes a request to `requests` and reads the answer from the queue "
            "that it names in reply_to. Everything else passes between the orchestrator and the agents of a group.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": MSGPACK,
        "servers": {
            "rabbitmq": {"host": "localhost:5672", "protocol": "amqp", "protocolVersion": "0.9.1"},
            "rabbitmqTls": {"host": "localhost:5671", "protocol": "amqps", "protocolVersion": "0.9.1"},
        },
        "channels": {name: _channel(channel, names) for name, channel in _CHANNELS.items()},
        "operations": {name: _operation(operation) for name, operation in _OPERATIONS.items()},
        "components": {
            "messages": _messages(),
            "schemas": components("#/components/schemas/"),
        },
    }


def _channel(channel: _Channel, names: Mapping[str, str]) -> dict[str, Any]:
    key = channel.queue or channel.key
    address = names[key] if key else None
    out: dict[str, Any] = {
        "address": address,
        "description": channel.description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in channel.messages},
    }
    if found := re.findall(r"\{(\w+)\}", address or ""):
        out["parameters"] = {name: {"description": _PARAMETERS.get(name, f"The {name}.")} for name in found}
    if channel.exchange:
        binding: dict[str, Any] = {"is": "routingKey", "exchange": {"name": names[channel.exchange]}}
    else:
        binding = {"is": "queue", "queue": {"name": address} if address else {}}
    return {**out, "bindings": {"amqp": {**binding, "bindingVersion": "0.3.0"}}}


def _operation(operation: _Operation) -> dict[str, Any]:
    reference = f"#/channels/{operation.channel}"
    binding: dict[str, Any] = {"bindingVersion": "0.3.0"}
    if operation.persistent is not None:
        binding["deliveryMode"] = 2 if operation.persistent else 1
        binding["mandatory"] = operation.channel != "replies"  # RabbitMQ 3.10 returns direct replies that it delivered
    if operation.does == "receives":
        binding["ack"] = True
    out: dict[str, Any] = {
        "action": _DIRECTIONS[operation.does],
        "summary": f"{operation.who}: {operation.summary}",
        "channel": {"$ref": reference},
        "messages": [
            {"$ref": f"{reference}/messages/{name}"} for name in operation.only or _CHANNELS[operation.channel].messages
        ],
        "tags": [{"name": operation.who}],
        "bindings": {"amqp": binding},
    }
    if operation.reply:
        answers = ["Status"] if "tatus" in operation.channel else _REPLY
        out["reply"] = {
            "address": {"location": "$message.header#/reply_to"},
            "channel": {"$ref": f"#/channels/{operation.reply}"},
            "messages": [{"$ref": f"#/channels/{operation.reply}/messages/{name}"} for name in answers],
        }
    return out


# --------------------------------------------------------------------------------------------------------- messages

_PROPERTIES: dict[str, dict[str, Any]] = {
    "message_id": {"type": "string", "maxLength": 255, "description": "The request's id, new with every request."},
    "correlation_id": {
        "type": "string",
        "maxLength": 255,
        "description": "Comes back in the reply; the id if not set.",
    },
    "reply_to": {
        "type": "string",
        "maxLength": 255,
        "description": "The queue for the reply, or amq.rabbitmq.reply-to. Without it nobody is answered, and a "
        "request that fails becomes a dead letter.",
    },
    "content_type": {"type": "string", "enum": [MSGPACK, JSON], "description": "A reply comes in that of its request."},
    "expiration": {
        "type": "string",
        "pattern": "^[0-9]+$",
        "description": "Milliseconds that it may wait in the queue.",
    },
    "priority": {"type": "integer", "minimum": 0, "maximum": 255},
    "timestamp": {"type": "integer", "description": "When it was sent, in seconds since 1970."},
    "delivery_mode": {"type": "integer", "enum": [1, 2], "description": "2: it survives a restart of the broker."},
}
_TRACE = {"traceparent": {"type": "string", "description": "W3C trace context."}}
_REASON = {
    "rankmq-code": {"type": "string", "description": "The error's code."},
    "rankmq-reason": {"type": "string", "description": "The error's message."},
    "rankmq-request": {"type": "string", "description": "The request's id."},
    "rankmq-exchange": {"type": "string", "description": "Where it was published."},
    "rankmq-routing-key": {"type": "string", "description": "With which routing key."},
}


def _headers(*properties: str, required: tuple[str, ...] = (), table: Mapping[str, Any] = _TRACE) -> dict[str, Any]:
    found = {name: _PROPERTIES[name] for name in properties}
    found["headers"] = {"type": "object", "properties": dict(table)}
    out = {
        "type": "object",
        "description": "AMQP properties of the message; `headers` is its table.",
        "properties": found,
    }
    return {**out, "required": list(required)} if required else out


def _messages() -> dict[str, Any]:
    asked = _headers(*_PROPERTIES, required=("content_type",))
    answer = _headers(
        "message_id", "correlation_id", "content_type", "timestamp", "delivery_mode", required=("content_type",)
    )
    dead = _headers(*_PROPERTIES, table=_TRACE | _REASON)
    inner = _headers("content_type", "correlation_id", "reply_to", "timestamp")
    out = {
        "Request": _message(Request, asked),
        "RequestJson": _message(Request, asked, JSON),
        "Reply": _message(Reply, answer),
        "ReplyJson": _message(Reply, answer, JSON),
        "DeadLetter": {**_message(Request, dead), "name": "DeadLetter", "title": "A request that was put aside"},
        "Status": _message(Status, inner),
    }
    kinds = [getattr(messages, name) for name in (*_named(ToAgent), *_named(ToOrchestrator))]
    return out | {kind.__name__: _message(kind, inner) for kind in kinds}


def _message(kind: type, headers: dict[str, Any], content_type: str = MSGPACK) -> dict[str, Any]:
    first = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
    suffix = " (JSON)" if content_type == JSON else ""
    return {
        "name": kind.__name__,
        "title": kind.__name__ + suffix,
        "summary": " ".join(first.split()),
        "contentType": content_type,
        "headers": headers,
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
        "correlationId": {"location": "$message.header#/correlation_id"},
        "bindings": {"amqp": {"messageType": kind.__name__, "bindingVersion": "0.3.0"}},
    }

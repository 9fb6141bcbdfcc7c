"""The published schemas: JSON Schema of all messages, and an AsyncAPI document of who sends what where.

Both are generated from the declared types. The names of exchanges and queues come from the caller, since the topology
of the broker is not this layer's business.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from . import messages, properties
from .channels import CHANNEL_NAMES, CHANNELS, OPERATIONS, PARAMETERS, Channel, Operation, named
from .codec import JSON, MSGPACK
from .components import components
from .messages import (
    SCHEMA_VERSION,
    AnswersSent,
    CancelReply,
    Reply,
    ReplyPart,
    Request,
    Status,
    ToAgent,
    ToOrchestrator,
)

__all__ = ["CHANNEL_NAMES", "asyncapi", "json_schema"]

_AT_THE_ROOT = ("Request", "Reply", "ReplyPart", "CancelReply", "ToAgent", "ToOrchestrator", "Status", "AnswersSent")
_DIRECTIONS = {"sends": "send", "receives": "receive"}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of all messages: each under `$defs`, any of them at the root.

    It describes requests and replies in JSON as they are, and messages in MessagePack with binary strings in base64.
    """
    defs = components("#/$defs/")
    for name, union in (("ToAgent", ToAgent), ("ToOrchestrator", ToOrchestrator)):
        defs[name] = {"title": name, "oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in named(union)]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:rankmq:messages:{SCHEMA_VERSION}",
        "title": "rankmq messages",
        "description": "Every message of rankmq. Producers need Request, Reply, ReplyPart where they ask for parts of "
        "an answer, and CancelReply, to have a request given up; the others pass between the orchestrator and the "
        "agents of a group.",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in _AT_THE_ROOT],
        "$defs": defs,
    }


def asyncapi(
    names: Mapping[str, str], version: str, choices: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Any]:
    """The AsyncAPI 3.0.0 document: channels, and operations of producer, orchestrator, agent and operator.

    Args:
        names: of exchanges, queues and routing keys, one for each of `CHANNEL_NAMES`; parameters in braces.
        version: of the software that speaks it.
        choices: by parameter what it can be, where that is known.

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
            "that it names in reply_to; with a third, `cancel`, it has requests given up. Everything else passes "
            "between the orchestrator and the agents of a group.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": MSGPACK,
        "servers": {
            "rabbitmq": {"host": "localhost:5672", "protocol": "amqp", "protocolVersion": "0.9.1"},
            "rabbitmqTls": {"host": "localhost:5671", "protocol": "amqps", "protocolVersion": "0.9.1"},
        },
        "channels": {name: _channel(channel, names, choices or {}) for name, channel in CHANNELS.items()},
        "operations": {name: _operation(operation) for name, operation in OPERATIONS.items()},
        "components": {
            "messages": _messages(),
            "schemas": components("#/components/schemas/"),
        },
    }


def _channel(channel: Channel, names: Mapping[str, str], choices: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    key = channel.queue or channel.key
    address = names[key] if key else None
    out: dict[str, Any] = {
        "address": address,
        "description": channel.description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in channel.messages},
    }
    if found := re.findall(r"\{(\w+)\}", address or ""):
        out["parameters"] = {name: _parameter(name, choices) for name in found}
    if channel.exchange:
        binding: dict[str, Any] = {"is": "routingKey", "exchange": {"name": names[channel.exchange]}}
    else:
        binding = {"is": "queue", "queue": {"name": address} if address else {}}
    return {**out, "bindings": {"amqp": {**binding, "bindingVersion": "0.3.0"}}}


def _parameter(name: str, choices: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    out: dict[str, Any] = {"description": PARAMETERS.get(name, f"The {name}.")}
    return {**out, "enum": list(choices[name])} if name in choices else out


def _operation(operation: Operation) -> dict[str, Any]:
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
            {"$ref": f"{reference}/messages/{name}"} for name in operation.only or CHANNELS[operation.channel].messages
        ],
        "tags": [{"name": name} for name in operation.who.split(", ")],
        "bindings": {"amqp": binding},
    }
    if operation.answers:
        out["reply"] = {
            "address": {"location": "$message.header#/reply_to"},
            "channel": {"$ref": "#/channels/replies"},
            "messages": [{"$ref": f"#/channels/replies/messages/{name}"} for name in operation.answers],
        }
    return out


def _messages() -> dict[str, Any]:
    out = {
        "Request": _message(Request, properties.REQUEST),
        "RequestJson": _message(Request, properties.REQUEST, JSON),
        "Reply": _message(Reply, properties.REPLY),
        "ReplyJson": _message(Reply, properties.REPLY, JSON),
        "ReplyPart": _message(ReplyPart, properties.PART),
        "ReplyPartJson": _message(ReplyPart, properties.PART, JSON),
        "DeadLetter": {
            **_message(Request, properties.DEAD_LETTER),
            "name": "DeadLetter",
            "title": "A request that was put aside",
        },
        "Cancel": {
            "name": "Cancel",
            "title": "Cancel",
            "summary": "Says which request is to be given up. It has no body: its properties say all.",
            "headers": properties.CANCEL,
            "correlationId": {"location": "$message.header#/message_id"},
        },
        "CancelReply": _message(CancelReply, properties.CANCEL_REPLY),
        "CancelReplyJson": _message(CancelReply, properties.CANCEL_REPLY, JSON),
        "Status": _message(Status, properties.INNER),
        "AnswersSent": _message(AnswersSent, properties.INNER),
    }
    kinds = [getattr(messages, name) for name in (*named(ToAgent), *named(ToOrchestrator))]
    return out | {kind.__name__: _message(kind, properties.INNER) for kind in kinds}


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

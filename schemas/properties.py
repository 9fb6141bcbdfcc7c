"""The AMQP properties and headers of the messages that producers and operators see, as JSON Schemas by message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .codec import JSON, MSGPACK

__all__ = ["CANCEL", "CANCEL_REPLY", "DEAD_LETTER", "INNER", "PART", "REPLY", "REQUEST"]

_ID = {"type": "string", "minLength": 1, "maxLength": 255}
_CONTENT_TYPE = {"type": "string", "enum": [MSGPACK, JSON]}
_REPLY_TO = {"type": "string", "maxLength": 255}
_MILLISECONDS = {"type": "integer", "minimum": 0, "description": "Milliseconds since 1970."}
_SENT = {"type": "integer", "minimum": 0, "description": "When it was sent, in seconds since 1970."}
_PERSISTENT = {"type": "integer", "enum": [1, 2], "description": "2: it survives a restart of the broker."}


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _count(description: str) -> dict[str, Any]:
    return {"type": "integer", "minimum": 0, "description": description}


_TRACE: dict[str, Any] = {"traceparent": _text("W3C trace context.")}
_DEADLINE: dict[str, Any] = {
    "rankmq-deadline": {
        **_MILLISECONDS,
        "description": "Milliseconds since 1970, by the producer's clock: until when it is worth serving. It "
        "counts until the last step, and stays the same when the request is published once more.",
    },
    "rankmq-run-ms": {
        "type": "integer",
        "minimum": 1,
        "description": "Milliseconds that it may take once it has begun; it waits for as long as it must.",
    },
}
_BLOBS: dict[str, Any] = {
    "rankmq-blobs": {
        "type": "boolean",
        "description": "The producer reads and writes the blob store: large outputs may come by reference.",
    },
}
_CLAIM = {
    "type": "string",
    "pattern": "^[A-Za-z0-9][A-Za-z0-9.]{0,79}:[0-9]{1,12}:[0-9a-f]{8}$",
    "description": "The body is not here, but a file in the folder: its name, its bytes, their CRC-32.",
}
_CLAIMS: dict[str, Any] = {
    "rankmq-claims": {
        "type": "string",
        "pattern": "^[0-9a-f]{32}$",
        "description": "The folder in the memory of the producer's host where bodies may lie.",
    },
    "rankmq-claim": _CLAIM,
}
_REASON: dict[str, Any] = {
    "rankmq-code": _text("The error's code."),
    "rankmq-reason": _text("The error's message."),
    "rankmq-request": _text("The request's id."),
    "rankmq-attempts": _count("How often it was delivered."),
    "rankmq-error": _text(
        "The error that it met, code and message; another where the first only says that nobody heard."
    ),
    "rankmq-epoch": _count("The epoch of its group of ranks, where it was known."),
    "rankmq-exchange": _text("Where it was published."),
    "rankmq-routing-key": _text("With which routing key."),
    "rankmq-dead-at": {**_MILLISECONDS, "description": "When, in milliseconds since 1970."},
    "rankmq-headers-dropped": _text("Names of headers of its own that were too large to go on."),
}
_REPLAYED: dict[str, Any] = {"rankmq-replayed": _count("How often it was a dead letter and was sent again.")}


def _of(
    properties: Mapping[str, Mapping[str, Any]],
    headers: Mapping[str, Any] = _TRACE,
    *,
    required: tuple[str, ...] = (),
) -> dict[str, Any]:
    table = {"type": "object", "properties": dict(headers)}
    out: dict[str, Any] = {
        "type": "object",
        "description": "AMQP properties of the message; `headers` is its table.",
        "properties": {**{name: dict(schema) for name, schema in properties.items()}, "headers": table},
    }
    return {**out, "required": list(required)} if required else out


_ASKED: dict[str, dict[str, Any]] = {
    "message_id": {
        **_ID,
        "description": "The request's id, new with every request, and the key by which it is known again: published "
        "once more under the same id it is not computed twice, but answered with what was answered before. The same id "
        "with another body is refused. Without an id the request is not known again.",
    },
    "correlation_id": {**_ID, "description": "Comes back in the reply; the id if not set."},
    "reply_to": {
        **_REPLY_TO,
        "description": "The queue for the reply, or amq.rabbitmq.reply-to. Without it nobody is answered, and a "
        "request that fails becomes a dead letter.",
    },
    "content_type": {**_CONTENT_TYPE, "description": "A reply comes in that of its request."},
    "content_encoding": {
        "type": "string",
        "enum": ["identity", "utf-8"],
        "description": "Bodies are not compressed.",
    },
    "expiration": {
        "type": "string",
        "pattern": "^[0-9]{1,10}$",
        "description": "Milliseconds that it may wait in its queue before the broker takes it out; it is answered with "
        "deadline_exceeded then. Without the header rankmq-deadline it counts from the timestamp on.",
    },
    "priority": {"type": "integer", "minimum": 0, "maximum": 255, "description": "No effect: the lanes are for that."},
    "timestamp": _SENT,
    "delivery_mode": _PERSISTENT,
}

REQUEST = _of(_ASKED, {**_DEADLINE, **_BLOBS, **_CLAIMS, **_REPLAYED, **_TRACE}, required=("content_type",))
"""Of a request."""

DEAD_LETTER = _of(
    {
        **{name: schema for name, schema in _ASKED.items() if name not in ("expiration", "content_encoding")},
        "timestamp": {**_SENT, "description": "When it was put aside, in seconds since 1970."},
    },
    {**_DEADLINE, **_BLOBS, **_CLAIMS, **_REPLAYED, **_TRACE, **_REASON},
)
"""Of a request that was put aside."""

REPLY = _of(
    {
        "type": {"const": "reply"},
        "message_id": {**_ID, "description": "The reply's own id."},
        "correlation_id": {**_ID, "description": "The request's, else its message_id."},
        "content_type": {**_CONTENT_TYPE, "description": "The request's."},
        "timestamp": _SENT,
        "delivery_mode": _PERSISTENT,
        "app_id": {"const": "rankmq"},
    },
    {
        **_TRACE,
        "rankmq-claims": {"const": True, "description": "The engine can open the folder that the request names."},
        "rankmq-claim": _CLAIM,
    },
    required=("content_type",),
)
"""Of a reply."""

PART = _of(
    {
        "type": {"const": "part"},
        "correlation_id": {**_ID, "description": "The request's, else its message_id."},
        "content_type": {**_CONTENT_TYPE, "description": "The request's."},
        "timestamp": _SENT,
        "delivery_mode": {"const": 1},
        "app_id": {"const": "rankmq"},
    },
    {},
    required=("type", "content_type"),
)
"""Of a part of an answer."""

CANCEL = _of(
    {
        "correlation_id": {**_ID, "description": "The id of the request that is to be given up: its message_id."},
        "reply_to": {
            **_REPLY_TO,
            "description": "The queue where orchestrators are to say what became of it; none if nobody wants to know.",
        },
        "message_id": {**_ID, "description": "Comes back as the correlation_id of what they say."},
        "content_type": {**_CONTENT_TYPE, "description": "What they say comes in that; MessagePack if not set."},
    },
    {},
    required=("correlation_id",),
)
"""Of a cancel, which has no body."""

CANCEL_REPLY = _of(
    {
        "correlation_id": {**_ID, "description": "The message_id of the cancel."},
        "content_type": {**_CONTENT_TYPE, "description": "That of the cancel."},
        "app_id": {"const": "rankmq"},
    },
    {},
    required=("content_type",),
)
"""Of what an orchestrator says to a cancel."""

INNER = _of(
    {
        "content_type": {"type": "string", "enum": [MSGPACK]},
        "correlation_id": _ID,
        "reply_to": _REPLY_TO,
        "timestamp": _SENT,
    }
)
"""Of a message between orchestrators, agents and operators."""

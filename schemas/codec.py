"""Messages to bytes and back: the one module that knows MessagePack and JSON.

Decoding checks a body against the declared types in one pass (msgspec), and the binary strings in it are views of the
body, not copies. A length that a hostile header claims is not allocated before its bytes were seen; nesting is bounded;
a large body is first looked over for how many objects it would become (see `Limits`). Everything that can be wrong with
a body raises `Undecodable`, `UnsupportedSchema` or `LimitExceeded`, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import msgspec.json
import msgspec.msgpack

from .errors import InvalidInput, LimitExceeded, Undecodable, UnsupportedSchema
from .json_forms import JsonPart, JsonReply, JsonRequest
from .limits import Limits, body_too_large
from .messages import (
    SCHEMA_VERSION,
    AnswersSent,
    CancelReply,
    Message,
    Reply,
    ReplyPart,
    Request,
    Status,
    ToAgent,
    ToOrchestrator,
)
from .tensors import Tensor

__all__ = [
    "JSON",
    "MSGPACK",
    "content_type_of",
    "decode_answers_sent",
    "decode_cancel_reply",
    "decode_part",
    "decode_reply",
    "decode_request",
    "decode_status",
    "decode_to_agent",
    "decode_to_orchestrator",
    "encode",
    "encode_cancel_reply",
    "encode_part",
    "encode_reply",
    "encode_request",
]

MSGPACK: Final = "application/msgpack"
JSON: Final = "application/json"

_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, OverflowError)
_WIDE = {0xDC: ("array", 2), 0xDD: ("array", 4), 0xDE: ("map", 2), 0xDF: ("map", 4)}
_DEFAULT = Limits()


class _Version(msgspec.Struct):
    v: int = SCHEMA_VERSION


_encode = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode
_request = msgspec.msgpack.Decoder(Request)
_reply = msgspec.msgpack.Decoder(Reply)
_part = msgspec.msgpack.Decoder(ReplyPart)
_to_agent: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToAgent)
_to_orchestrator: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToOrchestrator)
_status = msgspec.msgpack.Decoder(Status)
_answers_sent = msgspec.msgpack.Decoder(AnswersSent)
_cancel_reply = msgspec.msgpack.Decoder(CancelReply)
_json_cancel_reply = msgspec.json.Decoder(CancelReply)
_version = msgspec.msgpack.Decoder(_Version)
_json_request = msgspec.json.Decoder(JsonRequest)
_json_reply = msgspec.json.Decoder(JsonReply)
_json_part = msgspec.json.Decoder(JsonPart)
_json_version = msgspec.json.Decoder(_Version)
_parts_of_map = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_parts_of_array = msgspec.msgpack.Decoder(list[msgspec.Raw])
_texts = msgspec.msgpack.Decoder(list[str])
_binaries = msgspec.msgpack.Decoder(list[bytes])


def encode(message: Message) -> bytes:
    """A message as MessagePack.

    Raises:
        InvalidInput: a value in it that MessagePack has no word for.
    """
    return _encoded(_encode, message)


def content_type_of(declared: str | None, body: bytes) -> str:
    """The content type to read a request's body as: the declared one, or what its first byte says if none is declared.

    Args:
        declared: the AMQP property content_type, parameters (`; charset=utf-8`) allowed.
        body: the message's body.

    Returns:
        `MSGPACK` or `JSON`.

    Raises:
        Undecodable: another content type.
    """
    if not declared:
        return JSON if body[:64].lstrip()[:1] == b"{" else MSGPACK
    kind = declared.partition(";")[0].strip().lower()
    if kind in (MSGPACK, "application/x-msgpack", "application/vnd.msgpack"):
        return MSGPACK
    if kind == JSON:
        return JSON
    raise Undecodable(f"content_type {kind[:60]!r} is neither {MSGPACK} nor {JSON}")


def decode_request(body: bytes, content_type: str = MSGPACK, limits: Limits | None = None) -> Request:
    """A request; in JSON, tensors may be nested lists or base64, and stay so until `plain.array_of` reads them.

    Args:
        body: the message's body; the tensors alias it.
        content_type: `MSGPACK` or `JSON`.
        limits: the sizes and counts that are allowed.

    Raises:
        Undecodable: not of that format, or not of the declared types.
        UnsupportedSchema: of another schema version.
        LimitExceeded: larger, deeper, or with more instances, inputs or elements than allowed.
    """
    limits = limits or _DEFAULT
    if len(body) > limits.body_bytes:
        raise body_too_large(len(body), limits.body_bytes)
    if content_type == JSON:
        if len(body) > limits.elements and sum(map(body.count, (b",", b"[", b"{"))) > limits.elements:
            raise LimitExceeded(
                f"more than {limits.elements} values in a JSON body: give tensors as dtype, shape and base64"
            )
        request: Request = _decode(_json_request, _json_version, body, "JSON").message()
    else:
        if len(body) > limits.elements:
            _look_over(body, limits)
        request = _decode(_request, _version, body, "MessagePack")
    if len(request.instances) > limits.instances:
        raise LimitExceeded(f"{len(request.instances)} instances: {limits.instances} are allowed")
    longest = limits.name_length
    for instance in request.instances:
        if len(instance) > limits.inputs:
            raise LimitExceeded(f"an instance with {len(instance)} inputs: {limits.inputs} are allowed")
        for name in instance:
            if len(name) > longest:
                raise LimitExceeded(f"an input with a name of {len(name)} characters: {longest} are allowed")
    return request


def encode_request(request: Request, content_type: str = MSGPACK) -> bytes:
    """A request as MessagePack, or as JSON with its tensors in base64.

    Raises:
        InvalidInput: a value that cannot be sent.
    """
    if content_type != JSON:
        return _encoded(_encode, request)
    return _encoded(_encode_json, JsonRequest.of(request))


def decode_reply(body: bytes, content_type: str = MSGPACK) -> Reply:
    """A reply.

    Raises:
        Undecodable: not of that format, or not of the declared types.
        UnsupportedSchema: of another schema version.
        LimitExceeded: nested too deeply.
        InvalidInput: an output in JSON whose dtype, shape and data do not go together.
    """
    reply: Reply
    if content_type == JSON:
        reply = _decode(_json_reply, _json_version, body, "JSON").message()
    else:
        reply = _decode(_reply, _version, body, "MessagePack")
    return reply


def encode_reply(reply: Reply, content_type: str = MSGPACK) -> bytes:
    """A reply as MessagePack, or as JSON with its tensors as nested lists (base64 where a number is not finite).

    Raises:
        InvalidInput: an output that cannot be sent.
    """
    if content_type != JSON:
        return _encoded(_encode, reply)
    return _encoded(_encode_json, JsonReply.of(reply))


def decode_part(body: bytes, content_type: str = MSGPACK) -> ReplyPart:
    """A part of an answer.

    Raises:
        Undecodable: not of that format, or not of the declared types.
        UnsupportedSchema: of another schema version.
        LimitExceeded: nested too deeply.
        InvalidInput: an output in JSON whose dtype, shape and data do not go together.
    """
    part: ReplyPart
    if content_type == JSON:
        part = _decode(_json_part, _json_version, body, "JSON").message()
    else:
        part = _decode(_part, _version, body, "MessagePack")
    return part


def encode_part(part: ReplyPart, content_type: str = MSGPACK) -> bytes:
    """A part of an answer as MessagePack, or as JSON with its tensors as those of a reply.

    Raises:
        InvalidInput: an output that cannot be sent.
    """
    if content_type != JSON:
        return _encoded(_encode, part)
    return _encoded(_encode_json, JsonPart.of(part))


def decode_to_agent(body: bytes) -> ToAgent:
    """A message from the orchestrator to an agent.

    Raises:
        Undecodable: not MessagePack, or none of the declared messages.
        UnsupportedSchema: of another schema version.
    """
    message: ToAgent = _decode(_to_agent, _version, body, "MessagePack")
    return message


def decode_to_orchestrator(body: bytes) -> ToOrchestrator:
    """A message from an agent, a launcher or a person to the orchestrator.

    Raises:
        Undecodable: not MessagePack, or none of the declared messages.
        UnsupportedSchema: of another schema version.
    """
    message: ToOrchestrator = _decode(_to_orchestrator, _version, body, "MessagePack")
    return message


def decode_status(body: bytes) -> Status:
    """What an orchestrator says of itself.

    Raises:
        Undecodable: not MessagePack, or not of the declared types.
        UnsupportedSchema: of another schema version.
    """
    message: Status = _decode(_status, _version, body, "MessagePack")
    return message


def decode_answers_sent(body: bytes) -> AnswersSent:
    """An entry in the log of answers.

    Raises:
        Undecodable: not MessagePack, or not of the declared types.
        UnsupportedSchema: of another schema version.
    """
    message: AnswersSent = _decode(_answers_sent, _version, body, "MessagePack")
    return message


def encode_cancel_reply(reply: CancelReply, content_type: str = MSGPACK) -> bytes:
    """What became of a cancel, as MessagePack or as JSON."""
    return _encoded(_encode_json if content_type == JSON else _encode, reply)


def decode_cancel_reply(body: bytes, content_type: str = MSGPACK) -> CancelReply:
    """What became of a cancel.

    Raises:
        Undecodable: not MessagePack or JSON, or not of the declared types.
        UnsupportedSchema: of another schema version.
    """
    message: CancelReply = (
        _decode(_json_cancel_reply, _json_version, body, "JSON")
        if content_type == JSON
        else _decode(_cancel_reply, _version, body, "MessagePack")
    )
    return message


def _encoded(encoder: Callable[[Any], bytes], message: Message) -> bytes:
    try:
        return encoder(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"a value that cannot be sent: {_one_line(error)}") from error


def _decode(decoder: Any, version: Any, body: bytes, kind: str) -> Any:
    try:
        message = decoder.decode(body)
    except RecursionError as error:
        raise LimitExceeded("maps or lists nested far too deeply") from error
    except _MALFORMED as error:
        _check_version(version, body)
        raise Undecodable(f"not a {kind} message of the declared types: {_one_line(error)}") from error
    if message.v != SCHEMA_VERSION:
        raise UnsupportedSchema(f"schema version {message.v}: this side speaks {SCHEMA_VERSION}")
    return message


def _check_version(decoder: Any, body: bytes) -> None:
    """Another schema version explains unknown fields better than their names do."""
    try:
        found = decoder.decode(body).v
    except (*_MALFORMED, RecursionError):
        return
    if found != SCHEMA_VERSION:
        raise UnsupportedSchema(f"schema version {found}: this side speaks {SCHEMA_VERSION}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


# ------------------------------------------------------------------------------------- how many objects it would become


def _look_over(body: bytes, limits: Limits) -> None:
    """Bounds the objects that a MessagePack request would become, from the headers of its maps and arrays.

    A small integer or an empty map is one byte in the body and up to 100 in memory, so that a body which is mostly that
    must not be decoded. Repeated keys, which would be decoded and dropped, are refused.
    """
    left = limits.elements
    try:
        for instance in _array(_map(body, 16).get("instances", b"\x90"), limits.instances, "instances"):
            for value in _map(instance, limits.inputs, "inputs").values():
                head, _ = _head(value)
                if head == "map":
                    tensor = _map(value, len(Tensor.__struct_fields__))
                    left -= len(memoryview(tensor.get("shape", b"")))
                    left -= _texts_in(tensor, left)
                elif head == "array":
                    left -= len(memoryview(value))
                if left < 0:
                    what = "values outside of tensors' bytes: give tensors as dtype, shape and data (base64 in JSON)"
                    raise LimitExceeded(f"more than {limits.elements} {what}")
    except RecursionError as error:
        raise LimitExceeded("maps or lists nested far too deeply") from error
    except (*_MALFORMED, Undecodable) as error:
        _check_version(_version, body)
        raise Undecodable(f"not a MessagePack message of the declared types: {_one_line(error)}") from error


def _texts_in(tensor: dict[str, Any], most: int) -> int:
    """How many elements of text or binary the tensor has; up to `most`, that they are nothing else was checked."""
    data = tensor.get("data", b"")
    head, count = _head(data)
    if head != "array":
        return 0
    if count <= most:
        (_texts if bytes(memoryview(tensor.get("dtype", b""))[1:7]) == b"string" else _binaries).decode(data)
    return count


def _map(body: Any, most: int, what: str = "") -> dict[str, Any]:
    head, count = _head(body)
    if head != "map":
        raise Undecodable("a value that should be a map is none")
    if count > most:
        if what:
            raise LimitExceeded(f"an instance with {count} {what}: {most} are allowed")
        raise Undecodable(f"a map with {count} fields")
    parts = _parts_of_map.decode(body)
    if len(parts) != count:
        raise Undecodable("a map with a repeated key")
    return parts


def _array(body: Any, most: int, what: str) -> list[Any]:
    head, count = _head(body)
    if head != "array":
        raise Undecodable(f"{what} must be an array")
    if count > most:
        raise LimitExceeded(f"{count} {what}: {most} are allowed")
    return _parts_of_array.decode(body)


def _head(body: Any) -> tuple[str, int]:
    """Whether a MessagePack value is an array or a map, and of how many entries."""
    view = memoryview(body)
    first = view[0] if len(view) else 0xC1
    if first >> 4 in (8, 9):
        return ("map", "array")[first >> 4 == 9], first & 15
    if first in _WIDE:
        head, width = _WIDE[first]
        return head, int.from_bytes(view[1 : 1 + width])
    return "", 0

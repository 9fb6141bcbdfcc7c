from __future__ import annotations

import json
import math
import re
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from rankmq.schemas import codec, messages
from rankmq.schemas.codec import JSON
from rankmq.schemas.documents import CHANNEL_NAMES, asyncapi, json_schema
from rankmq.schemas.errors import InvalidInput, RequestError
from rankmq.schemas.limits import Limits
from rankmq.schemas.messages import Reply, Request, ToAgent
from rankmq.schemas.plain import array_of
from rankmq.schemas.tensors import DTYPES, Tensor, from_array, numpy_dtype

from .builders import EVERY_MESSAGE, TOLERANT, any_of, most

SCHEMA = json_schema()
NAMES = {name: f"{name}.{{servable}}.{{lane}}" if name.endswith("queue") else name for name in CHANNEL_NAMES}
DOCUMENT = asyncapi(NAMES, "1.2.3", {"lane": ("high", "low")})


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]})


REQUEST, REPLY = validator("Request"), validator("Reply")


def request(value: object = 1, **changes: object) -> dict:
    whole = {"servable": "m", "method": "p", "instances": [{"x": value}]} | changes
    return {name: field for name, field in whole.items() if field is not ...}


def is_served(plain: dict) -> bool:
    try:
        found = codec.decode_request(json.dumps(plain).encode(), JSON)
        for row in found.instances:
            for value in row.values():
                array_of(value, Limits())
    except RequestError:
        return False
    return True


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        here = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return here + [found for value in node.values() for found in references(value)]
    return [found for value in node for found in references(value)] if isinstance(node, list) else []


def resolve(document: dict, reference: str) -> Any:
    assert reference.startswith("#/")
    node: Any = document
    for step in reference[2:].split("/"):
        node = node[step]
    return node


# ----------------------------------------------------------------------------------------------------- JSON Schema


def test_it_is_a_json_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    for reference in references(SCHEMA):
        assert resolve(SCHEMA, reference)


def test_every_message_and_every_part_is_in_it():
    kinds = {kind.__name__ for kind in EVERY_MESSAGE} | {"ToAgent", "ToOrchestrator", "Tensor", "Value", "ErrorInfo"}
    assert kinds <= SCHEMA["$defs"].keys()
    listed = {one["$ref"].rsplit("/", 1)[1] for one in SCHEMA["$defs"]["ToAgent"]["oneOf"]}
    assert listed == {kind.__name__ for kind in ToAgent.__args__}


def test_descriptions_come_from_the_docstrings():
    task = SCHEMA["$defs"]["Task"]
    assert task["description"].startswith("The message that carries a step to a rank.")
    assert "Attributes" not in task["description"]
    assert task["properties"]["epoch"]["description"] == "the life of the group in which it was numbered."
    assert "\n" not in json.dumps(task)
    for name, schema in SCHEMA["$defs"].items():
        assert schema.get("description") or name in ("ToAgent", "ToOrchestrator"), name


@pytest.mark.parametrize(
    "kind", [kind for kind in EVERY_MESSAGE if kind is not Request], ids=lambda kind: kind.__name__
)
def test_every_message_is_what_its_schema_says(kind):
    plain = json.loads(msgspec.json.encode(most(kind)))
    validator(kind.__name__).validate(plain)
    assert validator(kind.__name__).is_valid(plain | {"colour": "green"}) == (kind in TOLERANT)
    assert not validator(kind.__name__).is_valid(plain | {"v": 2})


GOOD = [
    1,
    -1.5,
    "text",
    True,
    [1, 2.5],
    [[1, 2], [3, 4]],
    ["a", "b"],
    [[True]],
    [],
    {"dtype": "float32", "shape": [1], "data": "AACAPw=="},
    {"dtype": "float32", "data": [[1.5], [2]]},
    {"dtype": "float32", "shape": [], "data": 1},
    {"dtype": "int8", "data": 3},
    {"dtype": "bool", "data": [True]},
    {"dtype": "bool", "shape": [1], "data": "AQ=="},
    {"dtype": "bfloat16", "shape": [1, 1], "data": [[2]]},
    {"dtype": "string", "data": ["a", "b"]},
    {"dtype": "string", "shape": [], "data": "a"},
    {"dtype": "string", "data": "a"},
    {"dtype": "bytes", "shape": [1], "data": ["AP8="]},
    {"dtype": "uint64", "shape": [0, 3], "data": []},
]
BAD = [
    None,
    [None],
    {},
    [1, "a"],
    [True, 2],
    [[1], "a"],
    [{}],
    {"dtype": "float32"},
    {"data": [1]},
    {"dtype": "f4", "data": [1]},
    {"dtype": "object", "data": [1]},
    {"dtype": "float32", "data": "AACAPw=="},
    {"dtype": "float32", "data": ["1"]},
    {"dtype": "float32", "data": [True]},
    {"dtype": "float32", "data": None},
    {"dtype": "float32", "data": {}},
    {"dtype": "int32", "data": [1.5]},
    {"dtype": "int32", "shape": [-1], "data": [1]},
    {"dtype": "int32", "shape": [1.5], "data": [1]},
    {"dtype": "int32", "shape": 1, "data": [1]},
    {"dtype": "int32", "shape": [1] * 33, "data": 1},
    {"dtype": "int32", "data": [1], "colour": "green"},
    {"dtype": "bool", "data": [1]},
    {"dtype": "string", "data": [1]},
    {"dtype": "bytes", "data": [1]},
]


@pytest.mark.parametrize("value", GOOD, ids=repr)
def test_what_is_served_validates(value):
    assert is_served(request(value))
    REQUEST.validate(request(value))


@pytest.mark.parametrize("value", BAD, ids=repr)
def test_what_is_refused_does_not_validate(value):
    assert not is_served(request(value))
    assert not REQUEST.is_valid(request(value))


@pytest.mark.parametrize(
    "changes",
    [
        {"servable": ...},
        {"method": ...},
        {"instances": ...},
        {"instances": []},
        {"instances": [1]},
        {"servable": "a b"},
        {"servable": 1},
        {"servable": "a" * 65},
        {"version": -1},
        {"version": "1"},
        {"v": 2},
        {"reply_to": "q"},
    ],
    ids=repr,
)
def test_a_request_that_is_refused_does_not_validate(changes):
    assert not is_served(request(**changes))
    assert not REQUEST.is_valid(request(**changes))


@pytest.mark.parametrize("name", DTYPES)
def test_requests_as_the_codec_writes_them_validate(name):
    array = np.empty((2, 3), numpy_dtype(name))
    if name == "bytes":
        array[...] = b"\0"
    sent = Request(servable="m", method="p", instances=[{"x": from_array(array), "y": [1.0, math.nan]}])
    REQUEST.validate(json.loads(codec.encode_request(sent, JSON)))


@settings(max_examples=100, deadline=None)
@given(any_of(Request))
def test_any_request_that_is_served_validates(message):
    try:
        plain = json.loads(codec.encode_request(message, JSON))
    except InvalidInput:
        return
    if is_served(plain):
        REQUEST.validate(plain)


@settings(max_examples=100, deadline=None)
@given(any_of(Reply))
def test_any_reply_validates(message):
    if message.stats is not None and not math.isfinite(message.stats.served_ms + message.stats.ranks_ms):
        return  # no clock says so
    REPLY.validate(json.loads(codec.encode_reply(message, JSON)))


def test_broken_replies_do_not_validate():
    good = json.loads(codec.encode_reply(most(Reply), JSON))
    REPLY.validate(good)
    for broken in (
        good | {"outputs": {}},
        good | {"outputs": [1]},
        good | {"errors": [{"index": -1, "error": good["error"]}]},
        good | {"error": "text"},
        good | {"v": 2},
    ):
        assert not REPLY.is_valid(broken)


# -------------------------------------------------------------------------------------------------------- AsyncAPI


def test_it_says_which_asyncapi_and_which_software():
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert DOCUMENT["info"]["version"] == "1.2.3"
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT
    assert {server["protocol"] for server in DOCUMENT["servers"].values()} == {"amqp", "amqps"}


def test_every_reference_is_there():
    assert references(DOCUMENT)
    for reference in references(DOCUMENT):
        assert resolve(DOCUMENT, reference)


def test_the_schemas_in_it_are_the_same():
    def moved(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: moved(value) for key, value in node.items()}
        if isinstance(node, list):
            return [moved(value) for value in node]
        return node.replace("#/$defs/", "#/components/schemas/") if isinstance(node, str) else node

    schemas = DOCUMENT["components"]["schemas"]
    assert schemas == {name: moved(SCHEMA["$defs"][name]) for name in schemas}
    assert SCHEMA["$defs"].keys() - schemas.keys() == {"ToAgent", "ToOrchestrator"}
    for schema in schemas.values():
        jsonschema.Draft7Validator.check_schema(schema)  # the dialect of AsyncAPI


def test_every_name_is_used_and_every_parameter_explained():
    text = json.dumps(DOCUMENT["channels"])
    for name in NAMES.values():
        assert json.dumps(name) in text
    for channel in DOCUMENT["channels"].values():
        named = set(re.findall(r"\{(\w+)\}", channel["address"] or ""))
        assert named == channel.get("parameters", {}).keys()
        assert all(parameter["description"] for parameter in channel.get("parameters", {}).values())


def test_names_must_be_all_there():
    with pytest.raises(ValueError, match="requests_queue"):
        asyncapi({name: value for name, value in NAMES.items() if name != "requests_queue"}, "1")
    with pytest.raises(ValueError, match="colour"):
        asyncapi(NAMES | {"colour": "green"}, "1")


def test_every_message_is_sent_and_received():
    ways: dict[str, set[str]] = {"send": set(), "receive": set()}
    for operation in DOCUMENT["operations"].values():
        channel = resolve(DOCUMENT, operation["channel"]["$ref"])
        for message in operation["messages"]:
            assert message["$ref"].startswith(operation["channel"]["$ref"] + "/messages/")
            name = message["$ref"].rsplit("/", 1)[1]
            assert name in channel["messages"]
            ways[operation["action"]].add(name)
    kinds = {kind.__name__ for kind in EVERY_MESSAGE}
    kinds |= {"RequestJson", "ReplyJson", "ReplyPartJson", "DeadLetter", "Cancel", "CancelReplyJson"}
    answered_with = {"Status", "CancelReply", "CancelReplyJson"}  # replies: see below
    assert ways["send"] == kinds - answered_with
    assert ways["receive"] == kinds - answered_with
    answers = {message["$ref"].rsplit("/", 1)[1] for one in DOCUMENT["operations"].values() if "reply" in one
               for message in one["reply"]["messages"]}  # fmt: skip
    assert answers == {"Reply", "ReplyJson"} | answered_with
    assert DOCUMENT["components"]["messages"].keys() == kinds


def test_who_asks_is_told_where_the_answer_comes():
    answered = {name for name, operation in DOCUMENT["operations"].items() if "reply" in operation}
    assert answered == {
        *("sendRequest", "replayDeadLetter", "takeRequest", "refuseRequest"),
        *("askCancel", "takeCancel", "askStatus", "takeStatusQuery"),
    }
    reply = DOCUMENT["operations"]["sendRequest"]["reply"]
    assert reply["address"] == {"location": "$message.header#/reply_to"}
    assert reply["channel"] == {"$ref": "#/channels/replies"}
    assert DOCUMENT["channels"]["replies"]["address"] is None


def test_each_role_does_something():
    roles = {tag["name"] for operation in DOCUMENT["operations"].values() for tag in operation["tags"]}
    assert roles == {"producer", "orchestrator", "agent", "operator"}


def test_the_properties_of_a_request_are_told():
    headers = DOCUMENT["components"]["messages"]["Request"]["headers"]["properties"]
    assert headers.keys() == {
        "message_id", "correlation_id", "reply_to", "content_type", "content_encoding", "expiration", "priority",
        "timestamp", "delivery_mode", "headers",
    }  # fmt: skip
    assert headers["headers"]["properties"].keys() == {
        "rankmq-deadline", "rankmq-run-ms", "rankmq-blobs", "rankmq-claims", "rankmq-claim", "rankmq-replayed",
        "traceparent",
    }  # fmt: skip
    assert "known again" in headers["message_id"]["description"]
    for operation in DOCUMENT["operations"].values():
        if "reply" in operation:
            for message in operation["messages"]:
                location = resolve(DOCUMENT, resolve(DOCUMENT, message["$ref"])["$ref"])["headers"]["properties"]
                assert "reply_to" in location


def test_the_properties_that_are_told_are_json_schemas_that_hold():
    def accepts(message: str, **properties: Any) -> bool:
        return jsonschema.Draft7Validator(DOCUMENT["components"]["messages"][message]["headers"]).is_valid(properties)

    for message in DOCUMENT["components"]["messages"].values():
        jsonschema.Draft7Validator.check_schema(message["headers"])
    asked = {"message_id": "42", "content_type": JSON, "reply_to": "q", "delivery_mode": 2, "expiration": "30000"}
    assert accepts("Request", **asked, headers={"rankmq-deadline": 1_753_000_000_000, "mine": "too"})
    assert not accepts("Request", **asked, headers={"rankmq-deadline": "soon"})
    for wrong in ({"expiration": 30000}, {"expiration": "1 s"}, {"message_id": "a" * 256}, {"content_type": "text"}):
        assert not accepts("Request", **(asked | wrong))
    assert accepts("Cancel", correlation_id="42")
    assert not accepts("Cancel", message_id="42")


def test_a_cancel_goes_to_every_orchestrator_and_comes_back_with_what_became_of_it():
    ask, take = DOCUMENT["operations"]["askCancel"], DOCUMENT["operations"]["takeCancel"]
    assert {tag["name"] for tag in ask["tags"]} == {"producer", "operator"}
    assert ask["bindings"]["amqp"]["mandatory"]
    channel = resolve(DOCUMENT, ask["channel"]["$ref"])
    assert channel["bindings"]["amqp"]["exchange"]["name"] == NAMES["cancel_exchange"]
    assert channel["address"] is None
    assert resolve(DOCUMENT, take["channel"]["$ref"])["address"] == NAMES["status_queue"]
    for operation in (ask, take):
        (message,) = operation["messages"]
        assert "payload" not in resolve(DOCUMENT, resolve(DOCUMENT, message["$ref"])["$ref"])
        answers = [resolve(DOCUMENT, resolve(DOCUMENT, it["$ref"])["$ref"]) for it in operation["reply"]["messages"]]
        assert {it["contentType"] for it in answers} == {codec.MSGPACK, JSON}
        assert {it["payload"]["$ref"] for it in answers} == {"#/components/schemas/CancelReply"}
    states = DOCUMENT["components"]["schemas"]["CancelReply"]["properties"]["state"]["enum"]
    assert set(states) == {"cancelled", "answered", "noted"}


def test_the_lanes_are_told_where_a_name_has_one():
    for channel in DOCUMENT["channels"].values():
        for name, parameter in channel.get("parameters", {}).items():
            assert parameter.get("enum") == (["high", "low"] if name == "lane" else None)


def test_the_form_in_messagepack_has_the_fields_of_the_form_in_json():
    tensor = SCHEMA["$defs"]["Tensor"]
    assert tensor["properties"].keys() == set(Tensor.__struct_fields__)
    assert tensor["properties"]["dtype"]["enum"] == list(DTYPES)
    assert SCHEMA["$defs"]["Request"]["properties"]["v"]["const"] == messages.SCHEMA_VERSION

"""Requests and replies at the edge, as MessagePack made by another library and as JSON made by hand."""

from __future__ import annotations

import base64
import json
import math

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from rankmq.schemas import codec
from rankmq.schemas.codec import JSON, MSGPACK, content_type_of, decode_request
from rankmq.schemas.errors import InvalidInput, LimitExceeded, Undecodable, UnsupportedSchema
from rankmq.schemas.limits import Limits
from rankmq.schemas.messages import ErrorInfo, InstanceError, Reply, ReplyPart, Request, Stats
from rankmq.schemas.plain import array_of, tensor_from_json
from rankmq.schemas.tensors import Tensor, from_array, to_array

from .builders import any_of

X = np.arange(6, dtype="<f4").reshape(2, 3)
TENSOR = {"dtype": "float32", "shape": [2, 3], "data": X.tobytes()}


def request(**changes: object) -> dict:
    """A request as a producer in another language builds it."""
    whole = {"v": 1, "servable": "matmul", "method": "predict", "version": 0, "instances": [{"x": TENSOR}]}
    return {name: value for name, value in (whole | changes).items() if value is not ...}


def from_msgpack(**changes: object) -> Request:
    return decode_request(msgpack.packb(request(**changes)))


def from_json(**changes: object) -> Request:
    return decode_request(json.dumps(request(**({"instances": [{"x": 1}]} | changes))).encode(), JSON)


def inputs(found: Request, row: int = 0) -> dict[str, np.ndarray]:
    return {name: array_of(value, Limits()) for name, value in found.instances[row].items()}


def test_a_request_of_another_msgpack():
    found = from_msgpack(version=3)
    assert (found.servable, found.method, found.version) == ("matmul", "predict", 3)
    assert np.array_equal(inputs(found)["x"], X)


def test_a_request_in_json():
    found = from_json(version=3)
    assert (found.servable, found.method, found.version) == ("matmul", "predict", 3)
    assert type(found) is Request
    assert inputs(found)["x"].tolist() == 1


@pytest.mark.parametrize("read", [from_msgpack, from_json])
def test_version_numbers_may_be_left_out(read):
    found = read(v=..., version=...)
    assert (found.v, found.version) == (1, 0)


def test_all_kinds_of_inputs_in_json():
    base64_of_x = base64.b64encode(X.tobytes()).decode()
    found = inputs(
        from_json(
            instances=[
                {
                    "bare": [[1, 2], [3, 4]],
                    "scalar": 1.5,
                    "text": "ä\0",
                    "flag": True,
                    "base64": {"dtype": "float32", "shape": [2, 3], "data": base64_of_x},
                    "lists": {"dtype": "int8", "data": [[1, 2]]},
                    "texts": {"dtype": "string", "shape": [2], "data": ["a", "😀"]},
                    "bytes": {"dtype": "bytes", "shape": [1], "data": ["AP8="]},
                }
            ]
        )
    )
    assert found["bare"].dtype == np.int32
    assert found["bare"].tolist() == [[1, 2], [3, 4]]
    assert found["scalar"].dtype == np.float32
    assert found["text"].tolist() == "ä\0"
    assert found["flag"].tolist() is True
    assert np.array_equal(found["base64"], X)
    assert found["lists"].dtype == np.int8
    assert found["texts"].tolist() == ["a", "😀"]
    assert found["bytes"].tolist() == [b"\0\xff"]


def test_bare_values_in_msgpack():
    found = inputs(from_msgpack(instances=[{"a": [[1, 2]], "b": 1.5, "c": "text", "d": False}]))
    assert found["a"].tolist() == [[1, 2]]
    assert found["c"].tolist() == "text"


@pytest.mark.parametrize("read", [from_msgpack, from_json])
@pytest.mark.parametrize("value", [None, [None], [1, "a"], [[1], [1, 2]], [True, 2], [{}], [2**63, -1]], ids=repr)
def test_a_bad_input_harms_only_its_instance(read, value):
    found = read(instances=[{"x": 1}, {"x": value}, {"x": 2}])
    assert [inputs(found, row)["x"].tolist() for row in (0, 2)] == [1, 2]
    with pytest.raises(InvalidInput):
        inputs(found, 1)


def test_a_bad_tensor_harms_only_its_instance():
    for wrong in ({"shape": [2, 4]}, {"shape": [-1, 3]}, {"dtype": "complex64"}, {"data": [1, 2]}, {"shape": [1] * 33}):
        found = from_msgpack(instances=[{"x": TENSOR}, {"x": TENSOR | wrong}])
        assert np.array_equal(inputs(found)["x"], X)
        with pytest.raises((InvalidInput, LimitExceeded)):
            inputs(found, 1)


def test_bare_binary_is_refused_since_its_dtype_would_be_a_guess():
    with pytest.raises(Undecodable):
        from_msgpack(instances=[{"x": b"abc"}])
    with pytest.raises(InvalidInput):
        inputs(from_msgpack(instances=[{"x": [msgpack.ExtType(5, b"a")]}]))
    with pytest.raises(InvalidInput):
        inputs(from_msgpack(instances=[{"x": [msgpack.Timestamp(1)]}]))


@pytest.mark.parametrize("read", [from_msgpack, from_json])
@pytest.mark.parametrize(
    "changes",
    [
        {"servable": ...},
        {"method": ...},
        {"instances": ...},
        {"instances": []},
        {"instances": {}},
        {"instances": None},
        {"instances": [[]]},
        {"instances": [None]},
        {"instances": [1]},
        {"servable": 1},
        {"method": None},
        {"version": -1},
        {"version": 1.0},
        {"version": "1"},
        {"version": True},
        {"reply_to": "q"},
    ],
    ids=repr,
)
def test_a_request_of_other_types(read, changes):
    with pytest.raises(Undecodable):
        read(**changes)


@pytest.mark.parametrize("read", [from_msgpack, from_json])
def test_a_request_of_another_schema_version(read):
    with pytest.raises(UnsupportedSchema, match="schema version 2: this side speaks 1"):
        read(v=2)
    with pytest.raises(UnsupportedSchema):
        read(v=2, servable=..., tensors=[])


def test_a_tensor_of_other_types_in_msgpack():
    for wrong in (
        {"shape": [1.0]},
        {"shape": [True]},
        {"shape": 6},
        {"data": "text"},
        {"data": None},
        {"dtype": 1},
        {"x": 1},
    ):
        with pytest.raises(Undecodable):
            from_msgpack(instances=[{"x": TENSOR | wrong}])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"text"',
        b'{"servable": "m", "method": "p", "instances": [{"x": NaN}]}',
        b'{"servable": "m", "method": "p", "instances": [{"x": Infinity}]}',
        b'{"servable": "m", "method": "p", "instances": [{"x": 1e999}]}',
        b'{"servable": "m", "method": "p", "instances": [{"x": "\\ud800"}]}',
        b'{"servable": "m", "method": "p", "instances": [{"x": "\xff"}]}',
        b'{"servable": "m", "method": "p", "instances": [{"\xff": 1}]}',
        b'{"servable": "m", "method": "p", "instances": [{"x": 01}]}',
        b'{"servable": "m", "method": "p", "instances": [{"x": 1},]}',
        b'{"servable": "m", "method": "p", "instances": [{"x": 1}]} trailing',
        b"{'servable': 'm'}",
        b"\xef\xbb\xbf{}",
        b"\x00",
    ],
)
def test_what_is_not_json(body):
    with pytest.raises(Undecodable):
        decode_request(body, JSON)


def test_a_number_of_any_length_in_json():
    for digits in (400, 4000, 5000, 1_000_000):
        body = b'{"servable": "m", "method": "p", "instances": [{"x": {"dtype": "int8", "data": %b}}]}' % (
            b"1" * digits
        )
        with pytest.raises((Undecodable, InvalidInput)):
            inputs(decode_request(body, JSON))


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("application/msgpack", MSGPACK),
        ("application/x-msgpack", MSGPACK),
        ("application/vnd.msgpack", MSGPACK),
        ("application/json", JSON),
        ("Application/JSON; charset=utf-8", JSON),
        (" application/json ", JSON),
    ],
)
def test_the_content_type_that_is_declared(declared, expected):
    assert content_type_of(declared, b"anything") == expected


@pytest.mark.parametrize("declared", ["text/plain", "application/octet-stream", "json", ";", "x" * 100_000])
def test_a_content_type_that_is_not_spoken(declared):
    with pytest.raises(Undecodable, match="neither") as caught:
        content_type_of(declared, b"{}")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("declared", [None, ""])
def test_without_a_content_type_the_first_byte_tells(declared):
    assert content_type_of(declared, b'{"servable": "m"}') == JSON
    assert content_type_of(declared, b'\r\n  {"servable": "m"}') == JSON
    assert content_type_of(declared, msgpack.packb(request())) == MSGPACK
    assert content_type_of(declared, msgpack.packb({f"field{i}": i for i in range(20)})) == MSGPACK
    assert content_type_of(declared, b"") == MSGPACK
    assert content_type_of(declared, b" " * 1_000_000) == MSGPACK


@settings(max_examples=100, deadline=None)
@given(any_of(Request))
def test_any_request_survives_json(message):
    try:
        body = codec.encode_request(message, JSON)
    except InvalidInput:  # only what would be refused on the other side
        with pytest.raises(InvalidInput):
            [array_of(value, Limits()) for row in message.instances for value in row.values()]
        return
    found = decode_request(body, JSON)
    assert (found.servable, found.method, found.version) == (message.servable, message.method, message.version)
    for sent, came in zip(message.instances, found.instances, strict=True):
        assert sent.keys() == came.keys()
        for name, value in sent.items():
            if isinstance(value, Tensor) and value.blob is not None:
                assert tensor_from_json(came[name]) == value
            elif isinstance(value, Tensor):
                array = array_of(came[name], Limits())
                assert np.array_equal(array, to_array(value))
                assert array.shape == value.shape
            elif not isinstance(came[name], dict):
                assert came[name] == value


def test_numbers_that_json_cannot_say_are_sent_all_the_same():
    message = Request(servable="m", method="p", instances=[{"x": [1.0, math.nan], "y": math.inf, "z": 2.5}])
    found = inputs(decode_request(codec.encode_request(message, JSON), JSON))
    assert np.array_equal(found["x"], np.array([1, math.nan], "f4"), equal_nan=True)
    assert found["y"] == math.inf
    assert found["z"] == 2.5


REPLY = Reply(
    id="r1",
    outputs=[{"x": from_array(X)}, None, {}],
    errors=[InstanceError(index=1, error=ErrorInfo(code="invalid_input", message="x is missing", side="sender"))],
    stats=Stats(served_ms=1.5, ranks_ms=1.0, steps=2),
)


@pytest.mark.parametrize("content_type", [MSGPACK, JSON])
def test_a_reply_comes_back_the_same(content_type):
    assert codec.decode_reply(codec.encode_reply(REPLY, content_type), content_type) == REPLY
    failed = Reply(id="r2", error=ErrorInfo(code="internal", message="ä", side="engine"))
    assert codec.decode_reply(codec.encode_reply(failed, content_type), content_type) == failed


def test_a_reply_in_json_can_be_read_by_a_person():
    found = json.loads(codec.encode_reply(REPLY, JSON))
    assert found["outputs"][0]["x"] == {"dtype": "float32", "shape": [2, 3], "data": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]}
    assert found["outputs"][1] is None
    assert found["errors"][0]["error"]["code"] == "invalid_input"
    assert found["v"] == 1


def test_a_reply_in_json_with_numbers_that_json_cannot_say():
    reply = Reply(id="r", outputs=[{"x": from_array(np.array([math.nan, 1.0], "f4"))}])
    text = codec.encode_reply(reply, JSON)
    assert b"null" not in text.split(b'"errors"')[0]
    array = to_array(codec.decode_reply(text, JSON).outputs[0]["x"])
    assert np.array_equal(array, [math.nan, 1], equal_nan=True)


PART = ReplyPart(
    id="r1", index=2, attempt=3, number=4, outputs={"x": from_array(X), "text": from_array(np.array("Paris"))}
)


@pytest.mark.parametrize("content_type", [MSGPACK, JSON])
def test_a_part_comes_back_the_same(content_type):
    assert codec.decode_part(codec.encode_part(PART, content_type), content_type) == PART


def test_a_part_in_json_can_be_read_by_a_person():
    found = json.loads(codec.encode_part(PART, JSON))
    assert found["outputs"]["text"] == {"dtype": "string", "shape": [], "data": "Paris"}
    assert {name: found[name] for name in ("v", "id", "index", "attempt", "number")} == {
        "v": 1, "id": "r1", "index": 2, "attempt": 3, "number": 4,
    }  # fmt: skip


def test_a_part_that_is_not_one():
    for body, content_type in ((b"{", JSON), (b"\xc1", MSGPACK), (b'{"outputs": []}', JSON)):
        with pytest.raises(Undecodable):
            codec.decode_part(body, content_type)
    with pytest.raises(UnsupportedSchema):
        codec.decode_part(b'{"v": 7, "outputs": {}}', JSON)


@pytest.mark.parametrize("content_type", [MSGPACK, JSON])
def test_a_request_says_whether_parts_are_to_come(content_type):
    for stream in (False, True):
        request = Request(servable="m", method="p", instances=[{"x": 1}], stream=stream)
        assert decode_request(codec.encode_request(request, content_type), content_type).stream is stream
    silent = {"servable": "m", "method": "p", "instances": [{"x": 1}]}
    assert decode_request(json.dumps(silent).encode(), JSON).stream is False


def test_a_reply_that_is_not_one():
    for body, content_type in ((b"{", JSON), (b"\xc1", MSGPACK), (b"[" * 100, JSON)):
        with pytest.raises(Undecodable):
            codec.decode_reply(body, content_type)
    with pytest.raises(InvalidInput):
        codec.decode_reply(b'{"outputs": [{"x": {"dtype": "float32", "shape": [3], "data": [1]}}]}', JSON)
    with pytest.raises(UnsupportedSchema):
        codec.decode_reply(b'{"v": 7, "outcome": 1}', JSON)

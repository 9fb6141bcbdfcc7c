"""Tensors by reference: what they must say, in MessagePack and in JSON, and what is refused."""

import binascii
import json

import jsonschema
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.schemas import codec, json_schema
from rankmq.schemas.blobs import Blob, check_blob, digest_of
from rankmq.schemas.errors import InvalidInput, LimitExceeded, RankmqError, Undecodable
from rankmq.schemas.messages import Reply, Request
from rankmq.schemas.plain import tensor_from_json, tensor_to_json
from rankmq.schemas.tensors import NO_DATA, Tensor, blob_of, from_array, nbytes, to_array

from .builders import references

NAME = "20260131T235959Z-0123456789abcdef0123456789abcdef"
GOOD = Blob(name=NAME, bytes=24, digest="crc32:0000abcd")
TENSOR = Tensor("float32", (2, 3), blob=GOOD)

EVIL = ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", f"../{NAME}", f"{NAME}/..", f"{NAME}\n", f"{NAME}\0",
        NAME.upper(), NAME[:-1], NAME + "0", "s3://bucket/" + NAME, "%2e%2e%2f", "x" * 10_000]  # fmt: skip


def a_request(tensor: Tensor) -> Request:
    return Request(servable="m", method="f", instances=[{"x": tensor}])


@given(references())
def test_a_reference_survives_both_formats(tensor):
    for content_type in (codec.MSGPACK, codec.JSON):
        body = codec.encode_request(a_request(tensor), content_type)
        (row,) = codec.decode_request(body, content_type).instances
        found = row["x"] if content_type == codec.MSGPACK else tensor_from_json(row["x"])
        assert found == tensor
        assert found.data is NO_DATA
        assert blob_of(found) == tensor.blob
        reply = Reply(id="1", outputs=[{"y": tensor}])
        assert codec.decode_reply(codec.encode_reply(reply, content_type), content_type) == reply


def test_the_bytes_of_a_reference():
    plain = msgpack.unpackb(codec.encode_request(a_request(TENSOR)))["instances"][0]["x"]
    wanted = {"dtype": "float32", "shape": [2, 3], "blob": {"name": NAME, "bytes": 24, "digest": "crc32:0000abcd"}}
    assert plain == wanted
    assert tensor_to_json(TENSOR) == wanted
    assert nbytes(TENSOR) == 0


def test_a_tensor_with_data_has_the_fields_that_it_always_had():
    for array in (np.arange(3, dtype=np.float32), np.empty((0, 2)), np.empty(0, np.dtypes.StringDType())):
        row = {"x": from_array(array)}
        body = codec.encode_request(Request(servable="m", method="f", instances=[row]))
        assert list(msgpack.unpackb(body)["instances"][0]["x"]) == ["dtype", "shape", "data"]
        assert to_array(codec.decode_request(body).instances[0]["x"]).shape == array.shape


@given(references())
def test_the_schema_says_what_is_allowed(tensor):
    schema = json_schema()
    validator = jsonschema.Draft202012Validator({"$ref": "#/$defs/Tensor", "$defs": schema["$defs"]})
    plain = tensor_to_json(tensor)
    validator.validate(plain)
    for wrong in (
        {**plain, "data": [1]},
        {**plain, "dtype": "string"},
        {**plain, "blob": {**plain["blob"], "name": "../x"}},
        {**plain, "blob": {**plain["blob"], "url": "s3://a/b"}},
        {"dtype": "int16", "blob": plain["blob"]},
        {"dtype": "int16", "shape": [1]},
        {**plain, "blob": None},
    ):
        assert not validator.is_valid(wrong), wrong


@pytest.mark.parametrize("name", EVIL)
def test_names_that_are_none(name):
    with pytest.raises(InvalidInput, match="blob name"):
        check_blob(Blob(name=name, bytes=24, digest=GOOD.digest))
    with pytest.raises(InvalidInput, match="blob name"):
        blob_of(Tensor("float32", (2, 3), blob=Blob(name=name, bytes=24, digest=GOOD.digest)))


@pytest.mark.parametrize(
    "digest", ["", "crc32:", "crc32:0000ABCD", "md5:0000abcd", "crc32:0000abcd0", "crc32:0000abcd\n"]
)
def test_digests_that_are_none(digest):
    with pytest.raises(InvalidInput, match="blob digest"):
        check_blob(Blob(name=NAME, bytes=24, digest=digest))


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (Tensor("float32", (2, 3), blob=Blob(name=NAME, bytes=25, digest=GOOD.digest)), "25 bytes does not match"),
        (Tensor("float64", (2, 3), blob=GOOD), "24 bytes does not match float64"),
        (Tensor("float32", (2, 4), blob=GOOD), r"\[2, 4\]: 32"),
        (Tensor("float32", (-2, -3), blob=GOOD), "negative"),
        (Tensor("float32", (0, 3), blob=Blob(name=NAME, bytes=0, digest=GOOD.digest)), "empty tensor has none"),
        (Tensor("string", (2, 3), blob=GOOD), "cannot be a blob"),
        (Tensor("complex64", (3,), blob=GOOD), "not one of"),
        (Tensor("float32", (2, 3), memoryview(bytes(24)), blob=GOOD), "either data or a blob"),
        (Tensor("float32", (2, 3)), "either data or a blob"),
    ],
)
def test_references_that_do_not_go_together(tensor, why):
    with pytest.raises(InvalidInput, match=why):
        blob_of(tensor)


def test_a_reference_with_too_many_dimensions():
    with pytest.raises(LimitExceeded):
        blob_of(Tensor("float32", (1,) * 33, blob=Blob(name=NAME, bytes=4, digest=GOOD.digest)))


def test_a_reference_is_no_array_by_itself():
    with pytest.raises(InvalidInput, match=f"by reference: its bytes are in the blob '{NAME}'"):
        to_array(TENSOR)


def test_neither_data_nor_a_blob():
    body = msgpack.packb({"servable": "m", "method": "f", "instances": [{"x": {"dtype": "float32", "shape": [0]}}]})
    (row,) = codec.decode_request(body).instances
    with pytest.raises(InvalidInput, match="needs data"):
        to_array(row["x"])


@pytest.mark.parametrize(
    "blob", [None, 1, "x", {}, {"name": NAME}, {"name": 1, "bytes": 1, "digest": ""},
             {"name": NAME, "bytes": "24", "digest": "a"}, {"name": NAME, "bytes": 24, "digest": "a", "url": "file:///x"}]
)  # fmt: skip
def test_what_is_no_reference_is_refused_in_both_formats(blob):
    tensor = {"dtype": "float32", "shape": [2, 3], "blob": blob}
    with pytest.raises(InvalidInput):
        tensor_from_json(tensor)
    body = msgpack.packb({"servable": "m", "method": "f", "instances": [{"x": tensor}]})
    with pytest.raises((Undecodable, InvalidInput)):
        to_array(codec.decode_request(body).instances[0]["x"])


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "float32", "blob": {}},
        {"dtype": "float32", "shape": "2", "blob": {}},
        {"shape": [1], "blob": {}},
        {"dtype": "float32", "shape": [1], "blob": {}, "data": [1]},
        {"dtype": "float32", "shape": [-1], "blob": {}},
    ],
)
def test_json_references_that_are_not_whole(tensor):
    with pytest.raises(RankmqError):
        tensor_from_json(json.loads(json.dumps(tensor)))


@given(st.binary(max_size=200))
def test_the_digest_is_that_of_zip(data):
    assert digest_of(data) == f"crc32:{binascii.crc32(data):08x}"
    assert digest_of(memoryview(data)) == digest_of(data)

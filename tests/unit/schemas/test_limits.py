"""Each bound of `Limits`: what is exactly on it passes, one more does not, and memory stays within what it promises."""

from __future__ import annotations

import json
import struct

import msgpack
import numpy as np
import pytest
from rankmq.schemas.codec import JSON, decode_request
from rankmq.schemas.errors import LimitExceeded, RequestError, Undecodable, UnsupportedSchema
from rankmq.schemas.limits import Limits
from rankmq.schemas.plain import array_of
from rankmq.schemas.tensors import from_array, to_array

ENVELOPE = {"servable": "m", "method": "p"}
MANY = 1 << 17


def packed(instances: object, **more: object) -> bytes:
    return msgpack.packb(ENVELOPE | {"instances": instances} | more)


def with_raw_instances(raw: bytes) -> bytes:
    """A request whose instances are these bytes of MessagePack."""
    return b"\x83\xa8servable\xa1m\xa6method\xa1p\xa9instances" + raw


def array_of_raw(element: bytes, count: int) -> bytes:
    return b"\xdd" + struct.pack(">I", count) + element * count


both = pytest.mark.parametrize("encode", [packed, lambda rows: json.dumps(ENVELOPE | {"instances": rows}).encode()])


def kind_of(body: bytes) -> str:
    return JSON if body[:1] == b"{" else "application/msgpack"


@both
@pytest.mark.parametrize(
    ("limits", "good", "bad"),
    [
        (Limits(instances=3), [{}] * 3, [{}] * 4),
        (Limits(inputs=2), [{"a": 1, "b": 2}], [{"a": 1, "b": 2, "c": 3}]),
        (Limits(name_length=5), [{"abcde": 1}], [{"a": 1}, {"abcdef": 1}]),
    ],
    ids=["instances", "inputs", "name_length"],
)
def test_counts_and_lengths(encode, limits, good, bad):
    for size in (limits.elements, 4):  # 4: a body that is looked over first
        bounded = Limits(
            instances=limits.instances, inputs=limits.inputs, name_length=limits.name_length, elements=max(size, 20)
        )
        assert decode_request(encode(good), kind_of(encode(good)), bounded).instances == good
        with pytest.raises(LimitExceeded):
            decode_request(encode(bad), kind_of(encode(bad)), bounded)


@both
def test_the_size_of_the_body(encode):
    body = encode([{"x": "a" * 100}])
    assert decode_request(body, kind_of(body), Limits(body_bytes=len(body)))
    with pytest.raises(LimitExceeded, match=rf"{len(body)} bytes: {len(body) - 1} are .*max_body_bytes.*blob store"):
        decode_request(body, kind_of(body), Limits(body_bytes=len(body) - 1))


def test_elements_of_text_over_the_whole_request():
    row = {"x": {"dtype": "string", "shape": [5], "data": ["a"] * 5}}
    for limits in (Limits(elements=10_000), Limits(elements=15)):
        assert decode_request(packed([row] * 2), limits=limits)
    with pytest.raises(LimitExceeded):
        decode_request(packed([row] * 4), limits=Limits(elements=19))


def test_the_bytes_of_tensors_do_not_count_as_elements():
    array = np.arange(10_000, dtype="f4")
    row = {"x": {"dtype": "float32", "shape": [10_000], "data": array.tobytes()}}
    found = decode_request(packed([row, row]), limits=Limits(elements=100))
    assert np.array_equal(to_array(found.instances[1]["x"]), array)
    assert np.shares_memory(to_array(found.instances[0]["x"]), to_array(found.instances[0]["x"]))


def test_long_text_does_not_count_as_elements():
    row = {"t": "x" * 1000, "x": {"dtype": "string", "shape": [2], "data": ["y" * 1000, ""]}}
    row["b"] = {"dtype": "bytes", "shape": [1], "data": [b"z" * 1000]}
    assert decode_request(packed([row]), limits=Limits(elements=100)).instances[0]["t"] == "x" * 1000
    body = json.dumps(ENVELOPE | {"instances": [{"t": "x" * 1000}]}).encode()
    assert decode_request(body, JSON, Limits(elements=100))


def test_lists_of_a_large_body_count():
    limits = Limits(elements=1000)
    assert array_of(decode_request(packed([{"x": [1] * 900}]), limits=limits).instances[0]["x"], limits).size == 900
    with pytest.raises(LimitExceeded):
        decode_request(packed([{"x": [1] * 600, "y": [1] * 600}]), limits=limits)
    with pytest.raises(LimitExceeded):
        decode_request(json.dumps(ENVELOPE | {"instances": [{"x": [1] * 1200}]}).encode(), JSON, limits)


HOSTILE = {
    "maps in a list": with_raw_instances(b"\x91\x81\xa1x" + array_of_raw(b"\x80", MANY)),
    "lists in a list": with_raw_instances(b"\x91\x81\xa1x" + array_of_raw(b"\x90", MANY)),
    "lists in lists": with_raw_instances(b"\x91\x81\xa1x" + array_of_raw(b"\x91\x92\x90\x80", MANY // 4)),
    "floats in a list": with_raw_instances(b"\x91\x81\xa1x" + array_of_raw(b"\xca\x40\x00\x00\x01", MANY // 4)),
    "empty instances": with_raw_instances(array_of_raw(b"\x80", MANY)),
    "a list of lists for instances": with_raw_instances(array_of_raw(b"\x90", MANY)),
    "many inputs": with_raw_instances(
        b"\x91\xdf" + struct.pack(">I", MANY // 8) + b"".join(b"\xa4%04x\x80" % (i % 65536) for i in range(MANY // 8))
    ),
    "one input over and over": with_raw_instances(
        b"\x91\xdf" + struct.pack(">I", MANY // 4) + b"\xa1x\x90" * (MANY // 4)
    ),
    "instances twice": (
        b"\x84\xa8servable\xa1m\xa6method\xa1p\xa9instances" + array_of_raw(b"\x80", MANY) + b"\xa9instances\x91\x80"
    ),
    "data twice": with_raw_instances(
        b"\x91\x81\xa1x\x84\xa5dtype\xa6string\xa5shape\x90\xa4data" + array_of_raw(b"\x80", MANY) + b"\xa4data\xc4\x00"
    ),
    "maps for text": with_raw_instances(
        b"\x91\x81\xa1x\x83\xa5dtype\xa6string\xa5shape\x91\x01\xa4data" + array_of_raw(b"\x80", MANY)
    ),
    "maps in a list for text": with_raw_instances(
        b"\x91\x81\xa1x\x83\xa5dtype\xa6string\xa5shape\x91\x01\xa4data\x91" + array_of_raw(b"\x80", MANY)
    ),
    "maps in a list for binary": with_raw_instances(
        b"\x91\x81\xa1x\x83\xa5dtype\xa5bytes\xa5shape\x91\x01\xa4data\x91" + array_of_raw(b"\x80", MANY)
    ),
    "short texts": with_raw_instances(
        b"\x91\x81\xa1x\x83\xa5dtype\xa6string\xa5shape\x91\x01\xa4data" + array_of_raw(b"\xa2ab", MANY // 2)
    ),
    "dimensions": with_raw_instances(
        b"\x91\x81\xa1x\x83\xa5dtype\xa5uint8\xa4data\xc4\x01a\xa5shape" + array_of_raw(b"\xcd\x40\x00", MANY // 2)
    ),
    "an unknown field": b"\x84\xa8servable\xa1m\xa6method\xa1p\xa4more"
    + array_of_raw(b"\x80", MANY)
    + b"\xa9instances\x90",
    "json maps": b'{"servable": "m", "method": "p", "instances": [{"x": [' + b"{}," * (MANY // 2) + b"1]}]}",
    "json lists": b'{"servable": "m", "method": "p", "instances": [{"x": [' + b"[]," * (MANY // 2) + b"1]}]}",
    "json instances": b'{"servable": "m", "method": "p", "instances": [' + b"{}," * (MANY // 2) + b"{}]}",
    "json nested": b'{"servable": "m", "method": "p", "instances": [{"x": ' + b"[" * MANY + b"]" * MANY + b"}]}",
    "json floats": b'{"servable": "m", "method": "p", "instances": [{"x": [' + b"1.5," * (MANY // 2) + b"1]}]}",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_body_of_many_small_values_is_not_built(body, peak_bytes):
    limits = Limits(elements=10_000)

    def refuse() -> None:
        with pytest.raises(RequestError):
            decode_request(body, kind_of(body), limits)

    assert len(body) >= MANY // 2
    assert peak_bytes(refuse) < 100 * limits.elements + 1_000_000


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_without_that_bound_memory_is_a_multiple_of_the_body(body, peak_bytes):
    def decode() -> None:
        try:
            found = decode_request(body, kind_of(body))
            for value in found.instances[0].values():
                array_of(value, Limits())
        except RequestError:
            pass

    assert peak_bytes(decode) < 100 * len(body)


def test_a_text_tensor_takes_a_bounded_multiple(peak_bytes):
    body = packed([{"x": {"dtype": "string", "shape": [200_000], "data": ["ab"] * 200_000}}])
    assert peak_bytes(lambda: to_array(decode_request(body).instances[0]["x"])) < 60 * len(body)


def test_a_large_body_of_another_version_is_told_apart():
    body = packed([[{}] * 100], v=2)
    with pytest.raises(UnsupportedSchema):
        decode_request(body, limits=Limits(elements=10))


def test_a_large_body_that_is_no_request():
    for body in (
        b"\xc1" * 100,
        b"\x90" * 100,
        b"\x81\xa1a" * 100,
        packed("text" * 10),
        packed([[]] * 10),
        packed(None) + b"\0" * 20,
    ):
        with pytest.raises(Undecodable):
            decode_request(body, limits=Limits(elements=10))


def test_the_look_over_lets_every_good_request_pass():
    rows = [
        {
            "a": {"dtype": "float32", "shape": [2], "data": b"12345678"},
            "b": {"dtype": "string", "shape": [2], "data": ["a", "ä" * 40]},
            "c": {"dtype": "bytes", "shape": [1, 1], "data": [b"\0" * 300]},
            "d": [[1, 2], [3, 4]],
            "e": "text",
            "f": 1.5,
            "g": None,
        }
    ] * 20
    body = packed(rows, v=1, version=2)
    limits = Limits(elements=len(body) - 1)
    assert decode_request(body, limits=limits) == decode_request(body)
    array = np.zeros(1000, "f4")
    assert from_array(array).data.nbytes == 4000

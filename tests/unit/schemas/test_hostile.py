"""Whatever arrives: a request, or a `RequestError`; nothing else, and memory within a multiple of the body."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rankmq.schemas import codec
from rankmq.schemas.codec import JSON, MSGPACK, content_type_of, decode_request
from rankmq.schemas.errors import RequestError
from rankmq.schemas.limits import Limits
from rankmq.schemas.messages import Request
from rankmq.schemas.plain import array_of, tensor_to_json
from rankmq.schemas.tensors import blob_of, from_array, to_array

from .builders import EVERY_MESSAGE, any_of, decoder_of, most

SEEDS = {
    "msgpack": codec.encode_request(
        Request(
            servable="matmul",
            method="predict",
            version=3,
            instances=[
                {
                    "x": from_array(np.arange(6, dtype="f4").reshape(2, 3)),
                    "text": from_array(np.array(["a", "ä😀"])),
                    "binary": from_array(np.array([b"\0\xff", b"bc"])),
                    "flag": from_array(np.array([[True], [False]])),
                    "half": from_array(np.zeros((0, 3), "f2")),
                    "bare": [[1, 2.5], [3, 4]],
                    "word": "word",
                },
                {"x": [True, False], "y": None},
            ],
        )
    ),
    "json": json.dumps(
        {
            "v": 1,
            "servable": "matmul",
            "method": "predict",
            "instances": [
                {
                    "x": {"dtype": "float32", "shape": [2], "data": "AACAPwAAAEA="},
                    "y": {"dtype": "bfloat16", "shape": [2, 2], "data": [[1, 2.5], [-3, 4e3]]},
                    "text": {"dtype": "string", "data": ["a", "\u00e4"]},
                    "binary": {"dtype": "bytes", "shape": [2], "data": ["AP8=", ""]},
                    "bare": [[1, 2], [3, 4]],
                    "flag": True,
                    "none": None,
                }
            ],
        }
    ).encode(),
}
LIMITS = Limits()
SMALL = Limits(elements=64, nesting=4, inputs=8, instances=4, name_length=8)
seeds = pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS.keys())


def serve(body: bytes, limits: Limits = LIMITS, declared: str | None = None) -> bool:
    """What an orchestrator does with a body; True if any input of it was read. All but RequestError escapes."""
    errors: list[RequestError] = []
    rows: list[dict[str, Any]] = []
    read = False
    try:
        rows = decode_request(body, content_type_of(declared, body), limits).instances
    except RequestError as error:
        errors.append(error)
    for value in [value for row in rows for value in row.values()]:
        try:
            array = array_of(value, limits)
            json.dumps(tensor_to_json(from_array(array)), allow_nan=False)
            read = True
        except RequestError as error:
            errors.append(error)
    assert all(0 < len(str(error)) < 1000 for error in errors), "an error that repeats what it was sent"
    return read


def mutate(body: bytes, chance: random.Random) -> bytes:
    """One to four small changes: other bytes, a piece gone, doubled, moved, or a header that claims a length."""
    out = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(out) + 1)
        end = min(len(out), at + chance.choice([1, 1, 2, 4, 9, 40]))
        match chance.randrange(7):
            case 0 if at < len(out):
                out[at] = chance.randrange(256)
            case 1 if at < len(out):
                out[at] ^= 1 << chance.randrange(8)
            case 2:
                del out[at:end]
            case 3:
                out[at:at] = out[at:end]
            case 4:
                other = chance.randrange(len(out) + 1)
                out[other:other] = out[at:end]
            case 5:
                out[at:end] = chance.choice(HEADERS)
            case _:
                out[at:at] = chance.choice(HEADERS)
    return bytes(out)


HEADERS = [
    *(bytes([code]) + b"\xff\xff\xff\xff" for code in (0xC6, 0xC9, 0xDB, 0xDD, 0xDF, 0xCA, 0xCE, 0xD2)),
    *(bytes([code]) + b"\x7f" * 8 for code in (0xCB, 0xCF, 0xD3)),
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xd6\xff\xff\xff\xff\xff",
    *(bytes([code]) for code in (0xC0, 0xC1, 0xC2, 0xC3, 0x80, 0x90, 0xA0, 0x8F, 0x9F, 0xBF)),
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b'"',
        b"\\u0000",
        b"\\ud83d",
        b"1e308",
        b"-",
        b"0",
        b"null",
        b"\xff",
        b"[[[[[[",
    ),
]


@seeds
def test_the_seeds_themselves_are_served(seed):
    assert serve(seed)


@seeds
def test_every_truncation(seed):
    for end in range(len(seed)):
        assert not serve(seed[:end])
        assert not serve(seed[:end], SMALL)


@seeds
def test_every_byte_changed(seed):
    for at in range(len(seed)):
        for byte in (0x00, 0xFF, 0xC1, 0xDD, seed[at] ^ 1, seed[at] ^ 0x80):
            serve(seed[:at] + bytes([byte]) + seed[at + 1 :])


@seeds
@pytest.mark.parametrize("limits", [LIMITS, SMALL], ids=["default", "small"])
def test_random_mutations(seed, limits):
    chance = random.Random(20)
    served = sum(serve(mutate(seed, chance), limits) for _ in range(4000))
    if limits is LIMITS:
        assert 0 < served < 4000  # or the mutations would be too gentle, or too rough


@settings(max_examples=1500, deadline=None)
@given(body=st.binary(max_size=200), declared=st.sampled_from([MSGPACK, JSON, None]))
def test_random_bytes(body, declared):
    serve(body, declared=declared)


_anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from([2**31, -(2**31), 2**53, 2**62, 2**63 - 1])
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=12)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data", "x", ""]) | st.integers(-9, 9), inner, max_size=4)
    ),
    max_leaves=8,
)
_dtypes = st.sampled_from(["float32", "int64", "bool", "bfloat16", "string", "bytes", "object", ""])
_near_tensors = st.fixed_dictionaries(
    {
        "dtype": _dtypes | _anything,
        "shape": st.lists(st.sampled_from([-1, 0, 1, 2, 3, 2**31, 2**62, 2**63 - 1]), max_size=4) | _anything,
        "data": st.binary(max_size=16) | st.lists(st.text(max_size=2) | st.binary(max_size=2), max_size=4) | _anything,
    }
)


@settings(max_examples=600, deadline=None)
@given(value=_near_tensors | _anything, more=st.dictionaries(st.text(max_size=3), _anything, max_size=1))
def test_requests_of_the_right_form_with_anything_in_them(value, more):
    body = msgpack.packb({"servable": "m", "method": "p", "instances": [{"x": value, "y": 1}]} | more)
    serve(body)
    serve(body, SMALL)


_json_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["dtype", "shape", "data", "x"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=600, deadline=None)
@given(
    value=_json_anything
    | st.fixed_dictionaries(
        {"dtype": _dtypes, "data": _json_anything | st.sampled_from(["AAAA", "AAAAAAAAAAA=", ""])},
        optional={"shape": st.lists(st.sampled_from([-1, 0, 1, 2, 3, 2**62, 2**63, 10**400]), max_size=4)},
    )
)
def test_json_requests_of_the_right_form_with_anything_in_them(value):
    serve(json.dumps({"servable": "m", "method": "p", "instances": [{"x": value}]}).encode())


def with_input(raw: bytes) -> bytes:
    return b"\x83\xa8servable\xa1m\xa6method\xa1p\xa9instances\x91\x81\xa1x" + raw


def tensor(**changes: Any) -> bytes:
    return with_input(msgpack.packb({"dtype": "float32", "shape": [1], "data": b"1234"} | changes))


CASES = {
    **{f"a length of 2^32-1 ({code:x})": with_input(bytes([code]) + b"\xff" * 4) for code in b"\xc6\xc9\xdb\xdd\xdf"},
    **{
        f"claims within claims ({depth})": with_input(
            b"".join(b"\xdd" + struct.pack(">I", 100_000 - 5 * level) for level in range(depth)) + b"\0" * 100_000
        )
        for depth in (2, 30, 500)
    },
    "arrays 100,000 deep": with_input(b"\x91" * 100_000 + b"\x00"),
    "maps 100,000 deep": with_input(b"\x81\xa1a" * 100_000 + b"\x00"),
    "arrays 900 deep": with_input(b"\x91" * 900 + b"\x00"),
    "arrays 33 deep": with_input(b"\x91" * 33 + b"\x00"),
    "json lists 100,000 deep": b'{"servable": "m", "method": "p", "instances": [{"x": ' + b"[" * 100_000,
    "json maps 100,000 deep": b'{"servable": "m", "method": "p", "instances": [' + b'{"x":' * 100_000,
    "text that is not UTF-8": with_input(b"\xa2\xff\xfe"),
    "a surrogate": with_input(b"\xa3\xed\xa0\x80"),
    "a name that is not UTF-8": with_input(b"\x00").replace(b"\xa1x", b"\xa1\xff"),
    "a name that is a number": with_input(b"\x00").replace(b"\xa1x", b"\x05"),
    "an extension": with_input(b"\xc7\x03\x05abc"),
    "a timestamp": with_input(b"\xd6\xff\x00\x00\x00\x01"),
    "a timestamp out of range": with_input(b"\xc7\x0c\xff\xff\xff\xff\xff" + b"\x7f" * 8),
    "a list of extensions": with_input(b"\x91\xd4\x05\x00"),
    "a list of timestamps": with_input(b"\x91\xd6\xff\x00\x00\x00\x01"),
    "a map with a list for a key": with_input(b"\x91\x81\x91\x80\x00"),
    "a byte that msgpack never uses": with_input(b"\xc1"),
    "an endless empty shape": tensor(shape=[2**62, 0], data=b""),
    "a long empty shape": tensor(shape=[2**40, 0], data=b""),
    "an empty product that overflows": tensor(shape=[0, 2**62, 2**62], data=b""),
    "a product that overflows": tensor(shape=[2**32, 2**32]),
    "a product that overflows to 4": tensor(shape=[2**62, 4, 1], dtype="uint8"),
    "a dimension past 63 bits": tensor(shape=[2**64 - 1]),
    "a negative dimension": tensor(shape=[-1]),
    "two negative dimensions": tensor(shape=[-1, -1]),
    "a dimension that is true": tensor(shape=[True]),
    "a dimension that is 1.0": tensor(shape=[1.0]),
    "no dimension": tensor(shape=None),
    "10,000 dimensions": tensor(shape=[1] * 10_000),
    "100,000 huge dimensions": tensor(shape=[2**63] * 100_000),
    "a dtype of 1 MB": tensor(dtype="f" * 1_000_000),
    "a dtype that numpy would take": tensor(dtype="<f4"),
    "a dtype that is an object": tensor(dtype="object"),
    "text for bytes": tensor(data="1234"),
    "a list for bytes": tensor(data=[1, 2, 3, 4]),
    "bytes for text": tensor(dtype="string", data=b"a"),
    "text of another kind": tensor(dtype="string", data=[b"a"]),
    "too few bytes": tensor(data=b"123"),
    "too many bytes": tensor(data=b"12345"),
    "a bool of 2": tensor(dtype="bool", data=b"\x02"),
    "an unknown field": tensor(colour="green"),
    "a list of maps": with_input(msgpack.packb([{"dtype": "float32"}])),
    "mixed kinds": with_input(msgpack.packb([1, "a"])),
    "a servable of 1 MB": msgpack.packb({"servable": "a" * 1_000_000, "method": "p", "instances": [{"x": 1}]}),
    "a field of 1 MB": msgpack.packb({"a" * 1_000_000: 1}),
    "a huge whole number in json": b'{"servable": "m", "method": "p", "instances": [{"x": 1%s}]}' % (b"0" * 4000),
    "a huge shape in json": b'{"servable": "m", "method": "p", "instances": [{"x": {"dtype": "int8", "data": [1], '
    b'"shape": [1%s]}}]}' % (b"0" * 4000),
}  # fmt: skip


@pytest.mark.parametrize("body", CASES.values(), ids=CASES.keys())
def test_none_of_these_is_served_and_none_takes_much_memory(body, peak_bytes):
    assert peak_bytes(lambda: serve(body)) < 50 * len(body) + 1_000_000
    assert not serve(body)
    assert not serve(body, SMALL)


def test_a_key_given_twice_counts_once_and_the_last_time():
    twice = with_input(b"\x00").replace(b"\x91\x81\xa1x\x00", b"\x91\x82\xa1x\x01\xa1x\x02")
    assert decode_request(twice).instances == [{"x": 2}]


@pytest.mark.parametrize(
    "kind", [kind for kind in EVERY_MESSAGE if kind is not Request], ids=lambda kind: kind.__name__
)
def test_the_other_messages_hold_as_well(kind):
    decode = decoder_of(kind)
    body = codec.encode(most(kind))
    chance = random.Random(6)
    bodies = [body[:end] for end in range(len(body))] + [mutate(body, chance) for _ in range(500)]
    for broken in bodies:
        with contextlib.suppress(RequestError):
            decode(broken)


@settings(max_examples=300, deadline=None)
@given(any_of(Request))
def test_a_request_that_passes_encodes_to_itself(message):
    body = codec.encode_request(message)
    assert codec.encode_request(decode_request(body)) == body
    for instance in decode_request(body).instances:
        for value in instance.values():
            if not isinstance(value, bool | int | float | str | list | None):
                to_array(value) if value.blob is None else blob_of(value)

"""What a driver cannot read is taken out of a header frame, and nothing else."""

from __future__ import annotations

import struct

import pika.frame
import pika.spec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rankmq.engine.amqp_headers import mended

FLAGS = {"content_type": 1 << 15, "content_encoding": 1 << 14, "headers": 1 << 13}
GOOD = [
    b"t\x01",
    b"b\xff",
    b"B\xff",
    b"u\xff\xff",
    b"s\xff\xff",
    b"U\xff\xff",
    b"I" + bytes(4),
    b"i" + bytes(4),
    b"L" + bytes(8),
    b"l" + b"\xff" * 8,
    b"f" + struct.pack(">f", 1.5),
    b"d" + struct.pack(">d", -2.5),
    b"D\x02" + bytes(4),
    b"T" + struct.pack(">Q", 253_402_300_799),
    b"S" + struct.pack(">I", 2) + b"\xff\xfe",
    b"x" + struct.pack(">I", 0),
    b"V",
    b"A" + struct.pack(">I", 3) + b"Vt\x01",
    b"A" + struct.pack(">I", 0),
    b"F" + struct.pack(">I", 3) + b"\x01kV",
    b"F" + struct.pack(">I", 0),
]
BAD = [
    b"T" + struct.pack(">Q", 253_402_300_800),
    b"T" + struct.pack(">Q", 2**64 - 1),
    b"d" + struct.pack(">d", float("nan")),
    b"d" + struct.pack(">d", float("-inf")),
    b"f" + struct.pack(">f", float("inf")),
    b"A" + struct.pack(">I", 10) + b"VT" + b"\xff" * 8,
    b"F" + struct.pack(">I", 11) + b"\x01aT" + b"\xff" * 8,
    b"A" + struct.pack(">I", 2) + b"ZZ",
    b"F" + struct.pack(">I", 3) + b"\x09aV",
    b"A" + struct.pack(">I", 5) + b"S" + struct.pack(">I", 9),
]


def nested(depth: int, kind: bytes = b"A") -> bytes:
    value = b"V"
    for _ in range(depth):
        inner = value if kind == b"A" else b"\x01k" + value
        value = kind + struct.pack(">I", len(inner)) + inner
    return value


def frame(fields, *, content_type=None, content_encoding=None, after=b"", channel=3):
    """A content header frame with these fields as its headers."""
    table = b"".join(bytes([len(name)]) + name + value for name, value in fields)
    flags = FLAGS["headers"] | (0x0080 if after else 0)  # message_id
    properties = b""
    for name, value in (("content_type", content_type), ("content_encoding", content_encoding)):
        if value is not None:
            flags |= FLAGS[name]
            properties += bytes([len(value)]) + value
    properties += struct.pack(">I", len(table)) + table + (bytes([len(after)]) + after if after else b"")
    payload = struct.pack(">HHQH", 60, 0, 42, flags) + properties
    return struct.pack(">BHI", 2, channel, len(payload)) + payload + b"\xce"


def read(data):
    """The frame as pika reads it."""
    consumed, found = pika.frame.decode_frame(data)
    assert consumed == len(data)
    return found


def named(values):
    return [(b"k%d" % number, value) for number, value in enumerate(values)]


@pytest.mark.parametrize("value", [*GOOD, nested(16), nested(16, b"F")], ids=repr)
def test_what_can_be_read_is_left_alone(value):
    assert mended(frame([(b"a", value)])) is None


@pytest.mark.parametrize(
    "value", [*BAD, nested(17), nested(300), nested(17, b"F"), nested(5000)], ids=lambda it: repr(it)[:30]
)
def test_what_cannot_be_read_is_taken_out(value):
    fields = [(b"before", GOOD[0]), (b"bad", value), (b"after", GOOD[6])]
    found = read(mended(frame(fields, content_type=b"c", content_encoding=b"e", after=b"m")))
    assert found.properties.headers == {"before": True, "after": 0}
    assert (found.channel_number, found.body_size) == (3, 42)
    properties = found.properties
    assert (properties.content_type, properties.content_encoding, properties.message_id) == ("c", "e", "m")


@given(st.lists(st.sampled_from(GOOD + BAD), max_size=12), st.binary(max_size=20))
def test_the_good_stays_and_the_bad_goes(values, following):
    fields = named(values)
    found = mended(frame(fields) + following)
    kept = [field for field in fields if field[1] in GOOD]
    assert found == (None if kept == fields else frame(kept))
    if found is not None:
        read(found)


@example(b"")
@given(st.binary(max_size=60))
def test_whatever_is_no_header_frame_is_left_alone(data):
    assert mended(b"\x01" + data) is None
    mended(data)


@given(st.lists(st.sampled_from(GOOD + BAD), min_size=1, max_size=5), st.data())
def test_a_frame_that_is_cut_or_scrambled_raises_nothing(values, data):
    whole = bytearray(frame(named(values)))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    mended(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


def test_a_value_of_unknown_kind_ends_what_can_be_told():
    found = read(mended(frame([(b"a", b"t\x01"), (b"b", b"Zzz"), (b"c", b"V")])))
    assert found.properties.headers == {"a": True}


def test_without_headers_there_is_nothing_to_mend():
    payload = struct.pack(">HHQH", 60, 0, 0, FLAGS["content_type"]) + b"\x01c"
    assert mended(struct.pack(">BHI", 2, 1, len(payload)) + payload + b"\xce") is None
    assert pika.spec.FRAME_HEADER == 2
    assert FLAGS["headers"] == pika.spec.BasicProperties.FLAG_HEADERS

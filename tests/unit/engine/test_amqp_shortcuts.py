"""Frames of messages, put together and taken apart by hand, against what the driver makes of them."""

from __future__ import annotations

import itertools

import pika
import pika.frame
import pika.spec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.amqp_content import Assembler, ack_frame, confirm_of, publish_frames
from rankmq.engine.amqp_frames import FrameCutter, Outbox

SHORT = st.text(max_size=60)
FRAME_MAX = 4096
MOST = FRAME_MAX - 8

bodies = st.binary(max_size=3 * MOST)
properties = st.builds(
    pika.BasicProperties,
    content_type=st.none() | SHORT,
    delivery_mode=st.none() | st.integers(0, 255),
    correlation_id=st.none() | SHORT,
    reply_to=st.none() | SHORT,
    message_id=st.none() | SHORT,
    timestamp=st.none() | st.integers(0, 2**40),
    type=st.none() | SHORT,
    app_id=st.none() | SHORT,
)
channels = st.integers(1, 65535)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def delivered(channel: int, given: pika.BasicProperties, body: bytes, **fields: object) -> list[bytes]:
    """The frames of a delivery, as the driver would write them."""
    values = {"consumer_tag": "ctag", "delivery_tag": 1, "exchange": "", "routing_key": "q", **fields}
    method = pika.spec.Basic.Deliver(**values)
    frames = [pika.frame.Method(channel, method), pika.frame.Header(channel, len(body), given)]
    frames += [pika.frame.Body(channel, body[at : at + MOST]) for at in range(0, len(body), MOST)]
    return [frame.marshal() for frame in frames]


@given(channels, SHORT, SHORT, properties, SHORT, bodies, st.booleans())
def test_a_publish_has_the_bytes_that_the_driver_would_write(
    channel, exchange, key, given_, message_id, body, mandatory
):
    frames = publish_frames(channel, exchange, key, given_, message_id, body, mandatory=mandatory, most=MOST)
    texts = [exchange, key, message_id, given_.content_type, given_.correlation_id, given_.reply_to]
    texts += [given_.type, given_.app_id]
    if any(len(text.encode()) > 255 for text in texts if text):
        assert frames is None
        return
    given_.message_id = message_id
    method = pika.spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
    wanted = [pika.frame.Method(channel, method).marshal(), pika.frame.Header(channel, len(body), given_).marshal()]
    wanted += [pika.frame.Body(channel, body[at : at + MOST]).marshal() for at in range(0, len(body), MOST)]
    assert frames is not None
    assert b"".join(frames) == b"".join(wanted)


@pytest.mark.parametrize(
    "unusual",
    [
        {"headers": {"a": 1}},
        {"expiration": "5"},
        {"priority": 1},
        {"type": "t" * 256},
        {"content_encoding": "gzip"},
        {"user_id": "u"},
        {"cluster_id": "c"},
        {"content_type": b"bytes"},
        {"correlation_id": 5},
        {"delivery_mode": 256},
        {"timestamp": -1},
        {"app_id": "a" * 256},
        {"reply_to": "\ud800"},
    ],
)
def test_what_is_unusual_is_left_to_the_driver(unusual):
    given_ = pika.BasicProperties(**unusual)
    assert publish_frames(1, "", "q", given_, None, b"body", mandatory=False, most=MOST) is None


@given(channels, st.integers(1, 2**63 - 1), st.booleans())
def test_an_acknowledgement(channel, tag, multiple):
    wanted = pika.frame.Method(channel, pika.spec.Basic.Ack(tag, multiple)).marshal()
    assert ack_frame(channel, tag, multiple=multiple) == wanted
    assert confirm_of(wanted) == (channel, tag, multiple, True)
    refused = pika.frame.Method(channel, pika.spec.Basic.Nack(tag, multiple, False)).marshal()
    assert confirm_of(refused) == (channel, tag, multiple, False)
    assert confirm_of(pika.frame.Method(channel, pika.spec.Basic.Recover()).marshal()) is None
    assert confirm_of(pika.frame.Heartbeat().marshal()) is None


@given(
    st.lists(st.tuples(st.integers(1, 3), bodies, SHORT, SHORT, st.booleans(), st.integers(0, 2**63 - 1)), max_size=6),
    st.lists(st.integers(0, 1 << 20), max_size=8),
    st.randoms(),
)
def test_deliveries_come_whole_however_they_are_cut_and_mixed(messages, cuts, random):
    waiting = {number: [] for number in (1, 2, 3)}
    for number, (channel, body, exchange, key, redelivered, tag) in enumerate(messages):
        fields = {"exchange": exchange, "routing_key": key, "redelivered": redelivered, "delivery_tag": tag}
        given_ = pika.BasicProperties(message_id=str(number))
        waiting[channel] += delivered(channel, given_, body, consumer_tag=f"c{number}", **fields)
    data = b""
    while any(waiting.values()):  # each channel's frames in their order, and the channels in any
        data += waiting[random.choice([it for it, frames in waiting.items() if frames])].pop(0)
        if random.random() < 0.2:
            data += pika.frame.Heartbeat().marshal()
    cutter, assembler, found = FrameCutter(), Assembler(), []
    for piece in pieces(data, cuts):
        for frame in cutter.feed(piece):
            content = assembler.takes(frame)
            if content is None:
                assert frame == pika.frame.Heartbeat().marshal()
            elif content.is_complete:
                found.append(content)
    assert len(found) == len(messages)
    for content in found:
        channel, body, exchange, key, redelivered, tag = messages[int(content.consumer_tag[1:])]
        assert (content.channel, content.body, content.exchange) == (channel, body, exchange)
        assert (content.routing_key, content.redelivered, content.delivery_tag) == (key, redelivered, tag)
    for channel in waiting:
        of_channel = [int(it.consumer_tag[1:]) for it in found if it.channel == channel]
        assert of_channel == sorted(of_channel)


def test_a_channel_that_closes_leaves_what_had_not_come_whole():
    first, *_ = delivered(5, pika.BasicProperties(), b"lost")
    assembler = Assembler()
    assert assembler.takes(first) is not None
    assert assembler.takes(pika.frame.Method(5, pika.spec.Channel.Close(404, "gone", 0, 0)).marshal()) is None
    *rest, last = delivered(5, pika.BasicProperties(), b"whole")
    assert all(not assembler.takes(frame).is_complete for frame in rest)
    assert assembler.takes(last).body == b"whole"


def test_frames_that_do_not_go_together():
    method, header, body = delivered(1, pika.BasicProperties(), b"four")
    longer = pika.frame.Body(1, b"longer than it says").marshal()
    for *before, last in ([method, method], [method, header, header], [method, body], [method, header, longer]):
        assembler = Assembler()
        for frame in before:
            assembler.takes(frame)
        with pytest.raises(ValueError, match=r"delivery|header|longer"):
            assembler.takes(last)


def test_content_that_nobody_announced_is_for_the_driver():
    _, header, body = delivered(1, pika.BasicProperties(), b"x")
    assert Assembler().takes(header) is None
    assert Assembler().takes(body) is None


def test_the_greeting_of_a_broker_of_another_version_is_a_frame():
    cutter = FrameCutter()
    assert list(cutter.feed(b"AMQP\x00\x00")) == []
    assert list(cutter.feed(b"\x09\x01rest")) == [b"AMQP\x00\x00\x09\x01"]


@given(st.lists(st.integers(1, 200_000), max_size=12))
def test_what_is_said_goes_out_in_its_order_and_in_few_pieces(sizes):
    outbox, said = Outbox(), b""
    for number, size in enumerate(sizes):
        piece = bytes([number]) * size
        assert outbox.add(piece) == (number == 0)
        said += piece
    assert outbox.is_full == (len(said) >= 65536)
    taken = outbox.take()
    assert b"".join(taken) == said
    large = sum(size >= 65536 for size in sizes)
    assert len(taken) <= 2 * large + 1
    assert outbox.take() == []
    assert outbox.add(b"next")

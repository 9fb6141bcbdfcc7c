"""Parts of an answer at the producer's: in order, none of an earlier attempt, and an end."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from rankmq.engine.client_book import Asked, Book, Call, Pending
from rankmq.engine.client_stream import Stream, hand_on
from rankmq.engine.connection import Properties
from rankmq.engine.delivery import Delivery
from rankmq.schemas import codec
from rankmq.schemas.errors import Cancelled, GroupUnavailable, ReplyTimeout
from rankmq.schemas.messages import ErrorInfo, Reply, ReplyPart
from rankmq.schemas.tensors import from_array

X = {"x": from_array(np.array([1.0], np.float32))}
REPLY = Reply(id="a", outputs=[X])


@pytest.fixture
def stream():
    stream = Stream(5.0, lambda: None)
    stream.follow(Pending("a"))
    return stream


def part(attempt: int, number: int, index: int = 0) -> ReplyPart:
    return ReplyPart(id="a", index=index, attempt=attempt, number=number, outputs=X)


def places(stream: Stream) -> list[tuple[int, int, int]]:
    return [(it.instance, it.attempt, it.number) for it in stream]


def test_it_ends_with_the_answer(stream):
    stream.take(part(1, 0))
    stream.take(part(1, 2))
    stream._pending.set_result(REPLY)
    found = list(stream)
    assert [(it.attempt, it.number) for it in found] == [(1, 0), (1, 2)]
    np.testing.assert_array_equal(found[0].outputs["x"], [1])
    np.testing.assert_array_equal(stream.result()[0]["x"], [1])
    assert list(stream) == []


def test_a_thread_that_waits_gets_what_comes(stream):
    found = []
    waiting = threading.Thread(target=lambda: found.extend(places(stream)))
    waiting.start()
    for number in range(3):
        stream.take(part(1, number))
    stream._pending.set_result(REPLY)
    waiting.join(5)
    assert found == [(0, 1, 0), (0, 1, 1), (0, 1, 2)]


def test_what_an_earlier_attempt_said_counts_for_nothing(stream):
    for it in (part(1, 0), part(1, 0, index=1), part(1, 1), part(2, 0), part(1, 2), part(2, 0), part(2, 1)):
        stream.take(it)
    stream._pending.set_result(REPLY)
    assert places(stream) == [(1, 1, 0), (0, 2, 0), (0, 2, 1)]


def test_of_too_many_the_oldest_are_dropped(stream):
    for number in range(1500):
        stream.take(part(1, number))
    stream._pending.set_result(REPLY)
    assert places(stream) == [(0, 1, number) for number in range(1500 - 1024, 1500)]


def test_an_answer_that_is_an_error_ends_it_too(stream):
    stream.take(part(1, 0))
    stream._pending.set_result(Reply(id="a", error=ErrorInfo(code=GroupUnavailable.code, message="no ranks")))
    assert places(stream) == [(0, 1, 0)]
    with pytest.raises(GroupUnavailable, match="no ranks"):
        stream.result()


def test_what_is_left_is_given_up(stream):
    with stream:
        stream.take(part(1, 0))
    assert stream._pending.cancelled()
    with pytest.raises(Cancelled):
        stream.result()


def test_no_wait_is_for_ever():
    stream = Stream(-30.0, lambda: None)  # less the grace
    stream.follow(Pending("a"))
    with pytest.raises(ReplyTimeout):
        next(iter(stream))
    with pytest.raises(ReplyTimeout):
        stream.result()


@pytest.mark.parametrize("content_type", [codec.MSGPACK, codec.JSON])
@pytest.mark.parametrize("correlation", ["its own", "of an earlier question", None])
def test_a_part_finds_those_who_wait(content_type, correlation):
    book, got = Book(), []
    asked = Asked("a", "s", b"", expires=0)
    for take in (got.append, None):
        book.enter(asked, Call(Pending("a"), lambda reply: reply, 0.0, 1.0, take), lambda _: None)
    given = Properties(type="part", content_type=content_type,
                       correlation_id=asked.question if correlation == "its own" else correlation)  # fmt: skip
    hand_on(book, Delivery(codec.encode_part(part(1, 0), content_type), 1, "", "", False, given))
    hand_on(book, Delivery(b"\xc1", 1, "", "", False, given))
    hand_on(book, Delivery(codec.encode_part(ReplyPart(id="b", outputs=X)), 1, "", "", False, Properties()))
    assert got == [part(1, 0)]

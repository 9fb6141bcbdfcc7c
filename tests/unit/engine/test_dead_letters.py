"""Dead letters: what is written, what is read, which are meant, and how one is sent again."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties, data
from rankmq.engine import topology
from rankmq.engine.dead_letters import DeadLetter, Wanted, headers_of, inputs_of
from rankmq.engine.dead_pace import Pace
from rankmq.engine.dead_replay import replay_of
from rankmq.engine.delivery import Delivery
from rankmq.schemas.errors import AttemptsExhausted, InvalidInput, RankmqError, ReplyUnroutable

NOW = 1_800_000_000.25
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def body_of(**given: Any) -> bytes:
    tensor = {"dtype": "float32", "shape": [2, 3], "data": X.tobytes()}
    body: bytes = msgpack.packb({"servable": "matmul", "method": "predict", "instances": [{"x": tensor}], **given})
    return body


def delivery(
    body: bytes | None = None,
    headers: dict[str, Any] | None = None,
    *,
    exchange: str = topology.DEAD,
    key: str = "matmul",
    **properties: Any,
) -> Delivery:
    given = {"message_id": "42", "reply_to": "answers", "content_type": "application/msgpack", **properties}
    return Delivery(
        body_of() if body is None else body, 7, exchange, key, False, BasicProperties(headers=headers, **given)
    )


def ours(error: RankmqError | None = None, **given: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "request": "42",
        "attempts": 2,
        "exchange": topology.REQUESTS,
        "routing_key": "matmul.high",
        "headers": {},
        "now": NOW,
        **given,
    }
    return headers_of(error or InvalidInput("x is odd"), **told)


def death(exchange: str, queue: str, key: str, reason: str = "expired", **given: Any) -> dict[str, Any]:
    """An entry of the header x-death, as RabbitMQ 3.10 writes it and pika reads it."""
    time = datetime(2027, 1, 15, 8, 0, 0)  # as pika gives it
    return {
        "count": 1,
        "exchange": exchange,
        "queue": queue,
        "reason": reason,
        "routing-keys": [key],
        "time": time,
        **given,
    }


# ---------------------------------------------------------------------------------------------------- what is written


def test_the_headers_of_a_dead_letter() -> None:
    assert ours(epoch=3) == {
        "rankmq-code": "invalid_input",
        "rankmq-reason": "x is odd",
        "rankmq-request": "42",
        "rankmq-attempts": 2,
        "rankmq-epoch": 3,
        "rankmq-error": "invalid_input: x is odd",
        "rankmq-exchange": "rankmq.requests",
        "rankmq-routing-key": "matmul.high",
        "rankmq-dead-at": 1_800_000_000_250,
    }
    assert "rankmq-epoch" not in ours()


def test_the_error_that_it_met_before_is_kept() -> None:
    headers = ours(ReplyUnroutable("nobody there"), last=InvalidInput("x is odd"))
    assert headers["rankmq-code"] == "reply_unroutable"
    assert headers["rankmq-error"] == "invalid_input: x is odd"


def test_headers_of_its_own_are_kept_but_for_those_that_say_what_only_we_can() -> None:
    forged = {
        "rankmq-code": "served",
        "rankmq-epoch": 99,
        "rankmq-exchange": "amq.topic",
        "x-death": [],
        "x-delivery-count": 7,
        "x-first-death-queue": "q",
        "rankmq-deadline": 5,
        "traceparent": "00-1",
    }
    headers = ours(headers=forged)
    assert headers["rankmq-code"] == "invalid_input"
    assert headers["rankmq-exchange"] == "rankmq.requests"
    assert not {"rankmq-epoch", "x-death", "x-delivery-count", "x-first-death-queue"} & headers.keys()
    assert (headers["rankmq-deadline"], headers["traceparent"]) == (5, "00-1")


@pytest.mark.parametrize(
    ("exchange", "key", "deaths", "origin"),
    [
        ("rankmq.requests", "matmul", [], ("rankmq.requests", "matmul")),
        ("", "rankmq.requests.matmul.low", [], ("", "rankmq.requests.matmul.low")),
        # expired in its queue
        (
            "rankmq.unrouted",
            "matmul.low",
            [death("rankmq.requests", "rankmq.requests.matmul.low", "matmul.low")],
            ("rankmq.requests", "matmul.low"),
        ),
        # kept by an orchestrator that ended, back in its queue, expired there
        (
            "rankmq.unrouted",
            "matmul",
            [
                death("rankmq.requests", "rankmq.requests.matmul.normal", "matmul"),
                death("rankmq.held.one", "rankmq.held.one", "matmul"),
            ],
            ("rankmq.requests", "matmul"),
        ),
        # published straight to a queue, and expired there
        (
            "rankmq.unrouted",
            "unrouted",
            [death("", "rankmq.requests.matmul.low", "rankmq.requests.matmul.low")],
            ("", "rankmq.requests.matmul.low"),
        ),
        # by somebody who should not
        ("rankmq.unrouted", "any", [], ("rankmq.unrouted", "any")),
        ("rankmq.unrouted", "any", "nonsense", ("rankmq.unrouted", "any")),
        ("rankmq.unrouted", "any", [3, {"exchange": 4, "routing-keys": 5}], ("", "")),
    ],
)
def test_the_route_is_the_one_by_which_it_was_published(
    exchange: str, key: str, deaths: Any, origin: tuple[str, str]
) -> None:
    headers = ours(exchange=exchange, routing_key=key, headers={"x-death": deaths})
    assert (headers["rankmq-exchange"], headers["rankmq-routing-key"]) == origin


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=300) | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1, max_size=20), inner, max_size=4),
    max_leaves=20,
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("rankmq-code", "rankmq-attempts", "rankmq-epoch", "rankmq-dead-at", "rankmq-exchange"),
            *("rankmq-routing-key", "rankmq-deadline", "rankmq-replayed", "x-death", "x-first-death-queue", "CC"),
        ]
    )
    | st.text(min_size=1, max_size=60),
    VALUES,
    max_size=8,
)
TEXT = st.text(max_size=3000) | st.just("\ud800 is half a character")


@given(HEADERS, TEXT, st.integers(0, 40))
def test_whatever_came_with_it_the_headers_fit_into_their_frame(
    theirs: dict[str, Any], message: str, copies: int
) -> None:
    """A frame of AMQP has 128 KiB; the broker closes the connection of who sends a larger one."""
    large = {f"large-{number}": "é" * 2500 for number in range(copies)}
    headers = headers_of(
        AttemptsExhausted(message),
        request="r" * 255,
        attempts=25,
        epoch=2**40,
        exchange="e" * 255,
        routing_key="k" * 255,
        headers={**theirs, **large},
        now=NOW,
        last=InvalidInput(message),
    )
    pieces: list[bytes] = []
    assert data.encode_table(pieces, headers) < 110_000
    assert headers["rankmq-code"] == "attempts_exhausted"
    dropped = headers.get("rankmq-headers-dropped", "")
    assert bool(dropped) == any(name not in headers for name in large)
    if len(large) < 10 and not dropped:
        assert large.items() <= headers.items()


# -------------------------------------------------------------------------------------------------------- what is read


def test_a_letter_of_ours() -> None:
    headers = {**ours(epoch=3), "rankmq-deadline": 1_800_000_000_500, "rankmq-replayed": 2}
    letter = DeadLetter.read(delivery(headers=headers, correlation_id="c"))
    assert letter == DeadLetter(
        id="42",
        servable="matmul",
        method="predict",
        version=0,
        code="invalid_input",
        reason="x is odd",
        error="invalid_input: x is odd",
        attempts=2,
        epoch=3,
        died_at=1_800_000_000.25,
        exchange="rankmq.requests",
        routing_key="matmul.high",
        reply_to="answers",
        correlation_id="c",
        content_type="application/msgpack",
        deadline=1_800_000_000.5,
        replayed=2,
        size=len(body_of()),
        unreadable="",
    )


@pytest.mark.parametrize("forged", [{}, {"rankmq-code": "served", "rankmq-exchange": "amq.topic"}])
def test_a_letter_that_the_broker_dropped(forged: dict[str, Any]) -> None:
    deaths = [
        death("rankmq.requests", "rankmq.unrouted", "matmul.low", "delivery_limit"),
        death("rankmq.requests", "rankmq.requests.matmul.low", "matmul.low", "expired"),
    ]
    letter = DeadLetter.read(delivery(headers={"x-death": deaths, **forged}, key="unrouted"))
    assert letter.code == "delivery_limit"
    assert letter.reason == "the broker dropped it from the queue rankmq.unrouted: delivery_limit"
    assert (letter.exchange, letter.routing_key) == ("rankmq.requests", "matmul.low")
    assert letter.died_at == datetime(2027, 1, 15, 8, 0, 0, tzinfo=UTC).timestamp()
    assert (letter.attempts, letter.epoch) == (None, None)


@pytest.mark.parametrize(
    ("body", "properties", "why"),
    [
        (b"\xc1", {}, "undecodable"),
        (b"", {}, "undecodable"),
        (body_of(v=9), {}, "unsupported_schema"),
        (body_of(), {"content_type": "text/html"}, "undecodable"),
        (b"{", {"content_type": "application/json"}, "undecodable"),
    ],
)
def test_a_body_that_cannot_be_decoded_is_a_letter_all_the_same(
    body: bytes, properties: dict[str, Any], why: str
) -> None:
    letter = DeadLetter.read(delivery(body, ours(), **properties))
    assert letter.unreadable.startswith(f"{why}: ")
    assert (letter.id, letter.servable, letter.method, letter.size) == ("42", "matmul", "", len(body))
    with pytest.raises(RankmqError):
        inputs_of(delivery(body, ours(), **properties))


PROPERTY = st.none() | st.text(max_size=100) | st.binary(max_size=100)


@given(st.binary(max_size=300), HEADERS, PROPERTY, PROPERTY, PROPERTY, PROPERTY)
def test_anything_can_be_read_and_sent_again(
    body: bytes, headers: dict[str, Any], message_id: Any, reply_to: Any, content_type: Any, correlation_id: Any
) -> None:
    given = {"message_id": message_id, "content_type": content_type, "correlation_id": correlation_id}
    it = delivery(body, headers, reply_to=reply_to, **given)
    letter = DeadLetter.read(it)
    assert all(isinstance(text, str) for text in (letter.id, letter.servable, letter.reason, letter.exchange))
    assert Wanted().takes(letter, NOW)
    found = replay_of(it, reply_to=None, keep_deadline=True, now=NOW)
    assert found is None or found.queue.startswith("rankmq.requests.")


@given(HEADERS)
def test_what_is_written_is_what_is_read(theirs: dict[str, Any]) -> None:
    headers = ours(headers=theirs, epoch=4)
    letter = DeadLetter.read(delivery(headers=headers))
    assert (letter.code, letter.reason, letter.attempts, letter.epoch) == ("invalid_input", "x is odd", 2, 4)
    assert (letter.exchange, letter.routing_key) == ("rankmq.requests", "matmul.high")
    assert letter.died_at == NOW


def test_inputs_are_arrays_or_the_errors_that_say_why_not() -> None:
    short = {"dtype": "float32", "shape": [4], "data": X.tobytes()[:8]}
    tensor = {"dtype": "float32", "shape": [2, 3], "data": X.tobytes()}
    body = body_of(instances=[{"x": tensor, "n": 5, "t": ["a", "b"]}, {"x": short}])
    first, second = inputs_of(delivery(body, ours()))
    np.testing.assert_array_equal(first["x"], X)
    assert first["n"].tolist() == 5
    assert first["t"].tolist() == ["a", "b"]
    assert isinstance(second["x"], InvalidInput)


# ------------------------------------------------------------------------------------------------------ which are meant


@pytest.mark.parametrize(
    ("wanted", "takes"),
    [
        (Wanted(), True),
        (Wanted(ids=frozenset({"41", "42"})), True),
        (Wanted(ids=frozenset({"4"})), False),
        (Wanted(servable="matmul"), True),
        (Wanted(servable="mat"), False),
        (Wanted(code="invalid_input"), True),
        (Wanted(code="invalid"), False),
        (Wanted(word="IS odd"), True),
        (Wanted(word="even"), False),
        (Wanted(word="earlier"), True),
        (Wanted(older_than=60), True),
        (Wanted(older_than=61), False),
        (Wanted(newer_than=60), True),
        (Wanted(newer_than=59), False),
        (Wanted(older_than=10, newer_than=100, servable="matmul", code="invalid_input", word="odd"), True),
        (Wanted(older_than=10, newer_than=100, servable="matmul", code="expired", word="odd"), False),
    ],
)
def test_filters(wanted: Wanted, takes: bool) -> None:
    letter = DeadLetter.read(delivery(headers=ours(now=NOW - 60, last=InvalidInput("what was earlier"))))
    assert wanted.takes(letter, NOW) is takes


def test_a_letter_of_unknown_age_is_neither_old_nor_new() -> None:
    letter = DeadLetter.read(delivery(headers={"rankmq-code": "internal", "rankmq-dead-at": "yesterday"}))
    assert letter.died_at is None
    assert Wanted().takes(letter, NOW)
    assert not Wanted(older_than=0).takes(letter, NOW)
    assert not Wanted(newer_than=1e12).takes(letter, NOW)


# -------------------------------------------------------------------------------------------------------- sending again


def test_it_is_sent_as_it_was_at_first() -> None:
    headers = {**ours(epoch=1), "traceparent": "00-1", "rankmq-deadline": 5, "CC": ["other"]}
    it = delivery(headers=headers, correlation_id="c", priority=3, type="t", app_id="a", user_id="u")
    found = replay_of(it, reply_to="answers", keep_deadline=False, now=NOW)
    assert found is not None
    assert (found.exchange, found.routing_key) == ("rankmq.requests", "matmul.high")
    assert found.queue == "rankmq.requests.matmul.high"
    assert found.properties == {
        "message_id": "42",
        "correlation_id": "c",
        "reply_to": "answers",
        "content_type": "application/msgpack",
        "content_encoding": None,
        "priority": 3,
        "type": "t",
        "app_id": "a",
        "delivery_mode": 2,
        "timestamp": int(NOW),
        "headers": {"traceparent": "00-1", "rankmq-replayed": 1},
    }


def test_a_deadline_is_kept_if_that_is_wanted() -> None:
    it = delivery(headers={**ours(), "rankmq-deadline": 5})
    found = replay_of(it, reply_to=None, keep_deadline=True, now=NOW)
    assert found is not None
    assert found.properties["headers"] == {"rankmq-deadline": 5, "rankmq-replayed": 1}
    assert found.properties["reply_to"] is None


def test_replays_are_counted_through_deaths() -> None:
    headers = ours()
    for count in range(1, 4):
        found = replay_of(delivery(headers=headers), reply_to=None, keep_deadline=False, now=NOW)
        assert found is not None
        assert found.properties["headers"]["rankmq-replayed"] == count
        headers = ours(headers=found.properties["headers"])


@pytest.mark.parametrize(
    ("exchange", "key", "queue"),
    [
        ("rankmq.requests", "matmul", "rankmq.requests.matmul.normal"),
        ("rankmq.requests", "matmul.low", "rankmq.requests.matmul.low"),
        ("rankmq.requests", "", "rankmq.requests..normal"),
        ("", "rankmq.requests.matmul.low", "rankmq.requests.matmul.low"),
        ("", "rankmq.dead", None),
        ("", "somebodys-queue", None),
        ("amq.topic", "matmul", None),
        ("rankmq.control", "matmul.v1.g0", None),
    ],
)
def test_it_goes_nowhere_but_to_a_requests_queue(exchange: str, key: str, queue: str | None) -> None:
    it = delivery(headers=ours(exchange=exchange, routing_key=key))
    found = replay_of(it, reply_to=None, keep_deadline=False, now=NOW)
    assert (found and found.queue) == queue


def test_properties_that_are_not_utf8_go_as_they_came() -> None:
    found = replay_of(delivery(headers=ours(), message_id=b"\xff"), reply_to=None, keep_deadline=False, now=NOW)
    assert found is not None
    assert found.properties["message_id"] == b"\xff"


# ---------------------------------------------------------------------------------------------------- a chunk at a time


@given(st.integers(0, 3_000_000), st.sampled_from([0, 1, 100, 50_000, 1_000_000, 60_000_000]))
def test_chunks_cover_the_queue_and_stay_small(total: int, size: int) -> None:
    pace, chunks = Pace(total), []
    while chunk := pace.next():
        chunks.append(chunk)
        pace.saw(size)  # the sizes of a chunk are known with its first letter
        for _ in range(min(chunk, 64) - 1):
            pace.saw(size)
    assert sum(chunks) == total
    assert len(chunks) <= 1100
    least = -(-total // 1000)
    assert all(chunk <= max(least, 4096) for chunk in chunks)
    assert all(chunk * size <= max(least * size, 16 * 1024 * 1024, size) for chunk in chunks[1:])


def test_a_frame_of_the_driver_has_room() -> None:
    """What is assumed above: pika and RabbitMQ speak frames of 128 KiB, of which the header is one."""
    import pika.spec

    assert pika.spec.FRAME_MAX_SIZE == 131072
    assert struct.calcsize(">BHI") + 1 == 8

"""What the producer library promises beyond an answer, against a real broker: lanes, deadlines, ids, flow control."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pika
import pytest
from rankmq.engine import client_line, topology
from rankmq.engine.client import Client
from rankmq.schemas import codec
from rankmq.schemas.errors import DeadlineExceeded, QueueFull, ReplyTimeout, RequestIdReused
from rankmq.schemas.messages import ErrorInfo, Reply, Request
from rankmq.workers.broker import PrivateBroker

from tests.integration.client_engine import PATIENCE, answering, declare, doubled, proxied, x

_ids = (f"id-{number}" for number in count())


def header(properties: pika.BasicProperties) -> int:
    return properties.headers["rankmq-deadline"]


def until(holds, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


# ----------------------------------------------------------------------------------------------- what a request carries


@pytest.mark.parametrize("lane", topology.LANES)
def test_a_request_goes_by_its_lane(broker_url, lane):
    with answering(broker_url) as it, Client(broker_url, it.servable, "m", lane=lane) as client:
        client.infer(x(1))
        client.infer(x(1), lane="normal")
        (own, _), (given, _) = it.requests
    assert own == topology.requests_key(it.servable, lane)
    assert given == it.servable


def test_the_properties_of_a_request(broker_url):
    request_id = "Auftrag-ä-1"
    with answering(broker_url) as it, Client(broker_url, it.servable, "m") as client:
        before = time.time()
        client.infer(x(1), timeout=30, request_id=request_id)
        after = time.time()
        client.infer(x(1))
        (_, properties), (_, other) = it.requests
    assert properties.message_id == request_id
    assert properties.reply_to.startswith("amq.rabbitmq.reply-to")
    assert properties.content_type == codec.MSGPACK
    assert properties.delivery_mode == 2
    assert before - 1 <= properties.timestamp <= after
    assert 30_000 - 1000 * (after - before) <= int(properties.expiration) <= 30_000
    assert before * 1000 - 1 <= header(properties) - 30_000 <= after * 1000 + 1
    assert other.message_id != request_id
    assert other.correlation_id != properties.correlation_id


def test_a_deadline_counts_from_the_call_and_not_from_when_it_is_sent(broker_url):
    with answering(broker_url) as it, Client(broker_url, it.servable, "m") as client:
        before = time.time()
        client.infer(x(1), timeout=30, deadline=7.5)
        client.infer(x(1), timeout=30, deadline=3600)
        (_, sooner), (_, later) = it.requests
    assert int(sooner.expiration) <= 7500
    assert header(sooner) - 1000 * before == pytest.approx(7500, abs=1000)
    assert header(later) - 1000 * before == pytest.approx(3_600_000, abs=1000)


def test_the_engines_word_on_a_deadline_is_typed(broker_url):
    late = Reply(id="", error=ErrorInfo(code="deadline_exceeded", message="too late", side="sender"))
    with answering(broker_url, lambda _: late) as it, Client(broker_url, it.servable, "m") as client:
        with pytest.raises(DeadlineExceeded, match="too late"):
            client.infer(x(1), deadline=0.5)
        pending = client.infer_async(x(1), deadline=0.5, request_id="late")
        assert isinstance(pending.exception(PATIENCE), DeadlineExceeded)
        assert pending.request_id == "late"


def test_a_deadline_that_passes_while_all_places_are_taken(broker_url):
    with (
        answering(broker_url, lambda _: None) as it,
        Client(broker_url, it.servable, "m", max_in_flight=1) as client,
    ):
        held = client.infer_async(x(1))
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="before the request could be sent"):
            client.infer(x(2), deadline=0.2)
        assert time.monotonic() - began < PATIENCE / 2
        held.cancel()
        it.answer = doubled
        assert client.infer(x(3))[0]["x"] == 6
        assert len(it.requests) == 2


def test_what_is_sent_again_is_the_same_request_with_the_same_deadline(broker_url):
    with (
        answering(broker_url, lambda _: None) as it,
        proxied(broker_url) as (proxy, url),
        Client(url, it.servable, "m", lane="high") as client,
    ):
        pending = client.infer_async(x(1), timeout=30)
        it.waits_for()
        it.answer = doubled
        proxy.cut()
        assert pending.result(PATIENCE)[0]["x"] == 2
        (key, first), (key_again, again) = it.requests
    assert key == key_again
    assert first.message_id == again.message_id == pending.request_id
    assert first.correlation_id == again.correlation_id
    assert header(first) == header(again)
    assert int(again.expiration) < int(first.expiration)


# ------------------------------------------------------------------------------------------------------ under one id


def test_the_same_request_twice_at_once_is_asked_once_and_answered_twice(broker_url):
    go = threading.Event()

    def slow(request: Request) -> Reply:
        assert go.wait(PATIENCE)
        return doubled(request)

    with answering(broker_url, slow) as it, Client(broker_url, it.servable, "m") as client:
        request_id = next(_ids)
        first = client.infer_async(x(4), request_id=request_id)
        second = client.infer_async(x(4), request_id=request_id, timeout=30)
        with pytest.raises(RequestIdReused, match=request_id):
            client.infer_async(x(5), request_id=request_id)
        with pytest.raises(RequestIdReused, match=request_id):
            client.infer(x(5), request_id=request_id)
        other = client.infer_async(x(6))
        go.set()
        rows = [pending.result(PATIENCE)[0]["x"] for pending in (first, second, other)]
        rows[0] += 1  # each has arrays of its own
        assert [row.tolist() for row in rows] == [[9], [8], [12]]
        assert len(it.requests) == 2
        assert client.infer(x(5), request_id=request_id)[0]["x"] == 10  # it is the engine that remembers


def test_each_of_two_calls_under_one_id_has_its_own_time(broker_url):
    with answering(broker_url, lambda _: None) as it, Client(broker_url, it.servable, "m") as client:
        request_id = next(_ids)
        long = client.infer_async(x(1), request_id=request_id, timeout=30)
        with pytest.raises(ReplyTimeout, match=r"within 0\.2 s"):
            client.infer(x(1), request_id=request_id, timeout=0.2)
        it.waits_for()
        assert not long.done()
        assert long.cancel()


def test_places_are_given_back_by_calls_that_share_a_request(broker_url):
    with answering(broker_url) as it, Client(broker_url, it.servable, "m", max_in_flight=2) as client:
        for _ in range(5):
            request_id = next(_ids)
            pair = [client.infer_async(x(1), request_id=request_id) for _ in range(2)]
            assert all(pending.result(PATIENCE)[0]["x"] == 2 for pending in pair)
        it.answer = lambda _: None
        for _ in range(5):
            held = client.infer_async(x(1), request_id=next(_ids))
            with pytest.raises(RequestIdReused):
                client.infer(x(2), request_id=held.request_id)
            assert held.cancel()
        it.answer = doubled
        assert [client.infer(x(3), timeout=5)[0]["x"] for _ in range(2)] == [6, 6]


def test_of_two_replies_the_first_counts(broker_url, caplog):
    with answering(broker_url, lambda _: None) as it, Client(broker_url, it.servable, "m") as client:
        pending = client.infer_async(x(1))
        it.waits_for()
        (_, asked) = it.requests[0]
        with pika.BlockingConnection(pika.URLParameters(broker_url)) as connection:
            channel = connection.channel()
            for value in (1, 2, 3):
                body = codec.encode_reply(doubled(codec.decode_request(_request(it.servable, value))))
                channel.basic_publish(
                    "", asked.reply_to, body, pika.BasicProperties(correlation_id=asked.correlation_id)
                )
        assert pending.result(PATIENCE)[0]["x"] == 2
        it.answer = doubled
        assert [client.infer(x(value))[0]["x"] for value in (4, 5)] == [8, 10]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def _request(servable: str, value: float) -> bytes:
    from rankmq.engine.client_values import to_wire

    return codec.encode_request(Request(servable=servable, method="m", instances=to_wire(x(value))))


def test_a_reply_to_the_same_request_asked_before_is_a_reply(broker_url):
    """A call that gave up, and is made again under its id while the engine is still at it."""
    with answering(broker_url, lambda _: None) as it, Client(broker_url, it.servable, "m") as client:
        request_id = next(_ids)
        with pytest.raises(ReplyTimeout):
            client.infer(x(1), request_id=request_id, timeout=0.3, deadline=30)
        again = client.infer_async(x(1), request_id=request_id)
        it.waits_for(2)
        (_, first), (_, second) = it.requests
        assert first.correlation_id != second.correlation_id
        body = codec.encode_reply(Reply(id=request_id, outputs=[{}]))
        with pika.BlockingConnection(pika.URLParameters(broker_url)) as connection:
            answered = pika.BasicProperties(correlation_id=first.correlation_id)
            connection.channel().basic_publish("", first.reply_to, body, answered)
        assert again.result(PATIENCE) == [{}]


# ------------------------------------------------------------------------------------------------------- flow control


def fill(channel: Any, servable: str) -> None:
    """Publishes until the broker says no; the queue takes some more than its limit before."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            channel.basic_publish(topology.REQUESTS, servable, b"")
        except pika.exceptions.NackError:
            return
    pytest.fail("it is never full")


@pytest.fixture
def full(broker_url: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """A servable whose requests queue is full; and what empties it."""
    with pika.BlockingConnection(pika.URLParameters(broker_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        servable = "full-" + next(_ids)
        queues = topology.requests(servable, topology.QueueLimits(length=3))
        declare(channel, (*topology.edge(), *queues))
        try:
            fill(channel, servable)
            yield servable, lambda: channel.queue_purge(topology.requests_queue(servable))
        finally:
            for item in queues:
                if isinstance(item, topology.Queue):
                    channel.queue_delete(item.name)


def test_a_queue_that_stays_full_is_a_typed_error(broker_url, full, monkeypatch):
    monkeypatch.setattr(client_line, "_MOST_REFUSALS", 2)
    servable, _ = full
    with Client(broker_url, servable, "m") as client:
        with pytest.raises(QueueFull, match=r"at each of 3 tries: its queue is at its limit"):
            client.infer(x(1))
        with pytest.raises(ReplyTimeout):  # the other lanes have queues of their own
            client.infer(x(1), lane="high", timeout=0.5)


def test_a_call_that_ends_while_it_is_refused_says_so(broker_url, full):
    servable, _ = full
    with Client(broker_url, servable, "m") as client:
        with pytest.raises(QueueFull, match=r"within 0\.5 s"):
            client.infer(x(1), timeout=0.5)
        assert client.infer_async(x(1)).cancel()


def test_a_queue_that_is_full_for_a_moment_is_waited_for(broker_url, full):
    servable, empty = full
    with Client(broker_url, servable, "m") as client:
        pending = client.infer_async(x(1), timeout=2.0)
        with pytest.raises(QueueFull):
            client.infer(x(2), timeout=0.5)
        empty()
        assert isinstance(pending.exception(PATIENCE), ReplyTimeout)  # it is in the queue, and nobody serves it


def test_an_alarm_of_the_broker_makes_calls_wait_and_they_say_why(tmp_path: Path, caplog):
    with PrivateBroker(tmp_path / "alarmed") as node, answering(node.url) as it:
        client = Client(node.url, it.servable, "m")
        assert client.infer(x(1))[0]["x"] == 2
        with caplog.at_level(logging.WARNING, "rankmq"):
            node.ctl("set_vm_memory_high_watermark", "0")
            with pytest.raises(ReplyTimeout, match=r"within 1 s \(the broker is short of memory or disk"):
                client.infer(x(2), timeout=1.0)
            waiting = client.infer_async(x(3), timeout=60.0)
            with pytest.raises(ReplyTimeout, match="short of memory or disk"):
                client.cancel(waiting.request_id, timeout=0.5)
            assert not waiting.done()
            node.ctl("set_vm_memory_high_watermark", "0.4")
            assert waiting.result(PATIENCE)[0]["x"] == 6
        said = [record.getMessage() for record in caplog.records if record.name.startswith("rankmq.engine")]
        assert said == [
            "the broker is short of memory or disk and takes no messages",
            "the broker takes messages again",
        ]
        assert client.infer(x(4))[0]["x"] == 8
        client.close()
        assert len(it.requests) in (3, 4)  # the one that timed out has an expiration, and may be gone


# ---------------------------------------------------------------------------------------------------- dropped clients


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rankmq-client"]


def test_a_client_that_is_dropped_leaves_no_thread(broker_url):
    with answering(broker_url) as it:
        before = len(threads())
        client = Client(broker_url, it.servable, "m")
        gone = weakref.ref(client)
        client.infer(x(1))
        assert len(threads()) == before + 1
        del client
        gc.collect()
        assert gone() is None
        until(lambda: len(threads()) == before)


def test_a_client_that_is_dropped_still_answers_what_is_under_way(broker_url):
    go = threading.Event()

    def slow(request: Request) -> Reply:
        assert go.wait(PATIENCE)
        return doubled(request)

    with answering(broker_url, slow) as it:
        before = len(threads())
        pending = [Client(broker_url, it.servable, "m").infer_async(x(number)) for number in range(2)]
        gc.collect()
        assert len(threads()) == before + 2
        go.set()
        assert [future.result(PATIENCE)[0]["x"] for future in pending] == [0, 2]
        until(lambda: len(threads()) == before)


def test_a_client_that_is_dropped_while_it_connects_leaves_no_thread(broker_url, monkeypatch):
    def gives_up(_: object) -> None:
        raise ReplyTimeout("not now")

    monkeypatch.setattr(client_line.ClientLine, "await_connected", gives_up)
    before = len(threads())
    with proxied(broker_url) as (proxy, url):
        proxy.silence()
        client = Client(url, "s", "m", connect_timeout=30.0)
        with pytest.raises(ReplyTimeout):
            client.infer(x(1))
        assert len(threads()) == before + 1
        del client
        gc.collect()
        until(lambda: len(threads()) == before)

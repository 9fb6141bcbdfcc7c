"""A bad message harms only itself: a typed error to its sender, or a dead letter with the reason.

Requests here are made by plain pika and msgpack: our own library would not let most of them out.
"""

import gzip
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import msgpack
import numpy as np
import pika
import pytest

from tests.e2e.conftest import Start
from tests.e2e.gallery import write_matmul
from tests.e2e.producer import JSON, MSGPACK, Producer, array_of, request, tensor
from tests.e2e.systems import System, wait_until

X = np.arange(4, dtype=np.float32)
INTS = np.arange(4, dtype=np.int32)


@pytest.fixture
def producer(gallery: System) -> Iterator[Producer]:
    with Producer(gallery.url) as made:
        yield made


@pytest.fixture(scope="module")
def groups(gallery: System) -> list[tuple[int, str]]:
    """Epoch and state of every group before anything bad was sent."""
    return [(group.epoch, group.state) for group in gallery.status().groups]


@pytest.fixture(autouse=True)
def served_afterwards(gallery: System, producer: Producer, groups: list[tuple[int, str]]) -> Iterator[None]:
    """Whatever a test sent: the next good request is answered, nothing is stuck, and the ranks are as before."""
    yield
    got = producer.ask(request("trouble", "one", {"x": X}))
    assert got["error"] is None
    assert array_of(got["outputs"][0]["y"]).tolist() == [0, -1, -2, -3]
    status = wait_until(lambda: (it := gallery.status()).in_flight == 0 and it, "nothing under way")
    assert [(group.epoch, group.state) for group in status.groups] == groups
    assert all(queue.messages == 0 for queue in status.queues if queue.name != "rankmq.dead")


def one(value: Any, **changed: Any) -> dict[str, Any]:
    """A request for a method that takes four float32, whose input is this."""
    return request("trouble", "one", {"x": value}, **changed)


BAD: dict[str, tuple[Any, str]] = {
    # what it is: the body, and the code of the error
    "empty body": (b"", "undecodable"),
    "not msgpack": (b"\xc1\xc1\xc1", "undecodable"),
    "text": (b"hello", "undecodable"),
    "cut short": (msgpack.packb(one(X))[:-7], "undecodable"),
    "trailing bytes": (msgpack.packb(one(X)) + b"\x00", "undecodable"),
    "a number": (b"\x05", "undecodable"),
    "a list": ([1, 2, 3], "undecodable"),
    "a list nested too deeply": (msgpack.packb(one(0))[:-1] + b"\x91" * 100_000 + b"\x90", "limit_exceeded"),
    "claims four billion entries": (b"\xdf\xff\xff\xff\xff", "undecodable"),
    "no servable": ({"v": 1, "method": "one", "instances": [{}]}, "undecodable"),
    "servable is a number": (one(X, servable=5), "undecodable"),
    "version is text": (one(X, version="new"), "undecodable"),
    "version is negative": (one(X, version=-1), "undecodable"),
    "instances is a map": (one(X, instances={"x": tensor(X)}), "undecodable"),
    "no instances": (one(X, instances=[]), "undecodable"),
    "an unknown field": (one(X, extra=1), "undecodable"),
    "bare bytes": (one(b"raw"), "undecodable"),
    "a servable's name that cannot be": (one(X, servable="../etc"), "undecodable"),
    "schema version 2": (one(X, v=2), "unsupported_schema"),
    "schema version 2 with other fields": ({"v": 2, "whatever": [1]}, "unsupported_schema"),
    "missing input": (request("trouble", "one", {}), "invalid_input"),
    "extra input": (request("trouble", "one", {"x": X, "z": X}), "invalid_input"),
    "another input": (request("trouble", "one", {"z": X}), "invalid_input"),
    "too few elements": (one(X[:3]), "invalid_input"),
    "too many dimensions": (one(X[None]), "invalid_input"),
    "float64 for float32": (one(X.astype(np.float64)), "invalid_input"),
    "int32 for float32": (one(INTS), "invalid_input"),
    "text for numbers": (one("four"), "invalid_input"),
    "null": (one(None), "invalid_input"),
    "a ragged list": (one([[1, 2], [3]]), "invalid_input"),
    "a mixed list": (one([1, "a", 2, 3]), "invalid_input"),
    "NaN for ints": (request("trouble", "ints", {"x": [1, float("nan"), 3, 4]}), "invalid_input"),
    "NaN tensor for ints": (request("trouble", "ints", {"x": np.full(4, np.nan, np.float32)}), "invalid_input"),
    "fractions for ints": (request("trouble", "ints", {"x": [1.5, 2, 3, 4]}), "invalid_input"),
    "ints that do not fit": (request("trouble", "ints", {"x": [2**31, 0, 0, 0]}), "invalid_input"),
    "bytes do not match the shape": (one(tensor(X, shape=[5])), "invalid_input"),
    "bytes of half a number": (one(tensor(X, data=b"\x00" * 15)), "invalid_input"),
    "a negative size": (one(tensor(X, shape=[-4])), "invalid_input"),
    "a size past all bounds": (one(tensor(X, shape=[2**62, 4])), "invalid_input"),
    "a dtype off the list": (one(tensor(X, dtype="object")), "invalid_input"),
    "complex": (one(tensor(X, dtype="complex64", data=bytes(32))), "invalid_input"),
    "text where bytes belong": (one(tensor(X, data="AAAA")), "undecodable"),
    "unknown servable": (one(X, servable="nobody"), "unknown_servable"),
    "unknown method": (one(X, method="nothing"), "unknown_method"),
    "unknown version": (one(X, version=7), "unknown_version"),
    "too many instances": (request("trouble", "one", *[{"x": 1}] * 4097), "limit_exceeded"),
    "too many inputs": (request("trouble", "one", {f"x{i}": 1 for i in range(65)}), "limit_exceeded"),
    "a method's function raises": (request("trouble", "checked", {"x": -X}), "stage_failed"),
    "a method's function returns too much": (request("trouble", "miscounted", {"x": X}), "stage_failed"),
    "a pipeline calls sys.exit": (request("trouble", "exits", {"x": X}), "internal"),
    "a graph raises": (one(np.full(4, 13, np.float32)), "graph_failed"),
    "a stacked graph raises": (request("trouble", "stacked", {"x": np.full(4, 13, np.float32)}), "graph_failed"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_typed_error_to_the_sender(producer: Producer, what: str) -> None:
    body, code = BAD[what]
    got = producer.ask(body, key="trouble")
    assert got["error"]["code"] == code, got["error"]
    assert got["error"]["message"]
    assert "\n" not in got["error"]["message"]
    assert got["outputs"] == []
    assert got["error"]["side"] == ("engine" if code in ("stage_failed", "graph_failed", "internal") else "sender")


@pytest.mark.parametrize("what", BAD)
def test_a_dead_letter_where_there_is_nobody_to_tell(producer: Producer, what: str) -> None:
    body, code = BAD[what]
    asked = producer.send(body, key="trouble", reply_to=None)
    headers, dead = producer.dead_letter(asked)
    assert headers["rankmq-code"] == code
    assert headers["rankmq-reason"]
    assert headers["rankmq-routing-key"] == "trouble"
    assert dead == (body if isinstance(body, bytes) else msgpack.packb(body))  # as it came, to be looked into


def test_a_body_over_the_limit(start: Start, tmp_path: Any) -> None:
    write_matmul(tmp_path)
    system = start("matmul", max_body_bytes=100_000)
    with Producer(system.url) as producer:
        for rows in (1, 3, 200):
            got = producer.ask(request("matmul", "fun2", *[{"x": np.ones((128, 96), np.float32)}] * rows))
            if rows == 1:
                assert (array_of(got["outputs"][0]["y"]) == -144).all()
            else:
                assert got["error"]["code"] == "limit_exceeded"
                assert "100000" in got["error"]["message"]


def test_one_bad_row_fails_alone(gallery: System, producer: Producer) -> None:
    """In a batch of many rows that go through the graph together."""
    values = [float(n) for n in range(40)]
    got = producer.ask(request("trouble", "stacked", *[{"x": np.full(4, value, np.float32)} for value in values]))
    assert got["error"] is None
    assert [error["index"] for error in got["errors"]] == [13]
    assert got["errors"][0]["error"]["code"] == "graph_failed"
    assert [index for index, row in enumerate(got["outputs"]) if row is None] == [13]
    for value, row in zip(values, got["outputs"], strict=True):
        assert row is None or array_of(row["y"]).tolist() == [-value] * 4


def test_bad_rows_of_other_requests_harm_nobody(gallery: System, producer: Producer) -> None:
    sent: dict[str, float] = {}
    for number in range(100):
        value = 13.0 if number % 10 == 3 else float(number + 100)
        asked = producer.send(request("trouble", "stacked", {"x": np.full(4, value, np.float32)}))
        sent[str(asked)] = value
    for properties, body in producer.wait(100):
        got = msgpack.unpackb(body)
        value = sent.pop(properties.correlation_id)
        if value == 13.0:
            assert got["error"]["code"] == "graph_failed"
        else:
            assert array_of(got["outputs"][0]["y"]).tolist() == [-value] * 4


def test_instances_that_fail_in_different_ways(gallery: System, producer: Producer) -> None:
    rows = [{"x": X}, {"x": X[:2]}, {"y": X}, {"x": np.full(4, 13, np.float32)}, {"x": tensor(X, dtype="void")}]
    got = producer.ask(request("trouble", "one", *rows))
    assert {error["index"]: error["error"]["code"] for error in got["errors"]} == {
        1: "invalid_input",
        2: "invalid_input",
        3: "graph_failed",
        4: "invalid_input",
    }
    assert array_of(got["outputs"][0]["y"]).tolist() == [0, -1, -2, -3]


def test_a_pipeline_may_catch_what_a_call_met(producer: Producer) -> None:
    got = producer.ask(request("trouble", "caught", {"x": -X}))
    assert got["error"] is None
    assert array_of(got["outputs"][0]["y"]) > 10


@pytest.mark.parametrize("good", [True, False])
def test_a_reply_queue_that_is_gone(producer: Producer, good: bool) -> None:
    asked = producer.send(one(X if good else X[:2]), reply_to="a-queue-that-is-not-there")
    headers, _ = producer.dead_letter(asked)
    assert headers["rankmq-code"] == "reply_unroutable"
    assert "a-queue-that-is-not-there" in headers["rankmq-reason"]


def test_a_direct_reply_whose_requester_is_gone(gallery: System, producer: Producer) -> None:
    """Nobody is told, nothing is kept: a direct reply is at most once, as RabbitMQ says."""
    with Producer(gallery.url, direct=True) as gone:
        gone.send(request("caller", "slow", {"x": np.ones((24, 16), np.float32)}))
    wait_until(lambda: gallery.status().in_flight == 0, "the request's end", 10)


@pytest.mark.parametrize("reply_to", ["amq.rabbitmq.reply-to.forged", "amq.rabbitmq.trace", "\x00\x01", "q" * 255])
def test_reply_queues_that_cannot_be(producer: Producer, reply_to: str) -> None:
    producer.send(one(X), reply_to=reply_to)  # whatever becomes of the reply, the next request is served


def test_a_direct_reply_that_the_broker_cannot_read(gallery: System, producer: Producer) -> None:
    """It would end the connection of whoever publishes to it."""
    made_up = "amq.rabbitmq.reply-to.made.up"
    connection = pika.BlockingConnection(pika.URLParameters(gallery.url))
    properties = pika.BasicProperties(reply_to=made_up, correlation_id="nobody", message_id="nobody")
    for exchange in ("rankmq.cancel", "rankmq.status"):
        connection.channel().basic_publish(exchange, "", b"", properties)
    connection.close()
    asked = producer.send(one(X), reply_to=made_up)
    assert producer.dead_letter(asked)[0]["rankmq-code"] == "invalid_input"


def test_reply_queues_that_are_our_own(gallery: System, producer: Producer) -> None:
    """A reply is no request, no result and no control message, and nobody takes it for one."""
    rank = gallery.group("trouble").ranks[0].queue
    group = "trouble.v1.g0"
    inner = (f"rankmq.results.{group}", f"rankmq.control.{group}", f"rankmq.lease.{group}", "rankmq.unrouted")
    for queue in (rank, *inner, "rankmq.requests.trouble.normal", "rankmq.dead"):
        producer.send(one(X), reply_to=queue)


def test_an_unknown_content_type(producer: Producer) -> None:
    got = producer.ask(one(X), content_type="application/x-python-pickle")
    assert got["error"]["code"] == "undecodable"
    asked = producer.send(one(X), content_type="text/html", reply_to=None)
    assert producer.dead_letter(asked)[0]["rankmq-code"] == "undecodable"


def test_a_content_type_that_lies(producer: Producer) -> None:
    producer.send(msgpack.packb(one(X)), key="trouble", content_type=JSON)
    properties, body = producer.wait()[0]
    assert properties.content_type == JSON  # answered in the language that it said it spoke
    assert json.loads(body)["error"]["code"] == "undecodable"
    producer.replies.clear()
    producer.send(b'{"servable": "trouble"}', key="trouble", content_type=MSGPACK)
    assert msgpack.unpackb(producer.wait()[0][1])["error"]["code"] == "undecodable"


@pytest.mark.parametrize("servable", ["nobody", "", "no.such.servable", "ü" * 100])
def test_a_routing_key_that_no_servable_has(producer: Producer, servable: str) -> None:
    """Answered by any orchestrator: what counts is the servable that the body names."""
    assert producer.ask(one(X, servable="nobody"), key=servable)["error"]["code"] == "unknown_servable"
    got = producer.ask(one(X), key=servable)
    assert array_of(got["outputs"][0]["y"]).tolist() == [0, -1, -2, -3]


def test_without_any_properties(producer: Producer) -> None:
    asked = producer.send(one(X[:1]), message_id=None, correlation_id=None, reply_to=None, content_type=None)
    assert asked is None
    headers, body = producer.dead_letter(None)
    assert headers["rankmq-code"] == "invalid_input"
    assert headers["rankmq-request"]  # an id was made for it
    assert body == msgpack.packb(one(X[:1]))


def test_ids_as_they_come(producer: Producer) -> None:
    for sent, expected in (
        ({"message_id": None, "correlation_id": "mine"}, "mine"),
        ({"message_id": "mine", "correlation_id": None}, "mine"),
        ({"message_id": "not this", "correlation_id": "mine"}, "mine"),
        ({"message_id": "ü" * 127, "correlation_id": "mine"}, "mine"),
    ):
        producer.replies.clear()
        producer.send(one(X), **sent)
        properties, body = producer.wait()[0]
        assert properties.correlation_id == expected
        assert msgpack.unpackb(body)["error"] is None


def test_an_id_stands_for_one_request(producer: Producer) -> None:
    """The same again is answered once; other inputs under the same id are refused."""
    for value in (1, 2, 1):
        producer.send(one(np.full(4, value, np.float32)), message_id="twice", correlation_id="c")
    replies = [msgpack.unpackb(body) for _, body in producer.wait(2)]
    producer.rest(0.5)
    assert len(producer.replies) == 2
    [served] = [it for it in replies if it["error"] is None]
    [refused] = [it for it in replies if it["error"] is not None]
    assert array_of(served["outputs"][0]["y"]).tolist() == [-1] * 4
    assert refused["error"]["code"] == "request_id_reused"


HEADERS = {
    "text for a count": {"x-delivery-count": "many"},
    "a list for a count": {"x-delivery-count": [1]},
    "x-death that is none": {"x-death": "no"},
    "traceparent is a number": {"traceparent": 7},
    "our own names": {"rankmq-code": 5, "rankmq-reason": {"a": [1, None, True]}},
    "all kinds": {
        "none": None,
        "bool": True,
        "big": 2**40,
        "table": {"a": {"b": []}},
        "bytes": b"\xff",
        "d": Decimal(1),
    },
    "a long name": {"n" * 120: "v" * 10_000},
}


@pytest.mark.parametrize("what", HEADERS)
def test_weird_headers(producer: Producer, what: str) -> None:
    got = producer.ask(one(X), headers=HEADERS[what])
    assert array_of(got["outputs"][0]["y"]).tolist() == [0, -1, -2, -3]
    asked = producer.send(one(X[:1]), headers=HEADERS[what], reply_to=None)
    headers, _ = producer.dead_letter(asked)
    assert headers["rankmq-code"] == "invalid_input"  # ours wins
    kept = {name for name in HEADERS[what] if not name.startswith(("rankmq-", "x-"))}
    assert kept <= headers.keys()


def test_every_property_set(producer: Producer) -> None:
    given = {"priority": 9, "timestamp": 2**40, "type": "t", "user_id": None, "app_id": "a", "cluster_id": "c"}
    given |= {"content_encoding": "identity", "delivery_mode": 1}
    assert producer.ask(one(X), **given)["error"] is None


def test_a_body_that_is_compressed(producer: Producer) -> None:
    got = producer.ask(gzip.compress(msgpack.packb(one(X))), key="trouble", content_encoding="gzip")
    assert got["error"]["code"] == "undecodable"
    assert "bodies are sent as they are" in got["error"]["message"]


def test_a_lane_that_does_not_exist(producer: Producer) -> None:
    got = producer.ask(one(X), key="trouble.urgent")
    assert got["error"]["code"] == "invalid_input"
    assert "high, normal, low" in got["error"]["message"]


def test_an_expiration_that_does_not_pass(producer: Producer) -> None:
    assert producer.ask(one(X), expiration="60000")["error"] is None


def test_an_expiration_that_passes_while_it_waits(build: Start, tmp_path: Any) -> None:
    """With no orchestrator to take it, the broker keeps it apart when its time is over, and the next one answers it."""
    write_matmul(tmp_path)
    system = build("matmul")
    with system:
        system.wait_ready()
    with Producer(system.url) as producer:
        asked = producer.send(request("matmul", "fun2", {"x": np.ones((128, 96), np.float32)}), expiration="100")
        wait_until(lambda: producer.depth("rankmq.unrouted") == 1, "the end of its time")
        system.start_orchestrator()
        system.start_agents()
        [(properties, body)] = producer.wait()
    assert properties.correlation_id == asked
    assert msgpack.unpackb(body)["error"]["code"] == "deadline_exceeded"


# ------------------------------------------------------------------------------------------------- JSON, by hand


def test_json_is_answered_in_json(producer: Producer) -> None:
    body = {"servable": "trouble", "method": "one", "instances": [{"x": [1, 2, 3, 4]}]}
    got = producer.ask(body, content_type=JSON)
    assert got["outputs"] == [{"y": {"dtype": "float32", "shape": [4], "data": [-1, -2, -3, -4]}}]
    typed = {"dtype": "float32", "shape": [4], "data": "AACAPwAAAEAAAEBAAACAQA=="}
    assert producer.ask({**body, "instances": [{"x": typed}]}, content_type=JSON)["outputs"] == got["outputs"]
    got = producer.ask({**body, "method": "none"}, content_type=JSON)
    assert got["error"]["code"] == "unknown_method"


def test_json_is_known_without_a_content_type(producer: Producer) -> None:
    """As from the broker's own management page."""
    body = b' {"servable": "trouble", "method": "one", "instances": [{"x": [1, 2, 3, 4]}]}'
    producer.send(body, key="trouble", content_type=None)
    properties, reply = producer.wait()[0]
    assert properties.content_type == JSON
    assert json.loads(reply)["outputs"][0]["y"]["data"] == [-1, -2, -3, -4]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("[1, 2, 3", "undecodable"),
        ('{"x": {"dtype": "float32", "data": "AAAA"}}', "invalid_input"),
        ('{"x": {"dtype": "float32", "shape": [4], "data": "no base64!"}}', "invalid_input"),
        ('{"x": {"dtype": "float32", "shape": [5], "data": [1, 2, 3, 4]}}', "invalid_input"),
        ('{"x": [1, 2, 1e400, 4]}', "undecodable"),
        ('{"x": [1, 2, NaN, 4]}', "undecodable"),
        ('{"x": [1, true, 3, 4]}', "invalid_input"),
        ('{"x": {"a": 1}}', "invalid_input"),
    ],
)
def test_bad_json(producer: Producer, value: str, code: str) -> None:
    body = f'{{"servable": "trouble", "method": "one", "instances": [{value}]}}'
    producer.send(body.encode(), key="trouble", content_type=JSON)
    assert json.loads(producer.wait()[0][1])["error"]["code"] == code


@pytest.mark.parametrize("direct", [True, False])
def test_direct_replies_and_named_reply_queues(gallery: System, direct: bool) -> None:
    with Producer(gallery.url, direct=direct) as producer:
        sent = {producer.send(one(np.full(4, n, np.float32))): n for n in range(20, 40)}
        for properties, body in producer.wait(20):
            assert array_of(msgpack.unpackb(body)["outputs"][0]["y"])[0] == -sent.pop(properties.correlation_id)
        assert not sent
        producer.rest(0.2)
        assert len(producer.replies) == 20


def test_a_shared_durable_reply_queue(gallery: System, producer: Producer) -> None:
    """Replies wait there for a producer that comes back later."""
    with Producer(gallery.url) as away:
        queue = away._channel.queue_declare("replies-of-a-job", durable=True).method.queue
        asked = away.send(one(X), reply_to=queue)
    wait_until(lambda: producer.depth("replies-of-a-job") == 1, "the reply")
    _, properties, body = producer._channel.basic_get("replies-of-a-job", auto_ack=True)
    assert (properties.correlation_id, properties.delivery_mode) == (asked, pika.DeliveryMode.Persistent.value)
    assert msgpack.unpackb(body)["id"] == asked

"""Given a request of any kind, when it is served, then its sender is told, and it is acknowledged last."""

from __future__ import annotations

import json
import re
from random import Random

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rankmq.engine.confirms import Outcome
from rankmq.schemas import codec
from rankmq.schemas.errors import error_codes
from rankmq.schemas.limits import Limits
from rankmq.schemas.messages import Request
from rankmq.schemas.tensors import from_array

from tests.unit.engine.edge import MODEL, ROW, SERVED, Edge, error_of, errors_of, only, outputs_of
from tests.unit.engine.graphs_in_memory import BAD

CONFIRMED, RETURNED, REJECTED, LOST = Outcome.CONFIRMED, Outcome.RETURNED, Outcome.REJECTED, Outcome.LOST


GOOD = {"servable": "matmul", "method": "scale", "instances": [{"x": from_array(ROW)}]}


@pytest.fixture
def make(tmp_path):
    edges = []

    def make(**given):
        edge = Edge(tmp_path, {"matmul": MODEL + SERVED}, **given)
        edges.append(edge)
        return edge

    yield make
    for edge in edges:
        assert edge.ended == len([fate for fate in edge.fates.values() if fate.ends])
        edge.close()


# ------------------------------------------------------------------------------------------------------------- served


def test_a_request_is_answered_and_then_acknowledged(make):
    edge = make()
    edge.hold = True
    fate = edge.ask("scale", {"x": ROW}, {"x": ROW + 1}, message_id="m1", correlation_id="c1")
    edge.run()
    ((dead, publish),) = edge.held
    assert not dead
    assert fate.acked == 0
    assert edge.service.in_flight == 1
    edge.answer(*edge.held.popleft(), CONFIRMED)
    assert fate.acked == 1
    assert outputs_of(fate) == [{"y": [3, 5, 7]}, {"y": [5, 7, 9]}]
    assert publish.reply.id == "m1"
    assert publish.reply.stats.steps == 1
    assert (edge.service.served, edge.service.failed) == (1, 0)
    only(edge)


def test_what_is_asked_in_json_is_answered_in_json(make):
    edge = make()
    rows = b'[{"x": [1, 2, 3]}, {"x": {"dtype": "float32", "data": [0, 0, 0]}}]'
    body = b'{"servable": "matmul", "method": "scale", "instances": ' + rows + b"}"
    fates = [edge.deliver(body, content_type=kind) for kind in (codec.JSON, "application/json; charset=utf-8", None)]
    edge.run()
    for fate in fates:
        ((publish, _),) = fate.replies
        assert publish.content_type == codec.JSON
        found = json.loads(publish.body)
        assert [row["y"]["data"] for row in found["outputs"]] == [[3, 5, 7], [1, 1, 1]]
    only(edge)


def test_an_error_to_a_question_in_json_is_json_too(make):
    edge = make()
    fate = edge.deliver(b'{"servable": "matmul", "method": "nope", "instances": [{}]}', content_type=codec.JSON)
    edge.run()
    assert json.loads(fate.replies[0][0].body)["error"]["code"] == "unknown_method"


def test_values_without_dtypes(make):
    edge = make()
    fates = [edge.ask("scale", {"x": value}) for value in ([1, 2, 3], [1.5, 0.5, 0.25], [1, 2, "a"], [1, 2], None)]
    edge.run()
    assert [outputs_of(fate) for fate in fates[:2]] == [[{"y": [3, 5, 7]}], [{"y": [4, 2, 1.5]}]]
    assert [error_of(fate)[0] for fate in fates[2:]] == ["invalid_input"] * 3
    only(edge)


def test_a_request_without_reply_to_is_served_and_acknowledged(make):
    edge = make()
    fate = edge.ask("scale", {"x": ROW}, reply_to=None)
    edge.run()
    assert (fate.acked, fate.replies, fate.dead) == (1, [], [])
    only(edge)


def test_many_requests_at_once_each_get_their_own_answer(make):
    edge = make(pool="threads")
    random = Random(3)
    asked = []
    for number in range(60):
        method = random.choice(["scale", "pipeline"])
        rows = [np.array([number + 100, row, 0], np.float32) for row in range(random.randrange(1, 4))]
        asked.append((rows, edge.ask(method, *({"x": row} for row in rows), message_id=f"m{number}")))
    edge.run()
    for rows, fate in asked:
        assert outputs_of(fate) == [{"y": (row * 2 + 1).tolist()} for row in rows]
    assert edge.service.served == 60
    only(edge)


# ---------------------------------------------------------------------------------------------------- wrong questions


@pytest.mark.parametrize(
    ("change", "code", "match"),
    [
        ({"servable": "nope"}, "unknown_servable", "no servable is named 'nope'"),
        ({"method": "nope"}, "unknown_method", "there are: any_size, large"),
        ({"version": 7}, "unknown_version", "not served in version 7"),
        ({"instances": [{}]}, "invalid_input", "missing input x; the inputs are x"),
        ({"instances": [{"x": [1.0] * 3, "z": 1, "a": 2}]}, "invalid_input", "unknown input a, z; the inputs are x"),
        ({"instances": [{"y": 1}]}, "invalid_input", "missing input x"),
        ({"instances": [{"x": from_array(np.zeros(4, np.float32))}]}, "invalid_input", r"takes float32 \(3,\)"),
        ({"instances": [{"x": from_array(np.zeros(3, np.int32))}]}, "invalid_input", "got int32"),
        ({"instances": [{"x": "text"}]}, "invalid_input", "got string"),
        ({"instances": [{"x": [[1, 2], [3]]}]}, "invalid_input", "input x: "),
        ({"instances": [{"x": [1, [2]]}]}, "invalid_input", "input x: "),
    ],
)
@pytest.mark.parametrize("content_type", [codec.MSGPACK, codec.JSON])
def test_a_question_that_cannot_be_answered(make, change, code, match, content_type):
    edge = make()
    asked = {**GOOD, **change}
    if content_type == codec.JSON and match == "input x: ":  # which the encoder refuses by itself
        body = json.dumps(asked).encode()
    else:
        body = codec.encode_request(Request(**asked), content_type)
    fate = edge.deliver(body, content_type=content_type)
    edge.run()
    found, message = error_of(fate)
    assert found == code
    assert re.search(match, message), message
    assert edge.service.failed == 1
    only(edge)


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (b"", codec.MSGPACK, "undecodable"),
        (b"", codec.JSON, "undecodable"),
        (b"", None, "undecodable"),
        (b"\xc1", codec.MSGPACK, "undecodable"),
        (b"not at all", codec.MSGPACK, "undecodable"),
        (b"{", codec.JSON, "undecodable"),
        (b"\xff\xfe{}", codec.JSON, "undecodable"),
        (b'{"servable": "matmul"}', codec.JSON, "undecodable"),
        (b"[1, 2]", codec.JSON, "undecodable"),
        (b"null", codec.JSON, "undecodable"),
        (b"{}", "text/plain", "undecodable"),
        (b"{}", "application/xml", "undecodable"),
        (msgpack.packb({"servable": "matmul", "method": "scale", "instances": []}), codec.MSGPACK, "undecodable"),
        (msgpack.packb({"servable": "../etc", "method": "m", "instances": [{}]}), codec.MSGPACK, "undecodable"),
        (msgpack.packb({"servable": 1, "method": "m", "instances": [{}]}), codec.MSGPACK, "undecodable"),
        (msgpack.packb({"v": 99, "new": True}), codec.MSGPACK, "unsupported_schema"),
        (msgpack.packb({"servable": "matmul", "method": "scale", "instances": [{"x": b"raw"}]}), None, "undecodable"),
        (
            msgpack.packb(
                {
                    "servable": "matmul",
                    "method": "scale",
                    "instances": [{"x": {"dtype": "float32", "shape": [3], "data": b"short"}}],
                }
            ),
            codec.MSGPACK,
            "invalid_input",
        ),
        (
            msgpack.packb(
                {
                    "servable": "matmul",
                    "method": "scale",
                    "instances": [{"x": {"dtype": "complex64", "shape": [1], "data": b"12345678"}}],
                }
            ),
            codec.MSGPACK,
            "invalid_input",
        ),
        (b'{"servable": "matmul", "method": "scale", "instances": [{"x": ' + b"[" * 100_000, codec.JSON, None),
        (b"\x81\xa9instances" + b"\x91" * 100_000, codec.MSGPACK, None),
        (b'{"servable": "matmul", "method": "scale", "instances": [{"x": NaN}]}', codec.JSON, "undecodable"),
        (
            b'{"servable": "matmul", "method": "scale", "instances": [{"x": [1e999, 0, 0]}]}',
            codec.JSON,
            None,
        ),
    ],
)
def test_a_body_that_cannot_be_read(make, body, content_type, code):
    edge = make()
    fate = edge.deliver(body, content_type=content_type)
    edge.run()
    found, _ = error_of(fate)
    assert found == code or (code is None and found in ("undecodable", "limit_exceeded", "invalid_input"))
    ok = edge.ask("scale", {"x": ROW})
    edge.run()
    assert outputs_of(ok) == [{"y": [3, 5, 7]}]
    only(edge)


def test_a_body_over_the_limit(make):
    edge = make(limits=Limits(body_bytes=100, instances=2))
    edge.ask("two", {"x": np.zeros(100), "y": 1})
    edge.deliver(codec.encode_request(Request(servable="a", method="b", instances=[{}] * 3)))
    edge.run()
    assert [error_of(fate)[0] for fate in edge.fates.values()] == ["limit_exceeded"] * 2
    only(edge)


PROPERTIES = {
    "content_type": st.sampled_from([None, codec.MSGPACK, codec.JSON, "x", b"\xff"]),
    "message_id": st.none() | st.text(max_size=9) | st.binary(max_size=9),
    "correlation_id": st.none() | st.text(max_size=9) | st.just(b"\xff"),
    "reply_to": st.none() | st.sampled_from(["", "answers", b"\xff"]),
    "headers": st.none()
    | st.dictionaries(st.text(max_size=9) | st.just(b"\xff"), st.none() | st.integers() | st.text(max_size=3))
    | st.fixed_dictionaries({"x-delivery-count": st.none() | st.booleans() | st.integers() | st.text(max_size=2)}),
}


@settings(max_examples=200, deadline=None)
@given(
    body=st.binary(max_size=60) | st.text(max_size=30).map(str.encode),
    properties=st.fixed_dictionaries(PROPERTIES),
    outcomes=st.lists(st.sampled_from(list(Outcome)), max_size=3),
)
def test_whatever_comes_ends_once(tmp_path_factory, body, properties, outcomes):
    edge = whatever(tmp_path_factory)
    edge.outcomes.extend(outcomes)
    edge.deliver(body, **properties)
    edge.run()
    edge.outcomes.clear()
    only(edge)


EDGES: list[Edge] = []


def whatever(tmp_path_factory):
    if not EDGES:
        EDGES.append(Edge(tmp_path_factory.mktemp("edge"), {"matmul": MODEL + SERVED}))
    return EDGES[0]


@pytest.mark.parametrize("name", ["content_type", "message_id", "correlation_id", "reply_to"])
def test_properties_that_are_no_text(make, name):
    """Short strings that are not UTF-8 reach us as bytes."""
    edge = make()
    fate = edge.ask("scale", {"x": ROW}, **{name: b"\xff\xfe"})
    edge.run()
    if name == "reply_to":
        ((publish, _),) = fate.dead
        assert publish.headers["rankmq-code"] == "undecodable"
    else:
        assert error_of(fate) == ("undecodable", f"the property {name} is not UTF-8")
    only(edge)


# ---------------------------------------------------------------------------------------------- some of several fail


def test_some_instances_bad_and_each_for_its_own_reason(make):
    edge = make()
    good, bad = ROW, np.array([BAD, 0, 0], np.float32)
    rows = [{"x": good}, {"x": bad}, {}, {"x": good + 1}, {"x": good, "y": good}, {"x": np.zeros(2, np.float32)}]
    fate = edge.ask("scale", *rows)
    edge.run()
    assert errors_of(fate) == {1: "graph_failed", 2: "invalid_input", 4: "invalid_input", 5: "invalid_input"}
    assert outputs_of(fate) == [{"y": [3, 5, 7]}, None, None, {"y": [5, 7, 9]}, None, None]
    assert (edge.service.served, edge.service.failed) == (0, 1)
    only(edge)


def test_all_instances_bad_for_different_reasons(make):
    edge = make()
    fate = edge.ask("scale", {}, {"x": np.zeros(2, np.float32)})
    edge.run()
    assert errors_of(fate) == {0: "invalid_input", 1: "invalid_input"}
    assert outputs_of(fate) == [None, None]
    only(edge)


@pytest.mark.parametrize("rows", [[{}], [{}, {"x": ROW}], [{}, {"x": np.zeros(2, np.float32)}]], ids=len)
def test_what_fails_and_has_nobody_to_be_told_is_dead_lettered(make, rows):
    edge = make()
    fate = edge.ask("scale", *rows, reply_to=None, message_id="m1")
    edge.run()
    ((publish, _),) = fate.dead
    assert publish.headers == {
        "rankmq-code": "invalid_input",
        "rankmq-reason": "missing input x; the inputs are x",
        "rankmq-request": "m1",
        "rankmq-exchange": "rankmq.requests",
        "rankmq-routing-key": "matmul",
        "rankmq-attempts": 1,
        "rankmq-error": "invalid_input: missing input x; the inputs are x",
        "rankmq-dead-at": int(edge.wall() * 1000),
    }
    assert fate.acked == 1
    only(edge)


def test_every_code_that_is_sent_is_one_of_the_tree():
    codes = error_codes()
    for edge in EDGES:
        for fate in edge.fates.values():
            for publish, _ in fate.replies:
                if publish.reply.error is not None:
                    assert publish.reply.error.code in codes

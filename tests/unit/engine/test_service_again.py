"""Given a request that comes more than once, when it is served, then it looks as if it had come once."""

from __future__ import annotations

import json

import msgpack
import numpy as np
import pytest
from rankmq.engine.answers import MOST_BODY_BYTES
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Properties
from rankmq.engine.delivery import Delivery
from rankmq.schemas import codec
from rankmq.schemas.errors import BlobMissing

from tests.unit.engine.edge import MODEL, ROW, SERVED, Edge, error_of, errors_of, only, outputs_of
from tests.unit.engine.graphs_in_memory import BAD
from tests.unit.engine.simulation import steps

CONFIRMED, RETURNED, REJECTED, LOST = Outcome.CONFIRMED, Outcome.RETURNED, Outcome.REJECTED, Outcome.LOST
BAD_ROW = np.array([BAD, 0, 0], np.float32)
RIGHT = [{"y": [3, 5, 7]}]

COUNTED = (
    MODEL
    + SERVED
    + """
def fill(x, bytes):
    return np.zeros(int(bytes), np.uint8)

@register.register_method(output_names=["y", "z"])
def filled(x, bytes):
    y = register.call_servable(x, subgraph=0)
    return y, register.add_stage(fill, y, bytes)
"""
)


@pytest.fixture
def make(tmp_path):
    edges = []

    def make(**given):
        edge = Edge(tmp_path, {"matmul": COUNTED}, **given)
        edges.append(edge)
        return edge

    yield make
    for edge in edges:
        assert edge.ended == len([fate for fate in edge.fates.values() if fate.ends])
        edge.close()


@pytest.fixture
def edge(make):
    return make()


def rows_run(edge):
    return sum(steps(edge.world).values())


def ask(edge, *, row=ROW, method="scale", **properties):
    fate = edge.ask(method, {"x": row}, **{"message_id": "m1", **properties})
    edge.run()
    return fate


def quiet(fate):
    """It was acknowledged, and nothing was sent for it."""
    return (fate.acked, fate.replies, fate.dead) == (1, [], [])


# ----------------------------------------------------------------------------------------------- while it is under way


def test_the_same_request_joins_the_one_that_is_under_way(edge):
    fates = [edge.ask("scale", {"x": ROW}, message_id="m1", redelivered=again) for again in (False, True, False)]
    assert edge.service.in_flight == 1
    edge.run()
    assert outputs_of(fates[0]) == RIGHT
    assert all(map(quiet, fates[1:]))
    assert rows_run(edge) == 1
    only(edge)


def test_each_queue_that_asks_for_it_meanwhile_gets_one_copy(edge):
    queues = ["a", "b", "b", None, "a", "c"]
    fates = [edge.ask("scale", {"x": ROW}, message_id="m1", reply_to=queue) for queue in queues]
    edge.run()
    assert [bool(fate.replies) for fate in fates] == [True, True, False, False, False, True]
    assert [outputs_of(fates[number]) for number in (0, 1, 5)] == [RIGHT] * 3
    assert rows_run(edge) == 1
    for queue in ("a", "b", "c", None):
        assert quiet(ask(edge, reply_to=queue)), queue
    assert [record.reply_to for record in edge.records] == ["a", "b", "c"]
    only(edge)


def test_each_question_that_is_asked_meanwhile_gets_one_copy(edge):
    """A question is told from a repeated publish by its correlation id, without which the message id stands for it."""
    questions = [None, "c1", "c1", "m1", "c2"]
    fates = [edge.ask("scale", {"x": ROW}, message_id="m1", correlation_id=question) for question in questions]
    edge.run()
    assert [len(fate.replies) for fate in fates] == [1, 1, 0, 0, 1]
    assert quiet(ask(edge, correlation_id="c2"))
    assert quiet(ask(edge))
    assert rows_run(edge) == 1
    only(edge)


def test_it_is_not_joined_once_its_answer_is_on_the_way(edge):
    edge.hold = True
    first = ask(edge)
    second = ask(edge)
    assert quiet(second)
    assert first.acked == 0
    edge.answer(*edge.held.popleft(), CONFIRMED)
    assert not edge.held
    only(edge)


def test_whom_nobody_told_is_served_for_those_who_ask_meanwhile(edge):
    silent = edge.ask("scale", {"x": ROW}, message_id="m1", reply_to=None)
    loud = edge.ask("scale", {"x": ROW}, message_id="m1", reply_to="b")
    edge.run()
    assert quiet(silent)
    assert outputs_of(loud) == RIGHT
    assert rows_run(edge) == 1
    only(edge)


def test_a_failure_is_shared_too(edge):
    """The one that has no queue is dead-lettered; who can be told gets all there is, each queue once."""
    queues = [None, "b", "b", None, "c"]
    fates = [edge.ask("scale", {"x": ROW}, {"x": BAD_ROW}, message_id="m1", reply_to=queue) for queue in queues]
    edge.run()
    assert [len(fate.dead) for fate in fates] == [1, 0, 0, 0, 0]
    assert fates[0].dead[0][0].headers["rankmq-code"] == "graph_failed"
    for number in (1, 4):
        assert outputs_of(fates[number]) == [*RIGHT, None]
        assert errors_of(fates[number]) == {1: "graph_failed"}
    assert quiet(fates[2])
    assert quiet(fates[3])
    only(edge)


def test_a_failure_as_a_whole_is_shared_too(edge):
    fates = [edge.ask("scale", {"x": BAD_ROW}, message_id="m1", reply_to=queue) for queue in (None, "b", "b")]
    edge.run()
    assert len(fates[0].dead) == 1
    assert error_of(fates[1])[0] == "graph_failed"
    assert quiet(fates[2])
    only(edge)


def test_one_that_joins_is_answered_when_the_first_is_lost_with_its_channel(edge):
    """The first delivery is back with the broker then; the second was acknowledged for it."""
    edge.outcomes.append(LOST)
    fates = [edge.ask("scale", {"x": ROW}, message_id="m1") for _ in range(2)]
    edge.run()
    assert [fate.acked for fate in fates] == [0, 1]
    assert fates[0].ends == 1


# ---------------------------------------------------------------------------------------------------- after its answer


@pytest.mark.parametrize("redelivered", [False, True])
def test_an_answer_is_sent_to_a_queue_once(edge, redelivered):
    assert outputs_of(ask(edge)) == RIGHT
    for _ in range(2):
        assert quiet(ask(edge, redelivered=redelivered))
    assert rows_run(edge) == 1
    only(edge)


@pytest.mark.parametrize("content_type", [codec.MSGPACK, codec.JSON])
def test_an_answer_is_remembered_for_other_queues(edge, content_type):
    first = ask(edge, content_type=content_type)
    other = ask(edge, content_type=content_type, reply_to="b", correlation_id="c2")
    ((before, _),), ((after, _),) = first.replies, other.replies
    assert (after.body, after.content_type) == (before.body, before.content_type)
    assert outputs_of(other) == RIGHT
    assert quiet(ask(edge, content_type=content_type, reply_to="b", correlation_id="c2"))
    assert quiet(ask(edge, content_type=content_type))
    assert quiet(ask(edge, content_type=content_type, reply_to=None))
    anew = ask(edge, content_type=content_type, correlation_id="c3")  # another question to the same queue
    assert outputs_of(anew) == RIGHT
    assert rows_run(edge) == 1
    routes = [(record.reply_to, record.correlation_id) for record in edge.records]
    assert [route for route in routes if route[1] in ("c2", "c3")] == [("b", "c2"), ("answers", "c3")]
    assert len(routes) == 3
    only(edge)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"method": "nope"}, "unknown_method"),
        ({"row": np.zeros(9, np.float32)}, "invalid_input"),
        ({"content_encoding": "gzip"}, "undecodable"),
        ({"content_type": "text/plain"}, "undecodable"),
        ({"content_type": b"\xff"}, "undecodable"),
        ({"correlation_id": b"\xff"}, "undecodable"),
        ({"key": "matmul.urgent"}, "invalid_input"),
        ({"headers": {"rankmq-deadline": "soon"}}, "invalid_input"),
        ({"headers": {"x-delivery-count": 7}}, None),
    ],
)
def test_what_was_refused_is_refused_once(edge, given, code):
    """Whatever is wrong, it is known again before it is looked at."""
    first = ask(edge, **{"content_type": codec.MSGPACK, **given})
    assert error_of(first)[0] == (code or "attempts_exhausted")
    assert quiet(ask(edge, **given, redelivered=True))
    assert bool(ask(edge, **given).replies) == (code is None)  # which may be another next time
    only(edge)


def test_an_engine_that_failed_is_asked_anew_and_a_mere_redelivery_is_not(edge):
    assert error_of(ask(edge, row=BAD_ROW))[0] == "graph_failed"
    assert quiet(ask(edge, row=BAD_ROW, redelivered=True))
    before = rows_run(edge)
    for queue in ("answers", "b"):
        assert error_of(ask(edge, row=BAD_ROW, reply_to=queue))[0] == "graph_failed"
    assert rows_run(edge) == before + 2
    only(edge)


@pytest.mark.parametrize("code", ["deadline_exceeded", "cancelled"])
def test_what_nobody_wanted_any_more_may_be_wanted_again(edge, code):
    late = {"headers": {"rankmq-deadline": 1}} if code == "deadline_exceeded" else {}
    if code == "cancelled":
        edge.service.cancel("m1")
    assert error_of(ask(edge, **late))[0] == code
    assert quiet(ask(edge, redelivered=True))
    assert outputs_of(ask(edge)) == RIGHT
    assert rows_run(edge) == 1
    only(edge)


def test_a_redelivery_from_another_queue_after_a_failure_is_tried_again(edge):
    ask(edge, row=BAD_ROW)
    assert error_of(ask(edge, row=BAD_ROW, reply_to="b", redelivered=True))[0] == "graph_failed"
    only(edge)


def test_what_is_answered_with_some_instances_failed_may_be_asked_anew(edge):
    for again in (False, False):
        fate = edge.ask("scale", {"x": ROW}, {"x": BAD_ROW}, message_id="m1", redelivered=again)
        edge.run()
        assert errors_of(fate) == {1: "graph_failed"}
    only(edge)


@pytest.mark.parametrize(("extra", "kept"), [(-1000, True), (1000, False)])
def test_a_large_answer_is_made_again_for_another_queue(edge, extra, kept):
    given = [{"x": ROW, "bytes": MOST_BODY_BYTES + extra}]
    fates = []
    for queue in ("a", "b", "a", "b"):
        fates.append(edge.ask("filled", *given, message_id="m1", reply_to=queue))
        edge.run()
    assert [bool(fate.replies) for fate in fates] == [True, True, False, False]
    assert outputs_of(fates[0]) == outputs_of(fates[1])
    assert rows_run(edge) == (1 if kept else 2)
    assert {record.body is not None for record in edge.records} == {kept}
    only(edge)


def test_what_is_forgotten_is_computed_again(edge):
    ask(edge)
    edge.world.clock.now += 3599
    assert quiet(ask(edge))
    edge.world.clock.now += 2
    assert outputs_of(ask(edge)) == RIGHT
    assert rows_run(edge) == 2
    only(edge)


def test_without_an_id_nothing_is_remembered(edge):
    for _ in range(2):
        assert outputs_of(ask(edge, message_id=None, correlation_id="c1")) == RIGHT
    assert rows_run(edge) == 2
    assert edge.records == []
    assert len(edge.answers) == 0
    only(edge)


# --------------------------------------------------------------------------------------------- one id for two requests


@pytest.mark.parametrize("content_type", [codec.MSGPACK, codec.JSON])
def test_an_id_stands_for_one_request(edge, content_type):
    first = edge.ask("scale", {"x": ROW}, message_id="m1", content_type=content_type)
    meanwhile = ask(edge, row=ROW + 1, content_type=content_type)
    after = ask(edge, row=ROW + 1, content_type=content_type)
    for fate in (meanwhile, after):
        code, message = error_of(fate)
        assert code == "request_id_reused"
        assert "'m1' was used before, for other inputs" in message
        assert fate.replies[0][0].content_type == content_type
    assert outputs_of(first) == RIGHT
    assert rows_run(edge) == 1
    only(edge)


def test_a_misuse_of_its_id_harms_no_request(edge):
    ask(edge)
    assert error_of(ask(edge, row=ROW + 1))[0] == "request_id_reused"
    assert quiet(ask(edge, redelivered=True))
    assert outputs_of(ask(edge, reply_to="b")) == RIGHT
    assert {record.reply_to for record in edge.records} == {"answers", "b"}
    assert edge.service.cancel("m1") == "answered"
    only(edge)


def test_a_misuse_that_nobody_can_be_told_of_is_dead_lettered(edge):
    ask(edge)
    fate = ask(edge, row=ROW + 1, reply_to=None)
    assert fate.dead[0][0].headers["rankmq-code"] == "request_id_reused"
    only(edge)


def test_a_queue_whose_name_is_no_text_gets_nothing_of_a_known_request(edge):
    ask(edge)
    fate = ask(edge, reply_to=b"\xff")
    assert fate.dead[0][0].headers["rankmq-code"] == "undecodable"
    assert quiet(ask(edge))
    only(edge)


# ----------------------------------------------------------------------------------------------------------- who knows


def test_who_is_known(edge):
    def knows(**properties):
        return edge.service.knows(Delivery(b"", 1, "rankmq.requests", "matmul", True, Properties(**properties)))

    assert not knows(message_id="m1")
    assert knows(message_id=None)  # there is nothing to look for
    assert knows(message_id=b"\xff")
    edge.ask("scale", {"x": ROW}, message_id="m1")
    assert knows(message_id="m1")
    edge.run()
    assert knows(message_id="m1")
    edge.world.clock.now += 3601
    assert not knows(message_id="m1")


def test_two_bodies_that_say_the_same_are_two(edge):
    """The bodies are compared, not what they mean."""
    asked = {"servable": "matmul", "method": "scale", "instances": [{"x": [1, 2, 3]}]}
    edge.deliver(json.dumps(asked).encode(), content_type=codec.JSON, message_id="m1")
    edge.run()
    fate = edge.deliver(json.dumps(asked, indent=1).encode(), content_type=codec.JSON, message_id="m1")
    packed = edge.deliver(msgpack.packb(asked), message_id="m1", content_type=codec.MSGPACK)
    edge.run()
    assert error_of(fate)[0] == error_of(packed)[0] == "request_id_reused"
    only(edge)


# --------------------------------------------------------------------------------- whose body is not in the message


GONE = BlobMissing("its body is gone")


def test_a_request_whose_body_cannot_be_had_is_told_so(edge):
    fate = edge.deliver(b"", fault=GONE, message_id="m1")
    edge.run()
    assert error_of(fate) == ("blob_missing", "its body is gone")
    assert rows_run(edge) == 0


def test_one_that_was_answered_is_answered_so_again(edge):
    ask(edge)
    fate = edge.deliver(b"", fault=GONE, message_id="m1", correlation_id="another question")
    edge.run()
    assert outputs_of(fate) == RIGHT
    assert rows_run(edge) == 1


def test_one_that_is_under_way_shares_its_outcome(edge):
    fates = [edge.ask("scale", {"x": ROW}, message_id="m1"), edge.deliver(b"", fault=GONE, message_id="m1")]
    edge.run()
    assert outputs_of(fates[0]) == RIGHT
    assert quiet(fates[1])
    assert rows_run(edge) == 1

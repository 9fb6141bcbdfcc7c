"""Given requests under way, when their replies do not arrive or everything ends, then each request ends once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Properties
from rankmq.schemas import codec
from rankmq.schemas.errors import ConnectionLost, LimitExceeded

from tests.unit.engine.edge import MODEL, ROW, SERVED, Edge, error_of, only, outputs_of
from tests.unit.engine.graphs_in_memory import BAD, DEADLY
from tests.unit.engine.servable_files import WORDS
from tests.unit.engine.simulation import ready_world, steps

CONFIRMED, RETURNED, REJECTED, LOST = Outcome.CONFIRMED, Outcome.RETURNED, Outcome.REJECTED, Outcome.LOST


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


# ------------------------------------------------------------------------------------------------------- large replies


def test_a_reply_of_several_instances_that_is_too_large(make):
    edge = make(max_message=100_000)
    fate = edge.ask("large", {"x": 50_000}, {"x": 49_000})
    edge.run()
    assert error_of(fate)[0] == "limit_exceeded"
    assert "the broker takes 100000; send fewer instances at once, or have the engine use a blob" in error_of(fate)[1]


@pytest.mark.parametrize("method", ["large", "odd"])
@pytest.mark.parametrize("content_type", [codec.MSGPACK, codec.JSON])
def test_a_reply_that_cannot_be_sent(make, method, content_type):
    edge = make(max_message=100_000)
    edge.ask(method, {"x": 99_000}, content_type=content_type)
    edge.ask("large", {"x": 10}, content_type=content_type)
    edge.run()
    cannot, can = edge.fates.values()
    if method == "large":
        code, message = error_of(cannot)
        assert code == "limit_exceeded"
        assert "the broker takes 100000; have the engine use a blob store (blob_store)" in message
    elif content_type == codec.JSON:
        assert error_of(cannot)[0] == "stage_failed"
    assert outputs_of(can) == [{"y": [0] * 10}]
    only(edge)


# ------------------------------------------------------------------------------------------- what becomes of a publish


@pytest.mark.parametrize(
    ("outcomes", "fails", "acked", "handed_back", "dead"),
    [
        ([CONFIRMED], False, 1, 0, 0),
        ([LOST], False, 0, 0, 0),
        ([RETURNED, CONFIRMED], False, 1, 0, 1),
        ([REJECTED, CONFIRMED], False, 1, 0, 1),
        ([RETURNED, LOST], False, 0, 0, 1),
        ([RETURNED, RETURNED], False, 0, 1, 1),
        ([RETURNED, REJECTED], False, 0, 1, 1),
        ([CONFIRMED], True, 1, 0, 0),
        ([LOST], True, 0, 0, 0),
        ([RETURNED, CONFIRMED], True, 1, 0, 1),
        ([REJECTED, REJECTED], True, 0, 1, 1),
    ],
)
def test_what_becomes_of_a_request_when_its_reply_does_not_arrive(make, outcomes, fails, acked, handed_back, dead):
    edge = make()
    edge.outcomes.extend(outcomes)
    fate = edge.ask("nope" if fails else "scale", {"x": ROW})
    edge.run()
    assert (fate.acked, fate.handed_back, len(fate.dead), len(fate.replies)) == (acked, handed_back, dead, 1)
    if dead:
        assert fate.dead[0][0].headers["rankmq-code"] == "reply_unroutable"
        assert "'answers' is gone" in fate.dead[0][0].headers["rankmq-reason"]
    only(edge)


def test_a_reply_that_the_driver_refuses_is_dead_lettered_or_goes_back(make):
    edge = make()
    edge.broken = LimitExceeded("a short string of 300 bytes")
    fate = edge.ask("scale", {"x": ROW})
    edge.run()
    assert (fate.acked, fate.handed_back) == (0, 1)
    only(edge)


@pytest.mark.parametrize("count", [None, 0, 2, 3, 7, "three", True, -1])
def test_a_request_that_was_delivered_too_often_is_not_served(make, count):
    edge = make(max_attempts=3)
    fate = edge.ask("scale", {"x": ROW}, headers={"x-delivery-count": count})
    edge.run()
    if count in (3, 7):
        assert error_of(fate) == (
            "attempts_exhausted",
            f"delivered {count + 1} times without an outcome; 3 are allowed",
        )
    else:
        assert outputs_of(fate) == [{"y": [3, 5, 7]}]
    only(edge)


# ----------------------------------------------------------------------------------------------------------- the end


def test_what_is_not_done_is_handed_back(make):
    edge = make()
    waiting = edge.ask("scale", {"x": ROW})
    edge.hold = True
    answered = edge.ask("nope", {"x": ROW})
    dead = edge.ask("nope", {"x": ROW}, reply_to=None)
    assert edge.service.in_flight == 3
    assert edge.service.hand_back_all() == 1
    assert edge.service.hand_back_all() == 0
    assert edge.service.in_flight == 2  # the broker's word on two is still to come: they are not given back as well
    edge.answer(*edge.held.popleft(), CONFIRMED)
    edge.answer(*edge.held.popleft(), LOST)
    assert not edge.held
    edge.hold = False
    edge.run()
    assert [fate.handed_back for fate in (waiting, answered, dead)] == [1, 0, 0]
    assert [fate.acked for fate in (waiting, answered, dead)] == [0, 1, 0]
    assert waiting.replies == []
    only(edge)


def test_what_waits_goes_back_at_once_and_what_runs_ends(make):
    edge = make(max_in_flight=1)
    running = edge.ask("scale", {"x": ROW}, message_id="m1")
    joined = edge.ask("scale", {"x": ROW}, message_id="m1", reply_to="b")
    asked = [("m2", "a"), ("m2", "b"), ("m3", "a")]
    waiting = [edge.ask("scale", {"x": ROW}, message_id=name, reply_to=queue) for name, queue in asked]
    assert edge.service.hand_back_waiting() == 3
    assert [fate.handed_back for fate in waiting] == [1, 1, 1]
    edge.run()
    assert outputs_of(running) == outputs_of(joined) == [{"y": [3, 5, 7]}]
    assert edge.service.hand_back_all() == 0
    assert sum(steps(edge.world).values()) == 1
    only(edge)


def test_what_was_given_up_is_not_handed_back_as_well(make):
    """The broker has its answer, and will say so."""
    edge = make(max_in_flight=1)
    edge.ask("scale", {"x": ROW})
    late = edge.ask("scale", {"x": ROW}, headers={"rankmq-deadline": int(edge.wall() * 1000) + 1000})
    cancelled = edge.ask("scale", {"x": ROW}, message_id="m1")
    edge.hold = True
    edge.world.clock.now += 1.1
    edge.service.tick()
    assert edge.service.cancel("m1") == "cancelled"
    assert edge.service.hand_back_waiting() == 0
    edge.answer(*edge.held.popleft(), CONFIRMED)
    edge.answer(*edge.held.popleft(), LOST)
    edge.hold = False
    edge.run()
    assert (late.acked, late.handed_back, cancelled.acked, cancelled.handed_back) == (1, 0, 0, 0)
    only(edge)


def test_when_the_ranks_are_given_up_every_request_is_answered_or_lost(make):
    edge = make(pool="threads")
    fates = [edge.ask(method, {"x": ROW}) for method in ("scale", "pipeline", "scale")]
    while edge.world.driver.status().in_flight + edge.world.driver.status().waiting < 3:
        edge.news.get(timeout=10)()
    edge.outcomes.extend([LOST, CONFIRMED, LOST])
    edge.world.driver.fail_all(ConnectionLost("gone"))
    edge.run()
    assert sorted(fate.acked for fate in fates) == [0, 0, 1]
    assert Counter(error_of(fate)[0] for fate in fates) == {"connection_lost": 3}
    only(edge)


def test_a_request_that_takes_ranks_down_is_answered_so_and_no_other(make):
    edge = make(world=ready_world(window=4))
    deadly = edge.ask("scale", {"x": np.array([DEADLY, 0, 0], np.float32)})
    others = [edge.ask("scale", {"x": ROW}) for _ in range(5)]
    edge.world.settle()
    edge.run()
    assert error_of(deadly)[0] == "attempts_exhausted"
    assert [outputs_of(fate) for fate in others] == [[{"y": [3, 5, 7]}]] * 5
    only(edge)


def test_a_servable_without_ranks_cannot_call_any(tmp_path):
    text = """
model = distributed.declare_servable(rank_size=3, stage_size=1)

@register.register_method(output_names=["y"])
def scale(x):
    return register.call_servable(x, subgraph=0)
"""
    edge = Edge(tmp_path, {"lonely": WORDS + text})
    fate = edge.ask("scale", {"x": ROW}, {"x": ROW}, servable="lonely")
    edge.run()
    assert error_of(fate)[0] == "group_unavailable"
    only(edge)
    edge.close()


# ------------------------------------------------------------------------------------------------------------ anything


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_many_requests_with_any_luck_end_once_each(tmp_path_factory, data):
    """Good and bad requests, threads or not, publishes confirmed late, wrongly or never, ranks that die between."""
    window, pool = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(["inline", "threads"]))
    edge = Edge(tmp_path_factory.mktemp("luck"), {"matmul": MODEL + SERVED}, ready_world(window=window), pool=pool)
    try:
        try_luck(edge, data)
    finally:
        edge.close()


def try_luck(edge, data):
    edge.hold = True
    instances = st.sampled_from([{"x": ROW}, {}, {"x": np.array([BAD, 0, 0], np.float32)}, {"x": [1, 2, 3]}])
    for _ in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(["ask", "ask", "ask", "answer", "kill", "run"])):
            case "ask":
                method = data.draw(st.sampled_from(["scale", "pipeline", "nope"]))
                rows = data.draw(st.lists(instances, min_size=1, max_size=4))
                edge.ask(method, *rows, reply_to=data.draw(st.sampled_from(["answers", None])))
            case "answer" if edge.held:
                edge.answer(*edge.held.popleft(), data.draw(st.sampled_from(list(Outcome))))
            case "kill":
                edge.world.dies(edge.world.agents[data.draw(st.integers(0, 2))], sent=data.draw(st.booleans()))
            case "run":
                edge.run()
    if data.draw(st.booleans()):
        edge.service.hand_back_all()
    for _ in range(5):
        edge.world.settle()
        edge.run()
        while edge.held:
            edge.answer(*edge.held.popleft(), data.draw(st.sampled_from(list(Outcome))))
    only(edge)
    assert edge.ended == len(edge.fates)


def test_the_properties_of_the_driver_are_what_the_service_reads():
    assert {"content_type", "message_id", "correlation_id", "reply_to", "headers"} <= vars(Properties()).keys()

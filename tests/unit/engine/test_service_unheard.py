"""Given answers that do not arrive, or may not have, when the request comes again, then it is answered after all."""

from __future__ import annotations

import numpy as np
import pytest
from rankmq.engine.answers import MOST_BODY_BYTES
from rankmq.engine.confirms import Outcome
from rankmq.schemas.errors import ConnectionLost

from tests.unit.engine.edge import MODEL, ROW, SERVED, Edge, error_of, only, outputs_of
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


@pytest.mark.parametrize("outcome", [RETURNED, REJECTED])
def test_an_answer_that_no_queue_took_is_sent_when_it_is_asked_for_again(edge, outcome):
    edge.outcomes.append(outcome)
    assert len(ask(edge).dead) == 1
    assert quiet(ask(edge, reply_to=None))  # as a dead letter that is sent again for nobody
    assert outputs_of(ask(edge)) == RIGHT
    assert quiet(ask(edge))
    assert rows_run(edge) == 1
    only(edge)


@pytest.mark.parametrize("outcome", [RETURNED, REJECTED])
def test_the_next_orchestrator_knows_that_no_queue_took_it(make, outcome):
    edge = make()
    edge.hold = True
    ask(edge)  # it is on record before the broker says anything
    edge.answer(*edge.held.popleft(), outcome)
    edge.answer(*edge.held.popleft(), CONFIRMED)
    heir = make()
    for record in edge.records:
        heir.answers.learn(record, heir.wall(), routed=True)
    assert outputs_of(ask(heir)) == RIGHT
    assert rows_run(heir) == 0


def test_a_request_that_neither_its_queue_nor_the_dead_letters_take_is_not_lost(edge):
    edge.outcomes.extend([RETURNED, REJECTED])
    assert ask(edge).handed_back == 1
    edge.outcomes.extend([RETURNED, CONFIRMED])
    fate = ask(edge, redelivered=True)
    assert (len(fate.replies), len(fate.dead), fate.acked) == (1, 1, 1)
    assert rows_run(edge) == 1
    only(edge)


def test_an_answer_that_the_broker_may_have_lost_is_sent_again(make):
    edge = make()
    ask(edge)
    heir = make()
    heir.answers.learn(edge.records[0], heir.wall(), routed=False)
    assert outputs_of(ask(heir, redelivered=True)) == RIGHT
    assert quiet(ask(heir, redelivered=True))
    assert [record.reply_to for record in heir.records] == ["answers"]
    assert rows_run(heir) == 0
    only(heir)


def test_an_answer_that_was_on_its_way_when_the_connection_went_is_sent_again(make):
    """The memory outlives the connection, and knows what was not confirmed."""
    edge = make()
    edge.hold = True
    ask(edge)
    edge.answer(*edge.held.popleft(), LOST)
    heir = make(answers=edge.answers)
    assert outputs_of(ask(heir, redelivered=True)) == RIGHT
    assert rows_run(heir) == 0
    assert quiet(ask(heir, redelivered=True))
    only(heir)


def test_only_an_answer_that_the_broker_has_is_on_record(make):
    """A quorum queue may drop what it was sent over a channel that ends: whoever finds it on record sends nothing."""
    edge = make()
    edge.hold = True
    fate = ask(edge)
    assert edge.records == []
    acked_when_recorded = []
    answered = edge.answered
    edge.answered = lambda it: (acked_when_recorded.append(fate.acked), answered(it))
    edge.answer(*edge.held.popleft(), CONFIRMED)
    assert [(record.id, record.reply_to) for record in edge.records] == [("m1", "answers")]
    assert (acked_when_recorded, fate.acked) == ([0], 1)

    lost = make()
    lost.hold = True
    ask(lost)
    lost.answer(*lost.held.popleft(), LOST)
    assert lost.records == []


def test_what_was_done_for_a_connection_that_is_gone_is_nothing_to_remember(make):
    """It was never written, and its request is delivered again."""
    edge = make()
    edge.hold = True
    asked = edge.ask("scale", {"x": ROW}, message_id="m1")
    edge.ask("scale", {"x": ROW}, message_id="m1", reply_to="b")
    edge.reply = lambda delivery, body, content_type, then: then(LOST)  # as on a closed channel
    edge.world.driver.fail_all(ConnectionLost("the connection to the broker ended"))
    assert asked.replies == []
    assert edge.records == []
    heir = make(answers=edge.answers)
    assert outputs_of(ask(heir, redelivered=True)) == RIGHT
    assert outputs_of(ask(heir, redelivered=True, reply_to="b")) == RIGHT
    only(heir)
    edge.ended = 0  # what the service says of deliveries on a channel that is gone is not counted


def test_a_failure_that_the_broker_may_have_lost_is_sent_again(make):
    edge = make()
    ask(edge, row=BAD_ROW)
    heir = make()
    heir.answers.learn(edge.records[0], heir.wall(), routed=False)
    assert error_of(ask(heir, row=BAD_ROW, redelivered=True))[0] == "graph_failed"
    assert rows_run(heir) == 0
    assert quiet(ask(heir, row=BAD_ROW, redelivered=True))
    only(heir)


def test_a_large_answer_that_the_broker_may_have_lost_is_made_again(make):
    given = [{"x": ROW, "bytes": MOST_BODY_BYTES}]
    edge = make()
    edge.ask("filled", *given, message_id="m1")
    edge.run()
    heir = make()
    heir.answers.learn(edge.records[0], heir.wall(), routed=False)
    fate = heir.ask("filled", *given, message_id="m1", redelivered=True)
    heir.run()
    assert len(fate.replies) == 1
    assert rows_run(heir) == 1
    only(heir)

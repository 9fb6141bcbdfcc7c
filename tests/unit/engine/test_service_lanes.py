"""Given requests of several lanes, when there are more than may run at once, then the urgent go first, and none waits
for ever."""

from __future__ import annotations

import numpy as np
import pytest
from rankmq.engine.confirms import Outcome

from tests.unit.engine.edge import MODEL, ROW, Edge, error_of, only, outputs_of
from tests.unit.engine.simulation import ready_world

CONFIRMED = Outcome.CONFIRMED
RIGHT = [{"y": [3, 5, 7]}]

NOTED = """
seen = []

@register.register_method(output_names=["y"])
def scale(x):
    return register.call_servable(x, subgraph=0)

def note(x):
    seen.append(float(x[0]))
    return x

def told(x):
    return np.array(seen)

@register.register_method(output_names=["y"])
def noted(x):
    return register.add_stage(note, x)

@register.register_method(output_names=["y"])
def what_was_seen(x):
    return register.add_stage(told, x)
"""


@pytest.fixture
def make(tmp_path):
    edges = []

    def make(**given):
        edge = Edge(tmp_path, {"matmul": MODEL + NOTED}, **given)
        edges.append(edge)
        return edge

    yield make
    for edge in edges:
        only(edge)
        assert edge.service.waiting == edge.world.driver.status().waiting == 0
        edge.close()


def seen(edge):
    """The first numbers of the rows that the function of the servable was called with."""
    fate = edge.ask("what_was_seen", {"x": ROW})
    edge.run()
    return outputs_of(fate)[0]["y"]


def test_a_lane_that_does_not_exist(make):
    edge = make()
    fates = [edge.ask("scale", {"x": ROW}, key=key) for key in ("matmul.urgent", "matmul.HIGH", "matmul.high.low")]
    edge.run()
    for fate in fates:
        code, message = error_of(fate)
        assert code == "invalid_input"
        assert "names no lane: <servable>.<lane>, lane high, normal, low" in message


def test_places_are_kept_free_for_what_is_more_urgent(make):
    edge = make(max_in_flight=16)

    def runs(lane, count):
        before = edge.service.in_flight - edge.service.waiting
        for _ in range(count):
            edge.ask("scale", {"x": ROW}, key=f"matmul.{lane}")
        return edge.service.in_flight - edge.service.waiting - before

    assert runs("low", 30) == 14
    assert runs("normal", 30) == 2
    assert runs("high", 30) == 2
    edge.run()
    assert [outputs_of(fate) for fate in edge.fates.values()] == [RIGHT] * 90


def test_lanes_are_served_by_their_weights_and_each_in_its_order(make):
    edge = make(max_in_flight=1)
    edge.hold = True
    edge.ask("noted", {"x": ROW * 0}, key="matmul.low")
    edge.ask("noted", {"x": ROW * 0}, key="matmul.high")
    for number in range(1, 43):
        for base, lane in enumerate(("low", "normal", "high")):
            row = np.array([number + 100 * base, 0, 0], np.float32)
            edge.ask("noted", {"x": row}, key=f"matmul.{lane}")
    assert edge.service.waiting == 126
    while edge.held:
        edge.answer(*edge.held.popleft(), CONFIRMED)
    edge.hold = False
    order = [int(number) for number in seen(edge)[2:]]
    low, normal, high = (sum(number // 100 == base for number in order[:42]) for base in (0, 1, 2))
    assert 1 <= low < normal < high
    assert normal >= 5
    for base in (0, 1, 2):
        assert [number for number in order if number // 100 == base] == [100 * base + it for it in range(1, 43)]


def test_calls_of_urgent_requests_overtake_those_that_wait(make):
    """So that an urgent request passes a backlog, although all of it runs."""
    edge = make(world=ready_world(batch_size=1, window=1))
    lanes = ["low"] * 20 + ["normal"] * 3 + ["high"]
    for number, lane in enumerate(lanes):
        edge.ask("scale", {"x": ROW}, key=f"matmul.{lane}", message_id=str(number))
    edge.run()
    order = [int(name) for _, _, task in edge.world.tasks if task.part == 0 for name in task.requests]
    assert order == [0, 23, 20, 21, 22, *range(1, 20)]

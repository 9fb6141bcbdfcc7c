"""Given requests of any kind, when they have ended, then nothing of them is left for the garbage collector.

What waits for it holds the bodies and tensors of thousands of requests, and looking through it takes the loop's time.
"""

from __future__ import annotations

import gc
from collections import Counter

import numpy as np
import pytest

from tests.unit.engine.edge import MODEL, ROW, SERVED, Edge
from tests.unit.engine.graphs_in_memory import BAD
from tests.unit.engine.simulation import ready_world

_TIMES = 5

MORE = """
def halve(instances):
    for x in instances:
        yield x / 2

@register.register_method(output_names=["y"])
def chain(x):
    x = register.add_stage(halve, x, outputs_count=1, batch_size=4)
    return register.call_servable(x, subgraph=0)

@register.register_pipeline(output_names=["y"])
def twice(x):
    return scale_.run(scale_.run(x))
"""

KINDS = {
    "a method": ("scale", [{"x": ROW}], {}),
    "many instances": ("scale", [{"x": ROW + number} for number in range(50)], {}),
    "a function": ("chain", [{"x": ROW}, {"x": ROW}], {}),
    "a pipeline": ("twice", [{"x": ROW}, {"x": ROW + 1}], {}),
    "a tensor of a wrong shape": ("scale", [{"x": ROW}, {"x": np.zeros((2, 7), np.float32)}], {}),
    "a wrong input": ("scale", [{"z": ROW}], {}),
    "a row that fails": ("scale", [{"x": np.full(3, BAD, np.float32)}, {"x": ROW}], {}),
    "no such method": ("nope", [{"x": ROW}], {}),
    "an answer that nobody wants": ("scale", [{"x": ROW}], {"reply_to": None}),
    "parts": ("twice", [{"x": ROW}], {"stream": True}),
}


@pytest.fixture
def edge(tmp_path):
    edge = Edge(tmp_path, {"matmul": MODEL + SERVED + MORE}, ready_world())
    yield edge
    edge.close()


def rubbish(edge, work):
    """What only the collector could find, of our own kinds, after some work, each time that it is done."""
    work()  # what is made once is made
    forget(edge)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(_TIMES):
            work()
        forget(edge)
        gc.collect()
        found = Counter(type(it).__qualname__ for it in gc.garbage if type(it).__module__.startswith("rankmq"))
        return {name: count for name, count in found.items() if count >= _TIMES}  # others may be of an earlier test
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def forget(edge):
    """The harness remembers what it has seen."""
    edge.fates.clear()
    edge.records.clear()
    edge.parts.clear()
    edge.sent.clear()
    edge.timers.clear()
    edge.ended = 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_a_request(edge, kind):
    method, instances, given = KINDS[kind]

    def work():
        edge.ask(method, *instances, **given)
        edge.run()

    assert not rubbish(edge, work)


def test_nothing_is_left_of_a_request_that_is_cancelled(edge):
    def work():
        edge.ask("scale", {"x": ROW}, message_id="m2")
        edge.service.cancel("m2")
        edge.run()

    assert not rubbish(edge, work)

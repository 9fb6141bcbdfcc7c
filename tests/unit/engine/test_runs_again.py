"""Given a function that fails for a reason that passes, when it is tried again, then only that is, and not for ever."""

from __future__ import annotations

import queue
import time

import numpy as np
import pytest

from tests.unit.engine.edge import MODEL, PATIENCE, ROW, Edge, error_of, errors_of, only, outputs_of
from tests.unit.engine.graphs_in_memory import BAD
from tests.unit.engine.servable_files import WORDS
from tests.unit.engine.simulation import ready_world, steps

# A row says in its first number how often it fails; what was tried is remembered by its second.
FAILING = """
from rankmq.schemas.errors import TemporaryFailure
tries = {}
calls = []

def shaky(x):
    fails, name = int(x[0]), int(x[1])
    calls.append(name)
    tries[name] = tries.get(name, 0) + 1
    if tries[name] <= fails:
        raise TemporaryFailure(f"busy, try {tries[name]}")
    return x

def steady(x):
    calls.append(100 + int(x[1]))
    return x

def seen(x):
    return np.array(calls, np.int64)

@register.register_method(output_names=["y"])
def what_was_called(x):
    return register.add_stage(seen, x)

@register.register_method(output_names=["y"])
def chain(x):
    x = register.add_stage(steady, x)
    x = register.add_stage(shaky, x)
    y = register.call_servable(x, subgraph=0)
    return y
"""
BATCHED = """
def shaky_rows(rows):
    calls.append(len(rows))
    for (x,) in rows:
        shaky(x)
    return [x for x, in rows]

@register.register_method(output_names=["y"])
def batched(x):
    return register.add_stage(shaky_rows, x, batch_size=2)
"""
PIPELINES = """
chain_ = PipelineServable("matmul", "chain")

@register.register_pipeline(output_names=["y"])
def whole(x):
    calls.append(7)
    shaky(x)
    return x

@register.register_pipeline(output_names=["y"])
def around(x):
    calls.append(8)
    return chain_.run(x)

def calls_chain(x):
    return chain_.run(x)

@register.register_method(output_names=["y"])
def inner(x):
    return register.add_stage(calls_chain, x)
"""


@pytest.fixture(params=["inline", "threads"])
def make(request, tmp_path):
    edges = []

    def make(text=FAILING, *, model=MODEL, **given):
        edge = Edge(tmp_path, {"matmul": model + text}, **{"pool": request.param, **given})
        edges.append(edge)
        return edge

    yield make
    for edge in edges:
        only(edge)
        edge.close()


def row(fails, name=1):
    return {"x": np.array([fails, name, 0], np.float32)}


def result(fails, name=1):
    return {"y": [2 * fails + 1, 2 * name + 1, 1]}


def pauses(edge):
    """Runs to the end; gives the pauses that were made, in the order in which they began."""
    made, until = [], time.monotonic() + PATIENCE
    while edge.busy or edge.timers or not edge.news.empty() or edge.world.choices():
        edge.world.run()
        try:
            edge.news.get(timeout=0.02)()
        except queue.Empty:
            if edge.timers:
                when, work = edge.timers.pop(0)
                made.append(when - edge.world.clock())
                edge.world.clock.now = when
                work()
        assert time.monotonic() < until, "something waits for ever"
    edge.run()
    return made


def calls(edge):
    fate = edge.ask("what_was_called", {"x": ROW})
    edge.run()
    return outputs_of(fate)[0]["y"]


@pytest.mark.parametrize(("fails", "waited"), [(0, []), (1, [0.1]), (2, [0.1, 0.2])])
def test_a_stage_is_tried_again_and_no_other(make, fails, waited):
    edge = make()
    fate = edge.ask("chain", row(fails))
    assert pauses(edge) == pytest.approx(waited)
    assert outputs_of(fate) == [result(fails)]
    assert calls(edge) == [101] + [1] * (fails + 1)
    assert sum(steps(edge.world).values()) == 1


def test_it_has_an_end(make):
    edge = make()
    fate = edge.ask("chain", row(3))
    assert pauses(edge) == pytest.approx([0.1, 0.2])
    assert error_of(fate) == ("attempts_exhausted", "tried 3 times; last: busy, try 3")
    assert calls(edge) == [101, 1, 1, 1]
    assert edge.world.tasks == []


@pytest.mark.parametrize("most", [1, 2, 5])
def test_the_setting_says_how_often(make, most):
    edge = make(max_attempts=most)
    bad, good = edge.ask("chain", row(most, 1)), edge.ask("chain", row(most - 1, 2))
    pauses(edge)
    assert error_of(bad)[1].startswith(f"tried {most} times; last: busy")
    assert outputs_of(good) == [result(most - 1, 2)]


def test_the_pauses_grow_up_to_five_seconds(make):
    edge = make(max_attempts=10)
    edge.ask("chain", row(10))
    assert pauses(edge) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5])


def test_only_the_rows_that_failed_are_tried_again(make):
    edge = make()
    fate = edge.ask("chain", row(0, 1), row(1, 2), row(9, 3), row(2, 4), {"x": np.array([0, 5, BAD], np.float32)})
    assert pauses(edge) == pytest.approx([0.1, 0.2])
    found = outputs_of(fate)
    assert [found[index] for index in (0, 1, 3)] == [result(0, 1), result(1, 2), result(2, 4)]
    assert errors_of(fate) == {2: "attempts_exhausted", 4: "graph_failed"}
    counted = calls(edge)
    assert [counted.count(name) for name in (1, 2, 3, 4, 5)] == [1, 2, 3, 3, 1]
    assert [counted.count(100 + name) for name in (1, 2, 3, 4, 5)] == [1] * 5


def test_of_a_stage_that_takes_many_instances_those_that_shared_a_call_are_tried_again(make):
    edge = make(FAILING + BATCHED)
    fate = edge.ask("batched", row(0, 1), row(1, 2), row(0, 3), row(0, 4))
    assert pauses(edge) == pytest.approx([0.1])
    assert errors_of(fate) == {}
    counted = calls(edge)
    assert counted.count(2) >= 3  # calls of two rows each: both at first, and then the first once more
    assert outputs_of(fate)[3] == {"y": [0, 4, 0]}


def test_other_requests_go_on_meanwhile(make):
    edge = make()
    slow = edge.ask("chain", row(2, 1))
    quick = edge.ask("chain", row(0, 2))
    edge.run()
    assert outputs_of(quick) == [result(0, 2)]
    assert slow.replies == []
    pauses(edge)
    assert outputs_of(slow) == [result(2, 1)]


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_who_is_given_up_is_not_tried_again(make, how):
    edge = make()
    headers = {"rankmq-deadline": int(edge.wall() * 1000) + 50}
    fate = edge.ask("chain", row(2), message_id="m1", headers=headers if how == "deadline" else None)
    edge.run()
    if how == "cancel":
        assert edge.service.cancel("m1") == "cancelled"
    else:
        edge.world.clock.now += 0.06
        edge.service.tick()
    assert error_of(fate)[0] == ("cancelled" if how == "cancel" else "deadline_exceeded")
    pauses(edge)
    assert calls(edge) == [101, 1]
    assert len(fate.replies) == 1


def test_any_other_error_is_not_tried_again(make):
    text = FAILING.replace("raise TemporaryFailure", "raise ConnectionError")
    edge = make(text)
    fate = edge.ask("chain", row(1))
    assert pauses(edge) == []
    assert error_of(fate)[0] == "stage_failed"
    assert calls(edge) == [101, 1]


# ----------------------------------------------------------------------------------------------------------- pipelines


def test_a_pipeline_is_tried_again_from_its_inputs(make):
    edge = make(FAILING + PIPELINES)
    fate = edge.ask("whole", row(2, 1), row(0, 2))
    assert sorted(pauses(edge)) == pytest.approx([0.1, 0.2])
    assert outputs_of(fate) == [{"y": [2, 1, 0]}, {"y": [0, 2, 0]}]
    counted = calls(edge)
    assert [counted.count(name) for name in (7, 1, 2)] == [4, 3, 1]


def test_a_pipeline_is_not_tried_for_ever(make):
    edge = make(FAILING + PIPELINES)
    fate = edge.ask("whole", row(9))
    pauses(edge)
    assert error_of(fate) == ("attempts_exhausted", "tried 3 times; last: busy, try 3")
    assert calls(edge).count(7) == 3


@pytest.mark.parametrize(("fails", "code"), [(2, None), (3, "attempts_exhausted")])
def test_what_a_pipeline_calls_is_tried_again_by_itself(make, fails, code):
    """And not once more with the pipeline: what is exhausted is so."""
    edge = make(FAILING + PIPELINES)
    fate = edge.ask("around", row(fails))
    assert pauses(edge) == pytest.approx([0.1, 0.2])
    if code is None:
        assert outputs_of(fate) == [result(fails)]
    else:
        assert error_of(fate)[0] == code
    counted = calls(edge)
    assert [counted.count(name) for name in (8, 101, 1)] == [1, 1, 3]


def test_a_pipeline_that_is_given_up_in_a_pause_does_not_begin_again(make):
    edge = make(FAILING + PIPELINES)
    edge.ask("whole", row(2), message_id="m1")
    edge.run()
    assert edge.service.cancel("m1") == "cancelled"
    pauses(edge)
    assert calls(edge).count(7) == 1


def test_a_function_that_waits_for_a_method_of_its_own_has_it_tried_again(tmp_path):
    """On its own thread, as all of the pool may be waiting so."""
    edge = Edge(tmp_path, {"matmul": MODEL + FAILING + PIPELINES}, pool="threads", stage_threads=1)
    try:
        fate = edge.ask("inner", row(1))
        while not edge.timers:
            edge.news.get(timeout=10)()
        edge.timers.pop()[1]()
        edge.run()
        assert outputs_of(fate) == [result(1)]
        assert calls(edge) == [101, 1, 1]
    finally:
        edge.close()


# ----------------------------------------------------------------------------------- instances with state on the ranks


SLOTS = WORDS + "distributed.declare_servable(rank_size=3, stage_size=1, with_batch_dim=True, slots=1)\n"


def test_an_instance_gives_its_slot_back_while_it_pauses(make):
    """A pipeline that pauses is begun anew, and needs nothing that it had; others may have its slot."""
    pipelines = PIPELINES.replace("    shaky(x)\n", "    chain_.run(x * 0)\n    shaky(x)\n")
    edge = make(FAILING + pipelines, model=SLOTS, world=ready_world(slots=1))
    fate = edge.ask("whole", row(1, 1))
    edge.run()
    assert edge.timers
    assert edge.world.driver.status().slots_held == 0
    other = edge.ask("chain", row(0, 2))
    edge.run()
    assert outputs_of(other) == [result(0, 2)]
    pauses(edge)
    assert outputs_of(fate) == [{"y": [1, 1, 0]}]
    assert edge.world.driver.status().slots_held == 0

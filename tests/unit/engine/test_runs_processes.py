"""Given functions that run in processes, when one ends its process, or its request is over, then others do not pay."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
from rankmq.schemas.errors import TemporaryFailure

from tests.unit.engine.edge import MODEL, Edge, error_of, errors_of, outputs_of

FATAL = 13
STAGE = """
def ten_times(x):
    return x * 10

@register.register_method(output_names=["y"])
def stage(x):
    return register.add_stage(ten_times, x)

@register.register_method(output_names=["y"])
def chain(x):
    x = register.add_stage(ten_times, x)
    return register.call_servable(x, subgraph=0)
"""


class Processes:
    """Rows that run together are lost together; `meanwhile` is called while they run."""

    def __init__(self):
        self.alone = []
        self.killed = 0
        self.meanwhile = lambda: None

    def run(self, address, stage, rows, caller, call, *, alone, most):
        self.alone.append((alone, len(rows)))
        with call.at(self):
            self.meanwhile()
        values = [int(x[0]) for (x,) in rows]
        lost = set() if FATAL not in values else {FATAL} if alone else set(values)
        return [
            TemporaryFailure("the process has ended") if value in lost else (stage.function(*row),)
            for value, row in zip(values, rows, strict=True)
        ]

    def kill(self):
        self.killed += 1


@contextmanager
def engine(tmp_path, **given):
    processes = Processes()
    edge = Edge(tmp_path, {"matmul": MODEL + STAGE}, processes=processes, **given)
    try:
        yield edge, processes
    finally:
        edge.close()


def row(value):
    return {"x": np.array([value, 0, 0], np.float32)}


def run(edge):
    edge.run()
    while edge.timers:
        edge.timers.pop(0)[1]()
        edge.run()


@pytest.mark.parametrize("most", [2, 3, 5])
def test_suspects_run_alone_before_their_last_attempt(tmp_path, most):
    with engine(tmp_path, max_attempts=most) as (edge, processes):
        fate = edge.ask("stage", row(1), row(FATAL), row(3))
        run(edge)
        assert errors_of(fate) == {1: "attempts_exhausted"}
        assert [outputs_of(fate)[place]["y"][0] for place in (0, 2)] == [10, 30]
        assert processes.alone == [(False, 3)] * (most - 1) + [(True, 3)]


def test_with_one_attempt_all_of_them_run_together(tmp_path):
    with engine(tmp_path, max_attempts=1) as (edge, processes):
        fate = edge.ask("stage", row(1), row(FATAL))
        run(edge)
        assert error_of(fate)[0] == "attempts_exhausted"
        assert processes.alone == [(False, 2)]


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_function_that_nobody_waits_for_is_ended_after_a_while(tmp_path, how):
    with engine(tmp_path) as (edge, processes):
        headers = {"rankmq-deadline": int(edge.wall() * 1000) + 50} if how == "deadline" else None

        def over():
            if how == "cancel":
                assert edge.service.cancel("m1") == "cancelled"
            else:
                edge.world.clock.now += 0.06
                edge.service.tick()
            assert processes.killed == 0
            ((when, end),) = edge.timers
            edge.timers.clear()
            assert when == pytest.approx(edge.world.clock() + 1.0)
            end()
            assert processes.killed == 1

        processes.meanwhile = over
        fate = edge.ask("stage", row(1), message_id="m1", headers=headers)
        run(edge)
        assert error_of(fate)[0] == ("cancelled" if how == "cancel" else "deadline_exceeded")
        assert len(fate.replies) == 1


def test_one_that_is_done_by_then_is_not(tmp_path):
    with engine(tmp_path) as (edge, processes):
        processes.meanwhile = lambda: edge.service.cancel("m1")
        edge.ask("stage", row(1), message_id="m1")
        run(edge)
        assert processes.alone == [(False, 1)]
        assert processes.killed == 0


def test_a_request_that_is_over_later_ends_nothing(tmp_path):
    with engine(tmp_path) as (edge, processes):
        fate = edge.ask("chain", row(1), message_id="m1")
        while not processes.alone:
            edge.news.get_nowait()()
        assert edge.service.cancel("m1") == "cancelled"
        assert edge.timers == []
        run(edge)
        assert error_of(fate)[0] == "cancelled"
        assert processes.killed == 0

"""Given a request that is over, then its servable's own Python ends, and nothing of it stays."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.caller import GivenUp
from rankmq.engine.front import Front
from rankmq.engine.functions import FunctionRun, run_function
from rankmq.engine.run_ports import RunContext
from rankmq.engine.servable import FunctionStage, Where
from rankmq.engine.thread_caller import ThreadCaller
from rankmq.schemas.errors import Cancelled, ConnectionLost, GraphFailed, RankmqError

from tests.unit.engine.edge import MODEL, Edge, error_of, outputs_of

REASON = Cancelled("enough")
ROW = np.array([1, 2, 3], np.float32)


def stage(function: Callable[..., Any], batch_size: int | None = None) -> FunctionStage:
    return FunctionStage(function, "f", (), 1, batch_size, Where("servable_config.py", 1))


class Nobody:
    """A way back into the engine that is not gone."""

    def of(self, row):
        return self

    def of_several(self):
        return self


@contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------------------------------ in pieces


@given(
    lasts=st.lists(st.floats(0, 0.2), min_size=1, max_size=30),
    batch_size=st.none() | st.integers(0, 7),
    seconds=st.floats(0.001, 0.3),
)
def test_a_function_gives_its_thread_up_after_a_while_and_the_results_are_the_same(lasts, batch_size, seconds):
    now, took = 0.0, iter(lasts)

    def one(x):
        nonlocal now
        now += next(took)
        return x + 1

    many = one if batch_size is None else lambda rows: [one(x) for (x,) in rows]
    rows = [(np.array(number),) for number in range(len(lasts))]
    run, results = FunctionRun(stage(many, batch_size), rows, Nobody(), clock=lambda: now), None
    longest = (
        max(sum(lasts[at : at + (batch_size or len(lasts))]) for at in range(len(lasts)))
        if batch_size is not None
        else max(lasts)
    )
    while results is None:
        before = now
        results = run.run(seconds)
        assert now - before <= seconds + longest + 1e-9
        assert results is not None or now - before >= seconds - 1e-9
    assert [int(found) for (found,) in results] == list(range(1, len(lasts) + 1))


@given(count=st.integers(1, 12), until=st.integers(0, 12), batch_size=st.none() | st.integers(1, 4))
def test_rows_that_nobody_wants_any_more_are_not_run(count, until, batch_size):
    ran = []

    def one(x):
        ran.append(int(x))
        return x

    many = one if batch_size is None else lambda rows: [one(x) for (x,) in rows]
    rows = [(np.array(number),) for number in range(count)]
    results = FunctionRun(stage(many, batch_size), rows, Nobody(), lambda: REASON if len(ran) >= until else None).run()
    size = batch_size or 1
    assert len(ran) == min(count, -(-until // size) * size)
    assert [it is REASON for it in results] == [number >= len(ran) for number in range(count)]


def test_a_function_that_yields_for_ever_fails():
    results = run_function(stage(lambda rows: itertools.repeat(ROW), 0), [(ROW,), (ROW,)], Nobody())
    assert [it.code for it in results] == ["stage_failed"] * 2
    assert "returned more than 2 results for 2 instances" in results[0].message


# ------------------------------------------------------------------------------------------------ who does not heed it


class Direct:
    """Ports whose calls end at once, with one and the same error."""

    def __init__(self, error: RankmqError) -> None:
        self.error = error
        self.calls = 0

    def on_loop(self, work):
        work()

    def call_subgraph(self, context, subgraph, rows, done):
        self.calls += 1
        done([self.error])


@pytest.mark.parametrize("over", ["the request", "the engine"])
def test_who_goes_on_calling_when_it_is_over_is_stopped(over):
    context = RunContext(servable=None, request="r", lenient=False)
    caller = ThreadCaller(Direct(REASON), context)
    context.life.end(REASON) if over == "the request" else context.waits.close(ConnectionLost("gone"))

    def stubborn(x):
        while True:
            try:
                return caller.call_subgraph(0, (x,))
            except Exception:  # noqa: BLE001  # as people write it
                continue

    (result,) = run_function(stage(stubborn), [(ROW,)], Nobody())
    assert result.code == ("cancelled" if over == "the request" else "connection_lost")


def test_it_is_told_by_ordinary_errors_first():
    """Which it can catch, to put things in order."""
    context = RunContext(servable=None, request="r", lenient=False)
    caller = ThreadCaller(Direct(REASON), context)
    context.life.end(REASON)
    for _ in range(3):
        with pytest.raises(Cancelled):
            caller.call_subgraph(0, (ROW,))
    met = []
    while not met or isinstance(met[-1], Cancelled):
        assert len(met) < 100
        try:
            caller.call_subgraph(0, (ROW,))
        except BaseException as error:  # noqa: BLE001
            met.append(error)
    assert isinstance(met[-1], GivenUp)
    assert met[-1].reason is REASON


def test_an_error_that_is_raised_again_and_again_does_not_grow():
    error = GraphFailed("always")
    caller = ThreadCaller(Direct(error), RunContext(servable=None, request="r", lenient=False))
    for _ in range(50):
        with pytest.raises(GraphFailed):
            caller.call_subgraph(0, (ROW,))
    frames, link = 0, error.__traceback__
    while link is not None:
        frames, link = frames + 1, link.tb_next
    assert frames < 10


def test_an_error_that_was_met_holds_nothing_of_the_call():
    class Argument(np.ndarray):
        """One that can be watched."""

    def meets(x):
        caller.call_subgraph(0, (x,))

    with without_collector():
        caller = ThreadCaller(Direct(GraphFailed("no")), RunContext(servable=None, request="r", lenient=False))
        argument = ROW.copy().view(Argument)
        watched, results = weakref.ref(argument), run_function(stage(meets), [(argument,)], Nobody())
        del argument
        assert results[0].code == "graph_failed"
        assert watched() is None


def test_what_was_to_be_done_later_is_not_held_once_it_is_done():
    class Work:
        def __call__(self) -> None:
            done.set()

    class Owner:
        def run_guarded(self, work: Callable[[], None]) -> None:
            work()

    async def run() -> None:
        nonlocal done
        done = asyncio.Event()
        front, work = Front(None, None, None, Owner()), Work()
        watched = weakref.ref(work)
        front.later(0.0, work)
        del work
        await done.wait()
        await asyncio.sleep(0)
        assert watched() is None

    done = asyncio.Event()
    with without_collector():
        asyncio.run(run())


# ------------------------------------------------------------------------------------------------------------- requests

TEXT = """
import threading
began, go_on, ran = threading.Event(), threading.Event(), []

def slow(x):
    ran.append(float(x[0]))
    began.set()
    assert go_on.wait(30)
    return x

@register.register_method(output_names=["x"])
def slowly(x):
    return register.add_stage(slow, x)

@register.register_pipeline(output_names=["x"])
def piped(x):
    ran.append(float(x[0]))
    return x
"""


def test_a_function_is_not_run_on_for_a_request_that_was_given_up(tmp_path):
    edge = Edge(tmp_path, {"matmul": MODEL + TEXT}, pool="threads")
    words = edge.service._catalog.resolve("matmul", 0, "slowly")[1].stages[0].function.__globals__
    fate = edge.ask("slowly", *[{"x": ROW}] * 50, message_id="a")
    assert words["began"].wait(10)
    edge.service.cancel("a")
    words["go_on"].set()
    edge.run()
    assert error_of(fate)[0] == "cancelled"
    assert len(words["ran"]) == 1
    edge.close()


def test_a_pipeline_that_waits_for_a_thread_is_not_begun_for_a_request_that_was_given_up(tmp_path, monkeypatch):
    edge, waiting = Edge(tmp_path, {"matmul": MODEL + TEXT}), []
    monkeypatch.setattr(edge, "in_pipeline_pool", lambda kind, work, done: waiting.append((work, done)))
    words = edge.service._catalog.resolve("matmul", 0, "piped")[1].function.__globals__
    fate = edge.ask("piped", {"x": ROW}, {"x": ROW}, message_id="a")
    (first, told), second = waiting[0], waiting[1]
    told(first())
    edge.service.cancel("a")
    work, _ = second
    assert work().code == "cancelled"
    assert words["ran"] == [1.0]
    assert error_of(fate)[0] == "cancelled"
    edge.close()


def test_two_requests_share_a_thread(tmp_path):
    """A long one does not have it until all its rows are done."""
    text = """
import time
order = []

def note(x):
    order.append(int(x[0]))
    time.sleep(0.03 if x[0] == 1 else 0)
    return x

@register.register_method(output_names=["x"])
def noted(x):
    return register.add_stage(note, x)
"""
    edge = Edge(tmp_path, {"matmul": MODEL + text}, pool="threads", stage_threads=1)
    words = edge.service._catalog.resolve("matmul", 0, "noted")[1].stages[0].function.__globals__
    fates = [edge.ask("noted", *[{"x": ROW}] * 20), edge.ask("noted", {"x": ROW * 2})]
    edge.run()
    assert [len(outputs_of(fate)) for fate in fates] == [20, 1]
    assert sorted(words["order"]) == [1] * 20 + [2]
    assert words["order"].index(2) < 20
    edge.close()

"""Given threads that wait for the engine, when it ends or fails, then none of them waits for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from rankmq.engine.run_ports import RunContext
from rankmq.engine.thread_caller import ThreadCaller
from rankmq.engine.waits import Waits
from rankmq.schemas.errors import ConnectionLost, InternalError

from tests.unit.engine.edge import MODEL, Edge, error_of
from tests.unit.engine.simulation import ready_world

ROW = np.array([1, 2, 3], np.float32)


class Loop:
    """Ports whose loop does not turn unless it is told to."""

    def __init__(self):
        self.works = []
        self.came = threading.Event()

    def on_loop(self, work):
        self.works.append(work)
        self.came.set()

    def call_subgraph(self, context, subgraph, rows, done):
        raise ZeroDivisionError("a defect")


@pytest.fixture
def thread():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def context():
    return RunContext(servable=None, request="r", lenient=False)


def test_when_the_engine_ends_who_waits_for_it_is_told(thread):
    """Also if the loop turns no more: threads that wait would keep the process from ending."""
    loop, its = Loop(), context()
    future = thread.submit(ThreadCaller(loop, its).call_subgraph, 0, (1,))
    assert loop.came.wait(10)
    assert len(its.waits) == 1
    its.waits.close(ConnectionLost("gone"))
    assert isinstance(future.exception(10), ConnectionLost)
    assert len(its.waits) == 0
    again = thread.submit(ThreadCaller(loop, its).call_subgraph, 0, (1,))
    assert isinstance(again.exception(10), ConnectionLost)
    assert len(loop.works) == 1


def test_a_defect_does_not_leave_the_thread_waiting(thread):
    loop, its = Loop(), context()
    future = thread.submit(ThreadCaller(loop, its).call_subgraph, 0, (1,))
    assert loop.came.wait(10)
    with pytest.raises(ZeroDivisionError):
        loop.works[0]()
    assert isinstance(future.exception(10), InternalError)


def test_the_first_end_of_a_wait_counts():
    waits = Waits()
    with waits.one() as wait:
        wait.end((np.array(1),))
        waits.close(ConnectionLost("gone"))
        waits.close(ConnectionLost("again"))
        assert wait.result()[0] == 1
    with pytest.raises(ConnectionLost, match="gone"), waits.one():
        pass


def test_a_thread_that_waits_helps_out():
    ran = []
    with Waits().one() as wait:
        wait.help_out(lambda: ran.append(threading.get_ident()))
        wait.help_out(lambda: wait.end((np.array(1),)))
        wait.result()
    assert ran == [threading.get_ident()]


def test_requests_under_way_when_the_service_ends_end_too(tmp_path):
    """The ranks are gone and nothing answers: pipelines that wait, also those that try again, come to their end."""
    world = ready_world()
    text = """
import threading
stopped = threading.Event()

@register.register_method(output_names=["y"])
def scale(x):
    return register.call_servable(x, subgraph=0)

scale_ = PipelineServable("matmul", "scale")

@register.register_pipeline(output_names=["y"])
def stubborn(x):
    for _ in range(5):
        try:
            return scale_.run(x)
        except Exception as error:
            last = error
    stopped.set()
    raise last
"""
    edge = Edge(tmp_path, {"matmul": MODEL + text}, world)
    fate = edge.ask("stubborn", {"x": ROW})
    edge.news.get(timeout=10)()
    for agent in world.agents.values():
        agent.frozen = True
    edge.service.close(ConnectionLost("gone"))
    world.driver.fail_all(ConnectionLost("gone"))
    edge.run()
    assert error_of(fate) == ("connection_lost", "gone")
    edge.close()

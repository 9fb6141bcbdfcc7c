"""Pipelines that share threads: one that waits lets others go on, one that does not soon has threads of its own."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from rankmq.engine import carriers
from rankmq.engine.carriers import Pipelines, current_seat
from rankmq.engine.waits import Wait, Waits
from rankmq.schemas.errors import ConnectionLost, GroupUnavailable

PATIENCE = 20.0


@pytest.fixture
def pipelines() -> Iterator[Pipelines]:
    """Where what is called quick was quick before."""
    found = Pipelines(4)
    for _ in range(carriers._PROOFS):
        done = threading.Event()
        found.submit("quick", done.set)
        assert done.wait(PATIENCE)
    until = time.monotonic() + PATIENCE
    while found._quick["quick"] < carriers._PROOFS:
        assert time.monotonic() < until
        time.sleep(0.001)
    yield found
    found.close()


class Many:
    """Pipelines that each wait for one answer."""

    def __init__(self, pipelines: Pipelines) -> None:
        self.pipelines = pipelines
        self.waiting: queue.SimpleQueue[tuple[int, Wait]] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[tuple[int, object, int]] = queue.SimpleQueue()

    def start(self, count: int, kind: str = "quick", rounds: int = 1) -> None:
        for number in range(count):
            self.pipelines.submit(kind, lambda number=number: self._pipeline(number, rounds))

    def _pipeline(self, number: int, rounds: int) -> None:
        total = 0
        for _ in range(rounds):
            wait = Wait()
            self.waiting.put((number, wait))
            total += int(wait.result()[0])
        self.done.put((number, total, threading.get_ident()))


def test_hundreds_wait_on_a_few_threads(pipelines):
    many, before = Many(pipelines), threading.active_count()
    many.start(500, rounds=3)
    for _ in range(3):
        waiting = [many.waiting.get(timeout=PATIENCE) for _ in range(500)]
        assert threading.active_count() <= before + 4
        for number, wait in reversed(waiting):
            wait.end((np.array(number),))
    found = [many.done.get(timeout=PATIENCE) for _ in range(500)]
    assert sorted((number, total) for number, total, _ in found) == [(it, 3 * it) for it in range(500)]
    assert 1 <= len({thread for *_, thread in found}) <= 4


def test_an_answer_that_is_there_before_it_is_waited_for(pipelines):
    found: queue.SimpleQueue[object] = queue.SimpleQueue()

    def pipeline() -> None:
        wait = Wait()
        wait.help_out(lambda: found.put("helped"))
        wait.end((np.array(7),))
        found.put(int(wait.result()[0]))
        other = Wait()  # what woke the first one for nothing does not wake this one
        threading.Timer(0.05, other.end, [(np.array(8),)]).start()
        found.put(int(other.result()[0]))

    pipelines.submit("quick", pipeline)
    assert [found.get(timeout=PATIENCE) for _ in range(3)] == ["helped", 7, 8]


def test_what_takes_long_has_threads_of_its_own(pipelines):
    release, began = threading.Event(), queue.SimpleQueue()

    def blocks() -> None:
        began.put(threading.get_ident())
        release.wait(PATIENCE)

    def ends() -> None:
        release.set()
        until = time.monotonic() + PATIENCE
        while "slow" not in pipelines._slow:
            assert time.monotonic() < until
            time.sleep(0.001)
        release.clear()

    pipelines.submit("slow", blocks)
    began.get(timeout=PATIENCE)
    time.sleep(2 * carriers._LONG_SECONDS)
    ends()
    for _ in range(carriers._PROOFS + 1):
        pipelines.submit("slow", blocks)
    assert len({began.get(timeout=PATIENCE) for _ in range(carriers._PROOFS + 1)}) == carriers._PROOFS + 1
    release.set()


def test_what_was_quick_and_is_slow_today_holds_up_no_newcomers(pipelines):
    release, began = threading.Event(), threading.Event()

    def blocks() -> None:
        began.set()
        release.wait(PATIENCE)

    pipelines.submit("quick", blocks)
    assert began.wait(PATIENCE)
    many = Many(pipelines)
    many.start(20)
    for _ in range(20):
        number, wait = many.waiting.get(timeout=PATIENCE)
        wait.end((np.array(number),))
    assert len([many.done.get(timeout=PATIENCE) for _ in range(20)]) == 20
    time.sleep(2 * carriers._LONG_SECONDS)
    release.set()
    until = time.monotonic() + PATIENCE
    while "quick" not in pipelines._slow:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_waiting_for_the_engine_is_not_slow(pipelines):
    waits: queue.SimpleQueue[Wait] = queue.SimpleQueue()
    done = threading.Event()

    def pipeline() -> None:
        for _ in range(2):
            wait = Wait()
            waits.put(wait)
            wait.result()
        done.set()

    pipelines.submit("patient", pipeline)
    for _ in range(2):
        wait = waits.get(timeout=PATIENCE)
        time.sleep(1.5 * carriers._LONG_SECONDS)
        wait.end(())
    assert done.wait(PATIENCE)
    until = time.monotonic() + PATIENCE
    while not pipelines._quick["patient"]:
        assert time.monotonic() < until
        time.sleep(0.001)
    assert "patient" not in pipelines._slow


def test_each_has_its_own_context_variables(pipelines):
    variable = contextvars.ContextVar[int]("variable")
    found: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    waits: queue.SimpleQueue[Wait] = queue.SimpleQueue()

    def pipeline(number: int) -> None:
        variable.set(number)
        wait = Wait()
        waits.put(wait)
        wait.result()
        found.put((number, variable.get()))

    for number in range(20):
        pipelines.submit("quick", lambda number=number: pipeline(number))
    for _ in range(20):
        waits.get(timeout=PATIENCE).end(())
    assert all(number == seen for number, seen in [found.get(timeout=PATIENCE) for _ in range(20)])


def test_when_the_engine_ends_all_are_told(pipelines):
    waits, found, entered = Waits(), queue.SimpleQueue(), queue.SimpleQueue()

    def pipeline() -> None:
        with waits.one() as wait:
            entered.put(None)
            found.put(wait.result())

    for _ in range(50):
        pipelines.submit("quick", pipeline)
    for _ in range(50):
        entered.get(timeout=PATIENCE)
    waits.close(ConnectionLost("gone"))
    assert all(isinstance(found.get(timeout=PATIENCE), ConnectionLost) for _ in range(50))


def test_no_wait_is_for_ever(pipelines, monkeypatch):
    monkeypatch.setattr(carriers, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr("rankmq.engine.waits._LONGEST_SECONDS", 0.1)
    found: queue.SimpleQueue[object] = queue.SimpleQueue()
    pipelines.submit("quick", lambda: found.put(Wait().result()))
    assert isinstance(found.get(timeout=PATIENCE), GroupUnavailable)


def test_elsewhere_there_is_no_seat():
    assert current_seat() is None

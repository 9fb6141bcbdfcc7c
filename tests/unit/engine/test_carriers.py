"""Pipelines that share threads: one that waits lets others go on, one that does not soon has threads of its own."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from rankmq.engine import carriers
from rankmq.engine.carriers import Pipelines, Watch, current_seat
from rankmq.engine.waits import Wait, Waits
from rankmq.schemas.errors import ConnectionLost, GroupUnavailable

PATIENCE = 20.0


def until(reached: Callable[[], object]) -> None:
    """Waits for what another thread does without a word."""
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.001)


def prove(pipelines: Pipelines, kind: str) -> None:
    for _ in range(carriers._PROOFS):
        pipelines.submit(kind, lambda: None)
    until(lambda: pipelines._quick[kind] >= carriers._PROOFS)


@pytest.fixture
def pipelines() -> Iterator[Pipelines]:
    """Where what is called quick, or quick as well, was quick before."""
    found = Pipelines(4)
    prove(found, "quick")
    prove(found, "quick as well")
    yield found
    found.close()


class Blocks:
    """Pipelines that hold their threads until they are released."""

    def __init__(self, pipelines: Pipelines) -> None:
        self.pipelines = pipelines
        self.began: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.release = threading.Event()

    def start(self, count: int, kind: str = "quick") -> None:
        for number in range(count):
            self.pipelines.submit(kind, lambda number=number: self._pipeline(number))

    def _pipeline(self, number: int) -> None:
        self.began.put(number)
        self.release.wait(2 * PATIENCE)

    def have_begun(self, count: int) -> list[int]:
        """The next so many that begin, by their numbers."""
        return sorted(self.began.get(timeout=PATIENCE) for _ in range(count))


@pytest.fixture
def blocks(pipelines) -> Iterator[Blocks]:
    found = Blocks(pipelines)
    yield found
    found.release.set()


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
        assert threading.active_count() <= before + 4 + 1, "and one that watches them"
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


def test_what_takes_long_is_known_while_it_does(pipelines, blocks):
    blocks.start(1)
    until(lambda: "quick" in pipelines._slow)
    assert "quick as well" not in pipelines._slow


def test_those_that_share_its_thread_and_have_not_begun_go_elsewhere(pipelines, blocks):
    blocks.start(carriers._CARRIERS + 4)
    assert blocks.have_begun(carriers._CARRIERS + 4) == list(range(carriers._CARRIERS + 4))
    assert not sum(it.rides for it in pipelines._carriers["quick"]) > carriers._CARRIERS
    blocks.start(1)
    blocks.release.set()
    assert blocks.have_begun(1) == [0]


def test_one_that_comes_while_the_others_go_elsewhere_goes_after_them(pipelines, blocks, monkeypatch):
    """Whoever finds a kind slow may do so between two words of `submit`."""
    blocks.start(carriers._CARRIERS)
    blocks.have_begun(carriers._CARRIERS)
    start = carriers._Carrier.start

    def found_just_before(self: carriers._Carrier, work: Callable[[], None]) -> None:
        until(lambda: "quick" in pipelines._slow)
        until(lambda: not any(it._not_begun for it in pipelines._carriers["quick"]))
        start(self, work)

    monkeypatch.setattr(carriers._Carrier, "start", found_just_before)
    pipelines._slow.discard("quick")
    blocks.start(1)
    assert blocks.have_begun(1) == [0]


def test_what_takes_long_holds_up_none_of_another_kind(pipelines, blocks):
    many = Many(pipelines)
    many.start(20, "quick as well")
    waiting = [many.waiting.get(timeout=PATIENCE) for _ in range(20)]
    blocks.start(carriers._CARRIERS)
    blocks.have_begun(carriers._CARRIERS)
    for number, wait in waiting:
        wait.end((np.array(number),))
    assert len([many.done.get(timeout=PATIENCE) for _ in range(20)]) == 20
    assert blocks.began.empty()


def test_who_waits_beside_what_takes_long_goes_on_after_it(pipelines, blocks):
    many = Many(pipelines)
    many.start(20)
    waiting = [many.waiting.get(timeout=PATIENCE) for _ in range(20)]
    blocks.start(1)
    until(lambda: "quick" in pipelines._slow)
    for number, wait in waiting:
        wait.end((np.array(number),))
    blocks.release.set()
    assert len([many.done.get(timeout=PATIENCE) for _ in range(20)]) == 20


def test_a_look_comes_when_something_can_have_taken_long_and_none_while_nothing_begins(pipelines):
    long, carrier = carriers._LONG_SECONDS, carriers._Carrier("idle", lambda _: None, lambda: None)
    pipelines._carriers = {"quick": (carrier,)}
    assert pipelines._look(1.0) is None
    carrier.last_began = 1.5
    assert pipelines._look(2.0) == pytest.approx(long), "the next may begin at once"
    assert pipelines._look(2.0 + long) is None
    carrier.busy_since = carrier.last_began = 3.0
    assert pipelines._look(3.0 + long / 4) == pytest.approx(3 / 4 * long)
    assert pipelines._look(3.0 + long / 2) == pytest.approx(1 / 2 * long)
    assert not pipelines._slow
    assert pipelines._look(3.0 + 1.01 * long) is None
    assert pipelines._slow == {"quick"}
    carrier.last_began = 4.0
    assert pipelines._look(4.0) is None, "of what is slow there is nothing to find out"
    carrier.ask(None)


def test_the_watch_sleeps_until_something_begins():
    looks: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    looked: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def look(_: float) -> float | None:
        looked.put(watch._sleeps if made.wait(PATIENCE) else True)
        return looks.get(timeout=PATIENCE)

    made = threading.Event()
    watch = Watch(look)
    made.set()
    try:
        for said, sleeps in ((0.0, False), (0.001, False), (None, False), (0.0, True), (None, False), (None, True)):
            assert looked.get(timeout=PATIENCE) is sleeps
            looks.put(said)
        with pytest.raises(queue.Empty):
            looked.get(timeout=0.05)
        watch.begins()
        assert looked.get(timeout=PATIENCE) is False
    finally:
        watch.close()
        looks.put(0.0)


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

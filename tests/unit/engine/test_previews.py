"""Given a loop's rows that go on, when slices end, then the function of `stream` sees how far they have come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rankmq.engine.loop import Loop
from rankmq.engine.loop_plan import Turned
from rankmq.engine.previews import Preview
from rankmq.engine.repeats import RepeatRun
from rankmq.engine.run_ports import RunContext
from rankmq.engine.servable import Constant, RepeatStage, Where
from rankmq.schemas.errors import GraphFailed
from rankmq.schemas.tensors import to_array

WHERE = Where("servable_config.py", 1)


def stage(stream: Callable[..., Any], turns: int = 2) -> RepeatStage:
    loop = Loop(((0, 0),), None, (0,), (0,))
    return RepeatStage(0, (), Constant(9), 9, loop, turns, 2, WHERE, stream=stream)


class Ports:
    """The pool's work waits until the test has it done; ranks count on."""

    def __init__(self) -> None:
        self.work: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self.slices: deque[Callable[[], None]] = deque()

    def in_pool(self, work, done):
        self.work.append((work, done))

    def work_off(self):
        while self.work:
            work, done = self.work.popleft()
            done(work())

    def repeat_subgraph(self, context, stage, rows, turns, done):
        def ended():
            results = []
            for (at,), count in zip(rows, turns, strict=True):
                values = at + np.arange(1, count + 1)
                turned = Turned((values[-1],), (values,), (values[-1],), count, stopped=False)
                results.append(GraphFailed("odd") if at < 0 else turned.packed())
            done(results)

        self.slices.append(ended)


@pytest.fixture
def ports():
    return Ports()


def shown(sent: list[Any]) -> list[Any]:
    return [to_array(it["n"]).tolist() for it in sent]


def test_after_each_slice_but_the_last(ports):
    calls, sent, results = [], [[], []], []

    def stream(name, all_of_it, last):
        calls.append((name, all_of_it.tolist(), int(last)))
        return {"n": len(all_of_it)}

    made = stage(stream)
    previews = [Preview(ports, made, [name], sent[at].append) for at, name in enumerate("ab")]
    rows = [(np.asarray(0),), (np.asarray(10),)]
    RepeatRun(ports, RunContext(None, "r", lenient=False), made, rows, [5, 3], results.extend, previews).start()
    while ports.slices:
        ports.slices.popleft()()
        ports.work_off()
    assert calls == [("a", [1, 2], 2), ("b", [11, 12], 12), ("a", [1, 2, 3, 4], 4)]
    assert [shown(it) for it in sent] == [[2, 4], [2]]
    assert [it[0].tolist() for it in results] == [[1, 2, 3, 4, 5], [11, 12, 13]]


def test_a_row_that_fails_shows_nothing_more(ports):
    sent, results = [], []
    made = stage(lambda all_of_it, last: {"n": len(all_of_it)})
    preview = Preview(ports, made, [], sent.append)
    context = RunContext(None, "r", lenient=False)
    RepeatRun(ports, context, made, [(np.asarray(-1),)], [5], results.extend, [preview]).start()
    ports.slices.popleft()()
    ports.work_off()
    assert sent == []
    assert isinstance(results[0], GraphFailed)


def test_while_one_is_made_only_the_newest_of_the_others_is_kept(ports):
    sent = []
    preview = Preview(ports, stage(lambda n: {"n": n}), [], sent.append)
    for number in range(4):
        preview.show((np.asarray(number),))
    assert len(ports.work) == 1
    ports.work_off()
    assert shown(sent) == [0, 3]


def test_once_the_row_is_done_nothing_is_shown(ports):
    sent = []
    preview = Preview(ports, stage(lambda n: {"n": n}), [], sent.append)
    preview.show((np.asarray(1),))
    preview.show((np.asarray(2),))
    preview.end()
    ports.work_off()
    assert sent == []


def raising(n):
    raise ValueError("not now")


def exiting(n):
    raise SystemExit(3)


@pytest.mark.parametrize("stream", [raising, exiting, lambda n: None, lambda n: n, lambda n: {"n": object()}])
def test_what_makes_no_part(ports, stream):
    sent = []
    preview = Preview(ports, stage(stream), [], sent.append)
    preview.show((np.asarray(1),))
    ports.work_off()
    preview.show((np.asarray(2),))
    assert len(ports.work) == 1, "it goes on"
    assert sent == []

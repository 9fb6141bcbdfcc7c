"""Functions of methods in processes of their own."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import psutil
import pytest
from rankmq.engine.stage_processes import StageAddress, StageProcesses
from rankmq.schemas.errors import InvalidInput, StageFailed, TemporaryFailure

from tests.processes import runs
from tests.unit.engine.servable_files import WORDS, load

CONFIGURATION = (
    WORDS
    + """
import os, signal, time
from rankmq.schemas.errors import InvalidInput

def double(x):
    return x * 2

def who(x):
    time.sleep(0.05)
    return os.getpid()

def picky(x):
    if x < 0:
        raise InvalidInput(f"{x} is below 0")
    if x > 9:
        raise RuntimeError("too much")
    return x

def ends(x):
    if x == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return x

def together(instances):
    return [np.int64(len(instances)) for _ in instances]

def text(x):
    return np.array(f"n{x}", np.dtypes.StringDType()), bytes([int(x)])

inner = PipelineServable("functions", "plain")

def asks(x):
    return inner.run(x)

def locks(x):
    return lambda: x

@register.register_method(output_names=["y"])
def plain(x):
    return register.add_stage(double, x)

@register.register_method(output_names=["a", "b", "c", "d", "e", "f", "g", "h", "i"])
def all_of_them(x):
    a = register.add_stage(double, x)
    b = register.add_stage(who, x)
    c = register.add_stage(picky, x)
    d = register.add_stage(ends, x)
    e = register.add_stage(together, x, batch_size=3)
    f, g = register.add_stage(text, x, outputs_count=2)
    h = register.add_stage(asks, x)
    i = register.add_stage(locks, x)
    return a, b, c, d, e, f, g, h, i
"""
)
DOUBLE, WHO, PICKY, ENDS, TOGETHER, TEXT, ASKS, LOCKS = range(8)


class Engine:
    """What stands for the engine on a thread."""

    def of(self, row):
        return self

    def of_several(self):
        return self

    def call_method(self, servable, version, method, args):
        return (args[0] * 100,)


@pytest.fixture(scope="module")
def servable(tmp_path_factory):
    return load(tmp_path_factory.mktemp("servables"), CONFIGURATION, "functions")


@pytest.fixture(scope="module")
def processes(servable):
    found = StageProcesses(2, [servable])
    yield found
    found.close()


@pytest.fixture
def run(servable, processes):
    def run(number, values):
        stage = servable.methods["all_of_them"].stages[number]
        address = StageAddress("functions", servable.version, "all_of_them", number)
        return processes.run(address, stage, [(value,) for value in values], Engine())

    return run


def test_rows_come_back_in_their_order_from_other_processes(run):
    rows = [np.full((3,), it, np.float32) for it in range(7)]
    for row, (result,) in zip(rows, run(DOUBLE, rows), strict=True):
        np.testing.assert_array_equal(result, row * 2)
        assert result.dtype == np.float32
    pids = {int(pid) for (pid,) in run(WHO, rows)}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_row_that_fails_fails_itself(run):
    good, below, above, last = run(PICKY, np.array([1, -2, 10, 9]))
    assert (int(good[0]), int(last[0])) == (1, 9)
    assert isinstance(below, InvalidInput)
    assert below.message == "-2 is below 0"
    assert isinstance(above, StageFailed)
    assert "RuntimeError: too much" in above.message


def test_a_process_that_is_killed_may_be_tried_again(run):
    (gone,) = run(ENDS, [13])
    assert isinstance(gone, TemporaryFailure)
    assert [int(it[0]) for it in run(ENDS, [1, 2])] == [1, 2]


def test_batches_are_no_larger_than_the_stage_says(run):
    assert [int(it[0]) for it in run(TOGETHER, range(7))] == [3, 3, 3, 3, 3, 3, 1]


def test_text_and_bytes(run):
    ((text, data),) = run(TEXT, [7])
    assert (str(text[()]), data[()]) == ("n7", b"\x07")


def test_a_function_that_needs_the_engine_runs_on_a_thread(run):
    for _ in range(2):
        assert [int(it[0]) for it in run(ASKS, np.array([1, 2]))] == [100, 200]


def test_what_cannot_be_sent_back_is_an_error_of_the_stage(run):
    (result,) = run(LOCKS, [1])
    assert isinstance(result, StageFailed)


def test_no_process_is_left_behind(servable):
    found = StageProcesses(2, [servable])
    stage = servable.methods["all_of_them"].stages[WHO]
    address = StageAddress("functions", servable.version, "all_of_them", WHO)
    pids = {int(pid) for (pid,) in found.run(address, stage, [(it,) for it in range(4)], Engine())}
    found.close()
    until = time.monotonic() + 10
    while any(runs(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.02)
    (result,) = found.run(address, stage, [(1,)], Engine())
    assert isinstance(result, TemporaryFailure)


def test_ctrl_c_does_not_reach_them(run):
    (pid,) = {int(pid) for (pid,) in run(WHO, [1])}
    os.kill(pid, signal.SIGINT)
    assert int(run(DOUBLE, [3])[0][0]) == 6
    assert psutil.pid_exists(pid)


def test_processes_that_were_replaced_are_not_replaced_again(servable):
    """Several threads may see the end of the same ones, one of them when there are new ones already."""
    found = StageProcesses(1, [servable])
    old = found._open()
    found._replace(old)
    new = found._open()
    found._replace(old)
    assert found._open() is new is not old
    found.close()
    assert found._open() is None

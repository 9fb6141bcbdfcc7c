"""Functions of methods in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from rankmq.engine.stage_call import StageCall
from rankmq.engine.stage_process import StageAddress
from rankmq.engine.stage_processes import StageProcesses
from rankmq.schemas.errors import InvalidInput, LimitExceeded, StageFailed, TemporaryFailure

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

def held(fifo):
    with open(str(fifo)) as file:
        return file.read()

@register.register_method(output_names=["y"])
def plain(x):
    return register.add_stage(double, x)

@register.register_method(output_names=["y"])
def held_(fifo):
    return register.add_stage(held, fifo)

@register.register_method(output_names=["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"])
def all_of_them(x):
    a = register.add_stage(double, x)
    b = register.add_stage(who, x)
    c = register.add_stage(picky, x)
    d = register.add_stage(ends, x)
    e = register.add_stage(together, x, batch_size=3)
    f, g = register.add_stage(text, x, outputs_count=2)
    h = register.add_stage(asks, x)
    i = register.add_stage(locks, x)
    j = register.add_stage(held, x)
    return a, b, c, d, e, f, g, h, i, j
"""
)
DOUBLE, WHO, PICKY, ENDS, TOGETHER, TEXT, ASKS, LOCKS, HELD = range(9)
PATIENCE = 20.0


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
    def run(number, values, **how):
        stage = servable.methods["all_of_them"].stages[number]
        address = StageAddress("functions", servable.version, "all_of_them", number)
        return processes.run(address, stage, [(value,) for value in values], Engine(), **how)

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


def test_a_row_is_given_no_more_than_it_may_be(run):
    """Which is known in the process: nothing of it comes through the pipe."""
    good, large = run(DOUBLE, [np.zeros(3, np.float32), np.broadcast_to(np.float32(1), (4,))], most=12)
    np.testing.assert_array_equal(good[0], np.zeros(3))
    assert isinstance(large, LimitExceeded)
    assert "stage double returned 16 bytes for a row, and no reply or step can carry more than 12" in large.message


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
    until(lambda: not any(runs(pid) for pid in pids))
    (result,) = found.run(address, stage, [(1,)], Engine())
    assert isinstance(result, TemporaryFailure)


def test_ctrl_c_does_not_reach_them(run):
    (pid,) = {int(pid) for (pid,) in run(WHO, [1])}
    os.kill(pid, signal.SIGINT)
    assert int(run(DOUBLE, [3])[0][0]) == 6
    assert psutil.pid_exists(pid)


# ------------------------------------------------------------------------------------------- ends, and what they take


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as found:
        yield found


def until(found):
    """What `found` gives, once it gives something."""
    end = time.monotonic() + PATIENCE
    while not (it := found()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return it


def letting_go(fifo):
    """Waits until the function HELD is under way; gives what lets it go on."""

    def opened():
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads
            return None

    file = until(opened)

    def go():
        os.write(file, b"now")
        os.close(file)

    return go


def test_one_that_ends_takes_no_others_with_it(run, fifo, threads):
    innocent = threads.submit(run, HELD, [str(fifo)])
    go = letting_go(fifo)
    for _ in range(3):
        (gone,) = run(ENDS, [13])
        assert isinstance(gone, TemporaryFailure)
    go()
    ((said,),) = innocent.result(PATIENCE)
    assert said == "now"


def test_of_rows_that_run_alone_only_the_one_to_blame_is_lost(run):
    first, gone, last = run(ENDS, [1, 13, 2], alone=True)
    assert (int(first[0]), int(last[0])) == (1, 2)
    assert isinstance(gone, TemporaryFailure)
    assert [int(it[0]) for it in run(TOGETHER, range(3), alone=True)] == [1, 1, 1]


def test_one_that_ended_at_nothing_harms_nobody(run):
    """Killed for want of memory, say; rows that come then are not to blame, and have one attempt."""
    pids = {int(pid) for (pid,) in run(WHO, range(4))}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))  # with all of their threads
    assert [int(it[0]) for it in run(DOUBLE, np.array([3, 4]))] == [6, 8]


@pytest.fixture
def one(servable):
    """The function of a stage in the only process that there is."""
    found = StageProcesses(1, [servable])

    def run(number, values, call=None):
        stage = servable.methods["all_of_them"].stages[number]
        address = StageAddress("functions", servable.version, "all_of_them", number)
        return found.run(address, stage, [(value,) for value in values], Engine(), call)

    yield run
    found.close()


def test_a_function_that_never_returns_is_ended_with_its_process(one, fifo, threads):
    call = StageCall()
    never = threads.submit(one, HELD, [str(fifo)], call)
    letting_go(fifo)
    call.end()
    (gone,) = never.result(PATIENCE)
    assert isinstance(gone, TemporaryFailure)
    assert int(one(DOUBLE, [4])[0][0]) == 8


def test_what_is_given_up_does_not_begin_and_what_has_begun_goes_on(one, fifo, threads):
    call, other = StageCall(), StageCall()
    held = threads.submit(one, HELD, [str(fifo)], call)
    go = letting_go(fifo)
    waits = threads.submit(one, DOUBLE, [1], other)
    other.give_up()
    call.give_up()
    (gone,) = waits.result(PATIENCE)
    assert isinstance(gone, TemporaryFailure)
    assert not held.done()
    go()
    ((said,),) = held.result(PATIENCE)
    assert said == "now"


def test_what_was_ended_before_it_began_is_ended_at_once(one, fifo):
    call = StageCall()
    call.end()
    (gone,) = one(HELD, [str(fifo)], call)
    assert isinstance(gone, TemporaryFailure)


def test_a_call_that_is_done_is_not_ended(one):
    call = StageCall()
    ((pid,),) = one(WHO, [1], call)
    call.end()
    assert one(WHO, [1]) == [(pid,)]


# The engine, which is to be killed; it says what semaphores it has, and which processes.
ENGINE = """
import json, os, sys
from pathlib import Path
import psutil
from rankmq.engine.loader import load_servable
from rankmq.engine.stage_process import StageAddress
from rankmq.engine.stage_processes import StageProcesses

if __name__ == "__main__":
    servable = load_servable(Path(sys.argv[1]), "functions", require_models=False)
    processes = StageProcesses(2, [servable])

    def run(method, value):
        address = StageAddress("functions", servable.version, method, 0)
        processes.run(address, servable.methods[method].stages[0], [(value,)], None)

    run("plain", 1)
    with open("/proc/self/maps") as maps:
        semaphores = sorted({int(line.split()[4]) for line in maps if "/dev/shm/sem." in line})
    below = [it.pid for it in psutil.Process().children(recursive=True)]
    print(json.dumps([semaphores, below]), flush=True)
    run("held_", sys.argv[2])
"""


@pytest.mark.parametrize("all_at_once", [True, False])
def test_an_engine_that_is_killed_leaves_nothing(servable, tmp_path, fifo, all_at_once):
    """With all of its processes or alone: neither semaphores nor processes, not even where a function never returns."""
    file = tmp_path / "engine.py"
    file.write_text(ENGINE)
    command = [sys.executable, str(file), str(servable.directory.parent), str(fifo)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    engine = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, env=environ)
    try:
        semaphores, below = json.loads(engine.stdout.readline())
        assert below
        letting_go(fifo)
    finally:
        (os.killpg if all_at_once else os.kill)(engine.pid, signal.SIGKILL)
        engine.wait(PATIENCE)
        engine.stdout.close()
    until(lambda: not any(runs(pid) for pid in below))
    left = [it.name for it in Path("/dev/shm").glob("sem.*") if it.stat().st_ino in semaphores]
    assert left == []

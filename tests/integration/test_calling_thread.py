"""Operators of MindSpore on the thread that calls them, in processes of their own: it is decided before the import."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from rankmq.workers.collectives.build import find_compiler
from rankmq.workers.collectives.dynamic_symbols import defines

DEV = str(Path(__file__).parents[2] / ".dev")

RUN = """
import json, logging, os, sys
import numpy as np
from pathlib import Path
said = []
handler = logging.Handler(logging.INFO)
handler.emit = lambda record: said.append([record.levelname, record.getMessage()])
logging.getLogger("rankmq.workers.collectives.calling_thread").addHandler(handler)
logging.getLogger("rankmq").setLevel(logging.INFO)
{first}
from rankmq.schemas.messages import GraphPlan
from rankmq.workers.collectives import calling_thread
from rankmq.workers.mindspore_executor import MindSporeExecutor, ms
{then}
limits, tuning = [], ms.device_context.cpu.op_tuning
limit = tuning.threads_num
tuning.threads_num = lambda count: (limits.append(count), limit(count))

def busy():
    seconds = 0.0
    for task in os.listdir("/proc/self/task"):
        name = open(f"/proc/self/task/{{task}}/comm").read()
        if name.startswith("KernelThread"):
            seconds += int(open(f"/proc/self/task/{{task}}/schedstat").read().split()[0]) / 1e9
    return seconds

executor = MindSporeExecutor(threads={threads})
executor.load([Path(sys.argv[1])], [GraphPlan()])
infos = executor.warm_up()
x = np.random.default_rng(3).normal(size=(256, 256)).astype(np.float32)
y = np.random.default_rng(4).normal(size=(256, 256)).astype(np.float32)
before, spent = calling_thread.calls(), busy()
for _ in range(50):
    out = executor.run(0, [x, y])
wrong = float(abs(out[0] - (x @ y + x)).max())
print(json.dumps([calling_thread.calls() - before, busy() - spent, wrong, limits, said]))
"""


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """z = x @ y + x, in MINDIR."""
    path = tmp_path_factory.mktemp("calling") / "graph.mindir"
    code = """
import sys, numpy as np, mindspore as ms
class Net(ms.nn.Cell):
    def construct(self, x, y):
        return ms.ops.matmul(x, y) + x
zeros = ms.Tensor(np.zeros((256, 256), np.float32))
ms.set_context(mode=ms.GRAPH_MODE)
ms.export(Net(), zeros, zeros, file_name=sys.argv[1], file_format="MINDIR")
"""
    (path.parent / "export.py").write_text(code)
    subprocess.run([sys.executable, str(path.parent / "export.py"), str(path)], check=True, capture_output=True)
    return path


@dataclass
class Ran:
    """How often operators were run on the calling thread, how long MindSpore's own were busy, and what was said."""

    calls: int
    seconds: float
    wrong: float
    limits: list[int]  # for threads of MindSpore's own
    said: list[tuple[str, str]]


def run(graph: Path, *, threads: int | None, first: str = "", then: str = "", **environ: str) -> Ran:
    code = RUN.format(threads=threads, first=first, then=then)
    environment = {**os.environ, "PYTHONPATH": DEV, **environ}
    done = subprocess.run(
        [sys.executable, "-c", code, str(graph)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Ran(*json.loads(done.stdout.splitlines()[-1]))


def test_with_one_thread_operators_run_where_they_are_called(graph):
    ran = run(graph, threads=1)
    assert ran.calls >= 50
    assert ran.seconds < 0.001  # MindSpore's own threads have slept
    assert ran.wrong < 1e-3
    assert (ran.limits, ran.said) == ([], [])


def test_else_mindspore_divides_them_as_ever(graph):
    ran = run(graph, threads=None)
    assert ran.calls == 0
    assert ran.wrong < 1e-3
    assert (ran.limits, ran.said) == ([], [])


NOT_THIS = "from rankmq.workers.collectives import dynamic_symbols; dynamic_symbols.defines = lambda *_: False"
"""A MindSpore that has the function under another name, or in another library."""


@pytest.mark.parametrize(
    ("first", "environ", "why"),
    [
        ("import mindspore", {}, "it was imported before"),
        ("", {"CXX": "no-such-compiler"}, "there is no C++ compiler: install g++, or set CXX"),
        ("", {"CXX": "g++ '-O1"}, "CXX is no command (No closing quotation): g++ '-O1"),
        (
            NOT_THIS,
            {},
            "in this version another function, or another library than lib/libmindspore_core.so, divides their work",
        ),
    ],
)
def test_where_it_cannot_be_had_mindspore_does_as_it_likes(graph, tmp_path, first, environ, why):
    ran = run(graph, threads=1, first=first, **environ, XDG_CACHE_HOME=str(tmp_path))
    assert (ran.calls, ran.limits) == (0, [1])
    assert ran.wrong < 1e-3
    assert ran.said == [["INFO", f"operators run as MindSpore likes: {why}"]]


def test_where_it_does_not_fit_nothing_stands_between_mindspore_and_its_own(graph):
    ran = run(graph, threads=None, first=NOT_THIS, then="assert not calling_thread.use_calling_thread(False)")
    assert (ran.calls, ran.limits, ran.said) == (0, [], [])


FOUND_FIRST = """
import ctypes, importlib.util
(folder,) = importlib.util.find_spec("mindspore").submodule_search_locations
ctypes.CDLL(folder + "/lib/libmindspore_core.so", ctypes.RTLD_GLOBAL)
"""
WRONG = "ms.ops.Neg = lambda: lambda x: x"
FAILS = "ms.ops.Neg = lambda: ms.no_such_thing"


@pytest.mark.parametrize(
    ("first", "then", "why"),
    [
        (FOUND_FIRST, "", "this version does not call our function"),
        ("", WRONG, "an operator gave wrong numbers"),
        ("", FAILS, "an operator failed: module 'mindspore' has no attribute 'no_such_thing'"),
    ],
)
def test_what_does_not_do_as_it_should_is_switched_off_and_said(graph, first, then, why):
    ran = run(graph, threads=1, first=first, then=then)
    assert (ran.calls, ran.limits) == (0, [1])
    assert ran.wrong < 1e-3
    assert ran.said == [["WARNING", f"operators do not run on the thread that calls them, which costs speed: {why}"]]


def test_a_symbol_counts_where_it_is_defined(tmp_path):
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    source, library = tmp_path / "some.cc", tmp_path / "some.so"
    source.write_text('extern "C" { int taken(); int a_given() { return taken(); } static int own() { return 1; } }')
    subprocess.run([*compiler, "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True)
    assert defines(library, "a_given")
    assert [name for name in ("taken", "given", "own", "a_give", "") if defines(library, name)] == []
    cut = tmp_path / "cut.so"
    for size in (0, 10, 63, 64, 1000, library.stat().st_size - 1):
        cut.write_bytes(library.read_bytes()[:size])
        assert not defines(cut, "a_given")
    assert not defines(tmp_path / "missing.so", "a_given")
    assert not defines(source, "a_given")

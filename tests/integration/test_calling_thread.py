"""Operators of MindSpore on the thread that calls them, in processes of their own: it is decided before the import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEV = str(Path(__file__).parents[2] / ".dev")

RUN = """
import json, os, sys
import numpy as np
from pathlib import Path
{first}
from rankmq.schemas.messages import GraphPlan
from rankmq.workers.collectives import calling_thread
from rankmq.workers.mindspore_executor import MindSporeExecutor

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
print(json.dumps([calling_thread.calls() - before, busy() - spent, float(abs(out[0] - (x @ y + x)).max())]))
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


def run(graph: Path, *, threads: int | None, first: str = "", **environ: str) -> tuple[int, float, float]:
    code = RUN.format(threads=threads, first=first)
    environment = {**os.environ, "PYTHONPATH": DEV, **environ}
    done = subprocess.run(
        [sys.executable, "-c", code, str(graph)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    calls, seconds, wrong = json.loads(done.stdout.splitlines()[-1])
    return calls, seconds, wrong


def test_with_one_thread_operators_run_where_they_are_called(graph):
    calls, seconds, wrong = run(graph, threads=1)
    assert calls >= 50
    assert seconds < 0.001  # MindSpore's own threads have slept
    assert wrong < 1e-3


def test_else_mindspore_divides_them_as_ever(graph):
    calls, _, wrong = run(graph, threads=None)
    assert calls == 0
    assert wrong < 1e-3


def test_where_mindspore_was_there_first_it_does_as_it_likes(graph):
    calls, _, wrong = run(graph, threads=1, first="import mindspore")
    assert calls == 0
    assert wrong < 1e-3


def test_without_a_compiler_it_does_too(graph, tmp_path):
    calls, _, wrong = run(graph, threads=1, CXX="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    assert calls == 0
    assert wrong < 1e-3

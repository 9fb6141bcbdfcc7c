"""Memory of the orchestrator and of a rank: more ranks, larger tensors, more requests waiting, more of them answered.

Each figure is the most that was seen while an engine, new for each, answered requests for a while. It is held against
the same with few: one rank, the smallest tensor, a thousand requests. What waits and what was answered are told apart:
however many wait, memory is looked at until a thousand are answered, since answers are remembered (up to a bound).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil

from ...engine.topology import ANSWERS, REQUESTS, requests_queue
from ...schemas import codec
from ...schemas.errors import OperatorError
from ...schemas.messages import Request, TensorSpec
from ...schemas.tensors import from_array, to_array
from ...workers.numpy_executor import Operation, write_graph
from .tools import bare
from .tools.bench import Bench
from .tools.benchmark import Benchmark
from .tools.engine import RunningEngine
from .tools.row import Row, compared

__all__ = ["BENCHMARK"]

_SERVABLE = "bench_echo"
_RANKS = (1, 2, 4, 8)
_SIZES = {"1 KB": 1 << 10, "16 KB": 16 << 10, "256 KB": 256 << 10, "1 MB": 1 << 20, "4 MB": 4 << 20}
_WAITING = (10, 100, 1_000, 10_000, 100_000)
_QUICK_WAITING = (10, 1_000, 2_000)
_ANSWERED = (1_000, 10_000, 50_000)
_QUICK_ANSWERED = (1_000, 2_000)
_FEW = 1_000
_MANY_IN_FLIGHT = 64
_SECONDS = 4.0
_IN_FLIGHT = 8
_LOOK_SECONDS = 0.02
_PATIENCE = 240.0

Array = np.ndarray[Any, Any]

_CONFIGURATION = """\
from rankmq.engine import distributed, register

distributed.declare_servable(rank_size={ranks}, stage_size=1, with_batch_dim=False)


@register.register_method(output_names=["y"])
def echo(x):
    y = register.call_servable(x, subgraph=0)
    return y
"""


def _run(bench: Bench) -> Iterator[Row]:
    seen = {f"{ranks} {'rank' if ranks == 1 else 'ranks'}": _served(bench, ranks, 1 << 10) for ranks in _RANKS}
    yield from _rows(bench, seen, "1 rank")
    seen = {f"tensors of {label}": _served(bench, 2, size) for label, size in _SIZES.items()}
    yield from _rows(bench, seen, "tensors of 1 KB")
    counts = _QUICK_WAITING if bench.quick else _WAITING
    seen = {f"{count:,} requests waiting": _waiting(bench, count) for count in counts}
    yield from _rows(bench, seen, f"{_FEW:,} requests waiting")
    numbers = _QUICK_ANSWERED if bench.quick else _ANSWERED
    seen = {f"{number:,} requests answered": _served(bench, 2, 1 << 10, most=number) for number in numbers}
    yield from _rows(bench, seen, f"{_FEW:,} requests answered")


def _rows(bench: Bench, seen: dict[str, tuple[float, float]], few: str) -> Iterator[Row]:
    for index, who in enumerate(("orchestrator", "a rank")):
        for case, figures in seen.items():
            pair = (figures[index], seen[few][index])
            yield compared(bench.name, f"{who}, {case}, against {few}", "MB", [pair])


def _served(bench: Bench, ranks: int, size: int, *, most: int = 0) -> tuple[float, float]:
    """The most memory, in MB, that the orchestrator and a rank took: for a while, or until so many were answered."""
    what = f"{ranks} {'rank' if ranks == 1 else 'ranks'}, {size:,} bytes"
    with _producer(bench, size) as producer, RunningEngine(bench, _echo(bench, ranks), _SERVABLE) as engine:
        bench.say(f"{what}, {most:,} requests" if most else what)
        with _Memory(engine) as memory:
            if most:
                answers = producer.ask(REQUESTS, _SERVABLE, _MANY_IN_FLIGHT, seconds=_PATIENCE, most=most)
            else:
                answers = producer.ask(REQUESTS, _SERVABLE, _IN_FLIGHT, seconds=bench.seconds(_SECONDS))
    _check(answers, size)
    if most and answers.count < most:
        raise OperatorError(f"{answers.count} of {most} requests were answered within {_PATIENCE:g} s")
    return memory.orchestrator, memory.rank


def _waiting(bench: Bench, count: int) -> tuple[float, float]:
    """The same with so many requests that wait when the engine comes, until the first thousand are answered."""
    size, folder = 1 << 10, _echo(bench, 2)
    with _producer(bench, size) as producer:
        bench.say(f"{count:,} requests waiting")  # in the queue that the engines before have declared
        producer.flood(REQUESTS, _SERVABLE, count)
        with RunningEngine(bench, folder, _SERVABLE) as engine, _Memory(engine) as memory:
            answers = producer.await_answers(min(count, _FEW))
        producer.purge(requests_queue(_SERVABLE))
    _check(answers, size)
    return memory.orchestrator, memory.rank


@contextlib.contextmanager
def _producer(bench: Bench, size: int) -> Iterator[bare.Producer]:
    request = Request(servable=_SERVABLE, method="echo", instances=[{"x": from_array(_vector(size))}])
    with bare.Producer(bench.broker_url, [codec.encode_request(request)], codec.MSGPACK) as producer:
        producer.delete(ANSWERS)  # an orchestrator that begins reads what those before it have answered
        yield producer


def _vector(size: int) -> Array:
    return np.arange(size // 4, dtype=np.float32)


def _check(answers: bare.Answers, size: int) -> None:
    for _, body in answers.bodies:
        row = next(iter(codec.decode_reply(body).outputs), None)
        if row is None or not np.array_equal(to_array(row["y"]), _vector(size)):
            raise OperatorError("a request was answered with something else")


def _echo(bench: Bench, ranks: int) -> Path:
    """A servable that gives back what it is given."""
    folder = bench.folder(f"echo-{ranks}")
    home = folder / _SERVABLE
    if home.is_dir():
        return folder
    home.mkdir()
    (home / "servable_config.py").write_text(_CONFIGURATION.format(ranks=ranks), encoding="utf-8")
    spec = TensorSpec(name="x", dtype="float32", shape=(-1,))
    for rank in range(ranks):
        file = home / "1" / f"device{rank}" / "echo.npz"
        file.parent.mkdir(parents=True)
        output = TensorSpec(name="y", dtype="float32", shape=(-1,))
        write_graph(file, [Operation("identity", ("x",), "y")], {}, [spec], [output])
    return folder


class _Memory:
    """Looks at the engine's processes for as long as the block runs.

    Attributes:
        orchestrator: the most resident memory that it had, in MB.
        rank: the most that any of them had.
    """

    def __init__(self, engine: RunningEngine) -> None:
        self.orchestrator = self.rank = 0.0
        pid, group = engine.group()
        self._processes = [psutil.Process(pid), *(psutil.Process(rank.pid) for rank in group.ranks)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        done = False
        while not done:
            done = self._stop.wait(_LOOK_SECONDS)
            with contextlib.suppress(psutil.Error):  # one ended, which others will say
                first, *ranks = (process.memory_info().rss / 1e6 for process in self._processes)
                self.orchestrator = max(self.orchestrator, first)
                self.rank = max(self.rank, *ranks)


BENCHMARK = Benchmark(90, "memory with more ranks, larger tensors, and more requests waiting and answered", _run)

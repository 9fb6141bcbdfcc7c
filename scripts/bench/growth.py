"""Memory of the orchestrator and of a rank, as there come to be more ranks, larger tensors, and more requests waiting.

Each figure is the most that was seen while an engine, new for each, answered requests for a while. It is held against
the same with few: one rank, the smallest tensor, a thousand requests waiting.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

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
_FEW = 1_000
_SECONDS = 4.0
_IN_FLIGHT = 8
_LOOK_SECONDS = 0.02

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
    seen = {f"{count:,} requests waiting": _served(bench, 2, 1 << 10, waiting=count) for count in counts}
    yield from _rows(bench, seen, f"{_FEW:,} requests waiting")


def _rows(bench: Bench, seen: dict[str, tuple[float, float]], few: str) -> Iterator[Row]:
    for index, who in enumerate(("orchestrator", "a rank")):
        for case, figures in seen.items():
            pair = (figures[index], seen[few][index])
            yield compared(bench.name, f"{who}, {case}, against {few}", "MB", [pair])


def _served(bench: Bench, ranks: int, size: int, waiting: int = 0) -> tuple[float, float]:
    """The most memory, in MB, that the orchestrator and a rank took."""
    x = np.arange(size // 4, dtype=np.float32)
    request = Request(servable=_SERVABLE, method="echo", instances=[{"x": from_array(x)}])
    seconds = bench.seconds(_SECONDS)
    with bare.Producer(bench.broker_url, [codec.encode_request(request)], codec.MSGPACK) as producer:
        producer.delete(ANSWERS)  # an orchestrator that begins reads what those before it have answered
        with RunningEngine(bench, _echo(bench, ranks), _SERVABLE) as engine:
            bench.say(f"{ranks} {'rank' if ranks == 1 else 'ranks'}, {size:,} bytes, {waiting:,} waiting")
            orchestrator, group = engine.group()
            with _Memory([orchestrator]) as mine, _Memory([rank.pid for rank in group.ranks]) as of_ranks:
                if waiting:
                    answers = producer.flood(REQUESTS, _SERVABLE, waiting, seconds=seconds)
                else:
                    answers = producer.ask(REQUESTS, _SERVABLE, _IN_FLIGHT, seconds=seconds)
        producer.purge(requests_queue(_SERVABLE))
    for _, body in answers.bodies:
        row = next(iter(codec.decode_reply(body).outputs), None)
        if row is None or not np.array_equal(to_array(row["y"]), x):
            raise OperatorError("a request was answered with something else")
    return mine.most, of_ranks.most


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
    """Looks at processes for as long as the block runs.

    Attributes:
        most: the most resident memory that any of them had, in MB.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self.most = 0.0
        self._processes = [psutil.Process(pid) for pid in pids]
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
        while not self._stop.wait(_LOOK_SECONDS):
            for process in self._processes:
                with contextlib.suppress(psutil.Error):  # it ended, which others will say
                    self.most = max(self.most, process.memory_info().rss / 1e6)


BENCHMARK = Benchmark(90, "memory with more ranks, larger tensors, and more requests waiting", _run)

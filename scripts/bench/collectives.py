"""How long an AllReduce through shared memory takes eight processes, outside of a graph."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from ...schemas.errors import OperatorError
from ...workers.collectives import SharedGroup, library, segment_name
from .tools.bench import Bench
from .tools.benchmark import Benchmark
from .tools.children import Child, Children, Line
from .tools.rounds import in_turns
from .tools.row import Row, compared, percentile

__all__ = ["BENCHMARK"]

_RANKS = 8
_SIZES = {"4 KB": 4 << 10, "64 KB": 64 << 10, "1 MB": 1 << 20}
_ROUNDS = 9
_CALLS = {"4 KB": 500, "64 KB": 500, "1 MB": 100}
_PATIENCE = 60.0


def _run(bench: Bench) -> Iterator[Row]:
    library()  # compiled once, before the ranks ask for it all at once
    name = segment_name("bench", 1)
    ranks = bench.enter(Children(Child(f"rank {rank}", _rank, name, rank, _RANKS) for rank in range(_RANKS)))
    ranks.hear(_PATIENCE)
    for label, size in _SIZES.items():
        bench.say(label)
        calls = bench.count(_CALLS[label])

        def times(kind: str, size: int = size, calls: int = calls) -> list[float]:
            ranks.tell((kind, size // 4, calls))
            ours: list[float] = ranks.hear(_PATIENCE)[0]
            return ours

        pairs = in_turns(bench.rounds(_ROUNDS), lambda: times("all_reduce"), lambda: times("barrier"))
        for percent in (50, 99):
            yield compared(
                bench.name,
                f"AllReduce of {label} over {_RANKS} processes, p{percent}, against a barrier",
                "ms",
                [(percentile(ours, percent), percentile(theirs, percent)) for ours, theirs in pairs],
            )


def _rank(line: Line, name: str, rank: int, size: int) -> None:
    """One rank: milliseconds of each call, of as many as it is asked for."""
    group = SharedGroup(library(), timeout=_PATIENCE)
    group.open(name, rank, size)
    line.say("open")
    while True:
        kind, elements, calls = line.hear()
        given = np.arange(elements, dtype=np.float32) % 1000 * (rank + 1)
        whole = np.arange(elements, dtype=np.float32) % 1000 * (size * (size + 1) // 2)
        if kind == "all_reduce" and not np.array_equal(group.all_reduce(given), whole):
            raise OperatorError("a wrong sum")
        group.barrier()
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            if kind == "all_reduce":
                group.all_reduce(given)
            else:
                group.barrier()
            times.append((time.perf_counter() - began) * 1e3)
        line.say(times)


BENCHMARK = Benchmark(20, "AllReduce through shared memory over eight processes, outside of a graph", _run)

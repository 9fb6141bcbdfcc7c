"""How fast a message is made and read: a tensor from its array into a request, and out of it into an array again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...schemas import codec
from ...schemas.errors import OperatorError
from ...schemas.messages import Request
from ...schemas.tensors import Tensor, from_array, to_array
from .tools.bench import Bench
from .tools.benchmark import Benchmark
from .tools.rounds import in_turns
from .tools.row import Row, compared

__all__ = ["BENCHMARK"]

_SIZES = {"4 KB": 4 << 10, "48 KB": 48 << 10, "1 MB": 1 << 20, "16 MB": 16 << 20}
_ROUNDS = 15
_SECONDS = 0.2

_Array = np.ndarray[Any, Any]


def _run(bench: Bench) -> Iterator[Row]:
    for label, size in _SIZES.items():
        bench.say(label)
        yield _measured(bench, label, np.random.default_rng(size).standard_normal(size // 4, np.float32))


def _measured(bench: Bench, label: str, array: _Array) -> Row:
    if not np.array_equal(_there_and_back(array), array):
        raise OperatorError(f"a tensor of {label} came back as another one")
    seconds = bench.seconds(_SECONDS)
    pairs = in_turns(
        bench.rounds(_ROUNDS),
        lambda: array.nbytes / _seconds_of(lambda: _there_and_back(array), seconds) / 1e9,
        lambda: array.nbytes / _seconds_of(array.copy, seconds) / 1e9,
    )
    return compared(bench.name, f"{label}, encoded and decoded", "GB/s", pairs)


def _there_and_back(array: _Array) -> _Array:
    request = Request(servable="matmul", method="fun2", instances=[{"x": from_array(array)}])
    value = codec.decode_request(codec.encode_request(request)).instances[0]["x"]
    if not isinstance(value, Tensor):
        raise OperatorError(f"a tensor came back as {type(value).__name__}")
    return to_array(value)


def _seconds_of(work: Callable[[], object], seconds: float) -> float:
    """Seconds that one call takes, of as many as there are in so long."""
    calls, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds or not calls:
        work()
        calls += 1
    return took / calls


BENCHMARK = Benchmark(10, "GB/s of a tensor encoded and decoded, against a copy of its bytes into new memory", _run)

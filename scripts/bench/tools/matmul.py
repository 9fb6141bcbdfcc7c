"""The matmul example: its servable with numpy graphs, its requests, and whether an answer is right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ....schemas import codec
from ....schemas.errors import OperatorError
from ....schemas.messages import Request, TensorSpec, Value
from ....schemas.tensors import from_array, to_array
from ....workers.numpy_executor import Operation, write_graph
from .bench import Bench
from .export import configured, exported

__all__ = ["METHOD", "SERVABLE", "WEIGHT", "Asking", "example_on_mindspore", "example_on_numpy"]

SERVABLE, METHOD = "matmul", "fun2"
_RANKS = 8
_ROWS, _COLUMNS, _WIDTH = 128, 96, 16
_VALUE = 1.5  # of the weight of the example's second graph, everywhere

Array = np.ndarray[Any, Any]

WEIGHT: Array = np.full((_COLUMNS, _WIDTH), _VALUE, np.float32)


class Asking:
    """A request to the example's second graph: y = -(x @ w).

    Args:
        instances: how many instances it has, each x of 128 x 96 float32.
    """

    def __init__(self, instances: int) -> None:
        self.instances = instances
        random = np.random.default_rng(5)
        self.inputs = [random.normal(size=(_ROWS, _COLUMNS)).astype(np.float32) for _ in range(instances)]
        self.outputs = [-(x.astype(np.float64) @ WEIGHT) for x in self.inputs]

    @cached_property
    def body(self) -> bytes:
        """The request as it is published."""
        rows: list[dict[str, Value]] = [{"x": from_array(x)} for x in self.inputs]
        return codec.encode_request(Request(servable=SERVABLE, method=METHOD, instances=rows))

    def check(self, replies: Sequence[bytes]) -> None:
        """Makes sure that answers are right.

        Raises:
            OperatorError: one is not.
        """
        for body in replies:
            reply = codec.decode_reply(body)
            if reply.error is not None or reply.errors:
                first = reply.error or reply.errors[0].error
                raise OperatorError(f"a request was answered with {first.code}: {first.message}")
            for row, wanted in zip(reply.outputs, self.outputs, strict=True):
                if row is None or not np.allclose(to_array(row["y"]), wanted, rtol=1e-3, atol=1e-2):
                    raise OperatorError("a request was answered with wrong numbers")


def example_on_mindspore(bench: Bench) -> Path:
    """The folder of the example as it is: divided over eight ranks, with collectives."""
    return exported(bench, "matmul")


def example_on_numpy(bench: Bench, ranks: int = _RANKS) -> Path:
    """The folder of the example with graphs in numpy: every rank computes everything, rank 0 answers."""
    folder = bench.folder(f"matmul-numpy-{ranks}")
    home = folder / SERVABLE
    if home.is_dir():
        return folder
    home.mkdir()
    text = (bench.example("matmul") / SERVABLE / "servable_config.py").read_text(encoding="utf-8")
    (home / "servable_config.py").write_text(configured(text, rank_size=ranks), encoding="utf-8")
    operations = [Operation("matmul", ("x", "w"), "p"), Operation("negative", ("p",), "y")]
    inputs = [TensorSpec(name="x", dtype="float32", shape=(_ROWS, _COLUMNS))]
    outputs = [TensorSpec(name="y", dtype="float32", shape=(_ROWS, _WIDTH))]
    for rank in range(ranks):
        for number, weight in enumerate((0.5, _VALUE)):
            file = folder / "model" / f"device{rank}" / f"matmul_{number}.npz"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_graph(file, operations, {"w": np.full((_COLUMNS, _WIDTH), weight, np.float32)}, inputs, outputs)
    return folder

"""Ranks that hold the second graph of the matmul example and run it over rows of a file, without a broker."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from ....schemas.messages import GraphPlan
from ....workers.collectives import segment_name
from ....workers.executor import operator_threads
from .children import Child, Children, Line

__all__ = ["DirectRanks"]

_RANKS = 8
_START_SECONDS = 180.0
_RUN_SECONDS = 600.0


class DirectRanks:
    """Eight processes, each with its graph and all rows. They run them one after the other, as the engine's ranks do.

    Args:
        folder: of the example, or of its likeness in numpy.
        kind: of their executor: "mindspore" or "numpy".
        rows: a .npy file, float32 [rows, 128, 96].
    """

    def __init__(self, folder: Path, kind: str, rows: Path) -> None:
        suffix, address = (".mindir", segment_name("bench-matmul", 1)) if kind == "mindspore" else (".npz", "")
        files = [folder / "model" / f"device{rank}" / f"matmul_1{suffix}" for rank in range(_RANKS)]
        self._ranks = Children(
            Child(f"rank {rank}", _rank, kind, rank, file, address, rows) for rank, file in enumerate(files)
        )

    def __enter__(self) -> DirectRanks:
        try:
            self._ranks.hear(_START_SECONDS)
        except BaseException as error:
            self._ranks.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._ranks.__exit__(*error)

    def rows_per_second(self) -> float:
        """Has the ranks run all rows.

        Raises:
            OperatorError: a rank failed.
        """
        began = time.perf_counter()
        self._ranks.tell("run")
        count: int = self._ranks.hear(_RUN_SECONDS)[0]
        return count / (time.perf_counter() - began)


def _rank(line: Line, kind: str, rank: int, file: Path, address: str, rows: Path) -> None:
    executor: Any
    if kind == "mindspore":
        from ....workers.mindspore_executor import MindSporeExecutor

        executor = MindSporeExecutor(operator_threads(0, _RANKS))  # as an agent has it
    else:
        from ....workers.numpy_executor import NumpyExecutor

        executor = NumpyExecutor()
    executor.load([file], [GraphPlan()])
    executor.open_group("shm" if address else "none", rank, _RANKS, address)
    executor.warm_up()
    x = np.load(rows, mmap_mode="r")
    line.say("ready")
    try:
        while True:
            line.hear()
            for row in x:
                executor.run(0, [row])
            line.say(len(x))
    finally:
        executor.close()

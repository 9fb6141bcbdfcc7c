"""Servables on disk for the numpy executor: graphs as .npz files, per version and rank, beside their configuration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rankmq.schemas.messages import TensorSpec
from rankmq.workers.numpy_executor import Operation, write_graph

WORDS = """\
import time
import numpy as np
from rankmq.engine import distributed, register
from rankmq.engine.distributed import all_equal, concat, from_rank, replicate, shard, subgraph, sum
from rankmq.engine.register import PipelineServable
"""


def op(kind: str, inputs: str, output: str, **parameters: Any) -> Operation:
    """An operation; `inputs` are names with blanks between."""
    return Operation(kind, tuple(inputs.split()), output, parameters)


def spec(name: str, *shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


@dataclass(frozen=True)
class Graph:
    operations: Sequence[Operation]
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_graph(path, self.operations, self.weights, self.inputs, self.outputs)


def negated_matmul(weight: np.ndarray, rows: int = 128) -> Graph:
    """The net of the original: -(x @ weight)."""
    columns, width = weight.shape
    return Graph(
        [op("matmul", "x w", "p"), op("negative", "p", "y")],
        [spec("x", rows, columns)],
        [spec("y", rows, width)],
        {"w": weight},
    )


def write_servable(
    directory: Path,
    name: str,
    configuration: str,
    graphs: Mapping[str, Callable[[int], Graph]] | None = None,
    *,
    ranks: int = 1,
    version: int = 1,
) -> None:
    """Write a servable, or a further version of one.

    Args:
        directory: the folder of the servable's folder.
        name: the servable's name.
        configuration: the text of its servable_config.py.
        graphs: by file name, in the order of the subgraphs, a rank's graph.
        ranks: how many ranks there are.
        version: the version whose graphs these are.
    """
    home = directory / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "servable_config.py").write_text(configuration)
    for file, graph in (graphs or {}).items():
        for rank in range(ranks):
            graph(rank).write(home / str(version) / f"device{rank}" / f"{file}.npz")

"""The matmul servable of a chaos run: graphs in numpy, or those of the example, with collectives, in MindSpore."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...schemas.errors import ConfigurationError, ModelError
from ...schemas.messages import TensorSpec
from ...workers.numpy_executor import Operation, write_graph
from .questions import COLUMNS, SERVABLE, WIDTH

__all__ = ["Made", "make_numpy", "make_with_collectives"]

_NUMPY_ROWS = 16
_EXAMPLE_ROWS = 128
_MOST = 4
_EXPORT_SECONDS = 300.0

_CONFIGURATION = """\
import numpy as np
from rankmq.engine import distributed, register
from rankmq.engine.register import PipelineServable

distributed.declare_servable(
    rank_size={ranks},
    stage_size=1,
    with_batch_dim=False,
    subgraphs=[
        distributed.subgraph(inputs=[distributed.shard(1)], outputs=[distributed.sum()]),
        distributed.subgraph(inputs=[distributed.shard(1)], outputs=[distributed.sum()]),
    ],
)


def twice(x):
    return np.add(x, x)


@register.register_method(output_names=["y"])
def fun1(x):
    x = register.call_preprocess(twice, x)
    y = register.call_servable(x, subgraph=0)
    return y


@register.register_method(output_names=["y"])
def fun2(x):
    y = register.call_servable(x, subgraph=1)
    return y


first = PipelineServable(servable_name="matmul", method="fun1", version_number=0)
second = PipelineServable(servable_name="matmul", method="fun2", version_number=0)


@register.register_pipeline(output_names=["x", "z"])
def predict(x, y):
    return first.run(x), second.run(y)
"""


@dataclass(frozen=True, slots=True)
class Made:
    """A servable that was made.

    Attributes:
        home: its folder.
        weights: the folder that has weights.npz.
        rows: of the inputs.
    """

    home: Path
    weights: Path
    rows: int


def make_numpy(folder: Path, ranks: int, seed: int) -> Made:
    """Writes it with graphs in numpy: each rank has some rows of both weights, and the ranks' outputs are added up.

    Args:
        folder: for the servable's folder.
        ranks: how many; divides 96.
        seed: of the weights, which are whole numbers.

    Raises:
        ConfigurationError: a number of ranks that does not divide 96.
    """
    if COLUMNS % ranks:
        raise ConfigurationError(f"--ranks {ranks}: it must divide {COLUMNS}")
    home = folder / SERVABLE
    chance = np.random.default_rng(seed)
    weights = chance.integers(-_MOST, _MOST, (2, COLUMNS, WIDTH), endpoint=True).astype(np.float32)
    operations = [Operation("matmul", ("x", "w"), "p"), Operation("negative", ("p",), "y")]
    inputs = [TensorSpec(name="x", dtype="float32", shape=(_NUMPY_ROWS, COLUMNS // ranks))]
    outputs = [TensorSpec(name="y", dtype="float32", shape=(_NUMPY_ROWS, WIDTH))]
    for number, weight in enumerate(weights):
        for rank, part in enumerate(np.split(weight, ranks)):
            path = home / "1" / f"device{rank}" / f"matmul_{number}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_graph(path, operations, {"w": part}, inputs, outputs)
    (home / "servable_config.py").write_text(_CONFIGURATION.format(ranks=ranks))
    np.savez(folder / "weights.npz", matmul_0=weights[0], matmul_1=weights[1])
    return Made(home, folder, _NUMPY_ROWS)


async def make_with_collectives(folder: Path, example: Path, ranks: int, communication: str, seed: int) -> Made:
    """Exports the matmul example, in which the ranks talk within the graphs, with random weights.

    Args:
        folder: for the servable's folder.
        example: examples/matmul of a clone.
        ranks: 1, 2, 4 or 8.
        communication: "shm" or "mccl".
        seed: of the weights.

    Raises:
        ConfigurationError: the example is not there, or has no such number of ranks.
        ModelError: the export failed; with its last line.
    """
    if ranks not in (1, 2, 4, 8):
        raise ConfigurationError(f"--ranks {ranks}: the example's graphs are for 1, 2, 4 or 8")
    script, configuration = example / "export_model.py", example / SERVABLE / "servable_config.py"
    if not (script.is_file() and configuration.is_file()):
        raise ConfigurationError(f"no export_model.py in {example}: run this in a clone of rankmq, or give --example")
    log_file = folder / "export.log"
    options = ("--output", str(folder), "--random", str(seed), "--rank-size", str(ranks))
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(script), *options),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "GLOG_v": "3"},
        )
        try:
            code = await asyncio.wait_for(process.wait(), _EXPORT_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if code:
        last = (log_file.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise ModelError(f"the export of the graphs failed: {last}")
    text = configuration.read_text().replace("rank_size=8", f"rank_size={ranks}")
    text = text.replace("with_batch_dim=False", f"with_batch_dim=False, communication={communication!r}")
    home = folder / SERVABLE
    home.mkdir()
    (home / "servable_config.py").write_text(text)
    shutil.copyfile(folder / "model" / "weights.npz", folder / "weights.npz")
    return Made(home, folder, _EXAMPLE_ROWS)

"""Small graphs as ranks compute them in numpy, and what they give over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from rankmq.engine.layouts import AllEqual, Concat, FromRank, Replicate, Shard, Sum
from rankmq.engine.servable import Method, Model, Pipeline, Servable, Subgraph
from rankmq.schemas.messages import (
    GraphInfo,
    TensorSpec,
)

Array = np.ndarray[Any, Any]
BAD = 13
"""A row with this number makes its graph raise."""
DEADLY = 666
"""A row with this number takes the process down."""
CONFUSING = 99
"""A row with this number gives another result on every rank."""


class Died(Exception):
    """The process of the rank went down with its graph."""


# The graphs, as one rank computes them; each works with and without a batch axis in front. What they give over all
# ranks is said by `expected`, which knows nothing of ranks.


def _scale(rank: int, arrays: Sequence[Array]) -> list[Array]:
    (x,) = arrays
    return [x * 2 + 1]


def _parts(rank: int, arrays: Sequence[Array]) -> list[Array]:
    a, b = arrays
    return [b.sum(axis=-1), b * 10 + a[..., :1]]


def _any_size(rank: int, arrays: Sequence[Array]) -> list[Array]:
    (x,) = arrays
    return [x + 1 + rank * (x == CONFUSING)]


def _kept(rank: int, arrays: Sequence[Array]) -> list[Array]:
    x, slot = arrays
    assert slot.dtype == np.int32
    return [x + 1]


GRAPHS: tuple[Callable[[int, Sequence[Array]], list[Array]], ...] = (_scale, _parts, _any_size, _kept)
"""The last, with the input `slot`, is there where it is asked for (`kept`)."""


def expected(subgraph: int, row: Sequence[Array]) -> tuple[Array, ...]:
    """What a row gives, in plain numpy."""
    if subgraph == 0:
        return (row[0] * 2 + 1,)
    if subgraph == 1:
        a, b = row
        return (np.asarray(b.sum()), b * 10 + a[0])
    return (row[0] + 1,)


def infos(
    ranks: int, *, stacked: bool, rows: int = -1, collectives: bool = False, kept: bool = False
) -> tuple[GraphInfo, ...]:
    """The graphs as each rank sees them: its shard."""

    def one(name: str, inputs: Iterable[tuple[str, tuple[int, ...]]], outputs: Iterable[tuple[str, tuple[int, ...]]]):
        def specs(given: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(
                    name="slot" if dtype == "int32" else "",
                    dtype=dtype,
                    shape=(rows, *shape) if stacked else shape,
                )
                for dtype, shape in given
            )

        return GraphInfo(file=name, digest=name, inputs=specs(inputs), outputs=specs(outputs), collectives=collectives)

    held = (one("kept", [("float64", (-1,)), ("int32", ())], [("float64", (-1,))]),) if kept else ()
    return (
        one("scale", [("float32", (3,))], [("float32", (3,))]),
        one("parts", [("int64", (2,)), ("int64", (2,))], [("int64", ()), ("int64", (2,))]),
        one("any", [("float64", (-1,))], [("float64", (-1,))]),
        *held,
    )


def servable(
    ranks: int = 3,
    *,
    stacked: bool = True,
    batch_size: int | None = None,
    methods: dict[str, Method] | None = None,
    pipelines: dict[str, Pipeline] | None = None,
    name: str = "matmul",
    version: int = 1,
    models: bool = True,
    slots: int = 0,
    max_wait: float = 0.0,
    kept: bool = False,
) -> Servable:
    """A servable with the graphs; `parts` gets `b` sharded and gives a sum and a concatenation."""
    axis = 1 if stacked else 0
    subgraphs = (
        Subgraph(outputs=(FromRank(ranks - 1),)),
        Subgraph(inputs=(Replicate(), Shard(axis)), outputs=(Sum(), Concat(axis))),
        Subgraph(outputs=(AllEqual(),)),
        *([Subgraph()] if kept else []),
    )
    given = {"batch_size": batch_size, "subgraphs": subgraphs, "slots": slots, "max_wait": max_wait}
    model = Model("m", ranks, 1, with_batch_dim=stacked, **given)
    return Servable(
        name=name,
        version=version,
        directory=Path("/servables") / name,
        file=Path("/servables") / name / "servable_config.py",
        models=(model,) if models else (),
        methods=methods or {},
        pipelines=pipelines or {},
        calls=(),
        rank_size=ranks if models else 0,
        stage_size=1 if models else 0,
        communication="auto",
        model_files=None,
    )


def a_row(subgraph: int, random: Random, *, special: int | None = None) -> tuple[Array, ...]:
    """A good row of a subgraph, or one with a special number in it."""
    if subgraph == 0:
        row = (np.array([random.randrange(12) for _ in range(3)], np.float32),)
    elif subgraph == 1:
        row = (
            np.array([random.randrange(12) for _ in range(2)], np.int64),
            np.array([random.randrange(12) for _ in range(6)], np.int64),
        )
    else:
        row = (np.array([random.randrange(12) for _ in range(random.randrange(1, 4))], np.float64),)
    if special is not None:
        row[-1][0] = special
    return row

"""One subgraph for every layout, in groups of any size that divides 8, and what each must give, in plain numpy."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.e2e.graphs import WORDS, Graph, op, spec, write_servable

IN, OUT, ROWS = 16, 8, 24
BATCH = 8
LIMIT = 3
RANDOM = np.random.default_rng(7)
RANK = [op("rank", "", "r64"), op("cast", "r64", "r", dtype="float32")]


def random(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


W = random(IN, OUT)

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Case:
    """A subgraph of a servable of `size` ranks.

    Attributes:
        layout: what the configuration says of it: inputs and outputs.
        graph: by size and rank.
        inputs: the shapes of an instance's inputs.
        expected: by size, the outputs for an instance's inputs.
    """

    layout: str
    graph: Callable[[int, int], Graph]
    inputs: tuple[tuple[int, ...], ...]
    expected: Callable[..., Arrays]


def _rows(rank: int, size: int) -> np.ndarray:
    """A rank's rows of the weight."""
    return np.split(W, size, axis=0)[rank]


def _columns(rank: int, size: int) -> np.ndarray:
    return np.split(W, size, axis=1)[rank]


def _product(weight: np.ndarray, *leading: int, plus_rank: bool = False) -> Graph:
    """x @ weight, and the rank's number added where it should be seen whose output it is."""
    ending = [*RANK, op("add", "p r", "y")] if plus_rank else [op("identity", "p", "y")]
    shapes = (*leading, weight.shape[0]), (*leading, weight.shape[1])
    return Graph([op("matmul", "x w", "p"), *ending], [spec("x", *shapes[0])], [spec("y", *shapes[1])], {"w": weight})


def _ranks_of(count: int, size: int) -> np.ndarray:
    """For each of `count` rows dealt out to the ranks, the rank that got it."""
    return np.repeat(np.arange(size), count // size)[:, None].astype(np.float32)


def _mixed(size: int, rank: int) -> Graph:
    return Graph(
        [op("matmul", "x w", "p"), op("add", "p b", "y"), op("transpose", "x", "t")],
        [spec("x", ROWS, IN // size), spec("b", ROWS, OUT)],
        [spec("y", ROWS, OUT), spec("t", IN // size, ROWS)],
        {"w": _rows(rank, size)},
    )


def _biased(size: int, rank: int) -> Graph:
    return Graph(
        [op("matmul", "x w", "p"), op("add", "p b", "y")],
        [spec("x", -1, IN), spec("b", OUT)],
        [spec("y", -1, OUT)],
        {"w": W},
    )


_WHOLE, _ROW = ((ROWS, IN),), ((IN,),)

# The rows of a request travel one by one, as whole instances of (24, 16).
PLAIN = {
    "first_rank": Case(
        "[replicate()], [from_rank()]",
        lambda size, rank: _product(W, ROWS, plus_rank=True),
        _WHOLE,
        lambda size, x: (x @ W,),
    ),
    "last_rank": Case(
        "[replicate()], [from_rank(SIZE - 1)]",
        lambda size, rank: _product(W, ROWS, plus_rank=True),
        _WHOLE,
        lambda size, x: (x @ W + (size - 1),),
    ),
    "shard_rows": Case(
        "[shard(0)], [concat(0)]",
        lambda size, rank: _product(W, ROWS // size, plus_rank=True),
        _WHOLE,
        lambda size, x: (x @ W + _ranks_of(ROWS, size),),
    ),
    "shard_columns": Case(
        "[shard(1)], [sum()]",
        lambda size, rank: _product(_rows(rank, size), ROWS),
        _WHOLE,
        lambda size, x: (x @ W,),
    ),
    "join_columns": Case(
        "[replicate()], [concat(1)]",
        lambda size, rank: _product(_columns(rank, size), ROWS),
        _WHOLE,
        lambda size, x: (x @ W,),
    ),
    "agree": Case(
        "[replicate()], [all_equal()]",
        lambda size, rank: _product(W, ROWS),
        _WHOLE,
        lambda size, x: (x @ W,),
    ),
    "mixed": Case(
        "[shard(1), replicate()], [sum(), concat(0)]",
        _mixed,
        ((ROWS, IN), (ROWS, OUT)),
        lambda size, x, b: (x @ W + size * b, x.T),
    ),
    "disagree": Case(
        "[replicate()], [all_equal()]",
        lambda size, rank: _product(W, ROWS, plus_rank=True),
        _WHOLE,
        lambda size, x: (x @ W,),  # and an error where there are several ranks
    ),
}

# The rows of a request, (16,) each, are stacked; the graphs take any number of them.
STACKED = {
    "stacked": Case(
        "[replicate()], [from_rank(SIZE - 1)]",
        lambda size, rank: _product(W, -1, plus_rank=True),
        _ROW,
        lambda size, x: (x @ W + (size - 1),),
    ),
    "stacked_shard_rows": Case(  # data-parallel: each rank gets some of the rows
        "[shard(0)], [concat(0)]", lambda size, rank: _product(W, -1), _ROW, lambda size, x: (x @ W,)
    ),
    "stacked_shard_columns": Case(
        "[shard(1)], [sum()]", lambda size, rank: _product(_rows(rank, size), -1), _ROW, lambda size, x: (x @ W,)
    ),
    "stacked_join_columns": Case(
        "[replicate()], [concat(1)]",
        lambda size, rank: _product(_columns(rank, size), -1),
        _ROW,
        lambda size, x: (x @ W,),
    ),
    "stacked_agree": Case(
        "[replicate()], [all_equal()]", lambda size, rank: _product(W, -1), _ROW, lambda size, x: (x @ W,)
    ),
    "biased": Case(
        "[replicate(), replicate()], [from_rank()]", _biased, ((IN,), (OUT,)), lambda size, x, b: (x @ W + b,)
    ),
}

# The graphs take 8 rows and no other number.
STATIC = {
    "static": Case(
        "[replicate()], [from_rank()]", lambda size, rank: _product(W, BATCH), _ROW, lambda size, x: (x @ W,)
    ),
    "static_shard_rows": Case(
        "[shard(0)], [concat(0)]", lambda size, rank: _product(W, BATCH // size), _ROW, lambda size, x: (x @ W,)
    ),
}

# At most 3 rows a step, although the graph takes more.
LIMITED = {
    "limited": Case("[replicate()], [from_rank()]", lambda size, rank: _product(W, -1), _ROW, lambda size, x: (x @ W,)),
}

CASES = {**PLAIN, **STACKED, **STATIC, **LIMITED}


def write_layouts(directory: Path, size: int) -> str:
    """Write the servable `layouts<size>`; each case is a method of it. Gives its name."""
    text = WORDS + f"\nSIZE = {size}\n"
    for model, cases, how in (
        ("plain", PLAIN, "with_batch_dim=False"),
        ("stacked", STACKED, "with_batch_dim=True, without_batch_dim_inputs=1"),
        ("static", STATIC, "with_batch_dim=True"),
        ("limited", LIMITED, f"with_batch_dim=True, batch_size={LIMIT}"),
    ):
        graphs = "".join(f"    subgraph('{name}.npz', {case.layout}),\n" for name, case in cases.items())
        text += f"{model}_model = distributed.declare_servable({size}, 1, {how}, subgraphs=[\n{graphs}])\n"
        for number, (name, case) in enumerate(cases.items()):
            inputs = ", ".join("xb"[: len(case.inputs)])
            outputs = [f"y{index}" for index in range(case.layout.partition("], [")[2].count("("))]
            text += (
                f"@register.register_method(output_names={outputs})\ndef {name}({inputs}):\n"
                f"    return register.add_stage({model}_model, {inputs}, subgraph={number}, "
                f"outputs_count={len(outputs)})\n"
            )
    name = f"layouts{size}"
    graphs = {file: (lambda rank, case=case: case.graph(size, rank)) for file, case in CASES.items()}
    write_servable(directory, name, text, graphs, ranks=size)
    return name

"""The words of a servable configuration for a model that several ranks hold."""

from __future__ import annotations

from collections.abc import Sequence

from .declaration import current_declaration
from .layouts import InputLayout, OutputLayout, all_equal, concat, from_rank, replicate, shard
from .layouts import sum_ranks as sum
from .servable import Model, Subgraph

__all__ = [
    "all_equal",
    "concat",
    "declare_servable",
    "from_rank",
    "replicate",
    "shard",
    "subgraph",
    "sum",
]


def declare_servable(
    rank_size: int,
    stage_size: int,
    with_batch_dim: bool = True,
    without_batch_dim_inputs: int | Sequence[int] | None = None,
    enable_pipeline_infer: bool = False,
    *,
    subgraphs: Sequence[Subgraph | str] | None = None,
    batch_size: int | None = None,
    communication: str = "auto",
) -> Model:
    """Declare a model that is held by a group of ranks.

    Args:
        rank_size: how many ranks hold it.
        stage_size: into how many stages of the same size the ranks are divided.
        with_batch_dim: the first axis of inputs and outputs is the batch.
        without_batch_dim_inputs: numbers of inputs without a batch axis, where the others have one.
        enable_pipeline_infer: accepted for the sake of older files; has no effect here.
        subgraphs: what each subgraph is, in the order of their numbers: a file name with `{rank}` for the rank, or
            `subgraph(...)`. None: as many as there are model files, inputs replicated, outputs from one rank.
        batch_size: rows of a batch at most, for a model with a batch axis.
        communication: how the ranks talk within a graph: "auto", "none", "mccl" or "hccl".

    Returns:
        The model, for `register.add_stage` and `Model.call`.

    Raises:
        ServableError: a value that cannot be.
    """
    declaration = current_declaration("distributed.declare_servable")
    if not isinstance(enable_pipeline_infer, bool):
        raise declaration.error(f"enable_pipeline_infer must be True or False, not {enable_pipeline_infer!r}")
    declared: tuple[Subgraph, ...] | None = None
    if subgraphs is not None:
        if not isinstance(subgraphs, list | tuple) or not subgraphs:
            raise declaration.error("subgraphs must be a list with a file name or subgraph(...) for each")
        declared = tuple(
            graph if isinstance(graph, Subgraph) else declaration.subgraph(graph, None, None) for graph in subgraphs
        )
        if len({graph.file is None for graph in declared}) > 1:
            raise declaration.error("subgraphs: either all have a file or none has")
    return declaration.add_model(
        name=declaration.name,
        rank_size=rank_size,
        stage_size=stage_size,
        with_batch_dim=with_batch_dim,
        without_batch_dim_inputs=without_batch_dim_inputs,
        batch_size=batch_size,
        subgraphs=declared,
        communication=communication,
    )


def subgraph(
    file: str | None = None,
    inputs: Sequence[InputLayout] | None = None,
    outputs: Sequence[OutputLayout] | None = None,
) -> Subgraph:
    """One of the `subgraphs` of `declare_servable`.

    Args:
        file: its file name, `{rank}` for the rank; None where the model files are found by their place.
        inputs: a layout per input, `replicate()` or `shard(axis)`; None: all replicated.
        outputs: a layout per output, `from_rank(r)`, `concat(axis)`, `sum()` or `all_equal()`; None: all from the first
            rank of the last stage.

    Raises:
        ServableError: a layout that cannot be.
    """
    return current_declaration("distributed.subgraph").subgraph(file, inputs, outputs)

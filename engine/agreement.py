"""What the ranks of a group, all registered, can run together: their graphs against the servable's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..schemas.errors import ModelError
from ..schemas.messages import GraphInfo, GraphPlan, GroupId
from .plan import SubgraphPlan, make_plan
from .servable import Servable

__all__ = ["plan_all", "rank_plans"]


def plan_all(servable: Servable, group: GroupId, graphs: Mapping[int, Sequence[GraphInfo]]) -> dict[int, SubgraphPlan]:
    """Plans every subgraph from what the ranks hold.

    Args:
        servable: as loaded.
        group: for messages.
        graphs: by rank, its graphs in the order of the subgraphs.

    Raises:
        ModelError: the ranks do not fit together, or not to the configuration.
    """
    counts = {len(held) for held in graphs.values()}
    if len(counts) > 1:
        several = ", ".join(f"rank {rank} {len(held)}" for rank, held in sorted(graphs.items()))
        raise ModelError(f"{group}: the ranks hold different numbers of graphs: {several}")
    (count,) = counts
    declared = servable.subgraph_count
    if declared is not None and declared != count:
        raise ModelError(f"{group}: the ranks hold {count} graphs, the configuration has {declared} subgraphs")
    ranks = tuple(sorted(graphs))
    return {number: _plan(servable, number, ranks, graphs) for number in range(count)}


def _plan(
    servable: Servable, subgraph: int, ranks: tuple[int, ...], graphs: Mapping[int, Sequence[GraphInfo]]
) -> SubgraphPlan:
    model, layouts = servable.model_of(subgraph), servable.subgraph(subgraph)
    return make_plan(
        subgraph,
        ranks=ranks,
        inputs=layouts.inputs,
        outputs=layouts.outputs,
        stacked=model.with_batch_dim,
        unstacked_inputs=frozenset(model.without_batch_dim_inputs),
        infos={rank: held[subgraph] for rank, held in graphs.items()},
        default_rank=model.result_rank,
    )


def rank_plans(plans: Mapping[int, SubgraphPlan], rank: int) -> tuple[GraphPlan, ...]:
    """How one rank is to run its graphs."""
    return tuple(
        GraphPlan(
            stacked=plan.stacked,
            unstacked_inputs=tuple(sorted(plan.unstacked_inputs)),
            returns=plan.returns(rank),
        )
        for plan in plans.values()
    )

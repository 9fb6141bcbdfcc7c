"""What the ranks of a group, all registered, can run together: their graphs against the servable's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..schemas.errors import ModelError
from ..schemas.messages import GraphInfo, GraphPlan, GroupId
from .plan import SubgraphPlan, make_plan
from .servable import Method, RepeatStage, Servable, SubgraphStage
from .stages import stage_ranks

__all__ = ["plan_all", "rank_plans", "stateful"]


def plan_all(
    servable: Servable, group: GroupId, graphs: Mapping[int, Sequence[GraphInfo]]
) -> dict[int, tuple[SubgraphPlan, ...]]:
    """Plans every subgraph, stage by stage, from what the ranks hold.

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
    plans = {number: _stages(servable, number, graphs) for number in range(count)}
    _check_calls(servable, plans)
    return plans


def _check_calls(servable: Servable, plans: Mapping[int, tuple[SubgraphPlan, ...]]) -> None:
    """Whether the methods give each graph as many inputs as it takes: else none of their requests could be served."""
    for method in servable.methods.values():
        for stage in method.stages:
            if isinstance(stage, SubgraphStage | RepeatStage) and stage.subgraph in plans:
                _check_call(method, stage, plans[stage.subgraph][0], slots=servable.slots > 0)


def _check_call(method: Method, stage: SubgraphStage | RepeatStage, plan: SubgraphPlan, *, slots: bool) -> None:
    slot = plan.slot_input
    filled = slots and slot is not None
    given, takes = len(stage.inputs), len(plan.inputs) - filled
    if given == takes:
        return
    does = "repeats" if isinstance(stage, RepeatStage) else "calls"
    names = ", ".join(one.spec.name or str(one.index) for one in plan.inputs if not (filled and one.index == slot))
    hint = ""
    if filled and given == takes + 1:
        hint = "; its input slot is filled in, and is not to be given"
    elif slot is not None and not slots and given == takes - 1:
        hint = "; its input slot is filled in where the model is declared with slots="
    call = f"{stage.where}: method {method.name} {does} subgraph {stage.subgraph}"
    raise ModelError(f"{call} with {given} input(s), and it takes {takes} ({names}){hint}")


def _stages(servable: Servable, subgraph: int, graphs: Mapping[int, Sequence[GraphInfo]]) -> tuple[SubgraphPlan, ...]:
    """The plans of a subgraph's stages: the outputs of one are the inputs of the next.

    The declared layouts are those of the first stage's inputs and of the last stage's outputs. Between stages every
    rank gets what the first rank of the stage before it made.
    """
    model, layouts, count = servable.model_of(subgraph), servable.subgraph(subgraph), servable.stage_size
    plans: list[SubgraphPlan] = []
    for stage in range(count):
        ranks = stage_ranks(stage, len(graphs), count)
        plan = make_plan(
            subgraph,
            ranks=ranks,
            inputs=layouts.inputs if stage == 0 else None,
            outputs=layouts.outputs if stage == count - 1 else None,
            stacked=model.with_batch_dim,
            unstacked_inputs=frozenset(model.without_batch_dim_inputs if stage == 0 else ()),
            infos={rank: graphs[rank][subgraph] for rank in ranks},
            default_rank=ranks[0],
        )
        if plans:
            _check_chain(subgraph, stage, plans[-1], plan)
        plans.append(plan)
    return tuple(plans)


def _check_chain(subgraph: int, stage: int, before: SubgraphPlan, after: SubgraphPlan) -> None:
    if not before.outputs:
        return  # the model file does not say; the first step will
    given = [(output.spec.dtype, output.spec.shape) for output in before.outputs]
    taken = [(one.spec.dtype, one.spec.shape) for one in after.inputs]
    fit = len(given) == len(taken) and all(
        dtype == other
        and len(shape) == len(wanted)
        and all(-1 in pair or pair[0] == pair[1] for pair in zip(shape, wanted, strict=True))
        for (dtype, shape), (other, wanted) in zip(given, taken, strict=True)
    )
    if not fit:
        raise ModelError(
            f"subgraph {subgraph}: stage {stage - 1} gives {_shown(given)}, and stage {stage} takes {_shown(taken)}"
        )


def _shown(specs: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{dtype} {shape}" for dtype, shape in specs) or "nothing"


def stateful(plans: Mapping[int, tuple[SubgraphPlan, ...]]) -> frozenset[int]:
    """The subgraphs that keep state between calls, where there are slots: those with an input named `slot`.

    Where none has one, it is not known which they are, and each is taken for one.
    """
    return frozenset(it for it in plans if plans[it][0].slot_input is not None) or frozenset(plans)


def rank_plans(servable: Servable, plans: Mapping[int, tuple[SubgraphPlan, ...]], rank: int) -> tuple[GraphPlan, ...]:
    """How one rank is to run its graphs."""
    own = [next(plan for plan in stages if rank in plan.ranks) for stages in plans.values()]
    return tuple(
        GraphPlan(
            stacked=plan.stacked,
            unstacked_inputs=tuple(sorted(plan.unstacked_inputs)),
            returns=plan.returns(rank),
            compiled_rows=servable.subgraph(plan.subgraph).compiled_rows,
        )
        for plan in own
    )

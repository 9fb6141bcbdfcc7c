"""What a rank is told when its group forms."""

from __future__ import annotations

from collections.abc import Mapping

from ..schemas.messages import Form, GraphPlan, GroupId, Register
from . import communication
from .group_rules import GroupRules
from .stages import stage_of, stage_ranks
from .topology import results_queue

__all__ = ["form_of"]


def form_of(
    group: GroupId,
    rules: GroupRules,
    epoch: int,
    kind: str,
    registers: Mapping[int, Register],
    rank: int,
    plans: tuple[GraphPlan, ...],
) -> Form:
    """The message to one rank.

    Args:
        group: the group.
        rules: what its life is governed by.
        epoch: for which it forms.
        kind: how the ranks talk to each other, as `communication.choose` gave it.
        registers: what each rank said when it registered.
        rank: whom it is for.
        plans: per subgraph, how the rank is to run it.
    """
    stage = stage_of(rank, rules.size, rules.stages)
    peers = stage_ranks(stage, rules.size, rules.stages)
    return Form(
        group=group,
        epoch=epoch,
        rank=rank,
        agent=registers[rank].agent,
        results=results_queue(group),
        peers=peers,
        stage=stage,
        stages=rules.stages,
        communication=kind,
        scheduler=communication.meeting(kind, group, epoch, peers, registers),
        rank_table=dict(rules.rank_table),
        plans=plans,
        shared_parameters=rules.shared_parameters,
        window=rules.window,
        heartbeat_seconds=rules.heartbeat_seconds,
    )

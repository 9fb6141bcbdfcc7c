"""A group at a glance, as `rankmq status` shows it. Pure."""

from __future__ import annotations

from ..schemas.messages import GroupStatus
from .group import Group
from .servable import Servable
from .slots import Slots

__all__ = ["status_of"]


def status_of(
    group: Group, servable: Servable, slots: Slots, files: tuple[str, ...], in_flight: int, waiting: int
) -> GroupStatus:
    """What a group says of itself.

    Args:
        group: its life.
        servable: what it serves.
        slots: of the state on its ranks.
        files: the names of the model files, by subgraph.
        in_flight: batches on the ranks.
        waiting: rows that wait for a step.
    """
    return GroupStatus(
        group=group.group,
        state=group.state.value,
        epoch=group.epoch,
        step=max(0, max((rank.step for rank in group.ranks()), default=-1) + 1),
        size=group.rules.size,
        stage_size=servable.stage_size,
        in_flight=in_flight,
        slots=servable.slots,
        slots_held=slots.held,
        slots_waiting=slots.waiting,
        waiting=waiting,
        communication=group.communication,
        forming=group.forming(),
        subgraphs=files,
        methods=(*servable.methods, *servable.pipelines),
        ranks=group.ranks(),
    )

"""The loops of a group: planned when its ranks are known, and kept together while they run. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping

from ..schemas.errors import ModelError
from .batch import Batch
from .loop import Loop
from .loop_plan import LoopPlan, plan_loop
from .plan import SubgraphPlan
from .servable import RepeatStage, Servable

__all__ = ["Joining", "plan_loops"]


def plan_loops(servable: Servable, plans: Mapping[int, tuple[SubgraphPlan, ...]]) -> dict[tuple[int, Loop], LoopPlan]:
    """Plans every loop of a servable's methods.

    Args:
        servable: as loaded.
        plans: of its subgraphs, stage by stage.

    Returns:
        By subgraph and loop.

    Raises:
        ModelError: with the line, for a loop that the graph cannot be run in.
    """
    found: dict[tuple[int, Loop], LoopPlan] = {}
    for stage in (it for method in servable.methods.values() for it in method.stages if isinstance(it, RepeatStage)):
        if stage.subgraph not in plans:
            raise ModelError(f"{stage.where}: there is no subgraph {stage.subgraph} to repeat")
        plan, *others = plans[stage.subgraph]
        try:
            if others:
                raise ModelError(f"subgraph {stage.subgraph} runs over several stages, and cannot be repeated")
            found[stage.subgraph, stage.loop] = plan_loop(stage.loop, plan, slots=servable.slots > 0)
        except ModelError as error:
            raise ModelError(f"{stage.where}: {error.message}") from error
    return found


class Joining:
    """The loops that have a slice under way, by subgraph and batch key.

    Its rows come back when it ends. Rows that come to the same loop meanwhile wait for them: otherwise there would be
    two batches, one behind the other, for as long as the loop goes on.
    """

    def __init__(self) -> None:
        self._under_way: Counter[tuple[int, Hashable]] = Counter()

    def __contains__(self, key: object) -> bool:
        """Whether rows of this subgraph and batch key will be back."""
        return key in self._under_way

    def began(self, batch: Batch) -> None:
        """A batch was sent; nothing if it is in no loop."""
        if batch.loop is not None:
            self._under_way[batch.subgraph, batch.key] += 1

    def ended(self, batch: Batch) -> None:
        """A batch that was sent has ended, and its rows are back if they go on."""
        if batch.loop is not None:
            key = batch.subgraph, batch.key
            self._under_way[key] -= 1
            if self._under_way[key] <= 0:
                del self._under_way[key]

    def clear(self) -> None:
        """Nothing is under way any more."""
        self._under_way.clear()

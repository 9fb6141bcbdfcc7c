"""The messages that carry a step: one for all ranks, one for each, or both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..schemas.messages import Call, Column, GroupId, Task
from ..schemas.tensors import nbytes
from .batcher import Batch, Row
from .plan import SubgraphPlan
from .scatter import Scattered
from .topology import RANK_ALL, rank_tag

__all__ = ["largest_bytes", "least_bytes", "tasks_of"]


def tasks_of(
    batch: Batch, plan: SubgraphPlan, scattered: Scattered, *, group: GroupId, epoch: int, step: int
) -> Iterator[tuple[str, Task]]:
    """The tasks of a step, each with the tag of the ranks that it is for.

    Args:
        batch: the rows of the step.
        plan: of its subgraph.
        scattered: the rows as they go to the ranks.
        group: whose step it is.
        epoch: in which epoch.
        step: its number there.
    """
    work = Call(subgraph=batch.subgraph, rows=len(batch), stacked=plan.stacked)
    both = bool(scattered.replicated and scattered.sharded)

    def task(part: int, columns: tuple[Column, ...]) -> Task:
        return Task(
            group=group,
            epoch=epoch,
            step=step,
            part=part,
            parts=2 if both else 1,
            work=work,
            inputs=columns,
            requests=batch.requests,
        )

    if scattered.replicated or not scattered.sharded:
        yield RANK_ALL, task(0, scattered.replicated)
    for rank, columns in zip(plan.ranks, scattered.sharded, strict=bool(scattered.sharded)):
        yield rank_tag(rank), task(int(both), columns)


def largest_bytes(scattered: Scattered) -> int:
    """About how many bytes the largest of its tasks has."""
    return max(map(_size, (scattered.replicated, *scattered.sharded)))


def least_bytes(plan: SubgraphPlan, rows: Sequence[Row]) -> int:
    """How many bytes a rank will be sent for these rows at least; nothing is put together to find out."""
    total = 0
    for one in plan.inputs:
        if one.batched or not plan.stacked:
            size = sum(row[one.index].nbytes for row in rows)
            total += size if one.axis is None else size // len(plan.ranks)
    return total


def _size(columns: Sequence[Column]) -> int:
    return sum(nbytes(tensor) for column in columns for tensor in column.tensors)

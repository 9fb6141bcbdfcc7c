"""The messages that carry a step: one for all ranks, one for each, or both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..schemas.messages import Call, Column, GroupId, Repeat, Task
from ..schemas.tensors import nbytes
from .batch import Row
from .conveyor import Flight
from .plan import SubgraphPlan
from .scatter import Scattered
from .sizes import size_of
from .topology import rank_tag

__all__ = ["largest_bytes", "least_bytes", "tasks_of"]


def tasks_of(
    flight: Flight, plan: SubgraphPlan, scattered: Scattered, *, group: GroupId, epoch: int, step: int, tag: str
) -> Iterator[tuple[str, Task]]:
    """The tasks of a step, each with the tag of the ranks that it is for.

    Args:
        flight: the rows of the step.
        plan: of its subgraph.
        scattered: the rows as they go to the ranks.
        group: whose step it is.
        epoch: in which epoch.
        step: its number there.
        tag: which reaches all the ranks that the step is for.
    """
    loop = flight.batch.loop
    if loop is None:
        work: Call | Repeat = Call(subgraph=flight.batch.subgraph, rows=len(flight.rows), stacked=plan.stacked)
    else:
        work = loop.work(plan, flight.turns)
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
            requests=flight.batch.requests,
        )

    if scattered.replicated or not scattered.sharded:
        yield tag, task(0, scattered.replicated)
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
            size = sum(size_of(row[one.index]) for row in rows)
            total += size if one.axis is None else size // len(plan.ranks)
    return total


def _size(columns: Sequence[Column]) -> int:
    return sum(nbytes(tensor) for column in columns for tensor in column.tensors)

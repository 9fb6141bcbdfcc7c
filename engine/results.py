"""What the ranks made of a step, as rows again. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ..schemas.errors import GraphFailed, LimitExceeded, RankmqError, ServingError, from_wire
from ..schemas.messages import ErrorInfo
from .batch import Row
from .conveyor import Flight
from .ledger import Finished
from .losses import given_of
from .plan import SubgraphPlan

__all__ = ["rows_of", "suspect_of"]


def rows_of(finished: Finished[Flight], plan: SubgraphPlan) -> Sequence[Row]:
    """The outputs of a step, a row for each that went in.

    Args:
        finished: the step, with every rank's answer.
        plan: of its subgraph, at its stage.

    Raises:
        RankmqError: a rank failed, or what the ranks gave does not go together.
    """
    flight, batch = finished.item, finished.item.batch
    failed = next((reply for reply in finished.replies.values() if reply.error is not None), None)
    if failed is not None and failed.error is not None:
        raise _failure(failed.rank, failed.error)
    if batch.loop is not None:
        return batch.loop.gather(plan, finished.replies, given_of(batch), flight.turns)
    columns = {rank: reply.outputs for rank, reply in finished.replies.items()}
    return plan.gather(columns, len(batch))


def suspect_of(finished: Finished[Flight]) -> int | None:
    """The row at which a step failed, where its rows ran back to back: the first at which a rank did; None: not known.

    Args:
        finished: the step, with every rank's answer.
    """
    rows = [reply.failed_row for reply in finished.replies.values() if reply.error is not None]
    return min((row for row in rows if row is not None and row < len(finished.item.batch)), default=None)


def _failure(rank: int, given: ErrorInfo) -> RankmqError:
    error = from_wire(given.code, f"rank {rank}: {given.message}")
    return error if isinstance(error, ServingError | LimitExceeded) else GraphFailed(error.message)

"""Why an agent cannot hold the rank that it asks for, whoever else holds it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ..schemas.errors import GroupError, ModelError, OperatorError
from ..schemas.messages import GroupId, Register

__all__ = ["why_refused"]

_LAST_EPOCH = 1 << 53


def why_refused(message: Register, group: GroupId, size: int, digests: Sequence[str] | None) -> OperatorError | None:
    """Why it cannot; None if it can.

    Args:
        message: what it said.
        group: the group that it came to.
        size: how many ranks that has.
        digests: of the model files that the group has served with on that rank; None if it has not served.
    """
    rank = message.rank
    if message.group != group:
        return GroupError(f"this is group {group}, not {message.group}")
    if not 0 <= rank < size:
        return GroupError(f"rank {rank} is not one of the {size} ranks of {group}")
    if message.last_epoch > _LAST_EPOCH:  # the next would soon be more than a message can hold
        return GroupError(f"rank {rank} of {group} says that there was an epoch {message.last_epoch}")
    if digests is not None and list(digests) != [graph.digest for graph in message.graphs]:
        return ModelError(f"rank {rank} of {group} comes with other model files than the group has served with")
    return None

"""A rank's answer as it is sent: one that the broker would not take goes without its outputs, with what helps. Pure."""

from __future__ import annotations

from msgspec import structs

from ..engine.message_limit import MESSAGE_OVERHEAD
from ..schemas import codec
from ..schemas.errors import LimitExceeded
from ..schemas.messages import ErrorInfo, RankReply

__all__ = ["encoded"]


def encoded(reply: RankReply, most: int) -> bytes:
    """The body of an answer.

    Args:
        reply: as it is to be sent, its outputs in shared memory or in the blob store where they could go there.
        most: the largest message that the broker takes, in bytes.

    Returns:
        It; or in its place an error, where it is too large.
    """
    body = codec.encode(reply)
    if len(body) + MESSAGE_OVERHEAD <= most:
        return body
    turns = max(reply.turns, default=0)
    what, helps = ("", "") if turns < 2 else (f" of {turns} turns", "fewer turns a slice (slice_turns), ")
    error = LimitExceeded(
        f"outputs of {len(body)} bytes{what}: the broker takes {most}; what helps is {helps}a blob store (blob_store), "
        "or on the orchestrator's host more shared memory (plane_bytes)"
    )
    info = ErrorInfo(code=error.code, message=error.message, side=error.side)
    return codec.encode(structs.replace(reply, outputs=(), error=info))

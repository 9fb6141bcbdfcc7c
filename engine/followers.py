"""A request that comes again while it is under way: who asks from elsewhere waits for the same outcome. Pure.

Each that waits keeps its delivery, so that nothing is lost with the orchestrator; and each takes one of the places that
the broker gives a consumer, which are everybody's. So what can do without keeps none, and what cannot is bounded.
"""

from __future__ import annotations

from .open_request import OpenRequest

__all__ = ["MOST_FOLLOWERS", "is_repeated", "join", "leave", "spare_blobs"]

MOST_FOLLOWERS = 8
"""How many wait for the outcome of one request, besides it."""


def is_repeated(open_: OpenRequest, first: OpenRequest) -> bool:
    """Whether the answer goes where this one asks for it anyway, or nobody can be told.

    It needs no delivery of its own then: the broker has that of the one which asked from there, until that has the
    answer; should it be delivered again, it is the same question.
    """
    return not open_.reply_to or any(it.route == open_.route for it in (first, *first.followers))


def join(open_: OpenRequest, first: OpenRequest) -> OpenRequest | None:
    """Has a request wait for the outcome of the first.

    Returns:
        The one that is one too many, and does not wait any more; None where there is room. That is the oldest: who lost
        the connection and asks anew each time is there in the latest.
    """
    first.followers.append(open_)
    open_.follows = first
    if len(first.followers) <= MOST_FOLLOWERS:
        return None
    oldest = first.followers[0]
    leave(oldest)
    return oldest


def leave(open_: OpenRequest) -> None:
    """Has a request wait no more for the outcome of another; nothing if it does not, or has that outcome.

    What it is told now is no outcome of the request, and nothing to remember under its id.
    """
    first, open_.follows = open_.follows, None
    if first is not None and not open_.answered:
        first.followers.remove(open_)
        open_.key = ""


def spare_blobs(open_: OpenRequest, first: OpenRequest) -> tuple[str, ...]:
    """The names of blobs that this one refers to, and the first does not: those of the first end with that."""
    needed = set(first.names_of_blobs())
    return tuple(name for name in open_.names_of_blobs() if name not in needed)

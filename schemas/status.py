"""What an orchestrator says of itself when somebody asks: its groups, their ranks, the queues of the broker."""

from __future__ import annotations

from .base import Count, GroupId, Message, Part

__all__ = ["Forming", "GroupStatus", "QueueStatus", "RankStatus", "Status"]


class RankStatus(Part, frozen=True, kw_only=True):
    """One rank at a glance.

    Attributes:
        state: missing, registered, loading, ready or lost.
        step: the last one finished, -1 for none.
        steps: how many it finished in all.
        rss: resident memory of its process, in bytes.
    """

    rank: Count
    state: str
    agent: str = ""
    host: str = ""
    pid: int = 0
    queue: str = ""
    step: int = -1
    steps: Count = 0
    rss: Count = 0
    restarts: Count = 0
    last_error: str = ""


class Forming(Part, frozen=True, kw_only=True):
    """Why a group is not ready: the ranks that are missing, and the last word on it."""

    missing: tuple[int, ...] = ()
    reason: str = ""


class GroupStatus(Part, frozen=True, kw_only=True):
    """One group at a glance."""

    group: GroupId
    state: str
    epoch: Count
    step: Count
    size: Count
    stage_size: Count = 1
    in_flight: Count = 0
    waiting: Count = 0
    slots: Count = 0
    slots_held: Count = 0
    slots_waiting: Count = 0
    communication: str = "none"
    forming: Forming | None = None
    subgraphs: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    ranks: tuple[RankStatus, ...] = ()


class QueueStatus(Part, frozen=True, kw_only=True):
    """One queue of the broker: messages waiting, and consumers."""

    name: str
    messages: Count
    consumers: Count


class Status(Message, frozen=True, kw_only=True):
    """What an orchestrator says of itself."""

    orchestrator: str
    host: str
    pid: int
    uptime_seconds: float
    in_flight: Count
    max_in_flight: Count
    served: Count
    failed: Count
    waiting: Count = 0
    groups: tuple[GroupStatus, ...] = ()
    queues: tuple[QueueStatus, ...] = ()

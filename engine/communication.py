"""How the ranks of a stage talk to each other within a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..schemas.messages import GroupId, Register

__all__ = ["choose", "meeting"]


def choose(wanted: str, ranks: Mapping[int, Register]) -> str:
    """What the ranks use.

    Args:
        wanted: "none", "shm", "mccl" or "hccl"; "auto" looks at the ranks' graphs, devices and hosts.
        ranks: what each rank said when it registered.

    Returns:
        "none", "shm", "mccl" or "hccl".
    """
    if wanted != "auto":
        return wanted
    if not any(graph.collectives for register in ranks.values() for graph in register.graphs):
        return "none"
    if any(register.device == "Ascend" for register in ranks.values()):
        return "hccl"
    one_host = len({register.host for register in ranks.values()}) == 1
    return "shm" if one_host and all(register.shm for register in ranks.values()) else "mccl"


def meeting(kind: str, group: GroupId, epoch: int, peers: Sequence[int], ranks: Mapping[int, Register]) -> str:
    """Where the ranks of a stage find each other.

    Args:
        kind: as `choose` gave it.
        group: the group.
        epoch: the epoch that they form for.
        peers: the ranks of the stage.
        ranks: what each rank said when it registered.

    Returns:
        For mccl host:port that the first of them offers, over loopback if no other host has to reach it; for shm the
        name of a segment that no other stage, epoch or group has; else "".
    """
    first = ranks[peers[0]]
    if kind == "shm":
        return f"rankmq-group-{group}-{epoch}-{first.agent}"
    if kind != "mccl":
        return ""
    if len({ranks[rank].host for rank in peers}) > 1:
        return first.scheduler
    return "127.0.0.1:" + first.scheduler.rpartition(":")[2]

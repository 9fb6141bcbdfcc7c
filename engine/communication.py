"""How the ranks of a group talk to each other within a graph."""

from __future__ import annotations

from collections.abc import Mapping

from ..schemas.messages import Register

__all__ = ["choose"]


def choose(wanted: str, ranks: Mapping[int, Register]) -> tuple[str, str]:
    """What the ranks use, and where its scheduler runs.

    Args:
        wanted: "none", "mccl" or "hccl"; "auto" looks at the ranks' graphs and devices.
        ranks: what each rank said when it registered; rank 0 is among them.

    Returns:
        "none", "mccl" or "hccl", and host:port of the scheduler that rank 0 offers to run ("" where none is needed):
        over loopback if no other host has to reach it.
    """
    first = ranks[0]
    kind = wanted
    if wanted == "auto":
        collectives = any(graph.collectives for register in ranks.values() for graph in register.graphs)
        kind = "none" if not collectives else "hccl" if first.device == "Ascend" else "mccl"
    if kind != "mccl":
        return kind, ""
    if len({register.host for register in ranks.values()}) > 1:
        return kind, first.scheduler
    return kind, "127.0.0.1:" + first.scheduler.rpartition(":")[2]

"""What a group's life is governed by, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["GroupRules"]


@dataclass(frozen=True, slots=True)
class GroupRules:
    """What a group's life is governed by.

    Attributes:
        size: number of ranks.
        stages: into how many stages they are divided.
        communication: "auto", "none", "shm", "mccl" or "hccl".
        shared_parameters: patterns of the names of parameters that are one and the same in all graphs of a rank.
        rank_table: in its 1.0 form.
        wait_seconds: give up when ranks are missing so long; 0 waits for ever.
        load_seconds: how long loading may take.
        heartbeat_seconds: how often an agent says that it lives.
        heartbeats_missed: how many may be missed.
        window: the lockstep window, told to the agents.
        orchestrator: its name, for the agents' logs.
    """

    size: int
    stages: int = 1
    communication: str = "auto"
    shared_parameters: tuple[str, ...] = ()
    rank_table: Mapping[str, object] = field(default_factory=dict)
    wait_seconds: float = 0.0
    load_seconds: float = 180.0
    heartbeat_seconds: float = 2.0
    heartbeats_missed: int = 5
    window: int = 4
    orchestrator: str = "orchestrator"

"""The faults there are, and in which order they come: a function of the seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "FAULTS",
    "LONGEST_PAUSE",
    "Fault",
    "Planned",
    "Setting",
    "Way",
    "chosen",
    "each_once",
    "possible",
    "schedule",
]

Way = Literal["", "rank", "orchestrator", "producer"]
"""Whose way to the broker goes through a proxy."""

_SHORTEST_PAUSE = 0.5
LONGEST_PAUSE = 2.5
"""Seconds of peace before a fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of damage.

    Attributes:
        name: as on the command line.
        what: what is done.
        ranks: how many ranks it hits, chosen by the seed.
        way: what must go through a proxy for it.
        standby: it needs an orchestrator that stands by.
        groups: how many groups there must be.
    """

    name: str
    what: str
    ranks: int = 0
    way: Way = ""
    standby: bool = False
    groups: int = 1


_ALL = (
    Fault("kill-rank", "a rank's process is killed", ranks=1),
    Fault("kill-two-ranks", "two ranks are killed at once", ranks=2),
    Fault("kill-all-ranks", "all ranks are killed at once"),
    Fault("kill-heir", "a rank is killed, and the process that takes its place as soon as it registers", ranks=1),
    Fault("freeze-rank", "a rank's process is stopped (SIGSTOP)", ranks=1),
    Fault("cut-rank", "the TCP connection of the last rank is closed", way="rank"),
    Fault("silence-rank", "the TCP connection of the last rank carries nothing more, and stays open", way="rank"),
    Fault("kill-launcher", "a launcher is killed, and started again when its ranks have ended"),
    Fault("restart-agents", "the launchers are told to stop (SIGTERM) and started again, one after the other"),
    Fault("kill-orchestrator", "the orchestrator is killed and started again"),
    Fault("kill-orchestrator-standby", "the orchestrator is killed while another stands by", standby=True),
    Fault("cut-orchestrator", "the TCP connection of the orchestrator is closed", way="orchestrator"),
    Fault(
        "cut-orchestrator-standby",
        "the same while another orchestrator stands by",
        way="orchestrator",
        standby=True,
    ),
    Fault(
        "freeze-orchestrator-standby",
        "the orchestrator is stopped (SIGSTOP) while another stands by, and goes on when that one serves",
        standby=True,
    ),
    Fault("restart-orchestrator", "another orchestrator stands by, then the first is told to stop (SIGTERM)"),
    Fault("kill-producer", "the producer with a durable reply queue is killed; its successor reads the answers"),
    Fault("cut-producer", "the TCP connections of the producers are closed", way="producer"),
    Fault("restart-broker", "the broker is told to stop (SIGTERM) and started again"),
    Fault("kill-broker", "the broker is killed and started again"),
    Fault("kill-group", "an orchestrator and all its ranks are killed; another group serves meanwhile", groups=2),
)

FAULTS = {fault.name: fault for fault in _ALL}
"""By name, in the order in which they are told."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What there is to be damaged.

    Attributes:
        ranks: of each group.
        groups: replicas of the servable.
    """

    ranks: int
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault that is to come.

    Attributes:
        fault: what.
        group: the number of the group that it hits.
        ranks: those that it hits.
        pause: seconds of peace before it.
    """

    fault: Fault
    group: int
    ranks: tuple[int, ...]
    pause: float

    def __str__(self) -> str:
        where = " ".join(map(str, self.ranks))
        return f"{self.fault.name} {where}".strip()


def possible(setting: Setting) -> list[Fault]:
    """The faults that can be done to it."""
    return [fault for fault in _ALL if fault.ranks <= setting.ranks and fault.groups <= setting.groups]


def chosen(names: str, setting: Setting) -> list[Fault]:
    """The faults that a list names; all that are possible for an empty one.

    Args:
        names: with commas between.
        setting: what there is to be damaged.

    Raises:
        ConfigurationError: there is no such fault, or it cannot be done here.
    """
    from ...schemas.errors import ConfigurationError  # which takes its time, and --help names the faults

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    can = {fault.name: fault for fault in possible(setting)}
    for name in wanted:
        if name not in FAULTS:
            raise ConfigurationError(f"there is no fault {name!r}; there are {', '.join(FAULTS)}")
        if name not in can:
            fault = FAULTS[name]
            needs = f"--groups {fault.groups}" if fault.groups > setting.groups else f"--ranks {fault.ranks}"
            raise ConfigurationError(f"{name} needs {needs} at least")
    return [can[name] for name in dict.fromkeys(wanted)] or list(can.values())


def schedule(seed: int, faults: Sequence[Fault], setting: Setting) -> Iterator[Planned]:
    """Faults without end, the same for the same arguments: rounds in which each comes once, in an order of its own.

    Args:
        seed: decides orders, ranks, groups and pauses.
        faults: which.
        setting: what there is to be damaged.
    """
    chance = random.Random(seed)
    while True:
        for fault in chance.sample(faults, len(faults)):
            yield _planned(chance, fault, setting)


def each_once(seed: int, faults: Sequence[Fault], setting: Setting) -> Iterator[Planned]:
    """Each fault once, in the order in which they are given; `kill-rank` once for each rank of the first group.

    Args:
        seed: decides ranks, groups and pauses.
        faults: which.
        setting: what there is to be damaged.
    """
    chance = random.Random(seed)
    for fault in faults:
        if fault.name == "kill-rank":
            for rank in range(setting.ranks):
                yield Planned(fault, 0, (rank,), _pause(chance))
        else:
            yield _planned(chance, fault, setting)


def _planned(chance: random.Random, fault: Fault, setting: Setting) -> Planned:
    ranks = sorted(chance.sample(range(setting.ranks), fault.ranks))
    if fault.way == "rank":
        ranks = [setting.ranks - 1]
    return Planned(fault, chance.randrange(setting.groups), tuple(ranks), _pause(chance))


def _pause(chance: random.Random) -> float:
    return round(chance.uniform(_SHORTEST_PAUSE, LONGEST_PAUSE), 3)

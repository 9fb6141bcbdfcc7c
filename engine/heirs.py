"""Agents that wait for a rank whose holder may be gone: its process died, and its launcher started another. Pure.

The word of a death may come later than the heir. So nobody is turned away who may be one, until the holder is heard of.
"""

from __future__ import annotations

import math
from collections.abc import Container

from ..schemas.messages import Register

__all__ = ["Heirs"]


class Heirs:
    """Who waits for which rank, and since when."""

    def __init__(self) -> None:
        self._waiting: dict[int, dict[str, tuple[Register, float]]] = {}

    def __contains__(self, rank: object) -> bool:
        """Whether somebody waits for a rank."""
        return bool(self._waiting.get(rank)) if isinstance(rank, int) else False

    def wait(self, register: Register, now: float) -> None:
        """Has an agent wait; one that waits already does not wait longer for asking again."""
        agents = self._waiting.setdefault(register.rank, {})
        _, since = agents.get(register.agent, (register, now))
        agents[register.agent] = register, since

    def dismiss(self, rank: int, since: float = math.inf) -> list[Register]:
        """Takes out who waits for a rank.

        Args:
            rank: the rank.
            since: only those who began to wait no later than this.
        """
        agents = self._waiting.get(rank, {})
        found = [register for register, began in agents.values() if began <= since]
        for register in found:
            del agents[register.agent]
        return found

    def forget(self, rank: int, *, agent: str = "", pid: int = 0) -> None:
        """Takes out one that waits no more, by its id or by its process."""
        agents = self._waiting.get(rank, {})
        for register, _ in list(agents.values()):
            if agent == register.agent or pid == register.pid:
                del agents[register.agent]

    def next(self, held: Container[int]) -> Register | None:
        """Takes out one that has waited longest for a rank that has become free.

        Args:
            held: the ranks that are not free.
        """
        for rank, agents in self._waiting.items():
            if agents and rank not in held:
                register, _ = agents.pop(next(iter(agents)))
                return register
        return None

    def clear(self) -> None:
        """Nobody waits any more."""
        self._waiting.clear()

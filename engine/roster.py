"""Who holds the ranks of a group, and who was heard of when.

A value without a clock of its own; what follows from it is `group.Group`'s to decide.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from ..schemas.messages import GraphInfo, Heartbeat, RankStatus, Register

__all__ = ["Member", "Roster"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Member:
    """The agent that holds a rank.

    Attributes:
        register: what it said when it registered.
        heard: when it was last heard of, in seconds.
        ready: it has loaded and warmed up for the current epoch.
        leaving: it was told to stop, and waits for `Drain`.
        doubted: it was told that it claims what it cannot have done.
        step: the last step that it finished; -1: none yet.
        rss: resident memory of its process, in bytes.
    """

    register: Register
    heard: float
    ready: bool = False
    leaving: bool = False
    doubted: bool = False
    step: int = -1
    rss: int = 0


class Roster:
    """The ranks of one group and their agents.

    Args:
        size: number of ranks.
        silence: seconds without a word after which an agent counts as gone.
    """

    def __init__(self, size: int, silence: float) -> None:
        self.size = size
        self._silence = silence
        self._members: dict[int, Member] = {}
        self._strays: dict[int, str] = {}
        self._restarts: dict[int, int] = {}
        self._errors: dict[int, str] = {}

    def __iter__(self) -> Iterator[tuple[int, Member]]:
        """The ranks that are held, and by whom, in their order."""
        return iter(sorted(self._members.items()))

    def __contains__(self, rank: object) -> bool:
        """Whether somebody holds a rank."""
        return rank in self._members

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranks that nobody holds."""
        return tuple(rank for rank in range(self.size) if rank not in self._members)

    @property
    def all_ready(self) -> bool:
        """Whether every rank is held and ready."""
        return not self.missing and all(member.ready for member in self._members.values())

    def registers(self) -> dict[int, Register]:
        """What every agent that holds a rank said when it registered."""
        return {rank: member.register for rank, member in self}

    def graphs(self) -> dict[int, tuple[GraphInfo, ...]]:
        """The graphs of every rank that is held."""
        return {rank: member.register.graphs for rank, member in self}

    def get(self, rank: int, agent: str | None = None) -> Member | None:
        """Who holds a rank.

        Args:
            rank: the rank.
            agent: None where it is held by another than this one.
        """
        member = self._members.get(rank)
        return member if member is None or agent is None or member.register.agent == agent else None

    def add(self, register: Register, now: float) -> None:
        """Gives the rank to the agent, whoever held it before."""
        rank = register.rank
        self._members[rank] = Member(register, now)
        self._errors.pop(rank, None)
        self._strays.pop(rank, None)

    def remove(self, rank: int) -> None:
        """Takes the rank from its agent, which did nothing wrong."""
        self._members.pop(rank, None)

    def lose(self, rank: int, reason: str) -> None:
        """Takes the rank from its agent, which is gone."""
        if self._members.pop(rank, None) is not None:
            self._errors[rank] = reason
            self._restarts[rank] = self._restarts.get(rank, 0) + 1

    def blame(self, rank: int, reason: str) -> None:
        """Takes down what last went wrong on a rank."""
        self._errors[rank] = reason

    def clear(self) -> None:
        """Nobody holds a rank any more."""
        self._members.clear()

    def silent(self, rank: int, now: float) -> bool:
        """Whether the holder of a rank has said nothing for too long."""
        member = self._members.get(rank)
        return member is not None and now - member.heard > self._silence

    def heard_all(self, now: float) -> None:
        """Nobody could be heard of until now, and that is no fault of theirs."""
        for member in self._members.values():
            member.heard = now

    def is_from_the_future(self, message: Heartbeat, epoch: int, window: int | None) -> bool:
        """Whether a holder claims an epoch or a step that it was never given: no word of it is to be believed.

        So it is found silent, and when it registers anew it says which epoch it knows.

        Args:
            message: of the rank's holder.
            epoch: the newest that there is.
            window: how many steps may be ahead of what is known to be done; None: no steps are under way.
        """
        member = self._members[message.rank]
        if window is None:
            ahead, most = message.epoch > epoch, f"epoch {epoch}"
        else:
            newest = member.step + window
            ahead, most = (message.epoch, message.step) > (epoch, newest), f"step {newest} of epoch {epoch}"
        if ahead and not member.doubted:
            log.warning(
                "rank %d of %s says that it is at step %d of epoch %d, and cannot be past %s: not believed",
                *(message.rank, message.group, message.step, message.epoch, most),
            )
            member.doubted = True
        return ahead

    def is_stray(self, message: Heartbeat) -> bool:
        """Whether an agent lives and takes itself for a rank that was taken from it: the second time that it says so.

        The first time its registration may still be under way.
        """
        rank = message.rank
        if not 0 <= rank < self.size or rank in self._members:
            return False
        if self._strays.pop(rank, None) == message.agent:
            return True
        self._strays[rank] = message.agent
        return False

    # ------------------------------------------------------------------------------------------------------ at a glance

    def status(self, rank: int, *, loading: bool) -> RankStatus:
        """A rank at a glance.

        Args:
            rank: the rank.
            loading: whether who is not ready is loading.
        """
        restarts, last_error = self._restarts.get(rank, 0), self._errors.get(rank, "")
        member = self._members.get(rank)
        if member is None:
            state = "lost" if last_error else "missing"
            return RankStatus(rank=rank, state=state, restarts=restarts, last_error=last_error)
        register = member.register
        return RankStatus(
            rank=rank,
            state="ready" if member.ready else "loading" if loading else "registered",
            agent=register.agent,
            host=register.host,
            pid=register.pid,
            queue=register.queue,
            step=member.step,
            rss=member.rss,
            restarts=restarts,
            last_error=last_error,
        )

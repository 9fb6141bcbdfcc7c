"""The life of a group of ranks, as a state machine on values and a clock; what is to be done comes back as actions.

    forming --all ranks registered--> loading --all ranks ready--> ready
       ^                                 |                           |
       |<--------- a rank is lost -------+---------------------------+
       |                                                             | a rank leaves, or the orchestrator stops
       +<------------------------- nothing outstanding ---------- draining

An epoch begins when all ranks are ready and ends when one is lost. Its number only ever grows, also from one
orchestrator to the next: every agent says the newest epoch that it knows.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable, Mapping, Sequence

from ..schemas.errors import AlreadyRunning, GroupError, ModelError, OperatorError
from ..schemas.messages import (
    Drain,
    ErrorInfo,
    Forming,
    GraphInfo,
    GraphPlan,
    GroupId,
    Heartbeat,
    Leave,
    LoadFailed,
    RankExited,
    RankStatus,
    Ready,
    Refused,
    Register,
    Restart,
    Welcome,
)
from . import communication
from .actions import Action, Began, Ended, GiveUp, Send
from .forms import form_of
from .group_rules import GroupRules
from .heirs import Heirs
from .refusals import why_refused
from .roster import Member, Roster
from .topology import RANK_ALL, rank_tag

__all__ = ["Action", "Began", "Ended", "GiveUp", "Group", "GroupRules", "GroupState", "Send"]

MAX_FORMATIONS = 3
"""How often a group that was never ready may fail to load before it is given up; one that was ready tries again
for ever, after pauses."""

_LONGEST_PAUSE_SECONDS = 30.0
_STALL_SECONDS = 2.0
"""Ticks further apart than this say that this process stood still (a suspended machine, a busy loop)."""


class GroupState(enum.Enum):
    """Where a group is in its life."""

    FORMING = "forming"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class Group:
    """One group's state.

    Args:
        group: its id.
        rules: see `GroupRules`.
        agree: called with every rank's graphs when all are there; gives, per rank and subgraph, how the rank is to run
            it. Raises `ModelError` when the ranks do not fit together.
        now: seconds on a monotonic clock.
    """

    def __init__(
        self,
        group: GroupId,
        rules: GroupRules,
        agree: Callable[[Mapping[int, Sequence[GraphInfo]]], Mapping[int, tuple[GraphPlan, ...]]],
        now: float,
    ) -> None:
        self.group = group
        self.rules = rules
        self.state = GroupState.FORMING
        self.epoch = 0
        self.communication = "none"
        self.reason = "waiting for the ranks to register"
        self._agree = agree
        self._roster = Roster(rules.size, rules.heartbeat_seconds * rules.heartbeats_missed)
        self._welcomed: dict[int, float] = {}
        self._heirs = Heirs()
        self._since = now
        self._ticked = now
        self._again: float | None = None
        self._failures = 0
        self._was_ready = False
        self._digests: dict[int, tuple[str, ...]] = {}

    # ------------------------------------------------------------------------------------------------ what is known

    @property
    def _bound(self) -> bool:
        """Whether a process can be part of one epoch only: MindSpore's own communication is formed once in a life."""
        return self.communication in ("mccl", "hccl")

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranks that nobody holds."""
        return self._roster.missing

    def graphs(self) -> dict[int, tuple[GraphInfo, ...]]:
        """Every registered rank's graphs."""
        return self._roster.graphs()

    def forming(self) -> Forming | None:
        """Why the group does not serve; None when it does."""
        return None if self.state is GroupState.READY else Forming(missing=self.missing, reason=self.reason)

    def ranks(self) -> tuple[RankStatus, ...]:
        """Every rank at a glance."""
        loading = self.state is GroupState.LOADING
        return tuple(self._roster.status(rank, loading=loading) for rank in range(self.rules.size))

    def holds(self, rank: int, agent: str) -> bool:
        """Whether this agent holds this rank."""
        return self._roster.get(rank, agent) is not None

    # --------------------------------------------------------------------------------------------------- they come

    def registered(self, message: Register, now: float) -> list[Action]:
        """An agent asks to hold a rank.

        Where another holds it, the holder's next heartbeats decide: they come, or the holder turns out to be gone.
        """
        return self._let_in(self._register(message, now), now)

    def _register(self, message: Register, now: float) -> list[Action]:
        refusal = why_refused(message, self.group, self.rules.size, self._digests.get(message.rank))
        if refusal is not None:
            return [self._refuse(message, refusal)]
        rank, roster, serving = message.rank, self._roster, self.state is not GroupState.FORMING
        actions: list[Action] = []
        held = roster.get(rank)
        if held is not None and held.register.agent == message.agent:
            if self._is_told(held, message):
                held.heard = now
                return []
            if serving:
                actions += self._end(f"rank {rank} registered anew", now)
        elif held is not None:
            if not roster.silent(rank, now):
                self._heirs.wait(message, now)
                return []
            actions += self._lose(rank, f"silent for {now - held.heard:.1f} s", now)
        self.epoch = max(self.epoch, message.last_epoch)
        if serving and self._bound and held is not None and held.register.agent == message.agent:
            return actions  # it is to start anew with all the others
        roster.add(message, now)
        self._heirs.forget(rank, agent=message.agent)
        return actions + self._form_if_whole(now)

    def _is_told(self, held: Member, message: Register) -> bool:
        """Whether a holder that registers again has yet to read its `Form` for this epoch, and will.

        So it is when its word and the `Welcome` of an orchestrator cross. Its queue is the one that the `Form` went to,
        what it knows is older than that, and it has not said `Ready` since.
        """
        loads = self.state is GroupState.LOADING and not held.ready
        return loads and message.queue == held.register.queue and message.last_epoch < self.epoch

    def _let_in(self, actions: list[Action], now: float) -> list[Action]:
        """After anything that may have made a rank free: whoever waits for it gets it."""
        while (heir := self._heirs.next(self._roster)) is not None:
            actions += self._register(heir, now)
        return actions

    def _is_held(self, rank: int) -> AlreadyRunning:
        member = self._roster.get(rank)
        holder = f"by pid {member.register.pid} on {member.register.host}" if member is not None else "already"
        return AlreadyRunning(f"rank {rank} of {self.group} is held {holder}")

    def _refuse(self, message: Register, error: OperatorError) -> Send:
        info = ErrorInfo(code=error.code, message=error.message, side=error.side)
        refused = Refused(group=self.group, rank=message.rank, agent=message.agent, error=info)
        return Send(rank_tag(message.rank), refused)

    # ------------------------------------------------------------------------------------------------- they are formed

    def _form_if_whole(self, now: float) -> list[Action]:
        if self.state is not GroupState.FORMING or self.missing or (self._again is not None and now < self._again):
            return []
        try:
            plans = self._agree(self.graphs())
        except ModelError as error:
            self.reason = error.message
            self._roster.clear()
            self._heirs.clear()
            info = ErrorInfo(code=error.code, message=error.message, side=error.side)
            return [Send(RANK_ALL, Refused(group=self.group, rank=0, agent="*", error=info)), GiveUp(error)]
        self.epoch += 1
        self.state = GroupState.LOADING
        self.reason = "the ranks load their graphs"
        self._since = now
        self._again = None
        registers = self._roster.registers()
        self.communication = communication.choose(self.rules.communication, registers)
        form = functools.partial(form_of, self.group, self.rules, self.epoch, self.communication, registers)
        return [Send(rank_tag(rank), form(rank, plans[rank])) for rank in registers]

    def ready(self, message: Ready, now: float) -> list[Action]:
        """A rank has loaded and warmed up its graphs."""
        member = self._roster.get(message.rank, message.agent)
        if member is None or self.state is not GroupState.LOADING or message.epoch != self.epoch:
            return []
        member.heard = now
        member.ready = True
        member.step = -1
        if not self._roster.all_ready:
            return []
        self.state = GroupState.READY
        self.reason = ""
        self._was_ready = True
        self._failures = 0
        self._digests = {rank: tuple(graph.digest for graph in graphs) for rank, graphs in self.graphs().items()}
        return [Began(self.epoch)]

    def load_failed(self, message: LoadFailed, now: float) -> list[Action]:
        """A rank could not load or warm up."""
        known = self._roster.get(message.rank, message.agent)
        if known is None or self.state is not GroupState.LOADING or message.epoch != self.epoch:
            return []
        text = f"rank {message.rank}: {message.error.message}"
        self._roster.blame(message.rank, message.error.message)
        if message.error.code == ModelError.code and not self._was_ready:
            return [*self._end(text, now), GiveUp(ModelError(text))]
        return self._let_in(self._failed(text, now), now)

    def _failed(self, text: str, now: float) -> list[Action]:
        """The ranks could not be made ready: once more, and after some times not at once, or not at all."""
        self._failures += 1
        actions = self._end(text, now)
        if self._failures >= MAX_FORMATIONS:
            if not self._was_ready:
                return [*actions, GiveUp(GroupError(f"{self.group} could not be formed: {text}"))]
            self._again = now + min(_LONGEST_PAUSE_SECONDS, 2.0 ** (self._failures - MAX_FORMATIONS))
        return actions + self._form_if_whole(now)

    # ---------------------------------------------------------------------------------------------------- they live

    def heartbeat(self, message: Heartbeat, now: float) -> list[Action]:
        """A rank lives."""
        roster, rank = self._roster, message.rank
        member = roster.get(rank, message.agent)
        if member is None:
            stray = message.group == self.group and roster.is_stray(message)
            # One of many heartbeats that had been held up somewhere: one registration is enough.
            if not stray or self._welcomed.get(rank, -math.inf) + self.rules.heartbeat_seconds > now:
                return []
            self._welcomed[rank] = now
            welcome = Welcome(group=self.group, agent=message.agent, orchestrator=self.rules.orchestrator)
            return [Send(rank_tag(rank), welcome)]
        serving = self.state in (GroupState.READY, GroupState.DRAINING)
        if roster.is_from_the_future(message, self.epoch, self.rules.window if serving else None):
            return []
        member.heard = now
        member.rss = message.rss
        # A word from before may be under way yet when the holder is dead and its heir is there.
        heirs = self._heirs.dismiss(rank, since=now - self.rules.heartbeat_seconds)
        return [self._refuse(heir, self._is_held(rank)) for heir in heirs]

    def progressed(self, rank: int, step: int, now: float) -> None:
        """A rank finished a step of the current epoch."""
        member = self._roster.get(rank)
        if member is not None:
            member.heard = now
            member.step = step

    # ------------------------------------------------------------------------------------------------------ they leave

    def leaving(self, message: Leave, now: float) -> list[Action]:
        """A rank was told to stop: what is outstanding is finished, nothing new is issued. See `drained`."""
        member = self._roster.get(message.rank, message.agent)
        if member is None:
            self._heirs.forget(message.rank, agent=message.agent)
            return [self._drain(message.rank, message.agent)]  # it holds nothing that anybody waits for
        member.heard = now
        member.leaving = True
        self.reason = f"rank {message.rank} is leaving: {message.reason}"
        if self.state is GroupState.READY:
            self.state = GroupState.DRAINING
        return [] if self.state is GroupState.DRAINING else self.drained(now)

    def drained(self, now: float) -> list[Action]:
        """Nothing is outstanding any more: the ranks that leave may go."""
        leaving = any(member.leaving for _, member in self._roster)
        if self.state is GroupState.FORMING or not leaving:
            return self._let_in(self._dismiss(), now)
        return self._let_in(self._end(self.reason or "drained", now), now)

    def _dismiss(self) -> list[Action]:
        leavers = [(rank, member.register.agent) for rank, member in self._roster if member.leaving]
        for rank, _ in leavers:
            self._roster.remove(rank)
        return [self._drain(*leaver) for leaver in leavers]

    def _drain(self, rank: int, agent: str) -> Send:
        return Send(rank_tag(rank), Drain(group=self.group, agent=agent, epoch=self.epoch))

    def _restart(self, rank: int, agent: str, reason: str) -> Send:
        return Send(rank_tag(rank), Restart(group=self.group, agent=agent, reason=reason))

    # ------------------------------------------------------------------------------------------------ they are lost

    def exited(self, message: RankExited, now: float) -> list[Action]:
        """The launcher saw the process of a rank end."""
        self._heirs.forget(message.rank, pid=message.pid)
        member = self._roster.get(message.rank)
        if member is None or member.register.pid != message.pid:
            return []
        return self.lost(message.rank, f"its process {message.pid} ended ({message.reason})", now)

    def lost(self, rank: int, reason: str, now: float) -> list[Action]:
        """A rank is gone, by whatever sign."""
        return self._let_in(self._lose(rank, reason, now), now)

    def stuck(self, ranks: Sequence[int], reason: str, now: float) -> list[Action]:
        """Ranks live and do not do what they were asked to: their processes have to start anew."""
        actions: list[Action] = []
        for rank in ranks:
            member = self._roster.get(rank)
            if member is not None and not self._bound:  # otherwise all are told, when the epoch ends
                actions.append(self._restart(rank, member.register.agent, reason))
            actions += self._lose(rank, reason, now)
        return self._let_in(actions, now)

    def _lose(self, rank: int, reason: str, now: float) -> list[Action]:
        member = self._roster.get(rank)
        if member is None:
            return []
        self._roster.lose(rank, reason)
        text = f"rank {rank} lost: {reason}"
        if self.state is GroupState.FORMING:
            self.reason = text
            return []
        actions: list[Action] = [self._restart(rank, member.register.agent, reason)] if self._bound else []
        return actions + (self._failed(text, now) if self.state is GroupState.LOADING else self._end(text, now))

    def _end(self, reason: str, now: float) -> list[Action]:
        """Ends the epoch. Where the ranks talk to each other by MindSpore's own means, their processes end with it."""
        self.state = GroupState.FORMING
        self.reason = reason
        self._since = now
        for _, member in self._roster:
            member.ready = False
        actions: list[Action] = [Ended(self.epoch, reason), *self._dismiss()]
        if self._bound:
            actions += [self._restart(rank, member.register.agent, reason) for rank, member in self._roster]
            self._roster.clear()
        return actions

    def broken(self, reason: str, now: float) -> list[Action]:
        """The epoch cannot go on although no rank is known to be lost, as when the ranks fell out of step."""
        if self.state in (GroupState.FORMING, GroupState.LOADING):
            return []
        actions = self._end(reason, now)
        return self._let_in(actions + self._form_if_whole(now), now)

    def tick(self, now: float) -> list[Action]:
        """Time passed: silent ranks are lost, and waiting has an end. To be called about twice a second."""
        asleep, self._ticked = now - self._ticked, now
        if asleep > _STALL_SECONDS:  # it was us who did not listen, so nobody else's silence means anything
            self._roster.heard_all(now)
            self._since += asleep
            return []
        actions: list[Action] = []
        compiling = self.state is GroupState.LOADING  # which may hold up a heartbeat; loading has a bound of its own
        for rank, member in list(self._roster):
            if self._roster.silent(rank, now) and (not compiling or rank in self._heirs):
                actions += self._lose(rank, f"silent for {now - member.heard:.1f} s", now)
        waited = now - self._since
        if self.state is GroupState.LOADING and waited >= self.rules.load_seconds:
            late = [rank for rank, member in self._roster if not member.ready]
            actions += self.stuck(late, f"not ready within {self.rules.load_seconds:g} s", now)
        actions += self._let_in(self._form_if_whole(now) if self._again is not None else [], now)
        if self._waited_too_long(waited):
            self._since = now
            ranks = ", ".join(map(str, self.missing))
            error = GroupError(f"{self.group}: ranks {ranks} have not registered within {self.rules.wait_seconds:g} s")
            actions.append(GiveUp(error))
        return actions

    def _waited_too_long(self, waited: float) -> bool:
        forming = self.state is GroupState.FORMING and bool(self.missing) and not self._was_ready
        return forming and 0 < self.rules.wait_seconds <= waited

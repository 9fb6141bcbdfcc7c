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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..schemas.errors import AlreadyRunning, GroupError, ModelError, OperatorError
from ..schemas.messages import (
    Drain,
    ErrorInfo,
    Form,
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
from .topology import RANK_ALL, rank_tag, results_queue

__all__ = ["Action", "Began", "Ended", "GiveUp", "Group", "GroupRules", "GroupState", "Send"]

MAX_FORMATIONS = 3
"""How often a group that was never ready may fail to load before it is given up."""


class GroupState(enum.Enum):
    """Where a group is in its life."""

    FORMING = "forming"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Send:
    """Send a control message to the ranks that a tag reaches."""

    tag: str
    message: Welcome | Refused | Form | Drain | Restart


@dataclass(frozen=True, slots=True)
class Began:
    """An epoch began: steps may be issued."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The epoch ended: its outstanding steps are void."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The group cannot form; somebody has to put right what the error says."""

    error: OperatorError


Action = Send | Began | Ended | GiveUp


@dataclass(frozen=True, slots=True)
class GroupRules:
    """What a group's life is governed by.

    Attributes:
        size: number of ranks.
        communication: "auto", "none", "mccl" or "hccl".
        rank_table: in its 1.0 form.
        wait_seconds: give up when ranks are missing so long; 0 waits for ever.
        load_seconds: how long loading may take.
        heartbeat_seconds: how often an agent says that it lives.
        heartbeats_missed: how many may be missed.
        window: the lockstep window, told to the agents.
    """

    size: int
    communication: str = "auto"
    rank_table: Mapping[str, object] = field(default_factory=dict)
    wait_seconds: float = 0.0
    load_seconds: float = 180.0
    heartbeat_seconds: float = 2.0
    heartbeats_missed: int = 5
    window: int = 4


@dataclass(slots=True)
class _Member:
    register: Register
    heard: float
    ready: bool = False
    leaving: bool = False
    step: int = -1
    rss: int = 0


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
        self._members: dict[int, _Member] = {}
        self._since = now
        self._failures = 0
        self._was_ready = False
        self._restarts: dict[int, int] = {}
        self._errors: dict[int, str] = {}
        self._digests: dict[int, tuple[str, ...]] = {}

    # ------------------------------------------------------------------------------------------------ what is known

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranks that nobody holds."""
        return tuple(rank for rank in range(self.rules.size) if rank not in self._members)

    def graphs(self) -> dict[int, tuple[GraphInfo, ...]]:
        """Every registered rank's graphs."""
        return {rank: member.register.graphs for rank, member in self._members.items()}

    def forming(self) -> Forming | None:
        """Why the group does not serve; None when it does."""
        return None if self.state is GroupState.READY else Forming(missing=self.missing, reason=self.reason)

    def ranks(self) -> tuple[RankStatus, ...]:
        """Every rank at a glance."""
        return tuple(self._rank(rank) for rank in range(self.rules.size))

    def _rank(self, rank: int) -> RankStatus:
        restarts, last_error = self._restarts.get(rank, 0), self._errors.get(rank, "")
        member = self._members.get(rank)
        if member is None:
            state = "lost" if last_error else "missing"
            return RankStatus(rank=rank, state=state, restarts=restarts, last_error=last_error)
        state = "ready" if member.ready else "loading" if self.state is GroupState.LOADING else "registered"
        register = member.register
        return RankStatus(
            rank=rank,
            state=state,
            agent=register.agent,
            host=register.host,
            pid=register.pid,
            queue=register.queue,
            step=member.step,
            rss=member.rss,
            restarts=restarts,
            last_error=last_error,
        )

    def holds(self, rank: int, agent: str) -> bool:
        """Whether this agent holds this rank."""
        member = self._members.get(rank)
        return member is not None and member.register.agent == agent

    # ------------------------------------------------------------------------------------------------ what happens

    def registered(self, message: Register, now: float) -> list[Action]:
        """An agent asks to hold a rank."""
        refusal = self._refusal(message, now)
        if refusal is not None:
            return [self._refuse(message, refusal)]
        actions: list[Action] = []
        held = self._members.get(message.rank)
        if held is not None and self.state is not GroupState.FORMING:
            actions += self.lost(message.rank, "it registered anew", now)
        self.epoch = max(self.epoch, message.last_epoch)
        self._members[message.rank] = _Member(message, now)
        self._errors.pop(message.rank, None)
        if self.state is GroupState.FORMING and not self.missing:
            actions += self._form(now)
        return actions

    def _refusal(self, message: Register, now: float) -> OperatorError | None:
        if message.group != self.group:
            return GroupError(f"this is group {self.group}, not {message.group}")
        if message.rank >= self.rules.size:
            return GroupError(f"rank {message.rank} is not one of the {self.rules.size} ranks of {self.group}")
        held = self._members.get(message.rank)
        if held is not None and held.register.agent != message.agent and not self._silent(held, now):
            holder = held.register
            return AlreadyRunning(f"rank {message.rank} of {self.group} is held by pid {holder.pid} on {holder.host}")
        digests = tuple(graph.digest for graph in message.graphs)
        known = self._digests.get(message.rank)
        if self._was_ready and known is not None and digests != known:
            return ModelError(
                f"rank {message.rank} of {self.group} comes with other model files than the group has served with"
            )
        return None

    def _refuse(self, message: Register, error: OperatorError) -> Send:
        info = ErrorInfo(code=error.code, message=error.message, side=error.side)
        refused = Refused(group=self.group, rank=message.rank, agent=message.agent, error=info)
        return Send(rank_tag(message.rank), refused)

    def _form(self, now: float) -> list[Action]:
        try:
            plans = self._agree(self.graphs())
        except ModelError as error:
            self.reason = error.message
            refused = Refused(
                group=self.group,
                rank=0,
                agent="*",
                error=ErrorInfo(code=error.code, message=error.message, side=error.side),
            )
            return [Send(RANK_ALL, refused), GiveUp(error)]
        self.epoch += 1
        self.state = GroupState.LOADING
        self.reason = "the ranks load their graphs"
        self._since = now
        self.communication = self._choose_communication()
        scheduler = self._scheduler() if self.communication == "mccl" else ""
        return [
            Send(
                rank_tag(rank),
                Form(
                    group=self.group,
                    epoch=self.epoch,
                    rank=rank,
                    agent=member.register.agent,
                    results=results_queue(self.group),
                    communication=self.communication,
                    scheduler=scheduler,
                    rank_table=dict(self.rules.rank_table),
                    plans=plans[rank],
                    window=self.rules.window,
                    heartbeat_seconds=self.rules.heartbeat_seconds,
                ),
            )
            for rank, member in sorted(self._members.items())
        ]

    def _choose_communication(self) -> str:
        wanted = self.rules.communication
        if wanted != "auto":
            return wanted
        if not any(graph.collectives for graphs in self.graphs().values() for graph in graphs):
            return "none"
        return "hccl" if self._members[0].register.device == "Ascend" else "mccl"

    def _scheduler(self) -> str:
        """Where rank 0 offers to run the communication's scheduler; over loopback if no other host has to reach it."""
        offered = self._members[0].register.scheduler
        if len({member.register.host for member in self._members.values()}) > 1:
            return offered
        return "127.0.0.1:" + offered.rpartition(":")[2]

    def ready(self, message: Ready, now: float) -> list[Action]:
        """A rank has loaded and warmed up its graphs."""
        member = self._member(message.rank, message.agent)
        if member is None or self.state is not GroupState.LOADING or message.epoch != self.epoch:
            return []
        member.heard = now
        member.ready = True
        member.step = -1
        if not all(it.ready for it in self._members.values()):
            return []
        self.state = GroupState.READY
        self.reason = ""
        self._was_ready = True
        self._failures = 0
        self._digests = {
            rank: tuple(graph.digest for graph in it.register.graphs) for rank, it in self._members.items()
        }
        return [Began(self.epoch)]

    def load_failed(self, message: LoadFailed, now: float) -> list[Action]:
        """A rank could not load or warm up."""
        if self._member(message.rank, message.agent) is None or message.epoch != self.epoch:
            return []
        text = f"rank {message.rank}: {message.error.message}"
        self._errors[message.rank] = message.error.message
        if message.error.code == ModelError.code and not self._was_ready:
            return [*self._end(text, now), GiveUp(ModelError(text))]
        return self._failed(text, now)

    def _failed(self, text: str, now: float) -> list[Action]:
        self._failures += 1
        actions = self._end(text, now)
        if self._failures >= MAX_FORMATIONS and not self._was_ready:
            return [*actions, GiveUp(GroupError(f"{self.group} could not be formed: {text}"))]
        if self.state is GroupState.FORMING and not self.missing:
            actions += self._form(now)
        return actions

    def heartbeat(self, message: Heartbeat, now: float) -> list[Action]:
        """A rank lives."""
        member = self._member(message.rank, message.agent)
        if member is not None:
            member.heard = now
            member.rss = message.rss
        return []

    def progressed(self, rank: int, step: int, now: float) -> None:
        """A rank finished a step of the current epoch."""
        member = self._members.get(rank)
        if member is not None:
            member.heard = now
            member.step = step

    def leaving(self, message: Leave, now: float) -> list[Action]:
        """A rank was told to stop: what is outstanding is finished, nothing new is issued. See `drained`."""
        member = self._member(message.rank, message.agent)
        if member is None:
            return []
        member.heard = now
        member.leaving = True
        self.reason = f"rank {message.rank} is leaving: {message.reason}"
        if self.state is GroupState.READY:
            self.state = GroupState.DRAINING
            return []
        return self.drained(now)

    def drained(self, now: float) -> list[Action]:
        """Nothing is outstanding any more: the ranks that leave may go."""
        leavers = [rank for rank, member in self._members.items() if member.leaving]
        actions: list[Action] = [Send(rank_tag(rank), Drain(group=self.group, epoch=self.epoch)) for rank in leavers]
        for rank in leavers:
            del self._members[rank]
        if self.state is not GroupState.FORMING:
            actions += self._end(self.reason or "drained", now)
        return actions

    def exited(self, message: RankExited, now: float) -> list[Action]:
        """The launcher saw the process of a rank end."""
        member = self._members.get(message.rank)
        if member is None or member.register.pid != message.pid:
            return []
        return self.lost(message.rank, f"its process {message.pid} ended ({message.reason})", now)

    def lost(self, rank: int, reason: str, now: float) -> list[Action]:
        """A rank is gone, by whatever sign."""
        member = self._members.pop(rank, None)
        if member is None:
            return []
        self._errors[rank] = reason
        self._restarts[rank] = self._restarts.get(rank, 0) + 1
        text = f"rank {rank} lost: {reason}"
        if self.state is GroupState.FORMING:
            self.reason = text
            return []
        return self._failed(text, now) if self.state is GroupState.LOADING else self._end(text, now)

    def _end(self, reason: str, now: float) -> list[Action]:
        """Ends the epoch. Where the ranks talk to each other by MindSpore's own means, their processes end with it."""
        actions: list[Action] = [Ended(self.epoch, reason)]
        self.state = GroupState.FORMING
        self.reason = reason
        self._since = now
        for member in self._members.values():
            member.ready = False
        if self.communication != "none":
            actions.append(Send(RANK_ALL, Restart(group=self.group, reason=reason)))
            self._members.clear()
        return actions

    def broken(self, reason: str, now: float) -> list[Action]:
        """The epoch cannot go on although no rank is known to be lost, as when the ranks fell out of step."""
        if self.state in (GroupState.FORMING, GroupState.LOADING):
            return []
        actions = self._end(reason, now)
        if not self.missing:
            actions += self._form(now)
        return actions

    def tick(self, now: float) -> list[Action]:
        """Time passed: silent ranks are lost, and waiting has an end."""
        actions: list[Action] = []
        for rank, member in sorted(self._members.items()):
            if self._silent(member, now):
                actions += self.lost(rank, f"silent for {now - member.heard:.1f} s", now)
                break
        waited = now - self._since
        if self.state is GroupState.FORMING and not self._was_ready and 0 < self.rules.wait_seconds <= waited:
            ranks = ", ".join(map(str, self.missing))
            error = GroupError(f"{self.group}: ranks {ranks} have not registered within {self.rules.wait_seconds:g} s")
            actions.append(GiveUp(error))
        if self.state is GroupState.LOADING and waited >= self.rules.load_seconds:
            late = [rank for rank, member in self._members.items() if not member.ready]
            actions += self._failed(f"ranks {late} were not ready within {self.rules.load_seconds:g} s", now)
        return actions

    def _silent(self, member: _Member, now: float) -> bool:
        return now - member.heard > self.rules.heartbeat_seconds * self.rules.heartbeats_missed

    def _member(self, rank: int, agent: str) -> _Member | None:
        member = self._members.get(rank)
        return member if member is not None and member.register.agent == agent else None

"""What agents say to a group, and groups brought into a state: shared by the tests of the engine's heart."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rankmq.engine.group import Action, Began, Ended, GiveUp, Group, GroupRules, GroupState, Send
from rankmq.schemas.errors import ModelError
from rankmq.schemas.messages import (
    ErrorInfo,
    GraphInfo,
    GraphPlan,
    GroupId,
    Heartbeat,
    Leave,
    LoadFailed,
    RankExited,
    Ready,
    Register,
    TensorSpec,
)

GROUP = GroupId(servable="matmul", version=1)
FOREIGN = GroupId(servable="other", version=1)

_Kind = TypeVar("_Kind")


def spec(*shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name="", dtype=dtype, shape=shape)


def graph(
    inputs: Sequence[TensorSpec] = (spec(3),),
    outputs: Sequence[TensorSpec] = (spec(3),),
    *,
    collectives: bool = False,
    digest: str = "d",
) -> GraphInfo:
    return GraphInfo(
        file="g.mindir", digest=digest, inputs=tuple(inputs), outputs=tuple(outputs), collectives=collectives
    )


def register(rank: int, agent: str | None = None, **fields: Any) -> Register:
    """By default of agent a<rank> with pid 1000 + rank; any other agent has a pid of its own."""
    pid = 1000 + rank if agent is None else 100_000 + zlib.crc32(agent.encode())
    agent = f"a{rank}" if agent is None else agent
    given = {
        "group": GROUP,
        "host": "here",
        "pid": pid,
        "queue": f"q.{agent}",
        "graphs": (graph(),),
        "scheduler": f"here:{7000 + rank}",
        **fields,
    }
    return Register(rank=rank, agent=agent, **given)


def ready(rank: int, epoch: int, agent: str | None = None) -> Ready:
    return Ready(group=GROUP, epoch=epoch, rank=rank, agent=agent or f"a{rank}", graphs=())


def load_failed(rank: int, epoch: int, code: str = "graph_failed", agent: str | None = None) -> LoadFailed:
    error = ErrorInfo(code=code, message="cannot load")
    return LoadFailed(group=GROUP, epoch=epoch, rank=rank, agent=agent or f"a{rank}", error=error)


def heartbeat(rank: int, agent: str | None = None, **fields: Any) -> Heartbeat:
    return Heartbeat(**{"group": GROUP, "epoch": 1, "rank": rank, "agent": agent or f"a{rank}", **fields})


def leave(rank: int, agent: str | None = None) -> Leave:
    return Leave(group=GROUP, rank=rank, agent=agent or f"a{rank}", reason="told to")


def exited(rank: int, pid: int | None = None) -> RankExited:
    return RankExited(group=GROUP, rank=rank, pid=1000 + rank if pid is None else pid, reason="killed")


def agree(graphs: Mapping[int, Sequence[GraphInfo]]) -> Mapping[int, tuple[GraphPlan, ...]]:
    """Ranks with graphs of the same digest fit together."""
    if len({tuple(one.digest for one in held) for held in graphs.values()}) > 1:
        raise ModelError("the ranks do not fit together")
    return {rank: (GraphPlan(),) for rank in graphs}


def new_group(size: int = 3, now: float = 0.0, **rules: Any) -> Group:
    return Group(GROUP, GroupRules(size=size, **rules), agree, now)


def register_all(group: Group, now: float = 0.0, **fields: Any) -> list[Action]:
    return [action for rank in range(group.rules.size) for action in group.registered(register(rank, **fields), now)]


def ready_all(group: Group, now: float = 0.0) -> list[Action]:
    return [action for rank in range(group.rules.size) for action in group.ready(ready(rank, group.epoch), now)]


def ready_group(size: int = 3, now: float = 0.0, *, fields: Mapping[str, Any] | None = None, **rules: Any) -> Group:
    group = new_group(size, now, **rules)
    register_all(group, now, **(fields or {}))
    ready_all(group, now)
    assert group.state is GroupState.READY
    return group


def sent(actions: Sequence[Action], kind: type[_Kind]) -> dict[str, _Kind]:
    """The messages of a kind among the actions, by tag; no tag may have two."""
    found = [action for action in actions if isinstance(action, Send) and isinstance(action.message, kind)]
    assert len({action.tag for action in found}) == len(found)
    return {action.tag: action.message for action in found}  # type: ignore[misc]


def of(actions: Sequence[Action], kind: type[Began] | type[Ended] | type[GiveUp]) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def pass_time(group: Group, now: float, seconds: float, *, alive: tuple[int, ...] = ()) -> tuple[float, list]:
    """Ticks twice a second, with a heartbeat of the living ranks at each."""
    actions = []
    for _ in range(int(seconds * 2)):
        now += 0.5
        for rank in alive:
            actions += group.heartbeat(heartbeat(rank, epoch=group.epoch), now)
        actions += group.tick(now)
    return now, actions


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float, step: float, each: Callable[[], None]) -> None:
        """Lets time pass in steps."""
        until = self.now + seconds
        while self.now < until:
            self.now += step
            each()

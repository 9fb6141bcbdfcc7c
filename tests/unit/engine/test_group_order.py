"""Given any group, when anything happens to it in any order, then its epochs begin and end as they should."""

from __future__ import annotations

from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rankmq.engine.group import Began, Ended, GiveUp, Group, GroupRules, GroupState, Send
from rankmq.schemas.errors import GroupError, ModelError
from rankmq.schemas.messages import Form, Refused, Restart

from tests.unit.engine.group_life import (
    GROUP,
    agree,
    exited,
    graph,
    heartbeat,
    leave,
    load_failed,
    ready,
    register,
)

COLLECTIVE = {"graphs": (graph(collectives=True),)}


class AnyOrder(RuleBasedStateMachine):
    """Agents that come, load, fail, fall silent, leave and die in any order, also ones that are long gone."""

    size = 3

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.group = self.make()
        self.agents: dict[str, tuple[int, int]] = {}  # alive or not: agent -> rank, pid
        self.began: int | None = None
        self.formed: set[int] = set()
        self.epochs: list[int] = []
        self.serving = False
        self.gave_up = False

    def make(self) -> Group:
        rules = GroupRules(size=self.size, communication="none", load_seconds=15.0, wait_seconds=0.0)
        return Group(GROUP, rules, agree, self.now)

    def restarted(self) -> None:
        pass

    def happened(self, actions: list) -> None:
        forms: dict[int, list[str]] = {}
        for action in actions:
            match action:
                case Began(epoch):
                    assert self.began is None
                    assert epoch in self.formed
                    assert not self.epochs or epoch > self.epochs[-1]
                    self.began = epoch
                    self.epochs.append(epoch)
                    self.serving = True
                case Ended(epoch):
                    assert self.began in (None, epoch)
                    assert epoch in self.formed
                    self.formed.discard(epoch)  # a second end would be found here
                    self.began = None
                case GiveUp(error):
                    assert not self.serving
                    assert isinstance(error, GroupError | ModelError)
                    self.gave_up = True
                case Send(tag, Form() as form):
                    assert tag == f"rank.{form.rank}"
                    forms.setdefault(form.epoch, []).append(tag)
                    assert form.agent in self.agents
                case Send(tag, Refused() as refused):
                    assert not self.group.holds(refused.rank, refused.agent)
                case Send(tag, Restart() as restart):
                    rank, _ = self.agents[restart.agent]
                    assert tag == f"rank.{rank}"
                    assert not self.group.holds(rank, restart.agent)
                    self.restarted()
        for epoch, tags in forms.items():
            assert sorted(tags) == [f"rank.{rank}" for rank in range(self.size)]
            assert not self.formed or epoch > max(self.formed)
            self.formed.add(epoch)

    @rule(rank=st.integers(0, size), known=st.integers(0, 20))
    def an_agent_comes(self, rank, known):
        agent = f"x{len(self.agents)}"
        self.agents[agent] = rank, 5000 + len(self.agents)
        message = register(rank, agent, pid=self.agents[agent][1], last_epoch=known, **self.fields)
        self.happened(self.group.registered(message, self.now))

    fields: ClassVar[dict] = {}

    @precondition(lambda self: self.agents)
    @rule(data=st.data(), back=st.integers(0, 2), queue=st.sampled_from(["q", "another"]))
    def an_agent_registers_again(self, data, back, queue):
        agent = data.draw(st.sampled_from(sorted(self.agents)))
        rank, pid = self.agents[agent]
        epoch = max(0, self.group.epoch - back)
        message = register(rank, agent, pid=pid, queue=f"{queue}.{agent}", last_epoch=epoch, **self.fields)
        self.happened(self.group.registered(message, self.now))

    @precondition(lambda self: self.agents)
    @rule(data=st.data(), word=st.sampled_from(["ready", "beat", "leave", "exit", "fail", "lost", "stuck"]))
    def something_happens_to_an_agent(self, data, word):
        agent = data.draw(st.sampled_from(sorted(self.agents)))
        rank, pid = self.agents[agent]
        epoch = max(0, self.group.epoch - data.draw(st.integers(0, 2)))
        group, now = self.group, self.now
        self.happened(
            {
                "ready": lambda: group.ready(ready(rank, epoch, agent), now),
                "beat": lambda: group.heartbeat(heartbeat(rank, agent, epoch=epoch), now),
                "leave": lambda: group.leaving(leave(rank, agent), now),
                "exit": lambda: group.exited(exited(rank, pid), now),
                "fail": lambda: group.load_failed(load_failed(rank, epoch, agent=agent), now),
                "lost": lambda: group.lost(rank, "gone", now),
                "stuck": lambda: group.stuck([rank], "overdue", now),
            }[word]()
        )

    @rule()
    def all_get_ready(self):
        for it in self.group.ranks():
            if it.agent:
                self.happened(self.group.ready(ready(it.rank, self.group.epoch, it.agent), self.now))
        if self.group.state is not GroupState.DRAINING:
            assert (self.group.state is GroupState.READY) == (self.began is not None)

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, 4.5, 11.0, 86400.0]))
    def time_passes(self, seconds):
        until = self.now + seconds
        while seconds < 60 and self.now < until:
            self.now += 0.5
            self.happened(self.group.tick(self.now))
        self.now = until
        self.happened(self.group.tick(self.now))

    @rule()
    def nothing_is_outstanding(self):
        if self.group.state is GroupState.DRAINING:
            self.happened(self.group.drained(self.now))
            assert self.group.state is not GroupState.DRAINING

    @rule()
    def the_epoch_breaks(self):
        self.happened(self.group.broken("out of step", self.now))

    @invariant()
    def it_serves_between_began_and_ended_and_only_then(self):
        serving = self.group.state in (GroupState.READY, GroupState.DRAINING)
        assert serving == (self.began is not None)
        assert (self.group.forming() is None) == (self.group.state is GroupState.READY)
        states = [it.state for it in self.group.ranks()]
        if serving:
            assert states == ["ready"] * self.size
            assert self.began == self.group.epoch or self.group.epoch > self.began
        if self.group.state is GroupState.FORMING:
            assert "ready" not in states
        else:
            assert self.group.missing == ()

    @invariant()
    def a_group_that_is_whole_does_not_wait_for_nothing(self):
        """What lives comes to serve: a group with all its ranks loads, or has a time at which it will."""
        if self.group.state is GroupState.FORMING and not self.group.missing:
            assert self.gave_up or self.serving

    def teardown(self):
        """From wherever it is, with fresh agents that do as they are told, it serves again."""
        for rank in range(self.size):
            for it in self.group.ranks():
                if it.rank == rank and it.agent:
                    self.happened(self.group.exited(exited(rank, it.pid), self.now))
            agent = f"fresh{rank}"
            self.agents[agent] = rank, 9000 + rank
            self.happened(self.group.registered(register(rank, agent, pid=9000 + rank, **self.fields), self.now))
        for _ in range(200):
            if self.group.state is GroupState.READY:
                break
            self.now += 0.5
            for rank in range(self.size):
                if not self.group.holds(rank, f"fresh{rank}"):
                    message = register(rank, f"fresh{rank}", pid=9000 + rank, **self.fields)
                    self.happened(self.group.registered(message, self.now))
                self.happened(self.group.heartbeat(heartbeat(rank, f"fresh{rank}", epoch=0), self.now))
            self.happened(self.group.tick(self.now))
            self.all_get_ready()
        assert self.group.state is GroupState.READY


class AnyOrderBoundTogether(AnyOrder):
    """The same, where the end of an epoch is the end of all processes."""

    fields: ClassVar[dict] = COLLECTIVE

    def make(self) -> Group:
        return Group(GROUP, GroupRules(size=self.size, load_seconds=15.0), agree, self.now)

    def restarted(self) -> None:
        assert self.group.missing == (0, 1, 2) or self.group.state is not GroupState.READY


TestAnyOrder = AnyOrder.TestCase


TestAnyOrderBoundTogether = AnyOrderBoundTogether.TestCase

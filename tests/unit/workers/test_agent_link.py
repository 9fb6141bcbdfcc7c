"""Given an agent that was part of an epoch, when it has to register again, it does so if it can be part of another."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rankmq.engine.settings import Settings
from rankmq.schemas import codec
from rankmq.schemas.messages import Drain, Form, GroupId, Register, Restart, Welcome
from rankmq.workers.agent import AgentConfig
from rankmq.workers.agent_link import AgentLink

GROUP = GroupId(servable="matmul", version=1)


class World:
    """The compute side and the broker of an agent."""

    def __init__(self) -> None:
        config = AgentConfig(GROUP, 0, (Path("a.npz"),), Settings(), "here")
        self.said: list[object] = []
        self.restarts = self.ends = 0
        self.link = AgentLink(config, (), self, scheduler="", device="CPU", shm=True)
        self.link._channel = SimpleNamespace(publish=self.publish)
        self.agent = config.agent

    def publish(self, exchange: str, key: str, body: bytes, properties: object, *, then: object) -> None:
        self.said.append(codec.decode_to_orchestrator(body))

    def alive(self, *, serving: bool) -> None:
        pass

    def form(self, form: Form) -> None:
        pass

    def restart(self) -> None:
        self.restarts += 1

    def end(self, failure: object = None) -> None:
        self.ends += 1

    def hears_form(self, communication: str) -> None:
        given = {"results": "r", "peers": (0,), "scheduler": "", "plans": (), "window": 1, "heartbeat_seconds": 1.0}
        form = Form(group=GROUP, epoch=4, rank=0, agent=self.agent, communication=communication, **given)
        self.link._on_control(form)

    def hears_welcome(self) -> None:
        self.hears(Welcome(group=GROUP, agent="*", orchestrator="another"))

    def hears(self, message: Welcome | Restart | Drain) -> None:
        self.link._on_control(message)


@pytest.fixture
def world() -> Iterator[World]:
    found = World()
    yield found
    found.link._loop.close()


@pytest.mark.parametrize("communication", ["mccl", "hccl"])
def test_one_that_cannot_join_again_starts_anew(world, communication):
    world.hears_form(communication)
    assert world.restarts == 0
    world.hears_welcome()
    assert (world.restarts, world.said) == (1, [])


@pytest.mark.parametrize("communication", ["shm", "none"])
def test_one_that_can_registers(world, communication):
    world.hears_form(communication)
    world.hears_welcome()
    assert world.restarts == 0
    (said,) = world.said
    assert isinstance(said, Register)
    assert said.last_epoch == 4


def test_one_that_was_part_of_nothing_registers(world):
    world.hears_welcome()
    assert world.restarts == 0
    assert len(world.said) == 1


# ------------------------------------------------------------- words for who held the rank before, or holds it with us


@pytest.mark.parametrize("mine", [False, True])
def test_only_who_is_meant_starts_anew(world, mine):
    world.hears(Restart(group=GROUP, agent=world.agent if mine else "another", reason="overdue"))
    assert world.restarts == mine


@pytest.mark.parametrize("mine", [False, True])
def test_only_who_is_meant_registers_again(world, mine):
    world.hears(Welcome(group=GROUP, agent=world.agent if mine else "another", orchestrator="o"))
    assert len(world.said) == mine


@pytest.mark.parametrize("mine", [False, True])
def test_only_who_is_meant_may_go(world, mine):
    world.link._leaving = "told to stop"
    world.hears(Drain(group=GROUP, agent=world.agent if mine else "another", epoch=4))
    assert world.ends == mine


def test_who_does_not_leave_is_not_sent_away(world):
    world.hears(Drain(group=GROUP, agent=world.agent, epoch=4))
    assert world.ends == 0

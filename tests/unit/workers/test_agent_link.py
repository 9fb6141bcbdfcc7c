"""An agent's I/O thread: what it hears and what follows, what it says, and that no error of it goes unseen."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rankmq.engine.confirms import Outcome
from rankmq.engine.delivery import Delivery
from rankmq.engine.settings import Settings
from rankmq.schemas import codec
from rankmq.schemas.errors import ConnectionLost, RankmqError
from rankmq.schemas.messages import (
    Call,
    Drain,
    ErrorInfo,
    Form,
    GroupId,
    Heartbeat,
    Message,
    Ready,
    Refused,
    Register,
    Restart,
    Task,
    Welcome,
)
from rankmq.workers.agent import AgentConfig
from rankmq.workers.agent_link import AgentLink
from rankmq.workers.lockstep import Step

GROUP = GroupId(servable="matmul", version=1)
OTHER = GroupId(servable="matmul", version=2)


class World:
    """The compute side and the broker of an agent."""

    def __init__(self) -> None:
        config = AgentConfig(GROUP, 0, (Path("a.npz"),), Settings(broker_url="amqp://127.0.0.1/"), "here")
        self.said: list[object] = []
        self.restarts = self.ends = 0
        self.failure: RankmqError | None = None
        self.steps: list[tuple[int, int]] = []
        self.link = AgentLink(config, (), self, scheduler="", device="CPU", shm=True)
        self.link._channel = SimpleNamespace(publish=self.publish)
        self.told: list[Callable[[Outcome], None]] = []
        self.agent = config.agent

    def publish(
        self, exchange: str, key: str, body: bytes, properties: object, *, then: Any, mandatory: bool = True
    ) -> None:
        self.said.append(codec.decode_to_orchestrator(body))
        self.told.append(then)

    def alive(self, *, serving: bool) -> None:
        pass

    def form(self, form: Form) -> None:
        pass

    def restart(self) -> None:
        self.restarts += 1

    def step(self, epoch: int, step: Step) -> None:
        self.steps.append((epoch, step.step))

    def end(self, failure: RankmqError | None = None) -> None:
        self.ends += 1
        self.failure = failure

    def hears_form(self, communication: str) -> None:
        given = {"results": "r", "peers": (0,), "scheduler": "", "plans": (), "window": 1, "heartbeat_seconds": 1.0}
        self.hears(Form(group=GROUP, epoch=4, rank=0, agent=self.agent, communication=communication, **given))

    def hears_welcome(self) -> None:
        self.hears(Welcome(group=GROUP, agent="*", orchestrator="another"))

    def hears(self, message: Message | bytes) -> None:
        body = message if isinstance(message, bytes) else codec.encode(message)
        self.link._on_message(Delivery(body, 0, "", "", False, None))


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


def test_one_that_nobody_heard_registers_again_until_somebody_forms_it(world, monkeypatch):
    """A registration after the form would end the epoch, and be for nothing."""
    monkeypatch.setattr("rankmq.workers.agent_link._REGISTER_AGAIN_SECONDS", 0.0)

    async def a_while() -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    world.hears_welcome()
    world.told[-1](Outcome.RETURNED)
    world.link._loop.run_until_complete(a_while())
    assert [type(it) for it in world.said] == [Register] * 2
    world.told[-1](Outcome.RETURNED)
    world.hears_form("none")
    world.told[-1](Outcome.RETURNED)
    world.link._loop.run_until_complete(a_while())
    assert [type(it) for it in world.said] == [Register] * 2


# ------------------------------------------------------------------------------------------------ ready, and its errors


def says_ready(world: World, bound: object) -> None:
    """Says that it is ready, once its tags are bound: `bound` is done then, or raises."""

    async def binding() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        assert world.said == []
        if isinstance(bound, Exception):
            raise bound

    async def say() -> None:
        world.link._binding = world.link._loop.create_task(binding())
        world.link.ready(Ready(group=GROUP, epoch=0, rank=0, agent=world.agent, graphs=()))
        await asyncio.sleep(0.05)
        assert world.link._saying is not None
        assert world.link._saying.done()

    world.link._loop.run_until_complete(say())


def test_a_rank_is_ready_when_its_tags_are_bound(world):
    says_ready(world, None)
    assert [type(it) for it in world.said] == [Ready]


def test_one_whose_tags_cannot_be_bound_does_not_say_that_it_is_ready(world, caplog):
    says_ready(world, ConnectionLost("the channel is closed"))
    assert (world.said, world.ends) == ([], 0)
    assert "could not get ready: the channel is closed" in caplog.text


def test_a_defect_ends_the_agent(world, caplog):
    says_ready(world, ZeroDivisionError("a defect"))
    assert (world.said, world.ends) == ([], 1)
    assert "a defect" in world.failure.message
    assert "ZeroDivisionError" in caplog.text


class Broker:
    """As a connection and its channel, on which all goes well."""

    server_version = (3, 10, 8)

    blocked = False
    max_message = 1 << 24

    def __init__(self) -> None:
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.said: list[object] = []

    async def channel(self, *, confirm: bool = True, vital: bool = False) -> "Broker":
        return self

    async def declare(self, topology: object) -> None:
        pass

    async def consume(self, queue: str, on_message: object, *, no_ack: bool, exclusive: bool, properties: bool) -> None:
        assert not properties
        self.consumed = queue

    def publish(
        self, exchange: str, key: str, body: bytes, properties: object, *, then: object, mandatory: bool = True
    ) -> None:
        self.said.append(codec.decode_to_orchestrator(body))

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("error", [ZeroDivisionError("no memory is known"), ConnectionLost("no memory is known")])
def test_an_error_of_the_heartbeat_ends_the_agent(world, monkeypatch, caplog, error):
    opened: list[Broker] = []

    async def open_it(*_: object, **__: object) -> Broker:
        opened.append(Broker())
        return opened[-1]

    def memory_info() -> object:
        if sum(isinstance(it, Heartbeat) for it in opened[0].said) == 2:
            raise error
        return SimpleNamespace(rss=1)

    monkeypatch.setattr("rankmq.workers.agent_link.Connection.open", open_it)
    world.link._process = SimpleNamespace(memory_info=memory_info)
    world.link._heartbeat_seconds = 0.01
    world.link.run()
    assert [type(it) for it in opened[0].said] == [Register, Heartbeat, Heartbeat]
    assert len(opened) == 1
    assert "no memory is known" in world.failure.message


def test_each_connection_has_a_queue_of_its_own(world, monkeypatch):
    """So whoever hears of it knows what was lost with the one before."""
    opened: list[Broker] = []

    async def open_it(*_: object, **__: object) -> Broker:
        opened.append(Broker())
        opened[-1].closed.set_result("the broker went away")
        if len(opened) == 3:
            world.link._closing.set()
        return opened[-1]

    monkeypatch.setattr("rankmq.workers.agent_link.Connection.open", open_it)
    world.link.run()
    queues = [broker.said[0].queue for broker in opened]
    assert queues == [broker.consumed for broker in opened]
    assert len(set(queues)) == 3
    assert all(f".{world.agent}-" in queue for queue in queues)


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


# ----------------------------------------------------------------------------------- what is not for it, or out of step


def task(step: int, group: GroupId = GROUP, epoch: int = 4) -> Task:
    return Task(group=group, epoch=epoch, step=step, work=Call(subgraph=0, rows=1))


@pytest.mark.parametrize(
    "message",
    [
        task(0, group=OTHER),
        task(77, group=OTHER, epoch=9),
        Restart(group=OTHER, agent="a", reason="overdue"),
        Welcome(group=OTHER, agent="*", orchestrator="o"),
        Refused(group=OTHER, rank=0, agent="*", error=ErrorInfo(code="group_incomplete", message="no")),
        b"\xc1 what is this",
        Register(group=GROUP, rank=0, agent="a", host="h", pid=1, queue="q", graphs=()),
    ],
    ids=lambda it: type(it).__name__,
)
def test_what_is_not_for_its_group_is_refused_with_one_line_and_harms_nothing(world, caplog, message):
    world.hears_form("none")
    world.hears(message)
    (line,) = [it.message for it in caplog.records]
    assert line.startswith("refused a ")
    if not isinstance(message, bytes | Register):
        assert f"refused a {type(message).__name__} of group matmul.v2.g0: this is matmul.v1.g0" in line
    world.hears(task(0))
    assert world.steps == [(4, 0)]
    assert (world.said, world.ends, world.restarts) == ([], 0, 0)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (task(2), "expected step 1, got step 2: a gap"),
        (task(0), "expected step 1, got step 0 again"),
        (task(1, epoch=5), "expected epoch 4, got step 1 of epoch 5"),
    ],
)
def test_a_step_out_of_order_is_told_once_and_ends_the_epoch(world, caplog, bad, says):
    world.hears_form("none")
    world.hears(task(0))
    for message in (bad, task(1), task(2)):
        world.hears(message)
    (line,) = [it.message for it in caplog.records]
    assert says in line
    assert "rank 0 of matmul.v1.g0" in line
    assert world.steps == [(4, 0)]
    assert [type(it) for it in world.said] == [Register]


def test_a_step_of_an_epoch_that_is_over_is_dropped(world, caplog):
    world.hears_form("none")
    for message in (task(0, epoch=3), task(9, epoch=3), task(0)):
        world.hears(message)
    assert world.steps == [(4, 0)]
    assert (caplog.records, world.said) == ([], [])

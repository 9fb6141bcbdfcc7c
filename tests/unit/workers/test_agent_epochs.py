"""Given work of an epoch that is over, when the next one forms, then a rank spends no time on it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rankmq.engine.settings import Settings
from rankmq.schemas.errors import GroupError
from rankmq.schemas.messages import Call, Form, GraphPlan, GroupId
from rankmq.schemas.tensors import from_array
from rankmq.workers.agent import Agent, AgentConfig
from rankmq.workers.lockstep import Step

GROUP = GroupId(servable="matmul", version=1)


class Executor:
    """Remembers what it was asked to do; opening a group takes until it is aborted or stopped, if the test says so."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.aborted = threading.Event()
        self.opening = threading.Event()
        self.may_open = threading.Event()
        self.may_open.set()
        self.waits_for = ""
        self.heeds_aborts = True
        self.failed_epochs: list[int] = []

    def load(self, *_: object) -> None:
        self.aborted.clear()

    def begin_step(self, step: int) -> None:
        self.done.append(step)

    def open_group(
        self, communication: str, rank: int, size: int, address: str, table: Any, timeout: float, stopped: Any
    ) -> None:
        self.done.append(address)
        if address == self.waits_for:
            self.opening.set()
            assert self.may_open.wait(10)
            if not waited_for(lambda: stopped() or (self.heeds_aborts and self.aborted.is_set())):
                raise AssertionError("it waits for a rank that will not come")
            raise GroupError("told to give up")

    def warm_up(self) -> tuple[()]:
        return ()

    def abort(self) -> None:
        self.aborted.set()

    def run(self, subgraph: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return inputs


def waited_for(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def form(epoch: int) -> Form:
    return Form(
        group=GROUP,
        epoch=epoch,
        rank=0,
        agent="a",
        results="results",
        peers=(0, 1),
        communication="shm",
        scheduler=f"segment-{epoch}",
        plans=(GraphPlan(returns=(0,)),),
        window=4,
        heartbeat_seconds=1.0,
    )


def step(number: int) -> Step:
    return Step(number, Call(subgraph=0, rows=1), [[from_array(np.ones(1))]], ())


def computed(executor: Executor, say: Any) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """What a rank has said: the epochs it is ready for, the epochs and steps of its replies, the epochs it failed."""
    config = AgentConfig(GROUP, 0, (Path("a.npz"),), Settings(), "here")
    agent, ready, replies = Agent(config, executor), [], []
    link = SimpleNamespace(
        ready=lambda message: ready.append(message.epoch),
        reply=lambda message, _: replies.append((message.epoch, message.step)),
        load_failed=lambda message: executor.failed_epochs.append(message.epoch),
    )
    talker = threading.Thread(target=say, args=(agent,))
    talker.start()
    agent._compute(link)
    talker.join()
    return ready, replies, executor.failed_epochs


def test_what_waits_of_the_last_epoch_is_left() -> None:
    executor = Executor()
    config = AgentConfig(GROUP, 0, (Path("a.npz"),), Settings(), "here")
    agent = Agent(config, executor)
    agent.form(form(1))
    agent.step(1, step(0))
    agent.step(1, step(1))
    agent.form(form(2))
    agent.step(2, step(0))
    agent.end()
    replies: list[tuple[int, int]] = []
    agent._compute(
        SimpleNamespace(
            ready=lambda message: None, reply=lambda it, _: replies.append((it.epoch, it.step)), load_failed=print
        )
    )
    assert executor.done == ["segment-2", 0]
    assert replies == [(2, 0)]


def test_a_rank_that_waits_for_one_that_was_lost_gives_up_when_the_next_epoch_forms() -> None:
    executor = Executor()
    executor.waits_for = "segment-1"

    def say(agent: Agent) -> None:
        agent.form(form(1))
        assert executor.opening.wait(10)
        agent.form(form(2))
        agent.end()

    assert computed(executor, say) == ([2], [], [])


def test_one_that_was_about_to_wait_when_the_next_epoch_formed_gives_up_too() -> None:
    """The word to give up came before there was anything to break off."""
    executor = Executor()
    executor.waits_for, executor.heeds_aborts = "segment-1", False
    executor.may_open.clear()

    def say(agent: Agent) -> None:
        agent.form(form(1))
        assert executor.opening.wait(10)
        agent.form(form(2))
        executor.may_open.set()
        assert waited_for(lambda: "segment-2" in executor.done)
        agent.end()

    assert computed(executor, say) == ([2], [], [])


def test_one_that_waits_for_others_does_not_hold_up_its_own_end() -> None:
    executor = Executor()
    executor.waits_for = "segment-1"

    def say(agent: Agent) -> None:
        agent.form(form(1))
        assert executor.opening.wait(10)
        agent.end()

    began = time.monotonic()
    assert computed(executor, say) == ([], [], [])
    assert time.monotonic() - began < 10


def test_one_whose_group_cannot_be_opened_says_so() -> None:
    executor = Executor()
    executor.waits_for = "segment-1"

    def say(agent: Agent) -> None:
        agent.form(form(1))
        assert executor.opening.wait(10)
        executor.abort()  # as when another rank has died
        assert waited_for(lambda: executor.failed_epochs == [1])
        agent.end()

    assert computed(executor, say)[2] == [1]

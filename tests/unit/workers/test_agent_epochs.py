"""Given work of an epoch that is over, when the next one forms, then a rank spends no time on it."""

import threading
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
    """Remembers what it was asked to do; opening a group takes until it is aborted, if the test says so."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.aborted = threading.Event()
        self.opening = threading.Event()
        self.waits_for = ""

    def load(self, *_: object) -> None:
        self.aborted.clear()

    def begin_step(self, step: int) -> None:
        self.done.append(step)

    def open_group(self, communication: str, rank: int, size: int, address: str, *_: object) -> None:
        self.done.append(address)
        if address == self.waits_for:
            self.opening.set()
            if not self.aborted.wait(20):
                raise AssertionError("it waits for a rank that will not come")
            raise GroupError("told to give up")

    def warm_up(self) -> tuple[()]:
        return ()

    def abort(self) -> None:
        self.aborted.set()

    def run(self, subgraph: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return inputs


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


def computed(executor: Executor, say: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """What a rank has said: the epochs it is ready for, and the epochs and steps of its replies."""
    config = AgentConfig(GROUP, 0, (Path("a.npz"),), Settings(), "here")
    agent, ready, replies = Agent(config, executor), [], []
    link = SimpleNamespace(
        ready=lambda message: ready.append(message.epoch),
        reply=lambda message: replies.append((message.epoch, message.step)),
        load_failed=lambda message: None,
    )
    talker = threading.Thread(target=say, args=(agent,))
    talker.start()
    agent._compute(link)
    talker.join()
    return ready, replies


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
            ready=lambda message: None, reply=lambda it: replies.append((it.epoch, it.step)), load_failed=print
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

    assert computed(executor, say) == ([2], [])

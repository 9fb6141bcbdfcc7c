"""Steps through the blob store: every row gets its answer, in whatever order threads and ranks do what they do."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from msgspec import structs
from rankmq.engine.blobs import BlobStore
from rankmq.engine.group import GroupState
from rankmq.engine.step_blobs import StepBlobs, StepWriter, whole
from rankmq.schemas.errors import BlobUnavailable
from rankmq.schemas.messages import Call, Column, Form, RankReply, Ready, Task
from rankmq.schemas.tensors import Tensor, from_array, to_array
from rankmq.workers.lockstep import Step
from rankmq.workers.rank_blobs import RankBlobs

from tests.unit.engine.group_life import GROUP
from tests.unit.engine.simulation import Calls, World, rows_of

LIMIT = 8


class BlobWorld(World):
    """Ranks that have a blob store, and threads that write and read whenever it pleases them."""

    def __init__(self, **given: Any) -> None:
        self.root = f"/{uuid.uuid4().hex}"
        self.store = BlobStore(f"memory:/{self.root}")
        self.pool: list[Callable[[], None]] = []
        self.broken_store = False
        self.by_reference = 0
        size = given.get("ranks", 3)
        self.step_blobs = StepBlobs(
            self.store, self.in_pool, self.store.delete, limit=LIMIT, size=size, written=self.pump
        )
        self.rank_blobs = RankBlobs(self.store)
        self.rank_blobs.form(SimpleNamespace(inline_limit=LIMIT))
        super().__init__(**given)

    def pump(self) -> None:
        self.driver.pump()

    def in_pool(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.pool.append(lambda: done(work()))

    def choices(self) -> list[Callable[[], None]]:
        works = [lambda number=number: self.pool.pop(number)() for number in range(len(self.pool))]
        return [*super().choices(), *works]

    def blobs(self) -> StepWriter | None:
        return StepWriter(self.store, self.in_pool, self.store.delete, LIMIT, self.pump)

    def send_task(self, subgraph: int, tag: str, task: Task) -> None:
        self.by_reference += sum(it.blob is not None for column in task.inputs for it in column.tensors)
        super().send_task(subgraph, tag, structs.replace(task, inputs=whole(self.store, task.inputs)))

    def _replies(self, reply: RankReply) -> None:
        self.step_blobs.read(self.rank_blobs.written(reply), super()._replies)

    def left(self) -> list[str]:
        return MemoryFileSystem().find(self.root)


def ready(**given: Any) -> BlobWorld:
    world = BlobWorld(**given)
    world.run()
    assert world.driver.group.state is GroupState.READY
    return world


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("stacked", [True, False])
def test_every_row_gets_what_numpy_says(stacked, seed):
    world = ready(stacked=stacked)
    calls, random = Calls(world), Random(seed)
    for number in range(9):
        calls.call(number % 3, rows_of(number % 3, random.randint(1, 5), seed=number))
        if random.random() < 0.5:
            world.run(random, most=100_000)
    world.run(random)
    assert [calls.check(number) for number in range(9)] == [{}] * 9
    assert world.by_reference > 0
    assert world.left() == []


@pytest.mark.parametrize("seed", range(6))
def test_ranks_are_lost_meanwhile(seed):
    world = ready(max_attempts=20)
    calls, random = Calls(world), Random(seed)
    for number in range(6):
        calls.call(number % 3, rows_of(number % 3, 3, seed=number))
        for _ in range(random.randint(0, 30)):
            if found := world.choices():
                random.choice(found)()
        world.dies(random.choice(world.living()))
        world.settle(random)
    assert [calls.check(number) for number in range(6)] == [{}] * 6
    world.run(random)
    of_the_dead = len(world.left())  # what a rank had written that was never read goes by its age
    assert of_the_dead <= 3 * 6 * 3


def test_a_store_that_cannot_be_written_is_done_without(monkeypatch):
    world = ready()
    calls = Calls(world)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", _refuse)
    calls.call(0, rows_of(0, 4))
    world.run()
    assert calls.check(0) == {}
    assert world.by_reference == 0


def test_a_row_that_needs_the_store_and_cannot_have_it(monkeypatch):
    world = ready(max_message=6000)
    calls = Calls(world)
    large = (np.full(1000, 0.5),)
    calls.call(2, [large])
    world.run()
    assert calls.check(0) == {}
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", _refuse)
    calls.call(2, [large, (np.ones(1),)])
    world.run()
    assert calls.check(1) == {0: BlobUnavailable}
    assert "Permission denied" in str(calls.results[1][0])


def _refuse(*_: Any, **__: Any) -> None:
    raise PermissionError(13, "Permission denied")


def test_calls_that_are_given_up_while_they_are_written_leave_nothing():
    world = ready()
    calls = Calls(world)
    calls.call(0, rows_of(0, 2))
    while not world.pool:
        world.choices()[0]()
    world.driver.fail_all(BlobUnavailable("the test ends it"))
    world.driver._feed.epoch_ended(None)
    world.run()
    assert calls.errors(0) == dict.fromkeys(range(2), BlobUnavailable)
    assert world.left() == []


# -------------------------------------------------------------------------------------------------------- one by one


def test_only_if_every_rank_has_a_store():
    blobs = StepBlobs(BlobStore("memory://x"), None, None, limit=LIMIT, size=2, written=None)
    for epoch in (1, 2):
        form = Form(group=GROUP, epoch=epoch, rank=0, agent="a", results="r")
        assert blobs.offer(form).inline_limit == LIMIT
        for rank, has in ((0, True), (1, epoch == 2)):
            assert blobs.writer() is None
            blobs.accept(Ready(group=GROUP, epoch=epoch, rank=rank, agent="a", graphs=(), blobs=has))
    assert blobs.writer() is not None
    blobs.offer(Form(group=GROUP, epoch=3, rank=0, agent="a", results="r"))
    blobs.accept(Ready(group=GROUP, epoch=2, rank=0, agent="a", graphs=(), blobs=True))
    assert blobs.writer() is None


def a_reply(rank: int, step: int, *tensors: Tensor) -> RankReply:
    return RankReply(group=GROUP, epoch=1, step=step, rank=rank, outputs=(Column(index=0, tensors=tensors),))


def test_the_answers_of_a_rank_stay_in_order():
    store, pool, told = BlobStore(f"memory://{uuid.uuid4().hex}"), [], []
    blobs = StepBlobs(
        store, lambda work, done: pool.append((work, done)), store.delete, limit=LIMIT, size=2, written=None
    )
    large, small = from_array(np.arange(9)), from_array(np.ones(1, np.int8))
    for step, tensor in enumerate([store.put(large), small, store.put(large), small]):
        blobs.read(a_reply(0, step, tensor), told.append)
    blobs.read(a_reply(1, 0, small), told.append)
    assert [(it.rank, it.step) for it in told] == [(1, 0)]
    for work, done in reversed(pool):
        done(work())
    blobs.read(a_reply(0, 4, small), told.append)
    assert [it.step for it in told if it.rank == 0] == [0, 1, 2, 3, 4]
    assert [to_array(it.outputs[0].tensors[0]).size for it in told if it.rank == 0] == [9, 1, 9, 1, 1]


def test_an_answer_that_cannot_be_read_is_an_error_of_its_step():
    store, told = BlobStore(f"memory://{uuid.uuid4().hex}"), []
    blobs = StepBlobs(store, lambda work, done: done(work()), store.delete, limit=LIMIT, size=1, written=None)
    gone = store.put(from_array(np.arange(9)))
    store.delete([gone.blob.name])
    blobs.read(a_reply(0, 0, gone), told.append)
    assert told[0].error.code == "blob_unavailable"
    assert told[0].outputs == ()


def test_a_rank_without_a_store_says_what_to_do():
    rank = RankBlobs(None)
    store = BlobStore(f"memory://{uuid.uuid4().hex}")
    step = Step(0, Call(subgraph=0, rows=1), ((store.put(from_array(np.arange(9))),),), ())
    assert not rank.there
    with pytest.raises(BlobUnavailable, match="set blob_store on its host"):
        rank.filled(step)
    plain = Step(0, Call(subgraph=0, rows=1), ((from_array(np.arange(9)),),), ())
    assert rank.filled(plain) is plain
    assert to_array(RankBlobs(store).filled(step).inputs[0][0]).tolist() == list(range(9))


def test_a_rank_writes_what_is_large_if_the_orchestrator_has_a_store(monkeypatch):
    store = BlobStore(f"memory://{uuid.uuid4().hex}")
    rank = RankBlobs(store)
    reply = a_reply(
        0, 0, from_array(np.arange(9)), from_array(np.ones(1, np.int8)), Tensor("string", (1,), ("a" * 99,))
    )
    assert rank.written(reply) is reply
    rank.form(SimpleNamespace(inline_limit=LIMIT))
    found = rank.written(reply).outputs[0].tensors
    assert [it.blob is None for it in found] == [False, True, True]
    assert to_array(store.get(found[0])).tolist() == list(range(9))
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", _refuse)
    assert rank.written(reply) is reply

"""Blobs that are not needed any more are deleted after a while, at the end at once, and by their age."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rankmq.engine import blob_keeper
from rankmq.engine.blob_keeper import BlobKeeper
from rankmq.schemas.errors import BlobUnavailable


class Store:
    def __init__(self, fails: bool = False) -> None:
        self.deleted: list[str] = []
        self.swept: list[float] = []
        self.fails = fails
        self.threads: set[int] = set()
        self.enough = threading.Event()
        self.answers = threading.Event()
        self.answers.set()

    def try_out(self) -> None:
        self.threads.add(threading.get_ident())
        self.answers.wait(20)
        if self.fails:
            raise BlobUnavailable("the blob store cannot be written: no")

    def delete(self, names: Sequence[str]) -> None:
        self.threads.add(threading.get_ident())
        self.deleted += names

    def sweep(self, seconds: float) -> int:
        self.swept.append(seconds)
        if len(self.swept) == 3:
            self.enough.set()
        if self.fails:
            raise BlobUnavailable("no")
        return 1


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # a thread of the store says it
            await asyncio.sleep(0.005)


def run(store: Store, what, **given) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(2) as pool:
            keeper = BlobKeeper(store, pool, **{"age": 1.0, **given})
            await what(keeper)
            await keeper.close()

    asyncio.run(main())


def test_after_a_while_and_in_order_and_not_on_the_loop():
    store = Store()

    async def what(keeper: BlobKeeper) -> None:
        keeper.discard(["a", "b"])
        await asyncio.sleep(0.02)
        keeper.discard(["c"])
        assert store.deleted == []
        await until(lambda: len(store.deleted) == 3)

    run(store, what, keep=0.05)
    assert store.deleted == ["a", "b", "c"]
    assert threading.get_ident() not in store.threads


def test_at_the_end_at_once():
    store = Store()

    async def what(keeper: BlobKeeper) -> None:
        keeper.discard(["a"])
        keeper.discard(["b"])

    run(store, what, keep=1000.0)
    assert store.deleted == ["a", "b"]


def test_no_more_are_kept_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(blob_keeper, "_MOST_KEPT", 3)
    store = Store()

    async def what(keeper: BlobKeeper) -> None:
        for number in range(5):
            keeper.discard([str(number)])
        await until(lambda: len(store.deleted) == 2)
        assert set(store.deleted) == {"0", "1"}

    run(store, what, keep=1000.0)


def test_a_store_that_cannot_be_used_is_said_once_with_the_setting_and_swept_all_the_same(caplog):
    store, told = Store(fails=True), []

    async def what(keeper: BlobKeeper) -> None:
        await until(store.enough.is_set)

    run(store, what, age=0.00001, on_warning=told.append)
    assert told == [
        "see the setting blob_store: the blob store cannot be written: no; "
        "until it can be used, tensors that must go through it fail"
    ]
    assert [it.message for it in caplog.records] == told
    assert threading.get_ident() not in store.threads


def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(blob_keeper, "_TRY_SECONDS", 0.01)
    store, told = Store(), []
    store.answers.clear()

    async def what(keeper: BlobKeeper) -> None:
        await until(lambda: told and store.swept)
        store.answers.set()

    run(store, what, on_warning=told.append)
    assert "the blob store has not answered within 0.01 s" in told[0]


def test_it_sweeps_again_and_again_whatever_comes_of_it(caplog):
    store = Store(fails=True)
    store.try_out = lambda: None

    async def what(keeper: BlobKeeper) -> None:
        await until(store.enough.is_set)

    run(store, what, age=0.00001)
    assert set(store.swept) == {3600 * 0.00001}
    assert len([it for it in caplog.records if "not swept" in it.message]) == 1, "told once"

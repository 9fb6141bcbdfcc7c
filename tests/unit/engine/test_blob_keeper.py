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


def run(store: Store, what, **given: float) -> None:
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


def test_it_sweeps_again_and_again_whatever_comes_of_it(caplog):
    store = Store(fails=True)

    async def what(keeper: BlobKeeper) -> None:
        await until(store.enough.is_set)

    run(store, what, age=0.00001)
    assert set(store.swept) == {3600 * 0.00001}
    assert len([it for it in caplog.records if "not swept" in it.message]) == 1, "told once"

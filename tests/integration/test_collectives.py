"""Collectives through shared memory, between real processes."""

import hashlib
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rankmq.schemas.errors import GroupError
from rankmq.workers.collectives import library as compiled
from rankmq.workers.collectives.build import find_compiler

from .collective_ranks import Rank, Ranks, left_behind, reduced, values

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
SIZE = 8
REDUCIBLE = [
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("float16", "bfloat16", "float32", "float64"),
]
SHAPES = [(), (0,), (1,), (3, 5), (0, 4), (1000,), (8, 16), (1025,), (16, 1001), (256, 257), (1 << 17,)]


@pytest.fixture(scope="session")
def library():
    return compiled()  # in this user's cache, as for everybody: it takes seconds


@pytest.fixture(scope="module")
def pool(library):
    ranks = Ranks(library, SIZE)
    yield ranks
    ranks.close()


@pytest.fixture
def ranks(pool):
    """Eight ranks with an open group; what a test does to the group is gone with it, the processes stay."""
    pool.open()
    yield pool
    assert left_behind() == []


def faults(ranks, but=()):
    return ranks.all("fault", but=but)


# ------------------------------------------------------------------------------------------------------ right results


def check(rank: Rank, kind: str, dtype: str, shape: tuple[int, ...], reduction: str, seed: int) -> tuple[int, int, str]:
    """Elements looked at, elements wrong, and a digest of the result."""
    arrays = [values(dtype, peer, seed, shape) for peer in range(rank.size)]
    mine = arrays[rank.rank]
    if kind == "all_reduce":
        out, expected = rank.all_reduce(mine, reduction), reduced(arrays, reduction)
    elif kind == "all_gather":
        out, expected = rank.all_gather(mine), np.concatenate(arrays)
    elif kind == "broadcast":
        root = seed % rank.size
        out, expected = rank.broadcast(mine, root), arrays[root]
    else:
        out = rank.reduce_scatter(mine, reduction)
        expected = np.split(reduced(arrays, reduction), rank.size)[rank.rank]
    assert out.dtype == expected.dtype
    assert out.shape == expected.shape
    bits = f"V{out.itemsize}"  # bit for bit: signs of zeros too
    wrong = int(np.sum(out.view(bits) != expected.view(bits))) if out.size else 0
    return out.size, wrong, hashlib.sha256(out.tobytes()).hexdigest()


@pytest.mark.parametrize("reduction", ["sum", "max", "min"])
@pytest.mark.parametrize("dtype", REDUCIBLE)
def test_all_reduce(ranks, dtype, reduction):
    for seed, shape in enumerate(SHAPES):
        results = ranks.all("do", check, "all_reduce", dtype, shape, reduction, seed)
        assert {(total, wrong) for total, wrong, _ in results} == {(int(np.prod(shape)), 0)}, shape
        assert len({digest for *_, digest in results}) == 1, "the ranks have different results"


@pytest.mark.parametrize("dtype", ["bool", *REDUCIBLE])
def test_all_gather_and_broadcast(ranks, dtype):
    for seed, shape in enumerate(SHAPES):
        results = ranks.all("do", check, "broadcast", dtype, shape, "", seed)
        if shape:
            results += ranks.all("do", check, "all_gather", dtype, shape, "", seed)
        assert not any(wrong for _, wrong, _ in results), shape


@pytest.mark.parametrize("reduction", ["sum", "max", "min"])
@pytest.mark.parametrize("dtype", ["int32", "float16", "bfloat16", "float32"])
def test_reduce_scatter(ranks, dtype, reduction):
    for seed, shape in enumerate([(0,), (SIZE,), (8, 3), (0, 4), (16, 1001), (1 << 17,)]):
        results = ranks.all("do", check, "reduce_scatter", dtype, shape, reduction, seed)
        assert not any(wrong for _, wrong, _ in results), shape


def test_a_million_random_elements(ranks):
    results = ranks.all("do", check, "all_reduce", "float32", (1 << 20,), "sum", 99)
    assert {result[:2] for result in results} == {(1 << 20, 0)}


@pytest.mark.parametrize(("size", "slot_bytes"), [(1, 64), (2, 128), (3, 192), (5, 4160)])
def test_many_rounds_in_small_slots(library, size, slot_bytes):
    """Slots for 16 elements, an odd number of ranks, and rounds whose last is not full."""
    group = Ranks(library, size, slot_bytes=slot_bytes)
    try:
        group.open()
        for seed, shape in enumerate([(0,), (1,), (15 * size,), (64 * size,), (517 * size, 3)]):
            for kind in ("all_reduce", "all_gather", "broadcast", "reduce_scatter"):
                for dtype in ("int8", "float32", "float64"):
                    if kind == "reduce_scatter" and shape[0] % size:
                        continue
                    results = group.all("do", check, kind, dtype, shape, "sum", seed)
                    assert not any(wrong for _, wrong, _ in results), (kind, dtype, shape)
    finally:
        group.close()


def test_a_nan_is_not_lost(ranks):
    given = [np.array([np.nan if rank == position else rank for position in range(SIZE)]) for rank in range(SIZE)]
    for dtype in ("float16", "float32", "float64"):
        for reduction in ("sum", "max", "min"):
            for result in ranks.all("all_reduce", [it.astype(dtype) for it in given], reduction):
                assert np.isnan(result).all(), (dtype, reduction)


def test_float16_is_added_up_in_float32(ranks):
    """In float16, 2048 + 1 is 2048 again and again."""
    given = [np.array([2048 if rank == 0 else 1], np.float16) for rank in range(SIZE)]
    assert {float(it[0]) for it in ranks.all("all_reduce", given)} == {2056.0}  # 2055 lies between two
    large = [np.array([60000 if rank < 2 else -30000 if rank < 4 else 0], np.float16) for rank in range(SIZE)]
    assert {float(it[0]) for it in ranks.all("all_reduce", large)} == {60000.0}


def test_every_float16_survives(ranks):
    """The conversions there and back: every one of the 65536, subnormal numbers, infinities and NaNs too."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    zeros = np.full(1 << 16, -0.0, np.float16)
    for result in ranks.all("all_reduce", [every if rank == 3 else zeros for rank in range(SIZE)]):
        number = ~np.isnan(every)
        assert (result[number].view(np.uint16) == every[number].view(np.uint16)).all()
        assert np.isnan(result[~number]).all()


def test_threads_of_a_process_come_one_after_the_other(ranks):
    """Whichever of the threads is first in each process: what they give is the same for all of one rank."""
    given = [[(np.full(20_000, rank + 1.0, np.float32),) for _ in range(4)] for rank in range(SIZE)]
    for results in ranks.all("at_once", "all_reduce", given):
        for result in results:
            assert (result == 36).all()
    assert faults(ranks) == [None] * SIZE


# ------------------------------------------------------------------------------------------------------------- faults


def begin_waiting(ranks, but, array):
    """All ranks but some wait in a collective for those."""
    for rank in range(SIZE):
        if rank not in but:
            ranks.begin(rank, "ended", "all_reduce", array)
    time.sleep(0.3)


@pytest.mark.parametrize("victims", [(3,), (0,), (2, 5)])
def test_a_killed_rank_is_seen_by_all_and_the_survivors_go_on(ranks, victims):
    """Given ranks that wait for one, when it is killed, then all know within 100 ms, and work in the next epoch."""
    slowest = [kill_and_go_on(ranks, victims)]
    while slowest[-1] >= 0.1 and len(slowest) < 3:  # the machine may be busy with other things
        slowest.append(kill_and_go_on(ranks, victims))
    assert min(slowest) < 0.1, slowest


def kill_and_go_on(ranks, victims):
    """Seconds until the last of the others knew."""
    begin_waiting(ranks, victims, np.ones(1000, np.float32))
    killed_at = max(ranks.signal(rank, signal.SIGKILL) for rank in victims)
    results = [ranks.result(rank) for rank in range(SIZE) if rank not in victims]
    assert all(any(f"rank {it} (process {ranks.pid(it)}) has ended" in why for it in victims) for _, why in results)
    assert {fault.kind for fault in faults(ranks, victims)} == {"dead"}
    ranks.open()
    assert faults(ranks) == [None] * SIZE
    assert {float(it[0]) for it in ranks.all("all_reduce", np.ones(3))} == {8.0}
    return max(at for at, _ in results) - killed_at


def test_a_rank_killed_between_collectives(ranks):
    ranks.signal(6, signal.SIGKILL)
    results = ranks.all("ended", "barrier", but=[6])
    assert all("rank 6" in why and "has ended during barrier (call 1 of step 0)" in why for _, why in results)


def test_a_rank_killed_in_the_middle_of_its_work(ranks):
    """Nobody hangs, and nobody is wrong, whenever it is."""
    for epoch in range(5):
        for rank in range(SIZE):
            ranks.begin(rank, "do", until_it_breaks)
        time.sleep(0.05 + 0.013 * epoch)
        ranks.signal(epoch, signal.SIGKILL)
        results = [ranks.result(rank) for rank in range(SIZE) if rank != epoch]
        assert all(wrong == 0 and f"rank {epoch} " in why for wrong, why in results)
        ranks.open()


def until_it_breaks(rank: Rank) -> tuple[int, str]:
    wrong, array = 0, np.full(30_000, rank.rank + 1.0, np.float32)
    while True:
        try:
            rank.barrier()
            wrong += int((rank.all_reduce(array) != 36).sum())
        except GroupError as error:
            return wrong, error.message


def test_after_a_fault_every_call_returns_at_once(ranks):
    ranks.signal(1, signal.SIGKILL)
    first = ranks.all("ended", "barrier", but=[1])
    began = time.monotonic()
    again = ranks.all("ended", "all_reduce", np.ones(1 << 20), but=[1])
    assert time.monotonic() - began < 10.0  # and not after the 20 s that a rank is waited for
    assert [why for _, why in again] == [why for _, why in first]


def test_a_frozen_rank_is_given_up(library):
    """Its process lives, so that only the time tells; the message says which it is and what it did last."""
    group = Ranks(library, 3, timeout=0.5)
    try:
        group.open()
        group.all("all_gather", np.ones(2, np.int32))
        group.signal(1, signal.SIGSTOP)
        began = time.monotonic()
        results = group.all("ended", "all_reduce", np.ones(4, np.float32), "max", but=[1])
        assert 0.5 < time.monotonic() - began < 10.0
        expected = (
            f"rank 1 (process {group.pid(1)}) did not come to AllReduce(max) of 4 float32 (call 2 of step 0) within "
            "0.5 s; the last that it came to: AllGather of 2 int32 (call 1 of step 0)"
        )
        assert [why for _, why in results] == [expected] * 2
        group.signal(1, signal.SIGCONT)
        assert "rank 1" in group.call(1, "ended", "barrier")[1]  # it learns of it when it comes
    finally:
        group.close()


def test_a_rank_that_is_told_to_give_up_frees_all(ranks):
    ranks.call(4, "abort_after", 0.5)
    began = time.monotonic()
    results = ranks.all("ended", "barrier", but=[7])
    assert time.monotonic() - began < 10.0
    assert {"rank 4 " in why and "was told to give up" in why for _, why in results} == {True}
    assert {fault.kind for fault in faults(ranks, [7])} == {"aborted"}


def test_a_rank_that_leaves_frees_all(ranks):
    begin_waiting(ranks, [2], np.ones(1))
    ranks.call(2, "close")
    results = [ranks.result(rank) for rank in range(SIZE) if rank != 2]
    assert all("rank 2 " in why and "has closed the group" in why for _, why in results)


def test_leaving_after_the_last_collective_harms_nobody(ranks):
    """A rank that is done may leave while others have not yet copied their result."""
    for _ in range(20):
        for rank in range(SIZE):
            ranks.begin(rank, "do", reduce_and_leave)
        assert {ranks.result(rank) for rank in range(SIZE)} == {0}
        ranks.open()


def reduce_and_leave(rank: Rank) -> int:
    out = rank.all_reduce(np.full(100_000, 1.0, np.float32))
    rank.close()
    return int((out != rank.size).sum())


@pytest.mark.parametrize(
    ("odd", "even", "kinds"),
    [
        (("all_gather", (64,), "float32"), ("all_reduce", (64,), "float32"), ("AllGather", "AllReduce(sum)")),
        (("all_reduce", (63,), "float32"), ("all_reduce", (64,), "float32"), ("of 63 float32", "of 64 float32")),
        (("all_reduce", (64,), "int32"), ("all_reduce", (64,), "float32"), ("64 int32", "64 float32")),
        (("all_reduce", (64,), "int8", "max"), ("all_reduce", (64,), "int8", "min"), ("(max)", "(min)")),
        (("broadcast", (64,), "int8", 1), ("broadcast", (64,), "int8", 2), ("from rank 1", "from rank 2")),
        (("all_gather", (9,), "bool"), ("all_reduce", (1 << 18,), "int64"), ("9 bool", "262144 int64")),
    ],
)
def test_ranks_that_disagree_are_told_what_each_does(ranks, odd, even, kinds):
    for rank in range(SIZE):
        kind, shape, dtype, *rest = odd if rank == 5 else even
        ranks.begin(rank, "ended", kind, values(dtype, rank, 0, shape), *rest)
    messages = {ranks.result(rank)[1] for rank in range(SIZE)}
    assert len(messages) == 1
    (message,) = messages
    first, second = message.split(", rank 5 at ")
    assert first.startswith("the ranks disagree: rank 0 is at ")
    assert kinds[1] in first
    assert kinds[0] in second
    assert {(fault.kind, fault.rank) for fault in faults(ranks)} == {("mismatch", 5)}


def test_ranks_in_different_steps_are_found_out(ranks):
    """The same collective, but one rank has left out a step: its results would look well."""
    ranks.all("begin_step", [7 if rank != 2 else 8 for rank in range(SIZE)])
    messages = {why for _, why in ranks.all("ended", "all_reduce", np.ones(4))}
    assert len(messages) == 1
    assert "(call 1 of step 7)" in (message := messages.pop())
    assert "rank 2 at AllReduce(sum) of 4 float64 (call 1 of step 8)" in message


@pytest.mark.parametrize(
    ("method", "array", "args", "reason"),
    [
        ("all_reduce", np.ones(3, bool), (), "AllReduce(sum) of 3 bool (call 1 of step 0) cannot be done"),
        ("reduce_scatter", np.ones(12, np.int32), (), "12 int32 (call 1 of step 0) cannot be divided between 8 ranks"),
        ("broadcast", np.ones(3, np.int32), (8,), "from rank 8"),
    ],
)
def test_what_cannot_be_done_is_refused_by_all(ranks, method, array, args, reason):
    results = ranks.all("ended", method, array, *args)
    assert all(reason in why for _, why in results)
    assert {fault.kind for fault in faults(ranks)} == {"unsupported"}


def test_what_one_rank_cannot_do_the_others_do_not_wait_for(ranks):
    begin_waiting(ranks, [1], np.ones(1))
    assert "cannot be done" in ranks.call(1, "ended", "all_reduce", np.ones(1, bool))[1]
    messages = {ranks.result(rank)[1] for rank in range(SIZE) if rank != 1}
    assert messages == {f"rank 1 (process {ranks.pid(1)}) cannot do its collective: its own message says why"}


def test_the_epochs_of_a_process_leave_nothing(ranks):
    """Neither descriptors nor mappings."""

    def used():
        pid = ranks.pid(0)
        maps = Path(f"/proc/{pid}/maps").read_text().count("rankmq-group")
        return len(os.listdir(f"/proc/{pid}/fd")), maps

    before = used()
    for _ in range(10):
        ranks.open()
    assert used() == before
    assert before[1] == 1


# ---------------------------------------------------------------------------------------------------------- frugality


def test_waiting_takes_no_core(ranks):
    """Seven ranks that wait for a second for the eighth use less than a tenth of a core together."""

    def used():
        total = 0.0
        for rank in range(SIZE):
            fields = Path(f"/proc/{ranks.pid(rank)}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    begin_waiting(ranks, [0], np.ones(1))
    before = used()
    time.sleep(1.0)
    assert used() - before < 0.1
    ranks.call(0, "ended", "all_reduce", np.ones(1, np.float32))
    assert Counter(ranks.result(rank)[0] > 0 for rank in range(1, SIZE)) == {True: SIZE - 1}  # float64 is not float32

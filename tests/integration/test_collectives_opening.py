"""How the ranks of a host open their group, and what they leave behind: nothing."""

import fcntl
import os
import re
import signal
import time

import numpy as np
import pytest
from rankmq.workers.collectives import library as compiled
from rankmq.workers.collectives import sweep
from rankmq.workers.collectives.build import find_compiler

from .collective_ranks import SHM, Failed, Ranks, left_behind, new_name

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")


@pytest.fixture(scope="session")
def library():
    return compiled()  # in this user's cache, as for everybody: it takes seconds


@pytest.fixture
def three(library):
    group = Ranks(library, 3)
    yield group
    group.close()
    sweep()


def refusal(ranks, rank):
    """What a rank is told that cannot open the group."""
    with pytest.raises(Failed) as raised:
        ranks.result(rank)
    code, message = raised.value.args
    assert code == "group_incomplete"
    assert "\n" not in message
    return message


def refusals(ranks, calls):
    """What the ranks are told that cannot open the group."""
    for rank, args in calls.items():
        ranks.begin(rank, "open", *args)
    return {rank: refusal(ranks, rank) for rank in calls}


def test_a_missing_rank_is_named(three):
    name = new_name()
    began = time.monotonic()
    messages = refusals(three, {0: (name, 0, 4, 5.0), 2: (name, 2, 4, 5.0)})
    assert time.monotonic() - began < 15.0
    assert any("ranks 1, 3 did not open the group within 5" in message for message in messages.values())
    assert all("rank 1" in message or "ranks 1, 3" in message for message in messages.values())
    assert left_behind() == []


def test_a_rank_that_dies_while_the_group_is_opened_ends_it(three):
    name = new_name()
    for rank in range(3):
        three.begin(rank, "open", name, rank, 4)
    time.sleep(0.5)
    killed_at = three.signal(1, signal.SIGKILL)
    for rank in (0, 2):
        with pytest.raises(Failed, match=r"rank 1 \(process \d+\) has ended while the group was opened"):
            three.result(rank)
    assert time.monotonic() - killed_at < 10.0  # and not after the 20 s that they would wait for it
    assert left_behind() == []


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_rank_that_is_told_to_give_up_waits_for_nobody_and_neither_do_the_others(three, seconds):
    """Also if it was told before it opened anything."""
    name = new_name()
    three.begin(1, "open", name, 1, 3)
    time.sleep(0.5)
    began = time.monotonic()
    three.begin(0, "open_until", name, 0, 3, seconds)
    messages = {rank: refusal(three, rank) for rank in (0, 1)}
    assert time.monotonic() - began < seconds + 10.0  # of 20
    assert all(re.search(r"rank 0 \(process \d+\) was told to give up while the group", it) for it in messages.values())
    assert left_behind() == []


def test_two_processes_that_are_the_same_rank(three):
    name = new_name()
    three.begin(0, "open", name, 1, 2)
    time.sleep(0.3)
    with pytest.raises(Failed, match=f"rank 1 is taken by process {three.pid(0)}"):
        three.call(1, "open", name, 1, 2)
    # The name is gone with the one that was refused; the other is told when its time is over.
    three.signal(0, signal.SIGKILL)


def test_ranks_that_expect_groups_of_different_sizes(three):
    name = new_name()
    three.begin(0, "open", name, 0, 2, 1.0)
    time.sleep(0.3)
    with pytest.raises(Failed, match="the group has 2 ranks with slots of 262144 bytes, not 3"):
        three.call(1, "open", name, 1, 3)
    with pytest.raises(Failed):
        three.result(0)


@pytest.mark.parametrize(("rank", "size"), [(-1, 2), (2, 2), (0, 0), (0, 65)])
def test_ranks_that_there_are_not(three, rank, size):
    with pytest.raises(Failed, match="a group has 1 to 64 ranks"):
        three.call(0, "open", new_name(), rank, size)


def test_no_room_is_said_at_once_and_in_one_line(library):
    group = Ranks(library, 1, slot_bytes=3 << 30)
    try:
        began = time.monotonic()
        with pytest.raises(Failed) as raised:
            group.call(0, "open", new_name(), 0, 64)
        assert time.monotonic() - began < 10.0
        code, message = raised.value.args
        assert code == "group_incomplete"
        assert message.startswith("/dev/shm has no room for the 412")
        assert "communication='mccl'" in message
        assert "\n" not in message
        assert left_behind() == []
    finally:
        group.close()


def test_what_all_killed_ranks_left_is_swept_away_and_nothing_else(three):
    lost, waiting = new_name(), new_name()
    three.begin(0, "open", lost, 0, 2)
    three.begin(1, "open", waiting, 0, 2)
    time.sleep(0.5)
    assert set(left_behind()) == {lost, waiting}
    three.signal(0, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while left_behind() != [waiting]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        sweep()
    three.call(2, "open", waiting, 1, 2)
    three.result(1)
    assert left_behind() == []


def test_a_name_that_is_swept_away_at_the_wrong_moment_is_made_again(three):
    """Between making a file and locking it: whoever sweeps then takes it for left."""
    name = new_name()
    file = os.open(SHM / name, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)  # as `sweep` does
    three.begin(0, "open", name, 0, 2)
    time.sleep(0.2)
    (SHM / name).unlink()
    os.close(file)
    three.call(1, "open", name, 1, 2)
    three.result(0)
    assert {float(it[0]) for it in three.all("all_reduce", np.ones(1), but=[2])} == {2.0}

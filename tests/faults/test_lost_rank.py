"""Whatever is killed, frozen or cut off: every request is answered, and right."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from rankmq.schemas.errors import AttemptsExhausted
from rankmq.workers.broker import PrivateBroker

from tests.e2e.load import RANKS, WEIGHT, under_load, write_steady
from tests.e2e.systems import System, wait_until

Start = Callable[..., System]
X = np.ones((4, 16), np.float32)


def pids_of(system: System) -> list[int]:
    return [rank.pid for rank in system.group("steady").ranks]


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def steady(start: Start, tmp_path: Path) -> System:
    return start(write_steady(tmp_path), heartbeat_seconds=0.5)


# ------------------------------------------------------------------------------------------------------------ a rank


def test_a_killed_rank_under_load(steady: System) -> None:
    before = pids_of(steady)
    with under_load(steady) as load:
        kill(before[1])
        killed_at = load.answered
        load.finish()
    assert killed_at < 600
    assert not load.repeated
    steady.wait_ready(epoch=2)
    group = steady.group("steady")
    assert group.epoch == 2
    assert group.ranks[1].restarts == 1
    assert [rank.pid for rank in group.ranks if rank.rank != 1] == [pid for pid in before if pid != before[1]]
    assert psutil.pid_exists(group.ranks[1].pid)


def test_all_ranks_killed_at_once(steady: System) -> None:
    before = pids_of(steady)
    with under_load(steady) as load:
        kill(*before)
        load.finish()
    assert not load.repeated
    steady.wait_ready(epoch=2)
    assert not set(before) & set(pids_of(steady))


def test_one_rank_after_the_other(start: Start, tmp_path: Path) -> None:
    steady = start(write_steady(tmp_path), max_attempts=RANKS + 1)
    with under_load(steady, 900) as load:
        for rank in range(RANKS):
            epoch = steady.group("steady").epoch
            kill(pids_of(steady)[rank])
            wait_until(lambda before=epoch: steady.group("steady").epoch > before, "the next epoch")
            steady.wait_ready()
        load.finish()
    assert not load.repeated
    assert steady.group("steady").epoch == 1 + RANKS


def test_a_spare_takes_a_lost_ranks_place(start: Start, tmp_path: Path) -> None:
    """What holds the rank afterwards is a process that was there before the rank was lost."""
    steady = start(write_steady(tmp_path), spares=1)
    before = pids_of(steady)
    with under_load(steady) as load:
        killed_at = time.time()
        kill(before[2])
        steady.wait_ready(epoch=2)
        heir = pids_of(steady)[2]
        assert heir not in before
        assert psutil.Process(heir).create_time() < killed_at
        load.finish()
    assert not load.repeated


def test_a_frozen_rank(steady: System) -> None:
    """It says nothing any more, and its process does not end."""
    frozen = pids_of(steady)[3]
    with under_load(steady) as load:
        os.kill(frozen, signal.SIGSTOP)
        load.finish()
    assert not load.repeated
    steady.wait_ready(epoch=2)
    assert frozen not in pids_of(steady)
    wait_until(lambda: not psutil.pid_exists(frozen), "the end of the frozen process", 15)


def test_a_rank_that_is_lost_under_every_attempt(start: Start, tmp_path: Path) -> None:
    system = start(write_steady(tmp_path, long=2000), max_attempts=2)
    with system.client("steady", "long") as long, system.client("steady", "once") as once:
        asked = long.infer_async({"x": X})
        for attempt in (1, 2):
            system.wait_ready(epoch=attempt)
            wait_until(lambda: system.group("steady").in_flight == 1, "the step")
            kill(pids_of(system)[0])
        with pytest.raises(AttemptsExhausted, match="2 times"):
            asked.result(20)
        np.testing.assert_allclose(once.infer({"x": X})[0]["y"], X @ WEIGHT, rtol=1e-4)


def test_a_rank_whose_end_nobody_saw(build: Start, tmp_path: Path) -> None:
    """It had registered; then it and its launcher went, as with their host. New ones come before it is missed."""
    system = build(write_steady(tmp_path), heartbeat_seconds=0.5)
    system.start_orchestrator()
    lost = system.start_agents(ranks=[0])
    wait_until(lambda: system.group("steady").ranks[0].state == "registered", "the first rank")
    lost.signal(signal.SIGSTOP)
    kill(system.group("steady").ranks[0].pid, lost.pid)
    system.start_agents()
    system.wait_ready(seconds=10)


# ------------------------------------------------------------------------------------------- launcher and orchestrator


def test_a_killed_launcher(steady: System) -> None:
    """Its agents end with it; those of the next one take over."""
    before = pids_of(steady)
    with under_load(steady) as load:
        steady.agents.signal(signal.SIGKILL)
        steady.agents.ended()
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in before), "the end of the agents", 15)
        steady.start_agents()
        load.finish()
    assert not load.repeated


def test_a_killed_orchestrator(steady: System) -> None:
    """What had been answered and not yet acknowledged may be answered again, with the same numbers."""
    before = pids_of(steady)
    with under_load(steady) as load:
        steady.orchestrator.signal(signal.SIGKILL)
        steady.orchestrator.ended()
        assert load.answered < 600
        steady.start_orchestrator()
        load.finish()
    assert len(load.repeated) <= 64
    steady.wait_ready(epoch=2)
    assert pids_of(steady) == before


def test_a_producer_of_ours_sees_no_answer_twice(steady: System) -> None:
    with steady.client("steady", "once") as client:
        given = [np.full((4, 16), number, np.float32) for number in range(300)]
        futures = [client.infer_async({"x": x}) for x in given]
        futures[30].result(30)
        steady.orchestrator.signal(signal.SIGKILL)
        steady.orchestrator.ended()
        steady.start_orchestrator()
        for x, future in zip(given, futures, strict=True):
            np.testing.assert_allclose(future.result(60)[0]["y"], x @ WEIGHT, rtol=1e-3, atol=1e-3)


def test_a_standby_takes_over(steady: System) -> None:
    active = steady.orchestrator
    standby = steady.start_orchestrator()
    wait_until(lambda: "standing by" in standby.said, "the standby")
    with under_load(steady) as load:
        active.signal(signal.SIGKILL)
        active.ended()
        load.finish()
    steady.wait_ready(epoch=2)
    assert steady.status().pid == standby.pid
    assert standby.stop() == 0


# --------------------------------------------------------------------------------------------------------- the broker


def test_every_connection_is_cut(steady: System, broker: PrivateBroker) -> None:
    with steady.client("steady", "once", timeout=90) as once, steady.client("steady", "twice", timeout=90) as twice:
        futures = []
        for number in range(400):
            x = np.full((4, 16), number, np.float32)
            futures.append((x, 1, once.infer_async({"x": x})))
            futures.append((x, 3, twice.infer_async({"x": x})))
        futures[50][2].result(30)
        broker.ctl("close_all_connections", "--vhost", steady.vhost, "a test")
        unanswered = sum(not future.done() for _, _, future in futures)
        assert unanswered > 50, unanswered
        for x, factor, future in futures:
            np.testing.assert_allclose(future.result(90)[0]["y"], factor * (x @ WEIGHT), rtol=1e-3, atol=1e-3)
    assert steady.orchestrator.process.poll() is None
    assert steady.agents.process.poll() is None


def test_the_broker_is_killed_and_comes_back(tmp_path: Path) -> None:
    """The requests that it had taken are still there; those that it had not are sent again by our producer."""
    with PrivateBroker(tmp_path / "broker") as broker:
        url = broker.url
        logs = tmp_path / "logs"
        logs.mkdir()
        with System(url, tmp_path, [write_steady(tmp_path)], logs) as system:
            system.wait_ready()
            time.sleep(4.0)  # RabbitMQ 3.10 forgets a quorum queue that was declared a second before it is killed
            with system.client("steady", "once", timeout=90) as client:
                given = [np.full((4, 16), number, np.float32) for number in range(400)]
                futures = [client.infer_async({"x": x}) for x in given]
                futures[50].result(30)
                kill(broker.pid)
                assert broker.wait(20)
                broker.start()
                assert broker.url == url
                for x, future in zip(given, futures, strict=True):
                    np.testing.assert_allclose(future.result(90)[0]["y"], x @ WEIGHT, rtol=1e-3, atol=1e-3)
            began = time.monotonic()
            system.stop()
            assert time.monotonic() - began < 15

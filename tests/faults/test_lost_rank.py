"""Whatever is killed, frozen or cut off: every request is answered, and right.

What a fault of the group itself costs is in `test_chaos`.
"""

import itertools
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from rankmq.schemas.errors import AttemptsExhausted
from rankmq.schemas.messages import GroupStatus
from rankmq.workers.broker import PrivateBroker

from tests.e2e.load import WEIGHT, under_load, write_steady
from tests.e2e.systems import System, wait_until

PATIENT = {"heartbeats_missed": 60}
"""However busy the machine is, nobody is taken for silent: who is lost shows by the end of a process or connection."""

Start = Callable[..., System]
X = np.ones((4, 16), np.float32)


def pids_of(system: System) -> list[int]:
    return [rank.pid for rank in system.group("steady").ranks]


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def steady(start: Start, tmp_path: Path) -> System:
    return start(write_steady(tmp_path), **PATIENT)


# ------------------------------------------------------------------------------------------------------------ a rank


def test_a_spare_takes_a_lost_ranks_place(start: Start, tmp_path: Path) -> None:
    """What holds the rank afterwards is a process that was there before the rank was lost."""
    steady = start(write_steady(tmp_path), spares=1, **PATIENT)
    before = pids_of(steady)
    parent = psutil.Process(before[2]).parent()
    (spare,) = wait_until(lambda: {child.pid for child in parent.children()} - set(before), "the spare")
    with under_load(steady) as load:
        kill(before[2])
        steady.wait_ready(epoch=2)
        assert pids_of(steady)[2] == spare
        load.finish()
    assert not load.repeated


def test_a_frozen_rank(start: Start, tmp_path: Path) -> None:
    """It says nothing any more, and its process does not end."""
    steady = start(write_steady(tmp_path), heartbeat_seconds=0.5)
    frozen = pids_of(steady)[3]
    with under_load(steady) as load:
        os.kill(frozen, signal.SIGSTOP)
        load.finish()
    assert not load.repeated
    steady.wait_ready(epoch=2)
    assert frozen not in pids_of(steady)
    wait_until(lambda: not psutil.pid_exists(frozen), "the end of the frozen process")


def test_a_rank_that_is_lost_under_every_attempt(start: Start, tmp_path: Path) -> None:
    system = start(write_steady(tmp_path, long=3000), max_attempts=2, **PATIENT)

    def under_way(epoch: int) -> GroupStatus | None:
        group = system.group("steady")
        return group if group.epoch == epoch and group.state == "ready" and group.in_flight == 1 else None

    with system.client("steady", "long") as long, system.client("steady", "once") as once:
        asked = long.infer_async({"x": X})
        for attempt in (1, 2):
            kill(wait_until(lambda epoch=attempt: under_way(epoch), "the step").ranks[0].pid)
        with pytest.raises(AttemptsExhausted, match="2 times"):
            asked.result(30)
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
    system.wait_ready(seconds=30)


# ------------------------------------------------------------------------------------------- launcher and orchestrator


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


# --------------------------------------------------------------------------------------------------------- the broker


def test_every_connection_is_cut(steady: System, broker: PrivateBroker) -> None:
    """Requests are under way when it happens, and are sent until it has."""

    def cut() -> bool:
        return "the connection to the broker ended" in steady.orchestrator.said

    with (
        steady.client("steady", "once", timeout=90) as once,
        steady.client("steady", "twice", timeout=90) as twice,
        ThreadPoolExecutor(1) as aside,
    ):
        futures = []
        closing = None
        for number in itertools.count():
            x = np.full((4, 16), number, np.float32)
            futures.append((x, 1, once.infer_async({"x": x})))
            futures.append((x, 3, twice.infer_async({"x": x})))
            if number == 100:
                closing = aside.submit(broker.ctl, "close_all_connections", "--vhost", steady.vhost, "a test")
            if number > 100:  # so that not more than 200 wait
                futures[-200][2].result(60)
            if closing is not None and closing.done() and cut():
                break
        closing.result()
        for x, factor, future in futures:
            np.testing.assert_allclose(future.result(90)[0]["y"], factor * (x @ WEIGHT), rtol=1e-3, atol=1e-3)
    assert steady.orchestrator.process.poll() is None
    assert steady.agents.process.poll() is None

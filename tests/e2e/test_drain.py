"""A stop is a drain: nothing that a producer sees is lost or done twice; and what waits, waits on the broker."""

import os
import re
import signal
import time
from pathlib import Path

import msgpack
import numpy as np
import psutil
import pytest

from tests.e2e.conftest import Start
from tests.e2e.load import RANKS, WEIGHT, under_load, write_steady
from tests.e2e.producer import Producer, array_of, request
from tests.e2e.systems import System, wait_until

X = np.ones((4, 16), np.float32)


@pytest.fixture
def steady(start: Start, tmp_path: Path) -> System:
    return start(write_steady(tmp_path))


def test_an_orchestrator_is_replaced_under_load(steady: System) -> None:
    with under_load(steady) as load:
        first = steady.orchestrator
        assert first.stop() == 0, first.said[-2000:]
        before = load.answered
        assert before < 600
        steady.start_orchestrator()
        load.finish()
    assert not load.repeated
    steady.wait_ready(epoch=2)
    assert {rank.restarts for rank in steady.group("steady").ranks} == {0}  # the ranks stayed


def test_agents_are_replaced_under_load(steady: System) -> None:
    with under_load(steady) as load:
        pids = {rank.pid for rank in steady.group("steady").ranks}
        assert steady.agents.stop() == 0, steady.agents.said[-2000:]
        assert load.answered < 600
        assert not any(psutil.pid_exists(pid) for pid in pids)
        steady.start_agents()
        load.finish()
    assert not load.repeated
    group = steady.group("steady")
    assert group.epoch == 2
    assert not pids & {rank.pid for rank in group.ranks}
    assert set(re.findall(r"(\d+) steps are void", steady.orchestrator.said)) == {"0"}


def test_everything_is_replaced_under_load(steady: System) -> None:
    with under_load(steady) as load:
        for role in (steady.orchestrator, steady.agents):
            assert role.stop() == 0
        steady.start_agents()
        steady.start_orchestrator()
        load.finish()
    assert not load.repeated


def test_what_takes_longer_than_the_drain_goes_back_to_the_queue(start: Start, tmp_path: Path) -> None:
    system = start(write_steady(tmp_path, long=4000), drain_timeout=0.2)
    with Producer(system.url) as producer:
        asked = producer.send(request("steady", "long", {"x": X}))
        wait_until(lambda: system.group("steady").in_flight == 1, "the step")
        began = time.monotonic()
        assert system.orchestrator.stop() == 0
        assert time.monotonic() - began < 3.5  # it did not wait for the end of the step
        assert producer.depth("rankmq.requests.steady.normal") == 1
        system.start_orchestrator()
        [(properties, body)] = producer.wait()
        assert properties.correlation_id == asked
        np.testing.assert_allclose(array_of(msgpack.unpackb(body)["outputs"][0]["y"]), X @ WEIGHT, rtol=1e-4)
        producer.rest(0.3)
        assert len(producer.replies) == 1


def test_a_flood_waits_on_the_broker(start: Start, tmp_path: Path) -> None:
    """While a rank stands still: `max_in_flight` requests are taken, and `lockstep_window` steps are sent."""
    system = start(write_steady(tmp_path, 0.1), max_in_flight=20, lockstep_window=3, heartbeats_missed=30)
    frozen = system.group("steady").ranks[2].pid
    os.kill(frozen, signal.SIGSTOP)
    try:
        with Producer(system.url) as producer:
            for _ in range(500):
                producer.send(request("steady", "once", {"x": X}))
            wait_until(lambda: producer.depth("rankmq.requests.steady.normal") == 480, "20 taken", 5)
            time.sleep(0.5)
            assert producer.depth("rankmq.requests.steady.normal") == 480
            status = system.status()
            assert (status.in_flight, status.max_in_flight) == (20, 20)
            assert status.groups[0].in_flight <= 3
            assert producer.replies == []
            os.kill(frozen, signal.SIGCONT)
            for _, body in producer.wait(500):
                np.testing.assert_allclose(array_of(msgpack.unpackb(body)["outputs"][0]["y"]), X @ WEIGHT, rtol=1e-4)
            assert steps_are_equal(system)
    finally:
        os.kill(frozen, signal.SIGCONT)


def steps_are_equal(system: System) -> bool:
    group = system.group("steady")
    return len(group.ranks) == RANKS and {rank.step for rank in group.ranks} == {group.step - 1} and group.epoch == 1

"""A requests queue has bounds: past them a producer is told, and nothing grows for ever."""

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pika
import pytest
from rankmq.schemas.errors import QueueFull

from tests.e2e.conftest import Start
from tests.e2e.load import WEIGHT, write_steady
from tests.e2e.producer import Producer, request
from tests.e2e.systems import wait_until

X = np.ones((4, 16), np.float32)


def test_a_full_queue_refuses_and_loses_nothing(start: Start, tmp_path: Path) -> None:
    system = start(write_steady(tmp_path, 20.0), max_in_flight=4, max_queue_length=20, heartbeats_missed=60)
    frozen = system.group("steady").ranks[0].pid
    os.kill(frozen, signal.SIGSTOP)
    taken, refused = [], 0
    try:
        with Producer(system.url) as producer:
            while refused < 10:
                try:
                    taken.append(producer.send(request("steady", "once", {"x": X})))
                except pika.exceptions.NackError:
                    refused += 1
                assert len(taken) < 200
            with system.client("steady", "once", timeout=1.5) as client, pytest.raises(QueueFull, match="at its limit"):
                client.infer({"x": X})
            os.kill(frozen, signal.SIGCONT)
            replies = producer.wait(len(taken), 60)
            assert sorted(properties.correlation_id for properties, _ in replies) == sorted(taken)
            # There is room again: a call that was refused at first goes through.
            with system.client("steady", "once") as client:
                [outputs] = client.infer({"x": X})
                assert np.allclose(outputs["y"], X @ WEIGHT, rtol=1e-3, atol=1e-3)
    finally:
        os.kill(frozen, signal.SIGCONT)


def test_what_waits_for_too_long_is_answered_with_an_error(build: Start, tmp_path: Path) -> None:
    """Nobody takes it while the ranks are not there; the answer comes when an orchestrator serves."""
    system = build(write_steady(tmp_path), max_queue_age=1.0)
    system.start_orchestrator()
    with Producer(system.url) as producer:
        wait_until(lambda: "steady" in str(system.status().groups), "the orchestrator")
        old = producer.send(request("steady", "once", {"x": X}))
        wait_until(lambda: producer.depth("rankmq.unrouted") == 1, "the end of its time", 10)
        system.start_agents()
        [(properties, body)] = producer.wait()
        assert properties.correlation_id == old
        assert b"deadline_exceeded" in body
        new = producer.ask(request("steady", "once", {"x": X}))
        assert new["error"] is None


def test_a_limit_that_is_changed_later_is_one_clear_line(start: Start, build: Start, tmp_path: Path) -> None:
    system = start(write_steady(tmp_path), max_queue_length=20)
    other = build("steady", url=system.url, max_queue_length=30)
    ended: list[int] = []
    waiting = threading.Thread(target=lambda: ended.append(other.start_orchestrator().ended()))
    waiting.start()
    waiting.join(40)
    assert ended == [3]
    [line] = [line for line in other.orchestrator.said.splitlines() if "x-max-length" in line]
    assert "delete it" in line

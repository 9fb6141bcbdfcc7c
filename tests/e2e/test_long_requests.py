"""The broker closes the channel of who keeps a delivery for too long: half an hour by default, here some seconds."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from rankmq.workers.broker import PrivateBroker

from tests.e2e.conftest import Start
from tests.e2e.graphs import write_servable
from tests.e2e.producer import Producer, array_of, request
from tests.e2e.systems import wait_until

LIMIT_SECONDS = 3.0
HOLD_SECONDS = 1.0

SLOW = """
import time
from rankmq.engine import register

def slow(seconds):
    time.sleep(float(seconds))
    return seconds

@register.register_method(output_names=["seconds"])
def sleep(seconds):
    return register.add_stage(slow, seconds, outputs_count=1)
"""


def answered(body: bytes) -> float:
    return array_of(msgpack.unpackb(body)["outputs"][0]["seconds"]).tolist()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    """A broker that looks each half a second for deliveries that are unacknowledged for too long."""
    terms = f"[{{rabbit, [{{consumer_timeout, {round(LIMIT_SECONDS * 1000)}}}, {{channel_tick_interval, 500}}]}}]."
    with PrivateBroker(tmp_path_factory.mktemp("strict"), advanced_conf=terms) as broker:
        yield broker


def test_the_limit_bites_who_only_waits(strict: PrivateBroker) -> None:
    """What the broker does to a consumer that keeps a delivery: without that the tests here would show nothing."""
    import pika

    with pika.BlockingConnection(pika.URLParameters(strict.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("kept", durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", "kept", b"")
        channel.basic_consume("kept", lambda *_: None)
        until = time.monotonic() + 6 * LIMIT_SECONDS
        while channel.is_open and time.monotonic() < until:
            connection.process_data_events(0.2)
        assert channel.is_closed


def test_a_request_runs_for_longer_than_the_broker_waits(strict: PrivateBroker, start: Start, tmp_path: Path) -> None:
    write_servable(tmp_path, "slow", SLOW)
    system = start("slow", url=strict.url, hold_seconds=HOLD_SECONDS, stage_threads=4)
    with Producer(system.url) as producer:
        asked = [producer.send(request("slow", "sleep", {"seconds": 3.0 * LIMIT_SECONDS})) for _ in range(2)]
        wait_until(lambda: system.orchestrator.said.count("taken anew") >= 4, "two copies of each", 20)
        quick = producer.send(request("slow", "sleep", {"seconds": 0.0}))
        (first, _), *others = producer.wait(3, seconds=6 * LIMIT_SECONDS)
        assert first.correlation_id == quick
        assert sorted(properties.correlation_id for properties, _ in others) == sorted(asked)
        for _, body in others:
            assert answered(body) == 3.0 * LIMIT_SECONDS
        producer.rest(1.0)
        assert len(producer.replies) == 3  # each was answered once
        wait_until(lambda: system.status().in_flight == 0, "the end")
    assert "closed" not in system.orchestrator.said


def test_what_was_in_custody_of_an_orchestrator_that_died_is_served(
    strict: PrivateBroker, start: Start, tmp_path: Path
) -> None:
    write_servable(tmp_path, "slow", SLOW)
    system = start("slow", url=strict.url, hold_seconds=HOLD_SECONDS)
    with Producer(system.url) as producer:
        asked = producer.send(request("slow", "sleep", {"seconds": 3.0}))
        wait_until(lambda: "taken anew" in system.orchestrator.said, "the copy", 20)
        system.orchestrator.signal(signal.SIGKILL)
        system.orchestrator.process.wait(10)
        system.start_orchestrator()
        [(properties, body)] = producer.wait(seconds=40)
        assert properties.correlation_id == asked
        assert answered(body) == 3.0

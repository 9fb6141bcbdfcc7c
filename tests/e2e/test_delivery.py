"""Whatever happens to a request on its way, its producer sees one answer: lanes, deadlines, cancels, repetitions."""

import json
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pika
import pytest

from tests.e2e.conftest import Start
from tests.e2e.load import WEIGHT, under_load, write_steady
from tests.e2e.producer import JSON, Producer, array_of, request
from tests.e2e.systems import System, Vhosts, running, wait_until

X = np.ones((4, 16), np.float32)
Y = X @ WEIGHT
IN_FLIGHT = 4
LONG = 1.5
QUEUE = "rankmq.requests.steady.normal"


@pytest.fixture(scope="module")
def system(vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One for all tests that damage nothing; a row takes 20 ms, a long one a second."""
    directory, logs = tmp_path_factory.mktemp("steady"), tmp_path_factory.mktemp("logs")
    name = write_steady(directory, 20, LONG * 1000)
    settings = {"max_in_flight": IN_FLIGHT, "lockstep_window": 1, "heartbeats_missed": 30}
    with running(System(vhosts.url(), directory, [name], logs, **settings)) as found:
        yield found


@pytest.fixture
def producer(system: System) -> Iterator[Producer]:
    with Producer(system.url) as found:
        yield found
        wait_until(lambda: system.status().in_flight == 0, "all requests ended")
        status = system.status()
        assert (status.waiting, [group.in_flight + group.waiting for group in status.groups]) == (0, [0])


def once(**changed: Any) -> dict[str, Any]:
    return request("steady", "once", {"x": X}, **changed)


def long() -> dict[str, Any]:
    return request("steady", "long", {"x": X})


def code_of(body: bytes) -> str:
    """The code of a reply's error; "" where it has the right results."""
    reply = msgpack.unpackb(body)
    if reply["error"] is not None:
        return str(reply["error"]["code"])
    np.testing.assert_allclose(array_of(reply["outputs"][0]["y"]), Y, rtol=1e-4)
    return ""


def answers(producer: Producer) -> dict[str, str]:
    """By request, what its answer was."""
    found = {properties.correlation_id: code_of(body) for properties, body in producer.replies}
    assert len(found) == len(producer.replies), "one answer for each"
    return found


def in_ms(seconds: float) -> int:
    return int((time.time() + seconds) * 1000)


def steps(system: System) -> int:
    return int(system.group("steady").step)


# -------------------------------------------------------------------------------------------------------------- lanes


def test_an_urgent_request_passes_a_backlog(system: System, producer: Producer) -> None:
    low = [producer.send(once(), key="steady.low") for _ in range(60)]
    producer.wait(5)
    urgent = producer.send(once(), key="steady.high")
    order = [properties.correlation_id for properties, _ in producer.wait(61)]
    assert order.index(urgent) < 45  # of 60, some of which were answered before it came
    assert [name for name in order if name != urgent] == low
    assert set(answers(producer).values()) == {""}


def test_a_lane_that_does_not_exist(system: System, producer: Producer) -> None:
    reply = producer.ask(once(), key="steady.urgent")
    assert reply["error"]["code"] == "invalid_input"
    assert "lane high, normal, low" in reply["error"]["message"]


# ---------------------------------------------------------------------------------------------------------- deadlines


def test_a_deadline_passes_in_the_queue(system: System, producer: Producer) -> None:
    """On the broker, where nobody has taken it yet, and with an orchestrator that cannot begin it."""
    taken = [producer.send(long()) for _ in range(IN_FLIGHT)]
    wait_until(lambda: producer.depth(QUEUE) == 0, "all taken")
    waits = producer.send(once(), expiration="300")
    began = time.monotonic()
    [(properties, body)] = producer.wait(1)
    assert (properties.correlation_id, code_of(body)) == (waits, "deadline_exceeded")
    assert 0.25 < time.monotonic() - began < LONG * 4
    producer.wait(1 + IN_FLIGHT)
    assert answers(producer) == {waits: "deadline_exceeded", **dict.fromkeys(taken, "")}


def test_a_deadline_passes_while_it_runs(system: System, producer: Producer) -> None:
    before = steps(system)
    began = time.monotonic()
    runs = producer.send(long(), headers={"rankmq-deadline": in_ms(0.3)})
    behind = producer.send(once(), headers={"rankmq-deadline": in_ms(0.3)})
    producer.wait(2)
    assert time.monotonic() - began < 0.3 + LONG  # the ranks are at it still
    assert answers(producer) == {runs: "deadline_exceeded", behind: "deadline_exceeded"}
    producer.rest(LONG)
    assert len(producer.replies) == 2
    assert steps(system) == before + 1  # no work for the dead


def test_a_deadline_in_the_past(system: System, producer: Producer) -> None:
    before = steps(system)
    sent = [
        producer.send(once(), headers={"rankmq-deadline": in_ms(-5)}),
        producer.send(once(), expiration="1000", timestamp=int(time.time()) - 5),
        producer.send(once(), headers={"rankmq-deadline": 1}),
    ]
    producer.wait(3)
    assert answers(producer) == dict.fromkeys(sent, "deadline_exceeded")
    assert steps(system) == before


# ------------------------------------------------------------------------------------------------------------- cancel


def cancel(producer: Producer, request_id: str | None, seconds: float = 10.0) -> str:
    """Has a request given up; gives what the orchestrator says of it."""
    said: list[bytes] = []
    channel = producer._connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.basic_consume(queue, lambda *it: said.append(it[3]), auto_ack=True)
    asked = pika.BasicProperties(correlation_id=request_id, reply_to=queue, content_type=JSON)
    channel.basic_publish("rankmq.cancel", "", b"", asked)
    end = time.monotonic() + seconds
    while not said:
        assert time.monotonic() < end, "no word on the cancel"
        producer._connection.process_data_events(0.05)
    channel.close()
    found = json.loads(said[0])
    assert found["id"] == request_id
    return str(found["state"])


def test_what_runs_and_what_waits_is_given_up(system: System, producer: Producer) -> None:
    before = steps(system)
    runs = producer.send(long())
    wait_until(lambda: system.group("steady").in_flight == 1, "the step", every=0.01)
    waits = producer.send(once())
    assert [cancel(producer, it) for it in (waits, runs)] == ["cancelled", "cancelled"]
    producer.wait(2)
    assert steps(system) == before  # the ranks are at it still
    assert answers(producer) == {runs: "cancelled", waits: "cancelled"}
    producer.rest(LONG)
    assert len(producer.replies) == 2
    assert steps(system) == before + 1
    assert cancel(producer, runs) == "answered"


def test_what_is_not_there_yet_is_noted(system: System, producer: Producer) -> None:
    before = steps(system)
    name = uuid.uuid4().hex
    assert cancel(producer, name) == "noted"
    reply = producer.ask(once(), message_id=name)
    assert reply["error"]["code"] == "cancelled"
    assert steps(system) == before


# ---------------------------------------------------------------------------------------------------- what may be asked


def test_thousands_who_ask_for_the_status_or_cancel_what_nobody_knows(system: System, producer: Producer) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(system.url))
    channel = connection.channel()
    for number in range(2500):
        asked = pika.BasicProperties(reply_to=producer.reply_to, correlation_id=f"unknown-{number}")
        channel.basic_publish("rankmq.status", "", b"", asked)
        if number % 100 == 0:
            channel.basic_publish("rankmq.cancel", "", b"", pika.BasicProperties(correlation_id=f"unknown-{number}"))
    last = pika.BasicProperties(reply_to=producer.reply_to, correlation_id="last")
    channel.basic_publish("rankmq.status", "", b"", last)
    connection.close()
    while not producer.replies or producer.replies[-1][0].correlation_id != "last":
        producer.wait(len(producer.replies) + 1)
    assert "Traceback" not in system.log
    assert "asked to cancel unknown" not in system.log


# ------------------------------------------------------------------------------------------------- one id, one request


def test_a_request_that_is_published_again(system: System, producer: Producer) -> None:
    with Producer(system.url) as other:
        name = producer.send(once())
        producer.wait(1)
        before = steps(system)
        for _ in range(3):
            producer.send(once(), message_id=name)
            other.send(once(), message_id=name)
        other.wait(1)
        other.rest(0.5)
        producer.rest(0.1)
        assert [code_of(body) for _, body in other.replies] == [""]
        assert answers(producer) == {name: ""}
        assert steps(system) == before


def test_a_request_that_is_published_again_while_it_runs(system: System, producer: Producer) -> None:
    before = steps(system)
    with Producer(system.url) as other:
        name = producer.send(long())
        for _ in range(2):
            producer.send(long(), message_id=name)
            other.send(long(), message_id=name)
        producer.wait(1)
        other.wait(1)
        producer.rest(0.5)
        other.rest(0.1)
        assert answers(producer) == answers(other) == {name: ""}
    assert steps(system) == before + 1


def test_an_id_that_is_used_for_something_else(system: System, producer: Producer) -> None:
    name = producer.send(once())
    producer.wait(1)
    reply = producer.ask(request("steady", "once", {"x": X + 1}), message_id=name)
    assert reply["error"]["code"] == "request_id_reused"
    producer.replies.clear()
    producer.send(once(), message_id=name)
    producer.rest(0.3)
    assert producer.replies == []  # the first is known still


def test_a_body_that_is_packed(system: System, producer: Producer) -> None:
    reply = producer.ask(once(), content_encoding="gzip")
    assert reply["error"]["code"] == "undecodable"
    assert "gzip" in reply["error"]["message"]


# ------------------------------------------------------------------------------------------------------------- deaths


def dies(system: System) -> None:
    """The orchestrator is killed in the middle of its work, and started again."""
    assert system.orchestrator is not None
    system.orchestrator.signal(signal.SIGKILL)
    system.orchestrator.ended()
    system.start_orchestrator()


def is_replaced(system: System) -> None:
    assert system.orchestrator is not None
    assert system.orchestrator.stop() == 0
    system.start_orchestrator()


@pytest.mark.parametrize("ends", [dies, is_replaced])
def test_a_producer_sees_one_answer_whatever_becomes_of_the_orchestrator(
    start: Start, tmp_path: Path, ends: Callable[[System], None]
) -> None:
    """And those that follow know what was answered."""
    system = start(write_steady(tmp_path, 0.5), heartbeats_missed=30)
    with Producer(system.url) as producer, Producer(system.url) as other:
        asked = [str(producer.send(once())) for _ in range(20)]
        producer.wait(20)
        with under_load(system, 600) as load:
            for count in (150, 350):
                load.wait_answered(count)
                ends(system)
            load.finish()
        assert not load.repeated
        before = steps(system)
        for name in asked:
            producer.send(once(), message_id=name)
            other.send(once(), message_id=name)
        other.wait(20)
        producer.rest(0.3)
        assert answers(producer) == answers(other) == dict.fromkeys(asked, "")
        assert steps(system) == before

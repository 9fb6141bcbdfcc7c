"""Messages that aim at the engine itself: properties and headers that AMQP allows and no client would send."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pika.data
import pytest

from tests.e2e.graphs import WORDS, Graph, op, spec, write_servable
from tests.e2e.producer import Producer, array_of, request
from tests.e2e.systems import System, Vhosts, running, wait_until

CONFIGURATION = (
    WORDS
    + """
model = register.declare_model("negative.npz", with_batch_dim=False)

@register.register_method(output_names=["y"])
def negate(x):
    return register.add_stage(model, x)

def slowly(x):
    time.sleep(0.3)
    return x

@register.register_method(output_names=["y"])
def slow(x):
    return register.add_stage(slowly, x)

@register.register_pipeline(output_names=["y"])
def objects(x):
    return np.array([object()])
"""
)
X = np.arange(4, dtype=np.float32)
GOOD = request("small", "negate", {"x": X})
BAD = request("small", "negate", {"x": X[:1]})


def write_small(directory: Path) -> None:
    graph = Graph([op("negative", "x", "y")], [spec("x", 4)], [spec("y", 4)])
    write_servable(directory, "small", CONFIGURATION, {"negative": lambda _: graph})


@pytest.fixture(scope="module")
def system(vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory, logs = tmp_path_factory.mktemp("poison"), tmp_path_factory.mktemp("poison-logs")
    write_small(directory)
    with running(System(vhosts.url(), directory, ["small"], logs)) as system:
        yield system


@pytest.fixture(autouse=True)
def harmless(system: System) -> Iterator[None]:
    """Whatever a test sent: the next request is served, by the same group, over the same connection."""
    [before] = system.status().groups
    defects = system.log.count("a defect")
    yield
    with Producer(system.url) as producer:
        got = producer.ask(GOOD, seconds=10)
    assert array_of(got["outputs"][0]["y"]).tolist() == [0, -1, -2, -3]
    [after] = system.status().groups
    assert after.epoch == before.epoch
    assert system.log.count("a defect") == defects


@pytest.fixture
def any_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a value in a header be a `Raw`, and go out as it is: pika knows fewer kinds than AMQP has."""
    encode = pika.data.encode_value

    def encode_value(pieces: list[bytes], value: Any) -> int:
        if isinstance(value, Raw):
            pieces.append(bytes(value))
            return len(value)
        return encode(pieces, value)

    monkeypatch.setattr(pika.data, "encode_value", encode_value)


class Raw(bytes):
    """A value of a header, with its kind in front."""


POISON: dict[str, dict[str, Any]] = {
    "a float": {"headers": {"f": Raw(struct.pack(">cf", b"f", 1.5)), "d": Raw(struct.pack(">cd", b"d", 2.5))}},
    "a moment past all calendars": {"headers": {"t": Raw(struct.pack(">cQ", b"T", 2**62))}},
    "milliseconds for seconds": {"headers": {"t": Raw(struct.pack(">cQ", b"T", 1_700_000_000_000)), "kept": 1}},
    "such a moment in a table in a list": {"headers": {"l": [{"t": Raw(struct.pack(">cQ", b"T", 2**62))}]}},
    "a decimal": {"headers": {"d": Raw(struct.pack(">cBi", b"D", 255, 2**31 - 1))}},
    "a name that is not utf-8": {"headers": {b"\xff": 1}},
    "message_id is not utf-8": {"message_id": b"\xff\xfe"},
    "correlation_id is not utf-8": {"correlation_id": b"\xff\xfe"},
    "content_type is not utf-8": {"content_type": b"\xff\xfe"},
    "reply_to is not utf-8": {"reply_to": b"\xff\xfe"},
    "routing key is not utf-8": {"key": b"\xff\xfe"},
    "message_id as long as it can be": {"message_id": "m" * 255},
    "correlation_id as long as it can be": {"correlation_id": "c" * 255},
}


def outcomes(system: System) -> int:
    status = system.status()
    return status.served + status.failed


@pytest.mark.usefixtures("any_value")
@pytest.mark.parametrize("what", POISON)
@pytest.mark.parametrize("body", [GOOD, BAD], ids=["good", "bad"])
def test_poison_harms_only_itself(system: System, what: str, body: dict[str, Any]) -> None:
    """It is answered or dead-lettered at its first delivery; the request beside it does not notice."""
    before = outcomes(system)
    with Producer(system.url) as producer, Producer(system.url) as other:
        beside = other.send(request("small", "slow", {"x": X}))
        time.sleep(0.1)  # it is under way now
        for number, reply_to in enumerate((producer.reply_to, None)):
            poison = dict(POISON[what])
            if isinstance(poison.get("message_id"), str):  # one id is one request
                poison["message_id"] = f"{number}{poison['message_id'][1:]}"
            producer.send(body, **{"key": "small", "reply_to": reply_to, **poison})
        [(properties, reply)] = other.wait(seconds=10)
        assert properties.correlation_id == beside
        assert msgpack.unpackb(reply)["error"] is None
        wait_until(lambda: outcomes(system) == before + 3, "three outcomes", 5)


def test_an_output_that_cannot_be_sent(system: System) -> None:
    with Producer(system.url) as producer:
        got = producer.ask(request("small", "objects", {"x": X}))
        assert got["error"]["code"] == "stage_failed"
        assert "object" in got["error"]["message"]
        got = producer.ask(request("small", "objects", {"x": X}, {"x": X}))
        assert got["error"]["code"] == "stage_failed"


def test_replies_of_requests_with_one_id_are_told_apart(system: System) -> None:
    """One of them comes back, since its queue is gone: that one is dead-lettered, and no other."""
    with Producer(system.url) as producer:
        for number in range(5):
            for reply_to in (producer.reply_to, "gone"):
                given = request("small", "negate", {"x": np.full(4, number, np.float32)})
                producer.send(given, message_id="the same", correlation_id=str(number), reply_to=reply_to)
        assert sorted(properties.correlation_id for properties, _ in producer.wait(5)) == list("01234")
        dead = [producer.dead_letter("the same") for _ in range(5)]
        assert {headers["rankmq-code"] for headers, _ in dead} == {"reply_unroutable"}
        assert producer.depth("rankmq.dead") == 0

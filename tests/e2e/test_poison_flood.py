"""A thousand messages that are wrong in forty ways, between a thousand good ones: each harms only itself."""

import json
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgpack
import numpy as np
import pika
import pytest

from tests.e2e.graphs import WORDS, Graph, op, spec, write_servable
from tests.e2e.producer import JSON, MSGPACK, Producer, array_of, request, tensor
from tests.e2e.systems import System, Vhosts, running, wait_until

CONFIGURATION = (
    WORDS
    + """
distributed.declare_servable(2, 1, with_batch_dim=True, subgraphs=[subgraph("double.npz")])

def picky(x):
    if float(x.ravel()[0]) == -13.0:
        raise ValueError("minus thirteen")
    return x

@register.register_method(output_names=["y"])
def double(x):
    x = register.add_stage(picky, x, outputs_count=1)
    return register.call_servable(x, subgraph=0)
"""
)
X = np.arange(4, dtype=np.float32)
GOOD = 1000
EACH = 25


def changed(**fields: Any) -> bytes:
    return msgpack.packb({**request("flood", "double", {"x": X}), **fields})


def with_x(value: Any) -> bytes:
    return changed(instances=[{"x": value}])


def nested(depth: int) -> Any:
    value: Any = 1.0
    for _ in range(depth):
        value = [value]
    return value


PLAIN: dict[str, Callable[[Random], bytes]] = {
    "nothing": lambda _: b"",
    "noise": lambda random: random.randbytes(random.randrange(1, 400)),
    "text": lambda _: b"please double this",
    "a number": lambda _: msgpack.packb(7),
    "a list": lambda _: msgpack.packb([1, 2, 3]),
    "cut off": lambda random: changed()[: random.randrange(5, 60)],
    "something behind it": lambda _: changed() + b"\x00",
    "a bit turned": lambda random: _turned(changed(), random),
    "no servable": lambda _: msgpack.packb({"v": 1, "method": "double", "instances": [{"x": tensor(X)}]}),
    "no instances": lambda _: changed(instances=[]),
    "instances of another kind": lambda _: changed(instances={"x": 1}),
    "an unknown field": lambda _: changed(priority="urgent"),
    "another schema version": lambda _: changed(v=2),
    "an unknown servable": lambda _: changed(servable="nobody"),
    "an unknown method": lambda _: changed(method="triple"),
    "an unknown version": lambda _: changed(version=9),
    "a negative version": lambda _: changed(version=-1),
    "a name of another kind": lambda _: changed(method=5),
    "a name with a dot": lambda _: changed(servable="flood.v1"),
    "a missing input": lambda _: changed(instances=[{}]),
    "an extra input": lambda _: changed(instances=[{"x": tensor(X), "z": tensor(X)}]),
    "a wrong dtype": lambda _: with_x(tensor(X.astype(np.float64))),
    "a dtype of nowhere": lambda _: with_x(tensor(X, dtype="complex1")),
    "an object dtype": lambda _: with_x(tensor(X, dtype="object")),
    "a wrong shape": lambda _: with_x(tensor(np.zeros((2, 3), np.float32))),
    "a negative shape": lambda _: with_x(tensor(X, shape=[-4])),
    "a huge shape": lambda _: with_x(tensor(X, shape=[2**40, 2**40])),
    "too few bytes": lambda _: with_x(tensor(X, data=b"\0" * 15)),
    "too many bytes": lambda _: with_x(tensor(X, data=b"\0" * 17)),
    "bare binary": lambda _: with_x(b"\0" * 16),
    "deep lists": lambda _: with_x(nested(200)),
    "ragged lists": lambda _: with_x([[1.0], [2.0, 3.0]]),
    "a map for a value": lambda _: with_x({"pickle": b"\x80\x04."}),
    "a long array claimed": lambda _: b"\xdd" + struct.pack(">I", 2**32 - 1),
    "a long map claimed": lambda _: b"\xdf" + struct.pack(">I", 2**31),
    "a name of a megabyte": lambda _: changed(instances=[{"x" * 2**20: 1.0}]),
    "a row that its function does not like": lambda _: with_x(tensor(np.full(4, -13.0, np.float32))),
}
PROPERTIES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "JSON that is none": (b'{"servable": "flood", ', {"content_type": JSON}),
    "a content type of nowhere": (changed(), {"content_type": "image/png"}),
    "packed once more": (changed(), {"content_encoding": "gzip"}),
    "a deadline of another kind": (changed(), {"headers": {"rankmq-deadline": "tomorrow"}}),
    "a deadline in the past": (changed(), {"headers": {"rankmq-deadline": 1}}),
}
UNTOLD = "no reply queue"


def _turned(body: bytes, random: Random) -> bytes:
    """A request with a bit turned in its first bytes, where it says what it is."""
    at = random.randrange(0, 40)
    return body[:at] + bytes([body[at] ^ (1 << random.randrange(8))]) + body[at + 1 :]


@pytest.fixture(scope="module")
def flood(vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory, logs = tmp_path_factory.mktemp("flood"), tmp_path_factory.mktemp("flood-logs")
    graph = Graph([op("add", "x x", "y")], [spec("x", -1, 4)], [spec("y", -1, 4)])
    write_servable(directory, "flood", CONFIGURATION, {"double": lambda _: graph}, ranks=2)
    with running(System(vhosts.url(), directory, ["flood"], logs, max_in_flight=64)) as system:
        yield system


def messages(random: Random) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """What is published, in a random order: its kind ("" for a good one), its body, its properties."""
    found: list[tuple[str, bytes, dict[str, Any]]] = []
    for number in range(GOOD):
        found.append(
            ("", msgpack.packb(request("flood", "double", {"x": X + number})), {"message_id": f"good-{number}"})
        )
    kinds = [*PLAIN, *PROPERTIES, UNTOLD]
    for number in range(EACH * len(kinds)):
        kind = kinds[number % len(kinds)]
        body, properties = PROPERTIES.get(kind) or (b"", {})
        if kind in PLAIN:
            body = PLAIN[kind](random)
        if kind == UNTOLD:
            body, properties = changed(method="triple"), {"reply_to": None}
        found.append((kind, body, {"message_id": f"bad-{number}", **properties}))
    random.shuffle(found)
    yield from found


def test_a_thousand_wrong_ones_between_a_thousand_good_ones(flood: System) -> None:
    before = {rank.pid for rank in flood.group("flood").ranks}, flood.group("flood").epoch, flood.orchestrator.pid
    kinds: dict[str, str] = {}
    with Producer(flood.url) as producer:
        for kind, body, properties in messages(Random(20)):
            kinds[properties["message_id"]] = kind
            producer.send(body, key="flood", **{"content_type": MSGPACK, **properties})
        assert len({kind for kind in kinds.values() if kind}) >= 40
        assert len([kind for kind in kinds.values() if kind]) >= 1000
        untold = [asked for asked, kind in kinds.items() if kind == UNTOLD]
        replies = producer.wait(len(kinds) - len(untold), seconds=90)
        producer.rest(0.5)
        answered = Counter(properties.correlation_id for properties, _ in replies)
        assert set(answered) == set(kinds) - set(untold)
        assert set(answered.values()) == {1}
        served: Counter[str] = Counter()
        for properties, body in replies:
            reply = json.loads(body) if properties.content_type == JSON else msgpack.unpackb(body)
            asked, kind = properties.correlation_id, kinds[properties.correlation_id]
            if not kind:
                got = array_of(reply["outputs"][0]["y"])
                assert np.array_equal(got, 2 * (X + int(asked.removeprefix("good-")))), asked
            elif reply["error"] is None:
                served[kind] += 1
            else:
                assert reply["error"]["code"] != "internal", reply["error"]
                assert reply["error"]["message"]
        assert set(served) <= {"a bit turned"}, served  # which may leave a request that is another, and good
        dead = [producer.dead_letter(asked) for asked in untold]
        assert {headers["rankmq-code"] for headers, _ in dead} == {"unknown_method"}
    status = wait_until(lambda: (it := flood.status()).in_flight == 0 and it, "nothing under way")
    assert all(queue.messages == 0 for queue in status.queues), status.queues
    assert before == (
        {rank.pid for rank in flood.group("flood").ranks},
        flood.group("flood").epoch,
        flood.orchestrator.pid,
    )
    assert "a defect" not in flood.log
    with pika.BlockingConnection(pika.URLParameters(flood.url)) as connection:  # nothing is held unacknowledged
        assert flood.orchestrator.stop() == 0
        queue = connection.channel().queue_declare("rankmq.requests.flood.normal", passive=True)
        assert queue.method.message_count == 0

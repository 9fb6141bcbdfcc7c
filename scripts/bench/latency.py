"""One request on an idle engine, against the sum of the bare hops: the same bytes on the same ways in bare pika.

The hops: from the producer to a quorum queue and out of it; to eight ranks' exclusive queues through an exchange; the
answers of the eight back to whoever asked them; the reply. Whoever stands at the end of a hop computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...engine.topology import RANK_ALL, REQUESTS
from ...schemas import codec
from ...schemas.messages import Reply
from ...schemas.tensors import from_array
from .tools import bare
from .tools.bench import Bench
from .tools.benchmark import Benchmark
from .tools.children import Child, Children, Line
from .tools.engine import RunningEngine
from .tools.matmul import SERVABLE, Asking, example_on_numpy
from .tools.rounds import in_turns
from .tools.row import Row, compared, percentile

__all__ = ["BENCHMARK"]

_RANKS = 8
_REQUESTS, _ALL, _RESULTS = "rankmq.bench.latency", "rankmq.bench.ranks", "rankmq.bench.results"
_SHORT = bytes(200)  # what a rank that has no output to give says that it is done with
_ROUNDS = 7
_CALLS = 300
_PATIENCE = 60.0


def _run(bench: Bench) -> Iterator[Row]:
    url, asking, calls = bench.broker_url, Asking(1), bench.count(_CALLS)
    hub = Child("the bare hub", _hub, url)
    ends = bench.enter(Children([hub]))
    hub.hear(_PATIENCE)
    for rank in range(_RANKS):
        ends.add(Child(f"bare rank {rank}", _rank, url, rank)).hear(_PATIENCE)
    bench.enter(RunningEngine(bench, example_on_numpy(bench), SERVABLE))
    producer = bench.enter(bare.Producer(url, [asking.body], codec.MSGPACK))

    def times(exchange: str, key: str, *, check: bool) -> list[float]:
        answers = producer.ask(exchange, key, 1, most=calls)
        if check:
            asking.check([body for _, body in answers.bodies])
        return [seconds * 1e3 for seconds in answers.times]

    bench.say(f"{calls} requests, one after the other")
    pairs = in_turns(
        bench.rounds(_ROUNDS),
        lambda: times(REQUESTS, SERVABLE, check=True),
        lambda: times("", _REQUESTS, check=False),
    )
    for percent in (50, 99):
        figures = [(percentile(ours, percent), percentile(theirs, percent)) for ours, theirs in pairs]
        yield compared(bench.name, f"one request, {_RANKS} numpy ranks, p{percent}", "ms", figures)


def _hub(parent: Line, url: str) -> None:
    """Stands where the orchestrator would."""
    reply = codec.encode_reply(Reply(id="0" * 32, outputs=[{"y": from_array(np.zeros((128, 16), np.float32))}]))
    line = bare.Line(url, prefetch=1)
    line.queue(_REQUESTS, durable=True, arguments={"x-queue-type": "quorum", "x-expires": 600_000})
    line.do("exchange_declare", exchange=_ALL, auto_delete=True)
    line.queue(_RESULTS, exclusive=True)
    waiting: list[tuple[int, Any]] = []
    missing = 0

    def on_request(_: Any, delivery: Any, properties: Any, body: bytes) -> None:
        nonlocal missing
        waiting.append((delivery.delivery_tag, properties))
        missing = _RANKS
        line.publish(_ALL, RANK_ALL, body)

    def on_answer(channel: Any, _: Any, __: Any, body: bytes) -> None:
        nonlocal missing
        missing -= 1
        if not missing:
            tag, asked = waiting.pop()
            line.publish("", asked.reply_to, reply, correlation_id=asked.correlation_id, persistent=True)
            channel.basic_ack(tag)

    line.consume(_REQUESTS, on_request)
    line.consume(_RESULTS, on_answer, auto_ack=True)
    parent.say("ready")
    line.run(float("inf"))


def _rank(parent: Line, url: str, rank: int) -> None:
    """Stands where an agent would; rank 0 has the output."""
    answer = np.zeros((128, 16), np.float32).tobytes() if rank == 0 else _SHORT
    line = bare.Line(url)
    queue = line.queue()
    line.do("queue_bind", queue=queue, exchange=_ALL, routing_key=RANK_ALL)
    line.consume(queue, lambda *_: line.publish("", _RESULTS, answer), auto_ack=True)
    parent.say("ready")
    line.run(float("inf"))


BENCHMARK = Benchmark(50, "one request on an idle engine, against the sum of the bare hops", _run)

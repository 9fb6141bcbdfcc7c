"""Requests a second that the engine answers, against a loop in bare pika that moves the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.topology import REQUESTS
from ...schemas import codec
from ...schemas.messages import Reply
from ...schemas.tensors import Tensor, from_array, to_array
from .tools import bare
from .tools.bench import Bench
from .tools.benchmark import Benchmark
from .tools.children import Child, Children, Line
from .tools.engine import RunningEngine
from .tools.matmul import SERVABLE, Asking, example_on_mindspore, example_on_numpy
from .tools.rounds import in_turns
from .tools.row import Row, compared

__all__ = ["BENCHMARK"]

_QUEUE = "rankmq.bench.edge"
_PREFETCH = 64
_ROUNDS = 5
_SECONDS = 2.0
_PATIENCE = 60.0
_IN_FLIGHT = (1, 8, 64)
_INSTANCES = (1, 32)


def _run(bench: Bench) -> Iterator[Row]:
    loops = bench.enter(Children([Child("the bare loop", _bare_loop, bench.broker_url)]))
    loops.hear(_PATIENCE)
    kinds: dict[str, Callable[[Bench], Path]] = {"numpy": example_on_numpy}
    if bench.has("mindspore"):
        kinds["mindspore"] = example_on_mindspore
    for kind, example in kinds.items():
        with RunningEngine(bench, example(bench), SERVABLE):
            for instances in _INSTANCES:
                asking = Asking(instances)
                with bare.Producer(bench.broker_url, [asking.body], codec.MSGPACK) as producer:
                    for in_flight in _IN_FLIGHT:
                        what = f"8 {kind} ranks, {instances} {'instance' if instances == 1 else 'instances'}"
                        bench.say(f"{what}, {in_flight} in flight")
                        pairs = _measured(bench, producer, asking, in_flight)
                        yield compared(bench.name, f"{what}, {in_flight} in flight", "requests/s", pairs)


def _measured(bench: Bench, producer: bare.Producer, asking: Asking, in_flight: int) -> list[tuple[float, float]]:
    seconds = bench.seconds(_SECONDS)

    def ours() -> float:
        answers = producer.ask(REQUESTS, SERVABLE, in_flight, seconds=seconds)
        asking.check([body for _, body in answers.bodies])
        return answers.per_second

    def theirs() -> float:
        return producer.ask("", _QUEUE, in_flight, seconds=seconds).per_second

    return in_turns(bench.rounds(_ROUNDS), ours, theirs)


def _bare_loop(parent: Line, url: str) -> None:
    """Takes a request, decodes it, answers with as many bytes as the engine would, and acknowledges it."""
    y = np.zeros((128, 16), np.float32)
    line = bare.Line(url, prefetch=_PREFETCH)
    line.queue(_QUEUE, durable=True, arguments={"x-queue-type": "quorum", "x-expires": 600_000})

    def on_request(channel: Any, delivery: Any, properties: Any, body: bytes) -> None:
        request = codec.decode_request(body, properties.content_type)
        for row in request.instances:
            value = row["x"]
            if isinstance(value, Tensor):
                to_array(value)
        outputs: list[dict[str, Tensor] | None] = [{"y": from_array(y)} for _ in request.instances]
        reply = codec.encode_reply(Reply(id=properties.message_id, outputs=outputs))
        line.publish("", properties.reply_to, reply, correlation_id=properties.correlation_id, persistent=True)
        channel.basic_ack(delivery.delivery_tag)

    line.consume(_QUEUE, on_request)
    parent.say("ready")
    line.run(float("inf"))


BENCHMARK = Benchmark(40, "requests a second on the matmul example, against a loop in bare pika", _run)

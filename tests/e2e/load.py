"""A steady stream of requests, whose every answer is looked at, while something else happens to the engine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from tests.e2e.graphs import WORDS, Graph, op, spec, write_servable
from tests.e2e.producer import Producer, array_of, request
from tests.e2e.systems import System, wait_until

RANKS = 4
WEIGHT = np.random.default_rng(5).standard_normal((16, 8)).astype(np.float32)

# A row takes some milliseconds on the ranks, each of which has only its part of the weight.
STEADY = (
    WORDS
    + f"""
distributed.declare_servable({RANKS}, 1, with_batch_dim=False, subgraphs=[
    subgraph("part.npz", [shard(1)], [sum()]), subgraph("long.npz", [shard(1)], [sum()])])

def double(x):
    return x + x

@register.register_method(output_names=["y"])
def once(x):
    y = register.call_servable(x, subgraph=0)
    return y

@register.register_method(output_names=["y"])
def long(x):
    y = register.call_servable(x, subgraph=1)
    return y

first = PipelineServable("steady", "once")

@register.register_pipeline(output_names=["y"])
def twice(x):
    return first.run(x) + first.run(double(x))
"""
)


def write_steady(directory: Path, milliseconds: float = 2.0, long: float = 1500.0) -> str:
    """Write the servable `steady`; gives its name."""

    def part(rank: int, pause: float) -> Graph:
        return Graph(
            [op("sleep", "x", "z", milliseconds=pause), op("matmul", "z w", "y")],
            [spec("x", 4, 16 // RANKS)],
            [spec("y", 4, 8)],
            {"w": np.split(WEIGHT, RANKS)[rank]},
        )

    graphs = {"part": lambda rank: part(rank, milliseconds), "long": lambda rank: part(rank, long)}
    write_servable(directory, "steady", STEADY, graphs, ranks=RANKS)
    return "steady"


class Load:
    """Requests to `steady`, so many in all, so many in flight; every second one is a pipeline of two calls.

    Args:
        url: the broker's.
        total: how many requests.
        in_flight: how many are unanswered at once.
    """

    def __init__(self, url: str, total: int, in_flight: int = 48) -> None:
        self._url = url
        self._total = total
        self._in_flight = in_flight
        self._expected: dict[str, np.ndarray] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._had: set[str] = set()
        self.answers: dict[str, int] = {}
        self.wrong: list[str] = []

    @property
    def answered(self) -> int:
        return len(self.answers)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            with Producer(self._url) as producer:
                sent = 0
                while self.answered < self._total and not self._stop.is_set():
                    while sent < self._total and sent - self.answered < self._in_flight:
                        self._send(producer, sent)
                        sent += 1
                    producer.rest(0.005)
                    self._take(producer)
                producer.rest(0.5)  # whatever comes twice
                self._take(producer)
        except BaseException as error:  # noqa: BLE001 - `finish` raises it
            self._failure = error

    def _send(self, producer: Producer, number: int) -> None:
        x = np.random.default_rng(number).standard_normal((4, 16)).astype(np.float32)
        name = producer.send(request("steady", ("once", "twice")[number % 2], {"x": x}))
        self._expected[str(name)] = (3.0 if number % 2 else 1.0) * (x @ WEIGHT)

    def _take(self, producer: Producer) -> None:
        replies, producer.replies[:] = producer.replies[:], []
        for properties, body in replies:
            if properties.message_id in self._had:
                continue  # a producer drops a reply that it has had
            self._had.add(properties.message_id)
            name = properties.correlation_id
            self.answers[name] = self.answers.get(name, 0) + 1
            got = msgpack.unpackb(body)
            if got["error"] is not None:
                self.wrong.append(f"{name}: {got['error']}")
            elif not np.allclose(array_of(got["outputs"][0]["y"]), self._expected[name], rtol=1e-3, atol=1e-3):
                self.wrong.append(f"{name}: another's answer")

    def wait_answered(self, count: int, seconds: float = 60.0) -> None:
        wait_until(lambda: self.answered >= count or self._failure, f"{count} answers", seconds, every=0.01)

    def finish(self, seconds: float = 60.0) -> None:
        """Wait for the last answer; all must be right."""
        self._thread.join(seconds)
        alive = self._thread.is_alive()
        self._stop.set()
        self._thread.join(10)
        assert self._failure is None, self._failure
        assert not alive, f"{self.answered} of {self._total} answered within {seconds:g} s"
        assert not self.wrong, self.wrong[:5]
        assert self.answers.keys() == self._expected.keys()

    @property
    def repeated(self) -> list[str]:
        """The requests that were answered more than once, by replies that the producer can tell apart."""
        return [name for name, count in self.answers.items() if count > 1]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)


@contextmanager
def under_load(system: System, total: int = 600, **how: Any) -> Iterator[Load]:
    """A load that has begun, and is over when the block is."""
    load = Load(system.url, total, **how)
    load.start()
    try:
        load.wait_answered(total // 10)
        yield load
    finally:
        load.stop()

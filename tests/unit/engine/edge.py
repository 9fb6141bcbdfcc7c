"""A service with ports that remember, a loop that the test turns, real threads, and ranks in memory."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rankmq.engine.answers import Answers
from rankmq.engine.carriers import Pipelines
from rankmq.engine.catalog import Catalog
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Properties
from rankmq.engine.dead_headers import headers_of
from rankmq.engine.delivery import Delivery
from rankmq.engine.open_request import OpenRequest
from rankmq.engine.servable import Servable
from rankmq.engine.service import Service
from rankmq.schemas import codec
from rankmq.schemas.errors import RankmqError
from rankmq.schemas.limits import Limits
from rankmq.schemas.messages import Answered, Reply, ReplyPart, Request
from rankmq.schemas.tensors import from_array, to_array

from tests.unit.engine.servable_files import WORDS, load
from tests.unit.engine.simulation import World, ready_world

PATIENCE = 20.0
"""Seconds after which a test that waits has found a hang."""

MODEL = WORDS + "distributed.declare_servable(rank_size=3, stage_size=1, with_batch_dim=True)\n"

SERVED = """
@register.register_method(output_names=["y"])
def scale(x):
    return register.call_servable(x, subgraph=0)

@register.register_method(output_names=["y"])
def any_size(x):
    return register.call_servable(x, subgraph=2)

def grow(x):
    return np.zeros(int(x), np.uint8)

@register.register_method(output_names=["y"])
def large(x):
    return register.add_stage(grow, x)

def empty(x):
    return np.zeros((1 << 21, 0), np.float32)

@register.register_method(output_names=["y"])
def odd(x):
    return register.add_stage(empty, x)

@register.register_method(output_names=["sum", "y"])
def two(x, y):
    return x, y

scale_ = PipelineServable("matmul", "scale")

@register.register_pipeline(output_names=["y"])
def pipeline(x):
    return scale_.run(x)
"""

ROW = np.array([1, 2, 3], np.float32)


@dataclass
class Publish:
    """Something that the service has published: what is to become of it, `then` is told."""

    delivery: Delivery
    body: bytes
    content_type: str
    headers: Mapping[str, Any] | None
    then: Callable[[Outcome], None]

    @property
    def reply(self) -> Reply:
        return codec.decode_reply(self.body, self.content_type)


@dataclass
class Fate:
    """What has become of a delivery."""

    acked: int = 0
    handed_back: int = 0
    replies: list[tuple[Publish, Outcome]] = field(default_factory=list)
    dead: list[tuple[Publish, Outcome]] = field(default_factory=list)

    @property
    def ends(self) -> int:
        """How often it has ended: acknowledged, back in its queue by our word, or by the end of the channel."""
        lost = sum(outcome is Outcome.LOST for _, outcome in (*self.replies, *self.dead))
        return self.acked + self.handed_back + (lost if not self.handed_back else 0)


class Edge:
    """The ports, the loop and the threads of one service.

    Args:
        tmp_path: where servables are written.
        configurations: by servable name, the text of its configuration file, or the servable.
        world: the ranks of the servable `matmul`.
        pool: "inline": a function's work is done at once, "threads": on real ones.
        given: for the service.
    """

    def __init__(
        self,
        tmp_path: Path,
        configurations: Mapping[str, str | Servable],
        world: World | None = None,
        *,
        pool: str = "inline",
        stage_threads: int = 2,
        **given: Any,
    ) -> None:
        self.world = world or ready_world()
        servables = [
            load(tmp_path, given_, name) if isinstance(given_, str) else given_
            for name, given_ in configurations.items()
        ]
        self.news: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.pool = pool
        self.busy = 0
        self.lock = threading.Lock()
        self.stages = ThreadPoolExecutor(stage_threads)
        self.pipelines = Pipelines(8)
        self.fates: dict[int, Fate] = {}
        self.ended = 0
        self.outcomes: deque[Outcome] = deque()
        self.held: deque[tuple[bool, Publish]] = deque()
        self.hold = False
        self.broken: RankmqError | None = None
        self.deaf: set[str] = set()
        self.asked: list[str] = []
        self.records: list[Answered] = []
        self.parts: list[tuple[Delivery, ReplyPart]] = []
        self.sent: Counter[tuple[str | None, str | None]] = Counter()
        self.wakes: list[float] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.answers: Answers = given.setdefault("answers", Answers(3600.0, 1 << 20))
        self.service = Service(
            Catalog(servables),
            {("matmul", 1): self.world.driver},
            self,
            self.world.clock,
            self.wall,
            **{
                "limits": Limits(),
                "max_attempts": 3,
                "max_deliveries": 3,
                "max_in_flight": 10_000,
                "max_message": 1 << 20,
                **given,
            },
        )

    def close(self) -> None:
        self.service.close(RankmqError("the test is over"))
        self.stages.shutdown()
        self.pipelines.close()

    # ------------------------------------------------------------------------------------------------ ServicePorts

    def reply(self, delivery: Delivery, body: bytes, content_type: str, then: Callable[[Outcome], None]) -> None:
        self._published(Publish(delivery, body, content_type, None, then), dead=False)

    def heard(self, reply_to: str, then: Callable[[bool], None]) -> None:
        self.asked.append(reply_to)
        self.news.put(lambda: then(reply_to not in self.deaf))

    def dead_letter(
        self, open_: OpenRequest, error: RankmqError, last: RankmqError | None, then: Callable[[Outcome], None]
    ) -> None:
        delivery = open_.delivery
        headers = headers_of(
            error,
            request=open_.id,
            attempts=open_.attempts,
            exchange=delivery.exchange,
            routing_key=delivery.routing_key,
            headers=delivery.headers,
            now=self.wall(),
            last=last,
        )
        self._published(Publish(delivery, delivery.body, "", headers, then), dead=True)

    def part(self, delivery: Delivery, body: bytes, content_type: str) -> None:
        assert not self.fates[delivery.tag].replies, "a part after the reply"
        self.parts.append((delivery, codec.decode_part(body, content_type)))

    def takes_parts(self) -> bool:
        return True

    def answered(self, answered: Answered) -> None:
        self.records.append(answered)

    def wake_at(self, when: float) -> None:
        self.wakes.append(when)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        self.timers.append((self.world.clock() + seconds, work))

    def wall(self) -> float:
        return 1_700_000_000.0 + self.world.clock()

    def _published(self, publish: Publish, *, dead: bool) -> None:
        if self.broken is not None:
            raise self.broken
        if not dead:
            self.sent[_question(publish.delivery)] += 1
        if self.hold:
            self.held.append((dead, publish))
        else:
            self.answer(dead, publish, self.outcomes.popleft() if self.outcomes else Outcome.CONFIRMED)

    def answer(self, dead: bool, publish: Publish, outcome: Outcome) -> None:
        """The broker answers a publish."""
        fate = self.fates[publish.delivery.tag]
        (fate.dead if dead else fate.replies).append((publish, outcome))
        publish.then(outcome)

    def ack(self, delivery: Delivery) -> None:
        fate = self.fates[delivery.tag]
        confirmed = any(outcome is Outcome.CONFIRMED for _, outcome in (*fate.replies, *fate.dead))
        # Another delivery of the same request stands for it: one that was answered, or one that the broker still has.
        shared = self.sent[_question(delivery)] or _question(delivery) in map(_question, self.unanswered)
        assert confirmed or shared or not delivery.properties.reply_to, "acknowledged before anything was confirmed"
        fate.acked += 1
        assert fate.ends == 1, fate

    @property
    def unanswered(self) -> list[Delivery]:
        return [it.delivery for it in self.service.requests if not it.answered]

    def hand_back(self, delivery: Delivery) -> None:
        fate = self.fates[delivery.tag]
        fate.handed_back += 1
        assert fate.ends == 1, fate

    def request_ended(self) -> None:
        self.ended += 1

    def in_pool(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        if self.pool == "inline":
            done(work())
        else:
            self._on_thread(self.stages.submit, work, done)

    def in_pipeline_pool(self, kind: Hashable, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self._on_thread(partial(self.pipelines.submit, kind), work, done)

    def _on_thread(
        self, submit: Callable[[Callable[[], None]], Any], work: Callable[[], Any], done: Callable[[Any], None]
    ) -> None:
        with self.lock:
            self.busy += 1

        def run() -> None:
            try:
                result = work()
                self.on_loop(lambda: done(result))
            except BaseException as error:
                self.on_loop(partial(_fail, error))
                raise
            finally:
                with self.lock:
                    self.busy -= 1  # after its news is there: `run` ends when nobody is busy and there is none

        submit(run)

    def on_loop(self, work: Callable[[], None]) -> None:
        self.news.put(work)

    # ------------------------------------------------------------------------------------------------- what tests do

    def deliver(
        self,
        body: bytes,
        *,
        headers: Mapping[str, Any] | None = None,
        key: str = "matmul",
        exchange: str = "rankmq.requests",
        redelivered: bool = False,
        fault: RankmqError | None = None,
        **properties: Any,
    ) -> Fate:
        """A delivery comes from the requests queue."""
        tag = len(self.fates) + 1
        fate = self.fates[tag] = Fate()
        found = Properties(**{"reply_to": "answers", "headers": headers, **properties})
        self.service.receive(Delivery(body, tag, exchange, key, redelivered, found, fault))
        return fate

    def ask(
        self,
        method: str,
        *instances: Mapping[str, Any],
        servable: str = "matmul",
        version: int = 0,
        content_type: str = codec.MSGPACK,
        stream: bool = False,
        **properties: Any,
    ) -> Fate:
        """A request comes."""
        rows = [
            {name: from_array(value) if hasattr(value, "dtype") else value for name, value in instance.items()}
            for instance in instances
        ]
        request = Request(servable=servable, method=method, version=version, instances=rows, stream=stream)
        body = codec.encode_request(request, content_type)
        return self.deliver(body, **{"content_type": content_type, **properties})

    def run(self) -> None:
        """Turns the loop until nothing is left to do."""
        until = time.monotonic() + PATIENCE
        while True:
            self.world.run()
            try:
                self.news.get(timeout=0.02 if self.busy else 0)()
            except queue.Empty:
                if not self.busy and self.news.empty():
                    self.world.run()
                    if self.news.empty():
                        return
            assert time.monotonic() < until, "something waits for ever"


def _question(delivery: Delivery) -> tuple[str | None, str | None]:
    given = delivery.properties
    return given.message_id, given.reply_to


def _fail(error: BaseException) -> None:
    raise AssertionError("a thread died") from error


def outputs_of(fate: Fate) -> list[dict[str, Any] | None]:
    """The outputs of the one reply that came, as lists."""
    ((publish, _),) = fate.replies
    assert publish.reply.error is None, publish.reply.error
    return [
        None if row is None else {name: to_array(tensor).tolist() for name, tensor in row.items()}
        for row in publish.reply.outputs
    ]


def errors_of(fate: Fate) -> dict[int, str]:
    """By instance, the code of its error in the one reply that came."""
    ((publish, _),) = fate.replies
    return {it.index: it.error.code for it in publish.reply.errors}


def error_of(fate: Fate) -> tuple[str, str]:
    """The code and the message of the error of the one reply that came."""
    ((publish, _),) = fate.replies
    assert publish.reply.error is not None, publish.reply
    return publish.reply.error.code, publish.reply.error.message


def only(edge):
    """Nothing is under way, and every delivery has ended once."""
    assert edge.service.in_flight == 0
    assert [fate.ends for fate in edge.fates.values()] == [1] * len(edge.fates)

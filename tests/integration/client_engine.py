"""An engine for tests of the producer library: it takes requests and cancels, and answers what it is told to."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pika
from rankmq.engine import topology
from rankmq.engine.claims import Claims
from rankmq.engine.delivery import Delivery
from rankmq.schemas import codec
from rankmq.schemas.messages import CancelReply, ErrorInfo, Reply, Request
from rankmq.schemas.tensors import from_array, to_array
from rankmq.scripts.chaos.proxy import Proxy

PATIENCE = 20.0
"""Seconds after which a test that waits has found a hang."""

Answer = Callable[[Request], "Reply | bytes | None"]

_names = (f"asked-{number}" for number in itertools.count())


def doubled(request: Request) -> Reply:
    rows = [{name: from_array(to_array(value) * 2) for name, value in row.items()} for row in request.instances]
    return Reply(id="", outputs=rows)


def x(*values: float) -> dict[str, Any]:
    return {"x": np.array(values, np.float32)}


class Answering:
    """Takes the requests of one servable, in all lanes, and sends what `answer` gives: a reply, bytes, or no reply.

    Args:
        url: of the broker.
        answer: called with each request.
        cancelled: called with the id of each cancel; gives the states to answer with, of one orchestrator each.
        deaf: it hears of no cancels.
        claims: its end of bodies that are not in their messages; None: it knows nothing of them.
        queue: arguments of its queue.
    """

    def __init__(
        self,
        url: str,
        answer: Answer = doubled,
        cancelled: Callable[[str], Iterable[str]] = lambda _: (),
        deaf: bool = False,
        claims: Claims | None = None,
        **queue: Any,
    ) -> None:
        self.servable = next(_names)
        self.answer = answer
        self.cancelled = cancelled
        self.claims = claims
        self.bodies: list[bytes] = []
        self._deaf = deaf
        self.taken = threading.Semaphore(0)
        self.heard = threading.Semaphore(0)
        self.requests: list[tuple[str, pika.BasicProperties]] = []
        self.cancels: list[pika.BasicProperties] = []
        self._queue = topology.requests_queue(self.servable)
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        declare(self._channel, topology.edge())
        self._channel.queue_declare(self._queue, exclusive=True, arguments=queue)
        for lane in topology.LANES:
            self._channel.queue_bind(self._queue, topology.REQUESTS, topology.requests_key(self.servable, lane))
        self._cancels = self._channel.queue_declare("", exclusive=True).method.queue
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        if not self._deaf:
            self._channel.queue_bind(self._cancels, topology.CANCEL)
        self._thread.start()

    def waits_for(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.taken.acquire(timeout=PATIENCE), "no request came"

    def hears_of(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.heard.acquire(timeout=PATIENCE), "no cancel came"

    def close(self) -> None:
        if self._thread.is_alive():
            self._connection.add_callback_threadsafe(self._channel.stop_consuming)
            self._thread.join(PATIENCE)
        self._connection.close()

    def _serve(self) -> None:
        self._channel.basic_consume(self._queue, self._on_request, auto_ack=True)
        self._channel.basic_consume(self._cancels, self._on_cancel, auto_ack=True)
        self._channel.start_consuming()

    def _on_request(self, _: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        self.requests.append((method.routing_key, properties))
        self.bodies.append(body)
        delivery = Delivery(body, 0, "", method.routing_key, False, properties)
        if self.claims is not None:
            delivery = self.claims.taken(delivery)
        if delivery.fault is not None:
            fault = delivery.fault
            error = ErrorInfo(code=fault.code, message=fault.message, side=fault.side)
            reply: Reply | bytes | None = Reply(error=error)
        else:
            reply = self.answer(codec.decode_request(delivery.body, properties.content_type))
        if reply is not None:
            out = reply if isinstance(reply, bytes) else codec.encode_reply(reply)
            headers = None
            if self.claims is not None:
                headers, out = self.claims.given(delivery.headers, out)
            answered = pika.BasicProperties(
                correlation_id=properties.correlation_id, content_type=properties.content_type, headers=headers
            )
            self._channel.basic_publish("", properties.reply_to, out, answered)
        self.taken.release()

    def _on_cancel(self, _: Any, __: Any, properties: pika.BasicProperties, body: bytes) -> None:
        assert body == b""
        self.cancels.append(properties)
        if properties.reply_to:
            for number, state in enumerate(self.cancelled(properties.correlation_id)):
                reply = CancelReply(orchestrator=f"o{number}", id=properties.correlation_id, state=state)
                answered = pika.BasicProperties(correlation_id=properties.message_id)
                self._channel.basic_publish("", properties.reply_to, codec.encode_cancel_reply(reply), answered)
        self.heard.release()


def declare(channel: Any, items: topology.Topology) -> None:
    for item in items:
        match item:
            case topology.Exchange():
                channel.exchange_declare(item.name, item.kind, durable=item.durable, arguments=dict(item.arguments))
            case topology.Queue():
                channel.queue_declare(item.name, durable=item.durable, arguments=dict(item.arguments))
            case topology.Binding():
                channel.queue_bind(item.queue, item.exchange, item.key)


@contextmanager
def answering(
    url: str,
    answer: Answer = doubled,
    cancelled: Callable[[str], Iterable[str]] = lambda _: (),
    *,
    deaf: bool = False,
    claims: Claims | None = None,
) -> Iterator[Answering]:
    orchestrator = Answering(url, answer, cancelled, deaf, claims)
    orchestrator.start()
    try:
        yield orchestrator
    finally:
        orchestrator.close()


@contextmanager
def proxied(url: str) -> Iterator[tuple[Proxy, str]]:
    parts = urlsplit(url)
    with Proxy(parts.hostname, parts.port) as proxy:
        yield proxy, url.replace(f":{parts.port}/", f":{proxy.port}/")

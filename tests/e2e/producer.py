"""A producer without rankmq: plain pika, with bodies made by msgpack or json."""

import json
import time
import uuid
from typing import Any

import msgpack
import numpy as np
import pika

REQUESTS, DEAD = "rankmq.requests", "rankmq.dead"
MSGPACK, JSON = "application/msgpack", "application/json"
DIRECT = "amq.rabbitmq.reply-to"


def tensor(array: Any, **changed: Any) -> dict[str, Any]:
    """A tensor as it travels, with some of its fields changed."""
    array = np.ascontiguousarray(array)
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": array.tobytes(), **changed}


def array_of(value: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])


def request(servable: str, method: str, /, *instances: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """A request, arrays in it made tensors; `changed` sets further or other fields."""
    rows = [
        {name: tensor(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}
        for row in instances
    ]
    return {"v": 1, "servable": servable, "method": method, "version": 0, "instances": rows, **changed}


class Producer:
    """Publishes requests and takes replies, on a reply queue of its own or on RabbitMQ's direct reply-to."""

    def __init__(self, url: str, *, direct: bool = False) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()
        self.reply_to = DIRECT if direct else self._channel.queue_declare("", exclusive=True).method.queue
        self.replies: list[tuple[pika.BasicProperties, bytes]] = []
        self._channel.basic_consume(self.reply_to, self._on_reply, auto_ack=True)

    def __enter__(self) -> "Producer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection.is_open:
            self._connection.close()

    def _on_reply(self, _: Any, __: Any, properties: pika.BasicProperties, body: bytes) -> None:
        self.replies.append((properties, body))

    def send(
        self, body: Any, *, key: str | None = None, content_type: str | None = MSGPACK, **properties: Any
    ) -> str | None:
        """Publish a request.

        Args:
            body: bytes as they are; anything else is packed, as JSON where the content type says so.
            key: the routing key; the request's servable where it has one.
            content_type: the property.
            properties: further AMQP properties, None for one that is to be missing.

        Returns:
            The request's id.
        """
        if key is None:
            key = body["servable"] if isinstance(body, dict) else "matmul"
        if not isinstance(body, bytes):
            body = json.dumps(body).encode() if content_type == JSON else msgpack.packb(body)
        given = {"message_id": uuid.uuid4().hex, "reply_to": self.reply_to, "delivery_mode": 2, **properties}
        if "correlation_id" not in given:
            given["correlation_id"] = given["message_id"]
        made = pika.BasicProperties(content_type=content_type, **given)
        self._channel.basic_publish(REQUESTS, key, body, made, mandatory=True)
        return given["message_id"]

    def wait(self, count: int = 1, seconds: float = 30.0) -> list[tuple[pika.BasicProperties, bytes]]:
        """Wait until so many replies are there, in all."""
        deadline = time.monotonic() + seconds
        while len(self.replies) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(self.replies)} replies of {count} within {seconds:g} s"
            self._connection.process_data_events(left)
        return self.replies

    def rest(self, seconds: float) -> None:
        """Take what still comes within some seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._connection.process_data_events(left)

    def ask(self, body: Any, *, seconds: float = 30.0, **how: Any) -> dict[str, Any]:
        """Publish a request and wait for its reply, decoded."""
        self.replies.clear()
        self.send(body, **how)
        properties, reply = self.wait(seconds=seconds)[0]
        return json.loads(reply) if properties.content_type == JSON else msgpack.unpackb(reply)

    def dead_letter(self, message_id: str | None, seconds: float = 10.0) -> tuple[dict[str, Any], bytes]:
        """Take the dead letter of a request; gives its headers and body.

        Args:
            message_id: the request's; None takes the next dead letter.
            seconds: how long to wait for it.
        """
        deadline = time.monotonic() + seconds
        while True:
            method, properties, body = self._channel.basic_get(DEAD, auto_ack=True)
            if method is None:
                assert time.monotonic() < deadline, f"no dead letter of {message_id} within {seconds:g} s"
                self._connection.process_data_events(0.05)
            elif message_id is None or properties.message_id == message_id:
                return properties.headers, body

    def depth(self, queue: str) -> int:
        """How many messages wait in a queue."""
        return self._channel.queue_declare(queue, passive=True).method.message_count

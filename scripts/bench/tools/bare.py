"""Bare pika: what a broker and its driver can do without us. The ceilings, and the producer that loads both sides.

The engine's own connection is not used here on purpose, since it is what is measured.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pika

from ....schemas.errors import OperatorError

__all__ = ["Answers", "Line", "Producer"]

OnMessage = Callable[[Any, Any, Any, bytes], object]

_HEARTBEAT = 600  # a line is silent while the other side is measured
_PATIENCE = 120.0
_FLOOD_PATIENCE = 600.0
_ANY = 1 << 62
_LEAST = 4  # answers to take a rate of
_KEPT = 64
_CHUNK = 500


class Line:
    """One connection with one channel, and a loop that runs only while somebody waits for something.

    Args:
        url: the broker's.
        prefetch: unacknowledged deliveries at once; 0 for any number.
    """

    def __init__(self, url: str, prefetch: int = 0) -> None:
        parameters = pika.URLParameters(url)
        parameters.heartbeat = _HEARTBEAT
        self._failure = ""
        self._waiting = False
        self.channel: Any = None
        self._connection = pika.SelectConnection(
            parameters,
            on_open_callback=lambda it: it.channel(on_open_callback=self._opened),
            on_open_error_callback=lambda _, error: self._failed(error),
            on_close_callback=lambda _, error: self._failed(error),
        )
        self.run()
        if prefetch:
            self.do("basic_qos", prefetch_count=prefetch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self, channel: Any) -> None:
        self.channel = channel
        channel.add_on_close_callback(lambda _, error: self._failed(error))
        self.stop()

    def _failed(self, error: object) -> None:
        self._failure = f"the broker or the connection to it failed: {error}"
        self.stop()

    def run(self, seconds: float = _PATIENCE) -> bool:
        """Runs the loop until `stop`, or so long.

        Returns:
            Whether it was stopped.

        Raises:
            OperatorError: the connection is gone.
        """
        self._waiting = True
        loop = self._connection.ioloop
        timer = loop.call_later(seconds, loop.stop)
        loop.start()
        loop.remove_timeout(timer)
        if self._failure:
            raise OperatorError(self._failure)
        stopped = not self._waiting
        self._waiting = False
        return stopped

    def stop(self) -> None:
        """Has `run` return."""
        if self._waiting:
            self._waiting = False
            self._connection.ioloop.stop()

    def do(self, method: str, **arguments: Any) -> Any:
        """Calls a method of the channel and waits for the broker's answer."""
        answers: list[Any] = []

        def answered(answer: Any) -> None:
            answers.append(answer)
            self.stop()

        getattr(self.channel, method)(**arguments, callback=answered)
        if not self.run():
            raise OperatorError(f"the broker does not answer: {method}")
        return answers[0].method

    def queue(self, name: str = "", **arguments: Any) -> str:
        """Declares a queue, exclusive if it has no name, and gives its name."""
        given = {"exclusive": True, **arguments} if not name else arguments
        return str(self.do("queue_declare", queue=name, **given).queue)

    def consume(
        self, queue: str, on_message: Callable[[Any, Any, Any, bytes], object], *, auto_ack: bool = False
    ) -> None:
        """Has a function called with channel, delivery, properties and body of each message."""
        self.do("basic_consume", queue=queue, auto_ack=auto_ack, on_message_callback=on_message)

    def publish(
        self, exchange: str, key: str, body: bytes, *, persistent: bool = False, **properties: str | None
    ) -> None:
        """Publishes a message; nobody waits for the broker's word on it."""
        given = pika.BasicProperties(delivery_mode=2 if persistent else 1, **properties)
        self.channel.basic_publish(exchange, key, body, given)

    def close(self) -> None:
        """Closes the connection."""
        if self._connection.is_open:
            self._waiting = True
            self._connection.close()
            loop = self._connection.ioloop
            loop.call_later(2.0, loop.stop)
            loop.start()


@dataclass(slots=True)
class Answers:
    """What came back within a time.

    Attributes:
        count: how many answers.
        seconds: the time.
        times: seconds that each request took.
        bodies: the first few answers, each with the number of its request among the producer's.
    """

    count: int = 0
    seconds: float = 0.0
    times: list[float] = field(default_factory=list)
    bodies: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.count / self.seconds


class Producer:
    """Publishes requests, over and over, and keeps so many under way.

    Args:
        url: the broker's.
        bodies: of the requests.
        content_type: of all of them.
    """

    def __init__(self, url: str, bodies: Sequence[bytes], content_type: str) -> None:
        self._line = Line(url)
        self._bodies = bodies
        self._content_type = content_type
        self._replies = self._line.queue()
        self._turn = _Turn(began=0.0, seconds=0.0, left=0)
        self._on_reply: Callable[[str, bytes], object] = lambda request, reply: None
        self._line.consume(
            self._replies,
            lambda _, __, properties, reply: self._on_reply(properties.correlation_id, reply),
            auto_ack=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()

    def ask(self, exchange: str, key: str, in_flight: int, *, seconds: float = _PATIENCE, most: int = _ANY) -> Answers:
        """Asks for so long, or so often, until there are some answers; then waits for what is under way.

        Args:
            exchange: where to publish.
            key: the routing key.
            in_flight: requests under way at once.
            seconds: how long.
            most: how many requests.

        Raises:
            OperatorError: the answers stay away, or the broker does.
        """
        turn = _Turn(began=time.perf_counter(), seconds=seconds, left=most)

        def on_reply(request: str, reply: bytes) -> None:
            if not turn.take(request, reply):
                return
            if time.perf_counter() < turn.end and turn.left > 0:
                self._publish(turn, exchange, key)
            elif not turn.asked:
                self._line.stop()

        self._on_reply = on_reply
        for _ in range(min(in_flight, most)):
            self._publish(turn, exchange, key)
        if not self._line.run(seconds + _PATIENCE):
            raise OperatorError(f"{len(turn.asked)} requests have no answer {_PATIENCE:g} s after the last was sent")
        return turn.answers

    def flood(self, exchange: str, key: str, count: int) -> None:
        """Publishes so many requests at once; `await_answers` takes what comes of them.

        Args:
            exchange: where to publish.
            key: the routing key.
            count: how many requests.
        """
        self._turn = turn = _Turn(began=time.perf_counter(), seconds=_FLOOD_PATIENCE, left=count)
        self._on_reply = turn.take
        while turn.left:
            for _ in range(min(_CHUNK, turn.left)):
                self._publish(turn, exchange, key)
            self._line.run(0.0)
        self._line.do("basic_qos", prefetch_count=0)  # once this is answered, the broker has them all

    def await_answers(self, count: int) -> Answers:
        """The answers to requests of the last flood, once there are so many.

        Raises:
            OperatorError: they stay away.
        """
        turn = self._turn

        def on_reply(request: str, reply: bytes) -> None:
            if turn.take(request, reply) and turn.answers.count >= count:
                self._line.stop()

        self._on_reply = on_reply
        if turn.answers.count < count and not self._line.run():
            raise OperatorError(f"{turn.answers.count} of {count} answers came within {_PATIENCE:g} s")
        self._on_reply = turn.take  # others may still come
        return turn.answers

    def purge(self, queue: str) -> None:
        """Has the broker forget what waits in a queue."""
        self._line.do("queue_purge", queue=queue)

    def delete(self, queue: str) -> None:
        """Has the broker let go of a queue; one that is not there is no error."""
        self._line.do("queue_delete", queue=queue)

    def _publish(self, turn: _Turn, exchange: str, key: str) -> None:
        request, number = uuid.uuid4().hex, turn.number % len(self._bodies)
        turn.left -= 1
        turn.number += 1
        turn.asked[request] = number, time.perf_counter()
        self._line.publish(
            exchange,
            key,
            self._bodies[number],
            persistent=True,
            message_id=request,
            correlation_id=request,
            reply_to=self._replies,
            content_type=self._content_type,
        )


@dataclass(slots=True)
class _Turn:
    """What is under way, and what came back.

    Attributes:
        began: as `time.perf_counter()`.
        seconds: how long answers count.
        left: how many requests may still be sent.
        number: how many were sent.
        asked: by request its number among the producer's, and when it was sent.
        answers: what came back.
    """

    began: float
    seconds: float
    left: int
    number: int = 0
    asked: dict[str, tuple[int, float]] = field(default_factory=dict)
    answers: Answers = field(default_factory=Answers)

    @property
    def end(self) -> float:
        """When answers count no more."""
        return self.began + self.seconds

    def take(self, request: str, reply: bytes) -> bool:
        """Takes an answer; whether it was one to a request of this turn."""
        if request not in self.asked:
            return False
        number, then = self.asked.pop(request)
        now, answers = time.perf_counter(), self.answers
        if now < self.end or answers.count < _LEAST:
            answers.count += 1
            answers.seconds = now - self.began
            answers.times.append(now - then)
        if len(answers.bodies) < _KEPT:
            answers.bodies.append((number, reply))
        return True

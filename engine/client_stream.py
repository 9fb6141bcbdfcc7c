"""An answer that comes in parts, for whoever waits for it: iterate over the parts, then ask for the result."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..schemas import codec
from ..schemas.errors import Cancelled, RankmqError, ReplyTimeout
from ..schemas.messages import Reply, ReplyPart
from ..schemas.tensors import to_array
from .client_book import Book, Pending
from .client_values import Result, result_of
from .delivery import Delivery

__all__ = ["Part", "Stream", "hand_on"]

log = logging.getLogger("rankmq.engine.client")

_MOST_PARTS = 1024
"""Parts that wait to be looked at; of more the oldest are dropped."""

_GRACE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Part:
    """What there is of one instance's answer so far.

    Attributes:
        instance: which one, from 0.
        attempt: it rises when the instance is started again, and what was said before counts for nothing.
        number: from 0 within the attempt; where one is missing, it got lost.
        outputs: by name.
    """

    instance: int
    attempt: int
    number: int
    outputs: dict[str, np.ndarray[Any, Any]]


class Stream:
    """A request under way whose answer comes in parts.

    with client.stream({"prompt": "Tell me a story.", "options": "{}"}) as stream:
        for part in stream:
            print(part.outputs["text"])
        result = stream.result()

    Iterating ends with the answer, be it a result or an error; it can be broken off. What `with` leaves before that is
    cancelled. For one thread at a time.

    Args:
        seconds: how long the answer may take at most.
        check: raises where the calling thread must not wait.
    """

    def __init__(self, seconds: float, check: Callable[[], None]) -> None:
        self._until = time.monotonic() + seconds + _GRACE_SECONDS
        self._seconds = seconds
        self._check = check
        self._changed = threading.Condition()
        self._parts: deque[Part] = deque()
        self._newest: dict[int, tuple[int, int]] = {}
        self._pending: Pending[Reply]

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[Part]:
        """The parts, until the answer is there.

        Raises:
            ReplyTimeout: the client's thread does not run.
            ProducerError: within a callback of the client.
        """
        self._check()
        while True:
            with self._changed:
                while not self._parts and not self._pending.done():
                    self._wait()
                if not self._parts:
                    return
                part = self._parts.popleft()
            yield part

    @property
    def request_id(self) -> str:
        """The request's id, by which anybody can cancel it."""
        return self._pending.request_id

    def done(self) -> bool:
        """Whether the answer is there."""
        return self._pending.done()

    def result(self) -> Result:
        """The whole answer, once it is there; gives and raises what `Client.infer` does."""
        return result_of(self.reply())

    def reply(self) -> Reply:
        """The reply as it came, errors and statistics included; raises what `Client.request` does.

        Raises:
            Cancelled: the stream was given up, here or by somebody else.
        """
        self._check()
        with self._changed:
            while not self._pending.done():
                self._wait()
        try:
            return self._pending.result()
        except CancelledError:
            raise Cancelled("it was given up before the answer was there") from None

    def cancel(self) -> bool:
        """Gives up waiting and has the engine give up the request, unless the answer is there."""
        return self._pending.cancel()

    def _wait(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:  # a callback of somebody's holds up the client's thread
            raise ReplyTimeout(f"no reply within {self._seconds:g} s, and the client's thread does not run")
        self._changed.wait(left)

    # ------------------------------------------------------------------------------------------- for the client itself

    def follow(self, pending: Pending[Reply]) -> None:
        """Says which request it is; once."""
        self._pending = pending
        pending.add_done_callback(self._done)

    def take(self, part: ReplyPart) -> None:
        """A part came; called on the client's thread. Late ones of an earlier attempt are dropped."""
        place = part.attempt, part.number
        try:
            outputs = {name: to_array(tensor).copy() for name, tensor in part.outputs.items()}
        except RankmqError as error:
            log.warning("a part that cannot be read: %s", error.message, extra={"request": part.id})
            return
        with self._changed:
            newest = self._newest.get(part.index, (0, 0))
            if place <= newest and part.index in self._newest:
                return
            self._newest[part.index] = place
            if part.attempt > newest[0]:
                kept = [it for it in self._parts if it.instance != part.index]
                self._parts = deque(kept)
            while len(self._parts) >= _MOST_PARTS:
                self._parts.popleft()
            self._parts.append(Part(part.index, part.attempt, part.number, outputs))
            self._changed.notify_all()

    def _done(self, _: Future[Reply]) -> None:
        with self._changed:
            self._changed.notify_all()


def hand_on(book: Book, delivery: Delivery) -> None:
    """Gives a part to those who wait for its answer and want parts.

    Args:
        book: of the requests under way.
        delivery: the part's.
    """
    asked = book.find_question(delivery.properties.correlation_id)
    try:
        part = codec.decode_part(delivery.body, delivery.properties.content_type or codec.MSGPACK)
    except RankmqError as error:
        log.warning("a part that cannot be read: %s", error.message)
        return
    asked = asked or book.find(part.id)  # or to the same request, asked before
    for call in () if asked is None else tuple(asked.calls):
        if call.part is not None:
            call.part(part)

"""Parts of an answer, told as they are made to producers that asked for them. No I/O of its own.

They are previews. One that cannot be sent at once is dropped, and its number left out; none is sent after the answer.
Whoever tells them may be quicker than the loop, which serves others too: so few are held, and the newest counts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..schemas import codec
from ..schemas.errors import InvalidInput, RankmqError
from ..schemas.messages import ReplyPart
from ..schemas.tensors import Tensor, from_array
from .delivery import Delivery
from .message_limit import MESSAGE_OVERHEAD

if TYPE_CHECKING:
    from .open_request import OpenRequest

__all__ = ["InstanceParts", "PartPorts", "PartSender", "Parts", "outputs_of_part"]

log = logging.getLogger(__name__)

_ATTEMPTS_OF_A_DELIVERY = 1000
"""Whoever had the request before may have started an instance more than once: none has so often."""


class PartPorts(Protocol):
    """How parts reach the world."""

    def part(self, delivery: Delivery, body: bytes, content_type: str) -> None:
        """Publishes a part of the answer to a request, if that can be done at once; called on the loop."""

    def takes_parts(self) -> bool:
        """Whether one that is published now would go out; may be called from any thread, for a guess."""


class Parts:
    """The parts of one request.

    Args:
        open_: the request.
        ports: how they reach the world.
        max_message: largest message that the broker takes, in bytes.
    """

    def __init__(self, open_: OpenRequest, ports: PartPorts, max_message: int) -> None:
        self._open = open_
        self._ports = ports
        self._max_message = max_message

    def instances(self, indexes: Iterable[int]) -> dict[int, InstanceParts]:
        """Those of some instances, by their indexes."""
        before = _ATTEMPTS_OF_A_DELIVERY * (self._open.attempts - 1)
        return {index: InstanceParts(self, index, before) for index in indexes}

    def are_wanted(self) -> bool:
        """Whether one would be sent; may be called from any thread, for a guess."""
        return not self._open.answered and not self._open.ended and self._ports.takes_parts()

    def send(self, index: int, attempt: int, number: int, outputs: Mapping[str, Tensor]) -> None:
        """Tells everybody who waits for the answer, unless it was given; called on the loop."""
        open_ = self._open
        if not self.are_wanted():
            return
        part = ReplyPart(id=open_.id, index=index, attempt=attempt, number=number, outputs=dict(outputs))
        try:
            body = codec.encode_part(part, open_.content_type)
        except RankmqError as error:
            log.info("a part that cannot be sent: %s", error.message, extra={"request": open_.id})
            return
        if len(body) + MESSAGE_OVERHEAD > self._max_message:
            log.info("a part of %d bytes, which the broker does not take", len(body), extra={"request": open_.id})
            return
        routes = {it.route: it for it in (*open_.followers, open_) if it.reply_to}
        for it in routes.values():
            self._ports.part(it.delivery, body, open_.content_type)


class InstanceParts:
    """The parts of one instance, through all its attempts.

    Args:
        parts: the request's.
        index: which instance.
        before: its first attempt comes behind this one.
    """

    def __init__(self, parts: Parts, index: int, before: int) -> None:
        self._parts = parts
        self._index = index
        self._attempt = before

    def begin(self) -> PartSender:
        """The instance is started: what an earlier start of it still has to say is not told any more."""
        self._attempt += 1
        return PartSender(self, self._attempt)

    def are_wanted(self, attempt: int) -> bool:
        """Whether a part of this attempt would be sent; may be called from any thread, for a guess."""
        return attempt == self._attempt and self._parts.are_wanted()

    def send(self, attempt: int, number: int, outputs: Mapping[str, Tensor]) -> None:
        """Sends a part, unless a later attempt has begun; called on the loop."""
        if attempt == self._attempt:
            self._parts.send(self._index, attempt, number, outputs)


class PartSender:
    """Tells what there is so far of one instance's answer, during one attempt.

    Of what threads tell, it holds the one that is on its way to the loop and the newest behind that.

    Args:
        instance: whose parts they are.
        attempt: which one.
    """

    def __init__(self, instance: InstanceParts, attempt: int) -> None:
        self._instance = instance
        self._attempt = attempt
        self._lock = threading.Lock()
        self._number = 0
        self._held: list[tuple[int, Mapping[str, Tensor]]] = []

    def __call__(self, outputs: Mapping[str, Tensor]) -> None:
        """Tells it at once; called on the loop."""
        with self._lock:
            self._held.append((self._next_number(), outputs))
        self._arrive()

    def tell(self, outputs: Mapping[str, Any], on_loop: Callable[[Callable[[], None]], None]) -> None:
        """Tells it soon, or something newer in its place; may be called from any thread, and does not block.

        What was told before something else is given to `on_loop` is sent, if at all, before that runs.

        Args:
            outputs: by name; see `outputs_of_part`. They are looked at only where the part may be sent.
            on_loop: runs something on the loop.

        Raises:
            InvalidInput: see `outputs_of_part`.
        """
        if not self._instance.are_wanted(self._attempt):
            with self._lock:
                self._next_number()
            return
        part = outputs_of_part(outputs)
        with self._lock:
            first = not self._held
            del self._held[1:]
            self._held.append((self._next_number(), part))
        if first:
            on_loop(self._arrive)

    def _next_number(self) -> int:
        number, self._number = self._number, self._number + 1
        return number

    def _arrive(self) -> None:
        with self._lock:
            held, self._held = self._held, []
        for number, outputs in held:
            self._instance.send(self._attempt, number, outputs)


def outputs_of_part(given: Any) -> dict[str, Tensor]:
    """What a servable's Python gave as a part, as it is sent.

    Args:
        given: outputs by name: arrays, numbers, text.

    Raises:
        InvalidInput: no outputs by name, or one that cannot be sent.
    """
    if not isinstance(given, Mapping) or not all(isinstance(name, str) and name for name in given):
        raise InvalidInput(f"a part is a dict of named outputs, not {type(given).__name__}")
    return {name: _tensor(name, value) for name, value in given.items()}


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return from_array(np.array(value))
    except RankmqError as error:
        raise type(error)(f"output {name}: {error.message}") from error

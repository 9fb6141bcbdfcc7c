"""Parts of an answer, told as they are made to producers that asked for them. No I/O of its own.

They are previews. One that cannot be sent at once is dropped, and its number left out; none is sent after the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

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

PartSender: TypeAlias = Callable[[Mapping[str, Tensor]], None]
"""Tells what there is so far of one instance's answer; called on the loop."""

_ATTEMPTS_OF_A_DELIVERY = 1000
"""Whoever had the request before may have started an instance more than once: none has so often."""


class PartPorts(Protocol):
    """How parts reach the world."""

    def part(self, delivery: Delivery, body: bytes, content_type: str) -> None:
        """Publishes a part of the answer to a request, if that can be done at once; called on the loop."""


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

    def send(self, index: int, attempt: int, number: int, outputs: Mapping[str, Tensor]) -> None:
        """Tells everybody who waits for the answer, unless it was given."""
        open_ = self._open
        if open_.answered or open_.ended:
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
        self._number = 0

    def begin(self) -> PartSender:
        """The instance is started: what an earlier start of it still has to say is not told any more."""
        self._attempt += 1
        self._number = 0
        attempt = self._attempt

        def send(outputs: Mapping[str, Tensor]) -> None:
            if attempt == self._attempt:
                number, self._number = self._number, self._number + 1
                self._parts.send(self._index, attempt, number, outputs)

        return send


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

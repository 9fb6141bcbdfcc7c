"""A message as it came from a queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..schemas.errors import RankmqError

__all__ = ["Delivery"]


@dataclass(frozen=True, eq=False, slots=True)
class Delivery:
    """A message and where it came from.

    Attributes:
        body: its bytes.
        tag: what to acknowledge it by, on the channel that it came on.
        exchange: where it had been published.
        routing_key: with which key.
        redelivered: whether somebody had it before.
        properties: its AMQP properties, by their AMQP names.
        fault: why its body could not be had; None where it was.
    """

    body: bytes
    tag: int
    exchange: str
    routing_key: str
    redelivered: bool
    properties: Any
    fault: RankmqError | None = None

    @property
    def headers(self) -> dict[str, Any]:
        """The headers table, never None."""
        headers: dict[str, Any] | None = self.properties.headers
        return headers or {}

"""A dead letter on its way back to the queue that it came from. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .dead_headers import count_of, is_added, text_of
from .dead_letters import REPLAYED_HEADER, route_of
from .deadline import DEADLINE_HEADER
from .delivery import Delivery
from .topology import DEFAULT_LANE, REQUESTS, requests_queue

__all__ = ["Replay", "replay_of"]

_COPIES = frozenset({"CC", "BCC"})
"""Headers that send a message to further queues, where it has been before."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A dead letter on its way back.

    Attributes:
        exchange: where it is published.
        routing_key: with which key.
        queue: the queue that must be there for it.
        properties: its AMQP properties, by name.
    """

    exchange: str
    routing_key: str
    queue: str
    properties: dict[str, Any]


def replay_of(delivery: Delivery, *, reply_to: str | None, keep_deadline: bool, now: float) -> Replay | None:
    """What sends a dead letter again as it was at first; None where it was not published as a request.

    Headers of a letter that nobody checked say where it came from: it goes nowhere but to a requests queue.

    Args:
        delivery: the letter.
        reply_to: where its answer goes; None: where nobody is told.
        keep_deadline: whether its deadline still counts.
        now: seconds since 1970.
    """
    exchange, key = route_of(delivery)
    if exchange == REQUESTS:
        servable, _, lane = key.partition(".")
        queue = requests_queue(servable, lane or DEFAULT_LANE)
    elif not exchange and key.startswith(f"{REQUESTS}."):
        queue = key
    else:
        return None
    headers = {name: it for name, it in delivery.headers.items() if not is_added(name) and name not in _COPIES}
    if not keep_deadline:
        headers.pop(DEADLINE_HEADER, None)
    headers[REPLAYED_HEADER] = (count_of(headers.get(REPLAYED_HEADER)) or 0) + 1
    given = delivery.properties
    kept = ("correlation_id", "content_type", "content_encoding", "priority", "type", "app_id")
    properties = {name: getattr(given, name) for name in kept}  # user_id would have to be the one who publishes
    properties |= {
        "message_id": given.message_id or text_of(delivery.headers.get("rankmq-request")) or None,
        "reply_to": reply_to,
        "delivery_mode": 2,
        "timestamp": int(now),
        "headers": headers,
    }
    return Replay(exchange, key, queue, properties)

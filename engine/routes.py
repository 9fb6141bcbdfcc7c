"""By which way a request came: its lane, or why the broker took it out of its queue. Pure."""

from __future__ import annotations

from ..schemas.errors import InvalidInput
from .dead_headers import deaths_of
from .delivery import Delivery
from .topology import DEFAULT_LANE, LANES, REQUESTS, UNROUTED

__all__ = ["dropped", "lane_of", "likely_lane"]


def lane_of(delivery: Delivery, servable: str) -> str:
    """The lane of a request, by its routing key: `<servable>` or `<servable>.<lane>`; or by the queue it was put into.

    Args:
        delivery: the request.
        servable: which its body names; a key that names another has no say in it.

    Raises:
        InvalidInput: there is no such lane.
    """
    key, name, lane = _parts(delivery)
    if name != servable or not lane:
        return DEFAULT_LANE
    if lane not in LANES:
        raise InvalidInput(f"the routing key {key!r:.80} names no lane: <servable>.<lane>, lane {', '.join(LANES)}")
    return lane


def likely_lane(delivery: Delivery) -> str:
    """The lane of a request of which only its routing key is known yet."""
    _, _, lane = _parts(delivery)
    return lane if lane in LANES else DEFAULT_LANE


def _parts(delivery: Delivery) -> tuple[str, str, str]:
    key = delivery.routing_key
    if not delivery.exchange:
        key = key.removeprefix(f"{REQUESTS}.")
    name, _, lane = key.partition(".")
    return key, name, lane


def dropped(delivery: Delivery) -> str | None:
    """Why the broker itself took a request out of its queue ("expired", "delivery_limit"); None if it did not."""
    if delivery.exchange != UNROUTED:
        return None
    deaths = deaths_of(delivery.headers)
    return str(deaths[0].get("reason") or "no reason given") if deaths else "no reason given"

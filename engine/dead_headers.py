"""The headers of a dead letter: those that say why it is one, and where it was published at first. Pure.

A request that cannot be answered is published to the exchange `rankmq.dead`, as it came, with the headers of
`headers_of`. What the broker itself puts there has its header `x-death` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..schemas.errors import RankmqError
from .amqp_headers import size_of
from .topology import REQUESTS

__all__ = ["count_of", "deaths_of", "headers_of", "is_added", "origin_of", "text_of"]

_LONGEST_TEXT = 2000
_MOST_HEADER_BYTES = 64 * 1024
_OURS = frozenset(
    f"rankmq-{name}"
    for name in (
        *("code", "reason", "request", "attempts", "epoch", "error", "held"),
        *("exchange", "routing-key", "dead-at", "headers-dropped"),
    )
)
_BROKERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
_INNER = "rankmq."


def headers_of(
    error: RankmqError,
    *,
    request: str,
    attempts: int,
    exchange: str,
    routing_key: str,
    headers: Mapping[str, Any],
    now: float,
    epoch: int | None = None,
    last: RankmqError | None = None,
) -> dict[str, Any]:
    """All headers of a dead letter: ours, and those with which the request came, unless they are too large to go on.

    Args:
        error: why it is one.
        request: its id.
        attempts: how often it was delivered.
        exchange: of the delivery.
        routing_key: of the delivery.
        headers: of the delivery.
        now: seconds since 1970.
        epoch: the group's, where it is known.
        last: the error that it met before, where `error` only says that nobody could be told of it.
    """
    exchange, routing_key = origin_of(exchange, routing_key, headers)
    last = last or error
    ours: dict[str, Any] = {
        "rankmq-code": error.code,
        "rankmq-reason": _sayable(error.message),
        "rankmq-request": request,
        "rankmq-attempts": attempts,
        "rankmq-error": _sayable(f"{last.code}: {last.message}"),
        "rankmq-exchange": exchange,
        "rankmq-routing-key": routing_key,
        "rankmq-dead-at": int(now * 1000),
    }
    if epoch is not None:
        ours["rankmq-epoch"] = epoch
    theirs, dropped = _bounded({name: value for name, value in headers.items() if not is_added(name)})
    if dropped:
        ours["rankmq-headers-dropped"] = _sayable(", ".join(map(str, dropped)))
    return {**theirs, **ours}


def origin_of(exchange: str, routing_key: str, headers: Mapping[str, Any]) -> tuple[str, str]:
    """Where the request was published at first: by the broker's own record, if it came by way of a queue of ours."""
    seen = [(exchange, routing_key)]
    for death in deaths_of(headers):
        keys = death.get("routing-keys")
        key = keys[0] if isinstance(keys, list) and keys else ""
        seen.append((text_of(death.get("exchange")), text_of(key)))
    outer = [it for it in seen if it[0] == REQUESTS or not it[0].startswith(_INNER)]
    return outer[0] if outer else seen[0]


def is_added(name: str) -> bool:
    """Whether a header was put there on the way to the dead letters: by us, or by the broker."""
    return name in _OURS or str(name).startswith(_BROKERS)


def _bounded(headers: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Headers that leave room in their frame, which the broker would close the connection over; and those left out."""
    sizes = {name: size_of(name) + size_of(value) for name, value in headers.items()}
    total, dropped = sum(sizes.values()), []
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if total <= _MOST_HEADER_BYTES:
            break
        total -= sizes[name]
        dropped.append(name)
    return {name: value for name, value in headers.items() if name not in dropped}, dropped


def _sayable(text: str) -> str:
    """Text as a header can carry it: UTF-8, and of a length."""
    return text[:_LONGEST_TEXT].encode(errors="replace").decode()


def deaths_of(headers: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The broker's record of when it dropped a message, the last time first."""
    deaths = headers.get("x-death")
    return [it for it in deaths if isinstance(it, Mapping)] if isinstance(deaths, list) else []


def text_of(value: object) -> str:
    """Text out of a property or header; what is of another kind is none, and what is not UTF-8 comes as bytes."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""


def count_of(value: object) -> int | None:
    """A whole number out of a header; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None

"""Dead letters as a person needs to see them, and which of them are meant. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..schemas import codec
from ..schemas.errors import RankmqError
from ..schemas.limits import Limits
from ..schemas.messages import Request
from ..schemas.plain import array_of
from .dead_headers import count_of, deaths_of, headers_of, origin_of, text_of
from .deadline import DEADLINE_HEADER
from .delivery import Delivery
from .topology import REQUESTS

__all__ = ["REPLAYED_HEADER", "DeadLetter", "Wanted", "headers_of", "inputs_of", "route_of"]

REPLAYED_HEADER = "rankmq-replayed"
"""How often a request was sent again from the dead letters."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What a person needs to know of a dead letter; "" or None where it does not say.

    Attributes:
        id: the request's.
        servable: by its body; by its routing key where that cannot be read.
        method: by its body.
        version: the servable's, by its body.
        code: of the error; where the broker dropped it, its word (expired, delivery_limit, maxlen).
        reason: in words.
        error: the last error that it met, with its code.
        attempts: how often it was delivered.
        epoch: of the group.
        died_at: seconds since 1970.
        exchange: where it was published at first.
        routing_key: with which key.
        reply_to: the queue for the answer.
        correlation_id: as it came.
        content_type: as it came.
        deadline: seconds since 1970.
        replayed: how often it was sent again.
        size: of the body, in bytes.
        unreadable: why the body cannot be decoded; "" if it can.
    """

    id: str
    servable: str
    method: str
    version: int
    code: str
    reason: str
    error: str
    attempts: int | None
    epoch: int | None
    died_at: float | None
    exchange: str
    routing_key: str
    reply_to: str
    correlation_id: str
    content_type: str
    deadline: float | None
    replayed: int
    size: int
    unreadable: str

    @classmethod
    def read(cls, delivery: Delivery, limits: Limits | None = None) -> DeadLetter:
        """What a message in the dead-letter queue says, whatever is in it.

        Args:
            delivery: the message.
            limits: on what is decoded of its body.
        """
        headers, properties = delivery.headers, delivery.properties
        request, unreadable = _decoded(delivery, limits)
        exchange, key = route_of(delivery)
        servable = request.servable if request else key.partition(".")[0] if exchange == REQUESTS else ""
        return cls(
            id=text_of(properties.message_id) or text_of(headers.get("rankmq-request")),
            servable=servable,
            method=request.method if request else "",
            version=request.version if request else 0,
            **_why(headers),
            exchange=exchange,
            routing_key=key,
            reply_to=text_of(properties.reply_to),
            correlation_id=text_of(properties.correlation_id),
            content_type=text_of(properties.content_type),
            deadline=_moment(headers.get(DEADLINE_HEADER)),
            replayed=count_of(headers.get(REPLAYED_HEADER)) or 0,
            size=len(delivery.body),
            unreadable=unreadable,
        )


def inputs_of(delivery: Delivery, limits: Limits | None = None) -> list[dict[str, Any]]:
    """The inputs of a dead letter, per instance and by name: an array, or the error that says why it is none.

    Raises:
        RankmqError: the body cannot be decoded.
    """
    limits = limits or Limits()
    request = codec.decode_request(delivery.body, _content_type(delivery), limits)
    return [{name: _input(value, limits) for name, value in row.items()} for row in request.instances]


def _input(value: Any, limits: Limits) -> Any:
    try:
        return array_of(value, limits)
    except RankmqError as error:
        return error


def _decoded(delivery: Delivery, limits: Limits | None) -> tuple[Request | None, str]:
    try:
        return codec.decode_request(delivery.body, _content_type(delivery), limits), ""
    except RankmqError as error:
        return None, f"{error.code}: {error.message}"


def _content_type(delivery: Delivery) -> str:
    return codec.content_type_of(text_of(delivery.properties.content_type), delivery.body)


def _why(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Why it is a dead letter: by the broker's word, which nobody else can have the last of, or by ours."""
    deaths = deaths_of(headers)
    if deaths:
        code, queue = text_of(deaths[0].get("reason")), text_of(deaths[0].get("queue"))
        at = deaths[0].get("time")
        return {
            "code": code,
            "reason": f"the broker dropped it from the queue {queue}: {code}",
            "error": "",
            "attempts": None,
            "epoch": None,
            "died_at": at.replace(tzinfo=at.tzinfo or UTC).timestamp() if isinstance(at, datetime) else None,
        }
    return {
        "code": text_of(headers.get("rankmq-code")),
        "reason": text_of(headers.get("rankmq-reason")),
        "error": text_of(headers.get("rankmq-error")),
        "attempts": count_of(headers.get("rankmq-attempts")),
        "epoch": count_of(headers.get("rankmq-epoch")),
        "died_at": _moment(headers.get("rankmq-dead-at")),
    }


def route_of(delivery: Delivery) -> tuple[str, str]:
    """The exchange and routing key with which a dead letter was published at first."""
    headers = delivery.headers
    if not deaths_of(headers) and "rankmq-exchange" in headers:
        return text_of(headers["rankmq-exchange"]), text_of(headers.get("rankmq-routing-key"))
    return origin_of(delivery.exchange, delivery.routing_key, headers)


def _moment(value: object) -> float | None:
    """Seconds since 1970 out of milliseconds, if they are of a year that calendars know."""
    count = count_of(value)
    return count / 1000 if count is not None and 0 <= count < 253_402_300_800_000 else None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters are meant: all that fit everything that is said.

    Attributes:
        ids: one of these, if there are any.
        servable: this one.
        code: this error code.
        word: in the reason or the last error, in either case.
        older_than: seconds since its death, at least; one of unknown age is not meant.
        newer_than: seconds since its death, at most; likewise.
    """

    ids: frozenset[str] = frozenset()
    servable: str = ""
    code: str = ""
    word: str = ""
    older_than: float | None = None
    newer_than: float | None = None

    def takes(self, letter: DeadLetter, now: float) -> bool:
        """Whether a letter is meant.

        Args:
            letter: as read.
            now: seconds since 1970.
        """
        age = None if letter.died_at is None else now - letter.died_at
        return (
            (not self.ids or letter.id in self.ids)
            and self.servable in ("", letter.servable)
            and self.code in ("", letter.code)
            and self.word.casefold() in f"{letter.reason} {letter.error}".casefold()
            and (self.older_than is None or (age is not None and age >= self.older_than))
            and (self.newer_than is None or (age is not None and age <= self.newer_than))
        )

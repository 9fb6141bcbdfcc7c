"""A request that was taken from its queue and has no terminal outcome yet."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ..schemas import codec
from ..schemas.errors import (
    AttemptsExhausted,
    DeadlineExceeded,
    InternalError,
    RankmqError,
    RequestIdReused,
    Undecodable,
)
from ..schemas.limits import Limits
from ..schemas.messages import Request, Stats
from .answers import check_of
from .dead_headers import deaths_of, text_of
from .deadline import seconds_left
from .delivery import Delivery
from .life import Life
from .references import names_in, speaks, unnamed
from .routes import dropped
from .run_ports import RunContext
from .ticket import RowResult
from .topology import held_exchange

__all__ = ["HELD_HEADER", "OpenRequest", "contained"]

log = logging.getLogger(__name__)

HELD_HEADER = "rankmq-held"
"""On the copy of a request that runs for long: which copy it is."""

_KEPT = held_exchange("")
_T = TypeVar("_T")


@dataclass(eq=False, slots=True)
class OpenRequest:
    """A request between its delivery and its outcome.

    Attributes:
        delivery: what is acknowledged in the end.
        id: for logs and the reply.
        key: the message id, by which the request is known again; "" where it has none.
        check: of the body, to tell another request under the same id.
        began: when it was taken, on the monotonic clock.
        delivered: when its present delivery was; see `custody`.
        content_type: of the reply.
        life: whether it is still wanted.
        expires: until when its sender wants it, on the monotonic clock; None for any time.
        run_seconds: how long it may take once it has begun; None for any time.
        started: when it began, on the monotonic clock; None before that.
        start: begins its work, once it may.
        context: what its runs share, once it was understood.
        results: per instance.
        left: instances without a result.
        result_bytes: what the results that are there take of a reply, at least.
        weighed: each result is counted there as it comes, before all are there.
        answered: its one outcome is on its way; whatever comes later is dropped.
        ended: it has its outcome, or the broker has it back.
        error: what it failed with as a whole.
        followers: the same request asked again from elsewhere meanwhile; it shares the outcome.
        follows: the one whose outcome it shares; None where it has its own.
        blobs: the names of those that its inputs are in; None before it was understood.
    """

    delivery: Delivery
    id: str
    key: str
    check: int
    began: float
    delivered: float
    content_type: str = codec.MSGPACK
    life: Life = field(default_factory=Life)
    expires: float | None = None
    run_seconds: float | None = None
    started: float | None = None
    start: Callable[[], None] | None = None
    context: RunContext | None = None
    results: list[RowResult | None] = field(default_factory=list)
    output_names: tuple[str, ...] = ()
    left: int = 0
    result_bytes: int = 0
    weighed: bool = False
    answered: bool = False
    ended: bool = False
    error: RankmqError | None = None
    followers: list[OpenRequest] = field(default_factory=list)
    follows: OpenRequest | None = None
    blobs: tuple[str, ...] | None = None

    @classmethod
    def of(cls, delivery: Delivery, now: float) -> OpenRequest:
        """A request that was delivered just now.

        Args:
            delivery: its delivery.
            now: on the monotonic clock.
        """
        given = delivery.properties
        key = given.message_id if isinstance(given.message_id, str) else ""
        name = text_of(given.message_id) or text_of(given.correlation_id) or uuid.uuid4().hex
        check = check_of(unnamed(delivery.body) if speaks(delivery.headers) else delivery.body) if key else 0
        return cls(delivery, name, key, check, now, now)

    def read_properties(self) -> RankmqError | None:
        """Sets the format in which it is answered.

        Returns:
            What is wrong with its properties, or why it has no body. AMQP says that its short strings are UTF-8, and
            brokers pass on others as well: those arrive as bytes.
        """
        given = self.delivery.properties
        for name in ("content_type", "message_id", "correlation_id", "reply_to"):
            if isinstance(getattr(given, name), bytes):
                return Undecodable(f"the property {name} is not UTF-8")
        try:
            self.content_type = codec.content_type_of(given.content_type, self.delivery.body)
        except Undecodable as error:
            return error
        if given.content_encoding not in (None, "", "identity", "utf-8", "UTF-8"):
            return Undecodable(f"the content encoding {given.content_encoding!r:.40}: bodies are sent as they are")
        return self.delivery.fault

    def check_same(self, check: int) -> None:
        """Whether it is the same request as one that was taken before under its id.

        Raises:
            RequestIdReused: it is another.
        """
        if self.check != check and self.delivery.fault is None:
            self.key = ""  # the id stays the other's
            raise RequestIdReused(f"the message id {self.id!r:.80} was used before, for other inputs")

    def check_deliveries(self, most: int) -> None:
        """Whether it may be delivered as often as it was.

        Raises:
            AttemptsExhausted: it was delivered more often, or the broker gave it up.
        """
        reason = dropped(self.delivery)
        if reason not in (None, "expired"):
            raise AttemptsExhausted(f"the broker gave it up: {reason}")
        if reason is None and self.attempts > most:
            raise AttemptsExhausted(f"delivered {self.attempts} times without an outcome; {most} are allowed")

    def read_deadline(self, now: float, wall: float) -> None:
        """Sets until when its sender wants it.

        Args:
            now: on the monotonic clock.
            wall: seconds since 1970.

        Raises:
            DeadlineExceeded: that is over.
            InvalidInput: it is no time.
        """
        if dropped(self.delivery) == "expired":
            raise DeadlineExceeded("it waited in its queue for longer than it was given")
        left = seconds_left(self.delivery.properties, self.delivery.headers, wall)
        if left is not None:
            if left <= 0:
                raise DeadlineExceeded(f"its deadline passed {abs(left):.3f} s before it was taken")
            self.expires = now + left

    def decoded(self, limits: Limits) -> Request:
        """What its body says.

        Raises:
            RankmqError: why that is not known.
        """
        request = contained(self, lambda: codec.decode_request(self.delivery.body, self.content_type, limits))
        if isinstance(request, RankmqError):
            raise request
        return request

    @property
    def reply_to(self) -> str:
        """The queue for the answer; "" where nobody can be told."""
        name = self.delivery.properties.reply_to
        return name if isinstance(name, str) else ""

    @property
    def route(self) -> tuple[str, str]:
        """Where its answer goes, and what it answers: the same when a publish is repeated, another when asked again."""
        properties = self.delivery.properties
        correlation = properties.correlation_id or properties.message_id
        return self.reply_to, correlation if isinstance(correlation, str) else ""

    @property
    def reads_blobs(self) -> bool:
        """Whether its producer reads the blob store: it says so, or has written to it."""
        return bool(self.blobs) or speaks(self.delivery.headers)

    def names_of_blobs(self) -> tuple[str, ...]:
        """The names of the blobs that it refers to; of one that was not understood, whatever looks like one."""
        return names_in(self.delivery.body) if self.blobs is None else self.blobs

    @property
    def attempts(self) -> int:
        """How often it was delivered, this time included, and came back from an orchestrator that had kept it."""
        headers = self.delivery.headers
        count = headers.get("x-delivery-count", 0)
        kept = (it.get("count") for it in deaths_of(headers) if str(it.get("queue")).startswith(_KEPT))
        return sum(it for it in (1, count, *kept) if isinstance(it, int))

    @property
    def waits_for_slots(self) -> bool:
        """Whether it has not come further than to wait for slots on the ranks."""
        tally = self.context.tally if self.context is not None else None
        return tally is not None and not tally.calls and 0 < self.left == tally.for_slots

    def ends_at(self, now: float) -> float | None:
        """Until when it is worth serving, on the monotonic clock, as far as is known now; None for any time.

        What it may take once it has begun counts anew from when it was given its first slot: to wait for that is to
        wait behind others, as in the queue.
        """
        found = self.expires
        if self.run_seconds is not None and self.started is not None:
            since, tally = self.started, self.context.tally if self.context is not None else None
            if self.waits_for_slots:
                since = now
            elif tally is not None and tally.slot_at is not None:
                since = tally.slot_at
            run = since + self.run_seconds
            found = run if found is None else min(found, run)
        return found

    def stats(self, now: float) -> Stats:
        """Where its time went until now."""
        tally = self.context.tally if self.context is not None else None
        return Stats(
            served_ms=round((now - self.began) * 1e3, 3),
            ranks_ms=round(tally.seconds * 1e3, 3) if tally else 0.0,
            steps=tally.calls if tally else 0,
        )


def contained(open_: OpenRequest, work: Callable[[], _T]) -> _T | RankmqError:
    """Does something for one request alone; what it raises is an error of that request, and ends nothing else.

    Only for what leaves nothing half done that others rely on: elsewhere the session is to end.

    Args:
        open_: the request.
        work: raises what is wrong with the request, or anything at all, as where memory is short.

    Returns:
        What it gave, or the error that it met; `InternalError` for one that nobody expects.
    """
    try:
        return work()
    except RankmqError as error:
        return error
    except Exception as error:
        log.exception("a defect: the request fails", extra={"request": open_.id})
        return InternalError(f"the engine met {type(error).__name__} over this request: its log says more")

"""The terms of a call: under which id, in which lane, for how long. Pure."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

from ..schemas.errors import DeadlineExceeded, InvalidInput, ReplyTimeout
from .topology import LANES

__all__ = ["Terms", "check_id", "check_lane", "check_span", "expiration"]

_MOST_ID_BYTES = 255
_MOST_SECONDS = 1e9
_MOST_EXPIRATION_MS = 2**32 - 1
"""RabbitMQ refuses more, and closes the channel."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a caller said of one call, checked.

    Attributes:
        id: the request's id.
        lane: one of `topology.LANES`.
        timeout: seconds to wait for the reply.
        deadline: seconds since 1970 until when the request is worth serving; None for as long as somebody waits.
    """

    id: str
    lane: str
    timeout: float
    deadline: float | None

    @classmethod
    def of(cls, *, request_id: str | None, lane: str, timeout: float, deadline: float | None) -> Terms:
        """The terms of a call that begins now.

        Args:
            request_id: made up if None.
            lane: its lane.
            timeout: seconds to wait.
            deadline: seconds within which it is worth serving; None for the timeout.

        Raises:
            InvalidInput: an id or a lane that cannot be, or a time that is no number of seconds.
            DeadlineExceeded: a deadline that is over already.
            ReplyTimeout: no time to wait at all.
        """
        request_id = uuid.uuid4().hex if request_id is None else check_id(request_id)
        _check_seconds("timeout", timeout)
        if deadline is not None:
            _check_seconds("deadline", deadline)
            if deadline <= 0:
                raise DeadlineExceeded(f"a deadline of {deadline:g} s is over: the request was not sent")
        if timeout <= 0:
            raise ReplyTimeout(f"no reply within {timeout:g} s: the request was not sent")
        return cls(request_id, check_lane(lane), timeout, None if deadline is None else time.time() + deadline)

    def left(self) -> float:
        """Seconds for which a call that begins now may wait before its request is sent.

        Raises:
            DeadlineExceeded: the deadline has passed.
        """
        if self.deadline is None:
            return self.timeout
        left = self.deadline - time.time()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the request could be sent")
        return min(self.timeout, left)

    def expires(self) -> int:
        """The request's deadline, if waiting for its reply begins now: in milliseconds since 1970."""
        return round(1000 * (time.time() + self.timeout if self.deadline is None else self.deadline))


def check_lane(lane: str) -> str:
    """A lane that exists.

    Raises:
        InvalidInput: it does not.
    """
    if lane not in LANES:
        raise InvalidInput(f"there is no lane {lane!r:.60}: the lanes are {', '.join(LANES)}")
    return lane


def check_id(request_id: str) -> str:
    """An id that AMQP can carry.

    Raises:
        InvalidInput: it cannot.
    """
    try:
        size = len(request_id.encode())
    except (AttributeError, UnicodeError):
        raise InvalidInput(f"a request's id is text: {request_id!r:.60}") from None
    if not 1 <= size <= _MOST_ID_BYTES:
        raise InvalidInput(f"a request's id has 1 to {_MOST_ID_BYTES} bytes of UTF-8: this one has {size}")
    return request_id


def expiration(expires: int) -> str | None:
    """The property `expiration` of a request that is published now: milliseconds from now, at least 1.

    Args:
        expires: its deadline, in milliseconds since 1970.

    Returns:
        None where it is more than RabbitMQ takes.
    """
    left = max(1, expires - round(time.time() * 1000))
    return str(left) if left <= _MOST_EXPIRATION_MS else None


def check_span(what: str, given: float | None) -> None:
    """A span of time that can be; None is none.

    Raises:
        InvalidInput: it is no number of seconds above 0.
    """
    if given is not None:
        _check_seconds(what, given)
        if given <= 0:
            raise InvalidInput(f"{what} is a number of seconds above 0: {given!r:.60}")


def _check_seconds(what: str, given: float) -> None:
    if isinstance(given, bool) or not isinstance(given, int | float) or not -_MOST_SECONDS <= given <= _MOST_SECONDS:
        raise InvalidInput(f"{what} is a number of seconds, {_MOST_SECONDS:g} at most: {given!r:.60}")

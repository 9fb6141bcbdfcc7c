"""Which requests were answered, and how: what makes a delivery that comes twice look as if it came once. Pure.

Bounded: by how many ids, by the bytes of the answers, by their age. The oldest go first.
"""

from __future__ import annotations

import sys
import zlib
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from ..schemas.messages import Answered

__all__ = ["MOST_BODY_BYTES", "Answers", "Known", "check_of"]

MOST_BODY_BYTES = 65_536
"""Larger answers are remembered without their bytes: asked for again from elsewhere, they are made again."""

_MOST_IDS = 50_000
_MOST_ROUTES = 16


def check_of(body: bytes) -> int:
    """What tells the inputs of one request from those of another under the same id; no protection against malice."""
    return zlib.crc32(body) | len(body) << 32


@dataclass(slots=True)
class Known:
    """What is known of a request that was answered.

    Attributes:
        check: of its body.
        content_type: of its answer.
        body: its answer; None where it was too large to keep, or is too old.
        failed: serving it failed for a reason that may pass: asked for again, it is tried again.
        routes: to which queues and questions the answer went, the latest last; False where the broker may have lost it
            since.
        at: when, in seconds since 1970.
    """

    check: int
    content_type: str
    body: bytes | None
    failed: bool
    at: float
    routes: dict[tuple[str, str], bool] = field(default_factory=dict)


class Answers:
    """The requests that were answered lately.

    Args:
        seconds: how long one is remembered at most.
        most_bytes: of answers.
        most_ids: how many.
    """

    def __init__(self, seconds: float, most_bytes: int, most_ids: int = _MOST_IDS) -> None:
        self._seconds = seconds
        self._most_bytes = most_bytes
        self._most_ids = most_ids
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._bodies: deque[Known] = deque()  # in their order, with some that have gone since
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    @property
    def most_ids(self) -> int:
        """How many requests are remembered at most."""
        return self._most_ids

    @property
    def body_bytes(self) -> int:
        """How many bytes of answers are kept."""
        return self._bytes

    def find(self, key: str, now: float) -> Known | None:
        """What is known of a request.

        Args:
            key: its message id.
            now: seconds since 1970.
        """
        known = self._known.get(key)
        return None if known is None or known.at + self._seconds < now else known

    def remember(self, answered: Answered, now: float, *, routed: bool = True) -> None:
        """A request was answered; without `reply_to`: its answer is there, and reached nobody.

        Args:
            answered: how.
            now: when, in seconds since 1970.
            routed: whether the broker has certainly put the answer into its queue.
        """
        key = answered.id
        before = self._known.pop(key, None)
        if before is not None:
            self._drop_body(before)
        known = Known(answered.check, sys.intern(answered.content_type), answered.body, answered.failed, now)
        if answered.reply_to:
            if before is not None and before.check == answered.check:
                known.routes = before.routes
            correlation_id = answered.correlation_id
            # Of a hundred thousand equal strings one is enough.
            route = sys.intern(answered.reply_to), key if correlation_id == key else correlation_id
            known.routes.pop(route, None)
            known.routes[route] = routed
            while len(known.routes) > _MOST_ROUTES:
                del known.routes[next(iter(known.routes))]
        self._known[key] = known
        if answered.body is not None:
            self._bodies.append(known)
            self._bytes += len(answered.body)
        self._trim(now)

    def learn(self, answered: Answered, at: float, *, routed: bool) -> None:
        """The same from the log, where it may be older than what is known already.

        Args:
            answered: how.
            at: when, in seconds since 1970.
            routed: see `remember`.
        """
        known = self._known.get(answered.id)
        route = answered.reply_to, answered.correlation_id
        if known is None or known.check != answered.check or route not in known.routes:
            if known is None or known.at <= at:
                self.remember(answered, at, routed=routed)
            elif answered.reply_to and known.check == answered.check:
                known.routes[route] = routed
            return
        arrived = routed or known.routes[route]  # the one may have seen what the other has not
        if known.failed and not answered.failed and known.at <= at:  # it was tried again elsewhere
            self.remember(answered, at, routed=arrived)
        known = self._known[answered.id]
        known.routes[route] = arrived

    def doubt(self, key: str, route: tuple[str, str]) -> None:
        """The connection went before the broker said that it has the answer."""
        known = self._known.get(key)
        if known is not None and route in known.routes:
            known.routes[route] = False

    def _trim(self, now: float) -> None:
        while self._bytes > self._most_bytes or len(self._bodies) > 2 * self._most_ids:
            self._drop_body(self._bodies.popleft())
        while self._known:
            key, oldest = next(iter(self._known.items()))
            if len(self._known) <= self._most_ids and oldest.at + self._seconds >= now:
                break
            self._drop_body(oldest)
            del self._known[key]
        while self._bodies and self._bodies[0].body is None:
            self._bodies.popleft()

    def _drop_body(self, known: Known) -> None:
        if known.body is not None:
            self._bytes -= len(known.body)
            known.body = None

"""The book of a client's requests that are under way, and of the calls that wait for each. No I/O of its own.

Several threads write in it. Once it is closed it takes nothing, and every call that it took has been handed out to be
settled: its entries and the word that it is closed share a lock.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..schemas.errors import RankmqError, RequestIdReused
from ..schemas.messages import Reply, ReplyPart
from .deadline import DEADLINE_HEADER
from .references import BLOBS_HEADER, unnamed

__all__ = ["Asked", "Book", "Call", "Pending", "anew"]

_T = TypeVar("_T")


class Pending(Future[_T]):
    """The future of a request that is under way.

    `cancel()` gives up waiting, and tells the engine, which gives up the request if it waits or at its next step. With
    other calls under way for the same id, it gives up this wait alone.

    Attributes:
        request_id: the request's id, by which anybody can cancel it.
    """

    def __init__(self, request_id: str) -> None:
        super().__init__()
        self.request_id = request_id


@dataclass(eq=False, slots=True)
class Call:
    """One caller's wait for a reply.

    Attributes:
        future: for what `read` makes of the reply.
        read: called on the line's thread.
        until: when to give up, on the monotonic clock.
        seconds: the time that it was given, for the error.
        part: called on the line's thread with each part of the answer; None: parts are not wanted.
        timer: gives up.
        held: its reply is there, and is being read: it cannot be cancelled any more.
    """

    future: Future[Any]
    read: Callable[[Reply], Any]
    until: float
    seconds: float
    part: Callable[[ReplyPart], None] | None = None
    timer: asyncio.TimerHandle | None = None
    held: bool = False

    def hold(self) -> None:
        """Neither time nor a cancel ends it any more; `settle` is called soon, on whatever thread."""
        if self.timer is not None:
            self.timer.cancel()
        self.held = self.future.set_running_or_notify_cancel()

    def settle(self, outcome: Reply | RankmqError) -> None:
        """Gives the future its result or error, unless it was cancelled."""
        if self.timer is not None:
            self.timer.cancel()
        if not self.held and not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, RankmqError):
            self.future.set_exception(outcome)
            return
        try:
            result = self.read(outcome)
        except BaseException as error:  # noqa: BLE001  # whoever waits gets it, and the loop goes on
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


@dataclass(eq=False, slots=True)
class Asked:
    """A request without a reply; kept whole, to be sent again when the connection was lost.

    Attributes:
        id: its message id.
        key: its routing key.
        body: the message.
        expires: until when it is worth serving, in milliseconds since 1970.
        question: its correlation id, new each time that something is asked: the engine tells by it who asks once more
            under an id that was answered before from who publishes a second time.
        calls: who waits for it: one, unless a caller asked twice under one id.
        begun: the line knows of it.
        sent: it was published at least once.
        refusals: how often the broker refused it.
        refused: the last thing that the broker said of it was no.
        blobs: its producer reads and writes the blob store.
        over: it is certain that nobody reads it any more.
    """

    id: str
    key: str
    body: bytes
    expires: int
    question: str = field(default_factory=lambda: uuid.uuid4().hex)
    calls: list[Call] = field(default_factory=list)
    begun: bool = False
    sent: bool = False
    refusals: int = 0
    refused: bool = False
    blobs: bool = False
    over: bool = False

    @property
    def headers(self) -> dict[str, Any]:
        """Those of its message."""
        headers: dict[str, Any] = {DEADLINE_HEADER: self.expires}
        return {**headers, BLOBS_HEADER: True} if self.blobs else headers

    def is_same(self, other: Asked) -> bool:
        """Whether it asks the same; the same inputs may have been written to the blob store twice."""
        if self.blobs and other.blobs:
            return unnamed(self.body) == unnamed(other.body)
        return self.body == other.body

    @property
    def full(self) -> str:
        """What is to be said when the broker has refused it too often."""
        tries = self.refusals + 1
        return f"the broker refused the request at each of {tries} tries: its queue is at its limit, or not available"

    def hold(self) -> None:
        """Its reply is there, and is read on another thread; calls that were cancelled are gone."""
        for call in self.calls:
            call.hold()
        self.calls = [call for call in self.calls if call.held]

    def settle(self, outcome: Reply | RankmqError) -> None:
        """Settles all of its calls."""
        for call in self.calls:
            call.settle(anew(outcome) if isinstance(outcome, RankmqError) else outcome)


class Book:
    """Requests by their ids."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._asked: dict[str, Asked] = {}
        self._by_question: dict[str, Asked] = {}
        self.over: RankmqError | None = None

    def __len__(self) -> int:
        """How many requests are under way."""
        return len(self._asked)

    def enter(self, asked: Asked, call: Call, then: Callable[[Asked], object]) -> None:
        """Takes down a call, under the request of the same id where one is under way.

        Args:
            asked: the request.
            call: who waits for it.
            then: called with the request that is in the book; the book is not closed meanwhile.

        Raises:
            RequestIdReused: another request is under way under the id.
            RankmqError: the book is closed, for this reason.
        """
        with self._lock:
            if self.over is not None:
                raise anew(self.over)
            known = self._asked.get(asked.id, asked)
            if not known.is_same(asked):
                raise RequestIdReused(
                    f"request {asked.id} is under way with other inputs: an id stands for one request"
                )
            known.calls.append(call)
            self._asked[known.id] = self._by_question[known.question] = known
            then(known)

    def unless_over(self, work: Callable[[], object]) -> bool:
        """Does something, unless the book is closed, and not before it is done.

        Returns:
            Whether it was done.
        """
        with self._lock:
            if self.over is not None:
                return False
            work()
            return True

    def find(self, request_id: str) -> Asked | None:
        """The request of an id."""
        with self._lock:
            return self._asked.get(request_id)

    def find_question(self, question: object) -> Asked | None:
        """The request of a correlation id, whatever came in its place."""
        with self._lock:
            return self._by_question.get(question) if isinstance(question, str) else None

    def begun(self) -> list[Asked]:
        """The requests that the line knows of; those that another thread has only just put down come by themselves."""
        with self._lock:
            return [asked for asked in self._asked.values() if asked.begun]

    def take(self, request_id: str) -> Asked | None:
        """Strikes out a request, and gives it; no call is added to it any more."""
        with self._lock:
            asked = self._asked.pop(request_id, None)
            if asked is not None:
                del self._by_question[asked.question]
            return asked

    def leave(self, asked: Asked, call: Call) -> bool:
        """Strikes out a call, and with the last one its request.

        Returns:
            Whether it was the last one.
        """
        with self._lock:
            if self._asked.get(asked.id) is not asked or call not in asked.calls:
                return False
            asked.calls.remove(call)
            if not asked.calls:
                del self._asked[asked.id], self._by_question[asked.question]
            return not asked.calls

    def holds(self, asked: Asked, call: Call) -> bool:
        """Whether the call waits still."""
        with self._lock:
            return self._asked.get(asked.id) is asked and call in asked.calls

    def close(self, reason: RankmqError) -> list[Asked]:
        """Closes it; gives what was under way."""
        with self._lock:
            self.over = reason
            left = list(self._asked.values())
            self._asked, self._by_question = {}, {}
            return left


def anew(error: RankmqError) -> RankmqError:
    """The same error anew: several threads raise it, and each adds a traceback."""
    return type(error)(error.message)

"""Threads of a servable's Python that wait for the engine, each for one answer, and not for ever."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..schemas.errors import GroupUnavailable, RankmqError
from .carriers import Seat, current_seat, waiting
from .ticket import RowResult

__all__ = ["Wait", "Waits"]

_LONGEST_SECONDS = 3600.0
"""A last resort: overdue steps, lost groups and the end of the session end a wait long before."""


class Wait:
    """One wait; whoever waits does what it is asked to meanwhile. It holds the thread, unless that carries others."""

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[Callable[[], None] | RowResult] = queue.SimpleQueue()
        self._seat = current_seat()

    def end(self, result: RowResult) -> None:
        """Ends the wait with a result; may be called from any thread."""
        self._put(result)

    def help_out(self, work: Callable[[], None]) -> None:
        """Has the thread that waits run something; may be called from any thread."""
        self._put(work)

    def _put(self, news: Callable[[], None] | RowResult) -> None:
        self._news.put(news)
        if self._seat is not None:
            self._seat.wake()

    def result(self) -> RowResult:
        """Waits, on the thread that made it."""
        while True:
            try:
                news = self._next(self._seat)
            except queue.Empty:
                return GroupUnavailable(f"no answer within {_LONGEST_SECONDS:g} s")
            if isinstance(news, RankmqError | tuple):
                return news
            news()

    def _next(self, seat: Seat | None) -> Callable[[], None] | RowResult:
        if seat is None:
            with waiting():
                return self._news.get(timeout=_LONGEST_SECONDS)
        while True:
            try:
                return self._news.get_nowait()
            except queue.Empty:
                if not seat.leave(_LONGEST_SECONDS):
                    raise


class Waits:
    """All the waits of one engine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[Wait] = set()
        self._closed: RankmqError | None = None

    @property
    def closed(self) -> RankmqError | None:
        """Why nobody may wait any more; None while they may."""
        return self._closed

    def __len__(self) -> int:
        """How many threads wait."""
        return len(self._open)

    @contextmanager
    def one(self) -> Iterator[Wait]:
        """A wait.

        Raises:
            RankmqError: they were ended for good.
        """
        wait = Wait()
        with self._lock:
            if self._closed is not None:
                raise self._closed.kept()
            self._open.add(wait)
        try:
            yield wait
        finally:
            with self._lock:
                self._open.discard(wait)

    def close(self, error: RankmqError) -> None:
        """Ends every wait, and every one from now on, with this error."""
        with self._lock:
            self._closed = self._closed or error
            waiting = list(self._open)
        for wait in waiting:
            wait.end(error)

"""Threads that carry pipelines, many each: a pipeline is plain Python, and while it waits others go on in its place.

Each runs in a greenlet, a stack of its own within the thread, which is left at a call into the engine and entered
again with its answer. What is no call into the engine, as a sleep or a computation, holds up whoever shares the thread.
So each pipeline has threads of its own until it was seen to be quick a few times, and once it was found to be slow.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from greenlet import getcurrent, greenlet

__all__ = ["Pipelines", "Seat", "current_seat", "report_defect", "waiting"]

log = logging.getLogger(__name__)

_CARRIERS = 4
_LONG_SECONDS = 0.1
"""What a pipeline may take at a time without a call into the engine, before it gets threads of its own."""

_PROOFS = 3
"""How often it must have been quick before it shares a thread."""

_LOOK_SECONDS = 30.0
_here = threading.local()


class _Ride(greenlet):
    """A pipeline on its way."""

    kind: Hashable = None


class Seat:
    """A place to which one wait of a pipeline comes back. All but `wake` are for the thread that carries it."""

    def __init__(self, carrier: _Carrier, ride: _Ride) -> None:
        self._carrier = carrier
        self._ride = ride
        self._away = False
        self.until = 0.0

    def leave(self, seconds: float) -> bool:
        """Lets others go on until `wake` is called; it may return without that.

        Args:
            seconds: how long at most.

        Returns:
            Whether it is in time.
        """
        self._away = True
        self.until = self.until or time.monotonic() + seconds
        self._carrier.left(self)
        return time.monotonic() < self.until

    def wake(self) -> None:
        """Has `leave` return; may be called from any thread, and more often than is needed."""
        self._carrier.ask(self.come_back)

    def come_back(self) -> None:
        """Goes on where it was left, if it was."""
        if self._away:
            self._away = False
            self._carrier.entered(self, self._ride)


class _Stretch:
    """How long what has a thread for itself takes at a time."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._since = time.monotonic()

    def ends(self) -> None:
        """It calls into the engine, or is done."""
        self.longest = max(self.longest, time.monotonic() - self._since)

    def begins(self) -> None:
        """It has its answer."""
        self._since = time.monotonic()


@contextmanager
def waiting() -> Iterator[None]:
    """Within the block a thread waits for the engine."""
    stretch: _Stretch | None = getattr(_here, "stretch", None)
    if stretch is None:
        yield
        return
    stretch.ends()
    try:
        yield
    finally:
        stretch.begins()


def current_seat() -> Seat | None:
    """A seat for what runs here; None where it has its thread for itself."""
    carrier: _Carrier | None = getattr(_here, "carrier", None)
    ride = getcurrent()
    return Seat(carrier, ride) if carrier is not None and isinstance(ride, _Ride) else None


class _Carrier:
    """One thread, and those that it carries."""

    def __init__(self, name: str, slow: Callable[[Hashable, float], None]) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._slow = slow
        self._hub: greenlet | None = None
        self._away: set[Seat] = set()
        self.rides = 0
        self.busy_since = 0.0
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def ask(self, work: Callable[[], None] | None) -> None:
        """Has the thread do something; None: end."""
        self._inbox.put(work)

    def start(self, kind: Hashable, work: Callable[[], None]) -> None:
        """Has the thread carry one more."""
        self.rides += 1
        ride = _Ride(work)
        ride.kind = kind
        self.ask(lambda: self._enter(ride))

    def is_stuck(self, now: float) -> bool:
        """Whether what it runs has not let others go on for long."""
        since = self.busy_since
        return since > 0 and now - since > _LONG_SECONDS

    def left(self, seat: Seat) -> None:
        """What runs leaves a seat: the thread goes on with others."""
        self._away.add(seat)
        assert self._hub is not None  # it runs within it
        self._hub.switch()

    def entered(self, seat: Seat, ride: _Ride) -> None:
        """What had left a seat goes on."""
        self._away.discard(seat)
        self._enter(ride)

    def _run(self) -> None:
        _here.carrier, self._hub = self, getcurrent()
        while True:
            try:
                work = self._inbox.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                now = time.monotonic()
                for seat in [it for it in self._away if it.until <= now]:
                    seat.come_back()
                continue
            if work is None:
                return
            work()

    def _enter(self, ride: _Ride) -> None:
        self.busy_since = began = time.monotonic()
        if self._hub is not None:  # as it is, once the thread runs
            ride.parent = self._hub
        try:
            ride.switch()
        except Exception:
            log.exception("a defect on a thread")  # what it ran catches everything that a servable can raise
        took, self.busy_since = time.monotonic() - began, 0.0
        if ride.dead:
            self.rides -= 1
        if took > _LONG_SECONDS:
            self._slow(ride.kind, took)


class Pipelines:
    """Where pipelines run.

    Args:
        threads: how many threads at most for those that need one of their own.
    """

    def __init__(self, threads: int) -> None:
        self._own = ThreadPoolExecutor(threads, "pipeline")
        self._carriers: list[_Carrier] = []
        self._slow: set[Hashable] = set()
        self._quick: Counter[Hashable] = Counter()

    def submit(self, kind: Hashable, work: Callable[[], None]) -> None:
        """Runs something; called by one thread only.

        Args:
            kind: what it has in common with others that are as quick or slow.
            work: must not raise.
        """
        if kind in self._slow or self._quick[kind] < _PROOFS:
            self._own.submit(self._alone, kind, work).add_done_callback(report_defect)
            return
        now = time.monotonic()
        free = [it for it in self._carriers if not it.is_stuck(now)]
        if len(self._carriers) < _CARRIERS and all(it.rides for it in free):
            free.append(_Carrier(f"pipelines-{len(self._carriers)}", self._found_slow))
            self._carriers.append(free[-1])
        if free:
            min(free, key=lambda it: (it.busy_since > 0, it.rides)).start(kind, work)
        else:  # whatever it is that holds them up
            self._own.submit(self._alone, kind, work).add_done_callback(report_defect)

    def _alone(self, kind: Hashable, work: Callable[[], None]) -> None:
        """Runs something on a thread of its own, and sees whether it needs one."""
        stretch = _here.stretch = _Stretch()
        work()
        stretch.ends()
        if stretch.longest > _LONG_SECONDS:
            self._found_slow(kind, stretch.longest)
        else:
            self._quick[kind] += 1

    def _found_slow(self, kind: Hashable, seconds: float) -> None:
        if kind not in self._slow:
            self._slow.add(kind)
            log.info("pipeline %s took %.0f ms at a time: it has threads of its own", kind, seconds * 1e3)

    def close(self) -> None:
        """Ends the threads, when what they run has let go of them."""
        for carrier in self._carriers:
            carrier.ask(None)
        self._own.shutdown(wait=False, cancel_futures=True)


def report_defect(future: Future[None]) -> None:
    """Logs what a thread of ours raised: what it runs catches everything that a servable can raise."""
    error = future.exception() if not future.cancelled() else None
    if error is not None:
        log.error("a defect on a thread", exc_info=error)

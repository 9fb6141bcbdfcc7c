"""Threads that carry pipelines, many each: a pipeline is plain Python, and while it waits others go on in its place.

Each runs in a greenlet, a stack of its own within the thread, which is left at a call into the engine and entered
again with its answer. What is no call into the engine, as a sleep or a computation, holds up whoever shares the thread.
So each pipeline has threads of its own until it was seen to be quick a few times, and once it was found to be slow; and
those that share are all of one kind. What is slow is known while it is (`Watch`): who shares its thread and has not
begun goes elsewhere then. Who has begun cannot: a greenlet belongs to its thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

from greenlet import getcurrent, greenlet

__all__ = ["Pipelines", "Seat", "current_seat", "report_defect", "waiting"]

log = logging.getLogger(__name__)

_CARRIERS = 4
"""Threads that pipelines of one kind share, at most."""

_LONG_SECONDS = 0.1
"""What a pipeline may take at a time without a call into the engine, before it gets threads of its own."""

_PROOFS = 3
"""How often it must have been quick before it shares a thread."""

_LOOK_SECONDS = 30.0
_here = threading.local()


class _Ride(greenlet):
    """A pipeline on its way."""


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


class Watch:
    """A thread that looks now and then whether what runs takes too long, and sleeps while nothing begins.

    Args:
        look: given the time on the monotonic clock, says in how many seconds it is worth another look; None: once
            something begins.
    """

    def __init__(self, look: Callable[[float], float | None]) -> None:
        self._look = look
        self._news = threading.Event()
        self._sleeps = False
        self._closed = False
        threading.Thread(target=self._run, name="pipelines-watch", daemon=True).start()

    def begins(self) -> None:
        """Something has begun, which a look would see by now; may be called from any thread, thousands of times."""
        if self._sleeps:
            self._news.set()

    def close(self) -> None:
        """Ends the thread."""
        self._closed = True
        self._news.set()

    def _run(self) -> None:
        try:
            self._watch()
        except Exception:
            log.exception("a defect on a thread")

    def _watch(self) -> None:
        while not self._closed:
            seconds = self._look(time.monotonic())
            if seconds is None:
                self._sleeps = True  # and what has begun before it could see that is seen by one more look
                seconds = self._look(time.monotonic())
            self._news.wait(seconds)
            self._sleeps = False
            if not self._closed:
                self._news.clear()


class _Carrier:
    """One thread, and those of one kind that it carries.

    Args:
        name: of the thread.
        slow: told, on any thread, how many seconds what it runs has taken at a time, if that is long.
        begins: called when it runs something, on its thread.
    """

    def __init__(self, name: str, slow: Callable[[float], None], begins: Callable[[], None]) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._slow = slow
        self._begins = begins
        self._hub: greenlet | None = None
        self._away: set[Seat] = set()
        self._not_begun: deque[Callable[[], None]] = deque()
        self._begun = 0
        self.busy_since = 0.0  # on the monotonic clock; 0 while it runs nothing
        self.last_began = -1.0
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def rides(self) -> int:
        """How many it carries, or is about to."""
        return len(self._not_begun) + self._begun

    def ask(self, work: Callable[[], None] | None) -> None:
        """Has the thread do something; None: end."""
        self._inbox.put(work)

    def start(self, work: Callable[[], None]) -> None:
        """Has the thread carry one more."""
        self._not_begun.append(work)
        self.ask(self._begin)

    def give_up(self) -> Iterator[Callable[[], None]]:
        """Those that have not begun, which it does not carry any more; may be called from any thread."""
        with suppress(IndexError):  # the thread takes some of them, or another that asks
            while True:
                yield self._not_begun.popleft()

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

    def _begin(self) -> None:
        try:
            ride = _Ride(self._not_begun.popleft())
        except IndexError:  # it was given up
            return
        self._begun += 1
        self._enter(ride)

    def _enter(self, ride: _Ride) -> None:
        self.busy_since = self.last_began = began = time.monotonic()
        self._begins()
        if self._hub is not None:  # as it is, once the thread runs
            ride.parent = self._hub
        try:
            ride.switch()
        except Exception:
            log.exception("a defect on a thread")  # what it ran catches everything that a servable can raise
        took, self.busy_since = time.monotonic() - began, 0.0
        if ride.dead:
            self._begun -= 1
        if took > _LONG_SECONDS:
            self._slow(took)


class Pipelines:
    """Where pipelines run.

    Args:
        threads: how many threads at most for those that need one of their own.
    """

    def __init__(self, threads: int) -> None:
        self._own = ThreadPoolExecutor(threads, "pipeline")
        self._carriers: dict[Hashable, tuple[_Carrier, ...]] = {}  # never changed, but replaced: all threads read it
        self._slow: set[Hashable] = set()
        self._quick: Counter[Hashable] = Counter()
        self._watch: Watch | None = None
        self._looked = 0.0

    def submit(self, kind: Hashable, work: Callable[[], None]) -> None:
        """Runs something; called by one thread only.

        Args:
            kind: what it has in common with others that are as quick or slow.
            work: must not raise.
        """
        if kind in self._slow or self._quick[kind] < _PROOFS:
            self._on_its_own(kind, work)
            return
        carriers = self._carriers.get(kind, ())
        if len(carriers) < _CARRIERS and all(it.rides for it in carriers):
            carriers = (*carriers, self._new_carrier(kind, len(carriers)))
            self._carriers = {**self._carriers, kind: carriers}
        min(carriers, key=lambda it: (it.busy_since > 0, it.rides)).start(work)
        if kind in self._slow:  # found to be so just now: whoever did may not have seen this one
            self._part(kind)

    def _new_carrier(self, kind: Hashable, number: int) -> _Carrier:
        if self._watch is None:
            self._watch = Watch(self._look)
        return _Carrier(f"{kind}-{number}", partial(self._found_slow, kind), self._watch.begins)

    def _on_its_own(self, kind: Hashable, work: Callable[[], None]) -> None:
        self._own.submit(self._alone, kind, work).add_done_callback(report_defect)

    def _look(self, now: float) -> float | None:
        """Finds out what takes long at this moment; for `Watch`."""
        soonest, before, self._looked = None, self._looked, now
        for kind, carriers in self._carriers.items():
            if kind in self._slow:
                continue
            for carrier in carriers:
                since = carrier.busy_since
                taken = now - since if since else 0.0
                if taken > _LONG_SECONDS:
                    self._found_slow(kind, taken)
                    break
                if since or carrier.last_began >= before:
                    soonest = min(_LONG_SECONDS - taken, _LONG_SECONDS if soonest is None else soonest)
        return soonest

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
            self._part(kind)

    def _part(self, kind: Hashable) -> None:
        """Those of a kind that share threads and have not begun get threads of their own."""
        for carrier in self._carriers.get(kind, ()):
            for work in carrier.give_up():
                with suppress(RuntimeError):  # closed: like those that wait there
                    self._on_its_own(kind, work)

    def close(self) -> None:
        """Ends the threads, when what they run has let go of them."""
        if self._watch is not None:
            self._watch.close()
        for carriers in self._carriers.values():
            for carrier in carriers:
                carrier.ask(None)
        self._own.shutdown(wait=False, cancel_futures=True)


def report_defect(future: Future[None]) -> None:
    """Logs what a thread of ours raised: what it runs catches everything that a servable can raise."""
    error = future.exception() if not future.cancelled() else None
    if error is not None:
        log.error("a defect on a thread", exc_info=error)

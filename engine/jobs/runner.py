"""Runs a job: requests out while there is room, replies onto the record, until every row is there."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from ...schemas.errors import (
    BrokerUnavailable,
    ConnectionLost,
    JobStopped,
    LimitExceeded,
    ProducerError,
    QueueFull,
    RankmqError,
)
from ..address import BrokerAddress
from ..claims import ClaimFolder
from ..confirms import Outcome
from ..message_limit import MessageLimit
from ..topology import requests_key
from .desk import Desk
from .line import JobLine
from .manifest import Key
from .spec import Counts
from .step import Answer, Asking, Room, Step
from .window import Window

__all__ = ["Ending", "Runner", "Watch"]

log = logging.getLogger(__name__)

Ending = Literal["over", "stopped", "cancelled"]
Watch = Callable[[Counts, int], None]
"""Told now and then how far the job is, and how many of its rows are under way."""

_MOST_BYTES = 32 << 20
_MOST_UNCONFIRMED = 8 << 20
_TICK_SECONDS = 1.0
_REFUSED_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_MOST_AWAY = 5
_DRAIN_SECONDS = 5.0
_CANCEL_SECONDS = 10.0
_ASK_AGAIN_SECONDS = 600.0


@dataclass(slots=True)
class _Sent:
    """A request that is under way; its body is kept until the broker has it."""

    rows: int
    nbytes: int
    asking: Asking | None
    since: float


class Runner:
    """One run of a job. `run` once, on a loop of its own.

    Args:
        desk: the job's.
        address: the broker.
        connect_timeout: seconds to go on trying to reach it.
        reconnect_timeout: the same, once it had been reached.
        patience: seconds without any answer after which the job ends, to be resumed.
        window: the most requests under way.
        watch: see `Watch`.
        renew: what an earlier run has sent is asked once more under other ids, and given up under the old ones.
    """

    def __init__(
        self,
        desk: Desk,
        address: BrokerAddress,
        *,
        connect_timeout: float,
        reconnect_timeout: float,
        patience: float,
        window: int,
        watch: Watch,
        renew: bool = False,
    ) -> None:
        self._desk = desk
        self._address = address
        self._timeouts = (connect_timeout, reconnect_timeout)
        self._patience = patience
        self._watch = watch
        self._renew = renew
        self._window = Window(most=window)
        self._thread = ThreadPoolExecutor(1, "rankmq-job")
        self._stop = False
        self._sent: dict[Key, _Sent] = {}
        self._ready: deque[Asking] = deque()
        self._answers: list[Answer] = []
        self._tag = 0
        self._rate = 0.0
        self._refusals = 0
        self._not_before = 0.0
        self._heard = time.monotonic()
        self._question = ""
        self._fault: RankmqError | None = None
        self._limit = MessageLimit()

    def stop(self) -> None:
        """Has it end soon; may be called from any thread."""
        self._stop = True
        loop = getattr(self, "_loop", None)
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._news.set)

    async def run(self) -> Ending:
        """Runs until every row is on record, it is told to stop, or somebody gives the job up.

        Raises:
            OperatorError: the broker cannot be used, or the job cannot go on; it can be resumed.
            ProducerError: the broker went away, nobody takes requests, or nothing is answered any more.
        """
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._folder = _folder(self._desk.spec.claims)
        away, first = 0, True
        try:
            while True:
                line = await self._open(self._timeouts[0 if first else 1])
                self._desk.max_message = line.max_message
                if line.is_new and not (first and self._desk.counts.runs == 1):
                    self._ask_all_again()
                first, heard = False, self._heard
                try:
                    ending = await self._converse(line)
                    if self._folder is not None and ending != "stopped":
                        self._folder.remove()
                    return ending
                except LimitExceeded:
                    if line.max_message >= self._desk.max_message:  # it is not a matter of what was learned of that
                        raise
                except ConnectionLost as error:
                    away = 1 if self._heard > heard else away + 1
                    if away > _MOST_AWAY:
                        raise
                    log.warning("%s; connecting again", error.message)
                finally:
                    await line.close()
        finally:
            self._thread.shutdown(wait=True)
            if self._folder is not None:
                self._folder.leave()

    async def _open(self, patience: float) -> JobLine:
        spec = self._desk.spec
        until = time.monotonic() + patience
        while True:
            # Before it is open: the first replies come with the broker's word that they will.
            self._answers, self._tag, self._fault = [], 0, None
            try:
                return await JobLine.open(
                    self._address,
                    spec.id,
                    requests_key(spec.servable, spec.lane),
                    self._on_answer,
                    self._folder,
                    blobs=self._desk.has_blobs,
                    deadline=spec.deadline,
                    patience=max(0.0, until - time.monotonic()),
                    stopped=lambda: self._stop,
                    limit=self._limit,
                )
            except (ConnectionLost, BrokerUnavailable) as error:  # up, and not all of it yet
                if time.monotonic() >= until or self._stop:
                    raise BrokerUnavailable(error.message) from error
                await asyncio.sleep(min(1.0, max(0.0, until - time.monotonic())))

    # ------------------------------------------------------------------------------------------------ one connection

    async def _converse(self, line: JobLine) -> Ending:
        line.when_ended(self._news.set)
        self._window.paused()
        await self._take_what_waits(line)
        self._window.paused()  # what waited came at once
        if self._renew:
            self._renew = False
            await self._replace(line, self._desk.renew)
        self._send_again()
        self._send(line)
        step = Step(self._desk.counts)
        while True:
            if (reason := self._fault or line.ended()) is not None:
                raise reason
            if step.over and not self._answers:
                await line.delete_queue()
                return "over"
            if step.cancel_asked:
                return await self._give_up(line)
            if self._stop:
                return "stopped"
            room = self._room(line)
            if self._answers or (room and step.more):
                step = await self._step(line, room)
                continue
            self._news.clear()
            pause = _TICK_SECONDS if step.next_due is None else min(_TICK_SECONDS, step.next_due + 0.001)
            try:
                await asyncio.wait_for(self._news.wait(), pause)
            except TimeoutError:
                await self._look_at_the_clock(line)
                step = await self._step(line, 0)

    async def _step(self, line: JobLine, requests: int, *, cancelling: bool = False) -> Step:
        answers, tag = self._answers, self._tag
        self._answers, self._tag = [], 0
        rate, self._rate = self._rate, 0.0
        step = await self._loop.run_in_executor(
            self._thread, lambda: self._desk.step(answers, Room(requests, rate, line.near), cancelling=cancelling)
        )
        if tag:
            line.ack(tag)
        line.forget(answers, step.settled)
        if step.claims_lost:
            line.keep_bodies()
        if step.fatal:
            raise JobStopped(step.fatal, way="resume" if step.counts.completed else "again")
        now = time.monotonic()
        for key, rows in step.settled.items():
            sent = self._sent.pop(key, None)
            if sent is not None and self._window.answered(rows, now - sent.since, now):
                self._rate = self._window.rate
        self._ready.extend(step.asking)
        self._send(line)
        self._watch(step.counts, sum(it.rows for it in self._sent.values()))
        return step

    async def _take_what_waits(self, line: JobLine) -> None:
        """Replies that came while nobody was there, before anything is asked again."""
        left, until = line.waiting, time.monotonic() + _DRAIN_SECONDS
        while left > 0 and time.monotonic() < until and not self._stop and line.ended() is None:
            if not self._answers:
                self._news.clear()
                try:
                    await asyncio.wait_for(self._news.wait(), _TICK_SECONDS)
                except TimeoutError:
                    continue
            if self._answers:
                left -= len(self._answers)
                until = time.monotonic() + _DRAIN_SECONDS
                await self._step(line, 0)

    def _on_answer(self, answer: Answer, tag: int) -> None:
        self._answers.append(answer)
        self._tag = tag
        self._heard = time.monotonic()
        self._news.set()

    # --------------------------------------------------------------------------------------------------------- sending

    def _room(self, line: JobLine) -> int:
        """How many requests may be planned."""
        if line.blocked or self._ready or time.monotonic() < self._not_before:
            return 0
        if sum(it.nbytes for it in self._sent.values()) >= _MOST_BYTES:
            return 0
        if sum(it.nbytes for it in self._sent.values() if it.asking) >= _MOST_UNCONFIRMED:
            return 0
        rows = sum(it.rows for it in self._sent.values())
        return self._window.room(len(self._sent), rows, self._desk.rows_each)

    def _ask_all_again(self) -> None:
        """The queue of replies is a new one: what was answered until now went elsewhere."""
        self._question = f"/{uuid.uuid4().hex[:8]}"
        for key in [key for key, it in self._sent.items() if it.asking is None]:
            self._desk.ask_again(key)
            del self._sent[key]

    def _send_again(self) -> None:
        """On a new connection: what the broker has not confirmed."""
        again = [it.asking for it in self._sent.values() if it.asking is not None]
        for asking in again:
            del self._sent[asking.key]
        self._ready.extendleft(reversed(again))

    def _send(self, line: JobLine) -> None:
        while self._ready and not line.blocked and time.monotonic() >= self._not_before:
            asking = self._ready.popleft()
            self._window.sent(time.monotonic())
            sent = self._sent[asking.key] = _Sent(asking.rows, asking.nbytes, asking, time.monotonic())
            if not asking.fits(self._desk.max_message):  # the broker takes less than was known: so is it answered
                self._answers.append(asking.too_large(self._desk.max_message, blobs=self._desk.has_blobs))
                self._news.set()
                continue
            try:
                line.publish(asking, self._question, lambda outcome, it=sent: self._said(it, outcome))  # type: ignore[misc]
            except ConnectionLost:
                return  # sent when the connection is back

    def _said(self, sent: _Sent, outcome: Outcome) -> None:
        asking = sent.asking
        if asking is None or self._sent.get(asking.key) is not sent:
            return
        if outcome is Outcome.CONFIRMED:
            sent.asking = None
            self._refusals = 0
        elif outcome is Outcome.RETURNED:
            self._fault = ProducerError("no queue takes requests for this servable on this broker")
        elif outcome is Outcome.REJECTED:
            now = time.monotonic()
            if now >= self._not_before:
                self._window.pressed(len(self._sent), now)
                self._not_before = now + min(_LONGEST_PAUSE, _REFUSED_PAUSE * 2.0 ** min(self._refusals, 10))
                self._refusals += 1
            del self._sent[asking.key]
            self._ready.append(asking)
        self._news.set()

    async def _look_at_the_clock(self, line: JobLine) -> None:
        now = time.monotonic()
        self._send(line)
        if line.blocked:
            self._window.pressed(len(self._sent), now)
        silent = now - self._heard
        if silent > self._patience and (self._sent or self._ready):
            what = f"nothing was answered for {silent:.0f} s"
            if line.blocked:
                raise QueueFull(f"{what}: the broker is short of memory or disk and takes no messages")
            if self._ready:
                raise QueueFull(f"{what}: the requests queue is at its limit")
            # It may be one row that keeps the others waiting: each is sent by itself when the job is resumed.
            if await line.is_heard():
                await self._replace(line, self._desk.take_apart)
            raise JobStopped(f"{what}: does an orchestrator serve {self._desk.spec.servable}?")
        for key, sent in list(self._sent.items()):
            if sent.asking is None and now - sent.since > _ASK_AGAIN_SECONDS:
                # Under its id: a request that is under way is not computed twice for it.
                log.warning("no answer to %s for %.0f s: asked again", key, now - sent.since)
                self._question = f"/{uuid.uuid4().hex[:8]}"
                self._desk.ask_again(key)
                del self._sent[key]

    async def _replace(self, line: JobLine, how: Callable[[], list[Key]]) -> None:
        """Has requests replaced by others, and given up by the engine."""
        keys = await self._loop.run_in_executor(self._thread, how)
        try:
            await line.cancel(keys)
        except RankmqError as error:
            log.debug("what was under way is computed all the same: %s", error)

    # ---------------------------------------------------------------------------------------------------- the other end

    async def _give_up(self, line: JobLine) -> Ending:
        """The job is given up: what is under way is cancelled, what was answered meanwhile is kept."""
        self._ready.clear()
        until = time.monotonic() + _CANCEL_SECONDS
        await line.cancel(list(self._sent))
        while self._sent and time.monotonic() < until and line.ended() is None:
            self._news.clear()
            if not self._answers:
                try:
                    await asyncio.wait_for(self._news.wait(), _TICK_SECONDS)
                except TimeoutError:
                    continue
            await self._step(line, 0, cancelling=True)
        if not self._sent:  # else replies still come, and the queue goes by itself when its time is up
            await line.delete_queue()
        return "cancelled"


def _folder(token: str) -> ClaimFolder | None:
    """Where bodies are put that need not go through the broker."""
    try:
        return ClaimFolder.make(token) if token else None
    except OSError as error:
        log.debug("all bodies go through the broker: %s", error)
        return None

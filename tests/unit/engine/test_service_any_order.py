"""Given requests that come in any order and any number of times, when orchestrators and the broker fail in between,
then nothing is lost, and nobody sees an answer twice but where the broker may have lost the first."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rankmq.engine.answers import Answers
from rankmq.engine.confirms import Outcome
from rankmq.schemas import codec
from rankmq.schemas.errors import ConnectionLost
from rankmq.schemas.messages import Request
from rankmq.schemas.tensors import from_array, to_array

from tests.unit.engine.edge import MODEL, SERVED, Edge, Publish
from tests.unit.engine.servable_files import load

CONFIRMED, RETURNED, REJECTED, LOST = Outcome.CONFIRMED, Outcome.RETURNED, Outcome.REJECTED, Outcome.LOST
IDS = ["m1", "m1", "m2", "m3", "m4"]
MOST_IDS = 50
REQUESTS = st.tuples(
    st.integers(1, 3),
    st.sampled_from([None, None, -1, 2, 50]),
    st.fixed_dictionaries(
        {
            "id": st.sampled_from(IDS),
            "body": st.sampled_from([0, 0, 0, 0, 1, 2]),
            "queue": st.sampled_from(["a", "a", "a", "b", None]),
            "question": st.sampled_from(["c1", "c1", "c2"]),
            "lane": st.sampled_from(["high", "normal", "low"]),
        }
    ),
)
PASSING = {"deadline_exceeded", "cancelled"}
"""Errors after which the same may be asked again."""


def body_of(number):
    method = "nope" if number == 2 else "scale"
    row = np.array([number, 0, 0], np.float32)
    return codec.encode_request(Request(servable="matmul", method=method, instances=[{"x": from_array(row)}]))


BODIES = [body_of(number) for number in range(3)]


@dataclass
class Message:
    """A request in its queue, or with an orchestrator."""

    id: str
    body: int
    queue: str | None
    question: str
    lane: str
    deadline: int | None
    delivered: int = 0

    @property
    def route(self):
        return self.id, self.body, self.queue, self.question


@dataclass
class Frame:
    """Something that the service has written to its channel, in its order."""

    kind: str
    what: Any
    outcome: Outcome | None = None
    told: bool = False


@dataclass
class Told:
    """What has arrived at one route, in order, by its code; "" is a result."""

    codes: list[str] = field(default_factory=list)


@functools.cache
def matmul():
    with tempfile.TemporaryDirectory() as folder:
        return load(Path(folder), MODEL + SERVED)


class Wire(Edge):
    """A service whose channel can be cut at any frame."""

    def __init__(self, **given: Any) -> None:
        self.frames: list[Frame] = []
        super().__init__(Path(), {"matmul": matmul()}, **given)
        self.hold = True
        self.cut = False

    def _published(self, publish: Publish, *, dead: bool) -> None:
        if self.cut:
            publish.then(LOST)
            return
        super()._published(publish, dead=dead)
        self.held.clear()
        self.frames.append(Frame("dead" if dead else "reply", publish))

    def answered(self, answered):
        super().answered(answered)
        self.frames.append(Frame("entry", answered))

    def ack(self, delivery):
        if self.cut:
            return
        super().ack(delivery)
        self.frames.append(Frame("ack", delivery.tag))

    def hand_back(self, delivery):
        super().hand_back(delivery)
        self.frames.append(Frame("back", delivery.tag))


class Broker(RuleBasedStateMachine):
    """A broker, a producer, and one orchestrator after the other."""

    @initialize()
    def begins(self):
        self.queue: list[Message] = []
        self.sent: Counter[tuple[Any, ...]] = Counter()
        self.remembered: Counter[tuple[Any, ...]] = Counter()
        self.told: defaultdict[tuple[Any, ...], Told] = defaultdict(Told)
        self.dead: Counter[tuple[Any, ...]] = Counter()
        self.log: list[tuple[int, float, Any]] = []
        self.doubtful: set[int] = set()  # sessions whose answers may be lost
        self.may_repeat: set[str] = set()  # ids
        self.unheard: set[str] = set()  # ids whose answer was refused, which nobody was there to hear
        self.sessions = 0
        self.now = 1000.0
        self.service_starts()

    def service_starts(self, answers=None):
        self.sessions += 1
        if answers is None:
            answers = Answers(3600.0, 1 << 20, MOST_IDS)
            self.remembered.clear()
        self.edge = Wire(max_in_flight=1, max_deliveries=1000, answers=answers)
        self.edge.world.clock.now = self.now
        for session, at, answered in self.log:
            self.edge.answers.learn(answered, at, routed=session not in self.doubtful)
            self.edge.sent[answered.id, answered.reply_to] += 1
        self.unacked: dict[int, Message] = {}
        self.arrived = 0

    # ---------------------------------------------------------------------------------------------------- what happens

    @rule(requests=st.lists(REQUESTS, min_size=1, max_size=4), taken=st.booleans())
    def publish(self, requests, taken):
        """Requests are published, each once or several times, and perhaps delivered at once."""
        for copies, seconds, request in requests:
            deadline = None if seconds is None else int((self.edge.wall() + seconds) * 1000)
            for _ in range(copies):
                message = Message(**request, deadline=deadline)
                self.queue.append(message)
                self.sent[message.route] += 1
        while taken and self.queue:
            self._deliver(0)

    @precondition(lambda self: self.queue)
    @rule(data=st.data(), count=st.integers(1, 5))
    def deliver(self, data, count):
        for _ in range(min(count, len(self.queue))):
            self._deliver(data.draw(st.integers(0, len(self.queue) - 1)))

    def _deliver(self, index):
        message = self.queue.pop(index)
        message.delivered += 1
        self.unacked[len(self.edge.fates) + 1] = message
        self.edge.deliver(
            BODIES[message.body],
            message_id=message.id,
            correlation_id=message.question,
            reply_to=message.queue,
            content_type=codec.MSGPACK,
            key=f"matmul.{message.lane}",
            headers={} if message.deadline is None else {"rankmq-deadline": message.deadline},
            redelivered=message.delivered > 1,
        )

    @rule(count=st.integers(0, 8))
    def work(self, count):
        self.edge.run()
        self.arrives(count, CONFIRMED)
        self.is_told(count)

    @rule(key=st.sampled_from(IDS))
    def cancel(self, key):
        self.edge.service.cancel(key)

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def time_passes(self, seconds):
        self.edge.world.clock.now += seconds
        self.now = self.edge.world.clock.now
        self.edge.service.tick()

    @rule(count=st.integers(1, 8), outcome=st.sampled_from([CONFIRMED] * 5 + [RETURNED, REJECTED]))
    def arrives(self, count, outcome):
        """The broker reads from the channel; a publish that is refused is refused first."""
        for _ in range(min(count, len(self.edge.frames) - self.arrived)):
            frame = self.edge.frames[self.arrived]
            self.arrived += 1
            if frame.kind in ("ack", "back"):
                message = self.unacked.pop(frame.what)
                if frame.kind == "back":
                    self.queue.insert(0, message)
            elif frame.kind == "entry":
                self.log.append((self.sessions, self.edge.wall(), frame.what))
            else:
                frame.outcome, outcome = outcome, CONFIRMED
                self._arrived(frame)

    def _arrived(self, frame):
        message = self.unacked[frame.what.delivery.tag]
        if frame.outcome is not CONFIRMED:
            self.may_repeat.add(message.id)  # its answer counts as sent to nobody
        elif frame.kind == "dead":
            self.dead[message.route] += 1
        else:
            self.told[message.route].codes.append(code_of(frame.what, message.body))

    @rule(count=st.integers(1, 8))
    def is_told(self, count):
        """The service hears what became of its publishes."""
        untold = [it for it in self.edge.frames[: self.arrived] if it.outcome is not None and not it.told]
        for frame in untold[:count]:
            frame.told = True
            self.edge.answer(frame.kind == "dead", frame.what, frame.outcome)

    @rule(written=st.integers(0, 12), kept=st.booleans())
    def orchestrator_dies(self, written, kept):
        self.arrives(written, CONFIRMED)
        self._cut(kept)
        self.service_starts()

    @rule(written=st.integers(0, 12), kept=st.booleans())
    def connection_is_cut(self, written, kept):
        """The orchestrator lives on with what it knows; what it does for the old connection counts for nothing."""
        self.arrives(written, CONFIRMED)
        edge = self.edge
        self._cut(kept)
        edge.cut = True
        edge.world.driver.fail_all(ConnectionLost("the connection ended"))
        edge.run()
        self.service_starts(edge.answers)
        for frame in edge.frames:  # what it knows to be answered it may acknowledge without a word
            if frame.kind == "reply" and frame.told and frame.outcome is CONFIRMED:
                asked = frame.what.delivery.properties
                self.remembered[asked.message_id, asked.reply_to] += 1
        self.edge.sent += self.remembered

    @rule(written=st.integers(0, 12), synced=st.booleans())
    def broker_restarts(self, written, synced):
        """What was not confirmed may be lost."""
        self.arrives(written, CONFIRMED)
        self.doubtful |= set(range(1, self.sessions + 1))
        self.may_repeat |= {answered.id for _, _, answered in self.log} | {it.id for it in self.unacked.values()}
        self._cut(synced)
        self.service_starts()

    def _cut(self, kept):
        """The channel ends where the broker has read it; what was unacknowledged is delivered again.

        What was not confirmed may be dropped: a quorum queue does so with what it has read of a channel that ends.
        """
        read = self.edge.frames[: self.arrived]
        recorded = {(it.what.id, it.what.reply_to, it.what.correlation_id) for it in read if it.kind == "entry"}
        for frame in read:
            if frame.outcome is not CONFIRMED:
                continue
            asked = frame.what.delivery.properties
            if (asked.message_id, asked.reply_to, asked.correlation_id) not in recorded:
                self.may_repeat.add(asked.message_id)
            if not kept and not frame.told:
                message = self.unacked[frame.what.delivery.tag]
                if frame.kind == "dead":
                    self.dead[message.route] -= 1
                else:
                    self.told[message.route].codes.remove(code_of(frame.what, message.body))
        for frame in self.edge.frames:
            if frame.kind in ("reply", "dead") and not frame.told:
                if frame.outcome in (RETURNED, REJECTED):
                    self.unheard.add(frame.what.delivery.properties.message_id)
                self.edge.answer(frame.kind == "dead", frame.what, LOST)
        self.queue = [*self.unacked.values(), *self.queue]
        self.edge.close()

    @rule()
    def is_replaced(self):
        """An orderly end: what waits goes back, what runs ends, and nothing is left over."""
        self.edge.service.hand_back_waiting()
        self._finish()
        assert self.edge.service.in_flight == 0
        assert not self.unacked
        self.edge.close()
        self.service_starts()

    def _finish(self):
        while True:
            self.edge.run()
            before = len(self.edge.frames)
            self.arrives(before, CONFIRMED)
            self.is_told(before)
            if len(self.edge.frames) == before == self.arrived:
                return

    # -------------------------------------------------------------------------------------------------- what must hold

    @invariant()
    def nobody_is_told_twice(self):
        for route, told in self.told.items():
            key, _, queue, _ = route
            assert queue is not None
            if key in self.may_repeat:
                continue
            passing = [code for code in told.codes if code in PASSING]
            assert len(passing) <= self.sent[route], (route, told.codes)
            final = [number for number, code in enumerate(told.codes) if code not in {*PASSING, "request_id_reused"}]
            assert final in ([], [len(told.codes) - 1]), (route, told.codes)  # nothing follows it

    @invariant()
    def memory_is_bounded(self):
        service = self.edge.service
        assert len(service._by_key) + len(service._deadlines) <= 2 * service.in_flight
        assert service._admission.running + service.waiting <= service.in_flight
        assert len(self.edge.answers) <= MOST_IDS

    def teardown(self):
        if not hasattr(self, "edge"):
            return
        try:
            while self.queue:
                self._deliver(0)
            self._finish()
            while self.queue:  # what neither a queue nor the dead letters had taken
                self._deliver(0)
                self._finish()
            assert self.edge.service.in_flight == 0
            assert self.edge.world.driver._tickets == {}
            assert [fate.ends for fate in self.edge.fates.values()] == [1] * len(self.edge.fates)
            self.nobody_is_told_twice()
            for route in self.sent:
                key, _, queue, _ = route
                assert queue is None or key in self.unheard or self.told[route].codes or self.dead[route], (
                    f"{route} was lost"
                )
        finally:
            self.edge.close()


def code_of(publish, body):
    """The code of a reply, "" where it has results, which must be the right ones."""
    reply = publish.reply
    if reply.error is not None:
        return reply.error.code
    assert to_array(reply.outputs[0]["y"]).tolist() == [2 * body + 1, 1, 1]
    return ""


TestBroker = Broker.TestCase
TestBroker.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)

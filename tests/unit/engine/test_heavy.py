"""Given work that holds the loop for long, when there is much of it, then others have the loop for half of the time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine import heavy
from rankmq.engine.confirms import Outcome
from rankmq.engine.connection import Properties
from rankmq.engine.delivery import Delivery
from rankmq.engine.heavy import HeavyLine, Stage
from rankmq.engine.topology import LANES
from rankmq.schemas import codec

from tests.unit.engine.edge import MODEL, ROW, SERVED, Edge, error_of, only, outputs_of

SECONDS = 0.5
RIGHT = [{"y": [3, 5, 7]}]


# ----------------------------------------------------------------------------------------------------------- the line


@pytest.fixture
def line():
    return HeavyLine()


def put(line, *names, stage=Stage.READ, lane="normal"):
    for name in names:
        line.add(stage, lane, name, lambda name=name: name)


def taken(line, now=0.0, *, others=True):
    work = line.take(now, others=others)
    return None if work is None else work()


def test_the_first_is_done_at_once_and_the_next_when_others_had_as_long(line):
    put(line, "a", "b")
    assert taken(line, 10.0) == "a"
    line.took(10.0, 10.5)
    assert line.next_at(10.5, others=True) == 11.0
    assert taken(line, 10.99) is None
    assert taken(line, 11.0) == "b"
    assert line.next_at(11.0, others=True) is None
    assert len(line) == 0


def test_where_nobody_else_is_served_the_loop_is_left_to_nobody(line):
    put(line, "a")
    line.took(0.0, 5.0)
    assert line.next_at(5.0, others=False) == 5.0
    assert taken(line, 5.0, others=False) == "a"


def test_what_was_begun_is_finished_first(line):
    put(line, "read")
    put(line, "start", stage=Stage.START, lane="low")
    put(line, "answer", stage=Stage.ANSWER, lane="low")
    assert [taken(line) for _ in range(4)] == ["answer", "start", "read", None]


def test_from_a_lane_in_order_and_from_all_lanes_by_their_weights(line):
    for lane in LANES:
        put(line, *((lane, number) for number in range(42)), lane=lane)
    order = [taken(line) for _ in range(42)]
    assert Counter(lane for lane, _ in order) == {"high": 32, "normal": 8, "low": 2}
    for lane in LANES:
        numbers = [number for it, number in order if it == lane]
        assert numbers == sorted(numbers)


def test_what_is_given_up_leaves_the_line(line):
    put(line, "a", "b", "c")
    line.discard("b")
    line.discard("unknown")
    assert [taken(line) for _ in range(3)] == ["a", "c", None]


@given(st.lists(st.tuples(st.floats(0.001, 10), st.floats(0, 1)), min_size=1, max_size=30))
def test_others_have_half_of_the_time(pieces):
    line, now, busy = HeavyLine(), 100.0, 0.0
    put(line, *range(len(pieces)))
    for seconds, late in pieces:
        when = line.next_at(now, others=True)
        assert when >= now
        now = when + late
        assert busy <= (now - 100.0) / 2 + 1e-6
        assert taken(line, now) is not None
        line.took(now, now + seconds)
        now, busy = now + seconds, busy + seconds


# -------------------------------------------------------------------------------------------------------- the service


class Slow(Edge):
    """Bodies in JSON of more than 100 bytes are heavy; the clock shows that they take half a second to read."""

    def __init__(self, tmp_path, monkeypatch, **given):
        super().__init__(tmp_path, {"matmul": MODEL + SERVED}, **given)
        monkeypatch.setattr(heavy, "HEAVY_BYTES", 100)
        decode = codec.decode_request
        self.read = []

        def slow(body, content_type, limits):
            if content_type == codec.JSON:
                self.read.append(self.world.clock())
                self.world.clock.now += SECONDS
            return decode(body, content_type, limits)

        monkeypatch.setattr(codec, "decode_request", slow)

    def large(self, name, **given):
        body = {"message_id": name, "content_type": codec.JSON, "reply_to": "answers"}
        return self.ask("scale", {"x": ROW}, **{**body, **given})

    def passes(self, seconds):
        """Time passes, and what is due is done."""
        until = self.world.clock() + seconds
        while self.timers and min(when for when, _ in self.timers) <= until:
            found = min(self.timers, key=lambda it: it[0])
            self.timers.remove(found)
            self.world.clock.now = max(self.world.clock.now, found[0])
            found[1]()
            self.run()
        self.world.clock.now = max(self.world.clock.now, until)
        self.service.tick()
        self.run()

    def ends(self):
        while self.timers:
            self.passes(10)
        self.run()


@pytest.fixture
def make(tmp_path, monkeypatch):
    edges = []

    def make(**given):
        edges.append(Slow(tmp_path, monkeypatch, **given))
        return edges[-1]

    yield make
    for edge in edges:
        edge.close()


@pytest.fixture
def edge(make):
    return make()


def test_large_ones_are_read_one_at_a_time_and_small_ones_pass_them(edge):
    large = [edge.large(f"m{number}") for number in range(4)]
    assert len(edge.read) == 1
    small = edge.ask("scale", {"x": ROW})
    edge.run()
    assert outputs_of(small) == RIGHT
    edge.ends()
    assert [outputs_of(fate) for fate in large] == [RIGHT] * 4
    assert [after - before >= SECONDS for before, after in zip(edge.read, edge.read[1:], strict=False)] == [True] * 3
    only(edge)


def test_while_others_are_served_the_next_one_waits_as_long_as_the_last_took(edge):
    others = edge.ask("scale", {"x": ROW})  # under way until the ranks are turned
    edge.large("m1")
    edge.large("m2")
    edge.large("m3")
    ((when, due),) = edge.timers  # the array of the first is to be made
    assert when == edge.world.clock() + SECONDS
    assert edge.read == [when - 2 * SECONDS]
    edge.timers.clear()
    edge.world.clock.now = when
    due()
    assert len(edge.read) == 1
    edge.ends()
    assert len(edge.read) == 3
    assert outputs_of(others) == RIGHT
    only(edge)


def test_a_large_one_in_messagepack_is_read_at_once(edge):
    fates = [edge.large(f"m{number}", content_type=codec.MSGPACK) for number in range(3)]
    edge.run()
    assert [outputs_of(fate) for fate in fates] == [RIGHT] * 3
    assert edge.timers == []
    only(edge)


def test_one_in_the_line_is_known(edge):
    edge.large("m1")
    waits = edge.large("m2")
    copy, other = edge.large("m2", redelivered=True), edge.large("m2", reply_to="b")
    found = Properties(message_id="m2")
    assert edge.service.knows(Delivery(b"", 1, "rankmq.requests", "matmul", True, found))
    assert (copy.acked, copy.replies) == (1, [])
    edge.ends()
    assert outputs_of(waits) == outputs_of(other) == RIGHT
    assert len(edge.read) == 2
    only(edge)


def test_one_that_is_given_up_in_the_line_is_not_read(edge):
    edge.large("m1")
    cancelled = edge.large("m2")
    late = edge.large("m3", headers={"rankmq-deadline": int((edge.wall() + SECONDS / 2) * 1000)})
    assert edge.service.cancel("m2") == "cancelled"
    edge.world.clock.now += SECONDS
    edge.service.tick()
    edge.ends()
    assert error_of(cancelled)[0] == "cancelled"
    assert error_of(late)[0] == "deadline_exceeded"
    assert len(edge.read) == 1
    only(edge)


@pytest.mark.parametrize("held", [False, True])
def test_one_that_is_given_up_is_not_read_while_its_answer_is_on_its_way(edge, held):
    edge.large("m1")
    edge.large("m2")
    edge.hold = held
    edge.service.cancel("m2")
    edge.ends()
    assert len(edge.read) == 1
    while edge.held:
        edge.answer(*edge.held.popleft(), Outcome.CONFIRMED)
    only(edge)


def test_those_that_were_not_begun_go_back(edge):
    begun, waits = edge.large("m1"), edge.large("m2")  # the first is read, and was not started
    assert edge.service.hand_back_waiting() == 2
    assert (begun.handed_back, waits.handed_back) == (1, 1)
    edge.ends()
    assert len(edge.read) == 1
    assert edge.service._admission.running == 0
    only(edge)


def test_what_is_wrong_with_a_large_one_is_told_and_the_next_is_read(edge):
    fates = [edge.large("m1"), edge.large("m2", key="matmul.urgent"), edge.large("m3")]
    edge.ends()
    assert error_of(fates[1])[0] == "invalid_input"
    assert outputs_of(fates[0]) == outputs_of(fates[2]) == RIGHT
    only(edge)


def test_the_urgent_one_is_read_before_those_that_came_first(edge):
    low = [edge.large(f"low-{number}", key="matmul.low") for number in range(6)]
    urgent = edge.large("urgent", key="matmul.high")
    while not urgent.replies:
        edge.passes(SECONDS)
    assert sum(bool(fate.replies) for fate in low) <= 2
    edge.ends()
    only(edge)


@pytest.fixture
def written(edge, monkeypatch):
    """When large answers were written, each in half a second."""
    monkeypatch.setattr(heavy, "HEAVY_ELEMENTS", 2)
    monkeypatch.setattr(heavy, "HEAVY_BYTES", 1 << 20)
    encode, written = codec.encode_reply, []

    def slow(reply, content_type):
        if reply.error is None:
            written.append(edge.world.clock())
            edge.world.clock.now += SECONDS
        return encode(reply, content_type)

    monkeypatch.setattr(codec, "encode_reply", slow)
    return written


def test_large_answers_are_written_in_their_turn(edge, written):
    fates = [edge.large(f"m{number}") for number in range(3)]
    edge.run()
    assert len(written) == 1
    edge.ends()
    assert [outputs_of(fate) for fate in fates] == [RIGHT] * 3
    only(edge)


def test_an_answer_that_is_given_up_in_the_line_is_not_written(edge, written):
    fates = [edge.large(f"m{number}") for number in range(2)]
    edge.run()
    assert edge.service.cancel("m1") == "cancelled"
    edge.ends()
    assert outputs_of(fates[0]) == RIGHT
    assert error_of(fates[1])[0] == "cancelled"
    assert len(written) == 1
    only(edge)


def test_what_is_large_by_its_size_is_heavy(edge, monkeypatch):
    monkeypatch.undo()
    row = np.zeros(heavy.HEAVY_BYTES, np.uint8)
    fate = edge.ask("large", {"x": row}, content_type=codec.JSON)
    assert edge.timers
    edge.ends()
    assert fate.ends == 1

"""Given answers that went out, when the same is asked again, then it is known, within bounds."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from rankmq.engine.answers import Answers, check_of
from rankmq.schemas.messages import Answered


def answered(key="m1", check=1, reply_to="q", body=b"answer", failed=False, asked="c1"):
    return Answered(
        id=key, check=check, reply_to=reply_to, correlation_id=asked, content_type="c", body=body, failed=failed
    )


def routes(*queues, **routed):
    """Routes to queues, all for the same question."""
    return {(queue, "c1"): was for queue, was in {**dict.fromkeys(queues, True), **routed}.items()}


@pytest.fixture
def answers():
    return Answers(100.0, 1000, 10)


def test_what_is_known_of_an_answer(answers):
    answers.remember(answered(failed=True), 50.0)
    known = answers.find("m1", 50.0)
    assert (known.check, known.content_type, known.body, known.failed, known.at) == (1, "c", b"answer", True, 50.0)
    assert known.routes == routes("q")
    assert answers.find("m2", 50.0) is None
    assert answers.find("", 50.0) is None


def test_the_check_tells_bodies_apart():
    bodies = [b"", b"a", b"b", b"ab", b"ba", b"\0", b"\0\0"]
    assert len({check_of(body) for body in bodies}) == len(bodies)
    assert check_of(b"a" * 70) == check_of(b"a" * 70)
    assert check_of(b"x" * (1 << 20)) < 1 << 63  # it goes over the wire as a number


# ------------------------------------------------------------------------------------------------------------- queues


def test_an_answer_may_have_gone_to_several_queues(answers):
    answers.remember(answered(reply_to="a"), 1.0)
    answers.remember(answered(reply_to="b"), 2.0, routed=False)
    answers.remember(answered(reply_to="a"), 3.0, routed=False)
    known = answers.find("m1", 3.0)
    assert known.routes == routes(a=False, b=False)
    assert known.at == 3.0
    assert len(answers) == 1


def test_a_queue_may_ask_more_than_once(answers):
    for asked in ("c1", "c2", "c1"):
        answers.remember(answered(asked=asked), 1.0)
    assert answers.find("m1", 1.0).routes == {("q", "c1"): True, ("q", "c2"): True}


def test_the_queues_of_one_answer_are_bounded(answers):
    for number in range(100):
        answers.remember(answered(reply_to=f"q{number}"), 1.0)
    answers.remember(answered(reply_to="q90"), 1.0)
    kept = (*range(84, 90), *range(91, 100), 90)
    assert list(answers.find("m1", 1.0).routes) == [(f"q{number}", "c1") for number in kept]


def test_an_answer_to_other_inputs_went_to_nobody_before(answers):
    answers.remember(answered(reply_to="a"), 1.0)
    answers.remember(answered(reply_to="b", check=2), 2.0)
    assert answers.find("m1", 2.0).routes == routes("b")


def test_an_answer_that_reached_nobody_is_there_for_all(answers):
    answers.remember(answered(reply_to="a"), 1.0)
    answers.remember(answered(reply_to=""), 2.0)
    known = answers.find("m1", 2.0)
    assert (known.routes, known.body) == ({}, b"answer")


# ------------------------------------------------------------------------------------------------------------- bounds


def test_it_is_forgotten_with_time(answers):
    answers.remember(answered("m1"), 10.0)
    assert answers.find("m1", 110.0) is not None
    assert answers.find("m1", 110.1) is None
    answers.remember(answered("m2"), 111.0)
    assert len(answers) == 1
    assert answers.body_bytes == len(b"answer")


def test_the_number_of_ids_is_bounded_and_the_oldest_go(answers):
    for number in range(25):
        answers.remember(answered(f"m{number}"), 1.0)
    answers.remember(answered("m15", reply_to="other"), 1.0)
    answers.remember(answered("m25"), 1.0)
    assert len(answers) == 10
    assert [number for number in range(26) if answers.find(f"m{number}", 1.0)] == [15, *range(17, 26)]


def test_the_bytes_are_bounded_and_the_oldest_lose_theirs(answers):
    for number in range(5):
        answers.remember(answered(f"m{number}", body=b"x" * 300), 1.0)
    assert answers.body_bytes == 900
    bodies = [answers.find(f"m{number}", 1.0).body for number in range(5)]
    assert [body is None for body in bodies] == [True, True, False, False, False]


def test_an_answer_larger_than_all_that_may_be_kept(answers):
    answers.remember(answered("m1", body=b"x" * 900), 1.0)
    answers.remember(answered("m2", body=b"x" * 1001), 1.0)
    assert answers.body_bytes == 0
    assert answers.find("m2", 1.0).body is None
    assert answers.find("m2", 1.0).routes == routes("q")


def test_an_answer_takes_the_place_of_the_one_before(answers):
    answers.remember(answered(body=b"x" * 800, failed=True), 1.0)
    answers.remember(answered(body=None), 2.0)
    known = answers.find("m1", 2.0)
    assert (known.body, known.failed, answers.body_bytes) == (None, False, 0)
    answers.remember(answered(body=b"y" * 900), 3.0)
    assert answers.body_bytes == 900


# ---------------------------------------------------------------------------------------------------------- the log


def test_what_the_log_says_is_learned(answers):
    answers.learn(answered(reply_to="a"), 5.0, routed=False)
    assert answers.find("m1", 5.0).routes == routes(a=False)
    answers.learn(answered(reply_to="b"), 6.0, routed=True)
    assert answers.find("m1", 5.0).routes == routes("b", a=False)


def test_what_was_seen_to_arrive_is_not_doubted_because_of_the_log(answers):
    """The broker was restarted: of what the log says it cannot be known, of what it confirmed before it can."""
    answers.remember(answered(reply_to="a"), 5.0)
    answers.learn(answered(reply_to="a"), 5.5, routed=False)
    assert answers.find("m1", 6.0).routes == routes("a")


def test_what_was_doubted_is_known_to_have_arrived_when_the_log_says_so(answers):
    """The connection was cut, and the broker had taken the answer: its entry is there, and no restart since."""
    answers.remember(answered(reply_to="a"), 5.0002)
    answers.doubt("m1", ("a", "c1"))
    answers.learn(answered(reply_to="a", body=None), 5.0, routed=False)
    assert answers.find("m1", 6.0).routes == routes(a=False)
    for at in (5.0, 5.001):  # the entry has whole milliseconds, of a moment later
        answers.doubt("m1", ("a", "c1"))
        answers.learn(answered(reply_to="a", body=None), at, routed=True)
        assert answers.find("m1", 6.0).routes == routes("a")
        assert answers.find("m1", 6.0).body == b"answer"


def test_a_request_that_another_served_after_we_had_failed_is_served(answers):
    answers.remember(answered(failed=True, body=b"sorry"), 5.0)
    answers.learn(answered(body=b"right"), 6.0, routed=False)
    known = answers.find("m1", 6.0)
    assert (known.failed, known.body, known.routes) == (False, b"right", routes("q"))
    answers.learn(answered(failed=True, body=b"sorry"), 7.0, routed=False)
    assert answers.find("m1", 7.0).body == b"right"


def test_what_was_not_confirmed_is_doubted(answers):
    answers.remember(answered(reply_to="a"), 5.0)
    [route] = answers.find("m1", 6.0).routes
    answers.doubt("m1", route)
    answers.doubt("m2", route)
    answers.doubt("m1", ("elsewhere", ""))
    assert answers.find("m1", 6.0).routes == routes(a=False)


def test_what_the_log_says_late_does_not_undo_what_is_known(answers):
    answers.remember(answered(body=b"new", reply_to="a"), 9.0)
    answers.learn(answered(body=b"old", failed=True, reply_to="a"), 5.0, routed=False)
    answers.learn(answered(body=b"old", failed=True, reply_to="b"), 5.0, routed=False)
    answers.learn(answered(body=b"old", reply_to="c", check=2), 5.0, routed=True)
    answers.learn(answered(body=b"old", reply_to=""), 5.0, routed=True)
    known = answers.find("m1", 9.0)
    assert (known.body, known.failed, known.at) == (b"new", False, 9.0)
    assert known.routes == routes("a", b=False)


# ---------------------------------------------------------------------------------------------------------- any order


class Memory(RuleBasedStateMachine):
    """Whatever is remembered in whatever order, the newest is known and the bounds hold."""

    def __init__(self):
        super().__init__()
        self.answers = Answers(50.0, 500, 8)
        self.now = 100.0
        self.last = {}

    @rule(
        key=st.sampled_from([f"m{number}" for number in range(12)]),
        check=st.integers(1, 2),
        queue=st.sampled_from(["", "a", "b"]),
        size=st.none() | st.sampled_from([0, 10, 200, 499, 501]),
        failed=st.booleans(),
        routed=st.booleans(),
    )
    def remember(self, key, check, queue, size, failed, routed):
        body = None if size is None else b"x" * size
        was_known = self.answers.find(key, self.now) is not None
        self.answers.remember(answered(key, check, queue, body, failed), self.now, routed=routed)
        before = self.last.pop(key, None)
        queues = before[4] if before and before[0] == check and queue and was_known else {}
        self.last[key] = (check, body, failed, self.now, {**queues, queue: routed} if queue else {})

    @rule(key=st.sampled_from(["m1", "m2"]), ago=st.integers(1, 60), queue=st.sampled_from(["", "a", "c"]))
    def learn_of_the_past(self, key, ago, queue):
        found = self.last.get(key)
        if found and found[3] > self.now - ago and self.answers.find(key, self.now):
            self.answers.learn(answered(key, found[0], queue, b"old"), self.now - ago, routed=True)
            if queue:
                found[4][queue] = True

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds):
        self.now += seconds

    @invariant()
    def holds(self):
        assert len(self.answers) <= 8
        assert 0 <= self.answers.body_bytes <= 500
        newest = list(self.last)[-8:]
        kept = 0
        for key, (check, body, failed, at, queues) in self.last.items():
            known = self.answers.find(key, self.now)
            if known is None:
                assert key not in newest or at + 50 < self.now
                continue
            assert at + 50 >= self.now
            assert (known.check, known.failed, known.at) == (check, failed, at)
            assert known.routes.items() >= routes(**queues).items()
            assert known.body in (body, None)
            kept += len(known.body or b"")
        assert kept <= self.answers.body_bytes
        if newest and (body := self.last[newest[-1]][1]) is not None and len(body) <= 500:
            known = self.answers.find(newest[-1], self.now)
            assert known is None or known.body == body  # the newest is never the one that goes


TestMemory = Memory.TestCase
TestMemory.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)

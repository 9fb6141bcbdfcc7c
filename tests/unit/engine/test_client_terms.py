"""The terms of a call: ids, lanes, timeouts and deadlines."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.client_terms import Terms, check_id, check_lane, expiration
from rankmq.engine.topology import LANES
from rankmq.schemas.errors import DeadlineExceeded, InvalidInput, ReplyTimeout

NOW = 1_700_000_000.25


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    class Clock:
        now = NOW

        def move(self, seconds: float) -> None:
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(time, "time", lambda: clock.now)
    return clock


def terms(**given) -> Terms:
    return Terms.of(**{"request_id": None, "lane": "normal", "timeout": 60.0, "deadline": None, **given})


def test_ids_are_made_up_and_differ():
    assert len({terms().id for _ in range(100)}) == 100
    assert check_id(terms().id)


@given(st.text(max_size=300))
def test_an_id_is_what_a_short_string_of_amqp_can_carry(text):
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        size = 0
    if 1 <= size <= 255:
        assert terms(request_id=text).id == text
    else:
        with pytest.raises(InvalidInput, match="id"):
            terms(request_id=text)


@pytest.mark.parametrize("wrong", [7, b"bytes", "\ud800", "", "x" * 256])
def test_an_id_that_cannot_be(wrong):
    with pytest.raises(InvalidInput, match="id") as caught:
        check_id(wrong)
    assert len(caught.value.message) < 150


@pytest.mark.parametrize("wrong", ["", "High", "urgent", None, 1])
def test_a_lane_that_does_not_exist_names_those_that_do(wrong):
    with pytest.raises(InvalidInput) as caught:
        check_lane(wrong)
    assert all(lane in caught.value.message for lane in LANES)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("lane", LANES)
def test_lanes(lane):
    assert terms(lane=lane).lane == lane


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e10, "5", True, [1]])
@pytest.mark.parametrize("what", ["timeout", "deadline"])
def test_what_is_no_number_of_seconds(what, wrong):
    with pytest.raises(InvalidInput, match=what):
        terms(**{what: wrong})


def test_no_time_at_all():
    for seconds in (0, -0.0, -5):
        with pytest.raises(DeadlineExceeded, match="not sent"):
            terms(deadline=seconds)
        with pytest.raises(ReplyTimeout, match="not sent"):
            terms(timeout=seconds)


def test_the_deadline_is_the_timeout_from_when_it_counts(clock):
    given = terms(timeout=5.0)
    clock.move(3)  # until it is connected
    assert given.expires() == round((NOW + 8) * 1000)
    assert given.left() == 5.0


def test_a_deadline_counts_from_the_call(clock):
    given = terms(timeout=5.0, deadline=4.0)
    clock.move(3)
    assert given.expires() == round((NOW + 4) * 1000)
    assert given.left() == pytest.approx(1.0)
    clock.move(1)
    with pytest.raises(DeadlineExceeded, match="before the request could be sent"):
        given.left()


def test_a_later_deadline_does_not_make_a_call_wait_longer():
    given = terms(timeout=5.0, deadline=3600.0)
    assert given.left() == 5.0
    assert given.expires() == round((NOW + 3600) * 1000)


def test_expiration_shrinks_while_the_deadline_stays(clock):
    expires = terms(timeout=5.0).expires()
    assert expiration(expires) == "5000"
    clock.move(1.5)
    assert expiration(expires) == "3500"
    clock.move(100)
    assert expiration(expires) == "1"


def test_an_expiration_that_the_broker_would_refuse_is_left_out():
    assert expiration(round(NOW * 1000) + 2**32 - 1) == str(2**32 - 1)
    assert expiration(round(NOW * 1000) + 2**32) is None

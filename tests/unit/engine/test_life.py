"""Given what was begun for a request, when the request ends before it is done, then all of it is stopped, once."""

from __future__ import annotations

from rankmq.engine.life import Life
from rankmq.schemas.errors import Cancelled, DeadlineExceeded

REASON, OTHER = Cancelled("enough"), DeadlineExceeded("late")


def test_a_life_goes_on_until_it_ends():
    life = Life()
    assert life.over is None
    life.end(REASON)
    assert life.over is REASON


def test_what_was_begun_is_stopped_in_order_with_the_reason():
    life, seen = Life(), []
    life.watch(lambda reason: seen.append(("a", reason)))
    life.watch(lambda reason: seen.append(("b", reason)))
    assert seen == []
    life.end(REASON)
    life.end(OTHER)
    assert seen == [("a", REASON), ("b", REASON)]
    assert life.over is REASON


def test_what_is_begun_afterwards_is_stopped_at_once():
    life, seen = Life(), []
    life.end(REASON)
    life.watch(seen.append)
    life.end(OTHER)
    assert seen == [REASON]


def test_what_ended_by_itself_is_not_stopped():
    life, seen = Life(), []
    life.watch(seen.append)
    life.forget(seen.append)  # another object, and equal to it
    life.forget(print)
    life.end(REASON)
    assert seen == []


def test_who_is_stopped_may_watch_and_forget():
    life, seen = Life(), []

    def stop(reason):
        seen.append(reason)
        life.forget(stop)
        life.watch(seen.append)
        life.end(OTHER)

    life.watch(stop)
    life.end(REASON)
    assert seen == [REASON, REASON]

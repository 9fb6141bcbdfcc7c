"""Retries have an end, pauses and jitter."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from rankmq.engine import retry
from rankmq.schemas.errors import AlreadyRunning, BrokerRefused, BrokerUnavailable


class Time:
    """Time that passes in pauses, and in attempts."""

    def __init__(self, monkeypatch, attempt=0.0):
        self.now, self.pauses, self.attempt = 100.0, [], attempt
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    async def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds

    def try_(self, policy, errors):
        """Tries with a policy until it gives up, raises, or there are no more errors.

        Returns:
            How many attempts there were.
        """
        attempts = itertools.count()
        policy.sleep = self.sleep

        async def run():
            async for attempt in policy:
                with attempt:
                    number = next(attempts)
                    self.now += self.attempt
                    if number < len(errors):
                        raise errors[number]

        asyncio.run(run())
        return next(attempts)


@pytest.fixture
def clock(monkeypatch):
    return Time(monkeypatch)


UNAVAILABLE = [BrokerUnavailable("nobody")] * 10_000


def test_success_after_some_attempts(clock):
    assert clock.try_(retry.connecting(60), UNAVAILABLE[:3]) == 4
    assert len(clock.pauses) == 3


@pytest.mark.parametrize("seconds", [0, 0.05, 1, 10, 120])
def test_it_ends_in_time_and_not_before(clock, seconds):
    with pytest.raises(BrokerUnavailable, match="nobody"):
        clock.try_(retry.connecting(seconds), UNAVAILABLE)
    assert clock.now == pytest.approx(100 + seconds, abs=0.01)
    assert max(clock.pauses, default=0) <= 5
    assert len(clock.pauses) < 40 + seconds


def test_attempts_take_time_too(monkeypatch):
    clock = Time(monkeypatch, attempt=4.0)
    with pytest.raises(BrokerUnavailable):
        clock.try_(retry.connecting(10), UNAVAILABLE)
    assert 110 <= clock.now <= 114


def test_pauses_are_not_the_same_for_all(monkeypatch):
    found = set()
    for _ in range(5):
        clock = Time(monkeypatch)
        clock.try_(retry.connecting(60), UNAVAILABLE[:4])
        found.add(tuple(clock.pauses))
    assert len(found) == 5


def test_a_refusal_is_not_tried_again(clock):
    with pytest.raises(BrokerRefused):
        clock.try_(retry.connecting(60), [BrokerRefused("password")])
    assert clock.pauses == []


def test_it_ends_when_told_to(clock):
    asked = []
    with pytest.raises(BrokerUnavailable):
        clock.try_(retry.connecting(60, lambda: asked.append(1) or len(asked) == 3), UNAVAILABLE)
    assert len(clock.pauses) == 2


def test_taking_over_waits_for_the_last_holder_and_for_nothing_else(clock):
    assert clock.try_(retry.taking_over(30), [AlreadyRunning("held")] * 3) == 4
    with pytest.raises(AlreadyRunning):
        clock.try_(retry.taking_over(30), [AlreadyRunning("held")] * 10_000)
    assert max(clock.pauses) <= 1
    with pytest.raises(BrokerUnavailable):
        clock.try_(retry.taking_over(30), UNAVAILABLE)

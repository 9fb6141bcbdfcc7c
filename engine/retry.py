"""Every retry of rankmq: named policies of tenacity, each with an end and with jitter; and what is worth one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from ..schemas.errors import (
    AlreadyRunning,
    AttemptsExhausted,
    BlobUnavailable,
    BrokerUnavailable,
    RankmqError,
    SessionLost,
    TemporaryFailure,
)

__all__ = ["connecting", "given_up", "pause_before", "reaching_blobs", "taking_over"]

log = logging.getLogger(__name__)

_JUST_PAST = 0.001
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


def _say(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    pause = state.next_action.sleep if state.next_action else 0.0
    log.warning("%s; again in %.1f s", error, pause)


def _pauses(seconds: float, *, multiplier: float, least: float, most: float) -> Callable[[RetryCallState], float]:
    """Pauses that grow, with jitter; the last one ends when the time is up, so that there is an attempt then."""
    pause = wait_random_exponential(multiplier=multiplier, min=least, max=most)
    return lambda state: min(pause(state), max(0.0, seconds - (state.seconds_since_start or 0.0)) + _JUST_PAST)


def connecting(seconds: float, stopped: Callable[[], bool] = lambda: False) -> AsyncRetrying:
    """For connecting to the broker: while nobody answers, with pauses of up to 5 s, for `seconds` in all.

    A refusal (wrong password, no permission) is not tried again.

    Args:
        seconds: when to give up; 0 tries once.
        stopped: asked before each pause; True ends the attempts at once.
    """
    timed = stop_after_delay(seconds)
    return AsyncRetrying(
        retry=retry_if_exception_type(BrokerUnavailable),
        wait=_pauses(seconds, multiplier=0.2, least=0.1, most=5.0),
        stop=lambda state: stopped() or timed(state),
        before_sleep=_say,
        sleep=asyncio.sleep,
        reraise=True,
    )


def taking_over(seconds: float) -> AsyncRetrying:
    """For the queues of a group whose lease came to us: the broker may still be clearing away its last holder's.

    Args:
        seconds: when to give up.
    """
    return AsyncRetrying(
        retry=retry_if_exception_type(AlreadyRunning),
        wait=_pauses(seconds, multiplier=0.1, least=0.05, most=1.0),
        stop=stop_after_delay(seconds),
        sleep=asyncio.sleep,
        reraise=True,
    )


def reaching_blobs(seconds: float) -> Retrying:
    """For a blob store, on a thread that may wait for it: while it cannot be read or written.

    Args:
        seconds: when to give up.
    """
    return Retrying(
        retry=retry_if_exception_type(BlobUnavailable),
        wait=_pauses(seconds, multiplier=0.5, least=0.2, most=5.0),
        stop=stop_after_delay(seconds),
        before_sleep=_say,
        reraise=True,
    )


def pause_before(error: RankmqError, attempt: int) -> float | None:
    """How long to wait before work is tried again, in seconds; None where it would only fail again.

    Args:
        error: what it met.
        attempt: which attempt that was, from 1.
    """
    if isinstance(error, SessionLost):
        return 0.0  # the next attempt waits for the ranks anyway
    if isinstance(error, TemporaryFailure):
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (attempt - 1))
    return None


def given_up(error: RankmqError, attempts: int) -> RankmqError:
    """The error of work that was tried as often as it may be."""
    return AttemptsExhausted(f"tried {attempts} times; last: {error.message}")

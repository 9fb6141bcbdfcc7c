"""Until when a request is worth serving, as its AMQP properties say it. Pure."""

from __future__ import annotations

from typing import Any

from ..schemas.errors import InvalidInput

__all__ = ["DEADLINE_HEADER", "seconds_left"]

DEADLINE_HEADER = "rankmq-deadline"
"""Milliseconds since 1970, by the sender's clock."""


def seconds_left(properties: Any, headers: dict[str, Any], now: float) -> float | None:
    """How long a request is still worth serving; None for any time.

    The header counts where there is one. Without it `expiration`, from `timestamp` on, which counts whole seconds; and
    without that from now on.

    Args:
        properties: of the message.
        headers: of the message.
        now: seconds since 1970.

    Raises:
        InvalidInput: the header is not a number.
    """
    deadline = headers.get(DEADLINE_HEADER)
    if deadline is not None:
        if isinstance(deadline, bool) or not isinstance(deadline, int):
            raise InvalidInput(
                f"the header {DEADLINE_HEADER} is milliseconds since 1970 as an integer: {deadline!r:.40}"
            )
        return deadline / 1000 - now
    expiration = properties.expiration
    if not isinstance(expiration, str) or not expiration.isdecimal():
        return None
    since = properties.timestamp
    began = min(now, since + 1) if isinstance(since, int) and since > 0 else now
    return began + int(expiration) / 1000 - now

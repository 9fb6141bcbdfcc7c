"""Questions for the status of an orchestrator: one is made at a time, for all who asked before it was begun."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

from ..schemas import codec
from ..schemas.errors import ConnectionLost, RankmqError
from ..schemas.messages import Status
from .connection import Properties
from .delivery import Delivery

__all__ = ["MOST_QUESTIONS", "Questions"]

log = logging.getLogger(__name__)

MOST_QUESTIONS = 1000
"""How many wait for an answer. Of more the oldest are dropped: whoever asks gives up waiting after a while."""

_TOLD_AT_ONCE = 100
"""How many are told before the loop does something else."""


class Questions:
    """Those that were not answered yet.

    Args:
        make: makes a status.
        tell: publishes one to a queue: its name, the body, the properties.
        guarded: the top of whatever the loop runs.
    """

    def __init__(
        self,
        make: Callable[[], Awaitable[Status]],
        tell: Callable[[str, bytes, Any], None],
        guarded: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._make = make
        self._tell = tell
        self._guarded = guarded
        self._asked: deque[tuple[str, Any]] = deque(maxlen=MOST_QUESTIONS)
        self._answering: asyncio.Task[None] | None = None

    def ask(self, delivery: Delivery) -> None:
        """Somebody asks; without a queue for the answer there is nobody to tell."""
        reply_to = delivery.properties.reply_to
        if not isinstance(reply_to, str) or not reply_to:
            return
        self._asked.append((reply_to, delivery.properties.correlation_id))
        if self._answering is None or self._answering.done():
            self._answering = asyncio.get_running_loop().create_task(self._answer())

    def close(self) -> None:
        """Answers nobody any more."""
        self._asked.clear()
        if self._answering is not None:
            self._answering.cancel()

    async def _answer(self) -> None:
        with self._guarded():
            while self._asked:
                asked = list(self._asked)
                self._asked.clear()
                try:
                    body = codec.encode(await self._make())
                except RankmqError as error:
                    level = logging.DEBUG if isinstance(error, ConnectionLost) else logging.WARNING
                    log.log(level, "there is no status to tell: %s", error.message)
                    continue
                for number, (reply_to, correlation_id) in enumerate(asked, 1):
                    given = Properties(content_type=codec.MSGPACK, correlation_id=correlation_id, app_id="rankmq")
                    self._tell(reply_to, body, given)
                    if number % _TOLD_AT_ONCE == 0:
                        await asyncio.sleep(0)

"""Tells the orchestrator, over a connection of its own, that an agent's process ended: the fastest sign there is."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading

from ..engine import topology
from ..engine.connection import Channel, Connection, Properties
from ..engine.settings import Settings
from ..schemas import codec
from ..schemas.errors import RankmqError
from ..schemas.messages import RankExited

__all__ = ["Reporter"]

log = logging.getLogger(__name__)


class Reporter:
    """Publishes what the launcher saw; connects with the first word. What cannot be said is noticed by other signs.

    Args:
        settings: the broker's URL and so on.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._words: queue.SimpleQueue[RankExited | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def report(self, word: RankExited) -> None:
        """Says it; does not wait."""
        if self._thread is None:
            self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="reporter", daemon=True)
            self._thread.start()
        self._words.put(word)

    def close(self, timeout: float = 5.0) -> None:
        """Ends the connection.

        Args:
            timeout: seconds to wait for it.
        """
        if self._thread is not None:
            self._words.put(None)
            self._thread.join(timeout)

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        connection: Connection | None = None
        channel: Channel | None = None
        while (word := await loop.run_in_executor(None, self._words.get)) is not None:
            try:
                if connection is None or channel is None or not channel.is_open:
                    if connection is not None:  # of which only the channel may have closed
                        await connection.close()
                    connection = channel = None
                    connection = await Connection.open(self._settings.address(), name="rankmq launcher")
                    channel = await connection.channel()
                await channel.publish_confirmed(
                    topology.CONTROL, str(word.group), codec.encode(word), Properties(content_type=codec.MSGPACK)
                )
            except RankmqError as error:
                log.debug("could not tell the orchestrator of rank %d: %s", word.rank, error)
        if connection is not None:
            await connection.close()

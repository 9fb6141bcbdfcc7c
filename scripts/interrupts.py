"""Ctrl-C and SIGTERM on an asyncio loop, for a command that has to end in order whatever it is at."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

__all__ = ["Interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While the block runs, signals are taken down instead of raised.

    Attributes:
        impatient: called at the second signal, and at each after it.
    """

    def __init__(self) -> None:
        self.impatient: Callable[[], None] = lambda: None
        self._seen: list[signal.Signals] = []

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in _SIGNALS:
            self._loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        self._seen.append(number)
        self._stop.set()
        if len(self._seen) > 1:
            self.impatient()

    async def first(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Runs `work` until it ends or a signal comes.

        Returns:
            Whether it ended by itself; what it raises is raised.
        """
        working = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                return False
            await working
            return True
        finally:
            for task in (working, stopped):
                task.cancel()
            await asyncio.gather(working, stopped, return_exceptions=True)

    def raise_if_interrupted(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C was among the signals."""
        if signal.SIGINT in self._seen:
            raise KeyboardInterrupt

"""How far a start is, on a terminal or in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer

if TYPE_CHECKING:
    from ..workers.local import Progress

__all__ = ["StartProgress"]


class StartProgress:
    """Shows each step once: a line that changes where nothing else writes to the terminal, else a line each.

    Args:
        live: a line that changes.
    """

    def __init__(self, *, live: bool) -> None:
        self._began = time.monotonic()
        self._live = live and sys.stdout.isatty()
        self._status: Any = None
        self._last = ""

    def __enter__(self) -> Self:
        if self._live:
            from rich.console import Console

            self._status = Console().status("starting")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def say(self, text: str) -> None:
        """Shows a step."""
        if text == self._last:
            return
        self._last = text
        if self._status is not None:
            self._status.update(text)
        elif not self._live:
            typer.echo(f"{time.monotonic() - self._began:6.1f} s  {text}")

    def warn(self, text: str) -> None:
        """Shows what does not keep it from starting, on standard error; it stays there."""
        if self._status is not None:
            self._status.console.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(f"warning: {text}", err=True)

    def show(self, progress: Progress) -> None:
        """Shows how far the engine is."""
        if progress.ready:
            self.say("ready")
        elif progress.loaded:
            self.say(f"{progress.loaded} of {progress.size} ranks have loaded their graphs")
        elif progress.ranks:
            self.say(f"{progress.ranks} of {progress.size} ranks are there")
        elif progress.broker:
            self.say("the broker is up")

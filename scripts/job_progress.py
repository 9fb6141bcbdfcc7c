"""How far a job is: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer

if TYPE_CHECKING:
    from ..engine.jobs.spec import Counts

__all__ = ["JobProgress", "progress_line", "span"]

_LINE_SECONDS = 5.0
_BAR_SECONDS = 0.2
_LONGEST = 75  # of a line, as a rule
_BAR, _PERCENT = 41, 6
_ROWS, _LEFT, _FAILED, _RATE, _UNDER_WAY = range(5)  # what matters most comes first


class JobProgress:
    """Shows it for as long as the block lasts. `show` may be called from any thread."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._next = self._began
        self._bar: Any = None
        self._task: Any = None
        self._width: int | None = None

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn
            from rich.table import Column

            console = Console()
            self._width = console.width - _PERCENT
            whole = Column(no_wrap=True)
            texts = [
                TextColumn(it, table_column=whole.copy()) for it in ("{task.percentage:>3.0f} %", "{task.description}")
            ]
            bar = [BarColumn()] if self._width >= _LONGEST + _BAR else []
            self._bar = Progress(*bar, *texts, console=console, transient=True)
            self._task = self._bar.add_task("starting", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, counts: Counts, under_way: int) -> None:
        """Shows how far the job is, now and then."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_LINE_SECONDS if self._bar is None else _BAR_SECONDS)
        text = progress_line(counts, under_way, width=self._width)
        if self._bar is None:
            typer.echo(f"{now - self._began:6.1f} s  {text}")
        else:
            self._bar.update(self._task, total=counts.expected, completed=counts.ended, description=text)


def progress_line(counts: Counts, under_way: int | None = None, *, width: int | None = None) -> str:
    """How far a job is, in a line.

    Args:
        counts: see there.
        under_way: rows that were sent and not answered; None if nobody sends any.
        width: how many characters there is room for; what matters least is left out.
    """
    expected, left = counts.expected, counts.seconds_left
    total = "" if expected is None else f" of {'' if counts.total is not None else 'about '}{expected:,}"
    parts = [(_ROWS, f"{counts.ended:,}{total} rows")]
    if counts.rate:
        parts.append((_RATE, f"{counts.rate:,.1f} rows/s" if counts.rate < 100 else f"{counts.rate:,.0f} rows/s"))
    if under_way is not None:
        parts.append((_UNDER_WAY, f"{under_way:,} under way"))
    parts.append((_FAILED, f"{counts.failed:,} failed"))
    if left is not None and under_way is not None and expected != counts.ended:
        parts.append((_LEFT, f"{span(left)} left"))
    while width is not None and len(parts) > 1 and len(", ".join(text for _, text in parts)) > width:
        parts.remove(max(parts))
    return ", ".join(text for _, text in parts)


def span(seconds: float) -> str:
    """A span of time as a person says it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

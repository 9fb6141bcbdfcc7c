"""`rankmq status --watch`: the same page again and again, over one connection that comes back when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..engine.connection import Connection
from ..engine.status import ask_status
from ..schemas.errors import BrokerUnavailable, ConnectionLost
from .interrupts import Interrupts
from .show import console
from .status_page import page

if TYPE_CHECKING:
    from ..engine.settings import Settings

__all__ = ["pages", "watch"]

_Show = Callable[[Any], object]

_EVERY_SECONDS = 1.0


def watch(settings: Settings, *, timeout: float) -> None:
    """Shows the status until Ctrl-C or SIGTERM.

    Args:
        settings: the broker's URL and so on.
        timeout: seconds to wait for an answer.

    Raises:
        BrokerUnavailable: nobody answers at the broker's address, from the start.
        BrokerRefused: a permission is missing.
    """
    asyncio.run(_watch(settings, timeout))


@contextlib.contextmanager
def pages() -> Iterator[_Show]:
    """Shows one page after the other: each in the place of the one before, or below it where there is no terminal."""
    from rich.live import Live

    out = console()
    if not out.is_terminal:
        yield out.print
        return
    with Live(console=out, auto_refresh=False) as live:
        yield lambda shown: live.update(shown, refresh=True)


async def _watch(settings: Settings, timeout: float) -> None:
    with Interrupts() as interrupts, pages() as show:
        await interrupts.first(_refresh(show, settings, timeout))


async def _refresh(show: _Show, settings: Settings, timeout: float) -> None:
    from rich.markup import escape

    connection = await Connection.open(settings.address(), name="rankmq status", patience=settings.connect_timeout)
    try:
        while True:
            try:
                if not connection.is_open:
                    connection = await Connection.open(settings.address(), name="rankmq status")
                show(await _page(connection, settings, timeout))
            except (BrokerUnavailable, ConnectionLost) as error:
                show(escape(f"{_now()}  {error.message}"))
            await asyncio.sleep(_EVERY_SECONDS)
    finally:
        await connection.close()


async def _page(connection: Connection, settings: Settings, timeout: float) -> Any:
    from rich.console import Group
    from rich.markup import escape

    answers = await ask_status(connection, timeout=timeout)
    if not answers:
        return escape(f"{_now()}  no orchestrator answers on {settings.address()}")
    return Group(f"{_now()}  (Ctrl-C ends this)", page(answers))


def _now() -> str:
    return time.strftime("%H:%M:%S")

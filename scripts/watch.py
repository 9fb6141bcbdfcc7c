"""`rankmq status --watch`: the same page again and again, over one connection that comes back when it is lost."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from ..engine.connection import Connection
from ..engine.status import ask_status
from ..schemas.errors import BrokerUnavailable, ConnectionLost
from .interrupts import Interrupts
from .show import console
from .status_page import page

if TYPE_CHECKING:
    from rich.live import Live

    from ..engine.settings import Settings

__all__ = ["watch"]

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


async def _watch(settings: Settings, timeout: float) -> None:
    from rich.live import Live

    with Interrupts() as interrupts, Live(console=console(), auto_refresh=False) as live:
        await interrupts.first(_refresh(live, settings, timeout))


async def _refresh(live: Live, settings: Settings, timeout: float) -> None:
    connection = await Connection.open(settings.address(), name="rankmq status", patience=settings.connect_timeout)
    try:
        while True:
            try:
                if not connection.is_open:
                    connection = await Connection.open(settings.address(), name="rankmq status")
                await _show(live, connection, settings, timeout)
            except (BrokerUnavailable, ConnectionLost) as error:
                live.update(f"{_now()}  {error.message}", refresh=True)
            await asyncio.sleep(_EVERY_SECONDS)
    finally:
        await connection.close()


async def _show(live: Live, connection: Connection, settings: Settings, timeout: float) -> None:
    from rich.console import Group

    answers = await ask_status(connection, timeout=timeout)
    if answers:
        live.update(Group(f"{_now()}  (Ctrl-C ends this)", page(answers)), refresh=True)
    else:
        live.update(f"{_now()}  no orchestrator answers on {settings.address()}", refresh=True)


def _now() -> str:
    return time.strftime("%H:%M:%S")

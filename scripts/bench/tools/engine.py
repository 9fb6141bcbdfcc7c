"""The whole engine on this machine, beside a benchmark that is not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import SecretStr

from ....engine.loader import load_servable
from ....schemas.errors import OperatorError
from ....schemas.messages import GroupStatus
from ....workers.local import LocalEngine
from .bench import Bench

__all__ = ["RunningEngine"]

_T = TypeVar("_T")
_READY_SECONDS = 240.0
_STATUS_SECONDS = 20.0
_STOP_SECONDS = 60.0
_LOG_LINES = 3


class RunningEngine:
    """Serves one servable within the block, on the bench's broker.

    Args:
        bench: whose it is.
        folder: of the servable's folder.
        servable: its name.
        settings: that differ from the bench's own.
    """

    def __init__(self, bench: Bench, folder: Path, servable: str, **settings: Any) -> None:
        self._bench = bench
        self._logs = bench.folder("logs")
        self._servable = load_servable(folder, servable)
        self._settings = bench.settings.model_copy(
            update={
                "broker_url": SecretStr(bench.broker_url),
                "state_dir": bench.folder("state"),
                "drain_timeout": 5.0,
                **settings,
            }
        )
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def __enter__(self) -> Self:
        self._bench.say(f"starting {self._servable.name} on {self._servable.rank_size} ranks")
        self._thread.start()
        try:
            self._ready.result(_READY_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        loop = getattr(self, "_loop", None)
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            self._engine.kill()
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # noqa: BLE001 - the top of the thread; raised where it is waited for
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._engine = LocalEngine([self._servable], self._settings, log_dir=self._logs)
        stop = asyncio.ensure_future(self._stop.wait())
        async with self._engine as engine:
            ready = asyncio.ensure_future(engine.ready())
            await asyncio.wait([ready, stop], return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                self._ready.set_result(None)
            else:
                ready.cancel()
            await stop

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_STATUS_SECONDS)

    def group(self) -> tuple[int, GroupStatus]:
        """The orchestrator's process id, and what it says of its group.

        Raises:
            OperatorError: it says nothing.
        """
        for status in self._call(self._engine.status()):
            for group in status.groups:
                if group.group.servable == self._servable.name:
                    return status.pid, group
        raise OperatorError("the orchestrator does not answer")

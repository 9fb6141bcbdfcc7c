"""The orchestrator: takes requests, walks them through their pipelines, answers them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ..schemas.errors import AlreadyRunning, BrokerUnavailable, ConnectionLost
from . import signals
from .answers import Answers
from .blob_keeper import BlobKeeper
from .carriers import Pipelines
from .catalog import Catalog
from .connection import Connection
from .direct_replies import DirectReplies
from .front import Pools
from .message_limit import MessageLimit
from .rank_table import RankTable
from .session import Session
from .settings import Settings
from .stage_processes import StageProcesses

__all__ = ["Orchestrator"]

log = logging.getLogger(__name__)

_LASTING_SECONDS = 5.0
_BLOB_THREADS = 4


class Orchestrator:
    """Serves a catalog over a broker.

    Args:
        catalog: what is served.
        settings: see `Settings`; the broker's URL must be set.
        rank_tables: by servable name and version; ranks on this host where none is given.
        group: the name of its groups among the servables' replicas.
        on_ready: called once, on the loop, when all groups are ready for the first time.
        on_warning: called on the loop with what whoever starts it should see, a line; the log has it, too.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        *,
        rank_tables: Mapping[tuple[str, int], RankTable] | None = None,
        group: str = "g0",
        on_ready: Callable[[], None] | None = None,
        on_warning: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self._catalog = catalog
        self._settings = settings
        given = rank_tables or {}
        self._rank_tables = {
            key: given.get(key) or RankTable.local(it.rank_size)
            for it in catalog
            if it.models
            for key in [(it.name, it.version)]
        }
        self._group = group
        self._on_ready = on_ready
        self._on_warning = on_warning
        self._began = time.time()
        self._answers = Answers(3600.0 * settings.remember_hours, settings.remember_bytes)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def run(self) -> None:
        """Serves until it is told to stop, by `stop`, SIGTERM or SIGINT; then finishes what runs.

        Raises:
            OperatorError: the broker cannot be used, or a group cannot form; see `errors`.
        """
        asyncio.run(self._main())

    def stop(self) -> None:
        """Asks `run` to finish what runs and to return; may be called from any thread."""
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = stop = asyncio.Event()
        pools = _Pools(self._settings, self._catalog)
        with signals.on_stop(stop.set), pools:
            keeper = self._keeper(pools.pools)
            try:
                await self._serve_sessions(pools, keeper, stop)
            finally:
                if keeper is not None:
                    await keeper.close()

    def _keeper(self, pools: Pools) -> BlobKeeper | None:
        store = self._settings.blobs()
        if store is None:
            return None
        return BlobKeeper(store, pools.blobs, self._settings.blob_age, on_warning=self._on_warning)

    async def _serve_sessions(self, pools: _Pools, keeper: BlobKeeper | None, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        patience, since, failures, limit = self._settings.connect_timeout, 0.0, 0, MessageLimit()
        while not stop.is_set():
            connection = await Connection.open(
                self._settings.address(),
                name=f"rankmq orchestrator {self.name}",
                patience=patience,
                stopped=stop.is_set,
                limit=limit,
            )
            patience, began = self._settings.reconnect_timeout, loop.time()
            try:
                await self._serve(connection, pools, keeper, stop)
                since = loop.time()
            except ConnectionLost as error:
                log.warning("the connection to the broker ended: %s", error.message)
                since = since or began
                if began - since > patience:
                    raise BrokerUnavailable(f"the broker takes us and is of no use: {error.message}") from error
            except AlreadyRunning:
                # After a cut the broker may hold our own queues until it misses our heartbeats.
                if not since or began - since > patience:
                    raise
            finally:
                await connection.close()
            # A broker that comes up takes connections before all of its queues are there.
            failures = 0 if loop.time() - began > _LASTING_SECONDS else failures + 1
            if failures:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), timeout=min(1.0, 0.05 * 2**failures))

    async def _serve(
        self, connection: Connection, pools: _Pools, keeper: BlobKeeper | None, stop: asyncio.Event
    ) -> None:
        """One session, to its end: by the connection's, by a failure, or by our own stop."""
        connect = partial(Connection.open, self._settings.address(), name=f"rankmq orchestrator {self.name}, asking")
        direct = DirectReplies(connect)  # of this session: another broker, or another node of it, reads other names
        session = Session(
            self.name,
            self._catalog,
            self._rank_tables,
            self._group,
            self._settings,
            pools.pools,
            self._answers,
            self._began,
            direct,
            keeper,
        )
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        telling = asyncio.ensure_future(self._tell_ready(session))
        try:
            await session.open(connection)
            ends: list[asyncio.Future[Any]] = [stopped, connection.closed]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if session.failure is not None:
                raise session.failure
            if connection.closed.done():
                log.warning("the connection to the broker ended: %s", connection.closed.result())
                return
            log.info("stopping: %d requests are under way", session.service.in_flight)
            handed = await session.drain(self._settings.drain_timeout)
            log.info("stopped: %d requests served, %d handed back", session.service.served, handed)
        finally:
            telling.cancel()
            stopped.cancel()
            session.close()
            await direct.close()

    async def _tell_ready(self, session: Session) -> None:
        await session.all_ready.wait()
        tell, self._on_ready = self._on_ready, None
        if tell is not None:
            tell()


class _Pools:
    """The threads on which the servables' own Python runs."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        count = settings.num_parallel_workers
        self.pools = Pools(
            # A thread waits for each process that works.
            stages=ThreadPoolExecutor(max(settings.stage_threads, count), "stage"),
            pipelines=Pipelines(settings.pipeline_threads),
            blobs=ThreadPoolExecutor(_BLOB_THREADS, "blobs"),
            processes=StageProcesses(count, catalog, settings.log_level) if count else None,
        )

    def __enter__(self) -> _Pools:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pools.processes is not None:
            self.pools.processes.close()
        self.pools.stages.shutdown(wait=False, cancel_futures=True)
        self.pools.pipelines.close()
        self.pools.blobs.shutdown(wait=False, cancel_futures=True)

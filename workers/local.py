"""Everything on this machine: a private broker unless one is given, the orchestrator, and the agents.

The broker, the orchestrator's process and the launcher's start at the same time; the two are told where the broker is
when it is up. What is killed is started again. The end goes the other way round: the orchestrator finishes what runs
while the agents are still there, then the agents end, then the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr

from ..engine.catalog import Catalog
from ..engine.connection import Connection
from ..engine.servable import Servable
from ..engine.settings import Settings
from ..engine.status import ask_status
from ..schemas.errors import BrokerUnavailable, ModelError, OperatorError, RankmqError
from ..schemas.messages import Status
from .agent_process import executor_kind
from .broker import PrivateBroker
from .endpoint import Endpoint, state_folder
from .local_process import End, LocalProcess, Role
from .restarts import Restarts

__all__ = ["LocalEngine", "Progress"]

log = logging.getLogger(__name__)

_LOOK_EVERY = 0.25  # seconds between two questions how many ranks there are
_ORCHESTRATOR_GRACE_SECONDS = 10.0
_AGENTS_GRACE_SECONDS = 30.0  # the launcher itself gives the agents some before it kills them


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the start is.

    Attributes:
        broker: whether the broker takes connections.
        ranks: how many ranks have registered.
        loaded: how many have loaded and warmed up their graphs.
        size: how many ranks there are to be.
        ready: whether requests are served.
    """

    broker: bool
    ranks: int
    loaded: int
    size: int
    ready: bool


class LocalEngine:
    """Serves servables on this machine, within `async with`.

    Args:
        servables: as loaded, with their model files.
        settings: see `Settings`; a private broker is started in the state folder if they name none.
        log_dir: a folder for a log file per process; None: standard error.
        group: the name of the groups among the servables' replicas.
        on_progress: called on the loop whenever the start is further.
        on_warning: called on the loop with a line about what does not keep it from starting.

    Raises:
        ServableError: the servables do not fit together.
        ModelError: model files of no kind that can be run.
    """

    def __init__(
        self,
        servables: Sequence[Servable],
        settings: Settings,
        *,
        log_dir: Path | None = None,
        group: str = "g0",
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_warning: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.servables = tuple(Catalog(servables))
        self.state_dir = state_folder(settings)
        self.seconds: dict[str, float] = {}
        self._settings = settings
        self._log_dir = log_dir
        self._group = group
        self._on_progress = on_progress
        self._on_warning = on_warning
        self._size = sum(_ranks_of(servable) for servable in self.servables)
        self._broker = PrivateBroker(self.state_dir / "broker") if settings.broker_url is None else None
        self._progress = Progress(broker=False, ranks=0, loaded=0, size=self._size, ready=False)
        self._processes: dict[Role, LocalProcess] = {}
        self._keepers: dict[Role, asyncio.Task[None]] = {}
        self._others: list[asyncio.Task[None]] = []
        self._endpoint: Endpoint | None = None
        self._stopping = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        self._connected: asyncio.Future[Settings] = loop.create_future()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._failed: asyncio.Future[OperatorError] = loop.create_future()
        if self._log_dir is not None:
            self._log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        roles: tuple[Role, ...] = ("orchestrator", "agents") if self._size else ("orchestrator",)
        for role in roles:
            self._keepers[role] = asyncio.create_task(self._guarded(self._keep(role)))
        self._others.append(asyncio.create_task(self._guarded(self._connect())))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def settings(self) -> Settings:
        """The settings with the broker that is used; once `ready` has returned."""
        return self._connected.result()

    async def ready(self) -> None:
        """Waits until requests are served.

        Raises:
            OperatorError: something failed for good.
        """
        await self._unless_failed(self._ready)

    async def failed(self) -> None:
        """Waits until something fails for good.

        Raises:
            OperatorError: what failed.
        """
        raise await asyncio.shield(self._failed)

    async def status(self) -> list[Status]:
        """What the orchestrator says of itself.

        Raises:
            RankmqError: the broker cannot be reached.
        """
        async with _connection(self.settings) as connection:
            return await ask_status(connection, settle=0.0)

    def kill(self) -> None:
        """Ends the processes at once, for whoever is tired of waiting for `stop`."""
        for process in self._processes.values():
            process.kill()

    async def stop(self) -> None:
        """Ends all in order; what runs may take `drain_timeout` seconds to finish."""
        self._stopping = True
        for task in self._others:
            task.cancel()
        await asyncio.gather(*self._others, return_exceptions=True)
        drain = self._settings.drain_timeout
        await self._stop("orchestrator", drain + _ORCHESTRATOR_GRACE_SECONDS)
        await self._stop("agents", drain + _AGENTS_GRACE_SECONDS)
        if self._endpoint is not None:
            self._endpoint.remove(self.state_dir)
        if self._broker is not None:
            await asyncio.to_thread(self._broker.stop)

    async def _stop(self, role: Role, timeout: float) -> None:
        keeper = self._keepers.get(role)
        if keeper is None:
            return
        process = self._processes.get(role)
        if process is not None:
            await process.stop(timeout)
            await asyncio.wait([keeper], timeout=1.0)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)

    async def _unless_failed(self, wanted: asyncio.Future[None]) -> None:
        waits: list[asyncio.Future[Any]] = [wanted, self._failed]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            raise self._failed.result()
        wanted.result()

    def _fail(self, error: OperatorError) -> None:
        if not self._failed.done() and not self._stopping:
            self._failed.set_result(error)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except OperatorError as error:
            self._fail(error)
        except RankmqError as error:
            self._fail(BrokerUnavailable(error.message))
        except Exception as error:
            log.exception("a defect")
            self._fail(OperatorError(f"a defect: {type(error).__name__}: {error}"))

    # ---------------------------------------------------------------------------------------------------- the broker

    async def _connect(self) -> None:
        """Has a broker, tells where it is, follows the start, and sees to it that the private one lives."""
        broker, settings = self._broker, self._settings
        if broker is not None:
            await self._uninterrupted(broker.start)
            settings = settings.model_copy(update={"broker_url": SecretStr(broker.url)})
        async with _connection(settings) as connection:
            self.seconds["broker"] = time.monotonic() - self._began
            self._endpoint = Endpoint.of(settings)
            self._endpoint.write(self.state_dir)
            self._connected.set_result(settings)
            self._tell(broker=True)
            await self._follow(connection)
        if broker is not None:
            await self._keep_broker(broker)

    async def _uninterrupted(self, work: Callable[[], None]) -> None:
        """Runs it on a thread, to its end also for who is cancelled meanwhile: no broker is stopped half-started."""
        running = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            with contextlib.suppress(RankmqError):
                await running
            raise

    async def _follow(self, connection: Connection) -> None:
        while not self._ready.done():
            with contextlib.suppress(RankmqError):  # it only tells how far we are
                answers = await ask_status(connection, timeout=1.0, settle=0.0)
                mine = self._processes["orchestrator"].pid
                ranks = [rank for it in answers if it.pid == mine for group in it.groups for rank in group.ranks]
                states = [rank.state for rank in ranks]
                self._tell(
                    ranks=sum(state in ("registered", "loading", "ready") for state in states),
                    loaded=states.count("ready"),
                )
            await asyncio.wait([self._ready], timeout=_LOOK_EVERY)

    async def _keep_broker(self, broker: PrivateBroker) -> None:
        restarts = Restarts("the private broker", self._settings.max_restarts)
        while True:
            await _end_of(broker)
            log.warning("the private broker ended; it is started again")
            await asyncio.sleep(restarts.pause("see its own log"))
            before = broker.url
            await self._uninterrupted(broker.stop)
            await self._uninterrupted(broker.start)
            if broker.url != before:
                raise BrokerUnavailable("the private broker ended, and its port was taken when it was started again")

    # -------------------------------------------------------------------------------------------------- the processes

    async def _keep(self, role: Role) -> None:
        """Starts a process, and again when it ends without a reason that would come back."""
        most = self._settings.max_restarts
        if role == "orchestrator":  # a request that takes it down each time is to be answered before we give up
            most = max(most, self._settings.max_deliveries)
        restarts = Restarts(f"the process of the {role}", most)
        while True:
            log_file = None if self._log_dir is None else self._log_dir / f"{role}.log"
            process = LocalProcess(role, log_file=log_file, on_ready=self._on_ready, on_warning=self._on_warning)
            self._processes[role] = process
            await process.start(self._order(role))
            end = await self._life(process)
            if self._stopping:
                return
            if isinstance(end.failure, OperatorError):
                raise end.failure
            log.warning("the process of the %s ended (%s); it is started again", role, end)
            await asyncio.sleep(restarts.pause(str(end)))

    async def _life(self, process: LocalProcess) -> End:
        ended = asyncio.ensure_future(process.ended())
        try:
            waits: list[asyncio.Future[Any]] = [ended, self._connected]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if self._connected.done():
                process.connect(self._connected.result().address().url())
            return await ended
        finally:
            ended.cancel()

    def _order(self, role: Role) -> dict[str, Any]:
        secret = self._settings.blob_store  # which a dump would hide
        return {
            "settings": {
                **self._settings.model_dump(mode="json", exclude={"broker_url"}),
                "blob_store": None if secret is None else secret.get_secret_value(),
            },
            "group": self._group,
            "servables": [
                {
                    "directory": str(it.directory.parent),
                    "name": it.name,
                    "version": it.version,
                    "files": [[str(file.absolute()) for file in of_rank] for of_rank in it.model_files or ()],
                }
                for it in self.servables
            ],
        }

    def _on_ready(self) -> None:
        if not self._ready.done():
            self.seconds["ready"] = time.monotonic() - self._began
            self._ready.set_result(None)
            self._tell(ranks=self._size, loaded=self._size, ready=True)

    def _tell(self, **further: Any) -> None:
        now = self._progress
        told = Progress(**{name: further.get(name, getattr(now, name)) for name in Progress.__slots__})
        if told != now and not now.ready:
            self._progress = told
            self._on_progress(told)


def _ranks_of(servable: Servable) -> int:
    """How many ranks hold it; makes sure that they can be started."""
    if not servable.models:
        return 0
    if servable.model_files is None:
        raise ModelError(f"the model files of servable {servable.name} are not here")
    for files in servable.model_files:
        executor_kind(files)
    return servable.rank_size


@contextlib.asynccontextmanager
async def _connection(settings: Settings) -> AsyncIterator[Connection]:
    connection = await Connection.open(settings.address(), name="rankmq up", patience=settings.connect_timeout)
    try:
        yield connection
    finally:
        await connection.close()


async def _end_of(broker: PrivateBroker) -> None:
    """Waits until the node has ended."""
    try:
        descriptor = os.pidfd_open(broker.pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # before Linux 5.3, and elsewhere
        while not await asyncio.to_thread(broker.wait, 1.0):
            pass
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, lambda: None if ended.done() else ended.set_result(None))
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)

"""One group of the servable: its orchestrators and its launchers, with the ways by which they reach the broker."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...engine.address import BrokerAddress
from ...schemas.errors import GroupError
from .journal import Tail
from .process import Process
from .proxy import Proxy
from .signs import Sign, Word, sign_of

__all__ = ["OrchestratorProcess", "Order", "Replica", "Waiting"]

_START_SECONDS = 60.0
_END_SECONDS = 30.0


class Waiting(Protocol):
    """How to wait for something that shows in logs and journals."""

    async def __call__(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Returns when it is so; raises GroupError if it is not within `seconds`."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the processes of all groups are told.

    Attributes:
        home: the servable's folder.
        ranks: of each group.
        logs: a folder for what they log.
        environment: of all of them.
        drain: seconds that each may take to end in order.
    """

    home: Path
    ranks: int
    logs: Path
    environment: Mapping[str, str]
    drain: float


class OrchestratorProcess(Process):
    """One that also tells its signs."""

    def __init__(self, name: str, log: Path) -> None:
        super().__init__(name, log)
        self.tail = Tail(log)
        self.signs: list[Sign] = []

    def look(self) -> list[Sign]:
        """Reads what it has logged since."""
        new = list(filter(None, map(sign_of, self.tail.lines())))
        self.signs += new
        return new

    def said(self, *words: Word) -> bool:
        """Whether it has logged one of these."""
        return any(sign.word in words for sign in self.signs)

    @property
    def latest(self) -> float:
        """When its group became ready last."""
        return max((sign.at for sign in self.signs if sign.word == "ready"), default=0.0)

    @property
    def serves(self) -> bool:
        """Whether its group is ready now."""
        told = [sign.word for sign in self.signs if sign.word in ("ready", "ended", "disconnected")]
        return self.alive and bool(told) and told[-1] == "ready"


class Replica:
    """A group; it has one orchestrator, and another that stands by where that is wanted.

    Args:
        name: the group's.
        order: see `Order`.
        broker: where the broker is.
        wait: see `Waiting`.
        middle: a proxy for its orchestrators; None: they reach the broker directly.
        far: a proxy for its last rank, which then has a launcher of its own.
    """

    def __init__(
        self,
        name: str,
        order: Order,
        broker: BrokerAddress,
        wait: Waiting,
        *,
        middle: Proxy | None = None,
        far: Proxy | None = None,
    ) -> None:
        self.name = name
        self.middle = middle
        self.far = far
        self.launchers: dict[str, Process] = {}
        self.ended: list[Process] = []
        self._order = order
        self._broker = broker
        self._wait = wait
        self._orchestrators: list[OrchestratorProcess] = []
        self._registered: dict[int, tuple[float, int]] = {}
        self._numbers = itertools.count()
        last = order.ranks - 1
        alone = [(f"0-{last}" if last else "0", None)]
        apart = [*([(f"0-{last - 1}" if last > 1 else "0", None)] if last else []), (str(last), far)]
        self._parts: dict[str, Proxy | None] = dict(alone if far is None else apart)

    # ---------------------------------------------------------------------------------------------------- processes

    async def start(self) -> None:
        """Starts it all."""
        await self.start_orchestrator()
        for ranks in self._parts:
            await self.start_launcher(ranks)

    async def start_orchestrator(self) -> OrchestratorProcess:
        """Starts one more."""
        name = f"orchestrator-{self.name}-{next(self._numbers)}"
        process = OrchestratorProcess(name, self._order.logs / f"{name}.log")
        self._orchestrators.append(process)
        await process.start(
            *("rankmq", "orchestrator", str(self._order.home), "--group", self.name),
            **self._order.environment,
            RANKMQ_BROKER_URL=self._url(self.middle),
        )
        return process

    async def start_launcher(self, ranks: str) -> None:
        """Starts the agents of some ranks.

        Args:
            ranks: as in `launchers`.
        """
        old = self.launchers.get(ranks)
        if old is not None:
            self.ended.append(old)
        process = Process(
            f"agents-{self.name}-{ranks}", self._order.logs / f"agents-{self.name}-{ranks}.log", family=True
        )
        self.launchers[ranks] = process
        await process.start(
            *("rankmq", "agents", str(self._order.home), "--ranks", ranks, "--group", self.name),
            **self._order.environment,
            RANKMQ_BROKER_URL=self._url(self._parts[ranks]),
        )

    def _url(self, proxy: Proxy | None) -> str:
        url = self._broker.url()
        return url if proxy is None else url.replace(f":{self._broker.port}/", f":{proxy.port}/")

    async def stand_by(self) -> None:
        """Has an orchestrator stand by, unless one does."""
        if self.standby is None:
            another = await self.start_orchestrator()
            await self._wait(lambda: another.said("standing by"), f"{another.name} to stand by", _START_SECONDS)

    async def stop_standby(self) -> None:
        """Has none stand by any more."""
        if self.standby is not None:
            await self.stop(self.standby)

    async def stop(self, process: Process) -> None:
        """Tells a process to end in order.

        Raises:
            GroupError: it does not, or its exit code says so.
        """
        code = await process.stop(self._order.drain + _END_SECONDS)
        if code:
            raise GroupError(f"{process.name} ended with {code} when it was told to stop; its log is {process.log}")

    async def close(self) -> list[str]:
        """Ends it in order: the orchestrators, then the agents; gives what went wrong."""
        wrong = []
        for process in self.processes:
            if process.alive:
                try:
                    await self.stop(process)
                except GroupError as error:
                    wrong.append(error.message)
        self.destroy()
        return wrong

    def destroy(self) -> None:
        """Ends it all at once."""
        for process in (*self.processes, *self.ended):
            process.destroy()

    @property
    def processes(self) -> list[Process]:
        """All that it has now, or that ended unasked."""
        return [*self._orchestrators, *self.launchers.values()]

    @property
    def active(self) -> OrchestratorProcess:
        """The orchestrator that serves the group, or did so last."""
        return max(self._alive() or self._orchestrators, key=lambda it: it.latest)

    @property
    def standby(self) -> OrchestratorProcess | None:
        """An orchestrator that does not."""
        return next((it for it in self._alive() if it is not self.active), None)

    def _alive(self) -> list[OrchestratorProcess]:
        return [it for it in self._orchestrators if it.alive]

    # --------------------------------------------------------------------------------------------------- what is seen

    def look(self) -> None:
        """Reads what the orchestrators have logged since."""
        for orchestrator in self._orchestrators:
            for sign in orchestrator.look():
                if sign.word == "registered":
                    self._registered[sign.rank] = max(self._registered.get(sign.rank, (0.0, 0)), (sign.at, sign.pid))

    def forget(self) -> None:
        """Forgets the orchestrators that have ended, once all they said has been read."""
        self.look()
        self.ended += [it for it in self._orchestrators if not it.alive]
        self._orchestrators = self._alive()

    def signs(self, *words: Word, since: float = 0.0) -> list[Sign]:
        """What the orchestrators have told, in its order.

        Args:
            words: of these kinds.
            since: from this moment on.
        """
        told = (sign for it in self._orchestrators for sign in it.signs)
        return sorted((it for it in told if it.word in words and it.at >= since), key=lambda it: it.at)

    def pids(self) -> dict[int, int]:
        """The process of each rank that registered last."""
        return {rank: pid for rank, (_, pid) in self._registered.items()}

    def serves_since(self, since: float) -> float | None:
        """When it became ready, if it did since a moment and is so still."""
        ready = [it.latest for it in self._orchestrators if it.serves and it.latest >= since]
        return max(ready, default=None)

    def signal_ranks(self, ranks: Iterable[int], number: signal.Signals = signal.SIGKILL) -> None:
        """Sends ranks a signal.

        Raises:
            GroupError: one is gone already.
        """
        pids = self.pids()
        for rank in ranks:
            try:
                os.kill(pids[rank], number)
            except ProcessLookupError:
                raise GroupError(f"rank {rank} of {self.name} is gone before anything was done to it") from None

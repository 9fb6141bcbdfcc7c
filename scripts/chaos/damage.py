"""What each fault does to a site, and how to know that it is over."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable

from ...schemas.errors import GroupError
from .faults import Planned
from .replica import Replica
from .site import Site

__all__ = ["Damage"]

_END_SECONDS = 30.0


class Damage:
    """One fault, done to a site.

    Args:
        site: where.
        planned: what.
        patience: seconds that a group may take to serve again.
    """

    def __init__(self, site: Site, planned: Planned, patience: float) -> None:
        self.site = site
        self.planned = planned
        self.replica: Replica = site.replicas[planned.group]
        self.remarks: list[str] = []
        self._patience = patience
        self._keep_standby = site.plan.standby
        name = planned.fault.name
        self._do: Callable[[], Awaitable[None]] = getattr(self, "_" + name.removesuffix("-standby").replace("-", "_"))

    async def prepare(self) -> None:
        """What must be so before: to be done in peace."""
        for replica in self.site.replicas:
            replica.forget()
        if self.planned.fault.standby or self.planned.fault.name == "restart-orchestrator":
            await self.replica.stand_by()

    async def do(self) -> None:
        """The fault itself, and what a person would do about it at once.

        Raises:
            GroupError: it cannot be done.
        """
        await self._do()

    def serving_since(self, since: float) -> float | None:
        """When what the fault concerns was whole again, if it was since a moment and is so still."""
        name = self.planned.fault.name
        if name in ("kill-producer", "cut-producer"):
            opened = [moment for moment in self.site.producers[0].book.opened if moment >= since]
            return opened[-1] if opened else None
        if name == "kill-group":
            return since  # the others serve all the time
        concerned = self.site.replicas if name in ("restart-broker", "kill-broker") else [self.replica]
        moments = [replica.serves_since(since) for replica in concerned]
        known = [moment for moment in moments if moment is not None]
        return max(known) if len(known) == len(moments) else None

    def noticed(self, since: float) -> float | None:
        """The first sign of it that anybody gave, if it is not one of those that are told beforehand."""
        lost = self.site.producers[0].book.lost
        signs = self.replica.signs("ended", "taking over", "disconnected", since=since)
        moments = [*(sign.at for sign in signs), *(moment for moment in lost if moment >= since)]
        return min(moments, default=None)

    async def mend(self) -> None:
        """Afterwards: what is still broken is made whole, and there are as many processes as before."""
        name = self.planned.fault.name
        if name == "freeze-orchestrator-standby":
            await self._thaw()
        if name == "kill-group":
            await self.replica.start()
            await self._wait(lambda: self.replica.serves_since(self._gone_at) is not None, "the group that was killed")
        if self._keep_standby:
            await self.replica.stand_by()
        elif self.planned.fault.standby:
            await self.replica.stop_standby()

    async def _wait(self, condition: Callable[[], bool], what: str, seconds: float | None = None) -> None:
        await self.site.until(condition, what, self._patience if seconds is None else seconds)

    # -------------------------------------------------------------------------------------------------------- a rank

    async def _kill_rank(self) -> None:
        self.replica.signal_ranks(self.planned.ranks)

    _kill_two_ranks = _kill_rank

    async def _kill_all_ranks(self) -> None:
        self.replica.signal_ranks(range(self.site.plan.ranks))

    async def _kill_heir(self) -> None:
        (rank,) = self.planned.ranks
        before = self.replica.pids()[rank]
        self.replica.signal_ranks((rank,))
        await self._wait(lambda: self.replica.pids()[rank] != before, f"the heir of rank {rank}")
        self.replica.signal_ranks((rank,))

    async def _freeze_rank(self) -> None:
        self.replica.signal_ranks(self.planned.ranks, signal.SIGSTOP)

    async def _cut_rank(self) -> None:
        if self.replica.far is None or not self.replica.far.cut():
            raise GroupError("the last rank has no connection that could be cut")

    async def _silence_rank(self) -> None:
        far, ended = self.replica.far, len(self.replica.signs("ended"))
        if far is None:
            raise GroupError("the last rank has no connection that could fall silent")
        far.silence()
        try:
            await self._wait(lambda: len(self.replica.signs("ended")) > ended, "the silence to be noticed")
        finally:
            far.cut()
            far.resume()

    async def _kill_launcher(self) -> None:
        ranks, launcher = next(iter(self.replica.launchers.items()))
        launcher.signal(signal.SIGKILL)
        await launcher.ended(_END_SECONDS)
        await self._wait(lambda: not launcher.below(), "the end of a killed launcher's ranks", _END_SECONDS)
        await self.replica.start_launcher(ranks)

    async def _restart_agents(self) -> None:
        for ranks, launcher in list(self.replica.launchers.items()):
            await self.replica.stop(launcher)
            await self.replica.start_launcher(ranks)

    # ------------------------------------------------------------------------------------------------ the orchestrator

    async def _kill_orchestrator(self) -> None:
        active = self.replica.active
        active.signal(signal.SIGKILL)
        await active.ended(_END_SECONDS)
        if not self.planned.fault.standby:
            await self.replica.start_orchestrator()

    async def _cut_orchestrator(self) -> None:
        if self.replica.middle is None or not self.replica.middle.cut():
            raise GroupError("the orchestrator has no connection that could be cut")

    async def _freeze_orchestrator(self) -> None:
        self._frozen = self.replica.active
        self._frozen.signal(signal.SIGSTOP)

    async def _thaw(self) -> None:
        """The first orchestrator comes back from the dead, and finds that another has the group."""
        frozen = self._frozen
        known = len(frozen.signs)
        frozen.signal(signal.SIGCONT)
        await self._wait(
            lambda: any(sign.word == "standing by" for sign in frozen.signs[known:]), f"{frozen.name} to stand by"
        )

    async def _restart_orchestrator(self) -> None:
        await self.replica.stop(self.replica.active)

    # ---------------------------------------------------------------------------------------------- producers, broker

    async def _kill_producer(self) -> None:
        producer = self.site.producers[0]
        producer.process.signal(signal.SIGKILL)
        await producer.process.ended(_END_SECONDS)
        await self.site.start_producer(producer)

    async def _cut_producer(self) -> None:
        if self.site.middle is None or not self.site.middle.cut():
            raise GroupError("the producers have no connection that could be cut")

    async def _restart_broker(self) -> None:
        await self._end_broker(signal.SIGTERM)

    async def _kill_broker(self) -> None:
        await self._end_broker(signal.SIGKILL)

    async def _end_broker(self, number: signal.Signals) -> None:
        began = time.monotonic()
        await self.site.restart_broker(number)
        self.remarks.append(f"the broker was up again after {time.monotonic() - began:.2f} s")

    # --------------------------------------------------------------------------------------------------------- a group

    async def _kill_group(self) -> None:
        self._gone_at = time.time()
        for process in self.replica.processes:
            process.destroy()
        for process in self.replica.processes:
            await process.ended(_END_SECONDS)

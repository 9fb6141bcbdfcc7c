"""A whole chaos run: the servable, the site, the load, the faults, the last answers and the tally."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...engine.settings import Settings
from ...schemas.errors import OperatorError
from .dead import dead_letters
from .faults import Fault, Planned, Setting, each_once, schedule
from .outcome import Outcome, line_of
from .run import Run, Suffered
from .servable import Made, make_numpy, make_with_collectives
from .site import Plan, Site
from .tally import Tally

__all__ = ["Chaos", "Options"]

_PATIENCE_SECONDS = {"none": 60.0, "shm": 60.0, "mccl": 180.0}
_LAST_ANSWERS_SECONDS = 120.0
_NO_HOPE_SECONDS = 10.0
"""Likewise, where a fault was not survived."""

_SETTLE_SECONDS = 4.0
"""RabbitMQ 3.10 forgets a quorum queue that was declared less than so long before it was killed."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for.

    Attributes:
        faults: which.
        seconds: for so long a further fault may begin; None: each once.
        seed: decides which fault comes when.
        communication: "none" for graphs in numpy, else that of the example in MindSpore.
        ranks: of each group.
        groups: replicas of the servable.
        spares: spare processes of each launcher.
        standby: whether an orchestrator stands by all the time.
        in_flight: requests that are unanswered at once.
        peace: seconds between two faults, at most.
    """

    faults: Sequence[Fault]
    seconds: float | None
    seed: int
    communication: str
    ranks: int
    groups: int
    spares: int
    standby: bool
    in_flight: int
    peace: float

    def plans(self) -> Iterator[Planned]:
        """The faults in their order."""
        order = schedule if self.seconds is not None else each_once
        return order(self.seed, self.faults, Setting(self.ranks, self.groups))

    def as_dict(self) -> dict[str, Any]:
        """The same for a program."""
        return {**asdict(self), "faults": [fault.name for fault in self.faults]}


class Chaos:
    """One run.

    Args:
        options: see `Options`.
        settings: of all processes.
        folder: for everything.
        logs: for logs and journals.
        example: the folder of the matmul example.
        say: told what is being done.
        show: told each fault, in one line, when it is over.
    """

    def __init__(
        self,
        options: Options,
        settings: Settings,
        folder: Path,
        logs: Path,
        example: Path,
        *,
        say: Callable[[str], None],
        show: Callable[[str], None],
    ) -> None:
        self._options = options
        self._settings = settings
        self._folder = folder
        self._logs = logs
        self._example = example
        self._say = say
        self._show = show
        self._problems: list[str] = []
        self._dead: list[dict[str, str]] = []
        self._load = [round(os.getloadavg()[0], 2)]
        self.outcome: Outcome | None = None

    async def run(self) -> None:
        """Does it all; `outcome` is there afterwards.

        Raises:
            OperatorError: it cannot be started.
        """
        began, options = time.monotonic(), self._options
        plan = Plan(
            servable=await self._servable(),
            ranks=options.ranks,
            groups=options.groups,
            spares=options.spares,
            standby=options.standby,
            in_flight=options.in_flight,
            seed=options.seed,
            faults=options.faults,
            drain=self._settings.drain_timeout,
            folder=self._folder,
            logs=self._logs,
        )
        self._say("starting the broker, the orchestrators and the agents")
        async with Site(plan) as site:
            suffered = await self._damage(site)
            tally = Tally.of(site.books)
            answered = {asked.id for book in site.books for asked in book.asked.values() if asked.replies}
        problems = [f"{it['id']} was answered, and is a dead letter too" for it in self._dead if it["id"] in answered]
        machine = {"cores": os.cpu_count(), "load": self._load, "took": round(time.monotonic() - began, 1)}
        setting = {**options.as_dict(), **machine}
        self.outcome = Outcome(setting, suffered, tally, self._dead, [*self._problems, *problems])

    async def _servable(self) -> Made:
        options = self._options
        if options.communication == "none":
            return make_numpy(self._folder, options.ranks, options.seed)
        self._say("exporting the graphs")
        return await make_with_collectives(
            self._folder, self._example, options.ranks, options.communication, options.seed
        )

    async def _damage(self, site: Site) -> list[Suffered]:
        options = self._options
        run = Run(
            site,
            options.plans(),
            seconds=options.seconds,
            peace=options.peace,
            patience=_PATIENCE_SECONDS[options.communication],
            taken=self._settings.max_in_flight,
            told=lambda fault: self._show(line_of(fault)),
        )
        try:
            await site.start_producers()
            self._say(f"{options.in_flight} requests are in flight, and answers come")
            if any(fault.name == "kill-broker" for fault in options.faults):
                await asyncio.sleep(_SETTLE_SECONDS)
            await run.go()
            self._say("waiting for the last answers")
            over = any(fault.problem for fault in run.suffered)
            self._problems += await site.stop_producers(_LAST_ANSWERS_SECONDS if not over else _NO_HOPE_SECONDS)
            self._load.append(round(os.getloadavg()[0], 2))
            self._dead = await dead_letters(site.address)
            self._say("stopping")
            self._problems += await site.close()
        except OperatorError as error:
            self._problems.append(error.message)
        return run.suffered

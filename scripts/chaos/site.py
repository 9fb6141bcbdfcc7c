"""Everything of a chaos run: a private broker, the groups of the servable, and the producers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Self

from ...engine.address import BrokerAddress
from ...schemas.errors import GroupError, RankmqError
from ...workers.broker import PrivateBroker
from .faults import Fault
from .journal import Tail
from .process import Process
from .proxy import Proxy
from .raw_producer import Order as ProducerOrder
from .replica import Order, Replica
from .servable import Made
from .tally import Book

__all__ = ["Plan", "Producer", "Site"]

_LOOK_SECONDS = 0.05
"""Between two looks at logs and journals; what is told has its own moment."""

_BROKER_END_SECONDS = 30.0
_START_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be started.

    Attributes:
        servable: see `Made`.
        ranks: of each group.
        groups: how many groups of it.
        spares: of each launcher.
        standby: whether each group always has an orchestrator that stands by.
        in_flight: requests that are unanswered at once.
        seed: of the inputs.
        faults: that will be done; what they need goes through proxies.
        drain: seconds that a process may take to end in order.
        folder: for everything.
        logs: a folder for logs and journals.
    """

    servable: Made
    ranks: int
    groups: int
    spares: int
    standby: bool
    in_flight: int
    seed: int
    faults: Sequence[Fault]
    drain: float
    folder: Path
    logs: Path

    @property
    def ways(self) -> set[str]:
        """What goes through a proxy."""
        return {fault.way for fault in self.faults if fault.way}


class Producer:
    """A producer: the process that it is now, and its book."""

    def __init__(self, kind: str, order: ProducerOrder, log: Path) -> None:
        self.kind = kind
        self.order = order
        self.book = Book(order.name)
        self.tail = Tail(Path(order.journal))
        self.log = log
        self.process = Process(f"producer-{order.name}", log)

    def look(self) -> None:
        """Reads what it has written since."""
        for line in self.tail.lines():
            self.book.hear(json.loads(line))


class Site:
    """Runs within `async with`.

    Args:
        plan: see `Plan`.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.broker = PrivateBroker(plan.folder / "broker")
        self.replicas: list[Replica] = []
        self.producers: list[Producer] = []
        self.middle: Proxy | None = None
        self._proxies = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.broker.start)
            await self._start_groups()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        for producer in self.producers:
            producer.process.destroy()
        for replica in self.replicas:
            replica.destroy()
        self._proxies.close()
        await asyncio.to_thread(self.broker.stop)

    @property
    def address(self) -> BrokerAddress:
        """Where the broker is."""
        return BrokerAddress.parse(self.broker.url)

    def _proxy(self) -> Proxy:
        return self._proxies.enter_context(Proxy(self.address.host, self.address.port))

    async def _start_groups(self) -> None:
        plan = self.plan
        order = Order(plan.servable.home, plan.ranks, plan.logs, self._environment(), plan.drain)
        for number in range(plan.groups):
            replica = Replica(
                f"g{number}",
                order,
                self.address,
                self.until,
                middle=self._proxy() if "orchestrator" in plan.ways else None,
                far=self._proxy() if "rank" in plan.ways else None,
            )
            self.replicas.append(replica)
            await replica.start()
        await self.until(
            lambda: all(replica.serves_since(0) is not None for replica in self.replicas),
            "the groups to be ready",
            _START_SECONDS,
        )
        for replica in self.replicas if plan.standby else ():
            await replica.stand_by()

    def _environment(self) -> dict[str, str]:
        return {
            "RANKMQ_STATE_DIR": str(self.plan.folder / "state"),
            "RANKMQ_LOG_FORMAT": "json",
            "RANKMQ_LOG_LEVEL": "info",
            "RANKMQ_SPARES": str(self.plan.spares),
            "RANKMQ_MAX_RESTARTS": os.environ.get("RANKMQ_MAX_RESTARTS", "10000"),
        }

    # ------------------------------------------------------------------------------------------------------ producers

    async def start_producers(self) -> None:
        """Has the requests begin: one producer that speaks AMQP itself, and one that uses the library."""
        plan = self.plan
        library = plan.in_flight // 4
        if "producer" in plan.ways:
            self.middle = self._proxy()
        for kind, in_flight in (("raw", plan.in_flight - library), ("client", library)):
            if not in_flight:
                continue
            order = ProducerOrder(
                name=kind,
                journal=str(plan.logs / f"{kind}.journal"),
                weights=str(plan.servable.weights),
                rows=plan.servable.rows,
                seed=plan.seed + len(self.producers),
                in_flight=in_flight,
            )
            producer = Producer(kind, order, plan.logs / f"producer-{kind}.log")
            self.producers.append(producer)
            await self.start_producer(producer)
        await self.until(lambda: self.answered >= plan.in_flight, "the first answers", _START_SECONDS)

    async def start_producer(self, producer: Producer) -> None:
        """Starts the process of a producer, or the next one."""
        url, proxy = self.address.url(), self.middle
        if proxy is not None:
            url = url.replace(f":{self.address.port}/", f":{proxy.port}/")
        producer.process = Process(f"producer-{producer.kind}", producer.log)
        order = json.dumps(asdict(producer.order))
        await producer.process.start(producer.kind, order, RANKMQ_BROKER_URL=url, **self._environment())

    async def stop_producers(self, seconds: float) -> list[str]:
        """Has them ask nothing more, and waits until all is answered; gives what went wrong."""
        wrong = []
        for producer in self.producers:
            if producer.process.alive:
                producer.process.signal(signal.SIGTERM)
        until = time.monotonic() + seconds
        for producer in self.producers:
            try:
                code = await producer.process.ended(max(1.0, until - time.monotonic()))
            except GroupError as error:
                wrong.append(f"{error.message}: {len(producer.book.unanswered)} requests have no answer")
                producer.process.destroy()
            else:
                wrong += [f"{producer.process.name} ended with {code}; its log is {producer.log}"] if code else []
        self.look()
        return wrong

    @property
    def books(self) -> list[Book]:
        """What the producers know."""
        return [producer.book for producer in self.producers]

    @property
    def answered(self) -> int:
        """How many requests have an answer."""
        return sum(len(book.answered_at) for book in self.books)

    def answers_since(self, since: float) -> Iterator[float]:
        """The moments of the answers since a moment, the newest first for each producer."""
        for book in self.books:
            yield from takewhile(lambda at: at >= since, reversed(book.answered_at))

    def unanswered(self, before: float) -> list[str]:
        """The requests that were published before a moment and have no answer; their ids."""
        return [it.id for book in self.books for it in book.unanswered.values() if it.sent < before]

    # --------------------------------------------------------------------------------------------------------- broker

    async def restart_broker(self, number: signal.Signals) -> None:
        """Ends the node by a signal, and starts it again.

        Raises:
            GroupError: it does not end, or comes back elsewhere.
            BrokerUnavailable: it does not come up.
        """
        before = self.broker.url
        os.kill(self.broker.pid, number)
        if not await asyncio.to_thread(self.broker.wait, _BROKER_END_SECONDS):
            raise GroupError(f"the broker does not end within {_BROKER_END_SECONDS:g} s")
        await asyncio.to_thread(self.broker.start)
        if self.broker.url != before:
            raise GroupError("the port of the broker was taken when it was started again")

    # -------------------------------------------------------------------------------------------------------- waiting

    def look(self) -> None:
        """Reads what all have told since."""
        for replica in self.replicas:
            replica.look()
        for producer in self.producers:
            producer.look()

    async def until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Waits for something that shows in logs and journals, which are looked at again and again.

        Raises:
            GroupError: it is not so within `seconds`, or a process has ended that nobody has ended.
        """
        deadline = time.monotonic() + seconds
        while True:
            self.look()
            if condition():
                return
            self._check()
            if time.monotonic() > deadline:
                raise GroupError(f"waited {seconds:g} s for {what}")
            await asyncio.sleep(_LOOK_SECONDS)

    def _check(self) -> None:
        processes = [process for replica in self.replicas for process in replica.processes]
        for process in (*processes, *(producer.process for producer in self.producers)):
            if process.code is not None and not process.expected:
                process.expected = True
                raise GroupError(f"{process.name} ended by itself, with {process.code}; its log is {process.log}")

    async def close(self) -> list[str]:
        """Ends the groups in order; gives what went wrong."""
        wrong: list[str] = []
        for replica in self.replicas:
            try:
                wrong += await replica.close()
            except RankmqError as error:
                wrong.append(error.message)
        return wrong

"""What the runs of requests ask of the engine: calls of subgraphs, which go to the drivers, and of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..schemas.errors import GroupUnavailable, InvalidInput
from .catalog import Catalog
from .driver import GroupDriver
from .loop import Loop
from .run_ports import RunContext, RunPorts
from .runs import MethodRun
from .servable import Pipeline, RepeatStage
from .slots import Session
from .ticket import Done, RowResult

__all__ = ["CallPorts", "Calls"]


class CallPorts(Protocol):
    """How work reaches the threads and the loop. All but `on_loop` are called on the loop."""

    def in_pool(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Runs `work` on a thread for the functions of methods, then `done` with its result on the loop."""

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        """Runs `work` on the loop, so many seconds from now."""

    def on_loop(self, work: Callable[[], None]) -> None:
        """Runs `work` on the loop; may be called from any thread."""


class Calls(RunPorts):
    """The engine, as runs see it.

    Args:
        catalog: what is served.
        drivers: by servable name and version; a servable without models has none.
        ports: to threads and loop.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        catalog: Catalog,
        drivers: Mapping[tuple[str, int], GroupDriver],
        ports: CallPorts,
        clock: Callable[[], float],
    ) -> None:
        self._catalog = catalog
        self._drivers = drivers
        self._ports = ports
        self._clock = clock

    def call_subgraph(self, context: RunContext, subgraph: int, rows: Sequence[tuple[Any, ...]], done: Done) -> None:
        """Runs a subgraph of the context's servable over rows."""
        self._call(context, subgraph, rows, done)

    def repeat_subgraph(
        self,
        context: RunContext,
        stage: RepeatStage,
        rows: Sequence[tuple[Any, ...]],
        turns: Sequence[int],
        done: Done,
    ) -> None:
        """Runs a slice of a loop over rows, of each as many turns at most."""
        self._call(context, stage.subgraph, rows, done, stage.loop, turns)

    def _call(
        self,
        context: RunContext,
        subgraph: int,
        rows: Sequence[tuple[Any, ...]],
        done: Done,
        loop: Loop | None = None,
        turns: Sequence[int] = (),
    ) -> None:
        driver = self._drivers.get((context.servable.name, context.servable.version))
        if driver is None:
            error = GroupUnavailable(f"servable {context.servable.name} has no ranks")
            done([error] * len(rows))
            return
        began = self._clock()

        def finished(results: list[RowResult]) -> None:
            context.tally.calls += 1
            context.tally.seconds += self._clock() - began
            done(results)

        def run(session: Session | None) -> None:
            if context.life.over is not None:
                done([context.life.over] * len(rows))
                return
            driver.call(
                subgraph,
                rows,
                finished,
                lenient=context.lenient,
                requests=(context.request,),
                session=session,
                lane=context.lane,
                life=context.life,
                alone=context.alone,
                loop=loop,
                turns=turns,
                came=context.came,
            )

        def given(session: Session | None) -> None:
            context.tally.for_slots -= 1
            if session is not None and context.tally.slot_at is None:
                context.tally.slot_at = self._clock()
            run(session)

        def begin() -> None:
            sessions = context.sessions
            if sessions is None or context.life.over is not None:
                run(None)
            elif driver.takes_slot(subgraph):
                if sessions.held(driver) is None:  # what cannot be run does not wait for a slot
                    refused = [it for it in driver.refusals(subgraph, rows, lenient=context.lenient) if it is not None]
                    if len(refused) == len(rows):
                        done([*refused])
                        return
                context.tally.for_slots += 1
                sessions.use(driver, given, context.life)
            else:  # what the instance holds is lost with the epoch, whichever of its calls is under way then
                run(sessions.held(driver))

        if driver.servable.slots:
            driver.formed(begin, context.life)
        else:
            run(None)

    def call_method(
        self,
        context: RunContext,
        servable: str,
        version: int,
        method: str,
        row: tuple[Any, ...],
        done: Done,
        *,
        ports: RunPorts,
    ) -> None:
        """Runs a method of any servable on one row, by means of `ports`."""
        found, entry = self._catalog.resolve(servable, version, method)
        if isinstance(entry, Pipeline):
            raise InvalidInput(f"{servable}.{method} is a pipeline: a pipeline can call methods only")
        if len(row) != len(entry.input_names):
            raise InvalidInput(f"{servable}.{method} takes {', '.join(entry.input_names)}: got {len(row)} values")
        inner = replace(context, servable=found)
        MethodRun(ports, inner, entry, [row], done).start()

    def in_pool(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Runs `work` on a thread, then `done` with its result on the loop."""
        self._ports.in_pool(work, done)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        """Runs `work` on the loop, so many seconds from now."""
        self._ports.later(seconds, work)

    def on_loop(self, work: Callable[[], None]) -> None:
        """Runs `work` on the loop; may be called from any thread."""
        self._ports.on_loop(work)

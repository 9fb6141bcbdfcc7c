"""The way from a thread that runs a servable's own Python back into the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from ..schemas.errors import InternalError, RankmqError, StageFailed
from .caller import GivenUp
from .run_ports import RunContext, RunPorts
from .servable import RepeatStage
from .sizes import check_row
from .ticket import Done

__all__ = ["ThreadCaller"]

_T = TypeVar("_T")

_MOST_REFUSED = 8
"""How many calls are answered with why the request is over; who goes on then does not heed errors."""


class ThreadCaller:
    """The way from a thread that runs a servable's Python back into the engine; each call blocks that thread.

    Args:
        ports: how it reaches the engine.
        context: the request's.
        in_pool: whether the thread is one of the pool for functions. What it waits for must not need another of that
            pool, which may all be waiting so: functions of the methods that it calls run on itself.
        several: whether it runs several instances at a time, of which none can be told apart.
    """

    def __init__(self, ports: RunPorts, context: RunContext, *, in_pool: bool = False, several: bool = False) -> None:
        self._ports = ports
        self._context = context
        self._in_pool = in_pool
        self._several = several
        self._refused = 0

    def of(self, row: int) -> ThreadCaller:
        """The same for one of the rows of its context."""
        if len(self._context.parts) <= 1:
            return self
        own = replace(self._context, parts=self._context.parts[row : row + 1])
        return ThreadCaller(self._ports, own, in_pool=self._in_pool)

    def of_several(self) -> ThreadCaller:
        """The same for what runs several rows at a time."""
        own = replace(self._context, parts=()) if self._context.parts else self._context
        return ThreadCaller(self._ports, own, in_pool=self._in_pool, several=True)

    def send_part(self, outputs: Mapping[str, Any]) -> None:
        """Tells what there is of the instance's answer so far, where that was asked for."""
        if self._several:
            raise StageFailed("this stage takes several instances at a time, and a part is one instance's")
        if self._context.parts:
            (sender,) = self._context.parts
            try:
                sender.tell(outputs, self._ports.on_loop)
            except RankmqError as error:  # not the sender's fault
                raise StageFailed(error.message) from error

    def call_method(self, servable: str, version: int, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Runs a method on one instance; raises what it met."""
        row = self._row(args)

        def start(done: Done, help_out: Callable[[Callable[[], None]], None]) -> None:
            ports = _OwnThread(self._ports, help_out) if self._in_pool else self._ports
            self._ports.call_method(self._context, servable, version, method, row, done, ports=ports)

        return self._wait(start)

    def call_subgraph(self, subgraph: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Runs a subgraph on one instance; raises what it met."""
        row = self._row(args)
        return self._wait(lambda done, _: self._ports.call_subgraph(self._context, subgraph, [row], done))

    def _row(self, args: tuple[Any, ...]) -> tuple[np.ndarray[Any, Any], ...]:
        row = tuple(np.asarray(value) for value in args)
        check_row(row, self._context.most_given, "a call is given")
        return row

    def _wait(self, start: Callable[[Done, Callable[[Callable[[], None]], None]], None]) -> tuple[Any, ...]:
        over = self._context.life.over or self._context.waits.closed
        if over is not None:
            self._refused += 1
            if self._refused > _MOST_REFUSED:
                raise GivenUp(over)
        with self._context.waits.one() as wait:

            def begin() -> None:
                try:
                    start(lambda results: wait.end(results[0]), wait.help_out)
                except RankmqError as error:
                    wait.end(error)
                except BaseException as error:
                    wait.end(InternalError(f"a defect: {type(error).__name__}"))
                    raise

            self._ports.on_loop(begin)
            result = wait.result()
        if isinstance(result, RankmqError):
            try:
                raise result.kept()  # it may be raised again and again, and would keep the frames of each time
            finally:
                del result  # which is in this frame, which the error holds
        return result


class _OwnThread(RunPorts):
    """Ports for what a thread of the pool waits for: it runs the functions itself."""

    def __init__(self, ports: RunPorts, help_out: Callable[[Callable[[], None]], None]) -> None:
        self._ports = ports
        self._help_out = help_out

    def call_subgraph(self, context: RunContext, subgraph: int, rows: Sequence[tuple[Any, ...]], done: Done) -> None:
        self._ports.call_subgraph(context, subgraph, rows, done)

    def repeat_subgraph(
        self,
        context: RunContext,
        stage: RepeatStage,
        rows: Sequence[tuple[Any, ...]],
        turns: Sequence[int],
        done: Done,
    ) -> None:
        self._ports.repeat_subgraph(context, stage, rows, turns, done)

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
        self._ports.call_method(context, servable, version, method, row, done, ports=ports)

    def in_pool(self, work: Callable[[], _T], done: Callable[[_T], None]) -> None:
        def run() -> None:
            result = work()
            self._ports.on_loop(lambda: done(result))

        self._help_out(run)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        self._ports.later(seconds, work)

    def on_loop(self, work: Callable[[], None]) -> None:
        self._ports.on_loop(work)

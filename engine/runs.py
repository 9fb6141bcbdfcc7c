"""Methods under way: each walks its stages, and asks the engine for what it cannot do itself.

A method is data, so its run needs no thread: subgraph calls go to the group's driver, Python functions to a pool, and
the run goes on when their results come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..schemas.errors import RankmqError, StageFailed, TemporaryFailure
from . import retry
from .functions import FunctionRun
from .previews import Preview
from .repeats import RepeatRun
from .run_ports import RunContext, RunPorts
from .servable import Constant, InputRef, Method, Ref, RepeatStage, StageRef, SubgraphStage
from .stage_call import StageCall
from .stage_process import StageAddress
from .thread_caller import ThreadCaller
from .ticket import Done, RowResult

__all__ = ["MethodRun"]

_PIECE_SECONDS = 0.05
"""About how long a function has its thread before others get it; a row that takes longer is not interrupted."""

_PATIENCE_SECONDS = 1.0
"""How long a function in a process may go on once nobody waits for it."""


class MethodRun:
    """One method over the rows of a request, stage by stage; a row that fails leaves, the others go on.

    Args:
        ports: how it reaches the engine.
        context: the request's.
        method: what to run.
        rows: per row the method's inputs, in the order of its input names.
        done: called on the loop with one result or error per row.
        came: called with the outputs of each row that has them before the others do: where the last stage is a call.
    """

    def __init__(
        self,
        ports: RunPorts,
        context: RunContext,
        method: Method,
        rows: Sequence[tuple[Any, ...]],
        done: Done,
        came: Callable[[tuple[np.ndarray[Any, Any], ...]], object] | None = None,
    ) -> None:
        self._ports = ports
        self._context = context
        self._method = method
        self._rows = rows
        self._done = done
        self._came = came
        self._values: list[dict[int, tuple[Any, ...]]] = [{} for _ in rows]
        self._errors: dict[int, RankmqError] = {}

    def start(self) -> None:
        """Begins with the first stage."""
        self._advance(0)

    def _advance(self, number: int) -> None:
        alive = [row for row in range(len(self._rows)) if row not in self._errors]
        if not alive or number == len(self._method.stages):
            self._finish()
        else:
            self._run_stage(number, alive, 1)

    def _run_stage(self, number: int, rows: Sequence[int], attempt: int) -> None:
        """Runs one stage over rows; those that fail for a reason that passes, once more after a pause."""
        stage, over = self._method.stages[number], self._context.life.over
        if over is not None:
            self._errors.update(dict.fromkeys(rows, over))
            self._advance(number + 1)
            return
        arguments = [tuple(self._value(row, ref) for ref in stage.inputs) for row in rows]

        def done(results: list[RowResult]) -> None:
            again: list[int] = []
            pause = 0.0
            for row, result in zip(rows, results, strict=True):
                if not isinstance(result, RankmqError):
                    if len(result) != stage.outputs_count:
                        result = StageFailed(
                            f"{stage.where}: the stage has {len(result)} outputs"
                            f" where {stage.outputs_count} are declared"
                        )
                    else:
                        self._values[row][number] = result
                        continue
                if isinstance(result, TemporaryFailure):
                    pause = retry.pause_before(result, attempt) or 0.0
                    if attempt < self._context.max_attempts:
                        again.append(row)
                        continue
                    result = retry.given_up(result, attempt)
                self._errors[row] = result
            if again:
                self._ports.later(pause, lambda: self._run_stage(number, again, attempt + 1))
            else:
                self._advance(number + 1)

        if isinstance(stage, SubgraphStage):
            own = self._context
            if self._came is not None and number == len(self._method.stages) - 1:
                own = replace(own, came=partial(self._row_came, rows, number))
            self._ports.call_subgraph(own, stage.subgraph, arguments, done)
        elif isinstance(stage, RepeatStage):
            times = [self._value(row, stage.times) for row in rows]
            previews = self._previews(stage, rows)
            RepeatRun(self._ports, self._context, stage, arguments, times, done, previews).start()
        else:
            function, own = stage, self._context
            if own.parts:
                own = replace(own, parts=tuple(own.parts[row] for row in rows))
            caller, processes = ThreadCaller(self._ports, own, in_pool=True), own.processes
            if processes is None:
                self._in_pieces(FunctionRun(function, arguments, caller, lambda: own.life.over, own.most_given), done)
            else:
                address = StageAddress(own.servable.name, own.servable.version, self._method.name, number)
                alone = 1 < attempt == own.max_attempts
                run = partial(processes.run, address, function, arguments, caller, alone=alone, most=own.most_given)
                self._in_process(run, done)

    def _in_pieces(self, run: FunctionRun, done: Done) -> None:
        """Runs a stage's function, behind whatever else waits for a thread after each piece."""

        def took(results: list[RowResult] | None) -> None:
            if results is None:
                self._in_pieces(run, done)
            else:
                done(results)

        self._ports.in_pool(partial(run.run, _PIECE_SECONDS), took)

    def _row_came(self, rows: Sequence[int], number: int, place: int, result: tuple[Any, ...]) -> None:
        """A row has what the last stage gives, and so all of its outputs."""
        if self._came is not None and len(result) == self._method.stages[number].outputs_count:
            self._values[rows[place]][number] = result
            self._came(self._outputs(rows[place]))

    def _in_process(self, run: Callable[[StageCall], list[RowResult]], done: Done) -> None:
        """Runs a stage's function where it can be ended, should its request be over before."""
        call, life = StageCall(), self._context.life

        def stop(_: RankmqError) -> None:
            call.give_up()
            # It may be as good as done, and a new process has to load all servables.
            self._ports.later(_PATIENCE_SECONDS, call.end)

        def ended(results: list[RowResult]) -> None:
            life.forget(stop)
            done(results)

        life.watch(stop)
        self._ports.in_pool(lambda: run(call), ended)

    def _previews(self, stage: RepeatStage, rows: Sequence[int]) -> list[Preview]:
        if stage.stream is None or not self._context.parts:
            return []
        return [
            Preview(
                self._ports, stage, [self._value(row, ref) for ref in stage.stream_inputs], self._context.parts[row]
            )
            for row in rows
        ]

    def _value(self, row: int, ref: Ref) -> Any:
        match ref:
            case InputRef():
                return self._rows[row][ref.index]
            case StageRef():
                return self._values[row][ref.stage][ref.output]
            case Constant():
                return ref.value

    def _outputs(self, row: int) -> tuple[np.ndarray[Any, Any], ...]:
        return tuple(np.asarray(self._value(row, ref)) for ref in self._method.outputs)

    def _finish(self) -> None:
        self._done([self._errors.get(row) or self._outputs(row) for row in range(len(self._rows))])

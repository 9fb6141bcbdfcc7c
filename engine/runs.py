"""Methods and pipelines under way: each walks its stages, and asks the engine for what it cannot do itself.

A method is data, so its run needs no thread: subgraph calls go to the group's driver, Python functions to a pool, and
the run goes on when their results come. A pipeline is plain Python and holds a thread of its own while it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ..schemas.errors import InternalError, RankmqError, StageFailed, TemporaryFailure
from ..schemas.tensors import dtype_name, from_array
from . import retry
from .parts import outputs_of_part
from .previews import Preview
from .repeats import RepeatRun
from .run_ports import RunContext, RunPorts, Tally
from .servable import (
    Constant,
    FunctionStage,
    InputRef,
    Method,
    Pipeline,
    Ref,
    RepeatStage,
    StageRef,
    SubgraphStage,
    outputs_of,
    use_caller,
)
from .ticket import Done, RowResult

__all__ = ["MethodRun", "RunContext", "RunPorts", "Tally", "ThreadCaller", "run_function", "run_pipeline"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")


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
            raise StageFailed("send_part: this stage takes several instances at a time, and a part is one instance's")
        if self._context.parts:
            (send,), part = self._context.parts, outputs_of_part(outputs)
            self._ports.on_loop(lambda: send(part))

    def call_method(self, servable: str, version: int, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Runs a method on one instance; raises what it met."""
        row = tuple(np.asarray(value) for value in args)

        def start(done: Done, help_out: Callable[[Callable[[], None]], None]) -> None:
            ports = _OwnThread(self._ports, help_out) if self._in_pool else self._ports
            self._ports.call_method(self._context, servable, version, method, row, done, ports=ports)

        return self._wait(start)

    def call_subgraph(self, subgraph: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Runs a subgraph on one instance; raises what it met."""
        row = tuple(np.asarray(value) for value in args)
        return self._wait(lambda done, _: self._ports.call_subgraph(self._context, subgraph, [row], done))

    def _wait(self, start: Callable[[Done, Callable[[Callable[[], None]], None]], None]) -> tuple[Any, ...]:
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
            raise result
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


class MethodRun:
    """One method over the rows of a request, stage by stage; a row that fails leaves, the others go on.

    Args:
        ports: how it reaches the engine.
        context: the request's.
        method: what to run.
        rows: per row the method's inputs, in the order of its input names.
        done: called on the loop with one result or error per row.
    """

    def __init__(
        self, ports: RunPorts, context: RunContext, method: Method, rows: Sequence[tuple[Any, ...]], done: Done
    ) -> None:
        self._ports = ports
        self._context = context
        self._method = method
        self._rows = rows
        self._done = done
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
            self._ports.call_subgraph(self._context, stage.subgraph, arguments, done)
        elif isinstance(stage, RepeatStage):
            times = [self._value(row, stage.times) for row in rows]
            previews = self._previews(stage, rows)
            RepeatRun(self._ports, self._context, stage, arguments, times, done, previews).start()
        else:
            function, own = stage, self._context
            if own.parts:
                own = replace(own, parts=tuple(own.parts[row] for row in rows))
            caller = ThreadCaller(self._ports, own, in_pool=True)
            self._ports.in_pool(lambda: run_function(function, arguments, caller), done)

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

    def _finish(self) -> None:
        self._done(
            [
                self._errors.get(row) or tuple(np.asarray(self._value(row, ref)) for ref in self._method.outputs)
                for row in range(len(self._rows))
            ]
        )


def run_function(stage: FunctionStage, rows: Sequence[tuple[Any, ...]], caller: ThreadCaller) -> list[RowResult]:
    """Runs a function stage over rows; what the function raises becomes that row's `StageFailed`."""
    if stage.batch_size is not None:
        size = stage.batch_size or len(rows)
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        caller = caller.of_several()
        return [result for batch in batches for result in _run_batch(stage, batch, caller)]
    return [
        _guarded(f"stage {stage.name}", partial(_run_row, stage, row), caller.of(place))
        for place, row in enumerate(rows)
    ]


def _run_row(stage: FunctionStage, row: tuple[Any, ...]) -> tuple[Any, ...]:
    return _outputs(stage.function(*row), stage.outputs_count, f"stage {stage.name}")


def _run_batch(stage: FunctionStage, rows: Sequence[tuple[Any, ...]], caller: ThreadCaller) -> list[RowResult]:
    what = f"stage {stage.name}"

    def work() -> list[Any]:
        results = list(stage.function(list(rows)))
        if len(results) != len(rows):
            raise StageFailed(f"{what} returned {len(results)} results for {len(rows)} instances")
        return results

    returned = _guarded(what, work, caller)
    if isinstance(returned, RankmqError):
        return [returned] * len(rows)
    return [_guarded(what, partial(_outputs, value, stage.outputs_count, what), caller) for value in returned]


def run_pipeline(pipeline: Pipeline, row: tuple[Any, ...], caller: ThreadCaller) -> RowResult:
    """Runs a pipeline function on one instance; an error of a call that it did not catch is its own error."""
    what = f"pipeline {pipeline.name}"
    return _guarded(what, lambda: _outputs(pipeline.function(*row), len(pipeline.output_names), what), caller)


def _outputs(value: Any, count: int, what: str) -> tuple[Any, ...]:
    return tuple(_array(output, what) for output in outputs_of(value, count, what))


def _array(value: Any, what: str) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    try:
        dtype_name(array.dtype)
        if array.dtype == object:
            from_array(array)  # which looks at what is in it
    except RankmqError as error:
        raise StageFailed(f"{what} returned {type(value).__name__}: {error.message}") from error
    return array


def _guarded(what: str, work: Callable[[], _T], caller: ThreadCaller) -> _T | RankmqError:
    """Runs the servable's Python, which may raise anything at all."""
    try:
        with use_caller(caller):
            return work()
    except RankmqError as error:
        return error
    except Exception as error:  # foreign code
        log.info("%s raised", what, exc_info=True)
        return StageFailed(f"{what} raised {type(error).__name__}: {_text(error)}"[:500])
    except BaseException as error:  # even sys.exit() in a servable must not end a thread of ours
        log.error("%s raised", what, exc_info=True)
        return InternalError(f"{what} ended with {type(error).__name__}")


def _text(error: Exception) -> str:
    try:
        return " ".join(str(error).split())
    except Exception:  # noqa: BLE001  # of foreign code that cannot even say what is wrong
        return "(without words)"

"""A servable's own Python, run: functions of methods over rows, pipelines over one; whatever they raise is a result."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from ..schemas.errors import InternalError, RankmqError, StageFailed
from ..schemas.tensors import dtype_name, from_array
from .caller import Caller, GivenUp
from .servable import FunctionStage, Pipeline, outputs_of, use_caller
from .ticket import RowResult

__all__ = ["FunctionCaller", "FunctionRun", "run_function", "run_pipeline"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class FunctionCaller(Caller, Protocol):
    """The way back into the engine for functions that run over several rows."""

    def of(self, row: int) -> Caller:
        """The same for one of the rows."""

    def of_several(self) -> Caller:
        """The same for what takes several rows at a time."""


class FunctionRun:
    """A function stage over rows, in pieces: between them others get the thread. Used by one thread at a time.

    Args:
        stage: the stage.
        rows: per row the function's inputs.
        caller: the way back into the engine.
        over: why nobody wants the results any more; None while somebody does. May be asked on any thread.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stage: FunctionStage,
        rows: Sequence[tuple[Any, ...]],
        caller: FunctionCaller,
        over: Callable[[], RankmqError | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._rows = rows
        self._caller = caller
        self._over = over
        self._clock = clock
        self._results: list[RowResult] = []

    def run(self, seconds: float = math.inf) -> list[RowResult] | None:
        """Runs what is left, until that has taken so long; what the function raises becomes its row's `StageFailed`.

        Returns:
            One result or error per row, in order; None where rows are left.
        """
        stage, rows, results = self._stage, self._rows, self._results
        until = self._clock() + seconds
        while len(results) < len(rows):
            over, place = self._over(), len(results)
            if over is not None:
                results += [over] * (len(rows) - place)
            elif stage.batch_size is None:
                work = partial(_run_row, stage, rows[place])
                results.append(_guarded(f"stage {stage.name}", work, self._caller.of(place)))
            else:
                batch = rows[place : place + (stage.batch_size or len(rows))]
                results += _run_batch(stage, batch, self._caller.of_several())
            if self._clock() >= until and len(results) < len(rows):
                return None
        return results


def run_function(stage: FunctionStage, rows: Sequence[tuple[Any, ...]], caller: FunctionCaller) -> list[RowResult]:
    """Runs a function stage over rows in one piece; see `FunctionRun`."""
    return FunctionRun(stage, rows, caller).run() or []


def _run_row(stage: FunctionStage, row: tuple[Any, ...]) -> tuple[Any, ...]:
    return _outputs(stage.function(*row), stage.outputs_count, f"stage {stage.name}")


def _run_batch(stage: FunctionStage, rows: Sequence[tuple[Any, ...]], caller: Caller) -> list[RowResult]:
    what = f"stage {stage.name}"

    def work() -> list[Any]:
        results = list(itertools.islice(stage.function(list(rows)), len(rows) + 1))  # it may yield for ever
        if len(results) != len(rows):
            found = f"more than {len(rows)}" if len(results) > len(rows) else len(results)
            raise StageFailed(f"{what} returned {found} results for {len(rows)} instances")
        return results

    returned = _guarded(what, work, caller)
    if isinstance(returned, RankmqError):
        return [returned] * len(rows)
    return [_guarded(what, partial(_outputs, value, stage.outputs_count, what), caller) for value in returned]


def run_pipeline(pipeline: Pipeline, row: tuple[Any, ...], caller: Caller) -> RowResult:
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


def _guarded(what: str, work: Callable[[], _T], caller: Caller) -> _T | RankmqError:
    """Runs the servable's Python, which may raise anything at all."""
    try:
        with use_caller(caller):
            return work()
    except RankmqError as error:
        return error.kept()  # without the frames, which hold the rows
    except GivenUp as given_up:
        return given_up.reason
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

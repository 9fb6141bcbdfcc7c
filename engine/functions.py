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
from .sizes import check_row
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
        most: bytes that a row may be given, else it fails with `LimitExceeded`; None: any number.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stage: FunctionStage,
        rows: Sequence[tuple[Any, ...]],
        caller: FunctionCaller,
        over: Callable[[], RankmqError | None] = lambda: None,
        most: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._rows = rows
        self._caller = caller
        self._over = over
        self._most = most
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
                work = partial(_run_row, stage, rows[place], self._most)
                results.append(_guarded(f"stage {stage.name}", work, self._caller.of(place)))
            else:
                batch = rows[place : place + (stage.batch_size or len(rows))]
                results += _run_batch(stage, batch, self._caller.of_several(), self._most)
            if self._clock() >= until and len(results) < len(rows):
                return None
        return results


def run_function(
    stage: FunctionStage, rows: Sequence[tuple[Any, ...]], caller: FunctionCaller, most: int | None = None
) -> list[RowResult]:
    """Runs a function stage over rows in one piece; see `FunctionRun`."""
    return FunctionRun(stage, rows, caller, most=most).run() or []


def _run_row(stage: FunctionStage, row: tuple[Any, ...], most: int | None) -> tuple[Any, ...]:
    return _outputs(stage.function(*row), stage.outputs_count, f"stage {stage.name}", most)


def _run_batch(
    stage: FunctionStage, rows: Sequence[tuple[Any, ...]], caller: Caller, most: int | None
) -> list[RowResult]:
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
    return [_guarded(what, partial(_outputs, value, stage.outputs_count, what, most), caller) for value in returned]


def run_pipeline(pipeline: Pipeline, row: tuple[Any, ...], caller: Caller, most: int | None = None) -> RowResult:
    """Runs a pipeline function on one instance; an error of a call that it did not catch is its own error.

    Args:
        pipeline: the pipeline.
        row: its inputs.
        caller: the way back into the engine.
        most: bytes that it may return, else it fails with `LimitExceeded`; None: any number.
    """
    what = f"pipeline {pipeline.name}"
    return _guarded(what, lambda: _outputs(pipeline.function(*row), len(pipeline.output_names), what, most), caller)


def _outputs(value: Any, count: int, what: str, most: int | None) -> tuple[Any, ...]:
    values = outputs_of(value, count, what)
    arrays = tuple(map(np.asarray, values))
    # Also of what goes no further than to the next function: one bound for all is easy to know, and what is larger
    # would meet the end of our memory before long.
    check_row(arrays, most, f"{what} returned")
    for given, array in zip(values, arrays, strict=True):
        _check_dtype(array, f"{what} returned {type(given).__name__}")
    return arrays


def _check_dtype(array: np.ndarray[Any, Any], what: str) -> None:
    try:
        dtype_name(array.dtype)
        if array.dtype == object:
            from_array(array)  # which looks at what is in it
    except RankmqError as error:
        raise StageFailed(f"{what}: {error.message}") from error


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

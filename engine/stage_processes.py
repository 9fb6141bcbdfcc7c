"""Processes for the Python functions of methods, where those are heavy: threads would share one interpreter's lock.

Each process loads the servables' configurations for itself and runs a stage's function over rows that it is sent. A
function that turns to the engine while it runs (`PipelineServable.run`, `Model.call`) cannot do so from there: when
one is seen to, it goes back to the threads for good.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..schemas.errors import RankmqError, ServableError, StageFailed, TemporaryFailure, from_wire
from . import logs
from .functions import FunctionCaller, run_function
from .loader import load_servable
from .servable import FunctionStage, Servable
from .short_sockets import keep_sockets_short
from .ticket import RowResult

__all__ = ["StageAddress", "StageProcesses"]

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_LONGEST_SECONDS = 3600.0

_Sent = tuple[Any, ...]
"""What a row gave; or None, with the code and message of its error."""


@dataclass(frozen=True, slots=True)
class StageAddress:
    """Where a function stage is found.

    Attributes:
        servable: the servable's name.
        version: its version.
        method: the method's name.
        number: the stage's place in it, from 0.
    """

    servable: str
    version: int
    method: str
    number: int


class StageProcesses:
    """A fixed number of processes; those that end are replaced.

    Args:
        count: how many.
        servables: whose functions they run.
        level: of their logs.
    """

    def __init__(self, count: int, servables: Iterable[Servable], level: str = "info") -> None:
        self.count = count
        self._given = [(str(it.directory.parent), it.name, it.version) for it in servables]
        self._level = level
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._closed = False
        self._here: set[StageAddress] = set()

    def run(
        self, address: StageAddress, stage: FunctionStage, rows: Sequence[tuple[Any, ...]], caller: FunctionCaller
    ) -> list[RowResult]:
        """Runs a function stage over rows; blocks until it is done. See `run_function`.

        Args:
            address: where the processes find the stage.
            stage: the same stage.
            rows: per row the function's inputs.
            caller: the way back into the engine, for a function that needs it.
        """
        if address in self._here:
            return run_function(stage, rows, caller)
        size = stage.batch_size if stage.batch_size is not None else -(-len(rows) // self.count)
        pieces = [rows[start : start + (size or len(rows))] for start in range(0, len(rows), size or len(rows))]
        pool = self._open()
        try:
            futures = [] if pool is None else [pool.submit(_run, address, piece) for piece in pieces]
        except (BrokenProcessPool, RuntimeError):  # it has ended, or is ended by somebody else
            self._replace(pool)
            pool = None
        if pool is None:
            return [_gone(stage)] * len(rows)
        results: list[RowResult] = []
        for piece, future in zip(pieces, futures, strict=True):
            found = self._result(pool, stage, piece, future)
            if found is None:
                log.info("stage %s turns to the engine while it runs: it stays on threads", stage.name)
                self._here.add(address)
                return run_function(stage, rows, caller)
            results += found
        return results

    def _result(
        self,
        pool: ProcessPoolExecutor,
        stage: FunctionStage,
        rows: Sequence[tuple[Any, ...]],
        future: Future[list[_Sent] | None],
    ) -> list[RowResult] | None:
        try:
            sent = future.result(_LONGEST_SECONDS)
        except (BrokenProcessPool, CancelledError):
            self._replace(pool)
            return [_gone(stage)] * len(rows)
        except TimeoutError:
            return [StageFailed(f"stage {stage.name} was not done within {_LONGEST_SECONDS:g} s")] * len(rows)
        except Exception as error:  # noqa: BLE001  # what cannot be sent to a process, or back
            text = f"stage {stage.name} cannot run in a process of its own: {type(error).__name__}: {error}"
            return [StageFailed(text[:500])] * len(rows)
        return None if sent is None else [_received(it) for it in sent]

    def _open(self) -> ProcessPoolExecutor | None:
        with self._lock:
            if self._pool is None and not self._closed:
                keep_sockets_short()
                context = multiprocessing.get_context("forkserver")
                context.set_forkserver_preload([__name__])
                self._pool = ProcessPoolExecutor(self.count, context, _begin, (self._given, self._level))
            return self._pool

    def _replace(self, pool: ProcessPoolExecutor | None) -> None:
        """A process has ended, and with it the others of its pool: a new one is made when it is needed."""
        with self._lock:
            is_ours = pool is not None and pool is self._pool  # else somebody has seen to it before
            if is_ours:
                self._pool = None
        if pool is not None and is_ours:
            log.warning("a process for functions of methods has ended; there will be new ones")
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Ends the processes; what they run is given up."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()


def _gone(stage: FunctionStage) -> TemporaryFailure:
    return TemporaryFailure(f"the process that ran stage {stage.name} has ended")


def _received(sent: _Sent) -> RowResult:
    if sent and sent[0] is None:
        return from_wire(str(sent[1]), str(sent[2]))
    return sent


# ------------------------------------------------------------------------------------------------- in those processes


class _Elsewhere:
    """What a function finds where the engine would be; remembers that it was looked for."""

    def __init__(self) -> None:
        self.looked_for = False

    def of(self, row: int) -> _Elsewhere:
        return self

    def of_several(self) -> _Elsewhere:
        return self

    def call_method(self, servable: str, version: int, method: str, args: tuple[Any, ...]) -> NoReturn:
        self._no()

    def call_subgraph(self, subgraph: int, args: tuple[Any, ...]) -> NoReturn:
        self._no()

    def send_part(self, outputs: Mapping[str, Any]) -> NoReturn:
        self._no()

    def _no(self) -> NoReturn:
        self.looked_for = True
        raise ServableError("the engine is not here")


_stages: dict[StageAddress, FunctionStage] = {}


def _begin(given: Sequence[tuple[str, str, int]], level: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the orchestrator, which ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logs.configure(f"functions-{os.getpid()}", level=level)
    for directory, name, version in given:
        servable = load_servable(Path(directory), name, version, require_models=False)
        for method in servable.methods.values():
            for number, stage in enumerate(method.stages):
                if isinstance(stage, FunctionStage):
                    _stages[StageAddress(name, version, method.name, number)] = stage


def _run(address: StageAddress, rows: Sequence[tuple[Any, ...]]) -> list[_Sent] | None:
    """The results of a stage's function, errors as their code and message; None: it looked for the engine."""
    caller = _Elsewhere()
    results = run_function(_stages[address], rows, caller)
    if caller.looked_for:
        return None
    return [(None, it.code, it.message) if isinstance(it, RankmqError) else it for it in results]

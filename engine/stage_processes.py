"""Processes for the Python functions of methods, where those are heavy: threads would share one interpreter's lock.

Each is one of its own, with a thread of ours that waits for it: one that ends takes nothing with it but the rows that
it was at. A function that turns to the engine while it runs (`PipelineServable.run`, `Model.call`) cannot do so from
there: when one is seen to, it goes back to the threads for good.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

from ..schemas.errors import StageFailed, TemporaryFailure, from_wire
from .functions import FunctionCaller, run_function
from .servable import FunctionStage, Servable
from .short_sockets import keep_sockets_short
from .stage_call import StageCall
from .stage_process import Sent, StageAddress, StageProcess, Unsendable
from .ticket import RowResult

__all__ = ["StageProcesses"]

log = logging.getLogger(__name__)

_LONGEST_SECONDS = 3600.0


class StageProcesses:
    """A fixed number of processes, begun when they are needed; those that end are replaced.

    Args:
        count: how many.
        servables: whose functions they run.
        level: of their logs.
    """

    def __init__(self, count: int, servables: Iterable[Servable], level: str = "info") -> None:
        self.count = count
        self._given = [(str(it.directory.parent), it.name, it.version) for it in servables]
        self._level = level
        self._threads = ThreadPoolExecutor(count, "functions")
        self._lock = threading.Lock()
        self._idle: list[StageProcess] = []
        self._all: set[StageProcess] = set()
        self._closed = False
        self._here: set[StageAddress] = set()
        keep_sockets_short()

    def run(
        self,
        address: StageAddress,
        stage: FunctionStage,
        rows: Sequence[tuple[Any, ...]],
        caller: FunctionCaller,
        call: StageCall | None = None,
        *,
        alone: bool = False,
        most: int | None = None,
    ) -> list[RowResult]:
        """Runs a function stage over rows; blocks until it is done, or given up. See `run_function`.

        Args:
            address: where the processes find the stage.
            stage: the same stage.
            rows: per row the function's inputs.
            caller: the way back into the engine, for a function that needs it.
            call: by which it can be given up, and ended.
            alone: each row is run by itself: one of them may be what ends processes.
            most: bytes that a row may be given; None: any number.
        """
        if address in self._here:
            return run_function(stage, rows, caller, most)
        call = call or StageCall()
        size = stage.batch_size if stage.batch_size is not None else -(-len(rows) // self.count)
        size = 1 if alone else size or len(rows)
        pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
        try:
            futures = [self._threads.submit(self._run, address, stage, piece, call, most) for piece in pieces]
        except RuntimeError:  # closed
            return [_gone(stage)] * len(rows)
        call.waits_for(futures)
        results: list[RowResult] = []
        for piece, future in zip(pieces, futures, strict=True):
            try:
                found = future.result()  # each piece has its bound
            except CancelledError:
                found = [_gone(stage)] * len(piece)
            if found is None:
                log.info("stage %s turns to the engine while it runs: it stays on threads", stage.name)
                call.give_up()
                self._here.add(address)
                return run_function(stage, rows, caller, most)
            results += found
        return results

    def _run(
        self,
        address: StageAddress,
        stage: FunctionStage,
        rows: Sequence[tuple[Any, ...]],
        call: StageCall,
        most: int | None,
    ) -> list[RowResult] | None:
        """One piece, in a process that is at nothing else; None: the function looked for the engine."""
        process = None if call.is_given_up else self._take()
        if process is None:
            return [_gone(stage)] * len(rows)
        error: RowResult
        try:
            with call.at(process):
                sent = process.run(address, rows, _LONGEST_SECONDS, most)
        except EOFError:
            if call.is_ended:
                log.warning("stage %s went on when its request was over: its process is replaced", stage.name)
            elif not self._closed:
                log.warning("the process that ran stage %s has ended; there will be a new one", stage.name)
            error = _gone(stage)
        except TimeoutError:
            process.kill()
            error = StageFailed(f"stage {stage.name} was not done within {_LONGEST_SECONDS:g} s")
        else:
            if not isinstance(sent, Unsendable):
                return None if sent is None else [_received(it) for it in sent]
            error = StageFailed(f"stage {stage.name} cannot run in a process of its own: {sent.why}"[:500])
        finally:
            self._give_back(process)
        return [error] * len(rows)

    def _take(self) -> StageProcess | None:
        with self._lock:
            if self._closed:
                return None
            while self._idle:
                process = self._idle.pop()
                if process.is_usable:
                    return process
                self._forget(process)  # it has ended at nothing
        try:
            process = StageProcess(self._given, self._level)
        except (OSError, EOFError) as error:
            log.warning("no process for functions of methods can be started: %s", error)
            return None
        self._keep(process)
        return process

    def _keep(self, process: StageProcess) -> None:
        with self._lock:
            self._all.add(process)
            if self._closed:
                process.kill()

    def _give_back(self, process: StageProcess) -> None:
        with self._lock:
            if process.is_usable and not self._closed:
                self._idle.append(process)
            else:
                process.kill()
                self._forget(process)

    def _forget(self, process: StageProcess) -> None:
        self._all.discard(process)
        process.close()

    def close(self) -> None:
        """Ends the processes; what they run is given up."""
        with self._lock:
            self._closed = True
            for process in self._all:
                process.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _gone(stage: FunctionStage) -> TemporaryFailure:
    return TemporaryFailure(f"the process that ran stage {stage.name} has ended")


def _received(sent: Sent) -> RowResult:
    if sent and sent[0] is None:
        return from_wire(str(sent[1]), str(sent[2]))
    return sent

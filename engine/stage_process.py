"""One process for the Python functions of methods: our end of it, and what runs there.

It loads the servables' configurations for itself, and runs a stage's function over rows that it is sent through a pipe.
It ends when we do, however that is, and nothing is left then: there is no semaphore that would have a name.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NoReturn

from ..schemas.errors import RankmqError, ServableError
from . import logs
from .functions import run_function
from .loader import load_servable
from .servable import FunctionStage

__all__ = ["Sent", "StageAddress", "StageProcess", "Unsendable"]

_PR_SET_PDEATHSIG = 1

Sent = tuple[Any, ...]
"""What a row gave; or None, with the code and message of its error."""

Given = Sequence[tuple[str, str, int]]
"""Of each servable: the folder that it is in, its name, its version."""


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


@dataclass(frozen=True, slots=True)
class Unsendable:
    """What cannot go through a pipe, or come out of one, and why."""

    why: str


class StageProcess:
    """Our end; for one thread at a time, but for `kill`.

    Args:
        given: the servables whose functions it runs.
        level: of its logs.

    Raises:
        OSError: it cannot be started.
        EOFError: likewise.
    """

    def __init__(self, given: Given, level: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, given, level), name="functions")
        self._ready = False
        self._killed = False
        try:
            self._process.start()
        except BaseException:
            self._pipe.close()
            raise
        finally:
            theirs.close()

    @property
    def is_usable(self) -> bool:
        """Whether it lives, and is to."""
        has_ended = self._ready and self._pipe.poll()  # nothing was asked; and it ends before the system says so
        return not self._killed and not has_ended and self._process.is_alive()

    def run(
        self, address: StageAddress, rows: Sequence[tuple[Any, ...]], seconds: float, most: int | None = None
    ) -> list[Sent] | Unsendable | None:
        """Runs a stage's function over rows there.

        Args:
            address: where it finds the stage.
            rows: per row the function's inputs.
            seconds: how long to wait at most.
            most: bytes that a row may be given; None: any number.

        Returns:
            What the rows gave; None if the function looked for the engine.

        Raises:
            EOFError: the process has ended.
            TimeoutError: it was not done in time.
        """
        until = time.monotonic() + seconds
        try:
            packed = ForkingPickler.dumps((address, rows, most))
        except Exception as error:  # noqa: BLE001  # of foreign objects
            return Unsendable(f"{type(error).__name__}: {error}")
        try:
            if not self._ready:
                self._receive(until)  # it has loaded what it runs
                self._ready = True
            self._pipe.send_bytes(packed)
            answer = self._receive(until)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise EOFError from error
        try:
            found: list[Sent] | Unsendable | None = ForkingPickler.loads(answer)
        except Exception as error:  # noqa: BLE001  # likewise
            return Unsendable(f"{type(error).__name__}: {error}")
        return found

    def _receive(self, until: float) -> bytes:
        ends: list[Any] = [self._pipe, self._process.sentinel]  # processes of its own may hold its end of the pipe
        if not connection.wait(ends, max(0.0, until - time.monotonic())):
            raise TimeoutError
        if not self._pipe.poll():
            raise EOFError
        return self._pipe.recv_bytes()

    def kill(self) -> None:
        """Ends it, whatever it does."""
        self._killed = True
        if self._process.is_alive():
            self._process.kill()

    def close(self) -> None:
        """Lets go of it, once it has ended or is to."""
        self._pipe.close()


# --------------------------------------------------------------------------------------------------- in that process


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


def _serve(pipe: connection.Connection, given: Given, level: str) -> None:
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the orchestrator, which ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logs.configure(f"functions-{os.getpid()}", level=level)
    stages = _load(given)
    try:
        pipe.send_bytes(b"ready")
        while True:
            pipe.send_bytes(_answer(stages, pipe.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)  # threads that functions have left are not waited for


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])  # a function that never returns would never see the pipe's end
        os._exit(1)


def _load(given: Given) -> dict[StageAddress, FunctionStage]:
    stages: dict[StageAddress, FunctionStage] = {}
    for directory, name, version in given:
        servable = load_servable(Path(directory), name, version, require_models=False)
        for method in servable.methods.values():
            for number, stage in enumerate(method.stages):
                if isinstance(stage, FunctionStage):
                    stages[StageAddress(name, version, method.name, number)] = stage
    return stages


def _answer(stages: Mapping[StageAddress, FunctionStage], packed: bytes) -> memoryview:
    try:
        address, rows, most = ForkingPickler.loads(packed)
        return ForkingPickler.dumps(_run(stages[address], rows, most))
    except Exception as error:  # noqa: BLE001  # of foreign objects
        return ForkingPickler.dumps(Unsendable(f"{type(error).__name__}: {error}"))


def _run(stage: FunctionStage, rows: Sequence[tuple[Any, ...]], most: int | None) -> list[Sent] | None:
    caller = _Elsewhere()
    results = run_function(stage, rows, caller, most)
    if caller.looked_for:
        return None
    return [(None, it.code, it.message) if isinstance(it, RankmqError) else it for it in results]

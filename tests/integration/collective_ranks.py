"""Processes that are the ranks of a group, and do one after the other what a test tells them."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rankmq.schemas.errors import RankmqError
from rankmq.schemas.tensors import BFLOAT16, bfloat16_to_float32, float32_to_bfloat16
from rankmq.workers.collectives import SharedGroup, segment_name

BACKEND = "rankmq.workers.mindspore_executor"  # as the executor's tests: there is one fork server
SECONDS = 60.0
SHM = Path("/dev/shm")


class Failed(Exception):
    """What a rank was told to do raised an error of rankmq's; its code and message."""


def new_name(epoch: int = 0) -> str:
    """A name for a group; those of other tests that run on this machine begin otherwise."""
    return segment_name(f"test-{os.getpid()}", epoch)


def left_behind() -> list[str]:
    """The names of such groups that are still in /dev/shm."""
    return [path.name for path in SHM.glob(new_name().rpartition("-0-")[0] + "-*")]


class Rank:
    """What happens in the process of a rank; a test calls these methods by name."""

    def __init__(self, library: Path, slot_bytes: int, timeout: float) -> None:
        self.group = SharedGroup(library, slot_bytes=slot_bytes, timeout=timeout)
        self.rank = self.size = 0

    def open(self, name: str, rank: int, size: int, timeout: float = 20.0) -> None:
        self.rank, self.size = rank, size
        self.group.open(name, rank, size, timeout)

    def open_until(self, name: str, rank: int, size: int, seconds: float) -> None:
        """As `open`, but told to give up after some seconds."""
        until = time.monotonic() + seconds
        self.group.open(name, rank, size, 20.0, lambda: time.monotonic() >= until)

    def abort_after(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self.group.abort)
        timer.daemon = True
        timer.start()

    def fault(self) -> Any:
        return self.group.fault()

    def ended(self, method: str, *args: Any) -> tuple[float, str]:
        """When a call of the group failed, on the clock that all processes share, and why."""
        try:
            getattr(self.group, method)(*args)
        except RankmqError as error:
            return time.monotonic(), error.message
        return 0.0, ""

    def at_once(self, method: str, calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Calls of the group by several threads."""
        out: dict[int, Any] = {}

        def call(index: int, args: tuple[Any, ...]) -> None:
            out[index] = getattr(self.group, method)(*args)

        threads = [threading.Thread(target=call, args=item) for item in enumerate(calls)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        return [out[index] for index in range(len(threads))]

    def do(self, task: Callable[..., Any], *args: Any) -> Any:
        """A function of the test's."""
        return task(self, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.group, name)


def _serve(pipe: Connection, library: Path, slot_bytes: int, timeout: float) -> None:
    rank = Rank(library, slot_bytes, timeout)
    with suppress(EOFError):
        while True:
            method, args = pipe.recv()
            try:
                pipe.send((True, getattr(rank, method)(*args)))
            except RankmqError as error:
                pipe.send((False, (error.code, error.message)))


class Ranks:
    """The processes, seen from the test."""

    def __init__(self, library: Path, size: int, *, slot_bytes: int = 1 << 18, timeout: float = 20.0) -> None:
        self.size = size
        self._arguments = (library, slot_bytes, timeout)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([BACKEND])
        # The fork server does not take over our sys.path, and is silent about what it cannot import.
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
            forkserver.ensure_running()
        self._started = [self._start() for _ in range(size)]
        self._epoch = 0
        self._killed: set[int] = set()

    def _start(self) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def begin(self, rank: int, method: str, *args: Any) -> None:
        self._started[rank][1].send((method, args))

    def result(self, rank: int) -> Any:
        pipe = self._started[rank][1]
        assert pipe.poll(SECONDS), f"rank {rank} gave no answer"
        good, value = pipe.recv()
        if not good:
            raise Failed(*value)
        return value

    def call(self, rank: int, method: str, *args: Any) -> Any:
        self.begin(rank, method, *args)
        return self.result(rank)

    def all(self, method: str, *args: Any, but: Iterable[int] = ()) -> list[Any]:
        """The results of all ranks; an argument that is a list of as many holds one for each."""
        for rank in self._but(but):
            self.begin(
                rank, method, *(it[rank] if isinstance(it, list) and len(it) == self.size else it for it in args)
            )
        return [self.result(rank) for rank in self._but(but)]

    def _but(self, others: Iterable[int]) -> list[int]:
        return [rank for rank in range(self.size) if rank not in set(others)]

    def open(self) -> str:
        """Opens a new group of all ranks, with new processes for those that have died; its name."""
        for rank, (process, _) in enumerate(self._started):
            if rank in self._killed:
                process.join(SECONDS)  # a killed process looks alive for a moment
            if not process.is_alive():
                self.replace(rank)
        self._epoch += 1
        name = new_name(self._epoch)
        self.all("open", name, list(range(self.size)), self.size)
        return name

    def pid(self, rank: int) -> int:
        pid: int = self._started[rank][0].pid
        return pid

    def signal(self, rank: int, number: signal.Signals) -> float:
        """Sends a signal; when, on the clock that all processes share."""
        if number == signal.SIGKILL:
            self._killed.add(rank)
        at = time.monotonic()
        os.kill(self.pid(rank), number)
        return at

    def replace(self, rank: int) -> None:
        """Another process for a rank; the one that it had is killed, if it still lives."""
        self._end(rank)
        self._killed.discard(rank)
        self._started[rank] = self._start()

    def _end(self, rank: int) -> None:
        process, pipe = self._started[rank]
        pipe.close()
        process.kill()
        process.join(10)

    def close(self) -> None:
        for rank in range(self.size):
            self._end(rank)


# -------------------------------------------------------------------------------------------------------- references


def values(dtype: str, rank: int, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """The array that a rank gives: any process can make those of all."""
    random = np.random.default_rng([seed, rank])
    if dtype == "bool":
        return random.integers(0, 2, shape).astype(bool)
    if dtype == "bfloat16":
        return float32_to_bfloat16(random.normal(size=shape).astype(np.float32))
    if dtype.startswith("float"):
        return np.asarray(random.normal(size=shape) * 100).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def reduced(arrays: list[np.ndarray], reduction: str) -> np.ndarray:
    """What the library promises: in the order of the ranks, 16-bit floats in float32 and rounded once."""
    small = arrays[0].dtype
    if small == BFLOAT16:
        arrays = [bfloat16_to_float32(it) for it in arrays]
    elif small == np.float16:
        arrays = [it.astype(np.float32) for it in arrays]
    combine = {"sum": np.add, "max": np.maximum, "min": np.minimum}[reduction]
    out = arrays[0].copy()
    for array in arrays[1:]:
        out = combine(out, array)
    return float32_to_bfloat16(out) if small == BFLOAT16 else out.astype(small)

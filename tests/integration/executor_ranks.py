"""Ranks for the tests of the MindSpore executor: what runs in each process, and how a group of them is started."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rankmq.schemas.errors import RankmqError
from rankmq.schemas.messages import GraphInfo, GraphPlan

BACKEND = "rankmq.workers.mindspore_executor"
EXPORT = Path(__file__).parents[2] / "examples" / "matmul" / "export_model.py"


@dataclass(frozen=True)
class Job:
    """What a rank is to do: join, warm up, and call a graph for each of `calls` (subgraph, inputs)."""

    rank: int
    size: int
    files: tuple[Path, ...]
    calls: tuple[tuple[int, tuple[np.ndarray, ...]], ...]
    address: str
    stacked: bool = False
    timeout: float = 60.0
    scheduler: bool = False


@dataclass(frozen=True)
class Outcome:
    """How it went; `longest_pause` is how long another thread of the process had to wait while the group was joined."""

    outputs: tuple[Any, ...] = ()
    graphs: tuple[GraphInfo, ...] = ()
    joined: float = 0.0
    longest_pause: float = 0.0
    error: tuple[str, str] | None = None


def run_rank(job: Job, reply: Connection) -> None:
    from rankmq.workers import mindspore_executor as backend

    if job.scheduler:
        backend.scheduler_needed = lambda: True  # as with a MindSpore that has no store
    executor = backend.MindSporeExecutor(threads=1)
    plans = [GraphPlan(stacked=job.stacked)] * len(job.files)
    try:
        executor.load(job.files, plans)
        began = time.monotonic()
        with _Heart() as heart:
            try:
                executor.open_group("mccl", job.rank, job.size, job.address, timeout=job.timeout)
            finally:
                joined = time.monotonic() - began
        graphs = executor.warm_up()
        outputs = tuple(executor.run(subgraph, inputs) for subgraph, inputs in job.calls)
        outcome = Outcome(outputs, graphs, joined, heart.longest)
    except RankmqError as error:
        outcome = Outcome(joined=joined, longest_pause=heart.longest, error=(error.code, error.message))
    reply.send(outcome)
    with suppress(EOFError):
        reply.recv()  # whoever ends while others are in a collective would fail them
    executor.close()


def run_scheduler(host: str, port: int, size: int) -> None:
    from rankmq.workers import mindspore_executor as backend

    backend.scheduler_needed = lambda: True
    backend.run_scheduler(host, port, size)


class _Heart(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest = 0.0
        self._stop_it = threading.Event()

    def run(self) -> None:
        last = time.monotonic()
        while not self._stop_it.wait(0.005):
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now
        self.longest = max(self.longest, time.monotonic() - last)

    def __enter__(self) -> "_Heart":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_it.set()
        self.join()


def run_group(jobs: Sequence[Job], *, seconds: float = 90.0) -> list[Outcome]:
    """Runs every job in a process of its own, forked from one that has imported MindSpore; outcomes in their order."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([BACKEND])
    started = []
    # The fork server does not take over our sys.path, and is silent about what it cannot import.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    try:
        if jobs[0].scheduler:
            host, _, port = jobs[0].address.rpartition(":")
            scheduler = context.Process(target=run_scheduler, args=(host, int(port), jobs[0].size))
            scheduler.start()
            started.append((scheduler, None))
        for job in jobs:
            ours, theirs = context.Pipe()
            process = context.Process(target=run_rank, args=(job, theirs))
            process.start()
            theirs.close()
            started.append((process, ours))
        deadline = time.monotonic() + seconds
        outcomes = []
        for process, pipe in started:
            if pipe is not None:
                assert pipe.poll(max(0.0, deadline - time.monotonic())), f"{process.name} gave no answer"
                outcomes.append(pipe.recv())
        return outcomes
    finally:
        for _, pipe in started:
            if pipe is not None:
                pipe.close()
        for process, pipe in started:
            process.join(10 if pipe is not None else 0)
            process.kill()
            process.join(10)


# ------------------------------------------------------------------------------------------------------ their graphs


def export_example(folder, *options):
    run = subprocess.run(
        [sys.executable, str(EXPORT), "--output", str(folder), *options], capture_output=True, text=True, timeout=110
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return folder / "model"


def files_of(model, rank):
    return tuple(model / f"device{rank}" / f"matmul_{subgraph}.mindir" for subgraph in (0, 1))

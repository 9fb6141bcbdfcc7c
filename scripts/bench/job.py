"""Offline jobs: rows a second against the same ranks driven directly, and what a single request beside a job waits.

The job's time is all of it: reading the file, requests, replies onto the disk, and the results' file.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from ...engine.jobs.job import Job
from ...engine.topology import REQUESTS
from ...schemas import codec
from ...schemas.errors import OperatorError
from .tools import bare
from .tools.bench import Bench
from .tools.benchmark import Benchmark
from .tools.engine import RunningEngine
from .tools.matmul import METHOD, SERVABLE, WEIGHT, Asking, example_on_mindspore, example_on_numpy
from .tools.matmul_ranks import DirectRanks
from .tools.rounds import in_turns
from .tools.row import Row, compared, percentile

__all__ = ["BENCHMARK"]

_SHAPE = (128, 96)
_ROWS = 12_000
_MANY = 200_000
_ROUNDS = 3
_SECONDS = 4.0
_UNDER_WAY_SECONDS = 60.0


def _run(bench: Bench) -> Iterator[Row]:
    file, numbers = _rows_file(bench), itertools.count()
    count = len(np.load(file, mmap_mode="r"))
    kinds: dict[str, Callable[[Bench], Path]] = {"numpy": example_on_numpy}
    if bench.has("mindspore"):
        kinds["mindspore"] = example_on_mindspore
    for kind, example in kinds.items():
        folder = example(bench)
        bench.say(f"starting 8 {kind} ranks without a broker")
        with DirectRanks(folder, kind, file) as direct, RunningEngine(bench, folder, SERVABLE):

            def through_a_job(kind: str = kind) -> float:
                bench.say(f"{count} rows through 8 {kind} ranks")
                job = Job.create(file, bench.folder("jobs") / str(next(numbers)), SERVABLE, METHOD, columns=["x"])
                began = time.perf_counter()
                job.run(bench.broker_url)
                seconds = time.perf_counter() - began
                _check(file, job)
                return count / seconds

            pairs = in_turns(bench.rounds(_ROUNDS), through_a_job, direct.rows_per_second)
            yield compared(
                bench.name, f"{count} rows, 8 {kind} ranks, against the same driven directly", "rows/s", pairs
            )
            yield from _beside_a_job(bench, kind)


def _beside_a_job(bench: Bench, kind: str) -> Iterator[Row]:
    """Single requests, one after the other, on an engine that a job keeps busy, and on an idle one."""
    asking, seconds, numbers = Asking(1), bench.seconds(_SECONDS), itertools.count()
    file = bench.folder("job-rows") / "many.npy"
    npy.open_memmap(file, "w+", np.float32, (_MANY, *_SHAPE))  # zeros, of which the disk has none

    def alone() -> list[float]:
        answers = producer.ask(REQUESTS, SERVABLE, 1, seconds=seconds)
        asking.check([body for _, body in answers.bodies])
        return [it * 1e3 for it in answers.times]

    def beside() -> list[float]:
        out = bench.folder("jobs") / f"beside-{kind}-{next(numbers)}"
        with _Running(Job.create(file, out, SERVABLE, METHOD, columns=["x"]), bench.broker_url) as job:
            job.wait_until_under_way()
            times = alone()
            if not job.runs:
                raise OperatorError("the job ended before the requests beside it: give it more rows")
            return times

    with bare.Producer(bench.broker_url, [asking.body], codec.MSGPACK) as producer:
        bench.say("single requests beside a job")
        pairs = in_turns(bench.rounds(_ROUNDS), beside, alone)
    for percent in (50, 99):
        figures = [(percentile(ours, percent), percentile(theirs, percent)) for ours, theirs in pairs]
        yield compared(
            bench.name, f"one request, 8 {kind} ranks, beside a job, against none, p{percent}", "ms", figures
        )


class _Running:
    """A job that runs on a thread for as long as the block lasts."""

    def __init__(self, job: Job, url: str) -> None:
        self._job = job
        self._under_way = threading.Event()
        self._thread = threading.Thread(target=lambda: job.run(url, watch=self._watch), name="job", daemon=True)

    def _watch(self, counts: object, _: int) -> None:
        if getattr(counts, "rate", 0):
            self._under_way.set()

    def __enter__(self) -> _Running:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.runs:
            self._job.cancel()  # what is under way as well: nothing of it is to meet the other side
        self._thread.join()

    @property
    def runs(self) -> bool:
        """Whether it has rows left."""
        return self._thread.is_alive()

    def wait_until_under_way(self) -> None:
        """Until it has a rate."""
        if not self._under_way.wait(_UNDER_WAY_SECONDS):
            raise OperatorError("the job does not get under way")


def _rows_file(bench: Bench) -> Path:
    file = bench.folder("job-rows") / "x.npy"
    shape = (max(400, bench.count(_ROWS)), *_SHAPE)
    np.save(file, np.random.default_rng(3).normal(size=shape).astype(np.float32))
    return file


def _check(file: Path, job: Job) -> None:
    found, x = np.load(job.status().spec.results, mmap_mode="r"), np.load(file, mmap_mode="r")
    if len(found) != len(x):
        raise OperatorError(f"{len(x)} rows, and {len(found)} results")
    for number in range(0, len(x), 97):
        if not np.allclose(found[number], -(x[number].astype(np.float64) @ WEIGHT), rtol=1e-3, atol=1e-2):
            raise OperatorError("a row has wrong numbers")


BENCHMARK = Benchmark(64, "rows a second of an offline job, and single requests beside one", _run)

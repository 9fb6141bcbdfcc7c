"""Tokens a second of the GPT through the queue, against the same graphs on ranks that are driven directly.

Both sides write the same texts: a prompt of 128 tokens each, and so many tokens after it. Directly they are one batch
from the prefill to the end; through the queue they are as many requests at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from ...engine.topology import REQUESTS
from ...schemas import codec
from ...schemas.errors import OperatorError
from .tools import bare
from .tools.bench import Bench
from .tools.benchmark import Benchmark
from .tools.engine import RunningEngine
from .tools.export import exported
from .tools.gpt import SERVABLE, DirectRanks, Texts, prompts
from .tools.rounds import in_turns
from .tools.row import Row, compared

__all__ = ["BENCHMARK"]

_RANKS = 8
_NEW = 32
_SESSIONS = (1, 8, 32)
_ROUNDS = 5


def _run(bench: Bench) -> Iterator[Row]:
    folder, new = exported(bench, "gpt", rank_size=_RANKS, slots=max(_SESSIONS)), max(8, bench.count(_NEW))
    bench.say(f"starting {_RANKS} ranks without a broker")
    direct = bench.enter(DirectRanks(folder / "model", _RANKS, "shm"))
    bench.enter(RunningEngine(bench, folder, SERVABLE))
    for sessions in _SESSIONS:
        bench.say(f"{sessions} at once")
        pairs = _measured(bench, direct, Texts(folder / "model", prompts(sessions), new, "generate"))
        what = f"{sessions} {'session' if sessions == 1 else 'sessions'}, {_RANKS} ranks with shm"
        yield compared(bench.name, f"{what}, against the same driven directly", "tokens/s", pairs)


def _measured(bench: Bench, direct: DirectRanks, texts: Texts) -> list[tuple[float, float]]:
    count = len(texts.prompts)

    def through_the_queue() -> float:
        answers = producer.ask(REQUESTS, SERVABLE, count, most=count)
        texts.check(answers.bodies)
        return count * texts.new / answers.seconds

    def directly() -> float:
        began = time.perf_counter()
        written = direct.write(texts.prompts, texts.new)
        seconds = time.perf_counter() - began
        if written.tokens != texts.tokens:
            raise OperatorError("the ranks have written other tokens than the whole model")
        return count * texts.new / seconds

    with bare.Producer(bench.broker_url, texts.bodies, codec.MSGPACK) as producer:
        return in_turns(bench.rounds(_ROUNDS), through_the_queue, directly)


BENCHMARK = Benchmark(60, "tokens a second of the GPT, against the same ranks driven directly", _run, ("mindspore",))

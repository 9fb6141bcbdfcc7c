"""A token of the GPT over eight ranks: collectives through shared memory against MindSpore's own.

MindSpore's own communication can be formed but once in a process, so there are two sets of eight ranks. One waits on a
pipe, and takes no time of the processors, while the other is measured.
"""

from __future__ import annotations

from collections.abc import Iterator

import psutil

from ...schemas.errors import OperatorError
from .tools.bench import Bench
from .tools.benchmark import Benchmark
from .tools.export import exported
from .tools.gpt import DirectRanks, Written, expected_tokens, prompts
from .tools.rounds import in_turns
from .tools.row import Row, compared, percentile

__all__ = ["BENCHMARK"]

_RANKS = 8
_NEW = 64
_ROUNDS = 7
_IDLE = 0.05


def _run(bench: Bench) -> Iterator[Row]:
    model = exported(bench, "gpt", rank_size=_RANKS) / "model"
    texts, new = prompts(1), max(8, bench.count(_NEW))
    tokens = [expected_tokens(model, text, new) for text in texts]
    bench.say(f"starting {_RANKS} ranks with shm")
    shm = bench.enter(DirectRanks(model, _RANKS, "shm"))
    bench.say(f"starting {_RANKS} ranks with mccl")
    mccl = bench.enter(DirectRanks(model, _RANKS, "mccl"))
    bench.say(f"{new} tokens after a prompt of {texts[0].size}")

    def write(ranks: DirectRanks, others: DirectRanks) -> Written:
        before = _processor_seconds(others)
        written = ranks.write(texts, new)
        took, idle = (written.prefill + sum(written.turns)) / 1e3, _processor_seconds(others) - before
        if idle > max(_IDLE, _IDLE * took):
            raise OperatorError(f"the ranks that should wait have taken {idle:.2f} s of the processors in {took:.2f} s")
        if written.tokens != tokens:
            raise OperatorError("the ranks have written other tokens than the whole model")
        return written

    pairs = in_turns(bench.rounds(_ROUNDS), lambda: write(shm, mccl), lambda: write(mccl, shm))
    for percent in (50, 99):
        figures = [(percentile(ours.turns, percent), percentile(theirs.turns, percent)) for ours, theirs in pairs]
        yield compared(bench.name, f"decode with shm, p{percent}, against mccl", "ms", figures)
    figures = [(ours.prefill, theirs.prefill) for ours, theirs in pairs]
    yield compared(bench.name, f"prefill of {texts[0].size} tokens with shm, against mccl", "ms", figures)


def _processor_seconds(ranks: DirectRanks) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in ranks.pids)


BENCHMARK = Benchmark(
    30, "a token of examples/gpt over eight ranks: shm against mccl, without a broker", _run, ("mindspore",)
)

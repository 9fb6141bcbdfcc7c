"""Prefill once and then decode, against the whole text again for every token; both through the queue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...engine.topology import REQUESTS
from ...schemas import codec
from .tools import bare
from .tools.bench import Bench
from .tools.benchmark import Benchmark
from .tools.engine import RunningEngine
from .tools.export import exported
from .tools.gpt import PROMPT, SERVABLE, Texts, prompts
from .tools.rounds import in_turns
from .tools.row import Row, compared

__all__ = ["BENCHMARK"]

_RANKS = (1, 8)
_NEW = 64
_ROUNDS = 5
_QUICKER = 4  # so many texts take about as long as one of the other side, or less


def _run(bench: Bench) -> Iterator[Row]:
    for ranks in _RANKS:
        folder, new = exported(bench, "gpt", rank_size=ranks), max(8, bench.count(_NEW))
        what = f"{new} tokens after {PROMPT}, {ranks} {'rank' if ranks == 1 else 'ranks with shm'}"
        with RunningEngine(bench, folder, SERVABLE):
            bench.say(what)
            pairs = _measured(bench, folder / "model", new)
        yield compared(bench.name, f"{what}, prefill and decode against combined", "tokens/s", pairs)


def _measured(bench: Bench, model: Path, new: int) -> list[tuple[float, float]]:
    split, combined = (Texts(model, prompts(1), new, method) for method in ("generate", "generate_combined"))
    with (
        bare.Producer(bench.broker_url, split.bodies, codec.MSGPACK) as one,
        bare.Producer(bench.broker_url, combined.bodies, codec.MSGPACK) as other,
    ):
        return in_turns(
            bench.rounds(_ROUNDS),
            lambda: _tokens_per_second(one, split, _QUICKER),
            lambda: _tokens_per_second(other, combined, 1),
        )


def _tokens_per_second(producer: bare.Producer, texts: Texts, count: int) -> float:
    """Of so many texts, one after the other."""
    answers = producer.ask(REQUESTS, SERVABLE, 1, most=count)
    texts.check(answers.bodies)
    return count * texts.new / answers.seconds


BENCHMARK = Benchmark(
    70, "GPT through the queue: prefill and decode, against combined for every token", _run, ("mindspore",)
)

"""Ranks that run the graphs of examples/gpt directly, and the texts that the tests have them write."""

import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rankmq.schemas.messages import GraphPlan
from rankmq.workers.executor import Executor

BACKEND = "rankmq.workers.mindspore_executor"  # as the executor's tests: there is one fork server
GRAPHS = ("prefill", "decode", "combined")
PROMPT, CONTEXT, SLOTS = 128, 192, 16
CACHES = ("kcache.*", "vcache.*")

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Text:
    """What a session writes: a prompt, and so many tokens after it, in a slot."""

    prompt: Array
    new: int
    slot: int = 0
    tokens: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Of the newest token, which is not in the cache yet."""
        return self.prompt.size + len(self.tokens) - 1

    @property
    def done(self) -> bool:
        return len(self.tokens) == self.new


class Writer:
    """Has the graphs of a rank write texts. Every rank does the same, so that they stay in step.

    What stands after a text, in its row or in its slot, must not matter: here it is noise, and NaN.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._noise = np.random.default_rng(99)

    def prefill(self, texts: Sequence[Text]) -> None:
        rows = self._rows([text.prompt for text in texts], PROMPT)
        self._add(texts, 0, rows, [text.prompt.size for text in texts], [text.slot for text in texts])

    def decode(self, texts: Sequence[Text]) -> None:
        newest, positions = [text.tokens[-1] for text in texts], [text.position for text in texts]
        self._add(texts, 1, newest, positions, [text.slot for text in texts])

    def combined(self, texts: Sequence[Text]) -> None:
        whole = [np.append(text.prompt, text.tokens) for text in texts]
        self._add(texts, 2, self._rows(whole, CONTEXT), [text.size for text in whole])

    def _add(self, texts: Sequence[Text], graph: int, *inputs: Any) -> None:
        tokens, *_ = self._executor.run(graph, [np.array(values, np.int32) for values in inputs])
        for text, token in zip(texts, tokens, strict=True):
            text.tokens.append(int(token))

    def _rows(self, texts: Sequence[Array], size: int) -> list[Array]:
        return [np.append(text, self._noise.integers(0, 256, size - text.size)) for text in texts]


def in_parts(writer: Writer, texts: list[Text]) -> None:
    """Prefill once, then decode, all texts in one batch."""
    writer.prefill(texts)
    while not texts[0].done:
        writer.decode(texts)


def whole(writer: Writer, texts: list[Text]) -> None:
    """The combined graph for every token, all texts in one batch."""
    while not texts[0].done:
        writer.combined(texts)


def coming_and_going(writer: Writer, texts: list[Text]) -> None:
    """Texts in a few slots: they wait for one, and some of those under way, in any order, get their next token."""
    random = np.random.default_rng(5)
    free, waiting, writing = deque([3, 0, 15, 7]), deque(texts), list[Text]()
    while waiting or writing:
        come = []
        while free and waiting:
            come.append(waiting.popleft())
            come[-1].slot = free.popleft()
        if come:
            writer.prefill(come)
            writing += come
        chosen = random.permutation(len(writing))[: random.integers(1, len(writing) + 1)]
        writer.decode([writing[index] for index in chosen])
        for text in [text for text in writing if text.done]:
            free.append(text.slot)
            writing.remove(text)


def beside_bad_positions(writer: Writer, texts: list[Text]) -> None:
    """Positions that a slot does not have, in the slots around that of the one text that counts."""
    (text,) = texts
    before, after = (Text(text.prompt, 1, slot=text.slot + step) for step in (-1, 1))
    writer.prefill([before, text, after])
    while not text.done:
        for other, at in ((before, CONTEXT), (before, CONTEXT + text.position), (after, -1), (after, -CONTEXT)):
            writer._executor.run(1, [np.array([value], np.int32) for value in (7, at, other.slot)])
        writer.decode([text])


SCRIPTS: dict[str, Callable[[Writer, list[Text]], None]] = {
    script.__name__: script for script in (in_parts, whole, coming_and_going, beside_bad_positions)
}


def run_rank(
    model: Path, rank: int, size: int, communication: str, address: str, texts: dict[str, list[Text]], reply: Connection
) -> None:
    from rankmq.workers.mindspore_executor import MindSporeExecutor

    executor = MindSporeExecutor(threads=1)
    files = [model / f"device{rank}" / f"{graph}.mindir" for graph in GRAPHS]
    executor.load(files, [GraphPlan(stacked=True)] * len(files), CACHES)
    executor.open_group(communication, rank, size, address)
    executor.warm_up()
    fill_caches(executor, np.nan)
    for script, its_texts in texts.items():
        SCRIPTS[script](Writer(executor), its_texts)
    reply.send({script: [text.tokens for text in its_texts] for script, its_texts in texts.items()})
    with suppress(EOFError):
        reply.recv()  # whoever ends while others are in a collective would fail them
    executor.close()


def fill_caches(executor: Any, value: float) -> None:
    import mindspore as ms

    for parameter in executor._cells[0].get_parameters():
        if "cache" in parameter.name:
            ms.ops.assign(parameter, ms.Tensor(np.full(parameter.shape, value, np.float32)))


def run_ranks(
    model: Path, size: int, communication: str, address: str, texts: dict[str, list[Text]], *, seconds: float = 200.0
) -> list[dict[str, list[list[int]]]]:
    """By rank and script, the tokens of each text."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([BACKEND])
    # The fork server does not take over our sys.path, and is silent about what it cannot import.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    started = []
    try:
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=run_rank, args=(model, rank, size, communication, address, texts, theirs), daemon=True
            )
            process.start()
            theirs.close()
            started.append((process, ours))
        deadline = time.monotonic() + seconds
        results = []
        for process, pipe in started:
            assert pipe.poll(max(0.0, deadline - time.monotonic())), f"{process.name} gave no answer"
            try:
                results.append(pipe.recv())
            except EOFError:
                raise AssertionError(f"{process.name} ended; what it said is above") from None
        return results
    finally:
        for _, pipe in started:
            pipe.close()
        for process, _ in started:
            process.join(10)
            process.kill()
            process.join(10)

"""The GPT of the examples: what the whole model says, computed in numpy, and ranks that run its graphs directly."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ....schemas import codec
from ....schemas.errors import OperatorError
from ....schemas.messages import GraphPlan, Request, Value
from ....schemas.tensors import from_array, to_array
from ....workers.collectives import segment_name
from ....workers.executor import operator_threads
from ....workers.rendezvous import free_port
from .children import Child, Children, Line

__all__ = ["CONTEXT", "PROMPT", "SERVABLE", "DirectRanks", "Texts", "Written", "expected_tokens", "prompts"]

SERVABLE = "gpt"
PROMPT, CONTEXT = 128, 192
_GRAPHS = ("prefill.mindir", "decode.mindir", "combined.mindir")
_COMPILED_ROWS = ((), (1,), (1,))  # as its configuration says
_CACHES = ("kcache.*", "vcache.*")
_HEADS = 8
_START_SECONDS = 180.0
_WRITE_SECONDS = 300.0

Array = np.ndarray[Any, Any]
Communication = Literal["none", "shm", "mccl"]
Way = Literal["split", "combined"]


# ---------------------------------------------------------------------------------------------------- the whole model


def prompts(count: int, size: int = PROMPT) -> list[Array]:
    """Prompts of random tokens, always the same."""
    return list(np.random.default_rng(11).integers(0, 256, (count, size)).astype(np.int32))


def expected_tokens(model: Path, prompt: Array, new: int) -> list[int]:
    """What the whole model writes after a prompt, always its best token.

    Args:
        model: the folder with `weights.npz`.
        prompt: tokens, int32.
        new: how many tokens.
    """
    with np.load(model / "weights.npz") as kept:
        weights = {name: kept[name].astype(np.float64) for name in kept.files}
    caches: dict[str, Array] = {}
    tokens, written = prompt.astype(int), list[int]()
    position = 0
    while len(written) < new:
        best = int(_logits(weights, caches, tokens, position).argmax())
        position += len(tokens)
        tokens = np.array([best])
        written.append(best)
    return written


def _logits(weights: dict[str, Array], caches: dict[str, Array], tokens: Array, position: int) -> Array:
    """What is thought of the token after `tokens`, which stand at `position` and further, after those before them."""
    count = len(tokens)
    x = weights["token_embedding"][tokens] + weights["position_embedding"][position : position + count]
    seen = np.tril(np.ones((count, position + count), bool), position)
    for layer in range(sum(name.startswith("qkv.") for name in weights)):
        normed = _norm(x)
        query, key, value = np.split(normed @ weights[f"qkv.{layer}"], 3, axis=1)
        for name, new in ((f"k{layer}", key), (f"v{layer}", value)):
            caches[name] = np.concatenate([caches[name], new]) if name in caches else new
        queries, keys, values = (
            np.split(it, _HEADS, axis=1) for it in (query, caches[f"k{layer}"], caches[f"v{layer}"])
        )
        mixed = [_attention(*of_head, seen) for of_head in zip(queries, keys, values, strict=True)]
        x = x + np.concatenate(mixed, axis=1) @ weights[f"out.{layer}"]
        hidden = normed @ weights[f"up.{layer}"]
        x = x + (hidden / (1 + np.exp(-hidden))) @ weights[f"down.{layer}"]
    logits: Array = (_norm(x) @ weights["head"])[-1]
    return logits


def _attention(query: Array, key: Array, value: Array, seen: Array) -> Array:
    scores = np.where(seen, query @ key.T / np.sqrt(query.shape[1]), -np.inf)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    mixed: Array = scores / scores.sum(axis=1, keepdims=True) @ value
    return mixed


def _norm(x: Array) -> Array:
    normed: Array = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-7)
    return normed


# ------------------------------------------------------------------------------------------------- through the queue


class Texts:
    """Requests to the example, an instance in each, and what must come back.

    Args:
        model: the folder with `weights.npz`.
        prompts: a text each.
        new: how many tokens after each.
        method: of the servable.
    """

    def __init__(self, model: Path, prompts: Sequence[Array], new: int, method: str) -> None:
        self.prompts = prompts
        self.new = new
        self.tokens = [expected_tokens(model, prompt, new) for prompt in prompts]
        self.bodies = [_request(prompt, new, method) for prompt in prompts]

    def check(self, answers: Sequence[tuple[int, bytes]]) -> None:
        """Makes sure that answers, each with the number of its request, are right.

        Raises:
            OperatorError: one is not.
        """
        for number, body in answers:
            reply = codec.decode_reply(body)
            failed = reply.error or (reply.errors[0].error if reply.errors else None)
            if failed is not None:
                raise OperatorError(f"a request was answered with {failed.code}: {failed.message}")
            (row,) = reply.outputs
            if row is None or to_array(row["tokens"]).tolist() != self.tokens[number]:
                raise OperatorError("the tokens that came through the queue are not those of the whole model")


def _request(prompt: Array, new: int, method: str) -> bytes:
    row: dict[str, Value] = {"prompt": from_array(prompt), "new_tokens": from_array(np.array(new, np.int32))}
    return codec.encode_request(Request(servable=SERVABLE, method=method, instances=[row]))


# ---------------------------------------------------------------------------------------------- ranks without a broker


@dataclass(frozen=True, slots=True)
class Written:
    """What ranks have written, all texts in one batch.

    Attributes:
        tokens: of each text.
        prefill: milliseconds of the prefill's call; 0 where there was none.
        turns: milliseconds of each further call.
    """

    tokens: list[list[int]]
    prefill: float
    turns: list[float]


class DirectRanks:
    """Processes that hold the graphs of the GPT and run them as they are told, without a broker or an orchestrator.

    Args:
        model: the folder of the ranks' folders.
        size: how many ranks.
        communication: how they talk to each other.
    """

    def __init__(self, model: Path, size: int, communication: Communication) -> None:
        self._model = model
        self._size = size
        self._communication = communication

    def __enter__(self) -> DirectRanks:
        match self._communication:
            case "shm":
                address = segment_name("bench-gpt", 1)
            case "mccl":
                address = f"127.0.0.1:{free_port('127.0.0.1')}"
            case "none":
                address = ""
        order = (self._model, self._size, self._communication, address)
        self._ranks = Children(Child(f"rank {rank}", _rank, rank, *order) for rank in range(self._size))
        try:
            self._ranks.hear(_START_SECONDS)
        except BaseException as error:
            self._ranks.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._ranks.__exit__(*error)

    @property
    def pids(self) -> list[int]:
        """The ranks' process ids."""
        return self._ranks.pids

    def write(self, texts: Sequence[Array], new: int, way: Way = "split") -> Written:
        """Has all ranks write after the prompts, each text in a slot of its own, all in one batch.

        Args:
            texts: the prompts.
            new: how many tokens after each.
            way: "split" for the prefill and then decode, "combined" for the combined graph for every token.

        Raises:
            OperatorError: a rank failed, or the ranks have written different tokens.
        """
        self._ranks.tell((list(texts), new, way))
        written: Sequence[Written] = self._ranks.hear(_WRITE_SECONDS)
        if any(it.tokens != written[0].tokens for it in written):
            raise OperatorError("the ranks have written different tokens")
        return written[0]


def _rank(line: Line, rank: int, model: Path, size: int, communication: Communication, address: str) -> None:
    from ....workers.mindspore_executor import MindSporeExecutor

    executor = MindSporeExecutor(operator_threads(0, size))  # as an agent has it
    files = [model / f"device{rank}" / file for file in _GRAPHS]
    plans = [GraphPlan(stacked=True, compiled_rows=rows) for rows in _COMPILED_ROWS]
    executor.load(files, plans, _CACHES)
    executor.open_group(communication, rank, size, address)
    executor.warm_up()
    line.say("ready")
    try:
        while True:
            texts, new, way = line.hear()
            line.say((_write_split if way == "split" else _write_combined)(executor, texts, new))
    finally:
        executor.close()


def _write_split(executor: Any, texts: Sequence[Array], new: int) -> Written:
    slots = np.arange(len(texts), dtype=np.int32)
    lengths = np.array([text.size for text in texts], np.int32)
    rows = np.stack([np.pad(text, (0, PROMPT - text.size)) for text in texts]).astype(np.int32)
    began = time.perf_counter()
    (tokens,) = executor.run(0, [rows, lengths, slots])
    prefill = (time.perf_counter() - began) * 1e3
    written, turns = [tokens], list[float]()
    for turn in range(new - 1):
        began = time.perf_counter()
        tokens, _ = executor.run(1, [tokens, lengths + np.int32(turn), slots])
        turns.append((time.perf_counter() - began) * 1e3)
        written.append(tokens)
    return Written(np.stack(written, axis=1).tolist(), prefill, turns)


def _write_combined(executor: Any, texts: Sequence[Array], new: int) -> Written:
    lengths = np.array([text.size for text in texts], np.int32)
    rows = np.stack([np.pad(text, (0, CONTEXT - text.size)) for text in texts]).astype(np.int32)
    written, turns = list[Array](), list[float]()
    for _ in range(new):
        began = time.perf_counter()
        (tokens,) = executor.run(2, [rows, lengths])
        turns.append((time.perf_counter() - began) * 1e3)
        written.append(tokens)
        rows[np.arange(len(texts)), np.minimum(lengths, CONTEXT - 1)] = tokens
        lengths = lengths + np.int32(1)
    return Written(np.stack(written, axis=1).tolist(), 0.0, turns)

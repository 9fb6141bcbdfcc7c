"""The sentence embeddings of the examples: requests for them, and ranks that compute them directly."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....engine.loader import load_servable
from ....engine.servable import FunctionStage
from ....schemas import codec
from ....schemas.errors import ModelError, OperatorError
from ....schemas.messages import GraphPlan, Request, Value
from ....schemas.tensors import from_array, to_array
from ....workers.executor import operator_threads
from .bench import Bench
from .children import Child, Children, Line

__all__ = ["METHOD", "SERVABLE", "DirectRanks", "Requests", "check", "sentences", "shards"]

SERVABLE, METHOD = "minilm", "embed"
_GRAPH = Path("model") / "minilm.mindir"
_BATCH = 256
_TOLERANCE = 1e-5
_SENTENCES_SECONDS = 60.0
_START_SECONDS = 180.0
_RUN_SECONDS = 600.0

Array = np.ndarray[Any, Any]
Batch = list[Array]


def sentences(bench: Bench, count: int) -> tuple[Path, list[str]]:
    """So many of the example's sentences, always the same on one machine: as the rows of a job, and as texts.

    Raises:
        ModelError: it cannot find them.
    """
    file = bench.folder("sentences") / f"{count}.jsonl"
    command = [sys.executable, "sentences.py", "--most", str(count), str(file)]
    run = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SENTENCES_SECONDS,
        check=False,
        cwd=bench.example(SERVABLE),
    )
    if run.returncode:
        raise ModelError(f"no sentences: {(run.stderr.strip() or 'it said nothing').splitlines()[-1]}")
    return file, [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


class Requests:
    """Sentences as requests, so many in each, and what must come back.

    Args:
        texts: the sentences.
        instances: how many in a request.
        wanted: their embeddings, float32 [sentences, 384].
    """

    def __init__(self, texts: Sequence[str], instances: int, wanted: Array) -> None:
        starts = range(0, len(texts), instances)
        self.bodies = [_request(texts[start : start + instances]) for start in starts]
        self._wanted = [wanted[start : start + instances] for start in starts]

    def check(self, answers: Iterable[tuple[int, bytes]]) -> None:
        """Makes sure that answers, each with the number of its request, are right.

        Raises:
            OperatorError: one is not.
        """
        for number, body in answers:
            reply = codec.decode_reply(body)
            failed = reply.error or (reply.errors[0].error if reply.errors else None)
            if failed is not None:
                raise OperatorError(f"a request was answered with {failed.code}: {failed.message}")
            found = [to_array(row["embedding"]) for row in reply.outputs if row is not None]
            check(found, self._wanted[number])


def check(found: Any, wanted: Array) -> None:
    """Makes sure that embeddings are those that the ranks compute by themselves.

    Raises:
        OperatorError: they are not.
    """
    if np.shape(found) != wanted.shape or not np.allclose(found, wanted, atol=_TOLERANCE, rtol=0):
        raise OperatorError("the embeddings that came through the queue are not those of the ranks themselves")


def _request(texts: Sequence[str]) -> bytes:
    instances: list[dict[str, Value]] = [
        {"text": from_array(np.array(text, np.dtypes.StringDType()))} for text in texts
    ]
    return codec.encode_request(Request(servable=SERVABLE, method=METHOD, instances=instances))


# ---------------------------------------------------------------------------------------------- ranks without a broker


def shards(folder: Path, texts: Sequence[str], ranks: int) -> tuple[list[list[int]], list[list[Batch]]]:
    """Texts as the servable itself makes rows of them, in batches of rows of one length, dealt out to the ranks.

    Args:
        folder: of the servable's folder.
        texts: what to embed.
        ranks: how many.

    Returns:
        Per batch the numbers of its texts; per rank its part of each batch, the last row repeated up to a multiple of
        the ranks.
    """
    stages = load_servable(folder, SERVABLE).methods[METHOD].stages
    tokenize = next(it.function for it in stages if isinstance(it, FunctionStage) and it.batch_size is not None)
    rows = tokenize([(text,) for text in texts])
    by_size: dict[int, list[int]] = {}
    for number, (tokens, _) in enumerate(rows):
        by_size.setdefault(tokens.size, []).append(number)
    owners = [of[start : start + _BATCH] for of in by_size.values() for start in range(0, len(of), _BATCH)]
    parts: list[list[Batch]] = [[] for _ in range(ranks)]
    for numbers in owners:
        padded = numbers + numbers[-1:] * (-len(numbers) % ranks)
        whole = [np.stack([rows[number][column] for number in padded]) for column in range(2)]
        for rank, part in enumerate(zip(*(np.split(column, ranks) for column in whole), strict=True)):
            parts[rank].append([np.ascontiguousarray(column) for column in part])
    return owners, parts


class DirectRanks:
    """Processes that hold the graph and run it on their part of the batches, without a broker or an orchestrator.

    Args:
        folder: of the servable's folder.
        size: how many ranks.
        texts: what they embed, over and over.
    """

    def __init__(self, folder: Path, size: int, texts: Sequence[str]) -> None:
        self._count = len(texts)
        self._owners, parts = shards(folder, texts, size)
        self._ranks = Children(Child(f"rank {rank}", _rank, size, folder / _GRAPH, parts[rank]) for rank in range(size))

    def __enter__(self) -> DirectRanks:
        try:
            self._ranks.hear(_START_SECONDS)
        except BaseException as error:
            self._ranks.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._ranks.__exit__(*error)

    def embed(self) -> tuple[float, Array]:
        """Has the ranks run all batches, each as fast as it can.

        Returns:
            Seconds until the last was done, and the embeddings of the texts, float32 [texts, 384].

        Raises:
            OperatorError: a rank failed.
        """
        began = time.perf_counter()
        self._ranks.tell("run")
        self._ranks.hear(_RUN_SECONDS)
        seconds = time.perf_counter() - began
        self._ranks.tell("show")
        outputs = self._ranks.hear(_RUN_SECONDS)
        found = np.empty((self._count, outputs[0][0].shape[1]), np.float32)
        for number, owners in enumerate(self._owners):
            found[owners] = np.concatenate([of_rank[number] for of_rank in outputs])[: len(owners)]
        return seconds, found


def _rank(line: Line, size: int, graph: Path, batches: Sequence[Batch]) -> None:
    from ....workers.mindspore_executor import MindSporeExecutor

    executor = MindSporeExecutor(operator_threads(0, size))  # as an agent has it
    executor.load([graph], [GraphPlan(stacked=True)])
    executor.warm_up()
    line.say("ready")
    outputs: list[Array] = []
    try:
        while True:
            if line.hear() == "run":
                outputs = [executor.run(0, batch)[0] for batch in batches]
                line.say("done")
            else:
                line.say(outputs)
    finally:
        executor.close()

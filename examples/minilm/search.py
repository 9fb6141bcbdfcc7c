"""Finds the sentences of a file that are nearest to a question in meaning, through the broker of RANKMQ_BROKER_URL.

Without a file it searches what Python's standard library says about itself.
"""

import argparse
import json
import os
import time
from collections import deque
from pathlib import Path

import numpy as np
from rankmq.engine.client import Client
from sentences import sentences

QUESTIONS = ("How do I read a file one line at a time?", "What if two threads wait for each other?")
INSTANCES = 64  # sentences in a request
IN_FLIGHT = 32  # requests under way at once


def embed(client, texts, instances=INSTANCES, in_flight=IN_FLIGHT):
    """The texts' embeddings, float32 [texts, 384].

    Those of about one length go into one request, so that steps fill with rows of one bucket.

    Args:
        client: of the method `embed`.
        texts: strings.
        instances: how many in a request.
        in_flight: how many requests at once, which bounds the memory that this takes.
    """
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    found = np.empty((len(texts), 384), np.float32)
    under_way = deque()

    def take():
        numbers, pending = under_way.popleft()
        found[numbers] = [row["embedding"] for row in pending.result()]

    for start in range(0, len(order), instances):
        numbers = order[start : start + instances]
        under_way.append((numbers, client.infer_async([{"text": texts[number]} for number in numbers])))
        if len(under_way) == in_flight:
            take()
    while under_way:
        take()
    return found


def nearest(question, embeddings, count):
    """The nearest embeddings' numbers, the nearest first, and how near they are: 1 is the same, 0 has nothing to do.

    Args:
        question: an embedding, [384].
        embeddings: [texts, 384].
        count: how many.
    """
    near = embeddings @ question
    best = np.argsort(-near, kind="stable")[:count]
    return [(int(number), float(near[number])) for number in best]


def read(file):
    """The sentences of a file: a line each, or the text of each row of a .jsonl file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines] if file.suffix == ".jsonl" else lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="*", default=QUESTIONS, help="any number of them (default: two)")
    parser.add_argument("--file", type=Path, help="a sentence a line, or .jsonl (default: those of the library)")
    parser.add_argument("--embeddings", type=Path, help="a job's results of that file, as .npy (default: made now)")
    parser.add_argument("--most", type=int, default=3000, help="of the library's sentences (default: %(default)s)")
    parser.add_argument("--count", type=int, default=3, help="how many to show of each (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for a request (default: %(default)s)")
    options = parser.parse_args()
    texts = read(options.file) if options.file else sentences(options.most)
    with Client(os.environ["RANKMQ_BROKER_URL"], "minilm", "embed", timeout=options.timeout) as client:
        if options.embeddings:
            embeddings = np.load(options.embeddings)
            if len(embeddings) != len(texts):
                parser.error(f"{options.embeddings} has {len(embeddings)} rows for {len(texts)} sentences")
        else:
            began = time.perf_counter()
            embeddings = embed(client, texts)
            seconds = time.perf_counter() - began
            print(f"{len(texts)} sentences in {seconds:.1f} s: {len(texts) / seconds:.0f} a second")
        for question in options.question:
            (asked,) = embed(client, [question])
            print(f"\n{question}")
            for number, near in nearest(asked, embeddings, options.count):
                print(f"  {near:.2f}  {texts[number]}")


if __name__ == "__main__":
    main()

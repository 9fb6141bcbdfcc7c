"""Calls for a batcher, and what comes out of it."""

from __future__ import annotations

import math

import numpy as np
from rankmq.engine.batch import PendingCall


def call(subgraph=0, rows=1, keys=(), owner=None, requests=(), head_start=0, waits_until=0.0):
    made = [(np.array(row),) for row in range(rows)]
    return PendingCall(subgraph, made, keys, owner, requests, head_start, waits_until=waits_until)


def drain(batcher):
    batches = []
    batcher.ripen(math.inf)
    while (batch := batcher.take()) is not None:
        batches.append(batch)
    assert len(batcher) == batcher.waiting_rows == 0
    return batches


def owners(batch):
    return [(one.owner, index) for one, index in batch.owners]

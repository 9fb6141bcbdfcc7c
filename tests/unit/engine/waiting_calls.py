"""Calls for a batcher, and what comes out of it."""

from __future__ import annotations

import numpy as np
from rankmq.engine.batch import PendingCall


def call(subgraph=0, rows=1, keys=(), owner=None, requests=(), head_start=0):
    made = [(np.array(row),) for row in range(rows)]
    return PendingCall(subgraph, made, keys=keys, owner=owner, requests=requests, head_start=head_start)


def drain(batcher):
    batches = []
    while (batch := batcher.take()) is not None:
        batches.append(batch)
    assert len(batcher) == batcher.waiting_rows == 0
    return batches


def owners(batch):
    return [(one.owner, index) for one, index in batch.owners]

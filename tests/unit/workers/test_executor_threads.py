"""How many threads an operator may use: one where no rank has more than a core."""

import os

import pytest
from rankmq.workers.executor import operator_threads


@pytest.mark.parametrize(
    ("wanted", "ranks", "cores", "threads"),
    [(0, 8, 2, 1), (0, 2, 2, 1), (0, 1, 2, None), (0, 8, 64, None), (0, 1, 1, 1), (1, 1, 64, 1), (3, 8, 2, 3)],
)
def test_threads_follow_from_ranks_and_cores(monkeypatch, wanted, ranks, cores, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert operator_threads(wanted, ranks) == threads

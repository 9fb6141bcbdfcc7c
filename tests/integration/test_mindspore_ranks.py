"""Real graphs in MindSpore, run by several ranks that talk to each other by its own means."""

import time

import numpy as np
import pytest
from rankmq.schemas.errors import GroupError
from rankmq.workers.rendezvous import free_port

from .executor_ranks import Job, export_example, files_of, run_group

pytest.importorskip("mindspore")
pytestmark = pytest.mark.mindspore

MISSED_SECONDS = 5.0
"""How long heartbeats may be missed: they go on while a group is made, or a rank would be taken for lost."""


def jobs_of(model, size, calls, **options):
    address = f"127.0.0.1:{free_port()}"
    return [Job(rank, size, files_of(model, rank), tuple(calls), address, **options) for rank in range(size)]


@pytest.mark.parametrize("scheduler", [False, True])
def test_ranks_that_talk_to_each_other_agree_with_numpy(example, scheduler):
    model, weights = example
    x = np.random.default_rng(2).normal(size=(128, 96)).astype(np.float32)
    calls = [(subgraph, (factor * x,)) for factor in (1, 2, 3) for subgraph in (0, 1)]
    outcomes = run_group(jobs_of(model, 2, calls, scheduler=scheduler))
    for outcome in outcomes:
        assert outcome.error is None
        assert [info.collectives for info in outcome.graphs] == [True, True]
        for (subgraph, (given,)), (y,) in zip(calls, outcome.outputs, strict=True):
            np.testing.assert_allclose(y, -(given @ weights[subgraph]), rtol=1e-4, atol=1e-3)


def test_any_number_of_rows_in_graphs_with_collectives(example):
    model, weights = example
    random = np.random.default_rng(3)
    calls = [
        (subgraph, (random.normal(size=(rows, 96)).astype(np.float32),)) for rows in (1, 130, 7) for subgraph in (0, 1)
    ]
    for outcome in run_group(jobs_of(model, 2, calls, stacked=True)):
        assert outcome.error is None
        for (subgraph, (given,)), (y,) in zip(calls, outcome.outputs, strict=True):
            np.testing.assert_allclose(y, -(given @ weights[subgraph]), rtol=1e-4, atol=1e-3)


def test_eight_ranks_give_the_originals_numbers(tmp_path):
    model = export_example(tmp_path)
    ones = np.ones((128, 96), np.float32)
    outcomes = run_group(jobs_of(model, 8, [(0, (ones + ones,)), (1, (ones,))]))
    assert len(outcomes) == 8
    for outcome in outcomes:
        assert outcome.error is None
        (x,), (z,) = outcome.outputs
        np.testing.assert_array_equal(x, np.full((128, 16), -96, np.float32))
        np.testing.assert_array_equal(z, np.full((128, 16), -144, np.float32))
        assert outcome.longest_pause < MISSED_SECONDS


def test_a_rank_that_does_not_come_is_named_in_time(example):
    model, _ = example
    jobs = [Job(rank, 3, files_of(model, 0), (), "", timeout=2 * MISSED_SECONDS) for rank in (0, 1)]
    address = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    outcomes = run_group([Job(**{**vars(job), "address": address}) for job in jobs])
    for outcome in outcomes:
        code, message = outcome.error
        assert code == GroupError.code
        assert "rank 2 did not join" in message
        assert outcome.longest_pause < MISSED_SECONDS
    assert time.monotonic() - began < 60

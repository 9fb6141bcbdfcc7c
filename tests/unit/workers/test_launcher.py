"""When a rank that ended is started again, and when no more. What processes do is tested with real ones."""

import math
import time
from pathlib import Path

import pytest
from rankmq.engine.settings import Settings
from rankmq.schemas.errors import GroupError, ModelError
from rankmq.schemas.messages import GroupId
from rankmq.workers.launcher import Launcher

GROUP = GroupId(servable="matmul", version=1)


@pytest.fixture
def launcher():
    settings = Settings(broker_url="amqp://127.0.0.1/", max_restarts=3)
    return Launcher({GROUP: {2: [Path("a.npz")], 5: [Path("b.npz")]}}, settings, host="here")


def test_pauses_grow_and_then_it_is_given_up(launcher):
    rank, other = launcher._ranks
    for pause in (0.1, 0.2, 0.4):
        before = time.monotonic()
        launcher._schedule(rank, "killed by SIGKILL")
        assert pause <= rank.due - before < pause + 0.1
        launcher._raise_failure()
    launcher._schedule(rank, "exit code 1")
    assert rank.due == math.inf  # not started again before it is told
    with pytest.raises(GroupError, match=r"rank 2 of matmul.v1.g0 ended 4 times .*\(last: exit code 1\)"):
        launcher._raise_failure()
    assert other.due == 0.0


def test_one_that_has_said_why_it_ends_is_not_started_again(launcher):
    rank, _ = launcher._ranks
    rank.failure = ModelError("a.npz is missing")
    launcher._schedule(rank, "exit code 5")
    assert rank.due == math.inf
    with pytest.raises(ModelError, match=r"a\.npz is missing"):
        launcher._raise_failure()

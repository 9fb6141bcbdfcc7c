"""Given a step whose rows run back to back, when one fails, then the agent says which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rankmq.engine.settings import Settings
from rankmq.schemas.messages import Call, GraphPlan, GroupId, TensorSpec
from rankmq.schemas.tensors import from_array
from rankmq.workers.agent import Agent, AgentConfig, _Job
from rankmq.workers.lockstep import Step
from rankmq.workers.numpy_executor import NumpyExecutor, Operation, write_graph


@pytest.mark.parametrize(
    ("stacked", "values", "failed"),
    [(False, (1, 2, 7, 7), 2), (False, (7, 1), 0), (False, (1, 2), None), (True, (7, 1), None)],
)
def test_it_says_at_which_row_it_failed(
    tmp_path: Path, stacked: bool, values: tuple[int, ...], failed: int | None
) -> None:
    path, shape = tmp_path / "g.npz", (-1,) if stacked else (1,)
    specs = [TensorSpec(name=name, dtype="float32", shape=shape) for name in ("x", "y")]
    write_graph(path, [Operation("fail_if", ("x",), "y", {"value": 7})], {}, specs[:1], specs[1:])
    plan, work = GraphPlan(stacked=stacked, returns=(0,)), Call(subgraph=0, rows=len(values), stacked=stacked)
    executor = NumpyExecutor()
    executor.load([path], [plan])
    agent = Agent(AgentConfig(GroupId(servable="m", version=1), 0, (path,), Settings(), "here"), executor)
    rows = [np.array([value], np.float32) for value in values]
    inputs = (from_array(np.concatenate(rows)),) if stacked else tuple(map(from_array, rows))

    reply = agent._run(_Job(1, Step(0, work, (inputs,), ()), plan, 0.0))

    assert reply.failed_row == failed
    assert (reply.error is not None) == (7 in values)

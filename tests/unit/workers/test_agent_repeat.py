"""Given a slice of a loop, when an agent runs it, then it sends what its plan says, or stops with its epoch."""

from pathlib import Path

import numpy as np
import pytest
from rankmq.engine.settings import Settings
from rankmq.schemas.messages import GraphPlan, GroupId, RankReply, Repeat, TensorSpec
from rankmq.schemas.tensors import from_array, to_array
from rankmq.workers.agent import Agent, AgentConfig, _Job
from rankmq.workers.lockstep import Step
from rankmq.workers.numpy_executor import NumpyExecutor, Operation, write_graph


def ran(tmp_path: Path, work: Repeat, returns: tuple[int, ...], *, epoch: int = 1) -> RankReply:
    """The reply of a rank to a slice over two rows, 1 and 10; the graph gives twice the input and one more."""
    path = tmp_path / "g.npz"
    specs = [TensorSpec(name=name, dtype="float32", shape=(1,)) for name in ("x", "y", "z")]
    operations = [Operation("add", ("x", "x"), "y"), Operation("add", ("x", "one"), "z")]
    write_graph(path, operations, {"one": np.ones(1, np.float32)}, specs[:1], specs[1:])
    plan = GraphPlan(stacked=work.stacked, returns=returns)
    executor = NumpyExecutor()
    executor.load([path], [plan])
    agent = Agent(AgentConfig(GroupId(servable="m", version=1), 0, (path,), Settings(), "here"), executor)
    agent._epoch = epoch
    rows = [np.array([value], np.float32) for value in (1, 10)]
    inputs = (from_array(np.stack(rows)[:, 0]),) if work.stacked else tuple(map(from_array, rows))
    return agent._run(_Job(1, Step(4, work, (inputs,), ()), plan, 0.0))


@pytest.mark.parametrize("stacked", [True, False])
def test_it_sends_the_outputs_that_it_owns_by_their_place(tmp_path: Path, stacked: bool) -> None:
    work = Repeat(
        subgraph=0, rows=2, stacked=stacked, turns=(3, 1), feed=((0, 0),), last=(0, 1), collect=(1, 0), shrink=True
    )
    reply = ran(tmp_path, work, (0,))
    assert reply.error is None
    assert reply.turns == (3, 1)
    found = {column.index: [to_array(it).tolist() for it in column.tensors] for column in reply.outputs}
    if stacked:
        assert found == {0: [[8, 20]], 3: [[[2, 20], [4, 0], [8, 0]]]}
    else:
        assert found == {0: [[8], [20]], 3: [[[2], [4], [8]], [[20]]]}
    everything = ran(tmp_path, work, (0, 1))
    assert [column.index for column in everything.outputs] == [0, 1, 2, 3]


def test_it_turns_no_more_when_the_epoch_is_over(tmp_path: Path) -> None:
    work = Repeat(subgraph=0, rows=2, stacked=True, turns=(3, 1), feed=((0, 0),), last=(0,))
    reply = ran(tmp_path, work, (0,), epoch=2)
    assert reply.error is not None
    assert "epoch 1 is over" in reply.error.message
    assert (reply.outputs, reply.turns) == ((), ())


def test_an_output_that_there_is_not_fails_the_slice(tmp_path: Path) -> None:
    reply = ran(tmp_path, Repeat(subgraph=0, rows=2, stacked=True, turns=(1, 1), last=(2,)), (0,))
    assert reply.error is not None
    assert reply.error.code == "graph_failed"

"""What tests of several files have in common."""

import numpy as np
import pytest

from .executor_ranks import export_example


@pytest.fixture(scope="session")
def example(tmp_path_factory):
    """The example's files for two ranks, random weights, and the weights."""
    model = export_example(tmp_path_factory.mktemp("example"), "--rank-size", "2", "--random", "7")
    weights = np.load(model / "weights.npz")
    return model, [weights["matmul_0"], weights["matmul_1"]]


@pytest.fixture(scope="session")
def graphs(tmp_path_factory):
    """MINDIR files of small networks, by name."""
    from . import mindir_cells

    folder = tmp_path_factory.mktemp("graphs")
    mindir_cells.export_all(folder)
    return folder


@pytest.fixture
def executor():
    """A MindSpore executor."""
    from rankmq.workers.mindspore_executor import MindSporeExecutor

    it = MindSporeExecutor(threads=1)
    yield it
    it.close()

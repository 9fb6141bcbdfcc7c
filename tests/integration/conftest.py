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

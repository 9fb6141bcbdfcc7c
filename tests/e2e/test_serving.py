"""Requests answered: right, and by the right method, over every layout."""

import pytest
import numpy as np
def test_first(gallery):
    x = np.ones((128, 96), np.float32)
    with gallery.client("matmul", "predict") as client:
        [got] = client.infer({"x": x, "y": x})
    assert got["x"].shape == got["z"].shape == (128, 16)
    assert (got["x"] == -96).all()
    assert (got["z"] == -144).all()

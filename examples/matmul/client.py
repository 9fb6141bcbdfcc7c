"""Asks the pipeline of this example, through the broker of RANKMQ_BROKER_URL."""

import os

import numpy as np
from rankmq.engine.client import Client


def run_matmul():
    """Run client of distributed matmul"""
    instance = {"x": np.ones((128, 96), np.float32), "y": np.ones((128, 96), np.float32)}
    with Client(os.environ["RANKMQ_BROKER_URL"], "matmul", "predict") as client:
        result = client.infer(instance)
    print("result:\n", result)


if __name__ == "__main__":
    run_matmul()

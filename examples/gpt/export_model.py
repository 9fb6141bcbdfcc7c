"""Exports the three graphs of this example for every rank: model/device<rank>/prefill, decode and combined.mindir.

One process writes the files of all ranks; no group is needed for it. The weights are random, from a seed, and kept
whole in model/weights.npz.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")

import mindspore as ms
import numpy as np
from mindspore import Tensor, export
from net import Combined, Decode, Prefill, Shape

GROUPS = {"cpu": "mccl_world_group", "ascend": "hccl_world_group"}


def random_weights(shape, seed):
    """The whole model's weights by name, float32.

    They are scaled so that every layer adds about as much as came in. The best token is then ahead by many times what
    the order of a sum changes, so that a divided model gives the same tokens as a whole one.
    """
    random = np.random.default_rng(seed)
    weights = {}
    for name, size in shape.parameters().items():
        scale = 1.0 if name.endswith("embedding") else size[0] ** -0.5
        weights[name] = (scale * random.standard_normal(size)).astype(np.float32)
    return weights


def weights_of_rank(weights, rank, ranks):
    """What one rank has of them."""
    parts = {}
    for name, whole in weights.items():
        kind = name.partition(".")[0]
        if kind == "qkv":
            mine = [part(block, rank, ranks, axis=1) for block in np.split(whole, 3, axis=1)]
            parts[name] = np.concatenate(mine, axis=1)
        elif kind == "up":
            parts[name] = part(whole, rank, ranks, axis=1)
        elif kind in ("out", "down"):
            parts[name] = part(whole, rank, ranks, axis=0)
        else:
            parts[name] = whole
    return parts


def part(array, rank, ranks, axis):
    return np.ascontiguousarray(np.split(array, ranks, axis=axis)[rank])


def export_graph(network, inputs, path):
    path.unlink(missing_ok=True)  # MindSpore writes files that cannot be overwritten
    path.parent.mkdir(parents=True, exist_ok=True)
    export(network, *inputs, file_name=str(path), file_format="MINDIR")


def export_all(shape, weights, model, group=GROUPS["cpu"]):
    """Write the files of all ranks.

    Args:
        shape: how large the model is, and over how many ranks.
        weights: the whole model's.
        model: the folder for the ranks' folders.
        group: the communication group that the collectives name.
    """
    row = integers()
    graphs = {
        "prefill": (Prefill, [integers(shape.prompt), row, row]),
        "decode": (Decode, [row, row, row]),
        "combined": (Combined, [integers(shape.context), row]),
    }
    for name, (kind, inputs) in graphs.items():
        network = kind(shape, group)
        for rank in range(shape.ranks):
            network.set_weights(weights_of_rank(weights, rank, shape.ranks))  # the compiled graph stays as it is
            export_graph(network, inputs, model / f"device{rank}" / f"{name}.mindir")


def integers(*size):
    """An input of any number of rows: with a number of its own, a graph would have its rows padded up to it."""
    return Tensor(shape=[None, *size], dtype=ms.int32)


def main():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=here, help="folder for model/ (default: this one)")
    parser.add_argument("--rank-size", type=int, choices=[1, 2, 4, 8], default=8)
    parser.add_argument("--slots", type=int, default=16, help="how many texts at once (default: %(default)s)")
    parser.add_argument("--target", choices=sorted(GROUPS), default="cpu", help="what the ranks will run on")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    options = parser.parse_args()
    model = options.output / "model"
    weights = random_weights(Shape(), options.seed)
    export_all(Shape(options.rank_size, options.slots), weights, model, GROUPS[options.target])
    np.savez(model / "weights.npz", **weights)
    print(f"{3 * options.rank_size} graphs for {options.rank_size} ranks are in {model}")


if __name__ == "__main__":
    main()

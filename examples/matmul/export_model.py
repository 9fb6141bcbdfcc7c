"""Exports the two graphs of this example for every rank: model/device<rank>/matmul_0.mindir and matmul_1.mindir.

One process writes the files of all ranks; no group is needed for it. The forms:

    row_column  subgraph 0 is row-parallel with an AllReduce, subgraph 1 column-parallel with an AllGather: the ranks
                depend on each other. Both take the whole inputs and give the whole result, on every rank.
    sharded     the same division, but subgraph 0 takes a rank's own columns of the inputs, and subgraph 1 gives its own
                columns of the result: for matmul_sharded, whose configuration says so.
    unsharded   every rank computes everything, as in the original's listing; no collectives.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")

import numpy as np
from mindspore import Tensor, export
from net import ColumnParallelNet, Net, RowParallelNet, inputs_like

BATCH, ROWS, COLUMNS = 128, 96, 16
GROUPS = {"cpu": "mccl_world_group", "ascend": "hccl_world_group"}


def export_graph(network, inputs, path):
    path.unlink(missing_ok=True)  # MindSpore writes files that cannot be overwritten
    path.parent.mkdir(parents=True, exist_ok=True)
    export(network, inputs, file_name=str(path), file_format="MINDIR")


def export_unsharded(weight, paths):
    network = Net(matmul_size=weight.shape, init_val=0)
    network.matmul_weight.set_data(Tensor(weight))
    for path in paths:
        export_graph(network, inputs_like(BATCH, ROWS), path)


def export_sharded(network, weight, inputs, paths):
    for rank, path in enumerate(paths):
        network.set_shard(rank, weight)  # the compiled graph stays as it is
        export_graph(network, inputs, path)


def export_all(form, weights, output, rank_size=8, group=GROUPS["cpu"]):
    """Write the files of all ranks.

    Args:
        form: "row_column", "sharded" or "unsharded".
        weights: the whole weight of each subgraph, float32 of shape (96, 16).
        output: the folder for model/.
        rank_size: how many ranks; divides 96 and 16.
        group: the communication group that the collectives name.
    """
    paths = [
        [output / "model" / f"device{rank}" / f"matmul_{subgraph}.mindir" for rank in range(rank_size)]
        for subgraph in range(2)
    ]
    if form == "unsharded":
        for weight, files in zip(weights, paths, strict=True):
            export_unsharded(weight, files)
        return
    whole = form == "row_column"
    rows, columns = ROWS // rank_size, COLUMNS // rank_size
    by_rows = RowParallelNet(rows, COLUMNS, group, inputs_whole=whole)
    export_sharded(by_rows, weights[0], inputs_like(BATCH, ROWS if whole else rows), paths[0])
    by_columns = ColumnParallelNet(ROWS, columns, rank_size, group if whole else None)
    export_sharded(by_columns, weights[1], inputs_like(BATCH, ROWS), paths[1])


def main():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=["row_column", "sharded", "unsharded"], default="row_column")
    parser.add_argument("--output", type=Path, default=None, help="folder for model/ (default: the servable's)")
    parser.add_argument("--rank-size", type=int, choices=[1, 2, 4, 8], default=8)
    parser.add_argument("--target", choices=sorted(GROUPS), default="cpu", help="what the ranks will run on")
    values = parser.add_mutually_exclusive_group()
    values.add_argument("--weights", type=float, nargs=2, default=(0.5, 1.5), metavar=("W0", "W1"))
    values.add_argument("--random", type=int, metavar="SEED", help="random weights, kept in model/weights.npz")
    options = parser.parse_args()
    output = options.output or (here / "matmul_sharded" if options.form == "sharded" else here)
    if options.random is None:
        weights = [np.full((ROWS, COLUMNS), value, np.float32) for value in options.weights]
    else:
        random = np.random.default_rng(options.random)
        weights = [random.normal(size=(ROWS, COLUMNS)).astype(np.float32) for _ in range(2)]
    export_all(options.form, weights, output, options.rank_size, GROUPS[options.target])
    if options.random is not None:
        np.savez(output / "model" / "weights.npz", matmul_0=weights[0], matmul_1=weights[1])
    print(f"{2 * options.rank_size} graphs for {options.rank_size} ranks are in {output / 'model'}")


if __name__ == "__main__":
    main()

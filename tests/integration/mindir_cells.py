"""Networks that the tests of the MindSpore executor export. Importing this imports MindSpore."""

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops


class Identity(nn.Cell):
    def construct(self, x):
        return x


class Nested(nn.Cell):
    def construct(self, x, y):
        return x + y, (x - y, x)


class Rows(nn.Cell):
    """Four rows become one: with any other number of rows than a multiple of four it fails."""

    def construct(self, x):
        return ops.reshape(x, (-1, 12))


class Matmul(nn.Cell):
    def __init__(self, weight):
        super().__init__()
        self.weight = Parameter(Tensor(weight))

    def construct(self, x):
        return ops.matmul(x, self.weight)


class Biased(nn.Cell):
    def construct(self, x, bias):
        return x + bias, ops.reduce_sum(bias)


class Doubled(nn.Cell):
    def construct(self, x):
        return x + x


class Scalars(nn.Cell):
    """What it gives are no tensors but numbers of the graph's own language, and one tensor of no dimensions."""

    def construct(self, x):
        total = x.sum()
        return total.item(), 2.5, x.shape[0], True, total


class OneScalar(nn.Cell):
    def construct(self, x):
        return x.sum().item()


class Counter(nn.Cell):
    """Its output is its state."""

    def __init__(self):
        super().__init__()
        self.count = Parameter(Tensor(np.zeros(1, np.float32)))

    def construct(self, x):
        self.count = self.count + x
        return self.count


class Nines(nn.Cell):
    """Three rows become one, and calls are counted; with any other number of rows than a multiple of three it fails."""

    def __init__(self):
        super().__init__()
        self.count = Parameter(Tensor(np.zeros(1, np.float32)))

    def construct(self, x):
        self.count = self.count + 1
        return ops.reshape(x, (-1, 9)), self.count


class ForeignGroup(nn.Cell):
    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce(group="hccl_world_group")

    def construct(self, x):
        return self.all_reduce(x)


KINDS = ["bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float16", "float64"]
WEIGHT = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)


def export_all(folder: Path) -> None:
    x = Tensor(np.zeros((4, 3), np.float32))
    vector = Tensor(np.zeros(3, np.float32))
    cells = {
        "identity": (Identity(), x),
        "nested": (Nested(), x, x),
        "rows": (Rows(), x),
        "matmul": (Matmul(WEIGHT), x),
        "biased": (Biased(), x, vector),
        "doubled_bfloat16": (Doubled(), Tensor(np.zeros((4, 3), np.float32), ms.bfloat16)),
        "any_rows": (Doubled(), Tensor(shape=[None, 3], dtype=ms.float32)),
        "any_rank": (Identity(), Tensor(shape=None, dtype=ms.float32)),
        "scalar": (Doubled(), Tensor(np.float32(0))),
        "complex": (Identity(), Tensor(np.zeros(3, np.complex64))),
        "scalars_float32": (Scalars(), x),
        "scalars_float64": (Scalars(), Tensor(np.zeros((4, 3), np.float64))),
        "one_scalar": (OneScalar(), x),
        "counter": (Counter(), Tensor(np.zeros(1, np.float32))),
        "nines": (Nines(), Tensor(np.zeros((6, 3), np.float32))),
        "foreign": (ForeignGroup(), x),
    }
    for kind in (
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float64",
    ):
        cells[f"identity_{kind}"] = (Identity(), Tensor(np.zeros((2, 2), kind)))
    for name, (cell, *inputs) in cells.items():
        ms.export(cell, *inputs, file_name=str(folder / f"{name}.mindir"), file_format="MINDIR")

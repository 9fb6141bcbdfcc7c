"""Networks with collectives, as a user writes them. Importing this imports MindSpore."""

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.train import mind_ir_pb2

GROUP = "mccl_world_group"


def sized(operator, size):
    operator.rank_size = size
    operator.add_prim_attr("rank_size", size)
    return operator


class Every(nn.Cell):
    """Every collective, none depending on another."""

    def __init__(self, size):
        super().__init__()
        self.negate = ops.Neg()
        self.all_reduce = ops.AllReduce(group=GROUP)
        self.all_gather = sized(ops.AllGather(group=GROUP), size)
        self.broadcast = ops.Broadcast(1, group=GROUP)
        self.reduce_scatter = sized(ops.ReduceScatter(group=GROUP), size)

    def construct(self, x):
        y = self.negate(x)
        pair = self.broadcast((x, y))
        return self.negate(self.all_reduce(y)), self.all_gather(y), pair[0], pair[1], self.reduce_scatter(x)


class Gathered(nn.Cell):
    def __init__(self, size):
        super().__init__()
        self.all_gather = sized(ops.AllGather(group=GROUP), size)
        self.broadcast = ops.Broadcast(0, group=GROUP)

    def construct(self, x):
        return self.all_gather(x), self.broadcast((x,))[0]


class Reduced(nn.Cell):
    def __init__(self, size, reduction=ops.ReduceOp.SUM):
        super().__init__()
        self.all_reduce = ops.AllReduce(reduction, group=GROUP)

    def construct(self, x):
        return self.all_reduce(x)


class Independent(nn.Cell):
    """Twelve collectives of the same kind and size that could run in any order, and a matrix product before each."""

    COUNT = 12

    def __init__(self, size):
        super().__init__()
        weights = [np.eye(64, dtype=np.float32) * (index + 1) for index in range(self.COUNT)]
        self.weights = ParameterTuple([Parameter(Tensor(it), name=f"w{index}") for index, it in enumerate(weights)])
        self.matmul, self.concat = ops.MatMul(), ops.Concat(1)
        self.all_reduce = ops.AllReduce(group=GROUP)

    def construct(self, x):
        out = ()
        for weight in self.weights:
            out = (*out, self.all_reduce(self.matmul(x, weight)))
        return self.concat(out)


class Twice(nn.Cell):
    """Two collectives of the same tensor, which MindSpore might take for one."""

    def __init__(self, size):
        super().__init__()
        self.negate = ops.Neg()
        self.first = ops.Broadcast(0, group=GROUP)
        self.second = ops.Broadcast(1, group=GROUP)

    def construct(self, x):
        return self.first((x,))[0], self.second((x,))[0]


class Branching(nn.Cell):
    """Collectives in a branch and in the body of a loop."""

    def __init__(self, size):
        super().__init__()
        self.negate, self.add, self.sub = ops.Neg(), ops.Add(), ops.Sub()
        self.all_reduce = ops.AllReduce(group=GROUP)

    def construct(self, x, turns):
        y = self.all_reduce(x) if turns > 2 else self.negate(self.all_reduce(self.negate(x)))
        while turns > 0:
            y = self.all_reduce(self.add(y, x))
            turns = self.sub(turns, 1)
        return y


class Without(nn.Cell):
    def construct(self, x):
        return -x


def export(cell, file, *inputs):
    """Inputs: (dtype, shape) with None for any size, or arrays."""
    given = [
        Tensor(shape=list(it[1]), dtype=getattr(ms, "bool_" if it[0] == "bool" else it[0]))
        if isinstance(it, tuple)
        else Tensor(it)
        for it in inputs
    ]
    ms.export(cell, *given, file_name=str(file), file_format="MINDIR")
    return Path(file)


def parse(content):
    model = mind_ir_pb2.ModelProto()
    model.ParseFromString(content)
    return model

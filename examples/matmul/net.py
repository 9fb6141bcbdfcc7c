"""The networks of this example, all of them `-(inputs @ weight)`: whole, and divided over ranks in two ways."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops
from mindspore.nn import Cell


class Net(Cell):
    def __init__(self, matmul_size, init_val, transpose_a=False, transpose_b=False, strategy=None):
        super().__init__()
        matmul_np = np.full(matmul_size, init_val, dtype=np.float32)
        self.matmul_weight = Parameter(Tensor(matmul_np))
        self.matmul = ops.MatMul(transpose_a=transpose_a, transpose_b=transpose_b)
        self.neg = ops.Neg()
        if strategy is not None:
            self.matmul.shard(strategy)

    def construct(self, inputs):
        x = self.matmul(inputs, self.matmul_weight)
        x = self.neg(x)
        return x


class RowParallelNet(Cell):
    """Each rank has some rows of the weight, and needs those columns of the inputs; an AllReduce adds up the parts.

    Where the inputs come whole, the graph takes its own columns out of them. Which they are is a parameter and not a
    constant, so that one compiled graph serves every rank.
    """

    def __init__(self, rows, columns, group, inputs_whole=True):
        super().__init__()
        self.matmul_weight = Parameter(Tensor(np.zeros((rows, columns), np.float32)))
        self.my_columns = Parameter(Tensor(np.zeros(rows, np.int32)), requires_grad=False)
        self.matmul = ops.MatMul()
        self.all_reduce = ops.AllReduce(group=group)
        self.neg = ops.Neg()
        self.inputs_whole = inputs_whole

    def construct(self, inputs):
        if self.inputs_whole:
            inputs = ops.gather(inputs, self.my_columns, 1)
        x = self.matmul(inputs, self.matmul_weight)
        x = self.all_reduce(x)
        return self.neg(x)

    def set_shard(self, rank, weight):
        """Hold what rank `rank` holds of the whole weight."""
        rows = self.matmul_weight.shape[0]
        mine = np.arange(rank * rows, (rank + 1) * rows)
        self.matmul_weight.set_data(Tensor(weight[mine]))
        self.my_columns.set_data(Tensor(mine.astype(np.int32)))


class ColumnParallelNet(Cell):
    """Each rank has some columns of the weight, and makes those columns of the result; an AllGather joins them.

    AllGather joins along the first axis, hence the transpositions. Without a group each rank gives its own columns, and
    who asked joins them.
    """

    def __init__(self, rows, columns, rank_size, group=None):
        super().__init__()
        self.matmul_weight = Parameter(Tensor(np.zeros((rows, columns), np.float32)))
        self.matmul = ops.MatMul()
        self.transpose = ops.Transpose()
        self.neg = ops.Neg()
        self.gathers = group is not None
        if group is not None:
            self.all_gather = ops.AllGather(group=group)
            # Known only within a group, which a process that exports for all ranks is not part of.
            self.all_gather.rank_size = rank_size
            self.all_gather.add_prim_attr("rank_size", rank_size)

    def construct(self, inputs):
        x = self.matmul(inputs, self.matmul_weight)
        if self.gathers:
            x = self.transpose(x, (1, 0))
            x = self.all_gather(x)
            x = self.transpose(x, (1, 0))
        return self.neg(x)

    def set_shard(self, rank, weight):
        """Hold what rank `rank` holds of the whole weight."""
        columns = self.matmul_weight.shape[1]
        self.matmul_weight.set_data(Tensor(np.ascontiguousarray(weight[:, rank * columns : (rank + 1) * columns])))


def inputs_like(rows, columns):
    """Inputs of a shape, to export with."""
    return Tensor(np.zeros((rows, columns)), ms.float32)

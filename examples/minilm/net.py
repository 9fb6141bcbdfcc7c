"""all-MiniLM-L6-v2 as one graph: tokens go in, the embeddings of their sentences come out.

Any number of rows goes into one call, and any number of tokens up to the context, the same for all rows of the call.
Where an obvious operator is missing, it is for its cost on a CPU, which the comments name.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops
from mindspore.nn import Cell

HIDDEN = -1e9  # is added to the scores of positions after the end of a text

# GELU is x (1 + erf(x / sqrt 2)) / 2, and MindSpore's erf takes four times as long as the matrix product before it.
# What is done instead is x (1 + tanh(x P(x^2))) / 2, where P is fitted so that nothing is off by more than 3.1e-6.
P = (0.7978281168132739, 0.03646882245730816, -0.0001248755637268147, -3.0578868056084896e-05, 1.1189820962654079e-06)
FITTED = 20.0  # up to this x^2; from there on the tangent is 1 anyway


@dataclass(frozen=True)
class Shape:
    """How large the model is."""

    layers: int = 6
    width: int = 384
    heads: int = 12
    hidden: int = 1536
    vocabulary: int = 30522
    context: int = 256

    def parameters(self):
        """The shape of each parameter, by name."""
        width, hidden = self.width, self.hidden
        shapes = {
            "token_embedding": (self.vocabulary, width),
            "position_embedding": (self.context, width),
            "embedding_norm": (2, width),  # of each norm the scale, and then the shift
        }
        for layer in range(self.layers):
            shapes |= {
                f"qkv.{layer}": (width, 3 * width),  # all queries, all keys, all values
                f"qkv_bias.{layer}": (3 * width,),
                f"out.{layer}": (width, width),
                f"out_bias.{layer}": (width,),
                f"out_norm.{layer}": (2, width),
                f"up.{layer}": (width, hidden),
                f"up_bias.{layer}": (hidden,),
                f"down.{layer}": (hidden, width),
                f"down_bias.{layer}": (width,),
                f"down_norm.{layer}": (2, width),
            }
        return shapes


class MiniLM(Cell):
    """Embeddings of rows of tokens: their mean, made one long.

    Args:
        shape: how large the model is.
        weights: by the names of `shape.parameters()`, float32. A query is to be divided by the root of a head's width
            already, and what goes into `down` by two.
    """

    def __init__(self, shape, weights):
        super().__init__()
        self.layers, self.width, self.heads = shape.layers, shape.width, shape.heads
        self.head_width = shape.width // shape.heads

        made = {}
        for name, size in shape.parameters().items():
            if weights[name].shape != size:
                raise ValueError(f"{name} is {weights[name].shape}, not {size}")
            made[name] = Parameter(Tensor(weights[name]), name=name, requires_grad=False)
        self.token_embedding, self.position_embedding = made["token_embedding"], made["position_embedding"]
        self.embedding_norm = made["embedding_norm"]
        self.qkv, self.qkv_bias, self.out, self.out_bias, self.out_norm = (
            ParameterTuple([made[f"{kind}.{layer}"] for layer in range(shape.layers)])
            for kind in ("qkv", "qkv_bias", "out", "out_bias", "out_norm")
        )
        self.up, self.up_bias, self.down, self.down_bias, self.down_norm = (
            ParameterTuple([made[f"{kind}.{layer}"] for layer in range(shape.layers)])
            for kind in ("up", "up_bias", "down", "down_bias", "down_norm")
        )

        self.positions = Tensor(np.arange(shape.context, dtype=np.int32))
        self.gather = ops.Gather()
        self.matmul = ops.MatMul()
        self.add_bias = ops.BiasAdd()
        self.layer_norm = ops.LayerNorm(1, 1, 1e-12)
        self.compare = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)
        self.split_heads = ops.Split(2, 3 * shape.heads)
        self.stack_heads = ops.Stack(1)
        self.split_mixed = ops.Split(1, shape.heads)
        self.stack_mixed = ops.Stack(2)
        self.sum = ops.ReduceSum(keep_dims=True)

    def construct(self, tokens, length):
        """tokens int32 [rows, tokens] and length int32 [rows] to embeddings float32 [rows, width]."""
        rows, size = ops.shape(tokens)
        seen = ops.less(self.positions[:size], ops.expand_dims(length, 1))  # [rows, tokens]
        hidden = ops.reshape(ops.select(seen, 0.0, HIDDEN), (rows, 1, 1, size))
        x = self.gather(self.token_embedding, tokens, 0) + self.position_embedding[:size]
        x = self.norm(ops.reshape(x, (-1, self.width)), self.embedding_norm)
        for layer in range(self.layers):
            y = self.linear(x, self.qkv[layer], self.qkv_bias[layer])
            y = self.linear(self.attend(y, hidden, rows, size), self.out[layer], self.out_bias[layer])
            x = self.norm(x + y, self.out_norm[layer])
            y = self.twice_gelu(self.linear(x, self.up[layer], self.up_bias[layer]))
            y = self.linear(y, self.down[layer], self.down_bias[layer])
            x = self.norm(x + y, self.down_norm[layer])
        seen = ops.expand_dims(ops.cast(seen, ms.float32), 1)
        x = self.mix(seen, ops.reshape(x, (rows, size, self.width)))  # the mean, but for its length
        x = ops.reshape(x, (rows, self.width))
        return x * ops.rsqrt(self.sum(x * x, 1))

    def linear(self, x, weight, bias):
        return self.add_bias(self.matmul(x, weight), bias)

    def norm(self, x, scale_and_shift):
        return self.layer_norm(x, scale_and_shift[0], scale_and_shift[1])[0]

    def attend(self, x, hidden, rows, size):
        """[rows * tokens, 3 * width] to [rows * tokens, width].

        A graph whose sizes are not known transposes eight times more slowly than one whose sizes are: the heads are
        taken apart and stacked.
        """
        parts = self.split_heads(ops.reshape(x, (rows, size, 3 * self.width)))
        query = self.stack_heads(parts[: self.heads])  # [rows, heads, tokens, a head's width]
        key = self.stack_heads(parts[self.heads : 2 * self.heads])
        value = self.stack_heads(parts[2 * self.heads :])
        mixed = self.mix(self.softmax(self.compare(query, key) + hidden), value)
        by_head = []
        for part in self.split_mixed(ops.reshape(mixed, (rows, self.heads, -1))):
            by_head.append(ops.reshape(part, (rows, size, self.head_width)))
        return ops.reshape(self.stack_mixed(by_head), (-1, self.width))

    def twice_gelu(self, x):
        square = ops.minimum(x * x, FITTED)
        factor = P[0] + square * (P[1] + square * (P[2] + square * (P[3] + square * P[4])))
        return x * (1.0 + ops.tanh(x * factor))

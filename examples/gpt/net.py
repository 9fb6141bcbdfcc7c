"""A GPT, as the three graphs that each rank has of it: prefill, decode with a KV cache, and the whole at once.

Tensor-parallel: a rank has some of the heads and some of the MLP's hidden units, and an AllReduce adds up what the ranks
make of a row after each of the two. Embeddings, positions and the head are small and on every rank, so every rank knows
the next token without asking the others.

The numbers of rows are never written down: after loading, a graph takes any number of rows in one compile. So are the
weights: they are parameters, and one compiled graph serves every rank.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

HIDDEN = -1e9  # added to the score of a position that must not be seen


@dataclass(frozen=True)
class Shape:
    """How large the model is. Tokens are bytes."""

    layers: int = 4
    width: int = 256
    heads: int = 8
    vocabulary: int = 256
    context: int = 192
    prompt: int = 128
    ranks: int = 1
    slots: int = 16

    @property
    def my_heads(self):
        return self.heads // self.ranks

    @property
    def head_width(self):
        return self.width // self.heads

    @property
    def my_width(self):
        return self.width // self.ranks

    @property
    def my_hidden(self):
        return 4 * self.width // self.ranks

    def parameters(self):
        """By name, the shape of what a rank holds."""
        width, mine, hidden = self.width, self.my_width, self.my_hidden
        shapes = {"wte": (self.vocabulary, width), "wpe": (self.context, width), "head": (width, self.vocabulary)}
        for layer in range(self.layers):
            shapes[f"qkv.{layer}"] = (width, 3 * mine)
            shapes[f"out.{layer}"] = (mine, width)
            shapes[f"up.{layer}"] = (width, hidden)
            shapes[f"down.{layer}"] = (hidden, width)
        return shapes


def random_weights(shape, seed):
    """The whole model's weights, float32 by name; a rank's part of them is `weights_of_rank`."""
    random = np.random.default_rng(seed)
    whole = {}
    for name, size in Shape(shape.layers, shape.width, shape.heads, shape.vocabulary, shape.context).parameters().items():
        scale = 1.0 if name in ("wte", "wpe") else 2.0 / np.sqrt(size[0])
        whole[name] = (scale * random.standard_normal(size)).astype(np.float32)
    return whole


def weights_of_rank(whole, rank, ranks):
    """What a rank holds: its columns of `qkv` and `up`, its rows of `out` and `down`, all of the rest."""
    part = {}
    for name, array in whole.items():
        kind = name.partition(".")[0]
        if kind == "qkv":  # queries, keys and values side by side, each divided by heads
            blocks = np.split(array, 3, axis=1)
            array = np.concatenate([np.split(block, ranks, axis=1)[rank] for block in blocks], axis=1)
        elif kind == "up":
            array = np.split(array, ranks, axis=1)[rank]
        elif kind in ("out", "down"):
            array = np.split(array, ranks, axis=0)[rank]
        part[name] = np.ascontiguousarray(array)
    return part


class Gpt(nn.Cell):
    """What the three graphs have in common.

    Args:
        shape: how large it is.
        group: the communication group that its collectives name.
        cached: whether it has caches.
    """

    def __init__(self, shape, group, cached):
        super().__init__()
        self.shape = shape
        self.layers, self.width, self.my_width = shape.layers, shape.width, shape.my_width
        self.heads, self.head_width = shape.my_heads, shape.head_width
        self.scale = float(shape.head_width**-0.5)
        made = {name: zeros(name, size) for name, size in shape.parameters().items()}
        self.wte, self.wpe, self.head = made["wte"], made["wpe"], made["head"]
        self.qkv, self.out, self.up, self.down = (
            ParameterTuple([made[f"{kind}.{layer}"] for layer in range(shape.layers)])
            for kind in ("qkv", "out", "up", "down")
        )
        if cached:
            size = (shape.slots, shape.context, shape.my_width)
            self.kcache, self.vcache = (
                ParameterTuple([zeros(f"{kind}.{layer}", size) for layer in range(shape.layers)])
                for kind in ("kcache", "vcache")
            )
        self.summed = shape.ranks > 1
        self.all_reduce = ops.AllReduce(group=group)
        self.layer_norm = ops.LayerNorm(1, 1)
        self.ones = Tensor(np.ones(shape.width, np.float32))
        self.zeros = Tensor(np.zeros(shape.width, np.float32))
        self.places = Tensor(np.arange(shape.context, dtype=np.int32))
        self.matmul = ops.MatMul()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)
        self.split = ops.Split(1, 3)
        self.concat = ops.Concat(1)
        self.sum = ops.ReduceSum()
        self.gather = ops.Gather()
        self.argmax = ops.Argmax(-1, ms.int32)
        self.update_rows = ops.ScatterUpdate()
        self.update_places = ops.ScatterNdUpdate()

    def set_weights(self, weights):
        for parameter in self.get_parameters():
            if parameter.name in weights:
                parameter.set_data(Tensor(weights[parameter.name]))

    def norm(self, x):
        return self.layer_norm(x, self.ones, self.zeros)[0]

    def over_ranks(self, x):
        return self.all_reduce(x) if self.summed else x

    def mlp(self, x, layer):
        hidden = ops.silu(self.matmul(self.norm(x), self.up[layer]))
        return x + self.over_ranks(self.matmul(hidden, self.down[layer]))

    def project(self, x, layer):
        return self.split(self.matmul(self.norm(x), self.qkv[layer]))

    def by_head(self, x, places):
        """[rows * places, my_width] -> [rows, heads, places, head_width]"""
        if self.heads == 1:
            return ops.reshape(x, (-1, 1, places, self.head_width))
        return ops.transpose(ops.reshape(x, (-1, places, self.heads, self.head_width)), (0, 2, 1, 3))

    def joined(self, x, places):
        if self.heads > 1:
            x = ops.transpose(x, (0, 2, 1, 3))
        return ops.reshape(x, (-1, self.my_width))

    def attend(self, x, query, key, value, hidden, places, layer):
        scores = self.scores(query, key) * self.scale + hidden
        mixed = self.joined(self.mix(self.softmax(scores), value), places)
        return x + self.over_ranks(self.matmul(mixed, self.out[layer]))

    def next_token(self, x):
        return self.argmax(self.matmul(self.norm(x), self.head))


class Prompt(Gpt):
    """All tokens of a row at once, each seeing those before it; what stands past a row's length is not looked at."""

    def __init__(self, shape, group, places, cached):
        super().__init__(shape, group, cached)
        self.cached = cached
        self.here = places
        later = np.triu(np.full((places, places), HIDDEN, np.float32), 1)
        self.later = Tensor(later)
        self.starts = Tensor(np.arange(1, dtype=np.int32))
        self.rest = shape.context - places
        self.blank = Tensor(np.zeros((shape.slots, self.rest, self.my_width), np.float32)) if self.rest else None

    def last(self, x, length):
        x = ops.reshape(x, (-1, self.here, self.width))
        return ops.gather(x, length - 1, 1, 1)

    def whole_slot(self, x, rest):
        return self.concat((ops.reshape(x, (-1, self.here, self.my_width)), rest))


class Prefill(Prompt):
    def __init__(self, shape, group):
        super().__init__(shape, group, shape.prompt, True)

    def construct(self, tokens, length, slot):
        here = self.here
        rest = self.gather(self.blank, slot, 0)
        x = self.gather(self.wte, tokens, 0) + self.wpe[:here]
        x = ops.reshape(x, (-1, self.width))
        for layer in range(self.layers):
            query, key, value = self.project(x, layer)
            x = ops.depend(x, self.update_rows(self.kcache[layer], slot, self.whole_slot(key, rest)))
            x = ops.depend(x, self.update_rows(self.vcache[layer], slot, self.whole_slot(value, rest)))
            x = self.attend(x, self.by_head(query, here), self.by_head(key, here), self.by_head(value, here), self.later, here, layer)
            x = self.mlp(x, layer)
        return self.next_token(self.last(x, length))


class Combined(Prompt):
    def __init__(self, shape, group):
        super().__init__(shape, group, shape.context, False)

    def construct(self, tokens, length):
        here = self.here
        x = self.gather(self.wte, tokens, 0) + self.wpe[:here]
        x = ops.reshape(x, (-1, self.width))
        for layer in range(self.layers):
            query, key, value = self.project(x, layer)
            x = self.attend(x, self.by_head(query, here), self.by_head(key, here), self.by_head(value, here), self.later, here, layer)
            x = self.mlp(x, layer)
        return self.next_token(self.last(x, length))


class Decode(Gpt):
    def __init__(self, shape, group):
        super().__init__(shape, group, True)
        self.here = shape.context
        own = np.repeat(np.eye(self.heads, dtype=np.float32), self.head_width, axis=1)
        self.own = Tensor(own)
        self.own_scaled = Tensor(own * np.float32(self.scale))

    def construct(self, token, position, slot):
        here = self.here
        x = self.gather(self.wte, token, 0) + self.gather(self.wpe, position, 0)
        later = ops.cast(self.places > ops.expand_dims(position, 1), ms.float32) * HIDDEN
        later = ops.expand_dims(later, 1)
        at = ops.stack((slot, position), 1)
        for layer in range(self.layers):
            query, key, value = self.project(x, layer)
            keys = self.gather(self.update_places(self.kcache[layer], at, key), slot, 0)
            values = self.gather(self.update_places(self.vcache[layer], at, value), slot, 0)
            query = ops.reshape(query, (-1, 1, self.my_width)) * self.own_scaled
            mixed = self.mix(self.softmax(self.scores(query, keys) + later), values)
            if self.heads > 1:
                mixed = self.sum(mixed * self.own, 1)
            mixed = ops.reshape(mixed, (-1, self.my_width))
            x = x + self.over_ranks(self.matmul(mixed, self.out[layer]))
            x = self.mlp(x, layer)
        return self.next_token(x)


def zeros(name, size):
    return Parameter(Tensor(np.zeros(size, np.float32)), name=name, requires_grad=False)

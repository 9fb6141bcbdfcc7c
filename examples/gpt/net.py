"""A GPT over bytes, as the three graphs that every rank has of it.

    Prefill   a prompt goes in whole, the next token comes out; keys and values stay in the slot's part of the caches
    Decode    one token goes in, at its position; the next one comes out, and its position, to go in again
    Combined  everything goes in for every token, and nothing stays: for comparison

It is tensor-parallel. A rank has some of the heads and some of the hidden units of the MLP. Attention and MLP of a
layer both start from the same normed row (as in GPT-J and PaLM), so that one AllReduce adds up what the ranks make of
the two: each is a place where all ranks wait for each other. Embeddings and the head are small and on every rank, so
that every rank knows the next token without asking the others.

Nothing here depends on the number of rows, and the graphs are exported for any.
Where an obvious operator is missing, it is for its cost on a CPU, which the comments name.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops
from mindspore.nn import Cell

HIDDEN = -1e9  # is added to the scores of positions that must not be seen


@dataclass(frozen=True)
class Shape:
    """How large the model is, and over how many ranks it is divided."""

    ranks: int = 1  # divides heads
    slots: int = 16  # how many texts the caches hold
    layers: int = 4
    width: int = 256
    heads: int = 8
    hidden: int = 1024
    vocabulary: int = 256
    context: int = 192  # of which a prompt may take:
    prompt: int = 128

    def parameters(self):
        """The shape of each parameter of one rank, by name."""
        mine, hidden = self.width // self.ranks, self.hidden // self.ranks
        shapes = {
            "token_embedding": (self.vocabulary, self.width),
            "position_embedding": (self.context, self.width),
            "head": (self.width, self.vocabulary),
        }
        for layer in range(self.layers):
            shapes[f"qkv.{layer}"] = (self.width, 3 * mine)  # the rank's heads: all queries, all keys, all values
            shapes[f"out.{layer}"] = (mine, self.width)
            shapes[f"up.{layer}"] = (self.width, hidden)
            shapes[f"down.{layer}"] = (hidden, self.width)
        return shapes


class Gpt(Cell):
    """What the three have in common. Its weights come with `set_weights`: one compiled graph serves every rank."""

    def __init__(self, shape, group):
        super().__init__()
        self.context, self.prompt, self.width = shape.context, shape.prompt, shape.width
        self.layers = shape.layers
        self.heads = shape.heads // shape.ranks
        self.head_width = shape.width // shape.heads
        self.mine = self.heads * self.head_width
        self.scale = self.head_width**-0.5

        made = {name: empty(name, size) for name, size in shape.parameters().items()}
        self.token_embedding = made["token_embedding"]
        self.position_embedding = made["position_embedding"]
        self.head = made["head"]
        self.qkv, self.out, self.up, self.down = (
            ParameterTuple([made[f"{kind}.{layer}"] for layer in range(shape.layers)])
            for kind in ("qkv", "out", "up", "down")
        )

        self.divided = shape.ranks > 1
        self.all_reduce = ops.AllReduce(group=group)
        self.layer_norm = ops.LayerNorm(1, 1)
        self.ones = Tensor(np.ones(shape.width, np.float32))
        self.zeros = Tensor(np.zeros(shape.width, np.float32))
        self.positions = Tensor(np.arange(shape.context, dtype=np.int32))
        self.matmul = ops.MatMul()
        self.compare = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)
        self.split = ops.Split(1, 3)
        self.concat = ops.Concat(1)
        self.sum = ops.ReduceSum()
        self.gather = ops.Gather()
        self.scatter = ops.ScatterUpdate()
        self.argmax = ops.Argmax(-1, ms.int32)

    def set_weights(self, weights):
        """Take over one rank's weights, by name."""
        for parameter in self.get_parameters():
            if parameter.name in weights:
                parameter.set_data(Tensor(weights[parameter.name]))

    def make_caches(self, shape):
        """Keys and values, a row for each position of each slot.

        With an axis for the slots of its own, a row would need ScatterNdUpdate, which copies the whole cache each time.
        """
        size = (shape.slots * shape.context, self.mine)
        self.kcache, self.vcache = (
            ParameterTuple([empty(f"{name}.{layer}", size) for layer in range(shape.layers)])
            for name in ("kcache", "vcache")
        )

    def norm(self, x):
        return self.layer_norm(x, self.ones, self.zeros)[0]

    def over_ranks(self, x):
        return self.all_reduce(x) if self.divided else x

    def query_key_value(self, normed, layer):
        return self.split(self.matmul(normed, self.qkv[layer]))

    def add(self, x, mixed, normed, layer):
        """The rows behind a layer: what attention has mixed, and the MLP, are added to them."""
        # SiLU, because GELU takes 19 times as long.
        hidden = ops.silu(self.matmul(normed, self.up[layer]))
        parts = self.matmul(mixed, self.out[layer]) + self.matmul(hidden, self.down[layer])
        return x + self.over_ranks(parts)

    def next_token(self, x):
        return self.argmax(self.matmul(self.norm(x), self.head))

    def rows_of(self, slot):
        """The cache's rows of each slot, [rows, context]."""
        return ops.expand_dims(slot * self.context, 1) + self.positions


class Whole(Gpt):
    """Texts of `length` tokens each, in rows of `size` tokens; what stands after a text is not looked at."""

    def __init__(self, shape, group, size):
        super().__init__(shape, group)
        self.size = size
        self.later = Tensor(np.triu(np.full((size, size), HIDDEN, np.float32), 1))

    def embed(self, tokens):
        x = self.gather(self.token_embedding, tokens, 0) + self.position_embedding[: self.size]
        return ops.reshape(x, (-1, self.width))

    def by_head(self, x):
        if self.heads == 1:  # then the transposition would only copy
            return ops.reshape(x, (-1, 1, self.size, self.head_width))
        return ops.transpose(ops.reshape(x, (-1, self.size, self.heads, self.head_width)), (0, 2, 1, 3))

    def attend(self, query, key, value):
        scores = self.compare(self.by_head(query), self.by_head(key)) * self.scale + self.later
        mixed = self.mix(self.softmax(scores), self.by_head(value))
        if self.heads > 1:
            mixed = ops.transpose(mixed, (0, 2, 1, 3))
        return ops.reshape(mixed, (-1, self.mine))

    def after(self, x, length):
        """The token after each text."""
        return self.next_token(ops.gather(ops.reshape(x, (-1, self.size, self.width)), length - 1, 1, 1))


class Prefill(Whole):
    def __init__(self, shape, group):
        super().__init__(shape, group, shape.prompt)
        self.make_caches(shape)
        rest = (shape.slots, shape.context - shape.prompt, self.mine)
        self.rest = Tensor(np.zeros(rest, np.float32))

    def construct(self, tokens, length, slot):
        x = self.embed(tokens)
        rows, rest = self.rows_of(slot), self.gather(self.rest, slot, 0)
        for layer in range(self.layers):
            normed = self.norm(x)
            query, key, value = self.query_key_value(normed, layer)
            x = ops.depend(x, self.scatter(self.kcache[layer], rows, self.whole_slot(key, rest)))
            x = ops.depend(x, self.scatter(self.vcache[layer], rows, self.whole_slot(value, rest)))
            x = self.add(x, self.attend(query, key, value), normed, layer)
        return self.after(x, length)

    def whole_slot(self, x, rest):
        """All of a slot is written: what was left there would count for nothing, but NaN times nothing is NaN."""
        return self.concat((ops.reshape(x, (-1, self.prompt, self.mine)), rest))


class Combined(Whole):
    def __init__(self, shape, group):
        super().__init__(shape, group, shape.context)

    def construct(self, tokens, length):
        x = self.embed(tokens)
        for layer in range(self.layers):
            normed = self.norm(x)
            x = self.add(x, self.attend(*self.query_key_value(normed, layer)), normed, layer)
        return self.after(x, length)


class Decode(Gpt):
    """Keys and values stay as the cache has them, the heads side by side: transposing them would take most of the time.

    Instead the query is repeated for each head, with zeros where the other heads are.
    """

    def __init__(self, shape, group):
        super().__init__(shape, group)
        self.make_caches(shape)
        own = np.repeat(np.eye(self.heads, dtype=np.float32), self.head_width, axis=1)
        self.own = Tensor(own)
        self.own_scaled = Tensor(own * np.float32(self.scale))

    def construct(self, token, position, slot):
        # A position past the end would be a row of the next slot.
        position = ops.minimum(ops.maximum(position, 0), self.context - 1)
        x = self.gather(self.token_embedding, token, 0) + self.gather(self.position_embedding, position, 0)
        later = ops.cast(self.positions > ops.expand_dims(position, 1), ms.float32) * HIDDEN
        later = ops.expand_dims(later, 1)
        following = position + 1
        here, rows = slot * self.context + position, self.rows_of(slot)
        for layer in range(self.layers):
            normed = self.norm(x)
            query, key, value = self.query_key_value(normed, layer)
            keys = self.gather(self.scatter(self.kcache[layer], here, key), rows, 0)
            values = self.gather(self.scatter(self.vcache[layer], here, value), rows, 0)
            x = self.add(x, self.attend(query, keys, values, later), normed, layer)
        return self.next_token(x), following

    def attend(self, query, keys, values, later):
        query = ops.reshape(query, (-1, 1, self.mine)) * self.own_scaled
        mixed = self.mix(self.softmax(self.compare(query, keys) + later), values)
        if self.heads > 1:
            mixed = self.sum(mixed * self.own, 1)
        return ops.reshape(mixed, (-1, self.mine))


def empty(name, size):
    return Parameter(Tensor(np.zeros(size, np.float32)), name=name, requires_grad=False)

"""SmolLM2-135M, as the two graphs that every rank has of it.

    Prefill   prompts go in whole, the next token of each comes out; keys and values stay in its slot of the caches
    Decode    one token goes in, at its position; the next one comes out, its position, and whether the text ends

It is tensor-parallel where its shapes allow. Nine heads do not divide by eight, so that each rank has the attention
whole. Of the hidden units of the MLP and of the vocabulary it has its part: an AllReduce adds up what the ranks make of
a row in the embedding and in each MLP, and an AllGather brings together the best tokens that each has found.

Every rank then chooses the next token from the same numbers, with noise that depends on nothing but the row's seed and
position. So all choose the same one, and the same whatever else is in the batch.

Nothing here depends on the number of rows, nor on how long the prompts of a batch are, and the graphs are exported for
any. Where an obvious operator is missing, it is for its cost on a CPU. Two kinds would keep memory in each layer until
the graph is called again, by the tokens of a batch: transpositions, and arithmetic on shapes that are not the same.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops
from mindspore.nn import Cell

HIDDEN = -1e9  # in place of the scores of positions that must not be seen
BITS = 2**32 - 1


@dataclass(frozen=True)
class Shape:
    """How large the model is, and over how many ranks it is divided."""

    ranks: int = 1  # divides hidden and vocabulary
    slots: int = 8  # how many texts the caches hold
    context: int = 512  # how long each may become
    layers: int = 30
    width: int = 576
    heads: int = 9
    kv_heads: int = 3  # each is shared by three heads
    head_width: int = 64
    hidden: int = 1536
    vocabulary: int = 49152
    theta: float = 100_000.0
    epsilon: float = 1e-5
    ends: tuple[int, ...] = (0, 2)  # <|endoftext|>, <|im_end|>
    best: int = 64  # among how many tokens one is chosen

    def parameters(self):
        """The shape of each parameter of one rank, by name."""
        hidden = self.hidden // self.ranks
        shapes = {"embedding": (self.vocabulary // self.ranks, self.width), "last_norm": (self.width,)}
        shapes["first_token"] = (1,)
        shapes["turns"] = (self.context, self.head_width, self.head_width)
        for layer in range(self.layers):
            shapes[f"qkv.{layer}"] = (self.width, (self.heads + 2 * self.kv_heads) * self.head_width)
            shapes[f"out.{layer}"] = (self.heads * self.head_width, self.width)
            shapes[f"gate_up.{layer}"] = (self.width, 2 * hidden)
            shapes[f"down.{layer}"] = (hidden, self.width)
        return shapes


class SmolLM2(Cell):
    """What the two have in common. Its weights come with the files: it is exported with none."""

    def __init__(self, shape, group):
        super().__init__()
        self.shape = shape
        self.layers, self.width, self.context, self.best = shape.layers, shape.width, shape.context, shape.best
        self.heads, self.kv_heads, self.head_width = shape.heads, shape.kv_heads, shape.head_width
        self.shared_by = shape.heads // shape.kv_heads
        self.turning = shape.heads + shape.kv_heads
        self.mine = shape.vocabulary // shape.ranks
        self.ranks, self.epsilon = shape.ranks, shape.epsilon

        made = {name: empty(name, size) for name, size in shape.parameters().items()}
        self.embedding, self.last_norm = made["embedding"], made["last_norm"]
        self.first_token, self.turns = made["first_token"], made["turns"]
        self.qkv, self.out, self.gate_up, self.down = (
            ParameterTuple([made[f"{kind}.{layer}"] for layer in range(shape.layers)])
            for kind in ("qkv", "out", "gate_up", "down")
        )
        # A row for each position of each KV head of each slot.
        size = (shape.slots * shape.kv_heads * shape.context, shape.head_width)
        self.kcache, self.vcache = (
            ParameterTuple([empty(f"{name}.{layer}", size) for layer in range(shape.layers)])
            for name in ("kcache", "vcache")
        )

        self.all_reduce = ops.AllReduce(group=group)
        self.all_gather = ops.AllGather(group=group)
        self.all_gather.rank_size = shape.ranks  # MindSpore would ask the group, which is not there when it is exported
        self.all_gather.add_prim_attr("rank_size", shape.ranks)
        self.average = Tensor(np.full((shape.width, 1), 1 / shape.width, np.float32))
        self.positions = Tensor(np.arange(shape.context, dtype=np.int32))
        self.kv_head = Tensor(np.arange(shape.kv_heads, dtype=np.int32) * shape.context)
        self.places = Tensor(np.arange(shape.best, dtype=np.int32))
        self.matmul = ops.MatMul()
        self.score = ops.MatMul(transpose_b=True)
        self.compare = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)
        self.gather, self.scatter = ops.Gather(), ops.ScatterUpdate()
        self.top = ops.TopK(sorted=True)
        self.parts = ops.Split(1, 2)
        self.running = ops.CumSum()

    def norm(self, x):
        return x * self.per_row(ops.rsqrt(self.matmul(x * x, self.average) + self.epsilon))

    def per_row(self, x):
        """A number for each row, to be multiplied with rows."""
        return x

    def over_ranks(self, x):
        return self.all_reduce(x) if self.ranks > 1 else x

    def embed(self, tokens):
        """[tokens, width]: those that are not the rank's own are zero until the ranks are added up."""
        place = tokens - ops.cast(self.first_token, ms.int32)
        own = ops.logical_and(place >= 0, place < self.mine)
        x = self.gather(self.embedding, ops.minimum(ops.maximum(place, 0), self.mine - 1), 0)
        return self.over_ranks(x * ops.expand_dims(ops.cast(own, ms.float32), 1))

    def query_key_value(self, x, turn, layer):
        """Queries [tokens, heads, head_width], keys and values [tokens, kv_heads, head_width]."""
        whole = ops.reshape(
            self.matmul(self.norm(x), self.qkv[layer]), (-1, self.turning + self.kv_heads, self.head_width)
        )
        turned = self.mix(whole[:, : self.turning], turn)
        return turned[:, : self.heads], turned[:, self.heads :], whole[:, self.turning :]

    def mlp(self, x, layer):
        gate, up = self.parts(self.matmul(self.norm(x), self.gate_up[layer]))
        return x + self.over_ranks(self.matmul(ops.silu(gate) * up, self.down[layer]))

    def rows_of(self, slot):
        """The cache's first row for each KV head of each slot, [rows, kv_heads]."""
        return ops.expand_dims(slot * (self.kv_heads * self.context), 1) + self.kv_head

    def next_token(self, x, position, temperature, top_k, top_p, seed):
        """The token after each row, chosen among the best; `position` is the row's own.

        Args:
            x: [rows, width].
            position: int32 [rows].
            temperature: float32 [rows], above 0.
            top_k: int32 [rows], among how many; 1 for the best.
            top_p: float32 [rows], up to how much probability.
            seed: int32 [rows].
        """
        value, place = self.top(self.score(self.norm(x) * self.last_norm, self.embedding), self.best)
        token = ops.cast(place, ms.float32) + self.first_token  # whole numbers, up to 2**24, are whole in float32
        if self.ranks > 1:
            both = ops.reshape(self.all_gather(ops.concat((value, token), 1)), (self.ranks, -1, 2, self.best))
            both = ops.reshape(ops.transpose(both, (2, 1, 0, 3)), (2, -1, self.ranks * self.best))
            value, place = self.top(both[0], self.best)
            token = ops.gather_elements(both[1], 1, ops.cast(place, ms.int64))
        value = (value - value[:, :1]) / ops.expand_dims(temperature, 1)
        likely = self.softmax(ops.select(self.places < ops.expand_dims(top_k, 1), value, ops.full_like(value, HIDDEN)))
        before = self.running(likely, 1) - likely
        likely = likely * ops.cast(before < ops.expand_dims(top_p, 1), ms.float32)
        upto = self.running(likely, 1)
        limit = ops.expand_dims(noise(seed, position), 1) * upto[:, -1:]
        chosen = ops.reduce_sum(ops.cast(upto <= limit, ms.float32), 1)
        chosen = ops.minimum(ops.cast(chosen, ms.int32), self.best - 1)
        return ops.cast(
            ops.reshape(ops.gather_elements(token, 1, ops.cast(ops.expand_dims(chosen, 1), ms.int64)), (-1,)), ms.int32
        )


class Prefill(SmolLM2):
    """Prompts of `length` tokens each, in rows of one size; what stands after a prompt is not looked at."""

    def __init__(self, shape, group):
        super().__init__(shape, group)
        self.each = {heads: ops.Split(2, heads) for heads in (shape.heads, shape.kv_heads)}
        self.along = Tensor(np.ones((1, shape.width), np.float32))
        self.each_mixed = ops.Split(1, shape.heads)
        self.nothing = Tensor(np.zeros((1, shape.kv_heads * shape.context * shape.head_width), np.float32))

    def construct(self, tokens, positions, length, temperature, top_k, top_p, seed, slot):
        size = ops.shape(tokens)[1]
        x = self.embed(ops.reshape(tokens, (-1,)))
        turn = self.gather(self.turns, ops.reshape(positions, (-1,)), 0)
        later = ops.expand_dims(ops.expand_dims(positions, 1), 1) > ops.expand_dims(ops.expand_dims(positions, 2), 1)
        later = ops.concat((ops.cast(later, ms.float32) * HIDDEN,) * self.heads, 1)  # [rows, heads, size, size]
        first = ops.expand_dims(self.rows_of(slot), 2)
        whole, here = first + self.positions, first + ops.expand_dims(positions, 1)
        # All of a slot is written: what was left there would count for nothing, but NaN times nothing is NaN.
        nothing = ops.reshape(
            self.gather(self.nothing, slot * 0, 0), (-1, self.kv_heads, self.context, self.head_width)
        )
        for layer in range(self.layers):
            query, key, value = self.query_key_value(x, turn, layer)
            key, value = self.by_head(key, size, self.kv_heads), self.by_head(value, size, self.kv_heads)
            for cache, new in ((self.kcache[layer], key), (self.vcache[layer], value)):
                x = ops.depend(x, self.scatter(cache, whole, nothing))
                x = ops.depend(x, self.scatter(cache, here, new))
            x = self.mlp(self.attend(x, query, key, value, later, size, layer), layer)
        x = ops.gather(ops.reshape(x, (-1, size, self.width)), length - 1, 1, 1)
        return self.next_token(x, length - 1, temperature, top_k, top_p, seed)

    def per_row(self, x):
        return self.matmul(x, self.along)

    def by_head(self, x, size, heads):
        """[rows * size, heads, head_width] as [rows, heads, size, head_width]."""
        found = ()
        for part in self.each[heads](ops.reshape(x, (-1, size, heads, self.head_width))):
            found += (ops.reshape(part, (-1, 1, size, self.head_width)),)
        return ops.concat(found, 1)

    def attend(self, x, query, key, value, later, size, layer):
        query = self.by_head(query, size, self.heads)
        query = ops.reshape(query, (-1, self.kv_heads, self.shared_by * size, self.head_width))
        scores = ops.reshape(self.compare(query, key), (-1, self.heads, size, size)) + later
        scores = ops.reshape(self.softmax(scores), (-1, self.kv_heads, self.shared_by * size, size))
        mixed = ops.reshape(self.mix(scores, value), (-1, self.heads, size, self.head_width))
        by_token = ()
        for part in self.each_mixed(mixed):
            by_token += (ops.reshape(part, (-1, self.head_width)),)
        return x + self.matmul(ops.concat(by_token, 1), self.out[layer])


class Decode(SmolLM2):
    def construct(self, token, position, temperature, top_k, top_p, seed, slot):
        # A position past the end would be a row of the next slot.
        position = ops.minimum(ops.maximum(position, 0), self.context - 1)
        x = self.embed(token)
        turn = self.gather(self.turns, position, 0)
        later = ops.cast(self.positions > ops.expand_dims(position, 1), ms.float32) * HIDDEN
        later = ops.expand_dims(ops.expand_dims(later, 1), 1)
        first = self.rows_of(slot)
        here, whole = first + ops.expand_dims(position, 1), ops.expand_dims(first, 2) + self.positions
        for layer in range(self.layers):
            query, key, value = self.query_key_value(x, turn, layer)
            keys = self.gather(self.scatter(self.kcache[layer], here, key), whole, 0)
            values = self.gather(self.scatter(self.vcache[layer], here, value), whole, 0)
            x = self.mlp(self.attend(x, query, keys, values, later, layer), layer)
        following = self.next_token(x, position, temperature, top_k, top_p, seed)
        done = following == self.shape.ends[0]
        for end in self.shape.ends[1:]:
            done = ops.logical_or(done, following == end)
        return following, position + 1, done

    def attend(self, x, query, keys, values, later, layer):
        query = ops.reshape(query, (-1, self.kv_heads, self.shared_by, self.head_width))
        mixed = self.mix(self.softmax(self.compare(query, keys) + later), values)
        return x + self.matmul(ops.reshape(mixed, (-1, self.heads * self.head_width)), self.out[layer])


def noise(seed, position):
    """A number from 0 to 1, below 1, for each seed and position: float32, as they are."""
    mixed = mix_bits(mix_bits(ops.cast(seed, ms.int64)) + ops.cast(position, ms.int64))
    return ops.cast(ops.bitwise_right_shift(mixed, 8), ms.float32) / 16777216.0  # 2**24


def mix_bits(x):
    """A hash of 32 bits, https://github.com/skeeto/hash-prospector, in numbers of 64."""
    x = ops.bitwise_and(x, BITS)
    x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, 16))
    x = ops.bitwise_and(x * 0x21F0AAAD, BITS)
    x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, 15))
    x = ops.bitwise_and(x * 0x735A2D97, BITS)
    return ops.bitwise_xor(x, ops.bitwise_right_shift(x, 15))


def turns(shape):
    """By position, the matrix that turns a head's numbers, neighbours in pairs: [context, head_width, head_width]."""
    half = np.arange(shape.head_width // 2)
    angles = np.outer(np.arange(shape.context), shape.theta ** (-2.0 * half / shape.head_width))
    found = np.zeros((shape.context, shape.head_width, shape.head_width), np.float32)
    found[:, 2 * half, 2 * half] = found[:, 2 * half + 1, 2 * half + 1] = np.cos(angles)
    found[:, 2 * half, 2 * half + 1] = np.sin(angles)
    found[:, 2 * half + 1, 2 * half] = -np.sin(angles)
    return found


def empty(name, size):
    return Parameter(Tensor(np.zeros(size, np.float32)), name=name, requires_grad=False)

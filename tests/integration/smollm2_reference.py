"""The whole SmolLM2 in numpy, straight from the GGUF file: what each token of examples/smollm2 is to be."""

import numpy as np

LAYERS, HEADS, KV_HEADS, HEAD_WIDTH = 30, 9, 3, 64
THETA, EPSILON, BEST = 100_000.0, 1e-5, 64


def logits(weights, tokens):
    """[tokens, vocabulary]: after each token, what is thought of the next."""
    x = weights["token_embd"][tokens]
    seen = np.tril(np.ones((len(tokens), len(tokens)), bool))
    for layer in range(LAYERS):

        def weight(name, layer=layer):
            return weights[f"blk.{layer}.{name}"]

        given = norm(x, weight("attn_norm"))
        query = turned((given @ weight("attn_q").T).reshape(len(tokens), HEADS, HEAD_WIDTH))
        key = turned((given @ weight("attn_k").T).reshape(len(tokens), KV_HEADS, HEAD_WIDTH))
        value = (given @ weight("attn_v").T).reshape(len(tokens), KV_HEADS, HEAD_WIDTH)
        mixed = []
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            mixed.append(attention(query[:, head], key[:, group], value[:, group], seen))
        x = x + np.concatenate(mixed, axis=1) @ weight("attn_output").T
        given = norm(x, weight("ffn_norm"))
        gate = given @ weight("ffn_gate").T
        hidden = gate / (1 + np.exp(-gate)) * (given @ weight("ffn_up").T)
        x = x + hidden @ weight("ffn_down").T
    return norm(x, weights["output_norm"]) @ weights["token_embd"].T


def norm(x, scale):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPSILON) * scale


def turned(x):
    """Rotary positions, of neighbours in pairs: as the numbers of a GGUF file lie."""
    angles = np.outer(np.arange(len(x)), THETA ** (-np.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH))
    cos, sin = np.cos(angles)[:, None].astype(x.dtype), np.sin(angles)[:, None].astype(x.dtype)
    result = np.empty_like(x)
    result[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
    result[..., 1::2] = x[..., 1::2] * cos + x[..., ::2] * sin
    return result


def attention(query, key, value, seen):
    scores = np.where(seen, query @ key.T / np.sqrt(query.shape[1]).astype(query.dtype), -np.inf)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True) @ value


def chosen(scores, position, *, temperature, top_k, top_p, seed):
    """The token that the example is to choose.

    Args:
        scores: [vocabulary], of the token at a position.
        position: of the last token that was known.
    """
    best = np.argsort(-scores, kind="stable")[:BEST]
    if temperature == 0:
        return int(best[0])
    likely = np.exp((scores[best] - scores[best[0]]).astype(np.float64) / temperature)
    likely[top_k:] = 0
    likely /= likely.sum()
    before = np.cumsum(likely) - likely
    likely[1:][before[1:] >= top_p] = 0
    return int(best[np.searchsorted(np.cumsum(likely), noise(seed, position) * likely.sum(), side="right")])


def noise(seed, position):
    """A number from 0 to 1 for each seed and position."""

    def mixed(x):
        x ^= x >> 16
        x = x * 0x21F0AAAD % 2**32
        x ^= x >> 15
        x = x * 0x735A2D97 % 2**32
        return x ^ (x >> 15)

    return (mixed((mixed(seed) + position) % 2**32) >> 8) / 2**24


def expected(weights, prompt, tokens, **how):
    """What the whole model gives for each of the tokens after a prompt, given those before it."""
    scores = logits(weights, np.array([*prompt, *tokens[:-1]]))
    return [chosen(scores[at], at, **how) for at in range(len(prompt) - 1, len(prompt) + len(tokens) - 1)]

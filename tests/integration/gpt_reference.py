"""The whole model of examples/gpt in numpy: what each of its tokens is to be."""

import numpy as np

LAYERS, HEADS = 4, 8


def read(model):
    return {name: array.astype(np.float64) for name, array in np.load(model / "weights.npz").items()}


def logits(weights, tokens):
    """[tokens, vocabulary], in the weights' precision: after each token, what is thought of the next."""
    x = weights["token_embedding"][tokens] + weights["position_embedding"][: len(tokens)]
    seen = np.tril(np.ones((len(tokens), len(tokens)), bool))
    for layer in range(LAYERS):
        normed = norm(x)
        by_head = normed @ weights[f"qkv.{layer}"]
        by_head = by_head.reshape(len(tokens), 3, HEADS, -1)
        mixed = [attention(*by_head[:, :, head].swapaxes(0, 1), seen) for head in range(HEADS)]
        hidden = normed @ weights[f"up.{layer}"]
        x = x + np.concatenate(mixed, axis=1) @ weights[f"out.{layer}"]
        x = x + (hidden / (1 + np.exp(-hidden))) @ weights[f"down.{layer}"]
    return norm(x) @ weights["head"]


def attention(query, key, value, seen):
    scores = np.where(seen, query @ key.T / np.sqrt(query.shape[1]), -np.inf)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True) @ value


def norm(x):
    return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-7)


def best(weights, prompt, tokens):
    """What the whole model gives for each of the tokens after a prompt, given those before it."""
    text = np.append(prompt, tokens[:-1]).astype(int)
    return logits(weights, text)[len(prompt) - 1 :].argmax(axis=1).tolist()

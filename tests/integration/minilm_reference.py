"""all-MiniLM-L6-v2 in numpy, with the weights as the package has them: what an embedding is to be."""

import numpy as np
from safetensors.numpy import load_file
from scipy.special import erf

LAYERS, HEADS = 6, 12


def read(file):
    return {name: array.astype(np.float64) for name, array in load_file(file).items() if array.dtype.kind == "f"}


def embedding(weights, ids):
    """[384], of length 1: of one text by itself, without any padding."""
    size = len(ids)
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][:size]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(weights, "embeddings", x)
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        query, key, value = (
            linear(weights, f"{name}.attention.self.{part}", x).reshape(size, HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[2])
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        mixed = (scores / scores.sum(axis=2, keepdims=True) @ value).swapaxes(0, 1).reshape(size, -1)
        x = norm(weights, f"{name}.attention.output", x + linear(weights, f"{name}.attention.output.dense", mixed))
        hidden = linear(weights, f"{name}.intermediate.dense", x)
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        x = norm(weights, f"{name}.output", x + linear(weights, f"{name}.output.dense", hidden))
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights, name, x):
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-12)
    return x * weights[f"{name}.LayerNorm.weight"] + weights[f"{name}.LayerNorm.bias"]

"""Sentence embeddings over eight ranks, each of which has the whole model and gets an eighth of the rows of a step."""

import functools
from pathlib import Path

from buckets import CONTEXT, padded
from rankmq.engine import distributed, register
from rankmq.schemas.errors import InvalidInput
from tokenizers import Tokenizer

MODEL = Path(__file__).resolve().parent.parent / "model"
MOST_LETTERS = 1 << 16  # of which much less makes up the tokens that the model looks at

distributed.declare_servable(
    rank_size=8,
    stage_size=1,
    with_batch_dim=True,
    batch_size=256,
    subgraphs=[
        distributed.subgraph(
            "model/minilm.mindir",  # one for all ranks: no {rank} in it
            inputs=[distributed.shard(0), distributed.shard(0)],
            outputs=[distributed.concat(0)],
        )
    ],
)


@functools.cache
def tokenizer():
    found = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    found.no_padding()
    found.enable_truncation(CONTEXT)
    return found


def check(text):
    """By itself for each instance, so that one that is wrong harms no other."""
    if text.dtype.kind not in "UT" or text.ndim:
        raise InvalidInput(f"text must be one string, not {text.dtype} of shape {text.shape}")
    return text


def tokenize(instances):
    """All instances of a request at once, which takes less than one after the other."""
    texts = [str(text)[:MOST_LETTERS] for (text,) in instances]
    return [padded(one.ids) for one in tokenizer().encode_batch_fast(texts)]


@register.register_method(output_names=["embedding"])
def embed(text):
    """A string to 384 float32, a vector of length 1."""
    text = register.call_preprocess(check, text)
    tokens, length = register.call_preprocess_pipeline(tokenize, text)
    embedding = register.call_servable(tokens, length)
    return embedding

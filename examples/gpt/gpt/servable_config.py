"""A GPT over eight ranks, whose caches of keys and values stay on the ranks while a text grows.

An instance holds a slot from its first call to its end: `slot`, the last input of prefill and decode, is filled in with
its number. The caches are one and the same in both graphs.
"""

import numpy as np
from rankmq.engine import distributed, register
from rankmq.engine.register import PipelineServable
from rankmq.schemas.errors import InvalidInput

PROMPT, CONTEXT, VOCABULARY = 128, 192, 256
PREFILL, DECODE, COMBINED = range(3)

distributed.declare_servable(
    rank_size=8,
    stage_size=1,
    with_batch_dim=True,
    subgraphs=[
        "prefill.mindir",
        # A text that is written alone is frequent, and MindSpore quicker where it knows that there is one row.
        distributed.subgraph("decode.mindir", compiled_rows=[1]),
        distributed.subgraph("combined.mindir", compiled_rows=[1]),
    ],
    slots=16,  # as many as export_model.py has made room for
    shared_parameters=["kcache.*", "vcache.*"],
)


def pad(tokens, length, size):
    """The first `length` tokens, and zeros up to `size`."""
    if tokens.ndim != 1 or not np.all((tokens >= 0) & (tokens < VOCABULARY)):
        raise InvalidInput(f"tokens must be one row of numbers from 0 to {VOCABULARY - 1}")
    if length.ndim or not 1 <= length <= min(size, tokens.size):
        raise InvalidInput(f"length must be a number from 1 to {size}, and not above the {tokens.size} tokens")
    padded = np.zeros(size, np.int32)
    padded[:length] = tokens[:length]
    return padded


@register.register_method(output_names=["token"])
def prefill(tokens, length):
    tokens = register.call_preprocess(pad, tokens, length, PROMPT)
    token = register.call_servable(tokens, length, subgraph=PREFILL)
    return token


@register.register_method(output_names=["token"])
def decode(token, position):
    token, _ = register.call_servable(token, position, subgraph=DECODE)
    return token


def start(prompt, new_tokens):
    """The padded prompt, its length, and how many tokens are to come after the first."""
    check(prompt, new_tokens)
    return pad(prompt, np.int32(prompt.size), PROMPT), np.int32(prompt.size), np.int32(new_tokens - 1)


def join(first, rest):
    return np.append(first, rest)


@register.register_method(output_names=["tokens"])
def generate(prompt, new_tokens):
    """The prompt once, then a loop on the ranks: the token that comes out goes in again, at the next position."""
    tokens, length, further = register.call_preprocess(start, prompt, new_tokens)
    token = register.call_servable(tokens, length, subgraph=PREFILL)
    rest = register.repeat(
        token,
        length,
        subgraph=DECODE,
        times=further,
        at_most=CONTEXT,
        feed={"token": 0, "position": 1},
        collect=0,
        slice_turns=32,
        slice_seconds=0.15,  # and so newcomers wait no longer than that
    )
    tokens = register.call_postprocess(join, token, rest)
    return tokens


@register.register_method(output_names=["token"])
def combined(tokens, length):
    tokens = register.call_preprocess(pad, tokens, length, CONTEXT)
    token = register.call_servable(tokens, length, subgraph=COMBINED)
    return token


first = PipelineServable(servable_name="gpt", method="prefill")
following = PipelineServable(servable_name="gpt", method="decode")
whole = PipelineServable(servable_name="gpt", method="combined")


def check(prompt, new_tokens):
    if prompt.ndim != 1 or not 1 <= prompt.size <= PROMPT:
        raise InvalidInput(f"a prompt is one row of 1 to {PROMPT} tokens, not of shape {prompt.shape}")
    if new_tokens.ndim or not 1 <= new_tokens <= CONTEXT - prompt.size + 1:
        raise InvalidInput(f"after {prompt.size} tokens there is room for 1 to {CONTEXT - prompt.size + 1} new ones")


@register.register_pipeline(output_names=["tokens"])
def generate_by_trip(prompt, new_tokens):
    """The prompt once, then a trip to the ranks for each token, to compare."""
    check(prompt, new_tokens)
    token = first.run(prompt, np.int32(prompt.size))
    tokens = [token]
    for position in range(prompt.size, prompt.size + int(new_tokens) - 1):
        token = following.run(token, np.int32(position))
        tokens.append(token)
    return np.array(tokens, np.int32)


@register.register_pipeline(output_names=["tokens"])
def generate_combined(prompt, new_tokens):
    """Everything again for every token, to compare."""
    check(prompt, new_tokens)
    text = prompt.astype(np.int32)
    for _ in range(int(new_tokens)):
        token = whole.run(text, np.int32(text.size))
        text = np.append(text, token)
    return text[prompt.size :]

"""SmolLM2-135M-Instruct over eight ranks: text in, text out, several conversations at once.

An instance holds a slot from its first call to its end: `slot`, the last input of both graphs, is filled in with its
number. Weights and caches are one and the same in both graphs.
"""

import functools
import json
from pathlib import Path

import numpy as np
from rankmq.engine import distributed, register
from rankmq.schemas.errors import InvalidInput

CONTEXT, PROMPT, BEST = 512, 384, 64  # tokens of a text, of which those of the prompt; among how many one is chosen
ENDS = (0, 2)  # <|endoftext|>, <|im_end|>
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PREFILL, DECODE = range(2)

distributed.declare_servable(
    rank_size=8,
    stage_size=1,
    with_batch_dim=True,
    subgraphs=["prefill.mindir", distributed.subgraph("decode.mindir", compiled_rows=[1])],
    slots=8,  # as many as export_model.py has made room for
    shared_parameters=["*"],
)


# ------------------------------------------------------------------------------------------------------ what is asked


@functools.cache
def tokenizer():
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(Path(__file__).resolve().parents[1] / "model" / "tokenizer.json"))
    made.encode_special_tokens = True  # <|im_end|> within somebody's words is text, and ends nothing
    return made


def messages_of(prompt):
    """The conversation that a prompt is: a question, or a list of messages as JSON."""
    text = str(prompt)
    if not text.lstrip().startswith("["):
        return [{"role": "user", "content": text}]
    try:
        return json.loads(text)
    except ValueError:
        return [{"role": "user", "content": text}]


def tokens_of(messages):
    """The tokens of a conversation, up to where the answer begins: the model's chat template."""
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("messages must be a list of at least one")
    for message in messages:
        fit = isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        if not fit or message["role"] not in ("system", "user", "assistant"):
            raise InvalidInput("a message is a role, system, user or assistant, and its content, a text")
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEM}, *messages]
    start, end = tokenizer().token_to_id("<|im_start|>"), tokenizer().token_to_id("<|im_end|>")
    tokens = []
    for message in messages:
        words = tokenizer().encode(f"{message['role']}\n{message['content']}").ids
        tokens += [start, *words, end, *tokenizer().encode("\n").ids]
    return [*tokens, start, *tokenizer().encode("assistant\n").ids]


def number(options, name, default, least, most, *, whole=False):
    value = options.get(name)
    value = default if value is None else value
    fit = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fit or not least <= value <= most:
        raise InvalidInput(f"{name} must be a {'whole ' * whole}number from {least} to {most}, not {value!r:.40}")
    return value


def inputs_of(messages, options):
    """What the graphs are given, and how many tokens are to come after the first."""
    tokens = tokens_of(messages)
    if len(tokens) > PROMPT:
        raise InvalidInput(f"the conversation has {len(tokens)} tokens, and {PROMPT} are the most")
    unknown = sorted(options.keys() - {"max_tokens", "temperature", "top_k", "top_p", "seed"})
    if unknown:
        raise InvalidInput(f"unknown option {', '.join(unknown):.80}")
    room = CONTEXT - len(tokens)
    new = min(number(options, "max_tokens", 128, 1, CONTEXT, whole=True), room)
    temperature = number(options, "temperature", 0, 0, 100)
    top_k = number(options, "top_k", BEST, 1, BEST, whole=True)
    top_p = max(number(options, "top_p", 1, 0, 1), 1e-6)  # the likeliest token is always among those to choose from
    seed = number(options, "seed", 0, 0, 2**31 - 1, whole=True)
    if temperature < 1e-3:
        temperature, top_k = 1, 1
    padded = np.zeros(-(-len(tokens) // 32) * 32, np.int32)  # of few sizes: prompts of one size share a batch
    padded[: len(tokens)] = tokens
    return (
        padded,
        np.arange(len(padded), dtype=np.int32),
        np.int32(len(tokens)),
        np.float32(temperature),
        np.int32(top_k),
        np.float32(top_p),
        np.int32(seed),
        np.int32(new - 1),
    )


def json_object(what, text):
    try:
        value = json.loads(str(text))
    except ValueError as error:
        raise InvalidInput(f"{what} must be JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} must be a JSON object")
    return value


def start(prompt, options):
    return inputs_of(messages_of(prompt), json_object("options", options))


def start_completion(body):
    options = json_object("body", body)
    messages = options.pop("messages", None)
    options.pop("model", None)
    return inputs_of(messages, options)


# --------------------------------------------------------------------------------------------------- what is answered


def text_of(tokens):
    return tokenizer().decode([int(token) for token in tokens if token not in ENDS])


def further_turns(first, further):
    """How many turns of the loop there are: none where the text ends with its first token."""
    register.send_part(**so_far(first))
    return np.int32(0) if first in ENDS else further


def so_far(first, rest=()):
    """The text until now, but for a last character of which not all bytes are there."""
    return {"text": text_of([first, *rest]).rstrip("\ufffd")}


def answer(first, rest, length):
    tokens = [int(first), *(int(token) for token in rest)]
    reason = "stop" if tokens[-1] in ENDS else "length"
    return text_of(tokens), reason, np.array(tokens, np.int32), np.int32(length)


def completion_of(first, rest, length):
    text, reason, tokens, asked = answer(first, rest, length)
    asked, answered = int(asked), len(tokens)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    usage = {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
    return json.dumps({"object": "chat.completion", "model": "smollm2", "choices": [choice], "usage": usage})


def generate(inputs):
    """The prompt once, then a loop on the ranks: the token that comes out goes in again, at the next position."""
    tokens, positions, length, temperature, top_k, top_p, seed, further = inputs
    first = register.call_servable(tokens, positions, length, temperature, top_k, top_p, seed, subgraph=PREFILL)
    further = register.call_postprocess(further_turns, first, further)
    rest = register.repeat(
        first,
        length,
        temperature,
        top_k,
        top_p,
        seed,
        subgraph=DECODE,
        times=further,
        at_most=CONTEXT,
        slice_turns=4,
        feed={"token": 0, "position": 1},
        until=2,
        collect=0,
        stream=so_far,
        stream_args=[first],
    )
    return first, rest, length


@register.register_method(output_names=["text", "finish_reason", "tokens", "prompt_tokens"])
def chat(prompt, options):
    """An answer to a question, or to a conversation: a list of messages, as JSON."""
    inputs = register.add_stage(start, prompt, options, outputs_count=8)
    text, reason, tokens, asked = register.call_postprocess(answer, *generate(inputs))
    return text, reason, tokens, asked


@register.register_method(output_names=["body"])
def completion(body):
    """The same, with question and answer in the form of OpenAI's chat completions."""
    inputs = register.add_stage(start_completion, body, outputs_count=8)
    return register.call_postprocess(completion_of, *generate(inputs))

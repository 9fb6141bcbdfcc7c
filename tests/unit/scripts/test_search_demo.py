"""`rankmq demo minilm`: the example's own search over the answers of a client."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rankmq.schemas.errors import ConfigurationError, OperatorError
from rankmq.scripts.demos import SearchDemo
from rankmq.scripts.progress import StartProgress

EXAMPLE = Path(__file__).parents[3] / "examples" / "minilm"


class Embedder:
    """A client whose embeddings are by a text's first letter."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def infer_async(self, instances: list[dict[str, str]]) -> Future[list[dict[str, Any]]]:
        answer: Future[list[dict[str, Any]]] = Future()
        self.texts += [it["text"] for it in instances]
        answer.set_result([{"embedding": np.eye(384, dtype=np.float32)[ord(it["text"][0])]} for it in instances])
        return answer


def asked(demo: SearchDemo, monkeypatch: pytest.MonkeyPatch) -> tuple[Embedder, list[str]]:
    import asyncio

    monkeypatch.setattr(demo._search, "sentences", lambda most: ["Wrong.", "Apples are near.", "Also wrong?", "Zebra."])
    client, parts = Embedder(), []
    with StartProgress(live=False) as progress:
        asyncio.run(demo.ask(client, lambda part, _: parts.append(part), progress))  # type: ignore[arg-type]
    return client, parts


def test_it_shows_the_nearest_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    demo = SearchDemo(EXAMPLE, "Are apples near?")
    client, parts = asked(demo, monkeypatch)
    assert parts == ["4 sentences", "the question"]
    assert sorted(client.texts) == sorted(["Wrong.", "Apples are near.", "Also wrong?", "Zebra.", "Are apples near?"])
    capsys.readouterr()
    assert demo.show(EXAMPLE) == "4 sentences, of Python's standard library, by eight ranks."
    shown = capsys.readouterr().out.split("\n")
    assert shown[1:5] == ["Are apples near?", "  1.00  Apples are near.", "  1.00  Also wrong?", "  0.00  Wrong."]


def test_nothing_near_the_question_whose_answer_is_known_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = SearchDemo(EXAMPLE, None)
    asked(demo, monkeypatch)
    with pytest.raises(OperatorError, match="nothing is near"):
        demo.show(EXAMPLE)


def test_a_folder_without_a_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no search\.py in"):
        SearchDemo(tmp_path, None)

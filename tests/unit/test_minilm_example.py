"""What examples/minilm does by itself, without ranks: buckets, sentences, and the nearest ones."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

EXAMPLE = Path(__file__).parents[2] / "examples" / "minilm"


def module(file: str) -> ModuleType:
    path = EXAMPLE / file
    specification = importlib.util.spec_from_file_location(f"minilm_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    found = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(path.parent))  # for what it imports itself
    try:
        specification.loader.exec_module(found)
    finally:
        sys.path.remove(str(path.parent))
    return found


buckets, sentences = module("minilm/buckets.py"), module("sentences.py")


@given(st.lists(st.integers(1, 30521), min_size=1, max_size=256))
def test_a_row_is_its_tokens_and_zeros_up_to_the_next_bucket(ids: list[int]) -> None:
    tokens, length = buckets.padded(ids)
    assert tokens.dtype == length.dtype == np.int32
    assert tokens[:length].tolist() == ids
    assert not tokens[length:].any()
    assert len(tokens) == min(bucket for bucket in buckets.BUCKETS if bucket >= len(ids))


def test_padding_is_small() -> None:
    assert buckets.CONTEXT == 256
    for length in range(buckets.BUCKETS[0], buckets.CONTEXT + 1):
        assert length <= buckets.bucket_of(length) <= 1.5 * length


def test_sentences_are_whole_and_code_is_left_out() -> None:
    split = sentences.split
    assert list(split("Open the file, and read it.  Close it when that is done.\nReally?  No.")) == [
        "Open the file, and read it.",
        "Close it when that is done.",
    ]
    assert list(split("Return x = 3 if it is so, and nothing otherwise.")) == []
    assert list(split(">>> open(a, b)\nThis is what comes of it.")) == []
    assert list(split("a list of some words without an end")) == []
    assert list(split("__init__ spam_eggs foo_bar f_1 g_2 Is not much of a sentence.")) == []


def test_the_librarys_sentences_are_always_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text('"""This is the first one of all. And this is another one."""\n')
    (tmp_path / "csv.py").write_text(
        'class A:\n    """Here is what a class says."""\n    def f():\n        """This is the first one of all."""\n'
    )
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "ours.py").write_text('"""What tests say is left out."""')
    (tmp_path / "other.py").write_text('"""So is what others say here."""')
    monkeypatch.setattr(sentences.sysconfig, "get_path", lambda _: str(tmp_path))
    every = ["Here is what a class says.", "This is the first one of all.", "And this is another one."]
    assert sentences.sentences() == every
    assert sentences.sentences(2) == every[:2]
    assert sentences.sentences(1) == every[:1]


def test_the_nearest_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentences", sentences)
    search = module("search.py")
    embeddings = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32)
    assert search.nearest(np.array([0, 1], np.float32), embeddings, 2) == [(1, 1.0), (2, pytest.approx(0.8))]

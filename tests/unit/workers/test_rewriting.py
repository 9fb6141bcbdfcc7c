"""A graph that is rewritten when it is loaded finds the weights that are in files beside it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from rankmq.workers import rewriting
from rankmq.workers.rewriting import Rewriting


def parameter(location: str | None) -> SimpleNamespace:
    return SimpleNamespace(
        external_data=SimpleNamespace(location=location or ""), HasField=lambda name: location is not None
    )


def parse(content: bytes) -> SimpleNamespace:
    graph = SimpleNamespace(parameter=[parameter(it or None) for it in content.decode().split(",")])
    return SimpleNamespace(graph=graph, SerializeToString=lambda: b"rewritten")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rewriting, "rewrite", lambda model, library, size: size)
    (tmp_path / "parts").mkdir()
    (tmp_path / "weights").write_bytes(b"of all")
    (tmp_path / "parts" / "data_0").write_bytes(b"of one")
    file = tmp_path / "graph.mindir"
    file.write_bytes(b"weights,,parts/data_0,weights")
    return file


@pytest.mark.parametrize("linked", [True, False])
def test_the_weights_are_beside_what_is_loaded(model: Path, monkeypatch: pytest.MonkeyPatch, linked: bool) -> None:
    def refused(*_: object) -> None:
        raise OSError("another file system")

    if not linked:
        monkeypatch.setattr(rewriting.os, "link", refused)
    with Rewriting(Path("/library.so"), 2).source(model, parse) as changed:
        assert changed.read_bytes() == b"rewritten"
        assert changed.parent != model.parent
        for name in ("weights", "parts/data_0"):
            found, given = changed.parent / name, model.parent / name
            assert found.resolve().parent == (changed.parent / name).parent.resolve(), "MindSpore follows links"
            assert found.read_bytes() == given.read_bytes()
            assert found.samefile(given) == linked
    assert not changed.parent.exists()
    assert (model.parent / "weights").read_bytes() == b"of all"


def test_a_graph_that_talks_to_nobody_stays_where_it_is(model: Path) -> None:
    with Rewriting(Path("/library.so"), 0).source(model, parse) as source:
        assert source == model

"""`rankmq demo`: once for real, and in all ways in which it can end on numpy graphs that an export writes at once."""

import signal
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.e2e.cli import MATMUL, Service, failed, rankmq
from tests.e2e.systems import ROOT

PARTS = (
    "broker up",
    "ranks ready",
    "first answer",
    "start to first answer",
    "second answer",
    "total, all stopped again",
)


def stand_in(folder: Path, weights: tuple[float, float] = (0.5, 1.5), before: str = "") -> Path:
    """An example whose export takes no MindSpore."""
    (folder / "matmul").mkdir(parents=True)
    (folder / "matmul" / "servable_config.py").write_text(MATMUL)
    (folder / "export_model.py").write_text(
        dedent(f"""
        import sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        import numpy as np
        from tests.e2e.graphs import negated_matmul

        print("exporting")
        {before}
        for number, weight in enumerate({weights}):
            for rank in range(8):
                graph = negated_matmul(np.full((96, 16), weight, np.float32))
                graph.write(Path("model") / f"device{{rank}}" / f"matmul_{{number}}.npz")
        """)
    )
    return folder


@pytest.fixture(autouse=True)
def _temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))


def left_in_tmp(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "tmp").glob("rankmq-demo-*")]


def test_it_answers_like_the_original_document(tmp_path: Path):
    example = stand_in(tmp_path / "example")
    with Service(tmp_path, "demo", "--example", example) as demo:
        assert demo.ended(60) == 0, demo.errors
        assert "result:\n [{'x': array([[-96., -96., -96., ..., -96., -96., -96.]," in demo.output
        assert "'z': array([[-144., -144., -144., ..., -144., -144., -144.]," in demo.output
        for part in ("export", *PARTS):
            assert f"\n{part} " in demo.output
        assert demo.errors == ""
        assert demo.left_behind() == []
    assert left_in_tmp(tmp_path) == []
    again = rankmq("demo", "--example", example)
    assert again.returncode == 0, again.stderr
    assert "exporting" not in again.stdout
    assert "\nexport " not in again.stdout


def test_a_wrong_answer_is_no_success(tmp_path: Path):
    done = rankmq("demo", "--example", stand_in(tmp_path / "example", weights=(0.5, 0.5)))
    assert "x must be -96 and z -144" in failed(done, 1)
    assert "-48." in done.stdout


def test_a_failed_export_shows_its_log(tmp_path: Path):
    example = stand_in(tmp_path / "example", before="raise SystemExit('no weights today')")
    done = rankmq("demo", "--example", example)
    assert done.returncode == 5
    assert "rankmq: the export of the graphs failed: no weights today" in done.stderr
    assert "export.log" in done.stderr
    assert "exporting" in done.stderr
    (kept,) = left_in_tmp(tmp_path)
    assert (tmp_path / "tmp" / kept / "log" / "export.log").read_text() == "exporting\nno weights today\n"


def test_ctrl_c_while_it_exports(tmp_path: Path):
    example = stand_in(tmp_path / "example", before="time.sleep(60)")
    with Service(tmp_path, "demo", "--example", example) as demo:
        demo.wait_for("exporting the graphs")
        assert demo.stop(signal.SIGINT) == 130
        assert demo.left_behind() == []
    assert left_in_tmp(tmp_path) == []


@pytest.mark.parametrize("moment", ["the broker is up", "ready"])
def test_ctrl_c_while_it_runs(tmp_path: Path, moment: str):
    example = stand_in(tmp_path / "example")
    with Service(tmp_path, "demo", "--example", example) as demo:
        demo.wait_for(moment)
        assert demo.stop(signal.SIGINT) == 130
        assert demo.left_behind() == []
    assert left_in_tmp(tmp_path) == []


def test_without_the_example_it_says_so(tmp_path: Path):
    assert "no export_model.py in" in failed(rankmq("demo", "--example", tmp_path), 3)


@pytest.mark.mindspore
def test_the_example_itself(tmp_path: Path):
    pytest.importorskip("mindspore", reason="needs MindSpore") if sys.platform == "linux" else None
    import shutil

    example = tmp_path / "matmul"
    shutil.copytree(ROOT / "examples" / "matmul", example, ignore=shutil.ignore_patterns("model", "__pycache__"))
    with Service(tmp_path, "demo", "--example", example) as demo:
        assert demo.ended(110) == 0, demo.errors
        assert "x is -96 and z is -144 everywhere" in demo.output
        assert demo.left_behind() == []

"""`rankmq bench`: what it prints and writes, and what it leaves behind."""

import json
import signal
from pathlib import Path

import pytest

from tests.e2e.cli import Service, failed, rankmq


@pytest.fixture(autouse=True)
def _temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))


def left_in_tmp(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "tmp").iterdir()]


def test_without_a_broker(tmp_path: Path):
    done = rankmq("bench", "codec", "--quick", "--json", tmp_path / "rows.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["case"].split(",")[0] for row in rows] == ["4 KB", "48 KB", "1 MB", "16 MB"]
    for row in rows:
        assert (row["name"], row["unit"], row["rounds"]) == ("codec", "GB/s", 2)
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert f" {row['case']} " in done.stdout
    assert " cores, " in done.stdout
    assert left_in_tmp(tmp_path) == []


def test_one_request_on_an_idle_engine(tmp_path: Path):
    with Service(tmp_path, "bench", "latency", "--quick", "--json", tmp_path / "rows.json") as bench:
        assert bench.ended(60) == 0, bench.errors
        assert bench.left_behind(5) == []
    p50, p99 = json.loads((tmp_path / "rows.json").read_text())
    assert (p50["name"], p50["unit"]) == ("latency", "ms")
    assert 0 < p50["value"] <= p99["value"]
    assert 0 < p50["ceiling"] <= p99["ceiling"]
    assert left_in_tmp(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_before_the_end(tmp_path: Path, number: signal.Signals):
    with Service(tmp_path, "bench", "codec", "edge", "--quick", "--json", tmp_path / "rows.json") as bench:
        bench.wait_for("8 in flight")
        assert bench.stop(number) == 130
        assert bench.errors == ""
        assert bench.left_behind(5) == []
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["name"] for row in rows] == ["codec"] * 4 + ["edge"]
    assert "4 KB" in bench.output
    assert left_in_tmp(tmp_path) == []


def test_nothing_stays_when_it_is_killed(tmp_path: Path):
    with Service(tmp_path, "bench", "edge", "--quick") as bench:
        bench.wait_for("8 in flight")
        bench.stop(signal.SIGKILL)
        assert bench.left_behind(20) == []


def test_what_fails_is_said_with_its_name_and_does_not_hold_up_the_rest(tmp_path: Path):
    done = rankmq("bench", "codec", "latency", "--quick", "--examples", tmp_path)
    assert "latency: no export_model.py in" in failed(done, 3)
    assert "16 MB" in done.stdout

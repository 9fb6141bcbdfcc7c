"""`rankmq chaos` as a person uses it: what it says, how it ends, and that nothing is left behind."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.cli import Service, failed, rankmq

SMALL = ("chaos", "--ranks", 2, "--in-flight", 8)


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run that is killed leaves goes with the test."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))


def test_a_short_run(tmp_path: Path) -> None:
    file = tmp_path / "chaos.json"
    ran = Service(tmp_path / "out", *SMALL, "--each-once", "--faults", "kill-rank,cut-rank", "--json", file)
    with ran:
        ran.wait_for("cut-rank 1: noticed after ")
        code = ran.ended(60)
    assert code == 0, ran.output + ran.errors
    assert ran.left_behind(5) == []
    lines = ran.output.splitlines()
    assert [line.split()[2:4] for line in lines[:2]] == [["kill-rank", "0:"], ["kill-rank", "1:"]]
    (accepted,) = [int(line.split()[1]) for line in lines if line.startswith("accepted")]
    told = json.loads(file.read_text())
    assert told["good"]
    assert told["tally"]["accepted"] == accepted >= 30
    assert [fault["fault"] for fault in told["faults"]] == ["kill-rank", "kill-rank", "cut-rank"]
    assert told["setting"]["seed"] == 0
    assert "requests are in flight" in ran.errors
    assert "amqp://" not in ran.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    with Service(tmp_path, *SMALL, "--seconds", 60, "--faults", "kill-rank") as ran:
        ran.wait_for("kill-rank ")
        began = time.monotonic()
        code = ran.stop(number)
        assert time.monotonic() - began < 20
    assert code == (130 if number == signal.SIGINT else 1)
    assert "Traceback" not in ran.errors
    assert ran.left_behind(5) == []


def test_it_is_killed(tmp_path: Path) -> None:
    """Nothing that it had started goes on without it."""
    with Service(tmp_path, *SMALL, "--seconds", 60, "--faults", "kill-rank") as ran:
        ran.wait_for("kill-rank ")
        ran.stop(signal.SIGKILL)
        assert ran.left_behind(20) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--faults", "kill-cat"), "there is no fault 'kill-cat'"),
        (("--faults", "kill-group"), "kill-group needs --groups 2 at least"),
        (("--ranks", 7), "--ranks 7: it must divide 96"),
        (("--communication", "shm", "--ranks", 3), "--ranks 3: the example's graphs are for 1, 2, 4 or 8"),
        (("--communication", "shm", "--example", "/nowhere"), "no export_model.py in /nowhere"),
        (("--json", "/nowhere/chaos.json"), "/nowhere/chaos.json: cannot be written: No such file or directory"),
        (("--logs", "/usr"), "/usr is not empty"),
    ],
)
def test_what_cannot_be(options: tuple[object, ...], words: str) -> None:
    assert words in failed(rankmq("chaos", *options), 3)

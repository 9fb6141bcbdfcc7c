"""`rankmq cancel`, and the options of `rankmq infer` that go with it, up to where a broker would be needed."""

from __future__ import annotations

import pytest
from rankmq.engine import client_cancel
from rankmq.schemas.errors import BrokerRefused
from rankmq.scripts.app import app
from typer.testing import CliRunner

URL = ("--broker-url", "amqp://u:geheim@127.0.0.1:1/%2F")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("RANKMQ_CONFIG", "")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "nothing-runs-here"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RANKMQ_BROKER_URL", raising=False)


@pytest.fixture
def engine(monkeypatch):
    """What the engine says, by id; and how it was asked."""
    said: dict[str, str] = {}
    asked: list[tuple[list[str], float]] = []

    def collect(settings, ids, *, name, timeout):
        asked.append((list(ids), timeout))
        return {it: said[it] for it in ids if it in said}

    monkeypatch.setattr(client_cancel, "collect_cancels", collect)
    said_and_asked = type("Engine", (), {"said": said, "asked": asked})
    return said_and_asked


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("said", "code", "lines"),
    [
        ({"a": "cancelled"}, 0, ["a: cancelled"]),
        (
            {"a": "noted", "b": "cancelled"},
            0,
            ["a: not known to any orchestrator: noted, it will not be served should it come", "b: cancelled"],
        ),
        ({"a": "cancelled", "b": "answered"}, 8, ["a: cancelled", "b: answered already"]),
        ({"a": "answered", "b": None}, 9, ["a: answered already", "b: no orchestrator answers: not cancelled"]),
    ],
)
def test_a_line_for_each_and_an_exit_code(engine, said, code, lines):
    engine.said.update({it: state for it, state in said.items() if state})
    result = run("cancel", *said, *URL, "--timeout", "7")
    assert result.output.splitlines() == lines
    assert result.exit_code == code
    assert engine.asked == [(list(said), 7.0)]


@pytest.mark.parametrize("ids", [("",), ("x" * 256,), ("good", "é" * 128)])
def test_an_id_that_cannot_be(engine, ids):
    result = run("cancel", *ids, *URL)
    assert result.exit_code == 2
    assert result.stderr.startswith("rankmq: a request's id has 1 to 255 bytes")
    assert result.stderr.count("\n") == 1
    assert not engine.asked


def test_no_id():
    assert run("cancel", *URL).exit_code == 2


def test_nothing_runs_here():
    result = run("cancel", "a")
    assert result.exit_code == 3
    assert "nothing runs here" in result.stderr


def test_what_goes_wrong_is_one_line(monkeypatch):
    def refused(*_, **__):
        raise BrokerRefused("the broker refuses a permission: write to rankmq.cancel")

    monkeypatch.setattr(client_cancel, "collect_cancels", refused)
    result = run("cancel", "a", *URL)
    assert result.exit_code == 4
    assert result.stderr == "rankmq: the broker refuses a permission: write to rankmq.cancel\n"


def test_the_exit_codes_are_in_the_help():
    text = " ".join(run("cancel", "--help").output.split())
    assert "Exit code 0 if every request was cancelled or noted, 8 if one had been answered already, 9 if no" in text


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--lane", "urgent"), "there is no lane 'urgent': the lanes are high, normal, low"),
        (("--request-id", ""), "a request's id has 1 to 255 bytes"),
        (("--request-id", "x" * 256), "a request's id has 1 to 255 bytes"),
    ],
)
def test_terms_of_infer_that_cannot_be_meant(wrong, says):
    result = run("infer", "a", "b", "-i", "x=1", *wrong, *URL)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"rankmq: {says}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("seconds", ["0", "-3", "soon"])
def test_a_deadline_that_is_over(seconds):
    assert run("infer", "a", "b", "-i", "x=1", f"--deadline={seconds}", *URL).exit_code == 2

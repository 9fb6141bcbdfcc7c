"""The producers of examples/producers, which know nothing of rankmq but the wire, against a real engine."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.systems import ROOT, System

PRODUCERS = ROOT / "examples" / "producers"
INSTALL_SECONDS, ANSWER_SECONDS = 90, 60

Ask = Callable[..., subprocess.CompletedProcess[str]]


def run(command: Sequence[str], folder: Path, seconds: float, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RANKMQ_", "PYTHON"))}
    return subprocess.run(
        command,
        cwd=folder,
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def npm_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node.js producer with its packages, in a folder of its own."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node or npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    for name in ("producer.js", "package.json"):
        shutil.copy(PRODUCERS / name, folder)
    done = run([npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"], folder, INSTALL_SECONDS)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module", params=["python", "node"])
def ask(request: pytest.FixtureRequest, gallery: System, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Runs a producer, with arguments, against the engine that serves the original's servable."""
    if request.param == "python":
        folder, command = tmp_path_factory.mktemp("python"), [sys.executable, "-P", str(PRODUCERS / "producer.py")]
    else:
        folder = npm_install(tmp_path_factory)
        command = ["node", "producer.js"]

    def asking(*arguments: str, url: str = gallery.url) -> subprocess.CompletedProcess[str]:
        return run([*command, *arguments], folder, ANSWER_SECONDS, RANKMQ_BROKER_URL=url)

    return asking


def test_the_pipeline_answers_with_the_originals_numbers(ask: Ask) -> None:
    done = ask()

    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"\s*x\b(.*?)\bz\b(.*)", done.stdout, re.DOTALL)
    assert found, done.stdout
    for printed, expected in zip(found.groups(), (-96.0, -144.0), strict=True):
        numbers = [float(number) for number in re.findall(r"-\d+\.?\d*", printed)]
        assert len(numbers) >= 4
        assert np.array_equal(numbers, np.full(len(numbers), expected)), printed


@pytest.mark.parametrize(
    ("servable", "method", "code"),
    [
        ("nobody", "predict", "unknown_servable"),
        ("matmul", "nothing", "unknown_method"),
        ("matmul", "fun1", "invalid_input"),
    ],
)
def test_an_error_reply_is_printed_and_ends_it_with_a_code(ask: Ask, servable: str, method: str, code: str) -> None:
    done = ask(servable, method)

    assert done.returncode == 1
    assert done.stderr.startswith(f"{code}: "), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_broker_that_is_not_there_ends_it_with_a_code(ask: Ask) -> None:
    done = ask(url="amqp://guest:guest@127.0.0.1:1/%2F")

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr


def test_without_a_broker_url_it_says_so(ask: Ask) -> None:
    done = ask(url="")

    assert (done.returncode, done.stdout, done.stderr) == (1, "", "RANKMQ_BROKER_URL names no broker\n")


def test_it_needs_nothing_of_ours() -> None:
    assert "rankmq" not in re.findall(r"^\s*(?:import|from)\s+(\w+)", (PRODUCERS / "producer.py").read_text(), re.M)
    assert re.findall(r"require\(\"([^\"]+)\"\)", (PRODUCERS / "producer.js").read_text()) == ["node:crypto", "amqplib"]

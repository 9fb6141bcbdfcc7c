"""What the README and the page for authors say to type, typed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.cli import Service, rankmq
from tests.e2e.systems import ROOT, System, environment

README = (ROOT / "README.md").read_text()
AUTHORS = (ROOT / "docs" / "servables.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.mindspore
def test_the_first_servable_answers_as_shown(tmp_path: Path) -> None:
    export, configuration, *_ = PYTHON
    asked, shown = re.findall(r"^```console\n\$ rankmq (.*?)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "hello").mkdir()
    (tmp_path / "hello" / "servable_config.py").write_text(configuration)
    (tmp_path / "export.py").write_text(export)
    subprocess.run([sys.executable, "export.py"], cwd=tmp_path, env=environment(), check=True, timeout=90)
    state = tmp_path / "state"

    with Service(tmp_path / "log", "up", tmp_path / "hello", "--state", state) as up:
        up.wait_for("is up")
        done = rankmq(*shlex.split(asked), "--state", state)
        assert up.stop() == 0

    assert done.returncode == 0, done.stderr
    said = [line.split() for line in done.stdout.splitlines()]
    assert said[:-1] == [line.split() for line in shown.splitlines()]  # the last one has the time that it took


def test_the_producer_library_is_called_as_shown(gallery: System) -> None:
    example = PYTHON[2].replace("amqp://user:password@host:5672/%2F", gallery.url)
    assert gallery.url in example

    done = subprocess.run(
        [sys.executable, "-c", example], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"-\d+", done.stdout)) == {"-96", "-144"}


@pytest.mark.mindspore
def test_the_servables_of_the_page_for_authors_answer_as_shown(tmp_path: Path) -> None:
    export, *lessons, tally = re.findall(r"^```python\n(.*?)^```$", AUTHORS, re.MULTILINE | re.DOTALL)
    shown = "\n".join(re.findall(r"^```console\n(.*?)^```$", AUTHORS, re.MULTILINE | re.DOTALL))
    (tmp_path / "export.py").write_text(export)
    for name, text in (("lessons", "\n\n".join(lessons)), ("tally", tally)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "servable_config.py").write_text(text)
    subprocess.run([sys.executable, "export.py"], cwd=tmp_path, env=environment(), check=True, timeout=90)
    state = tmp_path / "state"

    said: list[str] = []
    with Service(tmp_path / "log", "up", tmp_path / "lessons", tmp_path / "tally", "--state", state) as up:
        up.wait_for("is up")
        for command in re.findall(r"^\$ rankmq (.*)$", shown, re.MULTILINE):
            done = rankmq(*shlex.split(command), "--state", state)
            said += [f"$ rankmq {command}", *done.stdout.splitlines(), *done.stderr.splitlines()]
        assert up.stop() == 0

    found = [line.split() for line in said if line and not line.startswith("served in ")]
    assert found == [line.split() for line in shown.splitlines() if line]

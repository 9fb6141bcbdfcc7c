"""What runs here tells where its broker is, to nobody else, and only while it runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from rankmq.engine.settings import Settings
from rankmq.schemas.errors import ConfigurationError
from rankmq.workers.endpoint import Endpoint, reachable, state_folder

URL = "amqp://me:geheim@127.0.0.1:5672/%2F"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith("RANKMQ_")]:
        monkeypatch.delenv(name)


def settings(folder: Path, **given) -> Settings:
    return Settings(state_dir=folder, **given)


def test_the_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder(Settings()) == tmp_path / "rankmq"
    assert state_folder(settings(tmp_path / "own")) == tmp_path / "own"
    for unusable in ("", "relative/folder"):
        monkeypatch.setenv("XDG_STATE_HOME", unusable)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert state_folder(Settings()) == tmp_path / ".local/state/rankmq"


def test_others_find_it_while_it_runs(tmp_path):
    Endpoint.of(settings(tmp_path, broker_url=URL)).write(tmp_path)
    found = reachable(settings(tmp_path))
    assert found.address().url() == URL
    assert "geheim" not in repr(Endpoint.read(tmp_path))
    assert "geheim" not in repr(found)


def test_nobody_else_may_read_it(tmp_path):
    folder = tmp_path / "state"
    (tmp_path / "old").touch(mode=0o666)
    Endpoint.of(settings(folder, broker_url=URL)).write(folder)
    assert (folder / "endpoint.json").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == ["endpoint.json"]


def test_the_certificates_come_with_it(tmp_path):
    ca = tmp_path / "ca.pem"
    ca.touch()
    Endpoint.of(settings(tmp_path, broker_url=URL.replace("amqp", "amqps"), tls_ca_file=ca)).write(tmp_path)
    found = reachable(settings(tmp_path))
    assert found.tls_ca_file == ca
    assert found.tls_key_file is None
    assert found.address().tls


def test_what_is_given_counts_more(tmp_path):
    Endpoint.of(settings(tmp_path, broker_url=URL)).write(tmp_path)
    given = settings(tmp_path, broker_url=SecretStr("amqp://other/"))
    assert reachable(given) is given


def test_what_has_ended_is_not_there(tmp_path):
    script = f"""
from pathlib import Path
from rankmq.engine.settings import Settings
from rankmq.workers.endpoint import Endpoint
Endpoint.of(Settings(broker_url={URL!r})).write(Path({str(tmp_path)!r}))
"""
    root = next(path for path in sys.path if path.endswith(".dev"))
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": root})
    left = Endpoint.read(tmp_path)
    assert left is not None
    assert not left.alive()
    with pytest.raises(ConfigurationError, match="nothing runs here"):
        reachable(settings(tmp_path))


def test_a_pid_that_is_somebody_else_s_by_now_does_not_count(tmp_path):
    Endpoint(URL, started=Endpoint(URL).started - 60).write(tmp_path)
    with pytest.raises(ConfigurationError):
        reachable(settings(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"broker_url": 1}', '{"broker_url": "x", "pid": "a", "started": 1}'])
def test_a_damaged_file_is_as_none(tmp_path, text):
    (tmp_path / "endpoint.json").write_text(text)
    assert Endpoint.read(tmp_path) is None


def test_only_its_own_is_taken_back(tmp_path):
    mine = Endpoint.of(settings(tmp_path, broker_url=URL))
    mine.write(tmp_path)
    told = json.loads((tmp_path / "endpoint.json").read_text())
    (tmp_path / "endpoint.json").write_text(json.dumps({**told, "pid": 1}))
    mine.remove(tmp_path)
    assert Endpoint.read(tmp_path) is not None
    mine.write(tmp_path)
    mine.remove(tmp_path)
    assert Endpoint.read(tmp_path) is None
    mine.remove(tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        Endpoint(URL).write(tmp_path / "file")

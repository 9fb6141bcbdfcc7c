"""Settings: command line before environment before file before default, checked, and silent about the password."""

from __future__ import annotations

import json
import pickle
import traceback
from types import SimpleNamespace

import pytest
from pydantic import SecretStr, ValidationError
from rankmq.engine.settings import Settings, load_settings
from rankmq.schemas.errors import ConfigurationError
from rankmq.workers.local import LocalEngine

SECRET = "Sesame-4711"
URL = f"amqp://user:{SECRET}@h/v"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("RANKMQ_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes the file that RANKMQ_CONFIG names."""

    def write(text):
        file = tmp_path / "rankmq.toml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.setenv("RANKMQ_CONFIG", str(file))
        return file

    return write


def test_every_default_is_allowed():
    settings = load_settings()
    assert settings.broker_url is None
    given = {name: value for name, value in settings.model_dump().items() if value is not None}
    assert load_settings(**given) == settings


def test_the_order_of_the_sources(config, monkeypatch):
    config("max_in_flight = 1\nmax_attempts = 1\nlockstep_window = 1\n")
    monkeypatch.setenv("RANKMQ_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("RANKMQ_LOCKSTEP_WINDOW", "2")
    settings = load_settings(lockstep_window=3, stage_threads=None)
    assert (settings.max_in_flight, settings.max_attempts, settings.lockstep_window) == (1, 2, 3)
    assert settings.stage_threads == Settings().stage_threads


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"max_in_flight": 0}, "setting max_in_flight: Input should be greater than or equal to 1"),
        ({"max_in_flight": "many"}, "setting max_in_flight: "),
        ({"log_level": "loud"}, "setting log_level: "),
        ({"step_timeout": -1}, "setting step_timeout: "),
        ({"heartbeat_seconds": "nan"}, "setting heartbeat_seconds: "),
        ({"unknown": 1}, "setting unknown: "),
        ({"broker_url": 7}, "setting broker_url: "),
        ({"broker_url": [URL]}, "setting broker_url: "),
    ],
)
def test_what_cannot_be_used_is_one_line(given, match):
    with pytest.raises(ConfigurationError, match=match) as caught:
        load_settings(**given)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_an_environment_variable_that_cannot_be_used(monkeypatch):
    monkeypatch.setenv("RANKMQ_STEP_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="setting step_timeout: "):
        load_settings()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("max_in_flight = ", "the settings cannot be read: "),
        (b"\xff\xfe", "the settings cannot be read: "),
        ("max_in_fligth = 3", "setting max_in_fligth: "),
        ("[max_in_flight]\na = 1", "setting max_in_flight: "),
        (f"broker_url = {URL}", "the settings cannot be read: "),
        (f'broker_url = ["{URL}"]', "setting broker_url: "),
    ],
)
def test_a_file_that_cannot_be_used(config, text, match):
    config(text)
    with pytest.raises(ConfigurationError, match=match) as caught:
        load_settings()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_file_that_is_not_there_or_cannot_be_read(monkeypatch, tmp_path):
    not_there = {str(tmp_path / "none.toml"): "is not a file", str(tmp_path): "is not a file"}
    for name, match in {**not_there, "/proc/self/mem": "cannot be read"}.items():
        monkeypatch.setenv("RANKMQ_CONFIG", name)
        with pytest.raises(ConfigurationError, match=match):
            load_settings()


def test_the_password_is_shown_nowhere(config, monkeypatch):
    monkeypatch.setenv("RANKMQ_BROKER_URL", URL)
    settings = load_settings(log_level="debug")
    for shown in (
        str(settings),
        repr(settings),
        f"{settings!r}",
        str(settings.model_dump()),
        settings.model_dump_json(),
    ):
        assert SECRET not in shown
    address = settings.address()
    assert (address.password, address.vhost) == (SECRET, "v")
    assert SECRET not in repr(address)
    assert pickle.loads(pickle.dumps(settings)).address() == address  # it goes to other processes


def test_nobody_can_change_them():
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.max_in_flight = 3


def test_without_a_broker_it_is_said_what_to_do(tmp_path):
    with pytest.raises(ConfigurationError, match="no broker: give --broker-url or set RANKMQ_BROKER_URL"):
        load_settings().address()
    with pytest.raises(ConfigurationError, match="must look like"):
        load_settings(broker_url="http://h").address()
    with pytest.raises(ConfigurationError, match="no certificate file"):
        load_settings(broker_url=SecretStr(URL), tls_ca_file=tmp_path / "none").address()


def test_limits_follow_the_settings():
    limits = load_settings(max_body_bytes=2048, max_instances=3).limits
    assert (limits.body_bytes, limits.instances) == (2048, 3)


def test_a_blob_store_is_opened_and_its_url_is_shown_nowhere(tmp_path):
    assert Settings().blobs() is None
    assert Settings(blob_store="").blobs() is None
    settings = Settings(blob_store=f"file://{tmp_path}/store")
    blob = settings.blobs().write(b"abc")
    assert (tmp_path / "store" / blob.name).read_bytes() == b"abc"
    with pytest.raises(ConfigurationError, match="blob_store: nonsense"):
        Settings(blob_store="nonsense://x").blobs()
    assert "secret" not in repr(Settings(blob_store="ftp://user:secret@host/x"))


def test_the_processes_of_one_machine_are_told_of_the_blob_store():
    engine = SimpleNamespace(_settings=Settings(blob_store="ftp://user:secret@host/x"), _group="g0", servables=[])
    told = json.loads(json.dumps(LocalEngine._order(engine, "agents")))
    assert Settings(**told["settings"]).blob_store.get_secret_value() == "ftp://user:secret@host/x"

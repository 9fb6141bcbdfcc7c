"""Where what runs on this machine can be reached: `endpoint.json` in the state folder, while it runs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from ..engine.settings import Settings
from ..schemas.errors import ConfigurationError

__all__ = ["Endpoint", "reachable", "state_folder"]

_FILE = "endpoint.json"
_CERTIFICATES = ("tls_ca_file", "tls_cert_file", "tls_key_file")
_SAME_START_SECONDS = 2.0  # how far apart two readings of one process's start may be


def state_folder(settings: Settings) -> Path:
    """The folder for what outlives a process: `state_dir`, else a folder of rankmq's own under the user's state."""
    if settings.state_dir is not None:
        return settings.state_dir.absolute()
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "rankmq"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A broker that something on this machine uses.

    Attributes:
        broker_url: with its password; kept out of `repr`.
        certificates: the files that go with an amqps URL, by the names of their settings.
        pid: the process that runs it all.
        started: when that process began, as `time.time()`; a pid alone may be somebody else's by now.
    """

    broker_url: str = field(repr=False)
    certificates: dict[str, str] = field(default_factory=dict)
    pid: int = field(default_factory=os.getpid)
    started: float = field(default_factory=lambda: psutil.Process().create_time())

    @classmethod
    def of(cls, settings: Settings) -> Endpoint:
        """The endpoint of this process.

        Args:
            settings: the broker's URL must be set.
        """
        found = {name: getattr(settings, name) for name in _CERTIFICATES}
        return cls(settings.address().url(), {name: str(path.absolute()) for name, path in found.items() if path})

    @classmethod
    def read(cls, folder: Path) -> Endpoint | None:
        """The endpoint that a folder tells of; None where there is none, or it cannot be read."""
        try:
            told: dict[str, Any] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            return cls(
                broker_url=str(told["broker_url"]),
                certificates={name: str(told[name]) for name in _CERTIFICATES if told.get(name)},
                pid=int(told["pid"]),
                started=float(told["started"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def alive(self) -> bool:
        """Whether the process that wrote it still runs."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < _SAME_START_SECONDS
        except psutil.Error:
            return False

    def write(self, folder: Path) -> None:
        """Tell it in a folder, for nobody else to read.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        told = {"broker_url": self.broker_url, **self.certificates, "pid": self.pid, "started": self.started}
        draft = folder / f".{_FILE}.{self.pid}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(json.dumps(told, indent=2) + "\n")
            draft.replace(folder / _FILE)
        except OSError as error:
            raise ConfigurationError(f"cannot be written: {error.strerror or error}", file=str(folder)) from None

    def remove(self, folder: Path) -> None:
        """Take it back, unless another process has told its own there meanwhile."""
        told = Endpoint.read(folder)
        if told is not None and told.pid == self.pid:
            (folder / _FILE).unlink(missing_ok=True)


def reachable(settings: Settings) -> Settings:
    """The settings with a broker: the one that they name, else that of what runs on this machine.

    Raises:
        ConfigurationError: they name none, and nothing runs with this state folder.
    """
    if settings.broker_url is not None:
        return settings
    folder = state_folder(settings)
    endpoint = Endpoint.read(folder)
    if endpoint is None or not endpoint.alive():
        raise ConfigurationError(
            f"no broker: nothing runs here with the state folder {folder}; "
            "start `rankmq up`, or give --broker-url or set RANKMQ_BROKER_URL"
        )
    files = {name: Path(path) for name, path in endpoint.certificates.items()}
    return settings.model_copy(update={"broker_url": SecretStr(endpoint.broker_url), **files})

"""Configuration: one frozen object, read once at the edge: command line > environment (RANKMQ_*) > file > default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from ..schemas.errors import ConfigurationError
from ..schemas.limits import Limits
from .address import BrokerAddress

if TYPE_CHECKING:
    from .blobs import BlobStore

__all__ = ["Settings", "load_settings"]


class Settings(BaseSettings):
    """Everything that can be set.

    Each field is an environment variable RANKMQ_<NAME>, a key of the TOML file that RANKMQ_CONFIG names, and, where it
    makes sense, an option of the command line.
    """

    model_config = SettingsConfigDict(env_prefix="RANKMQ_", frozen=True, extra="forbid")

    broker_url: SecretStr | None = Field(None, description="amqp[s]://user:password@host:port/vhost")
    tls_ca_file: Path | None = Field(None, description="PEM file of the authority behind the broker's certificate")
    tls_cert_file: Path | None = Field(None, description="PEM file of our own certificate")
    tls_key_file: Path | None = Field(None, description="PEM file of its key")
    state_dir: Path | None = Field(None, description="where a private broker keeps its data")
    connect_timeout: float = Field(10.0, ge=0, description="seconds to go on trying to reach the broker")
    reconnect_timeout: float = Field(120.0, ge=0, description="the same, once it had been reached")

    max_in_flight: int = Field(
        64, ge=1, le=10_000, description="requests that an orchestrator takes from a queue at once"
    )
    max_queue_length: int = Field(
        1_000_000, ge=1, le=100_000_000, description="requests that may wait in a requests queue; more are refused"
    )
    max_queue_age: float = Field(
        0.0, ge=0, le=30 * 86400, description="seconds that a request may wait in its queue; 0 for any time"
    )
    max_deliveries: int = Field(
        10, ge=1, le=20, description="how often the broker may deliver a request, each time to an end without outcome"
    )
    hold_seconds: float = Field(
        1200.0, gt=0, description="after so long a request that still runs is taken anew from the broker"
    )
    remember_hours: int = Field(1, ge=1, le=720, description="how long the ids of answered requests are remembered")
    remember_bytes: int = Field(
        256 * 1024 * 1024, ge=1_000_000, description="how many bytes of answers are remembered with them"
    )
    lockstep_window: int = Field(4, ge=1, le=1024, description="steps sent ahead of the slowest rank")
    plane_bytes: int = Field(
        64 * 1024 * 1024,
        ge=0,
        le=1 << 34,
        description="memory shared with the ranks of this host; 0 for none, nor with jobs",
    )
    blob_store: SecretStr | None = Field(
        None, description="where large tensors go past the broker, as fsspec knows it: file:///..., s3://..."
    )
    inline_limit: int = Field(
        1024 * 1024, ge=4096, description="largest tensor in a message, in bytes, where there is a blob store"
    )
    max_tensor_bytes: int = Field(
        1024**3, ge=1024 * 1024, description="bytes of blobs that requests may bring at once; more have to wait"
    )
    blob_age: float = Field(168.0, gt=0, description="hours after which blobs are deleted that nobody has deleted")
    max_attempts: int = Field(3, ge=1, le=20, description="how often a request is tried when a group is lost under it")
    wait_agents_time_in_seconds: float = Field(0.0, ge=0, description="wait so long for all ranks; 0 waits for ever")
    step_timeout: float = Field(
        60.0, gt=0, description="seconds after which a step that ranks have not answered is overdue"
    )
    load_timeout: float = Field(180.0, gt=0, description="seconds that the ranks may take to load and warm up")
    heartbeat_seconds: float = Field(1.0, gt=0, description="how often an agent says that it lives")
    heartbeats_missed: int = Field(5, ge=2, description="how many may be missed before a rank counts as lost")
    drain_timeout: float = Field(30.0, ge=0, description="seconds that what runs may take to finish on stop")
    pipeline_threads: int = Field(
        64,
        ge=1,
        le=4096,
        description="threads for pipelines that need one each: new ones, and those that compute for long",
    )
    stage_threads: int = Field(4, ge=1, le=256, description="threads for the Python functions of methods")
    num_parallel_workers: int = Field(
        0, ge=0, le=256, description="processes for the Python functions of methods, where they are heavy; 0: threads"
    )
    operator_threads: int = Field(
        0, ge=0, le=1024, description="threads for an operator of a graph on CPU; 0: one if ranks have no more cores"
    )
    spares: int = Field(0, ge=0, le=8, description="agent processes that wait, ready, to take a lost rank's place")
    max_restarts: int = Field(5, ge=0, description="how often the launcher starts a rank again within ten minutes")

    max_body_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="largest request")
    max_instances: int = Field(4096, ge=1, description="most instances of a request")

    log_format: Literal["lines", "json"] = Field("lines", description="how logs are written")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order in which the sources are asked."""
        path = os.environ.get("RANKMQ_CONFIG")
        file = (TomlConfigSettingsSource(settings_cls, Path(path)),) if path else ()
        return (init_settings, env_settings, *file)

    @property
    def limits(self) -> Limits:
        """The bounds on a request."""
        return Limits(body_bytes=self.max_body_bytes, instances=self.max_instances)

    def blobs(self) -> BlobStore | None:
        """The blob store; None where none is set.

        Raises:
            ConfigurationError: a URL that fsspec does not know, or for which a package is missing.
        """
        if self.blob_store is None or not self.blob_store.get_secret_value():
            return None
        from .blobs import BlobStore

        store = BlobStore(self.blob_store.get_secret_value())
        store.open()
        return store

    def address(self) -> BrokerAddress:
        """Where the broker is.

        Raises:
            ConfigurationError: no broker URL is set, or it cannot be read.
        """
        if self.broker_url is None:
            raise ConfigurationError("no broker: give --broker-url or set RANKMQ_BROKER_URL")
        return BrokerAddress.parse(
            self.broker_url.get_secret_value(),
            ca_file=self.tls_ca_file,
            cert_file=self.tls_cert_file,
            key_file=self.tls_key_file,
        )


def load_settings(**given: Any) -> Settings:
    """Reads the settings; what is given and not None wins over environment and file.

    Raises:
        ConfigurationError: a value that cannot be used, or a file that cannot be read; one line.
    """
    path = os.environ.get("RANKMQ_CONFIG")
    if path and not Path(path).is_file():
        raise ConfigurationError(f"RANKMQ_CONFIG names {path}, which is not a file")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        raise ConfigurationError(f"setting {name}: {first['msg']}") from None
    except (ValueError, OSError) as error:  # the TOML file cannot be read, or not parsed
        raise ConfigurationError(f"the settings cannot be read: {error}", file=path) from None

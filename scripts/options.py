"""The options that commands share, declared once, and how they become settings."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .report import reported

if TYPE_CHECKING:
    from ..engine.settings import Settings

__all__ = ["Paths", "Version", "with_settings"]

_COMMON_PANEL = "Broker, state and logs"


def _option(kind: Any, *names: str, metavar: str, help: str, panel: str | None = _COMMON_PANEL) -> Any:
    return Annotated[kind, typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, show_default=False)]


# By the name of the setting. They have no defaults of their own: those of the settings count.
_COMMON: Mapping[str, Any] = {
    "broker_url": _option(
        str | None,
        "--broker-url",
        metavar="URL",
        help="amqp://user:password@host:port/vhost, or amqps. As RANKMQ_BROKER_URL it is hidden from other users.",
    ),
    "tls_ca_file": _option(Path | None, "--tls-ca-file", metavar="PEM", help="Authority behind an amqps broker."),
    "tls_cert_file": _option(Path | None, "--tls-cert-file", metavar="PEM", help="Our own certificate."),
    "tls_key_file": _option(Path | None, "--tls-key-file", metavar="PEM", help="Its key."),
    "state_dir": _option(
        Path | None,
        "--state",
        metavar="DIR",
        help="Where a private broker keeps its data, and where infer and status find it "
        "(default: rankmq in XDG_STATE_HOME or ~/.local/state).",
    ),
    "config": _option(
        Path | None, "--config", metavar="FILE", help="TOML file of settings (RANKMQ_CONFIG names one too)."
    ),
    "log_format": _option(str | None, "--log-format", metavar="FORM", help="How logs are written: lines or json."),
    "log_level": _option(
        str | None, "--log-level", metavar="LEVEL", help="What is logged: debug, info, warning or error."
    ),
}
_TUNING: Mapping[str, Any] = {
    "wait_agents_time_in_seconds": _option(
        float | None,
        "--wait-agents",
        metavar="SECONDS",
        help="Give up when ranks are missing so long (default: wait for ever).",
        panel=None,
    ),
    "max_in_flight": _option(
        int | None,
        "--max-in-flight",
        metavar="N",
        help="Requests taken from the queue at once (default: 64).",
        panel=None,
    ),
    "lockstep_window": _option(
        int | None,
        "--lockstep-window",
        metavar="N",
        help="Steps sent ahead of the slowest rank (default: 4).",
        panel=None,
    ),
}
_BLOBS: Mapping[str, Any] = {
    "blob_store": _option(
        str | None,
        "--blob-store",
        metavar="URL",
        help="Where large tensors go past the broker: a folder, or file://, s3:// and what else fsspec knows.",
    ),
}

Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH",
        help="A servable's folder (it has a servable_config.py), or a folder of such folders.",
        show_default=False,
    ),
]
Version = Annotated[int, typer.Option("--version", metavar="N", help="The servables' version; 0 is the newest.", min=0)]


def with_settings(
    role: str, *, tuning: bool = False, quiet: bool = False, blobs: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the shared options, and the settings that come of them as its first argument.

    Args:
        role: of the process, for its logs.
        tuning: with the options that tune an orchestrator.
        quiet: log errors alone, unless a level is asked for.
        blobs: with the option that names a blob store.
    """
    shared = {**(_TUNING if tuning else {}), **(_BLOBS if blobs else {}), **_COMMON}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, localns={"Settings": object}, include_extras=True)
        _, *own = inspect.signature(function).parameters.values()
        parameters = [it.replace(annotation=hints[it.name]) for it in own]
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in shared.items()
        ]

        @functools.wraps(function)
        def command(**given: Any) -> None:
            with reported():
                settings = _read({name: given.pop(name) for name in shared})
                _log(settings, role, quiet)
                function(settings, **given)

        del command.__wrapped__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {it.name: it.annotation for it in parameters}
        return command

    return decorate


def _read(given: dict[str, Any]) -> Settings:
    from ..engine.settings import load_settings

    config = given.pop("config")
    if config is not None:
        os.environ["RANKMQ_CONFIG"] = str(config)  # where the settings look for it, here and in every process of ours
    return load_settings(**given)


def _log(settings: Settings, role: str, quiet: bool) -> None:
    from ..engine import logs

    unasked = quiet and "log_level" not in settings.model_fields_set
    logs.configure(role, form=settings.log_format, level="error" if unasked else settings.log_level)
